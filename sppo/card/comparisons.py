"""What changed from earlier policies to pi_t on the same questions: `comparisons.json` of an artifact `benchmark`.

One row is one number of pi_t less that of an earlier policy, with its interval, and the chance of it without any difference.
"""

from collections.abc import Iterable, Sequence
from typing import Annotated, Literal, Self

from pydantic import Field

from sppo.card.scores import Text, parsed
from sppo.configuration import Frozen
from sppo.statistics import Disagreement, Interval, holm

COMPARISONS_FILE = "comparisons.json"
Chance = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]


class Comparison(Frozen):
    """One number of pi_t, less the same number of an earlier policy."""

    policy: Annotated[int, Field(ge=1)]
    """t of pi_t."""
    against: Count
    """i of pi_i; 0 is the base policy."""
    group: Text
    """As of the score that is compared, and so is the name."""
    name: Text
    difference: float
    low: float
    """Of the 95 % interval over resampled questions, in the difference's unit."""
    high: float
    n: Annotated[int, Field(ge=1)]
    """Questions that both answered."""
    unit: str = ""
    """`points` of a percentage, or none."""
    decimals: Annotated[int, Field(ge=0, le=6)] = 2
    test: Literal["McNemar's exact test", "paired bootstrap"]
    p: Chance
    """Of a difference as large, if there were none."""
    adjusted_p: Chance
    """By Holm, over all comparisons of one iteration's benchmarks."""
    only_policy: Count | None = None
    """Questions that pi_t has right and the earlier policy wrong; where there is right and wrong, as below."""
    only_against: Count | None = None

    @classmethod
    def of(
        cls,
        place: tuple[int, int, str, str],
        found: Interval,
        p: float,
        disagreement: Disagreement | None = None,
        scale: float = 1,
        unit: str = "",
        decimals: int = 2,
    ) -> Self:
        """A difference before it is corrected. place: policy, against, group and name; scale: 100 for shares in percent.

        disagreement: of right and wrong answers, whose p counts instead."""
        policy, against, group, name = place
        difference, low, high = (scale * each for each in (found.value, found.low, found.high))
        p = p if disagreement is None else disagreement.p_value
        return cls(
            policy=policy,
            against=against,
            group=group,
            name=name,
            difference=difference,
            low=low,
            high=high,
            n=found.n,
            unit=unit,
            decimals=decimals,
            test="paired bootstrap" if disagreement is None else "McNemar's exact test",
            p=p,
            adjusted_p=p,
            only_policy=None if disagreement is None else disagreement.only_first,
            only_against=None if disagreement is None else disagreement.only_second,
        )


class LeftOut(Frozen):
    """What could not be compared."""

    against: Count
    what: Text
    why: Text


class Comparisons(Frozen):
    """All comparisons of one iteration's benchmarks."""

    comparisons: tuple[Comparison, ...] = ()
    left_out: tuple[LeftOut, ...] = ()

    def to_json(self) -> str:
        """What `parse_comparisons` reads."""
        return self.model_dump_json(indent=1, exclude_none=True) + "\n"


def corrected(comparisons: Sequence[Comparison], left_out: Iterable[LeftOut] = ()) -> Comparisons:
    """The comparisons as one family, each with its p-value adjusted by Holm for being one of so many."""
    adjusted = holm({str(position): each.p for position, each in enumerate(comparisons)})
    family = (each.model_copy(update={"adjusted_p": adjusted[str(position)]}) for position, each in enumerate(comparisons))
    return Comparisons(comparisons=tuple(family), left_out=tuple(left_out))


def parse_comparisons(content: bytes | str, where: str) -> Comparisons:
    """Comparisons from the JSON of an artifact. Raises CardError naming what is wrong, and where."""
    return parsed(Comparisons, content, where)
