"""The training benchmarks with processes: two sides in turn, and the GPU script, in small on the CPU."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.material import sides
from benchmarks.material.preferences import TINY, Asked, make_policy, make_steps, mixed_lengths
from benchmarks.material.sides import OURS, RELEASED, Material

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def material(tmp_path: Path) -> Material:
    make_policy(tmp_path / "policy", TINY)
    steps = make_steps(mixed_lengths(8, 3, longest=30), TINY.vocabulary, each=4)
    pairs = [[Asked(one.prompt, one.responses[:2], [1.0, 0.0]) for one in step] for step in steps]
    return Material(tmp_path, tmp_path / "policy", pairs, steps)


def test_our_side_and_the_references_way_take_the_same_steps_in_turn(material: Material) -> None:
    ours = material.side(OURS.changed("ours", tokens_per_device=100))
    rival = material.side(RELEASED.changed("rival", micro_batch=2, recompute=False))
    sides.take_turns([ours, rival], steps=2, rounds=1)
    # at the start log-ratios are 0: the loss is (eta / 2)^2 = 25, and the second step's is what the first has made of it
    assert ours.losses == pytest.approx(rival.losses, rel=0.01)
    assert min(ours.memory, rival.memory) > 0
    assert (len(ours.cpu), len(ours.each[0])) == (1, 2)


def test_the_gpu_script_runs_on_a_cpu_in_small(tmp_path: Path) -> None:
    words = [sys.executable, str(ROOT / "benchmarks" / "gpu_training.py"), "--tiny", "--device", "cpu", "--no-trl"]
    environment = {"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "OUT": str(tmp_path)}
    done = subprocess.run(words, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert {"pairs_per_s", "vs_reference", "vs_reference_recomputed", "mfu_of_measured", "lora_mfu_of_measured"} <= set(found)
    assert found["gradient_padded_fp32_cpu"] < 1e-5  # packed rows against padded, full-logit ones
    assert found["gradient_packed_fp32"] < 1e-5
    assert found["gradient_packed_bf16"] < 0.05
    assert json.loads((tmp_path / "gpu_training.json").read_text()).items() >= found.items()
