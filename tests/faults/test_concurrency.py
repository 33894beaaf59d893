"""Two runs of one iteration at once, in one store on a real S3 server: what is made is made once, and nothing rests on that."""

import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from faults.finished import FINISHED, difference
from faults.labs import RequestLab
from faults.starts import Attempt

DEADLINE_S = 120.0

pytestmark = pytest.mark.timeout(400)


class Pair:
    """Two machines with a scratch folder each, and one store."""

    def __init__(self, labs: list[RequestLab], folder: Path) -> None:
        self.labs = labs
        self.expected = FINISHED["iteration"](labs[0].undisturbed({})[1])
        self.work = folder / "made.txt"
        self.work.touch()
        self.url, self.objects = labs[0].fresh({})
        self._threads = ThreadPoolExecutor(2)

    def start(self, number: int, **changes: str) -> Callable[[], Attempt]:
        """A run of the first or second machine; its end can be waited for."""
        lab = self.labs[number]
        told = {"FAULTS_WORK": str(self.work), "SPPO_STORE_TIMEOUT_S": "60", **changes}
        run = self._threads.submit(lab.client.run, lab.pipeline, self.url, lab.scratch, lab.world, {**lab.environment, **told})
        return run.result

    def made(self) -> Counter[str]:
        """How often each part and training step was made."""
        return Counter(line.split()[0] for line in self.work.read_text().splitlines())

    def problems(self) -> list[str]:
        return difference(FINISHED["iteration"](self.objects.all()), self.expected)


@pytest.fixture
def pair(request_labs: Callable[[str], list[RequestLab]], tmp_path: Path) -> Pair:
    return Pair(request_labs("iteration")[:2], tmp_path)


def test_two_runs_at_once_do_each_piece_of_work_once(pair: Pair) -> None:
    ends = [pair.start(number) for number in (0, 1)]
    assert [end().state for end in ends] == ["done", "done"]
    assert pair.problems() == []
    assert set(pair.made().values()) == {1}


def test_two_workers_at_the_same_shards_leave_what_one_would(pair: Pair) -> None:
    ends = [pair.start(number, FAULTS_ALONE="yes") for number in (0, 1)]
    assert [end().state for end in ends] == ["done", "done"]
    assert pair.problems() == []
    assert max(pair.made().values()) == 2  # they did collide


def test_a_worker_that_wakes_after_its_shard_was_adopted_changes_nothing(pair: Pair) -> None:
    sleeper = pair.start(0, FAULTS_TERM_S="2")
    deadline = time.monotonic() + DEADLINE_S
    while not any(name.startswith("generate/") for name in pair.made()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    pair.labs[0].client.suspend()
    try:
        assert pair.start(1, FAULTS_TERM_S="2")().state == "done"
        assert pair.problems() == []
    finally:
        pair.labs[0].client.resume()
    assert sleeper().state == "done"
    assert pair.problems() == []
    again = {name for name, times in pair.made().items() if times > 1}
    assert len(again) <= 2, again  # what was under way: the engine takes 8 prompts at a time, of chunks of 4
