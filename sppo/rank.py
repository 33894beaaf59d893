"""The judge compares the K responses of each prompt with each other, in both orders: all K (K - 1) ordered pairs.

Rows are `Comparison`s: raw logits, so that changing the estimator costs no judging. arXiv:2405.00675, section 4.1 (PairRM).
Beside them `preferences.json` says what the judge is like (sppo.preferences).
"""

from collections.abc import Iterator

import pyarrow.parquet as pq

from sppo.errors import JudgeError
from sppo.hardware import Hardware
from sppo.judges import prompt_text
from sppo.judges.contest import Contest, answers_in, judge_contests
from sppo.launch import HERE, Launcher
from sppo.preferences import FILE, Label, Verdicts, preferences, read_verdicts, to_json
from sppo.recipe import Recipe, WorldPrompts
from sppo.stages import stage_identity
from sppo.store import Artifact, Outcome, Step, Workspace
from sppo.store.artifact import ArtifactFile
from sppo.world.language import rule_preference


def step(
    recipe: Recipe,
    hardware: Hardware,
    judge: Artifact | None,
    prompts: ArtifactFile,
    responses: Artifact,
    launch: Launcher = HERE,
) -> Step:
    """Logits of all ordered pairs of each prompt's responses, (N, K, K).

    judge: its artifact, None for the tiny world's rule. Before a judge is loaded, raises JudgeError for a prompt without
    responses, responses to no prompt, or another K than the recipe's."""
    inputs: dict[str, Artifact | ArtifactFile | str] = {"prompts": prompts, "generate": responses}
    if judge is not None:
        inputs["judge"] = judge

    def run(workspace: Workspace) -> Outcome:
        expected = recipe.generation.responses
        pairs = _check(prompts, responses, expected)
        contest = Contest(workspace, responses, None, pairs)
        counts = judge_contests(recipe.judge, judge, prompts, hardware, [contest], launch)[0]
        report = preferences(_verdicts(workspace, responses, _truth(recipe, prompts)))
        workspace.add_text(to_json(report), FILE)
        return Outcome(f"{counts['prompts']} prompts x {expected} responses, {judged(counts)}", counts, report.metrics())

    return Step(stage_identity("rank", recipe, inputs), run)


def judged(counts: dict[str, int]) -> str:
    """Counts of pairs in words."""
    return f"{counts['pairs']} pairs: {counts['judged']} judged, {counts['identical']} identical, {counts['repeated']} repeated"


def _verdicts(workspace: Workspace, responses: Artifact, label: Label | None) -> Iterator[Verdicts]:
    """Chunk by chunk: the texts of all responses may be gigabytes."""
    for entry in workspace.files:
        comparisons = pq.read_table(workspace.part_path(entry), page_checksum_verification=True)
        yield from read_verdicts(comparisons, answers_in(responses, entry.name), label)


def _truth(recipe: Recipe, prompts: ArtifactFile) -> Label | None:
    """True preferences, which only the tiny world has: its rule."""
    if not isinstance(recipe.prompts.source, WorldPrompts):
        return None
    table = prompts.table()
    asked = dict(zip(table["prompt_id"].to_pylist(), map(prompt_text, table["messages"].to_pylist()), strict=True))
    return lambda prompt_id, first, second: rule_preference(asked[prompt_id], first, second)


def _check(prompts: ArtifactFile, responses: Artifact, expected: int) -> dict[str, int]:
    """Pairs in each chunk file."""
    wanted = set(prompts.table()["prompt_id"].to_pylist())
    pairs: dict[str, int] = {}
    seen: set[str] = set()
    for name in responses.file_names(".parquet"):
        chunk = answers_in(responses, name)
        _check_chunk(chunk, f"{responses.name}, {name}", wanted, seen, expected)
        seen |= chunk.keys()
        pairs[name] = len(chunk) * expected * (expected - 1)
    if wanted - seen:
        raise JudgeError(
            f"{len(wanted - seen)} prompts of {prompts.name} have no responses in {responses.name}, "
            f"the first {min(wanted - seen)}; expected {expected} each: generate again"
        )
    return pairs


def _check_chunk(chunk: dict[str, list[str]], where: str, wanted: set[str], seen: set[str], expected: int) -> None:
    for prompt_id, texts in chunk.items():
        if prompt_id not in wanted:
            raise JudgeError(f"{where}: prompt {prompt_id} is not among the prompts; rank the responses with their own portion")
        if prompt_id in seen:
            raise JudgeError(f"{where}: prompt {prompt_id} stands in an earlier chunk too; expected it once: generate again")
        if len(texts) != expected:
            raise JudgeError(
                f"{where}: prompt {prompt_id} has {len(texts)} responses; expected {expected}, "
                "the recipe's generation.responses: generate again"
            )
