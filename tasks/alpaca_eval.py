"""AlpacaEval 2; its answers are drawn with the held-out ones."""

from collections.abc import Sequence

from prefect import task

import sppo.alpaca_eval.judging
import sppo.alpaca_eval.prompts
import sppo.alpaca_eval.results
from sppo.runs import Setup
from sppo.store import Artifact
from sppo.store.artifact import ArtifactFile
from tasks.options import HEAVY, LIGHT
from tasks.reporting import report


@task(name="alpaca-reference", **LIGHT)
def alpaca_reference(setup: Setup) -> Artifact:
    """The evaluation set and its reference model's answers."""
    return setup.store.build(sppo.alpaca_eval.prompts.reference_step(setup.recipe), report)


@task(name="alpaca-prompts", **LIGHT)
def alpaca_prompts(setup: Setup, policy: Artifact, reference: Artifact) -> Artifact:
    """The instructions, rendered for the policy."""
    return sppo.alpaca_eval.prompts.build(setup.store, setup.recipe, policy, reference, report)


@task(name="alpaca-judge", **HEAVY)
def judge_alpaca(
    setup: Setup, judge: Artifact | None, prompts: ArtifactFile, reference: Artifact, answers: Sequence[Artifact]
) -> list[Artifact]:
    """Judge logits of each policy's answers against the reference's."""
    return sppo.alpaca_eval.judging.build(
        setup.store, setup.recipe, setup.hardware, judge, prompts, reference, answers, report, setup.launch
    )


@task(name="alpaca-eval", **LIGHT)
def evaluate_alpaca(setup: Setup, reference: Artifact, answers: Artifact, judged: Artifact) -> Artifact:
    """Win rates of one policy against the reference, with intervals."""
    return setup.store.build(sppo.alpaca_eval.results.step(setup.recipe, reference, answers, judged), report)
