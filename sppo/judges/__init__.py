"""Judges: which of two answers is better, behind one protocol. N matches, P pairs of a match.

L_ij is the judge's logit for the pair shown in the order (i, j): positive where answer i looks better. Nothing makes
L_ij = -L_ji, and nothing makes preferences transitive: `sppo.estimate` turns logits into probabilities.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, assert_never

import numpy as np
import numpy.typing as npt

from sppo import recipe
from sppo.errors import JudgeError
from sppo.judges.source import build, step
from sppo.progress import Report

if TYPE_CHECKING:
    from sppo.store import Store

__all__ = [
    "Judge",
    "Logits",
    "Match",
    "Rulings",
    "Tally",
    "build",
    "check_finite",
    "load",
    "prompt_text",
    "questions",
    "spread",
    "step",
    "tally",
]

Logits = npt.NDArray[np.float32]
Device = Literal["cpu", "cuda"]
Question = tuple[str, str]
"""Two different answers to one prompt, in the order in which they are shown."""


@dataclass(frozen=True)
class Match:
    """One prompt, some answers to it, and which of them to compare."""

    prompt_id: str
    messages: list[dict[str, str]]
    """Turns of role and content, as given."""
    responses: list[str]
    pairs: list[tuple[int, int]]
    """Positions in `responses`; the first is shown first."""


@dataclass(frozen=True)
class Rulings:
    """What a judge says of M matches."""

    logits: list[Logits]
    """(P,) of each match; nan where a judge that `leaves_open` got no verdict."""
    members: list[list[Logits]] = field(default_factory=list)
    """Of an ensemble, the same of each judge in it."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """What it took, for the part's record: requests, tokens."""


class Judge(ABC):
    """Compares answers. A match's logits depend on that match alone, never on its neighbours or the batch."""

    leaves_open: bool = False
    """Whether a pair may stay without a verdict, its logit nan: a server may be away, weights may not."""

    @abstractmethod
    def judge(self, matches: Sequence[Match], report: Report) -> list[Logits]:
        """Logits of each match's pairs, (P,) each, in the order of its pairs; 0 where both answers are the same text."""

    def rule(self, matches: Sequence[Match], report: Report) -> Rulings:
        """The same with what stands behind it, for judges that have more to say."""
        return Rulings(self.judge(matches, report))


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


def questions(match: Match) -> list[Question]:
    """The distinct ordered pairs of different texts of a match, in the order of first appearance."""
    texts = ((match.responses[first], match.responses[second]) for first, second in match.pairs)
    return list(dict.fromkeys(pair for pair in texts if pair[0] != pair[1]))


def spread(match: Match, logits: Mapping[Question, float]) -> Logits:
    """(P,) of a match from the logits of its questions; 0 where both answers are the same text."""
    texts = ((match.responses[first], match.responses[second]) for first, second in match.pairs)
    return np.array([0.0 if first == second else logits[first, second] for first, second in texts], dtype=np.float32)


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


def check_finite(matches: Sequence[Match], logits: Sequence[Logits], mend: str, may_be_open: bool = False) -> None:
    """Raises JudgeError naming prompt and pair of the first logit that is not finite, and the next move.

    may_be_open: nan is a pair without a verdict, as of a judge that `leaves_open`."""
    for match, found in zip(matches, logits, strict=True):
        for pair, logit in zip(match.pairs, found.tolist(), strict=True):
            if not math.isfinite(logit) and not (may_be_open and math.isnan(logit)):
                raise JudgeError(
                    f"judge logit for prompt {match.prompt_id}, pair {pair} is {logit}; expected a finite number: {mend}"
                )


def load(
    judge: recipe.Judge, folder: Path | None, device: Device, tokens_per_batch: int, store: "Store | None" = None
) -> Judge:
    """A judge ready to judge.

    folder: its artifact's; None for a judge without weights. store: where an ensemble finds its members' artifacts.
    Raises JudgeError for a folder that is not a whole judge of its kind."""
    match judge:
        case recipe.PairRMJudge(backend="llm-blender"):
            from sppo.judges.blender import BlenderJudge

            return BlenderJudge.load(judge, _needed(folder, judge.kind), device)
        case recipe.PairRMJudge():
            from sppo.judges.network import NetworkJudge

            return NetworkJudge.load(judge, _needed(folder, judge.kind), device, tokens_per_batch)
        case recipe.RewardModelJudge():
            from sppo.judges.reward import RewardJudge

            return RewardJudge.load(judge, _needed(folder, judge.kind), device, tokens_per_batch)
        case recipe.GeneralPreferenceJudge():
            from sppo.judges.general_preference import EmbeddingJudge

            return EmbeddingJudge.load(judge, _needed(folder, judge.kind), device, tokens_per_batch)
        case recipe.PairwiseLLMJudge():
            from sppo.judges.pairwise_llm import ChoosingJudge

            return ChoosingJudge.load(judge, _needed(folder, judge.kind), device, tokens_per_batch)
        case recipe.EndpointJudge():
            from sppo.judges.endpoint import ServedJudge

            return ServedJudge(judge)
        case recipe.EnsembleJudge():
            from sppo.judges.ensemble import MeanJudge

            return MeanJudge.load(judge, folder, device, tokens_per_batch, store)
        case recipe.WorldRuleJudge():
            from sppo.judges.rule import RuleJudge

            return RuleJudge()
        case _:
            assert_never(judge)


def _needed(folder: Path | None, kind: str) -> Path:
    if folder is None:
        raise JudgeError(f"judge {kind} has no folder; expected its artifact: build sppo.judges.step first")
    return folder
