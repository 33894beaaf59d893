"""Reading a YAML file into a frozen model, with errors a person can act on.

Numbers are read as YAML 1.2 reads them (`5e-7` is a number), duplicate keys are refused, unknown keys are answered with the
nearest known one. Of YAML's types only those of JSON are read: text, numbers, true and false, null, lists and mappings.
"""

import json
import os
import re
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from sppo.errors import SppoError
from sppo.explanation import explain, kind_of, shown

NAME = re.compile(r"^[a-z0-9][a-z0-9._-]{0,62}$")
Model = TypeVar("Model", bound=BaseModel)
MOST_VALUES = 1_000_000
"""In one file, with what its aliases stand for: a few lines of aliases of aliases can stand for more than fits into memory."""
DEEPEST = 60
"""Lists and mappings within each other."""


class Frozen(BaseModel):
    """Base of every part of a recipe or hardware file: immutable, unknown keys and nan refused, no silent conversions."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class _Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2 numbers and booleans, the types of JSON, and without duplicate keys."""


def _refused(problem: str, node: yaml.Node) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


def _unknown_type(loader: _Loader, node: yaml.Node) -> Any:
    raise _refused(f"{shown(node.tag)} is a type that is not read here; expected text, numbers, lists, keys and values", node)


def _mapping_without_duplicates(loader: _Loader, node: yaml.MappingNode) -> dict[Hashable, Any]:
    seen: set[str] = set()
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise _refused("a key is a list or mapping; expected text", key)
        if key.value in seen:
            raise _refused(f"the key {shown(key.value)} stands twice", key)
        seen.add(key.value)
    return yaml.SafeLoader.construct_mapping(loader, node, deep=True)


def _scalar(kind: Callable[[str], Any], name: str) -> Callable[[_Loader, yaml.Node], Any]:
    def construct(loader: _Loader, node: yaml.Node) -> Any:
        try:
            return kind(str(loader.construct_scalar(node)))  # type: ignore[arg-type]  # which refuses other nodes
        except (ValueError, KeyError):
            raise _refused(f"{shown(node.value)} is no {name}", node) from None

    return construct


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
_Loader.yaml_constructors = {
    None: _unknown_type,
    "tag:yaml.org,2002:null": lambda loader, node: None,
    "tag:yaml.org,2002:str": yaml.SafeLoader.construct_yaml_str,
    "tag:yaml.org,2002:seq": yaml.SafeLoader.construct_yaml_seq,
    "tag:yaml.org,2002:map": _mapping_without_duplicates,
    "tag:yaml.org,2002:bool": _scalar(lambda text: {"true": True, "false": False}[text], "true or false"),
    "tag:yaml.org,2002:int": _scalar(int, "whole number that can be read"),
    "tag:yaml.org,2002:float": _scalar(
        lambda text: float(text.lower().replace(".inf", "inf").replace(".nan", "nan")), "number that can be read"
    ),
}


def named_file(name: str, folder: Path) -> Path | None:
    """The YAML file of a plain name in a folder, or of a path that ends in .yaml; None if there is none."""
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
    elif NAME.fullmatch(name):
        path = folder / f"{name}.yaml"
    else:
        return None  # such as `../x`: a name never leaves its folder
    return path if os.path.isfile(path) else None  # any text: pathlib raises for one too long


def parse_yaml(text: str, where: str, error: type[SppoError]) -> dict[str, Any]:
    """A YAML mapping. Raises `error` naming file, line and what was expected."""
    try:
        value = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as problem:
        words = _yaml_words(problem)
        place = "" if "\n" in text.strip() else r" at line 1, column \d+$"  # a single value needs no directions
        raise error(f"{where} is not valid YAML: {re.sub(place, '', words) if place else words}; mend it") from problem
    except RecursionError as problem:
        raise error(f"{where} {TOO_DEEP}") from problem
    if not isinstance(value, dict):
        raise error(f"{where} holds {kind_of(value)}; expected keys and values")
    check_plain(value, where, error)
    return value


def _yaml_words(problem: yaml.YAMLError) -> str:
    if isinstance(problem, yaml.MarkedYAMLError) and problem.problem_mark is not None:
        words = str(problem.problem).replace("found unconstructable recursive node", "a list or mapping holds itself")
        return f"{words} at line {problem.problem_mark.line + 1}, column {problem.problem_mark.column + 1}"
    if isinstance(problem, yaml.reader.ReaderError):
        return f"the character {chr(problem.character)!a} is not allowed in it"
    return " ".join(str(problem).split())


def parse_json(content: bytes | str, constant: Callable[[str], Any] | None = None) -> Any:
    """A value from JSON, whoever wrote it; `constant` makes a value of NaN and its kin. Raises ValueError, in words."""
    try:
        return json.loads(content, parse_constant=constant)
    except json.JSONDecodeError:
        raise
    except UnicodeDecodeError as problem:
        raise ValueError(f"it is not UTF-8 ({problem.reason} at byte {problem.start})") from problem
    except RecursionError:
        raise ValueError("it has more lists and objects within each other than can be read") from None
    except ValueError as problem:
        words = "a number has too many digits" if "digits" in str(problem) else str(problem)
        raise ValueError(words) from None


def check_plain(value: object, where: str, error: type[SppoError]) -> None:
    """Raises `error` unless a value is of JSON's types alone, not endless, and its texts are Unicode."""
    left = MOST_VALUES

    def look(value: object, name: str, depth: int) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise error(f"{where} stands for more than {MOST_VALUES} values; expected aliases (*name) that stand for few")
        if depth > DEEPEST:
            raise error(f"{where} {TOO_DEEP}")
        if isinstance(value, str):
            _check_unicode(value, name, where, error)
        elif isinstance(value, Mapping):
            for key, inner in value.items():
                _check_unicode(str(key), "a key", where, error)
                look(inner, f"{name}.{key}" if name else str(key), depth + 1)
        elif isinstance(value, list):
            for inner in value:
                look(inner, name, depth + 1)

    look(value, "", 0)


TOO_DEEP = f"has more than {DEEPEST} lists and mappings within each other; expected a few"


def _check_unicode(text: str, name: str, where: str, error: type[SppoError]) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as problem:
        at = f"{text[problem.start]!a} at character {problem.start}"
        raise error(f"{where}: {name} has the lone surrogate {at}; expected Unicode text") from None


def validate(model: type[Model], values: Mapping[str, Any], where: str, error: type[SppoError]) -> Model:
    """A frozen model from plain values. Raises `error` with one line for each thing wrong."""
    check_plain(values, where, error)
    try:
        return model.model_validate_json(json.dumps(values))  # strict JSON: a list is a tuple, `true` is no number
    except ValidationError as problem:
        raise error(f"{where}: " + f"\n{where}: ".join(explain(model, problem.errors()))) from problem


def read_yaml(path: Path, error: type[SppoError]) -> dict[str, Any]:
    """The mapping in a YAML file. Raises `error` naming the file."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as problem:
        raise error(f"cannot read {path}: {problem.strerror}; expected a YAML file") from problem
    except UnicodeDecodeError as problem:
        raise error(f"{path} is not UTF-8: {problem.reason} at byte {problem.start}; save it as UTF-8 text") from problem
    return parse_yaml(text, str(path), error)
