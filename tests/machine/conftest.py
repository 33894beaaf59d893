"""Machines that fail: disks that are full or read-only, clocks that are wrong, memory that ends. For real, where root may."""

import os
import shutil
import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

CGROUPS = Path("/sys/fs/cgroup")
Mount = Callable[..., Path]


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    """Mounts something on a new folder of this name, by mount's own arguments; unmounted at the end. Needs root."""
    mounted: list[Path] = []

    def on(name: str, *arguments: str) -> Path:
        place = tmp_path / name
        place.mkdir()
        done = subprocess.run(["mount", *arguments, str(place)], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"mount is not allowed here: {done.stderr.strip()}")
        mounted.append(place)
        return place

    yield on
    for place in reversed(mounted):
        subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.fixture
def small_disk(mount: Mount) -> Callable[[str, int], Path]:
    """A disk of so many KiB, in memory."""
    return lambda name, kib: mount(name, "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs")


@pytest.fixture
def grow() -> Callable[[Path, int], None]:
    """Makes a small disk as large as so many KiB."""

    def resize(disk: Path, kib: int) -> None:
        subprocess.run(["mount", "-o", f"remount,size={kib}k", str(disk)], check=True)

    return resize


@pytest.fixture
def read_only(mount: Mount) -> Callable[[Path], Path]:
    """The same folder at another place, where nobody may write, root included."""

    def bind(folder: Path) -> Path:
        place = mount(f"read-only-{folder.name}", "--bind", str(folder))
        subprocess.run(["mount", "-o", "remount,ro,bind", str(place)], check=True)
        return place

    return bind


@pytest.fixture
def little_memory() -> Iterator[Callable[[int], Path]]:
    """A control group of so many MiB: its file of processes. The kernel ends a process that joined it and needs more."""
    made: list[Path] = []

    def make(mib: int) -> Path:
        first = CGROUPS / "memory" if (CGROUPS / "memory").is_dir() else CGROUPS
        group = first / f"sppo-test-{uuid.uuid4().hex[:8]}"
        limit = "memory.limit_in_bytes" if first.name == "memory" else "memory.max"
        try:
            group.mkdir()
            made.append(group)
            (group / limit).write_text(str(mib << 20))
        except OSError as problem:
            pytest.skip(f"no control group of memory may be made here: {problem}")
        return group / "cgroup.procs"

    yield make
    for group in made:
        group.rmdir()


CLOCK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>

static long off(void) { const char *text = getenv("CLOCK_OFF_BY_S"); return text ? atol(text) : 0; }

int clock_gettime(clockid_t clock, struct timespec *now) {
    int (*real)(clockid_t, struct timespec *) = dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(clock, now);
    if (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE) now->tv_sec += off();
    return result;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    int (*real)(struct timeval *, void *) = dlsym(RTLD_NEXT, "gettimeofday");
    int result = real(now, zone);
    now->tv_sec += off();
    return result;
}

time_t time(time_t *place) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (place) *place = now.tv_sec;
    return now.tv_sec;
}
"""
"""Between a process and its clock: every library of it, Python, C or Rust, sees the hour that we say."""


@pytest.fixture(scope="session")
def wrong_clock(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], dict[str, str]]:
    """Environment of a process whose clock is off by so many seconds."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler to build a wrong clock with")
    folder = tmp_path_factory.mktemp("clock")
    (folder / "clock.c").write_text(CLOCK)
    library = folder / "clock.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(folder / "clock.c"), "-ldl"], check=True)
    return lambda seconds: {**os.environ, "LD_PRELOAD": str(library), "CLOCK_OFF_BY_S": str(seconds)}
