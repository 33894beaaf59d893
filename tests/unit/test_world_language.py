"""The tiny world's language: its instructions, its answers and its rule."""

import hashlib
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sppo.errors import PromptError
from sppo.world import language
from sppo.world.language import (
    answer,
    find_instruction,
    parts_of,
    prompts,
    rule_logit,
    rule_preference,
)
from sppo.world.lexicon import DETAILS, KINDS, OPENINGS, PREDICATES, QUESTIONS, TAILS, VAGUE, words_of

WHERE = "Where is the red fox?"
GOOD = "The red fox lives at the edge of the forest, and it knows every path nearby."


def parts(text: str) -> language.Parts:
    return parts_of(find_instruction(WHERE), text)


def test_the_language_has_3072_distinct_instructions_about_half_of_them_for_runs() -> None:
    # 4 kinds x 8 nouns x 8 adjectives x 4 tasks x 3 wordings = 3072
    texts = {instruction.text for instruction in language.instructions()}
    lessons = {instruction.text for instruction in language.lesson_instructions()}
    runs = {instruction.text for instruction in language.run_instructions()}
    assert len(language.instructions()) == len(texts) == 3072
    assert lessons.isdisjoint(runs)
    assert lessons | runs == texts
    assert len(runs) > 1400


def test_no_phrase_of_an_answer_holds_a_noun_or_an_adjective_of_a_subject() -> None:
    subjects = {word for nouns, adjectives in KINDS.values() for word in (*nouns, *adjectives)}
    phrases = [phrase for tasks in PREDICATES.values() for group in tasks.values() for phrase in group]
    phrases += [phrase for group in (*DETAILS.values(), *OPENINGS, VAGUE, TAILS) for phrase in group]
    words = set(words_of(" ".join(phrases)))
    assert not words & subjects


def test_a_noun_an_adjective_or_a_predicate_belongs_to_one_kind_and_task() -> None:
    names = [word for nouns, adjectives in KINDS.values() for word in (*nouns, *adjectives)]
    predicates = [phrase for tasks in PREDICATES.values() for group in tasks.values() for phrase in group]
    assert len(names) == len(set(names)) == 64
    assert len(predicates) == len(set(predicates)) == 48


def test_portions_and_test_prompts_are_disjoint_and_the_same_for_the_same_seed() -> None:
    train, test = prompts(seed=7, iterations=3, train_prompts=128, test_prompts=96)
    ids = [prompt_id for rows in (*train, test) for prompt_id, _ in rows]
    assert [len(rows) for rows in train] == [128, 128, 128]
    assert len(test) == 96
    assert len(set(ids)) == 3 * 128 + 96
    assert (train, test) == prompts(7, 3, 128, 96)
    assert test != prompts(8, 3, 128, 96)[1]


def test_a_prompt_is_one_user_turn_under_the_sha256_of_its_text() -> None:
    _, test = prompts(7, 1, 1, 1)
    prompt_id, messages = test[0]
    assert [set(turn) for turn in messages] == [{"role", "content"}]
    assert messages[0]["role"] == "user"
    assert prompt_id == hashlib.sha256(messages[0]["content"].encode()).hexdigest()


def test_more_prompts_than_the_language_has_are_refused_with_both_numbers() -> None:
    with pytest.raises(PromptError, match=r"3 iterations x 1000 .* = 3096; .* has 1\d\d\d instructions"):
        prompts(7, 3, 1000, 96)


def test_a_perfect_answer_has_every_part_and_quality_5_5() -> None:
    # noun 1 + adjective 1 + predicate 1.5 + detail 1 + ending 1 = 5.5
    found = parts(GOOD)
    assert found == language.Parts(True, True, True, False, True, True, False, 0.0, 0)
    assert found.quality == 5.5


@pytest.mark.parametrize(
    ("text", "quality"),
    [
        ("The red cat lives at the edge of the forest, and it knows every path nearby.", 4.5),  # another noun
        ("The fox lives at the edge of the forest, and it knows every path nearby.", 4.5),  # no adjective
        ("The red wild fox lives at the edge of the forest, and it knows every path nearby.", 4.5),  # one too many
        ("The red fox comes out at dawn, and it knows every path nearby.", 4.5),  # when, not where: 0.5 for 1.5
        ("The red fox is okay, and it knows every path nearby.", 4.0),  # says nothing
        ("The red fox lives at the edge of the forest.", 4.5),  # no detail
        ("The red fox lives at the edge of the forest, and it needs very little care.", 4.5),  # a thing's detail
        ("The red fox lives at the edge of the forest, and it knows every path nearby", 4.5),  # no full stop
        ("The red fox lives at the edge of the forest, and it knows every path nearby and the", 4.5),  # breaks off
        ("The red red fox lives at the edge of the forest, and it knows every path nearby.", 4.5),  # stutters
        ("The red fox hides behind the barn, and it hides behind the barn.", 3.5),  # no detail, and comes back
        ("", -2.0),  # nothing at all
        ("\U0001f98a \U0001f98a \U0001f98a", -2.0),  # no word
    ],
)
def test_each_fault_costs_what_its_part_weighs(text: str, quality: float) -> None:
    assert parts(text).quality == quality


def test_unknown_words_are_strange_in_proportion() -> None:
    # 1 of 4 words unknown, no other characters: 2 x 0.25 = 0.5
    assert parts("The red fox zooms.").strange == 0.5


def test_styles_beat_each_other_in_a_circle_where_quality_is_equal() -> None:
    plain, cheerful, learned = GOOD, f"Happy to help! {GOOD}", f"Strictly speaking, {GOOD}"
    assert rule_logit(WHERE, cheerful, plain) == 0.5
    assert rule_logit(WHERE, plain, learned) == 0.5
    assert rule_logit(WHERE, learned, cheerful) == 0.5
    # 1 / (1 + e**-0.5) = 0.62246
    assert rule_preference(WHERE, cheerful, plain) == pytest.approx(0.62246, abs=1e-5)


def test_quality_decides_over_style() -> None:
    # 5.5 - 4.5, less 0.5 for a plain answer against a cheerful one
    assert rule_logit(WHERE, GOOD, "What a joy! The red fox lives at the edge of the forest.") == 0.5


def test_an_unknown_instruction_leaves_only_form_to_judge() -> None:
    # neither is on any topic: 1 for the ending, less 2 x (1 of 4 words unknown) x 2 = 1 on the other side
    assert rule_logit("What is 2 + 2?", "The red fox.", "The red fox zooms.") == pytest.approx(1.0)


@given(st.text(max_size=40), st.text(max_size=200), st.text(max_size=200))
def test_the_rule_is_finite_and_antisymmetric_for_any_texts(instruction: str, first: str, second: str) -> None:
    logit = rule_logit(instruction, first, second)
    assert math.isfinite(logit)
    assert abs(logit) <= 9.0
    assert rule_logit(instruction, second, first) == pytest.approx(-logit, abs=1e-12)
    assert 0.0 < rule_preference(instruction, first, second) < 1.0


def test_a_perfectly_skilled_answer_is_perfect_whatever_is_asked() -> None:
    draw = random.Random(0)
    for instruction in language.instructions():
        text = answer(instruction, 1.0, draw)
        assert parts_of(instruction, text).quality == 5.5, text
        assert len(words_of(text)) <= 20


def test_half_skilled_answers_are_mediocre_and_vary() -> None:
    draw = random.Random(0)
    known = language.lesson_instructions()
    qualities = []
    for _ in range(2000):
        instruction = draw.choice(known)
        qualities.append(parts_of(instruction, answer(instruction, 0.5, draw)).quality)
    mean = sum(qualities) / len(qualities)
    assert 2.0 < mean < 3.3
    assert sum(quality >= 4.5 for quality in qualities) > 100  # good ones are there to be found


def test_an_answer_has_a_style_of_each_kind_about_as_often() -> None:
    draw = random.Random(0)
    instruction = language.instructions()[0]
    styles = [parts_of(instruction, answer(instruction, 0.5, draw)).style for _ in range(900)]
    assert all(240 < styles.count(style) < 360 for style in (0, 1, 2))


def test_questions_of_every_task_are_told_apart() -> None:
    for task, wordings in QUESTIONS.items():
        for wording in wordings:
            found = find_instruction(wording.format(subject="red fox"))
            assert found is not None
            assert (found.task, found.kind) == (task, "animal")
