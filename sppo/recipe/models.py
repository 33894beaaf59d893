"""Where weights come from."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from sppo.configuration import Frozen

LONGEST_NAME = 255
"""Bytes of a file's name, on the file systems that there are."""


def _can_be_found(place: str) -> str:
    longest = max(len(name.encode("utf-8", "replace")) for name in place.split("/"))
    if not place.strip() or "\0" in place or longest > LONGEST_NAME:
        cause = "is empty" if not place.strip() else "holds NUL" if "\0" in place else f"has a name of {longest} bytes"
        raise ValueError(f"{cause}, which no file can have; expected a path, a name of the hub or a URL")
    return place


Location = Annotated[str, AfterValidator(_can_be_found)]
"""Where something lies: a path, a name of the hub or a URL."""
HubId = Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*/[\w.-]+$")]


class HubModel(Frozen):
    """A model of the Hugging Face hub, pinned to a revision when the run starts."""

    kind: Literal["hub"]
    model: HubId
    revision: str = "main"


class FolderModel(Frozen):
    """A model in a folder, safetensors only."""

    kind: Literal["folder"]
    path: Location
    """Local; a judge's may also be a URL of object storage, such as s3://bucket/judges/pairrm."""


class WorldModel(Frozen):
    """The tiny world's own, made from scratch."""

    kind: Literal["world"]


class StoredModel(Frozen):
    """A policy that the run's own store holds already, such as the last published one."""

    kind: Literal["stored"]
    artifact: Annotated[str, Field(pattern=r"^(policy|train)/[0-9a-f]{64}$")]
    """`stage/fingerprint`."""
    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    """Of its content, filled in when the run starts: an artifact made anew to other bytes is refused."""


ModelSource = Annotated[HubModel | FolderModel | WorldModel, Field(discriminator="kind")]
PretrainedSource = Annotated[HubModel | FolderModel, Field(discriminator="kind")]
PolicySource = Annotated[HubModel | FolderModel | WorldModel | StoredModel, Field(discriminator="kind")]
