"""The zoo at equal CPU seconds: ours untuned, against Adam at its best learning rate.

    python -m benchmarks.equal_time cost          # benchmarks/results/equal_time_cost.csv
    python -m benchmarks.equal_time [JOBS]        # benchmarks/results/equal_time.csv

Adam's rows are those of the zoo (benchmarks/zoo.toml), 2,500 iterations each: its rate is chosen
on seed 0 by the final error. An iteration's cost is the median over rounds, in turns, of CPU time
over that of DeepXDE's own Adam, and so is that of an Adam that is given our split train step. Ours
has one learning rate for all problems. A row has its errors at many moments: the table takes that
after as many iterations as cost what Adam's do, and that after as many as Adam's.
"""

from __future__ import annotations

import json
import math
import sys
import time
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from benchmarks import text, zoo
from benchmarks.cost import in_turns, ratio, training
from benchmarks.harness import RESULTS, append_missing, read
from sciml_snr.bench import tables
from sciml_snr.bench.plan import Job
from sciml_snr.bench.rivals import compile_any
from sciml_snr.bench.rows import number
from sciml_snr.bench.training import DIVERGED, Course
from sciml_snr.deepxde.split_step import install
from sciml_snr.runs.folder import append_row

PATH, COSTS = RESULTS / "equal_time.csv", RESULTS / "equal_time_cost.csv"
LR = 3e-3
ENDING = "_relative_error"
METHODS: dict[str, dict[str, Any]] = {
    "snr_adam": {},
    "snr_adam, own coordinates": {"coordinates": "own"},
    "snr_adam, floor every 10": {"floor_every": 10},
}
KEYS = ("problem", "method", "lr", "seed")
SEEDS = range(5)
MOMENTS = range(1000, 3001, 100)
"""Iterations after which a run is looked at."""


@dataclass(frozen=True)
class Run:
    """One run."""

    problem: str
    method: str
    lr: float
    seed: int


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
    calls = {}
    plain: dict[str, tuple[str, dict[str, Any]]] = {"adam": ("adam", {}), "split": ("adam", {})}
    ours = {name: ("snr_adam", options) for name, options in METHODS.items()}
    for name, (optimizer, options) in {**plain, **ours}.items():
        course = Course(job(problem, optimizer, options))
        model = compile_any(course.config, course.problem)
        if name == "split":
            install(model)
        calls[name] = training(model, iterations)
    seconds = in_turns(calls, rounds)
    adam = seconds["adam"]
    ratios = {name: ratio(own, adam) for name, own in seconds.items()}
    return {"problem": problem, "milliseconds": 1000 * median(adam), **ratios}


def runs() -> list[Run]:
    """Method by method, and seed by seed."""
    return [
        Run(problem, method, LR, seed)
        for method in METHODS
        for seed in SEEDS
        for problem in zoo.plan().cases
    ]


def fit(run: Run) -> dict[str, Any]:
    """Train in this process, on one thread; a run that diverges has an infinite error."""
    torch.set_num_threads(1)
    options, changes = METHODS[run.method], {"lr": run.lr, "seed": run.seed}
    course = Course(job(run.problem, "snr_adam", options, iterations=MOMENTS[-1], **changes))
    course.every = MOMENTS.step
    error = ""
    try:
        course.run()
    except DIVERGED as reason:
        error = str(reason).splitlines()[0]
    rows = {int(row["iteration"]): row for row in course.rows}
    kept = ("relative_l2", "memorized")
    moments = {
        moment: {
            name: float(f"{value:.5g}")
            for name, value in rows[moment].items()
            if name in kept or name.endswith(ENDING)
        }
        for moment in MOMENTS
        if moment in rows
    }
    return {
        **dict(zip(KEYS, map(str, vars(run).values()), strict=True)),
        "moments": json.dumps(moments, separators=(",", ":")),
        "best_error": min(row["relative_l2"] for row in course.rows),
        "cpu_seconds": round(time.process_time() - course.cpu_before, 2),
        "error": error,
    }


class At:
    """Our rows at the moments that are compared."""

    def __init__(self, method: str) -> None:
        costs = {row["problem"]: row for row in read(COSTS)}
        self.times: dict[str, list[dict[str, float]]] = {}
        """problem -> a run's figures at equal CPU time, one each seed."""
        self.steps: dict[str, list[dict[str, float]]] = {}
        """The same at equal steps."""
        for problem, case in zoo.plan().cases.items():
            own = [r for r in read(PATH) if (r["problem"], r["method"]) == (problem, method)]
            if len(own) < len(SEEDS):
                continue
            at_cost = case.iterations / float(costs[problem][method])
            self.times[problem] = [_at(row, at_cost) for row in own]
            self.steps[problem] = [_at(row, case.iterations) for row in own]


def _at(row: Any, iterations: float) -> dict[str, float]:
    """A run's figures at the last moment up to so many iterations; infinite where it diverged."""
    moments = {int(moment): found for moment, found in json.loads(row["moments"]).items()}
    last = max((moment for moment in moments if moment <= iterations), default=0)
    diverged: dict[str, float] = {"relative_l2": math.inf}
    return diverged if row["error"] or not last else moments[last]


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
        at = At(method)
        for what, found in (("equal CPU time", at.times), ("equal steps", at.steps)):
            own = {p: median(row["relative_l2"] for row in rows) for p, rows in found.items()}
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
    at, adam, then = At("snr_adam"), rivals("adam"), rivals("adam, then L-BFGS")
    lines = []
    for problem, times in at.times.items():
        steps = at.steps[problem]
        cells = [problem, adam[problem][0]["lr"]]
        cells.append(text.spread([number(row["final_error"]) for row in adam[problem]]))
        cells += [text.spread([row["relative_l2"] for row in own]) for own in (times, steps)]
        cells.append(text.spread([number(row["final_error"]) for row in then[problem]]))
        lines.append(cells)
        for name in (key for key in steps[0] if key.endswith(ENDING)):
            unknown = name.removesuffix(ENDING)
            of_rivals = [
                text.spread([json.loads(row["unknown_errors"])[unknown] for row in rows])
                for rows in (adam[problem], then[problem])
            ]
            ours = [text.spread([row.get(name, math.inf) for row in own]) for own in (times, steps)]
            lines.append([f"{problem}, error of {unknown}", "", of_rivals[0], *ours, of_rivals[1]])
    titles = "problem|Adam's rate|Adam|snr_adam, equal CPU time|equal steps|Adam, then L-BFGS"
    return text.table(titles, lines)


if __name__ == "__main__":
    if sys.argv[1:] == ["cost"]:
        COSTS.unlink(missing_ok=True)
        for name in zoo.plan().cases:
            append_row(COSTS, cost(name))
    else:
        append_missing(PATH, runs(), KEYS, fit, int(sys.argv[1]) if sys.argv[1:] else None)
