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
    SNRAdam,
    StreamNoise,
    exact_label_noise,
    exact_sampling_noise,
)
from sciml_snr.gate import LABEL_GATE
from sciml_snr.noise import excess, score_deviation
from tests.cases import assert_same_bits, batch, network

DRAWS = 500
SAMPLES = 12


class Problem:
    """A model in float64 and the terms of its loss, with data drawn once.

    Args:
        params: the parameters.
        predict: predictions of all terms, anew at every call.
        specs: options of NoisyTerm per term, and ``miss``: the size of residuals over sigma.
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

    def terms(self) -> list[NoisyTerm]:
        together = zip(self.predict(), self.data, self.specs, strict=True)
        return [NoisyTerm(prediction - y, **spec) for prediction, y, spec in together]

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


def squared_draws(floor, call: Callable[[], object], n: int = DRAWS) -> Tensor:
    """(n, parameters) from a floor with rho = 0, that is h^2 of the last draw."""
    assert floor.rho == 0
    found = []
    for _ in range(n):
        call()
        found.append(flat(floor[p] for p in floor.params))
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


# Draws ------------------------------------------------------------------------------------------


@each("model", [*MODELS, third_derivative])
def test_label_draws_are_unbiased(model):
    problem = model()
    terms = problem.terms()
    floor = LabelNoise(problem.params, rho=0.0)
    assert_unbiased(squared_draws(floor, lambda: floor.update(terms)), label_loop(problem))


@each("model", MODELS)
def test_sampling_draws_are_unbiased(model):
    """Of the variance of a batch's gradient, of which the first moment leaves 1 / 19."""
    problem = model()
    floor = SamplingNoise(problem.params, rho=0.0)
    squares = squared_draws(floor, lambda: floor.backward(problem.losses()))
    assert_unbiased(squares, sampling_loop(problem) / 19)


@each("model", MODELS)
def test_stream_draws_are_unbiased(model):
    """Fresh batches of 4 out of 30, with replacement; after 100 steps the first moment is used."""
    problem = model(30)
    losses = problem.losses()
    floor = StreamNoise(problem.params, rho=0.0)

    def step() -> None:
        loss = losses[torch.randint(0, 30, (4,))].mean()
        found = torch.autograd.grad(loss, problem.params, retain_graph=True)
        for p, g in zip(problem.params, found, strict=True):
            p.grad = g
        floor.update()

    squares = squared_draws(floor, step, DRAWS + 100)[100:]
    assert_unbiased(squares, gradients(losses, problem.params).var(0, correction=0) / 4)


def test_centered_signs_do_what_plain_signs_need_a_mean_gradient_for():
    """(E h^2 - gbar^2 / b) b / (b - 1) with h the gradient of sum eps_i l_i / b."""
    problem = mlp()
    losses, b = problem.losses(), SAMPLES
    mean = gradient(losses.mean(), problem.params)
    signs = torch.randint(0, 2, (DRAWS, b)) * 2.0 - 1
    plain = torch.stack([gradient((eps * losses).sum() / b, problem.params) for eps in signs])
    published = (plain**2 - mean**2 / b) * b / (b - 1)
    assert_unbiased(published, sampling_loop(problem))
    floor = SamplingNoise(problem.params, rho=0.0, beta1=0.0)
    centered = squared_draws(floor, lambda: floor.backward(problem.losses()))
    assert_same_mean(centered, published)


# Exact ------------------------------------------------------------------------------------------


@each("beta1", [0.0, 0.9])
@each("model", EXACT)
def test_exact_label_noise_is_the_loop(model, beta1):
    problem = model()
    exact = exact_label_noise(problem.params, problem.terms(), beta1)
    assert list(exact) == problem.params
    assert all(exact[p].shape == p.shape and not exact[p].requires_grad for p in exact)
    torch.testing.assert_close(flat(exact.values()), label_loop(problem, beta1), rtol=1e-9, atol=0)


@each("model", EXACT)
def test_exact_sampling_noise_is_the_loop(model):
    problem = model()
    exact = exact_sampling_noise(problem.params, problem.losses())
    torch.testing.assert_close(flat(exact.values()), sampling_loop(problem), rtol=1e-9, atol=0)


def test_idle_parameters_have_floor_zero():
    problem = error_arrays()
    idle = problem.params[0]
    assert not exact_label_noise(problem.params, problem.terms())[idle].any()
    assert not exact_sampling_noise(problem.params, problem.losses())[idle].any()
    floor = SamplingNoise(problem.params)
    floor.backward(problem.losses())
    stream = StreamNoise(problem.params)
    stream.update()  # of the gradients that backward left
    assert idle.grad is None
    for found in (floor, stream):
        assert torch.equal(found[idle], torch.zeros_like(idle))
        assert all((found[p] > 0).any() for p in problem.params[1:])


# Batches out of a population, and the first moment ----------------------------------------------

SIZE, BATCH, BETA1, SIGMA = 24, 6, 0.9, 0.4


def linear() -> tuple[nn.Parameter, Tensor]:
    """Weights of a linear model and its 24 inputs."""
    torch.manual_seed(6)
    return nn.Parameter(torch.randn(5, 1, dtype=torch.float64)), points(SIZE, 5)


def batches(runs: int) -> Tensor:
    """(runs, 24): 1 for the 6 that a run draws without replacement, 0 for others."""
    chosen = torch.rand(runs, SIZE).argsort(1)[:, :BATCH]
    return torch.zeros(runs, SIZE, dtype=torch.float64).scatter_(1, chosen, 1.0)


def first_moment(gradient_at_a_step: Callable[[], Tensor], steps: int = 90) -> Tensor:
    """Bias-corrected, (runs, parameters). 0.9^90 = 8e-5: stationary."""
    m = torch.zeros(())
    for _ in range(steps):
        m = BETA1 * m + (1 - BETA1) * gradient_at_a_step()
    return m / (1 - BETA1**steps)


@pytest.mark.parametrize(
    ("population", "factor"),
    [(None, 1.0), (SIZE, 1 / 4 + 3 / 4 / 19), (math.inf, 1 / 19)],
    ids=["all", "minibatches", "fresh"],
)
def test_label_floor_is_the_variance_of_the_first_moment(population, factor):
    """Simulated over errors of the data and orders of the batches.

    Tolerance: 3 standard errors of the sum over parameters, of some 3 % each; the three factors
    are 1, 0.29 and 0.05.
    """
    w, x = linear()
    runs = 2000
    errors = SIGMA * torch.randn(runs, SIZE, dtype=torch.float64)

    def step() -> Tensor:
        if population is None:
            return -2 / SIZE * errors @ x
        if population == math.inf:
            errors.normal_(std=SIGMA)
        return -2 / BATCH * (batches(runs) * errors) @ x

    simulated = first_moment(step).square()  # of mean 0
    rows = torch.arange(SIZE)[None].expand(DRAWS, -1)
    if population is not None:
        rows = batches(DRAWS).nonzero()[:, 1].reshape(DRAWS, BATCH)
    noise = [NoisyTerm(x[i] @ w - (x[i] @ w).detach(), SIGMA, 1.0, population) for i in rows]
    exact = torch.stack([flat(exact_label_noise([w], [term], BETA1).values()) for term in noise])
    variance = exact.mean(0)
    documented = factor * 4 * SIGMA**2 / len(rows[0]) * x.square().mean(0)
    torch.testing.assert_close(variance, documented, rtol=0.05, atol=0)  # which 500 batches
    assert_unbiased(simulated, documented)
    floor, queue = LabelNoise([w], rho=0.0, beta1=BETA1), iter(noise)
    assert_same_mean(squared_draws(floor, lambda: floor.update([next(queue)])), simulated)


@pytest.mark.parametrize("beta1", [0.0, 0.9])
def test_sampling_floor_is_the_variance_of_the_first_moment(beta1):
    """Batches of 6 out of 24 rows drawn anew in every step; beta1 = 0: of the gradient."""
    w, x = linear()
    y = torch.randn(SIZE, 1, dtype=torch.float64)
    rows = gradients((x @ w - y).square(), [w])
    mean = rows.mean(0)

    def step() -> Tensor:
        return batches(2000) @ rows / BATCH - mean

    simulated = (first_moment(step) if beta1 else step()).square()
    floor = SamplingNoise([w], rho=0.0, population=SIZE, beta1=beta1)

    def call() -> None:
        i = batches(1)[0].bool()
        floor.backward((x[i] @ w - y[i]).square().squeeze(1))

    assert_same_mean(squared_draws(floor, call), simulated)
    left = (1 - BATCH / SIZE) * (1 - beta1) / (1 + beta1)
    assert_unbiased(simulated, left * rows.var(0) / BATCH)


@pytest.mark.parametrize(
    ("options", "factor"),
    [
        ({"population": math.inf}, 1.0),
        ({"population": 48}, 0.75),
        ({"population": 12}, 0.0),
        ({"population": 11}, 0.0),
        ({"beta1": 0.5}, 1 / 3),
        ({"beta1": 0.9, "population": 24}, 0.5 / 19),
    ],
)
def test_factors_of_the_sampling_floor(options, factor):
    """A full batch, or more, is always the same one."""
    problem, found = mlp(), []
    for given in ({"beta1": 0.0}, {"beta1": 0.0, **options}):
        torch.manual_seed(7)
        floor = SamplingNoise(problem.params, **given)
        floor.backward(problem.losses())
        found.append(flat(floor.values()))
    torch.testing.assert_close(found[1], factor * found[0], rtol=1e-9, atol=0)


def test_sampling_backward_is_that_of_the_mean():
    problem, found = mlp(), []
    for floored in (False, True):
        for p in problem.params:
            p.grad = None
        losses = problem.losses()
        mean = losses.mean()
        if floored:
            mean = SamplingNoise(problem.params).backward(losses)
            assert not mean.requires_grad and mean.shape == ()
        else:
            mean.backward()
        found.append([mean.detach(), *(p.grad for p in problem.params)])
    assert_same_bits(found[1], found[0])


# Other losses -----------------------------------------------------------------------------------


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
    (l1_loss, torch.ones_like),
    (huber_loss, lambda sigma: huber_score(sigma, 1.0)),
    (partial(huber_loss, delta=0.3), lambda sigma: huber_score(sigma, 0.3)),
    (smooth_l1_loss, lambda sigma: huber_score(sigma, 1.0)),
    (partial(smooth_l1_loss, beta=0.5), lambda sigma: huber_score(sigma, 0.5) / 0.5),
    (log_cosh, None),
]


@pytest.mark.parametrize(("loss", "closed"), SCORES)
def test_score_deviation(loss, closed):
    """By quadrature of 64 nodes: within 4 % (kinks fall between them; smooth scores within 1)."""
    sigma = torch.tensor([[0.1, 0.5], [1.0, 4.0]], dtype=torch.float64)
    found = score_deviation(loss, sigma)
    assert found.shape == sigma.shape
    if closed is not None:
        torch.testing.assert_close(found, closed(sigma), rtol=0.04, atol=0)
    torch.manual_seed(8)
    errors = (sigma * torch.randn(200_000, 2, 2, dtype=torch.float64)).requires_grad_()
    loss(errors, torch.zeros_like(errors)).backward()
    drawn = (errors.grad * errors.numel()).square().mean(0).sqrt()
    torch.testing.assert_close(found, drawn, rtol=0.01 if loss is log_cosh else 0.04, atol=0)


@pytest.mark.parametrize("loss", [loss for loss, _ in SCORES])
def test_without_error_there_is_no_score(loss):
    sigma = torch.tensor([0.0, 0.5])
    assert (score_deviation(loss, sigma) > 0).tolist() == [False, True]


@pytest.mark.parametrize("loss", [huber_loss, l1_loss])
def test_label_floor_of_other_losses(loss):
    """At the truth: the gradient's mean square (its mean is 0) over draws of the data's error."""
    problem, sigma = mlp(), torch.linspace(0.3, 2, SAMPLES, dtype=torch.float64)[:, None]
    (prediction,) = problem.predict()
    truth = prediction.detach()
    floor = LabelNoise(problem.params, sigma, rho=0.0, loss=loss)
    squares = squared_draws(floor, lambda: floor.backward(problem.predict()[0], truth))
    found = []
    for _ in range(DRAWS):
        measured = truth + sigma * torch.randn_like(truth)
        found.append(gradient(loss(prediction, measured), problem.params))
    assert_same_mean(squares, torch.stack(found).square())


def test_backward_is_that_of_the_loss():
    x, y = batch(0)
    found = []
    for floored in (False, True):
        f = network()
        if floored:
            loss = LabelNoise(f.parameters(), sigma=0.1, loss=huber_loss).backward(f(x), y)
        else:
            loss = huber_loss(f(x), y)
            loss.backward()
        found.append([loss.detach(), *(p.grad for p in f.parameters())])
    assert_same_bits(found[1], found[0])


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
        LabelNoise(network().parameters(), sigma=0.1, loss=loss)


# All three classes ------------------------------------------------------------------------------


def label_call(floor: LabelNoise, f: nn.Module, t: int) -> None:
    x, y = batch(t, dtype=next(f.parameters()).dtype.to_real())
    floor.backward(f(x), y)


def sampling_call(floor: SamplingNoise, f: nn.Module, t: int) -> None:
    x, y = batch(t, dtype=next(f.parameters()).dtype.to_real())
    floor.backward(mse_loss(f(x), y, reduction="none").mean(1))


def stream_call(floor: StreamNoise, f: nn.Module, t: int) -> None:
    x, y = batch(t, dtype=next(f.parameters()).dtype.to_real())
    f.zero_grad()
    mse_loss(f(x), y).backward()
    floor.update()


KINDS = [
    (partial(LabelNoise, sigma=0.1), label_call),
    (SamplingNoise, sampling_call),
    (StreamNoise, stream_call),
]
of_all_kinds = pytest.mark.parametrize(("kind", "call"), KINDS, ids=["label", "sampling", "stream"])
of_random_signs = pytest.mark.parametrize(("kind", "call"), KINDS[:2], ids=["label", "sampling"])


@of_all_kinds
def test_state_continues_with_the_same_bits(kind, call):
    f = network()
    floor = kind(f.parameters(), rho=0.9)
    for t in range(3):
        call(floor, f, t)
    file = io.BytesIO()
    torch.save(floor.state_dict(), file)
    file.seek(0)
    other = kind(f.parameters(), rho=0.9)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert_same_bits(list(other.values()), list(floor.values()))
    assert not other.draws
    for continued in (floor, other):
        torch.manual_seed(3)
        for t in range(3, 8):
            call(continued, f, t)
    assert_same_bits(list(other.values()), list(floor.values()))
    assert_same_bits(list(other.draws.values()), list(floor.draws.values()))
    assert_same_bits(other.state_dict(), floor.state_dict())


@of_random_signs
def test_draws_at_every_third_call_from_a_continued_state_on(kind, call):
    f = network()
    floor = kind(f.parameters(), every=3)
    drawn = []
    for t in range(8):
        if t == 5:
            saved, floor = floor.state_dict(), kind(f.parameters(), every=3)
            floor.load_state_dict(saved)
        before, generator = list(floor.values()), torch.get_rng_state()
        f.zero_grad()
        call(floor, f, t)
        assert all(p.grad.any() for p in f.parameters())
        drawn.append(bool(floor.draws))
        assert torch.equal(torch.get_rng_state(), generator) != drawn[-1]
        if not drawn[-1]:
            assert_same_bits(list(floor.values()), before)
    assert drawn == [True, False, False, True, False, False, True, False]


@of_all_kinds
def test_draws_squared_are_what_is_averaged(kind, call):
    f = network(torch.float64)
    floor = kind(f.parameters(), rho=0.75)
    mean = [torch.zeros_like(p) for p in f.parameters()]
    for t in range(4):
        call(floor, f, t)
        mean = [0.75 * m + 0.25 * floor.draws[p] ** 2 for m, p in zip(mean, floor, strict=True)]
    torch.testing.assert_close(flat(floor.values()), flat(mean) / (1 - 0.75**4))


@of_all_kinds
@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_step_that_is_not_finite_leaves_no_trace(kind, call, poison):
    f = network()
    floor = kind(f.parameters())
    for t in range(2):
        call(floor, f, t)
    values, state = list(floor.values()), copy.deepcopy(floor.state_dict())
    f[-1].bias.data.fill_(poison)
    call(floor, f, 2)
    assert not floor.draws
    assert_same_bits(list(floor.values()), values)
    state["calls"] += 1
    assert_same_bits(floor.state_dict(), state)


@of_all_kinds
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_parameters_have_a_float32_floor(kind, call, dtype):
    """About that of float32: signs and batches are the same."""
    found = []
    for precision in (dtype, torch.float32):
        f = network(dtype).to(precision)
        floor = kind(f.parameters(), rho=0.0)
        torch.manual_seed(4)
        call(floor, f, 0)
        assert all(v.dtype == torch.float32 for v in floor.values())
        found.append(flat(floor.values()))
    assert (found[0] - found[1]).norm() < 0.1 * found[1].norm()


@of_all_kinds
def test_complex_parameters_get_the_variances_of_both_parts(kind, call):
    """As if the parts were parameters of their own."""
    a = torch.randn(3, dtype=torch.complex128, generator=torch.Generator().manual_seed(5))

    class Parts(nn.Module):
        def __init__(self, *values: Tensor) -> None:
            super().__init__()
            self.values = nn.ParameterList(values)

        def forward(self, x: Tensor) -> Tensor:
            z = self.values[0] if len(self.values) == 1 else torch.complex(*self.values)
            return x[:, :1] * (a * z).real.sum() + x[:, 1:] * (z * z).imag.sum()

    found = []
    for f in (Parts(a), Parts(a.real.clone(), a.imag.clone())):
        floor = kind(f.parameters())
        torch.manual_seed(5)
        for t in range(3):
            call(floor, f, t)
        found.append(list(floor.values()))
    (both,), (real, imag) = found
    torch.testing.assert_close((both.real, both.imag), (real, imag))


def test_no_gradients_no_stream():
    f = network()
    floor = StreamNoise(f.parameters())
    floor.update()
    assert not floor and not floor.draws
    stream_call(floor, f, 0)
    first, before = f[0].weight, floor.state_dict()["mean"][0].clone()
    f[0].weight.grad = None
    floor.update()
    assert first not in floor.draws and len(floor.draws) == len(floor) - 1
    assert_same_bits(floor.state_dict()["mean"][0], before)


def test_first_draw_of_the_stream_is_the_gradient():
    """The first moment is 0 before the first step, as in the published rule."""
    f = network()
    floor = StreamNoise(f.parameters(), beta1=0.5)
    stream_call(floor, f, 0)
    expected = [math.sqrt(0.75) * p.grad for p in f.parameters()]
    torch.testing.assert_close(list(floor.draws.values()), expected)


@of_all_kinds
@pytest.mark.parametrize("beta1", [-0.1, 1.0, math.nan])
def test_wrong_beta1_is_refused(kind, call, beta1):
    with pytest.raises(ValueError, match="beta1"):
        kind(network().parameters(), beta1=beta1)


@pytest.mark.parametrize("population", [0, -1, math.nan])
def test_wrong_population_is_refused(population):
    with pytest.raises(ValueError, match="population"):
        SamplingNoise(network().parameters(), population=population)


@pytest.mark.parametrize("shape", [(), (1,), (4, 1)])
def test_anything_but_a_loss_per_sample_is_refused(shape):
    p = nn.Parameter(torch.ones(()))
    floor = SamplingNoise([p])
    with pytest.raises(ValueError, match="one loss per sample"):
        floor.backward(p.expand(shape))
    assert p.grad is None and not floor


@pytest.mark.parametrize("population", [0, -3, math.nan])
def test_an_empty_population_is_refused(population):
    w = torch.ones(3, 1, requires_grad=True)
    with pytest.raises(ValueError, match="population must be a positive number"):
        LabelNoise([w], sigma=1.0).backward(w, torch.zeros(3, 1), population=population)


@pytest.mark.parametrize("sigma", [-0.1, math.nan, torch.tensor([[0.1], [math.inf], [0.1]])])
def test_an_impossible_error_of_one_call_is_refused(sigma):
    """As the constructor's is: without a floor the published rule would take over in silence."""
    w = torch.ones(3, 1, requires_grad=True)
    floor = LabelNoise([w])
    with pytest.raises(ValueError, match=r"sigma must be finite and >= 0"):
        floor.backward(w, torch.zeros(3, 1), sigma=sigma)
    with pytest.raises(ValueError, match=r"sigma must be finite and >= 0"):
        LabelNoise([w]).update([NoisyTerm(w, sigma)])
    assert w.grad is None and not floor


@pytest.mark.parametrize("every", [0, 1.5])
def test_a_period_that_is_none_is_refused(every):
    with pytest.raises(ValueError, match="every must be an integer >= 1"):
        LabelNoise([torch.ones(1, requires_grad=True)], sigma=1.0, every=every)


def test_a_term_without_data_is_none():
    """A condition that has no points on this boundary."""
    w = torch.ones(3, 1, requires_grad=True)
    found = []
    for extra in ([], [NoisyTerm(w[:0], 0.3)]):
        torch.manual_seed(0)
        floor = LabelNoise([w])
        floor.update([NoisyTerm(w, 0.1), *extra], exact_terms=True)
        found.append((floor[w], floor.noisy_grads[w], floor.excess))
    assert_same_bits(*found)


def test_many_data_in_float16_have_a_floor():
    """Their sum of squares is beyond its range."""
    x = torch.linspace(0.5, 1, 70_000)[:, None]
    floors = []
    for dtype in (torch.float16, torch.float32):
        w = torch.ones(1, 1, dtype=dtype, requires_grad=True)
        torch.manual_seed(0)
        floor = LabelNoise([w], sigma=0.5)
        floor.update([NoisyTerm(x.to(dtype) @ w - x.to(dtype) + 1.0, 0.5)])
        floors.append(floor[w].float())
        assert float(floor.excess) == pytest.approx(0.75, abs=0.01)  # R = 4
    torch.testing.assert_close(floors[0], floors[1], rtol=0.05, atol=0)


def test_a_variance_of_one_sample_is_refused():
    w = torch.ones(1, requires_grad=True)
    with pytest.raises(ValueError, match="two or more"):
        exact_sampling_noise([w], w**2)


# What all residuals together say -----------------------------------------------------------


def term(residual, sigma, **options) -> NoisyTerm:
    return NoisyTerm(torch.as_tensor(residual, dtype=torch.float64), sigma, **options)


def test_excess_by_hand():
    # R = 4, N = 8: 1 - (1 - sqrt(2 / 8)) / 4
    twice = term(0.2 * torch.ones(8, 1), 0.1)
    assert float(excess([twice])) == pytest.approx(1 - 0.5 / 4)
    # with N = 24 of R = 1: (8 * 4 + 24) / 32 = 7 / 4, sqrt(2 / 32) = 1 / 4
    once = term(3 * torch.ones(12, 2), torch.full((12, 1), 3.0))
    assert float(excess([twice, once])) == pytest.approx(1 - (3 / 4) / (7 / 4))
    # data without an error do not count
    sigma = torch.cat([torch.full((8, 1), 0.1), torch.zeros(5, 1)])
    with_exact = term(torch.cat([0.2 * torch.ones(8, 1), 100 * torch.ones(5, 1)]), sigma)
    assert float(excess([with_exact])) == pytest.approx(1 - 0.5 / 4)


def test_excess_is_a_share():
    assert float(excess([term(torch.zeros(8, 1), 0.1)])) == 0  # fitted exactly
    assert float(excess([term(0.05 * torch.ones(8, 1), 0.1)])) == 0  # below half of what noise is
    assert float(excess([term(torch.full((8, 1), 1e3), 1e-3)])) == pytest.approx(1)
    assert excess([]) == 0
    assert float(excess([term(torch.full((8, 1), math.nan), 0.1)])) == 0
    assert float(excess([term(torch.full((2, 1), 0.1), 0.1)])) == 1  # two data allow for nothing


def test_errors_alone_have_an_excess_of_about_a_standard_error():
    """Mean over 2,000 draws of max(0, 1 - (1 - sqrt(2/N)) / R), R chi-squared / N, by quadrature.

    The tolerance is four standard errors.
    """
    from scipy.stats import chi2

    n, draws = 200, 2000
    rng = torch.Generator().manual_seed(0)
    noise = 0.3 * torch.randn(draws, n, 1, generator=rng, dtype=torch.float64)
    found = torch.stack([torch.as_tensor(excess([term(e, 0.3)])) for e in noise])
    allowed = 1 - math.sqrt(2 / n)
    expected = chi2(n).expect(lambda x: max(0.0, 1 - allowed * n / x))
    assert abs(float(found.mean()) - expected) < 4 * float(found.std()) / math.sqrt(draws)
    assert 0.8 * math.sqrt(2 / n) < expected < 1.2 * math.sqrt(2 / n)


def test_batches_and_terms_of_weight_0_have_no_excess():
    far = torch.full((8, 1), 10.0)
    assert excess([term(far, 0.1, population=9)]) == 0
    assert excess([term(far, 0.1, population=math.inf)]) == 0
    assert float(excess([term(far, 0.1, population=8)])) > 0.99  # all there is
    assert excess([term(far, 0.1, weight=0.0)]) == 0
    alone = excess([term(torch.full((8, 1), 0.2), 0.1)])
    assert excess([term(far, 0.1, weight=0.0), term(torch.full((8, 1), 0.2), 0.1)]) == alone


def test_a_trained_sigma_stays_out_of_the_excess():
    """And the floor can be copied."""
    net = network()
    sigma = nn.Parameter(torch.tensor(0.1))
    floor = LabelNoise(net.parameters())
    x, y = batch(0)
    floor.backward(net(x), y, sigma=sigma)
    assert not torch.as_tensor(floor.excess).requires_grad
    assert torch.equal(torch.as_tensor(copy.deepcopy(floor).excess), torch.as_tensor(floor.excess))


def test_other_losses_have_no_excess():
    far = torch.full((8, 1), 10.0)
    assert excess([term(far, 0.1, loss=huber_loss)]) == 0
    assert excess([term(far, 0.1), term(far, 0.1, loss=l1_loss)]) == 0


def test_a_label_floor_keeps_the_excess_of_its_last_call():
    net = network()
    floor = LabelNoise(net.parameters(), sigma=0.1, every=10)
    x, _ = batch(0)
    for size in (2.0, 1.0):  # also where it makes no draw
        prediction = net(x)
        target = (prediction + 0.1 * size).detach()
        floor.backward(prediction, target)
        allowed = 1 - math.sqrt(2 / target.numel())
        assert float(floor.excess) == pytest.approx(1 - allowed / size**2, rel=1e-4)
        assert not torch.as_tensor(floor.excess).requires_grad


def test_a_curve_is_fitted_to_within_its_error_and_no_further():
    """64 values of a curve whose quick part shows in no single entry of the gradient."""

    def fit(**options) -> tuple[float, float]:
        torch.manual_seed(0)
        x = torch.linspace(-1, 1, 64)[:, None]
        clean = torch.sin(3 * x) + 0.5 * torch.sin(9 * x)
        y = clean + 0.3 * torch.randn(x.shape)
        net = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh())
        net.append(nn.Linear(32, 1))
        optimizer = SNRAdam(net.parameters(), lr=1e-2, foreach=True, **{**LABEL_GATE, **options})
        floor = LabelNoise(net.parameters(), sigma=0.3)
        for _ in range(1500):
            optimizer.zero_grad()
            floor.backward(net(x), y)
            optimizer.step(floor=floor)
        with torch.no_grad():
            error = (net(x) - clean).norm() / clean.norm()
            return float(error), float(((net(x) - y) ** 2).mean() / 0.09)

    error, misfit = fit()
    constant, _ = fit(discrepancy=False)
    _, without_gate = fit(gate="none")
    assert error < 0.7 * constant
    assert 0.7 < misfit < 1.1
    assert without_gate < 0.7
