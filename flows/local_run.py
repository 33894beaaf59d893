"""A flow in this process: checked before Prefect starts, watched on the terminal, its chatter in a log file."""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from rich.text import Text

from flows.interruption import interruptible
from flows.preparation import THE_RUNS_OWN, opened_store, prepare, prepare_evaluation
from flows.presentation import next_commands, present, write_plot_to_store
from flows.server import prefect_server
from flows.terminal import Screen, StageLines, watched
from sppo.errors import GateError, RunError
from sppo.last_start import find_last_start
from sppo.report import assemble
from sppo.runs import Setup, read_recipe
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
    no_gate: bool = False,
) -> None:
    """The flow sppo-run, then its table, plot, answers and the next commands.

    Raises GateError after all that if an iteration failed its gates."""
    started = time.monotonic()
    setup = prepare(recipe, hardware, run, store, iterations, overrides, start)
    with Screen(log_path(setup.store, run)) as screen:
        last = iterations or setup.recipe.iterations
        _announce(screen, setup, f"{last} iteration{'s' * (last > 1)} of recipe {setup.recipe.name}")
        with interruptible(screen), watched(screen.console) as lines, _prefect() as start_s:
            from flows.run import sppo_run

            stopped = None
            try:
                report = sppo_run(recipe, hardware, run, store, iterations, start, tuple(overrides), no_gate)
            except GateError as error:
                report, stopped = assemble(setup.store, run), error
        plot = write_plot_to_store(report, setup.store)
        commands = next_commands(report, setup.store, recipe or setup.recipe.name, hardware, overrides)
        # a recipe's name alone does not say with which values the run was started
        present(screen.console, report, plot, commands if recipe else commands[:2])
        _say_goodbye(screen, lines, time.monotonic() - started, start_s)
        if stopped is not None:
            raise stopped


def resume_here(run: str, store: str, hardware: str | None, iterations: int | None, no_gate: bool = False) -> None:
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
    run_here(THE_RUNS_OWN, known, run, store, iterations or (last.iterations if last else None), no_gate=no_gate)


def evaluate_here(
    hardware: str,
    store: str,
    run: str | None,
    iteration: int | None,
    recipe: str | None,
    models: Sequence[str],
    overrides: Sequence[str],
) -> None:
    """The flow sppo-evaluation; then every policy's numbers."""
    started = time.monotonic()
    compared = prepare_evaluation(hardware, store, run, iteration, recipe, models, overrides)
    setup = compared.setups[0]
    with Screen(log_path(setup.store, setup.run)) as screen:
        _announce(screen, setup, f"evaluation of {', '.join(compared.names[number] for number in compared.wanted)}")
        with interruptible(screen), watched(screen.console) as lines, _prefect() as start_s:
            from flows.evaluation import sppo_evaluation

            reports = sppo_evaluation(hardware, store, run, iteration, recipe, tuple(models), tuple(overrides))
        for report in reports:
            for line in evaluation_lines(report, compared.names):
                screen.console.print(Text(line), soft_wrap=True)
        _say_goodbye(screen, lines, time.monotonic() - started, start_s)


def evaluation_lines(report: Mapping[str, Any], names: Sequence[str]) -> Iterator[str]:
    """A policy's win rates against each before it, by judge; and where all of its numbers lie."""
    for judge in report["judges"]:
        for other in judge["against"]:
            rate = other["win_rate"]
            line = f"{report['name']}, {judge['judge']}: {rate['mean']:.3f} against {names[other['iteration']]}"
            yield f"{line} [{rate['low']:.3f}, {rate['high']:.3f}], {rate['n']} prompts"
    for score in report["scores"]:
        interval = f" [{score['low']:.2f}, {score['high']:.2f}], n = {score['n']}" if "n" in score else ""
        yield f"{report['name']}, {score['group']}, {score['name']}: {score['value']:.2f}{interval} {score['unit']}".rstrip()
    yield f"{report['name']}: {', '.join(report['artifacts'])}"


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
    with prefect_server() as told:
        from flows import children

        with children.server() as client:
            client.hello()
        seconds = time.monotonic() - started
        log.info("prefect: %s is ready, %.1f s", told, seconds)
        yield seconds


def _say_goodbye(screen: Screen, lines: StageLines, seconds: float, prefect_s: float) -> None:
    adopted = len(lines.committed_already)
    done = f"{seconds:.0f} s, of which {prefect_s:.0f} s Prefect's own start"
    if adopted:
        done += f"; {adopted} artifacts were committed before and not made again"
    screen.console.print(Text.assemble(("took     ", "bold"), done), soft_wrap=True)
    screen.console.print(Text.assemble(("log      ", "bold"), str(screen.log_file)), soft_wrap=True)
