"""Records of a store that were cut, changed or put elsewhere, and the names and addresses by which people ask for them."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from sppo.alpaca_eval.annotations import from_json
from sppo.alpaca_eval.sets import parse_evaluation_set, parse_gamed_baselines, read_evaluation_set
from sppo.card.scores import parse_scores, read_scores
from sppo.configuration import validate
from sppo.errors import RecipeError
from sppo.fingerprint import canonical_json
from sppo.lineage import named_artifact
from sppo.portuguese.tables import Tables
from sppo.recipe import Recipe
from sppo.runs import check_run_name, find_recipe, finished_iterations, index_key, read_iteration, recipe_key, start
from sppo.store import Identity, Manifest, Outcome, PartRecord, Step, Store
from sppo.store.backend import open_backend, read_patience
from sppo.store.manifest import parse_record
from sppo.store.scratch import read_limit

Snapshot = Callable[[str, Mapping[str, Callable[[], object]]], None]


@pytest.fixture
def manifest(store: Store) -> dict[str, object]:
    """The values of a manifest that the store wrote."""

    def run(workspace: object) -> Outcome:
        workspace.add_text("logits", "logits.txt")  # type: ignore[attr-defined]
        return Outcome("made")

    made = store.build(Step(Identity("rank", 2, {"judge": "mine"}, {"generate": "a" * 64}), run))
    values: dict[str, object] = json.loads(made.manifest.model_dump_json(exclude_none=True))
    return values


def test_a_manifest_that_is_none_is_named_with_what_mends_it(snapshot: Snapshot, manifest: dict[str, object]) -> None:
    def of(content: bytes | Mapping[str, object]) -> Callable[[], object]:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        return lambda: parse_record(Manifest, data, key)

    key = f"rank/{manifest['fingerprint']}/manifest.json"
    whole = json.dumps(manifest).encode()
    [file] = manifest["files"]  # type: ignore[misc]
    snapshot(
        "records: manifests",
        {
            "empty": of(b""),
            "cut": of(whole[:200]),
            "zeros": of(b"\0" * 200),
            "not UTF-8": of(b'{"stage": "\xff"}'),
            "a list": of(b"[]"),
            "another record": of({"name": "chunk-00001", "files": []}),
            "a key more": of({**manifest, "owner": "me"}),
            "a name that leaves its folder": of({**manifest, "files": [{**file, "name": "../../etc/passwd"}]}),
            "a size below 0": of({**manifest, "files": [{**file, "size": -1}]}),
            "half a digest": of({**manifest, "files": [{**file, "sha256": "abc"}]}),
            "seconds in words": of({**manifest, "seconds": "many"}),
            "deep": of(b"[" * 100_000),
            "at another's place": of(Manifest.model_validate(manifest).to_bytes("rank/other/manifest.json")),
            "with a digit changed": of(Manifest.model_validate(manifest).to_bytes(key).replace(b'"size": 6', b'"size": 7')),
        },
    )


def test_a_part_record_that_is_none_is_named_with_what_mends_it(snapshot: Snapshot) -> None:
    def of(content: bytes) -> Callable[[], object]:
        return lambda: parse_record(PartRecord, content, f"generate/{'0' * 64}/parts/chunk-00001.json")

    snapshot(
        "records: parts",
        {
            "empty": of(b""),
            "cut": of(b'{"name": "chunk-00001", "fil'),
            "counts in words": of(b'{"name": "chunk-00001", "files": [], "counts": {"prompts": "two"}}'),
            "files that are names": of(b'{"name": "chunk-00001", "files": ["chunk-00001.parquet"]}'),
        },
    )


def test_a_run_whose_records_were_changed_says_which(snapshot: Snapshot, store: Store, tiny: Recipe) -> None:
    start(store, "demo", tiny, lambda recipe: recipe)

    def with_recipe(content: bytes) -> Callable[[], object]:
        def read() -> object:
            store.backend.replace(recipe_key("demo"), content)
            return find_recipe(store, "demo")

        return read

    def with_index(content: bytes) -> Callable[[], object]:
        def read() -> object:
            store.backend.replace(index_key("demo", 1), content)
            return finished_iterations(store, "demo")

        return read

    whole = store.backend.read(recipe_key("demo")) or b""
    index = {"run": "demo", "recipe": "tiny", "iteration": 1, "artifacts": {}}
    wrong = {**index, "artifacts": {"train": {"reference": "../train", "digest": "0" * 64}}}
    snapshot(
        "records: runs",
        {
            "an empty recipe": with_recipe(b""),
            "half of a recipe": with_recipe(whole[: len(whole) // 2]),
            "a recipe that is a list": with_recipe(b"[]"),
            "a deep recipe": with_recipe(b"[" * 100_000),
            "a recipe with a lone surrogate": with_recipe(whole.replace(b'"tiny"', b'"\\ud800"')),
            "a recipe with another value": with_recipe(whole.replace(b'"eta": 10.0', b'"eta": 11.0')),
            "a recipe with a value that cannot be": with_recipe(whole.replace(b'"eta": 10.0', b'"eta": -1.0')),
            "an empty index": with_index(b""),
            "an index of iteration 0": with_index(json.dumps({**index, "iteration": 0}).encode()),
            "an index that leads elsewhere": with_index(json.dumps(wrong).encode()),
        },
    )


def test_what_is_asked_for_by_a_name_that_cannot_be_is_refused(snapshot: Snapshot, store: Store, tiny: Recipe) -> None:
    start(store, "demo", tiny, lambda recipe: recipe)
    names = {
        "empty": "",
        "upper case": "Demo",
        "a blank": "my run",
        "a slash": "runs/demo",
        "a parent": "..",
        "a dash first": "-demo",
        "64 characters": "d" * 64,
        "an accent": "dem\xf3",
        "a new line": "demo\n",
        "a lone surrogate": "demo\ud800",
    }
    cases: dict[str, Callable[[], object]] = {
        f"a run's: {name}": (lambda text=text: check_run_name(text))
        for name, text in names.items()  # type: ignore[misc]
    }
    cases["a run that was never started"] = lambda: read_iteration(store, "other", 1)
    cases["an iteration that has not ended"] = lambda: read_iteration(store, "demo", 1)
    cases["an artifact without digits"] = lambda: store.open("train")
    cases["an artifact elsewhere"] = lambda: store.open("../train/" + "0" * 64)
    cases["an artifact that is not there"] = lambda: store.open("train/" + "0" * 64)
    cases["an artifact by its first digits"] = lambda: named_artifact(store, "train/00", None, None)
    snapshot("names", cases)


def test_an_address_of_a_store_that_cannot_be_is_refused(snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch) -> None:
    def with_variable(name: str, value: str, call: Callable[[], object]) -> Callable[[], object]:
        def read() -> object:
            with monkeypatch.context() as changed:
                changed.setenv(name, value)
                return call()

        return read

    urls = {
        "an unknown scheme": "ftp://host/folder",
        "a scheme mistyped": "s4://bucket",
        "no bucket": "s3://",
        "no bucket, but a folder": "s3:///folder",
        "a password": "s3://key:secret@bucket/runs",
        "a password of a server": "https://me:secret@host/bucket",
        "half a bracket": "s3://[bucket",
        "NUL": "var/\0store",
        "a character that stands for another": "s3://buck\u2100et/x",
    }
    cases: dict[str, Callable[[], object]] = {
        name: (lambda url=url: open_backend(url))
        for name, url in urls.items()  # type: ignore[misc]
    }
    cases["a server's address with a password"] = with_variable(
        "AWS_ENDPOINT_URL", "http://me:secret@host:9000", lambda: open_backend("s3://bucket")
    )
    cases["a time-out in words"] = with_variable("SPPO_STORE_TIMEOUT_S", "a minute", read_patience)
    cases["a limit of nothing"] = with_variable("SPPO_SCRATCH_LIMIT_GB", "0", read_limit)
    snapshot("store URLs", cases)
    assert "secret" not in Path(__file__).with_name("messages.md").read_text(encoding="utf-8")


ANNOTATION = {
    "instruction": "Name ten birds.",
    "output_1": "One.",
    "generator_1": "reference",
    "output_2": "Two.",
    "generator_2": "model",
    "annotator": "judge",
    "preference": 1.5,
}


def test_files_of_alpaca_eval_that_cannot_be_used_are_named(snapshot: Snapshot, tmp_path: Path) -> None:
    question = {"instruction": "Name ten birds.", "output": "Ten.", "generator": "reference"}

    def a_set(content: object) -> Callable[[], object]:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        return lambda: parse_evaluation_set(data, "set.json")

    def baselines(text: str) -> Callable[[], object]:
        return lambda: parse_gamed_baselines(text.encode("utf-8", "surrogatepass"), "df_gamed.csv")

    def verdicts(content: object) -> Callable[[], object]:
        return lambda: from_json(content if isinstance(content, str) else json.dumps(content))

    columns = "index,preference,std_delta_len,instruction_difficulty\n"
    (tmp_path / "set.json").write_text("[]")
    snapshot(
        "AlpacaEval's files",
        {
            "a set: empty": a_set(b""),
            "a set: no questions": a_set([]),
            "a set: not UTF-8": a_set(b'[{"instruction": "\xff"}]'),
            "a set: deep": a_set(b"[" * 100_000),
            "a set: keys and values": a_set({"questions": [question]}),
            "a set: texts": a_set(["Name ten birds."]),
            "a set: a question without its reference": a_set([{"instruction": "Name ten birds.", "generator": "reference"}]),
            "a set: an instruction that is a number": a_set([{**question, "instruction": 7}]),
            "a set: an instruction twice": a_set([question, question]),
            "a set: two references": a_set([question, {**question, "instruction": "Why?", "generator": "another"}]),
            "a set: a lone surrogate": a_set([{**question, "instruction": "\ud800"}]),
            "a set: another file": lambda: read_evaluation_set(str(tmp_path / "set.json")),
            "a set: not there": lambda: read_evaluation_set(str(tmp_path / "other.json")),
            "baselines: empty": baselines(""),
            "baselines: without a column": baselines("index,preference\n1,2\n"),
            "baselines: without rows": baselines(columns),
            "baselines: words for a number": baselines(columns + "1,1.5,long,0.2\n"),
            "baselines: a row too short": baselines(columns + "1,1.5\n"),
            "baselines: no place": baselines(columns + ",1.5,0.1,0.2\n"),
            "baselines: an endless field": baselines(columns + '"' + "x" * 200_000 + "\n"),
            "baselines: a place past all numbers": baselines(columns + "1e300,1.5,0.1,0.2\n"),
            "verdicts: not JSON": verdicts("preference"),
            "verdicts: deep": verdicts("[" * 100_000),
            "verdicts: keys and values": verdicts({"rows": []}),
            "verdicts: a column less": verdicts([{**ANNOTATION, "output_1": None}]),
            "verdicts: a preference of 3": verdicts([{**ANNOTATION, "preference": 3}]),
            "verdicts: a preference in words": verdicts([{**ANNOTATION, "preference": "model"}]),
            "verdicts: an instruction twice": verdicts([ANNOTATION, ANNOTATION]),
        },
    )


SCORE = {"policy": 1, "group": "ours", "name": "accuracy", "value": 0.5, "low": 0.4, "high": 0.6, "n": 100}


def test_scores_that_cannot_be_used_are_named(snapshot: Snapshot, tmp_path: Path) -> None:
    def of(content: object) -> Callable[[], object]:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        return lambda: parse_scores(data, "scores.json")

    def one(**changes: object) -> Callable[[], object]:
        return of({"scores": [{**SCORE, **changes}]})

    snapshot(
        "scores.json",
        {
            "empty": of(b""),
            "not UTF-8": of(b'{"scores": "\xff"}'),
            "a list": of([SCORE]),
            "deep": of(b"[" * 100_000),
            "no scores": of({}),
            "a value in words": one(value="half"),
            "nan": one(value=float("nan")),
            "without an interval": one(low=None),
            "an interval upside down": one(low=0.7),
            "a policy below 0": one(policy=-1),
            "a name of nothing": one(name=""),
            "a source that is no address": one(source={"name": "them", "url": "javascript:alert(1)"}),
            "a dataset without a metric": one(dataset={"name": "d", "type": "d"}),
            "a lone surrogate": one(name="\ud800"),
            "a score twice": of({"scores": [SCORE, SCORE]}),
            "not there": lambda: read_scores(tmp_path / "scores.json"),
            "a folder": lambda: read_scores(tmp_path),
        },
    )


def test_tables_that_cannot_be_used_are_named(snapshot: Snapshot, tmp_path: Path) -> None:
    def of(content: bytes | None) -> Callable[[], object]:
        def read() -> object:
            (tmp_path / "manifest.json").unlink(missing_ok=True)
            if content is not None:
                (tmp_path / "manifest.json").write_bytes(content)
            return Tables.open(str(tmp_path))

        return read

    snapshot(
        "tables of the Portuguese tasks",
        {
            "nothing fetched": of(None),
            "an empty manifest": of(b""),
            "a manifest that is a list": of(b"[]"),
            "rows in words": of(
                b'{"files": {"enem/test.parquet": {"sha256": "%s", "rows": "all", "revision": "x"}}}' % (b"0" * 64)
            ),
            "another's manifest": of(b'{"stage": "rank"}'),
        },
    )


def test_a_value_without_a_stable_form_is_refused(snapshot: Snapshot) -> None:
    values: dict[str, object] = {
        "nan": {"eta": float("nan")},
        "a key that is a number": {1: 2},
        "a set": {"stages": {1, 2}},
        "bytes": [b"x"],
    }
    cases: dict[str, Callable[[], object]] = {
        name: (lambda value=value: canonical_json(value))
        for name, value in values.items()  # type: ignore[misc]
    }
    cases["a recipe of nothing"] = lambda: validate(Recipe, {}, "recipe mine", RecipeError)
    snapshot("fingerprints", cases)
