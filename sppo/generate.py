"""y_1..y_K ~ pi_t(.|x): responses to prompts, by worker processes, in chunks that are committed as they finish.

Stage `generate` draws training responses for an iteration's portion, stage `sample` evaluation responses for the held-out
prompts, stage `alpaca-answer` answers to AlpacaEval's instructions. Several draws from one policy share one engine load.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, assert_never

from sppo import engines
from sppo.configuration import Frozen
from sppo.errors import HardwareError, PolicyError, RecipeError, StoreError
from sppo.fingerprint import seed_of
from sppo.hardware import Hardware
from sppo.launch import HERE, RATE, Group, Launcher, WorkRecord, keep_accounts
from sppo.policy import context_length, load_tokenizer, stop_token_ids, tokenizer_folder
from sppo.progress import Progress, Report, silent
from sppo.recipe import Recipe, Sampling
from sppo.recipe.alpaca_eval import required
from sppo.split import held_out, portion
from sppo.stages import stage_identity
from sppo.store import Artifact, Identity, Outcome, Store, Workspace
from sppo.store.artifact import ArtifactFile

CHUNK = 32
"""Prompts a chunk: what is lost at most for each process when a machine dies."""
MODULE = "sppo.workers.generate"
HELD_OUT = "held out"
"""In place of the iteration: prompts that are only evaluated on are drawn with the same seeds from every policy."""


@dataclass(frozen=True)
class Draw:
    """Prompts to be answered by one policy."""

    stage: Literal["generate", "sample", "alpaca-answer"]
    prompts: ArtifactFile
    iteration: int | None
    """t of training responses; None for prompts that are only evaluated on."""


class DrawTask(Frozen):
    """A worker's share of a draw."""

    stage: str
    fingerprint: str
    prompts: str
    """`stage/fingerprint` of the split."""
    file: str
    limit: int
    """Prompts of the file that are drawn, the first ones."""
    chunks: tuple[int, ...]
    """Numbers of the chunks to draw."""
    responses: int
    temperature: float
    top_p: float
    max_tokens: int
    seed: int
    """Of the recipe."""
    label: int | str
    """The iteration, or `held out`."""
    stripped: bool = False
    """Whether texts are kept without the white space around them."""


class GenerateRun(Frozen):
    """What a generate worker is told."""

    policy: str
    """`stage/fingerprint` of the policy."""
    settings: engines.EngineSettings
    draws: tuple[DrawTask, ...]


class GenerateResult(Frozen):
    """What a worker measured."""

    tokens: int
    seconds: float
    """From the first request to the last chunk; without loading."""
    load_s: float


def training_draw(recipe: Recipe, split: Artifact, iteration: int) -> Draw:
    """K responses to each prompt of iteration t's portion. Raises RecipeError unless 1 <= t <= T."""
    recipe.check_iteration(iteration)
    return Draw("generate", portion(split, iteration), iteration)


def held_out_draw(recipe: Recipe, split: Artifact) -> Draw:
    """n responses to each of the first `evaluation.max_prompts` held-out prompts, with the same seeds for every policy."""
    return Draw("sample", held_out(split), None)


def sampling_of(recipe: Recipe, draw: Draw) -> Sampling:
    """How a draw is sampled. Raises RecipeError for AlpacaEval's instructions and a recipe without it."""
    match draw.stage:
        case "generate":
            return recipe.generation
        case "sample":
            return recipe.evaluation.sampling
        case "alpaca-answer":
            return required(recipe.evaluation.alpaca_eval).decoding
        case _:
            assert_never(draw.stage)


def prompt_seed(seed: int, label: int | str, prompt_id: str) -> int:
    """Seed of a prompt's draw; response k is drawn with this seed + k."""
    return seed_of(seed, label, prompt_id)


def build(
    store: Store,
    recipe: Recipe,
    hardware: Hardware,
    policy: Artifact,
    draws: Sequence[Draw],
    report: Report = silent,
    launch: Launcher = HERE,
) -> list[Artifact]:
    """The responses of each draw, in order; committed ones cost nothing, missing ones share one engine load a process.

    Raises PolicyError for a prompt longer than the policy's context, RecipeError for an engine still `auto`."""
    identities = [_identity(recipe, policy, draw) for draw in draws]
    by_fingerprint = {identity.fingerprint: draw for identity, draw in zip(identities, draws, strict=True)}

    def run(workspaces: Sequence[Workspace]) -> list[Outcome]:
        attempts = [_attempt(recipe, by_fingerprint[workspace.fingerprint], workspace) for workspace in workspaces]
        undone = [attempt for attempt in attempts if attempt.missing]
        records = _draw_missing(store, recipe, hardware, policy, undone, launch) if undone else []
        return [_outcome(attempt, records if attempt in undone else []) for attempt in attempts]

    return store.build_together(identities, run, report)


def _identity(recipe: Recipe, policy: Artifact, draw: Draw) -> Identity:
    more = {} if draw.iteration is None else {"iteration": draw.iteration}
    return stage_identity(draw.stage, recipe, {"policy": policy, "prompts": draw.prompts}, more)


@dataclass(frozen=True)
class _Attempt:
    """A draw that is not committed yet, and what of it is still to be drawn."""

    draw: Draw
    workspace: Workspace
    sampling: Sampling
    lengths: list[int]
    """Tokens of each prompt."""
    missing: list[int]
    """Numbers of the chunks."""

    @property
    def chunks(self) -> int:
        return math.ceil(len(self.lengths) / CHUNK)

    def prompts_in(self, chunks: Sequence[int]) -> int:
        return sum(min(CHUNK, len(self.lengths) - chunk * CHUNK) for chunk in chunks)


def _attempt(recipe: Recipe, draw: Draw, workspace: Workspace) -> _Attempt:
    lengths = [len(token_ids) for token_ids in draw.prompts.table()["token_ids"].to_pylist()]
    if draw.stage == "sample":
        lengths = lengths[: recipe.evaluation.max_prompts]
    committed = set(workspace.parts())
    chunks = math.ceil(len(lengths) / CHUNK)
    missing = [chunk for chunk in range(chunks) if chunk_name(chunk) not in committed]
    workspace.note_found(chunks - len(missing), chunks)
    return _Attempt(draw, workspace, sampling_of(recipe, draw), lengths, missing)


def chunk_name(chunk: int) -> str:
    """Name of a chunk's part; its file is this with `.parquet`."""
    return f"chunk-{chunk:05d}"


def _draw_missing(
    store: Store, recipe: Recipe, hardware: Hardware, policy: Artifact, attempts: Sequence[_Attempt], launch: Launcher
) -> list[WorkRecord]:
    settings = _settings(recipe, hardware, policy, attempts)
    first = attempts[0].workspace
    machines = launch.machines(first.stage, first.fingerprint)
    shares = share_out([attempt.chunks for attempt in attempts], [attempt.missing for attempt in attempts], machines)
    groups = [
        Group(
            stage=first.stage,
            fingerprint=first.fingerprint,
            number=number,
            of=machines,
            module=MODULE,
            works=tuple(_work(recipe, policy, settings, attempts, hand) for hand in deal(share, hardware.generate.processes)),
            device=hardware.device,
            devices_each=hardware.generate.tensor_parallel,
            threads=hardware.threads,
            timeout_s=hardware.generate.timeout_s,
        )
        for number, share in enumerate(shares, start=1)
        if any(share)
    ]
    before = sum(attempt.prompts_in(range(attempt.chunks)) - attempt.prompts_in(attempt.missing) for attempt in attempts)
    total = sum(len(attempt.lengths) for attempt in attempts)

    def report(progress: Progress) -> None:
        first.report(progress.model_copy(update={"stage": first.stage, "done": before + progress.done, "total": total}))

    records = launch.run(groups, store, report)
    keep_accounts(first, records)
    return records


def _work(
    recipe: Recipe, policy: Artifact, settings: engines.EngineSettings, attempts: Sequence[_Attempt], hand: list[list[int]]
) -> dict[str, object]:
    draws = tuple(_task(recipe, attempt, chunks) for attempt, chunks in zip(attempts, hand, strict=True))
    return GenerateRun(policy=policy.reference, settings=settings, draws=draws).model_dump(mode="json")


def _settings(recipe: Recipe, hardware: Hardware, policy: Artifact, attempts: Sequence[_Attempt]) -> engines.EngineSettings:
    """The engine's settings, with everything checked that could fail after it has loaded."""
    engine = recipe.generation.engine
    if engine == "auto":
        raise RecipeError(
            "generation.engine is still auto; expected vllm or transformers: resolve the recipe when the run starts"
        )
    if engine == "vllm" and hardware.device == "cpu" and hardware.generate.kv_cache_mib is None:
        raise HardwareError(
            f"hardware {hardware.name} gives no generate.kv_cache_mib; expected the engine's cache in MiB, such as 256"
        )
    tokenizer = load_tokenizer(tokenizer_folder(policy, attempts[0].workspace.folder / "tokenizer"))
    for attempt in attempts:
        check_room(policy, attempt.draw, attempt.lengths, attempt.sampling.max_tokens)
    context = context_length(policy)
    drawn = (attempt.sampling.max_tokens for attempt in attempts)
    answers = max(recipe.generation.max_tokens, recipe.evaluation.sampling.max_tokens, *drawn)
    longest = max(recipe.prompts.max_prompt_tokens, *(max(attempt.lengths) for attempt in attempts))
    return engines.EngineSettings(
        engine=engine,
        device=hardware.device,
        dtype=recipe.policy.dtype,
        stop_token_ids=tuple(stop_token_ids(tokenizer, recipe.policy)),
        max_model_len=min(longest + answers, context or longest + answers),
        max_concurrent=hardware.generate.max_concurrent,
        tensor_parallel=hardware.generate.tensor_parallel,
        memory_share=hardware.generate.memory_share,
        kv_cache_mib=hardware.generate.kv_cache_mib,
    )


def check_room(policy: Artifact, draw: Draw, lengths: Sequence[int], max_tokens: int) -> None:
    """Raises PolicyError if a draw's longest prompt and a response do not fit into the policy's context."""
    context, longest = context_length(policy), max(lengths)
    if context is None or longest + max_tokens <= context:
        return
    mend = f"prompts.max_prompt_tokens or the max_tokens of stage {draw.stage}"
    if draw.stage == "alpaca-answer":
        mend = "evaluation.alpaca_eval.decoding.max_tokens"
    raise PolicyError(
        f"a prompt of {longest} tokens (row {lengths.index(longest) + 1} of {draw.prompts.name}) and a response of "
        f"{max_tokens} do not fit into the {context} positions of policy {policy.name}; lower {mend}"
    )


def _task(recipe: Recipe, attempt: _Attempt, chunks: list[int]) -> DrawTask:
    sampling = attempt.sampling
    return DrawTask(
        stage=attempt.workspace.stage,
        fingerprint=attempt.workspace.fingerprint,
        prompts=attempt.draw.prompts.artifact.reference,
        file=attempt.draw.prompts.name,
        limit=len(attempt.lengths),
        chunks=tuple(chunks),
        responses=sampling.responses,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        max_tokens=sampling.max_tokens,
        seed=recipe.seed,
        label=HELD_OUT if attempt.draw.iteration is None else attempt.draw.iteration,
        stripped=attempt.draw.stage == "alpaca-answer",  # as alpaca_eval keeps answers, and counts their characters
    )


def share_out(chunks: Sequence[int], missing: Sequence[Sequence[int]], machines: int) -> list[list[list[int]]]:
    """Missing chunks for each machine and draw. All chunks are dealt like cards, missing or not: a machine that is started
    again is given what it had left, whatever others did in the meantime.

    chunks: how many each draw has."""
    dealt = [(draw, chunk) for draw, count in enumerate(chunks) for chunk in range(count)]
    hands = [dealt[number::machines] for number in range(machines)]
    return [
        [[chunk for at, chunk in hand if at == draw and chunk in missing[draw]] for draw in range(len(chunks))]
        for hand in hands
    ]


def deal(share: Sequence[Sequence[int]], processes: int) -> list[list[list[int]]]:
    """A machine's chunks for each process and draw, dealt like cards; no process is without one."""
    dealt = [(draw, chunk) for draw, chunks in enumerate(share) for chunk in chunks]
    hands = min(processes, len(dealt))
    return [[[chunk for at, chunk in dealt[hand::hands] if at == draw] for draw in range(len(share))] for hand in range(hands)]


def _outcome(attempt: _Attempt, records: Sequence[WorkRecord]) -> Outcome:
    counts: Counter[str] = Counter()
    for chunk in range(attempt.chunks):
        record = attempt.workspace.part(chunk_name(chunk))
        if record is None:
            raise StoreError(
                f"{chunk_name(chunk)} of {attempt.draw.stage}/{attempt.workspace.fingerprint[:8]} is not in the store, "
                "although its worker ended well; run again to draw it"
            )
        counts.update(record.counts)
        attempt.workspace.adopt_part(record)
    results = [GenerateResult.model_validate(result) for record in records for result in record.results]
    metrics = {}
    speed = ""
    if any(result.tokens for result in results):
        rate = sum(result.tokens / result.seconds for result in results if result.tokens)
        metrics = {"tokens_per_s": rate, "load_s": max(result.load_s for result in results)}
        speed = f", {rate / 1000:.1f}k{RATE}"
    summary = (
        f"{counts['prompts']} prompts x {attempt.sampling.responses} responses, {counts['tokens']} tokens, "
        f"{counts['cut_at_limit']} cut at the limit, {counts['empty']} empty{speed}"
    )
    return Outcome(summary, dict(sorted(counts.items())), metrics)
