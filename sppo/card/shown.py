"""Values of a recipe as a published card may show them: without the paths, servers and keys of whoever ran it."""

from collections.abc import Mapping
from pathlib import PurePosixPath

from sppo.difference import flattened
from sppo.recipe import Endpoint
from sppo.sources import is_local

PRIVATE = frozenset(Endpoint.model_fields)
"""Where a served judge is and how it is asked; which model it is stays."""
PLACES = frozenset({"path", "dataset", "partition", "trust_code"})
"""Values that may be paths of a machine or a bucket; of those the last part stays."""


def public_values(part: Mapping[str, object]) -> dict[str, str]:
    """The values inside a part of a recipe by dotted path, as text; what is not set is left out."""
    shown: dict[str, str] = {}
    for path, value in flattened(part).items():
        last = path.rpartition(".")[2]
        if value is None or last in PRIVATE or value == []:
            continue
        shown[path] = _in_words(_last_part(value) if last in PLACES else value)
    return shown


def _last_part(value: object) -> object:
    return PurePosixPath(value).name if isinstance(value, str) and is_local(value) else value


def _in_words(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(str(each) for each in value) if isinstance(value, list) else str(value)
