"""How well a fit predicts: a second training that does not see a part of the measurements."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from sciml_snr.problems import Problem

    from .options import ProblemConfig

LEAST = 5
"""Fewer held-out measurements say nothing."""

PENDING = "the second training has not ended: repeat with --resume to measure it."


@dataclass(frozen=True)
class HeldOut:
    """What a second training predicted of the measurements that it did not see."""

    count: int | None = None
    misfit: float | None = None
    """Mean square of (prediction - measurement) / sigma; None where sigma is unknown."""
    errors: dict[str, float | None] | None = field(default=None)
    """output -> root mean square of prediction - measurement, in the output's units."""
    note: str | None = None
    """Why nothing was measured."""


def held_out(config: ProblemConfig, problem: Problem, progress: bool) -> HeldOut:
    """Train once more without a share of the measurements, and compare with those.

    Args:
        config: of the run, resolved.
        problem: of the run.
        progress: draw a progress bar.
    """
    from .run import Recorder, compile_model

    share, n = config.held_out or 0.0, len(problem.observations)
    count = round(share * n)
    if not share:
        return HeldOut()
    if count < LEAST:
        return HeldOut(
            note=f"not measurable with so few data ({count} of {n} would be held out, and "
            f"{LEAST} are needed: --held-out takes a larger share)."
        )
    sigma = problem.sigma()
    chosen = np.zeros(n, dtype=bool)
    chosen[np.random.default_rng((config.seed or 0, 7)).permutation(n)[:count]] = True
    # Where the error is one number, the problem gets it as such: it may be of other data, too.
    observed = replace(problem.observations, sigma=sigma if config.noise is None else None)
    rest = config.build(observed.rows(~chosen))
    rest.starts = problem.starts
    model = compile_model(config, rest)
    recorder = Recorder(config, rest, label=f"{config.name}, {share:.0%} held out")
    recorder.tells_share = recorder.tells_share and problem.observations.sigma is not None
    recorder.train(model, progress)
    if recorder.interrupted:
        return HeldOut(note=PENDING)
    predict = functools.partial(rest.predict, model)
    points, values = observed.points[chosen], observed.values[chosen]
    predicted = predict(points)[:, : len(problem.measured)]
    errors = np.sqrt(((predicted - values) ** 2).mean(axis=0))
    misfit = None
    if sigma is not None:
        off = problem.encode(predicted) - problem.encode(values)
        misfit = float(((off / sigma[chosen]) ** 2).mean())
    return HeldOut(count, misfit, dict(zip(problem.measured, map(float, errors), strict=True)))
