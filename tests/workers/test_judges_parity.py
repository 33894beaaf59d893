"""Parity: our network and llm-blender, on the same random weights and real questions, give the same logits.

The library stands here twice: in this process, mended for transformers 5 (`sppo.judges.blender`), and unchanged under the
transformers that it was written for, in the environment that `make bench-rivals` builds. SPPO_PARITY_PROMPTS says how many of
the 805 real prompts are asked (3 unless told; 805 take two hours of one core).
"""

import json
import os
import random
import subprocess
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.material.judging import (
    LIMITS,
    MID,
    REAL,
    TINY,
    Asked,
    made_questions,
    make_judge,
    real_questions,
    train_tokenizer,
)
from sppo.judges import Match, load
from sppo.judges.blender import rank_scores
from sppo.progress import Progress, silent
from sppo.recipe import FolderModel, PairRMJudge

PROMPTS = int(os.environ.get("SPPO_PARITY_PROMPTS", "3"))
ROOT = Path(__file__).resolve().parents[2]
RIVAL = Path(os.environ.get("SPPO_RIVAL_LLM_BLENDER", ROOT / "build" / "rivals" / "llm-blender" / "bin" / "python"))
ATOL = 1e-5
"""Of logits with a deviation of about 1."""

needs_library = pytest.mark.skipif(find_spec("llm_blender") is None, reason="llm-blender is not installed")
needs_rival = pytest.mark.skipif(not RIVAL.exists(), reason="no environment for llm-blender: type `make bench-rivals`")
needs_questions = pytest.mark.skipif(not REAL.is_file(), reason=f"{REAL.name} is not there")

STORY = "The red fox lives in the wood, and runs when the moon is up since it is hungry. "
EDGES = {
    "source past its limit": Asked(STORY * 100, ["In the wood.", STORY * 3]),
    "answers past their limits": Asked("Where is the fox?", [STORY * 120, "Indeed: " + STORY * 120]),
    "all past their limits": Asked(STORY * 100, ["First. " + STORY * 60, "Second. " + STORY * 60]),
    "answers that differ behind the cut": Asked(STORY * 100, [STORY * 60, STORY * 60 + "The end."]),
    "nothing": Asked("", ["", "Something.", " \n\t "]),
    "full-width forms": Asked(
        "Ｗｈｅｒｅ　ｉｓ　ｔｈｅ　ｆｏｘ？", ["Ｉｎ ｔｈｅ ｗｏｏｄ。", "ﬁrst ½ № ① ™ ㎏ ﾊﾛｰ", "e\u0301 \u00e9 A\u030a"]
    ),
    "emoji": Asked("🦊❓", ["👩‍👩‍👧‍👦 in the 🌲🌳!", "🇩🇪🏴‍☠️ ❤️‍🔥 1️⃣", "\U0001f9ff\U000f0000"]),
    "other scripts": Asked("狐狸在哪里？", ["في الغابة", "लोमड़ी जंगल में है", "Лиса в лесу\u200b\u00ad\u2060.", "여우는 숲에"]),
    "odd blanks and control characters": Asked(
        "a\u00a0b\u3000c\r\n\td", ["\x00\x07x", "x\u2028y\u2029z", "▁▁ x ▁", "  x  y  "]
    ),
}
TYPED = Asked(
    "What do [CLS] and <|source|> do?",
    ["They frame: [CLS]<|candidate1|>x[SEP].", "<|candidate2|> ＜|candidate|＞ [PAD][MASK]", "[SEP] alone", "I do not know."],
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Two torch threads on a busy machine wait for each other far longer than they compute."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def questions() -> list[Asked]:
    return real_questions() if REAL.is_file() else made_questions()


@pytest.fixture(scope="module")
def tokenizer(questions: list[Asked]) -> Any:
    return train_tokenizer(questions[::8], 6000)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any, questions: list[Asked]) -> Path:
    """2 layers, 32 wide."""
    folder = tmp_path_factory.mktemp("tiny")
    make_judge(folder, TINY, tokenizer, questions[:3])
    return folder


@pytest.fixture(scope="module")
def mid(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any, questions: list[Asked]) -> Path:
    """6 layers, 384 wide."""
    folder = tmp_path_factory.mktemp("mid")
    make_judge(folder, MID, tokenizer, [Asked(one.prompt[:300], [text[:300] for text in one.answers]) for one in questions[:2]])
    return folder


@pytest.fixture(scope="module")
def rival(tiny: Path) -> Iterator[Any]:
    """Asks the unchanged library, which has the tiny judge: a request to its answer."""
    server = ROOT / "benchmarks" / "rivals" / "blender_server.py"
    with subprocess.Popen(
        [str(RIVAL), str(server), str(tiny)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()  # it has loaded

        def ask(asked: Sequence[Asked], **more: Any) -> Any:
            request = {"prompts": [one.prompt for one in asked], "answers": [one.answers for one in asked], **more}
            process.stdin.write(json.dumps(request) + "\n")  # type: ignore[union-attr]
            process.stdin.flush()  # type: ignore[union-attr]
            return json.loads(process.stdout.readline())  # type: ignore[union-attr]

        yield ask
        process.stdin.close()


def sampled(questions: list[Asked], count: int) -> list[Asked]:
    return random.Random(0).sample(questions, min(count, len(questions)))


def judge_of(folder: Path, backend: str = "native", tokens_per_batch: int = 1024) -> Any:
    limits = {"max_source_tokens": LIMITS.source, "max_candidate_tokens": LIMITS.candidate}
    source = FolderModel(kind="folder", path=str(folder))
    return load(PairRMJudge(kind="pairrm", source=source, backend=backend, **limits), folder, "cpu", tokens_per_batch)


def logits_of(folder: Path, asked: Sequence[Asked], backend: str = "native") -> list[np.ndarray]:
    found: list[np.ndarray] = judge_of(folder, backend).judge([one.match() for one in asked], silent)
    return found


def squares(asked: Sequence[Asked], logits: Sequence[np.ndarray]) -> list[np.ndarray]:
    """(K (K - 1),) of all pairs as (K, K), with 0 on the diagonal."""
    made = []
    for one, found in zip(asked, logits, strict=True):
        matrix = np.zeros((len(one.answers), len(one.answers)))
        matrix[~np.eye(len(one.answers), dtype=bool)] = found
        made.append(matrix)
    return made


def assert_same(found: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> None:
    for number, (one, other) in enumerate(zip(found, expected, strict=True)):
        np.testing.assert_allclose(one, other, atol=ATOL, rtol=0, err_msg=f"question {number}")


@needs_library
@needs_questions
def test_two_layers_on_real_questions(tiny: Path, questions: list[Asked]) -> None:
    asked = sampled(questions, PROMPTS)
    found = logits_of(tiny, asked)
    assert 0.3 < np.concatenate(found).std() < 3  # answers are told apart, so agreement says something
    assert_same(found, logits_of(tiny, asked, "llm-blender"))


@needs_library
def test_six_layers_on_real_questions(mid: Path, questions: list[Asked]) -> None:
    asked = [Asked(one.prompt, one.answers[:2]) for one in sampled(questions, 1 + PROMPTS // 10)]
    assert_same(logits_of(mid, asked), logits_of(mid, asked, "llm-blender"))


@needs_library
@pytest.mark.parametrize("edge", EDGES, ids=lambda name: name)
def test_two_layers_at_the_edges(tiny: Path, edge: str) -> None:
    assert_same(logits_of(tiny, [EDGES[edge]]), logits_of(tiny, [EDGES[edge]], "llm-blender"))


@needs_library
@pytest.mark.parametrize("edge", ["nothing", "full-width forms", "emoji"])
def test_six_layers_at_the_edges(mid: Path, edge: str) -> None:
    assert_same(logits_of(mid, [EDGES[edge]]), logits_of(mid, [EDGES[edge]], "llm-blender"))


@needs_library
def test_control_tokens_are_plain_text_to_both_backends(tiny: Path) -> None:
    found = logits_of(tiny, [TYPED])
    assert_same(found, logits_of(tiny, [TYPED], "llm-blender"))
    assert np.ptp(found[0]) > 0.01


@needs_rival
def test_the_unchanged_library_says_the_same_of_real_questions(tiny: Path, questions: list[Asked], rival: Any) -> None:
    asked = sampled(questions, PROMPTS)
    assert_same(squares(asked, logits_of(tiny, asked)), rival(asked, logits=True)["logits"])


@needs_rival
@pytest.mark.parametrize("edge", EDGES, ids=lambda name: name)
def test_the_unchanged_library_says_the_same_at_the_edges(tiny: Path, edge: str, rival: Any) -> None:
    asked = [EDGES[edge]]
    assert_same(squares(asked, logits_of(tiny, asked)), rival(asked, logits=True)["logits"])


@needs_rival
def test_the_scores_of_its_rank_are_ours_by_name(tiny: Path, rival: Any) -> None:
    asked = [EDGES["full-width forms"], EDGES["emoji"]]
    logits = np.stack(squares(asked, logits_of(tiny, asked)))  # (2, K, K)
    np.testing.assert_allclose(rank_scores(logits), rival(asked, batch_size=1)["scores"], atol=ATOL)


@needs_rival
def test_the_unchanged_library_fails_where_a_user_types_a_control_token(rival: Any) -> None:
    """Why the backend neutralises them, and why they are no question to this oracle."""
    assert "RuntimeError" in rival([TYPED], logits=True)["error"]


@pytest.fixture(scope="module")
def alone(tiny: Path, questions: list[Asked]) -> tuple[list[Match], list[np.ndarray]]:
    """Short matches of 2 to 5 answers with a self-match, and their logits, one question a batch."""
    matches = []
    for number, one in enumerate(sampled(questions, 12)):
        match = Asked(one.prompt[:200], [text[: 20 + 30 * number] for text in one.answers[: 2 + number % 4]]).match(str(number))
        matches.append(Match(match.prompt_id, match.messages, [*match.responses, match.responses[0]], [*match.pairs, (0, 0)]))
    return matches, judge_of(tiny, tokens_per_batch=1).judge(matches, silent)


@settings(max_examples=15, deadline=None)
@given(order=st.permutations(range(12)), tokens_per_batch=st.sampled_from([1, 100, 1024, 5000]), shards=st.integers(1, 4))
def test_logits_do_not_depend_on_order_batches_or_shards(
    tiny: Path, alone: Any, order: list[int], tokens_per_batch: int, shards: int
) -> None:
    matches, expected = alone
    judge = judge_of(tiny, tokens_per_batch=tokens_per_batch)
    for shard in range(shards):
        share = order[shard::shards]
        assert_same(judge.judge([matches[place] for place in share], silent), [expected[place] for place in share])


def test_identical_answers_and_self_matches_are_not_computed(tiny: Path) -> None:
    seen: list[Progress] = []
    match = Asked("Where is the fox?", ["In the wood.", "At home.", "In the wood.", "At home. "]).match()
    every = Match("p", match.messages, match.responses, [*match.pairs, *((i, i) for i in range(4))])
    (logits,) = judge_of(tiny).judge([every], seen.append)
    # three texts, of which the last differs by a blank: 3 x 2 ordered pairs of 16
    assert seen[-1].total == 6
    (square,) = squares([Asked("", match.responses)], [logits[:12]])
    assert square[0, 2] == square[2, 0] == 0.0
    assert square[0, 1] == square[2, 1] != 0.0
    assert not logits[12:].any()
