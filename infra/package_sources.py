"""Hand pip's package sources on to uv: prints shell assignments for the Makefile, SPPO_UV_SOURCES and perhaps SSL_CERT_FILE.

uv reads none of pip's settings. A machine that keeps its own wheels or indexes has them in pip's configuration or environment;
one that names none gets torch's CPU build from PyTorch's own index, which uv knows by the name `cpu`.
"""

import os
import shlex
import subprocess
import sys


def pip_settings() -> dict[str, list[str]]:
    """Values of pip's configuration, environment included, by option name."""
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], check=True, capture_output=True, text=True).stdout
    settings: dict[str, list[str]] = {}
    for line in listed.splitlines():
        name, _, value = line.partition("=")
        option = name.rsplit(".", 1)[-1]
        settings.setdefault(option, []).extend(value.strip().strip("'\"").split())
    return settings


def uv_options(settings: dict[str, list[str]], extra: str) -> list[str]:
    """uv's options for the same sources, each once; `extra` is cpu or gpu."""
    options: list[str] = []
    for setting, option in (
        ("index-url", "--index-url"),
        ("extra-index-url", "--extra-index-url"),
        ("find-links", "--find-links"),
    ):
        for value in dict.fromkeys(settings.get(setting, [])):
            options += [option, value]
    if not options:
        return ["--torch-backend", "cpu"] if extra == "cpu" else []
    return [*options, "--index-strategy", "unsafe-best-match"]


if __name__ == "__main__":
    found = pip_settings()
    sys.stdout.write(f"SPPO_UV_SOURCES={shlex.quote(' '.join(uv_options(found, sys.argv[1])))}\n")
    if found.get("cert") and "SSL_CERT_FILE" not in os.environ:  # a machine behind a certificate authority of its own
        sys.stdout.write(f"export SSL_CERT_FILE={shlex.quote(found['cert'][0])}\n")
