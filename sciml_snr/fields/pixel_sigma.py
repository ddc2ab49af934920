"""A standard deviation for every pixel of an image: given, or made from the brightness."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..photon_noise import PhotonNoise, brightness, estimate_photon_noise
from ..sigma import SigmaEstimate
from .files.pictures import read_image
from .files.source import ImageSource
from .picture import Picture
from .samples import Array

GIVEN = "given per pixel: root mean square"


@dataclass(frozen=True, eq=False)
class PixelSigma:
    """A standard deviation for every pixel.

    Attributes:
        values: (pixels, channels) in units of the image; NaN where a pixel is missing.
        lines: per channel how the variance follows the brightness; None where sigma was given.
    """

    values: Array
    lines: tuple[PhotonNoise, ...] | None = None

    def typical(self) -> tuple[SigmaEstimate, ...]:
        """Root mean square per channel, with what it comes from in words."""
        found = []
        for i, channel in enumerate(self.values.T):
            size = float(np.sqrt(np.nanmean(channel**2)))
            n = int(np.isfinite(channel).sum())
            if self.lines is None:
                found.append(SigmaEstimate(size, 0.0, n, GIVEN))
            else:
                line = self.lines[i]
                error = size * line.gain_error / line.gain / 2 if line.gain > 0 else 0.0
                found.append(
                    SigmaEstimate(size, error, n, f"root mean square over the pixels; {line}")
                )
        return tuple(found)

    def fingerprint(self) -> str:
        """Equal for equal values."""
        return hashlib.sha256(np.ascontiguousarray(self.values).tobytes()).hexdigest()[:16]

    def lines_to_json(self) -> Any:
        """For a file."""
        return None if self.lines is None else [asdict(line) for line in self.lines]


def lines_from_json(found: Any) -> tuple[PhotonNoise, ...] | None:
    """What :meth:`PixelSigma.lines_to_json` wrote."""
    return None if found is None else tuple(PhotonNoise(**line) for line in found)


def from_brightness(picture: Picture, lines: Sequence[PhotonNoise]) -> PixelSigma:
    """From the mean of the pixels around each one.

    Args:
        picture: the image.
        lines: per channel how the variance follows the brightness.
    """
    channels = picture.values.T.reshape(-1, *picture.shape)
    found = [line.sigma(brightness(channel)) for line, channel in zip(lines, channels, strict=True)]
    values = np.stack(found, axis=-1).reshape(-1, len(found))
    values[picture.missing.reshape(-1)] = np.nan
    return PixelSigma(values, tuple(lines))


def lines_of(picture: Picture, gain: Any = None, offset: Any = None) -> tuple[PhotonNoise, ...]:
    """How the noise of each channel grows with its brightness.

    Args:
        picture: the image.
        gain, offset: what is known of it: a number, or one for each channel.

    Raises:
        ValueError: it cannot be estimated, or what is given cannot be used.
    """
    channels = picture.values.T.reshape(-1, *picture.shape)
    gains, offsets = (
        _each(name, value, len(channels)) for name, value in (("gain", gain), ("offset", offset))
    )
    if any(g is not None and g < 0 for g in gains):
        raise ValueError(f"gain must be >= 0, got {gain}.")
    lines = tuple(map(estimate_photon_noise, channels, gains, offsets))
    for line, channel in zip(lines, channels, strict=True):
        if not line.gain * float(np.nanmean(channel)) + line.offset > 0:
            raise ValueError(
                f"gain {line.gain:g} and offset {line.offset:g} make no positive variance at the "
                f"image's mean of {float(np.nanmean(channel)):g}."
            )
    return lines


def _each(name: str, given: Any, channels: int) -> list[float | None]:
    if given is None:
        return [None] * channels
    found = np.asarray(given)
    if found.dtype.kind not in "biuf" or found.size not in (1, channels) or found.ndim > 1:
        raise ValueError(
            f"{name} must be a number, or one for each of {channels} channel(s), got {given}."
        )
    if not np.isfinite(found).all():
        raise ValueError(f"{name} must be finite, got {given}.")
    return [float(x) for x in np.broadcast_to(found.reshape(-1).astype(float), channels)]


def given_per_pixel(sigma: Any, picture: Picture) -> PixelSigma | None:
    """A sigma that is a file, or an array of the image's shape; None where it is one number, or
    one for each channel.

    Args:
        sigma: what was given.
        picture: the image.

    Raises:
        ValueError: it does not fit the image, or is not positive at every known pixel.
        FileNotFoundError: there is no such file.
    """
    is_file = isinstance(sigma, (str, Path, ImageSource))
    if not is_file and np.ndim(sigma) < 2:
        return None
    found = read_image(sigma).pixels if is_file else np.ma.filled(sigma, np.nan)
    channels = picture.values.shape[1]
    if picture.channel_axis is not None and found.ndim == len(picture.shape) + 1:
        found = np.moveaxis(found, picture.channel_axis, -1)
        found = found[..., :channels] if found.shape[-1] == channels + 1 else found
    shape = (*picture.shape, channels)
    if found.shape == picture.shape:
        found = np.repeat(found[..., None], channels, axis=-1)
    if found.shape != shape or found.dtype.kind not in "biuf":
        raise ValueError(
            f"sigma has the shape {found.shape}: give one number, one for each of {channels} "
            f"channel(s), or one for every pixel, {picture.shape}"
            + (f" or {shape}." if channels > 1 else ".")
        )
    values = found.reshape(-1, channels).astype(float)
    missing = picture.missing.reshape(-1)
    known = values[~missing]
    if bad := int((~(np.isfinite(known) & (known > 0))).sum()):
        raise ValueError(
            f"sigma is not a positive number at {bad} of {known.size} known pixels. Mask those "
            "pixels (mask=), or give them an error, if a small one."
        )
    values[missing] = np.nan
    return PixelSigma(values)
