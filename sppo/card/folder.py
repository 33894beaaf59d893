"""A card on this machine: README.md beside the numbers that it shows, by the names they have in a repository."""

from pathlib import Path

from sppo.card.contents import Card
from sppo.card.front_matter import COMPARISONS_PATH, SCORES_PATH
from sppo.card.rendering import MARK, render
from sppo.errors import CardError

README = "README.md"
REPORT_PATH = "evaluation/report.json"


def write_folder(card: Card, target: Path) -> dict[str, Path]:
    """Write the card and its evaluation, over an earlier card of ours. Result: the files, by their place in a repository.

    Raises CardError for a README.md that is not such a card, or a folder that cannot be written."""
    readme = target / README
    contents = {README: render(card), REPORT_PATH: card.report_json}
    if card.scores.scores:
        contents[SCORES_PATH] = card.scores.to_json()
    if card.comparisons.comparisons:
        contents[COMPARISONS_PATH] = card.comparisons.to_json()
    try:
        if readme.exists() and MARK not in readme.read_text(encoding="utf-8", errors="replace"):
            raise CardError(f"{readme} was not written by sppo card, and would be lost; give another folder with --output")
        (target / REPORT_PATH).parent.mkdir(parents=True, exist_ok=True)
        for name in (SCORES_PATH, COMPARISONS_PATH):
            (target / name).unlink(missing_ok=True)  # of an earlier card
        for name, text in contents.items():
            (target / name).write_text(text, encoding="utf-8")
    except OSError as problem:
        raise CardError(
            f"cannot write the card to {target}: {problem.strerror}; give another folder with --output"
        ) from problem
    return {name: target / name for name in contents}
