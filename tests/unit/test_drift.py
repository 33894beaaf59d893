"""What is made again when something changed between a crash and its resume, what is not, and what `sppo status` says of it.

A whole iteration with its real identities and made-up content: policy, judge and split are made for real, of what heavy stages
make only the fingerprint is written."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

import sppo.store.store
from flows import survey as looking
from flows.status import show_status
from sppo.errors import EvaluationError, RunError
from sppo.fingerprint import file_sha256
from sppo.hardware import Hardware
from sppo.last_start import remember_start
from sppo.progress import Report, silent
from sppo.recipe import Recipe, overridden
from sppo.runs import Entry, IterationIndex, Setup, index_key, start
from sppo.stages import STAGES
from sppo.store import Artifact, Identity, Outcome, Store, Workspace
from sppo.store.seal import sealed

REAL = ("policy", "judge", "split", "alpaca-reference", "alpaca-prompts")
LAYOUT = "pairrm, max_source_tokens: 64, max_candidate_tokens: 48, source:"


class Filling(looking._LookingStore):
    """A store in which every build of a heavy stage writes its fingerprint for content."""

    made: list[str]
    """Stages made, in their order."""

    def build_together(
        self,
        identities: Sequence[Identity],
        run: Callable[[Sequence[Workspace]], Sequence[Outcome]],
        report: Report = silent,
    ) -> list[Artifact]:
        def fill(workspaces: Sequence[Workspace]) -> Sequence[Outcome]:
            self.made += [workspace.stage for workspace in workspaces]
            if workspaces[0].stage in REAL:
                return run(workspaces)
            for workspace in workspaces:
                workspace.add_text(workspace.fingerprint, "content.parquet")
            return [Outcome("filled", {"prompts_selected": 8})] * len(workspaces)

        artifacts = Store.build_together(self, identities, fill, report)
        self.stages += [
            looking.StageState(artifact.manifest.stage, artifact.manifest.fingerprint, True) for artifact in artifacts
        ]
        return artifacts


@pytest.fixture
def sources(tmp_path: Path, random_policy: Callable[[str], Path], random_judge: Path) -> Path:
    """A folder with a policy, a judge, prompts and an evaluation set of one's own."""
    folder = tmp_path / "sources"
    shutil.copytree(random_policy("llama"), folder / "policy")
    shutil.copytree(random_judge, folder / "judge")
    (folder / "prompts.jsonl").write_text("".join(f'{{"prompt": "Name {number} birds."}}\n' for number in range(40)))
    questions = [{"instruction": f"Why {number}?", "output": "So.", "generator": "them"} for number in range(6)]
    (folder / "set.json").write_text(json.dumps(questions))
    return folder


@pytest.fixture
def recipe(tiny: Recipe, sources: Path) -> Recipe:
    judge = (
        f"{{kind: pairrm, source: {{kind: folder, path: {sources}/judge}}, max_source_tokens: 64, max_candidate_tokens: 48}}"
    )
    pinned = f"{{source: {sources}/set.json, sha256: {file_sha256(sources / 'set.json')}}}"
    return overridden(
        tiny,
        (
            f"policy.source={{kind: folder, path: {sources}/policy}}",
            f"prompts.source={{kind: own, dataset: {sources}/prompts.jsonl, test_share: 0.3}}",
            "prompts.max_prompt_tokens=256",
            f"judge={judge}",
            f"evaluation.judges=[{judge}, {{kind: world-rule}}]",
            "evaluation.alpaca_eval={judge: {kind: world-rule}, decoding: {temperature: 1.0, top_p: 1.0, max_tokens: 8}, "
            f"evaluation_set: {pinned}, gamed_baselines: null}}",
            "generation.engine=transformers",
            "iterations=2",
        ),
    )


@pytest.fixture
def run_on(store: Store, cpu: Hardware) -> Callable[..., list[str]]:
    """Does what a resume of the run does, up to a stage: the stages it makes, in their order."""

    def go(recipe: Recipe, run: str = "demo", iteration: int = 1) -> list[str]:
        start(store, run, recipe, lambda one: one)
        filling = Filling(store.url, store.scratch)
        filling.made, filling.totals = [], {}
        walk = looking._Walk()
        for number in range(1, iteration + 1):
            filling.stages = []
            looking._look(filling, recipe, cpu, number, walk)
            names: dict[str, Entry] = {}
            for state in filling.stages:
                digest = store.open(f"{state.stage}/{state.fingerprint}").digest
                count = sum(name.partition(".")[0] == state.stage for name in names)
                name = f"{state.stage}.{count}" if state.stage == "sample" or count else state.stage
                names[name] = Entry(reference=f"{state.stage}/{state.fingerprint}", digest=digest)
            index = IterationIndex(run=run, recipe=recipe.name, iteration=number, artifacts=names)
            store.backend.replace(index_key(run, number), sealed(index, index_key(run, number)))
        return filling.made

    return go


def said(store: Store, run: str = "demo") -> str:
    written = StringIO()
    show_status(Console(file=written, width=400), store, run)
    return written.getvalue()


def forget_index(store: Store) -> None:
    """As if the crash had come before the iteration's end."""
    store.backend.delete(index_key("demo", 1))


def rewrite_prompts(sources: Path) -> None:
    (sources / "prompts.jsonl").write_text("".join(f'{{"prompt": "Name {number} trees."}}\n' for number in range(40)))


def change_judge(sources: Path) -> None:
    path = sources / "judge" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "drop_out": 0.25}))


def change_policy(sources: Path) -> None:
    path = sources / "policy" / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "temperature": 0.5}))


AFTER_TRAINING = {
    "train",
    "sample",
    "duel",
    "evaluate",
    "score",
    "check",
    "alpaca-answer",
    "alpaca-judge",
    "alpaca-eval",
    "benchmark",
}
AFTER_RANKING = {"rank", "estimate"} | AFTER_TRAINING
EVERYTHING_OF_A_POLICY = {"policy", "split", "generate", "alpaca-prompts"} | AFTER_RANKING


@pytest.mark.parametrize("finished", [True, False], ids=["finished once", "cut off"])
@pytest.mark.parametrize(
    ("change", "first", "why", "again"),
    [
        (rewrite_prompts, "split", "which had dataset ", {"split", "generate"} | AFTER_RANKING),
        (change_judge, "judge", "which had folder ", {"judge"} | AFTER_RANKING),
        (change_policy, "policy", "which had files ", EVERYTHING_OF_A_POLICY),
    ],
    ids=["prompts", "judge's weights", "policy"],
)
def test_a_source_that_changed_is_made_again_with_what_follows_from_it(
    recipe: Recipe,
    store: Store,
    sources: Path,
    run_on: Callable[..., list[str]],
    change: Callable[[Path], None],
    first: str,
    why: str,
    again: set[str],
    finished: bool,
) -> None:
    run_on(recipe)
    change(sources)
    if not finished:
        forget_index(store)
    status = said(store)
    [line] = [line for line in status.splitlines() if why in line]
    assert f"not {first}/" in line
    assert ", now " in line
    assert "0 of 2 iterations finished" in status
    made = run_on(recipe)
    assert made[0] == first
    assert set(made) == again
    assert run_on(recipe) == []
    assert why not in said(store)


def test_a_damaged_manifest_of_nobodys_does_not_keep_a_run_from_being_looked_at(
    recipe: Recipe, store: Store, sources: Path, run_on: Callable[..., list[str]]
) -> None:
    run_on(recipe)
    store.backend.replace(f"split/{'0' * 64}/manifest.json", b"{")
    rewrite_prompts(sources)
    forget_index(store)
    assert "which had dataset " in said(store)
    shutil.rmtree(sources / "judge")  # looked for by its recipe part
    store.backend.replace(f"judge/{'0' * 64}/manifest.json", b"{")
    assert "which had dataset " in said(store)


def test_code_of_a_new_version_makes_its_stage_again_and_what_follows(
    recipe: Recipe, store: Store, run_on: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_on(recipe)
    version = STAGES["estimate"].version
    monkeypatch.setitem(STAGES, "estimate", replace(STAGES["estimate"], version=version + 1))
    status = said(store)
    assert f"which had the stage's code in version {version}, now {version + 1}" in status
    assert "resume   iteration 1: estimates, then trains" in status
    assert set(run_on(recipe)) == {"estimate"} | AFTER_TRAINING


def test_other_libraries_and_another_version_of_this_package_make_nothing_again(
    recipe: Recipe, store: Store, run_on: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_on(recipe)
    monkeypatch.setattr(sppo.store.store, "__version__", "9.9.9")
    import torch

    monkeypatch.setattr(torch, "__version__", "9.9.9")
    assert "1 of 2 iterations finished" in said(store)
    assert run_on(recipe) == []


def test_a_file_that_was_only_touched_makes_nothing_again(
    recipe: Recipe, store: Store, sources: Path, run_on: Callable[..., list[str]]
) -> None:
    run_on(recipe)
    content = (sources / "prompts.jsonl").read_bytes()
    (sources / "prompts.jsonl").unlink()
    (sources / "prompts.jsonl").write_bytes(content)
    assert "1 of 2 iterations finished" in said(store)
    assert run_on(recipe) == []


def test_a_source_that_is_gone_leaves_a_finished_iteration_as_it_was(
    recipe: Recipe, store: Store, sources: Path, run_on: Callable[..., list[str]]
) -> None:
    run_on(recipe)
    sources.rename(sources.with_name("elsewhere"))
    assert "1 of 2 iterations finished" in said(store)


def test_an_evaluation_set_that_changed_is_refused_for_numbers_of_two_sets_cannot_be_compared(
    recipe: Recipe, store: Store, sources: Path, run_on: Callable[..., list[str]]
) -> None:
    run_on(recipe)
    questions = json.loads((sources / "set.json").read_text())
    (sources / "set.json").write_text(json.dumps([*questions, {**questions[0], "instruction": "Why not?"}]))
    assert run_on(recipe) == []  # what the recipe pins is in the store
    again = overridden(recipe, ("evaluation.alpaca_eval.evaluation_set.sha256=" + "a" * 64,))
    with pytest.raises(EvaluationError, match=r"set.json has the sha256 \w+; expected aaaa"):
        run_on(again, run="another")


def test_another_recipe_is_another_run_that_makes_only_what_differs(
    recipe: Recipe, store: Store, run_on: Callable[..., list[str]]
) -> None:
    run_on(recipe)
    other = overridden(recipe, ("training.eta=4",))
    with pytest.raises(RunError, match=r"was started with another recipe: training.eta 10.0, now 4.0; choose another run name"):
        start(store, "demo", other, lambda one: one)
    start(store, "other", other, lambda one: one)
    status = said(store, "other")
    assert "which had training.eta 10.0, now 4.0" in status
    assert "resume   iteration 1: trains" in status
    assert set(run_on(other, run="other")) == AFTER_TRAINING


def test_other_hardware_makes_nothing_again_and_says_so_where_a_checkpoint_cannot_go_on(
    recipe: Recipe, store: Store, cpu: Hardware, run_on: Callable[..., list[str]], tmp_path: Path
) -> None:
    run_on(recipe)
    index = json.loads(store.backend.read(index_key("demo", 1)) or b"")
    train = index["artifacts"]["train"]["reference"]
    forget_index(store)
    store.backend.delete(f"{train}/manifest.json")
    with store.workspace(*train.split("/")) as workspace:
        workspace.commit_part("checkpoint-000016-ranks2-zero3", [])
    machine = tmp_path / "mine.yaml"

    def on(processes: int, zero_stage: int) -> str:
        layout = cpu.train.model_copy(update={"processes": processes, "zero_stage": zero_stage})
        machine.write_text(json.dumps({**cpu.model_dump(mode="json"), "name": "mine", "train": layout.model_dump(mode="json")}))
        setup = Setup(run="demo", recipe=recipe, hardware=cpu, store=store)
        remember_start(setup, str(machine), None, "a test")
        return said(store)

    assert "trains on from step 16" in on(2, 3)
    status = on(1, 0)
    assert "checkpoint-000016-ranks2-zero3 is of another layout than ranks1-zero0: training begins again" in status
    assert "resume   iteration 1: trains, then draws held-out answers" in status
