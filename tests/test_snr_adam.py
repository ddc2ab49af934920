"""SNRAdam: the published rule, what it shares with AdamW, and the gate's statistics on noise."""

from __future__ import annotations

import copy
import functools
import io
import math
import pickle

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler

from sciml_snr import SNRSOAP, Gate, NoisyLoss, SNRAdam
from sciml_snr.gate import STREAM
from sciml_snr.handover import Facts
from tests.cases import (
    FLOATS,
    GATED,
    GATES,
    Told,
    assert_plain,
    assert_refused_by_name,
    assert_same_bits,
    batch,
    feed,
    gradients,
    network,
    parameters,
    snapshot,
    through_a_file,
    train,
)
from tests.loops import MODELS, assert_unbiased
from tests.loops import floors as floors_of
from tests.loops import gradients as per_sample

BOTH_PATHS = pytest.mark.parametrize("foreach", [False, True], ids=["single", "foreach"])


# The rule --------------------------------------------------------------------------------------


def algorithm_1(
    w, grads, *, lr, beta1, beta2, eps, wd, rho, gate, alpha, lambd, warmup, rise_steps, floors
):
    """Litman and Guo's Algorithm 1 for one number w, in Python floats; returns w and the last q."""
    m = v = s = 0.0
    q = math.nan
    for t, (g, floor) in enumerate(zip(grads, floors, strict=True), start=1):
        s = rho * s + (1 - rho) * (g - m) ** 2
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        m_hat, v_hat = m / (1 - beta1**t), v / (1 - beta2**t)
        s_hat = s / (1 - rho**t) if floor is None else floor
        s_hat *= 1 + math.log(1 + t / rise_steps) / 2 if rise_steps else 1
        d = max(m_hat**2 - alpha * s_hat, 0.0)
        q = {
            "hard": float(m_hat**2 > alpha * s_hat),
            "soft": d / (d + lambd * s_hat + 1e-30),
            "snr": m_hat**2 / (m_hat**2 + alpha * lambd * s_hat + 1e-30),
            "stein": d / (d + alpha * s_hat + 1e-30),
        }[gate]
        if t <= warmup:
            q = 1.0
        w = w - lr * (q * m_hat / (math.sqrt(v_hat) + eps) + wd * w)
    return w, q


RULES = {
    "defaults": ({}, {}, 1.0),
    "number": ({"alpha": 0.05, "lambd": 3.0}, {}, 0.05),
    "finite": ({"alpha": "finite", "batch_size": 16, "data_size": 64, "lambd": 0.5}, {}, 1 / 3),
    "of the gate": ({}, {"alpha": 0.05, "lambd": 3.0}, 0.05),
    "weight decay": ({"weight_decay": 0.1}, {}, 1.0),
    "other decay rates": ({"betas": (0.5, 0.8), "rho": 0.7, "eps": 1e-3}, {}, 1.0),
    "no memory": ({"betas": (0.0, 0.0), "rho": 0.0, "alpha": 0.3}, {}, 0.3),
    "long warm-up": ({}, {"warmup_steps": 7}, 1.0),
    "rising": ({"alpha": 0.2}, {"rise_steps": 5}, 0.2),
}


@pytest.mark.parametrize("gate", GATED)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("seam", [False, True], ids=["streaming", "floor given"])
def test_matches_algorithm_1(gate, rule, seam):
    # At t = 1, m_hat^2 = s_hat exactly: rounding then decides a hard gate, so it starts at t = 2.
    options, changes, alpha = RULES[rule]
    changes = {"warmup_steps": 1, **changes}
    steps, params = 30, parameters(torch.float64)
    initial = [p.detach().clone() for p in params]
    given = {p: (i + 1) * torch.full_like(p, 0.1) for i, p in enumerate(params)} if seam else {}
    optimizer = SNRAdam(params, lr=0.05, gate={"form": gate, **changes}, **options)
    feed(optimizer, steps, floor=given)

    beta1, beta2 = options.get("betas", (0.9, 0.999))
    q_sum = 0.0
    for i, p in enumerate(params):
        grads = (
            torch.stack([gradients(params, t)[i] for t in range(steps)])
            .reshape(steps, -1)
            .T.tolist()
        )
        expected = []
        for w, g in zip(initial[i].flatten().tolist(), grads, strict=True):
            w, q = algorithm_1(
                w,
                g,
                lr=0.05,
                beta1=beta1,
                beta2=beta2,
                eps=options.get("eps", 1e-8),
                wd=options.get("weight_decay", 0.0),
                rho=options.get("rho", 0.99),
                gate=gate,
                alpha=alpha,
                lambd=changes.get("lambd", options.get("lambd", 1.0)),
                warmup=changes["warmup_steps"],
                rise_steps=changes.get("rise_steps", 0),
                floors=[(i + 1) * 0.1 if seam else None] * steps,
            )
            expected.append(w)
            q_sum += q
        expected = torch.tensor(expected, dtype=torch.float64).reshape(p.shape)
        torch.testing.assert_close(p.detach(), expected, rtol=1e-11, atol=1e-12)
    stats = optimizer.gate_stats()
    assert stats.mean_q == pytest.approx(q_sum / stats.numel, rel=1e-9)


def test_defaults_are_the_published_rule_and_adams_constants():
    published = {"gate": None, "rho": 0.99, "alpha": "fresh", "lambd": 1.0}
    adam = {"lr": 3e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0}
    params = parameters()
    optimizer = SNRAdam(params)
    assert {key: optimizer.defaults[key] for key in (published | adam)} == published | adam
    feed(optimizer, 1)
    moments = optimizer.moments(params[1])
    assert moments.is_stream
    assert moments.gate == STREAM == Gate("soft", alpha=1.0, lambd=1.0)


# One weight 1, gradients 1 and 3, lr = 0.1, eps = 0, beta1 = beta2 = rho = alpha = 1/2, lambda = 1:
#   t = 1: s = 1/2,                             m = 1/2,             v = 1/2
#          s_hat = 1,                           m_hat = 1,           v_hat = 1
#   t = 2: s = 1/4 + (3 - 1/2)^2 / 2 = 27/8,    m = 1/4 + 3/2 = 7/4, v = 1/4 + 9/2 = 19/4
#          s_hat = 27/8 / (3/4) = 9/2,          m_hat = 7/3,         v_hat = 19/3
#   hard:  1 > 1/2: q = 1;                      49/9 > 9/4: q = 1
#   soft:  d = 1/2, q = 1/2 / (1/2 + 1) = 1/3;  d = 49/9 - 9/4 = 115/36, q = 115 / (115 + 162)
#   snr:   q = 1 / (1 + 1/2) = 2/3;             q = 49/9 / (49/9 + 9/4) = 196 / 277
#   stein: q = 1 - 1/2;                         q = 1 - 9/4 / (49/9) = 115 / 196
# (With the new first moment in s, as some codes have it, s_hat would be 7/6 at t = 2.)
BY_HAND = {
    "none": (1, 1),
    "hard": (1, 1),
    "soft": (1 / 3, 115 / 277),
    "snr": (2 / 3, 196 / 277),
    "stein": (1 / 2, 115 / 196),
}


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("weight_decay", [0.0, 0.2])
def test_two_steps_by_hand(gate, weight_decay):
    p = nn.Parameter(torch.ones(1, dtype=torch.float64))
    optimizer = SNRAdam([p], 0.1, (0.5, 0.5), 0.0, weight_decay, rho=0.5, gate=gate, alpha=0.5)
    decay, (q1, q2) = 1 - 0.1 * weight_decay, BY_HAND[gate]
    p.grad = torch.ones_like(p)
    optimizer.step()
    w1 = decay * 1 - 0.1 * q1
    assert p.item() == pytest.approx(w1, rel=1e-14)
    assert optimizer.gate_stats().mean_q == pytest.approx(q1, rel=1e-14)
    p.grad = torch.full_like(p, 3)
    optimizer.step()
    assert p.item() == pytest.approx(decay * w1 - 0.1 * q2 * (7 / 3) / (19 / 3) ** 0.5, rel=1e-14)
    assert optimizer.gate_stats().mean_q == pytest.approx(q2, rel=1e-14)


@pytest.mark.parametrize("gate", GATED)
def test_finite_alpha_is_b_over_n_minus_b(gate):
    finite = SNRAdam(parameters(), gate=gate, alpha="finite", batch_size=16, data_size=80)
    number = SNRAdam(parameters(), gate=gate, alpha=16 / 64)
    feed(finite, 10)
    feed(number, 10)
    assert_same_bits(snapshot(finite), snapshot(number))


@pytest.mark.parametrize("gate", GATED)
@pytest.mark.parametrize("given", [False, True], ids=["streaming", "floor given"])
def test_z_is_a_number_of_standard_errors_of_the_mean_gradient(gate, given):
    """The first moment's averaging leaves (1 - beta1) / 2 = 1/4 of the streaming variance."""
    in_errors = SNRAdam(parameters(), gate=Gate(gate, z=0.6), betas=(0.5, 0.9))
    as_alpha = SNRAdam(parameters(), gate=gate, alpha=0.36, betas=(0.5, 0.9), rho=0.99)
    params, others = (o.param_groups[0]["params"] for o in (in_errors, as_alpha))
    for t in range(10):
        floor = {p: torch.full_like(p, 0.1) for p in params} if given else None
        feed(in_errors, 1, start=t, floor=floor)
        # (1 - beta1) / 2 of the streaming variance, as it will be after this step
        means = [as_alpha.state[p].get("exp_avg", 0) for p in others]
        sums = [as_alpha.state[p].get("exp_grad_var", 0) for p in others]
        streamed = {
            p: (0.99 * s + 0.01 * (g - m) ** 2) / (1 - 0.99 ** (t + 1)) / 4
            for p, g, m, s in zip(others, gradients(others, t), means, sums, strict=True)
        }
        fixed = {p: torch.full_like(p, 0.1) for p in others}
        feed(as_alpha, 1, start=t, floor=fixed if given else streamed)
    assert_close(snapshot(in_errors), snapshot(as_alpha))
    assert in_errors.gate_stats().mean_q == pytest.approx(as_alpha.gate_stats().mean_q, rel=1e-5)
    assert 0 < in_errors.gate_stats().mean_q < 1


@pytest.mark.parametrize("gate", GATED)
def test_gate_is_open_during_warmup(gate):
    warm = SNRAdam(parameters(), gate={"form": gate, "warmup_steps": 5})
    adam = SNRAdam(parameters(), gate={"form": gate, "alpha": 0.0, "lambd": 0.0})  # open
    feed(warm, 5)
    feed(adam, 5)
    assert_same_bits(snapshot(warm), snapshot(adam))
    assert warm.gate_stats().mean_q == 1
    feed(warm, 1, start=5)
    assert warm.gate_stats().mean_q < 1


def test_warmup_counts_the_steps_of_each_parameter():
    early, late = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    optimizer = SNRAdam([early, late], gate={"warmup_steps": 2})
    early.grad = torch.ones(3)
    optimizer.step()
    late.grad = torch.ones(3)
    optimizer.step()
    before = snapshot(optimizer)
    optimizer.step(floor={p: torch.full_like(p, 1e30) for p in (early, late)})
    assert torch.equal(early, before[0][0])  # its third step: gated
    assert not torch.equal(late, before[1][0])  # its second


def test_keeps_one_state_tensor_more_than_adamw():
    ours, adamw = SNRAdam(parameters()), torch.optim.AdamW(parameters())
    feed(ours, 1)
    feed(adamw, 1)
    params = ours.param_groups[0]["params"]
    stepped = [p for p in params if p.numel()]
    for p, other in zip(params, adamw.param_groups[0]["params"], strict=True):
        if p.numel():
            assert set(ours.state[p]) - set(adamw.state[other]) == {"exp_grad_var"}
            assert len(ours.state[p]) == len(adamw.state[other]) + 1
            assert ours.state[p]["exp_grad_var"].shape == p.shape
    assert set(ours.state) == set(stepped)


@pytest.mark.parametrize("gate", GATED)
def test_fits_a_network(gate):
    net = network()
    x, y = batch(0, 256)
    before = nn.functional.mse_loss(net(x), y).item()
    train(net, SNRAdam(net.parameters(), lr=1e-2, gate=gate, alpha=0.05), 200)
    assert nn.functional.mse_loss(net(x), y).item() < 0.3 * before


# With the gate off: torch's Adam and AdamW ------------------------------------------------------

ADAMS = {
    "AdamW": (torch.optim.AdamW, {"weight_decay": 0.05}, {"weight_decay": 0.05}),
    "AdamW ascending": (
        torch.optim.AdamW,
        {"weight_decay": 0.05, "maximize": True},
        {"weight_decay": 0.05, "maximize": True},
    ),
    "Adam": (torch.optim.Adam, {}, {}),
    "Adam with L2": (
        torch.optim.Adam,
        {"weight_decay": 0.05},
        {"weight_decay": 0.05, "decoupled_weight_decay": False},
    ),
    "Adam with L2 ascending": (
        torch.optim.Adam,
        {"weight_decay": 0.05, "maximize": True},
        {"weight_decay": 0.05, "decoupled_weight_decay": False, "maximize": True},
    ),
    "other constants": (
        torch.optim.AdamW,
        {"betas": (0.7, 0.93), "eps": 1e-4, "weight_decay": 0.3},
        {"betas": (0.7, 0.93), "eps": 1e-4, "weight_decay": 0.3},
    ),
}


@pytest.mark.parametrize("adam", ADAMS)
@BOTH_PATHS
def test_without_gate_takes_torchs_steps_bit_for_bit(adam, foreach):
    theirs, their_options, our_options = ADAMS[adam]
    nets = network(), network()
    expected = theirs(nets[0].parameters(), lr=3e-3, foreach=foreach, **their_options)
    ours = SNRAdam(nets[1].parameters(), lr=3e-3, foreach=foreach, gate="none", **our_options)
    start = snapshot(ours)
    train(nets[0], expected, 200)
    train(nets[1], ours, 200)
    assert_same_bits(snapshot(ours), snapshot(expected))
    assert not torch.equal(start[0][0], snapshot(ours)[0][0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64, torch.complex128])
@pytest.mark.parametrize("adam", ADAMS)
@BOTH_PATHS
def test_without_gate_takes_torchs_steps_in_other_dtypes(adam, dtype, foreach):
    theirs, their_options, our_options = ADAMS[adam]
    expected = theirs(parameters(dtype), lr=3e-3, foreach=foreach, **their_options)
    ours = SNRAdam(parameters(dtype), lr=3e-3, foreach=foreach, gate="none", **our_options)
    feed(expected, 20)
    feed(ours, 20)
    # torch adds Adam's L2 term to a complex gradient in complex arithmetic, which rounds otherwise
    rounds = "L2" in adam and dtype.is_complex
    same = assert_close if rounds else assert_same_bits
    same(snapshot(ours), snapshot(expected))


SCHEDULERS = {
    "step": lambda optimizer: lr_scheduler.StepLR(optimizer, 7, 0.5),
    "cosine": lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, 30),
    "one cycle, which moves beta1 too": lambda optimizer: lr_scheduler.OneCycleLR(
        optimizer, max_lr=1e-2, total_steps=40
    ),
    "off after 10": lambda optimizer: lr_scheduler.LambdaLR(optimizer, lambda t: float(t < 10)),
}


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_without_gate_follows_schedulers_as_adamw(scheduler):
    nets = network(), network()
    expected = torch.optim.AdamW(nets[0].parameters(), lr=3e-3, weight_decay=0.1)
    ours = SNRAdam(nets[1].parameters(), lr=3e-3, weight_decay=0.1, gate="none")
    train(nets[0], expected, 40, scheduler=SCHEDULERS[scheduler](expected))
    train(nets[1], ours, 40, scheduler=SCHEDULERS[scheduler](ours))
    assert_same_bits(snapshot(ours), snapshot(expected))


def test_without_gate_noise_may_be_declared():
    """Bit for bit torch's steps, too."""
    nets, data = (network(), network()), NoisyLoss(0.1)
    adamw = torch.optim.AdamW(nets[0].parameters(), lr=3e-3, weight_decay=0.1)
    ours = SNRAdam(nets[1].parameters(), lr=3e-3, weight_decay=0.1, gate="none", noise=data)
    for t in range(20):
        x, y = batch(t)
        for net, loss, optimizer in ((nets[0], nn.MSELoss(), adamw), (nets[1], data, ours)):
            optimizer.zero_grad()
            loss(net(x), y).backward()
            optimizer.step()
    assert_same_bits(snapshot(ours), snapshot(adamw))


@pytest.mark.parametrize("gate", GATED)
def test_gated_follows_schedulers(gate):
    nets = network(), network()
    by_hand, scheduled = (
        SNRAdam(net.parameters(), lr=1e-2, gate=gate, weight_decay=0.1) for net in nets
    )
    train(nets[1], scheduled, 20, scheduler=lr_scheduler.StepLR(scheduled, 5, 0.5))
    for t in range(20):
        by_hand.param_groups[0]["lr"] = 1e-2 * 0.5 ** (t // 5)
        train(nets[0], by_hand, 1, start=t)
    assert_same_bits(snapshot(scheduled), snapshot(by_hand))


def test_learning_rate_may_be_a_tensor():
    number = SNRAdam(parameters(), lr=0.25)
    tensor = SNRAdam(parameters(), lr=torch.tensor(0.25))
    feed(number, 5)
    feed(tensor, 5)
    assert_same_bits(snapshot(tensor), snapshot(number))


# What the floor says of all entries together -------------------------------------------------


def moved(params, excess: float, **gate) -> list[Tensor]:
    """How far one step goes, with a floor by which most entries of ``feed`` are closed."""
    before = [p.detach().clone() for p in params]
    told = Told()
    optimizer = SNRAdam(params, lr=0.1, noise=told, gate={"form": "stein", "rise_steps": 0, **gate})
    # N = 800: the excess is 1 - (1 - sqrt(2 / N)) / R
    facts = Facts(misfit=800 * 0.95 / (1 - excess), summands=800.0, opens=True)
    for p, g in zip(params, gradients(params, 0), strict=True):
        p.grad = g
    draws = {p: torch.full_like(p, 0.3**0.5) for p in params}
    told.tell(draws, {p: p.grad for p in params}, facts)
    optimizer.step()
    return [p.detach() - b for p, b in zip(params, before, strict=True)]


def test_discrepancy_opens_by_the_excess():
    """q + (1 - q) e: between the gate's step and Adam's."""
    params = parameters(torch.float64)
    plain = moved(copy.deepcopy(params), 0.25, alpha=0.0)  # open
    gated = moved(copy.deepcopy(params), 0.25, z=1.0, discrepancy=False)
    opened = moved(copy.deepcopy(params), 0.25, z=1.0)
    assert any((a == 0).any() for a in gated)
    for a, b, c in zip(plain, gated, opened, strict=True):
        assert_close(c, 0.25 * a + 0.75 * b)


def test_without_excess_discrepancy_changes_nothing():
    params = parameters()
    opened = moved(copy.deepcopy(params), 0.0, z=1.0)
    assert_same_bits(opened, moved(copy.deepcopy(params), 0.0, z=1.0, discrepancy=False))


def test_gate_stats_count_what_the_excess_opens():
    told, params = Told(), parameters()[:2]
    optimizer = SNRAdam(params, noise=told, gate={"form": "hard", "z": 1e9})
    for p in params:
        p.grad = torch.ones_like(p)
    facts = Facts(misfit=800 * 0.95 * 4, summands=800.0, opens=True)
    told.tell({p: torch.ones_like(p) for p in params}, {p: p.grad for p in params}, facts)
    optimizer.step()
    expected = pytest.approx(0.75), 1.0, sum(p.numel() for p in params)
    assert optimizer.gate_stats() == expected


# Together and alone ----------------------------------------------------------------------------


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-7)


PATH_OPTIONS = {
    "plain": {},
    "rising": {"gate": {"rise_steps": 3}},
    "weight decay": {"weight_decay": 0.1},
    "L2": {"weight_decay": 0.1, "decoupled_weight_decay": False},
    "ascending": {"maximize": True, "weight_decay": 0.1},
    "ascending, L2": {"maximize": True, "weight_decay": 0.1, "decoupled_weight_decay": False},
    "warm-up": {"gate": {"warmup_steps": 10}},
}


@pytest.mark.parametrize("gate", GATED)
def test_parameters_are_stepped_as_if_each_were_alone(gate):
    """Of several dtypes, with gradients that are missing now and then, some with a given floor."""
    dtypes = [torch.float32, torch.bfloat16, torch.float64, torch.complex64]

    def run(together):
        params = [p for dtype in dtypes for p in parameters(dtype)]
        groups = [params] if together else [[p] for p in params]
        options = {"lr": 1e-2, "gate": gate, "alpha": 0.3, "weight_decay": 0.1}
        optimizers = [SNRAdam(group, **options) for group in groups]
        floor = {p: torch.full_like(p, 0.1) for p in params[::3]}
        for t in range(6):
            for p, g in zip(params, gradients(params, t), strict=True):
                p.grad = g
            params[t].grad = None
            for optimizer, group in zip(optimizers, groups, strict=True):
                own = {p: floor[p] for p in group if p in floor}
                optimizer.step(floor=own if t % 2 else None)
        return [own for optimizer in optimizers for own in snapshot(optimizer)]

    assert_close(run(True), run(False))


@pytest.mark.parametrize("noisy", [False, True])
def test_large_parameters_are_stepped_as_small_ones(noisy):
    """As in pieces: there are several rows of pieces that a long vector is cut into."""
    n = 2**17 + 4321
    rng = torch.Generator().manual_seed(0)
    value = torch.randn(n, generator=rng)
    whole = [nn.Parameter(value.clone())]
    pieces = [nn.Parameter(x.clone()) for x in value.split(50_000)]
    found = []
    for params in (whole, pieces):
        told = Told()
        options = {"noise": told} if noisy else {"alpha": 0.3}
        optimizer = SNRAdam(params, lr=1e-2, weight_decay=0.1, **options)
        rng.manual_seed(1)
        for _ in range(3):
            grad, draw, other = torch.randn(3, n, generator=rng)
            sizes = [p.numel() for p in params]
            parts = [dict(zip(params, x.split(sizes), strict=True)) for x in (draw, other)]
            for p, g in zip(params, grad.split(sizes), strict=True):
                p.grad = g.clone()
            if noisy:
                told.tell(*parts)
            optimizer.step()
        found.append(torch.cat([p.detach() for p in params]))
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-6)
    assert not torch.equal(found[0], value)


def test_groups_follow_their_own_options():
    own = [
        {"lr": 1e-2, "gate": "hard", "alpha": 0.1},
        {"gate": {"warmup_steps": 3}, "lambd": 2.0, "rho": 0.9},
        {"gate": "snr", "weight_decay": 0.1, "alpha": "finite", "batch_size": 2, "data_size": 9},
        {"gate": "none", "betas": (0.5, 0.9), "maximize": True},
        {"weight_decay": 0.1, "decoupled_weight_decay": False, "eps": 1e-3},
    ]
    groups = [{"params": parameters(seed=i), **options} for i, options in enumerate(own)]
    together = SNRAdam(groups[:3])
    for group in groups[3:]:
        together.add_param_group(group)
    feed(together, 10)

    alone = []
    params = [p for group in together.param_groups for p in group["params"]]
    for i, options in enumerate(own):
        mine = parameters(seed=i)
        optimizer = SNRAdam(mine, **options)
        for t in range(10):
            part = gradients(params, t)[i * len(mine) : (i + 1) * len(mine)]
            for p, g in zip(mine, part, strict=True):
                p.grad = g
            optimizer.step()
        alone += snapshot(optimizer)
    assert_same_bits(snapshot(together), alone)


@pytest.mark.parametrize("options", PATH_OPTIONS)
def test_gradients_are_left_alone(options):
    params = parameters()
    optimizer = SNRAdam(params, **PATH_OPTIONS[options])
    feed(optimizer, 2)
    assert_same_bits([p.grad for p in params], gradients(params, 1))


# Closures ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("outer", [torch.no_grad, torch.enable_grad])
def test_closure_runs_with_gradients_enabled(outer):
    nets = network(), network()
    expected, optimizer = (SNRAdam(net.parameters()) for net in nets)
    x, y = batch(0)

    def closure():
        assert torch.is_grad_enabled()
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(nets[1](x), y)
        loss.backward()
        return loss

    with outer():
        loss = optimizer.step(closure)
    train(nets[0], expected, 1)
    assert_same_bits(snapshot(optimizer), snapshot(expected))
    assert loss.item() == nn.functional.mse_loss(network()(x), y).item()


def test_step_without_closure_returns_none():
    params = parameters()
    assert SNRAdam(params).step() is None


# Other dtypes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_steps_are_float32_steps_rounded(gate, dtype):
    options = {"lr": 0.05, "gate": gate, "alpha": 0.3, "weight_decay": 0.1}
    half, full = parameters(dtype), parameters()
    short, wide = SNRAdam(half, **options), SNRAdam(full, **options)
    for t in range(10):
        for h, f, g in zip(half, full, gradients(half, t), strict=True):
            f.data.copy_(h)
            h.grad, f.grad = g, g.float()
        short.step()
        wide.step()
        assert_same_bits([h.detach() for h in half], [f.detach().to(dtype) for f in full])
    assert {h.dtype for h in half} == {dtype}
    assert_same_bits([s for _, s in snapshot(short)], [s for _, s in snapshot(wide)])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_second_moments_do_not_underflow(dtype):
    p = nn.Parameter(torch.ones(4, dtype=dtype))
    optimizer = SNRAdam([p], gate="snr")
    p.grad = torch.full_like(p, 1e-4)
    optimizer.step()
    # 1e-3 * (1e-4)^2 is 0 in float16
    assert optimizer.state[p]["exp_avg_sq"].dtype == torch.float32
    assert optimizer.state[p]["exp_avg_sq"] == pytest.approx(torch.full((4,), 1e-11), rel=1e-2)
    assert optimizer.state[p]["exp_grad_var"] == pytest.approx(torch.full((4,), 1e-10), rel=1e-2)


@pytest.mark.parametrize("gate", GATES)
def test_float64_steps_are_taken_in_float64(gate):
    wide, short = (
        SNRAdam(parameters(dtype), gate=gate, alpha=0.3) for dtype in (torch.float64, torch.float32)
    )
    feed(wide, 10)
    feed(short, 10)
    for (p, state), (q, _) in zip(snapshot(wide), snapshot(short), strict=True):
        assert {state[key].dtype for key in state if key != "step"} <= {torch.float64}
        assert state or not p.numel()
        torch.testing.assert_close(p.float(), q, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("gate", GATES)
def test_complex_parameters_are_pairs_of_reals(gate):
    options = {"gate": gate, "alpha": 0.3, "weight_decay": 0.1}
    params = parameters(torch.complex64)
    reals = [nn.Parameter(torch.view_as_real(p.detach()).clone()) for p in params]
    compound, pairs = SNRAdam(params, **options), SNRAdam(reals, **options)
    for t in range(10):
        for p, r, g in zip(params, reals, gradients(params, t), strict=True):
            p.grad, r.grad = g, torch.view_as_real(g).clone()
        compound.step()
        pairs.step()
    assert_same_bits([torch.view_as_real(p.detach()) for p in params], [r.detach() for r in reals])
    assert compound.gate_stats() == pairs.gate_stats()


# What cannot be stepped on ----------------------------------------------------------------------


def test_sparse_gradients_are_refused():
    dense, sparse = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(4, 2))
    optimizer = SNRAdam([{"params": [dense]}, {"params": [sparse]}])
    feed(optimizer, 2)
    before = snapshot(optimizer)
    dense.grad = torch.ones(3)
    sparse.grad = torch.ones(4, 2).to_sparse()
    with pytest.raises(RuntimeError, match=r"(?i)sparse.*parameter 0 of group 1"):
        optimizer.step()
    assert_same_bits(snapshot(optimizer), before)


NONSENSE = [
    ("lr", -1e-3),
    ("lr", math.nan),
    ("lr", math.inf),
    ("lr", "1e-3"),
    ("lr", None),
    ("lr", torch.ones(2)),
    ("betas", (1.0, 0.999)),
    ("betas", (0.9, 1.0)),
    ("betas", (-0.1, 0.999)),
    ("betas", (0.9, math.nan)),
    ("betas", (0.9,)),
    ("betas", (0.9, 0.99, 0.999)),
    ("betas", ("0.9", 0.999)),
    ("betas", 0.9),
    ("eps", -1e-8),
    ("eps", math.nan),
    ("weight_decay", -0.1),
    ("weight_decay", math.inf),
    ("rho", 1.0),
    ("rho", -0.1),
    ("rho", math.nan),
    ("gate", "sotf"),
    ("alpha", -1.0),
    ("alpha", math.nan),
    ("alpha", math.inf),
    ("alpha", "stale"),
    ("alpha", "finite"),
    ("alpha", None),
    ("lambd", -1.0),
    ("lambd", math.nan),
    ("gate", {"z": -1.0}),
    ("gate", {"z": math.nan}),
    ("gate", {"z": math.inf}),
    ("gate", {"z": "3"}),
    ("gate", {"warmup_steps": -1}),
    ("gate", {"warmup_steps": 1.5}),
    ("gate", {"rise_steps": -1}),
    ("gate", {"rise_steps": 2.5}),
    ("gate", {"discrepancy": 1}),
    ("gate", {"discrepancy": "yes"}),
    ("batch_size", 0),
    ("batch_size", "16"),
    ("data_size", -5),
    ("nonfinite", "ignore"),
]


@pytest.mark.parametrize(("name", "value"), NONSENSE)
def test_nonsense_options_are_refused_by_name(name, value):
    assert_refused_by_name(SNRAdam, next(iter(value)) if type(value) is dict else name, value, name)


def test_an_unknown_gate_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match=r"'sotf'.*'none', 'hard', 'soft', 'snr', 'stein'"):
        SNRAdam(parameters(), gate="sotf")
    with pytest.raises(ValueError, match="no gate option 'zz'"):
        SNRAdam(parameters(), gate={"zz": 2.0})
    with pytest.raises(TypeError, match="gate must be a name"):
        SNRAdam(parameters(), gate=["soft"])


def test_finite_alpha_needs_less_than_all_the_data():
    with pytest.raises(ValueError, match="batch_size < data_size"):
        SNRAdam(parameters(), alpha="finite", batch_size=64, data_size=64)


BAD = [math.nan, math.inf, -math.inf]


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("warm", [0, 3], ids=["first step", "later"])
def test_nonfinite_gradient_is_refused_and_changes_nothing(gate, bad, warm):
    first, second = parameters(seed=0), parameters(seed=1)
    optimizer = SNRAdam([{"params": first}, {"params": second}], gate=gate, weight_decay=0.1)
    feed(optimizer, warm)
    for p, g in zip(first + second, gradients(first + second, warm), strict=True):
        p.grad = g
    second[3].grad[2, 1] = bad
    before = snapshot(optimizer)
    with pytest.raises(FloatingPointError, match=r"parameter 3 of group 1, of shape \(3, 4\)"):
        optimizer.step()
    assert_same_bits(snapshot(optimizer), before)


@pytest.mark.parametrize("dtype", [*FLOATS, torch.float16, torch.complex64])
def test_nonfinite_gradient_is_refused_in_every_dtype(dtype):
    params = parameters(dtype)
    optimizer = SNRAdam(params)
    feed(optimizer, 1)
    before = snapshot(optimizer)
    params[4].grad[1, 2, 0, 1] = complex(0, math.inf) if dtype.is_complex else math.inf
    with pytest.raises(FloatingPointError, match="parameter 4 of group 0"):
        optimizer.step()
    assert_same_bits(snapshot(optimizer), before)


def test_nonfinite_gradient_is_reported_by_its_name():
    net = network()
    optimizer = SNRAdam(net.named_parameters())
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    net[2].bias.grad[5] = math.nan
    with pytest.raises(FloatingPointError, match=r"'2\.bias' of shape \(8,\)"):
        optimizer.step()


def test_training_goes_on_after_a_refused_step():
    refused, unhindered = SNRAdam(parameters()), SNRAdam(parameters())
    feed(refused, 3)
    refused.param_groups[0]["params"][1].grad[0] = math.nan
    with pytest.raises(FloatingPointError):
        refused.step()
    feed(refused, 3, start=3)
    feed(unhindered, 6)
    assert_same_bits(snapshot(refused), snapshot(unhindered))


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("where", ["gradient", "floor"])
def test_nonfinite_may_be_skipped(bad, where):
    params = parameters()
    optimizer = SNRAdam(params, gate="snr", nonfinite="skip")
    floor = {p: torch.full_like(p, 0.1) for p in params}
    feed(optimizer, 3, floor=floor)
    before, stats = snapshot(optimizer), optimizer.gate_stats()
    broken = {p: x.clone() for p, x in floor.items()}
    (params[1].grad if where == "gradient" else broken[params[1]])[0] = bad
    assert optimizer.step(lambda: "the loss", floor=broken) == "the loss"
    assert_same_bits(snapshot(optimizer), before)
    assert optimizer.gate_stats() == stats
    feed(optimizer, 1, start=3)
    assert not torch.equal(params[1], before[1][0])


def test_groups_that_raise_outvote_groups_that_skip():
    lenient, strict = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = SNRAdam([{"params": [lenient], "nonfinite": "skip"}, {"params": [strict]}])
    lenient.grad = strict.grad = torch.tensor([1.0, math.nan])
    with pytest.raises(FloatingPointError, match="parameter 0 of group 1"):
        optimizer.step()


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize(("dtype", "huge"), [(torch.float32, 1e18), (torch.float16, 6e4)])
def test_huge_gradients_are_no_error(gate, dtype, huge):
    p = nn.Parameter(torch.zeros(2000, dtype=dtype))
    optimizer = SNRAdam([p], lr=0.1, gate=gate, alpha=0.3)
    p.grad = torch.full_like(p, huge)
    assert dtype == torch.float32 or p.grad.norm().isinf()
    optimizer.step()
    assert ((p < 0) & (p >= -0.1001)).all()


def test_norm_overflow_of_finite_gradients_is_no_error():
    p = nn.Parameter(torch.zeros(2000))
    optimizer = SNRAdam([p], gate="none")
    p.grad = torch.full_like(p, 1e19)
    assert p.grad.norm().isinf()
    optimizer.step()
    assert (p < 0).all()


# Saving and copying -----------------------------------------------------------------------------


def test_state_dict_is_plain():
    optimizer = SNRAdam([{"params": parameters(), "gate": "hard"}, {"params": parameters()}])
    params = [p for group in optimizer.param_groups for p in group["params"]]
    feed(optimizer, 2, floor={p: torch.ones_like(p) for p in params})
    assert_plain(optimizer.state_dict())


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("dtype", FLOATS)
def test_continues_from_a_file_with_the_same_bits(gate, dtype):
    def fresh(seed, **options):
        net = network(dtype, seed)
        groups = [{"params": net[0].parameters()}, {"params": net[2:].parameters(), **options}]
        return net, SNRAdam(groups, lr=1e-2, gate=gate, alpha=0.1)

    whole_net, whole = fresh(0, lr=3e-2, rho=0.9)
    train(whole_net, whole, 10)
    saved = through_a_file({"net": whole_net.state_dict(), "optimizer": whole.state_dict()})
    train(whole_net, whole, 10, start=10)

    net, optimizer = fresh(1)
    net.load_state_dict(saved["net"])
    optimizer.load_state_dict(saved["optimizer"])
    train(net, optimizer, 10, start=10)
    assert_same_bits(snapshot(optimizer), snapshot(whole))
    assert optimizer.gate_stats() == whole.gate_stats()


@pytest.mark.parametrize("dtype", [*FLOATS, torch.float16, torch.complex64])
def test_loaded_state_is_the_saved_state(dtype):
    saved, loaded = SNRAdam(parameters(dtype)), SNRAdam(parameters(dtype))
    feed(saved, 5)
    loaded.load_state_dict(saved.state_dict())
    assert_same_bits(
        [state for _, state in snapshot(loaded)], [state for _, state in snapshot(saved)]
    )
    assert loaded.state_dict()["param_groups"] == saved.state_dict()["param_groups"]


@pytest.mark.parametrize(
    ("cls", "other"),
    [
        (SNRAdam, torch.optim.AdamW),
        (SNRSOAP, torch.optim.AdamW),
        (SNRSOAP, SNRAdam),
        (SNRAdam, SNRSOAP),
    ],
)
def test_a_state_of_another_optimizer_is_refused(cls, other):
    optimizer, saved = cls(parameters()), other(parameters())
    feed(saved, 2)
    before = snapshot(optimizer)
    with pytest.raises(ValueError, match=f"not a state of {cls.__name__}"):
        optimizer.load_state_dict(saved.state_dict())
    assert_same_bits(snapshot(optimizer), before)


def test_a_floor_in_the_closures_place_is_refused():
    (p, *_) = parameters()
    with pytest.raises(TypeError, match=r"step\(floor=floor\)"):
        SNRAdam([p]).step({p: torch.ones_like(p)})


def test_loads_a_state_in_which_some_parameters_have_none():
    params = parameters(torch.bfloat16)
    saved, loaded = SNRAdam(params), SNRAdam(parameters(torch.bfloat16))
    params[1].grad = torch.ones_like(params[1])
    saved.step()
    loaded.load_state_dict(saved.state_dict())
    assert [len(state) for _, state in snapshot(loaded)] == [0, 4, 0, 0, 0]


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"]
)
def test_continues_from_a_copy_with_the_same_bits(gate, dtype, copied):
    original = SNRAdam(parameters(dtype), gate=gate, alpha=0.1, lr=1e-2)
    feed(original, 5)
    twin = copied(original)
    feed(original, 5, start=5)
    assert not torch.equal(snapshot(original)[1][0], snapshot(twin)[1][0])
    feed(twin, 5, start=5)
    assert_same_bits(snapshot(twin), snapshot(original))


# Gate statistics --------------------------------------------------------------------------------


def q_by_hand(state, options, floor=None):
    """q of every element of one float parameter, from its state."""
    if not state:
        return torch.zeros(0, dtype=torch.float64)
    t, alpha = state["step"].item(), options["alpha"]
    m2 = (state["exp_avg"].double() / (1 - options["betas"][0] ** t)) ** 2
    gate = options["gate"]["form"]
    if gate == "none":
        return torch.ones_like(m2).flatten()
    s = state["exp_grad_var"].double() / (1 - options["rho"] ** t) if floor is None else floor
    d = torch.relu(m2 - alpha * s)
    q = {
        "hard": (m2 > alpha * s).double(),
        "soft": d / (d + options["lambd"] * s),
        "snr": m2 / (m2 + alpha * options["lambd"] * s),
        "stein": d / (d + alpha * s),
    }[gate]
    return q.flatten()


@pytest.mark.parametrize("how", ["loaded", "copied"])
def test_gate_stats_are_nan_until_the_next_step(how):
    """The last step's floor is not part of the state; the streaming one would be another gate's."""
    params = parameters()
    optimizer = SNRAdam(params, gate={"z": 1.0})
    floor = {p: torch.full_like(p, 100.0) for p in params}
    feed(optimizer, 3, floor=floor)
    assert optimizer.gate_stats().mean_q < 0.1
    if how == "copied":
        later = copy.deepcopy(optimizer)
    else:
        later = SNRAdam(params, gate={"z": 1.0})
        later.load_state_dict(optimizer.state_dict())
    assert math.isnan(later.gate_stats().mean_q)
    copies = later.param_groups[0]["params"]
    own = dict(zip(copies, floor.values(), strict=True))
    feed(later, 1, start=3, floor=own)
    assert later.gate_stats().mean_q < 0.1


def test_a_floor_for_other_parameters_is_refused():
    optimizer = SNRAdam(parameters())
    with pytest.raises(ValueError, match="none of this optimizer's"):
        feed(optimizer, 1, floor={p: torch.ones_like(p) for p in parameters()})


def test_a_floor_for_others_is_of_no_interest_without_a_gate():
    optimizer = SNRAdam(parameters(), gate="none")
    feed(optimizer, 1, floor={p: torch.ones_like(p) for p in parameters()})


@pytest.mark.parametrize("floor", [0.1, [torch.ones(1)]])
def test_a_floor_that_is_no_mapping_is_refused(floor):
    with pytest.raises(TypeError, match="maps parameters to variances"):
        SNRAdam(parameters()).step(floor=floor)


def test_a_negative_floor_is_refused():
    params = parameters()
    optimizer, before = SNRAdam(params), [p.detach().clone() for p in params]
    floor = {p: torch.ones_like(p) for p in params}
    floor[params[1]][2] = -0.5
    with pytest.raises(ValueError, match=r"parameter 1 of group 0.*is negative"):
        feed(optimizer, 1, floor=floor)
    assert_same_bits([p.detach() for p in params], before)


@pytest.mark.parametrize("by", ["constructor", "group"])
def test_numbers_of_numpy_become_pythons(by):
    options = {
        "lr": np.float32(1e-3),
        "rho": np.float64(0.9),
        "batch_size": np.int32(3),
        "betas": (np.float32(0.5), np.float64(0.9)),
    }
    if by == "constructor":
        optimizer = SNRAdam(parameters(), **options)
    else:
        optimizer = SNRAdam([{"params": parameters(), **options}])
    group = optimizer.param_groups[0]
    assert [type(group[name]) for name in options] == [float, float, int, tuple]
    assert [type(beta) for beta in group["betas"]] == [float, float]
    feed(optimizer, 1)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    torch.load(file, weights_only=True)


def test_gate_stats_are_nan_before_any_step():
    params = parameters()
    optimizer = SNRAdam(params)
    for stats in (optimizer.gate_stats(), optimizer.gate_stats(0)):
        assert math.isnan(stats.mean_q)
        assert math.isnan(stats.open_fraction)
        assert stats.numel == 0
    assert not optimizer.state


@pytest.mark.parametrize("dtype", FLOATS)
def test_gate_stats_by_hand(dtype):
    groups = [
        {"params": parameters(dtype), "gate": "soft", "alpha": 0.05},
        {"params": parameters(dtype)[1:2], "gate": "snr", "alpha": 0.2, "lambd": 2.0},
        {"params": parameters(dtype)[3:], "gate": "hard", "alpha": 0.3, "rho": 0.9},
        {"params": parameters(dtype)[:2], "gate": "none", "alpha": 1.0},
    ]
    optimizer = SNRAdam(groups)
    feed(optimizer, 7)
    optimizer.zero_grad()
    before = snapshot(optimizer)
    by_group = [
        torch.cat([q_by_hand(optimizer.state[p], group) for p in group["params"]])
        for group in optimizer.param_groups
    ]
    for i, q in [*enumerate(by_group), (None, torch.cat(by_group))]:
        stats = optimizer.gate_stats(i)
        assert stats.mean_q == pytest.approx(q.mean().item(), rel=1e-5)
        assert stats.open_fraction == pytest.approx((q >= 0.5).double().mean().item())
        assert stats.numel == q.numel()
    assert 0 < optimizer.gate_stats(0).open_fraction < 1
    assert_same_bits(snapshot(optimizer), before)


def test_gate_stats_count_only_stepped_parameters():
    stepped, idle = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(5))
    optimizer = SNRAdam([{"params": [stepped]}, {"params": [idle]}])
    stepped.grad = torch.ones(3)
    optimizer.step()
    assert optimizer.gate_stats().numel == 3
    assert math.isnan(optimizer.gate_stats(1).mean_q)


# The floor as an argument -----------------------------------------------------------------------


@pytest.mark.parametrize("gate", GATED)
def test_given_floor_is_used_and_the_rest_streams(gate):
    options = {"gate": gate, "alpha": 0.5}
    seam, streaming = (SNRAdam(parameters(torch.float64), **options) for _ in range(2))
    params = seam.param_groups[0]["params"]
    floor = {params[1]: torch.full_like(params[1], 0.3)}
    feed(seam, 5, floor=floor)
    feed(streaming, 5)

    q = torch.cat([q_by_hand(seam.state[p], seam.param_groups[0], floor.get(p)) for p in params])
    assert seam.gate_stats().mean_q == pytest.approx(q.mean().item(), rel=1e-12)
    given, rest = snapshot(seam), snapshot(streaming)
    assert not torch.equal(given[1][0], rest[1][0])
    assert_same_bits(given[1][1], rest[1][1])  # the moments do not depend on the floor
    del given[1], rest[1]
    assert_same_bits(given, rest)


@pytest.mark.parametrize("gate", GATED)
def test_floor_of_one_step_is_gone_in_the_next(gate):
    seam, streaming = (SNRAdam(parameters(), gate=gate, lr=0.0) for _ in range(2))
    params = seam.param_groups[0]["params"]
    feed(seam, 1, floor={p: torch.full_like(p, 1e-9) for p in params})
    assert seam.gate_stats().mean_q == pytest.approx(1)
    feed(seam, 1, start=1)
    feed(streaming, 2)
    assert seam.gate_stats() == streaming.gate_stats()


@pytest.mark.parametrize("gate", GATED)
def test_floor_is_read_after_the_closure(gate):
    params, floor = parameters(), {}
    optimizer = SNRAdam(params, gate=gate)

    def closure():
        for p, g in zip(params, gradients(params, 0), strict=True):
            p.grad = g
            floor[p] = torch.zeros_like(p)

    optimizer.step(closure, floor)
    assert optimizer.gate_stats().mean_q == 1


@pytest.mark.parametrize("gate", GATED)
@pytest.mark.parametrize("dtype", FLOATS)
def test_no_floor_gives_adam(gate, dtype):
    gated, adam = (SNRAdam(parameters(dtype), gate=g, weight_decay=0.1) for g in (gate, "none"))
    params = gated.param_groups[0]["params"]
    feed(gated, 10, floor={p: torch.zeros_like(p) for p in params})
    feed(adam, 10)
    torch.testing.assert_close(
        [p.detach() for p in params],
        [p.detach() for p in adam.param_groups[0]["params"]],
        rtol=1e-5 if dtype != torch.bfloat16 else 1e-2,
        atol=1e-6,
    )
    assert gated.gate_stats().mean_q == 1


@pytest.mark.parametrize("gate", GATED)
def test_huge_floor_stops_all_movement(gate):
    params = parameters()
    optimizer = SNRAdam(params, lr=1.0, gate=gate)
    start = [p.detach().clone() for p in params]
    feed(optimizer, 5, floor={p: torch.full_like(p, 1e30) for p in params})
    assert_same_bits([p.detach() for p in params], start)
    assert optimizer.gate_stats().mean_q == pytest.approx(0, abs=1e-25)


@pytest.mark.parametrize("shape", [(), (1,), (4,), (5, 1), (1, 5)])
def test_floor_of_another_shape_is_refused(shape):
    params = parameters()
    optimizer = SNRAdam(params)
    feed(optimizer, 1)
    before = snapshot(optimizer)
    with pytest.raises(ValueError, match="floor of parameter 1 of group 0"):
        optimizer.step(floor={params[1]: torch.ones(shape)})
    assert_same_bits(snapshot(optimizer), before)


@pytest.mark.parametrize("bad", BAD)
def test_nonfinite_floor_is_refused(bad):
    params = parameters()
    optimizer = SNRAdam(params)
    feed(optimizer, 1)
    before, stats = snapshot(optimizer), optimizer.gate_stats()
    with pytest.raises(FloatingPointError, match="floor of parameter 1 of group 0"):
        optimizer.step(floor={params[1]: torch.full_like(params[1], bad)})
    assert_same_bits(snapshot(optimizer), before)
    assert optimizer.gate_stats() == stats


@pytest.mark.parametrize("gate", GATED)
def test_complex_floors_are_pairs_of_variances(gate):
    options = {"gate": gate, "alpha": 0.5}
    z = nn.Parameter(torch.ones(3, dtype=torch.complex64))
    r = nn.Parameter(torch.view_as_real(z.detach()).clone())
    compound, pairs = SNRAdam([z], **options), SNRAdam([r], **options)
    floor = torch.complex(torch.tensor([0.0, 0.1, 9.0]), torch.tensor([0.2, 0.0, 0.3]))
    for t in range(5):
        z.grad = gradients([z], t)[0]
        r.grad = torch.view_as_real(z.grad).clone()
        compound.step(floor={z: floor})
        pairs.step(floor={r: torch.view_as_real(floor)})
    assert_same_bits(torch.view_as_real(z.detach()), r.detach())
    assert compound.gate_stats() == pairs.gate_stats()


@pytest.mark.parametrize(
    ("dtype", "floor_dtype"),
    [(torch.complex64, torch.float32), (torch.float32, torch.complex64)],
)
def test_floor_must_be_complex_where_its_parameter_is(dtype, floor_dtype):
    p = nn.Parameter(torch.ones(3, dtype=dtype))
    p.grad = torch.ones_like(p)
    with pytest.raises(ValueError, match=r"must be (real|complex)"):
        SNRAdam([p]).step(floor={p: torch.ones(3, dtype=floor_dtype)})


def test_floor_passes_through_a_schedulers_wrapper():
    params = parameters()
    optimizer = SNRAdam(params)
    scheduler = lr_scheduler.StepLR(optimizer, 1)
    feed(optimizer, 1, floor={p: torch.zeros_like(p) for p in params})
    scheduler.step()
    assert optimizer.gate_stats().mean_q == 1


# On noise and on signal -------------------------------------------------------------------------

SETTINGS = [(0.9, 0.05), (0.9, 0.2), (0.5, 1.0), (0.0, 1.0)]  # beta1, alpha


def on_noise(gate, beta1, alpha, *, n, steps, floor=None, mean=0.0, seed=0):
    """An optimizer that saw ``steps`` gradients N(mean, 1) in each of n coordinates."""
    rng = torch.Generator().manual_seed(seed)
    p = nn.Parameter(torch.zeros(n))
    optimizer = SNRAdam([p], lr=0.0, betas=(beta1, 0.999), gate=gate, alpha=alpha)
    given = None if floor is None else {p: torch.full((n,), floor)}
    for _ in range(steps):
        p.grad = mean + torch.randn(n, generator=rng)
        optimizer.step(floor=given)
    return optimizer


def gate_in_numpy(gate, m2, s, alpha):
    """The gates with lambda = 1."""
    if gate == "hard":
        return (m2 > alpha * s).astype(float)
    if gate == "snr":
        return m2 / (m2 + alpha * s)
    d = np.maximum(m2 - alpha * s, 0)
    return d / (d + (alpha if gate == "stein" else 1) * s)


def assert_within(actual, expected, standard_error, errors=4.0):
    assert abs(actual - expected) < errors * standard_error, (actual, expected, standard_error)


@pytest.mark.parametrize("gate", GATED)
@pytest.mark.parametrize(("beta1", "alpha"), SETTINGS)
def test_mean_q_on_noise_with_the_exact_floor(gate, beta1, alpha):
    # m_hat ~ N(0, v1), v1 = (1 - beta1) / (1 + beta1); the floor is E (g - m)^2 = 1 + v1:
    # mean q is the integral of q(v1 z^2, 1 + v1) over the standard normal, and for the hard
    # gate P(chi^2_1 > alpha (1 + v1) / v1) in closed form.
    n, v1 = 100_000, (1 - beta1) / (1 + beta1)
    z = np.linspace(-10, 10, 400_001)
    weight = np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi) * (z[1] - z[0])
    q = gate_in_numpy(gate, v1 * z**2, 1 + v1, alpha)
    mean, mean_square = (q * weight).sum(), (q**2 * weight).sum()
    if gate == "hard":
        assert mean == pytest.approx(math.erfc(math.sqrt(alpha * (1 + v1) / v1 / 2)), abs=1e-4)

    steps = 100 if beta1 > 0 else 2
    stats = on_noise(gate, beta1, alpha, n=n, steps=steps, floor=1 + v1).gate_stats()
    assert_within(stats.mean_q, mean, math.sqrt((mean_square - mean**2) / n))
    opened = (weight * (q >= 0.5)).sum()
    assert_within(stats.open_fraction, opened, math.sqrt(opened * (1 - opened) / n))


@functools.cache
def simulated_moments(beta1, rho, n, steps):
    """m_hat^2 and s_hat after ``steps`` of N(0, 1) noise, from numpy's own random numbers."""
    rng = np.random.default_rng(1)
    m, s = np.zeros(n), np.zeros(n)
    for _ in range(steps):
        g = rng.standard_normal(n)
        s += (1 - rho) * ((g - m) ** 2 - s)
        m += (1 - beta1) * (g - m)
    return (m / (1 - beta1**steps)) ** 2, s / (1 - rho**steps)


@pytest.mark.parametrize("gate", GATED)
@pytest.mark.parametrize(("beta1", "alpha"), SETTINGS)
def test_mean_q_on_noise_with_the_streaming_floor(gate, beta1, alpha):
    n, steps = 40_000, 300
    q = gate_in_numpy(gate, *simulated_moments(beta1, 0.99, n, steps), alpha)
    stats = on_noise(gate, beta1, alpha, n=n, steps=steps).gate_stats()
    assert_within(stats.mean_q, q.mean(), q.std() * math.sqrt(2 / n))
    opened = (q >= 0.5).mean()
    assert_within(stats.open_fraction, opened, math.sqrt(2 * (opened + 1 / n) / n))


@pytest.mark.parametrize("beta1", [0.0, 0.5, 0.9])
def test_streaming_floor_on_noise(beta1):
    # E (g - m_prev)^2 = 1 + v1; it would be 1 - beta1 + ... < 1 with the new first moment
    steps, n = 800, 5_000
    optimizer = on_noise("soft", beta1, 1.0, n=n, steps=steps)
    (state,) = optimizer.state.values()
    s_hat = state["exp_grad_var"] / (1 - 0.99**steps)
    expected = 1 + (1 - beta1) / (1 + beta1)
    assert_within(s_hat.mean().item(), expected, s_hat.std().item() / math.sqrt(n))


@pytest.mark.parametrize("gate", GATED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_opens_on_pure_signal_of_any_scale(gate, dtype):
    p = nn.Parameter(torch.zeros(5, dtype=dtype))
    optimizer = SNRAdam([p], gate=gate)
    p.grad = torch.tensor([1e-6, -1e-3, 1.0, -1e3, 1e6], dtype=dtype)
    mean_q = []
    for _ in range(15):
        for _ in range(100):
            optimizer.step()
        mean_q.append(optimizer.gate_stats().mean_q)
    assert mean_q == sorted(mean_q)
    assert mean_q[-1] == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("gate", GATED)
@pytest.mark.parametrize("alpha", [0.1, 1.0])
def test_mean_q_grows_with_the_signal_to_noise_ratio(gate, alpha):
    ratios = [0.0, 0.25, 0.5, 1.0, 2.0, 8.0]
    mean_q = [
        on_noise(gate, 0.9, alpha, n=2_000, steps=200, mean=r).gate_stats().mean_q for r in ratios
    ]
    assert mean_q == sorted(mean_q)
    assert mean_q[0] < 0.4 * mean_q[-1]
    assert mean_q[-1] > 0.9


# The streaming floor against per-sample gradients ----------------------------------------------


@pytest.mark.parametrize("beta1", [0.0, 0.9])
@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_stream_draws_are_unbiased(model, beta1):
    """Fresh batches of 4 out of 30, with replacement: the variance of the mean gradient, and of
    the first moment's (1 - beta1) / (1 + beta1) of it. After 100 steps that is stationary."""
    problem = model(30)
    optimizer = SNRAdam(problem.params, lr=0.0, rho=0.0, betas=(beta1, 0.999))
    found = []
    torch.manual_seed(5)
    for _ in range(600):
        optimizer.zero_grad()
        problem.losses()[torch.randint(0, 30, (4,))].mean().backward()
        optimizer.step()
        found.append(floors_of(optimizer, problem.params).clone())
    variance = per_sample(problem.losses(), problem.params).var(0, correction=0) / 4
    assert_unbiased(torch.stack(found[100:]), 2 / (1 + beta1) * variance)


# What it says of itself -------------------------------------------------------------------------


def test_describe_the_published_rule():
    optimizer = SNRAdam(parameters(), alpha=0.25)
    text = optimizer.describe()
    assert "SNRAdam: Adam in the parameters' own coordinates" in text
    assert "floor: stream" in text
    assert "gate: soft, alpha = 0.25" in text
    assert "noisy" not in text and "exact" not in text
    feed(optimizer, 1, floor={p: torch.ones_like(p) for p in optimizer.param_groups[0]["params"]})
    assert "step(floor=...)" in optimizer.describe()


def test_describe_no_gate():
    assert SNRAdam(parameters(), gate="none").describe() == "SNRAdam: plain Adam, no gate"


def test_describe_data_alone_and_beside_exact_terms():
    net, data, source = network(), NoisyLoss(0.1), NoisyLoss(0.5, "huber")
    free = nn.Parameter(torch.ones(2))
    groups = [{"params": net.parameters()}, {"params": [free], "gate": "none"}]
    optimizer = SNRAdam(groups, noise=[data, source], gate={"warmup_steps": 5})
    assert "seen in the first step" in optimizer.describe()
    for exact in (False, True):
        for t in range(2):
            x, y = batch(t)
            optimizer.zero_grad()
            loss = data(net(x), y) + source(net(-x), y)
            loss = loss + exact * sum(p.square().sum() for p in [*net.parameters(), free])
            (loss * (1 + exact)).backward()
            optimizer.step()
        text = optimizer.describe()
        assert "floor: label" in text
        assert "noisy: NoisyLoss, mse, sigma 0.1" in text
        assert "noisy: NoisyLoss, huber, sigma 0.5" in text
        assert "without a gate: 1 parameter(s)" in text
        if exact:
            assert "exact: what else is in the loss" in text
            assert "gate: stein, z = 1, from step 5 on" in text
        else:
            assert "exact: none: all of the loss is noisy" in text
            assert "gate: stein, z = 2, rising with the steps, open by what the resid" in text
            assert "from step 5 on" in text


def test_describe_another_gate():
    optimizer = SNRAdam(parameters(), noise=NoisyLoss(0.1), gate=Gate("hard", z=3.0))
    assert "gate: hard, z = 3\n" in optimizer.describe() + "\n"


def test_moments_of_a_parameter():
    params = parameters()
    optimizer = SNRAdam(params)
    assert optimizer.moments(params[1]) is None
    assert not optimizer.state
    feed(optimizer, 3)
    moments, state = optimizer.moments(params[3]), optimizer.state[params[3]]
    assert torch.equal(moments.mean, state["exp_avg"].flatten())
    assert torch.equal(moments.square, state["exp_avg_sq"].flatten())
    assert torch.equal(moments.floor, state["exp_grad_var"].flatten())
    assert (moments.step, moments.lr, moments.betas) == (3, 3e-3, (0.9, 0.999))
    assert moments.floor_weight == pytest.approx(1 - 0.99**3)
    assert optimizer.moments(nn.Parameter(torch.ones(1))) is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_step_is_not_captured_into_a_cuda_graph():
    net = network().cuda()
    optimizer = SNRAdam(net.parameters())
    x, y = (z.cuda() for z in batch(0))
    nn.functional.mse_loss(net(x), y).backward()
    with (
        pytest.raises(RuntimeError, match="cannot be captured"),
        torch.cuda.graph(torch.cuda.CUDAGraph()),
    ):
        optimizer.step()
