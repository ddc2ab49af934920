"""Surfaces: the zero level of a function as mesh or contours, and how far two surfaces differ."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import cKDTree

from .files.clouds import POINTS_ONLY
from .points import read_cloud

Array = NDArray[np.float64]
Field = Callable[[Array], Array]
"""Points (n, d) -> values (n,), negative inside."""

SLAB = 1 << 21
"""Values of the field that are held at once (16 MB); a mesh does not need the whole volume."""


def grid_axes(low: ArrayLike, high: ArrayLike, resolution: int) -> list[Array]:
    """Axes of a grid of cubic cells over a box, ``resolution`` of them along its longest side.

    Raises:
        ValueError: ``resolution`` is not from 4 to 2048.
    """
    check_resolution(resolution)
    bottom, top = np.asarray(low, dtype=float), np.asarray(high, dtype=float)
    size = float((top - bottom).max()) / resolution
    cells = np.ceil((top - bottom) / size - 1e-9).astype(int)
    start = (bottom + top) / 2 - cells * size / 2
    return [first + size * np.arange(n + 1) for first, n in zip(start, cells, strict=True)]


def check_resolution(resolution: int) -> None:
    """Refuse what is no grid, or too large a one.

    Raises:
        ValueError: ``resolution`` is not from 4 to 2048.
    """
    if not 4 <= resolution <= 2048:
        raise ValueError(f"resolution must be from 4 to 2048 cells, got {resolution}.")


def zero_mesh(field: Field, axes: list[Array]) -> tuple[Array, NDArray[np.int64]]:
    """Vertices (v, 3) and faces (f, 3), facing outward, of a field's zero level, if it has one.

    Marching cubes, slab by slab along the first axis, so that memory grows with the mesh and one
    slab only.

    Source: T. Lewiner et al., J. Graphics Tools 8 (2003) 1, in scikit-image.
    """
    plane = len(axes[1]) * len(axes[2])
    thickness = max(1, SLAB // plane - 1)
    last = len(axes[0]) - 1
    parts: list[tuple[Array, Any]] = []
    for start in range(0, last, thickness):
        stop = min(start + thickness, last)
        values = _slab(field, axes[0][start : stop + 1], axes)
        part = _march(values)
        if part is not None:
            parts.append((part[0] + [start, 0, 0], part[1]))
    if not parts:
        return np.empty((0, 3)), np.empty((0, 3), dtype=np.int64)
    offsets = np.cumsum([0] + [len(vertices) for vertices, _ in parts])
    faces = np.concatenate([f + o for (_, f), o in zip(parts, offsets, strict=False)])
    # Slabs share a plane, and have found the same vertices in it.
    vertices, index = np.unique(
        np.concatenate([vertices for vertices, _ in parts]), axis=0, return_inverse=True
    )
    faces = index.reshape(-1)[faces]
    a, b, c = faces.T
    faces = faces[(a != b) & (b != c) & (c != a)]
    size = [axis[1] - axis[0] for axis in axes]
    return vertices * size + [axis[0] for axis in axes], faces.astype(np.int64)


def _slab(field: Field, first: Array, axes: list[Array]) -> NDArray[np.float32]:
    """Values over some planes of the grid, evaluated plane by plane."""
    second, third = np.meshgrid(axes[1], axes[2], indexing="ij")
    flat = np.column_stack([np.zeros(second.size), second.ravel(), third.ravel()])
    values = np.empty((len(first), *second.shape), dtype=np.float32)
    for plane, x in zip(values, first, strict=True):
        flat[:, 0] = x
        plane[:] = field(flat).reshape(second.shape)
    return values


def _march(values: NDArray[np.float32]) -> tuple[Array, Any] | None:
    from skimage.measure import marching_cubes  # takes a second or two

    if not values.min() < 0 < values.max():
        return None
    vertices, faces, _, _ = marching_cubes(values, 0.0, gradient_direction="descent")
    return vertices.astype(float), faces


def zero_contours(field: Field, axes: list[Array]) -> list[Array]:
    """The zero level of a field in the plane: polylines (m, 2), the first point again at the end
    of the closed ones."""
    from skimage.measure import find_contours

    first, second = np.meshgrid(*axes, indexing="ij")
    values = field(np.column_stack([first.ravel(), second.ravel()])).reshape(first.shape)
    size = [axis[1] - axis[0] for axis in axes]
    start = [axis[0] for axis in axes]
    return [contour * size + start for contour in find_contours(values, 0.0)]


@dataclass(frozen=True)
class SurfaceMetrics:
    """How far a surface is from a reference. Distances are in the units of their coordinates."""

    chamfer: float
    """Mean distance to the other one: of the surface's points, and of the reference's, averaged."""
    f_score: float
    """Harmonic mean of the shares of both that lie within ``threshold`` of the other."""
    normal_consistency: float
    """Mean absolute cosine between normals at nearest points, both ways; NaN without normals."""
    threshold: float


@dataclass(frozen=True, eq=False)
class _Sampled:
    """Points on a surface, and what is needed to find the nearest point of the surface itself."""

    points: Array
    normals: Array | None = None
    mesh: Any = None
    anchors: Array | None = None
    """(m, 3): the points and the centre of every face, so that no place of the mesh is far from
    one, whatever the size of its faces."""
    faces: NDArray[np.int64] | None = None
    """(m,): of the anchors."""

    def nearest(self, points: Array) -> tuple[Array, Array | None]:
        """Distances (n,) from the points to the surface, and its normals (n, d) there.

        To a mesh: to the faces of the eight nearest anchors.
        """
        if self.anchors is None or self.faces is None:
            return cKDTree(self.points).query(points)[0], None
        from trimesh.triangles import closest_point

        k = min(8, len(self.anchors))
        faces = self.faces[cKDTree(self.anchors).query(points, k)[1].reshape(len(points), k)]
        repeated = np.repeat(points, k, axis=0)
        found = closest_point(self.mesh.triangles[faces.reshape(-1)], repeated)
        apart = np.linalg.norm(found - repeated, axis=1).reshape(-1, k)
        best = apart.argmin(axis=1)
        rows = np.arange(len(points))
        return apart[rows, best], np.asarray(self.mesh.face_normals)[faces[rows, best]]


def surface_metrics(
    surface: Any,
    reference: Any,
    *,
    threshold: float | None = None,
    samples: int = 20_000,
    seed: int = 0,
) -> SurfaceMetrics:
    """Chamfer distance, F-score and normal consistency between a surface and a reference.

    Meshes are sampled uniformly by area; distances are to the other mesh's triangles, not to its
    samples, so that the samples' spacing does not add to them. To a cloud they are to its points.

    Args:
        surface: a ``trimesh.Trimesh``, or points (n, d).
        reference: a ``trimesh.Trimesh``, the path of one, or points (n, d).
        threshold: of the F-score; by default 1 % of the diagonal of the reference's box.
        samples: points on each mesh.
        seed: of the samples.

    Raises:
        FileNotFoundError, ValueError: one of the two is empty or cannot be read.

    Sources: F-score: A. Knapitsch et al., ACM Trans. Graph. 36 (2017) 78; normal consistency:
    L. Mescheder et al., CVPR 2019, arXiv:1812.03828.
    """
    own, other = _sampled(surface, samples, seed), _sampled(reference, samples, seed + 1)
    dims = own.points.shape[1], other.points.shape[1]
    if dims[0] != dims[1]:
        raise ValueError(f"The surface has {dims[0]} dimensions, the reference {dims[1]}.")
    if threshold is None:
        threshold = 0.01 * float(np.linalg.norm(np.ptp(other.points, axis=0)))
    if not threshold > 0:
        raise ValueError(f"threshold must be a positive number, got {threshold}.")
    to_other, normals_there = other.nearest(own.points)
    to_own, normals_here = own.nearest(other.points)
    precision, recall = (float((d <= threshold).mean()) for d in (to_other, to_own))
    consistency = [
        float(np.abs(np.einsum("ij,ij->i", a, b)).mean())
        for a, b in ((own.normals, normals_there), (other.normals, normals_here))
        if a is not None and b is not None
    ]
    return SurfaceMetrics(
        chamfer=float(to_other.mean() + to_own.mean()) / 2,
        f_score=2 * precision * recall / max(precision + recall, 1e-12),
        normal_consistency=float(np.mean(consistency)) if len(consistency) == 2 else float("nan"),
        threshold=threshold,
    )


def _sampled(surface: Any, samples: int, seed: int) -> _Sampled:
    import trimesh

    if isinstance(surface, (str, Path)):
        surface = read_surface(surface)
    if isinstance(surface, trimesh.Trimesh):
        if len(surface.faces) == 0:
            raise ValueError("The mesh has no faces: there is no surface to compare.")
        points, faces = trimesh.sample.sample_surface(surface, samples, seed=seed)
        return _Sampled(
            np.asarray(points),
            np.asarray(surface.face_normals)[faces],
            surface,
            np.concatenate([points, surface.triangles_center]),
            np.concatenate([faces, np.arange(len(surface.faces))]),
        )
    points = np.asarray(surface, dtype=float)
    if points.ndim != 2 or len(points) == 0:
        raise ValueError(f"The surface is neither a mesh nor points (n, d): {points.shape}.")
    return _Sampled(points)


def read_surface(path: str | Path) -> Any:
    """The mesh in a file, or the points (n, d) where there are no faces.

    Raises:
        FileNotFoundError, ValueError: there is none, or it cannot be read.
    """
    import trimesh

    points = read_cloud(path).points  # refuses what is no surface, with a reason
    if Path(path).suffix.lower() in POINTS_ONLY:
        return points
    mesh = trimesh.load_mesh(path)
    return mesh if isinstance(mesh, trimesh.Trimesh) and len(mesh.faces) else points
