r"""Local patches of a cloud: the k nearest neighbours of every point, and their error.

A patch is the plane of least squares and, over that plane, a quadratic function. k grows until a
patch is a few times wider than the layer of points is thick.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import cKDTree

from ..sigma import SigmaEstimate
from .files.columns import Array
from .points import TINY, as_points, unit_vectors

NEIGHBORS = (8, 10, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384)
"""Sizes of patches that are tried."""

NORMALS_NEIGHBORS = 16
"""The least for normals, whose noise goes with 1 / sqrt k. The heights' variance is an average over
all patches anyway, and the smaller they are, the less of a detail counts as noise."""

ASPECTS = (4.0, 3.2)
"""A patch is large enough when its radius is so many times the points' distance from it; the second
number goes for strongly curved surfaces, where no patch reaches the first. Patches of less than 16
points, which are cut off more easily, need 5/4 of it."""

WIDER = 3
"""Times as many neighbours are looked at where a patch is to have those of one side."""

TWO_SHEETS, GROWN = {2: -0.5, 3: -0.3}, 24
"""Patches hold two sheets where their mean excess kurtosis is below the first, by dimension, and
the layer of points is so thick that they have grown to the second. Small ones say nothing: what
curvature leaves of a quadratic function looks the same."""

ALIKE, ALONG = 0.8, 0.3
"""Cosines: of two ways out that are about the same, and of one with the normal that is not along
the surface."""

_CHUNK = 1 << 20
"""Neighbours that are looked at at once: bounds the memory."""


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
    near: NDArray[np.intp]
    """(n, at most 32) rows of the nearest points of each patch."""
    variance: Array
    """(n,), of the points around the quadratic function, corrected for its degrees of freedom."""
    excess: float
    """Mean excess kurtosis of the distances from it: 0 for normal errors, -1 where there are two
    sheets three standard deviations apart."""

    @property
    def dof(self) -> int:
        """Degrees of freedom of each variance."""
        return self.neighbors - _quadratic_terms(self.normals.shape[1])

    @property
    def two_sheets(self) -> bool:
        """Whether patches hold two sheets of the surface, which are taken for one thick one."""
        return self.neighbors >= GROWN and self.excess < TWO_SHEETS[self.normals.shape[1]]

    @property
    def sigma(self) -> float:
        """Root of the median variance.

        The median, because a patch across an edge, or across two sheets, has a far larger one;
        :math:`(1 - 2/(9 \nu))^3` is that of :math:`\\chi^2_\nu / \nu` (E. Wilson and M. Hilferty,
        Proc. Natl. Acad. Sci. 17 (1931) 684).
        """
        return math.sqrt(float(np.median(self.variance)) / (1 - 2 / (9 * self.dof)) ** 3)


def local_patches(
    points: ArrayLike,
    neighbors: int | None = None,
    least: int = NORMALS_NEIGHBORS,
    sides: ArrayLike | None = None,
) -> Patches:
    """Patches around the points.

    Args:
        points: (n, d), d = 2 or 3.
        neighbors: k; by default the first of :data:`NEIGHBORS` that is large enough by
            :data:`ASPECTS`. Where there is none (a cloud that is noise throughout), the last.
        least: the fewest that are tried.
        sides: (n, d), ways out of the surface, right up to 90 degrees (to where a point was seen
            from, or rough normals). A patch then has points of one side only, so that the two
            sheets of a thin wall are not taken for one thick one.

    Raises:
        ValueError: ``neighbors`` is out of range, or ``sides`` is not of the points' shape.
    """
    x = as_points(points)
    ways = None if sides is None else unit_vectors("sides", sides, x)
    n, dim = x.shape
    fewest = _quadratic_terms(dim) + 3
    if neighbors is not None:
        if not fewest <= neighbors <= n:
            raise ValueError(f"neighbors must be from {fewest} to {n}, got {neighbors}.")
        return _patches(x, cKDTree(x), ways, neighbors)
    tree = cKDTree(x)
    known = [k for k in NEIGHBORS if k >= max(least, fewest)]
    sizes = [k for k in known if k <= max(known[0], n // 4)]
    return _patches(x, tree, ways, min(_size(x, tree, ways, sizes), n))


def thinner_by_sides(points: ArrayLike, sides: ArrayLike) -> float:
    """How thick the layer of points is in patches of one side, relative to that in all patches: 1
    on plain shapes, 0.6 where the two sheets of a wall are three standard deviations apart.

    Args:
        points, sides: as for :func:`local_patches`; some of the points are enough.
    """
    x = as_points(points)
    tree, rows = cKDTree(x), np.arange(0, len(x), max(1, len(x) // 2000))
    sizes = [k for k in NEIGHBORS if _quadratic_terms(x.shape[1]) + 3 <= k <= max(16, len(x) // 4)]
    found = []
    for ways in (unit_vectors("sides", sides, x), None):
        k = min(_size(x, tree, ways, sizes), len(x))
        found.append(_patches(x, tree, ways, k, rows).sigma)
    return found[0] / max(found[1], TINY)


def _size(x: Array, tree: Any, ways: Array | None, sizes: list[int]) -> int:
    """The first size that is large enough."""
    found, best = None, 0.0
    for k in sizes:
        # Some hundred patches are enough to tell; all of them only at the size that is taken.
        some = np.arange(0, len(x), max(1, len(x) // 500))
        trial = _patches(x, tree, ways, min(k, len(x)), some)
        aspect = trial.radius / max(trial.sigma, TINY * trial.radius)
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


def _patches(
    x: Array, tree: Any, ways: Array | None, k: int, rows: NDArray[np.intp] | None = None
) -> Patches:
    rows = np.arange(len(x)) if rows is None else rows
    each = max(1, _CHUNK // (k if ways is None else WIDER * k))
    chunks = (rows[i : i + each] for i in range(0, len(rows), each))
    parts = [_fit_patches(x, tree, ways, k, chunk) for chunk in chunks]
    centers, normals, radii, near, variance, excess = (
        np.concatenate(column) for column in zip(*parts, strict=True)
    )
    radius = float(np.median(radii))
    return Patches(k, centers, normals, radius, near, variance, float(np.mean(excess)))


def _on_one_side(
    x: Array, tree: Any, ways: Array, k: int, rows: NDArray[np.intp]
) -> tuple[Array, NDArray[np.intp]]:
    """Distances and rows (m, k) of the nearest neighbours that are on the side of these points."""
    distances, near = tree.query(x[rows], min(WIDER * k, len(x)))
    order = _first(_same_side(x, ways, k, rows, near), k)
    return np.take_along_axis(distances, order, axis=1), np.take_along_axis(near, order, axis=1)


def _same_side(
    x: Array, ways: Array, k: int, rows: NDArray[np.intp], near: NDArray[np.intp]
) -> NDArray[np.bool_]:
    """Which neighbours (m, more than k) are on the side of these points.

    Those with about the same way out are: of a wall, one side is seen from there. They tell the
    patch's normal, and that, of neighbours with other ways, which are on the same side. Where a way
    is along the surface it does not.
    """
    alike = np.einsum("ni,nki->nk", ways[rows], ways[near]) > ALIKE
    patch = x[np.take_along_axis(near, _first(alike, k), axis=1)]
    patch = patch - patch.mean(axis=1, keepdims=True)
    normals = np.linalg.eigh(np.einsum("nki,nkj->nij", patch, patch))[1][..., 0]
    own = np.einsum("ni,ni->n", normals, ways[rows])[:, None]
    others = np.einsum("ni,nki->nk", normals, ways[near])
    same = (np.minimum(np.abs(own), np.abs(others)) > ALONG) & (own * others > 0)
    return np.asarray(alike | same)


def _first(good: NDArray[np.bool_], k: int) -> NDArray[np.intp]:
    """In every row the first k that are good, and where these are too few, others."""
    return np.argsort(~good, axis=1, kind="stable")[:, :k]


def _fit_patches(
    x: Array, tree: Any, ways: Array | None, k: int, rows: NDArray[np.intp]
) -> tuple[Array, ...]:
    """Centers, normals, radii, nearest points, variances around the quadratic functions, and their
    excess kurtosis, of one chunk."""
    if ways is None:
        distances, near = tree.query(x[rows], k)
    else:
        distances, near = _on_one_side(x, tree, ways, k, rows)
    patch = x[near]
    centers = patch.mean(axis=1)
    patch = patch - centers[:, None]
    axes = np.linalg.eigh(np.einsum("nki,nkj->nij", patch, patch))[1]
    radii = np.maximum(distances.max(axis=1), np.finfo(float).tiny)  # k points in one place
    local = np.einsum("nki,nij->nkj", patch, axes) / radii[:, None, None]
    height, along = local[..., 0], local[..., 1:]
    first, second = np.triu_indices(along.shape[2])
    design = np.concatenate(
        [np.ones_like(along[..., :1]), along, along[..., first] * along[..., second]], axis=2
    )
    fitted = np.linalg.qr(design)[0]
    left = height - np.einsum("nkm,nlm,nl->nk", fitted, fitted, height, optimize=True)
    dof, square = k - design.shape[2], (left**2).sum(axis=1)
    # Of normal errors the ratio's mean is that; none are left where the points are exact.
    excess = k * (left**4).sum(axis=1) / np.maximum(square, TINY) ** 2 - 3 * dof / (dof + 2)
    return centers, axes[..., 0], radii, near[:, :32], square / dof * radii**2, excess


def estimate_sigma_points(
    points: ArrayLike, neighbors: int | None = None, sides: ArrayLike | None = None
) -> SigmaEstimate:
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
        sides: as for :func:`local_patches`.

    Returns:
        The estimate in units of the points.

    Raises:
        ValueError: the points cannot be used, or ``neighbors`` is out of range.
    """
    patches = local_patches(points, neighbors, least=0, sides=sides)
    if patches.two_sheets:
        warnings.warn(
            f"The error of the points is taken for {patches.sigma:.3g}, which is too much: two "
            "sheets of the surface are nearer to each other than patches are wide. Say where the "
            "points were seen from (orient=, --viewpoint), give normals of your own, or sigma.",
            stacklevel=2,
        )
    n, k = len(patches.normals), patches.neighbors
    error = patches.sigma * math.sqrt(k / (2 * patches.dof * n))
    return SigmaEstimate(patches.sigma, error, n, f"quadratic patches of {k} of {n} points")
