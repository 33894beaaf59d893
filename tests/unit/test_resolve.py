"""What is decided once, when a run starts."""

import importlib.util
import json
import logging
from pathlib import Path

import pytest

from sppo.errors import RecipeError
from sppo.recipe import Recipe, load_recipe
from sppo.resolve import pin, resolve
from sppo.store import Store

RECIPES = Path(__file__).resolve().parents[2] / "deployments" / "recipes"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
def test_auto_becomes_vllm_where_it_is_installed(tiny: Recipe, store: Store) -> None:
    assert resolve(tiny, store).generation.engine == "vllm"


def test_auto_becomes_transformers_and_says_so_where_vllm_is_absent(
    tiny: Recipe, store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "vllm" else found(name))
    with caplog.at_level(logging.WARNING):
        assert resolve(tiny, store).generation.engine == "transformers"
    assert "vLLM is not installed: transformers draws the responses" in caplog.text
    asked = tiny.model_copy(update={"generation": tiny.generation.model_copy(update={"engine": "vllm"})})
    with pytest.raises(RecipeError, match=r"engine is vllm, which is not installed; expected the extra `cpu` or `gpu`"):
        resolve(asked, store)


def test_a_commit_needs_no_network_and_an_unknown_revision_is_an_error_without_one() -> None:
    assert pin("model", "someone/model", COMMIT) == COMMIT
    with pytest.raises(RecipeError, match=r"cannot look up revision 'main' of the model someone/model: .*give a local folder"):
        pin("model", "someone/model", "main")


def test_a_revision_in_the_local_cache_is_pinned_without_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import huggingface_hub.constants

    repository = tmp_path / "models--someone--model"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    (repository / "snapshots" / COMMIT).mkdir(parents=True)
    (repository / "blobs").mkdir()
    (repository / "blobs" / "a").write_text("{}")
    (repository / "snapshots" / COMMIT / "config.json").symlink_to(repository / "blobs" / "a")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    assert pin("model", "someone/model", "main") == COMMIT
    assert "is taken from the cache" in caplog.text


def test_resolving_twice_changes_nothing_more_and_only_the_engine_of_the_tiny_recipe(tiny: Recipe, store: Store) -> None:
    resolved = resolve(tiny, store)
    assert resolve(resolved, store) == resolved
    before, after = (json.loads(recipe.model_dump_json()) for recipe in (tiny, resolved))
    after["generation"]["engine"] = "auto"
    assert before == after


def test_hub_datasets_of_ones_own_are_pinned_by_commit(store: Store) -> None:
    overrides = (
        f"prompts.source={{kind: own, dataset: someone/prompts@{COMMIT}, test_share: 0.1}}",
        "generation.engine=transformers",
    )
    resolved = resolve(load_recipe("tiny", RECIPES, overrides), store)
    assert resolved.prompts.source.model_dump()["dataset"] == f"someone/prompts@{COMMIT}"
