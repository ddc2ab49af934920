"""Point clouds in files: points, and normals where the file has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...text_files import read_text

Array = NDArray[np.float64]

MIN_SAMPLE = 10
"""Points that are sampled from a mesh, at least."""


def numbers(name: str, values: ArrayLike) -> Array:
    """A copy of real numbers as an array.

    Raises:
        ValueError: it is something else; names it.
    """
    try:
        if np.iscomplexobj(values):
            raise TypeError
        return np.array(values, dtype=float)
    except (TypeError, ValueError):
        raise ValueError(f"{name} is not an array of numbers.") from None


def read_cloud_file(path: Path, sample: int | None, seed: int) -> tuple[Array, Array | None, bool]:
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
        return numbers("points", loaded), None
    with loaded as arrays:
        if "points" not in arrays:
            raise _Unusable(f"{path} has no array 'points', only {', '.join(arrays) or 'nothing'}.")
        normals = numbers("normals", arrays["normals"]) if "normals" in arrays else None
        return numbers("points", arrays["points"]), normals


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
        if sample < MIN_SAMPLE:
            raise _Unusable(f"sample must be at least {MIN_SAMPLE}, got {sample}.")
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
