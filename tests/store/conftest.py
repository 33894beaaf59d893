"""Every kind of store, and a server that takes connections and never answers."""

import itertools
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from sppo.store import Store

MEMORY = itertools.count()
KINDS = ["file", "memory", "moto", "ceph", "ceph without awscrt"]


@pytest.fixture(params=KINDS)
def any_store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    match request.param:
        case "file":
            return Store(f"file://{tmp_path / 'store'}", tmp_path / "scratch")
        case "memory":
            return Store(f"memory://contract-{next(MEMORY)}", tmp_path / "scratch")
        case "moto":
            return Store(request.getfixturevalue("s3_url"), tmp_path / "scratch")
        case "ceph without awscrt":
            monkeypatch.setattr("sppo.store.bulk.find_spec", lambda name: None)
    return Store(request.getfixturevalue("ceph_url"), tmp_path / "scratch")


@pytest.fixture
def black_hole(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A store URL whose server accepts connections and says nothing; a second is waited for an answer."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(64)
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret-of-theirs")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        monkeypatch.setenv("SPPO_STORE_TIMEOUT_S", "0.4")
        yield "s3://bucket/prefix"
