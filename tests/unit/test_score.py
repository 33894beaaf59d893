"""Log-probs token by token: those of a plain forward pass, in every packing and precision; what is refused before a process
starts, and who is given which chunks. Worker processes: tests/workers/test_score.py."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sppo import export, score
from sppo.errors import EvaluationError, StoreError
from sppo.hardware import Hardware
from sppo.launch import Group, WorkRecord
from sppo.progress import Report
from sppo.recipe import Recipe
from sppo.records import Score
from sppo.score import ScoreRun
from sppo.stages import stage_identity
from sppo.store import Artifact, ArtifactFile, Identity, Outcome, Step, Store, Workspace
from sppo.train.head import Projection, log_probs, token_log_probs
from sppo.train.packing import pack
from sppo.workers.score import Answer, load, scored

MakePrompts = Callable[[list[str]], ArtifactFile]
MakeAnswers = Callable[..., Artifact]
LoudPolicy = Callable[[str], Path]


@pytest.fixture(scope="module")
def loud_policy(random_policy: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> LoudPolicy:
    """A random policy with weights far from 0, so that attention, windows and soft-caps matter."""

    def make(kind: str) -> Path:
        import torch
        from safetensors.torch import load_file, save_file

        folder = shutil.copytree(random_policy(kind), tmp_path_factory.mktemp("loud") / kind)
        draw = torch.Generator().manual_seed(3)
        weights = load_file(folder / "model.safetensors")
        louder = {name: value + 0.1 * torch.randn(value.shape, generator=draw) for name, value in weights.items()}
        save_file(louder, folder / "model.safetensors", {"format": "pt"})
        return folder

    return make


def run_with(tokens_per_device: int = 10_000) -> ScoreRun:
    return ScoreRun(
        fingerprint="0" * 64, policy="policy/p", answers="sample/a", names=(), total=0, prompts="split/s#test.parquet",
        dtype="float32", device="cpu", tokens_per_device=tokens_per_device,
    )  # fmt: skip


def ids(draws: np.random.Generator, length: int) -> np.ndarray:
    return draws.integers(4, 260, length).astype(np.int32)


def asked() -> tuple[dict[str, np.ndarray], list[Answer]]:
    """Three prompts, their answers interleaved, shorter and longer than the window of 16; b's answer 1 has no tokens, nor has
    c's only one."""
    draws = np.random.default_rng(5)
    prompts = {name: ids(draws, length) for name, length in (("a", 30), ("b", 1), ("c", 5))}
    lengths = (("a", 0, 22), ("b", 0, 40), ("a", 1, 1), ("b", 1, 0), ("c", 0, 0), ("b", 2, 9))
    return prompts, [Answer(name, k, ids(draws, length)) for name, k, length in lengths]


def alone(folder: Path, prompt: np.ndarray, answer: np.ndarray) -> list[float]:
    """The sequence by itself through transformers' own attention, all its logits."""
    import torch
    from transformers import AutoModelForCausalLM

    policy = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    with torch.inference_mode():
        logits = policy(torch.tensor(np.array([[*prompt, *answer]]))).logits[0, len(prompt) - 1 : -1]  # (T, V)
    chosen = logits.log_softmax(-1).gather(1, torch.tensor(answer.astype(np.int64))[:, None])
    return [float(each) for each in chosen[:, 0]]


def test_each_tokens_log_prob_worked_out_by_hand() -> None:
    """A prompt of one token, responses (0, 2) and (2); V = 3, H = 1."""
    import torch

    weight = torch.tensor([[0.0], [np.log(2.0)], [np.log(5.0)]], dtype=torch.float32)
    hidden = torch.tensor([[1.0], [0.0], [9.0], [9.0]])
    row = pack([(np.array([1]), [np.array([0, 2]), np.array([2])])])
    # the prompt's state makes the chances 1/8, 2/8, 5/8, that of the first response token 1/3 each
    first, second = token_log_probs(Projection(weight, None, None, tile_rows=2), hidden, row)
    assert first.tolist() == pytest.approx([np.log(1 / 8), np.log(1 / 3)])
    assert second.tolist() == pytest.approx([np.log(5 / 8)])
    assert log_probs(Projection(weight, None, None), hidden, row).tolist() == pytest.approx([np.log(1 / 24), np.log(5 / 8)])


@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma2"])
def test_scores_are_those_of_each_answer_alone_however_they_are_packed(kind: str, loud_policy: LoudPolicy) -> None:
    prompts, answers = asked()
    folder = loud_policy(kind)
    expected = [alone(folder, prompts[each.prompt_id], each.token_ids) for each in answers]
    policy = load(folder, "float32", "cpu")
    for tokens_per_device in (10_000, 60, 1):
        told: list[Score] = []
        found = scored(policy, run_with(tokens_per_device), prompts, answers, told.extend)
        assert [(each.prompt_id, each.k) for each in found] == [(each.prompt_id, each.k) for each in answers]
        for mine, theirs in zip(found, expected, strict=True):
            assert mine.logprobs == pytest.approx(theirs, abs=1e-5)
        assert {(each.prompt_id, each.k) for each in told} == {("a", 0), ("a", 1), ("b", 0), ("b", 2)}
    assert [each.logprobs for each in found[3:5]] == [[], []]


def test_answers_without_any_token_need_no_forward_pass(loud_policy: LoudPolicy) -> None:
    answers = [Answer("a", 0, np.empty(0, np.int32))]
    assert scored(None, run_with(), {"a": np.array([5], np.int32)}, answers, lambda _: None) == [Score("a", 0, [])]


def test_trained_weights_and_their_export_score_alike_in_bf16(loud_policy: LoudPolicy, store: Store, tiny: Recipe) -> None:
    files = sorted(loud_policy("gemma2").iterdir())

    def run(workspace: Workspace) -> Outcome:
        workspace.add_files(files)
        return Outcome("trained")

    trained = store.build(Step(Identity("train", 1, {}, {}), run))
    half = tiny.model_copy(update={"policy": tiny.policy.model_copy(update={"dtype": "bfloat16"})})
    exported = export.build(store, half, trained)
    assert exported.manifest.stage == "export"
    prompts, answers = asked()
    of = {
        (artifact.manifest.stage, dtype): scored(
            load(artifact.folder(), dtype, "cpu"), run_with(), prompts, answers, lambda _: None
        )
        for artifact, dtype in ((trained, "bfloat16"), (exported, "bfloat16"), (trained, "float32"))
    }
    assert of["train", "bfloat16"] == of["export", "bfloat16"]
    differences = [
        abs(one - other)
        for rounded, exact in zip(of["train", "bfloat16"], of["train", "float32"], strict=True)
        for one, other in zip(rounded.logprobs, exact.logprobs, strict=True)
    ]
    assert 0 < max(differences) < 1


def test_weights_that_are_nan_are_an_error_that_names_the_answer(loud_policy: LoudPolicy) -> None:
    import torch

    policy = load(loud_policy("llama"), "float32", "cpu")
    with torch.no_grad():
        policy.policy.model.norm.weight.fill_(float("nan"))
    prompts, answers = asked()
    with pytest.raises(
        EvaluationError, match=r"token 0 of answer 0 to prompt a is nan, one of 22 of its 22 tokens.*policy policy/p hold nan"
    ):
        scored(policy, run_with(), prompts, answers[:1], lambda _: None)


class Noted:
    """Starts nothing: notes who would be given what."""

    def __init__(self, machines: int) -> None:
        self.count = machines
        self.groups: list[Group] = []

    def machines(self, stage: str, fingerprint: str) -> int:
        return self.count

    def run(self, groups: Sequence[Group], store: Store, report: Report) -> list[WorkRecord]:
        self.groups.extend(groups)
        return []


@pytest.fixture
def base(store: Store) -> Artifact:
    """What is read of a policy before it is loaded: 8 token ids."""

    def run(workspace: Workspace) -> Outcome:
        workspace.add_text('{"vocab_size": 8}', "config.json")
        return Outcome("made")

    return store.build(Step(Identity("policy", 1, {}, {}), run))


def test_chunks_are_dealt_to_machines_and_processes_and_committed_ones_are_left_out(
    store: Store, tiny: Recipe, cpu: Hardware, base: Artifact, make_prompts: MakePrompts, make_answers: MakeAnswers
) -> None:
    prompts = make_prompts(list("abcdefg"))
    answers = make_answers(*({name: ["x", "y"]} for name in "abcdefg"), stage="sample")
    inputs: dict[str, Any] = {"policy": base, "prompts": prompts, "sample": answers}
    fingerprint = stage_identity("score", tiny, inputs).fingerprint
    with store.workspace("score", fingerprint) as workspace:
        workspace.commit_part("chunk-00002", [], {"prompts": 1, "answers": 2, "tokens": 2})
    hardware = cpu.model_copy(update={"rank": cpu.rank.model_copy(update={"processes": 2})})
    noted = Noted(2)
    with pytest.raises(StoreError, match=r"chunk-00000\.parquet is not in the store, although its worker ended well"):
        score.build(store, tiny, hardware, base, prompts, answers, launch=noted)
    dealt = [[[name[10:11] for name in work["names"]] for work in group.works] for group in noted.groups]
    # 0, 2, 4, 6 without 2 and 1, 3, 5: each in turn to two processes
    assert dealt == [[["0", "6"], ["4"]], [["1", "5"], ["3"]]]
    assert [(group.label, group.timeout_s, group.devices_each) for group in noted.groups] == [
        ("score 1/2", 3600, 1),
        ("score 2/2", 3600, 1),
    ]
    assert [[work["total"] for work in group.works] for group in noted.groups] == [[4, 2], [4, 2]]
    assert noted.groups[0].works[0]["tokens_per_device"] == cpu.train.tokens_per_device


def test_a_token_that_the_scorer_does_not_know_is_refused_before_it_is_loaded(
    store: Store, tiny: Recipe, cpu: Hardware, base: Artifact, make_prompts: MakePrompts, make_answers: MakeAnswers
) -> None:
    answers = make_answers({"a": ["x"] * 4, "b": ["y"] * 9}, stage="sample")  # make_answers gives answer k the token k
    with pytest.raises(
        EvaluationError,
        match=r"chunk-00000\.parquet: answer 8 to prompt b has token id 8; policy policy/\w{8} knows ids below 8: score with",
    ):
        score.build(store, tiny, cpu, base, make_prompts(["a", "b"]), answers, launch=Noted(1))


def test_answers_to_other_prompts_are_refused(
    store: Store, tiny: Recipe, cpu: Hardware, base: Artifact, make_prompts: MakePrompts, make_answers: MakeAnswers
) -> None:
    answers = make_answers({"a": ["x"]}, {"q": ["y"]}, stage="sample")
    with pytest.raises(EvaluationError, match=r"chunk-00001\.parquet: prompt q is not in train-1\.parquet"):
        score.build(store, tiny, cpu, base, make_prompts(["a", "b"]), answers, launch=Noted(1))
