"""Heat equation, unknown diffusivity, 10 % noise: Adam and the label floor.

    python -m benchmarks.heat [JOBS]

appends to benchmarks/results/heat.csv; Adam with 10 % held out is in benchmarks.stopping.
"""

from __future__ import annotations

import sys
from typing import Any

from benchmarks.harness import RESULTS, run_all
from sciml_snr.run import RunConfig

PATH = RESULTS / "heat.csv"
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "Adam": ("adam", {}),
    "SNRAdam, label floor (default)": ("snr_adam", {}),
    "SNRSOAP, label floor (default)": ("snr_soap", {}),
}
LRS = (1e-3, 3e-3)
SEEDS = range(5)
ITERATIONS = 6000


def configs() -> list[RunConfig]:
    """Seed by seed, so that a stop leaves whole comparisons."""
    return [
        RunConfig("heat", optimizer, lr, iterations=ITERATIONS, seed=seed, snr_options=options)
        for seed in SEEDS
        for optimizer, options in METHODS.values()
        for lr in LRS
    ]


if __name__ == "__main__":
    run_all(configs(), PATH, *map(int, sys.argv[1:]))
