"""The tables of docs/paper.md, from the results files."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from benchmarks import convection
from benchmarks.harness import read
from benchmarks.paper import grokking, phenomena

Rows = list[dict[str, str]]
PUBLISHED = "SNRAdam, published rule, soft"
LABEL = "SNRAdam, label floor (default)"


def pinn() -> str:
    """Convection: every method at the rate that is first at an error of 0.4."""
    head = "method|lr|seeds|iterations to 0.4, median (range)|AdamW's / its|memorized at the end"
    lines = _head(head)
    first = {method: _fastest(method) for method in ("AdamW", PUBLISHED, LABEL)}
    adamw = median(_steps(first["AdamW"], "iterations_to_0.4"))
    for method, rows in first.items():
        steps = _steps(rows, "iterations_to_0.4")
        shares = [100 * float(row["memorized"]) for row in rows]
        cells = [method, rows[0]["lr"], str(len(rows)), _count(steps)]
        cells += [f"{adamw / median(steps):.2f}", f"{_spread(shares)} %"]
        lines.append(_line(cells))
    return "\n".join(lines)


def _fastest(method: str) -> Rows:
    """The rows of the learning rate with the lowest median, of those with the most seeds."""
    optimizer, options = convection.METHODS[method]
    by_rate: dict[str, Rows] = {}
    for row in read(convection.PATH):
        same = row["optimizer"] == optimizer and json.loads(row["snr_options"]) == options
        if same and row["iterations"] == str(convection.ITERATIONS):
            by_rate.setdefault(row["lr"], []).append(row)
    most = max(map(len, by_rate.values()))
    whole = [rows for rows in by_rate.values() if len(rows) == most]
    return min(whole, key=lambda rows: median(_steps(rows, "iterations_to_0.4")))


def grokking_grid() -> str:
    """Every run of the scan on seed 0."""
    lines = _head(
        "method|lr|weight decay|steps to fit the batch|steps to 95 % held out|"
        "held out when it stopped|ms per step"
    )
    rows = [row for row in read(grokking.PATH) if row["steps"] == str(grokking.SCAN)]
    for method in grokking.METHODS:
        own = [row for row in rows if row["method"] == method and row["seed"] == "0"]
        for row in sorted(own, key=lambda row: (float(row["lr"]), float(row["weight_decay"]))):
            cells = [method, row["lr"], row["weight_decay"], row["steps_to_fit"] or "never"]
            cells += [row["steps_to_goal"] or "not yet"]
            cells += [f"{100 * float(row['held_out_accuracy']):.0f} % at {row['steps_taken']}"]
            lines.append(_line([*cells, f"{float(row['cpu_milliseconds']):.0f}"]))
    return "\n".join(lines)


def grokking_best() -> str:
    """Every method at the best of its scan, over the seeds."""
    lines = _head(
        "method|cells tried|lr|weight decay|seeds|steps to 95 % held out, median (range)|"
        "AdamW's / its"
    )
    rows = read(grokking.PATH)
    adamw: float | None = None
    for method in grokking.METHODS:
        cell = grokking.best(rows, method)
        if cell is None:
            continue
        own = grokking.rows_at(rows, method, cell)
        tried = {(r["lr"], r["weight_decay"]) for r in rows if r["method"] == method}
        steps = _steps(own, "steps_to_goal")
        adamw = median(steps) if method == "AdamW" else adamw
        ratio = "" if adamw is None or median(steps) == float("inf") else adamw / median(steps)
        cells = [method, str(len(tried)), f"{cell[0]:g}", f"{cell[1]:g}", str(len(own))]
        reached = _count(steps)
        if float("inf") in steps:
            longest = max(int(row["steps_taken"]) for row in own if not row["steps_to_goal"])
            reached += f", not within {longest}"
        cells += [reached, f"{ratio:.2f}" if ratio else ""]
        lines.append(_line(cells))
    return "\n".join(lines)


def benign_overfitting() -> str:
    """Before the noise is fitted and after."""
    lines = _head(
        "weak inputs|step|training error|risk|from the signal|from the noise|"
        "noise in the channel|noise memorized"
    )
    for width in phenomena.WIDTHS["benign overfitting"]:
        found = phenomena.medians("benign overfitting", width)
        # Where 95 % of the signal's error of 1 are gone, and at the end.
        learned = next(i for i, risk in enumerate(found["risk_from_signal"]) if risk < 0.05)
        for i in (learned, -1):
            cells = [str(width - 5), str(round(found["moments"][i]))]
            cells += [f"{found[name][i]:.3f}" for name in phenomena.ERRORS]
            cells += [_percent(found[name][i]) for name in ("noise_channel", "memorized")]
            lines.append(_line(cells))
    return "\n".join(lines)


def double_descent() -> str:
    """By width; the number of labels is 40."""
    lines = _head(
        "width|training error|risk|from the signal|from the noise|noise in the channel|"
        "risk after 100 steps"
    )
    for width in phenomena.WIDTHS["double descent"]:
        found = phenomena.medians("double descent", width)
        cells = [str(width), *(f"{found[name][1]:.3f}" for name in phenomena.ERRORS)]
        lines.append(
            _line([*cells, _percent(found["noise_channel"][1]), f"{found['risk'][0]:.3f}"])
        )
    return "\n".join(lines)


def spectral_bias() -> str:
    """Along the run."""
    waves = "|".join(f"sin {k} x" if k > 1 else "sin x" for k in phenomena.FREQUENCIES)
    lines = _head(
        f"step|{waves}|noise memorized|signal in the channel|noise in the channel|risk|kernel drift"
    )
    (width,) = phenomena.WIDTHS["spectral bias"]
    found = phenomena.medians("spectral bias", width)
    for i in range(0, len(found["moments"]), 3):
        cells = [str(round(found["moments"][i])), *(_percent(c) for c in found["coefficients"][i])]
        cells += [
            _percent(found[name][i]) for name in ("memorized", "signal_channel", "noise_channel")
        ]
        cells += [f"{found[name][i]:.2f}" for name in ("risk", "kernel_drift")]
        lines.append(_line(cells))
    return "\n".join(lines)


TABLES: dict[str, Callable[[], str]] = {
    "paper_pinn": pinn,
    "paper_grokking_grid": grokking_grid,
    "paper_grokking": grokking_best,
    "paper_benign_overfitting": benign_overfitting,
    "paper_double_descent": double_descent,
    "paper_spectral_bias": spectral_bias,
    # "paper_dpo": dpo.table
}


def _head(names: str) -> list[str]:
    titles = names.split("|")
    return [_line(titles), "| --- " * len(titles) + "|"]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _steps(rows: Rows, name: str) -> list[float]:
    """What was never reached counts as infinite."""
    return [float(row[name] or "inf") for row in rows]


def _count(steps: Sequence[float]) -> str:
    def text(x: float) -> str:
        return "never" if x == float("inf") else f"{x:.0f}"

    if len(steps) == 1 or min(steps) == max(steps):
        return text(steps[0])
    return f"{text(median(steps))} ({text(min(steps))} to {text(max(steps))})"


def _spread(values: Sequence[float]) -> str:
    return f"{median(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def _percent(share: Any) -> str:
    return f"{100 * share:.0f} %"
