"""benchmarks/gpu_judging.py and what both judging benchmarks count, tried on CPU with tiny sizes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu_judging import stretched
from benchmarks.material.judging import Shape, useful_flops
from sppo.judges.segments import PairEncoding

ROOT = Path(__file__).resolve().parents[2]


def test_useful_operations_are_counted_by_hand() -> None:
    """H = 8, I = 16, T = 10, so R = min(512, 19) = 19.

    A layer: products 2 * 10 * 8 * (32 + 32) = 10240, scores and mixing 4 * 100 * 8 = 3200, positions 4 * 10 * 19 * 8 = 6080.
    The last: keys and values 4 * 10 * 64 = 2560; of three tokens queries, outputs and the wide layers 2 * 3 * 8 * (16 + 32) =
    2304, scores and mixing 4 * 3 * 10 * 8 = 960, positions 2 * 3 * (19 + 10) * 8 = 1392."""
    assert useful_flops(Shape("", 2, 8, 2, 16), 10) == 10240 + 3200 + 6080 + 2560 + 2304 + 960 + 1392
    assert useful_flops(Shape("", 3, 8, 2, 16), 10) - useful_flops(Shape("", 2, 8, 2, 16), 10) == 19520


@pytest.mark.parametrize("tokens", [32, 129, 2048])
def test_a_stretched_question_keeps_its_frame(tokens: int) -> None:
    cls, source, first, second, sep = 1, 101, 102, 103, 2
    question = PairEncoding([cls, source, 7, 8, sep, cls, first, 9, sep, cls, second, 6, sep], 1, 6, 10)
    found = stretched(question, tokens)
    assert len(found.ids) == tokens
    assert [found.ids[place] for place in (found.source, found.candidate1, found.candidate2)] == [source, first, second]
    for special, times in ((cls, 3), (sep, 3), (source, 1), (first, 1), (second, 1)):
        assert found.ids.count(special) == times


def test_the_gpu_benchmark_runs_on_cpu_and_agrees_with_transformers() -> None:
    script = [sys.executable, str(ROOT / "benchmarks" / "gpu_judging.py"), "--device", "cpu", "--tiny"]
    done = subprocess.run([*script, "--data", "nowhere.parquet"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    line = json.loads(done.stdout.splitlines()[-1])
    assert line["p_deviation"] < 1e-5
    for name in ("mix", "32", "64"):
        assert line[f"pairs_per_s_{name}"] > 0
        assert 0 < line[f"fraction_{name}"] < 1
        assert line[f"vs_single_{name}"] > 0
        assert line[f"vs_batched_{name}"] > 0
    assert "made, log-uniform" in done.stdout
