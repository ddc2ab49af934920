"""SNRGaussNewton in plain torch: steps, gate, stop, memorized share, state, errors."""

import copy
import itertools
import math
from statistics import fmean

import pytest
import torch
from torch import nn

import sciml_snr
from sciml_snr import NoisyRows, SNRGaussNewton
from sciml_snr.gauss_newton import AT_REST, DONE
from sciml_snr.jacobian import ClosureRows, System
from sciml_snr.tangent import Tangent
from tests.cases import assert_plain, assert_same_bits, network, through_a_file

SIGMA = 0.1


def data(n=40, seed=0, dtype=torch.float64, noise=SIGMA):
    """Points (n, 2) and noisy values (n, 1) of a plane wave."""
    rng = torch.Generator().manual_seed(seed)
    x = 2 * torch.rand(n, 2, generator=rng, dtype=torch.float64) - 1
    error = noise * torch.randn(n, 1, generator=rng, dtype=torch.float64)
    clean = torch.sin(2 * x[:, :1] - x[:, 1:])
    return x.to(dtype), (clean + error).to(dtype), clean.to(dtype)


def slopes(net, n=30, seed=1):
    """Rows of an equation, u_x + 2 u_y = 0, at n points."""
    x = data(n, seed, next(net.parameters()).dtype)[0].requires_grad_()
    (gradient,) = torch.autograd.grad(net(x).sum(), x, create_graph=True)
    return (gradient[:, :1] + 2 * gradient[:, 1:]) / math.sqrt(n)


def rows(net, x, y, sigma=SIGMA, equation=True):
    return [NoisyRows(net(x) - y, sigma), *([slopes(net)] if equation else [])]


def jacobian_by_loop(net, made):
    """Row by row."""
    values = torch.cat([(r.residual / SIGMA if isinstance(r, NoisyRows) else r) for r in made])
    found = []
    for value in values.flatten():
        gradients = torch.autograd.grad(value, net.parameters(), retain_graph=True)
        found.append(torch.cat([g.flatten() for g in gradients]))
    return values.flatten().detach(), torch.stack(found)


def linear(weights=12, n=60, seed=0):
    """A model that is linear in its parameters, and its design."""
    rng = torch.Generator().manual_seed(seed)
    design = torch.randn(n, weights, generator=rng, dtype=torch.float64)
    net = nn.Linear(weights, 1, bias=False, dtype=torch.float64)
    nn.init.zeros_(net.weight)
    return net, design, rng


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_jacobian_is_that_of_a_loop_over_rows(dtype):
    net = network(dtype)
    x, y, _ = data(dtype=dtype)
    system = ClosureRows(lambda: rows(net, x, y), list(net.parameters())).system()
    values, expected = jacobian_by_loop(net, rows(net, x, y))
    tolerance = 1e-4 if dtype == torch.float32 else 1e-10
    torch.testing.assert_close(system.rows, values.double(), rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(system.jacobian, expected, rtol=tolerance, atol=tolerance)
    assert system.noisy.tolist() == [1.0] * 40 + [0.0] * 30


def test_step_without_a_gate_is_levenberg_marquardts():
    net = network(torch.float64)
    x, y, _ = data()
    values, jacobian = jacobian_by_loop(net, rows(net, x, y))
    before = torch.cat([p.detach().flatten() for p in net.parameters()])
    SNRGaussNewton(net, z=0.0, damping=5.0).step(lambda net: rows(net, x, y))
    moved = torch.cat([p.detach().flatten() for p in net.parameters()]) - before
    normal = jacobian.T @ jacobian + 5.0 * torch.eye(jacobian.shape[1], dtype=torch.float64)
    torch.testing.assert_close(moved, -torch.linalg.solve(normal, jacobian.T @ values))


def test_gate_is_the_shrinkage_factor_in_the_kernels_eigenbasis():
    rng = torch.Generator().manual_seed(0)
    jacobian = torch.randn(7, 5, generator=rng, dtype=torch.float64)
    values = torch.randn(7, generator=rng, dtype=torch.float64)
    noisy = torch.tensor([1.0, 1, 1, 1, 0, 0, 0], dtype=torch.float64)
    tangent = Tangent(System(values, noisy, jacobian), z=1.5, gate="stein", follow=False)
    lam, basis = torch.linalg.eigh(jacobian @ jacobian.T)
    misfit = max(1.0, float(values[:4].square().mean()))
    expected = torch.zeros(5, dtype=torch.float64)
    for k in range(7):
        c = float(basis[:, k] @ values)
        v = float(basis[:4, k].square().sum())
        q = max(0.0, 1 - 1.5**2 * v / (misfit * c**2))
        assert float(tangent.gate[k]) == pytest.approx(q, abs=1e-8)
        expected -= q * c / (max(float(lam[k]), 0) + 0.3) * (jacobian.T @ basis[:, k])
    torch.testing.assert_close(tangent.step(0.3)[0], expected)


def test_what_follows_keeps_the_noisy_rows_sum_of_squares_to_first_order():
    rng = torch.Generator().manual_seed(1)
    jacobian = torch.randn(9, 20, generator=rng, dtype=torch.float64)
    values = torch.randn(9, generator=rng, dtype=torch.float64)
    noisy = torch.tensor([1.0] * 5 + [0.0] * 4, dtype=torch.float64)
    shut = Tangent(System(values, noisy, jacobian), z=1e6, gate="stein", follow=True)
    closed = shut.noise > 1e-9  # all of them, here: every direction mixes
    assert (shut.gate[closed] == 0).all()
    change = shut.fitted(shut.step(0.5)[0])
    assert float((values * change)[:5].sum()) == pytest.approx(0, abs=1e-10)
    assert float((values * change)[5:].sum()) < 0


def test_monotone_gate_falls_with_the_eigenvalue_and_is_the_nearest_such():
    """Beside a search over all splits into blocks, for few directions of noisy rows alone."""
    rng = torch.Generator().manual_seed(2)
    jacobian = torch.randn(6, 9, generator=rng, dtype=torch.float64)
    values = torch.randn(6, generator=rng, dtype=torch.float64)
    ones = torch.ones(6, dtype=torch.float64)
    found = Tangent(System(values, ones, jacobian), z=1.0, gate="monotone", follow=False).gate
    lam, basis = torch.linalg.eigh(jacobian @ jacobian.T)
    squares = (basis.T @ values).square() * max(1.0, float(values.square().mean()))
    assert (found.diff() >= -1e-12).all() and lam.diff().min() > 0

    def distance(gate):
        return float((squares * (gate - (1 - 1 / squares)).square()).sum())

    best = math.inf
    for cuts in range(2**5):
        starts = [0, *(i + 1 for i in range(5) if cuts >> i & 1), 6]
        levels = []
        for a, b in itertools.pairwise(starts):
            levels += [max(0.0, 1 - (b - a) / float(squares[a:b].sum()))] * (b - a)
        if levels == sorted(levels):
            best = min(best, distance(torch.tensor(levels, dtype=torch.float64)))
    assert distance(found) == pytest.approx(best)


@pytest.mark.parametrize(
    ("size", "noisy", "weight"),
    [(0.5, True, 100.0), (20.0, True, 1.0), (0.5, False, 1.0)],
    ids=["explained", "unexplained", "no noise"],
)
def test_exact_rows_rise_to_their_weight_beside_noisy_ones(size, noisy, weight):
    """The end is the weighted least squares solution; data that it does not explain, by many
    sigmas, leave the weight as it is, and without noisy rows nothing is weighted."""
    net, design, rng = linear(weights=4, n=20)
    y = size * torch.randn(20, 1, generator=rng, dtype=torch.float64)

    def made(net):
        first, last = net(design[:12]) - y[:12], net(design[12:]) - y[12:]
        return [NoisyRows(first, 1.0) if noisy else first, last]

    optimizer = SNRGaussNewton(net, z=0.0, exact_weight=100.0, ramp_steps=3)
    for _ in range(25):
        optimizer.step(made)
    scale = torch.ones(20, 1, dtype=torch.float64)
    scale[12:] = math.sqrt(weight)
    expected = torch.linalg.lstsq(scale * design, scale * y).solution
    torch.testing.assert_close(net.weight.detach().T, expected, rtol=1e-5, atol=1e-7)


def test_pure_noise_is_left_alone():
    """Without a signal the fit moves by a fraction of what an open gate gives."""
    shares = {}
    for z in (0.0, 1.5, 2.5):
        found = []
        for seed in range(8):
            net, design, rng = linear(seed=seed)
            noise = SIGMA * torch.randn(60, 1, generator=rng, dtype=torch.float64)
            optimizer = SNRGaussNewton(net, z=z, damping=1e-6)
            for _ in range(10):
                optimizer.step(lambda net, d=design, e=noise: [NoisyRows(net(d) - e, SIGMA)])
            fit = net(design).detach()
            found.append(float((fit * noise).sum() / noise.square().sum()))
        shares[z] = sum(found) / len(found)
    assert shares[0.0] == pytest.approx(12 / 60, rel=0.25)
    assert shares[1.5] < 0.8 * shares[0.0]
    assert shares[2.5] < 0.2 * shares[0.0]


def test_signal_is_fitted_and_then_it_stops():
    net = network(torch.float64)
    x, y, clean = data(200)
    optimizer = SNRGaussNewton(net)
    for _ in range(200):
        optimizer.step(lambda net: rows(net, x, y, equation=False))
        if optimizer.done:
            break
    assert optimizer.done and optimizer.reason == DONE
    assert float((net(x).detach() - clean).square().mean().sqrt()) < 0.5 * SIGMA
    kept = [p.detach().clone() for p in net.parameters()]
    optimizer.step(lambda net: rows(net, x, y, equation=False))
    assert_same_bits([p.detach() for p in net.parameters()], kept)


class Drawn(ClosureRows):
    """Measurements, and an equation at points that are drawn anew in every step."""

    rows_stay = False

    def __init__(self, net, x, y):
        self.step, self.net = 0, net
        super().__init__(
            lambda: [NoisyRows(net(x) - y, SIGMA), 0.3 * slopes(net, seed=self.step)],
            list(net.parameters()),
        )

    def system(self):
        self.step += 1
        return super().system()


def steps_until_it_ends(optimizer, drawn, at_most=200):
    """How many it took, and the sum of squares before each."""
    squares = []
    while not optimizer.done and len(squares) < at_most:
        squares.append(float(drawn.rows().square().sum()))
        optimizer.step(drawn)
    return squares


def test_steps_on_rows_that_are_drawn_anew_end_when_their_squares_are_at_rest():
    """Where every step moves something, which the other rule waits for in vain."""
    net = network(torch.float64)
    x, y, clean = data()
    optimizer = SNRGaussNewton(net, tolerance=1e-2, ramp_steps=4, z=0.5, patience=3)
    drawn = Drawn(net, x, y)
    squares = steps_until_it_ends(optimizer, drawn)
    assert 12 <= len(squares) < 200 and optimizer.reason == AT_REST
    assert optimizer.stats().moved > 1e-2
    assert float((net(x).detach() - clean).square().mean().sqrt()) < SIGMA
    other = SNRGaussNewton(network(torch.float64))
    other.load_state_dict(through_a_file(optimizer.state_dict()))
    assert other.reason == AT_REST
    optimizer.param_groups[0]["patience"] = 1000  # to go on gains little per row and step
    further = steps_until_it_ends(optimizer, drawn, at_most=40)
    assert (fmean(squares[-6:]) - fmean(further[-6:])) / (40 * 40) < 5e-3


def test_other_rows_do_not_end_so():
    """Those that stay; and those whose squares scatter too widely to tell."""

    def reason(stay, tolerance):
        net = network(torch.float64)
        x, y, _ = data()
        optimizer = SNRGaussNewton(net, tolerance=tolerance, ramp_steps=4, z=0.5, patience=3)
        drawn = Drawn(net, x, y)
        drawn.rows_stay = stay
        steps_until_it_ends(optimizer, drawn, at_most=60)
        return optimizer.reason

    assert reason(False, 1e-2) == AT_REST
    assert reason(True, 1e-2) != AT_REST
    assert reason(False, 1e-6) == ""


def test_memorized_share_is_exact_where_the_model_is_linear():
    """Without a gate (1/n) tr J (J^T J + mu)^-1 J^T, by random signs: within their error."""
    net, design, _ = linear(weights=20, n=50)
    y = design[:, :1] + 1.0
    optimizer = SNRGaussNewton(net, z=0.0, damping=3.0, probes=4000)
    optimizer.step(lambda net: [NoisyRows(net(design) - y, sigma=1.0)])
    normal = design.T @ design + 3.0 * torch.eye(20, dtype=torch.float64)
    expected = float(torch.trace(design @ torch.linalg.solve(normal, design.T))) / 50
    assert optimizer.memorized == pytest.approx(expected, abs=4 * math.sqrt(2 * 20 / 4000) / 50)
    assert optimizer.degrees_of_freedom(50) == pytest.approx(50 * expected, rel=0.05)


def test_memorized_share_is_that_of_fits_to_changed_data():
    """A network, gates and all: the derivative by the data, of runs with the data changed."""
    x, y, _ = data(30)
    signs = torch.where(torch.rand(30, 1, generator=torch.Generator().manual_seed(3)) < 0.5, -1, 1)

    def fitted(target):
        net = network(torch.float64)
        optimizer = SNRGaussNewton(net, z=0.0, damping=1e3, probes=2000)
        for _ in range(3):
            optimizer.step(lambda net: rows(net, x, target, equation=False))
        return net(x).detach(), optimizer.memorized

    tau = 1e-5
    fit, estimate = fitted(y)
    jacobian = []
    for i in range(30):
        bumped = y.clone()
        bumped[i] += tau
        jacobian.append(float((fitted(bumped)[0] - fit)[i] / tau))
    assert signs.shape == y.shape
    assert estimate == pytest.approx(sum(jacobian) / 30, rel=0.15)


def test_learning_rate_is_a_ceiling_on_the_length_of_a_step():
    x, y, _ = data()
    for lr, equal in ((1e-3, True), (1e3, False)):
        net = network(torch.float64)
        before = torch.cat([p.detach().flatten() for p in net.parameters()])
        SNRGaussNewton(net, lr=lr).step(lambda net: rows(net, x, y))
        moved = torch.cat([p.detach().flatten() for p in net.parameters()]) - before
        assert float(moved.norm()) <= lr * (1 + 1e-9)
        assert (float(moved.norm()) == pytest.approx(lr)) == equal


def test_a_step_that_lowers_nothing_is_taken_back_to_the_bit():
    net = network(torch.float32)
    optimizer = SNRGaussNewton(net, damping=1e-9, max_trials=1)
    calls = []

    def made(net):
        calls.append(1)
        return [net(torch.ones(3, 2)) - (0.0 if len(calls) < 3 else 1e6)]

    kept = [p.detach().clone() for p in net.parameters()]
    optimizer.step(made)
    assert_same_bits([p.detach() for p in net.parameters()], kept)
    assert optimizer.stats().moved == 0


def test_damping_beside_which_nothing_counts_does_not_keep_it_from_the_data():
    net = network(torch.float32)
    x, y, _ = data(300, dtype=torch.float32)
    optimizer = SNRGaussNewton(net, damping=1e11)
    for _ in range(25):
        optimizer.step(lambda net: rows(net, x, y))
    assert optimizer.stats().misfit < 1.3


@pytest.mark.parametrize("gate", ["monotone", "evidence"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_resumes_to_the_bit(dtype, gate):
    x, y, _ = data(220, dtype=dtype)

    def run(net, optimizer, steps):
        for _ in range(steps):
            optimizer.step(lambda net: rows(net, x, y))

    whole, halves = network(dtype), network(dtype)
    straight = SNRGaussNewton(whole, gate=gate)
    run(whole, straight, 6)
    first = SNRGaussNewton(halves, gate=gate)
    run(halves, first, 3)
    state = through_a_file(first.state_dict())
    assert_plain(state)
    second = SNRGaussNewton(halves, gate=gate)
    second.load_state_dict(state)
    run(halves, second, 3)
    assert_same_bits(
        [p.detach() for p in halves.parameters()], [p.detach() for p in whole.parameters()]
    )
    assert (second.steps, second.memorized) == (straight.steps, straight.memorized)
    assert second.stats() == straight.stats()


def test_a_loaded_state_keeps_that_it_is_done():
    net = network(torch.float64)
    optimizer = SNRGaussNewton(net, patience=1, tolerance=1e6)
    x, y, _ = data()
    optimizer.step(lambda net: rows(net, x, y))
    other = SNRGaussNewton(network(torch.float64))
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert optimizer.done and other.done


def test_takes_parameters_and_unknowns_in_a_network_s_place():
    net, factor = network(torch.float64), nn.Parameter(torch.zeros((), dtype=torch.float64))
    x, y, _ = data()
    optimizer = SNRGaussNewton([*net.parameters(), factor])
    for _ in range(5):
        optimizer.step(lambda: [NoisyRows(factor * net(x) + factor - y, SIGMA)])
    assert float(factor.detach()) != 0


def test_frozen_parameters_stay():
    net = network(torch.float64)
    net[0].weight.requires_grad_(False)
    kept = net[0].weight.clone()
    x, y, _ = data()
    SNRGaussNewton(net).step(lambda net: rows(net, x, y))
    assert_same_bits(net[0].weight.detach(), kept)


def test_rows_of_different_error_count_by_their_own():
    """The least squares solution with weights 1 / sigma^2."""
    net, design, rng = linear(weights=3, n=20)
    y = torch.randn(20, 1, generator=rng, dtype=torch.float64)
    sigma = torch.linspace(0.1, 2.0, 20, dtype=torch.float64)[:, None]
    optimizer = SNRGaussNewton(net, z=0.0)
    for _ in range(20):
        optimizer.step(lambda net: [NoisyRows(net(design) - y, sigma)])
    scaled = design / sigma
    expected = torch.linalg.lstsq(scaled, y / sigma).solution
    torch.testing.assert_close(net.weight.detach().T, expected, rtol=1e-5, atol=1e-7)


def test_describes_itself():
    net = network(torch.float64)
    x, y, _ = data()
    optimizer = SNRGaussNewton(net, lr=0.5, gate="monotone")
    assert "no step longer than 0.5" in optimizer.describe()
    assert "prior of the weights" in SNRGaussNewton(net).describe()
    optimizer.step(lambda net: rows(net, x, y))
    assert "monotone, z = 1.25, what is closed follows the exact rows" in optimizer.describe()
    assert "steps: 1" in optimizer.describe() and "memorized" in optimizer.describe()
    assert "gate: none" in SNRGaussNewton(net, z=0).describe()


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("lr", 0.0),
        ("lr", "1e-3"),
        ("z", -1.0),
        ("damping", 0.0),
        ("gate", "soft"),
        ("exact_weight", 0.0),
        ("ramp_steps", -1),
        ("max_trials", 0),
        ("patience", 0.5),
        ("tolerance", math.inf),
        ("probes", -1),
        ("max_gigabytes", 0.0),
    ],
)
def test_options_out_of_range_are_refused_by_name(option, value):
    with pytest.raises(ValueError, match=option):
        SNRGaussNewton(network(), **{option: value})


def test_bad_input_is_refused_with_what_to_do():
    net = network()
    optimizer = SNRGaussNewton(net)
    x, y, _ = data(dtype=torch.float32)
    with pytest.raises(TypeError, match="takes a function that gives residual rows"):
        optimizer.step(net(x) - y)
    with pytest.raises(TypeError, match="must return a list of residual rows"):
        optimizer.step(lambda net: None)
    with pytest.raises(TypeError, match="NoisyRows"):
        optimizer.step(lambda net: [1.0])
    with pytest.raises(RuntimeError, match="No row depends on the parameters"):
        optimizer.step(lambda net: [y])
    with pytest.raises(FloatingPointError, match="not finite"):
        optimizer.step(lambda net: [net(x) / 0])
    with pytest.raises(ValueError, match="does not broadcast"):
        NoisyRows(y, torch.ones(3, 1))
    with pytest.raises(ValueError, match="sigma"):
        NoisyRows(y, -1.0)
    with pytest.raises(TypeError, match="tensor"):
        NoisyRows(1.0, 0.1)
    with pytest.raises(RuntimeError, match="No step has been taken"):
        optimizer.stats()
    with pytest.raises(ValueError, match="real parameters"):
        SNRGaussNewton([nn.Parameter(torch.zeros(2, dtype=torch.complex64))])


def test_more_than_fits_in_memory_is_refused_with_its_size():
    net = network()
    x, y, _ = data(dtype=torch.float32)
    small = SNRGaussNewton(net, max_gigabytes=1e-6)
    with pytest.raises(ValueError, match=r"40 residual rows and \d+ parameters .* GB"):
        small.step(lambda net: rows(net, x, y, equation=False))


def test_is_exported():
    assert {"SNRGaussNewton", "NoisyRows"} <= set(sciml_snr.__all__)
