"""How clear the judge's preferences are among the K responses that training was given: near ties and circles. N prompts."""

from collections.abc import Sequence

import numpy as np

from sppo.checks.resampling import Ratio
from sppo.estimate import sigmoid
from sppo.preferences import Verdicts, pairs_of
from sppo.preferences.matrices import comparable, cycles


def matrix_ratios(groups: Sequence[Verdicts], near_tie: float) -> dict[str, Ratio]:
    """`near_ties`, the share of pairs with |P(y_i > y_j) - 1/2| <= near_tie, and `cyclic_triples`, the share of triples without
    a tie among them that go round in a circle; a fair coin for a judge gives 1/4.

    Pairs of equal texts are left out; for the triples so are prompts that `sppo.preferences.matrices.comparable` leaves out."""
    pairs = pairs_of(groups)
    prompts = sum(len(group.logits) for group in groups)
    near = np.abs(sigmoid(pairs.margins) - 0.5) <= near_tie  # (M,) of M pairs
    ties = Ratio(
        np.bincount(pairs.prompt[near], minlength=prompts).astype(np.float64),
        np.bincount(pairs.prompt, minlength=prompts).astype(np.float64),
    )
    found = [cycles(group) for group in comparable(groups)]
    absent = np.zeros(prompts - sum(len(triples) for triples, _ in found))  # the prompts left out
    triples = np.concatenate([*(triples for triples, _ in found), absent])  # (N,)
    circles = np.concatenate([*(cyclic for _, cyclic in found), absent])  # (N,)
    return {"near_ties": ties, "cyclic_triples": Ratio(circles, triples)}
