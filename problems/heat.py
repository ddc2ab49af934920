"""Diffusivity of a rod from noisy temperatures, scattered in space and time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import deepxde as dde
import numpy as np
import torch

from .base import Array, Observations, SpaceTime
from .shapes import check_positive, zero_on_boundary

MODES = ((1, 1.0), (2, 0.5))
"""Wavenumber k and initial amplitude a_k of each mode sin(k pi x)."""


class Heat(SpaceTime):
    r"""Heat equation with unknown diffusivity and unknown initial state: an inverse problem.

    .. math::
        u_t = \kappa u_{xx}, \quad x \in [0, 1],\ t \in [0, 1], \qquad u(0, t) = u(1, t) = 0,
        \qquad u_i = u(x_i, t_i) + \sigma e_i, \quad e_i \sim N(0, 1)

    All dimensionless. The points :math:`(x_i, t_i)` are uniform on the domain. Unknown:
    :math:`\kappa`, kept positive by training its logarithm, from a guess three times too large, and
    the initial state, for which there is no condition. Solution
    :math:`u = \sum_k a_k \sin(k \pi x) e^{-\lambda_k t}`, :math:`\lambda_k = \kappa (k \pi)^2`,
    with :math:`a_1 = 1, a_2 = 1/2`: over the measured time the first mode falls to 37 %, the second
    to 2 %. The metric is the relative L2 error on a grid of 101 x 51.

    The default sigma is 10 % of the solution's root mean square over the domain,
    :math:`\sqrt{\sum_k a_k^2 (1 - e^{-2 \lambda_k}) / 4 \lambda_k}` = 0.484. Fitting only
    :math:`\kappa, a_1, a_2` by least squares, which presumes the solution's form, then gives an
    expected relative error of :math:`0.1\sqrt{3/n}` = 0.012 and one of :math:`\kappa` of 0.025.

    Source: PINNs that find an equation's coefficients from scattered noisy data: Raissi, Perdikaris
    and Karniadakis, *J. Comput. Phys.* 378 (2019) 686; this example is ours.

    Cost of a fit by ``snr_adam``: 8,000 iterations of about 6 ms on one core.

    Args:
        diffusivity: true kappa of the synthetic measurements.
        modes: (k, a_k) of the initial state.
        points, noise, seed, observations: see :class:`Problem`; ``noise`` is sigma.
    """

    name = "heat"
    equation = "u_t = kappa u_xx, u = 0 at both ends; noisy u(x, t)"
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"x": (0.0, 1.0), "t": (0.0, 1.0)}
    outputs = ("u",)
    lr = 3e-3
    iterations = 8000
    points = 200
    noise = 0.048
    unknown_names: ClassVar[tuple[str, ...]] = ("diffusivity",)
    guesses: ClassVar[Mapping[str, float]] = {"diffusivity": 0.3}
    guess_units: ClassVar[Mapping[str, Mapping[str, float]]] = {"diffusivity": {"x": 2, "t": -1}}
    num_domain = 400
    example_constants: ClassVar[tuple[str, ...]] = ("diffusivity", "modes")
    num_boundary = 60

    def __init__(
        self,
        *,
        diffusivity: float = 0.1,
        modes: Sequence[tuple[int, float]] = MODES,
        **kwargs: Any,
    ) -> None:
        check_positive(diffusivity=diffusivity)
        self.diffusivity, self.modes = diffusivity, modes
        super().__init__(**kwargs)

    def kappa(self) -> torch.Tensor | float:
        return self.unknown("diffusivity")

    def truth(self) -> dict[str, float]:
        return {"diffusivity": self.diffusivity}

    def residual(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return dde.grad.jacobian(y, x, j=1) - self.kappa() * dde.grad.hessian(y, x, i=0, j=0)

    def conditions(self) -> list[Any]:
        return [zero_on_boundary(self.geometry())]

    def observe(self, rng: np.random.Generator, points: int, noise: float | None) -> Observations:
        return self.measure(rng, self.scattered(rng, points), noise)

    def reference(self, points: Array) -> Array:
        k, a = np.array(self.modes).T
        decay = np.exp(-self.diffusivity * (k * np.pi) ** 2 * points[:, 1:])
        return (a * decay * np.sin(k * np.pi * points[:, :1])).sum(axis=1, keepdims=True)

    def loss_weights(self) -> list[float]:
        """The residual is up to 4 times an error of u (the second mode's rate), 16 in squares."""
        return [1.0, 10.0, 10.0]

    def network(self) -> Any:
        return dde.nn.FNN([2] + [50] * 3 + [1], "tanh", "Glorot normal")
