"""Padded micro-batches, and log pi(y|x) of each response as a sum over its tokens. B sequences, T tokens, R response tokens.

Padding is known by lengths, never by a token id: a policy's pad token may also be its stop token.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sppo.errors import TrainError
from sppo.train.examples import TokenIds

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class MicroBatch:
    """Sequences of prompt and response, padded on the right."""

    token_ids: npt.NDArray[np.int64]
    """(B, T), 0 where padded."""
    present: npt.NDArray[np.bool_]
    """(B, T), False where padded."""
    predicts: npt.NDArray[np.bool_]
    """(B, T), True where the next token is one of the response: the last prompt token to the last but one."""
    labels: npt.NDArray[np.int64]
    """(R,), those next tokens, row by row."""
    lengths: tuple[int, ...]
    """Response tokens of each sequence; they sum to R."""

    @property
    def tokens(self) -> int:
        """Tokens without padding."""
        return int(self.present.sum())


def pad(sequences: Sequence[tuple[TokenIds, TokenIds]]) -> MicroBatch:
    """A micro-batch of (prompt, response) token ids; both hold at least one id."""
    width = max(len(prompt) + len(response) for prompt, response in sequences)
    shape = (len(sequences), width)
    token_ids = np.zeros(shape, np.int64)  # (B, T)
    present = np.zeros(shape, np.bool_)  # (B, T)
    predicts = np.zeros(shape, np.bool_)  # (B, T)
    for row, (prompt, response) in enumerate(sequences):
        end = len(prompt) + len(response)
        token_ids[row, : len(prompt)] = prompt
        token_ids[row, len(prompt) : end] = response
        present[row, :end] = True
        predicts[row, len(prompt) - 1 : end - 1] = True
    labels = np.concatenate([response for _, response in sequences]).astype(np.int64)  # (R,)
    return MicroBatch(token_ids, present, predicts, labels, tuple(len(response) for _, response in sequences))


class ResponseLogProbs:
    """log pi(y|x) of padded sequences, with the vocabulary projection at response positions only.

    The model's own forward pass is run, so that whatever it does to its logits (soft-caps, scales) is done here too; a hook
    on its head narrows the hidden states, because B x T x vocabulary logits would not fit in memory."""

    def __init__(self, model: Any) -> None:
        self._predicts: torch.Tensor | None = None
        model.get_output_embeddings().register_forward_pre_hook(self._narrow)

    def _narrow(self, _: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden = inputs[0]  # (B, T, width)
        return (hidden[self._predicts].unsqueeze(0), *inputs[1:])  # (1, R, width)

    def __call__(self, forward: Any, batch: MicroBatch, device: str) -> "torch.Tensor":
        """(B,) sums over response tokens in fp32, nats. `forward` is the model or the engine around it.

        Raises TrainError for a model whose logits are not one row a response token."""
        import torch

        self._predicts = torch.from_numpy(batch.predicts).to(device)
        logits = forward(
            input_ids=torch.from_numpy(batch.token_ids).to(device),
            attention_mask=torch.from_numpy(batch.present).to(device).long(),
            use_cache=False,
        ).logits  # (1, R, vocabulary)
        if logits.shape[:2] != (1, len(batch.labels)):
            raise TrainError(
                f"the policy gave logits of shape {tuple(logits.shape)} for {len(batch.labels)} response tokens; "
                "expected one row a token: this architecture does not call its output embeddings as a module"
            )
        labels = torch.from_numpy(batch.labels).to(device)
        each = -torch.nn.functional.cross_entropy(logits[0].float(), labels, reduction="none")  # (R,)
        # Split and sum instead of index_add: its order is fixed, so results repeat bit for bit on a GPU too.
        return torch.stack([part.sum() for part in torch.split(each, list(batch.lengths))])  # (B,)
