"""The store: `build` a step unless its fingerprint is there already. This is the whole of resuming.

An artifact is `<root>/<stage>/<fingerprint>/`: its files under keys that hold their sha256, then
`manifest.json`, last and once.
No manifest, no artifact. Heavy stages commit parts (chunks, checkpoints) under the same fingerprint as they finish, so a
resumed stage does only what is missing.
"""

import json
import logging
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

from sppo import __version__
from sppo.errors import CorruptArtifactError, StoreError
from sppo.fingerprint import stage_fingerprint
from sppo.progress import Report, silent
from sppo.store import leases
from sppo.store.artifact import Artifact
from sppo.store.backend import Backend, open_backend
from sppo.store.leases import Lease
from sppo.store.manifest import Manifest, identity_difference, mend, parse_record
from sppo.store.objects import Objects
from sppo.store.preflight import preflight
from sppo.store.room import naming_full_disks
from sppo.store.step import Identity, Outcome, Step
from sppo.store.workspace import Workspace

log = logging.getLogger(__name__)

Record = TypeVar("Record", bound=BaseModel)
REFERENCE = re.compile(r"^[a-z][a-z-]{0,40}/[0-9a-f]{64}$")


class Store:
    """Artifacts below one URL: a folder, `file://`, `s3://bucket/prefix`, `memory://`.

    scratch: a local folder for work in progress, logs and copies of remote objects; $SPPO_SCRATCH or ~/.cache/sppo if none is
    given."""

    def __init__(self, url: str, scratch: Path | None = None) -> None:
        self.url = url
        self.backend: Backend = open_backend(url)
        self.scratch = scratch or Path(os.environ.get("SPPO_SCRATCH") or Path.home() / ".cache" / "sppo")

    def check_writable(self) -> None:
        """Try out what commits rest on. Raises StoreError naming store, fault and next move, before any work starts."""
        preflight(self.backend)

    def find(self, stage: str, fingerprint: str) -> Artifact | None:
        """The artifact of a fingerprint, its files' sizes checked; None if nothing is committed.

        Raises CorruptArtifactError for a manifest that is damaged or another artifact's, a file that is missing or has another
        size."""
        return self._find(stage, fingerprint, {})

    def _find(self, stage: str, fingerprint: str, expected: Mapping[str, object]) -> Artifact | None:
        """expected: fields of its manifest besides these two."""
        key = f"{stage}/{fingerprint}/manifest.json"

        def check(manifest: Manifest) -> None:
            difference = identity_difference(manifest, {"stage": stage, "fingerprint": fingerprint, **expected})
            derived = stage_fingerprint(manifest.stage, manifest.version, manifest.recipe, manifest.inputs)
            if not difference and derived != fingerprint:
                difference = f"its stage, version, recipe and inputs have the fingerprint {derived} instead of {fingerprint}"
            if difference:
                raise CorruptArtifactError(f"{key} is another artifact's manifest: {difference}; {mend(stage, fingerprint)}")

        manifest = self.record(Manifest, key, check)
        if manifest is None:
            return None
        Objects(self.backend, self.scratch, stage, fingerprint).check((*manifest.files, *manifest.logs))
        return Artifact(self.backend, manifest, self.scratch)

    def record(self, kind: type[Record], key: str, check: Callable[[Record], None] = lambda record: None) -> Record | None:
        """A record, or None where there is none. Raises CorruptArtifactError.

        One that cannot be right is read once more, since a line may err where the store does not."""
        content = self.backend.read(key)
        try:
            return None if content is None else parse_record(kind, content, key, check=check)
        except CorruptArtifactError as error:
            again = self.backend.read(key)
            if again is None or again == content:
                raise
            log.warning("%s came back otherwise the second time it was read: %s", key, error)
            return parse_record(kind, again, key, check=check)

    def open(self, reference: str) -> Artifact:
        """The artifact of `stage/fingerprint`. Raises StoreError if it is not there."""
        if not REFERENCE.fullmatch(reference):
            raise StoreError(f"artifact reference {reference!r}; expected stage/ and 64 hex digits")
        stage, fingerprint = reference.split("/")
        artifact = self.find(stage, fingerprint)
        if artifact is None:
            raise StoreError(f"no artifact {reference} in the store at {self.url}; run the iteration that makes it")
        return artifact

    def workspace(self, stage: str, fingerprint: str, report: Report = silent) -> Workspace:
        """A place to make the artifact of a fingerprint in; also how a worker process commits parts of it."""
        return Workspace(self, stage, fingerprint, report)

    def build(self, step: Step, report: Report = silent) -> Artifact:
        """The step's artifact: the committed one, or made now and committed."""
        return self.build_together([step.identity], lambda workspaces: [step.run(workspaces[0])], report)[0]

    def build_together(
        self,
        identities: Sequence[Identity],
        run: Callable[[Sequence[Workspace]], Sequence[Outcome]],
        report: Report = silent,
    ) -> list[Artifact]:
        """Several artifacts of one effort, such as two sets of prompts answered by one engine load.

        `run` gets the workspaces of the identities that are not committed, in their order, and returns an outcome for each."""
        found = {identity.fingerprint: self._adopt(identity) for identity in identities}
        with ExitStack() as held:
            for identity in sorted(identities, key=lambda each: each.fingerprint):  # in one order: none waits for one who waits
                if found[identity.fingerprint] is None:
                    found[identity.fingerprint] = self._take(identity, held)
            missing = [identity for identity in identities if found[identity.fingerprint] is None]
            if missing:
                made = self._make(missing, run, report)
                found |= {identity.fingerprint: artifact for identity, artifact in zip(missing, made, strict=True)}
        return [artifact for identity in identities if (artifact := found[identity.fingerprint]) is not None]

    def _take(self, identity: Identity, held: ExitStack) -> Artifact | None:
        """Hold the lease of an artifact until the stack is closed; or the artifact, if another run makes it meanwhile."""
        from sppo.launch.processes import check_going_on  # which knows of stores

        lease = Lease(self.backend, identity.stage, identity.fingerprint)
        held.callback(lease.release)
        told = False
        while at_it := lease.take():
            if not told:
                log.info("%s: %s makes %s; waiting for it", identity.stage, at_it, lease.label)
                told = True
            time.sleep(leases.POLL_S)
            check_going_on(identity.stage)
            if (artifact := self._adopt(identity)) is not None:
                return artifact
        return self._adopt(identity)  # another run may have committed it just before

    def _make(
        self,
        missing: Sequence[Identity],
        run: Callable[[Sequence[Workspace]], Sequence[Outcome]],
        report: Report,
    ) -> list[Artifact]:
        started = time.monotonic()
        workspaces = [self.workspace(identity.stage, identity.fingerprint, report) for identity in missing]
        try:
            with naming_full_disks(self.scratch):
                outcomes = run(workspaces)
                seconds = time.monotonic() - started
                made = zip(missing, workspaces, outcomes, strict=True)
                return [self._commit(identity, workspace, outcome, seconds) for identity, workspace, outcome in made]
        finally:
            for workspace in workspaces:
                workspace.clean()

    def _adopt(self, identity: Identity) -> Artifact | None:
        expected = {
            "version": identity.version,
            "recipe": _as_json(identity.recipe),
            "inputs": identity.input_digests,
        }
        artifact = self._find(identity.stage, identity.fingerprint, expected)
        if artifact is None:
            return None
        log.info("%s: nothing to do, committed -> %s", identity.stage, artifact.name)
        return artifact

    def _commit(self, identity: Identity, workspace: Workspace, outcome: Outcome, seconds: float) -> Artifact:
        manifest = Manifest(
            stage=identity.stage,
            version=identity.version,
            fingerprint=identity.fingerprint,
            recipe=_as_json(identity.recipe),
            inputs=identity.input_digests,
            lineage=identity.lineage,
            files=tuple(sorted(workspace.files, key=lambda entry: entry.name)),
            logs=tuple(sorted(workspace.logs, key=lambda entry: entry.name)),
            counts=dict(outcome.counts),
            metrics={**outcome.metrics, **workspace.metrics},
            seconds=round(seconds, 3),
            code_version=__version__,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        record = f"{identity.stage}/{identity.fingerprint}/manifest.json"
        created = self.backend.create(record, manifest.to_bytes(record))
        for key in self.backend.list(f"{identity.stage}/{identity.fingerprint}/work"):
            self.backend.delete(key)  # who was at work: of no use any more
        artifact = self.find(identity.stage, identity.fingerprint)
        if artifact is None:
            raise StoreError(f"the manifest of {identity.stage}/{identity.fingerprint} was written and is not there")
        if not created:
            log.info("%s: another writer committed first, its artifact is used", identity.stage)
        log.info("%s: %s, %.1f s -> %s", identity.stage, outcome.summary, seconds, artifact.name)
        return artifact


def _as_json(value: Mapping[str, object]) -> dict[str, object]:
    return dict(json.loads(json.dumps(dict(value))))  # tuples become lists, as in a manifest read back
