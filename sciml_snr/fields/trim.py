"""Where there are points, and where a surface is invented."""

from __future__ import annotations

import contextlib
import math

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

Array = NDArray[np.float64]

NEIGHBORS = 12
"""Points around a place that tell whether it is among them."""
ONE_SIDED = {2: 0.95, 3: 0.8}
"""A place is beyond the points when the mean of the ways to them is so long, relative to the mean
length, by dimension. On a straight edge of an evenly covered plane it is 0.64, far outside 1; at
the end of a curve 1."""
SPACINGS = {2: 5.0, 3: 2.5}
"""To the nearest point. Points at random, as dense everywhere, leave no such gaps: one place in
e^10 on a curve, one in e^20 on a surface."""

CHUNK = 1 << 16
"""Places that are looked at at once: bounds the memory."""


def covered(
    places: Array, normals: Array, points: Array, sigma: float, trim: float | str
) -> NDArray[np.bool_]:
    """Which places (m, d) of a surface are where the points (n, d) are.

    Args:
        places, normals: of the surface, and its unit normals there.
        points, sigma: that it was fitted to, and their error along the normal.
        trim: the distance to the nearest point up to which it is; "auto": 2.5 times the points'
            own spacing nearby (on a curve 5 times) and 3 sigma, and not beyond their edge.
    """
    dim = points.shape[1]
    tree = cKDTree(points)
    if trim != "auto":
        near: NDArray[np.bool_] = tree.query(places)[0] <= float(trim)
        return near
    k = min(NEIGHBORS, len(points) - 1)
    around = tree.query(points, k + 1)[0][:, -1]
    # Of k points evenly in a disk (or along a line) of this radius: the spacing.
    spacing = around * math.sqrt(math.pi / k) if dim == 3 else 2 * around / k
    reach = SPACINGS[dim] * spacing
    found = []
    for start in range(0, len(places), CHUNK):
        here, across = places[start : start + CHUNK], normals[start : start + CHUNK]
        distances, rows = tree.query(here, k)
        # The median: a stray point in a gap has its own spacing, which is the gap's.
        within = distances[:, 0] <= np.median(reach[rows], axis=1) + 3 * sigma
        ways = points[rows] - here[:, None]
        ways -= np.einsum("nki,ni->nk", ways, across)[..., None] * across[:, None]
        lengths = np.linalg.norm(ways, axis=2).mean(axis=1)
        beyond = np.linalg.norm(ways.mean(axis=1), axis=1) > ONE_SIDED[dim] * lengths
        found.append(within & ~beyond)
    return np.concatenate(found)


def check_trim(trim: float | str | None) -> float | str | None:
    """A length, "auto" or None as they are.

    Raises:
        ValueError: it is something else.
    """
    if trim is None or trim == "auto":
        return trim
    with contextlib.suppress(TypeError, ValueError):
        if 0 < float(trim) < math.inf:
            return float(trim)
    raise ValueError(f"trim must be a positive length or 'auto', got {trim!r}.")


def runs(curve: Array, good: NDArray[np.bool_]) -> list[Array]:
    """The pieces of a polyline of which all points are good."""
    if good.all():
        return [curve]
    if (curve[0] == curve[-1]).all():  # closed: begin where it is cut
        at = int(good.argmin())
        curve, good = np.roll(curve[:-1], -at, axis=0), np.roll(good[:-1], -at)
    cuts = np.flatnonzero(np.diff(good)) + 1
    both = zip(np.split(curve, cuts), np.split(good, cuts), strict=True)
    return [piece for piece, is_good in both if is_good[0] and len(piece) > 1]
