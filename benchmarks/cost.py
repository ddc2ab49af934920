"""What an iteration costs, side by side: rounds of 100 iterations of each optimizer in turn.

    python -m benchmarks.cost

writes benchmarks/results/cost.csv: median over rounds of the time per iteration in units of Adam's
in the same round, on one thread.
"""

from __future__ import annotations

import time
from statistics import median
from typing import Any

import torch

from benchmarks import text
from benchmarks.harness import RESULTS, read, resolved
from sciml_snr._runs import append_row
from sciml_snr.run import RunConfig, compile_model

PATH = RESULTS / "cost.csv"
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "adam": ("adam", {}),
    "snr_adam, published rule": ("snr_adam", {"floor": "stream"}),
    "snr_adam, label floor every step": ("snr_adam", {"warmup_steps": 0}),
    "snr_adam, label floor every 10": ("snr_adam", {"floor_every": 10, "warmup_steps": 0}),
    "snr_soap, label floor every step": ("snr_soap", {}),
    "snr_soap, label floor every 10": ("snr_soap", {"floor_every": 10}),
}
PROBLEMS = ("convection", "heat")


def measure(problem_name: str, rounds: int, iterations: int = 100) -> list[dict[str, Any]]:
    """One row per method."""
    torch.set_num_threads(1)
    models = {}
    for name, (optimizer, options) in METHODS.items():
        config = resolved(RunConfig(problem_name, optimizer, snr_options=options))
        models[name] = compile_model(config, config.build())
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(rounds + 1):
        for name, model in models.items():
            started = time.perf_counter()
            model.train(iterations=iterations, display_every=10**9, verbose=0)
            seconds[name].append((time.perf_counter() - started) / iterations)
    ratios = {  # the first round warms up
        name: median(s / a for s, a in zip(own[1:], seconds["adam"][1:], strict=True))
        for name, own in seconds.items()
    }
    return [
        {
            "problem": problem_name,
            "method": name,
            "milliseconds": 1000 * median(seconds[name][1:]),
            "times_adam": ratio,
            "rounds": rounds,
        }
        for name, ratio in ratios.items()
    ]


def table() -> str:
    """Time per iteration."""
    lines = []
    for row in read(PATH):
        numbers = (f"{float(row['milliseconds']):.1f}", f"{float(row['times_adam']):.2f}")
        lines.append([row["problem"], row["method"], *numbers])
    return text.table("problem|method|ms|times adam", lines)


if __name__ == "__main__":
    PATH.unlink(missing_ok=True)
    for problem_name in PROBLEMS:
        for row in measure(problem_name, rounds=20):
            append_row(PATH, row)
            print(row)
