"""`sppo status`: stages in words, on a store that holds a run as far as each test says."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

import sppo.judges
import sppo.policy
import sppo.split
from flows.preparation import RECIPES
from flows.status import duration, resume_words, show_status, spent_words, stage_words
from flows.survey import IterationState, StageState, survey
from sppo.branch import branch
from sppo.hardware import Hardware
from sppo.last_start import remember_start
from sppo.launch.work import Failure, WorkRecord, now, work_key
from sppo.progress import Progress
from sppo.recipe import Recipe, load_recipe, overridden
from sppo.runs import IterationIndex, Setup, start, write_iteration
from sppo.stages import STAGES, stages_of
from sppo.store import Artifact, Identity, Outcome, Step, Store, Workspace
from sppo.store.seal import sealed

FINGERPRINT = "f" * 64
ORDER_OF_TINY = [stage.name for stage in stages_of(load_recipe("tiny", RECIPES))]


def shown(store: Store, run: str) -> str:
    written = StringIO()
    show_status(Console(file=written, width=160), store, run)
    return written.getvalue()


def work(**changes: object) -> WorkRecord:
    record = WorkRecord(
        stage="train",
        fingerprint=FINGERPRINT,
        number=1,
        of=1,
        attempt="a",
        host="gpu-7",
        process=4242,
        devices=("cuda:0", "cuda:1"),
        state="running",
        progress=Progress(stage="train", done=20, total=48, unit="steps", note="loss 0.021"),
        begun="2026-11-22T03:04:05+00:00",
        at=now(),
    )
    return record.model_copy(update=changes)


def state(stage: str, committed: bool, **more: object) -> StageState:
    return StageState(stage, f"{stage}-{more}", committed, **more)  # type: ignore[arg-type]


def artifact(store: Store, stage: str, device_seconds: float = 0.0) -> Artifact:
    def run(workspace: Workspace) -> Outcome:
        for name in ("train-1.parquet", "train-2.parquet", "test.parquet"):
            workspace.add_text(stage, name)
        return Outcome(
            "made", {"train_1": 8, "train_2": 8, "test": 4}, {"device_seconds": device_seconds} if device_seconds else {}
        )

    part: dict[str, object] = {"judge.source": {"kind": "world"}} if stage == "judge" else {"named": stage}
    name = stage.partition(".")[0]
    return store.build(Step(Identity(name, STAGES[name].version, part, {}), run))


def finish(store: Store, run: str, recipe: Recipe, hardware: Hardware, iteration: int) -> IterationIndex:
    names = ["policy", "judge", "split", "generate", "rank", "estimate", "train", "evaluate"]
    stages = {name: artifact(store, name, 1800.0 if name == "train" else 0.0) for name in names}
    samples = [artifact(store, f"sample.{number}") for number in range(iteration + 1)]
    setup = Setup(run=run, recipe=recipe, hardware=hardware, store=store)
    return write_iteration(setup, iteration, stages, samples, [[artifact(store, "duel")]])


def test_a_run_whose_first_stage_never_began_says_what_a_resume_would_do(tiny: Recipe, store: Store) -> None:
    start(store, "demo", tiny, lambda recipe: recipe)
    said = shown(store, "demo")
    assert "policy" in said
    assert "not begun" in said
    assert "run demo, recipe tiny: 0 of 3 iterations finished" in said
    assert (
        "resume   iteration 1: makes the base policy, then makes the judge, splits the prompts, draws responses, ranks, "
        "estimates, trains, draws held-out answers, judges duels, evaluates, "
        "scores held-out answers by earlier policies, checks what changed, then iterations 2 and 3"
    ) in said.replace("\n", " ")
    assert "spent    0 s of work" in said


def test_a_policy_folder_that_only_the_workers_have_is_said_not_raised(tiny: Recipe, store: Store) -> None:
    recipe = overridden(tiny, ("policy.source={kind: folder, path: /only/there}",))
    start(store, "demo", recipe, lambda open_recipe: open_recipe)
    assert "cannot be looked at from here: no folder /only/there" in shown(store, "demo")


def test_what_was_made_from_sources_that_are_out_of_reach_is_found_by_what_it_was_made_for(
    tiny: Recipe, cpu: Hardware, store: Store, tmp_path: Path, random_policy: Callable[[str], Path], random_judge: Path
) -> None:
    shutil.copytree(random_policy("llama"), tmp_path / "policy")
    shutil.copytree(random_judge, tmp_path / "judge")
    (tmp_path / "prompts.jsonl").write_text("".join(f'{{"prompt": "Name {n} birds."}}\n' for n in range(30)))
    sizes = "max_source_tokens: 64, max_candidate_tokens: 48"
    recipe = overridden(
        tiny,
        (
            f"policy.source={{kind: folder, path: {tmp_path / 'policy'}}}",
            f"judge={{kind: pairrm, source: {{kind: folder, path: {tmp_path / 'judge'}}}, {sizes}}}",
            f"evaluation.judges=[{{kind: pairrm, source: {{kind: folder, path: {tmp_path / 'judge'}}}, {sizes}}}]",
            f"prompts.source={{kind: own, dataset: {tmp_path / 'prompts.jsonl'}, test_share: 0.3}}",
            "prompts.max_prompt_tokens=256",
            "iterations=1",
        ),
    )
    judge = sppo.judges.step(recipe.judge, recipe)
    assert judge is not None
    store.build(judge)
    store.build(sppo.split.step(recipe, sppo.policy.build(store, recipe)))
    before = survey(store.url, recipe, cpu)
    for made_from in ("policy", "judge", "prompts.jsonl"):
        (tmp_path / made_from).rename(tmp_path / f"{made_from}-elsewhere")

    assert survey(store.url, recipe, cpu) == before
    assert [stage.stage for stage in before[0].stages] == ["policy", "judge", "split", "generate", "sample"]


def test_finished_iterations_are_looked_up_without_the_sources_they_were_made_from(
    tiny: Recipe, cpu: Hardware, store: Store
) -> None:
    recipe = overridden(tiny, ("policy.source={kind: folder, path: /only/there}", "iterations=1"))
    start(store, "demo", recipe, lambda open_recipe: open_recipe)
    index = finish(store, "demo", recipe, cpu, 1)
    [one] = survey(store.url, recipe, cpu, [index])
    assert one.finished
    assert {f"{each.stage}/{each.fingerprint}" for each in one.stages} == {
        entry.reference for entry in index.artifacts.values()
    }
    store.backend.delete(f"{index.artifacts['rank'].reference}/manifest.json")
    [one] = survey(store.url, recipe, cpu, [index])
    assert [each.stage for each in one.missing] == ["rank"]


def test_a_finished_run_shows_who_started_it_and_what_it_cost(
    tiny: Recipe, cpu: Hardware, store: Store, tmp_path: Path
) -> None:
    recipe = overridden(tiny, ("iterations=1",))
    priced = tmp_path / "priced.yaml"
    priced.write_text("like: cpu\nname: priced\nprice_per_device_hour: 3.0\n")
    setup = Setup(run="demo", recipe=start(store, "demo", recipe, lambda one: one), hardware=cpu, store=store)
    remember_start(setup, str(priced), None, "sppo on laptop")
    finish(store, "demo", recipe, cpu, 1)
    said = shown(store, "demo")
    assert "1 of 1 iterations finished" in said
    assert f"by sppo on laptop, on hardware {priced}" in said.replace("\n", "")
    assert "resume   nothing to do: 1 of 1 iterations asked for are finished" in said
    assert "1800 device-seconds, 1.50 at 3 a device hour" in said  # half an hour of one device


def test_a_branched_run_says_where_it_branched_and_goes_on_after_it(tiny: Recipe, cpu: Hardware, store: Store) -> None:
    recipe = start(store, "first", overridden(tiny, ("iterations=2",)), lambda one: one)
    finish(store, "first", recipe, cpu, 1)
    branch(store, "first", 1, overridden(recipe, ("training.eta=4",)), "second", lambda one: one)
    said = shown(store, "second")
    assert "run second, recipe tiny: 1 of 2 iterations finished" in said
    assert "branched iteration 1 is that of run first" in said
    assert "resume   iteration 2: draws 1 of 1 chunks of responses and draws 1 of 1 chunks of held-out answers" in said


def test_a_branch_that_follows_another_judge_has_to_make_it(
    tiny: Recipe, cpu: Hardware, store: Store, random_judge: Path
) -> None:
    recipe = start(store, "first", overridden(tiny, ("iterations=2",)), lambda one: one)
    finish(store, "first", recipe, cpu, 1)
    other = f"{{kind: pairrm, source: {{kind: folder, path: {random_judge}}}, max_source_tokens: 64, max_candidate_tokens: 48}}"
    branch(store, "first", 1, overridden(recipe, (f"judge={other}",)), "second", lambda one: one)
    assert "resume   iteration 2: makes the judge, then" in shown(store, "second")


def test_a_survey_counts_the_chunks_of_a_draw_that_was_cut_off(
    tiny: Recipe, cpu: Hardware, store: Store, random_policy: Callable[[str], Path]
) -> None:
    recipe = overridden(
        tiny,
        (
            f"policy.source={{kind: folder, path: {random_policy('llama')}}}",
            "judge={kind: world-rule}",
            "evaluation.judges=[{kind: world-rule}]",
            "prompts.source={kind: world, train_prompts: 70, test_prompts: 40}",
            "prompts.max_prompt_tokens=256",
            "generation.engine=transformers",
            "evaluation.max_prompts=32",
            "iterations=1",
        ),
    )
    start(store, "demo", recipe, lambda one: one)
    base = sppo.policy.build(store, recipe)
    store.build(sppo.split.step(recipe, base))
    generate = survey(store.url, recipe, cpu)[0].missing[0]
    with store.workspace("generate", generate.fingerprint) as workspace:
        workspace.commit_part("chunk-00001", [])
    key = work_key("generate", generate.fingerprint, 1, 1)
    store.backend.create(key, sealed(work(stage="generate", fingerprint=generate.fingerprint), key))

    generate, sample = survey(store.url, recipe, cpu)[0].missing

    assert (generate.done, generate.total) == (1, 3)  # 70 prompts in chunks of 32
    assert (sample.stage, sample.done, sample.total) == ("sample", 0, 1)  # 32 of 40
    assert [record.host for record in generate.work] == ["gpu-7"]
    assert "iteration 1: draws 2 of 3 chunks of responses and draws 1 of 1 chunks of held-out answers, then ranks" in shown(
        store, "demo"
    )


@pytest.mark.parametrize(
    ("stage", "said"),
    [
        (state("rank", True), "done"),
        (state("rank", False), "not begun"),
        (state("rank", False, done=5, total=8), "5 of 8 chunks committed"),
        (state("train", False, done=16, total=48), "16 of 48 steps committed"),
        (
            state("train", False, work=(work(),)),
            "running on gpu-7 (cuda:0, cuda:1) since 03:04:05 UTC, 20 of 48 steps, loss 0.021",
        ),
        (
            state("train", False, done=16, total=48, work=(work(devices=(), number=2, of=4),)),
            "16 of 48 steps committed\nrunning on gpu-7 (CPU), 2 of 4 since 03:04:05 UTC, 20 of 48 steps, loss 0.021",
        ),
        (
            state(
                "train",
                False,
                work=(
                    work(
                        state="failed",
                        failure=Failure(error="LaunchError", message="exit 9\nlog"),
                    ),
                ),
            ),
            "failed on gpu-7 (cuda:0, cuda:1): LaunchError: exit 9",
        ),
        (state("train", False, work=(work(state="done"),)), "done on gpu-7 (cuda:0, cuda:1), waiting for the others"),
    ],
)
def test_a_stage_is_said_in_one_line_a_machine(stage: StageState, said: str) -> None:
    fresh = tuple(record.model_copy(update={"at": now()}) for record in stage.work)  # they were made when tests were collected
    assert stage_words(replace(stage, work=fresh)).plain == said


def test_a_machine_that_has_not_been_heard_of_is_called_silent_since_then() -> None:
    said = stage_words(state("train", False, work=(work(at="2026-11-22T03:04:05+00:00", progress=None),))).plain
    assert said.startswith("silent for ")
    assert said.endswith(" on gpu-7 (cuda:0, cuda:1), process 4242")


def test_a_resume_trains_on_from_the_last_checkpoint() -> None:
    done = [state(stage, True) for stage in ("generate", "sample", "rank", "estimate")]
    states = [IterationState(2, [*done, state("train", False, done=16, total=48)], order=ORDER_OF_TINY)]
    assert resume_words(states, 3) == (
        "iteration 2: trains on from step 16 of 48, then draws held-out answers, judges duels, evaluates, "
        "scores held-out answers by earlier policies, checks what changed, then iteration 3"
    )


def test_held_out_answers_of_the_policy_before_come_before_ranking() -> None:
    states = [IterationState(1, [state("generate", True), state("sample", False, total=3)], order=ORDER_OF_TINY)]
    assert resume_words(states, 1).startswith("iteration 1: draws 3 of 3 chunks of held-out answers, then ranks, estimates")


def test_an_effort_that_made_two_artifacts_is_counted_once() -> None:
    stages = [
        state("generate", True, seconds=120.5, device_seconds=241.0),
        state("sample", True, seconds=120.5, device_seconds=241.0),
        state("rank", True, seconds=60.0, device_seconds=59.0),
    ]
    # 120.5 + 60 s, 241 + 59 device-seconds = 1/12 hour
    assert spent_words([IterationState(1, stages)], 12.0) == "3 min of work, 300 device-seconds, 1.00 at 12 a device hour"
    assert spent_words([IterationState(1, stages)], None) == "3 min of work, 300 device-seconds"


@pytest.mark.parametrize(("seconds", "said"), [(7.4, "7 s"), (99, "99 s"), (300, "5 min"), (7800, "2 h 10 min")])
def test_durations_are_short(seconds: float, said: str) -> None:
    assert duration(seconds) == said
