"""log pi_t(y|x) of an iteration: found once, by the weights before any update or from the sampler, and kept in the store.

The part `reference` of the artifact in the making holds it, so a resumed training reads the very same numbers and nothing of
pi_t stays in memory.
"""

import json
from pathlib import Path
from typing import assert_never

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sppo.errors import TrainError
from sppo.store import Workspace
from sppo.store.workspace import write_parquet
from sppo.train.examples import response_columns
from sppo.train.rank import Array, Rank
from sppo.train.reference import audit, sampler_reference

REFERENCE = "reference"
AUDIT = "reference.json"


def reference_of(rank: Rank) -> Array:
    """(R,) log pi_t(y|x) of every response by row, in nats. All ranks call this together.

    Raises TrainError if a value is missing or not finite, or the sampler's are too far from the recomputed ones."""
    import torch

    if rank.workspace.part(REFERENCE) is None:
        if rank.run.resume_from is not None:
            raise TrainError("a checkpoint is there and the reference log-probs are gone; delete the checkpoint and run again")
        values, findings = _found(rank)
        if rank.is_first:
            _commit(rank, values, findings)
        torch.distributed.barrier()
    record = rank.workspace.part(REFERENCE)
    if record is None:
        raise TrainError("the reference log-probs were written and are not there; check the store and run again")
    [entry] = [entry for entry in record.files if entry.name != AUDIT]
    table = pq.read_table(rank.workspace.part_path(entry), page_checksum_verification=True)
    reference: Array = table["logprob"].to_numpy()  # (R,)
    rows, odd = len(rank.examples.responses), int((~np.isfinite(reference)).sum())
    if len(reference) != rows or odd:
        raise TrainError(
            f"{len(reference)} reference log-probs for {rows} responses, {odd} not finite; "
            "expected one finite number each: check the policy's weights"
        )
    return reference


def audit_of(workspace: Workspace) -> dict[str, float]:
    """What the audit of the sampler's log-probs found; empty where they were recomputed."""
    record = workspace.part(REFERENCE)
    entries = [] if record is None else [entry for entry in record.files if entry.name == AUDIT]
    found: dict[str, float] = {}
    for entry in entries:
        found |= json.loads(workspace.part_path(entry).read_text(encoding="utf-8"))
    return found


def _found(rank: Rank) -> tuple[Array, dict[str, float]]:
    training = rank.run.training
    match training.reference:
        case "recompute":
            return rank.log_probs(range(len(rank.examples.responses))), {}
        case "sampler":
            values = sampler_reference(rank.examples, response_columns(rank.responses, "logprobs"))
            return values, audit(rank.examples, values, rank.log_probs, training, rank.run.seed, rank.run.iteration)
        case other:
            assert_never(other)


def _commit(rank: Rank, values: Array, findings: dict[str, float]) -> None:
    owners = [(prompt.prompt_id, response.k) for prompt in rank.examples.prompts for response in prompt.responses]
    columns = {"prompt_id": [owner[0] for owner in owners], "k": [owner[1] for owner in owners], "logprob": values}
    write_parquet(pa.table(columns), rank.file("reference.parquet"))
    files: list[Path] = [rank.file("reference.parquet")]
    if findings:
        files.append(rank.file(AUDIT))
        files[-1].write_text(json.dumps(findings, sort_keys=True) + "\n", encoding="utf-8")
    rank.workspace.commit_part(REFERENCE, files, {"responses": len(owners)})
