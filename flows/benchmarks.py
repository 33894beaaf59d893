"""What the recipe asks for beside held-out win rates: AlpacaEval 2, and tasks of lm-evaluation-harness."""

from collections.abc import Mapping
from dataclasses import dataclass

from sppo.alpaca_eval.prompts import PROMPTS_FILE, alpaca_draw
from sppo.generate import Draw
from sppo.runs import Setup
from sppo.store import Artifact
from tasks.alpaca_eval import alpaca_prompts, alpaca_reference, evaluate_alpaca, judge_alpaca
from tasks.benchmark import gather_benchmarks
from tasks.harness import run_harness
from tasks.judge import fitted_judge
from tasks.sample import sample_answers


@dataclass(frozen=True)
class Questions:
    """AlpacaEval's instructions as a policy reads them, and what they are judged with and against."""

    prompts: Artifact
    reference: Artifact
    judge: Artifact | None


def alpaca_questions(setup: Setup, base: Artifact) -> Questions | None:
    """Fetched and rendered before anything is trained; None for a recipe without AlpacaEval."""
    asked = setup.recipe.evaluation.alpaca_eval
    if asked is None:
        return None
    reference = alpaca_reference(setup)
    return Questions(alpaca_prompts(setup, base, reference), reference, fitted_judge(setup, asked.judge))


def alpaca_draws(setup: Setup, questions: Questions | None) -> list[Draw]:
    """What a policy is to answer beside the held-out prompts, with the engine that is loaded for those."""
    return [] if questions is None else [alpaca_draw(setup.recipe, questions.prompts)]


def run_benchmarks(
    setup: Setup, iteration: int, policies: Mapping[int, Artifact], questions: Mapping[int, Questions | None]
) -> dict[str, Artifact]:
    """Scores of pi_t, and what changed from each other policy to it; by their names in the iteration's index.

    policies: as engines load them, by i of pi_i; questions: as each of them reads them. What was measured of an earlier policy
    is committed and costs nothing."""
    made: dict[str, Artifact] = {}
    alpaca: dict[int, Artifact] = {}
    for number, policy in policies.items():
        if (asked := questions[number]) is not None:
            answers, judged, alpaca[number] = measure_alpaca(setup, policy, asked)
            made |= {"alpaca-reference": asked.reference, f"alpaca-prompts.{number}": asked.prompts}
            made |= {
                f"alpaca-answer.{number}": answers,
                f"alpaca-judge.{number}": judged,
                f"alpaca-eval.{number}": alpaca[number],
            }
    harness = {number: run_harness(setup, policy) for number, policy in policies.items() if setup.recipe.evaluation.harness}
    if not alpaca and not harness:
        return {}
    made |= {f"harness.{number}.{entry}": one for number, row in harness.items() for entry, one in enumerate(row)}
    made["benchmark"] = gather_benchmarks(setup, iteration, alpaca, harness)
    return made


def measure_alpaca(setup: Setup, policy: Artifact, questions: Questions) -> tuple[Artifact, Artifact, Artifact]:
    """AlpacaEval 2 of one policy: its answers, the verdicts on them, and the numbers."""
    answers = sample_answers(setup, policy, alpaca_draws(setup, questions))[0]
    prompts = questions.prompts.file(PROMPTS_FILE)
    judged = judge_alpaca(setup, questions.judge, prompts, questions.reference, [answers])[0]
    return answers, judged, evaluate_alpaca(setup, questions.reference, answers, judged)
