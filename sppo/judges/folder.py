"""A judge's folder: PairRM as llm-blender keeps it, or as transformers does, read into one description.

| | config.json | encoder's shape |
|---|---|---|
| native (llm-blender/PairRM) | RankerConfig | in `encoder.json` beside it, or in the folder that `model_name` names |
| transformers (llm-blender/PairRM-hf) | DebertaV2Config with n_tasks, drop_out and control ids | in config.json |
| ours | both in one | in config.json |
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sppo.configuration import parse_json
from sppo.errors import JudgeError
from sppo.explanation import kind_of
from sppo.judges.segments import ControlTokens, JudgeTokenizer

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
TOKENIZER = "tokenizer.json"
ENCODER = "encoder.json"
"""The encoder's own config.json, put beside a native folder's."""

EMBEDDINGS = "pretrained_model.embeddings.word_embeddings.weight"
CONSTANT = "pretrained_model.embeddings.position_ids"  # 0, 1, 2, ..: older transformers saved it, no weight is in it
RANKER_FIELDS = re.compile(
    "(ranker_type|model_name|cache_dir|load_checkpoint|(source|candidate)_maxlength|n_tasks|num_(pos|neg)|"
    "sub_sampling_(mode|ratio)|loss_type|reduce_type|inference_mode|drop_out|fp16|device)"
)
CONTROL_FIELDS = {
    "sep_token_id": "sep",
    "source_prefix_id": "source",
    "cand1_prefix_id": "candidate1",
    "cand2_prefix_id": "candidate2",
    "cand_prefix_id": "candidate",
}


@dataclass(frozen=True)
class JudgeFolder:
    """What a folder says of its network."""

    path: Path
    encoder: Mapping[str, Any]
    """Fields of DebertaV2Config; vocab_size is the weight file's."""
    tasks: int
    dropout: float
    shapes: Mapping[str, tuple[int, ...]]
    """Of each tensor in the weight file, by name."""


def read_folder(path: Path) -> JudgeFolder:
    """Description of a judge folder, from its small files and the weight file's header.

    Raises JudgeError naming the file that is missing, pickled weights, another kind of ranker, an encoder whose shape is
    nowhere, or control ids that differ from the tokenizer's."""
    config = _json(path / CONFIG)
    ranker = config.get("ranker_type", "pairranker")
    if ranker != "pairranker":
        raise JudgeError(f"{path / CONFIG} is of ranker_type {ranker!r}; expected 'pairranker': choose a PairRM judge")
    encoder = _encoder(path, config)
    shapes = _shapes(path)
    rows = shapes.get(EMBEDDINGS, (encoder.get("vocab_size", 0),))[0]
    tokenizer = JudgeTokenizer(path / TOKENIZER)
    if rows < tokenizer.size:
        raise JudgeError(
            f"{path / WEIGHTS} has embeddings for {rows} tokens and {TOKENIZER} has {tokenizer.size}; "
            "expected one for each: take both files from one repository and revision"
        )
    _check_control(path, config, tokenizer.control)
    described = {**encoder, "vocab_size": rows, "pad_token_id": tokenizer.control.pad}
    tasks, dropout = _number(path, config, "n_tasks", 1), _number(path, config, "drop_out", 0.05)
    return JudgeFolder(path, described, int(tasks), dropout, shapes)


def encoder_source(path: Path) -> str | None:
    """The model whose config.json gives a native folder's encoder its shape; None where the folder itself does."""
    config = _json(path / CONFIG)
    if "hidden_size" in config or (path / ENCODER).is_file():
        return None
    named = config.get("model_name")
    if not isinstance(named, str):
        raise JudgeError(
            f"{path / CONFIG} neither gives the encoder's shape (hidden_size) nor names its model (model_name); "
            "expected PairRM's config.json: fetch the judge anew"
        )
    return named


def _number(path: Path, config: Mapping[str, Any], name: str, default: float) -> float:
    found = config.get(name, default)
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise JudgeError(f"{path / CONFIG} has {name} {found!r}; expected a number: fetch the judge anew")
    return found


def _json(path: Path) -> dict[str, Any]:
    try:
        found = parse_json(path.read_bytes())
    except FileNotFoundError:
        raise JudgeError(f"{path} is missing; expected a PairRM folder with {CONFIG}, {WEIGHTS} and {TOKENIZER}") from None
    except (OSError, ValueError) as error:
        raise JudgeError(f"{path} is not valid JSON: {error}; fetch it anew") from error
    if not isinstance(found, dict):
        raise JudgeError(f"{path} holds {kind_of(found)}; expected keys and values")
    return found


def _encoder(path: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    own = {key: value for key, value in config.items() if not RANKER_FIELDS.fullmatch(key) and key not in CONTROL_FIELDS}
    named = encoder_source(path)
    if named is not None and not (Path(named) / CONFIG).is_file():
        raise JudgeError(
            f"{path / CONFIG} names the encoder {named!r} and does not give its shape; "
            f"expected the encoder's own config.json beside it: save it as {path / ENCODER}"
        )
    if "hidden_size" not in own:
        own = _json(path / ENCODER if named is None else Path(named) / CONFIG)
    if own.get("model_type", "deberta-v2") != "deberta-v2":
        raise JudgeError(f"{path}: the encoder is a {own['model_type']!r}; expected 'deberta-v2', PairRM's")
    return {key: value for key, value in own.items() if key not in ("model_type", "architectures", "transformers_version")}


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    from safetensors import SafetensorError, safe_open

    if not (path / WEIGHTS).is_file():
        pickled = sorted(file.name for file in path.glob("*.bin"))
        if pickled:
            raise JudgeError(
                f"{path} has its weights in {pickled[0]}, a pickle, which can run code when it is opened; "
                f"expected {WEIGHTS}: use a revision that has it, or convert it with safetensors where you trust its source"
            )
        raise JudgeError(f"{path / WEIGHTS} is missing; expected a PairRM folder with {CONFIG}, {WEIGHTS} and {TOKENIZER}")
    try:
        with safe_open(path / WEIGHTS, framework="numpy") as weights:
            return {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys() if name != CONSTANT}  # noqa: SIM118
    except SafetensorError as error:
        raise JudgeError(f"{path / WEIGHTS} is not a whole safetensors file: {error}; fetch it anew") from error


def _check_control(path: Path, config: Mapping[str, Any], control: ControlTokens) -> None:
    for field, name in CONTROL_FIELDS.items():
        expected = getattr(control, name)
        if config.get(field, expected) != expected:
            raise JudgeError(
                f"{path / CONFIG} has {field} {config[field]} and {TOKENIZER} has {expected}; "
                "expected the same: take both files from one repository and revision"
            )
