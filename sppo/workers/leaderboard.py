"""The Portuguese tasks as lm-evaluation-harness sees them. Imported in its process alone: the library loads datasets and more.

lm_eval run --include_path <sppo.portuguese.INCLUDE> --tasks sppo_pt --metadata '{"tables": "<root>"}' --apply_chat_template ..
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import datasets
from lm_eval.api.task import ConfigurableTask

from sppo.errors import EvaluationError
from sppo.portuguese import answers, metrics, prompts
from sppo.portuguese.specification import FILTER, MAX_LENGTH, MAX_NEW_TOKENS, STOP, VERSION, LeaderboardTask, Metric, Row
from sppo.portuguese.tables import Tables
from sppo.portuguese.tasks import task_named


class PortugueseTask(ConfigurableTask):  # type: ignore[misc]
    """One of the nine: its rows from the tables, its shots by id, its own prompt in place of the library's."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.facts = task_named(config["task"])
        self.reader: Any = None
        """The library's model, whose tokens and context say how many shots a prompt has room for; None: the template's."""
        self.dropped_shots = 0
        """For want of room, over all questions."""
        self._folding: prompts.Folding | None = None
        super().__init__(config=_configuration(self.facts, config.get("metadata") or {}))

    def download(self, dataset_kwargs: object = None, **_: object) -> None:
        """Read the tables; the library's own data sets are not touched."""
        root = (self.config.metadata or {}).get("tables")
        if not root:
            raise EvaluationError(
                f"{self.facts.name} needs the root of its tables; expected metadata tables, a folder or s3://bucket/prefix: "
                "give --metadata '{\"tables\": ...}', or tables to sppo.harness"
            )
        tables = Tables.open(str(root))
        self.shown = tables.shots(self.facts)
        self.dataset = {"test": datasets.Dataset.from_list([dict(row) for row in tables.asked_rows(self.facts)])}

    def fewshot_docs(self) -> list[Row]:
        return self.shown

    def fewshot_context(
        self,
        doc: Row,
        num_fewshot: int,
        system_instruction: str | None = None,
        apply_chat_template: bool = False,
        chat_template: prompts.Template | None = None,
        **_: object,
    ) -> Any:
        """The prompt. Shots that it has no room for are left out, from the last on."""
        if system_instruction:
            raise EvaluationError(
                f"{self.facts.name} has a system turn of its own; expected no system_instruction: leave it out"
            )
        template = self._template(chat_template) if apply_chat_template and chat_template else None
        for count in range(min(num_fewshot, len(self.shown)), -1, -1):
            prompt = self._prompt(self.shown[:count], doc, template)
            if count == 0 or self._has_room(prompt, chat_template):
                self.dropped_shots += min(num_fewshot, len(self.shown)) - count
                return prompt

    def _template(self, given: prompts.Template) -> prompts.Folding:
        if self._folding is None:
            self._folding = given if isinstance(given, prompts.Folding) else prompts.Folding(given)
        return self._folding

    def _prompt(self, shown: Sequence[Row], row: Row, template: prompts.Folding | None) -> Any:
        return prompts.text(self.facts, shown, row) if template is None else template(prompts.turns(self.facts, shown, row))

    def _has_room(self, prompt: Any, template: prompts.Template | None) -> bool:
        reader: Any = self.reader or getattr(template, "__self__", None)
        if not isinstance(prompt, str) or getattr(reader, "tokenizer", None) is None:
            return True  # a server's tokens cannot be counted here
        room = min(reader.max_length, int((self.config.metadata or {}).get("portuguese_length", MAX_LENGTH)))
        return bool(len(reader.tok_encode(prompt)) + MAX_NEW_TOKENS <= room)


def _configuration(task: LeaderboardTask, metadata: Mapping[str, Any]) -> dict[str, Any]:
    measured = (task.metric, *task.more_metrics)
    return {
        "task": task.name,
        "task_alias": task.card_name,
        "test_split": "test",
        "num_fewshot": task.shots,
        "output_type": "generate_until",
        "doc_to_text": functools.partial(prompts.question, task),
        "doc_to_target": functools.partial(prompts.target, task),
        "generation_kwargs": {"until": list(STOP), "max_gen_toks": MAX_NEW_TOKENS, "do_sample": False},
        "filter_list": [{"name": FILTER, "filter": [{"function": "custom", "filter_fn": functools.partial(_read_all, task)}]}],
        "process_results": functools.partial(_told, task),
        "metric_list": [
            {
                "metric": metric,
                "aggregation": functools.partial(_score, task, metric),
                "higher_is_better": metric != "mse",
            }
            for metric in measured
        ],
        "metadata": {**metadata, "version": VERSION},
    }


def _read_all(task: LeaderboardTask, replies: Sequence[Sequence[str]], _: object) -> list[str]:
    return [answers.read(task, reply[0]) for reply in replies]


def _told(task: LeaderboardTask, row: Row, results: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Target and answer, once for each metric."""
    return dict.fromkeys((task.metric, *task.more_metrics), (prompts.target(task, row), results[0]))


def _score(task: LeaderboardTask, metric: Metric, told: Sequence[tuple[str, str]]) -> float:
    targets, given = zip(*told, strict=True)
    return metrics.score(task, metric, targets, given)
