"""Whether a run goes on after iteration t: what its gates said, and whether someone overruled them.

`runs/<name>/iteration-<t>-overruled.json` says that the run was told to go on in spite of its gates: by whom, when, and what
they had said. It holds for that verdict alone: an iteration that is made anew is decided on anew.
"""

import logging

from pydantic import BaseModel, ConfigDict, Field

from sppo.check import read_verdict
from sppo.errors import GateError
from sppo.runs import Entry, IterationIndex, check_run_name, utc_now
from sppo.store import Store
from sppo.store.manifest import parse_record
from sppo.store.seal import sealed

log = logging.getLogger(__name__)


class Overruling(BaseModel):
    """Gates that an iteration failed, and that the run went on all the same."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: str
    iteration: int = Field(ge=1)
    check: Entry
    """The artifact that the verdict is in."""
    reasons: tuple[str, ...]
    """Of the gates that were not passed."""
    by: str
    """Who told it to go on, in words."""
    at: str
    """UTC, ISO 8601."""


def pass_gates(store: Store, index: IterationIndex, overruled_by: str | None = None) -> None:
    """Go on after an iteration, if its gates were passed, or are overruled by someone, now or before.

    Raises GateError with every reason if the run ends here."""
    check = index.artifacts.get("check")
    verdict = None if check is None else read_verdict(store.open(check.reference))
    if check is None or verdict is None or verdict.passed:
        return
    known = find_overruling(store, index.run, index.iteration)
    if known is not None and known.check == check:
        log.warning("%s; overruled by %s on %s, the run goes on", verdict.summary(), known.by, known.at)
        return
    if overruled_by is None:
        raise GateError(
            f"run {index.run} stops after iteration {index.iteration}: {'; '.join(verdict.reasons())}. "
            "What it trained is kept: look at the answers, or go on all the same with --no-gate"
        )
    made = Overruling(
        run=index.run,
        iteration=index.iteration,
        check=check,
        reasons=tuple(verdict.reasons()),
        by=overruled_by,
        at=utc_now(),
    )
    key = _key(index.run, index.iteration)
    store.backend.replace(key, sealed(made, key))
    log.warning("%s; overruled now by %s, the run goes on", verdict.summary(), overruled_by)


def gates_of(store: Store, index: IterationIndex) -> str:
    """`passed`, `failed` or `overruled`; empty for an iteration without gates."""
    check = index.artifacts.get("check")
    verdict = None if check is None else read_verdict(store.open(check.reference))
    if verdict is None or verdict.passed:
        return "" if verdict is None else "passed"
    known = find_overruling(store, index.run, index.iteration)
    return "overruled" if known is not None and known.check == check else "failed"


def find_overruling(store: Store, run: str, iteration: int) -> Overruling | None:
    """The record of an iteration's gates having been overruled; None if nobody did."""
    content = store.backend.read(_key(run, iteration))
    return None if content is None else parse_record(Overruling, content, _key(run, iteration))


def _key(run: str, iteration: int) -> str:
    return f"runs/{check_run_name(run)}/iteration-{iteration}-overruled.json"
