"""A wave that steepens into a shock, from a noisy initial condition."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, ClassVar

import deepxde as dde
import numpy as np
import torch
from scipy.special import roots_hermite

from .base import Array, Observations, SpaceTime
from .shapes import check_positive, zero_on_boundary


class Burgers(SpaceTime):
    r"""Burgers' equation with noisy initial values: a forward problem.

    .. math::
        u_t + u u_x = \nu u_{xx}, \quad x \in [-1, 1],\ t \in [0, 1], \qquad
        u(\pm 1, t) = 0, \qquad u_i = -\sin \pi x_i + \sigma e_i, \quad e_i \sim N(0, 1)

    The positions :math:`x_i` are uniform on :math:`[-1, 1]`, the measurements at t = 0. Reference:
    the Cole-Hopf transform, by Gauss-Hermite quadrature (Basdevant et al., *Computers & Fluids* 14
    (1986) 23),

    .. math::
        u(x, t) = -\frac{\int \sin \pi(x - \eta)\, f(x - \eta)\, e^{-\eta^2 / 4 \nu t} d\eta}
        {\int f(x - \eta)\, e^{-\eta^2 / 4 \nu t} d\eta}, \qquad
        f(y) = e^{-\cos(\pi y) / 2 \pi \nu}

    The metric is the relative L2 error on a grid of 101 x 51; a mean squared error is its square
    times 0.37, the mean of u squared.

    Source: Raissi, Perdikaris and Karniadakis, *J. Comput. Phys.* 378 (2019) 686, without noise.

    Cost of a fit by ``snr_adam``: 8,000 iterations of about 6 ms on one core.

    Args:
        viscosity: nu; 0.01 / pi by default. Below 0.002 the quadrature is refused.
        points, noise, seed, observations, outliers: see :class:`Problem`; ``noise`` is sigma.
    """

    name = "burgers"
    equation = "u_t + u u_x = nu u_xx, u = 0 at both ends; noisy u(x, 0)"
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"x": (-1.0, 1.0), "t": (0.0, 1.0)}
    outputs = ("u",)
    lr = 3e-3
    iterations = 8000
    points = 200
    noise = 0.2
    num_domain = 800
    num_boundary = 60

    def __init__(self, *, viscosity: float = 0.01 / np.pi, **kwargs: Any) -> None:
        check_positive(viscosity=viscosity)
        if viscosity < 0.002:
            raise ValueError(f"viscosity must be at least 0.002, got {viscosity}.")
        self.viscosity = viscosity
        super().__init__(**kwargs)

    def coefficients(self) -> tuple[torch.Tensor | float, torch.Tensor | float]:
        """Of transport and of diffusion."""
        return 1.0, self.viscosity

    def residual(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        transport, viscosity = self.coefficients()
        u_x, u_t = (dde.grad.jacobian(y, x, j=j) for j in (0, 1))
        return u_t + transport * y * u_x - viscosity * dde.grad.hessian(y, x, i=0, j=0)

    def conditions(self) -> list[Any]:
        return [zero_on_boundary(self.geometry())]

    def observe(self, rng: np.random.Generator, points: int, noise: float | None) -> Observations:
        return self.measure(rng, self.initial(rng, points), noise)

    def loss_weights(self) -> list[float]:
        """The residual's terms are up to 100 times u where the wave is steep."""
        return [0.1, *[1.0] * (1 + len(self.conditions()))]

    def reference(self, points: Array) -> Array:
        return cole_hopf(points[:, :1], points[:, 1:], self.viscosity)


class BurgersBajaj(Burgers):
    r"""Burgers' equation from 50 initial values with errors as large as the wave.

    As :class:`Burgers`, with the noise of C. Bajaj, L. McLennan, T. Andeen and A. Roy, *Mach.
    Learn.: Sci. Technol.* 4 (2023) 015013: 50 initial values, sigma 0.5. They report a mean squared
    error of 0.198 for a plain PINN and of 0.0080 when a sparse Gaussian process has smoothed the
    initial values: relative L2 errors of 0.73 and 0.147.
    """

    name = "burgers_bajaj"
    points = 50
    noise = 0.5


NODES = 150
"""Nodes of the quadrature."""


@lru_cache(maxsize=1)
def hermite() -> tuple[Array, Array]:
    """Nodes and logarithms of the weights for the weight exp(-z^2)."""
    nodes, weights = roots_hermite(NODES)
    return nodes, np.log(weights)


def cole_hopf(x: Array, t: Array, viscosity: float) -> Array:
    """u (n, 1) at x and t, both (n, 1), for the initial values -sin(pi x)."""
    nodes, log_weights = hermite()
    y = x - np.sqrt(4 * viscosity * t) * nodes
    logs = log_weights - np.cos(np.pi * y) / (2 * np.pi * viscosity)
    f = np.exp(logs - logs.max(axis=1, keepdims=True))
    return -(np.sin(np.pi * y) * f).sum(axis=1, keepdims=True) / f.sum(axis=1, keepdims=True)
