"""How AlpacaEval 2 is asked and judged (Dubois et al., arXiv:2404.04475)."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from sppo.configuration import Frozen
from sppo.errors import RecipeError
from sppo.recipe.judges import EndpointJudge, Judge
from sppo.recipe.models import Location
from sppo.recipe.sampling import Sampling

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Order = Literal["both", "alpaca_eval"]
Average = Literal["probabilities", "logits"]

EVALUATION_SET_SHA256 = "83db546b872ddebee8965fd05fa48461ee3c32bc695c62fb57f2d214ff741ec4"
"""Of `alpaca_eval_gpt4_baseline.json`: 805 instructions, and GPT-4 Turbo's answers to them."""
GAMED_BASELINES_SHA256 = "97aeec3f1c7de6dee6fd31fe66f1702623f4614c3efe1c6fc5f4927cd5fd674d"
"""Of `df_gamed.csv`: the reference told to be verbose and to be concise, against itself."""
FOLDER = "hf://datasets/tatsu-lab/alpaca_eval@2edc6fad8be6b14ea7230aabfd08188da6b8b814"
INSTRUCTION = "{instruction}"


class EvaluationSetFile(Frozen):
    """Instructions with a reference model's answers: a JSON list of instruction, output and generator."""

    source: Location = f"{FOLDER}/alpaca_eval_gpt4_baseline.json"
    """A path or any URL that fsspec reads. Never fingerprinted: the same file elsewhere is the same set."""
    sha256: Sha256 = EVALUATION_SET_SHA256
    """AlpacaEval 2's own, unless it is another set on purpose."""


class GamedBaselinesFile(Frozen):
    """Verdicts on two baselines that differ from the reference in length alone; the length-controlled fit reads them."""

    source: Location = f"{FOLDER}/df_gamed.csv"
    """A path or any URL that fsspec reads. Never fingerprinted."""
    sha256: Sha256 = GAMED_BASELINES_SHA256


class Decoding(Sampling):
    """One answer an instruction."""

    responses: Literal[1] = 1
    template: str | None = None
    """What the policy reads, {instruction} filled in once, control tokens written out; None: its tokenizer's chat template."""

    @field_validator("responses", mode="before")
    @classmethod
    def _is_one(cls, responses: Any) -> Any:
        if responses != 1:
            raise ValueError(f"is {responses!r}; AlpacaEval compares one answer an instruction: set it to 1, or leave it out")
        return responses

    @field_validator("template")
    @classmethod
    def _names_the_instruction(cls, template: str | None) -> str | None:
        if template is not None and template.count(INSTRUCTION) != 1:
            raise ValueError(f"has {INSTRUCTION} {template.count(INSTRUCTION)} times; expected it once")
        return template


RELEASED = {
    "sppo-mistral-7b": Decoding(temperature=0.7, top_p=0.9, max_tokens=2048, template="<s>[INST] {instruction} [/INST]\n"),
    "sppo-gemma-2-9b": Decoding(
        temperature=0.7,
        top_p=0.9,
        max_tokens=2048,
        template="<bos><start_of_turn>user\n{instruction}<end_of_turn>\n<start_of_turn>model",
    ),
}
"""What the authors of SPPO released, to the letter: `models_configs/` of uclaml/SPPO (Mistral) and of tatsu-lab/alpaca_eval
(Gemma-2). Mistral's ends in a newline, Gemma's lacks the one after `model`; their chat templates differ in both. alpaca_eval
hands vLLM text, to which the tokenizer adds a BOS of its own; here the template's is the only one. Their Llama-3 entry has
temperature 0.9, top-p 1.0 and 4096 tokens; its template was not to be found, so it has no name here."""


class AlpacaEval(Frozen):
    """AlpacaEval 2 of each iteration's policy."""

    judge: Judge
    """A served model, by forced choice, is what AlpacaEval has. Any other is a preference model, and the result says so."""
    decoding: Decoding
    """Values, or the name of a released decoding; the name is replaced by its values."""
    order: Order = "both"
    """`both`: each pair of answers is shown in both orders; `alpaca_eval`: in the one that its seed gives the instruction."""
    average: Average | None = None
    """Of both orders. `probabilities`: the mean of P; `logits`: sigmoid((L_ij - L_ji) / 2), as every other win rate here has
    it. None: probabilities for a served model, logits for any other."""
    evaluation_set: EvaluationSetFile = EvaluationSetFile()
    gamed_baselines: GamedBaselinesFile | None = GamedBaselinesFile()
    """None: the rate is fitted on lengths alone, and is named so."""
    max_prompts: Annotated[int, Field(ge=5)] | None = None
    """The first instructions of the set, for a trial; at least 5, as the fit holds out fifths. None: all."""

    @field_validator("decoding", mode="before")
    @classmethod
    def _by_name(cls, decoding: Any) -> Any:
        if not isinstance(decoding, str):
            return decoding
        if decoding not in RELEASED:
            raise ValueError(
                f"is {decoding!r}; expected one of {', '.join(RELEASED)}, or temperature, top_p and max_tokens of your own"
            )
        return RELEASED[decoding]

    @model_validator(mode="after")
    def _averages_two_orders(self) -> Self:
        if self.average is not None and self.order != "both":
            raise ValueError(
                f"average is {self.average}, and order {self.order} asks each pair once, so there is nothing to average: "
                "leave average out, or set order to both"
            )
        return self

    @model_validator(mode="after")
    def _belongs_together(self) -> Self:
        if self.gamed_baselines is None or self.evaluation_set.sha256 == EVALUATION_SET_SHA256:
            return self
        if self.gamed_baselines.sha256 == GAMED_BASELINES_SHA256:
            raise ValueError(
                "gamed_baselines are AlpacaEval 2's own and evaluation_set is another; expected baselines of that set, with "
                "their sha256, or gamed_baselines: null for a length-only fit"
            )
        return self

    @property
    def averaged(self) -> Average:
        """How both orders are averaged."""
        return self.average or ("probabilities" if isinstance(self.judge, EndpointJudge) else "logits")


def required(alpaca_eval: AlpacaEval | None) -> AlpacaEval:
    """A recipe's AlpacaEval. Raises RecipeError if it has none."""
    if alpaca_eval is None:
        raise RecipeError("the recipe has no evaluation.alpaca_eval; expected a judge and a decoding: add them to measure it")
    return alpaca_eval
