"""Stage `check`: what iteration t did to its policy's answers, and whether another may follow.

`checks.json` has the numbers (`sppo.checks`), `gates.json` the decisions (`sppo.gates`), where the recipe has gates.
"""

from collections.abc import Mapping, Sequence

from sppo import checks, gates
from sppo.checks.reading import read_material
from sppo.evaluate import judge_names
from sppo.fingerprint import seed_of
from sppo.gates import Verdict
from sppo.recipe import Recipe
from sppo.stages import stage_identity
from sppo.store import Artifact, Outcome, Step, Workspace


def step(
    recipe: Recipe,
    samples: Sequence[Artifact],
    duels: Sequence[Sequence[Artifact]],
    scores: Mapping[int, Artifact],
    trained_on: tuple[Artifact, Artifact] | None,
) -> Step:
    """checks.json and gates.json of pi_t.

    samples: held-out answers of pi_0 .. pi_t. duels: [judge][earlier policy], pi_t's answers against theirs. scores: by policy,
    its log-probs of pi_t's answers. trained_on: the responses that pi_t was trained on and the judge's logits of them; None for
    a policy that was not trained here. Raises EvaluationError, when it runs, if they do not belong together."""
    inputs = {f"sample-{number}": sample for number, sample in enumerate(samples)}
    inputs |= {f"duel-{judge}-{other}": duel for judge, row in enumerate(duels) for other, duel in enumerate(row)}
    inputs |= {f"score-{policy}": score for policy, score in scores.items()}
    if trained_on is not None:
        inputs |= dict(zip(("generate", "rank"), trained_on, strict=True))

    def run(workspace: Workspace) -> Outcome:
        evaluation = recipe.evaluation
        material = read_material(samples, judge_names(recipe), duels, trained_on, evaluation.sampling, scores)
        # the resampled prompts of the stage `evaluate`, so that win rates have the same intervals in both
        measures = checks.measure(material, evaluation.checks, evaluation.resamples, seed_of(recipe.seed, "bootstrap"))
        report = checks.check_report(measures)
        workspace.add_text(checks.to_json(report), checks.FILE)
        newest = report.policies[-1]
        metrics = {name: interval.value for name, interval in newest.items()}
        counts = {"prompts": newest["characters"].n}
        if evaluation.gates is None:
            return Outcome(f"{counts['prompts']} held-out prompts, no gates in the recipe", counts, metrics)
        verdict = gates.decide(measures, evaluation.gates)
        workspace.add_text(checks.to_json(verdict), gates.FILE)
        return Outcome(verdict.summary(), {**counts, "gates_failed": len(verdict.reasons())}, metrics)

    return Step(stage_identity("check", recipe, inputs), run)


def read_verdict(checked: Artifact) -> Verdict | None:
    """What the gates said; None where the recipe has none."""
    return Verdict.model_validate_json(checked.text(gates.FILE)) if gates.FILE in checked.file_names() else None
