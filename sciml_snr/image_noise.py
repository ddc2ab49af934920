r"""What kind of noise is in an image? Size, correlation, stripes, outliers, growth with brightness.

All of it comes from one image, without a clean one. The size of white noise is that of the finest
diagonal details (:func:`sciml_snr.estimate_sigma_image`). Noise that is correlated between
neighbours, because the image was blurred, resized or demosaiced after the noise came in, has hardly
any fine details, and that estimate is far too small. Its spectrum is measured where the image is
flattest, and described by

.. math:: P(f) \propto e^{-(2 \pi |f| s)^2} + w,

noise blurred by a Gaussian of s pixels, and a white part. An image that is texture everywhere looks
the same: :attr:`ImageNoise.doubt` says so.

Sources: N. Ponomarenko, V. Lukin, M. Zriakhov, A. Kaarna and J. Astola, *Proc. CADSM* (2007) 1
(noise spectrum from the flattest blocks); A. Foi, M. Trimeche, V. Katkovnik and K. Egiazarian,
*IEEE Trans. Image Process.* 17 (2008) 1737 (variance as an affine function of the mean:
:mod:`sciml_snr.photon_noise`).
"""

from __future__ import annotations

import functools
import itertools
import math
import warnings
from dataclasses import dataclass, replace

import numpy as np
import scipy.ndimage
import scipy.optimize
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import ArrayLike, NDArray

from .measure.twins import as_array
from .photon_noise import growth
from .sigma import SigmaEstimate, estimate_sigma_image

Array = NDArray[np.float64]

SIDE = 16
"""Of the blocks whose spectrum is taken, in pixels."""
LEAST = 48
"""Pixels a side that an image needs for it."""
FLATTEST = 0.05
"""Share of the blocks that count as flat."""
FLAT_IN_NOISE = 0.15
"""The same where there is noise alone: of the flat part of an image, so many are the flattest."""
WHITE = 0.6
"""Noise counts as white where its power at the highest frequencies is this share of that at the
low ones. White noise on a texture has about 0.6, blurred by half a pixel 0.5, by one 0.03."""
SPIKE = 4.0
"""Standard deviations by which an outlier is beyond all its neighbours."""
REPEATS = 8
"""So many outliers of exactly one value, and a quarter of all of them: the value is suspect."""
STRIPES = 2.5
"""How much more rows may differ than their pixels' noise explains."""

_AROUND = np.ones((3, 3), dtype=bool)
_AROUND[1, 1] = False

_F = np.fft.fftfreq(SIDE)
_FREQUENCY = np.hypot(_F[:, None], _F)
_EDGES = (0.10, 0.16, 0.22, 0.28, 0.34, 0.40, 0.50, 0.71)
_BANDS = [(low <= _FREQUENCY) & (high > _FREQUENCY) for low, high in itertools.pairwise(_EDGES)]


@dataclass(frozen=True)
class Correlation:
    """How the errors of an image's pixels go together.

    Args:
        blur, white: s and w of the spectrum; a blur of 0 is white noise.
        rows, columns: share of the variance that whole rows or columns have in common.
    """

    blur: float = 0.0
    white: float = 0.0
    rows: float = 0.0
    columns: float = 0.0

    @property
    def is_white(self) -> bool:
        """Whether all errors are independent."""
        return not (self.blur or self.rows or self.columns)

    def alike(self, shape: tuple[int, int]) -> float:
        """How many pixels have errors that go together, in the mode of most power.

        The peak of the noise's power over its mean: 1 for white noise, 4 pi s^2 for blurred one.
        """
        own = np.ones(1)
        if self.blur:
            own = _spectrum(_frequencies(shape), self.blur, self.white)
        alone = 1 - min(1.0, self.rows + self.columns)
        return (
            alone * float(own.max() / own.mean()) + self.rows * shape[1] + self.columns * shape[0]
        )

    def spectrum(self, frequency: Array) -> Array:
        """Power of the part that neighbours share, of mean 1 over an image's frequencies; without
        what whole rows and columns have in common.

        Args:
            frequency: cycles per pixel, any shape.
        """
        alone = 1 - min(1.0, self.rows + self.columns)
        if not self.blur:
            return np.full_like(frequency, alone)
        mean = float(_spectrum(_frequencies((128, 128)), self.blur, self.white).mean())
        found: Array = alone / mean * _spectrum(frequency, self.blur, self.white)
        return found

    def draw(self, shape: tuple[int, int], rng: np.random.Generator) -> Array:
        """Gaussian noise of this kind, of mean 0 and variance 1.

        Args:
            shape: (H, W).
            rng: where it comes from.
        """
        found = rng.normal(size=shape)
        if self.blur:
            root = _root(shape, self.blur, self.white)
            found = np.fft.ifft2(np.fft.fft2(found) * root).real
        found = math.sqrt(1 - min(1.0, self.rows + self.columns)) * found
        for share, across in ((self.rows, (shape[0], 1)), (self.columns, (1, shape[1]))):
            if share:
                found = found + math.sqrt(share) * rng.normal(size=across)
        return found


@dataclass(frozen=True, eq=False)
class ImageNoise:
    """What :func:`inspect_noise` finds.

    Attributes:
        sigma: standard deviation of all of the noise but the outliers, in units of the image.
        blur: s, the standard deviation in pixels of the Gaussian that correlates it; 0: white.
        white: w, the white part's power beside it.
        rows, columns: standard deviation of an offset that whole rows or columns share, in units of
            the image; 0: none.
        gain, offset: variance = gain * mean + offset, in units of the image; gain 0: the variance
            does not grow with the brightness.
        outliers: (H, W), True at single pixels that stand out of all their neighbours.
        doubt: why ``sigma`` may be wrong; empty where nothing speaks against it.
        finest: what the finest details say of the white part, and of all of it where it is white.
    """

    sigma: SigmaEstimate
    blur: float
    white: float
    rows: float
    columns: float
    gain: float
    offset: float
    outliers: NDArray[np.bool_]
    doubt: str
    finest: SigmaEstimate

    @property
    def correlation(self) -> Correlation:
        """How the errors of neighbouring pixels go together."""
        variance = float(self.sigma) ** 2
        shares = (
            min(1.0, size**2 / variance) if size else 0.0 for size in (self.rows, self.columns)
        )
        return Correlation(self.blur, self.white, *shares)

    @property
    def is_white(self) -> bool:
        """Whether neighbouring pixels have independent errors."""
        return self.correlation.is_white

    def told(self, sigma: float) -> ImageNoise:
        """The same, where the standard deviation is known: nearer to what the finest details say,
        the noise is white, and the rest is texture."""
        if not self.blur or sigma <= 0:
            return replace(self, doubt="")
        own, finest = (abs(math.log(sigma / float(x))) for x in (self.sigma, self.finest))
        if own <= finest:
            return replace(self, doubt="")
        return replace(self, sigma=self.finest, blur=0.0, white=0.0, doubt="")

    def __str__(self) -> str:
        parts = [str(self.sigma)]
        if self.blur:
            parts.append(f"correlated, as if blurred by {self.blur:.1f} pixels")
        for name in ("rows", "columns"):
            if size := getattr(self, name):
                parts.append(f"{name} with offsets of {size:.3g}")
        if self.gain:
            parts.append(f"variance {self.gain:.3g} x brightness {self.offset:+.3g}")
        if found := int(self.outliers.sum()):
            share = f"({100 * self.outliers.mean():.2g} %)"
            parts.append(f"{found} outlier{'s' if found > 1 else ''} {share}")
        return "; ".join([*parts, *([f"in doubt: {self.doubt}"] if self.doubt else [])])


def inspect_noise(image: ArrayLike) -> ImageNoise:
    """What kind of noise is in an image?

    Args:
        image: (H, W), finite, at least 48 pixels a side for anything but white noise and outliers.

    Returns:
        Its size and kind. Noise of 25, blurred by up to one pixel or enlarged to twice the size,
        comes out between 0.92 and 1.05 of its size on photographs; blurred by two pixels at 0.8.

    Raises:
        ValueError: the image is of another shape, too small, constant, or not finite.
    """
    pixels = as_array(image)
    if pixels.ndim != 2:
        raise ValueError(
            f"image has the shape {pixels.shape}: give one channel of it, (H, W), such as "
            "image[..., 0]."
        )
    outliers, pixels = _without_outliers(pixels)
    plain = estimate_sigma_image(pixels)
    if min(pixels.shape) < LEAST:
        return ImageNoise(plain, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, outliers, "", plain)
    rows, pixels = _without_stripes(pixels)
    columns, turned = _without_stripes(pixels.T)
    pixels = turned.T
    variance, power = _flattest(pixels, FLATTEST)
    doubt, blur, white, own = "", 0.0, 0.0, float(plain)
    if power[-1] < WHITE * power[0]:
        blur, white = _shape_of(power)
        own = math.sqrt(variance) / _flat_part(blur, white)
        if own < 1.2 * float(plain):  # a texture beside white noise
            blur, white, own = 0.0, 0.0, float(plain)
        elif own > 0.5 * float(pixels.std()):
            doubt = (
                f"the finest details say {float(plain):.3g}. Either the noise is correlated "
                "between neighbouring pixels, or the image is fine texture everywhere; then say "
                f"sigma={float(plain):.3g}"
            )
    gain, offset = (0.0, 0.0) if blur else growth(pixels)
    total = math.hypot(own, rows, columns)
    relative = plain.standard_error / float(plain)
    method = plain.method if not blur else f"the flattest blocks of {SIDE} x {SIDE} pixels"
    sigma = SigmaEstimate(total, total * max(relative, 0.05 if blur else 0.0), plain.n, method)
    return ImageNoise(sigma, blur, white, rows, columns, gain, offset, outliers, doubt, plain)


def _without_outliers(pixels: Array) -> tuple[NDArray[np.bool_], Array]:
    """Where single pixels stand out of all their neighbours, and the image with these filled in.

    Where many of these have one and the same value, such as 0 or 255, other pixels of that value
    are outliers, too, that stand out of the middle of their neighbours: those next to an outlier.
    Two neighbours that are alike make a line or a patch of it, which is none.
    """
    low, middle, high = (
        scipy.ndimage.rank_filter(pixels, rank, footprint=_AROUND, mode="mirror")
        for rank in (0, 4, -1)
    )
    scale = 1.4826 * float(np.median(np.abs(pixels - middle)))
    beyond = np.maximum(pixels - high, low - pixels)
    outliers = (beyond > SPIKE * scale) & (beyond > high - low) & (beyond > 0)
    values, counts = np.unique(pixels[outliers], return_counts=True)
    repeated = values[counts >= max(REPEATS, outliers.sum() / 4)]
    if repeated.size:
        suspect = np.isin(pixels, repeated)
        middle = np.where(suspect, _middle_of_others(pixels, suspect), middle)
    for value in repeated:
        alike = (np.abs(pixels - value) <= SPIKE * scale).astype(int)
        alone = scipy.ndimage.convolve(alike, _AROUND.astype(int), mode="mirror") <= 1
        outliers |= (pixels == value) & alone & (np.abs(pixels - middle) > SPIKE * scale)
    return outliers, np.where(outliers, middle, pixels)


def _middle_of_others(pixels: Array, suspect: NDArray[np.bool_]) -> Array:
    """The median of each pixel's neighbours that are not suspect; of all where all are."""
    rows, columns = pixels.shape
    known = np.pad(np.where(suspect, np.nan, pixels), 1, mode="reflect")
    shifted = [known[i : i + rows, j : j + columns] for i, j in np.argwhere(_AROUND)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nothing but NaN
        found: Array = np.nanmedian(shifted, axis=0)
    return np.where(np.isfinite(found), found, float(np.median(pixels)))


def _without_stripes(pixels: Array) -> tuple[float, Array]:
    """Standard deviation of the rows' offsets, 0 if there are none, and the image without them.

    Offsets that are drawn row by row make the steps from row to row anticorrelated; a picture's own
    steps are not.
    """
    steps = np.diff(pixels, axis=0)
    step = np.median(steps, axis=1)
    spread = 1.4826 * float(np.median(np.abs(step - np.median(step)))) / math.sqrt(2)
    noise = 1.4826 * float(np.median(np.abs(steps - step[:, None]))) / math.sqrt(2)
    explained = 1.2533 * noise / math.sqrt(pixels.shape[1])
    if not step.std() or spread <= STRIPES * explained:
        return 0.0, pixels
    if float(np.corrcoef(step[1:], step[:-1])[0, 1]) > -0.12:
        return 0.0, pixels
    heights = np.concatenate([[0.0], np.cumsum(step)])
    smooth = scipy.ndimage.gaussian_filter1d(heights, 3.0, mode="nearest")
    return math.sqrt(max(0.0, spread**2 - explained**2)), pixels - (heights - smooth)[:, None]


def _blocks(pixels: Array) -> Array:
    """Blocks without their planes, (blocks, pixels)."""
    at = np.arange(SIDE, dtype=float)
    plane = np.stack([np.ones((SIDE, SIDE)), *np.meshgrid(at, at)], axis=-1).reshape(-1, 3)
    basis, _ = np.linalg.qr(plane)
    few = min(pixels.shape) < 4 * SIDE
    step = SIDE // 8 if few else max(SIDE // 4, min(pixels.shape) // 128)
    windows = sliding_window_view(pixels, (SIDE, SIDE))[::step, ::step]
    blocks = windows.reshape(-1, SIDE**2)
    found: Array = blocks - (blocks @ basis) @ basis.T
    return found


def _flattest(pixels: Array, share: float) -> tuple[float, Array]:
    """Mean variance of the flattest blocks, and their mean power in bands of frequency."""
    blocks = _blocks(pixels)
    variances = np.square(blocks).sum(axis=1) / (SIDE**2 - 3)
    chosen = np.argsort(variances)[: max(50, int(share * len(blocks)))]
    window = np.outer(*2 * (np.hanning(SIDE + 2)[1:-1],))
    cut = blocks[chosen].reshape(-1, SIDE, SIDE) * window
    power = np.square(np.abs(np.fft.fft2(cut))).mean(axis=0)
    return float(variances[chosen].mean()), np.array([power[band].mean() for band in _BANDS])


def _spectrum(frequency: Array, blur: float, white: float) -> Array:
    found: Array = np.exp(-np.square(2 * np.pi * frequency * blur)) + white
    return found


@functools.lru_cache(maxsize=8)
def _root(shape: tuple[int, int], blur: float, white: float) -> Array:
    """Root of the power, of mean 1: a fit asks for the same one in every step."""
    power = _spectrum(_frequencies(shape), blur, white)
    found: Array = np.sqrt(power / power.mean())
    return found


def _frequencies(shape: tuple[int, int]) -> Array:
    found: Array = np.hypot(np.fft.fftfreq(shape[0])[:, None], np.fft.fftfreq(shape[1]))
    return found


def _shape_of(power: Array) -> tuple[float, float]:
    """blur and white, by least squares of the bands' logarithms."""

    def misfit(logs: Array) -> float:
        model = _spectrum(_FREQUENCY, *np.exp(logs))
        apart = np.log(power) - np.log([model[band].mean() for band in _BANDS])
        return float(np.square(apart - apart.mean()).sum())

    starts = [np.log([blur, white]) for blur in (0.5, 1.0, 2.0) for white in (0.003, 0.1)]
    found = [scipy.optimize.minimize(misfit, start, method="Nelder-Mead") for start in starts]
    blur, white = np.exp(min(found, key=lambda one: float(one.fun)).x)
    return float(blur), float(white)


def _flat_part(blur: float, white: float) -> float:
    """Standard deviation in the flattest blocks, of noise alone of standard deviation 1."""
    noise = Correlation(blur, white).draw((256, 256), np.random.default_rng(0))
    return math.sqrt(_flattest(noise / noise.std(), FLAT_IN_NOISE)[0])
