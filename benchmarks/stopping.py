"""Adam with a stopping rule: discrepancy principle, 10 % held out, SURE with a twin.

    python -m benchmarks.stopping [JOBS]

appends to benchmarks/results/stopping.csv: errors at the end, at the best moment (which only the
truth can tell) and where each rule stops, which may use what a user has: the measurements and
sigma.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from benchmarks import text
from benchmarks.harness import RESULTS, append_missing, read, resolved
from sciml_snr.bench.stopping import Discrepancy, HeldOut, LowestRisk
from sciml_snr.runs.options import ProblemConfig
from sciml_snr.runs.run import Recorder, compile_model

PATH = RESULTS / "stopping.csv"
KEYS = ("problem", "optimizer", "lr", "iterations", "seed", "rule")
RULES = ("discrepancy and SURE", "10 % held out")


@dataclass(frozen=True)
class Stopped:
    """One run (two with a twin) and the rules that are read off it."""

    problem: str
    optimizer: str
    lr: float
    iterations: int
    seed: int
    rule: str


def run(job: Stopped) -> dict[str, Any]:
    """Train in this process, on one thread."""
    torch.set_num_threads(1)
    values = {key: value for key, value in asdict(job).items() if key != "rule"}
    config = resolved(ProblemConfig(**values))
    problem = config.build()
    main = Recorder(config, problem)
    rules: dict[str, Any]
    if job.rule == "10 % held out":
        rules = {"held_out": HeldOut(problem, 1000 + job.seed, main.every)}
    else:
        rules = {
            "discrepancy": Discrepancy(main.every, end=False),
            "sure": LowestRisk(period=main.every, seed=1000 + job.seed),
        }
    main.train(compile_model(config, problem), False, *rules.values())
    scores = {
        name: [rule.scores[int(row["iteration"])] for row in main.rows]
        for name, rule in rules.items()
    }
    moments = {"final": -1, "best": int(np.argmin([r["relative_l2"] for r in main.rows]))}
    moments |= {name: int(np.argmin(score)) for name, score in scores.items()}
    result: dict[str, Any] = {key: str(value) for key, value in asdict(job).items()}
    for name in ("final", "best", "discrepancy", "sure", "held_out"):
        row = main.rows[moments[name]] if name in moments else {}
        result[f"{name}_error"] = row.get("relative_l2", "")
        unknown = [row[key] for key in row if key.endswith("_relative_error")]
        result[f"{name}_unknown_error"] = unknown[0] if unknown else ""
        result[f"{name}_iteration"] = row.get("iteration", "")
    return result


def jobs() -> list[Stopped]:
    """Seed by seed, so that a stop leaves whole comparisons."""
    return [
        Stopped(*which, seed, rule)
        for seed in range(5)
        for which in (
            ("convection", "adamw", 1e-3, 4000),
            ("convection", "adamw", 3e-3, 4000),
            ("heat", "adam", 1e-3, 6000),
            ("heat", "adam", 3e-3, 6000),
        )
        for rule in RULES
    ]


def convection() -> str:
    """AdamW with a stopping rule."""
    lines = []
    rows = [r for r in read(PATH) if r["problem"] == "convection"]
    for rule in ("discrepancy", "sure", "held_out", "final"):
        for lr in sorted({r["lr"] for r in rows}):
            own = [r for r in rows if r["lr"] == lr and r[f"{rule}_error"]]
            own = [r for r in own if rule != "final" or r["rule"] != "10 % held out"]
            if own:
                ratio = [float(r[f"{rule}_error"]) / float(r["best_error"]) for r in own]
                name = rule.replace("_", " ") if rule != "sure" else "SURE, twin"
                error = text.spread_of(own, f"{rule}_error")
                lines.append([name, lr, str(len(own)), error, text.spread(ratio)])
    return text.table("AdamW stopped by|lr|seeds|error|/ its own best", lines)


if __name__ == "__main__":
    append_missing(PATH, jobs(), KEYS, run, *map(int, sys.argv[1:]))
