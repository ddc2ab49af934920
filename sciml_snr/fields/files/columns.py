"""Points in columns of numbers: text files, and which of their columns is what."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...text_files import read_text

Array = NDArray[np.float64]

ENDINGS = (".xyz", ".txt", ".csv", ".asc", ".pts")

_PLACES = (("x", "easting"), ("y", "northing"), ("z", "elevation", "height", "altitude"))
_NORMALS = tuple(
    (f"n{a}", f"n_{a}", f"normal_{a}", f"normal{a}", f"normals_{a}", f"norm_{a}", f"{a}_normal")
    for a in "xyz"
)
_COMMENTS = ("#", "//")


class Unusable(ValueError):
    """A file that was read, and does not hold what is needed."""


def read_columns(path: Path) -> tuple[Array, Array | None]:
    """Points (n, d), and normals (n, d) if there are any, of a text file.

    A header names the columns (``x y z``, ``nx`` or ``normal_x``, ...); without one the first two
    or three are coordinates, and three that are unit vectors in every row are normals. What is
    left out is said. A first line with the number of points (XYZ, PTS), comments and byte order
    marks are no points.

    Raises:
        Unusable: it holds something else; says what.
    """
    lines = [line.strip() for line in read_text(path).splitlines()]
    lines = [line for line in lines if line]
    comments, body = _comments_before(lines)
    if path.suffix.lower() == ".pts":  # every scan begins with its number of points
        body = [line for line in body if not line.isdigit()]
    if not body:
        raise Unusable(f"{path} is empty.")
    if body[0].lower().startswith("ncols"):
        raise Unusable(f"{path} is a grid of heights (ESRI): give points, x y z.")
    separator = _separator(body[-1], path)
    header: list[str] = []
    if body[0].isdigit():  # a count, and mostly a comment
        body = body[1:]
        if body and not all(map(_is_number, _fields(body[0], separator))):
            body = body[1:]
    elif not all(map(_is_number, first := _fields(body[0], separator))):
        width = len(_fields(body[-1], separator))
        has_number = any(field and _is_number(field) for field in first)
        if len(first) == width and has_number:
            odd = next(field for field in first if not _is_number(field))
            raise Unusable(f"{path}: {odd!r} in the first row is not a number.")
        if len(first) != width and has_number:
            warnings.warn(
                f"{path}: the first line, {body[0]!r}, is taken for a title, and left out.",
                stacklevel=4,
            )
        header, body = (first if len(first) == width else []), body[1:]
    if header and not header[-1]:  # a separator at the end of every line
        header = header[:-1]
    rows = _rows(body, separator, len(header))
    if not header and comments:
        named = _fields(comments[-1].lstrip("#/ "), separator)
        header = named if len(named) == rows.shape[1] and _find(named, _PLACES[:2]) else []
    return columns_of_points(rows, header, path)


def columns_of_points(rows: Array, header: Sequence[str], path: Path) -> tuple[Array, Array | None]:
    """Points and normals among columns (n, m), by their names where there are any.

    Raises:
        Unusable: there are none; says what is there instead.
    """
    places = _find(header, _PLACES) or _find(header, _PLACES[:2])
    normals = _find(header, _NORMALS[: len(places)]) if places else []
    width = rows.shape[1]
    if not places:
        if width < 2:
            raise Unusable(f"{path} has {width} columns: it must be x y, x y z, and more.")
        places = list(range(min(3, width)))
        if header and width > 2:
            taken = ", ".join(name.strip() for name in header[:3])
            warnings.warn(f"{path}: the columns {taken} are taken for x, y, z.", stacklevel=5)
        if width > 3:
            if _counts(rows[:, 0]):
                raise Unusable(
                    f"The first column of {path} counts the rows: leave it out, or name the "
                    "columns in a header (id x y z)."
                )
            normals = _unit_columns(rows)
    left = [i for i in range(width) if i not in (*places, *normals)]
    if left:
        named = [header[i].strip() if len(header) == width else str(i + 1) for i in left]
        kept = "coordinates and normals" if normals else "coordinates"
        several = len(left) > 1
        warnings.warn(
            f"{path}: the column{'s' if several else ''} {', '.join(named)} "
            f"{'are' if several else 'is'} left out: only {kept} are used.",
            stacklevel=5,
        )
    return rows[:, places], rows[:, normals] if normals else None


def normals_by_name(columns: dict[str, Array]) -> Array | None:
    """Normals (n, 3) among columns (n,), if they have the names of such."""
    names = list(columns)
    found = _find(names, _NORMALS)
    return np.column_stack([columns[names[i]] for i in found]) if found else None


def _find(header: Sequence[str], wanted: Sequence[Sequence[str]]) -> list[int]:
    """Where these columns stand, each of which has several names; none if one is missing."""
    plain = [re.split(r"[\[(]", name)[0].strip().lower() for name in header]
    at = [next((plain.index(n) for n in names if n in plain), -1) for names in wanted]
    return [] if -1 in at else at


def _counts(column: Array) -> bool:
    return bool((np.diff(column) == 1).all() and column[0] in (0, 1))


def _unit_columns(rows: Array) -> list[int]:
    """Three columns after the coordinates that are unit vectors (or zero, or not known)."""
    for first in range(3, rows.shape[1] - 2):
        lengths = np.linalg.norm(rows[:, first : first + 3], axis=1)
        unit = np.abs(lengths - 1) < 0.01
        if unit.any() and (unit | (lengths == 0) | ~np.isfinite(lengths)).all():
            return list(range(first, first + 3))
    return []


def _comments_before(lines: list[str]) -> tuple[list[str], list[str]]:
    """The comments before the first other line, and all lines that are none."""
    body = [line for line in lines if not line.startswith(_COMMENTS)]
    before = lines[: lines.index(body[0])] if body else []
    return before, body


def _separator(line: str, path: Path) -> str | None:
    if "," in line and ";" in line:
        raise Unusable(
            f"{path} has commas and semicolons: write numbers with points (0.5), and one of the "
            "two between them."
        )
    return next((sign for sign in (",", ";") if sign in line), None)


def _fields(line: str, separator: str | None) -> list[str]:
    return [field.strip().strip('"') for field in line.split(separator)]


def _rows(lines: list[str], separator: str | None, width: int) -> Array:
    """Numbers (n, m); of an empty field NaN. Without a width, a separator at the end of every line
    has no field after it."""
    if separator:
        empty = re.compile(rf"(?<={separator})\s*(?={separator}|$)|^(?={separator})")
        lines = [empty.sub("nan", line) for line in lines]
    rows = np.loadtxt(lines, delimiter=separator, ndmin=2, quotechar='"')
    if separator and not width and all(line.endswith("nan") for line in lines):
        width = rows.shape[1] - 1
    return rows[:, :width] if width else rows


def _is_number(text: str) -> bool:
    try:
        float(text or "nan")
    except ValueError:
        return False
    return True
