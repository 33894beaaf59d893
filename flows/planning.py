"""What `sppo plan` shows: memory by part, tokens, steps, FLOPs and minutes of one iteration's training, and whether it fits."""

import os
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from flows.preparation import HARDWARE, RECIPES
from sppo.hardware import Hardware, load_hardware
from sppo.plan import GIB, Asked, Plan, device_bytes, host_fits, plan, policy_shape, what_would_fit
from sppo.recipe import Recipe, load_recipe
from sppo.train.engine import check_hardware
from sppo.train.memory import KEPT_FREE, Memory, trained_parameters

PEAK_SECONDS = 0.3


def show_plan(
    console: Console, recipe: str, hardware: str, overrides: Sequence[str], config: Path | None, asked: Asked
) -> bool:
    """Plan and print; whether it fits, which is True where the hardware file does not say how much memory there is.

    Raises SppoError for a recipe, hardware or config.json that cannot be used."""
    loaded, machine = load_recipe(recipe, RECIPES, tuple(overrides)), load_hardware(hardware, HARDWARE)
    check_hardware(machine, loaded.policy.dtype)
    peak = _peak_here(machine) if machine.device == "cpu" and machine.peak_tflops is None else None
    found = plan(loaded, machine, policy_shape(loaded, config), asked, peak)
    console.print(Text(f"one iteration of {loaded.name} on {machine.name}: what training takes", "bold"))
    console.print()
    console.print(_memory_table(found))
    fits = _show_whether_it_fits(console, loaded, machine, found)
    console.print()
    console.print(_work_table(found, loaded, machine, measured=peak is not None))
    console.print()
    for assumption in found.assumptions:
        console.print(Text(f"assumed  {assumption}", "dim"), soft_wrap=True)
    console.print(Text("formulas docs/plan.md", "dim"))
    return fits


def _memory_table(found: Plan) -> Table:
    """Each part of one rank, the largest first within its time."""
    table = _table("memory of one device")
    table.add_column("GiB", justify="right")
    away = any(part.host for part in found.memory.parts)
    if away:
        table.add_column("in CPU memory", justify="right")
    table.add_column("", style="dim")
    for when, title in (("always", ""), ("backward", "in the backward pass"), ("step", "in the optimizer's step")):
        parts = [part for part in found.memory.parts if part.when == when]
        if title and parts:
            table.add_row(Text(title, "dim"))
        for part in parts:
            cells = [_gib(part.device), *([_gib(part.host)] if away else [])]
            table.add_row(f"  {part.name}" if title else part.name, *cells, part.why)
    whole = [Text(_gib(found.memory.device), "bold"), *([Text(_gib(found.memory.host), "bold")] if away else [])]
    table.add_row(Text("at most, at once", "bold"), *whole)
    return table


def _show_whether_it_fits(console: Console, recipe: Recipe, machine: Hardware, found: Plan) -> bool:
    """One line, and where it does not fit, the first change that would."""
    room = device_bytes(machine)
    if room is None:
        console.print(Text(f"fits?    memory_gib is not in hardware {machine.name}: set it to see", "yellow"))
        return True
    size, host = _gib(room).strip(), host_fits(found.memory, machine)
    if found.memory.fits(room) and host is not False:
        words = f"fits     {_gib(found.memory.device)} of {size} GiB, {_percent(KEPT_FREE)} of it kept free"
        console.print(Text(words + _host_words(machine, found.memory), "green"))
        return True
    if found.memory.fits(room):
        console.print(Text(f"does not fit{_host_words(machine, found.memory)}", "red"))
    else:
        console.print(
            Text(f"does not fit: {_gib(found.memory.device)} of {size} GiB, {_percent(KEPT_FREE)} of it kept free", "red")
        )
    other = what_would_fit(recipe, machine, found.shape)
    if other is None:
        console.print(
            Text("         no value of the hardware file helps: more devices, training.optimizer rmsprop_8bit, or an adapter")
        )
    else:
        values = ", ".join(f"{name}: {str(value).lower()}" for name, value in other[0].items())
        console.print(Text(f"it would with train: {{{values}}}: {_gib(other[1].device)} GiB{_host_words(machine, other[1])}"))
    return False


def _host_words(machine: Hardware, memory: Memory) -> str:
    if not memory.host:
        return ""
    needed = _gib(memory.host * machine.train.processes)
    room = "" if machine.host_memory_gib is None else f" of {machine.host_memory_gib:g}"
    return f"; {needed}{room} GiB of the machine's own memory"


def _work_table(found: Plan, recipe: Recipe, machine: Hardware, measured: bool) -> Table:
    table = _table("work")
    table.add_column("", justify="right")
    table.add_column("", style="dim")
    for name, value, why in _work_rows(found, recipe, machine, measured):
        table.add_row(name, value, why)
    return table


def _work_rows(found: Plan, recipe: Recipe, machine: Hardware, measured: bool) -> list[tuple[str, str, str]]:
    work, drawing, training = found.work, found.drawing, recipe.training
    prompt, responses = work.lengths
    trained = trained_parameters(found.shape, training)
    kind = training.adapter.kind
    each = f"{prompt} of prompt, once, and {work.responses_each} x {responses[0]} of response"
    peak = "not known: set peak_tflops in the hardware file"
    if found.peak is not None:
        where = "measured here by a matrix product" if measured else "peak_tflops"
        peak = f"{_percent(found.mfu)} of {found.devices} x {_flops(found.peak)}/s ({where})"
    return [
        (
            "parameters",
            _count(found.shape.parameters),
            "all trained" if kind == "none" else f"{_count(trained)} trained, {kind}",
        ),
        ("prompts", f"{work.prompts:,}", f"{work.responses_each} of {recipe.generation.responses} responses each"),
        ("tokens an epoch", _count(work.tokens), each),
        ("steps", f"{work.schedule.stop:,}", f"of {training.global_batch} prompts, {_times(work.epochs, 'epoch')}"),
        ("useful FLOPs", _flops(found.flops), f"{_flops(found.training_flops / work.schedule.stop)} a step"),
        (
            "  of these log pi_t",
            _flops(found.reference_flops),
            "one forward pass" if found.reference_flops else "from the sampler",
        ),
        ("expected time", "?" if found.seconds is None else _time(found.seconds), peak),
        ("to generate", f"{_count(drawing.tokens)} tokens", f"{drawing.responses:,} responses"),
        (
            "  keys and values",
            f"{drawing.cache_per_token / 1024:,.0f} KiB a token",
            f"{_gib(drawing.cache_longest)} GiB the longest",
        ),
        ("to judge", f"{_count(drawing.pairs)} pairs", "every two responses, in both orders"),
    ]


def _peak_here(machine: Hardware) -> float:
    """FLOP/s of a rank's threads, by matrix products in fp32: numpy answers in a moment where torch takes seconds to load."""
    import numpy as np

    one = np.ones((768, 768), np.float32)
    best, until = float("inf"), time.monotonic() + PEAK_SECONDS
    while best == float("inf") or time.monotonic() < until:
        started = time.perf_counter()
        one @ one
        best = min(best, time.perf_counter() - started)
    used = int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0)))
    return 2 * 768**3 / best / used * machine.threads_for(machine.train.processes)


def _table(title: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column(title, no_wrap=True)
    return table


def _gib(size: float) -> str:
    gib = size / GIB
    if gib == 0:
        return "-"
    return f"{gib:,.1f}" if gib >= 1 else f"{gib:.3f}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _count(number: float) -> str:
    for size, word in ((1e9, "billion"), (1e6, "million")):
        if number >= size:
            return f"{number / size:,.2f} {word}"
    return f"{number:,.0f}"


def _flops(number: float) -> str:
    for size, letter in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G")):
        if number >= size:
            return f"{number / size:,.3g} {letter}FLOP"
    return f"{number:,.0f} FLOP"


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


def _times(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"
