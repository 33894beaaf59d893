"""What a person sees while stages run, and what goes to the log file instead."""

import logging
import subprocess
import sys
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from flows.terminal import StageLines, watched
from sppo.progress import Progress
from sppo.store import Identity, Outcome, Step, Workspace
from tasks import reporting
from tasks.reporting import ProgressLines, WatchedStore, progress_line, report

ROOT = Path(__file__).resolve().parents[2]


def test_a_progress_line_tells_count_rate_time_left_and_the_stages_note() -> None:
    progress = Progress(stage="rank", done=30, total=120, unit="pairs", note="1.1k tokens/s")
    # 90 pairs left at 4.5 a second are 20 seconds
    assert progress_line(progress, 4.5) == "rank: 30 of 120 pairs, 4.5 pairs/s, 20 s left, 1.1k tokens/s"
    assert progress_line(progress.model_copy(update={"note": ""}), 0.0) == "rank: 30 of 120 pairs"


def test_plain_progress_is_one_line_in_ten_seconds_for_each_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(reporting.time, "monotonic", lambda: clock[0])
    written: list[str] = []
    lines = ProgressLines(written.append)
    for second in range(25):
        clock[0] = float(second)
        lines(Progress(stage="train", done=second, total=100, unit="steps"))
    assert written == ["train: 10 of 100 steps, 1 steps/s, 90 s left", "train: 20 of 100 steps, 1 steps/s, 80 s left"]


def test_a_watched_store_says_when_work_begins_and_ends_and_nothing_of_what_is_committed(tmp_path: Path) -> None:
    store = WatchedStore(str(tmp_path / "store"), tmp_path / "scratch")
    told: list[tuple[str, int, int, str]] = []

    def run(workspace: Workspace) -> Outcome:
        workspace.report(Progress(stage="rank", done=1, total=2, unit="pairs"))
        return Outcome("")

    def listen(progress: Progress) -> None:
        told.append((progress.stage, progress.done, progress.total, progress.unit))

    step = Step(Identity("rank", 1, {}, {}), run)
    for _ in range(2):
        store.build(step, listen)
    assert told == [("rank", 0, 1, ""), ("rank", 1, 2, "pairs"), ("rank", 1, 1, "")]


def test_our_log_lines_are_shown_as_text_and_what_was_committed_already_is_only_counted() -> None:
    screen = StringIO()
    with watched(Console(file=screen, width=100)) as lines:
        logging.getLogger("sppo.store.store").info("rank: 2 prompts of [red]x[/red], 0.1 s -> rank/01234567")
        logging.getLogger("sppo.store.store").info("split: nothing to do, committed -> split/01234567")
        logging.getLogger("sppo.store.store").info("split: nothing to do, committed -> split/01234567")
        logging.getLogger("sppo.store.store").info("rank: nothing to do, committed -> rank/01234567")
        logging.getLogger("vllm").warning("chatter")
        report(Progress(stage="train", done=0, total=1, unit="", note="starting"))
    shown = screen.getvalue()
    assert "rank: 2 prompts of [red]x[/red], 0.1 s -> rank/01234567" in shown
    assert "train: starting" in shown
    assert "split" not in shown
    assert "chatter" not in shown
    assert lines.committed_already == {"split/01234567"}  # rank was made a moment ago


def test_on_a_terminal_a_stage_has_a_bar_while_it_runs_and_none_after() -> None:
    screen = StringIO()
    console = Console(file=screen, width=120, force_terminal=True, legacy_windows=False)
    with watched(console):
        report(Progress(stage="rank", done=0, total=1, unit="", note="starting"))
        report(Progress(stage="rank", done=3, total=12, unit="pairs", note="[b]note[/b]"))
        listener = reporting._listeners[-1].__self__  # type: ignore[attr-defined]
        listener.bars.refresh()
        assert [task.description for task in listener.bars.tasks] == ["rank"]
        report(Progress(stage="rank", done=1, total=1, unit=""))
        assert listener.bars.tasks == []
    assert "3/12 pairs" in screen.getvalue()
    assert "[b]note[/b]" in screen.getvalue()


def test_records_above_info_keep_their_level_in_their_colour() -> None:
    screen = StringIO()
    lines = StageLines(Console(file=screen, width=100, force_terminal=True, color_system="standard"))
    lines.emit(logging.LogRecord("sppo", logging.WARNING, "", 0, "vLLM is not installed", None, None))
    assert "\x1b[33mvLLM is not installed" in screen.getvalue()


SCREEN = """
import os, subprocess, sys, warnings
from pathlib import Path
from flows.terminal import Screen
from sppo.errors import RunError
with Screen(Path(sys.argv[1])) as screen:
    screen.console.print("for the person")
    print("chatter of ours")
    os.write(2, b"chatter of a C library\\n")
    subprocess.run([sys.executable, "-c", "print('chatter of a child')"])
    if sys.argv[2] == "our error":
        raise RunError("run name 'X': it has upper case")
    if sys.argv[2] == "a fault":
        raise ValueError("a fault of ours")
    screen.console.print("log at the end")
os.write(1, b"chatter while Python ends\\n")
"""


@pytest.mark.parametrize(
    ("ending", "status", "output", "errors"),
    [
        ("well", 0, "for the person\nlog at the end\n", ""),
        ("our error", 2, "for the person\n", "sppo: run name 'X': it has upper case\nlog      LOG\n"),
        ("a fault", 1, "for the person\n", "ValueError: a fault of ours\n"),
    ],
)
def test_all_chatter_goes_to_the_log_file(ending: str, status: int, output: str, errors: str, tmp_path: Path) -> None:
    log = tmp_path / "logs" / "run.log"
    done = subprocess.run(
        [sys.executable, "-c", SCREEN, str(log), ending], capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    assert (done.returncode, done.stdout) == (status, output)
    assert done.stderr.endswith(errors.replace("LOG", str(log)))
    assert ("Traceback" in done.stderr) == (ending == "a fault")
    chatter = log.read_text()
    assert all(each in chatter for each in ("chatter of ours", "chatter of a C library", "chatter of a child"))
    assert ("chatter while Python ends" in chatter) == (ending == "well")


INTERRUPTED = """
import os, signal, subprocess, sys, time
from pathlib import Path
from flows.interruption import interruptible
from flows.terminal import Screen
with Screen(Path(sys.argv[1])) as screen, interruptible(screen):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    screen.console.print(child.pid)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)
"""


def test_ctrl_c_is_one_message_and_leaves_no_process_behind(tmp_path: Path) -> None:
    log = tmp_path / "run.log"
    done = subprocess.run([sys.executable, "-c", INTERRUPTED, str(log)], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 130
    told = "sppo: stopped; what was committed is kept: the same command, or `sppo resume`, continues from there"
    assert done.stderr == f"{told}\nlog      {log}\n"
    assert not Path(f"/proc/{int(done.stdout)}").exists()


def test_what_worker_processes_print_is_not_for_the_terminal() -> None:
    written = StringIO()
    lines = StageLines(Console(file=written, width=120))
    lines.emit(logging.LogRecord("sppo.output", logging.INFO, "", 0, "generate: INFO loading weights", None, None))
    lines.emit(logging.LogRecord("sppo.store.store", logging.INFO, "", 0, "rank: 8 prompts", None, None))
    assert written.getvalue().split(" ", 1)[1] == "rank: 8 prompts\n"
