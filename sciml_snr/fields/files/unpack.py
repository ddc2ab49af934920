"""TIFF pages whose bytes Pillow can unpack, though it knows no such pixels.

tifffile leaves LZW and Zstandard to a package of its own, imagecodecs. Pillow's libtiff unpacks
them, but Pillow has images of few kinds: no signed 16 bits, no colors of 16 bits, no seven bands.
So the bytes of every strip or tile are given to it as a grey image of 8 bits, and what comes out to
tifffile, as if it had never been packed.
"""

from __future__ import annotations

import io
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

PACKED = (5, 50000)
"""Compressions that work on bytes, whatever these mean: LZW, Zstandard."""


def unpacked_pages(path: Path, index: int) -> list[NDArray[Any]]:
    """The pages of a series of a file, each of its keyframe's shape.

    Args:
        path: the file; it is opened anew, for tifffile remembers that it has no decoder.
        index: of the series.

    Raises:
        ValueError: the compression is another one, or nothing here undoes its predictor.
        OSError: it is damaged.
    """
    import tifffile

    with tifffile.TiffFile(path) as file:
        series: Any = file.series[index]
        key, found = series.keyframe, []
        compression, bits = int(key.compression), int(key.bitspersample)
        if compression not in PACKED or bits % 8:
            raise ValueError(f"compression {compression} of {bits} bits")
        key.compression = 1  # for key.decode, which gets what is unpacked
        for page in series.pages:
            pixels = np.zeros(key.shaped, key.dtype)  # (planes, depth, rows, columns, samples)
            segments = zip(page.dataoffsets, page.databytecounts, strict=True)
            for i, (at, count) in enumerate(segments):
                file.filehandle.seek(at)
                data = _unpacked(file.filehandle.read(count), compression, _size(key, i))
                part, (s, d, h, w, _), (depth, rows, columns, _) = key.decode(data, i)
                place = pixels[s, d : d + depth, h : h + rows, w : w + columns]
                place[:] = part[: place.shape[0], : place.shape[1], : place.shape[2]]
            found.append(pixels.reshape(key.shape))
    return found


def _size(page: Any, i: int) -> int:
    """Bytes of the i-th strip or tile when unpacked."""
    each = int(page.dtype.itemsize) * (page.samplesperpixel if page.planarconfig == 1 else 1)
    if page.is_tiled:
        return int(each * page.tilewidth * page.tilelength * page.tiledepth)
    strips = math.ceil(page.imagelength / page.rowsperstrip)  # of a plane
    rows = min(page.rowsperstrip, page.imagelength - i % strips * page.rowsperstrip)
    return int(each * page.imagewidth * rows)


def _unpacked(packed: bytes, compression: int, size: int) -> bytes:
    from PIL import Image

    tags = {256: size, 257: 1, 258: 8, 259: compression, 262: 1, 273: 8, 278: 1, 279: len(packed)}
    padded = packed + b"\0" * (len(packed) % 2)
    header = struct.pack("<2sHI", b"II", 42, 8 + len(padded))
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    table = struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)
    with Image.open(io.BytesIO(header + padded + table)) as image:
        return image.tobytes()
