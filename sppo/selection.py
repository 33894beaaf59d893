"""Which of a prompt's K responses are trained on, and why the others are not. N prompts, K responses.

A response that is left out stays an opponent of the others: it is a draw from pi_t, and P(y > pi_t | x) counts it. So no
treatment moves a win probability, and changing one costs no judging.
"""

import numpy as np
import numpy.typing as npt

from sppo import recipe
from sppo.hygiene import Flags, Traits

Array = npt.NDArray[np.float64]
Roles = npt.NDArray[np.int8]

ROLES = ("other", "best", "worst", "empty", "cut", "refusal", "repeat", "tied", "identical")
"""`best` and `worst` of those that may be trained on, and `other`; or why a response is left out: a trait of its own (`empty`,
`cut`, `refusal`), a more extreme response that says the same (`repeat`), or that no judge tells the prompt's responses apart
(`tied`) or that they all say the same (`identical`)."""
OTHER, BEST, WORST, EMPTY, CUT, REFUSAL, REPEAT, TIED, IDENTICAL = range(len(ROLES))

ROUNDING = 1e-9
"""Of a win probability that is one half."""


def select(probabilities: Array, traits: Traits, rules: recipe.Selection) -> tuple[Flags, Roles]:
    """Which responses are trained on, and each one's role.

    probabilities: (N, K); results: (N, K) of bool, and of positions in ROLES.
    Best and worst are the first of equals, and never the same response (the released code trains a tie against itself). The
    best is never one that training would lower (P < 1/2), nor the worst one that it would raise: where the only response above
    1/2 is left out, the prompt trains its worst alone."""
    roles = _left_out(probabilities, traits, rules)  # (N, K)
    roles[_repeats(probabilities, traits.alike, roles == OTHER)] = REPEAT
    free = roles == OTHER  # (N, K)
    high = np.where(free & (probabilities > 0.5 - ROUNDING), probabilities, -np.inf)  # (N, K)
    rows, best = _first(high.argmax(axis=1), np.isfinite(high))
    roles[rows, best] = BEST
    low = np.where((roles == OTHER) & (probabilities < 0.5 + ROUNDING), probabilities, np.inf)  # (N, K)
    rows, worst = _first(low.argmin(axis=1), np.isfinite(low))
    roles[rows, worst] = WORST
    selected = free if rules.responses == "all" else (roles == BEST) | (roles == WORST)  # (N, K)
    if rules.drop_ties:
        tied = np.ptp(probabilities, axis=1) <= rules.tie_width  # (N,)
        identical = traits.alike.all(axis=(1, 2))  # (N,)
        roles[tied] = TIED
        roles[identical] = IDENTICAL
        selected[tied | identical] = False
    return selected, roles


def _left_out(probabilities: Array, traits: Traits, rules: recipe.Selection) -> Roles:
    """(N, K) why a response's own trait keeps it out of training, OTHER where none does; the first of several reasons."""
    roles = np.full(probabilities.shape, OTHER, dtype=np.int8)
    won = probabilities > 0.5 - ROUNDING  # (N, K)
    for reason, has, treatment in (
        (REFUSAL, traits.refusal, rules.refusals),
        (CUT, traits.cut, rules.cut),
        (EMPTY, traits.empty, rules.empty),
    ):
        if treatment == "drop":
            roles[has] = reason
        elif treatment == "not_raised":
            roles[has & won] = reason
    return roles


def _repeats(probabilities: Array, alike: Flags, free: Flags) -> Flags:
    """(N, K) responses that say the same as a more extreme one that may be trained on; of equals, as the first.

    Greedy, the most extreme first: what stands for others is never left out itself."""
    repeats = np.zeros_like(free)
    count = free.shape[1]
    prompts = np.flatnonzero(alike.sum(axis=(1, 2)) > count)  # (M,) the few where anything says the same
    extremes = np.abs(probabilities[prompts] - 0.5).round(9)  # (M, K) equal for equal texts
    order = np.argsort(-extremes, axis=1, kind="stable")  # (M, K)
    kept = np.zeros((len(prompts), count), dtype=np.bool_)  # (M, K)
    rows = np.arange(len(prompts))
    for candidate in order.T:  # (M,)
        said = (alike[prompts, candidate] & kept).any(axis=1)  # (M,)
        may = free[prompts, candidate]  # (M,)
        repeats[prompts, candidate] = may & said
        kept[rows, candidate] = may & ~said
    return repeats


def _first(position: npt.NDArray[np.int64], possible: Flags) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Rows that have any possible response, and each one's position."""
    rows = np.flatnonzero(possible.any(axis=1))
    return rows, position[rows]
