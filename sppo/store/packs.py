"""Small files in one object: a remote store answers a request in the time it takes to send a megabyte."""

from collections.abc import Iterable, Sequence
from hashlib import sha256
from pathlib import Path

from sppo.fingerprint import file_sha256
from sppo.store.manifest import FileEntry, PackSlice

SMALL_BYTES = 1 << 20
"""Files below this are packed."""
PACK_BYTES = 32 << 20
"""At most in one pack."""


def entry_of(path: Path) -> FileEntry:
    """The entry of a file that is an object of its own."""
    return FileEntry(name=path.name, size=path.stat().st_size, sha256=file_sha256(path))


def split_small(paths: Iterable[Path]) -> list[list[Path]]:
    """The files, in groups that make one object each: a file of its own, or several small ones."""
    groups: list[list[Path]] = []
    pack: list[Path] = []
    room = 0
    for path in paths:
        size = path.stat().st_size
        if size >= SMALL_BYTES:
            groups.append([path])
            continue
        if size > room or not pack:
            pack, room = [], PACK_BYTES
            groups.append(pack)
        pack.append(path)
        room -= size
    return groups


def write_pack(paths: Sequence[Path], pack: Path) -> list[FileEntry]:
    """Write files one after another into a pack: their entries, in order."""
    whole, offset = sha256(), 0
    found: list[tuple[str, int, str, int]] = []
    with pack.open("wb") as stream:
        for path in paths:
            content = path.read_bytes()
            whole.update(content)
            stream.write(content)
            found.append((path.name, len(content), sha256(content).hexdigest(), offset))
            offset += len(content)
    digest = whole.hexdigest()
    return [
        FileEntry(name=name, size=size, sha256=own, pack=PackSlice(sha256=digest, size=offset, offset=start))
        for name, size, own, start in found
    ]
