"""What a loss may read of responses, from the examples: roles and win probabilities, and the gates of `s_sppo`."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sppo.errors import TrainError
from sppo.hygiene import similarity
from sppo.loss import Labels, takes_part
from sppo.recipe import Training
from sppo.train.examples import Examples, TrainingPrompt

Array = npt.NDArray[np.float64]


def labels_of(prompts: Sequence[TrainingPrompt], gates: Array | None = None) -> Labels:
    """Labels of the prompts' responses in their order, as numpy arrays.

    gates: (R,) of all rows of the examples, or None where the loss reads none."""
    responses = [response for prompt in prompts for response in prompt.responses]
    roles = np.array([response.role for response in responses])  # (B,)
    sizes = [len(prompt.responses) for prompt in prompts]
    return Labels(
        prompt=np.repeat(np.arange(len(prompts)), sizes),
        win_probability=np.array([response.win_probability for response in responses], np.float64),
        is_best=roles == "best",
        is_worst=roles == "worst",
        gate=None if gates is None else gates[[response.row for response in responses]],
        pair_probability=np.repeat([_pair_probability(prompt) for prompt in prompts], sizes),
    )


def _pair_probability(prompt: TrainingPrompt) -> float:
    """P(best > worst); 1/2 where it has no pair, nan where the targets do not say."""
    roles = {response.role: response for response in prompt.responses}
    return roles["best"].beats_worst if {"best", "worst"} <= roles.keys() else 0.5


def read_by_loss(examples: Examples, training: Training) -> tuple[Examples, int]:
    """The examples without the responses that the loss does not read, rows numbered anew; and how many those were.

    Such a response, of a prompt left with one of a pair or of a tie, would be computed for nothing and would count in the
    divisor of its batch. Raises TrainError for targets without P(best > worst) where the loss reads that."""
    prompts: list[TrainingPrompt] = []
    row = 0
    for prompt in examples.prompts:
        labels = labels_of([prompt])
        reads = takes_part(training, labels)  # (B,)
        if training.loss == "sppo_single" and np.isnan(labels.pair_probability).any():
            raise TrainError(
                f"the targets of prompt {prompt.prompt_id!r} lack P(best > worst), which sppo_single trains on; expected the "
                "column beats_worst: estimate again"
            )
        kept = [response for response, read in zip(prompt.responses, reads, strict=True) if read]
        renumbered = tuple(replace(response, row=row + number) for number, response in enumerate(kept))
        row += len(kept)
        if kept:
            prompts.append(replace(prompt, responses=renumbered))
    return replace(examples, prompts=prompts), len(examples.responses) - row


def response_gates(examples: Examples, responses: pa.Table, gate_from: float) -> Array:
    """S-SPPO's supervision gate: what P - 1/2 is multiplied by, less the more a response says the same as its opponent.

    responses: rows with prompt_id, k and text; result: (R,) in [0, 1], by row of the examples. The opponent is the most similar
    trained response on the other side of P = 1/2, for extremes the other one of the pair; without one the gate is 1. With s the
    similarity of the two texts (`sppo.hygiene.similarity`) it is (1 - s) / (1 - gate_from), at most 1.
    arXiv:2606.01561: win rate targets go to the maximum-entropy baseline 1/2 as semantic overlap grows; docs/algorithm.md says
    what is ours. Raises TrainError for a response without a text."""
    texts = texts_of(examples, responses)
    gates = np.ones(len(texts))  # (R,)
    for prompt in examples.prompts:
        for one in prompt.responses:
            won = one.win_probability > 0.5
            opponents = [other for other in prompt.responses if (other.win_probability > 0.5) != won]
            alike = max((similarity(texts[one.row], texts[other.row]) for other in opponents), default=0.0)
            gates[one.row] = min(1.0, (1.0 - alike) / (1.0 - gate_from))
    return gates


def texts_of(examples: Examples, responses: pa.Table) -> list[str]:
    """(R,) the text of each response. Raises TrainError for a response without one."""
    texts: Mapping[tuple[str, int], str | None] = {
        (prompt_id, k): text
        for prompt_id, k, text in zip(*(responses[name].to_pylist() for name in ("prompt_id", "k", "text")), strict=True)
    }
    found: list[str] = []
    for prompt in examples.prompts:
        for response in prompt.responses:
            text = texts.get((prompt.prompt_id, response.k))
            if text is None:
                raise TrainError(
                    f"prompt {prompt.prompt_id!r}, response {response.k} has no text, which s_sppo compares: generate again"
                )
            found.append(text)
    return found
