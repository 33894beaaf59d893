"""A training rank: `python -m sppo.workers.train run.json`; RANK, WORLD_SIZE and MASTER_* come from the environment."""

import logging
from pathlib import Path

from sppo.launch import worker_main
from sppo.train.engine import prepare_environment
from sppo.train.run import TrainRun


def work(config: Path) -> None:
    """Train as run.json says."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    run = TrainRun.model_validate_json(config.read_text(encoding="utf-8"))
    prepare_environment(run.device)
    from sppo.train.loop import train

    train(run)


if __name__ == "__main__":
    worker_main(work)
