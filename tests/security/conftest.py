"""One real run for all tests of this folder, hostile from end to end: its prompts hold scripts and links, its judge sends back
the key it was given, and its environment is full of secrets. A Prefect server with the settings of `sppo serve` has its pages.
"""

import json
import os
import secrets
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest
from prefect.client.orchestration import SyncPrefectClient

from flows import background
from flows.environment import port_is_free, serving_settings
from flows.serving import _ready, _server_command, _wait_for
from sppo.store import Store

ROOT = Path(__file__).resolve().parents[2]
RUN = "planted"
SECRETS = {
    "AWS_ACCESS_KEY_ID": f"AKIA{secrets.token_hex(8).upper()}",
    "AWS_SECRET_ACCESS_KEY": f"{secrets.token_hex(9)}/a+b{secrets.token_hex(9)}",
    "AWS_SESSION_TOKEN": secrets.token_urlsafe(24),
    "HF_TOKEN": f"hf_{secrets.token_hex(17)}",
    "JUDGE_API_KEY": f"sk-{secrets.token_hex(24)}",
    "WANDB_API_KEY": secrets.token_hex(20),
    "MLFLOW_TRACKING_PASSWORD": secrets.token_urlsafe(12),
    "OPENAI_API_KEY": f"sk-{secrets.token_hex(24)}",
}
"""What a run's environment may hold. None of it belongs into anything that a run writes."""
HARDWARE = """
name: one-core
device: cpu
threads: 1
generate: {processes: 1, tensor_parallel: 1, memory_share: 0.5, kv_cache_mib: 64, max_concurrent: 16, timeout_s: 300}
rank: {processes: 1, tokens_per_batch: 1024, timeout_s: 300}
train:
  processes: 1
  tokens_per_device: 1024
  zero_stage: 0
  offload: none
  recompute_activations: false
  checkpoint_steps: 1
  timeout_s: 300
"""
TEMPLATE = "{prompt}\\n\\n{first}\\n\\n{second}"


class Listener(BaseHTTPRequestHandler):
    """Notes every path that is asked for: what a page that came alive would do."""

    def do_GET(self) -> None:
        self.server.asked.append(self.path)  # type: ignore[attr-defined]
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_POST = do_GET  # noqa: N815 - the base class's names

    def log_message(self, format: str, *values: object) -> None:
        pass


class HostileJudge(BaseHTTPRequestHandler):
    """A served judge that says in all it sends what it was authorised with, and refuses questions as long as it is told to."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        server: Any = self.server
        content = self.rfile.read(int(self.headers["Content-Length"]))
        told = str(self.headers["Authorization"])
        server.authorised.append(told)
        if server.refuses:
            self._send(401, {"error": {"message": f"{told} may not judge here"}})
            return
        logit = len(content) % 3 - 1.0
        top = [{"token": "m", "logprob": -1.0 + logit / 2}, {"token": "M", "logprob": -1.0 - logit / 2}]
        said = {"message": {"content": told}, "logprobs": {"content": [{"top_logprobs": top}]}, "note": told}
        self._send(200, {"choices": [said], "usage": {"prompt_tokens": 1, "completion_tokens": 1}, "note": told})

    def _send(self, status: int, value: object) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *values: object) -> None:
        pass


def _served_by(handler: type[BaseHTTPRequestHandler]) -> Any:
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    return server


@pytest.fixture(scope="session")
def listener() -> Iterator[Any]:
    """A server of loopback that nobody has a reason to ask; `asked` are the paths that somebody did ask for."""
    server = _served_by(Listener)
    server.asked = []
    server.url = f"http://127.0.0.1:{server.server_port}"
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="session")
def hostile_judge() -> Iterator[Any]:
    server = _served_by(HostileJudge)
    server.authorised, server.refuses = [], True
    yield server
    server.shutdown()
    server.server_close()


def _hostile(url: str) -> list[str]:
    return [
        f"<script>window.pwned=1;fetch('{url}/script')</script> ![an image]({url}/image.png) "
        f"<img src={url}/img onerror=window.pwned=6>",
        f"[a link]({url}/link) [script](javascript:window.pwned=2) "
        f"<a href='javascript:window.pwned=3'>here</a> <{url}/auto> {url}/x",
        f"| a | b |\n|---|---|\n| 1 | ![]({url}/table.png) |\n\n# Heading\n\n"
        f"```js\nwindow.pwned=4\n```\n<iframe src={url}/frame>",
        f"\u202egnp.exe\u202c \u2066hidden\u2069 \u200bzero\x07 &lt;script&gt; &#60;img src={url}/entity&#62; "
        f"![ref][1]\n\n[1]: {url}/ref",
        f"<svg onload=fetch('{url}/svg')> <style>@import '{url}/style';</style> "
        f"<link rel=stylesheet href={url}/css> **bold** `code`",
        f"<details open ontoggle=window.pwned=5> <math><mtext></p><img src={url}/math></math> "
        f"<meta http-equiv=refresh content=0;{url}/go>",
    ]


@pytest.fixture(scope="session")
def hostile_texts(listener: Any) -> list[str]:
    """What a model or a user might say to get out of a page: each sets `window.pwned`, asks the listener, or changes what is
    read."""
    return _hostile(listener.url)


@dataclass
class Server:
    """A Prefect server as `sppo serve` starts it."""

    folder: Path
    settings: dict[str, str]

    @property
    def url(self) -> str:
        return self.settings["PREFECT_API_URL"].removesuffix("/api")

    @property
    def password(self) -> str:
        return self.settings["PREFECT_API_AUTH_STRING"]

    def client(self) -> SyncPrefectClient:
        return SyncPrefectClient(f"{self.url}/api", auth_string=self.password)


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("served")
    port = next(number for number in range(15000 + os.getpid() % 1000 * 10, 32768) if port_is_free(number))
    settings = serving_settings(folder, folder / "store", (), port, None)
    secret = {"PREFECT_SERVER_API_AUTH_STRING": settings["PREFECT_API_AUTH_STRING"]}
    background.start(folder, "server", _server_command(settings), {**os.environ, **settings, **secret})
    try:
        _wait_for("server", folder, lambda: _ready(settings["PREFECT_API_URL"]))
        yield Server(folder, settings)
    finally:
        processes = [process for each in background.alive(folder).values() for process in background.with_children(each)]
        background.end(processes, 10)
        assert not [process for process in processes if psutil.pid_exists(process.pid) and process.is_running()]


@dataclass
class Ran:
    """What a run left behind, everywhere."""

    folder: Path
    """Of this machine: scratch, home, temporary files, the card, what was printed."""
    bucket: str
    store: Store
    secrets: dict[str, str]
    """The planted ones, and the server's password."""
    refused: "subprocess.CompletedProcess[str]"
    """The first attempt, whose judge refused."""
    work: dict[str, bytes] = field(default_factory=dict)
    """The store's objects right after it: among them work records that a commit removes."""


@pytest.fixture(scope="session")
def ran(
    tmp_path_factory: pytest.TempPathFactory,
    random_policy: Callable[[str], Path],
    s3_server: str,
    hostile_judge: Any,
    listener: Any,
    prefect_server: Server,
) -> Iterator[Ran]:
    import boto3

    folder = tmp_path_factory.mktemp("ran")
    environment = _environment(folder, s3_server, prefect_server)
    keep = dict(os.environ)
    os.environ.update({name: value for name, value in environment.items() if name.startswith("AWS_")})
    try:
        boto3.Session().client("s3").create_bucket(Bucket="security")
        command = _command(folder, random_policy("llama"), hostile_judge.server_port, listener.url)
        refused = _typed(command, folder, environment, "refused")
        assert refused.returncode == 2, refused.stdout + refused.stderr
        store = Store("s3://security/store", folder / "looking")
        work = {key: store.backend.read(key) or b"" for key in store.backend.list("") if "/work/" in key}
        hostile_judge.refuses = False
        done = _typed(command, folder, environment, "done")
        assert done.returncode == 0, done.stdout + done.stderr + _last_log(folder)
        card = ["card", RUN, "--store", "s3://security/store", "--output", str(folder / "card")]
        assert _typed([sys.executable, "-m", "flows.command_line", *card], folder, environment, "card").returncode == 0
        planted = {**SECRETS, "PREFECT_API_AUTH_STRING": prefect_server.password.partition(":")[2]}
        yield Ran(folder, "security", store, planted, refused, work)
    finally:
        os.environ.clear()
        os.environ.update(keep)
        shutil.rmtree(folder / "looking", ignore_errors=True)


def _environment(folder: Path, s3_server: str, server: Server) -> dict[str, str]:
    for name in ("home", "temporary"):
        (folder / name).mkdir()
    return {
        **os.environ,
        **SECRETS,
        **{name: value for name, value in server.settings.items() if name != "SPPO_STORE"},
        "PREFECT_HOME": str(folder / "home" / "prefect"),
        "AWS_ENDPOINT_URL": s3_server,
        "AWS_DEFAULT_REGION": "us-east-1",
        "HOME": str(folder / "home"),
        "TMPDIR": str(folder / "temporary"),
        "SPPO_SCRATCH": str(folder / "scratch"),
    }


def _command(folder: Path, policy: Path, judge_port: int, url: str) -> list[str]:
    (folder / "one-core.yaml").write_text(HARDWARE)
    texts = [f"{number} {text}" for number in range(3) for text in _hostile(url)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    source = f"{{url: 'http://127.0.0.1:{judge_port}/v1', api_key_env: JUDGE_API_KEY, attempts: 2, pause_s: 0.1}}"
    judge = f'{{kind: endpoint, source: {source}, model: served, template: "{TEMPLATE}"}}'
    values = (
        f"policy.source={{kind: folder, path: {policy}}}",
        "iterations=1",
        f"prompts={{source: {{kind: own, dataset: {folder}/prompts.jsonl, test_share: 0.4}}, max_prompt_tokens: 480, "
        "unusable_rows: refuse}",
        "generation={engine: transformers, responses: 2, temperature: 1.0, top_p: 1.0, max_tokens: 8}",
        f"judge={judge}",
        "selection={responses: all, drop_ties: false, cut: keep, empty: keep}",
        "training.learning_rate=0.01",
        "training.schedule_epochs=1",
        "training.stop_epochs=1",
        "training.global_batch=4",
        "training.max_tokens=512",
        "evaluation.sampling={responses: 1, temperature: 1.0, top_p: 1.0, max_tokens: 8}",
        f"evaluation.judges=[{judge}]",
        "evaluation.max_prompts=4",
        "evaluation.resamples=100",
        "evaluation.gates=null",
    )
    told = ["--run", RUN, "--store", "s3://security/store", "--hardware", str(folder / "one-core.yaml"), "--iterations", "1"]
    return [
        sys.executable,
        "-m",
        "flows.command_line",
        "run",
        "tiny",
        *told,
        *(part for value in values for part in ("--set", value)),
    ]


def _typed(command: list[str], folder: Path, environment: dict[str, str], name: str) -> "subprocess.CompletedProcess[str]":
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400)
    (folder / f"{name}.txt").write_text(done.stdout + done.stderr)
    return done


def _last_log(folder: Path) -> str:
    logs = sorted((folder / "scratch" / "logs").glob(f"{RUN}-*.log"))
    return "\n".join(path.read_text(errors="replace")[-4000:] for path in logs[-1:])
