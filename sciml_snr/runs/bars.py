"""Error bars of a problem's run: of its unknowns, and a band around its fit."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import RegularGridInterpolator

from ..measure.error_bars import ErrorBars, error_bars
from ..sigma import estimate_sigma_residuals

if TYPE_CHECKING:
    import deepxde as dde

    from sciml_snr.problems import Problem

Array = NDArray[Any]

Numbers = dict[str, float | None]
Ends = dict[str, list[float | None]]

LEVEL = 0.95
"""Of the intervals and bands in a run folder."""

POINTS = 1000
"""At which standard errors of a grid are found."""


class RunBars:
    """What a run's summary, figures and files say of its error bars.

    Args:
        problem: with its measurements.
        model: its fit.

    Attributes:
        bars: None where there are none.
        reason: why not; else the doubts there are; empty where all is well.
    """

    def __init__(self, problem: Problem, model: dde.Model) -> None:
        self.bars: ErrorBars | None = None
        self.reason = ""
        self._problem, self._model = problem, model
        if problem.sigma() is None:
            self.reason = "there are no error bars: the measurements' error is unknown."
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the doubt is said by the summary
            try:
                self.bars = error_bars(
                    model,
                    unknowns=problem.unknown_functions(model),
                    sigma_known=problem.observations.sigma is not None,
                )
            except (ValueError, FloatingPointError) as error:
                self.reason = str(error)
                return
        self.reason = self.bars.doubt

    def unknowns(self) -> tuple[Numbers | None, Ends | None]:
        """Standard errors and 95 % intervals by name; None where there are none."""
        if self.bars is None:
            return None, None
        errors: Numbers = {name: u.standard_error for name, u in self.bars.unknowns.items()}
        ends: Ends = {name: list(both) for name, both in self.bars.interval(LEVEL).items()}
        return errors, ends

    def sigma_of_fit(self) -> dict[str, list[float]] | None:
        """By output: what the residuals of the fit, less the degrees of freedom it took, say of
        sigma where it was not given; with the standard error of that, encoded. Else None."""
        problem = self._problem
        if self.bars is None or problem.observations.sigma is not None:
            return None
        observed = problem.observations
        encoded = problem.encode(observed.values)
        fit = problem.encode(problem.predict(self._model, observed.points)[:, : encoded.shape[1]])
        dof = min(self.bars.degrees_of_freedom, encoded.size) / encoded.shape[1]
        try:
            found = [estimate_sigma_residuals(r, dof) for r in (fit - encoded).T]
        except ValueError:  # too few are left
            return None
        pairs = zip(problem.measured, found, strict=True)
        return {name: [float(sigma), sigma.standard_error] for name, sigma in pairs}

    def band(self, points: Array) -> tuple[Array, Array] | None:
        """Low and high end of the fit's 95 % band at points, (n, m) each, in problem's units.

        On a grid of more than :data:`POINTS` points standard errors are found on a coarser one, and
        interpolated.
        """
        if self.bars is None:
            return None
        axes = [np.unique(column) for column in points.T]
        is_grid = len(points) > POINTS and math.prod(map(len, axes)) == len(points)
        errors = self._interpolated(points, axes) if is_grid else self.bars(points)
        fit, width = self._model.predict(points), self.bars.quantile(LEVEL) * errors
        found = [self._problem.decode(end) for end in (fit - width, fit + width)]
        low, high = np.minimum(*found), np.maximum(*found)
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            return None
        return low, high

    def _interpolated(self, points: Array, axes: list[Array]) -> Array:
        assert self.bars is not None
        shrink = (POINTS / len(points)) ** (1 / len(axes))
        coarse = []
        for axis in axes:
            count = max(2, round(len(axis) * shrink))
            coarse.append(axis[np.unique(np.linspace(0, len(axis) - 1, count).round().astype(int))])
        places = np.stack(np.meshgrid(*coarse, indexing="ij"), axis=-1)
        errors = self.bars(places.reshape(-1, len(axes)))
        shaped = errors.reshape(*places.shape[:-1], -1)
        return RegularGridInterpolator(coarse, shaped)(points)  # type: ignore[no-any-return]

    def arrays(self, points: Array, observed: Array) -> dict[str, Array]:
        """For ``prediction.npz``: ``fit_low``, ``fit_high`` and ``observed_fit_low``, ``_high``."""
        found: dict[str, Array] = {}
        for name, places in (("fit", points), ("observed_fit", observed)):
            band = self.band(places)
            if band is not None:
                found |= {f"{name}_low": band[0], f"{name}_high": band[1]}
        return found
