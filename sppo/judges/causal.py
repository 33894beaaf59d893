"""What judges of a transformers model share: loading it strictly, rendering by its chat template, padding. B rows, T tokens.

A row is one text that the model reads alone. Padding is masked and stands on one side, positions count from each row's first
token, so a row's result does not depend on the rows beside it.
"""

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sppo.errors import JudgeError
from sppo.judges import Device, Match, questions
from sppo.judges.files import weight_files
from sppo.judges.segments import fill_batches
from sppo.progress import Progress, Report
from sppo.recipe import Precision
from sppo.rendering import folded

if TYPE_CHECKING:
    import torch

Turns = list[dict[str, str]]


class ChatTokenizer:
    """A judge's tokenizer and chat template, from local files, running none of their code.

    Raises JudgeError if it cannot be read, or has no chat template."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer

        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as problem:
            cause = " ".join(str(problem).split())
            raise JudgeError(f"cannot load the tokenizer in {folder}: {cause}; check its tokenizer.json") from problem
        if not self.tokenizer.chat_template:
            raise JudgeError(
                f"the tokenizer in {folder} has no chat template; expected the one that the judge was trained with: "
                "put its chat_template.jinja into the judge's folder"
            )
        controls = {token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special}
        longest_first = sorted((text for text in controls if len(text) > 1), key=len, reverse=True)
        self._typed = re.compile("|".join(re.escape(text) for text in longest_first) or r"(?!)")

    def plain(self, text: str) -> str:
        """A text in which no control token is spelled: a blank stands behind its first character, so it ends no turn."""
        while self._typed.search(text):
            text = self._typed.sub(lambda typed: f"{typed[0][0]} {typed[0][1:]}", text)
        return text

    def turns(self, messages: Sequence[dict[str, str]]) -> Turns:
        """A prompt's turns, control tokens plain, without a system turn that says nothing."""
        said = [turn for turn in messages if turn["role"] != "system" or turn["content"].strip()]
        return [{"role": turn["role"], "content": self.plain(turn["content"])} for turn in said]

    def render(self, prompt_id: str, turns: Turns, reply_follows: bool) -> str:
        """The chat template's text of turns; a system turn that it refuses is joined to the first user turn.

        Raises JudgeError naming the prompt if it refuses the turns all the same."""
        from jinja2 import TemplateError

        refusal: Exception | None = None
        for form in (turns, folded(turns)):
            try:
                return str(self.tokenizer.apply_chat_template(form, tokenize=False, add_generation_prompt=reply_follows))
            except TemplateError as problem:
                refusal = refusal or problem
        roles = ", ".join(turn["role"] for turn in turns) or "none"
        raise JudgeError(
            f"prompt {prompt_id}: the judge's chat template refuses the turns ({roles}): {refusal}; expected user and "
            "assistant in turn: mend the prompt, or choose another judge"
        )

    def encode(self, text: str, special_tokens: bool = False) -> list[int]:
        """Ids of a rendered text. Its control tokens are the template's; special_tokens adds the tokenizer's own to them."""
        return [int(number) for number in self.tokenizer(text, add_special_tokens=special_tokens)["input_ids"]]


@dataclass(frozen=True)
class Fitted:
    """A row within its limit."""

    ids: list[int]
    cut: bool
    """Whether an answer lost its end."""


def fitted(render: Callable[[int], list[int]], longest: int, max_tokens: int, prompt_id: str) -> Fitted:
    """The row with as many characters of each answer as max_tokens allow; `render` makes the ids from that number.

    Raises JudgeError naming the prompt if nothing is left for an answer."""
    ids = render(longest)
    if len(ids) <= max_tokens:
        return Fitted(ids, cut=False)
    fits, too_long, ids = 0, longest, render(0)
    if len(ids) >= max_tokens:
        raise JudgeError(
            f"prompt {prompt_id} takes {len(ids)} tokens of the judge's {max_tokens} without an answer; expected room for one: "
            "raise the judge's max_tokens, or lower prompts.max_prompt_tokens"
        )
    while too_long - fits > 1:
        middle = (fits + too_long) // 2
        tried = render(middle)
        if len(tried) <= max_tokens:
            fits, ids = middle, tried
        else:
            too_long = middle
    return Fitted(ids, cut=True)


@dataclass(frozen=True)
class Conversations:
    """Each distinct answer that has a rival, rendered behind its prompt, once."""

    rows: list[list[int]]
    places: list[dict[str, int]]
    """Of each match, the row of an answer's text."""
    pairs: int
    """Questions that they answer."""
    cut: int
    """Answers that lost their ends."""


def conversations(
    matches: Sequence[Match], tokenizer: ChatTokenizer, max_tokens: int, encode: Callable[[str], list[int]]
) -> Conversations:
    """The answers of matches as rows of at most max_tokens."""
    rows: list[list[int]] = []
    places: list[dict[str, int]] = []
    pairs = cut = 0
    for match in matches:
        asked = questions(match)
        answers = list(dict.fromkeys(text for question in asked for text in question))
        found = [_conversation(match, answer, tokenizer, max_tokens, encode) for answer in answers]
        places.append({answer: len(rows) + offset for offset, answer in enumerate(answers)})
        rows.extend(row.ids for row in found)
        cut += sum(row.cut for row in found)
        pairs += len(asked)
    return Conversations(rows, places, pairs, cut)


def _conversation(
    match: Match, answer: str, tokenizer: ChatTokenizer, max_tokens: int, encode: Callable[[str], list[int]]
) -> Fitted:
    turns, said = tokenizer.turns(match.messages), tokenizer.plain(answer)

    def render(characters: int) -> list[int]:
        reply = {"role": "assistant", "content": said[:characters]}
        return encode(tokenizer.render(match.prompt_id, [*turns, reply], reply_follows=False))

    return fitted(render, len(said), max_tokens, match.prompt_id)


@dataclass(frozen=True)
class Batch:
    """B rows, padded to the longest."""

    places: list[int]
    """Which rows."""
    ids: "torch.Tensor"  # (B, T)
    mask: "torch.Tensor"  # (B, T), 1 where a token stands
    last: "torch.Tensor"  # (B,), position of each row's last token


def batches(
    rows: Sequence[list[int]],
    tokens_per_batch: int,
    pad: int,
    device: "torch.device",
    side: Literal["left", "right"] = "right",
) -> Iterator[Batch]:
    """Rows in batches of similar length, longest first; B x T stays within the budget, or the row is alone."""
    import torch

    for places in fill_batches([len(row) for row in rows], tokens_per_batch):
        longest = len(rows[places[0]])
        ids = np.full((len(places), longest), pad, dtype=np.int64)  # (B, T)
        mask = np.zeros_like(ids)  # (B, T)
        last = np.full(len(places), longest - 1, dtype=np.int64)  # (B,)
        for row, place in enumerate(places):
            size = len(rows[place])
            where = slice(0, size) if side == "right" else slice(longest - size, longest)
            ids[row, where], mask[row, where] = rows[place], 1
            last[row] = where.stop - 1
        yield Batch(places, *(torch.from_numpy(array).to(device) for array in (ids, mask, last)))


def report_pairs(report: Report, pairs: int, rows: int) -> Callable[[int], None]:
    """Tells how many pairs so many of the rows stand for."""
    return lambda done: report(Progress(stage="judge", done=pairs * done // max(1, rows), total=pairs, unit="pairs"))


def load_model(
    loader: Any, folder: Path, precision: Precision, device: Device, heads: Sequence[str] = (), code: bool = False
) -> Any:
    """The model of a judge's folder, ready to judge.

    loader: a transformers Auto class. heads: tensors of the file that are the caller's to read. code: whether the folder's own
    Python defines the model.
    Raises JudgeError for pickles, and naming the first tensor that is missing, unknown, misshapen or not finite."""
    from transformers import AutoConfig

    weight_files(folder)
    try:
        config = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=code)
        # sdpa leaves Gemma-2's soft cap out in silence
        capped = getattr(config.get_text_config(), "attn_logit_softcapping", None)
        with _without_report():
            model, found = loader.from_pretrained(
                str(folder),
                config=config,
                dtype=_dtype(precision, device),
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=code,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # refused below, by name
                **({"attn_implementation": "eager"} if capped else {}),
            )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, ImportError) as problem:
        cause = " ".join(str(problem).split())[:400]
        raise JudgeError(f"cannot load the judge in {folder}: {cause}; check its config.json against its weights") from problem
    _check_tensors(folder, model, found, heads)
    return model.to(device).eval().requires_grad_(False)


def _dtype(precision: Precision, device: Device) -> Any:
    import torch

    name = ("float32" if device == "cpu" else "bfloat16") if precision == "auto" else precision
    return getattr(torch, name)


@contextmanager
def _without_report() -> Iterator[None]:
    """Keeps transformers' own table of missing and unknown tensors out of the log: it would list the caller's heads."""
    logger = logging.getLogger("transformers.modeling_utils")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _check_tensors(folder: Path, model: Any, found: dict[str, Any], heads: Sequence[str]) -> None:
    import torch

    kind = type(model).__name__
    for name in sorted(found["missing_keys"]):
        raise JudgeError(
            f"{folder} has no tensor {name!r}, which {kind} needs; a random one would judge at random: "
            "choose the kind of judge that these weights were trained as"
        )
    for name in sorted(set(found["unexpected_keys"]) - set(heads)):
        raise JudgeError(
            f"{folder} has the tensor {name!r}, which {kind} has not; expected no others: "
            "choose the kind of judge that these weights were trained as"
        )
    for name, *shapes in sorted(found["mismatched_keys"]):
        held, wanted = (tuple(shape) for shape in shapes)
        raise JudgeError(
            f"{folder}: tensor {name!r} has shape {held}; config.json asks for {wanted}: take both from one revision"
        )
    for name, tensor in model.named_parameters():
        check_tensor(folder, name, bool(torch.isfinite(tensor).all()))


def check_tensor(folder: Path, name: str, finite: bool) -> None:
    """Raises JudgeError for a tensor that is not finite throughout."""
    if not finite:
        raise JudgeError(f"{folder}: tensor {name!r} holds nan or infinity; expected finite weights: fetch the judge anew")
