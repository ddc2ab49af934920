"""Adam with a stopping rule: discrepancy principle, 10 % held out, SURE with a twin.

    python -m benchmarks.stopping [JOBS]

appends to benchmarks/results/stopping.csv: errors at the end, at the best moment (which only the
truth can tell) and where each rule stops, which may use what a user has: the measurements and
sigma.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from benchmarks.harness import RESULTS, append_missing, resolved
from sciml_snr import Twins, problems
from sciml_snr.run import Recorder, RunConfig, compile_model

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


class Watch(Recorder):
    """A recorder that keeps what stopping rules look at: the fit at some points."""

    def __init__(self, config: RunConfig, problem: problems.Problem, points: Any) -> None:
        super().__init__(config, problem)
        self.points = points
        self.fits: list[Any] = []

    def _measure(self) -> None:
        super()._measure()
        predict = partial(self.problem.predict, self.model)
        self.fits.append(self.problem.encode(predict(self.points)))


def watched(config: RunConfig, problem: problems.Problem, points: Any) -> Watch:
    """Train it, watching the fit at these points."""
    recorder = Watch(config, problem, points)
    recorder.train(compile_model(config, problem), progress=False)
    return recorder


def run(job: Stopped) -> dict[str, Any]:
    """Train in this process, on one thread."""
    values = {key: value for key, value in asdict(job).items() if key != "rule"}
    config = resolved(RunConfig(**values))
    problem = config.build()
    observed = problem.observations
    measured, sigma = problem.encode(observed.values), problem.sigma()
    assert sigma is not None
    rng = np.random.default_rng(1000 + job.seed)
    if job.rule == "10 % held out":
        out = rng.permutation(len(observed)) < len(observed) // 10
        kept = replace(
            observed,
            points=observed.points[~out],
            values=observed.values[~out],
            sigma=sigma[~out],
            clean=None if observed.clean is None else observed.clean[~out],
        )
        main = watched(
            config, type(problem)(seed=job.seed, observations=kept), observed.points[out]
        )
        scores = {"held_out": [float(((f - measured[out]) ** 2).mean()) for f in main.fits]}
    else:
        # In units of sigma, which may differ from point to point.
        twins = Twins(measured / sigma, 1.0, seed=1000 + job.seed)
        moved = replace(observed, values=problem.decode(sigma * twins.labels[0]))
        main = watched(config, problem, observed.points)
        twin = watched(config, type(problem)(seed=job.seed, observations=moved), observed.points)
        for row, f, g in zip(main.rows, main.fits, twin.fits, strict=True):
            twins.record(int(row["iteration"]), f / sigma, [g / sigma])
        scores = {
            "discrepancy": [0.0 if row.misfit <= 1 else row.misfit for row in twins.rows],
            "sure": [row.risk for row in twins.rows],
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


if __name__ == "__main__":
    append_missing(PATH, jobs(), KEYS, run, *map(int, sys.argv[1:]))
