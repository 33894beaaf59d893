"""A store in a bucket, by s3fs: it writes every small record. Files move through a bulk client where one can serve
(sppo.store.bulk).

Every operation ends: a server that says nothing is an error when patience is over, whatever its client would still try.
"""

import asyncio
import contextlib
import os
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from functools import cached_property
from typing import Any, ClassVar

import fsspec

from sppo.store.bulk import BulkClient, open_bulk
from sppo.store.clock import Written
from sppo.store.remote import REQUESTS, RemoteBackend
from sppo.store.waiting import Patience, outwait, stalled, unreachable


def s3_backend(bucket: str, prefix: str, patience: Patience) -> "S3Backend":
    """Objects of a bucket, below a prefix; credentials, region and endpoint as every AWS client finds them."""
    from aiobotocore.session import AioSession
    from botocore.handlers import add_expect_header

    session = AioSession()
    # aiohttp waits without end for the server's leave to send a body, and each record would take two round trips
    session.unregister("before-call.s3", add_expect_header)
    # The listing cache never expires and instances are shared: both would show us a store that no longer is.
    filesystem = fsspec.filesystem(
        "s3",
        session=session,
        use_listings_cache=False,
        skip_instance_cache=True,
        config_kwargs={
            "connect_timeout": patience.connect_s,
            "read_timeout": patience.read_s,
            "retries": {"total_max_attempts": 3, "mode": "standard"},
            "max_pool_connections": REQUESTS,
            "request_checksum_calculation": "when_required",  # over TLS it is a trailer, which many servers cannot read
        },
    )
    filesystem.retries = 2  # each of them is three attempts: on its defaults a black hole takes half an hour
    return S3Backend(filesystem, bucket, prefix, patience)


class S3Backend(RemoteBackend):
    """A bucket, or a prefix of one."""

    read_options: ClassVar[Mapping[str, Any]] = {"max_concurrency": 1}  # else it asks for the size before each record
    put_options: ClassVar[Mapping[str, Any]] = {"chunksize": 16 << 20, "max_concurrency": 8}  # its defaults would hold 500 MB
    creating = contextlib.nullcontext()

    def __init__(self, filesystem: "fsspec.AbstractFileSystem", bucket: str, prefix: str, patience: Patience) -> None:
        from botocore.exceptions import BotoCoreError, ClientError

        super().__init__(filesystem, f"{bucket}/{prefix}".rstrip("/"))
        self.failures = (OSError, BotoCoreError, ClientError)
        self.patience = patience
        self._bucket, self._prefix = bucket, prefix

    @property
    def name(self) -> str:
        client = getattr(self.filesystem, "_s3", None)  # made with the first request
        named = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "S3"
        return f"s3://{self.root} on {named if client is None else client.meta.endpoint_url}"

    @cached_property
    def bulk(self) -> BulkClient | None:  # type: ignore[override]
        """Chosen at the first file."""
        return open_bulk(self._bucket, self._prefix, self.patience)

    def _call(self, doing: str, method: str, *values: Any, progress: Callable[[], int] | None = None, **options: Any) -> Any:
        coroutine = getattr(self.filesystem, f"_{method}")(*values, **options)
        return self._finish(doing, coroutine, progress or (lambda: 0))

    def _finish(self, doing: str, coroutine: Any, progress: Callable[[], int]) -> Any:
        future = asyncio.run_coroutine_threadsafe(coroutine, self.filesystem.loop)
        if not outwait(future, self.patience, progress):
            future.cancel()
            raise stalled(doing, self.name, self.patience)
        return future.result()

    def _head(self, key: str) -> dict[str, Any] | None:
        """What the server says of an object, or None where there is none."""
        doing = f"look up {key} in"
        bucket, name, _ = self.filesystem.split_path(self._path(key))
        with self._named(doing):
            try:
                answer: dict[str, Any] = self._call(doing, "call_s3", "head_object", Bucket=bucket, Key=name)
                return answer
            except FileNotFoundError:
                return None

    def _size(self, key: str) -> int | None:
        answer = self._head(key)
        if answer is not None and "ContentLength" not in answer:
            raise unreachable(f"look up {key} in", self.name, "it gives no size of the object (Content-Length)")
        return None if answer is None else int(answer["ContentLength"])

    def written(self, key: str) -> Written | None:
        answer = self._head(key)
        if answer is None:
            return None
        at, date = answer.get("LastModified"), answer["ResponseMetadata"]["HTTPHeaders"].get("date")
        if at is None or date is None:  # a server without a clock: who waits looks whether anything changes
            return Written(0.0, 0.0)
        return Written(at.timestamp(), parsedate_to_datetime(date).timestamp() - at.timestamp())

    def _keys(self, prefix: str) -> list[str]:
        bucket, folder, _ = self.filesystem.split_path(self._path(prefix).rstrip("/"))
        found: list[str] = []

        async def pages() -> None:
            async for entry in self.filesystem._iterdir(bucket, delimiter="", prefix=f"{folder}/" if folder else ""):
                found.append(str(entry["Key"]))

        self._finish(f"list {prefix or 'all'} of", pages(), lambda: len(found))
        return [path for path in found if not path.endswith("/")]
