"""The prior's width by the evidence, steps to the maximum a posteriori, and the end."""

import math

import pytest
import torch
from torch import nn

from sciml_snr import NoisyRows, SNRGaussNewton
from sciml_snr.evidence import Posterior
from sciml_snr.jacobian import System
from sciml_snr.spectrum import Exact, truncated
from tests.cases import assert_same_bits, network
from tests.test_gauss_newton import SIGMA, data, rows


def linear(seed=0, n=120, weights=40, width=0.5, sigma=1.0):
    """A design, weights from a prior, and noisy values."""
    rng = torch.Generator().manual_seed(seed)
    design = torch.randn(n, weights, generator=rng, dtype=torch.float64)
    truth = width * torch.randn(weights, 1, generator=rng, dtype=torch.float64)
    noise = sigma * torch.randn(n, 1, generator=rng, dtype=torch.float64)
    return design, design @ truth + noise, truth


def posterior_of(design, y, weights=None):
    weights = torch.zeros(design.shape[1], dtype=torch.float64) if weights is None else weights
    values = (design @ weights) - y.flatten()
    system = System(values, torch.ones(len(y), dtype=torch.float64), design)
    return Posterior(system, Exact(design), weights)


def test_the_prior_is_as_wide_as_the_weights_are():
    """Mean over 40 draws of log s within four standard errors of the truth's; grid of 26 %."""
    found = [math.log(posterior_of(*linear(seed)[:2]).variance) for seed in range(40)]
    mean = sum(found) / len(found)
    spread = math.sqrt(sum((x - mean) ** 2 for x in found) / (len(found) - 1))
    assert abs(mean - math.log(0.25)) < 4 * spread / math.sqrt(len(found)) + 0.1


def test_the_evidence_is_that_of_the_normal_distribution():
    """Differences between widths, and at the maximum a posteriori, beside the formula itself."""
    design, y, _ = linear()
    one = posterior_of(design, y)
    totals = []
    for s in (one.variance, 2 * one.variance, one.variance / 2):
        covariance = torch.eye(len(y), dtype=torch.float64) + s * design @ design.T
        normal = torch.distributions.MultivariateNormal(torch.zeros(len(y)).double(), covariance)
        totals.append(-2 * float(normal.log_prob(y.flatten())))
    assert totals[0] == min(totals)
    step, _ = one.step(0.0)
    at = posterior_of(design, y, step)
    constant = len(y) * math.log(2 * math.pi)
    assert at.variance == one.variance
    assert at.evidence + constant == pytest.approx(totals[0])


def test_the_step_is_to_the_maximum_a_posteriori_wherever_it_begins():
    design, y, _ = linear()
    one = posterior_of(design, y)
    identity = torch.eye(40, dtype=torch.float64)
    normal = design.T @ design + identity / one.variance
    expected = torch.linalg.solve(normal, design.T @ y).flatten()
    torch.testing.assert_close(one.step(0.0)[0], expected)
    start = torch.linspace(-1, 1, 40, dtype=torch.float64)
    other = posterior_of(design, y, start)
    torch.testing.assert_close(start + other.step(0.0)[0], expected)
    damped = torch.linalg.solve(normal + 3 * identity, design.T @ y).flatten()
    torch.testing.assert_close(one.step(3.0)[0], damped)


def test_what_is_memorized_is_the_trace_of_the_hat_matrix():
    design, y, _ = linear()
    net = nn.Linear(40, 1, bias=False, dtype=torch.float64)
    nn.init.zeros_(net.weight)
    optimizer = SNRGaussNewton(net, probes=400, damping=1e-8)
    optimizer.step(lambda net: [NoisyRows(net(design) - y, 1.0)])
    one = posterior_of(design, y)
    share = float(one.gate.sum()) / len(y)
    assert optimizer.memorized == pytest.approx(share, rel=0.05)
    assert optimizer.stats().open_fraction == pytest.approx(share)


def test_pure_noise_leaves_next_to_nothing_in_the_fit():
    shares = []
    for seed in range(10):
        design, _, _ = linear(seed)
        noise = torch.randn(120, 1, generator=torch.Generator().manual_seed(seed)).double()
        shares.append(float(posterior_of(design, noise).gate.sum()) / 120)
    assert sum(shares) / 10 < 0.03  # least squares: 0.33


def test_few_eigenvectors_give_the_same_posterior():
    design, noise, _ = linear(n=400, weights=300, width=0.0)
    design = design * torch.exp(-0.06 * torch.arange(300, dtype=torch.float64))
    start = torch.linspace(-1, 1, 300, dtype=torch.float64)
    y = noise + design @ start.flip(0)[:, None]
    system = System((design @ start) - y.flatten(), torch.ones(400).double(), design)
    every = Posterior(system, Exact(design), start)
    some = Posterior(system, truncated(design, 0.01), start)
    assert some.variance == pytest.approx(every.variance) and len(some.values) < 200
    change = design @ (some.step(0.1)[0] - every.step(0.1)[0])
    assert float(change.norm() / (design @ every.step(0.1)[0]).norm()) < 0.01


def test_it_ends_at_the_most_evidence_and_stays_there():
    net = network(torch.float64)
    x, y, clean = data()
    optimizer = SNRGaussNewton(net)
    while not optimizer.done:
        optimizer.step(lambda net: rows(net, x, y, equation=False))
    best = [optimizer.state[p]["best"] for p in net.parameters()]
    ended = [p.detach().clone() for p in net.parameters()]
    assert_same_bits(ended, best)
    optimizer.step(lambda net: rows(net, x, y, equation=False))
    assert_same_bits([p.detach() for p in net.parameters()], ended)
    assert float((net(x).detach() - clean).square().mean().sqrt()) < SIGMA
    assert 0 < optimizer.memorized < 0.6 and optimizer.steps < 100


def test_a_wide_unit_leaves_unknown_coefficients_to_the_data():
    """A coefficient of 200, far outside a prior that fits the weights, is found all the same."""
    design, y, _ = linear(n=200)
    rng = torch.Generator().manual_seed(1)
    column = torch.randn(200, 1, generator=rng, dtype=torch.float64)
    errors = []
    for unit in (1.0, 1000.0):
        net = nn.Linear(40, 1, bias=False, dtype=torch.float64)
        unknown = nn.Parameter(torch.zeros((), dtype=torch.float64))
        groups = [{"params": list(net.parameters())}, {"params": [unknown], "unit": unit}]
        optimizer = SNRGaussNewton(groups)
        for _ in range(30):

            def fit(net=net, unknown=unknown):
                return [NoisyRows(net(design) + (unknown - 200) * column - y, 1.0)]

            optimizer.step(fit)
        errors.append(abs(float(unknown.detach()) - 200))
    assert errors[1] < 0.3


@pytest.mark.parametrize(
    ("gate", "equation", "prior"),
    [
        ("auto", False, True),
        ("auto", True, False),
        ("evidence", True, True),
        ("stein", False, False),
    ],
)
def test_the_prior_is_there_where_all_rows_are_noisy(gate, equation, prior):
    net = network(torch.float64)
    x, y, _ = data()
    optimizer = SNRGaussNewton(net, gate=gate)
    optimizer.step(lambda net: rows(net, x, y, equation=equation))
    assert ("best" in optimizer.state[net[0].weight]) == prior


def test_without_noisy_rows_there_is_no_prior():
    net = network(torch.float64)
    x, _, clean = data()
    optimizer = SNRGaussNewton(net)
    for _ in range(40):
        optimizer.step(lambda net: [net(x) - clean])
    assert float((net(x).detach() - clean).square().mean().sqrt()) < 1e-3
