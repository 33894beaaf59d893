"""Length-controlled win rate: how often the model would be preferred if its answers were as long as the reference's.

    logit P(model preferred) = a tanh(d / sd) + b difficulty + c        d = characters of reference - model, sd over all N rows
    rate                     = mean over instructions of sigmoid(b difficulty + c)

`length_controlled_v1` (Dubois et al., arXiv:2404.04475; alpaca_eval 0.6.6): a, b and c minimise |a| + |b| + |c| + C times the
log loss against preferences in [0, 1]. Two gamed baselines, the reference told to be verbose and to be concise, count a tenth a
row and have no c, which holds a and b to what length alone does. C is the best of ten in 5-fold cross-validation. Without them,
`length_controlled_minimal`, only a and c are fitted: a length-only fit. N instructions, G gamed rows.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from sppo.alpaca_eval.annotations import Annotation, preferences, shown
from sppo.alpaca_eval.sets import EvaluationSet, GamedBaselines
from sppo.errors import EvaluationError
from sppo.estimate import sigmoid

Array = npt.NDArray[np.float64]
Positions = npt.NDArray[np.int64]
Kind = Literal["length_controlled_v1", "length_controlled_minimal"]

GAMED_WEIGHT = 0.1
"""Of a gamed row: alpaca_eval's 0.2, shared by two baselines."""
CANDIDATES: Array = np.logspace(-4, 4, 10)
"""Of C."""
FOLDS = 5
SEED = 123
TINY = 1e-12


@dataclass(frozen=True)
class Design:
    """What the model is fitted to, in the evaluation set's order."""

    length_differences: Array
    """(N,) characters of reference - model, of every row: judged or not, all of them make the standard deviation."""
    difficulties: Array
    """(N,), zeros in a length-only fit."""
    preferences: Array
    """(N,) in [0, 1]; nan where there is no verdict, and then the row is not fitted, but predicted."""
    gamed_lengths: Array
    """(G,) in standard deviations."""
    gamed_difficulties: Array
    """(G,)"""
    gamed_preferences: Array
    """(G,) in [0, 1]"""
    gamed_places: Positions
    """(G,) row among the N that has the same instruction; -1 for none."""

    @property
    def kind(self) -> Kind:
        """The fit's name at alpaca_eval."""
        return "length_controlled_v1" if len(self.gamed_preferences) else "length_controlled_minimal"

    @property
    def rows(self) -> tuple[Array, Array, Array]:
        """Features (G + J, 3), preferences (G + J,) and weights (G + J,) of the gamed and the J judged rows."""
        judged = ~np.isnan(self.preferences)
        own = np.column_stack([in_deviations(self.length_differences), self.difficulties, np.ones(len(judged))])[judged]
        gamed = np.column_stack([np.tanh(self.gamed_lengths), self.gamed_difficulties, np.zeros(len(self.gamed_lengths))])
        weights = np.concatenate([np.full(len(gamed), GAMED_WEIGHT), np.ones(len(own))])
        return (
            np.concatenate([gamed, own]),
            np.concatenate([self.gamed_preferences, self.preferences[judged]]),
            weights,
        )


@dataclass(frozen=True)
class LengthControlled:
    """The fit to all rows."""

    kind: Kind
    win_rate: float
    """Percent, over all instructions of the annotations, judged or not."""
    published_standard_error: float
    """Percent, as alpaca_eval gives it: how far the instructions' predicted preferences spread. Not how sure the rate is."""
    length: float
    """a"""
    difficulty: float
    """b"""
    model: float
    """c"""
    inverse_penalty: float
    """C"""


def design(annotations: Sequence[Annotation], questions: EvaluationSet, gamed: GamedBaselines | None) -> Design:
    """What the fit reads, by instruction: the order of the annotations says nothing.

    Raises EvaluationError for an instruction outside the set, or fewer than two judged rows."""
    place = {instruction: number for number, instruction in enumerate(questions.instructions)}
    for one in annotations:
        if one.instruction not in place:
            raise EvaluationError(
                f"the annotated instruction {shown(one.instruction)} is not in the evaluation set of {len(place)}; "
                "expected its text to the letter: give the set that was judged"
            )
    rows = sorted(annotations, key=lambda one: place[one.instruction])
    found = preferences(rows)
    if (~np.isnan(found)).sum() < 2:
        raise EvaluationError(
            f"{int((~np.isnan(found)).sum())} of {len(rows)} rows were judged; expected at least 2 for a length-controlled rate"
        )
    positions = [place[one.instruction] for one in rows]
    lengths = np.array([len(one.output_1) - len(one.output_2) for one in rows], dtype=np.float64)
    if gamed is None:
        nothing, nowhere = np.zeros(0), np.zeros(0, dtype=np.int64)
        return Design(lengths, np.zeros(len(rows)), found, nothing, nothing, nothing, nowhere)
    row_at = {position: row for row, position in enumerate(positions)}
    kept = ~np.isnan(gamed.preferences)
    return Design(
        lengths,
        gamed.difficulty(positions),
        found,
        gamed.length_differences[kept],
        gamed.difficulties[kept],
        gamed.preferences[kept],
        np.array([row_at.get(position, -1) for position in gamed.positions[kept].tolist()], dtype=np.int64),
    )


def in_deviations(differences: Array) -> Array:
    """tanh(d / sd), (N,); zeros where nothing varies: then lengths explain nothing."""
    deviation = differences.std(ddof=1)
    return np.tanh(differences / deviation) if deviation > 0 else np.zeros_like(differences)


def length_controlled(fitted: Design) -> LengthControlled:
    """The rate as alpaca_eval finds it: with liblinear, whose tolerance is part of the published numbers."""
    features, wanted, weights = fitted.rows
    used = [0, 1, 2] if fitted.kind == "length_controlled_v1" else [0, 2]
    chosen = _cross_validated(features[:, used], wanted, weights)
    found = np.zeros(3)
    found[used] = _fit(features[:, used], wanted, weights, chosen, np.random.RandomState(SEED))
    predicted = sigmoid(fitted.difficulties * found[1] + found[2])  # (N,)
    length, difficulty, model = found.tolist()
    return LengthControlled(
        fitted.kind,
        win_rate=float(100 * predicted.mean()),
        published_standard_error=float(100 * predicted.std(ddof=1) / np.sqrt(len(predicted))),
        length=length,
        difficulty=difficulty,
        model=model,
        inverse_penalty=chosen,
    )


def _cross_validated(features: Array, wanted: Array, weights: Array) -> float:
    """The C with the least log loss on held-out rows."""
    rows = len(wanted)
    if rows < FOLDS:
        raise EvaluationError(f"{rows} rows cannot be held out in {FOLDS} parts; expected at least {FOLDS} judged rows")
    folds = (rows - 1 - np.arange(rows)) % FOLDS  # scikit-learn's GroupKFold, of groups that are all of one row: last row first
    losses = np.zeros(len(CANDIDATES))
    for fold in range(FOLDS):
        inside = folds != fold
        random = np.random.RandomState(SEED)  # one for a fold's fits, as LogisticRegressionCV has it
        for number, candidate in enumerate(CANDIDATES.tolist()):
            found = _fit(features[inside], wanted[inside], weights[inside], candidate, random)
            losses[number] += _log_loss(features[~inside] @ found, wanted[~inside], weights[~inside])
    return float(CANDIDATES[losses.argmin()])


def _fit(features: Array, wanted: Array, weights: Array, inverse_penalty: float, random: np.random.RandomState) -> Array:
    """Weights of the features. A preference p is p of a row that was won and 1 - p of one that was lost."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=inverse_penalty, l1_ratio=1, solver="liblinear", fit_intercept=False, random_state=random)
    outcomes = np.repeat([1, 0], len(wanted))
    won, lost = wanted * weights, (1 - wanted) * weights
    if (
        not won.any() or not lost.any()
    ):  # liblinear leaves an outcome without weight out, and then calls a rate of 0 one of 50 %
        won, lost = np.maximum(won, TINY), np.maximum(lost, TINY)
    with warnings.catch_warnings():
        # at its 100 steps it may stop short of its tolerance, as it does for the published numbers
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(np.tile(features, (2, 1)), outcomes, np.concatenate([won, lost]))
    found: Array = model.coef_[0]
    return found


def _log_loss(logits: Array, wanted: Array, weights: Array) -> float:
    chance = np.clip(sigmoid(logits), 1e-15, 1 - 1e-15)
    return float(-(weights * (wanted * np.log(chance) + (1 - wanted) * np.log(1 - chance))).mean())
