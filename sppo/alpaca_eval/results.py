"""Stage `alpaca-eval`: a policy's verdicts in alpaca_eval's schema, and every number with its interval. R resamples.

| file | |
|---|---|
| annotations.json | one row an instruction in the set's order, as alpaca_eval's own tool reads them |
| alpaca_eval.json | the numbers, what they may be called, and how they were measured |
| replicates.parquet | (R,) length-controlled rates of refits, so that two policies can be compared without fitting again |
"""

import json
import math

import pyarrow as pa

from sppo.alpaca_eval.annotations import Annotation, to_json
from sppo.alpaca_eval.judging import judge_name, open_rows, with_verdicts
from sppo.alpaca_eval.prompts import stored_baselines, stored_set
from sppo.alpaca_eval.report import Measured, as_json, group_name, measure
from sppo.alpaca_eval.sets import EvaluationSet
from sppo.errors import EvaluationError
from sppo.fingerprint import seed_of
from sppo.judges.contest import all_answers
from sppo.recipe import Recipe
from sppo.recipe.alpaca_eval import RELEASED, AlpacaEval, Decoding, required
from sppo.records import Duel, from_table
from sppo.stages import stage_identity
from sppo.statistics import Interval
from sppo.store import Artifact, Outcome, Step, Workspace

ANNOTATIONS_FILE = "annotations.json"
RESULT_FILE = "alpaca_eval.json"
REPLICATES_FILE = "replicates.parquet"
RATES = ("win_rate", "length_controlled_win_rate", "discrete_win_rate")


def step(recipe: Recipe, reference: Artifact, answers: Artifact, judged: Artifact) -> Step:
    """All numbers of one policy.

    Raises EvaluationError, when it runs, for fewer verdicts than the fit needs, or verdicts on other answers."""
    asked = required(recipe.evaluation.alpaca_eval)
    inputs = {"reference": reference, "answers": answers, "judged": judged}

    def run(workspace: Workspace) -> Outcome:
        questions = stored_set(reference)
        rows = _rows(questions, asked, answers, judged)
        gamed, seed = stored_baselines(reference), seed_of(recipe.seed, "bootstrap")
        measured = measure(rows, questions, gamed, recipe.evaluation.resamples, seed)
        group = group_name(asked.judge, questions)
        result = {"group": group, "notes": _notes(asked, questions, measured, judged), **as_json(measured)}
        workspace.add_text(to_json(rows), ANNOTATIONS_FILE)
        workspace.add_text(json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False) + "\n", RESULT_FILE)
        workspace.add_table(pa.table({"length_controlled_win_rate": measured.refits}), REPLICATES_FILE)
        return _outcome(group, measured)

    return Step(stage_identity("alpaca-eval", recipe, inputs), run)


def _rows(questions: EvaluationSet, asked: AlpacaEval, answers: Artifact, judged: Artifact) -> list[Annotation]:
    texts = {prompt_id: found[0] for prompt_id, found in all_answers(answers).items()}
    duels = list(from_table(Duel, judged.tables()))
    if texts.keys() != {duel.prompt_id for duel in duels}:
        raise EvaluationError(
            f"{answers.name} has {len(texts)} answers and {judged.name} judged {len(duels)}, not all the same; "
            "expected verdicts on those very answers: judge them again"
        )
    # known by its weights, as in every fingerprint: the same policy is called the same in every run
    generator = f"policy-{answers.manifest.inputs['policy'][:12]}"
    rows = open_rows(questions, texts, generator, judge_name(asked.judge))
    return with_verdicts(rows, duels, asked.order, asked.averaged)


def _notes(asked: AlpacaEval, questions: EvaluationSet, measured: Measured, judged: Artifact) -> dict[str, str]:
    weights = judged.manifest.inputs.get("judge")
    orders = {
        "both": f"both orders asked, their {asked.averaged} averaged",
        "alpaca_eval": "one order an instruction, drawn by alpaca_eval's seed",
    }
    every, unjudged = len(measured.preferences), measured.raw.unjudged
    whole = "all" if every == len(questions.questions) else "the first"
    return {
        "judge": judge_name(asked.judge) + (f", weights {weights[:12]}" if weights else ""),
        "order": orders[asked.order],
        "decoding": decoding_in_words(asked.decoding),
        "instructions": f"{whole} {every} of {len(questions.questions)}, {unjudged} of them without a verdict and left out",
        "reference": questions.generator,
        "fit": f"{measured.length_controlled.kind}; intervals from {measured.resamples} refits",
    }


def decoding_in_words(decoding: Decoding) -> str:
    """Such as `temperature 0.7, top-p 0.9, at most 2048 tokens, the tokenizer's chat template`."""
    name = next((name for name, released in RELEASED.items() if released == decoding), None)
    template = "the tokenizer's chat template" if decoding.template is None else f"template {decoding.template!r}"
    words = f"temperature {decoding.temperature:g}, top-p {decoding.top_p:g}, at most {decoding.max_tokens} tokens, {template}"
    return words if name is None else f"as released ({name}): {words}"


def _outcome(group: str, measured: Measured) -> Outcome:
    raw, rate, controlled = measured.raw, measured.win_rate, measured.length_controlled_win_rate
    counts = {"rows": raw.n_total + raw.unjudged, "unjudged": raw.unjudged, "wins": raw.n_wins, "draws": raw.n_draws}
    found = {name: getattr(measured, name) for name in (*RATES, "length")}
    metrics = {name: interval.value for name, interval in found.items()}
    metrics |= {f"{name}_{end}": getattr(interval, end) for name, interval in found.items() for end in ("low", "high")}
    summary = (
        f"{group}: {measured.length_controlled_name} {_shown(controlled)} %, win rate {_shown(rate)} %, "
        f"{raw.avg_length} characters, {counts['rows']} rows, {raw.unjudged} unjudged"
    )
    return Outcome(summary, counts, {name: value for name, value in metrics.items() if math.isfinite(value)})


def _shown(interval: Interval) -> str:
    return f"{interval.value:.2f} [{interval.low:.2f}, {interval.high:.2f}]"
