"""PairRM as a judge: texts to ids once a match, all questions sorted by length, packed to a token budget without padding."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sppo.errors import JudgeError
from sppo.judges import Device, Judge, Logits, Match, Question, prompt_text, questions, spread
from sppo.judges.flex import FlexAttention
from sppo.judges.kernel import positions_kernel
from sppo.judges.packed import PackedEncoder, pack
from sppo.judges.pairrm import PairRM, load_pairrm
from sppo.judges.segments import JudgeTokenizer, PairEncoding, SegmentLimits, fill_rows, join_pair
from sppo.judges.sliced import SlicedAttention
from sppo.progress import Progress, Report
from sppo.recipe import PairRMJudge

if TYPE_CHECKING:
    import torch


class NetworkJudge(Judge):
    """A loaded PairRM. A batch holds questions of many matches, and none of them sees another, so no logit depends on them."""

    def __init__(self, network: PairRM, tokenizer: JudgeTokenizer, limits: SegmentLimits, tokens_per_batch: int) -> None:
        self.encoder = PackedEncoder(network.encoder, network.shape, _attention(network))
        self.head = network.module["head_layer"]
        self.tokenizer = tokenizer
        self.limits = limits
        self.tokens_per_batch = tokens_per_batch
        """Of a batch; a longer question is a batch of its own."""

    @classmethod
    def load(cls, judge: PairRMJudge, folder: Path, device: Device, tokens_per_batch: int) -> "NetworkJudge":
        """The judge of a folder.

        Raises JudgeError for limits that leave no room for text."""
        limits = SegmentLimits(judge.max_source_tokens, judge.max_candidate_tokens)
        if min(limits.source, limits.candidate) < 4:
            raise JudgeError(
                f"judge limits {limits.source} and {limits.candidate} tokens leave no room for text; expected at least 4, "
                "three are control tokens: raise max_source_tokens or max_candidate_tokens"
            )
        network, tokenizer = load_pairrm(folder, device, judge.precision)
        return cls(network, tokenizer, limits, tokens_per_batch)

    def judge(self, matches: Sequence[Match], report: Report) -> list[Logits]:
        """Logits of each match's pairs, (P,) each."""
        encodings: list[PairEncoding] = []
        places: list[list[Question]] = []
        for match in matches:
            found = self._encode(match)
            places.append(list(found))
            encodings.extend(found.values())
        scores = iter(self._score(encodings, report).tolist())  # Q questions
        return [spread(match, dict(zip(asked, scores, strict=False))) for match, asked in zip(matches, places, strict=True)]

    def _encode(self, match: Match) -> dict[Question, PairEncoding]:
        asked = questions(match)
        answers = list(dict.fromkeys(text for question in asked for text in question))
        source, *ids = self.tokenizer.encode_batch([prompt_text(match.messages), *answers])
        of = dict(zip(answers, ids, strict=True))
        return {
            (first, second): join_pair(self.tokenizer.control, self.limits, source, of[first], of[second])
            for first, second in asked
        }

    def _score(self, encodings: Sequence[PairEncoding], report: Report) -> Logits:
        scores = np.zeros(len(encodings), dtype=np.float32)  # (Q,)
        done = 0
        for rows in fill_rows([len(encoding.ids) for encoding in encodings], self.tokens_per_batch):
            scores[rows] = self.logits([encodings[row] for row in rows]).cpu().numpy()
            done += len(rows)
            report(Progress(stage="judge", done=done, total=len(encodings), unit="pairs"))
        return scores

    def logits(self, encodings: Sequence[PairEncoding]) -> "torch.Tensor":
        """L of each question of one batch, (B,) in fp32: positive where the first answer looks better."""
        import torch

        rows = pack([len(encoding.ids) for encoding in encodings])
        wanted = [
            start + place
            for start, encoding in zip(rows.starts, encodings, strict=True)
            for place in (encoding.source, encoding.candidate1, encoding.candidate2)
        ]
        device = self.encoder.words.device
        ids = torch.from_numpy(np.concatenate([encoding.ids for encoding in encodings])).to(device)  # (N,)
        with torch.inference_mode():
            states = self.encoder.encode(ids, rows, torch.tensor(wanted, device=device))  # (3 B, H)
            states = states.view(len(encodings), 3, -1)  # (B, 3, H)
            left, right = (self.head(states[:, [0, place]].flatten(1)).float() for place in (1, 2))  # (B, tasks) each
            margins: torch.Tensor = (left - right).mean(dim=-1)  # (B,)
        return margins


def _attention(network: PairRM) -> "SlicedAttention | FlexAttention":
    if network.device.type == "cuda":
        return FlexAttention(network.shape)
    words = next(network.module.parameters())
    return SlicedAttention(network.shape, words, positions_kernel(words.dtype))
