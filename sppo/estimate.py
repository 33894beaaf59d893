"""From judge logits to win probabilities and training targets: pure functions of what `rank` stored.

A general preference model says nothing transitive: P(y_i > y_j) = sigmoid((L_ij - L_ji) / 2), both orders averaged
(`pairwise`). The released code reduces it to one score a response first, which is transitive by construction (`bradley_terry`).
"""

from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sppo.errors import EstimateError
from sppo.recipe import Recipe
from sppo.records import SCHEMAS, Target
from sppo.stages import stage_identity
from sppo.store import Artifact, Outcome, Step, Workspace

Array = npt.NDArray[np.float64]
Rule = Literal["pairwise", "bradley_terry"]


def sigmoid(logits: Array) -> Array:
    """1 / (1 + exp(-x)), without overflow; any shape."""
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * logits)))


def preference_matrices(logits: Array, rule: Rule) -> Array:
    """P(y_i > y_j | x), with 1/2 on the diagonal and P + P^T = 1.

    logits: (N, K, K), L_ij of the pair shown as (i, j); result: (N, K, K) in [0, 1], dimensionless.
    `pairwise`: sigmoid((L_ij - L_ji) / 2). `bradley_terry`: row means s of (L - L^T), then sigmoid(s_i - s_j), as in
    llm-blender's `rank` and the released compute_prob.py; about twice the logit of `pairwise`."""
    margins = logits - logits.transpose(0, 2, 1)  # (N, K, K)
    if rule == "pairwise":
        return sigmoid(margins / 2)
    scores = margins.mean(axis=2)  # (N, K)
    return sigmoid(scores[:, :, None] - scores[:, None, :])


def win_probabilities(logits: Array, rule: Rule, self_match: bool) -> Array:
    """Chance that each response beats a fresh draw from the policy, P(y_k > pi_t | x).

    logits: (N, K, K); result: (N, K) in [0, 1], dimensionless.
    arXiv:2405.00675, Algorithm 1; the self-match counts 1/2, as in the released code, unless `self_match` is off.
    Raises EstimateError for fewer than two responses."""
    responses = logits.shape[1]
    if responses < 2:
        raise EstimateError(f"K = {responses} responses; expected at least 2 to compare: raise generation.responses")
    preferences = preference_matrices(logits, rule)  # (N, K, K)
    if self_match:
        return np.asarray(preferences.mean(axis=2))
    # without the self-match every P - 1/2 grows by K / (K - 1)
    return np.asarray((preferences.sum(axis=2) - 0.5) / (responses - 1))


def select(
    probabilities: Array, responses: Literal["extremes", "all"], drop_ties: bool
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.str_]]:
    """Which responses are trained on, and each one's role.

    probabilities: (N, K); results: (N, K) of bool, and of `best`, `worst`, `other` or `tied`.
    Best and worst are the first of equals, and never the same response (the released code trains a tie against itself)."""
    rows = np.arange(len(probabilities))
    best = probabilities.argmax(axis=1)  # (N,)
    others = probabilities.copy()  # (N, K)
    others[rows, best] = np.inf
    worst = others.argmin(axis=1)  # (N,)
    roles = np.full(probabilities.shape, "other", dtype="<U9")
    roles[rows, best] = "best"
    roles[rows, worst] = "worst"
    selected = np.full(probabilities.shape, responses == "all")
    selected[rows, best] = selected[rows, worst] = True
    if drop_ties:
        tied = np.ptp(probabilities, axis=1) == 0.0  # (N,)
        selected[tied] = False
        roles[tied] = "tied"
    return selected, roles


def step(recipe: Recipe, ranked: Artifact, responses: Artifact) -> Step:
    """Targets of an iteration: one row a response, in the order of the comparisons.

    Raises EstimateError for a logit that is not finite, or comparisons of other prompts than the responses'."""

    def run(workspace: Workspace) -> Outcome:
        table = targets(recipe, ranked.tables(), responses.tables())
        workspace.add_table(table, "targets.parquet")
        return _outcome(table)

    return Step(stage_identity("estimate", recipe, {"rank": ranked, "generate": responses}), run)


def targets(recipe: Recipe, comparisons: pa.Table, responses: pa.Table) -> pa.Table:
    """Target rows of comparison rows; prompts may have different numbers of responses."""
    prompt_ids = comparisons["prompt_id"].to_numpy(zero_copy_only=False)  # (N,)
    sizes = comparisons["responses"].to_numpy()  # (N,)
    flat = np.asarray(comparisons["logits"].combine_chunks().flatten(), dtype=np.float64)
    starts = np.concatenate([[0], np.cumsum(sizes.astype(np.int64) ** 2)])  # (N + 1,)
    if len(flat) != starts[-1]:
        raise EstimateError(f"{len(flat)} logits for {len(sizes)} prompts; expected K x K each, {starts[-1]}: rank again")
    identical = _identical_prompts(responses, prompt_ids, sizes)
    offsets = np.concatenate([[0], np.cumsum(sizes)])  # (N + 1,)
    probabilities = np.empty(offsets[-1])
    selected = np.empty(offsets[-1], dtype=bool)
    roles = np.empty(offsets[-1], dtype="<U9")
    for count in np.unique(sizes):
        rows = np.flatnonzero(sizes == count)  # (M,) prompts with this K
        logits = flat[starts[rows][:, None] + np.arange(count * count)].reshape(-1, count, count)  # (M, K, K)
        _refuse_not_finite(logits, prompt_ids[rows])
        found = win_probabilities(logits, recipe.estimator.rule, recipe.estimator.self_match)  # (M, K)
        chosen, role = select(found, recipe.selection.responses, recipe.selection.drop_ties)
        role[(role == "tied") & identical[rows][:, None]] = "identical"
        places = offsets[rows][:, None] + np.arange(count)  # (M, K)
        probabilities[places], selected[places], roles[places] = found, chosen, role
    return pa.table(
        {
            "prompt_id": pa.array(np.repeat(prompt_ids, sizes), pa.string()),
            "k": pa.array(np.concatenate([np.arange(size) for size in sizes]), pa.int32()),
            "win_probability": probabilities,
            "selected": selected,
            "role": pa.array(roles, pa.string()),
        },
        schema=SCHEMAS[Target],
    )


def _refuse_not_finite(logits: Array, prompt_ids: npt.NDArray[np.object_]) -> None:
    bad = np.argwhere(~np.isfinite(logits))
    if len(bad):
        row, first, second = bad[0]
        raise EstimateError(
            f"judge logit for prompt {prompt_ids[row]}, pair ({first}, {second}) is {logits[row, first, second]}; "
            f"expected a finite number ({len(bad)} such logits in all): delete the rank artifact and rank again"
        )


def _identical_prompts(
    responses: pa.Table, prompt_ids: npt.NDArray[np.object_], sizes: npt.NDArray[np.int32]
) -> npt.NDArray[np.bool_]:
    """(N,) whether all responses of a prompt are the same text."""
    texts = responses.group_by("prompt_id", use_threads=False).aggregate([("text", "count_distinct"), ("text", "count")])
    found = dict(
        zip(
            texts["prompt_id"].to_pylist(),
            zip(texts["text_count_distinct"].to_pylist(), texts["text_count"].to_pylist(), strict=True),
            strict=True,
        )
    )
    for prompt_id, size in zip(prompt_ids, sizes, strict=True):
        if prompt_id not in found or found[prompt_id][1] != size:
            has = found[prompt_id][1] if prompt_id in found else 0
            raise EstimateError(
                f"prompt {prompt_id} was ranked with {size} responses and has {has}; expected the same: rank again"
            )
    return np.array([found[prompt_id][0] == 1 for prompt_id in prompt_ids], dtype=bool)


def _outcome(table: pa.Table) -> Outcome:
    roles = table["role"].to_numpy(zero_copy_only=False)
    selected = table["selected"].to_numpy()
    prompts = table["prompt_id"].to_numpy(zero_copy_only=False)
    centred = table["win_probability"].to_numpy()[selected] - 0.5
    dropped = {reason: len(set(prompts[roles == reason])) for reason in ("identical", "tied")}
    counts = {
        "prompts": len(set(prompts)),
        "responses": len(table),
        "responses_selected": int(selected.sum()),
        "prompts_selected": len(set(prompts[selected])),
        **{f"prompts_{reason}": count for reason, count in dropped.items()},
    }
    summary = f"{counts['prompts']} prompts, {counts['responses']} responses, {counts['responses_selected']} selected"
    reasons = ", ".join(f"{count} prompts {reason}" for reason, count in dropped.items() if count)
    metrics = {"rms_centred_win_probability": float(np.sqrt(np.mean(centred**2))) if len(centred) else 0.0}
    return Outcome(f"{summary}, {reasons or '0 dropped'}", counts, metrics)
