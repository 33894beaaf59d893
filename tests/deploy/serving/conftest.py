"""A laptop that serves itself, with a folder as its store: to see what `serve`, `stop` and the automations do."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from prefect.client.orchestration import SyncPrefectClient

from flows.environment import port_is_free
from flows.serving import Served, serve, stop

PROBE = '''
import os, time
from pathlib import Path
from prefect import flow

@flow(name="sppo-run", persist_result=False)
def sppo_run(folder: str, patient: int) -> int:
    """Leaves its process id in a new file of `folder`, and sleeps in the first `patient` attempts."""
    attempt = len(list(Path(folder).glob("*"))) + 1
    (Path(folder) / str(attempt)).write_text(str(os.getpid()))
    if attempt <= patient:
        time.sleep(600)
    return attempt
'''


@dataclass(frozen=True)
class Laptop:
    """What the tests are told of it."""

    root: Path
    served: Served
    """As the first call of `serve` gave it."""

    def client(self) -> SyncPrefectClient:
        """Talks to its server."""
        return SyncPrefectClient(f"{self.served.url}/api", auth_string=self.served.password)


@pytest.fixture(scope="package")
def laptop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laptop]:
    root = tmp_path_factory.mktemp("laptop")
    (root / "probe.py").write_text(PROBE)  # a flow that workers can import
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("PREFECT_") or name == "SPPO_STORE"]:
            patch.delenv(name)
        patch.setenv("PYTHONPATH", str(root))
        # not the first free one from 4200: another test process may look for one at the same moment
        served = serve(
            root, gpu_workers=2, port=next(port for port in range(15000 + os.getpid() % 1000 * 10, 32768) if port_is_free(port))
        )
        try:
            yield Laptop(root, served)
        finally:
            stop(root)
