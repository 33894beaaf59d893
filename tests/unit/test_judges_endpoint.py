"""A served judge before a server that is slow, busy, wrong or away. What is disturbed stays open; what is not, is exact."""

import hashlib
import json
import logging
import math
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest

from sppo.configuration import validate
from sppo.errors import JudgeError, RecipeError
from sppo.judges import Match
from sppo.judges.endpoint import ServedJudge
from sppo.progress import Progress, silent
from sppo.recipe import Endpoint, EndpointJudge

Fault = Callable[["Handler", dict[str, Any]], None]
KEY = "sk-geheim-0123456789"


def probability(text: str) -> float:
    """Of `m`, as this server answers a question: between 0.1 and 0.9, by the question's sha256."""
    return 0.1 + 0.8 * int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") / 2**32


def answer(body: dict[str, Any]) -> dict[str, Any]:
    """What an undisturbed server says."""
    first = probability(body["messages"][0]["content"])
    usage = {"prompt_tokens": 10, "completion_tokens": body.get("n", 1)}
    if "logprobs" not in body:
        draws = np.random.default_rng(body["seed"]).random(body["n"])
        return {"choices": [{"message": {"content": "m" if draw < first else "M"}} for draw in draws], "usage": usage}
    top = [("m", math.log(first)), ("M", math.log(1 - first)), ("", -9999.0)]
    listed = [{"token": token, "logprob": logprob} for token, logprob in sorted(top, key=lambda one: -one[1])]
    said = {"message": {"content": listed[0]["token"]}, "logprobs": {"content": [{"top_logprobs": listed}]}}
    return {"choices": [said], "usage": usage}


class Handler(BaseHTTPRequestHandler):
    """Answers, or does what the plan of its server says of this question's so-manieth attempt."""

    protocol_version = "HTTP/1.1"
    server: "Server"

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.times.append(time.monotonic())
        self.server.keys.add(self.headers.get("Authorization"))
        body = json.loads(content)
        text = body["messages"][0]["content"]
        with self.server.lock:
            attempt = self.server.asked[text]
            self.server.asked[text] += 1
            self.server.bodies.append(body)
        fault = self.server.plan(text, attempt)
        if fault is None:
            self.say(200, json.dumps(answer(body)))
        else:
            fault(self, body)

    def say(self, status: int, text: str, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *values: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.plan: Callable[[str, int], Fault | None] = lambda text, attempt: None
        self.asked: Counter[str] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.keys: set[str | None] = set()
        self.lock = threading.Lock()

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # clients that went away are the point


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


def status(code: int, words: str = "", **headers: str) -> Fault:
    return lambda handler, _: handler.say(code, words, **headers)


def says(text: str) -> Fault:
    return lambda handler, _: handler.say(200, text)


def close(handler: Handler, _: object) -> None:
    handler.connection.shutdown(socket.SHUT_RDWR)
    handler.close_connection = True


def break_off(handler: Handler, _: object) -> None:
    """Half of an answer, then nothing."""
    handler.send_response(200)
    handler.send_header("Content-Length", "500")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [')
    close(handler, None)


def stay_silent(handler: Handler, _: object) -> None:
    time.sleep(1.0)
    close(handler, None)


TEMPLATE = "{prompt}\nm: {first}\nM: {second}"


def judge_of(server: Server | str, **values: Any) -> EndpointJudge:
    url = server if isinstance(server, str) else f"http://127.0.0.1:{server.server_address[1]}/v1"
    places = {"concurrency": 4, "timeout_s": 0.4, "attempts": 3, "pause_s": 0.02, **values.pop("source", {})}
    settings = {"kind": "endpoint", "model": "judge", "template": TEMPLATE, **values}
    return EndpointJudge(source=Endpoint(url=url, **places), **settings)


def matches_of(prompts: int) -> list[Match]:
    pairs = [(i, j) for i in range(3) for j in range(3) if i != j]
    answers = ["red", "a fox", "swift"]
    return [Match(f"p{n}", [{"role": "user", "content": f"Question {n}"}], answers, pairs) for n in range(prompts)]


def expected(match: Match) -> list[float]:
    """log p/(1-p) of each pair, in its order."""
    found = []
    for first, second in match.pairs:
        p = probability(f"{match.messages[0]['content']}\nm: {match.responses[first]}\nM: {match.responses[second]}")
        found.append(math.log(p / (1 - p)))
    return found


# --- what is asked, and how it is read


def test_a_logit_is_the_difference_of_the_two_answers_log_probabilities_in_both_orders(server: Server) -> None:
    matches = matches_of(3)
    seen: list[Progress] = []
    rulings = ServedJudge(judge_of(server)).rule(matches, seen.append)
    for match, found in zip(matches, rulings.logits, strict=True):
        np.testing.assert_allclose(found, expected(match), atol=1e-5)
    assert rulings.counts == {"requests": 18, "input_tokens": 180, "output_tokens": 18}
    assert (seen[-1].done, seen[-1].total, seen[-1].unit) == (18, 18, "pairs")


def test_a_question_is_forced_seeded_by_itself_and_of_one_user_turn(server: Server) -> None:
    ServedJudge(judge_of(server)).rule(matches_of(2), silent)
    again = list(server.bodies)
    ServedJudge(judge_of(server)).rule(matches_of(2), silent)
    body = again[0]
    assert body["structured_outputs"] == {"choice": ["m", "M"]}
    assert [turn["role"] for turn in body["messages"]] == ["user"]
    assert (body["temperature"], body["max_tokens"], body["logprobs"]) == (0, 1, True)
    seeds = {one["messages"][0]["content"]: one["seed"] for one in again}
    assert len(set(seeds.values())) == 12
    assert seeds == {one["messages"][0]["content"]: one["seed"] for one in server.bodies[12:]}


def test_identical_answers_are_not_asked_about(server: Server) -> None:
    match = Match("p", [{"role": "user", "content": "Q"}], ["a", "a", "b"], [(0, 1), (1, 0), (0, 2), (1, 2)])
    (found,) = ServedJudge(judge_of(server)).rule([match], silent).logits
    assert found[:2].tolist() == [0.0, 0.0]
    assert found[2] == found[3]
    assert sum(server.asked.values()) == 1
    empty = Match("q", match.messages, ["a", "a"], [(0, 1)])
    assert ServedJudge(judge_of("http://127.0.0.1:9/v1")).rule([empty], silent).logits[0].tolist() == [0.0]


def test_votes_become_smoothed_odds(server: Server) -> None:
    matches = matches_of(2)
    judge = ServedJudge(judge_of(server, reading="votes", votes=9))
    rulings = judge.rule(matches, silent)
    # n votes of 9 for the first: log((n + 1/2) / (9 - n + 1/2))
    possible = [math.log((n + 0.5) / (9.5 - n)) for n in range(10)]
    for found in np.concatenate(rulings.logits).tolist():
        assert min(abs(found - one) for one in possible) < 1e-6
    assert len({body["seed"] for body in server.bodies}) == 12
    assert all((body["n"], body["temperature"]) == (9, 1) for body in server.bodies)
    again = judge.rule(matches, silent)
    assert all((one == other).all() for one, other in zip(rulings.logits, again.logits, strict=True))


def test_a_server_that_draws_one_vote_at_a_time_is_asked_for_the_others(server: Server) -> None:
    def one_of_many(handler: Handler, body: dict[str, Any]) -> None:
        handler.say(200, json.dumps(answer({**body, "n": 1})))

    server.plan = lambda text, attempt: one_of_many
    match = Match("p", [{"role": "user", "content": "Q"}], ["a", "b"], [(0, 1)])
    rulings = ServedJudge(judge_of(server, reading="votes", votes=3)).rule([match], silent)
    assert rulings.counts["requests"] == 3
    assert [body["n"] for body in server.bodies] == [3, 2, 1]
    assert len({body["seed"] for body in server.bodies}) == 3
    assert abs(rulings.logits[0][0]) in (pytest.approx(math.log(3.5 / 0.5)), pytest.approx(math.log(2.5 / 1.5)))


def test_a_vote_for_neither_does_not_count(server: Server) -> None:
    said = ["M", " **m**.", "Both are fine", "M\n"]
    server.plan = lambda text, attempt: says(json.dumps({"choices": [{"message": {"content": text}} for text in said]}))
    match = Match("p", [{"role": "user", "content": "Q"}], ["a", "b"], [(0, 1)])
    rulings = ServedJudge(judge_of(server, reading="votes", votes=4)).rule([match], silent)
    assert rulings.logits[0][0] == pytest.approx(math.log(1.5 / 2.5))  # one for the first, two for the second


def test_log_probabilities_are_summed_over_spellings_and_never_made_up(server: Server) -> None:
    def listed(**top: float) -> Fault:
        entries = [{"token": token.replace("_", " "), "logprob": logprob} for token, logprob in top.items()]
        return says(json.dumps({"choices": [{"logprobs": {"content": [{"top_logprobs": entries}]}}]}))

    match = Match("p", [{"role": "user", "content": "Q"}], ["a", "b"], [(0, 1)])
    server.plan = lambda text, attempt: listed(m=math.log(0.2), _m=math.log(0.2), M=math.log(0.1), Me=-0.1)
    free = judge_of(server, constrain="none")
    # (0.2 + 0.2) / 0.1; `Me` is no answer
    assert ServedJudge(free).rule([match], silent).logits[0][0] == pytest.approx(math.log(4))
    server.plan = lambda text, attempt: listed(m=-0.001, M=-9999.0, x=-7.0)
    rulings = ServedJudge(free).rule([match], silent)
    assert np.isnan(rulings.logits[0][0]), "how improbable the second is, nobody said"
    assert rulings.counts == {"requests": 3, "retried": 2, "unjudged_no_choice": 1}
    server.plan = lambda text, attempt: listed(fir=math.log(0.3), first=math.log(0.3), sec=math.log(0.4))
    forced = judge_of(server, answers=("first", "second"))
    assert ServedJudge(forced).rule([match], silent).logits[0][0] == pytest.approx(math.log(0.6 / 0.4))


def test_long_answers_are_cut_to_the_same_length(server: Server) -> None:
    match = Match("p", [{"role": "user", "content": "Q"}], ["abcdefgh", "xyz"], [(0, 1)])
    rulings = ServedJudge(judge_of(server, max_answer_characters=4)).rule([match], silent)
    assert rulings.counts["questions_cut"] == 1
    assert server.bodies[0]["messages"][0]["content"] == "Q\nm: abcd\nM: xyz"


# --- faults

FAULTS: dict[str, tuple[str, Fault]] = {
    "busy": ("http_429", status(429, "slow down", Retry_After="0")),
    "broken": ("http_500", status(500, "Internal Server Error")),
    "away": ("http_503", status(503)),
    "conflict": ("http_409", status(409)),
    "late": ("http_408", status(408)),
    "silent": ("timeout", stay_silent),
    "closing": ("connection", close),
    "breaking off": ("connection", break_off),
    "not JSON": ("not_json", says("<html>busy</html>")),
    "a list": ("malformed", says("[]")),
    "no choice": ("no_choice", says('{"choices": []}')),
    "empty": ("not_json", says("")),
    "no log-probs": ("no_logprobs", says('{"choices": [{"message": {"content": "m"}, "logprobs": null}]}')),
    "another answer": (
        "no_choice",
        says('{"choices": [{"logprobs": {"content": [{"top_logprobs": [{"token": "x", "logprob": -0.1}]}]}}]}'),
    ),
    "nan": (
        "no_choice",
        says('{"choices": [{"logprobs": {"content": [{"top_logprobs": [{"token": "m", "logprob": NaN}]}]}}]}'),
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_that_passes_changes_nothing(server: Server, name: str) -> None:
    server.plan = lambda text, attempt: FAULTS[name][1] if attempt == 0 and "Question 1" in text else None
    matches = matches_of(3)
    rulings = ServedJudge(judge_of(server)).rule(matches, silent)
    for match, found in zip(matches, rulings.logits, strict=True):
        np.testing.assert_allclose(found, expected(match), atol=1e-5)
    assert (rulings.counts["requests"], rulings.counts["retried"]) == (24, 6)
    assert not any(count.startswith("unjudged") for count in rulings.counts)


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_that_stays_leaves_its_pairs_open_and_is_counted_by_its_reason(server: Server, name: str) -> None:
    reason, fault = FAULTS[name]
    server.plan = lambda text, attempt: fault if "Question 1\nm: red" in text else None
    matches = matches_of(3)
    rulings = ServedJudge(judge_of(server)).rule(matches, silent)
    for number, (match, found) in enumerate(zip(matches, rulings.logits, strict=True)):
        open_pairs = [number == 1 and first == 0 for first, _ in match.pairs]
        np.testing.assert_allclose(found, np.where(open_pairs, np.nan, expected(match)), atol=1e-5)
    assert rulings.counts[f"unjudged_{reason}"] == 2
    assert rulings.counts["requests"] == 16 + 2 * 3
    assert rulings.counts["retried"] == 4
    assert ServedJudge.leaves_open


def test_all_questions_wait_as_long_as_the_server_says(server: Server) -> None:
    server.plan = lambda text, attempt: status(429, Retry_After="1") if attempt == 0 and "Question 0\nm: red" in text else None
    started = time.monotonic()
    rulings = ServedJudge(judge_of(server, source={"concurrency": 1})).rule(matches_of(1), silent)
    assert np.isfinite(rulings.logits[0]).all()
    assert server.times[1] - server.times[0] >= 0.99
    assert time.monotonic() - started < 5
    server.times.clear()
    server.asked.clear()
    in_a_second = formatdate(time.time() + 2, usegmt=True)  # a date has whole seconds
    server.plan = lambda text, attempt: status(503, Retry_After=in_a_second) if attempt == 0 and "m: red" in text else None
    ServedJudge(judge_of(server, source={"concurrency": 1})).rule(matches_of(1), silent)
    assert server.times[1] - server.times[0] >= 0.9


def test_a_server_that_wants_to_be_left_alone_for_hours_is_not_waited_for(server: Server) -> None:
    server.plan = lambda text, attempt: status(429, Retry_After="7200")
    rulings = ServedJudge(judge_of(server, source={"concurrency": 1})).rule(matches_of(1), silent)
    assert np.isnan(rulings.logits[0]).all()
    assert rulings.counts == {"requests": 1, "unjudged_http_429": 1, "unjudged_not_asked": 5}


def test_pauses_grow_between_attempts(server: Server) -> None:
    server.plan = lambda text, attempt: status(500)
    match = Match("p", [{"role": "user", "content": "Q"}], ["a", "b"], [(0, 1)])
    ServedJudge(judge_of(server, source={"attempts": 4, "pause_s": 0.1})).rule([match], silent)
    pauses = np.diff(server.times)
    # between half of 0.1, 0.2, 0.4 s and the whole
    assert all(low <= pause < 2 * low + 0.15 for low, pause in zip((0.05, 0.1, 0.2), pauses, strict=True))


def test_at_most_so_many_questions_are_under_way(server: Server) -> None:
    under_way, most = 0, 0

    def slowly(handler: Handler, body: dict[str, Any]) -> None:
        nonlocal under_way, most
        with server.lock:
            under_way += 1
            most = max(most, under_way)
        time.sleep(0.05)
        with server.lock:
            under_way -= 1
        handler.say(200, json.dumps(answer(body)))

    server.plan = lambda text, attempt: slowly
    ServedJudge(judge_of(server, source={"concurrency": 3})).rule(matches_of(3), silent)
    assert most == 3


# --- errors


@pytest.mark.parametrize(
    ("code", "words", "next_move"),
    [
        (400, "This model's maximum context length is 512 tokens", "max_answer_characters"),
        (401, f"Incorrect API key provided: {KEY}", r"source\.api_key_env"),
        (403, "no access to judge", r"source\.api_key_env"),
        (404, "The model `judge` does not exist", r"model and source\.url"),
    ],
)
def test_a_refusal_is_an_error_at_once(
    server: Server, code: int, words: str, next_move: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    server.plan = lambda text, attempt: status(code, json.dumps({"error": {"message": words}}))
    judge = ServedJudge(judge_of(server, source={"api_key_env": "JUDGE_KEY", "concurrency": 1}))
    with pytest.raises(
        JudgeError, match=rf"http://127\.0\.0\.1:\d+/v1/chat/completions answers {code}: .*; .*{next_move}"
    ) as caught:
        judge.rule(matches_of(3), silent)
    assert words.replace(KEY, "***") in str(caught.value)
    assert KEY not in str(caught.value)
    assert sum(server.asked.values()) == 1
    assert server.keys == {f"Bearer {KEY}"}


def test_a_server_that_is_not_there_is_an_error_and_no_chunk_of_nan() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # bound and not listening: refuses
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
        judge = ServedJudge(judge_of(url))
        with pytest.raises(
            JudgeError, match=rf"{url}/chat/completions cannot be reached in 3 attempts: .*; expected a server there"
        ):
            judge.rule(matches_of(2), silent)


def test_a_server_that_never_says_anything_is_an_error_too(server: Server) -> None:
    server.plan = lambda text, attempt: stay_silent
    judge = ServedJudge(judge_of(server, source={"concurrency": 3, "attempts": 2, "timeout_s": 0.2}))
    with pytest.raises(JudgeError, match=r"cannot be reached in 2 attempts: ReadTimeout"):
        judge.rule(matches_of(20), silent)
    # the third question lost is the last straw; the first two made room for at most two more before it
    assert 3 <= len(server.asked) <= 5


def test_a_server_that_goes_away_keeps_what_it_answered_and_is_an_error_from_then_on(server: Server) -> None:
    gone = threading.Event()

    def plan(text: str, attempt: int) -> Fault | None:
        if "Question 2" in text:
            gone.set()
        return close if gone.is_set() else None

    server.plan = plan
    matches = matches_of(20)
    judge = ServedJudge(judge_of(server, source={"concurrency": 1}))
    rulings = judge.rule(matches, silent)
    np.testing.assert_allclose(rulings.logits[1], expected(matches[1]), atol=1e-5)
    assert np.isnan(rulings.logits[2]).all()
    # three questions lost in a row: the others are not asked
    assert rulings.counts["unjudged_connection"] == 3
    assert rulings.counts["unjudged_not_asked"] == 18 * 6 - 3
    server.shutdown()
    server.server_close()
    with pytest.raises(JudgeError, match="cannot be reached"):
        judge.rule(matches[2:], silent)


def test_a_missing_key_is_named_before_anything_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    with pytest.raises(
        JudgeError, match=r"environment variable JUDGE_KEY is not set; expected the key for http://127\.0\.0\.1:9/v1"
    ):
        ServedJudge(judge_of("http://127.0.0.1:9/v1", source={"api_key_env": "JUDGE_KEY"}))


def test_neither_key_nor_address_with_credentials_reaches_a_log(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    prices = {"dollars_per_million_input": 1000.0, "dollars_per_million_output": 2000.0}
    with caplog.at_level(logging.DEBUG):
        ServedJudge(judge_of(server, source={"api_key_env": "JUDGE_KEY", **prices})).rule(matches_of(1), silent)
    assert KEY not in caplog.text
    # 6 questions of 10 + 1 tokens: 60 * 1000 / 1e6 + 6 * 2000 / 1e6 = 0.072
    assert "6 questions, 0 without a verdict, 6 requests, 0 of them again, 60 + 6 tokens, $0.0720" in caplog.text


@pytest.mark.parametrize("url", ["http://me:geheim@host/v1", "http://host/v1?key=geheim", "host:8000/v1", "ftp://host/v1"])
def test_an_address_is_plain(url: str) -> None:
    with pytest.raises(RecipeError, match="http") as caught:
        validate(Endpoint, {"url": url}, "judge", RecipeError)
    assert "geheim" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"answers": ["m", "mm"]}, "expected neither to start the other"),
        ({"answers": ["answer 1", "answer 2"]}, "start alike"),
        ({"answers": ["m", " "]}, "expected two different texts"),
        ({"template": "{prompt} {second}"}, r"template has \{first\} 0 times"),
    ],
)
def test_answers_that_cannot_be_told_apart_are_refused(values: dict[str, Any], message: str) -> None:
    asked = {"kind": "endpoint", "source": {"url": "http://host/v1"}, "model": "judge", **values}
    with pytest.raises(RecipeError, match=message):
        validate(EndpointJudge, asked, "judge", RecipeError)
