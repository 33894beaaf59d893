"""Against llm-blender itself, on the same random weights: the same logits, from the folder that we write."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sppo.judges import Match
from sppo.judges.network import NetworkJudge
from sppo.judges.pairrm import load_pairrm
from sppo.judges.segments import SegmentLimits
from sppo.progress import silent

PROMPT = "Where can I find the red fox, and why does it run so fast when the moon is up and the farm is asleep?"
ANSWERS = [
    "In the wood.",
    "It can be found near farms,\n\nwhere it  hunts [SEP] at night; “quick”, ½ asleep and " + "very " * 30 + "shy.",
    "",
    "The red fox lives in the wood and runs since it is hungry. " * 3,
]


@pytest.fixture
def blender(random_judge: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """llm-blender 0.0.2 under transformers 5: two names that went are put back for the time of the test."""
    import transformers.utils.hub
    from transformers import PreTrainedTokenizerBase

    def batch_encode_plus(self: Any, texts: list[str], **options: Any) -> Any:
        return self(texts, **options)

    monkeypatch.setattr(transformers.utils.hub, "TRANSFORMERS_CACHE", "unused", raising=False)
    monkeypatch.setattr(PreTrainedTokenizerBase, "batch_encode_plus", batch_encode_plus, raising=False)
    monkeypatch.setitem(sys.modules, "vllm", None)  # it would be imported, for seconds, and not used
    llm_blender = pytest.importorskip("llm_blender")
    loaded = llm_blender.Blender()
    loaded.loadranker(str(random_judge), device="cpu")
    return loaded


def library_logits(blender: Any, prompt: str, answers: list[str]) -> np.ndarray:
    import torch

    batch = blender.ranker_collator([{"source": prompt, "candidates": answers}])  # alone, so nothing is shared with neighbours
    with torch.no_grad():
        found = blender.ranker._full_predict(**{key: value for key, value in batch.items() if value is not None})
    return np.asarray(found["logits"][0])  # (K, K)


@pytest.mark.parametrize("prompt", ["The fox?", PROMPT, PROMPT * 4])
def test_logits_are_those_of_llm_blender(blender: Any, random_judge: Path, prompt: str) -> None:
    """Answers of one prompt share one limit there too: half of what that prompt leaves of 64 tokens, beside their own 48."""
    expected = library_logits(blender, prompt, ANSWERS)
    network, tokenizer = load_pairrm(random_judge)
    judge = NetworkJudge(network, tokenizer, SegmentLimits(64, 48), tokens_per_batch=512)
    pairs = [(i, j) for i in range(4) for j in range(4) if i != j]
    (found,) = judge.judge([Match("p", [{"role": "user", "content": prompt}], ANSWERS, pairs)], silent)
    assert np.ptp(found) > 1e-2  # the answers are told apart, so agreement says something
    np.testing.assert_allclose(found, [expected[pair] for pair in pairs], atol=1e-4)
