"""Cooling of a rod from a noisy initial temperature."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from .base import Observations
from .heat import Heat


class HeatForward(Heat):
    r"""Heat equation with known diffusivity and noisy initial values: a forward problem.

    .. math::
        u_t = \kappa u_{xx}, \quad x \in [0, 1],\ t \in [0, 1], \qquad u(0, t) = u(1, t) = 0,
        \qquad u_i = u(x_i, 0) + \sigma e_i, \quad e_i \sim N(0, 1)

    The positions :math:`x_i` are uniform on :math:`[0, 1]`. Solution and metric as for
    :class:`Heat`, which looks for :math:`\kappa`. The default sigma is about 40 % of the initial
    root mean square, :math:`\sqrt{\sum_k a_k^2 / 2}` = 0.79. The equation smooths: an error of
    high wavenumber in the initial values dies out, one of the first modes stays.

    Cost of a fit by ``snr_adam``: 8,000 iterations of about 6 ms on one core.

    Args:
        diffusivity, modes: see :class:`Heat`.
        points, noise, seed, observations, outliers: see :class:`Problem`; ``noise`` is sigma.
    """

    name = "heat_forward"
    equation = "u_t = kappa u_xx, u = 0 at both ends; noisy u(x, 0)"
    points = 100
    noise = 0.3
    example_constants: ClassVar[tuple[str, ...]] = ("modes",)
    unknown_names = ()
    guesses: ClassVar[Mapping[str, float]] = {}
    guess_units: ClassVar[Mapping[str, Mapping[str, float]]] = {}

    def kappa(self) -> float:
        return self.diffusivity

    def truth(self) -> dict[str, float]:
        return {}

    def observe(self, rng: np.random.Generator, points: int, noise: float | None) -> Observations:
        return self.measure(rng, self.initial(rng, points), noise)
