"""The tiny world's language: instructions about 256 subjects, answers of graded quality, a rule that prefers some to others.

An instruction asks one of four things about one subject, such as `Where can I find the red fox?`. A good answer names the
subject and its adjective, says something of the right kind about what was asked, adds a fitting detail, does not stutter and
ends where a sentence ends. Beyond quality, answers have one of three openings that beat each other in a circle: preferences of
this language are partly intransitive.
"""

import hashlib
import itertools
import math
import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

from sppo.errors import PromptError
from sppo.fingerprint import seed_of
from sppo.world.lexicon import DETAILS, KINDS, OPENINGS, PREDICATES, QUESTIONS, TAILS, VAGUE, vocabulary, words_of

DANGLING = frozenset(
    ("a", "an", "and", "at", "because", "for", "in", "is", "it", "its", "of", "on", "the", "to", "when", "with")
)
"""No sentence ends in one of these."""
LONGEST_WORDS = 34
"""More words than this are rambling; the longest good answer of the language has 24."""

NOUN_WEIGHT = 1.0
ADJECTIVE_WEIGHT = 1.0
PREDICATE_WEIGHT = 1.5
OFF_TASK_WEIGHT = 0.5
DETAIL_WEIGHT = 1.0
ENDING_WEIGHT = 1.0
STUTTER_WEIGHT = 1.0
STRANGE_WEIGHT = 2.0
STYLE_LOGIT = 0.5
"""Log-odds of the winning style between two answers of equal quality. All weights are halves: preferences are clear or ties."""


@dataclass(frozen=True)
class Instruction:
    """One question about one subject."""

    kind: str
    """What sort of thing the subject is: animal, place, thing or food."""
    task: str
    """What is asked: look, where, when or why."""
    adjective: str
    noun: str
    text: str


@dataclass(frozen=True)
class Parts:
    """What the rule sees in one answer."""

    noun: bool
    """The first subject that it names is the one asked about."""
    adjective: bool
    """So is its adjective, and it gives no other."""
    predicate: bool
    """It says something that answers the question."""
    off_task: bool
    """It says something true of such a subject that was not asked."""
    detail: bool
    """It adds something fitting."""
    ending: bool
    """It ends where a sentence ends."""
    stutter: bool
    """A word twice in a row, or three words that come back."""
    strange: float
    """How much of it is not of the language, in [0, 1]."""
    style: int
    """0 plain, 1 cheerful, 2 learned."""

    @property
    def quality(self) -> float:
        """The transitive part of preferences, in log-odds."""
        return (
            NOUN_WEIGHT * self.noun
            + ADJECTIVE_WEIGHT * self.adjective
            + PREDICATE_WEIGHT * self.predicate
            + OFF_TASK_WEIGHT * self.off_task
            + DETAIL_WEIGHT * self.detail
            + ENDING_WEIGHT * self.ending
            - STUTTER_WEIGHT * self.stutter
            - STRANGE_WEIGHT * self.strange
        )


@cache
def instructions() -> tuple[Instruction, ...]:
    """Every instruction of the language, in one fixed order."""
    return tuple(
        Instruction(kind, task, adjective, noun, wording.format(subject=f"{adjective} {noun}"))
        for kind, (nouns, adjectives) in KINDS.items()
        for noun, adjective in itertools.product(nouns, adjectives)
        for task, wordings in QUESTIONS.items()
        for wording in wordings
    )


@cache
def _by_text() -> dict[str, Instruction]:
    return {instruction.text: instruction for instruction in instructions()}


def _in_run(instruction: Instruction) -> bool:
    return hashlib.sha256(instruction.text.encode()).digest()[0] % 2 == 0


def lesson_instructions() -> list[Instruction]:
    """The half that the base policy and the judge are fitted on: no prompt of a run is among them."""
    return [instruction for instruction in instructions() if not _in_run(instruction)]


def run_instructions() -> list[Instruction]:
    """The other half, which `prompts` draws from."""
    return [instruction for instruction in instructions() if _in_run(instruction)]


PromptRow = tuple[str, list[dict[str, str]]]
"""Prompt id (the sha256 of the text, as in the Snorkel dataset) and messages."""


def prompts(seed: int, iterations: int, train_prompts: int, test_prompts: int) -> tuple[list[list[PromptRow]], list[PromptRow]]:
    """x ~ X: a portion of `train_prompts` for each iteration, and held-out test prompts; all distinct.

    Raises PromptError if the language has too few instructions."""
    rows = run_instructions()
    wanted = iterations * train_prompts + test_prompts
    if wanted > len(rows):
        raise PromptError(
            f"{iterations} iterations x {train_prompts} train prompts + {test_prompts} test prompts = {wanted}; the tiny world "
            f"has {len(rows)} instructions for runs: lower train_prompts, test_prompts or iterations"
        )
    random.Random(seed_of(seed, "world prompts")).shuffle(rows)
    drawn = [_row(instruction) for instruction in rows[:wanted]]
    test, train = drawn[:test_prompts], drawn[test_prompts:]
    return [train[start : start + train_prompts] for start in range(0, len(train), train_prompts)], test


def _row(instruction: Instruction) -> PromptRow:
    prompt_id = hashlib.sha256(instruction.text.encode()).hexdigest()
    return prompt_id, [{"role": "user", "content": instruction.text}]


def answer(instruction: Instruction, skill: float, draw: random.Random) -> str:
    """One answer; each of its parts is good with a chance that rises with `skill`, in [0, 1], whatever the other parts are."""
    kind, noun, adjective = instruction.kind, instruction.noun, instruction.adjective
    if draw.random() > 0.4 + 0.6 * skill:
        kind, noun = _other_noun(instruction, draw)
    if draw.random() > skill:
        adjective = draw.choice(["", draw.choice(KINDS[kind][1])])
    article = draw.choice(["the", "the", "this"])
    subject = " ".join(word for word in (article, adjective, noun) if word)
    predicate = _predicate(instruction, kind, skill, draw)
    detail = f", and {draw.choice(DETAILS[kind])}" if draw.random() < skill else _weak_detail(predicate, draw)
    body = f"{subject} {predicate}{detail}"
    if draw.random() > 0.5 + skill / 2:
        body = _stutter(body, draw)
    body += "." if draw.random() < 0.2 + 0.8 * skill else draw.choice(TAILS)
    opening = draw.choice(OPENINGS[draw.randrange(3)])
    text = f"{opening} {body}" if opening else body
    return re.sub(r"(^|[.!] )([a-z])", lambda found: found[1] + found[2].upper(), text)


def _other_noun(instruction: Instruction, draw: random.Random) -> tuple[str, str]:
    kind = draw.choice([instruction.kind, *KINDS])
    return kind, draw.choice([noun for noun in KINDS[kind][0] if noun != instruction.noun])


def _predicate(instruction: Instruction, kind: str, skill: float, draw: random.Random) -> str:
    if draw.random() < skill:
        return draw.choice(PREDICATES[kind][instruction.task])
    return draw.choice([draw.choice(VAGUE), draw.choice(PREDICATES[kind][draw.choice(list(QUESTIONS))])])


def _weak_detail(predicate: str, draw: random.Random) -> str:
    return draw.choice(["", "", f", and it {predicate}"])


def _stutter(body: str, draw: random.Random) -> str:
    words = body.split(" ")
    place = draw.randrange(len(words))
    return " ".join([*words[:place], *[words[place].strip(",")] * draw.choice([1, 2]), *words[place:]])


def garble(text: str, draw: random.Random) -> str:
    """The text with one word dropped, or moved to another place, as a policy may come to write."""
    words = text.split(" ")
    word = words.pop(draw.randrange(len(words)))
    if draw.random() < 0.5:
        words.insert(draw.randrange(len(words) + 1), word)
    return " ".join(words)


def rule_preference(instruction: str, first: str, second: str) -> float:
    """P(first > second | instruction) by the language's own rule, in (0, 1); 0.5 for equal answers.

    Defined for any texts: what the rule does not know counts as strange, and an instruction of no known form leaves the parts
    that depend on it out."""
    return 1.0 / (1.0 + math.exp(-rule_logit(instruction, first, second)))


def rule_logit(instruction: str, first: str, second: str) -> float:
    """Log-odds of `rule_preference`: the difference in quality, which is transitive, and the styles' circle, which is not.

    Within +-9, and antisymmetric: swapping the answers changes the sign."""
    asked = find_instruction(instruction)
    return logit_between(parts_of(asked, first), parts_of(asked, second))


def logit_between(first: Parts, second: Parts) -> float:
    """Log-odds that the first answer is preferred. Cheerful beats plain, plain beats learned, learned beats cheerful."""
    circle = (0.0, STYLE_LOGIT, -STYLE_LOGIT)[(first.style - second.style) % 3]
    return first.quality - second.quality + circle


def find_instruction(text: str) -> Instruction | None:
    """The language's instruction of this text, white space around it aside, or None."""
    return _by_text().get(text.strip())


def parts_of(asked: Instruction | None, text: str) -> Parts:
    """What the rule sees in an answer to an instruction, or to one it does not know (None)."""
    lowered = text.lower().strip()
    words = words_of(lowered)
    on_task = asked is not None and _says(words, PREDICATES[asked.kind][asked.task])
    of_kind = [] if asked is None else [phrase for phrases in PREDICATES[asked.kind].values() for phrase in phrases]
    return Parts(
        noun=asked is not None and [word for word in words if word in _nouns()][:1] == [asked.noun],
        adjective=asked is not None and {word for word in words if word in _adjectives()} == {asked.adjective},
        predicate=on_task,
        off_task=not on_task and _says(words, of_kind),
        detail=asked is not None and _says(words, DETAILS[asked.kind]),
        ending=_ends_well(lowered, words),
        stutter=_stutters(words),
        strange=_strange(lowered, words),
        style=next((style for style in (1, 2) if lowered.startswith(_openings(style))), 0),
    )


def _says(words: Sequence[str], phrases: Iterable[str]) -> bool:
    spaced = f" {' '.join(words)} "
    return any(f" {phrase} " in spaced for phrase in phrases)


@cache
def _openings(style: int) -> tuple[str, ...]:
    return tuple(opening.lower() for opening in OPENINGS[style])


@cache
def _nouns() -> frozenset[str]:
    return frozenset(noun for nouns, _ in KINDS.values() for noun in nouns)


@cache
def _adjectives() -> frozenset[str]:
    return frozenset(adjective for _, adjectives in KINDS.values() for adjective in adjectives)


def _ends_well(lowered: str, words: list[str]) -> bool:
    return lowered.endswith((".", "!")) and bool(words) and words[-1] not in DANGLING and not lowered.endswith("so on.")


def _stutters(words: list[str]) -> bool:
    triples = list(zip(words, words[1:], words[2:], strict=False))
    return any(one == two for one, two in itertools.pairwise(words)) or len(set(triples)) < len(triples)


def _strange(lowered: str, words: list[str]) -> float:
    """Unknown words, other characters, too many words or none."""
    if not words or len(words) > LONGEST_WORDS:
        return 1.0
    unknown = sum(word not in vocabulary() for word in words) / len(words)
    other = len(re.sub(r"[a-z ,.!?]", "", lowered)) / len(lowered)
    return min(1.0, 2.0 * (unknown + other))
