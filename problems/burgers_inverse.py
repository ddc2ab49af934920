"""Coefficients of Burgers' equation from noisy measurements."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch

from .base import Observations
from .burgers import Burgers


class BurgersInverse(Burgers):
    r"""Burgers' equation with two unknown coefficients: an inverse problem.

    .. math::
        u_t + \lambda_1 u u_x = \lambda_2 u_{xx}, \quad x \in [-1, 1],\ t \in [0, 1], \qquad
        u_i = u(x_i, t_i) + \sigma e_i, \quad e_i \sim N(0, 1)

    Truth :math:`\lambda_1 = 1, \lambda_2 = 0.01 / \pi`; the solution of :class:`Burgers`, and its
    metric. The points are uniform on the domain; no initial or boundary condition is given. The
    coefficients are kept positive by training their logarithms, from half and from three times
    their default truth. The default sigma is 5 % of the solution's standard deviation over the
    domain, 0.61; the literature also has 1 % (0.0061) and 10 % (0.061).

    Source: Raissi, Perdikaris and Karniadakis, *J. Comput. Phys.* 378 (2019) 686, with 2,000 points
    (here 1,000, to be cheap; the wider network and L-BFGS of theirs are left out too).

    Cost of a fit by ``snr_adam``: 8,000 iterations of about 7 ms on one core.

    Args:
        viscosity: true lambda_2 of the synthetic measurements.
        points, noise, seed, observations, outliers: see :class:`Problem`; ``noise`` is sigma.
    """

    name = "burgers_inverse"
    equation = "u_t + lambda_1 u u_x = lambda_2 u_xx; noisy u(x, t)"
    points = 1000
    noise = 0.0305
    example_constants: ClassVar[tuple[str, ...]] = ("viscosity",)
    unknown_names = ("lambda_1", "lambda_2")
    guesses: ClassVar[Mapping[str, float]] = {"lambda_1": 0.5, "lambda_2": 0.01}
    guess_units: ClassVar[Mapping[str, Mapping[str, float]]] = {
        "lambda_1": {"x": 1, "t": -1, "u": -1},
        "lambda_2": {"x": 2, "t": -1},
    }
    num_boundary = 0

    def coefficients(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.unknown("lambda_1"), self.unknown("lambda_2")

    def truth(self) -> dict[str, float]:
        return {"lambda_1": 1.0, "lambda_2": self.viscosity}

    def conditions(self) -> list[Any]:
        return []

    def observe(self, rng: np.random.Generator, points: int, noise: float | None) -> Observations:
        return self.measure(rng, self.scattered(rng, points), noise)
