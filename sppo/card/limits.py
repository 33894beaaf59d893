"""What a card's numbers do not show, said of this card: what was not measured, and what the measured leaves open."""

from collections.abc import Iterator

from sppo.card.contents import Card
from sppo.card.front_matter import indexed

LENGTH_CONTROLLED = "length-controlled"


def limits(card: Card) -> Iterator[str]:
    """Plain sentences, the most important first."""
    yield from _of_judges(card)
    rate = card.report.iterations[-1].judges[0].against[0]
    yield (
        f"The {rate.prompts} held-out prompts come from the same source as those that were trained on. Other subjects, other "
        "languages and conversations of several turns were not asked about."
    )
    yield (
        "Intervals are over prompts alone. One training run with one seed stands behind every number; another seed, other "
        "samples or another judge would move them too."
    )
    yield from _of_length(card)
    yield from _of_benchmarks(card)
    yield "Whether the policy is safe, true or fair was not measured. What the base model's own card warns of still holds."


def _of_judges(card: Card) -> Iterator[str]:
    names = [judge.judge for judge in card.report.iterations[-1].judges]
    asked = dict(zip(names, card.recipe.evaluation.judges, strict=True))
    followed = [name for name, judge in asked.items() if judge == card.recipe.judge]
    independent = [name for name in names if name not in followed]
    if followed:
        yield (
            f"{followed[0]} is the judge that training followed: its win rate says how well the policy learned to please it, "
            "and would rise as well for a policy that exploits its faults."
        )
    if independent:
        yield f"Not followed by training: {', '.join(independent)}. None of the judges is a person."
    else:
        yield "No independent judge was asked, and no person."


def _of_length(card: Card) -> Iterator[str]:
    first, last = card.mean_tokens[0], card.mean_tokens[-1]
    controlled = any(LENGTH_CONTROLLED in score.name for score in card.scores.scores if score.policy == card.iteration)
    at_equal_length = card.checks is not None and any(
        judge.against and judge.against[-1].equal_length is not None for judge in card.checks.judges
    )
    if not controlled and not at_equal_length:
        yield (
            f"Win rates are not corrected for length, and many judges prefer longer answers: the mean went from "
            f"{first.value:.1f} to {last.value:.1f} tokens."
        )


def _of_benchmarks(card: Card) -> Iterator[str]:
    groups = {score.group for score in card.scores.scores if score.policy == card.iteration}
    if not groups:
        yield "No benchmark was run on this policy: the numbers above compare it with its own earlier iterations only."
    own = sorted({score.group for score in indexed(card) if score.source is None})
    if own:
        yield (
            f"{', '.join(own)}: measured by this run's own evaluation, not by whoever keeps a leaderboard of that name; "
            "prompts, filters and libraries may differ from theirs."
        )
    published = sorted({score.source.name for score in indexed(card) if score.source is not None})
    if published:
        yield f"Copied as published, and not measured here: scores of {', '.join(published)}."
