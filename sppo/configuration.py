"""Reading a YAML file into a frozen model, with errors a person can act on.

Numbers are read as YAML 1.2 reads them (`5e-7` is a number), duplicate keys are refused, unknown keys are answered with the
nearest known one.
"""

import difflib
import json
import re
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from sppo.errors import SppoError

NAME = re.compile(r"^[a-z0-9][a-z0-9._-]{0,62}$")
Model = TypeVar("Model", bound=BaseModel)


class Frozen(BaseModel):
    """Base of every part of a recipe or hardware file: immutable, unknown keys and nan refused, no silent conversions."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class _Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2 numbers and booleans, and without duplicate keys."""


def _mapping_without_duplicates(loader: _Loader, node: yaml.MappingNode) -> dict[Hashable, Any]:
    seen: set[str] = set()
    for key, _ in node.value:
        if key.value in seen:
            raise yaml.constructor.ConstructorError(None, None, f"the key {key.value!r} stands twice", key.start_mark)
        seen.add(key.value)
    return yaml.SafeLoader.construct_mapping(loader, node, deep=True)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag.rsplit(":", 1)[1] not in ("float", "int", "bool", "timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(true|false)$"), list("tf"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?(0|[1-9][0-9]*)$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$"),
    list("-+0123456789."),
)
_Loader.add_constructor("tag:yaml.org,2002:map", _mapping_without_duplicates)
_Loader.add_constructor("tag:yaml.org,2002:int", lambda _, node: int(node.value))


def named_file(name: str, folder: Path) -> Path | None:
    """The YAML file of a plain name in a folder, or of a path that ends in .yaml; None if there is none."""
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
    elif NAME.fullmatch(name):
        path = folder / f"{name}.yaml"
    else:
        return None  # such as `../x`: a name never leaves its folder
    return path if path.is_file() else None


def parse_yaml(text: str, where: str, error: type[SppoError]) -> dict[str, Any]:
    """A YAML mapping. Raises `error` naming file, line and what was expected."""
    try:
        value = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as problem:
        raise error(f"{where} is not valid YAML: {' '.join(str(problem).split())}") from problem
    if not isinstance(value, dict):
        raise error(f"{where} holds {type(value).__name__}; expected keys and values")
    return value


def validate(model: type[Model], values: Mapping[str, Any], where: str, error: type[SppoError]) -> Model:
    """A frozen model from plain values. Raises `error` with one line for each thing wrong."""
    try:
        return model.model_validate_json(json.dumps(values))  # strict JSON: a list is a tuple, `true` is no number
    except ValidationError as problem:
        lines = [_explain(model, item) for item in problem.errors()]
        raise error(f"{where}: " + f"\n{where}: ".join(lines)) from problem


def read_yaml(path: Path, error: type[SppoError]) -> dict[str, Any]:
    """The mapping in a YAML file. Raises `error` naming the file."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        raise error(f"cannot read {path}: {problem}") from problem
    return parse_yaml(text, str(path), error)


def _explain(model: type[BaseModel], item: Any) -> str:
    loc = [str(part) for part in item["loc"]]
    place, names = _walk(model, loc)
    name = ".".join(names)
    if item["type"] == "extra_forbidden":
        known = sorted({key for option in _models_in(place) for key in option.model_fields})
        near = difflib.get_close_matches(loc[-1], known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
        return f"unknown key {name!r}; {hint}"
    if item["type"] == "missing":
        return f"{name!r} is missing; expected a value, for nothing here has a silent default"
    if item["type"] == "value_error":  # a rule of ours about several keys, already in our words
        return f"{name or 'the file'}: {item['msg'].removeprefix('Value error, ')}"
    return f"{name or 'the file'} is {item['input']!r}; {item['msg'][0].lower() + item['msg'][1:]}"


def _walk(model: Any, loc: list[str]) -> tuple[Any, list[str]]:
    """The model that holds the last key of a location, and the keys as a person writes them: union tags left out."""
    names: list[str] = []
    for position, part in enumerate(loc):
        last = position == len(loc) - 1
        tagged = [option for option in _models_in(model) if part in _tags(option)]
        if not isinstance(model, type) and tagged:
            model = tagged[0]
            continue
        names.append(part)
        if not last and isinstance(model, type) and issubclass(model, BaseModel) and part in model.model_fields:
            field = model.model_fields[part]
            inner = _models_in(field.annotation)
            model = inner[0] if len(inner) == 1 else field.annotation
    return model, names


def _tags(model: type[BaseModel]) -> tuple[str, ...]:
    kind = model.model_fields.get("kind")
    return get_args(kind.annotation) if kind else ()


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for argument in get_args(annotation) for found in _models_in(argument)]
