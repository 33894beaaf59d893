"""Judges: which of two answers is better, behind one protocol. N matches, P pairs of a match.

L_ij is the judge's logit for the pair shown in the order (i, j): positive where answer i looks better. Nothing makes
L_ij = -L_ji, and nothing makes preferences transitive: `sppo.estimate` turns logits into probabilities.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, assert_never

import numpy as np
import numpy.typing as npt

from sppo import recipe
from sppo.errors import JudgeError
from sppo.judges.source import step
from sppo.progress import Report

__all__ = ["Judge", "Logits", "Match", "Tally", "check_finite", "load", "prompt_text", "step", "tally"]

Logits = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Match:
    """One prompt, some answers to it, and which of them to compare."""

    prompt_id: str
    messages: list[dict[str, str]]
    """Turns of role and content, as given."""
    responses: list[str]
    pairs: list[tuple[int, int]]
    """Positions in `responses`; the first is shown first."""


class Judge(Protocol):
    """Compares answers. A match's logits depend on that match alone."""

    def judge(self, matches: Sequence[Match], report: Report) -> list[Logits]:
        """Logits of each match's pairs, (P,) each, in the order of its pairs; 0 where both answers are the same text."""


@dataclass(frozen=True)
class Tally:
    """What becomes of the pairs of some matches. pairs = judged + identical + repeated."""

    pairs: int
    judged: int
    """Asked of the judge."""
    identical: int
    """Both answers the same text: 0 without asking."""
    repeated: int
    """The same two texts in the same order as a pair before: its logit."""

    def counts(self) -> dict[str, int]:
        """For a part's record."""
        return {"pairs": self.pairs, "judged": self.judged, "identical": self.identical, "repeated": self.repeated}


def questions(match: Match) -> list[tuple[str, str]]:
    """The distinct ordered pairs of different texts of a match, in the order of first appearance."""
    texts = ((match.responses[first], match.responses[second]) for first, second in match.pairs)
    return list(dict.fromkeys(pair for pair in texts if pair[0] != pair[1]))


def tally(matches: Sequence[Match]) -> Tally:
    """Counts over matches, the same for every judge."""
    pairs = sum(len(match.pairs) for match in matches)
    judged = sum(len(questions(match)) for match in matches)
    identical = sum(match.responses[first] == match.responses[second] for match in matches for first, second in match.pairs)
    return Tally(pairs, judged, identical, pairs - judged - identical)


def prompt_text(messages: Sequence[dict[str, str]]) -> str:
    """What a judge reads of a prompt: never templated text.

    A single user turn is its raw text, as PairRM was trained; an empty system turn says nothing. Several turns become lines
    `SYSTEM: ..`, `USER: ..`, `Assistant: ..`, the names that llm-blender gives the sides of a conversation."""
    turns = [turn for turn in messages if turn["role"] != "system" or turn["content"].strip()]
    if len(turns) == 1:
        return turns[0]["content"]
    names = {"system": "SYSTEM", "user": "USER", "assistant": "Assistant"}
    return "\n".join(f"{names.get(turn['role'], turn['role'])}: {turn['content']}" for turn in turns)


def check_finite(matches: Sequence[Match], logits: Sequence[Logits], mend: str) -> None:
    """Raises JudgeError naming prompt and pair of the first logit that is not finite, and the next move."""
    for match, found in zip(matches, logits, strict=True):
        for pair, logit in zip(match.pairs, found, strict=True):
            if not math.isfinite(logit):
                raise JudgeError(
                    f"judge logit for prompt {match.prompt_id}, pair {pair} is {logit}; expected a finite number: {mend}"
                )


def load(judge: recipe.Judge, folder: Path | None, device: Literal["cpu", "cuda"], tokens_per_batch: int) -> Judge:
    """A judge ready to judge. folder: its artifact's, None for the world's rule, which has none.

    Raises JudgeError for a folder that is not a whole PairRM."""
    match judge:
        case recipe.PairRMJudge():
            from sppo.judges.network import NetworkJudge

            if folder is None:
                raise JudgeError("judge pairrm has no folder; expected its artifact: build sppo.judges.step first")
            return NetworkJudge.load(judge, folder, device, tokens_per_batch)
        case recipe.WorldRuleJudge():
            from sppo.judges.rule import RuleJudge

            return RuleJudge()
        case _:
            assert_never(judge)
