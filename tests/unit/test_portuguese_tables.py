"""The tables: fetched once, kept in a folder or a bucket, refused where a byte differs."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sppo.errors import CorruptArtifactError, EvaluationError, SppoError
from sppo.portuguese.tables import MANIFEST, Tables, fetch, table_key, write
from sppo.portuguese.tasks import TASKS, task_named

RTE = TASKS["sppo_pt_assin2_rte"]
STS = TASKS["sppo_pt_assin2_sts"]
HATEBR = TASKS["sppo_pt_hatebr"]


def pairs(ids: list[int]) -> pa.Table:
    rows = [
        {
            "sentence_pair_id": number,
            "premise": f"Um homem {number} corre.",
            "hypothesis": "Alguém corre.",
            "entailment_judgment": number % 2,
            "relatedness_score": 1 + number % 5,
        }
        for number in ids
    ]
    return pa.Table.from_pylist(rows).set_column(4, "relatedness_score", pa.array([1 + n % 5 for n in ids], pa.float32()))


@pytest.fixture(params=["folder", "bucket"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "tables") if request.param == "folder" else str(request.getfixturevalue("s3_url"))


def written(root: str) -> Tables:
    return write(
        root,
        {
            table_key(RTE.table, "train"): (pairs([*RTE.shot_ids[::-1], 7000]), "c0ffee"),
            table_key(RTE.table, "test"): (pairs([1, 2, 3]), "c0ffee"),
        },
    )


def test_rows_come_back_from_a_folder_and_from_a_bucket(root: str) -> None:
    written(root)
    tables = Tables.open(root)
    assert [row["sentence_pair_id"] for row in tables.shots(RTE)] == list(RTE.shot_ids[:15])
    assert [row["entailment_judgment"] for row in tables.asked_rows(RTE)] == [1, 0, 1]
    assert tables.asked_rows(STS)[1]["relatedness_score"] == 3.0
    entry = tables.manifest.files["assin2/test.parquet"]
    assert (entry.rows, entry.revision) == (3, "c0ffee")


def test_a_file_that_is_not_the_manifests_is_refused(tmp_path: Path) -> None:
    written(str(tmp_path))
    tables = Tables.open(str(tmp_path))
    pq.write_table(pairs([1, 2, 4]), tmp_path / "assin2" / "test.parquet")
    with pytest.raises(
        CorruptArtifactError, match=r"assin2/test.parquet in .* is another file, sha256 [0-9a-f]{16}; expected [0-9a-f]{16} as"
    ):
        tables.asked_rows(RTE)
    (tmp_path / "assin2" / "test.parquet").unlink()
    with pytest.raises(CorruptArtifactError, match=r"assin2/test.parquet in .* is missing"):
        tables.asked_rows(RTE)


def test_the_digest_is_of_what_the_tasks_read_and_of_nothing_else(tmp_path: Path) -> None:
    tables = written(str(tmp_path / "one"))
    assert tables.digest([RTE]) == tables.digest([RTE, STS]), "both read the same files"
    more = write(tables.root, {table_key(HATEBR.table, "test"): (pa.table({"idx": [1]}), "c0ffee")})
    assert more.digest([RTE]) == tables.digest([RTE])
    other = write(str(tmp_path / "two"), {table_key(RTE.table, "train"): (pairs([1]), "c0ffee")})
    with pytest.raises(EvaluationError, match=r"holds no assin2/test\.parquet; it holds assin2/train.parquet"):
        other.digest([RTE])


def test_a_root_without_tables_says_how_to_fetch_them(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"no manifest.json in .*: fetch them there once with"):
        Tables.open(str(tmp_path))
    (tmp_path / MANIFEST).write_text('{"files": {"assin2/test.parquet": {"sha256": "short", "rows": 1, "revision": "x"}}}')
    with pytest.raises(SppoError, match=r"manifest.json is not a valid tables manifest"):
        Tables.open(str(tmp_path))


def clone(folder: Path, name: str, splits: dict[str, pa.Table], config: str | None = None) -> None:
    """A dataset as it lies on the hub: a card that names its files, and parquet."""
    repository = folder / name
    (repository / (config or "data")).mkdir(parents=True)
    files = [{"split": split, "path": f"{config or 'data'}/{split}-*"} for split in splits]
    card = {"configs": [{"config_name": config or "default", "data_files": files}]}
    (repository / "README.md").write_text(f"---\n{json.dumps(card)}\n---\n")
    for split, table in splits.items():
        pq.write_table(table, repository / (config or "data") / f"{split}-00000-of-00001.parquet")


def test_tables_are_fetched_from_datasets_as_they_lie_on_the_hub(tmp_path: Path) -> None:
    train, test = (
        table.append_column("unread", pa.array(["x"] * len(table))) for table in (pairs(list(RTE.shot_ids)), pairs([1, 2, 3]))
    )
    clone(tmp_path / "hub", "assin2", {"train": train, "test": test})
    comments: dict[str, list[Any]] = {"idx": list(HATEBR.shot_ids), "sentence": ["Oi"] * 50, "label": [0, 1] * 25}
    clone(
        tmp_path / "hub",
        "eduagarcia/portuguese_benchmark",
        {"train": pa.table(comments), "test": pa.table(comments)},
        HATEBR.table.config,
    )
    tables = fetch(str(tmp_path / "tables"), [RTE, STS, HATEBR], clones=tmp_path / "hub")
    assert sorted(tables.manifest.files) == [
        "assin2/test.parquet",
        "assin2/train.parquet",
        "eduagarcia/portuguese_benchmark/HateBR_offensive_binary/test.parquet",
        "eduagarcia/portuguese_benchmark/HateBR_offensive_binary/train.parquet",
    ]
    kept = pq.read_table(tmp_path / "tables" / "assin2" / "test.parquet")
    assert kept.column_names == ["entailment_judgment", "hypothesis", "premise", "relatedness_score", "sentence_pair_id"]
    assert len(tables.asked_rows(HATEBR)) == 50
    assert [row["idx"] for row in tables.shots(HATEBR)] == list(HATEBR.shot_ids[:25])


def test_a_dataset_that_is_not_there_or_has_changed_is_named(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="cannot load split train of ruanchaves/faquad-nli from"):
        fetch(str(tmp_path / "tables"), [task_named("sppo_pt_faquad_nli")], clones=tmp_path / "hub")
    clone(tmp_path / "hub", "assin2", {split: pairs([1]).drop_columns(["premise"]) for split in ("train", "test")})
    with pytest.raises(EvaluationError, match="has no column 'premise'; it has"):
        fetch(str(tmp_path / "tables"), [RTE], clones=tmp_path / "hub")
