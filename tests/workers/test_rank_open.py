"""A served judge that leaves pairs open: the stage keeps what was answered, counts the rest, and asks only for that again."""

import json
import math
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest

from sppo import duel, rank
from sppo.errors import JudgeError
from sppo.hardware import Hardware
from sppo.recipe import Endpoint, EndpointJudge, EnsembleJudge, Member, Recipe, WorldRuleJudge
from sppo.records import Comparison, Duel, from_table
from sppo.store import Artifact, ArtifactFile, Store

MakePrompts = Callable[[list[str]], ArtifactFile]
MakeAnswers = Callable[..., Artifact]
TEMPLATE = "{prompt}|{first}|{second}"
ANSWERS = {name: [f"{name}{k}" * (k + 1) for k in range(3)] for name in "abcd"}
CHUNKS = [{name: ANSWERS[name] for name in names} for names in ("ab", "cd")]


class Server(ThreadingHTTPServer):
    """Prefers the longer answer by a logit a character; says 500 to the questions in `broken`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.broken: set[str] = set()
        self.asked: list[str] = []


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        question = body["messages"][0]["content"]
        self.server.asked.append(question)
        _, first, second = question.split("|")
        if question in self.server.broken:
            self.say(500, {"error": {"message": "out of order"}})
            return
        logit = float(len(first) - len(second))
        top = [
            {"token": "m", "logprob": -math.log1p(math.exp(-logit))},
            {"token": "M", "logprob": -math.log1p(math.exp(logit))},
        ]
        said = {"message": {"content": "m"}, "logprobs": {"content": [{"top_logprobs": top}]}}
        self.say(200, {"choices": [said], "usage": {"prompt_tokens": 7, "completion_tokens": 1}})

    def say(self, status: int, reply: Any) -> None:
        content = json.dumps(reply).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *values: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


def served(server: Server, max_unjudged: float) -> EndpointJudge:
    source = Endpoint(url=f"http://127.0.0.1:{server.server_port}/v1", attempts=2, pause_s=0.01)
    return EndpointJudge(kind="endpoint", source=source, model="longer", template=TEMPLATE, max_unjudged=max_unjudged)


def judged_by(tiny: Recipe, judge: EndpointJudge | EnsembleJudge) -> Recipe:
    generation = tiny.generation.model_copy(update={"responses": 3})
    evaluation = tiny.evaluation.model_copy(update={"judges": (judge,)})
    return tiny.model_copy(update={"judge": judge, "generation": generation, "evaluation": evaluation})


def expected(name: str) -> np.ndarray:
    lengths = np.array([len(text) for text in ANSWERS[name]], dtype=float)
    return lengths[:, None] - lengths[None, :]  # (K, K)


def test_pairs_without_a_verdict_are_asked_for_again_and_no_others(
    store: Store, tiny: Recipe, cpu: Hardware, server: Server, make_prompts: MakePrompts, make_answers: MakeAnswers
) -> None:
    recipe = judged_by(tiny, served(server, max_unjudged=0))
    step = rank.step(recipe, cpu, None, make_prompts(list("abcd")), make_answers(*CHUNKS))
    broken = {f"About c?|{ANSWERS['c'][0]}|{ANSWERS['c'][2]}", f"About d?|{ANSWERS['d'][1]}|{ANSWERS['d'][0]}"}
    server.broken = set(broken)
    with pytest.raises(
        JudgeError, match=r"^rank: 2 of 24 pairs have no verdict \(http 500: 2\); expected at most a share of 0"
    ):
        store.build(step)
    assert len(server.asked) == 24 + 2  # each broken one twice

    server.asked.clear()
    server.broken.pop()
    with pytest.raises(JudgeError, match="1 of 24 pairs have no verdict"):
        store.build(step)
    assert set(server.asked) == broken

    left, server.broken = server.broken, set()
    server.asked.clear()
    ranked = store.build(step)
    assert set(server.asked) == left
    rows = {row.prompt_id: row for row in from_table(Comparison, ranked.tables())}
    for name in "abcd":
        np.testing.assert_allclose(np.reshape(rows[name].logits, (3, 3)), expected(name), atol=1e-5)
    counts = ranked.manifest.counts
    assert (counts["pairs"], counts.get("unjudged", 0)) == (24, 0)
    # what all attempts took: 24 questions, the first time 2 repeated; then 2, one of them twice; then 1
    assert (counts["requests"], counts["retried"]) == (26 + 3 + 1, 2 + 1)
    assert counts["input_tokens"] == 7 * 24  # a question is paid for when it is answered


def test_a_share_that_the_recipe_allows_stays_open_as_nan(
    store: Store, tiny: Recipe, cpu: Hardware, server: Server, make_prompts: MakePrompts, make_answers: MakeAnswers
) -> None:
    recipe = judged_by(tiny, served(server, max_unjudged=0.05))
    server.broken = {f"About c?|{ANSWERS['c'][0]}|{ANSWERS['c'][2]}"}
    ranked = store.build(rank.step(recipe, cpu, None, make_prompts(list("abcd")), make_answers(*CHUNKS)))
    assert ranked.manifest.counts["unjudged"] == ranked.manifest.counts["unjudged_http_500"] == 1
    rows = {row.prompt_id: row for row in from_table(Comparison, ranked.tables())}
    assert np.flatnonzero(np.isnan(rows["c"].logits)).tolist() == [2]  # (0, 2)
    np.testing.assert_allclose(np.reshape(rows["d"].logits, (3, 3)), expected("d"), atol=1e-5)


def test_a_duel_and_an_ensemble_are_completed_the_same_way(
    store: Store, tiny: Recipe, cpu: Hardware, server: Server, make_prompts: MakePrompts, make_answers: MakeAnswers
) -> None:
    """Ensemble: logits of the served judge and of the rule, half each; the rule says 0 to texts outside its language."""
    members = (Member(judge=served(server, 0)), Member(judge=WorldRuleJudge(kind="world-rule")))
    recipe = judged_by(tiny, EnsembleJudge(kind="ensemble", mean="logits", members=members))
    prompts, responses = make_prompts(list("ab")), make_answers(CHUNKS[0])
    server.broken = {f"About b?|{ANSWERS['b'][0]}|{ANSWERS['b'][1]}"}
    step = rank.step(recipe, cpu, None, prompts, responses)
    with pytest.raises(JudgeError, match="1 of 12 pairs have no verdict"):
        store.build(step)
    server.broken = set()
    rows = {row.prompt_id: row for row in from_table(Comparison, store.build(step).tables())}
    served_says, rule_says = (np.reshape(member, (3, 3)) for member in rows["b"].members)
    np.testing.assert_allclose(served_says, expected("b"), atol=1e-5)
    np.testing.assert_allclose(np.reshape(rows["b"].logits, (3, 3)), (served_says + rule_says) / 2, atol=1e-5)

    server.broken = {f"About b?|{ANSWERS['b'][0]}|{ANSWERS['b'][1]}"}
    asked = judged_by(tiny, served(server, 0))
    others = make_answers({"a": ["x"], "b": [ANSWERS["b"][1]]}, stage="sample")
    with pytest.raises(JudgeError, match=r"^duel: 1 of 12 pairs have no verdict"):
        duel.build(store, asked, cpu, [None], prompts, responses, [others])
    server.broken = set()
    ((found,),) = duel.build(store, asked, cpu, [None], prompts, responses, [others])
    b = next(row for row in from_table(Duel, found.tables()) if row.prompt_id == "b")
    assert b.forward == pytest.approx(
        [-2.0, 0.0, 2.0], abs=1e-5
    )  # 2, 4 and 6 characters against 4; the second is the same text
    assert b.backward == pytest.approx([2.0, 0.0, -2.0], abs=1e-5)
