"""Python that comes with a model, a dataset or a benchmark does not run, and the error says what to do about it.

Each plant is a module that makes a file when it is imported."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sppo import policy, sources
from sppo.engines import EngineSettings
from sppo.errors import EvaluationError, JudgeError, PolicyError, PromptError
from sppo.judges.files import code_name
from sppo.judges.reward import RewardJudge
from sppo.recipe import FolderModel, Recipe, RewardModelJudge
from sppo.store import Store

SETTINGS = EngineSettings(
    engine="transformers", device="cpu", dtype="float32", stop_token_ids=(3,), max_model_len=64, max_concurrent=1,
    tensor_parallel=1, memory_share=0.5, kv_cache_mib=64,
)  # fmt: skip
CODE = """
from pathlib import Path
Path({happened!r}).touch()
from transformers import LlamaConfig, LlamaForSequenceClassification

class PlantedConfig(LlamaConfig):
    model_type = "planted"

class PlantedModel(LlamaForSequenceClassification):
    config_class = PlantedConfig
"""


def changed(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.fixture
def happened(tmp_path: Path) -> Path:
    """The file that a plant would make."""
    return tmp_path / "happened"


@pytest.fixture
def planted(random_policy: Callable[[str], Path], tmp_path: Path, happened: Path) -> Path:
    """A policy of an architecture of its own."""
    folder = Path(shutil.copytree(random_policy("llama"), tmp_path / "planted"))
    (folder / "planted.py").write_text(CODE.format(happened=str(happened)))
    named = {"AutoConfig": "planted.PlantedConfig"}
    named |= dict.fromkeys(("AutoModelForCausalLM", "AutoModelForSequenceClassification"), "planted.PlantedModel")
    changed(folder / "config.json", model_type="planted", architectures=["PlantedModel"], auto_map=named)
    return folder


def recipe_of(tiny: Recipe, folder: Path) -> Recipe:
    source = FolderModel(kind="folder", path=str(folder))
    return tiny.model_copy(update={"policy": tiny.policy.model_copy(update={"source": source})})


def test_a_policy_that_brings_its_own_python_is_refused_before_any_model_loads(
    planted: Path, tiny: Recipe, store: Store, happened: Path
) -> None:
    with pytest.raises(PolicyError, match=r"its own Python, planted\.py, which is never run for a policy; .* choose another"):
        store.build(policy.step(recipe_of(tiny, planted)))
    assert not happened.exists()
    assert store.backend.list("policy") == []


def test_a_tokenizer_that_brings_its_own_python_is_refused(
    random_policy: Callable[[str], Path], tiny: Recipe, store: Store, tmp_path: Path, happened: Path
) -> None:
    folder = Path(shutil.copytree(random_policy("llama"), tmp_path / "policy"))
    (folder / "planted.py").write_text(CODE.format(happened=str(happened)))
    named = {"AutoTokenizer": ["planted.PlantedTokenizer", "planted.PlantedTokenizer"]}
    changed(folder / "tokenizer_config.json", tokenizer_class="PlantedTokenizer", auto_map=named)
    changed(folder / "config.json", model_type="planted")
    with pytest.raises(PolicyError, match=r"its own Python, which is never run; expected a tokenizer\.json: write one"):
        store.build(policy.step(recipe_of(tiny, folder)))
    assert not happened.exists()


def test_an_engine_does_not_run_it_either_nor_ask_whether_it_should(
    planted: Path, happened: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sppo.engines.transformers_engine import TransformersEngine
    from sppo.engines.vllm_engine import engine_arguments

    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on the terminal"))
    with pytest.raises(ValueError, match="custom code"):
        TransformersEngine(planted, SETTINGS)
    assert engine_arguments(planted, SETTINGS)["trust_remote_code"] is False
    assert not happened.exists()


def reward(folder: Path, trust_code: str | None) -> RewardModelJudge:
    source = FolderModel(kind="folder", path=str(folder))
    return RewardModelJudge(kind="reward-model", source=source, max_tokens=64, trust_code=trust_code)


@pytest.mark.parametrize("named", [None, f"other@{'0' * 64}"])
def test_a_judge_in_the_store_runs_no_code_but_what_this_recipe_names(planted: Path, happened: Path, named: str | None) -> None:
    with pytest.raises(
        JudgeError, match=r"does not name: fetch the judge by this recipe|trust_code to '.*planted@[0-9a-f]{64}'"
    ):
        RewardJudge.load(reward(planted, named), planted, "cpu", 1024)
    assert not happened.exists()


def test_the_plant_is_live_where_a_recipe_names_it_by_its_digest(planted: Path, happened: Path) -> None:
    trusted = reward(planted, None)
    with pytest.raises(JudgeError):  # it has no weights of a reward model
        RewardJudge.load(reward(planted, code_name(trusted.source, planted)), planted, "cpu", 1024)
    assert happened.exists()


def test_a_dataset_that_is_a_script_is_not_run(tmp_path: Path, happened: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "owner" / "prompts"
    folder.mkdir(parents=True)
    (folder / "prompts.py").write_text(CODE.format(happened=str(happened)))
    monkeypatch.chdir(tmp_path)  # the library takes a folder of this name for the dataset
    with pytest.raises(PromptError, match=r"cannot load dataset owner/prompts .*scripts are no longer supported"):
        sources.read_hub("owner/prompts", "main", "train", ["prompt"])
    assert not happened.exists()


# --- lm-evaluation-harness


def task(folder: Path, **settings: object) -> Any:
    """Where lm-evaluation-harness finds a task of ours named `planted`, of one question."""
    from lm_eval.tasks import TaskManager

    (folder / "rows.jsonl").write_text('{"question": "1 + 1?", "answer": "2"}\n')
    values = {
        "task": "planted",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        **settings,
    }
    (folder / "planted.yaml").write_text(json.dumps(values))
    return TaskManager(include_path=str(folder), include_defaults=False)


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    return pytest.importorskip("sppo.workers.harness")


def test_a_task_that_runs_what_the_model_writes_is_refused(worker: Any, tmp_path: Path) -> None:
    run = SimpleNamespace(served=None, settings=None)
    [safe] = worker._load(task(tmp_path), "planted")["tasks"].values()
    worker._prepare(safe, None, run)
    [unsafe] = worker._load(task(tmp_path, unsafe_code=True), "planted")["tasks"].values()
    with pytest.raises(
        EvaluationError, match=r"planted runs the Python that the model writes, on this machine; .* in a sandbox"
    ):
        worker._prepare(unsafe, None, run)


def test_a_metric_whose_python_would_come_from_the_hub_is_refused(worker: Any, tmp_path: Path, happened: Path) -> None:
    metric = tmp_path / "metric"
    metric.mkdir()
    (metric / "metric.py").write_text(CODE.format(happened=str(happened)))
    listed = [{"metric": str(metric), "aggregation": "mean", "higher_is_better": True, "hf_evaluate": True}]
    manager = task(tmp_path, metric_list=listed)
    with pytest.raises(
        EvaluationError, match=r"task planted scores with '.*/metric', a metric whose Python comes from the hub"
    ):
        worker._load(manager, "planted")
    assert not happened.exists()
    import evaluate

    with pytest.raises(BaseException):  # noqa: B017, PT011 - whatever the library makes of it: the plant is live
        evaluate.load(str(metric))
    assert happened.exists()


def test_a_recipe_can_only_trust_code_by_its_revision() -> None:
    for trusted in ("yes", "owner/name", "owner/name@main", "owner/name@v1"):
        with pytest.raises(ValueError, match="String should match pattern"):
            reward(Path("folder"), trusted)
