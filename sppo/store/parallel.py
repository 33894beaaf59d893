"""Several requests to a store at once: most of each is waiting."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Thing = TypeVar("Thing")
Result = TypeVar("Result")


def in_parallel(work: Callable[[Thing], Result], things: Sequence[Thing], at_once: int = 8) -> list[Result]:
    """The result for each thing, in their order.

    Raises the first failure, once what was under way has ended; what had not begun is left."""
    if len(things) < 2:
        return [work(thing) for thing in things]
    with ThreadPoolExecutor(min(at_once, len(things)), "store") as pool:
        futures = [pool.submit(work, thing) for thing in things]
        try:
            return [future.result() for future in futures]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
