"""A group as a job: described in the store, for whichever worker takes it."""

from sppo.launch import Group
from sppo.launch.work import work_key
from sppo.store import Store
from sppo.store.manifest import parse_record


def job_key(group: Group) -> str:
    """Where a group's job lies in the store; it goes away when the artifact is committed."""
    return work_key(group.stage, group.fingerprint, group.number, group.of).replace(".json", ".job.json")


def write_job(store: Store, group: Group) -> str:
    """Describe a group for the worker that takes it. Result: the key."""
    key = job_key(group)
    store.backend.replace(key, (group.model_dump_json(indent=1) + "\n").encode())
    return key


def read_job(store: Store, key: str) -> Group | None:
    """The group of a job; None if there is no such job any more."""
    content = store.backend.read(key)
    return None if content is None else parse_record(Group, content, key)
