"""The problem that the examples share: an oscillator, measured with large errors.

u'' + 36 u = 0 on [0, 1], and 128 values of u = sin(6 x) with an error of 0.5.
"""

import torch
from torch import Tensor, nn

torch.set_num_threads(1)  # no slower for so small a network, and quicker on a busy machine

SIGMA = 0.5
WEIGHT = 3e-3
"""Of the equation in the loss, whose residual is in units of u."""


def measurements() -> tuple[Tensor, Tensor]:
    """Points (128, 1) and measured values (128, 1)."""
    rng = torch.Generator().manual_seed(0)
    x = torch.linspace(0, 1, 128)[:, None]
    return x, truth(x) + SIGMA * torch.randn(128, 1, generator=rng)


def truth(x: Tensor) -> Tensor:
    """The solution."""
    return torch.sin(6 * x)


class Network(nn.Sequential):
    """A tanh network that can follow every single error; the same in every run."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        first = nn.Linear(1, 64)
        super().__init__(first, nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))
        with torch.no_grad():
            first.weight *= 40
            first.bias *= 40


def physics(net: nn.Module) -> Tensor:
    """Mean square of the equation's residual; it is exact."""
    x = torch.linspace(0, 1, 50)[:, None].requires_grad_()
    u = net(x)
    (slope,) = torch.autograd.grad(u.sum(), x, create_graph=True)
    (bend,) = torch.autograd.grad(slope.sum(), x, create_graph=True)
    return (bend / 36 + u).square().mean()


@torch.no_grad()
def error(net: nn.Module) -> float:
    """Relative error against the truth."""
    x = torch.linspace(0, 1, 400)[:, None]
    return float((net(x) - truth(x)).norm() / truth(x).norm())
