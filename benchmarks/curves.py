"""Curves through noisy points, data alone, in DeepXDE: Adam, the gate, and one that is constant.

    python -m benchmarks.curves [JOBS]

appends to benchmarks/results/curves.csv; `python -m benchmarks.report` makes the table from it.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import deepxde as dde
import numpy as np
import torch

from benchmarks import text
from benchmarks.harness import RESULTS, append_missing, read
from sciml_snr import NoisyLoss
from sciml_snr.deepxde import set_SNR_options

PATH = RESULTS / "curves.csv"
KEYS = ("points", "seed", "optimizer", "lr", "options")
SIGMA, ITERATIONS, LOOKS = 0.3, 8000, 40
CONSTANT = {"rise_steps": 0, "discrepancy": False}
METHODS: dict[str, tuple[str, dict[str, Any], tuple[float, ...]]] = {
    "Adam": ("adam", {}, (3e-4, 1e-3, 3e-3)),
    "snr_adam": ("snr_adam", {}, (1e-3, 3e-3)),
    "snr_adam, z = 2 throughout": ("snr_adam", CONSTANT, (3e-3,)),
    "snr_soap": ("snr_soap", {}, (1e-3, 3e-3)),
    "snr_soap, z = 2 throughout": ("snr_soap", CONSTANT, (3e-3,)),
}


@dataclass(frozen=True)
class Run:
    """One fit; ``options`` is JSON, of set_SNR_options."""

    points: int
    seed: int
    optimizer: str
    lr: float
    options: str


def curve(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """A slow wave and a quick one of half its height."""
    return np.sin(3 * x) + 0.5 * np.sin(9 * x)


def fit(run: Run) -> dict[str, Any]:
    """Relative L2 error at the end, and at the best of some looks; in this process, one thread."""
    torch.set_num_threads(1)
    rng = np.random.default_rng(run.seed)
    x = rng.uniform(-1, 1, (run.points, 1))
    y = curve(x) + SIGMA * rng.normal(size=x.shape)
    grid = np.linspace(-1, 1, 400)[:, None]
    names = ("X_train", "y_train", "X_test", "y_test")
    arrays = {n: a.astype("float32") for n, a in zip(names, (x, y, grid, curve(grid)), strict=True)}
    dde.config.set_random_seed(run.seed)
    model = dde.Model(
        dde.data.DataSet(**arrays), dde.nn.FNN([1] + [64] * 3 + [1], "tanh", "Glorot normal")
    )
    set_SNR_options(**json.loads(run.options))
    model.compile(run.optimizer, lr=run.lr, loss=NoisyLoss(SIGMA))
    errors = []
    for _ in range(LOOKS):
        model.train(iterations=ITERATIONS // LOOKS, display_every=ITERATIONS, verbose=0)
        found = model.predict(arrays["X_test"])
        errors.append(float(np.linalg.norm(found - curve(grid)) / np.linalg.norm(curve(grid))))
    misfit = float(((model.predict(arrays["X_train"]) - y) ** 2).mean() / SIGMA**2)
    row = {key: str(value) for key, value in asdict(run).items()}
    return {**row, "final_error": errors[-1], "best_error": min(errors), "misfit": misfit}


def runs() -> list[Run]:
    """Seed by seed, so that a stop leaves whole comparisons."""
    return [
        Run(points, seed, optimizer, lr, json.dumps(options))
        for seed in range(5)
        for points in (64, 256)
        for optimizer, options, lrs in METHODS.values()
        for lr in lrs
    ]


def table() -> str:
    """Every method at every rate."""
    rows = text.groups(read(PATH), "points", "optimizer", "lr", "options")
    lines = []
    for points in ("64", "256"):
        for method, (optimizer, options, lrs) in METHODS.items():
            for lr in lrs:
                if own := rows.get((points, optimizer, str(lr), json.dumps(options))):
                    cells = [text.spread_of(own, f"{at}_error") for at in ("final", "best")]
                    cells.append(f"{median(text.column(own, 'misfit')):.2f}")
                    lines.append([points, method, str(lr), str(len(own)), *cells])
    titles = "points|method|lr|seeds|final error|best on the way|misfit at the end"
    return text.table(titles, lines)


if __name__ == "__main__":
    append_missing(PATH, runs(), KEYS, fit, *map(int, sys.argv[1:]))
