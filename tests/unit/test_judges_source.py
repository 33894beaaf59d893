"""How judges of every kind come into the store: folders, object storage, the hub; and whose code may run."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from sppo import judges
from sppo.errors import JudgeError
from sppo.judges import Match, load
from sppo.progress import silent
from sppo.recipe import (
    EnsembleJudge,
    FolderModel,
    HubModel,
    Member,
    PairRMJudge,
    PairwiseLLMJudge,
    Recipe,
    RewardModelJudge,
    SingleJudge,
    WorldRuleJudge,
)
from sppo.store import Artifact, Store

PAIRS = Match("p", [{"role": "user", "content": "Describe the red fox."}], ["red", "a fox"], [(0, 1), (1, 0)])

GATED = '''
"""A reward model of its own kind, written for transformers 4 as ArmoRM's: several scores, gated by the prompt's state."""

from dataclasses import dataclass
from typing import Optional

import torch
from torch import nn
from transformers import LlamaModel, LlamaPreTrainedModel
from transformers.models.llama.modeling_llama import LLAMA_INPUTS_DOCSTRING
from transformers.utils import ModelOutput, add_start_docstrings_to_model_forward

from .gate import Gate


@dataclass
class Scored(ModelOutput):
    score: Optional[torch.FloatTensor] = None
    logits: Optional[torch.FloatTensor] = None


class LlamaForGatedReward(LlamaPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.model = LlamaModel(config)
        self.scores = nn.Linear(config.hidden_size, 3, bias=False)
        self.post_init()
        mixed = torch.zeros(3, 3)
        mixed[range(3), range(3)] = 1.0
        self.mixing = nn.Parameter(mixed, requires_grad=False)
        self.gate = Gate(config.hidden_size)

    @add_start_docstrings_to_model_forward(LLAMA_INPUTS_DOCSTRING)
    def forward(self, input_ids=None, attention_mask=None, position_ids=None, return_dict=None):
        states = self.model(
            input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=None,
            inputs_embeds=None,
            use_cache=None,
            output_attentions=None,
            output_hidden_states=None,
            return_dict=return_dict if return_dict is not None else self.config.use_return_dict,
        )[0]
        rows = torch.arange(len(input_ids))
        ends = torch.eq(input_ids, self.config.pad_token_id).int().argmax(-1) - 1
        last = states[rows, ends % input_ids.shape[-1]]
        score = (self.gate(states[:, 0]) * (self.scores(last) @ self.mixing)).sum(-1)
        return Scored(score=score, logits=score)
'''
GATE = """
from torch import nn


class Gate(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weights = nn.Linear(width, 3)

    def forward(self, state):
        return self.weights(state).softmax(-1)
"""


@pytest.fixture
def causal(random_policy: Callable[[str], Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(random_policy("llama"), tmp_path / "causal"))


@pytest.fixture
def gated(random_policy: Callable[[str], Path], tmp_path: Path) -> Path:
    """A folder whose model only its own Python defines, in two files."""
    import torch
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "gated"
    shutil.copytree(random_policy("llama"), folder)
    (folder / "modeling_gated.py").write_text(GATED)
    (folder / "gate.py").write_text(GATE)
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "architectures": ["LlamaForGatedReward"],
        "auto_map": {"AutoModelForSequenceClassification": "modeling_gated.LlamaForGatedReward"},
        "pad_token_id": 1,
    }
    (folder / "config.json").write_text(json.dumps(config))
    weights = load_file(folder / "model.safetensors")
    del weights["lm_head.weight"]
    draw = torch.Generator().manual_seed(0)
    for name, shape in (
        ("scores.weight", (3, 64)),
        ("mixing", (3, 3)),
        ("gate.weights.weight", (3, 64)),
        ("gate.weights.bias", (3,)),
    ):
        weights[name] = torch.randn(shape, generator=draw)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture
def bucket() -> Iterator[str]:
    """A folder of object storage of this process."""
    yield "memory://bucket/judges"
    fsspec.filesystem("memory").rm("/bucket", recursive=True)


def put(folder: Path, url: str) -> str:
    fsspec.filesystem("memory").put(f"{folder}/", f"{url.removeprefix('memory:/')}/{folder.name}/", recursive=True)
    return f"{url}/{folder.name}"


def folder_model(path: object) -> FolderModel:
    return FolderModel(kind="folder", path=str(path))


def reward(path: object, trust_code: str | None = None) -> RewardModelJudge:
    return RewardModelJudge(kind="reward-model", source=folder_model(path), max_tokens=512, trust_code=trust_code)


def pairwise(path: object) -> PairwiseLLMJudge:
    return PairwiseLLMJudge(kind="pairwise-llm", source=folder_model(path), max_tokens=512)


def pairrm(path: object) -> PairRMJudge:
    return PairRMJudge(kind="pairrm", source=folder_model(path), max_source_tokens=64, max_candidate_tokens=48)


def built(store: Store, judge: SingleJudge, whole: Recipe) -> Artifact:
    artifact = judges.build(store, judge, whole)
    assert artifact is not None
    return artifact


def logits(judge: SingleJudge, folder: Path) -> np.ndarray[Any, Any]:
    return load(judge, folder, "cpu", 2048).judge([PAIRS], silent)[0]


def test_what_is_kept_of_a_folder_is_the_judge_and_neither_pickles_nor_code(store: Store, tiny: Recipe, causal: Path) -> None:
    for stranger in ("training_args.bin", "handler.py", "README.md", "consolidated.00.safetensors"):
        (causal / stranger).write_bytes(b"x")
    artifact = built(store, pairwise(causal), tiny)
    assert artifact.file_names() == [
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert artifact.manifest.counts["files"] == 6
    np.testing.assert_array_equal(logits(pairwise(causal), artifact.folder()), logits(pairwise(causal), causal))


def test_a_folder_is_known_by_its_content(store: Store, tiny: Recipe, causal: Path, tmp_path: Path) -> None:
    artifact = built(store, pairwise(causal), tiny)
    moved = Path(shutil.copytree(causal, tmp_path / "moved"))
    assert built(store, pairwise(moved), tiny).digest == artifact.digest
    (moved / "chat_template.jinja").write_text((moved / "chat_template.jinja").read_text() + "{# changed #}")
    assert built(store, pairwise(moved), tiny).digest != artifact.digest


def test_what_a_tokenizer_lacks_is_said_before_anything_is_stored(store: Store, tiny: Recipe, causal: Path) -> None:
    (causal / "chat_template.jinja").unlink()
    with pytest.raises(JudgeError, match="has no chat template"):
        judges.build(store, pairwise(causal), tiny)
    (causal / "tokenizer.json").unlink()
    with pytest.raises(JudgeError, match=r"has no tokenizer; expected one of tokenizer\.json"):
        judges.build(store, pairwise(causal), tiny)


def test_a_folder_that_is_not_there_is_refused_before_anything_runs(tiny: Recipe, tmp_path: Path) -> None:
    with pytest.raises(JudgeError, match=r"nowhere is not there; .* mend the judge's source\.path"):
        judges.step(pairwise(tmp_path / "nowhere"), tiny)


def test_pickles_alone_are_refused(store: Store, tiny: Recipe, causal: Path) -> None:
    (causal / "model.safetensors").rename(causal / "pytorch_model.bin")
    with pytest.raises(JudgeError, match=r"pytorch_model\.bin, a pickle, .* convert it with safetensors"):
        judges.build(store, pairwise(causal), tiny)


# --- object storage


@pytest.mark.parametrize("kind", ["pairrm", "pairwise"])
def test_a_judge_of_object_storage_is_the_local_one(
    store: Store, tiny: Recipe, bucket: str, causal: Path, random_judge: Path, kind: str
) -> None:
    asked, folder = (pairrm, random_judge) if kind == "pairrm" else (pairwise, causal)
    artifact = built(store, asked(put(folder, bucket)), tiny)
    assert artifact.digest == built(store, asked(folder), tiny).digest
    np.testing.assert_array_equal(logits(asked(folder), artifact.folder()), logits(asked(folder), folder))


def test_object_storage_is_read_once_for_one_content(
    store: Store, tiny: Recipe, bucket: str, causal: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sppo.store.remote import RemoteBackend

    read: list[str] = []
    get_file = RemoteBackend.get_file
    monkeypatch.setattr(RemoteBackend, "get_file", lambda self, key, path: (read.append(key), get_file(self, key, path))[1])
    url = put(causal, bucket)
    first = built(store, pairwise(url), tiny)
    assert sorted(read) == first.file_names()
    assert built(store, pairwise(url), tiny).reference == first.reference
    assert len(read) == len(first.file_names()), "looking again downloads nothing"
    template = f"{url.removeprefix('memory:/')}/chat_template.jinja"
    fsspec.filesystem("memory").pipe_file(template, (causal / "chat_template.jinja").read_bytes() + b"{# new #}")
    assert built(store, pairwise(url), tiny).digest != first.digest


def test_a_judge_comes_from_s3(store: Store, tiny: Recipe, s3_url: str, causal: Path) -> None:
    import boto3

    name, prefix = s3_url.removeprefix("s3://").split("/")
    for path in causal.iterdir():
        boto3.Session().client("s3").upload_file(str(path), name, f"{prefix}/judge/{path.name}")
    artifact = built(store, pairwise(f"{s3_url}/judge"), tiny)
    assert artifact.digest == built(store, pairwise(causal), tiny).digest


def test_an_object_that_arrives_short_is_refused(
    tiny: Recipe, bucket: str, causal: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sppo.store.remote import RemoteBackend

    def torn(self: RemoteBackend, key: str, path: Path) -> str:
        path.write_bytes(b"half")
        return "0" * 64

    monkeypatch.setattr(RemoteBackend, "get_file", torn)
    with pytest.raises(JudgeError, match=r"arrived with 4 bytes; expected \d+"):
        judges.step(pairwise(put(causal, bucket)), tiny)


def test_an_empty_or_unknown_folder_of_object_storage_is_named(tiny: Recipe, bucket: str, causal: Path) -> None:
    fsspec.filesystem("memory").pipe_file("/bucket/judges/empty/notes.txt", b"x")
    with pytest.raises(JudgeError, match=r"memory://bucket/judges/empty has notes\.txt; expected a judge's config\.json"):
        judges.step(pairwise(f"{bucket}/empty"), tiny)
    (causal / "model.safetensors").rename(causal / "pytorch_model.bin")
    with pytest.raises(JudgeError, match=r"pytorch_model\.bin, a pickle"):
        judges.step(pairwise(put(causal, bucket)), tiny)


def test_credentials_in_a_url_are_refused_and_not_repeated(tiny: Recipe) -> None:
    with pytest.raises(JudgeError, match="holds credentials") as caught:
        judges.step(pairwise("s3://someone:geheim@bucket/judges"), tiny)
    assert "geheim" not in str(caught.value)
    with pytest.raises(JudgeError, match="scheme 'ftp'"):
        judges.step(pairwise("ftp://bucket/judges"), tiny)


# --- the hub


def test_a_native_judges_encoder_is_pinned_and_its_commit_recorded(
    store: Store, tiny: Recipe, random_judge: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = json.loads((random_judge / "config.json").read_text())
    ranker = {key: config.pop(key) for key in ("ranker_type", "source_maxlength", "candidate_maxlength", "n_tasks", "drop_out")}
    revision, commit = "a" * 40, "c" * 40
    snapshot = tmp_path / "hub" / "models--somebody--judge" / "snapshots" / revision
    shutil.copytree(random_judge, snapshot)
    (snapshot / "config.json").write_text(json.dumps({**ranker, "model_name": "somebody/encoder"}))
    encoder = tmp_path / "hub" / "models--somebody--encoder"
    (encoder / "snapshots" / commit).mkdir(parents=True)
    (encoder / "snapshots" / commit / "config.json").write_text(json.dumps({**config, "model_name": None}))
    (encoder / "refs").mkdir()
    (encoder / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    source = HubModel(kind="hub", model="somebody/judge", revision=revision)
    artifact = built(store, pairrm("unused").model_copy(update={"source": source}), tiny)
    assert "encoder.json" in artifact.file_names()
    (origin,) = artifact.manifest.logs
    assert json.loads(artifact.text(origin.name))["encoder"]["revision"] == commit
    assert json.loads(artifact.text(origin.name))["source"]["revision"] == revision


def test_a_judge_of_the_hub_brings_its_code_only_if_the_recipe_names_the_commit(
    store: Store, tiny: Recipe, gated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    revision = "b" * 40
    shutil.copytree(gated, tmp_path / "hub" / "models--somebody--gated" / "snapshots" / revision)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    source = HubModel(kind="hub", model="somebody/gated", revision=revision)
    judge = reward("unused").model_copy(update={"source": source})
    with pytest.raises(JudgeError, match=rf"modeling_gated\.py, .* trust_code to 'somebody/gated@{revision}'"):
        judges.build(store, judge, tiny)
    trusted = judge.model_copy(update={"trust_code": f"somebody/gated@{revision}"})
    artifact = built(store, trusted, tiny)
    assert {"modeling_gated.py", "gate.py"} <= set(artifact.file_names())
    assert np.isfinite(logits(trusted, artifact.folder())).all()


# --- code


def named_code(problem: JudgeError) -> str:
    return str(problem).rsplit("trust_code to '", 1)[1].rstrip("'")


def test_a_folders_own_code_runs_only_when_the_recipe_names_exactly_it(store: Store, tiny: Recipe, gated: Path) -> None:
    with pytest.raises(
        JudgeError, match=r"its own Python, modeling_gated\.py, .* the recipe names none: read the code"
    ) as first:
        judges.build(store, reward(gated), tiny)
    trusted = reward(gated, named_code(first.value))
    artifact = built(store, trusted, tiny)
    assert {"modeling_gated.py", "gate.py"} <= set(artifact.file_names())
    found = logits(trusted, artifact.folder())
    assert found[0] == -found[1] != 0
    (gated / "gate.py").write_text(GATE + "\n# changed\n")
    with pytest.raises(JudgeError, match=r"the recipe names '.*@[0-9a-f]{64}': read the code") as second:
        judges.build(store, trusted, tiny)
    assert named_code(second.value) != trusted.trust_code


def test_a_score_by_a_folders_own_code_does_not_depend_on_the_batch(store: Store, tiny: Recipe, gated: Path) -> None:
    with pytest.raises(JudgeError) as asked:
        judges.build(store, reward(gated), tiny)
    trusted = reward(gated, named_code(asked.value))
    folder = built(store, trusted, tiny).folder()
    matches = [Match(f"p{n}", PAIRS.messages, ["a", "fox " * (3 * n + 1)], [(0, 1)]) for n in range(5)]
    alone = [load(trusted, folder, "cpu", 1).judge([match], silent)[0][0] for match in matches]
    together = [found[0] for found in load(trusted, folder, "cpu", 10_000).judge(matches, silent)]
    np.testing.assert_allclose(alone, together, atol=1e-5)


def test_code_of_object_storage_is_named_too(store: Store, tiny: Recipe, gated: Path, bucket: str) -> None:
    url = put(gated, bucket)
    with pytest.raises(JudgeError, match=rf"trust_code to '{url}@[0-9a-f]{{64}}'") as asked:
        judges.build(store, reward(url), tiny)
    artifact = built(store, reward(url, named_code(asked.value)), tiny)
    assert "gate.py" in artifact.file_names()


def test_code_of_yet_another_repository_is_refused(store: Store, tiny: Recipe, gated: Path) -> None:
    config = json.loads((gated / "config.json").read_text())
    config["auto_map"] = {"AutoModelForSequenceClassification": "other/code--modeling_gated.LlamaForGatedReward"}
    (gated / "config.json").write_text(json.dumps(config))
    with pytest.raises(JudgeError, match="takes its code from another repository, 'other/code--modeling_gated"):
        judges.build(store, reward(gated, f"{gated}@{'0' * 64}"), tiny)


def test_code_beside_an_architecture_of_transformers_is_neither_run_nor_kept(store: Store, tiny: Recipe, causal: Path) -> None:
    (causal / "modeling_llama_fast.py").write_text("raise RuntimeError('ran')")
    config = json.loads((causal / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_llama_fast.LlamaForCausalLM"}
    (causal / "config.json").write_text(json.dumps(config))
    artifact = built(store, pairwise(causal), tiny)
    assert "modeling_llama_fast.py" not in artifact.file_names()
    assert np.isfinite(logits(pairwise(causal), artifact.folder())).all()


def test_a_judge_without_a_field_for_code_never_runs_any(store: Store, tiny: Recipe, gated: Path) -> None:
    with pytest.raises(JudgeError, match=r"modeling_gated\.py; expected an architecture of transformers"):
        judges.build(store, pairwise(gated), tiny)


# --- ensembles


def ensemble(*members: SingleJudge) -> EnsembleJudge:
    return EnsembleJudge(kind="ensemble", mean="logits", members=tuple(Member(judge=member) for member in members))


def test_an_ensembles_artifact_names_its_members(store: Store, tiny: Recipe, causal: Path) -> None:
    rule = WorldRuleJudge(kind="world-rule")
    asked = ensemble(rule, pairwise(causal))
    artifact = judges.build(store, asked, tiny)
    assert artifact is not None
    member = built(store, pairwise(causal), tiny)
    assert json.loads(artifact.text("members.json")) == [None, {"reference": member.reference, "digest": member.digest}]
    (found,) = load(asked, artifact.folder(), "cpu", 2048, store).judge([PAIRS], silent)
    own, (other,) = logits(pairwise(causal), causal), load(rule, None, "cpu", 1).judge([PAIRS], silent)
    np.testing.assert_allclose(found, (own + other) / 2, atol=1e-5)
    assert judges.build(store, ensemble(rule, rule), tiny) is None


def test_a_member_that_was_made_anew_is_refused(store: Store, tiny: Recipe, causal: Path, tmp_path: Path) -> None:
    member = built(store, pairwise(causal), tiny)
    (tmp_path / "members.json").write_text(json.dumps([None, {"reference": member.reference, "digest": "0" * 64}]))
    asked = ensemble(WorldRuleJudge(kind="world-rule"), pairwise(causal))
    with pytest.raises(JudgeError, match=r"has the content digest .*; expected 0000000000000000"):
        load(asked, tmp_path, "cpu", 1, store)


def test_where_members_are_and_how_they_are_asked_is_not_what_is_computed(tiny: Recipe) -> None:
    from sppo.recipe import Endpoint, EndpointJudge
    from sppo.stages import recipe_part

    def part(url: str, concurrency: int, model: str, path: str) -> dict[str, object]:
        served = EndpointJudge(kind="endpoint", source=Endpoint(url=url, concurrency=concurrency), model=model)
        return recipe_part("rank", tiny.model_copy(update={"judge": ensemble(served, reward(path, f"{path}@{'0' * 64}"))}))

    here = part("http://here/v1", 4, "judge", "/a")
    assert here == part("https://there/v1", 64, "judge", "/b")
    assert here != part("http://here/v1", 4, "another", "/a")
