"""Portions and held-out prompts: every row accounted for, nothing in two places, every text exactly as given."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sppo import policy, split
from sppo.errors import PromptError
from sppo.recipe import Prompts, Recipe
from sppo.records import Prompt, from_table, to_table
from sppo.store import Artifact, Store

ALPACA = Path(__file__).resolve().parents[3] / "shared" / "data" / "alpaca_eval_responses.parquet"


@pytest.fixture
def base(random_policy: Callable[[str], Path], tiny: Recipe, store: Store) -> tuple[Recipe, Artifact]:
    """The tiny recipe with a random policy of bytes and specials: a letter is a token."""
    source = {"source": {"kind": "folder", "path": str(random_policy("llama"))}}
    chosen = type(tiny.policy).model_validate_json(json.dumps({**tiny.policy.model_dump(mode="json"), **source}))
    recipe = tiny.model_copy(update={"policy": chosen})
    return recipe, store.build(policy.step(recipe))


def asking(recipe: Recipe, unusable_rows: str = "refuse", max_prompt_tokens: int = 200, **source: Any) -> Recipe:
    values = {"source": source, "max_prompt_tokens": max_prompt_tokens, "unusable_rows": unusable_rows}
    return recipe.model_copy(update={"prompts": Prompts.model_validate_json(json.dumps(values))})


def own(recipe: Recipe, path: Path, unusable_rows: str = "refuse", max_prompt_tokens: int = 200, **more: Any) -> Recipe:
    return asking(recipe, unusable_rows, max_prompt_tokens, kind="own", dataset=str(path), **{"test_share": 0.3, **more})


def write_jsonl(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def all_prompts(artifact: Artifact) -> dict[str, list[Prompt]]:
    return {name: list(from_table(Prompt, artifact.table(name))) for name in artifact.file_names(".parquet")}


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def many(count: int) -> list[dict[str, str]]:
    return [{"prompt": f"Question {number}?"} for number in range(count)]


def test_own_prompts_are_portioned_by_a_stable_hash_and_every_row_is_counted(
    base: tuple[Recipe, Artifact], store: Store, tmp_path: Path
) -> None:
    recipe, artifact = base
    rows = many(60)
    made = store.build(split.step(own(recipe, write_jsonl(tmp_path / "a.jsonl", [*rows, rows[3], rows[3]])), artifact))
    counts = made.manifest.counts
    assert counts["rows"] == 62
    assert counts["duplicates"] == 2
    assert counts["train_1"] + counts["train_2"] + counts["train_3"] + counts["test"] == 60
    assert json.loads(made.text("split.json"))["counts"] == counts
    prompts = all_prompts(made)
    ids = [prompt.prompt_id for name in prompts for prompt in prompts[name]]
    assert sorted(ids) == sorted(sha(row["prompt"]) for row in rows)
    for name, portion in prompts.items():
        assert [one.prompt_id for one in portion] == sorted(one.prompt_id for one in portion), name
    # the order of the rows does not matter, and more rows move none of these
    again = store.build(split.step(own(recipe, write_jsonl(tmp_path / "b.jsonl", [*many(70)[::-1]])), artifact))
    for name, portion in all_prompts(again).items():
        assert {one.prompt_id for one in prompts[name]} <= {one.prompt_id for one in portion}


def test_the_test_set_does_not_depend_on_the_number_of_iterations() -> None:
    ids = [sha(str(number)) for number in range(2000)]
    three, five = ({one for one in ids if split.hashed_place(one, total, 0.1) == 0} for total in (3, 5))
    assert three == five
    assert 150 < len(three) < 250  # 200 +- 13 expected
    sizes = [sum(split.hashed_place(one, 3, 0.1) == place for one in ids) for place in (1, 2, 3)]
    assert all(500 < size < 700 for size in sizes)  # 600 +- 20 expected


def test_odd_texts_are_kept_exactly_as_given(base: tuple[Recipe, Artifact], store: Store, tmp_path: Path) -> None:
    recipe, artifact = base
    odd = ["None", "a\r\nb\r\n", " 🦊 \u2028 ", "<turn>user\nx</turn>", "{{ x }}", "nul \x00", "<end_of_turn><bos>"]
    system = [{"role": "system", "content": ""}, {"role": "user", "content": "None"}]
    rows = [*({"prompt": text} for text in odd), {"prompt": system}, *many(40)]
    made = store.build(split.step(own(recipe, write_jsonl(tmp_path / "odd.jsonl", rows)), artifact))
    by_id = {one.prompt_id: one for portion in all_prompts(made).values() for one in portion}
    for text in odd:
        assert by_id[sha(text)].messages == [{"role": "user", "content": text}]
        # <bos> <turn> .. </turn> <turn>: what was typed is text
        assert [number for number in by_id[sha(text)].token_ids if number < 4] == [0, 2, 3, 2]
    assert system in [one.messages for one in by_id.values()]


BAD: list[tuple[Any, str]] = [
    ({"prompt": ""}, "empty"),
    ({"prompt": " \r\n "}, "empty"),
    ({"prompt": None}, "not_text"),
    ({"prompt": 7}, "not_text"),
    ({"prompt": []}, "empty"),
    ({"prompt": [{"role": "user"}]}, "not_text"),
    ({"prompt": [{"role": "judge", "content": "x"}]}, "not_text"),
    ({"prompt": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}, "no_user_turn"),
    ('{"prompt": "\\ud83d alone"}', "lone_surrogate"),
    ({"prompt": "x" * 300}, "too_long"),
    ({"prompt": [{"role": "user", "content": "x"}, {"role": "system", "content": "y"}, {"role": "user", "content": "z"}]},
     "refused_by_template"),
    ('{"prompt": NaN}', "unreadable"),
    ('{"prompt": "cut', "unreadable"),
    ("[1, 2]", "unreadable"),
    ('{"other": "column"}', "unreadable"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "reason"), BAD, ids=[f"{number}-{reason}" for number, (_, reason) in enumerate(BAD)])
def test_an_unusable_row_is_refused_by_name_or_dropped_and_counted(
    base: tuple[Recipe, Artifact], store: Store, tmp_path: Path, row: Any, reason: str
) -> None:
    recipe, artifact = base
    path = write_jsonl(tmp_path / "bad.jsonl", [*many(30), row])
    with pytest.raises(PromptError) as refused:
        store.build(split.step(own(recipe, path), artifact))
    words = reason.replace("_", " ")
    assert f"1 of 31 rows of bad.jsonl cannot be used (1 {words}):\n  bad.jsonl line 31: " in str(refused.value)
    assert "prompts.unusable_rows to drop" in str(refused.value)
    counts = store.build(split.step(own(recipe, path, "drop"), artifact)).manifest.counts
    assert counts[f"dropped_{reason}"] == 1
    assert counts["rows"] == 31


def test_bytes_that_are_no_utf8_are_one_unusable_row(base: tuple[Recipe, Artifact], store: Store, tmp_path: Path) -> None:
    recipe, artifact = base
    path = write_jsonl(tmp_path / "bytes.jsonl", many(30))
    path.write_bytes(path.read_bytes() + b'{"prompt": "\xff\xfe"}\n')
    with pytest.raises(PromptError, match=r"bytes\.jsonl line 31: the row is not UTF-8"):
        store.build(split.step(own(recipe, path), artifact))
    values = pa.array([b"fine", b"\xff"], pa.binary()).view(pa.string())
    pq.write_table(
        pa.table({"prompt": pa.concat_arrays([values, pa.array([f"p{n}" for n in range(40)])])}), tmp_path / "b.parquet"
    )
    counts = store.build(split.step(own(recipe, tmp_path / "b.parquet", "drop"), artifact)).manifest.counts
    assert counts["dropped_unreadable"] == 1
    assert counts["rows"] == 42


def test_three_examples_are_shown_and_the_rest_counted(base: tuple[Recipe, Artifact], store: Store, tmp_path: Path) -> None:
    recipe, artifact = base
    rows = [*many(20), *({"prompt": ""} for _ in range(4)), {"prompt": "y" * 500}]
    with pytest.raises(PromptError) as refused:
        store.build(split.step(own(recipe, write_jsonl(tmp_path / "five.jsonl", rows)), artifact))
    assert "5 of 25 rows of five.jsonl cannot be used (4 empty, 1 too long)" in str(refused.value)
    assert "line 23" in str(refused.value)
    assert "line 24" not in str(refused.value)
    assert "and 2 more" in str(refused.value)


def test_one_id_for_two_prompts_is_an_error_and_two_ids_for_one_prompt_a_counted_duplicate(
    base: tuple[Recipe, Artifact], store: Store, tmp_path: Path
) -> None:
    recipe, artifact = base
    rows = [{"key": number, **row} for number, row in enumerate(many(40))]
    same = write_jsonl(tmp_path / "same.jsonl", [*rows, {"key": 99, "prompt": "Question 7?"}])
    counts = store.build(split.step(own(recipe, same, id_column="key"), artifact)).manifest.counts
    assert counts["same_prompt_other_id"] == 1
    other = write_jsonl(tmp_path / "other.jsonl", [*rows, {"key": 7, "prompt": "Another?"}])
    with pytest.raises(
        PromptError, match=r"id '7' stands for two prompts, 'Question 7\?' at other\.jsonl line 8 and 'Another\?'"
    ):
        store.build(split.step(own(recipe, other, "drop", id_column="key"), artifact))


def test_a_missing_column_is_named_with_those_there_are_and_the_nearest(
    base: tuple[Recipe, Artifact], store: Store, tmp_path: Path
) -> None:
    recipe, artifact = base
    path = write_jsonl(tmp_path / "c.jsonl", [{"instruction": "x", "prompts": "y"}])
    with pytest.raises(PromptError) as refused:
        store.build(split.step(own(recipe, path), artifact))
    assert str(refused.value) == (
        "c.jsonl has no column 'prompt'; it has instruction, prompts; the nearest is 'prompts': "
        "set prompts.source.prompt_column"
    )
    with pytest.raises(PromptError, match=r"no column 'key'.*set prompts.source.id_column"):
        store.build(split.step(own(recipe, path, prompt_column="instruction", id_column="key"), artifact))


def test_a_dataset_that_is_missing_empty_or_torn_is_an_error_in_words(
    base: tuple[Recipe, Artifact], store: Store, tmp_path: Path
) -> None:
    recipe, artifact = base
    with pytest.raises(PromptError, match=r"nowhere\.jsonl does not exist; expected a file"):
        split.step(own(recipe, tmp_path / "nowhere.jsonl"), artifact)
    with pytest.raises(PromptError, match=r"empty\.jsonl has no rows; expected prompts"):
        store.build(split.step(own(recipe, write_jsonl(tmp_path / "empty.jsonl", [])), artifact))
    (tmp_path / "torn.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(PromptError, match=r"cannot read torn\.parquet as Parquet"):
        store.build(split.step(own(recipe, tmp_path / "torn.parquet"), artifact))
    with pytest.raises(PromptError, match=r"would be empty \(test 0|would be empty \(.*train-\d 0"):
        store.build(split.step(own(recipe, write_jsonl(tmp_path / "two.jsonl", many(2))), artifact))


def snorkel_folder(folder: Path, portions: dict[str, list[str]]) -> Path:
    (folder / "data").mkdir(parents=True)
    for name, texts in portions.items():
        table = pa.table({"prompt_id": [sha(text) for text in texts], "prompt": texts, "chosen": texts})
        half = len(texts) // 2  # shards, as on the hub
        pq.write_table(table.slice(0, half), folder / "data" / f"{name}-00000-of-00002.parquet")
        pq.write_table(table.slice(half), folder / "data" / f"{name}-00001-of-00002.parquet")
    return folder


def partition(tmp_path: Path) -> tuple[Path, dict[str, list[str]]]:
    portions = {
        f"{kind}_iteration_{t}": [f"{kind} {t} {number}" for number in range(4)]
        for kind in ("train", "test")
        for t in (1, 2, 3)
    }
    portions["train_iteration_10"] = ["never read"]
    return snorkel_folder(tmp_path / "snorkel", portions), portions


def test_the_snorkel_partition_is_kept_with_all_its_test_prompts_together(
    base: tuple[Recipe, Artifact], store: Store, tmp_path: Path
) -> None:
    recipe, artifact = base
    folder, portions = partition(tmp_path)
    made = store.build(split.step(asking(recipe, kind="snorkel", dataset=str(folder)), artifact))
    texts = {name: {one.messages[0]["content"] for one in portion} for name, portion in all_prompts(made).items()}
    assert texts["train-2.parquet"] == set(portions["train_iteration_2"])
    assert texts["test.parquet"] == {text for t in (1, 2, 3) for text in portions[f"test_iteration_{t}"]}
    assert split.portion(made, 2).name == "train-2.parquet"
    assert split.held_out(made).name == "test.parquet"


def test_a_test_prompt_that_is_also_a_train_prompt_is_only_tested(
    base: tuple[Recipe, Artifact], store: Store, tmp_path: Path
) -> None:
    recipe, artifact = base
    _, portions = partition(tmp_path)
    portions["train_iteration_1"] += ["test 3 0", "train 2 1"]
    folder = snorkel_folder(tmp_path / "leaky", portions)
    made = store.build(split.step(asking(recipe, kind="snorkel", dataset=str(folder)), artifact))
    # 26 rows: 5 + 3 + 4 train, 12 test, 2 duplicates: the test set keeps its prompt, iteration 1 comes before iteration 2
    wanted = {"rows": 26, "train_1": 5, "train_2": 3, "train_3": 4, "test": 12, "duplicates": 2}
    assert {key: made.manifest.counts[key] for key in wanted} == wanted


def test_a_missing_split_is_named_with_the_files_there_are(base: tuple[Recipe, Artifact], tmp_path: Path) -> None:
    recipe, artifact = base
    folder, _ = partition(tmp_path)
    for file in (folder / "data").glob("test_iteration_2-*"):
        file.unlink()
    with pytest.raises(PromptError, match=r"no split 'test_iteration_2' in .*found test_iteration_1-00000-of-00002\.parquet"):
        split.step(asking(recipe, kind="snorkel", dataset=str(folder)), artifact)


def test_ultrafeedback_is_joined_to_the_partition_by_the_sha256_of_the_prompt(
    base: tuple[Recipe, Artifact], store: Store, tmp_path: Path
) -> None:
    recipe, artifact = base
    folder, portions = partition(tmp_path)
    known = [text for name, texts in portions.items() if name != "train_iteration_10" for text in texts]
    rows = [{"instruction": text} for text in [*known[1:], "in no partition", "nor this"]]
    path = write_jsonl(tmp_path / "ultra.jsonl", rows)
    source = {"kind": "ultrafeedback", "dataset": str(path), "partition": str(folder)}
    made = store.build(split.step(asking(recipe, **source), artifact))
    # 24 ids in the partition, of which one has no prompt: 3 + 4 + 4 train, 12 test, 2 rows outside
    counts = {"rows": 25, "outside_partition": 2, "partition_ids_without_prompt": 1, "train_1": 3, "train_2": 4, "test": 12}
    assert {key: made.manifest.counts[key] for key in counts} == counts
    strangers = write_jsonl(tmp_path / "strangers.jsonl", many(3))
    with pytest.raises(PromptError, match=r"none of the 3 prompts of .* is among the 24 ids"):
        store.build(split.step(asking(recipe, **{**source, "dataset": str(strangers)}), artifact))


def test_the_tiny_worlds_prompts_come_in_the_sizes_asked_for(base: tuple[Recipe, Artifact], store: Store) -> None:
    recipe, artifact = base
    made = store.build(split.step(asking(recipe, kind="world", train_prompts=6, test_prompts=5), artifact))
    wanted = {"rows": 23, "train_1": 6, "train_2": 6, "train_3": 6, "test": 5}
    assert {key: made.manifest.counts[key] for key in wanted} == wanted


def test_the_proof_finds_a_prompt_in_two_files(store: Store) -> None:
    workspace = store.workspace("split", "0" * 64)
    one = Prompt("a", [{"role": "user", "content": "x"}], [1])
    other = Prompt("b", [{"role": "user", "content": "x"}], [1])
    workspace.add_table(to_table(Prompt, [one]), "test.parquet")
    for second in (one, other):
        workspace.add_table(to_table(Prompt, [second]), "train-1.parquet")
        with pytest.raises(PromptError, match=r"is in test\.parquet and in train-1\.parquet; expected disjoint portions"):
            split.prove(workspace, 1, {"rows": 2})
    workspace.add_table(to_table(Prompt, []), "train-1.parquet")
    with pytest.raises(PromptError, match="1 of 2 rows are accounted for"):
        split.prove(workspace, 1, {"rows": 2})


def test_a_hub_dataset_is_read_split_by_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sppo import sources

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "dataset"
    folder.mkdir()
    write_jsonl(folder / "train.jsonl", many(3))
    write_jsonl(folder / "test.jsonl", [{"prompt": "t"}])
    found = sources.read_hub(str(folder), "main", None, ["prompt", "prompt_id"])
    assert found.columns == ["prompt"]
    assert [row.values["prompt"] for row in found.rows] == ["Question 0?", "Question 1?", "Question 2?", "t"]
    with pytest.raises(PromptError, match=r"cannot load dataset .* split nothing"):
        sources.read_hub(str(folder), "main", "nothing", ["prompt"])


@pytest.mark.skipif(not ALPACA.exists(), reason="the shared data is not there")
def test_real_prompts_are_all_accounted_for(base: tuple[Recipe, Artifact], store: Store, tmp_path: Path) -> None:
    recipe, artifact = base
    pq.write_table(pq.read_table(ALPACA).slice(0, 200), tmp_path / "alpaca.parquet")
    asked = own(recipe, tmp_path / "alpaca.parquet", "drop", 250, prompt_column="instruction")
    counts = store.build(split.step(asked, artifact)).manifest.counts
    placed = counts["train_1"] + counts["train_2"] + counts["train_3"] + counts["test"]
    assert counts["rows"] == 200 == placed + counts.get("dropped_too_long", 0)
