"""Lineage: what an artifact was made from, as manifests say it."""

from pathlib import Path

import pytest
from rich.console import Console

from flows.inspection import lineage_tree
from sppo.errors import RunError, StoreError
from sppo.hardware import Hardware
from sppo.lineage import lineage, manifests_in, named_artifact, outside_sources, recipe_values
from sppo.recipe import Recipe
from sppo.runs import Setup, start, write_iteration
from sppo.store import Artifact, ArtifactFile, Identity, Outcome, Step, Store, Workspace

Inputs = dict[str, Artifact | ArtifactFile | str]


def artifact(store: Store, stage: str, inputs: Inputs, recipe: dict[str, object] | None = None) -> Artifact:
    def run(workspace: Workspace) -> Outcome:
        workspace.add_text(stage, "text.txt")
        return Outcome("made", {"prompts": 8})

    return store.build(Step(Identity(stage, 1, recipe or {}, inputs), run))


@pytest.fixture
def chain(store: Store) -> list[Artifact]:
    """policy -> split -> generate (of both) -> train (of policy and generate)."""
    source = {"kind": "hub", "model": "a/b", "revision": "c"}
    policy = artifact(store, "policy", {}, {"policy.source": source})
    split = artifact(store, "split", {"policy": policy, "dataset": "d" * 64}, {"prompts": {"source": {"dataset": "./mine"}}})
    generate = artifact(store, "generate", {"policy": policy, "prompts": split.file("text.txt")}, {"seed": 42})
    return [policy, split, generate, artifact(store, "train", {"policy": policy, "responses": generate})]


def test_lineage_goes_down_to_the_base_policy_and_the_sources_outside_the_store(store: Store, chain: list[Artifact]) -> None:
    policy, split, generate, train = chain
    origin = lineage(train.reference, manifests_in(store))

    assert origin.reference == train.reference
    assert {role: made.reference for role, made in origin.made_from.items()} == {
        "policy": policy.reference,
        "responses": generate.reference,
    }
    prompts = origin.made_from["responses"].made_from["prompts"]  # a single file of the split
    assert prompts.reference == split.reference
    assert prompts.made_from["dataset"].outside
    assert prompts.made_from["policy"] is origin.made_from["policy"]  # one artifact, one object
    assert prompts.manifest is not None
    assert outside_sources(prompts.manifest) == {"prompts": "dataset ./mine"}
    base = origin.made_from["policy"].manifest
    assert base is not None
    assert outside_sources(base) == {"policy.source": "kind hub, model a/b, revision c"}


def test_an_artifact_that_was_deleted_since_is_still_named(store: Store, chain: list[Artifact]) -> None:
    store.backend.delete(f"{chain[2].reference}/manifest.json")
    responses = lineage(chain[3].reference, manifests_in(store)).made_from["responses"]
    assert (responses.reference, responses.manifest, responses.outside) == (chain[2].reference, None, False)


def test_the_tree_shows_each_artifact_once_with_what_made_it(
    store: Store, chain: list[Artifact], capsys: pytest.CaptureFixture[str]
) -> None:
    console = Console(width=160)
    console.print(lineage_tree(lineage(chain[3].reference, manifests_in(store)), with_recipe=True))
    shown = capsys.readouterr().out
    lines = shown.splitlines()
    assert lines[0].startswith(f"train/{chain[3].reference[6:18]}  20")
    assert f"prompts split/{chain[1].reference[6:18]}" in shown
    assert "0.0 s, sppo 0.1.0, 8 prompts" in lines[0]
    assert sum(f"policy/{chain[0].reference[7:19]}" in line and "shown above" not in line for line in lines) == 1
    assert sum("shown above" in line for line in lines) == 2  # by split and by generate
    assert "outside:dddddddddddddddd" in shown
    assert "policy.source kind hub, model a/b, revision c" in shown
    assert "seed = 42" in shown


def test_what_a_stage_read_is_listed_by_dotted_path(chain: list[Artifact]) -> None:
    assert recipe_values(chain[1].manifest) == {"prompts.source.dataset": '"./mine"'}


def test_an_artifact_is_named_by_its_first_digits_or_by_run_iteration_and_stage(
    store: Store, chain: list[Artifact], tiny: Recipe, cpu: Hardware
) -> None:
    train = chain[3]
    assert named_artifact(store, train.reference) == train.reference
    assert named_artifact(store, train.reference[:12]) == train.reference
    evaluate = artifact(store, "evaluate", {})
    setup = Setup(run="demo", recipe=start(store, "demo", tiny, lambda recipe: recipe), hardware=cpu, store=store)
    write_iteration(setup, 1, {"train": train, "evaluate": evaluate}, [], [])
    assert named_artifact(store, "demo") == named_artifact(store, "demo", 1) == evaluate.reference
    assert named_artifact(store, "demo", 1, "train") == train.reference
    with pytest.raises(RunError, match="names no artifact 'rank'; it names train, evaluate"):
        named_artifact(store, "demo", 1, "rank")


def test_stages_of_two_words_are_named_by_first_digits_too(store: Store) -> None:
    answers = artifact(store, "alpaca-answer", {})
    assert named_artifact(store, answers.reference[:20]) == answers.reference


@pytest.mark.parametrize("name", ["train/00", "train/xyzw", "tr/../0000", "../0000", "/0000"])
def test_a_name_that_cannot_be_an_artifacts_is_refused(name: str, store: Store) -> None:
    with pytest.raises(StoreError, match="names no artifact"):
        named_artifact(store, name)


def test_digits_that_fit_none_or_several_are_refused_with_those_they_fit(store: Store, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"train/0000 fits 0 artifacts .*: none"):
        named_artifact(store, "train/0000")
    for last in "12":
        store.backend.create(f"train/{'0' * 63}{last}/manifest.json", b"{}")
    with pytest.raises(StoreError, match=r"fits 2 artifacts .*: train/0000000000000000, train/0000000000000000; give more"):
        named_artifact(store, "train/0000")
