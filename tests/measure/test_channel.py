"""The tangent kernel against naive Jacobians; a trajectory against closed forms."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sciml_snr import SNRSOAP, NoisyLoss, SNRAdam
from sciml_snr.measure.channel import (
    Trajectory,
    jacobian,
    kernel_operator,
    preconditioner_of,
    spectrum,
    tangent_kernel,
)
from tests.cases import batch, network

N, P = 30, 6


class Linear(nn.Module):
    """Features of a point times weights: the kernel never changes."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(seed)
        self.w = nn.Parameter(torch.randn(P, generator=rng, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return (x ** torch.arange(P) @ self.w)[:, None]


X = torch.linspace(-1, 1, N, dtype=torch.float64)[:, None]
TEST_X = torch.linspace(-1.1, 1.1, 17, dtype=torch.float64)[:, None]
Y = torch.sin(4 * X) + 0.3 * torch.randn(N, 1, generator=torch.Generator().manual_seed(1)).double()


def descend(net, x, y, path=None, *, lr=0.05, steps=200, scale=None) -> None:
    """Full-batch (preconditioned) gradient descent on the mean squared error."""
    params = list(net.parameters())
    for _ in range(steps):
        if path is not None:
            path.record(lr, scale)
        found = torch.autograd.grad(nn.functional.mse_loss(net(x), y), params)
        moved = torch.cat([g.flatten() for g in found]) * (1 if scale is None else scale)
        with torch.no_grad():
            for p, part in zip(params, moved.split([p.numel() for p in params]), strict=True):
                p.sub_(lr * part.view_as(p))


def naive_jacobian(net, x) -> Tensor:
    rows = []
    for u in net(x).flatten():
        found = torch.autograd.grad(u, list(net.parameters()), retain_graph=True)
        rows.append(torch.cat([g.flatten() for g in found]))
    return torch.stack(rows)


# The kernel


def two_outputs() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2)).double()


def test_jacobian_and_kernel_are_the_naive_ones() -> None:
    net, x, other = two_outputs(), torch.randn(7, 2).double(), torch.randn(4, 2).double()
    scale = torch.rand(len(naive_jacobian(net, x)[0]), dtype=torch.float64)
    j, j_other = naive_jacobian(net, x), naive_jacobian(net, other)
    assert torch.allclose(jacobian(net, x), j, atol=1e-12)
    assert torch.allclose(tangent_kernel(net, x), j @ j.T, atol=1e-12)
    found = tangent_kernel(net, other, x, preconditioner=scale)
    assert torch.allclose(found, j_other * scale @ j.T, atol=1e-12)


def test_matrix_free_is_the_same() -> None:
    net, x = two_outputs(), torch.randn(20, 2).double()
    scale = torch.rand(jacobian(net, x).shape[1], dtype=torch.float64)
    kernel = tangent_kernel(net, x, preconditioner=scale)
    operator = kernel_operator(net, x, preconditioner=scale)
    v = torch.randn(40, dtype=torch.float64)
    assert np.allclose(operator @ v.numpy(), (kernel @ v).numpy(), atol=1e-10)
    assert torch.allclose(spectrum(operator, 5), spectrum(kernel, 5), rtol=1e-8)
    assert torch.allclose(spectrum(kernel).sum(), kernel.trace())


def test_frozen_weights_are_no_part() -> None:
    net, x = two_outputs(), torch.randn(5, 2).double()
    whole = jacobian(net, x)
    net[0].weight.requires_grad_(False)
    assert torch.equal(jacobian(net, x), whole[:, 16:])
    net.requires_grad_(False)
    with pytest.raises(ValueError, match="no trainable weights"):
        tangent_kernel(net, x)


@pytest.mark.parametrize("noise", [None, NoisyLoss(1.0)], ids=["published", "declared"])
@pytest.mark.parametrize("gate", ["none", "snr", "soft"])
def test_preconditioner_is_what_the_optimizer_multiplies_by(gate: str, noise) -> None:
    """Without momentum a step is -lr M g: M read off the step itself."""
    net = network(torch.float64)
    loss = nn.MSELoss() if noise is None else noise
    optimizer = SNRAdam(net.parameters(), lr=1e-3, betas=(0.0, 0.9), gate=gate, noise=noise)
    for t in range(4):
        x, y = batch(t, dtype=torch.float64)
        optimizer.zero_grad()
        loss(net(x), y).backward()
        before = torch.cat([p.detach().flatten() for p in net.parameters()])
        optimizer.step()
    moved = torch.cat([p.detach().flatten() for p in net.parameters()]) - before
    grads = torch.cat([p.grad.flatten() for p in net.parameters()])
    assert torch.allclose(-1e-3 * preconditioner_of(net, optimizer) * grads, moved, atol=1e-12)
    assert (optimizer.gate_stats().mean_q < 0.99) == (gate != "none")


def test_other_preconditioners() -> None:
    net = network(torch.float64)
    sgd = torch.optim.SGD(net.parameters(), lr=1)
    assert torch.equal(preconditioner_of(net, sgd), torch.ones(193).double())
    with pytest.raises(ValueError, match="no diagonal"):
        preconditioner_of(net, SNRSOAP(net.parameters()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_closed_gate_leaves_no_preconditioner(dtype):
    net = network(dtype)
    optimizer = SNRAdam(net.parameters(), gate="hard", alpha=1e6)
    floor = {p: torch.ones_like(p) for p in net.parameters()}
    for t in range(3):
        x, y = batch(t, dtype=dtype)
        optimizer.zero_grad()
        nn.functional.mse_loss(net(x), y).backward()
        optimizer.step(floor=floor)
    assert not preconditioner_of(net, optimizer).any()


# Along a trajectory


def linear_path(scale=None, steps=200, lr=0.05):
    net = Linear()
    with torch.no_grad():
        start, test_start = net(X).flatten(), net(TEST_X).flatten()
    path = Trajectory(net, X, TEST_X)
    descend(net, X, Y, path, steps=steps, lr=lr, scale=scale)
    with torch.no_grad():
        return path, start, net(X).flatten() - start, net(TEST_X).flatten() - test_start


@pytest.mark.parametrize("scaled", [False, True])
def test_linear_model_has_the_closed_forms(scaled: bool) -> None:
    """P = (I - s K)^t, G = (I - P) B^-1, W = sum P^T K P, df = tr(I - P): to 1e-8."""
    scale = torch.linspace(0.2, 2, P, dtype=torch.float64) if scaled else None
    path, start, moved, test_moved = linear_path(scale)
    features = X ** torch.arange(P)
    weighted = features if scale is None else features * scale
    kernel, b, lr, steps = weighted @ features.T, 2 / N, 0.05, 200
    values, vectors = torch.linalg.eigh(kernel)
    kept = (1 - lr * b * values) ** steps
    assert torch.allclose(path.P, vectors * kept @ vectors.T, atol=1e-8)
    assert torch.allclose(path.G_S, vectors * ((1 - kept) / b) @ vectors.T, atol=1e-8)
    dissipated = values / (b * (2 * values - lr * b * values**2)).where(values > 1e-12, 1)
    w = dissipated * (1 - kept**2)
    assert torch.allclose(path.W_S, vectors * w @ vectors.T, atol=1e-8)
    assert path.degrees_of_freedom() == pytest.approx(float((1 - kept).sum()), abs=1e-8)
    g = b * (start - Y.flatten())
    assert torch.allclose(moved, -path.G_S @ g, atol=1e-8)
    assert torch.allclose(test_moved, -path.G_Q @ g, atol=1e-8)
    assert path.drift == pytest.approx([0] * steps, abs=1e-12)


def test_degrees_of_freedom_are_the_memorized_share_times_n() -> None:
    """Every fifth label moved by itself: d f_i / d y_i."""
    path, _, moved, _ = linear_path()
    response = path.G_S * 2 / N
    assert path.degrees_of_freedom() == pytest.approx(float(response.trace()))
    for i in range(0, N, 5):
        net, y = Linear(), Y.clone()
        y[i] += 1.0
        start = net(X).detach().flatten()
        descend(net, X, y)
        found = net(X).detach().flatten() - start - moved
        assert torch.allclose(found, response[:, i], atol=1e-8)


def mlp(width: int = 16) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Linear(1, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(width, 1)).double()


def test_dissipated_loss_is_that_of_the_steps() -> None:
    """To first order in the step: half the step, half the error."""
    x, y = X[::3], Y[::3]
    errors = []
    for lr, steps in ((0.02, 40), (0.01, 80)):
        net = mlp(8)
        with torch.no_grad():
            residual = (net(x) - y).flatten()
        before, g = residual.square().mean(), 2 * residual / len(residual)
        path = Trajectory(net, x)
        descend(net, x, y, path, lr=lr, steps=steps)
        with torch.no_grad():
            drop = float(before - (net(x) - y).square().mean())
        errors.append(abs(float(g @ path.W_S @ g) / drop - 1))
    assert errors[0] < 0.05
    assert errors[1] / errors[0] == pytest.approx(0.5, abs=0.1)


def test_reservoir_is_invisible_to_test_points() -> None:
    """More outputs than weights: the kernel of W_S is there, and G_Q is 0 on it."""
    path, *_ = linear_path()
    channel = path.channel(tol=1e-10)
    assert channel.dimension == P
    assert channel.reservoir.shape == (N, N - P)
    assert (path.G_Q @ channel.reservoir).norm() < 1e-6 * path.G_Q.norm()
    net = nn.Sequential(nn.Linear(1, 2), nn.Tanh(), nn.Linear(2, 1, bias=False)).double()
    path = Trajectory(net, X, TEST_X)
    descend(net, X, Y, path, steps=60)
    assert path.drift[-1] > 0.01
    channel = path.channel(tol=1e-14)
    assert 0 < channel.dimension < N
    assert (path.G_Q @ channel.reservoir).norm() < 1e-6 * path.G_Q.norm()


def test_leak_of_a_tolerance_is_bounded_by_its_root() -> None:
    path, *_ = linear_path()
    for tol in (1e-2, 1e-4):
        leak = (path.G_Q @ path.channel(tol).reservoir).norm() / path.G_Q.norm()
        assert leak < 3 * tol**0.5


def test_channel_splits_energies() -> None:
    path, *_ = linear_path()
    channel = path.channel(1e-10)
    residual = torch.randn(N, 1).double()
    inside, outside = channel.split(residual)
    assert inside + outside == pytest.approx(float(residual.square().sum()))
    projected = channel.projector @ residual.flatten()
    assert inside == pytest.approx(float(projected.square().sum()))
    assert torch.allclose(channel.projector @ channel.projector, channel.projector, atol=1e-12)
    reached = X ** torch.arange(P) @ torch.randn(P).double()
    assert channel.split(reached)[1] < 1e-12 * channel.split(reached)[0]


def test_test_displacements_follow_from_training_ones() -> None:
    """An MLP whose kernel drifts by 2.4 times or more: the paper's figure is correlation 0.991,
    relative error 0.165; here 0.999 and 0.05, with every third step recorded."""
    net, x, test_x = mlp(), X[::2], TEST_X[2:-2]
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(0.3)
        start, test_start = net(x).flatten(), net(test_x).flatten()
    path = Trajectory(net, x, test_x)
    for _ in range(160):
        path.record(0.2, steps=3)
        descend(net, x, torch.sin(3 * x), lr=0.2, steps=3)
    with torch.no_grad():
        moved, test_moved = net(x).flatten() - start, net(test_x).flatten() - test_start
    assert max(path.drift) > 2.4
    predicted = path.predictor() @ moved
    assert float(torch.corrcoef(torch.stack([predicted, test_moved]))[0, 1]) > 0.999
    assert (predicted - test_moved).norm() < 0.05 * test_moved.norm()


def test_given_hessians_agree() -> None:
    paths = []
    for hessian in (None, 2 / N, torch.full((N,), 2 / N), 2 / N * torch.eye(N)):
        net = Linear()
        path = Trajectory(net, X, hessian=hessian)
        descend(net, X, Y, path, steps=5)
        paths.append(path)
    for path in paths[1:]:
        assert torch.allclose(path.P, paths[0].P, atol=1e-7)


def test_refusals() -> None:
    net = Linear()
    with pytest.raises(MemoryError, match=r"30 x 30 outputs and 6 weights would take .* GiB"):
        tangent_kernel(net, X, max_bytes=1000)
    with pytest.raises(MemoryError, match="30 training and 17 test outputs would take"):
        Trajectory(net, X, TEST_X, max_bytes=1000)
    with pytest.raises(MemoryError, match="GiB, more than max_bytes = 2 GiB"):
        tangent_kernel(net, torch.zeros(10**5, 1).double())
    with pytest.raises(ValueError, match="each of the 6 trainable weights"):
        tangent_kernel(net, X, preconditioner=torch.ones(5))
    with pytest.raises(ValueError, match="k must be given, from 1 to 29"):
        spectrum(kernel_operator(net, X))
    with pytest.raises(ValueError, match="needs test points"):
        Trajectory(net, X).predictor()
