"""Every kind of store, servers that take connections and never answer, and one that speaks S3 with faults of one's choice."""

import itertools
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import formatdate
from hashlib import md5
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from sppo.store import Store

MEMORY = itertools.count()
KINDS = ["file", "memory", "moto", "ceph", "ceph without awscrt"]


def open_store(kind: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    match kind:
        case "file":
            return Store(f"file://{tmp_path / 'store'}", tmp_path / "scratch")
        case "memory":
            return Store(f"memory://contract-{next(MEMORY)}", tmp_path / "scratch")
        case "moto":
            return Store(request.getfixturevalue("s3_url"), tmp_path / "scratch")
        case "ceph without awscrt":
            monkeypatch.setattr("sppo.store.bulk.find_spec", lambda name: None)
    return Store(request.getfixturevalue("ceph_url"), tmp_path / "scratch")


@pytest.fixture(params=KINDS)
def any_store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    return open_store(request.param, request, tmp_path, monkeypatch)


@pytest.fixture(params=["file", "memory", "moto", "ceph"])
def record_store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """For what is kept in records alone, which move through one client."""
    return open_store(request.param, request, tmp_path, monkeypatch)


def point_at(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret-of-theirs")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")


@contextmanager
def full_backlog(server: socket.socket) -> Iterator[None]:
    """Connections that fill a listener's line: the next one is not even established, as where packets are dropped."""
    waiting = []
    try:
        for _ in range(8):
            waiting.append(socket.socket())
            waiting[-1].setblocking(False)
            waiting[-1].connect_ex(server.getsockname())
        yield
    finally:
        for each in waiting:
            each.close()


@pytest.fixture(params=["silent", "unreachable"])
def black_hole(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A store URL whose server takes connections and says nothing, or does not even take them; it is waited for a second."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(256 if request.param == "silent" else 0)
        point_at(f"http://127.0.0.1:{server.getsockname()[1]}", monkeypatch)
        monkeypatch.setenv("SPPO_STORE_TIMEOUT_S", "1")
        if request.param == "silent":
            yield "s3://bucket/prefix"
        else:
            with full_backlog(server):
                yield "s3://bucket/prefix"


class FaultyS3(ThreadingHTTPServer):
    """Objects in memory behind as much of S3 as the store uses; `faults` says what is wrong with it now."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Requests)
        self.objects: dict[str, list[bytes]] = {}
        """Every version, the newest last."""
        self.faults: set[str] = set()
        self.seen: list[str] = []
        """Method and last part of the path of each request."""
        self.lock = threading.Lock()

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that are killed, or lose patience, are part of the tests."""

    def once(self, fault: str) -> bool:
        """Whether a fault that goes away when it has happened is to happen now."""
        with self.lock:
            happens = fault in self.faults
            self.faults.discard(fault)
            return happens


class Requests(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultyS3

    def log_message(self, format: str, *values: object) -> None:
        pass

    @property
    def key(self) -> str:
        return unquote(urlsplit(self.path).path)

    def found(self) -> bytes | None:
        versions = self.server.objects.get(self.key)
        if not versions or "delayed" in self.server.faults:
            return None
        return versions[0] if "stale" in self.server.faults else versions[-1]

    def answer(self, status: int, content: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            if value:
                self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def refuse(self, status: int, code: str) -> None:
        more = "<Condition>If-None-Match</Condition>" if code == "PreconditionFailed" else ""
        self.answer(status, f"<Error><Code>{code}</Code><Message>{code}, it says</Message>{more}</Error>".encode())

    def do_PUT(self) -> None:
        server, faults = self.server, self.server.faults
        content = self.rfile.read(int(self.headers["Content-Length"]))
        server.seen.append(f"PUT {self.key.rsplit('/')[-1]}")
        once = self.headers.get("If-None-Match") == "*" and "ignores" not in faults
        if "read-only" in faults:
            return self.refuse(403, "AccessDenied")
        if once and "refuses" in faults:
            return self.refuse(501, "NotImplemented")
        if "text" in faults:
            content = content.replace(b"\r\n", b"\n")
        if content and ("flips uploads" in faults or server.once("flips an upload")):
            content = content[:-1] + bytes([content[-1] ^ 1])
        if "races" in faults:
            exists = self.key in server.objects
            time.sleep(0.05)
            if once and exists:
                return self.refuse(412, "PreconditionFailed")
            server.objects.setdefault(self.key, []).append(content)
        else:
            with server.lock:
                if once and self.key in server.objects:
                    return self.refuse(412, "PreconditionFailed")
                server.objects.setdefault(self.key, []).append(content)
        if server.once("loses an answer"):
            self.close_connection = True
            return None
        if server.once("fails after it wrote"):
            return self.refuse(500, "InternalError")
        return self.answer(200, ETag=f'"{md5(content).hexdigest()}"')

    def do_HEAD(self) -> None:
        content = self.found()
        self.server.seen.append(f"HEAD {self.key.rsplit('/')[-1]}")
        if content is None:
            return self.answer(404)
        size = str(len(content) + self.server.once("errs of a size"))
        name = md5(b"ours" * ("names of its own" in self.server.faults) + content).hexdigest()
        headers = {"ETag": f'"{name}"', "Last_Modified": formatdate(usegmt=True), "Content-Length": size}
        if "sizeless" in self.server.faults:
            headers["Content-Length"] = ""
        elif "zero sizes" in self.server.faults:
            headers["Content-Length"] = "0"
        return self.answer(200, **headers)

    def do_GET(self) -> None:
        query = parse_qs(urlsplit(self.path).query)
        if "list-type" in query:
            return self.list(query.get("prefix", [""])[0])
        content = self.found()
        self.server.seen.append(f"GET {self.key.rsplit('/')[-1]}")
        if content is None:
            return self.refuse(404, "NoSuchKey")
        if "flips" in self.server.faults or self.server.once("flips once"):
            content = content[:-1] + bytes([content[-1] ^ 1])
        headers = {"ETag": f'"{md5(content).hexdigest()}"', "Last_Modified": formatdate(usegmt=True)}
        if "Range" in self.headers and content:
            first, last = self.headers["Range"].removeprefix("bytes=").split("-")
            part = content[int(first) : int(last or len(content)) + 1]
            headers["Content_Range"] = f"bytes {first}-{int(first) + len(part) - 1}/{len(content)}"
            return self.send(206, part, headers)
        return self.send(200, content, headers)

    def send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        large = len(content) > 1 << 16
        if ("drips files" if large else "drips") not in self.server.faults:
            return self.answer(status, content, **headers)
        self.answer(status, b"", **{**headers, "Content-Length": str(len(content))})
        for number in range(len(content)):
            self.wfile.write(content[number : number + 1])
            time.sleep(0.2)
        return None

    def list(self, prefix: str) -> None:
        bucket = self.key.split("/")[1]
        keys = sorted(key.removeprefix(f"/{bucket}/") for key in self.server.objects)
        entries = "".join(
            f"<Contents><Key>{key}</Key><Size>1</Size><LastModified>2026-01-01T00:00:00Z</LastModified></Contents>"
            for key in keys
            if key.startswith(prefix)
        )
        self.answer(200, f"<ListBucketResult><IsTruncated>false</IsTruncated>{entries}</ListBucketResult>".encode())

    def do_DELETE(self) -> None:
        if "keeps" not in self.server.faults:
            self.server.objects.pop(self.key, None)
        self.answer(204)


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyS3]:
    """Such a server, without a fault; `faulty.url` is a store's."""
    server = FaultyS3()
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    point_at(f"http://127.0.0.1:{server.server_port}", monkeypatch)
    monkeypatch.setenv("SPPO_STORE_TIMEOUT_S", "60")
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(params=["awscrt", "s3fs"])
def open_faulty(
    faulty: FaultyS3, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], Store]:
    """A store on that server, whose files move through awscrt or s3fs."""
    if request.param == "s3fs":
        monkeypatch.setattr("sppo.store.bulk.find_spec", lambda name: None)
    return lambda: Store("s3://bucket/prefix", tmp_path / "scratch")
