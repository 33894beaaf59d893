"""`sppo fetch-tables`: from datasets as they lie on the hub to a root, saying what was fetched and what a recipe calls it."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sppo.portuguese.specification import LeaderboardTask
from sppo.portuguese.tables import Tables, keys
from sppo.portuguese.tasks import TASKS

ROOT = Path(__file__).resolve().parents[2]
COMMAND = """
import sys
import typer
from flows.commands import tables
from sppo.errors import SppoError
app = typer.Typer()
app.callback()(lambda: None)
tables.add_to(app)
try:
    app()
except SppoError as error:
    sys.stderr.write(f"sppo: {error}\\n")
    sys.exit(2)
"""


def fetch_tables(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    whole = [sys.executable, "-c", COMMAND, "fetch-tables", *arguments]
    environment = {"PYTHONPATH": ":".join([str(ROOT), *sys.path]), "HF_HUB_OFFLINE": "1", "HOME": str(folder)}
    return subprocess.run(whole, capture_output=True, text=True, cwd=folder, timeout=300, env=environment)


def rows_of(tasks: list[LeaderboardTask]) -> pa.Table:
    """The shots of one of the tasks that read a table, and a column that none reads."""
    task = tasks[0]
    last = max([number for number in task.shot_ids if isinstance(number, int)], default=task.shots - 1)
    ids = list(task.shot_ids) if task.shot_column else list(range(last + 1))
    columns = dict.fromkeys([column for each in tasks for column in each.columns], ["x"] * len(ids))
    return pa.table({**columns, "unread": ["y"] * len(ids), **({task.shot_column: ids} if task.shot_column else {})})


@pytest.fixture
def clones(tmp_path: Path) -> Path:
    """Each dataset with a card that names its files by config and split, as on the hub."""
    cards: dict[str, dict[str, set[str]]] = {}
    for table in dict.fromkeys(task.table for task in TASKS.values()):
        readers = [task for task in TASKS.values() if task.table == table]
        config = table.config or "default"
        folder = tmp_path / "clones" / table.dataset / config
        folder.mkdir(parents=True)
        splits = cards.setdefault(table.dataset, {}).setdefault(config, set())
        for split in {split for task in readers for split in task.splits}:
            pq.write_table(rows_of(readers), folder / f"{split}.parquet")
            splits.add(split)
    for dataset, configs in cards.items():
        told = [
            {
                "config_name": name,
                "data_files": [{"split": split, "path": f"{name}/{split}.parquet"} for split in sorted(splits)],
            }
            for name, splits in configs.items()
        ]
        (tmp_path / "clones" / dataset / "README.md").write_text(f"---\n{json.dumps({'configs': told})}\n---\n")
    return tmp_path / "clones"


def test_all_nine_tasks_tables_are_fetched_and_named(clones: Path, tmp_path: Path) -> None:
    done = fetch_tables(tmp_path, "mine", "--clones", str(clones))
    assert done.returncode == 0, done.stderr
    tables = Tables.open(str(tmp_path / "mine"))
    files = tables.manifest.files
    assert files.keys() == {key for task in TASKS.values() for key in keys(task)}
    for task in TASKS.values():
        assert len(tables.shots(task)) == task.shots
    lines = done.stdout.splitlines()
    for key, file in files.items():
        assert any(line.split()[:3] == [str(file.rows), "rows", key] for line in lines)
    rows = sum(file.rows for file in files.values())
    assert lines[-2:] == [
        f"fetched  {len(files)} tables, {rows} rows -> mine",
        "recipe   evaluation.portuguese_tables: mine",
    ]
    assert "unread" not in pq.read_table(tmp_path / "mine" / "assin2" / "test.parquet").column_names


def test_a_dataset_that_cannot_be_loaded_is_one_plain_message(tmp_path: Path) -> None:
    done = fetch_tables(tmp_path, "mine", "--clones", str(tmp_path))
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("sppo: cannot load split train of eduagarcia/enem_challenge from")
    assert not (tmp_path / "mine" / "manifest.json").exists()
