"""SNRAdam's options by the names and formulas of the authors' package (PRM), against loops."""

import math

import pytest
import torch
from torch import nn

from sciml_snr import SNRSOAP, Gate, NoisyLoss, SNRAdam
from tests.cases import assert_same_bits, through_a_file


def prm(shapes, gradients, *, mask, softness, reduction, lr=0.01, wd=0.01, alpha=1.0, eps=1e-8):
    """The published step, tensor by tensor and entry by entry, in Python floats.

    The masks are those of github.com/elonlit/PopRiskMinimization (README): ``snr`` is m^2 / (m^2 +
    softness alpha s + eps), ``soft`` d / (d + softness s + eps) with d = max(m^2 - alpha s, 0).
    """
    beta1, beta2, rho = 0.9, 0.999, 0.99
    found = []
    for k, shape in enumerate(shapes):
        size = math.prod(shape)
        w, m, v, s = ([0.5] * size, [0.0] * size, [0.0] * size, [0.0] * size)
        for t, step in enumerate(gradients, start=1):
            g = step[k].flatten().tolist()
            s = [rho * a + (1 - rho) * (b - c) ** 2 for a, b, c in zip(s, g, m, strict=True)]
            m = [beta1 * a + (1 - beta1) * b for a, b in zip(m, g, strict=True)]
            v = [beta2 * a + (1 - beta2) * b**2 for a, b in zip(v, g, strict=True)]
            squares = [(a / (1 - beta1**t)) ** 2 for a in m]
            floors = [a / (1 - rho**t) for a in s]
            if reduction == "per_tensor":
                squares = [sum(squares) / size] * size
                floors = [sum(floors) / size] * size
            for i in range(size):
                d = max(squares[i] - alpha * floors[i], 0.0)
                q = {
                    "snr": squares[i] / (squares[i] + softness * alpha * floors[i] + eps),
                    "soft": d / (d + softness * floors[i] + eps),
                    "hard": float(d > 0),
                }[mask]
                adam = m[i] / (1 - beta1**t) / (math.sqrt(v[i] / (1 - beta2**t)) + 1e-8)
                w[i] -= lr * (wd * w[i] + q * adam)
        found.append(torch.tensor(w, dtype=torch.float64).view(shape))
    return found


SHAPES = [(4, 3), (5,), ()]


def gradients(steps=12):
    generator = torch.Generator().manual_seed(0)
    drift = [torch.linspace(0, 1, max(math.prod(s), 1)).double().view(s) for s in SHAPES]
    return [
        [
            d + torch.randn(s, generator=generator, dtype=torch.float64)
            for d, s in zip(drift, SHAPES, strict=True)
        ]
        for _ in range(steps)
    ]


def trained(steps, optimizer_class=SNRAdam, scale=1.0, **options):
    params = [nn.Parameter(torch.full(s, 0.5, dtype=torch.float64)) for s in SHAPES]
    optimizer = optimizer_class(params, lr=0.01, weight_decay=0.01, **options)
    for step in steps:
        for p, g in zip(params, step, strict=True):
            p.grad = g.clone() * scale
        optimizer.step()
    return [p.detach() for p in params], optimizer


@pytest.mark.parametrize("reduction", ["none", "per_tensor"])
@pytest.mark.parametrize("softness", [0.0, 0.3, 10.0])
@pytest.mark.parametrize("mask", ["snr", "soft", "hard"])
def test_steps_are_those_of_prm(mask, softness, reduction):
    steps = gradients()
    gate = {"form": mask, "eps": 1e-8}
    rest = {"softness": softness, "reduction": reduction, "alpha": 0.9}  # at 1 the first step ties
    found, _ = trained(steps, gate=gate, **rest)
    expected = prm(SHAPES, steps, mask=mask, **rest)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_eps_stops_entries_of_small_gradients_and_0_does_not():
    steps = gradients(200)
    free, _ = trained(steps, gate="snr", scale=1e-6)
    stopped, _ = trained(steps, gate={"form": "snr", "eps": 1e-8}, scale=1e-6)
    decayed = 0.5 * (1 - 0.01 * 0.01) ** 200
    assert (free[0] - decayed).abs().max() > 0.1
    assert (stopped[0] - decayed).abs().max() < 1e-3


def test_softness_is_lambd():
    steps = gradients()
    by_name, optimizer = trained(steps, gate="snr", softness=3.0)
    other, _ = trained(steps, gate="snr", lambd=3.0)
    assert all(map(torch.equal, by_name, other))
    assert optimizer.param_groups[0]["lambd"] == 3.0
    groups = [{"params": [nn.Parameter(torch.ones(2))], "softness": 0.3}]
    assert SNRAdam(groups, lr=0.1).param_groups[0]["lambd"] == 0.3
    with pytest.raises(ValueError, match="another name of lambd"):
        trained(steps, softness=3.0, lambd=2.0)


def test_lambda_0_makes_the_soft_gate_the_hard_one():
    steps = gradients()
    soft, _ = trained(steps, gate="soft", softness=0.0, alpha=0.9)
    hard, _ = trained(steps, gate="hard", alpha=0.9)
    for a, b in zip(soft, hard, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("optimizer_class", [SNRAdam, SNRSOAP])
def test_per_tensor_has_one_q_a_tensor_and_goes_on_from_a_file(optimizer_class):
    steps = gradients(20)
    whole, optimizer = trained(steps, optimizer_class, gate="snr", reduction="per_tensor")
    stats = [optimizer.gate_stats()]
    assert 0 < stats[0].mean_q < 1
    assert stats[0].open_fraction * stats[0].numel in {0, 1, 5, 6, 12, 13, 17, 18}
    first, part = trained(steps[:9], optimizer_class, gate="snr", reduction="per_tensor")
    params = [nn.Parameter(p) for p in first]
    again = optimizer_class(params, lr=0.01, weight_decay=0.01, gate="snr", reduction="per_tensor")
    again.load_state_dict(through_a_file(part.state_dict()))
    for step in steps[9:]:
        for p, g in zip(params, step, strict=True):
            p.grad = g.clone()
        again.step()
    assert_same_bits([p.detach() for p in params], whole)


def test_per_tensor_beside_declared_noise_closes_on_noise_alone():
    torch.manual_seed(0)
    x = torch.randn(400, 6)
    weights = nn.Parameter(torch.zeros(6))
    noise = NoisyLoss(1.0)
    optimizer = SNRAdam([weights], lr=0.01, noise=noise, reduction="per_tensor")
    y = torch.randn(400)
    for _ in range(300):
        optimizer.zero_grad()
        noise(x @ weights, y).backward()
        optimizer.step()
    plain = torch.linalg.lstsq(x, y[:, None]).solution[:, 0]
    assert weights.detach().norm() < 0.5 * plain.norm()


def test_nonsense_is_refused():
    with pytest.raises(ValueError, match="reduction"):
        trained([], reduction="mean")
    with pytest.raises(ValueError, match="eps"):
        Gate("snr", eps=-1.0)
