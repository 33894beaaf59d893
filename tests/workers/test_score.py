"""Scores by real worker processes: what the sampler itself stored; resumed; and as one policy's divergence from another."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from sppo import generate, policy, score
from sppo.checks.divergence import read_divergence
from sppo.errors import EvaluationError
from sppo.hardware import Hardware, load_hardware
from sppo.progress import Progress
from sppo.recipe import Recipe, load_recipe
from sppo.records import Prompt, Score, by_prompt, from_table, to_table
from sppo.stages import stage_identity
from sppo.store import Artifact, ArtifactFile, Identity, Outcome, Step, Store
from sppo.store.workspace import write_parquet

DEPLOYMENTS = Path(__file__).resolve().parents[2] / "deployments"
PROMPTS, ANSWERS = 40, 2


class World(NamedTuple):
    """A policy, its answers to held-out prompts in two chunks, and another policy."""

    store: Store
    recipe: Recipe
    hardware: Hardware
    sampler: Artifact
    other: Artifact
    prompts: ArtifactFile
    answers: Artifact

    def scores(self, scorer: Artifact, report: Callable[[Progress], None] = lambda _: None) -> Artifact:
        return score.build(self.store, self.recipe, self.hardware, scorer, self.prompts, self.answers, report)


def recipe_of(folder: Path) -> Recipe:
    tiny = load_recipe("tiny", DEPLOYMENTS / "recipes")
    values = tiny.model_dump(mode="json")
    values["policy"] |= {"source": {"kind": "folder", "path": str(folder)}}
    values["generation"] |= {"engine": "transformers"}
    values["evaluation"] |= {"max_prompts": PROMPTS}
    values["evaluation"]["sampling"] |= {"responses": ANSWERS, "max_tokens": 12}
    return Recipe.model_validate_json(json.dumps(values))


def write_split(workspace: Any) -> Outcome:
    rows = []
    for number in range(PROMPTS):
        token_ids = [0, 2, *(4 + (number * 31 + place * 7) % 250 for place in range(1 + number % 30))]
        rows.append(Prompt(f"test {number}", [{"role": "user", "content": f"{number}"}], token_ids))
    workspace.add_table(to_table(Prompt, rows), "test.parquet")
    return Outcome("made for a test")


def disturbed(folder: Path, target: Path, by: float) -> Path:
    """A policy's folder with noise of this deviation on every weight."""
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(folder, target)
    draw = torch.Generator().manual_seed(3)
    weights = load_file(target / "model.safetensors")
    noisy = {name: value + by * torch.randn(value.shape, generator=draw) for name, value in weights.items()}
    save_file(noisy, target / "model.safetensors", {"format": "pt"})
    return target


@pytest.fixture(scope="module", params=["llama", "gemma2"])
def world(
    request: pytest.FixtureRequest, random_policy: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> World:
    folder = tmp_path_factory.mktemp("score")
    store = Store(str(folder / "store"), folder / "scratch")
    own = disturbed(random_policy(request.param), folder / "own", 0.1)
    recipe = recipe_of(own)
    hardware = load_hardware("cpu", DEPLOYMENTS / "hardware")
    sampler = store.build(policy.step(recipe))
    other = store.build(policy.step(recipe_of(disturbed(own, folder / "other", 0.003))))
    split = store.build(Step(Identity("split", 1, {}, {}), write_split))
    draw = generate.held_out_draw(recipe, split)
    [answers] = generate.build(store, recipe, hardware, sampler, [draw])
    assert answers.file_names() == ["chunk-00000.parquet", "chunk-00001.parquet"]
    return World(store, recipe, hardware, sampler, other, draw.prompts, answers)


def of_keys(artifact: Artifact) -> dict[tuple[str, int], list[float]]:
    rows = artifact.tables().to_pylist()
    return {(row["prompt_id"], row["k"]): row["logprobs"] for row in rows}


def test_the_sampler_scores_its_own_answers_as_it_sampled_them_and_is_at_no_distance_from_itself(world: World) -> None:
    seen: list[Progress] = []
    found = world.scores(world.sampler, seen.append)
    assert found.file_names() == world.answers.file_names()
    mine, stored = of_keys(found), of_keys(world.answers)
    assert list(mine) == list(stored)
    for key, values in mine.items():
        assert values == pytest.approx(stored[key], abs=1e-4)
    tokens = sum(map(len, mine.values()))
    assert found.manifest.counts == {"prompts": PROMPTS, "answers": PROMPTS * ANSWERS, "tokens": tokens}
    assert (seen[0].stage, seen[0].done, seen[0].total, seen[0].note) == ("score", 0, 80, "loading the policy")
    assert (seen[-1].done, seen[-1].total, seen[-1].unit) == (80, 80, "answers")
    assert [entry.name for entry in found.manifest.logs] != []
    names = list(by_prompt(from_table(Prompt, world.prompts.table())))
    apart = read_divergence(world.answers.tables(), found.tables(), names, True, 50, 0)
    assert apart.log_ratio.value == pytest.approx(0, abs=1e-3)


def test_another_policy_is_at_a_distance_that_both_estimators_see(world: World) -> None:
    names = list(by_prompt(from_table(Prompt, world.prompts.table())))
    scores = world.scores(world.other)
    apart = read_divergence(world.answers.tables(), scores.tables(), names, True, 200, 0)
    assert apart.low_variance is not None
    assert apart.low_variance.interval().low > 0
    error = math.hypot(apart.log_ratio.standard_error(), apart.low_variance.standard_error())
    assert apart.log_ratio.value == pytest.approx(apart.low_variance.value, abs=4 * error)


def test_a_resumed_scoring_keeps_what_is_committed_and_adds_what_is_missing(world: World, tmp_path: Path) -> None:
    whole = world.scores(world.sampler)
    other = Store(str(tmp_path / "store"), tmp_path / "scratch")
    shutil.copytree(world.store.url, other.url)
    shutil.rmtree(Path(other.url) / whole.reference)
    inputs: dict[str, Any] = {"policy": world.sampler, "prompts": world.prompts, "sample": world.answers}
    assert stage_identity("score", world.recipe, inputs).fingerprint == whole.manifest.fingerprint
    earlier = [Score(row.prompt_id, row.k, [-1.0]) for row in from_table(Score, whole.table("chunk-00000.parquet"))]
    with other.workspace("score", whole.manifest.fingerprint) as workspace:
        path = workspace.folder / "chunk-00000.parquet"
        write_parquet(to_table(Score, earlier), path)
        workspace.commit_part("chunk-00000", [path], {"prompts": 32, "answers": 64, "tokens": 64})
    again = world._replace(store=other)
    seen: list[Progress] = []
    resumed = again.scores(world.sampler, seen.append)
    assert (seen[0].done, seen[0].total) == (64, 80)
    assert list(from_table(Score, resumed.table("chunk-00000.parquet"))) == earlier
    ours, theirs = (each.table("chunk-00001.parquet").to_pylist() for each in (resumed, whole))
    assert ours == theirs
    assert resumed.manifest.counts["answers"] == 80


def test_a_worker_names_the_answer_that_broken_weights_cannot_score(world: World, tmp_path: Path) -> None:
    broken = disturbed(world.sampler.folder(), tmp_path / "broken", math.nan)
    scorer = world.store.build(policy.step(recipe_of(broken)))
    with pytest.raises(EvaluationError, match=rf"answer 0 to prompt test \d+ is nan, .* policy {scorer.reference} hold nan"):
        world.scores(scorer)
