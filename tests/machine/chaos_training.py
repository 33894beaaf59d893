"""The train stage in one process, with a store in a folder: what ckpt-chaos kills and starts again.

    python tests/machine/chaos_training.py POLICY OUT

Makes its own small inputs, trains a policy of the folder POLICY for six steps with a checkpoint after every second, and leaves
in OUT/final.txt the digest of what was trained. Everything is the project's own: the stage, its checkpoints, the commit into
the store; only the worker runs in this process, because ckpt-chaos kills the process that it started.
"""

import json
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROMPTS, K, STEPS = 16, 2, 6


class Committed(logging.Handler):
    """Leaves a mark for every checkpoint that is committed, from which a later attempt must go on."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def emit(self, record: logging.LogRecord) -> None:
        words = record.getMessage().split(":")[0].split("-")
        if words[0] == "checkpoint checkpoint":
            self.folder.mkdir(exist_ok=True)
            (self.folder / f"step-{words[1]}").write_text("committed\n")


class InThisProcess:
    """A launcher whose one rank is this process."""

    called = False

    def machines(self, stage: str, fingerprint: str) -> int:
        return 1

    def run(self, groups: Sequence["Group"], store: "Store", report: Callable[..., None]) -> list["WorkRecord"]:  # type: ignore[name-defined]  # noqa: F821
        from sppo.launch.group import Place
        from sppo.launch.processes import free_port, rank_environment, thread_environment
        from sppo.launch.work import WorkRecord, now
        from sppo.train.engine import prepare_environment
        from sppo.train.run import TrainRun

        [group] = groups
        self.called = True
        os.environ |= {**thread_environment(1), **rank_environment(0, 1, 0, 1, "127.0.0.1", free_port())}
        prepare_environment(group.device)
        from sppo.train.loop import train

        (store.scratch / "work").mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=store.scratch / "work"))
        place = Place(store=store.url, scratch=store.scratch, folder=folder, index=0)
        train(place, TrainRun.model_validate_json(json.dumps(group.works[0])))
        done = {"stage": group.stage, "fingerprint": group.fingerprint, "number": 1, "of": 1, "attempt": "chaos"}
        told = {"host": "here", "process": os.getpid(), "devices": (), "state": "done", "begun": now(), "at": now()}
        return [WorkRecord(**done, **told)]


def main() -> None:
    """Train, or go on with it."""
    policy, out = Path(sys.argv[1]), Path(sys.argv[2])
    sys.path.insert(0, str(ROOT))
    import numpy as np

    import sppo.train
    from sppo.hardware import load_hardware
    from sppo.recipe import load_recipe
    from sppo.records import Prompt, Response, Target, to_table
    from sppo.store import Artifact, Identity, Outcome, Step, Store, Workspace

    logging.basicConfig(level=logging.WARNING)
    logging.getLogger("sppo.train.checkpoints").setLevel(logging.INFO)
    logging.getLogger("sppo.train.checkpoints").addHandler(Committed(out / "committed"))
    store = Store(str(out / "store"), out / "scratch")
    draws = np.random.default_rng(7)
    prompts, responses, targets = [], [], []
    for number in range(PROMPTS):
        name = f"prompt-{number:03d}"
        prompts.append(Prompt(name, [{"role": "user", "content": "x"}], [0, 2, *draws.integers(4, 260, 6).tolist()]))
        for k in range(K):
            answer = [*draws.integers(4, 260, int(draws.integers(1, 12))).tolist(), 3]
            responses.append(Response(name, k, answer, "y", "stop", [0.0] * len(answer), 1))
            targets.append(Target(name, k, (0.9, 0.2)[k], True, ("best", "worst")[k]))

    def artifact(stage: str, make: Callable[[Workspace], object]) -> Artifact:
        def run(workspace: Workspace) -> Outcome:
            make(workspace)
            return Outcome("made")

        return store.build(Step(Identity(stage, 1, {"chaos": stage}, {}), run))

    base = artifact("policy", lambda workspace: workspace.add_files(sorted(policy.iterdir())))
    split = artifact("split", lambda workspace: workspace.add_table(to_table(Prompt, prompts), "train-1.parquet"))
    drawn = artifact("generate", lambda workspace: workspace.add_table(to_table(Response, responses), "chunk-00000.parquet"))
    wins = artifact("estimate", lambda workspace: workspace.add_table(to_table(Target, targets), "targets.parquet"))
    recipe = load_recipe(
        "tiny",
        ROOT / "deployments" / "recipes",
        ("training.global_batch=8", "training.max_tokens=64", "training.schedule_epochs=3", "training.stop_epochs=3"),
    )
    cpu = load_hardware("cpu", ROOT / "deployments" / "hardware")
    layout = {"processes": 1, "zero_stage": 0, "tokens_per_device": 512, "checkpoint_steps": 2}
    hardware = cpu.model_copy(update={"train": cpu.train.model_copy(update=layout)})
    launcher = InThisProcess()
    step = sppo.train.step(recipe, hardware, 1, base, split.file("train-1.parquet"), drawn, wins, launcher)
    trained = store.build(step)
    # what this attempt began from: where all was trained before, nothing was done again
    begun = trained.manifest.counts["resumed_from_step"] if launcher.called else STEPS
    assert trained.manifest.counts["steps"] == STEPS
    (out / "final.txt").write_text(trained.digest + "\n")
    sys.stdout.write(f"resumed from step {begun}\n")


if __name__ == "__main__":
    main()
