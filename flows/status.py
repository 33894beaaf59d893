"""`sppo status`: each stage of a run in words, what a resume would do, and what it has cost so far."""

from collections.abc import Iterable, Sequence

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from flows.preparation import HARDWARE
from flows.survey import IterationState, StageState, survey
from sppo.errors import HardwareError
from sppo.hardware import Hardware, load_hardware
from sppo.last_start import LastStart, find_last_start
from sppo.launch.work import BEAT_S, WorkRecord, silence
from sppo.recipe import Recipe
from sppo.report import TOGETHER
from sppo.runs import check_run_name, find_branch, finished_iterations, read_recipe
from sppo.store import Store
from sppo.train.run import layout as train_layout

SHOWN_DIGITS = 12
SILENT_S = 12 * BEAT_S
"""A record that was not replaced for so long is called silent."""
CHUNKED = {
    "generate": "draws {left} of {total} chunks of responses",
    "sample": "draws {left} of {total} chunks of held-out answers",
    "rank": "ranks {left} of {total} chunks",
    "duel": "judges {left} of {total} chunks of a duel",
    "alpaca-answer": "answers {left} of {total} chunks of AlpacaEval's instructions",
    "alpaca-judge": "judges {left} of {total} chunks of AlpacaEval's answers",
    "score": "scores {left} of {total} chunks of held-out answers",
}
VERBS = {
    "policy": "makes the base policy",
    "judge": "makes the judge",
    "split": "splits the prompts",
    "generate": "draws responses",
    "rank": "ranks",
    "estimate": "estimates",
    "train": "trains",
    "export": "rounds the policy for inference",
    "sample": "draws held-out answers",
    "duel": "judges duels",
    "evaluate": "evaluates",
    "score": "scores held-out answers by earlier policies",
    "check": "checks what changed",
    "alpaca-reference": "reads AlpacaEval",
    "alpaca-prompts": "renders its instructions",
    "alpaca-answer": "answers them",
    "alpaca-judge": "judges the answers",
    "alpaca-eval": "fits the length-controlled win rate",
    "harness": "runs lm-evaluation-harness",
    "benchmark": "gathers the scores",
}


def show_status(console: Console, store: Store, run: str) -> None:
    """Each iteration begun, stage by stage; then the run as a whole. Raises RunError if no such run was started."""
    recipe = read_recipe(store, check_run_name(run))
    last = find_last_start(store, run)
    hardware = _hardware(last)
    layout = None if hardware is None else train_layout(hardware.train)
    machine = hardware or load_hardware("cpu", HARDWARE)
    states = survey(store.url, recipe, machine, finished_iterations(store, run), layout)
    shown: set[str] = set()
    for state in states:
        console.print(state_table(recipe, state, shown))
    finished = sum(state.finished for state in states)
    console.print(Text(f"run {run}, recipe {recipe.name}: {finished} of {recipe.iterations} iterations finished"))
    branch = find_branch(store, run)
    if branch is not None:
        shared = "iteration 1 is that" if branch.at == 1 else f"iterations 1 to {branch.at} are those"
        console.print(_line("branched", f"{shared} of run {branch.run}"))
    if last is not None:
        console.print(_line("started", f"{last.at}, by {last.by}, on hardware {last.hardware}"))
    wanted = last.iterations if last is not None and last.iterations else recipe.iterations
    console.print(_line("resume", resume_words(states, wanted)))
    console.print(_line("spent", spent_words(states, _price(last))))


def state_table(recipe: Recipe, state: IterationState, shown: set[str]) -> RenderableType:
    """An iteration's stages, less those that were shown with an earlier one."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("stage", "fingerprint", "state", "seconds"):
        table.add_column(column)
    for stage in state.stages:
        if stage.fingerprint in shown:
            continue
        shown.add(stage.fingerprint)
        seconds = f"{stage.seconds:.1f}" if stage.committed else ""
        table.add_row(stage.stage, stage.fingerprint[:SHOWN_DIGITS], stage_words(stage), seconds)
    if state.problem:
        table.add_row("", "", Text(f"cannot be looked at from here: {state.problem}", "yellow"), "")
    return Group(Text(f"iteration {state.iteration} of {recipe.iterations}", "bold"), table)


def stage_words(stage: StageState) -> Text:
    """What became of a stage so far: one line a machine that is or was at it."""
    if stage.committed:
        return Text("done", "green")
    done = ""
    if stage.done:
        done = f"{stage.done} of {stage.total} {_unit(stage)} committed" if stage.total else f"{stage.done} parts committed"
    lines = [_work_words(record) for record in stage.work]
    if done or not lines:
        lines = [Text(done or "not begun", "yellow"), *lines]
    return Text("\n").join([*lines, *([Text(stage.why, "yellow")] if stage.why else [])])


def _unit(stage: StageState) -> str:
    return "steps" if stage.stage == "train" else "chunks"


def _work_words(record: WorkRecord) -> Text:
    where = f"{record.host} ({', '.join(record.devices) or 'CPU'})"
    share = f", {record.number} of {record.of}" if record.of > 1 else ""
    if record.state == "failed":
        why = "" if record.failure is None else f": {record.failure.error}: {record.failure.message}".partition("\n")[0]
        return Text(f"failed on {where}{share}{why}", "red")
    far = ""
    if record.progress is not None and record.progress.unit:
        told = record.progress
        far = f", {told.done} of {told.total} {told.unit}" + (f", {told.note}" if told.note else "")
    if record.state == "done":
        return Text(f"done on {where}{share}, waiting for the others", "green")
    quiet = silence(record)
    if quiet > SILENT_S:
        return Text(f"silent for {duration(quiet)} on {where}{share}, process {record.process}{far}", "red")
    return Text(f"running on {where}{share} since {record.begun[11:19]} UTC{far}", "cyan")


def duration(seconds: float) -> str:
    """Two figures at most, such as `40 s`, `5 min`, `2 h 10 min`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def resume_words(states: Sequence[IterationState], wanted: int) -> str:
    """What continuing to iteration `wanted` would do."""
    unfinished = [state for state in states if not state.finished and state.iteration <= wanted]
    if not unfinished:
        return f"nothing to do: {wanted} of {wanted} iterations asked for are finished"
    first = unfinished[0]
    parts = [" and ".join(dict.fromkeys(_missing_words(stage) for stage in first.missing)), ", ".join(_after(first))]
    later = [str(number) for number in range(first.iteration + 1, wanted + 1)]
    if later:
        parts.append(f"iteration{'s' * (len(later) > 1)} {' and '.join(later)}")
    return f"iteration {first.iteration}: {', then '.join(part for part in parts if part)}"


def _after(state: IterationState) -> list[str]:
    """In words, the stages that follow those that are missing and have no fingerprint yet."""
    trained = any(stage.stage == "train" for stage in state.stages)
    missing = ["generate" if stage.stage == "sample" and not trained else stage.stage for stage in state.missing]
    first = min((state.order.index(stage) for stage in missing), default=-1)
    return [VERBS[stage] for stage in state.order[first + 1 :]]


def _missing_words(stage: StageState) -> str:
    if stage.stage == "train" and stage.done:
        return f"trains on from step {stage.done} of {stage.total}"
    if stage.stage in CHUNKED and stage.total:
        return CHUNKED[stage.stage].format(left=stage.total - stage.done, total=stage.total)
    return VERBS[stage.stage]


def spent_words(states: Iterable[IterationState], price: float | None) -> str:
    """Seconds of the attempts that committed, of each effort once; price: of a device for an hour."""
    efforts = {
        (TOGETHER[stage.stage], stage.seconds) if stage.stage in TOGETHER else stage.fingerprint: stage
        for state in states
        for stage in state.stages
    }
    seconds = sum(stage.seconds for stage in efforts.values())
    device_seconds = sum(stage.device_seconds for stage in efforts.values())
    said = f"{duration(seconds)} of work"
    if device_seconds:
        said += f", {device_seconds:.0f} device-seconds"
        if price is not None:
            said += f", {device_seconds / 3600 * price:.2f} at {price:g} a device hour"
    return said


def _price(last: LastStart | None) -> float | None:
    hardware = _hardware(last)
    return None if hardware is None else hardware.price_per_device_hour


def _hardware(last: LastStart | None) -> Hardware | None:
    try:
        return None if last is None else load_hardware(last.hardware, HARDWARE)
    except HardwareError:  # a file of the machine that started the run: only its price is missed
        return None


def _line(name: str, words: str) -> Text:
    return Text.assemble((f"{name:<9}", "bold"), words)
