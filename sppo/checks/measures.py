"""All that is measured of an iteration, with what it is over resampled prompts: what reports show and gates decide on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from sppo.checks.answers import Answers, answer_ratios, length_quantiles, prompts_of, read_answers
from sppo.checks.divergence import Divergence, read_divergence
from sppo.checks.duels import DuelMeasures, measure_duel
from sppo.checks.matrices import matrix_ratios
from sppo.checks.resampling import Resampled, resampled
from sppo.errors import EvaluationError
from sppo.preferences import Verdicts
from sppo.recipe.evaluation import Checks


@dataclass(frozen=True)
class JudgeMeasures:
    """Of pi_t's answers under one judge."""

    judge: str
    independent: bool
    """Not the one that training followed."""
    against: tuple[DuelMeasures, ...]
    """pi_0 .. pi_(t-1)."""


@dataclass(frozen=True)
class Measures:
    """Of iteration t."""

    iteration: int
    policies: tuple[Mapping[str, Resampled], ...]
    """pi_0 .. pi_t: by the names in `sppo.checks.report.NUMBERS`; without those that have nothing to be counted."""
    judges: tuple[JudgeMeasures, ...]
    """The training judge first."""
    matrices: Mapping[str, Resampled]
    """Of the K x K matrices that pi_t was trained on: near_ties and cyclic_triples."""
    divergences: Mapping[int, Divergence]
    """Of pi_t from each policy by which its answers were scored."""


@dataclass(frozen=True)
class Material:
    """What an iteration's stages have stored."""

    samples: Sequence[pa.Table]
    """`Response` rows of pi_0 .. pi_t, to the same held-out prompts."""
    duels: Mapping[str, Sequence[pa.Table]]
    """By judge, the training judge first: `Duel` rows of pi_t against pi_0 .. pi_(t-1)."""
    matrices: Sequence[Verdicts] = ()
    """What the training judge said of the responses that pi_t was trained on."""
    scores: Mapping[int, pa.Table] | None = None
    """By policy: rows of (prompt_id, k, logprobs), its log-probs of pi_t's held-out answers."""
    plain: bool = False
    """Whether pi_t's held-out answers were drawn at temperature 1 and top-p 1."""


def measure(material: Material, checks: Checks, resamples: int, seed: int) -> Measures:
    """All measures of an iteration; every number over the same resampled prompts.

    Raises EvaluationError if policies or judges were given other prompts or answers than each other."""
    iteration = len(material.samples) - 1
    for judge, duels in material.duels.items():
        if len(duels) != iteration:
            raise EvaluationError(
                f"judge {judge} has {len(duels)} duels of pi_{iteration}; expected {iteration}, against each policy before it"
            )
    prompt_ids = prompts_of(material.samples[-1])
    answers = [read_answers(samples, prompt_ids) for samples in material.samples]
    judges = tuple(
        JudgeMeasures(
            judge,
            position > 0,
            tuple(
                measure_duel(duel, prompt_ids, answers[-1], other, checks.matched_length, resamples, seed)
                for duel, other in zip(duels, answers[:-1], strict=True)
            ),
        )
        for position, (judge, duels) in enumerate(material.duels.items())
    )
    divergences = {
        policy: read_divergence(material.samples[-1], scores, prompt_ids, material.plain, resamples, seed)
        for policy, scores in (material.scores or {}).items()
    }
    return Measures(
        iteration=iteration,
        policies=tuple(policy_measures(each, checks, resamples, seed) for each in answers),
        judges=judges,
        matrices=resampled(matrix_ratios(material.matrices, checks.near_tie), resamples, seed) if material.matrices else {},
        divergences=divergences,
    )


def policy_measures(answers: Answers, checks: Checks, resamples: int, seed: int) -> dict[str, Resampled]:
    """Of one policy's answers, or of any texts."""
    return {
        **resampled(answer_ratios(answers, checks), resamples, seed),
        **length_quantiles(answers, resamples, seed),
    }
