"""What a run that was hostile from end to end left behind (conftest.py): in store, machine, server, and on pages."""

import base64
import json
import os
import pickle
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prefect.client.schemas.actions import ArtifactCreate
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

from infra.screenshots import CHROMIUM, Browser, Picture, browser
from sppo.markdown import escaped, image, table
from sppo.stages import STAGES

ROOT = Path(__file__).resolve().parents[2]
RUN = "planted"


# --- secrets


def forms(secret: str) -> list[bytes]:
    """A secret as it is, percent-encoded, and in base64 at each of the three places it may have in a longer text."""
    found = [secret, quote(secret, safe="")]
    for before in range(3):
        code = base64.b64encode(b"x" * before + secret.encode()).decode().rstrip("=")
        found.append(code[{0: 0, 1: 2, 2: 3}[before] : -1])  # without the digits that its neighbours also decide
    return [form.encode() for form in found]


def leaks(content: bytes, secrets: dict[str, str]) -> list[str]:
    return [name for name, secret in secrets.items() if any(form in content for form in forms(secret))]


def objects(ran: Any) -> Iterator[tuple[str, bytes]]:
    for key in ran.store.backend.list(""):
        yield f"store: {key}", ran.store.backend.read(key) or b""


def files(*folders: Path) -> Iterator[tuple[str, bytes]]:
    for folder in folders:
        for path in folder.rglob("*"):
            if path.is_file():
                yield str(path), path.read_bytes()


def database(server: Any) -> Iterator[tuple[str, bytes]]:
    """All of the server's rows: read as text, for a value of several pages lies in pieces in the file."""
    with sqlite3.connect(f"file:{server.folder}/prefect/prefect.db?mode=ro", uri=True) as opened:
        for line in opened.iterdump():
            yield "database", line.encode()


def shown(name: str, content: bytes) -> bytes:
    """Bytes that a search can read: a table's rows beside its compressed pages."""
    if content[:4] != b"PAR1":
        return content
    return content + str(pq.read_table(pa.BufferReader(content)).to_pylist()).encode()


def test_the_search_finds_a_secret_in_each_of_its_forms() -> None:
    planted = {"KEY": "sk-abc/def+1234567890"}
    for before in ("", "a", "ab", "abc"):
        assert leaks(base64.b64encode(f"{before}{planted['KEY']} and more".encode()), planted) == ["KEY"]
    assert leaks(b"https://h/?k=sk-abc%2Fdef%2B1234567890", planted) == ["KEY"]
    assert leaks(b"sk-abc/def+123456789", planted) == []


def test_the_run_used_its_secrets_and_the_search_reads_where_it_wrote(
    ran: Any, prefect_server: Any, hostile_judge: Any
) -> None:
    assert set(hostile_judge.authorised) == {f"Bearer {ran.secrets['JUDGE_API_KEY']}"}
    marks = {"run": RUN}
    for place in (objects(ran), files(ran.folder / "scratch"), files(ran.folder / "card"), database(prefect_server)):
        assert any(leaks(name.encode() + shown(name, content), marks) for name, content in place)


def test_no_object_of_the_store_holds_a_secret(ran: Any) -> None:
    assert {name: found for name, content in objects(ran) if (found := leaks(shown(name, content), ran.secrets))} == {}


def test_the_work_record_of_a_refused_stage_says_why_without_the_key_that_the_server_sent_back(ran: Any) -> None:
    failed = [content for key, content in ran.work.items() if b'"failed"' in content]
    assert any(b"answers 401" in content and b"may not judge here" in content for content in failed), ran.work.keys()
    assert [name for content in ran.work.values() for name in leaks(content, ran.secrets)] == []


def test_no_file_that_the_run_wrote_on_this_machine_holds_a_secret(ran: Any) -> None:
    """Scratch with its logs, home, temporary files, the card, and what was printed."""
    assert {name: found for name, content in files(ran.folder) if (found := leaks(shown(name, content), ran.secrets))} == {}


def test_the_prefect_servers_database_and_logs_hold_no_secret(ran: Any, prefect_server: Any) -> None:
    found = [(line[:200], name) for _, line in database(prefect_server) for name in leaks(line, ran.secrets)]
    found += [(name.encode(), leak) for name, content in files(prefect_server.folder) for leak in leaks(content, ran.secrets)]
    assert found == []


def test_what_the_run_said_of_the_refusal_names_the_variable_and_not_its_value(ran: Any) -> None:
    assert "check the key in the environment variable that the judge's source.api_key_env names" in ran.refused.stderr
    assert leaks((ran.refused.stdout + ran.refused.stderr).encode(), ran.secrets) == []


# --- what was made is plain

OPENED = """
import json, sys
from pathlib import Path

def refuse(event, arguments):
    if event == "pickle.find_class":
        raise SystemExit(f"unpickled {arguments}")

sys.addaudithook(refuse)
from sppo.store import Store
from sppo.store.manifest import Manifest, parse_record

store = Store(sys.argv[1], Path(sys.argv[2]))
for key in store.backend.list(""):
    if not key.endswith("/manifest.json"):
        continue
    manifest = parse_record(Manifest, store.backend.read(key), key)
    artifact = store.open(f"{manifest.stage}/{manifest.fingerprint}")
    for entry in (*manifest.files, *manifest.logs):
        path, kind = artifact.path(entry.name), entry.name.rsplit(".", 1)[-1]
        if entry.name.startswith("events.out.tfevents"):
            continue  # TensorBoard's, which nothing here opens
        if kind == "parquet":
            artifact.table(entry.name)
        elif kind == "safetensors":
            from safetensors.numpy import load_file
            load_file(path)
        elif kind in ("json", "jsonl", "md", "txt", "jinja", "csv", "log", "py"):
            text = path.read_text(encoding="utf-8")
            [json.loads(part) for part in ([text] if kind == "json" else text.splitlines() if kind == "jsonl" else [])]
        else:
            raise SystemExit(f"{entry.name}: a kind that no reader here opens")
        print(kind)
    if manifest.stage in ("policy", "train"):
        from transformers import AutoModelForCausalLM
        from sppo.policy import load_tokenizer
        load_tokenizer(artifact.folder())
        AutoModelForCausalLM.from_pretrained(artifact.folder(), use_safetensors=True, trust_remote_code=False)
"""


def test_every_file_of_a_run_opens_while_unpickling_ends_the_process(ran: Any) -> None:
    command = [sys.executable, "-c", OPENED, ran.store.url, str(ran.folder / "looking")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {"parquet", "safetensors", "json", "jsonl"} <= set(done.stdout.split())


class SideEffect:
    """Pickled, an object that ends the process when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (os._exit, (7,))


def test_that_process_does_end_when_something_is_unpickled(tmp_path: Path) -> None:
    (tmp_path / "planted").write_bytes(pickle.dumps(SideEffect()))
    hook = OPENED.split("from sppo.store import")[0]
    code = f"{hook}\nimport pickle\npickle.loads(Path({str(tmp_path / 'planted')!r}).read_bytes())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, "unpickled" in done.stderr) == (1, True)


def test_no_object_of_a_run_is_a_pickle_or_an_archive_of_them(ran: Any) -> None:
    for key in ran.store.backend.list(""):
        content = ran.store.backend.read(key) or b""
        assert not content.startswith((b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK\x03\x04")), key


def test_what_prefect_writes_of_an_exception_by_itself_is_no_pickle_and_stays_on_the_machine(
    ran: Any, prefect_server: Any
) -> None:
    """Prefect 3.8 keeps the exception of a failed flow whatever `persist_result` says, pickled unless told otherwise."""
    kept = [path for path in (ran.folder / "home" / "prefect" / "storage").rglob("*") if path.is_file()]
    told = [json.loads(path.read_text()) for path in kept]
    assert told  # the first attempt failed
    assert {each["__exc_type__"] for each in told} == {"sppo.errors.JudgeError"}
    assert not (prefect_server.folder / "prefect" / "storage").exists()
    assert not [key for key in ran.store.backend.list("") if key.split("/")[0] not in (*STAGES, "runs")]


# --- pages

PAGE = """(() => {
  const all = selector => [...document.querySelectorAll(selector)];
  const attributes = all('*').flatMap(e => [...e.attributes].map(a => `${e.tagName} ${a.name}=${a.value}`));
  return JSON.stringify({
    pwned: window.pwned ?? null,
    addresses: attributes.filter(text => /(href|src|srcset|action|data|content)=/i.test(text) && text.includes('PORT')),
    scripts: attributes.filter(text => /=\\s*javascript:/i.test(text)),
    handlers: attributes.filter(text => / on[a-z]+=/i.test(text) && text.includes('pwned')),
    markup: all('h1, h2, strong, em, code, pre, details, iframe, svg').map(e => e.textContent.trim())
      .filter(text => ['Heading', 'bold', 'code', 'window.pwned=4'].includes(text)),
    text: document.body.innerText,
  });
})()"""
"""What of a page could act, and what can be read on it."""
UIS = ("/v2", "")
"""Paths of the server's two UIs."""


@pytest.fixture(scope="module")
def chromium(prefect_server: Any) -> Iterator[Browser]:
    if not Path(CHROMIUM).is_file():
        reason = f"{CHROMIUM} is not installed; type `make system`"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    with browser() as opened:
        opened.log_in(prefect_server.password)
        yield opened


def kept(server: Any, markdown: str, key: str) -> str:
    """Id of a new artifact with this text."""
    with server.client() as client:
        return str(client.create_artifact(ArtifactCreate(key=key, type="markdown", data=markdown, description=key)).id)


def look(
    chromium: Browser, server: Any, ui: str, artifact: str, words: tuple[str, ...], port: int, picture: Path
) -> dict[str, Any]:
    """An artifact's page in the browser; its picture is kept beside the test's files."""
    picture.write_bytes(chromium.take(f"{server.url}{ui}", Picture("page", f"/artifacts/artifact/{artifact}", words, 1800)))
    told = chromium.ask("Runtime.evaluate", expression=PAGE.replace("PORT", f":{port}"), returnByValue=True)
    return dict(json.loads(told["result"]["value"]))


def assert_inert(page: dict[str, Any], listener: Any) -> None:
    assert {name: page[name] for name in ("pwned", "addresses", "scripts", "handlers", "markup")} == {
        "pwned": None,
        "addresses": [],
        "scripts": [],
        "handlers": [],
        "markup": [],
    }
    assert listener.asked == []


@pytest.mark.parametrize("ui", UIS, ids=["v2", "v1"])
def test_hostile_texts_on_a_page_are_read_and_nothing_else(
    chromium: Browser, prefect_server: Any, listener: Any, hostile_texts: list[str], tmp_path: Path, ui: str
) -> None:
    listener.asked.clear()
    cells = [[escaped(text, 600), escaped(text, 600)] for text in hostile_texts]
    lines = [f"In the store, below {escaped(text, 600)}\n" for text in hostile_texts]
    artifact = kept(prefect_server, "\n".join([table(["prompt", "answer"], cells), *lines]), "hostile-escaped")
    page = look(chromium, prefect_server, ui, artifact, ("an image", "zero"), listener.server_port, tmp_path / "page.png")
    assert_inert(page, listener)
    assert "⟨U+202E⟩gnp.exe⟨U+202C⟩" in page["text"]
    if ui:  # the older one shows a character reference as it is written: &#60;script&#62;
        assert "<script>window.pwned=1;fetch(" in page["text"]
        assert "[script](javascript:window.pwned=2)" in page["text"]
        assert "&lt;script&gt;" in page["text"]


@pytest.mark.parametrize("ui", UIS, ids=["v2", "v1"])
def test_the_page_of_a_real_iteration_shows_hostile_prompts_as_text(
    chromium: Browser, prefect_server: Any, ran: Any, listener: Any, tmp_path: Path, ui: str
) -> None:
    with prefect_server.client() as client:
        wanted = ArtifactFilter(key=ArtifactFilterKey(any_=["sppo-iteration-planted"]))
        [shown] = client.read_artifacts(artifact_filter=wanted, limit=10, sort=None, offset=0)
    listener.asked.clear()
    words = ("Held-out prompts", "Seconds by stage")
    page = look(chromium, prefect_server, ui, str(shown.id), words, listener.server_port, tmp_path / "iteration.png")
    assert_inert(page, listener)
    assert str(listener.server_port) in page["text"]  # the prompts are there


def test_the_same_texts_unescaped_do_come_alive_so_this_test_would_notice(
    chromium: Browser, prefect_server: Any, listener: Any, tmp_path: Path
) -> None:
    listener.asked.clear()
    raw = f"before ![an image]({listener.url}/image.png) [a link]({listener.url}/link) **bold** after"
    artifact = kept(prefect_server, raw, "hostile-raw")
    page = look(chromium, prefect_server, "/v2", artifact, ("before", "after"), listener.server_port, tmp_path / "raw.png")
    assert "/image.png" in listener.asked
    assert any("/link" in text for text in page["addresses"])
    assert page["markup"] == ["bold"]


def test_a_card_holds_hostile_prompts_in_no_form_that_a_hub_would_render(ran: Any, listener: Any) -> None:
    card = (ran.folder / "card" / "README.md").read_text(encoding="utf-8")
    assert not [line for line in card.splitlines() if f":{listener.server_port}/" in line or "<script" in line.lower()]


def test_the_listener_was_asked_nothing_by_the_run_itself(ran: Any, listener: Any) -> None:
    assert [path for path in listener.asked if path != "/image.png"] == []


def test_pictures_on_pages_are_their_own_bytes() -> None:
    drawn = image("<svg xmlns='http://www.w3.org/2000/svg'/>", "![x](http://h)")
    assert "](data:image/svg+xml;base64," in drawn
    assert "http://" not in drawn
