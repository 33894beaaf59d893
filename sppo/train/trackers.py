"""Where a training may be looked at while it runs: TensorBoard, W&B, MLflow. A resumed training goes on as the same run.

| tracker | is told if | where |
|---|---|---|
| TensorBoard | tensorboard is installed | `$SPPO_TENSORBOARD/<name>`, or `tensorboard` beside the JSONL |
| W&B | `WANDB_PROJECT` is set | as wandb's own variables say; `WANDB_MODE=offline` works |
| MLflow | `MLFLOW_TRACKING_URI` is set | experiment `MLFLOW_EXPERIMENT_NAME`, or `sppo` |

Only the environment is asked, never the recipe: watching changes no result. Keys and passwords are read by these libraries
themselves, from the environment, and stand in no log line.
"""

import importlib
import importlib.util
import logging
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

log = logging.getLogger(__name__)

ID_DIGITS = 16
"""Of the fingerprint, that a run is known by."""


@dataclass(frozen=True)
class About:
    """What a training is called elsewhere."""

    name: str
    """For people, such as `tiny-iteration-1`."""
    fingerprint: str
    """Of the artifact in the making: the same after a resume, so the same run everywhere."""
    settings: Mapping[str, object] = field(default_factory=dict)
    """What a tracker lists as configuration, such as the recipe's training part. Values that JSON knows."""

    @property
    def identity(self) -> str:
        return self.fingerprint[:ID_DIGITS]

    @property
    def title(self) -> str:
        """Name and identity: two trainings of one name stay apart."""
        return f"{self.name}-{self.fingerprint[:8]}"


class Tracker(Protocol):
    """Is told each step's figures; a step that comes again is the same step."""

    def write(self, line: Mapping[str, float]) -> None:
        """A step."""

    def close(self, well: bool) -> None:
        """No more come; whether training went well."""


def asked_trackers(about: About, beside: Path) -> dict[str, Callable[[], Tracker]]:
    """Those that this environment asks for and has, by name, each with what opens it. `beside`: the JSONL's folder."""
    found: dict[str, Callable[[], Tracker]] = {}
    if _installed("tensorboard"):
        place = os.environ.get("SPPO_TENSORBOARD")
        folder = Path(place).expanduser() / about.title if place else beside / "tensorboard"
        found["TensorBoard"] = partial(TensorBoard, folder)
    elif os.environ.get("SPPO_TENSORBOARD"):
        log.warning("train: SPPO_TENSORBOARD is set and tensorboard is not installed here: pip install tensorboard")
    others: tuple[tuple[str, str, str, Callable[[About], Tracker]], ...] = (
        ("W&B", "WANDB_PROJECT", "wandb", WeightsAndBiases),
        ("MLflow", "MLFLOW_TRACKING_URI", "mlflow", MLflow),
    )
    for name, variable, package, opened in others:
        if os.environ.get(variable) and _installed(package):
            found[name] = partial(opened, about)
        elif os.environ.get(variable):
            log.warning("train: %s is set and %s is not installed here: pip install %s", variable, package, package)
    return found


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


class TensorBoard:
    """Event files of one folder. A new attempt begins with the steps already done and takes the place of what was there."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder), purge_step=0)

    def write(self, line: Mapping[str, float]) -> None:
        for name, value in _figures(line):
            self._writer.add_scalar(f"train/{name}", value, int(line["step"]))
        self._writer.flush()

    def close(self, well: bool) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A run of the project `WANDB_PROJECT`. It ignores steps that it has had."""

    def __init__(self, about: About) -> None:
        wandb: Any = importlib.import_module("wandb")
        # neither what the process prints nor its code goes along: only what is written here
        settings = wandb.Settings(console="off", silent=True, disable_git=True, disable_code=True)
        self._run: Any = wandb.init(
            project=os.environ["WANDB_PROJECT"],
            id=about.identity,
            name=about.title,
            config=dict(about.settings),
            resume="allow",
            settings=settings,
        )

    def write(self, line: Mapping[str, float]) -> None:
        step = int(line["step"])
        if step >= self._run.step:
            self._run.log(dict(_figures(line)), step=step)

    def close(self, well: bool) -> None:
        self._run.finish(exit_code=0 if well else 1)


class MLflow:
    """A run of the server `MLFLOW_TRACKING_URI`, found again by the fingerprint; steps that it has are not sent twice."""

    def __init__(self, about: About) -> None:
        mlflow: Any = importlib.import_module("mlflow")
        self._entities: Any = mlflow.entities
        self._client: Any = mlflow.MlflowClient()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "sppo")
        experiment = self._client.get_experiment_by_name(name)
        place = self._client.create_experiment(name) if experiment is None else experiment.experiment_id
        tag = "sppo.fingerprint"
        there = self._client.search_runs([place], f"tags.`{tag}` = '{about.fingerprint}'", max_results=1)
        if there:
            self._run: str = there[0].info.run_id
            self._client.update_run(self._run, status="RUNNING")
        else:
            made = self._client.create_run(place, run_name=about.title, tags={tag: about.fingerprint})
            self._run = made.info.run_id
            parameters = [self._entities.Param(key, str(value)) for key, value in about.settings.items()]
            self._client.log_batch(self._run, params=parameters)
        history = self._client.get_metric_history(self._run, "loss")
        self._done = max((metric.step for metric in history), default=0)

    def write(self, line: Mapping[str, float]) -> None:
        step = int(line["step"])
        if step > self._done:
            now = int(time.time() * 1000)
            figures = [self._entities.Metric(name, value, now, step) for name, value in _figures(line)]
            self._client.log_batch(self._run, metrics=figures)

    def close(self, well: bool) -> None:
        self._client.set_terminated(self._run, "FINISHED" if well else "FAILED")


def _figures(line: Mapping[str, float]) -> list[tuple[str, float]]:
    return [(name, float(value)) for name, value in line.items() if name != "step" and math.isfinite(value)]
