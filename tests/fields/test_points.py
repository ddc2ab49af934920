"""Clouds: files, refusals, frames, normals and sigma of known surfaces over many draws."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import trimesh

from benchmarks.fit_sdf import diagonal, scan, true_surface
from sciml_snr import SigmaEstimate
from sciml_snr.fields import estimate_normals, estimate_sigma_points, patches, read_cloud
from sciml_snr.fields.patches import local_patches
from sciml_snr.fields.points import Frame

DIAGONAL = 2 * np.sqrt(3)  # of the unit sphere's box


def sphere(n: int, sigma: float = 0.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Points with isotropic errors, and the normals at the true places."""
    rng = np.random.default_rng(seed)
    normals = rng.normal(size=(n, 3))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    return normals + sigma * rng.normal(size=(n, 3)), normals


def circle(n: int, sigma: float = 0.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    angle = rng.uniform(0, 2 * np.pi, n)
    normals = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return normals + sigma * rng.normal(size=(n, 2)), normals


def flower(n: int, sigma: float = 0.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A curve with five lobes, with errors and without."""
    rng = np.random.default_rng(seed)
    angle = rng.uniform(0, 2 * np.pi, n)
    radius = 1 + 0.3 * np.cos(5 * angle)
    points = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return points + sigma * rng.normal(size=(n, 2)), points


def cube(n: int, sigma: float = 0.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The surface of the cube [-1, 1]^3 with errors, and its normals."""
    rng = np.random.default_rng(seed)
    points, sides = rng.uniform(-1, 1, (n, 3)), rng.integers(6, size=n)
    normals = np.vstack([np.eye(3), -np.eye(3)])[sides]
    points = np.where(normals != 0, normals, points)
    return points + sigma * rng.normal(size=(n, 3)), normals


# Reading -------------------------------------------------------------------------------------


def columns(path: Path, *arrays: np.ndarray) -> None:
    np.savetxt(path, np.hstack(arrays), delimiter="," if path.suffix == ".csv" else " ")


def ply_points(path: Path, points: np.ndarray, normals: np.ndarray) -> None:
    names = ["x", "y", "z", "nx", "ny", "nz"]
    header = ["ply", "format ascii 1.0", f"element vertex {len(points)}"]
    header += [f"property double {name}" for name in names] + ["end_header"]
    rows = [" ".join(map(repr, row.tolist())) for row in np.hstack([points, normals])]
    path.write_text("\n".join([*header, *rows]) + "\n")


WITH_NORMALS: dict[str, Callable[[Path, np.ndarray, np.ndarray], None]] = {
    "a.ply": ply_points,
    "a.xyz": columns,
    "a.csv": columns,
    "a.npz": lambda path, points, normals: np.savez(path, points=points, normals=normals),
}


@pytest.mark.parametrize("name", WITH_NORMALS)
def test_files_with_normals(tmp_path: Path, name: str) -> None:
    points, normals = sphere(50)
    WITH_NORMALS[name](tmp_path / name, points, normals)
    cloud = read_cloud(tmp_path / name)
    assert cloud.normals is not None and not cloud.only_orientation
    assert cloud.points == pytest.approx(points) and cloud.normals == pytest.approx(normals)


@pytest.mark.parametrize("name", ["a.xyz", "a.csv", "a.npy", "a.ply", "a.npz"])
def test_files_without_normals(tmp_path: Path, name: str) -> None:
    points, _ = sphere(50)
    path = tmp_path / name
    if path.suffix == ".npy":
        np.save(path, points)
    elif path.suffix == ".npz":
        np.savez(path, points=points)
    elif path.suffix == ".ply":
        trimesh.PointCloud(points).export(path)
    else:
        columns(path, points)
    cloud = read_cloud(path)
    assert cloud.normals is None and cloud.points == pytest.approx(points, abs=1e-6)


def test_a_header_and_two_columns(tmp_path: Path) -> None:
    path = tmp_path / "curve.csv"
    points, _ = circle(20)
    np.savetxt(path, points, delimiter=",", header="x,y", comments="")
    assert read_cloud(path).points == pytest.approx(points)


def test_nan_in_the_first_line_is_no_header(tmp_path: Path) -> None:
    (tmp_path / "a.xyz").write_text("nan 0 0\n" + "1 2 3\n" * 20)
    with pytest.raises(ValueError, match="1 of 21 points are NaN"):
        read_cloud(tmp_path / "a.xyz")


def test_a_count_and_a_comment(tmp_path: Path) -> None:
    points, _ = sphere(20)
    columns(tmp_path / "a.xyz", points)
    text = (tmp_path / "a.xyz").read_text()
    for head in ("20\na comment\n", "20\n", "20\n\n"):
        (tmp_path / "a.xyz").write_text(head + text + "# the end, really\n")
        assert read_cloud(tmp_path / "a.xyz").points == pytest.approx(points, abs=1e-6)


def test_normals_of_an_obj_file_without_faces(tmp_path: Path) -> None:
    points, normals = sphere(20)
    lines = ["v {} {} {}".format(*p) for p in points]
    lines += ["vn {} {} {}".format(*n) for n in normals]
    (tmp_path / "a.obj").write_text("\n".join(lines))
    cloud = read_cloud(tmp_path / "a.obj")
    assert cloud.points == pytest.approx(points) and cloud.normals == pytest.approx(normals)
    for end in ([], ["vn 1 0"]):  # not one for each: whose are they?
        (tmp_path / "a.obj").write_text("\n".join([*lines[:-1], *end]))
        assert read_cloud(tmp_path / "a.obj").normals is None


@pytest.mark.parametrize("suffix", [".ply", ".obj", ".stl", ".off", ".glb"])
def test_meshes(tmp_path: Path, suffix: str) -> None:
    """Vertices with normals that only tell the sides; or points on the faces."""
    path = tmp_path / f"mesh{suffix}"
    mesh = trimesh.creation.icosphere(2)
    mesh.export(path)
    cloud = read_cloud(path)
    assert len(cloud.points) == len(mesh.vertices)
    assert cloud.normals is not None and cloud.only_orientation
    assert np.einsum("ij,ij->i", cloud.normals, cloud.points).min() > 0.99
    sampled = read_cloud(path, sample=500)
    assert sampled.points.shape == (500, 3)
    assert np.linalg.norm(sampled.points, axis=1) == pytest.approx(1, abs=0.05)
    again = read_cloud(path, sample=500)
    assert (again.points == sampled.points).all()
    assert not np.array_equal(read_cloud(path, sample=500, seed=1).points, sampled.points)


def test_stored_vertex_normals_are_the_users(tmp_path: Path) -> None:
    mesh = trimesh.creation.icosphere(2)
    mesh.export(tmp_path / "mesh.ply", vertex_normal=True)
    cloud = read_cloud(tmp_path / "mesh.ply")
    assert cloud.normals is not None and not cloud.only_orientation


def test_given_normals_go_before_the_files(tmp_path: Path) -> None:
    mesh = trimesh.creation.icosphere(1)
    mesh.export(tmp_path / "mesh.ply")
    cloud = read_cloud(tmp_path / "mesh.ply", -2 * mesh.vertices)
    assert not cloud.only_orientation and cloud.normals is not None
    assert cloud.normals == pytest.approx(-np.asarray(mesh.vertices), abs=1e-6)


def test_repeated_points_are_merged() -> None:
    points, normals = sphere(30)
    turned = normals + 0.1
    cloud = read_cloud(np.vstack([points, points[:7]]), np.vstack([normals, turned[:7]]))
    assert len(cloud.points) == 30 and cloud.merged == 7
    order = np.lexsort(points.T[::-1])
    assert cloud.points == pytest.approx(points[order])
    mean = normals + turned / np.linalg.norm(turned, axis=1, keepdims=True)
    mean[7:] = normals[7:]
    mean /= np.linalg.norm(mean, axis=1, keepdims=True)
    assert cloud.normals == pytest.approx(mean[order])


GOOD, OUT = sphere(20)


def changed(row: int, value: float, values: np.ndarray = GOOD) -> np.ndarray:
    found = values.copy()
    found[row] = value
    return found


REFUSED = {
    "shape": (GOOD[:, :1], None, "shape"),
    "flat": (GOOD.ravel(), None, "shape"),
    "text": ([["a", "b", "c"]] * 20, None, "numbers"),
    "ragged": ([[1, 2, 3], [1, 2]], None, "numbers"),
    "nan": (changed(3, np.nan), None, "1 of 20 points are NaN or infinite"),
    "infinite": (changed(3, np.inf), None, "1 of 20 points"),
    "few": (GOOD[:9], None, "9 points: .* at least 10"),
    "none": (GOOD[:0], None, "0 points"),
    "repeated": (np.repeat(GOOD[:9], 3, axis=0), None, r"9 different points \(27 with"),
    "one place": (np.ones((20, 3)), None, "in one place"),
    "line": (np.outer(np.arange(20.0), [1, 2, 3]) + 5, None, "on one line"),
    "normals' shape": (GOOD, OUT[:19], "differ in shape"),
    "normals' nan": (GOOD, changed(2, np.nan, OUT), "1 of 20 normals are NaN"),
    "zero normals": (GOOD, changed(2, 0.0, OUT), "1 of 20 normals have length 0"),
    "opposite normals": (
        np.vstack([GOOD, GOOD[:1]]),
        np.vstack([OUT, -OUT[:1]]),
        "opposite normals",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case: str) -> None:
    points, normals, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        read_cloud(points, normals)


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no file .*nothing\.ply"):
        read_cloud(tmp_path / "nothing.ply")
    contents = {
        "bad.ply": ("ply\nformat ascii 1.0\n", "cannot be read"),
        "bad.xyz": ("1 2 3\n4 5\n", "cannot be read"),
        "empty.xyz": ("", "is empty"),
        "one.xyz": ("1\n2\n3\n", "1 columns"),
        "counted.xyz": ("".join(f"{i} 2 3 4\n" for i in range(20)), "first column .* counts"),
        "word.xyz": ("1 2 three\n" + "1 2 3\n" * 20, "'three' in the first row is not a number"),
        "what.docx": ("hello", "cannot be read"),
        "grid.asc": ("ncols 3\nnrows 2\n1 2 3\n4 5 6\n", "is a grid of heights"),
    }
    for name, (text, message) in contents.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=message):
            read_cloud(tmp_path / name)
    np.savez(tmp_path / "other.npz", x=GOOD)
    with pytest.raises(ValueError, match="no array 'points', only x"):
        read_cloud(tmp_path / "other.npz")
    trimesh.PointCloud(GOOD).export(tmp_path / "cloud.ply")
    with pytest.raises(ValueError, match="no faces"):
        read_cloud(tmp_path / "cloud.ply", sample=100)
    with pytest.raises(ValueError, match="an array of points has no faces"):
        read_cloud(GOOD, sample=100)


# Frames --------------------------------------------------------------------------------------


def test_frame_there_and_back() -> None:
    points = sphere(40)[0] * [30, 5, 1] + [1e3, 0, -7]
    frame = Frame.around(points)
    inward = frame.inward(points)
    assert np.abs(inward).max() == pytest.approx(1)
    assert inward.max(0) + inward.min(0) == pytest.approx(0)
    assert frame.outward(inward) == pytest.approx(points)
    near, far = inward[0] - inward[1], points[0] - points[1]
    assert np.linalg.norm(near) * frame.scale == pytest.approx(np.linalg.norm(far))


# Normals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "sigma"), [(sphere, 0.0), (sphere, 0.03), (circle, 0.02)])
def test_normals_point_outward(shape: Callable, sigma: float) -> None:
    points, truth = shape(2000, sigma)
    cosine = np.einsum("ij,ij->i", estimate_normals(points), truth)
    assert (cosine > 0).all()
    assert np.degrees(np.arccos(cosine.clip(-1, 1))).mean() < (3 if sigma == 0 else 10)


def test_normals_of_two_parts_and_a_ring() -> None:
    """Each connected part for itself; a shape that is not star-shaped."""
    ring = trimesh.creation.torus(1.0, 0.3, 96, 48)
    points, faces = trimesh.sample.sample_surface(ring, 3000, seed=0)
    ball, normals = sphere(1500)
    points = np.vstack([points, ball + np.array([4, 0, 0])])
    truth = np.vstack([ring.face_normals[faces], normals])
    assert (np.einsum("ij,ij->i", estimate_normals(points), truth) > 0).all()


def test_normals_like_given_ones() -> None:
    points, truth = sphere(500, 0.02)
    sides = np.sign(points[:, :1])
    found = estimate_normals(points, like=truth * sides)
    assert (np.einsum("ij,ij->i", found, truth * sides) > 0).all()


def test_error_of_normals_is_as_documented() -> None:
    """2 sigma / (r sqrt k) per direction, on a plane, where there is no curvature."""
    rng = np.random.default_rng(0)
    sigma, k = 0.01, 64
    points = np.column_stack([rng.uniform(-1, 1, (4000, 2)), sigma * rng.normal(size=4000)])
    found = local_patches(points, k)
    inner = np.abs(points[:, :2]).max(1) < 0.7
    slope = found.normals[inner, 0] / found.normals[inner, 2]
    assert slope.std() == pytest.approx(2 * sigma / (found.radius * np.sqrt(k)), rel=0.1)


# Sigma ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "n", "sigma", "bias"),
    [
        (sphere, 1000, 0.02, (-0.05, 0.02)),
        (sphere, 1000, 0.04, (-0.10, 0.02)),
        (circle, 400, 0.02, (-0.12, 0.02)),
        (circle, 40, 0.03, (-0.15, 0.15)),  # patches of 16 points: 0.4 and more
        (flower, 200, 0.018, (-0.10, 0.10)),  # patches of 16 points: 0.55
        (flower, 200, 0.036, (-0.10, 0.10)),  # 0.27
        (cube, 1000, 0.03, (0.05, 0.16)),  # 0.22; edges
        (cube, 1000, 0.07, (0.0, 0.12)),
    ],
)
def test_sigma_of_known_errors(shape: Callable, n: int, sigma: float, bias: tuple) -> None:
    """Mean over 40 draws within the stated bias; its standard error honest within 40 %."""
    found = [estimate_sigma_points(shape(n, sigma, seed)[0]) for seed in range(40)]
    assert bias[0] < np.mean(found) / sigma - 1 < bias[1]
    reported = float(np.mean([e.standard_error for e in found]))
    assert reported == pytest.approx(np.std(found), rel=0.4)


def test_sigma_is_an_estimate_in_units_of_the_points() -> None:
    points = sphere(1500, 0.03)[0]
    found = estimate_sigma_points(points)
    assert isinstance(found, SigmaEstimate) and found.n == 1500
    scaled = estimate_sigma_points(1e3 * points + 5e4)
    assert float(scaled) == pytest.approx(1e3 * found, rel=1e-6)


def test_sigma_of_exact_points_is_next_to_nothing() -> None:
    assert estimate_sigma_points(sphere(2000)[0]) < 1e-3


def test_variances_against_a_loop() -> None:
    """Plane by the covariance's eigenvectors, quadratic function by lstsq, patch by patch."""
    points = sphere(200, 0.05)[0]
    found = local_patches(points, 30)
    for i in (0, 17, 199):
        order = np.argsort(np.linalg.norm(points - points[i], axis=1))[:30]
        patch = points[order] - points[order].mean(0)
        height, u, v = (patch @ np.linalg.svd(patch.T)[0])[:, [2, 0, 1]].T
        design = np.stack([np.ones(30), u, v, u * u, u * v, v * v], axis=1)
        rss = np.linalg.lstsq(design, height, rcond=None)[1][0]
        assert found.variance[i] == pytest.approx(rss / 24, rel=1e-6)


def test_chunks_do_not_matter(monkeypatch) -> None:
    points = sphere(300, 0.02)[0]
    whole = local_patches(points, 20)
    monkeypatch.setattr(patches, "_CHUNK", 1000)
    parts = local_patches(points, 20)
    assert parts.variance == pytest.approx(whole.variance, rel=1e-9)
    assert parts.radius == whole.radius


def test_a_patch_is_never_the_whole_shape() -> None:
    """In draw 3 no other is quite large enough, and the whole shape would say 3.4."""
    for draw in range(8):
        *_, sigma = scan("csg", 1000, 2.0, draw)
        assert 0.9 < 100 * sigma / diagonal(true_surface("csg")) / 2.0 < 1.5


def test_patches_for_normals_are_not_the_smallest() -> None:
    for cloud, smallest in ((circle(300)[0], 8), (sphere(300)[0], 10)):
        assert local_patches(cloud).neighbors == 16
        assert local_patches(cloud, least=0).neighbors == smallest
        assert f"of {smallest} of" in estimate_sigma_points(cloud).method


def test_patches_grow_with_the_noise() -> None:
    sizes = [local_patches(sphere(3000, sigma)[0]).neighbors for sigma in (0.0, 0.03, 0.06)]
    assert sizes == sorted(sizes) and sizes[0] < sizes[-1]


@pytest.mark.parametrize("neighbors", [8, 301])
def test_neighbors_out_of_range(neighbors: int) -> None:
    with pytest.raises(ValueError, match="neighbors must be from 9 to 300"):
        estimate_sigma_points(sphere(300)[0], neighbors)
