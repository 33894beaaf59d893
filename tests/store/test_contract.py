"""What every store promises, over a folder, memory, a mock of S3 and a real S3 server, with and without the bulk client."""

import hashlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from sppo.errors import CorruptArtifactError, StoreError
from sppo.store import Artifact, Identity, Outcome, Step, Store, Workspace
from sppo.store.speed import Load, measure
from sppo.verify import verify_artifact


def test_a_record_is_created_once_and_the_first_one_stays(any_store: Store) -> None:
    backend = any_store.backend
    assert backend.create("runs/a.json", b"first")
    assert not backend.create("runs/a.json", b"second")
    assert backend.read("runs/a.json") == b"first"
    backend.replace("runs/a.json", b"third")
    assert backend.read("runs/a.json") == b"third"


# not memory:, whose users are the threads of one test
@pytest.mark.parametrize("any_store", ["file", "moto", "ceph", "ceph without awscrt"], indirect=True)
def test_of_eight_writers_at_once_exactly_one_wins(any_store: Store) -> None:
    gate = threading.Barrier(8)

    def write(number: int) -> bool:
        gate.wait()
        return any_store.backend.create("runs/race.json", f"writer {number}".encode())

    any_store.backend.create("runs/other.json", b"")  # the first request's connection is made before the race
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(write, range(8)))
    assert won.count(True) == 1
    assert any_store.backend.read("runs/race.json") == f"writer {won.index(True)}".encode()


def test_what_is_not_there_has_no_bytes_no_size_and_can_be_deleted(any_store: Store, tmp_path: Path) -> None:
    any_store.backend.create("runs/a.json", b"abc")
    (tmp_path / "target").touch()
    assert any_store.backend.read("runs/b.json") is None
    assert any_store.backend.sizes(["runs/a.json", "runs/b.json", "runs"])[:2] == [3, None]
    assert any_store.backend.get_file("runs/b.json", tmp_path / "target") is None
    any_store.backend.delete("runs/b.json")
    any_store.backend.delete("runs/a.json")
    assert any_store.backend.list("") == []


@pytest.mark.parametrize("size", [0, 1, 8 << 20, (40 << 20) + 7])
def test_a_file_of_any_size_comes_back_with_its_sha256(any_store: Store, tmp_path: Path, size: int) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    content = os.urandom(1 << 20) * (size >> 20) + os.urandom(size % (1 << 20))
    source.write_bytes(content)
    target.touch()
    any_store.backend.put_file("x/files/some file+1.bin", source)
    assert any_store.backend.sizes(["x/files/some file+1.bin"]) == [size]
    assert any_store.backend.list("x") == ["x/files/some file+1.bin"]
    assert any_store.backend.get_file("x/files/some file+1.bin", target) == hashlib.sha256(content).hexdigest()
    assert target.read_bytes() == content


# --- packs ---


def make(store: Store, contents: dict[str, bytes]) -> Artifact:
    def run(workspace: Workspace) -> Outcome:
        for name, content in contents.items():
            (workspace.folder / name).write_bytes(content)
        workspace.add_files([workspace.folder / name for name in contents])
        return Outcome("files")

    return store.build(Step(Identity("policy", 1, {}, {}), run))


CONTENTS = {"a.json": b"first", "b.json": b"", "c.txt": b"third, and longer", "weights.bin": b"w" * (1 << 20)}


def test_small_files_share_an_object_on_a_remote_store_and_nothing_else_changes(any_store: Store, tmp_path: Path) -> None:
    artifact = make(any_store, CONTENTS)
    keys = [key for key in any_store.backend.list("") if not key.endswith("manifest.json")]
    # three files are below 1 MiB: one pack and one file on a remote store, four files in a folder
    assert len(keys) == (4 if any_store.backend.local_path("") else 2)
    assert artifact.digest == make(Store(str(tmp_path / "other")), CONTENTS).digest
    assert {name: artifact.path(name).read_bytes() for name in CONTENTS} == CONTENTS
    folder = any_store.open(artifact.reference).folder()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == CONTENTS
    assert verify_artifact(any_store, artifact.reference, artifact.digest).problem == ""


def test_a_part_of_packed_files_is_dropped_with_its_pack(any_store: Store, tmp_path: Path) -> None:
    workspace = any_store.workspace("train", "a" * 64)
    for number, text in enumerate(["shared", "shared", "own"]):
        (tmp_path / f"rank-{number}").write_text(text)
    older = workspace.commit_part("checkpoint-1", [tmp_path / "rank-0", tmp_path / "rank-1"])
    newer = workspace.commit_part("checkpoint-2", [tmp_path / "rank-0", tmp_path / "rank-2"])
    workspace.drop_part("checkpoint-1", keep=newer.files)
    assert workspace.parts() == ["checkpoint-2"]
    assert [path.read_text() for path in workspace.part_paths(newer)] == ["shared", "own"]
    left = set(any_store.backend.sizes([older.files[1].key("train", "a" * 64)]))
    assert left == {None}


# --- corruption ---


def overwrite(store: Store, change: Callable[[bytes], bytes]) -> str:
    """Change the bytes of the only object that is no record; its key."""
    [key] = [key for key in store.backend.list("") if not key.endswith(".json")]
    store.backend.replace(key, change(store.backend.read(key) or b""))
    return key


@pytest.mark.parametrize("contents", [{"a.txt": b"hello"}, {"a.txt": b"hello", "b.txt": b"you"}])
def test_a_changed_byte_is_found_wherever_it_lies(any_store: Store, contents: dict[str, bytes]) -> None:
    if any_store.backend.local_path("") and len(contents) > 1:
        pytest.skip("a folder keeps no packs")
    artifact = make(any_store, contents)
    key = overwrite(any_store, lambda content: b"j" + content[1:])
    assert f"object {key} has sha256" in verify_artifact(any_store, artifact.reference, artifact.digest).problem
    with pytest.raises(CorruptArtifactError, match=rf"object {key} has sha256 .* delete the folder {artifact.reference}"):
        artifact.text("a.txt")
    assert not list(any_store.scratch.glob("objects/*"))  # nothing is left for the next one to trust


def test_a_shortened_or_missing_object_is_found_when_the_artifact_is(any_store: Store) -> None:
    artifact = make(any_store, {"a.txt": b"hello"})
    key = overwrite(any_store, lambda content: content[:-1])
    with pytest.raises(CorruptArtifactError, match=rf"object {key} is 4 bytes, expected 5 bytes"):
        any_store.open(artifact.reference)
    any_store.backend.delete(key)
    with pytest.raises(CorruptArtifactError, match=rf"object {key} is missing, expected 5 bytes"):
        any_store.open(artifact.reference)
    with pytest.raises(CorruptArtifactError, match=rf"object {key} is missing"):
        artifact.text("a.txt")


def test_a_manifest_that_lies_elsewhere_is_refused_field_by_field(any_store: Store) -> None:
    one, other = (
        any_store.build(
            Step(Identity("policy", 1, {"tone": tone, "steps": [1, 2]}, {"source": digit * 64}), lambda _: Outcome(""))
        )
        for tone, digit in (("kind", "1"), ("curt", "2"))
    )
    key = f"{other.reference}/manifest.json"
    any_store.backend.replace(key, any_store.backend.read(f"{one.reference}/manifest.json") or b"")
    moved = f"{key} is another artifact's manifest: fingerprint '{one.manifest.fingerprint}' instead of "
    with pytest.raises(
        CorruptArtifactError, match=f"{moved}'{other.manifest.fingerprint}'; delete the folder {other.reference}"
    ):
        any_store.open(other.reference)
    with pytest.raises(
        CorruptArtifactError, match=rf"{moved}.*; recipe.tone 'kind' instead of 'curt'; inputs.source '1111.*'2222"
    ):
        any_store.build(
            Step(Identity("policy", 1, {"tone": "curt", "steps": [1, 2]}, {"source": "2" * 64}), lambda _: Outcome(""))
        )


def test_a_manifest_whose_fingerprint_does_not_follow_from_it_is_refused(any_store: Store) -> None:
    artifact = any_store.build(Step(Identity("policy", 1, {"tone": "kind"}, {}), lambda _: Outcome("")))
    key = f"{artifact.reference}/manifest.json"
    other = artifact.manifest.model_copy(update={"version": 2})
    any_store.backend.replace(key, other.to_bytes(key))  # sealed, and in its own place
    with pytest.raises(
        CorruptArtifactError, match=r"its stage, version, recipe and inputs have the fingerprint [0-9a-f]{64} instead of"
    ):
        any_store.open(artifact.reference)
    with pytest.raises(CorruptArtifactError, match="version 2 instead of 1"):
        any_store.build(Step(Identity("policy", 1, {"tone": "kind"}, {}), lambda _: Outcome("")))


def test_a_download_that_is_killed_leaves_nothing_that_is_believed(faulty: Any, tmp_path: Path) -> None:
    store = Store("s3://bucket/prefix", tmp_path / "scratch")
    artifact = make(store, {"weights.bin": b"w" * (1 << 20)})
    faulty.faults = {"drips files"}
    code = "import sys\nfrom pathlib import Path\nfrom sppo.store import Store\n"
    code += "Store(sys.argv[1], Path(sys.argv[2])).open(sys.argv[3]).path('weights.bin')"
    with subprocess.Popen([sys.executable, "-c", code, store.url, str(store.scratch), artifact.reference]) as process:
        while not list(store.scratch.glob("objects/.reading-*")):
            assert process.poll() is None
            time.sleep(0.05)
        process.kill()
    assert [path.name for path in store.scratch.glob("objects/*") if not path.name.startswith(".")] == []
    faulty.faults = set()
    assert artifact.path("weights.bin").read_bytes() == b"w" * (1 << 20)


# --- a server in trouble ---


def failing(store: Store, tmp_path: Path) -> dict[str, Callable[[], object]]:
    (tmp_path / "source").write_bytes(b"x")
    (tmp_path / "target").touch()
    return {
        "write a": lambda: store.backend.create("a", b""),
        "write b": lambda: store.backend.replace("b", b""),
        "read a": lambda: store.backend.read("a"),
        "look up a": lambda: store.backend.sizes(["a"]),
        "look up b": lambda: store.backend.written("b"),
        "upload a": lambda: store.backend.put_file("a", tmp_path / "source"),
        "download a": lambda: store.backend.get_file("a", tmp_path / "target"),
        "list a": lambda: store.backend.list("a"),
        "delete a": lambda: store.backend.delete("a"),
    }


@pytest.mark.parametrize("awscrt", [True, False], ids=["awscrt", "s3fs"])
def test_a_server_that_never_answers_is_an_error_soon(
    black_hole: str, awscrt: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not awscrt:
        monkeypatch.setattr("sppo.store.bulk.find_spec", lambda name: None)
    store = Store(black_hole, tmp_path)
    calls = failing(store, tmp_path)

    def fails(what: str) -> tuple[str, float]:
        started = time.monotonic()
        with pytest.raises(StoreError) as caught:
            calls[what]()
        return str(caught.value), time.monotonic() - started

    with ThreadPoolExecutor(len(calls)) as pool:
        told = dict(zip(calls, pool.map(fails, calls), strict=True))
    for what, (message, seconds) in told.items():
        # without awscrt a download asks for the size first
        doing = "look up a in" if not awscrt and what in ("upload a", "download a") and "look up" in message else what
        assert message.startswith(f"cannot {doing}")
        assert f"the store at s3://bucket/prefix on {os.environ['AWS_ENDPOINT_URL']}" in message
        assert "then run again: what is committed is kept" in message
        assert seconds < 20  # it was waited for one second; machines are busy at times
        assert "a-secret-of-theirs" not in message
    assert "nothing moved for 1 s" in told["look up a"][0]


def test_a_server_that_sends_a_byte_now_and_then_is_an_error_soon(
    open_faulty: Callable[[], Store], faulty: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPPO_STORE_TIMEOUT_S", "2")
    store = open_faulty()
    faulty.objects = {"/bucket/prefix/a": [b"x" * 300]}
    faulty.faults = {"drips"}  # for a minute
    (tmp_path / "target").touch()
    for call in (lambda: store.backend.read("a"), lambda: store.backend.get_file("a", tmp_path / "target")):
        started = time.monotonic()
        with pytest.raises(StoreError, match=r"cannot (read|look up|download) a (from|in) .*: nothing moved for 2 s"):
            call()
        assert time.monotonic() - started < 30


@pytest.mark.parametrize("fault", ["loses an answer", "fails after it wrote"])
def test_a_record_is_ours_although_the_answer_was_lost_and_the_next_one_says_it_exists(
    fault: str, open_faulty: Callable[[], Store], faulty: Any
) -> None:
    backend = open_faulty().backend
    faulty.faults = {fault}
    assert backend.create("a", b"ours")
    assert faulty.seen.count("PUT a") == 2  # the second was answered 412
    faulty.faults = {fault}
    assert not backend.create("a", b"another")
    assert backend.read("a") == b"ours"


def test_a_record_that_the_server_took_and_changed_is_named(open_faulty: Callable[[], Store], faulty: Any) -> None:
    faulty.faults = {"text"}
    with pytest.raises(CorruptArtifactError, match=r"says that it created a, and holds other bytes there"):
        open_faulty().backend.create("a", b"one\r\ntwo")


@pytest.mark.parametrize("fault", ["flips once", "errs of a size"])
def test_what_goes_wrong_once_on_its_way_is_asked_for_again(
    fault: str, open_faulty: Callable[[], Store], faulty: Any, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_faulty()
    reference = make(store, {"a.bin": b"a" * (1 << 20)}).reference
    faulty.faults = {fault}  # of the manifest's bytes, or the file's size
    artifact = store.open(reference)
    assert faulty.faults == set()
    faulty.faults = {fault}  # of the file's bytes
    assert artifact.path("a.bin").read_bytes() == b"a" * (1 << 20)
    if fault == "flips once":
        assert "came back otherwise the second time it was read" in caplog.text
        assert "arrived with other bytes than were stored; asking once more" in caplog.text


def test_wrong_credentials_and_a_missing_bucket_are_errors_that_show_no_secret(
    ceph_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = Store("s3://no-such-bucket/x", tmp_path)
    for what in ("write a", "upload a", "download a"):
        with pytest.raises(StoreError, match=f"cannot {what} "):
            failing(missing, tmp_path)[what]()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret-of-theirs")
    for what, call in failing(Store(ceph_url, tmp_path), tmp_path).items():
        with pytest.raises(StoreError, match=rf"cannot ({what}|read a) ") as caught:
            call()
        assert "a-secret-of-theirs" not in str(caught.value)


def test_an_endpoint_with_credentials_in_it_is_refused(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://key:secret@127.0.0.1:1")
    with pytest.raises(StoreError, match=r"AWS_ENDPOINT_URL_S3 http://\*\*\*@127.0.0.1 holds credentials"):
        Store(s3_url)


@pytest.mark.parametrize("text", ["0", "-1", "soon", "nan"])
def test_a_timeout_that_is_no_time_is_refused(s3_url: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPPO_STORE_TIMEOUT_S", text)
    with pytest.raises(StoreError, match=f"SPPO_STORE_TIMEOUT_S is '{text}'; expected seconds"):
        Store(s3_url)


# --- speed ---


def test_a_profile_is_read_as_every_aws_client_reads_it(ceph_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, name in (("AWS_ACCESS_KEY_ID", "aws_access_key_id"), ("AWS_SECRET_ACCESS_KEY", "aws_secret_access_key")):
        with (tmp_path / "credentials").open("a") as stream:
            stream.write(f"{'' if stream.tell() else '[lab]'}\n{name} = {os.environ[variable]}\n")
        monkeypatch.delenv(variable)
    (tmp_path / "config").write_text(f"[profile lab]\nregion = us-east-1\nendpoint_url = {os.environ['AWS_ENDPOINT_URL']}\n")
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.setenv("AWS_PROFILE", "lab")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    assert make(Store(ceph_url, tmp_path / "scratch"), CONTENTS).path("a.json").read_bytes() == b"first"


def test_a_store_is_measured_and_left_as_it_was(any_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPPO_SCRATCH", str(any_store.scratch))
    any_store.backend.create("runs/a.json", b"mine")
    speed = measure(any_store.url, Load(large_bytes=1 << 20, small_files=3, small_bytes=100, records=2, lookups=4))
    assert min(speed.large_put_mb_s, speed.small_get_files_s, speed.creates_s, speed.lookups_s, speed.preflight_s) > 0
    assert any_store.backend.list("") == ["runs/a.json"]
    assert not list(any_store.scratch.glob("speed-*"))


def test_a_store_is_known_to_be_writable_in_a_second_and_a_half(ceph_url: str, tmp_path: Path) -> None:
    took = []
    for _ in range(3):  # the best of them: machines are busy at times
        started = time.monotonic()
        Store(ceph_url, tmp_path).check_writable()
        took.append(time.monotonic() - started)
    assert min(took) < 1.5
