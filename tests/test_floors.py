"""The floors estimate variances: against per-sample loops, over many draws, on three networks."""

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import huber_loss, l1_loss, mse_loss, smooth_l1_loss

from sciml_snr import (
    LabelNoise,
    NoisyTerm,
    SamplingNoise,
    StreamNoise,
    exact_label_noise,
    exact_sampling_noise,
)
from sciml_snr.noise import score_deviation

DRAWS = 1500
N = 12


class Sine(nn.Module):
    def forward(self, x):
        return torch.sin(30 * x)


def network(kind):
    torch.manual_seed(0)
    activation = Sine if kind == "siren" else nn.Tanh
    net = nn.Sequential(
        nn.Linear(1, 6), activation(), nn.Linear(6, 5), activation(), nn.Linear(5, 1)
    )
    return net.double()


def residual(net, kind, x):
    """(n, 1): model minus data; for the PINN a measured source term of u'' + k u, k a parameter."""
    if kind != "pinn":
        return net(x) - torch.cos(2 * x)
    x = x.clone().requires_grad_()
    u = net(x)
    (slope,) = torch.autograd.grad(u.sum(), x, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), x, create_graph=True)
    return curvature + net.stiffness * u - torch.cos(2 * x)


KINDS = pytest.mark.parametrize("kind", ["mlp", "pinn", "siren"])


@pytest.fixture
def case(kind):
    """Network, parameters, residuals (small beside sigma, so that no misfit lowers the floor)."""
    net = network(kind)
    if kind == "pinn":
        net.stiffness = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))
    x = torch.linspace(-1, 1, N, dtype=torch.float64)[:, None]
    return net, list(net.parameters()), lambda: residual(net, kind, x)


SIGMA = torch.linspace(20.0, 60.0, N, dtype=torch.float64)[:, None]


def per_sample(outputs, params):
    """One row per output: all its gradients, flat."""
    rows = []
    for output in outputs.flatten():
        grads = torch.autograd.grad(output, params, retain_graph=True, allow_unused=True)
        rows.append(
            torch.cat(
                [
                    (torch.zeros_like(p) if g is None else g).flatten()
                    for g, p in zip(grads, params, strict=True)
                ]
            )
        )
    return torch.stack(rows)


def flat(floor, params):
    return torch.cat([floor[p].flatten() for p in params])


def assert_unbiased(draws, expected):
    """Means of (draws, parameters) within standard errors of what is expected.

    Of the sum over all parameters and of ten random positive combinations: 3. A parameter alone:
    4.5, since there are some eighty of them and the squares' tails are heavy.
    """
    rng = torch.Generator().manual_seed(1)
    mixes = torch.rand(10, draws.shape[1], generator=rng, dtype=draws.dtype)
    mixes = torch.cat([torch.ones(1, draws.shape[1], dtype=draws.dtype), mixes])
    scale = draws.mean(0).clamp_min(1e-300)
    for values, truth, errors in (
        (draws @ (mixes / scale).T, (mixes / scale) @ expected, 3),
        (draws, expected, 4.5),
    ):
        standard_error = values.std(0) / len(values) ** 0.5
        assert ((values.mean(0) - truth).abs() <= errors * standard_error + 1e-12 * truth).all()


def single_draws(floor, params, draw):
    found = []
    for _ in range(DRAWS):
        draw()
        found.append(flat(floor, params))
    return torch.stack(found)


@KINDS
def test_label_floor_is_unbiased(case):
    _, params, residuals = case
    r = residuals()
    floor = LabelNoise(params, rho=0.0)
    found = single_draws(floor, params, lambda: floor.update([NoisyTerm(r, SIGMA, 0.7)]))
    gradients = per_sample(r, params)
    assert_unbiased(found, ((2 * 0.7 / N * SIGMA * gradients) ** 2).sum(0))


@KINDS
@pytest.mark.parametrize("population", [math.inf, 30])
def test_probe_is_unbiased(case, population):
    """Against the loop, and its formula with plain signs: (E h^2 - mean^2 / b) b / (b - 1)."""
    _, params, residuals = case
    losses = residuals().square().squeeze(1)
    g = per_sample(losses, params)
    variance = (g - g.mean(0)).square().sum(0) / (N * (N - 1))
    signs = torch.randint(0, 2, (20_000, N)).double() * 2 - 1
    plain = ((signs @ g / N).square().mean(0) - g.mean(0) ** 2 / N) * N / (N - 1)
    torch.testing.assert_close(plain, variance, rtol=0.2, atol=0.02 * variance.max().item())
    floor = SamplingNoise(params, rho=0.0, population=population, beta1=0.5)

    found = single_draws(floor, params, lambda: floor.update(losses))
    assert_unbiased(found, (1 - N / population) * (1 - 0.5) / (1 + 0.5) * variance)


@KINDS
def test_stream_is_unbiased_for_the_variance_of_a_batch(case):
    """Batches of one sample, drawn anew at fixed weights; averages far apart."""
    _, params, residuals = case
    losses = residuals().square().squeeze(1)
    rows = per_sample(losses, params)
    beta1 = 0.5
    floor = StreamNoise(params, rho=0.0, beta1=beta1)
    found = []
    for step in range(20 * DRAWS // 3):
        row = rows[torch.randint(N, ())]
        split = row.split([p.numel() for p in params])
        for p, g in zip(params, split, strict=True):
            p.grad = g.view_as(p).clone()
        floor.update()
        if step % 10 == 9:  # 0.5^10: nothing is left of the batches before
            found.append(flat(floor, params))
    assert_unbiased(torch.stack(found), rows.var(0, correction=0))


@KINDS
def test_exact_floors_are_the_loops(case):
    _, params, residuals = case
    r = residuals()
    g = per_sample(r, params)
    terms = [NoisyTerm(r, SIGMA, 0.7), NoisyTerm(3 * r[:4], 500.0)]
    expected = ((1.4 / N * SIGMA * g) ** 2).sum(0) + ((2 / 4 * 500 * 3 * g[:4]) ** 2).sum(0)
    torch.testing.assert_close(flat(exact_label_noise(params, terms), params), expected)
    losses = r.square().squeeze(1)
    g = per_sample(losses, params)
    expected = (g - g.mean(0)).square().sum(0) / (N * (N - 1))
    torch.testing.assert_close(flat(exact_sampling_noise(params, losses), params), expected)


def test_label_floor_through_third_derivatives():
    net = network("mlp")
    params = list(net.parameters())
    x = torch.linspace(-1, 1, N, dtype=torch.float64)[:, None].requires_grad_()
    u = net(x)
    for _ in range(3):
        (u,) = torch.autograd.grad(u.sum(), x, create_graph=True)
    expected = ((2 / N * SIGMA * per_sample(u, params)) ** 2).sum(0)
    found = flat(exact_label_noise(params, [NoisyTerm(u, SIGMA)]), params)
    torch.testing.assert_close(found, expected)


# What the optimizer averages ---------------------------------------------------------------------


@pytest.mark.parametrize("population", [None, 40, math.inf])
def test_first_moment_varies_as_the_floor_says(population):
    """Labels of a line drawn many times; each time many batches of 8, and the last first moment."""
    torch.manual_seed(0)
    beta1, b, trials = 0.9, 8, 3000
    pool = 8 if population is None else 40
    x = torch.linspace(0.5, 1.5, pool)
    moment = torch.zeros(trials)
    noise = torch.randn(trials, pool)
    for _ in range(80):
        if population == math.inf:
            noise = torch.randn(trials, pool)
        batch = torch.rand(trials, pool).argsort(1)[:, :b]
        gradient = -2 * (x[batch] * noise.gather(1, batch)).mean(1)
        moment = beta1 * moment + (1 - beta1) * gradient
    w = torch.zeros((), requires_grad=True)
    variances = []
    for _ in range(400):
        rows = torch.randperm(pool)[:b]
        term = NoisyTerm(w * x[rows], 1.0, 1.0, population)
        variances.append(exact_label_noise([w], [term], beta1)[w])
    expected = torch.stack(variances).mean()
    # The standard error of a variance from 3,000 normal draws is 2.6 %.
    assert moment.var() == pytest.approx(expected.item(), rel=0.08)


# Other losses ----------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [0.2, 1.0, 3.0])
@pytest.mark.parametrize("loss", [mse_loss, l1_loss, huber_loss, smooth_l1_loss])
def test_score_has_the_deviation_of_many_draws(loss, sigma):
    torch.manual_seed(0)
    errors = (sigma * torch.randn(200_000, dtype=torch.float64)).requires_grad_()
    (score,) = torch.autograd.grad(loss(errors, torch.zeros_like(errors)), errors)
    expected = (score * len(errors)).square().mean().sqrt().item()
    found = score_deviation(loss, torch.tensor(sigma, dtype=torch.float64)).item()
    assert found == pytest.approx(expected, rel=0.02)


def test_floor_of_huber_is_the_variance_of_its_gradient():
    """At the truth, over many draws of the data."""
    torch.manual_seed(0)
    w = torch.tensor([1.0, -0.5], requires_grad=True)
    x = torch.randn(16, 2)
    draws = torch.stack(
        [
            torch.autograd.grad(huber_loss(x @ w, (x @ w).detach() + 2 * torch.randn(16)), w)[0]
            for _ in range(3000)
        ]
    )
    residual = x @ w - (x @ w).detach()
    floor = exact_label_noise([w], [NoisyTerm(residual, 2.0, loss=huber_loss)])[w]
    torch.testing.assert_close(floor, draws.var(0), rtol=0.1, atol=0)


@pytest.mark.parametrize(
    "loss",
    [
        lambda p, t: mse_loss(p, t, reduction="sum"),
        lambda p, t: mse_loss(p, t, reduction="none"),
        lambda p, t: ((p - t) / t.abs().clamp_min(0.1)).square().mean(),
        lambda p, t: mse_loss(p, t).sqrt(),
    ],
    ids=["sum", "none", "relative", "root"],
)
def test_losses_without_a_floor_are_refused(loss):
    with pytest.raises(ValueError, match="no label floor for the loss"):
        LabelNoise([torch.zeros(1, requires_grad=True)], sigma=1.0, loss=loss)


# State -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["label", "sampling", "stream"])
def test_continues_from_its_state_with_the_same_bits(kind):
    def steps(floor, w, first, last):
        for step in range(first, last):
            torch.manual_seed(step)
            x = torch.randn(6)
            w.grad = None
            if kind == "label":
                floor.backward(w * x, x)
            else:
                losses = (w * x - 1) ** 2
                floor.backward(losses) if kind == "sampling" else losses.mean().backward()
            if kind == "stream":
                floor.update()

    def make(w):
        if kind == "label":
            return LabelNoise([w], sigma=0.1, every=2)
        return SamplingNoise([w], every=2) if kind == "sampling" else StreamNoise([w])

    w = torch.tensor(0.5, requires_grad=True)
    through, first, second = make(w), make(w), make(w)
    steps(through, w, 0, 9)
    steps(first, w, 0, 4)
    second.load_state_dict(first.state_dict())
    steps(second, w, 4, 9)
    assert second[w] == through[w] > 0


def test_draws_are_those_of_the_last_call():
    w = torch.ones(2, requires_grad=True)
    floor = LabelNoise([w], sigma=0.1, every=3)
    drawn = []
    for _ in range(6):
        floor.backward((w * torch.ones(4, 2)), torch.ones(4, 2))
        drawn.append(bool(floor.draws))
    assert drawn == [True, False, False, True, False, False]


@pytest.mark.parametrize("losses", [torch.zeros(()), torch.zeros(1), torch.zeros(3, 1)])
def test_the_probe_wants_one_loss_per_sample(losses):
    with pytest.raises(ValueError, match="one loss per sample"):
        SamplingNoise([torch.zeros(1, requires_grad=True)]).update(losses)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda w: LabelNoise([w], beta1=1.0), "beta1"),
        (lambda w: SamplingNoise([w], beta1=-0.1), "beta1"),
        (lambda w: StreamNoise([w], beta1=1.0), "beta1"),
        (lambda w: SamplingNoise([w], population=0), "population"),
    ],
)
def test_options_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make(torch.zeros(1, requires_grad=True))
