"""What a text is like: repetition, loops and distinct n-grams, on texts that a person can count."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sppo.checks.answers import Answers
from sppo.checks.measures import policy_measures
from sppo.checks.texts import distinct, ends_in_loop, repetition
from sppo.recipe.evaluation import Checks

ANSWERS = Path(__file__).resolve().parents[3] / "shared" / "data" / "alpaca_eval_responses.parquet"


def test_repetition_is_the_share_of_4_grams_that_stood_there_before() -> None:
    # a b c d a b c d: abcd bcda cdab dabc abcd; 4 of 5 are distinct
    assert repetition("a b c d a b c d") == pytest.approx(1 / 5)
    assert repetition("A b c d\na  B c d") == pytest.approx(1 / 5)
    assert repetition("a b c d e f g h") == 0
    assert repetition("a b c") == 0
    # ten times the same word: 7 4-grams, one of them distinct
    assert repetition("no " * 10) == pytest.approx(6 / 7)


@pytest.mark.parametrize(
    "text",
    [
        "It is good. " + "And so it goes on. " * 3,
        "The list: " + "apple, pear, " * 4 + "apple, pe",  # cut within the piece
        "ー" * 40,
        "Well, " + "na" * 20,
        "Yes.\n" + "x y z \n" * 8 + "\n\n",
        "word " + "a sentence that is rather long, of fifty letters. " * 3,
    ],
)
def test_a_text_that_ends_in_one_piece_over_and_over_ends_in_a_loop(text: str) -> None:
    assert ends_in_loop(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "...",
        "And so it goes on. And so it goes on.",  # twice is an emphasis
        "ha ha ha ha ha",  # three times, but short
        "over and over " * 5 + "and then it ends.",
        "| a | b |\n|---|---|---|---|",
        "1. red\n2. red\n3. red\n4. red\n5. red\n6. red\n7. red\n8. red",
        "=" * 39,
    ],
)
def test_what_repeats_otherwise_is_no_loop(text: str) -> None:
    assert not ends_in_loop(text)


@given(st.text(min_size=1, max_size=60), st.text(min_size=14, max_size=100), st.integers(3, 5), st.integers(0, 13))
def test_a_loop_is_found_whatever_is_repeated_and_wherever_it_is_cut(before: str, piece: str, times: int, more: int) -> None:
    text = before + piece * times + piece[:more]
    # 3 x 14 characters; what white space at the end is taken away with it may leave fewer than three pieces
    assert ends_in_loop(text) or len(text.rstrip()) < len(before) + 3 * len(piece)


def test_distinct_n_counts_an_n_gram_once_however_many_prompts_have_it() -> None:
    texts = ["a b c", "a b d", "a b", "e f g h"]
    owners = np.array([0, 1, 2, 3])
    # first 3 words, the third text is too short: bigrams ab bc, ab bd, ef fg: 5 of 6 distinct; words abc abd efg: 7 of 9
    two = distinct(texts, owners, 4, 2, 3)
    one = distinct(texts, owners, 4, 1, 3)
    assert two is not None
    assert one is not None
    assert np.nanmean(two) == pytest.approx(5 / 6)
    assert np.nanmean(one) == pytest.approx(7 / 9)
    assert np.isnan(two).tolist() == [False, False, True, False]


def test_what_a_prompt_adds_to_distinct_n_is_found_by_leaving_it_out() -> None:
    texts = ["a b c", "a b d", "e f g"]
    values = distinct(texts, np.arange(3), 3, 2, 3)
    # without the first: ab bd ef fg, 4 of 4; so without the second; without the third: ab bc bd, 3 of 4; whole: 5 of 6
    # influences (3 - 1)(5/6 - 1), the same, (3 - 1)(5/6 - 3/4): -1/3, -1/3, 1/6, of mean -1/6
    assert values == pytest.approx([5 / 6 - 1 / 6, 5 / 6 - 1 / 6, 5 / 6 + 1 / 3])


def test_distinct_n_of_fewer_than_two_prompts_is_none() -> None:
    assert distinct(["a b c", "a"], np.array([0, 1]), 2, 2, 3) is None
    assert distinct(["a b c", "a b d"], np.array([0, 0]), 2, 2, 3) is None


def test_a_text_is_as_distinct_as_any_other_of_its_length() -> None:
    # the long text repeats itself after the first four words, where nobody looks
    long, short = "a b c d" + " a b c d" * 50, "e f g h"
    values = distinct([long, short], np.arange(2), 2, 1, 4)
    assert values is not None
    assert values.mean() == 1


@pytest.mark.skipif(not ANSWERS.exists(), reason="the published models' answers are not on this machine")
def test_the_published_models_answers_have_the_known_oddities() -> None:
    answers = pq.read_table(ANSWERS)
    found = {}
    for model in answers.column_names[2:]:
        texts = tuple(answers[model].to_pylist())
        each = Answers(len(texts), np.arange(len(texts)), texts)
        found[model] = policy_measures(each, Checks(), 500, 0)
    refusals = {model: numbers["refusals"].value for model, numbers in found.items()}
    assert round(refusals["SPPO-Gemma-2-9B-It-PairRM"], 3) == 0.088
    assert max(refusals["SPPO-Llama-3-Instruct-8B-PairRM"], refusals["SPPO-Mistral7B-PairRM"]) < 0.01
    # the two ends of the interval keep the siblings apart
    assert found["SPPO-Gemma-2-9B-It-PairRM"]["refusals"].interval().low > 0.06
    assert found["SPPO-Llama-3-Instruct-8B-PairRM"]["refusals"].interval().high < 0.01
    # mean characters as the leaderboard has them
    assert round(found["SPPO-Gemma-2-9B-It-PairRM"]["characters"].value) == 1803
    assert round(found["SPPO-Llama-3-Instruct-8B-PairRM"]["characters"].value) == 2066
    # five answers of the model that was trained by iterated DPO run on in a loop, and none of SPPO's
    assert round(found["Snorkel-Mistral-PairRM-DPO"]["loops"].value * 805) == 5
    assert all(found[model]["loops"].value == 0 for model in found if model.startswith("SPPO"))
