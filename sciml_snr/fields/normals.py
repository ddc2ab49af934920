"""Normals of a cloud, and which of their two sides is outside."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import scipy.sparse
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csgraph
from scipy.spatial import cKDTree

from .files.columns import Array
from .patches import NORMALS_NEIGHBORS, Patches, local_patches
from .points import as_points, unit_vectors

VOTES = 3
"""Rounds in which neighbours tell a point which side it was seen from: one that was seen along the
surface does not know."""

SEEN_NEIGHBORS = 24
"""The least in space where points may have been seen along the surface: on a thin mug normals are
off by 13 degrees with 24, by 21 with 16. (On a curve so many reach far.)"""

OPEN, FLAT = 0.45, 0.3
"""A surface is open when the mean of its normals is longer than the first: 0 of a closed one, 1/2
of half a sphere. It lies flat, so that the volume that it encloses says nothing, when that is less
than the second, relative to a sphere's."""

CLOSED = 0.1
"""A part whose normals' mean goes up or down less than that has no side that looks up."""

OPPOSITE = 0.02
"""Share of neighbours with opposite normals from which on sides are unsure."""


def estimate_normals(
    points: ArrayLike,
    neighbors: int | None = None,
    like: ArrayLike | None = None,
    *,
    orient: ArrayLike | str | None = None,
) -> Array:
    r"""Unit normals of a surface (or plane curve) at its points, pointing outward.

    Directions are those of least variance among k nearest neighbours. For sides, neighbouring
    normals are made to agree along a minimum spanning tree of the neighbourhood graph with weights
    :math:`1 - |n_i \cdot n_j|`, each connected part then so that it encloses a positive volume; or,
    if it is a sheet that encloses nothing, so that it looks up, along the last axis. That is a rule
    of thumb: sheets closer to each other than the patches are wide may get mixed up, and a cavity's
    surface comes out facing the wrong way. It is said when sides are unsure.

    They carry an error of about :math:`2 \sigma / (r \sqrt k)` radians per direction, made of the
    same errors as the points, and shared among neighbours.

    Args:
        points: (n, d), d = 2 or 3.
        neighbors: k, as for :func:`local_patches`.
        like: (n, d), directions that are right up to 90 degrees: they decide the sides.
        orient: where the points were seen from, (d,) or one for each (n, d): then a patch has
            points of one side only. Or "up": every part that is open looks up, along the last axis.

    Returns:
        (n, d).

    Raises:
        ValueError: the points cannot be used, or an argument is out of range.

    Source: H. Hoppe et al., SIGGRAPH 1992, 71.
    """
    x = as_points(points)
    if orient is not None and not isinstance(orient, str):
        return one_sided_normals(x, ways_to(orient, x), neighbors, VOTES)
    if orient not in (None, "up"):
        raise ValueError(f"orient must be 'up' or where the points were seen from, got {orient!r}.")
    patches = local_patches(x, neighbors)
    if like is not None:
        agree = np.einsum("ij,ij->i", patches.normals, np.asarray(like, dtype=float))
        return patches.normals * np.where(agree < 0, -1.0, 1.0)[:, None]
    if patches.two_sheets:
        _tell("two sheets of the surface are nearer to each other than patches are wide")
    return _oriented(x, patches, orient == "up")


def ways_to(viewpoints: ArrayLike, x: Array) -> Array:
    """Unit vectors (n, d) from the points to where they were seen from, (d,) or (n, d).

    Raises:
        ValueError: the shape is another one, or a point was seen from itself.
    """
    found = np.asarray(viewpoints, dtype=float)
    if found.shape not in ((x.shape[1],), x.shape):
        raise ValueError(
            f"viewpoints have the shape {found.shape}: give one ({x.shape[1]},), or one for each "
            f"point {x.shape}."
        )
    return unit_vectors("ways to the viewpoints", found - x, x)


def one_sided_normals(x: Array, ways: Array, neighbors: int | None = None, votes: int = 0) -> Array:
    """Normals (n, d) of patches of one side, on the side of these ways out (n, d).

    Args:
        x: points (n, d).
        ways: unit vectors, right up to 90 degrees.
        neighbors: k, as for :func:`local_patches`.
        votes: rounds in which the neighbours are heard, those that look along their way most.
    """
    least = SEEN_NEIGHBORS if votes and x.shape[1] == 3 else NORMALS_NEIGHBORS
    patches = local_patches(x, neighbors, least, sides=ways)
    normals = patches.normals
    facing = np.einsum("ij,ij->i", normals, ways)
    found = normals * np.where(facing < 0, -1.0, 1.0)[:, None]
    for _ in range(votes):
        voices = np.abs(facing)[:, None] * found
        heard = np.zeros_like(found)
        for neighbor in patches.near.T:  # one after the other, for memory
            heard += voices[neighbor]
        agree = np.einsum("ij,ij->i", normals, heard)
        found = normals * np.where(agree < 0, -1.0, 1.0)[:, None]
    return found


def _oriented(x: Array, patches: Patches, up: bool) -> Array:
    # In the patches' planes the points lie as on the surface, where neighbours are neighbours.
    normals = patches.normals
    height = np.einsum("ij,ij->i", x - patches.centers, normals)
    flat = x - height[:, None] * normals
    graph, areas, near = _neighborhood(flat, normals)
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
        outward = normals[members] * signs[members, None]
        is_main = len(members) > len(x) / 2
        signs[members] *= _side(flat[members], outward, areas[members], up, is_main)
    oriented: Array = normals * signs[:, None]
    if np.linalg.norm(areas @ oriented) > OPEN * areas.sum() and not up:
        _tell("the surface is open; a flat sheet is taken to look up, along the last axis")
    cosines = np.einsum("ij,ikj->ik", oriented, oriented[near])
    if (opposite := float((cosines < -0.5).mean())) > OPPOSITE:
        _tell(f"of neighbouring points {100 * opposite:.0f} % have opposite normals")
    return oriented


def _side(x: Array, normals: Array, areas: Array, up: bool, is_main: bool) -> float:
    """1, or -1 if the normals of a connected part are to be turned.

    Only the main part may be a flat sheet: a thick layer of points falls into many small ones.
    """
    shares = areas / areas.sum()
    away = x - shares @ x
    # The divergence theorem: the integral of x . n over a closed surface is d times its volume.
    volume = float(shares @ np.einsum("ij,ij->i", away, normals))
    size = float(shares @ np.linalg.norm(away, axis=1))
    mean = shares @ normals
    is_sheet = is_main and np.linalg.norm(mean) > OPEN
    lies_flat = is_sheet and abs(volume) < FLAT * size and abs(mean[-1]) > OPEN**2
    by_height = lies_flat or (up and abs(mean[-1]) > CLOSED)
    return -1.0 if (mean[-1] if by_height else volume) < 0 else 1.0


def _tell(what: str) -> None:
    warnings.warn(
        f"The sides of the normals are unsure: {what}. Say where the points were seen from "
        "(orient=, --viewpoint), give normals of your own, or orient='up' (--orient up).",
        stacklevel=4,
    )


def _neighborhood(x: Array, normals: Array, k: int = 8) -> tuple[Any, Array, NDArray[np.intp]]:
    """Sparse (n, n), 1 - |n_i . n_j| and a bit more where j is among i's nearest neighbours; the
    area around each point, in any unit; the neighbours (n, k)."""
    n = len(x)
    distances, near = cKDTree(x).query(x, min(k + 1, n))
    near = near[:, 1:]
    row = np.repeat(np.arange(n), near.shape[1])
    column = near.reshape(-1)
    weight = 1 - np.abs(np.einsum("ij,ij->i", normals[row], normals[column]))
    # A weight of exactly 0 would be no edge.
    graph = scipy.sparse.csr_array((weight.clip(0) + 1e-9, (row, column)), shape=(n, n))
    areas = distances[:, -1] ** (x.shape[1] - 1)
    return graph, areas.clip(np.finfo(float).tiny, 10 * np.median(areas)), near
