"""Files to and from S3 at the line's rate: awscrt, the AWS client in C. Parallel parts, bounded memory, retries of its own.

Every part carries a CRC32 that a server which knows it checks; a download is of one object throughout (If-Match), and is hashed
from its file. A transfer that fails is an error: nothing is done again in another way.
"""

import logging
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sppo.errors import StoreError
from sppo.fingerprint import file_sha256
from sppo.store.backend import Patience
from sppo.store.endpoint import Endpoint, find_endpoint

log = logging.getLogger(__name__)

PART_BYTES = 8 << 20
CONNECTIONS = 8
"""At a time, over all transfers of a client: with the parts' size, what bounds its memory."""
LOOK_S = 0.1
"""Between two looks at whether a transfer moves on."""


def open_bulk(bucket: str, prefix: str, patience: Patience) -> "BulkClient | None":
    """The bulk client of a bucket, or None where s3fs has to move the files; which, and why, is logged once a process."""
    if find_spec("awscrt") is None:
        _say(logging.WARNING, "awscrt is not installed: s3fs moves large files, at about half the rate; pip install awscrt")
        return None
    endpoint = find_endpoint(bucket)
    if endpoint.proxy:
        _say(logging.WARNING, f"{endpoint.host} is behind a proxy, which awscrt does not know: s3fs moves large files")
        return None
    _say(logging.INFO, f"awscrt moves large files to and from {endpoint.host}")
    return BulkClient(endpoint, prefix, patience)


@cache
def _say(level: int, choice: str) -> None:
    log.log(level, choice)


class BulkClient:
    """Whole files to and from one bucket, and the sizes of many objects at a time. Usable from several threads."""

    def __init__(self, endpoint: Endpoint, prefix: str, patience: Patience) -> None:
        from awscrt import s3

        self._s3 = s3
        self._endpoint = endpoint
        self._folder = "/".join(part for part in (endpoint.path, quote(prefix, safe="/~")) if part)
        self._patience = patience
        self._client = s3.S3Client(
            bootstrap=_bootstrap(),
            region=endpoint.region,
            tls_mode=s3.S3RequestTlsMode.ENABLED if endpoint.tls else s3.S3RequestTlsMode.DISABLED,
            tls_connection_options=endpoint.tls_options(),
            signing_config=s3.create_default_s3_signing_config(
                region=endpoint.region, credential_provider=endpoint.credentials_provider()
            ),
            part_size=PART_BYTES,
            max_active_connections_override=CONNECTIONS,
            memory_limit=1 << 30,  # the least it takes; what it uses is CONNECTIONS parts and some
            connect_timeout_ms=int(1000 * patience.connect_s),
            # full jitter below half a second, a second, two: a server that restarts is waited for, a wrong port is not
            retry_config=s3.S3RetryConfig(max_retries=4, max_backoff_secs=5),
        )

    def put(self, key: str, path: Path) -> None:
        """Upload a file; it appears whole or not at all. Raises StoreError."""
        checksum = self._s3.S3ChecksumConfig(
            algorithm=self._s3.S3ChecksumAlgorithm.CRC32, location=self._s3.S3ChecksumLocation.HEADER
        )
        moved = [0]

        def count(progress: int, **_: object) -> None:
            moved[0] += progress

        request = self._request(
            "PUT",
            key,
            {"Content-Length": str(path.stat().st_size)},
            send_filepath=str(path),
            checksum_config=checksum if self._endpoint.checksums else None,
            on_progress=count,
        )
        self._watch(request, f"upload {key} to", lambda: moved[0])

    def get(self, key: str, path: Path) -> str | None:
        """Download to a local file that exists: the sha256 of what arrived, None if there is no object. Raises StoreError."""
        moved = [0]

        def count(progress: int, **_: object) -> None:
            moved[0] += progress

        request = self._request("GET", key, {}, recv_filepath=str(path), on_progress=count)
        try:
            self._watch(request, f"download {key} from", lambda: moved[0])
        except _MissingError:
            return None
        except _EmptyError:
            path.write_bytes(b"")
        # Hashed after it arrived: the client writes parts in no order that a hash could follow, and handing them to Python in
        # order costs more (1.7 s for 512 MB) than reading them once more from memory (1.1 s).
        return file_sha256(path)

    def sizes(self, keys: Sequence[str]) -> list[int | None]:
        """Bytes of each object, None where there is none, each asked for. Raises StoreError."""
        answers: list[dict[str, str]] = [{} for _ in keys]

        def ask(key: str, answer: dict[str, str]) -> Any:
            def keep(headers: Sequence[tuple[str, str]], **_: object) -> None:
                answer.update((name.lower(), value) for name, value in headers)

            return self._request("HEAD", key, {}, operation_name="HeadObject", on_headers=keep)

        requests = [ask(key, answer) for key, answer in zip(keys, answers, strict=True)]
        sizes: list[int | None] = []
        for key, request, answer in zip(keys, requests, answers, strict=True):
            try:
                self._watch(request, f"look up {key} in", lambda: 0)
                sizes.append(int(answer["content-length"]))
            except _MissingError:
                sizes.append(None)
        return sizes

    def _request(self, method: str, key: str, headers: dict[str, str], **options: Any) -> Any:
        from awscrt import http

        fields = http.HttpHeaders([("Host", self._endpoint.host), *headers.items()])
        request = http.HttpRequest(method, f"/{self._folder}/{quote(key, safe='/~')}", fields)
        kinds = {"PUT": self._s3.S3RequestType.PUT_OBJECT, "GET": self._s3.S3RequestType.GET_OBJECT}
        return self._client.make_request(type=kinds.get(method, self._s3.S3RequestType.DEFAULT), request=request, **options)

    def _watch(self, request: Any, doing: str, progress: Callable[[], int]) -> None:
        """Wait for a request; the client itself would wait for ever for a server that took it and does not answer."""
        finished: Future[None] = request.finished_future
        seen, since = progress(), time.monotonic()
        while not wait([finished], LOOK_S).done:
            if (now := progress()) != seen:
                seen, since = now, time.monotonic()
            elif time.monotonic() - since > self._patience.stall_s:
                request.cancel()
                wait([finished], self._patience.read_s)  # it writes to nobody's file after this
                raise StoreError(
                    f"cannot {doing} the store at {self._endpoint.host}: nothing moved for {self._patience.stall_s:g} s; "
                    "see that the server answers, then run again"
                )
        error = finished.exception()
        if isinstance(error, self._s3.S3ResponseError) and error.status_code == 404 and "NoSuchBucket" not in _code(error):
            raise _MissingError
        if isinstance(error, self._s3.S3ResponseError) and error.status_code == 416:
            raise _EmptyError
        if error is not None:
            raise StoreError(f"cannot {doing} the store at {self._endpoint.host}: {_reason(error)}") from error


class _MissingError(Exception):
    """There is no such object."""


class _EmptyError(Exception):
    """The object has no first byte."""


def _code(error: Any) -> str:
    """The server's own word, such as `NoSuchBucket`; empty for an answer without a body."""
    found = re.search(rb"<Code>(\w+)</Code>", error.body or b"")
    return found.group(1).decode() if found else ""


def _reason(error: BaseException) -> str:
    if isinstance(getattr(error, "status_code", None), int):
        return f"the server answered {error.status_code} {_code(error)}".rstrip()  # type: ignore[attr-defined]
    return f"{getattr(error, 'message', error)} ({getattr(error, 'name', type(error).__name__)})"


@cache
def _bootstrap() -> Any:
    """Threads that all clients of the process share."""
    from awscrt import io

    threads = io.EventLoopGroup(num_threads=4)
    return io.ClientBootstrap(threads, io.DefaultHostResolver(threads))
