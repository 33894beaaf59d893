"""`sppo card` on a run: read from its artifacts, plain about what is missing, uploaded in one commit that can be resumed."""

import base64
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

import sppo.policy
from sppo.card import Scores, read_card, render, write_folder
from sppo.card.hub import check_repo, token_of
from sppo.card.reading import named_scores
from sppo.errors import CardError, RecipeError, RunError, StoreError
from sppo.hardware import Hardware
from sppo.last_start import remember_start
from sppo.recipe import Recipe
from sppo.records import Prompt, Response, to_table
from sppo.report import assemble
from sppo.runs import Entry, Setup, index_key, read_iteration, start, write_iteration
from sppo.store import Artifact, Identity, Outcome, Step, Store, Workspace
from sppo.store.seal import sealed

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "hf_secretsecretsecret"
BIG = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def artifact(store: Store, stage: str, name: str, files: dict[str, str], **counts: int) -> Artifact:
    def run(workspace: Workspace) -> Outcome:
        for file, text in files.items():
            workspace.add_text(text, file)
        return Outcome(name, counts)

    return store.build(Step(Identity(stage, 1, {"name": name}, {}), run))


def report_json(iteration: int, means: list[float], tokens: list[float]) -> str:
    rates = [{"mean": mean, "low": mean - 0.05, "high": mean + 0.05, "n": 2} for mean in means]
    against = [{"iteration": number, "win_rate": rate} for number, rate in enumerate(rates)]
    judges = [{"judge": name, "independent": name != "pairrm", "against": against} for name in ("pairrm", "world-rule")]
    lengths = [{"iteration": number, "mean_tokens": mean, "cut_share": 0.25} for number, mean in enumerate(tokens)]
    return json.dumps({"iteration": iteration, "judges": judges, "lengths": lengths})


def sample(store: Store, number: int) -> Artifact:
    """Two prompts with two answers each, of number + 1 and number + 3 tokens."""
    rows = [
        Response(prompt_id, k, [1] * (number + tokens), "an answer", "stop", [0.0] * (number + tokens), 0)
        for prompt_id, tokens in (("fox", 1), ("owl", 3))
        for k in range(2)
    ]

    def run(workspace: Workspace) -> Outcome:
        workspace.add_table(to_table(Response, rows), "chunk-00000.parquet")
        return Outcome("")

    return store.build(Step(Identity("sample", 1, {"policy": number}, {}), run))


def split(store: Store, policy: Artifact) -> Artifact:
    prompts = [Prompt(name, [{"role": "user", "content": f"Describe the {name}."}], [1]) for name in ("fox", "owl")]

    def run(workspace: Workspace) -> Outcome:
        for file in ("test", "train-1", "train-2", "train-3"):
            workspace.add_table(to_table(Prompt, prompts), f"{file}.parquet")
        return Outcome("", {"test": 2, "train_1": 2, "train_2": 2, "train_3": 2})

    part = {"prompts": {"source": {"kind": "own", "dataset": "/home/someone/mine.jsonl", "test_share": 0.1}}}
    return store.build(Step(Identity("split", 1, part, {"policy": policy, "dataset": "9" * 64}), run))


def trained(store: Store, folder: Path, before: Artifact, prompts: Artifact, iteration: int) -> Artifact:
    """A policy folder with two files of weights; their bytes are made up, for nobody loads them."""

    def run(workspace: Workspace) -> Outcome:
        workspace.add_files(path for path in sppo.policy.policy_files(folder) if path.suffix != ".safetensors")
        for number, name in enumerate(BIG):
            workspace.add_text(f"weights {number} of {iteration}" * 1000, name)
        return Outcome("trained", {"prompts": 2, "responses": 4, "tokens": 40, "steps": 1})

    inputs = {"policy": before, "prompts": prompts.file(f"train-{iteration}.parquet")}
    return store.build(Step(Identity("train", 1, {"iteration": iteration}, inputs), run))


COMPARISONS = {
    "comparisons": [
        {
            **{"policy": 2, "against": 0, "group": "AlpacaEval 2", "name": "win rate", "difference": 5.25, "low": 1.0},
            **{"high": 9.5, "n": 805, "unit": "points", "test": "paired bootstrap", "p": 0.012, "adjusted_p": 0.024},
        }
    ]
}


def scores_json(policy: int, value: float) -> str:
    row = {"policy": policy, "group": "AlpacaEval 2", "name": "win rate", "value": value, "low": 1.0, "high": 99.0, "n": 805}
    return json.dumps({"scores": [row | {"unit": "%"}], "versions": {"vllm": "0.32.0"}})


@pytest.fixture
def finished(tiny: Recipe, cpu: Hardware, store: Store, random_policy: Callable[[str], Path]) -> Store:
    """A store with a run `demo` of two iterations, their numbers made up; the second one's policy is exported and scored."""
    setup = Setup("demo", start(store, "demo", tiny, lambda recipe: recipe), cpu, store)
    remember_start(setup, "/srv/mine/2xh100.yaml", None, "a test")
    base = artifact(store, "policy", "base", {"config.json": "{}"})
    judge = artifact(store, "judge", "judge", {"config.json": "{}"})
    prompts, samples = split(store, base), [sample(store, number) for number in range(3)]
    first = trained(store, random_policy("llama"), base, prompts, 1)
    second = trained(store, random_policy("llama"), first, prompts, 2)
    evaluated = artifact(store, "evaluate", "1", {"report.json": report_json(1, [0.6], [2.0, 3.0])})
    stages = {"policy": base, "judge": judge, "split": prompts, "train": first, "evaluate": evaluated}
    write_iteration(setup, 1, stages, samples[:2], [])
    evaluated = artifact(store, "evaluate", "2", {"report.json": report_json(2, [0.7, 0.61], [2.0, 3.0, 4.0])})
    files = {"scores.json": scores_json(2, 40.76), "comparisons.json": json.dumps(COMPARISONS)}
    scored = artifact(store, "benchmark", "2", files)
    stages |= {"policy": first, "train": second, "evaluate": evaluated, "benchmark": scored}
    write_iteration(setup, 2, stages, samples, [])
    return store


# reading


def test_a_card_is_what_the_runs_artifacts_say(finished: Store) -> None:
    card = read_card(finished, "demo", 2, "me/fox-2")
    assert (card.name, card.repo, card.hardware) == ("fox-2", "me/fox-2", "2xh100")
    assert card.report.iterations == assemble(finished, "demo").iterations
    # of (number + 1, number + 1, number + 3, number + 3) tokens, for pi_2: mean 4, and prompts are 3 and 5
    assert [each.value for each in card.mean_tokens] == [2.0, 3.0, 4.0]
    assert (card.mean_tokens[2].low, card.mean_tokens[2].high, card.mean_tokens[2].n) == (3.0, 5.0, 2)
    assert [(each.iteration, each.steps) for each in card.trained] == [(1, 1), (2, 1)]
    assert [(each.name, each.prompts) for each in card.portions] == [
        ("iteration 1", 2),
        ("iteration 2", 2),
        ("iteration 3", 2),
        ("held out", 2),
    ]
    assert card.source_digests == {"dataset": "9" * 64}
    assert [score.value for score in card.scores.scores] == [40.76]
    row = "| AlpacaEval 2, win rate | base | +5.25 points [+1.00, +9.50], n = 805 | paired bootstrap | 0.012 | 0.024 |"
    assert row in render(card)
    assert card.versions["sppo"] == "0.1.0"
    assert [made.reference.partition("/")[0] for made in card.lineage] == [
        "train",  # pi_2
        "train",  # pi_1
        "split",
        "policy",
        "outside:9999999999999999",
        "evaluate",
        "benchmark",
    ]
    assert card.lineage[2].source == "dataset mine.jsonl, kind own, test_share 0.1"
    assert "/home/someone" not in render(card)


def test_an_earlier_iterations_card_knows_nothing_of_later_ones(finished: Store) -> None:
    card = read_card(finished, "demo", 1)
    assert card.name == "demo-iteration-1"
    assert (len(card.report.iterations), len(card.mean_tokens), card.scores.scores) == (1, 2, ())
    assert "0.700" not in render(card)


def test_the_exported_policy_is_the_one_that_is_described(finished: Store, tiny: Recipe, cpu: Hardware) -> None:
    exported = artifact(finished, "export", "2", {"config.json": "{}", "model.safetensors": "rounded"})
    index = read_iteration(finished, "demo", 2)
    entries = index.artifacts | {"export": Entry(reference=exported.reference, digest=exported.digest)}
    key = index_key("demo", 2)
    finished.backend.replace(key, sealed(index.model_copy(update={"artifacts": entries}), key))
    card = read_card(finished, "demo", 2)
    assert card.weights.reference == exported.reference
    assert [file.name for file in card.files] == ["config.json", "model.safetensors"]


def test_more_scores_come_from_a_file_or_another_benchmark(finished: Store, tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text(scores_json(2, 41.5))
    other = artifact(finished, "benchmark", "other", {"scores.json": scores_json(1, 35.62)})
    more = [named_scores(finished, str(tmp_path / "mine.json")), named_scores(finished, other.reference[:20])]
    card = read_card(finished, "demo", 2, more=more)
    assert {score.policy: score.value for score in card.scores.scores} == {2: 41.5, 1: 35.62}  # the file's before the run's
    with pytest.raises(CardError, match=r"cannot read scores from .*none\.json: No such file"):
        named_scores(finished, str(tmp_path / "none.json"))
    with pytest.raises(StoreError, match="fits 0 artifacts"):
        named_scores(finished, "benchmark/0000")


def test_what_is_missing_is_named(finished: Store) -> None:
    with pytest.raises(RunError, match="no run 'other' in the store"):
        read_card(finished, "other", 1)
    with pytest.raises(RunError, match=r"run demo has no iteration 3 .* make it with: sppo run"):
        read_card(finished, "demo", 3)
    with pytest.raises(RecipeError, match="iteration 4 of recipe tiny; expected 1 to 3"):
        read_card(finished, "demo", 4)
    sampled = json.loads(finished.backend.read("runs/demo/iteration-2.json") or b"")["artifacts"]["sample.2"]["reference"]
    finished.backend.delete(f"{sampled}/manifest.json")
    with pytest.raises(StoreError, match=f"no artifact {sampled} in the store .* run the iteration that makes it"):
        read_card(finished, "demo", 2)


def test_a_readme_of_someone_else_is_not_written_over(finished: Store, tmp_path: Path) -> None:
    card = read_card(finished, "demo", 2)
    (tmp_path / "README.md").write_text("# my project")
    with pytest.raises(CardError, match=r"README\.md was not written by sppo card, and would be lost"):
        write_folder(card, tmp_path)
    folder = tmp_path / "card"
    numbers = [f"evaluation/{name}.json" for name in ("comparisons", "report", "scores")]
    assert sorted(write_folder(card, folder)) == ["README.md", *numbers]
    assert sorted(write_folder(read_card(finished, "demo", 1), folder)) == ["README.md", "evaluation/report.json"]
    assert [path.name for path in (folder / "evaluation").iterdir()] == ["report.json"]  # nothing of the earlier card


@pytest.mark.parametrize(
    "name", ["gemma", "/x", "a/", "a/b/c", "a/b c", "a/..", "a/b--c", "a/b.git", "https://x/y", "a/" + "b" * 95]
)
def test_a_repository_is_owner_and_name(name: str) -> None:
    with pytest.raises(CardError, match=re.escape(f"repository {name!r}; expected owner/name")):
        check_repo(name)


def test_a_token_comes_from_the_environment_alone() -> None:
    assert token_of({"HF_TOKEN": " hf_x\n"}) == "hf_x"
    with pytest.raises(CardError, match="no token to upload with: HF_TOKEN is not set"):
        token_of({"HF_TOKEN": ""})


# the command

COMMAND = """
import sys
import typer
from flows.commands import card
from sppo.errors import SppoError
app = typer.Typer()
app.callback()(lambda: None)
card.add_to(app)
try:
    app()
except SppoError as error:
    sys.stderr.write(f"sppo: {error}\\n")
    sys.exit(2)
"""
ALONE = "import socket\ndef refuse(*a): raise SystemExit('the network was touched')\nsocket.socket.connect = refuse\n"


def environment(endpoint: str = "", **more: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    plain = {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    return kept | plain | {"PYTHONPATH": str(ROOT), **({"HF_ENDPOINT": endpoint} if endpoint else {}), **more}


def sppo_card(
    folder: Path, store: Store, *arguments: str, code: str = COMMAND, **more: str
) -> subprocess.CompletedProcess[str]:
    whole = [sys.executable, "-c", code, "card", "demo", "--store", store.url, *arguments]
    return subprocess.run(whole, capture_output=True, text=True, cwd=folder, timeout=120, env=environment(**more))


def test_the_command_writes_a_card_without_touching_the_network(finished: Store, tmp_path: Path) -> None:
    done = sppo_card(
        tmp_path, finished, "--iteration", "2", "--license", "apache-2.0", "--language", "en", code=ALONE + COMMAND
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "wrote    card-demo-2/README.md\n"
    loaded = ModelCard.load(tmp_path / "card-demo-2" / "README.md")
    assert loaded.data.to_dict()["license"] == "apache-2.0"
    assert loaded.data.to_dict()["language"] == ["en"]
    assert "| 2 | 0.700 [0.650, 0.750], n = 2 | 0.610 [0.560, 0.660], n = 2 |" in loaded.text
    report = json.loads((tmp_path / "card-demo-2" / "evaluation" / "report.json").read_text())
    assert report["iteration"] == 2
    scores = Scores.model_validate_json((tmp_path / "card-demo-2" / "evaluation" / "scores.json").read_text())
    assert scores.scores[0].value == 40.76


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--iteration", "3"], "sppo: run demo has no iteration 3"),
        (["--repo", "fox"], "sppo: repository 'fox'; expected owner/name"),
        (["--push"], "sppo: --push without --repo"),
        (["--push", "--repo", "me/fox"], "sppo: no token to upload with: HF_TOKEN is not set"),
    ],
)
def test_bad_input_is_one_plain_message(finished: Store, tmp_path: Path, arguments: list[str], told: str) -> None:
    done = sppo_card(tmp_path, finished, *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith(told)
    assert not list(tmp_path.glob("card-*"))


# uploading


class Hub(ThreadingHTTPServer):
    """The part of the hub's protocol that a commit takes: create, validate, pre-upload, LFS batch, PUT, verify, commit.

    Weights are large files, kept by their sha256 before any commit, as the hub keeps them."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repositories: dict[str, bool] = {}
        """Whether it was made private."""
        self.objects: dict[str, bytes] = {}
        self.begun: list[str] = []
        """sha256 of each PUT that began, and of each that arrived whole."""
        self.arrived: list[str] = []
        self.commits: list[dict[str, bytes]] = []
        self.tokens: set[str | None] = set()
        self.stalled: set[str] = set()
        """Large files that never get an answer."""
        self.refused: int | None = None
        """What a commit is answered with."""
        self.lost = False
        """The answer to a commit is cut off."""

    @property
    def files(self) -> dict[str, bytes]:
        """Of the newest commit."""
        return self.commits[-1] if self.commits else {}


class Answers(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def answer(self, value: object, status: int = 200) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_GET(self) -> None:
        assert self.path.startswith("/api/models/me/fox")
        if "/tree/" in self.path:
            self.answer([{"type": "file", "path": name, "size": 1, "oid": "0" * 40} for name in self.server.files])
            return
        self.answer({"id": "me/fox", "sha": f"{len(self.server.commits):040x}", "siblings": []})

    def do_PUT(self) -> None:
        oid = self.path.rpartition("/")[2]
        self.server.begun.append(oid)
        content = self.body()
        if oid in self.server.stalled:
            time.sleep(60)
        self.server.objects[oid] = content
        self.server.arrived.append(oid)
        self.answer({})

    def do_POST(self) -> None:
        self.server.tokens.add(self.headers.get("Authorization"))
        content = self.body()
        path = self.path.partition("?")[0]
        if path == "/api/repos/create":
            self.create(json.loads(content))
        elif path == "/api/validate-yaml":
            self.answer({"warnings": [], "errors": []})
        elif path == "/api/models/me/fox/preupload/main":
            self.answer({"files": [self.mode(file) for file in json.loads(content)["files"]]})
        elif path == "/me/fox.git/info/lfs/objects/batch":
            self.answer({"transfer": "basic", "objects": [self.instruction(each) for each in json.loads(content)["objects"]]})
        elif path == "/verify":
            asked = json.loads(content)
            whole = len(self.server.objects[asked["oid"]]) == asked["size"]
            self.answer({}, 200 if whole else 400)
        elif path == "/api/models/me/fox/commit/main":
            self.commit([json.loads(line) for line in content.splitlines()])
        else:
            self.answer({"error": f"nothing at {path}"}, 404)

    def create(self, asked: dict[str, Any]) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        known = name in self.server.repositories
        self.server.repositories.setdefault(name, asked.get("visibility") == "private")
        self.answer({"url": f"{self.server.url}/{name}"}, 409 if known else 200)

    def mode(self, file: dict[str, Any]) -> dict[str, Any]:
        large = file["path"].endswith(".safetensors")
        known = self.server.files.get(file["path"])
        oid = None
        if known is not None:
            git = hashlib.sha1(b"blob %d\0" % len(known) + known).hexdigest()
            oid = hashlib.sha256(known).hexdigest() if large else git
        return {"path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": oid}

    def instruction(self, asked: dict[str, Any]) -> dict[str, Any]:
        if asked["oid"] in self.server.objects:
            return asked  # nothing to do: it is here
        upload = {"href": f"{self.server.url}/lfs/{asked['oid']}"}
        return {**asked, "actions": {"upload": upload, "verify": {"href": f"{self.server.url}/verify"}}}

    def commit(self, lines: list[dict[str, Any]]) -> None:
        if self.server.refused:
            self.answer({"error": f"no, not with {self.headers['Authorization']}"}, self.server.refused)
            return
        added = dict(self.server.files)
        for line in lines[1:]:
            value = line["value"]
            small = line["key"] == "file"
            added[value["path"]] = base64.b64decode(value["content"]) if small else self.server.objects[value["oid"]]
        self.server.commits.append(added)
        if self.server.lost:
            self.close_connection = True
            return
        number = len(self.server.commits)
        self.answer({"commitUrl": f"{self.server.url}/me/fox/commit/{number}", "commitOid": f"{number:040x}"})


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


PUSH = ("--iteration", "2", "--repo", "me/fox", "--push")


def expected(store: Store, folder: Path) -> dict[str, bytes]:
    weights = read_card(store, "demo", 2).weights.reference
    policy = {path.name: path.read_bytes() for path in store.open(weights).folder().iterdir()}
    written = folder / "card-demo-2"
    return policy | {str(path.relative_to(written)): path.read_bytes() for path in written.rglob("*") if path.is_file()}


def test_everything_goes_up_in_one_commit(finished: Store, hub: Hub, tmp_path: Path) -> None:
    done = sppo_card(tmp_path, finished, *PUSH, endpoint=hub.url, HF_TOKEN=TOKEN)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(f"pushed   {hub.url}/me/fox/commit/1\n")
    [files] = hub.commits
    assert files == expected(finished, tmp_path)
    assert {"README.md", "config.json", "tokenizer.json", "evaluation/report.json", "evaluation/scores.json", *BIG} <= set(
        files
    )
    assert hub.repositories == {"me/fox": True}  # private, until someone says otherwise
    assert hub.tokens == {f"Bearer {TOKEN}"}
    assert TOKEN not in done.stdout + done.stderr
    assert yaml.safe_load(files["README.md"].decode().split("\n---\n")[0])["library_name"] == "transformers"


def test_an_upload_killed_in_the_middle_goes_on_where_it_was(finished: Store, hub: Hub, tmp_path: Path) -> None:
    first, second = (hashlib.sha256(f"weights {number} of 2".encode() * 1000).hexdigest() for number in range(2))
    hub.stalled = {second}
    command = [sys.executable, "-c", COMMAND, "card", "demo", "--store", finished.url, *PUSH]
    cut = subprocess.Popen(command, cwd=tmp_path, env=environment(hub.url, HF_TOKEN=TOKEN), stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (hub.arrived == [first] and second in hub.begun):
        assert time.monotonic() < deadline, "the upload did not come so far"
        assert cut.poll() is None
        time.sleep(0.02)
    cut.send_signal(signal.SIGKILL)
    cut.wait()
    assert hub.commits == []  # nothing is half there

    hub.stalled = set()
    done = sppo_card(tmp_path, finished, *PUSH, endpoint=hub.url, HF_TOKEN=TOKEN)
    assert done.returncode == 0, done.stderr
    assert hub.commits == [expected(finished, tmp_path)]
    assert hub.begun.count(first) == 1  # it had arrived
    assert hub.begun.count(second) == 2


def test_a_commit_whose_answer_was_lost_is_found_and_not_made_twice(finished: Store, hub: Hub, tmp_path: Path) -> None:
    hub.lost = True
    cut = sppo_card(tmp_path, finished, *PUSH, endpoint=hub.url, HF_TOKEN=TOKEN)
    assert cut.returncode == 2
    assert re.search(r"sppo: cannot upload to me/fox: .*; give the same command again: large files", cut.stderr)
    hub.lost = False
    done = sppo_card(tmp_path, finished, *PUSH, endpoint=hub.url, HF_TOKEN=TOKEN)
    assert done.returncode == 0, done.stderr
    assert (len(hub.commits), len(hub.begun)) == (1, 2)
    assert done.stdout.endswith(f"pushed   {hub.url}/me/fox/commit/{1:040x}\n")


def test_a_repository_with_other_weights_is_left_alone(finished: Store, hub: Hub, tmp_path: Path) -> None:
    hub.repositories["me/fox"] = False
    hub.commits.append({"model.safetensors": b"of a model in one file", ".gitattributes": b""})
    done = sppo_card(tmp_path, finished, *PUSH, endpoint=hub.url, HF_TOKEN=TOKEN)
    assert done.returncode == 2
    told = "sppo: me/fox holds model.safetensors, which is not of this policy and may be loaded in its place; delete it there"
    assert done.stderr.startswith(told)
    assert (len(hub.commits), hub.begun) == (1, [])


def test_a_hub_that_refuses_is_told_plainly_and_without_the_token(finished: Store, hub: Hub, tmp_path: Path) -> None:
    hub.refused = 403
    done = sppo_card(tmp_path, finished, *PUSH, endpoint=hub.url, HF_TOKEN=TOKEN)
    assert done.returncode == 2
    assert "check that the token of HF_TOKEN is valid and may write to me/fox" in done.stderr
    assert "Traceback" not in done.stderr
    assert TOKEN not in done.stdout + done.stderr


def test_a_hub_that_is_not_there_is_told_plainly(finished: Store, tmp_path: Path) -> None:
    done = sppo_card(tmp_path, finished, *PUSH, endpoint="http://127.0.0.1:9", HF_TOKEN=TOKEN)
    assert done.returncode == 2
    assert done.stderr.startswith("sppo: cannot upload to me/fox: ")
    assert "Traceback" not in done.stderr
    offline = sppo_card(tmp_path, finished, *PUSH, HF_TOKEN=TOKEN, HF_HUB_OFFLINE="1")
    assert (offline.returncode, "HF_HUB_OFFLINE" in offline.stderr) == (2, True)
