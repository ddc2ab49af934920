"""Point clouds: reading, checking, scaling."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .files.clouds import numbers, read_cloud_file, read_viewpoints
from .files.columns import Array

MIN_POINTS = 10
TINY = 1e-12
"""Relative size of round-off."""

_SMALLEST = 1e-140
"""Squares of such numbers, and of their inverse, are still numbers."""


@dataclass(frozen=True, eq=False)
class Cloud:
    """Points to fit a surface (or curve) to."""

    points: Array
    """(n, d), d = 2 or 3, all different."""
    normals: Array | None = None
    """(n, d), unit vectors, out of the shape; None where the source has none."""
    merged: int = 0
    """Points left out because they repeat another one exactly."""
    viewpoints: Array | None = None
    """(n, d), where each point was seen from; None where that is not known."""
    dropped: int = 0
    """Points left out because they, or their normals, are no numbers."""
    only_orientation: bool = False
    """The normals come from the faces between the points, which share the points' error: good
    enough to tell inside from outside, and no better."""

    @property
    def diagonal(self) -> float:
        """Length of the bounding box's diagonal."""
        return float(np.linalg.norm(np.ptp(self.points, axis=0)))


def read_cloud(
    source: ArrayLike | str | Path,
    normals: ArrayLike | str | None = None,
    *,
    sample: int | None = None,
    seed: int = 0,
    drop_bad: bool = False,
    viewpoints: ArrayLike | None = None,
) -> Cloud:
    """Points from an array or a file, checked.

    Points that repeat another one exactly say nothing new (formats of triangle soups write every
    vertex several times) and are merged, their normals averaged.

    Args:
        source: (n, 3) or (n, 2), or a path: PLY, OBJ, STL, OFF, GLB (whatever trimesh reads); XYZ,
            TXT, CSV, ASC, PTS (:func:`sciml_snr.fields.files.columns.read_columns`; two columns for
            a plane curve); PCD; LAS and LAZ by laspy; NPZ (arrays ``points`` and perhaps
            ``normals`` and ``viewpoints``), NPY.
        normals: as ``source``'s shape, of any length but 0, pointing out of the shape; by default
            those of the file, if it has any; "estimate": not those.
        sample: take so many points from the faces of a mesh, uniformly by area, instead of its
            vertices.
        seed: of the sample.
        drop_bad: leave out points that are NaN, infinite or masked, and those whose normal is, or
            has length 0.
        viewpoints: where the points were seen from, (d,) or one for each (n, d); by default those
            of an NPZ file, if it has any.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: what is there cannot be used; the message says why.
    """
    only_orientation = False
    if isinstance(source, (str, Path)):
        points, found, only_orientation = read_cloud_file(Path(source), sample, seed)
        if normals is None or (isinstance(normals, str) and only_orientation):
            normals = found
        else:
            only_orientation = False
        if viewpoints is None:
            viewpoints = read_viewpoints(Path(source))
    elif sample is not None:
        raise ValueError("sample is for mesh files: an array of points has no faces.")
    else:
        points = numbers("points", source)
    given = None if normals is None or isinstance(normals, str) else numbers("normals", normals)
    seen = None if viewpoints is None else _one_each(numbers("viewpoints", viewpoints), points)
    dropped = 0
    if drop_bad:
        good = _are_good(points, given)
        dropped = int((~good).sum())
        points, given = points[good], None if given is None else given[good]
        seen = None if seen is None else seen[good]
    cloud = _checked(points, given, seen)
    return replace(cloud, only_orientation=only_orientation, dropped=dropped)


def _one_each(viewpoints: Array, points: Array) -> Array:
    if points.ndim == 2 and viewpoints.shape in ((points.shape[1],), points.shape):
        _check_finite("viewpoints", np.atleast_2d(viewpoints))
        return np.array(np.broadcast_to(viewpoints, points.shape))
    raise ValueError(
        f"viewpoints have the shape {viewpoints.shape}: give one {points.shape[1:]}, or one for "
        f"each point {points.shape}."
    )


def _are_good(points: Array, normals: Array | None) -> NDArray[np.bool_]:
    """Which points are numbers, with a normal that says something where there are normals."""
    if points.ndim != 2 or (normals is not None and normals.shape != points.shape):
        return np.ones(len(points), dtype=bool)  # which is refused below
    good = np.isfinite(points).all(axis=1)
    if normals is not None:
        good &= np.isfinite(normals).all(axis=1) & (normals != 0).any(axis=1)
    return np.asarray(good)


def _checked(points: Array, normals: Array | None, seen: Array | None = None) -> Cloud:
    """Refuse what no surface can be fitted to; merge repeated points; normals of length 1."""
    _check_points(points)
    if normals is not None:
        normals = _unit(normals, points)
    unique, first, labels = np.unique(points, axis=0, return_index=True, return_inverse=True)
    merged = len(points) - len(unique)
    if not merged:
        return Cloud(points, normals, viewpoints=seen)
    if len(unique) < MIN_POINTS:
        raise ValueError(
            f"{len(unique)} different points ({len(points)} with repetitions): a surface needs at "
            f"least {MIN_POINTS}."
        )
    if normals is not None:
        sums = np.zeros_like(unique)
        np.add.at(sums, labels.reshape(-1), normals)
        lengths = np.linalg.norm(sums, axis=1, keepdims=True)
        if (lengths < 1e-3).any():
            raise ValueError(
                "There are points at one place with opposite normals: leave one of them out."
            )
        normals = sums / lengths
    return Cloud(unique, normals, merged, viewpoints=None if seen is None else seen[first])


def as_points(points: ArrayLike) -> Array:
    """Points (n, d) as an array, checked.

    Raises:
        ValueError: no surface can be fitted to them; says why.
    """
    found = numbers("points", points)
    _check_points(found)
    return found


def _check_points(points: Array) -> None:
    if points.ndim != 2 or points.shape[1] not in (2, 3):
        raise ValueError(f"points has the shape {points.shape}: it must be (n, 3) or (n, 2).")
    _check_finite("points", points)
    if len(points) < MIN_POINTS:
        raise ValueError(f"{len(points)} points: a surface needs at least {MIN_POINTS}.")
    largest = np.abs(points).max()
    if not _SMALLEST < largest < 1 / _SMALLEST:
        raise ValueError(
            f"The largest coordinate is {largest:g}, and its square is no number any more: rescale "
            "the points."
        )
    spread = np.linalg.svd(points - points.mean(axis=0), compute_uv=False)
    if spread[0] <= TINY * np.abs(points).max():
        raise ValueError("All points are in one place: there is no surface to fit.")
    if spread[1] <= 1e-9 * spread[0]:
        raise ValueError("All points lie on one line: there is no surface to fit.")


def unit_vectors(name: str, vectors: ArrayLike, points: Array) -> Array:
    """Vectors (n, d), one for each point, of length 1.

    Raises:
        ValueError: there are others, or of length 0; names them.
    """
    found = numbers(name, vectors)
    if found.shape != points.shape:
        raise ValueError(f"points {points.shape} and {name} {found.shape} differ in shape.")
    _check_finite(name, found)
    lengths = np.linalg.norm(found, axis=1, keepdims=True)
    if zero := int((lengths == 0).sum()):
        raise ValueError(f"{zero} of {len(found)} {name} have length 0.")
    unit: Array = found / lengths
    return unit


def _unit(normals: Array, points: Array) -> Array:
    if normals.shape != points.shape:
        raise ValueError(f"points {points.shape} and normals {normals.shape} differ in shape.")
    _check_finite("normals", normals)
    lengths = np.linalg.norm(normals, axis=1, keepdims=True)
    if zero := int((lengths == 0).sum()):
        raise ValueError(
            f"{zero} of {len(normals)} normals have length 0: leave those points out "
            "(drop_bad=True, --drop-bad), or have all normals estimated (normals='estimate', "
            "--estimate-normals)."
        )
    unit: Array = normals / lengths
    return unit


def _check_finite(name: str, values: Array) -> None:
    bad = int((~np.isfinite(values)).any(axis=1).sum())
    if bad:
        raise ValueError(
            f"{bad} of {len(values)} {name} are NaN or infinite: leave those points out "
            "(drop_bad=True, --drop-bad)."
        )


@dataclass(frozen=True)
class Frame:
    """The change from the input's coordinates to those of the fit, and back.

    In the latter the bounding box of the points is centred, and its longest side is [-1, 1].
    """

    center: tuple[float, ...]
    scale: float
    """Length of the input that becomes 1."""

    @classmethod
    def around(cls, points: Array) -> Frame:
        """The frame in which these points (n, d) fill the unit cube."""
        low, high = points.min(axis=0), points.max(axis=0)
        return cls(tuple(((low + high) / 2).tolist()), float((high - low).max() / 2))

    def inward(self, points: ArrayLike) -> Array:
        """(n, d) in the input's coordinates -> the fit's."""
        return (np.asarray(points, dtype=float) - self.center) / self.scale

    def outward(self, points: ArrayLike) -> Array:
        """(n, d) in the fit's coordinates -> the input's."""
        return np.asarray(points, dtype=float) * self.scale + self.center
