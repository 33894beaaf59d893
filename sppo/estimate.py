"""From judge logits to win probabilities and training targets: pure functions of what `rank` stored.

A general preference model says nothing transitive: P(y_i > y_j) = sigmoid((L_ij - L_ji) / 2), both orders averaged
(`pairwise`). The released code reduces it to one score a response first, which is transitive by construction
(`bradley_terry`). Changing the rule costs no judging: `sppo.reestimate` compares what two rules make of the same logits.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, assert_never

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from sppo.errors import EstimateError
from sppo.hygiene import COLUMNS, Traits, find_traits
from sppo.recipe import Recipe
from sppo.records import SCHEMAS, Target
from sppo.selection import CUT, EMPTY, IDENTICAL, REFUSAL, REPEAT, ROLES, TIED, WORST, select
from sppo.stages import stage_identity
from sppo.store import Artifact, Outcome, Step, Workspace

Array = npt.NDArray[np.float64]
Rule = Literal["pairwise", "bradley_terry", "prob_mean"]

TARGETS = "targets.parquet"
BLOCK = 2048
"""Prompts estimated at a time."""


def sigmoid(logits: Array) -> Array:
    """1 / (1 + exp(-x)), without overflow; any shape."""
    found = 0.5 * logits
    np.tanh(found, out=found)
    found *= 0.5
    found += 0.5
    return found


def preference_matrices(logits: Array, rule: Rule, temperature: float = 1.0) -> Array:
    """P(y_i > y_j | x), with 1/2 on the diagonal and P + P^T = 1.

    logits: (N, K, K), L_ij of the pair shown as (i, j), divided by the temperature; result: (N, K, K) in [0, 1], dimensionless.
    `pairwise`: sigmoid((L_ij - L_ji) / 2). `bradley_terry`: row means s of (L - L^T), then sigmoid(s_i - s_j), as in
    llm-blender's `rank` and the released compute_prob.py; about twice the logit of `pairwise`. `prob_mean`: the mean of
    sigmoid(L_ij) and 1 - sigmoid(L_ji): of two votes that contradict each other neither outweighs the other by being surer."""
    match rule:
        case "pairwise":
            margins = logits - logits.transpose(0, 2, 1)  # (N, K, K)
            return sigmoid(margins / (2 * temperature))
        case "bradley_terry":
            scores = (logits - logits.transpose(0, 2, 1)).mean(axis=2) / temperature  # (N, K)
            return sigmoid(scores[:, :, None] - scores[:, None, :])
        case "prob_mean":
            first_wins = sigmoid(logits / temperature)  # (N, K, K)
            return np.asarray((first_wins + 1.0 - first_wins.transpose(0, 2, 1)) / 2)
        case _:
            assert_never(rule)


def win_probabilities(logits: Array, rule: Rule, self_match: bool, temperature: float = 1.0) -> Array:
    """Chance that each response beats a fresh draw from the policy, P(y_k > pi_t | x).

    logits: (N, K, K); result: (N, K) in [0, 1], dimensionless; a prompt's mean is 1/2 under every rule.
    arXiv:2405.00675, Algorithm 1; the self-match counts 1/2, as in the released code, unless `self_match` is off.
    Raises EstimateError for fewer than two responses."""
    _check_enough(logits.shape[1])
    return _means(preference_matrices(logits, rule, temperature), self_match)


def _means(preferences: Array, self_match: bool) -> Array:
    """(N, K) win probabilities of preferences (N, K, K)."""
    if self_match:
        return np.asarray(preferences.mean(axis=2))
    # without the self-match every P - 1/2 grows by K / (K - 1); rounding must not carry it past 0 or 1
    return np.asarray(np.clip((preferences.sum(axis=2) - 0.5) / (preferences.shape[2] - 1), 0.0, 1.0))


def comparable_eta(eta: float, responses: int, self_match: bool, to_responses: int, to_self_match: bool) -> float:
    """The eta that asks the same log-ratios of another K, or with and without the self-match: eta (P - 1/2) stays as it was.

    The self-match shrinks every P - 1/2 by (K - 1) / K: 1000 at K = 5 with it are 800 without it, and 1600 at K = 2 with it.
    Exact for a response; the extremes of a larger K are also more extreme, which is not undone here."""

    def shrunk(count: int, with_self: bool) -> float:
        return (count - 1) / count if with_self else 1.0

    if min(responses, to_responses) < 2:
        raise EstimateError(f"K = {min(responses, to_responses)} responses; expected at least 2 to compare")
    return eta * shrunk(responses, self_match) / shrunk(to_responses, to_self_match)


def step(recipe: Recipe, ranked: Artifact, responses: Artifact) -> Step:
    """Targets of an iteration: one row a response, in the order of the comparisons.

    Raises EstimateError for an infinite logit, or comparisons of other prompts than the responses'."""

    def run(workspace: Workspace) -> Outcome:
        comparisons = ranked.tables()
        traits = open_traits(recipe, comparisons, responses)
        table = targets(recipe, comparisons, traits)
        workspace.add_table(table, TARGETS)
        return _outcome(table, len(comparisons), traits)

    return Step(stage_identity("estimate", recipe, {"rank": ranked, "generate": responses}), run)


def open_traits(recipe: Recipe, comparisons: pa.Table, responses: Artifact) -> Traits:
    """Traits of an artifact's responses; only the columns that they need are read."""
    chunks = [
        pq.read_table(responses.path(name), columns=list(COLUMNS), page_checksum_verification=True)
        for name in responses.file_names(".parquet")
    ]
    return find_traits(pa.concat_tables(chunks), comparisons, recipe.selection.near_identical)


def targets(recipe: Recipe, comparisons: pa.Table, traits: Traits) -> pa.Table:
    """Target rows of comparison rows; prompts may have different numbers of responses.

    A prompt with a pair that no judge settled (nan) has no rows: what it lacks could only be guessed, and a target is a
    probability. Raises EstimateError for an infinite logit, naming prompt and pair."""
    sizes = comparisons["responses"].to_numpy().astype(np.int64)  # (N,)
    flat = np.asarray(comparisons["logits"].combine_chunks().flatten(), dtype=np.float64)  # (sum of K * K,)
    squares = np.cumsum(sizes**2) - sizes**2  # (N,) where each prompt's logits begin
    if len(flat) != (sizes**2).sum():
        raise EstimateError(f"{len(flat)} logits for {len(sizes)} prompts; expected K x K each, {(sizes**2).sum()}: rank again")
    _refuse_infinite(flat, comparisons, squares)
    offsets = np.cumsum(sizes) - sizes  # (N,)
    found = _Columns.of(int(sizes.sum()))
    for count, rows in _blocks(sizes):  # (M,) prompts of this K
        pairs = squares[rows] + np.arange(count * count)[:, None]  # (K * K, M)
        # prompts lie next to each other in memory, not a prompt's pairs: numpy's inner loops are M long instead of K
        logits = flat[pairs].reshape(count, count, -1).transpose(2, 0, 1)  # (M, K, K)
        places = offsets[rows][:, None] + np.arange(count)  # (M, K)
        estimator = recipe.estimator
        _check_enough(count)
        preferences = preference_matrices(logits, estimator.rule, estimator.temperature)  # (M, K, K)
        wins = _means(preferences, estimator.self_match)  # (M, K)
        found.judged[places] = ~np.isnan(logits).any(axis=(1, 2))[:, None]
        found.win_probability[places] = wins
        found.selected[places], roles = select(wins, traits.shaped(places, pairs.T), recipe.selection)  # (M, K) both
        found.role[places] = roles
        is_worst = roles == WORST  # (M, K)
        worst = preferences[np.arange(len(rows)), :, is_worst.argmax(axis=1)]  # (M, K) P(y_k > worst)
        found.beats_worst[places] = np.where(is_worst.any(axis=1)[:, None], worst, np.nan)
    return found.table(comparisons["prompt_id"], sizes, np.arange(len(found.role)) - np.repeat(offsets, sizes))


def _check_enough(responses: int) -> None:
    if responses < 2:
        raise EstimateError(f"K = {responses} responses; expected at least 2 to compare: raise generation.responses")


def _blocks(sizes: npt.NDArray[np.int64]) -> Iterator[tuple[int, npt.NDArray[np.int64]]]:
    """Rows of prompts with the same K, so few at a time that their matrices stay in the processor's cache."""
    for count in np.unique(sizes).tolist():
        rows = np.flatnonzero(sizes == count)
        yield from ((count, rows[start : start + BLOCK]) for start in range(0, len(rows), BLOCK))


@dataclass(frozen=True)
class _Columns:
    """Of the R target rows."""

    win_probability: Array
    selected: npt.NDArray[np.bool_]
    role: npt.NDArray[np.int8]
    beats_worst: Array
    """nan where a prompt has no worst."""
    judged: npt.NDArray[np.bool_]
    """Whether the judge settled every pair of the prompt."""

    @classmethod
    def of(cls, rows: int) -> "_Columns":
        return cls(np.empty(rows), np.empty(rows, np.bool_), np.empty(rows, np.int8), np.empty(rows), np.empty(rows, np.bool_))

    def table(self, prompt_ids: pa.ChunkedArray, sizes: npt.NDArray[np.int64], k: npt.NDArray[np.int64]) -> pa.Table:
        rows = np.flatnonzero(self.judged)  # (rows kept,)
        prompts = np.repeat(np.arange(len(sizes)), sizes)[rows]  # (rows kept,)
        roles = pa.DictionaryArray.from_arrays(pa.array(self.role[rows]), pa.array(ROLES))
        return pa.table(
            {
                "prompt_id": prompt_ids.combine_chunks().take(pa.array(prompts)),
                "k": pa.array(k[rows].astype(np.int32)),
                "win_probability": self.win_probability[rows],
                "selected": self.selected[rows],
                "role": roles.cast(pa.string()),
                "beats_worst": pa.array(self.beats_worst[rows], from_pandas=True),
            },
            schema=SCHEMAS[Target],
        )


def _refuse_infinite(flat: Array, comparisons: pa.Table, squares: npt.NDArray[np.int64]) -> None:
    bad = np.flatnonzero(np.isinf(flat))
    if len(bad):
        row = int(np.searchsorted(squares, bad[0], side="right")) - 1
        pair = divmod(int(bad[0] - squares[row]), comparisons["responses"][row].as_py())
        raise EstimateError(
            f"judge logit for prompt {comparisons['prompt_id'][row].as_py()}, pair {pair} is {flat[bad[0]]}; expected a finite "
            f"number, or nan for a pair without a verdict ({len(bad)} such logits in all): delete the rank artifact and rank "
            "again"
        )


def _outcome(table: pa.Table, prompts: int, traits: Traits) -> Outcome:
    selected = table["selected"].to_numpy()  # (rows,)
    centred = table["win_probability"].to_numpy()[selected] - 0.5
    counts = _counts(table, prompts, traits)
    metrics = {"rms_centred_win_probability": float(np.sqrt(np.mean(centred**2))) if len(centred) else 0.0}
    return Outcome(summary(counts), counts, metrics)


def _counts(table: pa.Table, prompts: int, traits: Traits) -> dict[str, int]:
    """What was selected, which prompts and responses were left out and why, and how many responses have each trait."""
    owner = table["prompt_id"].combine_chunks().dictionary_encode().indices.to_numpy()  # (rows,)
    roles = table["role"].combine_chunks().dictionary_encode()
    role = np.array([ROLES.index(name) for name in roles.dictionary.to_pylist()], np.int8)[roles.indices.to_numpy()]
    trained = np.bincount(owner, weights=table["selected"].to_numpy(), minlength=1)  # (prompts with targets,)
    return {
        "prompts": prompts,
        "responses": len(traits.cut),
        "responses_selected": int(trained.sum()),
        "prompts_selected": int((trained > 0).sum()),
        "prompts_one_sided": int((trained == 1).sum()),
        "prompts_tied": len(np.unique(owner[role == TIED])),
        "prompts_identical": len(np.unique(owner[role == IDENTICAL])),
        "prompts_unjudged": prompts - len(np.unique(owner)),
        "responses_cut": int(traits.cut.sum()),
        "responses_empty": int(traits.empty.sum()),
        "responses_refusal": int(traits.refusal.sum()),
        "cut_left_out": int((role == CUT).sum()),
        "empty_left_out": int((role == EMPTY).sum()),
        "refusals_left_out": int((role == REFUSAL).sum()),
        "near_identical_left_out": int((role == REPEAT).sum()),
    }


def summary(counts: Mapping[str, int]) -> str:
    """Counts of an estimate in words; what is 0 is left unsaid."""
    parts = [f"{counts['prompts']} prompts, {counts['responses']} responses, {counts['responses_selected']} selected"]
    prompts = [f"{counts[f'prompts_{why}']} {why}" for why in ("tied", "identical", "unjudged") if counts[f"prompts_{why}"]]
    if prompts:
        parts.append(f"prompts left out: {', '.join(prompts)}")
    traits = [
        f"{has} {word} ({left_out} left out)"
        for word, has, left_out in (
            ("cut", counts["responses_cut"], counts["cut_left_out"]),
            ("empty", counts["responses_empty"], counts["empty_left_out"]),
            ("refusals", counts["responses_refusal"], counts["refusals_left_out"]),
        )
        if has
    ]
    if counts["near_identical_left_out"]:
        traits.append(f"{counts['near_identical_left_out']} near-identical left out")
    if traits:
        parts.append(f"responses: {', '.join(traits)}")
    return "; ".join(parts)
