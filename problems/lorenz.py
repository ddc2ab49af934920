"""Coefficients of the Lorenz system from a noisy trajectory."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, ClassVar

import deepxde as dde
import numpy as np
import torch
from scipy.integrate import solve_ivp

from .base import Array, Observations, Problem
from .shapes import check_positive

SCALE = 10.0
"""Size of the three coordinates; the network gives a tenth of them."""


class Lorenz(Problem):
    r"""Lorenz system with three unknown coefficients: an inverse problem for an ODE.

    .. math::
        \dot x = a (y - x), \quad \dot y = x (b - z) - y, \quad \dot z = x y - c z, \quad
        t \in [0, 3], \qquad x_i = x(t_i) + \sigma e_i,\ y_i, z_i \text{ likewise}, \quad
        e \sim N(0, 1)

    The times :math:`t_i` are uniform on :math:`[0, 3]`; the initial state is not known. Truth
    a = 10, b = 15, c = 8/3, from the state (-8, 7, 27); the coefficients (sigma, rho and beta of
    most texts) are kept positive by training their logarithms, all from 5. Reference: an ODE solver
    (tolerance 1e-12). Sigma is in units of x, y, z, whose root mean squares are about 6, 6 and 15.
    The metric is the relative L2 error of all three at 301 times.

    Source: DeepXDE's example (Lu et al., *SIAM Review* 63 (2021) 208); the noise is ours.

    Cost of a fit by ``snr_adam``: 8,000 iterations of about 5 ms on one core.

    Args:
        coefficients: true a, b, c of the synthetic measurements.
        start: true initial state.
        points, noise, seed, observations, outliers: see :class:`Problem`; ``noise`` is sigma.
    """

    name = "lorenz"
    equation = "x' = a (y - x), y' = x (b - z) - y, z' = x y - c z; noisy x, y, z"
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"t": (0.0, 3.0)}
    coordinates = ("t",)
    outputs = ("x", "y", "z")
    lr = 3e-3
    iterations = 8000
    points = 60
    noise = 1.0
    unknown_names = ("a", "b", "c")
    guesses: ClassVar[Mapping[str, float]] = {"a": 5.0, "b": 5.0, "c": 5.0}
    num_domain = 200
    example_constants: ClassVar[tuple[str, ...]] = ("coefficients", "start")
    network_scale = SCALE

    def __init__(
        self,
        *,
        coefficients: tuple[float, float, float] = (10.0, 15.0, 8 / 3),
        start: tuple[float, float, float] = (-8.0, 7.0, 27.0),
        **kwargs: Any,
    ) -> None:
        check_positive(**dict(zip(self.unknown_names, coefficients, strict=True)))
        self.coefficients, self.start = coefficients, start
        super().__init__(**kwargs)

    def truth(self) -> dict[str, float]:
        return dict(zip(self.unknown_names, self.coefficients, strict=True))

    def residual(self, t: torch.Tensor, state: torch.Tensor) -> list[torch.Tensor]:
        a, b, c = map(self.unknown, self.unknown_names)
        x, y, z = (state[:, i : i + 1] for i in range(3))
        x_t, y_t, z_t = (dde.grad.jacobian(state, t, i=i) for i in range(3))
        return [x_t - a * (y - x), y_t - x * (b - z) + y, z_t - x * y + c * z]

    def observe(self, rng: np.random.Generator, points: int, noise: float | None) -> Observations:
        return self.measure(rng, self.scattered(rng, points), noise)

    def reference(self, points: Array) -> Array:
        return trajectory(self.coefficients, self.start)(points[:, 0]).T

    def evaluation_points(self) -> Array:
        return np.linspace(*self.domain["t"], 301)[:, None]

    def loss_weights(self) -> list[float]:
        """A slope is up to 20 times a state."""
        return [0.01] * 3 + [1.0] * 3

    def network(self) -> Any:
        """On sines and cosines of t as well: the trajectory turns several times."""
        net = dde.nn.FNN([7] + [self.width] * 3 + [3], "tanh", "Glorot normal")

        def features(t: torch.Tensor) -> torch.Tensor:
            phases = [torch.pi * k * t / 3 for k in (2, 4, 6)]
            waves = [f(phase) for phase in phases for f in (torch.sin, torch.cos)]
            return torch.cat([2 * t / 3 - 1, *waves], dim=1)

        net.apply_feature_transform(features)
        net.apply_output_transform(lambda _, y: SCALE * y)
        return net


@lru_cache(maxsize=8)
def trajectory(coefficients: tuple[float, float, float], start: tuple[float, float, float]) -> Any:
    """A function from times (n,) in [0, 3] to states (3, n)."""
    a, b, c = coefficients

    def slope(_: float, state: Array) -> list[float]:
        x, y, z = state
        return [a * (y - x), x * (b - z) - y, x * y - c * z]

    found = solve_ivp(slope, (0, 3), start, "DOP853", dense_output=True, rtol=1e-12, atol=1e-12)
    return found.sol
