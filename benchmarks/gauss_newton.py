"""The zoo by Gauss-Newton steps, untuned, at the CPU seconds of 2,500 iterations of Adam.

    python -m benchmarks.gauss_newton VARIANT [SEEDS] [PROBLEM ...]

appends to benchmarks/results/gauss_newton.csv. Every variant starts with steps of ``snr_adam``
(``warm_up`` of them, learning rate 3e-3) and goes on with ``snr_gn``. A row has its course: CPU
seconds of training, in units of what 2,500 iterations of DeepXDE's own Adam take (measured in the
same process, before), and the errors then. The table compares with the zoo's rows of Adam at the
best of four rates, chosen on seed 0 by the truth (benchmarks/zoo.toml).
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

from benchmarks import text, zoo
from benchmarks.conditioned import Conditioned
from benchmarks.equal_time import ENDING, job, rivals
from benchmarks.harness import RESULTS, append_missing, read
from benchmarks.second_order import RIVALS
from sciml_snr import gauss_newton as engine
from sciml_snr import set_SNR_options
from sciml_snr.bench import tables
from sciml_snr.bench.rows import number
from sciml_snr.bench.smoothing import remade
from sciml_snr.bench.training import DIVERGED
from sciml_snr.deepxde import jacobian as room
from sciml_snr.deepxde.gauss_newton import NAME, UNKNOWNS_UNIT, WARM_UP_RATE, WARM_UP_STEPS
from sciml_snr.deepxde.jacobian import EQUATION_ROWS
from sciml_snr.deepxde.points import EQUATION_POINTS
from sciml_snr.gauss_newton import EXACT_ROWS, SNRGaussNewton
from sciml_snr.tangent import Tangent

PATH = RESULTS / "gauss_newton.csv"
KEYS = ("variant", "problem", "seed")
LIMIT = 1.0
"""Adam's CPU seconds, times this, end a run."""


@dataclass(frozen=True)
class Run:
    """One run."""

    variant: str
    problem: str
    seed: int


PLAIN = {"gate": "stein", "z": 1.5, "exact_weight": 1.0}
"""The gate of each direction by itself, and exact rows as they weigh in the loss."""

MONOTONE = {"gate": "monotone"}
"""The gate that pools neighbouring directions, exact rows rising to 100 times their weight."""

VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "evidence": {"gate": "evidence"},
    "monotone": MONOTONE,
    "monotone, all eigenvectors": {**MONOTONE, "exact_rows": 10**9},
    "monotone, z 1": {**MONOTONE, "z": 1.0},
    "monotone, z 0.7": {**MONOTONE, "z": 0.7},
    "monotone, rows 300": {**MONOTONE, "equation_rows": 300},
    "plain": PLAIN,
    "plain, z 2.5": {**PLAIN, "z": 2.5},
    "plain, no gate": {**PLAIN, "z": 0.0},
    "exact 10 from the start": {**PLAIN, "exact_weight": 10.0, "ramp_steps": 0},
    "exact 100 from the start": {**PLAIN, "exact_weight": 100.0, "ramp_steps": 0},
    "warm up 1000": {"warm_up": 1000},
    "monotone, warm up 1000": {**MONOTONE, "warm_up": 1000},
    "rows 600": {"equation_rows": 600},
    "own points": {},
    "3200 drawn": {"equation_points": 3200},
    "all of them in every step": {"equation_rows": 3600},
    "3200 points": {"num_domain": 3200},
    "z 2": {"z": 2.0},
    "cold": {"warm_up": 0},
    "float64": {"dtype": "float64"},
    "all eigenvectors": {"exact_rows": 10**9},
    "no gate": {"gate": "stein", "z": 0.0},
    "no gate, exact 1000": {"gate": "stein", "z": 0.0, "exact_weight": 1000.0},
    "exact rows first, z 1": {**MONOTONE, "z": 1.0, "tangent": Conditioned},
    "exact rows first, z 0.7": {**MONOTONE, "z": 0.7, "tangent": Conditioned},
    "five times the seconds": {"limit": 5.0},
    **{
        f"ENGD-W, {x:g}": {"rival": "ENGD-W", "damping": x}
        for x in (1e-8, 1e-6, 1e-4, 1e-2, 0.1, 1.0)
    },
    **{
        f"SPRING, {x:g}": {"rival": "ENGD-W", "damping": x, "momentum": 0.9}
        for x in (1e-6, 1e-4, 1e-2, 0.1)
    },
    **{f"PDE-aware, {x:g}": {"rival": "PDE-aware", "lr": x} for x in (1e-3, 1e-2, 1e-1, 1.0)},
    "SSBroyden": {"rival": "SSBroyden", "dtype": "float64"},
}
"""What can be run: options of the optimizer; steps of first order, rows of equations, dtype. Rivals
have ``rival``, their name in :mod:`benchmarks.second_order`, and start with steps of Adam."""


EARLIER = (
    "plain, monotone 1",
    "plain, monotone 1.25",
    "exact 30 from the start, monotone 1",
    "stein 1.5, ramp by steps",
    "monotone 1, ramp by steps",
    "monotone 1.25, ramp by steps",
    "exact rows first, own sum",
    "exact rows first, own sum, z 0.7",
    "exact rows first, in all steps, z 1",
    "no more points than rows",
    "own points, five times the seconds",
)
"""Variants of earlier commits: a gate that only falls, a weight that rises by steps alone; steps
that have to lower the squares without what is closed, and gates of all steps together; of systems
as many points as are in a step, 400 and 600."""

LONG, THRICE = "five times the seconds", 3.0
"""The variant with a larger budget, of runs that do not end by themselves before; and the moment at
which it is compared with Adam's longer runs."""

WITH_MORE = ("default", "3200 drawn", "all of them in every step", "no more points than rows", LONG)
"""All other variants are at the models' own points."""


class Clock:
    """CPU seconds of training, in units of Adam's."""

    def __init__(self) -> None:
        self.spent, self._since = 0.0, 0.0

    def start(self) -> None:
        self._since = time.process_time()

    def stop(self) -> None:
        self.spent += time.process_time() - self._since


def prepared(variant: str) -> tuple[int, dict[str, Any]]:
    """Set what is set for a whole process. Gives the steps of first order, and other options."""
    options = dict(VARIANTS[variant])
    room.EQUATION_ROWS = options.pop("equation_rows", EQUATION_ROWS)
    engine.Tangent = options.pop("tangent", Tangent)  # type: ignore[misc]
    least = EQUATION_POINTS if variant in WITH_MORE else 0
    set_SNR_options(equation_points=options.pop("equation_points", least))
    engine.EXACT_ROWS = options.pop("exact_rows", EXACT_ROWS)
    return options.pop("warm_up", WARM_UP_STEPS), options


def fit(run: Run) -> dict[str, Any]:
    """Train in this process, on one thread; a run that diverges has an infinite error."""
    torch.set_num_threads(1)
    warm_up, options = prepared(run.variant)
    limit = options.pop("limit", LIMIT)
    rival = options.pop("rival", None)
    dtype = options.pop("dtype", "float32")
    dde.config.set_default_float("float32")
    case = zoo.plan().cases[run.problem]

    points = options.pop("num_domain", None)

    def model_of() -> tuple[Any, Any]:
        problem = job(run.problem, "snr_adam", {}, seed=run.seed).build()
        problem.num_domain = points or problem.num_domain
        dde.config.set_random_seed(run.seed)
        return problem, problem.model(remade(problem.network(), case.width, dde.nn.FNN))

    def compiled(model: Any, problem: Any, optimizer: Any, lr: float | None) -> None:
        model.compile(
            optimizer,
            lr=lr,
            loss_weights=problem.loss_weights(),
            external_trainable_variables=list(problem.unknowns.values()),
            verbose=0,
        )

    problem, model = model_of()
    compiled(model, problem, "adam", 1e-3)
    adam = case.iterations * _seconds_of_a_step(model)
    dde.config.set_default_float(dtype)
    problem, model = model_of()
    clock, course, error = Clock(), [], ""

    def look(step: int) -> None:
        found = problem.metrics(lambda points: problem.predict(model, points))
        kept = {k: float(f"{v:.5g}") for k, v in found.items()}
        stats = {}
        if isinstance(model.opt, SNRGaussNewton) and model.opt.steps:
            stats = {
                "estimate": model.opt.memorized,
                **model.opt.stats()._asdict(),
                "done": float(model.opt.done),
            }
            stats = {k: float(f"{v:.4g}") for k, v in stats.items()}
        course.append({"step": step, "time": round(clock.spent / adam, 4), **kept, **stats})

    class Watch(dde.callbacks.Callback):  # type: ignore[misc]
        def on_epoch_end(self) -> None:
            clock.stop()
            look(optimizer.steps)
            if clock.spent > limit * adam or not math.isfinite(course[-1]["relative_l2"]):
                model.stop_training = True
            clock.start()

    try:
        if warm_up:
            compiled(model, problem, "adam" if rival else "snr_adam", WARM_UP_RATE)
            clock.start()
            model.train(warm_up, display_every=10**9, verbose=0)
            clock.stop()
            look(0)
        clock.start()
        if rival:
            compiled(model, problem, "adam", WARM_UP_RATE)
            optimizer: Any = RIVALS[rival](model, **options)
        else:
            compiled(model, problem, optimizer_of(model, problem, options), None)
            optimizer = model.opt
        model.train(10**6, display_every=10**9, callbacks=[Watch()], verbose=0)
    except DIVERGED as reason:
        error = str(reason).splitlines()[0]
    last = course[-1]["relative_l2"] if course and not error else math.inf
    return {
        **{name: str(getattr(run, name)) for name in KEYS},
        "adam_seconds": round(adam, 3),
        "final_error": last,
        "best_error": min((one["relative_l2"] for one in course), default=math.inf),
        "steps": course[-1]["step"] if course else 0,
        "course": json.dumps(thinned(course), separators=(",", ":")),
        "error": error,
    }


def thinned(course: list[Any], most: int = 150) -> list[Any]:
    """At most about so many looks of a course, the last one among them."""
    every = max(1, math.ceil(len(course) / most))
    return course[:-1][::every] + course[-1:]


def optimizer_of(model: Any, problem: Any, options: dict[str, Any]) -> Any:
    """What ``compile`` takes."""
    if not options:
        return NAME
    unknowns = list(problem.unknowns.values())
    options = dict(options)
    unit = options.pop("unit", UNKNOWNS_UNIT)
    groups = [{"params": list(model.net.parameters())}]
    if unknowns:
        groups.append({"params": unknowns, "unit": unit})
    return SNRGaussNewton(groups, **options)


def _seconds_of_a_step(model: Any, steps: int = 40, rounds: int = 5) -> float:
    """CPU time of an iteration of the compiled optimizer: the median over rounds."""
    found = []
    for _ in range(rounds):
        started = time.process_time()
        model.train(steps, display_every=10**9, verbose=0)
        found.append((time.process_time() - started) / steps)
    return median(found)


def at(row: Any, moment: float) -> dict[str, float]:
    """A run's figures at the last look up to a moment, in units of Adam's time."""
    course = json.loads(row["course"])
    found = [one for one in course if one["time"] <= moment]
    return found[-1] if found and not row["error"] else {"relative_l2": math.inf}


def rows_of(variant: str) -> dict[str, list[dict[str, str]]]:
    """problem -> a variant's rows."""
    every = [dict(row) for row in read(PATH) if row["variant"] == variant]
    cases = zoo.plan().cases
    found = {p: [row for row in every if row["problem"] == p] for p in cases}
    return {problem: own for problem, own in found.items() if own}


def finals(problem: str, seeds: set[str]) -> list[dict[str, str]]:
    """Tuned Adam's rows of a problem, of these seeds."""
    return [row for row in rivals("adam")[problem] if row["seed"] in seeds]


def ratio(problem: str, own: list[dict[str, str]], moment: float) -> float:
    """Our median error at a moment over tuned Adam's median final error, on the same seeds."""
    theirs = finals(problem, {row["seed"] for row in own})
    ours = median(at(row, moment)["relative_l2"] for row in own)
    return ours / median(number(row["final_error"]) for row in theirs)


def table(variant: str = "default", moment: float = 1.0) -> str:
    """Problem by problem: ours at a moment, Adam's final error, and the geometric mean."""
    lines, ratios, to_best = [], [], []
    for problem, own in rows_of(variant).items():
        theirs = finals(problem, {row["seed"] for row in own})
        ours = [at(row, moment) for row in own]
        ratios.append(ratio(problem, own, moment))
        unknowns = []
        for key in (key for key in ours[0] if key.endswith(ENDING)):
            name = key.removesuffix(ENDING)
            rival = median(json.loads(row["unknown_errors"])[name] for row in theirs)
            mine = median(one.get(key, math.inf) for one in ours)
            unknowns.append(f"{name} {100 * mine:.1f} % ({100 * rival:.1f} %)")
        steps = median(int(one.get("step", 0)) for one in ours)
        spent = median(one.get("time", math.inf) for one in ours)
        best = median(number(row["best_error"]) for row in theirs)
        to_best.append(median(one["relative_l2"] for one in ours) / best)
        lines.append(
            [
                problem,
                str(len(own)),
                text.spread([one["relative_l2"] for one in ours]),
                text.spread([number(row["final_error"]) for row in theirs]),
                f"{best:.3f}",
                f"{ratios[-1]:.2f}",
                ", ".join(unknowns),
                f"{median(float(row['adam_seconds']) for row in own):.1f}",
                f"{spent:.2f}",
                f"{steps:.0f}",
            ]
        )
    means = {**_means(ratios), "over Adam's best moment": to_best}
    lines += _lines_of(means, 4, 4)
    titles = "problem|seeds|ours|tuned Adam|its best moment|ours over Adam's|"
    titles += "coefficients off by (Adam's)|Adam's CPU seconds|ours, of them|steps"
    return text.table(titles, lines)


def _means(ratios: list[float]) -> dict[str, list[float]]:
    """What a table of ratios ends with."""
    return {"geometric mean": ratios, "without its best problem": sorted(ratios)[1:]}


def _lines_of(means: dict[str, list[float]], before: int, after: int) -> list[list[str]]:
    """A line for the geometric mean of each, with so many empty cells before and after it."""
    return [
        [f"*{name}*", *before * [""], f"{tables.geometric_mean(found):.2f}", *after * [""]]
        for name, found in means.items()
        if found
    ]


def long_rows() -> dict[str, list[dict[str, str]]]:
    """problem -> the default's rows; of a run with a larger budget, that one. A run that has ended
    by itself is the same at any budget."""
    longer = {(row["problem"], row["seed"]): row for own in rows_of(LONG).values() for row in own}
    return {
        problem: [longer.get((problem, row["seed"]), row) for row in own]
        for problem, own in rows_of("default").items()
    }


def hold() -> str:
    """Where each problem's runs ended, and how far behind their own best moment."""
    lines, ratios = [], []
    for problem, own in long_rows().items():
        lasts = [json.loads(row["course"])[-1] for row in own]
        ended = [last for last in lasts if last.get("done")]
        found = [number(row["final_error"]) / number(row["best_error"]) for row in own]
        ratios.append(median(found))
        when = f"{median(last['time'] for last in ended):.2f}" if ended else ""
        by_itself = f"{len(ended)} of {len(own)}"
        budget = f"{max(5 if row['variant'] == LONG else 1 for row in own)}"
        lines.append([problem, budget, by_itself, when, f"{ratios[-1]:.2f}", f"{max(found):.2f}"])
    lines += _lines_of({"geometric mean": ratios}, 3, 1)
    titles = "problem|budget, of Adam's CPU seconds|ended by itself|at|last error over its own "
    titles += "lowest, median|worst"
    return text.table(titles, lines)


def longer() -> str:
    """Ours at three times Adam's seconds, and Adam with three times the iterations."""
    rivals = tables.tuned(zoo.beside("zoo_long"))
    lines, ratios = [], []
    for problem, own in long_rows().items():
        if "adam" not in rivals.get(problem, {}):
            continue
        adam = rivals[problem]["adam"]
        seeds = {row["seed"] for row in adam.rows}
        ours = [at(row, THRICE)["relative_l2"] for row in own if row["seed"] in seeds]
        theirs = [number(row["final_error"]) for row in adam.rows]
        best = median(number(row["best_error"]) for row in adam.rows)
        ratios.append(median(ours) / median(theirs))
        cells = [problem, str(len(seeds)), text.spread(ours), text.spread(theirs), f"{best:.3f}"]
        lines.append([*cells, f"{ratios[-1]:.2f}"])
    lines += _lines_of(_means(ratios), 4, 0)
    titles = "problem|seeds|ours|tuned Adam|its best moment|ours over Adam's"
    return text.table(titles, lines)


def second_order() -> str:
    """Rivals of second order on seed 0, final and at their best, which only the truth can tell."""
    lines = []
    for variant, options in VARIANTS.items():
        if variant != "default" and "rival" not in options:
            continue
        found, bests = {}, []
        for problem, own in rows_of(variant).items():
            first = [row for row in own if row["seed"] == "0"]
            if first:
                adam = median(number(row["final_error"]) for row in finals(problem, {"0"}))
                found[problem] = ratio(problem, first, 1.0)
                bests.append(number(first[0]["best_error"]) / adam)
        if len(found) < len(zoo.plan().cases):
            continue
        worst = max(found, key=lambda problem: found[problem])
        lines.append(
            [
                "snr_gn, as it comes" if variant == "default" else variant,
                f"{tables.geometric_mean(found.values()):.2f}",
                f"{tables.geometric_mean(bests):.2f}",
                f"{found[worst]:.2f} ({worst})",
                str(sum(value > 1.1 for value in found.values())),
            ]
        )
    titles = (
        "method, and its damping or rate|final over tuned Adam's|its best moment over Adam's final|"
    )
    return text.table(titles + "worst|behind by more than 10 %", lines)


def variants() -> str:
    """Every variant on seed 0, and the default at the models' own points on the same problems."""

    def first(variant: str) -> dict[str, float]:
        return {
            problem: ratio(problem, [row for row in own if row["seed"] == "0"], 1.0)
            for problem, own in rows_of(variant).items()
            if any(row["seed"] == "0" for row in own)
        }

    own_points, lines = first("own points"), []
    for variant in sorted((*VARIANTS, *EARLIER), key=lambda name: name not in WITH_MORE):
        if "rival" in VARIANTS.get(variant, {}):
            continue
        found = first(variant)
        shared = [problem for problem in found if problem in own_points]
        if not shared:
            continue
        means = [tables.geometric_mean([own[p] for p in shared]) for own in (found, own_points)]
        worst = max(shared, key=lambda problem: found[problem])
        where = f"{found[worst]:.2f} ({worst})"
        cells = [f"{mean:.2f}" for mean in means]
        lines.append([variant, str(len(shared)), *cells, where])
    return text.table("variant|problems|over Adam's|with own points|worst", lines)


if __name__ == "__main__":
    variant, seeds, names = sys.argv[1], int(sys.argv[2]) if sys.argv[2:] else 1, sys.argv[3:]
    every = [
        Run(variant, problem, seed)
        for seed in range(seeds)
        for problem in names or zoo.plan().cases
    ]
    append_missing(PATH, every, KEYS, fit, 1)
    print(table(variant))
