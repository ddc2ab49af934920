"""TIFF files: which axis counts what, pixels without data, and what tifffile cannot decode."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np

from .source import Array, ImageSource, Unreadable
from .unpack import unpacked_pages

_CHANNELS = "CS"
"""Letters of tifffile's axes that count channels: C of OME and ImageJ, S samples of a pixel."""
_NODATA = 42113
"""Tag of GDAL: the value of pixels without data, as text."""
_ORIENTATION = 274
_ALPHA = (1, 2)
"""Kinds of extra samples that are alpha: times the colors, or not."""
_MINISWHITE, _BY_PILLOW = 0, (3, 5, 8)
"""Photometric interpretations: white is 0; a palette, inks and CIELAB, of which Pillow makes
colors."""


def read_tiff(path: Path) -> ImageSource:
    """All pages, also those that were written one by one (a series each).

    Raises:
        Unreadable: its axes are too many, or nothing here can decode it; names the cure.
        tifffile.TiffFileError: it is no TIFF file.
    """
    import tifffile

    with tifffile.TiffFile(path) as file:
        first, *others = file.series
        alike = len({(s.shape, s.dtype, len(s.pages)) for s in file.series}) == 1
        one_by_one = bool(others) and alike and len(first.pages) == 1
        if others and not one_by_one:
            warnings.warn(
                f"{path} holds {1 + len(others)} images that are no pages of one: the first "
                f"one is read, of shape {first.shape}.",
                stacklevel=6,
            )
        pixels, axes = _pixels(first, path)
        if one_by_one:
            pixels = np.stack([pixels, *(_pixels(series, path)[0] for series in others)])
            axes = "I" + axes
        page = first.keyframe
        alpha = any(int(kind) in _ALPHA for kind in page.extrasamples)
        alpha = alpha and pixels.shape[axes.find("S")] == page.samplesperpixel  # not made by Pillow
        if axes[0] == "S" and first.kind == "shaped" and len(pixels) in (3, 4):
            alpha = False  # tifffile takes three or four pages for colors when it writes them
            warnings.warn(
                f"{path} says that its {len(pixels)} planes are colors: if they are pages, give "
                "channel_axis=None.",
                stacklevel=6,
            )
        nodata = page.tags.get(_NODATA)
        missing = None if nodata is None else _without_data(pixels, str(nodata.value), path)
        return _laid_out(pixels, axes, alpha, missing, path)


def _pixels(series: Any, path: Path) -> tuple[Array, str]:
    """The pixels of a series, upright, and their axes: by tifffile; by Pillow, where tifffile has
    no decoder, or the pixels stand for colors."""
    page = series.keyframe
    if int(page.photometric) in _BY_PILLOW and page.dtype == np.uint8:
        return _colors(series, path)
    try:
        pixels = np.asarray(series.asarray())
    except (ValueError, ImportError) as error:
        words = ("imagecodecs", "> not supported")  # of new and old versions of tifffile
        if not isinstance(error, ImportError) and not any(word in str(error) for word in words):
            raise
        by_pillow = _decoded_by_pillow(series, path)
        if by_pillow is not None:
            return by_pillow, series.axes
        pixels = _unpacked(series, path)
    if int(page.photometric) == _MINISWHITE and pixels.dtype.kind in "bu":
        white = pixels.dtype.type(2 ** int(page.bitspersample) - 1)
        pixels = ~pixels if pixels.dtype.kind == "b" else white - pixels
    orientation = page.tags.get(_ORIENTATION)
    turn = 1 if orientation is None else int(orientation.value)
    return _upright(pixels, series.axes, turn), series.axes


def _pages(series: Any, path: Path, mode: str | None = None) -> list[Array]:
    """Pages by Pillow, which turns them upright."""
    from PIL import Image

    found = []
    with Image.open(path) as file:
        for page in series.pages:
            file.seek(page.index)
            found.append(np.asarray(file if mode is None else file.convert(mode)))
    return found


def _colors(series: Any, path: Path) -> tuple[Array, str]:
    """Pixels of a palette, of inks or of CIELAB as colors."""
    found = _pages(series, path, "RGB")
    inner = 3 if "S" in series.axes else 2
    outer = len(series.shape) - inner
    pixels = np.stack(found).reshape(*series.shape[:outer], *found[0].shape)
    return pixels, series.axes[:outer] + "YXS"


def _unpacked(series: Any, path: Path) -> Array:
    """Pixels that Pillow has no image of, in bytes that it can unpack.

    Raises:
        Unreadable: it cannot; names the cure.
    """
    page = series.keyframe
    name = page.compression.name
    try:
        at = next(i for i, other in enumerate(page.parent.series) if other is series)
        pages = unpacked_pages(path, at)
    except Exception:  # every codec has errors of its own
        raise Unreadable(
            f"{path} is compressed by {name}, with pixels of {page.dtype} that need another "
            'decoder: pip install "sciml-snr[files]" (imagecodecs), or save it without compression.'
        ) from None
    return np.stack(pages).reshape(series.shape)


def _decoded_by_pillow(series: Any, path: Path) -> Array | None:
    """Pixels in a compression that tifffile has no decoder for, turned upright; None where Pillow
    cannot decode them, or has no such images and would lose bits."""
    page = series.keyframe
    try:
        found = _pages(series, path)
    except Exception:  # every codec has errors of its own
        return None
    if found[0].dtype != page.dtype or sorted(found[0].shape) != sorted(page.shape):
        return None
    if series.axes[-3:] == "SYX":
        found = [np.moveaxis(pixels, -1, 0) for pixels in found]
    outer = series.shape[: len(series.shape) - found[0].ndim]
    return np.stack(found).reshape(*outer, *found[0].shape)


def _upright(pixels: Array, axes: str, turn: int) -> Array:
    """Undo an orientation (tag 274 of TIFF and EXIF), 1 to 8."""
    rows, columns = axes.index("Y"), axes.index("X")
    if turn >= 5:  # rows and columns are exchanged
        pixels = np.swapaxes(pixels, rows, columns)
    if turn in (3, 4, 7, 8):
        pixels = np.flip(pixels, rows)
    if turn in (2, 3, 6, 7):
        pixels = np.flip(pixels, columns)
    return pixels


def _without_data(pixels: Array, text: str, path: Path) -> Array | None:
    """Which pixels have the value that stands for no data."""
    try:
        value = float(text.strip("\0 "))
    except ValueError:
        return None
    if pixels.dtype.kind in "iu":
        limits = np.iinfo(pixels.dtype)
        if not (value.is_integer() and limits.min <= value <= limits.max):
            return None
    missing = np.asarray(pixels == np.asarray(value).astype(pixels.dtype))
    if missing.any():
        warnings.warn(
            f"{path}: {missing.sum()} of {missing.size} values are {value:g}, which stands for no "
            "data there: these pixels are missing.",
            stacklevel=7,
        )
    return missing


def _laid_out(
    pixels: Array, axes: str, alpha: bool, missing: Array | None, path: Path
) -> ImageSource:
    """Pixels without axes of length 1, and which of the axes counts channels."""
    kept = [i for i, n in enumerate(pixels.shape) if n > 1 or axes[i] in "YX"]
    channels = [at for at, i in enumerate(kept) if axes[i] in _CHANNELS]
    named = "".join(axes[i] for i in kept)
    if len(channels) > 1:
        raise Unreadable(
            f"{path} has the axes {named}, of which {' and '.join(named[i] for i in channels)} "
            "count channels: give an array with one axis of channels."
        )
    if len(kept) - len(channels) > 3:
        raise Unreadable(
            f"{path} has the axes {named}: an image has two or three beside that of channels. "
            "Give a part of it as an array."
        )
    shape = tuple(pixels.shape[i] for i in kept)
    axis = channels[0] if channels else None
    if axis == len(kept) - 1:
        axis = -1
    return ImageSource(
        pixels.reshape(shape),
        axis,
        alpha and axis is not None,
        None if missing is None else missing.reshape(shape),
    )
