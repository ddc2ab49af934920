"""Exact terms beside noisy data: what the gate closes follows them where the data do not mind."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from sciml_snr import SNRSOAP, LabelNoise, NoiseFloor, NoisyTerm, SNRAdam
from tests.cases import (
    FLOATS,
    assert_same_bits,
    batch,
    gradients,
    network,
    parameters,
    snapshot,
    through_a_file,
)

OPTIMIZERS = pytest.mark.parametrize("cls", [SNRAdam, SNRSOAP])
CLOSING = {"gate": "stein", "z": 2.0}


class Given(NoiseFloor):
    """A floor with the draws and the noisy terms' gradients that it is told."""

    def tell(self, draws, noisy=None) -> None:
        self._is_due()
        self._average(dict(zip(self.params, draws, strict=True)))
        self.noisy_grads = {} if noisy is None else dict(zip(self.params, noisy, strict=True))


def feed(optimizer, floor, steps: int, start: int = 0, exact_terms: bool = True) -> None:
    """Gradients, draws as large, and noisy terms' gradients, anew in every step."""
    params = floor.params
    for t in range(start, start + steps):
        for p, g in zip(params, gradients(params, t), strict=True):
            p.grad = g
        noisy = gradients(params, 2000 + t) if exact_terms else None
        floor.tell(gradients(params, 1000 + t), noisy)
        optimizer.step(floor=floor)


def exact_and_noisy(cls, dtype=torch.float32, **options):
    params = parameters(dtype)
    return cls(params, lr=0.01, **{**CLOSING, **options}), Given(params)


def by_hand(ws, steps, *, lr, betas, eps, z, rho, maximize=False):
    """The module's formulas for a list of numbers: ``steps`` of (gradient, draw, noisy) each."""
    (beta1, beta2), n = betas, len(ws)
    m, v, s, md = [0.0] * n, [0.0] * n, [0.0] * n, [0.0] * n
    for t, (grads, draws, noisy) in enumerate(steps, start=1):
        closed = []
        for k in range(n):
            g, d = (-grads[k], -noisy[k]) if maximize else (grads[k], noisy[k])
            m[k] = beta1 * m[k] + (1 - beta1) * g
            v[k] = beta2 * v[k] + (1 - beta2) * g * g
            s[k] = rho * s[k] + (1 - rho) * draws[k] ** 2
            md[k] = beta1 * md[k] + (1 - beta1) * d
            m_hat, d_hat = m[k] / (1 - beta1**t), md[k] / (1 - beta1**t)
            scale = 1 / (math.sqrt(v[k] / (1 - beta2**t)) + eps)
            q = max(0.0, 1 - z * z * s[k] / (1 - rho**t) / (m_hat**2 + 1e-300))
            ws[k] -= lr * q * scale * m_hat
            closed.append(((1 - q) * scale, m_hat - d_hat, d_hat))
        across = sum(w * x * d for w, x, d in closed)
        along = sum(w * d * d for w, _, d in closed)
        c = across / along
        moves = [w * (x - c * d) for w, x, d in closed]
        longest = max(1.0, (1 - beta1) / math.sqrt(1 - beta2))
        shorter = min(1.0, longest / max(map(abs, moves)))
        for k, move in enumerate(moves):
            ws[k] -= lr * shorter * move
    return ws


@pytest.mark.parametrize("betas", [(0.8, 0.95), (0.9, 0.999)], ids=["short", "default"])
@pytest.mark.parametrize("foreach", [False, True], ids=["single", "foreach"])
@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("sign", [1.0, -1.0], ids=["agreeing", "conflicting"])
@OPTIMIZERS
def test_follows_the_formulas(cls, sign, maximize, foreach, betas):
    rng = torch.Generator().manual_seed(1)
    steps = []
    for _ in range(12):
        exact = torch.randn(4, generator=rng, dtype=torch.float64) + 1
        noisy = sign * exact * torch.rand(4, generator=rng, dtype=torch.float64)
        steps.append([exact + noisy, torch.randn(4, generator=rng, dtype=torch.float64), noisy])
    options = {"lr": 0.01, "betas": betas, "eps": 1e-3, "z": 1.0, "rho": 0.9}
    # Two vectors, which have no basis in SNRSOAP either: c is of all parameters together.
    params = [nn.Parameter(torch.ones(2, dtype=torch.float64)) for _ in range(2)]
    optimizer = cls(params, gate="stein", maximize=maximize, foreach=foreach, **options)
    floor = Given(params, rho=0.9, beta1=betas[0])
    for grad, draw, noisy in steps:
        params[0].grad, params[1].grad = grad[:2].clone(), grad[2:].clone()
        floor.tell([draw[:2], draw[2:]], [noisy[:2], noisy[2:]])
        optimizer.step(floor=floor)
    numbers = [[row.tolist() for row in step] for step in steps]
    expected = by_hand([1.0] * 4, numbers, maximize=maximize, **options)
    torch.testing.assert_close(torch.cat(params).tolist(), expected, rtol=1e-10, atol=1e-12)


@OPTIMIZERS
def test_a_closed_gate_leaves_the_noisy_loss_and_lowers_the_exact_one(cls):
    """To first order, on one step from rest; conflicting, agreeing and orthogonal terms alike."""
    for seed in range(20):
        net = network(torch.float64, seed)
        x, y = batch(seed, dtype=torch.float64)
        inside = batch(100 + seed, dtype=torch.float64)[0]

        def losses(net=net, x=x, y=y, inside=inside):
            return mse_loss(net(x), y), (net(inside) ** 2).mean()

        optimizer = cls(net.parameters(), lr=0.0, gate="stein", z=1e6)
        floor = LabelNoise(net.parameters(), sigma=0.1)
        noisy, exact = losses()
        for t in range(10):  # one draw may happen to be 0
            optimizer.param_groups[0]["lr"] = 1e-6 if t == 9 else 0.0
            optimizer.zero_grad()
            floor.backward(net(x), y, (net(inside) ** 2).mean())
            optimizer.step(floor=floor)
        assert optimizer.gate_stats().open_fraction == 0
        noisy_after, exact_after = losses()
        assert exact_after < exact
        assert abs(noisy_after - noisy) < 1e-3 * (exact - exact_after)


@OPTIMIZERS
def test_an_open_gate_leaves_nothing_to_follow(cls):
    followed, floor = exact_and_noisy(cls, z=0.0)
    feed(followed, floor, 5)
    adam, bare = exact_and_noisy(cls, z=0.0)
    feed(adam, bare, 5, exact_terms=False)
    torch.testing.assert_close(floor.params, bare.params)


def test_ungated_groups_and_warm_up_take_no_part():
    gated, free = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    groups = [{"params": [gated]}, {"params": [free], "gate": "none"}]
    optimizer, floor = (
        SNRAdam(groups, lr=0.1, gate="stein", z=2.0, warmup_steps=3),
        Given([gated, free]),
    )
    lone = nn.Parameter(torch.ones(3))
    adam = torch.optim.AdamW([lone], lr=0.1, weight_decay=0)
    for t in range(6):
        draw, noisy = torch.full((3,), 100.0), torch.full((3,), -0.5)
        gated.grad, free.grad, lone.grad = (torch.full((3,), 1.0 + t) for _ in range(3))
        floor.tell([draw, draw], [noisy, noisy])
        optimizer.step(floor=floor)
        adam.step()
        assert_same_bits(free.data, lone.data)
        assert torch.equal(gated, lone) == (t < 3)
    assert "exp_avg_noisy" not in optimizer.state[free]


@pytest.mark.parametrize("dtype", [*FLOATS, torch.complex64], ids=str)
@OPTIMIZERS
def test_continues_from_a_file_with_the_same_bits(cls, dtype):
    straight, floor = exact_and_noisy(cls, dtype)
    feed(straight, floor, 15)
    first, half = exact_and_noisy(cls, dtype)
    feed(first, half, 8)
    second, other = exact_and_noisy(cls, dtype)
    for p, q in zip(other.params, half.params, strict=True):
        p.data.copy_(q.data)
    second.load_state_dict(through_a_file(first.state_dict()))
    other.load_state_dict(through_a_file(half.state_dict()))
    feed(second, other, 7, start=8)
    assert_same_bits(snapshot(second), snapshot(straight))


@OPTIMIZERS
def test_16_bit_parameters_move_by_float32_arithmetic(cls):
    half, floor = exact_and_noisy(cls, torch.bfloat16)
    feed(half, floor, 1)
    state = half.state[floor.params[1]]["exp_avg_noisy"]
    assert state.dtype == torch.float32
    wide = copy.deepcopy(parameters(torch.bfloat16))
    wide = [nn.Parameter(p.data.float()) for p in wide]
    optimizer, other = cls(wide, lr=0.01, **CLOSING), Given(wide)
    for p, g in zip(wide, gradients(floor.params, 0), strict=True):
        p.grad = g.float()
    draws, noisy = (gradients(floor.params, t) for t in (1000, 2000))
    other.tell([d.float() for d in draws], [g.float() for g in noisy])
    optimizer.step(floor=other)
    assert_same_bits([p.data for p in floor.params], [p.data.bfloat16() for p in wide])


def test_one_rule_in_every_basis():
    """In SNRSOAP's coordinates the same, on gradients turned there by hand."""
    rng = torch.Generator().manual_seed(0)
    rows, cols = (
        torch.linalg.qr(torch.randn(n, n, generator=rng, dtype=torch.float64))[0] for n in (4, 3)
    )
    w = nn.Parameter(torch.randn(4, 3, generator=rng, dtype=torch.float64))
    turned = nn.Parameter(rows.T @ w.data @ cols)
    options = {"lr": 0.01, "gate": "stein", "z": 1.0}
    soap, adam = SNRSOAP([w], precondition_frequency=10**6, **options), SNRAdam([turned], **options)
    floors = Given([w]), Given([turned])
    for t in range(8):
        grad, draw, noisy = (
            torch.randn(4, 3, generator=rng, dtype=torch.float64) for _ in range(3)
        )
        w.grad, turned.grad = rows @ grad @ cols.T, grad
        floors[0].tell([rows @ draw @ cols.T], [rows @ noisy @ cols.T])
        floors[1].tell([draw], [noisy])
        if t == 0:  # as if these were the eigenvectors
            soap._init_state(w, soap.state[w])
            soap.state[w]["step"].fill_(1)
            soap.state[w].update(row_basis=rows, col_basis=cols)
            adam._init_state(turned, adam.state[turned])
            adam.state[turned]["step"].fill_(1)
        soap.step(floor=floors[0])
        adam.step(floor=floors[1])
    torch.testing.assert_close(w.data, rows @ turned.data @ cols.T)


@OPTIMIZERS
def test_noisy_gradient_that_is_not_finite_is_refused_and_changes_nothing(cls):
    optimizer, floor = exact_and_noisy(cls)
    feed(optimizer, floor, 3)
    before = snapshot(optimizer)
    floor.noisy_grads[floor.params[1]] = torch.full((5,), math.nan)
    with pytest.raises(FloatingPointError, match="noisy terms' gradient of parameter 1"):
        optimizer.step(floor=floor)
    assert_same_bits(snapshot(optimizer), before)


def linear_problem() -> tuple[nn.Linear, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    net = nn.Linear(3, 1).double()
    x = torch.randn(20, 3, dtype=torch.float64)
    return net, x, x[:, :1] + torch.randn(20, 1, dtype=torch.float64), x**2


@pytest.mark.parametrize("every", [1, 3])
def test_noisy_gradients_are_those_of_the_noisy_terms(every):
    net, x, y, z = linear_problem()
    floor = LabelNoise(net.parameters(), sigma=1.0, every=every)
    params = list(net.parameters())
    for _ in range(4):
        net.zero_grad()
        expected = torch.autograd.grad(mse_loss(net(x), y), params)
        floor.backward(net(x), y, (net(z) ** 2).mean())
        torch.testing.assert_close([floor.noisy_grads[p] for p in params], list(expected))
        total = torch.autograd.grad(mse_loss(net(x), y) + (net(z) ** 2).mean(), params)
        torch.testing.assert_close([p.grad for p in params], list(total))
    floor.backward(net(x), y)
    assert not floor.noisy_grads


def test_the_equation_finishes_where_a_closed_gate_would_stop_it():
    """A line through noisy points, and an exact equation on what the data leave free.

    w is measured with a large error along (1, 1), and exactly equal to 2 along (1, -1). The data's
    error is large against the equation's pull in both coordinates, which mix the two.
    """
    along = torch.tensor([[1.0, 1.0]], dtype=torch.float64)
    across = torch.tensor([[1.0, -1.0]], dtype=torch.float64)
    ends = {}
    for exact_terms in (False, True):
        w = nn.Parameter(torch.zeros(2, 1, dtype=torch.float64))
        optimizer = SNRAdam([w], lr=3e-2, gate="stein", z=2.0)
        floor = LabelNoise([w], sigma=30.0)
        torch.manual_seed(0)
        for _ in range(3000):
            optimizer.zero_grad()
            equation = ((across @ w - 2) ** 2).sum()
            floor.backward(along @ w, torch.tensor([[20.0]], dtype=torch.float64), equation)
            if not exact_terms:
                floor.noisy_grads = {}
            optimizer.step(floor=floor)
        ends[exact_terms] = (across @ w).item(), (along @ w).item()
    assert abs(ends[False][0] - 2) > 1  # the gate was shut from the start
    assert abs(ends[True][0] - 2) < 1e-2
    assert abs(ends[True][1]) < 1  # within 30 of nothing: the measured 20 is no signal


def along_and_across(others: list[dict], steps: int = 1500) -> tuple[float, float]:
    """The problem above, with further groups of one idle number each."""
    along, across = (torch.tensor([[1.0, k]], dtype=torch.float64) for k in (1.0, -1.0))
    w = nn.Parameter(torch.zeros(2, 1, dtype=torch.float64))
    idle = [nn.Parameter(torch.ones(1, dtype=torch.float64)) for _ in others]
    groups = [{"params": [w]}, *({"params": [p], **o} for p, o in zip(idle, others, strict=True))]
    optimizer = SNRAdam(groups, lr=3e-2, gate="stein", z=2.0)
    floor = LabelNoise([w, *idle], sigma=30.0)
    torch.manual_seed(0)
    for _ in range(steps):
        optimizer.zero_grad()
        equation = ((across @ w - 2) ** 2).sum() + sum(((p - 1) ** 2).sum() for p in idle)
        floor.backward(along @ w, torch.tensor([[20.0]], dtype=torch.float64), equation)
        optimizer.step(floor=floor)
    return (across @ w).item(), (along @ w).item()


@pytest.mark.parametrize("other", [{"lr": 0.0}, {"lr": 3e-5}, {"lr": 1e-5, "gate": "none"}])
def test_a_slow_group_does_not_slow_the_others(other):
    assert along_and_across([other]) == pytest.approx(along_and_across([]), rel=1e-6, abs=1e-6)


def test_groups_with_learning_rates_of_their_own_keep_the_noisy_loss():
    """c is common to all groups, so that the whole move is along the level set."""
    torch.manual_seed(0)
    params = [nn.Parameter(torch.randn(3, dtype=torch.float64)) for _ in range(2)]
    groups = [{"params": [params[0]], "lr": 1e-2}, {"params": [params[1]], "lr": 1e-4}]
    optimizer, floor = SNRAdam(groups, gate="stein", z=1e3), Given(params)
    before = [p.detach().clone() for p in params]
    noisy = [torch.randn(3, dtype=torch.float64) for _ in params]
    for p, g in zip(params, noisy, strict=True):
        p.grad = g + torch.randn(3, dtype=torch.float64)
    floor.tell([torch.ones(3, dtype=torch.float64)] * 2, noisy)
    optimizer.step(floor=floor)
    moves = [p.detach() - q for p, q in zip(params, before, strict=True)]
    change = sum(float(m.dot(g)) for m, g in zip(moves, noisy, strict=True))
    assert all(m.abs().max() > 1e-6 for m in moves)
    assert abs(change) < 1e-12


@OPTIMIZERS
def test_the_noisy_share_begins_anew_after_steps_without_exact_terms(cls):
    optimizer, floor = exact_and_noisy(cls)
    feed(optimizer, floor, 5)
    feed(optimizer, floor, 5, start=5, exact_terms=False)
    assert all("exp_avg_noisy" not in optimizer.state[p] for p in floor.params)
    feed(optimizer, floor, 1, start=10)
    started = 1 - 0.9**11
    expected = [g * started for g in gradients(floor.params, 2010)]
    torch.testing.assert_close(
        [optimizer.state[p]["exp_avg_noisy"] for p in floor.params], expected
    )


def test_a_parameter_that_leaves_the_noisy_terms_forgets_them():
    optimizer, floor = exact_and_noisy(SNRAdam)
    feed(optimizer, floor, 5)
    p = floor.params[1]
    before = optimizer.state[p]["exp_avg_noisy"].clone()
    for q, g in zip(floor.params, gradients(floor.params, 5), strict=True):
        q.grad = g
    floor.tell(gradients(floor.params, 1005), gradients(floor.params, 2005))
    del floor.noisy_grads[p]
    optimizer.step(floor=floor)
    torch.testing.assert_close(optimizer.state[p]["exp_avg_noisy"], 0.9 * before)


@OPTIMIZERS
def test_what_a_floor_does_not_keep_has_no_exact_terms(cls):
    """All of its gradient would count as exact, and the gate would hold nothing back."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))
    x, y = torch.randn(20, 2), torch.randn(20, 1)
    optimizer = cls(net.parameters(), lr=1e-2, gate="hard", alpha=1e12)  # nothing passes
    floor = LabelNoise(net[2].parameters(), sigma=0.1)
    before = net[0].weight.detach().clone()
    for _ in range(5):
        optimizer.zero_grad()
        floor.backward(net(x), y, extra=(net(x) ** 2).mean())
        optimizer.step(floor=floor)
    assert_same_bits(net[0].weight.detach(), before)


def test_of_several_terms_one_is_exact_by_what_its_error_does_not_explain():
    net, x, y, z = linear_problem()
    params = list(net.parameters())
    for sigma in (1e-3, 0.5, 1e6):
        floor = LabelNoise(params, sigma=1.0)
        values = NoisyTerm(net(x) - y, 0.2)
        source = NoisyTerm(net(z), sigma, weight=2.0)
        floor.update([values, source])
        assert not floor.noisy_grads  # nothing to stand beside
        floor.update([values, source], exact_terms=True)
        off = [(values.residual**2).mean(), (source.residual**2).mean()]
        parts = [min(1.0, s**2 / r.item()) for s, r in zip((0.2, sigma), off, strict=True)]
        assert parts[0] < 1
        expected = torch.autograd.grad(
            parts[0] * off[0] + 2 * parts[1] * off[1], params, retain_graph=True
        )
        torch.testing.assert_close([floor.noisy_grads[p] for p in params], list(expected))
    floor.update([values], exact_terms=True)  # of one, the parts would cancel
    expected = torch.autograd.grad((values.residual**2).mean(), params)
    torch.testing.assert_close([floor.noisy_grads[p] for p in params], list(expected))


def test_a_sigma_of_a_wrong_length_is_refused_with_a_reason():
    net, x, y, z = linear_problem()
    terms = [NoisyTerm(net(x) - y, 1.0), NoisyTerm(net(z), torch.ones(7, 1))]
    with pytest.raises(ValueError, match="does not broadcast"):
        LabelNoise(net.parameters(), sigma=1.0).update(terms, exact_terms=True)
    floor = LabelNoise(net.parameters(), sigma=1.0, every=2)
    floor.update(terms[:1], exact_terms=True)
    with pytest.raises(ValueError, match="does not broadcast"):  # at a call that draws nothing
        floor.update(terms, exact_terms=True)


def test_data_without_an_error_are_exact():
    net, x, y, z = linear_problem()
    floor, params = LabelNoise(net.parameters(), sigma=1.0), list(net.parameters())
    values = NoisyTerm(net(x) - y, 1.0)
    floor.update([NoisyTerm(net(z), 0.0), values])
    expected = torch.autograd.grad((values.residual**2).mean(), params)
    torch.testing.assert_close([floor.noisy_grads[p] for p in params], list(expected))
    floor.update([NoisyTerm(net(z), 0.0)])
    assert not floor.noisy_grads
