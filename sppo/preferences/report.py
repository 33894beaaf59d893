"""What `preferences.json` says: counts and numbers, never a text. Shares are in [0, 1], logits in nats, None where nothing was
there to be counted."""

from typing import Literal

from sppo.configuration import Frozen


class Spread(Frozen):
    """Of a number over pairs or prompts."""

    mean: float
    median: float
    p95: float
    """95 % are below."""


class Histogram(Frozen):
    """How many lie in each of equal parts of a span."""

    low: float
    high: float
    counts: tuple[int, ...]


class Bin(Frozen):
    """Pairs that are alike in one respect, and what they are in another."""

    pairs: int
    at: float
    """Mean of what they are alike in."""
    mean: float
    standard_error: float
    """Of the mean, over prompts."""


class Counts(Frozen):
    """What the rest is about."""

    prompts: int
    responses: int
    pairs: int
    """Unordered, of one prompt's responses."""
    pairs_identical: int
    """Both answers the same text: in no number below."""
    pairs_unjudged: int
    """Without a verdict in at least one order: in no number below."""
    prompts_identical: int
    """All answers the same text: left out of `transitivity` and `game`."""
    prompts_incomplete: int
    """With an unjudged pair: left out of `transitivity` and `game`."""


class Position(Frozen):
    """What the order does in which two answers are shown. A judge without position bias has L_ij = -L_ji."""

    bias: Spread
    """|L_ij + L_ji|."""
    first_logit: float
    """Mean of (L_ij + L_ji) / 2: positive if the answer shown first is favoured."""
    order_flips: float
    """Share of pairs in which both orders name the first, or both the second."""
    first_of_flips: float | None
    """Share of those that name the first."""
    first_wins: Histogram
    """Chance that the answer shown first wins, the mean of both orders, by pair."""


class Margins(Frozen):
    """How sure the judge is, the order averaged out."""

    size: Spread
    """|L_ij - L_ji| / 2."""
    ties: float
    """Share of pairs with a margin of 0."""
    sureness: Histogram
    """P of the preferred answer, by pair."""


class Transitivity(Frozen):
    """Whether one score a response could say the same."""

    prompts: int
    triples: int
    """Of responses with three different texts and no tie among them."""
    cyclic_triples: float | None
    """Share of triples y > y' > y'' > y; a fair coin for a judge gives 1/4."""
    no_condorcet_winner: float
    """Share of prompts in which no response is preferred to every other text."""
    condorcet_cycle: float
    """Share in which every response loses to some other: those without a winner where ties are not the reason."""


class Agreement(Frozen):
    """Two judges of an ensemble."""

    judges: tuple[int, int]
    """Their places among the members."""
    pairs: int
    same_verdict: float
    kappa: float | None
    """Cohen's: same verdicts beyond chance; each of the three verdicts counted in both orders."""
    correlation: float | None
    """Of their margins, about 0."""


class Length(Frozen):
    """What longer answers have to do with it."""

    pairs: int
    """Of different length."""
    equal_length: float
    """Share of pairs of equal length."""
    longer_wins: float | None = None
    """Share of the others in which the longer answer wins, ties a half."""
    longer_wins_error: float | None = None
    """Standard error, over prompts."""
    slope_per_100_characters: float | None = None
    """Log-odds that 100 more characters bring: least squares of the margin on the difference, without intercept."""
    slope_error: float | None = None
    """Standard error, over prompts."""
    explained: float | None = None
    """Share of the margins' mean square that the slope explains."""
    longer_wins_by_difference: tuple[Bin, ...] = ()
    """`longer_wins` of equally many pairs each, by how many characters longer."""


class Calibration(Frozen):
    """Whether the judge is right as often as it says, where the truth is known. Pairs are turned so that P >= 1/2."""

    pairs: int
    accuracy: float | None
    """Share of pairs, ties in truth aside, whose likelier side the judge prefers; the judge's own ties are half right."""
    error: float
    """Expected calibration error: the mean over pairs of |mean P - share that is right| of their bin."""
    brier: float
    """Mean (P - outcome)^2, over pairs and outcomes drawn by the labels."""
    brier_of_labels: float
    """The same of a judge that says the labels: no judge can have less."""
    right_by_sureness: tuple[Bin, ...]
    """Share that is right, by P in ten equal parts of [1/2, 1]."""


class Game(Frozen):
    """Each prompt's responses as a game (sppo.game), with pi_t as the uniform mixture of its K draws."""

    prompts: int
    exploitability: Spread
    """max_k P(y_k > pi_t) - 1/2: how far the best of K is beyond its policy."""
    lottery_wins: float
    """Mean P(maximal lottery > pi_t)."""
    mixed: float
    """Share of prompts whose maximal lottery is not a single response."""
    support: tuple[int, ...]
    """Prompts whose maximal lottery mixes 1, 2, .. responses."""
    best_outside: float
    """Share of prompts whose response with the highest P(y > pi_t) has no part in the lottery."""
    certificate: float
    """The most that any response wins against its lottery, beyond 1/2."""


class Preferences(Frozen):
    """preferences.json of a rank artifact."""

    version: Literal[1] = 1
    counts: Counts
    position: Position | None
    margins: Margins | None
    transitivity: Transitivity | None
    agreement: tuple[Agreement, ...]
    """Of an ensemble, each two of its judges."""
    length: Length | None
    calibration: Calibration | None
    game: Game | None

    def metrics(self) -> dict[str, float]:
        """The most telling numbers, for the manifest."""
        found: dict[str, float | None] = {}
        if self.position is not None:
            found |= {"position_bias": self.position.bias.mean, "order_flips": self.position.order_flips}
        if self.transitivity is not None:
            found["cyclic_triples"] = self.transitivity.cyclic_triples
            found["no_condorcet_winner"] = self.transitivity.no_condorcet_winner
        if self.length is not None:
            found["longer_wins"] = self.length.longer_wins
            found["length_slope_per_100_characters"] = self.length.slope_per_100_characters
        if self.game is not None:
            found["exploitability"] = self.game.exploitability.mean
        if self.calibration is not None:
            found |= {"judge_accuracy": self.calibration.accuracy, "calibration_error": self.calibration.error}
        return {name: value for name, value in found.items() if value is not None}
