"""Everything that can be wrong before the first task: recipe, hardware, run name, iteration, store, devices."""

from collections.abc import Sequence
from pathlib import Path

import sppo.resolve
from sppo.errors import HardwareError, RunError
from sppo.hardware import Hardware, load_hardware
from sppo.recipe import Recipe, load_recipe
from sppo.runs import Setup, check_run_name, read_recipe, recipe_differences, start
from tasks.reporting import WatchedStore

DEPLOYMENTS = Path(__file__).resolve().parents[1] / "deployments"
RECIPES = DEPLOYMENTS / "recipes"
HARDWARE = DEPLOYMENTS / "hardware"


def prepare(
    recipe: str, hardware: str, run: str, store: str, iteration: int | None = None, overrides: Sequence[str] = ()
) -> Setup:
    """The setup of a run, started now or continued. `iteration` is the last one wanted; None is the recipe's last.

    Raises SppoError for the first thing that is wrong, before any model loads."""
    check_run_name(run)
    asked = load_recipe(recipe, RECIPES, tuple(overrides))
    if iteration is not None:
        asked.check_iteration(iteration)
    machine = checked_hardware(hardware, asked)
    opened = WatchedStore(store)
    opened.check_writable()
    return Setup(run, start(opened, run, asked, sppo.resolve.resolve), machine, opened)


def prepare_evaluation(run: str, hardware: str, store: str, overrides: Sequence[str] = ()) -> Setup:
    """The setup of a run that was started before, with other values under `evaluation` if asked for.

    Raises RunError if the overrides change anything else."""
    check_run_name(run)
    opened = WatchedStore(store)
    started = read_recipe(opened, run)
    changed = overridden(started, overrides)
    other = [path for path in recipe_differences(started, changed) if not path.startswith("evaluation.")]
    if other:
        raise RunError(f"overriding {', '.join(other)} would change the run {run} itself; expected keys under evaluation")
    opened.check_writable()
    return Setup(run, changed, checked_hardware(hardware, started), opened)


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
