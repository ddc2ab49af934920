"""Meshes and contours of known functions; distances between known surfaces."""

import tracemalloc

import numpy as np
import pytest
import trimesh
from scipy.ndimage import gaussian_filter

from sciml_snr.fields import isosurface
from sciml_snr.fields.isosurface import grid_axes, surface_metrics, zero_contours, zero_mesh


def ball(x: np.ndarray) -> np.ndarray:
    return np.linalg.norm(x, axis=1) - 1


def ring(x: np.ndarray) -> np.ndarray:
    return np.hypot(np.linalg.norm(x[:, :2], axis=1) - 1, x[:, 2]) - 0.4


def mesh_of(field, axes) -> trimesh.Trimesh:
    return trimesh.Trimesh(*zero_mesh(field, axes), process=False)


def test_grid_has_cubic_cells_that_cover_the_box() -> None:
    axes = grid_axes([-1, 0, 5], [1, 0.5, 5.3], 10)
    assert [len(axis) for axis in axes] == [11, 4, 3]
    for axis, low, high in zip(axes, (-1, 0, 5), (1, 0.5, 5.3), strict=True):
        assert np.diff(axis) == pytest.approx(0.2)
        assert axis[0] <= low + 1e-12 and axis[-1] >= high - 1e-12


@pytest.mark.parametrize("resolution", [3, 3000])
def test_resolution_out_of_range(resolution: int) -> None:
    with pytest.raises(ValueError, match="from 4 to 2048"):
        grid_axes([0, 0], [1, 1], resolution)


def test_mesh_is_closed_outward_and_second_order() -> None:
    errors = []
    for resolution in (24, 48):
        mesh = mesh_of(ring, grid_axes([-1.5, -1.5, -0.6], [1.5, 1.5, 0.6], resolution))
        assert mesh.is_watertight and mesh.is_winding_consistent and mesh.euler_number == 0
        errors.append(1 - mesh.volume / (2 * np.pi**2 * 0.4**2))
    assert 0 < errors[1] < errors[0] / 3 and errors[1] < 0.01


@pytest.mark.parametrize("slab", [500, 4000])
def test_slabs_do_not_matter(monkeypatch, slab: int) -> None:
    """Of a random field, with cells of every ambiguous kind."""
    volume = gaussian_filter(np.random.default_rng(0).normal(size=(20, 18, 22)), 1.0)
    for axis in range(3):
        np.moveaxis(volume, axis, 0)[[0, -1]] = 1
    axes = [np.arange(float(n)) for n in volume.shape]

    def field(x: np.ndarray) -> np.ndarray:
        return volume[tuple(x.astype(int).T)]

    whole = mesh_of(field, axes)
    monkeypatch.setattr(isosurface, "SLAB", slab)
    parts = mesh_of(field, axes)
    assert whole.is_watertight and parts.is_watertight
    assert len(parts.vertices) == len(whole.vertices) and len(parts.faces) == len(whole.faces)
    assert parts.vertices == pytest.approx(np.asarray(whole.vertices), abs=1e-5)
    assert parts.volume == pytest.approx(whole.volume, rel=1e-6)


def test_memory_is_that_of_a_slab(monkeypatch) -> None:
    axes = grid_axes([-1.2] * 3, [1.2] * 3, 128)

    def peak() -> int:
        tracemalloc.start()
        zero_mesh(lambda x: np.abs(x).max(axis=1) - 0.05, axes)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    whole = peak()
    monkeypatch.setattr(isosurface, "SLAB", 4 * 129**2)
    assert peak() < whole / 5


def test_no_surface_is_an_empty_mesh() -> None:
    vertices, faces = zero_mesh(lambda x: np.ones(len(x)), grid_axes([0] * 3, [1] * 3, 8))
    assert vertices.shape == faces.shape == (0, 3)


def test_contours() -> None:
    axes = grid_axes([-1.5, -1.5], [1.5, 1.5], 64)
    (circle,) = zero_contours(ball, axes)
    assert (circle[0] == circle[-1]).all()
    assert np.linalg.norm(circle, axis=1) == pytest.approx(1, abs=1e-3)


# Distances -----------------------------------------------------------------------------------


def test_metrics_of_concentric_spheres() -> None:
    mesh, reference = (trimesh.creation.icosphere(4, radius) for radius in (1.0, 1.1))
    found = surface_metrics(mesh, reference, samples=2000)
    assert found.chamfer == pytest.approx(0.1, rel=0.02)
    assert found.normal_consistency == pytest.approx(1, abs=2e-3)
    assert found.threshold == pytest.approx(0.011 * 2 * np.sqrt(3), rel=0.01) and found.f_score == 0
    assert surface_metrics(mesh, reference, threshold=0.2, samples=500).f_score == 1


def test_the_same_surface_is_at_distance_0() -> None:
    """Samples differ, triangles too; large ones beside small ones."""
    box = trimesh.creation.box()
    fine = box.subdivide_to_size(0.05)
    found = surface_metrics(fine, box, samples=1000)
    assert found.chamfer < 1e-5 and found.f_score == 1
    assert found.normal_consistency == pytest.approx(1)


def test_distances_to_faces_against_all_faces() -> None:
    mesh = trimesh.creation.torus(1.0, 0.4, major_sections=24, minor_sections=12)
    points = np.random.default_rng(0).uniform(-1.3, 1.3, (60, 3))
    found, normals = isosurface._sampled(mesh, 3000, 0).nearest(points)
    repeated = np.repeat(points, len(mesh.faces), axis=0)
    triangles = np.tile(mesh.triangles, (len(points), 1, 1))
    apart = np.linalg.norm(
        trimesh.triangles.closest_point(triangles, repeated) - repeated, axis=1
    ).reshape(len(points), -1)
    assert found == pytest.approx(apart.min(axis=1), rel=1e-3)
    assert normals is not None and normals.shape == points.shape


def test_half_a_surface_is_told_from_a_whole_one() -> None:
    """The half is where it should be; the whole has a half that is missing."""
    whole = trimesh.creation.icosphere(4)
    half = whole.submesh([whole.triangles_center[:, 2] > 0], append=True)
    found = surface_metrics(half, whole, samples=2000)
    assert found.chamfer > 0.1
    assert found.f_score == pytest.approx(2 / 3, abs=0.03)


def test_metrics_of_points_and_files(tmp_path) -> None:
    mesh = trimesh.creation.icosphere(4)
    mesh.export(tmp_path / "mesh.ply")
    np.savez(tmp_path / "points.npz", points=mesh.vertices)
    references = [tmp_path / "mesh.ply", tmp_path / "points.npz", np.asarray(mesh.vertices)]
    found = [surface_metrics(mesh, reference, samples=1000) for reference in references]
    assert max(metrics.chamfer for metrics in found) < 0.02
    assert [np.isnan(m.normal_consistency) for m in found] == [False, True, True]


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        (trimesh.Trimesh(), "no faces"),
        (np.zeros((0, 3)), "neither a mesh nor points"),
        (np.zeros(3), "neither a mesh nor points"),
        (np.zeros((5, 2)), "has 3 dimensions, the reference 2"),
    ],
)
def test_what_is_no_surface(reference, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        surface_metrics(trimesh.creation.box(), reference)


def test_threshold_must_be_positive() -> None:
    box = trimesh.creation.box()
    with pytest.raises(ValueError, match="threshold must be a positive number"):
        surface_metrics(box, box, threshold=0)
