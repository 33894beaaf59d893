"""What a model reads: shots by id and in that order, questions without them, and a system turn that no template loses."""

from dataclasses import replace
from typing import Any

import pytest

from sppo.errors import EvaluationError
from sppo.portuguese.prompts import Folding, asked_rows, question, shots, target, text, turns
from sppo.portuguese.tasks import TASKS

EXAM = replace(TASKS["sppo_pt_enem"], shots=2, shot_ids=("c", "a", "b"), description="Responda com uma letra.\n\n")


def exam_row(row_id: str, key: str) -> dict[str, Any]:
    return {
        "id": row_id,
        "question": f"Quanto é {row_id}?\n",
        "choices": {"label": ["A", "B"], "text": ["um", "dois "]},
        "answerKey": key,
    }


ROWS = [exam_row("a", "A"), exam_row("b", "B"), exam_row("c", "B"), exam_row("d", "A")]


def test_shots_are_those_of_the_first_ids_in_their_order_and_no_named_row_is_asked() -> None:
    assert [row["id"] for row in shots(EXAM, ROWS)] == ["c", "a"]
    assert [row["id"] for row in asked_rows(EXAM, ROWS)] == ["d"], "b is named, though not shown"
    assert asked_rows(replace(EXAM, shots_are_tested=True), ROWS) == ROWS


def test_shots_may_be_numbers_of_rows_or_simply_the_first_rows() -> None:
    assert shots(replace(EXAM, shot_column=None, shot_ids=(3, 1)), ROWS) == [ROWS[3], ROWS[1]]
    assert shots(replace(EXAM, shot_column=None, shot_ids=()), ROWS) == ROWS[:2]


def test_a_shot_that_is_not_there_is_named() -> None:
    with pytest.raises(
        EvaluationError, match=r"split train of .*enem_challenge has 2 rows and none with id 'c'; expected all 2"
    ):
        shots(EXAM, ROWS[:2])
    with pytest.raises(EvaluationError, match="none with the number 3"):
        shots(replace(EXAM, shot_column=None, shot_ids=(3, 1)), ROWS[:2])


def test_a_question_lists_its_alternatives_and_keeps_its_own_white_space() -> None:
    assert question(EXAM, ROWS[0]) == "Pergunta:\nQuanto é a?\n\nAlternativas:\nA. um\nB. dois\nResposta correta:"
    assert question(EXAM, {**ROWS[0], "question": "{choices} {0}"}).startswith("Pergunta:\n{choices} {0}\n")


def test_a_text_prompt_is_description_shots_and_question() -> None:
    said = text(EXAM, [ROWS[2]], ROWS[3])
    assert said == (
        "Responda com uma letra.\n\n"
        "Pergunta:\nQuanto é c?\n\nAlternativas:\nA. um\nB. dois\nResposta correta: B\n\n"
        "Pergunta:\nQuanto é d?\n\nAlternativas:\nA. um\nB. dois\nResposta correta:"
    )


def test_turns_are_stripped_and_the_description_is_the_system_turn() -> None:
    assert [turn["role"] for turn in turns(EXAM, ROWS[:1], ROWS[3])] == ["system", "user", "assistant", "user"]
    assert turns(EXAM, ROWS[:1], ROWS[3])[0]["content"] == "Responda com uma letra."


def test_targets_have_the_specifications_words() -> None:
    assert target(TASKS["sppo_pt_assin2_sts"], {"relatedness_score": 4.699999809265137}) == "4,7"
    assert target(TASKS["sppo_pt_faquad_nli"], {"label": 1}) == "Sim"
    assert target(TASKS["sppo_pt_hatebr"], {"label": 0}) == "Não"
    assert target(TASKS["sppo_pt_hatebr"], {"label": True}) == "Sim"
    assert target(TASKS["sppo_pt_tweetsentbr"], {"label": "Neutral"}) == "Neutro"
    with pytest.raises(EvaluationError, match="has 2 in column entailment_judgment; expected one of 0, 1"):
        target(TASKS["sppo_pt_assin2_rte"], {"entailment_judgment": 2})


TURNS = [{"role": "system", "content": "Seja breve."}, {"role": "user", "content": "Olá?"}]


def joined(conversation: list[dict[str, str]], mark: str = "|") -> str:
    return mark.join(f"{turn['role']}: {turn['content']}" for turn in conversation)


def test_a_template_that_keeps_the_system_turn_is_left_alone() -> None:
    keep = Folding(joined)
    assert keep(TURNS, mark="; ") == "system: Seja breve.; user: Olá?"
    assert not keep.folds


def test_a_system_turn_that_the_template_would_drop_comes_before_the_first_question() -> None:
    asked: list[int] = []

    def dropping(conversation: list[dict[str, str]]) -> str:  # as lm-evaluation-harness does, in silence
        asked.append(len(conversation))
        return joined([turn for turn in conversation if turn["role"] != "system"])

    fold = Folding(dropping)
    assert fold(TURNS) == "user: Seja breve.\n\nOlá?"
    assert fold(TURNS) == "user: Seja breve.\n\nOlá?"
    assert fold(TURNS[1:]) == "user: Olá?"
    assert asked == [2, 1, 1, 1], "what it does is found out once"


def test_a_server_that_renders_for_itself_is_believed_unless_told() -> None:
    assert Folding(list)(TURNS) == TURNS
    assert Folding(list, always=True)(TURNS) == [{"role": "user", "content": "Seja breve.\n\nOlá?"}]
