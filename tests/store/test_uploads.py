"""What arrived is what was sent, also where a server checks nothing of it: over plain http the store asks."""

import logging
from hashlib import md5
from pathlib import Path
from typing import Any

import pytest

from sppo.errors import StoreError
from sppo.store import Store
from sppo.store.bulk import _say
from sppo.store.etag import etags

PART = 4


def named(*parts: bytes) -> str:
    together = md5(b"".join(md5(part).digest() for part in parts)).hexdigest()
    return f"{together}-{len(parts)}"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", {md5(b"").hexdigest(), named(b"")}),
        (b"abc", {md5(b"abc").hexdigest(), named(b"abc")}),
        (b"abcd", {md5(b"abcd").hexdigest(), named(b"abcd")}),
        (b"abcde", {named(b"abcd", b"e")}),
        (b"abcdefgh", {named(b"abcd", b"efgh")}),
    ],
)
def test_an_object_is_named_by_its_md5_or_by_its_parts(tmp_path: Path, content: bytes, expected: set[str]) -> None:
    (tmp_path / "file").write_bytes(content)
    assert etags(tmp_path / "file", PART) == expected


def test_a_file_of_more_than_ten_thousand_parts_has_larger_ones(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"ab" * 10_000)
    assert etags(tmp_path / "file", 1) == {named(*[b"ab"] * 10_000)}


@pytest.fixture
def store(faulty: Any, tmp_path: Path) -> Store:
    (tmp_path / "file").write_bytes(b"weights" * 1000)
    return Store("s3://bucket/prefix", tmp_path / "scratch")


def test_a_file_that_changed_on_its_way_is_sent_again(
    store: Store, faulty: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    faulty.faults = {"flips an upload"}
    store.backend.put_file("a/file", tmp_path / "file")
    assert store.backend.read("a/file") == b"weights" * 1000
    assert "a/file arrived with other bytes than were sent" in caplog.text
    assert [seen for seen in faulty.seen if seen.startswith("PUT")] == ["PUT file"] * 2


def test_a_file_that_changes_every_time_is_an_error(store: Store, faulty: Any, tmp_path: Path) -> None:
    faulty.faults = {"flips uploads"}
    with pytest.raises(
        StoreError, match=r"cannot upload a/file to .*: other bytes arrived than were sent, 2 times; .* run again"
    ):
        store.backend.put_file("a/file", tmp_path / "file")


def test_a_server_that_names_objects_otherwise_is_asked_for_the_bytes(
    store: Store, faulty: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _say.cache_clear()  # it is said once a process
    faulty.faults = {"names of its own"}
    store.backend.put_file("a/file", tmp_path / "file")
    assert "it is read back what is uploaded" in caplog.text
    faulty.faults = {"names of its own", "flips uploads"}
    with pytest.raises(StoreError, match="other bytes arrived than were sent"):
        store.backend.put_file("a/file", tmp_path / "file")
    assert logging.WARNING in {record.levelno for record in caplog.records}
