"""What training keeps in memory, part by part: bytes of one rank, on its device and in its machine's memory.

N parameters, M of them trained, D ranks, b bytes of the forward pass's precision (2 for bfloat16), T tokens of a micro-batch
(`tokens_per_device`). What is kept and when follows DeepSpeed 0.19 with fp32 gradient sums and transformers' decoders; the
formulas are in docs/plan.md, and tests hold them to an engine's real tensors and to what autograd really saves.
"""

from dataclasses import dataclass
from typing import Literal

from sppo.hardware import TrainHardware
from sppo.recipe import QloraAdapter, Training
from sppo.train.engine import BUCKET
from sppo.train.head import BLOCK_LOGITS, TILE_LOGITS, TILE_ROWS
from sppo.train.shape import ModelShape

When = Literal["always", "backward", "step"]

STATE_BYTES = {"rmsprop": 4.0, "adamw": 8.0, "rmsprop_8bit": 1 + 4 / 256, "adamw_8bit": 2 * (1 + 4 / 256)}
"""Of optimizer state a trained parameter: fp32 moments, or a byte each and an fp32 scale for every 256."""
NF4_BYTES = 0.5 + 4 / 64
"""Of a weight held in 4 bits, with an fp32 scale for every 64."""
LIVE_PARAMETERS = 1e9
"""That DeepSpeed lets a device hold gathered under ZeRO-3 (stage3_max_live_parameters)."""
SUB_GROUP = 1e9
"""Elements that DeepSpeed steps at once under ZeRO-3."""
CONTEXT = 1.5 * 2**30
"""CUDA's own, its kernels and NCCL's buffers: an allowance, not a formula."""
KEPT_FREE = 0.05
"""Of a device, for what the allocator cannot use."""


@dataclass(frozen=True)
class Part:
    """Something a rank keeps."""

    name: str
    device: float
    """Bytes on its device."""
    host: float = 0.0
    """Bytes in its machine's memory instead."""
    when: When = "always"
    why: str = ""
    """The formula in words."""


@dataclass(frozen=True)
class Memory:
    """All that one rank keeps. What lives only in the backward pass and what lives only in the optimizer's step never meet."""

    parts: tuple[Part, ...]

    def part(self, name: str) -> Part:
        """A part by name."""
        return next(part for part in self.parts if part.name == name)

    @property
    def device(self) -> float:
        """The most bytes its device holds at once."""
        return self._during("always") + max(self._during("backward"), self._during("step"))

    @property
    def host(self) -> float:
        """Bytes in the machine's memory."""
        return sum(part.host for part in self.parts)

    def fits(self, device_bytes: float) -> bool:
        """Whether a device of this size has room, and KEPT_FREE left."""
        return self.device <= device_bytes * (1 - KEPT_FREE)

    def _during(self, when: When) -> float:
        return sum(part.device for part in self.parts if part.when == when)


def training_memory(
    shape: ModelShape,
    training: Training,
    dtype: Literal["float32", "bfloat16"],
    hardware: TrainHardware,
    device: Literal["cpu", "cuda"],
    tokens: int,
) -> Memory:
    """What one rank keeps while it trains on micro-batches of so many tokens."""
    width = 2 if dtype == "bfloat16" else 4
    trained = trained_parameters(shape, training)
    parts = (
        _parameters(shape, training, hardware, device, width),
        *_optimizer(trained, training, hardware, device, width),
        _activations(shape, hardware.recompute_activations, tokens, width),
        _head(shape, training, device, tokens, width),
        _gathered(shape, hardware, width),
        _communication(trained, hardware, width),
        _stepping(trained, hardware, device),
        Part("CUDA context", CONTEXT if device == "cuda" else 0.0, why="an allowance: CUDA, its kernels, NCCL"),
    )
    return Memory(tuple(part for part in parts if part.device or part.host))


def trained_parameters(shape: ModelShape, training: Training) -> int:
    """All of them, or the adapter's."""
    adapter = training.adapter
    return shape.parameters if adapter.kind == "none" else shape.adapter_parameters(adapter.rank, adapter.modules)


def _parameters(shape: ModelShape, training: Training, hardware: TrainHardware, device: str, width: int) -> Part:
    """Weights of the forward pass. An adapter's own come on top; a base in 4 bits is whole on every rank."""
    ranks = hardware.ranks if hardware.zero_stage == 3 else 1
    adapter = training.adapter
    if isinstance(adapter, QloraAdapter):
        small = shape.layers * sum(inputs * outputs for inputs, outputs in shape.adapted(adapter.modules))
        held = small * NF4_BYTES + (shape.parameters - small) * width
        thin = width * trained_parameters(shape, training)
        return Part("parameters", held + thin, why=f"{NF4_BYTES:g} B x {_count(small)} in 4 bits, {width} B x the rest")
    extra = 0 if adapter.kind == "none" else trained_parameters(shape, training)
    held = (shape.parameters + extra) * width / ranks
    why = f"{width} B x {_count(shape.parameters + extra)}{_by(ranks)}"
    if device == "cuda" and hardware.offload == "optimizer_and_parameters":
        return Part("parameters", 0.0, held, why=why)
    return Part("parameters", held, why=why)


def _optimizer(trained: int, training: Training, hardware: TrainHardware, device: str, width: int) -> tuple[Part, ...]:
    """Gradient sums, fp32 masters and the optimizer's state: what moves to the machine's memory together."""
    stage = hardware.zero_stage
    ranks = hardware.ranks if stage else 1
    gradient, shared = {0: (width, 1), 1: (4 if width == 4 else 6, 1)}.get(stage, (4, ranks))
    each = STATE_BYTES[training.optimizer]
    sizes = [("gradients", gradient, shared), ("fp32 masters", 4 if stage else 0, ranks), ("optimizer state", each, ranks)]
    offloaded = device == "cuda" and hardware.offload != "none"
    parts = []
    for name, size, among in sizes:
        held = size * trained / among
        why = f"{size:.3g} B x {_count(trained)}{_by(among)}"
        why += f", {training.optimizer}" if name == "optimizer state" else ""
        parts.append(Part(name, 0.0 if offloaded else held, held if offloaded else 0.0, why=why))
    return tuple(parts)


def activation_bytes(shape: ModelShape, width: int) -> float:
    """Bytes a token that autograd saves in one layer.

    Per norm its input in fp32 and what it made; queries, keys, values and attended values; gate, its activation, up and their
    product. Gemma-2's norms scale in fp32, and those after a block feed no matrix."""
    gemma = shape.kind in ("gemma", "gemma2")
    before = 4 + (4 if gemma else width) + width  # fp32 input, normed, scaled
    norms = (2 * before + (shape.norms - 2) * 8) * shape.hidden + 4 * shape.norms
    attention = 2 * width * (shape.queries + shape.keys) + 4 * shape.heads
    if shape.head_norms:
        attention += (4 + width) * (shape.queries + shape.keys) + 4 * (shape.heads + shape.key_value_heads)
    return norms + attention + 4 * width * shape.intermediate


def _activations(shape: ModelShape, recompute: bool, tokens: int, width: int) -> Part:
    """Saved for the backward pass, and the gradients that pass through a layer."""
    layer = activation_bytes(shape, width)
    passing = width * (2 * shape.hidden + 3 * shape.intermediate)
    last = (4 + 2 * width) * shape.hidden  # the norm below the head, and the embeddings
    kept = width * shape.hidden * shape.layers + layer if recompute else layer * shape.layers
    how = "each layer's input, one recomputed" if recompute else f"{layer / 1e3:,.0f} kB a token and layer"
    return Part("activations", tokens * (kept + passing + last), when="backward", why=f"{tokens:,} tokens: {how}")


def _head(shape: ModelShape, training: Training, device: str, tokens: int, width: int) -> Part:
    """The head's gradients and one tile of logits: the gradient in fp32 beside its copy in the policy's precision."""
    rows = max(1, min(TILE_ROWS, TILE_LOGITS // shape.vocabulary, tokens))
    block = min(BLOCK_LOGITS[device], rows * shape.vocabulary)
    tile = width * rows * shape.vocabulary + 12 * block
    weight = (4 + width) * shape.embedding if training.adapter.kind == "none" else 0
    why = f"a tile of {rows:,} x {shape.vocabulary:,} logits" + (
        f", {4 + width} B x {_count(shape.embedding)}" if weight else ""
    )
    return Part("head and its gradient", tile + weight + 4 * tokens * shape.hidden, when="backward", why=why)


def _gathered(shape: ModelShape, hardware: TrainHardware, width: int) -> Part:
    """Under ZeRO-3, whole weights that a device holds while layers use them."""
    if hardware.zero_stage < 3:
        return Part("gathered weights", 0.0)
    live = min(float(shape.parameters), max(LIVE_PARAMETERS, shape.embedding + shape.layer_weights / shape.layers) + BUCKET)
    return Part("gathered weights", width * live, when="backward", why=f"{width} B x {_count(live)} in use at once")


def _communication(trained: int, hardware: TrainHardware, width: int) -> Part:
    """Buckets of gradients on their way; under ZeRO-3 two, so that one fills while the other leaves."""
    if not hardware.zero_stage:
        return Part("communication", 0.0)
    buckets = (2 if hardware.zero_stage == 3 else 1) * min(BUCKET, trained)
    return Part("communication", width * buckets, when="backward", why=f"{width} B x {_count(buckets)} in buckets")


def _stepping(trained: int, hardware: TrainHardware, device: str) -> Part:
    """While the optimizer steps: the gradient once more in fp32, and a root of the squared average."""
    if device == "cuda" and hardware.offload != "none":
        return Part("while stepping", 0.0)
    share = trained / (hardware.ranks if hardware.zero_stage else 1)
    share = min(share, SUB_GROUP) if hardware.zero_stage == 3 else share
    return Part("while stepping", 8 * share, when="step", why=f"8 B x {_count(share)} of a sub-group")


def _count(number: float) -> str:
    """Such as 9.24 billion, short."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {letter}"
    return f"{number:.0f}"


def _by(ranks: int) -> str:
    return f" / {ranks} ranks" if ranks > 1 else ""
