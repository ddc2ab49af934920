"""A string that swings from a noisy initial shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import deepxde as dde
import numpy as np
import torch

from .base import Array, Observations, SpaceTime
from .shapes import check_positive, zero_on_boundary

MODES = ((1, 1.0), (3, 0.5))
"""Wavenumber k and amplitude a_k of each mode sin(k pi x)."""


class Wave(SpaceTime):
    r"""Wave equation with noisy initial displacement: a forward problem.

    .. math::
        u_{tt} = c^2 u_{xx}, \quad x \in [0, 1],\ t \in [0, 1], \qquad u(0, t) = u(1, t) = 0,
        \qquad u_t(x, 0) = 0, \qquad u_i = u(x_i, 0) + \sigma e_i, \quad e_i \sim N(0, 1)

    The positions :math:`x_i` are uniform on :math:`[0, 1]`. Solution
    :math:`u = \sum_k a_k \sin(k \pi x) \cos(k \pi c t)` with :math:`a_1 = 1, a_3 = 1/2`; nothing
    is damped, neither signal nor noise. The metric is the relative L2 error on a grid of 101 x 51.

    Source: a textbook problem; as a test of PINNs: Wang, Yu and Perdikaris, *J. Comput. Phys.* 449
    (2022) 110768. The noise is ours.

    Cost of a fit by ``snr_adam``: 8,000 iterations of about 6 ms on one core.

    Args:
        speed: c.
        modes: (k, a_k) of the initial shape.
        points, noise, seed, observations, outliers: see :class:`Problem`; ``noise`` is sigma.
    """

    name = "wave"
    equation = "u_tt = c^2 u_xx, u = 0 at both ends, u_t(x, 0) = 0; noisy u(x, 0)"
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"x": (0.0, 1.0), "t": (0.0, 1.0)}
    outputs = ("u",)
    lr = 3e-3
    iterations = 8000
    points = 100
    noise = 0.3
    num_domain = 400
    example_constants: ClassVar[tuple[str, ...]] = ("modes",)
    num_boundary = 60
    num_initial = 60

    def __init__(
        self,
        *,
        speed: float = 1.0,
        modes: Sequence[tuple[int, float]] = MODES,
        **kwargs: Any,
    ) -> None:
        check_positive(speed=speed)
        self.speed, self.modes = speed, modes
        super().__init__(**kwargs)

    def residual(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        u_tt, u_xx = dde.grad.hessian(y, x, i=1, j=1), dde.grad.hessian(y, x, i=0, j=0)
        return u_tt - self.speed**2 * u_xx

    def conditions(self) -> list[Any]:
        geometry, first = self.geometry(), self.domain["t"][0]

        def velocity(x: torch.Tensor, y: torch.Tensor, _: Any) -> torch.Tensor:
            return dde.grad.jacobian(y, x, j=1)

        at_rest = dde.icbc.OperatorBC(geometry, velocity, lambda x, _: np.isclose(x[1], first))
        return [zero_on_boundary(geometry), at_rest]

    def observe(self, rng: np.random.Generator, points: int, noise: float | None) -> Observations:
        return self.measure(rng, self.initial(rng, points), noise)

    def reference(self, points: Array) -> Array:
        k, a = np.array(self.modes).T
        phase = k * np.pi * points[:, :1], k * np.pi * self.speed * points[:, 1:]
        return (a * np.sin(phase[0]) * np.cos(phase[1])).sum(axis=1, keepdims=True)

    def loss_weights(self) -> list[float]:
        """The residual is up to 90 times an error of u (the third mode's frequency squared)."""
        return [0.1, 10.0, 1.0, 10.0]
