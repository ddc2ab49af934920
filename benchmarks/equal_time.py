"""The zoo at equal CPU seconds: ours untuned, against Adam at its best learning rate.

    python -m benchmarks.equal_time cost          # benchmarks/results/equal_time_cost.csv
    python -m benchmarks.equal_time [JOBS]        # benchmarks/results/equal_time.csv

Adam's rows are those of the zoo (benchmarks/zoo.toml), 2,500 iterations each: its rate is chosen
on seed 0 by the final error. An iteration's cost is the median over rounds, in turns, of CPU time
over that of DeepXDE's own Adam, and so is that of an Adam that is given our split train step. Ours
has one learning rate for all problems, and is looked at after as many iterations as cost what
Adam's do, and after as many as Adam's.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from benchmarks import text, zoo
from benchmarks.harness import RESULTS, append_missing, read
from sciml_snr._runs import append_row
from sciml_snr.bench import tables
from sciml_snr.bench.plan import Job
from sciml_snr.bench.rivals import compile_any
from sciml_snr.bench.rows import number
from sciml_snr.bench.training import DIVERGED, Course
from sciml_snr.deepxde.split_step import install

PATH, COSTS = RESULTS / "equal_time.csv", RESULTS / "equal_time_cost.csv"
LR = 3e-3
METHODS: dict[str, dict[str, Any]] = {
    "snr_adam": {},
    "snr_adam, own coordinates": {"coordinates": "own"},
    "snr_adam, quick": {"z": 1.0, "betas": [0.95, 0.95]},
    "snr_adam, floor every 10": {"floor_every": 10},
}
KEYS = ("problem", "method", "lr", "seed", "iterations")
SEEDS = range(5)


@dataclass(frozen=True)
class Run:
    """One run; ``iterations`` cost as much as Adam's."""

    problem: str
    method: str
    lr: float
    seed: int
    iterations: int


def job(problem: str, optimizer: str, options: dict[str, Any], **changes: Any) -> Job:
    """A run of the zoo's problem as its file states it."""
    case = zoo.plan().cases[problem]
    fields: dict[str, Any] = {
        "problem": problem,
        "method": optimizer,
        "lr": LR,
        "seed": 0,
        "iterations": case.iterations,
        "width": case.width,
        "setting": json.dumps({"problem": case.problem, **case.options}),
        "optimizer": optimizer,
        "options": json.dumps(options) if options else "",
        "variant": "",
    }
    return Job(**{**fields, **changes})


def cost(problem: str, rounds: int = 15, iterations: int = 40) -> dict[str, Any]:
    """CPU time of an iteration over that of DeepXDE's own Adam."""
    torch.set_num_threads(1)
    models = {}
    plain: dict[str, tuple[str, dict[str, Any]]] = {"adam": ("adam", {}), "split": ("adam", {})}
    ours = {name: ("snr_adam", options) for name, options in METHODS.items()}
    for name, (optimizer, options) in {**plain, **ours}.items():
        course = Course(job(problem, optimizer, options))
        models[name] = compile_any(course.config, course.problem)
    install(models["split"])
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(rounds + 1):
        for name, model in models.items():
            started = time.process_time()
            model.train(iterations=iterations, display_every=10**9, verbose=0)
            seconds[name].append(time.process_time() - started)
    adam = seconds["adam"][1:]  # the first round warms up
    ratios = {
        name: median(b / a for a, b in zip(adam, own[1:], strict=True))
        for name, own in seconds.items()
    }
    return {"problem": problem, "milliseconds": 1000 * median(adam) / iterations, **ratios}


def runs() -> Iterator[Run]:
    """Method by method, and seed by seed."""
    costs = {row["problem"]: row for row in read(COSTS)}
    for method in METHODS:
        for seed in SEEDS:
            for problem, case in zoo.plan().cases.items():
                iterations = round(case.iterations / float(costs[problem][method]))
                yield Run(problem, method, LR, seed, iterations)


def fit(run: Run) -> dict[str, Any]:
    """Train in this process, on one thread; a run that diverges has an infinite error."""
    torch.set_num_threads(1)
    steps = zoo.plan().cases[run.problem].iterations
    one = job(
        run.problem,
        "snr_adam",
        METHODS[run.method],
        lr=run.lr,
        seed=run.seed,
        iterations=max(steps, run.iterations),
    )
    course = Course(one)
    error = ""
    try:
        course.run()
    except DIVERGED as reason:
        error = str(reason).splitlines()[0]
    found: dict[str, Any] = dict(zip(KEYS, map(str, vars(run).values()), strict=True))
    for name, budget in (("equal_time", run.iterations), ("equal_steps", steps)):
        rows = [row for row in course.rows if row["iteration"] <= budget]
        last = rows[-1] if rows and not error else {}
        found[f"{name}_error"] = last.get("relative_l2", math.inf)
        found[f"{name}_unknowns"] = json.dumps(_unknown_errors(last))
        found[f"{name}_memorized"] = last.get("memorized", "")
    best = min(course.rows, key=lambda row: row["relative_l2"])
    cpu = round(time.process_time() - course.cpu_before, 2)
    return found | {"best_error": best["relative_l2"], "cpu_seconds": cpu, "error": error}


def _unknown_errors(row: dict[str, float]) -> dict[str, float]:
    ending = "_relative_error"
    return {key.removesuffix(ending): value for key, value in row.items() if key.endswith(ending)}


def rivals(method: str) -> dict[str, list[dict[str, str]]]:
    """problem -> the zoo's rows of a method, at the rate with the lowest final error on seed 0."""
    found: dict[str, list[dict[str, str]]] = {}
    rows = [dict(row) for row in read(zoo.PATH) if row["method"] == method]
    for problem in zoo.plan().cases:
        own = [row for row in rows if row["problem"] == problem]
        first = [row for row in own if row["seed"] == "0"]
        lr = min(first, key=lambda row: number(row["final_error"]))["lr"]
        found[problem] = [row for row in own if row["lr"] == lr]
    return found


def errors(method: str, when: str) -> dict[str, list[float]]:
    """problem -> our errors."""
    found: dict[str, list[float]] = {}
    for row in read(PATH):
        if row["method"] == method:
            found.setdefault(row["problem"], []).append(number(row[f"{when}_error"]))
    return {problem: own for problem, own in found.items() if len(own) == len(SEEDS)}


def costs() -> str:
    """What an iteration costs."""
    names = ["milliseconds", "split", *METHODS]
    lines = [
        [row["problem"], *(f"{float(row[name]):.2f}" for name in names)] for row in read(COSTS)
    ]
    over = {name: [float(row[name]) for row in read(COSTS)] for name in names}
    means = [f"{tables.geometric_mean(own):.2f}" for own in over.values()]
    lines.append(["*geometric mean*", "", *means[1:]])
    return text.table(["problem", "adam, ms", "adam with the split", *METHODS], lines)


def overall() -> str:
    """Geometric mean over problems, and the worst, of medians over Adam's."""
    adam = {p: median(number(r["final_error"]) for r in own) for p, own in rivals("adam").items()}

    def line(name: str, what: str, medians: dict[str, float]) -> list[str]:
        ratios = {problem: own / adam[problem] for problem, own in medians.items()}
        worst = max(ratios, key=lambda problem: ratios[problem])
        ahead = sum(ratio <= 1 for ratio in ratios.values())
        mean = tables.geometric_mean(ratios.values())
        where = f"{ratios[worst]:.2f} ({worst})"
        return [name, what, f"{mean:.2f}", where, f"{ahead} of {len(ratios)}"]

    lines = []
    for method in METHODS:
        for when, what in (("equal_time", "equal CPU time"), ("equal_steps", "equal steps")):
            own = {problem: median(found) for problem, found in errors(method, when).items()}
            if len(own) == len(adam):
                lines.append(line(f"{method}, lr {LR:g} throughout", what, own))
    then = rivals("adam, then L-BFGS")
    own = {p: median(number(r["final_error"]) for r in rows) for p, rows in then.items()}
    spent = [
        median(float(r["cpu_seconds"]) for r in rows)
        / median(float(r["cpu_seconds"]) for r in rivals("adam")[p])
        for p, rows in then.items()
    ]
    what = f"{tables.geometric_mean(spent):.2f} times Adam's CPU time"
    lines.append(line("adam, then L-BFGS, best of four rates", what, own))
    titles = "method|budget|error over tuned Adam's, geometric mean|worst|not behind"
    return text.table(titles, lines)


def problems() -> str:
    """Every problem, and every unknown coefficient."""
    ours = {
        p: [r for r in read(PATH) if r["problem"] == p and r["method"] == "snr_adam"]
        for p in zoo.plan().cases
    }
    adam, then = rivals("adam"), rivals("adam, then L-BFGS")
    lines = []
    for problem, own in ours.items():
        if len(own) < len(SEEDS):
            continue
        cells = [problem, adam[problem][0]["lr"]]
        cells.append(text.spread([number(row["final_error"]) for row in adam[problem]]))
        cells.append(text.spread([number(row["equal_time_error"]) for row in own]))
        cells.append(text.spread([number(row["equal_steps_error"]) for row in own]))
        cells.append(text.spread([number(row["final_error"]) for row in then[problem]]))
        lines.append(cells)
        for name in json.loads(own[0]["equal_time_unknowns"]):
            columns = (
                (adam[problem], "unknown_errors"),
                (own, "equal_time_unknowns"),
                (own, "equal_steps_unknowns"),
                (then[problem], "unknown_errors"),
            )
            found = [
                text.spread([json.loads(row[column] or "{}").get(name, math.inf) for row in rows])
                for rows, column in columns
            ]
            lines.append([f"{problem}, error of {name}", "", *found])
    titles = "problem|Adam's rate|Adam|snr_adam, equal CPU time|equal steps|Adam, then L-BFGS"
    return text.table(titles, lines)


if __name__ == "__main__":
    if sys.argv[1:] == ["cost"]:
        COSTS.unlink(missing_ok=True)
        for name in zoo.plan().cases:
            append_row(COSTS, cost(name))
    else:
        append_missing(PATH, runs(), KEYS, fit, int(sys.argv[1]) if sys.argv[1:] else None)
