"""A breathing soliton from noisy initial values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import deepxde as dde
import numpy as np
import torch

from .base import Array, Observations, SpaceTime
from .shapes import check_positive

WAVES = 12
"""Sines and cosines of x that the network sees, of the periods 20 / k."""


class Schroedinger(SpaceTime):
    r"""Nonlinear Schroedinger equation with noisy initial values: a forward problem.

    .. math::
        i h_t + \tfrac{1}{2} h_{xx} + |h|^2 h = 0, \quad h = u + i v, \quad x \in [-5, 5],\
        t \in [0, \pi / 4], \\
        h_i = 2 \operatorname{sech} x_i + \sigma (e_i + i e_i'), \quad e_i, e_i' \sim N(0, 1)

    The positions :math:`x_i` are uniform on :math:`[-5, 5]`, the measurements at t = 0. Reference:
    the soliton of second order on the whole line (Satsuma and Yajima, *Prog. Theor. Phys. Suppl.*
    55 (1974) 284),

    .. math::
        h = 4 e^{i t / 2} \frac{\cosh 3x + 3 e^{4 i t} \cosh x}{\cosh 4x + 4 \cosh 2x + 3 \cos 4t}

    whose values at both ends, where :math:`|h| < 0.06`, are the exact boundary condition. The
    metric is the relative L2 error of u and v on a grid of 101 x 51.

    Source: C. Bajaj, L. McLennan, T. Andeen and A. Roy, *Mach. Learn.: Sci. Technol.* 4 (2023)
    015013: 50 initial values, sigma 0.1; after Raissi, Perdikaris and Karniadakis, *J. Comput.
    Phys.* 378 (2019) 686. Theirs is periodic instead, and goes on to pi / 2; ours ends at the
    moment of the peak, pi / 4, to be within reach of a small network.

    Cost of a fit by ``snr_adam``: 8,000 iterations of about 11 ms on one core.

    Args:
        duration: last t.
        points, noise, seed, observations, outliers: see :class:`Problem`; ``noise`` is sigma.
    """

    name = "schroedinger"
    equation = "i h_t + h_xx / 2 + |h|^2 h = 0, h = u + i v; noisy h(x, 0)"
    outputs = ("u", "v")
    lr = 5e-3
    iterations = 8000
    points = 50
    noise = 0.1
    width = 48
    num_domain = 500
    num_boundary = 40
    num_initial = 60

    def __init__(self, *, duration: float = np.pi / 4, **kwargs: Any) -> None:
        check_positive(duration=duration)
        self.duration = duration
        super().__init__(**kwargs)

    @property
    def domain(self) -> Mapping[str, tuple[float, float]]:
        return {"x": (-5.0, 5.0), "t": (0.0, self.duration)}

    def residual(self, x: torch.Tensor, y: torch.Tensor) -> list[torch.Tensor]:
        u, v = y[:, :1], y[:, 1:]
        u_t, v_t = (dde.grad.jacobian(y, x, i=i, j=1) for i in (0, 1))
        u_xx, v_xx = (dde.grad.hessian(y, x, component=i, i=0, j=0) for i in (0, 1))
        square = u**2 + v**2
        return [u_xx / 2 - v_t + square * u, v_xx / 2 + u_t + square * v]

    def conditions(self) -> list[Any]:
        geometry = self.geometry()

        def at_end(_: Any, on_boundary: bool) -> bool:
            return on_boundary

        def u(x: Array) -> Array:
            return self.reference(x)[:, :1]

        def v(x: Array) -> Array:
            return self.reference(x)[:, 1:]

        return [dde.icbc.DirichletBC(geometry, f, at_end, i) for i, f in enumerate((u, v))]

    def observe(self, rng: np.random.Generator, points: int, noise: float | None) -> Observations:
        return self.measure(rng, self.initial(rng, points), noise)

    def reference(self, points: Array) -> Array:
        x, t = points.T
        above = np.cosh(3 * x) + 3 * np.exp(4j * t) * np.cosh(x)
        below = np.cosh(4 * x) + 4 * np.cosh(2 * x) + 3 * np.cos(4 * t)
        h = 4 * np.exp(0.5j * t) * above / below
        return np.stack([h.real, h.imag], axis=1)

    def network(self) -> Any:
        """On waves of x: the peak, a quarter wide, is out of reach of the plain network."""
        net = dde.nn.FNN([1 + 2 * WAVES] + [self.width] * 3 + [2], "tanh", "Glorot normal")

        def features(x: torch.Tensor) -> torch.Tensor:
            k = torch.arange(1, WAVES + 1, dtype=x.dtype, device=x.device)
            phase = torch.pi / 10 * k * x[:, :1]
            return torch.cat([torch.cos(phase), torch.sin(phase), 4 * x[:, 1:]], dim=1)

        net.apply_feature_transform(features)
        return net

    def loss_weights(self) -> list[float]:
        """The residual's terms are up to 60 times u and v, at the peak."""
        return [0.1, 0.1, 1.0, 1.0, 1.0, 1.0]
