"""Recipes and hardware files: the published values, and what is said of wrong ones."""

from pathlib import Path

import pytest

from sppo.errors import RecipeError
from sppo.hardware import hardware_names, load_hardware
from sppo.recipe import load_recipe, recipe_names
from sppo.stages import plan_fingerprints

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT / "deployments" / "recipes"
HARDWARE = ROOT / "deployments" / "hardware"


def test_gemma_2_9b_it_has_the_values_of_its_model_card() -> None:
    recipe = load_recipe("gemma-2-9b-it", RECIPES)
    training, generation = recipe.training, recipe.generation
    assert (training.learning_rate, training.eta, recipe.seed) == (5e-7, 1000, 42)
    assert (training.optimizer, training.schedule, training.warmup_ratio) == ("rmsprop", "linear", 0.1)
    assert (training.schedule_epochs, training.stop_epochs, training.max_tokens) == (1, 1, 1024)
    assert (generation.responses, generation.temperature, generation.top_p, generation.max_tokens) == (5, 0.7, 0.9, 2048)
    hardware = load_hardware("8xa100", HARDWARE)
    assert (training.global_batch, hardware.train.processes, hardware.train.zero_stage) == (64, 8, 3)


@pytest.mark.parametrize(
    ("name", "schedule_epochs"),
    [("mistral-7b-instruct", 18), ("llama-3-8b-instruct", 6), ("gemma-2-9b-it", 1), ("gemma-2-27b-it", 1)],
)
def test_the_learning_rate_horizon_is_the_published_one_and_training_stops_after_one_epoch(
    name: str, schedule_epochs: int
) -> None:
    training = load_recipe(name, RECIPES).training
    assert (training.schedule_epochs, training.stop_epochs) == (schedule_epochs, 1)


def test_every_recipe_and_hardware_file_loads_and_carries_its_file_name() -> None:
    assert recipe_names(RECIPES) == ["gemma-2-27b-it", "gemma-2-9b-it", "llama-3-8b-instruct", "mistral-7b-instruct", "tiny"]
    assert hardware_names(HARDWARE) == ["1xh100", "8xa100", "8xa100-pool", "cpu", "cpu-pool"]
    assert [load_recipe(name, RECIPES).name for name in recipe_names(RECIPES)] == recipe_names(RECIPES)
    assert [load_hardware(name, HARDWARE).name for name in hardware_names(HARDWARE)] == hardware_names(HARDWARE)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.etta=4", r"unknown key 'training.etta'; did you mean 'eta'\?"),
        ("training.learning_rate=-1", "training.learning_rate is -1; expected more than 0"),
        ("training.eta=.nan", "training.eta is .*number"),
        ("training.global_batch=true", "training.global_batch is True; expected a whole number"),
        ("training.global_batch=0", "training.global_batch is 0; expected 1 or more"),
        ("generation.responses=1", "K = 1 leaves nothing to compare; expected at least 2 responses"),
        ("training.schedule_epochs=1", "stop_epochs 3 is past schedule_epochs 1"),
        ("iterations=0", "iterations is 0; expected 1 or more"),
        ("seed=5e-7", "seed is 5e-07; expected a whole number"),
        ("generation.top_p=1.5", "generation.top_p is 1.5"),
        ("judge.kind=pairrmm", "judge.*'pairrmm'.*'pairrm', 'reward-model'.*'ensemble'"),
        ("nothing", "override 'nothing'; expected key=value"),
        ("trainning.eta=4", "no 'trainning' in the recipe"),
        ("name=Tiny/..", "name is 'Tiny/..'"),
    ],
)
def test_a_wrong_value_is_named_with_what_was_expected(override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe("tiny", RECIPES, (override,))


def test_an_unknown_recipe_is_answered_with_the_known_ones() -> None:
    with pytest.raises(RecipeError, match=r"no recipe 'gemma'.*gemma-2-9b-it"):
        load_recipe("gemma", RECIPES)


def test_a_recipe_name_cannot_leave_its_folder() -> None:
    with pytest.raises(RecipeError, match="no recipe"):
        load_recipe("../hardware/cpu", RECIPES)


def test_yaml_reads_numbers_as_people_write_them(tmp_path: Path) -> None:
    text = (RECIPES / "tiny.yaml").read_text().replace("learning_rate: 1.0e-4", "learning_rate: 5e-7")
    (tmp_path / "mine.yaml").write_text(text)
    assert load_recipe("mine", tmp_path).training.learning_rate == 5e-7  # PyYAML's own rules read a text here


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "twice.yaml").write_text((RECIPES / "tiny.yaml").read_text() + "seed: 1\n")
    with pytest.raises(RecipeError, match="the key 'seed' stands twice"):
        load_recipe("twice", tmp_path)


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    (tmp_path / "short.yaml").write_text((RECIPES / "tiny.yaml").read_text().replace("  eta: 10\n", ""))
    with pytest.raises(RecipeError, match=r"'training.eta' is missing; expected a value"):
        load_recipe("short", tmp_path)


@pytest.mark.parametrize("iteration", [0, 4, -1])
def test_an_iteration_outside_the_recipe_is_refused(iteration: int) -> None:
    with pytest.raises(RecipeError, match=f"iteration {iteration} of recipe tiny; expected 1 to 3"):
        load_recipe("tiny", RECIPES).check_iteration(iteration)


def test_changing_one_value_changes_the_plan_of_the_stages_that_read_it_and_those_after() -> None:
    before = plan_fingerprints(load_recipe("tiny", RECIPES))
    after = plan_fingerprints(load_recipe("tiny", RECIPES, ("estimator.rule=bradley_terry",)))
    changed = {stage for stage in before if before[stage] != after[stage]}
    assert changed == {"estimate", "train", "sample", "duel", "evaluate", "score", "check"}


def test_changing_only_the_evaluation_recomputes_no_training() -> None:
    before = plan_fingerprints(load_recipe("tiny", RECIPES))
    after = plan_fingerprints(load_recipe("tiny", RECIPES, ("evaluation.resamples=100",)))
    assert {stage for stage in before if before[stage] != after[stage]} == {"evaluate", "check"}


def test_a_judge_without_weights_has_a_plan_too() -> None:
    plan = plan_fingerprints(load_recipe("tiny", RECIPES, ("judge={kind: world-rule}",)))
    assert plan["rank"] != plan_fingerprints(load_recipe("tiny", RECIPES))["rank"]
