"""Where the server that `sppo serve` starts is found: its port and password, and the file that tells a shell."""

import os
import secrets
import shlex
import socket
import sys
from collections.abc import Collection, Mapping
from pathlib import Path

from flows.server import EVERYWHERE, RECORDER
from sppo.errors import LaunchError
from sppo.store.backend import refuse_credentials

FIRST_PORT = 4200
SETTINGS = {
    **EVERYWHERE,
    **RECORDER,
    # In memory, as shipped, a restarted server takes the runs that hold a slot for lost.
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
    "PREFECT_CLIENT_MAX_RETRIES": "9",
    "PREFECT_WORKER_QUERY_SECONDS": "2",  # 10, as shipped, is what every heavy stage would wait for its worker
}
TOLD = ("PREFECT_HOME", "PREFECT_API_URL", "PREFECT_API_AUTH_STRING", "SPPO_STORE", "SPPO_SCRATCH")
"""What a shell is told of them."""


def serving_settings(
    folder: Path, default_store: Path, running: Collection[str], port: int | None, store: str | None
) -> dict[str, str]:
    """Environment variables of the server and all workers. Password, port and store stay what they were in this folder.

    Raises StoreError for a store's URL with credentials in it, which deployments would show as a parameter; LaunchError if
    another port or store is asked for than that of what runs, or if a port is taken."""
    refuse_credentials(store or "", "--store")
    before = read_environment(folder / "environment")
    old_port, old_store = _port(before), before.get("SPPO_STORE")
    new_store = _absolute(store) if store else old_store or str(default_store)
    if running and (new_store != old_store or port not in (None, old_port)):
        raise LaunchError(
            f"{', '.join(running)} serve the store {old_store} on port {old_port}, not {new_store} on port {port or old_port}; "
            "expected the same: stop them first (make stop)"
        )
    own_port = _chosen_port(running, port, old_port)
    settings = {
        "PREFECT_HOME": str(folder / "prefect"),
        "PREFECT_API_URL": f"http://127.0.0.1:{own_port}/api",
        # As shipped, scripts of any page may read what the server answers. These two names are where its own UI is opened.
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": f"http://127.0.0.1:{own_port},http://localhost:{own_port}",
        # Without one, the server would answer any page in the person's browser.
        "PREFECT_API_AUTH_STRING": before.get("PREFECT_API_AUTH_STRING") or f"sppo:{secrets.token_urlsafe(24)}",
        "SPPO_STORE": new_store,
        **SETTINGS,
    }
    scratch = os.environ.get("SPPO_SCRATCH")
    return {**settings, "SPPO_SCRATCH": str(Path(scratch).resolve())} if scratch else settings


def read_environment(path: Path) -> dict[str, str]:
    """What an environment file tells of the server and the store; nothing where there is no file."""
    if not path.is_file():
        return {}
    words = shlex.split(path.read_text(encoding="utf-8"), comments=True)
    told = dict(word.split("=", 1) for word in words if "=" in word)
    return {name: told[name] for name in TOLD if name in told}


def write_environment(path: Path, settings: Mapping[str, str]) -> None:
    """Write the file that a shell reads to reach the server, for its owner's eyes only."""
    lines = ["# Read by a shell: `. environment`. Holds the server's password."]
    lines += [f"export {name}={shlex.quote(settings[name])}" for name in TOLD if name in settings]
    lines.append(f'export PATH={shlex.quote(str(Path(sys.executable).parent))}:"$PATH"')
    new = path.with_suffix(".new")
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as stream:
        stream.write("\n".join(lines) + "\n")
    new.replace(path)


def port_is_free(port: int) -> bool:
    """Whether a server could listen on this port of 127.0.0.1."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a connection that has just ended does not hold it
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _chosen_port(running: Collection[str], port: int | None, old_port: int | None) -> int:
    if "server" in running and old_port:
        return old_port
    wanted = port or old_port
    if wanted and port_is_free(wanted):
        return wanted
    if port or (running and old_port):  # workers that run would look for the server there
        raise LaunchError(
            f"port {wanted} of 127.0.0.1 is taken; expected a free one: end who listens there, "
            + ("or stop the workers that look for the server there (make stop)" if running else "or ask for another")
        )
    return next(number for number in range(FIRST_PORT, 65536) if port_is_free(number))


def _port(environment: Mapping[str, str]) -> int | None:
    url = environment.get("PREFECT_API_URL")
    return int(url.removesuffix("/api").rsplit(":", 1)[1]) if url else None


def _absolute(store: str) -> str:
    remote = "://" in store or store.startswith("block/")
    return store if remote else str(Path(store).expanduser().resolve())
