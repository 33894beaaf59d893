"""A judge that rewards length alone, followed for an iteration of the tiny world: the gates stop the run."""

from pathlib import Path
from typing import Any

import pytest

from flows.iteration import sppo_iteration
from sppo.check import read_verdict
from sppo.errors import GateError
from sppo.runs import read_iteration
from sppo.store import Store


@pytest.fixture
def of_length(length_judge: str) -> str:
    """The recipe entry of that judge."""
    source = f"{{url: '{length_judge}', concurrency: 4}}"
    return f"{{kind: endpoint, source: {source}, model: length, template: '{{prompt}}|{{first}}|{{second}}'}}"


def test_a_run_that_follows_a_judge_of_length_alone_is_stopped_after_its_first_iteration(
    small: dict[str, Any], of_length: str, tmp_path: Path
) -> None:
    overrides = (
        "generation.engine=transformers",
        "generation.responses=2",
        "prompts.source={kind: world, train_prompts: 64, test_prompts: 48}",
        "evaluation.sampling.responses=2",
        f"judge={of_length}",
        f"evaluation.judges=[{of_length}, {{kind: world-rule}}]",
        "evaluation.resamples=1000",
    )
    store = str(tmp_path / "store")
    with pytest.raises(GateError, match=r"run longer stops after iteration 1: .*independent_judge: .*world-rule"):
        sppo_iteration(recipe="tiny", hardware=small["hardware"], run="longer", iteration=1, store=store, overrides=overrides)

    opened = Store(store)
    verdict = read_verdict(read_iteration(opened, "longer", 1).opened(opened, "check"))
    assert verdict is not None
    decisions = {decision.gate: decision for decision in verdict.decisions}
    assert decisions["gain"].passed  # the judge that training followed is pleased
    assert not decisions["independent_judge"].passed
