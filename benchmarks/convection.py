"""Convection, full batch: AdamW, the published rule in its three gates, and the label floor.

    python -m benchmarks.convection

writes benchmarks/results/convection.csv; `python -m benchmarks.report` makes the tables from it.
"""

from __future__ import annotations

from benchmarks.harness import RESULTS, run_all
from sciml_snr.run import RunConfig

PATH = RESULTS / "convection.csv"
METHODS = [
    ("adamw", {}),
    ("snr_adam", {"floor": "label", "gate": "snr", "alpha": 9.0, "warmup_steps": 500}),
    ("snr_adam", {"floor": "stream", "gate": "soft"}),
]
OTHER_GATES = [("snr_adam", {"floor": "stream", "gate": gate}) for gate in ("hard", "snr")]
LRS = (3e-4, 1e-3, 3e-3, 1e-2)
SEEDS = range(5)


def configs() -> list[RunConfig]:
    """Seed by seed, so that a stop leaves whole comparisons."""
    return [
        RunConfig("convection", optimizer, lr, iterations=8000, seed=seed, snr_options=options)
        for methods in (METHODS, OTHER_GATES)
        for seed in SEEDS
        for optimizer, options in methods
        for lr in LRS
    ]


if __name__ == "__main__":
    run_all(configs(), PATH)
