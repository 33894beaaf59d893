"""Bad input, and what is said of it: every message stands in messages.md, to be read as a user would.

`SPPO_UPDATE_MESSAGES=1 pytest tests/bad_input` writes the file anew, section by section; look at the difference before it is
committed.
"""

import fcntl
import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from sppo.errors import SppoError

MESSAGES = Path(__file__).with_name("messages.md")
ROOT = Path(__file__).resolve().parents[2]
HEAD = (
    "# What is said of bad input\n\nWritten by `SPPO_UPDATE_MESSAGES=1 pytest tests/bad_input`, which otherwise compares. "
    "`<folder>` is a folder of the\ntest's, `<store>` its store, `<digest>` a digest.\n"
)
Said = Callable[[Callable[[], object]], str]
Snapshot = Callable[[str, Mapping[str, Callable[[], object]]], None]


@pytest.fixture
def said(tmp_path: Path) -> Said:
    """The message of what a call raises: its class and words, with this machine's paths taken out."""

    def listen(call: Callable[[], object]) -> str:
        try:
            found = call()
        except SppoError as error:
            return plain(f"{type(error).__name__}: {error}", tmp_path)
        raise AssertionError(f"nothing was said; the result is {str(found)[:300]}")

    return listen


@pytest.fixture
def snapshot(said: Said) -> Snapshot:
    """Holds a section of messages.md to what is said now of each case."""

    def compare(section: str, cases: Mapping[str, Callable[[], object]]) -> None:
        now = {name: said(call) for name, call in cases.items()}
        if os.environ.get("SPPO_UPDATE_MESSAGES"):
            _write(section, now)
        assert _read().get(section) == now

    return compare


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """`sppo` with these arguments, which are refused: exit status 2 and one message, without a traceback."""
    from flows.command_line import main

    def refuse(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["sppo", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        written = capsys.readouterr()
        assert ended.value.code == 2, written
        assert "Traceback" not in written.err
        return written.err

    return refuse


def plain(message: str, folder: Path) -> str:
    """A message without what differs from machine to machine."""
    message = message.replace(str(folder), "<folder>").replace(str(ROOT), "<project>")
    message = re.sub(r"/[^ ']*/pytest-of-[^/]+/pytest-\d+/(popen-gw\d+/)?", "<folder>/", message)
    message = re.sub(r"\b[0-9a-f]{64}\b|\b[0-9a-f]{16}\b|\b[0-9a-f]{40}\b", "<digest>", message)
    return re.sub(r"(?<=/)[0-9a-f]{8}\b", "<digest>", message)


def _read() -> dict[str, dict[str, str]]:
    """Messages by case, by section."""
    found: dict[str, dict[str, str]] = {}
    text = MESSAGES.read_text(encoding="utf-8") if MESSAGES.is_file() else ""
    for section in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        name, _, body = section.partition("\n")
        cases = re.findall(r"^### (.+?)\n\n```\n(.*?)\n```$", body, flags=re.MULTILINE | re.DOTALL)
        found[name] = dict(cases)
    return found


def _write(section: str, messages: Mapping[str, str]) -> None:
    with Path(f"{MESSAGES}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        every = {**_read(), section: dict(messages)}
        parts = [HEAD]
        for name in sorted(every):
            parts.append(f"\n## {name}\n")
            parts += [f"\n### {case}\n\n```\n{message}\n```\n" for case, message in every[name].items()]
        MESSAGES.write_text("".join(parts), encoding="utf-8")
    Path(f"{MESSAGES}.lock").unlink(missing_ok=True)
