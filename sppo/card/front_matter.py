"""The YAML between the dashes: what the hub files a model under, and its benchmark scores as a model index.

Format: huggingface/hub-docs, modelcard.md, as huggingface_hub's `ModelCardData` reads and writes it.
"""

from typing import TYPE_CHECKING

from sppo.card.contents import Card
from sppo.card.scores import Dataset, Metric, Score, Source

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCardData

TASK_TYPE, TASK_NAME = "text-generation", "Text Generation"
SCORES_PATH = "evaluation/scores.json"
"""Where a published card's scores lie in its repository."""
COMPARISONS_PATH = "evaluation/comparisons.json"


def front_matter(card: Card) -> "ModelCardData":
    """The card's metadata. Its model index has the benchmark scores of pi_t, in their order, and of no other policy."""
    from huggingface_hub import ModelCardData

    results = [_result(card, score, score.dataset, score.metric) for score in indexed(card) if score.dataset and score.metric]
    metadata = card.metadata
    return ModelCardData(
        base_model=metadata.base_model,
        datasets=list(metadata.datasets) or None,
        eval_results=results or None,
        language=list(metadata.languages) or None,
        library_name="transformers",
        license=metadata.license,
        model_name=card.name if results else None,
        pipeline_tag=TASK_TYPE,
        tags=["sppo"],
    )


def indexed(card: Card) -> list[Score]:
    """The benchmark scores of the card's own policy."""
    return [score for score in card.scores.scores if score.policy == card.iteration and score.dataset is not None]


def _result(card: Card, score: Score, dataset: Dataset, metric: Metric) -> "EvalResult":
    from huggingface_hub import EvalResult

    source = score.source or own_source(card)
    return EvalResult(
        task_type=TASK_TYPE,
        task_name=TASK_NAME,
        dataset_name=dataset.name,
        dataset_type=dataset.type,
        dataset_config=dataset.config,
        dataset_split=dataset.split,
        dataset_revision=dataset.revision,
        dataset_args=dict(dataset.args) or None,
        metric_type=metric.type,
        metric_name=metric.name,
        metric_value=round(score.value, score.decimals),
        source_name=source.name if source else None,
        source_url=source.url if source else None,
    )


def own_source(card: Card) -> Source | None:
    """Who measured what nobody else did: this run, by its file in the repository; None for a card without one."""
    if card.repo is None:
        return None
    return Source(name="evaluation of this run", url=f"https://huggingface.co/{card.repo}/blob/main/{SCORES_PATH}")
