"""Small models in float64, and the variances of their gradients by loops over the samples."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist

import torch
from torch import Tensor, nn

from sciml_snr import NoisyLoss, NoisyTerm, SNRAdam
from tests.cases import flat

SAMPLES = 12


class Problem:
    """A model and the noisy terms of its loss, with data drawn once.

    Args:
        params: the parameters.
        predict: predictions of all terms, anew at every call.
        specs: per term ``sigma``, ``weight``, ``population``, ``loss``; and ``miss``: the size of
            its residuals over sigma.
    """

    def __init__(self, params, predict: Callable[[], list[Tensor]], *specs: dict) -> None:
        self.params = list(params)
        self.predict = predict
        misses = [torch.as_tensor(spec["sigma"]) * spec.pop("miss", 0.4) for spec in specs]
        self.specs = specs
        self.data = [
            (p + miss * torch.randn_like(p)).detach()
            for p, miss in zip(predict(), misses, strict=True)
        ]
        self.noisy = [
            NoisyLoss(**{key: value for key, value in spec.items() if key != "weight"})
            for spec in specs
        ]

    def terms(self) -> list[NoisyTerm]:
        """The noisy terms, stated by hand."""
        together = zip(self.predict(), self.data, self.specs, strict=True)
        return [NoisyTerm(prediction - y, **spec) for prediction, y, spec in together]

    def total(self) -> Tensor:
        """The loss as a user writes it."""
        together = zip(self.noisy, self.predict(), self.data, self.specs, strict=True)
        return sum(
            spec.get("weight", 1.0) * loss(prediction, y) for loss, prediction, y, spec in together
        )

    def losses(self) -> Tensor:
        """(n,): sample i has the i-th row of every term."""
        return sum(term.weight * term.residual.square().mean(1) for term in self.terms())


class Siren(nn.Module):
    """Two hidden layers of sin(30 (W x + b)), initialized as Sitzmann et al. do."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.hidden = nn.ModuleList([nn.Linear(2, width), nn.Linear(width, width)])
        self.last = nn.Linear(width, 1)
        bound = math.sqrt(6 / width) / 30
        for layer, limit in (self.hidden[0], 0.5), (self.hidden[1], bound), (self.last, bound):
            nn.init.uniform_(layer.weight, -limit, limit)

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


def derivatives(f: nn.Module, x: Tensor, order: int) -> list[Tensor]:
    """u, u_x, u_xx, ... attached to the graph, for x in R."""
    x = x.clone().requires_grad_()
    found = [f(x)]
    for _ in range(order):
        found += torch.autograd.grad(found[-1].sum(), x, create_graph=True)
    return found


def mlp(n: int = SAMPLES) -> Problem:
    torch.manual_seed(0)
    f, x = tanh_net(2), points(n, 2)
    return Problem(f.parameters(), lambda: [f(x)], dict(sigma=0.3))


def pinn(n: int = SAMPLES) -> Problem:
    """u_xx + u = s with a measured source s, and measured u."""
    torch.manual_seed(1)
    f, inside, x = tanh_net(1), points(n, 1), points(n, 1)

    def predict() -> list[Tensor]:
        u, _, u_xx = derivatives(f, inside, 2)
        return [u_xx + u, f(x)]

    return Problem(f.parameters(), predict, dict(sigma=0.2, weight=0.5), dict(sigma=0.1, weight=2))


def siren(n: int = SAMPLES) -> Problem:
    torch.manual_seed(2)
    f, x = Siren().double(), points(n, 2)
    return Problem(f.parameters(), lambda: [f(x)], dict(sigma=0.1))


def third_derivative(n: int = SAMPLES) -> Problem:
    """u_xxx + u u_x = s (a travelling wave of KdV)."""
    torch.manual_seed(3)
    f, x = tanh_net(1), points(n, 1)

    def predict() -> list[Tensor]:
        u, u_x, _, u_xxx = derivatives(f, x, 3)
        return [u_xxx + u * u_x]

    return Problem(f.parameters(), predict, dict(sigma=0.1))


def error_arrays(n: int = SAMPLES) -> Problem:
    """Unequal errors, some of them 0, per sample and per value; two outputs; an idle parameter."""
    torch.manual_seed(4)
    f, idle = tanh_net(2, outputs=2), nn.Parameter(torch.ones(3, dtype=torch.float64))
    x, other = points(n, 2), points(n, 2)
    per_sample = torch.linspace(0, 1, n, dtype=torch.float64)[:, None]
    per_value = torch.linspace(0, 2, 2 * n, dtype=torch.float64).reshape(n, 2)
    specs = dict(sigma=per_sample, weight=3), dict(sigma=per_value, weight=0.1)
    return Problem([idle, *f.parameters()], lambda: [f(x), f(other)], *specs)


def unknown_coefficient(n: int = SAMPLES) -> Problem:
    """k u_xx + u = s with k unknown, its residual three errors large; minibatches; fresh data."""
    torch.manual_seed(5)
    f, k = tanh_net(1), nn.Parameter(torch.tensor(0.7, dtype=torch.float64))
    inside, x, other = points(n, 1), points(n, 1), points(n, 1)

    def predict() -> list[Tensor]:
        u, _, u_xx = derivatives(f, inside, 2)
        return [k * u_xx + u, f(x), f(other)]

    return Problem(
        [k, *f.parameters()],
        predict,
        dict(sigma=0.2, weight=0.5, miss=3.0),
        dict(sigma=0.1, weight=2, population=40),
        dict(sigma=0.3, weight=5, population=math.inf),
    )


MODELS = [mlp, pinn, siren]
EXACT = [*MODELS, third_derivative, error_arrays, unknown_coefficient]


# Loops over the samples -------------------------------------------------------------------------


def gradient(output: Tensor, params: list[Tensor]) -> Tensor:
    found = torch.autograd.grad(output, params, retain_graph=True, allow_unused=True)
    return flat(torch.zeros_like(p) if g is None else g for p, g in zip(params, found, strict=True))


def gradients(outputs: Tensor, params: list[Tensor]) -> Tensor:
    """(n, parameters)"""
    return torch.stack([gradient(output, params) for output in outputs.flatten()])


def label_loop(problem: Problem, beta1: float = 0.9) -> Tensor:
    """The label floor of the squared error as documented, value by value."""
    total = torch.zeros_like(flat(problem.params))
    for noisy in problem.terms():
        values = noisy.residual.flatten()
        sigma = (
            torch.as_tensor(noisy.sigma, dtype=torch.float64).expand_as(noisy.residual).flatten()
        )
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
    rows = list(gradients(problem.losses(), problem.params))
    mean = sum(rows) / len(rows)
    return sum((g - mean) ** 2 for g in rows) / (len(rows) * (len(rows) - 1))


# Statistics -------------------------------------------------------------------------------------


def floors(optimizer: SNRAdam, params) -> Tensor:
    """The floor of all entries after a step; with rho = 0 the square of the last draw."""
    return torch.cat([optimizer.moments(p).floor for p in params])


def still(params, noise, **options) -> SNRAdam:
    """An optimizer that moves nothing, and whose floor is the square of the last draw."""
    return SNRAdam(params, lr=0.0, rho=0.0, noise=noise, **{"coordinates": "own", **options})


def squared_draws(optimizer: SNRAdam, params, call: Callable[[], object], n: int) -> Tensor:
    """(n, parameters): the squares of n draws, each of one step after ``call``'s backward."""
    found = []
    for _ in range(n):
        optimizer.zero_grad()
        call()
        optimizer.step()
        found.append(floors(optimizer, params))
    return torch.stack(found)


def assert_unbiased(squares: Tensor, reference: Tensor) -> None:
    """The mean of the draws is the reference.

    Tolerance: 3 standard errors for the sum over parameters, each in units of its reference; for
    all parameters and five random projections what one of 1000 seeds exceeds, by Bonferroni. Rows
    are averaged in tens first: draws of a stream are (a little) correlated.
    """
    ratio = (squares / reference).unflatten(0, (-1, 10)).mean(1) - 1
    weights = torch.randn(ratio.shape[1], 5, generator=torch.Generator().manual_seed(9)).to(ratio)
    total, many = ratio.sum(1, keepdim=True), torch.cat([ratio, ratio @ weights], dim=1)
    z, each_z = (x.mean(0) / (x.std(0) / math.sqrt(len(x))) for x in (total, many))
    print(f"sum {z.item():+.2f} SE, max {each_z.abs().max():.2f} of {many.shape[1]}")
    assert abs(z.item()) < 3
    assert each_z.abs().max().item() < NormalDist().inv_cdf(1 - 1e-3 / (2 * many.shape[1]))


def assert_same_mean(first: Tensor, second: Tensor) -> None:
    """The same of two samples: the difference of their means in its standard errors."""
    unit = second.mean(0)
    sums = [(x / unit).mean(1) for x in (first, second)]
    error = math.sqrt(sum(s.var().item() / len(s) for s in sums))
    z = (sums[0].mean() - sums[1].mean()).item() / error
    print(f"sum of two {z:+.2f} SE of {100 * error:.1f} %")
    assert abs(z) < 3
    errors = sum(x.var(0) / len(x) for x in (first, second)).sqrt()
    largest = ((first.mean(0) - second.mean(0)).abs() / errors).max().item()
    assert largest < NormalDist().inv_cdf(1 - 1e-3 / (2 * len(errors)))
