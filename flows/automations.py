"""What Prefect does by itself when a run fails, falls silent or loses its worker: automations known by their names.

They act on this project's flows alone, and `install` on these names alone: automations of other names, those that belong to
deployments included, are never touched.
"""

from datetime import timedelta
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState, SendNotification
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification

from sppo.errors import LaunchError

FAILED = "sppo: run failed, notify"
SILENT = "sppo: heartbeat lost, mark crashed"
LOST = "sppo: worker lost, resume"
NEVER_RUNS = "sppo: resumed but never runs, give up"
UNHEARD = "sppo: cancel unheard, mark cancelled"
ORCHESTRATING = ["sppo-iteration", "sppo-run", "sppo-evaluation"]
STAGES = ["sppo-stage"]
RESUMING = "Resuming"
"""Name of the state in which a lost run waits for another worker."""
LOST_AFTER_S = 180
"""Six heartbeats. A server that was away for longer takes runs that went on without it for lost."""
CANCELLED_AFTER_S = 60
"""Twice as long as a worker gives a process between SIGTERM and SIGKILL."""
SETTLED_S = 10
"""The process's own runner and its worker both report a crash, one or two seconds apart: the second report would undo a
resume that answers the first. The least that Prefect allows."""
COUNTED_FOR = timedelta(days=1)
DELIVERIES = 4
"""Of one event at most: a server whose SQLite is busy hands an event to its automations again, up to three times. So counts of
events are rough, and a notification may come twice; labels are exact."""
MOVED_ON = ("Crashed", RESUMING, "Scheduled", "Pending", "Running", "Completed", "Failed", "Cancelling", "Cancelled")
"""States of a run that somebody else has taken care of. Of two crashes the second counts, so the first is one of them."""
TOP_LEVEL: list[ResourceSpecification | dict[str, str | list[str]]] = [
    ResourceSpecification({"prefect.resource.role": "flow", "prefect.resource.name": ORCHESTRATING}),
    # an iteration that a run calls in its own process has none: it goes with its run
    ResourceSpecification({"prefect.resource.role": "deployment"}),
]
"""Flow runs of this project that were started from a deployment, stages excepted: those their parent starts again."""
BODY = """{{ flow_run.name }} is {{ event.resource['prefect.state-name'] }} (attempt {{ event.resource['prefect.run-count'] }})
{{ event.resource['prefect.state-message'] }}
{{ flow_run|ui_url }}"""
"""The state as the event tells it: the flow run may have moved on by the time that this is read."""


def automations(
    notify: UUID | None, resumes: int, lost_after_s: int = LOST_AFTER_S, cancelled_after_s: int = CANCELLED_AFTER_S
) -> list[AutomationCore]:
    """The automations: with `notify`, the id of a notification block, also the one that sends.

    A run that lost its worker is resumed after each of its first `resumes` attempts, by its run count; then it stays Crashed.
    One that crashes before it runs, for want of a package, keeps its run count for ever: that one is made Failed."""
    wanted = [_silent(lost_after_s), _unheard(cancelled_after_s)]
    if resumes:
        wanted += [_lost(resumes), _never_runs(resumes)]
    if notify:
        wanted.append(_failed(notify))
    return wanted


def install(
    client: SyncPrefectClient,
    notify: str | None,
    resumes: int,
    lost_after_s: int = LOST_AFTER_S,
    cancelled_after_s: int = CANCELLED_AFTER_S,
) -> list[str]:
    """Create the automations, or update those of the same name; with 0 resumes, remove those that resume. Their names.

    `notify`: a notification block as TYPE/NAME, such as slack-webhook/team; without one, an automation that notifies stays as
    it is. Raises LaunchError if there is no such block."""
    wanted = automations(_block_id(client, notify) if notify else None, resumes, lost_after_s, cancelled_after_s)
    for automation in wanted:
        there = client.read_automations_by_name(automation.name)
        if there:
            client.update_automation(there[0].id, automation)
        else:
            client.create_automation(automation)
    for name in () if resumes else (LOST, NEVER_RUNS):
        for automation in client.read_automations_by_name(name):
            client.delete_automation(automation.id)
    return [automation.name for automation in wanted]


def _failed(block: UUID) -> AutomationCore:
    return AutomationCore(
        name=FAILED,
        description="A run failed, crashed, or was stopped by a gate: says which, why and where.",
        trigger=EventTrigger(
            expect={"prefect.flow-run.*"},
            match={"prefect.resource.id": "prefect.flow-run.*", "prefect.state-type": ["FAILED", "CRASHED"]},
            match_related=TOP_LEVEL,
            for_each={"prefect.resource.id"},
            posture=Posture.Reactive,
            threshold=1,
        ),
        actions=[SendNotification(block_document_id=block, subject="sppo: {{ flow_run.name }} failed", body=BODY)],
    )


def _silent(lost_after_s: int) -> AutomationCore:
    return AutomationCore(
        name=SILENT,
        description="A flow run gave no sign of life: its process and its worker are gone, and nobody else would say so.",
        trigger=EventTrigger(
            after={"prefect.flow-run.heartbeat"},
            expect={"prefect.flow-run.*"},  # the next heartbeat, or any change of state
            match={"prefect.resource.id": "prefect.flow-run.*"},
            match_related=ResourceSpecification(
                {"prefect.resource.role": "flow", "prefect.resource.name": [*ORCHESTRATING, *STAGES]}
            ),
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=lost_after_s),
        ),
        actions=[
            ChangeFlowRunState(
                name=None, state=StateType.CRASHED, force=False, message=f"No sign of life for {lost_after_s} s."
            )
        ],
    )


def _unheard(cancelled_after_s: int) -> AutomationCore:
    return AutomationCore(
        name=UNHEARD,
        description="A cancelled run's worker was lost, or could not tell the server: it would be Cancelling for ever, and "
        "keep its deployment's other runs waiting.",
        trigger=EventTrigger(
            after={"prefect.flow-run.Cancelling"},
            expect={"prefect.flow-run.*"},  # any change of state
            match={"prefect.resource.id": "prefect.flow-run.*"},
            match_related=ResourceSpecification(
                {"prefect.resource.role": "flow", "prefect.resource.name": [*ORCHESTRATING, *STAGES]}
            ),
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=cancelled_after_s),
        ),
        actions=[
            ChangeFlowRunState(
                name=None,
                state=StateType.CANCELLED,
                force=False,
                message=f"Nobody said that it ended, for {cancelled_after_s} s.",
            )
        ],
    )


def _lost(resumes: int) -> AutomationCore:
    return AutomationCore(
        name=LOST,
        description="A run whose worker was lost starts again, on any worker; what is committed is not done again.",
        trigger=EventTrigger(
            after={"prefect.flow-run.Crashed"},
            expect={f"prefect.flow-run.{state}" for state in MOVED_ON},
            match={
                "prefect.resource.id": "prefect.flow-run.*",
                "prefect.run-count": [str(attempt) for attempt in range(1, resumes + 1)],
            },
            match_related=TOP_LEVEL,
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=SETTLED_S),
        ),
        actions=[ChangeFlowRunState(name=RESUMING, state=StateType.SCHEDULED, force=False, message="Its worker was lost.")],
    )


def _never_runs(resumes: int) -> AutomationCore:
    return AutomationCore(
        name=NEVER_RUNS,
        description="A run that was resumed again and again and never came to run: something is wrong with the workers.",
        trigger=EventTrigger(
            expect={f"prefect.flow-run.{RESUMING}"},
            match={"prefect.resource.id": "prefect.flow-run.*"},
            match_related=TOP_LEVEL,
            for_each={"prefect.resource.id"},
            posture=Posture.Reactive,
            threshold=DELIVERIES * resumes + 1,
            within=COUNTED_FOR,
        ),
        actions=[
            ChangeFlowRunState(
                name=None,
                state=StateType.FAILED,
                force=False,
                message="Resumed again and again, and it never ran: look at the logs of its workers, then Retry.",
            )
        ],
    )


def _block_id(client: SyncPrefectClient, name: str) -> UUID:
    kind, _, own = name.partition("/")
    for document in client.read_block_documents(limit=200):
        if document.name == own and document.block_type and document.block_type.slug == kind:
            return document.id
    raise LaunchError(
        f"notification block {name!r} is not on the Prefect server; expected TYPE/NAME of one that is, such as "
        "slack-webhook/team: make it in the UI (Blocks), or see `prefect block ls`"
    )
