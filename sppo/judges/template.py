"""A question to a language model: a template filled with a prompt and two answers."""

import re
from collections.abc import Sequence

from sppo.rendering import folded

BLANKS = re.compile(r"\{(prompt|first|second)\}")
TURNS = re.compile(r"<\|im_start\|>[ \t]*(\w+)[ \t]*\n(.*?)<\|im_end\|>", re.DOTALL)


def filled(template: str, prompt: str, first: str, second: str) -> str:
    """The template with its three blanks filled in one go: a text that spells a blank stays as it is."""
    texts = {"prompt": prompt, "first": first, "second": second}
    return BLANKS.sub(lambda blank: texts[blank[1]], template)


def turns_of(template: str) -> list[tuple[str, str]]:
    """Role and text of each turn: of a template with chat markers, `<|im_start|>system\\n..<|im_end|>`, those between them; any
    other is one user turn."""
    marked = [(role, text.strip()) for role, text in TURNS.findall(template)]
    return marked or [("user", template)]


def rlhflow_context(turns: Sequence[dict[str, str]]) -> str:
    """A prompt's turns in the form in which RLHFlow's pair-preference models were trained to read them.

    From the chat template on the card of RLHFlow/pair-preference-model-LLaMA3-8B, as transformers renders it (it trims a
    newline behind each of its tags). That form knows no system turn: one is joined to the first user turn."""
    lines = "".join(f"\n<turn> {turn['role']}\n {turn['content']}" for turn in folded(turns))
    return f"\n{lines}\n"
