"""A served judge, for real: vLLM's OpenAI server on loopback with a tiny model, as it is and behind a line with faults."""

import importlib.util
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from sppo import rank
from sppo.errors import JudgeError
from sppo.hardware import Hardware
from sppo.judges import Match
from sppo.judges.endpoint import ServedJudge
from sppo.judges.template import filled
from sppo.progress import silent
from sppo.recipe import Endpoint, EndpointJudge, Recipe
from sppo.records import Comparison, from_table
from sppo.store import Artifact, ArtifactFile, Store

pytestmark = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")

TEMPLATE = "Q: {prompt}\nm: {first}\nM: {second}\nWhich is better?"
ANSWERS = ["It is red.", "A fox runs. {first}", "Füchse 🦊"]
PAIRS = [(i, j) for i in range(3) for j in range(3) if i != j]


def judge_at(url: str, **values: Any) -> EndpointJudge:
    places = {"concurrency": 4, "timeout_s": 30, "attempts": 3, "pause_s": 0.05, **values.pop("source", {})}
    return EndpointJudge(kind="endpoint", source=Endpoint(url=url, **places), model="tiny", template=TEMPLATE, **values)


def match_of(prompt: str) -> Match:
    return Match(prompt, [{"role": "user", "content": prompt}], ANSWERS, PAIRS)


@pytest.fixture(scope="module")
def expected(random_policy: Callable[[str], Path]) -> Callable[[str], list[float]]:
    """log p(m) - log p(M) of each pair's question by transformers: forced to one of them, the others' share cancels."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = random_policy("llama")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    names = tokenizer.convert_tokens_to_ids(["m", "M"])

    def logits(prompt: str) -> list[float]:
        found = []
        for first, second in PAIRS:
            turns = [{"role": "user", "content": filled(TEMPLATE, prompt, ANSWERS[first], ANSWERS[second])}]
            ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
            with torch.no_grad():
                words = model(ids["input_ids"]).logits[0, -1].double()
            forced = torch.log_softmax(words[names], dim=-1)
            found.append(float(forced[0] - forced[1]))
        return found

    return logits


def test_a_servers_logits_are_those_of_the_model_it_serves(vllm_server: str, expected: Callable[[str], list[float]]) -> None:
    matches = [match_of(f"Describe the red fox {n} times.") for n in range(5)]
    rulings = ServedJudge(judge_at(vllm_server)).rule(matches, silent)
    for match, found in zip(matches, rulings.logits, strict=True):
        np.testing.assert_allclose(found, expected(match.prompt_id), atol=1e-4)
    assert rulings.counts["requests"] == rulings.counts["output_tokens"] == 30
    assert rulings.counts["input_tokens"] > 30 * 40


def test_votes_are_the_same_in_a_rerun_and_near_the_probabilities(
    vllm_server: str, expected: Callable[[str], list[float]]
) -> None:
    judge = ServedJudge(judge_at(vllm_server, reading="votes", votes=64))
    first, again = (judge.rule([match_of("Vote.")], silent) for _ in range(2))
    np.testing.assert_array_equal(first.logits[0], again.logits[0])
    # of 64 votes P is off by 4 standard errors of 1/16 at most
    share = 1 / (1 + np.exp(-first.logits[0]))
    np.testing.assert_allclose(share, 1 / (1 + np.exp(-np.array(expected("Vote.")))), atol=0.25)


def test_a_servers_refusal_is_told_in_its_own_words(vllm_server: str) -> None:
    long = Match("p", [{"role": "user", "content": "word " * 400}], ["a", "b"], [(0, 1)])
    with pytest.raises(JudgeError, match=r"answers 400: .*maximum context length.*; mend the judge: .*max_answer_characters"):
        ServedJudge(judge_at(vllm_server)).rule([long], silent)
    other = judge_at(vllm_server).model_copy(update={"model": "other"})
    with pytest.raises(JudgeError, match=r"answers 404: .*`other` does not exist.*; check the judge's model"):
        ServedJudge(other).rule([match_of("p")], silent)


class Line(ThreadingHTTPServer):
    """Passes questions on to a server, or does to them what lines and servers do."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, server: str) -> None:
        super().__init__(("127.0.0.1", 0), Passing)
        self.target = server.removesuffix("/v1")
        self.lost: Callable[[str], bool] = lambda text: False
        """Questions that fail whenever they are asked; every third of the others fails once."""
        self.asked: Counter[str] = Counter()
        self.lock = threading.Lock()

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass


class Passing(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Line

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        text = json.loads(content)["messages"][0]["content"]
        with self.server.lock:
            number = len(self.server.asked) if text not in self.server.asked else -1
            self.server.asked[text] += 1
        if self.server.lost(text) or (number >= 0 and number % 3 == 0):
            self.fail(sum(text.encode()) % 5)
            return
        reply = httpx.post(f"{self.server.target}{self.path}", content=content, headers={"Content-Type": "application/json"})
        self.say(reply.status_code, reply.content)

    def fail(self, kind: int) -> None:
        if kind == 0:
            self.say(429, b"slow down", ("Retry-After", "0"))
        elif kind == 1:
            self.say(500, b"Internal Server Error")
        elif kind == 2:
            self.say(200, b'{"choices": [')
        elif kind == 3:
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
        else:
            time.sleep(3)  # past the judge's patience
            self.close_connection = True

    def say(self, status: int, content: bytes, *headers: tuple[str, str]) -> None:
        self.send_response(status)
        for name, value in (*headers, ("Content-Length", str(len(content)))):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *values: object) -> None:
        pass


@pytest.fixture
def line(vllm_server: str) -> Iterator[Line]:
    made = Line(vllm_server)
    threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


def test_a_stage_through_faults_asks_again_only_for_what_stayed_open_and_guesses_nothing(
    line: Line,
    store: Store,
    tiny: Recipe,
    cpu: Hardware,
    make_prompts: Callable[[list[str]], ArtifactFile],
    make_answers: Callable[..., Artifact],
    expected: Callable[[str], list[float]],
) -> None:
    judge = judge_at(f"http://127.0.0.1:{line.server_address[1]}/v1", source={"timeout_s": 1.5})
    generation = tiny.generation.model_copy(update={"responses": 3})
    recipe = tiny.model_copy(update={"judge": judge, "generation": generation})
    prompts, responses = make_prompts(list("abcd")), make_answers(*({name: ANSWERS} for name in "abcd"))
    step = rank.step(recipe, cpu, None, prompts, responses)
    line.lost = lambda text: "About b?" in text and "m: It is red." in text
    with pytest.raises(JudgeError, match="max_unjudged"):  # 2 of 24 pairs
        store.build(step)
    answered = {text for text in line.asked if not line.lost(text)}
    assert len(answered) == 22
    line.lost = lambda text: False
    line.asked.clear()
    ranked = store.build(step)
    assert len(line.asked) == 2
    assert not set(line.asked) & answered
    counts = ranked.manifest.counts
    assert (counts["pairs"], counts.get("unjudged", 0)) == (24, 0)
    assert counts["requests"] - counts["retried"] == 24 + 2  # two questions were asked in both attempts at the stage
    for row in from_table(Comparison, ranked.tables()):
        square = np.array(row.logits).reshape(3, 3)
        np.testing.assert_allclose(square[tuple(np.array(PAIRS).T)], expected(f"About {row.prompt_id}?"), atol=1e-4)
