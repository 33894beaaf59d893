"""Credentials where they do not belong: in files that git keeps, in files that others may read, in addresses."""

import os
import re
import stat
import subprocess
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from flows.doctor.finding import Finding, half_open, ok, wrong
from flows.serving import PROJECT

SUBJECT = "secrets"
SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL|AUTH_STRING")
"""In the name of a variable."""
SHORTEST = 12
"""Of a value that is looked for: shorter ones are switches, and stand everywhere."""
FORMS = (r"hf_[A-Za-z0-9]{34}", r"AKIA[0-9A-Z]{16}", r"sk-[A-Za-z0-9_-]{40,}", r"-----BEGIN [A-Z ]*PRIVATE KEY-----")
"""Of tokens that are known by their looks."""
PATIENCE_S = 3.0


def look() -> Sequence[Finding]:
    """In the folder where this was typed, in the project's, and in the files of `sppo serve`."""
    folders = dict.fromkeys((Path.cwd(), PROJECT))
    found = [*(finding for folder in folders for finding in _committed(folder)), *_environment_file(), *_addresses()]
    return found or [ok(SUBJECT, "none in files that git keeps, in readable files or in addresses")]


def _committed(folder: Path) -> list[Finding]:
    values = [value for name, value in os.environ.items() if SECRET.search(name.upper()) and len(value) >= SHORTEST]
    literal = _grep(folder, ["-F"], [line for value in values for line in value.splitlines() if len(line) >= SHORTEST])
    by_form = _grep(folder, ["-E"], list(FORMS))
    move = "take it out, and have it withdrawn: git keeps what was ever committed"
    said = [f"{folder / name} is kept by git and holds a credential of this environment" for name in literal]
    said += [
        f"{folder / name} is kept by git and holds what looks like a credential" for name in by_form if name not in literal
    ]
    return [wrong(SUBJECT, each, move) for each in said]


def _grep(folder: Path, kind: list[str], patterns: list[str]) -> list[str]:
    """Names of files that git keeps and that hold one of the patterns; none where there is no git."""
    if not patterns:
        return []
    # the patterns go through a pipe: a command line is seen by everyone on the machine
    command = ["git", "-C", str(folder), "grep", "--cached", "-I", "-l", *kind, "-f", "-"]
    told = "\n".join(patterns) + "\n"
    try:
        done = subprocess.run(command, input=told, capture_output=True, text=True, timeout=PATIENCE_S)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return []
    return done.stdout.splitlines() if done.returncode == 0 else []


def _environment_file() -> list[Finding]:
    """The server's password lies in one file of `sppo serve`."""
    path = PROJECT / "var" / "serve" / "environment"
    if not path.exists() or not path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH):
        return []
    return [wrong(SUBJECT, f"others on this machine may read {path}, which holds the server's password", f"chmod 600 {path}")]


def _addresses() -> list[Finding]:
    found = []
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "MLFLOW_TRACKING_URI", "HF_ENDPOINT", "PREFECT_API_URL"):
        parts = urlsplit(os.environ.get(name, ""))
        if parts.username or parts.password:
            move = "take them out: clients repeat addresses in their errors"
            found.append(half_open(SUBJECT, f"{name} holds credentials", move))
    return found
