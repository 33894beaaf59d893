"""A training rank: `python -m sppo.workers.train run.json`; RANK, WORLD_SIZE and MASTER_* come from the environment."""

import logging
import warnings

from sppo.launch import Place, run_work
from sppo.train.engine import prepare_environment
from sppo.train.run import TrainRun


def work(place: Place, run: TrainRun) -> None:
    """Train as run.json says."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    # DeepSpeed calls torch by names of yesterday, thousands of times: nobody who reads this log can change that
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    prepare_environment(run.device)
    from sppo.train.loop import train

    train(place, run)


if __name__ == "__main__":
    run_work(TrainRun, work)
