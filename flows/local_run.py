"""A flow in this process: checked before Prefect starts, watched on the terminal, its chatter in a log file."""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from rich.text import Text

from flows.interruption import interruptible
from flows.preparation import THE_RUNS_OWN, opened_store, prepare, prepare_evaluation
from flows.presentation import next_commands, present, write_plot_to_store
from flows.server import prefect_server
from flows.terminal import Screen, StageLines, watched
from sppo.errors import RunError
from sppo.runs import Setup, find_last_start, read_recipe
from sppo.store import Store

log = logging.getLogger(__name__)


def run_here(
    recipe: str,
    hardware: str,
    run: str,
    store: str,
    iterations: int | None,
    overrides: Sequence[str] = (),
    start: Literal["base", "published"] = "base",
) -> None:
    """The flow sppo-run, then its table, plot, answers and the next commands."""
    started = time.monotonic()
    setup = prepare(recipe, hardware, run, store, iterations, overrides, start)
    with Screen(log_path(setup.store, run)) as screen:
        last = iterations or setup.recipe.iterations
        _announce(screen, setup, f"{last} iteration{'s' * (last > 1)} of recipe {setup.recipe.name}")
        with interruptible(screen), watched(screen.console) as lines, _prefect() as start_s:
            from flows.run import sppo_run

            report = sppo_run(recipe, hardware, run, store, iterations, start, tuple(overrides))
        plot = write_plot_to_store(report, setup.store)
        commands = next_commands(report, setup.store, recipe or setup.recipe.name, hardware, overrides)
        # a recipe's name alone does not say with which values the run was started
        present(screen.console, report, plot, commands if recipe else commands[:2])
        _say_goodbye(screen, lines, time.monotonic() - started, start_s)


def resume_here(run: str, store: str, hardware: str | None, iterations: int | None) -> None:
    """The flow sppo-run again, as it was last started but for what is given.

    Raises RunError if no such run was started, nobody knows on which hardware, or someone is at it."""
    opened = opened_store(store)
    read_recipe(opened, run)
    last = find_last_start(opened, run)
    known = hardware or (last.hardware if last else None)
    if known is None:
        raise RunError(f"run {run} does not say on which hardware it was started; give one, such as --hardware cpu")
    from flows.resumption import check_nobody_is_at_it

    check_nobody_is_at_it(run)
    run_here(THE_RUNS_OWN, known, run, store, iterations or (last.iterations if last else None))


def evaluate_here(run: str, hardware: str, store: str, iteration: int | None, overrides: Sequence[str]) -> None:
    """The flow sppo-evaluation; its stage lines hold the win rates."""
    started = time.monotonic()
    setup, wanted = prepare_evaluation(run, hardware, store, iteration, overrides)
    with Screen(log_path(setup.store, run)) as screen:
        _announce(screen, setup, f"evaluation of iteration {', '.join(str(number) for number in wanted)}")
        with interruptible(screen), watched(screen.console) as lines, _prefect() as start_s:
            from flows.evaluation import sppo_evaluation

            reports = sppo_evaluation(run, hardware, store, iteration, tuple(overrides))
        for report in reports:
            for judge in report["judges"]:
                rate = judge["against"][0]["win_rate"]
                line = f"iteration {report['iteration']}, {judge['judge']}: {rate['mean']:.3f} against the base policy"
                screen.console.print(Text(f"{line} [{rate['low']:.3f}, {rate['high']:.3f}], {rate['n']} prompts"))
        _say_goodbye(screen, lines, time.monotonic() - started, start_s)


def log_path(store: Store, run: str) -> Path:
    """A new log file for this attempt."""
    return store.scratch / "logs" / f"{run}-{time.strftime('%Y%m%d-%H%M%S')}.log"


def _announce(screen: Screen, setup: Setup, what: str) -> None:
    said = f"run {setup.run}: {what} on hardware {setup.hardware.name}, store {setup.store.url}"
    screen.console.print(Text(said, "bold"), soft_wrap=True)


@contextmanager
def _prefect() -> Iterator[float]:
    """Prefect imported and its server reached, both of which would else happen on first use; seconds that took."""
    started = time.monotonic()
    with prefect_server() as server:
        from prefect.client.orchestration import get_client

        with get_client(sync_client=True) as client:
            client.hello()
        seconds = time.monotonic() - started
        log.info("prefect: %s is ready, %.1f s", server, seconds)
        yield seconds


def _say_goodbye(screen: Screen, lines: StageLines, seconds: float, prefect_s: float) -> None:
    adopted = len(lines.committed_already)
    done = f"{seconds:.0f} s, of which {prefect_s:.0f} s Prefect's own start"
    if adopted:
        done += f"; {adopted} artifacts were committed before and not made again"
    screen.console.print(Text.assemble(("took     ", "bold"), done), soft_wrap=True)
    screen.console.print(Text.assemble(("log      ", "bold"), str(screen.log_file)), soft_wrap=True)
