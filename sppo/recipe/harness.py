"""What is measured with lm-evaluation-harness, and how the model is asked."""

from typing import Annotated, Literal

from pydantic import Field

from sppo.configuration import Frozen
from sppo.portuguese import TAG
from sppo.portuguese.specification import MAX_LENGTH
from sppo.portuguese.tasks import TASKS
from sppo.recipe.judges import Endpoint

Positive = Annotated[int, Field(ge=1)]


class Served(Frozen):
    """A model behind an OpenAI-compatible server. It can be asked to answer, not for log-probabilities of given texts."""

    source: Endpoint
    model: str
    """Its name at the server."""
    system_role: Literal["keep", "fold"]
    """`fold` where the served model's template refuses a system turn (Gemma-2, Mistral-v0.2)."""


class Harness(Frozen):
    """What is measured, and how the model is asked."""

    tasks: Annotated[tuple[str, ...], Field(min_length=1)]
    """Ours (`sppo_pt`, or one of the nine), and upstream's tasks, groups and tags."""
    backend: Literal["auto", "vllm", "transformers"] | Served = "auto"
    """What answers. A served model stands in place of the policy."""
    chat: bool = True
    """By the chat template, shots as turns; else as one text."""
    max_length: Annotated[int, Field(ge=64)] = 4096
    """Tokens of prompt and answer together. A longer prompt of upstream's tasks loses its beginning; such rows are counted."""
    portuguese_length: Annotated[int, Field(ge=64)] = MAX_LENGTH
    """The same for the Portuguese tasks, whose longer prompts lose shots, from the last on: the leaderboard's 2560."""
    max_rows: Positive | None = None
    """Of each task, the first ones; None: all."""

    def names(self) -> list[str]:
        """The tasks one by one, ours taken out of their tag."""
        each = [own for name in self.tasks for own in (TASKS if name == TAG else [name])]
        return list(dict.fromkeys(each))
