"""Point clouds in files: points, and normals where the file has them."""

from __future__ import annotations

import codecs
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .columns import ENDINGS, Array, Unusable, columns_of_points, normals_by_name, read_columns

MIN_SAMPLE = 10
"""Points that are sampled from a mesh, at least."""


def numbers(name: str, values: ArrayLike) -> Array:
    """A copy of real numbers as an array; what is masked is NaN.

    Raises:
        ValueError: it is something else; names it.
    """
    try:
        if np.iscomplexobj(values):
            raise TypeError
        if isinstance(values, np.ma.MaskedArray):
            return np.array(np.ma.filled(values.astype(float), np.nan))
        return np.array(values, dtype=float)
    except (TypeError, ValueError):
        raise ValueError(f"{name} is not an array of numbers.") from None


def read_cloud_file(path: Path, sample: int | None, seed: int) -> tuple[Array, Array | None, bool]:
    """Points, normals, and whether these are of faces between the points."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    try:
        if path.suffix.lower() not in POINTS_ONLY:
            return _read_mesh(path, sample, seed)
        points, normals = POINTS_ONLY[path.suffix.lower()](path)
    except Unusable:
        raise
    except Exception as error:  # readers raise whatever comes to their parsers' minds
        raise ValueError(f"{path} cannot be read as points: {error}") from error
    if sample is not None:
        raise ValueError(f"{path} has no faces to sample from: leave sample out.")
    return points, normals, False


def _read_numpy(path: Path) -> tuple[Array, Array | None]:
    loaded = np.load(path)
    if isinstance(loaded, np.ndarray):
        return numbers("points", loaded), None
    with loaded as arrays:
        if "points" not in arrays:
            raise Unusable(f"{path} has no array 'points', only {', '.join(arrays) or 'nothing'}.")
        normals = numbers("normals", arrays["normals"]) if "normals" in arrays else None
        return numbers("points", arrays["points"]), normals


def read_viewpoints(path: Path) -> Array | None:
    """Where the points of a file were seen from, (d,) or (n, d): an array of NPZ files, if any."""
    if path.suffix.lower() != ".npz":
        return None
    with np.load(path) as arrays:
        return numbers("viewpoints", arrays["viewpoints"]) if "viewpoints" in arrays else None


def _read_pcd(path: Path) -> tuple[Array, Array | None]:
    """A file of the Point Cloud Library, in ASCII or binary."""
    header: dict[str, list[str]] = {}
    with path.open("rb") as file:
        while "DATA" not in header:
            line = file.readline()
            if not line:
                raise Unusable(f"{path} has no line DATA: it is no PCD file.")
            first, *rest = line.decode("utf-8-sig", "replace").split() or ["#"]
            header[first] = rest
        data = file.read()
    counts = [int(count) for count in header.get("COUNT", ["1"] * len(header["FIELDS"]))]
    fields = list(zip(header["FIELDS"], header["TYPE"], header["SIZE"], counts, strict=True))
    names = [name for name, _, _, count in fields for _ in range(count)]
    if header["DATA"] == ["ascii"]:
        rows = np.loadtxt(data.decode().splitlines(), ndmin=2)
    elif header["DATA"] == ["binary"]:
        kinds = {"F": "f", "I": "i", "U": "u"}
        types = [(str(i), f"<{kinds[k]}{s}", (n,)) for i, (_, k, s, n) in enumerate(fields)]
        number = int(header["POINTS"][0])
        table = np.frombuffer(data, np.dtype(types), number)
        rows = np.hstack([table[name].astype(float) for name in table.dtype.names or ()])
    else:
        raise Unusable(f"{path} is compressed: save it as ASCII or binary PCD, or as PLY.")
    return columns_of_points(rows, names, path)


def _read_las(path: Path) -> tuple[Array, Array | None]:
    try:
        import laspy
    except ImportError:
        raise Unusable(
            f'{path} needs laspy: pip install "sciml-snr[files]", or save the points as PLY or XYZ.'
        ) from None
    las = laspy.read(path)
    points = np.column_stack([np.asarray(column, dtype=float) for column in (las.x, las.y, las.z)])
    names = list(las.point_format.extra_dimension_names)
    columns = {name: np.asarray(las[name], dtype=float).reshape(len(points)) for name in names}
    return points, normals_by_name(columns)


def _read_mesh(path: Path, sample: int | None, seed: int) -> tuple[Array, Array | None, bool]:
    import trimesh

    shape: Any = trimesh.load(*_without_mark(path), process=False)
    if isinstance(shape, trimesh.Scene):
        shape = shape.to_mesh()
    vertices = np.array(getattr(shape, "vertices", np.empty((0, 3))), dtype=float)
    if len(vertices) == 0:
        raise Unusable(f"{path} holds no points.")
    if not isinstance(shape, trimesh.Trimesh) or len(shape.faces) == 0:
        if sample is not None:
            raise Unusable(f"{path} has no faces to sample from: leave sample out.")
        own = _obj_normals(path) if path.suffix.lower() == ".obj" else _ply_normals(shape)
        return vertices, own if own is None or len(own) == len(vertices) else None, False
    if sample is not None:
        if sample < MIN_SAMPLE:
            raise Unusable(f"sample must be at least {MIN_SAMPLE}, got {sample}.")
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


def _without_mark(path: Path) -> tuple[Any, ...]:
    """What trimesh is to load: the file, or its bytes without a byte order mark before them, which
    it takes for a part of the first word."""
    data = path.read_bytes()
    if not data.startswith(codecs.BOM_UTF8):
        return (path,)
    return io.BytesIO(data.removeprefix(codecs.BOM_UTF8)), path.suffix.lower().removeprefix(".")


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
    names = list(data) if isinstance(data, dict) else list(getattr(data, "dtype", data).names or ())
    return normals_by_name({name: np.asarray(data[name]).reshape(-1) for name in names})


POINTS_ONLY: dict[str, Callable[[Path], tuple[Array, Array | None]]] = {
    ".npz": _read_numpy,
    ".npy": _read_numpy,
    **dict.fromkeys(ENDINGS, read_columns),
    ".pcd": _read_pcd,
    ".las": _read_las,
    ".laz": _read_las,
}
"""Files that hold points, and no faces, by their endings."""
