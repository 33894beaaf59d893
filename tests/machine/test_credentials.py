"""Credentials that end in the middle of a run: what was committed is kept, and the next ones go on from there."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import boto3
import pytest

from infra.local_s3 import LocalS3, local_s3, missing_programs
from sppo.errors import StoreError
from sppo.store import Identity, Outcome, Step, Store, Workspace

BULK = 20 << 20
"""More than one part of an upload."""


@pytest.fixture(scope="module")
def rotating(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LocalS3, Callable[..., None]]]:
    """A server of its own, and its administrator's command: keys of the user that others use are not touched."""
    if missing := missing_programs():
        pytest.skip(f"not installed: {', '.join(missing)}; type `make system`")
    folder = tmp_path_factory.mktemp("rotating") / "ceph"

    def administer(*arguments: str) -> None:
        command = ["radosgw-admin", "--conf", str(folder / "ceph.conf"), "-n", "client.rgw", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr

    with local_s3(folder) as server:
        yield server, administer


@pytest.fixture
def store(
    rotating: tuple[LocalS3, Callable[..., None]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[[str], Store]:
    """The store as someone with this key sees it, from a process that has just begun."""
    server, administer = rotating
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    bucket = f"bucket-{abs(hash(tmp_path))}"
    boto3.Session().client("s3").create_bucket(Bucket=bucket)

    def by(key: str) -> Store:
        administer("key", "create", "--uid", "sppo", "--key-type", "s3", "--access-key", key, "--secret-key", f"{key}-secret")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", key)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", f"{key}-secret")
        return Store(f"s3://{bucket}/runs", tmp_path / "scratch")

    return by


def test_a_key_that_is_withdrawn_in_the_middle_of_a_stage_ends_it_in_words_and_a_new_one_goes_on(
    rotating: tuple[LocalS3, Callable[..., None]], store: Callable[[str], Store]
) -> None:
    _, administer = rotating
    made: list[int] = []

    def chunks(end_after: int | None) -> Step:
        def run(workspace: Workspace) -> Outcome:
            for number in range(3):
                name = f"chunk-0000{number}"
                if workspace.part(name) is None:
                    made.append(number)
                    path = workspace.folder / f"{name}.bin"
                    path.write_bytes(bytes([number]) * BULK)
                    workspace.commit_part(name, [path])
                record = workspace.part(name)
                assert record is not None
                workspace.adopt_part(record)
                if number == end_after:
                    administer("key", "rm", "--uid", "sppo", "--key-type", "s3", "--access-key", "first-key")
            return Outcome("chunks")

        return Step(Identity("generate", 1, {"chunks": 3}, {}), run)

    with pytest.raises(StoreError) as caught:
        store("first-key").build(chunks(end_after=0))
    said = str(caught.value)
    assert "first-key-secret" not in said
    assert any(word in said for word in ("InvalidAccessKeyId", "403", "Forbidden", "Access")), said
    assert "credentials" in said, said
    artifact = store("second-key").build(chunks(end_after=None))
    assert made == [0, 1, 2]  # chunk 0 was kept
    assert [path.read_bytes()[:1] for path in map(artifact.path, artifact.file_names())] == [b"\0", b"\1", b"\2"]


def test_a_wrong_secret_is_named_before_a_run_begins(store: Callable[[str], Store], monkeypatch: pytest.MonkeyPatch) -> None:
    opened = store("third-key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret-that-it-is")
    with pytest.raises(StoreError) as caught:
        Store(opened.url, opened.scratch).check_writable()
    said = str(caught.value)
    assert "SignatureDoesNotMatch" in said or "signature" in said.lower() or "Forbidden" in said
    assert "credentials" in said
    assert "not-the-secret" not in said
