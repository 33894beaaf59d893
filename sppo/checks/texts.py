"""What a text is like, seen from outside: how much of it repeats, whether it ends in a loop, how many words it has of its own.

Words are what white space separates, lower case. A script without spaces has few of them, so there only loops are seen, which
are found in characters.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Positions = npt.NDArray[np.int64]
Gram = tuple[str, ...]

REPEATED = 4
"""n of the n-grams whose repetition is measured."""
LOOP_TIMES = 3
LOOP_CHARACTERS = 40
"""Shortest loop, all its repetitions together: `...` and a row of a table are none."""
LOOP_UNIT = 400
"""Longest piece that is repeated, characters."""


def grams(words: Sequence[str], n: int) -> list[Gram]:
    """The n-grams of a text, in order."""
    return list(zip(*(words[start:] for start in range(n)), strict=False))


def repetition(text: str) -> float:
    """Share of a text's 4-grams that stood in it before, in [0, 1]: 1 - distinct / all, `seq-rep-4`; 0 without one.

    Welleck et al. 2019 (arXiv:1908.04319)."""
    found = grams(text.lower().split(), REPEATED)
    return 1 - len(set(found)) / len(found) if found else 0.0


def ends_in_loop(text: str) -> bool:
    """Whether a text ends in one piece of up to LOOP_UNIT characters, LOOP_TIMES or more in a row, of LOOP_CHARACTERS in all.

    A loop cut in the middle of its piece is one too: it repeats another piece of the same length."""
    whole = text.rstrip()
    for size in range(1, min(LOOP_UNIT, len(whole) // LOOP_TIMES) + 1):
        piece = whole[-size:]
        times = max(LOOP_TIMES, -(-LOOP_CHARACTERS // size))
        if whole[-2 * size : -size] == piece and whole.endswith(piece * times):
            return True
    return False


def distinct(texts: Sequence[str], owners: Positions, prompts: int, n: int, words: int) -> Array | None:
    """distinct-n, different n-grams / all, of the first `words` words of every text, shorter texts left out.

    texts: (M,); owners: (M,) the prompt of each. Result: (N,) one value a prompt, nan for one without a text so long; their
    mean is distinct-n. None if fewer than two prompts have one.

    Li et al. 2016 (arXiv:1510.03055), who divide by the words and so favour short texts; hence the fixed length. It is no mean
    over prompts: an n-gram counts once however many prompts share it. The values are delete-one-prompt pseudo-values (Tukey
    1958), moved so that their mean is distinct-n itself; their spread is the jackknife's, rather too wide than too narrow
    (Efron and Stein 1981). A plain bootstrap would count every prompt drawn twice as a repetition."""
    owner_of: dict[Gram, int] = {}  # the only prompt with this n-gram, or -1
    counted = np.zeros(prompts, np.int64)  # (N,) n-grams
    for text, owner in zip(texts, owners.tolist(), strict=True):
        first = text.lower().split(maxsplit=words)[:words]
        if len(first) < words:
            continue
        found = grams(first, n)
        counted[owner] += len(found)
        for gram in found:
            if owner_of.setdefault(gram, owner) != owner:
                owner_of[gram] = -1
    with_grams = counted > 0
    sized = int(with_grams.sum())
    if sized < 2:
        return None
    alone = Counter(owner_of.values())
    own = np.array([alone[prompt] for prompt in range(prompts)], np.float64)  # (N,) n-grams that no other prompt has
    whole = len(owner_of) / counted.sum()
    without = (len(owner_of) - own) / (counted.sum() - counted)  # (N,) distinct-n of all other prompts
    influence = (sized - 1) * (whole - without[with_grams])  # (prompts with a text so long,)
    values = np.full(prompts, np.nan)  # (N,)
    values[with_grams] = whole + influence - influence.mean()
    return values
