"""Where artifacts and their copies lie: whether a store keeps what commits rest on, who else may write there, room, clocks."""

import os
import shutil
import stat
import time
from collections.abc import Sequence
from email.utils import parsedate_to_datetime
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from flows.doctor.finding import Finding, half_open, ok, wrong
from sppo.errors import SppoError
from sppo.store.backend import refuse_credentials
from sppo.store.scratch import FREE_SHARE

ANSWER_S = 3.0
LITTLE_GB = 20.0
"""Of free disk: less than a policy of a few billion parameters with its checkpoint takes."""
OFF_S = 60.0
REFUSED_S = 900.0
"""By which a clock may be off before S3 servers refuse every request."""


def look_at_store(url: str | None) -> Sequence[Finding]:
    """What a run would try first, and what it would not notice."""
    if not url:
        return [ok("store", "none is named; give --store, or set SPPO_STORE, to have one tried out")]
    try:
        refuse_credentials(url, "store URL")
        if url.startswith("block/"):
            from flows.blocks import unlocked

            url = unlocked(url)
        found = _tried(url)
    except (SppoError, OSError) as problem:
        return [wrong("store", str(problem), "")]
    return [*found, *_folder("store", _local(url)), *_clock(url)]


def _tried(url: str) -> list[Finding]:
    from sppo.store.backend import open_backend
    from sppo.store.preflight import preflight
    from sppo.store.waiting import VARIABLE, Patience

    began = time.monotonic()
    preflight(open_backend(url, None if VARIABLE in os.environ else Patience(ANSWER_S)))
    return [ok("store", f"{url} keeps what is written and creates records once ({time.monotonic() - began:.1f} s)")]


def _local(url: str) -> Path | None:
    parts = urlsplit(url)
    if parts.scheme not in ("", "file"):
        return None
    return Path(parts.netloc + parts.path if parts.scheme else url).expanduser().resolve()


def _folder(subject: str, path: Path | None) -> list[Finding]:
    if path is None or not path.exists():
        return []
    owned = path.stat()
    mode = owned.st_mode
    if mode & stat.S_IWOTH:
        return [wrong(subject, f"everyone on this machine may write to {path}", f"chmod o-w {path}")]
    if mode & stat.S_IWGRP and owned.st_gid != owned.st_uid:  # many systems give each user a group of that one member
        return [half_open(subject, f"its group may write to {path}, and so change what a run reads", f"chmod g-w {path}")]
    return [ok(subject, f"only its owner may write to {path}")]


def look_at_scratch() -> Sequence[Finding]:
    """Who may write there, and how much room is left."""
    path = Path(os.environ.get("SPPO_SCRATCH") or Path.home() / ".cache" / "sppo")
    there = next(folder for folder in (path, *path.parents) if folder.exists())
    if not os.access(there, os.W_OK):
        return [wrong("scratch", f"{there} cannot be written", "set SPPO_SCRATCH to a folder of your own")]
    disk = shutil.disk_usage(there)
    room = (disk.free - FREE_SHARE * disk.total) / 1e9
    said = (
        f"{room:.0f} GB to use on the disk of {path}" if room > 0 else f"the disk of {path} is full but for what is kept free"
    )
    move = "free some, or set SPPO_SCRATCH to another disk"
    if room <= 1:
        space = wrong("scratch", said, move)
    else:
        space = ok("scratch", said) if room > LITTLE_GB else half_open("scratch", said, move)
    return [*_folder("scratch", path), space]


def _clock(url: str) -> list[Finding]:
    """This machine's clock against the S3 server's: requests are signed with the time."""
    parts = urlsplit(url)
    if parts.scheme != "s3":
        return []
    from sppo.store.endpoint import find_endpoint

    endpoint = find_endpoint(parts.netloc)
    address = f"{'https' if endpoint.tls else 'http'}://{endpoint.host}/"
    try:
        date = httpx.head(address, timeout=ANSWER_S).headers.get("date")
    except httpx.HTTPError as problem:
        return [half_open("clock", f"{address} was not asked for the time: {problem or type(problem).__name__}", "ask again")]
    if date is None:
        return [half_open("clock", f"{address} does not tell the time", "compare this machine's clock with another")]
    off = time.time() - parsedate_to_datetime(date).timestamp()
    said = f"{abs(off):.0f} s {'ahead of' if off > 0 else 'behind'} the store's server"
    if abs(off) <= OFF_S:
        return [ok("clock", said)]
    move = "set it by NTP" + ("" if abs(off) <= REFUSED_S else "; the server refuses every request until then")
    return [(half_open if abs(off) <= REFUSED_S else wrong)("clock", said, move)]
