"""An image taken apart for a fit: pixels and channels, what is missing, its noise."""

from __future__ import annotations

import contextlib
import hashlib
import math
import warnings
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..runs.loop import check_memory
from ..sigma import SigmaEstimate, estimate_sigma_image, estimate_sigma_scattered
from .files.pictures import auto_layout, read_image
from .files.source import Array, ImageSource

_BLOCKS = 64
"""Complete blocks of four pixels that an estimate of sigma from them needs."""
_ROUND_OFF = 1e-6
"""Noise of less than this, relative to the image's standard deviation, is none."""
_MAD = 0.6745
"""Median of |N(0, 1)|."""


@dataclass(frozen=True)
class Picture:
    """An image taken apart: numbers to fit, and what is needed to put it together again."""

    pixels: Array
    """As given, the axis of channels last where there is one."""
    channel_axis: int | None
    """Which axis of the image as given counted channels; None where none did."""
    alpha: bool
    """Whether the last channel is an alpha channel, which is kept aside."""
    missing: NDArray[np.bool_]
    """Pixels that are not known, of the shape of one channel."""
    spacing: tuple[float, ...] | None = None
    """Lengths of a pixel or voxel along the axes; None where they are 1."""

    @property
    def sides(self) -> NDArray[np.float64]:
        """(axes,) lengths of a pixel."""
        return np.ones(len(self.shape)) if self.spacing is None else np.array(self.spacing)

    @property
    def longest(self) -> float:
        """Length of the longest axis."""
        return float(np.max(np.array(self.shape) * self.sides))

    @property
    def shape(self) -> tuple[int, ...]:
        """Without channels: (H, W) or (D, H, W)."""
        return self.missing.shape

    @property
    def has_channels(self) -> bool:
        """Whether the last axis of ``pixels`` counts channels."""
        return self.channel_axis is not None

    @cached_property
    def values(self) -> NDArray[np.float64]:
        """(pixels, channels) without alpha; missing ones are NaN."""
        pixels = self.pixels if self.has_channels else self.pixels[..., None]
        pixels = pixels[..., :-1] if self.alpha else pixels
        values = pixels.reshape(-1, pixels.shape[-1]).astype(np.float64)
        values[self.missing.reshape(-1)] = np.nan
        return values

    @cached_property
    def center(self) -> NDArray[np.float64]:
        """(channels,) mean of the known values."""
        mean: NDArray[np.float64] = np.nanmean(self.values, axis=0)
        return mean

    @cached_property
    def scale(self) -> NDArray[np.float64]:
        """(channels,) standard deviation of the known values; 1 for a constant channel."""
        deviation = np.nanstd(self.values, axis=0)
        return np.where(deviation > 0, deviation, 1.0)

    def finished(self, values: NDArray[np.float64]) -> Array:
        """Values of a fit in the range and dtype of the image: rounded, if those are integers."""
        dtype = self.pixels.dtype
        if dtype.kind == "b":
            return values >= 0.5
        if dtype.kind in "iu":
            limits = np.iinfo(dtype)
            return np.clip(np.rint(values), limits.min, limits.max).astype(dtype)
        low, high = np.nanmin(self.values, axis=0), np.nanmax(self.values, axis=0)
        return np.clip(values, low, high).astype(dtype)

    def assembled(self, values: Array, shape: tuple[int, ...], alpha: Array | None) -> Array:
        """(points, channels) -> an image of this shape, with the alpha channel back in place."""
        image = values.reshape(*shape, -1)
        if alpha is not None:
            image = np.concatenate([image, alpha[..., None]], axis=-1)
        return (
            image[..., 0]
            if self.channel_axis is None
            else np.moveaxis(image, -1, self.channel_axis)
        )

    def fingerprint(self) -> str:
        """Equal for equal images with equal missing pixels."""
        found = hashlib.sha256(np.ascontiguousarray(self.pixels).tobytes())
        found.update(np.ascontiguousarray(self.missing).tobytes())
        return found.hexdigest()[:16]


def check_scale(scale: float, shape: tuple[int, ...]) -> None:
    """Refuse a result that is larger than the memory.

    Raises:
        ValueError: the scale is no positive number, or says how much memory it would take.
    """
    if not 0 < scale < math.inf:
        raise ValueError(f"scale must be a positive number, got {scale}.")
    cells = math.prod(max(1.0, scale * n) if n > 4 else n for n in shape)
    check_memory(16 * cells, f"A result of {cells:,.0f} values (scale {scale:g})")


def take_apart(
    image: ArrayLike | ImageSource | str | Path,
    mask: ArrayLike | str | Path | None = None,
    channel_axis: int | str | None = "auto",
    spacing: ArrayLike | None = None,
) -> Picture:
    """Check an image, and tell pixels from channels.

    Args:
        image, mask, channel_axis, spacing: as for :func:`fit_image`.

    Raises:
        ValueError: it cannot be fitted; the message says why.
        FileNotFoundError: there is no such file.
    """
    source = read_image(image)
    axis, alpha = layout(source, channel_axis)
    pixels = source.pixels if axis is None else np.moveaxis(source.pixels, axis, -1)
    shape = pixels.shape if axis is None else pixels.shape[:-1]
    if len(shape) not in (2, 3):
        raise ValueError(
            f"image has the shape {pixels.shape}: give (H, W) or (D, H, W), with channels last or "
            "at channel_axis."
        )
    if math.prod(shape) < 2 or 0 in pixels.shape:
        raise ValueError(f"image of shape {pixels.shape}: there is nothing to fit.")
    colors = pixels[..., :-1] if alpha else pixels
    unknown = ~np.isfinite(colors)
    if source.missing is not None:
        masked = source.missing if axis is None else np.moveaxis(source.missing, axis, -1)
        unknown |= masked[..., :-1] if alpha else masked
    missing: NDArray[np.bool_] = np.array(unknown if axis is None else unknown.any(axis=-1))
    if alpha:
        missing |= _transparent(pixels[..., -1])
    if mask is not None:
        missing |= _mask(mask, shape)
    if missing.all():
        raise ValueError(
            "All pixels of the image are missing: masked, without data, transparent, NaN or "
            "infinite."
        )
    known = colors[~missing].reshape((~missing).sum(), -1)
    if (known == known[0]).all():
        raise ValueError(f"image is constant ({known[0].tolist()}): there is nothing to fit.")
    return Picture(pixels, axis, alpha, missing, check_spacing(spacing, len(shape)))


def _transparent(alpha: Array) -> NDArray[np.bool_]:
    """Pixels of which nothing is to be seen: what color they have says nothing."""
    found = np.asarray(alpha == 0)
    if found.any():
        warnings.warn(
            f"{found.sum()} of {found.size} pixels are transparent (alpha 0): they are missing. "
            "If the last channel is no alpha channel, say channel_axis=-1.",
            stacklevel=4,
        )
    return found


def check_spacing(spacing: ArrayLike | None, axes: int) -> tuple[float, ...] | None:
    """Lengths of a pixel along the axes, a number for each; None for None.

    Raises:
        ValueError: one is not positive, or their number is wrong.
    """
    if spacing is None:
        return None
    found = np.asarray(spacing, dtype=float)
    if found.size not in (1, axes) or not (np.isfinite(found) & (found > 0)).all():
        raise ValueError(
            f"spacing must be a positive number, or one for each of {axes} axes; got {spacing}."
        )
    return tuple(np.broadcast_to(found.reshape(-1), axes).tolist())


def layout(source: ImageSource, channel_axis: int | str | None) -> tuple[int | None, bool]:
    """Which axis counts channels, if one does, and whether the last of them is alpha.

    Args:
        source: the image.
        channel_axis: as for :func:`fit_image`: "auto" is what the source says, or else
            :func:`sciml_snr.fields.files.pictures.auto_layout`.

    Raises:
        ValueError: there is no such axis, or the image holds no real numbers.
    """
    pixels = source.pixels
    if pixels.dtype.kind not in "biuf":
        raise ValueError(f"image holds {pixels.dtype}: give real numbers.")
    if channel_axis == "auto":
        if source.channel_axis == "auto":
            return auto_layout(pixels)
        assert not isinstance(source.channel_axis, str)
        return source.channel_axis, source.alpha
    if channel_axis is None:
        return None, False
    if not isinstance(channel_axis, Integral):
        raise ValueError(f"channel_axis must be an axis, None or 'auto', got {channel_axis!r}.")
    if not -pixels.ndim <= channel_axis < pixels.ndim:
        raise ValueError(f"image of shape {pixels.shape} has no axis {channel_axis}.")
    return int(channel_axis), False


def _mask(mask: ArrayLike | str | Path, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    source = read_image(mask)
    found = source.pixels[..., :-1] if source.alpha else source.pixels
    if found.shape in ((*shape, 1), (*shape, 3)) and (found == found[..., :1]).all():
        found = found[..., 0]  # grey, saved in colors
    if found.shape != shape:
        raise ValueError(f"mask has the shape {found.shape}, the image's pixels {shape}.")
    return found.astype(bool)


def estimate_sigma(picture: Picture) -> tuple[SigmaEstimate, ...]:
    """Standard deviation of the noise per channel, in units of the image.

    A constant channel has none. Integers have the error of rounding at least.

    Raises:
        ValueError: the image is too small, or shows no noise.
    """
    channels = picture.values.T.reshape(-1, *picture.shape)
    return tuple(_channel_sigma(channel, picture) for channel in channels)


def _channel_sigma(channel: NDArray[np.float64], picture: Picture) -> SigmaEstimate:
    known = channel[~picture.missing]
    if np.ptp(known) == 0:
        return SigmaEstimate(0.0, 0.0, known.size, "constant channel")
    try:
        if picture.missing.any():
            found = _sigma_with_gaps(channel)
        elif channel.ndim == 2:
            found = estimate_sigma_image(channel)
        else:
            found = _sigma_of_slices(channel)
    except ValueError as error:
        raise ValueError(f"The noise cannot be estimated; give sigma. ({error})") from None
    return at_least_rounding(found, picture, known)


def at_least_rounding(found: SigmaEstimate, picture: Picture, known: Array) -> SigmaEstimate:
    """An estimate from a channel's known values, or what is known better of them."""
    rounding = 1 / math.sqrt(12) if picture.pixels.dtype.kind in "iu" else 0.0
    if found < rounding:
        return SigmaEstimate(rounding, 0.0, known.size, "rounding")
    if found < _ROUND_OFF * known.std():
        return SigmaEstimate(0.0, 0.0, known.size, "no noise to be seen")
    return found


def _sigma_of_slices(volume: NDArray[np.float64]) -> SigmaEstimate:
    """Median over the slices that show noise."""
    found = []
    for page in volume:
        with contextlib.suppress(ValueError):
            found.append(estimate_sigma_image(page))
    if not found:
        estimate_sigma_image(volume[0])  # says why
    error = float(np.mean([page.standard_error for page in found])) / math.sqrt(len(found))
    middle = float(np.median(found))
    return SigmaEstimate(middle, error, volume.size, f"median of {len(found)} slices")


def _sigma_with_gaps(channel: NDArray[np.float64]) -> SigmaEstimate:
    """From scattered neighbours, or from complete blocks of four pixels where that is less.

    Blocks: the median of the diagonal details (a - b - c + d) / 2, and a standard error on top, for
    there may be few of them. Both take texture for noise, blocks, being smaller, less of it.
    """
    known = np.argwhere(np.isfinite(channel))
    scattered = estimate_sigma_scattered(known, channel[tuple(known.T)])
    assert isinstance(scattered, SigmaEstimate)
    a, b = channel[..., :-1, :-1], channel[..., :-1, 1:]
    c, d = channel[..., 1:, :-1], channel[..., 1:, 1:]
    details = (a - b - c + d) / 2
    details = np.abs(details[np.isfinite(details)])
    if details.size < _BLOCKS:
        return scattered
    sigma = float(np.median(details)) / _MAD
    error = sigma * 1.17 / math.sqrt(details.size)
    method = f"{details.size} complete blocks of 2 x 2"
    return min(scattered, SigmaEstimate(sigma + error, error, details.size, method))


def check_sigma(sigma: ArrayLike, channels: int) -> tuple[float, ...]:
    """A number for all channels or one for each, as a tuple of one for each.

    Raises:
        ValueError: their number is wrong, or one is negative or not finite.
    """
    found = np.asarray(sigma, dtype=float)
    if found.ndim > 1 or found.size not in (1, channels):
        raise ValueError(
            f"sigma has {found.size} entries: give one number, or one for each of {channels} "
            "channel(s) (alpha does not count)."
        )
    if not (np.isfinite(found) & (found >= 0)).all():
        raise ValueError(f"sigma must be finite and >= 0, got {found.tolist()}.")
    return tuple(np.broadcast_to(found, channels).tolist())
