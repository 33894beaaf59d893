"""The one loop of judging that torch has no fast operator for, in C: relative positions added, softmax taken, row by row.

Compiled in a third of a second when a judge is loaded on CPU, for the machine at hand. Without a C compiler the judge uses
torch's own operators for the same numbers, slower on long questions, and says so.
"""

import ctypes
import itertools
import logging
import os
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from sppo.errors import JudgeError

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("positions.c")
FLAGS = ("-O3", "-march=native", "-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")


class PositionsKernel:
    """softmax(scores + what relative positions add), in place, several heads at a time on torch's number of threads."""

    def __init__(self, library: ctypes.CDLL, dtype: "torch.dtype") -> None:
        import torch

        self._function = library.softmax_float32 if dtype == torch.float32 else library.softmax_bfloat16
        self._threads = torch.get_num_threads()
        self._pool = ThreadPoolExecutor(self._threads) if self._threads > 1 else None

    def softmax(self, scores: "torch.Tensor", by_query: "torch.Tensor", by_key: "torch.Tensor", apart: "torch.Tensor") -> None:
        """scores: (B, T, T), replaced; by_query: (B, T, R); by_key: (B, R, T); apart: (2T - 1,) int32. All contiguous."""
        hands = min(self._threads, len(scores))
        if self._pool is None or hands < 2:
            self._run(scores, by_query, by_key, apart)
            return
        bounds = [len(scores) * hand // hands for hand in range(hands + 1)]
        parts = [slice(first, last) for first, last in itertools.pairwise(bounds)]
        list(self._pool.map(lambda part: self._run(scores[part], by_query[part], by_key[part], apart), parts))

    def _run(self, scores: "torch.Tensor", by_query: "torch.Tensor", by_key: "torch.Tensor", apart: "torch.Tensor") -> None:
        import torch

        heads, tokens, positions = by_query.shape
        room = torch.empty(tokens + 2 * tokens * positions if scores.dtype == torch.bfloat16 else 0)
        places = [ctypes.c_void_p(each.data_ptr()) for each in (scores, by_query, by_key, apart, room)]
        self._function(*places, *(ctypes.c_int64(size) for size in (heads, tokens, positions)))


def positions_kernel(dtype: "torch.dtype") -> PositionsKernel | None:
    """The kernel for a precision; None, with a line in the log, where there is no C compiler or no kernel for it.

    Raises JudgeError in the compiler's words if it fails."""
    import torch

    if dtype not in (torch.float32, torch.bfloat16):
        return None
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        log.info("judge: no C compiler (cc, or what $CC names): torch's own operators are used, slower on long answers")
        return None
    with tempfile.TemporaryDirectory(prefix="sppo-kernel-") as folder:
        target = Path(folder) / "positions.so"
        done = subprocess.run(
            [compiler, *FLAGS, "-o", str(target), str(SOURCE), "-lm"], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise JudgeError(
                f"{compiler} could not compile {SOURCE.name}: {' '.join(done.stderr.split())[:300]}; "
                "expected a C11 compiler: set CC to one, or to a name that does not exist to go without"
            )
        return PositionsKernel(ctypes.CDLL(str(target)), dtype)  # stays loaded when its file is gone
