"""A worker that gets no more memory: who says so, and what to do about it."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from sppo.errors import OutOfMemoryError
from sppo.launch import Worker, run_workers
from sppo.launch.memory import of_end, of_error
from sppo.progress import silent

MAIN = "from sppo.launch import worker_main\nworker_main(work)\n"
LIMITED = "import resource\nresource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))\n"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Runs Python text as a worker module of this name."""
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")

    def start(code: str, name: str = "rank") -> None:
        (tmp_path / f"{name}.py").write_text(code)
        worker = Worker(name, tmp_path / "run.json", tmp_path / "log", tmp_path / "progress", label=f"{name} 1/2, process 0")
        run_workers([worker], 60, silent, lambda seen: seen[0])

    return start


@pytest.mark.parametrize(
    ("work", "words"),
    [
        ("bytearray(8 << 30)", "the process could get no more memory"),
        ("import numpy; numpy.zeros(8 << 30, numpy.uint8)", "Unable to allocate 8.00 GiB for an array"),
        ("import pyarrow; pyarrow.allocate_buffer(8 << 30)", "malloc of size 8589934592 failed"),
        ("import torch; torch.empty(8 << 30, dtype=torch.uint8)", "DefaultCPUAllocator: can't allocate memory"),
    ],
    ids=["Python", "numpy", "Arrow", "torch"],
)
def test_memory_that_is_refused_is_said_with_the_stage_and_what_to_lower(
    run: Callable[..., None], work: str, words: str
) -> None:
    # 4 GiB of addresses, asked for 8: each library refuses in its own way
    code = f"{LIMITED}def work(config):\n    {work}\n{MAIN}"
    with pytest.raises(OutOfMemoryError) as caught:
        run(code)
    said = str(caught.value)
    assert said.startswith("rank 1/2, process 0: ")
    assert words in said
    assert said.endswith(
        "; lower rank.tokens_per_batch in the hardware file, or give it a machine with more; what it committed is kept"
    )


def test_a_worker_that_the_kernel_ended_for_its_memory_is_told_from_one_that_was_killed(
    run: Callable[..., None], little_memory: Callable[[int], Path]
) -> None:
    group = little_memory(64)
    code = f"open({str(group)!r}, 'w').write(str(__import__('os').getpid()))\n" + (
        "def work(config):\n    import numpy\n    numpy.ones(1 << 28, numpy.uint8).sum()\n" + MAIN
    )
    with pytest.raises(OutOfMemoryError) as caught:
        run(code, "train")
    assert str(caught.value) == (
        "train 1/2, process 0: the kernel ended it, as the machine or its container had no memory left; lower "
        "train.tokens_per_device in the hardware file, or give it a machine with more; what it committed is kept"
    )


def test_memory_that_cpp_could_not_get_is_known_by_its_last_words() -> None:
    lines = ["terminate called after throwing an instance of 'std::bad_alloc'", "  what():  std::bad_alloc"]
    assert "std::bad_alloc" in str(of_end(-6, lines, 0, "sppo.workers.generate"))
    assert of_end(-6, ["assertion failed"], 0, "sppo.workers.generate") is None
    assert of_end(1, lines, 0, "sppo.workers.generate") is None


def test_other_errors_are_not_taken_for_memory() -> None:
    assert of_error(RuntimeError("shape mismatch"), "sppo.workers.train") is None
    assert of_error(OSError(28, "No space left on device"), "sppo.workers.train") is None
