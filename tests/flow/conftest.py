"""One Prefect server for all flow tests, and a run small enough to be done for real in seconds."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW", "ignore")

ROOT = Path(__file__).resolve().parents[2]
HARDWARE = """
name: one-core
device: cpu
threads: 1
generate: {processes: 1, tensor_parallel: 1, memory_share: 0.5, kv_cache_mib: 64, max_concurrent: 16, timeout_s: 300}
rank: {processes: 1, tokens_per_batch: 1024, timeout_s: 300}
train:
  processes: 1
  tokens_per_device: 512
  zero_stage: 0
  offload: none
  recompute_activations: false
  checkpoint_steps: 100
  timeout_s: 300
"""


@pytest.fixture(scope="session", autouse=True)
def server() -> Iterator[str]:
    """The URL of a Prefect server; flows that tests call report to it."""
    from prefect.settings import PREFECT_API_URL
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120):
        yield str(PREFECT_API_URL.value())


@pytest.fixture(scope="session")
def prefect(server: str, small: dict[str, Any]) -> Callable[..., str]:
    """Prefect's own command line, as an operator types it; gives what it prints."""
    environment = {**os.environ, "PREFECT_API_URL": server, "SPPO_STORE": small["store"], "COLUMNS": "400"}

    def run(*arguments: str) -> str:
        command = [sys.executable, "-m", "prefect", *arguments]
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory, random_policy: Callable[[str], Path], random_judge: Path) -> dict[str, Any]:
    """Arguments of a flow: a random policy, a random judge, eight prompts an iteration."""
    folder = tmp_path_factory.mktemp("flow")
    (folder / "one-core.yaml").write_text(HARDWARE)
    judge = f"{{kind: pairrm, source: {{kind: folder, path: {random_judge}}}, max_source_tokens: 64, max_candidate_tokens: 48}}"
    overrides = (
        f"policy.source={{kind: folder, path: {random_policy('llama')}}}",
        "iterations=2",
        "prompts.source={kind: world, train_prompts: 8, test_prompts: 4}",
        "prompts.max_prompt_tokens=256",
        "generation={engine: transformers, responses: 2, temperature: 1.0, top_p: 1.0, max_tokens: 8}",
        f"judge={judge}",
        "selection={responses: all, drop_ties: false, cut: keep, empty: keep}",
        "training.learning_rate=0.01",
        "training.schedule_epochs=1",
        "training.stop_epochs=1",
        "training.global_batch=4",
        "training.max_tokens=300",
        "evaluation.sampling={responses: 1, temperature: 1.0, top_p: 1.0, max_tokens: 8}",
        f"evaluation.judges=[{judge}, {{kind: world-rule}}]",
        "evaluation.max_prompts=4",
        "evaluation.resamples=100",
        "evaluation.gates=null",  # a random policy gains nothing
    )
    return {
        "recipe": "tiny",
        "hardware": str(folder / "one-core.yaml"),
        "store": str(folder / "store"),
        "overrides": overrides,
    }
