"""Orchestration: what flows, tasks and children cost over calling the stages directly, and how fast nothing to do is seen.

    .venv/bin/python benchmarks/orchestration.py [--quick] [--shards 8 64 512] [--prompts 20000]

One iteration with a random policy of 0.2 M parameters and a random judge, so that there is next to no work: by calling the
stages' functions, as a flow in one process, and as a flow whose heavy stages are children on a pool's worker; on SQLite, and on
PostgreSQL where it is installed. Last line: one JSON object.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]  # the checkout this file lies in, and the small models of its tests

CHUNK = 32
"""Prompts a shard."""
HARDWARE = """
name: {name}
device: cpu
threads: 1
generate: {{processes: 1, tensor_parallel: 1, memory_share: 0.5, kv_cache_mib: 64, max_concurrent: 256, timeout_s: 3600}}
rank: {{processes: 1, tokens_per_batch: 4096, timeout_s: 3600}}
train:
  processes: 1
  tokens_per_device: 2048
  zero_stage: 0
  offload: none
  recompute_activations: false
  checkpoint_steps: 100000
  timeout_s: 3600
{pool}
"""


def main() -> None:
    """Measure and print."""
    if sys.argv[1:2] in (["--direct"], ["--flow"]):
        print(json.dumps(one_iteration(*sys.argv[1:6])))
        return
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--quick", action="store_true", help="8 shards, SQLite, 640 prompts")
    options.add_argument("--shards", type=int, nargs="+", default=[8, 64, 512])
    options.add_argument("--prompts", type=int, default=20_000, help="of the finished iteration that is recognised")
    asked = options.parse_args()
    if asked.quick:
        asked.shards, asked.prompts = [8], 640
    with tempfile.TemporaryDirectory(prefix="sppo-bench-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        write_deployments(folder, [*(shards * CHUNK for shards in asked.shards), asked.prompts])
        figures = {**overheads(folder, asked.shards, asked.quick), **recognition(folder, asked.prompts)}
    print(json.dumps(figures))


def write_deployments(folder: Path, sizes: list[int]) -> None:
    """A recipe for each number of prompts, and two hardware files: here, and on a pool."""
    import conftest

    (folder / "policy").mkdir()
    conftest._write_policy("llama", folder / "policy")
    judge = write_judge(folder / "judge")
    for kind in ("recipes", "hardware"):
        (folder / "deployments" / kind).mkdir(parents=True)
    for file in (ROOT / "deployments" / "recipes").glob("*.yaml"):
        shutil.copy(file, folder / "deployments" / "recipes")
    pool = "pool: {name: gpu, jobs: 1, lost_after_s: 300}"
    for name, lines in (("here", ""), ("cpu-pool", pool)):
        (folder / "deployments" / "hardware" / f"{name}.yaml").write_text(HARDWARE.format(name=name, pool=lines))
    for size in sizes:
        dataset = folder / f"{size}.jsonl"
        dataset.write_text(
            "".join(json.dumps({"prompt": f"Say something about {number}."}) + "\n" for number in range(size + 64))
        )
        values = recipe_values(folder / "policy", judge, dataset, size)
        (folder / "deployments" / "recipes" / f"bench-{size}.yaml").write_text(yaml.safe_dump(values, sort_keys=False))


def write_judge(folder: Path) -> Path:
    """A random PairRM of 2 layers, 32 wide."""
    import conftest

    class Factory:
        def mktemp(self, name: str) -> Path:
            folder.mkdir()
            return folder

    made: Path = conftest.random_judge.__wrapped__(Factory())
    return made


def recipe_values(policy: Path, judge: Path, dataset: Path, size: int) -> dict[str, Any]:
    """The tiny recipe with one token a response."""
    from sppo.recipe import load_recipe

    kind = f"{{kind: pairrm, source: {{kind: folder, path: {judge}}}, max_source_tokens: 64, max_candidate_tokens: 48}}"
    changes = (
        f"policy.source={{kind: folder, path: {policy}}}",
        "iterations=1",
        f"prompts={{source: {{kind: own, dataset: {dataset}, test_share: {64 / (size + 64)}}}, "
        "max_prompt_tokens: 128, unusable_rows: drop}",
        "generation={engine: transformers, responses: 2, temperature: 1.0, top_p: 1.0, max_tokens: 1}",
        f"judge={kind}",
        "selection={responses: extremes, drop_ties: false, cut: keep, empty: keep}",
        "training.schedule_epochs=1",
        "training.stop_epochs=1",
        "training.global_batch=64",
        "evaluation.sampling={responses: 1, temperature: 1.0, top_p: 1.0, max_tokens: 1}",
        f"evaluation.judges=[{kind}]",
        "evaluation.max_prompts=32",
        "evaluation.resamples=100",
    )
    recipe = load_recipe("tiny", ROOT / "deployments" / "recipes", changes)
    return {**recipe.model_dump(mode="json"), "name": f"bench-{size}"}


def one_iteration(how: str, recipe: str, hardware: str, run: str, store: str) -> dict[str, float]:
    """Seconds of an iteration in this process, importing left out: `--direct` or `--flow`."""
    import torch  # noqa: F401 - what the stages import lazily, so that neither side pays for it inside
    import transformers  # noqa: F401

    from flows.iteration import sppo_iteration
    from flows.preparation import prepare

    started = time.monotonic()
    if how == "--flow":
        sppo_iteration(recipe, hardware, run, 1, store)
    else:
        directly(prepare(recipe, hardware, run, store, 1))
    return {"seconds": time.monotonic() - started}


def directly(setup: Any) -> None:
    """Algorithm 1 by calling the stages."""
    import sppo.duel
    import sppo.estimate
    import sppo.evaluate
    import sppo.generate
    import sppo.judges
    import sppo.policy
    import sppo.rank
    import sppo.split
    import sppo.train
    from sppo.runs import write_iteration

    store, recipe, hardware = setup.store, setup.recipe, setup.hardware
    base = sppo.policy.build(store, recipe)
    judge = store.build(sppo.judges.step(recipe.judge, recipe))
    prompts = store.build(sppo.split.step(recipe, base))
    drawn, held_out = sppo.generate.training_draw(recipe, prompts, 1), sppo.generate.held_out_draw(recipe, prompts)
    responses, before = sppo.generate.build(store, recipe, hardware, base, [drawn, held_out])
    ranked = store.build(sppo.rank.step(recipe, hardware, judge, drawn.prompts, responses))
    targets = store.build(sppo.estimate.step(recipe, ranked, responses))
    trained = store.build(sppo.train.step(recipe, hardware, 1, base, drawn.prompts, responses, targets))
    answers = sppo.generate.build(store, recipe, hardware, trained, [held_out])[0]
    duels = sppo.duel.build(store, recipe, hardware, [judge], held_out.prompts, answers, [before])
    evaluated = store.build(sppo.evaluate.step(recipe, 1, [before, answers], duels))
    stages = {"policy": base, "judge": judge, "split": prompts, "generate": responses, "rank": ranked, "estimate": targets}
    write_iteration(setup, 1, {**stages, "train": trained, "evaluate": evaluated}, [before, answers], duels)


def in_process(folder: Path, how: str, size: int, store: str, environment: dict[str, str]) -> float:
    """Seconds of an iteration in a process of its own."""
    words = [how, f"bench-{size}", "here", f"bench-{size}", store]
    done = subprocess.run(
        [sys.executable, __file__, *words], env=environment, capture_output=True, text=True, cwd=folder, check=False
    )
    if done.returncode != 0:
        sys.exit(f"{' '.join(words)} failed:\n{done.stderr[-3000:]}")
    return float(json.loads(done.stdout.splitlines()[-1])["seconds"])


@contextmanager
def served(folder: Path, database: str) -> Iterator[dict[str, str]]:
    """A server with its pools and one `gpu` worker; the environment that reaches it."""
    from flows.environment import read_environment
    from flows.serving import serve, stop

    root = folder / f"serve-{database}"
    root.mkdir()
    with postgres(folder) if database == "postgresql" else nothing() as settings:
        before = dict(os.environ)
        os.environ.update(settings)
        try:
            serve(root, 1, store=str(root / "store"))
            yield {**os.environ, **read_environment(root / "var" / "serve" / "environment")}
        finally:
            stop(root)
            os.environ.clear()
            os.environ.update(before)


@contextmanager
def nothing() -> Iterator[dict[str, str]]:
    """SQLite needs no setting."""
    yield {}


@contextmanager
def postgres(folder: Path) -> Iterator[dict[str, str]]:
    """A PostgreSQL server on loopback for as long as this lasts; it refuses to run as root."""
    from sppo.launch.processes import free_port

    place, port = folder / "postgresql", free_port()
    place.mkdir(mode=0o777)
    folder.chmod(0o755)
    as_user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.geteuid() == 0 else []
    if as_user:
        shutil.chown(place, "postgres", "postgres")
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": place}
    initialised = [*as_user, "initdb", "-D", str(place / "cluster"), "-U", "sppo", "--auth=trust"]
    subprocess.run(initialised, check=True, **quiet)
    server = subprocess.Popen(
        [*as_user, "postgres", "-D", str(place / "cluster"), "-p", str(port), "-h", "127.0.0.1", "-k", str(place)], **quiet
    )
    try:
        ask = ["psql", "-h", "127.0.0.1", "-p", str(port), "-U", "sppo", "-d", "postgres", "-c", "create database prefect"]
        deadline = time.monotonic() + 30
        while subprocess.run(ask, **quiet).returncode != 0:
            if time.monotonic() > deadline:
                raise RuntimeError("PostgreSQL did not answer within 30 s")
            time.sleep(0.2)
        yield {"PREFECT_SERVER_DATABASE_CONNECTION_URL": f"postgresql+asyncpg://sppo@127.0.0.1:{port}/prefect"}
    finally:
        server.terminate()
        server.wait()


def overheads(folder: Path, shards: list[int], quick: bool) -> dict[str, float]:
    """Seconds over the direct calls, by database and number of shards."""
    os.environ["SPPO_DEPLOYMENTS"] = str(folder / "deployments")
    os.environ["SPPO_SCRATCH"] = str(folder / "scratch")
    databases = ["sqlite"]
    if quick or shutil.which("initdb") is None:
        print("PostgreSQL is left out: --quick, or initdb is not on the path")
    else:
        databases.append("postgresql")
    print(f"{'database':12} {'shards':>6} {'direct':>9} {'flow':>9} {'children':>9} {'flow adds':>10} {'children add':>13}")
    figures: dict[str, float] = {}
    direct = {
        number: in_process(folder, "--direct", number * CHUNK, str(folder / f"direct-{number}"), dict(os.environ))
        for number in shards
    }
    for database in databases:
        with served(folder, database) as environment:
            for number in shards:
                store = folder / f"{database}-{number}"
                flow = in_process(folder, "--flow", number * CHUNK, f"{store}-flow", environment)
                pool = on_pool(number * CHUNK, f"{store}-pool", environment)
                adds = (flow - direct[number], pool - direct[number])
                seconds = f"{direct[number]:8.1f}s {flow:8.1f}s {pool:8.1f}s {adds[0]:9.1f}s {adds[1]:12.1f}s"
                print(f"{database:12} {number:6} {seconds}")
                suffix = "" if database == "sqlite" else "_postgresql"
                figures[f"overhead_s_{number}{suffix}"] = round(adds[1], 2)
                figures[f"flow_overhead_s_{number}{suffix}"] = round(adds[0], 2)
    worst = max(value for name, value in figures.items() if name.startswith("overhead"))
    print(f"children: 5 jobs an iteration on one worker; the worst is {worst / 36:.2f} % of a one-hour iteration\n")
    return figures


def on_pool(size: int, store: str, environment: dict[str, str]) -> float:
    """Seconds of an iteration whose heavy stages are children, from the request to the end."""
    from prefect.client.orchestration import SyncPrefectClient

    started = time.monotonic()
    with SyncPrefectClient(environment["PREFECT_API_URL"], auth_string=environment["PREFECT_API_AUTH_STRING"]) as client:
        deployment = client.read_deployment_by_name("sppo-iteration/iter1")
        run = client.create_flow_run_from_deployment(
            deployment.id,
            parameters={
                "recipe": f"bench-{size}",
                "hardware": "cpu-pool",
                "run": f"bench-{size}",
                "store": store,
                "ahead": False,
            },
        )
        while (state := client.read_flow_run(run.id).state) is None or not state.is_final():
            time.sleep(0.2)
    if not state.is_completed():
        sys.exit(f"the iteration of {size} prompts on the pool ended {state.name}: {state.message}")
    return time.monotonic() - started


def recognition(folder: Path, prompts: int) -> dict[str, float]:
    """Seconds to see that a finished iteration is finished, over a real S3 server."""
    from infra.local_s3 import local_s3, missing_programs

    if missing_programs():
        print("no S3 server: `make system` installs one; noop_20k_s is left out")
        return {}
    import boto3

    with local_s3(folder / "s3") as server:
        os.environ.update(server.environment)
        boto3.Session().client("s3").create_bucket(Bucket="bench")
        made = in_process(folder, "--direct", prompts, "s3://bench/store", dict(os.environ))
        with served(folder, "sqlite-s3") as environment:
            again = [in_process(folder, "--flow", prompts, "s3://bench/store", environment) for _ in range(3)]
            shutil.rmtree(folder / "scratch")
            elsewhere = in_process(folder, "--flow", prompts, "s3://bench/store", environment)
    print(
        f"an iteration of {prompts} prompts in {-(-prompts // CHUNK)} chunks on S3, {made:.0f} s to make: seen to be done in "
        f"{statistics.median(again):.2f} s (median of 3), {elsewhere:.2f} s on a machine without local copies"
    )
    return {"noop_20k_s": round(statistics.median(again), 2), "noop_20k_without_copies_s": round(elsewhere, 2)}


if __name__ == "__main__":
    main()
