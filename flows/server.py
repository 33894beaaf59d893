"""Which Prefect server an in-process run reports to: the one that is configured, or a temporary one of its own."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager

from flows.guard import guard_children
from sppo.secrecy import without_secrets

EVERYWHERE = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_LOGGING_COLORS": "false",
    "PREFECT_LOGGING_EXTRA_LOGGERS": "sppo,flows,tasks",
}
RECORDER = {
    # One write a task event, as shipped, locks SQLite against the flow itself: 40 tasks that do nothing took 6 to 8 s, so 1.6.
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "200",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_READ_BATCH_SIZE": "200",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "2",
}
"""Of a server on SQLite."""
TEMPORARY = {
    "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true",
    "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": "http://127.0.0.1",  # nobody looks at it in a browser
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",  # 20 is too few on busy cores
    "PREFECT_LOGGING_TO_API_ENABLED": "false",  # nobody reads them there: the log file has them
    "PREFECT_SERVER_SERVICES_SCHEDULER_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_LATE_RUNS_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_TRIGGERS_ENABLED": "false",
    **RECORDER,
}


@contextmanager
def prefect_server() -> Iterator[str]:
    """Prefect, ready for flows; yields in words which server they report to.

    A configured PREFECT_API_URL (environment or profile) is used as it is. Otherwise Prefect starts a server for this
    process, on loopback and behind a password of its own: without one it would answer any page in the person's browser."""
    _set_where_unset(EVERYWHERE)
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, get_current_settings, temporary_settings

    url = get_current_settings().api.url
    if url is not None:
        yield without_secrets(f"the Prefect server at {url}")
        return
    password = f"sppo:{secrets.token_urlsafe(24)}"
    _set_where_unset({**TEMPORARY, "PREFECT_SERVER_API_AUTH_STRING": password, "PREFECT_API_AUTH_STRING": password})
    from prefect.context import refresh_global_settings_context

    refresh_global_settings_context()
    guard_children()
    # Nobody watches heartbeats here, and ending their thread costs a second a flow.
    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        yield "a temporary Prefect server"


def _set_where_unset(values: dict[str, str]) -> None:
    for name, value in values.items():
        os.environ.setdefault(name, value)
