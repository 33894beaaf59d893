"""Was it memory? What a process says that could not get more, and what the kernel counts when it ends one for it."""

import errno
import re
import signal
from collections.abc import Sequence
from pathlib import Path

from sppo.errors import OutOfMemoryError

VMSTAT = Path("/proc/vmstat")
REFUSED = re.compile(r"DefaultCPUAllocator|can't allocate memory|Cannot allocate memory|out of memory", re.IGNORECASE)
"""What libraries say that have no class of their own for it."""
LESS = {
    "train": "train.tokens_per_device",
    "rank": "rank.tokens_per_batch",
    "score": "train.tokens_per_device",
    "generate": "generate.max_concurrent, generate.kv_cache_mib or generate.memory_share",
    "harness": "generate.max_concurrent, generate.kv_cache_mib or generate.memory_share",
}
"""By worker module, what of the hardware file asks for less at once."""
ANY = "train.tokens_per_device, rank.tokens_per_batch or generate.max_concurrent"


def of_error(error: BaseException, module: str) -> OutOfMemoryError | None:
    """An error in its place, if it is one of memory: torch's, numpy's, Arrow's or the system's."""
    known = type(error).__name__ == "OutOfMemoryError"  # torch's, which is not imported for this alone
    known |= isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
    if not known and not (isinstance(error, RuntimeError) and REFUSED.search(str(error))):
        return None
    words = re.sub(r"^\[enforce fail[^\]]*\][^.]*\. ", "", " ".join(str(error).split()))  # where in its code torch noticed
    words = words.split(". ")[0] or "the process could get no more memory"
    return OutOfMemoryError(f"{words[:300]}; {next_move(module)}")


def of_end(code: int | None, lines: Sequence[str], kills: int, module: str) -> OutOfMemoryError | None:
    """What ended a process, if it was memory: the kernel, which counts what it kills, or C++ without a handler.

    kills: `kernel_kills` when the process was started."""
    if code == -signal.SIGKILL and kernel_kills() > kills:
        words = "the kernel ended it, as the machine or its container had no memory left"
    elif code == -signal.SIGABRT and any("std::bad_alloc" in line for line in lines):
        words = "it could get no more memory (std::bad_alloc)"
    else:
        return None
    return OutOfMemoryError(f"{words}; {next_move(module)}")


def next_move(module: str) -> str:
    """What to do about it."""
    name = LESS.get(module.rpartition(".")[2], ANY)
    return f"lower {name} in the hardware file, or give it a machine with more; what it committed is kept"


def kernel_kills() -> int:
    """Processes that this machine's kernel has ended for want of memory since it was started; 0 where it does not count."""
    try:
        found = re.search(r"^oom_kill (\d+)$", VMSTAT.read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        return 0
    return 0 if found is None else int(found[1])
