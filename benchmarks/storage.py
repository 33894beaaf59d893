"""Storage: our store against s3fs's own calls, boto3, awscrt and obstore, on a real S3 server on loopback.

    .venv/bin/python benchmarks/storage.py [--quick] [--rounds N]

A 512 MB file and 1000 x 64 KB go up and come down; every side hashes the files before it sends them and what it received, and
compares. Sides take turns, and nobody always comes after the same one. Last line: one JSON object.
"""

import argparse
import hashlib
import json
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout this file lies in

from infra.local_s3 import LocalS3, local_s3, missing_programs
from sppo.store import Store
from sppo.store.parallel import in_parallel
from sppo.store.speed import write_random

BUCKET = "benchmark"
AT_ONCE = 16
"""Small files under way at a time, for the rivals that leave it to the caller."""
KINDS = ("put", "get", "small_put", "small_get")

Move = Callable[[Sequence[Path], int], object]
"""Moves files, under keys of the round whose number it is given."""


@dataclass
class Side:
    """One way to move files."""

    name: str
    put: Move
    get: Move
    seconds: dict[str, list[float]] = field(default_factory=lambda: {kind: [] for kind in KINDS})
    cpu: dict[str, list[float]] = field(default_factory=lambda: {kind: [] for kind in KINDS})
    verifies: bool = False
    """Whether its own calls hash; for the others the benchmark does."""


def peak_memory(work: Callable[[], None]) -> float:
    """The most memory, in MB above what it began with, that this process held while it worked; looked at every 5 ms."""

    def resident() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6

    def look() -> None:
        while not ended.wait(0.005):
            seen.append(resident())

    seen, ended = [resident()], threading.Event()
    thread = threading.Thread(target=look)
    thread.start()
    try:
        work()
    finally:
        ended.set()
        thread.join()
    return max(seen) - seen[0]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a fifth of the bytes, and 2 rounds")
    parser.add_argument("--rounds", type=int)
    options = parser.parse_args()
    if missing := missing_programs():
        sys.exit(f"not installed: {', '.join(missing)}; type `make system`")
    options.rounds = options.rounds or (2 if options.quick else 5)
    large, small = (100_000_000, 200) if options.quick else (512_000_000, 1000)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with local_s3(folder / "server") as server:
            os.environ.update(server.environment)
            os.environ["SPPO_SCRATCH"] = str(folder / "scratch")
            measure(folder, server, large, small, options.rounds)


def measure(folder: Path, server: LocalS3, large: int, small: int, rounds: int) -> None:
    """All sides, all rounds."""
    import boto3

    boto3.client("s3").create_bucket(Bucket=BUCKET)
    for made in ("large", "small", "got"):
        (folder / made).mkdir()
    one = [write_random(folder / "large" / "weights.bin", large)]
    many = [write_random(folder / "small" / f"{number:04d}.bin", 64 << 10) for number in range(small)]
    sides = [our_store(folder)] + [rival for make in RIVALS if (rival := make(server)) is not None]
    peak = 0.0
    for number in range(rounds + 1):  # round 0 warms up
        for side in sides[number % len(sides) :] + sides[: number % len(sides)]:
            for files, kinds in ((one, KINDS[:2]), (many, KINDS[2:])):
                held = peak_memory(partial(take_turn, side, files, kinds, number, folder / "got"))
                peak = max(peak, held) if side is sides[0] else peak
                empty_bucket()
    report(sides, large, small, rounds, peak)


def take_turn(side: Side, files: Sequence[Path], kinds: Sequence[str], number: int, folder: Path) -> None:
    """Up and down, verified; round 0 is thrown away. Raises RuntimeError if what came back is not what was sent."""
    shutil.rmtree(folder)
    folder.mkdir()
    targets = [folder / path.name for path in files]

    def up() -> None:
        sent.extend([] if side.verifies else hashes(files))
        side.put(files, number)

    def down() -> None:
        side.get(targets, number)
        if not side.verifies and hashes(targets) != sent:
            raise RuntimeError(f"{side.name} brought back other bytes than it was given")

    sent: list[str] = []
    for kind, move in zip(kinds, (up, down), strict=True):
        wall, cpu = time.perf_counter(), time.process_time()
        move()
        if number:
            side.seconds[kind].append(time.perf_counter() - wall)
            side.cpu[kind].append(time.process_time() - cpu)


def hashes(paths: Sequence[Path]) -> list[str]:
    """sha256 of each file."""
    found = []
    for path in paths:
        with path.open("rb") as stream:
            found.append(hashlib.file_digest(stream, "sha256").hexdigest())
    return found


def our_store(folder: Path) -> Side:
    """`Workspace.commit_part`, then `Workspace.part_paths` in a scratch folder that has nothing yet."""
    fingerprints = iter(hashlib.sha256(bytes([number])).hexdigest() for number in range(256))
    store = Store(f"s3://{BUCKET}/ours", folder / "scratch")
    current: list[Any] = []

    def put(files: Sequence[Path], number: int) -> None:
        current[:] = [store.workspace("train", next(fingerprints))]
        current.append(current[0].commit_part("result", files))

    def get(targets: Sequence[Path], number: int) -> None:
        for path, target in zip(current[0].part_paths(current[1]), targets, strict=True):
            path.rename(target)  # the next round finds no copy

    return Side("our store (hashes, packs, records)", put, get, verifies=True)


def s3fs_calls(server: LocalS3) -> Side | None:
    import fsspec

    files = fsspec.filesystem("s3", use_listings_cache=False, skip_instance_cache=True)
    return Side(
        f"s3fs {version('s3fs')}: put, get",
        lambda paths, number: files.put([str(path) for path in paths], keys(paths, f"{BUCKET}/s3fs/{number}")),
        lambda paths, number: files.get(keys(paths, f"{BUCKET}/s3fs/{number}"), [str(path) for path in paths]),
    )


def boto3_calls(server: LocalS3) -> Side | None:
    import boto3
    from botocore.config import Config

    client = boto3.client("s3", config=Config(max_pool_connections=AT_ONCE))

    def put(paths: Sequence[Path], number: int) -> None:
        pairs = list(zip(paths, keys(paths, f"boto3/{number}"), strict=True))
        in_parallel(lambda pair: client.upload_file(str(pair[0]), BUCKET, pair[1]), pairs, AT_ONCE)

    def get(paths: Sequence[Path], number: int) -> None:
        pairs = list(zip(paths, keys(paths, f"boto3/{number}"), strict=True))
        in_parallel(lambda pair: client.download_file(BUCKET, pair[1], str(pair[0])), pairs, AT_ONCE)

    return Side(f"boto3 {version('boto3')}: upload_file, download_file", put, get)


def awscrt_calls(server: LocalS3) -> Side | None:
    if not installed("awscrt"):
        return None
    from awscrt import auth, http, s3

    credentials = auth.AwsCredentialsProvider.new_static(server.access_key_id, server.secret_access_key)
    host = server.endpoint_url.removeprefix("http://")
    client = s3.S3Client(
        region=server.region,
        tls_mode=s3.S3RequestTlsMode.DISABLED,
        signing_config=s3.create_default_s3_signing_config(region=server.region, credential_provider=credentials),
    )

    def move(method: str, kind: Any, paths: Sequence[Path], number: int) -> None:
        waiting = []
        for path, key in zip(paths, keys(paths, f"awscrt/{number}"), strict=True):
            length = [("Content-Length", str(path.stat().st_size))] if method == "PUT" else []
            request = http.HttpRequest(method, f"/{BUCKET}/{key}", http.HttpHeaders([("Host", host), *length]))
            file = {"send_filepath" if method == "PUT" else "recv_filepath": str(path)}
            waiting.append(client.make_request(type=kind, request=request, **file).finished_future)
        for future in waiting:
            future.result()

    return Side(
        f"awscrt {version('awscrt')}: S3Client as it comes",
        lambda paths, number: move("PUT", s3.S3RequestType.PUT_OBJECT, paths, number),
        lambda paths, number: move("GET", s3.S3RequestType.GET_OBJECT, paths, number),
    )


def obstore_calls(server: LocalS3) -> Side | None:
    if not installed("obstore"):
        return None
    import obstore
    from obstore.store import S3Store

    bucket = S3Store(
        BUCKET,
        endpoint=server.endpoint_url,
        access_key_id=server.access_key_id,
        secret_access_key=server.secret_access_key,
        region=server.region,
        virtual_hosted_style_request=False,
        client_options={"allow_http": True},
    )

    def put(paths: Sequence[Path], number: int) -> None:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(lambda key, path: obstore.put(bucket, key, path), keys(paths, f"obstore/{number}"), paths))

    def fetch(key: str, path: Path) -> None:
        with path.open("wb") as stream:
            for block in obstore.get(bucket, key):
                stream.write(block)

    def get(paths: Sequence[Path], number: int) -> None:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(fetch, keys(paths, f"obstore/{number}"), paths))

    return Side(f"obstore {version('obstore')}: put, get", put, get)


RIVALS: tuple[Callable[[LocalS3], Side | None], ...] = (s3fs_calls, boto3_calls, awscrt_calls, obstore_calls)


def installed(name: str) -> bool:
    """Whether a rival is there; a line says so where it is not."""
    found = find_spec(name) is not None
    if not found:
        print(f"{name} is not installed: not measured (pip install {name})")
    return found


def keys(paths: Sequence[Path], prefix: str) -> list[str]:
    """A key for each file."""
    return [f"{prefix}/{path.name}" for path in paths]


def empty_bucket() -> None:
    """Everything is in the server's memory, which the next turn needs."""
    import boto3

    boto3.resource("s3").Bucket(BUCKET).objects.all().delete()


def report(sides: Sequence[Side], large: int, small: int, rounds: int, peak: float) -> None:
    """The table and the JSON line, from the best round of each side: what else runs on a machine only ever slows a round."""
    print(
        f"storage: a file of {large / 1e6:.0f} MB, and {small} of 64 KB, up and down, sha256 before and after on every side;\n"
        f"Ceph's object gateway on loopback, all in memory; {os.cpu_count()} CPU(s) for both ends; {rounds} rounds, sides in "
        "turn, the best of each side"
    )
    print(f"\n{'seconds (CPU-seconds of the client)':46}" + "".join(f"{kind:>16}" for kind in KINDS))
    for side in sides:
        cells = [f"{min(side.seconds[kind]):9.2f} ({min(side.cpu[kind]):4.2f})" for kind in KINDS]
        print(f"{side.name:46}" + "".join(f"{cell:>16}" for cell in cells))
    found: dict[str, float] = {}
    for kind in KINDS:
        fastest = min(sides[1:], key=lambda side: min(side.seconds[kind]))
        found[f"{kind}_fraction"] = round(min(fastest.seconds[kind]) / min(sides[0].seconds[kind]), 3)
        print(f"{kind}: our rate is {found[f'{kind}_fraction']:.2f} of that of the fastest, {fastest.name}")
    print(f"our store's memory at most {peak:.0f} MB above what it was before a turn")
    print(json.dumps({**found, "peak_memory_mb": round(peak)}))


if __name__ == "__main__":
    main()
