"""What was measured of a field: positions, values and their errors, checked."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import cKDTree
from torch import Tensor, nn

from ..sigma import SigmaEstimate, estimate_sigma_scattered
from .function import Units

Array = NDArray[np.float64]
Operator = Callable[[Callable[[Tensor], Tensor]], Tensor]
"""A field -> its predicted measurements; see :mod:`sciml_snr.fields.operators`."""

MAX_DIMENSIONS = 4
PATCHES, PATCH = 20, 5_000
"""Of more samples than both, sigma is estimated from so many patches of so many neighbours."""
PROBES = 16
"""Waves in the field that tells how much an operator makes of one."""
_ROUND_OFF = 1e-6
"""Noise of less than this, relative to the values' standard deviation, is none."""


@dataclass(frozen=True, eq=False)
class Samples:
    """Measurements of a field, in the user's units."""

    points: Array
    """(n, d) where they were taken; with an operator, the corners of the field's domain (2, d)."""
    values: Array
    """(n, m); what an operator predicts, as a column (n, 1), complex ones as (n, 2)."""
    sigma: tuple[float, ...] | Array
    """Standard deviation of the values' errors: (m,) numbers, or (n, m) in an array."""
    flat: bool = False
    """Whether the values were given as (n,), and are to be returned so."""

    @property
    def sigma_array(self) -> Array:
        """(n, m), or (1, m) where it is the same for all samples."""
        return np.atleast_2d(np.asarray(self.sigma, dtype=float))

    @cached_property
    def typical_sigma(self) -> Array:
        """(m,) of all samples together, those of small error counting more."""
        spread = self.sigma_array
        if not spread.any():
            return np.zeros(spread.shape[1])
        found: Array = np.mean(spread**-2.0, axis=0) ** -0.5
        return found

    def fingerprint(self) -> str:
        """Equal for equal samples."""
        found = hashlib.sha256()
        for array in (self.points, self.values):
            found.update(np.ascontiguousarray(array).tobytes())
        return found.hexdigest()[:16]


def check_samples(x: ArrayLike, y: ArrayLike) -> tuple[Array, Array, bool]:
    """Points (n, d), values (n, m), and whether the latter were (n,).

    Raises:
        ValueError: they cannot be fitted; the message says why.
    """
    points, values = numbers("x", x), numbers("y", y)
    points = points[:, None] if points.ndim == 1 else points
    flat = values.ndim == 1
    values = values[:, None] if flat else values
    if points.ndim != 2 or values.ndim != 2 or len(points) != len(values):
        raise ValueError(
            f"x {np.shape(x)} and y {np.shape(y)} do not fit: give x as (n, d) or (n,), y as (n,) "
            "or (n, m)."
        )
    if len(points) < 2 or values.shape[1] == 0:
        raise ValueError(f"x {np.shape(x)}, y {np.shape(y)}: there is nothing to fit.")
    check_finite("x", points)
    check_finite("y", values)
    check_dimensions(points)
    if (np.ptp(values, axis=0) == 0).all():
        raise ValueError(f"y is constant ({values[0].tolist()}): there is nothing to fit.")
    return points, values, flat


def check_dimensions(points: Array) -> None:
    """Refuse points of too many coordinates, or that do not differ in one.

    Raises:
        ValueError: says which.
    """
    d = points.shape[1]
    if not 1 <= d <= MAX_DIMENSIONS:
        raise ValueError(f"x has {d} coordinates: 1 to {MAX_DIMENSIONS} can be fitted.")
    extent = np.ptp(points, axis=0)
    flat = np.flatnonzero(extent <= 1e-12 * np.abs(points).max(axis=0))
    if flat.size:
        raise ValueError(
            f"Coordinate {flat[0]} of x is the same in all samples ({points[0, flat[0]]:g}): leave "
            "it out."
        )


def numbers(name: str, values: Any) -> Array:
    """An array of real numbers.

    Raises:
        ValueError: it is something else; names it.
    """
    if isinstance(values, np.ma.MaskedArray):
        raise ValueError(f"{name} is a masked array: leave out what is masked.")
    values = values.detach().cpu().numpy() if isinstance(values, Tensor) else values
    try:
        found = np.asarray(values)
    except ValueError:
        raise ValueError(f"{name} must be an array of numbers: its rows differ.") from None
    if found.dtype.kind not in "biuf":
        raise ValueError(f"{name} must be an array of real numbers, got {found.dtype}.")
    return found.astype(np.float64)


def check_finite(name: str, values: Array) -> None:
    """Refuse NaN and infinity.

    Raises:
        ValueError: says how many there are.
    """
    bad = values.size - int(np.isfinite(values).sum())
    if bad:
        raise ValueError(
            f"{name} has {bad} of {values.size} entries that are NaN or infinite: leave those "
            "samples out."
        )


def check_errors(sigma: Any, values: Array) -> tuple[float, ...] | Array:
    """A sigma as it is kept: (m,) numbers, or (n, m) in an array.

    Raises:
        ValueError: it does not fit the values (n, m), or is out of range.
    """
    n, m = values.shape
    found = numbers("sigma", sigma)
    if not (np.isfinite(found) & (found >= 0)).all():
        raise ValueError("sigma must be finite and >= 0 throughout.")
    if found.ndim == 1 and len(found) == n == m and n > 1:
        raise ValueError(
            f"sigma {found.shape} may be one per sample or one per output: give ({n}, 1) or "
            f"(1, {m})."
        )
    if found.size == 1 or found.shape in ((m,), (1, m)):
        one = np.broadcast_to(found.reshape(-1), m)
        kept = sigma if isinstance(sigma, SigmaEstimate) else None
        return tuple(kept if kept is not None else float(s) for s in one)
    if found.shape not in ((n,), (n, 1), (n, m)):
        raise ValueError(
            f"sigma {found.shape} does not fit: give a number, ({m},) for one per output, ({n},) "
            f"for one per sample, or ({n}, {m})."
        )
    found = np.broadcast_to(found.reshape(n, -1), (n, m)).copy()
    exact = int((found == 0).sum())
    if 0 < exact < found.size:
        raise ValueError(
            f"sigma is 0 for {exact} of {found.size} values, and not for the others: give every "
            "value an error, if a small one."
        )
    return found


def estimated_errors(points: Array, values: Array) -> tuple[float, ...]:
    """Standard deviation of the values' errors per output, from neighbouring samples.

    Raises:
        ValueError: it cannot be estimated; says why.
    """
    if len(points) > PATCHES * PATCH:
        chosen = _patches(points)
        points, values = points[chosen], values[chosen]
    try:
        found = estimate_sigma_scattered(points, values)
    except ValueError as error:
        raise ValueError(f"The noise cannot be estimated; give sigma. ({error})") from None
    assert isinstance(found, tuple)
    return tuple(
        SigmaEstimate(0.0, 0.0, s.n, "no noise to be seen") if s < _ROUND_OFF * spread else s
        for s, spread in zip(found, values.std(axis=0), strict=True)
    )


def _patches(points: Array) -> NDArray[np.intp]:
    """Rows of some samples with their neighbours: as dense as all of them are."""
    scaled = points / points.std(axis=0)
    centers = np.random.default_rng(0).choice(len(points), PATCHES, replace=False)
    near = cKDTree(scaled).query(scaled[centers], PATCH)[1]
    return np.unique(near)


def lengths(points: Array, scale: ArrayLike | None) -> tuple[Array, Array]:
    """Middle of the points' box, and what becomes 1 of every coordinate: (d,) each.

    Raises:
        ValueError: scale is not positive, or does not fit.
    """
    d = points.shape[1]
    low, high = points.min(axis=0), points.max(axis=0)
    half = (high - low) / 2
    if scale is not None:
        each = numbers("scale", scale)
        if each.size not in (1, d) or not (np.isfinite(each) & (each > 0)).all():
            raise ValueError(
                f"scale must be a positive number, or one for each of {d} coordinates; got {scale}."
            )
        each = np.broadcast_to(each.reshape(-1), d)
        half = each * float((half / each).max())
    return (low + high) / 2, half


def units_of(samples: Samples, scale: ArrayLike | None) -> Units:
    """Of samples: their box becomes [-1, 1] in each coordinate, values are standardized.

    Raises:
        ValueError: scale is not positive, or does not fit.
    """
    center, length = lengths(samples.points, scale)
    sigma = samples.sigma_array
    weights = np.ones_like(sigma) if not sigma.any() else (samples.typical_sigma / sigma) ** 2
    weights = np.broadcast_to(weights, samples.values.shape)
    mean = np.average(samples.values, axis=0, weights=weights)
    deviation = np.sqrt(
        [
            np.average(v**2, weights=w)
            for v, w in zip((samples.values - mean).T, weights.T, strict=True)
        ]
    )
    deviation = np.where(deviation > 0, deviation, 1.0)
    return Units(*(tuple(map(float, a)) for a in (center, length, mean, deviation)))


def units_by_operator(
    samples: Samples, scale: ArrayLike | None, operator: Operator, outputs: int
) -> Units:
    """Of measurements by an operator: the constant field that explains them best; and how large
    waves of about half the box must be to make as much as it leaves.

    Raises:
        ValueError: the operator makes something else than the measurements.
    """
    center, length = lengths(samples.points, scale)
    rng = np.random.default_rng(0)
    waves = torch.as_tensor(rng.normal(scale=np.pi, size=(len(center), PROBES)) / length[:, None])
    phases = torch.as_tensor(rng.uniform(0, 2 * np.pi, PROBES))
    middle = torch.as_tensor(center)

    def made(field: Callable[[Tensor], Tensor]) -> Array:
        with torch.no_grad():
            rows = as_rows(operator(field), samples.values.shape)
            found: Array = rows.double().cpu().numpy()
            return found

    def constant(value: float) -> Callable[[Tensor], Tensor]:
        return lambda points: points.new_full((len(points), outputs), value)

    def probe(points: Tensor) -> Tensor:
        at = (points - middle.to(points)) @ waves.to(points)
        sum_of_waves = (at + phases.to(points)).cos().sum(dim=1, keepdim=True)
        found: Tensor = (2 / PROBES) ** 0.5 * sum_of_waves.expand(-1, outputs)
        return found

    zero = made(constant(0.0))
    slope, values = made(constant(1.0)) - zero, samples.values - zero
    gain = float((slope**2).sum())
    level = float((slope * values).sum()) / gain if gain > 0 and math.isfinite(gain) else 0.0
    left = values - level * slope
    gain = math.sqrt(float(np.mean((made(probe) - zero) ** 2)))
    size = math.sqrt(float(np.mean(left**2))) / gain if gain > 0 else abs(level)
    size = max(size, abs(level)) if math.isfinite(size) else 0.0
    size = size if size > 0 else 1.0
    mean, deviation = outputs * (level,), outputs * (size,)
    return Units(tuple(center.tolist()), tuple(length.tolist()), mean, deviation)


def as_rows(predicted: Any, shape: tuple[int, ...]) -> Tensor:
    """What an operator has predicted, as the measurements are kept: (n, 1), complex as (n, 2).

    Raises:
        ValueError: it is no tensor, or of another size.
    """
    if not isinstance(predicted, Tensor):
        raise ValueError(f"The operator must return a tensor, got {type(predicted).__name__}.")
    rows = torch.view_as_real(predicted.resolve_conj()) if predicted.is_complex() else predicted
    if rows.numel() != math.prod(shape):
        raise ValueError(
            f"The operator predicts {tuple(predicted.shape)}, which are not the measurements: "
            f"{math.prod(shape)} numbers."
        )
    return rows.reshape(shape)


def on_device(operator: Operator, device: torch.device) -> Operator:
    """The operator with its tensors there, as far as it is a module."""
    return operator.to(device) if isinstance(operator, nn.Module) else operator
