"""What a draw is, how it is shared out, and the transformers engine: seeded row by row, raw log-probs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sppo import generate, policy
from sppo.engines import EngineSettings, Request, Sample, load
from sppo.engines.vllm_engine import engine_arguments
from sppo.errors import HardwareError, PolicyError, RecipeError
from sppo.generate import deal, prompt_seed, share_out
from sppo.hardware import Hardware
from sppo.launch import combine
from sppo.progress import Progress
from sppo.recipe import Recipe
from sppo.records import Prompt, to_table
from sppo.store import Artifact, Identity, Outcome, Step, Store

EOT = 3
SETTINGS = EngineSettings(
    engine="transformers", device="cpu", dtype="float32", stop_token_ids=(EOT,), max_model_len=256,
    max_concurrent=64, tensor_parallel=1, memory_share=0.5, kv_cache_mib=64,
)  # fmt: skip


def request(position: int, length: int = 8, **changes: Any) -> Request:
    token_ids = [0, 2, *(4 + (position * 31 + number * 7) % 250 for number in range(length))]
    values = {"responses": 3, "temperature": 1.0, "top_p": 1.0, "max_tokens": 24, "seed": prompt_seed(42, 1, str(position))}
    return Request(draw=0, position=position, token_ids=token_ids, **{**values, **changes})


@pytest.fixture
def sources(random_policy: Callable[[str], Path], tiny: Recipe, store: Store) -> tuple[Recipe, Artifact, Artifact]:
    """The tiny recipe with a random policy, that policy, and a split of two train prompts and three test prompts."""
    values = {**tiny.policy.model_dump(mode="json"), "source": {"kind": "folder", "path": str(random_policy("llama"))}}
    chosen = type(tiny.policy).model_validate_json(json.dumps(values))
    generation = tiny.generation.model_copy(update={"engine": "transformers", "max_tokens": 8})
    recipe = tiny.model_copy(update={"policy": chosen, "generation": generation})

    def write(workspace: Any) -> Outcome:
        for name, count in (("train-1", 2), ("test", 3)):
            rows = [
                Prompt(f"{name} {number}", [{"role": "user", "content": "x"}], [0, 2, 5 + number]) for number in range(count)
            ]
            workspace.add_table(to_table(Prompt, rows), f"{name}.parquet")
        return Outcome("made for a test")

    return recipe, store.build(policy.step(recipe)), store.build(Step(Identity("split", 1, {}, {}), write))


def test_a_prompts_seed_depends_on_the_recipes_seed_the_iteration_and_the_prompt_alone() -> None:
    seeds = {prompt_seed(42, 1, "a"), prompt_seed(43, 1, "a"), prompt_seed(42, 2, "a"), prompt_seed(42, 1, "b")}
    assert len(seeds) == 4
    assert prompt_seed(42, generate.HELD_OUT, "a") == prompt_seed(42, generate.HELD_OUT, "a")


def test_missing_chunks_are_dealt_out_evenly_and_no_process_starts_for_nothing() -> None:
    # chunks 0, 2, 5 of the first draw and 1 of the second, dealt in turn to two processes
    assert deal([[0, 2, 5], [1]], 2) == [[[0, 5], []], [[2], [1]]]
    assert deal([[3], []], 8) == [[[3], []]]


def test_a_machine_is_given_the_same_chunks_whatever_others_have_done_since() -> None:
    # draws of 3 and 2 chunks, dealt in turn to two machines: 0, 2, 1' and 1, 0'
    assert share_out([3, 2], [[0, 1, 2], [0, 1]], 2) == [[[0, 2], [1]], [[1], [0]]]
    assert share_out([3, 2], [[2], [0]], 2) == [[[2], []], [[], [0]]]


def test_progress_of_several_workers_is_added_up() -> None:
    seen = [
        Progress(stage="generate", done=d, total=50, unit="prompts", note=f"{r} tokens/s") for d, r in ((10, 1200), (5, "0.8k"))
    ]
    assert combine(seen) == Progress(stage="generate", done=15, total=100, unit="prompts", note="2.0k tokens/s")
    loading = Progress(stage="generate", done=0, total=50, unit="prompts", note="loading the engine")
    assert combine([loading]).note == "loading the engine"
    training = Progress(stage="train", done=1, total=2, unit="steps", note="loss 0.0123, 4,100 tokens/s")
    assert combine([training]) == training


def test_held_out_prompts_are_drawn_alike_from_every_policy_and_training_prompts_by_iteration(
    sources: tuple[Recipe, Artifact, Artifact],
) -> None:
    recipe, _, split = sources
    assert generate.held_out_draw(recipe, split) == generate.Draw("sample", split.file("test.parquet"), None)
    assert generate.training_draw(recipe, split, 1) == generate.Draw("generate", split.file("train-1.parquet"), 1)
    for iteration in (0, 4):
        with pytest.raises(RecipeError, match=f"iteration {iteration} of recipe tiny; expected 1 to 3"):
            generate.training_draw(recipe, split, iteration)


def test_what_could_fail_behind_the_engine_fails_before_it_loads(
    sources: tuple[Recipe, Artifact, Artifact], store: Store, cpu: Hardware
) -> None:
    recipe, base, split = sources
    draws = [generate.training_draw(recipe, split, 1)]

    def asked(**changes: Any) -> Recipe:
        return recipe.model_copy(update={"generation": recipe.generation.model_copy(update=changes)})

    with pytest.raises(RecipeError, match="still auto; expected vllm or transformers"):
        generate.build(store, asked(engine="auto"), cpu, base, draws)
    with pytest.raises(
        PolicyError, match=r"a prompt of 3 tokens \(row 1 of train-1\.parquet\) and a response of 510 do not fit into the 512"
    ):
        generate.build(store, asked(max_tokens=510), cpu, base, draws)
    unknown = recipe.model_copy(update={"policy": recipe.policy.model_copy(update={"stop_tokens": ("<nope>",)})})
    with pytest.raises(PolicyError, match="stop_tokens has '<nope>'"):
        generate.build(store, unknown, cpu, base, draws)
    bare = cpu.model_copy(update={"generate": cpu.generate.model_copy(update={"kv_cache_mib": None})})
    with pytest.raises(HardwareError, match=r"hardware cpu gives no generate\.kv_cache_mib"):
        generate.build(store, asked(engine="vllm"), bare, base, draws)


def test_vllm_is_asked_for_raw_logprobs_ids_only_and_no_settings_of_the_models_own(tmp_path: Path) -> None:
    arguments = engine_arguments(tmp_path, SETTINGS)
    wanted = {
        "logprobs_mode": "raw_logprobs",
        "generation_config": "vllm",
        "skip_tokenizer_init": True,
        "enable_prefix_caching": True,
    }
    assert {key: arguments[key] for key in wanted} == wanted
    assert arguments["kv_cache_memory_bytes"] == 64 * 1024 * 1024
    assert arguments["enforce_eager"]
    on_gpu = engine_arguments(tmp_path, SETTINGS.model_copy(update={"device": "cuda", "kv_cache_mib": None}))
    assert not {"enforce_eager", "kv_cache_memory_bytes", "enable_chunked_prefill"} & set(on_gpu)


def test_top_p_keeps_the_smallest_set_that_reaches_it() -> None:
    import torch

    from sppo.engines.transformers_engine import keep_top_p

    logits = torch.tensor([[0.1, 0.5, 0.4], [0.9, 0.06, 0.04]]).log()
    # .5 does not reach .6, .5 + .4 does; .9 alone does
    assert keep_top_p(logits, 0.6).isinf().tolist() == [[True, False, False], [False, True, True]]
    assert keep_top_p(logits, 1.0) is logits


def test_draws_follow_the_policys_distribution() -> None:
    import torch

    from sppo.engines.transformers_engine import SeededDraw

    asked = request(0, responses=4000)
    draw = SeededDraw([asked], {EOT})
    draw(torch.empty(0), torch.tensor([0.5, 0.25, 0.25]).log().expand(4000, 3))
    drawn = torch.tensor([sample.token_ids[0] for sample in draw.samples])
    # 2000, 1000, 1000 expected, with standard deviations of 32 and 27
    assert ((drawn.bincount(minlength=3) - torch.tensor([2000, 1000, 1000])).abs() < 120).all()
    assert draw.samples[0].logprobs[0] == pytest.approx(-0.6931 if drawn[0] == 0 else -1.3863, abs=1e-4)


@pytest.fixture(scope="module")
def answers(random_policy: Callable[[str], Path]) -> dict[str, dict[int, list[Sample]]]:
    """Samples by position, from the transformers engine: all prompts together, and each alone."""
    engine = load(random_policy("llama"), SETTINGS)
    asked = [request(position, length=4 + 5 * position) for position in range(6)]
    together = {one.position: samples for one, samples in engine.answer(iter(asked))}
    alone = {one.position: next(engine.answer(iter([one])))[1] for one in asked}
    return {"together": together, "alone": alone}


def test_a_response_does_not_depend_on_what_else_is_in_the_batch(answers: dict[str, dict[int, list[Sample]]]) -> None:
    for position, samples in answers["together"].items():
        for sample, other in zip(samples, answers["alone"][position], strict=True):
            assert sample.token_ids == other.token_ids
            assert sample.logprobs == pytest.approx(other.logprobs, abs=1e-4)


def test_a_response_ends_with_its_stop_token_or_is_cut_without_one(answers: dict[str, dict[int, list[Sample]]]) -> None:
    samples = [sample for samples in answers["together"].values() for sample in samples]
    assert all(EOT not in sample.token_ids[:-1] for sample in samples)
    stopped = [sample for sample in samples if sample.token_ids[-1] == EOT]
    assert all(len(sample.token_ids) == 24 for sample in samples if sample not in stopped)


@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma2"])
def test_logprobs_are_the_models_own_before_temperature_and_top_p(random_policy: Callable[[str], Path], kind: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    engine = load(random_policy(kind), SETTINGS)
    asked = [request(position, length=20 + position, temperature=0.5, top_p=0.7) for position in range(3)]
    model = AutoModelForCausalLM.from_pretrained(random_policy(kind), dtype=torch.float32, attn_implementation="eager")
    for one, samples in engine.answer(iter(asked)):
        for sample in samples:
            with torch.inference_mode():
                logits = model(torch.tensor([one.token_ids + sample.token_ids])).logits[0, len(one.token_ids) - 1 : -1]
            chosen = logits.log_softmax(-1).gather(1, torch.tensor(sample.token_ids)[:, None])[:, 0]
            assert sample.logprobs == pytest.approx(chosen.tolist(), abs=1e-3)


def test_a_pad_token_that_is_the_eos_never_hides_the_eos(random_policy: Callable[[str], Path], tmp_path: Path) -> None:
    import shutil

    folder = shutil.copytree(random_policy("llama"), tmp_path / "policy")
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "pad_token": "</turn>"}))
    tokenizer = policy.load_tokenizer(folder)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == EOT
    engine = load(folder, SETTINGS)
    samples = [sample for _, samples in engine.answer(request(n, max_tokens=100) for n in range(8)) for sample in samples]
    stopped = [sample for sample in samples if sample.token_ids[-1] == EOT]
    # a stop comes once in 260 tokens: 24 responses of up to 100 tokens leave none with a chance of e^-7
    assert stopped
    assert all(len(sample.logprobs) == len(sample.token_ids) for sample in stopped)
