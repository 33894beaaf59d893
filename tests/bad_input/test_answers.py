"""Responses and logits that cannot be trained on."""

import math
from collections.abc import Callable, Mapping

import pyarrow as pa
import pytest

import sppo.estimate
import sppo.rank
from sppo.evaluate import prompt_win_rates
from sppo.hardware import Hardware
from sppo.hygiene import find_traits
from sppo.judges import Match, check_finite
from sppo.recipe import Recipe, overridden
from sppo.records import Comparison, Duel, Response, to_table
from sppo.store import Artifact, ArtifactFile, Identity, Outcome, Step, Store, Workspace

Snapshot = Callable[[str, Mapping[str, Callable[[], object]]], None]
Rows = list[tuple[str, int]]


@pytest.fixture
def ranked(
    store: Store, tiny: Recipe, cpu: Hardware, make_prompts: Callable[[list[str]], ArtifactFile]
) -> Callable[[Rows], Artifact]:
    """The rank stage of these responses, (prompt id, k), to the prompts a and b, two each wanted, under the world's rule."""
    recipe = overridden(tiny, ("judge={kind: world-rule}", "generation.responses=2"))
    prompts = make_prompts(["a", "b"])

    def rank(rows: Rows) -> Artifact:
        def run(workspace: Workspace) -> Outcome:
            drawn = [Response(prompt_id, k, [k], f"answer {k}", "stop", [0.0], 0) for prompt_id, k in rows]
            workspace.add_table(to_table(Response, drawn), "chunk-00000.parquet")
            return Outcome("responses")

        responses = store.build(Step(Identity("generate", 1, {"rows": rows}, {}), run))
        return store.build(sppo.rank.step(recipe, cpu, None, prompts, responses))

    return rank


def test_responses_that_cannot_be_compared_are_named(snapshot: Snapshot, ranked: Callable[[Rows], Artifact]) -> None:
    whole = [("a", 0), ("a", 1), ("b", 0), ("b", 1)]
    cases: dict[str, Rows] = {
        "none to a prompt": whole[:2],
        "one to a prompt": whole[:3],
        "three to a prompt": [*whole, ("b", 2)],
        "a number twice": [*whole[:3], ("b", 0)],
        "a number left out": [*whole[:3], ("b", 2)],
        "to no prompt": [*whole, ("c", 0), ("c", 1)],
    }
    snapshot("responses", {name: (lambda rows=rows: ranked(rows)) for name, rows in cases.items()})  # type: ignore[misc]


@pytest.fixture
def targets(tiny: Recipe) -> Callable[..., pa.Table]:
    """Targets from comparisons, (prompt id, K, logits), and two responses to each of the prompts a and b."""
    drawn = [Response(prompt_id, k, [k], f"{prompt_id} {k}", "stop", [0.0], 0) for prompt_id in "ab" for k in (0, 1)]

    def make(*rows: tuple[str, int, list[float]]) -> pa.Table:
        comparisons = to_table(Comparison, [Comparison(*row) for row in rows])
        traits = find_traits(to_table(Response, drawn), comparisons, 0.95)
        return sppo.estimate.targets(tiny, comparisons, traits)

    return make


def test_logits_that_make_no_probability_are_named(snapshot: Snapshot, targets: Callable[..., pa.Table]) -> None:
    whole = ("a", 2, [0.0, 1.0, -1.0, 0.0])
    duel = Duel("a", 1, 1, [math.nan], [math.nan])
    match = Match("a", "Why?", ["one", "two"], [(0, 1), (1, 0)])
    snapshot(
        "logits",
        {
            "infinite": lambda: targets(whole, ("b", 2, [0.0, math.inf, -1.0, 0.0])),
            "minus infinite, twice": lambda: targets(whole, ("b", 2, [0.0, -math.inf, -math.inf, 0.0])),
            "a pair missing": lambda: targets(whole, ("b", 2, [0.0, 1.0, 0.0])),
            "of another K": lambda: targets(whole, ("b", 3, [0.0] * 9)),
            "of one response": lambda: targets(whole, ("b", 1, [0.0])),
            "of another prompt": lambda: targets(whole, ("c", 2, [0.0] * 4)),
            "of a duel, infinite": lambda: prompt_win_rates(to_table(Duel, [Duel("a", 1, 1, [math.inf], [0.0])])),
            "of a duel, none judged": lambda: prompt_win_rates(to_table(Duel, [duel])),
            "nan from a judge": lambda: check_finite([match], [pa.array([0.5, math.nan]).to_numpy()], "take another judge"),
        },
    )


def test_a_pair_without_a_verdict_leaves_its_prompt_out_and_no_other(targets: Callable[..., pa.Table]) -> None:
    table = targets(("a", 2, [0.0, 1.0, -1.0, 0.0]), ("b", 2, [0.0, math.nan, -1.0, 0.0]))
    assert set(table["prompt_id"].to_pylist()) == {"a"}
