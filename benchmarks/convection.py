"""Convection, full batch: AdamW, the published rule in its three gates, and the label floor.

    python -m benchmarks.convection

writes benchmarks/results/convection.csv; `python -m benchmarks.report` makes the tables from it.
"""

from __future__ import annotations

from typing import Any

from benchmarks.harness import RESULTS, run_all
from sciml_snr.run import RunConfig

PATH = RESULTS / "convection.csv"
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "AdamW": ("adamw", {}),
    "SNRAdam, label floor (default)": (
        "snr_adam",
        {"floor": "label", "gate": "snr", "alpha": 9.0, "warmup_steps": 500},
    ),
    "SNRAdam, published rule, soft": ("snr_adam", {"floor": "stream", "gate": "soft"}),
    "SNRAdam, published rule, hard": ("snr_adam", {"floor": "stream", "gate": "hard"}),
    "SNRAdam, published rule, snr": ("snr_adam", {"floor": "stream", "gate": "snr"}),
}
LRS = (3e-4, 1e-3, 3e-3, 1e-2)
SEEDS = range(5)


def configs() -> list[RunConfig]:
    """Seed by seed, so that a stop leaves whole comparisons."""
    return [
        RunConfig("convection", optimizer, lr, iterations=8000, seed=seed, snr_options=options)
        for seed in SEEDS
        for optimizer, options in METHODS.values()
        for lr in LRS
    ]


if __name__ == "__main__":
    run_all(configs(), PATH)
