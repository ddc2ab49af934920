"""Convection, full batch: AdamW, the published rule in its three gates, the label floor, rivals.

    python -m benchmarks.convection [JOBS]

writes benchmarks/results/convection.csv; `python -m benchmarks.report` makes the tables from it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.harness import RESULTS, run_all
from sciml_snr import problems
from sciml_snr.run import RunConfig

PATH = RESULTS / "convection.csv"
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "AdamW": ("adamw", {}),
    "SNRAdam, label floor (default)": ("snr_adam", {"floor": "label", "gate": "stein", "z": 1.0}),
    "SNRSOAP, label floor (default)": ("snr_soap", {"floor": "label", "gate": "stein", "z": 1.5}),
    "SNRSOAP, label floor, z = 2": ("snr_soap", {"floor": "label", "gate": "stein", "z": 2.0}),
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
    "SNRSOAP, label floor, z = 2": (3e-3,),
    "M-SVAG": (1e-2, 1e-1),
    **dict.fromkeys(("AdaBelief", "Grokfast AdamW", "Cautious AdamW", "SOAP"), (1e-3, 3e-3)),
}
HELD = {
    "AdamW": 1e-3,
    "SNRAdam, label floor (default)": 3e-3,
    "SNRSOAP, label floor (default)": 3e-3,
}
"""Methods that also run long, at one learning rate."""


def config(method: str, lr: float, seed: int, iterations: int = ITERATIONS) -> RunConfig:
    """One run of a method."""
    optimizer, options = METHODS[method]
    return RunConfig(
        "convection", optimizer, lr, iterations=iterations, seed=seed, snr_options=options
    )


def configs() -> Iterator[RunConfig]:
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


if __name__ == "__main__":
    run_all(configs(), PATH, *map(int, sys.argv[1:]))
