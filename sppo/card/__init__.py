"""The model card of a policy: how it was made and how good it is, as a run's artifacts say it.

`read_card` reads, `render` writes Markdown with a model index in its front matter, `write_folder` puts it beside its numbers,
and `push` uploads all of it with the weights in one commit. Only `push` touches the network.
"""

from sppo.card.comparisons import COMPARISONS_FILE, Comparison, Comparisons, LeftOut, corrected, parse_comparisons
from sppo.card.contents import Card, Metadata
from sppo.card.folder import write_folder
from sppo.card.hub import check_repo, push, token_of
from sppo.card.reading import BENCHMARK, named_scores, read_card, weights_of
from sppo.card.rendering import render
from sppo.card.scores import FILE, Dataset, Metric, Score, Scores, Source

__all__ = [
    "BENCHMARK",
    "COMPARISONS_FILE",
    "FILE",
    "Card",
    "Comparison",
    "Comparisons",
    "Dataset",
    "LeftOut",
    "Metadata",
    "Metric",
    "Score",
    "Scores",
    "Source",
    "check_repo",
    "corrected",
    "named_scores",
    "parse_comparisons",
    "push",
    "read_card",
    "render",
    "token_of",
    "weights_of",
    "write_folder",
]
