"""Domains, grids, and the checks and conditions that many problems share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import deepxde as dde
import numpy as np

from .measurements import Array


def box(domain: Mapping[str, tuple[float, float]]) -> Any:
    """A domain as a DeepXDE geometry: an interval, a rectangle or a box, with time where the last
    coordinate is t, time or year."""
    lows, highs = map(list, zip(*domain.values(), strict=True))
    is_timed = list(domain)[-1] in ("t", "time", "year")
    space = len(lows) - is_timed
    time = dde.geometry.TimeDomain(lows[-1], highs[-1]) if is_timed else None
    if not space:
        return time
    kinds = {2: dde.geometry.Rectangle, 3: dde.geometry.Cuboid}
    place = (
        dde.geometry.Interval(lows[0], highs[0])
        if space == 1
        else kinds.get(space, dde.geometry.Hypercube)(lows[:space], highs[:space])
    )
    return place if time is None else dde.geometry.GeometryXTime(place, time)


def zero_on_boundary(geometry: Any) -> Any:
    """The condition that the first output is 0 on the boundary in space."""
    return dde.icbc.DirichletBC(geometry, lambda _: 0.0, lambda _, on_boundary: on_boundary)


def check_positive(**values: float) -> None:
    """Refuse a constant that has to be positive.

    Raises:
        ValueError: a value is not; the message names it.
    """
    for name, value in values.items():
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{name} must be a finite number > 0, got {value}.")


def grid(*axes: Array) -> Array:
    """All combinations of the axes' values as (n, d) points, last axis fastest."""
    return np.stack([a.ravel() for a in np.meshgrid(*axes, indexing="ij")], axis=1)
