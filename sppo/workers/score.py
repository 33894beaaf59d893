"""`python -m sppo.workers.score run.json`: one policy, one device, a share of the chunks of another policy's answers."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sppo.errors import EvaluationError
from sppo.launch import RATE, Place, run_work
from sppo.progress import Progress, ProgressFile, Report
from sppo.records import Score, by_prompt, to_table
from sppo.score import COLUMNS, ScoreRun, part_name, read_answers
from sppo.store import Artifact, Store, Workspace
from sppo.store.manifest import PartRecord
from sppo.store.workspace import write_parquet
from sppo.train.examples import TokenIds
from sppo.train.packing import pack, plan


@dataclass(frozen=True)
class Answer:
    """y_k of pi_t, as it was sampled."""

    prompt_id: str
    k: int
    token_ids: TokenIds
    """(T,)."""


def load(folder: Path, dtype: str, device: str) -> Any:
    """pi_s as a packed policy; stored weights of another precision are rounded to this one."""
    import torch
    from transformers import AutoModelForCausalLM

    from sppo.train.attention import register
    from sppo.train.forward import packed_policy

    policy: Any = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=getattr(torch, dtype),
        attn_implementation=register(),
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
    )
    return packed_policy(policy.to(device).eval())


def scored(
    policy: Any,
    run: ScoreRun,
    prompts: Mapping[str, TokenIds],
    answers: Sequence[Answer],
    told: Callable[[Sequence[Score]], None],
) -> list[Score]:
    """log pi_s of every token of these answers, in their order; an answer without tokens has none.

    told: is given each micro-batch when it is done. Raises EvaluationError for a log-prob that is not finite."""
    import torch

    found: dict[tuple[str, int], Score] = {}
    families = list(by_prompt(answer for answer in answers if len(answer.token_ids)).values())
    sizes = [len(prompts[each[0].prompt_id]) + sum(len(answer.token_ids) for answer in each) for each in families]
    for places in filter(None, plan(sizes, 1, run.tokens_per_device).of_rank(0)):
        row = [families[place] for place in places]
        packing = pack([(prompts[each[0].prompt_id], [answer.token_ids for answer in each]) for each in row])
        with torch.no_grad():
            values = policy.token_log_probs(packing)  # (T,) of each answer
        flat = [answer for each in row for answer in each]
        done = [_score(run, answer, each.tolist()) for answer, each in zip(flat, values, strict=True)]
        found |= {(score.prompt_id, score.k): score for score in done}
        told(done)
    return [found.get((answer.prompt_id, answer.k)) or Score(answer.prompt_id, answer.k, []) for answer in answers]


def _score(run: ScoreRun, answer: Answer, logprobs: list[float]) -> Score:
    odd = [(place, value) for place, value in enumerate(logprobs) if not math.isfinite(value)]
    if odd:
        raise EvaluationError(
            f"the log-prob of token {odd[0][0]} of answer {answer.k} to prompt {answer.prompt_id} is {odd[0][1]}, one of "
            f"{len(odd)} of its {len(logprobs)} tokens; expected a finite number: the weights of policy {run.policy} hold nan "
            f"or overflow in {run.dtype}; score with another policy, or make this one anew"
        )
    return Score(answer.prompt_id, answer.k, logprobs)


class Meter:
    """Says how far this process is, and how fast from now on."""

    def __init__(self, report: Report, total: int) -> None:
        self.report = report
        self.total = total
        self.answers = self.tokens = 0
        self.began = time.monotonic()

    def add(self, scores: Sequence[Score]) -> None:
        """These are done."""
        self.answers += len(scores)
        self.tokens += sum(len(score.logprobs) for score in scores)
        rate = self.tokens / max(time.monotonic() - self.began, 1e-9)
        self.report(_progress(self.answers, self.total, f"{rate:.0f}{RATE}"))


def _progress(done: int, total: int, note: str) -> Progress:
    return Progress(stage="score", done=done, total=total, unit="answers", note=note)


def work(place: Place, run: ScoreRun) -> None:
    """Score a share of chunks and commit each as it finishes; a policy is loaded only if one is missing."""
    store = place.open_store()
    with store.workspace("score", run.fingerprint) as workspace:
        missing = [name for name in run.names if workspace.part(part_name(name)) is None]
        if missing:
            _score_chunks(store, workspace, run, missing, ProgressFile(place.progress))


def _score_chunks(store: Store, workspace: Workspace, run: ScoreRun, names: Sequence[str], report: Report) -> None:
    from sppo.train.engine import prepare_environment

    report(_progress(0, run.total, "loading the policy"))
    answers, prompts = store.open(run.answers), _prompts(store, run.prompts)
    prepare_environment(run.device)
    policy = load(store.open(run.policy).folder(), run.dtype, run.device)
    meter = Meter(report, run.total)
    for name in names:
        scores = scored(policy, run, prompts, list(_answers(answers, name)), meter.add)
        _commit(workspace, name, scores)


def _prompts(store: Store, reference: str) -> dict[str, TokenIds]:
    artifact, _, name = reference.partition("#")
    table = store.open(artifact).table(name)
    ids = (np.array(each, np.int32) for each in table["token_ids"].to_pylist())
    return dict(zip(table["prompt_id"].to_pylist(), ids, strict=True))


def _answers(answers: Artifact, name: str) -> Iterator[Answer]:
    rows = read_answers(answers, name)
    for prompt_id, k, token_ids in zip(*(rows[column].to_pylist() for column in COLUMNS), strict=True):
        yield Answer(prompt_id, k, np.array(token_ids, np.int32))


def _commit(workspace: Workspace, name: str, scores: Sequence[Score]) -> PartRecord:
    path = workspace.folder / name
    write_parquet(to_table(Score, scores), path)
    counts = {
        "prompts": len({score.prompt_id for score in scores}),
        "answers": len(scores),
        "tokens": sum(len(score.logprobs) for score in scores),
    }
    return workspace.commit_part(part_name(name), [path], counts)


if __name__ == "__main__":
    run_work(ScoreRun, work)
