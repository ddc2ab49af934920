r"""How fine are the details of an image that stand out of its noise?

The discrete cosine transform of white noise of standard deviation sigma has the mean square
:math:`\sigma^2` at all frequencies. That of correlated noise has more at low frequencies. It has
less at high ones, but this is not counted: a network that starts there can make all the noise
below. What an image has on top of the noise N, on average over all directions, is its own power
S(f). The best linear filter would keep the share :math:`S / (S + N)` of every coefficient
(N. Wiener, *Extrapolation, Interpolation, and Smoothing of Stationary Time Series*, 1949). The sum
of these shares is the number of coefficients that can be told from noise. The frequency below which
there are as many of them is that of the finest details that a fit has to learn.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import scipy.fft

from ..image_noise import Correlation
from ..photon_noise import brightness
from .picture import Picture
from .samples import Array

GAPS = 0.1
"""Share of the pixels that may be missing, and are filled in."""
FEW = 16
"""Coefficients in the lowest ranges of frequencies."""
CORNER = 0.6
"""Cycles per pixel beyond which all counts as noise, where it is more than sigma says: sigma may be
too small, as where noise is clipped or outliers are left."""
CERTAIN = 2.0
"""Standard errors by which a range's mean square must exceed the noise's."""


def detail_frequency(
    picture: Picture,
    sigma: Sequence[float],
    correlations: Sequence[Correlation] | None = None,
) -> float | None:
    """Up to which frequency the image stands out of its noise, in cycles per pixel.

    Args:
        picture: the image or volume.
        sigma: standard deviation of the noise per channel, in units of the image.
        correlations: how errors go together, per channel; None: not at all.

    Returns:
        Of the channel with the finest details; None where more than 10 % of the pixels are missing.
    """
    if picture.missing.mean() > GAPS:
        return None
    channels = picture.values.T.reshape(-1, *picture.shape)
    kinds = correlations or [Correlation()] * len(channels)
    found = [
        _of_channel(channel, float(own), kind)
        for channel, own, kind in zip(channels, sigma, kinds, strict=True)
    ]
    return max(found)


def _of_channel(channel: Array, sigma: float, kind: Correlation) -> float:
    pixels = np.where(np.isfinite(channel), channel, brightness(channel))
    axes = [np.arange(n) / (2 * n) for n in pixels.shape]
    grid = np.meshgrid(*axes, indexing="ij", sparse=True)
    radius = np.sqrt(sum(axis**2 for axis in grid))
    power = scipy.fft.dctn(pixels - pixels.mean(), norm="ortho") ** 2
    alone = 1 - min(1.0, kind.rows + kind.columns)
    level = max(sigma**2, float(power[radius > CORNER].mean()) if (radius > CORNER).any() else 0.0)
    noise = level * np.maximum(alone, kind.spectrum(radius))
    counts = np.ones(pixels.shape, dtype=bool)
    counts.flat[0] = False
    if kind.rows or kind.columns:  # offsets of whole rows are in the first column
        counts[:, 0] = counts[0, :] = False
    order = np.argsort(radius[counts], kind="stable")
    power, noise = power[counts][order], noise[counts][order]
    kept = 0.0
    for part in _ranges(len(order)):
        signal, own = float(power[part].mean()), float(noise[part].mean())
        n = part.stop - part.start
        excess = signal - own
        if excess > CERTAIN * math.sqrt(2 / n) * own:
            kept += n * excess / signal
    share, d = kept / len(order), pixels.ndim
    ball = math.pi ** (d / 2) / math.gamma(d / 2 + 1)  # of radius 1
    return 0.5 * math.pow(share * 2**d / ball, 1 / d)


def _ranges(n: int) -> list[slice]:
    """Ranges of frequencies, of more and more coefficients: a quarter more each."""
    ends = [0]
    while ends[-1] < n:
        ends.append(min(n, ends[-1] + max(FEW, ends[-1] // 4)))
    return [slice(a, b) for a, b in itertools.pairwise(ends)]
