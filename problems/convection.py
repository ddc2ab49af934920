"""Transport of a wave from a noisy initial condition."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import deepxde as dde
import numpy as np
import torch

from .base import Array, Observations, SpaceTime
from .shapes import grid


class Convection(SpaceTime):
    r"""Linear convection with noisy initial values.

    .. math::
        u_t + \beta u_x = 0, \quad x \in [0, 2\pi],\ t \in [0, 1], \qquad
        u(0, t) = u(2\pi, t), \qquad u(x_i, 0) = \sin x_i + \sigma e_i, \quad e_i \sim N(0, 1)

    The positions :math:`x_i` are uniform on :math:`[0, 2\pi]`. Solution
    :math:`u = \sin(x - \beta t)`; the metric is the relative L2 error on a grid of 128 x 51.
    Fitting only the mean, sin and cos of the initial values by least squares, which presumes the
    solution's form, gives an expected relative error of about :math:`\sigma\sqrt{6/n}` (0.15 by
    default).

    Source: the noisy-PINN experiment of Litman and Guo, arXiv:2605.01172; the equation as a test of
    PINNs: Krishnapriyan et al., NeurIPS 2021, arXiv:2109.01050.

    Cost of a fit by ``snr_adam``: 8,000 iterations of about 5 ms on one core.

    Args:
        beta: speed of transport.
        points, noise, seed, observations: see :class:`Problem`; ``noise`` is sigma.
    """

    name = "convection"
    equation = "u_t + beta u_x = 0, periodic; noisy u(x, 0)"
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"x": (0.0, 2 * np.pi), "t": (0.0, 1.0)}
    outputs = ("u",)
    lr = 3e-3
    iterations = 8000
    points = 256
    noise = 1.0
    num_domain = 512
    num_boundary = 100

    def __init__(self, *, beta: float = 5.0, **kwargs: Any) -> None:
        self.beta = beta
        super().__init__(**kwargs)

    def residual(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return dde.grad.jacobian(y, x, j=1) + self.beta * dde.grad.jacobian(y, x, j=0)

    def conditions(self) -> list[Any]:
        return [dde.icbc.PeriodicBC(self.geometry(), 0, lambda _, on_boundary: on_boundary)]

    def observe(self, rng: np.random.Generator, points: int, noise: float | None) -> Observations:
        return self.measure(rng, self.initial(rng, points), noise)

    def reference(self, points: Array) -> Array:
        return np.sin(points[:, :1] - self.beta * points[:, 1:])

    def evaluation_points(self) -> Array:
        return grid(
            np.linspace(*self.domain["x"], 128, endpoint=False), np.linspace(*self.domain["t"], 51)
        )

    def network(self) -> Any:
        return dde.nn.FNN([2] + [64] * 3 + [1], "tanh", "Glorot normal")
