"""What `sppo gc` deletes, and what it leaves alone whatever else happens at the time."""

import os
import threading
import time
import uuid
from datetime import timedelta
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from flows.collection import seconds_of, show_garbage
from sppo.branch import branch
from sppo.errors import SppoError, StoreError
from sppo.garbage import Garbage, check_grace, delete_garbage, find_garbage
from sppo.hardware import Hardware
from sppo.last_start import remember_start
from sppo.publication import publish
from sppo.recipe import Recipe, overridden
from sppo.runs import Setup, start, write_iteration
from sppo.stages import recipe_part
from sppo.store import Artifact, Identity, Outcome, Step, Store, Workspace
from sppo.store.leases import Lease
from sppo.verify import verify_run

DAY = 24 * 3600.0


@pytest.fixture(params=["folder", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    url = str(tmp_path / "store") if request.param == "folder" else f"memory://garbage-{uuid.uuid4().hex}"
    return Store(url, tmp_path / "scratch")


def age(store: Store, prefix: str, days: float) -> None:
    """Let an object, or everything below a prefix, have been written so many days ago; earlier by as many, in memory."""
    root = store.backend.local_path("")
    for key in store.backend.list(prefix) or [prefix]:
        if root is not None:
            os.utime(root / key, (time.time() - days * DAY,) * 2)
        else:
            filed = store.backend.filesystem.store[f"{store.backend.name}/{key}"]  # type: ignore[attr-defined]
            filed.modified -= timedelta(days=days)


def made(
    store: Store, stage: str, text: str, parts: int = 0, recipe: dict[str, object] | None = None, **inputs: Artifact
) -> Artifact:
    """An artifact with a text, committed in parts if any are asked for."""

    def run(workspace: Workspace) -> Outcome:
        for number in range(parts):
            (workspace.folder / f"{number}.txt").write_text(f"{text} {number}")
            workspace.adopt_part(workspace.commit_part(f"chunk-{number}", [workspace.folder / f"{number}.txt"]))
        workspace.add_text(text, "text.txt")
        return Outcome(text)

    return store.build(Step(Identity(stage, 1, recipe or {"text": text}, inputs), run))


@pytest.fixture
def demo(tiny: Recipe, cpu: Hardware, store: Store) -> dict[str, Artifact]:
    """The one iteration of run `demo`, which names a policy and an estimate; its judge is known to the estimate alone."""
    recipe = start(store, "demo", overridden(tiny, ("iterations=1",)), lambda recipe: recipe)
    judge = made(store, "judge", "judge")
    estimate = made(store, "estimate", "targets", judge=judge)
    trained = made(store, "train", "policy 1", targets=estimate)
    write_iteration(Setup("demo", recipe, cpu, store), 1, {"train": trained, "estimate": estimate}, [], [])
    return {"judge": judge, "estimate": estimate, "train": trained}


def attempt(store: Store, stage: str, text: str) -> str:
    """A reference of which one part was committed and no more."""
    identity = Identity(stage, 1, {"text": text}, {})
    with store.workspace(stage, identity.fingerprint) as workspace:
        (workspace.folder / "0.json").write_text(text)
        workspace.commit_part("chunk-0", [workspace.folder / "0.json"])
    return f"{stage}/{identity.fingerprint}"


def names(found: list[Garbage]) -> dict[str, str]:
    return {garbage.reference: garbage.kind for garbage in found}


def test_what_a_run_names_and_what_that_was_made_from_is_kept_and_the_rest_goes(
    demo: dict[str, Artifact], store: Store
) -> None:
    other = made(store, "train", "nobody's")
    age(store, "", 8)
    found = find_garbage(store)
    assert names(found) == {other.reference: "artifact"}
    assert (found[0].size, len(found[0].keys)) == (sum(size or 0 for size in store.backend.sizes(found[0].keys)), 2)
    assert found[0].keys[0] == f"{other.reference}/manifest.json"  # first, so that half of it is never believed
    assert found[0].age_s == pytest.approx(8 * DAY, abs=60)
    assert delete_garbage(store, found) == (found, [])
    assert store.backend.list(other.reference) == []
    assert [each.problem for each in verify_run(store, "demo")] == [""] * 5  # recipe, index, three artifacts
    assert find_garbage(store) == []


def test_what_is_younger_than_the_grace_time_stays(demo: dict[str, Artifact], store: Store) -> None:
    other = made(store, "train", "nobody's")
    age(store, "", 6.9)
    assert find_garbage(store) == []
    assert names(find_garbage(store, 6 * DAY)) == {other.reference: "artifact"}


def test_one_object_that_was_written_of_late_keeps_an_attempt(store: Store) -> None:
    given_up = attempt(store, "generate", "given up")
    age(store, "", 8)
    assert names(find_garbage(store)) == {given_up: "attempt"}
    assert find_garbage(store)[0].keys[0] == f"{given_up}/parts/chunk-0.json"  # before the file that it names
    store.backend.replace(f"{given_up}/parts/chunk-1.json", b"{}")
    assert find_garbage(store) == []


def test_publications_branches_and_recipes_that_start_from_a_stored_policy_reach_theirs(
    demo: dict[str, Artifact], tiny: Recipe, cpu: Hardware, store: Store
) -> None:
    publish(store, "demo", name="good")
    policies = [made(store, "train", f"of a run that is gone {number}") for number in range(2)]
    recipe = start(store, "gone", tiny, lambda recipe: recipe)
    setup = Setup("gone", recipe, cpu, store)
    for iteration, policy in enumerate(policies, 1):
        write_iteration(setup, iteration, {"train": policy}, [], [])
    branch(store, "gone", 1, overridden(tiny, ("training.eta=4",)), "branched", lambda recipe: recipe)
    stored = made(store, "policy", "stored")
    source = f"policy.source={{kind: stored, artifact: {stored.reference}}}"
    start(store, "further", overridden(tiny, (source,)), lambda recipe: recipe)
    for key in [*store.backend.list("runs/gone"), *store.backend.list("runs/demo")]:
        store.backend.delete(key)
    age(store, "", 8)
    # the judge of unfinished runs is kept whoever made it: which judges theirs are, their recipes alone do not say
    assert names(find_garbage(store)) == {policies[1].reference: "artifact"}


def test_what_an_unfinished_run_may_take_up_is_kept(tiny: Recipe, store: Store) -> None:
    start(store, "begun", tiny, lambda recipe: recipe)
    its_own = made(store, "estimate", "targets", recipe=recipe_part("estimate", tiny))
    one_of_its_judges = made(
        store, "duel", "duel", recipe={"evaluation.judges": recipe_part("duel", tiny)["evaluation.judges"][:1]}
    )  # type: ignore[index]
    other = made(store, "estimate", "others", recipe=recipe_part("estimate", overridden(tiny, ("selection.responses=all",))))
    age(store, "", 8)
    assert names(find_garbage(store)) == {other.reference: "artifact"}
    store.open(its_own.reference)
    store.open(one_of_its_judges.reference)


def test_left_overs_of_a_committed_artifact_go_but_not_the_records_of_parts_that_it_is_made_of(
    demo: dict[str, Artifact], tiny: Recipe, cpu: Hardware, store: Store
) -> None:
    responses = made(store, "generate", "responses", parts=2)
    with store.workspace(*responses.reference.split("/")) as workspace:
        (workspace.folder / "optimizer.pt").write_text("states")
        checkpoint = workspace.commit_part("checkpoint-000001-ranks1-zero0", [workspace.folder / "optimizer.pt"])
    store.backend.replace(f"{responses.reference}/work/1-of-1.json", b"{}")
    for unnamed in ("files/0123456789abcdef/chunk.parquet", "packs/0123456789abcdef", "work/lease-1"):  # of killed writers
        store.backend.replace(f"{responses.reference}/{unnamed}", b"x")
    store.backend.create("checks/0123456789abcdef-race-0", b"writer 0")
    index = {"train": demo["train"], "generate": responses}
    write_iteration(Setup("demo", overridden(tiny, ("iterations=1",)), cpu, store), 1, index, [], [])
    age(store, "", 8)
    found = find_garbage(store)
    assert names(found) == {responses.reference: "left over", "checks": "left over"}
    delete_garbage(store, found)
    left = {key.removeprefix(f"{responses.reference}/") for key in store.backend.list(responses.reference)}
    files = {entry.key("generate", responses.manifest.fingerprint) for entry in responses.manifest.files}
    assert left == {f.removeprefix(f"{responses.reference}/") for f in files} | {
        "manifest.json",
        "parts/chunk-0.json",
        "parts/chunk-1.json",
    }
    assert checkpoint.files[0].key("generate", responses.manifest.fingerprint) not in store.backend.list("")
    assert all(not each.problem for each in verify_run(store, "demo"))


def test_an_attempt_goes_with_all_that_killed_writers_left_in_it(store: Store) -> None:
    given_up = attempt(store, "generate", "given up")
    for unnamed in ("files/0123456789abcdef/chunk.parquet", "packs/0123456789abcdef", "work/lease-1", "work/1-of-1.json"):
        store.backend.replace(f"{given_up}/{unnamed}", b"x")
    age(store, "", 8)
    found = find_garbage(store)
    assert names(found) == {given_up: "attempt"}
    assert delete_garbage(store, found) == (found, [])
    assert store.backend.list("") == []


def test_an_artifact_that_somebody_is_at_work_on_stays(store: Store) -> None:
    given_up = attempt(store, "generate", "taken up again")
    age(store, "", 8)
    found = find_garbage(store)
    taken = threading.Event()
    over = threading.Event()

    def work() -> None:
        lease = Lease(store.backend, *given_up.split("/"))
        lease.take()
        taken.set()
        over.wait()
        lease.release()

    thread = threading.Thread(target=work)
    thread.start()
    taken.wait()
    try:
        assert find_garbage(store) == []
        deleted, kept = delete_garbage(store, found)
    finally:
        over.set()
        thread.join()
    assert deleted == []
    assert "is at work on it" in kept[0]
    assert store.backend.read(f"{given_up}/parts/chunk-0.json") is not None
    assert delete_garbage(store, found) == (found, [])
    assert store.backend.list(given_up) == []


def test_an_artifact_that_a_run_comes_to_name_between_mark_and_sweep_is_not_lost(
    demo: dict[str, Artifact], tiny: Recipe, cpu: Hardware, store: Store
) -> None:
    other = made(store, "train", "nobody's yet")
    age(store, "", 8)
    found = find_garbage(store)
    recipe = start(store, "late", tiny, lambda recipe: recipe)
    write_iteration(Setup("late", recipe, cpu, store), 1, {"train": other}, [], [])
    assert delete_garbage(store, found) == ([], [f"{other.reference}: a run needs it now"])
    assert store.open(other.reference).text("text.txt") == "nobody's yet"


@pytest.fixture
def wanted_again(demo: dict[str, Artifact], tiny: Recipe, store: Store) -> Artifact:
    """An artifact that run `demo`, which is finished, would take for its own if it were started again, and names nowhere."""
    recipe = overridden(tiny, ("iterations=1",))
    return made(store, "estimate", "of a judge that was exchanged", recipe=recipe_part("estimate", recipe))


def test_what_a_finished_run_takes_up_that_is_started_again_during_a_sweep_is_not_lost(
    wanted_again: Artifact, tiny: Recipe, cpu: Hardware, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = Setup("demo", overridden(tiny, ("iterations=1",)), cpu, store)
    remember_start(setup, "cpu", None, "a test")
    other = made(store, "train", "nobody's")
    age(store, "", 8)
    age(store, "runs/demo/latest.json", 9 if store.backend.local_path("") is not None else 1)  # it ended a day after that
    found = sorted(find_garbage(store), key=lambda garbage: garbage.reference == wanted_again.reference)
    assert names(found) == {other.reference: "artifact", wanted_again.reference: "artifact"}
    delete = store.backend.delete

    def delete_beside_a_start(key: str) -> None:
        delete(key)
        if key.startswith(other.reference):
            remember_start(setup, "cpu", None, "a test")  # no record more: this one was there

    monkeypatch.setattr(store.backend, "delete", delete_beside_a_start)
    _, kept = delete_garbage(store, found)
    assert kept[-1] == f"{wanted_again.reference}: a run needs it now"
    assert store.open(wanted_again.reference).text("text.txt") == "of a judge that was exchanged"


def test_a_finished_run_that_was_started_again_is_at_work_for_longer_than_the_grace_time(
    wanted_again: Artifact, tiny: Recipe, cpu: Hardware, store: Store
) -> None:
    age(store, "", 8)
    assert names(find_garbage(store, DAY)) == {wanted_again.reference: "artifact"}
    remember_start(Setup("demo", overridden(tiny, ("iterations=1",)), cpu, store), "cpu", None, "a test")
    age(store, "runs/demo/latest.json", 2)
    assert find_garbage(store, DAY) == []


def test_a_manifest_is_put_back_if_a_run_comes_to_name_its_artifact_as_it_is_deleted(
    demo: dict[str, Artifact], tiny: Recipe, cpu: Hardware, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = made(store, "train", "nobody's yet")
    age(store, "", 8)
    found = find_garbage(store)
    delete = store.backend.delete

    def delete_beside_a_run(key: str) -> None:
        delete(key)
        if key.endswith("manifest.json"):
            recipe = start(store, "late", tiny, lambda recipe: recipe)
            write_iteration(Setup("late", recipe, cpu, store), 1, {"train": other}, [], [])

    monkeypatch.setattr(store.backend, "delete", delete_beside_a_run)
    assert delete_garbage(store, found) == ([], [f"{other.reference}: a run came to need it in this moment"])
    assert store.open(other.reference).text("text.txt") == "nobody's yet"


def test_beside_a_run_that_makes_artifacts_all_the_time_nothing_of_it_is_lost(
    demo: dict[str, Artifact], tiny: Recipe, cpu: Hardware, store: Store
) -> None:
    rubbish = [made(store, "train", f"rubbish {number}") for number in range(20)]
    age(store, "", 8)
    failures: list[SppoError] = []
    recipe = start(store, "busy", overridden(tiny, ("training.eta=4",)), lambda recipe: recipe)

    def run() -> None:
        try:
            for number in range(20):
                trained = made(store, "generate", f"responses {number}", parts=3)
                write_iteration(Setup("busy", recipe, cpu, store), 1, {"train": trained}, [], [])
                trained.text("text.txt")
        except SppoError as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    deleted = []
    while thread.is_alive():
        deleted += delete_garbage(store, find_garbage(store))[0]
    thread.join()
    deleted += delete_garbage(store, find_garbage(store))[0]
    assert failures == []
    assert {garbage.reference for garbage in deleted} == {artifact.reference for artifact in rubbish}
    assert all(not each.problem for run in ("demo", "busy") for each in verify_run(store, run))


class KilledError(BaseException):
    """Stands for SIGKILL: nothing catches it."""


@pytest.mark.parametrize("deletions", [1, 2, 3, 4, 5])
def test_a_sweep_that_is_killed_leaves_a_store_in_which_no_half_artifact_is_believed(
    deletions: int, demo: dict[str, Artifact], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = made(store, "generate", "nobody's", parts=2)
    age(store, "", 8)
    found = find_garbage(store)
    left, delete = deletions, store.backend.delete

    def die_later(key: str) -> None:
        nonlocal left
        if not left:
            raise KilledError
        left -= 1
        delete(key)

    monkeypatch.setattr(store.backend, "delete", die_later)
    with pytest.raises(KilledError):
        delete_garbage(store, found)
    monkeypatch.undo()
    assert store.find(*other.reference.split("/")) is None
    assert all(not each.problem for each in verify_run(store, "demo"))
    with store.workspace(*other.reference.split("/")) as workspace:
        for name in workspace.parts():  # a part that is left has all of its files
            record = workspace.part(name)
            assert record is not None
            workspace.part_paths(record)
    assert made(store, "generate", "nobody's", parts=2).text("text.txt") == "nobody's"  # and it can be made again


def test_a_record_that_cannot_be_read_stops_everything(demo: dict[str, Artifact], store: Store) -> None:
    made(store, "train", "nobody's")
    age(store, "", 8)
    content = store.backend.read("runs/demo/iteration-1.json") or b""
    store.backend.replace("runs/demo/iteration-1.json", content.replace(b'"iteration": 1', b'"iteration": 2'))
    with pytest.raises(StoreError, match=r"runs/demo/iteration-1.json is not what was written there"):
        find_garbage(store)


def test_what_is_none_of_ours_is_never_touched(demo: dict[str, Artifact], store: Store) -> None:
    foreign = [
        "train/notes.txt",
        "runs/demo/win-rates.png",
        f"Upper/{'0' * 64}/manifest.json",
        "tables/assin2/test.parquet",
        "checks/mine",
        f"objects/{'0' * 64}",
        f"blobs/{'0' * 64}/content",
    ]
    for key in foreign:
        store.backend.replace(key, b"mine")
    age(store, "", 100)
    assert find_garbage(store) == []


def test_files_that_a_killed_writer_left_go(demo: dict[str, Artifact], store: Store) -> None:
    root = store.backend.local_path("")
    if root is None:
        pytest.skip("a bucket shows no half objects")
    half = root / demo["train"].reference / "files" / ".writing-abc"
    half.write_bytes(b"hal")
    os.utime(half, (time.time() - 8 * DAY,) * 2)
    found = find_garbage(store)
    assert [(garbage.reference, garbage.size) for garbage in found] == [("writing", 3)]
    delete_garbage(store, found)
    assert not half.exists()


def shown(store: Store, delete: bool = False, older_than: str = "7d", keep: tuple[str, ...] = ()) -> str:
    written = StringIO()
    show_garbage(Console(file=written, width=160), store, delete, older_than, keep)
    return written.getvalue()


def test_the_command_shows_what_would_go_and_deletes_only_when_told(demo: dict[str, Artifact], store: Store) -> None:
    other = made(store, "train", "nobody's")
    age(store, "", 8)
    said = shown(store)
    assert f"artifact  train/{other.manifest.fingerprint[:12]}" in said
    assert "1 artifact and 0 attempts, 2 objects" in said
    assert f"gc --delete --older-than 7d --store {store.url}" in said
    assert store.find(*other.reference.split("/")) is not None
    assert "0 artifacts and 0 attempts" in shown(store, keep=(other.reference[:20],))
    assert "deleted  1 artifact and 0 attempts, 2 objects" in shown(store, delete=True)
    assert store.find(*other.reference.split("/")) is None
    assert all(not each.problem for each in verify_run(store, "demo"))


@pytest.mark.parametrize("text", ["7", "7w", "-1d", "", "1.5d", "d"])
def test_a_grace_time_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(StoreError, match=r"--older-than .*; expected days or hours, such as 7d or 36h"):
        seconds_of(text)


def test_a_grace_time_is_a_day_or_more() -> None:
    assert check_grace(seconds_of("36h")) == 36 * 3600
    with pytest.raises(StoreError, match="a grace time of 23 h; expected a day or more"):
        check_grace(seconds_of("23h"))


def test_a_bucket_is_swept_as_a_folder_is(tiny: Recipe, cpu: Hardware, s3_url: str, tmp_path: Path) -> None:
    store = Store(s3_url, tmp_path / "scratch")
    recipe = start(store, "demo", overridden(tiny, ("iterations=1",)), lambda recipe: recipe)
    trained, other = made(store, "train", "policy 1", parts=2), made(store, "train", "nobody's", parts=2)
    write_iteration(Setup("demo", recipe, cpu, store), 1, {"train": trained}, [], [])
    found = find_garbage(store, 0.0)
    assert names(found) == {other.reference: "artifact"}
    assert delete_garbage(store, found, 0.0) == (found, [])
    assert store.backend.list(other.reference) == []
    assert all(not each.problem for each in verify_run(store, "demo"))
