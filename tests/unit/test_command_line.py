"""The command line as a person meets it: a process of its own."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from flows.commands.runs import default_run_name

ROOT = Path(__file__).resolve().parents[2]


def sppo(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "flows.command_line", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)


def processor_seconds(*arguments: str) -> tuple[float, str]:
    """What a command costs, in seconds of the processor, for other work may share the machine; and what it prints."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = sppo(*arguments)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout


def test_help_answers_in_half_a_second() -> None:
    assert min(processor_seconds("--help")[0] for _ in range(3)) < 0.5


@pytest.mark.parametrize(
    "arguments",
    [
        ["recipe", "list"],
        ["recipe", "show", "tiny"],
        ["recipe", "diff", "tiny", "gemma-2-9b-it"],
        ["hardware", "show", "cpu"],
        ["status", "nothing", "--store", "STORE"],
        ["verify", "nothing", "--store", "STORE"],
        ["lineage", "nothing", "--store", "STORE"],
        ["preferences", "nothing", "--store", "STORE"],
        ["branch", "nothing", "--at", "1", "--recipe", "tiny", "--run", "other", "--store", "STORE"],
        ["publish", "nothing", "--store", "STORE"],
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


def test_help_groups_the_commands_by_what_they_are_for() -> None:
    shown = sppo("--help").stdout
    places = [shown.index(f" {name} ") for name in ("Run", "resume", "branch", "Look", "status", "lineage", "Serve", "stop")]
    assert places == sorted(places)


def test_the_status_of_a_run_that_was_never_worked_on_is_told_quickly(tmp_path: Path) -> None:
    from sppo.recipe import load_recipe
    from sppo.runs import start
    from sppo.store import Store

    tiny = load_recipe("tiny", ROOT / "deployments" / "recipes")
    start(Store(str(tmp_path)), "demo", tiny, lambda recipe: recipe)
    seconds, said = processor_seconds("status", "demo", "--store", str(tmp_path))
    assert seconds < 1.5
    assert "0 of 3 iterations finished" in said


def test_a_store_is_measured_and_left_as_it_was(tmp_path: Path) -> None:
    done = sppo("store", "bench", str(tmp_path / "store"), "--quick")
    assert done.returncode == 0, done.stderr
    for told in ("large file up", "34 MB", "60 files of 66 kB", "records created", "objects looked up"):
        assert told in done.stdout
    assert [path for path in (tmp_path / "store").rglob("*") if path.is_file()] == []


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
        (["run", "tiny", "--store", "STORE", "--set", "training.global_batch=0"], "training.global_batch is 0"),
        (["run", "tiny", "--store", "STORE", "--set", "generation.responses=1"], "K = 1 leaves nothing to compare"),
        (["run", "tiny", "--store", ""], "the store is empty"),
        (["run", "tiny", "--store", "/proc/sppo-store"], "cannot write"),
        (["run", "tiny", "--store", "ftp://host/store"], "has the scheme 'ftp'"),
        (["evaluate", "nothing", "--store", "STORE"], "no run 'nothing' in the store"),
        (["resume", "nothing", "--store", "STORE"], "no run 'nothing' in the store"),
        (["lineage", "train/0000", "--store", "STORE"], "fits 0 artifacts"),
        (["publish", "nothing", "--store", "STORE"], "no run 'nothing' in the store"),
        (["automations"], "no Prefect server is configured; set PREFECT_API_URL"),
        (["branch", "a", "--at", "1", "--recipe", "tiny", "--run", "b", "--store", "STORE"], "no run 'a' in the store"),
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
