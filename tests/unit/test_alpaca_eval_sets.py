"""The pinned files: what they are, and what is refused."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from sppo.alpaca_eval.sets import Question, read_evaluation_set, read_gamed_baselines, read_pinned
from sppo.errors import EvaluationError
from sppo.recipe.alpaca_eval import EVALUATION_SET_SHA256

RESPONSES = Path(__file__).resolve().parents[3] / "shared" / "data" / "alpaca_eval_responses.parquet"
ROWS = [
    {"dataset": "vicuna", "instruction": "Why?", "output": "Because.", "generator": "gpt4_1106_preview"},
    {"instruction": "Füchse 🦊?", "output": "Ja.", "generator": "gpt4_1106_preview"},
]
GAMED = """model,index,preference,std_delta_len,instruction_difficulty,not_gamed_baseline
verbose,0,0.25,-1.5,0.5,False
verbose,1,,0.25,-2.0,False
concise,0,0.75,1.5,0.5,False
"""


def written(folder: Path, content: str, name: str = "set.json") -> tuple[str, str]:
    """Path and sha256 of a file with this content."""
    (folder / name).write_text(content, encoding="utf-8")
    return str(folder / name), hashlib.sha256(content.encode()).hexdigest()


@pytest.mark.skipif(not RESPONSES.is_file(), reason=f"{RESPONSES.name} is not there")
def test_the_pinned_set_is_that_of_the_805_real_instructions(tmp_path: Path) -> None:
    # the hub's file, byte for byte: pandas' JSON, which has no blank after a colon and writes \/ for /
    rows = [
        {
            "dataset": row["dataset"],
            "instruction": row["instruction"],
            "output": row["gpt4_1106_preview"],
            "generator": "gpt4_1106_preview",
        }
        for row in pq.read_table(RESPONSES).to_pylist()
    ]
    content = json.dumps(rows, indent=2, separators=(",", ":")).replace("/", "\\/")
    path, sha256 = written(tmp_path, content)
    assert sha256 == EVALUATION_SET_SHA256
    found = read_evaluation_set(path)
    assert found.official
    assert (len(found.questions), found.generator) == (805, "gpt4_1106_preview")
    assert found.instructions == [row["instruction"] for row in rows]


def test_another_file_is_refused_by_both_digests(tmp_path: Path) -> None:
    path, sha256 = written(tmp_path, json.dumps(ROWS))
    with pytest.raises(
        EvaluationError, match=rf"set\.json has the sha256 {sha256}; expected {EVALUATION_SET_SHA256}: .*name its own digest"
    ):
        read_evaluation_set(path)
    found = read_evaluation_set(path, sha256)
    assert not found.official
    assert found.questions == (Question("Why?", "Because.", "vicuna"), Question("Füchse 🦊?", "Ja.", ""))


def test_gamed_baselines_are_columns_by_name_and_an_instruction_is_as_difficult_as_its_row_says(tmp_path: Path) -> None:
    path, sha256 = written(tmp_path, GAMED, "df_gamed.csv")
    with pytest.raises(EvaluationError, match=r"df_gamed\.csv has the sha256"):
        read_gamed_baselines(path)
    found = read_gamed_baselines(path, sha256)
    assert not found.official
    assert found.preferences.tolist() == [0.25, pytest.approx(float("nan"), nan_ok=True), 0.75]
    assert found.length_differences.tolist() == [-1.5, 0.25, 1.5]
    assert found.difficulty([1, 0]).tolist() == [-2.0, 0.5]


@pytest.mark.parametrize(
    "content",
    [
        "",
        GAMED.splitlines()[0],
        GAMED.replace("std_delta_len", "delta"),
        GAMED.replace("verbose,1,", "verbose,,"),
        GAMED.replace("-2.0", "hard"),
        GAMED + "concise,1\n",
    ],
)
def test_what_is_no_gamed_baselines_is_an_error(tmp_path: Path, content: str) -> None:
    path, sha256 = written(tmp_path, content, "df_gamed.csv")
    with pytest.raises(EvaluationError, match=r"df_gamed\.csv holds no gamed baselines .* expected a CSV with the columns"):
        read_gamed_baselines(path, sha256)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"a": 1}, "is no evaluation set"),
        ([{"instruction": "a", "output": "b"}], r"is no evaluation set \(it has no generator\)"),
        ([{**ROWS[0], "output": None}], "question 1 has an instruction, output or dataset that is no text"),
        ([ROWS[0], {**ROWS[1], "generator": "other"}], "answers of 2 generators: gpt4_1106_preview, other; expected one"),
        ([ROWS[0], ROWS[0]], "has the instruction 'Why[?]' twice"),
        ([], "it holds no list of questions"),
    ],
)
def test_what_is_no_evaluation_set_is_an_error(tmp_path: Path, rows: object, message: str) -> None:
    path, sha256 = written(tmp_path, json.dumps(rows))
    with pytest.raises(EvaluationError, match=message):
        read_evaluation_set(path, sha256)


def test_any_address_that_fsspec_knows_is_read() -> None:
    import fsspec

    with fsspec.open("memory://sets/one.json", "wb") as stream:
        stream.write(b"content")
    assert read_pinned("memory://sets/one.json", hashlib.sha256(b"content").hexdigest()) == b"content"


def test_a_set_in_a_bucket_is_read(s3_url: str) -> None:
    from sppo.store.backend import open_backend

    open_backend(s3_url).create("set.json", b"content")
    sha256 = hashlib.sha256(b"content").hexdigest()
    assert read_pinned(f"{s3_url}/set.json", sha256) == b"content"
    with pytest.raises(EvaluationError, match=rf"cannot read {s3_url}/other\.json: there is no such object"):
        read_pinned(f"{s3_url}/other.json", sha256)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("/nowhere/set.json", r"cannot read /nowhere/set\.json: .*No such file"),
        ("strange://nowhere/set.json", r"cannot read strange://nowhere/set\.json: .*strange"),
        ("http://user:geheim@127.0.0.1:9/set.json", r"cannot read http://127\.0\.0\.1:9/set\.json: \w*Error; expected"),
        ("http://127.0.0.1:9/set.json?token=geheim", r"cannot read http://127\.0\.0\.1:9/set\.json: \w*Error; expected"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_without_its_secrets(url: str, shown: str) -> None:
    with pytest.raises(EvaluationError, match=shown) as caught:
        read_pinned(url, "0" * 64)
    assert "geheim" not in str(caught.value)


def test_a_hub_out_of_reach_is_an_error_in_words() -> None:
    code = """
from sppo.alpaca_eval.sets import read_evaluation_set
from sppo.errors import SppoError
from sppo.recipe.alpaca_eval import EvaluationSetFile
from sppo.resolve import pin
for asked in (lambda: read_evaluation_set(EvaluationSetFile().source), lambda: pin("model", "someone/judge", "main")):
    try:
        asked()
    except SppoError as error:
        print(error)
"""
    environment = {**os.environ, "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9"}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=300)
    assert found.returncode == 0, found.stderr
    first, second = found.stdout.splitlines()
    assert first.startswith("cannot read hf://datasets/tatsu-lab/alpaca_eval@2edc6fad")
    assert second.startswith("cannot look up revision 'main' of the model someone/judge")
