"""What the checks look at, from an iteration's artifacts."""

from collections.abc import Mapping, Sequence

from sppo.checks.measures import Material
from sppo.judges.contest import answers_in
from sppo.preferences import Verdicts, read_verdicts
from sppo.preferences.verdicts import gathered
from sppo.recipe import Sampling
from sppo.store import Artifact


def read_material(
    samples: Sequence[Artifact],
    judges: Sequence[str],
    duels: Sequence[Sequence[Artifact]],
    trained_on: tuple[Artifact, Artifact] | None,
    sampling: Sampling,
    scores: Mapping[int, Artifact] | None = None,
) -> Material:
    """Of iteration t: held-out answers of pi_0 .. pi_t, duels [judge][earlier policy].

    judges: names, the training judge's first. trained_on: the responses that pi_t was trained on and the judge's logits of
    them. sampling: of the held-out answers. scores: by policy, its log-probs of pi_t's held-out answers, as rows of
    (prompt_id, k, logprobs)."""
    return Material(
        samples=[sample.tables() for sample in samples],
        duels={judge: [duel.tables() for duel in row] for judge, row in zip(judges, duels, strict=True)},
        matrices=[] if trained_on is None else verdicts_of(*trained_on),
        scores={policy: score.tables() for policy, score in (scores or {}).items()},
        plain=sampling.temperature == 1 and sampling.top_p == 1,
    )


def verdicts_of(responses: Artifact, ranked: Artifact) -> list[Verdicts]:
    """The judge's matrices over all responses, one group for each K; the texts themselves chunk by chunk."""
    names = ranked.file_names(".parquet")
    return gathered(group for name in names for group in read_verdicts(ranked.table(name), answers_in(responses, name)))
