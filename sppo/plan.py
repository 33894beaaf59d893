"""What one iteration's training will take, before anything runs: memory by part, tokens, steps, FLOPs, minutes.

Counted from the policy's config.json, the recipe and the hardware file alone; no weights, no GPU. What cannot be known before
the responses are drawn, their number and their lengths, is taken as given or assumed, and every assumption is named.
"""

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import assert_never

from sppo.errors import PolicyError, RecipeError
from sppo.hardware import Hardware, TrainHardware
from sppo.recipe import FolderModel, HubModel, OwnPrompts, Recipe, StoredModel, WorldModel, WorldPrompts
from sppo.train.flops import Lengths, forward_flops, training_flops
from sppo.train.memory import Memory, training_memory
from sppo.train.schedule import Schedule, schedule_of
from sppo.train.shape import CONFIG, ModelShape, read_shape, shape_of

PORTION = 20_000
"""Prompts of an iteration of the published runs: 19.8 to 20 thousand."""
PROMPT_TOKENS = 160
RESPONSE_TOKENS = 400
"""Of the published models' answers to AlpacaEval, 1,800 characters, at 4.5 a token."""
WORLD_TOKENS = (12, 18)
"""Of the tiny world's prompts and responses."""
EXPECTED_MFU = 0.4
"""Of tuned training loops for 7B models on A100 and H100, as reported."""
GIB = 2**30
HUB_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Asked:
    """What the person says about the responses to come; None is assumed."""

    prompts: int | None = None
    prompt_tokens: int | None = None
    response_tokens: int | None = None


@dataclass(frozen=True)
class Work:
    """What one iteration trains on."""

    prompts: int
    responses_each: int
    """Trained on, of the K that are drawn."""
    lengths: Lengths
    """Mean tokens of a prompt and of each of its responses."""
    schedule: Schedule
    epochs: int

    @property
    def tokens(self) -> int:
        """Computed in one epoch, each prompt once."""
        return self.prompts * (self.lengths[0] + sum(self.lengths[1]))


@dataclass(frozen=True)
class Drawing:
    """Orders of magnitude of generating and judging."""

    responses: int
    tokens: int
    cache_per_token: int
    """Bytes of keys and values."""
    cache_longest: int
    """Bytes of the longest sequence that can be drawn."""
    pairs: int
    """Ordered, for the judge."""


@dataclass(frozen=True)
class Plan:
    """One iteration, planned."""

    shape: ModelShape
    memory: Memory
    work: Work
    drawing: Drawing
    training_flops: float
    reference_flops: float
    """Of log pi_t, once; 0 where generation gives it."""
    devices: int
    mfu: float
    peak: float | None
    """FLOP/s of one device."""
    assumptions: tuple[str, ...]

    @property
    def flops(self) -> float:
        """Useful ones of the whole iteration's training."""
        return self.training_flops + self.reference_flops

    @property
    def seconds(self) -> float | None:
        """Expected; None where the device's peak is not known."""
        return None if self.peak is None else self.flops / (self.devices * self.peak * self.mfu)


def plan(recipe: Recipe, hardware: Hardware, shape: ModelShape, asked: Asked, peak: float | None = None) -> Plan:
    """One iteration of a recipe on some hardware. peak: FLOP/s of a device, where the hardware file names none.

    Raises RecipeError where the number of prompts can only be told by the person."""
    training = recipe.training
    work, assumed = _work(recipe, asked)
    each = work.prompts * work.epochs
    trained = training_flops(shape, [work.lengths], training.adapter) * each
    reference = forward_flops(shape, [work.lengths]) * work.prompts if training.reference == "recompute" else 0.0
    peak = hardware.peak_tflops * 1e12 if hardware.peak_tflops else peak
    mfu = hardware.expected_mfu or EXPECTED_MFU
    if hardware.expected_mfu is None:
        assumed += (
            f"useful MFU {100 * EXPECTED_MFU:.0f} %, as tuned 7B trainings report: set expected_mfu in the hardware file",
        )
    if hardware.device == "cuda" and hardware.train.offload != "none":
        assumed += ("nothing waits for what is offloaded; it will, at every step, and the minutes will be more",)
    return Plan(
        shape=shape,
        memory=memory_on(recipe, hardware, shape),
        work=work,
        drawing=_drawing(recipe, shape, work),
        training_flops=trained,
        reference_flops=reference,
        devices=hardware.train.ranks,
        mfu=mfu,
        peak=peak,
        assumptions=assumed,
    )


def memory_on(recipe: Recipe, hardware: Hardware, shape: ModelShape) -> Memory:
    """What training keeps on this hardware."""
    tokens = hardware.train.tokens_per_device
    return training_memory(shape, recipe.training, recipe.policy.dtype, hardware.train, hardware.device, tokens)


def device_bytes(hardware: Hardware) -> float | None:
    """Memory of one device; the ranks of a CPU share their machine's. None where the hardware file does not say."""
    if hardware.memory_gib is None:
        return None
    shared = hardware.train.processes if hardware.device == "cpu" else 1
    return hardware.memory_gib * GIB / shared


def host_fits(memory: Memory, hardware: Hardware) -> bool | None:
    """Whether a machine has room for what its ranks offload; None where the hardware file does not say."""
    if hardware.host_memory_gib is None:
        return None
    return memory.host * hardware.train.processes <= hardware.host_memory_gib * GIB


def what_would_fit(recipe: Recipe, hardware: Hardware, shape: ModelShape) -> tuple[dict[str, object], Memory] | None:
    """Values of the hardware file's `train` with which it would fit, the cheapest that do, and the memory then.

    None where nothing in that file is enough, or it does not say how much memory there is."""

    def fitting(changes: dict[str, object]) -> Memory | None:
        other = hardware.model_copy(update={"train": hardware.train.model_copy(update=changes)})
        memory, room = memory_on(recipe, other, shape), device_bytes(other)
        return memory if room is not None and memory.fits(room) and host_fits(memory, other) is not False else None

    changes: dict[str, object] = {}
    for change in _cheapest_first(hardware.train, hardware.device):
        changes |= change
        if fitting(changes) is not None:
            break
    for name in list(changes):  # what an earlier, cheaper change no longer adds
        fewer = {other: value for other, value in changes.items() if other != name}
        if fitting(fewer) is not None:
            changes = fewer
    memory = fitting(changes)
    return None if memory is None else (changes, memory)


def _cheapest_first(train: TrainHardware, device: str) -> list[dict[str, object]]:
    """What lowers memory, by what it costs in time."""
    tokens = train.tokens_per_device
    steps: list[dict[str, object]] = [{"recompute_activations": True}, {"zero_stage": 3}]
    steps += [{"tokens_per_device": tokens // share} for share in (2, 4, 8) if tokens // share >= 1024]
    if device == "cuda":
        steps += [{"offload": "optimizer"}, {"offload": "optimizer_and_parameters"}]
    return [step for step in steps if any(getattr(train, name) != value for name, value in step.items())]


def _work(recipe: Recipe, asked: Asked) -> tuple[Work, tuple[str, ...]]:
    """What is trained on, and what of it is assumed."""
    assumed: list[str] = []
    prompts = asked.prompts
    if prompts is None:
        prompts = _prompts(recipe)
        if not isinstance(recipe.prompts.source, WorldPrompts):
            assumed.append(f"{prompts:,} prompts, as in an iteration of the published runs: --prompts N")
    usual = WORLD_TOKENS if isinstance(recipe.policy.source, WorldModel) else (PROMPT_TOKENS, RESPONSE_TOKENS)
    prompt = asked.prompt_tokens or min(usual[0], recipe.prompts.max_prompt_tokens)
    response = asked.response_tokens or min(usual[1], recipe.generation.max_tokens)
    room = max(1, recipe.training.max_tokens - prompt)
    if asked.prompt_tokens is None:
        assumed.append(f"{prompt} tokens of prompt on average: --prompt-tokens N")
    if asked.response_tokens is None:
        assumed.append(f"{response} tokens of response on average: --response-tokens N")
    if response > room:
        assumed.append(f"responses are cut to {room} tokens by training.max_tokens {recipe.training.max_tokens}")
    every = recipe.selection.responses == "all"
    count = recipe.generation.responses if every else min(2, recipe.generation.responses)
    assumed.append(
        f"{'all' if every else 'both extremes of'} {recipe.generation.responses} responses are selected for each prompt"
    )
    lengths = (prompt, (min(response, room),) * count)
    work = Work(prompts, count, lengths, schedule_of(recipe.training, prompts), recipe.training.stop_epochs)
    return work, tuple(assumed)


def _prompts(recipe: Recipe) -> int:
    """Of one iteration's portion, as far as it is known before the data are read."""
    source = recipe.prompts.source
    if isinstance(source, WorldPrompts):
        return source.train_prompts
    if isinstance(source, OwnPrompts):
        raise RecipeError(
            f"how many prompts of {source.dataset} an iteration gets is not known before they are read; expected --prompts N: "
            f"its usable rows, less test_share {source.test_share:g}, over {recipe.iterations} iterations"
        )
    return PORTION


def _drawing(recipe: Recipe, shape: ModelShape, work: Work) -> Drawing:
    drawn, count = recipe.generation, work.prompts * recipe.generation.responses
    width = 2 if recipe.policy.dtype == "bfloat16" else 4
    each = 2 * shape.layers * shape.keys * width
    longest = recipe.prompts.max_prompt_tokens + drawn.max_tokens
    mean = math.ceil(work.lengths[1][0])
    return Drawing(count, count * mean, each, each * longest, work.prompts * drawn.responses * (drawn.responses - 1))


def policy_shape(recipe: Recipe, config: Path | None) -> ModelShape:
    """The shape of a recipe's policy: from a given config.json, the policy's folder, the hub, or the tiny world.

    Raises PolicyError naming --config where it cannot be read."""
    if config is not None:
        return read_shape(config)
    source = recipe.policy.source
    match source:
        case WorldModel():
            from sppo.world.policy import shape_values

            return shape_of(shape_values(), "the tiny world's policy")
        case FolderModel():
            return read_shape(Path(os.path.expanduser(source.path)))
        case HubModel():
            return _from_hub(source)
        case StoredModel():
            raise PolicyError(
                f"the policy is {source.artifact[:18]} of a store, which is not opened here; expected --config with the path "
                "of its config.json"
            )
        case other:
            assert_never(other)


def _from_hub(source: HubModel) -> ModelShape:
    """By a model's config.json: the copy on this machine, or else the hub's, asked once and not for long."""
    import httpx
    from huggingface_hub import constants, get_token, hf_hub_url, try_to_load_from_cache

    cached = try_to_load_from_cache(source.model, CONFIG, revision=source.revision)
    if isinstance(cached, str):
        return read_shape(Path(cached))
    try:
        if constants.HF_HUB_OFFLINE:
            raise ValueError("HF_HUB_OFFLINE is set")
        url = hf_hub_url(source.model, CONFIG, revision=source.revision)
        token = get_token()
        headers = {} if token is None else {"authorization": f"Bearer {token}"}
        answer = httpx.get(url, headers=headers, timeout=HUB_TIMEOUT_S, follow_redirects=True)
        answer.raise_for_status()
        return shape_of(answer.json(), f"{source.model}'s config.json")
    except (httpx.HTTPError, OSError, ValueError) as problem:
        cause = str(problem).splitlines()[0] if str(problem) else type(problem).__name__
        raise PolicyError(
            f"cannot read the config.json of {source.model}: it is not on this machine, and the hub did not give it ({cause}); "
            f"check the network and your access to the model, or get that one file and name it: --config path/to/{CONFIG}"
        ) from problem
