"""One heavy stage's group of processes, on the machine of the worker that runs this flow."""

import logging

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Cancelled

from flows.jobs import read_job
from flows.preparation import opened_store, tell_stages
from flows.watch import watched_run
from sppo.errors import StoppedError
from sppo.launch import run_group
from tasks.reporting import report

log = logging.getLogger(__name__)


@flow(name="sppo-stage", persist_result=False, result_serializer="json")
def sppo_stage(store: str, job: str, parent: str | None = None) -> "State[None] | None":
    """Run the group that a job describes. What it commits is found by the run that asked for it, `parent`, and by any other.

    store: as flows name it; a worker finds its own credentials. job: a key in the store."""
    tell_stages()
    opened = opened_store(store)
    group = read_job(opened, job)
    if group is None:
        log.info("%s is gone: what it was to make has been made", job)
        return None
    try:
        with watched_run(parent):
            run_group(group, opened, str(flow_run.id), report)
    except StoppedError as error:
        return Cancelled(message=str(error))
    return None
