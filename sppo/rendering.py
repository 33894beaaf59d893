"""From turns to token ids, once: the chat template, and what a user typed stays text.

Control tokens (`<end_of_turn>` and its like) come from the template alone. Where a user typed the text of one, the rendered
string is cut at the template's own control tokens and the pieces between them are encoded with control tokens not recognised;
every other prompt is encoded in one go, as the tokenizer's own `apply_chat_template` does.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sppo.errors import PromptError
from sppo.recipe import Policy

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Messages = Sequence[dict[str, str]]

FAILURES = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""Of a chat template, which is a program."""


def folded(messages: Messages) -> list[dict[str, str]]:
    """The turns without a leading system turn: its text comes before the first user turn's, with an empty line between.

    An empty system turn adds nothing."""
    leading = [turn["content"] for turn in messages[:1] if turn["role"] == "system"]
    turns = [dict(turn) for turn in messages[len(leading) :]]
    if leading and leading[0] and turns and turns[0]["role"] == "user":
        turns[0]["content"] = f"{leading[0]}\n\n{turns[0]['content']}"
    return turns


def render(tokenizer: "PreTrainedTokenizerBase", policy: Policy, messages: Messages) -> list[int]:
    """Token ids of a conversation, generation prompt included; see `Renderer`."""
    return Renderer(tokenizer, policy).token_ids(messages)


@dataclass(frozen=True)
class _Piece:
    """A stretch of the rendered string: a control token of the template, or text."""

    text: str
    control: bool


class Renderer:
    """Renders many conversations of one policy."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", policy: Policy) -> None:
        self.tokenizer = tokenizer
        self.system_role = policy.system_role
        controls = {token.content: number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
        self.controls: dict[str, int] = controls
        longest_first = sorted(controls, key=len, reverse=True)
        self.pattern = re.compile("|".join(re.escape(text) for text in longest_first) or r"(?!)")

    def token_ids(self, messages: Messages) -> list[int]:
        """Ids of the rendered turns, with the generation prompt and exactly the template's own control tokens.

        Raises PromptError if the template refuses the turns, or rewrites a turn in which control tokens were typed."""
        turns = folded(messages) if self.system_role == "fold" else [dict(turn) for turn in messages]
        text = self._template(turns)
        if not any(self.pattern.search(turn["content"]) for turn in turns):
            return self._encode(text)
        return self._with_typed_controls(turns, text)

    def _template(self, turns: list[dict[str, str]]) -> str:
        from jinja2 import TemplateError

        try:
            return str(self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
        except TemplateError as problem:
            roles = ", ".join(turn["role"] for turn in turns) or "none"
            raise PromptError(
                f"the chat template refuses the turns ({roles}): {problem}; expected user and assistant in turn: "
                "mend the prompt, or set policy.system_role to fold if the template knows no system role"
            ) from problem
        except FAILURES as problem:
            raise PromptError(
                f"the chat template fails: {type(problem).__name__}: {problem}; expected a template that writes user and "
                "assistant turns: mend the policy's chat_template.jinja, or take it from where the weights are from"
            ) from problem

    def _encode(self, text: str, controls_are_text: bool = False) -> list[int]:
        # no special tokens added: the template has written its own BOS, and a second one would be read as part of the prompt
        encoded = self.tokenizer(text, add_special_tokens=False, split_special_tokens=controls_are_text)
        return [int(number) for number in encoded["input_ids"]]

    def _with_typed_controls(self, turns: list[dict[str, str]], text: str) -> list[int]:
        spans = self._content_spans(turns, text)
        # The same conversation with x in place of what was typed must come out of both ways alike; if it does not, cutting
        # changes the ids of this tokenizer (a prefix space, say), and no faithful rendering is known.
        neutral = _replace_in(text, spans, lambda content: self.pattern.sub(lambda typed: "x" * len(typed[0]), content))
        pieces = self._pieces(text, spans)
        token_ids = self._join(pieces)
        expected = [self.controls[piece.text] for piece in pieces if piece.control]
        known = set(self.controls.values())
        faithful = self._join(self._pieces(neutral, spans)) == self._encode(neutral)
        if not faithful or [number for number in token_ids if number in known] != expected:
            raise PromptError(
                f"the prompt holds the text of the control token {self._first_typed(turns)!r}, which this tokenizer cannot "
                "encode as text without changing the ids around it; expected text without control tokens: mend the prompt"
            )
        return token_ids

    def _first_typed(self, turns: list[dict[str, str]]) -> str:
        return next(found[0] for turn in turns if (found := self.pattern.search(turn["content"])))

    def _content_spans(self, turns: list[dict[str, str]], text: str) -> list[tuple[int, int]]:
        """Where each turn's content, whole or trimmed, lies in the rendered text."""
        marks = [f"SPPOturn{number}mark" for number in range(len(turns))]
        frame = self._template([{**turn, "content": mark} for turn, mark in zip(turns, marks, strict=True)])
        literals = re.split("|".join(f"{mark}(?![0-9])" for mark in marks), frame)
        spans: list[tuple[int, int]] = []
        place = len(literals[0])
        if len(literals) == len(turns) + 1 and text.startswith(literals[0]):
            for turn, literal in zip(turns, literals[1:], strict=True):
                shown = _shown(turn["content"], text, place, literal)
                if shown is None:
                    break
                spans.append((place, place + len(shown)))
                place += len(shown) + len(literal)
        if len(spans) < len(turns) or place != len(text):
            raise PromptError(
                f"the prompt holds the text of the control token {self._first_typed(turns)!r} and the chat template rewrites "
                "its turns, so the two cannot be told apart; expected text without control tokens: mend the prompt"
            )
        return spans

    def _pieces(self, text: str, spans: list[tuple[int, int]]) -> list[_Piece]:
        """The text cut at the control tokens that the template wrote."""
        pieces: list[_Piece] = []
        place = 0
        for start, end in _gaps(spans, len(text)):
            for found in self.pattern.finditer(text, start, end):
                pieces += [_Piece(text[place : found.start()], False), _Piece(found[0], True)]
                place = found.end()
        pieces.append(_Piece(text[place:], False))
        return [piece for piece in pieces if piece.text]

    def _join(self, pieces: Iterable[_Piece]) -> list[int]:
        token_ids: list[int] = []
        for piece in pieces:
            token_ids += [self.controls[piece.text]] if piece.control else self._encode(piece.text, controls_are_text=True)
        return token_ids


def _shown(content: str, text: str, place: int, literal: str) -> str | None:
    """What of a content stands at a place of the rendered text, the literal behind it: all of it, or trimmed."""
    for shown in (content, content.strip(), content.lstrip(), content.rstrip()):
        if text.startswith(shown + literal, place):
            return shown
    return None


def _gaps(spans: list[tuple[int, int]], length: int) -> list[tuple[int, int]]:
    """What lies between spans: the template's own text."""
    edges = [0, *(edge for span in spans for edge in span), length]
    return list(zip(edges[::2], edges[1::2], strict=True))


def _replace_in(text: str, spans: list[tuple[int, int]], replace: Callable[[str], str]) -> str:
    """The text with each span replaced by something of the same length."""
    for start, end in spans:
        text = text[:start] + replace(text[start:end]) + text[end:]
    return text
