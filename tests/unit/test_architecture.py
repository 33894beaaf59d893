"""The shape of the project: the core knows no orchestrator, and importing it loads no engine."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CORE = sorted((ROOT / "sppo").rglob("*.py"))
SHELL = {"prefect", "flows", "tasks"}


def _imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("path", CORE, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_core_imports_no_orchestrator(path: Path) -> None:
    assert not _imported(path) & SHELL


def test_importing_every_stage_loads_neither_torch_nor_vllm_nor_prefect() -> None:
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in CORE
        if "workers" not in path.parts and path.name != "__main__.py"
    ]
    code = (
        "import importlib, sys\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        "loaded = {'torch', 'vllm', 'transformers', 'deepspeed', 'prefect', 'datasets'} & set(sys.modules)\n"
        "sys.exit(', '.join(sorted(loaded)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_tasks_are_short_and_do_no_work_of_their_own() -> None:
    for path in (ROOT / "tasks").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                assert length < 40, f"{path.name}: {node.name} has {length} lines"
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id != "open", f"{path.name} opens a file"


def test_no_module_pickles_or_runs_a_shell_string() -> None:
    for path in [*CORE, *(ROOT / "tasks").glob("*.py"), *(ROOT / "flows").glob("*.py")]:
        assert not _imported(path) & {"pickle", "cloudpickle", "dill", "joblib"}, path
        assert "shell=True" not in path.read_text(), path
