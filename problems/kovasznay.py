"""Flow behind a grid, from noisy velocities at the inflow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import deepxde as dde
import numpy as np
import torch

from .base import Array, Observations, Problem
from .shapes import check_positive, grid


class Kovasznay(Problem):
    r"""Stationary Navier-Stokes equations with noisy inflow: a forward problem.

    .. math::
        u u_x + v u_y + p_x = \tfrac{1}{Re} \Delta u, \quad
        u v_x + v v_y + p_y = \tfrac{1}{Re} \Delta v, \quad u_x + v_y = 0, \quad
        x \in [-0.5, 1],\ y \in [-0.5, 1.5]

    Reference: Kovasznay's flow (*Proc. Camb. Phil. Soc.* 44 (1948) 58),

    .. math::
        u = 1 - e^{\lambda x} \cos 2 \pi y, \quad
        v = \tfrac{\lambda}{2 \pi} e^{\lambda x} \sin 2 \pi y, \quad
        p = \tfrac{1}{2} (1 - e^{2 \lambda x}), \quad
        \lambda = \tfrac{Re}{2} - \sqrt{\tfrac{Re^2}{4} + 4 \pi^2}

    u and v are measured at the inflow, x = -0.5, at uniform y with errors of sigma, and known
    exactly on the three other sides; p is known at the outflow, x = 1. The metric is the relative
    L2 error of u, v and p on a grid of 51 x 51.

    Source: DeepXDE's example (Lu et al., *SIAM Review* 63 (2021) 208); the noise is ours.

    Cost of a fit by ``snr_adam``: 8,000 iterations of about 10 ms on one core.

    Args:
        reynolds: Re.
        points, noise, seed, observations, outliers: see :class:`Problem`; ``noise`` is sigma.
    """

    name = "kovasznay"
    equation = "stationary Navier-Stokes; noisy u, v at the inflow"
    coordinates = ("x", "y")
    outputs = ("u", "v", "p")
    measured = ("u", "v")
    lr = 3e-3
    iterations = 8000
    points = 50
    noise = 0.3
    num_domain = 300
    num_boundary = 100

    def __init__(self, *, reynolds: float = 20.0, **kwargs: Any) -> None:
        check_positive(reynolds=reynolds)
        self.reynolds = reynolds
        super().__init__(**kwargs)

    @property
    def domain(self) -> Mapping[str, tuple[float, float]]:
        return {"x": (-0.5, 1.0), "y": (-0.5, 1.5)}

    def geometry(self) -> Any:
        return dde.geometry.Rectangle([-0.5, -0.5], [1.0, 1.5])

    def residual(self, x: torch.Tensor, y: torch.Tensor) -> list[torch.Tensor]:
        return flow_residual(x, y, 1 / self.reynolds)

    def conditions(self) -> list[Any]:
        geometry = self.geometry()

        def wall(x: Array, on_boundary: bool) -> bool:
            return on_boundary and not np.isclose(x[0], -0.5)

        def outflow(x: Array, on_boundary: bool) -> bool:
            return on_boundary and bool(np.isclose(x[0], 1.0))

        def known(i: int, where: Any) -> Any:
            return dde.icbc.DirichletBC(
                geometry, lambda x: self.reference(x)[:, i : i + 1], where, component=i
            )

        return [known(0, wall), known(1, wall), known(2, outflow)]

    def observe(self, rng: np.random.Generator, points: int, noise: float | None) -> Observations:
        y = rng.uniform(*self.domain["y"], (points, 1))
        return self.measure(rng, np.hstack([np.full_like(y, -0.5), y]), noise)

    def reference(self, points: Array) -> Array:
        x, y = points.T
        rate = self.reynolds / 2 - np.sqrt(self.reynolds**2 / 4 + 4 * np.pi**2)
        decay = np.exp(rate * x)
        u = 1 - decay * np.cos(2 * np.pi * y)
        v = rate / (2 * np.pi) * decay * np.sin(2 * np.pi * y)
        return np.stack([u, v, (1 - decay**2) / 2], axis=1)

    def evaluation_points(self) -> Array:
        return grid(np.linspace(-0.5, 1.0, 51), np.linspace(-0.5, 1.5, 51))


def flow_residual(
    x: torch.Tensor, y: torch.Tensor, viscosity: float | torch.Tensor
) -> list[torch.Tensor]:
    """Residuals of a stationary flow with the outputs u, v, p: momentum in x and y, and mass."""
    u, v = y[:, :1], y[:, 1:2]
    (u_x, u_y), (v_x, v_y), (p_x, p_y) = (
        [dde.grad.jacobian(y, x, i=i, j=j) for j in (0, 1)] for i in range(3)
    )
    friction = [
        viscosity * sum(dde.grad.hessian(y, x, component=i, i=j, j=j) for j in (0, 1))
        for i in (0, 1)
    ]
    return [
        u * u_x + v * u_y + p_x - friction[0],
        u * v_x + v * v_y + p_y - friction[1],
        u_x + v_y,
    ]
