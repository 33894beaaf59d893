"""What the proxy does to the one request that it hits, seen from both of its sides."""

import http.client
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import pytest
from faults.places import Point, place_of
from faults.proxy import Fault, FaultProxy, Watch

BEFORE, NEW = b"before", b"after!"
FINGERPRINT = "0123456789abcdef" * 4


class Shelf(BaseHTTPRequestHandler):
    """Keeps one object, and counts how often it was written."""

    protocol_version = "HTTP/1.1"
    content = BEFORE
    puts = 0

    def do_GET(self) -> None:
        self.say(type(self).content)

    def do_HEAD(self) -> None:
        self.say(type(self).content)

    def do_PUT(self) -> None:
        length = int(self.headers["Content-Length"])
        body = self.rfile.read(length)
        if len(body) == length:
            type(self).content, type(self).puts = body, type(self).puts + 1
        self.say(b"")

    def say(self, content: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(b"" if self.command == "HEAD" else content)

    def log_message(self, format: str, *values: object) -> None:
        pass


@pytest.fixture
def shelf() -> Iterator[tuple[type[Shelf], FaultProxy]]:
    kept = type("Kept", (Shelf,), {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kept)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    with FaultProxy(f"http://127.0.0.1:{server.server_port}") as proxy:
        yield kept, proxy
    server.shutdown()
    server.server_close()


def ask(proxy: FaultProxy, method: str, body: bytes | None = None) -> tuple[int, bytes] | str:
    """Status and body, or the name of the error that a client without a second try has."""
    connection = http.client.HTTPConnection(urlsplit(proxy.url).netloc, timeout=0.5)
    try:
        connection.request(method, "/bucket/run/key", body)
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (OSError, http.client.HTTPException) as error:
        return type(error).__name__
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("fault", "told", "kept", "puts"),
    [
        (Fault.DROPPED_BEFORE, "RemoteDisconnected", BEFORE, 0),
        (Fault.DROPPED_AFTER, "RemoteDisconnected", NEW, 1),
        (Fault.ERROR_500, 500, BEFORE, 0),
        (Fault.ERROR_503, 503, BEFORE, 0),
        (Fault.CUT_IN, "RemoteDisconnected", BEFORE, 0),
        (Fault.BLACK_HOLE, "TimeoutError", BEFORE, 0),
        (Fault.DUPLICATED, 200, NEW, 2),
        (Fault.WRONG_LENGTH, "IncompleteRead", NEW, 1),
    ],
)
def test_a_write_is_hit_once_and_the_next_one_passes(
    shelf: tuple[type[Shelf], FaultProxy], fault: Fault, told: object, kept: bytes, puts: int
) -> None:
    server, proxy = shelf
    watch = Watch("bucket/run", Point("PUT", "/key", 1), fault)
    proxy.watch(watch)

    found = ask(proxy, "PUT", NEW)

    assert (found if isinstance(found, str) else found[0]) == told
    proxy.settle(watch)
    assert (server.content, server.puts, watch.hit) == (kept, puts, True)
    assert ask(proxy, "PUT", NEW) == (200, b"")


def test_a_bit_flips_on_the_way_in_and_one_on_the_way_out(shelf: tuple[type[Shelf], FaultProxy]) -> None:
    server, proxy = shelf
    proxy.watch(Watch("bucket/run", Point("PUT", "/key", 1), Fault.FLIPPED_IN))
    assert ask(proxy, "PUT", NEW) == (200, b"")
    assert bits_apart(server.content, NEW) == 1
    server.content = BEFORE
    proxy.watch(Watch("bucket/run", Point("GET", "/key", 1), Fault.FLIPPED_OUT))
    found = ask(proxy, "GET")
    assert not isinstance(found, str)
    assert bits_apart(found[1], BEFORE) == 1


def bits_apart(one: bytes, other: bytes) -> int:
    return sum((first ^ second).bit_count() for first, second in zip(one, other, strict=True))


def test_an_answer_is_cut_in_half(shelf: tuple[type[Shelf], FaultProxy]) -> None:
    _, proxy = shelf
    proxy.watch(Watch("bucket/run", Point("GET", "/key", 1), Fault.CUT_OUT))
    assert ask(proxy, "GET") == "IncompleteRead"


def test_a_delayed_write_is_applied_after_the_client_gave_up(shelf: tuple[type[Shelf], FaultProxy]) -> None:
    server, proxy = shelf
    watch = Watch("bucket/run", Point("PUT", "/key", 1), Fault.DELAYED)
    proxy.watch(watch)
    assert ask(proxy, "PUT", NEW) == "TimeoutError"
    assert server.puts == 0
    proxy.settle(watch)
    assert (server.content, server.puts) == (NEW, 1)


def test_requests_of_another_run_pass_without_a_number(shelf: tuple[type[Shelf], FaultProxy]) -> None:
    _, proxy = shelf
    watch = Watch("bucket/other", Point("GET", "/key", 1), Fault.ERROR_500)
    proxy.watch(watch)
    assert ask(proxy, "GET") == (200, BEFORE)
    assert (watch.numbering.points, watch.hit) == ([], False)


def test_a_second_request_is_numbered_two(shelf: tuple[type[Shelf], FaultProxy]) -> None:
    _, proxy = shelf
    watch = Watch("bucket/run")
    proxy.watch(watch)
    ask(proxy, "GET")
    ask(proxy, "HEAD")
    ask(proxy, "GET")
    assert [str(point) for point in watch.numbering.points] == ["GET /key #1", "HEAD /key #1", "GET /key #2"]


def test_what_changes_from_run_to_run_is_no_part_of_a_place() -> None:
    assert place_of(f"/train/{FINGERPRINT}/files/0123456789abcdef/model.safetensors") == "/train/*/files/*/model.safetensors"
    assert place_of(f"/rank/{FINGERPRINT}/packs/fedcba9876543210") == "/rank/*/packs/*"
    assert place_of("/checks/1763876543123456789") == "/checks/*"
    assert place_of(f"/train/{FINGERPRINT}/parts/checkpoint-000001-ranks1-zero0.json").endswith("-000001-ranks1-zero0.json")


def test_a_server_that_is_not_there_is_a_closed_connection() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with FaultProxy(f"http://127.0.0.1:{port}") as proxy:
        assert ask(proxy, "GET") == "RemoteDisconnected"
