"""The zoo's comparison, heavy tails, and one published problem over 20 seeds: docs/benchmarks.md.

    sciml-snr bench benchmarks/zoo.toml --out benchmarks/results/zoo.csv
    sciml-snr bench benchmarks/outliers.toml --out benchmarks/results/outliers.csv
    sciml-snr bench benchmarks/goals.toml --out benchmarks/results/goals.csv

make the rows; `python -m benchmarks.report` the tables and figures.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from statistics import median

from sciml_snr.problems import PROBLEMS

from benchmarks import text
from benchmarks.harness import RESULTS, read
from sciml_snr.bench import Job, Plan, read_plan, tables
from sciml_snr.bench.plan import VARIANTS
from sciml_snr.bench.rows import Row, number

PLAN = Path(__file__).parent / "zoo.toml"
PATH = RESULTS / "zoo.csv"
OUTLIERS_PLAN = PLAN.with_name("outliers.toml")
OUTLIERS = RESULTS / "outliers.csv"
GOALS_PLAN = PLAN.with_name("goals.toml")
GOALS = RESULTS / "goals.csv"
FIGURES = Path(__file__).parents[1] / "docs/figures"


@cache
def plan() -> Plan:
    return read_plan(PLAN)


def jobs() -> list[Job]:
    """The runs, as far as the file says which rates are the best."""
    return list(plan().jobs(read(PATH)))


def rows() -> list[Row]:
    """The rows of the file as it is today."""
    return tables.of_plan(read(PATH), jobs())


def compared() -> list[Row]:
    """Those of them that can be compared."""
    return tables.comparable(read(PATH), jobs())


def problems() -> str:
    """What is solved."""
    lines = []
    for name, case in plan().cases.items():
        cls = PROBLEMS[case.problem]
        settings = ", ".join(f"{key} {value}" for key, value in case.options.items())
        unknown = ", ".join(cls.unknown_names)
        lines.append([name, cls.equation, unknown, settings, str(case.iterations), str(case.width)])
    titles = "problem|equation and data|unknown|not its defaults|iterations|width"
    return text.table(titles, lines)


def methods() -> str:
    """What solves it."""
    lines = []
    for name, method in plan().methods.items():
        options = json.dumps(method.options) if method.options else ""
        how = VARIANTS.get(method.variant, "")
        lrs = ", ".join(f"{lr:g}" for lr in method.lrs)
        without = [problem for problem, other in plan().skipped if other == name]
        lines.append([name, method.optimizer, options, how, lrs, ", ".join(without)])
    return text.table("method|optimizer|options||learning rates|not on", lines)


def progress() -> str:
    """How much of it has been run."""
    done, tuning = rows(), set(map(str, plan().tuning_seeds))
    every = sum(str(job.seed) in tuning for job in jobs())
    tried = sum(row["seed"] in tuning for row in done)
    lost = sum(1 for row in done if row["error"])
    return (
        f"{tried:,} of {every:,} runs on seed 0 have been made, and {len(done) - tried:,} at the "
        f"best rates on other seeds; {lost} runs diverged."
    )


def overall() -> str:
    done = compared()
    return text.table(tables.OVERALL, tables.overall_cells(done) if _has_adam(done) else [])


def cells() -> str:
    done = compared()
    return text.table(tables.CELLS, tables.problem_cells(done) if _has_adam(done) else [])


def outliers() -> str:
    """The problems with heavy tails."""
    done = read(OUTLIERS)
    done = tables.comparable(done, read_plan(OUTLIERS_PLAN).jobs(done))
    return text.table(tables.CELLS, tables.problem_cells(done) if _has_adam(done) else [])


def figures() -> str:
    """Links to the figures, once there is something to draw."""
    if not _has_adam(compared()):
        return "There are no rows yet."
    return (
        "![Performance profiles](figures/bench_profiles.png)\n\n"
        "![Final errors against Adam's oracle](figures/bench_oracle.png)"
    )


def draw() -> None:
    """Make the figures, once there is something to draw."""
    if _has_adam(done := compared()):
        tables.draw(done, FIGURES)


def rates() -> str:
    """Errors of the reaction rate k, over the seeds that all methods have."""
    found: dict[str, list[Row]] = {}
    for row in tables.comparable(read(GOALS), read_plan(GOALS_PLAN).jobs()):
        found.setdefault(row["method"], []).append(row)
    lines = []
    for method, done in found.items():
        errors = [json.loads(row["unknown_errors"]).get("k", math.inf) for row in done]
        fields = [number(row["final_error"]) for row in done]
        times = [number(row["cpu_seconds"]) for row in done]
        within = sum(error <= 0.05 for error in errors)
        cells = [method, str(len(done)), text.spread(errors), f"{within} of {len(done)}"]
        lines.append([*cells, text.spread(fields), f"{median(times):.0f}"])
    titles = "method|seeds|error of k, median (range)|within 5 %|error of u|CPU seconds"
    return text.table(titles, lines)


def _has_adam(done: Sequence[Row]) -> bool:
    return tables.reference(done) is not None
