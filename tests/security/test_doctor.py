"""`sppo doctor`: each thing that can be open or wrong is set up here for real, found, and told with the next move."""

import os
import resource
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

from flows.doctor import diagnose, machine, secrecy, server, storage
from flows.doctor.finding import Finding

ROOT = Path(__file__).resolve().parents[2]


def told(findings: Sequence[Finding], subject: str) -> list[tuple[str, str, str]]:
    return [(each.state, each.said, each.move) for each in findings if each.subject == subject]


def one(findings: Sequence[Finding]) -> Finding:
    [found] = findings
    return found


# --- the server


class Open(BaseHTTPRequestHandler):
    """Answers everyone, as Prefect's server does without a password, to pages of any site; its clock is off."""

    off_s = 0.0

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.do_HEAD()

    def do_HEAD(self) -> None:
        self.send_response_only(200)
        self.send_header("Access-Control-Allow-Origin", "*")
        self.send_header("Date", formatdate(time.time() - self.off_s, usegmt=True))
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *values: object) -> None:
        pass


@pytest.fixture
def listening() -> Iterator[Callable[[str, float], str]]:
    """Starts such a server on an address; gives its URL on loopback."""
    servers = []

    def start(address: str, off_s: float) -> str:
        handler = type("Open", (Open,), {"off_s": off_s})
        servers.append(ThreadingHTTPServer((address, 0), handler))
        threading.Thread(target=servers[-1].serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield start
    for each in servers:
        each.shutdown()
        each.server_close()


def of_server(url: str, secret: str | None = None) -> Sequence[Finding]:
    settings: dict[Any, Any] = {PREFECT_API_URL: url, PREFECT_API_AUTH_STRING: secret}
    with temporary_settings(settings):
        return server.look()


def test_a_server_of_sppo_serve_is_in_order(prefect_server: Any) -> None:
    url = f"{prefect_server.url}/api"
    assert [(each.state, each.said) for each in of_server(url, prefect_server.password)] == [
        ("ok", f"{url} asks for a password, and takes ours"),
        ("ok", f"listens on loopback alone, port {url.split(':')[2].split('/')[0]}"),
    ]


def test_a_wrong_password_is_not_the_servers_fault(prefect_server: Any) -> None:
    found = of_server(f"{prefect_server.url}/api", "sppo:another")[0]
    assert (found.state, found.move) == ("wrong", "set PREFECT_API_AUTH_STRING to what the server was started with")
    assert "answers 401 to this machine's password" in found.said


def test_a_server_without_a_password_is_wrong_and_pages_of_any_site_are_named(listening: Callable[[str, float], str]) -> None:
    url = f"{listening('127.0.0.1', 0)}/api"
    door, pages, reach = of_server(url)
    assert (door.state, door.said) == (
        "wrong",
        f"{url} answers everyone without a password, any page in a browser here included",
    )
    assert "PREFECT_SERVER_API_AUTH_STRING" in door.move
    assert (pages.state, pages.said) == ("open", "pages of any site may read what it answers (CORS *)")
    assert reach.state == "ok"


def test_a_server_that_listens_beyond_loopback_is_open(listening: Callable[[str, float], str]) -> None:
    found = of_server(f"{listening('0.0.0.0', 0)}/api")[-1]
    assert (found.state, found.said.split(" port")[0]) == ("open", "listens beyond loopback, on 0.0.0.0")


def test_a_server_that_is_away_and_one_with_credentials_in_its_address_are_wrong() -> None:
    away = one(of_server("http://127.0.0.1:9/api"))
    assert away.state == "wrong"
    assert away.said.startswith("http://127.0.0.1:9/api does not answer: ")
    inside = one(of_server("http://me:planted-secret@127.0.0.1:9/api"))
    assert (inside.state, inside.said) == ("wrong", "PREFECT_API_URL holds credentials, which logs repeat")


# --- where artifacts lie


def test_a_folder_that_is_its_owners_alone_is_in_order(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir(mode=0o755)
    kept, owned = storage.look_at_store(str(tmp_path / "store"))
    assert kept.said.startswith(f"{tmp_path}/store keeps what is written and creates records once")
    assert (kept.state, owned.state) == ("ok", "ok")


def test_a_folder_that_everyone_may_write_to_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("store", "scratch"):
        (tmp_path / name).mkdir()
        (tmp_path / name).chmod(0o777)
    monkeypatch.setenv("SPPO_SCRATCH", str(tmp_path / "scratch"))
    for subject, found in (
        ("store", storage.look_at_store(str(tmp_path / "store"))[1]),
        ("scratch", storage.look_at_scratch()[0]),
    ):
        path = tmp_path / subject
        assert found == Finding("wrong", subject, f"everyone on this machine may write to {path}", f"chmod o-w {path}")


def test_a_store_with_credentials_or_that_cannot_be_written_is_wrong(tmp_path: Path) -> None:
    inside = one(storage.look_at_store("s3://KEY:planted-secret@bucket/x"))
    assert inside.state == "wrong"
    assert "planted-secret" not in inside.said
    (tmp_path / "file").write_text("")
    assert one(storage.look_at_store(str(tmp_path / "file" / "store"))).state == "wrong"


def test_a_store_in_s3_is_tried_out_and_its_clock_compared(s3_url: str) -> None:
    kept, clock = storage.look_at_store(s3_url)
    assert (kept.state, clock.state, clock.subject) == ("ok", "ok", "clock")


@pytest.mark.parametrize(
    ("off_s", "state", "said"), [(3600, "wrong", "3600 s ahead of"), (-300, "open", "300 s behind"), (5, "ok", "5 s ahead of")]
)
def test_a_clock_that_is_off_is_told_by_the_servers_own(
    listening: Callable[[str, float], str], monkeypatch: pytest.MonkeyPatch, off_s: float, state: str, said: str
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", listening("127.0.0.1", off_s))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    found = one(storage._clock("s3://bucket/x"))
    seconds = int(found.said.split(" s ")[0])
    assert (found.state, found.said.split(" s ")[1].startswith(said.split(" s ")[1])) == (state, True)
    assert abs(seconds - abs(off_s)) <= 3


# --- secrets


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def added(repository: Path, name: str, text: str) -> None:
    (repository / name).write_text(text)
    subprocess.run(["git", "add", name], check=True, cwd=repository)


def test_a_credential_that_git_keeps_is_wrong_and_is_not_repeated(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_API_KEY", "planted.value-of-this-environment")
    added(repository, "notes.txt", "the judge's key: planted.value-of-this-environment\n")
    added(repository, "settings.env", "HF_TOKEN=hf_" + "aB3" * 11 + "x\n")
    added(repository, "fine.txt", "HF_TOKEN comes from the environment\n")
    (repository / "untracked.txt").write_text("planted.value-of-this-environment")
    found = [each for each in secrecy.look() if str(repository) in each.said]
    assert [(each.state, each.said.removeprefix(f"{repository}/")) for each in found] == [
        ("wrong", "notes.txt is kept by git and holds a credential of this environment"),
        ("wrong", "settings.env is kept by git and holds what looks like a credential"),
    ]
    assert "planted.value" not in "".join(each.said + each.move for each in found)


def test_an_address_with_credentials_is_named_without_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:planted-secret@mlflow.example")
    [found] = [each for each in secrecy.look() if each.said.startswith("MLFLOW_TRACKING_URI")]
    assert (found.state, found.said) == ("open", "MLFLOW_TRACKING_URI holds credentials")


# --- the machine


def installed(folder: Path, name: str, version: str) -> None:
    described = folder / f"{name}-{version}.dist-info"
    described.mkdir()
    (described / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def test_a_version_out_of_its_range_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.look_at_versions()[0].state == "ok"
    installed(tmp_path, "torch", "1.0")
    monkeypatch.syspath_prepend(tmp_path)
    found = machine.look_at_versions()[0]
    assert (found.state, found.said) == ("wrong", "torch is 1.0, expected <2.14,>=2.13")
    assert found.move.startswith("make setup")


def test_gpus_are_compared_with_what_torch_was_built_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 'Driver Version: 535.1  CUDA Version: 11.8'\necho 'GPU 0: one'\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    found = one(machine.look_at_devices())
    if machine._torch_cuda() is None:
        assert (found.state, found.said) == ("wrong", "1 GPU, driver 535.1, and a torch built for CPU")
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("")
    (tmp_path / "torch" / "version.py").write_text("__version__ = '2.13.0'\ncuda: Optional[str] = '12.8'\n")
    code = "from flows.doctor import machine; [found] = machine.look_at_devices(); print(found.state, found.said)"
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout == "wrong 1 GPU, driver 535.1, which knows CUDA 11.8; torch was built for 12.8\n", done.stderr


def test_few_open_files_and_memory_dumps_are_open() -> None:
    files, dumps = resource.getrlimit(resource.RLIMIT_NOFILE), resource.getrlimit(resource.RLIMIT_CORE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (1024, files[1]))
        found = machine.look_at_limits()
        assert ("open", "1024 open files a process, expected 4096") in [(each.state, each.said) for each in found]
        assert all(each.move for each in found)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, files)
        resource.setrlimit(resource.RLIMIT_CORE, dumps)


# --- the command


def typed(*words: str, environment: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    code = (
        "import typer\nfrom flows.commands import doctor\napp = typer.Typer()\napp.callback()(lambda: None)\n"
        "doctor.add_to(app)\napp()"
    )
    command = [sys.executable, "-c", code, "doctor", *words]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)


def test_the_command_ends_with_status_1_if_anything_is_wrong_and_costs_little(tmp_path: Path) -> None:
    environment = {**os.environ, "SPPO_SCRATCH": str(tmp_path / "scratch"), "PREFECT_HOME": str(tmp_path / "prefect")}
    (tmp_path / "scratch").mkdir(mode=0o700)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    fine = typed("--store", str(tmp_path / "store"), environment=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert (fine.returncode, fine.stdout.splitlines()[-1].endswith("0 wrong")) == (0, True), fine.stdout + fine.stderr
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 5
    (tmp_path / "scratch").chmod(0o777)
    badly = typed("--store", "s3://KEY:planted-secret@bucket/x", environment=environment)
    assert badly.returncode == 1
    lines = [line for line in badly.stdout.splitlines() if line.startswith("wrong")]
    assert [line.split()[1] for line in lines] == ["store", "scratch"]
    assert "planted-secret" not in badly.stdout + badly.stderr


def test_a_look_that_never_ends_is_said_and_the_others_are_shown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, listening: Callable[[str, float], str]
) -> None:
    """A store whose server takes the connection and never answers."""
    import socket

    from flows import doctor

    monkeypatch.setattr(doctor, "PATIENCE_S", 2.0)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    with socket.socket() as hole:
        hole.bind(("127.0.0.1", 0))
        hole.listen()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{hole.getsockname()[1]}")
        found = diagnose("s3://bucket/x")
        for thread in threading.enumerate():
            if thread.name == "store":
                thread.join()  # it must not find another address in the environment
    assert [each.state for each in found if each.subject == "store"] == ["wrong"]
    assert "limits" in {each.subject for each in found}


def test_a_look_that_fails_is_said_without_its_words_and_the_others_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://[planted-secret")  # no address, in a variable that several looks read
    found = diagnose(None)
    assert [(each.state, each.said) for each in found if each.subject == "secrets"] == [
        ("wrong", "could not be looked at: ValueError, whose words may hold a secret and are not repeated")
    ]
    assert "limits" in {each.subject for each in found}


def test_the_file_with_the_servers_password_is_for_its_owner(tmp_path: Path) -> None:
    from flows.environment import serving_settings, write_environment

    path = tmp_path / "environment"
    write_environment(path, serving_settings(tmp_path, tmp_path / "store", (), None, None))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
