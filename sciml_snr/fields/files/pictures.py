"""Images in files: PNG, JPEG, GIF and others by Pillow, TIFF by tifffile, the rest by imageio."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ...runs.folder import check_can_write
from .source import Array, ImageSource, Unreadable
from .tiff import read_tiff

_TIFF = (".tif", ".tiff")
_SEQUENCES = ("GIF", "PNG", "WEBP")
"""Formats whose frames follow each other in time; elsewhere a second one is something else."""
_PLAIN = {"LA": "LA", "La": "LA", "RGBA": "RGBA", "RGBa": "RGBA", "PA": "RGBA"}


def read_image(image: ArrayLike | ImageSource | str | Path) -> ImageSource:
    """An array as it is, a masked one with its mask; or a file.

    PNG, JPEG, GIF, WebP, BMP and what else Pillow knows: upright (EXIF), a palette and inks as
    colors, several frames of a GIF, PNG or WebP file as a volume. TIFF: all pages, channels as the
    file says (OME, ImageJ, samples per pixel), GDAL's "no data" as missing pixels. NPY. Others by
    imageio. Of colors with 16 bits in a PNG file 8 are read, with a warning.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file cannot be read as an image.
    """
    if isinstance(image, ImageSource):
        return image
    if not isinstance(image, (str, Path)):
        if isinstance(image, np.ma.MaskedArray):
            return ImageSource(np.asarray(image.data), missing=np.ma.getmaskarray(image))
        return ImageSource(np.asarray(image))
    path = Path(image)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    with warnings.catch_warnings(record=True) as said:  # of an error enough is said without them
        warnings.simplefilter("always")
        try:
            found = _read(path)
        except Unreadable:
            raise
        except Exception as error:  # every plugin has errors of its own
            raise ValueError(f"{path} cannot be read as an image: {error}") from None
    for warning in said:
        warnings.warn(warning.message, warning.category, stacklevel=2)
    return found


def _read(path: Path) -> ImageSource:
    import tifffile
    from PIL import UnidentifiedImageError

    if path.suffix.lower() == ".npy":
        return ImageSource(np.asarray(np.load(path)))
    if path.suffix.lower() in _TIFF:
        try:
            return read_tiff(path)
        except tifffile.TiffFileError:
            pass  # of another format
    try:
        return _read_pillow(path)
    except UnidentifiedImageError:
        import imageio.v3 as iio

        return ImageSource(np.asarray(iio.imread(path)))


def _read_pillow(path: Path) -> ImageSource:
    from PIL import Image, ImageSequence

    with Image.open(path) as file:
        frames = getattr(file, "n_frames", 1)
        if file.format == "PNG" and path.read_bytes()[24:26] in (
            b"\x10\x02",
            b"\x10\x04",
            b"\x10\x06",
        ):
            warnings.warn(
                f"{path} has colors of 16 bits, of which 8 are read: give a TIFF file, or an "
                "array.",
                stacklevel=6,
            )
        if frames > 1 and file.format in _SEQUENCES:
            found = [_plain(frame) for frame in ImageSequence.Iterator(file)]
        else:
            found = [_plain(file)]
            if frames > 1:
                warnings.warn(f"{path} holds {frames} images: the first one is read.", stacklevel=6)
        if len({frame.mode for frame in found}) > 1:
            found = [frame.convert("RGBA") for frame in found]
        pixels = np.stack([np.asarray(frame) for frame in found])
        pixels = pixels if len(found) > 1 else pixels[0]
        bands = found[0].getbands()
    return ImageSource(pixels, -1 if len(bands) > 1 else None, bands[-1] == "A")


def _plain(frame: Any) -> Any:
    """A frame upright, in grey or colors, with alpha where it has transparent places."""
    from PIL import ImageOps

    upright = ImageOps.exif_transpose(frame)
    mode = upright.mode
    if mode in _PLAIN:
        return upright.convert(_PLAIN[mode])
    if mode in ("L", "RGB", "P") and upright.has_transparency_data:
        return upright.convert("LA" if mode == "L" else "RGBA")
    if mode in ("P", "CMYK", "YCbCr", "LAB", "HSV", "RGBX"):
        return upright.convert("RGB")
    return upright.copy()  # a sequence has one frame, of which the next becomes the content


def write_image(
    path: str | Path,
    image: Array,
    channel_axis: int | str | None = "auto",
    alpha: bool = False,
) -> None:
    """Write what :func:`read_image` reads; booleans as black and white.

    Args:
        path: the file; its ending says how.
        image: its pixels.
        channel_axis, alpha: as of :class:`ImageSource`; a TIFF file keeps them.
    """
    import imageio.v3 as iio

    path = Path(path)
    if path.suffix == ".npy":
        np.save(path, image)
        return
    image = image.astype(np.uint8) * 255 if image.dtype.kind == "b" else image
    if path.suffix.lower() in _TIFF:
        _write_tiff(
            path, image, *(auto_layout(image) if channel_axis == "auto" else (channel_axis, alpha))
        )
    else:
        iio.imwrite(path, image)


def auto_layout(image: Array) -> tuple[int | None, bool]:
    """Of an array that nothing is said of: a last axis of four at most counts channels, and of two
    or four the last one is alpha."""
    few = image.ndim in (3, 4) and image.shape[-1] <= 4
    return (-1 if few else None), few and image.shape[-1] in (2, 4)


def _write_tiff(path: Path, image: Array, axis: int | str | None, alpha: bool) -> None:
    """With the axes' names, so that neither pages nor channels are guessed."""
    import tifffile

    spatial = "ZYX"[-(image.ndim - (axis is not None)) :]
    if axis is None:
        tifffile.imwrite(path, image, photometric="minisblack", metadata={"axes": spatial})
        return
    assert isinstance(axis, int)
    at = axis % image.ndim
    if at < image.ndim - 1 or image.shape[-1] == 1:
        names = spatial[:at] + "C" + spatial[at:]
        tifffile.imwrite(path, image, photometric="minisblack", metadata={"axes": names})
        return
    colors = image.shape[-1] - alpha
    extra = ["unassalpha"] if alpha else ["unspecified"] * (colors - 1)
    kind: dict[str, Any] = {"photometric": "minisblack", "extrasamples": extra}
    if colors == 3:
        kind = {"photometric": "rgb", "extrasamples": extra if alpha else None}
    elif alpha and colors > 3:
        kind["extrasamples"] = ["unspecified"] * (colors - 1) + extra
    tifffile.imwrite(path, image, planarconfig="contig", metadata={"axes": spatial + "S"}, **kind)


def check_writable(
    path: str | Path,
    image: Array,
    channel_axis: int | str | None = "auto",
    alpha: bool = False,
) -> None:
    """Refuse a file that cannot hold such an image, before there is anything to lose.

    Args:
        path, image, channel_axis, alpha: as for :func:`write_image`.

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
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the trial
        trial = Path(folder) / f"trial{path.suffix}"
        try:
            write_image(trial, sample, channel_axis, alpha)
            found = read_image(trial).pixels
        except Exception as error:  # every plugin has errors of its own
            raise ValueError(f"{path.name} cannot hold the image: {error}") from None
    kinds = (image.dtype, np.uint8) if image.dtype.kind == "b" else (image.dtype,)
    if found.shape != sample.shape or found.dtype not in kinds:
        raise ValueError(
            f"{path.name} cannot hold an image of {image.dtype} and shape {image.shape}: choose "
            ".tif or .npy."
        )
