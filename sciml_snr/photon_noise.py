r"""Noise whose variance grows with the brightness: photons that are counted (Poisson noise).

.. math:: \operatorname{Var} = \text{gain} \cdot \text{mean} + \text{offset}

The gain is how much one photon adds to the image's numbers. The offset is the variance where there
is no light: that of the electronics, less gain times the number that stands for black. Both are
read off one image: the variance of small blocks' finest details, against the blocks' brightness.

Source: A. Foi, M. Trimeche, V. Katkovnik and K. Egiazarian, *IEEE Trans. Image Process.* 17 (2008)
1737.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import scipy.ndimage
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from .measure.twins import as_array

Array = NDArray[np.float64]

BINS = 12
"""Ranges of brightness, of as many blocks each."""
SIDE = 4
"""Details along a side of a block; a detail is made from 2 x 2 pixels."""
LEAST = 2 * BINS
"""Blocks that a line needs."""
SIGNIFICANT = 3.0
"""Standard errors by which an offset must differ from 0; a smaller one counts as none."""
DARKEST = 0.05
"""No variance is taken to be less than this share of the mean one: where there are hardly any
photons their number says little of how many are to be expected."""
WIDTH = 1.5
"""Of the window in which the brightness around a pixel is averaged, in pixels."""
RATIO = 1.5
"""Of the variances at the bright and the dark end that counts as growth."""


@dataclass(frozen=True)
class PhotonNoise:
    """The line that the noise's variance follows.

    Attributes:
        gain, offset: variance = gain * mean + offset, in units of the image.
        gain_error, offset_error: their standard errors; 0 for what was given.
    """

    gain: float
    offset: float
    gain_error: float = 0.0
    offset_error: float = 0.0

    def sigma(self, mean: ArrayLike) -> Array:
        """Standard deviation of the noise at each pixel.

        Args:
            mean: of the pixels without noise, or an estimate of it; any shape.
        """
        variance = self.gain * as_array(mean) + self.offset
        typical = float(np.nanmean(np.maximum(variance, 0.0)))
        found: Array = np.sqrt(np.maximum(variance, DARKEST * typical))
        return found

    def __str__(self) -> str:
        return f"variance {self.gain:.3g} x brightness {self.offset:+.3g}"


def estimate_photon_noise(
    image: ArrayLike, gain: float | None = None, offset: float | None = None
) -> PhotonNoise:
    """How does the variance of an image's noise grow with its brightness?

    An offset of less than three of its standard errors is taken for 0.

    Args:
        image: (H, W), or slices of a volume (..., H, W); NaN where pixels are missing.
        gain, offset: what is known of the line.

    Returns:
        The line with its standard errors. On crops of 128 x 128 pixels of photographs the gain
        comes out between 0.95 and 1.2 of the truth: texture counts as noise.

    Raises:
        ValueError: too few blocks of 8 x 8 pixels are known, or the variance does not grow.
    """
    if gain is not None and offset is not None:
        return PhotonNoise(float(gain), float(offset))
    pixels = as_array(image)
    too_few = (
        "The gain cannot be estimated: fewer than "
        f"{LEAST} blocks of {2 * SIDE} x {2 * SIDE} pixels are wholly known. Give gain and offset."
    )
    if pixels.ndim < 2:
        raise ValueError(f"image has the shape {pixels.shape}: give (H, W).")
    means, variances = _blocks(pixels, SIDE)
    if len(means) < LEAST:
        raise ValueError(too_few)
    x, y = _by_brightness(means, variances, SIDE)
    if not (y.mean() > 0 and np.ptp(x) > 0):
        raise ValueError("The gain cannot be estimated: the image shows no noise.")
    if gain is not None:
        found = _line(x, y - gain * x, [np.ones_like(x)], y)
        own = _significant(found[0][0], found[1][0])
        return PhotonNoise(float(gain), own, 0.0, found[1][0])
    if offset is None:
        (slope, start), (slope_error, start_error) = _line(x, y, [x, np.ones_like(x)], y)
        if slope > 0 and abs(start) > SIGNIFICANT * start_error:
            return PhotonNoise(slope, start, slope_error, start_error)
        offset = 0.0
    (slope,), (slope_error,) = _line(x, y - offset, [x], y)
    if not slope > 0:
        raise ValueError(
            "The variance does not grow with the brightness (gain "
            f"{slope:.3g}): this is no Poisson noise, or the image's numbers are not "
            'proportional to light. Leave noise="poisson" out, or give gain and offset.'
        )
    return PhotonNoise(slope, float(offset), slope_error)


def brightness(image: ArrayLike) -> Array:
    """Mean of the pixels around each one, without its own: its noise must not decide its weight.

    Args:
        image: any number of axes; NaN where pixels are missing, which are filled in.
    """
    pixels = as_array(image)
    known = np.isfinite(pixels)
    filled = np.where(known, pixels, 0.0)
    point = np.zeros([13] * pixels.ndim)
    point[(6,) * pixels.ndim] = 1.0
    own = float(scipy.ndimage.gaussian_filter(point, WIDTH).max())

    def around(x: Array) -> Array:
        found: Array = scipy.ndimage.gaussian_filter(x, WIDTH, mode="constant") - own * x
        return found

    weight = around(known.astype(float))
    with np.errstate(invalid="ignore", divide="ignore"):
        found: Array = np.where(weight > 1e-6, around(filled) / weight, np.nanmean(pixels))
    return found


def growth(pixels: Array) -> tuple[float, float]:
    """Gain and offset of a variance that clearly grows with the brightness; 0, 0 where it does not,
    and of an image too small to tell.

    Args:
        pixels: (H, W), finite.
    """
    side = 2 * SIDE
    means, variances = _blocks(pixels, side)
    if len(means) < BINS:
        return 0.0, 0.0
    x, y = _by_brightness(means, variances, side)
    if not (y.mean() > 0 and np.ptp(x) > 0):
        return 0.0, 0.0
    weights = 1 / (y + 0.1 * y.mean())
    gain, offset = np.polyfit(x, y, 1, w=weights)
    fit = gain * x + offset
    explained = 1 - np.square(weights * (y - fit)).sum() / np.square(weights * (y - y.mean())).sum()
    grows = gain > 0 and explained > 0.85 and y.max() > RATIO * max(y.min(), 1e-300)
    return (float(gain), float(offset)) if grows and stats.spearmanr(x, y)[0] > 0.9 else (0.0, 0.0)


def _blocks(pixels: Array, side: int) -> tuple[Array, Array]:
    """Means, and mean squares of the diagonal details, of all blocks that are wholly known."""
    height, width = (length // 2 * 2 for length in pixels.shape[-2:])
    a, b = pixels[..., :height:2, :width:2], pixels[..., :height:2, 1:width:2]
    c, d = pixels[..., 1:height:2, :width:2], pixels[..., 1:height:2, 1:width:2]
    details, means = (a - b - c + d) / 2, (a + b + c + d) / 4
    down, right = (length // side for length in details.shape[-2:])

    def in_blocks(x: Array) -> Array:
        cut = x[..., : down * side, : right * side]
        cut = cut.reshape(-1, down, side, right, side).swapaxes(2, 3)
        found: Array = cut.reshape(-1, side**2)
        return found

    squares, levels = np.square(in_blocks(details)).mean(axis=1), in_blocks(means).mean(axis=1)
    known = np.isfinite(squares)
    return levels[known], squares[known]


def _by_brightness(means: Array, variances: Array, side: int) -> tuple[Array, Array]:
    """Brightness and variance of the noise of each range: the lower quartile of the blocks'
    variances, for texture is in the upper ones."""
    groups = np.array_split(np.argsort(means), BINS)
    quiet = stats.chi2(side**2).ppf(0.25) / side**2
    x = np.array([means[group].mean() for group in groups])
    y = np.array([np.quantile(variances[group], 0.25) for group in groups]) / quiet
    return x, y


def _line(
    x: Array, target: Array, columns: list[Array], variances: Array
) -> tuple[list[float], list[float]]:
    """Coefficients and their standard errors by least squares, the larger a variance the less it
    counts: its error goes with it."""
    design = np.stack(columns, axis=1)
    rest, least = variances - target, 0.05 * float(variances.mean())
    level = np.full_like(variances, float(variances.mean()))
    for _ in range(5):
        weights = 1 / np.maximum(level, least)
        weighted = design * weights[:, None]
        found = np.linalg.lstsq(weighted, target * weights, rcond=None)[0]
        level = design @ found + rest
    left = (target - design @ found) * weights
    scale = float(left @ left) / (len(x) - len(columns))
    errors = np.sqrt(scale * np.diag(np.linalg.inv(weighted.T @ weighted)))
    return [float(c) for c in found], [float(e) for e in errors]


def _significant(value: float, error: float) -> float:
    return value if abs(value) > SIGNIFICANT * error and math.isfinite(value) else 0.0
