"""PairRM as a judge: texts to ids once a match, all questions sorted by length, batches filled to a token budget."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from sppo.errors import JudgeError
from sppo.judges import Logits, Match, prompt_text, questions
from sppo.judges.pairrm import PairRM, load_pairrm
from sppo.judges.segments import JudgeTokenizer, PairEncoding, SegmentLimits, fill_batches, join_pair, pad_pairs
from sppo.progress import Progress, Report
from sppo.recipe import PairRMJudge

Question = tuple[str, str]


class NetworkJudge:
    """A loaded PairRM. Batches hold questions of many matches; padding is masked, so a logit does not depend on them."""

    def __init__(self, network: PairRM, tokenizer: JudgeTokenizer, limits: SegmentLimits, tokens_per_batch: int) -> None:
        self.network = network
        self.tokenizer = tokenizer
        self.limits = limits
        self.tokens_per_batch = tokens_per_batch
        """Rows x longest of a batch; a longer question is a batch of its own."""

    @classmethod
    def load(cls, judge: PairRMJudge, folder: Path, device: Literal["cpu", "cuda"], tokens_per_batch: int) -> "NetworkJudge":
        """The judge of a folder.

        Raises JudgeError for limits that leave no room for text."""
        limits = SegmentLimits(judge.max_source_tokens, judge.max_candidate_tokens)
        if min(limits.source, limits.candidate) < 4:
            raise JudgeError(
                f"judge limits {limits.source} and {limits.candidate} tokens leave no room for text; expected at least 4, "
                "three are control tokens: raise max_source_tokens or max_candidate_tokens"
            )
        network, tokenizer = load_pairrm(folder, device)
        return cls(network, tokenizer, limits, tokens_per_batch)

    def judge(self, matches: Sequence[Match], report: Report) -> list[Logits]:
        """Logits of each match's pairs, (P,) each."""
        encodings: list[PairEncoding] = []
        places: list[dict[Question, int]] = []
        for match in matches:
            found = self._encode(match)
            places.append({question: len(encodings) + offset for offset, question in enumerate(found)})
            encodings.extend(found.values())
        scores = self._score(encodings, report)  # (Q,), Q questions
        return [_logits_of(match, place, scores) for match, place in zip(matches, places, strict=True)]

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
        for rows in fill_batches([len(encoding.ids) for encoding in encodings], self.tokens_per_batch):
            batch = pad_pairs([encodings[row] for row in rows], self.tokenizer.control.pad)
            scores[rows] = self.network.logits(batch).cpu().numpy()
            done += len(rows)
            report(Progress(stage="judge", done=done, total=len(encodings), unit="pairs"))
        return scores


def _logits_of(match: Match, places: dict[Question, int], scores: Logits) -> Logits:
    logits = np.zeros(len(match.pairs), dtype=np.float32)  # (P,); identical texts stay 0
    for position, (first, second) in enumerate(match.pairs):
        place = places.get((match.responses[first], match.responses[second]))
        if place is not None:
            logits[position] = scores[place]
    return logits
