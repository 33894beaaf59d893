"""Credentials of a store, kept by the Prefect server: named in a flow's parameters as `block/NAME`, never written out there."""

import os

from prefect.blocks.core import Block
from pydantic import Field, SecretStr

from sppo.errors import StoreError

PREFIX = "block/"


class SppoStore(Block):
    """A store in S3: where it is, and the keys to it."""

    _block_type_name = "SPPO store"
    _block_type_slug = "sppo-store"
    _description = "Where artifacts are kept, and the credentials for it. Name it in a flow's parameters as block/NAME."

    url: str = Field(title="URL", description="Such as s3://bucket/prefix, without credentials.")
    endpoint_url: str | None = Field(default=None, title="Endpoint", description="Of the server, if it is not AWS.")
    access_key_id: SecretStr | None = Field(default=None, title="Access key id")
    secret_access_key: SecretStr | None = Field(default=None, title="Secret access key")
    region: str | None = Field(default=None, title="Region")

    def environment(self) -> dict[str, str]:
        """Variables that s3fs and its kin read, here and in worker processes."""
        secrets = {"AWS_ACCESS_KEY_ID": self.access_key_id, "AWS_SECRET_ACCESS_KEY": self.secret_access_key}
        values = {name: secret.get_secret_value() for name, secret in secrets.items() if secret is not None}
        plain = {"AWS_ENDPOINT_URL": self.endpoint_url, "AWS_DEFAULT_REGION": self.region}
        return {**values, **{name: value for name, value in plain.items() if value}}


def unlocked(store: str) -> str:
    """The URL of a store; the keys of `block/NAME` go into this process's environment, which its workers inherit.

    Raises StoreError if the server has no such block."""
    if not store.startswith(PREFIX):
        return store
    name = store.removeprefix(PREFIX)
    try:
        block = SppoStore.load(name, _sync=True)  # type: ignore[call-arg]
    except ValueError as problem:
        raise StoreError(
            f"the Prefect server has no block {name!r} of type {SppoStore._block_type_name!r}; expected one made in its UI "
            "(Blocks), after: prefect block register -m flows.blocks"
        ) from problem
    if not isinstance(block, SppoStore):
        raise StoreError(f"block {name!r} is {type(block).__name__}; expected one of type {SppoStore._block_type_name!r}")
    os.environ.update(block.environment())
    return block.url
