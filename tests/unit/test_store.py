"""One contract over every kind of store: found by fingerprint, committed whole, never believed unverified."""

import json
from pathlib import Path

import pyarrow as pa
import pytest

from sppo.errors import CorruptArtifactError, StoreError
from sppo.store import Identity, Outcome, Step, Store, Workspace

MEMORY = iter(range(1000))


@pytest.fixture(params=["folder", "memory", "s3", "ceph"])
def any_store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "folder":
        return Store(str(tmp_path / "store"), tmp_path / "scratch")
    if request.param == "memory":
        return Store(f"memory://test-{next(MEMORY)}", tmp_path / "scratch")
    return Store(request.getfixturevalue(f"{request.param}_url"), tmp_path / "scratch")


def _step(text: str = "hello", recipe: dict[str, object] | None = None, calls: list[str] | None = None) -> Step:
    def run(workspace: Workspace) -> Outcome:
        if calls is not None:
            calls.append(text)
        workspace.add_text(text, "greeting.txt")
        return Outcome("1 greeting", {"greetings": 1}, {"warmth": 0.5})

    return Step(Identity("greet", 1, recipe or {"tone": "kind"}, {"source": "0" * 64}), run)


def test_a_step_is_done_once(any_store: Store) -> None:
    calls: list[str] = []
    first = any_store.build(_step(calls=calls))
    second = any_store.build(_step(calls=calls))
    assert calls == ["hello"]
    assert second.text("greeting.txt") == "hello"
    assert first.digest == second.digest
    assert second.manifest.counts == {"greetings": 1}


def test_another_recipe_is_another_artifact(any_store: Store) -> None:
    assert any_store.build(_step()).reference != any_store.build(_step(recipe={"tone": "curt"})).reference


def test_equal_bytes_have_equal_digests_however_they_were_made(any_store: Store) -> None:
    assert any_store.build(_step()).digest == any_store.build(_step(recipe={"tone": "curt"})).digest


def test_the_first_of_two_writers_wins_and_the_second_uses_its_artifact(any_store: Store) -> None:
    def slow(workspace: Workspace) -> Outcome:
        any_store.build(_step("first"))  # the other writer commits while we work
        workspace.add_text("second", "greeting.txt")
        return Outcome("1 greeting")

    late = any_store.build(Step(_step().identity, slow))
    assert late.text("greeting.txt") == "first"


def test_a_step_that_fails_leaves_nothing_to_find_and_no_scratch(any_store: Store) -> None:
    def fail(workspace: Workspace) -> Outcome:
        workspace.add_text("half", "greeting.txt")
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        any_store.build(Step(_step().identity, fail))
    assert any_store.find("greet", _step().identity.fingerprint) is None
    assert list((any_store.scratch / "work").iterdir()) == []
    assert any_store.build(_step()).text("greeting.txt") == "hello"


def test_parts_survive_a_failed_attempt_and_are_not_made_again(any_store: Store, tmp_path: Path) -> None:
    identity = _step().identity

    def attempt(workspace: Workspace) -> Outcome:
        made = 0
        for name in ("chunk-0", "chunk-1"):
            part = workspace.part(name)
            if part is None:
                path = workspace.folder / f"{name}.txt"
                path.write_text(name)
                part = workspace.commit_part(name, [path], {"rows": 1})
                made += 1
                if name == "chunk-0":
                    raise RuntimeError("killed")
            workspace.adopt_part(part)
        return Outcome("2 chunks", {"made": made})

    with pytest.raises(RuntimeError):
        any_store.build(Step(identity, attempt))
    artifact = any_store.build(Step(identity, attempt))
    assert artifact.file_names() == ["chunk-0.txt", "chunk-1.txt"]
    assert artifact.manifest.counts == {"made": 1}


def test_the_second_writer_of_a_part_gets_the_first_ones(any_store: Store, tmp_path: Path) -> None:
    one, two = (any_store.workspace("greet", "a" * 64) for _ in range(2))
    for name, text in (("one", "first"), ("two", "second")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.txt").write_text(text)
    first = one.commit_part("chunk-0", [tmp_path / "one" / "x.txt"])
    second = two.commit_part("chunk-0", [tmp_path / "two" / "x.txt"])
    assert first == second
    assert two.part_path(second.files[0]).read_text() == "first"


def test_several_artifacts_of_one_effort_make_only_the_missing_ones(any_store: Store) -> None:
    done = any_store.build(_step())
    identities = [_step().identity, _step(recipe={"tone": "curt"}).identity]
    asked: list[int] = []

    def run(workspaces: list[Workspace]) -> list[Outcome]:
        asked.append(len(workspaces))
        workspaces[0].add_text("hm", "greeting.txt")
        return [Outcome("1 greeting")]

    both = any_store.build_together(identities, run)  # type: ignore[arg-type]
    assert asked == [1]
    assert [artifact.text("greeting.txt") for artifact in both] == ["hello", "hm"]
    assert both[0].reference == done.reference


def test_a_table_comes_back_as_it_was(any_store: Store) -> None:
    table = pa.table({"ids": [[1, 2], []], "text": ["a\r\nb", "🦊"]})

    def run(workspace: Workspace) -> Outcome:
        workspace.add_table(table, "rows.parquet")
        return Outcome("2 rows")

    artifact = any_store.build(Step(_step().identity, run))
    assert artifact.table("rows.parquet").equals(table)


def test_a_folder_of_plain_names_is_made_for_model_loaders(any_store: Store) -> None:
    folder = any_store.build(_step()).folder()
    assert [path.name for path in folder.iterdir()] == ["greeting.txt"]
    assert (folder / "greeting.txt").read_text() == "hello"


def test_a_store_that_cannot_be_written_is_named_before_any_work() -> None:
    with pytest.raises(StoreError, match=r"cannot write .* choose a folder you may write to"):
        Store("/proc/nowhere").check_writable()


def test_a_writable_store_passes_its_check_and_keeps_nothing_of_it(any_store: Store) -> None:
    any_store.check_writable()
    assert any_store.backend.list("checks") == []


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3://key:secret@bucket/x", r"s3://\*\*\*@bucket/x holds credentials"),
        ("s3:///x", "names no bucket"),
        ("gopher://x", "scheme 'gopher'; expected a folder, file://, s3:// or memory://"),
    ],
)
def test_a_store_url_that_cannot_work_is_refused_without_showing_secrets(url: str, message: str) -> None:
    with pytest.raises(StoreError, match=message) as caught:
        Store(url)
    assert "secret" not in str(caught.value)


# --- corruption, on a folder store whose bytes we can reach ---


def _object(store: Store, name: str) -> Path:
    return next(Path(store.url).rglob(name))


def test_a_flipped_byte_is_found_on_first_use_and_named_with_its_mend(store: Store) -> None:
    artifact = store.build(_step())
    _object(store, "greeting.txt").write_text("hellp")
    with pytest.raises(CorruptArtifactError, match=r"greeting.txt has sha256 .* delete the folder greet/"):
        artifact.text("greeting.txt")


def test_a_truncated_object_is_found_without_reading_it(store: Store) -> None:
    store.build(_step())
    _object(store, "greeting.txt").write_text("hell")
    with pytest.raises(CorruptArtifactError, match="is 4 bytes, expected 5 bytes"):
        store.build(_step())


def test_a_missing_object_is_named(store: Store) -> None:
    store.build(_step())
    _object(store, "greeting.txt").unlink()
    with pytest.raises(CorruptArtifactError, match="is missing, expected 5 bytes"):
        store.build(_step())


@pytest.mark.parametrize("content", ["", "{", '{"stage": "greet"}', "[]", "nul"])
def test_a_damaged_manifest_is_named_with_its_mend(store: Store, content: str) -> None:
    store.build(_step())
    _object(store, "manifest.json").write_text(content)
    with pytest.raises(CorruptArtifactError, match=r"manifest.json is not a valid manifest: .* run again"):
        store.build(_step())


def test_a_manifest_cannot_name_a_file_outside_its_artifact(store: Store) -> None:
    store.build(_step())
    path = _object(store, "manifest.json")
    manifest = json.loads(path.read_text())
    manifest["files"][0]["name"] = "../../../etc/passwd"
    path.write_text(json.dumps(manifest))
    with pytest.raises(CorruptArtifactError, match="expected letters, digits"):
        store.build(_step())


def test_a_manifest_moved_under_another_fingerprint_is_refused_field_by_field(store: Store) -> None:
    store.build(_step())
    other = _step(recipe={"tone": "curt"}).identity.fingerprint
    source = _object(store, "manifest.json").parent
    source.rename(source.parent / other)
    with pytest.raises(CorruptArtifactError, match=r"recipe.tone 'kind' instead of 'curt'"):
        store.build(_step(recipe={"tone": "curt"}))


def test_a_bad_copy_in_scratch_is_replaced_by_a_fresh_download(tmp_path: Path) -> None:
    store = Store(f"memory://test-{next(MEMORY)}", tmp_path / "scratch")
    artifact = store.build(_step())
    copy = artifact.path("greeting.txt")
    copy.write_text("hellp")
    assert artifact.text("greeting.txt") == "hello"


def test_opening_by_reference_refuses_anything_but_a_stage_and_a_fingerprint(store: Store) -> None:
    with pytest.raises(StoreError, match="expected stage/ and 64 hex digits"):
        store.open("../../etc/passwd")
    with pytest.raises(StoreError, match="no artifact greet/"):
        store.open("greet/" + "0" * 64)
