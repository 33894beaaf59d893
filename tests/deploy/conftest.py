"""One machine that serves itself for all tests of this folder, as `make serve` starts it."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
import pytest
import yaml

from flows import background
from flows.environment import port_is_free, read_environment
from flows.serving import serve, stop
from infra.local_s3 import LocalS3
from sppo.recipe import load_recipe
from sppo.store import Store

ROOT = Path(__file__).resolve().parents[2]
DEPLOYMENTS = ROOT / "deployments"
GPU_WORKERS = 2
HARDWARE = """
name: {name}
device: cpu
threads: 1
generate: {{processes: 1, tensor_parallel: 1, memory_share: 0.5, kv_cache_mib: 64, max_concurrent: 8, timeout_s: 300}}
rank: {{processes: 1, tokens_per_batch: 512, timeout_s: 300}}
train:
  nodes: {nodes}
  processes: 1
  tokens_per_device: 512
  zero_stage: {zero}
  offload: none
  recompute_activations: false
  checkpoint_steps: 4
  timeout_s: 300
{pool}
"""
POOL = "pool: {name: gpu, jobs: workers, lost_after_s: 12}"


def recipe_overrides(policy: Path, judge: Path) -> tuple[str, ...]:
    """The tiny recipe with a random policy and judge: every stage for real, in seconds."""
    kind = f"{{kind: pairrm, source: {{kind: folder, path: {judge}}}, max_source_tokens: 64, max_candidate_tokens: 48}}"
    return (
        f"policy.source={{kind: folder, path: {policy}}}",
        "prompts.source={kind: world, train_prompts: 160, test_prompts: 8}",
        "prompts.max_prompt_tokens=256",
        "generation={engine: transformers, responses: 3, temperature: 1.0, top_p: 1.0, max_tokens: 32}",
        f"judge={kind}",
        "selection={responses: all, drop_ties: false, cut: keep, empty: keep}",
        "training.schedule_epochs=2",
        "training.stop_epochs=2",
        "training.global_batch=16",
        "training.max_tokens=300",
        "evaluation.sampling={responses: 1, temperature: 1.0, top_p: 1.0, max_tokens: 8}",
        f"evaluation.judges=[{kind}, {{kind: world-rule}}]",
        "evaluation.max_prompts=8",
        "evaluation.resamples=100",
        "evaluation.gates=null",  # a random policy gains nothing
    )


@dataclass
class Machine:
    """What is served, and how a person uses it."""

    root: Path
    store: Store
    environment: dict[str, str]

    @property
    def folder(self) -> Path:
        return self.root / "var" / "serve"

    def type(self, *words: str, timeout_s: float = 400) -> "subprocess.CompletedProcess[str]":
        """A command line, typed in a shell that read the environment file."""
        return subprocess.run(words, env=self.environment, cwd=ROOT, capture_output=True, text=True, timeout=timeout_s)

    def prefect(self, *words: str) -> str:
        done = self.type(sys.executable, "-m", "prefect", *words)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def sppo(self, *words: str) -> "subprocess.CompletedProcess[str]":
        return self.type(sys.executable, "-m", "flows.command_line", *words)

    def start(self, deployment: str, **parameters: Any) -> str:
        """Id of a new flow run."""
        told = self.prefect("--no-prompt", "deployment", "run", deployment, "--params", json.dumps(parameters))
        return next(line.split("UUID: ")[1].strip() for line in told.splitlines() if "UUID: " in line)

    def client(self) -> Any:
        from prefect.client.orchestration import SyncPrefectClient

        url, password = self.environment["PREFECT_API_URL"], self.environment["PREFECT_API_AUTH_STRING"]
        return SyncPrefectClient(url, auth_string=password)

    def state(self, flow_run: str) -> str:
        with self.client() as client:
            state = client.read_flow_run(UUID(flow_run)).state
        return state.type.value if state is not None else "NONE"

    def wait(self, flow_run: str, *states: str, timeout_s: float = 240) -> str:
        """Wait for a state of these types. Fails with the log of a run that ends otherwise."""
        deadline = time.monotonic() + timeout_s
        while (state := self.state(flow_run)) not in states:
            over = state in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED") and "CRASHED" not in states
            assert not over, f"{state}\n{self.log(flow_run)}"
            assert time.monotonic() < deadline, f"still {state}\n{self.log(flow_run)}"
            time.sleep(0.3)
        return state

    def log(self, flow_run: str) -> str:
        return self.prefect("flow-run", "logs", flow_run)

    def children(self, flow_run: str) -> list[Any]:
        """Flow runs that worked for this one."""
        from prefect.client.schemas.filters import FlowRunFilter

        wanted = FlowRunFilter.model_validate({"tags": {"all_": ["stage"]}})
        with self.client() as client:
            return [run for run in client.read_flow_runs(flow_run_filter=wanted) if run.parameters.get("parent") == flow_run]

    def workers(self) -> dict[str, psutil.Process]:
        """The processes of the `gpu` workers by name."""
        return {name: process for name, process in background.alive(self.folder).items() if name.startswith("gpu-")}

    def stage_processes(self) -> list[psutil.Process]:
        """Every process of every stage that is at work."""
        found = []
        for worker in self.workers().values():
            for process in worker.children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):  # which a zombie is, too
                    if "sppo.workers." in " ".join(process.cmdline()):
                        found.append(process)
        return found

    def serve(self) -> None:
        """Start what has died."""
        before = dict(os.environ)
        os.environ.update(self.environment)
        try:
            serve(self.root, GPU_WORKERS, store=self.store.url)
        finally:
            os.environ.clear()
            os.environ.update(before)


def decided(judge: Path, folder: Path) -> Path:
    """A judge of strong opinions: where one is undecided, gradients are rounding errors that RMSprop makes whole steps of."""
    from safetensors.numpy import load_file, save_file

    shutil.copytree(judge, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["head_layer.4.weight"] *= 2000
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def write_deployments(folder: Path, overrides: tuple[str, ...]) -> None:
    """The project's recipes and hardware files, and small ones beside them."""
    for kind in ("recipes", "hardware"):
        (folder / kind).mkdir(parents=True)
        for file in (DEPLOYMENTS / kind).glob("*.yaml"):
            (folder / kind / file.name).write_text(file.read_text())
    small = {**load_recipe("tiny", DEPLOYMENTS / "recipes", overrides).model_dump(mode="json"), "name": "small"}
    (folder / "recipes" / "small.yaml").write_text(yaml.safe_dump(small, sort_keys=False))
    for name, nodes, zero, pool in (("workers", 1, 0, POOL), ("two-nodes", 2, 3, POOL), ("one-core", 1, 0, "")):
        (folder / "hardware" / f"{name}.yaml").write_text(HARDWARE.format(name=name, nodes=nodes, zero=zero, pool=pool))


@pytest.fixture(scope="session")
def machine(
    tmp_path_factory: pytest.TempPathFactory,
    ceph_server: LocalS3,
    random_policy: Callable[[str], Path],
    random_judge: Path,
) -> Iterator[Machine]:
    import boto3

    root = tmp_path_factory.mktemp("machine")
    write_deployments(root / "deployments", recipe_overrides(random_policy("llama"), decided(random_judge, root / "judge")))
    ours = {**ceph_server.environment, "SPPO_DEPLOYMENTS": str(root / "deployments"), "SPPO_SCRATCH": str(root / "scratch")}
    ours["PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS"] = "5"  # else a schedule that is turned on is seen within a minute
    before = dict(os.environ)
    os.environ.update(ours)
    try:
        boto3.Session().client("s3").create_bucket(Bucket="sppo-machine")
        url = "s3://sppo-machine/store"
        # a port of its own: another test process may look for one at the same moment; below those that connections are given
        port = next(number for number in range(4300 + os.getpid() % 1000 * 10, 32768) if port_is_free(number))
        serve(root, GPU_WORKERS, port, url)
        told = read_environment(root / "var" / "serve" / "environment")
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # as the environment file sets it
        yield Machine(root, Store(url, root / "scratch"), {**os.environ, **told, "PATH": path, "COLUMNS": "400"})
        assert stop(root) > 0
    finally:
        stop(root)
        os.environ.clear()
        os.environ.update(before)
