"""Nothing is unpickled and no text is run: by the source, and by a planted checkpoint; by a real run in test_hostile_run.py."""

import ast
import os
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sppo.errors import CorruptArtifactError
from sppo.launch import Place
from sppo.store import Store
from sppo.train import checkpoints

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [path for part in ("sppo", "tasks", "flows", "infra", "docs") for path in sorted((ROOT / part).rglob("*.py"))]
PICKLERS = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "jsonpickle"}
RUNNERS = {"eval", "exec", "compile", "__import__"}
SHELLS = {("os", "system"), ("os", "popen"), ("subprocess", "getoutput"), ("subprocess", "getstatusoutput")}


# --- the source


def offences(source: str) -> list[str]:
    """What a module does that could run bytes or text as code, such as `4: eval`."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            found += [f"{node.lineno}: {name}" for name in names if name.split(".")[0] in PICKLERS]
        elif isinstance(node, ast.Call):
            found += [f"{node.lineno}: {what}" for what in _called(node)]
    return found


def _called(node: ast.Call) -> list[str]:
    told = {word.arg: ast.unparse(word.value) for word in node.keywords if word.arg}
    name = ast.unparse(node.func)
    owner, _, method = name.rpartition(".")
    refused = {
        name: not owner and name in RUNNERS,
        "a shell": told.get("shell", "False") != "False" or (owner, method) in SHELLS,
        "torch.load": name == "torch.load" and told.get("weights_only") != "True",
        "allow_pickle": told.get("allow_pickle", "False") != "False",
        "yaml": owner == "yaml"
        and method in ("load", "load_all", "unsafe_load", "full_load")
        and told.get("Loader") != "_Loader",
        "remote code": "trust_remote_code" in told and told["trust_remote_code"] not in ("False", "code"),
    }
    # transformers asks on the terminal where nothing is said
    silent = method == "from_pretrained" and owner.startswith("Auto") and "trust_remote_code" not in told
    return [what for what, is_refused in refused.items() if is_refused] + (["trust_remote_code is not said"] if silent else [])


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import pickle", ["1: pickle"]),
        ("from joblib.externals import x", ["1: joblib.externals"]),
        ("torch.load(path)", ["1: torch.load"]),
        ("torch.load(path, weights_only=False)", ["1: torch.load"]),
        ("torch.load(path, weights_only=True)", []),
        ("np.load(path, allow_pickle=True)", ["1: allow_pickle"]),
        ("yaml.load(text, Loader=yaml.Loader)", ["1: yaml"]),
        ("yaml.safe_load(text)", []),
        ("eval(text)", ["1: eval"]),
        ("model.eval()", []),
        ("subprocess.run(line, shell=True)", ["1: a shell"]),
        ("os.system(line)", ["1: a shell"]),
        ("AutoConfig.from_pretrained(folder)", ["1: trust_remote_code is not said"]),
        ("AutoConfig.from_pretrained(folder, trust_remote_code=True)", ["1: remote code"]),
    ],
)
def test_the_search_finds_what_it_looks_for(source: str, found: list[str]) -> None:
    assert offences(source) == found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_unpickles_evaluates_text_or_starts_a_shell(path: Path) -> None:
    assert offences(path.read_text(encoding="utf-8")) == []


def test_the_one_loader_of_yaml_makes_plain_values_only() -> None:
    from sppo.configuration import parse_yaml
    from sppo.errors import RecipeError

    with pytest.raises(RecipeError, match=r"python/object/apply:os\.system.*is a type that is not read here"):
        parse_yaml("a: !!python/object/apply:os.system [true]", "recipe.yaml", RecipeError)


# --- a checkpoint's shards


class SideEffect:
    """Pickled, an object that makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.path),))


def committed(store: Store, folder: Path) -> Path:
    """A checkpoint of one shard and its metrics as a part; gives the object that holds the shard."""
    shard, metrics = folder / "mp_rank_00_model_states.pt", folder / checkpoints.METRICS
    torch.save({"module": {}, "padding": torch.zeros(4096)}, shard)
    metrics.write_text("{}\n")
    with store.workspace("train", "a" * 64) as workspace:
        record = workspace.commit_part("checkpoint-000001-ranks1-zero0", [shard, metrics])
    entry = next(each for each in record.files if each.name == shard.name)
    path = store.backend.local_path(entry.key("train", "a" * 64))
    assert path is not None
    return path


def resumed(store: Store, folder: Path) -> Path | None:
    """What training does first when it continues from that checkpoint."""
    run: Any = SimpleNamespace(resume_from="checkpoint-000001-ranks1-zero0")
    place = Place(store=store.url, scratch=store.scratch, folder=folder, index=0)
    with store.workspace("train", "a" * 64) as workspace:
        return checkpoints.fetch(place, run, workspace)


def test_a_shard_that_was_exchanged_for_a_pickle_of_the_same_size_is_never_opened(store: Store, tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    shard = committed(store, tmp_path / "shards")
    planted = pickle.dumps(SideEffect(tmp_path / "happened"))
    shard.write_bytes(planted + b"\0" * (shard.stat().st_size - len(planted)))
    with pytest.raises(CorruptArtifactError, match=r"mp_rank_00_model_states\.pt has sha256 [0-9a-f]{16}, expected"):
        resumed(store, tmp_path / "work")
    assert not (tmp_path / "happened").exists()
    with pytest.raises(RuntimeError, match="Invalid magic number"):
        torch.load(shard, weights_only=False)  # as DeepSpeed opens one: the plant is live
    assert (tmp_path / "happened").exists()


def test_a_shard_that_matches_its_record_is_handed_to_deepspeed(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shards").mkdir()
    committed(store, tmp_path / "shards")
    monkeypatch.setattr(torch.distributed, "barrier", lambda: None)  # there is one rank, and no group of them
    folder = resumed(store, tmp_path / "work")
    assert folder is not None
    assert {path.name for path in folder.iterdir()} == {"mp_rank_00_model_states.pt", "metrics.jsonl"}
