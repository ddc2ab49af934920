"""Growth rate of a population that spreads, from noisy densities."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import deepxde as dde
import numpy as np
import torch

from .base import Array, Observations, SpaceTime
from .shapes import check_positive


class Fisher(SpaceTime):
    r"""Fisher's diffusion-reaction equation with unknown rate: an inverse problem.

    .. math::
        u_t = D u_{xx} + r u (1 - u), \quad x \in [0, 1],\ t \in [0, 2], \qquad
        u_i = u(x_i, t_i) + \sigma e_i, \quad e_i \sim N(0, 1)

    with D = 0.01 known and r = 2 unknown, kept positive by training its logarithm, from three times
    the default truth. The points are uniform on the domain; no initial or boundary condition is
    given. Solution: the travelling wave of Ablowitz and Zeppetella (*Bull. Math. Biol.* 41 (1979)
    835),

    .. math::
        u = \left(1 + e^{z}\right)^{-2}, \qquad
        z = \sqrt{r / 6 D}\, (x - x_0) - \tfrac{5}{6} r t, \qquad x_0 = 0.2

    The metric is the relative L2 error on a grid of 101 x 51.

    Source: the equation is R. A. Fisher's (*Annals of Eugenics* 7 (1937) 355); the example is ours.

    Cost of a fit by ``snr_adam``: 8,000 iterations of about 4 ms on one core.

    Args:
        diffusivity: D.
        rate: true r of the synthetic measurements.
        front: x_0, the front's place at t = 0.
        points, noise, seed, observations, outliers: see :class:`Problem`; ``noise`` is sigma.
    """

    name = "fisher"
    equation = "u_t = D u_xx + r u (1 - u); noisy u(x, t)"
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"x": (0.0, 1.0), "t": (0.0, 2.0)}
    outputs = ("u",)
    lr = 3e-3
    iterations = 8000
    points = 200
    noise = 0.1
    unknown_names = ("r",)
    guesses: ClassVar[Mapping[str, float]] = {"r": 6.0}
    guess_units: ClassVar[Mapping[str, Mapping[str, float]]] = {"r": {"t": -1}}
    num_domain = 400
    example_constants: ClassVar[tuple[str, ...]] = ("rate", "front")

    def __init__(
        self, *, diffusivity: float = 0.01, rate: float = 2.0, front: float = 0.2, **kwargs: Any
    ) -> None:
        check_positive(diffusivity=diffusivity, rate=rate)
        self.diffusivity, self.rate, self.front = diffusivity, rate, front
        super().__init__(**kwargs)

    def truth(self) -> dict[str, float]:
        return {"r": self.rate}

    def residual(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        u_t, u_xx = dde.grad.jacobian(y, x, j=1), dde.grad.hessian(y, x, i=0, j=0)
        return u_t - self.diffusivity * u_xx - self.unknown("r") * y * (1 - y)

    def observe(self, rng: np.random.Generator, points: int, noise: float | None) -> Observations:
        return self.measure(rng, self.scattered(rng, points), noise)

    def reference(self, points: Array) -> Array:
        x, t = points[:, :1], points[:, 1:]
        z = np.sqrt(self.rate / (6 * self.diffusivity)) * (x - self.front) - 5 / 6 * self.rate * t
        return (1 + np.exp(z)) ** -2.0
