"""Viscosity of a fluid from noisy velocities."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import deepxde as dde
import numpy as np
import torch

from .base import Array, Observations, Problem
from .kovasznay import flow_residual
from .shapes import check_positive, grid


class NavierStokes(Problem):
    r"""Navier-Stokes equations in the plane with unknown viscosity: an inverse problem.

    .. math::
        u_t + u u_x + v u_y + p_x = \nu \Delta u, \quad
        v_t + u v_x + v v_y + p_y = \nu \Delta v, \quad u_x + v_y = 0, \quad
        (x, y) \in [0, \pi]^2,\ t \in [0, 2]

    u and v are measured at points uniform on the domain, with errors of sigma; p is not. No initial
    or boundary condition is given. Truth :math:`\nu = 0.2`, kept positive by training its
    logarithm, from three times as much. Solution: the decaying vortices of Taylor and Green
    (*Proc. R. Soc. A* 158 (1937) 499),

    .. math::
        u = -\cos x \sin y\, e^{-2 \nu t}, \quad v = \sin x \cos y\, e^{-2 \nu t}, \quad
        p = -\tfrac{1}{4} (\cos 2x + \cos 2y)\, e^{-4 \nu t}

    with p up to a constant. The metric is the relative L2 error of u and v on a grid of 26 x 26 x
    6; their root mean squares are about 0.36.

    Source: the velocities-only identification of Raissi, Perdikaris and Karniadakis, *J. Comput.
    Phys.* 378 (2019) 686; this example is ours.

    Cost of a fit by ``snr_adam``: 8,000 iterations of about 11 ms on one core.

    Args:
        viscosity: true nu of the synthetic measurements.
        points, noise, seed, observations, outliers: see :class:`Problem`; ``noise`` is sigma.
    """

    name = "navier_stokes"
    equation = "Navier-Stokes in x, y, t, nu unknown; noisy u, v"
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        "x": (0.0, np.pi),
        "y": (0.0, np.pi),
        "t": (0.0, 2.0),
    }
    coordinates = ("x", "y", "t")
    outputs = ("u", "v", "p")
    measured = ("u", "v")
    scored = ("u", "v")
    lr = 3e-3
    iterations = 8000
    points = 300
    noise = 0.05
    unknown_names = ("viscosity",)
    guesses: ClassVar[Mapping[str, float]] = {"viscosity": 0.6}
    guess_units: ClassVar[Mapping[str, Mapping[str, float]]] = {"viscosity": {"x": 2, "t": -1}}
    num_domain = 300
    example_constants: ClassVar[tuple[str, ...]] = ("viscosity",)

    def __init__(self, *, viscosity: float = 0.2, **kwargs: Any) -> None:
        check_positive(viscosity=viscosity)
        self.viscosity = viscosity
        super().__init__(**kwargs)

    def truth(self) -> dict[str, float]:
        return {"viscosity": self.viscosity}

    def residual(self, x: torch.Tensor, y: torch.Tensor) -> list[torch.Tensor]:
        along_x, along_y, mass = flow_residual(x, y, self.unknown("viscosity"))
        u_t, v_t = (dde.grad.jacobian(y, x, i=i, j=2) for i in (0, 1))
        return [u_t + along_x, v_t + along_y, mass]

    def observe(self, rng: np.random.Generator, points: int, noise: float | None) -> Observations:
        return self.measure(rng, self.scattered(rng, points), noise)

    def reference(self, points: Array) -> Array:
        x, y, t = points.T
        decay = np.exp(-2 * self.viscosity * t)
        u, v = -np.cos(x) * np.sin(y) * decay, np.sin(x) * np.cos(y) * decay
        return np.stack([u, v, -(np.cos(2 * x) + np.cos(2 * y)) / 4 * decay**2], axis=1)

    def evaluation_points(self) -> Array:
        x, y, t = (
            np.linspace(*self.domain[name], n) for name, n in (("x", 26), ("y", 26), ("t", 6))
        )
        return grid(x, y, t)

    def unmeasured_sizes(self, sizes: Mapping[str, float]) -> dict[str, float]:
        """A pressure, over the density, is as large as a velocity squared."""
        return {"p": sizes["u"] ** 2 + sizes["v"] ** 2}

    def loss_weights(self) -> list[float]:
        """The data pull the viscosity along; with less weight it lags behind for long."""
        return [1.0, 1.0, 1.0, 10.0, 10.0]
