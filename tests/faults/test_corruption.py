"""Two thousand damages to every kind of artifact and record: each is found by whoever opens it next, named, and mended alone.

A damage is a flipped bit, a file cut short, emptied, removed, or exchanged with another. It is done to one object of a real run
(tests/faults/whole.py), in a folder whose files are links to the whole ones, or in memory, where small files lie in packs.
"""

import os
import random
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Protocol

import pytest
from faults import whole
from faults.whole import BRANCHED, PUBLISHED, RUN
from rich.console import Console

from flows.audit import show_verified
from sppo.branch import branch
from sppo.errors import SppoError
from sppo.last_start import find_last_start, remember_start
from sppo.overruling import pass_gates
from sppo.publication import last_published, publish
from sppo.recipe import Recipe
from sppo.runs import IterationIndex, Setup, check_reached, read_iteration, read_recipe, start, write_iteration
from sppo.store import Identity, Manifest, Outcome, PartRecord, Step, Store, Workspace
from sppo.store.manifest import parse_record
from sppo.verify import set_aside, verify_artifact, verify_run
from sppo.verify_records import Verified, verify_records

DAMAGES = {"folder": 600, "memory": 1500}
TIMES = int(os.environ.get("SPPO_CORRUPTIONS") or 1)
"""As many, for `make soak`."""
WAYS = ("flip", "cut", "empty", "remove", "exchange")
STAGES = {
    *(
        "policy",
        "judge",
        "split",
        "generate",
        "rank",
        "estimate",
        "train",
        "export",
        "sample",
        "duel",
        "evaluate",
        "score",
        "check",
    ),
    *("alpaca-reference", "alpaca-prompts", "alpaca-answer", "alpaca-judge", "alpaca-eval", "benchmark"),
}
CHECKPOINT = "checkpoint-000001-ranks1-zero1"


class Bytes(Protocol):
    """The objects of a store, to be damaged behind its back."""

    def keys(self) -> list[str]: ...

    def read(self, key: str) -> bytes: ...

    def write(self, key: str, content: bytes | None) -> None:
        """None removes it."""


@dataclass
class FolderBytes:
    root: Path

    def keys(self) -> list[str]:
        return sorted(str(path.relative_to(self.root)) for path in self.root.rglob("*") if path.is_file())

    def read(self, key: str) -> bytes:
        return (self.root / key).read_bytes()

    def write(self, key: str, content: bytes | None) -> None:
        (self.root / key).unlink(missing_ok=True)  # it is a link to the whole file
        if content is not None:
            (self.root / key).parent.mkdir(parents=True, exist_ok=True)
            (self.root / key).write_bytes(content)


@dataclass
class MemoryBytes:
    store: Store

    def keys(self) -> list[str]:
        return self.store.backend.list("")

    def read(self, key: str) -> bytes:
        return self.store.backend.read(key) or b""

    def write(self, key: str, content: bytes | None) -> None:
        self.store.backend.delete(key)
        if content is not None:
            self.store.backend.replace(key, content)


@dataclass
class Lab:
    """A store that is damaged and made whole again, over and over."""

    store: Store
    objects: Bytes
    setup: Setup
    asked: Recipe
    whole: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[str, Manifest] = field(default_factory=dict)
    parts: dict[str, PartRecord] = field(default_factory=dict)
    """Of attempts that are not committed, by their keys."""

    def remember(self) -> None:
        """Take what is there for whole."""
        self.whole = {key: self.objects.read(key) for key in self.objects.keys()}  # noqa: SIM118 - not a dictionary
        for key, content in self.whole.items():
            if key.endswith("/manifest.json"):
                self.manifests[key.removesuffix("/manifest.json")] = parse_record(Manifest, content, key)
        for key, content in self.whole.items():
            if "/parts/" in key and reference_of(key) not in self.manifests:
                self.parts[key] = parse_record(PartRecord, content, key)

    def restore(self, touched: set[str]) -> None:
        """Make the store what it was. touched: keys of artifacts and records that may have changed."""
        now = {key for key in self.objects.keys() if any(key.startswith(each) for each in touched)}  # noqa: SIM118
        for key in now - set(self.whole):
            self.objects.write(key, None)
        for key, content in self.whole.items():
            if any(key.startswith(each) for each in touched) and (key not in now or self.objects.read(key) != content):
                self.objects.write(key, content)
        shutil.rmtree(self.store.scratch / "objects", ignore_errors=True)  # copies of a remote store's: all is read again


def reference_of(key: str) -> str:
    """`stage/fingerprint`, or the record itself."""
    return key if key.startswith(("runs/", "published/")) else "/".join(key.split("/")[:2])


@pytest.fixture(scope="module")
def made(
    tmp_path_factory: pytest.TempPathFactory, random_policy: Callable[[str], Path], random_judge: Path
) -> tuple[Setup, Recipe, Path]:
    """The real run in a folder, the recipe that was asked for, and the folder."""
    folder = tmp_path_factory.mktemp("whole")
    store = whole.opened(str(folder / "store"), folder / "scratch")
    asked = whole.asked(folder, random_policy("llama"), random_judge)
    setup = whole.begin(store, asked, folder)
    whole.go_on(store, whole.iterate(setup))
    return setup, asked, folder


def lab_of(store: Store, objects: Bytes, setup: Setup, asked: Recipe) -> Lab:
    """With an attempt at another training that has come to a checkpoint."""
    lab = Lab(store, objects, Setup(RUN, setup.recipe, setup.hardware, store), asked)
    come_to_a_checkpoint(store)
    lab.remember()
    return lab


def come_to_a_checkpoint(store: Store) -> None:
    """A training, up to its first checkpoint."""
    with store.workspace("train", "a" * 64) as workspace:
        for name, size in (("model_states.pt", 3000), ("optim_states.pt", 2000), ("metrics.jsonl", 100)):
            (workspace.folder / name).write_bytes(random.Random(size).randbytes(size))
        workspace.commit_part(CHECKPOINT, sorted(workspace.folder.iterdir()))


@pytest.fixture(scope="module")
def folder_lab(made: tuple[Setup, Recipe, Path], tmp_path_factory: pytest.TempPathFactory) -> Lab:
    setup, asked, folder = made
    root = tmp_path_factory.mktemp("damaged") / "store"
    shutil.copytree(folder / "store", root, copy_function=os.link)
    return lab_of(Store(str(root), root.parent / "scratch"), FolderBytes(root), setup, asked)


@pytest.fixture(scope="module")
def memory_lab(made: tuple[Setup, Recipe, Path], tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """The same artifacts, uploaded as to a remote store, and their run's records."""
    setup, asked, _ = made
    store = Store("memory://corruption", tmp_path_factory.mktemp("memory"))
    for key in setup.store.backend.list(""):
        if key.endswith("/manifest.json"):
            artifact = setup.store.open(reference_of(key))
            files = {entry.name: artifact.path(entry.name) for entry in artifact.manifest.files}
            store.build(replay(artifact.manifest, files))
        elif key.startswith(("runs/", "published/")):
            store.backend.replace(key, setup.store.backend.read(key) or b"")
    return lab_of(store, MemoryBytes(store), setup, asked)


def replay(manifest: Manifest, files: dict[str, Path]) -> Step:
    """The step of an artifact that was made, as if made again: to the same bytes."""

    def run(workspace: Workspace) -> Outcome:
        workspace.add_files(files[entry.name] for entry in manifest.files)
        return Outcome("made again", manifest.counts, manifest.metrics)

    return Step(Identity(manifest.stage, manifest.version, manifest.recipe, manifest.inputs), run)


def damaged(content: bytes, way: str, other: bytes, draw: random.Random) -> bytes | None:
    """The bytes after a damage; None for none at all."""
    if way == "flip" and content:
        place = draw.randrange(len(content))
        return content[:place] + bytes([content[place] ^ 1 << draw.randrange(8)]) + content[place + 1 :]
    if way == "cut":
        return content[: draw.randrange(len(content))] if content else content
    return {"flip": content, "empty": b"", "remove": None, "exchange": other}[way]


def open_as_next(lab: Lab, key: str) -> object:
    """What is done with an object by whoever needs it next: a later stage, a resume, the next iteration."""
    store, name = lab.store, key.rsplit("/", 1)[1]
    if key in lab.parts or reference_of(key).endswith("a" * 64):
        with store.workspace("train", "a" * 64) as workspace:
            record = workspace.part(CHECKPOINT)
            return None if record is None else [path.read_bytes() for path in workspace.part_paths(record)]
    if not key.startswith(("runs/", "published/")):
        artifact = store.open(reference_of(key))
        manifest = artifact.manifest
        for entry in (*manifest.files, *manifest.logs):
            artifact.path(entry.name)
        parts = [each for each in lab.whole if each.startswith(f"{artifact.reference}/parts/")]
        with store.workspace(manifest.stage, manifest.fingerprint) as workspace:
            records = [workspace.part(each.rsplit("/", 1)[1].removesuffix(".json")) for each in parts]
            return [manifest, *(record and workspace.part_paths(record) for record in records)]
    if key.startswith("published/"):
        if name != f"{PUBLISHED}.json" and lab.store.backend.read(key) is not None:
            lab.objects.write(f"published/{PUBLISHED}.json", None)  # the newest of the numbered ones is found without it
        return last_published(store, PUBLISHED)
    run = key.split("/")[1]
    if name == "recipe.json":
        return read_recipe(store, run)
    if name == "iteration-1.json":
        return read_iteration(store, run, 1)
    if name == "branch.json":
        return check_reached(store, run, 2)
    if name == "latest.json":
        return find_last_start(store, run)
    return pass_gates(store, read_iteration(store, run, 1))


def make_again(lab: Lab, key: str, files: dict[str, Path]) -> None:
    """What `sppo resume` does about an artifact or record that is gone, or the command that `sppo verify --mend` names."""
    store, name = lab.store, key.rsplit("/", 1)[1]
    if key.startswith("published/"):
        publish(store, RUN, 1, PUBLISHED)
    elif key.startswith(f"runs/{BRANCHED}/"):
        recipe = lab.setup.recipe.model_copy(update={"training": lab.setup.recipe.training.model_copy(update={"eta": 4.0})})
        branch(store, RUN, 1, recipe, BRANCHED, lambda recipe: recipe)
    elif name == "recipe.json":
        start(store, RUN, lab.asked, lambda recipe: recipe)
    elif name == "latest.json":
        remember_start(lab.setup, "one-core", 1, "a test")
    elif name == "iteration-1-overruled.json":
        pass_gates(store, read_iteration(store, RUN, 1), "a test")
    elif name == "iteration-1.json":
        index = parse_record(IterationIndex, lab.whole[key], key)
        write_iteration(lab.setup, 1, {name: store.open(entry.reference) for name, entry in index.artifacts.items()}, [], [])
    elif reference_of(key) in lab.manifests:
        store.build(replay(lab.manifests[reference_of(key)], files))
    else:
        come_to_a_checkpoint(store)


NEEDLESS = ("latest.json", "overruled.json", "/parts/", "published/")
"""Records that may be missing: a resume asks, or does again what they say; publications are there twice."""


def is_needless(key: str) -> bool:
    return any(part in key for part in NEEDLESS)


def check_is_found(lab: Lab, key: str, way: str, hit: set[str], expected: object) -> None:
    """Whoever opens a damaged object next is told which one it is, in an error of ours."""
    found: object
    try:
        found = open_as_next(lab, key)
    except SppoError as error:
        found, message = error, str(error)
    if isinstance(found, SppoError):
        names = {*hit, *(reference_of(each) for each in hit)}
        if way == "remove":
            names |= {f"run {each.split('/')[1]}" for each in hit} | {repr(each.split("/")[1]) for each in hit}
        assert any(name in message for name in names), f"{way} {key}: {message}"
    elif key.startswith("published/"):
        assert found == expected, f"{way} {key}"
    elif way == "remove" and is_needless(key):
        assert found is None or (isinstance(found, list) and None in found), f"{way} {key}"  # not there, so not believed
    else:
        raise AssertionError(f"{way} {key} was not found: {found}")


def audit(lab: Lab, references: set[str]) -> list[Verified]:
    """What `sppo verify` says is broken, of these."""
    rows: list[Verified] = []
    for reference in sorted(references):
        if not reference.startswith(("runs/", "published/")):
            digest = lab.manifests[reference].digest if reference in lab.manifests else ""
            rows.append(verify_artifact(lab.store, reference, digest))
    for run in (RUN, BRANCHED):
        if any(reference.startswith((f"runs/{run}/", "published/")) for reference in references):
            rows += verify_records(lab.store, run)
    return [row for row in rows if row.problem]


def in_turn(key: str) -> tuple[bool, bool, str]:
    """What a command needs is there before it is given."""
    return key.startswith(("runs/", "published/")), not key.startswith(f"runs/{RUN}/"), "" if "recipe" in key else key


def check_is_mended(lab: Lab, hit: set[str], missing: set[str], files: dict[str, dict[str, Path]]) -> None:
    """`sppo verify` names what was hit and no other; once that is set aside, one command makes it and nothing else again."""
    references = {reference_of(key) for key in hit}
    rows = audit(lab, references)
    unseen = {reference_of(key) for key in missing if is_needless(key)}
    assert {row.reference for row in rows} | unseen == references | unseen, [row.problem for row in rows]
    gone = set(set_aside(lab.store, rows))
    named = {key for key in lab.whole if key.endswith("/manifest.json") or "/parts/" in key}
    assert {reference_of(key) for key in gone} <= references
    assert gone <= hit | named, gone - hit
    for key in sorted(hit, key=in_turn):
        make_again(lab, key, files.get(reference_of(key), {}))
    left = [row.problem for row in audit(lab, references)]
    assert left == [], left


def damage_all(lab: Lab, files: dict[str, dict[str, Path]], seed: int, count: int) -> Counter[str]:
    """Every object in every way, again and again, until there were enough: how many by what was hit, and by the way."""
    draw, tried = random.Random(seed), Counter[str]()
    keys = sorted(lab.whole)
    published = last_published(lab.store, PUBLISHED)
    number = 0
    while tried["damages"] < count:
        key, way, other = keys[number % len(keys)], WAYS[number // len(keys) % len(WAYS)], draw.choice(keys)
        number += 1
        content = damaged(lab.whole[key], way, lab.whole[other], draw)
        if content == lab.whole[key]:
            continue  # an empty log has nothing to lose
        hit = {key, other} if way == "exchange" else {key}
        lab.objects.write(key, content)
        if way == "exchange":
            lab.objects.write(other, lab.whole[key])
        check_is_found(lab, key, way, hit, published)
        lab.restore({f"published/{PUBLISHED}.json"} - hit)  # which a test of the others took away
        check_is_mended(lab, hit, hit if way == "remove" else set(), files)
        lab.restore({reference_of(each) for each in hit} | {"published/"})
        tried.update(["damages", way, key.split("/")[0], key.split("/")[2] if key.count("/") > 2 else key.rsplit("/", 1)[1]])
    return tried


@pytest.fixture(scope="module")
def files(made: tuple[Setup, Recipe, Path]) -> dict[str, dict[str, Path]]:
    """The whole files of each artifact, by name: what making it again would give."""
    store, found = made[0].store, {}
    for key in store.backend.list(""):
        if key.endswith("/manifest.json"):
            artifact = store.open(reference_of(key))
            found[artifact.reference] = {entry.name: artifact.path(entry.name) for entry in artifact.manifest.files}
    return found


def test_every_damage_in_a_folder_is_found_named_and_mended(folder_lab: Lab, files: dict[str, dict[str, Path]]) -> None:
    count = DAMAGES["folder"] * TIMES
    tried = damage_all(folder_lab, files, 1, count)
    assert {*STAGES, "runs", "published", *WAYS, "manifest.json", "files", "parts"} <= set(tried)
    assert all(tried[way] > count / 8 for way in WAYS)


def test_every_damage_in_a_remote_store_with_packs_is_found_named_and_mended(
    memory_lab: Lab, files: dict[str, dict[str, Path]]
) -> None:
    tried = damage_all(memory_lab, files, 2, DAMAGES["memory"] * TIMES)
    assert {*STAGES, "runs", "published", *WAYS, "manifest.json", "packs", "parts"} <= set(tried)


def test_verify_mend_and_a_resume_make_only_what_is_broken_again(made: tuple[Setup, Recipe, Path], tmp_path: Path) -> None:
    setup, asked, folder = made
    root = tmp_path / "store"
    shutil.copytree(folder / "store", root)
    store = whole.opened(str(root), tmp_path / "scratch")
    again = whole.begin(store, asked, tmp_path)
    assert verify_run(store, RUN) != []
    broken = {stage: setup.store.backend.list(stage) for stage in ("split", "estimate", "check")}
    for stage, ending in (("split", "train-1.parquet"), ("estimate", "manifest.json"), ("check", "gates.json")):
        path = root / next(key for key in broken[stage] if key.endswith(ending))
        content = path.read_bytes()
        path.write_bytes(content[:100] + bytes([content[100] ^ 1]) + content[101:])
    written = StringIO()
    console = Console(file=written, width=300)
    assert not show_verified(console, store, RUN)
    assert "3 damaged" in written.getvalue()
    assert f"verify {RUN} --mend --store {root}" in written.getvalue()
    assert show_verified(console, store, RUN, mend=True)
    assert f"resume {RUN} --store {root}" in written.getvalue()
    store.made = []
    index = whole.iterate(again)
    assert sorted(reference.split("/")[0] for reference in store.made) == ["check", "estimate", "split"]
    assert index == read_iteration(setup.store, RUN, 1)  # the same content, so what follows is what it was
    assert show_verified(console, store, RUN)
    assert ": 0 damaged" in written.getvalue()
