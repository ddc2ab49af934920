"""SNRSOAP: its limits SOAP and SNRAdam, the floor in turned coordinates, what SNRAdam promises."""

from __future__ import annotations

import copy
import gc
import math
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler
from torch.utils._python_dispatch import TorchDispatchMode

from sciml_snr import SNRSOAP, Gate, NoisyLoss, NoisyTerm, SNRAdam, exact_label_noise
from sciml_snr.eigenbasis import BASES
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
    feed_noise,
    gradients,
    network,
    noise_state,
    own_adam,
    snapshot,
    through_a_file,
)
from tests.cases import parameters as awkward_parameters

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


def params_of(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]


def fit(net, optimizer, loss, steps=1, start=0, beside=False):
    """Steps start, ... on ``batch``."""
    dtype = next(net.parameters()).dtype
    for t in range(start, start + steps):
        x, y = batch(t, dtype=dtype)
        optimizer.zero_grad()
        total = loss(net(x), y)
        if beside:
            total = total + 3 * net(x + 1).square().mean()
        total.backward()
        optimizer.step()


def told_of(dtype=torch.float32, **options):
    """An optimizer of the awkward parameters, and the noisy loss that was declared to it."""
    told = Told()
    return SNRSOAP(parameters(dtype), lr=1e-2, rho=0.9, noise=told, **{**OFTEN, **options}), told


def step(optimizer, told, grads, draws, **facts):
    """One step on gradients and draws of the noise that are given; None: there is none."""
    params = params_of(optimizer)
    for p, g in zip(params, grads, strict=True):
        p.grad = g
    own, noisy = (
        {p: x for p, x in zip(params, found, strict=True) if x is not None}
        for found in (draws, grads)
    )
    told.tell(own, noisy, Facts(**facts))
    optimizer.step()


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
def test_without_gate_it_is_soap(shape, frequency):
    p, options = square(torch.float64, *shape), {"betas": (0.8, 0.9), "eps": 1e-3}
    optimizer = SNRSOAP(
        [p],
        lr=0.1,
        gate="none",
        basis="gradient",
        shampoo_beta=0.7,
        precondition_frequency=frequency,
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
    "warm-up": {"gate": {"warmup_steps": 4}},
    "z": {"gate": {"z": 0.5}},
    "rising": {"gate": {"rise_steps": 3}},
}


def gated(form, options):
    """Options of this name with this form of the gate."""
    own = OPTIONS[options]
    return {**own, "gate": {"form": form, **own.get("gate", {})}}


def moments(optimizer):
    """Parameters and the state that SNRAdam has, too."""
    return [
        (p, {key: x for key, x in state.items() if not key.startswith(("row_", "col_"))})
        for p, state in snapshot(optimizer)
        if p.numel()
    ]


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("dtype", [*FLOATS, torch.complex64])
@pytest.mark.parametrize("options", OPTIONS)
def test_without_bases_it_is_snradam_bit_for_bit(gate, dtype, options):
    own = gated(gate, options)
    soap = SNRSOAP(parameters(dtype), 1e-2, max_precondition_dim=1, **own)
    adam = SNRAdam(parameters(dtype), 1e-2, **own)
    feed(soap, 10)
    feed(adam, 10)
    assert_same_bits(moments(soap), moments(adam))
    assert soap.gate_stats() == adam.gate_stats()


@pytest.mark.parametrize("beside", [False, True], ids=["data alone", "beside an exact term"])
@pytest.mark.parametrize("gate", GATED)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("every", [1, 3])
def test_without_bases_it_has_snradams_floor_bit_for_bit(gate, dtype, every, beside):
    found = []
    for kind, options in ((SNRSOAP, {"max_precondition_dim": 1}), (own_adam, {})):
        net, data = network(dtype), NoisyLoss(0.3)
        options["gate"] = Gate(gate, z=1.0)
        optimizer = kind(net.parameters(), lr=1e-2, noise=data, floor_every=every, **options)
        fit(net, optimizer, data, 10, beside=beside)
        assert optimizer.beside_exact is beside
        found.append((moments(optimizer), noise_state(optimizer), optimizer.gate_stats()))
    assert_same_bits(found[0][0], found[1][0])
    assert found[0][1:] == found[1][1:]
    assert 0 < found[0][2].mean_q < 1


@pytest.mark.parametrize("beside", [False, True], ids=["data alone", "beside an exact term"])
@pytest.mark.parametrize("gate", GATED)
def test_complex_parameters_keep_their_coordinates(gate, beside):
    found = []
    for kind in (SNRSOAP, own_adam):
        told = Told()
        params, options = parameters(torch.complex64), {"lr": 1e-2, "gate": Gate(gate, z=1.0)}
        optimizer = kind(params, noise=told, **options)
        feed_noise(optimizer, told, 8, beside_exact=beside)
        found.append((moments(optimizer), optimizer.gate_stats()))
    assert_same_bits(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]


# Turned coordinates ------------------------------------------------------------------------------


class OneDatum:
    """A datum of error sigma, and an equation beside it, of two matrices and a vector.

    Predictions are sums of sines, so that a datum's gradient has full rank. The random sign of the
    datum's draw does not matter: it is squared after it was rotated.
    """

    sigma = 0.5

    def __init__(self) -> None:
        self.rng = torch.Generator().manual_seed(0)
        shapes = [(4, 4), (3, 3), (5,)]
        self.starts = [self.randn(shape) for shape in shapes]
        self.inside, self.other = ([self.randn(shape) for shape in shapes] for _ in range(2))
        self.y = torch.tensor([0.7], dtype=torch.float64)

    def randn(self, shape) -> Tensor:
        return torch.randn(shape, generator=self.rng, dtype=torch.float64)

    def prediction(self, ws) -> Tensor:
        return sum((a * torch.sin(w)).sum() for a, w in zip(self.inside, ws, strict=True))[None]

    def equation(self, ws) -> Tensor:
        return sum((b * torch.cos(w)).sum() for b, w in zip(self.other, ws, strict=True)) ** 2


def turned_rule(problem, steps, *, lr, betas, eps, rho, z, shampoo_beta, frequency, beside):
    """SNRSOAP in the words of its module and of sciml_snr.rule, one parameter after the other, with
    the draw of the noise rotated by hand; the exact terms do not move what is closed."""
    ws = [w.clone() for w in problem.starts]
    zeros = [torch.zeros_like(w) for w in ws]
    means, squares, floors = list(zeros), list(zeros), list(zeros)
    covs = [[[0.0, 0.0] for _ in range(w.ndim)] if w.ndim == 2 else [] for w in ws]
    bases = [None] * len(ws)
    openness = []
    for t in range(steps):
        leaves = [w.clone().requires_grad_() for w in ws]
        f = problem.prediction(leaves)
        loss = (f - problem.y).square().sum() + (problem.equation(leaves) if beside else 0)
        grads = torch.autograd.grad(loss, leaves, retain_graph=True)
        misfit = ((f - problem.y) / problem.sigma).square().item()
        scale = 2 * problem.sigma / max(misfit, 1) ** 0.5
        draws = [scale * d for d in torch.autograd.grad(f, leaves)]
        for i, (g, h) in enumerate(zip(grads, draws, strict=True)):
            left = right = None
            if g.ndim == 2:
                for side in range(2):
                    for k, x in enumerate((g, h)):
                        outer = x @ x.T if side == 0 else x.T @ x
                        old = covs[i][side][k]
                        covs[i][side][k] = shampoo_beta * old + (1 - shampoo_beta) * outer
                mixed = [sum(c / c.trace() for c in covs[i][side]) for side in range(2)]
                if bases[i] is None:
                    bases[i] = [torch.linalg.eigh(c).eigenvectors.flip(1) for c in mixed]
                elif t % frequency == 0:
                    for side, (c, q) in enumerate(zip(mixed, bases[i], strict=True)):
                        order = torch.diagonal(q.T @ c @ q).argsort(descending=True)
                        squares[i] = squares[i].index_select(side, order)
                        floors[i] = floors[i].index_select(side, order)
                        bases[i][side] = torch.linalg.qr(c @ q[:, order]).Q
                left, right = bases[i]

            def turned(x, left=left, right=right):
                return x if left is None else left.T @ x @ right

            means[i] = betas[0] * means[i] + (1 - betas[0]) * g
            squares[i] = betas[1] * squares[i] + (1 - betas[1]) * turned(g) ** 2
            floors[i] = rho * floors[i] + (1 - rho) * turned(h) ** 2
            m = turned(means[i]) / (1 - betas[0] ** (t + 1))
            v = squares[i] / (1 - betas[1] ** (t + 1))
            q = (1 - z**2 * floors[i] / (1 - rho ** (t + 1)) / m**2).clamp_min(0)
            move = q * m / (v.sqrt() + eps)
            ws[i] = ws[i] - lr * (move if left is None else left @ move @ right.T)
            openness.append(q.mean().item())
    return ws, floors, openness


@pytest.mark.parametrize("beside", [False, True], ids=["data alone", "beside an equation"])
@pytest.mark.parametrize("frequency", [1, 3, 10])
def test_floor_and_gate_in_turned_coordinates_are_those_of_draws_rotated_by_hand(frequency, beside):
    problem = OneDatum()
    options = {"lr": 0.03, "betas": (0.8, 0.95), "eps": 1e-3, "rho": 0.9, "shampoo_beta": 0.7}
    params = [nn.Parameter(w.clone()) for w in problem.starts]
    data = NoisyLoss(problem.sigma, reduction="sum")
    gate = Gate("stein", z=1.0, follow=False)
    optimizer = SNRSOAP(params, noise=data, gate=gate, precondition_frequency=frequency, **options)
    for _ in range(25):
        optimizer.zero_grad()
        loss = data(problem.prediction(params), problem.y)
        (loss + problem.equation(params) if beside else loss).backward()
        optimizer.step()
    assert optimizer.beside_exact is beside
    expected, floors, openness = turned_rule(
        problem, 25, z=1.0, frequency=frequency, beside=beside, **options
    )
    for p, w, floor in zip(params, expected, floors, strict=True):
        assert_close(p.detach(), w, rtol=1e-7, atol=1e-7)
        assert_close(optimizer.moments(p).floor, floor.flatten(), rtol=1e-6, atol=1e-10)
    assert 0.05 < sum(openness) / len(openness) < 0.95


def predictions(kind, turn, steps=30, **options):
    """What a network says of its points after each step, given the points turned by ``turn``."""
    rng = torch.Generator().manual_seed(0)
    x, y = (torch.randn(12, n, generator=rng, dtype=torch.float64) for n in (4, 1))
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    with torch.no_grad():
        net[0].weight.copy_(net[0].weight @ turn.T)
    net[2].requires_grad_(False)
    data = NoisyLoss(0.5)
    gate = Gate("snr", z=1.0)
    optimizer = kind(net[0].parameters(), lr=0.05, noise=data, gate=gate, **options)
    said = []
    for _ in range(steps):
        optimizer.zero_grad()
        data(net(x @ turn.T), y).backward()
        optimizer.step()
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


@pytest.mark.parametrize("beside", [False, True], ids=["data alone", "beside an exact term"])
def test_floor_in_turned_coordinates_is_unbiased(beside):
    """At lr = 0, in the first step's basis: the average over N random signs in each coordinate.

    Tolerance: 5 sqrt(2 / N), the relative standard error of h^2's mean.
    """
    n, steps, sigma = 8, 600, 0.3
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    x, y = torch.randn(n, 3).double(), torch.randn(n, 2).double()
    data = NoisyLoss(sigma)
    optimizer = SNRSOAP(
        net.parameters(), lr=0.0, rho=0.99999, precondition_frequency=10**9, noise=data
    )
    for _ in range(steps):
        optimizer.zero_grad()
        loss = data(net(x), y)
        (loss + net(2 * x).square().mean() if beside else loss).backward()
        optimizer.step()
    assert optimizer.beside_exact is beside
    misfit = ((net(x) - y) / sigma).square().mean().item()
    scale = 2 * sigma / (2 * n) / max(misfit, 1) ** 0.5
    unturned = exact_label_noise(net.parameters(), [NoisyTerm(net(x) - y, sigma)])
    ratios = []
    for p in net.parameters():
        state, expected = optimizer.state[p], torch.zeros_like(p)
        left = state.get("row_basis", torch.eye(p.shape[0]).double())
        right = state.get("col_basis", torch.eye(p[0].numel()).double())
        for u in net(x).flatten():
            (g,) = torch.autograd.grad(u, p, retain_graph=True)
            turned = left.T @ g @ right if p.ndim == 2 else g
            expected += (scale * turned) ** 2
        moments = optimizer.moments(p)
        found = (moments.floor / moments.floor_weight).view(p.shape)
        assert ((found - expected).abs() <= 5 * math.sqrt(2 / steps) * expected).all()
        ratios.append((found / unturned[p] - 1).abs().max().item())
    assert max(ratios) > 0.5


@pytest.mark.parametrize("declared", [False, True], ids=["streaming", "declared"])
def test_states_follow_their_eigenvectors(declared):
    """Diagonal gradients: every basis is an order of the axes, and SNRAdam's step is the same.

    The third axis is the weakest when the first basis is made, and the strongest afterwards.
    """
    p, q = square(torch.float64, 3, 3), square(torch.float64, 3, 3)
    told = [Told(), Told()] if declared else [None, None]
    options = {"lr": 0.1, "eps": 0.01, "gate": {"z": 1.0}, "rho": 0.9}
    soap = SNRSOAP([p], noise=told[0], precondition_frequency=5, **options)
    adam = SNRAdam([q], noise=told[1], **options)
    rng = torch.Generator().manual_seed(0)
    floor = "exp_floor" if declared else "exp_grad_var"
    orders = []
    for t in range(23):
        strength = torch.tensor([3.0, 2, 1] if t < 2 else [1.0, 2, 30], dtype=torch.float64)
        g, h = ((1 + torch.rand(3, generator=rng)) * strength for _ in range(2))
        for optimizer, source in zip((soap, adam), told, strict=True):
            if declared:
                step(optimizer, source, [torch.diag(g)], [torch.diag(h / 4)])
            else:
                params_of(optimizer)[0].grad = torch.diag(g)
                optimizer.step()
        state = soap.state[p]
        orders.append(state["row_basis"].abs().argmax(0).tolist())
        left, right = state["row_basis"].abs(), state["col_basis"].abs()
        for key in ("exp_avg_sq", floor):
            assert_close(left @ state[key] @ right.T, adam.state[q][key], rtol=1e-12, atol=1e-12)
        mean = state["row_basis"] @ state["exp_avg"] @ state["col_basis"].T
        assert_close(mean, adam.state[q]["exp_avg"], rtol=1e-12, atol=1e-12)
        assert_close(p, q, rtol=1e-12, atol=1e-12)
    assert orders[4] == [0, 1, 2]
    assert orders[22][0] == 2
    moved = (torch.diag(p) - 1).abs()
    assert ((moved > 0.01) & (moved < 0.1 * 23)).all()


@EVERY_BASIS
@pytest.mark.parametrize("declared", [False, True], ids=["streaming", "declared"])
def test_basis_is_of_the_covariances_it_is_named_after(basis, declared):
    """In the first step, from the eigenvectors' definition; without noise: of the gradient."""
    p, told = square(), Told() if declared else None
    optimizer = SNRSOAP([p], basis=basis, noise=told)
    (g,), (h,) = gradients([p], 0), gradients([p], 1)
    parts = {"gradient": [g], "floor": [h], "both": [g, h]}[basis if declared else "gradient"]
    if declared:
        step(optimizer, told, [g], [h])
    else:
        feed(optimizer, 1)
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


@pytest.mark.parametrize("beside", [False, True], ids=["data alone", "beside an exact term"])
def test_long_sides_keep_their_coordinates_and_cost_no_matrix(beside):
    p, told = nn.Parameter(torch.zeros(300, 3)), Told()
    optimizer = SNRSOAP([p], max_precondition_dim=100, noise=told)
    with Largest() as largest:
        feed_noise(optimizer, told, 2, beside_exact=beside)
    assert largest.numel <= 3 * p.numel()  # gradient, draw and noisy part side by side
    assert {key for key in optimizer.state[p] if "row" in key} == set()
    assert optimizer.state[p]["col_basis"].shape == (3, 3)


@pytest.mark.parametrize("gate", ["none", "stein"])
def test_steps_leave_nothing_behind(gate):
    params = parameters()
    optimizer = SNRSOAP(params, gate=gate)

    def objects() -> int:
        gc.collect()
        return len(gc.get_objects())

    feed(optimizer, 5)
    before = objects()
    feed(optimizer, 40, start=5)
    assert objects() < before + 20


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
        (3, 4): [3, 4],
        (2, 3, 2, 2): [2, 12],
        (3, 2, 2): [3, 4],
        (4, 1): [4, None],
        (1, 5): [None, 5],
    }


# The floor ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS)
def test_gate_stats_by_hand(dtype):
    optimizer, told = told_of(dtype, gate=Gate("stein", z=0.5))
    feed_noise(optimizer, told, 7)
    q = []
    for p in params_of(optimizer):
        state = optimizer.state[p]
        if p.numel():
            mean_sq = (state["exp_avg"].double() / (1 - 0.9**7)) ** 2
            variance = state["exp_floor"].double() / (1 - 0.9**7)
            q.append((1 - 0.25 * variance / mean_sq).clamp_min(0).flatten())
    stats = optimizer.gate_stats()
    assert stats.mean_q == pytest.approx(torch.cat(q).mean().item(), rel=1e-4)
    assert stats.open_fraction == pytest.approx((torch.cat(q) >= 0.5).double().mean().item())
    assert stats.numel == len(torch.cat(q))
    assert 0.1 < stats.mean_q < 0.9


@EVERY_BASIS
@pytest.mark.parametrize("gate", GATED)
def test_no_noise_is_no_gate(gate, basis):
    optimizer, told = told_of(gate=gate, basis=basis)
    ungated = SNRSOAP(parameters(), lr=1e-2, gate="none", basis=basis, **OFTEN)
    params = params_of(optimizer)
    for t in range(8):
        step(optimizer, told, gradients(params, t), [torch.zeros_like(p) for p in params])
    feed(ungated, 8)
    assert_same_bits([p for p, _ in snapshot(optimizer)], [p for p, _ in snapshot(ungated)])


@pytest.mark.parametrize("gate", GATED)
def test_much_noise_stops_all_movement(gate):
    params, told = [square(torch.float32), *parameters()[:2]], Told()
    optimizer = SNRSOAP(params, gate=gate, noise=told, **OFTEN)
    start = snapshot(optimizer)
    for t in range(5):
        step(optimizer, told, gradients(params, t), [1e8 * g for g in gradients(params, 1000 + t)])
    for (p, _), (before, _) in zip(snapshot(optimizer), start, strict=True):
        assert_close(p, before, rtol=0, atol=1e-9)


def test_between_its_draws_a_floor_stays():
    """Turned with its basis, it is the same numbers in another order."""
    net, data = network(), NoisyLoss(0.1)
    optimizer = SNRSOAP(net.parameters(), noise=data, floor_every=3, precondition_frequency=100)
    fit(net, optimizer, data, 4)
    before = [optimizer.moments(p).floor.clone() for p in net.parameters()]
    assert all(floor.any() for floor in before)
    fit(net, optimizer, data, 1, start=4)
    assert_same_bits([optimizer.moments(p).floor for p in net.parameters()], before)
    fit(net, optimizer, data, 2, start=5)
    assert [optimizer.state[p]["floor_step"] for p in net.parameters()] == [3] * len(before)
    for p, floor in zip(net.parameters(), before, strict=True):
        assert not torch.equal(optimizer.moments(p).floor, floor)


@pytest.mark.parametrize("gate", GATED)
def test_parameters_that_the_noise_does_not_reach_are_not_gated(gate):
    """As in SNRAdam, whose floor of them is 0."""
    params, told = [nn.Parameter(torch.ones(3, 3)) for _ in range(2)], Told()
    groups = [{"params": [p]} for p in params]
    optimizer = SNRSOAP(groups, gate=Gate(gate, z=1.0), noise=told)
    for t in range(3):
        step(optimizer, told, gradients(params, t), [10 * torch.ones(3, 3), None])
    assert not optimizer.moments(params[1]).floor.any()
    assert optimizer.gate_stats(1).mean_q == pytest.approx(1)
    assert optimizer.gate_stats(0).mean_q < 0.99


def test_parameters_that_take_turns_are_gated_by_floors_of_their_own():
    params, told = [nn.Parameter(torch.ones(3, 3)) for _ in range(2)], Told()
    optimizer = SNRSOAP(params, gate=Gate("hard", z=1.0), noise=told)
    for t in range(8):
        own, noise = gradients(params, t), gradients(params, 1000 + t)
        draws = [1e4 * noise[i] if t % 2 == i else None for i in range(2)]
        step(optimizer, told, [own[i] if t % 2 == i else None for i in range(2)], draws)
    assert [optimizer.state[p]["floor_step"] for p in params] == [4, 4]
    assert optimizer.gate_stats() == (0.0, 0.0, 18)  # the idle one, too


@pytest.mark.parametrize("beside", [False, True], ids=["data alone", "beside an exact term"])
def test_memory_formats_change_nothing(beside):
    found = []
    for kind in ("given", "contiguous"):
        params = parameters()
        if kind == "contiguous":
            params = [nn.Parameter(p.detach().clone().contiguous()) for p in params]
        told = Told()
        optimizer = SNRSOAP(params, noise=told, gate=Gate("stein", z=1.0), **OFTEN)
        feed_noise(optimizer, told, 8, beside_exact=beside)
        found.append(snapshot(optimizer))
        contiguous = [p.is_contiguous() for p in params]
        assert all(contiguous) == (kind == "contiguous")
    assert_same_bits(found[0], found[1])


def test_channels_last_networks():
    """Gradients come in the parameters' format, and draws as autograd makes them.

    Only the short sides are turned, whose covariances are of full rank from the first step on.
    """
    found = []
    for memory in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Tanh(), nn.Conv2d(4, 2, 3)).double()
        net = net.to(memory_format=memory)
        x, y = torch.randn(3, 2, 8, 8).double(), torch.randn(3, 2, 4, 4).double()
        data = NoisyLoss(0.5)
        options = {"gate": Gate("stein", z=1.0), "max_precondition_dim": 4, **OFTEN}
        optimizer = SNRSOAP(net.parameters(), lr=1e-2, noise=data, **options)
        for _ in range(8):
            optimizer.zero_grad()
            data(net(x.to(memory_format=memory)), y).backward()
            optimizer.step()
        found.append(([p.detach() for p in net.parameters()], optimizer.gate_stats().mean_q))
    assert_close(found[1][0], found[0][0], rtol=1e-7, atol=1e-9)
    assert 0.01 < found[0][1] < 0.99


@pytest.mark.parametrize("warm", [0, 2])
@pytest.mark.parametrize("declared", [False, True], ids=["published", "declared"])
def test_floors_made_by_hand_are_refused(warm, declared):
    told = Told() if declared else None
    params = parameters()
    optimizer = SNRSOAP(params, noise=told, **OFTEN)
    if declared:
        feed_noise(optimizer, told, warm)
    else:
        feed(optimizer, warm)
    before = snapshot(optimizer)
    for p, g in zip(params, gradients(params, 9), strict=True):
        p.grad = g
    refused = {
        True: (ValueError, "Noise was declared to this optimizer"),
        False: (TypeError, r"no floor made by hand .* noise=sciml_snr\.NoisyLoss"),
    }
    kind, message = refused[declared]
    with pytest.raises(kind, match=message):
        optimizer.step(floor={p: torch.ones_like(p) for p in params})
    assert_same_bits(snapshot(optimizer), before)


def test_it_says_what_it_does():
    net, data = network(), NoisyLoss(0.25)
    optimizer = SNRSOAP(net.parameters(), noise=data)
    fit(net, optimizer, data, 1, beside=True)
    text = optimizer.describe()
    for part in ("SNRSOAP", "eigenbasis", "sigma 0.25", "what else is in the loss", "z = 1.5"):
        assert part in text


# What SNRAdam promises ---------------------------------------------------------------------------


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("options", OPTIONS)
def test_parameters_stepped_together_move_as_each_alone(gate, options):
    own = gated(gate, options)
    together, told = told_of(torch.float64, **own)
    feed_noise(together, told, 10)
    for i, alone in enumerate(parameters(torch.float64)):
        if not alone.numel():
            continue
        told = Told()
        optimizer = SNRSOAP([alone], lr=1e-2, rho=0.9, noise=told, **{**OFTEN, **own})
        for t in range(10):
            grads, draws = (gradients(parameters(torch.float64), s)[i] for s in (t, 1000 + t))
            step(optimizer, told, [grads], [draws])
        assert_close(snapshot(optimizer)[0], snapshot(together)[i], rtol=1e-8, atol=1e-9)


def test_discrepancy_opens_by_the_excess():
    """In the turned coordinates, too: between the gate's step and SOAP's."""

    def moved(misfit):
        p, told = square(), Told()
        gate = Gate("stein", z=1.0, discrepancy=True)
        optimizer = SNRSOAP([p], lr=0.1, gate=gate, noise=told, **OFTEN)
        feed_noise(optimizer, told, 3)
        before = p.detach().clone()
        # Of 50 residuals' squares 50 - sqrt(100) may be noise.
        facts = {"misfit": torch.tensor(misfit), "summands": torch.tensor(50.0), "opens": True}
        step(optimizer, told, gradients([p], 3), gradients([p], 1003), **facts)
        return p.detach() - before

    gated, opened, ungated = moved(40.0), moved(40 / 0.75), moved(math.inf)
    assert not torch.allclose(gated, ungated)
    assert_close(opened, 0.75 * gated + 0.25 * ungated, rtol=1e-6, atol=1e-9)


def test_groups_follow_their_own_options():
    own = [
        {"lr": 1e-2, "gate": {"form": "hard", "alpha": 0.1}, "basis": "gradient"},
        {"gate": {"z": 2.0, "warmup_steps": 3}, "rho": 0.9, "shampoo_beta": 0.5},
        {"gate": "stein", "weight_decay": 0.1, "max_precondition_dim": 3, "basis": "floor"},
        {"gate": "none", "betas": (0.5, 0.9), "maximize": True, "precondition_frequency": 2},
    ]
    groups = [{"params": parameters(seed=i), **options} for i, options in enumerate(own)]
    told = Told()
    together = SNRSOAP(groups[:2], noise=told, **OFTEN)
    for group in groups[2:]:
        together.add_param_group(group)
    feed_noise(together, told, 8)

    params, alone = params_of(together), []
    for i, options in enumerate(own):
        mine, told = parameters(seed=i), Told()
        optimizer = SNRSOAP(mine, noise=told, **{**OFTEN, **options})
        part = slice(i * len(mine), (i + 1) * len(mine))
        for t in range(8):
            step(optimizer, told, gradients(params, t)[part], gradients(params, 1000 + t)[part])
        alone += snapshot(optimizer)
    assert_same_bits(snapshot(together), alone)


@pytest.mark.parametrize("gate", GATES)
def test_follows_schedulers(gate):
    (by_hand, told), (scheduled, other) = told_of(gate=gate), told_of(gate=gate)
    scheduler = lr_scheduler.StepLR(scheduled, 4, 0.5)
    for t in range(10):
        by_hand.param_groups[0]["lr"] = 1e-2 * 0.5 ** (t // 4)
        feed_noise(by_hand, told, 1, start=t)
        feed_noise(scheduled, other, 1, start=t)
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


@pytest.mark.parametrize("gate", ["soft", "none"])
def test_maximizing_is_minimizing_the_opposite(gate):
    up, down = (
        SNRSOAP(parameters(), maximize=ascends, gate=gate, **OFTEN) for ascends in (True, False)
    )
    for t in range(8):
        for optimizer, sign in ((up, -1), (down, 1)):
            params = params_of(optimizer)
            for p, g in zip(params, gradients(params, t), strict=True):
                p.grad = sign * g
            optimizer.step()
    assert_same_bits(snapshot(up), snapshot(down))


def test_closure_updates_the_floor():
    net, other, data = network(), network(), NoisyLoss(0.1)
    optimizer = SNRSOAP(net.parameters(), noise=data)
    x, y = batch(0)

    def closure():
        assert torch.is_grad_enabled()
        optimizer.zero_grad()
        loss = data(net(x), y)
        loss.backward()
        return loss

    with torch.no_grad():
        loss = optimizer.step(closure)
    theirs = NoisyLoss(0.1)
    expected = SNRSOAP(other.parameters(), noise=theirs)
    fit(other, expected, theirs)
    assert loss.item() == nn.functional.mse_loss(network()(x), y).item()
    assert_same_bits(snapshot(optimizer), snapshot(expected))
    assert all(optimizer.moments(p).floor.any() for p in net.parameters())


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_steps_are_float32_steps_rounded(gate, dtype):
    (short, told), (wide, other) = (told_of(d, gate=gate) for d in (dtype, torch.float32))
    halves, floats = params_of(short), params_of(wide)
    for t in range(8):
        for h, f in zip(halves, floats, strict=True):
            f.data.copy_(h)
        grads, draws = gradients(halves, t), gradients(halves, 1000 + t)
        step(short, told, grads, draws)
        step(wide, other, [g.float() for g in grads], [d.float() for d in draws])
        assert_same_bits([h.detach() for h in halves], [f.detach().to(dtype) for f in floats])
    assert_same_bits([s for _, s in snapshot(short)], [s for _, s in snapshot(wide)])


@pytest.mark.parametrize("beside", [False, True], ids=["data alone", "beside an exact term"])
def test_float64_states_are_float64(beside):
    optimizer, told = told_of(torch.float64)
    feed_noise(optimizer, told, 4, beside_exact=beside)
    for p in [p for p in params_of(optimizer) if p.numel()]:
        state = optimizer.state[p]
        kinds = {state[key].dtype for key in state if key not in ("step", "floor_step")}
        assert kinds == {torch.float64}


BAD = [math.nan, math.inf]


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("warm", [0, 4], ids=["first step", "later"])
@pytest.mark.parametrize("nonfinite", ["raise", "skip"])
@pytest.mark.parametrize("where", ["gradient", "noise draw"])
def test_what_is_not_finite_changes_nothing(bad, warm, nonfinite, where):
    optimizer, told = told_of(nonfinite=nonfinite, weight_decay=0.1)
    feed_noise(optimizer, told, warm)
    params = params_of(optimizer)
    grads, draws = gradients(params, warm), gradients(params, 50)
    (grads if where == "gradient" else draws)[3][2, 1] = bad
    before, stats = snapshot(optimizer), optimizer.gate_stats()
    counts = noise_state(optimizer)
    for p, g in zip(params, grads, strict=True):
        p.grad = g
    told.tell(dict(zip(params, draws, strict=True)), dict(zip(params, grads, strict=True)))
    if nonfinite == "raise":
        name = rf"{where} of parameter 3 of group 0, of shape \(3, 4\)"
        with pytest.raises(FloatingPointError, match=name):
            optimizer.step()
    else:
        assert optimizer.step(lambda: "the loss") == "the loss"
    assert_same_bits(snapshot(optimizer), before)
    assert not warm or (optimizer.gate_stats() == stats and noise_state(optimizer) == counts)


@pytest.mark.parametrize("beside", [False, True], ids=["data alone", "beside an exact term"])
def test_training_goes_on_after_a_refused_step(beside):
    (refused, told), (unhindered, other) = told_of(), told_of()
    feed_noise(refused, told, 3, beside_exact=beside)
    params = params_of(refused)
    params[3].grad[0, 0] = math.nan
    told.tell(dict(zip(params, gradients(params, 50), strict=True)), {p: p.grad for p in params})
    with pytest.raises(FloatingPointError):
        refused.step()
    feed_noise(refused, told, 5, start=3, beside_exact=beside)
    feed_noise(unhindered, other, 8, beside_exact=beside)
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
    ("gate", {"form": "gate"}),
    ("rho", 1.0),
]


@pytest.mark.parametrize(("name", "value"), NONSENSE)
def test_nonsense_options_are_refused_by_name(name, value):
    assert_refused_by_name(SNRSOAP, name, value)


def test_unknown_options_are_refused():
    with pytest.raises(TypeError, match="precondition_freq"):
        SNRSOAP(parameters(), precondition_freq=3)


@pytest.mark.parametrize("beside", [False, True], ids=["data alone", "beside an exact term"])
def test_state_dict_is_plain(beside):
    optimizer, told = told_of(gate=Gate("snr"))
    feed_noise(optimizer, told, 2, beside_exact=beside)
    assert_plain(optimizer.state_dict())


@pytest.mark.parametrize("dtype", [*FLOATS, torch.float16, torch.complex64])
def test_loaded_state_is_the_saved_state(dtype):
    (saved, told), (loaded, _) = told_of(dtype), told_of(dtype)
    feed_noise(saved, told, 5, beside_exact=True)
    loaded.load_state_dict(saved.state_dict())
    assert_same_bits([s for _, s in snapshot(loaded)], [s for _, s in snapshot(saved)])
    assert noise_state(loaded) == noise_state(saved)
    assert loaded.state_dict()["param_groups"] == saved.state_dict()["param_groups"]


@EVERY_BASIS
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("beside", [False, True], ids=["data alone", "beside an exact term"])
def test_continues_from_a_file_with_the_same_bits(basis, dtype, every, beside):
    def fresh(seed, **options):
        net, data = network(dtype, seed), NoisyLoss(0.1)
        groups = [{"params": net[0].parameters()}, {"params": net[2:].parameters(), **options}]
        own = {"noise": data, "gate": {"z": 1.0}, "floor_every": every}
        return net, SNRSOAP(groups, lr=1e-2, basis=basis, **own), data

    whole = fresh(0, lr=3e-2, precondition_frequency=4)
    fit(*whole, steps=7, beside=beside)
    saved = through_a_file([x.state_dict() for x in whole[:2]])
    fit(*whole, steps=8, start=7, beside=beside)

    resumed = fresh(1)
    for x, state in zip(resumed, saved, strict=False):
        x.load_state_dict(state)
    fit(*resumed, steps=8, start=7, beside=beside)
    assert_same_bits(snapshot(resumed[1]), snapshot(whole[1]))
    assert noise_state(resumed[1]) == noise_state(whole[1])
    assert resumed[1].gate_stats() == whole[1].gate_stats()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("beside", [False, True], ids=["data alone", "beside an exact term"])
@COPIES
def test_continues_from_a_copy_with_the_same_bits(dtype, copied, beside):
    net, data = network(dtype), NoisyLoss(0.1)
    original = net, SNRSOAP(net.parameters(), lr=1e-2, noise=data, **OFTEN), data
    fit(*original, steps=5, beside=beside)
    twin = copied(original)
    assert twin[1].noise == []
    twin[1].declare(twin[2])
    fit(*original, steps=5, start=5, beside=beside)
    assert not torch.equal(original[0][0].weight, twin[0][0].weight)
    fit(*twin, steps=5, start=5, beside=beside)
    assert_same_bits(snapshot(twin[1]), snapshot(original[1]))
    assert noise_state(twin[1]) == noise_state(original[1])


@pytest.mark.parametrize("beside", [False, True], ids=["data alone", "beside an exact term"])
def test_gradients_and_draws_are_left_alone(beside):
    optimizer, told = told_of(weight_decay=0.1, maximize=True)
    feed_noise(optimizer, told, 2, beside_exact=beside)
    params = params_of(optimizer)
    assert_same_bits([p.grad for p in params], gradients(params, 1))
    grads, draws, noisy = (gradients(params, t) for t in (2, 1002, 2002))
    own = [x.clone() for x in (*grads, *draws, *noisy)]
    for p, g in zip(params, grads, strict=True):
        p.grad = g
    told.tell(*(dict(zip(params, found, strict=True)) for found in (draws, noisy)))
    optimizer.step()
    assert_same_bits([*grads, *draws, *noisy], own)


# What it is for ----------------------------------------------------------------------------------


@pytest.mark.parametrize("gate", GATED)
def test_fits_a_network(gate):
    net, loss = network(), nn.MSELoss()
    x, y = batch(0, 256)
    before = loss(net(x), y).item()
    fit(net, SNRSOAP(net.parameters(), lr=1e-2, gate=gate, alpha=0.05), loss, 150)
    assert loss(net(x), y).item() < 0.3 * before


def regression_error(seed, steps=200, **options):
    """Mean squared error of a fitted linear map of 20 features, of which the data tell 4."""
    rng = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(20, 20, generator=rng)).Q
    x = torch.randn(40, 20, generator=rng) @ turn
    truth = turn.T[:, :4] @ torch.randn(4, 3, generator=rng)
    y = x @ truth + 1.0 * torch.randn(40, 3, generator=rng)
    net, data = nn.Linear(20, 3, bias=False), NoisyLoss(1.0)
    nn.init.zeros_(net.weight)
    torch.manual_seed(seed)
    optimizer = SNRSOAP(net.parameters(), lr=3e-2, noise=data, **options)
    for _ in range(steps):
        optimizer.zero_grad()
        data(net(x), y).backward()
        optimizer.step()
    return (net.weight.T - truth).square().sum(0).mean().item()


def test_label_floor_keeps_noise_out_of_a_regression():
    """Full batch, to the end."""
    gated, ungated = (
        [regression_error(seed, gate=gate) for seed in range(5)]
        for gate in (Gate("stein", z=2.0), "none")
    )
    assert all(a < b for a, b in zip(gated, ungated, strict=True)), (gated, ungated)
    assert sum(gated) < 0.8 * sum(ungated)
