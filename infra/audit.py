"""Known vulnerabilities of what constraints.txt pins, by pip-audit: `python infra/audit.py`. Exit status 1 if there are any.

pip-audit runs in an environment of its own, which uv makes and keeps away from ours. Where its database cannot be reached it
says nothing is wrong, or fails: its report is read instead of its word, and without one a line says that nothing was looked at.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from package_sources import pip_settings, uv_options

ROOT = Path(__file__).resolve().parents[1]
PINNED = ROOT / "constraints.txt"
ACCEPTED = ROOT / "infra" / "audit-accepted.txt"
"""One id a line, and behind a # why it does no harm here."""
AUDITOR = "pip-audit>=2.9,<3"
PATIENCE_S = 50.0


def command(report: Path, pinned: Path) -> list[str]:
    """pip-audit on exact versions: nothing is resolved, downloaded or installed for it."""
    uv = Path(sys.executable).parent / "uv"
    sources = uv_options(pip_settings(), "gpu")  # those of plain packages
    options = ["--requirement", str(pinned), "--no-deps", "--disable-pip", "--progress-spinner", "off", "--timeout", "10"]
    return [str(uv), "tool", "run", *sources, "--from", AUDITOR, "pip-audit", *options, "--format", "json", "-o", str(report)]


def exact(text: str) -> str:
    """The lines that pin one version, without markers."""
    return "".join(f"{line}\n" for line in re.findall(r"^[A-Za-z0-9._-]+==[^\s;]+", text, re.MULTILINE))


def accepted(text: str) -> dict[str, str]:
    """Reasons by id. Raises ValueError for an id without one."""
    reasons = {}
    for line in filter(None, (each.strip() for each in text.splitlines())):
        identity, _, reason = line.partition("#")
        if identity.strip() and not reason.strip():
            raise ValueError(f"{ACCEPTED.name}: {identity.strip()} has no reason; expected one behind a #")
        reasons[identity.strip()] = reason.strip()
    return reasons


def verdict(report: Mapping[str, Any] | None, reasons: Mapping[str, str], cause: str = "") -> tuple[str, int]:
    """What to say, and the exit status. report: pip-audit's, None if it wrote none."""
    if report is None:
        return f"audit: skipped, pip-audit or its database cannot be reached ({cause})\n", 0
    looked = [each for each in report["dependencies"] if "vulns" in each]
    if not looked:  # it passes over what it cannot look up, and calls that no known vulnerability
        return verdict(None, reasons, next((each.get("skip_reason", "") for each in report["dependencies"]), "an empty report"))
    known = [(each, one) for each in looked for one in each["vulns"] if not {one["id"], *one["aliases"]} & set(reasons)]
    lines = [
        f"audit: {each['name']} {each['version']} has {one['id']}, mended in {', '.join(one['fix_versions']) or 'no version'}; "
        f"pin another version in constraints.txt, or accept it with a reason in infra/{ACCEPTED.name}"
        for each, one in known
    ]
    unknown = len(report["dependencies"]) - len(looked)
    lines.append(f"audit: {len(looked)} packages looked up, {unknown} unknown to the database, {len(known)} vulnerabilities")
    return "\n".join(lines) + "\n", 1 if known else 0


def audit() -> tuple[str, int]:
    """Run it. What to say, and the exit status."""
    reasons = accepted(ACCEPTED.read_text(encoding="utf-8")) if ACCEPTED.is_file() else {}
    with tempfile.TemporaryDirectory() as folder:
        report, pinned = Path(folder) / "report.json", Path(folder) / "pinned.txt"
        pinned.write_text(exact(PINNED.read_text(encoding="utf-8")), encoding="utf-8")
        environment = {**os.environ, "UV_HTTP_TIMEOUT": "10", "UV_TOOL_DIR": str(Path(folder) / "tools")}
        try:
            done = subprocess.run(
                command(report, pinned), env=environment, capture_output=True, text=True, timeout=PATIENCE_S, cwd=folder
            )
        except (subprocess.TimeoutExpired, FileNotFoundError) as problem:
            return verdict(None, reasons, f"{type(problem).__name__} after {PATIENCE_S:.0f} s")
        if not report.is_file():
            return verdict(None, reasons, _cause(done.stderr))
        return verdict(json.loads(report.read_text(encoding="utf-8")), reasons)


def _cause(said: str) -> str:
    lines: Sequence[str] = [line.strip() for line in said.splitlines() if line.strip()]
    return lines[-1][:200] if lines else "it said nothing"


if __name__ == "__main__":
    words, status = audit()
    sys.stdout.write(words)
    sys.exit(status)
