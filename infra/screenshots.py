"""Pictures of the Prefect UI for docs/ui/: served here, two iterations run to their end as deployments, pages in Chromium.

On an instance of its own, served for the time it takes: the recipe `tiny` needs a few minutes. Given the folder of one that is
served already, runs that have finished there are not run again."""

import argparse
import base64
import json
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterName
from prefect.client.schemas.objects import FlowRun
from rich.console import Console
from rich.text import Text
from websockets.sync.client import ClientConnection, connect

from flows.serving import PROJECT, Served, serve, stop
from sppo.errors import LaunchError

CHROMIUM = "/usr/bin/chromium"
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
)
WIDTH = 1400
ITERATIONS = ("iter1", "iter2")
LOADED_S = 60.0
SETTLED_S = 6.0
"""The graph of a run moves into its place."""
FINISHED_S = 3600.0
POLL_S = 0.2


@dataclass(frozen=True)
class Picture:
    """A page and what has to stand on it before it is whole."""

    name: str
    path: str
    """Below the UI's address."""
    words: tuple[str, ...]
    height: int
    """Pixels."""


class Browser:
    """A Chromium of its own, driven by its DevTools protocol."""

    def __init__(self, port: int) -> None:
        pages = [each for each in httpx.get(f"http://127.0.0.1:{port}/json").json() if each["type"] == "page"]
        self._socket: ClientConnection = connect(pages[0]["webSocketDebuggerUrl"], max_size=None)
        self._asked = 0
        for part in ("Page", "Runtime"):
            self.ask(f"{part}.enable")

    def ask(self, method: str, **parameters: object) -> dict[str, Any]:
        """One command and its answer. Raises LaunchError if Chromium refuses it."""
        self._asked += 1
        self._socket.send(json.dumps({"id": self._asked, "method": method, "params": parameters}))
        while (answer := json.loads(self._socket.recv())).get("id") != self._asked:
            pass  # events
        if "error" in answer:
            raise LaunchError(f"chromium refused {method}: {answer['error']['message']}; expected a version that knows it")
        return dict(answer["result"])

    def log_in(self, password: str) -> None:
        """Where the UI's own dialogue keeps the password."""
        kept = base64.b64encode(password.encode()).decode()
        source = f"localStorage.setItem('prefect-password', {json.dumps(kept)})"
        self.ask("Page.addScriptToEvaluateOnNewDocument", source=source)

    def take(self, url: str, picture: Picture) -> bytes:
        """The page as PNG. Raises LaunchError if its words do not appear."""
        size = {"width": WIDTH, "height": picture.height, "deviceScaleFactor": 1, "mobile": False}
        self.ask("Emulation.setDeviceMetricsOverride", **size)
        self.ask("Page.navigate", url=f"{url}{picture.path}")
        deadline = time.monotonic() + LOADED_S
        while missing := [word for word in picture.words if word not in (shown := self._text())]:
            if time.monotonic() > deadline:
                raise LaunchError(
                    f"{url}{picture.path} does not show {missing[0]!r} after {LOADED_S:.0f} s, but:\n{shown[:2000]}"
                )
            time.sleep(POLL_S)
        time.sleep(SETTLED_S)
        return base64.b64decode(self.ask("Page.captureScreenshot", format="png")["data"])

    def _text(self) -> str:
        asked = self.ask("Runtime.evaluate", expression="document.body ? document.body.innerText : ''", returnByValue=True)
        return str(asked["result"].get("value", ""))


@contextmanager
def browser() -> Iterator[Browser]:
    """A new Chromium, without a past, for a while."""
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as folder:
        command = [CHROMIUM, *FLAGS, f"--user-data-dir={folder}", "about:blank"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            note = Path(folder) / "DevToolsActivePort"
            deadline = time.monotonic() + LOADED_S
            while not (note.is_file() and note.read_text(encoding="utf-8").count("\n")):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise LaunchError(f"{CHROMIUM} did not start; expected it to be installed")
                time.sleep(POLL_S)
            yield Browser(int(note.read_text(encoding="utf-8").split()[0]))
        finally:
            process.terminate()
            process.wait()


def finished_iteration(client: SyncPrefectClient) -> FlowRun:
    """The flow run of the last of ITERATIONS, each run to its end unless it has been. Raises LaunchError if one fails."""
    for name in ITERATIONS:
        deployment = client.read_deployment_by_name(f"sppo-iteration/{name}")
        told = f"{deployment.parameters['run']} · iteration {deployment.parameters['iteration']}"
        done = [run for run in _runs(client, told) if run.state is not None and run.state.is_completed()]
        run = done[0] if done else client.create_flow_run_from_deployment(deployment.id)
        deadline = time.monotonic() + FINISHED_S
        while run.state is None or not run.state.is_final():
            if time.monotonic() > deadline:
                raise LaunchError(f"{told} is not done after {FINISHED_S:.0f} s; look at its flow run in the UI")
            time.sleep(1)
            run = client.read_flow_run(run.id)
        if not run.state.is_completed():
            raise LaunchError(f"{told} is {run.state.name}: {run.state.message}; expected it to be Completed")
    return run


def _runs(client: SyncPrefectClient, name: str) -> Sequence[FlowRun]:
    found = client.read_flow_runs(flow_run_filter=FlowRunFilter(name=FlowRunFilterName(any_=[name])))
    return [run for run in found if run.deployment_id is not None]


def pictures(client: SyncPrefectClient, run: FlowRun) -> list[Picture]:
    """The pages of an instance on which an iteration has finished."""
    form = client.read_deployment_by_name(f"sppo-iteration/{ITERATIONS[-1]}").id
    name = str(run.parameters["run"])
    shown = {subject: f"sppo-{subject}-{name}" for subject in ("iteration", "train")}
    latest = {str(each.key): each.latest_id for each in client.read_latest_artifacts()}
    return [
        Picture("deployments", "/deployments?limit=25", ("iter1", "train"), 1000),
        Picture("form", f"/deployments/deployment/{form}/run", ("Recipe", "Draw ahead"), 1250),
        Picture("run", f"/runs/flow-run/{run.id}", (run.name, "train"), 1000),
        Picture("run-artifacts", f"/runs/flow-run/{run.id}?tab=Artifacts", (shown["train"],), 1000),
        Picture("stage", f"/artifacts/artifact/{latest[shown['train']]}", ("metrics.jsonl",), 2000),
        Picture("iteration", f"/artifacts/artifact/{latest[shown['iteration']]}", ("Held-out prompts",), 1700),
        Picture("work-pools", "/work-pools", ("cpu", "gpu"), 700),
    ]


def take_all(served: Served, folder: Path) -> list[Path]:
    """The pictures as files of a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    taken = []
    with SyncPrefectClient(f"{served.url}/api", auth_string=served.password) as client, browser() as chromium:
        chromium.log_in(served.password)
        for picture in pictures(client, finished_iteration(client)):
            path = folder / f"{picture.name}.png"
            path.write_bytes(chromium.take(f"{served.url}/v2", picture))
            taken.append(path)
    return taken


def main() -> None:
    """Serve, take, and stop what was started here."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--root", type=Path, default=Path(tempfile.gettempdir()) / "sppo", help="folder to serve from")
    arguments.add_argument("--output", type=Path, default=PROJECT / "docs" / "ui")
    asked = arguments.parse_args()
    served = serve(asked.root)
    try:
        for path in take_all(served, asked.output):
            Console().print(Text(f"{path} {path.stat().st_size / 1000:.0f} kB"), soft_wrap=True)
    finally:
        if not served.found:
            stop(asked.root)


if __name__ == "__main__":
    main()
