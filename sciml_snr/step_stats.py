"""What a Gauss-Newton step found, and the options that it is taken with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, variance
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .step_size import estimate

AUTO, EVIDENCE, MONOTONE = "auto", "evidence", "monotone"
GATES = (AUTO, EVIDENCE, MONOTONE, "stein")


class GaussNewtonStats(NamedTuple):
    """What the last step found."""

    rows: int
    """Number of residual rows."""
    open_fraction: float
    """Mean of the gate over the noisy rows' directions, each by its share of noise, in [0, 1]."""
    misfit: float
    """Mean square of the noisy rows in units of their sigma, before the step; 1 without any."""
    damping: float
    """mu, after the step."""
    moved: float
    """Root mean square by which the step moves the noisy fit, in units of sigma (without noisy
    rows: relative change of the rows)."""
    rank: int
    """Number of the kernel's eigenvectors in it."""
    left_out: float
    """Trace of the kernel without them, in units of the damping that the step began with (gate
    ``"evidence"``: of the noise): bounds the error of the kernel beside it."""


def found(tangent: Any, damping: float, moved: float, left_out: float) -> GaussNewtonStats:
    """The stats of a step."""
    noise = float(tangent.noisy.sum())
    opened = float((tangent.gate * tangent.noise).sum() / noise) if noise else 1.0
    rows, rank = len(tangent.rows), len(tangent.values)
    return GaussNewtonStats(rows, opened, tangent.misfit, damping, moved, rank, left_out)


def described(optimizer: Any) -> str:
    """What an :class:`sciml_snr.SNRGaussNewton` does, in words, a line each."""
    group, stats = optimizer.param_groups[0], optimizer.last_stats
    lr, kind = group["lr"], group["gate"]
    ceiling = "no learning rate" if lr is None else f"no step longer than {lr:g}"
    lines = [f"SNRGaussNewton: Levenberg-Marquardt in the tangent kernel's basis, {ceiling}"]
    if group["z"] == 0:
        lines.append("gate: none")
    if group["z"] and kind in (AUTO, EVIDENCE):
        where = "where all rows are noisy, " if kind == AUTO else ""
        lines.append(f"gate: {where}of a prior of the weights, as wide as the evidence is largest")
    if group["z"] and kind != EVIDENCE:
        follows = ", what is closed follows the exact rows" if group["follow"] else ""
        lines.append(f"gate: {MONOTONE if kind == AUTO else kind}, z = {group['z']:g}{follows}")
        lines.append(
            f"exact rows beside noisy ones: {group['exact_weight']:g} times their weight, after "
            f"{group['ramp_steps']} steps"
        )
    if optimizer.steps:
        lines.append(f"steps: {optimizer.steps}, damping {optimizer.damping:.2g}")
    if stats is not None:
        params = [p for g in optimizer.param_groups for p in g["params"] if p.requires_grad]
        size = sum(p.numel() for p in params)
        memory, _ = estimate(stats.rows, size, params[0].itemsize)
        lines.append(
            f"a step: {stats.rows} rows by {size} parameters, {stats.rank} eigenvectors, about "
            f"{memory:.2g} GB"
        )
    if not math.isnan(optimizer.memorized):
        lines.append(f"memorized in these steps: {100 * optimizer.memorized:.1f} % of the noise")
    if optimizer.done:
        lines.append(optimizer.reason)
    elif optimizer.steps:
        lines.append("not done: directions still stand out of the noise; it would go on")
    return "\n".join(lines)


def moved_by(tangent: Any, step: Tensor) -> float:
    """How far a step moves the fit; see :class:`GaussNewtonStats`."""
    change = tangent.fitted(step)
    count = float(tangent.noisy.sum())
    if not count:
        return float(change.norm() / tangent.rows.norm().clamp_min(1e-300))
    return math.sqrt(float((change.square() * tangent.noisy).sum()) / count)


def at_rest(sums: Sequence[float], tolerance: float) -> bool:
    """Whether sums of squares, of rows drawn anew in every step, neither fall nor rise.

    The mean over the later half is that over the earlier one: their difference, and one standard
    error of it, are no more per step than the tolerance. Sums that scatter too widely to tell are
    not at rest.

    Args:
        sums: of an even number of steps in a row, 4 or more, per noisy row.
        tolerance: of a step.
    """
    half = len(sums) // 2
    earlier, later = sums[:half], sums[half:]
    error = math.sqrt((variance(earlier) + variance(later)) / half)
    return (abs(fmean(earlier) - fmean(later)) + error) / half < tolerance


def random_signs(rows: int, probes: int) -> Tensor:
    """Random signs, (rows, probes), the same ones every time."""
    generator = torch.Generator("cpu").manual_seed(0)
    signs = torch.randint(0, 2, (rows, probes), generator=generator, device="cpu")
    return signs.double().mul_(2).sub_(1)


def check_options(options: dict[str, Any]) -> None:
    """Refuse options out of range, by name."""
    lr = options["lr"]
    if lr is not None and not (isinstance(lr, (int, float)) and lr > 0):
        raise ValueError(
            f"lr must be None or a positive number, the longest step there may be; got {lr!r}."
        )
    if options["gate"] not in GATES:
        raise ValueError(f"gate must be one of {', '.join(GATES)}; got {options['gate']!r}.")
    for name in ("damping", "tolerance", "exact_weight", "max_gigabytes", "unit"):
        if not 0 < options[name] < math.inf:
            raise ValueError(f"{name} must be a positive number, got {options[name]!r}.")
    if not 0 <= options["z"] < math.inf:
        raise ValueError(f"z must be a number >= 0, got {options['z']!r}.")
    for name, least in {"max_trials": 1, "patience": 1, "probes": 0, "ramp_steps": 0}.items():
        if not (isinstance(options[name], int) and options[name] >= least):
            raise ValueError(f"{name} must be a whole number >= {least}, got {options[name]!r}.")
