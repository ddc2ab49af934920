"""Loss weights from the data's error, against those that were set by hand: the zoo.

    python -m benchmarks.weights [JOBS]

appends to benchmarks/results/weights.csv. Every run is the package's default optimizer at 3e-3, as
long as the zoo's. The rules:

- *by hand*: what the problem's author has found;
- *one*: all weights 1;
- *sigma*: noisy terms 1 / sigma^2, so that each is the misfit, which is 1 at the truth; others 1;
- *gradients*: :func:`sciml_snr.balanced_weights`: noisy terms 1; every other term as large a
  gradient at the start as all noisy ones together, in the mean over random networks;
- *gradients, one network*: the same of the network at hand (rows of an earlier commit);
- *misfit*: begins like *gradients*; every 100 iterations the weights of the other terms are divided
  by the root of the misfit, which so comes to 1 (V. A. Morozov's discrepancy principle);
- *misfit, bounded*: the same, by a factor between 1/10 and 10 of the start.
"""

from __future__ import annotations

import math
import sys
import time
from dataclasses import dataclass
from statistics import median
from typing import Any

import deepxde as dde
import numpy as np
import torch

from benchmarks import text, zoo
from benchmarks.equal_time import job
from benchmarks.harness import RESULTS, append_missing, read
from sciml_snr import balanced_weights
from sciml_snr.bench import tables
from sciml_snr.bench.rows import number
from sciml_snr.bench.training import DIVERGED, Course
from sciml_snr.deepxde.conditions import NoisyCondition, conditions_of
from sciml_snr.runs.run import compile_model

PATH = RESULTS / "weights.csv"
RULES = (
    "by hand",
    "one",
    "sigma",
    "gradients, one network",
    "gradients",
    "misfit",
    "misfit, bounded",
)
KEYS = ("problem", "rule", "seed")
SEEDS = (0, 1)
EVERY = 100


@dataclass(frozen=True)
class Run:
    """One run."""

    problem: str
    rule: str
    seed: int


def variances(model: Any) -> list[float | None]:
    """Mean sigma^2 of every loss term's data; None of exact terms."""
    losses = _losses(model)
    conditions = conditions_of(model.data)
    found = [
        float(np.mean(np.square(np.asarray(condition.sigma))))
        if isinstance(condition, NoisyCondition)
        else None
        for condition in conditions
    ]
    return [None] * (len(losses) - len(conditions)) + found


def _losses(model: Any) -> torch.Tensor:
    """The losses of today, without weights."""
    weights, model.loss_weights = model.loss_weights, None
    data = model.data
    losses = model.outputs_losses_train(data.train_x, data.train_y, data.train_aux_vars)[1]
    model.loss_weights = weights
    found: torch.Tensor = losses
    return found


def weights(rule: str, model: Any) -> list[float]:
    """By a rule that needs the start only."""
    noise = variances(model)
    if rule == "one":
        return [1.0] * len(noise)
    if rule == "sigma":
        return [1.0 if variance is None else 1 / variance for variance in noise]
    return balanced_weights(model)


class Misfit(dde.callbacks.Callback):  # type: ignore[misc]
    """Divides the exact terms' weights by the root of the misfit.

    Args:
        most: the largest factor beside the start, and one over the least.
    """

    def __init__(self, most: float = math.inf) -> None:
        super().__init__()
        self.most, self.total = most, 1.0

    def on_epoch_end(self) -> None:
        """Every so many iterations."""
        if self.model.train_state.step % EVERY:
            return
        noise = variances(self.model)
        losses = _losses(self.model).detach()
        parts = [float(loss) / v for loss, v in zip(losses, noise, strict=True) if v is not None]
        factor = min(2.0, max(0.5, (sum(parts) / len(parts)) ** -0.5))
        factor = min(self.most, max(1 / self.most, factor * self.total)) / self.total
        self.total *= factor
        self.model.loss_weights = [
            w * factor if v is None else w
            for w, v in zip(self.model.loss_weights, noise, strict=True)
        ]


def fit(run: Run) -> dict[str, Any]:
    """Train in this process, on one thread; a run that diverges has an infinite error."""
    torch.set_num_threads(1)
    course = Course(job(run.problem, "snr_adam", {}, seed=run.seed))
    error = ""
    model = compile_model(course.config, course.problem)
    if run.rule != "by hand":
        model.loss_weights = weights(run.rule, model)
    others = [Misfit(10.0 if "bounded" in run.rule else math.inf)] if "misfit" in run.rule else []
    try:
        course.train(model, False, *others)
    except DIVERGED as reason:
        error = str(reason).splitlines()[0]
    last = course.rows[-1]["relative_l2"]
    used = model.loss_weights or [1.0] * len(variances(model))
    return {
        **dict(zip(KEYS, map(str, vars(run).values()), strict=True)),
        "final_error": math.inf if error else last,
        "best_error": min(row["relative_l2"] for row in course.rows),
        "weights": " ".join(f"{weight:.3g}" for weight in used),
        "cpu_seconds": round(time.process_time() - course.cpu_before, 2),
        "error": error,
    }


def runs() -> list[Run]:
    """Seed by seed."""
    return [
        Run(problem, rule, seed)
        for seed in SEEDS
        for rule in RULES
        if "one network" not in rule
        for problem in zoo.plan().cases
    ]


def table() -> str:
    """Errors over those with the weights set by hand, on the seeds that a rule has."""
    found = {
        (row["problem"], row["rule"], row["seed"]): number(row["final_error"]) for row in read(PATH)
    }
    cases = zoo.plan().cases
    columns = {}
    for rule in RULES[1:]:
        seeds = [s for s in map(str, SEEDS) if all((p, rule, s) in found for p in cases)]
        columns[rule] = seeds
    if not all(columns.values()):
        return text.table("", [])

    def error(problem: str, rule: str, seeds: list[str]) -> float:
        return median(found[problem, rule, seed] for seed in seeds)

    ratios = {
        rule: [error(p, rule, seeds) / error(p, "by hand", seeds) for p in cases]
        for rule, seeds in columns.items()
    }
    lines = [
        [
            problem,
            f"{found[problem, 'by hand', '0']:.3f}",
            *(f"{own[i]:.2f}" for own in ratios.values()),
        ]
        for i, problem in enumerate(cases)
    ]
    means = [f"{tables.geometric_mean(own):.2f}" for own in ratios.values()]
    lines.append(["*geometric mean*", "", *means])
    lines.append(["*seeds*", "", *(str(len(seeds)) for seeds in columns.values())])
    titles = ["problem", "error, by hand (seed 0)", *(f"{rule} / by hand" for rule in columns)]
    return text.table(titles, lines)


if __name__ == "__main__":
    append_missing(PATH, runs(), KEYS, fit, int(sys.argv[1]) if sys.argv[1:] else None)
