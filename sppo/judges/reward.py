"""A reward model as a judge: one score r an answer, L_ij = r_i - r_j, the Bradley-Terry model. B rows.

Any sequence classifier of transformers with one score: Skywork-Reward (arXiv:2410.18451), and with its repository's own code,
which runs only if the recipe names it, ArmoRM (arXiv:2406.12845). Transitive by construction: such a judge knows no cycles.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from sppo.errors import JudgeError
from sppo.judges import Device, Judge, Logits, Match, Rulings, questions, spread
from sppo.judges.causal import ChatTokenizer, batches, conversations, load_model, report_pairs
from sppo.judges.files import check_code, code_modules, code_name
from sppo.model_folder import CONFIG, read_keys
from sppo.progress import Report
from sppo.recipe import RewardModelJudge


class RewardJudge(Judge):
    """A loaded reward model. Each distinct answer to a prompt is scored once, whatever it is compared with."""

    def __init__(self, model: Any, tokenizer: ChatTokenizer, max_tokens: int, tokens_per_batch: int) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens
        self.tokens_per_batch = tokens_per_batch
        pad = model.config.get_text_config().pad_token_id
        self.pad: int | None = pad if pad is not None and pad >= 0 else None
        """The token behind which the model itself finds the end of a row."""

    @classmethod
    def load(cls, judge: RewardModelJudge, folder: Path, device: Device, tokens_per_batch: int) -> "RewardJudge":
        """The judge of a folder.

        Raises JudgeError for a head of several scores, no chat template, or weights that are not a reward model's."""
        from transformers import AutoModelForSequenceClassification

        code = bool(code_modules(folder))
        if code and judge.trust_code is None:
            raise JudgeError(f"{folder} needs its own Python, which this recipe does not name: fetch the judge by this recipe")
        check_code(judge, folder, code_name(judge.source, folder))
        tokenizer = check(judge, folder)
        with _older_names(code):
            model = load_model(AutoModelForSequenceClassification, folder, judge.precision, device, code=code)
        return cls(model, tokenizer, judge.max_tokens, tokens_per_batch)

    def judge(self, matches: Sequence[Match], report: Report) -> list[Logits]:
        """Logits of each match's pairs, (P,) each."""
        return self.rule(matches, report).logits

    def rule(self, matches: Sequence[Match], report: Report) -> Rulings:
        """The same, with how many answers were cut to fit."""
        asked = conversations(matches, self.tokenizer, self.max_tokens, self.tokenizer.encode)
        scores = self._scores(asked.rows, report, asked.pairs).tolist()  # (R,), R rows
        logits = [
            spread(match, {(i, j): scores[place[i]] - scores[place[j]] for i, j in questions(match)})
            for match, place in zip(matches, asked.places, strict=True)
        ]
        return Rulings(logits, counts={"answers_cut": asked.cut} if asked.cut else {})

    def _scores(self, rows: Sequence[list[int]], report: Report, pairs: int) -> Logits:
        import torch

        scores = np.zeros(len(rows), dtype=np.float32)  # (R,)
        config = self.model.config.get_text_config()
        pad = _unused(rows, config.vocab_size) if self.pad is None else self.pad
        budget = self.tokens_per_batch if pad is not None else 0  # without a padding token each row is alone
        tell = report_pairs(report, pairs, len(rows))
        done = 0
        config.pad_token_id = pad
        for batch in batches(rows, budget, pad or 0, self.model.device):
            with torch.inference_mode():
                output = self.model(input_ids=batch.ids, attention_mask=batch.mask)
            found = output["score"] if output.get("score") is not None else output["logits"]
            if found.numel() != len(batch.places):
                raise JudgeError(f"the reward model gives scores of shape {tuple(found.shape)}; expected one for each answer")
            scores[batch.places] = found.float().flatten().cpu().numpy()
            tell(done := done + len(batch.places))
        return scores


def check(judge: RewardModelJudge, folder: Path) -> ChatTokenizer:
    """What can be known of a folder before its weights load: its tokenizer, with a chat template; one score.

    Raises JudgeError for anything else."""
    from transformers import AutoConfig

    tokenizer = ChatTokenizer(folder)
    if not code_modules(folder):
        try:
            labels = AutoConfig.for_model(**read_keys(folder / CONFIG, JudgeError)).num_labels
        except (ValueError, TypeError) as problem:
            cause = " ".join(str(problem).split())[:200]
            raise JudgeError(
                f"{folder / CONFIG} describes no model that transformers has: {cause}; choose a reward model"
            ) from problem
        if labels != 1:
            raise JudgeError(
                f"{folder / CONFIG} has a head of {labels} scores (num_labels); expected one, a reward: choose a reward model"
            )
    return tokenizer


def _unused(rows: Sequence[list[int]], size: int) -> int | None:
    """A token that stands in no row: as padding, it lets the model find each row's last token."""
    used = {number for row in rows for number in row}
    return next((number for number in range(size) if number not in used), None)


@contextmanager
def _older_names(code: bool) -> Iterator[None]:
    """Gives repositories' code the name that ArmoRM's imports, a text for documentation that transformers 5 has no more."""
    if code:
        from transformers.models.llama import modeling_llama

        if not hasattr(modeling_llama, "LLAMA_INPUTS_DOCSTRING"):
            modeling_llama.LLAMA_INPUTS_DOCSTRING = ""
    yield
