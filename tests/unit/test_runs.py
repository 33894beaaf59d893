"""Runs: their names, their recipes, and the index from an iteration to its artifacts."""

import json

import pytest

from sppo.difference import flattened, recipe_differences, settled
from sppo.errors import RecipeError, RunError
from sppo.hardware import Hardware
from sppo.last_start import find_last_start, remember_start
from sppo.recipe import Recipe, overridden
from sppo.runs import (
    Setup,
    check_reached,
    check_run_name,
    finished_iterations,
    policy_before,
    read_iteration,
    read_recipe,
    run_names,
    samples_before,
    start,
    write_iteration,
)
from sppo.store import Artifact, Identity, Outcome, Step, Store, Workspace

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def artifact(store: Store, stage: str, text: str) -> Artifact:
    def run(workspace: Workspace) -> Outcome:
        workspace.add_text(text, "text.txt")
        return Outcome(text)

    return store.build(Step(Identity(stage, 1, {"text": text}, {}), run))


def finish(setup: Setup, iteration: int, samples: list[Artifact]) -> Artifact:
    """Ends an iteration with a policy of its own; returns its sample."""
    trained = artifact(setup.store, "train", f"policy {iteration}")
    sample = artifact(setup.store, "sample", f"answers {iteration}")
    duels = [[artifact(setup.store, "duel", f"{iteration} against {other}") for other in range(iteration)]]
    write_iteration(setup, iteration, {"train": trained, "judge": None}, [*samples, sample], duels)
    return sample


@pytest.fixture
def setup(tiny: Recipe, cpu: Hardware, store: Store) -> Setup:
    recipe = start(store, "demo", tiny, lambda open_recipe: open_recipe)
    return Setup(run="demo", recipe=recipe, hardware=cpu, store=store)


@pytest.mark.parametrize("name", ["a", "tiny", "7b", "gemma-2-9b-it.second_try", "x" * 63])
def test_good_run_names_are_kept_as_they_are(name: str) -> None:
    assert check_run_name(name) == name


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("", "it is empty"),
        ("..", "starts with a dot"),
        ("../tiny", "holds a slash"),
        ("a/b", "holds a slash"),
        ("a\\b", "holds a slash"),
        ("Tiny", "it has upper case; 'tiny' has none"),
        ("x" * 64, "it has 64 characters"),
        ("-a", "it starts with '-'"),
        ("a b", "it has ' '"),
        ("a\n", r"it has '\n'"),
        ("é", "it has 'é'"),
    ],
)
def test_a_bad_run_name_is_refused_with_its_reason(name: str, problem: str) -> None:
    with pytest.raises(RunError, match="run name") as caught:
        check_run_name(name)
    assert problem in str(caught.value)
    assert "expected 1 to 63 of a-z, 0-9" in str(caught.value)


def test_an_index_names_every_artifact_by_stage_with_reference_and_digest(setup: Setup) -> None:
    base = artifact(setup.store, "sample", "answers 0")
    sample = finish(setup, 1, [base])

    written = json.loads(setup.store.backend.read("runs/demo/iteration-1.json") or b"")
    assert (written["run"], written["recipe"], written["iteration"]) == ("demo", "tiny", 1)
    assert sorted(written["artifacts"]) == ["duel.0.0", "sample.0", "sample.1", "train"]  # a judge without artifact has none
    assert written["artifacts"]["sample.1"] == {"reference": sample.reference, "digest": sample.digest}


def test_an_iteration_starts_from_what_the_one_before_trained(setup: Setup) -> None:
    base = artifact(setup.store, "policy", "policy 0")
    first = [artifact(setup.store, "sample", "answers 0")]
    second = [*first, finish(setup, 1, first)]
    finish(setup, 2, second)

    assert policy_before(setup.store, "demo", 1, base) is base
    assert policy_before(setup.store, "demo", 2, base).text("text.txt") == "policy 1"
    assert policy_before(setup.store, "demo", 3, base).text("text.txt") == "policy 2"
    # iteration 3 draws pi_2's answers and makes pi_3's: those of pi_0 and pi_1 come from before
    assert [sample.text("text.txt") for sample in samples_before(setup.store, "demo", 3)] == ["answers 0", "answers 1"]
    assert samples_before(setup.store, "demo", 1) == []
    assert [index.iteration for index in finished_iterations(setup.store, "demo")] == [1, 2]


def test_a_missing_iteration_is_named_with_the_command_that_makes_it(setup: Setup) -> None:
    base = artifact(setup.store, "policy", "policy 0")
    with pytest.raises(RunError, match="run demo has no iteration 2 in the store at") as caught:
        policy_before(setup.store, "demo", 3, base)
    assert f"sppo run tiny --run demo --iterations 2 --store {setup.store.url}" in str(caught.value)
    check_reached(setup.store, "demo", 1)
    with pytest.raises(RunError, match="no iteration 1"):
        check_reached(setup.store, "demo", 2)


def test_an_entry_that_an_iteration_does_not_have_is_refused_with_those_it_has(setup: Setup) -> None:
    finish(setup, 1, [artifact(setup.store, "sample", "answers 0")])
    with pytest.raises(RunError, match=r"names no artifact 'rank'; it names train, sample\.0, sample\.1, duel\.0\.0"):
        read_iteration(setup.store, "demo", 1).opened(setup.store, "rank")


def test_a_damaged_index_is_named(setup: Setup) -> None:
    setup.store.backend.replace("runs/demo/iteration-1.json", b'{"run": "demo"}')
    with pytest.raises(Exception, match=r"runs/demo/iteration-1\.json is not a valid iteration index"):
        read_iteration(setup.store, "demo", 1)


def test_a_runs_recipe_is_resolved_once_and_read_back_ever_after(tiny: Recipe, store: Store) -> None:
    calls: list[str] = []

    def resolve(recipe: Recipe) -> Recipe:
        calls.append(recipe.generation.engine)
        return overridden(recipe, ("generation.engine=transformers",))

    first = start(store, "demo", tiny, resolve)
    again = start(store, "demo", tiny, resolve)

    assert calls == ["auto"]
    assert first == again == read_recipe(store, "demo")
    assert again.generation.engine == "transformers"
    assert run_names(store) == ["demo"]


def test_a_run_that_was_started_with_other_values_is_refused(tiny: Recipe, store: Store) -> None:
    start(store, "demo", overridden(tiny, ("training.eta=4",)), lambda recipe: recipe)
    with pytest.raises(RunError, match=r"training\.eta 4\.0, now 8\.0; choose another run name"):
        start(store, "demo", overridden(tiny, ("training.eta=8",)), lambda recipe: recipe)


def test_what_a_recipe_leaves_open_agrees_with_what_the_run_settled_on(tiny: Recipe) -> None:
    source = "{kind: hub, model: a/b}"
    own = "{kind: own, dataset: c/d, test_share: 0.1}"
    asked = overridden(tiny, (f"policy.source={source}", f"prompts.source={own}"))
    settled = overridden(
        asked,
        (f"policy.source.revision={COMMIT}", f"prompts.source.dataset=c/d@{COMMIT}", "generation.engine=vllm"),
    )
    assert recipe_differences(settled, asked, left_open=True) == {}
    assert sorted(recipe_differences(settled, asked)) == [
        "generation.engine",
        "policy.source.revision",
        "prompts.source.dataset",
    ]
    elsewhere = overridden(asked, ("prompts.source.dataset=c/e",))
    assert sorted(recipe_differences(settled, elsewhere, left_open=True)) == ["prompts.source.dataset"]
    pinned = overridden(asked, (f"policy.source.revision={COMMIT[::-1]}",))
    assert sorted(recipe_differences(settled, pinned, left_open=True)) == ["policy.source.revision"]


def test_a_recipe_settled_like_another_run_takes_over_what_it_leaves_open_and_nothing_else(tiny: Recipe) -> None:
    judge = "{kind: pairrm, source: {kind: hub, model: %s}, max_source_tokens: 64, max_candidate_tokens: 64}"
    asked = overridden(
        tiny,
        ("policy.source={kind: hub, model: a/b}", f"judge={judge % 'c/d'}", f"evaluation.judges=[{judge % 'c/d'}]", "seed=7"),
    )
    others = (f"judge={judge % 'e/f'}", f"evaluation.judges=[{judge % 'c/d'}]", "generation.engine=vllm", "seed=42")
    started = overridden(asked, (*others, f"policy.source.revision={COMMIT}"))
    values = started.model_dump(mode="json")
    values["judge"]["source"]["revision"] = values["evaluation"]["judges"][0]["source"]["revision"] = COMMIT
    started = Recipe.model_validate_json(json.dumps(values))

    found = settled(asked, started)

    assert (found.generation.engine, found.seed) == ("vllm", 7)
    assert found.policy.source.model_dump() == {"kind": "hub", "model": "a/b", "revision": COMMIT}
    assert found.evaluation.judges[0].model_dump()["source"]["revision"] == COMMIT
    assert found.judge.model_dump()["source"]["revision"] == "main"  # another model: the other's commit says nothing of it


def test_a_run_remembers_how_it_was_last_started(setup: Setup) -> None:
    assert find_last_start(setup.store, "demo") is None
    remember_start(setup, "cpu", None, "sppo on laptop")
    remember_start(setup, "8xa100", 2, "deployment sppo-run/full, flow run 1")
    last = find_last_start(setup.store, "demo")
    assert last is not None
    assert (last.hardware, last.iterations, last.by) == ("8xa100", 2, "deployment sppo-run/full, flow run 1")
    assert last.at.endswith("+00:00")


def test_a_run_that_was_never_started_is_refused_with_those_that_were(setup: Setup) -> None:
    with pytest.raises(RunError, match=r"no run 'other' in the store at .*; runs there: demo"):
        read_recipe(setup.store, "other")


def test_an_unusable_recipe_record_is_named(store: Store) -> None:
    store.backend.replace("runs/demo/recipe.json", b"not json")
    with pytest.raises(RunError, match=r"runs/demo/recipe\.json is not JSON"):
        read_recipe(store, "demo")
    store.backend.replace("runs/demo/recipe.json", b"[1]")
    with pytest.raises(RunError, match="holds a list; expected a recipe"):
        read_recipe(store, "demo")


def test_nested_values_are_flattened_to_dotted_paths() -> None:
    nested = {"a": {"b": 1, "c": [1, 2]}, "d": [{"e": None}]}
    assert flattened(nested) == {"a.b": 1, "a.c": [1, 2], "d.0.e": None}


def test_an_override_of_an_unknown_key_is_refused(tiny: Recipe) -> None:
    with pytest.raises(RecipeError, match=r"unknown key 'evaluation\.max_prompt'; did you mean 'max_prompts'"):
        overridden(tiny, ("evaluation.max_prompt=5",))
