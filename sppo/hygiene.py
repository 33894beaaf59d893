"""What training should know of a response before it is trained on: cut, empty, a refusal, or the same as another. K responses.

Traits are facts about texts, found once whatever the estimator; what becomes of a response that has one is decided by the
recipe's `selection`, in `sppo.selection`.
"""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from sppo.errors import EstimateError

Flags = npt.NDArray[np.bool_]
Positions = npt.NDArray[np.int64]
Bigrams = frozenset[tuple[str | None, str | None]]

COLUMNS = ("prompt_id", "k", "text", "finish_reason")
"""Of responses: all that is read here."""
REFUSAL_OPENERS = (
    "as an ai",
    "i cannot",
    "i can't",
    "i can not",
    "i'm unable",
    "i am unable",
    "i'm not able",
    "i am not able",
    "i'm sorry, but",
    "i am sorry, but",
    "sorry, but",
    "i apologize, but",
    "i apologise, but",
    "i must decline",
    "como uma ia",
    "como ia",
    "como uma inteligência artificial",
    "como um assistente de ia",
    "não posso",
    "eu não posso",
    "não consigo",
    "eu não consigo",
    "desculpe, mas",
    "desculpa, mas",
    "peço desculpa, mas",
    "peço desculpas, mas",
    "sinto muito, mas",
    "lamento, mas",
    "infelizmente, não posso",
    "infelizmente não posso",
)
"""English and Portuguese, lower case. They open 8.8 % of the AlpacaEval answers of the published SPPO-Gemma-2-9B, and 0.2 and
0.4 % of those of SPPO-Llama-3 and SPPO-Mistral. Many such answers go on to help, and some refuse rightly."""
OPENING = 80
"""Characters that an opener is looked for in."""

_WORD = re.compile(r"[^\W_]")
_DECORATION = re.compile(r"^[\W_]+")
_REFUSAL = re.compile("(?:" + "|".join(map(re.escape, REFUSAL_OPENERS)) + r")\b")


@dataclass(frozen=True)
class Traits:
    """Of R responses in the order of their targets; or, as `shaped` gives them, of N prompts with K responses each."""

    cut: Flags
    """(R,) cut at max_tokens."""
    empty: Flags
    """(R,) without a letter or digit."""
    refusal: Flags
    """(R,) opening with a refusal."""
    alike: Flags
    """(sum of K * K,) whether two responses of a prompt say the same, row-major as logits are; each says the same as itself."""

    def shaped(self, places: Positions, squares: Positions) -> "Traits":
        """The traits at these places: (N, K) of them, and (N, K, K) of `alike`."""
        count = places.shape[1]
        alike = self.alike[squares].reshape(-1, count, count)  # (N, K, K)
        return Traits(self.cut[places], self.empty[places], self.refusal[places], alike)


def opens_with_refusal(text: str) -> bool:
    """Whether a text opens with one of REFUSAL_OPENERS; quotes, marks and white space before it do not count, nor does case."""
    opening = _DECORATION.sub("", text[:OPENING].replace("\u2019", "'"))
    return _REFUSAL.match(opening.lower()) is not None


def is_empty(text: str) -> bool:
    """Whether a text holds no letter and no digit of any script."""
    return _WORD.search(text) is None


def bigrams(text: str) -> Bigrams:
    """The distinct pairs of neighbouring words, lower case; the start and the end are neighbours too, so no text has none."""
    words: list[str | None] = [None, *text.lower().split(), None]
    return frozenset(itertools.pairwise(words))


def similarity(one: str, other: str) -> float:
    """How much two texts say the same: Jaccard index of their word bigrams, in [0, 1]; 1 for equal texts.

    One other word of n distinct ones leaves (n - 1) / (n + 3): .92 of 50, .98 of 200. Order counts, case and white space do
    not. A script without spaces between words has few bigrams, so there only equal clauses are found."""
    first, second = bigrams(one), bigrams(other)
    return len(first & second) / len(first | second)


def say_the_same(texts: Sequence[str], threshold: float) -> Flags:
    """(K, K) whether each two of a prompt's texts are equal or, below a threshold of 1, of at least that similarity."""
    distinct = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    same = np.eye(len(distinct), dtype=np.bool_)  # (D, D)
    if threshold < 1 and len(distinct) > 1:
        found = [bigrams(text) for text in distinct]
        for one, other in itertools.combinations(range(len(found)), 2):
            same[one, other] = same[other, one] = _at_least(found[one], found[other], threshold)
    number = [distinct[text] for text in texts]  # (K,)
    return same[np.ix_(number, number)]


def _at_least(one: Bigrams, other: Bigrams, threshold: float) -> bool:
    small, large = sorted((len(one), len(other)))
    if small < threshold * large:
        return False  # they cannot share more than the smaller has
    shared = len(one & other)
    return shared >= threshold * (small + large - shared)


def find_traits(responses: pa.Table, comparisons: pa.Table, near_identical: float) -> Traits:
    """Traits of all responses, in the order of the comparisons and of k within each prompt, whatever order the rows have.

    near_identical: similarity from which two responses say the same. Linear in the length of the texts.
    Raises EstimateError if a prompt was ranked with other responses than it has."""
    sizes = comparisons["responses"].to_numpy()  # (N,)
    order = np.argsort(places(responses, comparisons))  # (R,)
    column = responses["text"].to_pylist()
    texts = [column[row] for row in order]
    offsets = np.concatenate([[0], np.cumsum(sizes)])  # (N + 1,)
    alike = [
        say_the_same(texts[start:end], near_identical).ravel() for start, end in itertools.pairwise(offsets.tolist())
    ]  # (K * K,) each
    return Traits(
        cut=pc.equal(responses["finish_reason"], "length").to_numpy()[order],
        empty=np.fromiter(map(is_empty, texts), np.bool_, len(texts)),
        refusal=np.fromiter(map(opens_with_refusal, texts), np.bool_, len(texts)),
        alike=np.concatenate(alike) if alike else np.zeros(0, np.bool_),
    )


def places(responses: pa.Table, comparisons: pa.Table) -> Positions:
    """(R,) where each response stands among the targets: prompts in the order of the comparisons, then k.

    Raises EstimateError if a prompt was ranked with other responses than it has."""
    sizes = comparisons["responses"].to_numpy()  # (N,)
    found = pc.index_in(responses["prompt_id"], value_set=comparisons["prompt_id"].combine_chunks())
    prompts = pc.fill_null(found, -1).to_numpy().astype(np.int64)  # (R,)
    if (prompts < 0).any():
        prompt_id = responses["prompt_id"][int(np.argmin(prompts))].as_py()
        raise EstimateError(f"prompt {prompt_id} has responses and was not ranked; expected both: rank again")
    has = np.bincount(prompts, minlength=len(sizes))  # (N,)
    for number in np.flatnonzero(has != sizes)[:1]:
        raise EstimateError(
            f"prompt {comparisons['prompt_id'][int(number)].as_py()} was ranked with {sizes[number]} responses and has "
            f"{has[number]}; expected the same: rank again"
        )
    k = responses["k"].to_numpy().astype(np.int64)  # (R,)
    there: Positions = (np.cumsum(sizes) - sizes)[prompts] + k  # (R,)
    outside = (k < 0) | (k >= sizes[prompts])  # (R,)
    if outside.any() or len(np.unique(there)) != len(there):
        row = int(np.argmax(outside)) if outside.any() else _twice(there)
        prompt_id = responses["prompt_id"][row].as_py()
        raise EstimateError(
            f"prompt {prompt_id} has a response numbered {k[row]}{'' if outside.any() else ' twice'}; "
            f"expected 0 to {sizes[prompts[row]] - 1}, each once: generate again"
        )
    return there


def _twice(values: Positions) -> int:
    """Row of a value that stands in an earlier row too."""
    first = np.unique(values, return_index=True)[1]
    return int(np.setdiff1d(np.arange(len(values)), first)[0])
