"""SNRSOAP: its limits SOAP and SNRAdam, the floor in turned coordinates, what SNRAdam promises."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler
from torch.utils._python_dispatch import TorchDispatchMode

from sciml_snr import SNRSOAP, LabelNoise, NoiseFloor, SNRAdam
from sciml_snr.snr_soap import BASES
from tests.cases import (
    FLOATS,
    GATED,
    GATES,
    assert_plain,
    assert_refused_by_name,
    assert_same_bits,
    batch,
    feed,
    gradients,
    network,
    snapshot,
    through_a_file,
)
from tests.cases import parameters as awkward_parameters

BOTH_PATHS = pytest.mark.parametrize("foreach", [False, True], ids=["single", "foreach"])
EVERY_BASIS = pytest.mark.parametrize("basis", BASES)
COPIES = pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"]
)
OFTEN = {"precondition_frequency": 3}


def parameters(dtype=torch.float32, seed=0):
    """No, one, two (strided, and empty), four dimensions; and three."""
    rng = torch.Generator().manual_seed(seed)
    cube = torch.randn(3, 2, 2, generator=rng, dtype=torch.float64).to(dtype)
    return [*awkward_parameters(dtype, seed), nn.Parameter(cube)]


def square(dtype=torch.float64, *shape):
    """One parameter whose first gradient already has covariances of full rank."""
    return nn.Parameter(torch.ones(shape or (4, 4), dtype=dtype))


def fit(net, optimizer, floor=None, steps=1, start=0):
    """Steps start, ... on ``batch``, with the same random signs in every run."""
    dtype = next(net.parameters()).dtype
    for t in range(start, start + steps):
        x, y = batch(t, dtype=dtype)
        optimizer.zero_grad()
        torch.manual_seed(t)
        if floor is None:
            nn.functional.mse_loss(net(x), y).backward()
        else:
            floor.backward(net(x), y)
        optimizer.step(floor=floor)


class Given(NoiseFloor):
    """A floor whose draws are given."""

    def give(self, *draws):
        self._is_due()
        self._average(dict(zip(self.params, draws, strict=True)))


def feed_draws(optimizer, floor, steps, start=0):
    """``feed``, with draws for the floor too."""
    for t in range(start, start + steps):
        floor.give(*(g - 0.5 for g in gradients(floor.params, 1000 + t)))
        feed(optimizer, 1, start=t, floor=floor)


def with_floor(dtype=torch.float32, **options):
    params = parameters(dtype)
    return SNRSOAP(params, lr=1e-2, **{**OFTEN, **options}), Given(params, rho=0.9)


def assert_close(actual, expected, rtol=1e-5, atol=1e-6):
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol)


# Its two limits: SOAP and SNRAdam ----------------------------------------------------------------


def soap(w, grads, *, lr, betas, eps, shampoo_beta, frequency):
    """arXiv:2409.11321, Algorithm 3, for a matrix w, with the moments' bias taken out."""
    m, v = torch.zeros_like(w), torch.zeros_like(w)
    covs, bases = [torch.zeros(n, n, dtype=w.dtype) for n in w.shape], []
    for t, g in enumerate(grads):
        for i, outer in enumerate((g @ g.T, g.T @ g)):
            covs[i] = shampoo_beta * covs[i] + (1 - shampoo_beta) * outer
        if not bases:
            bases = [torch.linalg.eigh(c).eigenvectors.flip(1) for c in covs]
        elif t % frequency == 0:
            for i, (c, q) in enumerate(zip(covs, bases, strict=True)):
                order = torch.diagonal(q.T @ c @ q).argsort(descending=True)
                v = v[order] if i == 0 else v[:, order]
                bases[i] = torch.linalg.qr(c @ q[:, order]).Q
        left, right = bases
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * (left.T @ g @ right) ** 2
        m_hat, v_hat = m / (1 - betas[0] ** (t + 1)), v / (1 - betas[1] ** (t + 1))
        w = w - lr * left @ (left.T @ m_hat @ right / (v_hat.sqrt() + eps)) @ right.T
    return w


@pytest.mark.parametrize("shape", [(4, 4), (4, 2, 2)], ids=str)
@pytest.mark.parametrize("frequency", [1, 3, 10])
@BOTH_PATHS
def test_without_gate_it_is_soap(shape, frequency, foreach):
    p, options = square(torch.float64, *shape), {"betas": (0.8, 0.9), "eps": 1e-3}
    optimizer = SNRSOAP(
        [p],
        lr=0.1,
        gate="none",
        basis="gradient",
        shampoo_beta=0.7,
        precondition_frequency=frequency,
        foreach=foreach,
        **options,
    )
    grads = [gradients([p], t)[0].reshape(4, 4) for t in range(25)]
    start = p.detach().reshape(4, 4).clone()
    feed(optimizer, 25)
    expected = soap(start, grads, lr=0.1, shampoo_beta=0.7, frequency=frequency, **options)
    assert_close(p.detach().reshape(4, 4), expected, rtol=1e-9, atol=1e-9)


def test_without_gate_it_is_another_package_s_soap():
    """Which skips its first step, here on the second step's gradient; before it turns its basis.

    With beta2 = 0 the two ways to correct its bias, before and after adding eps, are the same.
    """
    theirs = pytest.importorskip("pytorch_optimizer").SOAP
    p, q = square(), square()
    options = {"lr": 0.1, "betas": (0.9, 0.0), "eps": 1e-2, "weight_decay": 0.0}
    options |= {"shampoo_beta": 0.9, "precondition_frequency": 1000}
    ours = SNRSOAP([p], gate="none", basis="gradient", **options)
    other = theirs([q], **options)
    feed(other, 1)
    feed(other, 20)
    feed(ours, 20)
    assert_close(p, q, rtol=1e-8, atol=1e-8)


OPTIONS = {
    "plain": {},
    "weight decay": {"weight_decay": 0.1},
    "L2": {"weight_decay": 0.1, "decoupled_weight_decay": False},
    "ascending": {"maximize": True, "weight_decay": 0.1},
    "warm-up": {"warmup_steps": 4},
    "z": {"z": 0.5},
    "rising": {"rise_steps": 3},
}


def moments(optimizer):
    return [
        (p, {key: state[key] for key in ("step", *SNRAdam._initial_keys)})
        for p, state in snapshot(optimizer)
    ]


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("dtype", [*FLOATS, torch.complex64])
@pytest.mark.parametrize("options", OPTIONS)
def test_without_bases_it_is_snradam_bit_for_bit(gate, dtype, options):
    soap = SNRSOAP(parameters(dtype), 1e-2, max_precondition_dim=1, gate=gate, **OPTIONS[options])
    adam = SNRAdam(parameters(dtype), 1e-2, gate=gate, **OPTIONS[options])
    feed(soap, 10)
    feed(adam, 10)
    assert_same_bits(moments(soap), moments(adam))
    assert soap.gate_stats() == adam.gate_stats()


@pytest.mark.parametrize("gate", GATED)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("every", [1, 3])
@BOTH_PATHS
def test_without_bases_it_has_snradams_floor_bit_for_bit(gate, dtype, every, foreach):
    found = []
    for kind, options in ((SNRSOAP, {"max_precondition_dim": 1}), (SNRAdam, {})):
        net = network(dtype)
        optimizer = kind(net.parameters(), lr=1e-2, gate=gate, z=1.0, foreach=foreach, **options)
        floor = LabelNoise(net.parameters(), sigma=0.1, every=every)
        fit(net, optimizer, floor, 10)
        found.append((moments(optimizer), optimizer.gate_stats()))
    assert_same_bits(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]
    assert 0 < found[0][1].mean_q < 1


@pytest.mark.parametrize("gate", GATED)
def test_complex_parameters_keep_their_coordinates(gate):
    soap, adam = (
        kind(parameters(torch.complex64), lr=1e-2, gate=gate) for kind in (SNRSOAP, SNRAdam)
    )
    floors = [Given(o.param_groups[0]["params"], rho=0.9) for o in (soap, adam)]
    feed_draws(soap, floors[0], 8)
    feed_draws(adam, floors[1], 8)
    assert_same_bits(moments(soap), moments(adam))
    assert soap.gate_stats() == adam.gate_stats()


# Turned coordinates ------------------------------------------------------------------------------


def predictions(kind, turn, steps=30, **options):
    """What a network says of its points after each step, given the points turned by ``turn``."""
    rng = torch.Generator().manual_seed(0)
    x, y = (torch.randn(12, n, generator=rng, dtype=torch.float64) for n in (4, 1))
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    with torch.no_grad():
        net[0].weight.copy_(net[0].weight @ turn.T)
    net[2].requires_grad_(False)
    optimizer = kind(net[0].parameters(), lr=0.05, z=1.0, gate="snr", **options)
    floor = LabelNoise(net[0].parameters(), sigma=0.5)
    said = []
    for t in range(steps):
        optimizer.zero_grad()
        torch.manual_seed(t)
        floor.backward(net(x @ turn.T), y)
        optimizer.step(floor=floor)
        said.append(net(x @ turn.T).detach())
    return torch.stack(said)


@EVERY_BASIS
def test_turning_the_inputs_changes_nothing(basis):
    rng = torch.Generator().manual_seed(1)
    turn = torch.linalg.qr(torch.randn(4, 4, generator=rng, dtype=torch.float64)).Q
    plain = torch.eye(4, dtype=torch.float64)
    straight, turned = (predictions(SNRSOAP, q, basis=basis, **OFTEN) for q in (plain, turn))
    assert_close(turned, straight, rtol=0, atol=1e-7)
    straight, turned = (predictions(SNRAdam, q) for q in (plain, turn))
    assert (turned - straight).abs().max() > 0.01


def test_floor_in_turned_coordinates_is_unbiased():
    """At lr = 0, in the first step's basis: the average over N random signs in each coordinate.

    Tolerance: 5 sqrt(2 / N), the relative standard error of h^2's mean.
    """
    n, steps, sigma = 8, 1200, 0.3
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    x, y = torch.randn(n, 3).double(), torch.randn(n, 2).double()
    optimizer = SNRSOAP(net.parameters(), lr=0.0, precondition_frequency=10**9)
    floor = LabelNoise(net.parameters(), sigma=sigma, rho=0.99999)
    for _ in range(steps):
        optimizer.zero_grad()
        floor.backward(net(x), y)
        optimizer.step(floor=floor)
    assert optimizer._floor is not None
    misfit = ((net(x) - y) / sigma).square().mean().item()
    scale = 2 * sigma / (2 * n) / max(misfit, 1) ** 0.5
    for p in net.parameters():
        state, expected = optimizer.state[p], torch.zeros_like(p)
        left = state.get("row_basis", torch.eye(p.shape[0]).double())
        right = state.get("col_basis", torch.eye(p[0].numel()).double())
        for u in net(x).flatten():
            (g,) = torch.autograd.grad(u, p, retain_graph=True)
            turned = left.T @ g @ right if p.ndim == 2 else g
            expected += (scale * turned) ** 2
        error = (optimizer._floor[p] - expected).abs()
        assert (error <= 5 * math.sqrt(2 / steps) * expected).all()
    found = torch.cat([optimizer._floor[p].flatten() for p in net.parameters()])
    unturned = torch.cat([floor[p].flatten() for p in net.parameters()])
    assert (found / unturned - 1).abs().max() > 0.5


def test_states_follow_their_eigenvectors():
    """Diagonal gradients: every basis is an order of the axes, and SNRAdam's step is the same.

    The third axis is the weakest when the first basis is made, and the strongest afterwards.
    """
    p, q = square(torch.float64, 3, 3), square(torch.float64, 3, 3)
    soap = SNRSOAP([p], lr=0.1, z=1.0, eps=0.01, precondition_frequency=5)
    adam = SNRAdam([q], lr=0.1, z=1.0, eps=0.01)
    floors = Given([p], rho=0.9), Given([q], rho=0.9)
    rng = torch.Generator().manual_seed(0)
    orders = []
    for t in range(23):
        strength = torch.tensor([3.0, 2, 1] if t < 2 else [1.0, 2, 30], dtype=torch.float64)
        g, h = ((1 + torch.rand(3, generator=rng)) * strength for _ in range(2))
        for optimizer, floor in zip((soap, adam), floors, strict=True):
            (w,) = floor.params
            floor.give(torch.diag(h / 4))
            w.grad = torch.diag(g)
            optimizer.step(floor=floor)
        state = soap.state[p]
        orders.append(state["row_basis"].abs().argmax(0).tolist())
        left, right = state["row_basis"].abs(), state["col_basis"].abs()
        for key in ("exp_avg_sq", "exp_grad_var"):
            assert_close(left @ state[key] @ right.T, adam.state[q][key], rtol=1e-12, atol=1e-12)
        (mean_sq,) = floors[1].state_dict()["mean_sq"]
        assert_close(left @ state["exp_floor"] @ right.T, mean_sq, rtol=1e-12, atol=1e-12)
        mean = state["row_basis"] @ state["exp_avg"] @ state["col_basis"].T
        assert_close(mean, adam.state[q]["exp_avg"], rtol=1e-12, atol=1e-12)
        assert_close(p, q, rtol=1e-12, atol=1e-12)
    assert orders[4] == [0, 1, 2]
    assert orders[22][0] == 2
    moved = (torch.diag(p) - 1).abs()
    assert ((moved > 0.01) & (moved < 0.1 * 23)).all()


@EVERY_BASIS
@pytest.mark.parametrize("given", [False, True], ids=["streaming", "floor"])
def test_basis_is_of_the_covariances_it_is_named_after(basis, given):
    """In the first step, from the eigenvectors' definition; without a floor: of the gradient."""
    p = square()
    optimizer, floor = SNRSOAP([p], basis=basis), Given([p])
    (g,), (h,) = gradients([p], 0), gradients([p], 1)
    parts = {"gradient": [g], "floor": [h], "both": [g, h]}[basis if given else "gradient"]
    if given:
        floor.give(h)
    p.grad = g
    optimizer.step(floor=floor if given else None)
    for side, outer in (("row", lambda x: x @ x.T), ("col", lambda x: x.T @ x)):
        cov = sum(outer(x) / outer(x).trace() for x in parts)
        q = optimizer.state[p][f"{side}_basis"]
        values = torch.diagonal(q.T @ cov @ q)
        assert_close(q.T @ q, torch.eye(4).double(), rtol=0, atol=1e-12)
        assert_close(cov @ q, q * values, rtol=0, atol=1e-12)
        assert values.tolist() == sorted(values, reverse=True)


@pytest.mark.parametrize("frequency", [1, 4])
def test_basis_is_renewed_when_it_is_due_and_stays_orthogonal(frequency):
    p = square(torch.float32, 6, 3)
    optimizer = SNRSOAP([p], precondition_frequency=frequency)
    bases = []
    for t in range(12):
        feed(optimizer, 1, start=t)
        bases.append(optimizer.state[p]["row_basis"].clone())
        assert_close(bases[-1].T @ bases[-1], torch.eye(6), atol=1e-5)
    changed = [t for t in range(1, 12) if not torch.equal(bases[t], bases[t - 1])]
    assert changed == list(range(frequency, 12, frequency))


class Largest(TorchDispatchMode):
    """The largest tensor that was made."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (list, tuple)) else [out]:
            if isinstance(x, Tensor):
                self.numel = max(self.numel, x.numel())
        return out


def test_long_sides_keep_their_coordinates_and_cost_no_matrix():
    p = nn.Parameter(torch.zeros(300, 3))
    optimizer, floor = SNRSOAP([p], max_precondition_dim=100), Given([p])
    with Largest() as largest:
        feed_draws(optimizer, floor, 2)
    assert largest.numel == p.numel()
    assert {key for key in optimizer.state[p] if "row" in key} == set()
    assert optimizer.state[p]["col_basis"].shape == (3, 3)


def test_which_parameters_have_a_basis():
    params = [*parameters(), nn.Parameter(torch.ones(4, 1)), nn.Parameter(torch.ones(1, 5))]
    optimizer = SNRSOAP(params)
    feed(optimizer, 1)
    sides = {
        tuple(p.shape): [
            len(state[f"{side}_basis"]) if f"{side}_basis" in state else None
            for side in ("row", "col")
        ]
        for p, state in optimizer.state.items()
    }
    assert sides == {
        (): [None, None],
        (5,): [None, None],
        (0, 3): [None, None],
        (3, 4): [3, 4],
        (2, 3, 2, 2): [2, 12],
        (3, 2, 2): [3, 4],
        (4, 1): [4, None],
        (1, 5): [None, 5],
    }


# The floor ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS)
@BOTH_PATHS
def test_gate_stats_by_hand(dtype, foreach):
    optimizer, floor = with_floor(dtype, gate="stein", z=0.5, foreach=foreach)
    feed_draws(optimizer, floor, 7)
    q = []
    for state in optimizer.state.values():
        mean_sq = (state["exp_avg"].double() / (1 - 0.9**7)) ** 2
        variance = state["exp_floor"].double() / (1 - floor.rho**7)
        q.append((1 - 0.25 * variance / mean_sq).clamp_min(0).flatten())
    stats = optimizer.gate_stats()
    assert stats.mean_q == pytest.approx(torch.cat(q).mean().item(), rel=1e-4)
    assert stats.numel == len(torch.cat(q))
    assert 0.1 < stats.mean_q < 0.9


@EVERY_BASIS
@pytest.mark.parametrize("gate", GATED)
def test_no_noise_is_no_gate(gate, basis):
    optimizer, floor = with_floor(gate=gate, basis=basis)
    ungated, _ = with_floor(gate="none", basis=basis)
    for t in range(8):
        floor.give(*(torch.zeros_like(p) for p in floor.params))
        feed(optimizer, 1, start=t, floor=floor)
    feed(ungated, 8)
    assert_same_bits([p for p, _ in snapshot(optimizer)], [p for p, _ in snapshot(ungated)])


@pytest.mark.parametrize("gate", GATED)
@BOTH_PATHS
def test_much_noise_stops_all_movement(gate, foreach):
    params = [square(torch.float32), *parameters()[:2]]
    optimizer, floor = SNRSOAP(params, gate=gate, foreach=foreach, **OFTEN), Given(params)
    start = snapshot(optimizer)
    for t in range(5):
        floor.give(*(1e8 * g for g in gradients(floor.params, 1000 + t)))
        feed(optimizer, 1, start=t, floor=floor)
    for (p, _), (before, _) in zip(snapshot(optimizer), start, strict=True):
        assert_close(p, before, rtol=0, atol=1e-9)


def test_between_its_draws_a_floor_stays():
    net = network()
    optimizer = SNRSOAP(net.parameters(), **OFTEN)
    floor = LabelNoise(net.parameters(), sigma=0.1, every=3)
    fit(net, optimizer, floor, 4)
    before = [state["exp_floor"].clone() for state in optimizer.state.values()]
    used = dict(optimizer._floor)
    fit(net, optimizer, floor, 1, start=4)
    assert_same_bits([state["exp_floor"] for state in optimizer.state.values()], before)
    assert_same_bits(list(optimizer._floor.values()), list(used.values()))
    fit(net, optimizer, floor, 2, start=5)
    assert [state["floor_step"] for state in optimizer.state.values()] == [3] * len(before)


@pytest.mark.parametrize("gate", GATED)
def test_parameters_that_the_noise_does_not_reach_are_not_gated(gate):
    """As in SNRAdam, whose floor of them is 0."""
    params = [nn.Parameter(torch.ones(3, 3)), nn.Parameter(torch.ones(3, 3))]
    optimizer, floor = SNRSOAP(params, gate=gate), Given(params)
    for t in range(3):
        floor.give(torch.ones(3, 3), None)
        feed(optimizer, 1, start=t, floor=floor)
    assert not optimizer._floor[params[1]].any()
    assert floor[params[1]].abs().max() == 0
    optimizer.param_groups = [{**optimizer.param_groups[0], "params": params[1:]}]
    assert optimizer.gate_stats().mean_q == pytest.approx(1)


def test_parameters_that_take_turns_are_gated_by_floors_of_their_own():
    params = [nn.Parameter(torch.ones(3, 3)), nn.Parameter(torch.ones(3, 3))]
    optimizer, floor = SNRSOAP(params, gate="hard", z=1.0), Given(params)
    for t in range(8):
        noise = gradients(params, 1000 + t)
        draws = [1e4 * noise[i] if t % 2 == i else None for i in range(2)]
        floor.give(*draws)
        for p, g, draw in zip(params, gradients(params, t), draws, strict=True):
            p.grad = None if draw is None else g
        optimizer.step(floor=floor)
    assert [optimizer.state[p]["floor_step"] for p in params] == [4, 4]
    assert optimizer.gate_stats() == (0.0, 0.0, 18)  # the idle one, too


def test_parameters_without_a_floor_stream():
    params = parameters()
    partly, streaming = SNRSOAP(params, **OFTEN), SNRSOAP(parameters(), **OFTEN)
    floor = Given(params[3:4], rho=0.9)
    feed_draws(partly, floor, 8)
    feed(streaming, 8)
    given, rest = snapshot(partly), snapshot(streaming)
    assert not torch.equal(given[3][0], rest[3][0])
    del given[3], rest[3]
    assert_same_bits(given, rest)


@pytest.mark.parametrize("warm", [0, 2])
def test_variances_that_cannot_be_turned_are_refused(warm):
    optimizer, floor = with_floor()
    feed_draws(optimizer, floor, warm)
    feed(optimizer, 0)
    before = snapshot(optimizer)
    for p, g in zip(floor.params, gradients(floor.params, 9), strict=True):
        p.grad = g
    with pytest.raises(TypeError, match=r"LabelNoise, not a dict of variances"):
        optimizer.step(floor={p: torch.ones_like(p) for p in floor.params})
    assert_same_bits(snapshot(optimizer), before)


# What SNRAdam promises ---------------------------------------------------------------------------


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("options", OPTIONS)
def test_foreach_agrees_with_single_tensor(gate, options):
    found = []
    for foreach in (False, True):
        optimizer, floor = with_floor(
            torch.float64, gate=gate, alpha=0.3, foreach=foreach, **OPTIONS[options]
        )
        feed_draws(optimizer, floor, 10)
        found.append(snapshot(optimizer))
    assert_close(found[1], found[0], rtol=1e-8, atol=1e-9)


@BOTH_PATHS
def test_discrepancy_opens_by_the_excess(foreach):
    """In the turned coordinates, too: between the gate's step and SOAP's."""

    def moved(excess):
        p = square()
        floor = Given([p])
        floor.excess = torch.tensor(excess)
        optimizer = SNRSOAP([p], lr=0.1, gate="stein", z=1.0, foreach=foreach, **OFTEN)
        feed_draws(optimizer, floor, 3)
        before = p.detach().clone()
        optimizer.param_groups[0]["discrepancy"] = True
        feed_draws(optimizer, floor, 1, start=3)
        return p.detach() - before

    gated, opened, ungated = moved(0.0), moved(0.25), moved(1.0)
    assert not torch.allclose(gated, ungated)
    assert_close(opened, 0.75 * gated + 0.25 * ungated, rtol=1e-6, atol=1e-9)


@BOTH_PATHS
def test_groups_follow_their_own_options(foreach):
    own = [
        {"lr": 1e-2, "gate": "hard", "alpha": 0.1, "basis": "gradient"},
        {"z": 2.0, "rho": 0.9, "warmup_steps": 3, "shampoo_beta": 0.5},
        {"gate": "stein", "weight_decay": 0.1, "max_precondition_dim": 3, "basis": "floor"},
        {"gate": "none", "betas": (0.5, 0.9), "maximize": True, "precondition_frequency": 2},
    ]
    groups = [{"params": parameters(seed=i), **options} for i, options in enumerate(own)]
    together = SNRSOAP(groups[:2], foreach=foreach, **OFTEN)
    for group in groups[2:]:
        together.add_param_group(group)
    params = [p for group in together.param_groups for p in group["params"]]
    feed_draws(together, Given(params), 8)

    alone = []
    for i, options in enumerate(own):
        mine = parameters(seed=i)
        optimizer, floor = SNRSOAP(mine, foreach=foreach, **{**OFTEN, **options}), Given(mine)
        for t in range(8):
            part = slice(i * len(mine), (i + 1) * len(mine))
            floor.give(*(g - 0.5 for g in gradients(params, 1000 + t)[part]))
            for p, g in zip(mine, gradients(params, t)[part], strict=True):
                p.grad = g
            optimizer.step(floor=floor)
        alone += snapshot(optimizer)
    assert_same_bits(snapshot(together), alone)


@pytest.mark.parametrize("gate", GATES)
def test_follows_schedulers(gate):
    (by_hand, floor), (scheduled, other) = with_floor(gate=gate), with_floor(gate=gate)
    scheduler = lr_scheduler.StepLR(scheduled, 4, 0.5)
    for t in range(10):
        by_hand.param_groups[0]["lr"] = 1e-2 * 0.5 ** (t // 4)
        feed_draws(by_hand, floor, 1, start=t)
        feed_draws(scheduled, other, 1, start=t)
        scheduler.step()
    assert_same_bits(snapshot(scheduled), snapshot(by_hand))


def test_learning_rate_may_be_a_tensor():
    number, tensor = SNRSOAP(parameters(), lr=0.25), SNRSOAP(parameters(), lr=torch.tensor(0.25))
    feed(number, 5)
    feed(tensor, 5)
    assert_same_bits(snapshot(tensor), snapshot(number))


def test_decoupled_weight_decay_shrinks_before_the_step():
    decaying, plain = (SNRSOAP(parameters(), lr=0.1, weight_decay=d) for d in (0.2, 0.0))
    start = snapshot(decaying)
    feed(decaying, 1)
    feed(plain, 1)
    moved = zip(snapshot(decaying), snapshot(plain), start, strict=True)
    for (p, _), (q, _), (before, _) in moved:
        assert_close(p, q - 0.1 * 0.2 * before)


def test_l2_decay_is_a_gradient():
    """From the first step on; the covariances are the loss's gradients'."""
    p, q = square(), square()
    decaying = SNRSOAP([p], 0.1, weight_decay=0.2, decoupled_weight_decay=False)
    feed(decaying, 1)
    left, right = (decaying.state[p][f"{side}_basis"] for side in ("row", "col"))
    total = gradients([q], 0)[0] + 0.2 * q.detach()
    assert_close(decaying.state[p]["exp_avg"], 0.1 * left.T @ total @ right, 1e-9, 1e-12)


@BOTH_PATHS
def test_maximizing_is_minimizing_the_opposite(foreach):
    up, down = (SNRSOAP(parameters(), maximize=m, foreach=foreach, **OFTEN) for m in (True, False))
    for t in range(8):
        for optimizer, sign in ((up, -1), (down, 1)):
            params = optimizer.param_groups[0]["params"]
            for p, g in zip(params, gradients(params, t), strict=True):
                p.grad = sign * g
            optimizer.step()
    assert_same_bits(snapshot(up), snapshot(down))


def test_closure_updates_the_floor():
    net, other = network(), network()
    optimizer, expected = (SNRSOAP(n.parameters()) for n in (net, other))
    floor = LabelNoise(net.parameters(), sigma=0.1)
    x, y = batch(0)

    def closure():
        assert torch.is_grad_enabled()
        optimizer.zero_grad()
        torch.manual_seed(0)
        return floor.backward(net(x), y)

    with torch.no_grad():
        loss = optimizer.step(closure, floor)
    fit(other, expected, LabelNoise(other.parameters(), sigma=0.1))
    assert loss.item() == nn.functional.mse_loss(network()(x), y).item()
    assert_same_bits(snapshot(optimizer), snapshot(expected))


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_steps_are_float32_steps_rounded(gate, dtype):
    (short, floor), (wide, other) = (with_floor(d, gate=gate) for d in (dtype, torch.float32))
    for t in range(8):
        draws = [g - 0.5 for g in gradients(floor.params, 1000 + t)]
        floor.give(*draws)
        other.give(*(d.float() for d in draws))
        grads = gradients(floor.params, t)
        for h, f, g in zip(floor.params, other.params, grads, strict=True):
            f.data.copy_(h)
            h.grad, f.grad = g, g.float()
        short.step(floor=floor)
        wide.step(floor=other)
        assert_same_bits(
            [h.detach() for h in floor.params], [f.detach().to(dtype) for f in other.params]
        )
    assert_same_bits([s for _, s in snapshot(short)], [s for _, s in snapshot(wide)])


def test_float64_states_are_float64():
    optimizer, floor = with_floor(torch.float64)
    feed_draws(optimizer, floor, 4)
    for state in optimizer.state.values():
        assert {state[key].dtype for key in state if key not in ("step", "floor_step")} == {
            torch.float64
        }


BAD = [math.nan, math.inf]


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("warm", [0, 4], ids=["first step", "later"])
@pytest.mark.parametrize("nonfinite", ["raise", "skip"])
@BOTH_PATHS
def test_nonfinite_gradients_change_nothing(bad, warm, nonfinite, foreach):
    optimizer, floor = with_floor(nonfinite=nonfinite, weight_decay=0.1, foreach=foreach)
    feed_draws(optimizer, floor, warm)
    floor.give(*gradients(floor.params, 50))
    for p, g in zip(floor.params, gradients(floor.params, warm), strict=True):
        p.grad = g
    floor.params[3].grad[2, 1] = bad
    before, stats = snapshot(optimizer), optimizer.gate_stats()
    if nonfinite == "raise":
        with pytest.raises(FloatingPointError, match=r"parameter 3 of group 0, of shape \(3, 4\)"):
            optimizer.step(floor=floor)
    else:
        assert optimizer.step(lambda: "the loss", floor=floor) == "the loss"
    assert_same_bits(snapshot(optimizer), before)
    assert optimizer.gate_stats() == stats or not warm


def test_training_goes_on_after_a_refused_step():
    (refused, floor), (unhindered, other) = with_floor(), with_floor()
    feed_draws(refused, floor, 3)
    floor.params[3].grad[0, 0] = math.nan
    with pytest.raises(FloatingPointError):
        refused.step(floor=floor)
    feed_draws(refused, floor, 5, start=3)
    feed_draws(unhindered, other, 8)
    assert_same_bits(snapshot(refused), snapshot(unhindered))


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("huge", [1e18, 1e19, 3e19])
def test_huge_gradients_are_no_error(gate, huge):
    """Their squares overflow: the covariances go without them, and the basis stays a basis."""
    p = nn.Parameter(torch.zeros(40, 40))
    optimizer = SNRSOAP([p], lr=0.1, gate=gate, alpha=0.3, **OFTEN)
    rng = torch.Generator().manual_seed(0)
    for scale in (huge, 1.0, huge, 1.0, 1.0, 1.0, 1.0):
        p.grad = scale * torch.randn(40, 40, generator=rng)
        optimizer.step()
        assert p.isfinite().all()
        for side in ("row", "col"):
            q = optimizer.state[p][f"{side}_basis"]
            assert_close(q.T @ q, torch.eye(40), atol=1e-4)


def test_zero_gradients_are_no_error():
    p = square(torch.float32, 4, 3)
    optimizer = SNRSOAP([p], **OFTEN)
    for _ in range(5):
        p.grad = torch.zeros_like(p)
        optimizer.step()
    assert_same_bits(p.detach(), torch.ones(4, 3))
    feed(optimizer, 5)
    assert p.isfinite().all() and not torch.equal(p, torch.ones(4, 3))


NONSENSE = [
    ("basis", "noise"),
    ("basis", None),
    ("basis", ["both"]),
    ("shampoo_beta", 1.0),
    ("shampoo_beta", -0.1),
    ("shampoo_beta", math.nan),
    ("shampoo_beta", "0.9"),
    ("precondition_frequency", 0),
    ("precondition_frequency", 1.5),
    ("max_precondition_dim", 0),
    ("max_precondition_dim", None),
    ("lr", -1e-3),
    ("gate", "sotf"),
    ("z", -1.0),
    ("rho", 1.0),
]


@pytest.mark.parametrize(("name", "value"), NONSENSE)
def test_nonsense_options_are_refused_by_name(name, value):
    assert_refused_by_name(SNRSOAP, name, value)


def test_unknown_options_are_refused():
    with pytest.raises(TypeError, match="precondition_freq"):
        SNRSOAP(parameters(), precondition_freq=3)


def test_state_dict_is_plain():
    optimizer, floor = with_floor()
    feed_draws(optimizer, floor, 2)
    assert_plain(optimizer.state_dict())


@pytest.mark.parametrize("dtype", [*FLOATS, torch.float16, torch.complex64])
def test_loaded_state_is_the_saved_state(dtype):
    saved, floor = with_floor(dtype)
    loaded, _ = with_floor(dtype)
    feed_draws(saved, floor, 5)
    loaded.load_state_dict(saved.state_dict())
    assert_same_bits([s for _, s in snapshot(loaded)], [s for _, s in snapshot(saved)])
    assert loaded.state_dict()["param_groups"] == saved.state_dict()["param_groups"]


@EVERY_BASIS
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("every", [1, 3])
@BOTH_PATHS
def test_continues_from_a_file_with_the_same_bits(basis, dtype, every, foreach):
    def fresh(seed, **options):
        net = network(dtype, seed)
        groups = [{"params": net[0].parameters()}, {"params": net[2:].parameters(), **options}]
        optimizer = SNRSOAP(groups, lr=1e-2, basis=basis, z=1.0, foreach=foreach)
        return net, optimizer, LabelNoise(net.parameters(), sigma=0.1, every=every)

    whole = fresh(0, lr=3e-2, precondition_frequency=4)
    fit(*whole, steps=7)
    saved = through_a_file([x.state_dict() for x in whole])
    fit(*whole, steps=8, start=7)

    resumed = fresh(1)
    for x, state in zip(resumed, saved, strict=True):
        x.load_state_dict(state)
    fit(*resumed, steps=8, start=7)
    assert_same_bits(snapshot(resumed[1]), snapshot(whole[1]))
    assert resumed[1].gate_stats() == whole[1].gate_stats()


@pytest.mark.parametrize("dtype", FLOATS)
@COPIES
def test_continues_from_a_copy_with_the_same_bits(dtype, copied):
    original = with_floor(dtype)
    feed_draws(*original, 5)
    twin = copied(original)
    feed_draws(*original, 5, start=5)
    assert not torch.equal(snapshot(original[0])[3][0], snapshot(twin[0])[3][0])
    feed_draws(*twin, 5, start=5)
    assert_same_bits(snapshot(twin[0]), snapshot(original[0]))


def test_gradients_and_draws_are_left_alone():
    optimizer, floor = with_floor(weight_decay=0.1, maximize=True)
    feed_draws(optimizer, floor, 2)
    assert_same_bits([p.grad for p in floor.params], gradients(floor.params, 1))
    draws = [g - 0.5 for g in gradients(floor.params, 1001)]
    assert_same_bits(list(floor.draws.values()), draws)


# What it is for ----------------------------------------------------------------------------------


@pytest.mark.parametrize("gate", GATED)
def test_fits_a_network(gate):
    net = network()
    x, y = batch(0, 256)
    before = nn.functional.mse_loss(net(x), y).item()
    fit(net, SNRSOAP(net.parameters(), lr=1e-2, gate=gate, alpha=0.05), None, 150)
    assert nn.functional.mse_loss(net(x), y).item() < 0.3 * before


def regression_error(seed, steps=200, **options):
    """Mean squared error of a fitted linear map of 20 features, of which the data tell 4."""
    rng = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(20, 20, generator=rng)).Q
    x = torch.randn(40, 20, generator=rng) @ turn
    truth = turn.T[:, :4] @ torch.randn(4, 3, generator=rng)
    y = x @ truth + 1.0 * torch.randn(40, 3, generator=rng)
    net = nn.Linear(20, 3, bias=False)
    nn.init.zeros_(net.weight)
    optimizer = SNRSOAP(net.parameters(), lr=3e-2, **options)
    floor = LabelNoise(net.parameters(), sigma=1.0)
    torch.manual_seed(seed)
    for _ in range(steps):
        optimizer.zero_grad()
        floor.backward(net(x), y)
        optimizer.step(floor=floor)
    return (net.weight.T - truth).square().sum(0).mean().item()


def test_label_floor_keeps_noise_out_of_a_regression():
    """Full batch, to the end."""
    gated, ungated = (
        [regression_error(seed, gate=gate, z=2.0) for seed in range(5)]
        for gate in ("stein", "none")
    )
    assert all(a < b for a, b in zip(gated, ungated, strict=True)), (gated, ungated)
    assert sum(gated) < 0.8 * sum(ungated)
