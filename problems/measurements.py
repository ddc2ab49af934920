"""Measurements: what they consist of, how they are read, and how large their error is."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sciml_snr.sigma import SigmaEstimate, estimate_sigma_scattered
from sciml_snr.text_files import read_number, read_table

Array = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Observations:
    """Noisy measurements of a problem's outputs.

    Args:
        points: (n, d) coordinates, columns in the order of ``Problem.coordinates``.
        values: (n, k) measured outputs, columns in the order of ``Problem.measured``.
        sigma: (n, 1), or (n, k), standard deviation of the error of each row, or of each value (in
            the units of :meth:`Problem.encode`), or None if unknown.
        clean: (n, k) the outputs without error, where known (synthetic data).
    """

    points: Array
    values: Array
    sigma: Array | None = None
    clean: Array | None = None

    def __len__(self) -> int:
        return len(self.points)

    def with_sigma(self, noise: float | None) -> Observations:
        """The same, with this sigma where none is known."""
        if self.sigma is not None or noise is None:
            return self
        return replace(self, sigma=np.full((len(self), 1), noise))

    def rows(self, chosen: Any) -> Observations:
        """Some of the measurements.

        Args:
            chosen: indices, or (n,) of booleans.
        """
        parts = (self.points, self.values, self.sigma, self.clean)
        return Observations(*(None if part is None else part[chosen] for part in parts))  # type: ignore[arg-type]


def read_measurements(
    path: str | Path,
    name: str,
    coordinates: Sequence[str],
    measured: Sequence[str],
    check: Callable[[str, str, float], None],
) -> Observations:
    """Measurements from a CSV file with columns named after coordinates and what is measured.

    The standard deviation of the errors is a column ``sigma``, or a column ``sigma_NAME`` for each
    that is measured. Other columns are ignored, and so are lines that start with ``#``.

    Args:
        path: the file.
        name: the problem's, for messages.
        coordinates, measured: the columns that there must be.
        check: refuses (where, column, value) by a ValueError that begins with where.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a column is missing, there are no rows, or a value is not a number, not finite,
            or refused; the message names row (line of the file) and column.
    """
    header, parsed = read_table(path)
    needed = (*coordinates, *measured)
    if missing := [column for column in needed if column not in header]:
        raise ValueError(
            f"{path}: column {', '.join(map(repr, missing))} is missing. {name} needs the "
            f"columns {', '.join(needed)} (and optionally sigma); found: "
            f"{', '.join(header) or 'none'}."
        )
    errors = _sigma_columns(path, header, measured)
    columns = (*needed, *errors)
    places = [header.index(column) for column in columns]

    def number(line: int, column: str, text: str) -> float:
        where = f"{path}, line {line}, column {column!r}"
        value = read_number(text, where)
        if not math.isfinite(value):
            raise ValueError(f"{where}: {text!r} is not finite; remove the row or fill it in.")
        if column in errors and value <= 0:
            raise ValueError(f"{where}: a standard deviation must be positive, got {value:g}.")
        check(where, column, value)
        return value

    rows = [
        [number(line, column, fields[i]) for column, i in zip(columns, places, strict=True)]
        for line, fields in parsed
    ]
    if not rows:
        raise ValueError(f"{path}: there are no rows of measurements below the header.")
    d, k = len(coordinates), len(measured)
    points, values, sigma = np.split(np.array(rows), [d, d + k], axis=1)
    return Observations(points, values, sigma if errors else None)


def _sigma_columns(
    path: str | Path, header: Sequence[str], measured: Sequence[str]
) -> tuple[str, ...]:
    """The columns with the errors: one for all, one for each of what is measured, or none."""
    each = tuple(f"sigma_{name}" for name in measured)
    found = [column for column in each if column in header]
    if "sigma" in header and found:
        raise ValueError(f"{path}: there are columns sigma and {found[0]}: remove one of them.")
    if found and len(found) < len(each):
        missing = [column for column in each if column not in header]
        raise ValueError(
            f"{path}: column {', '.join(map(repr, missing))} is missing, as {found[0]!r} is there."
        )
    return each if found else (("sigma",) if "sigma" in header else ())


def scatter_sigma(points: Array, values: Array) -> tuple[SigmaEstimate, ...]:
    """The error of each measured output, from its scatter about its neighbours.

    Args:
        points: (n, d).
        values: (n, k), in the units in which the error is wanted.

    Raises:
        ValueError: there are too few points, or no scatter; says what to do.
    """
    found = estimate_sigma_scattered(points, values)
    estimates = found if isinstance(found, tuple) else (found,)
    if (np.array(estimates) <= 1e-6 * np.abs(values).max(axis=0)).any():
        raise ValueError("the measurements show no scatter at all.")
    return estimates
