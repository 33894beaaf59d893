"""A group as a job: described in the store, for whichever worker takes it."""

import re

from sppo.errors import CorruptArtifactError
from sppo.launch import Group
from sppo.launch.work import work_key
from sppo.store import Store
from sppo.store.manifest import parse_record
from sppo.store.seal import sealed

MODULE = re.compile(r"sppo\.(workers\.[a-z_]+|world\.worker)")


def job_key(group: Group) -> str:
    """Where a group's job lies in the store; it goes away when the artifact is committed."""
    return work_key(group.stage, group.fingerprint, group.number, group.of).replace(".json", ".job.json")


def write_job(store: Store, group: Group) -> str:
    """Describe a group for the worker that takes it. Result: the key."""
    key = job_key(group)
    store.backend.replace(key, sealed(group, key))
    return key


def read_job(store: Store, key: str) -> Group | None:
    """The group of a job; None if there is no such job any more.

    Raises CorruptArtifactError for one that would start another module than a worker of this project."""
    content = store.backend.read(key)
    if content is None:
        return None
    group = parse_record(Group, content, key)
    if not MODULE.fullmatch(group.module):
        raise CorruptArtifactError(
            f"{key} asks for the module {group.module!r}; expected a worker of this project, such as sppo.workers.rank: "
            "it was not written by a run, so delete it and see who may write to the store"
        )
    return group
