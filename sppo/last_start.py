"""How a run was last started: `runs/<name>/latest.json`, replaced at each start."""

from pydantic import BaseModel, ConfigDict

from sppo.runs import Setup, check_run_name, utc_now
from sppo.store import Store
from sppo.store.manifest import parse_record
from sppo.store.seal import sealed


class LastStart(BaseModel):
    """How a run was last started: what `sppo resume` does again."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    hardware: str
    iterations: int | None
    """The last one wanted; None is the recipe's last."""
    at: str
    """UTC, ISO 8601."""
    by: str
    """Who started it, in words."""


def latest_key(run: str) -> str:
    """Where the record of a run's last start lies in the store."""
    return f"runs/{check_run_name(run)}/latest.json"


def find_last_start(store: Store, run: str) -> LastStart | None:
    """How a run was last started; None if it never was."""
    key = latest_key(run)
    content = store.backend.read(key)
    return None if content is None else parse_record(LastStart, content, key)


def remember_start(setup: Setup, hardware: str, iterations: int | None, by: str) -> None:
    """Write down how a run is started now. hardware: a name or a path, as it was given."""
    last = LastStart(hardware=hardware, iterations=iterations, at=utc_now(), by=by)
    setup.store.backend.replace(latest_key(setup.run), sealed(last, latest_key(setup.run)))
