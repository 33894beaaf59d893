"""A policy's shape by its config.json: enough to count its parameters exactly, and its FLOPs and bytes, without loading it.

Known are the decoders that recipes start from: Llama, Mistral, Gemma, Gemma-2, Qwen-2 and Qwen-3. What such a file leaves out
is filled in as transformers fills it in; tests build each of them and compare.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sppo.configuration import parse_json
from sppo.errors import PolicyError
from sppo.explanation import shown

CONFIG = "config.json"

LEFT_OUT: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": False},
    "mistral": {"tie_word_embeddings": False, "num_key_value_heads": 8, "sliding_window": 4096},
    "gemma": {"tie_word_embeddings": True, "num_key_value_heads": 16, "head_dim": 256},
    "gemma2": {"tie_word_embeddings": True, "num_key_value_heads": 4, "head_dim": 256, "sliding_window": 4096},
    "qwen2": {"tie_word_embeddings": False, "num_key_value_heads": 32, "sliding_window": 4096},
    "qwen3": {"tie_word_embeddings": False, "num_key_value_heads": 32, "head_dim": 128, "sliding_window": 4096},
}
"""What transformers takes for a key that a config.json does not have."""
REQUIRED = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
GEMMAS = ("gemma", "gemma2")


@dataclass(frozen=True)
class ModelShape:
    """A decoder: what its layers multiply."""

    kind: str
    """`model_type` of its config.json."""
    hidden: int
    intermediate: int
    """Width of the gated MLP."""
    heads: int
    key_value_heads: int
    head_width: int
    vocabulary: int
    tied: bool
    """The head is the embedding matrix."""
    windows: tuple[int | None, ...]
    """Of each layer: how many tokens a token sees, itself included; None for all before it."""
    query_key_value_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    norms: int = 2
    """Of a layer, each `hidden` wide."""
    head_norms: bool = False
    """Queries and keys are normed too, each head_width wide."""

    @property
    def layers(self) -> int:
        return len(self.windows)

    @property
    def queries(self) -> int:
        """Width of all query heads together."""
        return self.heads * self.head_width

    @property
    def keys(self) -> int:
        """Width of all key heads together, and of all value heads."""
        return self.key_value_heads * self.head_width

    @property
    def matrices(self) -> dict[str, tuple[int, int]]:
        """(inputs, outputs) of a layer's seven, by the names that they have in its modules."""
        return {
            "self_attn.q_proj": (self.hidden, self.queries),
            "self_attn.k_proj": (self.hidden, self.keys),
            "self_attn.v_proj": (self.hidden, self.keys),
            "self_attn.o_proj": (self.queries, self.hidden),
            "mlp.gate_proj": (self.hidden, self.intermediate),
            "mlp.up_proj": (self.hidden, self.intermediate),
            "mlp.down_proj": (self.intermediate, self.hidden),
        }

    def adapted(self, modules: Sequence[str]) -> list[tuple[int, int]]:
        """(inputs, outputs) of those of a layer's matrices whose names end so."""
        ends = tuple(f".{name.lstrip('.')}" for name in modules)
        return [sizes for name, sizes in self.matrices.items() if f".{name}".endswith(ends)]

    @property
    def layer_weights(self) -> int:
        """Parameters in the matrices of all layers: each is one multiplication a token."""
        return self.layers * sum(inputs * outputs for inputs, outputs in self.matrices.values())

    @property
    def embedding(self) -> int:
        """Parameters of the embedding matrix, and of the head: the largest matrix there is."""
        return self.vocabulary * self.hidden

    @property
    def parameters(self) -> int:
        """All of them; a tied head counts once."""
        biases = (self.queries + 2 * self.keys) * self.query_key_value_bias + self.hidden * self.output_bias
        biases += (2 * self.intermediate + self.hidden) * self.mlp_bias
        norms = self.norms * self.hidden + 2 * self.head_width * self.head_norms
        return self.layer_weights + self.layers * (biases + norms) + self.hidden + self.embedding * (1 if self.tied else 2)

    def adapter_parameters(self, rank: int, modules: Sequence[str]) -> int:
        """Of LoRA on some matrices of each layer: two thin ones each."""
        return self.layers * rank * sum(inputs + outputs for inputs, outputs in self.adapted(modules))


def read_shape(path: Path) -> ModelShape:
    """The shape that a config.json tells, or that of a folder with one. Raises PolicyError if it cannot be read."""
    file = path / CONFIG if path.is_dir() else path
    try:
        values = parse_json(file.read_bytes())
    except (OSError, ValueError) as problem:
        raise PolicyError(
            f"cannot read {file} as a model's config.json: {problem}; give the one beside its weights"
        ) from problem
    if not isinstance(values, dict):
        raise PolicyError(f"{file} holds a {type(values).__name__}; expected a model's config.json with keys and values")
    return shape_of(values, str(file))


def shape_of(config: Mapping[str, Any], where: str = CONFIG) -> ModelShape:
    """The shape that the values of a config.json tell; a multimodal one keeps the language model's under `text_config`.

    Raises PolicyError for a kind of model that is not known here, and for a key that is missing."""
    inner = config.get("text_config")
    values = {**config, **(inner if isinstance(inner, dict) else {})}
    kind = str(values.get("model_type"))
    if kind not in LEFT_OUT:
        raise PolicyError(
            f"{where} has model_type {kind!r}; expected one of {', '.join(LEFT_OUT)}: memory and FLOPs of another "
            "are not known beforehand, but it may well train"
        )
    values = LEFT_OUT[kind] | {name: value for name, value in values.items() if value is not None or name == "sliding_window"}
    missing = [name for name in REQUIRED if not isinstance(values.get(name), int) or values[name] < 1]
    if missing:
        found = values.get(missing[0])
        said = f"no {missing[0]}" if found is None else f"{missing[0]} {shown(found)}"
        raise PolicyError(f"{where} has {said}; expected a whole number, as beside a model's weights")
    heads = values["num_attention_heads"]
    biased = bool(values.get("attention_bias", False)) and kind != "mistral"
    return ModelShape(
        kind=kind,
        hidden=values["hidden_size"],
        intermediate=values["intermediate_size"],
        heads=heads,
        key_value_heads=values.get("num_key_value_heads", heads),
        head_width=values.get("head_dim", values["hidden_size"] // heads),
        vocabulary=values["vocab_size"],
        tied=bool(values["tie_word_embeddings"]),
        windows=_windows(kind, values),
        query_key_value_bias=biased or kind == "qwen2",
        output_bias=biased,
        mlp_bias=kind == "llama" and bool(values.get("mlp_bias", False)),
        norms=4 if kind == "gemma2" else 2,
        head_norms=kind == "qwen3",
    )


def _windows(kind: str, values: Mapping[str, Any]) -> tuple[int | None, ...]:
    layers: int = values["num_hidden_layers"]
    window: int | None = values.get("sliding_window")
    if kind in ("llama", "gemma") or window is None:
        return (None,) * layers
    if kind in ("qwen2", "qwen3") and not values.get("use_sliding_window", False):
        return (None,) * layers
    if kind == "mistral":
        return (window,) * layers
    types = values.get("layer_types")
    if types is not None:
        return tuple(window if each == "sliding_attention" else None for each in types)
    if kind == "gemma2":  # every second layer, the first among them
        return tuple(window if layer % 2 == 0 else None for layer in range(layers))
    return tuple(window if layer >= values.get("max_window_layers", 28) else None for layer in range(layers))
