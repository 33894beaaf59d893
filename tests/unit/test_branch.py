"""A run that shares another's first iterations: which artifacts are its own, and which recipes may follow."""

import json

import pytest

from sppo.branch import branch
from sppo.errors import RunError
from sppo.hardware import Hardware
from sppo.recipe import Recipe, overridden
from sppo.runs import (
    Setup,
    check_reached,
    find_branch,
    policy_before,
    read_iteration,
    read_recipe,
    run_names,
    samples_before,
    shared_iterations,
    start,
    write_iteration,
)
from sppo.store import Artifact, Identity, Outcome, Step, Store, Workspace


def same(recipe: Recipe) -> Recipe:
    return recipe


def artifact(store: Store, stage: str, text: str) -> Artifact:
    def run(workspace: Workspace) -> Outcome:
        workspace.add_text(text, "text.txt")
        return Outcome(text)

    return store.build(Step(Identity(stage, 1, {"text": text}, {}), run))


@pytest.fixture
def first(tiny: Recipe, cpu: Hardware, store: Store) -> Recipe:
    """Run `first` of the tiny recipe, of which two of three iterations are finished."""
    recipe = start(store, "first", overridden(tiny, ("generation.engine=transformers",)), same)
    setup = Setup(run="first", recipe=recipe, hardware=cpu, store=store)
    samples = [artifact(store, "sample", "answers 0")]
    for iteration in (1, 2):
        samples.append(artifact(store, "sample", f"answers {iteration}"))
        duels = [[artifact(store, "duel", f"{iteration} against {other}") for other in range(iteration)]]
        trained = artifact(store, "train", f"policy {iteration}")
        write_iteration(setup, iteration, {"train": trained}, samples, duels)
    return recipe


def test_a_branch_shares_the_first_iterations_artifacts_and_follows_the_new_recipe(
    tiny: Recipe, first: Recipe, store: Store
) -> None:
    branch(store, "first", 1, overridden(tiny, ("training.eta=4",)), "second", same)

    assert read_iteration(store, "second", 1).artifacts == read_iteration(store, "first", 1).artifacts
    assert read_iteration(store, "second", 1).run == "second"
    with pytest.raises(RunError, match="run second has no iteration 2"):
        read_iteration(store, "second", 2)
    followed = read_recipe(store, "second")
    assert (followed.training.eta, first.training.eta) == (4, 10)
    assert followed.generation.engine == "transformers"  # left open by the recipe, settled by the first run
    written = json.loads(store.backend.read("runs/second/branch.json") or b"")
    assert (written["run"], written["at"]) == ("first", 1)
    assert written["policy"] == read_iteration(store, "first", 1).artifacts["train"].model_dump()


def test_the_iteration_after_the_branch_starts_from_the_shared_policy_and_compares_with_the_shared_answers(
    tiny: Recipe, first: Recipe, store: Store
) -> None:
    branch(store, "first", 2, tiny, "second", same)
    base = artifact(store, "policy", "policy 0")
    assert policy_before(store, "second", 3, base).text("text.txt") == "policy 2"
    assert [sample.text("text.txt") for sample in samples_before(store, "second", 3)] == ["answers 0", "answers 1"]
    assert shared_iterations(store, "second") == 2
    assert shared_iterations(store, "first") == 0
    check_reached(store, "second", 3)
    with pytest.raises(RunError, match=r"iteration 2 of run second is that of run first, .*expected 3 or later"):
        check_reached(store, "second", 2)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("policy.source={kind: folder, path: /elsewhere}", "policy.source.kind"),
        ("policy.system_role=keep", "policy.system_role"),
        ("policy.stop_tokens=[end]", "policy.stop_tokens"),
        ("policy.dtype=bfloat16", "policy.dtype"),
        ("prompts.source.test_prompts=8", "prompts.source.test_prompts"),
        ("prompts.max_prompt_tokens=32", "prompts.max_prompt_tokens"),
        ("iterations=4", "iterations"),
        ("evaluation.sampling.temperature=0.5", "evaluation.sampling.temperature"),
        ("evaluation.max_prompts=8", "evaluation.max_prompts"),
        ("evaluation.judges=[{kind: world-rule}]", "evaluation.judges.0.kind"),
        ("generation.engine=vllm", "generation.engine"),
        ("seed=1", "seed"),
    ],
)
def test_what_iterations_are_compared_by_must_agree(change: str, named: str, tiny: Recipe, first: Recipe, store: Store) -> None:
    with pytest.raises(RunError, match=rf"iteration 2 would be compared with iterations 1 to 1 of run first, .*{named} "):
        branch(store, "first", 1, overridden(tiny, (change,)), "second", same)
    assert run_names(store) == ["first"]


@pytest.mark.parametrize(
    "change",
    [
        "generation.temperature=0.5",
        "judge={kind: world-rule}",
        "estimator.rule=bradley_terry",
        "selection.responses=all",
        "training.eta=4",
        "evaluation.resamples=100",
        "name=other",
    ],
)
def test_what_only_the_later_iterations_read_may_change(change: str, tiny: Recipe, first: Recipe, store: Store) -> None:
    branch(store, "first", 1, overridden(tiny, (change,)), "second", same)
    assert run_names(store) == ["first", "second"]


def test_a_branch_that_shares_nothing_or_leaves_nothing_to_do_is_refused(tiny: Recipe, first: Recipe, store: Store) -> None:
    with pytest.raises(RunError, match=r"shares nothing with run first; .*sppo run tiny --run second"):
        branch(store, "first", 0, tiny, "second", same)
    with pytest.raises(RunError, match="expected --at 1 to 2"):
        branch(store, "first", 3, tiny, "second", same)


def test_a_branch_at_an_iteration_that_has_not_ended_is_refused(tiny: Recipe, first: Recipe, store: Store) -> None:
    store.backend.delete("runs/first/iteration-2.json")
    with pytest.raises(RunError, match="run first has no iteration 2"):
        branch(store, "first", 2, tiny, "second", same)


def test_the_same_branch_again_changes_nothing_and_another_of_its_name_is_refused(
    tiny: Recipe, first: Recipe, store: Store
) -> None:
    made = branch(store, "first", 1, tiny, "second", same)
    assert branch(store, "first", 1, tiny, "second", same) == made
    for at, recipe in ((2, tiny), (1, overridden(tiny, ("training.eta=4",)))):
        with pytest.raises(RunError, match=r"there is a run second in the store at .* already"):
            branch(store, "first", at, recipe, "second", same)
    with pytest.raises(RunError, match="there is a run first"):
        branch(store, "first", 1, tiny, "first", same)


def test_a_branch_that_was_cut_off_is_no_run_until_it_is_made_again(tiny: Recipe, first: Recipe, store: Store) -> None:
    branch(store, "first", 1, tiny, "second", same)
    store.backend.delete("runs/second/recipe.json")  # written last
    assert run_names(store) == ["first"]
    with pytest.raises(RunError, match="run second was being branched from another and is not whole"):
        start(store, "second", tiny, same)
    branch(store, "first", 2, tiny, "second", same)
    found = find_branch(store, "second")
    assert found is not None
    assert found.at == 2
