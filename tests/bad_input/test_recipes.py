"""Recipes, hardware files and overrides that cannot be used."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import yaml

from sppo.errors import HardwareError, RecipeError
from sppo.hardware import load_hardware
from sppo.recipe import Recipe, load_recipe

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT / "deployments" / "recipes"
HARDWARE = ROOT / "deployments" / "hardware"
TINY = (RECIPES / "tiny.yaml").read_text(encoding="utf-8")
ALIASES = "seed: 1\na0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]\n" for level in range(1, 12)
)
"""Twelve lines that stand for 9 ** 12 texts."""
JUDGE = "{kind: pairrm, source: {kind: folder, path: judge}, max_source_tokens: 64, max_candidate_tokens: 48}"

ALL = "selection.responses=all"
Snapshot = Callable[[str, Mapping[str, Callable[[], object]]], None]

OVERRIDES = {
    "an unknown key": "training.etta=4",
    "an unknown key, nothing near": "training.zzz=4",
    "an unknown group of keys": "trainning.eta=4",
    "no value": "nothing",
    "no key": "=4",
    "a key below a number": "training.eta.value=4",
    "a key below a list": "evaluation.judges.0.kind=pairrm",
    "two values in one": "training.eta=4\nseed: 7",
    "text for a number": "training.eta=four",
    "true for a whole number": "training.global_batch=true",
    "a fraction for a whole number": "training.global_batch=8.5",
    "below its range": "training.learning_rate=-1",
    "past its range": "generation.top_p=1.5",
    "nan": "training.eta=.nan",
    "infinite": "training.eta=1e400",
    "a number for a group of keys": "training=4",
    "an unknown choice": "training.optimizer=adam",
    "an unknown kind": "judge.kind=pairrmm",
    "a date": "seed=2026-11-23",
    "a YAML tag that makes objects": "seed=!!python/object/apply:os.system [ls]",
    "binary": "seed=!!binary aGVsbG8=",
    "a digit too many": f"seed={'9' * 5000}",
    "a list in itself": "seed=&a [*a]",
    "a list as key": "seed={[1]: 2}",
    "deep": f"seed={'[' * 3000}{']' * 3000}",
    "a lone surrogate": 'name="\\ud800"',
    "a control character": "name=a\x00b",
    "long text": f"training.loss={'sppo' * 1000}",
    "broken YAML": "judge={kind: [",
    "K = 1": "generation.responses=1",
    "an end past its schedule": "training.stop_epochs=9",
    "a loss that reads two responses, and all selected": "training.loss=dpo",
    "a weight that the loss does not read": "training.forward_kl=1",
    "a judge less": "evaluation.judges=[]",
    "an ensemble of one": f"judge={{kind: ensemble, mean: logits, members: [{{judge: {JUDGE}}}]}}",
    "a name that leaves its folder": "name=../other",
    "a hub id with a space": "policy.source={kind: hub, model: my model}",
    "a server's address with a password": ("judge={kind: endpoint, source: {url: 'https://me:secret@host/v1'}, model: m}"),
    "answers that start alike": "judge={kind: endpoint, source: {url: 'http://host/v1'}, model: m, answers: [Aa, Ab]}",
    "a template without an answer": "judge={kind: endpoint, source: {url: 'http://host/v1'}, model: m, template: '{prompt}'}",
    "a decoding by an unknown name": f"evaluation.alpaca_eval={{judge: {JUDGE}, decoding: mine}}",
    "a harness without tasks": "evaluation.harness=[{tasks: []}]",
    "a harness with a mistyped key": "evaluation.harness=[{tasks: [gsm8k], chats: true}]",
    "a digest that is none": (
        f"evaluation.alpaca_eval={{judge: {JUDGE}, decoding: sppo-mistral-7b, evaluation_set: {{source: a.json, sha256: abc}}}}"
    ),
}


def test_an_override_that_cannot_be_used_is_named_with_what_was_expected(snapshot: Snapshot) -> None:
    def load(override: str) -> Callable[[], Recipe]:
        return lambda: load_recipe("tiny", RECIPES, (ALL, override))

    snapshot("overrides of a recipe (--set)", {name: load(override) for name, override in OVERRIDES.items()})


FILES = {
    "an empty file": "",
    "only white space": " \n\n",
    "a list": "- seed: 1\n",
    "text": "seed\n",
    "a tab": TINY.replace("  source: {kind: world}", "\tsource: {kind: world}", 1),
    "an unclosed brace": TINY.replace("}", "", 1),
    "a key twice": TINY + "seed: 1\n",
    "a missing key": TINY.replace("  eta: 10\n", ""),
    "several things at once": TINY.replace("eta: 10", "eta: ten").replace("seed: 42", "seed: -1\nsead: 2"),
    "aliases of aliases": ALIASES,
    "two documents": TINY + "---\n" + TINY,
    "another file's keys": (HARDWARE / "cpu.yaml").read_text(encoding="utf-8"),
}


def test_a_recipe_file_that_cannot_be_used_is_named_with_what_was_expected(snapshot: Snapshot, tmp_path: Path) -> None:
    def load(content: str | bytes) -> Callable[[], Recipe]:
        def read() -> Recipe:
            data = content if isinstance(content, bytes) else content.encode()
            (tmp_path / "mine.yaml").write_bytes(data)
            return load_recipe("mine", tmp_path)

        return read

    cases: dict[str, Callable[[], object]] = {name: load(content) for name, content in FILES.items()}
    cases["not UTF-8"] = load("name: caf\xe9\n".encode("latin-1"))
    cases["half of a file"] = load(TINY.encode()[:700])
    cases["a PDF"] = load(b"%PDF-1.7\n\x00\x01\x02")
    cases["an unknown name"] = lambda: load_recipe("gemma", RECIPES)
    cases["a name that leaves its folder"] = lambda: load_recipe("../hardware/cpu", RECIPES)
    cases["a path that is not there"] = lambda: load_recipe(f"{tmp_path}/other.yaml", RECIPES)
    cases["a folder"] = lambda: load_recipe(str(tmp_path), RECIPES)
    cases["a path too long"] = lambda: load_recipe("a" * 5000 + ".yaml", RECIPES)
    cases["a path with NUL"] = lambda: load_recipe("a\0.yaml", RECIPES)
    snapshot("recipe files", cases)


HARDWARE_CHANGES = {
    "an unknown key": {"generat": {}},
    "no GPU by that name": {"device": "gpu"},
    "no process": {"rank": {"processes": 0, "tokens_per_batch": 1024, "timeout_s": 60}},
    "all of the memory": {"generate": {"memory_share": 1.0}},
    "an unknown ZeRO stage": {"train": {"zero_stage": 4}},
    "two machines without a pool": {"train": {"nodes": 2}},
    "a pool without a name": {"pool": {"jobs": "workers"}},
    "a number of jobs in words": {"pool": {"name": "gpu", "jobs": "many"}},
    "a time in words": {"rank": {"processes": 1, "tokens_per_batch": 1024, "timeout_s": "1 h"}},
    "a file like itself": {"like": "mine"},
    "a file like none": {"like": "other"},
    "a list of files to be like": {"like": ["cpu"]},
}


def test_a_hardware_file_that_cannot_be_used_is_named_with_what_was_expected(snapshot: Snapshot, tmp_path: Path) -> None:
    base = yaml.safe_load((HARDWARE / "cpu.yaml").read_text(encoding="utf-8"))

    def load(changes: dict[str, object]) -> Callable[[], object]:
        def read() -> object:
            values = {**base, "name": "mine"}
            for key, change in changes.items():
                whole = isinstance(change, dict) and isinstance(base.get(key), dict)
                values[key] = {**base[key], **change} if whole else change  # type: ignore[dict-item]
            (tmp_path / "mine.yaml").write_text(yaml.safe_dump(values))
            return load_hardware("mine", tmp_path)

        return read

    cases: dict[str, Callable[[], object]] = {name: load(changes) for name, changes in HARDWARE_CHANGES.items()}
    cases["an unknown name"] = lambda: load_hardware("laptop", HARDWARE)
    cases["a path too long"] = lambda: load_hardware("a" * 5000 + ".yaml", HARDWARE)
    snapshot("hardware files", cases)


@pytest.mark.parametrize("override", OVERRIDES.values(), ids=OVERRIDES.keys())
def test_the_command_line_says_it_in_one_message_and_ends_with_2(override: str, command: Callable[..., str]) -> None:
    if "\0" in override:
        pytest.skip("no command line can hold NUL")
    written = command("recipe", "show", "tiny", "--set", ALL, "--set", override)
    assert written.startswith("sppo: ")
    assert "secret" not in written


def test_a_file_of_a_users_own_is_refused_by_the_command_line_too(tmp_path: Path, command: Callable[..., str]) -> None:
    (tmp_path / "mine.yaml").write_bytes("name: caf\xe9\n".encode("latin-1"))
    path = str(tmp_path / "mine.yaml")
    assert "is not UTF-8" in command("recipe", "show", path)
    assert "is not UTF-8" in command("hardware", "show", path)
    assert "is not UTF-8" in command("plan", path)


def test_what_is_read_of_yaml_is_what_people_write(tmp_path: Path) -> None:
    judge = "judge: &judge {kind: world-rule}\nother: *judge\n"
    (tmp_path / "mine.yaml").write_text(TINY[: TINY.index("judge:")] + judge + TINY[TINY.index("estimator:") :])
    with pytest.raises(RecipeError, match="unknown key 'other'"):  # an alias is read; it is the key that is not known
        load_recipe("mine", tmp_path)
    (tmp_path / "mine.yaml").write_bytes(b"\xef\xbb\xbf" + TINY.encode())  # as some editors on Windows begin a file
    assert load_recipe("mine", tmp_path).name == "tiny"
    with pytest.raises(HardwareError, match="no hardware"):
        load_hardware("~nobody-by-this-name/x.yaml", HARDWARE)
