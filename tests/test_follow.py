"""Exact terms beside noisy data: what the gate closes follows them where the data do not mind."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from sciml_snr import SNRSOAP, Gate, NoisyLoss, SNRAdam
from sciml_snr.handover import Facts
from tests.cases import (
    FLOATS,
    Told,
    assert_same_bits,
    batch,
    feed_noise,
    gradients,
    network,
    noise_state,
    own_adam,
    parameters,
    snapshot,
    through_a_file,
)

OPTIMIZERS = pytest.mark.parametrize("cls", [own_adam, SNRSOAP], ids=["SNRAdam", "SNRSOAP"])
CLOSING = Gate("stein", z=2.0)


def feed(optimizer, told, steps: int, start: int = 0) -> None:
    """Gradients, draws as large, and other gradients of the noisy terms, anew in every step."""
    feed_noise(optimizer, told, steps, start, beside_exact=True)


def exact_and_noisy(cls, dtype=torch.float32, gate=CLOSING, **options):
    told = Told()
    return cls(parameters(dtype), lr=0.01, noise=told, gate=gate, **options), told


def params_of(optimizer) -> list[nn.Parameter]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def tell(told, params, draws, noisy, **facts) -> None:
    told.tell(
        dict(zip(params, draws, strict=True)),
        dict(zip(params, noisy, strict=True)),
        Facts(**facts),
    )


# The formulas ------------------------------------------------------------------------------------


def by_hand(ws, steps, *, lr, betas, eps, z, rho, maximize=False):
    """The formulas of sciml_snr.rule for a list of numbers: ``steps`` of (gradient, draw, noisy)
    each."""
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
@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("sign", [1.0, -1.0], ids=["agreeing", "conflicting"])
@OPTIMIZERS
def test_follows_the_formulas(cls, sign, maximize, betas):
    rng = torch.Generator().manual_seed(1)
    steps = []
    for _ in range(12):
        exact = torch.randn(4, generator=rng, dtype=torch.float64) + 1
        noisy = sign * exact * torch.rand(4, generator=rng, dtype=torch.float64)
        steps.append([exact + noisy, torch.randn(4, generator=rng, dtype=torch.float64), noisy])
    options = {"lr": 0.01, "betas": betas, "eps": 1e-3, "rho": 0.9, "maximize": maximize}
    # Two vectors, which have no basis in SNRSOAP either: c is of all parameters together.
    params = [nn.Parameter(torch.ones(2, dtype=torch.float64)) for _ in range(2)]
    told = Told()
    optimizer = cls(params, noise=told, gate=Gate("stein", z=1.0), **options)
    for grad, draw, noisy in steps:
        params[0].grad, params[1].grad = grad[:2].clone(), grad[2:].clone()
        tell(told, params, [draw[:2], draw[2:]], [noisy[:2], noisy[2:]])
        optimizer.step()
    numbers = [[row.tolist() for row in step] for step in steps]
    expected = by_hand([1.0] * 4, numbers, z=1.0, **options)
    torch.testing.assert_close(torch.cat(params).tolist(), expected, rtol=1e-10, atol=1e-12)


def test_one_rule_in_every_basis():
    """SNRSOAP's step is SNRAdam's on gradients that were turned into its basis by hand."""
    rng = torch.Generator().manual_seed(0)

    def draw() -> Tensor:
        return torch.randn(4, 4, generator=rng, dtype=torch.float64)

    w, turned = nn.Parameter(draw()), nn.Parameter(torch.zeros(4, 4, dtype=torch.float64))
    options = {"lr": 0.0, "gate": Gate("stein", z=1.0)}
    told = Told(), Told()
    soap = SNRSOAP([w], precondition_frequency=10**6, noise=told[0], **options)
    adam = own_adam([turned], noise=told[1], **options)
    for t in range(8):
        w.grad, *others = draw(), draw(), draw()
        tell(told[0], [w], others[:1], others[1:])
        soap.step()
        rows, cols = (soap.state[w][f"{side}_basis"] for side in ("row", "col"))
        turned.grad, *others = (rows.T @ x @ cols for x in (w.grad, *others))
        tell(told[1], [turned], others[:1], others[1:])
        adam.step()
        if t == 0:  # a step of length 0 has made the basis
            turned.data.copy_(rows.T @ w.data @ cols)
            soap.param_groups[0]["lr"] = adam.param_groups[0]["lr"] = 0.01
            start = w.detach().clone()
    assert soap.beside_exact and adam.beside_exact
    assert (w - start).abs().max() > 0.01
    torch.testing.assert_close(w.data, rows @ turned.data @ cols.T)
    assert soap.gate_stats().mean_q == pytest.approx(adam.gate_stats().mean_q)
    assert 0.01 < adam.gate_stats().mean_q < 0.9


@OPTIMIZERS
def test_an_open_gate_leaves_nothing_to_follow(cls):
    followed, told = exact_and_noisy(cls, gate=Gate("stein", z=0.0))
    feed(followed, told, 5)
    alone, bare = exact_and_noisy(cls, gate=Gate("stein", z=0.0))
    feed_noise(alone, bare, 5)
    assert followed.beside_exact and not alone.beside_exact
    torch.testing.assert_close(params_of(followed), params_of(alone))


@OPTIMIZERS
def test_what_need_not_follow_does_not_move(cls):
    """A gate that is closed, with and without ``follow``."""
    for follow in (True, False):
        # A short side has no directions that all gradients lack, but for rounding.
        options = {} if cls is own_adam else {"max_precondition_dim": 4}
        gate = Gate("stein", z=1e4, follow=follow)
        optimizer, told = exact_and_noisy(cls, gate=gate, **options)
        start = snapshot(optimizer)
        feed(optimizer, told, 5)
        assert optimizer.beside_exact
        moved = [
            not torch.equal(p, q)
            for (p, _), (q, _) in zip(snapshot(optimizer), start, strict=True)
            if p.numel()
        ]
        assert moved == [follow] * len(moved)


@OPTIMIZERS
def test_a_closed_gate_leaves_the_noisy_loss_and_lowers_the_exact_one(cls):
    """To first order, on one step from rest; conflicting, agreeing and orthogonal terms alike."""
    for seed in range(20):
        net = network(torch.float64, seed)
        x, y = batch(seed, dtype=torch.float64)
        inside = batch(100 + seed, dtype=torch.float64)[0]
        data = NoisyLoss(0.1)

        def losses(net=net, x=x, y=y, inside=inside, data=data):
            return data(net(x), y), (net(inside) ** 2).mean()

        optimizer = cls(net.parameters(), lr=0.0, noise=data, gate=Gate("stein", z=1e6))
        noisy, exact = losses()
        for t in range(10):  # one draw may happen to be 0
            optimizer.param_groups[0]["lr"] = 1e-6 if t == 9 else 0.0
            optimizer.zero_grad()
            sum(losses()).backward()
            optimizer.step()
        assert optimizer.gate_stats().open_fraction == 0
        noisy_after, exact_after = losses()
        assert exact_after < exact
        assert abs(noisy_after - noisy) < 1e-3 * (exact - exact_after)


# Groups ------------------------------------------------------------------------------------------


def test_ungated_groups_and_warm_up_take_no_part():
    gated, free, lone = (nn.Parameter(torch.ones(3)) for _ in range(3))
    told = Told()
    optimizer = SNRAdam(
        [{"params": [gated]}, {"params": [free], "gate": "none"}],
        lr=0.1,
        noise=told,
        gate=Gate("stein", z=2.0, warmup_steps=3),
    )
    adam = torch.optim.AdamW([lone], lr=0.1, weight_decay=0)
    for t in range(6):
        draw, noisy = torch.full((3,), 100.0), torch.full((3,), -0.5)
        gated.grad, free.grad, lone.grad = (torch.full((3,), 1.0 + t) for _ in range(3))
        tell(told, [gated, free], [draw, draw], [noisy, noisy])
        optimizer.step()
        adam.step()
        assert_same_bits(free.data, lone.data)
        assert torch.allclose(gated, lone) == (t < 3)
    assert "exp_avg_noisy" in optimizer.state[gated]
    assert "exp_avg_noisy" not in optimizer.state[free]


def along_and_across(others: list[dict], follow=True, steps: int = 300) -> tuple[float, float]:
    """A line through a noisy point, and an exact equation on what the data leave free.

    w is measured with a large error along (1, 1), and exactly equal to 2 along (1, -1). The data's
    error is large against the equation's pull in both coordinates, which mix the two. ``others``
    are the options of further groups, of one idle number each.
    """
    along, across = (torch.tensor([[1.0, k]], dtype=torch.float64) for k in (1.0, -1.0))
    measured = torch.tensor([[20.0]], dtype=torch.float64)
    w = nn.Parameter(torch.zeros(2, 1, dtype=torch.float64))
    idle = [nn.Parameter(torch.ones(1, dtype=torch.float64)) for _ in others]
    groups = [{"params": [w]}, *({"params": [p], **o} for p, o in zip(idle, others, strict=True))]
    data = NoisyLoss(30.0)
    optimizer = SNRAdam(groups, lr=0.1, noise=data, gate=Gate("stein", z=2.0, follow=follow))
    for _ in range(steps):
        optimizer.zero_grad()
        equation = ((across @ w - 2) ** 2).sum() + sum(((p - 1) ** 2).sum() for p in idle)
        (data(along @ w, measured) + equation).backward()
        optimizer.step()
    return (across @ w).item(), (along @ w).item()


def test_the_equation_finishes_where_a_closed_gate_would_stop_it():
    alone, followed = along_and_across([], False, 200), along_and_across([], True, 1000)
    assert abs(alone[0] - 2) > 1  # the gate was shut from the start
    assert abs(followed[0] - 2) < 1e-2
    assert abs(followed[1]) < 1  # within 30 of nothing: the measured 20 is no signal


@pytest.mark.parametrize("other", [{"lr": 0.0}, {"lr": 3e-5}, {"lr": 1e-5, "gate": "none"}])
def test_a_slow_group_does_not_slow_the_others(other):
    assert along_and_across([other]) == pytest.approx(along_and_across([]), rel=1e-6, abs=1e-6)


def test_groups_with_learning_rates_of_their_own_keep_the_noisy_loss():
    """c is common to all groups, so that the whole move is along the level set."""
    torch.manual_seed(0)
    params = [nn.Parameter(torch.randn(3, dtype=torch.float64)) for _ in range(2)]
    groups = [{"params": [params[0]], "lr": 1e-2}, {"params": [params[1]], "lr": 1e-4}]
    told = Told()
    optimizer = SNRAdam(groups, noise=told, gate=Gate("stein", z=1e3))
    before = [p.detach().clone() for p in params]
    noisy = [torch.randn(3, dtype=torch.float64) for _ in params]
    for p, g in zip(params, noisy, strict=True):
        p.grad = g + torch.randn(3, dtype=torch.float64)
    tell(told, params, [torch.ones(3, dtype=torch.float64)] * 2, noisy)
    optimizer.step()
    moves = [p.detach() - q for p, q in zip(params, before, strict=True)]
    change = sum(float(m.dot(g)) for m, g in zip(moves, noisy, strict=True))
    assert all(m.abs().max() > 1e-6 for m in moves)
    assert abs(change) < 1e-12


# The state ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [*FLOATS, torch.complex64], ids=str)
@OPTIMIZERS
def test_continues_from_a_file_with_the_same_bits(cls, dtype):
    straight, told = exact_and_noisy(cls, dtype)
    feed(straight, told, 15)
    first, told = exact_and_noisy(cls, dtype)
    feed(first, told, 8)
    second, told = exact_and_noisy(cls, dtype)
    for p, q in zip(params_of(second), params_of(first), strict=True):
        p.data.copy_(q.data)
    second.load_state_dict(through_a_file(first.state_dict()))
    assert second.beside_exact
    feed(second, told, 7, start=8)
    assert_same_bits(snapshot(second), snapshot(straight))
    assert noise_state(second) == noise_state(straight)


@OPTIMIZERS
def test_16_bit_parameters_move_by_float32_arithmetic(cls):
    half, told = exact_and_noisy(cls, torch.bfloat16)
    feed(half, told, 1)
    state = half.state[params_of(half)[1]]["exp_avg_noisy"]
    assert state.dtype == torch.float32
    short = copy.deepcopy(parameters(torch.bfloat16))
    wide = [nn.Parameter(p.data.float()) for p in short]
    other = Told()
    optimizer = cls(wide, lr=0.01, noise=other, gate=CLOSING)
    grads, draws, noisy = ([g.float() for g in gradients(short, t)] for t in (0, 1000, 2000))
    for p, g in zip(wide, grads, strict=True):
        p.grad = g
    tell(other, wide, draws, noisy)
    optimizer.step()
    assert_same_bits(
        [p.data for p in params_of(half)],
        [p.data.bfloat16() for p in wide],
    )


@OPTIMIZERS
def test_noisy_gradient_that_is_not_finite_is_refused_and_changes_nothing(cls):
    optimizer, told = exact_and_noisy(cls)
    feed(optimizer, told, 3)
    before, counts = snapshot(optimizer), noise_state(optimizer)
    params = params_of(optimizer)
    noisy = gradients(params, 2003)
    noisy[1] = torch.full((5,), math.nan)
    tell(told, params, gradients(params, 1003), noisy)
    with pytest.raises(FloatingPointError, match="noisy terms' gradient of parameter 1"):
        optimizer.step()
    assert_same_bits(snapshot(optimizer), before)
    assert noise_state(optimizer) == counts


@OPTIMIZERS
def test_the_noisy_share_begins_anew_after_steps_without_exact_terms(cls):
    """It is looked again when the noisy terms' weight has changed."""
    optimizer, told = exact_and_noisy(cls)
    params = params_of(optimizer)
    has_share = []
    for t in range(12):
        beside = t < 5 or t >= 9
        for p, g in zip(params, gradients(params, t), strict=True):
            p.grad = g
        noisy = gradients(params, 2000 + t if beside else t)
        weight = 1.0 + (t >= 4) + (t >= 10)
        tell(told, params, gradients(params, 1000 + t), noisy, scale=weight)
        optimizer.step()
        has_share.append(["exp_avg_noisy" in optimizer.state[p] for p in params if p.numel()])
    expected = [t < 5 or t == 11 for t in range(12)]
    assert has_share == [[found] * len(has_share[0]) for found in expected]
    # As if the gradient had always been this one, from the first step on.
    started = 1 - 0.9**12
    torch.testing.assert_close(
        [optimizer.state[p]["exp_avg_noisy"] for p in params if p.numel()],
        [g * started for g in gradients(params, 2011) if g.numel()],
    )


def test_a_parameter_that_leaves_the_noisy_terms_forgets_them():
    optimizer, told = exact_and_noisy(SNRAdam)
    feed(optimizer, told, 5)
    params = params_of(optimizer)
    before = optimizer.state[params[1]]["exp_avg_noisy"].clone()
    for q, g in zip(params, gradients(params, 5), strict=True):
        q.grad = g
    draws, noisy = (dict(zip(params, gradients(params, t), strict=True)) for t in (1005, 2005))
    del noisy[params[1]]
    told.tell(draws, noisy)
    optimizer.step()
    torch.testing.assert_close(optimizer.state[params[1]]["exp_avg_noisy"], 0.9 * before)


# The noisy terms' own gradient -------------------------------------------------------------------


def linear_problem() -> tuple[nn.Linear, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    net = nn.Linear(3, 1).double()
    x = torch.randn(20, 3, dtype=torch.float64)
    return net, x, x[:, :1] + torch.randn(20, 1, dtype=torch.float64), x**2


def noisy_share(net, noise, loss, steps: int = 1, **options) -> list[Tensor] | None:
    """The noisy terms' gradient as it is at the last of some steps that move nothing."""
    optimizer = SNRAdam(net.parameters(), lr=0.0, betas=(0.0, 0.999), noise=noise, **options)
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    found = [optimizer.state[p].get("exp_avg_noisy") for p in net.parameters()]
    assert all((g is None) == (not optimizer.beside_exact) for g in found)
    return found if optimizer.beside_exact else None


def gradient(net, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(net.parameters())))


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("every", [1, 3])
def test_noisy_gradients_are_those_of_the_noisy_terms(every, steps):
    """Also in steps that draw no noise."""
    net, x, y, z = linear_problem()
    data = NoisyLoss(1.0)

    def loss() -> Tensor:
        return 3 * data(net(x), y) + (net(z) ** 2).mean()

    found = noisy_share(net, data, loss, steps, floor_every=every)
    torch.testing.assert_close(found, gradient(net, 3 * mse_loss(net(x), y)))
    total = gradient(net, 3 * mse_loss(net(x), y) + (net(z) ** 2).mean())
    torch.testing.assert_close([p.grad for p in net.parameters()], total)
    assert noisy_share(net, data, lambda: data(net(x), y), steps, floor_every=every) is None


@pytest.mark.parametrize("sigma", [1e-3, 0.5, 1e6])
def test_of_several_terms_one_is_exact_by_what_its_error_does_not_explain(sigma):
    net, x, y, z = linear_problem()
    values, source = NoisyLoss(0.2), NoisyLoss(sigma)
    zeros = torch.zeros_like(y)
    off = [mse_loss(net(x), y), mse_loss(net(z), zeros)]
    parts = [min(1.0, s**2 / r.item()) for s, r in zip((0.2, sigma), off, strict=True)]
    assert parts[0] < 1

    def loss() -> Tensor:
        return values(net(x), y) + 2 * source(net(z), zeros)

    assert noisy_share(net, [values, source], loss, 3) is None  # nothing to stand beside
    found = noisy_share(net, [values, source], lambda: loss() + net.weight.square().sum(), 3)
    expected = gradient(net, parts[0] * off[0] + 2 * parts[1] * off[1])
    torch.testing.assert_close(found, expected)


def test_of_a_single_term_no_part_is_exact():
    """Of one, the parts would cancel."""
    net, x, y, _ = linear_problem()
    data = NoisyLoss(0.2)

    def loss() -> Tensor:
        return data(net(x), y) + net.weight.square().sum()

    expected = gradient(net, mse_loss(net(x), y))
    torch.testing.assert_close(noisy_share(net, data, loss, 3), expected)


@pytest.mark.parametrize("sigma", [0.0, torch.zeros(20, 1)], ids=["number", "array"])
def test_data_without_an_error_are_exact(sigma):
    net, x, y, z = linear_problem()
    values, exact = NoisyLoss(1.0), NoisyLoss(sigma)
    zeros = torch.zeros_like(y)

    def loss() -> Tensor:
        return values(net(x), y) + exact(net(z), zeros)

    part = min(1.0, 1 / mse_loss(net(x), y).item())
    assert part < 1
    for steps, counts in ((1, 1.0), (3, part)):  # the first step compares with the total
        expected = gradient(net, counts * mse_loss(net(x), y))
        torch.testing.assert_close(noisy_share(net, [values, exact], loss, steps), expected)
    adam = torch.optim.AdamW(net.parameters(), lr=0.01, weight_decay=0)
    other = copy.deepcopy(net)
    optimizer = own_adam(other.parameters(), lr=0.01, noise=exact)
    for _ in range(5):
        for own, called in ((adam, net), (optimizer, other)):
            own.zero_grad()
            exact(called(z), zeros).backward()
            own.step()
    torch.testing.assert_close(list(other.parameters()), list(net.parameters()))
