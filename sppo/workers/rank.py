"""`python -m sppo.workers.rank run.json`: judges chunks of contests, one after the other, and commits each as a part."""

import math
from dataclasses import replace
from typing import assert_never

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from sppo.alpaca_eval.judging import model_first
from sppo.judges import Judge, Logits, Match, Rulings, check_finite, load, tally
from sppo.judges.contest import Chunks, RankRun, all_answers, answers_in, is_whole, newest_part, part_name
from sppo.launch import Place, run_work
from sppo.progress import Progress, ProgressFile, Report
from sppo.recipe.alpaca_eval import Order
from sppo.records import Comparison, Duel, to_table
from sppo.store import Artifact, Store, Workspace
from sppo.store.manifest import PartRecord
from sppo.store.workspace import write_parquet

Messages = dict[str, list[dict[str, str]]]
Pair = tuple[int, int]
SPENT = ("requests", "retried", "input_tokens", "output_tokens")
"""Counts that add up over the attempts at a chunk."""


def work(place: Place, run: RankRun) -> None:
    """One judge load, then every chunk of every contest that is still missing or has pairs without a verdict."""
    store = place.open_store()
    messages = _messages(store, run.prompts)
    folder = None if run.judge_artifact is None else store.open(run.judge_artifact).folder()
    judge = load(run.judge, folder, run.device, run.tokens_per_batch, store)
    report = ProgressFile(place.progress)
    done = 0

    def pass_on(progress: Progress) -> None:
        report(progress.model_copy(update={"stage": run.contests[0].stage, "done": done + progress.done, "total": run.pairs}))

    for chunks in run.contests:
        responses = store.open(chunks.responses)
        others = {} if chunks.against is None else all_answers(store.open(chunks.against))
        for name in chunks.names:
            matches = _matches(chunks, responses, name, others, messages)
            with store.workspace(chunks.stage, chunks.fingerprint) as workspace:
                before = newest_part(workspace, name)  # of another attempt, perhaps since this run was planned
                if not is_whole(before):
                    rulings = _rule(judge, matches, None if before is None else _read(workspace, before), pass_on, _mend(run))
                    _commit(workspace, chunks, name, matches, rulings, others, before)
            done += sum(len(match.pairs) for match in matches)
            report(Progress(stage=chunks.stage, done=done, total=run.pairs, unit="pairs"))


def _rule(judge: Judge, matches: list[Match], before: Rulings | None, report: Report, mend: str) -> Rulings:
    """Rulings on all pairs; of a chunk that was judged before, only pairs without a verdict are asked about."""
    if before is not None:
        left = [np.isnan(found) for found in before.logits]  # (P,) of each match
        matches = [
            replace(match, pairs=[pair for pair, asked in zip(match.pairs, mask.tolist(), strict=True) if asked])
            for match, mask in zip(matches, left, strict=True)
        ]
    rulings = judge.rule(matches, report)
    for logits in (rulings.logits, *rulings.members):
        check_finite(matches, logits, mend, judge.leaves_open)
    if before is None:
        return rulings
    members = [_filled(old, new, left) for old, new in zip(before.members, rulings.members, strict=True)]
    return Rulings(_filled(before.logits, rulings.logits, left), members, rulings.counts)


def _filled(old: list[Logits], new: list[Logits], left: list[npt.NDArray[np.bool_]]) -> list[Logits]:
    whole = [found.copy() for found in old]  # (P,) of each match
    for found, asked, answers in zip(whole, left, new, strict=True):
        found[asked] = answers
    return whole


def _mend(run: RankRun) -> str:
    precision = "; fp16 may overflow, so also try hardware with device: cpu" if run.device == "cuda" else ""
    source = run.judge_artifact or "the rule of the tiny world"
    return f"check the weights of {source}, and choose another judge if they are broken{precision}; judged chunks are kept"


def _messages(store: Store, reference: str) -> Messages:
    artifact, _, name = reference.partition("#")
    table = store.open(artifact).table(name)
    return dict(zip(table["prompt_id"].to_pylist(), table["messages"].to_pylist(), strict=True))


def _matches(chunks: Chunks, responses: Artifact, name: str, others: dict[str, list[str]], messages: Messages) -> list[Match]:
    matches = []
    for prompt_id, texts in answers_in(responses, name).items():
        count = len(texts)
        if chunks.against is None:
            pairs = [(i, j) for i in range(count) for j in range(count) if i != j]
        else:
            rivals = range(count, count + len(others[prompt_id]))
            forward = [(i, j) for i in range(count) for j in rivals]
            backward = [(j, i) for j in rivals for i in range(count)]
            pairs = _in_order(chunks.order, messages[prompt_id], forward, backward)
            texts = texts + others[prompt_id]
        matches.append(Match(prompt_id, messages[prompt_id], texts, pairs))
    return matches


def _in_order(order: Order, messages: list[dict[str, str]], forward: list[Pair], backward: list[Pair]) -> list[Pair]:
    match order:
        case "both":
            return forward + backward
        case "alpaca_eval":
            return forward if model_first(messages[-1]["content"]) else backward
        case _:
            assert_never(order)


def _read(workspace: Workspace, record: PartRecord) -> Rulings:
    """What a chunk's part holds, pairs in the order in which `_matches` asks."""
    (path,) = workspace.part_paths(record)
    rows = pq.read_table(path, page_checksum_verification=True).to_pylist()
    if rows and "forward" in rows[0]:
        return Rulings([np.array([*row["forward"], *row["backward"]], dtype=np.float32) for row in rows])
    members = [[_pairs_of(row["members"][position]) for row in rows] for position in range(len(rows[0]["members"]))]
    return Rulings([_pairs_of(row["logits"]) for row in rows], members)


def _pairs_of(flat: list[float]) -> Logits:
    square = np.array(flat, dtype=np.float32).reshape(math.isqrt(len(flat)), -1)  # (K, K)
    found: Logits = square[~np.eye(len(square), dtype=bool)]  # (P,)
    return found


def _commit(
    workspace: Workspace,
    chunks: Chunks,
    name: str,
    matches: list[Match],
    rulings: Rulings,
    others: dict[str, list[str]],
    before: PartRecord | None,
) -> None:
    left = sum(int(np.isnan(found).sum()) for found in rulings.logits)
    counts = {"prompts": len(matches), **tally(matches).counts(), **rulings.counts}
    if left:
        counts["unjudged"] = left
    if before is not None:  # what was spent in all; why pairs are open, only now
        spent = {key: count for key, count in before.counts.items() if key in SPENT}
        counts |= {key: counts.get(key, 0) + count for key, count in spent.items()}
    again = 0
    while workspace.part(part_name(name, again)) is not None:
        again += 1
    write_parquet(_table(chunks, matches, rulings, others), workspace.folder / name)
    workspace.commit_part(part_name(name, again), [workspace.folder / name], counts)


def _table(chunks: Chunks, matches: list[Match], rulings: Rulings, others: dict[str, list[str]]) -> pa.Table:
    if chunks.against is not None:
        pairs = zip(matches, rulings.logits, strict=True)
        return to_table(Duel, (_duel(match, found, len(others[match.prompt_id])) for match, found in pairs))
    by_match = [[member[row] for member in rulings.members] for row in range(len(matches))]
    rows = zip(matches, rulings.logits, by_match, strict=True)
    return to_table(Comparison, (_comparison(match, found, members) for match, found, members in rows))


def _comparison(match: Match, found: Logits, members: list[Logits]) -> Comparison:
    count = len(match.responses)
    squares = [_square(match, logits, count).flatten().tolist() for logits in (found, *members)]
    return Comparison(match.prompt_id, count, squares[0], squares[1:])


def _square(match: Match, found: Logits, count: int) -> Logits:
    square = np.zeros((count, count), dtype=np.float32)  # (K, K)
    square[tuple(np.array(match.pairs).T)] = found
    return square


def _duel(match: Match, found: Logits, rivals: int) -> Duel:
    own = len(match.responses) - rivals
    forward = sum(first < own for first, _ in match.pairs)
    return Duel(match.prompt_id, own, rivals, found[:forward].tolist(), found[forward:].tolist())


if __name__ == "__main__":
    run_work(RankRun, work)
