"""Convection, full batch: AdamW, the published rule in its three gates, the label floor, rivals.

    python -m benchmarks.convection [JOBS]

writes benchmarks/results/convection.csv; `python -m benchmarks.report` makes the tables from it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from statistics import median
from typing import Any

import numpy as np

from benchmarks import text
from benchmarks.harness import RESULTS, THRESHOLDS, read, run_all
from sciml_snr import problems
from sciml_snr.runs.options import ProblemConfig

PATH = RESULTS / "convection.csv"
GATE_ALONE = RESULTS / "gate_alone.csv"
"""Made by the rule of commit 3d26372, which stopped exact terms where the gate was closed."""
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "AdamW": ("adamw", {}),
    "SNRAdam, label floor, own coordinates": (
        "snr_adam",
        {"coordinates": "own", "floor": "label", "gate": "stein", "z": 1.0},
    ),
    "SNRSOAP, label floor (default)": ("snr_soap", {"floor": "label", "gate": "stein", "z": 1.5}),
    "snr_adam, floor every 10": ("snr_adam", {"floor_every": 10}),
    "SNRSOAP, label floor, z = 2": ("snr_soap", {"floor": "label", "gate": "stein", "z": 2.0}),
    "SNRSOAP, label floor, quick": (
        "snr_soap",
        {"floor": "label", "gate": "stein", "z": 1.0, "betas": [0.95, 0.95]},
    ),
    "SNRAdam, published rule, soft": ("snr_adam", {"floor": "stream", "gate": "soft"}),
    "SNRAdam, published rule, hard": ("snr_adam", {"floor": "stream", "gate": "hard"}),
    "SNRAdam, published rule, snr": ("snr_adam", {"floor": "stream", "gate": "snr"}),
    "AdaBelief": ("AdaBelief", {}),
    "M-SVAG": ("M-SVAG", {}),
    "Grokfast AdamW": ("Grokfast AdamW", {}),
    "Cautious AdamW": ("Cautious AdamW", {}),
    "SOAP": ("SOAP", {}),
}
ITERATIONS, LONG = 8000, 20_000
SEEDS = range(5)
LRS: dict[str, tuple[float, ...]] = {
    "snr_adam, floor every 10": (3e-3,),
    "SNRSOAP, label floor, z = 2": (3e-3,),
    "SNRSOAP, label floor, quick": (3e-3,),
    "M-SVAG": (1e-2, 1e-1),
    **dict.fromkeys(("AdaBelief", "Grokfast AdamW", "Cautious AdamW", "SOAP"), (1e-3, 3e-3)),
}
HELD = {
    "AdamW": 1e-3,
    "SNRAdam, label floor, own coordinates": 3e-3,
    "SNRSOAP, label floor (default)": 3e-3,
    "SNRSOAP, label floor, quick": 3e-3,
}
"""Methods that also run long, at one learning rate."""


def config(method: str, lr: float, seed: int, iterations: int = ITERATIONS) -> ProblemConfig:
    """One run of a method."""
    optimizer, options = METHODS[method]
    return ProblemConfig(
        "convection", optimizer, lr, iterations=iterations, seed=seed, snr_options=options
    )


def configs() -> Iterator[ProblemConfig]:
    """Seed by seed, so that a stop leaves whole comparisons."""
    for seed in SEEDS:
        for method in METHODS:
            for lr in LRS.get(method, (3e-4, 1e-3, 3e-3, 1e-2)):
                yield config(method, lr, seed)
        for method, lr in HELD.items():
            yield config(method, lr, seed, LONG)


def least_squares(seed: int) -> float:
    """Relative L2 error of fitting mean, sin and cos to the measurements of a seed.

    What someone reaches who knows the form of the solution and only has to find three numbers.
    """
    problem = problems.get("convection")(seed=seed)
    x, y = problem.observations.points[:, 0], problem.observations.values[:, 0]
    modes = np.stack([np.ones_like(x), np.sin(x), np.cos(x)], axis=1)
    mean, sine, cosine = np.linalg.lstsq(modes, y, rcond=None)[0]
    return float(np.sqrt(2 * mean**2 + (sine - 1) ** 2 + cosine**2))


def grid() -> str:
    """Every method at every learning rate."""
    lines = []
    for (method, lr), rows in _groups().items():
        cells = [method, lr, str(len(rows))]
        cells += [text.spread_of(rows, name) for name in ("final_error", "best_error")]
        cells += [f"{median(text.column(rows, 'best_iteration')):.0f}"]
        cells += [_reached(rows, level) for level in THRESHOLDS]
        cells += [text.memorized(rows), f"{median(text.column(rows, 'seconds')):.0f}"]
        lines.append(cells)
    levels = "|".join(f"to {level}" for level in THRESHOLDS)
    titles = f"method|lr|seeds|final|best|best at|{levels}|memorized|seconds"
    return text.table(titles, lines)


def tuned() -> str:
    """Every method at the rate with the lowest median final, of those with the most seeds."""
    lines = []
    groups = _groups()
    for method in METHODS:
        own = [rows for (name, _), rows in groups.items() if name == method]
        if not own:
            continue
        rows = min(text.whole(own), key=lambda rows: median(text.column(rows, "final_error")))
        cells = [method, rows[0]["lr"], str(len(rows))]
        cells += [text.spread_of(rows, name) for name in ("final_error", "best_error")]
        lines.append([*cells, text.memorized(rows)])
    titles = "method|lr|seeds|final error, median (range)|best on the way|noise memorized"
    return text.table(titles, lines)


def held() -> str:
    """Long runs against their own best and AdamW's oracle: by seed, best moment and rate."""
    oracle: dict[str, float] = {}
    for (method, _), rows in _groups().items():
        for row in rows if method == "AdamW" else []:
            error = float(row["best_error"])
            oracle[row["seed"]] = min(error, oracle.get(row["seed"], error))
    lines = []
    for (method, lr), rows in _groups(LONG).items():
        own = [float(r["final_error"]) / float(r["best_error"]) for r in rows]
        ratio = [float(r["final_error"]) / oracle[r["seed"]] for r in rows]
        cells = [method, lr, str(len(rows)), text.spread_of(rows, "final_error")]
        cells += [text.spread(own), text.spread(ratio)]
        lines.append([*cells, text.memorized(rows), _reached(rows, 0.2)])
    known = {seed: least_squares(int(seed)) for seed in oracle}
    ratio = [error / oracle[seed] for seed, error in known.items()]
    cells = ["least squares that knows the solution's form", "", str(len(known))]
    lines.append([*cells, text.spread(list(known.values())), "", text.spread(ratio), "", ""])
    titles = "method, 20,000 iterations|lr|seeds|final error, median (range)|final / own best|"
    return text.table(titles + "final / AdamW's oracle|memorized|to 0.2", lines)


def gate_alone() -> str:
    """Convection and heat by the gate alone, at lr 3e-3."""
    lines = []
    rows_at = [row for row in read(GATE_ALONE) if row["lr"] == "0.003"]
    groups = text.groups(rows_at, "problem", "iterations", "optimizer", "snr_options")
    for (problem, iterations, optimizer, options), rows in groups.items():
        chosen = json.loads(options)
        stein = chosen.get("gate", "snr" if optimizer == "snr_adam" else "stein") == "stein"
        z = chosen.get("z", 3.0 if optimizer == "snr_adam" else 2.0)
        name = f"{optimizer}, {'stein' if stein else 'snr'}, z = {z:g}"
        cells = [problem, iterations, name, str(len(rows))]
        cells += [text.spread_of(rows, column) for column in ("final_error", "best_error")]
        lines.append([*cells, text.memorized(rows)])
    titles = "problem|iterations|optimizer, gate|seeds|final|best|memorized"
    return text.table(titles, lines)


def _groups(iterations: int = ITERATIONS) -> dict[tuple[str, str], text.Rows]:
    """(method, learning rate) -> its rows."""
    rows = [row for row in read(PATH) if row["iterations"] == str(iterations)]
    return text.by_method(rows, METHODS)


def _reached(rows: text.Rows, level: float) -> str:
    """Median number of iterations to an error."""
    return text.count(median(text.steps(rows, f"iterations_to_{level}")))


if __name__ == "__main__":
    run_all(configs(), PATH, *map(int, sys.argv[1:]))
