"""Folders that are said to hold a policy or a judge."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

import sppo.judges
from sppo import policy
from sppo.judges.folder import read_folder
from sppo.judges.pairrm import network_of
from sppo.recipe import Recipe, overridden
from sppo.store import Store
from sppo.train.shape import read_shape

Snapshot = Callable[[str, Mapping[str, Callable[[], object]]], None]
Change = Callable[[Path], object]


def written(name: str, content: str | bytes) -> Change:
    """A change that replaces one file of a folder."""
    data = content if isinstance(content, bytes) else content.encode()
    return lambda folder: (folder / name).write_bytes(data)


def with_keys(name: str, **keys: object) -> Change:
    """A change of some keys of a JSON file."""
    return lambda folder: (folder / name).write_text(json.dumps({**json.loads((folder / name).read_text()), **keys}))


def removed(*names: str) -> Change:
    return lambda folder: [(folder / name).unlink() for name in names]


def cut(name: str) -> Change:
    """A change that leaves the first half of a file."""
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[: (folder / name).stat().st_size // 2])


def renamed(name: str, other: str) -> Change:
    return lambda folder: (folder / name).rename(folder / other)


@pytest.fixture
def changed(tmp_path: Path) -> Callable[[Path, Change], Path]:
    """A copy of a folder with one thing changed."""

    def copy(folder: Path, change: Change) -> Path:
        shutil.rmtree(tmp_path / "model", ignore_errors=True)
        shutil.copytree(folder, tmp_path / "model")
        change(tmp_path / "model")
        return tmp_path / "model"

    return copy


POLICIES = {
    "an empty folder": lambda folder: [path.unlink() for path in folder.iterdir()],
    "no config.json": removed("config.json"),
    "config.json of a list": written("config.json", "[]"),
    "config.json cut": cut("config.json"),
    "config.json deep": written("config.json", "[" * 100_000),
    "config.json not UTF-8": written("config.json", b'{"model_type": "\xff"}'),
    "no weights": removed("model.safetensors"),
    "pickled weights": renamed("model.safetensors", "pytorch_model.bin"),
    "weights cut in half": cut("model.safetensors"),
    "weights that are text": written("model.safetensors", "hello"),
    "an empty weight file": written("model.safetensors", ""),
    "an index of nothing": written("model.safetensors.index.json", "{}"),
    "an index that is a list": written("model.safetensors.index.json", "[]"),
    "an index of a list": written("model.safetensors.index.json", '{"weight_map": ["model.safetensors"]}'),
    "an index of files that are not there": written(
        "model.safetensors.index.json", '{"weight_map": {"w": "model-00001-of-00002.safetensors"}}'
    ),
    "an index that leads elsewhere": written("model.safetensors.index.json", '{"weight_map": {"w": "../w.safetensors"}}'),
    "no tokenizer": removed("tokenizer.json"),
    "a tokenizer that is text": written("tokenizer.json", "hello"),
    "a tokenizer of nothing": written("tokenizer.json", "{}"),
    "a tokenizer cut": cut("tokenizer.json"),
    "a tokenizer's settings that are a list": written("tokenizer_config.json", "[]"),
    "no chat template": removed("chat_template.jinja"),
    "a chat template with an error": written("chat_template.jinja", "{% for message in messages %}"),
    "a chat template that refuses all": written("chat_template.jinja", "{{ raise_exception('no') }}"),
    "a chat template that divides by zero": written("chat_template.jinja", "{{ 1 / 0 }}"),
    "a chat template that reads what is not there": written("chat_template.jinja", "{{ messages[7].content.a }}"),
    "a vocabulary too small": with_keys("config.json", vocab_size=7),
    "an adapter": lambda folder: [renamed("config.json", "adapter_config.json")(folder)],
}


def test_a_folder_that_is_no_policy_is_named_with_what_it_lacks(
    snapshot: Snapshot,
    changed: Callable[[Path, Change], Path],
    random_policy: Callable[[str], Path],
    tiny: Recipe,
    store: Store,
) -> None:
    def of(change: Change) -> Callable[[], object]:
        def make() -> object:
            folder = changed(random_policy("llama"), change)
            return policy.build(store, overridden(tiny, (f"policy.source={{kind: folder, path: {folder}}}",)))

        return make

    cases: dict[str, Callable[[], object]] = {name: of(change) for name, change in POLICIES.items()}
    whole = random_policy("llama")
    cases["a folder that is not there"] = lambda: policy.policy_files(whole / "other")
    cases["a stop token that it does not know"] = lambda: policy.build(
        store, overridden(tiny, (f"policy.source={{kind: folder, path: {whole}}}", "policy.stop_tokens=['<end>']"))
    )
    cases["a shape of another kind of model"] = lambda: read_shape(
        changed(whole, with_keys("config.json", model_type="rwkv")) / "config.json"
    )
    cases["a shape with words for a number"] = lambda: read_shape(
        changed(whole, with_keys("config.json", hidden_size="wide")) / "config.json"
    )
    cases["a shape without heads"] = lambda: read_shape(changed(whole, with_keys("config.json", num_attention_heads=0)))
    snapshot("policies' folders", cases)


JUDGES = {
    "no config.json": removed("config.json"),
    "config.json of a list": written("config.json", "[]"),
    "config.json cut": cut("config.json"),
    "config.json deep": written("config.json", "[" * 100_000),
    "config.json that is a folder": lambda folder: [(folder / "config.json").unlink(), (folder / "config.json").mkdir()],
    "another ranker": with_keys("config.json", ranker_type="scorer"),
    "another encoder": with_keys("config.json", model_type="bert"),
    "an encoder without a width": with_keys("config.json", hidden_size=None),
    "a width in words": with_keys("config.json", hidden_size="32"),
    "no heads": with_keys("config.json", num_attention_heads=0),
    "heads that do not divide": with_keys("config.json", num_attention_heads=5),
    "positions of another kind": with_keys("config.json", pos_att_type=7),
    "tasks in words": with_keys("config.json", n_tasks="one"),
    "no weights": removed("model.safetensors"),
    "pickled weights": renamed("model.safetensors", "pytorch_model.bin"),
    "weights cut in half": cut("model.safetensors"),
    "no tokenizer": removed("tokenizer.json"),
    "a tokenizer that is text": written("tokenizer.json", "hello"),
    "a tokenizer of nothing": written("tokenizer.json", "{}"),
    "a control id of another tokenizer": with_keys("config.json", sep_token_id=99),
}


def test_a_folder_that_is_no_judge_is_named_with_what_it_lacks(
    snapshot: Snapshot, changed: Callable[[Path, Change], Path], random_judge: Path, tiny: Recipe, store: Store
) -> None:
    def of(change: Change) -> Callable[[], object]:
        def make() -> object:
            folder = changed(random_judge, change)
            return network_of(read_folder(folder))

        return make

    def judge(**source: object) -> Callable[[], object]:
        values = {"kind": "pairrm", "source": source, "max_source_tokens": 64, "max_candidate_tokens": 48}
        recipe = overridden(tiny, (f"judge={json.dumps(values)}",))
        return lambda: sppo.judges.build(store, recipe.judge, recipe)

    cases: dict[str, Callable[[], object]] = {name: of(change) for name, change in JUDGES.items()}
    cases["a folder that is not there"] = judge(kind="folder", path=str(random_judge / "other"))
    cases["a bucket with a password"] = judge(kind="folder", path="s3://me:word@bucket/judge")
    cases["a scheme that is none"] = judge(kind="folder", path="gopher://bucket/judge")
    snapshot("judges' folders", cases)
