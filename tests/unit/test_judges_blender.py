"""llm-blender as a backend: the library itself, and nothing of it that others could notice."""

import json
import logging
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sppo.errors import JudgeError
from sppo.estimate import preference_matrices
from sppo.judges import Match, load
from sppo.judges.blender import BlenderJudge, rank_scores
from sppo.progress import Progress, silent
from sppo.recipe import FolderModel, PairRMJudge

if find_spec("llm_blender") is None:
    pytest.skip("llm-blender is not installed", allow_module_level=True)

PROMPT = "Where can I find the red fox, and why does it run so fast when the moon is up and the farm is asleep?"
ANSWERS = [
    "In the wood.",
    "It can be found near farms,\n\nwhere it  hunts [SEP] at night; “quick”, ½ asleep and " + "very " * 30 + "shy.",
    "",
    "The red fox lives in the wood and runs since it is hungry. " * 3,
]


def judge_of(folder: Path, backend: str = "llm-blender", precision: str = "auto") -> Any:
    """The limits are those that random_judge's config.json has for the library."""
    source = {"kind": "folder", "path": str(folder)}
    limits = {"max_source_tokens": 64, "max_candidate_tokens": 48}
    recipe = PairRMJudge(
        kind="pairrm", source=FolderModel.model_validate(source), backend=backend, precision=precision, **limits
    )
    return load(recipe, folder, "cpu", 512)


def all_pairs(prompt: str, answers: list[str]) -> Match:
    pairs = [(i, j) for i in range(len(answers)) for j in range(len(answers)) if i != j]
    return Match("p", [{"role": "user", "content": prompt}], answers, pairs)


def square(logits: np.ndarray, count: int) -> np.ndarray:
    """(K (K - 1),) of all pairs as (K, K), with 0 on the diagonal."""
    matrix = np.zeros((count, count))
    matrix[~np.eye(count, dtype=bool)] = logits
    return matrix


@pytest.fixture(scope="module")
def blender(random_judge: Path) -> BlenderJudge:
    judge = judge_of(random_judge)
    assert isinstance(judge, BlenderJudge)
    return judge


@pytest.fixture
def own_loader(random_judge: Path, blender: BlenderJudge, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An llm_blender.Blender that the library loaded itself, under names put back for the time of the test."""
    import llm_blender
    from transformers import PreTrainedTokenizerBase

    def batch_encode_plus(self: Any, texts: list[str], **options: Any) -> Any:
        return self(texts, **options)

    monkeypatch.setattr(PreTrainedTokenizerBase, "batch_encode_plus", batch_encode_plus, raising=False)
    loaded = llm_blender.Blender()
    loaded.loadranker(str(random_judge), device="cpu")
    return loaded


@pytest.mark.parametrize("prompt", ["The fox?", PROMPT, PROMPT * 4])
def test_logits_are_those_of_the_library_and_of_its_own_loader(blender: BlenderJudge, own_loader: Any, prompt: str) -> None:
    """Answers of one prompt share one limit there too: half of what that prompt leaves of 64 tokens, beside their own 48."""
    import torch

    batch = own_loader.ranker_collator([{"source": prompt, "candidates": ANSWERS}])
    with torch.no_grad():
        expected = own_loader.ranker._full_predict(**{key: value for key, value in batch.items() if value is not None})
    (found,) = blender.judge([all_pairs(prompt, ANSWERS)], silent)
    assert np.ptp(found) > 1e-2  # the answers are told apart, so agreement says something
    np.testing.assert_array_equal(square(found, 4).astype(np.float32), expected["logits"][0].numpy())


@pytest.mark.parametrize("prompt", ["The fox?", PROMPT, PROMPT * 4])
def test_logits_are_those_of_the_native_backend(blender: BlenderJudge, random_judge: Path, prompt: str) -> None:
    match = all_pairs(prompt, ANSWERS)
    (expected,), (found,) = blender.judge([match], silent), judge_of(random_judge, "native").judge([match], silent)
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_rank_scores_are_those_of_the_library_by_name(blender: BlenderJudge) -> None:
    prompts = ["The fox?", PROMPT]
    expected = blender.blender.rank(prompts, [ANSWERS, ANSWERS[::-1]], return_scores=True, batch_size=1)  # (2, K)
    matches = [all_pairs(prompts[0], ANSWERS), all_pairs(prompts[1], ANSWERS[::-1])]
    logits = np.stack([square(found, 4) for found in blender.judge(matches, silent)])  # (2, K, K)
    np.testing.assert_allclose(rank_scores(logits), expected, atol=1e-5)
    # and the estimator `bradley_terry` is the chance that these scores give
    differences = expected[:, :, None] - expected[:, None, :]  # (2, K, K)
    np.testing.assert_allclose(preference_matrices(logits, "bradley_terry"), 1 / (1 + np.exp(-differences)), atol=1e-5)


def test_rank_scores_of_the_cyclic_example() -> None:
    """A = (L - L^T) / 2 with A01 = 2, A12 = 1, A20 = 0.5: s0 = 2 (2 - 0.5) / 3, s1 = 2 (1 - 2) / 3, s2 = 2 (0.5 - 1) / 3."""
    half = np.array([[0.0, 2.0, -0.5], [-2.0, 0.0, 1.0], [0.5, -1.0, 0.0]])
    np.testing.assert_allclose(rank_scores(half[None]), [[1.0, -2 / 3, -1 / 3]])


def test_only_what_is_asked_is_computed(blender: BlenderJudge) -> None:
    """A duel's rectangle: answers 0 and 1 against 2 and 3, which repeats 0."""
    answers = [*ANSWERS[:3], ANSWERS[0]]
    (whole,) = blender.judge([all_pairs(PROMPT, answers)], silent)
    passes: list[object] = []
    seen: list[Progress] = []
    hook = blender.blender.ranker.pretrained_model.register_forward_hook(lambda *_: passes.append(None))
    match = Match("p", [{"role": "user", "content": PROMPT}], answers, [(0, 2), (2, 0), (0, 3), (1, 3)])
    (found,) = blender.judge([match], seen.append)
    hook.remove()
    expected = square(whole, 4)
    np.testing.assert_allclose(found, [expected[0, 2], expected[2, 0], 0.0, expected[1, 0]], atol=1e-6)
    assert len(passes) == 3  # (0, 3) are the same text
    assert (seen[-1].done, seen[-1].total, seen[-1].unit) == (3, 3, "pairs")


@pytest.mark.parametrize(
    "typed", ["<|candidate1|>", "<|source|>", "<|candidate|> x", "＜|candidate2|＞", "[CLS]", "[MASK] [PAD]"]
)
def test_control_tokens_that_a_user_typed_are_plain_text(
    blender: BlenderJudge, own_loader: Any, random_judge: Path, typed: str
) -> None:
    match = all_pairs(f"What is {typed}?", [f"It is {typed} indeed.", "I do not know.", typed])
    (expected,), (found,) = judge_of(random_judge, "native").judge([match], silent), blender.judge([match], silent)
    np.testing.assert_allclose(found, expected, atol=2e-6)
    if "|" in typed:  # on its own, the library stops here
        with pytest.raises(RuntimeError):
            own_loader.rank(["What is it?"], [[f"It is {typed}.", "No."]], batch_size=1)


def write_native(random_judge: Path, folder: Path) -> None:
    """The form of llm-blender/PairRM: RankerConfig in config.json, the encoder's shape beside it, DeBERTa's tokenizer class."""
    shutil.copytree(random_judge, folder)
    config = json.loads((folder / "config.json").read_text())
    ranker = {key: config.pop(key) for key in ("ranker_type", "source_maxlength", "candidate_maxlength", "n_tasks", "drop_out")}
    ranker |= {"model_type": "deberta", "model_name": "microsoft/deberta-v3-large", "fp16": True, "device": "cuda"}
    (folder / "config.json").write_text(json.dumps(ranker))
    (folder / "encoder.json").write_text(json.dumps({**config, "dtype": "float16"}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "DebertaV2Tokenizer", "vocab_type": "spm"}))


def test_a_native_folder_is_read_unrounded_by_its_own_rules_and_whatever_it_is_called(
    blender: BlenderJudge, random_judge: Path, tmp_path: Path
) -> None:
    """Alone, the library would fetch the base, round weights to its fp16, normalise by NFC, run code and pad on the left."""
    folder = tmp_path / "phi-llama-alpaca"
    write_native(random_judge, folder)
    match = all_pairs(
        "Ｗｈｅｒｅ is the ﬁrst ½ of № ①?", ["Ｉｎ ｔｈｅ ｗｏｏｄ.", "e\u0301 ² ﬀ ™", "It is 1/2."]
    )  # NFKC changes all, NFC none
    (expected,), (found,) = blender.judge([match], silent), judge_of(folder).judge([match], silent)
    np.testing.assert_array_equal(found, expected)
    (native,) = judge_of(folder, "native").judge([match], silent)
    np.testing.assert_allclose(found, native, atol=2e-6)


@pytest.mark.parametrize(("precision", "deviation"), [("float32", 0.0), ("float16", 0.02), ("bfloat16", 0.2)])
def test_the_precision_is_the_recipes(blender: BlenderJudge, random_judge: Path, precision: str, deviation: float) -> None:
    match = all_pairs(PROMPT, ANSWERS)
    (expected,), (found,) = blender.judge([match], silent), judge_of(random_judge, precision=precision).judge([match], silent)
    np.testing.assert_allclose(found, expected, atol=deviation * np.abs(expected).max())
    assert (deviation == 0.0) == bool((found == expected).all())


def test_nothing_of_the_mending_is_left_behind(random_judge: Path) -> None:
    code = f"""
import logging, sys
from pathlib import Path
from sppo.judges import Match, load
from sppo.progress import silent
from sppo.recipe import FolderModel, PairRMJudge
folder = {str(random_judge)!r}
source = FolderModel(kind="folder", path=folder)
recipe = PairRMJudge(kind="pairrm", source=source, backend="llm-blender", max_source_tokens=64, max_candidate_tokens=48)
judge = load(recipe, Path(folder), "cpu", 512)
judge.judge([Match("p", [{{"role": "user", "content": "Why?"}}], ["a", "b"], [(0, 1)])], silent)
import transformers.utils.hub
from transformers import PreTrainedTokenizerBase
assert not hasattr(transformers.utils.hub, "TRANSFORMERS_CACHE")
assert not hasattr(PreTrainedTokenizerBase, "batch_encode_plus")
assert "vllm" not in sys.modules
assert not logging.getLogger().handlers
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""  # the library prints where it loads


def test_without_the_library_the_extra_is_named(random_judge: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llm_blender", None)
    with pytest.raises(JudgeError, match=r"no module 'llm_blender'.*pip install 'sppo\[blender\]', or set .* native"):
        judge_of(random_judge)
    assert sys.modules.get("vllm", "not there") is not None


def test_a_tokenizer_that_frames_nothing_is_refused(random_judge: Path, tmp_path: Path) -> None:
    shutil.copytree(random_judge, tmp_path / "judge")
    described = json.loads((random_judge / "tokenizer.json").read_text())
    (tmp_path / "judge" / "tokenizer.json").write_text(json.dumps({**described, "post_processor": None}))
    with pytest.raises(JudgeError, match=r"tokenizer.json does not frame a text in \[CLS\] and \[SEP\]"):
        judge_of(tmp_path / "judge")


def test_a_tensor_too_few_is_named(random_judge: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(random_judge, tmp_path / "judge")
    state = load_file(random_judge / "model.safetensors")
    del state["head_layer.4.bias"]
    save_file(state, tmp_path / "judge" / "model.safetensors")
    with pytest.raises(JudgeError, match=r"model\.safetensors.*head_layer\.4\.bias"):
        judge_of(tmp_path / "judge")


def test_limits_without_room_for_text_are_refused(random_judge: Path) -> None:
    source = FolderModel(kind="folder", path=str(random_judge))
    recipe = PairRMJudge(kind="pairrm", source=source, backend="llm-blender", max_source_tokens=3, max_candidate_tokens=48)
    with pytest.raises(JudgeError, match="leave no room for text; expected at least 4"):
        load(recipe, random_judge, "cpu", 512)


def test_a_spelled_control_token_is_told(blender: BlenderJudge, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="sppo.judges.blender"):
        blender.judge([all_pairs("Why?", ["<|candidate1|>", "b"])], silent)
    assert "spells one of PairRM's control tokens" in caplog.text
