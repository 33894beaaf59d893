"""What the preferences say: whether the judge minds the order, contradicts itself, likes length, agrees with others, is right,
and what game its preferences make of each prompt's responses. Pure functions of stored logits and the lengths of the answers.
"""

import json
from collections.abc import Iterable

from sppo.estimate import sigmoid
from sppo.preferences.matrices import comparable, game, transitivity
from sppo.preferences.pairs import agreement, calibration, length, margins, position
from sppo.preferences.picture import drawn
from sppo.preferences.report import Counts, Preferences
from sppo.preferences.verdicts import Label, Pairs, Verdicts, gathered, pairs_of, read_verdicts

__all__ = ["FILE", "Label", "Pairs", "Preferences", "Verdicts", "drawn", "pairs_of", "preferences", "read_verdicts", "to_json"]

FILE = "preferences.json"
"""In a rank artifact."""


def preferences(chunks: Iterable[Verdicts]) -> Preferences:
    """The whole report on verdicts that were read chunk by chunk; any of them may have another K."""
    groups = gathered(chunks)
    pairs = pairs_of(groups)
    matrices = comparable(groups)
    return Preferences(
        counts=_counts(groups, len(pairs)),
        position=position(pairs),
        margins=margins(pairs),
        transitivity=transitivity(matrices),
        agreement=agreement(pairs),
        length=length(pairs),
        calibration=calibration(sigmoid(pairs.margins), pairs.labels, pairs.prompt),
        game=game(matrices),
    )


def _counts(groups: list[Verdicts], judged: int) -> Counts:
    sizes = [group.lengths.shape for group in groups]  # (N, K) each
    pairs = sum(prompts * count * (count - 1) // 2 for prompts, count in sizes)
    identical = sum((int(group.same.sum()) - group.lengths.size) // 2 for group in groups)
    return Counts(
        prompts=sum(prompts for prompts, _ in sizes),
        responses=sum(prompts * count for prompts, count in sizes),
        pairs=pairs,
        pairs_identical=identical,
        pairs_unjudged=pairs - identical - judged,
        prompts_identical=sum(int((~group.told_apart).sum()) for group in groups),
        prompts_incomplete=sum(int((~group.whole).sum()) for group in groups),
    )


def to_json(report: Preferences) -> str:
    """As text, the same on every machine: six digits, for the last bits of a sum differ between processors."""
    return json.dumps(_rounded(report.model_dump(mode="json")), indent=1, sort_keys=True) + "\n"


def _rounded(value: object) -> object:
    if isinstance(value, dict):
        return {name: _rounded(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_rounded(inner) for inner in value]
    # differences of nothing are rounding too, hence also twelve places
    return float(f"{round(value, 12):.6g}") + 0.0 if isinstance(value, float) else value
