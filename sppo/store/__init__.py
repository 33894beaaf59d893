"""Artifacts: found by fingerprint, committed whole, verified when opened."""

from sppo.store.artifact import Artifact, ArtifactFile
from sppo.store.manifest import FileEntry, Manifest, PartRecord
from sppo.store.store import Identity, Outcome, Step, Store, Workspace

__all__ = [
    "Artifact",
    "ArtifactFile",
    "FileEntry",
    "Identity",
    "Manifest",
    "Outcome",
    "PartRecord",
    "Step",
    "Store",
    "Workspace",
]
