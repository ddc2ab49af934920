"""Losses as functions of the residual: their values, their scores under noise, and what is none."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import (
    binary_cross_entropy,
    cross_entropy,
    huber_loss,
    l1_loss,
    mse_loss,
    smooth_l1_loss,
)

from sciml_snr.pointwise import Pointwise, pointwise


def huber_score(sigma: Tensor, delta: float) -> Tensor:
    """Root of E clip(e, -delta, delta)^2 for e from N(0, sigma^2)."""
    normal, t = torch.distributions.Normal(0.0, 1.0), delta / sigma
    inside = sigma**2 * (2 * normal.cdf(t) - 1 - 2 * t * normal.log_prob(t).exp())
    return (inside + 2 * delta**2 * normal.cdf(-t)).sqrt()


def log_cosh(prediction: Tensor, target: Tensor) -> Tensor:
    return (prediction - target).cosh().log().mean()


def squares_in_a_function(prediction: Tensor, target: Tensor) -> Tensor:
    return (prediction - target).square().mean()


SCORES = [
    (mse_loss, lambda sigma: 2 * sigma),
    (squares_in_a_function, lambda sigma: 2 * sigma),
    (nn.MSELoss(), lambda sigma: 2 * sigma),
    ("mse", lambda sigma: 2 * sigma),
    (l1_loss, torch.ones_like),
    ("l1", torch.ones_like),
    (huber_loss, lambda sigma: huber_score(sigma, 1.0)),
    ("huber", lambda sigma: huber_score(sigma, 1.0)),
    (nn.HuberLoss(delta=0.3), lambda sigma: huber_score(sigma, 0.3)),
    (partial(huber_loss, delta=0.3), lambda sigma: huber_score(sigma, 0.3)),
    (smooth_l1_loss, lambda sigma: huber_score(sigma, 1.0)),
    (partial(smooth_l1_loss, beta=0.5), lambda sigma: huber_score(sigma, 0.5) / 0.5),
    (log_cosh, None),
]


@pytest.mark.parametrize(("loss", "closed"), SCORES)
def test_score_deviation(loss, closed):
    """Closed forms within 1e-3; a Monte Carlo mean of 200,000 within 1 % (its error is 0.2 %)."""
    sigma = torch.tensor([[0.1, 0.5], [1.0, 4.0]], dtype=torch.float64)
    known = pointwise(loss)
    found = known.score_deviation(sigma)
    assert found.shape == sigma.shape
    assert found.dtype == sigma.dtype
    if closed is not None:
        torch.testing.assert_close(found, closed(sigma), rtol=1e-3, atol=0)
    torch.manual_seed(8)
    errors = (sigma * torch.randn(200_000, 2, 2, dtype=torch.float64)).requires_grad_()
    if known.is_elementwise:
        known.values(errors).sum().backward()
    else:
        (known.values(errors) * errors.numel()).backward()
    drawn = errors.grad.square().mean(0).sqrt()
    torch.testing.assert_close(found, drawn, rtol=0.01, atol=0)


@pytest.mark.parametrize("delta", [0.05, 0.7, 3.0])
def test_score_deviation_of_the_huber_loss_with_its_delta(delta):
    sigma = torch.tensor([0.2, 1.0], dtype=torch.float64)
    found = pointwise("huber", delta).score_deviation(sigma)
    torch.testing.assert_close(found, huber_score(sigma, delta))
    by_hand = pointwise(partial(huber_loss, delta=delta)).score_deviation(sigma)
    torch.testing.assert_close(by_hand, found, rtol=1e-3, atol=0)


@pytest.mark.parametrize("loss", [loss for loss, _ in SCORES])
def test_without_error_there_is_no_score(loss):
    sigma = torch.tensor([0.0, 0.5])
    assert (pointwise(loss).score_deviation(sigma) > 0).tolist() == [False, True]


@pytest.mark.parametrize("outer", [torch.no_grad, torch.enable_grad])
def test_a_score_is_no_part_of_a_graph(outer):
    sigma = torch.tensor([0.3, 0.5])
    with outer():
        for loss in ("mse", "huber", "l1", log_cosh):
            assert not pointwise(loss).score_deviation(sigma).requires_grad


# Values ----------------------------------------------------------------------------------------

NAMED = [
    ("mse", mse_loss),
    ("MSE", mse_loss),
    ("mean squared error", mse_loss),
    ("l1", l1_loss),
    ("MAE", l1_loss),
    ("mean absolute error", l1_loss),
    ("huber", huber_loss),
]


@pytest.mark.parametrize(("name", "theirs"), NAMED)
def test_values_are_torchs_bit_for_bit(name, theirs):
    residual = 3 * torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    known, zero = pointwise(name), torch.zeros(5, 2)
    assert known.is_elementwise
    assert torch.equal(known.values(residual), theirs(residual, zero, reduction="none"))
    assert torch.equal(known.values(residual).mean(), theirs(residual, zero))


def test_delta_is_the_huber_losss():
    residual = torch.linspace(-3, 3, 7)
    expected = huber_loss(residual, torch.zeros(7), reduction="none", delta=0.4)
    assert torch.equal(pointwise("huber", 0.4).values(residual), expected)
    assert torch.equal(pointwise(nn.HuberLoss(delta=0.4)).values(residual), expected)


def test_a_function_is_taken_as_the_mean_that_it_is():
    residual = torch.linspace(-3, 3, 6).reshape(3, 2)
    known = pointwise(log_cosh)
    assert not known.is_elementwise
    assert not known.is_square
    assert known.name == "log_cosh"
    assert torch.equal(known.values(residual), log_cosh(residual, torch.zeros(3, 2)))


def test_only_the_squared_error_is_the_squared_error():
    assert pointwise("mse").is_square
    assert not any(pointwise(loss).is_square for loss in ("l1", "huber", log_cosh))


@pytest.mark.parametrize(
    "loss",
    [
        nn.MSELoss(),
        lambda a, b: (a - b).square().mean(),
        lambda a, b: (a - b).square().mean(dim=1).mean(),
    ],
)
def test_the_squared_error_goes_by_any_name(loss):
    assert pointwise(loss).is_square


@pytest.mark.parametrize(
    ("loss", "name"), [(nn.L1Loss(), "l1"), (huber_loss, "huber"), (smooth_l1_loss, "huber")]
)
def test_so_do_others(loss, name):
    assert pointwise(loss).name == name
    assert pointwise(loss).is_elementwise


def double(prediction: Tensor, target: Tensor) -> Tensor:
    return 2 * mse_loss(prediction, target)


@pytest.mark.parametrize("loss", [double, partial(huber_loss, delta=5.0)])
def test_others_are_none_of_these(loss):
    assert not pointwise(loss).is_elementwise


def test_what_is_known_stays_as_it_is():
    known = pointwise("huber", 0.3)
    assert pointwise(known) is known
    assert isinstance(known, Pointwise)


# What is no mean over entries of a function of the difference ------------------------------------


def relative_error(prediction: Tensor, target: Tensor) -> Tensor:
    return (prediction - target).norm() / target.norm()


def relative_squares(prediction: Tensor, target: Tensor) -> Tensor:
    return ((prediction - target) / target).square().mean()


def root_mean_square(prediction: Tensor, target: Tensor) -> Tensor:
    return (prediction - target).square().mean().sqrt()


@pytest.mark.parametrize(
    ("loss", "name"),
    [
        (partial(mse_loss, reduction="sum"), "mse_loss"),
        (partial(l1_loss, reduction="none"), "l1_loss"),
        (nn.HuberLoss(reduction="sum"), "HuberLoss"),
        (relative_error, "relative_error"),
        (relative_squares, "relative_squares"),
        (root_mean_square, "root_mean_square"),
        (cross_entropy, "cross_entropy"),
        (nn.CrossEntropyLoss(), "CrossEntropyLoss"),
        (binary_cross_entropy, "binary_cross_entropy"),
    ],
)
def test_losses_without_a_floor_are_refused(loss, name):
    with pytest.raises(ValueError, match=rf"(?s){name}.*mean over entries of a function of pred"):
        pointwise(loss)


@pytest.mark.parametrize(
    "loss",
    [
        lambda a, b: (a - b).square().sum(1).mean(),
        lambda a, b: (a - b)[:, 0].square().mean(),
        lambda a, b: ((a - b).square() * torch.tensor([1.0, 2.0])).mean(),
    ],
)
def test_losses_that_are_no_mean_over_several_outputs_are_refused(loss):
    with pytest.raises(ValueError, match="mean over entries"):
        pointwise(loss)


@pytest.mark.parametrize("loss", ["mse_loss", "", "Hubert"])
def test_unknown_names_are_refused(loss):
    with pytest.raises(ValueError, match=r'Unknown loss .*"mse", "huber" or "l1"'):
        pointwise(loss)


@pytest.mark.parametrize("loss", [None, 3.0, torch.ones(1)])
def test_what_is_no_function_is_refused(loss):
    with pytest.raises(ValueError, match="a name or a function"):
        pointwise(loss)


@pytest.mark.parametrize("delta", [0, -1.0, math.nan, math.inf, "1"])
def test_an_impossible_delta_is_refused(delta):
    with pytest.raises(ValueError, match="delta must be a positive number"):
        pointwise("huber", delta)
