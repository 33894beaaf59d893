"""How far a run is: what its index names looked up, and Algorithm 1 walked on from there with a store that never builds."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

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
import sppo.harness
import sppo.judges
import sppo.policy
import sppo.rank
import sppo.score
import sppo.split
import sppo.train
from flows.drift import may_have_drifted, steps_kept, why_made_again
from sppo.alpaca_eval.prompts import alpaca_draw, reference_step
from sppo.errors import CorruptArtifactError, EvaluationError, JudgeError, PolicyError, PromptError
from sppo.fingerprint import canonical_json
from sppo.generate import CHUNK
from sppo.hardware import Hardware
from sppo.launch.work import WorkRecord, all_work
from sppo.lineage import manifests_of
from sppo.progress import Report, silent
from sppo.recipe import EnsembleJudge, Judge, Recipe, StoredModel
from sppo.recipe.judges import Weightless
from sppo.runs import IterationIndex
from sppo.stages import STAGES, recipe_part, stages_of
from sppo.store import Artifact, Identity, Outcome, Step, Store, Workspace
from sppo.train.checkpoints import NAME
from sppo.train.schedule import schedule_of

ORDER = list(STAGES)


@dataclass(frozen=True)
class StageState:
    """One artifact that an iteration is made of."""

    stage: str
    fingerprint: str
    committed: bool
    seconds: float = 0.0
    """Wall time of the attempt that committed."""
    device_seconds: float = 0.0
    done: int = 0
    """Of `total`: chunks, or steps of training, committed while the artifact is not."""
    total: int | None = None
    work: tuple[WorkRecord, ...] = ()
    """Who is at it, or failed at it; only while it is not committed."""
    why: str = ""
    """What is another than it was when something like it was made before, or training saved; empty if nothing was."""


@dataclass
class IterationState:
    """What is known of an iteration: its stages up to the first that is missing, and that one."""

    iteration: int
    stages: list[StageState] = field(default_factory=list)
    problem: str = ""
    """Why it could not be looked at any further from here, such as a policy's folder that only the workers have."""
    order: Sequence[str] = field(default_factory=lambda: ORDER)
    """Names of all stages that it has."""

    @property
    def finished(self) -> bool:
        return any(state.stage == "evaluate" for state in self.stages) and not self.missing

    @property
    def missing(self) -> list[StageState]:
        return [state for state in self.stages if not state.committed]


class _MissingStageError(Exception):
    """A stage is not committed, so what follows has no fingerprint yet."""


class _LookingStore(Store):
    """A store in which every build is a look."""

    stages: list[StageState]
    totals: dict[str, int]
    """Chunks or steps of a stage, once what they follow from is committed."""
    index: IterationIndex | None = None
    """Of the iteration that is looked at, if it was finished once."""
    layout: str | None = None
    """Ranks and ZeRO stage that training would go on with, where that is known."""
    other_layout: str = "iteration_start"
    """The recipe's."""

    def build_together(
        self,
        identities: Sequence[Identity],
        run: Callable[[Sequence[Workspace]], Sequence[Outcome]],
        report: Report = silent,
    ) -> list[Artifact]:
        found = [self._looked_at(identity.stage, identity.fingerprint) for identity in identities]
        for identity, artifact in zip(identities, found, strict=True):
            self.stages.append(self._state(identity.stage, identity.fingerprint, artifact, identity))
        artifacts = [artifact for artifact in found if artifact is not None]
        if len(artifacts) < len(identities):
            raise _MissingStageError
        return artifacts

    def look(self, reference: str) -> Artifact:
        """An artifact that is named, noted like one that is built."""
        stage, fingerprint = reference.split("/")
        artifact = self._looked_at(stage, fingerprint)
        self.stages.append(self._state(stage, fingerprint, artifact))
        if artifact is None:
            raise _MissingStageError
        return artifact

    def _looked_at(self, stage: str, fingerprint: str) -> Artifact | None:
        try:
            return self.find(stage, fingerprint)
        except CorruptArtifactError:
            self.stages.append(StageState(stage, fingerprint, False))
            raise

    def look_for(self, step_of_it: Callable[[], Step], stage: str, recipe: Recipe) -> Artifact:
        """An artifact by its step; where the step's source is out of reach from here, such as a folder that only the workers
        have, the newest that was made by an equal recipe part. Raises what the step does if there is none."""
        try:
            step = step_of_it()
        except (PolicyError, JudgeError, PromptError):
            entry = None if self.index is None else self.index.artifacts.get(stage)
            if entry is not None and entry.reference.startswith(f"{stage}/"):
                return self.look(entry.reference)
            part = recipe_part(stage, recipe)
            alike = [manifest for manifest in manifests_of(self, stage) if manifest.recipe == part]
            if not alike:
                raise
            newest = max(alike, key=lambda manifest: manifest.created)
            return self.look(f"{stage}/{newest.fingerprint}")
        return self.build(step)

    def _state(self, stage: str, fingerprint: str, artifact: Artifact | None, identity: Identity | None = None) -> StageState:
        if artifact is not None:
            manifest = artifact.manifest
            spent = manifest.metrics.get("device_seconds", 0.0)
            return StageState(stage, fingerprint, True, manifest.seconds, spent)
        parts = self.workspace(stage, fingerprint).parts()
        why = "" if parts or identity is None else why_made_again(self, identity, self.index)
        chunks = [name for name in parts if "-again-" not in name]  # where a served judge left pairs open
        done = len(chunks)
        if stage == "train":
            saved = [name for name in parts if NAME.match(name)]
            done, why = steps_kept(saved, self.layout, self.other_layout) if saved else (0, why)
        work = tuple(all_work(self, stage, fingerprint))
        return StageState(stage, fingerprint, False, done=done, total=self.totals.get(stage), work=work, why=why)


@dataclass
class _Walk:
    """What the iterations so far leave to the next one."""

    base: Artifact | None = None
    split: Artifact | None = None
    policy: Artifact | None = None
    samples: list[Artifact] = field(default_factory=list)
    judges: dict[str, Artifact] = field(default_factory=dict)
    """By their source."""


def survey(
    url: str,
    recipe: Recipe,
    hardware: Hardware,
    finished: Sequence[IterationIndex] = (),
    layout: str | None = None,
) -> list[IterationState]:
    """Iterations from the first to the first unfinished one.

    finished: indexes of the first iterations: what they name is looked up, and no source outside the store is asked for,
    unless one that is at hand has changed since and the iteration is the run's own. hardware: any, since it changes no
    fingerprint. layout: that training would go on with, where it is known."""
    store = _LookingStore(url)
    store.layout, store.other_layout = layout, recipe.training.other_layout
    walk = _Walk()
    states: list[IterationState] = []
    order = [stage.name for stage in stages_of(recipe)]
    for iteration in range(1, recipe.iterations + 1):
        states.append(IterationState(iteration, order=order))
        store.stages, store.totals = states[-1].stages, {}
        try:
            store.index = finished[iteration - 1] if iteration <= len(finished) else None
            index = store.index
            if index is None or (index.shared_with is None and may_have_drifted(store, recipe, index)):
                _look(store, recipe, hardware, iteration, walk)
            else:
                _look_up(store, index, walk)
        except _MissingStageError:
            break
        except (CorruptArtifactError, EvaluationError, PolicyError, JudgeError, PromptError) as problem:
            states[-1].problem = str(problem).partition("\n")[0]
            break
    return states


def _look_up(store: _LookingStore, index: IterationIndex, walk: _Walk) -> None:
    entries = sorted(index.artifacts.items(), key=lambda named: ORDER.index(named[0].partition(".")[0]))
    found = {name: store.look(entry.reference) for name, entry in entries}
    walk.base, walk.split, walk.policy = found["policy"], found["split"], found["train"]
    walk.samples = [found[f"sample.{number}"] for number in range(index.iteration)]
    if "judge" in found:  # under its own source: the run that this one branched from may have followed another judge
        walk.judges[canonical_json(found["judge"].manifest.recipe.get("judge.source"))] = found["judge"]


def _look(store: _LookingStore, recipe: Recipe, hardware: Hardware, iteration: int, walk: _Walk) -> None:
    base = walk.base = walk.base or _base(store, recipe)
    judges = [_judge(store, recipe, judge, walk) for judge in (recipe.judge, *recipe.evaluation.judges)]
    prompts = walk.split = walk.split or store.look_for(lambda: sppo.split.step(recipe, base), "split", recipe)
    counts = prompts.manifest.counts
    store.totals["generate"] = math.ceil(counts[f"train_{iteration}"] / CHUNK)
    store.totals["sample"] = math.ceil(min(counts["test"], recipe.evaluation.max_prompts) / CHUNK)
    drawn = sppo.generate.training_draw(recipe, prompts, iteration)
    held_out = sppo.generate.held_out_draw(recipe, prompts)
    policy = walk.policy or base
    loaded = sppo.export.build(store, recipe, policy)
    responses, before = sppo.generate.build(store, recipe, hardware, loaded, [drawn, held_out])
    store.totals |= {"rank": len(responses.file_names(".parquet")), "duel": len(before.file_names(".parquet"))}
    ranked = store.build(sppo.rank.step(recipe, hardware, judges[0], drawn.prompts, responses))
    targets = store.build(sppo.estimate.step(recipe, ranked, responses))
    store.totals["train"] = schedule_of(recipe.training, targets.manifest.counts["prompts_selected"]).stop
    trained = store.build(sppo.train.step(recipe, hardware, iteration, policy, drawn.prompts, responses, targets))
    walk.policy = trained
    exported = sppo.export.build(store, recipe, trained)
    answers = sppo.generate.build(store, recipe, hardware, exported, [held_out])[0]
    walk.samples.append(before)
    duels = sppo.duel.build(store, recipe, hardware, judges[1:], held_out.prompts, answers, walk.samples)
    samples = [*walk.samples, answers]
    store.build(sppo.evaluate.step(recipe, iteration, samples, duels))
    scorers = {0: sppo.export.build(store, recipe, base), iteration - 1: loaded}
    store.totals["score"] = len(answers.file_names(".parquet"))
    scores = {
        number: sppo.score.build(store, recipe, hardware, scorer, held_out.prompts, answers)
        for number, scorer in scorers.items()
    }
    store.build(sppo.check.step(recipe, samples, duels, scores, (responses, ranked)))
    _look_for_benchmarks(store, recipe, hardware, iteration, base, {**scorers, iteration: exported}, walk)


def _look_for_benchmarks(
    store: _LookingStore,
    recipe: Recipe,
    hardware: Hardware,
    iteration: int,
    base: Artifact,
    policies: Mapping[int, Artifact],
    walk: _Walk,
) -> None:
    alpaca: dict[int, Artifact] = {}
    asked = recipe.evaluation.alpaca_eval
    if asked is not None:
        reference = store.build(reference_step(recipe))
        draw = alpaca_draw(recipe, store.build(sppo.alpaca_eval.prompts.step(recipe, base, reference)))
        judge = _judge(store, recipe, asked.judge, walk)
        for number, policy in policies.items():
            answers = sppo.generate.build(store, recipe, hardware, policy, [draw])[0]
            store.totals["alpaca-judge"] = len(answers.file_names(".parquet"))
            judged = sppo.alpaca_eval.judging.build(store, recipe, hardware, judge, draw.prompts, reference, [answers])[0]
            alpaca[number] = store.build(sppo.alpaca_eval.results.step(recipe, reference, answers, judged))
    harness = {}
    if recipe.evaluation.harness:
        harness = {number: sppo.harness.build(store, recipe, hardware, policy) for number, policy in policies.items()}
    if alpaca or harness:
        store.build(sppo.benchmark.step(recipe, iteration, alpaca, harness))


def _base(store: _LookingStore, recipe: Recipe) -> Artifact:
    source = recipe.policy.source
    if isinstance(source, StoredModel):
        return store.look(source.artifact)
    return store.look_for(lambda: sppo.policy.step(recipe), "policy", recipe)


def _judge(store: _LookingStore, recipe: Recipe, judge: Judge, walk: _Walk) -> Artifact | None:
    if isinstance(judge, Weightless):
        return None
    if isinstance(judge, EnsembleJudge):
        members = [_judge(store, recipe, member.judge, walk) for member in judge.members]
        if not any(members):
            return None
        return store.look_for(lambda: sppo.judges.source.ensemble_step(judge, recipe, members), "judge", recipe)
    source = canonical_json(judge.source.model_dump(mode="json"))  # judges of one source share their weights
    if source not in walk.judges:
        asked = recipe.model_copy(update={"judge": judge})
        walk.judges[source] = store.look_for(lambda: cast(Step, sppo.judges.step(judge, recipe)), "judge", asked)
    return walk.judges[source]
