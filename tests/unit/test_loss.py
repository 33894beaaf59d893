"""The losses by hand: value, gradient, where they are least, and what they make of ties and one-sided prompts."""

import itertools
from typing import Any

import numpy as np
import pytest

from sppo.errors import RecipeError, TrainError
from sppo.loss import Labels, papers_scale, response_losses, sppo_loss, takes_part
from sppo.recipe import Recipe, Training, overridden

LOSSES = ("sppo", "sppo_single", "sppo_hard", "dpo", "ipo", "rspo", "s_sppo")


def test_the_loss_is_the_squared_distance_to_the_advantage() -> None:
    # (0.2 / 1 - (0.9 - 0.5))^2 = 0.04
    assert sppo_loss(0.2, 0.9, eta=1.0) == pytest.approx(0.04)
    # (2 / 4 - (0.25 - 0.5))^2 = 0.75^2 = 0.5625
    assert sppo_loss(2.0, 0.25, eta=4.0) == pytest.approx(0.5625)


def test_the_loss_is_zero_where_the_log_ratio_is_eta_times_the_advantage() -> None:
    ratios = 1000 * (np.array([1.0, 0.5, 0.2]) - 0.5)
    assert sppo_loss(ratios, np.array([1.0, 0.5, 0.2]), eta=1000.0) == pytest.approx([0, 0, 0])


def test_at_the_start_it_does_not_depend_on_eta() -> None:
    # log pi_theta = log pi_t: (0 - 0.4)^2 = 0.16
    assert [sppo_loss(0.0, 0.9, eta) for eta in (4.0, 1000.0)] == pytest.approx([0.16, 0.16])


def test_on_the_papers_scale_it_is_the_formula_of_algorithm_1(tiny: Recipe) -> None:
    assert papers_scale(training(tiny, "dpo", eta=1000.0)) == 1
    scale = papers_scale(training(tiny, "sppo", eta=1000.0))
    # (37 - 1000 (0.8 - 0.5))^2 = (37 - 300)^2 = 69,169
    assert scale * sppo_loss(37.0, 0.8, 1000.0) == pytest.approx(69_169)
    # hard labels: (1000 * 0.5)^2; the authors' run, root mean square of P - 1/2 of 0.346: 1000^2 * 0.346^2
    assert scale * sppo_loss(0.0, 1.0, 1000.0) == pytest.approx(250_000)
    assert scale * sppo_loss(0.0, 0.5 + 0.346, 1000.0) == pytest.approx(119_716)


@pytest.mark.parametrize("eta", [0.0, -1.0, float("nan")])
def test_an_eta_that_is_not_positive_is_refused(eta: float) -> None:
    with pytest.raises(TrainError, match="expected a positive number"):
        sppo_loss(0.0, 0.5, eta)


def training(tiny: Recipe, loss: str, eta: float = 10.0, **values: object) -> Training:
    regularised: dict[str, object] = {"reverse_kl": 1.0} if loss == "rspo" and not values else {}
    return Training.model_validate({**tiny.training.model_dump(), "loss": loss, "eta": eta, **regularised, **values})


PROMPTS, WINS, ROLES = [4, 7, 4], [0.9, 0.3, 0.2], ["best", "worst", "worst"]
"""A prompt (4) with a best at 0.9 and a worst at 0.2, and one (7) left with its worst alone."""


def labels(prompts: list[int] = PROMPTS, wins: list[float] = WINS, roles: list[str] = ROLES, **others: Any) -> Labels:
    others = {name: np.array(values) for name, values in others.items()}
    best, worst = (np.array([role == name for role in roles]) for name in ("best", "worst"))
    return Labels(np.array(prompts), np.array(wins), best, worst, **others)


def in_torch(one: Labels) -> Labels:
    import torch

    return Labels(**{name: None if values is None else torch.from_numpy(values) for name, values in vars(one).items()})


def worked_out(setting: Training, ratios: list[float], one: Labels) -> tuple[list[float], list[float]]:
    """Losses, and the gradient of their sum on the paper's scale, in torch; numpy must say the same."""
    import torch

    values = torch.tensor(ratios, dtype=torch.float64, requires_grad=True)
    losses = response_losses(setting, values, in_torch(one))
    (losses.sum() * papers_scale(setting)).backward()
    assert response_losses(setting, np.array(ratios), one) == pytest.approx(losses.tolist())
    assert values.grad is not None
    return losses.tolist(), values.grad.tolist()


RATIOS = [2.0, 1.0, -3.0]
"""Of the best, the lone worst and the worst, in nats."""


def test_sppo_reads_every_response(tiny: Recipe) -> None:
    losses, gradient = worked_out(training(tiny, "sppo"), RATIOS, labels())
    # (2/10 - .4)^2, (1/10 + .2)^2, (-3/10 + .3)^2
    assert losses == pytest.approx([0.04, 0.09, 0.0])
    # 2 (2 - 4), 2 (1 + 2), 2 (-3 + 3)
    assert gradient == pytest.approx([-4, 6, 0])


def test_sppo_single_trains_both_on_the_chance_that_the_best_beats_the_worst(tiny: Recipe) -> None:
    # as in the released code: (ell_w - eta (p - 1/2))^2 and (ell_l + eta (p - 1/2))^2, p = P(y_w > y_l)
    losses, gradient = worked_out(training(tiny, "sppo_single"), RATIOS, labels(pair_probability=[0.8, 0.5, 0.8]))
    # (.2 - .3)^2, none, (-.3 + .3)^2
    assert losses == pytest.approx([0.01, 0.0, 0.0])
    # 2 (2 - 3), none, 2 (-3 + 3)
    assert gradient == pytest.approx([-2, 0, 0])


def test_without_that_chance_it_says_so(tiny: Recipe) -> None:
    with pytest.raises(TrainError, match=r"sppo_single needs P\(best > worst\) of each pair"):
        response_losses(training(tiny, "sppo_single"), np.zeros(3), labels())


def test_sppo_hard_takes_the_best_for_1_and_the_worst_for_0(tiny: Recipe) -> None:
    losses, gradient = worked_out(training(tiny, "sppo_hard"), RATIOS, labels())
    # TRL's (a - .5/beta)^2 + (b + .5/beta)^2, a term a response: (.2 - .5)^2, (.1 + .5)^2, (-.3 + .5)^2
    assert losses == pytest.approx([0.09, 0.36, 0.04])
    # 2 (2 - 5), 2 (1 + 5), 2 (-3 + 5)
    assert gradient == pytest.approx([-6, 12, 4])


def test_dpo_is_the_log_loss_of_the_margin(tiny: Recipe) -> None:
    losses, gradient = worked_out(training(tiny, "dpo"), RATIOS, labels())
    # margin 2 + 3 = 5, beta = .1: log(1 + exp(-.5)) = .474077, at the best's place
    assert losses == pytest.approx([0.474077, 0, 0], abs=1e-6)
    # -beta sigmoid(-.5) = -.1 * .377541, and the opposite for the worst
    assert gradient == pytest.approx([-0.0377541, 0, 0.0377541], abs=1e-7)


def test_dpo_stays_finite_for_margins_of_thousands_of_nats(tiny: Recipe) -> None:
    pair = labels([1, 1], [0.9, 0.1], ["best", "worst"])
    assert worked_out(training(tiny, "dpo", eta=1.0), [-4000, 4000], pair)[0] == pytest.approx([8000, 0])
    assert worked_out(training(tiny, "dpo", eta=1.0), [4000, -4000], pair)[0] == pytest.approx([0, 0])


def test_ipo_is_the_squared_distance_of_the_margin_to_half_of_eta(tiny: Recipe) -> None:
    losses, gradient = worked_out(training(tiny, "ipo"), [1.0, 1.0, -3.0], labels())
    # margin 1 + 3 = 4, tau = 1/eta = .1: (4 - 1/(2 tau))^2 = (4 - 5)^2 = 1 on the paper's scale, / 100
    assert losses == pytest.approx([0.01, 0, 0])
    # 2 (4 - 5), and the opposite
    assert gradient == pytest.approx([-2, 0, 2])


def test_rspo_adds_both_kl_terms_to_the_papers_scale(tiny: Recipe) -> None:
    setting = training(tiny, "rspo", forward_kl=3.0, reverse_kl=0.5)
    losses, gradient = worked_out(setting, RATIOS, labels())
    # nats^2, mu = pi_t: (2 - 4)^2 - 3*2 + .5*4/2 = -1; (1 + 2)^2 - 3*1 + .5*1/2 = 6.25; 0 - 3*(-3) + .5*9/2 = 11.25
    assert np.multiply(losses, 100) == pytest.approx([-1, 6.25, 11.25])
    # 2 (2 - 4) - 3 + .5*2 = -6; 6 - 3 + .5; 0 - 3 - 1.5
    assert gradient == pytest.approx([-6, 3.5, -4.5])


def test_rspo_towards_another_mu_weighs_its_forward_kl_by_importance(tiny: Recipe) -> None:
    # log pi_t - log mu of log 2, -log 4 and -50: weights mu / pi_t of 1/2, 4, and e^50 cut at 10
    one = labels(drift=[np.log(2), -np.log(4), -50.0])
    _, forward = worked_out(training(tiny, "rspo", forward_kl=1.0), RATIOS, one)
    assert forward == pytest.approx([-4 - 0.5, 6 - 4, 0 - 10])
    _, reverse = worked_out(training(tiny, "rspo", reverse_kl=1.0), RATIOS, one)
    # the log-ratio to mu: 2 + log 2, 1 - log 4, -53
    assert reverse == pytest.approx([-4 + 2 + np.log(2), 6 + 1 - np.log(4), -53])


def test_rspos_kl_terms_are_the_kls_gradients_where_training_starts(tiny: Recipe) -> None:
    """A policy over three responses, mu another one: the mean over draws from pi_t against the exact divergences."""
    import torch

    logits = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64, requires_grad=True)
    mu = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    policy = logits.log_softmax(0)
    before = policy.detach()
    one = Labels(torch.arange(3), torch.full((3,), 0.5), *torch.zeros(2, 3).bool(), drift=before - mu.log())
    for name, divergence in (
        ("forward_kl", (mu * (mu.log() - policy)).sum()),
        ("reverse_kl", (policy.exp() * (policy - mu.log())).sum()),
    ):
        losses = response_losses(training(tiny, "rspo", eta=1.0, **{name: 1.0}), policy - before, one)
        [found] = torch.autograd.grad((before.exp() * losses).sum(), logits, retain_graph=True)
        [exact] = torch.autograd.grad(divergence, logits, retain_graph=True)
        assert found.tolist() == pytest.approx(exact.tolist())


def test_s_sppo_draws_targets_to_zero_by_the_gate(tiny: Recipe) -> None:
    losses, gradient = worked_out(training(tiny, "s_sppo"), RATIOS, labels(gate=[0.5, 0.0, 1.0]))
    # (.2 - .5*.4)^2, (.1 - 0)^2, (-.3 + .3)^2
    assert losses == pytest.approx([0, 0.01, 0])
    assert gradient == pytest.approx([0, 2, 0])
    with pytest.raises(TrainError, match="needs a gate for each response"):
        response_losses(training(tiny, "s_sppo"), np.zeros(3), labels())


@pytest.mark.parametrize(
    ("loss", "settings", "least"),
    [
        ("sppo", {}, [4, -3]),  # eta (P - 1/2)
        ("sppo_single", {}, [4.5, -4.5]),  # eta (p - 1/2)
        ("sppo_hard", {}, [5, -5]),  # eta / 2
        ("s_sppo", {}, [2, -1.5]),  # gate 1/2
        ("rspo", {"reverse_kl": 2.0}, [2, -1.5]),  # 2 eta (P - 1/2) / (2 + lambda)
        ("rspo", {"forward_kl": 3.0}, [5.5, -1.5]),  # eta (P - 1/2) + lambda / 2
        ("rspo", {"forward_kl": 3.0, "reverse_kl": 2.0}, [2.75, -0.75]),  # (2 eta (P - 1/2) + 3) / (2 + 2)
    ],
)
def test_the_losses_of_one_response_are_least_where_their_formula_says(
    tiny: Recipe, loss: str, settings: dict[str, object], least: list[float]
) -> None:
    setting = training(tiny, loss, **settings)
    pair = labels([1, 1], [0.9, 0.2], ["best", "worst"], gate=[0.5, 0.5], pair_probability=[0.95, 0.95])
    assert worked_out(setting, least, pair)[1] == pytest.approx([0, 0])
    lowest = response_losses(setting, np.array(least, dtype=float), pair)
    for step in itertools.product((-0.1, 0.1), repeat=2):
        assert (response_losses(setting, np.array(least) + step, pair) > lowest).all()


def test_ipo_is_least_at_a_margin_of_half_of_eta_wherever_the_pair_lies(tiny: Recipe) -> None:
    pair = labels([1, 1], [0.9, 0.2], ["best", "worst"])
    for worst in (-7.0, 0.0, 2.0):  # margin 1 / (2 tau) = 5
        losses, gradient = worked_out(training(tiny, "ipo"), [worst + 5, worst], pair)
        assert (losses, gradient) == (pytest.approx([0, 0]), pytest.approx([0, 0]))


def test_dpo_has_no_least_margin(tiny: Recipe) -> None:
    pair = labels([1, 1], [0.9, 0.2], ["best", "worst"])
    found = [worked_out(training(tiny, "dpo"), [margin, 0.0], pair)[0][0] for margin in (0, 10, 100, 1000)]
    assert found == sorted(found, reverse=True)
    assert found[0] == pytest.approx(np.log(2))


def test_a_prompt_left_with_one_response_has_no_pair(tiny: Recipe) -> None:
    assert takes_part(training(tiny, "dpo"), labels()).tolist() == [True, False, True]
    assert takes_part(training(tiny, "ipo"), labels()).tolist() == [True, False, True]
    assert takes_part(training(tiny, "sppo_single"), labels()).tolist() == [True, False, True]
    assert takes_part(training(tiny, "sppo_hard"), labels()).tolist() == [True, True, True]  # it reads each by itself
    alone = labels([1, 2], [0.9, 0.2], ["best", "worst"])  # a best and a worst, but of two prompts
    assert worked_out(training(tiny, "dpo"), [1, 1], alone) == ([0, 0], [0, 0])
    assert worked_out(training(tiny, "sppo_hard"), [5, -5], alone)[0] == pytest.approx([0, 0])


def test_hard_labels_leave_out_a_tie_and_soft_ones_train_it_to_stay(tiny: Recipe) -> None:
    tie = labels([1, 1], [0.5, 0.5], ["best", "worst"], pair_probability=[0.5, 0.5])
    for loss in ("dpo", "ipo", "sppo_hard"):
        assert worked_out(training(tiny, loss), [3, 1], tie) == ([0, 0], [0, 0])
    for loss in ("sppo", "sppo_single"):  # (3/10 - 0)^2 and (1/10 - 0)^2
        assert worked_out(training(tiny, loss), [3, 1], tie)[0] == pytest.approx([0.09, 0.01])


def test_responses_that_are_neither_best_nor_worst_are_read_by_the_losses_of_all(tiny: Recipe) -> None:
    three = labels([1, 1, 1], [0.9, 0.6, 0.2], ["best", "other", "worst"], pair_probability=[0.8] * 3)
    for loss in ("sppo", "rspo"):
        assert takes_part(training(tiny, loss), three).tolist() == [True] * 3
    for loss in ("sppo_single", "sppo_hard", "dpo", "ipo"):
        assert takes_part(training(tiny, loss), three).tolist() == [True, False, True]
        losses, gradient = worked_out(training(tiny, loss), [1, 2, 3], three)
        assert (losses[1], gradient[1]) == (0, 0)


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_do_not_depend_on_which_prompts_share_a_call_or_on_their_order(tiny: Recipe, loss: str) -> None:
    draws = np.random.default_rng(1)
    setting, ratios = training(tiny, loss), draws.normal(size=8)
    names = ["best", "worst", "worst", "best", "best", "other", "worst", "other"]
    prompts = [3, 3, 5, 6, 8, 8, 8, 5]
    chances = dict(zip((3, 5, 6, 8), draws.random(4), strict=True))
    more = {"gate": draws.random(8).tolist(), "pair_probability": [chances[prompt] for prompt in prompts]}
    every = labels(prompts, draws.random(8).tolist(), names, **more)
    together = response_losses(setting, ratios, every)

    def some(rows: Any) -> Any:
        cut = Labels(**{name: None if values is None else values[rows] for name, values in vars(every).items()})
        return response_losses(setting, ratios[rows], cut)

    order = draws.permutation(8)
    assert some(order) == pytest.approx(together[order])
    for prompt in (3, 5, 6, 8):
        rows = np.flatnonzero(every.prompt == prompt)
        assert some(rows) == pytest.approx(together[rows])


@pytest.mark.parametrize("loss", LOSSES)
def test_the_gradient_is_that_of_finite_differences(tiny: Recipe, loss: str) -> None:
    import torch

    one = in_torch(labels(gate=[0.7, 0.2, 0.9], pair_probability=[0.8, 0.5, 0.8], drift=[0.3, -0.4, 0.1]))
    ratios = torch.tensor(RATIOS, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda values: response_losses(training(tiny, loss), values, one), ratios)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("loss=kto", r"training.loss is 'kto'; expected 'sppo', 'sppo_single', "),
        ("loss=rspo", "forward_kl 0 and reverse_kl 0, which is loss sppo"),
        ("forward_kl=0.5", "forward_kl 0.5 and reverse_kl 0 are only read by loss rspo, and loss is sppo"),
        ("reverse_kl=-1", "training.reverse_kl is -1; expected 0 or more"),
        ("gate_from=0.2", "gate_from 0.2 is only read by loss s_sppo"),
        ("gate_from=1", "training.gate_from is 1; expected less than 1"),
    ],
)
def test_settings_that_no_loss_reads_are_refused(tiny: Recipe, override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        overridden(tiny, (f"training.{override}",))


@pytest.mark.parametrize("loss", ["sppo_single", "sppo_hard", "dpo", "ipo"])
def test_losses_of_pairs_are_refused_with_all_responses(tiny: Recipe, loss: str) -> None:
    assert overridden(tiny, (f"training.loss={loss}",)).training.loss == loss
    with pytest.raises(RecipeError, match=f"training.loss {loss} reads the best and the worst of K alone"):
        overridden(tiny, (f"training.loss={loss}", "selection.responses=all"))
