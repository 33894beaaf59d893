"""log pi_s(y_i | x, y_<i) of the held-out answers of another policy, pi_t: with pi_t's own, what KL(pi_t || pi_s) is estimated
from (sppo.checks.divergence).

Rows are `Score`s: raw log-probs of the stored token ids, from a forward pass of the training code in the recipe's dtype, by
worker processes. Chunks follow the chunk files of the answers (score's chunk-00007 is of sample's chunk-00007) and are
committed as they finish.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sppo.configuration import Frozen
from sppo.errors import EvaluationError, StoreError
from sppo.hardware import Hardware
from sppo.launch import HERE, Group, Launcher, keep_accounts
from sppo.policy import vocabulary_size
from sppo.progress import Progress, Report, silent
from sppo.recipe import Recipe
from sppo.stages import stage_identity
from sppo.store import Artifact, Outcome, Step, Store, Workspace
from sppo.store.artifact import ArtifactFile

WORKER = "sppo.workers.score"
COLUMNS = ("prompt_id", "k", "token_ids")
"""Of answers: all that is read here."""


class ScoreRun(Frozen):
    """What a score worker is told."""

    fingerprint: str
    """Of the artifact in the making."""
    policy: str
    """Artifact reference, `stage/fingerprint`, as `answers`."""
    answers: str
    names: tuple[str, ...]
    """Chunk files of the answers."""
    total: int
    """Answers in them, for its progress."""
    prompts: str
    """Reference of the prompt file, `stage/fingerprint#name`."""
    dtype: Literal["float32", "bfloat16"]
    device: Literal["cpu", "cuda"]
    tokens_per_device: int
    """Computed at once, each prompt counted once with its answers."""


def build(
    store: Store,
    recipe: Recipe,
    hardware: Hardware,
    policy: Artifact,
    prompts: ArtifactFile,
    answers: Artifact,
    report: Report = silent,
    launch: Launcher = HERE,
) -> Artifact:
    """log pi_s of every token of `answers`, which another policy gave to these prompts; what is committed costs nothing.

    policy: pi_s, as it was trained or as engines load it. Before it is loaded, raises EvaluationError for an answer that is to
    none of these prompts, or has a token that pi_s does not know."""
    identity = stage_identity("score", recipe, {"policy": policy, "prompts": prompts, "sample": answers})

    def run(workspace: Workspace) -> Outcome:
        sizes = _check(policy, prompts, answers)
        missing = [name for name in sizes if workspace.part(part_name(name)) is None]
        workspace.note_found(len(sizes) - len(missing), len(sizes))
        if missing:
            whole = ScoreRun(
                fingerprint=identity.fingerprint,
                policy=policy.reference,
                answers=answers.reference,
                names=tuple(sizes),
                total=sum(sizes.values()),
                prompts=prompts.reference,
                dtype=recipe.policy.dtype,
                device=hardware.device,
                tokens_per_device=hardware.train.tokens_per_device,
            )
            _score_missing(whole, sizes, missing, hardware, workspace, launch)
        return _outcome(policy, sizes, workspace)

    return store.build(Step(identity, run), report)


def read_answers(answers: Artifact, name: str) -> pa.Table:
    """The COLUMNS of a chunk file."""
    return pq.read_table(answers.path(name), columns=list(COLUMNS), page_checksum_verification=True)


def part_name(name: str) -> str:
    """Of a chunk file's part."""
    return name.removesuffix(".parquet")


def _check(policy: Artifact, prompts: ArtifactFile, answers: Artifact) -> dict[str, int]:
    """Answers in each chunk file."""
    vocabulary = vocabulary_size(policy)
    asked = prompts.table()
    known = set(asked["prompt_id"].to_pylist())
    _check_ids(policy, vocabulary, asked, prompts.name)
    sizes: dict[str, int] = {}
    for name in answers.file_names(".parquet"):
        rows = read_answers(answers, name)
        unknown = set(rows["prompt_id"].to_pylist()) - known
        if unknown:
            raise EvaluationError(
                f"{answers.name}, {name}: prompt {min(unknown)} is not in {prompts.name}; score the answers with the prompts "
                "that were sampled"
            )
        _check_ids(policy, vocabulary, rows, f"{answers.name}, {name}")
        sizes[name] = rows.num_rows
    return sizes


def _check_ids(policy: Artifact, vocabulary: int | None, rows: pa.Table, where: str) -> None:
    highest = pc.max(pc.list_flatten(rows["token_ids"])).as_py()
    if vocabulary is None or highest is None or highest < vocabulary:
        return
    row = next(row for row in rows.to_pylist() if max(row["token_ids"], default=0) >= vocabulary)
    answer = f"answer {row['k']} to prompt" if "k" in row else "prompt"
    raise EvaluationError(
        f"{where}: {answer} {row['prompt_id']} has token id {max(row['token_ids'])}; policy {policy.name} knows ids below "
        f"{vocabulary}: score with a policy that has the tokenizer of the one that answered"
    )


def _score_missing(
    whole: ScoreRun,
    sizes: Mapping[str, int],
    missing: Sequence[str],
    hardware: Hardware,
    workspace: Workspace,
    launch: Launcher,
) -> None:
    machines = launch.machines(workspace.stage, workspace.fingerprint)
    groups = []
    for number in range(machines):
        # dealt missing or not: a machine that is started again is given what it had left
        share = [name for name in list(sizes)[number::machines] if name in missing]
        hands = [share[hand :: hardware.rank.processes] for hand in range(min(hardware.rank.processes, len(share)))]
        if hands:
            groups.append(_group([_share_of(whole, sizes, hand) for hand in hands], hardware, number + 1, machines))
    before = whole.total - sum(sizes[name] for name in missing)

    def report(progress: Progress) -> None:
        workspace.report(progress.model_copy(update={"done": before + progress.done, "total": whole.total}))

    keep_accounts(workspace, launch.run(groups, workspace.store, report))


def _share_of(whole: ScoreRun, sizes: Mapping[str, int], names: Sequence[str]) -> ScoreRun:
    return whole.model_copy(update={"names": tuple(names), "total": sum(sizes[name] for name in names)})


def _group(runs: Sequence[ScoreRun], hardware: Hardware, number: int, of: int) -> Group:
    """One policy a process and a device, as judges have it: nothing is trained, so nothing is split."""
    return Group(
        stage="score",
        fingerprint=runs[0].fingerprint,
        number=number,
        of=of,
        module=WORKER,
        works=tuple(run.model_dump(mode="json") for run in runs),
        device=hardware.device,
        devices_each=1,
        threads=hardware.threads,
        timeout_s=hardware.rank.timeout_s,
    )


def _outcome(policy: Artifact, sizes: Mapping[str, int], workspace: Workspace) -> Outcome:
    counts = {"prompts": 0, "answers": 0, "tokens": 0}
    for name in sizes:
        record = workspace.part(part_name(name))
        if record is None:
            raise StoreError(f"score: {name} is not in the store, although its worker ended well; run again to score it")
        counts = {key: count + record.counts[key] for key, count in counts.items()}
        workspace.adopt_part(record)
    shown = f"{counts['prompts']} prompts, {counts['answers']} answers, {counts['tokens']} tokens under {policy.name}"
    return Outcome(shown, counts)
