"""Everything that can be wrong before the first task: recipe, hardware, run name, iteration, store, devices."""

import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import sppo.resolve
import sppo.runs
from sppo.benchmark import check_benchmarks
from sppo.difference import recipe_differences
from sppo.errors import HardwareError, RunError, StoreError
from sppo.fingerprint import digest_of
from sppo.hardware import Hardware, load_hardware
from sppo.launch import HERE, Launcher
from sppo.publication import from_published, with_policy
from sppo.recipe import FolderModel, HubModel, PolicySource, Recipe, Served, StoredModel, load_recipe, overridden
from sppo.runs import Setup, check_run_name, find_recipe, finished_iterations, read_iteration, read_recipe
from sppo.store import Store
from tasks.reporting import WatchedStore

DEPLOYMENTS = Path(os.environ.get("SPPO_DEPLOYMENTS") or Path(__file__).resolve().parents[1] / "deployments")
"""Recipes and hardware files: the project's, or a folder of one's own with the same two below it."""
RECIPES = DEPLOYMENTS / "recipes"
HARDWARE = DEPLOYMENTS / "hardware"
LOGGERS = ("sppo", "flows", "tasks")
THE_RUNS_OWN = ""
"""In place of a recipe's name: the recipe that the run was started with."""

log = logging.getLogger(__name__)


def prepare(
    recipe: str,
    hardware: str,
    run: str,
    store: str,
    iteration: int | None = None,
    overrides: Sequence[str] = (),
    start: Literal["base", "published"] = "base",
) -> Setup:
    """The setup of a run, started now or continued. `iteration` is the last one wanted; None is the recipe's last.

    recipe: a name, a path, or THE_RUNS_OWN. With `start` published, pi_0 is the policy last published under the recipe's name
    as the run starts. Raises SppoError for the first thing that is wrong, before any model loads."""
    tell_stages()
    check_run_name(run)
    opened = opened_store(store)
    asked = load_recipe(recipe, RECIPES, tuple(overrides)) if recipe else _the_runs_own(opened, run, overrides)
    if iteration is not None:
        asked.check_iteration(iteration)
    machine = checked_hardware(hardware)
    opened.check_writable()
    if start == "published":
        asked = _from_published(opened, run, asked)
    check_benchmarks(asked)
    resolved = sppo.runs.start(opened, run, asked, lambda open_recipe: sppo.resolve.resolve(open_recipe, opened))
    return Setup(run=run, recipe=resolved, hardware=machine, store=opened, launch=launcher(machine, run, store))


def _the_runs_own(store: Store, run: str, overrides: Sequence[str]) -> Recipe:
    if overrides:
        raise RunError(f"run {run} goes on with its own recipe, so {', '.join(overrides)} cannot change it; branch it instead")
    return read_recipe(store, run)


def _from_published(store: Store, run: str, recipe: Recipe) -> Recipe:
    started = find_recipe(store, run)
    if started is not None:  # a run that is continued keeps its pi_0, whatever was published since
        return with_policy(recipe, started.policy.source)
    published = from_published(store, recipe)
    if published is None:
        log.warning("run %s: no policy is published as %s yet, so it starts from the recipe's own", run, recipe.name)
    return published or recipe


@dataclass(frozen=True)
class Comparison:
    """Policies that are to be evaluated: each is compared with all before it."""

    run: str | None
    """Whose policies they are; None for models from elsewhere."""
    names: list[str]
    """Of pi_0, and of each policy after it."""
    setups: list[Setup]
    """One for each policy: in a run always the same, else each with its own pi_0."""
    wanted: list[int]
    """Numbers of the policies whose reports are wanted."""


def prepare_evaluation(
    hardware: str,
    store: str,
    run: str | None = None,
    iteration: int | None = None,
    recipe: str | None = None,
    models: Sequence[str] = (),
    overrides: Sequence[str] = (),
) -> Comparison:
    """What is to be evaluated: a run's finished iterations, or models with a recipe that says how.

    Raises RunError for both or neither, for overrides that would change a run itself, or an iteration that has not ended; the
    first error of anything else that is wrong, before any model loads."""
    tell_stages()
    opened = opened_store(store)
    if run and not models and recipe is None:
        return _of_run(opened, run, hardware, store, iteration, overrides)
    if run or recipe is None or iteration is not None:
        given = {"run": run, "iteration": iteration, "recipe": recipe, "models": ", ".join(models)}
        raise RunError(
            f"cannot evaluate {', '.join(f'{name} {value}' for name, value in given.items() if value) or 'nothing'}; "
            "expected a run, with or without an iteration, or a recipe and models"
        )
    asked = load_recipe(recipe, RECIPES, tuple(overrides))
    if not models and not all_served(asked):
        raise RunError(
            f"recipe {asked.name} and no model to evaluate; expected one or more, such as --model ./folder or --model "
            "owner/name, or served models alone as backends in evaluation.harness"
        )
    check_benchmarks(asked, of_run=bool(models))
    machine = checked_hardware(hardware)
    opened.check_writable()
    recipes = [asked, *(with_policy(asked, policy_source(model)) for model in models)]
    resolved = [sppo.resolve.resolve(each, opened) for each in recipes]
    name = f"evaluation-{digest_of([each.model_dump(mode='json') for each in resolved])[:6]}"
    launch = launcher(machine, name, store)
    setups = [Setup(run=name, recipe=each, hardware=machine, store=opened, launch=launch) for each in resolved]
    return Comparison(None, ["the recipe's policy", *models], setups, list(range(1, len(setups))))


def all_served(recipe: Recipe) -> bool:
    """Whether all that the recipe asks of lm-evaluation-harness is asked of served models, which need no policy."""
    entries = recipe.evaluation.harness
    return bool(entries) and all(isinstance(entry.backend, Served) for entry in entries)


def policy_source(model: str) -> PolicySource:
    """A model by name: a folder, `owner/name` of the hub with or without @revision, or `train/..` or `policy/..` of the store.

    Raises RunError for what is none of these."""
    if os.path.isdir(os.path.expanduser(model)):  # any text: pathlib raises for one too long
        return FolderModel(kind="folder", path=str(Path(os.path.expanduser(model)).resolve()))
    if re.fullmatch(r"(policy|train)/[0-9a-f]{64}", model):
        return StoredModel(kind="stored", artifact=model)
    name, _, revision = model.partition("@")
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", name):
        return HubModel(kind="hub", model=name, revision=revision or "main")
    raise RunError(
        f"model {model!r}: no such folder on this machine, and no name of the hub; expected a folder with config.json and "
        "safetensors, owner/name or owner/name@revision, or an artifact of the store such as train/ and its 64 digits"
    )


def _of_run(
    opened: WatchedStore, run: str, hardware: str, store: str, iteration: int | None, overrides: Sequence[str]
) -> Comparison:
    check_run_name(run)
    started = read_recipe(opened, run)
    changed = overridden(started, tuple(overrides))
    check_benchmarks(changed)
    other = [path for path in recipe_differences(started, changed) if not path.startswith("evaluation.")]
    if other:
        raise RunError(f"overriding {', '.join(other)} would change run {run} itself; expected keys under evaluation")
    if iteration is not None:
        started.check_iteration(iteration)
    last = read_iteration(opened, run, iteration or max(1, len(finished_iterations(opened, run)))).iteration
    opened.check_writable()
    machine = checked_hardware(hardware)
    setup = Setup(run=run, recipe=changed, hardware=machine, store=opened, launch=launcher(machine, run, store))
    names = ["base policy", *(f"iteration {number}" for number in range(1, last + 1))]
    return Comparison(run, names, [setup] * (last + 1), [last] if iteration else list(range(1, last + 1)))


def tell_stages() -> None:
    """Let our lines for each stage through: a Prefect worker hands on what PREFECT_LOGGING_EXTRA_LOGGERS names, from the
    level that the logger itself has."""
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.INFO)


def opened_store(url: str) -> WatchedStore:
    """The store of a run: a URL, or `block/NAME` of a Prefect block. Raises StoreError for one that is empty, as an unset
    variable leaves it."""
    if not url.strip():
        raise StoreError("the store is empty; expected a folder, file:// or s3://bucket/prefix, such as --store ./store")
    if url.startswith("block/"):
        from flows.blocks import unlocked

        url = unlocked(url)
    return WatchedStore(url)


def launcher(hardware: Hardware, run: str, store: str) -> Launcher:
    """Who starts the heavy stages' processes: this process, or workers of the hardware file's pool."""
    if hardware.pool is None:
        return HERE
    from flows.pool import PoolLauncher

    return PoolLauncher(hardware.pool, run, store)


def checked_hardware(name: str) -> Hardware:
    """A hardware file that fits this machine, where no pool's workers do the work. Raises HardwareError."""
    hardware = load_hardware(name, HARDWARE)
    if hardware.device == "cuda" and hardware.pool is None:
        import torch

        wanted = max(hardware.generate.processes * hardware.generate.tensor_parallel, hardware.train.processes)
        if torch.cuda.device_count() < wanted:
            raise HardwareError(
                f"hardware {hardware.name} needs {wanted} CUDA devices and this machine has {torch.cuda.device_count()}; "
                "choose another hardware file, such as cpu"
            )
    return hardware
