"""`python -m sppo.workers.rank run.json`: judges chunks of contests, one after the other, and commits each as a part."""

import numpy as np
import pyarrow as pa

from sppo.judges import Logits, Match, check_finite, load, tally
from sppo.judges.contest import Chunks, RankRun, all_answers, answers_in
from sppo.launch import Place, run_work
from sppo.progress import Progress, ProgressFile
from sppo.records import Comparison, Duel, to_table
from sppo.store import Artifact, Store
from sppo.store.store import write_parquet

Messages = dict[str, list[dict[str, str]]]


def work(place: Place, run: RankRun) -> None:
    """One judge load, then every chunk of every contest that is still missing."""
    store = place.open_store()
    messages = _messages(store, run.prompts)
    folder = None if run.judge_artifact is None else store.open(run.judge_artifact).folder()
    judge = load(run.judge, folder, run.device, run.tokens_per_batch)
    report = ProgressFile(place.progress)
    done = 0

    def pass_on(progress: Progress) -> None:
        report(progress.model_copy(update={"stage": run.contests[0].stage, "done": done + progress.done, "total": run.pairs}))

    for chunks in run.contests:
        responses = store.open(chunks.responses)
        others = {} if chunks.against is None else all_answers(store.open(chunks.against))
        for name in chunks.names:
            matches = _matches(chunks, responses, name, others, messages)
            if not _committed(store, chunks, name):
                logits = judge.judge(matches, pass_on)
                check_finite(matches, logits, _mend(run))
                _commit(store, chunks, name, matches, logits, others)
            done += sum(len(match.pairs) for match in matches)
            report(Progress(stage=chunks.stage, done=done, total=run.pairs, unit="pairs"))


def _committed(store: Store, chunks: Chunks, name: str) -> bool:
    """Whether another attempt has judged this chunk since the run was planned."""
    return store.workspace(chunks.stage, chunks.fingerprint).part(name.removesuffix(".parquet")) is not None


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
            pairs = forward + [(j, i) for j in rivals for i in range(count)]
            texts = texts + others[prompt_id]
        matches.append(Match(prompt_id, messages[prompt_id], texts, pairs))
    return matches


def _commit(
    store: Store, chunks: Chunks, name: str, matches: list[Match], logits: list[Logits], others: dict[str, list[str]]
) -> None:
    counts = {"prompts": len(matches), **tally(matches).counts()}
    with store.workspace(chunks.stage, chunks.fingerprint) as workspace:
        write_parquet(_table(chunks, matches, logits, others), workspace.folder / name)
        workspace.commit_part(name.removesuffix(".parquet"), [workspace.folder / name], counts)


def _table(chunks: Chunks, matches: list[Match], logits: list[Logits], others: dict[str, list[str]]) -> pa.Table:
    pairs = zip(matches, logits, strict=True)
    if chunks.against is None:
        return to_table(Comparison, (_comparison(match, found) for match, found in pairs))
    return to_table(Duel, (_duel(match, found, len(others[match.prompt_id])) for match, found in pairs))


def _comparison(match: Match, found: Logits) -> Comparison:
    count = len(match.responses)
    square = np.zeros((count, count), dtype=np.float32)  # (K, K)
    square[tuple(np.array(match.pairs).T)] = found
    return Comparison(match.prompt_id, count, square.flatten().tolist())


def _duel(match: Match, found: Logits, rivals: int) -> Duel:
    half = len(found) // 2
    own = len(match.responses) - rivals
    return Duel(match.prompt_id, own, rivals, found[:half].tolist(), found[half:].tolist())


if __name__ == "__main__":
    run_work(RankRun, work)
