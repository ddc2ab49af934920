"""Normals of a cloud, and which of their two sides is outside."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse
from numpy.typing import ArrayLike
from scipy.sparse import csgraph
from scipy.spatial import cKDTree

from .files.columns import Array
from .patches import Patches, local_patches
from .points import as_points


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
    x = as_points(points)
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
