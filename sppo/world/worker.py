"""`python -m sppo.world.worker run.json`: one fit of the tiny world in a process of its own."""

import json
from pathlib import Path

from sppo.launch import worker_main
from sppo.progress import ProgressFile
from sppo.world.fitting import Fit


def main(config: Path) -> None:
    """Do the fit that a run.json describes, and leave its figures beside it."""
    import torch

    fit = Fit.model_validate_json(config.read_text(encoding="utf-8"))
    if fit.what == "policy":
        from sppo.world.policy import make
    else:
        from sppo.world.judge import make
    torch.use_deterministic_algorithms(True)
    torch.set_flush_denormal(True)  # Adam's moments of words not seen for long are denormal, and slow
    figures = make(Path(fit.folder), fit.seed, fit.steps, ProgressFile(Path(fit.progress)))
    Path(fit.metrics).write_text(json.dumps(figures), encoding="utf-8")


if __name__ == "__main__":
    worker_main(main)
