"""Judge folders: both formats, what is refused, and how one comes into the store."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from sppo import judges
from sppo.errors import JudgeError
from sppo.judges.pairrm import load_pairrm
from sppo.judges.segments import SegmentLimits, encode_pair, pad_pairs
from sppo.recipe import FolderModel, HubModel, PairRMJudge, Recipe, WorldRuleJudge
from sppo.store import Store

WEIGHTS = "model.safetensors"
HEAD = "head_layer.4.bias"
RANKER = ("ranker_type", "model_name", "source_maxlength", "candidate_maxlength", "n_tasks", "drop_out", "fp16")
CONTROL = ("sep_token_id", "source_prefix_id", "cand1_prefix_id", "cand2_prefix_id", "cand_prefix_id")


@pytest.fixture
def folder(random_judge: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(random_judge, tmp_path / "judge"))


def config_of(folder: Path) -> dict[str, object]:
    return dict(json.loads((folder / "config.json").read_text()))


def write_config(folder: Path, config: dict[str, object]) -> None:
    (folder / "config.json").write_text(json.dumps(config))


def to_native(folder: Path, model_name: str) -> dict[str, object]:
    """Makes the folder look like llm-blender/PairRM, whose encoder's shape is elsewhere; returns that shape."""
    config = config_of(folder)
    write_config(folder, {**{key: config[key] for key in RANKER}, "model_type": "deberta", "model_name": model_name})
    return {key: value for key, value in config.items() if key not in (*RANKER, *CONTROL)}


def change_weights(folder: Path, **changes: np.ndarray | None) -> None:
    weights = load_file(folder / WEIGHTS)
    for name, tensor in changes.items():
        weights.pop(name.replace("__", "."), None)
        if tensor is not None:
            weights[name.replace("__", ".")] = tensor
    save_file(weights, folder / WEIGHTS)


def logit(folder: Path) -> float:
    network, tokenizer = load_pairrm(folder)
    encoding = encode_pair(tokenizer, SegmentLimits(64, 48), "a fox", "red", "swift and red")
    return float(network.logits(pad_pairs([encoding], tokenizer.control.pad))[0])


def asking_for(folder: Path) -> PairRMJudge:
    source = FolderModel(kind="folder", path=str(folder))
    return PairRMJudge(kind="pairrm", source=source, max_source_tokens=64, max_candidate_tokens=48)


def test_llm_blenders_and_transformers_formats_load_to_the_same_judge(random_judge: Path, folder: Path) -> None:
    expected = logit(random_judge)
    shape = to_native(folder, "somebody/encoder")
    (folder / "encoder.json").write_text(json.dumps(shape))
    assert logit(folder) == expected
    (folder / "encoder.json").unlink()
    kept = {key: value for key, value in config_of(random_judge).items() if key not in RANKER or key in ("n_tasks", "drop_out")}
    write_config(folder, kept)  # DebertaV2Config with n_tasks, drop_out and the control ids
    assert logit(folder) == expected


def test_weights_are_held_in_full_precision_on_cpu(folder: Path) -> None:
    half = {name: tensor.astype(np.float16) for name, tensor in load_file(folder / WEIGHTS).items()}
    save_file(half, folder / WEIGHTS)
    network, _ = load_pairrm(folder)
    assert {str(parameter.dtype) for parameter in network.module.parameters()} == {"torch.float32"}


def test_a_missing_tensor_is_named(folder: Path) -> None:
    change_weights(folder, head_layer__4__bias=None)
    with pytest.raises(JudgeError, match=r"has no tensor 'head_layer\.4\.bias'; expected one of shape \(1,\)"):
        load_pairrm(folder)


def test_an_extra_tensor_is_named(folder: Path) -> None:
    change_weights(folder, head_layer__7__bias=np.zeros(1, dtype=np.float32))
    with pytest.raises(JudgeError, match=r"has the tensor 'head_layer\.7\.bias', which PairRM has not"):
        load_pairrm(folder)


def test_the_constant_position_ids_of_older_files_are_no_extra_tensor(random_judge: Path, folder: Path) -> None:
    change_weights(folder, pretrained_model__embeddings__position_ids=np.arange(512)[None])
    assert logit(folder) == logit(random_judge)


def test_a_misshapen_tensor_is_named(folder: Path) -> None:
    change_weights(folder, head_layer__4__bias=np.zeros(3, dtype=np.float32))
    with pytest.raises(JudgeError, match=r"'head_layer\.4\.bias' has shape \(3,\); config\.json asks for \(1,\)"):
        load_pairrm(folder)


def test_pickled_weights_alone_are_refused(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")
    with pytest.raises(JudgeError, match=r"pytorch_model\.bin, a pickle, .* expected model\.safetensors"):
        load_pairrm(folder)


def test_a_torn_weight_file_is_named(folder: Path) -> None:
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[: len(content) // 2])
    with pytest.raises(JudgeError, match=r"model\.safetensors is not a whole safetensors file"):
        load_pairrm(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", WEIGHTS])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(JudgeError, match=f"{name} is missing"):
        load_pairrm(folder)


def test_another_kind_of_ranker_is_refused(folder: Path) -> None:
    write_config(folder, {**config_of(folder), "ranker_type": "deberta-rm"})
    with pytest.raises(JudgeError, match="ranker_type 'deberta-rm'; expected 'pairranker'"):
        load_pairrm(folder)


def test_control_ids_that_differ_from_the_tokenizers_are_refused(folder: Path) -> None:
    write_config(folder, {**config_of(folder), "cand1_prefix_id": 4})
    with pytest.raises(JudgeError, match=r"cand1_prefix_id 4 and tokenizer\.json has 101"):
        load_pairrm(folder)


def test_a_native_folder_without_its_encoders_shape_says_where_to_put_it(folder: Path) -> None:
    to_native(folder, "somebody/encoder")
    with pytest.raises(JudgeError, match=r"names the encoder 'somebody/encoder' .* save it as .*encoder\.json"):
        load_pairrm(folder)


def test_a_local_judge_is_known_by_its_files_and_not_by_its_path(
    store: Store, tiny: Recipe, folder: Path, tmp_path: Path
) -> None:
    step = judges.step(asking_for(folder), tiny)
    assert step is not None
    artifact = store.build(step)
    assert artifact.file_names() == ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    assert logit(artifact.folder()) == logit(folder)
    moved = judges.step(asking_for(Path(shutil.copytree(folder, tmp_path / "moved"))), tiny)
    assert moved is not None
    assert store.build(moved).digest == artifact.digest
    change_weights(folder, head_layer__4__bias=np.ones(1, dtype=np.float32))
    changed = judges.step(asking_for(folder), tiny)
    assert changed is not None
    assert changed.identity.fingerprint != step.identity.fingerprint


def test_a_native_judge_brings_its_encoders_shape_into_the_store(
    store: Store, tiny: Recipe, folder: Path, tmp_path: Path
) -> None:
    encoder = tmp_path / "encoder"
    encoder.mkdir()
    (encoder / "config.json").write_text(json.dumps(to_native(folder, str(encoder))))
    step = judges.step(asking_for(folder), tiny)
    assert step is not None
    artifact = store.build(step)
    assert "encoder.json" in artifact.file_names()
    shutil.rmtree(encoder)
    assert np.isfinite(logit(artifact.folder()))


def test_a_broken_local_judge_never_reaches_the_store(store: Store, tiny: Recipe, folder: Path) -> None:
    change_weights(folder, head_layer__4__bias=None)
    step = judges.step(asking_for(folder), tiny)
    assert step is not None
    with pytest.raises(JudgeError, match="has no tensor"):
        store.build(step)


def test_a_judge_folder_that_is_not_there_is_refused_before_anything_runs(tiny: Recipe, tmp_path: Path) -> None:
    with pytest.raises(JudgeError, match="nowhere is not there; expected a PairRM folder"):
        judges.step(asking_for(tmp_path / "nowhere"), tiny)


def test_the_worlds_rule_needs_no_artifact(tiny: Recipe) -> None:
    assert judges.step(WorldRuleJudge(kind="world-rule"), tiny) is None


def test_a_judge_of_the_hub_comes_from_its_pinned_revision_without_pickles(
    store: Store, tiny: Recipe, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    revision = "a" * 40
    snapshot = tmp_path / "hub" / "models--somebody--judge" / "snapshots" / revision
    shutil.copytree(folder, snapshot)
    (snapshot / "training_args.bin").write_bytes(b"pickle")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    source = HubModel(kind="hub", model="somebody/judge", revision=revision)
    step = judges.step(PairRMJudge(kind="pairrm", source=source, max_source_tokens=64, max_candidate_tokens=48), tiny)
    assert step is not None
    artifact = store.build(step)
    assert "training_args.bin" not in artifact.file_names()
    assert logit(artifact.folder()) == logit(folder)


def test_a_hub_that_cannot_be_reached_is_named_with_the_next_move(
    store: Store, tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    source = HubModel(kind="hub", model="somebody/judge", revision="main")
    step = judges.step(PairRMJudge(kind="pairrm", source=source, max_source_tokens=64, max_candidate_tokens=48), tiny)
    assert step is not None
    with pytest.raises(JudgeError, match=r"judge somebody/judge at main cannot be fetched from the hub .*kind: folder"):
        store.build(step)
