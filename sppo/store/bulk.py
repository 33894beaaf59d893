"""Files to and from S3 at the line's rate: awscrt, the AWS client in C. Parallel parts, bounded memory, retries of its own.

Every part carries a CRC32 that a server which knows it checks. Some do not, and take a part whose bytes changed on the way; so
over a line that does not protect itself (plain http) the server is asked what arrived. A download is of one object throughout
(If-Match), and is hashed from its file.
"""

import logging
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sppo.errors import StoreError
from sppo.fingerprint import file_sha256
from sppo.store.endpoint import Endpoint, find_endpoint
from sppo.store.etag import etags
from sppo.store.waiting import Patience, outwait, stalled, unreachable

log = logging.getLogger(__name__)

PART_BYTES = 8 << 20
CONNECTIONS = 8
"""At a time, over all transfers of a client: with the parts' size, what bounds its memory."""
UPLOADS = 2
"""Of one file, at most: each is several requests, with attempts of their own."""


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
    return BulkClient(endpoint, bucket, prefix, patience)


@cache
def _say(level: int, choice: str) -> None:
    log.log(level, choice)


class BulkClient:
    """Whole files to and from one bucket, and the sizes of many objects at a time. Usable from several threads."""

    def __init__(self, endpoint: Endpoint, bucket: str, prefix: str, patience: Patience) -> None:
        from awscrt import s3

        self._s3 = s3
        self._endpoint = endpoint
        self._folder = "/".join(part for part in (endpoint.path, quote(prefix, safe="/~")) if part)
        self._patience = patience
        self._name = f"s3://{bucket}/{prefix}".rstrip("/") + f" on {'https' if endpoint.tls else 'http'}://{endpoint.host}"
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
        """Upload a file; it appears whole, with the file's bytes, or not at all. Raises StoreError."""
        why = ""
        for _ in range(UPLOADS):
            try:
                with ThreadPoolExecutor(1) as beside:
                    expected = beside.submit(self._expected_etags, path)
                    self._send(key, path)
                    if self._arrived(key, path, expected.result()):
                        return
                why = "other bytes arrived than were sent"
                log.warning("%s arrived with other bytes than were sent to the store at %s", key, self._name)
            except _MissingError:
                # the answer to the last request of a large upload was lost: asked again, the server knows of no such upload
                why = "the server forgot the upload"
        raise unreachable(f"upload {key} to", self._name, f"{why}, {UPLOADS} times")

    def _expected_etags(self, path: Path) -> set[str]:
        return set() if self._endpoint.tls else etags(path, PART_BYTES)

    def _arrived(self, key: str, path: Path, expected: set[str]) -> bool:
        """Whether an upload is what the file is. Raises StoreError for another size."""
        answer: dict[str, str] = {}
        size, found = path.stat().st_size, self._size(key, self._ask(key, answer), answer)
        if found != size:
            raise StoreError(
                f"{key} has {found} bytes after its upload to the store at {self._name}, expected {size}; run again"
            )
        if self._endpoint.tls or size == 0 or answer.get("etag", "").strip('"') in expected:
            return True
        # ETags of encrypted objects, and all of some servers, are no MD5s: then the bytes themselves have to say it
        if self._stored_sha256(key) != file_sha256(path):
            return False
        _say(logging.WARNING, f"{self._endpoint.host} names objects by other than their MD5s: it is read back what is uploaded")
        return True

    def _stored_sha256(self, key: str) -> str:
        digest, moved = sha256(), [0]

        def take(chunk: bytes, **_: object) -> None:
            digest.update(chunk)
            moved[0] += len(chunk)

        request = self._request("GET", key, {}, on_body=take)
        self._watch(request, f"read {key} back from", lambda: moved[0])
        return digest.hexdigest()

    def _send(self, key: str, path: Path) -> None:
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
        requests = [self._ask(key, answer) for key, answer in zip(keys, answers, strict=True)]
        try:
            return [self._size(*each) for each in zip(keys, requests, answers, strict=True)]
        finally:
            for request in requests:
                request.cancel()  # those of a failed look-up; on one that is over this does nothing

    def _ask(self, key: str, answer: dict[str, str]) -> Any:
        """What the server says of an object, as headers that the answer will hold."""

        def keep(headers: Sequence[tuple[str, str]], **_: object) -> None:
            answer.update((name.lower(), value) for name, value in headers)

        return self._request("HEAD", key, {}, operation_name="HeadObject", on_headers=keep)

    def _size(self, key: str, request: Any, answer: dict[str, str]) -> int | None:
        doing = f"look up {key} in"
        try:
            self._watch(request, doing, lambda: 0)
        except _MissingError:
            return None
        length = answer.get("content-length", "")
        if not length.isdecimal():
            raise unreachable(doing, self._name, "it gives no size of the object (Content-Length)")
        return int(length)

    def _request(self, method: str, key: str, headers: dict[str, str], **options: Any) -> Any:
        from awscrt import http

        fields = http.HttpHeaders([("Host", self._endpoint.host), *headers.items()])
        request = http.HttpRequest(method, f"/{self._folder}/{quote(key, safe='/~')}", fields)
        kinds = {"PUT": self._s3.S3RequestType.PUT_OBJECT, "GET": self._s3.S3RequestType.GET_OBJECT}
        return self._client.make_request(type=kinds.get(method, self._s3.S3RequestType.DEFAULT), request=request, **options)

    def _watch(self, request: Any, doing: str, progress: Callable[[], int]) -> None:
        """Wait for a request; the client itself would wait for ever for a server that took it and does not answer."""
        finished = request.finished_future
        if not outwait(finished, self._patience, progress):
            request.cancel()
            wait([finished], self._patience.connect_s)  # it writes to nobody's file after this
            raise stalled(doing, self._name, self._patience)
        error = finished.exception()
        if isinstance(error, self._s3.S3ResponseError) and error.status_code == 404 and "NoSuchBucket" not in _code(error):
            raise _MissingError
        if isinstance(error, self._s3.S3ResponseError) and error.status_code == 416:
            raise _EmptyError
        if error is not None:
            raise unreachable(doing, self._name, _reason(error)) from error


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
