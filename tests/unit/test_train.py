"""Training without processes: what is trained on, in which order, at which rate, and what a training process is told."""

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from sppo.errors import HardwareError, OutOfMemoryError, PolicyError, RecipeError, TrainError
from sppo.hardware import Hardware, TrainHardware
from sppo.launch import Group, Ranks, WorkRecord
from sppo.progress import Report
from sppo.recipe import Recipe, Training
from sppo.records import Prompt, Response, Target, to_table
from sppo.store import Artifact, Identity, Outcome, Step, Store
from sppo.train import checkpoints, step
from sppo.train.attention import register
from sppo.train.batches import epoch_order, global_batches, steps_per_epoch
from sppo.train.engine import check_hardware, deepspeed_settings
from sppo.train.examples import Examples, join_examples
from sppo.train.forward import packed_policy
from sppo.train.labels import labels_of
from sppo.train.objective import objective_of, step_scale
from sppo.train.packing import pack
from sppo.train.rank import of_rows
from sppo.train.run import TrainRun
from sppo.train.schedule import learning_rate, schedule_of
from sppo.train.step import _train, check_enough, rank_groups
from sppo.train.weights import parameters_of


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Two torch threads on a busy machine wait for each other a hundred times longer than they compute."""
    import torch

    torch.set_num_threads(1)


def joined(
    prompts: dict[str, list[int]], rows: list[tuple[str, int, list[int], float, bool]], max_tokens: int = 100
) -> Examples:
    """Examples of (prompt, k, response ids, win probability, selected)."""
    return join_examples(
        to_table(Prompt, [Prompt(name, [{"role": "user", "content": "x"}], ids) for name, ids in prompts.items()]),
        to_table(Response, [Response(name, k, ids, "", "stop", [], 0) for name, k, ids, _, _ in rows]),
        to_table(Target, [Target(name, k, win, chosen, "best") for name, k, _, win, chosen in rows]),
        max_tokens,
    )


def test_only_selected_responses_are_trained_on_with_the_very_ids_that_were_sampled() -> None:
    found = joined(
        {"b": [1, 2], "a": [3], "c": [4]},
        [("b", 0, [9, 8], 0.9, True), ("b", 1, [7], 0.2, True), ("a", 0, [5, 5], 0.6, True), ("c", 0, [6], 0.5, False)],
    )
    assert found.prompt_ids == ["a", "b"]
    assert [[list(one.token_ids) for one in prompt.responses] for prompt in found.prompts] == [[[5, 5]], [[9, 8], [7]]]
    assert [one.win_probability for one in found.responses] == [0.6, 0.9, 0.2]
    assert [one.row for one in found.responses] == [0, 1, 2]
    assert (found.unselected, found.overlong) == (1, 0)
    assert [prompt.tokens for prompt in found.prompts] == [1 + 2, 2 + 2 + 1]  # each prompt once
    assert found.tokens == 8


def test_a_sequence_is_cut_at_max_tokens_and_gets_no_eos() -> None:
    found = joined({"a": [1, 2, 3]}, [("a", 0, [4, 5, 6, 7], 0.9, True)], max_tokens=5)
    assert list(found.responses[0].token_ids) == [4, 5]


def test_a_prompt_that_fills_max_tokens_alone_is_left_out_and_counted() -> None:
    found = joined({"a": [1, 2, 3], "b": [1]}, [("a", 0, [4], 0.9, True), ("b", 0, [4], 0.9, True)], max_tokens=3)
    assert (found.prompt_ids, found.overlong) == (["b"], 1)


def test_the_order_of_the_rows_does_not_matter() -> None:
    rows = [("a", 0, [5], 0.9, True), ("a", 1, [6], 0.1, True), ("b", 0, [7], 0.9, True), ("b", 1, [8], 0.1, True)]
    one, other = joined({"a": [1], "b": [2]}, rows), joined({"b": [2], "a": [1]}, rows[::-1])
    assert [list(response.token_ids) for response in one.responses] == [[5], [6], [7], [8]]
    assert [list(response.token_ids) for response in other.responses] == [[5], [6], [7], [8]]


def test_responses_may_come_in_several_chunks() -> None:
    responses = pa.concat_tables(
        to_table(Response, [Response(name, 0, [number], "", "stop", [], 0)]) for number, name in enumerate("abc")
    )
    prompts = to_table(Prompt, [Prompt(name, [{"role": "user", "content": "x"}], [1]) for name in "abc"])
    targets = to_table(Target, [Target(name, 0, 0.5, True, "best") for name in "abc"])
    found = join_examples(prompts, responses.slice(1), targets.slice(1), 10)
    assert [(prompt.prompt_id, list(prompt.responses[0].token_ids)) for prompt in found.prompts] == [("b", [1]), ("c", [2])]


@pytest.mark.parametrize("win", [float("nan"), 1.5, -0.1])
def test_a_win_probability_outside_0_to_1_is_refused(win: float) -> None:
    with pytest.raises(TrainError, match="win probability of prompt 'a', response 0 is"):
        joined({"a": [1]}, [("a", 0, [4], win, True)])


def test_a_target_without_its_prompt_or_response_is_refused() -> None:
    with pytest.raises(TrainError, match="names prompt 'b'"):
        joined({"a": [1]}, [("b", 0, [4], 0.5, True)])
    prompts = to_table(Prompt, [Prompt("a", [{"role": "user", "content": "x"}], [1])])
    with pytest.raises(TrainError, match="has no such response"):
        join_examples(prompts, to_table(Response, []), to_table(Target, [Target("a", 0, 0.5, True, "best")]), 10)


def test_an_epoch_visits_each_prompt_once_in_an_order_of_its_own() -> None:
    names = [f"prompt {number}" for number in range(50)]
    first, again, second = (epoch_order(names, 42, 1, epoch) for epoch in (0, 0, 1))
    assert first == again
    assert first != second
    assert sorted(first) == sorted(second) == list(range(50))
    # the order belongs to the prompts, not to the rows they came in
    assert [names[::-1][at] for at in epoch_order(names[::-1], 42, 1, 0)] == [names[at] for at in first]
    assert epoch_order(names, 42, 2, 0) != first
    assert epoch_order(names, 43, 1, 0) != first


def test_the_last_batch_of_an_epoch_may_be_short_and_no_prompt_is_dropped() -> None:
    assert global_batches([3, 0, 4, 1, 2], 2) == [[3, 0], [4, 1], [2]]
    assert steps_per_epoch(5, 2) == 3


def test_the_prompts_of_some_rows_come_with_these_responses_alone() -> None:
    found = joined(
        {"a": [1], "b": [2], "c": [3]},
        [("a", 0, [4], 0.5, True), ("a", 1, [5], 0.5, True), ("b", 0, [6], 0.5, True), ("c", 0, [7], 0.5, True)],
    )
    chosen = of_rows(found, [3, 1])
    assert [(prompt.prompt_id, [response.row for response in prompt.responses]) for prompt in chosen] == [
        ("a", [1]),
        ("c", [3]),
    ]


def training(tiny: Recipe, **changes: object) -> Training:
    return tiny.training.model_copy(update={"global_batch": 10, "learning_rate": 1.0, **changes})


def test_the_linear_schedule_warms_up_from_zero_and_falls_towards_zero(tiny: Recipe) -> None:
    setting = training(tiny, schedule_epochs=2, stop_epochs=2, warmup_ratio=0.2)
    schedule = schedule_of(setting, prompts=45)
    # 5 steps an epoch (45 / 10, rounded up), 10 in all, 2 of them warm-up
    assert (schedule.steps_per_epoch, schedule.horizon, schedule.stop, schedule.warmup) == (5, 10, 10, 2)
    rates = [learning_rate(step, schedule, setting) for step in range(10)]
    assert rates == pytest.approx([0, 1 / 2, 8 / 8, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8])


def test_training_may_stop_long_before_its_schedule_ends(tiny: Recipe) -> None:
    # the published Mistral: horizon of 18 epochs, stopped after 1; warm-up is a share of the horizon
    setting = training(tiny, schedule_epochs=18, stop_epochs=1, warmup_ratio=0.1)
    schedule = schedule_of(setting, prompts=100)
    assert (schedule.horizon, schedule.stop, schedule.warmup) == (180, 10, 18)
    assert learning_rate(9, schedule, setting) == pytest.approx(9 / 18)  # it ends within the warm-up


def test_the_constant_schedule_stays_after_the_warm_up(tiny: Recipe) -> None:
    setting = training(tiny, schedule="constant", schedule_epochs=1, stop_epochs=1, warmup_ratio=0.1)
    schedule = schedule_of(setting, prompts=40)
    assert [learning_rate(step, schedule, setting) for step in range(4)] == [0, 1, 1, 1]


def load(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation=register())


def test_overfitting_a_tiny_policy_reaches_eta_times_the_advantage(random_policy: Callable[[str], Path], tiny: Recipe) -> None:
    import torch

    examples = joined({"a": [0, 9, 9]}, [("a", 0, [20, 21, 3], 0.8, True), ("a", 1, [30, 3], 0.3, True)])
    row = pack([(prompt.token_ids, [one.token_ids for one in prompt.responses]) for prompt in examples.prompts])
    policy = packed_policy(load(random_policy("llama")))
    optimizer = torch.optim.RMSprop(policy.parameters())
    with torch.no_grad():
        reference = policy(row).numpy()
    setting = training(tiny, eta=4.0)
    objective = objective_of(setting, labels_of(examples.prompts), reference, step_scale(setting, 2, 1), "cpu")
    for step_number in range(40):
        optimizer.param_groups[0]["lr"] = 3e-4 * (1 - step_number / 40)
        optimizer.zero_grad()
        policy(row, objective)[0].backward()
        optimizer.step()
    # 4 (0.8 - 0.5) = 1.2 and 4 (0.3 - 0.5) = -0.8 nats
    assert (policy(row).detach().numpy() - reference).tolist() == pytest.approx([1.2, -0.8], abs=0.01)


def test_a_steps_loss_is_the_papers_mean_over_the_global_batch(tiny: Recipe) -> None:
    import torch

    examples = joined({"a": [1], "b": [2]}, [("a", 0, [4], 0.9, True), ("b", 0, [5], 0.2, True)])
    setting = training(tiny, eta=10.0)
    # 8 responses in the global batch, 2 ranks whose gradients DeepSpeed averages: 10^2 x 2 / 8 = 25
    assert step_scale(setting, 8, 2) == 25.0
    objective = objective_of(setting, labels_of(examples.prompts), np.array([-3.0, -2.0]), 25.0, "cpu")
    losses = objective(torch.tensor([-2.0], dtype=torch.float64), slice(1, 2))
    # the second response: log-ratio -2 - (-2) = 0, (0 / 10 - (0.2 - 0.5))^2 = 0.09, times 25
    assert losses.tolist() == pytest.approx([2.25])
    losses = objective(torch.tensor([-2.0, -4.0], dtype=torch.float64), slice(0, 2))
    # 25 (1 / 10 - 0.4)^2 = 2.25 and 25 (-2 / 10 + 0.3)^2 = 0.25
    assert losses.tolist() == pytest.approx([2.25, 0.25])


def test_a_policy_folder_that_lacks_weights_is_refused(random_policy: Callable[[str], Path], tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    stored = load_file(random_policy("llama") / "model.safetensors")
    policy = load(random_policy("llama"))
    save_file({name: value for name, value in stored.items() if "norm" not in name}, tmp_path / "model.safetensors")
    with pytest.raises(PolicyError, match=r"lack model\.layers\.0\.input_layernorm\.weight|lack 'model\.layers\.0\.input"):
        parameters_of(policy, tmp_path)
    save_file({**stored, "extra": stored["model.norm.weight"]}, tmp_path / "model.safetensors")
    with pytest.raises(PolicyError, match="holds the tensor 'extra'"):
        parameters_of(policy, tmp_path)


def told(tiny: Recipe, hardware: Hardware, device: str = "cpu", **changes: object) -> TrainRun:
    values = dict.fromkeys(("policy", "prompts", "prompts_file", "responses", "targets"), "x") | {"fingerprint": "a" * 64}
    return TrainRun.model_validate(
        {
            **values,
            "iteration": 1,
            "seed": 1,
            "dtype": "float32",
            "training": tiny.training,
            "device": device,
            "hardware": hardware.train.model_copy(update=changes),
            "peak_flops": None,
            "resume_from": None,
        }
    )


def test_deepspeed_is_told_everything_and_offloads_on_a_gpu_only(tiny: Recipe, cpu: Hardware) -> None:
    both = {"offload": "optimizer_and_parameters", "zero_stage": 3}
    settings = deepspeed_settings(told(tiny, cpu, "cuda", **both))
    assert settings["gradient_clipping"] == 1.0
    assert settings["bf16"] == {"enabled": False}
    assert settings["zero_optimization"]["stage"] == 3
    assert settings["zero_optimization"]["offload_param"]["device"] == "cpu"
    assert "offload_param" not in deepspeed_settings(told(tiny, cpu, "cpu", **both))["zero_optimization"]


def test_hardware_that_loses_precision_or_cannot_offload_is_refused(cpu: Hardware) -> None:
    def changed(**values: object) -> Hardware:
        return cpu.model_copy(update={"train": cpu.train.model_copy(update=values)})

    with pytest.raises(HardwareError, match=r"zero_stage 0 .* bfloat16"):
        check_hardware(changed(zero_stage=0), "bfloat16")
    check_hardware(changed(zero_stage=0), "float32")
    with pytest.raises(HardwareError, match="needs zero_stage 3 or more, found 2"):
        check_hardware(changed(zero_stage=2, offload="optimizer_and_parameters"), "float32")


def test_each_machine_has_a_group_of_ranks_numbered_on_and_all_are_told_the_same(tiny: Recipe, cpu: Hardware) -> None:
    [alone] = rank_groups(told(tiny, cpu), cpu)
    assert (alone.module, alone.ranks) == ("sppo.workers.train", Ranks(first=0, size=2, meeting=None))
    first, second = rank_groups(told(tiny, cpu, nodes=2), cpu)
    assert first.works == second.works == (first.works[0],) * 2
    assert first.ranks is not None
    assert second.ranks == Ranks(first=2, size=4, meeting=first.ranks.meeting)


def test_out_of_memory_halves_the_tokens_at_once_down_to_the_longest_prompt(store: Store, tiny: Recipe, cpu: Hardware) -> None:
    tried: list[int] = []

    class SmallDevice:
        def machines(self, stage: str, fingerprint: str) -> int:
            return 1

        def run(self, groups: Sequence[Group], store: Store, report: Report) -> list[WorkRecord]:
            run = TrainRun.model_validate_json(json.dumps(groups[0].works[0]))
            tried.append(run.hardware.tokens_per_device)
            raise OutOfMemoryError("tried to allocate 20 GiB")

    def at(machine: TrainHardware) -> TrainRun:
        return told(tiny, cpu, tokens_per_device=machine.tokens_per_device)

    hardware = cpu.model_copy(update={"train": cpu.train.model_copy(update={"tokens_per_device": 1000})})
    with pytest.raises(OutOfMemoryError):
        _train(at, hardware, store.workspace("train", "a" * 64), SmallDevice(), longest=300)
    assert tried == [1000, 500, 300]


def test_fewer_prompts_than_one_global_batch_are_refused() -> None:
    found = joined({"a": [1], "b": [1]}, [("a", 0, [4], 0.9, True), ("b", 0, [4], 0.5, False)])
    check_enough(found, global_batch=1)
    with pytest.raises(TrainError, match=r"1 prompts have a response to train on \(1 have none selected, 0 fill"):
        check_enough(found, global_batch=2)


def test_bad_requests_are_refused_before_a_process_starts(store: Store, tiny: Recipe, cpu: Hardware, tmp_path: Path) -> None:
    def artifact(stage: str, table: pa.Table) -> Artifact:
        def run(workspace: Any) -> Outcome:
            workspace.add_table(table, "rows.parquet")
            return Outcome("made")

        return store.build(Step(Identity(stage, 1, {}, {}), run))

    prompts = artifact("split", to_table(Prompt, [Prompt("a", [{"role": "user", "content": "x"}], [1])]))
    responses = artifact("generate", to_table(Response, [Response("a", 0, [4], "", "stop", [0.0], 0)]))
    targets = artifact("estimate", to_table(Target, [Target("a", 0, 0.5, False, "tied")]))
    inputs = (prompts, prompts.file("rows.parquet"), responses, targets)
    with pytest.raises(RecipeError, match="iteration 4 of recipe tiny"):
        step(tiny, cpu, 4, *inputs)
    with pytest.raises(TrainError, match="0 prompts have a response to train on"):
        store.build(step(tiny, cpu, 1, *inputs))
    summing = tiny.model_copy(update={"policy": tiny.policy.model_copy(update={"dtype": "bfloat16"})})
    plain = cpu.model_copy(update={"train": cpu.train.model_copy(update={"zero_stage": 0})})
    with pytest.raises(HardwareError, match="zero_stage 0"):
        store.build(step(summing, plain, 1, *inputs))


def test_hardware_is_no_part_of_the_identity_and_the_iteration_is(store: Store, tiny: Recipe, cpu: Hardware) -> None:
    def run(workspace: Any) -> Outcome:
        workspace.add_text("x", "x.parquet")
        return Outcome("made")

    made = store.build(Step(Identity("policy", 1, {}, {}), run))
    inputs = (made, made.file("x.parquet"), made, made)
    single = cpu.model_copy(update={"train": cpu.train.model_copy(update={"processes": 1, "zero_stage": 0})})
    first = step(tiny, cpu, 1, *inputs).identity.fingerprint
    assert step(tiny, single, 1, *inputs).identity.fingerprint == first
    assert step(tiny, cpu, 2, *inputs).identity.fingerprint != first


def test_the_newest_checkpoint_of_the_same_layout_is_continued(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    workspace = store.workspace("train", "0" * 64)
    (tmp_path / "state").write_text("x")
    for name in ("reference", "checkpoint-000008-ranks2-zero3", "checkpoint-000100-ranks2-zero3"):
        workspace.commit_part(name, [tmp_path / "state"])
    newest = "checkpoint-000100-ranks2-zero3"
    assert checkpoints.latest(workspace, "ranks2-zero3", "iteration_start") == newest
    assert checkpoints.step_of("checkpoint-000100-ranks2-zero3") == 100
    with caplog.at_level(logging.WARNING, "sppo"):
        assert checkpoints.latest(workspace, "ranks8-zero3", "iteration_start") is None
    assert "layout ranks2-zero3 and cannot continue under ranks8-zero3; training restarts" in caplog.text
    assert checkpoints.latest(workspace, "ranks8-zero3", "last_weights") == newest
    assert "training goes on from its weights at step 100" in caplog.text
    checkpoints.drop(workspace, "checkpoint-000100-ranks2-zero3")
    assert workspace.parts() == ["checkpoint-000100-ranks2-zero3", "reference"]


def test_dropping_a_checkpoint_keeps_the_files_the_newest_shares_with_it(store: Store, tmp_path: Path) -> None:
    workspace = store.workspace("train", "1" * 64)
    (tmp_path / "state").write_text("equal bytes")
    workspace.commit_part(checkpoints.checkpoint_name(1, "ranks1-zero0"), [tmp_path / "state"])
    newest = workspace.commit_part(checkpoints.checkpoint_name(2, "ranks1-zero0"), [tmp_path / "state"])
    checkpoints.drop(workspace, newest.name)
    assert workspace.part_path(newest.files[0]).read_text() == "equal bytes"


def test_a_training_that_was_taken_over_drops_no_checkpoint_of_the_one_that_is_ahead(store: Store, tmp_path: Path) -> None:
    workspace = store.workspace("train", "2" * 64)
    names = [checkpoints.checkpoint_name(step, "ranks1-zero0") for step in (10, 20, 60)]
    for name in names:
        (tmp_path / "state").write_text(name)
        workspace.commit_part(name, [tmp_path / "state"])
    checkpoints.drop(workspace, names[1])  # it woke up after 60 steps had been saved by another
    assert workspace.parts() == names[1:]
    assert checkpoints.latest(workspace, "ranks1-zero0", "iteration_start") == names[2]
    workspace.commit_part("result", [tmp_path / "state"])
    checkpoints.drop(workspace, "result")
    assert workspace.parts() == ["result"]


def test_another_kind_of_part_is_no_checkpoint() -> None:
    with pytest.raises(TrainError, match="'reference' is not a training checkpoint"):
        checkpoints.step_of("reference")
