"""Markdown that shows text of models and users as text, in renderers that take raw HTML and make links of plain addresses."""

import base64
import re
import unicodedata
from collections.abc import Sequence

CONTROLS = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
"""Unicode categories of what is not seen or reorders what is: controls, bidirectional overrides, surrogates, unassigned."""
MARKUP = set("&<>[]|`*_~#\\")
"""What can begin or end markup inside a line. No more than that: some renderers leave character references as they are."""
ADDRESS = re.compile(r"(?i)(?<=www)(?=\.)|(?<=:)(?=//)|(?=@)")
"""Where a web or mail address is cut in two, so that no renderer finds one."""
CUT = "<wbr>"


def escaped(text: str, limit: int) -> str:
    """Text as Markdown that renders as that text, in a cell of a table or behind other words; cut at `limit` characters.

    Line breaks become <br>, what could be markup character references. Control characters and bidirectional overrides are
    shown by their number, such as ⟨U+202E⟩."""
    shown = text.replace("\r\n", "\n")
    if len(shown) > limit:
        shown = shown[: limit - 1] + "…"
    pieces = ADDRESS.split(shown.replace("\t", "    "))
    return CUT.join("".join(map(_escaped_letter, piece)).replace("  ", " &#160;") for piece in pieces)


def _escaped_letter(letter: str) -> str:
    if letter == "\n":
        return "<br>"
    if unicodedata.category(letter) in CONTROLS:
        return f"⟨U+{ord(letter):04X}⟩"
    return f"&#{ord(letter)};" if letter in MARKUP else letter


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; cells are Markdown already."""
    return "".join(f"| {' | '.join(cells)} |\n" for cells in [head, ["---"] * len(head), *rows])


def image(svg: str, label: str) -> str:
    """A picture that needs no request."""
    return f"![{escaped(label, 200)}](data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()})\n"
