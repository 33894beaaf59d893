"""Duels' identities and their checks before a judge is loaded. Worker processes: tests/workers/test_rank.py."""

from collections.abc import Callable

import pytest

from sppo import duel
from sppo.errors import JudgeError
from sppo.hardware import Hardware
from sppo.recipe import Recipe, WorldRuleJudge
from sppo.store import Artifact, ArtifactFile, Store

MakePrompts = Callable[[list[str]], ArtifactFile]
MakeAnswers = Callable[..., Artifact]


@pytest.fixture
def by_rule(tiny: Recipe) -> Recipe:
    evaluation = tiny.evaluation.model_copy(update={"judges": (WorldRuleJudge(kind="world-rule"),)})
    return tiny.model_copy(update={"evaluation": evaluation})


def test_policies_that_answered_different_prompts_are_named(
    store: Store, by_rule: Recipe, cpu: Hardware, make_prompts: MakePrompts, make_answers: MakeAnswers
) -> None:
    new = make_answers({"a": ["x"], "b": ["x"]}, stage="sample")
    old = make_answers({"a": ["y"]}, stage="sample")
    with pytest.raises(JudgeError, match="answered different prompts, 1 in all, the first b"):
        duel.build(store, by_rule, cpu, [None], make_prompts(["a", "b"]), new, [old])


def test_answers_to_unknown_prompts_are_named(
    store: Store, by_rule: Recipe, cpu: Hardware, make_prompts: MakePrompts, make_answers: MakeAnswers
) -> None:
    new, old = (make_answers({"q": [text]}, stage="sample") for text in ("x", "y"))
    with pytest.raises(JudgeError, match=r"prompt q is not in train-1\.parquet"):
        duel.build(store, by_rule, cpu, [None], make_prompts(["a"]), new, [old])


def test_a_judge_for_each_of_the_recipes_is_needed(
    store: Store, tiny: Recipe, cpu: Hardware, make_prompts: MakePrompts, make_answers: MakeAnswers
) -> None:
    answers = make_answers({"a": ["x"]}, stage="sample")
    with pytest.raises(JudgeError, match="1 judge artifacts for the 2 judges of recipe tiny"):
        duel.build(store, tiny, cpu, [None], make_prompts(["a"]), answers, [answers])
