"""Everything that can be wrong before the first task: recipe, hardware, run name, iteration, store, devices."""

import logging
from collections.abc import Sequence
from pathlib import Path

import sppo.resolve
from sppo.errors import HardwareError, RunError, StoreError
from sppo.hardware import Hardware, load_hardware
from sppo.recipe import Recipe, load_recipe, overridden
from sppo.runs import (
    Setup,
    check_run_name,
    finished_iterations,
    read_iteration,
    read_recipe,
    recipe_differences,
    start,
)
from tasks.reporting import WatchedStore

DEPLOYMENTS = Path(__file__).resolve().parents[1] / "deployments"
RECIPES = DEPLOYMENTS / "recipes"
HARDWARE = DEPLOYMENTS / "hardware"
LOGGERS = ("sppo", "flows", "tasks")


def prepare(
    recipe: str, hardware: str, run: str, store: str, iteration: int | None = None, overrides: Sequence[str] = ()
) -> Setup:
    """The setup of a run, started now or continued. `iteration` is the last one wanted; None is the recipe's last.

    Raises SppoError for the first thing that is wrong, before any model loads."""
    tell_stages()
    check_run_name(run)
    asked = load_recipe(recipe, RECIPES, tuple(overrides))
    if iteration is not None:
        asked.check_iteration(iteration)
    machine = checked_hardware(hardware, asked)
    opened = opened_store(store)
    opened.check_writable()
    return Setup(run, start(opened, run, asked, sppo.resolve.resolve), machine, opened)


def prepare_evaluation(
    run: str, hardware: str, store: str, iteration: int | None = None, overrides: Sequence[str] = ()
) -> tuple[Setup, list[int]]:
    """The setup of a run that was started before, with other values under `evaluation` if asked for; and which iterations.

    Raises RunError if the overrides change anything else, or if the iteration has not ended."""
    tell_stages()
    check_run_name(run)
    opened = opened_store(store)
    started = read_recipe(opened, run)
    changed = overridden(started, tuple(overrides))
    other = [path for path in recipe_differences(started, changed) if not path.startswith("evaluation.")]
    if other:
        raise RunError(f"overriding {', '.join(other)} would change run {run} itself; expected keys under evaluation")
    if iteration is not None:
        started.check_iteration(iteration)
    last = read_iteration(opened, run, iteration or max(1, len(finished_iterations(opened, run)))).iteration
    opened.check_writable()
    setup = Setup(run, changed, checked_hardware(hardware, started), opened)
    return setup, [last] if iteration else list(range(1, last + 1))


def tell_stages() -> None:
    """Let our lines for each stage through: a Prefect worker hands on what PREFECT_LOGGING_EXTRA_LOGGERS names, from the
    level that the logger itself has."""
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.INFO)


def opened_store(url: str) -> WatchedStore:
    """The store of a run. Raises StoreError for a URL that is empty, as an unset variable leaves it."""
    if not url.strip():
        raise StoreError("the store is empty; expected a folder, file:// or s3://bucket/prefix, such as --store ./store")
    return WatchedStore(url)


def checked_hardware(name: str, recipe: Recipe) -> Hardware:
    """A hardware file that fits the recipe and this machine. Raises HardwareError."""
    hardware = load_hardware(name, HARDWARE)
    hardware.accumulation_steps(recipe.training.global_batch)
    if hardware.device == "cuda":
        import torch

        wanted = max(hardware.generate.processes * hardware.generate.tensor_parallel, hardware.train.processes)
        if torch.cuda.device_count() < wanted:
            raise HardwareError(
                f"hardware {hardware.name} needs {wanted} CUDA devices and this machine has {torch.cuda.device_count()}; "
                "choose another hardware file, such as cpu"
            )
    return hardware
