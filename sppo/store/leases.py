"""Who is making an artifact, so that two runs do not do the same work at a time. No commit rests on it: the manifest decides.

`<stage>/<fingerprint>/work/lease-<epoch>` is created once, written again every quarter of its term while its holder lives, and
goes with all of `work/` when the artifact is committed. Its age is told by the store's clock, so a machine whose clock is off
changes nothing. One that was not renewed for its term is followed by the next epoch, which again one of those who wait creates.
"""

import logging
import os
import secrets
import socket
import threading
import time
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from sppo.errors import CorruptArtifactError, StoreError
from sppo.store.backend import Backend
from sppo.store.clock import Written
from sppo.store.manifest import parse_record
from sppo.store.seal import sealed

log = logging.getLogger(__name__)

TERM_S = 60.0
"""A holder that was not heard of for longer is followed."""
POLL_S = 1.0
"""Between two looks of one who waits."""
PROC = Path("/proc")


class Holder(BaseModel):
    """A thread that makes an artifact."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str
    machine: str
    """Of whose processes the number tells one from another: the boot and the process namespace; empty where there are none."""
    process: int
    started: str
    """When the process did, in the kernel's ticks: numbers come again."""
    thread: int
    word: str
    """A random one for each attempt."""

    @property
    def words(self) -> str:
        return f"process {self.process} on {self.host}"

    @property
    def is_gone(self) -> bool:
        """Whether the process is known to have ended: nobody waits for a run that was killed on this machine."""
        return bool(self.machine) and self.machine == _machine() and _started(self.process) != self.started

    @property
    def is_us(self) -> bool:
        """Whether it is this thread, which cannot wait for itself."""
        return self == _us().model_copy(update={"word": self.word})


class Lease:
    """The lease of one artifact in the making: wanted, and at most once held."""

    def __init__(self, backend: Backend, stage: str, fingerprint: str) -> None:
        self.backend = backend
        self.label = f"{stage}/{fingerprint[:8]}"
        self._folder = f"{stage}/{fingerprint}/work"
        self._holder = _us()
        self._epoch = 0
        """That is held; 0 for none."""
        self._seen: tuple[tuple[int, float], float] | None = None
        """The last epoch and when it was written, and when we first saw that."""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)

    def take(self) -> str:
        """Try to get it. Result: empty if we may go on, else who is at it, in words."""
        epoch, holder = self._last()
        if epoch and holder is not None and holder.is_us:
            return ""  # an artifact made while we make it ourselves
        if epoch and not self._is_over(epoch, holder):
            return "another run" if holder is None else holder.words
        if epoch:
            log.warning("%s: %s is gone, its work is taken over", self.label, "its maker" if holder is None else holder.words)
        try:
            won = self.backend.create(self._key(epoch + 1), self._content(epoch + 1))
        except CorruptArtifactError:  # removed as it was made, with the work of one who has just committed
            won = False
        if not won:
            return "another run"
        self._epoch = epoch + 1
        self._thread.start()
        return ""

    def release(self) -> None:
        """Let others have it, if we do."""
        if not self._epoch:
            return
        self._over.set()
        self._thread.join()
        try:
            if self._last()[0] == self._epoch and self._is_ours():
                for epoch in range(self._epoch, 0, -1):
                    self.backend.delete(self._key(epoch))
        except StoreError as problem:  # its term ends it
            log.warning("%s: its lease could not be released: %s", self.label, problem)
        self._epoch = 0

    def _key(self, epoch: int) -> str:
        return f"{self._folder}/lease-{epoch}"

    def _content(self, epoch: int) -> bytes:
        return sealed(self._holder, self._key(epoch))

    def _last(self) -> tuple[int, Holder | None]:
        """The last epoch, 0 for none, and its holder if that can be read."""
        epoch, content = 0, None
        while (found := self.backend.read(self._key(epoch + 1))) is not None:
            epoch, content = epoch + 1, found
        return epoch, None if content is None else _parsed(content, self._key(epoch))

    def _is_ours(self) -> bool:
        return self.backend.read(self._key(self._epoch)) == self._content(self._epoch)

    def _is_over(self, epoch: int, holder: Holder | None) -> bool:
        if holder is not None and holder.is_gone:
            return True
        written = self.backend.written(self._key(epoch))
        if written is None:  # released just now: the next look finds it free
            return False
        mark, now = (epoch, written.at), time.monotonic()
        if self._seen is None or self._seen[0] != mark:
            self._seen = (mark, now)
        return written.age > TERM_S or now - self._seen[1] > TERM_S  # the second for a store whose clock tells nothing

    def _renew(self) -> None:
        while not self._over.wait(TERM_S / 4):
            try:
                if self.backend.read(self._key(self._epoch + 1)) is not None:
                    log.warning("%s: another run took over, for we were not heard of; the first to commit wins", self.label)
                    return
                self.backend.replace(self._key(self._epoch), self._content(self._epoch))
            except StoreError as problem:  # the work itself goes on: its own writes decide
                log.warning("%s: its lease could not be renewed: %s", self.label, problem)


def holder(backend: Backend, stage: str, fingerprint: str) -> str | None:
    """Who works on an artifact, in words; None if nobody was heard of for a term. Pool workers show in their work records.

    For garbage collection: it looks at a listing, and never waits or writes."""
    for key in backend.list(f"{stage}/{fingerprint}/work"):
        written: Written | None = backend.written(key)
        if written is None or written.age > TERM_S:
            continue
        if "/lease-" not in key:
            return f"whoever wrote {key}"
        content = backend.read(key)
        found = None if content is None else _parsed(content, key)
        if found is None or not found.is_gone:
            return "another run" if found is None else found.words
    return None


def _parsed(content: bytes, key: str) -> Holder | None:
    try:
        return parse_record(Holder, content, key)
    except CorruptArtifactError:
        log.warning("%s cannot be read: its term alone ends it", key)
        return None


def _us() -> Holder:
    """This thread."""
    process = os.getpid()
    return Holder(
        host=socket.gethostname(),
        machine=_machine(),
        process=process,
        started=_started(process),
        thread=threading.get_ident(),
        word=secrets.token_hex(8),
    )


def _machine() -> str:
    try:
        boot = (PROC / "sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return f"{boot} {os.readlink(PROC / 'self/ns/pid')}"
    except OSError:  # no Linux
        return ""


def _started(process: int) -> str:
    """When a process of this machine started; empty if it has ended."""
    try:
        # the command before it, in parentheses, may hold anything
        fields = (PROC / str(process) / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]
