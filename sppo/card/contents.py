"""What a model card says, as plain data: read once from a run's artifacts, rendered by pure functions."""

from dataclasses import dataclass

from sppo.card.comparisons import Comparisons
from sppo.card.scores import Scores
from sppo.checks import CheckReport
from sppo.gates import Verdict
from sppo.recipe import Recipe
from sppo.report import RunReport
from sppo.statistics import Interval


@dataclass(frozen=True)
class Metadata:
    """What the hub files a model under."""

    license: str | None = None
    """The hub's identifier, such as `gemma` or `apache-2.0`."""
    base_model: str | None = None
    """Hub id of pi_0."""
    datasets: tuple[str, ...] = ()
    """Hub ids of where the prompts came from."""
    languages: tuple[str, ...] = ()
    """ISO 639 codes."""


@dataclass(frozen=True)
class Portion:
    """Prompts of one file of the split."""

    name: str
    """Such as `iteration 1` or `held out`."""
    prompts: int
    sha256: str
    """Of the file."""


@dataclass(frozen=True)
class Trained:
    """What one iteration's training has read."""

    iteration: int
    prompts: int
    responses: int
    tokens: int
    steps: int


@dataclass(frozen=True)
class Made:
    """An artifact that the policy, or a number of this card, was made from."""

    reference: str
    """`stage/fingerprint`, or `outside:` and the first digits of a digest."""
    digest: str
    """Of its content; empty for what is not in the store any more."""
    made_from: tuple[str, ...]
    """Role and short name of each input."""
    source: str
    """Where it came from if not from the store, in words; mostly empty."""
    code_version: str
    created: str
    """UTC, ISO 8601."""


@dataclass(frozen=True)
class File:
    """A file of the policy."""

    name: str
    size: int
    """Bytes."""
    sha256: str


@dataclass(frozen=True)
class Card:
    """A policy pi_t, how it was made, and what is known of how good it is."""

    name: str
    """The repository's, or the run's and the iteration's."""
    repo: str | None
    """`owner/name`; None for a card that is not published."""
    run: str
    iteration: int
    recipe: Recipe
    """Resolved."""
    metadata: Metadata
    report: RunReport
    """Iterations 1 .. t, as the run itself reports them."""
    report_json: str
    """Of iteration t, byte for byte."""
    mean_tokens: tuple[Interval, ...]
    """Of the held-out answers of pi_0 .. pi_t."""
    scores: Scores
    """Beyond the run's own report; of policies 0 .. t."""
    checks: CheckReport | None
    """Of the held-out answers of pi_0 .. pi_t; None for an iteration from before there were any."""
    verdict: Verdict | None
    """What the gates said of iteration t; None for a recipe without."""
    comparisons: Comparisons
    """Of those scores: pi_t with earlier policies, on the same questions."""
    portions: tuple[Portion, ...]
    source_digests: dict[str, str]
    """Content digests of local files that the prompts were read from, by role."""
    judge_digest: str | None
    """Of the training judge's weights; None for a judge without."""
    trained: tuple[Trained, ...]
    hardware: str | None
    """Hardware file of the run's last start."""
    versions: dict[str, str]
    """What the artifacts say of the code that made them."""
    weights: Made
    files: tuple[File, ...]
    """Of the weights' artifact, all of them."""
    lineage: tuple[Made, ...]
    """The policy's, newest first; then the evaluations'."""
