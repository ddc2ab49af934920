"""An image taken apart for a fit: files, pixels and channels, what is missing, its noise."""

from __future__ import annotations

import contextlib
import hashlib
import math
import tempfile
import warnings
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..runs.folder import check_can_write
from ..runs.loop import check_memory
from ..sigma import SigmaEstimate, estimate_sigma_image, estimate_sigma_scattered

Array = NDArray[Any]

_BLOCKS = 64
"""Complete blocks of four pixels that an estimate of sigma from them needs."""
_ROUND_OFF = 1e-6
"""Noise of less than this, relative to the image's standard deviation, is none."""
_TIFF = (".tif", ".tiff")
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


def read_image(image: ArrayLike | str | Path) -> Array:
    """An array as it is; a file by imageio: PNG, JPEG, TIFF (all pages), and what else it knows.

    Of colors with 16 bits in a PNG file it reads 8, with a warning: they want a TIFF file, or an
    array. Planes of color in a TIFF file, which three or four pages may be declared to be by a
    library's guess, are pages here: they want ``channel_axis=0``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file cannot be read as an image, or the array is a masked one.
    """
    if isinstance(image, np.ma.MaskedArray):
        raise ValueError("image is a masked array: give its data as image, its mask as mask=.")
    if not isinstance(image, (str, Path)):
        return np.asarray(image)
    path = Path(image)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    with warnings.catch_warnings(record=True) as said:  # of an error enough is said without them
        warnings.simplefilter("always")
        try:
            found = _read(path)
        except Exception as error:  # every plugin has errors of its own
            raise ValueError(f"{path} cannot be read as an image: {error}") from None
    for warning in said:
        warnings.warn(warning.message, warning.category, stacklevel=2)
    return found


def _read(path: Path) -> Array:
    import imageio.v3 as iio

    kind = path.suffix.lower()
    if kind == ".npy":
        return np.asarray(np.load(path))
    if kind in _TIFF:
        return _read_tiff(path)
    if kind in (".jpg", ".jpeg") and iio.immeta(path).get("mode") == "CMYK":
        return np.asarray(iio.imread(path, mode="RGB"))
    if kind == ".png" and path.read_bytes()[24:26] in (b"\x10\x02", b"\x10\x04", b"\x10\x06"):
        warnings.warn(
            f"{path} has colors of 16 bits, of which 8 are read: give a TIFF file, or an array.",
            stacklevel=5,
        )
    return np.asarray(iio.imread(path))


def _read_tiff(path: Path) -> Array:
    """All pages, also those that were written one by one (a series each)."""
    import imageio.v3 as iio
    import tifffile

    try:
        file = tifffile.TiffFile(path)
    except tifffile.TiffFileError:
        return np.asarray(iio.imread(path))  # of another format
    with file:
        first, *others = file.series
        if len({(s.shape, s.dtype, len(s.pages)) for s in file.series}) == len(first.pages) == 1:
            found = np.stack([series.asarray() for series in file.series])
            found = found if others else found[0]
        else:
            found = first.asarray()
            if others:
                warnings.warn(
                    f"{path} holds {1 + len(others)} images that are no pages of one: the first "
                    f"one is read, of shape {first.shape}.",
                    stacklevel=6,
                )
        if first.axes[0] == "S":
            warnings.warn(
                f"{path} holds {first.shape[0]} pages, or as many planes of color: say so by "
                "channel_axis=0 (--channel-axis 0).",
                stacklevel=6,
            )
    return np.asarray(found)


def write_image(path: str | Path, image: Array) -> None:
    """Write what :func:`read_image` reads; booleans as black and white."""
    import imageio.v3 as iio

    path = Path(path)
    if path.suffix == ".npy":
        np.save(path, image)
        return
    image = image.astype(np.uint8) * 255 if image.dtype.kind == "b" else image
    if path.suffix.lower() in _TIFF and image.ndim == 3 and image.shape[-1] > 4:
        # A volume: three or four pages would be taken for the planes of a color image.
        iio.imwrite(path, image, is_batch=True)
    else:
        iio.imwrite(path, image)


def check_scale(scale: float, shape: tuple[int, ...]) -> None:
    """Refuse a result that is larger than the memory.

    Raises:
        ValueError: the scale is no positive number, or says how much memory it would take.
    """
    if not 0 < scale < math.inf:
        raise ValueError(f"scale must be a positive number, got {scale}.")
    cells = math.prod(max(1.0, scale * n) if n > 4 else n for n in shape)
    check_memory(16 * cells, f"A result of {cells:,.0f} values (scale {scale:g})")


def check_writable(path: str | Path, image: Array) -> None:
    """Refuse a file that cannot hold such an image, before there is anything to lose.

    Raises:
        ValueError: the format cannot hold this dtype or shape, or is unknown.
        FileNotFoundError: the folder does not exist.
        OSError: nothing can be written there.
    """
    from imageio.config import known_extensions

    path = Path(path)
    if path.suffix != ".npy" and path.suffix.lower() not in known_extensions:
        raise ValueError(f"{path.name} has no ending of an image's: choose .png, .tif or .npy.")
    check_can_write(path)
    sample = image[tuple(slice(5) for _ in image.shape)]  # still more than there are colors
    with tempfile.TemporaryDirectory() as folder:
        trial = Path(folder) / f"trial{path.suffix}"
        try:
            write_image(trial, sample)
            found = read_image(trial)
        except Exception as error:  # every plugin has errors of its own
            raise ValueError(f"{path.name} cannot hold the image: {error}") from None
    kinds = (image.dtype, np.uint8) if image.dtype.kind == "b" else (image.dtype,)
    if found.shape != sample.shape or found.dtype not in kinds:
        raise ValueError(
            f"{path.name} cannot hold an image of {image.dtype} and shape {image.shape}: choose "
            ".tif or .npy."
        )


def take_apart(
    image: ArrayLike | str | Path,
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
    pixels, axis, alpha = _layout(read_image(image), channel_axis)
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
    missing: NDArray[np.bool_] = np.array(unknown if axis is None else unknown.any(axis=-1))
    if mask is not None:
        missing |= _mask(mask, shape)
    if missing.all():
        raise ValueError("All pixels of the image are missing: masked, NaN or infinite.")
    known = colors[~missing].reshape((~missing).sum(), -1)
    if (known == known[0]).all():
        raise ValueError(f"image is constant ({known[0].tolist()}): there is nothing to fit.")
    return Picture(pixels, axis, alpha, missing, check_spacing(spacing, len(shape)))


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


def _layout(pixels: Array, channel_axis: int | str | None) -> tuple[Array, int | None, bool]:
    """Pixels with channels last, where the channels were, and whether the last one is alpha."""
    if pixels.dtype.kind not in "biuf":
        raise ValueError(f"image holds {pixels.dtype}: give real numbers.")
    if channel_axis == "auto":
        few = pixels.ndim in (3, 4) and pixels.shape[-1] <= 4
        return pixels, -1 if few else None, few and pixels.shape[-1] in (2, 4)
    if channel_axis is None:
        return pixels, None, False
    if not isinstance(channel_axis, Integral):
        raise ValueError(f"channel_axis must be an axis, None or 'auto', got {channel_axis!r}.")
    if not -pixels.ndim <= channel_axis < pixels.ndim:
        raise ValueError(f"image of shape {pixels.shape} has no axis {channel_axis}.")
    return np.moveaxis(pixels, int(channel_axis), -1), int(channel_axis), False


def _mask(mask: ArrayLike | str | Path, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    found = read_image(mask)
    if found.shape == (*shape, 3) and (found == found[..., :1]).all():
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
    rounding = 1 / math.sqrt(12) if picture.pixels.dtype.kind in "iu" else 0.0
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
