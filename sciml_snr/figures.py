"""Figures of runs, drawn from what a run folder holds."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from .measure.channel import Channel
from .measure.twins import Memorization
from .runs.folder import read_arrays, read_json, readable, write_atomically
from .text_files import read_number, read_table

COLORS = ["#1b6ca8", "#d1495b", "#2a9d8f", "#e09f3e", "#7b5ea7"]
_NOISY: dict[str, Any] = dict(marker=".", linestyle="none", color="0.65", markersize=4, zorder=1)
_TRUTH: dict[str, Any] = dict(color="black", linewidth=1.2, linestyle="--", zorder=2)


def run_figure(folder: str | Path) -> Path:
    """Truth, noisy data, fit, and error over iterations of one run.

    Args:
        folder: a run folder.

    Returns:
        The figure's path, ``folder/figure.png``.
    """
    folder = Path(folder)
    fields, rows = read_run(folder)
    outputs = [str(name) for name in fields["outputs"]]
    is_curve = fields["points"].shape[1] == 1
    unknowns, intervals = _unknowns(folder)
    shown = len(outputs) if is_curve else 3 + ("fit_low" in fields)
    panels = shown + 1 + bool(unknowns)
    columns = panels if panels < 5 else 3
    rows_of_panels = -(-panels // columns)
    figure = Figure(figsize=(4.2 * columns, 3.6 * rows_of_panels), layout="constrained")
    axes: Any = figure.subplots(rows_of_panels, columns, squeeze=False).ravel()
    for ax in axes[panels:]:
        ax.set_axis_off()
    if is_curve:
        for i, name in enumerate(outputs):
            _curve(axes[i], fields, i, name)
    else:
        _measured_slice(axes[0], [(fields, "fit", COLORS[0])])
        _field_pair(figure, axes[1:3], fields)
        if "fit_low" in fields:
            _field_width(figure, axes[3], fields)
    error_band(axes[shown], [rows], _optimizer(folder), COLORS[0])
    axes[shown].legend(frameon=False)
    if unknowns:
        _unknown_courses(axes[shown + 1], rows, unknowns, intervals)
    return _save(figure, folder / "figure.png")


def comparison_figure(out: str | Path, folders: Sequence[Path]) -> Path:
    """Errors over iterations and fits of several runs: median and range over seeds.

    Args:
        out: where to put ``comparison.png``.
        folders: run folders of one problem.

    Returns:
        The figure's path.
    """
    runs: dict[str, list[Path]] = {}
    for folder in folders:
        runs.setdefault(_optimizer(folder), []).append(folder)
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    seeds = len(folders) // len(runs)
    figure.suptitle(
        f"fits of the first seed; errors of {seeds} seeds, median and range" if seeds > 1 else ""
    )
    left, right = figure.subplots(1, 2)
    shown = []
    for (name, members), color in zip(runs.items(), _colors(len(runs)), strict=True):
        fields, _ = read_run(members[0])
        shown.append((fields, name, color))
        error_band(right, [read_run(folder)[1] for folder in members], name, color)
    if shown[0][0]["points"].shape[1] == 1:
        fields = shown[0][0]
        left.plot(fields["observed_points"][:, 0], fields["observed_values"][:, 0], **_NOISY)
        left.plot(fields["points"][:, 0], fields["reference"][:, 0], label="reference", **_TRUTH)
        for fields, name, color in shown:
            left.plot(fields["points"][:, 0], fields["fit"][:, 0], color=color, label=name)
            _band(left, fields, 0, color)
        left.set(xlabel=str(fields["coordinates"][0]), ylabel=str(fields["outputs"][0]))
        left.legend(frameon=False)
    else:
        _measured_slice(left, shown)
    right.legend(frameon=False)
    return _save(figure, Path(out) / "comparison.png")


def image_figure(
    noisy: np.ndarray[Any, Any],
    fit: np.ndarray[Any, Any],
    residual: np.ndarray[Any, Any],
    history: list[dict[str, float]],
) -> Figure:
    """Noisy image, its fit, what was taken away, and the course of the fit.

    Args:
        noisy, fit: (H, W) or (H, W, 3) in [0, 1]; NaN where pixels are missing.
        residual: (H, W).
        history: the log of the fit.
    """
    figure = Figure(figsize=(14, 3.6), layout="constrained")
    axes: Any = figure.subplots(1, 4)
    for ax, picture, title in zip(axes[:2], (noisy, fit), ("noisy", "fit"), strict=True):
        colors = dict(cmap="gray", vmin=0, vmax=1) if picture.ndim == 2 else {}
        ax.imshow(picture, **colors)
        ax.set_title(title)
    limit = float(np.nanpercentile(np.abs(residual), 99.5)) or 1.0
    shown = axes[2].imshow(residual, cmap="RdBu_r", vmin=-limit, vmax=limit)
    axes[2].set_title("noisy minus fit")
    figure.colorbar(shown, ax=axes[2], shrink=0.8)
    for ax in axes[:3]:
        ax.set_xticks([]), ax.set_yticks([])
    course(axes[3], history)
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
    _memorization(axes[:2], rows)
    if noise_map is not None:
        shown = axes[2].imshow(noise_map, cmap="viridis", vmin=0, vmax=max(1, noise_map.max()))
        axes[2].set(title="share of the noise in the fit, by place", xticks=[], yticks=[])
        figure.colorbar(shown, ax=axes[2], shrink=0.8)
    return figure


def memorization_of_run(folder: str | Path, rows: Sequence[Memorization]) -> Path:
    """The same for a run folder: share, risk and, where the truth is known, the noise by place.

    Args:
        folder: a run folder.
        rows: what twins recorded.

    Returns:
        The figure's path, ``folder/memorization.png``.
    """
    folder = Path(folder)
    fields, _ = read_run(folder)
    known = "observed_clean" in fields
    figure = Figure(figsize=(4.4 * (2 + known), 3.6), layout="constrained")
    axes: Any = figure.subplots(1, 2 + known)
    _memorization(axes[:2], rows)
    if known:
        x, clean = fields["observed_points"][:, 0], fields["observed_clean"][:, 0]
        order = np.argsort(x)
        axes[2].plot(x, fields["observed_values"][:, 0] - clean, label="noise", **_NOISY)
        in_fit = fields["observed_fit"][:, 0] - clean
        axes[2].plot(x[order], in_fit[order], ".-", color=COLORS[0], markersize=3, label="in fit")
        axes[2].axhline(0, color="0.6", linewidth=0.8)
        title = "error of measurements and fit"
        axes[2].set(title=title, xlabel=str(fields["coordinates"][0]))
        axes[2].legend(frameon=False)
    return _save(figure, folder / "memorization.png")


def _memorization(axes: Any, rows: Sequence[Memorization]) -> None:
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
            ax.plot(steps, table[f"true_{name}"], label="truth", **_TRUTH)
        ax.set(xlabel="iteration", title={"share": "memorized share", "risk": "risk"}[name])
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
        ax.legend(frameon=False)


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


def _curve(ax: Axes, fields: dict[str, Any], i: int, name: str) -> None:
    if i < fields["observed_values"].shape[1]:
        ax.plot(
            fields["observed_points"][:, 0], fields["observed_values"][:, i], label="data", **_NOISY
        )
    ax.plot(fields["points"][:, 0], fields["reference"][:, i], label="reference", **_TRUTH)
    ax.plot(fields["points"][:, 0], fields["fit"][:, i], color=COLORS[0], label="fit")
    _band(ax, fields, i, COLORS[0], label="95 %")
    ax.set(title=name, xlabel=str(fields["coordinates"][0]))
    ax.xaxis.set_major_locator(ticker.MaxNLocator(5))
    ax.legend(frameon=False)


def _measured_slice(ax: Axes, shown: list[tuple[dict[str, Any], str, str]]) -> None:
    """First output at the measured points over the first coordinate: data, truth, fits."""
    fields = shown[0][0]
    x = fields["observed_points"][:, 0]
    order = np.argsort(x)
    ax.plot(x, fields["observed_values"][:, 0], label="noisy data", **_NOISY)
    # A line would join points that differ in the other coordinates.
    joined = np.ptp(fields["observed_points"][:, 1:], axis=0).max() == 0
    style = "-" if joined else "."
    if "observed_clean" in fields:
        truth = _TRUTH if joined else {**_NOISY, "color": "black"}
        ax.plot(x[order], fields["observed_clean"][order, 0], label="truth", **truth)
    for fields, name, color in shown:
        fit = fields["observed_fit"][order, 0]
        ax.plot(x[order], fit, style, color=color, label=name)
        if "observed_fit_low" in fields:
            low, high = (fields[f"observed_fit_{end}"][order, 0] for end in ("low", "high"))
            if joined:
                ax.fill_between(x[order], low, high, color=color, alpha=0.2, linewidth=0)
            else:
                ax.vlines(x[order], low, high, color=color, alpha=0.3, linewidth=1)
    output, coordinate = str(fields["outputs"][0]), str(fields["coordinates"][0])
    ax.set(title="at the measured points", xlabel=coordinate, ylabel=output)
    ax.legend(frameon=False, loc="upper right")


def _band(ax: Axes, fields: dict[str, Any], i: int, color: Any, label: str | None = None) -> None:
    """The fit's 95 % band over the first coordinate, where there is one."""
    if "fit_low" in fields:
        low, high = fields["fit_low"][:, i], fields["fit_high"][:, i]
        x = fields["points"][:, 0]
        ax.fill_between(x, low, high, color=color, alpha=0.2, linewidth=0, label=label)


def _unknowns(folder: Path) -> tuple[dict[str, float], dict[str, Any]]:
    """A run's unknowns and their intervals, as its summary says."""
    path = folder / "summary.json"
    if not path.exists():
        return {}, {}
    found = read_json(path)
    return found.get("unknowns") or {}, found.get("unknowns_interval") or {}


def _unknown_courses(
    ax: Axes,
    rows: list[dict[str, float]],
    unknowns: dict[str, float],
    intervals: dict[str, Any],
) -> None:
    """Unknowns over iterations, over their values at the end, with their 95 % intervals."""
    iterations = [row["iteration"] for row in rows]
    for (name, value), color in zip(unknowns.items(), _colors(len(unknowns)), strict=True):
        course = [row.get(name, np.nan) / value for row in rows]
        label = f"{name} = {value:.4g}"
        ends = intervals.get(name) or [None, None]
        if all(end is not None for end in ends):
            label += f" ({ends[0]:.3g} to {ends[1]:.3g})"
            ax.axhspan(ends[0] / value, ends[1] / value, color=color, alpha=0.15, linewidth=0)
        ax.plot(iterations, course, color=color, label=label)
    ax.set(xlabel="iteration", ylabel="unknown / its value at the end", title="unknowns, 95 %")
    ax.set_ylim(*_around(rows, unknowns, intervals))
    ax.legend(frameon=False, fontsize="small", loc="upper left")


def _around(
    rows: list[dict[str, float]], unknowns: dict[str, float], intervals: dict[str, Any]
) -> tuple[float, float]:
    """Limits that show the second half of the courses and the intervals."""
    half = rows[len(rows) // 2 :]
    found = [row[name] / value for row in half for name, value in unknowns.items() if name in row]
    for name, ends in intervals.items():
        found += [end / unknowns[name] for end in ends or () if end is not None]
    low, high = min([*found, 0.98]), max([*found, 1.02])
    margin = 0.1 * (high - low)
    return low - margin, high + (2 + len(unknowns)) * margin


def _field_width(figure: Figure, ax: Axes, fields: dict[str, Any]) -> None:
    """Half the width of the first output's 95 % band, on the evaluation grid."""
    width = (fields["fit_high"] - fields["fit_low"])[:, 0] / 2
    image = _plane(ax, fields, width, cmap="viridis", vmin=0)
    ax.set_title("half width of the 95 % band")
    figure.colorbar(image, ax=ax)


def _field_pair(figure: Figure, axes: Any, fields: dict[str, Any]) -> None:
    """Truth and fit of the first output on the evaluation grid, on one colour scale."""
    limit = float(np.abs(fields["reference"][_last_plane(fields), 0]).max())
    for ax, key in zip(axes, ("reference", "fit"), strict=True):
        image = _plane(ax, fields, fields[key][:, 0], cmap="RdBu_r", vmin=-limit, vmax=limit)
        ax.set_title("truth" if key == "reference" else "fit")
    figure.colorbar(image, ax=list(axes), label=str(fields["outputs"][0]))


def _plane(ax: Axes, fields: dict[str, Any], values: Any, **style: Any) -> Any:
    """Numbers (n,) on the evaluation grid; in more than two coordinates its last plane."""
    shown = _last_plane(fields)
    first, second = (np.unique(fields["points"][:, i]) for i in range(2))
    image = ax.pcolormesh(
        second, first, values[shown].reshape(len(first), len(second)), rasterized=True, **style
    )
    ax.set(xlabel=str(fields["coordinates"][1]), ylabel=str(fields["coordinates"][0]))
    return image


def _last_plane(fields: dict[str, Any]) -> Any:
    points = fields["points"]
    return (points[:, 2:] == points[-1, 2:]).all(axis=1)


def error_band(ax: Axes, runs: list[list[dict[str, float]]], label: str, color: str) -> None:
    """Median over runs and their range; a dot at the median's best."""
    length = min(map(len, runs))
    iterations = np.array([row["iteration"] for row in runs[0][:length]])
    errors = np.array([[row["relative_l2"] for row in rows[:length]] for rows in runs])
    median = np.median(errors, axis=0)
    ax.semilogy(
        iterations,
        median,
        color=color,
        label=f"{label}: best {median.min():.3f}, final {median[-1]:.3f}",
    )
    if len(runs) > 1:
        ax.fill_between(
            iterations, errors.min(0), errors.max(0), color=color, alpha=0.2, linewidth=0
        )
    best = int(median.argmin())
    ax.plot(iterations[best], median[best], "o", color=color, markersize=5)
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_formatter(ticker.FuncFormatter(label_125))
    ax.set(xlabel="iteration", ylabel="relative L2 error")


def label_125(value: float, _: int | None = None) -> str:
    """Labels on the minor ticks 2 and 5 of a logarithmic axis, as plain numbers."""
    leading = value / 10 ** np.floor(np.log10(value))
    return f"{value:g}" if round(leading) in (2, 5) else ""


def _colors(n: int) -> list[Any]:
    return (
        COLORS[:n]
        if n <= len(COLORS)
        else list(matplotlib.colormaps["turbo"](np.linspace(0, 1, n)))
    )


def _optimizer(folder: Path) -> str:
    return str(read_json(folder / "config.json")["optimizer"])


def read_run(folder: Path) -> tuple[dict[str, Any], list[dict[str, float]]]:
    """What the figures of a problem's run show: its ``prediction.npz`` and ``metrics.csv``.

    Raises:
        FileNotFoundError: one is missing.
        ValueError: one is damaged, or holds something else.
    """
    path = folder / "prediction.npz"
    fields = read_arrays(path)
    with readable(path):
        _check_prediction(fields)
    path = folder / "metrics.csv"
    with readable(path):
        header, lines = read_table(path)
        rows = [
            {name: read_number(text, name) for name, text in zip(header, line, strict=True) if text}
            for _, line in lines
        ]
        if not rows or not all({"iteration", "relative_l2"} <= row.keys() for row in rows):
            raise ValueError("it has no rows with iteration and relative_l2")
    return fields, rows


def _check_prediction(fields: dict[str, Any]) -> None:
    """Refuse arrays that are not those of :func:`sciml_snr.runs.run.prediction`."""
    names, outputs = fields["coordinates"], fields["outputs"]
    n, d, m = len(fields["points"]), names.size, outputs.size
    k, measured = fields["observed_values"].shape
    shapes = {"points": (n, d), "fit": (n, m), "reference": (n, m), "observed_points": (k, d)}
    shapes |= {"observed_values": (k, measured), "observed_clean": (k, measured)}
    shapes["observed_fit"] = (k, m)
    bands = [f"{fit}_{end}" for fit in ("fit", "observed_fit") for end in ("low", "high")]
    shapes |= {name: shapes[name.rpartition("_")[0]] for name in bands}
    for name, shape in shapes.items():
        if name in ("observed_clean", *bands) and name not in fields:
            continue  # only where the truth is known, or where there are error bars
        array = fields[name]
        if array.shape != shape or array.dtype.kind not in "fiu" or 0 in shape:
            raise ValueError(f"{name} is {array.dtype} {array.shape}")
    if names.shape != (d,) or outputs.shape != (m,) or names.dtype.kind != "U":
        raise ValueError("coordinates and outputs are no names")


def _save(figure: Figure, path: Path) -> Path:
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=130, format="png")
    write_atomically(path, buffer.getvalue())
    return path
