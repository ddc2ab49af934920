"""Meshes in files, in the precision that their coordinates need."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...runs.folder import check_can_write

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


def _suggested_shift(points: Array) -> list[float]:
    """Round numbers (d,) near the middle of points (n, d): what is left is as small as they are
    apart."""
    low, high = points.min(axis=0), points.max(axis=0)
    digits = int(np.floor(np.log10(float((high - low).max()))))
    return [float(x) for x in np.round((low + high) / 2, -digits)]


def tell_coarse(path: Path, vertices: Array, less: Array, fine: float) -> None:
    """Say so where single precision is too coarse for these coordinates (n, d), and what helps.

    Args:
        path: of the file.
        vertices: what is written.
        less: (d,), what has been taken off already.
        fine: steps up to this do not matter.
    """
    step = single_step(vertices)
    if step > fine:
        shift = [float(x) for x in less + _suggested_shift(vertices)]
        flags = " ".join(f"--shift {x:.12g}" for x in shift)
        warnings.warn(
            f"{path} is of single precision: at such coordinates it has steps of {step:g}, more "
            f"than a tenth of sigma ({10 * fine:.3g}). Write .ply, .obj or .off, or take something "
            f"off: shift={shift} ({flags}).",
            stacklevel=3,
        )


def check_shift(shift: ArrayLike | None, dim: int) -> Array:
    """As an array (dim,); None is 0.

    Raises:
        ValueError: it is something else.
    """
    found = np.zeros(dim) if shift is None else np.asarray(shift, dtype=float)
    if found.shape != (dim,) or not np.isfinite(found).all():
        raise ValueError(f"shift must be {dim} numbers, got {shift!r}.")
    return found


def check_exportable(path: str | Path, dim: int) -> None:
    """Refuse a file that a mesh (or a curve, where dim is 2) cannot be written to.

    Raises:
        ValueError: the ending is not one of those.
        OSError: it cannot be written there.
    """
    endings = (".ply", ".obj", ".stl", ".off", ".glb") if dim == 3 else (".npz",)
    path = Path(path)
    if path.suffix.lower() not in endings:
        raise ValueError(f"{path} has no ending of a {_KIND_OF[dim]}: {', '.join(endings)}.")
    check_can_write(path)


_KIND_OF = {2: "curve's file", 3: "mesh's file"}
