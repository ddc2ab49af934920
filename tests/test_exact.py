"""The variances that the floors estimate, from per-sample gradients, against loops."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import huber_loss

from sciml_snr import NoisyLoss, NoisyTerm, exact_label_noise, exact_sampling_noise
from tests.cases import flat
from tests.loops import (
    EXACT,
    assert_unbiased,
    error_arrays,
    gradient,
    label_loop,
    mlp,
    points,
    sampling_loop,
    tanh_net,
)

each_model = pytest.mark.parametrize("model", EXACT, ids=lambda model: model.__name__)


@pytest.mark.parametrize("beta1", [0.0, 0.9])
@each_model
def test_exact_label_noise_is_the_loop(model, beta1):
    problem = model()
    exact = exact_label_noise(problem.params, problem.terms(), beta1)
    assert list(exact) == problem.params
    assert all(exact[p].shape == p.shape and not exact[p].requires_grad for p in exact)
    torch.testing.assert_close(flat(exact.values()), label_loop(problem, beta1), rtol=1e-9, atol=0)


@each_model
def test_exact_sampling_noise_is_the_loop(model):
    problem = model()
    exact = exact_sampling_noise(problem.params, problem.losses())
    torch.testing.assert_close(flat(exact.values()), sampling_loop(problem), rtol=1e-9, atol=0)


def test_idle_parameters_have_floor_zero():
    problem = error_arrays()
    idle = problem.params[0]
    assert not exact_label_noise(problem.params, problem.terms())[idle].any()
    assert not exact_sampling_noise(problem.params, problem.losses())[idle].any()


def test_it_is_the_variance_of_the_gradient_under_other_measurements():
    """The definition: new errors in the measurements, a new gradient; its variance over draws."""
    problem = mlp()
    (prediction,) = problem.predict()
    truth = prediction.detach()
    squares = torch.stack(
        [
            gradient(
                nn.functional.mse_loss(prediction, truth + 0.3 * torch.randn_like(truth)),
                problem.params,
            ).square()
            for _ in range(1000)
        ]
    )  # of mean 0
    exact = exact_label_noise(problem.params, [NoisyTerm(prediction - truth, 0.3)])
    assert_unbiased(squares, flat(exact.values()))


@pytest.mark.parametrize("loss", ["huber", huber_loss, "l1"])
def test_other_losses_have_the_variance_of_their_score(loss):
    torch.manual_seed(0)
    f, x = tanh_net(2), points(7, 2)
    params = list(f.parameters())
    residual = f(x) - f(x).detach()
    sigma = torch.linspace(0.3, 2, 7, dtype=torch.float64)[:, None]
    exact = exact_label_noise(params, [NoisyTerm(residual, sigma, weight=3.0, loss=loss)])
    scores = NoisyLoss(1.0, loss).loss.score_deviation(sigma)
    parts = [(3 / 7 * s * gradient(r, params)) ** 2 for s, r in zip(scores, residual, strict=True)]
    torch.testing.assert_close(flat(exact.values()), sum(parts))


def test_residuals_beyond_the_error_lower_it():
    """R = 9 in the first, below 1 in the second."""
    p = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    terms = [NoisyTerm(p[:1] - 0.3, 0.1), NoisyTerm(p[1:] - 0.3, 1.0)]
    found = exact_label_noise([p], terms)[p]
    torch.testing.assert_close(found, torch.tensor([4 * 0.01 / 9, 4.0], dtype=p.dtype))


def test_batches_that_stay_do_not_average_away():
    p = nn.Parameter(torch.zeros(2, 1, dtype=torch.float64))
    drawn, kept = (
        exact_label_noise([p], [NoisyTerm(p, 1.0, population=8, drawn_anew=anew)], beta1=0.5)[p]
        for anew in (True, False)
    )
    torch.testing.assert_close(kept, torch.full_like(p, 1.0))
    torch.testing.assert_close(drawn, (1 / 4 + 3 / 4 / 3) * kept)


@pytest.mark.parametrize("losses", [torch.ones(1), torch.ones(()), torch.ones(3, 1)])
def test_a_variance_of_one_sample_is_refused(losses):
    w = torch.ones(1, requires_grad=True)
    with pytest.raises(ValueError, match="two or more"):
        exact_sampling_noise([w], w * losses)


@pytest.mark.parametrize("population", [0, -1, math.nan])
def test_an_empty_population_is_refused(population):
    with pytest.raises(ValueError, match="population must be a positive number"):
        NoisyTerm(torch.ones(3, 1), 0.1, population=population)


@pytest.mark.parametrize("sigma", [-0.1, math.nan, torch.tensor([[0.1], [math.inf], [0.1]])])
def test_an_impossible_error_is_refused(sigma):
    w = torch.ones(3, 1, requires_grad=True)
    with pytest.raises(ValueError, match=r"sigma must be finite and >= 0"):
        exact_label_noise([w], [NoisyTerm(w * 1.0, sigma)])


@pytest.mark.parametrize("shape", [(3,), (3, 2), (1, 3, 1)])
def test_an_error_that_would_blow_up_the_residual_is_refused(shape):
    """(3,) against (3, 1) makes (3, 3): a floor many times too high."""
    w = torch.ones(3, 1, requires_grad=True)
    with pytest.raises(ValueError, match="does not broadcast"):
        exact_label_noise([w], [NoisyTerm(w * 1.0, torch.ones(shape))])


def test_a_term_by_hand_is_what_it_adds_to_the_loss():
    residual = torch.linspace(-1, 1, 6).reshape(3, 2)
    for name in ("mse", "huber", "l1"):
        expected = 2.5 * NoisyLoss(0.1, name)(residual, torch.zeros(3, 2))
        assert torch.equal(NoisyTerm(residual, 0.1, 2.5, loss=name).weighted_loss(), expected)
