"""A conductivity that varies in space, from noisy measurements of the potential."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import deepxde as dde
import numpy as np
import torch

from .base import Array, Observations, Predict, Problem
from .shapes import grid, zero_on_boundary


class Elliptic(Problem):
    r"""Elliptic equation with unknown conductivity a(x): an inverse problem for a function.

    .. math::
        -(a u')' = f, \quad x \in [0, 1], \qquad u(0) = u(1) = 0, \qquad
        u_i = u(x_i) + \sigma e_i, \quad e_i \sim N(0, 1)

    The positions :math:`x_i` are uniform on :math:`[0, 1]`; f is known exactly. The network gives u
    and log a: a is positive. Solution :math:`u = \sin \pi x`, :math:`a = 1 + \alpha \sin 2 \pi x`,
    from which f follows. Where :math:`u' = 0` the equation fixes a by f alone, elsewhere by
    continuity from there: no boundary value of a is needed. ``relative_l2`` is the relative L2
    error of a at 201 points, ``u_relative_l2`` that of u.

    Source: a textbook inverse problem (conductivity, permeability); this example is ours.

    Cost of a fit by ``snr_adam``: 8,000 iterations of about 4 ms on one core.

    Args:
        contrast: alpha, between -1 and 1.
        points, noise, seed, observations, outliers: see :class:`Problem`; ``noise`` is sigma.
    """

    name = "elliptic"
    equation = "-(a u')' = f, u = 0 at both ends, a(x) unknown; noisy u(x)"
    coordinates: ClassVar[tuple[str, ...]] = ("x",)
    outputs = ("u", "a")
    measured = ("u",)
    scored = ("a",)
    lr = 3e-3
    iterations = 8000
    points = 100
    noise = 0.05
    num_domain = 100
    num_boundary = 2

    def __init__(self, *, contrast: float = 0.5, **kwargs: Any) -> None:
        if not -1 < contrast < 1:
            raise ValueError(f"contrast must be between -1 and 1, got {contrast}.")
        self.contrast = contrast
        super().__init__(**kwargs)

    @property
    def domain(self) -> Mapping[str, tuple[float, float]]:
        return {name: (0.0, 1.0) for name in self.coordinates}

    def geometry(self) -> Any:
        return dde.geometry.Interval(0.0, 1.0)

    def source(self, x: Any, lib: Any) -> Any:
        """f at x (n, 1), by the functions of numpy or torch."""
        wave = np.pi * x
        a = 1 + self.contrast * lib.sin(2 * wave)
        a_x = 2 * np.pi * self.contrast * lib.cos(2 * wave)
        return np.pi**2 * a * lib.sin(wave) - np.pi * a_x * lib.cos(wave)

    def residual(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        flux = sum(
            dde.grad.jacobian(y, x, i=1, j=j) * dde.grad.jacobian(y, x, i=0, j=j)
            + y[:, 1:] * dde.grad.hessian(y, x, component=0, i=j, j=j)
            for j in range(len(self.coordinates))
        )
        return -flux - self.source(x, torch)

    def conditions(self) -> list[Any]:
        return [zero_on_boundary(self.geometry())]

    def observe(self, rng: np.random.Generator, points: int, noise: float | None) -> Observations:
        return self.measure(rng, self.scattered(rng, points), noise)

    def reference(self, points: Array) -> Array:
        u, a = np.sin(np.pi * points), 1 + self.contrast * np.sin(2 * np.pi * points)
        return np.hstack([u, a])

    def evaluation_points(self) -> Array:
        return np.linspace(0, 1, 201)[:, None]

    def loss_weights(self) -> list[float]:
        """The residual is of the order of pi^2 times an error of a or of u, and more in squares."""
        return [0.1, 10.0, 10.0]

    def metrics(self, predict: Predict) -> dict[str, float]:
        return super().metrics(predict) | {"u_relative_l2": self.relative_l2(predict, ("u",))}

    def network(self) -> Any:
        net = super().network()
        net.apply_output_transform(lambda _, y: torch.cat([y[:, :1], torch.exp(y[:, 1:])], dim=1))
        return net


class Elliptic2D(Elliptic):
    r"""Elliptic equation in the plane with unknown conductivity a(x, y).

    .. math::
        -\nabla \cdot (a \nabla u) = f, \quad (x, y) \in [0, 1]^2, \qquad u = 0 \text{ on the
        boundary}, \qquad u_i = u(x_i, y_i) + \sigma e_i, \quad e_i \sim N(0, 1)

    As :class:`Elliptic`, with the solution :math:`u = \sin \pi x \sin \pi y`,
    :math:`a = 1 + \alpha \sin 2 \pi x \sin \pi y`; the errors are taken on a grid of 51 x 51.

    Cost of a fit by ``snr_adam``: 8,000 iterations of about 8 ms on one core.

    Args:
        contrast: alpha, between -1 and 1.
        points, noise, seed, observations, outliers: see :class:`Problem`; ``noise`` is sigma.
    """

    name = "elliptic_2d"
    equation = "-div(a grad u) = f, u = 0 on the boundary, a(x, y) unknown; noisy u(x, y)"
    coordinates = ("x", "y")
    points = 300
    num_domain = 400
    num_boundary = 80

    def geometry(self) -> Any:
        return dde.geometry.Rectangle([0.0, 0.0], [1.0, 1.0])

    def source(self, x: Any, lib: Any) -> Any:
        x, y = np.pi * x[:, :1], np.pi * x[:, 1:]
        u, u_x, u_y = lib.sin(x) * lib.sin(y), lib.cos(x) * lib.sin(y), lib.sin(x) * lib.cos(y)
        a = 1 + self.contrast * lib.sin(2 * x) * lib.sin(y)
        a_x = 2 * self.contrast * lib.cos(2 * x) * lib.sin(y)
        a_y = self.contrast * lib.sin(2 * x) * lib.cos(y)
        return np.pi**2 * (2 * a * u - a_x * u_x - a_y * u_y)

    def reference(self, points: Array) -> Array:
        x, y = np.pi * points[:, :1], np.pi * points[:, 1:]
        u, a = np.sin(x) * np.sin(y), 1 + self.contrast * np.sin(2 * x) * np.sin(y)
        return np.hstack([u, a])

    def evaluation_points(self) -> Array:
        return grid(np.linspace(0, 1, 51), np.linspace(0, 1, 51))
