"""A run in a terminal that is killed takes Prefect's temporary server with it, which Prefect would leave behind."""

import os
import subprocess
import sys
import time
from pathlib import Path

from flows import background

RUN = """
import sys, time
from flows.server import prefect_server

with prefect_server():
    from prefect.client.orchestration import get_client
    with get_client(sync_client=True) as client:
        client.hello()
    from flows import guard
    import os
    print(os.environ[guard.MARK], flush=True)
    time.sleep(300)
"""


def test_the_temporary_server_of_a_run_that_is_killed_ends(tmp_path: Path) -> None:
    from flows import guard

    plain = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    environment = {**plain, "PREFECT_HOME": str(tmp_path)}
    run = subprocess.Popen([sys.executable, "-c", RUN], stdout=subprocess.PIPE, text=True, env=environment)
    assert run.stdout is not None
    word = run.stdout.readline().strip()
    servers = [process for process in background.bearing(guard.MARK, word) if "create_app" in " ".join(process.cmdline())]
    assert len(servers) == 1
    run.kill()
    run.wait()
    deadline = time.monotonic() + 60
    while background.bearing(guard.MARK, word):
        assert time.monotonic() < deadline
        time.sleep(0.1)
