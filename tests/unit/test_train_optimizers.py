"""Optimizers by name: 8-bit states against the fp32 ones, in a quarter of the memory, saved and restored byte for byte."""

import io
from typing import Any

import pytest
import torch

from sppo.errors import RecipeError
from sppo.recipe import Recipe, Training, overridden
from sppo.train.eight_bit import BLOCK, dequantised, quantised
from sppo.train.optimizers import optimizer_for, state_bytes

NAMES = ("rmsprop", "adamw", "rmsprop_8bit", "adamw_8bit")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def named(tiny: Recipe, optimizer: str, rate: float = 1e-3) -> Training:
    return tiny.training.model_copy(update={"optimizer": optimizer, "learning_rate": rate})


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def weights(*shape: int, seed: int = 0) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.randn(shape, generator=seeded(seed)))


def states(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]


def test_rmsprop_has_no_bias_correction(tiny: Recipe) -> None:
    parameter = torch.nn.Parameter(torch.tensor([1.0]))
    parameter.grad = torch.tensor([-0.2])
    optimizer_for(named(tiny, "rmsprop", 0.1), [parameter]).step()
    # average .01 * .2^2, root .02: the step is .1 * .2 / .02 = 1, ten times the learning rate
    assert parameter.item() == pytest.approx(2.0)


def test_adamw_starts_with_steps_of_the_learning_rate_and_decays_no_weight(tiny: Recipe) -> None:
    parameter = torch.nn.Parameter(torch.tensor([1.0, 5.0]))
    parameter.grad = torch.tensor([-0.2, 0.0])
    optimizer_for(named(tiny, "adamw", 0.1), [parameter]).step()
    assert parameter.tolist() == pytest.approx([1.1, 5.0])


@pytest.mark.parametrize("name", ["rmsprop", "adamw"])
def test_the_first_step_in_8_bits_is_the_fp32_step(tiny: Recipe, name: str) -> None:
    """Moments are rounded when they are stored, so the first update has none of it."""
    moved = []
    for optimizer in (name, f"{name}_8bit"):
        parameter = weights(3, 700)
        parameter.grad = torch.randn(3, 700, generator=seeded(1))
        optimizer_for(named(tiny, optimizer), [parameter]).step()
        moved.append(parameter.detach())
    torch.testing.assert_close(moved[1], moved[0], rtol=1e-6, atol=1e-7)


def test_parameters_without_gradients_are_left_out(tiny: Recipe) -> None:
    frozen = weights(4).requires_grad_(False)
    for name in NAMES:
        optimizer = optimizer_for(named(tiny, name), [frozen, weights(4)])
        assert [len(group["params"]) for group in optimizer.param_groups] == [1]


@pytest.mark.parametrize("signed", [False, True])
def test_a_value_is_rounded_to_a_neighbouring_level_of_its_block(signed: bool) -> None:
    values = torch.randn(10_000, generator=seeded()) * 10 ** torch.empty(10_000).uniform_(-3, 0, generator=seeded(1))
    values = values if signed else values.abs()
    found = dequantised(*quantised(values, signed, seeded(2)), signed)
    scales = torch.nn.functional.pad(values.abs(), (0, -len(values) % BLOCK)).view(-1, BLOCK).amax(1)
    lowest = 1e-5 * scales.repeat_interleave(BLOCK)[: len(values)]
    # levels are 10^(5/254) = 1.0464 apart, signed ones 10^(5/126) = 1.0957
    ratio = 10 ** (5 / (126 if signed else 254))
    error = (found - values).abs()
    assert (error <= torch.maximum((ratio - 1) * values.abs(), lowest) * 1.001).all()
    assert (error > 0).any()


@pytest.mark.parametrize("signed", [False, True])
def test_rounding_is_right_on_average(signed: bool) -> None:
    values = torch.linspace(0.0003, 1.0, BLOCK) * (torch.tensor([-1.0, 1.0]).repeat(BLOCK // 2) if signed else 1)
    draw = seeded()
    mean = torch.stack([dequantised(*quantised(values, signed, draw), signed) for _ in range(4000)]).mean(0)
    # the mean of 4,000 draws between levels 10 % apart at most is off by .05 / sqrt(4000) = .0008 of the value, or 4 times that
    torch.testing.assert_close(mean, values, rtol=0.004, atol=0)


def test_zero_stays_zero_and_a_tiny_second_moment_does_not_become_zero() -> None:
    values = torch.tensor([1.0, 0.0, 1e-9])
    for seed in range(20):
        assert dequantised(*quantised(values, False, seeded(seed)), False).tolist() == pytest.approx([1.0, 0.0, 1e-5])
        assert quantised(torch.zeros(3), True, seeded(seed))[0].tolist() == [128, 128, 128]


def test_an_average_that_moves_less_than_a_level_a_step_still_moves(tiny: Recipe) -> None:
    """Half of a block's gradients fall to a tenth, the others, with its largest, stay: the roots of their averages must follow,
    though a step changes them by 0.5 % and levels lie 4.6 % apart. Rounded to the nearest, they stay ten times too large."""
    parameter, stays = weights(5000), torch.arange(5000) % 2 == 0
    sizes = 10 ** torch.empty(5000).uniform_(-2, 0, generator=seeded(1))
    optimizer = optimizer_for(named(tiny, "rmsprop_8bit"), [parameter])
    for factor in (1.0, 0.1):
        now = torch.where(stays, sizes, factor * sizes)
        for _ in range(1000):
            parameter.grad = now
            optimizer.step()
        state = optimizer.state[parameter]
        relative = dequantised(state["root_square"], state["root_square_scale"], False) / now
        for half in (relative[stays], relative[~stays]):
            assert half.mean().item() == pytest.approx(1.0, abs=0.01)
            assert 0.005 < half.std().item() < 0.04  # what rounding leaves


@pytest.mark.parametrize("name", ["rmsprop", "adamw"])
def test_a_quadratic_is_solved_as_by_the_fp32_optimizer(tiny: Recipe, name: str) -> None:
    """Curvatures over three decades, noisy gradients, a falling rate."""
    curvature = 10 ** torch.linspace(-2, 1, 2000)
    ends = []
    for optimizer in (name, f"{name}_8bit"):
        parameter, draw = weights(2000), seeded(3)
        solver = optimizer_for(named(tiny, optimizer), [parameter])
        for step in range(400):
            solver.param_groups[0]["lr"] = 0.02 * (1 - step / 400)
            parameter.grad = curvature * (parameter.detach() + 0.1 * torch.randn(2000, generator=draw))
            solver.step()
        ends.append(float((curvature * parameter.detach() ** 2).mean()))
    start = float((curvature * weights(2000).detach() ** 2).mean())
    assert ends[0] < start / 100
    assert ends[1] == pytest.approx(ends[0], rel=0.15)


@pytest.mark.parametrize("name", ["rmsprop", "adamw"])
def test_a_small_model_reaches_the_same_loss(tiny: Recipe, name: str) -> None:
    draw = seeded(5)
    inputs, targets = torch.randn(512, 16, generator=draw), torch.randn(512, 4, generator=draw)
    ends = []
    for optimizer in (name, f"{name}_8bit"):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.Tanh(), torch.nn.Linear(64, 4))
        solver = optimizer_for(named(tiny, optimizer, 3e-3), model.parameters())
        for step in range(300):
            solver.param_groups[0]["lr"] = 3e-3 * (1 - step / 300)
            solver.zero_grad()
            loss = torch.nn.functional.mse_loss(model(inputs), targets)
            loss.backward()
            solver.step()
        ends.append(loss.item())
    assert ends[0] < 0.6  # of 1 at the start
    assert ends[1] == pytest.approx(ends[0], rel=0.03)


@pytest.mark.parametrize(
    ("name", "expected"), [("rmsprop", 4.0), ("adamw", 8.0), ("rmsprop_8bit", 1.0157), ("adamw_8bit", 2.0313)]
)
def test_the_state_takes_a_quarter(tiny: Recipe, name: str, expected: float) -> None:
    parameter = weights(1000, 256)
    parameter.grad = torch.ones(1000, 256)
    optimizer = optimizer_for(named(tiny, name), [parameter])
    optimizer.step()
    measured = sum(value.numel() * value.element_size() for value in states(optimizer)) / parameter.numel()
    assert measured == pytest.approx(expected, abs=1e-3)
    assert state_bytes(named(tiny, name)) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("name", ["rmsprop_8bit", "adamw_8bit"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_restored_optimizer_goes_on_bit_for_bit(tiny: Recipe, name: str, dtype: torch.dtype) -> None:
    def begun() -> tuple[list[torch.nn.Parameter], torch.optim.Optimizer]:
        parameters = [torch.nn.Parameter(weights(size, seed=size).detach().to(dtype)) for size in (300, 17)]
        return parameters, optimizer_for(named(tiny, name), parameters)

    def go_on(parameters: list[torch.nn.Parameter], optimizer: torch.optim.Optimizer, steps: range) -> None:
        for step in steps:
            for parameter in parameters:
                parameter.grad = torch.randn(parameter.shape, generator=seeded(step)).to(dtype)
            optimizer.step()

    straight, optimizer = begun()
    go_on(straight, optimizer, range(4))
    file = io.BytesIO()
    torch.save((optimizer.state_dict(), [parameter.detach().clone() for parameter in straight]), file)
    go_on(straight, optimizer, range(4, 8))
    file.seek(0)
    saved: tuple[Any, list[torch.Tensor]] = torch.load(file, weights_only=True)
    resumed, again = begun()
    again.load_state_dict(saved[0])
    for parameter, value in zip(resumed, saved[1], strict=True):
        parameter.data.copy_(value)
    assert {value.dtype for value in states(again)} == {torch.uint8, torch.float32}
    go_on(resumed, again, range(4, 8))
    for one, other in zip(straight, resumed, strict=True):
        assert torch.equal(one, other)
    for mine, theirs in zip(states(optimizer), states(again), strict=True):
        assert torch.equal(mine, theirs)


def test_a_large_tensor_is_updated_in_chunks_and_gives_the_same(tiny: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """The draws differ with the chunks, so moments agree within a level; the first update, which has no rounding, exactly."""
    found = []
    for chunk in (BLOCK << 14, 2 * BLOCK):
        monkeypatch.setattr("sppo.train.eight_bit.CHUNKS", {"cpu": chunk})
        parameter = weights(1700)
        parameter.grad = torch.randn(1700, generator=seeded(1))
        optimizer = optimizer_for(named(tiny, "adamw_8bit"), [parameter])
        optimizer.step()
        found.append((parameter.detach(), optimizer.state[parameter]["mean"].int()))
    assert torch.equal(found[0][0], found[1][0])
    assert (found[0][1] - found[1][1]).abs().max() <= 1


def test_an_unknown_optimizer_is_refused(tiny: Recipe) -> None:
    with pytest.raises(RecipeError, match=r"training.optimizer is 'lion'; expected 'rmsprop', 'adamw', 'rmsprop_8bit' or"):
        overridden(tiny, ("training.optimizer=lion",))
