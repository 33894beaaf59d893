"""The loss by hand."""

import numpy as np
import pytest

from sppo.errors import TrainError
from sppo.loss import on_papers_scale, sppo_loss


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


def test_on_the_papers_scale_it_is_the_formula_of_algorithm_1() -> None:
    # (37 - 1000 (0.8 - 0.5))^2 = (37 - 300)^2 = 69,169
    assert on_papers_scale(sppo_loss(37.0, 0.8, 1000.0), 1000.0) == pytest.approx(69_169)


def test_eta_1000_starts_at_250000_for_hard_labels_and_near_120000_on_the_authors_run() -> None:
    # (1000 * 0.5)^2
    assert on_papers_scale(sppo_loss(0.0, 1.0, 1000.0), 1000.0) == pytest.approx(250_000)
    # root mean square of P - 1/2 of 0.346: 1000^2 * 0.346^2 = 119,716
    assert on_papers_scale(sppo_loss(0.0, 0.5 + 0.346, 1000.0), 1000.0) == pytest.approx(119_716)


def test_its_gradient_on_the_papers_scale_is_twice_the_distance() -> None:
    import torch

    ratio = torch.tensor([100.0], dtype=torch.float64, requires_grad=True)
    on_papers_scale(sppo_loss(ratio, torch.tensor([0.7], dtype=torch.float64), 1000.0), 1000.0).sum().backward()
    # 2 (100 - 1000 * 0.2) = -200
    assert ratio.grad is not None
    assert ratio.grad.item() == pytest.approx(-200)


@pytest.mark.parametrize("eta", [0.0, -1.0, float("nan")])
def test_an_eta_that_is_not_positive_is_refused(eta: float) -> None:
    with pytest.raises(TrainError, match="expected a positive number"):
        sppo_loss(0.0, 0.5, eta)
