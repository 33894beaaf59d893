"""GPUs are lent to one group of processes at a time, on each machine: by locks that the kernel lets go when a holder dies.

A group takes all its devices or waits. Whoever waits stands in one line, so that a training that needs eight GPUs is not
passed by for ever by judges that need one. Runs from anywhere on the machine meet here: a worker, a terminal, a container that
shares the scratch folder.
"""

import fcntl
import logging
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from sppo.errors import LaunchError
from sppo.launch.processes import check_going_on

log = logging.getLogger(__name__)

POLL_S = 0.2
TELL_S = 60.0
"""Between two lines that say what is waited for."""
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def machine_devices(device: str) -> list[str]:
    """Names of the devices that this process may use: SPPO_DEVICES or CUDA_VISIBLE_DEVICES where set, else all GPUs.

    On CPU none, unless SPPO_DEVICES names slots that runs are to share."""
    named = os.environ.get("SPPO_DEVICES")
    if device == "cuda" and named is None:
        named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip()]
    if device == "cpu":
        return []
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


def check_devices(device: str, count: int) -> None:
    """Raises LaunchError if this machine has fewer devices than a group needs."""
    names = machine_devices(device)
    if len(names) < count and (device == "cuda" or names):
        raise LaunchError(
            f"{count} devices are needed and this machine shows {len(names)}: {','.join(names) or 'none'} "
            "(SPPO_DEVICES, CUDA_VISIBLE_DEVICES); choose hardware with fewer processes"
        )


def lock_folder(scratch: Path) -> Path:
    """Where this machine's locks lie. The scratch folder may be shared by several machines, the boot id is of one."""
    boot = BOOT_ID.read_text(encoding="utf-8").strip() if BOOT_ID.is_file() else "this-machine"
    return scratch / "devices" / boot


@contextmanager
def lent(count: int, device: str, scratch: Path, holder: str) -> Iterator[tuple[str, ...]]:
    """`count` devices of this machine for as long as this lasts, by name; waits until they are free. None on CPU.

    Raises LaunchError if the machine has fewer, StoppedError after `halt`."""
    names = machine_devices(device)
    check_devices(device, count)
    if not names:
        yield ()
        return
    folder = lock_folder(scratch)
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        with _locked(folder / "line.lock", holder):
            taken = _take(names, count, folder, holder, held)
        yield taken


def _take(names: list[str], count: int, folder: Path, holder: str, held: ExitStack) -> tuple[str, ...]:
    taken: list[str] = []
    told = time.monotonic()
    while True:
        check_going_on(holder)
        for name in names:
            if name not in taken and len(taken) < count:
                stream = _try_lock(folder / f"device-{name.replace('/', '_')}.lock", holder)
                if stream is not None:
                    held.enter_context(stream)
                    taken.append(name)
        if len(taken) == count:
            return tuple(sorted(taken, key=names.index))
        if time.monotonic() - told > TELL_S:
            told = time.monotonic()
            log.info("%s: has %d of %d devices and waits for the others", holder, len(taken), count)
        time.sleep(POLL_S)


@contextmanager
def _locked(path: Path, holder: str) -> Iterator[None]:
    told = time.monotonic()
    while (stream := _try_lock(path, holder)) is None:
        check_going_on(holder)
        if time.monotonic() - told > TELL_S:
            told = time.monotonic()
            log.info("%s: waits for devices behind %s", holder, path.read_text(encoding="utf-8").strip() or "another run")
        time.sleep(POLL_S)
    with stream:
        yield


def _try_lock(path: Path, holder: str) -> IO[str] | None:
    stream = path.open("a+", encoding="utf-8")
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        stream.close()
        return None
    stream.truncate(0)
    stream.write(f"{holder}, process {os.getpid()}\n")
    stream.flush()
    return stream


def device_environment(device: str, names: tuple[str, ...]) -> dict[str, str]:
    """Shows a process these devices and no others."""
    return {"CUDA_VISIBLE_DEVICES": ",".join(names)} if device == "cuda" else {}
