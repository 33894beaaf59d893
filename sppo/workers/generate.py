"""`python -m sppo.workers.generate run.json`: one engine, one device, a share of the chunks of one policy's draws."""

import logging
import math
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Self

from sppo import engines
from sppo.engines import Engine, Request, Sample
from sppo.errors import PolicyError
from sppo.generate import CHUNK, DrawTask, GenerateResult, GenerateRun, chunk_name, prompt_seed
from sppo.launch import RATE, Place, run_work, write_config
from sppo.policy import load_tokenizer
from sppo.progress import Progress, ProgressFile
from sppo.records import Prompt, Response, from_table, to_table
from sppo.store import Store, Workspace
from sppo.store.workspace import write_parquet

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

GIVEN_UP = 2
"""Chunks that could not be committed: after so many the store is away, and no other is tried."""


@dataclass
class OpenChunk:
    """A chunk being answered."""

    size: int
    answers: dict[int, tuple[Request, list[Sample]]] = field(default_factory=dict)
    """By the prompt's position; prompts finish in any order."""


class ChunkWriter:
    """Turns finished chunks into parquet parts, on a thread of its own: the engine does not wait for the store.

    It closes when all that was drawn is committed, also after an error, of the engine or of one chunk."""

    def __init__(self, run: GenerateRun, workspaces: list[Workspace], tokenizer: "PreTrainedTokenizerBase") -> None:
        self.run = run
        self.workspaces = workspaces
        self.tokenizer = tokenizer
        self.stops = set(run.settings.stop_token_ids)
        self.prompts = [_prompts(workspaces[0].store, task) for task in run.draws]
        self.thread = ThreadPoolExecutor(1)
        self.failed: list[Exception] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None) -> None:
        self.thread.shutdown()
        if problem is None:
            self._raise_failed()

    def requests(self) -> Iterator[Request]:
        """Every prompt of every chunk, chunk after chunk; but of none that another process has committed in the meantime, as
        while this one slept."""
        for draw, task in enumerate(self.run.draws):
            for chunk in task.chunks:
                if self.workspaces[draw].part(chunk_name(chunk)) is not None:
                    continue
                for position in self.positions(draw, chunk):
                    prompt = self.prompts[draw][position]
                    yield Request(
                        draw=draw,
                        position=position,
                        token_ids=prompt.token_ids,
                        seed=prompt_seed(task.seed, task.label, prompt.prompt_id),
                        responses=task.responses,
                        temperature=task.temperature,
                        top_p=task.top_p,
                        max_tokens=task.max_tokens,
                    )

    def positions(self, draw: int, chunk: int) -> range:
        """Positions of a chunk's prompts in their file."""
        return range(chunk * CHUNK, min((chunk + 1) * CHUNK, len(self.prompts[draw])))

    def submit(self, draw: int, chunk: int, done: OpenChunk) -> None:
        """Write a chunk soon. Raises what went wrong with an earlier one."""
        self.thread.submit(self._try_to_commit, draw, chunk, done)
        self._raise_failed()

    def _raise_failed(self) -> None:
        if self.failed:
            raise self.failed[0]

    def _try_to_commit(self, draw: int, chunk: int, done: OpenChunk) -> None:
        if len(self.failed) < GIVEN_UP:
            try:
                self._commit(draw, chunk, done)
            except Exception as problem:  # noqa: BLE001  raised by the next call, or at the end
                log.warning("%s could not be committed: %s", chunk_name(chunk), problem)
                self.failed.append(problem)

    def _commit(self, draw: int, chunk: int, done: OpenChunk) -> None:
        rows = [row for position in sorted(done.answers) for row in self._rows(draw, position, *done.answers[position])]
        workspace = self.workspaces[draw]
        path = workspace.folder / f"{chunk_name(chunk)}.parquet"
        write_parquet(to_table(Response, rows), path)
        counts = {
            "prompts": done.size,
            "responses": len(rows),
            "tokens": sum(len(row.token_ids) for row in rows),
            "cut_at_limit": sum(row.finish_reason == "length" for row in rows),
            "empty": sum(not row.text.strip() for row in rows),
        }
        workspace.commit_part(chunk_name(chunk), [path], counts)

    def _rows(self, draw: int, position: int, request: Request, samples: list[Sample]) -> list[Response]:
        prompt_id = self.prompts[draw][position].prompt_id
        texts = self.tokenizer.batch_decode(
            [sample.token_ids for sample in samples], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        if self.run.draws[draw].stripped:
            texts = [text.strip() for text in texts]
        rows = []
        for k, (sample, text) in enumerate(zip(samples, texts, strict=True)):
            if len(sample.logprobs) != len(sample.token_ids) or not all(math.isfinite(value) for value in sample.logprobs):
                raise PolicyError(
                    f"response {k} to prompt {prompt_id} has a log-prob that is not finite; expected one number a token: "
                    f"the weights of policy {self.run.policy} hold nan or overflow in {self.run.settings.dtype}"
                )
            reason = "stop" if sample.token_ids and sample.token_ids[-1] in self.stops else "length"
            if reason == "length" and len(sample.token_ids) != request.max_tokens:
                raise PolicyError(
                    f"response {k} to prompt {prompt_id} ended after {len(sample.token_ids)} tokens without a stop token; "
                    f"expected one, or {request.max_tokens} tokens: the engine stopped by a rule of its own, see its log"
                )
            rows.append(Response(prompt_id, k, sample.token_ids, text, reason, sample.logprobs, request.seed))
        return rows


def _prompts(store: Store, task: DrawTask) -> list[Prompt]:
    table = store.open(task.prompts).table(task.file)
    return list(from_table(Prompt, table.slice(0, task.limit)))


def answer_all(engine: Engine, writer: ChunkWriter, report: ProgressFile, total: int) -> tuple[int, float]:
    """Run the engine over all requests, committing each chunk when its last prompt is done. Returns tokens and seconds."""
    started = time.monotonic()
    chunks: dict[tuple[int, int], OpenChunk] = {}
    tokens = 0
    with writer:
        for done, (request, samples) in enumerate(engine.answer(writer.requests()), start=1):
            key = (request.draw, request.position // CHUNK)
            chunk = chunks.setdefault(key, OpenChunk(len(writer.positions(*key))))
            chunk.answers[request.position] = (request, samples)
            if len(chunk.answers) == chunk.size:
                writer.submit(*key, chunks.pop(key))
            tokens += sum(len(sample.token_ids) for sample in samples)
            rate = tokens / max(time.monotonic() - started, 1e-9)
            report(Progress(stage="generate", done=done, total=total, unit="prompts", note=f"{rate:.0f}{RATE}"))
    return tokens, time.monotonic() - started


def missing(run: GenerateRun, workspaces: list[Workspace]) -> GenerateRun:
    """The run without the chunks that another attempt has committed since it was planned."""
    draws = tuple(
        task.model_copy(update={"chunks": tuple(chunk for chunk in task.chunks if workspace.part(chunk_name(chunk)) is None)})
        for task, workspace in zip(run.draws, workspaces, strict=True)
    )
    return run.model_copy(update={"draws": draws})


def work(place: Place, run: GenerateRun) -> None:
    """Draw a share of chunks and commit each as it finishes."""
    store = place.open_store()
    workspaces = [store.workspace(task.stage, task.fingerprint) for task in run.draws]
    run = missing(run, workspaces)
    tokens, seconds, load_s = 0, 0.0, 0.0
    if any(task.chunks for task in run.draws):
        folder = store.open(run.policy).folder()
        writer = ChunkWriter(run, workspaces, load_tokenizer(folder))
        total = sum(len(writer.positions(draw, chunk)) for draw, task in enumerate(run.draws) for chunk in task.chunks)
        report = ProgressFile(place.progress)
        report(Progress(stage="generate", done=0, total=total, unit="prompts", note="loading the engine"))
        started = time.monotonic()
        engine = engines.load(folder, run.settings)
        load_s = time.monotonic() - started
        tokens, seconds = answer_all(engine, writer, report, total)
    write_config(GenerateResult(tokens=tokens, seconds=seconds, load_s=load_s), place.result)
    for workspace in workspaces:
        workspace.clean()


if __name__ == "__main__":
    run_work(GenerateRun, work)
