"""A language model as a judge: it reads both answers and names one. B rows, V words.

    L_ij = log p(name of the first | x, y_i, y_j) - log p(name of the second | x, y_i, y_j)

RLHFlow's pair-preference models (arXiv:2405.07863) or any instruction-tuned one with a template of its own. One joint reading,
so L_ij is not -L_ji: both orders are asked.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sppo.errors import JudgeError
from sppo.judges import Device, Judge, Logits, Match, Rulings, prompt_text, questions, spread
from sppo.judges.causal import ChatTokenizer, Fitted, batches, fitted, load_model, report_pairs
from sppo.judges.template import filled, rlhflow_context
from sppo.progress import Report
from sppo.recipe import PairwiseLLMJudge


class ChoosingJudge(Judge):
    """A loaded language model that is asked to choose."""

    def __init__(self, model: Any, tokenizer: ChatTokenizer, judge: PairwiseLLMJudge, tokens_per_batch: int) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.settings = judge
        self.tokens_per_batch = tokens_per_batch
        self.names = answer_tokens(tokenizer, judge.answers)

    @classmethod
    def load(cls, judge: PairwiseLLMJudge, folder: Path, device: Device, tokens_per_batch: int) -> "ChoosingJudge":
        """The judge of a folder.

        Raises JudgeError for answers that are not one token each, no chat template, or weights of another kind."""
        from transformers import AutoModelForCausalLM

        tokenizer = check(judge, folder)
        model = load_model(AutoModelForCausalLM, folder, judge.precision, device)
        return cls(model, tokenizer, judge, tokens_per_batch)

    def judge(self, matches: Sequence[Match], report: Report) -> list[Logits]:
        """Logits of each match's pairs, (P,) each."""
        return self.rule(matches, report).logits

    def rule(self, matches: Sequence[Match], report: Report) -> Rulings:
        """The same, with how many questions had their answers cut to fit."""
        asked = [questions(match) for match in matches]
        rows = [self._row(match, *pair) for match, pairs in zip(matches, asked, strict=True) for pair in pairs]
        left = iter(self._logits([row.ids for row in rows], report).tolist())
        logits = [spread(match, {pair: next(left) for pair in pairs}) for match, pairs in zip(matches, asked, strict=True)]
        cut = sum(row.cut for row in rows)
        return Rulings(logits, counts={"questions_cut": cut} if cut else {})

    def _row(self, match: Match, first: str, second: str) -> Fitted:
        tokenizer, settings = self.tokenizer, self.settings
        turns, left, right = tokenizer.turns(match.messages), tokenizer.plain(first), tokenizer.plain(second)
        prompt = rlhflow_context(turns) if settings.layout == "rlhflow" else prompt_text(turns)

        def render(characters: int) -> list[int]:
            asked = filled(settings.template, prompt, left[:characters], right[:characters])
            text = tokenizer.render(match.prompt_id, [{"role": "user", "content": asked}], reply_follows=True)
            if settings.layout == "rlhflow" and tokenizer.tokenizer.bos_token:
                text = text.replace(tokenizer.tokenizer.bos_token, "")
            return tokenizer.encode(text)

        return fitted(render, max(len(left), len(right)), settings.max_tokens, match.prompt_id)

    def _logits(self, rows: Sequence[list[int]], report: Report) -> Logits:
        import torch

        logits = np.zeros(len(rows), dtype=np.float32)  # (R,), R rows
        tell = report_pairs(report, len(rows), len(rows))
        first, second = self.names
        done = 0
        # padded on the left, so that all rows end at one place and the vocabulary is projected there alone
        for batch in batches(rows, self.tokens_per_batch, 0, self.model.device, "left"):
            places = (batch.mask.cumsum(-1) - 1).clamp(min=0)  # (B, T)
            with torch.inference_mode():
                output = self.model(
                    input_ids=batch.ids, attention_mask=batch.mask, position_ids=places, use_cache=False, logits_to_keep=1
                )
            words = torch.log_softmax(output.logits[:, -1].float(), dim=-1)  # (B, V)
            logits[batch.places] = (words[:, first] - words[:, second]).cpu().numpy()
            tell(done := done + len(batch.places))
        return logits


def check(judge: PairwiseLLMJudge, folder: Path) -> ChatTokenizer:
    """What can be known of a folder before its weights load: its tokenizer, with a chat template, and the answers' tokens.

    Raises JudgeError for answers that are not one token each."""
    tokenizer = ChatTokenizer(folder)
    answer_tokens(tokenizer, judge.answers)
    return tokenizer


def answer_tokens(tokenizer: ChatTokenizer, answers: tuple[str, str]) -> tuple[int, int]:
    """The token that says each answer. Raises JudgeError unless each is one token and they differ."""
    first, second = (tokenizer.encode(answer) for answer in answers)
    if len(first) != 1 or len(second) != 1 or first == second:
        raise JudgeError(
            f"the answers {answers[0]!r} and {answers[1]!r} are the tokens {first} and {second} of this judge; expected one "
            "each, and different ones: choose other answers, such as A and B"
        )
    return first[0], second[0]
