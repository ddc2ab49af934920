"""Own measurements in their own units: network, loss weights and guesses are scaled to them.

A built-in problem's network, weights and guesses are made for the coordinates of its ``ranges`` and
for the size of its own example's outputs. With own measurements (lengths in millimetres,
temperatures in kelvin) inputs are mapped from the domain to those ranges, outputs scaled by the
measurements' standard deviation, and every term of the loss weighs what the same term weighs in the
example: what is trained is the example's problem, whatever the units. A problem of the user's own
has outputs scaled likewise, and its terms weighed by their typical sizes, always.

The typical size of an equation's residual is its root mean square for random smooth fields that
vary over the domain as much as the measurements do.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import deepxde as dde
import numpy as np
import torch

from .measurements import Array
from .shapes import check_positive

if TYPE_CHECKING:
    from .base import Problem

RESOLUTION = 1e-3
"""Steps between numbers, over the range of a coordinate, that are too coarse."""

POINTS, FIELDS, WAVES = 256, 4, 4
"""Of the random fields: points, number, and waves in each."""


def is_scaled(problem: Problem) -> bool:
    """Whether the measurements may be in units of their own."""
    return bool(problem.ranges) and (problem.is_own or not _is_built_in(type(problem)))


def _is_built_in(cls: type[Problem]) -> bool:
    """Whether network and loss weights were made for the class's own example."""
    return cls.__module__.startswith(f"{__package__}.")


def levels(problem: Problem) -> tuple[Array, Array]:
    """Mean and size (m,) of all outputs, encoded: the measurements', or what the problem says."""
    values = problem.encode(problem.observations.values)
    means, sizes = values.mean(axis=0), values.std(axis=0)
    sizes = np.where(sizes > 0, sizes, np.maximum(np.abs(means), 1e-30))
    measured = dict(zip(problem.measured, map(float, sizes), strict=True))
    others = [problem.unmeasured_sizes(measured)[n] for n in problem.outputs[len(measured) :]]
    return np.r_[means, np.zeros(len(others))], np.r_[sizes, others]


@functools.lru_cache(maxsize=8)
def example(cls: type[Problem]) -> Problem | None:
    """A built-in problem with its own synthetic measurements; None of a user's."""
    return cls() if _is_built_in(cls) else None


def extents(problem: Problem) -> tuple[Array, Array]:
    """Of each coordinate: length of the domain (d,), and of the problem's own range (d,)."""
    sides = [(*problem.domain[name], *problem.ranges[name]) for name in problem.ranges]
    low, high, own_low, own_high = np.array(sides).T
    return high - low, own_high - own_low


def guess_scale(problem: Problem, powers: Mapping[str, float]) -> float:
    """What a guess is multiplied by, whose units are these powers of coordinates' and outputs'."""
    if not powers or not is_scaled(problem):
        return 1.0
    lengths, own_lengths = extents(problem)
    scale = dict(zip(problem.ranges, lengths / own_lengths, strict=True))
    own = example(type(problem))
    if own is not None:
        sizes = levels(problem)[1] / levels(own)[1]
        scale |= dict(zip(problem.outputs, sizes, strict=True))
    return math.prod(float(scale[name]) ** power for name, power in powers.items())


def checked_domain(
    problem: Problem, domain: Mapping[str, tuple[float, float]]
) -> dict[str, tuple[float, float]]:
    """A domain that is given in place of the problem's own.

    Raises:
        ValueError: it cannot be set, or is none.
    """
    if domain and not problem.is_own:
        raise ValueError(
            f"The domain can be set with measurements of your own only: those of {problem.name}, "
            "and its reference, are of its own domain."
        )
    for name, (low, high) in domain.items():
        if name not in problem.ranges:
            raise ValueError(
                f"{problem.name} has no domain of {name} that could be set. Possible: "
                f"{', '.join(problem.ranges) or 'none'}."
            )
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ValueError(f"The domain of {name} must be low < high, got {low}, {high}.")
    return {name: (float(low), float(high)) for name, (low, high) in domain.items()}


def check_resolution(domain: Mapping[str, tuple[float, float]]) -> None:
    """Refuse coordinates whose numbers are too large for their range, such as a minute in seconds
    since 1970: the network could not tell them apart.

    Raises:
        ValueError: says what to subtract.
    """
    for name, (low, high) in domain.items():
        step = float(np.spacing(dde.config.real(np)(max(abs(low), abs(high)))))
        if low < high and step > RESOLUTION * (high - low):
            raise ValueError(
                f"{name} from {low:.10g} to {high:.10g} has steps of {step:.3g} in the numbers "
                f"that are computed with: subtract {low:.10g} from all {name}."
            )


def starting_guesses(problem: Problem, given: Mapping[str, float]) -> dict[str, float]:
    """The class's guesses in the units of the measurements, or those that are given.

    Raises:
        ValueError: one is not positive, or of no unknown.
    """
    if unknown := [name for name in given if name not in problem.guesses]:
        raise ValueError(
            f"{problem.name} has no guess of {unknown[0]}. Possible: "
            f"{', '.join(problem.guesses) or 'none'}."
        )
    every = {**problem.guesses, **given}
    check_positive(**{f"the guess of {name}": value for name, value in every.items()})
    scaled = {
        name: value * guess_scale(problem, problem.guess_units.get(name, {}))
        for name, value in problem.guesses.items()
        if name not in given
    }
    return {**scaled, **given}


def scale_network(network: Any, problem: Problem) -> None:
    """Map a network's inputs to the problem's own ranges, and its outputs to the measurements'."""
    if not is_scaled(problem):
        return
    dtype = torch.get_default_dtype()
    lengths, own_lengths = extents(problem)
    ratio = torch.as_tensor(own_lengths / lengths, dtype=dtype)
    lows = torch.tensor([problem.domain[name][0] for name in problem.ranges], dtype=dtype)
    own_lows = torch.tensor([problem.ranges[name][0] for name in problem.ranges], dtype=dtype)
    means, sizes = levels(problem)
    own = example(type(problem))
    if own is None:
        factors, shifts = sizes / problem.network_scale, means
    else:
        own_means, own_sizes = levels(own)
        factors = sizes / own_sizes
        shifts = means - factors * own_means
    factor, shift = (torch.as_tensor(x, dtype=dtype) for x in (factors, shifts))
    features, outputs = network._input_transform, network._output_transform

    def inner(x: torch.Tensor) -> torch.Tensor:
        return own_lows + (x - lows) * ratio

    network.apply_feature_transform(lambda x: inner(x) if features is None else features(inner(x)))
    network.apply_output_transform(
        lambda x, y: shift + factor * (y if outputs is None else outputs(inner(x), y))
    )


def scaled_weights(problem: Problem) -> list[float] | None:
    """The problem's loss weights, in the units of its measurements."""
    weights = problem.loss_weights()
    if not is_scaled(problem):
        return weights
    sizes = term_sizes(problem)
    own = example(type(problem))
    own_sizes = [1.0] * len(sizes) if own is None else term_sizes(own)
    return [
        weight * (own_size / size) ** 2
        for weight, size, own_size in zip(
            weights or [1.0] * len(sizes), sizes, own_sizes, strict=True
        )
    ]


def term_sizes(problem: Problem) -> list[float]:
    """The typical size of each term of the loss, in its order.

    Raises:
        ValueError: a residual is not of the shape (n, 1), or the equations have no finite size.
    """
    _, sizes = levels(problem)
    equations = _sizes_of(problem, problem.residual)
    return [
        *equations,
        *(_size_of_condition(problem, condition, sizes) for condition in problem.conditions()),
        *(float(size) for size in sizes[: len(problem.measured)]),
    ]


def _size_of_condition(problem: Problem, condition: Any, sizes: Array) -> float:
    function = getattr(condition, "func", None)
    if isinstance(condition, (dde.icbc.OperatorBC, dde.icbc.PointSetOperatorBC)) and function:
        return _sizes_of(problem, lambda x, y: function(x, y, x.detach().cpu().numpy()))[0]
    component = getattr(condition, "component", 0)
    size = float(np.mean(sizes[component]))
    if isinstance(condition, (dde.icbc.NeumannBC, dde.icbc.RobinBC)):
        size /= float(np.mean(extents(problem)[0]))
    return size


def _sizes_of(problem: Problem, function: Any) -> list[float]:
    """Root mean squares of what a function of points and outputs gives, for random fields."""
    rng = np.random.default_rng(0)
    means, sizes = levels(problem)
    lows, highs = np.array([problem.domain[name] for name in problem.coordinates]).T
    dtype = torch.get_default_dtype()
    squares = []
    for _ in range(FIELDS):
        unit = rng.uniform(size=(POINTS, len(lows)))
        waves = np.pi * rng.normal(size=(len(lows), len(sizes), WAVES))
        phases = rng.uniform(0, 2 * np.pi, (len(sizes), WAVES))
        x = torch.as_tensor(lows + (highs - lows) * unit, dtype=dtype).requires_grad_()
        at, width = (torch.as_tensor(side, dtype=dtype) for side in (lows, highs - lows))
        angles = torch.einsum("nd,dmk->nmk", (x - at) / width, torch.as_tensor(waves, dtype=dtype))
        swing = (angles + torch.as_tensor(phases, dtype=dtype)).sin().sum(-1)
        y = (
            torch.as_tensor(means, dtype=dtype)
            + torch.as_tensor(sizes, dtype=dtype) * swing * (2 / WAVES) ** 0.5
        )
        dde.grad.clear()
        try:
            found = function(x, y)
        finally:
            dde.grad.clear()
        found = found if isinstance(found, (list, tuple)) else [found]
        squares.append([float(part.detach().square().mean()) for part in found])
    rms = np.sqrt(np.mean(squares, axis=0))
    if not (np.isfinite(rms).all() and (rms > 0).all()):
        raise ValueError(
            f"The equations of {problem.name} have no finite size for fields like the measurements "
            f"(root mean squares of the residuals: {', '.join(f'{r:g}' for r in rms)}): do domain "
            "and units fit?"
        )
    return [float(r) for r in rms]
