"""ckpt-chaos, unmodified, as an outside judge of the train stage: killed at every file boundary of its checkpoints, with files
torn in half, by SIGTERM, and with what was not synced lost.

A kill point takes two trainings of ten seconds, so all of it is for SPPO_SOAK; without, it is skipped.
"""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TRAINING = Path(__file__).with_name("chaos_training.py")
SOAK = bool(os.environ.get("SPPO_SOAK"))
POINTS = int(os.environ.get("SPPO_CHAOS_POINTS") or 200)
"""Kill points, spread evenly over all there are."""


@pytest.mark.slow
@pytest.mark.skipif(not SOAK, reason="an hour: make soak")
@pytest.mark.timeout(6 * 3600)
def test_ckpt_chaos_finds_no_failure_no_silent_difference_and_no_work_lost(
    random_policy: Callable[[str], Path], tmp_path: Path
) -> None:
    pytest.importorskip("ckpt_chaos")
    judge = [sys.executable, "-m", "ckpt_chaos", "run", "--work", str(tmp_path / "runs"), "--max-points", str(POINTS)]
    judge += ["--modes", "before,torn,term,unsynced", "--timeout", "300", "--jobs", os.environ.get("SPPO_CHAOS_JOBS") or "1"]
    judge += ["--checkpoint-glob", "{out}/committed/step-*", "--step-regex", r"resumed from step (\d+)"]
    judge += ["--result-file", "{out}/final.txt", "--fail-on", "HARD_FAIL,SILENT_DIVERGENCE,LOST_WORK,CONTROL_FAIL"]
    command = [*judge, "--", sys.executable, str(TRAINING), str(random_policy("llama")), "{out}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    sys.stdout.write(done.stdout)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    counts = dict(re.findall(r"(\w+): (\d+)", done.stdout.splitlines()[-1]))
    assert set(counts) == {"PASS"}
    assert int(counts["PASS"]) > min(POINTS, 60)
