r"""Point clouds: reading, checking, scaling; their normals, and the error of their positions.

Normals and error come from local patches, the k nearest neighbours of every point: the plane of
least squares and, over that plane, a quadratic function. k grows until a patch is a few times wider
than the layer of points is thick.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csgraph
from scipy.spatial import cKDTree

from ..sigma import SigmaEstimate
from ..text_files import read_text

Array = NDArray[np.float64]

MIN_POINTS = 10
NEIGHBORS = (8, 10, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384)
"""Sizes of patches that are tried."""

NORMALS_NEIGHBORS = 16
"""The least for normals, whose noise goes with 1 / sqrt k. The heights' variance is an average over
all patches anyway, and the smaller they are, the less of a detail counts as noise."""

ASPECTS = (4.0, 3.2)
"""A patch is large enough when its radius is so many times the points' distance from it; the second
number goes for strongly curved surfaces, where no patch reaches the first. Patches of less than 16
points, which are cut off more easily, need 5/4 of it."""

_TINY = 1e-12
"""Relative size of round-off."""

_SMALLEST = 1e-140
"""Squares of such numbers, and of their inverse, are still numbers."""

_CHUNK = 1 << 20
"""Neighbours that are looked at at once: bounds the memory."""


@dataclass(frozen=True, eq=False)
class Cloud:
    """Points to fit a surface (or curve) to."""

    points: Array
    """(n, d), d = 2 or 3, all different."""
    normals: Array | None = None
    """(n, d), unit vectors, out of the shape; None where the source has none."""
    merged: int = 0
    """Points left out because they repeat another one exactly."""
    only_orientation: bool = False
    """The normals come from the faces between the points, which share the points' error: good
    enough to tell inside from outside, and no better."""

    @property
    def diagonal(self) -> float:
        """Length of the bounding box's diagonal."""
        return float(np.linalg.norm(np.ptp(self.points, axis=0)))


def read_cloud(
    source: ArrayLike | str | Path,
    normals: ArrayLike | None = None,
    *,
    sample: int | None = None,
    seed: int = 0,
) -> Cloud:
    """Points from an array or a file, checked.

    Points that repeat another one exactly say nothing new (formats of triangle soups write every
    vertex several times) and are merged, their normals averaged.

    Args:
        source: (n, 3) or (n, 2), or a path: PLY, OBJ, STL, OFF, GLB (whatever trimesh reads); XYZ,
            TXT, CSV (columns x, y, z or x, y, z and normals; two columns for a plane curve); NPZ
            (arrays ``points`` and perhaps ``normals``), NPY.
        normals: as ``source``'s shape, of any length but 0, pointing out of the shape; by default
            those of the file, if it has any.
        sample: take so many points from the faces of a mesh, uniformly by area, instead of its
            vertices.
        seed: of the sample.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: what is there cannot be used; the message says why.
    """
    only_orientation = False
    if isinstance(source, (str, Path)):
        points, found, only_orientation = _read(Path(source), sample, seed)
        if normals is None:
            normals = found
        else:
            only_orientation = False
    elif sample is not None:
        raise ValueError("sample is for mesh files: an array of points has no faces.")
    else:
        points = _numbers("points", source)
    cloud = _checked(points, None if normals is None else _numbers("normals", normals))
    return Cloud(cloud.points, cloud.normals, cloud.merged, only_orientation)


def _numbers(name: str, values: ArrayLike) -> Array:
    try:
        if np.iscomplexobj(values):
            raise TypeError
        return np.array(values, dtype=float)
    except (TypeError, ValueError):
        raise ValueError(f"{name} is not an array of numbers.") from None


def _read(path: Path, sample: int | None, seed: int) -> tuple[Array, Array | None, bool]:
    """Points, normals, and whether these are of faces between the points."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    try:
        if path.suffix.lower() in (".npz", ".npy"):
            points, normals = _read_numpy(path)
        elif path.suffix.lower() in (".xyz", ".txt", ".csv"):
            points, normals = _read_columns(path)
        else:
            return _read_mesh(path, sample, seed)
    except _Unusable:
        raise
    except Exception as error:  # readers raise whatever comes to their parsers' minds
        raise ValueError(f"{path} cannot be read as points: {error}") from error
    if sample is not None:
        raise ValueError(f"{path} has no faces to sample from: leave sample out.")
    return points, normals, False


class _Unusable(ValueError):
    """A file that was read, and does not hold what is needed."""


def _read_numpy(path: Path) -> tuple[Array, Array | None]:
    loaded = np.load(path)
    if isinstance(loaded, np.ndarray):
        return _numbers("points", loaded), None
    with loaded as arrays:
        if "points" not in arrays:
            raise _Unusable(f"{path} has no array 'points', only {', '.join(arrays) or 'nothing'}.")
        normals = _numbers("normals", arrays["normals"]) if "normals" in arrays else None
        return _numbers("points", arrays["points"]), normals


def _read_columns(path: Path) -> tuple[Array, Array | None]:
    text = read_text(path)
    if not text.strip():
        raise _Unusable(f"{path} is empty.")
    lines = text.strip().splitlines()
    last = next((line for line in reversed(lines) if not line.startswith("#")), "")
    if "," in last and ";" in last:
        raise _Unusable(
            f"{path} has commas and semicolons: write numbers with points (0.5), and one of the "
            "two between them."
        )
    separator = next((s for s in (",", ";") if s in last), None)
    first, second = (line.replace(separator or " ", " ").split() for line in [*lines, ""][:2])
    numeric = len(second) > 1 and all(map(_is_number, second))
    if len(first) == 1 and first[0].isdigit():  # a count, and mostly a comment
        skipped = 1 if numeric else 2
    else:
        skipped = int(not all(map(_is_number, first)))
    rows = np.loadtxt(lines, delimiter=separator, skiprows=skipped, ndmin=2)
    if rows.shape[1] in (2, 3):
        return rows, None
    if rows.shape[1] == 6:
        lengths = np.linalg.norm(rows[:, 3:], axis=1)
        if np.all((np.abs(lengths - 1) < 0.01) | (lengths == 0)):
            return rows[:, :3], rows[:, 3:]
        raise _Unusable(
            f"The last three of the six columns of {path} are no unit normals (colours?): leave "
            "them out, or pass points and normals as arrays."
        )
    raise _Unusable(
        f"{path} has {rows.shape[1]} columns: it must be x y, x y z, or x y z and a unit normal."
    )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _read_mesh(path: Path, sample: int | None, seed: int) -> tuple[Array, Array | None, bool]:
    import trimesh

    shape: Any = trimesh.load(path, process=False)
    if isinstance(shape, trimesh.Scene):
        shape = shape.to_mesh()
    vertices = np.array(getattr(shape, "vertices", np.empty((0, 3))), dtype=float)
    if len(vertices) == 0:
        raise _Unusable(f"{path} holds no points.")
    if not isinstance(shape, trimesh.Trimesh) or len(shape.faces) == 0:
        if sample is not None:
            raise _Unusable(f"{path} has no faces to sample from: leave sample out.")
        own = _obj_normals(path) if path.suffix.lower() == ".obj" else _ply_normals(shape)
        return vertices, own if own is None or len(own) == len(vertices) else None, False
    if sample is not None:
        if sample < MIN_POINTS:
            raise _Unusable(f"sample must be at least {MIN_POINTS}, got {sample}.")
        points, faces = trimesh.sample.sample_surface(shape, sample, seed=seed)
        return np.array(points), np.array(shape.face_normals[faces]), True
    stored = "vertex_normals" in shape._cache.cache  # otherwise computed from the faces when asked
    if stored:
        return vertices, np.array(shape.vertex_normals, dtype=float), False
    shape.merge_vertices()
    return (
        np.array(shape.vertices, dtype=float),
        np.array(shape.vertex_normals, dtype=float),
        True,
    )


def _obj_normals(path: Path) -> Array | None:
    """The normals of an OBJ file without faces, one per vertex: trimesh leaves them out."""
    text = path.read_text(errors="replace")
    found = [fields[1:4] for line in text.splitlines() if (fields := line.split())[:1] == ["vn"]]
    if not found or any(len(numbers) != 3 for numbers in found):
        return None
    return np.array(found, dtype=float)


def _ply_normals(cloud: Any) -> Array | None:
    """The normals of a PLY file without faces: trimesh keeps them in the raw data only."""
    data = cloud.metadata.get("_ply_raw", {}).get("vertex", {}).get("data")
    columns = ("nx", "ny", "nz")
    if isinstance(data, dict):
        names = set(data)
    else:
        names = set(getattr(getattr(data, "dtype", None), "names", None) or ())
    if not names.issuperset(columns):
        return None
    assert data is not None
    return np.column_stack([np.asarray(data[c], dtype=float).reshape(-1) for c in columns])


def _checked(points: Array, normals: Array | None) -> Cloud:
    """Refuse what no surface can be fitted to; merge repeated points; normals of length 1."""
    _check_points(points)
    if normals is not None:
        normals = _unit(normals, points)
    unique, labels = np.unique(points, axis=0, return_inverse=True)
    merged = len(points) - len(unique)
    if not merged:
        return Cloud(points, normals)
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
    return Cloud(unique, normals, merged)


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
    if spread[0] <= _TINY * np.abs(points).max():
        raise ValueError("All points are in one place: there is no surface to fit.")
    if spread[1] <= 1e-9 * spread[0]:
        raise ValueError("All points lie on one line: there is no surface to fit.")


def _unit(normals: Array, points: Array) -> Array:
    if normals.shape != points.shape:
        raise ValueError(f"points {points.shape} and normals {normals.shape} differ in shape.")
    _check_finite("normals", normals)
    lengths = np.linalg.norm(normals, axis=1, keepdims=True)
    if zero := int((lengths == 0).sum()):
        raise ValueError(
            f"{zero} of {len(normals)} normals have length 0: leave those points out, or have all "
            "normals estimated."
        )
    unit: Array = normals / lengths
    return unit


def _check_finite(name: str, values: Array) -> None:
    bad = int((~np.isfinite(values)).any(axis=1).sum())
    if bad:
        raise ValueError(
            f"{bad} of {len(values)} {name} are NaN or infinite: leave those points out."
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


@dataclass(frozen=True, eq=False)
class Patches:
    """The k nearest neighbours of every point, as a plane and a quadratic function over it."""

    neighbors: int
    """k, the point itself among them."""
    centers: Array
    """(n, d), means of the patches."""
    normals: Array
    """(n, d), unit vectors across the planes; which of the two sides is left to chance."""
    radius: float
    """Median over patches of the distance to the k-th neighbour."""
    variance: Array
    """(n,), of the points around the quadratic function, corrected for its degrees of freedom."""

    @property
    def dof(self) -> int:
        """Degrees of freedom of each variance."""
        return self.neighbors - _quadratic_terms(self.normals.shape[1])

    @property
    def sigma(self) -> float:
        """Root of the median variance.

        The median, because a patch across an edge, or across two sheets, has a far larger one;
        :math:`(1 - 2/(9 \nu))^3` is that of :math:`\\chi^2_\nu / \nu` (E. Wilson and M. Hilferty,
        Proc. Natl. Acad. Sci. 17 (1931) 684).
        """
        return math.sqrt(float(np.median(self.variance)) / (1 - 2 / (9 * self.dof)) ** 3)


def local_patches(
    points: ArrayLike, neighbors: int | None = None, least: int = NORMALS_NEIGHBORS
) -> Patches:
    """Patches around the points.

    Args:
        points: (n, d), d = 2 or 3.
        neighbors: k; by default the first of :data:`NEIGHBORS` that is large enough by
            :data:`ASPECTS`. Where there is none (a cloud that is noise throughout), the last.
        least: the fewest that are tried.

    Raises:
        ValueError: ``neighbors`` is out of range.
    """
    x = _numbers("points", points)
    _check_points(x)
    n, dim = x.shape
    fewest = _quadratic_terms(dim) + 3
    if neighbors is not None:
        if not fewest <= neighbors <= n:
            raise ValueError(f"neighbors must be from {fewest} to {n}, got {neighbors}.")
        return _patches(x, cKDTree(x), neighbors)
    tree = cKDTree(x)
    known = [k for k in NEIGHBORS if k >= max(least, fewest)]
    sizes = [k for k in known if k <= max(known[0], n // 4)]
    return _patches(x, tree, min(_size(x, tree, sizes), n))


def _size(x: Array, tree: Any, sizes: list[int]) -> int:
    """The first size that is large enough."""
    found, best = None, 0.0
    for k in sizes:
        # Some hundred patches are enough to tell; all of them only at the size that is taken.
        trial = _patches(x, tree, min(k, len(x)), x[:: max(1, len(x) // 500)])
        aspect = trial.radius / max(trial.sigma, _TINY * trial.radius)
        small = k < NORMALS_NEIGHBORS
        large_enough, curved = (1.25 * a if small else a for a in ASPECTS)
        if aspect >= large_enough:
            return k
        if found is None and aspect >= curved:
            found = k
        best = best if small else max(best, aspect)
        if found is not None and aspect < 0.9 * best:
            break  # curvature from here on, until a patch is as large as the shape
    return sizes[-1] if found is None else found


def _quadratic_terms(dim: int) -> int:
    """Coefficients of a quadratic function of dim - 1 variables."""
    return dim * (dim + 1) // 2


def _patches(x: Array, tree: Any, k: int, at: Array | None = None) -> Patches:
    at = x if at is None else at
    parts = [_fit_patches(x, tree, k, chunk) for chunk in _chunks(at, k)]
    centers, normals, radii, variance = (
        np.concatenate(column) for column in zip(*parts, strict=True)
    )
    return Patches(k, centers, normals, float(np.median(radii)), variance)


def _chunks(at: Array, k: int) -> Iterator[Array]:
    rows = max(1, _CHUNK // k)
    return (at[i : i + rows] for i in range(0, len(at), rows))


def _fit_patches(x: Array, tree: Any, k: int, at: Array) -> tuple[Array, Array, Array, Array]:
    """Centers, normals, radii, and variances around the quadratic functions, of one chunk."""
    distances, near = tree.query(at, k)
    patch = x[near]
    centers = patch.mean(axis=1)
    patch = patch - centers[:, None]
    axes = np.linalg.eigh(np.einsum("nki,nkj->nij", patch, patch))[1]
    radii = np.maximum(distances[:, -1], np.finfo(float).tiny)  # k points in one place
    local = np.einsum("nki,nij->nkj", patch, axes) / radii[:, None, None]
    height, along = local[..., 0], local[..., 1:]
    first, second = np.triu_indices(along.shape[2])
    design = np.concatenate(
        [np.ones_like(along[..., :1]), along, along[..., first] * along[..., second]], axis=2
    )
    fitted = np.linalg.qr(design)[0]
    left = height - np.einsum("nkm,nlm,nl->nk", fitted, fitted, height, optimize=True)
    variance = (left**2).sum(axis=1) / (k - design.shape[2]) * radii**2
    return centers, axes[..., 0], radii, variance


def estimate_sigma_points(points: ArrayLike, neighbors: int | None = None) -> SigmaEstimate:
    r"""Standard deviation of the points' error along the normal, from quadratic patches.

    Over the plane of a point's k nearest neighbours their heights are fitted by a quadratic
    function with p = 6 coefficients (3 for a curve in the plane);

    .. math:: \hat\sigma^2 = \operatorname{median} \frac{\sum r^2}{k - p}

    over all points, divided by the median of :math:`\chi^2_{k-p} / (k-p)`. Patches overlap; for the
    standard error, n / k of them count as independent.

    The bias: what a patch has beyond a quadratic function, edges and details finer than it, and a
    second sheet nearby, count as noise (too large); a layer as thick as the patches are wide is
    cut off by the ball of neighbours (too small). A sphere of 1,000 to 20,000 points with errors
    of 0.5 to 2 % of the diagonal comes out 9 % too low to 1 % too high, a cube with three holes of
    1,000 points 15 to 30 % too high.

    Args:
        points: (n, d), d = 2 or 3.
        neighbors: k; by default as for :func:`local_patches`, but from 8 on (10 in space).

    Returns:
        The estimate in units of the points.

    Raises:
        ValueError: the points cannot be used, or ``neighbors`` is out of range.
    """
    patches = local_patches(points, neighbors, least=0)
    n, k = len(patches.normals), patches.neighbors
    error = patches.sigma * math.sqrt(k / (2 * patches.dof * n))
    return SigmaEstimate(patches.sigma, error, n, f"quadratic patches of {k} of {n} points")


def estimate_normals(
    points: ArrayLike, neighbors: int | None = None, like: ArrayLike | None = None
) -> Array:
    r"""Unit normals of a surface (or plane curve) at its points, pointing outward.

    Directions are those of least variance among k nearest neighbours. For sides, neighbouring
    normals are made to agree along a minimum spanning tree of the neighbourhood graph with weights
    :math:`1 - |n_i \cdot n_j|`, each connected part then so that it encloses a positive volume.
    That is a rule of thumb: sheets closer to each other than the patches are wide may get mixed
    up, and a cavity's surface comes out facing the wrong way.

    They carry an error of about :math:`2 \sigma / (r \sqrt k)` radians per direction, made of the
    same errors as the points, and shared among neighbours.

    Args:
        points: (n, d), d = 2 or 3.
        neighbors: k, as for :func:`local_patches`.
        like: (n, d), directions that are right up to 90 degrees: they decide the sides.

    Returns:
        (n, d).

    Raises:
        ValueError: the points cannot be used, or ``neighbors`` is out of range.

    Source: H. Hoppe et al., SIGGRAPH 1992, 71.
    """
    x = _numbers("points", points)
    patches = local_patches(x, neighbors)
    if like is not None:
        agree = np.einsum("ij,ij->i", patches.normals, np.asarray(like, dtype=float))
        return patches.normals * np.where(agree < 0, -1.0, 1.0)[:, None]
    return _oriented(x, patches)


def _oriented(x: Array, patches: Patches) -> Array:
    # In the patches' planes the points lie as on the surface, where neighbours are neighbours.
    normals = patches.normals
    height = np.einsum("ij,ij->i", x - patches.centers, normals)
    flat = x - height[:, None] * normals
    graph = _neighborhood_graph(flat, normals)
    tree = csgraph.minimum_spanning_tree(graph)
    tree = tree + tree.T
    signs = np.ones(len(x))
    parts, labels = csgraph.connected_components(tree, directed=False)
    for part in range(parts):
        members = np.flatnonzero(labels == part)
        order, before = csgraph.breadth_first_order(tree, members[0], directed=False)
        agree = np.einsum("ij,ij->i", normals[order[1:]], normals[before[order[1:]]])
        for i, same in zip(order[1:], agree >= 0, strict=True):
            signs[i] = signs[before[i]] if same else -signs[before[i]]
        # The divergence theorem: the integral of x . n over a closed surface is d times its volume.
        offset = flat[members] - flat[members].mean(axis=0)
        volume = np.einsum("ij,ij,i->", offset, normals[members], signs[members])
        signs[members] *= -1.0 if volume < 0 else 1.0
    oriented: Array = normals * signs[:, None]
    return oriented


def _neighborhood_graph(x: Array, normals: Array, k: int = 8) -> Any:
    """Sparse (n, n): 1 - |n_i . n_j| where j is among i's nearest neighbours, and a bit more."""
    n = len(x)
    near = cKDTree(x).query(x, min(k + 1, n))[1][:, 1:]
    row = np.repeat(np.arange(n), near.shape[1])
    column = near.reshape(-1)
    weight = 1 - np.abs(np.einsum("ij,ij->i", normals[row], normals[column]))
    # A weight of exactly 0 would be no edge.
    return scipy.sparse.csr_array((weight.clip(0) + 1e-9, (row, column)), shape=(n, n))
