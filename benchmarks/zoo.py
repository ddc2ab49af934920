"""The zoo's comparison, heavy tails, and problems with published results: docs/results/zoo.md.

    sciml-snr bench benchmarks/zoo.toml --out benchmarks/results/zoo.csv
    sciml-snr bench benchmarks/outliers.toml --out benchmarks/results/outliers.csv
    sciml-snr bench benchmarks/goals.toml --out benchmarks/results/goals.csv
    sciml-snr bench benchmarks/goals_burgers.toml --out benchmarks/results/goals_burgers.csv

make the rows; `python -m benchmarks.report` the tables and figures.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
from sciml_snr.problems import PROBLEMS
from sciml_snr.problems.burgers import cole_hopf
from sciml_snr.problems.burgers_inverse import BurgersInverse
from scipy.optimize import least_squares

from benchmarks import text
from benchmarks.harness import FIGURES, RESULTS, read
from sciml_snr.bench import Job, Plan, read_plan, tables
from sciml_snr.bench.plan import VARIANTS
from sciml_snr.bench.rows import Row, number

PLAN = Path(__file__).parent / "zoo.toml"
PATH = RESULTS / "zoo.csv"


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


def one_rate(names: Sequence[str] = ()) -> str:
    """Every method at one learning rate for all problems, against Adam's best of each; seed 0.

    Args:
        names: of these methods only.
    """
    shown = names or list(plan().methods)
    rates = sorted({lr for name in shown for lr in plan().methods[name].lrs})
    found: dict[tuple[str, float], dict[str, float]] = {}
    for row in rows():
        if int(row["seed"]) in plan().tuning_seeds:
            errors = found.setdefault((row["method"], float(row["lr"])), {})
            errors[row["problem"]] = number(row["final_error"])
    adam = [found.get(("adam", lr), {}) for lr in plan().methods["adam"].lrs]
    best = {problem: min(errors[problem] for errors in adam) for problem in adam[0]}
    lines = []
    for method in shown:
        line = [method]
        for lr in rates:
            errors = found.get((method, lr), {})
            ratios = [errors[problem] / best[problem] for problem in errors]
            if len(ratios) < len(best):
                line.append("")
            elif max(ratios) > 100:
                line.append("diverges")
            else:
                line.append(f"{tables.geometric_mean(ratios):.2f} ({max(ratios):.1f})")
        if any(line[1:]):
            lines.append(line)
    return text.table(["method", *(f"lr {lr:g}" for lr in rates)], lines)


def cells() -> str:
    return _cells(compared())


def outliers() -> str:
    """The problems with heavy tails."""
    return _cells(beside("outliers"))


def beside(name: str) -> list[Row]:
    """What can be compared of a plan beside the zoo's."""
    done = read(RESULTS / f"{name}.csv")
    return tables.comparable(done, read_plan(PLAN.with_name(f"{name}.toml")).jobs(done))


def _cells(done: Sequence[Row]) -> str:
    return text.table(tables.CELLS, tables.problem_cells(done) if _has_adam(done) else [])


def figures() -> str:
    """Links to the figures, once there is something to draw."""
    if not _has_adam(compared()):
        return "There are no rows yet."
    return (
        "![Performance profiles](../figures/bench_profiles.png)\n\n"
        "![Final errors against Adam's oracle](../figures/bench_oracle.png)"
    )


def draw() -> None:
    """Make the figures, once there is something to draw."""
    if _has_adam(done := compared()):
        tables.draw(done, FIGURES)


def reaction_rates() -> str:
    """poisson: errors of the reaction rate k."""
    return _goal("goals", "poisson", "error of k", 0.05, _error_of("k"))


def burgers_errors() -> str:
    """burgers_bajaj: the mean squared error, as the paper has it."""
    problem = PROBLEMS["burgers_bajaj"]()
    mean_square = float((problem.reference(problem.evaluation_points()) ** 2).mean())

    def mean_squared_error(row: Row) -> float:
        return mean_square * number(row["final_error"]) ** 2

    return _goal("goals_burgers", "burgers_bajaj", "mean squared error", 0.008, mean_squared_error)


def viscosities() -> str:
    """burgers_inverse: errors of the viscosity lambda_2."""
    settings = read_plan(PLAN.with_name("goals_burgers.toml")).cases["burgers_inverse"].options

    def knowing(seed: int) -> float:
        return viscosity_by_least_squares(BurgersInverse(seed=seed, **settings))

    error = _error_of("lambda_2")
    return _goal("goals_burgers", "burgers_inverse", "error of lambda_2", 0.02, error, knowing)


def viscosity_by_least_squares(problem: BurgersInverse) -> float:
    """Error of lambda_2 of someone who knows the solution for all coefficients.

    And so the initial values, which a network has to find, too: two numbers fitted to the
    measurements. From w_t + w w_x = nu w_xx and u(x, t) = w(x, lambda_1 t), lambda_2 = lambda_1 nu.
    """
    x, t = np.hsplit(problem.observations.points, 2)

    def residuals(logs: np.ndarray) -> np.ndarray:
        transport, viscosity = np.exp(logs) * [1.0, problem.viscosity]
        fit = cole_hopf(x, transport * t, viscosity / transport)
        return (fit - problem.observations.values).ravel()

    return float(abs(math.expm1(least_squares(residuals, [0.0, 0.0]).x[1])))


def _error_of(unknown: str) -> Callable[[Row], float]:
    return lambda row: json.loads(row["unknown_errors"] or "{}").get(unknown, math.inf)


def _goal(
    plan: str,
    problem: str,
    what: str,
    goal: float,
    of: Callable[[Row], float],
    knowing: Callable[[int], float] | None = None,
) -> str:
    """What is to be at most the goal, over the seeds that all methods have.

    Args:
        plan, problem: which rows.
        what, goal: for the titles.
        of: a row's figure.
        knowing: that of least squares that knows the solution's form, by seed; over many of them.
    """

    def summed(found: list[float]) -> list[str]:
        within = sum(value <= goal for value in found)
        return [str(len(found)), text.spread(found), f"{within} of {len(found)}"]

    lines = []
    for method, one in tables.tuned(beside(plan)).get(problem, {}).items():
        fields = text.spread([number(row["final_error"]) for row in one.rows])
        cells = [method, f"{one.lr:g}", *summed([of(row) for row in one.rows]), fields]
        lines.append([*cells, f"{one.median('cpu_seconds'):.0f}"])
    if knowing is not None and lines:
        found = [knowing(seed) for seed in range(20)]
        lines.append(["least squares that knows the solution's form", "", *summed(found), "", ""])
    titles = f"method|lr|seeds|{what}, median (range)|at most {goal:g}|error of u|CPU seconds"
    return text.table(titles, lines)


def _has_adam(done: Sequence[Row]) -> bool:
    return tables.reference(done) is not None
