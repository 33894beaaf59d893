"""Contests: answers compared chunk by chunk in worker processes, each chunk committed as a part when it is judged.

A contest makes one artifact: `rank` compares a prompt's responses with each other, `duel` one policy's with another's,
`alpaca-judge` a policy's with those of AlpacaEval's reference model. Its chunks follow the chunk files of the responses (rank's
chunk-00007 judges generate's chunk-00007). A worker loads the judge once, for all chunks of all contests that it is given; what
it committed is kept if it dies.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import pyarrow.parquet as pq

from sppo.configuration import Frozen
from sppo.errors import JudgeError
from sppo.hardware import Hardware
from sppo.launch import HERE, Group, Launcher, keep_accounts
from sppo.recipe import EndpointJudge, EnsembleJudge, Judge
from sppo.recipe.alpaca_eval import Order
from sppo.store import Artifact, Workspace
from sppo.store.artifact import ArtifactFile
from sppo.store.manifest import PartRecord

WORKER = "sppo.workers.rank"


@dataclass(frozen=True)
class Contest:
    """One artifact to be made."""

    workspace: Workspace
    responses: Artifact
    """Whose chunk files are followed."""
    against: Artifact | None
    """The other policy's answers, for a duel."""
    pairs: Mapping[str, int]
    """Pairs in each chunk file, by name."""
    order: Order = "both"
    """In which a duel's pairs are shown."""


class Chunks(Frozen):
    """A worker's share of one contest."""

    stage: str
    fingerprint: str
    responses: str
    """Artifact reference, `stage/fingerprint`."""
    against: str | None
    names: tuple[str, ...]
    """Chunk files of the responses."""
    order: Order = "both"


class RankRun(Frozen):
    """What a rank worker is told."""

    judge: Judge
    judge_artifact: str | None
    prompts: str
    """Reference of the prompt file, `stage/fingerprint#name`."""
    device: Literal["cpu", "cuda"]
    tokens_per_batch: int
    contests: tuple[Chunks, ...]
    pairs: int
    """Of all chunks of this worker, for its progress."""


def answers_in(responses: Artifact, name: str) -> dict[str, list[str]]:
    """Texts of a chunk file by prompt, in the order of k.

    Raises JudgeError for a prompt whose responses are not numbered 0 .. K-1, each once."""
    columns = ["prompt_id", "k", "text"]
    table = pq.read_table(responses.path(name), columns=columns, page_checksum_verification=True)
    found: dict[str, dict[int, str]] = {}
    for prompt_id, k, text in zip(*(table[column].to_pylist() for column in columns), strict=True):
        if k in found.setdefault(prompt_id, {}):
            raise JudgeError(
                f"{responses.name}, {name}: prompt {prompt_id} has response {k} twice; expected it once: generate again"
            )
        found[prompt_id][k] = text
    for prompt_id, texts in found.items():
        if sorted(texts) != list(range(len(texts))):
            raise JudgeError(
                f"{responses.name}, {name}: prompt {prompt_id} has the responses {sorted(texts)}; "
                f"expected 0 to {len(texts) - 1}: generate again"
            )
    return {prompt_id: [texts[k] for k in sorted(texts)] for prompt_id, texts in found.items()}


def all_answers(responses: Artifact) -> dict[str, list[str]]:
    """Texts of a whole artifact by prompt. Raises JudgeError for a prompt that stands in two chunks."""
    whole: dict[str, list[str]] = {}
    for name in responses.file_names(".parquet"):
        chunk = answers_in(responses, name)
        for prompt_id in whole.keys() & chunk.keys():
            raise JudgeError(f"{responses.name}, {name}: prompt {prompt_id} stands in an earlier chunk too: generate again")
        whole |= chunk
    return whole


def judge_contests(
    judge: Judge,
    judge_artifact: Artifact | None,
    prompts: ArtifactFile,
    hardware: Hardware,
    contests: Sequence[Contest],
    launch: Launcher = HERE,
) -> list[dict[str, int]]:
    """Judges what is missing of all contests with one judge load a process, and adopts every chunk. Result: counts of each.

    A judge without weights needs no device and judges here, whoever launches the others.
    Raises JudgeError in the worker's own words, or LaunchError if a worker died."""
    launch = HERE if judge_artifact is None else launch
    everything = [(contest, name) for contest in contests for name in contest.pairs]
    missing = [(contest, name) for contest, name in everything if not is_whole(newest_part(contest.workspace, name))]
    for contest in contests:
        left = sum(each is contest for each, _ in missing)
        contest.workspace.note_found(len(contest.pairs) - left, len(contest.pairs))
    if missing:
        first = contests[0].workspace
        machines = launch.machines(first.stage, first.fingerprint)
        groups = []
        for number in range(machines):
            # dealt missing or not: a machine that is started again is given what it had left
            share = [dealt for dealt in everything[number::machines] if dealt in missing]
            hands = min(hardware.rank.processes, len(share))
            runs = [_run(judge, judge_artifact, prompts, hardware, share[hand::hands]) for hand in range(hands)]
            if runs:
                groups.append(_group(runs, hardware, first.stage, first.fingerprint, number + 1, machines))
        keep_accounts(first, launch.run(groups, first.store, first.report))
    return [_adopt(contest, judge) for contest in contests]


def newest_part(workspace: Workspace, name: str) -> PartRecord | None:
    """A chunk as it was judged last: a chunk with pairs left open is asked about again, and committed beside the older one."""
    record = workspace.part(_part(name))
    again = 1
    while not (record is None or is_whole(record)):
        later = workspace.part(part_name(name, again))
        if later is None:
            break
        record, again = later, again + 1
    return record


def is_whole(record: PartRecord | None) -> bool:
    """Whether every pair of a chunk has its verdict."""
    return record is not None and not record.counts.get("unjudged", 0)


def part_name(name: str, again: int = 0) -> str:
    """Of a chunk file's part, when its open pairs were asked about for the n-th time again."""
    return _part(name) + (f"-again-{again}" if again else "")


def open_share(judge: Judge) -> float:
    """Share of pairs that may stay without a verdict."""
    if isinstance(judge, EnsembleJudge):
        return max(open_share(member.judge) for member in judge.members)
    return judge.max_unjudged if isinstance(judge, EndpointJudge) else 0.0


def _group(runs: Sequence[RankRun], hardware: Hardware, stage: str, fingerprint: str, number: int, of: int) -> Group:
    return Group(
        stage=stage,
        fingerprint=fingerprint,
        number=number,
        of=of,
        module=WORKER,
        works=tuple(run.model_dump(mode="json") for run in runs),
        device=hardware.device,
        devices_each=1,
        threads=hardware.threads,
        timeout_s=hardware.rank.timeout_s,
    )


def _part(name: str) -> str:
    return name.removesuffix(".parquet")


def _run(
    judge: Judge,
    judge_artifact: Artifact | None,
    prompts: ArtifactFile,
    hardware: Hardware,
    share: Sequence[tuple[Contest, str]],
) -> RankRun:
    grouped: dict[str, list[tuple[Contest, str]]] = {}
    for contest, name in share:
        grouped.setdefault(contest.workspace.fingerprint, []).append((contest, name))
    return RankRun(
        judge=judge,
        judge_artifact=None if judge_artifact is None else judge_artifact.reference,
        prompts=prompts.reference,
        device=hardware.device,
        tokens_per_batch=hardware.rank.tokens_per_batch,
        contests=tuple(_chunks(group[0][0], [name for _, name in group]) for group in grouped.values()),
        pairs=sum(contest.pairs[name] for contest, name in share),
    )


def _chunks(contest: Contest, names: Sequence[str]) -> Chunks:
    return Chunks(
        stage=contest.workspace.stage,
        fingerprint=contest.workspace.fingerprint,
        responses=contest.responses.reference,
        against=None if contest.against is None else contest.against.reference,
        names=tuple(names),
        order=contest.order,
    )


def _adopt(contest: Contest, judge: Judge) -> dict[str, int]:
    records = {name: newest_part(contest.workspace, name) for name in contest.pairs}
    counts: dict[str, int] = {}
    for name, record in records.items():
        if record is None:
            raise JudgeError(f"{contest.workspace.stage}: {name} was not judged though every worker ended well; run again")
        for key, count in record.counts.items():
            counts[key] = counts.get(key, 0) + count
    _refuse_too_many_open(contest, judge, counts)
    for record in records.values():
        if record is not None:
            contest.workspace.adopt_part(record)
    return counts


def _refuse_too_many_open(contest: Contest, judge: Judge, counts: Mapping[str, int]) -> None:
    left, pairs, share = counts.get("unjudged", 0), counts.get("pairs", 0), open_share(judge)
    if left > share * pairs:
        reasons = ", ".join(
            f"{name.removeprefix('unjudged_').replace('_', ' ')}: {count}"
            for name, count in sorted(counts.items())
            if name.startswith("unjudged_") and count
        )
        raise JudgeError(
            f"{contest.workspace.stage}: {left} of {pairs} pairs have no verdict ({reasons or 'no reason was recorded'}); "
            f"expected at most a share of {share:g}, the judge's max_unjudged: run again when the server answers, "
            "and only these pairs are asked about"
        )
