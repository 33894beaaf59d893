"""What is wrong with the values of a recipe, a hardware file or a record: pydantic's findings in the words of their writers."""

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel

SHOWN = 80
"""Characters of a value that a message repeats."""
PATH_SHOWN = 240
"""Of a path that somebody typed, who has to see where it ends."""
EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "float_parsing": "a number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text",
    "string_too_short": "text",
    "tuple_type": "a list",
    "list_type": "a list",
    "model_type": "keys and values",
    "dict_type": "keys and values",
    "greater_than": "more than {gt:g}",
    "greater_than_equal": "{ge:g} or more",
    "less_than": "less than {lt:g}",
    "less_than_equal": "{le:g} or less",
    "literal_error": "{expected}",
    "too_short": "a list of {min_length} or more",
    "union_tag_not_found": "one with {discriminator}",
}
"""By pydantic's name of what is wrong, with its figures."""
PATTERNS = {
    "^[0-9a-f]{64}$": "a sha256, 64 hex digits",
    "^[a-z0-9][a-z0-9._-]{0,62}$": "1 to 63 of a-z, 0-9, '.', '_', '-', the first a letter or a digit",
    r"^[A-Za-z0-9][\w.-]*/[\w.-]+$": "a name of the hub, owner/name",
    "^[a-z][a-z-]{0,40}/[0-9a-f]{64}$": "stage/ and 64 hex digits",
    "^(policy|train)/[0-9a-f]{64}$": "policy/ or train/ and 64 hex digits",
    r"^https?://[^\s<>()]+$": "an address, https://..",
}
BRANCH = re.compile(r"(literal|constrained|function|nullable|tuple|list|dict)[\[-].*|int|str|float|bool|none")
"""How pydantic names the branch of a union that it tried."""


def shown(value: object, most: int = SHOWN) -> str:
    """A value for a message: its beginning, if it has more characters than that."""
    text = repr(value[: most + 1] if isinstance(value, str) else value)
    return text if len(text) <= most else f"{text[: most - 3]}..."


def kind_of(value: object) -> str:
    """What a value is, in the words of those who write YAML and JSON."""
    names = {list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number", dict: "keys and values"}
    return "nothing" if value is None else names.get(type(value), type(value).__name__)


def name_of(model: type[BaseModel]) -> str:
    """A record's class in plain words, such as `part record`."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", model.__name__).lower()


def explain(model: type[BaseModel], errors: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line for each value that is wrong; missing keys, and unknown ones beside each other, share a line."""
    lines: list[str] = []
    missing: list[str] = []
    unknown: dict[tuple[str, ...], list[str]] = {}
    expected: dict[tuple[str, str], list[str]] = {}
    for item in errors:
        place, names = _walk(model, [str(part) for part in item["loc"]])
        name = ".".join(names)
        if item["type"] == "extra_forbidden":
            known = tuple(sorted({key for option in _models_in(place) for key in option.model_fields}))
            unknown.setdefault(known, []).append(name)
        elif item["type"] == "json_invalid":
            lines.append(f"it is not whole JSON ({item['ctx']['error']})")
        elif item["type"] == "missing":
            missing.append(repr(name))
        elif item["type"] == "union_tag_invalid":
            figures = item["ctx"]
            chosen = f"{name}.{figures['discriminator']}".replace("'", "")
            expected.setdefault((chosen, shown(figures["tag"])), []).append(f"one of {figures['expected_tags']}")
        elif item["type"] == "value_error":  # a rule of ours about several keys, already in our words
            words = item["msg"].removeprefix("Value error, ")
            lines.append(f"{name}: {words}" if name else words)
        else:
            expected.setdefault((name, shown(item["input"])), []).append(_expected(item))
    lines += [
        f"{name or 'it'} is {value}; expected {' or '.join(dict.fromkeys(all_of))}"
        for (name, value), all_of in expected.items()
    ]
    if missing:
        each = "is missing; expected a value" if len(missing) == 1 else "are missing; expected a value for each"
        lines.append(f"{', '.join(missing)} {each}")
    return lines + [_unknown(names, known) for known, names in unknown.items()]


def _expected(item: Mapping[str, Any]) -> str:
    kind, figures = item["type"], item.get("ctx") or {}
    if kind in EXPECTED:
        return EXPECTED[kind].format(**figures)
    if kind == "string_pattern_mismatch":
        return PATTERNS.get(figures["pattern"], f"text of the form {figures['pattern']}")
    return str(item["msg"][0].lower() + item["msg"][1:])


def _unknown(names: Sequence[str], known: Sequence[str]) -> str:
    hints = []
    for name in names:
        near = difflib.get_close_matches(name.rpartition(".")[2][:SHOWN], known, n=1)
        hints += [near[0]] if near else []
    keys = ", ".join(shown(name) for name in names)
    hint = f"did you mean {', '.join(map(repr, hints))}?" if len(hints) == len(names) else f"known keys: {', '.join(known)}"
    return f"unknown key{'s' * (len(names) > 1)} {keys}; {hint}"


def _walk(model: Any, loc: Sequence[str]) -> tuple[Any, list[str]]:
    """The model that holds the last key of a location, and the keys as a person writes them, without the branches of unions."""
    names: list[str] = []
    for position, part in enumerate(loc):
        last = position == len(loc) - 1
        chosen = [option for option in _models_in(model) if part in _tags(option) or part == option.__name__]
        if not isinstance(model, type) and chosen:
            model = chosen[0]
            continue
        if not isinstance(model, type) and BRANCH.fullmatch(part):
            continue
        names.append(part)
        if not last and isinstance(model, type) and issubclass(model, BaseModel) and part in model.model_fields:
            field = model.model_fields[part]
            inner = _models_in(field.annotation)
            model = inner[0] if len(inner) == 1 and not _other_kinds(field.annotation) else field.annotation
    return model, names


def _other_kinds(annotation: Any) -> bool:
    """Whether a value may be something else than a model."""
    return any(get_args(argument) and not _models_in(argument) for argument in get_args(annotation))


def _tags(model: type[BaseModel]) -> tuple[str, ...]:
    kind = model.model_fields.get("kind")
    return get_args(kind.annotation) if kind else ()


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for argument in get_args(annotation) for found in _models_in(argument)]
