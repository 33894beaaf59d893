"""Stage `benchmark`: what the benchmarks say of pi_0 .. pi_t, and what changed to pi_t, in the form that a model card reads.

`scores.json` has every score with interval and n (sppo.card.Scores); `comparisons.json` pi_t less pi_0, and less pi_(t-1), on
the same questions, as one family of tests (sppo.card.Comparisons).
"""

from collections.abc import Iterator, Mapping, Sequence

from sppo.alpaca_eval import report, scores
from sppo.card import COMPARISONS_FILE, FILE, Comparison, Comparisons, LeftOut, Scores, corrected
from sppo.card.scores import merged
from sppo.errors import EvaluationError, RecipeError, StoreError
from sppo.harness.card import card_scores
from sppo.harness.naming import check_names, upstream_names
from sppo.harness.paired import compare as compare_harness
from sppo.harness.stage import library_version, tables_of
from sppo.portuguese import TAG
from sppo.portuguese.tasks import TASKS
from sppo.recipe import Recipe, Served
from sppo.stages import stage_identity
from sppo.statistics import LEVEL
from sppo.store import Artifact, Outcome, Step, Workspace


def step(recipe: Recipe, iteration: int, alpaca: Mapping[int, Artifact], harness: Mapping[int, Sequence[Artifact]]) -> Step:
    """scores.json of the given policies and comparisons.json of pi_t with those of pi_0 and pi_(t-1) among them.

    alpaca: AlpacaEval artifacts by i of pi_i. harness: for each policy one artifact for each entry of evaluation.harness.
    Raises EvaluationError, when it runs, if there is nothing of pi_t, or AlpacaEval's verdicts do not belong together."""
    inputs = {f"alpaca-{policy}": artifact for policy, artifact in alpaca.items()}
    inputs |= {f"harness-{policy}-{number}": one for policy, row in harness.items() for number, one in enumerate(row, start=1)}

    def run(workspace: Workspace) -> Outcome:
        every = gathered(alpaca, harness)
        own = [score for score in every.scores if score.policy == iteration]
        if not own:
            raise EvaluationError(
                f"no benchmark has a score of pi_{iteration}; expected its artifacts of AlpacaEval or of the harness: measure "
                "it, or leave the stage out"
            )
        comparisons = compared(recipe, iteration, alpaca, harness)
        workspace.add_text(every.to_json(), FILE)
        workspace.add_text(comparisons.to_json(), COMPARISONS_FILE)
        beyond = sum(each.adjusted_p <= 1 - LEVEL for each in comparisons.comparisons)
        counts = {"scores": len(own), "comparisons": len(comparisons.comparisons), "beyond_chance": beyond}
        summary = f"{len(own)} scores, {counts['comparisons']} comparisons with earlier policies, {beyond} beyond chance"
        return Outcome(summary, counts, {f"{score.group}, {score.name}": score.value for score in own})

    return Step(stage_identity("benchmark", recipe, inputs, {"iteration": iteration}), run)


def gathered(alpaca: Mapping[int, Artifact], harness: Mapping[int, Sequence[Artifact]]) -> Scores:
    """All scores, policy by policy; of notes that differ, the newest policy's."""
    found = [scores.scores(artifact, policy) for policy, artifact in sorted(alpaca.items())]
    for policy, row in sorted(harness.items()):
        found += [card_scores(artifact, policy, entry) for entry, artifact in enumerate(row, start=1)]
    return merged(found)


def compared(
    recipe: Recipe, iteration: int, alpaca: Mapping[int, Artifact], harness: Mapping[int, Sequence[Artifact]]
) -> Comparisons:
    """pi_t with pi_0 and pi_(t-1), where both were measured: all of it is one family of tests."""
    found: list[Comparison | LeftOut] = []
    for against in sorted({0, iteration - 1}):
        if iteration in alpaca and against in alpaca:
            found += _of_alpaca((iteration, against), alpaca)
        pairs = zip(harness.get(iteration, ()), harness.get(against, ()), strict=False)
        for entry, pair in enumerate(pairs, start=1):
            found += compare_harness((iteration, against), pair, entry, recipe.evaluation.resamples, recipe.seed)
    left_out = [each for each in found if isinstance(each, LeftOut)]
    return corrected([each for each in found if isinstance(each, Comparison)], left_out)


def _of_alpaca(policies: tuple[int, int], alpaca: Mapping[int, Artifact]) -> Iterator[Comparison]:
    one, other = (scores.measured(alpaca[policy]) for policy in policies)
    group = scores.scores(alpaca[policies[0]], policies[0]).scores[0].group
    found = report.compare(one, other)
    named = {"win rate": found.win_rate, one.length_controlled_name: found.length_controlled_win_rate}
    for name, changed in named.items():
        yield Comparison.of((*policies, group, name), changed.interval, changed.p_value, unit="points")


def check_benchmarks(recipe: Recipe, of_run: bool = True) -> None:
    """Raises RecipeError for tasks of lm-evaluation-harness that could not be measured at a run's end.

    of_run: of policies that are trained or given here, not of served models alone."""
    evaluation = recipe.evaluation
    portuguese = []
    for number, harness in enumerate(evaluation.harness, start=1):
        if of_run and isinstance(harness.backend, Served):
            raise RecipeError(
                f"evaluation.harness, entry {number}, asks the served model {harness.backend.model}, which says nothing of "
                "what the run trains; expected backend auto, vllm or transformers: take the entry out of the run's recipe"
            )
        portuguese += [number] * any(name in TASKS for name in harness.names())
        upstream = [name for name in harness.names() if name not in TASKS]
        try:
            library_version()
            tables_of(harness, evaluation.portuguese_tables)
            check_names(upstream, upstream_names() if upstream else [])
        except (EvaluationError, RecipeError, StoreError) as problem:
            raise RecipeError(f"evaluation.harness, entry {number}: {problem}") from problem
    if len(portuguese) > 1:
        raise RecipeError(
            f"evaluation.harness has Portuguese tasks in entries {', '.join(map(str, portuguese))}; expected them in one, "
            f"asked alike, for a card has one number a task: put them together, such as tasks: [{TAG}]"
        )
