"""A run with every kind of artifact and record, made for real without Prefect, and made again where something of it is gone."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import sppo.alpaca_eval.judging
import sppo.alpaca_eval.prompts
import sppo.alpaca_eval.results
import sppo.benchmark
import sppo.check
import sppo.duel
import sppo.estimate
import sppo.evaluate
import sppo.export
import sppo.generate
import sppo.judges
import sppo.policy
import sppo.rank
import sppo.score
import sppo.split
import sppo.train
from sppo.branch import branch
from sppo.fingerprint import file_sha256
from sppo.hardware import load_hardware
from sppo.last_start import remember_start
from sppo.overruling import pass_gates
from sppo.progress import Report, silent
from sppo.publication import publish
from sppo.recipe import Recipe, load_recipe
from sppo.runs import IterationIndex, Setup, read_recipe, start, write_iteration
from sppo.store import Artifact, Identity, Outcome, Store, Workspace

RUN, BRANCHED, PUBLISHED = "whole", "whole-again", "good"
RECIPES = Path(__file__).resolve().parents[2] / "deployments" / "recipes"
HARDWARE = """
name: one-core
device: cpu
threads: 1
generate: {processes: 1, tensor_parallel: 1, memory_share: 0.5, kv_cache_mib: 64, max_concurrent: 16, timeout_s: 300}
rank: {processes: 1, tokens_per_batch: 1024, timeout_s: 300}
train:
  processes: 1
  tokens_per_device: 512
  zero_stage: 1
  offload: none
  recompute_activations: false
  checkpoint_steps: 1
  timeout_s: 300
"""


class CountingStore(Store):
    """A store that says what was made."""

    made: list[str]

    def build_together(
        self,
        identities: Sequence[Identity],
        run: "Callable[[Sequence[Workspace]], Sequence[Outcome]]",
        report: Report = silent,
    ) -> list[Artifact]:
        def counted(workspaces: Sequence[Workspace]) -> Sequence[Outcome]:
            self.made += [f"{workspace.stage}/{workspace.fingerprint}" for workspace in workspaces]
            return run(workspaces)

        return super().build_together(identities, counted, report)


def opened(url: str, scratch: Path) -> CountingStore:
    """The store, of which nothing is made yet."""
    store = CountingStore(url, scratch)
    store.made = []
    return store


def asked(folder: Path, policy: Path, judge: Path) -> Recipe:
    """Two iterations of eight prompts by a random policy in bf16 and a random judge, with AlpacaEval on questions of our own,
    and gates that a random policy does not pass."""
    questions = [
        {"dataset": "own", "instruction": f"Name {number} birds.", "output": "A wren.", "generator": "the-reference"}
        for number in range(6)
    ]
    (folder / "set.json").write_text(json.dumps(questions))
    pairrm = f"{{kind: pairrm, source: {{kind: folder, path: {judge}}}, max_source_tokens: 64, max_candidate_tokens: 48}}"
    own = f"{{source: {folder / 'set.json'}, sha256: {file_sha256(folder / 'set.json')}}}"
    decoding = "{temperature: 1.0, top_p: 1.0, max_tokens: 8}"
    changes = (
        "iterations=2",
        f"policy.source={{kind: folder, path: {policy}}}",
        "policy.dtype=bfloat16",
        "prompts.source={kind: world, train_prompts: 8, test_prompts: 4}",
        "prompts.max_prompt_tokens=256",
        "generation={engine: transformers, responses: 2, temperature: 1.0, top_p: 1.0, max_tokens: 8}",
        f"judge={pairrm}",
        "selection={responses: all, drop_ties: false, cut: keep, empty: keep}",
        "training.learning_rate=0.01",
        "training.schedule_epochs=1",
        "training.stop_epochs=1",
        "training.global_batch=4",
        "training.max_tokens=300",
        "evaluation.sampling={responses: 1, temperature: 1.0, top_p: 1.0, max_tokens: 8}",
        "evaluation.judges=[{kind: world-rule}]",
        "evaluation.max_prompts=4",
        "evaluation.resamples=100",
        f"evaluation.alpaca_eval={{judge: {pairrm}, decoding: {decoding}, evaluation_set: {own}, gamed_baselines: null}}",
    )
    return load_recipe("tiny", RECIPES, changes)


def begin(store: Store, recipe: Recipe, folder: Path) -> Setup:
    """The run, started or continued."""
    (folder / "one-core.yaml").write_text(HARDWARE)
    resolved = start(store, RUN, recipe, lambda open_recipe: open_recipe)
    setup = Setup(RUN, resolved, load_hardware(str(folder / "one-core.yaml"), folder), store)
    remember_start(setup, "one-core", 1, "a test")
    return setup


def iterate(setup: Setup) -> IterationIndex:
    """Iteration 1 of Algorithm 1, its measurements and its index."""
    store, recipe, hardware = setup.store, setup.recipe, setup.hardware
    base = sppo.policy.build(store, recipe)
    judge = sppo.judges.build(store, recipe.judge, recipe)
    assert judge is not None
    prompts = store.build(sppo.split.step(recipe, base))
    reference = store.build(sppo.alpaca_eval.prompts.reference_step(recipe))
    questions = store.build(sppo.alpaca_eval.prompts.step(recipe, base, reference))
    drawn, held_out = sppo.generate.training_draw(recipe, prompts, 1), sppo.generate.held_out_draw(recipe, prompts)
    alpaca = sppo.alpaca_eval.prompts.alpaca_draw(recipe, questions)

    responses, before = sppo.generate.build(store, recipe, hardware, base, [drawn, held_out])
    ranked = store.build(sppo.rank.step(recipe, hardware, judge, drawn.prompts, responses))
    targets = store.build(sppo.estimate.step(recipe, ranked, responses))
    trained = store.build(sppo.train.step(recipe, hardware, 1, base, drawn.prompts, responses, targets))

    exported = sppo.export.build(store, recipe, trained)
    answers, answered = sppo.generate.build(store, recipe, hardware, exported, [held_out, alpaca])
    samples = [before, answers]
    duels = sppo.duel.build(store, recipe, hardware, [None], held_out.prompts, answers, [before])
    evaluated = store.build(sppo.evaluate.step(recipe, 1, samples, duels))
    score = sppo.score.build(store, recipe, hardware, base, held_out.prompts, answers)
    checked = store.build(sppo.check.step(recipe, samples, duels, {0: score}, (responses, ranked)))
    judged = sppo.alpaca_eval.judging.build(store, recipe, hardware, judge, alpaca.prompts, reference, [answered])[0]
    measured = store.build(sppo.alpaca_eval.results.step(recipe, reference, answered, judged))
    benchmark = store.build(sppo.benchmark.step(recipe, 1, {1: measured}, {}))

    stages: dict[str, Artifact | None] = {"policy": base, "judge": judge, "split": prompts, "generate": responses}
    stages |= {"rank": ranked, "estimate": targets, "train": trained, "export": exported, "evaluate": evaluated}
    # what AlpacaEval asked, answered and judged is in the index only by what was made from it
    stages |= {"score.0": score, "check": checked, "alpaca-eval.1": measured, "benchmark": benchmark}
    return write_iteration(setup, 1, stages, samples, duels)


def go_on(store: Store, index: IterationIndex) -> None:
    """What else is written about a run: its gates overruled, its policy published, a branch of it."""
    pass_gates(store, index, "a test")
    publish(store, RUN, 1, PUBLISHED)
    recipe = read_recipe(store, RUN)
    training = recipe.training.model_copy(update={"eta": 4.0})
    branch(store, RUN, 1, recipe.model_copy(update={"training": training}), BRANCHED, lambda open_recipe: open_recipe)
