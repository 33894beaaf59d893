"""Between a store and its S3 server: numbers every request of a run, and does one wrong thing to one of them.

It forwards requests byte for byte, the Host that the client signed included. What lies below another prefix than the one under
watch, such as a late request of a run that was killed, passes without a number.
"""

import contextlib
import random
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from http.client import HTTPException, HTTPResponse
from typing import BinaryIO
from urllib.parse import parse_qs, unquote, urlsplit

from faults.places import Numbering, Point

PATIENCE_S = 1.5
"""How long the clients under test wait for an answer ($SPPO_STORE_TIMEOUT_S)."""
HOLE_S = 60.0
"""A black hole opens again after this, if its client is more patient than it should be."""


class Fault(StrEnum):
    """What happens to one request."""

    DROPPED_BEFORE = "dropped before it was forwarded"
    DROPPED_AFTER = "dropped after it was applied"
    ERROR_500 = "answered 500"
    ERROR_503 = "answered 503"
    FLIPPED_IN = "bit flipped on the way in"
    FLIPPED_OUT = "bit flipped on the way out"
    CUT_IN = "cut on the way in"
    CUT_OUT = "cut on the way out"
    WRONG_LENGTH = "wrong length"
    BLACK_HOLE = "black hole"
    DUPLICATED = "duplicated"
    DELAYED = "delayed past the client's patience"
    KILLED_BEFORE = "client killed before it"
    KILLED_AFTER = "client killed after it"


@dataclass
class Request:
    """As it came from the client."""

    method: str
    target: str
    head: bytes
    body: bytes

    @property
    def key(self) -> str:
        """Bucket and key; of a listing, bucket and prefix."""
        parts = urlsplit(self.target)
        prefix = parse_qs(parts.query).get("prefix", [""])[0]
        return unquote(parts.path) + (f"/{prefix}" if prefix else "")

    @property
    def what(self) -> str:
        """The method; `LIST` for a listing, and multipart uploads by their step."""
        query = parse_qs(urlsplit(self.target).query, keep_blank_values=True)
        if "prefix" in query or "list-type" in query:
            return "LIST"
        return f"{self.method} part" if "uploadId" in query or "uploads" in query else self.method


@dataclass
class Answer:
    """As it goes back to the client."""

    head: bytes
    body: bytes


@dataclass
class Watch:
    """One run: whose requests are numbered, and which of them is hit."""

    prefix: str
    """`bucket/prefix`."""
    point: Point | None = None
    fault: Fault | None = None
    kill: Callable[[], None] = lambda: None
    numbering: Numbering = field(default_factory=Numbering)
    hit: bool = False
    under_way: int = 0


class FaultProxy:
    """Listens on loopback while the block lasts."""

    def __init__(self, upstream: str) -> None:
        parts = urlsplit(upstream)
        self._upstream = (str(parts.hostname), int(parts.port or 80))
        self._lock = threading.Lock()
        self._watch = Watch("nothing")
        self._server = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.url = f"http://127.0.0.1:{self._server.getsockname()[1]}"

    def __enter__(self) -> "FaultProxy":
        threading.Thread(target=self._accept, name="proxy", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)  # whoever waits for a connection waits no more
        self._server.close()

    def watch(self, watch: Watch) -> None:
        """From now on, this run's requests count."""
        with self._lock:
            self._watch = watch

    def settle(self, watch: Watch) -> None:
        """Wait until none of a run's requests is under way, delayed ones included."""
        deadline = time.monotonic() + HOLE_S
        while watch.under_way and time.monotonic() < deadline:
            time.sleep(0.01)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed: the end
            while True:
                connection, _ = self._server.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with connection, connection.makefile("rb") as stream, contextlib.suppress(OSError, HTTPException):
            while (request := _read_request(stream, connection)) is not None:
                with self._counted(request) as (fault, watch, point):
                    answer = self._answer(request, fault, watch, point, connection)
                if answer is None:
                    return
                connection.sendall(answer.head + answer.body)
                if fault in (Fault.CUT_OUT, Fault.WRONG_LENGTH):
                    return

    @contextlib.contextmanager
    def _counted(self, request: Request) -> Iterator[tuple[Fault | None, Watch, Point | None]]:
        with self._lock:
            watch = self._watch
            mine = watch.prefix in request.key
            point = watch.numbering.next(request.what, request.key.split(watch.prefix, 1)[1]) if mine else None
            hit = point is not None and point == watch.point and not watch.hit
            watch.hit |= hit
            watch.under_way += mine
        try:
            yield watch.fault if hit else None, watch, point
        finally:
            with self._lock:
                watch.under_way -= mine

    def _answer(
        self, request: Request, fault: Fault | None, watch: Watch, point: Point | None, connection: socket.socket
    ) -> Answer | None:
        """What the client is told; None to close its connection without a word."""
        chance = random.Random(str(point))
        match fault:
            case Fault.DROPPED_BEFORE:
                return None
            case Fault.KILLED_BEFORE:
                watch.kill()
                return None
            case Fault.ERROR_500:
                return _refusal("500 Internal Server Error", "InternalError")
            case Fault.ERROR_503:
                return _refusal("503 Slow Down", "SlowDown")
            case Fault.BLACK_HOLE:
                _wait_for_end(connection)
                return None
            case Fault.DELAYED:
                time.sleep(1.5 * PATIENCE_S)
            case Fault.DUPLICATED:
                self._forward(request)
            case Fault.FLIPPED_IN:
                request = _flipped_in(request, chance)
            case Fault.CUT_IN:
                self._forward_half(request)
                return None
            case _:
                pass
        answer = self._forward(request)
        match fault:
            case Fault.DROPPED_AFTER:
                return None
            case Fault.KILLED_AFTER:
                watch.kill()
                return None
            case Fault.FLIPPED_OUT:
                return _flipped_out(answer, chance)
            case Fault.CUT_OUT:
                return _half(answer)
            case Fault.WRONG_LENGTH:
                return _longer(answer)
            case _:
                return answer

    def _forward(self, request: Request) -> Answer:
        with socket.create_connection(self._upstream) as server:
            server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            server.sendall(request.head + request.body)
            response = HTTPResponse(server, method=request.method)
            response.begin()
            body = response.read()
        kept = [
            (name, value) for name, value in response.getheaders() if name.lower() not in ("transfer-encoding", "connection")
        ]
        if response.getheader("Content-Length") is None and response.status not in (204, 304):
            kept.append(("Content-Length", str(len(body))))
        lines = [f"HTTP/1.1 {response.status} {response.reason}", *(f"{name}: {value}" for name, value in kept)]
        return Answer(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"), body)

    def _forward_half(self, request: Request) -> None:
        whole = request.head + request.body
        kept = len(request.head) + len(request.body) // 2 if request.body else len(request.head) // 2
        with socket.create_connection(self._upstream) as server, contextlib.suppress(OSError):
            server.sendall(whole[:kept])
            server.shutdown(socket.SHUT_WR)
            server.recv(1)  # it has seen the end


def _read_request(stream: BinaryIO, connection: socket.socket) -> Request | None:
    lines = []
    while (line := stream.readline()) not in (b"\r\n", b""):
        lines.append(line)
    if not lines or line == b"":
        return None
    head = b"".join(lines) + b"\r\n"
    if re.search(rb"(?mi)^transfer-encoding:", head):
        raise HTTPException("a body of unknown length: the proxy forwards whole requests")
    if re.search(rb"(?mi)^expect: *100-continue", head):
        connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        head = re.sub(rb"(?mi)^expect:.*\r\n", b"", head)
    length = re.search(rb"(?mi)^content-length: *(\d+)", head)
    body = stream.read(int(length[1])) if length else b""
    method, target, _ = lines[0].decode("latin-1").split(" ", 2)
    return Request(method, target, head, body)


def _wait_for_end(connection: socket.socket) -> None:
    connection.settimeout(HOLE_S)
    with contextlib.suppress(OSError):
        connection.recv(1)  # nothing comes before the client has given up and closed


def _refusal(status: str, code: str) -> Answer:
    body = f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code></Error>'.encode()
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n\r\n"
    return Answer(head.encode(), body)


def _flip(content: bytes, chance: random.Random) -> bytes:
    position = chance.randrange(len(content))
    return content[:position] + bytes([content[position] ^ 1 << chance.randrange(8)]) + content[position + 1 :]


def _flipped_in(request: Request, chance: random.Random) -> Request:
    """A bit of the body; without one, of the signature."""
    if request.body:
        return Request(request.method, request.target, request.head, _flip(request.body, chance))
    head = re.sub(rb"(Signature=[0-9a-f]{63})([0-9a-f])", lambda found: found[1] + bytes([found[2][0] ^ 1]), request.head)
    return Request(request.method, request.target, head, b"")


def _flipped_out(answer: Answer, chance: random.Random) -> Answer:
    """A bit of the body; without one, of the length."""
    if answer.body:
        return Answer(answer.head, _flip(answer.body, chance))
    return Answer(
        re.sub(rb"(?mi)^(content-length: *\d*)(\d)", lambda found: found[1] + bytes([found[2][0] ^ 1]), answer.head), b""
    )


def _half(answer: Answer) -> Answer:
    """Half of the body; without one, of the head."""
    if answer.body:
        return Answer(answer.head, answer.body[: len(answer.body) // 2])
    return Answer(answer.head[: len(answer.head) // 2], b"")


def _longer(answer: Answer) -> Answer:
    """The length says 7 bytes more than come."""
    lengthen = lambda found: b"Content-Length: %d" % (int(found[1]) + 7)  # noqa: E731
    return Answer(re.sub(rb"(?mi)^content-length: *(\d+)", lengthen, answer.head), answer.body)
