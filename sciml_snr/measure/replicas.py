"""Replicas of a fit: the same data with fresh errors added, fitted anew.

The parametric bootstrap (B. Efron and R. J. Tibshirani, *An Introduction to the Bootstrap* (1993),
section 6.5): how the measurements' errors move a fit, without linearization. Each fit is led to the
end by Levenberg-Marquardt steps, with Jacobians of its own, from where the linearized fit would be.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from .._tensors import add_vector
from ..jacobian import Residuals
from .regression import Array, Parts, Regression, Ridge, Split, in_float64

ROUNDS, TRIALS, STILL = 20, 8, 0.01
"""A replica has so many Levenberg-Marquardt steps, each tried with so many dampings, until one
moves the fit by less than this, in units of sigma, root mean square."""


class Replicas:
    """The fit led to the end, on the measurements and on such with fresh errors added.

    Args:
        regression: the fit, linearized.
        residuals: its rows.
        params: its parameters, in the order of the Jacobian's columns.
        count: number of replicas.
        seed: of the errors.
    """

    def __init__(
        self,
        regression: Regression,
        residuals: Residuals,
        params: Sequence[Tensor],
        count: int,
        seed: int,
    ) -> None:
        self._params, self.count = list(params), count
        self._regression, self._residuals = regression, residuals
        generator = torch.Generator("cpu").manual_seed(seed)
        errors = torch.randn(
            count, len(regression.rows), generator=generator, dtype=torch.float64, device="cpu"
        ).to(regression.rows)
        errors *= regression.noisy * math.sqrt(regression.scale)
        none = torch.zeros_like(errors[0])
        self._base = self._led(none, regression.ridge.solution(none))
        starts = [self._base - regression.ridge.solution(error) for error in errors]
        pairs = zip(errors, starts, strict=True)
        self._changes = [self._led(error, start) for error, start in pairs]

    def _rows(self, change: Tensor, error: Tensor) -> Tensor:
        with moved(self._params, change):
            return self._residuals.rows().double() * self._regression.factors - error

    def _objective(self, change: Tensor, rows: Tensor) -> float:
        regression = self._regression
        prior = change[~regression.free].square().sum() * regression.ridge.precision
        found = float(rows.square().sum() + prior)
        return found if math.isfinite(found) else math.inf

    def _led(self, error: Tensor, start: Tensor) -> Tensor:
        """The change of the parameters on the measurements plus errors in units of sigma."""
        regression, change, damping = self._regression, start, 0.0
        prior = regression.ridge.precision
        before = self._objective(change, self._rows(change, error))
        for _ in range(ROUNDS):
            with moved(self._params, change):
                system = self._residuals.system()
            rows, _, jacobian = in_float64(system).weighted(regression.factors)
            rows, split = rows - error, Split(jacobian, regression.free)
            for _ in range(TRIALS):
                # Towards the prior's middle, and from there to the data.
                back = -change * (prior / (prior + damping))
                back[regression.free] = 0
                ridge = Ridge(split, prior + damping)
                step = back + ridge.solution(rows + ridge.moved(back))
                after = self._objective(change + step, self._rows(change + step, error))
                if after < before:
                    break
                damping = max(10 * damping, prior)
            else:
                return change
            change, before, damping = change + step, after, damping / 10
            effect = ridge.moved(step)[regression.noisy]
            if float(effect.square().mean()) < STILL**2:
                break
        return change

    def parts(self, function: Callable[[], Tensor], unresolved: Array) -> Parts:
        """Of a function of the parameters as they are, (q,).

        Args:
            function: gives a vector.
            unresolved: (q,) that part, which replicas do not know.
        """
        now = values_of(function)
        with moved(self._params, self._base):
            ended = values_of(function)
        total = np.zeros_like(now)
        for change in self._changes:
            with moved(self._params, change):
                total += (values_of(function) - ended) ** 2
        return Parts(np.sqrt(total / self.count), unresolved, ended - now)


class moved:
    """Parameters are changed by a vector inside ``with``."""

    def __init__(self, params: Sequence[Tensor], change: Tensor) -> None:
        self._params, self._change = list(params), change

    def __enter__(self) -> None:
        self._kept = [p.detach().clone() for p in self._params]
        add_vector(self._params, self._change)

    def __exit__(self, *_: object) -> None:
        with torch.no_grad():
            for p, own in zip(self._params, self._kept, strict=True):
                p.copy_(own)


def values_of(function: Callable[[], Tensor]) -> Array:
    """A function's tensor, flat."""
    found: Array = function().detach().double().flatten().clone().cpu().numpy()
    return found
