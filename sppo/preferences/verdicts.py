"""What a judge said, with what is known of the answers, ready to be counted. N prompts, K responses, M pairs, J judges."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sppo.errors import JudgeError

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Label = Callable[[str, str, str], float]
"""From prompt id and two answers to P(first > second) as it truly is."""


@dataclass(frozen=True)
class Verdicts:
    """Logits of N prompts with K responses each."""

    logits: Array
    """(N, K, K), L_ij of the pair shown as (i, j); nan where there is no verdict."""
    members: Array
    """(J, N, K, K), of each judge of an ensemble; J = 0 for a single judge."""
    lengths: npt.NDArray[np.int64]
    """(N, K), characters."""
    same: Mask
    """(N, K, K), whether both answers are the same text; so on the diagonal."""
    labels: Array
    """(N, K, K), P(y_i > y_j) as it truly is; nan where nobody knows."""

    @property
    def margins(self) -> Array:
        """(N, K, K), (L_ij - L_ji) / 2: the judge's log-odds with the order averaged out."""
        return (self.logits - self.logits.transpose(0, 2, 1)) / 2

    @property
    def whole(self) -> Mask:
        """(N,) whether every pair has its verdict."""
        return np.asarray(np.isfinite(self.logits).all(axis=(1, 2)))

    @property
    def told_apart(self) -> Mask:
        """(N,) whether there are two different texts."""
        return np.asarray(~self.same.all(axis=(1, 2)))

    def taken(self, rows: Mask) -> "Verdicts":
        """Those of some prompts."""
        return Verdicts(self.logits[rows], self.members[:, rows], self.lengths[rows], self.same[rows], self.labels[rows])


@dataclass(frozen=True)
class Pairs:
    """M pairs of responses i < j to one prompt, of different texts, with a verdict in both orders."""

    prompt: npt.NDArray[np.int64]
    """(M,) a number for each prompt."""
    forward: Array
    """(M,) L_ij."""
    backward: Array
    """(M,) L_ji."""
    members: Array
    """(J, M), (L_ij - L_ji) / 2 of each judge of an ensemble, nan without a verdict."""
    longer: Array
    """(M,) characters that answer i has more than j."""
    labels: Array
    """(M,) P(y_i > y_j) as it truly is, or nan."""

    @property
    def margins(self) -> Array:
        """(M,), (L_ij - L_ji) / 2."""
        return (self.forward - self.backward) / 2

    def __len__(self) -> int:
        return len(self.forward)


def read_verdicts(comparisons: pa.Table, texts: Mapping[str, Sequence[str]], label: Label | None = None) -> list[Verdicts]:
    """Comparison rows and their responses, one group for each K.

    Raises JudgeError for an infinite logit, or comparisons that do not fit the responses."""
    prompt_ids = comparisons["prompt_id"].to_pylist()
    sizes = comparisons["responses"].to_numpy().astype(np.int64)  # (N,)
    flat = _flat(comparisons["logits"])
    starts = np.concatenate([[0], np.cumsum(sizes**2)])  # (N + 1,)
    judges = len(comparisons["members"][0]) if len(comparisons) else 0
    members = _flat(comparisons["members"].combine_chunks().flatten())
    if len(flat) != starts[-1] or len(members) != judges * starts[-1]:
        raise JudgeError(
            f"{len(flat)} logits and {len(members)} of {judges} members for {len(sizes)} prompts; "
            f"expected K x K each, {starts[-1]} of every judge: delete the rank artifact and rank again"
        )
    groups = []
    for count in np.unique(sizes).tolist():
        rows = np.flatnonzero(sizes == count)  # (N,) of the rows
        square = np.arange(count * count)  # (K * K,)
        first = judges * starts[rows] + np.arange(judges)[:, None] * count**2  # (J, N) of the members' numbers
        answers = [_answers(texts, prompt_ids[row], count) for row in rows]
        verdicts = Verdicts(
            logits=flat[starts[rows][:, None] + square].reshape(-1, count, count),
            members=members[first[:, :, None] + square].reshape(judges, len(rows), count, count),
            lengths=np.array([[len(text) for text in each] for each in answers], dtype=np.int64),
            same=np.array([[[one == other for other in each] for one in each] for each in answers], dtype=bool),
            labels=_labels([prompt_ids[row] for row in rows], answers, label),
        )
        _refuse_infinite(verdicts.logits, [prompt_ids[row] for row in rows])
        groups.append(verdicts)
    return groups


def _flat(lists: pa.ChunkedArray | pa.Array) -> Array:
    whole = lists.combine_chunks() if isinstance(lists, pa.ChunkedArray) else lists
    return np.asarray(whole.flatten().to_numpy(zero_copy_only=False), dtype=np.float64)


def _answers(texts: Mapping[str, Sequence[str]], prompt_id: str, count: int) -> Sequence[str]:
    answers = texts.get(prompt_id, [])
    if len(answers) != count:
        raise JudgeError(f"prompt {prompt_id} was ranked with {count} responses and has {len(answers)}: rank again")
    return answers


def _labels(prompt_ids: Sequence[str], answers: Sequence[Sequence[str]], label: Label | None) -> Array:
    count = len(answers[0])
    labels = np.full((len(answers), count, count), np.nan)  # (N, K, K)
    if label is not None:
        for row, (prompt_id, texts) in enumerate(zip(prompt_ids, answers, strict=True)):
            for i, j in zip(*np.triu_indices(count, 1), strict=True):
                labels[row, i, j] = label(prompt_id, texts[i], texts[j])
                labels[row, j, i] = 1 - labels[row, i, j]
    return labels


def _refuse_infinite(logits: Array, prompt_ids: Sequence[str]) -> None:
    bad = np.argwhere(np.isinf(logits))
    if len(bad):
        row, i, j = bad[0].tolist()
        raise JudgeError(
            f"judge logit for prompt {prompt_ids[row]}, pair ({i}, {j}) is {logits[row, i, j]}; "
            "expected a finite number: delete the rank artifact and rank again"
        )


def gathered(groups: Iterable[Verdicts]) -> list[Verdicts]:
    """The groups of many chunks as one for each K."""
    by_size: dict[int, list[Verdicts]] = {}
    for group in groups:
        by_size.setdefault(group.logits.shape[1], []).append(group)
    return [
        Verdicts(
            logits=np.concatenate([each.logits for each in same_size]),
            members=np.concatenate([each.members for each in same_size], axis=1),
            lengths=np.concatenate([each.lengths for each in same_size]),
            same=np.concatenate([each.same for each in same_size]),
            labels=np.concatenate([each.labels for each in same_size]),
        )
        for _, same_size in sorted(by_size.items())
    ]


def pairs_of(groups: Sequence[Verdicts]) -> Pairs:
    """All pairs of different texts with a verdict in both orders."""
    prompt, forward, backward, members, longer, labels = [], [], [], [], [], []
    before = 0
    for group in groups:
        prompts, count = group.lengths.shape
        i, j = np.triu_indices(count, 1)  # (K (K - 1) / 2,)
        one, other = group.logits[:, i, j], group.logits[:, j, i]
        kept = ~group.same[:, i, j] & np.isfinite(one + other)  # (N, K (K - 1) / 2)
        prompt.append(np.broadcast_to(before + np.arange(prompts)[:, None], kept.shape)[kept])
        forward.append(one[kept])
        backward.append(other[kept])
        members.append(((group.members[:, :, i, j] - group.members[:, :, j, i]) / 2)[:, kept])
        longer.append((group.lengths[:, i] - group.lengths[:, j])[kept].astype(np.float64))
        labels.append(group.labels[:, i, j][kept])
        before += prompts
    return Pairs(
        np.concatenate(prompt),
        np.concatenate(forward),
        np.concatenate(backward),
        np.concatenate(members, axis=1),
        np.concatenate(longer),
        np.concatenate(labels),
    )
