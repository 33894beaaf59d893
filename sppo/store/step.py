"""What makes an artifact what it is, and the function that makes it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sppo.fingerprint import stage_fingerprint
from sppo.store.artifact import Artifact, ArtifactFile

if TYPE_CHECKING:
    from sppo.store.workspace import Workspace


@dataclass(frozen=True)
class Identity:
    """What makes a step's result what it is."""

    stage: str
    version: int
    """Raised when the stage's code changes what it computes."""
    recipe: Mapping[str, object]
    """The part of the recipe that the stage reads, as plain JSON values."""
    inputs: Mapping[str, "Artifact | ArtifactFile | str"]
    """Artifacts, single files of them, or the digest of something outside the store."""

    @property
    def input_digests(self) -> dict[str, str]:
        return {name: source if isinstance(source, str) else source.digest for name, source in self.inputs.items()}

    @property
    def lineage(self) -> dict[str, str]:
        return {
            name: f"outside:{source[:16]}" if isinstance(source, str) else source.reference
            for name, source in self.inputs.items()
        }

    @property
    def fingerprint(self) -> str:
        """sha256, 64 hex digits."""
        return stage_fingerprint(self.stage, self.version, self.recipe, self.input_digests)


@dataclass(frozen=True)
class Outcome:
    """What a step says when its files are written."""

    summary: str
    """For the log line: counts in words, such as `20000 prompts x 5 responses, 0 dropped`."""
    counts: Mapping[str, int] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """An identity and the function that makes the artifact."""

    identity: Identity
    run: "Callable[[Workspace], Outcome]"
