"""Identity of results: the same fingerprint means the same computation, so it is not done again.

A fingerprint is the sha256 of canonical JSON (sorted keys, no spaces, no floats without a finite value). A value with no
stable form is refused, not guessed.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from sppo.errors import StoreError


def canonical_json(value: object) -> str:
    """The one JSON text of a value: sorted keys, no white space, shortest round-trip floats.

    Raises StoreError for anything but finite plain JSON values."""
    _refuse_unstable(value, "value")
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def _refuse_unstable(value: object, where: str) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise StoreError(f"{where} is {value}; a fingerprint needs finite numbers: mend the recipe")
    if value is None or isinstance(value, bool | int | float | str):
        return
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise StoreError(f"{where} has the key {key!r}; a fingerprint needs text keys")
            _refuse_unstable(inner, f"{where}.{key}")
        return
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        for position, inner in enumerate(value):
            _refuse_unstable(inner, f"{where}[{position}]")
        return
    raise StoreError(
        f"{where} is a {type(value).__name__}, which has no stable form; expected None, bool, int, float, str, list or dict"
    )


def digest_of(value: object) -> str:
    """sha256 of a plain JSON value, 64 hex digits."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes, 64 hex digits; reads in 1 MiB blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def stage_fingerprint(stage: str, version: int, recipe: Mapping[str, object], inputs: Mapping[str, str]) -> str:
    """Fingerprint of a stage: its name and version, the part of the recipe it reads, the content digests of its inputs.

    Inputs enter by what they contain, not by how they were made: recomputing an input to the same bytes costs nothing
    downstream, and a policy is known by its weights, never by its path."""
    return digest_of({"stage": stage, "version": version, "recipe": dict(recipe), "inputs": dict(inputs)})


def seed_of(*parts: object) -> int:
    """A 63-bit seed for one draw, from sha256 of its parts, such as (recipe seed, iteration, prompt id)."""
    return int.from_bytes(bytes.fromhex(digest_of(list(parts)))[:8], "big") >> 1
