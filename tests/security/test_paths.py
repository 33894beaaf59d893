"""Names that others choose never lead out of a store, a scratch folder or a model's folder."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from flows.stage import read_job
from sppo import policy
from sppo.errors import CorruptArtifactError, HardwareError, JudgeError, PolicyError, RunError, SppoError, StoreError
from sppo.hardware import load_hardware
from sppo.judges.files import weight_files
from sppo.launch import Group
from sppo.portuguese.tables import MANIFEST, Tables
from sppo.recipe import Recipe
from sppo.runs import Entry, check_run_name
from sppo.store import FileEntry, Identity, Outcome, Step, Store
from sppo.store.seal import with_seal

CANARY = "canary"
HOSTILE = (
    "../canary",
    "..",
    ".",
    "",
    "/etc/passwd",
    "a/../../canary",
    "a//b",
    "a/./b",
    "./a",
    "a/",
    "..\\canary",
    "a\x00b",
    "a\nb",
    "\u202ea",
    "..%2fcanary",
    "~/canary",
    "CON",
    "a" * 5000,
)
pieces = st.lists(
    st.sampled_from(["..", ".", "", "a", "canary", "store", "\\", "%2e%2e", "~", "\x00", "\n", "\u2215"]), max_size=6
)
names = st.one_of(st.sampled_from(HOSTILE), st.builds("/".join, pieces), st.text(max_size=20))
EXAMPLES = settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def guarded(tmp_path: Path) -> Callable[[], Store]:
    """A store in a folder that has neighbours; gives a new one after checking that the neighbours are as they were."""
    (tmp_path / CANARY).write_text("untouched")
    (tmp_path / "store").mkdir()

    def opened() -> Store:
        assert (tmp_path / CANARY).read_text() == "untouched"
        assert {path.name for path in tmp_path.iterdir()} <= {CANARY, "store", "scratch"}
        return Store(str(tmp_path / "store"), tmp_path / "scratch")

    return opened


@EXAMPLES
@given(names)
def test_no_key_reads_writes_or_removes_anything_beside_the_store(guarded: Callable[[], Store], key: str) -> None:
    backend = guarded().backend
    root = Path(guarded().url).resolve()
    for use in (
        backend.read,
        backend.delete,
        backend.list,
        lambda key: backend.create(key, b"x"),
        lambda key: backend.replace(key, b"x"),
        lambda key: backend.sizes([key]),
        lambda key: backend.put_file(key, root.parent / CANARY),
    ):
        try:
            found: Any = use(key)
        except (StoreError, OSError):  # an OSError of the file system's own: too long, a folder
            continue
        assert found != b"untouched"
    try:
        path = backend.local_path(key)
    except StoreError:
        path = None
    assert path is None or path.resolve().is_relative_to(root)
    guarded()


@pytest.mark.parametrize("key", [name for name in HOSTILE if name and set(name.split("/")) & {"", ".", ".."}])
def test_a_key_that_leads_out_is_refused_in_words_whatever_the_backend(tmp_path: Path, key: str) -> None:
    for url in (str(tmp_path), "memory://paths"):
        with pytest.raises(StoreError, match="would leave the store; expected names between single slashes"):
            Store(url).backend.read(key)


def test_a_bucket_is_asked_for_no_such_key(s3_url: str, tmp_path: Path) -> None:
    backend = Store(s3_url, tmp_path).backend
    (tmp_path / "file").write_text("x")
    for use in (
        lambda: backend.read("../other/key"),
        lambda: backend.get_file("../other/key", tmp_path / "copy"),
        lambda: backend.put_file("../other/key", tmp_path / "file"),
        lambda: backend.sizes(["../other/key"]),
        lambda: backend.delete("../other/key"),
    ):
        with pytest.raises(StoreError, match="would leave the store"):
            use()


@EXAMPLES
@given(names)
def test_a_run_is_named_by_one_plain_word_or_not_at_all(run: str) -> None:
    try:
        name = check_run_name(run)
    except RunError:
        return
    assert Path("runs", name).parts == ("runs", name)
    assert name not in (".", "..")


@EXAMPLES
@given(names)
def test_a_reference_is_a_stage_and_a_fingerprint_or_refused(guarded: Callable[[], Store], name: str) -> None:
    for reference in (name, f"{name}/{'a' * 64}", f"train/{name}", f"train/{'a' * 64}{name}"):
        with pytest.raises(StoreError):  # no artifact is there
            guarded().open(reference)
        try:
            stage, fingerprint = Entry(reference=reference, digest="a" * 64).reference.split("/")
        except ValidationError:
            continue
        assert stage.replace("-", "").isalpha()
        assert fingerprint == "a" * 64


@EXAMPLES
@given(names)
@example("-rf")
@example(".hidden")
def test_a_file_of_a_manifest_has_a_plain_name_or_the_manifest_is_none(name: str) -> None:
    try:
        entry = FileEntry(name=name, size=1, sha256="a" * 64)
    except ValidationError:
        return
    assert Path(name).name == name
    assert name not in ("..", ".")
    assert not name.startswith("-")
    assert entry.key("train", "b" * 64) == f"train/{'b' * 64}/files/{'a' * 16}/{name}"


# --- records that lie


def made(store: Store, stage: str = "rank") -> str:
    def run(workspace: Any) -> Outcome:
        workspace.add_text("{}", "report.json")
        return Outcome("made")

    return store.build(Step(Identity(stage, 1, {}, {}), run)).reference


def rewritten(store: Store, key: str, **changes: object) -> None:
    """A record with other values and a seal that fits, as whoever may write to the store can make one."""
    values = {**json.loads(store.backend.read(key) or b"{}"), **changes}
    values.pop("seal", None)
    store.backend.replace(key, with_seal(json.dumps(values, indent=1, sort_keys=True), key))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stage": "../../elsewhere"}, r"another artifact's manifest: stage '\.\./\.\./elsewhere'"),
        ({"stage": "train"}, "another artifact's manifest: stage 'train'"),
        ({"fingerprint": "b" * 64}, "another artifact's manifest: fingerprint 'bbbb"),
        ({"fingerprint": "../x"}, r"not a valid manifest: fingerprint is '\.\./x'"),
    ],
)
def test_a_manifest_that_speaks_of_another_folder_is_refused(store: Store, changes: dict[str, object], message: str) -> None:
    reference = made(store)
    rewritten(store, f"{reference}/manifest.json", **changes)
    with pytest.raises(CorruptArtifactError, match=message):
        store.open(reference)


@pytest.mark.parametrize("name", ["../../../canary", "/etc/passwd", "a/b", ".hidden"])
def test_a_manifests_file_is_never_looked_for_elsewhere(store: Store, name: str) -> None:
    reference = made(store)
    key = f"{reference}/manifest.json"
    [entry] = json.loads(store.backend.read(key) or b"")["files"]
    rewritten(store, key, files=[{**entry, "name": name}])
    with pytest.raises(CorruptArtifactError, match=r"files\.0\.name.*expected letters, digits"):
        store.open(reference)


@pytest.mark.parametrize("module", ["http.server", "sppo.workers.rank; id", "sppo.workers", "os", "sppo.workers..rank", "../x"])
def test_a_job_in_the_store_starts_a_worker_of_ours_and_no_other_module(store: Store, module: str) -> None:
    group = Group(
        stage="rank", fingerprint="a" * 64, number=1, of=1, module="sppo.workers.rank", works=({},), device="cpu",
        devices_each=0, threads=1, timeout_s=60,
    )  # fmt: skip
    store.backend.replace("rank/job.json", with_seal(group.model_dump_json(indent=1), "rank/job.json"))
    assert read_job(store, "rank/job.json") == group
    rewritten(store, "rank/job.json", module=module)
    with pytest.raises(CorruptArtifactError, match=r"asks for the module .*; expected a worker of this project"):
        read_job(store, "rank/job.json")


@pytest.mark.parametrize("job", ["../../etc/passwd", "/etc/passwd", "rank/../../canary"])
def test_a_flow_runs_parameter_names_no_file_outside_the_store(guarded: Callable[[], Store], job: str) -> None:
    with pytest.raises(StoreError, match="would leave the store"):
        read_job(guarded(), job)


@pytest.mark.parametrize("name", ["__builtins__", "annotations", "__loader__", "SystemExit", "os", "", "StoreError"])
def test_an_error_named_by_a_record_is_one_of_ours(name: str) -> None:
    from sppo.errors import LaunchError, named

    assert issubclass(named(name), SppoError)
    assert named(name) is (StoreError if name == "StoreError" else LaunchError)


@pytest.mark.parametrize("key", ["../../canary.parquet", "/etc/passwd"])
def test_a_tables_manifest_names_no_file_outside_its_root(tmp_path: Path, key: str) -> None:
    (tmp_path / "canary.parquet").write_text("untouched")
    root = tmp_path / "tables"
    root.mkdir()
    listed = {"files": {key: {"sha256": "a" * 64, "rows": 1, "revision": "x"}}}
    (root / MANIFEST).write_bytes(with_seal(json.dumps(listed, indent=1), MANIFEST))
    opened = Tables.open(str(root))
    with pytest.raises(StoreError, match="would leave the store"):
        opened.backend.read(key)


# --- folders of models


def change_index(folder: Path, weight_map: object) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


@pytest.mark.parametrize(
    "weight_map",
    [
        {"a": "../other/model.safetensors"},
        {"a": "/etc/passwd"},
        {"a": "pytorch_model.bin"},
        {"a": ".."},
        {"a": 7},
        {"a": {}},
        [],
        {},
        None,
    ],
    ids=str,
)
def test_an_index_takes_weights_from_safetensors_of_its_own_folder_alone(
    random_policy: Callable[[str], Path], tiny: Recipe, store: Store, tmp_path: Path, weight_map: object
) -> None:
    folder = Path(shutil.copytree(random_policy("llama"), tmp_path / "policy"))
    (tmp_path / "other").mkdir()
    shutil.copy(folder / "model.safetensors", tmp_path / "other")
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    change_index(folder, weight_map)
    with pytest.raises(PolicyError, match=r"model\.safetensors\.index\.json (takes a from|has no weight_map)"):
        policy.policy_files(folder)
    with pytest.raises(PolicyError, match=r"model\.safetensors\.index\.json (takes a from|has no weight_map)"):
        policy.check(folder, tiny.policy)  # as a policy that is stored already is checked
    with pytest.raises(JudgeError, match=r"model\.safetensors\.index\.json (takes a from|has no weight_map)"):
        weight_files(folder)


@EXAMPLES
@given(names)
def test_no_name_in_an_index_reaches_a_loader_unless_it_is_plain(tmp_path: Path, name: str) -> None:
    from sppo.model_folder import indexed_weights

    change_index(tmp_path, {"a": name})
    try:
        [found] = indexed_weights(tmp_path, PolicyError)
    except PolicyError:
        return
    assert Path(found).name == found
    assert found.endswith(".safetensors")


def test_a_judge_brings_no_other_file_of_this_machine_into_the_store(
    random_judge: Path, tiny: Recipe, store: Store, tmp_path: Path
) -> None:
    """A folder's config.json may name its encoder by a path: `~/.docker`, say, whose config.json holds passwords."""
    from sppo.judges import source
    from sppo.recipe import FolderModel, PairRMJudge

    folder = Path(shutil.copytree(random_judge, tmp_path / "judge"))
    private = tmp_path / "private"
    private.mkdir()
    (private / "config.json").write_text('{"auths": {"registry": {"auth": "c2VjcmV0"}}}')
    ranker = {"ranker_type": "pairranker", "model_name": str(private), "n_tasks": 1, "drop_out": 0.05}
    (folder / "config.json").write_text(json.dumps(ranker))
    asked = FolderModel(kind="folder", path=str(folder))
    judge = PairRMJudge(kind="pairrm", source=asked, max_source_tokens=64, max_candidate_tokens=48)
    with pytest.raises(JudgeError, match="says no model_type 'deberta-v2'; expected PairRM's encoder"):
        source.build(store, judge, tiny)
    assert not any(b"c2VjcmV0" in (store.backend.read(key) or b"") for key in store.backend.list(""))


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../b", "..", "x.yaml/../../y"])
def test_a_recipes_or_hardwares_name_is_a_file_of_its_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "hardware").mkdir()
    (tmp_path / "x.yaml").write_text("name: x\n")
    with pytest.raises(HardwareError):
        load_hardware(name, tmp_path / "hardware")
