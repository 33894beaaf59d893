"""One policy's held-out answers against another's, under a judge, in both orders.

Rows are `Duel`s: L(new_i, other_j) and L(other_j, new_i) for every pair of a prompt's n and m answers.
"""

from collections.abc import Sequence

from sppo.errors import JudgeError
from sppo.hardware import Hardware
from sppo.judges.contest import Contest, all_answers, answers_in, judge_contests
from sppo.launch import HERE, Launcher
from sppo.progress import Report, silent
from sppo.rank import judged
from sppo.recipe import Judge, Recipe
from sppo.stages import stage_identity
from sppo.store import Artifact, Identity, Outcome, Store, Workspace
from sppo.store.artifact import ArtifactFile


def build(
    store: Store,
    recipe: Recipe,
    hardware: Hardware,
    judges: Sequence[Artifact | None],
    prompts: ArtifactFile,
    new: Artifact,
    others: Sequence[Artifact],
    report: Report = silent,
    launch: Launcher = HERE,
) -> list[list[Artifact]]:
    """Duels of `new` against each of `others`, [judge][other]: one judge load a process for all that is missing under a judge.

    judges: artifacts in the order of recipe.evaluation.judges, None for the tiny world's rule. Raises JudgeError if the two
    sides answered different prompts."""
    if len(judges) != len(recipe.evaluation.judges):
        raise JudgeError(
            f"{len(judges)} judge artifacts for the {len(recipe.evaluation.judges)} judges of recipe {recipe.name}; "
            "expected one each, None for the rule of the tiny world"
        )
    asked = list(zip(recipe.evaluation.judges, judges, strict=True))
    return [
        _build_under(judge, artifact, store, recipe, hardware, prompts, new, others, report, launch)
        for judge, artifact in asked
    ]


def _build_under(
    judge: Judge,
    artifact: Artifact | None,
    store: Store,
    recipe: Recipe,
    hardware: Hardware,
    prompts: ArtifactFile,
    new: Artifact,
    others: Sequence[Artifact],
    report: Report,
    launch: Launcher,
) -> list[Artifact]:
    identities = [_identity(judge, artifact, recipe, prompts, new, other) for other in others]
    of = {identity.fingerprint: other for identity, other in zip(identities, others, strict=True)}

    def run(workspaces: Sequence[Workspace]) -> list[Outcome]:
        contests = [
            Contest(workspace, new, of[workspace.fingerprint], _check(prompts, new, of[workspace.fingerprint]))
            for workspace in workspaces
        ]
        found = judge_contests(judge, artifact, prompts, hardware, contests, launch)
        return [Outcome(f"{judge.kind}, {counts['prompts']} prompts, {judged(counts)}", counts) for counts in found]

    return store.build_together(identities, run, report)


def _identity(
    judge: Judge, artifact: Artifact | None, recipe: Recipe, prompts: ArtifactFile, new: Artifact, other: Artifact
) -> Identity:
    inputs: dict[str, Artifact | ArtifactFile | str] = {"prompts": prompts, "new": new, "other": other}
    if artifact is not None:
        inputs["judge"] = artifact
    # where the judge's weights come from is left out: they enter by their digest
    asked = judge.model_dump(mode="json", exclude={"source"})
    return stage_identity("duel", recipe, inputs, {"evaluation.judges": [asked]})  # of several judges, this one


def _check(prompts: ArtifactFile, new: Artifact, other: Artifact) -> dict[str, int]:
    """Pairs in each chunk file of `new`."""
    known = set(prompts.table()["prompt_id"].to_pylist())
    rivals = all_answers(other)
    pairs: dict[str, int] = {}
    answered: set[str] = set()
    for name in new.file_names(".parquet"):
        chunk = answers_in(new, name)
        answered |= chunk.keys()
        pairs[name] = sum(2 * len(texts) * len(rivals.get(prompt_id, ())) for prompt_id, texts in chunk.items())
    if answered != rivals.keys():
        apart = sorted(answered ^ rivals.keys())
        raise JudgeError(
            f"{new.name} and {other.name} answered different prompts, {len(apart)} in all, the first {apart[0]}; "
            "expected the same held-out prompts: sample both with one recipe"
        )
    if answered - known:
        raise JudgeError(
            f"{new.name}: prompt {min(answered - known)} is not in {prompts.name}; duel over the prompts that were sampled"
        )
    return pairs
