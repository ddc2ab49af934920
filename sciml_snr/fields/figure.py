"""The figure of a fitted field."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from ..figures import COLORS, course

if TYPE_CHECKING:
    from .field_fit import FieldFit

SHOWN = 3_000
"""Samples that are drawn at most."""
CELLS = 160
"""Along a side of a drawn section."""


def field_figure(fit: FieldFit) -> Figure:
    """First output: the fit (of more than two coordinates a section through the middle), the
    residuals in units of sigma, and the course of the fit."""
    figure = Figure(figsize=(12.5, 3.6), layout="constrained")
    axes: Any = figure.subplots(1, 3)
    if len(fit.units.center) == 1:
        _curve(axes[0], fit)
    else:
        _section(figure, axes[0], fit)
    _residuals(axes[1], fit)
    course(axes[2], fit.history)
    return figure


def _curve(ax: Any, fit: FieldFit) -> None:
    samples = fit.samples
    (axis,) = fit.grid_axes(600)
    if fit.operator is None:
        chosen = _some(len(samples.points))
        ax.plot(samples.points[chosen, 0], samples.values[chosen, 0], ".", color="0.65", ms=3)
    ax.plot(axis, fit.module.evaluate(axis[:, None])[:, 0], color=COLORS[0])
    ax.set(title="fit and samples" if fit.operator is None else "fit")


def _section(figure: Figure, ax: Any, fit: FieldFit) -> None:
    """Over the first two coordinates, the others in the middle of the samples."""
    samples = fit.samples
    middle = [[c] for c in np.asarray(fit.units.center)[2:]]
    axes = fit.grid_axes([CELLS, CELLS, *middle])
    points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(axes))
    values = fit.module.evaluate(points)[:, 0].reshape(CELLS, CELLS)
    low, high = np.percentile(values, [0.5, 99.5])
    shown = ax.pcolormesh(axes[0], axes[1], values.T, vmin=low, vmax=high, rasterized=True)
    figure.colorbar(shown, ax=ax, shrink=0.8)
    if fit.operator is None and len(axes) == 2:
        chosen = _some(len(samples.points))
        ax.plot(*samples.points[chosen].T, ".", color="white", markersize=0.8)
    ax.set(title="fit" if len(axes) == 2 else "fit, a section through the middle")


def _residuals(ax: Any, fit: FieldFit) -> None:
    sigma = fit.samples.sigma_array
    residual = fit.samples.values - fit.predicted()
    has_error = bool(sigma.any())
    shown = (residual / sigma if has_error else residual).ravel()
    limit = float(np.percentile(np.abs(shown), 99.5)) or 1.0
    ax.hist(shown, bins=60, range=(-limit, limit), density=True, color=COLORS[0], alpha=0.7)
    if has_error:
        x = np.linspace(-limit, limit, 200)
        ax.plot(x, np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi), color="black", linewidth=1)
    ax.set(title="measurement minus fit" + (", in sigma" if has_error else ""), yticks=[])


def _some(n: int) -> Any:
    return np.random.default_rng(0).permutation(n)[:SHOWN]
