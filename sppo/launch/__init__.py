"""Heavy stages' processes: described as groups, started on some machine, watched, ended, accounted for."""

from sppo.launch.group import HERE, RATE, Group, Launcher, Place, Ranks, combine, keep_accounts, run_group, run_work
from sppo.launch.processes import Worker, halt, run_workers, thread_environment, worker_main, write_config
from sppo.launch.work import WorkRecord

__all__ = [
    "HERE",
    "RATE",
    "Group",
    "Launcher",
    "Place",
    "Ranks",
    "WorkRecord",
    "Worker",
    "combine",
    "halt",
    "keep_accounts",
    "run_group",
    "run_work",
    "run_workers",
    "thread_environment",
    "worker_main",
    "write_config",
]
