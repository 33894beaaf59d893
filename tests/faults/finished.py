"""What a run left in its store, read with plain clients and compared with what an undisturbed run leaves.

None of the product's code reads here: manifests are JSON, objects are bytes with a sha256.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

OF_ATTEMPTS = ("seconds", "created", "metrics", "logs", "seal")
"""Fields of a manifest that say how it was made, not what it is."""
COUNTS_OF_ATTEMPTS = ("resumed_from_step",)
LEFT_OVERS = re.compile(r"^(checks|leases)/|^[a-z][a-z-]*/[0-9a-f]{64}/(parts|work|files|packs)/|(^|/)\.writing-")
"""What interrupted attempts may leave: parts, records of work, and bytes that no record names (`sppo gc` removes them)."""

FOLDERS = (".writing-", "parts/", "work/", "files/", "packs/")
"""Under which left-overs are counted."""


class Objects(Protocol):
    """A store, seen from outside."""

    def all(self) -> dict[str, bytes]:
        """Every object by key."""

    def delete(self, below: str) -> None:
        """Remove an object, or a folder of them."""


class S3Objects:
    """Below a prefix of a bucket, asked for at the server itself, past any proxy."""

    def __init__(self, client: Any, url: str, beginning: Mapping[str, bytes]) -> None:
        self._client = client
        self._bucket, self._prefix = url.removeprefix("s3://").split("/", 1)
        self._known = {hashlib.md5(content).hexdigest(): content for content in beginning.values()}

        def put(key: str) -> None:
            client.put_object(Bucket=self._bucket, Key=f"{self._prefix}/{key}", Body=beginning[key])

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(put, beginning))

    def _listed(self, below: str = "") -> list[dict[str, Any]]:
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=f"{self._prefix}/{below}")
        return [entry for page in pages for entry in page.get("Contents", [])]

    def all(self) -> dict[str, bytes]:
        listed = self._listed()
        with ThreadPoolExecutor(4) as pool:
            contents = list(pool.map(self._content, listed))
        return {entry["Key"].removeprefix(f"{self._prefix}/"): held for entry, held in zip(listed, contents, strict=True)}

    def _content(self, entry: Mapping[str, Any]) -> bytes:
        known = self._known.get(entry["ETag"].strip('"'))  # the MD5 of what the server holds
        return self._client.get_object(Bucket=self._bucket, Key=entry["Key"])["Body"].read() if known is None else known

    def delete(self, below: str) -> None:
        keys = [{"Key": entry["Key"]} for entry in self._listed(below)]
        if keys:
            self._client.delete_objects(Bucket=self._bucket, Delete={"Objects": keys, "Quiet": True})


class FolderObjects:
    """A folder."""

    def __init__(self, root: Path, beginning: Mapping[str, bytes]) -> None:
        self._root = root
        for key, content in beginning.items():
            (root / key).parent.mkdir(parents=True, exist_ok=True)
            (root / key).write_bytes(content)

    def all(self) -> dict[str, bytes]:
        return {str(path.relative_to(self._root)): path.read_bytes() for path in self._root.rglob("*") if path.is_file()}

    def delete(self, below: str) -> None:
        for key in self.all():
            if key.startswith(below):
                (self._root / key).unlink()
        if not below:
            shutil.rmtree(self._root, ignore_errors=True)


@dataclass(frozen=True)
class Finished:
    """What is compared of a finished run."""

    artifacts: dict[str, dict[str, Any]]
    """By `stage/fingerprint`: the manifest without what tells of attempts."""
    records: dict[str, bytes]
    """Of the run: recipe and index."""
    problems: tuple[str, ...] = ()
    """Bytes that are not what a manifest says, and objects that have no business here."""
    left: dict[str, int] = field(default_factory=dict)
    """Left-overs by folder."""


def finished_iteration(objects: Mapping[str, bytes]) -> Finished:
    """Every manifest's files against its sha256s, and all else that lies there."""
    artifacts, problems, named = {}, [], set()
    for key in sorted(key for key in objects if key.endswith("/manifest.json")):
        artifact = key.removesuffix("/manifest.json")
        manifest = json.loads(objects[key])
        named |= {key, *(_key(artifact, entry) for entry in (*manifest["files"], *manifest.get("logs", ())))}
        problems += [problem for entry in manifest["files"] if (problem := _wrong(objects, artifact, entry))]
        problems += [problem for entry in manifest.get("logs", ()) if (problem := _wrong(objects, artifact, entry))]
        counts = {name: count for name, count in manifest["counts"].items() if name not in COUNTS_OF_ATTEMPTS}
        files = [[entry["name"], entry["size"], entry["sha256"]] for entry in manifest["files"]]
        kept = {name: value for name, value in manifest.items() if name not in OF_ATTEMPTS}
        artifacts[artifact] = {**kept, "files": files, "counts": counts}
    records = {key: content for key, content in objects.items() if key.startswith("runs/") and "/.writing-" not in key}
    left: dict[str, int] = {}
    for key in sorted(objects.keys() - named - records.keys()):
        folder = next((name for name in FOLDERS if f"/{name}" in key), key.split("/", 1)[0])
        left[folder] = left.get(folder, 0) + 1
        if not LEFT_OVERS.search(key):
            problems.append(f"{key} has no business in a store")
    return Finished(artifacts, records, tuple(problems), left)


def finished_naive(objects: Mapping[str, bytes]) -> Finished:
    """All that is there: a naive pipeline says no more of it."""
    return Finished({}, {key: content for key, content in objects.items() if key.endswith(".json")})


FINISHED = {"iteration": finished_iteration, "naive": finished_naive}


def difference(found: Finished, expected: Finished) -> list[str]:
    """What of a finished run is not as in the undisturbed one; empty if all is."""
    problems = list(found.problems)
    for kind, here, there in (("artifact", found.artifacts, expected.artifacts), ("record", found.records, expected.records)):
        problems += [f"{kind} {name} is missing" for name in sorted(there.keys() - here.keys())]
        problems += [f"{kind} {name} is one too many" for name in sorted(here.keys() - there.keys())]
        problems += [f"{kind} {name} differs" for name in sorted(here.keys() & there.keys()) if here[name] != there[name]]
    return problems


def _key(artifact: str, entry: Mapping[str, Any]) -> str:
    pack = entry.get("pack")
    name = f"files/{entry['sha256'][:16]}/{entry['name']}" if pack is None else f"packs/{pack['sha256'][:16]}"
    return f"{artifact}/{name}"


def _wrong(objects: Mapping[str, bytes], artifact: str, entry: Mapping[str, Any]) -> str:
    key = _key(artifact, entry)
    if key not in objects:
        return f"{key} is missing"
    start = entry["pack"]["offset"] if entry.get("pack") else 0
    content = objects[key][start : start + entry["size"]]
    whole = entry.get("pack") or entry
    if len(objects[key]) != whole["size"] or hashlib.sha256(content).hexdigest() != entry["sha256"]:
        return f"{entry['name']} in {key} is not what its manifest says"
    return ""
