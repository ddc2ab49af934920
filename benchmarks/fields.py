"""fit_field on scattered and on indirect measurements, beside what people use for them.

    python -m benchmarks.fields [JOBS]

appends to benchmarks/results/fields.csv; `python -m benchmarks.report` makes the tables from it.

- scattered: functions of two and three coordinates, smooth and rough, at random points, with errors
  of a tenth of their standard deviation; root mean square error of the fit and of its slopes at
  5,000 other points, relative to the standard deviation of the truth.
- tomography: the phantom of Shepp and Logan, 128 x 128, 30 angles; PSNR for a range of 1.
- deconvolution: camera, 128 x 128, blurred; PSNR for a range of 1 without the outer pixels.

Every method is told the true sigma. What has no rule for its weight is at its best by the truth.
"""

from __future__ import annotations

import sys
import time
from dataclasses import asdict
from statistics import median
from typing import Any

import torch

from benchmarks import text
from benchmarks.field_indirect import (
    ADAM_RATES,
    INDIRECT,
    SIDE,
    TASKS,
    ours_indirect,
    total_variation,
)
from benchmarks.field_runs import Run
from benchmarks.field_scattered import FUNCTIONS, NOISES, SCATTERED, THRESHOLDS, TRIED, Scattered
from benchmarks.harness import RESULTS, append_missing, read

PATH = RESULTS / "fields.csv"
KEYS = ("task", "case", "size", "noise", "seed", "method", "lr")


def fit(run: Run) -> dict[str, Any]:
    """One row, in this process, on one thread."""
    torch.set_num_threads(1)
    started = time.process_time()
    empty = ("error", "slope_error", "psnr", "best_psnr", "best_over_final")
    found: dict[str, Any] = dict.fromkeys((*empty, "best_step", "steps", "misfit", "note"), "")
    if run.task == "scattered":
        data = Scattered(run.case, run.size, run.noise, run.seed)
        started = time.process_time()
        found |= (SCATTERED | TRIED)[run.method](data, run)
    else:
        task = TASKS[run.task](run.noise, run.seed)
        started = time.process_time()
        if run.method in ("ours", "Adam", *INDIRECT):
            found |= ours_indirect(task, run)
        elif run.method == "TV":
            image, weight = total_variation(task)
            found |= {"psnr": task.score(image), "note": f"weight {weight:g}"}
        else:
            found["psnr"] = task.score(task.classics[run.method]())
    keys = {key: str(value) for key, value in asdict(run).items()}
    return {**keys, **found, "cpu_seconds": time.process_time() - started}


def runs(seeds: int = 5) -> list[Run]:
    """Draw by draw, so that a stop leaves whole comparisons."""
    found = []
    for seed in range(seeds):
        for size in (1000, 3000):
            for case in FUNCTIONS:
                found += [Run("scattered", case, size, 0.1, seed, name) for name in SCATTERED]
        for task, noises in (("tomography", (0.02, 0.05)), ("deconvolution", (0.01,))):
            for noise in noises:
                cell = (task, "phantom" if task == "tomography" else "camera", SIDE**2, noise, seed)
                names = TASKS[task](noise, seed).classics
                found += [Run(*cell, name) for name in ("ours", *names)]
                found += [Run(*cell, "Adam", lr) for lr in ADAM_RATES]
                found += [Run(*cell, "TV")]
                found += [Run(*cell, name) for name in INDIRECT if seed == 0]
        if seed == 0:
            found += [
                Run("scattered", case, 1000, 0.1, seed, name)
                for case in FUNCTIONS
                for name in TRIED
            ]
            found += [
                Run("scattered", case, 10_000, noise, seed, name)
                for noise in NOISES
                for case in FUNCTIONS
                for name in (*THRESHOLDS, "Gaussian process")
            ]
    return found + [
        Run("scattered", case, 10_000, 0.1, seed, name)
        for seed in range(seeds)
        for case in FUNCTIONS
        for name in ("ours", "Gaussian process", "Clough-Tocher")
    ]


def _by_cell(task: str) -> dict[tuple[str, ...], dict[str, text.Rows]]:
    rows = [row for row in read(PATH) if row["task"] == task]
    cells = text.groups(rows, "case", "size", "noise")
    return {
        cell: {name: found for (name,), found in text.groups(own, "method").items()}
        for cell, own in cells.items()
    }


def scattered() -> str:
    """Errors of fits and of slopes to scattered samples, medians over draws."""
    lines = []
    cells = sorted(_by_cell("scattered").items(), key=lambda item: int(item[0][1]))
    for (case, size, _), methods in cells:
        if "ours" not in methods:
            continue
        for column, what in (("error", "values"), ("slope_error", "slopes")):
            line = [case, size, what, str(len(methods["ours"]))]
            for name in SCATTERED:
                found = [float(r[column]) for r in methods.get(name, []) if r[column]]
                line.append(f"{median(found):.3f}" if found else "-")
            lines.append([*line, _ratio(methods, column)])
    titles = ("function", "samples", "error of", "draws", *SCATTERED, "ours / Gaussian process")
    return text.table(titles, lines)


def tried() -> str:
    """Errors of values on the first draw, beside ours and the Gaussian process's; CPU seconds."""
    every = [row for row in read(PATH) if row["task"] == "scattered" and row["seed"] == "0"]
    rows = {(row["case"], row["method"]): row for row in every if row["size"] == "1000"}
    lines = []
    for name in ("ours", "Gaussian process", *TRIED):
        own = [rows[case, name] for case in FUNCTIONS if (case, name) in rows]
        if len(own) == len(FUNCTIONS):
            spent = median(text.column(own, "cpu_seconds"))
            lines.append([name, *(f"{float(row['error']):.4f}" for row in own), f"{spent:.0f}"])
    return text.table(("method", *FUNCTIONS, "CPU seconds"), lines)


def thresholds() -> str:
    """Errors of values by the gate's threshold, 10,000 samples, first draw; best over final."""
    every = [row for row in read(PATH) if row["task"] == "scattered" and row["seed"] == "0"]
    cells = text.groups([row for row in every if row["size"] == "10000"], "noise", "case")
    lines = []
    for (noise, case), own in cells.items():
        rows = {row["method"]: row for row in own}
        if all(name in rows for name in THRESHOLDS):
            found = [
                f"{float(rows[name]['error']):.3f} ({float(rows[name]['best_over_final']):.2f})"
                for name in THRESHOLDS
            ]
            process = f"{float(rows['Gaussian process']['error']):.3f}"
            lines.append([f"{100 * float(noise):g} %", case, *found, process])
    return text.table(("noise", "function", *THRESHOLDS, "Gaussian process"), lines)


def tried_indirect() -> str:
    """PSNR on the first draw at the end, with the misfit, beside ours; CPU seconds."""
    every = [row for row in read(PATH) if row["task"] in TASKS and row["seed"] == "0"]
    rows = {(row["task"], row["noise"], row["method"]): row for row in every}
    cells = list(dict.fromkeys((row["task"], row["noise"]) for row in every))
    lines = []
    for name in ("ours", *INDIRECT):
        own = [rows[(*cell, name)] for cell in cells if (*cell, name) in rows]
        if len(own) == len(cells):
            found = [
                f"{float(r['psnr']):.2f}, {float(r['best_psnr']):.2f} ({float(r['misfit']):.2f})"
                for r in own
            ]
            lines.append([name, *found, f"{median(text.column(own, 'cpu_seconds')):.0f}"])
    titles = (f"{task}, {float(noise):g}: final, best (misfit)" for task, noise in cells)
    return text.table(("variant", *titles, "CPU seconds"), lines)


def _ratio(methods: dict[str, text.Rows], column: str) -> str:
    """Ours over the Gaussian process's, median over the draws that both have."""
    ours, theirs = (
        {row["seed"]: float(row[column]) for row in methods.get(name, []) if row[column]}
        for name in ("ours", "Gaussian process")
    )
    found = [ours[seed] / theirs[seed] for seed in ours.keys() & theirs.keys()]
    return f"{median(found):.2f}" if found else "-"


def seconds() -> str:
    """Processor time of fits to scattered samples, medians over functions and draws."""
    lines = []
    rows = [row for row in read(PATH) if row["task"] == "scattered"]
    for (size,), own in sorted(text.groups(rows, "size").items(), key=lambda item: int(item[0][0])):
        methods = {name: found for (name,), found in text.groups(own, "method").items()}
        cells = [
            f"{median(text.column(methods[name], 'cpu_seconds')):.3g}" if name in methods else "-"
            for name in SCATTERED
        ]
        lines.append([size, *cells])
    return text.table(("samples", *SCATTERED), lines)


def indirect() -> str:
    """PSNR of tomography and deconvolution, medians over the draws that all methods have."""
    lines = []
    for task in TASKS:
        for (case, _, noise), every in _by_cell(task).items():
            methods = {name: own for name, own in every.items() if name not in INDIRECT}
            seeds = set.intersection(*({r["seed"] for r in own} for own in methods.values()))
            whole = {
                name: [row for row in own if row["seed"] in seeds] for name, own in methods.items()
            }
            for name, rows in sorted(
                whole.items(), key=lambda item: -median(text.column(item[1], "psnr"))
            ):
                lines.append([f"{task}, {case}", noise, *_line(name, rows)])
    return text.table("task|noise|method|draws|final PSNR|best on the way|steps|CPU seconds", lines)


def _line(name: str, rows: text.Rows) -> list[str]:
    """Of Adam, whose rates are several: final and best at the rate that is best for each."""
    seeds = text.groups(rows, "seed")
    final = [max(text.column(own, "psnr")) for own in seeds.values()]
    best = [max(text.column(own, "best_psnr")) for own in seeds.values() if own[0]["best_psnr"]]
    time_taken = median(text.column(rows, "cpu_seconds"))
    return [
        name,
        str(len(seeds)),
        f"{median(final):.2f}",
        f"{median(best):.2f}" if best else "",
        rows[0]["steps"],
        f"{time_taken:.0f}",
    ]


if __name__ == "__main__":
    append_missing(PATH, runs(), KEYS, fit, *map(int, sys.argv[1:]))
