r"""Standard deviation of measurement errors, from the measurements: for those who do not know it.

Four situations, four estimators: an image, scattered points of a smooth field, repeated
measurements, and the residuals of a fit whose degrees of freedom are known. All assume errors that
are independent and of one size; where sizes differ, the estimate is about their root mean square.
Each returns a :class:`SigmaEstimate`, a float that goes wherever a ``sigma`` is asked for.

The standard errors hold for Gaussian errors. They do not contain the bias, which comes from what
is not noise and looks like it: texture in an image, curvature between neighbouring points. It is
positive, an estimate too large.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import scipy.sparse
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import cKDTree

from .measure.twins import as_array

Array = NDArray[np.float64]

MIN_DOF = 5  # degrees of freedom; with five the standard error is a third of sigma
MIN_SIDE = 8  # pixels; at 8 x 8 the wavelet estimate spreads by 30 % and is 8 % low
MIN_POINTS = 10
# Standard error of the median absolute deviation of m normals, over sigma and times sqrt(m):
# 1 / (2 q 2 phi(q)) at the quartile q = 0.674. An image has a quarter as many diagonal details as
# pixels.
_MAD_ERROR = 1.1664
# Relative size below which a direction of the points counts as none, and a plane as reproduced.
_TOLERANCE = 1e-6


@dataclass(frozen=True, eq=False)
class SigmaEstimate(float):
    """An estimated standard deviation: a float that knows how far off it may be.

    It is the number ``sigma`` in every computation and comparison, and in ``torch.as_tensor``.

    Attributes:
        sigma: the estimate, in units of the measurements.
        standard_error: standard deviation of ``sigma`` over the errors, in the same units, if they
            are Gaussian and bias is small.
        n: how many measurements it is made from.
        method: how, in words.
    """

    sigma: float
    standard_error: float
    n: int
    method: str

    def __new__(cls, sigma: float, *_: Any, **__: Any) -> SigmaEstimate:
        return super().__new__(cls, sigma)

    def __str__(self) -> str:
        return f"sigma {self.sigma:.3g} +- {self.standard_error:.1g} ({self.method})"


@overload
def estimate_sigma_image(image: ArrayLike, channel_axis: None = None) -> SigmaEstimate: ...
@overload
def estimate_sigma_image(image: ArrayLike, channel_axis: int) -> tuple[SigmaEstimate, ...]: ...
def estimate_sigma_image(
    image: ArrayLike, channel_axis: int | None = None
) -> SigmaEstimate | tuple[SigmaEstimate, ...]:
    """Standard deviation of the noise of an image: median of its finest diagonal details.

    Texture and edges are taken for noise: crops of photographs with 8-bit values and noise of 15
    come out between 0.98 and 1.07 of it, a lawn at 1.3. Values clipped to the range of the file
    come out low: noise of 25 by up to 17 % in a dark crop.

    Args:
        image: (H, W), or (H, W, C) with the axis of the channels named; integers are taken as they
            are, not rescaled to [0, 1].
        channel_axis: the axis of the channels.

    Returns:
        The estimate in units of the image; for an image with channels a tuple, one per channel.

    Raises:
        ValueError: the image is of another shape, too small, constant, or not finite.

    Source: D. Donoho and I. Johnstone, Biometrika 81 (1994) 425, in scikit-image.
    """
    pixels = as_array(image)
    dims = 2 if channel_axis is None else 3
    if pixels.ndim != dims:
        raise ValueError(
            f"image has the shape {pixels.shape}: give (H, W), or (H, W, C) and channel_axis=-1."
        )
    _check_finite("image", pixels, "crop them away, or fill them in.")
    if channel_axis is None:
        return _wavelet_estimate(pixels)
    return tuple(map(_wavelet_estimate, np.moveaxis(pixels, channel_axis, 0)))


def _wavelet_estimate(channel: Array) -> SigmaEstimate:
    from skimage.restoration import estimate_sigma  # takes a second or two

    # Of an odd length, the last details are half made of mirrored pixels: 33 x 33 is 11 % low.
    height, width = (length // 2 * 2 for length in channel.shape)
    if min(height, width) < MIN_SIDE:
        raise ValueError(
            f"image of {channel.shape[0]} x {channel.shape[1]} pixels: the estimate needs at least "
            f"{MIN_SIDE} x {MIN_SIDE}. Is channel_axis the right one?"
        )
    channel = channel[:height, :width]
    if np.ptp(channel) == 0:
        raise ValueError(
            f"image is constant ({channel[0, 0]:g}): it shows no noise. Leave out such a channel, "
            "an alpha channel for instance."
        )
    sigma = float(estimate_sigma(channel))
    if math.isnan(sigma):  # scikit-image leaves out details that are exactly 0
        raise ValueError("image has no diagonal details at all: it shows no noise.")
    return SigmaEstimate(
        sigma,
        sigma * _MAD_ERROR / math.sqrt(channel.size / 4),
        channel.size,
        f"wavelet details of {height} x {width} pixels",
    )


def estimate_sigma_scattered(
    points: ArrayLike, values: ArrayLike, neighbors: int | None = None
) -> SigmaEstimate | tuple[SigmaEstimate, ...]:
    r"""Standard deviation of the error of a smooth field's values at scattered points.

    Every value is predicted from its k nearest neighbours by a local linear fit, with the weights w
    of least norm that reproduce linear functions. With :math:`r = y_i - \sum_j w_j y_j`,

    .. math::
        \mathbb E\, r^2 = \sigma^2 (1 + |w|^2) + \text{bias}^2, \qquad
        \hat\sigma^2 = \operatorname{mean} \frac{r^2}{1 + |w|^2},

    and :math:`\hat\sigma^2`, a quadratic form of the values, has a known variance. A position that
    was measured repeatedly adds the scatter of its repeats instead, which has no bias.

    The bias is small where a field is nearly linear across k + 1 points: with errors of a tenth of
    its amplitude, a sine's period wants 30 points (16 give an estimate 28 % too large). A jump
    counts as noise. Coordinates are scaled to unit standard deviation; directions in which the
    points do not extend (initial values: t = 0) do not matter.

    Args:
        points: (n, d) with d = 1, 2 or 3, or (n,).
        values: (n,), or (n, m) of m components.
        neighbors: k; by default, 2 more than the directions the points extend in. More lowers the
            standard error and raises the bias.

    Returns:
        The estimate in units of the values; for (n, m) a tuple, one per component.

    Raises:
        ValueError: shapes do not fit, entries are not finite, there are too few points, or
            ``neighbors`` is out of range.

    Sources: J. Rice, Ann. Statist. 12 (1984) 1215; T. Gasser, L. Sroka and C. Jennen-Steinmetz,
    Biometrika 73 (1986) 625; P. Hall, J. Kay and D. Titterington, Biometrika 77 (1990) 521;
    neighbours in d dimensions: D. Evans and A. Jones, Proc. R. Soc. A 464 (2008) 2831.
    """
    x, y = as_array(points), as_array(values)
    x = x[:, None] if x.ndim == 1 else x
    if x.ndim != 2 or y.ndim not in (1, 2) or len(x) != len(y):
        raise ValueError(
            f"points {x.shape} and values {y.shape} do not fit: give (n, d), and (n,) or (n, m)."
        )
    if not 1 <= x.shape[1] <= 3:
        raise ValueError(
            f"points has {x.shape[1]} coordinates: neighbours are near enough in 1 to 3 only. "
            "Measure repeatedly, and use estimate_sigma_repeats."
        )
    n, needed = len(x), max(MIN_POINTS, 3 * (x.shape[1] + 2))
    if n < needed:
        raise ValueError(f"{n} points: the estimate needs at least {needed}. Set sigma by hand.")
    _check_finite("points", x, "leave those measurements out.")
    _check_finite("values", y, "leave those measurements out.")
    positions, labels = np.unique(_scaled(x), axis=0, return_inverse=True)
    positions = _extended(positions)
    places, rank = positions.shape
    if neighbors is not None and not rank + 1 <= neighbors < places:
        raise ValueError(
            f"neighbors must be from {rank + 1} to {places - 1} for points that extend in {rank} "
            f"direction(s) and have {places} positions, got {neighbors}."
        )
    columns = y.reshape(n, -1) - y.mean(axis=0)
    means, counts, scatter = _within(columns, labels.reshape(-1))
    k = min(neighbors or rank + 2, places - 1)
    rows = _residual_rows(positions, counts, k)
    residuals = rows @ (means * np.sqrt(counts)[:, None])
    used = len(residuals)
    dof = n - places + used
    if dof < MIN_DOF:
        raise ValueError(
            f"Only {dof} of {n} points have neighbours that predict them or repeats; "
            f"{MIN_DOF} are needed. Set sigma by hand."
        )
    # Residuals are independent of repeats' scatter, whose sum of squares has variance 2 (n-places).
    spread = math.sqrt(2 * (n - places + (rows @ rows.T).power(2).sum())) / dof
    repeats = int(counts[counts > 1].sum())
    parts = [f"local-linear residuals of {used} points"] if used else []
    parts += [f"scatter of {repeats} repeats"] if repeats else []
    estimates = tuple(
        SigmaEstimate(sigma, sigma * spread / 2, used + repeats, " and ".join(parts))
        for sigma in np.sqrt((scatter + (residuals**2).sum(axis=0)) / dof).tolist()
    )
    return estimates[0] if y.ndim == 1 else estimates


def _scaled(x: Array) -> Array:
    """Points (n, d) at unit standard deviation; a coordinate that does not vary becomes 0."""
    varies = np.ptp(x, axis=0) > 1e-12 * np.abs(x).max(axis=0)
    scale = np.where(varies, x.std(axis=0), 1)
    return np.where(varies, (x - x.mean(axis=0)) / scale, 0.0)


def _extended(positions: Array) -> Array:
    """Positions (p, d) in the rank <= d directions they extend in; distances stay."""
    centered = positions - positions.mean(axis=0)
    _, size, directions = np.linalg.svd(centered, full_matrices=False)
    kept: Array = centered @ directions[size > _TOLERANCE * max(size[0], 1)].T
    return kept


def _residual_rows(positions: Array, counts: Array, k: int) -> Any:
    """Residuals of the positions measured once, as a sparse matrix, a row of norm 1 for each.

    Columns are the positions, for the mean there times the root of its count: white noise.
    Positions outside the plane, line or point spanned by their neighbours have no row.
    """
    places, rank = positions.shape
    once = np.flatnonzero(counts == 1)
    if len(once) == 0 or k < 1:
        return scipy.sparse.csr_array((0, places))
    near = cKDTree(positions).query(positions[once], k + 1)[1]
    itself = near == once[:, None]
    itself[~itself.any(axis=1), -1] = True  # k + 1 others as near as itself
    near = near[~itself].reshape(-1, k)
    away = positions[near] - positions[once][:, None]
    away /= np.maximum(np.abs(away).max(axis=(1, 2), keepdims=True), np.finfo(float).tiny)
    plane = np.concatenate([np.ones((len(once), k, 1)), away], axis=2)
    plane = (plane * np.sqrt(counts[near])[:, :, None]).transpose(0, 2, 1)
    weights = np.linalg.pinv(plane, rcond=_TOLERANCE)[:, :, 0]
    off = np.einsum("idj,ij->id", plane, weights) - np.eye(rank + 1)[0]
    predicted = np.abs(off).max(axis=1) < _TOLERANCE
    once, near, weights = once[predicted], near[predicted], weights[predicted]
    entries = np.hstack([np.ones((len(once), 1)), -weights])
    entries /= np.linalg.norm(entries, axis=1, keepdims=True)
    row = np.repeat(np.arange(len(once)), k + 1)
    column = np.hstack([once[:, None], near])
    return scipy.sparse.csr_array(
        (entries.reshape(-1), (row, column.reshape(-1))), shape=(len(once), places)
    )


def estimate_sigma_repeats(values: ArrayLike, groups: ArrayLike | None = None) -> SigmaEstimate:
    """Standard deviation of repeated measurements: pooled over groups, each around its own mean.

    Args:
        values: (n,) with groups given, else (groups, repeats).
        groups: (n,), equal for repeated measurements of the same quantity: numbers or strings.

    Returns:
        The estimate in units of the values.

    Raises:
        ValueError: shapes do not fit, entries are not finite, or there are fewer than five degrees
            of freedom (measurements less groups).
    """
    y = as_array(values)
    if groups is None and y.ndim == 2:
        labels = np.repeat(np.arange(len(y)), y.shape[1])
        y = y.reshape(-1)
    else:
        labels = np.asarray(groups)
    if y.ndim != 1 or labels.shape != y.shape:
        raise ValueError(
            f"values {y.shape} and groups {labels.shape} do not fit: give (n,) and (n,), or values "
            "as (groups, repeats) alone."
        )
    _check_finite("values", y, "leave them out, and give values and groups as (n,) and (n,).")
    if labels.dtype.kind == "f":
        _check_finite("groups", labels, "leave those measurements out.")
    try:
        _, labels = np.unique(labels, return_inverse=True)
    except TypeError as error:  # numbers and strings are not to be sorted together
        raise ValueError("groups must be all numbers or all strings, and none missing.") from error
    _, counts, scatter = _within(y[:, None] - (y.mean() if y.size else 0.0), labels)
    dof = len(y) - len(counts)
    if dof < MIN_DOF:
        raise ValueError(
            f"{len(y)} measurements in {len(counts)} groups leave {dof} degrees of freedom: the "
            f"estimate needs at least {MIN_DOF}."
        )
    sigma = math.sqrt(float(scatter[0]) / dof)
    method = f"scatter of {len(y)} measurements in {len(counts)} groups"
    return SigmaEstimate(sigma, sigma / math.sqrt(2 * dof), len(y), method)


def _within(columns: Array, labels: NDArray[np.intp]) -> tuple[Array, Array, Array]:
    """Means (p, m) and counts (p,) of the groups, and sums of squares (m,) around the means."""
    counts = np.bincount(labels).astype(float)
    sums = np.zeros((len(counts), columns.shape[1]))
    np.add.at(sums, labels, columns)
    means = sums / counts[:, None]
    return means, counts, ((columns - means[labels]) ** 2).sum(axis=0)


def estimate_sigma_residuals(residual: ArrayLike, dof: float) -> SigmaEstimate:
    r"""Standard deviation of the errors from a fit's residuals, :math:`\sqrt{RSS / (n - dof)}`.

    Right when the fit has no bias: too large before it has learned the signal.

    Args:
        residual: fit minus measurements, n entries in any shape.
        dof: degrees of freedom that the fit spent on these measurements, :math:`0 \le dof < n`:
            the memorized share times n (0 where the estimated share is negative).

    Returns:
        The estimate in units of the residual.

    Raises:
        ValueError: ``dof`` is negative or leaves fewer than five degrees of freedom, or residuals
            are missing or not finite.
    """
    r = as_array(residual)
    if r.size == 0:
        raise ValueError("residual is empty.")
    _check_finite("residual", r, "has the run diverged?")
    if not dof >= 0:
        raise ValueError(f"dof must be >= 0, got {dof:g}: take 0 for a share below 0.")
    if not r.size - dof >= MIN_DOF:
        raise ValueError(
            f"{r.size} residuals of a fit with {dof:g} degrees of freedom leave {r.size - dof:g}: "
            f"the estimate needs at least {MIN_DOF}."
        )
    sigma = math.sqrt(float((r**2).sum()) / (r.size - dof))
    method = f"{r.size} residuals less {dof:.3g} degrees of freedom"
    return SigmaEstimate(sigma, sigma / math.sqrt(2 * (r.size - dof)), r.size, method)


def _check_finite(name: str, a: NDArray[Any], advice: str) -> None:
    bad = a.size - int(np.isfinite(a).sum())
    if bad:
        raise ValueError(f"{name} has {bad} of {a.size} entries that are NaN or infinite: {advice}")
