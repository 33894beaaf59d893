"""How far a run is: Algorithm 1 walked through with a store that looks and never builds."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import sppo.duel
import sppo.estimate
import sppo.evaluate
import sppo.generate
import sppo.judges
import sppo.policy
import sppo.rank
import sppo.split
import sppo.train
from sppo.hardware import Hardware
from sppo.progress import Report, silent
from sppo.recipe import Recipe
from sppo.store import Artifact, Identity, Outcome, Store, Workspace


@dataclass(frozen=True)
class StageState:
    """One artifact that an iteration is made of."""

    stage: str
    fingerprint: str
    committed: bool
    parts: int
    """Chunks or checkpoints committed so far; of a committed stage, its content files."""
    seconds: float


@dataclass
class IterationState:
    """What is known of an iteration: its stages up to the first that is missing, and that one."""

    iteration: int
    stages: list[StageState] = field(default_factory=list)

    @property
    def finished(self) -> bool:
        return bool(self.stages) and self.stages[-1].stage == "evaluate" and self.stages[-1].committed


class _MissingStageError(Exception):
    """A stage is not committed, so what follows has no fingerprint yet."""


class _LookingStore(Store):
    """A store in which every build is a look."""

    stages: list[StageState]

    def build_together(
        self,
        identities: Sequence[Identity],
        run: Callable[[Sequence[Workspace]], Sequence[Outcome]],
        report: Report = silent,
    ) -> list[Artifact]:
        found = [self.find(identity.stage, identity.fingerprint) for identity in identities]
        for identity, artifact in zip(identities, found, strict=True):
            self.stages.append(self._state(identity, artifact))
        artifacts = [artifact for artifact in found if artifact is not None]
        if len(artifacts) < len(identities):
            raise _MissingStageError
        return artifacts

    def _state(self, identity: Identity, artifact: Artifact | None) -> StageState:
        if artifact is not None:
            files, seconds = len(artifact.manifest.files), artifact.manifest.seconds
            return StageState(identity.stage, identity.fingerprint, True, files, seconds)
        parts = len(self.workspace(identity.stage, identity.fingerprint).parts())
        return StageState(identity.stage, identity.fingerprint, False, parts, 0.0)


def survey(url: str, recipe: Recipe, hardware: Hardware) -> list[IterationState]:
    """Iterations from the first to the first unfinished one. No run's index is read: the store alone knows.

    hardware: any, since it changes no fingerprint."""
    store = _LookingStore(url)
    states: list[IterationState] = []
    policies: list[Artifact] = []
    samples: list[Artifact] = []
    for iteration in range(1, recipe.iterations + 1):
        states.append(IterationState(iteration))
        store.stages = states[-1].stages
        try:
            _look(store, recipe, hardware, iteration, policies, samples)
        except _MissingStageError:
            break
    return states


def _look(
    store: _LookingStore, recipe: Recipe, hardware: Hardware, iteration: int, policies: list[Artifact], samples: list[Artifact]
) -> None:
    if not policies:
        policies.append(store.build(sppo.policy.step(recipe)))
    judges = [_judge(store, recipe, position) for position in range(1 + len(recipe.evaluation.judges))]
    prompts = store.build(sppo.split.step(recipe, policies[0]))
    drawn = sppo.generate.training_draw(recipe, prompts, iteration)
    held_out = sppo.generate.held_out_draw(recipe, prompts)
    policy = policies[-1]
    responses, before = sppo.generate.build(store, recipe, hardware, policy, [drawn, held_out])
    ranked = store.build(sppo.rank.step(recipe, hardware, judges[0], drawn.prompts, responses))
    targets = store.build(sppo.estimate.step(recipe, ranked, responses))
    trained = store.build(sppo.train.step(recipe, hardware, iteration, policy, drawn.prompts, responses, targets))
    policies.append(trained)
    answers = sppo.generate.build(store, recipe, hardware, trained, [held_out])[0]
    samples.append(before)
    duels = sppo.duel.build(store, recipe, hardware, judges[1:], held_out.prompts, answers, samples)
    store.build(sppo.evaluate.step(recipe, iteration, [*samples, answers], duels))


def _judge(store: _LookingStore, recipe: Recipe, position: int) -> Artifact | None:
    """The training judge at 0, then the evaluation's."""
    step = sppo.judges.step((recipe.judge, *recipe.evaluation.judges)[position], recipe)
    return None if step is None else store.build(step)
