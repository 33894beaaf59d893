"""What the launcher of a pool does about children of other runs, on a real server without any worker."""

import uuid
from typing import Any

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.states import Cancelled, Cancelling, Running

from flows.children import CHILD, tag
from flows.pool import PoolLauncher
from sppo.hardware import Pool
from sppo.launch import Group
from sppo.store import Store

FINGERPRINT = "d" * 64
GROUP = Group(
    stage="rank", fingerprint=FINGERPRINT, number=1, of=2, module="sppo.workers.rank", works=({},), device="cpu",
    devices_each=1, threads=1, timeout_s=60,
)  # fmt: skip
POOL = PoolLauncher(Pool(name="gpu", jobs=3, lost_after_s=1), "demo", "a-store")


@pytest.fixture
def client(server: str) -> Any:
    with get_client(sync_client=True) as found:
        yield found


def flow_run(client: SyncPrefectClient, parent: str | None, state: Any = None) -> Any:
    """A flow run that works on the group's artifact for a parent."""
    from flows.stage import sppo_stage

    parameters = {"store": "a-store", "job": f"rank/{FINGERPRINT}/work/1-of-2.job.json", "parent": parent}
    tags = [CHILD, tag("rank", FINGERPRINT)]
    return client.create_flow_run(sppo_stage, parameters=parameters, tags=tags, state=state)


def test_an_artifact_under_way_keeps_the_number_of_jobs_it_was_shared_out_among(client: SyncPrefectClient) -> None:
    assert POOL.machines("rank", FINGERPRINT) == 3
    child = flow_run(client, None, Running())
    assert POOL.machines("rank", FINGERPRINT) == 2
    client.set_flow_run_state(child.id, Cancelled(), force=True)


def test_a_child_of_another_run_that_gives_no_sign_of_life_is_not_waited_for_for_ever(
    client: SyncPrefectClient, store: Store
) -> None:
    child = flow_run(client, None, Running())
    client.set_flow_run_state(child.id, Cancelling(), force=True)  # and its worker is gone
    POOL._wait_for_others(client, GROUP, store, str(uuid.uuid4()))
    state = client.read_flow_run(child.id).state
    assert state is not None
    assert (state.type.value, state.message) == ("CRASHED", "no sign of life")


def test_a_child_that_waits_for_a_worker_and_that_nobody_wants_any_more_is_cancelled(
    client: SyncPrefectClient, store: Store
) -> None:
    from prefect.states import Completed, Scheduled

    parent = flow_run(client, None, Completed())
    child = flow_run(client, str(parent.id), Scheduled())
    POOL._wait_for_others(client, GROUP, store, str(uuid.uuid4()))
    state = client.read_flow_run(child.id).state
    assert state is not None
    assert (state.type.value, state.message) == ("CANCELLED", "the run that it works for is over")
