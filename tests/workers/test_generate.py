"""Generation by real worker processes: vLLM and transformers, resumed, and by one or two processes alike."""

import importlib.util
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from sppo import generate, policy
from sppo.engines import Request, Sample
from sppo.errors import PolicyError, StoreError
from sppo.hardware import Hardware, load_hardware
from sppo.launch import Group, WorkRecord
from sppo.progress import Progress, ProgressFile, Report
from sppo.recipe import Recipe, load_recipe
from sppo.records import Prompt, Response, by_prompt, from_table, to_table
from sppo.store import Artifact, Identity, Outcome, Step, Store, Workspace
from sppo.workers.generate import ChunkWriter, answer_all

DEPLOYMENTS = Path(__file__).resolve().parents[2] / "deployments"
EOT = 3
needs_vllm = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")


def recipe_with(folder: Path, engine: str) -> Recipe:
    tiny = load_recipe("tiny", DEPLOYMENTS / "recipes")
    values = {
        **tiny.model_dump(mode="json"),
        "policy": {**tiny.policy.model_dump(mode="json"), "source": {"kind": "folder", "path": str(folder)}},
        "generation": {"engine": engine, "responses": 3, "temperature": 0.8, "top_p": 0.9, "max_tokens": 24},
    }
    values["evaluation"] |= {"max_prompts": 5}
    values["evaluation"]["sampling"] |= {"responses": 2, "max_tokens": 16}
    return Recipe.model_validate_json(json.dumps(values))


def hardware_with(processes: int) -> Hardware:
    cpu = load_hardware("cpu", DEPLOYMENTS / "hardware")
    changes = {"processes": processes, "kv_cache_mib": 64, "max_concurrent": 32}
    return cpu.model_copy(update={"threads": processes, "generate": cpu.generate.model_copy(update=changes)})


def write_split(workspace: Any) -> Outcome:
    for name, count in (("train-1", 70), ("test", 8)):
        rows = []
        for number in range(count):
            token_ids = [0, 2, *(4 + (number * 31 + place * 7) % 250 for place in range(10 + number % 60))]
            rows.append(Prompt(f"{name} {number}", [{"role": "user", "content": f"{number}"}], token_ids))
        workspace.add_table(to_table(Prompt, rows), f"{name}.parquet")
    return Outcome("made for a test")


def sources(store: Store, recipe: Recipe) -> tuple[Artifact, Artifact, list[generate.Draw]]:
    split = store.build(Step(Identity("split", 1, {}, {}), write_split))
    draws = [generate.training_draw(recipe, split, 1), generate.held_out_draw(recipe, split)]
    return store.build(policy.step(recipe)), split, draws


def responses_of(artifact: Artifact) -> list[Response]:
    return list(from_table(Response, artifact.tables()))


@pytest.fixture(scope="module")
def drawn(
    random_policy: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Store, Recipe, list[Artifact]]:
    """70 training prompts x 3 and 5 of 8 test prompts x 2, from one vLLM worker."""
    folder = tmp_path_factory.mktemp("generate")
    store = Store(str(folder / "store"), folder / "scratch")
    recipe = recipe_with(random_policy("llama"), "vllm")
    base, _, draws = sources(store, recipe)
    seen: list[Progress] = []
    made = generate.build(store, recipe, hardware_with(1), base, draws, seen.append)
    assert seen[0].note == "loading the engine"
    assert (seen[-1].done, seen[-1].total) == (75, 75)
    return store, recipe, made


@needs_vllm
def test_vllm_answers_every_prompt_k_times_and_one_load_serves_both_draws(drawn: tuple[Store, Recipe, list[Artifact]]) -> None:
    _, _, (trained, sampled) = drawn
    # 70 prompts in chunks of 32, and the first 5 held-out prompts
    assert trained.file_names() == ["chunk-00000.parquet", "chunk-00001.parquet", "chunk-00002.parquet"]
    assert sampled.file_names() == ["chunk-00000.parquet"]
    rows = by_prompt(responses_of(trained))
    assert list(rows) == [f"train-1 {number}" for number in range(70)]
    assert all([row.k for row in group] == [0, 1, 2] for group in rows.values())
    assert list(by_prompt(responses_of(sampled))) == [f"test {number}" for number in range(5)]
    assert trained.manifest.counts["responses"] == 210
    assert trained.manifest.metrics["tokens_per_s"] > 0
    assert len([*trained.manifest.logs, *sampled.manifest.logs]) == 1, "one engine load"
    assert "vllm" in trained.text(trained.manifest.logs[0].name).lower(), "the engine's chatter is kept beside the responses"


@needs_vllm
def test_a_stopped_response_keeps_its_stop_token_and_a_cut_one_gets_none(drawn: tuple[Store, Recipe, list[Artifact]]) -> None:
    _, _, (trained, _) = drawn
    rows = responses_of(trained)
    for row in rows:
        assert EOT not in row.token_ids[:-1]
        assert (row.finish_reason == "stop") == (row.token_ids[-1] == EOT)
        assert row.finish_reason == "stop" or len(row.token_ids) == 24
        assert len(row.logprobs) == len(row.token_ids)
    cut = sum(row.finish_reason == "length" for row in rows)
    assert trained.manifest.counts["cut_at_limit"] == cut
    assert trained.manifest.counts["tokens"] == sum(len(row.token_ids) for row in rows)


@needs_vllm
def test_vllms_logprobs_are_the_models_own_before_temperature_and_top_p(
    drawn: tuple[Store, Recipe, list[Artifact]], random_policy: Callable[[str], Path]
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    store, _, (trained, _) = drawn
    prompts = {
        one.prompt_id: one
        for one in from_table(
            Prompt, store.open(trained.manifest.lineage["prompts"].partition("#")[0]).table("train-1.parquet")
        )
    }
    model = AutoModelForCausalLM.from_pretrained(random_policy("llama"), dtype=torch.float32)
    tokenizer = policy.load_tokenizer(random_policy("llama"))
    for row in responses_of(trained)[::17]:
        before = prompts[row.prompt_id].token_ids
        with torch.inference_mode():
            logits = model(torch.tensor([before + row.token_ids])).logits[0, len(before) - 1 : -1]
        chosen = logits.log_softmax(-1).gather(1, torch.tensor(row.token_ids)[:, None])[:, 0]
        assert row.logprobs == pytest.approx(chosen.tolist(), abs=1e-3)
        assert row.text == tokenizer.decode(row.token_ids, skip_special_tokens=True)


@needs_vllm
def test_a_resumed_draw_by_two_processes_gives_the_same_tokens_and_draws_no_chunk_twice(
    drawn: tuple[Store, Recipe, list[Artifact]], tmp_path: Path
) -> None:
    store, recipe, (trained, _) = drawn
    folder = Path(store.url) / trained.reference
    other = Store(str(tmp_path / "store"), tmp_path / "scratch")
    base, _, draws = sources(other, recipe)
    # the first attempt died after its first chunk
    resumed = Path(other.url) / trained.reference
    record = json.loads((folder / "parts" / "chunk-00000.json").read_text())
    (resumed / "parts").mkdir(parents=True)
    shutil.copy(folder / "parts" / "chunk-00000.json", resumed / "parts")
    for entry in record["files"]:
        shutil.copytree(folder / "files" / entry["sha256"][:16], resumed / "files" / entry["sha256"][:16])
    seen: list[Progress] = []
    again = generate.build(other, recipe, hardware_with(2), base, draws[:1], seen.append)[0]
    assert again.reference == trained.reference
    assert (seen[0].done, seen[0].total) == (32, 70)
    assert len(again.manifest.logs) == 2
    for row, before in zip(responses_of(again), responses_of(trained), strict=True):
        assert (row.prompt_id, row.k, row.seed, row.token_ids) == (before.prompt_id, before.k, before.seed, before.token_ids)
        assert row.logprobs == pytest.approx(before.logprobs, abs=1e-4)


def test_weights_that_are_nan_are_an_error_that_names_the_policy(
    random_policy: Callable[[str], Path], store: Store, tmp_path: Path
) -> None:
    from safetensors.numpy import load_file, save_file

    folder = shutil.copytree(random_policy("llama"), tmp_path / "policy")
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"] * float("nan")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    recipe = recipe_with(folder, "transformers")
    base, _, draws = sources(store, recipe)
    with pytest.raises(
        PolicyError, match=r"response 0 to prompt test 0 has a log-prob that is not finite.*hold nan or overflow"
    ):
        generate.build(store, recipe, hardware_with(1), base, draws[1:])


def test_transformers_stands_in_and_committed_draws_start_no_process(
    random_policy: Callable[[str], Path], store: Store
) -> None:
    recipe = recipe_with(random_policy("llama"), "transformers")
    base, _, draws = sources(store, recipe)
    sampled = generate.build(store, recipe, hardware_with(1), base, draws[1:])[0]
    assert sampled.manifest.counts["responses"] == 10

    class Nowhere:
        def machines(self, stage: str, fingerprint: str) -> int:
            raise AssertionError("nothing is missing")

        def run(self, groups: Sequence[Group], store: Store, report: Report) -> list[WorkRecord]:
            raise AssertionError("nothing is missing")

    again = generate.build(store, recipe, hardware_with(1), base, draws[1:], launch=Nowhere())[0]
    assert again.digest == sampled.digest


class Parrot:
    """An engine that says each prompt's last ids again."""

    def answer(self, requests: Iterator[Request]) -> Iterator[tuple[Request, list[Sample]]]:
        for request in requests:
            yield request, [Sample([*request.token_ids[-5:], EOT], [-1.0] * 6) for _ in range(request.responses)]


@pytest.mark.parametrize(("refused", "kept"), [((0,), [1, 2]), ((0, 1), [])])
def test_what_was_drawn_is_committed_also_after_a_chunk_that_could_not_be(
    random_policy: Callable[[str], Path], store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Any, kept: Any
) -> None:
    recipe = recipe_with(random_policy("llama"), "transformers")
    base, _, draws = sources(store, recipe)
    commit_part = Workspace.commit_part

    def commit_or_fail(workspace: Workspace, name: str, *told: Any) -> Any:
        if name in {generate.chunk_name(chunk) for chunk in refused}:
            raise StoreError(f"nobody took {name}")
        return commit_part(workspace, name, *told)

    class InThisProcess:
        def machines(self, stage: str, fingerprint: str) -> int:
            return 1

        def run(self, groups: Sequence[Group], store: Store, report: Report) -> list[WorkRecord]:
            run = generate.GenerateRun.model_validate_json(json.dumps(groups[0].works[0]))
            workspaces = [store.workspace(task.stage, task.fingerprint) for task in run.draws]
            writer = ChunkWriter(run, workspaces, policy.load_tokenizer(random_policy("llama")))
            answer_all(Parrot(), writer, ProgressFile(tmp_path / "progress.json"), 70)
            raise AssertionError("a chunk is missing")

    monkeypatch.setattr(Workspace, "commit_part", commit_or_fail)
    with pytest.raises(StoreError, match="nobody took chunk-00000"):
        generate.build(store, recipe, hardware_with(1), base, draws[:1], launch=InThisProcess())
    parts = (Path(store.url) / "generate").glob("*/parts/*.json")
    assert sorted(part.stem for part in parts) == [generate.chunk_name(chunk) for chunk in kept]
