"""Samples and fields in files: CSV tables, and .npz archives."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..runs.folder import check_can_write, readable, write_atomically
from ..text_files import read_number, read_table
from .samples import Array

ENDINGS = (".csv", ".npz")


@dataclass(frozen=True, eq=False)
class Table:
    """Samples as a file has them."""

    points: Array
    """(n, d)."""
    values: Array
    """(n, m)."""
    sigma: Array | None
    """(n, m), where the file has columns for it."""
    coordinates: tuple[str, ...]
    outputs: tuple[str, ...]
    dropped: int = 0
    """Samples left out because a number of theirs is none."""


def read_samples(path: str | Path, outputs: Sequence[str] = (), *, drop_bad: bool = False) -> Table:
    """Samples of a field.

    Args:
        path: a CSV file with a header; or an .npz file of arrays ``x`` (n, d), ``y`` (n,) or (n, m)
            and, if known, ``sigma``, of y's shape.
        outputs: which columns of a CSV file are values; by default the last one that is no sigma.
            All others are coordinates, but for ``sigma`` and ``sigma_NAME``, the errors of all
            values, or of those of the column NAME.
        drop_bad: leave out samples of which a number is NaN, infinite or, in a CSV file, not there.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no samples; says why.
    """
    path = Path(path)
    if path.suffix.lower() == ".npz":
        if outputs:
            raise ValueError("outputs are for columns of a CSV file: an .npz file has x and y.")
        return _without_bad(_from_npz(path)) if drop_bad else _from_npz(path)
    header, columns = _columns(path, drop_bad)
    errors = [name for name in header if name == "sigma" or name.startswith("sigma_")]
    plain = [name for name in header if name not in errors]
    chosen = tuple(outputs) or tuple(plain[-1:])
    if unknown := [name for name in chosen if name not in plain]:
        raise ValueError(f"{path} has no column {unknown[0]!r}: it has {', '.join(plain)}.")
    coordinates = tuple(name for name in plain if name not in chosen)
    if not coordinates or not chosen:
        raise ValueError(f"{path} needs columns of coordinates and of values: it has {header}.")
    known = {"sigma", *(f"sigma_{name}" for name in chosen)}
    if stray := [name for name in errors if name not in known]:
        raise ValueError(f"{path} has a column {stray[0]!r}, and no values of that name.")
    sigma = None
    if errors:
        names = [f"sigma_{name}" if f"sigma_{name}" in errors else "sigma" for name in chosen]
        if missing := [name for name in names if name not in errors]:
            raise ValueError(f"{path} has a sigma for some values, and no {missing[0]!r}.")
        sigma = _stacked(columns, names)
    table = Table(
        _stacked(columns, coordinates), _stacked(columns, chosen), sigma, coordinates, chosen
    )
    return _without_bad(table) if drop_bad else table


def _without_bad(table: Table) -> Table:
    """The samples that are numbers throughout."""
    parts = [table.points, table.values] + ([] if table.sigma is None else [table.sigma])
    good = np.isfinite(np.hstack(parts)).all(axis=1)
    return replace(
        table,
        points=table.points[good],
        values=table.values[good],
        sigma=None if table.sigma is None else table.sigma[good],
        dropped=int((~good).sum()),
    )


def read_points(path: str | Path, coordinates: Sequence[str]) -> Array:
    """Positions (n, d): columns of these names in a CSV file, or ``x`` of an .npz file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it has no such columns.
    """
    path = Path(path)
    if path.suffix.lower() == ".npz":
        return _rows(_arrays(path, ("x",))["x"])
    header, columns = _columns(path)
    if missing := [name for name in coordinates if name not in header]:
        raise ValueError(f"{path} has no column {missing[0]!r}: it has {', '.join(header)}.")
    return _stacked(columns, coordinates)


def check_field_file(path: str | Path) -> None:
    """Refuse a file that a field cannot be written to, before there is anything to lose.

    Raises:
        ValueError: its ending is another one.
        OSError: it cannot be written there.
    """
    if Path(path).suffix.lower() not in ENDINGS:
        raise ValueError(f"{path} has no ending of a field's file: {', '.join(ENDINGS)}.")
    check_can_write(Path(path))


def write_field(
    path: str | Path,
    points: Array,
    values: Array,
    coordinates: Sequence[str],
    outputs: Sequence[str],
) -> None:
    """Write positions (n, d) and values (n, m) as :func:`read_samples` reads them.

    Raises:
        OSError: it cannot be written; the file before is kept.
    """
    path = Path(path)
    if path.suffix.lower() == ".npz":
        buffer = io.BytesIO()
        np.savez_compressed(buffer, x=points, y=values)
        write_atomically(path, buffer.getvalue())
        return
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow([*coordinates, *outputs])
    writer.writerows(np.hstack([points, values]).tolist())
    write_atomically(path, text.getvalue().encode())


def _columns(path: Path, gaps: bool = False) -> tuple[list[str], dict[str, Array]]:
    header, rows = read_table(path)
    if not rows:
        raise ValueError(f"{path} has no samples: give a header, and a row for each.")
    if any(_is_number(name) for name in header):
        raise ValueError(
            f"{path} has no header: its first line is {','.join(header)}. Name the columns there."
        )
    numbers = [
        [
            math.nan
            if gaps and not entry.strip()
            else read_number(entry, f"{path}, line {line}, column {name!r}")
            for name, entry in zip(header, fields, strict=True)
        ]
        for line, fields in rows
    ]
    return header, dict(zip(header, np.array(numbers).T, strict=True))


def _is_number(text: str) -> bool:
    try:
        read_number(text, "")
    except ValueError:
        return False
    return True


def _stacked(columns: dict[str, Array], names: Sequence[str]) -> Array:
    return np.stack([columns[name] for name in names], axis=-1)


def _rows(values: Array) -> Array:
    return values[:, None] if values.ndim == 1 else values


def _arrays(path: Path, needed: Sequence[str]) -> dict[str, Array]:
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    with readable(path), np.load(path) as archive:
        found = {name: np.asarray(archive[name]) for name in archive.files}
    if missing := [name for name in needed if name not in found]:
        raise ValueError(f"{path} has no array {missing[0]!r}: it has {', '.join(found)}.")
    return found


def _from_npz(path: Path) -> Table:
    found = _arrays(path, ("x", "y"))
    x, y = _rows(found["x"]), _rows(found["y"])
    if x.ndim != 2 or y.ndim != 2:
        raise ValueError(f"{path}: x is {x.shape}, y {y.shape}; give (n, d), and (n,) or (n, m).")
    sigma = found.get("sigma")
    if sigma is not None:
        try:
            sigma = np.broadcast_to(_rows(sigma) if sigma.ndim else sigma, y.shape)
        except ValueError:
            raise ValueError(f"{path}: sigma {sigma.shape} is not of y's shape.") from None
    coordinates = tuple(f"x{i + 1}" for i in range(x.shape[1]))
    outputs = ("y",) if y.shape[1] == 1 else tuple(f"y{i + 1}" for i in range(y.shape[1]))
    return Table(x, y, sigma, coordinates, outputs)
