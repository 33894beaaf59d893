"""Fixtures: stores, and small random policies of real architectures with a chat template of their own."""

import atexit
import json
import math
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import hypothesis
import pytest

hypothesis.settings.register_profile("sppo", deadline=None)  # no test is timed: machines are busy at times
hypothesis.settings.load_profile("sppo")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing in these tests may reach for a hub
os.environ["SPPO_SCRATCH"] = tempfile.mkdtemp(prefix="sppo-tests-")
atexit.register(shutil.rmtree, os.environ["SPPO_SCRATCH"], ignore_errors=True)

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # infra/ is no package of the installation

from infra.local_s3 import LocalS3, local_s3, missing_programs
from sppo.alpaca_eval.prompts import PROMPTS_FILE, instruction_id, reference_step
from sppo.fingerprint import file_sha256
from sppo.hardware import Hardware, load_hardware
from sppo.recipe import AlpacaEval, Judge, Recipe, load_recipe
from sppo.recipe.alpaca_eval import Decoding, EvaluationSetFile
from sppo.records import Prompt, Response, to_table
from sppo.store import Artifact, ArtifactFile, Identity, Outcome, Step, Store, Workspace

RECIPES = ROOT / "deployments" / "recipes"
HARDWARE = ROOT / "deployments" / "hardware"

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{{ '<turn>' + message['role'] + '\n' + message['content'] | trim + '</turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<turn>assistant\n' }}{% endif %}"
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"), tmp_path / "scratch")


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """An S3 server on loopback: a mock that keeps S3's rules about conditional writes."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3_url(s3_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A store URL in a new bucket, its credentials in the environment."""
    import boto3

    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    bucket = f"bucket-{abs(hash(tmp_path))}"
    boto3.Session().client("s3").create_bucket(Bucket=bucket)
    return f"s3://{bucket}/runs"


@pytest.fixture(scope="session")
def ceph_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalS3]:
    """A real S3 server on loopback: Ceph's object gateway."""
    if missing := missing_programs():
        reason = f"not installed: {', '.join(missing)}; type `make system`"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    with local_s3(tmp_path_factory.mktemp("ceph")) as server:
        yield server


@pytest.fixture
def ceph_url(ceph_server: LocalS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A store URL in a new bucket of the real server, its credentials in the environment."""
    import boto3

    for name, value in ceph_server.environment.items():
        monkeypatch.setenv(name, value)
    bucket = f"bucket-{abs(hash(tmp_path))}"
    boto3.Session().client("s3").create_bucket(Bucket=bucket)
    return f"s3://{bucket}/runs"


class LengthJudge(BaseHTTPRequestHandler):
    """A served judge that prefers the longer answer and reads nothing of it: half as long again is a logit of 2.3."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["messages"][0]["content"]
        _, first, second = question.split("|")
        logit = 4 * math.log2((len(first) + 1) / (len(second) + 1))
        top = [
            {"token": "m", "logprob": -math.log1p(math.exp(-logit))},
            {"token": "M", "logprob": -math.log1p(math.exp(logit))},
        ]
        said = {"message": {"content": "m"}, "logprobs": {"content": [{"top_logprobs": top}]}}
        content = json.dumps({"choices": [said], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *values: object) -> None:
        pass


@pytest.fixture
def length_judge() -> Iterator[str]:
    """The URL of such a server. It is asked with the template `{prompt}|{first}|{second}`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), LengthJudge)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


@pytest.fixture
def tiny() -> Recipe:
    return load_recipe("tiny", RECIPES)


@pytest.fixture
def cpu() -> Hardware:
    return load_hardware("cpu", HARDWARE)


@pytest.fixture(scope="session")
def random_policy(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A folder with a random policy of about 0.2 M parameters: `llama`, `mistral` (window 16) or
    `gemma2`, with a byte-level tokenizer."""
    made: dict[str, Path] = {}

    def make(kind: str) -> Path:
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp(f"policy-{kind}")
            _write_policy(kind, made[kind])
        return made[kind]

    return make


def _write_policy(kind: str, folder: Path) -> None:
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import (
        Gemma2Config,
        Gemma2ForCausalLM,
        LlamaConfig,
        LlamaForCausalLM,
        MistralConfig,
        MistralForCausalLM,
        PreTrainedTokenizerFast,
    )

    specials = ["<bos>", "<eos>", "<turn>", "</turn>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*specials, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        eos_token="</turn>",
        additional_special_tokens=["<turn>", "<eos>"],
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)
    shape = {
        "vocab_size": len(vocabulary),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "max_position_embeddings": 512,
        "bos_token_id": 0,
        "eos_token_id": 3,
        "pad_token_id": None,
    }
    torch.manual_seed(0)
    model: torch.nn.Module
    if kind == "llama":
        model = LlamaForCausalLM(LlamaConfig(**shape))
    elif kind == "mistral":
        model = MistralForCausalLM(MistralConfig(**shape, sliding_window=16))
    else:
        model = Gemma2ForCausalLM(Gemma2Config(**{**shape, "pad_token_id": 1}, sliding_window=16, query_pre_attn_scalar=32))
    model.save_pretrained(folder)  # type: ignore[operator]


@pytest.fixture(scope="session")
def random_judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random PairRM of 2 layers, 32 wide; its pieces are single characters, its rules for text DeBERTa's."""
    import torch
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    from sppo.judges.pairrm import PairRM, PairRMConfig, save_native
    from sppo.judges.segments import PREFIXES, SegmentLimits

    folder = tmp_path_factory.mktemp("judge")
    specials = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
    pieces = [(token, 0.0) for token in specials] + [(chr(code), -5.0) for code in [*range(33, 127), 0x2581]]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=3))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Strip(), normalizers.NFKC(), normalizers.Replace(Regex(r"\s+"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme="always")
    tokenizer.add_special_tokens([*specials, "[MASK]"])
    tokenizer.add_tokens(list(PREFIXES))
    tokenizer.save(str(folder / "tokenizer.json"))
    shape = {
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "relative_attention": True,
        "position_buckets": 32,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "pos_att_type": "p2c|c2p",
        "position_biased_input": False,
    }
    network = PairRM(PairRMConfig(shape))
    draw = torch.Generator().manual_seed(0)
    for parameter in network.module.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=draw)
    save_native(network, folder / "tokenizer.json", SegmentLimits(64, 48), folder)
    return folder


Answers = dict[str, list[str]]


@pytest.fixture
def make_prompts(store: Store) -> Callable[[list[str]], ArtifactFile]:
    """Commits a split of one file whose prompts have these ids, each asking about itself, such as `About a?`."""

    def make(prompt_ids: list[str]) -> ArtifactFile:
        rows = [Prompt(prompt_id, [{"role": "user", "content": f"About {prompt_id}?"}], [1]) for prompt_id in prompt_ids]

        def run(workspace: Workspace) -> Outcome:
            workspace.add_table(to_table(Prompt, rows), "train-1.parquet")
            return Outcome("prompts")

        return store.build(Step(Identity("split", 1, {"ids": prompt_ids}, {}), run)).file("train-1.parquet")

    return make


@pytest.fixture
def make_answers(store: Store) -> Callable[..., Artifact]:
    """Commits responses given as texts by prompt, one dictionary a chunk file."""

    def make(*chunks: Answers, stage: str = "generate") -> Artifact:
        def run(workspace: Workspace) -> Outcome:
            for index, chunk in enumerate(chunks):
                rows = [
                    Response(prompt_id, k, [k], text, "stop", [0.0], 0)
                    for prompt_id, texts in chunk.items()
                    for k, text in enumerate(texts)
                ]
                workspace.add_table(to_table(Response, rows), f"chunk-{index:05d}.parquet")
            return Outcome("responses")

        return store.build(Step(Identity(stage, 1, {"chunks": list(chunks)}, {}), run))

    return make


@pytest.fixture
def make_alpaca(store: Store, tiny: Recipe, tmp_path: Path) -> Callable[..., tuple[Recipe, Artifact, Artifact, Artifact]]:
    """A recipe with AlpacaEval on a set of one's own, given as (reference's answer, policy's answer) by instruction; and the
    artifacts `alpaca-reference`, `alpaca-prompts` and `alpaca-answer` as if they had been drawn, `chunk` answers a file."""

    def make(
        rows: dict[str, tuple[str, str]], judge: Judge, chunk: int = 32, **values: object
    ) -> tuple[Recipe, Artifact, Artifact, Artifact]:
        path = tmp_path / "evaluation_set.json"
        questions = [
            {"dataset": "own", "instruction": instruction, "output": reference, "generator": "the-reference"}
            for instruction, (reference, _) in rows.items()
        ]
        path.write_text(json.dumps(questions, ensure_ascii=False), encoding="utf-8")
        asked = AlpacaEval(
            judge=judge,
            decoding=Decoding(temperature=0.7, top_p=0.9, max_tokens=8),
            evaluation_set=EvaluationSetFile(source=str(path), sha256=file_sha256(path)),
            gamed_baselines=None,
            **values,  # type: ignore[arg-type]
        )
        evaluation = tiny.evaluation.model_copy(update={"alpaca_eval": asked, "resamples": 200})
        recipe = tiny.model_copy(update={"evaluation": evaluation})

        def add_prompts(workspace: Workspace) -> Outcome:
            turns = [Prompt(instruction_id(text), [{"role": "user", "content": text}], [1]) for text in rows]
            workspace.add_table(to_table(Prompt, turns), PROMPTS_FILE)
            return Outcome("prompts")

        def add_answers(workspace: Workspace) -> Outcome:
            drawn = [
                Response(instruction_id(text), 0, [1], answer, "stop", [0.0], 0) for text, (_, answer) in rows.items() if answer
            ]
            for number, start in enumerate(range(0, len(drawn), chunk)):
                workspace.add_table(to_table(Response, drawn[start : start + chunk]), f"chunk-{number:05d}.parquet")
            return Outcome("answers")

        told = {text: list(answers) for text, answers in rows.items()}
        reference = store.build(reference_step(recipe))
        prompts = store.build(Step(Identity("alpaca-prompts", 1, {"rows": list(rows)}, {}), add_prompts))
        answers = store.build(Step(Identity("alpaca-answer", 1, {"rows": told}, {"policy": "a" * 64}), add_answers))
        return recipe, reference, prompts, answers

    return make
