"""Heat equation, unknown diffusivity, 10 % noise: Adam and the label floor.

    python -m benchmarks.heat [JOBS]

appends to benchmarks/results/heat.csv; Adam with 10 % held out is in benchmarks.stopping.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from benchmarks import stopping, text
from benchmarks.harness import RESULTS, read, run_all
from sciml_snr.runs.options import ProblemConfig

PATH = RESULTS / "heat.csv"
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "Adam": ("adam", {}),
    "SNRAdam, label floor, own coordinates": ("snr_adam", {"coordinates": "own"}),
    "SNRSOAP, label floor (default)": ("snr_soap", {}),
}
LRS = (1e-3, 3e-3)
SEEDS = range(5)
ITERATIONS = 6000


def configs() -> list[ProblemConfig]:
    """Seed by seed, so that a stop leaves whole comparisons."""
    return [
        ProblemConfig("heat", optimizer, lr, iterations=ITERATIONS, seed=seed, snr_options=options)
        for seed in SEEDS
        for optimizer, options in METHODS.values()
        for lr in LRS
    ]


def table() -> str:
    """Errors of the unknown diffusivity and of the field."""
    lines = []
    rows = [row for row in read(PATH) if float(row["lr"]) in LRS]
    for (method, lr), own in text.by_method(rows, METHODS).items():
        errors = [abs(json.loads(r["unknowns"])["diffusivity"] / 0.1 - 1) for r in own]
        cells = [method, lr, str(len(own)), text.spread(errors)]
        lines.append([*cells, *(text.spread_of(own, f"{at}_error") for at in ("final", "best"))])
    stops = [r for r in read(stopping.PATH) if r["problem"] == "heat"]
    for rule, name in text.STOPS.items():
        for rate in LRS:
            own = [r for r in stops if float(r["lr"]) == rate and r[f"{rule}_error"]]
            if own:
                names = (f"{rule}_unknown_error", f"{rule}_error", "best_error")
                cells = [f"Adam, {name}", str(rate), str(len(own))]
                lines.append([*cells, *(text.spread_of(own, name) for name in names)])
    return text.table("method|lr|seeds|diffusivity error|field, final|field, best", lines)


if __name__ == "__main__":
    run_all(configs(), PATH, *map(int, sys.argv[1:]))
