"""Meshes in files: digits of large coordinates, and what is invented where there are no points."""

import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from torch import nn
from typer.testing import CliRunner

from sciml_snr.cli import app
from sciml_snr.fields import SDFFit, fit_sdf
from tests.fields.test_points import circle, sphere
from tests.fields.test_surface import Balls, fit_of

FAR = np.array([500_000.0, 4_600_000.0, 100.0])
TINY = dict(network_options={"hidden_features": 8}, steps=1, progress=False)


@pytest.fixture(scope="module")
def far() -> SDFFit:
    """A ball of radius 1 with an error of 0.02 on a map."""
    return fit_of(Balls([0.0, 0, 0]), sphere(500)[0] + FAR)


def radii(path: Path, center: np.ndarray) -> np.ndarray:
    mesh = trimesh.load_mesh(path, process=False)
    return np.linalg.norm(np.asarray(mesh.vertices) - center, axis=1)


@pytest.mark.parametrize("ending", [".ply", ".obj", ".off"])
def test_large_coordinates_keep_their_digits(tmp_path: Path, far: SDFFit, ending: str) -> None:
    """In single precision there are steps of 0.5 at 4,600,000."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        far.export(tmp_path / f"a{ending}", 24)
    found = trimesh.load_mesh(tmp_path / f"a{ending}", process=False)
    assert len(np.unique(np.asarray(found.vertices)[:, 1])) > 100
    assert radii(tmp_path / f"a{ending}", FAR) == pytest.approx(1, abs=0.02)
    assert np.asarray(found.faces).shape == np.asarray(far.mesh(24).faces).shape
    assert found.volume == pytest.approx(4 / 3 * math.pi, rel=0.05)


@pytest.mark.parametrize("ending", [".stl", ".glb"])
def test_single_precision_that_is_too_coarse_is_told(
    tmp_path: Path, far: SDFFit, ending: str
) -> None:
    path = tmp_path / f"a{ending}"
    with pytest.warns(UserWarning, match=r"steps of 0.5, more than .* sigma \(0.02\).*--shift"):
        far.export(path, 24)
    assert np.abs(radii(path, FAR) - 1).max() > 0.1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        far.export(path, 24, shift=FAR)
    assert radii(path, np.zeros(3)) == pytest.approx(1, abs=0.02)


def test_the_shift_that_is_suggested_does(tmp_path: Path, far: SDFFit) -> None:
    with pytest.warns(UserWarning) as said:
        far.export(tmp_path / "a.stl", 16)
    shift = str(said[0].message).split("shift=[")[1].split("]")[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        far.export(tmp_path / "a.stl", 16, shift=[float(x) for x in shift.split(",")])


def test_a_shift_of_a_curve(tmp_path: Path) -> None:
    fit = fit_of(Balls([0.0, 0]), circle(200)[0] + FAR[:2])
    fit.export(tmp_path / "a.npz", 64, shift=FAR[:2])
    with np.load(tmp_path / "a.npz") as found:
        assert np.linalg.norm(found["contour_0"], axis=1) == pytest.approx(1, abs=0.02)


def test_points_that_were_rounded_are_told() -> None:
    points = sphere(200, 0.05)[0] + FAR
    with pytest.warns(UserWarning, match=r"in steps of 0.5, more than a tenth of sigma"):
        fit_sdf(points.astype(np.float32), sigma=0.05, **TINY)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit_sdf(points, sigma=0.05, **TINY)
        fit_sdf(sphere(200, 0.05)[0].astype(np.float32), sigma=0.05, **TINY)


# Open surfaces -------------------------------------------------------------------------------


class Sheet(nn.Module):
    """The plane z = 0 throughout the box."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.factor * x[:, -1:]


def field(n: int, sigma: float, seed: int = 0) -> np.ndarray:
    """Points of a flat square of 100 x 100."""
    rng = np.random.default_rng(seed)
    return np.column_stack([100 * rng.random((n, 2)), sigma * rng.normal(size=n)])


def outside(mesh: trimesh.Trimesh, margin: float = 1.0) -> float:
    """Share of the area that is beyond the square."""
    places = np.asarray(mesh.triangles_center)[:, :2]
    beyond = ((places < -margin) | (places > 100 + margin)).any(axis=1)
    return float(mesh.area_faces[beyond].sum() / mesh.area)


@pytest.mark.parametrize(("n", "sigma"), [(400, 0.1), (3000, 0.5), (3000, 2.0)])
def test_what_is_beyond_the_points_is_left_out(n: int, sigma: float) -> None:
    fit = fit_of(Sheet(), field(n, sigma) - [0, 0, field(n, sigma)[:, 2].mean()], sigma)
    with pytest.warns(UserWarning, match=r"\d\d % of the surface .* is invented. trim='auto'"):
        whole = fit.mesh(80)
    assert outside(whole) > 0.2
    trimmed = fit.mesh(80, trim="auto")
    assert outside(trimmed, 100 / n**0.5) < 0.03  # a spacing of the points
    assert trimmed.area == pytest.approx(100**2, rel=0.12)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        wide = fit.mesh(80, trim=4 * sigma + 8)
    assert trimmed.area < wide.area < whole.area


def test_a_closed_surface_loses_nothing_and_a_hole_comes_back() -> None:
    points, _ = sphere(2000, 0.02)
    fit = fit_of(Balls([0.0, 0, 0]), points)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        whole = fit.mesh(40)
    assert fit.mesh(40, trim="auto").area == pytest.approx(whole.area, rel=0.005)
    bowl = fit_of(Balls([0.0, 0, 0]), np.vstack([points[points[:, 2] < 0.6], [[0, 0, 1.0]]]))
    bowl.frame = fit.frame
    left = bowl.mesh(40, trim="auto")
    # The stray point at the top is data too, and keeps what is near to it, not all of the hole.
    assert left.area == pytest.approx(0.82 * whole.area, rel=0.04)


def test_an_open_curve() -> None:
    points, _ = circle(300, 0.01)
    fit = fit_of(Balls([0.0, 0]), points)
    half = fit_of(Balls([0.0, 0]), points[points[:, 1] > 0])
    half.frame = fit.frame
    with pytest.warns(UserWarning, match=r"\d\d % of the surface"):
        half.contours(64)
    (piece,) = half.contours(64, trim="auto")
    assert piece[:, 1].min() > -0.1
    length = np.linalg.norm(np.diff(piece, axis=0), axis=1).sum()
    assert length == pytest.approx(math.pi, rel=0.06)
    (whole,) = fit.contours(64, trim="auto")
    assert (whole[0] == whole[-1]).all()


def test_bad_trims_and_shifts(tmp_path: Path, far: SDFFit) -> None:
    for trim in (0, -1.0, "some", math.nan):
        with pytest.raises(ValueError, match="trim must be a positive length or 'auto'"):
            far.mesh(8, trim=trim)
    with pytest.raises(ValueError, match="leaves nothing"):
        far.mesh(8, trim=1e-9)
    for shift in (1.0, [1, 2], [1, 2, math.inf]):
        with pytest.raises(ValueError, match="shift must be 3 numbers"):
            far.export(tmp_path / "a.ply", shift=shift)


def test_the_command_trims_and_shifts(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    points = field(400, 0.5) + FAR
    np.save("a.npy", points)
    options = ["--steps", "150", "--network-option", "hidden_features=16", "--resolution", "24"]
    shift = [part for x in FAR for part in ("--shift", str(x))]
    call = ["fit-sdf", "a.npy", "-o", "a.stl", *options]
    wrong = CliRunner().invoke(app, [*call, "--shift", "1"])
    assert wrong.exit_code == 1 and "shift must be 3 numbers" in wrong.output
    wrong = CliRunner().invoke(app, [*call, "--trim", "much"])
    assert wrong.exit_code == 1 and not Path("runs").exists()
    done = CliRunner().invoke(app, [*call, "--trim", "auto", *shift])
    assert done.exit_code == 0, done.output
    found = trimesh.load_mesh("a.stl")
    assert "single precision" not in done.output
    assert outside(found, 5) < 0.01 and np.abs(np.asarray(found.vertices)[:, 2]).max() < 20
