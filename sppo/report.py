"""What a run came to, as plain data: win rates by iteration and judge, lengths, seconds by stage, answers side by side."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sppo.overruling import gates_of
from sppo.runs import IterationIndex, finished_iterations, read_iteration
from sppo.split import held_out
from sppo.stages import STAGES
from sppo.store import Artifact, Store

SHOWN_PROMPTS = 5
TOGETHER = {"generate": "engine", "sample": "engine", "alpaca-answer": "engine", "duel": "duel"}
"""Stages whose artifacts are made several at a time, by what they share: those of one effort have equal seconds."""


@dataclass(frozen=True)
class WinRate:
    """Share of held-out comparisons won, in [0, 1], with a 95 % bootstrap interval over prompts."""

    mean: float
    low: float
    high: float
    prompts: int


@dataclass(frozen=True)
class JudgeReport:
    """One judge's view of pi_t."""

    judge: str
    independent: bool
    """Not the one that training followed."""
    against: tuple[WinRate, ...]
    """pi_t against pi_0 .. pi_(t-1)."""


@dataclass(frozen=True)
class IterationReport:
    """One iteration's numbers."""

    iteration: int
    judges: tuple[JudgeReport, ...]
    mean_tokens: float
    """Of pi_t's held-out answers."""
    cut_share: float
    """Of them, cut at the limit."""
    seconds: dict[str, float]
    """Wall time by stage, of the attempts that committed; an effort shared by several artifacts counts once, where it ran."""
    gates: str = ""
    """`passed`, `failed`, or `overruled` by someone after they had failed; empty for an iteration without."""


@dataclass(frozen=True)
class Answers:
    """One held-out prompt and what each policy answered in the same draw."""

    prompt: str
    draw: int
    """k, the same for all policies."""
    by_policy: tuple[str, ...]
    """pi_0 .. pi_T."""


@dataclass(frozen=True)
class RunReport:
    """A run so far."""

    run: str
    recipe: str
    base_mean_tokens: float
    """Of pi_0's held-out answers."""
    iterations: tuple[IterationReport, ...]
    answers: tuple[Answers, ...]


def assemble(store: Store, run: str) -> RunReport:
    """The numbers of every finished iteration. Raises RunError if the first has not ended."""
    read_iteration(store, run, 1)
    indexes = finished_iterations(store, run)
    efforts: set[object] = set()
    reports = [json.loads(index.opened(store, "evaluate").text("report.json")) for index in indexes]
    iterations = [
        _iteration_report(report, _seconds(store, index, efforts), gates_of(store, index))
        for index, report in zip(indexes, reports, strict=True)
    ]
    return RunReport(
        run=run,
        recipe=indexes[-1].recipe,
        base_mean_tokens=reports[0]["lengths"][0]["mean_tokens"],
        iterations=tuple(iterations),
        answers=tuple(_answers(store, indexes[-1])),
    )


def _iteration_report(report: dict[str, Any], seconds: dict[str, float], gates: str) -> IterationReport:
    judges = tuple(
        JudgeReport(row["judge"], row["independent"], tuple(_win_rate(each["win_rate"]) for each in row["against"]))
        for row in report["judges"]
    )
    newest = report["lengths"][-1]
    return IterationReport(report["iteration"], judges, newest["mean_tokens"], newest["cut_share"], seconds, gates)


def _win_rate(values: dict[str, Any]) -> WinRate:
    return WinRate(values["mean"], values["low"], values["high"], values["n"])


def _seconds(store: Store, index: IterationIndex, efforts: set[object]) -> dict[str, float]:
    """Wall time by stage of what this iteration was the first to use."""
    seconds: dict[str, float] = {}
    for entry in index.artifacts.values():
        manifest = store.open(entry.reference).manifest
        marks: set[object] = {entry.reference}
        if manifest.stage in TOGETHER:
            marks.add((TOGETHER[manifest.stage], manifest.seconds))
        if not marks & efforts:
            seconds[manifest.stage] = seconds.get(manifest.stage, 0.0) + manifest.seconds
        efforts |= marks
    return seconds


def _answers(store: Store, index: IterationIndex) -> list[Answers]:
    """The first prompts, and of each the first draw that pi_T answers otherwise than pi_0: equal seeds often agree."""
    prompts = {row["prompt_id"]: row["messages"] for row in held_out(index.opened(store, "split")).table().to_pylist()}
    policies = [_texts(sample) for sample in index.samples(store)]
    shown = list(dict.fromkeys(prompt_id for prompt_id, _ in policies[0]))[:SHOWN_PROMPTS]
    answers = []
    for prompt_id in shown:
        draws = [draw for draw in policies[0] if draw[0] == prompt_id]
        changed = [draw for draw in draws if policies[-1][draw] != policies[0][draw]]
        draw = [*changed, *draws][0]
        answers.append(Answers(as_text(prompts[prompt_id]), draw[1], tuple(texts[draw] for texts in policies)))
    return answers


def _texts(sample: Artifact) -> dict[tuple[str, int], str]:
    rows = sample.tables().select(["prompt_id", "k", "text"]).to_pylist()
    return {(row["prompt_id"], row["k"]): row["text"] for row in rows}


def as_text(messages: Sequence[dict[str, str]]) -> str:
    """A prompt for people: its only turn, or all turns with their roles."""
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n".join(f"{message['role']}: {message['content']}" for message in messages)


def table_head(report: RunReport) -> list[str]:
    """Column names of the table of iterations; independent judges have a column each."""
    main, *others = report.iterations[-1].judges
    independent = [f"{judge.judge}, against base" for judge in others]
    gates = ["gates"] * any(each.gates for each in report.iterations)
    return ["iteration", f"{main.judge}, against base", "against previous", *independent, "mean tokens", *gates]


def table_rows(report: RunReport) -> list[list[str]]:
    """One row a policy, the base policy first; win rates with their 95 % intervals."""
    others = len(report.iterations[-1].judges) - 1
    gated = any(each.gates for each in report.iterations)
    rows = [["0 (base)", "", "", *[""] * others, f"{report.base_mean_tokens:.1f}", *[""] * gated]]
    for each in report.iterations:
        main, *independent = each.judges
        rates = [_with_interval(main.against[0]), f"{main.against[-1].mean:.3f}"]
        rates += [_with_interval(judge.against[0]) for judge in independent]
        rows.append([str(each.iteration), *rates, f"{each.mean_tokens:.1f}", *[each.gates] * gated])
    return rows


def seconds_head(report: RunReport) -> list[str]:
    """Column names of the table of seconds: the iterations."""
    return ["seconds", *(f"iteration {each.iteration}" for each in report.iterations)]


def seconds_rows(report: RunReport) -> list[list[str]]:
    """One row a stage, in the order in which they run; an empty cell is work that an earlier effort has done."""
    return [
        [stage, *(f"{each.seconds[stage]:.1f}" if stage in each.seconds else "" for each in report.iterations)]
        for stage in STAGES
        if any(stage in each.seconds for each in report.iterations)
    ]


def as_markdown(report: RunReport) -> str:
    """Both tables in Markdown: numbers only, no model text."""
    return _markdown(table_head(report), table_rows(report)) + "\n" + _markdown(seconds_head(report), seconds_rows(report))


def _markdown(head: list[str], rows: list[list[str]]) -> str:
    return "".join(f"| {' | '.join(cells)} |\n" for cells in [head, ["---"] * len(head), *rows])


def _with_interval(rate: WinRate) -> str:
    return f"{rate.mean:.3f} [{rate.low:.3f}, {rate.high:.3f}]"
