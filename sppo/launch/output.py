"""What worker processes print, passed on line by line while they run; their whole output is kept in their log files."""

import logging
import re
import time
from pathlib import Path
from typing import IO

log = logging.getLogger("sppo.output")

LINES_PER_MINUTE = 60
"""Passed on from one process: each line costs a Prefect server about 1.4 ms."""
LONGEST = 500
"""Characters of a line that are passed on."""
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f]")


class Tail:
    """Follows one log file."""

    def __init__(self, path: Path, label: str) -> None:
        self.path = path
        self.label = label
        self._stream: IO[bytes] | None = None
        self._rest = b""
        self._left = float(LINES_PER_MINUTE)
        self._filled = time.monotonic()
        self._kept_back = 0

    def pass_on(self) -> None:
        """Log what was added since the last time, at most LINES_PER_MINUTE on the long run; the rest is counted."""
        if self._stream is None:
            if not self.path.is_file():
                return
            self._stream = self.path.open("rb")
        *lines, self._rest = (self._rest + self._stream.read()).split(b"\n")
        for line in lines:
            self._pass_on(line)

    def close(self) -> None:
        """Pass on what is left, and how many lines were not."""
        self.pass_on()
        if self._rest:
            self._pass_on(self._rest)
            self._rest = b""
        if self._kept_back:
            self._left = 1.0
            log.info("%s: %d more lines are in its log", self.label, self._kept_back)
            self._kept_back = 0
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _pass_on(self, line: bytes) -> None:
        # of a bar that redraws itself only the last state is worth a line
        text = CONTROL.sub("", line.decode("utf-8", errors="replace").rstrip("\r").rpartition("\r")[2]).rstrip()
        if not text:
            return
        now = time.monotonic()
        self._left = min(float(LINES_PER_MINUTE), self._left + (now - self._filled) * LINES_PER_MINUTE / 60)
        self._filled = now
        if self._left < 1:
            self._kept_back += 1
            return
        if self._kept_back:
            text = f"({self._kept_back} lines left out) {text}"
            self._kept_back = 0
        self._left -= 1
        log.info("%s: %s", self.label, text if len(text) <= LONGEST else text[: LONGEST - 1] + "…")
