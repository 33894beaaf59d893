"""Micro-batches without padding: each prompt once, then its responses, one after the other in a single row.

N tokens of a micro-batch, B responses, R response tokens. A prompt and its responses are never parted, so a response finds its
prompt's keys, and a loss that compares two responses finds both. Pure; a prompt's cost is known by its stored tokens, the
prompt counted once: every rank works out the same plan from these lengths alone.
"""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sppo.train.examples import TokenIds


class Span(NamedTuple):
    """Neighbouring tokens of a row."""

    start: int
    length: int

    @property
    def end(self) -> int:
        """The place after the last token."""
        return self.start + self.length


class Family(NamedTuple):
    """Where a prompt and its responses lie; they follow each other without a gap."""

    prompt: Span
    responses: tuple[Span, ...]


@dataclass(frozen=True)
class PackedBatch:
    """Whole prompts with their responses in one row."""

    token_ids: npt.NDArray[np.int64]
    """(N,)."""
    positions: npt.NDArray[np.int64]
    """(N,), what the policy sees: a response goes on where its prompt ended, each of them."""
    families: tuple[Family, ...]
    """One a prompt."""
    predictors: npt.NDArray[np.int64]
    """(R,), the place whose hidden state predicts each response token: the one before it. The prompt's last token predicts
    the first token of each of its responses."""
    labels: npt.NDArray[np.int64]
    """(R,), the response tokens, response by response."""
    lengths: tuple[int, ...]
    """(B,), tokens of each response; they sum to R."""
    cache: dict[object, Any] = field(default_factory=dict, compare=False, repr=False)
    """What an attention function has worked out about this row and needs again in every layer."""

    @property
    def tokens(self) -> int:
        """N: what the policy computes."""
        return len(self.token_ids)

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt with one response."""
        return int(self.positions.max()) + 1

    @property
    def responses_each(self) -> tuple[int, ...]:
        """How many responses each prompt has; they sum to B."""
        return tuple(len(family.responses) for family in self.families)


def pack(prompts: Sequence[tuple[TokenIds, Sequence[TokenIds]]]) -> PackedBatch:
    """One row of (prompt, its responses); all of them hold at least one token id."""
    token_ids, positions, predictors, labels = [], [], [], []
    families: list[Family] = []
    end = 0
    for prompt, responses in prompts:
        prompt_span = Span(end, len(prompt))
        token_ids.append(prompt)
        positions.append(np.arange(len(prompt)))
        end = prompt_span.end
        spans: list[Span] = []
        for response in responses:
            spans.append(Span(end, len(response)))
            token_ids.append(response)
            positions.append(np.arange(len(prompt), len(prompt) + len(response)))
            before = np.arange(end - 1, end + len(response) - 1)  # (T,)
            before[0] = prompt_span.end - 1
            predictors.append(before)
            labels.append(response)
            end = spans[-1].end
        families.append(Family(prompt_span, tuple(spans)))
    return PackedBatch(
        _joined(token_ids),
        _joined(positions),
        tuple(families),
        _joined(predictors),
        _joined(labels),
        tuple(span.length for family in families for span in family.responses),
    )


def _joined(parts: Sequence[npt.NDArray[np.generic]]) -> npt.NDArray[np.int64]:
    joined: npt.NDArray[np.int64] = np.concatenate(parts).astype(np.int64)
    return joined


@dataclass(frozen=True)
class Plan:
    """How a batch of prompts is shared out: micro-batches that all ranks run side by side, one after the other."""

    rounds: tuple[tuple[tuple[int, ...], ...], ...]
    """For each micro-batch, each rank's places in the batch; later ones may be empty."""
    waste: float
    """Share of the ranks' token places in which one waits for the fullest of its round, 0 for one rank."""

    def of_rank(self, rank: int) -> list[list[int]]:
        """A rank's micro-batches, as places in the batch."""
        return [list(of_round[rank]) for of_round in self.rounds]


def plan(tokens: Sequence[int], ranks: int, tokens_per_device: int) -> Plan:
    """As few rounds as leave every rank at most `tokens_per_device` tokens at once, evenly filled.

    tokens: (P,) stored tokens of each prompt with its responses. A prompt that alone has more is a micro-batch of its own:
    parting it would compute the prompt twice. Longest first onto the emptiest (Graham, 1969), and the ranks of a round have
    micro-batches of neighbouring sizes, so they wait little for each other."""
    within = [min(count, tokens_per_device) for count in tokens]  # (P,)
    rounds = math.ceil(max(1, sum(within)) / (tokens_per_device * ranks))
    while max(loads := _filled(within, ranks * rounds)[1]) > tokens_per_device:
        rounds += max(1, round(rounds * (max(loads) / tokens_per_device - 1) / 4))  # of thousands, not one by one
    bins, _ = _filled(within, ranks * rounds)
    sizes = [sum(tokens[place] for place in each) for each in bins]
    fullest_first = sorted(range(len(bins)), key=lambda number: (-sizes[number], bins[number]))
    numbers = [fullest_first[start : start + ranks] for start in range(0, len(bins), ranks)]
    places = ranks * sum(max(sizes[number] for number in of_round) for of_round in numbers)
    shared = tuple(tuple(tuple(bins[number]) for number in of_round) for of_round in numbers)
    return Plan(shared, 1 - sum(tokens) / places if places else 0.0)


def _filled(tokens: Sequence[int], bins: int) -> tuple[list[list[int]], list[int]]:
    """Places by bin and the bins' loads, each place put into the emptiest bin, longest first."""
    emptiest = [(0, number) for number in range(bins)]
    filled: list[list[int]] = [[] for _ in range(bins)]
    for place in sorted(range(len(tokens)), key=lambda place: (-tokens[place], place)):
        load, number = emptiest[0]
        filled[number].append(place)
        heapq.heapreplace(emptiest, (load + tokens[place], number))
    return filled, [load for load, _ in sorted(emptiest, key=lambda pair: pair[1])]
