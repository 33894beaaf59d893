"""What a model's text answers, as the leaderboard reads it: a letter, a label, a number, or `[invalid]`.

An answer that cannot be read is an error in every accuracy and F1; a number that cannot be read is 5.
"""

import re
import unicodedata
from typing import assert_never

from sppo.portuguese.specification import LeaderboardTask

INVALID = "[invalid]"
NEAR = 0.5
"""Similarity from which a text is taken for a label that it does not hold."""
LOWEST, HIGHEST = 1.0, 5.0
NO_NUMBER = 5.0
AFTER_LABEL = re.compile(r"[.,;:()\[\]\n]")
PLAIN = str.maketrans({"–": "-", "—": "-", "―": "-", "“": '"', "”": '"', "‘": "'", "’": "'", "…": "..."})


def read(task: LeaderboardTask, text: str) -> str:
    """The answer in a text; of a number its shortest decimal form."""
    match task.reading:
        case "choice":
            return read_choice(text, task.answers)
        case "label":
            return read_label(text, task.answers)
        case "number":
            return repr(read_number(text))
        case _:
            assert_never(task.reading)


def without_accents(text: str) -> str:
    """Latin letters without their marks, dashes and quotes as on a keyboard; what has no such form stays."""
    decomposed = unicodedata.normalize("NFKD", text.translate(PLAIN))
    return "".join(character for character in decomposed if not unicodedata.combining(character))


def read_choice(text: str, letters: tuple[str, ...]) -> str:
    """A text that is a letter; else the first letter after a word such as `letra`, or before a point, or before one of . ) : -,
    or at the end, or as a word: the first of these rules that finds one."""
    plain = without_accents(" ".join(text.split())).strip()
    if plain in letters:
        return plain
    letter = f"([{''.join(letters)}])"
    rules = (
        rf"(?:[Ll]etra|[Aa]lternativa|[Rr]esposta(?: [Cc]orreta(?: e)?)?|[Oo]pcao):? {letter}\b",
        rf"\b{letter}\.",
        rf"\b{letter} ?[.):-]",
        rf"\b{letter}$",
        rf"\b{letter}\b",
    )
    for rule in rules:
        if found := re.search(rule, plain):
            return found[1]
    return INVALID


def read_label(text: str, labels: tuple[str, ...]) -> str:
    """A text that is a label or holds exactly one; else the label that its beginning is most similar to, if similar enough."""
    plain = {without_accents(label.lower()): label for label in labels}
    said = without_accents(text.strip().lower())
    if said in plain:
        return plain[said]
    held = [label for label in plain if label in said]
    if len(held) == 1:
        return plain[held[0]]
    start = AFTER_LABEL.split(said, maxsplit=1)[0][: max(map(len, plain))]
    nearest = max(plain, key=lambda label: similarity(start, label))  # of equals the first
    return plain[nearest] if similarity(start, nearest) >= NEAR else INVALID


def similarity(one: str, other: str) -> float:
    """1 - Levenshtein distance / length of the longer, in [0, 1]."""
    distances = list(range(len(other) + 1))
    for row, character in enumerate(one, start=1):
        diagonal, distances[0] = distances[0], row
        for column, rival in enumerate(other, start=1):
            replaced = diagonal + (character != rival)
            diagonal = distances[column]
            distances[column] = min(replaced, distances[column] + 1, distances[column - 1] + 1)
    return 1 - distances[-1] / max(len(one), len(other), 1)


def read_number(text: str) -> float:
    """All digits of a text as one number, its decimal point the first between two digits, held to 1..5.

    Commas are points, so `1.234,5` is 1.2345, and a minus is not read."""
    kept = re.sub(r"[^0-9.]", "", text.replace(",", "."))
    point = re.search(r"[0-9](\.)[0-9]", kept)
    whole, fraction = (kept, "") if point is None else (kept[: point.start(1)], kept[point.end(1) :])
    digits = whole.replace(".", "")
    if not digits:
        return NO_NUMBER
    return min(HIGHEST, max(LOWEST, float(f"{digits}.{fraction.replace('.', '') or 0}")))
