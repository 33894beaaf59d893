"""A training rank: `python -m sppo.workers.train run.json`; RANK, WORLD_SIZE and MASTER_* come from the environment."""

import json
import logging
import sys
from pathlib import Path

from sppo.configuration import validate
from sppo.errors import SppoError, TrainError
from sppo.train.engine import prepare_environment
from sppo.train.run import TrainRun

log = logging.getLogger(__name__)


def main(config: str) -> int:
    """Train as run.json says; the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    run = validate(TrainRun, json.loads(Path(config).read_text(encoding="utf-8")), config, TrainError)
    prepare_environment(run.device)
    from sppo.train.loop import train

    try:
        train(run)
    except SppoError as error:
        log.error("%s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
