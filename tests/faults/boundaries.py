"""In the process under test: numbers its file operations below some folders, and kills it just before or just after one.

Which, is told in $FAULTS_FILES: nothing there, nothing is watched. After a write means in the middle of it: half of the bytes
are in the file. What native code writes by itself (parquet, safetensors) is seen when Python opens, renames or uploads it.
"""

import builtins
import io
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from faults.places import Numbering, Point

WHERE = "FAULTS_FILES"
PLAIN_OPEN, PLAIN_WRITE = os.open, os.write
SEVERAL_PATHS = ("replace", "rename", "link", "symlink")
"""Of these, the second path names the boundary: it is what comes into being."""


class Boundaries:
    """The watched file operations of this process."""

    def __init__(self, process: str, told: dict[str, Any]) -> None:
        self.process = process
        self.folders = tuple(told["folders"])
        self.record: str | None = told.get("record")
        kill = told.get("kill")
        self.point = None if kill is None else Point(kill["what"], kill["place"], kill["occurrence"])
        self.after = bool(kill and kill["after"])
        self.numbering = Numbering()

    def below(self, path: str) -> str | None:
        """A path as it is named in points, None if it is not watched."""
        for number, folder in enumerate(self.folders):
            if path.startswith(folder + "/") and not path.endswith((".progress.json", "/lock")):
                return f"{('store', 'scratch')[number]}{path.removeprefix(folder)}"
        return None

    def passed(self, what: str, path: str, act: Callable[[], Any], torn: Callable[[], Any] | None = None) -> Any:
        """Do what is done to a path, unless this is the moment to die. torn: half of it, which is then done at last."""
        name = self.below(path)
        if name is None:
            return act()
        point = self.numbering.next(f"{self.process} {what}", name)
        if self.record is not None:
            self._write_down(point)
        if point != self.point:
            return act()
        if self.after:
            (torn or act)()
        _die()

    def _write_down(self, point: Point) -> None:
        descriptor = PLAIN_OPEN(str(self.record), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        PLAIN_WRITE(descriptor, (json.dumps([point.what, point.place, point.occurrence]) + "\n").encode())
        os.close(descriptor)


def watch_files(process: str) -> None:
    """From now on this process's file operations are numbered."""
    if WHERE not in os.environ:
        return
    boundaries = Boundaries(process, json.loads(os.environ[WHERE]))
    for name in ("open", "mkdir", "unlink", "remove", "fsync", *SEVERAL_PATHS):
        setattr(os, name, _wrapped(boundaries, name, getattr(os, name)))
    plain = io.open
    io.open = builtins.open = _opener(boundaries, plain)  # type: ignore[assignment]


def _die() -> None:
    os.kill(os.getsid(0), signal.SIGKILL)  # the pipeline: its workers end with it
    os.kill(os.getpid(), signal.SIGKILL)


def _path_of(source: Any, folder: int | None = None) -> str:
    if isinstance(source, int):
        return os.readlink(f"/proc/self/fd/{source}")
    path = os.fspath(source)
    path = path.decode() if isinstance(path, bytes) else path
    if folder is not None and not path.startswith("/"):
        return f"{os.readlink(f'/proc/self/fd/{folder}')}/{path}"
    return path


def _wrapped(boundaries: Boundaries, name: str, plain: Callable[..., Any]) -> Callable[..., Any]:
    def call(first: Any, *rest: Any, **named: Any) -> Any:
        if name == "open" and not (rest[0] if rest else named.get("flags", 0)) & (os.O_WRONLY | os.O_RDWR):
            return plain(first, *rest, **named)
        last = rest[0] if name in SEVERAL_PATHS and rest else first
        return boundaries.passed(name, _path_of(last, named.get("dir_fd")), lambda: plain(first, *rest, **named))

    return call


class TornWriter(io.BufferedWriter):
    """A binary file whose writes are boundaries."""

    def __init__(self, raw: io.FileIO, boundaries: Boundaries, path: str) -> None:
        super().__init__(raw)
        self._boundaries, self._path = boundaries, path

    def write(self, content: Any) -> int:
        whole = memoryview(content).cast("B")

        def torn() -> None:
            super(TornWriter, self).write(whole[: len(whole) // 2])
            self.flush()

        return int(self._boundaries.passed("write", self._path, lambda: super(TornWriter, self).write(whole), torn))


def _opener(boundaries: Boundaries, plain: Callable[..., Any]) -> Callable[..., Any]:
    def call(file: Any, mode: str = "r", *rest: Any, **named: Any) -> Any:
        path = _path_of(file)
        writes = set(mode) & set("wax")
        if not writes or "+" in mode or boundaries.below(path) is None:
            return plain(file, mode, *rest, **named)
        raw_mode = mode.replace("b", "").replace("t", "")
        if isinstance(file, int):
            raw = io.FileIO(file, raw_mode)
        else:
            raw = boundaries.passed("open", path, lambda: io.FileIO(path, raw_mode))
        binary = TornWriter(raw, boundaries, path)
        if "b" in mode:
            return binary
        return io.TextIOWrapper(
            binary, encoding=named.get("encoding"), errors=named.get("errors"), newline=named.get("newline")
        )

    return call


def recorded(record: Path) -> list[Point]:
    """The points that a run wrote down, in their order."""
    return [Point(*json.loads(line)) for line in record.read_text().splitlines()]
