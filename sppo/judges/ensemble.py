"""Several judges as one: a weighted mean of what they say. M members, P pairs of a match.

probabilities:  L = logit( sum_m w_m sigmoid(L^m) )      no judge's scale outweighs another's
logits:         L = sum_m w_m L^m
"""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, assert_never

import numpy as np
import numpy.typing as npt

from sppo.errors import JudgeError
from sppo.judges import Device, Judge, Logits, Match, Rulings, check_finite, load
from sppo.judges.source import MEMBERS
from sppo.progress import Progress, Report
from sppo.recipe import EnsembleJudge

if TYPE_CHECKING:
    from sppo.store import Store

Mean = Literal["probabilities", "logits"]


class MeanJudge(Judge):
    """Loaded judges and their weights. A pair that one of them leaves open is open: its mean would be of other judges."""

    def __init__(self, judges: Sequence[Judge], weights: Sequence[float], mean: Mean) -> None:
        self.judges = list(judges)
        self.weights = np.array(weights) / sum(weights)  # (M,)
        self.mean = mean
        self.leaves_open = any(judge.leaves_open for judge in judges)

    @classmethod
    def load(
        cls, judge: EnsembleJudge, folder: Path | None, device: Device, tokens_per_batch: int, store: "Store | None"
    ) -> "MeanJudge":
        """The members of an ensemble's artifact, each from its own. folder is None if no member has weights.

        Raises JudgeError if a member's artifact is not the one that the ensemble was made of."""
        found = [None] * len(judge.members) if folder is None else json.loads((folder / MEMBERS).read_text(encoding="utf-8"))
        if len(found) != len(judge.members):
            raise JudgeError(f"{folder}: {MEMBERS} names {len(found)} judges; expected {len(judge.members)}: fetch it anew")
        judges = []
        for member, named in zip(judge.members, found, strict=True):
            place = None if named is None else _folder(store, named["reference"], named["digest"])
            judges.append(load(member.judge, place, device, tokens_per_batch, store))
        return cls(judges, [member.weight for member in judge.members], judge.mean)

    def judge(self, matches: Sequence[Match], report: Report) -> list[Logits]:
        """Logits of each match's pairs, (P,) each."""
        return self.rule(matches, report).logits

    def rule(self, matches: Sequence[Match], report: Report) -> Rulings:
        """The mean, with what each member says and what they took together."""
        members: list[list[Logits]] = []
        counts: Counter[str] = Counter()
        for number, judge in enumerate(self.judges):
            rulings = judge.rule(matches, self._share(report, number))
            # a member's broken weights would look like a pair left open
            check_finite(matches, rulings.logits, f"check member {number} of the ensemble", judge.leaves_open)
            members.append(rulings.logits)
            counts.update(rulings.counts)
        logits = [combine(np.stack(found), self.weights, self.mean) for found in zip(*members, strict=True)]
        return Rulings(logits, members, dict(counts))

    def _share(self, report: Report, number: int) -> Report:
        def pass_on(progress: Progress) -> None:
            done = (number * progress.total + progress.done) // len(self.judges)
            report(progress.model_copy(update={"done": done}))

        return pass_on


def combine(logits: npt.NDArray[np.float32], weights: npt.NDArray[np.float64], mean: Mean) -> Logits:
    """The mean of M judges' logits of P pairs, (M, P) to (P,); nan where one is. weights: (M,), sum 1."""
    shares = weights[:, None]  # (M, 1)
    wide = logits.astype(np.float64)  # (M, P)
    match mean:
        case "logits":
            found = (shares * wide).sum(axis=0)  # (P,)
        case "probabilities":
            # log of the mean probability of each side: of a sure judge, 1 - sigmoid(L) would be 0
            with np.errstate(invalid="ignore"):  # numpy warns of a nan that passes through
                first = np.logaddexp.reduce(np.log(shares) - np.logaddexp(0, -wide), axis=0)  # (P,)
                second = np.logaddexp.reduce(np.log(shares) - np.logaddexp(0, wide), axis=0)  # (P,)
            found = first - second
        case _:
            assert_never(mean)
    combined: Logits = found.astype(np.float32)
    return combined


def _folder(store: "Store | None", reference: str, digest: str) -> Path:
    if store is None:
        raise JudgeError(f"an ensemble names the judge {reference}; expected the store that holds it")
    artifact = store.open(reference)
    if artifact.digest != digest:
        raise JudgeError(
            f"judge {reference} has the content digest {artifact.digest[:16]}; expected {digest[:16]}, of which the "
            "ensemble was made: it was made anew to other bytes, so start the run again"
        )
    return artifact.folder()
