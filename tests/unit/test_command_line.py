"""The command line as a person meets it: a process of its own."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from flows.command_line import default_run_name

ROOT = Path(__file__).resolve().parents[2]


def sppo(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "flows.command_line", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)


def test_help_answers_in_half_a_second() -> None:
    seconds = []
    for _ in range(3):
        started = time.process_time(), time.perf_counter()
        assert sppo("--help").returncode == 0
        seconds.append(time.perf_counter() - started[1])
    assert min(seconds) < 0.5


@pytest.mark.parametrize(
    "arguments",
    [
        ["recipe", "list"],
        ["recipe", "show", "tiny"],
        ["recipe", "diff", "tiny", "gemma-2-9b-it"],
        ["hardware", "show", "cpu"],
        ["status", "nothing", "--store", "STORE"],
        ["verify", "nothing", "--store", "STORE"],
    ],
    ids=" ".join,
)
def test_commands_that_start_nothing_load_neither_prefect_nor_an_engine(arguments: list[str], tmp_path: Path) -> None:
    arguments = [str(tmp_path) if each == "STORE" else each for each in arguments]
    code = (
        "import sys\n"
        f"sys.argv = ['sppo', *{arguments!r}]\n"
        "from flows.command_line import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "loaded = {'prefect', 'torch', 'vllm', 'transformers', 'deepspeed'} & set(sys.modules)\n"
        "sys.exit(', '.join(sorted(loaded)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 0, done.stderr


def test_a_recipe_is_shown_with_every_value_and_the_fingerprint_of_every_stage() -> None:
    shown = sppo("recipe", "show", "gemma-2-9b-it", "--set", "training.eta=500").stdout
    for told in ("eta", "500", "google/gemma-2-9b-it", "<end_of_turn>", "2048", "plan"):
        assert told in shown
    for stage in ("policy", "judge", "split", "generate", "rank", "estimate", "train", "sample", "duel", "evaluate"):
        assert f"\n{stage} " in shown


def test_a_difference_names_the_values_and_the_stages_it_recomputes(tmp_path: Path) -> None:
    tiny = (ROOT / "deployments" / "recipes" / "tiny.yaml").read_text()
    (tmp_path / "other.yaml").write_text(
        tiny.replace("rule: pairwise", "rule: bradley_terry").replace("name: tiny", "name: other")
    )
    shown = sppo("recipe", "diff", "tiny", str(tmp_path / "other.yaml")).stdout
    assert "estimator.rule" in shown
    assert "recomputed  estimate train sample duel evaluate" in shown
    assert "shared      policy judge split generate rank" in shown


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["recipe", "show", "tyni"], "no recipe 'tyni'"),
        (["recipe", "show", "tiny", "--set", "training.etaa=4"], "unknown key 'training.etaa'; did you mean 'eta'?"),
        (["hardware", "show", "tpu"], "no hardware 'tpu'"),
        (["status", "../x", "--store", "STORE"], "it holds a slash"),
        (["verify", "nothing", "--store", "STORE"], "no run 'nothing' in the store"),
        (["run", "tiny", "--store", "STORE", "--run", ".."], "it starts with a dot"),
        (["run", "tiny", "--store", "STORE", "--run", "Tiny"], "it has upper case"),
        (["run", "tiny", "--store", "STORE", "--iterations", "0"], "iteration 0 of recipe tiny; expected 1 to 3"),
        (["run", "tiny", "--store", "STORE", "--iterations", "4"], "iteration 4 of recipe tiny; expected 1 to 3"),
        (["run", "tiny", "--store", "STORE", "--hardware", "tpu"], "no hardware 'tpu'"),
        (["run", "tiny", "--store", "STORE", "--set", "training.global_batch=15"], "does not divide"),
        (["run", "tiny", "--store", "STORE", "--set", "generation.responses=1"], "K = 1 leaves nothing to compare"),
        (["run", "tiny", "--store", ""], "the store is empty"),
        (["run", "tiny", "--store", "/proc/sppo-store"], "cannot write"),
        (["run", "tiny", "--store", "ftp://host/store"], "has the scheme 'ftp'"),
        (["evaluate", "nothing", "--store", "STORE"], "no run 'nothing' in the store"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_plain_message_and_exit_status_2(arguments: list[str], told: str, tmp_path: Path) -> None:
    done = sppo(*(str(tmp_path) if each == "STORE" else each for each in arguments))
    assert done.returncode == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_run_with_other_values_gets_a_name_of_its_own() -> None:
    assert default_run_name("tiny", []) == "tiny"
    assert default_run_name("my recipes/Big One.yaml", []) == "big-one"
    changed = default_run_name("tiny", ["training.eta=8", "seed=1"])
    assert changed == default_run_name("tiny", ["seed=1", "training.eta=8"])
    assert changed.startswith("tiny-")
    assert len(changed) == len("tiny-") + 6
