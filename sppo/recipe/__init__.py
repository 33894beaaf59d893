"""What is computed: policy, prompts, judge, sampling, estimator, loss, optimizer, iterations, seed.

Every value changes results, so every value is fingerprinted, in the stages that read it and in no other. What only says
where and how fast it runs is in `sppo.hardware`.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from sppo.configuration import NAME, Frozen, named_file, parse_yaml, read_yaml, validate
from sppo.errors import RecipeError
from sppo.explanation import PATH_SHOWN, shown
from sppo.recipe.alpaca_eval import AlpacaEval
from sppo.recipe.evaluation import Checks, Evaluation, Gates
from sppo.recipe.harness import Harness, Served
from sppo.recipe.judges import (
    Endpoint,
    EndpointJudge,
    EnsembleJudge,
    GeneralPreferenceJudge,
    Judge,
    Member,
    PairRMJudge,
    PairwiseLLMJudge,
    Precision,
    RewardModelJudge,
    SingleJudge,
    WorldRuleJudge,
)
from sppo.recipe.models import (
    FolderModel,
    HubId,
    HubModel,
    Location,
    ModelSource,
    PolicySource,
    PretrainedSource,
    StoredModel,
    WorldModel,
)
from sppo.recipe.sampling import Generation, Sampling
from sppo.recipe.training import PAIR_LOSSES, Adapter, LoraAdapter, NoAdapter, QloraAdapter, Training

__all__ = [
    "PAIR_LOSSES",
    "Adapter",
    "AlpacaEval",
    "Checks",
    "Endpoint",
    "EndpointJudge",
    "EnsembleJudge",
    "Estimator",
    "Evaluation",
    "FolderModel",
    "Gates",
    "GeneralPreferenceJudge",
    "Generation",
    "Harness",
    "HubId",
    "HubModel",
    "Judge",
    "LoraAdapter",
    "Member",
    "ModelSource",
    "NoAdapter",
    "OwnPrompts",
    "PairRMJudge",
    "PairwiseLLMJudge",
    "Policy",
    "PolicySource",
    "Precision",
    "PretrainedSource",
    "Prompts",
    "QloraAdapter",
    "Recipe",
    "RewardModelJudge",
    "Sampling",
    "Selection",
    "Served",
    "SingleJudge",
    "SnorkelPrompts",
    "StoredModel",
    "Training",
    "Treatment",
    "UltraFeedbackPrompts",
    "WorldModel",
    "WorldPrompts",
    "WorldRuleJudge",
    "load_recipe",
    "overridden",
    "recipe_names",
]

Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0, le=1)]


class Policy(Frozen):
    """pi_0, the instruction-tuned model that the first iteration improves."""

    source: PolicySource
    system_role: Literal["keep", "fold"]
    """`fold` joins a system turn to the first user turn, for templates that refuse one (Gemma-2, Mistral-v0.2)."""
    stop_tokens: tuple[str, ...]
    """Tokens that end a response, by text; the tokenizer's EOS is always one."""
    dtype: Literal["float32", "bfloat16"]
    """Precision of the forward pass in sampling and training. Master weights are always fp32."""


class SnorkelPrompts(Frozen):
    """snorkelai/Snorkel-Mistral-PairRM-DPO-Dataset: UltraFeedback as `train_iteration_t` and `test_iteration_t`, t = 1..3."""

    kind: Literal["snorkel"]
    dataset: Location
    """Hub id, or a local folder or file prefix that holds the splits as parquet."""
    revision: str = "main"


class UltraFeedbackPrompts(Frozen):
    """UltraFeedback's own prompts, joined to the Snorkel partition by prompt id (the sha256 of the prompt)."""

    kind: Literal["ultrafeedback"]
    dataset: Location
    partition: Location
    """The Snorkel dataset that says which prompt belongs to which iteration."""
    revision: str = "main"


class OwnPrompts(Frozen):
    """A dataset of the user's own: a JSONL or Parquet file, or a dataset of the hub, portioned by a stable hash."""

    kind: Literal["own"]
    dataset: Location
    split: str = "train"
    """Only read for a dataset of the hub."""
    prompt_column: str = "prompt"
    """Text, or a list of {role, content} turns."""
    id_column: str | None = None
    """Without one, the id is the sha256 of the prompt."""
    test_share: Annotated[float, Field(gt=0, lt=1)]


class WorldPrompts(Frozen):
    """The tiny world's instructions."""

    kind: Literal["world"]
    train_prompts: Positive
    """Per iteration."""
    test_prompts: Positive


class Prompts(Frozen):
    """x ~ X, split into one portion an iteration and held-out test prompts."""

    source: Annotated[SnorkelPrompts | UltraFeedbackPrompts | OwnPrompts | WorldPrompts, Field(discriminator="kind")]
    max_prompt_tokens: Positive
    """Longer prompts, rendered, are unusable rows."""
    unusable_rows: Literal["refuse", "drop"]
    """An empty, over-long or unreadable row is an error, or dropped and counted with its reason."""


class Estimator(Frozen):
    """P(y > pi_t | x) from the judge's logits."""

    rule: Literal["pairwise", "bradley_terry", "prob_mean"]
    """`pairwise` keeps a general preference model; `bradley_terry` is the released code's transitive reduction; `prob_mean`
    averages the two orders' probabilities instead of their logits, for judges that vote."""
    temperature: Annotated[float, Field(gt=0)] = 1
    """Logits are divided by it: above 1 for a judge that is too sure of itself."""
    self_match: bool
    """Whether a response's match against itself counts, with probability 1/2, as in the released code. Without it every
    P - 1/2 is K / (K - 1) times as large: `sppo.estimate.comparable_eta` gives the eta that undoes it."""


Treatment = Literal["keep", "not_raised", "drop"]
"""Of a response in training: as any other; only where it lost (P < 1/2), so that it is never made likelier; not at all."""


class Selection(Frozen):
    """Which of the K responses are trained on. All of them stay opponents of the others: they are draws from pi_t."""

    responses: Literal["extremes", "all"]
    """`extremes` is the released behaviour: the best and the worst of K, here of those that may be trained on."""
    drop_ties: bool
    """Leave out prompts whose responses no judge tells apart: win probabilities within `tie_width`, or all saying the same."""
    tie_width: Annotated[float, Field(ge=0, lt=1)] = 0.005
    """Win probabilities no further apart are tied: an fp16 judge moves P by up to 0.0017."""
    cut: Treatment = "not_raised"
    """Of responses cut at max_tokens: raised, they teach never to end."""
    empty: Treatment = "not_raised"
    """Of responses without a letter or digit."""
    refusals: Treatment = "keep"
    """Of responses that open with a refusal; some are right, so they are counted and kept."""
    near_identical: Share = 0.95
    """Similarity of word bigrams from which two responses say the same: of those only the one furthest from P = 1/2 is
    trained on. 1 is equal texts only."""


class Recipe(Frozen):
    """One SPPO run, completely."""

    name: Annotated[str, Field(pattern=NAME.pattern)]
    seed: Annotated[int, Field(ge=0)]
    iterations: Positive
    policy: Policy
    prompts: Prompts
    generation: Generation
    judge: Judge
    estimator: Estimator
    selection: Selection
    training: Training
    evaluation: Evaluation

    @model_validator(mode="after")
    def _trains_on_what_its_loss_reads(self) -> "Recipe":
        if self.training.loss in PAIR_LOSSES and self.selection.responses != "extremes":
            raise ValueError(
                f"training.loss {self.training.loss} reads the best and the worst of K alone, and selection.responses is "
                f"{self.selection.responses}; the others would be computed for nothing: set selection.responses to extremes, "
                "or training.loss to sppo, rspo or s_sppo"
            )
        return self

    def part(self, *names: str) -> dict[str, object]:
        """The named top-level values as plain JSON: what a stage reads and is fingerprinted by."""
        return self.model_dump(mode="json", include=set(names))

    def check_iteration(self, iteration: int) -> None:
        """Raises RecipeError unless 1 <= iteration <= iterations."""
        if not 1 <= iteration <= self.iterations:
            raise RecipeError(
                f"iteration {iteration} of recipe {self.name}; expected 1 to {self.iterations} (iteration 0 is the base policy)"
            )


def recipe_names(folder: Path) -> list[str]:
    """Names of the recipes in a folder, sorted."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def load_recipe(name: str, folder: Path, overrides: tuple[str, ...] = ()) -> Recipe:
    """A recipe by name from a folder, or by path to a YAML file, with overrides such as `training.eta=4`.

    Raises RecipeError for an unknown name, an unknown key (naming the nearest known one) or a value out of range."""
    path = named_file(name, folder)
    if path is None:
        known = ", ".join(recipe_names(folder)) or "none"
        raise RecipeError(
            f"no recipe {shown(name, PATH_SHOWN)} in {folder}; known recipes: {known}; or give the path of a YAML file"
        )
    values = read_yaml(path, RecipeError)
    for override in overrides:
        _override(values, override)
    return validate(Recipe, values, f"recipe {name}", RecipeError)


def overridden(recipe: Recipe, overrides: tuple[str, ...]) -> Recipe:
    """The recipe with other values, such as `evaluation.max_prompts=500`. Raises RecipeError as load_recipe does."""
    values: dict[str, object] = recipe.model_dump(mode="json")
    for override in overrides:
        _override(values, override)
    return validate(Recipe, values, f"recipe {recipe.name}", RecipeError)


def _override(values: dict[str, object], override: str) -> None:
    key, equals, text = override.partition("=")
    where = f"override {shown(override)}"
    if not equals or not key.strip():
        raise RecipeError(f"{where}; expected key=value, such as training.eta=4")
    *parents, last = key.split(".")
    place: dict[str, object] = values
    for depth, parent in enumerate(parents):
        inner = place.get(parent)
        if parent in place and not isinstance(inner, dict):
            name, kind = ".".join(parents[: depth + 1]), "a list" if isinstance(inner, list) else shown(inner)
            raise RecipeError(f"{where}: {name} is {kind}, which has no keys; give {name}=.. whole")
        if not isinstance(inner, dict):
            raise RecipeError(f"{where}: no {shown(parent)} in the recipe; its keys are {', '.join(place)}")
        place = inner
    found = parse_yaml(f"value: {text}", where, RecipeError)
    if list(found) != ["value"]:
        raise RecipeError(f"{where} goes on with keys of its own on another line; expected one value: give each its own --set")
    place[last] = found["value"]
