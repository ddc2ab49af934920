"""How a run ended: ``summary.json``."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from ..measure.twins import TELLING
from .config import check_keys, is_number, is_whole
from .folder import SUMMARY, read_json
from .options import GAUSS_NEWTON


@dataclass
class Summary:
    """How a run ended.

    Errors are relative L2 errors against the problem's reference. With own measurements there is
    none, and what compares with it is None; ``misfit`` and ``held_out_*`` say how good a fit is.
    """

    optimizer: str
    seed: int
    lr: float | None
    """None where the optimizer has none."""
    iterations: int
    final_error: float | None
    best_error: float | None
    best_iteration: int | None
    memorized: float | None
    """Share of the noise memorized at the end; None where no clean truth is known."""
    mean_q: float | None
    open_fraction: float | None
    seconds: float
    interrupted: bool
    unknowns: dict[str, float]
    unknowns_reference: dict[str, float] | None
    memorized_estimate: float | None = None
    """The same guessed from the misfit, :func:`sciml_snr.share_from_misfit` (by ``snr_gn`` found
    along its own steps, without what its first stage has memorized); None where sigma is unknown.
    :func:`memorization` measures it."""
    ended_by: str | None = None
    """Why the run ended before its budget; None where it did not, and where it was interrupted."""
    unknowns_standard_error: dict[str, float | None] | None = None
    """By :func:`sciml_snr.error_bars`; None where there are none."""
    unknowns_interval: dict[str, list[float | None]] | None = None
    """name -> [low, high] of the 95 % interval."""
    error_bars_note: str | None = None
    """Why there are no error bars, or why they may not hold; None where nothing speaks against
    them."""
    misfit: float | None = None
    """R: mean square of (fit - measurement) / sigma; None where sigma is unknown. About 1 less the
    memorized share for a fit that has found the truth."""
    unknowns_drift: dict[str, float | None] | None = None
    """By how much each unknown moved over the last quarter of the iterations (of two stages, of the
    second's), by a straight line; None of a run too short for that."""
    sigma_estimate: dict[str, list[float]] | None = None
    """output -> [sigma, its standard error], encoded; None where sigma was given."""
    sigma_of_fit: dict[str, list[float]] | None = None
    """output -> [sigma, its standard error] as the fit's residuals say, encoded; None where sigma
    was given or there are no error bars."""
    held_out_count: int | None = None
    """Measurements that a second training did not see; None where there was none."""
    held_out_misfit: float | None = None
    """Over them: mean square of (prediction - measurement) / sigma; 1 + a little for a good fit."""
    held_out_error: dict[str, float | None] | None = None
    """Over them: output -> root mean square of prediction - measurement, in the output's units."""
    measurements: int | None = None
    """Number of measured points."""
    held_out_note: str | None = None
    """Why nothing of it was measured; None where it was, or was not asked for."""

    @property
    def is_telling(self) -> bool:
        """Whether ``memorized_estimate`` is more than chance."""
        return is_telling(self.optimizer, self.measurements)

    def is_moving(self, name: str) -> bool | None:
        """Whether an unknown has not come to rest: over the last quarter of the iterations it moved
        by more than a fifth of its standard error, or by 2 %. None of a run that is too short to
        tell."""
        drift = (self.unknowns_drift or {}).get(name)
        if drift is None or not math.isfinite(drift):
            return None
        error = (self.unknowns_standard_error or {}).get(name)
        most = 0.02 * abs(self.unknowns[name])
        if error is not None and error > 0:
            most = min(most, 0.2 * error)
        return abs(drift) > most


def is_telling(optimizer: str | None, measurements: int | None) -> bool:
    """Whether the guess of the memorized share is more than chance: from a misfit it takes many
    measurements; ``snr_gn`` finds it along its steps."""
    return optimizer == GAUSS_NEWTON or (measurements or 0) >= TELLING


def drifts(rows: Sequence[Mapping[str, float]], names: Iterable[str]) -> dict[str, float | None]:
    """Slopes of columns of a run's log over its last quarter, times that quarter.

    Args:
        rows: with ``iteration`` and the names.
        names: the columns.

    Returns:
        name -> change, in the column's unit; None where fewer than four rows are of that quarter.
    """
    if not rows:
        return dict.fromkeys(names)
    first, end = (rows[i]["iteration"] for i in (0, -1))
    last = [row for row in rows if row["iteration"] >= first + 0.75 * (end - first)]
    iterations = np.array([row["iteration"] for row in last])
    span = np.ptp(iterations)
    found: dict[str, float | None] = {}
    for name in names:
        values = np.array([row[name] for row in last])
        enough = len(last) >= 4 and span > 0 and np.isfinite(values).all()
        found[name] = (
            float(np.polyfit((iterations - iterations[0]) / span, values, 1)[0]) if enough else None
        )
    return found


def read_summary(folder: Path) -> Summary:
    """The ``summary.json`` of a run.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged.
    """
    path = folder / SUMMARY
    found = read_json(path)
    check_keys(found, [field.name for field in fields(Summary)], path)
    for field in fields(Summary):
        if not _fits(found[field.name], str(field.type)):
            raise ValueError(f"{path} is damaged: its {field.name} is {found[field.name]!r}.")
    return Summary(**found)


def _fits(value: Any, hint: str) -> bool:
    """Whether a summary's value is of its type; what is not finite is null in the file."""
    if hint == "dict[str, float]":
        return isinstance(value, dict) and all(map(is_number, value.values()))
    if hint.startswith("dict[str, ") and hint.endswith(" | None"):
        test = _is_pair if "list" in hint else _is_end
        return value is None or (isinstance(value, dict) and all(map(test, value.values())))
    tests: dict[str, Callable[[Any], bool]] = {
        "int": is_whole,
        "str": lambda x: isinstance(x, str),
        "str | None": lambda x: x is None or isinstance(x, str),
        "bool": lambda x: isinstance(x, bool),
    }
    return tests.get(hint, lambda x: x is None or is_number(x))(value)


def _is_end(value: Any) -> bool:
    """A number; what is not finite is null in the file."""
    return value is None or is_number(value)


def _is_pair(value: Any) -> bool:
    """Two ends of an interval."""
    return isinstance(value, list) and len(value) == 2 and all(map(_is_end, value))
