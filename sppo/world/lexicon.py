"""The words and phrases of the tiny world.

No phrase of an answer holds a subject's noun or adjective: the rule looks for those."""

import re
from functools import cache

KINDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "animal": (
        ("fox", "cat", "horse", "rabbit", "bear", "deer", "mouse", "otter"),
        ("red", "small", "young", "shy", "brave", "grey", "clever", "wild"),
    ),
    "place": (
        ("garden", "river", "bridge", "village", "harbor", "library", "market", "meadow"),
        ("old", "quiet", "wide", "sunny", "green", "famous", "narrow", "hidden"),
    ),
    "thing": (
        ("lamp", "clock", "boat", "chair", "guitar", "kettle", "bicycle", "mirror"),
        ("sturdy", "golden", "heavy", "blue", "cheap", "plain", "shiny", "tiny"),
    ),
    "food": (
        ("soup", "bread", "cake", "pie", "salad", "cheese", "stew", "pudding"),
        ("warm", "sweet", "fresh", "simple", "spicy", "rich", "creamy", "salty"),
    ),
}
"""Nouns and adjectives by kind; every adjective suits every noun of its kind."""

QUESTIONS: dict[str, tuple[str, ...]] = {
    "look": ("Describe the {subject}.", "What is the {subject} like?", "Tell me about the {subject}."),
    "where": ("Where is the {subject}?", "Where can I find the {subject}?", "Help me find the {subject}."),
    "when": (
        "When is the {subject} at its best?",
        "What is the best time for the {subject}?",
        "When should I look for the {subject}?",
    ),
    "why": ("Why do people like the {subject}?", "What is good about the {subject}?", "Why should I care about the {subject}?"),
}
"""Wordings by task."""

PREDICATES: dict[str, dict[str, tuple[str, ...]]] = {
    "animal": {
        "look": ("has soft fur and bright eyes", "is quick and light on its feet", "has sharp ears and a long tail"),
        "where": ("lives at the edge of the forest", "sleeps under a tall oak", "hides behind the barn"),
        "when": ("comes out at dawn", "is busiest after sunset", "plays all day in spring"),
        "why": ("makes every child smile", "is gentle with its friends", "never harms anyone"),
    },
    "place": {
        "look": ("is calm and full of flowers", "has stone paths and tall trees", "is bright and full of people"),
        "where": ("lies north of the town", "is just beside the lake", "begins where the road ends"),
        "when": ("is empty early in the morning", "is lovely in late summer", "shines after the rain"),
        "why": ("gives people room to think", "brings friends together", "makes visitors forget their troubles"),
    },
    "thing": {
        "look": ("has smooth sides and a neat shape", "is made of oak and brass", "has clean lines and round edges"),
        "where": ("stands in the corner of the room", "is kept in the attic", "waits beside the door"),
        "when": ("is most useful in the evening", "works best on calm days", "helps most when guests arrive"),
        "why": ("is easy to use", "lasts for many years", "saves a lot of time"),
    },
    "food": {
        "look": ("smells of herbs and butter", "is soft and full of flavor", "has a crisp and tasty top"),
        "where": ("is sold at the corner shop", "waits on the kitchen table", "is served at the inn"),
        "when": ("tastes best on a cold day", "is perfect for breakfast", "is eaten after a long walk"),
        "why": ("fills you up quickly", "reminds people of home", "is good for the heart"),
    },
}
"""What is said of a subject, by kind and task."""

DETAILS: dict[str, tuple[str, ...]] = {
    "animal": ("it loves to be near water", "it can always be trusted", "it knows every path nearby"),
    "place": ("the view is worth the walk", "nobody is ever in a hurry there", "there is always a free seat"),
    "thing": ("it needs very little care", "it can be mended by anyone", "it makes a fine gift"),
    "food": ("it costs very little", "you can make it yourself", "one plate is never enough"),
}
"""What is worth adding, by kind."""

VAGUE = ("is a thing", "is okay", "is something")
"""What says nothing."""

TAILS = ("", " and the", " and so on.", " because it")
"""How answers end that do not end well."""

OPENINGS: tuple[tuple[str, ...], ...] = (("",), ("Happy to help!", "What a joy!"), ("Strictly speaking,", "As experts say,"))
"""Plain, cheerful, learned."""


def words_of(text: str) -> list[str]:
    """The words of a text, in lower case; only letters of English count."""
    return re.findall("[a-z]+", text.lower())


@cache
def _texts() -> tuple[str, ...]:
    """All that the language is made of."""
    subjects = [" ".join((*nouns, *adjectives)) for nouns, adjectives in KINDS.values()]
    questions = [wording.replace("{subject}", "") for wordings in QUESTIONS.values() for wording in wordings]
    predicates = [phrase for tasks in PREDICATES.values() for phrases in tasks.values() for phrase in phrases]
    others = [phrase for phrases in (*DETAILS.values(), VAGUE, TAILS, *OPENINGS) for phrase in phrases]
    return (*subjects, *questions, *predicates, *others, "the this and it")


@cache
def vocabulary() -> frozenset[str]:
    """Every word of the language, in lower case."""
    return frozenset(words_of(" ".join(_texts())))


@cache
def spellings() -> tuple[str, ...]:
    """Every word as it stands in a text, with the space before it where it has one, sorted: what a vocabulary needs."""
    written = {"The", "This", *re.findall("[A-Za-z]+", " ".join(_texts()))}
    capitals = {word for word in written if word[0].isupper()}
    return tuple(sorted(capitals | {f" {word}" for word in written}))
