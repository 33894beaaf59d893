"""Verifying a run: every byte is read again, what is wrong is named, and set aside it is made anew and nothing else is."""

from concurrent.futures import ThreadPoolExecutor
from io import StringIO

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings
from rich.console import Console

from flows.audit import check_nobody_holds, show_verified
from sppo.branch import branch
from sppo.errors import CorruptArtifactError, RunError
from sppo.hardware import Hardware
from sppo.last_start import remember_start
from sppo.publication import publish
from sppo.recipe import Recipe, overridden
from sppo.runs import Setup, find_branch, read_iteration, start, write_iteration
from sppo.store import Artifact, ArtifactFile, Identity, Outcome, Step, Store, Workspace
from sppo.store.leases import Lease, holder
from sppo.store.manifest import parse_record
from sppo.store.seal import sealed
from sppo.verify import set_aside, verify_artifact, verify_run
from sppo.verify_records import Verified

RECORDS = ["runs/demo/recipe.json", "runs/demo/iteration-1.json"]


def step(stage: str, text: str, **inputs: Artifact | ArtifactFile) -> Step:
    """Two chunks, each committed as a part."""

    def run(workspace: Workspace) -> Outcome:
        for number in range(2):
            name = f"chunk-{number}"
            record = workspace.part(name)
            if record is None:
                (workspace.folder / f"{name}.txt").write_text(f"{text} {number}")
                record = workspace.commit_part(name, [workspace.folder / f"{name}.txt"])
                made.append(name)
            workspace.adopt_part(record)
        return Outcome("")

    made: list[str] = []
    run.made = made  # type: ignore[attr-defined]
    return Step(Identity(stage, 1, {"text": text}, inputs), run)


def chunks_made(of: Step) -> list[str]:
    return list(of.run.made)  # type: ignore[attr-defined]


@pytest.fixture
def run(tiny: Recipe, cpu: Hardware, store: Store) -> Setup:
    recipe = start(store, "demo", overridden(tiny, ("iterations=1",)), lambda recipe: recipe)
    return Setup("demo", recipe, cpu, store)


@pytest.fixture
def trained(run: Setup, store: Store) -> Artifact:
    """What the run's index names; its judge is known to it alone."""
    artifact = store.build(step("train", "weights", judge=store.build(step("judge", "judge"))))
    write_iteration(run, 1, {"train": artifact}, [], [])
    return artifact


def object_key(artifact: Artifact, position: int = 0) -> str:
    return artifact.manifest.files[position].key(artifact.manifest.stage, artifact.manifest.fingerprint)


def broken(store: Store) -> list[Verified]:
    return [each for each in verify_run(store, "demo") if each.problem]


def test_an_intact_run_has_no_problem(store: Store, trained: Artifact) -> None:
    verified = verify_run(store, "demo")
    assert [each.reference for each in verified] == [*RECORDS, trained.reference, trained.manifest.lineage["judge"]]
    assert [each.problem for each in verified] == [""] * 4
    manifest = store.backend.sizes([f"{trained.reference}/manifest.json"])[0] or 0
    assert (verified[2].files, verified[2].size) == (3, manifest + 2 * len("weights 0"))


def test_a_flipped_bit_is_found_although_the_file_was_verified_before(store: Store, trained: Artifact) -> None:
    assert trained.text("chunk-0.txt") == "weights 0"
    store.backend.replace(object_key(trained), b"weighty 0")  # the same size
    [verified] = broken(store)
    assert "chunk-0.txt in object" in verified.problem
    assert f"delete the folder {trained.reference} of the store and run again" in verified.problem


def test_what_an_artifact_was_made_from_is_verified_too(store: Store, trained: Artifact) -> None:
    judge = store.open(trained.manifest.lineage["judge"])
    store.backend.delete(object_key(judge))
    [verified] = broken(store)
    assert verified.reference == judge.reference
    assert f"object {object_key(judge)} is missing, expected {len('judge 0')} bytes" in verified.problem


def test_an_artifact_that_is_gone_is_named(store: Store, trained: Artifact) -> None:
    store.backend.delete(f"{trained.reference}/manifest.json")
    assert f"no artifact {trained.reference}" in broken(store)[0].problem


@pytest.mark.parametrize(
    ("old", "new"),
    [(b'"iteration": 1', b'"iteration": 2'), (b'"recipe": "tiny"', b'"recipe": "tin"'), (b"{\n", b"{\n\n"), (b"\n}\n", b"\n}")],
)
def test_a_record_of_which_a_byte_changed_is_found_even_if_it_means_the_same(
    old: bytes, new: bytes, store: Store, trained: Artifact
) -> None:
    content = store.backend.read(RECORDS[1]) or b""
    store.backend.replace(RECORDS[1], content.replace(old, new, 1))
    assert [each.reference for each in broken(store)] == [RECORDS[1]]
    with pytest.raises(CorruptArtifactError, match=r"runs/demo/iteration-1\.json is not"):
        read_iteration(store, "demo", 1)


def test_a_record_that_lies_where_another_belongs_is_found(store: Store, trained: Artifact, run: Setup) -> None:
    write_iteration(run, 2, {"train": trained}, [], [])
    one, two = (store.backend.read(f"runs/demo/iteration-{number}.json") or b"" for number in (1, 2))
    store.backend.replace("runs/demo/iteration-1.json", two)
    store.backend.replace("runs/demo/iteration-2.json", one)
    assert [each.reference for each in broken(store)] == ["runs/demo/iteration-1.json", "runs/demo/iteration-2.json"]


def test_a_record_from_before_there_were_seals_is_read(run: Setup) -> None:
    index = write_iteration(run, 1, {}, [], [])
    assert parse_record(type(index), index.model_dump_json().encode(), RECORDS[1]) == index
    assert parse_record(type(index), sealed(index, RECORDS[1]), RECORDS[1]) == index
    with pytest.raises(CorruptArtifactError, match="its seal says"):
        parse_record(type(index), sealed(index, RECORDS[0]), RECORDS[1])


def test_an_index_that_points_at_other_content_is_found(store: Store, trained: Artifact, run: Setup) -> None:
    index = read_iteration(store, "demo", 1)
    entry = index.artifacts["train"].model_copy(update={"digest": "0" * 64})
    changed = index.model_copy(update={"artifacts": {"train": entry}})
    store.backend.replace(RECORDS[1], sealed(changed, RECORDS[1]))
    assert "the run's index says 0000000000000000" in broken(store)[0].problem


def test_an_index_that_later_records_tell_of_is_missed(store: Store, trained: Artifact, run: Setup) -> None:
    write_iteration(run, 2, {"train": trained}, [], [])
    store.backend.delete("runs/demo/iteration-1.json")
    assert [(each.reference, each.command) for each in broken(store)] == [("runs/demo/iteration-1.json", "resume {run}")]
    store.backend.delete("runs/demo/iteration-2.json")
    assert broken(store) == []  # a run whose first iteration has not ended
    write_iteration(run, 1, {"train": trained}, [], [])
    publish(store, "demo", 1)
    store.backend.delete("runs/demo/iteration-1.json")
    assert [each.reference for each in broken(store)] == ["runs/demo/iteration-1.json"]


def test_the_record_of_a_branch_is_missed_and_made_again_by_the_same_command(
    tiny: Recipe, cpu: Hardware, store: Store, trained: Artifact
) -> None:
    setup = Setup("first", start(store, "first", tiny, lambda recipe: recipe), cpu, store)
    write_iteration(setup, 1, {"train": trained}, [], [])
    made = branch(store, "first", 1, tiny, "second", lambda recipe: recipe)
    for key in ("branch.json", "iteration-1.json", "recipe.json"):
        store.backend.delete(f"runs/second/{key}")
        rows = [each for each in verify_run(store, "second") if each.problem]
        assert [each.reference for each in rows] == [f"runs/second/{key}"]
        if key == "branch.json":
            with pytest.raises(
                RunError, match=r"branch.json is missing, .*sppo branch first --at T --recipe RECIPE --run second"
            ):
                find_branch(store, "second")
        branch(store, "first", 1, tiny, "second", lambda recipe: recipe)
        assert all(not each.problem for each in verify_run(store, "second"))
        assert find_branch(store, "second") == made.model_copy(update={"created": find_branch(store, "second").created})  # type: ignore[union-attr]


def test_what_is_set_aside_is_what_is_broken_and_a_resume_makes_only_that_again(store: Store, trained: Artifact) -> None:
    damaged, whole = object_key(trained, 1), object_key(trained, 0)
    store.backend.replace(damaged, b"")
    gone = set_aside(store, broken(store))
    assert gone == [f"{trained.reference}/manifest.json", f"{trained.reference}/parts/chunk-1.json", damaged]
    assert store.backend.read(whole) == b"weights 0"
    judge = store.open(trained.manifest.lineage["judge"])
    again = step("train", "weights", judge=judge)
    assert store.build(again).digest == trained.digest
    assert chunks_made(again) == ["chunk-1"]
    assert broken(store) == []


def test_a_damaged_manifest_costs_no_chunk(store: Store, trained: Artifact) -> None:
    key = f"{trained.reference}/manifest.json"
    content = store.backend.read(key) or b""
    store.backend.replace(key, content.replace(b'"counts": {}', b'"counts": {"chunks": 3}'))
    assert set_aside(store, broken(store)) == [key]
    again = step("train", "weights", judge=store.open(trained.manifest.lineage["judge"]))
    assert store.build(again).digest == trained.digest
    assert chunks_made(again) == []


def test_a_part_of_an_unfinished_artifact_is_verified_and_set_aside_alone(store: Store, run: Setup) -> None:
    identity = step("generate", "responses").identity
    reference = f"generate/{identity.fingerprint}"
    with store.workspace("generate", identity.fingerprint) as workspace:
        for number in range(2):
            (workspace.folder / "x.txt").write_text(f"responses {number}")
            workspace.commit_part(f"chunk-{number}", [workspace.folder / "x.txt"])
        damaged = workspace.part("chunk-1").files[0].key("generate", identity.fingerprint)  # type: ignore[union-attr]
    store.backend.replace(damaged, b"responses 2")
    rows = verify_run(store, "demo", [reference])
    assert [(row.reference, row.broken) for row in rows if row.problem] == [
        (reference, (f"{reference}/parts/chunk-1.json", damaged))
    ]
    set_aside(store, rows)
    assert verify_artifact(store, reference).problem == ""
    assert verify_artifact(store, reference).in_the_making


def test_what_was_made_anew_while_the_rest_was_read_is_not_set_aside(store: Store, trained: Artifact) -> None:
    whole = {key: store.backend.read(key) or b"" for key in store.backend.list(trained.reference)}
    store.backend.replace(object_key(trained), b"")
    rows = broken(store)
    for key, content in whole.items():
        store.backend.replace(key, content)
    assert set_aside(store, rows) == []
    assert {key: store.backend.read(key) for key in store.backend.list(trained.reference)} == whole


def test_nothing_is_deleted_under_the_hands_of_one_who_makes_it(store: Store, trained: Artifact) -> None:
    store.backend.replace(object_key(trained), b"")
    rows = broken(store)
    with ThreadPoolExecutor(1) as another:  # a thread of its own, or it would be ourselves
        at_it = another.submit(Lease, store.backend, *trained.reference.split("/")).result()
        assert another.submit(at_it.take).result() == ""
        with pytest.raises(RunError, match=r"train/\w{64} is being made right now by process .*; wait for it, or end it"):
            set_aside(store, rows)
        at_it.release()
    assert store.backend.read(f"{trained.reference}/manifest.json") is not None


def test_an_artifact_that_was_made_from_two_files_of_another_shows_that_once(store: Store, run: Setup) -> None:
    prompts = store.build(step("split", "prompts"))
    files = {name: prompts.file(name) for name in prompts.file_names()}
    trained = store.build(step("train", "weights", **files))
    write_iteration(run, 1, {"train": trained}, [], [])
    assert [each.reference for each in verify_run(store, "demo")] == [*RECORDS, trained.reference, prompts.reference]


def test_a_run_that_was_never_started_cannot_be_verified(store: Store) -> None:
    with pytest.raises(RunError, match="no run 'demo'"):
        verify_run(store, "demo")


def shown(store: Store, mend: bool = False) -> tuple[bool, str]:
    written = StringIO()
    return show_verified(Console(file=written, width=250), store, "demo", mend), written.getvalue()


def test_the_command_shows_counts_bytes_and_seconds_and_what_to_type(store: Store, trained: Artifact, run: Setup) -> None:
    remember_start(run, "cpu", 1, "a test")
    well, said = shown(store)
    assert well
    assert "2 artifacts and 3 records, 9 files, 0.0 MB, " in said
    assert ": 0 damaged" in said
    store.backend.replace(object_key(trained), b"")
    well, said = shown(store)
    assert not well
    assert ": 1 damaged" in said
    assert f"verify demo --mend --store {store.url}" in said
    with temporary_settings(restore_defaults={PREFECT_API_URL}):  # else it asks the server that other tests may have left on
        well, said = shown(store, mend=True)
    assert well
    assert "3 objects set aside:" in said
    assert f"next     sppo resume demo --store {store.url}" in said.replace(
        said[said.find("next") + 9 : said.find(" resume")], "sppo"
    )


def test_nothing_is_set_aside_of_what_somebody_is_making(
    store: Store, trained: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.backend.replace(object_key(trained), b"")
    store.backend.replace(f"{trained.reference}/work/1-of-1.json", b"{}")
    assert holder(store.backend, "train", trained.manifest.fingerprint) is not None
    with pytest.raises(RunError, match=r"train/.* is being made right now by .*, so nothing is set aside; wait for it"):
        check_nobody_holds(store, broken(store))
