r"""Where is a fit to many samples wrong, and by how much? Error bars from twins.

A twin is the same fit to data moved by random signs (:mod:`sciml_snr.measure.twins`). Sample i,
with the residual :math:`r_i = y_i - f_i` and the twin's answer :math:`a_i = (f'_i - f_i) / \tau`,
tells

.. math:: v_i = a_i^2, \qquad c_i = r_i^2 + 2 b_i \sigma_i a_i - \sigma_i^2

The means of these over many twins and draws are the variance of the fit, and its mean square error:
Stein's unbiased estimate of the risk (Ann. Statist. 9 (1981) 1135), sample by sample. They are much
too rough to be looked at by themselves. So means are taken over the samples nearest to a place: k
for c, 16 k for v, whose neighbours are alike. The square of the standard error there is

.. math:: s^2 = \bar v + x\,[x > z t], \qquad x = \bar c - \bar v

with :math:`t^2 = (2 \bar\sigma^4 + 4 \bar\sigma^2 \bar v) / k`, the variance of x where nothing of
the signal is missing: what is missing counts where it stands out of chance, z = 2 (a hard
threshold: D. L. Donoho and I. M. Johnstone, Biometrika 81 (1994) 425).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.spatial import cKDTree

from .regression import quantile
from .twins import Array, Twins

WHOLE = 1.0
"""tau, the size of the twins' signs in sigmas: as large as the errors are. What two trainings
differ by for no reason, from rounding on, counts less beside it than beside small signs."""

NEIGHBOURS = 64
"""k, the samples whose mean is an error bar's square."""

WIDER = 16
"""So many times as many for the variance of the fit."""

THRESHOLD = 2.0
"""z."""


class LocalBars:
    """Standard errors of a fit to many samples, by twins: see this module's text.

    Args:
        points: (n, d) the samples' places.
        values: (n, m).
        fit: (n, m), at the samples.
        sigma: broadcastable to the values.
        twins: their twins.
        twin_fits: (n, m) each.
        predict: the fit at any points (k, d): (k, m).
        scale: (d,) by which coordinates are divided, so that distances compare.
        neighbours: how many samples make an error bar.
        outward: makes of what is returned, (k, m), the shape of the fit's own values.

    Attributes:
        method: ``"twins"``.
        memorized: share of the noise in the fit.
        misfit: mean square of residual / sigma.
        risk: estimate of the mean square error at the samples, over the mean of sigma squared.
    """

    method = "twins"

    def __init__(
        self,
        points: Array,
        values: Array,
        fit: Array,
        sigma: Array,
        twins: Twins,
        twin_fits: list[Array],
        predict: Callable[[Any], Array],
        scale: ArrayLike = 1.0,
        neighbours: int = NEIGHBOURS,
        outward: Callable[[Array], Array] | None = None,
    ) -> None:
        self._outward: Callable[[Array], Array] = outward or (lambda values: values)
        variance = np.broadcast_to(np.asarray(sigma, dtype=np.float64) ** 2, values.shape)
        answers = np.stack([(twin - fit) / twins.tau for twin in twin_fits])
        signs = np.reshape(twins.shifts, answers.shape) / twins.tau
        taken = (signs * answers).mean(0)
        residual = values - fit
        self._scale = np.broadcast_to(np.asarray(scale, dtype=np.float64), points.shape[1:])
        self._tree, self._predict = cKDTree(points / self._scale), predict
        self._neighbours = min(neighbours, len(points))
        self._wider = min(WIDER * neighbours, len(points))
        self._variance, self._noise = variance, np.square(answers).mean(0)
        self._risks = residual**2 + 2 * taken - variance
        self.memorized = float(taken.mean() / variance.mean())
        self.misfit = float((residual[variance > 0] ** 2 / variance[variance > 0]).mean())
        self.risk = float(self._risks.mean() / variance.mean())

    def _means(self, numbers: Array, points: Array, count: int) -> Array:
        """Of numbers (n, m) over the nearest samples of points (k, d): (k, m)."""
        if count == len(numbers):
            return np.broadcast_to(numbers.mean(0), (len(points), numbers.shape[1]))
        found = np.empty((len(points), numbers.shape[1]))
        for start in range(0, len(points), 1024):
            chunk = slice(start, start + 1024)
            _, near = self._tree.query(points[chunk] / self._scale, k=count)
            found[chunk] = numbers[near.reshape(len(near), -1)].mean(1)
        return found

    def __call__(self, points: Any) -> Array:
        """Standard errors at points (k, d), or (k,) for one coordinate.

        Returns:
            (k, m), or shaped as the fit's own values.

        Raises:
            ValueError: the points are not of that shape.
        """
        found: Array = self._outward(self._errors(self._checked(points)))
        return found

    def _checked(self, points: Any) -> Array:
        found: Array = np.asarray(points, dtype=np.float64)
        if found.ndim == 1 and self._tree.m == 1:
            found = found[:, None]
        if found.ndim != 2 or found.shape[1] != self._tree.m:
            raise ValueError(f"points must be (k, {self._tree.m}), got {found.shape}.")
        return found

    def _errors(self, points: Array) -> Array:
        near = self._neighbours
        noise = self._means(self._noise, points, self._wider)
        variance = self._means(self._variance, points, near)
        missing = self._means(self._risks, points, near) - noise
        chance = np.sqrt((2 * variance**2 + 4 * variance * noise) / near)
        found: Array = np.sqrt(noise + np.where(missing > THRESHOLD * chance, missing, 0))
        return found

    def quantile(self, level: float = 0.95) -> float:
        """Standard errors to either side of an interval of this level.

        Raises:
            ValueError: the level is not between 0 and 1.
        """
        return quantile(level)

    def band(self, points: Any, level: float = 0.95) -> tuple[Array, Array]:
        """Low and high end of pointwise intervals; points and shapes as for a call."""
        points = self._checked(points)
        width, fit = self.quantile(level) * self._errors(points), self._predict(points)
        return self._outward(fit - width), self._outward(fit + width)

    def __str__(self) -> str:
        return (
            f"twins: estimated error {math.sqrt(max(self.risk, 0)):.2f} sigma (root mean square), "
            f"memorized {100 * self.memorized:.1f} % of the noise, misfit {self.misfit:.2f}"
        )
