"""AlpacaEval from instructions to scores by real worker processes: a tiny policy's answers, judged by vLLM's server over a line
that breaks, and by a small PairRM."""

import importlib.util
import json
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from sppo import generate, judges
from sppo import policy as policies
from sppo.alpaca_eval import judging, prompts, results, scores
from sppo.alpaca_eval.annotations import from_json, preferences
from sppo.alpaca_eval.judging import model_first
from sppo.errors import JudgeError
from sppo.fingerprint import file_sha256
from sppo.hardware import Hardware
from sppo.judges import Match
from sppo.judges.template import filled
from sppo.progress import silent
from sppo.recipe import (
    AlpacaEval,
    Endpoint,
    EndpointJudge,
    FolderModel,
    Judge,
    PairRMJudge,
    Recipe,
    WorldRuleJudge,
    load_recipe,
)
from sppo.recipe.alpaca_eval import Decoding, EvaluationSetFile, Order
from sppo.store import Artifact, Store

needs_vllm = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
RECIPES = Path(__file__).resolve().parents[2] / "deployments" / "recipes"
TEMPLATE = "Q: {prompt}\nm: {first}\nM: {second}\nWhich is better?"
INSTRUCTIONS = [f"Describe fox {number}." for number in range(36)]
"""Two chunks of answers."""
REFERENCES = [f"Fox {number} is red." + " It runs." * (number % 5) for number in range(36)]


@dataclass(frozen=True)
class Drawn:
    """A tiny policy's answers, before anyone has judged them."""

    store: Store
    recipe: Recipe
    reference: Artifact
    prompts: Artifact
    answers: Artifact
    sampled: Artifact
    """The held-out answers that the same engine load drew."""

    @property
    def texts(self) -> dict[str, str]:
        """By instruction."""
        table = self.answers.tables()
        found = dict(zip(table["prompt_id"].to_pylist(), table["text"].to_pylist(), strict=True))
        return {text: found[prompts.instruction_id(text)] for text in INSTRUCTIONS}

    def judged_by(self, judge: Judge, order: Order = "both") -> Recipe:
        asked = self.recipe.evaluation.alpaca_eval
        assert asked is not None
        changed = asked.model_copy(update={"judge": judge, "order": order})
        evaluation = self.recipe.evaluation.model_copy(update={"alpaca_eval": changed})
        return self.recipe.model_copy(update={"evaluation": evaluation})

    def judged(self, recipe: Recipe, hardware: Hardware, judge: Artifact | None = None) -> Artifact:
        file = self.prompts.file(prompts.PROMPTS_FILE)
        return judging.build(self.store, recipe, hardware, judge, file, self.reference, [self.answers])[0]

    def evaluated(self, recipe: Recipe, judged: Artifact) -> Artifact:
        return self.store.build(results.step(recipe, self.reference, self.answers, judged))

    def chances(self, recipe: Recipe, judged: Artifact) -> list[float]:
        """P(the policy's answer is better), in the set's order."""
        rows = from_json(self.evaluated(recipe, judged).text(results.ANNOTATIONS_FILE))
        assert [row.instruction for row in rows] == INSTRUCTIONS
        return [float(value) for value in preferences(rows)]


@pytest.fixture(scope="module")
def drawn(random_policy: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Drawn:
    """One answer to each instruction and the held-out answers, from one engine load."""
    from sppo.hardware import load_hardware
    from sppo.records import Prompt, to_table
    from sppo.store import Identity, Outcome, Step, Workspace

    folder = tmp_path_factory.mktemp("alpaca")
    path = folder / "set.json"
    rows = zip(INSTRUCTIONS, REFERENCES, strict=True)
    path.write_text(json.dumps([{"instruction": one, "output": other, "generator": "foxes"} for one, other in rows]))
    tiny = load_recipe("tiny", RECIPES, ("generation.engine=transformers", "evaluation.max_prompts=2"))
    asked = AlpacaEval(
        judge=WorldRuleJudge(kind="world-rule"),
        decoding=Decoding(temperature=0.8, top_p=0.9, max_tokens=10),
        evaluation_set=EvaluationSetFile(source=str(path), sha256=file_sha256(path)),
        gamed_baselines=None,
    )
    source = FolderModel(kind="folder", path=str(random_policy("llama")))
    recipe = tiny.model_copy(
        update={
            "policy": tiny.policy.model_copy(update={"source": source}),
            "evaluation": tiny.evaluation.model_copy(update={"alpaca_eval": asked, "resamples": 200}),
        }
    )
    store = Store(str(folder / "store"), folder / "scratch")

    def add_held_out(workspace: Workspace) -> Outcome:
        held_out = [Prompt(name, [{"role": "user", "content": name}], [0, 2, 5]) for name in "ab"]
        workspace.add_table(to_table(Prompt, held_out), "test.parquet")
        return Outcome("held out")

    split = store.build(Step(Identity("split", 1, {}, {}), add_held_out))
    base = store.build(policies.step(recipe))
    reference = store.build(prompts.reference_step(recipe))
    rendered = prompts.build(store, recipe, base, reference)
    draws = [generate.held_out_draw(recipe, split), prompts.alpaca_draw(recipe, rendered)]
    hardware = load_hardware("cpu", RECIPES.parent / "hardware")
    sampled, answers = generate.build(store, recipe, hardware, base, draws)
    return Drawn(store, recipe, reference, rendered, answers, sampled)


def test_answers_are_drawn_with_the_held_out_ones_and_kept_without_white_space_around(drawn: Drawn) -> None:
    counts = drawn.answers.manifest.counts
    assert (counts["prompts"], counts["responses"]) == (36, 36)
    assert drawn.answers.file_names() == ["chunk-00000.parquet", "chunk-00001.parquet"]
    assert len([*drawn.answers.manifest.logs, *drawn.sampled.manifest.logs]) == 1, "one engine load"
    table = drawn.answers.tables()
    assert max(map(len, table["token_ids"].to_pylist())) <= 10
    assert all(text == text.strip() for text in table["text"].to_pylist())
    seeds = {generate.prompt_seed(drawn.recipe.seed, generate.HELD_OUT, text) for text in table["prompt_id"].to_pylist()}
    assert set(table["seed"].to_pylist()) == seeds, "the same for every policy"


# --- a small PairRM


def pairrm(folder: Path) -> PairRMJudge:
    source = FolderModel(kind="folder", path=str(folder))
    return PairRMJudge(kind="pairrm", source=source, max_source_tokens=64, max_candidate_tokens=48)


def test_a_preference_model_judges_as_it_does_everywhere_and_is_not_called_alpaca_evals(
    drawn: Drawn, cpu: Hardware, random_judge: Path
) -> None:
    judge = pairrm(random_judge)
    recipe = drawn.judged_by(judge)
    artifact = judges.build(drawn.store, judge, recipe)
    two = cpu.model_copy(update={"rank": cpu.rank.model_copy(update={"processes": 2})})
    judged = drawn.judged(recipe, two, artifact)
    assert judged.manifest.counts["pairs"] == 72
    direct = judges.load(judge, random_judge, "cpu", 1024)
    texts = drawn.texts
    matches = [
        Match(text, [{"role": "user", "content": text}], [texts[text], reference], [(0, 1), (1, 0)])
        for text, reference in zip(INSTRUCTIONS, REFERENCES, strict=True)
    ]
    logits = np.array(direct.judge(matches, silent))  # (N, 2), L(model, reference) and L(reference, model)
    expected = 1 / (1 + np.exp(-(logits[:, 0] - logits[:, 1]) / 2))
    np.testing.assert_allclose(drawn.chances(recipe, judged), expected, atol=1e-5)
    evaluated = drawn.evaluated(recipe, judged)
    found = scores.scores(evaluated, 1)
    assert {score.group for score in found.scores} == {"against foxes, judge pairrm"}
    assert artifact is not None
    assert found.notes["against foxes, judge pairrm"]["judge"] == f"pairrm, weights {artifact.digest[:12]}"
    assert evaluated.manifest.metrics["win_rate"] == pytest.approx(100 * expected.mean(), abs=1e-3)


# --- a served model


class Line(ThreadingHTTPServer):
    """Passes questions on to the server; of some instructions it does what lines and servers do, or it goes dead."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, target: str) -> None:
        super().__init__(("127.0.0.1", 0), Passing)
        self.target = target
        self.broken = False
        self.left: int | None = None
        """Questions that it still passes on; None for any number."""
        self.passed: list[str] = []
        self.lock = threading.Lock()

    def takes(self, text: str) -> bool:
        """Whether a question is passed on."""
        with self.lock:
            if self.left == 0:
                return False
            self.left = None if self.left is None else self.left - 1
            self.passed.append(text)
            return True

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass


class Passing(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Line

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        text = json.loads(content)["messages"][0]["content"]
        if self.server.broken and "fox 3." in text:
            self.say(200, b'{"choices": [{"message": {"content": "As an AI, I cannot choose."}}]}')
        elif self.server.broken and "fox 5." in text:
            self.say(500, b"Internal Server Error")
        elif (self.server.broken and "fox 9." in text) or not self.server.takes(text):
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
        else:
            json_type = {"Content-Type": "application/json"}
            reply = httpx.post(f"{self.server.target}/chat/completions", content=content, headers=json_type, timeout=60)
            self.say(reply.status_code, reply.content)

    def say(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
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


def judge_at(url: str, **values: Any) -> EndpointJudge:
    source = Endpoint(url=url, concurrency=4, timeout_s=30, attempts=2, pause_s=0.05)
    return EndpointJudge(**{"kind": "endpoint", "source": source, "model": "tiny", "template": TEMPLATE, **values})


@pytest.fixture(scope="module")
def expected(drawn: Drawn, random_policy: Callable[[str], Path]) -> list[tuple[float, float]]:
    """P(the policy's answer is better) by transformers, of each instruction: shown first, shown second."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = random_policy("llama")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    names = tokenizer.convert_tokens_to_ids(["m", "M"])

    def first_is_better(prompt: str, first: str, second: str) -> float:
        turns = [{"role": "user", "content": filled(TEMPLATE, prompt, first, second)}]
        ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        with torch.no_grad():
            return float(torch.softmax(model(ids["input_ids"]).logits[0, -1, names].double(), dim=-1)[0])

    texts = drawn.texts
    return [
        (first_is_better(text, texts[text], reference), 1 - first_is_better(text, reference, texts[text]))
        for text, reference in zip(INSTRUCTIONS, REFERENCES, strict=True)
    ]


@needs_vllm
def test_a_served_model_judges_and_its_numbers_follow(
    drawn: Drawn, cpu: Hardware, vllm_server: str, expected: list[tuple[float, float]]
) -> None:
    recipe = drawn.judged_by(judge_at(vllm_server))
    judged = drawn.judged(recipe, cpu)
    both = [sum(each) / 2 for each in expected]
    np.testing.assert_allclose(drawn.chances(recipe, judged), both, atol=1e-5)
    assert (judged.manifest.counts["requests"], judged.manifest.counts.get("unjudged", 0)) == (72, 0)
    evaluated = drawn.evaluated(recipe, judged)
    assert evaluated.manifest.metrics["win_rate"] == pytest.approx(100 * np.mean(both), abs=1e-3)
    found = {score.name: score for score in scores.scores(evaluated, 1).scores}
    assert set(found) == {"win rate", "length-only win rate", "discrete win rate", "mean length"}
    assert found["win rate"].group == "against foxes, judge tiny"
    lengths = [len(text) for text in drawn.texts.values()]
    assert (found["mean length"].value, found["mean length"].n) == (sum(lengths) // 36, 36)


@needs_vllm
def test_alpaca_evals_single_order_asks_half_as_much(
    drawn: Drawn, cpu: Hardware, vllm_server: str, expected: list[tuple[float, float]]
) -> None:
    recipe = drawn.judged_by(judge_at(vllm_server), order="alpaca_eval")
    judged = drawn.judged(recipe, cpu)
    single = [each[0 if model_first(text) else 1] for text, each in zip(INSTRUCTIONS, expected, strict=True)]
    np.testing.assert_allclose(drawn.chances(recipe, judged), single, atol=1e-5)
    assert judged.manifest.counts["requests"] == 36


@needs_vllm
def test_a_server_that_dies_in_the_middle_is_asked_again_for_the_rest_alone(
    drawn: Drawn, cpu: Hardware, line: Line, expected: list[tuple[float, float]]
) -> None:
    recipe = drawn.judged_by(judge_at(f"http://127.0.0.1:{line.server_address[1]}/v1", model="tiny", max_unjudged=0.02))
    line.left = 25  # of the 64 questions of the first chunk
    with pytest.raises(JudgeError, match=r"cannot be reached in 2 attempts"):
        drawn.judged(recipe, cpu)
    before, line.left, line.passed = set(line.passed), None, []
    assert len(before) == 25
    judged = drawn.judged(recipe, cpu)
    assert len(line.passed) == 72 - 25
    assert not before & set(line.passed)
    np.testing.assert_allclose(drawn.chances(recipe, judged), [sum(each) / 2 for each in expected], atol=1e-5)


@needs_vllm
def test_nonsense_500s_and_lost_connections_leave_rows_unjudged_counted_and_never_even(
    drawn: Drawn, cpu: Hardware, line: Line, expected: list[tuple[float, float]]
) -> None:
    judge = judge_at(f"http://127.0.0.1:{line.server_address[1]}/v1", max_unjudged=0.05)
    line.broken = True
    with pytest.raises(
        JudgeError,
        match=r"alpaca-judge: 6 of 72 pairs have no verdict \(connection: 2, http 500: 2, no logprobs: 2\); expected at most",
    ):
        drawn.judged(drawn.judged_by(judge), cpu)
    line.broken, line.passed = False, []
    assert drawn.judged(drawn.judged_by(judge), cpu).manifest.counts.get("unjudged", 0) == 0
    assert len(line.passed) == 6, "both orders of the three rows, and no others"
    line.broken = True
    recipe = drawn.judged_by(judge.model_copy(update={"max_unjudged": 0.1}))
    judged = drawn.judged(recipe, cpu)
    assert judged.manifest.counts["unjudged"] == 6
    chances = drawn.chances(recipe, judged)
    assert np.flatnonzero(np.isnan(chances)).tolist() == [3, 5, 9]
    evaluated = drawn.evaluated(recipe, judged)
    assert (evaluated.manifest.counts["unjudged"], evaluated.manifest.counts["draws"]) == (3, 0)
    assert {score.n for score in scores.scores(evaluated, 1).scores if score.unit == "%"} == {33}
    both = [sum(each) / 2 for number, each in enumerate(expected) if number not in (3, 5, 9)]
    assert evaluated.manifest.metrics["win_rate"] == pytest.approx(100 * np.mean(both), abs=1e-3)
