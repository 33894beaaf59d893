"""A large file whose part changes on its way to a real S3 server: the server takes it, the store does not."""

import os
from pathlib import Path

import pytest
from faults.places import Point
from faults.proxy import Fault, FaultProxy, Watch

from sppo.store import Store

MIB = 1 << 20


@pytest.mark.parametrize(("size", "point"), [(MIB, Point("PUT", "/a/file", 1)), (20 * MIB, Point("PUT part", "/a/file", 2))])
def test_a_flipped_bit_of_an_upload_is_seen_and_the_file_sent_again(
    ceph_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture, size: int, point: Point
) -> None:
    content = os.urandom(size)
    (tmp_path / "file").write_bytes(content)
    with FaultProxy(os.environ["AWS_ENDPOINT_URL"]) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        store = Store(ceph_url, tmp_path / "scratch")
        watch = Watch(ceph_url.removeprefix("s3://").rstrip("/"), point, Fault.FLIPPED_IN)
        proxy.watch(watch)
        store.backend.put_file("a/file", tmp_path / "file")
        assert watch.hit
        assert store.backend.read("a/file") == content
    assert "arrived with other bytes than were sent" in caplog.text
