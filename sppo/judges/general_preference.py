"""The General Preference Model as a judge: answers as embeddings, compared by a skew-symmetric form. B rows, D dimensions.

    L_ij = <R v_i, v_j> / tau,   R block-diagonal with blocks [[0, -lambda], [lambda, 0]],   |v| = 1

arXiv:2410.02197. So L_ij = -L_ji, cycles are possible, and under the rule `pairwise` P(y_i > y_j) = sigmoid(L_ij). Layout and
reading are the released models' (github.com/general-preference/general-preference-model): a causal language model's body;
v is `value_head` of the state at the last token, which is made EOS; lambda is the softmax of `prompt_head` of the state at the
prompt's last token, 1 where there is no such head.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sppo.errors import JudgeError
from sppo.judges import Device, Judge, Logits, Match, Rulings, questions, spread
from sppo.judges.causal import ChatTokenizer, batches, check_tensor, conversations, load_model, report_pairs
from sppo.judges.files import weight_files
from sppo.progress import Report
from sppo.recipe import GeneralPreferenceJudge

if TYPE_CHECKING:
    import torch

VALUE = "value_head.weight"
PROMPT = "prompt_head.weight"
HEADS = (VALUE, PROMPT, "lm_head.weight")
"""Beside the body; the language model's own head is not read."""
Array = npt.NDArray[np.float32]


def preference(first: Array, second: Array, scales: Array, temperature: float) -> float:
    """<R first, second> / tau of two embeddings, (D,) each; scales: lambda of each block, (D/2,)."""
    blocks = first[0::2] * second[1::2] - first[1::2] * second[0::2]  # (D/2,)
    return float((scales * blocks).sum() / temperature)


class EmbeddingJudge(Judge):
    """A loaded General Preference Model. Each distinct answer to a prompt is embedded once."""

    def __init__(
        self,
        model: Any,
        heads: "dict[str, torch.Tensor]",
        tokenizer: ChatTokenizer,
        judge: GeneralPreferenceJudge,
        tokens_per_batch: int,
    ) -> None:
        self.model = model
        self.heads = heads
        self.tokenizer = tokenizer
        self.settings = judge
        self.tokens_per_batch = tokens_per_batch

    @classmethod
    def load(cls, judge: GeneralPreferenceJudge, folder: Path, device: Device, tokens_per_batch: int) -> "EmbeddingJudge":
        """The judge of a folder.

        Raises JudgeError for a folder without `value_head.weight`, or heads that do not fit the body."""
        from transformers import AutoModel

        tokenizer = check(judge, folder)
        model = load_model(AutoModel, folder, judge.precision, device, HEADS)
        heads = {name: tensor.to(device) for name, tensor in _heads(folder, model.config.get_text_config().hidden_size).items()}
        return cls(model, heads, tokenizer, judge, tokens_per_batch)

    def judge(self, matches: Sequence[Match], report: Report) -> list[Logits]:
        """Logits of each match's pairs, (P,) each."""
        return self.rule(matches, report).logits

    def rule(self, matches: Sequence[Match], report: Report) -> Rulings:
        """The same, with how many answers were cut to fit."""
        asked = conversations(matches, self.tokenizer, self.settings.max_tokens, self._encode)
        ends = np.zeros(len(asked.rows), dtype=np.int64)  # (R,), R rows: position of the prompt's last token
        for match, place in zip(matches, asked.places, strict=True):
            ends[list(place.values())] = self._prompt_tokens(match) - 1
        values, scales = self._embed(asked.rows, ends, report, asked.pairs)
        logits = []
        for match, place in zip(matches, asked.places, strict=True):
            found = {}
            for first, second in questions(match):
                i, j = place[first], place[second]
                # one prompt, one lambda: of two rows it differs by rounding alone, and the mean keeps L_ij = -L_ji to the bit
                shared = (scales[i] + scales[j]) / 2
                found[first, second] = preference(values[i], values[j], shared, self.settings.temperature)
            logits.append(spread(match, found))
        return Rulings(logits, counts={"answers_cut": asked.cut} if asked.cut else {})

    def _encode(self, text: str) -> list[int]:
        ids = self.tokenizer.encode(text, self.settings.special_tokens)
        return [*ids[:-1], int(self.tokenizer.tokenizer.eos_token_id)]

    def _prompt_tokens(self, match: Match) -> int:
        text = self.tokenizer.render(match.prompt_id, self.tokenizer.turns(match.messages), reply_follows=False)
        return len(self.tokenizer.encode(text, self.settings.special_tokens))

    def _embed(self, rows: Sequence[list[int]], ends: npt.NDArray[np.int64], report: Report, pairs: int) -> tuple[Array, Array]:
        """v of each row, (R, D), and lambda of its prompt, (R, D/2)."""
        import torch
        from torch.nn.functional import linear, normalize

        dimensions = len(self.heads[VALUE])
        values = np.zeros((len(rows), dimensions), dtype=np.float32)  # (R, D)
        scales = np.ones((len(rows), dimensions // 2), dtype=np.float32)  # (R, D/2)
        tell = report_pairs(report, pairs, len(rows))
        done = 0
        for batch in batches(rows, self.tokens_per_batch, 0, self.model.device):
            with torch.inference_mode():
                states = self.model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False)[0].float()  # (B, T, H)
                each = torch.arange(len(batch.places), device=states.device)  # (B,)
                found = normalize(linear(states[each, batch.last], self.heads[VALUE]), dim=-1)  # (B, D)
                values[batch.places] = found.cpu().numpy()
                if PROMPT in self.heads:
                    asked = states[each, torch.from_numpy(ends[batch.places]).to(states.device)]  # (B, H)
                    scales[batch.places] = torch.softmax(linear(asked, self.heads[PROMPT]), dim=-1).cpu().numpy()
            tell(done := done + len(batch.places))
        return values, scales


def check(judge: GeneralPreferenceJudge, folder: Path) -> ChatTokenizer:
    """What can be known of a folder before its weights load: its tokenizer, with a chat template and EOS.

    Raises JudgeError for one without."""
    tokenizer = ChatTokenizer(folder)
    if tokenizer.tokenizer.eos_token_id is None:
        raise JudgeError(
            f"the tokenizer in {folder} has no EOS token, at which an answer is embedded; "
            "expected eos_token in its tokenizer_config.json: add it"
        )
    return tokenizer


def _heads(folder: Path, width: int) -> "dict[str, torch.Tensor]":
    """The heads in fp32: `value_head.weight` (D, H) and, where the folder has it, `prompt_head.weight` (D/2, H)."""
    import torch
    from safetensors import safe_open

    heads: dict[str, torch.Tensor] = {}
    for path in weight_files(folder):
        with safe_open(path, framework="pt") as weights:
            heads |= {name: weights.get_tensor(name).float() for name in (VALUE, PROMPT) if name in weights.keys()}  # noqa: SIM118
    if VALUE not in heads:
        raise JudgeError(
            f"{folder} has no tensor {VALUE!r}, a General Preference Model's; expected one of shape (D, {width}): "
            "choose the kind of judge that these weights were trained as"
        )
    rows = len(heads[VALUE])
    for name, wanted in ((VALUE, (rows + rows % 2, width)), (PROMPT, (rows // 2, width))):
        if name in heads and tuple(heads[name].shape) != wanted:
            raise JudgeError(
                f"{folder}: tensor {name!r} has shape {tuple(heads[name].shape)}; expected {wanted}, "
                "an even number of dimensions in blocks of two: fetch the judge anew"
            )
        if name in heads:
            check_tensor(folder, name, bool(torch.isfinite(heads[name]).all()))
    return heads
