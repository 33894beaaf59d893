"""How policies are measured: held-out win rates, checks, gates and benchmarks."""

from typing import Annotated

from pydantic import Field, model_validator

from sppo.configuration import Frozen
from sppo.recipe.alpaca_eval import AlpacaEval
from sppo.recipe.harness import Harness
from sppo.recipe.judges import Judge
from sppo.recipe.models import Location
from sppo.recipe.sampling import Sampling

Positive = Annotated[int, Field(ge=1)]
Rise = Annotated[float, Field(ge=0, le=1)]
"""Of a share, in its own unit: 0.01 is from 0 to 1 of 100 answers."""


class Checks(Frozen):
    """How held-out answers are looked at."""

    distinct_words: Positive = 50
    """First words of an answer that distinct-n is computed of; shorter answers are left out. Longer texts repeat more words, so
    only texts of one length can be compared."""
    matched_length: Annotated[float, Field(gt=1)] = 1.25
    """Two answers are of matched length if neither has more than so many times the characters of the other."""
    near_tie: Annotated[float, Field(ge=0, lt=0.5)] = 0.05
    """Two responses are nearly tied if P of the one is within this of 1/2."""


class Gates(Frozen):
    """What an iteration must show, or the run stops before the next.

    Each value is the bound of one test; a test fails an iteration only where chance does not explain what was found."""

    level: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Chance that an iteration without any gain passes, and that one is stopped for something that is not so."""
    least_gain: Annotated[float, Field(ge=0, lt=0.5)] = 0.01
    """What a win rate against the policy before must be shown to exceed 1/2 by to count as risen: the training judge's, or
    nothing was gained; an independent judge's, or it does not bear the gain out."""
    length_growth: Annotated[float, Field(ge=0)] = 0.15
    """Of the mean characters, from one iteration to the next: 0.15 is 15 % more."""
    repetition: Rise = 0.05
    """Mean share of repeated 4-grams, since the base policy; so are all below."""
    loops: Rise = 0.01
    """Share of answers that end in a loop."""
    empty: Rise = 0.01
    """Share of answers without a letter or digit."""
    cut: Rise = 0.05
    """Share of answers cut at max_tokens."""
    refusals: Rise = 0.02
    """Share of answers that open with a refusal."""


class Evaluation(Frozen):
    """Held-out win rates, and what else is measured of each iteration's policy."""

    sampling: Sampling
    judges: tuple[Judge, ...]
    """The first is reported as the judge, the others as independent ones."""
    max_prompts: Positive
    """Test prompts used, the first ones in the order of their ids."""
    resamples: Positive
    """Bootstrap resamples over prompts."""
    checks: Checks = Checks()
    gates: Gates | None = Gates()
    """None: no iteration is stopped."""
    alpaca_eval: AlpacaEval | None = None
    """None: not measured."""
    harness: tuple[Harness, ...] = ()
    """Tasks of lm-evaluation-harness, among them the Open Portuguese LLM Leaderboard's."""
    portuguese_tables: Location | None = None
    """Root of the leaderboard's tables, a folder or s3://bucket/prefix; see `sppo fetch-tables`."""

    @model_validator(mode="after")
    def _has_a_judge(self) -> "Evaluation":
        if not self.judges:
            raise ValueError("judges is empty; expected at least one judge to measure win rates with")
        return self
