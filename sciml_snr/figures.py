"""Figures of fits, of memorization and of spectra, and what all figures share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from .measure.channel import Channel
from .measure.twins import Memorization

COLORS = ["#1b6ca8", "#d1495b", "#2a9d8f", "#e09f3e", "#7b5ea7"]
NOISY: dict[str, Any] = dict(marker=".", linestyle="none", color="0.65", markersize=4, zorder=1)
TRUTH: dict[str, Any] = dict(color="black", linewidth=1.2, linestyle="--", zorder=2)


def image_figure(
    noisy: np.ndarray[Any, Any],
    fit: np.ndarray[Any, Any],
    residual: np.ndarray[Any, Any],
    history: list[dict[str, float]],
    sigma: np.ndarray[Any, Any] | None = None,
    sigma_title: str = "",
) -> Figure:
    """Noisy image, its fit, what was taken away, and the course of the fit.

    Args:
        noisy, fit: (H, W) or (H, W, 3) in [0, 1]; NaN where pixels are missing.
        residual: (H, W).
        history: the log of the fit.
        sigma: (H, W), where every pixel has its own; with a title.
    """
    panels = 4 if sigma is None else 5
    figure = Figure(figsize=(3.5 * panels, 3.6), layout="constrained")
    axes: Any = figure.subplots(1, panels)
    for ax, picture, title in zip(axes[:2], (noisy, fit), ("noisy", "fit"), strict=True):
        colors = dict(cmap="gray", vmin=0, vmax=1) if picture.ndim == 2 else {}
        ax.imshow(picture, **colors)
        ax.set_title(title)
    limit = float(np.nanpercentile(np.abs(residual), 99.5)) or 1.0
    shown = axes[2].imshow(residual, cmap="RdBu_r", vmin=-limit, vmax=limit)
    axes[2].set_title("noisy minus fit")
    figure.colorbar(shown, ax=axes[2], shrink=0.8)
    if sigma is not None:
        shown = axes[3].imshow(sigma, cmap="viridis")
        axes[3].set_title(sigma_title, fontsize="small")
        figure.colorbar(shown, ax=axes[3], shrink=0.8)
    for ax in axes[:-1]:
        ax.set_xticks([]), ax.set_yticks([])
    course(axes[-1], history)
    return figure


def surface_figure(
    points: np.ndarray[Any, Any],
    vertices: np.ndarray[Any, Any],
    faces: np.ndarray[Any, Any],
    section: tuple[Any, Any, Any, Any],
    history: list[dict[str, float]],
) -> Figure:
    """Points, the fitted mesh, a section through both, and the course of the fit.

    Args:
        points: (n, 3).
        vertices, faces: of the mesh, (v, 3) and (f, 3).
        section: two axes (p,) and (q,) of a plane, signed distances (p, q), and the points near
            the plane (m, 2).
        history: the log of the fit.
    """
    figure = Figure(figsize=(15, 3.8), layout="constrained")
    shown = points[:: max(1, len(points) // 3000)]
    middle, extent = (points.max(0) + points.min(0)) / 2, np.ptp(points, axis=0)
    extent = extent.clip(0.05 * extent.max())  # of a flat cloud
    for i in (1, 2):
        ax: Any = figure.add_subplot(1, 4, i, projection="3d")
        ax.set_box_aspect(extent / extent.max(), zoom=1.3)
        ax.set_axis_off()
        for set_limits, m, e in zip(
            (ax.set_xlim, ax.set_ylim, ax.set_zlim), middle, extent, strict=True
        ):
            set_limits(m - 0.5 * e, m + 0.5 * e)
        if i == 1:
            ax.scatter(*shown.T, s=1.5, c=shown[:, 2], cmap="viridis", linewidths=0)
            ax.set_title(f"{len(points)} points")
        else:
            ax.plot_trisurf(
                *vertices.T, triangles=faces, color="0.85", linewidth=0, antialiased=False
            )
            ax.set_title(f"fit, {len(faces)} triangles")
    _section(figure.add_subplot(1, 4, 3), *section)
    course(figure.add_subplot(1, 4, 4), history)
    return figure


def curve_figure(section: tuple[Any, Any, Any, Any], history: list[dict[str, float]]) -> Figure:
    """Points in the plane with the fitted curve, and the course of the fit.

    Args:
        section, history: as for :func:`surface_figure`, with all the points.
    """
    figure = Figure(figsize=(8.5, 3.8), layout="constrained")
    axes: Any = figure.subplots(1, 2)
    _section(axes[0], *section)
    axes[0].set_title("points and fit")
    course(axes[1], history)
    return figure


def memorization_figure(
    rows: Sequence[Memorization], noise_map: np.ndarray[Any, Any] | None = None
) -> Figure:
    """The memorized share and the risk over a run, and where the noise was memorized.

    Args:
        rows: what twins recorded.
        noise_map: (h, w) memorized shares of an image, of :func:`sciml_snr.memorized_map`.
    """
    panels = 2 if noise_map is None else 3
    figure = Figure(figsize=(4.4 * panels, 3.6), layout="constrained")
    axes: Any = figure.subplots(1, panels)
    draw_memorization(axes[:2], rows)
    if noise_map is not None:
        shown = axes[2].imshow(noise_map, cmap="viridis", vmin=0, vmax=max(1, noise_map.max()))
        axes[2].set(title="share of the noise in the fit, by place", xticks=[], yticks=[])
        figure.colorbar(shown, ax=axes[2], shrink=0.8)
    return figure


def draw_memorization(axes: Any, rows: Sequence[Memorization]) -> None:
    """Left: the memorized share; right: the estimated risk, its part that is noise, the truth."""
    table = {name: np.array([getattr(r, name) for r in rows]) for name in rows[0]._fields}
    steps, best = table["iteration"], min(rows, key=lambda row: row.risk)
    left, right = axes
    known = not np.isnan(table["true_share"]).any()
    for ax, name, width in ((left, "share", "share_se"), (right, "risk", "risk_se")):
        value, margin = table[name], 1.96 * table[width]
        ax.plot(steps, value, color=COLORS[0], label="estimate, 95 %")
        ax.fill_between(
            steps, value - margin, value + margin, color=COLORS[0], alpha=0.2, linewidth=0
        )
        if known:
            ax.plot(steps, table[f"true_{name}"], label="truth", **TRUTH)
        ax.set(xlabel="iteration", ylabel={"share": "memorized share", "risk": "risk"}[name])
    # SURE is the misfit + (2 share - 1) sigma^2, which gives sigma^2 back.
    factor = 2 * table["share"] - 1
    at = int(np.abs(factor).argmax())
    power = (table["risk"] - table["misfit"])[at] / factor[at]
    share = table["true_share"] if known else table["share"]
    right.plot(steps, share**2 * power, color=COLORS[1], label="of which noise")
    right.plot(best.iteration, best.risk, "o", color=COLORS[0], markersize=5)
    # The start, when nothing is learned yet, would hide the rest.
    later = [row.risk for row in rows if row.iteration >= best.iteration]
    right.set_ylim(min(0.0, 1.2 * best.risk), 2 * max(*later, best.risk_se))
    for ax in axes:
        legend_above(ax, 2)


def spectrum_figure(channel: Channel, residual: ArrayLike | None = None) -> Figure:
    """Spectrum of the dissipation with the signal channel marked, and where a residual lies.

    Args:
        channel: of :meth:`sciml_snr.measure.channel.Trajectory.channel`.
        residual: (n,) today's residual, whose energy is shown by direction.
    """
    figure = Figure(figsize=(4.6 if residual is None else 9.2, 3.6), layout="constrained")
    axes: Any = figure.subplots(1, 1 if residual is None else 2, squeeze=False)[0]
    values = channel.eigenvalues.clamp_min(1e-16 * channel.eigenvalues[0]).numpy()
    index = np.arange(1, len(values) + 1)
    inside = index <= channel.dimension
    heights: list[tuple[Any, str]] = [(values, "dissipation: eigenvalues of W_S")]
    if residual is not None:
        flat = np.asarray(residual, dtype=float).ravel()
        energy = (channel.vectors.numpy().T @ flat) ** 2
        heights.append((energy, "energy of the residual"))
    for ax, (height, title) in zip(axes, heights, strict=True):
        for part, color, label in (
            (inside, COLORS[0], f"signal channel, {channel.dimension}"),
            (~inside, "0.65", f"reservoir, {len(values) - channel.dimension}"),
        ):
            ax.semilogy(index[part], height[part], "o", color=color, markersize=3, label=label)
        ax.axvline(channel.dimension + 0.5, color="0.6", linewidth=0.8, linestyle="--")
        ax.set(xlabel="direction", title=title)
        ax.legend(frameon=False)
    return figure


def _section(ax: Axes, first: Any, second: Any, distance: Any, near: Any) -> None:
    """Level lines of a signed distance, the zero level heavy."""
    ax.contour(first, second, distance.T, 9, colors="0.85", linewidths=0.6)
    ax.plot(*near.T, ".", color=COLORS[1], markersize=2, alpha=0.5)
    if distance.min() < 0 < distance.max():
        ax.contour(first, second, distance.T, [0.0], colors=COLORS[0], linewidths=1.8)
    ax.set(aspect="equal", title="section: points, fit, level lines", xticks=[], yticks=[])


def course(ax: Axes, history: list[dict[str, float]]) -> None:
    """The log of a fit of an image or a shape."""
    steps = [row["step"] for row in history]
    ax.loglog(steps, [row["misfit"] for row in history], color=COLORS[0], label="misfit")
    ax.axhline(1, color="0.6", linewidth=0.8, linestyle="--")
    if "rmse" in history[0]:
        ax.loglog(steps, [r["rmse"] for r in history], color=COLORS[2], label="true error")
    if "open_fraction" in history[0]:
        opened = [row["open_fraction"] for row in history]
        ax.loglog(steps, opened, color=COLORS[1], label="open fraction")
    ax.set(xlabel="step", title="course")
    ax.legend(frameon=False)


def error_band(
    ax: Axes,
    runs: list[list[dict[str, float]]],
    label: str,
    color: str,
    column: str = "relative_l2",
) -> None:
    """Median over runs of a column of their logs, and its range; of errors a dot at the best."""
    length = min(map(len, runs))
    iterations = np.array([row["iteration"] for row in runs[0][:length]])
    errors = np.array([[row[column] for row in rows[:length]] for rows in runs])
    median = np.median(errors, axis=0)
    is_error = column == "relative_l2"
    text = f"{label}: final {median[-1]:.3g}"
    if is_error:
        text = f"{label}: best {median.min():.3f}, final {median[-1]:.3f}"
    ax.semilogy(iterations, median, color=color, label=text)
    if len(runs) > 1:
        ax.fill_between(
            iterations, errors.min(0), errors.max(0), color=color, alpha=0.2, linewidth=0
        )
    if is_error:
        at = int(median.argmin())
        ax.plot(iterations[at], median[at], "o", color=color, markersize=5)
    number_log_axis(ax)
    names = {"relative_l2": "relative L2 error", "misfit": "misfit R"}
    ax.set(xlabel="iteration", ylabel=names.get(column, column))


def number_log_axis(ax: Axes) -> None:
    """Plain numbers at 1, 2 and 5 of each decade of a logarithmic y axis; over more than four
    decades at its powers of ten alone, over less than half of one at round numbers."""
    low, high = ax.get_ylim()
    ax.yaxis.set_major_formatter("{x:g}")
    if high / low < 4:
        ax.yaxis.set_major_locator(ticker.MaxNLocator(5))
        ax.yaxis.set_minor_locator(ticker.NullLocator())
        return
    wide = high / low > 1e4
    ax.yaxis.set_minor_formatter(
        ticker.NullFormatter() if wide else ticker.FuncFormatter(label_125)
    )


def legend_above(ax: Axes, columns: int = 1) -> None:
    """The legend outside, above the axes."""
    style: dict[str, Any] = dict(frameon=False, fontsize="small", borderaxespad=0.2)
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, **style)


def label_125(value: float, _: int | None = None) -> str:
    """Labels on the minor ticks 2 and 5 of a logarithmic axis, as plain numbers."""
    leading = value / 10 ** np.floor(np.log10(value))
    return f"{value:g}" if round(leading) in (2, 5) else ""


def colors(n: int) -> list[Any]:
    """So many colors that can be told apart."""
    return (
        COLORS[:n]
        if n <= len(COLORS)
        else list(matplotlib.colormaps["turbo"](np.linspace(0, 1, n)))
    )
