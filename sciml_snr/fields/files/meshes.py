"""Meshes in files, in the precision that their coordinates need."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

SINGLE = (".stl", ".glb")
"""Endings of files whose numbers are of single precision."""


def write_mesh(path: str | Path, mesh: Any) -> None:
    """Write a ``trimesh.Trimesh``: PLY in double precision, the rest as trimesh does.

    Raises:
        OSError: it cannot be written.
        ValueError: trimesh knows no such file.
    """
    path = Path(path)
    if path.suffix.lower() != ".ply":
        mesh.export(path)
        return
    vertices, faces = np.asarray(mesh.vertices, dtype="<f8"), np.asarray(mesh.faces)
    header = (
        "ply\nformat binary_little_endian 1.0\n"
        f"element vertex {len(vertices)}\n"
        "property double x\nproperty double y\nproperty double z\n"
        f"element face {len(faces)}\nproperty list uchar int vertex_indices\nend_header\n"
    )
    rows = np.empty(len(faces), dtype=[("count", "u1"), ("vertices", "<i4", (3,))])
    rows["count"], rows["vertices"] = 3, faces
    path.write_bytes(header.encode() + vertices.tobytes() + rows.tobytes())


def single_step(points: ArrayLike) -> float:
    """The largest step between numbers of single precision of the size of these coordinates."""
    return float(np.spacing(np.float32(np.abs(points).max())))


def suggested_shift(points: Array) -> list[float]:
    """Round numbers (d,) near the middle of points (n, d): what is left is as small as they are
    apart."""
    low, high = points.min(axis=0), points.max(axis=0)
    digits = int(np.floor(np.log10(float((high - low).max()))))
    return [float(x) for x in np.round((low + high) / 2, -digits)]
