"""Gates on judged answers of the tiny world: an honest judge's choice passes, that of a judge of length alone does not.

Policies are stood in for by choosing among answers of the language: what a judge prefers is what its policy learns to write.
"""

import random
from collections.abc import Callable

import pytest

from sppo import duel, rank
from sppo.checks import check_report, measure
from sppo.checks.reading import read_material
from sppo.evaluate import judge_names
from sppo.gates import Verdict, decide
from sppo.hardware import Hardware
from sppo.recipe import Endpoint, EndpointJudge, Judge, Recipe, WorldRuleJudge
from sppo.recipe.evaluation import Checks, Gates
from sppo.records import Prompt, to_table
from sppo.store import Artifact, ArtifactFile, Identity, Outcome, Step, Store, Workspace
from sppo.world.language import Instruction, answer, parts_of, run_instructions

PROMPTS, ANSWERS = 40, 3
RULE = WorldRuleJudge(kind="world-rule")
Choice = Callable[[Instruction, list[str]], str]


@pytest.fixture
def of_length(length_judge: str) -> EndpointJudge:
    source = Endpoint(url=length_judge, concurrency=4)
    return EndpointJudge(kind="endpoint", source=source, model="length", template="{prompt}|{first}|{second}")


def any_of(_: Instruction, drawn: list[str]) -> str:
    return drawn[0]


def best_of(instruction: Instruction, drawn: list[str]) -> str:
    return max(drawn, key=lambda text: parts_of(instruction, text).quality)


def longest_of(_: Instruction, drawn: list[str]) -> str:
    return max(drawn, key=len)


@pytest.fixture
def decided(
    store: Store, tiny: Recipe, cpu: Hardware, make_answers: Callable[..., Artifact]
) -> Callable[[Judge, Choice], Verdict]:
    """The verdict on pi_1, which answers as `choice` prefers of four, trained under this judge; the rule is independent."""
    instructions = dict(enumerate(random.Random(1).sample(run_instructions(), PROMPTS)))
    messages = {f"{number:02}": [{"role": "user", "content": each.text}] for number, each in instructions.items()}

    def split(workspace: Workspace) -> Outcome:
        rows = [Prompt(name, turns, [1]) for name, turns in messages.items()]
        workspace.add_table(to_table(Prompt, rows), "test.parquet")
        return Outcome("prompts")

    def policy(choice: Choice, seed: int) -> Artifact:
        draw = random.Random(seed)
        texts = {
            f"{number:02}": [choice(each, [answer(each, 0.5, draw) for _ in range(4)]) for _ in range(ANSWERS)]
            for number, each in instructions.items()
        }
        return make_answers(texts, stage="sample")

    def verdict(judge: Judge, choice: Choice) -> Verdict:
        generation = tiny.generation.model_copy(update={"responses": ANSWERS})
        evaluation = tiny.evaluation.model_copy(update={"judges": (judge, RULE)})
        recipe = tiny.model_copy(update={"judge": judge, "generation": generation, "evaluation": evaluation})
        prompts: ArtifactFile = store.build(Step(Identity("split", 1, {}, {}), split)).file("test.parquet")
        base, new = policy(any_of, 2), policy(choice, 3)
        duels = duel.build(store, recipe, cpu, [None, None], prompts, new, [base])
        ranked = store.build(rank.step(recipe, cpu, None, prompts, base))
        material = read_material([base, new], judge_names(recipe), duels, (base, ranked), recipe.evaluation.sampling)
        assert material.plain
        measures = measure(material, Checks(distinct_words=8), 2000, recipe.seed)
        assert set(check_report(measures).matrices) == {"near_ties", "cyclic_triples"}
        return decide(measures, Gates())

    return verdict


def test_an_honest_judge_passes(decided: Callable[[Judge, Choice], Verdict]) -> None:
    verdict = decided(RULE, best_of)
    assert verdict.passed, verdict.summary()


def test_a_judge_of_length_alone_is_caught(decided: Callable[[Judge, Choice], Verdict], of_length: EndpointJudge) -> None:
    verdict = decided(of_length, longest_of)
    failed = [decision.gate for decision in verdict.decisions if not decision.passed]
    assert failed[:3] == ["independent_judge", "equal_length", "length"], verdict.summary()
    assert verdict.decisions[0].passed  # its own win rate rises
