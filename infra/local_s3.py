"""A real S3 server on this machine, to try and to test with: Ceph's object gateway over a daemon that keeps all in memory.

    .venv/bin/python infra/local_s3.py FOLDER      prints `export` lines and serves until it is stopped; nothing is kept

Loopback only, no systemd, no root; it ends the processes that it started and no others. It needs the packages ceph-mon,
ceph-osd, radosgw and ceph-common (`make system`). Unlike a mock it checks signatures, and its conditional writes are atomic.
"""

import contextlib
import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = ("ceph", "ceph-mon", "ceph-osd", "radosgw", "radosgw-admin", "monmaptool", "setpriv")
START_S = 60

CONFIGURATION = """
[global]
fsid = {fsid}
mon_host = [v2:127.0.0.1:{mon2}/0,v1:127.0.0.1:{mon1}/0]
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
run_dir = {folder}
admin_socket = {folder}/$type.$id.asok
log_file = {folder}/$type.$id.log
mon_cluster_log_file = {folder}/cluster.log
pid_file =
crash_dir = {folder}
mon_data = {folder}/mon
osd_data = {folder}/osd
mon_allow_pool_size_one = true
mon_initial_members = a
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 1
osd_pool_default_pgp_num = 1
osd_crush_chooseleaf_type = 0
osd_objectstore = memstore
memstore_device_bytes = {memory_bytes}
osd_memory_target = 1073741824
osd_max_object_name_len = 1024
paxos_propose_interval = 0.02
paxos_min_wait = 0.01
mon_data_avail_crit = 1
mon_data_avail_warn = 1
rgw_rados_pool_pg_num_min = 1
rgw_data = {folder}/rgw
rgw_gc_obj_min_wait = 1
rgw_gc_processor_period = 5
rgw_dynamic_resharding = false
debug_rgw = 0
debug_ms = 0

[client]
ms_mon_client_mode = crc secure
auth_client_required = none
keyring = /dev/null
rgw_frontends = beast endpoint=127.0.0.1:{port} tcp_nodelay=1
"""


@dataclass(frozen=True)
class LocalS3:
    """Where the server listens and who may use it."""

    endpoint_url: str
    access_key_id: str = "sppo-local"
    secret_access_key: str = "sppo-local-secret"
    region: str = "us-east-1"

    @property
    def environment(self) -> dict[str, str]:
        """What every S3 client reads."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint_url,
            "AWS_ACCESS_KEY_ID": self.access_key_id,
            "AWS_SECRET_ACCESS_KEY": self.secret_access_key,
            "AWS_DEFAULT_REGION": self.region,
        }


def missing_programs() -> list[str]:
    """Programs of Ceph that are not installed."""
    return [program for program in PROGRAMS if shutil.which(program) is None]


@contextlib.contextmanager
def local_s3(folder: Path, memory_gib: int = 8) -> Iterator[LocalS3]:
    """Serve until the block ends. Its memory grows with what is stored, up to the limit.

    Raises RuntimeError naming the log if it is not ready within a minute."""
    folder = folder.resolve()
    for name in ("mon", "osd", "rgw"):
        (folder / name).mkdir(parents=True)
    mon1, mon2, port = _free_ports(3)
    fsid, osd = str(uuid.uuid4()), str(uuid.uuid4())
    configuration = folder / "ceph.conf"
    configuration.write_text(
        CONFIGURATION.format(fsid=fsid, mon1=mon1, mon2=mon2, port=port, folder=folder, memory_bytes=memory_gib << 30)
    )
    server = LocalS3(f"http://127.0.0.1:{port}")
    daemons: list[subprocess.Popen[bytes]] = []

    def run(program: str, *arguments: str) -> None:
        _run([program, "--conf", str(configuration), *arguments], folder)

    def start(program: str, *arguments: str) -> None:
        daemons.append(_start([program, "--conf", str(configuration), "-f", *arguments], folder))

    try:
        address = f"[v2:127.0.0.1:{mon2}/0,v1:127.0.0.1:{mon1}/0]"
        _run(["monmaptool", "--create", "--fsid", fsid, "--addv", "a", address, str(folder / "monmap")], folder)
        run("ceph-mon", "-i", "a", "--mkfs", "--monmap", str(folder / "monmap"))
        start("ceph-mon", "-i", "a")
        run("ceph", "osd", "new", osd)
        run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd)
        start("ceph-osd", "-i", "0")
        start("radosgw", "-n", "client.rgw")
        keys = ("--access-key", server.access_key_id, "--secret-key", server.secret_access_key)
        run("radosgw-admin", "-n", "client.rgw", "user", "create", "--uid", "sppo", "--display-name", "sppo", *keys)
        _wait(port, daemons, folder)
        yield server
    finally:
        _stop(daemons)


def _free_ports(count: int) -> list[int]:
    """Ports nobody listens on, different from each other."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for held in sockets:
            held.bind(("127.0.0.1", 0))
        return [int(held.getsockname()[1]) for held in sockets]


def _environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "TMPDIR": str(folder), "CEPH_ARGS": ""}


def _run(command: Sequence[str], folder: Path) -> None:
    with (folder / "commands.log").open("ab") as log:
        status = subprocess.run(command, stdout=log, stderr=log, env=_environment(folder), timeout=START_S).returncode
    if status != 0:
        raise RuntimeError(f"{command[0]} ended with status {status}; see {folder / 'commands.log'}")


def _start(command: Sequence[str], folder: Path) -> "subprocess.Popen[bytes]":
    with (folder / f"{command[0]}.out").open("ab") as log:
        # a test run that is killed takes its server with it
        return subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *command],
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            env=_environment(folder),
        )


def _wait(port: int, daemons: "Sequence[subprocess.Popen[bytes]]", folder: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and all(daemon.poll() is None for daemon in daemons):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", "/")
            connection.getresponse()
            return
        except OSError:
            time.sleep(0.05)
        finally:
            connection.close()
    raise RuntimeError(f"the S3 server did not answer on port {port}; its logs are in {folder}")


def _stop(daemons: "Sequence[subprocess.Popen[bytes]]") -> None:
    for daemon in reversed(daemons):  # the gateway first: the others would wait for nobody, it waits for them
        daemon.kill()  # everything is in memory: there is nothing to flush
    for daemon in daemons:
        daemon.wait()


def main() -> None:
    """Serve until interrupted."""
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    if missing := missing_programs():
        sys.exit(f"not installed: {', '.join(missing)}; type `make system`")
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    with local_s3(Path(sys.argv[1])) as server:
        for name, value in server.environment.items():
            sys.stdout.write(f"export {name}={value}\n")
        sys.stdout.flush()
        stopped.wait()


if __name__ == "__main__":
    main()
