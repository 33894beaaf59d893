"""Artifacts: found by fingerprint, committed whole, verified when opened."""

from sppo.store.artifact import Artifact, ArtifactFile
from sppo.store.manifest import FileEntry, Manifest, PackSlice, PartRecord
from sppo.store.step import Identity, Outcome, Step
from sppo.store.store import Store
from sppo.store.workspace import Workspace

__all__ = [
    "Artifact",
    "ArtifactFile",
    "FileEntry",
    "Identity",
    "Manifest",
    "Outcome",
    "PackSlice",
    "PartRecord",
    "Step",
    "Store",
    "Workspace",
]
