"""Records that show whether they are whole: the last value of each is a sha256 over where it lies and every byte before it.

Files have their sha256 in a manifest; a manifest has nobody above it. Its seal finds the digit that flipped in a count, which
is still a valid count, and the record that lies where another one belongs. Records from before there were seals have none, and
are read: a seal that is damaged is no seal but an unknown key, which no record may have.
"""

import hashlib
import re

from pydantic import BaseModel

from sppo.errors import CorruptArtifactError

END = b"\n}\n"
SEAL = re.compile(rb',\n "seal": "([0-9a-f]{64})"\n}\n\Z')


def sealed(record: BaseModel, key: str) -> bytes:
    """A record as JSON, with its seal. key: where it will lie, below the store's root."""
    return with_seal(record.model_dump_json(indent=1), key)


def with_seal(text: str, key: str) -> bytes:
    """A JSON object's indented text, with its seal."""
    body = f"{text}\n".encode()
    return body.removesuffix(END) + b',\n "seal": "' + _digest(body, key).encode() + b'"' + END


def without_seal(content: bytes) -> bytes:
    """A record's own JSON; whether it is whole is another question."""
    found = SEAL.search(content)
    return content if found is None else content[: found.start()] + END


def check_seal(content: bytes, key: str, shown: str = "") -> None:
    """Raises CorruptArtifactError unless a record is, to the byte, what was written at this key. shown: the key, for people."""
    shown = shown or key
    found = SEAL.search(content)
    if found is None:
        return
    digest = _digest(content[: found.start()] + END, key)
    if digest != found[1].decode():
        raise CorruptArtifactError(
            f"{shown} is not what was written there: its seal says {found[1].decode()[:16]}, its bytes {digest[:16]}; "
            f"delete {shown} and run again"
        )


def _digest(body: bytes, key: str) -> str:
    return hashlib.sha256(key.encode() + b"\n" + body).hexdigest()
