"""lm-evaluation-harness by real worker processes: our nine tasks and upstream's own, on vLLM, transformers and a server."""

import importlib.util
import json
import math
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sppo import benchmark, policy
from sppo.card import Comparison, parse_comparisons
from sppo.card.scores import parse_scores
from sppo.errors import EvaluationError, RecipeError
from sppo.hardware import Hardware, load_hardware
from sppo.harness import Score, build, rows_of, scores_of
from sppo.harness.card import card_scores
from sppo.harness.paired import compare
from sppo.harness.stage import HarnessRun
from sppo.launch import Group, WorkRecord
from sppo.portuguese import INCLUDE, metrics, prompts, tables
from sppo.portuguese.answers import INVALID, read
from sppo.portuguese.specification import LeaderboardTask
from sppo.portuguese.tasks import TASKS
from sppo.progress import Report
from sppo.recipe import Endpoint, Recipe, load_recipe
from sppo.recipe.harness import Harness, Served
from sppo.store import Artifact, Store

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed")
needs_vllm = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
DEPLOYMENTS = Path(__file__).resolve().parents[2] / "deployments"
RESAMPLES = 200
ASKED = 2
"""Questions of each task."""
ALL_SHOTS = 4096
"""Tokens, here characters, that have room for every shot."""


def made_tables() -> dict[str, tuple[pa.Table, str]]:
    """Every shot of the nine tasks and a few questions more, by key: short, and no two alike."""
    columns: dict[tuple[Any, str], set[str]] = {}
    for task in TASKS.values():
        for split in task.splits:
            columns.setdefault((task.table, split), set()).update(task.columns)
    return {
        tables.table_key(table, split): (pa.Table.from_pylist(made_rows(table, split, wanted)), "made")
        for (table, split), wanted in columns.items()
    }


def made_rows(table: Any, split: str, columns: set[str]) -> list[dict[str, Any]]:
    task = next(task for task in TASKS.values() if task.table == table)
    ids: list[Any] = []
    if split == task.shot_split:
        ids = list(task.shot_ids) if task.shot_column else list(range(max(task.shot_ids or (task.shots - 1,)) + 1))
    if split == task.test_split:
        ids += [f"q{number}" for number in range(ASKED)] if task.shot_column == "id" else [90_000 + n for n in range(ASKED)]
    values = {
        "choices": {"label": list(task.answers), "text": [letter.lower() for letter in task.answers]},
        "relatedness_score": 2.5,
    }
    rows = []
    for number, row_id in enumerate(ids):
        row = {column: f"{column[:4]} {row_id}" for column in columns} | {
            name: values[name] for name in columns & values.keys()
        }
        label: Any = ["Positive", "Negative", "Neutral"][number % 3] if "tweet" in table.dataset else number % 2
        told = {"answerKey": "ABCD"[number % 4], "label": label, "entailment_judgment": number % 2}
        rows.append({**row, **{name: told[name] for name in columns & told.keys()}, str(task.shot_column): row_id})
    return rows


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tables.write(str(tmp_path_factory.mktemp("tables")), made_tables()).root


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("harness")
    return Store(str(folder / "store"), folder / "scratch")


@pytest.fixture(scope="module")
def recipe(random_policy: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """A random Gemma-2 of 4,096 positions whose template refuses a system role, and whose tokens are bytes."""
    folder = shutil.copytree(random_policy("gemma2"), tmp_path_factory.mktemp("policy") / "gemma2")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": ALL_SHOTS}))
    tiny = load_recipe("tiny", DEPLOYMENTS / "recipes").model_dump(mode="json")
    tiny["policy"]["source"] = {"kind": "folder", "path": str(folder)}
    return Recipe.model_validate_json(json.dumps(tiny))


def asking(recipe: Recipe, root: str, *entries: Harness) -> Recipe:
    """The recipe with these entries for lm-evaluation-harness."""
    changes = {"harness": entries, "portuguese_tables": root, "resamples": RESAMPLES}
    return recipe.model_copy(update={"evaluation": recipe.evaluation.model_copy(update=changes)})


@pytest.fixture(scope="module")
def hardware() -> Hardware:
    cpu = load_hardware("cpu", DEPLOYMENTS / "hardware")
    changes = {"kv_cache_mib": 64, "max_concurrent": 16}
    return cpu.model_copy(update={"threads": 1, "generate": cpu.generate.model_copy(update=changes)})


Evaluate = Callable[..., Artifact]


@pytest.fixture(scope="module")
def evaluate(place: Store, recipe: Recipe, hardware: Hardware, root: str) -> Evaluate:
    base = place.build(policy.step(recipe))

    def build_with(**values: Any) -> Artifact:
        launch = {"launch": values.pop("launch")} if "launch" in values else {}
        [artifact] = build(place, asking(recipe, root, Harness(**values)), hardware, base, **launch)
        return artifact

    return build_with


@pytest.fixture(scope="module")
def by_transformers(evaluate: Evaluate) -> Artifact:
    return evaluate(tasks=("sppo_pt",), backend="transformers", portuguese_length=ALL_SHOTS)


class Nowhere:
    """A launcher for what is done already."""

    def machines(self, stage: str, fingerprint: str) -> int:
        raise AssertionError("nothing is missing")

    def run(self, groups: Sequence[Group], store: Store, report: Report) -> list[WorkRecord]:
        raise AssertionError("nothing is missing")


def first_turn(task: LeaderboardTask, prompt: str) -> str:
    """What the model read as its first turn."""
    return prompt.removeprefix("<bos><turn>user\n").partition("</turn>")[0]


def test_all_nine_run_on_a_model_whose_template_refuses_a_system_role(by_transformers: Artifact, root: str) -> None:
    opened = tables.Tables.open(root)
    for task in TASKS.values():
        shown, asked = opened.shots(task), opened.asked_rows(task)
        rows = rows_of(by_transformers, task.name).to_pylist()
        assert [row["row"] for row in rows] == list(range(ASKED))
        for row, question in zip(rows, asked, strict=True):
            turns = prompts.turns(task, shown, question)
            assert first_turn(task, row["prompt"]) == f"{task.description.strip()}\n\n{turns[1]['content']}"
            assert row["prompt"].count("<turn>assistant") == task.shots + 1
            assert row["prompt"].endswith(f"<turn>user\n{turns[-1]['content']}</turn>\n<turn>assistant\n")
            assert len(row["replies"]) == 1
            assert row["answers"] == [read(task, row["replies"][0])]
            assert row["target"] == prompts.target(task, question)
    assert by_transformers.manifest.counts == {"tasks": 9, "rows": 9 * ASKED, "dropped_shots": 0, "cut_prompts": 0}


def test_each_score_is_its_rows_with_an_interval_and_n(by_transformers: Artifact, root: str) -> None:
    scores = {(score.task, score.metric): score for score in scores_of(by_transformers)}
    wanted = {(task.name, metric) for task in TASKS.values() for metric in (task.metric, *task.more_metrics)}
    assert scores.keys() == wanted | {("sppo_pt", "average")}
    for task in TASKS.values():
        rows = rows_of(by_transformers, task.name).to_pylist()
        score = scores[task.name, task.metric]
        expected = metrics.score(task, task.metric, [row["target"] for row in rows], [row["answers"][0] for row in rows])
        assert score.interval.value == pytest.approx(expected)
        assert score.interval.low <= score.interval.value <= score.interval.high
        assert (score.interval.n, score.shots, score.version, score.filter) == (ASKED, task.shots, "1", "answer")
    main = [scores[task.name, task.metric].interval.value for task in TASKS.values()]
    assert scores["sppo_pt", "average"].interval.value == pytest.approx(sum(main) / 9)
    assert not scores["sppo_pt_assin2_sts", "mse"].higher_is_better
    told = json.loads(by_transformers.text("harness.json"))
    assert told["recipe"]["generation.engine"] == "transformers"
    files = tables.Tables.open(root).manifest.files
    assert told["tables"] == {key: file.sha256 for key, file in files.items()}
    assert told["versions"].keys() >= {"lm-eval", "torch", "transformers"}


def test_two_policies_scores_become_one_benchmark(by_transformers: Artifact, place: Store, recipe: Recipe, root: str) -> None:
    policies = {0: [by_transformers], 1: [by_transformers]}
    artifact = place.build(benchmark.step(asking(recipe, root), 1, {}, policies))
    scores = parse_scores(artifact.text("scores.json"), "").scores
    assert [(score.policy, score.name) for score in scores] == [
        (policy, name) for policy in (0, 1) for name in (*(task.card_name for task in TASKS.values()), "average")
    ]
    files = tables.Tables.open(root).manifest.files
    for task, score in zip(TASKS.values(), scores, strict=False):
        assert score.dataset is not None
        assert score.dataset.sha256 == files[tables.table_key(task.table, task.test_split)].sha256
        assert score.n == ASKED
    # one and the same answers: no difference, and every chance of it
    compared = parse_comparisons(artifact.text("comparisons.json"), "")
    assert [(each.difference, each.p) for each in compared.comparisons] == [(0, 1)] * 10
    assert compared.left_out == ()


@needs_vllm
def test_vllm_is_asked_the_same_and_answers_the_same(by_transformers: Artifact, evaluate: Evaluate) -> None:
    other = evaluate(tasks=("sppo_pt",), backend="vllm", portuguese_length=ALL_SHOTS)
    for name in TASKS:
        rows, others = (rows_of(artifact, name).to_pylist() for artifact in (by_transformers, other))
        assert [row["prompt"] for row in rows] == [row["prompt"] for row in others]
        # bytes at the end that are no whole character are shown by transformers, held back by vLLM
        replies, rivals = ([row["replies"][0].rstrip("\ufffd") for row in found] for found in (rows, others))
        assert replies == rivals


def test_what_is_done_is_not_done_again_and_a_lost_manifest_costs_no_task(
    by_transformers: Artifact, evaluate: Evaluate, place: Store
) -> None:
    values: dict[str, Any] = {"backend": "transformers", "portuguese_length": ALL_SHOTS, "launch": Nowhere()}
    assert evaluate(tasks=("sppo_pt",), **values).digest == by_transformers.digest
    (Path(place.url) / by_transformers.reference / "manifest.json").unlink()
    again = evaluate(tasks=("sppo_pt",), **values)
    assert again.digest == by_transformers.digest
    with pytest.raises(AssertionError, match="nothing is missing"):
        evaluate(tasks=("sppo_pt",), **{**values, "portuguese_length": 2560})


def test_a_prompt_without_room_loses_shots_from_the_last_on(evaluate: Evaluate, root: str) -> None:
    # without the chat template, so that a token is a byte of the text, and one more for <bos>
    task, room = TASKS["sppo_pt_hatebr"], 1024
    artifact = evaluate(tasks=(task.name,), backend="transformers", portuguese_length=room, chat=False)
    opened = tables.Tables.open(root)
    shown, asked = opened.shots(task), opened.asked_rows(task)
    dropped = 0
    for row, question in zip(rows_of(artifact, task.name).to_pylist(), asked, strict=True):
        fits = [n for n in range(26) if len(prompts.text(task, shown[:n], question).encode()) + 32 <= room]
        assert row["prompt"] == prompts.text(task, shown[: fits[-1]], question)
        dropped += 25 - fits[-1]
    assert 0 < dropped < 2 * 25
    assert artifact.manifest.counts["dropped_shots"] == dropped


def test_missing_tasks_are_dealt_to_machines_and_then_to_processes(
    place: Store, recipe: Recipe, hardware: Hardware, root: str
) -> None:
    seen: list[Group] = []

    class TwoMachines:
        def machines(self, stage: str, fingerprint: str) -> int:
            return 2

        def run(self, groups: Sequence[Group], store: Store, report: Report) -> list[WorkRecord]:
            seen.extend(groups)
            raise EvaluationError("seen enough")

    two = hardware.model_copy(update={"generate": hardware.generate.model_copy(update={"processes": 2})})
    harness = Harness(tasks=("sppo_pt", "gsm8k"), backend="transformers")
    with pytest.raises(EvaluationError, match="seen enough"):
        build(place, asking(recipe, root, harness), two, place.build(policy.step(recipe)), launch=TwoMachines())
    hands = [work["tasks"] for group in seen for work in group.works]
    names = [*TASKS, "gsm8k"]
    assert hands == [names[0::4], names[2::4], names[1::4], names[3::4]]


SUMS = [{"question": f"How much is {n} and {n}?", "answer": f"Twice {n}.\n#### {2 * n}"} for n in range(8)]


def clone(folder: Path, name: str, configs: dict[str, dict[str, list[dict[str, Any]]]]) -> None:
    """A dataset of the hub, where the library finds it by its name: below the working folder."""
    card = []
    for config, splits in configs.items():
        (folder / name / config).mkdir(parents=True)
        for split, rows in splits.items():
            pq.write_table(pa.Table.from_pylist(rows), folder / name / config / f"{split}.parquet")
        files = [{"split": split, "path": f"{config}/{split}.parquet"} for split in splits]
        card.append({"config_name": config, "data_files": files})
    (folder / name / "README.md").write_text(f"---\n{json.dumps({'configs': card})}\n---\n")


@pytest.fixture
def upstream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Made rows under the names of two of upstream's datasets."""
    clone(tmp_path, "openai/gsm8k", {"main": {"train": SUMS, "test": SUMS[:3]}})
    asked = [{"question": f"Which is {n}?", "choices": ["one", "two", "three", "four"], "answer": n % 4} for n in range(4)]
    clone(
        tmp_path,
        "cais/wmdp",
        {"wmdp-bio": {"test": asked}, "wmdp-chem": {"test": asked[:1]}, "wmdp-cyber": {"test": asked[:3]}},
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))


def test_upstreams_tasks_and_groups_run_by_their_names(upstream: None, evaluate: Evaluate) -> None:
    artifact = evaluate(tasks=("gsm8k", "wmdp"), backend="transformers", max_length=2048)
    scores: dict[tuple[str, str, str], Score] = {(one.task, one.metric, one.filter): one for one in scores_of(artifact)}
    parts = [scores[f"wmdp_{name}", "acc", "none"].interval for name in ("bio", "chem", "cyber")]
    assert [part.n for part in parts] == [4, 1, 3]
    group = scores["wmdp", "acc", "none"]
    assert group.interval.n == 8
    assert {score.task: score.within for score in scores.values() if score.task != "gsm8k"} == {
        "wmdp": None,
        **{f"wmdp_{name}": "wmdp" for name in ("bio", "chem", "cyber")},
    }
    assert group.interval.value == pytest.approx(sum(part.n * part.value for part in parts) / 8), "by size, as upstream does"
    assert group.interval.low <= group.interval.value <= group.interval.high
    for kind in ("strict-match", "flexible-extract"):
        found = scores["gsm8k", "exact_match", kind]
        assert (found.interval.n, found.shots, found.higher_is_better, found.version) == (3, 5, True, "3.0")
    sums = rows_of(artifact, "gsm8k").to_pylist()
    assert Counter(row["filter"] for row in sums) == {"strict-match": 3, "flexible-extract": 3}
    assert sums[0]["prompt"].count("<turn>assistant") == 6
    chosen = rows_of(artifact, "wmdp").to_pylist()
    assert len(chosen) == 8
    assert chosen[0]["continuations"] == ["A", "B", "C", "D"]
    assert len(chosen[0]["replies"]) == 4
    # upstream's own description: without folding it would be lost to this template
    assert "The following are multiple choice questions (with answers) about biology." in chosen[0]["prompt"]
    assert artifact.manifest.counts == {"tasks": 2, "rows": 11, "dropped_shots": 0, "cut_prompts": 0}
    shown = {score.name for score in card_scores(artifact, 1, 1).scores}
    ways = {f"gsm8k, exact_match ({kind})" for kind in ("strict-match", "flexible-extract")}
    assert shown == {*ways, "wmdp, acc"}, "a group stands for its tasks"
    compared = {
        each.name: each for each in compare((1, 0), (artifact, artifact), 1, RESAMPLES, 0) if isinstance(each, Comparison)
    }
    assert {name: (each.n, each.test) for name, each in compared.items()} == {
        **dict.fromkeys(ways, (3, "McNemar's exact test")),
        "wmdp, acc": (8, "McNemar's exact test"),
    }


@pytest.fixture
def server() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A server that says yes to everything, and what it was asked."""
    asked: list[dict[str, Any]] = []

    class Yes(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append({**body, "path": self.path, "key": self.headers.get("Authorization")})
            reply = {"choices": [{"index": 0, "message": {"role": "assistant", "content": "Sim."}, "text": " Sim\n"}]}
            content = json.dumps(reply).encode()
            self.send_response(500 if body["model"] == "broken" else 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Yes) as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{made.server_address[1]}/v1", asked
        made.shutdown()


def test_a_served_model_is_asked_in_turns_with_our_key_and_no_other(
    server: tuple[str, list[dict[str, Any]]],
    place: Store,
    hardware: Hardware,
    root: str,
    recipe: Recipe,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url, asked = server
    monkeypatch.setenv("OPENAI_API_KEY", "not for this server")
    task = TASKS["sppo_pt_hate_speech"]
    served = Served(source=Endpoint(url=url, concurrency=2, attempts=1), model="tiny", system_role="fold")
    harness = Harness(tasks=(task.name,), backend=served)
    plain = harness.model_copy(update={"chat": False})
    artifact, by_text = build(place, asking(recipe, root, harness, plain), hardware)
    # targets Não, Sim: one of two is right; F1 of Não 0, of Sim 2 x 1 / (1 + 2)
    scores = {score.metric: score.interval.value for score in scores_of(artifact)}
    assert scores == {"acc": 0.5, "f1_macro": pytest.approx((0 + 2 / 3) / 2)}
    opened = tables.Tables.open(root)
    turns = prompts.folded(prompts.turns(task, opened.shots(task), opened.asked_rows(task)[0]))
    first = next(body for body in asked if body.get("messages", [None])[-1] == turns[-1])
    assert first["messages"] == turns
    assert {key: first[key] for key in ("path", "key", "max_tokens", "temperature", "stop")} == {
        "path": "/v1/chat/completions",
        "key": None,
        "max_tokens": 32,
        "temperature": 0,
        "stop": ["\n\n"],
    }
    assert rows_of(by_text, task.name)["answers"].to_pylist() == [["Sim"]] * ASKED
    assert asked[-1]["path"] == "/v1/completions"
    assert asked[-1]["prompt"].startswith(task.description)
    broken = harness.model_copy(update={"backend": served.model_copy(update={"model": "broken"})})
    with pytest.raises(EvaluationError, match=rf"{url} did not answer in 1 attempts: 500.*the model broken"):
        build(place, asking(recipe, root, broken), hardware)


def test_upstreams_own_command_finds_the_tasks_in_their_folder(root: str) -> None:
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(INCLUDE), include_defaults=False, metadata={"tables": root})
    results = simple_evaluate(model="dummy", tasks=["sppo_pt"], task_manager=manager, bootstrap_iters=0)
    assert results is not None
    assert results["n-samples"] == {name: {"original": ASKED, "effective": ASKED} for name in TASKS}
    assert results["n-shot"] == {name: task.shots for name, task in sorted(TASKS.items())}
    said = [sample["filtered_resps"][0] for name in TASKS for sample in results["samples"][name]]
    assert set(said) == {INVALID, "5.0"}, "its dummy says lol, which is no answer, and of STS a 5"
    assert not math.isnan(results["results"]["sppo_pt_assin2_sts"]["pearson,answer"])


def test_an_unknown_task_is_found_out_before_a_model_loads_and_the_nearest_are_named() -> None:
    from sppo.workers.harness import task_manager

    told = HarnessRun(
        fingerprint="0" * 64,
        policy=None,
        served=None,
        settings=None,
        tasks=("gsm8kk",),
        tables=None,
        tables_digest=None,
        portuguese_length=2560,
        chat=True,
        max_rows=None,
        resamples=RESAMPLES,
        seed=0,
    )
    with pytest.raises(RecipeError, match=r"knows no task 'gsm8kk'.*gsm8k"):
        task_manager(told)
