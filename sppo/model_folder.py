"""What a model's folder says of itself that must not be believed: which files hold its weights, and which Python defines it."""

from pathlib import Path
from typing import Any

from sppo.configuration import parse_json
from sppo.errors import SppoError
from sppo.explanation import kind_of
from sppo.store.manifest import FILE_NAME

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"


def read_keys(path: Path, error: type[SppoError]) -> dict[str, Any]:
    """Keys and values of a JSON file of the folder. Raises `error` naming the file."""
    try:
        content = parse_json(path.read_bytes())
    except FileNotFoundError:
        raise error(f"{path} is missing; expected a model in Hugging Face form: copy or fetch the whole folder again") from None
    except (OSError, ValueError) as problem:
        raise error(f"cannot read {path}: {problem}; copy or fetch the folder again") from problem
    if not isinstance(content, dict):
        raise error(f"{path} holds {kind_of(content)}; expected keys and values: copy or fetch the folder again")
    return content


def indexed_weights(folder: Path, error: type[SppoError]) -> list[str]:
    """Names of the files that the folder's index takes weights from, sorted; whether they are there is not asked.

    Loaders join these names to the folder. Raises `error` for one that leads elsewhere, or that a loader would unpickle."""
    named = read_keys(folder / INDEX, error).get("weight_map")
    if not isinstance(named, dict) or not named:
        raise error(f"{folder / INDEX} has no weight_map; expected a file name for each tensor: copy the whole folder again")
    for tensor, name in named.items():
        if not (isinstance(name, str) and FILE_NAME.fullmatch(name) and name.endswith(".safetensors")):
            raise error(
                f"{folder / INDEX} takes {tensor} from {name!r}; expected a *.safetensors file of the same folder: "
                "take the folder from a source that you trust"
            )
    return sorted(set(named.values()))


def code_modules(folder: Path, error: type[SppoError]) -> list[str]:
    """Python files of the folder that define its model; none for an architecture that transformers has.

    Raises `error` for code of yet another repository, which no digest here would cover."""
    config = read_keys(folder / CONFIG, error)
    asked = config.get("auto_map")
    named = [value for value in asked.values() if isinstance(value, str)] if isinstance(asked, dict) else []
    if not named or _is_known(config):
        return []
    for value in named:
        if "--" in value:
            raise error(
                f"{folder / CONFIG} takes its code from another repository, {value!r}; expected it beside the weights: "
                "copy it there and mend auto_map"
            )
    return sorted({f"{value.split('.')[0]}.py" for value in named})


def _is_known(config: dict[str, Any]) -> bool:
    import transformers

    architectures = config.get("architectures") or []
    return bool(architectures) and all(hasattr(transformers, name) for name in architectures)
