"""Floors against loops over the samples: label, sampling and stream, drawn and exact."""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Callable
from functools import partial
from statistics import NormalDist

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

from sciml_snr import (
    LabelNoise,
    NoisyTerm,
    SamplingNoise,
    StreamNoise,
    exact_label_noise,
    exact_sampling_noise,
)
from sciml_snr.noise import score_deviation
from tests.cases import assert_same_bits, batch, network

DRAWS = 1000
SAMPLES = 12


class Problem:
    """A model in float64 with the noisy terms of its loss, and its loss per sample."""

    def __init__(self, terms: list[NoisyTerm], *params: Tensor) -> None:
        self.params = list(params)
        self.terms = terms
        squares = [term.weight * term.residual.square().mean(1) for term in terms]
        self.losses = torch.stack(squares).sum(0)


class Siren(nn.Module):
    """Two hidden layers of sin(30 (W x + b)), initialized as Sitzmann et al. do."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.hidden = nn.ModuleList([nn.Linear(2, width), nn.Linear(width, width)])
        self.last = nn.Linear(width, 1)
        for layer, bound in zip([*self.hidden, self.last], [0.5, *[(6 / width) ** 0.5 / 30] * 2]):
            nn.init.uniform_(layer.weight, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.hidden:
            x = torch.sin(30 * layer(x))
        return self.last(x)


def tanh_net(inputs: int, outputs: int = 1) -> nn.Module:
    return nn.Sequential(
        nn.Linear(inputs, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, outputs)
    ).double()


def points(n: int, inputs: int) -> Tensor:
    return torch.rand(n, inputs, dtype=torch.float64)


def term(prediction: Tensor, sigma, weight: float = 1.0, miss: float = 0.4, **options) -> NoisyTerm:
    """Residuals of about ``miss`` times the measurements' error."""
    data = prediction.detach() + miss * torch.as_tensor(sigma) * torch.randn_like(prediction)
    return NoisyTerm(prediction - data, sigma, weight, **options)


def derivatives(f: nn.Module, x: Tensor, order: int) -> list[Tensor]:
    """u, u_x, u_xx, ... attached to the graph, for x in R."""
    x = x.clone().requires_grad_()
    found = [f(x)]
    for _ in range(order):
        found += torch.autograd.grad(found[-1].sum(), x, create_graph=True)
    return found


def mlp(n: int = SAMPLES) -> Problem:
    torch.manual_seed(0)
    f = tanh_net(2)
    return Problem([term(f(points(n, 2)), 0.3)], *f.parameters())


def pinn(n: int = SAMPLES) -> Problem:
    """u_xx + u = s with a measured source s, and measured u."""
    torch.manual_seed(1)
    f = tanh_net(1)
    u, _, u_xx = derivatives(f, points(n, 1), 2)
    return Problem([term(u_xx + u, 0.05, 0.5), term(f(points(n, 1)), 0.2, 2.0)], *f.parameters())


def siren(n: int = SAMPLES) -> Problem:
    torch.manual_seed(2)
    f = Siren().double()
    return Problem([term(f(points(n, 2)), 0.1)], *f.parameters())


def third_derivative(n: int = SAMPLES) -> Problem:
    """u_xxx + u u_x = s (travelling wave of KdV)."""
    torch.manual_seed(3)
    f = tanh_net(1)
    u, u_x, _, u_xxx = derivatives(f, points(n, 1), 3)
    return Problem([term(u_xxx + u * u_x, 0.1)], *f.parameters())


def error_arrays(n: int = SAMPLES) -> Problem:
    """Unequal errors, some of them 0, per sample and per value; two outputs; an idle parameter."""
    torch.manual_seed(4)
    f, idle = tanh_net(2, outputs=2), nn.Parameter(torch.ones(3, dtype=torch.float64))
    per_sample = torch.linspace(0, 1, n, dtype=torch.float64)[:, None]
    per_value = torch.linspace(0, 2, 2 * n, dtype=torch.float64).reshape(n, 2)
    terms = [term(f(points(n, 2)), per_sample, 3.0), term(f(points(n, 2)), per_value, 0.1)]
    return Problem(terms, idle, *f.parameters())


def unknown_coefficient(n: int = SAMPLES) -> Problem:
    """k u_xx + u = s with k unknown, residuals of three errors in it; batches of 40 data."""
    torch.manual_seed(5)
    f, k = tanh_net(1), nn.Parameter(torch.tensor(0.7, dtype=torch.float64))
    u, _, u_xx = derivatives(f, points(n, 1), 2)
    source = term(k * u_xx + u, 0.05, 0.5, miss=3.0)
    fresh = term(f(points(n, 1)), 0.3, 5.0, population=math.inf)
    return Problem([source, term(f(points(n, 1)), 0.2, 2.0, population=40), fresh], k, *f.parameters())


MODELS = [mlp, pinn, siren]
each = partial(pytest.mark.parametrize, ids=lambda case: getattr(case, "__name__", None))


# Loops over the samples -------------------------------------------------------------------------


def flat(tensors) -> Tensor:
    return torch.cat([t.detach().flatten() for t in tensors])


def gradient(output: Tensor, params: list[Tensor]) -> Tensor:
    found = torch.autograd.grad(output, params, retain_graph=True, allow_unused=True)
    return flat(torch.zeros_like(p) if g is None else g for p, g in zip(params, found, strict=True))


def gradients(outputs: Tensor, params: list[Tensor]) -> Tensor:
    """(n, parameters)"""
    return torch.stack([gradient(output, params) for output in outputs.flatten()])


def label_loop(problem: Problem, beta1: float = 0.9) -> Tensor:
    """The label floor as documented, value by value."""
    total = torch.zeros_like(flat(problem.params))
    for noisy in problem.terms:
        values = noisy.residual.flatten()
        sigma = torch.as_tensor(noisy.sigma, dtype=torch.float64).expand_as(noisy.residual).flatten()
        squares = [(r / s).item() ** 2 for r, s in zip(values, sigma, strict=True) if s > 0]
        share = 1 if noisy.population is None else len(noisy.residual) / noisy.population
        factor = share + (1 - share) * (1 - beta1) / (1 + beta1)
        factor /= max(1, sum(squares) / len(squares))
        for value, s in zip(values, sigma, strict=True):
            h = 2 * noisy.weight / len(values) * s * gradient(value, problem.params)
            total += factor * h**2
    return total


def sampling_loop(problem: Problem) -> Tensor:
    """sum (g_i - mean g)^2 / (b (b - 1))"""
    rows = list(gradients(problem.losses, problem.params))
    mean = sum(rows) / len(rows)
    return sum((g - mean) ** 2 for g in rows) / (len(rows) * (len(rows) - 1))


# Statistics -------------------------------------------------------------------------------------


def squared_draws(floor, problem: Problem, call: Callable[[], object], n: int = DRAWS) -> Tensor:
    """(n, parameters) from a floor with rho = 0, that is h^2 of the last draw."""
    assert floor.rho == 0
    found = []
    for _ in range(n):
        call()
        found.append(flat(floor[p] for p in problem.params))
    return torch.stack(found)


def z_scores(squares: Tensor, reference: Tensor) -> tuple[float, float, float]:
    """Mean of the draws minus reference, in its standard errors.

    Returns:
        That of the sum over parameters, each in units of its reference; the largest of all
        parameters' and of five random projections'; and what the latter exceeds in one of 1000
        seeds, by Bonferroni.

    Rows are averaged in tens first: draws of a stream are (a little) correlated.
    """
    ratio = (squares / reference).unflatten(0, (-1, 10)).mean(1) - 1
    weights = torch.randn(ratio.shape[1], 5, generator=torch.Generator().manual_seed(9)).to(ratio)
    total, many = ratio.sum(1, keepdim=True), torch.cat([ratio, ratio @ weights], dim=1)
    z, each_z = (x.mean(0) / (x.std(0) / math.sqrt(len(x))) for x in (total, many))
    print(f"sum {z.item():+.2f} SE, max {each_z.abs().max():.2f} of {many.shape[1]}")
    quantile = NormalDist().inv_cdf(1 - 1e-3 / (2 * many.shape[1]))
    return abs(z.item()), each_z.abs().max().item(), quantile


def assert_unbiased(squares: Tensor, reference: Tensor) -> None:
    total, largest, quantile = z_scores(squares, reference)
    assert total < 3
    assert largest < quantile


# Draws ------------------------------------------------------------------------------------------


@each("model", [*MODELS, third_derivative])
def test_label_draws_are_unbiased(model):
    problem = model()
    floor = LabelNoise(problem.params, rho=0.0)
    squares = squared_draws(floor, problem, lambda: floor.update(problem.terms))
    assert_unbiased(squares, label_loop(problem))


@each("model", MODELS)
def test_sampling_draws_are_unbiased(model):
    problem = model()
    floor = SamplingNoise(problem.params, rho=0.0, beta1=0.0)
    squares = squared_draws(floor, problem, lambda: backward(floor, problem))
    assert_unbiased(squares, sampling_loop(problem))


def backward(floor: SamplingNoise, problem: Problem) -> None:
    """As :meth:`SamplingNoise.backward`, on a graph that stays alive."""
    problem.losses.backward = None  # not called: the floor takes the mean
    with torch.autograd.graph.save_on_cpu():
        pass
    floor.backward(problem.losses)
