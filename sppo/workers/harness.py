"""`python -m sppo.workers.harness run.json`: one model, its share of the tasks, each committed as it is done."""

import contextlib
import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from sppo.errors import EvaluationError
from sppo.fingerprint import seed_of
from sppo.harness.foreign import no_foreign_code
from sppo.harness.naming import check_names
from sppo.harness.scores import ROWS, Score, part_name, to_table
from sppo.harness.stage import STAGE, HarnessResult, HarnessRun
from sppo.launch import Place, run_work, write_config
from sppo.portuguese import INCLUDE, metrics
from sppo.portuguese.tables import Tables
from sppo.portuguese.tasks import TASKS
from sppo.progress import Progress, ProgressFile
from sppo.recipe.harness import Served
from sppo.statistics import Array, Positions, percentile_interval, replicates
from sppo.store import Workspace
from sppo.store.workspace import write_parquet
from sppo.workers.harness_models import load_model

SLOW_RESAMPLES = 1_000
"""For a metric that is computed anew from each resample's rows in Python."""
Key = tuple[str, str, str]
"""Task, metric, filter."""


def work(place: Place, run: HarnessRun) -> None:
    """Evaluate the tasks that no other attempt has committed since this was planned."""
    store = place.open_store()
    started, load_s = time.monotonic(), 0.0
    with store.workspace(STAGE, run.fingerprint) as workspace:
        missing = [name for name in run.tasks if workspace.part(part_name(name)) is None]
        if missing:
            report = ProgressFile(place.progress)
            report(Progress(stage=STAGE, done=0, total=len(run.tasks), unit="tasks", note="loading the model"))
            manager = task_manager(run)  # before the model: a name that is not known is found out in seconds
            model = load_model(run, None if run.policy is None else store.open(run.policy).folder(), place.folder)
            load_s = time.monotonic() - started
            for done, name in enumerate(missing, start=1):
                _commit(workspace, name, *evaluate(model, manager, name, run))
                report(Progress(stage=STAGE, done=len(run.tasks) - len(missing) + done, total=len(run.tasks), unit="tasks"))
    write_config(HarnessResult(load_s=load_s, seconds=time.monotonic() - started - load_s), place.result)


def task_manager(run: HarnessRun) -> Any:
    """Where tasks are found by name.

    Raises RecipeError for a name that is not known, EvaluationError for tables that have changed."""
    from lm_eval.tasks import TaskManager

    own = [TASKS[name] for name in run.tasks if name in TASKS]
    if own and run.tables is not None and Tables.open(run.tables).digest(own) != run.tables_digest:
        raise EvaluationError(f"the tables in {run.tables} were replaced since this evaluation began: run it again")
    manager = TaskManager(
        include_path=str(INCLUDE),
        include_defaults=len(own) < len(run.tasks),  # reading upstream's 14,000 task files takes seconds
        metadata={} if run.tables is None else {"tables": run.tables, "portuguese_length": run.portuguese_length},
    )
    check_names(run.tasks, manager.all_tasks)
    return manager


def evaluate(model: Any, manager: Any, name: str, run: HarnessRun) -> tuple[pa.Table, list[Score], dict[str, int]]:
    """The rows and scores of a task, or of all tasks of a group or tag, and counts of what had no room."""
    from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED
    from lm_eval.evaluator import evaluate as answer_all

    loaded = _load(manager, name)
    for task in loaded["tasks"].values():
        _prepare(task, model, run)
        task.set_fewshot_seed(seed=DEFAULT_OTHER_SEED)  # drawn shots are those of published numbers
    random.seed(DEFAULT_RANDOM_SEED)
    np.random.seed(DEFAULT_OTHER_SEED)
    with _named(run.served), no_foreign_code(name):
        results = answer_all(
            lm=model,
            task_dict=loaded,
            limit=run.max_rows,
            bootstrap_iters=0,
            apply_chat_template=run.chat,
            fewshot_as_multiturn=run.chat,
        )
    rows = [row for task, samples in results["samples"].items() for row in _rows(task, samples)]
    scores = _scores(loaded, results, run)
    tasks = list(loaded["tasks"].values())
    counts = {
        "rows": len({(row["task"], row["row"]) for row in rows}),
        "dropped_shots": sum(getattr(task, "dropped_shots", 0) for task in tasks),
        "cut_prompts": sum(_is_cut(model, request) for task in tasks for request in task.instances),
    }
    return pa.Table.from_pylist(rows, schema=ROWS), scores, counts


def _load(manager: Any, name: str) -> Any:
    """A task, group or tag with its rows. Raises EvaluationError if they, or a package that it needs, cannot be loaded."""
    try:
        with no_foreign_code(name):
            return manager.load([name])
    except (OSError, ValueError, ImportError, RuntimeError) as problem:  # RuntimeError: rows that only a script could load
        raise EvaluationError(
            f"cannot load task {name}: {' '.join(str(problem).split())}; upstream's tasks read their rows from the hub or its "
            "local cache, and some need a package more: check the network, or install lm-eval's extra that it names"
        ) from problem


@contextlib.contextmanager
def _named(served: Served | None) -> Iterator[None]:
    """A server that is not there, or refuses: after all attempts of the library's as an error of ours."""
    import aiohttp

    try:
        yield
    except (OSError, aiohttp.ClientError) as problem:
        if served is None:
            raise
        raise EvaluationError(
            f"{served.source.url} did not answer in {served.source.attempts} attempts: "
            f"{' '.join(str(problem).split()) or type(problem).__name__}; expected an OpenAI-compatible server with the model "
            f"{served.model}: look at its log; tasks that were done are kept"
        ) from problem


def _is_cut(model: Any, request: Any) -> bool:
    """Whether the library took the beginning off a prompt that is too long."""
    if getattr(model, "tokenizer", None) is None or request.request_type == "loglikelihood_rolling":
        return False
    prompt, rest = request.args[:2]
    answer = len(model.tok_encode(rest)) if isinstance(rest, str) else rest.get("max_gen_toks", model.max_gen_toks)
    return bool(len(model.tok_encode(prompt)) + answer > model.max_length)


def _prepare(task: Any, model: Any, run: HarnessRun) -> None:
    """What upstream's command line would set, and the stop tokens of the policy."""
    if getattr(task, "UNSAFE_CODE", False):
        raise EvaluationError(
            f"task {task.task_name} runs the Python that the model writes, on this machine; expected a task that only compares "
            "texts: take it out of evaluation.harness, and run it with lm-evaluation-harness itself in a sandbox"
        )
    if run.served is not None and task.OUTPUT_TYPE != "generate_until":
        raise EvaluationError(
            f"task {task.task_name} asks for log-probabilities of given texts, which {run.served.source.url} is not asked for; "
            "expected a task that generates: evaluate the policy itself with vllm or transformers"
        )
    if task.get_config("num_fewshot") is None:
        task.set_config(key="num_fewshot", value=0)
    if hasattr(task, "reader"):
        task.reader = model
    generation = task.get_config("generation_kwargs")
    if run.settings is not None and generation is not None:
        until = generation.get("until") or []
        stops = [model.tokenizer.decode([number]) for number in run.settings.stop_token_ids]
        generation["until"] = list(dict.fromkeys([*([until] if isinstance(until, str) else until), *stops]))


def _rows(task: str, samples: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            "task": task,
            "filter": sample["filter"],
            "row": sample["doc_id"],
            "document": _json(sample["doc"]),
            "prompt": _text(sample["arguments"][0][0]),
            "continuations": [text for request in sample["arguments"] for text in request[1:] if isinstance(text, str)],
            "replies": [_text(reply) for replies in sample["resps"] for reply in replies],
            "answers": [_text(answer) for answer in sample["filtered_resps"]],
            "target": _text(sample["target"]),
            "scores": _json({metric: sample[metric] for metric in sample["metrics"]}),
        }
        for sample in samples
    ]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else getattr(value, "prompt", None) or _json(value)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def _scores(loaded: dict[str, Any], results: dict[str, Any], run: HarnessRun) -> list[Score]:
    scores: list[Score] = []
    draws: dict[Key, tuple[int, Array]] = {}
    groups = list((loaded.get("groups") or {}).values())
    within = outermost(groups)
    for name, task in loaded["tasks"].items():
        for (metric, kind), values in _values(results["samples"][name]).items():
            value = results["results"][name].get(f"{metric},{kind}")
            if not isinstance(value, int | float):
                continue
            found = _replicates(task, metric, values, seed_of(run.seed, name), run.resamples)
            draws[name, metric, kind] = (len(values), found)
            better = results["higher_is_better"][name].get(metric)
            interval = percentile_interval(float(value), found, len(values))
            shots, version = results["n-shot"][name], str(results["versions"][name])
            scores.append(Score(name, metric, kind, interval, better, shots, version, within.get(name)))
    for group in groups:
        scores += _group_scores(group, results, draws, within.get(group.name))
    return scores


def outermost(groups: Sequence[Any]) -> dict[str, str]:
    """By the name of a task or group: the largest of the groups with a mean of their own that it belongs to."""
    found: dict[str, str] = {}
    averaged = [group for group in groups if group.aggregate_metric_list]
    for group in sorted(averaged, key=lambda group: len(group.get_all_tasks())):
        members = [*(task.task_name for task in group.get_all_tasks()), *(inner.name for inner in group.get_all_groups())]
        found |= dict.fromkeys(members, group.name)
    return found


def _values(samples: Sequence[dict[str, Any]]) -> dict[tuple[str, str], list[Any]]:
    """Each metric's values by metric and filter, one a row."""
    found: dict[tuple[str, str], list[Any]] = {}
    for sample in samples:
        for metric in sample["metrics"]:
            found.setdefault((metric, sample["filter"]), []).append(sample[metric])
    return found


def _replicates(task: Any, metric: str, values: list[Any], seed: int, resamples: int) -> Array:
    """(R,) values of a task's metric over resampled rows."""
    from lm_eval.api.metrics import mean

    aggregate: Callable[[list[Any]], float] = task.aggregation().get(metric, mean)
    if task.task_name in TASKS:
        targets, answers = zip(*values, strict=True)
        own: Any = metric
        return replicates(metrics.statistic(own, targets, answers), len(values), resamples, seed)
    if aggregate is mean:
        numbers = np.array(values, dtype=np.float64)  # (N,)
        return replicates(lambda rows: numbers[rows].mean(axis=1), len(values), resamples, seed)

    def anew(rows: Positions) -> Array:
        return np.array([aggregate([values[row] for row in drawn]) for drawn in rows], dtype=np.float64)  # (R,)

    return replicates(anew, len(values), min(resamples, SLOW_RESAMPLES), seed)


def _group_scores(group: Any, results: dict[str, Any], draws: dict[Key, tuple[int, Array]], within: str | None) -> list[Score]:
    """A group's own scores, upstream's means over its tasks, each task's rows resampled for themselves."""
    scores = []
    for told in group.aggregate_metric_list or ():
        for key, value in results["results"][group.name].items():
            metric, _, kind = key.partition(",")
            members = [
                draws[task.task_name, metric, kind] for task in group.get_all_tasks() if (task.task_name, metric, kind) in draws
            ]
            if metric != told.metric or not members:
                continue
            weights = [rows if told.weight_by_size else 1 for rows, _ in members]
            shortest = min(len(found) for _, found in members)
            mean = sum(weight * found[:shortest] for weight, (_, found) in zip(weights, members, strict=True)) / sum(weights)
            interval = percentile_interval(float(value), np.asarray(mean), sum(rows for rows, _ in members))
            better = results["higher_is_better"].get(group.name, {}).get(metric)
            shots = results["n-shot"].get(group.name)
            scores.append(Score(group.name, metric, kind, interval, better, shots, group.version, within))
    return scores


def _commit(workspace: Workspace, name: str, rows: pa.Table, scores: list[Score], counts: dict[str, int]) -> None:
    paths = [workspace.folder / f"{part_name(name)}.{kind}.parquet" for kind in ("rows", "scores")]
    write_parquet(rows, paths[0])
    write_parquet(to_table(scores), paths[1])
    workspace.commit_part(part_name(name), paths, counts)


if __name__ == "__main__":
    run_work(HarnessRun, work)
