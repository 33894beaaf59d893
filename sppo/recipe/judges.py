"""Who compares answers. A judge's `source` says where it is; it enters fingerprints by the digest of its weights alone."""

from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from sppo.configuration import Frozen
from sppo.recipe.models import ModelSource, PretrainedSource

Positive = Annotated[int, Field(ge=1)]
RLHFLOW_TEMPLATE = "[CONTEXT] {prompt} [RESPONSE A] {first} [RESPONSE B] {second} \n"
Precision = Literal["auto", "float32", "float16", "bfloat16"]
"""Of a network's forward pass. `auto` is float32 on CPU, and on CUDA what its authors run: PairRM float16, others bfloat16."""


class PairRMJudge(Frozen):
    """PairRM, a DeBERTa that reads the prompt and two candidates at once (arXiv:2306.02561)."""

    kind: Literal["pairrm"]
    source: ModelSource
    backend: Literal["native", "llm-blender"] = "native"
    """`llm-blender` is the library itself, pair by pair as the released code calls it: slower, for comparison."""
    precision: Precision = "auto"
    max_source_tokens: Positive
    max_candidate_tokens: Positive
    """Per candidate, with its control token; each gains half of what a short source leaves."""


class RewardModelJudge(Frozen):
    """A reward model: one score r an answer, L_ij = r_i - r_j (Bradley-Terry). Skywork, ArmoRM, any sequence classifier."""

    kind: Literal["reward-model"]
    source: PretrainedSource
    precision: Precision = "auto"
    max_tokens: Positive
    """Of prompt and answer together, rendered by the model's own chat template; a longer answer is cut at its end."""
    trust_code: Annotated[str, Field(pattern=r"^.+@[0-9a-f]{40,64}$")] | None = None
    """Runs the repository's own Python: `owner/name@commit`, or `path@digest` of a folder. Without it, none is ever run."""


class GeneralPreferenceJudge(Frozen):
    """A general preference model: skew-symmetric embeddings, so L_ij = -L_ji and cycles are possible (arXiv:2410.02197)."""

    kind: Literal["general-preference"]
    source: PretrainedSource
    precision: Precision = "auto"
    max_tokens: Positive
    """Of prompt and answer together, rendered by the model's own chat template; a longer answer is cut at its end."""
    temperature: Annotated[float, Field(gt=0)] = 0.1
    """tau that the preference score is divided by; 0.1 in the released models."""
    special_tokens: bool = True
    """Whether the tokenizer adds its own to the rendered text, which has a BOS already. The released models were trained so."""


class PairwiseLLMJudge(Frozen):
    """A language model that reads both answers and names one: L_ij = log p(first answer's name) - log p(second's).

    RLHFlow's pair-preference models (arXiv:2405.07863), or any instruction-tuned one with a template of its own."""

    kind: Literal["pairwise-llm"]
    source: PretrainedSource
    precision: Precision = "auto"
    max_tokens: Positive
    """Of the whole question; longer answers are cut at their ends, both to the same length."""
    template: str = RLHFLOW_TEMPLATE
    """The user's turn, rendered by the model's chat template. {prompt}, {first} and {second} are filled in once each."""
    answers: tuple[str, str] = ("A", "B")
    """What the model says for the first and for the second; each the start of its reply, one token."""
    layout: Literal["rlhflow", "chat"] = "rlhflow"
    """`rlhflow`: the prompt as lines `<turn> user`, and no BOS, as those models are asked; `chat`: the prompt as it is, and the
    chat template's own BOS. To be named with a template of your own."""

    @model_validator(mode="after")
    def _names_everything(self) -> Self:
        _check_template(self.template, self.answers)
        if self.template != RLHFLOW_TEMPLATE and "layout" not in self.model_fields_set:
            raise ValueError("a template of your own needs a layout; expected chat, or rlhflow for models trained on its form")
        return self


class Endpoint(Frozen):
    """An OpenAI-compatible server. Never fingerprinted: the same model at another address is the same judge."""

    url: str
    """Up to and with /v1."""
    api_key_env: str | None = None
    """Environment variable that holds the key; the key itself stands nowhere."""
    concurrency: Positive = 8
    """Requests in flight, of one process."""
    timeout_s: Annotated[float, Field(gt=0)] = 60
    """Of one request."""
    attempts: Positive = 6
    """Of one question, with growing pauses after 408, 409, 429, 5xx, time-outs, lost connections and unreadable answers."""
    pause_s: Annotated[float, Field(gt=0)] = 0.5
    """Before the second attempt, at most; doubled with each further one. A server's own Retry-After comes before it."""
    dollars_per_million_input: Annotated[float, Field(ge=0)] = 0
    dollars_per_million_output: Annotated[float, Field(ge=0)] = 0

    @field_validator("url")
    @classmethod
    def _is_plain(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError("holds credentials or a query; expected http(s)://host/v1, the key in the variable of api_key_env")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url!r} is no address; expected http(s)://host/v1")
        return url.rstrip("/")


class EndpointJudge(Frozen):
    """A served language model, asked to name the better of two answers: forced choice, both orders."""

    kind: Literal["endpoint"]
    source: Endpoint
    model: str
    """Its name at the server."""
    template: str = (
        "Which of two answers to an instruction is better?\n\n## Instruction\n{prompt}\n\n## Answer m\n{first}\n\n"
        "## Answer M\n{second}\n\nReply with the better answer's letter alone: m or M."
    )
    """The user's turn. {prompt}, {first} and {second} are filled in once each."""
    answers: tuple[str, str] = ("m", "M")
    """What the model says for the first and for the second, the pair of AlpacaEval's judge."""
    reading: Literal["logprobs", "votes"] = "logprobs"
    """`logprobs`: L_ij from the answers' log-probabilities; `votes`: from `votes` draws at temperature 1."""
    votes: Positive = 1
    """Draws of each question if reading is `votes`."""
    constrain: Literal["structured_outputs", "none"] = "structured_outputs"
    """How the choice is forced: vLLM's `structured_outputs`, without which a choice may be missing from the log-probs."""
    max_answer_characters: Positive | None = None
    """Of each answer; longer ones are cut at their ends, both to the same length, where the server's context is short."""
    max_unjudged: Annotated[float, Field(ge=0, lt=1)] = 0.01
    """Share of pairs that may stay without a verdict; of more the stage fails, and asks for them again when it is resumed."""

    @model_validator(mode="after")
    def _names_everything(self) -> Self:
        _check_template(self.template, self.answers)
        if self.answers[0].startswith(self.answers[1]) or self.answers[1].startswith(self.answers[0]):
            raise ValueError(f"answers are {self.answers[0]!r} and {self.answers[1]!r}; expected neither to start the other")
        if self.reading == "logprobs" and self.answers[0][0] == self.answers[1][0]:
            raise ValueError(
                f"answers {self.answers[0]!r} and {self.answers[1]!r} start alike, so a first token may be either's; "
                "expected answers that differ from the first letter on, or reading: votes"
            )
        return self


class WorldRuleJudge(Frozen):
    """The tiny world's own rule: exact preferences of its language."""

    kind: Literal["world-rule"]


Weightless = EndpointJudge | WorldRuleJudge
"""Judges that have nothing to fetch."""
Single = PairRMJudge | RewardModelJudge | GeneralPreferenceJudge | PairwiseLLMJudge | Weightless
SingleJudge = Annotated[Single, Field(discriminator="kind")]


class Member(Frozen):
    """A judge of an ensemble."""

    weight: Annotated[float, Field(gt=0)] = 1
    judge: SingleJudge


class EnsembleJudge(Frozen):
    """A weighted mean of judges."""

    kind: Literal["ensemble"]
    mean: Literal["probabilities", "logits"]
    """`probabilities`: L = logit of the mean of sigmoid(L): no judge's scale outweighs another's; `logits`: the mean of L."""
    members: Annotated[tuple[Member, ...], Field(min_length=2)]


Judge = Annotated[Single | EnsembleJudge, Field(discriminator="kind")]


def _check_template(template: str, answers: tuple[str, str]) -> None:
    for name in ("{prompt}", "{first}", "{second}"):
        if template.count(name) != 1:
            raise ValueError(f"template has {name} {template.count(name)} times; expected it once")
    if not answers[0].strip() or not answers[1].strip() or answers[0] == answers[1]:
        raise ValueError(f"answers are {answers[0]!r} and {answers[1]!r}; expected two different texts")
