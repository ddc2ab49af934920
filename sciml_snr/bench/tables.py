"""What the rows of a benchmark say: every method at its best learning rate, and over all problems.

A method's learning rate on a problem is the one whose median final error over the seeds is lowest,
of those that have the most seeds. Final is what a user gets: the end, or where the method stops.
*Adam's oracle* is Adam at the best moment of the best learning rate, which only the truth can tell:
seed by seed, then the median. A run that diverged counts as infinite.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from .plan import KEYS, Job
from .rows import Row, by_key, key_of, number

COLUMNS = ("final_error", "best_error", "error_at_equal_evaluations", "cpu_seconds")
"""Of a results file, beside its keys: what comparisons need."""

NEAR = 1.05
"""Within 5 % of the best."""


@dataclass(frozen=True)
class Tuned:
    """A method on a problem, at its best learning rate."""

    lr: float
    at_edge: bool
    """Whether that is the lowest or highest of several that were tried."""
    rows: Sequence[Row]
    """One per seed."""

    def median(self, column: str) -> float:
        """Median of a column over the seeds; infinite where most have diverged."""
        return median(number(row[column]) for row in self.rows)

    def range(self, column: str) -> str:
        """Median and, of several seeds, lowest and highest."""
        values = [number(row[column]) for row in self.rows]
        if len(values) == 1:
            return f"{values[0]:.3g}"
        return f"{median(values):.3g} ({min(values):.3g} to {max(values):.3g})"


@dataclass(frozen=True)
class Overall:
    """A method over the problems it has; ratios are geometric means over them of medians."""

    method: str
    problems: int
    to_final: float
    """Final error / Adam's final error at its best learning rate."""
    to_oracle: float
    """/ Adam's oracle."""
    to_held_out: float
    """/ Adam with 10 % held out; NaN where that has not been run."""
    near_best: int
    """Problems on which it is the best of all, or within 5 % of it."""
    worst: float
    """The largest ratio to Adam's final error."""
    equal: float
    """Error at equal gradient evaluations / Adam's final error."""
    seconds: float
    """Processor time / Adam's."""


def of_plan(rows: Iterable[Row], jobs: Iterable[Job]) -> list[Row]:
    """The rows of these runs, in their order."""
    made = by_key(rows, KEYS)
    return [made[key] for job in jobs if (key := key_of(job, KEYS)) in made]


def comparable(rows: Iterable[Row], jobs: Iterable[Job]) -> list[Row]:
    """The rows of these runs, of seeds at which every method of a problem has all it is to have.

    A stop may leave a seed that some methods have and others have not, or not at every rate. A
    method without any whole seed is left out.
    """
    jobs = list(jobs)
    rows = of_plan(rows, jobs)
    wanted: dict[tuple[str, str, str], set[float]] = {}
    for job in jobs:
        wanted.setdefault((job.problem, job.method, str(job.seed)), set()).add(job.lr)
    had: dict[tuple[str, str, str], set[float]] = {}
    for row in rows:
        key = (row["problem"], row["method"], row["seed"])
        had.setdefault(key, set()).add(float(row["lr"]))
    whole: dict[str, dict[str, set[str]]] = {}
    for (problem, method, seed), lrs in had.items():
        if lrs == wanted.get((problem, method, seed)):
            whole.setdefault(problem, {}).setdefault(method, set()).add(seed)
    shared = {problem: set.intersection(*by.values()) for problem, by in whole.items()}
    return [
        row
        for row in rows
        if row["method"] in whole.get(row["problem"], {}) and row["seed"] in shared[row["problem"]]
    ]


def tuned(rows: Iterable[Row]) -> dict[str, dict[str, Tuned]]:
    """problem -> method -> the method at its best learning rate; in the order of the rows."""
    grids: dict[str, dict[str, dict[float, list[Row]]]] = {}
    for row in rows:
        grid = grids.setdefault(row["problem"], {}).setdefault(row["method"], {})
        grid.setdefault(float(row["lr"]), []).append(row)
    return {
        problem: {method: _best(grid) for method, grid in methods.items()}
        for problem, methods in grids.items()
    }


def _best(grid: Mapping[float, Sequence[Row]]) -> Tuned:
    most = max(map(len, grid.values()))
    whole = {lr: own for lr, own in sorted(grid.items()) if len(own) == most}
    lr = min(whole, key=lambda lr: median(number(row["final_error"]) for row in whole[lr]))
    return Tuned(lr, len(grid) > 1 and lr in (min(grid), max(grid)), whole[lr])


def reference(rows: Iterable[Row], variant: str = "") -> str | None:
    """The name of the first method that is Adam, or Adam in a variant."""
    return next(
        (r["method"] for r in rows if r["optimizer"] == "adam" and r["variant"] == variant), None
    )


def oracle(rows: Sequence[Row]) -> dict[str, float]:
    """problem -> Adam's oracle."""
    adam = reference(rows)
    best: dict[str, dict[str, float]] = {}
    for row in rows:
        if row["method"] == adam:
            seeds = best.setdefault(row["problem"], {})
            error = number(row["best_error"])
            seeds[row["seed"]] = min(error, seeds.get(row["seed"], error))
    return {problem: median(seeds.values()) for problem, seeds in best.items()}


def overall(rows: Sequence[Row]) -> list[Overall]:
    """Every method over the problems that it and Adam have, best first.

    Raises:
        ValueError: there is no row of Adam, which all are compared with.
    """
    adam, held_out = reference(rows), reference(rows, "held_out")
    if adam is None:
        raise ValueError('There is no row of a method with the optimizer "adam" and no variant.')
    best, oracles = tuned(rows), oracle(rows)
    found = []
    for method in dict.fromkeys(row["method"] for row in rows):
        own = {p: m[method] for p, m in best.items() if method in m and adam in m}
        if not own:
            continue
        final = {p: t.median("final_error") for p, t in own.items()}
        to_adam = [final[p] / best[p][adam].median("final_error") for p in own]
        held = [p for p in own if held_out in best[p]]
        found.append(
            Overall(
                method=method,
                problems=len(own),
                to_final=geometric_mean(to_adam),
                to_oracle=geometric_mean(final[p] / oracles[p] for p in own),
                to_held_out=geometric_mean(
                    final[p] / best[p][str(held_out)].median("final_error") for p in held
                ),
                near_best=sum(final[p] <= NEAR * _lowest(best[p]) for p in own),
                worst=max(to_adam),
                equal=geometric_mean(
                    t.median("error_at_equal_evaluations") / best[p][adam].median("final_error")
                    for p, t in own.items()
                ),
                seconds=geometric_mean(
                    t.median("cpu_seconds") / best[p][adam].median("cpu_seconds")
                    for p, t in own.items()
                ),
            )
        )
    return sorted(found, key=lambda one: one.to_final)


def _lowest(methods: Mapping[str, Tuned]) -> float:
    return min(one.median("final_error") for one in methods.values())


def geometric_mean(values: Iterable[float]) -> float:
    """NaN of nothing; infinite where one is."""
    logs = [math.log(value) if value > 0 else -math.inf for value in values]
    return math.exp(sum(logs) / len(logs)) if logs else math.nan


OVERALL = (
    *("method", "problems", "/ Adam", "/ oracle", "/ held out", "near best", "worst"),
    *("at equal", "time"),
)
"""Titles of :func:`overall_cells`."""

OVERALL_CAPTION = (
    "Geometric means over problems of median final errors at the best learning rate, divided by "
    "Adam's, by Adam's oracle (its best moment, which only the truth can tell) and by that of Adam "
    "with 10 % held out. near best: problems on which it is the best of all or within 5 % of it; "
    "worst: the largest ratio to Adam; at equal: the error when it had used as many gradient "
    "evaluations, / Adam; time: of the processor, / Adam's."
)


def overall_cells(rows: Sequence[Row]) -> list[list[str]]:
    """:func:`overall` as text, one list per method."""
    return [
        [
            one.method,
            str(one.problems),
            *(_ratio(value) for value in (one.to_final, one.to_oracle, one.to_held_out)),
            f"{one.near_best} of {one.problems}",
            *(_ratio(value) for value in (one.worst, one.equal, one.seconds)),
        ]
        for one in overall(rows)
    ]


def _ratio(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.2f}" if value < 100 else f"{value:.1e}"


CELLS = (
    *("problem", "method", "lr", "seeds", "final error, median (range)", "best on the way"),
    *("at equal evaluations", "error of unknowns", "memorized", "CPU seconds"),
)
"""Titles of :func:`problem_cells`."""


def problem_cells(rows: Sequence[Row]) -> list[list[str]]:
    """Every problem and method at its best learning rate, and Adam's oracle; best final first.

    A learning rate at an end of its grid is marked by a star.
    """
    oracles = oracle(rows)
    lines = []
    for problem, methods in tuned(rows).items():
        own = [(one.median("final_error"), _line(problem, m, one)) for m, one in methods.items()]
        if problem in oracles:
            cells = [problem, "*Adam's oracle*", "", "", f"{oracles[problem]:.3g}", *[""] * 5]
            own.append((oracles[problem], cells))
        lines += [cells for _, cells in sorted(own, key=lambda pair: pair[0])]
    return lines


def _line(problem: str, method: str, one: Tuned) -> list[str]:
    shares = [float(row["memorized"]) for row in one.rows if row["memorized"]]
    return [
        problem,
        method,
        f"{one.lr:g}{'*' if one.at_edge else ''}",
        str(len(one.rows)),
        one.range("final_error"),
        f"{one.median('best_error'):.3g}",
        f"{one.median('error_at_equal_evaluations'):.3g}",
        _unknowns(one.rows),
        f"{100 * median(shares):.1f} %" if shares else "",
        f"{one.median('cpu_seconds'):.1f}",
    ]


def _unknowns(rows: Sequence[Row]) -> str:
    """The unknown with the largest median error, of all that a problem has."""
    errors = [found for row in rows if (found := json.loads(row["unknown_errors"]))]
    if not errors:
        return ""
    medians = {name: median(one[name] for one in errors) for name in errors[0]}
    name = max(medians, key=lambda name: medians[name])
    of = "" if len(medians) == 1 else f" (largest of {len(medians)})"
    return f"{name} {100 * medians[name]:.1f} %{of}"


def profiles(rows: Sequence[Row]) -> dict[str, list[float]]:
    """method -> its final errors over the best method's, one per problem it has, ascending.

    The performance profile of Dolan and More, Math. Program. 91 (2002) 201, is the share of these
    that are at most tau.
    """
    found: dict[str, list[float]] = {}
    for methods in tuned(rows).values():
        lowest = _lowest(methods)
        for method, one in methods.items():
            found.setdefault(method, []).append(one.median("final_error") / lowest)
    return {method: sorted(ratios) for method, ratios in found.items()}


def draw(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Performance profiles, and final errors against Adam's oracle, as PNG files.

    Methods that are Adam, Adam with 10 % held out, or ours with the package's defaults have colors.
    """
    import matplotlib.pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    shown = _shown(rows)
    paths = [folder / "bench_profiles.png", folder / "bench_oracle.png"]
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for method, ratios in sorted(profiles(rows).items(), key=lambda item: item[0] in shown):
        steps = [(i + 1) / len(ratios) for i in range(len(ratios))]
        style: dict[str, Any] = {"color": "0.8", "linewidth": 0.8}
        if method in shown:
            style = {"color": shown[method], "label": method, "linewidth": 2}
        axes.step([*ratios, 1e9], [*steps, 1.0], where="post", **style)
    axes.set(xscale="log", xlim=(1, 10), ylim=(0, 1.02))
    axes.set(xlabel="tau: final error / best method's", ylabel="share of problems within tau")
    axes.set_xticks([1, 1.5, 2, 3, 5, 10], ["1", "1.5", "2", "3", "5", "10"], minor=False)
    axes.legend(fontsize="small", title="gray: all others", title_fontsize="small")
    figure.savefig(paths[0], dpi=100)
    plt.close(figure)

    best, oracles = tuned(rows), oracle(rows)
    figure, axes = plt.subplots(figsize=(5, 5), layout="constrained")
    for method, color in shown.items():
        pairs = [
            (oracles[p], m[method].median("final_error"))
            for p, m in best.items()
            if p in oracles and method in m
        ]
        axes.plot(*zip(*pairs, strict=True), "o", color=color, label=method, alpha=0.8)
    ends = [min(oracles.values()) / 1.5, max(oracles.values()) * 1.5]
    axes.plot(ends, ends, color="0.5", linewidth=0.8)
    axes.set(xscale="log", yscale="log", xlabel="Adam's oracle", ylabel="final error")
    axes.legend(fontsize="small")
    figure.savefig(paths[1], dpi=100)
    plt.close(figure)
    return paths


def _shown(rows: Sequence[Row]) -> dict[str, str]:
    """Methods that a figure tells apart -> their colors."""
    names = [reference(rows), reference(rows, "held_out")]
    names += [r["method"] for r in rows if r["optimizer"].startswith("snr_") and not r["options"]]
    known = [name for name in dict.fromkeys(names) if name is not None]
    return {name: f"C{i}" for i, name in enumerate(known)}
