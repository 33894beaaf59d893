"""From hidden states to log pi(y|x), and to the gradient of a loss of it, without ever holding a whole micro-batch's logits.

A loss depends on the policy through each response's summed log-prob alone. So a tile of logits is enough: all responses of some
prompts. From it come their log-probs, from these the loss and how it changes with each of them, dl/dlog pi(y|x) = g, and then

    dl/dlogits = g (onehot(label) - softmax(logits))        in the tile's own memory
    dl/dhidden = dl/dlogits W,    dl/dW += dl/dlogits^T hidden

One pass for the forward and the backward. Responses of one prompt that fill more than a tile take two: log-probs first, the
logits once more then. N tokens, R response tokens, B responses, H width, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from sppo.train.packing import PackedBatch

if TYPE_CHECKING:
    import torch

TILE_ROWS = 1024
TILE_LOGITS = 2**27
"""256 MB of a 16-bit tile."""
BLOCK_LOGITS = {"cpu": 2**18, "cuda": 2**26}
"""Logits that are worked on at once in 32 bit: on a CPU what fits in a core's cache."""

Objective = Callable[["torch.Tensor", slice], "torch.Tensor"]
"""Losses (b,) of some responses from their log-probs (b,); the slice says which of the micro-batch's B they are. They are all
responses of some prompts."""


@dataclass(frozen=True)
class Projection:
    """The policy's last step: logits = softcap tanh((hidden W^T + bias) / softcap)."""

    weight: "torch.Tensor"
    """(V, H)."""
    bias: "torch.Tensor | None"
    """(V,)."""
    softcap: float | None
    tile_rows: int | None = None
    """Rows of a tile; None: by its memory."""

    @property
    def rows(self) -> int:
        return self.tile_rows or max(1, min(TILE_ROWS, TILE_LOGITS // self.weight.shape[0]))

    def __call__(self, rows: "torch.Tensor") -> "torch.Tensor":
        """(r, V) of (r, H), before the soft-cap."""
        import torch

        return torch.nn.functional.linear(rows, self.weight, self.bias)

    def blocks(self, rows: int) -> Iterator[slice]:
        """Neighbouring rows of a tile, as many as are worked on at once."""
        each = max(1, BLOCK_LOGITS[self.weight.device.type] // self.weight.shape[0])
        return (slice(start, start + each) for start in range(0, rows, each))


@dataclass(frozen=True)
class Unit:
    """All responses of some prompts: what a loss is computed of at once."""

    responses: slice
    """Of the B."""
    rows: slice
    """Of the R."""

    def tiles(self, rows: int) -> Iterator[slice]:
        """Its rows, tile by tile."""
        return (slice(start, min(start + rows, self.rows.stop)) for start in range(self.rows.start, self.rows.stop, rows))


def units(lengths: Sequence[int], responses_each: Sequence[int], rows: int) -> list[Unit]:
    """Whole prompts as long as they fit into a tile; one that does not is a unit of its own.

    lengths: (B,) response tokens; responses_each: responses of each prompt."""
    found: list[Unit] = []
    first_response = response = first_row = row = 0
    for count in responses_each:
        more = sum(lengths[response : response + count])
        if row > first_row and row + more - first_row > rows:
            found.append(Unit(slice(first_response, response), slice(first_row, row)))
            first_response, first_row = response, row
        response, row = response + count, row + more
    return [*found, Unit(slice(first_response, response), slice(first_row, row))]


class Rows:
    """The hidden states that predict response tokens, and these tokens."""

    def __init__(self, hidden: "torch.Tensor", packing: PackedBatch) -> None:
        import torch

        self.hidden = hidden  # (N, H)
        self.predictors = torch.from_numpy(packing.predictors).to(hidden.device)  # (R,)
        self.labels = torch.from_numpy(packing.labels).to(hidden.device).unsqueeze(1)  # (R, 1)
        self.lengths = packing.lengths

    @property
    def whole(self) -> Unit:
        """All of them."""
        return Unit(slice(0, len(self.lengths)), slice(0, len(self.labels)))

    def __getitem__(self, rows: slice) -> "torch.Tensor":
        return self.hidden[self.predictors[rows]]  # (r, H)

    def sums(self, each: "torch.Tensor", unit: Unit) -> "torch.Tensor":
        """(b,) sums over each response's tokens, in fp64. Split and sum, not index_add: its order is fixed on a GPU too."""
        import torch

        return torch.stack([part.sum() for part in torch.split(each.double(), list(self.lengths[unit.responses]))])


def log_probs(projection: Projection, hidden: "torch.Tensor", packing: PackedBatch) -> "torch.Tensor":
    """(B,) log pi(y|x) in nats, fp64. hidden: (N, H), the policy's states after its last norm."""
    rows = Rows(hidden, packing)
    return rows.sums(_of_tokens(projection, rows), rows.whole)


def token_log_probs(projection: Projection, hidden: "torch.Tensor", packing: PackedBatch) -> "list[torch.Tensor]":
    """log pi(y_i | x, y_<i) of each token in nats, fp32: (T,) of each of the B responses."""
    import torch

    return list(torch.split(_of_tokens(projection, Rows(hidden, packing)), list(packing.lengths)))


def _of_tokens(projection: Projection, rows: Rows) -> "torch.Tensor":
    """(R,) fp32."""
    import torch

    tiles = rows.whole.tiles(projection.rows)
    return torch.cat([_score(projection, projection(rows[tile]), rows.labels[tile])[0] for tile in tiles])


@dataclass
class Gradients:
    """A micro-batch's loss and what it changes with."""

    loss: "torch.Tensor"
    """() sum over responses, fp32."""
    log_probs: "torch.Tensor"
    """(B,) fp64."""
    hidden: "torch.Tensor"
    """(N, H) fp32."""
    weight: "torch.Tensor | None" = None
    """(V, H) fp32; None for a frozen head."""
    bias: "torch.Tensor | None" = None
    """(V,) fp32; None for a frozen head, or one without."""


def gradients(
    projection: Projection, hidden: "torch.Tensor", packing: PackedBatch, objective: Objective, of_weight: bool = True
) -> Gradients:
    """The loss's value and gradients in one pass over the response tokens."""
    import torch

    rows = Rows(hidden, packing)
    found = Gradients(
        torch.zeros((), device=hidden.device),
        torch.zeros(len(packing.lengths), dtype=torch.float64, device=hidden.device),
        torch.zeros_like(hidden, dtype=torch.float32),
    )
    for unit in units(packing.lengths, packing.responses_each, projection.rows):
        _add_unit(projection, rows, unit, objective, found, of_weight)
    return found


def _add_unit(projection: Projection, rows: Rows, unit: Unit, objective: Objective, found: Gradients, of_weight: bool) -> None:
    """A unit's log-probs, its loss, then its gradients; logits are computed again only where they are more than a tile."""
    import torch

    tiles = list(unit.tiles(projection.rows))
    logits, each, normalisers = None, [], []
    for tile in tiles:
        logits = projection(rows[tile])  # (r, V)
        picked, normaliser = _score(projection, logits, rows.labels[tile])  # (r,), (r, 1)
        each.append(picked)
        normalisers.append(normaliser)
    found.log_probs[unit.responses] = rows.sums(torch.cat(each), unit)
    with torch.enable_grad():
        sums = found.log_probs[unit.responses].detach().requires_grad_()  # (b,)
        losses = objective(sums, unit.responses)  # (b,)
        [slopes] = torch.autograd.grad(losses.sum(), sums)  # (b,)
    found.loss += losses.detach().sum().float()
    lengths = torch.tensor(rows.lengths[unit.responses], device=slopes.device)
    slope = slopes.float().repeat_interleave(lengths).unsqueeze(1)  # (r of the unit, 1)
    for tile, normaliser in zip(tiles, normalisers, strict=True):
        if len(tiles) > 1:
            logits = projection(rows[tile])
        assert logits is not None
        here = slice(tile.start - unit.rows.start, tile.stop - unit.rows.start)
        _differentiate(projection, logits, rows.labels[tile], normaliser, slope[here])
        _add_tile(projection, rows, tile, logits, found, of_weight)


def _score(projection: Projection, logits: "torch.Tensor", labels: "torch.Tensor") -> tuple["torch.Tensor", "torch.Tensor"]:
    """Log-prob (r,) of each label and log-sum-exp (r, 1) of each row, in fp32. logits: (r, V); labels: (r, 1)."""
    import torch

    picked, normalisers = [], []
    for block in projection.blocks(len(logits)):
        capped = _capped(projection, logits[block])  # (rows of the block, V)
        normaliser = torch.logsumexp(capped, 1, keepdim=True)
        picked.append(capped.gather(1, labels[block]) - normaliser)
        normalisers.append(normaliser)
    return torch.cat(picked).squeeze(1), torch.cat(normalisers)


def _differentiate(
    projection: Projection, logits: "torch.Tensor", labels: "torch.Tensor", normaliser: "torch.Tensor", slope: "torch.Tensor"
) -> None:
    """Turn logits (r, V) into dl/dlogits = slope (onehot(label) - softmax(logits)), in place; slope: (r, 1)."""
    for block in projection.blocks(len(logits)):
        capped = _capped(projection, logits[block])
        bend = None if projection.softcap is None else 1 - (capped / projection.softcap).square()  # of the soft-cap
        found = (capped - normaliser[block]).exp_().mul_(-slope[block])
        found.scatter_add_(1, labels[block], slope[block])
        logits[block] = found if bend is None else found.mul_(bend)


def _capped(projection: Projection, logits: "torch.Tensor") -> "torch.Tensor":
    """Logits as the policy means them, fp32."""
    if projection.softcap is None:
        return logits.float()
    return (logits.float() / projection.softcap).tanh_().mul_(projection.softcap)


def _add_tile(
    projection: Projection, rows: Rows, tile: slice, slopes: "torch.Tensor", found: Gradients, of_weight: bool
) -> None:
    """Add a tile's part to the gradients; slopes: (r, V) dl/dlogits."""
    import torch

    # accumulate=True adds in a fixed order; a prompt's last state predicts the first token of each of its responses
    found.hidden.index_put_((rows.predictors[tile],), (slopes @ projection.weight).float(), accumulate=True)
    if not of_weight:
        return
    if found.weight is None:
        found.weight = (slopes.t() @ rows[tile]).float()  # (V, H), mostly the only tile: nothing to add it to
    elif slopes.dtype == torch.float32:
        found.weight.addmm_(slopes.t(), rows[tile])
    else:
        found.weight += slopes.t() @ rows[tile]
    if projection.bias is not None:
        more = slopes.sum(0, dtype=torch.float32)  # (V,)
        found.bias = more if found.bias is None else found.bias.add_(more)


def loss_and_log_probs(
    projection: Projection, hidden: "torch.Tensor", packing: PackedBatch, objective: Objective
) -> tuple["torch.Tensor", "torch.Tensor"]:
    """The loss (), which can be differentiated once, and log-probs (B,), which cannot."""
    found: tuple[torch.Tensor, torch.Tensor] = _function().apply(
        hidden, projection.weight, projection.bias, projection.softcap, projection.tile_rows, packing, objective
    )
    return found


@lru_cache
def _function() -> Any:
    import torch

    class FusedHead(torch.autograd.Function):
        """Gradients taken in the forward pass, handed out in the backward pass."""

        @staticmethod
        def forward(
            ctx: Any,
            hidden: torch.Tensor,
            weight: torch.Tensor,
            bias: torch.Tensor | None,
            softcap: float | None,
            tile_rows: int | None,
            packing: PackedBatch,
            objective: Objective,
        ) -> tuple[torch.Tensor, torch.Tensor]:
            projection = Projection(weight, bias, softcap, tile_rows)
            found = gradients(projection, hidden, packing, objective, of_weight=ctx.needs_input_grad[1])
            ctx.kinds = tuple(None if each is None else each.dtype for each in (hidden, weight, bias))
            ctx.gradients = (found.hidden, found.weight, found.bias)
            ctx.mark_non_differentiable(found.log_probs)
            return found.loss, found.log_probs

        @staticmethod
        def backward(ctx: Any, slope: torch.Tensor, _: Any) -> tuple[torch.Tensor | None, ...]:
            found, ctx.gradients = ctx.gradients, None  # scaled in place: a second backward pass has nothing to scale
            scaled = (None if each is None else each.mul_(slope).to(kind) for each, kind in zip(found, ctx.kinds, strict=True))
            return (*scaled, None, None, None, None)

    return FusedHead
