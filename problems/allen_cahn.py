"""Phases that separate, from a noisy initial mixture."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, ClassVar

import deepxde as dde
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.integrate import solve_ivp
from scipy.interpolate import BarycentricInterpolator

from .base import Array, Observations, SpaceTime
from .shapes import check_positive

MODES, TIMES = 128, 32
"""Of the reference: points in x, and Chebyshev points in t."""


class AllenCahn(SpaceTime):
    r"""Allen-Cahn equation with noisy initial values: a forward problem.

    .. math::
        u_t = D u_{xx} + r (u - u^3), \quad x \in [-1, 1],\ t \in [0, 1], \qquad
        u(-1, t) = u(1, t),\ u_x(-1, t) = u_x(1, t), \\
        u_i = u_0(x_i) + \sigma e_i, \quad e_i \sim N(0, 1), \qquad
        u_0 = 0.6 \cos \pi x + 0.4 \sin 2 \pi x

    with D = 0.01 and r = 4. The positions :math:`x_i` are uniform on :math:`[-1, 1]`. The reaction
    drives u to 1 and -1 and multiplies small errors by up to exp(r t): what noise does to the
    initial values near a zero decides where the interface comes to lie. The network is periodic by
    its features :math:`\cos \pi x, \sin \pi x`. Reference: a Fourier pseudo-spectral solution with
    128 modes through an ODE solver (tolerance 1e-12), interpolated by Fourier and Chebyshev series.
    The metric is the relative L2 error on a grid of 101 x 51.

    Source: a common test of PINNs, first in Raissi, Perdikaris and Karniadakis, *J. Comput. Phys.*
    378 (2019) 686, with D = 0.0001, r = 5 and an initial state with a kink; milder here.

    Cost of a fit by ``snr_adam``: 8,000 iterations of about 5 ms on one core.

    Args:
        diffusivity: D.
        rate: r.
        points, noise, seed, observations, outliers: see :class:`Problem`; ``noise`` is sigma.
    """

    name = "allen_cahn"
    equation = "u_t = D u_xx + r (u - u^3), periodic; noisy u(x, 0)"
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"x": (-1.0, 1.0), "t": (0.0, 1.0)}
    outputs = ("u",)
    lr = 3e-3
    iterations = 8000
    points = 100
    noise = 0.3
    num_domain = 600

    def __init__(self, *, diffusivity: float = 0.01, rate: float = 4.0, **kwargs: Any) -> None:
        check_positive(diffusivity=diffusivity, rate=rate)
        self.diffusivity, self.rate = diffusivity, rate
        super().__init__(**kwargs)

    def residual(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        u_t, u_xx = dde.grad.jacobian(y, x, j=1), dde.grad.hessian(y, x, i=0, j=0)
        return u_t - self.diffusivity * u_xx - self.rate * (y - y**3)

    def observe(self, rng: np.random.Generator, points: int, noise: float | None) -> Observations:
        return self.measure(rng, self.initial(rng, points), noise)

    def reference(self, points: Array) -> Array:
        times, amplitudes = spectral_solution(self.diffusivity, self.rate)
        t, back = np.unique(points[:, 1], return_inverse=True)
        modes = BarycentricInterpolator(times, amplitudes)(t)[back.ravel()]
        waves = np.exp(1j * np.pi * np.arange(MODES // 2) * (points[:, :1] + 1))
        return 2 * (modes * waves).real.sum(axis=1, keepdims=True) - modes[:, :1].real

    def loss_weights(self) -> list[float]:
        """The reaction is of the order of r, 16 in squares, and u = 0 solves it too."""
        return [0.02, 1.0]

    def network(self) -> Any:
        net = dde.nn.FNN([3] + [self.width] * 3 + [1], "tanh", "Glorot normal")

        def features(x: torch.Tensor) -> torch.Tensor:
            phase = torch.pi * x[:, :1]
            return torch.cat([torch.cos(phase), torch.sin(phase), 2 * x[:, 1:] - 1], dim=1)

        net.apply_feature_transform(features)
        return net


@lru_cache(maxsize=8)
def spectral_solution(
    diffusivity: float, rate: float
) -> tuple[Array, NDArray[np.complexfloating[Any]]]:
    """Times (TIMES,) and the amplitudes (TIMES, MODES / 2) of exp(i k pi (x + 1)) then."""
    x = np.linspace(-1, 1, MODES, endpoint=False)
    k = np.pi * np.arange(MODES // 2 + 1)
    times = 0.5 - 0.5 * np.cos(np.pi * np.arange(TIMES) / (TIMES - 1))

    def slope(_: float, u: Array) -> Array:
        u_xx = np.fft.irfft(-(k**2) * np.fft.rfft(u), MODES)
        return diffusivity * u_xx + rate * (u - u**3)

    start = 0.6 * np.cos(np.pi * x) + 0.4 * np.sin(2 * np.pi * x)
    # Short steps are for the solver's interpolation between them.
    tight: Any = dict(rtol=1e-12, atol=1e-12, max_step=0.005)
    found = solve_ivp(slope, (0, 1), start, "DOP853", times, **tight)
    return times, np.fft.rfft(found.y.T)[:, :-1] / MODES
