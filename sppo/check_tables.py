"""Checks and gates as rows of tables for people; cells are plain text."""

from sppo.checks.report import NUMBERS, CheckReport
from sppo.gates import Verdict
from sppo.statistics import Interval

IN_PLAIN_NUMBERS = ("characters", "tokens")
"""Beginnings of names that are no shares."""
GATE_HEAD = ("gate", "", "reason")


def check_head(report: CheckReport) -> list[str]:
    """Column names: the policies."""
    return ["held-out answers", "base policy", *(f"iteration {number}" for number in range(1, len(report.policies)))]


def check_rows(report: CheckReport) -> list[list[str]]:
    """One row a number, with its 95 % interval over prompts; then what is known of the newest policy alone."""
    rows = [
        [words, *(_with_interval(name, policy.get(name)) for policy in report.policies)]
        for name, words in NUMBERS.items()
        if any(name in policy for policy in report.policies)
    ]
    before = [""] * (len(report.policies) - 1)
    for judge in report.judges:
        matched = judge.against[-1].equal_length if judge.against else None
        if matched is not None:
            rows.append([f"won against the one before at equal length, {judge.judge}", *before, _with_interval("", matched)])
    for found in report.divergences:
        words = f"mean log-ratio to {'the base policy' if not found.source else f'iteration {found.source}'}, nats an answer"
        if found.low_variance is not None:
            words = words.replace("mean log-ratio to", "KL divergence from")
        rows.append([words, *before, _nats(found.log_ratio)])
    for name, interval in report.matrices.items():
        rows.append([f"{name.replace('_', ' ')} of the judge, in training", *before, _with_interval(name, interval)])
    return rows


def gate_rows(verdict: Verdict) -> list[list[str]]:
    """One row a gate: whether it was passed, and why."""
    return [[each.gate, "passed" if each.passed else "failed", each.reason] for each in verdict.decisions]


def _with_interval(name: str, found: Interval | None) -> str:
    if found is None:
        return ""
    if name.startswith(IN_PLAIN_NUMBERS):
        return f"{found.value:.0f} [{found.low:.0f}, {found.high:.0f}]"
    return f"{100 * found.value:.1f} % [{100 * found.low:.1f}, {100 * found.high:.1f}]"


def _nats(found: Interval) -> str:
    return f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]"
