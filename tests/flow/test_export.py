"""An iteration in bf16: held-out answers come from the export, the next iteration's training from the fp32 weights."""

from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from flows.iteration import sppo_iteration
from flows.status import show_status
from sppo.store import Store
from sppo.verify import verify_run


def test_answers_come_from_the_export_and_training_goes_on_from_fp32(small: dict[str, Any], tmp_path: Path) -> None:
    machine = yaml.safe_load(Path(small["hardware"]).read_text())
    machine["train"]["zero_stage"] = 1  # ZeRO-0 would sum gradients in bf16
    (tmp_path / "one-core.yaml").write_text(yaml.safe_dump(machine))
    arguments = {**small, "hardware": str(tmp_path / "one-core.yaml"), "store": str(tmp_path / "store"), "run": "rounded"}
    arguments["overrides"] = (*small["overrides"], "policy.dtype=bfloat16")
    first = sppo_iteration(**arguments, iteration=1)
    second = sppo_iteration(**arguments, iteration=2)
    store = Store(str(tmp_path / "store"))
    trained, exported = first.opened(store, "train"), first.opened(store, "export")
    assert exported.manifest.inputs == {"policy": trained.digest}
    assert first.opened(store, "sample.1").manifest.inputs["policy"] == exported.digest
    assert second.opened(store, "generate").manifest.inputs["policy"] == exported.digest
    assert second.opened(store, "train").manifest.inputs["policy"] == trained.digest
    assert exported.manifest.counts["bytes"] == pytest.approx(sum(entry.size for entry in trained.manifest.files) / 2, rel=0.2)

    said = StringIO()
    show_status(Console(file=said, width=200), store, "rounded")
    assert "2 of 2 iterations finished" in said.getvalue()
    assert "nothing to do" in said.getvalue()
    assert all(not one.problem for one in verify_run(store, "rounded"))
