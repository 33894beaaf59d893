"""Artifacts and iterations as Markdown for people: numbers, charts, where the bytes lie, and answers side by side."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from sppo import chart, preferences
from sppo.check import read_verdict
from sppo.check_tables import GATE_HEAD, check_head, check_rows, gate_rows
from sppo.checks import FILE as CHECKS
from sppo.checks import CheckReport
from sppo.launch import WorkRecord
from sppo.markdown import escaped, image, table
from sppo.report import RunReport, assemble, seconds_head, seconds_rows, table_head, table_rows
from sppo.runs import IterationIndex
from sppo.store import Artifact, FileEntry, Store
from sppo.train.checkpoints import METRICS

SHOWN_FILES = 12
SHOWN_ANSWERS = 3
LETTERS = 600
"""Of a prompt or an answer that are shown."""


def artifact_markdown(artifact: Artifact, store_url: str, work: Sequence[WorkRecord]) -> str:
    """One artifact that was made now: what was counted and measured, how long and where, its chart, its files and logs.

    work: of the machines that made it; none for a stage that has no workers."""
    manifest = artifact.manifest
    rows = [(name, f"{value:,}") for name, value in manifest.counts.items()]
    rows += [(name, f"{value:,.6g}") for name, value in manifest.metrics.items()]
    rows += [("seconds", f"{manifest.seconds:.1f}"), *[("made by", machine) for machine in machines(work)]]
    rows += [("code version", manifest.code_version), ("created", manifest.created)]
    rows += [(f"from {name}", short_name(source)) for name, source in manifest.lineage.items()]
    drawn = chart_of(artifact)
    parts = [
        f"### {artifact.name}\n",
        *([] if drawn is None else [image(drawn, f"chart of {artifact.name}")]),
        *([check_tables(artifact)] if manifest.stage == "check" else []),
        table(["", ""], [[_said(name), escaped(value, 200)] for name, value in rows]),
        f"In the store, below {escaped(f'{store_url}/{artifact.reference}', 1000)}:\n",
        table(["file", "bytes", "key"], _file_rows(artifact, manifest.files) + _file_rows(artifact, manifest.logs, "log ")),
    ]
    return "\n".join(parts)


def machines(work: Sequence[WorkRecord]) -> list[str]:
    """Each machine at work and its devices, such as `gpu-1: 0, 1`."""
    return [f"{record.host}: {', '.join(record.devices) or 'CPU'}" for record in work]


def _said(name: str) -> str:
    return escaped(name.replace("_", " "), 100)


def short_name(source: str) -> str:
    """`stage/` and 8 digits of a reference; a file of it after a #."""
    stage, slash, rest = source.partition("/")
    _, mark, file = rest.partition("#")
    return f"{stage}/{rest[:8]}{mark}{file}" if slash else source


def _file_rows(artifact: Artifact, entries: Sequence[FileEntry], kind: str = "") -> list[list[str]]:
    folder = f"{artifact.reference}/"
    rows = [
        [
            escaped(kind + entry.name, 200),
            f"{entry.size:,}",
            escaped(entry.key(*artifact.reference.split("/")).removeprefix(folder), 300),
        ]
        for entry in entries[:SHOWN_FILES]
    ]
    left = entries[SHOWN_FILES:]
    return [*rows, [f"{len(left)} more", f"{sum(entry.size for entry in left):,}", ""]] if left else rows


def chart_of(artifact: Artifact) -> str | None:
    """The chart of a stage's artifact as SVG; None for a stage that has none."""
    draw = CHARTS.get(artifact.manifest.stage)
    return None if draw is None else draw(artifact)


def _training(artifact: Artifact) -> str:
    steps = [json.loads(line) for line in artifact.text(METRICS).splitlines()]
    ratios = {"best": [step["log_ratio_best"] for step in steps], "worst": [step["log_ratio_worst"] for step in steps]}
    return chart.stacked(
        [
            chart.lines("Loss, (beta log-ratio - (P - 1/2))²", {"": [step["loss"] for step in steps]}, "step"),
            chart.lines("log pi_theta/pi_t of best and worst responses, nats", ratios, "step"),
        ]
    )


def _targets(artifact: Artifact) -> str:
    values = artifact.table("targets.parquet")["win_probability"].to_numpy()  # (N * K,)
    return chart.histogram(f"Win probabilities of {len(values):,} responses", values, "P(y > pi_t | x)", (0.0, 1.0))


def _lengths(artifact: Artifact) -> str:
    # file by file: all ids of all responses may be gigabytes
    tokens = np.concatenate([_token_counts(artifact.path(name)) for name in artifact.file_names(".parquet")])  # (N * K,)
    span = (0.0, float(max(1, tokens.max())))
    return chart.histogram(f"Lengths of {len(tokens):,} responses", tokens.astype(np.float64), "tokens", span)


def _token_counts(path: Path) -> npt.NDArray[np.int32]:
    """(rows,) of a file of responses."""
    ids = pq.read_table(path, columns=["token_ids"], page_checksum_verification=True)["token_ids"]
    counts: npt.NDArray[np.int32] = ids.combine_chunks().value_lengths().to_numpy()
    return counts


def _win_rates(artifact: Artifact) -> str:
    report = json.loads(artifact.text("report.json"))
    rows = []
    for judge in report["judges"]:
        for other in judge["against"]:
            rate = other["win_rate"]
            name = f"iteration {other['iteration']}" if other["iteration"] else "base policy"
            rows.append((f"{judge['judge']}, against {name}", rate["mean"], rate["low"], rate["high"]))
    return chart.intervals(f"Held-out win rates of iteration {report['iteration']}", rows, "win rate, 95 % interval", 0.5)


def _preferences(artifact: Artifact) -> str | None:
    if preferences.FILE not in artifact.file_names():
        return None  # ranked before the report was part of it
    return preferences.drawn(preferences.Preferences.model_validate_json(artifact.text(preferences.FILE)))


CHARTS: Mapping[str, Callable[[Artifact], str | None]] = {
    "generate": _lengths,
    "sample": _lengths,
    "rank": _preferences,
    "estimate": _targets,
    "train": _training,
    "evaluate": _win_rates,
}


def iteration_markdown(store: Store, index: IterationIndex, links: Mapping[str, str]) -> str:
    """A finished iteration: win rates beside those of the iterations before it, a few held-out prompts with answers of the base
    policy, the policy before and the new one, seconds by stage, and its artifacts.

    links: by reference of an artifact, the address of a page about it."""
    report = _until(assemble(store, index.run), index.iteration)
    newest = report.iterations[-1].judges[0]
    rate, prompts = newest.against[0], newest.against[0].prompts
    parts = [
        f"# {escaped(index.run, 80)} · iteration {index.iteration}\n",
        f"**Win rate {rate.mean:.3f} [{rate.low:.3f}, {rate.high:.3f}]** against the base policy on {prompts} held-out "
        f"prompts, {newest.against[-1].mean:.3f} against the policy before; judge {escaped(newest.judge, 80)}, 95 % interval "
        "over prompts, 0.5 is a tie.\n",
        table([escaped(name, 80) for name in table_head(report)], table_rows(report)),
        image(_win_rates(index.opened(store, "evaluate")), f"win rates of iteration {index.iteration}"),
        *([check_tables(index.opened(store, "check"))] if "check" in index.artifacts else []),
        "## Held-out prompts, and answers of one draw\n",
        _answer_table(report),
        "## Seconds by stage\n",
        table(seconds_head(report), seconds_rows(report)),
        "## Artifacts\n",
        table(
            ["stage", "artifact"],
            [[escaped(name, 80), _linked(entry.reference, links)] for name, entry in index.artifacts.items()],
        ),
        f"In the store at {escaped(store.url, 1000)}\n",
    ]
    return "\n".join(parts)


def check_tables(checked: Artifact) -> str:
    """What the gates said, and the numbers that they and people look at."""
    report = CheckReport.model_validate_json(checked.text(CHECKS))
    verdict = read_verdict(checked)
    gated = "" if verdict is None else "## Gates\n\n" + table(GATE_HEAD, _escaped(gate_rows(verdict))) + "\n"
    rows = [[escaped(words, LETTERS), *numbers] for words, *numbers in check_rows(report)]
    return gated + "## Checks\n\n" + table(check_head(report), rows)


def _escaped(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    return [[escaped(cell, LETTERS) for cell in row] for row in rows]


def _until(report: RunReport, iteration: int) -> RunReport:
    """A run's report as it was when that iteration had ended."""
    answers = tuple(replace(each, by_policy=each.by_policy[: iteration + 1]) for each in report.answers)
    return replace(report, iterations=report.iterations[:iteration], answers=answers)


def _linked(reference: str, links: Mapping[str, str]) -> str:
    address = links.get(reference)
    return f"[{short_name(reference)}]({address})" if address else short_name(reference)


def _answer_table(report: RunReport) -> str:
    newest = len(report.iterations)
    policies = {"base policy": 0, f"iteration {newest - 1}": newest - 1, f"iteration {newest}": newest}
    if newest == 1:
        del policies["iteration 0"]
    rows = [
        [escaped(text, LETTERS) for text in (each.prompt, *(each.by_policy[number] for number in policies.values()))]
        for each in report.answers[:SHOWN_ANSWERS]
    ]
    return table(["prompt", *policies], rows)
