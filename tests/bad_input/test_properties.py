"""Whatever is read, a parser gives a value or an error of ours: arbitrary input by hypothesis, and mutations of valid files.

SPPO_SOAK=<minutes> mutates for that long in place of a fixed number of cases, from a seed of its own, which a failure names.
"""

import contextlib
import json
import os
import random
import string
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sppo.alpaca_eval.annotations import from_json
from sppo.alpaca_eval.sets import parse_evaluation_set, parse_gamed_baselines
from sppo.card.scores import parse_scores
from sppo.configuration import parse_yaml, validate
from sppo.errors import HardwareError, PromptError, RecipeError, SppoError
from sppo.hardware import Hardware, load_hardware
from sppo.last_start import LastStart
from sppo.launch.work import WorkRecord
from sppo.portuguese.tables import TablesManifest
from sppo.recipe import Recipe, load_recipe
from sppo.runs import Branch, IterationIndex, check_run_name, find_recipe, recipe_key
from sppo.sources import read
from sppo.split import UnusableRowError, messages_of
from sppo.store import FileEntry, Manifest, PartRecord, Store
from sppo.store.backend import open_backend
from sppo.store.manifest import parse_record

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT / "deployments" / "recipes"
HARDWARE = ROOT / "deployments" / "hardware"
SOAK_MINUTES = float(os.environ.get("SPPO_SOAK") or 0)
CASES = 12_000
"""Mutations of each kind of file."""
few = settings(derandomize=not SOAK_MINUTES, max_examples=2000 if SOAK_MINUTES else 60)

TEXTS = st.text(st.characters(codec=None, categories=None), max_size=40)  # with NUL and lone surrogates
NUMBERS = st.integers() | st.floats() | st.integers(min_value=10**300, max_value=10**301)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)
KEYS = st.sampled_from(sorted({*Recipe.model_fields, *Hardware.model_fields, "kind", "source", "path", "eta"}))
MAPPINGS = st.dictionaries(KEYS | TEXTS, VALUES, max_size=5)

RECORDS = [Manifest, PartRecord, IterationIndex, Branch, LastStart, WorkRecord, TablesManifest, FileEntry]


def answered(call: Callable[[], object]) -> bool:
    """Whether a call gave a value; else it raised an error of ours, with something to read."""
    try:
        call()
    except SppoError as error:
        said = str(error).strip()
    else:
        return True
    assert 0 < len(said) < 20_000
    return False


@few
@given(MAPPINGS)
def test_any_mapping_is_a_recipe_or_is_refused(values: dict[str, Any]) -> None:
    answered(lambda: validate(Recipe, values, "recipe mine", RecipeError))
    answered(lambda: validate(Hardware, values, "mine.yaml", HardwareError))


@few
@given(
    st.sampled_from(["training.eta", "judge", "prompts.source", "evaluation.judges", "name", "selection", "", "a.b"]) | TEXTS,
    VALUES,
)
@example("training.eta", "\x85")
def test_any_override_is_taken_or_refused(key: str, value: object) -> None:
    answered(lambda: load_recipe("tiny", RECIPES, (f"{key}={value}",)))
    answered(lambda: load_recipe("tiny", RECIPES, (f"{key}={json.dumps(value)}",)))


@few
@given(TEXTS | st.binary(max_size=60).map(lambda data: data.decode("utf-8", "surrogateescape")))
@example("~")
@example("a: !!set {x}")
@example("? [a]\n: b")
def test_any_text_is_yaml_or_is_refused(text: str) -> None:
    answered(lambda: parse_yaml(text, "mine.yaml", RecipeError))


@few
@given(TEXTS)
@example("s3://[")
@example("//[")
@example("~nobody-of-this-name/x")
@example("block/\0")
@example("\ud800")
def test_any_text_is_a_store_a_name_or_a_file_or_is_refused(text: str) -> None:
    answered(lambda: open_backend(text if "://" not in text or text.startswith(("file", "memory")) else "s4://x"))
    answered(lambda: open_backend(f"s3://{text}") if not text.strip() else check_run_name(text))
    answered(lambda: check_run_name(text))
    answered(lambda: load_recipe(text, RECIPES))
    answered(lambda: load_hardware(text, HARDWARE))
    answered(lambda: load_recipe(f"{text}.yaml", RECIPES))


@few
@given(st.sampled_from(RECORDS), VALUES.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=80))
def test_any_bytes_are_a_record_or_are_refused(kind: Any, content: bytes) -> None:
    answered(lambda: parse_record(kind, content, "rank/0/manifest.json"))


@few
@given(content=VALUES.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=80))
def test_any_bytes_are_scores_verdicts_or_a_set_or_are_refused(content: bytes) -> None:
    answered(lambda: parse_scores(content, "scores.json"))
    answered(lambda: from_json(content.decode("utf-8", "replace")))
    answered(lambda: parse_evaluation_set(content, "set.json"))
    answered(lambda: parse_gamed_baselines(content, "df_gamed.csv"))
    columns = b"index,preference,std_delta_len,instruction_difficulty\n"
    answered(lambda: parse_gamed_baselines(columns + content, "df_gamed.csv"))


@few
@given(
    rows=st.lists(VALUES | st.dictionaries(st.sampled_from(["prompt", "role", "content"]), VALUES), max_size=5),
    tail=st.binary(max_size=30),
)
def test_any_line_of_a_dataset_is_a_row_with_or_without_a_problem(
    rows: list[object], tail: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_bytes("\n".join(map(json.dumps, rows)).encode() + b"\n" + tail)
    found = read([path], ["prompt"])
    for row in found.rows:
        with contextlib.suppress(UnusableRowError):
            messages_of(row.values.get("prompt"))
    path = path.with_suffix(".parquet")
    path.write_bytes(tail)
    with pytest.raises(PromptError):
        read([path], ["prompt"])


@few
@given(content=VALUES.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=80))
def test_any_bytes_are_a_runs_recipe_or_are_refused(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    store = Store(str(tmp_path_factory.getbasetemp() / "any-store"))
    store.backend.replace(recipe_key("any"), content)
    answered(lambda: find_recipe(store, "any"))


PIECES = [
    *[bytes([number]) for number in (0, 9, 10, 13, 27, 34, 39, 45, 58, 91, 93, 123, 125, 127, 128, 255)],
    *[
        piece.encode()
        for piece in (
            "null",
            "true",
            "-1",
            "1e999",
            ".nan",
            "NaN",
            "~",
            "&a ",
            "*a",
            "<<: ",
            "!!int ",
            "!!python/name:os ",
            "%YAML",
            "---",
            "\\ud800",
            "\ufeff",
            "../",
            "9" * 4400,
        )
    ],
]


def mutated(content: bytes, draw: random.Random) -> bytes:
    """A valid file with one to four things done to it: flipped, cut, doubled, swapped, put in."""
    data = bytearray(content)
    for _ in range(draw.randint(1, 4)):
        place = draw.randrange(len(data) + 1)
        other = min(len(data), place + draw.choice((1, 2, 8, 64, 512)))
        match draw.randrange(6):
            case 0 if place < len(data):
                data[place] ^= 1 << draw.randrange(8)
            case 1:
                del data[place:other]
            case 2:
                data[place:place] = data[place:other]
            case 3:
                data[place:place] = draw.choice(PIECES)
            case 4:
                lines = bytes(data).split(b"\n")
                draw.shuffle(lines) if draw.random() < 0.2 else lines.insert(draw.randrange(len(lines)), draw.choice(lines))
                data = bytearray(b"\n".join(lines))
            case _:
                data[place:other] = draw.choice(string.printable).encode() * draw.choice((1, 3, 200))
    return bytes(data)


def parse_recipe(content: bytes) -> object:
    return validate(Recipe, parse_yaml(content.decode("utf-8", "replace"), "mine.yaml", RecipeError), "mine", RecipeError)


def parse_hardware(content: bytes) -> object:
    return validate(Hardware, parse_yaml(content.decode("utf-8", "replace"), "mine.yaml", HardwareError), "mine", HardwareError)


def parse_manifest(content: bytes) -> object:
    return parse_record(Manifest, content, "rank/0/manifest.json")


def parse_part(content: bytes) -> object:
    return parse_record(PartRecord, content, "rank/0/parts/chunk-00000.json")


def valid_files() -> Iterator[tuple[str, Callable[[bytes], object], bytes]]:
    """A parser's name, the parser, and what it reads."""
    entry = {"name": "model.safetensors", "size": 7, "sha256": "0" * 64}
    packed = {**entry, "name": "chunk-00000.parquet", "pack": {"sha256": "1" * 64, "size": 9, "offset": 2}}
    manifest = Manifest(
        stage="rank",
        version=2,
        fingerprint="2" * 64,
        recipe={"judge": {"kind": "pairrm", "source": None}, "seed": 42},
        inputs={"generate": "3" * 64},
        lineage={"generate": "generate/" + "4" * 64},
        files=(FileEntry.model_validate(entry), FileEntry.model_validate(packed)),
        counts={"prompts": 8},
        metrics={"device_seconds": 1.5},
        seconds=3.25,
        code_version="0.1.0",
        created="2026-11-23T03:04:05+00:00",
    )
    part = PartRecord(name="chunk-00000", files=manifest.files, counts={"prompts": 8})
    yield "recipe", parse_recipe, (RECIPES / "tiny.yaml").read_bytes()
    yield "hardware", parse_hardware, (HARDWARE / "cpu.yaml").read_bytes()
    yield "manifest", parse_manifest, manifest.to_bytes("rank/0/manifest.json")
    yield "part", parse_part, part.to_bytes("rank/0/parts/chunk-00000.json")


@pytest.mark.parametrize(("name", "parse", "content"), list(valid_files()), ids=[name for name, *_ in valid_files()])
def test_a_mutated_file_is_read_or_refused_in_words(name: str, parse: Callable[[bytes], object], content: bytes) -> None:
    assert answered(lambda: parse(content))
    seed = time.time_ns() if SOAK_MINUTES else 7
    draw = random.Random(seed)
    until = time.monotonic() + 60 * SOAK_MINUTES / 4
    tried = read_well = 0
    # YAML takes a hundred times as long to read as JSON
    while time.monotonic() < until if SOAK_MINUTES else tried < (CASES if name in ("manifest", "part") else CASES // 20):
        case = mutated(content, draw)
        try:
            read_well += answered(lambda case=case: parse(case))  # type: ignore[misc]
        except Exception as error:
            raise AssertionError(f"case {tried} of seed {seed} raised {type(error).__name__}: {error}\n{case!r}") from error
        tried += 1
    assert read_well < tried  # the mutations do harm
