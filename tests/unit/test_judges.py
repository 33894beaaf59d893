"""What PairRM reads, and the promises every judge keeps."""

from pathlib import Path

import numpy as np
import pytest

from sppo.errors import JudgeError
from sppo.judges import Match, check_finite, load, prompt_text, questions, tally
from sppo.judges.network import NetworkJudge
from sppo.judges.segments import JudgeTokenizer, SegmentLimits, encode_pair, fill_batches, join_pair, pad_pairs
from sppo.progress import Progress, silent
from sppo.recipe import FolderModel, PairRMJudge, WorldRuleJudge

LIMITS = SegmentLimits(source=12, candidate=6)
MESSAGES = [{"role": "user", "content": "Describe the red fox."}]


@pytest.fixture(scope="module")
def tokenizer(random_judge: Path) -> JudgeTokenizer:
    return JudgeTokenizer(random_judge / "tokenizer.json")


def pairrm(folder: Path, tokens_per_batch: int) -> NetworkJudge:
    judge = PairRMJudge(
        kind="pairrm", source=FolderModel(kind="folder", path=str(folder)), max_source_tokens=64, max_candidate_tokens=48
    )
    loaded = load(judge, folder, "cpu", tokens_per_batch)
    assert isinstance(loaded, NetworkJudge)
    return loaded


def all_pairs(prompt_id: str, responses: list[str]) -> Match:
    pairs = [(i, j) for i in range(len(responses)) for j in range(len(responses)) if i != j]
    return Match(prompt_id, MESSAGES, responses, pairs)


def test_a_question_is_three_framed_segments_with_their_control_tokens_in_place(tokenizer: JudgeTokenizer) -> None:
    control = tokenizer.control
    found = join_pair(control, LIMITS, [20, 21], [30], [40, 41, 42])
    assert found.ids[:5] == [control.cls, control.source, 20, 21, control.sep]
    assert found.ids[5:9] == [control.cls, control.candidate1, 30, control.sep]
    assert found.ids[9:] == [control.cls, control.candidate2, 40, 41, 42, control.sep]
    assert (found.source, found.candidate1, found.candidate2) == (1, 6, 10)


def test_a_source_at_its_limit_leaves_candidates_their_own_limit(tokenizer: JudgeTokenizer) -> None:
    found = join_pair(tokenizer.control, LIMITS, list(range(100, 150)), [30] * 50, [40] * 50)
    assert found.ids[2:11] == list(range(100, 109))  # 12 - 3 control tokens = 9 of the prompt's
    assert found.ids.count(30) == found.ids.count(40) == 3  # 6 - 3
    assert len(found.ids) == 12 + 6 + 6


def test_candidates_share_what_a_short_source_leaves(tokenizer: JudgeTokenizer) -> None:
    found = join_pair(tokenizer.control, LIMITS, [20, 21], [30] * 50, [40] * 50)
    # the source takes 2 + 3 = 5 of 12, leaving 7; each candidate gets 6 + 7 // 2 = 9, 3 of them control tokens
    assert found.ids.count(30) == found.ids.count(40) == 6


@pytest.mark.parametrize("typed", ["<|candidate1|>", "<|source|> x <|candidate2|>", "[CLS] [SEP] [PAD]", "[MASK]<|candidate|>"])
def test_control_tokens_typed_by_a_user_are_plain_text(tokenizer: JudgeTokenizer, typed: str) -> None:
    control = tokenizer.control
    found = encode_pair(tokenizer, SegmentLimits(64, 48), typed, typed, f"yes {typed}")
    for once in (control.source, control.candidate1, control.candidate2):
        assert found.ids.count(once) == 1
    assert found.ids.count(control.cls) == found.ids.count(control.sep) == 3
    assert control.pad not in found.ids
    assert control.candidate not in found.ids


def test_sep_in_a_text_is_a_blank_as_in_llm_blender(tokenizer: JudgeTokenizer) -> None:
    assert tokenizer.encode("a[SEP]b") == tokenizer.encode("a b")


def test_texts_are_normalised_by_the_tokenizer_file(tokenizer: JudgeTokenizer) -> None:
    assert tokenizer.encode("ﬁx\r\n  ½") == tokenizer.encode("fix 1⁄2")  # NFKC, and runs of white space are one blank


def test_batches_hold_questions_of_similar_length_within_the_token_budget() -> None:
    # sorted: 9 (row 1), 5 (row 3), 4 (row 0), 2 (row 2); budget 10: 9 alone, 2 rows x 5 = 10, then 2
    assert fill_batches([4, 9, 2, 5], 10) == [[1], [3, 0], [2]]


def test_a_question_longer_than_the_budget_is_a_batch_of_its_own() -> None:
    assert fill_batches([30, 40], 10) == [[1], [0]]


def test_padding_is_on_the_right_and_masked(tokenizer: JudgeTokenizer) -> None:
    short = join_pair(tokenizer.control, LIMITS, [20], [30], [40])  # 12 tokens
    long = join_pair(tokenizer.control, LIMITS, [20], [30, 31], [40])  # 13
    batch = pad_pairs([short, long], tokenizer.control.pad)
    assert batch.ids.shape == (2, 13)
    assert batch.mask.sum(axis=1).tolist() == [12, 13]
    assert batch.ids[0, 12] == tokenizer.control.pad
    assert batch.candidate2.tolist() == [9, 10]


def test_the_raw_instruction_is_what_a_judge_reads() -> None:
    assert prompt_text(MESSAGES) == "Describe the red fox."
    assert prompt_text([{"role": "system", "content": " "}, *MESSAGES]) == "Describe the red fox."


def test_several_turns_are_lines_that_name_who_speaks() -> None:
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Bye"},
    ]
    assert prompt_text(turns) == "SYSTEM: Be brief.\nUSER: Hi\nAssistant: Hello\nUSER: Bye"


def test_every_pair_is_judged_identical_or_repeated() -> None:
    match = all_pairs("p", ["a", "b", "a"])
    # (a,b) (a,a) (b,a) (b,a) (a,a) (a,b): 2 asked, 2 identical, 2 seen before
    assert questions(match) == [("a", "b"), ("b", "a")]
    found = tally([match])
    assert (found.pairs, found.judged, found.identical, found.repeated) == (6, 2, 2, 2)


def test_logits_do_not_depend_on_the_batch(random_judge: Path) -> None:
    matches = [all_pairs(f"p{i}", ["red", "a red fox runs" * (i + 1), "It is <|candidate1|> é"]) for i in range(4)]
    one_by_one = pairrm(random_judge, tokens_per_batch=1)
    together = pairrm(random_judge, tokens_per_batch=100_000)
    alone = [one_by_one.judge([match], silent)[0] for match in matches]
    for first, second in zip(alone, together.judge(matches, silent), strict=True):
        assert np.abs(first).max() > 1e-3  # these weights do tell the answers apart
        np.testing.assert_allclose(first, second, atol=1e-5)
    np.testing.assert_allclose(together.judge(matches[::-1], silent)[0], alone[3], atol=1e-5)


def test_order_matters_and_identical_texts_are_nought(random_judge: Path) -> None:
    judge = pairrm(random_judge, tokens_per_batch=512)
    seen: list[Progress] = []
    (logits,) = judge.judge([Match("p", MESSAGES, ["a fox", "a dog", "a fox"], [(0, 1), (1, 0), (0, 2), (2, 1)])], seen.append)
    assert logits[0] != -logits[1]  # one joint encoding: L_ij is not -L_ji
    assert logits[2] == 0.0
    assert logits[3] == logits[0]  # the same two texts in the same order
    assert (seen[-1].done, seen[-1].total, seen[-1].unit) == (2, 2, "pairs")


def test_the_rule_of_the_world_is_a_judge_without_a_folder() -> None:
    from sppo.world.language import rule_logit

    judge = load(WorldRuleJudge(kind="world-rule"), None, "cpu", 1)
    (logits,) = judge.judge([Match("p", MESSAGES, ["The red fox is swift.", "fox"], [(0, 1), (1, 0)])], silent)
    assert logits[0] == pytest.approx(rule_logit("Describe the red fox.", "The red fox is swift.", "fox"))
    assert logits[1] == pytest.approx(-logits[0])


def test_a_logit_that_is_not_finite_is_named_with_prompt_and_pair() -> None:
    match = all_pairs("prompt-17", ["a", "b"])
    with pytest.raises(JudgeError, match=r"prompt prompt-17, pair \(1, 0\) is nan; expected a finite number: look"):
        check_finite([match], [np.array([0.5, np.nan], dtype=np.float32)], "look")
    with pytest.raises(JudgeError, match=r"pair \(0, 1\) is -inf"):
        check_finite([match], [np.array([-np.inf, 0.0], dtype=np.float32)], "look")


def test_limits_without_room_for_text_are_refused(random_judge: Path) -> None:
    source = FolderModel(kind="folder", path=str(random_judge))
    judge = PairRMJudge(kind="pairrm", source=source, max_source_tokens=64, max_candidate_tokens=3)
    with pytest.raises(JudgeError, match="leave no room for text; expected at least 4"):
        load(judge, random_judge, "cpu", 512)
