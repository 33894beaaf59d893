"""`sppo preferences`: what a judge's verdicts say, each number with what it means, and what to do where it looks bad."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from sppo.errors import RunError
from sppo.lineage import named_artifact
from sppo.preferences import FILE, Preferences
from sppo.preferences.report import Agreement, Calibration, Counts, Game, Length, Margins, Position, Transitivity
from sppo.store import Store


@dataclass(frozen=True)
class Line:
    """One number."""

    name: str
    value: str
    meaning: str
    advice: str = ""
    """What to do, if it looks bad."""


def show_preferences(console: Console, store: Store, run: str, iteration: int | None) -> None:
    """The report of a run's iteration, or of the rank artifact of that name.

    Raises RunError for a run, iteration or report that is not there."""
    artifact = store.open(named_artifact(store, run, iteration, "rank"))
    if FILE not in artifact.file_names():
        raise RunError(
            f"{artifact.name} has no {FILE}; expected what `rank` writes: it is of another stage, or of an earlier version of "
            "this code, and a new run of its recipe ranks its responses again"
        )
    console.print(Text(f"{artifact.name}: what the judge's preferences say", "bold"))
    console.print(preference_table(Preferences.model_validate_json(artifact.text(FILE))))


def preference_table(report: Preferences) -> RenderableType:
    """The report section by section."""
    sections = {"what was judged": _counts(report.counts)}
    if report.position is not None:
        sections["order: does the place decide?"] = _position(report.position)
    if report.margins is not None:
        sections["margins: how sure is it?"] = _margins(report.margins)
    if report.transitivity is not None:
        sections["cycles: does it contradict itself?"] = _transitivity(report.transitivity)
    if report.length is not None:
        sections["length: does it like long answers?"] = _length(report.length)
    if report.agreement:
        sections["agreement: do the ensemble's judges say the same?"] = [_agreement(each) for each in report.agreement]
    if report.calibration is not None:
        sections["calibration: is it right? (the tiny world's rule knows)"] = _calibration(report.calibration)
    if report.game is not None:
        sections["game: what is there to win?"] = _game(report.game)
    return Group(*[_section(title, lines) for title, lines in sections.items()])


def _section(title: str, lines: Sequence[Line]) -> RenderableType:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(width=26)
    table.add_column(width=16, justify="right", no_wrap=True)
    table.add_column(ratio=1)
    for line in lines:
        words = Text(line.meaning, "dim")
        if line.advice:
            words.append(f"\n→ {line.advice}", "not dim yellow")
        table.add_row(line.name, Text(line.value, "yellow" if line.advice else "bold"), words)
    return Padding(Group(Text(title, "cyan"), table), (1, 0, 0, 0))


def _counts(counts: Counts) -> list[Line]:
    lost = counts.pairs_unjudged
    return [
        Line("prompts x responses", f"{counts.prompts:,} x {counts.responses / counts.prompts:g}", "of this iteration"),
        Line("pairs", f"{counts.pairs:,}", "of two responses to one prompt, each judged in both orders"),
        Line(
            "of the same text",
            f"{counts.pairs_identical:,}",
            f"never asked about and in no number below; in {counts.prompts_identical:,} prompts all responses are one text",
            "the policy repeats itself: raise generation.temperature"
            if _share(counts.pairs_identical, counts.pairs) > 0.2
            else "",
        ),
        Line(
            "without a verdict",
            f"{lost:,}",
            f"in no number below; {counts.prompts_incomplete:,} prompts with such pairs are left out of cycles and game",
            "so few that the judge's max_unjudged let them pass; a lower one has the stage ask again before it ends"
            if lost
            else "",
        ),
    ]


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _position(position: Position) -> list[Line]:
    side = "first" if position.first_logit > 0 else "second"
    toward = "none of them" if position.first_of_flips is None else f"{position.first_of_flips:.0%} of them"
    return [
        Line(
            "position bias",
            f"{position.bias.mean:.3g}",
            f"mean |L_ij + L_ji| in log-odds, 0 without bias; median {position.bias.median:.3g}, "
            f"95 % below {position.bias.p95:.3g}",
        ),
        Line("place that is favoured", f"{side} {abs(position.first_logit):.2g}", "mean (L_ij + L_ji) / 2, in log-odds"),
        Line(
            "verdicts that flip",
            f"{position.order_flips:.1%}",
            f"pairs in which both orders name the same place; the first in {toward}",
            "averaging both orders undoes a constant bias, but a flip is a pair the judge cannot decide: prefer a judge that "
            "flips less, or an ensemble"
            if position.order_flips > 0.15
            else "",
        ),
    ]


def _margins(margins: Margins) -> list[Line]:
    counts = margins.sureness.counts
    certain = sum(counts[-2:]) / max(1, sum(counts))  # P > 0.96
    return [
        Line(
            "margin",
            f"{margins.size.mean:.3g}",
            f"mean |L_ij - L_ji| / 2 in log-odds: 2.2 is nine to one; median {margins.size.median:.3g}, "
            f"95 % below {margins.size.p95:.3g}",
            "verdicts near a coin's toss make targets near 0: draw more different responses (generation.temperature), or "
            "sharpen with estimator.temperature below 1"
            if margins.size.median < 0.1
            else "",
        ),
        Line(
            "nearly certain",
            f"{certain:.1%}",
            "pairs with P above 0.96",
            "hard labels: if the judge is less often right than that, raise estimator.temperature" if certain > 0.5 else "",
        ),
        Line(
            "ties",
            f"{margins.ties:.1%}",
            "different texts, and a margin of exactly 0",
            "the judge does not see differences: prefer a finer one" if margins.ties > 0.2 else "",
        ),
    ]


def _transitivity(found: Transitivity) -> list[Line]:
    triples = "-" if found.cyclic_triples is None else f"{found.cyclic_triples:.1%}"
    return [
        Line(
            "cyclic triples",
            triples,
            f"of {found.triples:,} triples without ties; 0 if one score a response says it all, 25 % for a coin",
            "a good part of the verdicts is noise, or truly cyclic: compare with the flips above, and stay with "
            "estimator.rule: pairwise, for bradley_terry turns such verdicts around"
            if (found.cyclic_triples or 0) > 0.1
            else "",
        ),
        Line("no Condorcet winner", f"{found.no_condorcet_winner:.1%}", "prompts in which no response beats every other text"),
        Line(
            "cycle at the top",
            f"{found.condorcet_cycle:.1%}",
            "prompts in which every response loses to some other; the difference to the line above is ties",
        ),
    ]


def _length(length: Length) -> list[Line]:
    lines = [Line("pairs of equal length", f"{length.equal_length:.1%}", "in characters; in no number of this section")]
    if length.longer_wins is None or length.slope_per_100_characters is None:
        return lines
    lopsided = abs(length.longer_wins - 0.5) > 0.1
    return [
        Line(
            "longer answer wins",
            f"{length.longer_wins:.1%} ± {length.longer_wins_error:.1%}",
            "of the others, ties a half; ± is a standard error over prompts",
            "longer may be better, or only longer: watch mean tokens from iteration to iteration, and evaluate with a judge "
            "that controls for length"
            if lopsided
            else "",
        ),
        Line(
            "100 characters bring",
            f"{length.slope_per_100_characters:+.3f} ± {length.slope_error:.3f}",
            "log-odds, by least squares through 0"
            + ("" if length.explained is None else f"; this explains {length.explained:.1%} of the margins' square"),
        ),
    ]


def _agreement(found: Agreement) -> Line:
    kappa = "-" if found.kappa is None else f"{found.kappa:.2f}"
    correlation = "" if found.correlation is None else f"; correlation of their margins {found.correlation:.2f}"
    return Line(
        f"judges {found.judges[0] + 1} and {found.judges[1] + 1}",
        f"{found.same_verdict:.1%}",
        f"same verdict on {found.pairs:,} pairs; kappa {kappa}: 0 is chance, 1 always{correlation}",
        "they judge different things: look at each alone before their mean is trained on" if (found.kappa or 0) < 0.3 else "",
    )


def _calibration(found: Calibration) -> list[Line]:
    lean = sum(each.pairs * (each.at - each.mean) for each in found.right_by_sureness)
    change = "above 1: it is too sure" if lean > 0 else "below 1: it is less sure than it could be"
    accuracy = "-" if found.accuracy is None else f"{found.accuracy:.1%}"
    return [
        Line(
            "right",
            accuracy,
            f"of {found.pairs:,} pairs, those preferred as the truth has it; its own ties count half",
            "more than a quarter of the labels point the wrong way: fit or choose a better judge"
            if (found.accuracy or 1) < 0.75
            else "",
        ),
        Line(
            "calibration error",
            f"{found.error:.3f}",
            "how far P is from the share that is right, on average",
            f"set estimator.temperature {change}" if found.error > 0.05 else "",
        ),
        Line(
            "Brier score", f"{found.brier:.3f}", f"mean (P - outcome)²; {found.brier_of_labels:.3f} is the least there can be"
        ),
    ]


def _game(game: Game) -> list[Line]:
    support = ", ".join(f"{count:,} of {size}" for size, count in enumerate(game.support, 1) if count)
    return [
        Line(
            "exploitability of pi_t",
            f"{game.exploitability.mean:.3f}",
            f"how much oftener than 1/2 the best of K wins against pi_t; median {game.exploitability.median:.3f}, "
            f"95 % below {game.exploitability.p95:.3f}; falls towards 0 at the Nash policy",
            "hardly anything to learn from: draw more different responses, or more of them"
            if game.exploitability.mean < 0.02
            else "",
        ),
        Line(
            "maximal lottery wins",
            f"{game.lottery_wins:.1%}",
            "against pi_t: the mixture of the responses that none of them beats (Fishburn, 1984)",
        ),
        Line(
            "lottery is a mixture",
            f"{game.mixed:.1%}",
            f"of prompts: no single response is unbeaten; responses mixed: {support}",
        ),
        Line(
            "best is not in it",
            f"{game.best_outside:.1%}",
            "prompts whose response with the highest win probability has no part in the lottery",
            "the best of K is often beaten by a response that is in it: train on selection.responses: all"
            if game.best_outside > 0.1
            else "",
        ),
        Line(
            "certificate",
            f"{game.certificate:.0e}" if game.certificate else "below 1e-12",
            "the most that any response wins against its lottery beyond 1/2; proof that the lotteries are maximal below 1e-9",
            "a lottery was not found: please report it, with the rank artifact" if game.certificate > 1e-9 else "",
        ),
    ]
