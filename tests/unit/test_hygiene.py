"""Traits of responses: what counts as cut, empty, a refusal, or saying the same, on texts that a person can judge."""

import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sppo.errors import EstimateError
from sppo.hygiene import bigrams, find_traits, is_empty, opens_with_refusal, places, say_the_same, similarity
from sppo.records import Comparison, to_table

ANSWERS = Path(__file__).resolve().parents[3] / "shared" / "data" / "alpaca_eval_responses.parquet"


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "I\u2019m sorry, but I can\u2019t help with that.",
        "  \n**I cannot** provide legal advice.",
        '"As an AI, I have no body."',
        ", as an AI, I can't open files.",
        "As an AI language model, I don't hold opinions. However, ...",
        "I apologize, but I will not write that.",
        "Desculpe, mas não posso ajudar com isso.",
        "Não posso fornecer aconselhamento médico.",
        "Como uma IA, não tenho sentimentos.",
        "INFELIZMENTE, NÃO POSSO FAZER ISSO.",
    ],
)
def test_a_refusal_is_known_by_its_opening(text: str) -> None:
    assert opens_with_refusal(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "I'm sorry to hear about your dog.",
        "As an airline pilot, I have seen worse.",
        "I canned the peaches last week.",
        "Sure! I cannot see why not.",
        "Desculpe a demora. Aqui está a lista:",
        "Comove a todos.",
        "Here is how a model says `I'm sorry, but ...`",
    ],
)
def test_what_only_sounds_like_a_refusal_is_none(text: str) -> None:
    assert not opens_with_refusal(text)


@pytest.mark.skipif(not ANSWERS.exists(), reason="the published models' answers are not on this machine")
def test_the_published_gemma_refuses_far_more_often_than_its_siblings() -> None:
    answers = pq.read_table(ANSWERS)
    shares = {
        name: sum(map(opens_with_refusal, answers[f"SPPO-{name}-PairRM"].to_pylist())) / len(answers)
        for name in ("Gemma-2-9B-It", "Llama-3-Instruct-8B", "Mistral7B")
    }
    assert shares["Gemma-2-9B-It"] == pytest.approx(71 / 805)  # 8.8 %
    assert max(shares["Llama-3-Instruct-8B"], shares["Mistral7B"]) < 0.01


@pytest.mark.parametrize("text", ["", " \n", "...", "**", "\u2014 !?", "\U0001f642"])
def test_a_text_without_letter_or_digit_is_empty(text: str) -> None:
    assert is_empty(text)


@pytest.mark.parametrize("text", ["4", "a", "ok.", "\u662f", "\u0639", "_x_"])
def test_a_letter_or_digit_of_any_script_is_something(text: str) -> None:
    assert not is_empty(text)


def test_similarity_is_the_shared_part_of_the_word_bigrams() -> None:
    # ^the, the fox, fox runs, runs$ against ^the, the fox, fox sits, sits$: 2 shared of 6
    assert similarity("the fox runs", "the fox sits") == pytest.approx(2 / 6)
    assert similarity("The  Fox runs", "the fox\nruns") == 1  # case and white space do not count
    assert similarity("runs the fox", "the fox runs") == pytest.approx(1 / 7)  # order does: only `the fox` is shared
    assert similarity("", "") == 1
    assert similarity("", "a") == 0
    assert bigrams("a") == {(None, "a"), ("a", None)}


def test_one_other_word_of_many_is_near_identical_and_one_of_few_is_not() -> None:
    words = [f"w{number}" for number in range(200)]
    other = [*words[:100], "x", *words[101:]]
    # 201 bigrams each, 199 shared: 199 / 203 = .980
    assert similarity(" ".join(words), " ".join(other)) == pytest.approx(199 / 203)
    assert say_the_same([" ".join(words), " ".join(other)], 0.95).all()
    assert not say_the_same(["The fox runs to the hill.", "The fox runs to the mill."], 0.95)[0, 1]


def test_with_a_threshold_of_one_only_equal_texts_say_the_same() -> None:
    assert say_the_same(["a b", "A b", "a b"], 1.0).tolist() == [[True, False, True], [False, True, False], [True, False, True]]
    assert say_the_same(["a b", "A b", "a b"], 0.99).all()


@given(st.lists(st.text(alphabet="ab .", max_size=12), min_size=1, max_size=5), st.floats(0.1, 1))
def test_saying_the_same_is_mutual_and_agrees_with_the_similarity(texts: list[str], threshold: float) -> None:
    same = say_the_same(texts, threshold)
    assert (same == same.T).all()
    for i, one in enumerate(texts):
        for j, other in enumerate(texts):
            assert same[i, j] == (one == other or (threshold < 1 and similarity(one, other) >= threshold))


def responses(rows: list[tuple[str, int, str, str]]) -> pa.Table:
    columns = list(zip(*rows, strict=True))
    names = ["prompt_id", "k", "text", "finish_reason"]
    return pa.table(dict(zip(names, columns, strict=True))).cast(
        pa.schema([("prompt_id", pa.string()), ("k", pa.int32()), ("text", pa.string()), ("finish_reason", pa.string())])
    )


def comparisons(sizes: dict[str, int]) -> pa.Table:
    return to_table(Comparison, [Comparison(name, size, [0.0] * size * size) for name, size in sizes.items()])


def test_traits_follow_the_order_of_the_comparisons_and_of_k() -> None:
    table = responses(
        [
            ("b", 1, "cut off", "length"),
            ("a", 2, "as an ai", "stop"),
            ("a", 0, "x", "stop"),
            ("b", 0, "!", "stop"),
            ("a", 1, "x", "stop"),
        ]
    )
    found = find_traits(table, comparisons({"a": 3, "b": 2}), 0.95)
    assert found.cut.tolist() == [False, False, False, False, True]
    assert found.empty.tolist() == [False, False, False, True, False]
    assert found.refusal.tolist() == [False, False, True, False, False]
    assert found.alike[:9].reshape(3, 3).tolist() == [[True, True, False], [True, True, False], [False, False, True]]
    assert found.alike[9:].reshape(2, 2).tolist() == [[True, False], [False, True]]


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([("a", 0), ("a", 1), ("a", 2)], "prompt a was ranked with 2 responses and has 3; expected the same: rank again"),
        ([("a", 0)], "prompt a was ranked with 2 responses and has 1"),
        ([("a", 0), ("a", 0)], "prompt a has a response numbered 0 twice; expected 0 to 1, each once: generate again"),
        ([("a", 0), ("a", 5)], "prompt a has a response numbered 5; expected 0 to 1"),
        ([("a", 0), ("a", 1), ("z", 0)], "prompt z has responses and was not ranked"),
    ],
)
def test_responses_that_are_not_those_that_were_ranked_are_refused(rows: list[tuple[str, int]], told: str) -> None:
    with pytest.raises(EstimateError, match=told):
        places(responses([(name, k, "x", "stop") for name, k in rows]), comparisons({"a": 2}))


def test_long_texts_cost_no_more_than_their_length() -> None:
    draw = np.random.default_rng(0)
    words = np.array([f"w{number}" for number in range(5000)])

    def seconds(length: int) -> float:
        texts = [" ".join(draw.choice(words, length)) for _ in range(5)]
        started = time.process_time()
        say_the_same(texts, 0.95)
        return time.process_time() - started

    seconds(1000)
    short = min(seconds(10_000) for _ in range(3))
    long = min(seconds(80_000) for _ in range(3))
    assert long < 24 * short  # 8 times as long; a quadratic comparison would take 64 times
