"""Figures of runs of problems, drawn from what their folders hold."""

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

from ..figures import (
    COLORS,
    NOISY,
    TRUTH,
    colors,
    draw_memorization,
    error_band,
    legend_above,
    number_log_axis,
)
from ..measure.twins import Memorization
from ..text_files import read_number, read_table
from .folder import read_arrays, read_json, readable, write_atomically

DPI = 110
"""Of the PNG."""

SLICES = (0.0, 0.5, 1.0)
"""Where slices through a field are, as shares of the last coordinate's range."""

NEAR = 0.05
"""Measurements within this share of the range are drawn with a slice."""

POWERS = (-3, 4)
"""Numbers on axes below and above these powers of ten have the power written once."""

Fields = dict[str, Any]


def run_figure(folder: str | Path, format: str | None = None) -> Path:
    """Write the figure of a run: see :func:`drawn`.

    Args:
        folder: a run folder.
        format: write it in this format, too: "pdf", "svg".

    Returns:
        The figure's path, ``folder/figure.png``.
    """
    return _save(drawn(folder), Path(folder) / "figure.png", format)


def drawn(folder: str | Path) -> Figure:
    """One run: measurements with error bars and fit, the fitted fields and their differences from
    the truth (or, with own measurements, the width of their 95 % bands), residuals and their
    histogram, and the course of error (or misfit) and unknowns.

    Args:
        folder: a run folder.
    """
    folder = Path(folder)
    fields, rows = read_run(folder)
    outputs = [str(name) for name in fields["outputs"]]
    is_curve = fields["points"].shape[1] == 1
    unknowns, intervals = _unknowns(folder)
    shown = len(outputs) * (1 if is_curve else 3)
    panels = shown + 2 + bool(unknowns)
    columns = 2 if panels == 4 else min(3, panels)
    figure, axes = _panels(panels, columns)
    for i, name in enumerate(outputs):
        if is_curve:
            _curve(axes[i], fields, i, name)
        else:
            _slices(axes[3 * i], fields, i, name)
            _field(figure, axes[3 * i + 1], fields, i, name)
            _difference(figure, axes[3 * i + 2], fields, i, name)
    _residuals(axes[shown], fields)
    _course(axes[shown + 1], [(_optimizer(folder), [rows], COLORS[0])])
    if unknowns:
        _unknown_courses(axes[shown + 2], rows, unknowns, intervals)
    return figure


def comparison_figure(out: str | Path, folders: Sequence[Path], format: str | None = None) -> Path:
    """Fits of several runs with the measurements, and their errors (with own measurements: their
    misfits) over iterations: median and range over seeds.

    Args:
        out: where to put ``comparison.png``.
        folders: run folders of one problem.
        format: write it in this format, too: "pdf", "svg".

    Returns:
        The figure's path.
    """
    runs: dict[str, list[Path]] = {}
    for folder in folders:
        runs.setdefault(_optimizer(folder), []).append(folder)
    fits, courses = [], []
    for (name, members), color in zip(runs.items(), colors(len(runs)), strict=True):
        found = [read_run(folder) for folder in members]
        fits.append((found[0][0], name, color))
        courses.append((name, [rows for _, rows in found], color))
    figure, (left, right) = _panels(2, 2)
    fields = fits[0][0]
    if fields["points"].shape[1] == 1:
        _measured(left, fields, 0, np.full(len(fields["observed_points"]), True), "0.55", "data")
        if "reference" in fields:
            left.plot(fields["points"][:, 0], fields["reference"][:, 0], label="reference", **TRUTH)
        for fields, name, color in fits:
            left.plot(fields["points"][:, 0], fields["fit"][:, 0], color=color, label=name)
            _band(left, fields, 0, color, slice(None))
        _label(left, fields, 0)
    else:
        _compared_slice(left, fits)
    seeds = len(folders) // len(runs)
    legend_above(left, 2)
    _course(right, courses)
    if seeds > 1:
        right.set_xlabel(f"iteration (median and range of {seeds} seeds; left: the first)")
    return _save(figure, Path(out) / "comparison.png", format)


def memorization_of_run(folder: str | Path, rows: Sequence[Memorization]) -> Path:
    """Memorized share, risk and, where the truth is known, the noise by place.

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
    draw_memorization(axes[:2], rows)
    if known:
        x, clean = fields["observed_points"][:, 0], fields["observed_clean"][:, 0]
        order = np.argsort(x)
        axes[2].plot(x, fields["observed_values"][:, 0] - clean, label="noise", **NOISY)
        in_fit = fields["observed_fit"][:, 0] - clean
        axes[2].plot(x[order], in_fit[order], ".-", color=COLORS[0], markersize=3, label="in fit")
        axes[2].axhline(0, color="0.6", linewidth=0.8)
        axes[2].set(xlabel=str(fields["coordinates"][0]), ylabel="error of measurements and fit")
        legend_above(axes[2], 2)
    return _save(figure, folder / "memorization.png", None)


def _panels(count: int, columns: int) -> tuple[Figure, Any]:
    """A figure of equal panels, with room above each for its legend."""
    rows = -(-count // columns)
    width, height = 4.6 * columns, 3.9 * rows
    figure = Figure(figsize=(width, height))
    axes: Any = figure.subplots(rows, columns, squeeze=False).ravel()
    figure.subplots_adjust(
        left=0.75 / width,
        right=1 - 0.65 / width,
        bottom=0.6 / height,
        top=1 - 0.75 / height,
        wspace=0.36,
        hspace=0.48,
    )
    for ax in axes[count:]:
        ax.set_axis_off()
    for ax in axes[:count]:
        ax.tick_params(which="both", labelsize="small")
    return figure, axes


def _label(ax: Axes, fields: Fields, i: int, at: str = "") -> None:
    ax.set(xlabel=f"{fields['coordinates'][0]}{at}", ylabel=str(fields["outputs"][i]))
    _powers(ax)
    ax.xaxis.set_major_locator(ticker.MaxNLocator(5))


def _powers(ax: Axes) -> None:
    """Powers of ten of the y axis beside the legend, not under it."""
    ax.ticklabel_format(scilimits=POWERS, axis="y")
    offset = ax.yaxis.get_offset_text()
    offset.set_x(-0.17)
    offset.set_fontsize("small")


def _measured(ax: Axes, fields: Fields, i: int, chosen: Any, color: Any, label: str) -> None:
    """Measurements of an output over the first coordinate, with their standard errors."""
    if i >= fields["observed_values"].shape[1] or not chosen.any():
        return
    x, y = fields["observed_points"][chosen, 0], fields["observed_values"][chosen, i]
    ends = None
    if "observed_low" in fields:
        low, high = (fields[f"observed_{end}"][chosen, i] for end in ("low", "high"))
        ends = np.stack([y - low, high - y])
    style: dict[str, Any] = dict(markersize=3.5, elinewidth=0.7, alpha=0.75)
    ax.errorbar(x, y, ends, fmt="o", color=color, mew=0, zorder=1, label=label, **style)


def _band(ax: Axes, fields: Fields, i: int, color: Any, chosen: Any) -> None:
    """The fit's 95 % band over the first coordinate, where there is one."""
    if "fit_low" in fields:
        low, high = (fields[f"fit_{end}"][chosen, i] for end in ("low", "high"))
        x = fields["points"][chosen, 0]
        ax.fill_between(x, low, high, color=color, alpha=0.22, linewidth=0)


def _curve(ax: Axes, fields: Fields, i: int, name: str) -> None:
    """An output over the one coordinate."""
    x = fields["points"][:, 0]
    everywhere = np.full(len(fields["observed_points"]), True)
    _measured(ax, fields, i, everywhere, "0.5", "data +- sigma")
    if "reference" in fields:
        ax.plot(x, fields["reference"][:, i], label="reference", **TRUTH)
    banded = ", 95 %" if "fit_low" in fields else ""
    ax.plot(x, fields["fit"][:, i], color=COLORS[0], label=f"fit{banded}")
    _band(ax, fields, i, COLORS[0], slice(None))
    _label(ax, fields, i)
    legend_above(ax, 3)


def _nearest(values: Any, at: float) -> float:
    return float(values[np.abs(values - at).argmin()])


def _planes(fields: Fields) -> list[float]:
    """Values of the last coordinate at which slices are shown: where the measurements are, if they
    are all at one, else the ends and the middle of their range."""
    levels = np.unique(fields["points"][:, -1])
    measured = fields["observed_points"][:, -1]
    low, high = measured.min(), measured.max()
    if high - low < 1e-9 * (levels[-1] - levels[0]):
        ends = (float(low), (low + levels[-1]) / 2, levels[-1])
    else:
        ends = tuple(low + share * (high - low) for share in SLICES)
    return list(dict.fromkeys(_nearest(levels, at) for at in ends))


def _middle(fields: Fields) -> list[float]:
    """Of coordinates that are neither the first nor the last: a third of the way, as the middle is
    where symmetric fields vanish."""
    columns = fields["points"][:, 1:-1].T
    return [_nearest(np.unique(c), c.min() + (c.max() - c.min()) / 3) for c in columns]


def _on(fields: Fields, key: str, level: float, middle: Sequence[float], width: float) -> Any:
    """Which of the points are in a slice, up to a share of the range of each coordinate."""
    points, ranges = fields[key], np.ptp(fields["points"], axis=0)
    found = np.abs(points[:, -1] - level) <= width * ranges[-1] + 1e-9 * ranges[-1]
    for j, value in enumerate(middle, 1):
        # More room where there is a third coordinate: few points are near a line.
        found &= np.abs(points[:, j] - value) <= 2 * width * ranges[j] + 1e-9 * ranges[j]
    return found


def _slices(ax: Axes, fields: Fields, i: int, name: str) -> None:
    """An output over the first coordinate, at stated values of the others."""
    last, middle = str(fields["coordinates"][-1]), _middle(fields)
    shades = matplotlib.colormaps["viridis"](np.linspace(0.05, 0.8, 3))
    for level, color in zip(_planes(fields), shades, strict=False):
        chosen = _on(fields, "points", level, middle, 0.0)
        x = fields["points"][chosen, 0]
        _measured(ax, fields, i, _on(fields, "observed_points", level, middle, NEAR), color, "")
        if "reference" in fields:
            ax.plot(x, fields["reference"][chosen, i], **TRUTH)
        ax.plot(x, fields["fit"][chosen, i], color=color, label=f"{last} = {level:.3g}")
        _band(ax, fields, i, color, chosen)
    names = [str(c) for c in fields["coordinates"][1:-1]]
    at = ", ".join(f"{c} = {v:.3g}" for c, v in zip(names, middle, strict=True))
    _label(ax, fields, i, f" (at {at})" if at else "")
    legend_above(ax, 3)
    parts = ["lines: fit"] + ["bands: 95 %"] * ("fit_low" in fields)
    parts += ["dashed: truth"] * ("reference" in fields)
    if i < fields["observed_values"].shape[1]:
        parts.append("dots: data near by")
    ax.text(0.0, 1.1, "; ".join(parts), transform=ax.transAxes, fontsize="x-small", va="bottom")


def _shown_plane(fields: Fields) -> tuple[Any, str]:
    """Which of the grid's points are in the plane that is drawn, and where it is, in words."""
    columns, names = fields["points"][:, 2:].T, fields["coordinates"][2:]
    at = [_nearest(np.unique(c), (c.min() + c.max()) / 2) for c in columns]
    shown = np.full(len(fields["points"]), True)
    for column, value in zip(columns, at, strict=True):
        shown &= column == value
    return shown, ", ".join(f"{n} = {v:.3g}" for n, v in zip(names, at, strict=True))


def _plane(figure: Figure, ax: Axes, fields: Fields, values: Any, label: str, **style: Any) -> None:
    """Numbers (n,) on the evaluation grid, the first coordinate horizontal; in more than two
    coordinates a plane in the middle of the others, which the label states."""
    points = fields["points"]
    shown, at = _shown_plane(fields)
    x, y = (np.unique(points[:, j]) for j in range(2))
    steps = [np.diff(axis) for axis in (x, y)]
    grid = values[shown].reshape(len(x), len(y)).T
    if all(np.ptp(step) <= 1e-6 * step.max() for step in steps):
        half = [step[0] / 2 for step in steps]
        extent = (x[0] - half[0], x[-1] + half[0], y[0] - half[1], y[-1] + half[1])
        style |= dict(origin="lower", extent=extent, aspect="auto", interpolation="bilinear")
        image: Any = ax.imshow(grid, **style)
    else:
        image = ax.pcolormesh(x, y, grid, rasterized=True, **style)
    ax.set(xlim=(x[0], x[-1]), ylim=(y[0], y[-1]))
    names = [str(name) for name in fields["coordinates"]]
    ax.set(xlabel=names[0], ylabel=names[1])
    ax.xaxis.set_major_locator(ticker.MaxNLocator(5))
    numbers = ticker.ScalarFormatter()
    numbers.set_powerlimits(POWERS)
    bar = figure.colorbar(image, ax=ax, pad=0.03, fraction=0.06, format=numbers)
    bar.ax.tick_params(labelsize="small")
    bar.ax.yaxis.get_offset_text().set_fontsize("small")
    ax.set_title(label + (f", {at}" if at else ""), fontsize="medium", loc="left")


def _field(figure: Figure, ax: Axes, fields: Fields, i: int, name: str) -> None:
    """The fitted output over the first two coordinates, and where it was measured."""
    values = fields["fit"][:, i]
    drawn = values[_shown_plane(fields)[0]]
    limit = float(np.abs(drawn).max()) or 1.0
    is_signed = drawn.min() < -0.1 * limit and drawn.max() > 0.1 * limit
    style = dict(cmap="RdBu_r", vmin=-limit, vmax=limit) if is_signed else dict(cmap="viridis")
    _plane(figure, ax, fields, values, f"{name}, fit", **style)
    if fields["points"].shape[1] == 2 and i < fields["observed_values"].shape[1]:
        ax.plot(*fields["observed_points"].T, "k.", markersize=1.5, alpha=0.5)


def _difference(figure: Figure, ax: Axes, fields: Fields, i: int, name: str) -> None:
    """Fit minus truth; with own measurements the half width of the 95 % band; else nothing."""
    if "reference" in fields:
        values = (fields["fit"] - fields["reference"])[:, i]
        limit = float(np.abs(values[_shown_plane(fields)[0]]).max()) or 1.0
        style = dict(cmap="RdBu_r", vmin=-limit, vmax=limit)
        _plane(figure, ax, fields, values, f"{name}, fit - truth", **style)
    elif "fit_low" in fields:
        values = (fields["fit_high"] - fields["fit_low"])[:, i] / 2
        _plane(figure, ax, fields, values, f"{name}, 95 %: fit +- this", cmap="cividis", vmin=0)
    else:
        ax.set_axis_off()
        ax.text(0.5, 0.5, "no error bars", ha="center", transform=ax.transAxes, color="0.4")


def _residuals(ax: Axes, fields: Fields) -> None:
    """What the fit leaves of the measurements, over the first coordinate, and how often."""
    has_sigma = "observed_residual" in fields
    measured = fields["observed_values"].shape[1]
    if has_sigma:
        residuals = fields["observed_residual"]
    else:
        residuals = fields["observed_fit"][:, :measured] - fields["observed_values"]
    x, names = fields["observed_points"][:, 0], fields["outputs"]
    aside = ax.inset_axes((0.79, 0.0, 0.21, 1.0))
    limit = 1.1 * max(float(np.abs(residuals).max()), 3.0 if has_sigma else 1e-30)
    # Both in one frame: points left, their histogram right.
    low, high = x.min(), x.max()
    room = 0.03 * (high - low) or 1.0
    ax.set(xlim=(low - room, low + (high - low + room) / 0.78), ylim=(-limit, limit))
    bins = np.linspace(-limit, limit, 31)
    for j, color in zip(range(measured), colors(measured), strict=True):
        ax.plot(x, residuals[:, j], ".", color=color, markersize=3.5, label=str(names[j]))
        heights, _ = np.histogram(residuals[:, j], bins, density=True)
        aside.stairs(heights, bins, orientation="horizontal", fill=True, color=color, alpha=0.5)
    if has_sigma:
        z = np.linspace(-limit, limit, 121)
        normal = np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)
        aside.plot(normal, z, color="black", linewidth=1, linestyle="--")
        for end in (-1.96, 1.96):
            ax.axhline(end, color="0.6", linewidth=0.8, linestyle=":")
    ax.axhline(0, color="0.6", linewidth=0.8)
    aside.set(ylim=(-limit, limit), xticks=[], yticks=[], facecolor="white")
    ticks = ticker.MaxNLocator(5).tick_values(low, high)
    ax.set_xticks([tick for tick in ticks if low - room <= tick <= high + room])
    what = "(fit - data) / sigma" if has_sigma else "fit - data"
    ax.set(xlabel=str(fields["coordinates"][0]), ylabel=what)
    ax.xaxis.set_label_coords(0.39, -0.11)
    if measured > 1:
        legend_above(ax, 4)
    if has_sigma:
        text = f"R = {float((residuals**2).mean()):.3g}; dashed: standard normal"
        at = 1.1 if measured > 1 else 1.02
        ax.text(1, at, text, transform=ax.transAxes, fontsize="small", ha="right", va="bottom")


def _course(ax: Axes, runs: list[tuple[str, list[list[dict[str, float]]], Any]]) -> None:
    """Relative error over iterations; without a truth the misfit, without sigma the loss."""
    keys = set.intersection(*({*row} for _, logs, _ in runs for rows in logs for row in rows))
    column = next(name for name in ("relative_l2", "misfit", "loss") if name in keys)
    for name, logs, color in runs:
        error_band(ax, logs, name, color, column)
    if column == "misfit":
        ax.axhline(1, color="0.6", linewidth=0.8, linestyle="--")
        ax.set_ylabel("misfit R (dashed: the measurements' errors)")
    number_log_axis(ax)
    legend_above(ax)


def _compared_slice(ax: Axes, fits: list[tuple[Fields, str, Any]]) -> None:
    """The first output over the first coordinate, of several fits, where most was measured."""
    fields = fits[0][0]
    middle = _middle(fields)
    near = [_on(fields, "observed_points", level, middle, NEAR) for level in _planes(fields)]
    best = int(np.argmax([chosen.sum() for chosen in near]))
    level = _planes(fields)[best]
    _measured(ax, fields, 0, near[best], "0.55", "data near by")
    chosen = _on(fields, "points", level, middle, 0.0)
    x = fields["points"][chosen, 0]
    if "reference" in fields:
        ax.plot(x, fields["reference"][chosen, 0], label="truth", **TRUTH)
    for fields, name, color in fits:
        ax.plot(x, fields["fit"][chosen, 0], color=color, label=name)
        _band(ax, fields, 0, color, chosen)
    names, values = [str(c) for c in fields["coordinates"][1:]], [*middle, level]
    at = ", ".join(f"{name} = {value:.3g}" for name, value in zip(names, values, strict=True))
    _label(ax, fields, 0, f" (at {at})")


def _unknowns(folder: Path) -> tuple[dict[str, float], dict[str, Any]]:
    """A run's unknowns and their intervals, as its summary says."""
    path = folder / "summary.json"
    if not path.exists():
        return {}, {}
    found = read_json(path)
    return found.get("unknowns") or {}, found.get("unknowns_interval") or {}


def _unknown_courses(
    ax: Axes, rows: list[dict[str, float]], unknowns: dict[str, float], intervals: dict[str, Any]
) -> None:
    """Unknowns over iterations with their 95 % intervals; several over their values at the end.

    Intervals of more than three would hide each other as bands: they are bars at the end.
    """
    iterations = [row["iteration"] for row in rows]
    is_one, are_bars = len(unknowns) == 1, len(unknowns) > 3
    ends_at = max(iterations, default=0)
    widest = 2 * abs(next(iter(unknowns.values()))) if is_one else 2.0  # of a band that is shown
    shown: list[float] = []
    chosen = zip(unknowns.items(), colors(len(unknowns)), strict=True)
    for i, ((name, value), color) in enumerate(chosen):
        unit = 1.0 if is_one else value
        course = np.array([row.get(name, np.nan) / unit for row in rows])
        label = f"{name} = {value:.4g}"
        ends = intervals.get(name) or [None, None]
        if all(end is not None for end in ends):
            label += "" if are_bars else f" ({ends[0]:.3g} to {ends[1]:.3g})"
            band = sorted(end / unit for end in ends)
            if are_bars:
                ax.plot([ends_at * (1.03 + 0.03 * i)] * 2, band, color=color, lw=2.5, alpha=0.8)
            else:
                ax.axhspan(*band, color=color, alpha=0.15, linewidth=0)
            shown += np.clip(band, value / unit - widest, value / unit + widest).tolist()
        ax.plot(iterations, course, color=color, label=label)
        shown += [*course[len(course) // 2 :], value / unit * 0.98, value / unit * 1.02]
    what = next(iter(unknowns)) if is_one else "unknown / value at the end"
    ax.set(xlabel="iteration", ylabel=f"{what} ({'bars' if are_bars else 'band'}: 95 %)")
    finite = [x for x in shown if np.isfinite(x)] or [0.0, 1.0]
    margin = 0.1 * (max(finite) - min(finite))
    ax.set_ylim(min(finite) - margin, max(finite) + margin)
    _powers(ax)
    ax.xaxis.set_major_locator(ticker.MaxNLocator(5))
    legend_above(ax, 2 if are_bars else 1)


def _optimizer(folder: Path) -> str:
    return str(read_json(folder / "config.json")["optimizer"])


def read_run(folder: Path) -> tuple[Fields, list[dict[str, float]]]:
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
        needed = {"iteration", "loss"} | ({"relative_l2"} if "reference" in fields else set())
        if not rows or not all(needed <= row.keys() for row in rows):
            raise ValueError(f"it has no rows with {', '.join(sorted(needed))}")
    return fields, rows


def _check_prediction(fields: Fields) -> None:
    """Refuse arrays that are not those of :func:`sciml_snr.runs.run.prediction`."""
    names, outputs = fields["coordinates"], fields["outputs"]
    n, d, m = len(fields["points"]), names.size, outputs.size
    k, measured = fields["observed_values"].shape
    shapes = {"points": (n, d), "fit": (n, m), "observed_points": (k, d)}
    shapes |= {"observed_values": (k, measured), "observed_fit": (k, m)}
    bands = [f"{fit}_{end}" for fit in ("fit", "observed_fit") for end in ("low", "high")]
    optional = {name: shapes[name.rpartition("_")[0]] for name in bands} | {"reference": (n, m)}
    pairs = [f"{fit}_{{}}" for fit in ("fit", "observed_fit", "observed")]
    for lone in (p for p in pairs if (p.format("low") in fields) != (p.format("high") in fields)):
        raise ValueError(f"{lone.format('low')} and {lone.format('high')} belong together")
    of_data = ("observed_clean", "observed_residual", "observed_low", "observed_high")
    optional |= dict.fromkeys(of_data, (k, measured))
    shapes |= {name: shape for name, shape in optional.items() if name in fields}
    for name, shape in shapes.items():
        array = fields[name]
        if array.shape != shape or array.dtype.kind not in "fiu" or 0 in shape:
            raise ValueError(f"{name} is {array.dtype} {array.shape}")
    if names.shape != (d,) or outputs.shape != (m,) or names.dtype.kind != "U":
        raise ValueError("coordinates and outputs are no names")


def _save(figure: Figure, path: Path, format: str | None) -> Path:
    """Write the PNG, and the other format beside it."""
    for kind in dict.fromkeys(("png", format or "png")):
        buffer = io.BytesIO()
        figure.savefig(buffer, dpi=DPI, format=kind)
        write_atomically(path.with_suffix(f".{kind}"), buffer.getvalue())
    return path
