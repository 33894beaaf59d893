"""The nine tasks are the specification's, field by field, and what is asked is its prompt, byte for byte."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from jinja2 import Environment, StrictUndefined

from sppo.errors import EvaluationError
from sppo.portuguese import INCLUDE, TAG, prompts
from sppo.portuguese.specification import BEFORE_ANSWER, BETWEEN_SHOTS, MAX_NEW_TOKENS, STOP, LeaderboardTask
from sppo.portuguese.tasks import TASKS, task_named

SPECIFICATION = Path(__file__).resolve().parents[3] / "shared" / "data" / "open_pt_llm_leaderboard.json"
FIRST_ROWS = "first rows"
ROW_NUMBER = "row index"
LINES = "{{lines 'LABEL. TEXT' of choices.label, choices.text}}"
VALUES: dict[str, list[Any]] = {
    "answerKey": ["A", "D"],
    "entailment_judgment": [0, 1],
    "relatedness_score": [3.5, 1.0, 4.699999809265137],
    "label": [0, 1],
}


def specified() -> dict[str, dict[str, Any]]:
    if not SPECIFICATION.is_file():
        pytest.skip("the specification is not here")
    found: dict[str, dict[str, Any]] = json.loads(SPECIFICATION.read_text(encoding="utf-8"))["tasks"]
    return found


def rendered(template: str, row: dict[str, Any]) -> str:
    """What the specification's own template makes of a row."""
    loop = "{% for label in choices.label %}{{ label }}. {{ choices.text[loop.index0] }}{{ '\n' if not loop.last }}{% endfor %}"
    return Environment(undefined=StrictUndefined).from_string(template.replace(LINES, loop)).render(**row)


def rows_of(task: LeaderboardTask) -> list[dict[str, Any]]:
    """Made rows with every column of a task, one for each kind of target."""
    values = ["Positive", "Negative", "Neutral"] if task.name == "sppo_pt_tweetsentbr" else VALUES[task.target_column]
    rows = []
    for number, value in enumerate(values):
        row: dict[str, Any] = {column: f'Ã {column} {{{number}}} de "quê"?' for column in task.columns}
        row["choices"] = {"label": list(task.answers), "text": [f"{letter} é {number}" for letter in task.answers]}
        rows.append({**row, task.target_column: value})
    return rows


def answered(name: str, facts: dict[str, Any], row: dict[str, Any]) -> str:
    """The specification's target; only of STS it says in words what it is."""
    if name == "assin2_sts":
        return f"{row['relatedness_score']:.1f}".replace(".", ",")
    return rendered(facts["doc_to_target"], row)


def test_each_task_has_the_specifications_facts() -> None:
    theirs = specified()
    assert [task.leaderboard_name for task in TASKS.values()] == list(theirs)
    for task in TASKS.values():
        facts = dict(theirs[task.leaderboard_name])
        key, ids = facts.pop("fewshot_key"), facts.pop("fewshot_ids")
        named = ids if key in (FIRST_ROWS, ROW_NUMBER) else ids[1]  # by column, the column's name comes first
        assert list(task.shot_ids) == (named or [])
        assert task.shot_column == (None if key in (FIRST_ROWS, ROW_NUMBER) else key)
        reading = facts.pop("filter")
        if reading.startswith("label"):
            assert (task.reading, list(task.answers)) == ("label", reading.removeprefix("label ").split("/"))
        elif reading.startswith("choice"):
            assert (task.reading, "".join(task.answers)) == ("choice", "ABCD" if task.name == "sppo_pt_oab" else "ABCDE")
        else:
            assert (task.reading, reading) == ("number", "number 1..5")
        assert facts.pop("doc_to_text").replace(LINES, "{alternatives}").replace("{{", "{").replace("}}", "}") == task.question
        facts.pop("doc_to_target")  # compared below, by what it makes of rows
        config = task.table.config
        assert facts == {
            "card_name": task.card_name,
            "card_dataset_type": task.card_type,
            "dataset": task.table.dataset if config is None else f"{task.table.dataset}:{config}",
            "split": task.test_split,
            "fewshot_split": task.shot_split,
            "num_fewshot": task.shots,
            "exclude_fewshot_from_test": not task.shots_are_tested,
            "description": task.description,
            "metric": task.metric,
            "max_gen_toks": MAX_NEW_TOKENS,
            "until": list(STOP),
            "fewshot_delimiter": BETWEEN_SHOTS,
            "target_delimiter": BEFORE_ANSWER,
        }


def test_each_prompt_is_the_specifications_byte_for_byte_as_text_and_folded_into_the_first_turn() -> None:
    theirs = specified()
    for task in TASKS.values():
        facts = theirs[task.leaderboard_name]
        *shown, asked = rows_of(task)
        questions = [rendered(facts["doc_to_text"], row) for row in (*shown, asked)]
        targets = [answered(task.leaderboard_name, facts, row) for row in shown]
        told = "".join(f"{text} {target}\n\n" for text, target in zip(questions[:-1], targets, strict=True))
        assert prompts.text(task, shown, asked) == facts["description"] + told + questions[-1]
        turns = prompts.folded(prompts.turns(task, shown, asked))
        contents = [text for pair in zip(questions[:-1], targets, strict=True) for text in pair] + [questions[-1]]
        contents[0] = facts["description"] + contents[0]  # which ends with an empty line
        assert [turn["content"] for turn in turns] == contents
        assert [turn["role"] for turn in turns] == ["user", "assistant"] * len(shown) + ["user"]
        assert prompts.target(task, asked) == answered(task.leaderboard_name, facts, asked)


def test_the_task_files_for_the_library_name_the_nine_and_nothing_else() -> None:
    class Plain(yaml.SafeLoader):
        pass

    Plain.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))
    found = [yaml.load(path.read_text(encoding="utf-8"), Loader=Plain) for path in INCLUDE.iterdir()]
    assert {task["task"] for task in found} == TASKS.keys()
    assert {(task["tag"], task["class"]) for task in found} == {(TAG, "sppo.workers.leaderboard.PortugueseTask")}


def test_an_unknown_task_is_told_which_there_are() -> None:
    with pytest.raises(EvaluationError, match="no Portuguese task 'enem'; expected one of sppo_pt_enem, sppo_pt_bluex"):
        task_named("enem")
