"""Published policies: what a name stands for, and runs that start from it without a second copy of its weights."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import sppo.policy
from flows.preparation import prepare
from sppo.errors import PolicyError, RecipeError, RunError, StoreError
from sppo.hardware import Hardware
from sppo.publication import from_published, last_published, publish
from sppo.recipe import Recipe, StoredModel, overridden
from sppo.resolve import resolve
from sppo.runs import Setup, start, write_iteration
from sppo.store import Artifact, Identity, Outcome, Step, Store, Workspace


def policy_artifact(store: Store, folder: Path, mark: str) -> Artifact:
    """A trained policy with the files of a folder."""

    def run(workspace: Workspace) -> Outcome:
        for path in sppo.policy.policy_files(folder):
            workspace.add_file(path)
        workspace.add_text(mark, "mark.txt")
        return Outcome("trained")

    return store.build(Step(Identity("train", 1, {"mark": mark}, {}), run))


@pytest.fixture
def trained(tiny: Recipe, cpu: Hardware, store: Store, random_policy: Callable[[str], Path]) -> list[Artifact]:
    """What iterations 1 and 2 of run `demo` trained."""
    recipe = start(store, "demo", tiny, lambda open_recipe: open_recipe)
    setup = Setup(run="demo", recipe=recipe, hardware=cpu, store=store)
    policies = [policy_artifact(store, random_policy("llama"), f"policy {iteration}") for iteration in (1, 2)]
    for iteration, policy in enumerate(policies, 1):
        write_iteration(setup, iteration, {"train": policy}, [], [])
    return policies


def stored(tiny: Recipe, artifact: Artifact, *more: str) -> Recipe:
    return overridden(tiny, (f"policy.source={{kind: stored, artifact: {artifact.reference}}}", *more))


def test_the_last_finished_iteration_is_published_under_the_recipes_name(trained: list[Artifact], store: Store) -> None:
    made = publish(store, "demo")
    assert (made.name, made.number, made.run, made.iteration) == ("tiny", 1, "demo", 2)
    assert (made.policy.reference, made.policy.digest) == (trained[1].reference, trained[1].digest)
    assert json.loads(store.backend.read("published/tiny.json") or b"")["policy"] == made.policy.model_dump()
    assert last_published(store, "tiny") == made
    assert last_published(store, "other") is None


def test_every_publication_is_kept_and_the_same_one_again_is_none(trained: list[Artifact], store: Store) -> None:
    one = publish(store, "demo", 1)
    two = publish(store, "demo", 2)
    assert publish(store, "demo", 2) == two
    back = publish(store, "demo", 1)
    assert [each.number for each in (one, two, back)] == [1, 2, 3]
    assert [json.loads(store.backend.read(f"published/tiny/{n}.json") or b"")["iteration"] for n in (1, 2, 3)] == [1, 2, 1]
    assert publish(store, "demo", 2, "best").number == 1


def test_the_numbered_records_decide_what_is_the_last(trained: list[Artifact], store: Store) -> None:
    publish(store, "demo", 1)
    behind = store.backend.read("published/tiny.json") or b""
    two = publish(store, "demo", 2)
    store.backend.replace("published/tiny.json", behind)  # as after a crash between the two records
    assert last_published(store, "tiny") == two
    assert publish(store, "demo", 1).number == 3


def test_an_unfinished_iteration_and_a_name_that_leaves_the_folder_are_refused(trained: list[Artifact], store: Store) -> None:
    with pytest.raises(RunError, match="run demo has no iteration 3"):
        publish(store, "demo", 3)
    with pytest.raises(RunError, match=r"name '\.\./x' to publish under"):
        publish(store, "demo", 1, "../x")


def test_a_stored_policy_is_the_base_itself_and_no_second_copy(tiny: Recipe, trained: list[Artifact], store: Store) -> None:
    before = store.backend.list("")
    resolved = resolve(stored(tiny, trained[0]), store)
    assert resolved.policy.source == StoredModel(kind="stored", artifact=trained[0].reference, digest=trained[0].digest)
    base = sppo.policy.build(store, resolved)
    assert base.reference == trained[0].reference
    assert store.backend.list("") == before


def test_a_stored_policy_that_is_not_the_one_the_run_was_started_with_is_refused(
    tiny: Recipe, trained: list[Artifact], store: Store
) -> None:
    other = stored(tiny, trained[0], f"policy.source.digest={trained[1].digest}")
    with pytest.raises(PolicyError, match=rf"content digest {trained[0].digest[:16]}; expected {trained[1].digest[:16]}"):
        sppo.policy.build(store, other)
    gone = overridden(tiny, (f"policy.source={{kind: stored, artifact: train/{'0' * 64}}}",))
    with pytest.raises(StoreError, match="no artifact train/0000"):
        resolve(gone, store)


def test_a_stored_policy_without_a_stop_token_of_the_recipe_is_refused_as_the_run_starts(
    tiny: Recipe, trained: list[Artifact], store: Store
) -> None:
    with pytest.raises(PolicyError, match=r"policy.stop_tokens has '<end_of_turn>'"):
        resolve(stored(tiny, trained[0], "policy.stop_tokens=['<end_of_turn>']"), store)


def test_only_a_policy_can_be_a_stored_policy(tiny: Recipe) -> None:
    with pytest.raises(RecipeError, match=r"policy\.source\.artifact is 'generate/"):
        overridden(tiny, (f"policy.source={{kind: stored, artifact: generate/{'0' * 64}}}",))


def test_a_run_that_starts_from_the_published_policy_keeps_it_whatever_is_published_later(
    trained: list[Artifact], store: Store
) -> None:
    arguments = ("tiny", "cpu", "nightly-1", store.url, None, ("generation.engine=transformers",), "published")
    publish(store, "demo", 1)
    first = prepare(*arguments)
    publish(store, "demo", 2)
    again = prepare(*arguments)

    assert first.recipe.policy.source.model_dump()["artifact"] == trained[0].reference
    assert again.recipe == first.recipe
    later = prepare("tiny", "cpu", "nightly-2", *arguments[3:])
    assert later.recipe.policy.source.model_dump()["artifact"] == trained[1].reference
    assert prepare("", "cpu", "nightly-1", store.url).recipe == first.recipe  # the run's own recipe, without its name


def test_without_a_published_policy_a_run_starts_from_the_recipes_own_and_says_so(
    store: Store, tiny: Recipe, caplog: pytest.LogCaptureFixture
) -> None:
    assert from_published(store, tiny) is None
    setup = prepare("tiny", "cpu", "nightly", store.url, None, ("generation.engine=transformers",), "published")
    assert setup.recipe.policy.source.kind == "world"
    assert "no policy is published as tiny yet, so it starts from the recipe's own" in caplog.text
