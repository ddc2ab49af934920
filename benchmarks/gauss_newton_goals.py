"""Published problems by ``snr_gn``, untuned: 400 steps of ``snr_adam``, then steps until it ends.

    python -m benchmarks.gauss_newton_goals [VARIANT] [SEEDS] [PROBLEM ...]

appends to benchmarks/results/gauss_newton_goals.csv. Rivals are the rows of goals.csv and
goals_burgers.csv (benchmarks/zoo.py), Adam at the best rate of its first seed. Variants are those
of benchmarks/gauss_newton.py.
"""

from __future__ import annotations

import json
import math
import sys
import time
from dataclasses import dataclass
from statistics import median
from typing import Any

import deepxde as dde
import torch
from sciml_snr.problems import PROBLEMS

from benchmarks import text, zoo
from benchmarks.gauss_newton import VARIANTS, optimizer_of, prepared
from benchmarks.harness import RESULTS, append_missing, read
from sciml_snr.bench import tables
from sciml_snr.bench.rows import number
from sciml_snr.bench.training import DIVERGED
from sciml_snr.deepxde.gauss_newton import WARM_UP_RATE

PATH = RESULTS / "gauss_newton_goals.csv"
KEYS = ("variant", "problem", "seed")
STEPS = 150
"""At most."""

GOALS: dict[str, tuple[int, dict[str, Any], str, str, float]] = {
    "poisson": (20, {}, "goals", "k", 0.04),
    "burgers_bajaj": (5, {}, "goals_burgers", "", 0.008),
    "burgers_inverse": (5, {"noise": 0.061, "points": 2000}, "goals_burgers", "lambda_2", 0.05),
    "schroedinger": (3, {"duration": math.pi / 2}, "goals_schroedinger", "", 0.0123),
}
"""Problem: seeds, settings, plan of its rivals, unknown (none: mean squared error), goal."""


@dataclass(frozen=True)
class Run:
    """One run."""

    variant: str
    problem: str
    seed: int


def fit(run: Run) -> dict[str, Any]:
    """Train in this process, on one thread."""
    torch.set_num_threads(1)
    dde.config.set_default_float("float32")
    warm_up, options = prepared(run.variant)
    points = options.pop("num_domain", None)
    problem = PROBLEMS[run.problem](seed=run.seed, num_domain=points, **GOALS[run.problem][1])
    dde.config.set_random_seed(run.seed)
    model = problem.model(problem.network())
    error, started = "", time.process_time()
    try:
        for is_last, lr, steps in ((False, WARM_UP_RATE, warm_up), (True, None, STEPS)):
            model.compile(
                optimizer_of(model, problem, options) if is_last else "snr_adam",
                lr=lr,
                loss_weights=problem.loss_weights(),
                external_trainable_variables=list(problem.unknowns.values()),
                verbose=0,
            )
            model.train(steps, display_every=10**9, verbose=0)
    except DIVERGED as reason:
        error = str(reason).splitlines()[0]
    found = problem.metrics(lambda points: problem.predict(model, points))
    ends = "_relative_error"
    kept = {k.removesuffix(ends): v for k, v in found.items() if k.endswith(ends)}
    return {
        **{name: str(getattr(run, name)) for name in KEYS},
        "final_error": found["relative_l2"],
        "unknown_errors": json.dumps(kept),
        "steps": model.opt.steps,
        "done": int(model.opt.done),
        "cpu_seconds": round(time.process_time() - started, 2),
        "error": error,
    }


def _figure(problem: str, row: Any) -> float:
    """What the goal is about."""
    unknown = GOALS[problem][3]
    if unknown:
        return float(json.loads(row["unknown_errors"])[unknown])
    one = PROBLEMS[problem](**GOALS[problem][1])
    square = float((one.reference(one.evaluation_points()) ** 2).mean())
    return square * number(row["final_error"]) ** 2


def table() -> str:
    """Ours beside Adam at its best rate, on the same seeds."""
    lines, every = [], [dict(row) for row in read(PATH) if row["variant"] == "default"]
    for problem, (_, _, plan, unknown, goal) in GOALS.items():
        own = [row for row in every if row["problem"] == problem]
        adam = tables.tuned(zoo.beside(plan)).get(problem, {})
        if not own or "adam" not in adam:
            continue
        seeds = {row["seed"] for row in own} & {row["seed"] for row in adam["adam"].rows}
        pairs = {
            name: [row for row in rows if row["seed"] in seeds]
            for name, rows in {"snr_gn": own, "Adam": adam["adam"].rows}.items()
        }
        for name, rows in pairs.items():
            figures = [_figure(problem, row) for row in rows]
            lines.append(
                [
                    problem,
                    f"error of {unknown}" if unknown else "mean squared error",
                    f"{goal:g}",
                    name,
                    str(len(rows)),
                    text.spread(figures),
                    f"{sum(f <= goal for f in figures)} of {len(figures)}",
                    text.spread([number(row["final_error"]) for row in rows]),
                    f"{median(float(row['cpu_seconds']) for row in rows):.0f}",
                ]
            )
    titles = "problem|what|goal|method|seeds|median (range)|within|error of the field|CPU seconds"
    return text.table(titles, lines)


def ideas() -> str:
    """Every variant that was tried, and the default at the model's own points on the same seeds."""
    lines, every = [], [dict(row) for row in read(PATH)]
    for problem, (_, _, _, unknown, goal) in GOALS.items():
        what = f"error of {unknown}" if unknown else "mean squared error"
        here = [row for row in every if row["problem"] == problem]
        of = {name: [row for row in here if row["variant"] == name] for name in VARIANTS}
        base = of["own points"] or of["default"]
        for variant, rows in of.items():
            if not rows or rows is base:
                continue
            seeds = {row["seed"] for row in rows}
            same = [row for row in base if row["seed"] in seeds]
            cells = [
                text.spread([_figure(problem, row) for row in some]) if some else ""
                for some in (rows, same)
            ]
            lines.append([problem, what, f"{goal:g}", variant, str(len(rows)), *cells])
    return text.table("problem|what|goal|variant|seeds|median (range)|with own points", lines)


if __name__ == "__main__":
    variant, most, *names = [*sys.argv[1:], *("default", "99")[len(sys.argv) - 1 :]]
    runs = [
        Run(variant, name, seed)
        for name in names or GOALS
        for seed in range(min(int(most), GOALS[name][0]))
    ]
    append_missing(PATH, runs, KEYS, fit, 1)
    print(table())
