"""The noise of an image's pixels: of what kind it is, and how it looks where it is correlated."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..image_noise import Correlation, ImageNoise, inspect_noise
from ..sigma import SigmaEstimate
from .picture import Picture, at_least_rounding
from .samples import Array

OUTLIERS = 1e-3
"""Share of the pixels beyond which those that stand out of all their neighbours are left out."""
FEW = 20
"""So many of them are left out at least; fewer may be chance."""


class PixelNoise:
    """Random numbers that are correlated as the errors of an image's known pixels are.

    Args:
        correlations: one per channel.
        picture: the image.

    Attributes:
        alike: how many pixels have errors that go together.
    """

    def __init__(self, correlations: Sequence[Correlation], picture: Picture) -> None:
        height, width = picture.shape
        self._shape = (height, width)
        self._correlations = tuple(correlations)
        self._known = ~picture.missing.reshape(-1)
        self.alike = max(own.alike(self._shape) for own in correlations)

    def draw(self, rng: np.random.Generator) -> Array:
        """(known pixels, channels), of mean 0 and variance 1."""
        channels = [own.draw(self._shape, rng).reshape(-1) for own in self._correlations]
        found: Array = np.stack(channels, axis=-1)[self._known]
        return found

    def __call__(self, seed: int) -> Tensor:
        """The same as a tensor, from a seed."""
        return torch.as_tensor(self.draw(np.random.default_rng(seed)))


def pixel_noise(correlations: Sequence[Correlation] | None, picture: Picture) -> PixelNoise | None:
    """What the errors look like; None where they are independent."""
    if correlations is None or all(own.is_white for own in correlations):
        return None
    return PixelNoise(correlations, picture)


def correlations_to_json(correlations: Sequence[Correlation] | None) -> Any:
    """For a file; None where all errors are independent."""
    return None if correlations is None else [asdict(own) for own in correlations]


def correlations_from_json(found: Any) -> tuple[Correlation, ...] | None:
    """What :func:`correlations_to_json` wrote."""
    return None if found is None else tuple(Correlation(**own) for own in found)


def inspected(
    picture: Picture, sigma: Sequence[float] | None = None
) -> tuple[ImageNoise, ...] | None:
    """What kind of noise each channel of a flat image has; None where that cannot be told: volumes,
    missing pixels, channels without noise.

    Args:
        picture: the image.
        sigma: standard deviation of the noise per channel, if it is known.
    """
    if len(picture.shape) != 2 or picture.missing.any():
        return None
    channels = picture.values.T.reshape(-1, *picture.shape)
    with contextlib.suppress(ValueError):
        found = tuple(map(inspect_noise, channels))
        if sigma is None:
            return found
        return tuple(noise.told(own) for noise, own in zip(found, sigma, strict=True))
    return None


def sigma_of(picture: Picture, found: Sequence[ImageNoise]) -> tuple[SigmaEstimate, ...]:
    """Standard deviation of the noise per channel."""
    pairs = zip(found, picture.values.T, strict=True)
    return tuple(at_least_rounding(noise.sigma, picture, channel) for noise, channel in pairs)


def correlations_of(found: Sequence[ImageNoise] | None) -> tuple[Correlation, ...] | None:
    """How errors go together, per channel; None where they are independent."""
    own = tuple(noise.correlation for noise in found or ())
    return None if all(one.is_white for one in own) else own


def report(found: Sequence[ImageNoise]) -> None:
    """Warn of what is not plain white noise."""
    for channel, noise in enumerate(found):
        where = f"channel {channel}: " if len(found) > 1 else ""
        if noise.doubt:
            warnings.warn(
                f"{where}sigma {float(noise.sigma):.3g} is in doubt: {noise.doubt}.", stacklevel=4
            )
        elif not noise.is_white:
            warnings.warn(
                f"{where}the noise is not white, and is fitted as it is ({noise}). If that is no "
                'noise, say noise="white" (--noise white).',
                stacklevel=4,
            )
        elif noise.gain:
            warnings.warn(
                f"{where}the noise grows with the brightness ({noise}); the fit takes it for "
                'constant. Counted photons: say noise="poisson" (--noise poisson).',
                stacklevel=4,
            )


def without_outliers(picture: Picture, found: Sequence[ImageNoise]) -> Picture:
    """The image with pixels that stand out of all their neighbours missing, if there are many."""
    outliers = np.any([noise.outliers for noise in found], axis=0)
    if not found or outliers.mean() <= OUTLIERS or outliers.sum() < FEW:
        return picture
    warnings.warn(
        f"{outliers.sum()} pixels ({100 * outliers.mean():.2g} %) stand out of all their "
        'neighbours: they are left out as outliers. To keep them, say noise="white" '
        "(--noise white).",
        stacklevel=4,
    )
    return replace(picture, missing=picture.missing | outliers)
