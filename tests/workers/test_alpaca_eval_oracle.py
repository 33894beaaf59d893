"""Parity: our arithmetic and alpaca_eval's own code say the same of the same files, which it reads as we write them.

The library stands unchanged in the environment that `make bench-rivals` builds.
"""

import hashlib
import json
import math
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from sppo.alpaca_eval import judging, results
from sppo.alpaca_eval.annotations import Annotation, by_instruction, from_json, to_json
from sppo.alpaca_eval.judging import model_first, open_rows
from sppo.alpaca_eval.length_control import design, length_controlled
from sppo.alpaca_eval.prompts import PROMPTS_FILE, instruction_id
from sppo.alpaca_eval.sets import EvaluationSet, GamedBaselines, Question, read_gamed_baselines
from sppo.alpaca_eval.win_rates import win_rates
from sppo.hardware import Hardware
from sppo.recipe import Endpoint, EndpointJudge, Recipe
from sppo.store import Artifact, Store

ROOT = Path(__file__).resolve().parents[2]
RIVAL = Path(os.environ.get("SPPO_RIVAL_ALPACA_EVAL", ROOT / "build" / "rivals" / "alpaca-eval" / "bin" / "python"))
SHARED = ROOT.parent / "shared" / "data"
ANNOTATIONS = SHARED / "alpaca_eval_2_annotations.parquet"
GAMED = SHARED / "alpaca_eval_2_gamed_baselines_reconstructed.parquet"
RESPONSES = SHARED / "alpaca_eval_responses.parquet"
MODELS = ("FuseChat-Gemma-2-9B-Instruct", "claude-2.1", "gpt-3.5-turbo-1106")

pytestmark = [
    pytest.mark.skipif(not RIVAL.exists(), reason="no environment for alpaca_eval: type `make bench-rivals`"),
    pytest.mark.skipif(not (ANNOTATIONS.is_file() and GAMED.is_file() and RESPONSES.is_file()), reason="no real answers here"),
]


@pytest.fixture(scope="module")
def rival() -> Iterator[Any]:
    """Asks the unchanged library: a request to its answer."""
    server = ROOT / "benchmarks" / "rivals" / "alpaca_eval_server.py"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OPENAI_API_KEY": "none", "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)
    with subprocess.Popen(
        [str(RIVAL), str(server)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def ask(**request: Any) -> Any:
            process.stdin.write(json.dumps(request) + "\n")  # type: ignore[union-attr]
            process.stdin.flush()  # type: ignore[union-attr]
            answer = json.loads(process.stdout.readline())  # type: ignore[union-attr]
            assert "error" not in answer, answer
            return answer

        yield ask
        process.stdin.close()


@pytest.fixture(scope="module")
def gamed(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, GamedBaselines]:
    """The reconstructed baselines as the CSV that both read."""
    table = pq.read_table(GAMED)
    path = tmp_path_factory.mktemp("gamed") / "df_gamed.csv"
    lines = [",".join(table.column_names)]
    lines += [",".join(str(value) for value in row.values()) for row in table.to_pylist()]
    path.write_text("\n".join(lines) + "\n")
    return str(path), read_gamed_baselines(str(path), hashlib.sha256(path.read_bytes()).hexdigest())


@pytest.fixture(scope="module")
def questions() -> EvaluationSet:
    rows = pq.read_table(RESPONSES).to_pylist()
    return EvaluationSet(
        tuple(Question(row["instruction"], row["gpt4_1106_preview"], row["dataset"]) for row in rows), "gpt4_1106_preview", ""
    )


def real_verdicts(model: str, questions: EvaluationSet) -> list[Annotation]:
    """The published judgements of a model on the real instructions, on texts of the right length, the set's order lost."""
    rows = [row for row in pq.read_table(ANNOTATIONS).to_pylist() if row["model"] == model]
    return [
        Annotation(
            questions.instructions[row["index"]],
            "r" * row["length_baseline"],
            "gpt4_1106_preview",
            "m" * row["length_model"],
            model,
            "weighted_alpaca_eval_gpt4_turbo",
            row["preference"],
        )
        for row in reversed(rows)
    ]


def in_order(annotations: list[Annotation], questions: EvaluationSet) -> list[Annotation]:
    """As the library needs them: its length control goes by row."""
    found = by_instruction(annotations)
    return [found[instruction] for instruction in questions.instructions]


def assert_same(
    annotations: list[Annotation], questions: EvaluationSet, gamed: tuple[str, GamedBaselines], rival: Any, folder: Path
) -> None:
    path = folder / "annotations.json"
    path.write_text(to_json(in_order(annotations, questions)))
    raw = win_rates(annotations)
    for kind, baselines in (("length_controlled_v1", gamed[1]), ("length_controlled_minimal", None)):
        theirs = rival(metrics=str(path), gamed=gamed[0], fit=kind)
        ours = length_controlled(design(annotations, questions, baselines))
        assert ours.kind == kind
        # points, so 1e-8 of a rate: both call liblinear with the same rows, weights and seeds
        assert ours.win_rate == pytest.approx(theirs["length_controlled_winrate"], abs=1e-6)
        assert ours.published_standard_error == pytest.approx(theirs["lc_standard_error"], abs=1e-6)
        for name in ("win_rate", "standard_error", "discrete_win_rate", "n_wins", "n_wins_base", "n_draws", "avg_length"):
            assert getattr(raw, name) == pytest.approx(theirs[name], abs=1e-9), name
        assert raw.n_total == theirs["n_total"]


@pytest.mark.parametrize("model", MODELS)
def test_real_verdicts_come_to_the_same(
    model: str, questions: EvaluationSet, gamed: tuple[str, GamedBaselines], rival: Any, tmp_path: Path
) -> None:
    assert_same(real_verdicts(model, questions), questions, gamed, rival, tmp_path)


@pytest.mark.parametrize("model", ["SPPO-Gemma-2-9B-It-PairRM", "SPPO-Llama-3-Instruct-8B-PairRM", "SPPO-Mistral7B-PairRM"])
def test_made_verdicts_on_real_answers_with_gaps_and_draws_come_to_the_same(
    model: str, questions: EvaluationSet, gamed: tuple[str, GamedBaselines], rival: Any, tmp_path: Path
) -> None:
    answers = {instruction_id(row["instruction"]): row[model] for row in pq.read_table(RESPONSES).to_pylist()}
    random = np.random.default_rng(0)
    annotations = []
    for number, one in enumerate(open_rows(questions, answers, model, "made")):
        longer = (len(one.output_2) - len(one.output_1)) / 1500
        chance = 1 / (1 + math.exp(-longer - random.normal(scale=3)))
        left_open, drawn = number % 40 == 7, number % 50 == 3
        annotations.append(one if left_open else one.with_verdict(1.5 if drawn else 1 + chance, {"p": chance}))
    assert win_rates(annotations).unjudged == 20
    assert_same(annotations, questions, gamed, rival, tmp_path)


def test_its_single_order_is_ours_by_name(questions: EvaluationSet, rival: Any) -> None:
    instructions = [*questions.instructions, "Füchse 🦊?", "", "a\nb"]
    assert [model_first(instruction) for instruction in instructions] == rival(switched=instructions)


TEMPLATE = """<|im_start|>system
You compare.
<|im_end|>
<|im_start|>user
{"instruction": "{instruction}"}
m: {output_1}
M: {output_2}
m or M?
<|im_end|>
"""
CONFIGURATION = """judge:
  prompt_template: "{template}"
  fn_completions: openai_completions
  completions_kwargs:
    model_name: gpt-4-judge
    max_tokens: 1
    temperature: 0
    logprobs: true
    top_logprobs: 5
    client_kwargs: {{base_url: "{url}"}}
  fn_completion_parser: logprob_parser
  completion_parser_kwargs: {{numerator_token: m, denominator_tokens: [m, M], is_binarize: false}}
  completion_key: completions_all
  batch_size: 1
"""


class Handler(BaseHTTPRequestHandler):
    """Answers by the sha256 of all turns, so another question is another answer."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        turns = json.dumps([[turn["role"], turn["content"]] for turn in body["messages"]])
        chance = 0.05 + 0.9 * int.from_bytes(hashlib.sha256(turns.encode()).digest()[:4], "big") / 2**32
        top = [
            {"token": token, "logprob": math.log(share), "bytes": None}
            for token, share in (("m", 0.9 * chance), ("M", 0.9 * (1 - chance)), ("The", 0.1))
        ]
        content = [{"token": "m", "logprob": 0.0, "bytes": None, "top_logprobs": top}]
        reply = {
            "id": "1",
            "object": "chat.completion",
            "created": 0,
            "model": "gpt-4-judge",
            "choices": [
                {
                    "index": 0,
                    "finish_reason": "length",
                    "message": {"role": "assistant", "content": "m"},
                    "logprobs": {"content": content},
                }
            ],
            "usage": {"prompt_tokens": 9, "completion_tokens": 1, "total_tokens": 10},
        }
        said = json.dumps(reply).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, format: str, *values: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    server.shutdown()
    server.server_close()


def test_its_annotator_with_its_order_and_a_template_of_its_form_gives_the_verdicts_that_ours_gives(
    url: str,
    questions: EvaluationSet,
    rival: Any,
    store: Store,
    cpu: Hardware,
    make_alpaca: Callable[..., tuple[Recipe, Artifact, Artifact, Artifact]],
    tmp_path: Path,
) -> None:
    few = questions.questions[:30]
    texts = [text.strip() for text in pq.read_table(RESPONSES)["SPPO-Mistral7B-PairRM"].to_pylist()[:30]]
    texts[4] = few[4].reference  # a draw that nobody is asked about
    rows = {one.instruction: (one.reference, text) for one, text in zip(few, texts, strict=True)}
    template, configuration = tmp_path / "template.txt", tmp_path / "judge" / "configs.yaml"
    template.write_text(TEMPLATE)
    configuration.parent.mkdir()
    configuration.write_text(CONFIGURATION.format(template=template, url=url))
    theirs = rival(
        judge=str(configuration),
        references=[{"instruction": text, "output": both[0], "generator": "the-reference"} for text, both in rows.items()],
        outputs=[{"instruction": text, "output": both[1], "generator": "ours"} for text, both in rows.items()],
    )
    ours = TEMPLATE.strip()
    for their_blank, our_blank in (("{instruction}", "{prompt}"), ("{output_1}", "{first}"), ("{output_2}", "{second}")):
        ours = ours.replace(their_blank, our_blank)
    judge = EndpointJudge(kind="endpoint", source=Endpoint(url=url), model="gpt-4-judge", template=ours, constrain="none")
    recipe, reference, prompts, answers = make_alpaca(rows, judge, order="alpaca_eval")
    (judged,) = judging.build(store, recipe, cpu, None, prompts.file(PROMPTS_FILE), reference, [answers])
    made = store.build(results.step(recipe, reference, answers, judged))
    expected = by_instruction(from_json(json.dumps(theirs)))
    assert {one.preference for one in expected.values()} != {1.5}
    found = from_json(made.text(results.ANNOTATIONS_FILE))
    assert len(found) == 30
    for one in found:
        assert one.preference == pytest.approx(expected[one.instruction].preference, abs=1e-6)
        assert (one.output_1, one.output_2) == (expected[one.instruction].output_1, expected[one.instruction].output_2)
    assert by_instruction(found)[few[4].instruction].preference == 1.5
