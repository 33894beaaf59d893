"""The fused head and the packed policy: log-probs and gradients of the padded, full-logit computation, sequence by sequence."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from sppo.errors import TrainError
from sppo.loss import Labels
from sppo.recipe import Training, load_recipe
from sppo.train.attention import register
from sppo.train.engine import without_dropout
from sppo.train.forward import packed_policy
from sppo.train.head import Projection, Unit, gradients, log_probs, loss_and_log_probs, units
from sppo.train.objective import objective_of, part
from sppo.train.packing import PackedBatch, pack, plan

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def test_a_unit_is_as_many_whole_prompts_as_a_tile_holds() -> None:
    # prompts with 3 + 2, 4 and 9 response tokens in tiles of 10: the first two together, the third alone
    assert units([3, 2, 4, 9], [2, 1, 1], 10) == [
        Unit(slice(0, 3), slice(0, 9)),
        Unit(slice(3, 4), slice(9, 18)),
    ]
    # 11 tokens of one prompt are two tiles of one unit
    [large] = units([6, 5], [2], 10)
    assert list(large.tiles(10)) == [slice(0, 10), slice(10, 11)]


class Case(NamedTuple):
    """Prompts and responses as token ids, and what the losses are told about them."""

    prompts: list[tuple[np.ndarray, list[np.ndarray]]]
    wins: np.ndarray

    @property
    def labels(self) -> Labels:
        owners = np.repeat(np.arange(len(self.prompts)), [len(responses) for _, responses in self.prompts])
        no = np.zeros(len(owners), bool)
        return Labels(owners, self.wins, no, no)


def case(*lengths: tuple[int, tuple[int, ...]]) -> Case:
    """Random ids of these lengths; win probabilities spread over (0, 1)."""
    draws = np.random.default_rng(5)
    prompts = [(draws.integers(4, 260, prompt), [draws.integers(4, 260, one) for one in each]) for prompt, each in lengths]
    return Case(prompts, np.linspace(0.05, 0.9, sum(len(each) for _, each in lengths)))


CASES = {
    # longer and shorter than the window of 16 that Mistral and Gemma-2 have here, down to a single token
    "pairs": case((30, (22, 9)), (5, (40, 3)), (1, (7, 1)), (60, (25, 50))),
    "all five": case((12, (6, 1, 30, 17, 4)), (25, (3, 9, 12, 2, 20))),
}


def setting() -> Training:
    tiny = load_recipe("tiny", ROOT / "deployments" / "recipes").training
    return tiny.model_copy(update={"loss": "sppo", "eta": 1000.0})


def load(folder: Path, attention: str) -> Any:
    """The policy with weights far from 0, so that attention, windows and soft-caps matter."""
    import torch
    from transformers import AutoModelForCausalLM

    policy = AutoModelForCausalLM.from_pretrained(folder, attn_implementation=attention, dtype=torch.float32)
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draw), alpha=0.2)
    without_dropout(policy)
    return policy.train()


class Found(NamedTuple):
    log_probs: np.ndarray
    gradients: dict[str, Any]


def gradients_of(policy: Any) -> dict[str, Any]:
    return {name: parameter.grad.clone() for name, parameter in policy.named_parameters()}


@lru_cache
def alone(folder: Path, name: str) -> Found:
    """Each sequence by itself, all its logits, transformers' own attention; the loss written out."""
    import torch

    policy = load(folder, "eager")
    found = []
    asked = CASES[name]
    pairs = [(prompt, response) for prompt, responses in asked.prompts for response in responses]
    for (prompt, response), win in zip(pairs, asked.wins, strict=True):
        logits = policy(torch.tensor(np.array([[*prompt, *response]]))).logits[0].float()  # (T, V)
        predictors = torch.arange(len(prompt) - 1, len(prompt) + len(response) - 1)
        log_prob = logits.log_softmax(-1)[predictors, torch.from_numpy(response)].sum()
        found.append(log_prob.item())
        # eta^2 ((ell / eta) - (P - 1/2))^2 with ell = 0, as a step of this many responses averages it
        (((log_prob - log_prob.detach()) - 1000.0 * (win - 0.5)) ** 2 / len(pairs)).backward()
    return Found(np.array(found), gradients_of(policy))


def packed(policy: Any, name: str, reference: np.ndarray, bins: Sequence[Sequence[int]], rows: int | None) -> Found:
    """The same through packed rows, one a bin."""
    asked = CASES[name]
    network = packed_policy(policy, rows)
    policy.zero_grad()
    ends = np.cumsum([0, *(len(responses) for _, responses in asked.prompts)])
    found = np.zeros(len(asked.wins))
    for places in bins:
        at = np.concatenate([np.arange(ends[place], ends[place + 1]) for place in places])
        labels = Labels(asked.labels.prompt[at], asked.wins[at], asked.labels.is_best[at], asked.labels.is_worst[at])
        objective = objective_of(setting(), labels, reference[at], 1e6 / len(asked.wins), "cpu")
        loss, values = network(pack([asked.prompts[place] for place in places]), objective)
        loss.backward()
        found[at] = values.numpy()
    return Found(found, gradients_of(policy))


def differs_by(one: dict[str, Any], other: dict[str, Any]) -> float:
    """The largest relative difference of a parameter's gradient."""
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).norm() / other[name].norm()) for name in one)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma2"])
def test_gradients_are_those_of_whole_logits_in_every_packing_and_tile(
    kind: str, name: str, random_policy: Callable[[str], Path]
) -> None:
    expected = alone(random_policy(kind), name)
    policy = load(random_policy(kind), register())
    prompts = CASES[name].prompts
    tokens = [len(prompt) + sum(map(len, responses)) for prompt, responses in prompts]
    together = [list(range(len(prompts)))]
    for bins in (together, [together[0][::-1]], plan(tokens, 1, 150).of_rank(0), [[place] for place in together[0]]):
        found = packed(policy, name, expected.log_probs, bins, None)
        assert found.log_probs.tolist() == pytest.approx(expected.log_probs.tolist(), rel=1e-6)
        assert differs_by(found.gradients, expected.gradients) < 1e-5
    for rows in (1, 8, 33):  # one token, less than a prompt's responses, some prompts
        found = packed(policy, name, expected.log_probs, together, rows)
        assert differs_by(found.gradients, expected.gradients) < 1e-5


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_recomputed_activations_change_no_gradient(kind: str, random_policy: Callable[[str], Path]) -> None:
    expected = alone(random_policy(kind), "pairs")
    policy = load(random_policy(kind), register())
    kept = packed(policy, "pairs", expected.log_probs, [[0, 1], [2, 3]], None)
    policy.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    recomputed = packed(policy, "pairs", expected.log_probs, [[0, 1], [2, 3]], None)
    assert differs_by(recomputed.gradients, kept.gradients) == 0


def test_log_probs_without_a_loss_are_the_same_and_leave_no_gradient(random_policy: Callable[[str], Path]) -> None:
    import torch

    expected = alone(random_policy("gemma2"), "all five")
    network = packed_policy(load(random_policy("gemma2"), register()), 7)
    with torch.no_grad():
        found = network(pack(CASES["all five"].prompts))
    assert found.tolist() == pytest.approx(expected.log_probs.tolist(), rel=1e-6)
    assert all(parameter.grad is None for parameter in network.parameters())


def small_row() -> PackedBatch:
    return pack([(np.array([1]), [np.array([0]), np.array([2])])])


def test_the_heads_gradient_worked_out_by_hand() -> None:
    """Two responses of one token after a prompt of one; V = 3, H = 2."""
    import torch

    weight = torch.tensor([[0.0, 0.0], [np.log(2.0), 0.0], [np.log(5.0), 0.0]], dtype=torch.float32)
    hidden = torch.tensor([[1.0, 4.0], [9.0, 9.0], [9.0, 9.0]])
    row = small_row()
    # logits 0, log 2, log 5: probabilities 1/8, 2/8, 5/8; labels 0 and 2
    values = log_probs(Projection(weight, None, None), hidden, row)
    assert values.tolist() == pytest.approx([np.log(1 / 8), np.log(5 / 8)])
    slopes = torch.tensor([2.0, -1.0], dtype=torch.float64)
    found = gradients(Projection(weight, None, None), hidden, row, lambda each, at: each * slopes[at])
    assert found.loss.item() == pytest.approx(2 * np.log(1 / 8) - np.log(5 / 8))
    # 2 (1 - 1/8, -2/8, -5/8) - (-1/8, -2/8, 1 - 5/8) = (15/8, -2/8, -13/8) is dl/dlogits; times hidden (1, 4) is dl/dW
    assert found.weight is not None
    assert found.weight.tolist() == [
        pytest.approx([15 / 8, 60 / 8]),
        pytest.approx([-2 / 8, -1]),
        pytest.approx([-13 / 8, -52 / 8]),
    ]
    # only the prompt's place predicts: W^T dl/dlogits = -2/8 log 2 - 13/8 log 5
    assert found.hidden[1:].abs().sum() == 0
    assert found.hidden[0].tolist() == pytest.approx([-2 / 8 * np.log(2) - 13 / 8 * np.log(5), 0])


def test_a_loss_is_asked_about_whole_prompts_once_each() -> None:
    import torch

    asked: list[slice] = []

    def objective(values: torch.Tensor, responses: slice) -> torch.Tensor:
        asked.append(responses)
        return values * 0

    row = pack([(np.array([1]), [np.array([0, 1]), np.array([2])]) for _ in range(3)])
    gradients(Projection(torch.zeros(3, 2), None, None, tile_rows=7), torch.zeros(row.tokens, 2), row, objective)
    assert asked == [slice(0, 4), slice(4, 6)]  # 3 rows a prompt


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_bias_soft_cap_and_a_frozen_head_agree_with_autograd(softcap: float | None) -> None:
    import torch

    draw = torch.Generator().manual_seed(0)
    row = pack([(np.arange(3), [np.arange(4), np.arange(2)]), (np.arange(2), [np.arange(5)])])
    hidden, weight, bias = (torch.randn(shape, generator=draw).requires_grad_() for shape in ((row.tokens, 6), (11, 6), (11,)))
    logits = torch.nn.functional.linear(hidden[row.predictors], weight, bias)
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    each = -torch.nn.functional.cross_entropy(logits, torch.from_numpy(row.labels), reduction="none")
    expected = torch.autograd.grad(
        (torch.stack([one.sum() for one in each.split(row.lengths)]) ** 2).sum(), (hidden, weight, bias)
    )
    for frozen in (False, True):
        inputs = (hidden, weight.detach() if frozen else weight, bias.detach() if frozen else bias)
        loss, values = loss_and_log_probs(
            Projection(inputs[1], inputs[2], softcap, tile_rows=4), hidden, row, lambda values, at: values**2
        )
        assert not values.requires_grad
        wanted = [one for one in inputs if one.requires_grad]
        for mine, theirs in zip(torch.autograd.grad(3 * loss, wanted), expected, strict=False):
            assert torch.allclose(mine, 3 * theirs, rtol=1e-4, atol=1e-4)


def test_a_16_bit_head_sums_its_gradient_in_32() -> None:
    import torch

    draw = torch.Generator().manual_seed(0)
    row = pack([(np.arange(3), [np.arange(40), np.arange(30)]), (np.arange(2), [np.arange(50)])])
    hidden, weight = (torch.randn(shape, generator=draw).bfloat16().requires_grad_() for shape in ((row.tokens, 32), (64, 32)))
    exact = [each.detach().float().requires_grad_() for each in (hidden, weight)]
    found = []
    for rows, (states, matrix) in ((16, (hidden, weight)), (None, exact)):
        loss, _ = loss_and_log_probs(Projection(matrix, None, None, rows), states, row, lambda values, at: values)
        found.append(torch.autograd.grad(loss, (states, matrix)))
    for mine, theirs in zip(*found, strict=True):
        assert mine.dtype == torch.bfloat16
        assert (mine.float() - theirs).norm() / theirs.norm() < 0.01


def test_a_head_that_is_no_plain_matrix_is_refused(random_policy: Callable[[str], Path]) -> None:
    import torch

    policy = load(random_policy("llama"), register())
    policy.set_output_embeddings(torch.nn.Sequential(policy.get_output_embeddings()))
    with pytest.raises(TrainError, match=r"output embeddings are Sequential; expected a torch.nn.Linear"):
        packed_policy(policy)


def test_an_architecture_that_rescales_its_logits_is_refused(random_policy: Callable[[str], Path]) -> None:
    policy = load(random_policy("llama"), register())
    policy.config.logits_scaling = 8.0
    with pytest.raises(TrainError, match=r"config.json has logits_scaling 8.0; expected logits that are the output"):
        packed_policy(policy)


def test_part_of_the_labels_keeps_what_is_not_there() -> None:
    labels = part(CASES["pairs"].labels, slice(2, 4))
    assert labels.prompt.tolist() == [1, 1]
    assert labels.gate is None
