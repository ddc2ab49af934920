"""Which side of a surface is outside: guessed, told, and what is said when it is unsure."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import trimesh
from typer.testing import CliRunner

from sciml_snr.cli import app
from sciml_snr.fields import estimate_normals, estimate_sigma_points, fit_sdf, read_cloud
from sciml_snr.fields.surface_objective import OF_THIN_WALLS, Weights
from tests.fields.test_points import circle, cube, sphere

TINY = dict(network_options={"hidden_features": 8, "hidden_layers": 2}, steps=1, progress=False)
WALL, SIGMA = 0.1, 0.1 / 3


def terrain(n: int, sigma: float, seed: int) -> np.ndarray:
    """Hills on 100 x 100, seen from above."""
    rng = np.random.default_rng(seed)
    x, y = rng.uniform(0, 100, (2, n))
    a, b, c = rng.uniform(0, 2 * np.pi, 3)
    z = 8 * np.sin(x / 15 + a) + 6 * np.cos(y / 12 + b) + 4 * np.sin((x + y) / 20 + c)
    return np.column_stack([x, y, z]) + sigma * rng.normal(size=(n, 3))


def mug(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A cup with a wall of three standard deviations: points, true normals, and the stations that
    have seen them: eight around it, and one above that looks in."""
    profile = [[0, 0], [1, 0], [1, 2], [1 - WALL, 2], [1 - WALL, WALL], [0, WALL]]
    shape = trimesh.creation.revolve(np.array(profile, dtype=float), sections=96)
    points, faces = trimesh.sample.sample_surface(shape, n, seed=seed)
    normals = shape.face_normals[faces]
    around = [[5 * np.cos(a), 5 * np.sin(a), z] for a in np.arange(4) * np.pi / 2 for z in (3, -3)]
    stations = np.array([*around, [0.2, 0.1, 4.0]])
    ways = stations - points[:, None]
    facing = np.einsum("nsi,ni->ns", ways, normals) / np.linalg.norm(ways, axis=2)
    within = np.linalg.norm(points[:, :2] + 0.02 * normals[:, :2], axis=1) < 1 - WALL
    facing[within & (points[:, 2] > WALL / 2), :-1] = -1
    errors = SIGMA * np.random.default_rng(seed).normal(size=points.shape)
    return points + errors, normals, stations[facing.argmax(axis=1)]


def rightly(found: np.ndarray, truth: np.ndarray) -> float:
    return float((np.einsum("ij,ij->i", found, truth) > 0).mean())


# Open sheets ---------------------------------------------------------------------------------


def test_a_terrain_looks_up() -> None:
    """In twenty of twenty; by the volume that it does not enclose it was chance."""
    with pytest.warns(UserWarning, match=r"sides .* are unsure: the surface is open.*orient='up'"):
        for seed in range(20):
            normals = estimate_normals(terrain(800, 0.5 + seed % 3, seed))
            assert (normals[:, 2] > 0).mean() > 0.98


@pytest.mark.parametrize(
    ("orient", "sign"), [("up", 1), ([5.0, 100.0], 1), ([5.0, -100.0], -1), (None, 1)]
)
@pytest.mark.filterwarnings("ignore:The sides of the normals are unsure. the surface is open")
def test_an_open_curve_is_outside_where_it_was_seen_from(orient, sign: int) -> None:
    rng = np.random.default_rng(3)
    x = rng.uniform(0, 10, 200)
    curve = np.column_stack([x, np.sin(x)])
    points = curve + 0.05 * rng.normal(size=curve.shape)
    options = dict(network_options={"hidden_features": 32}, steps=200, progress=False)
    fit = fit_sdf(points, orient=orient, **options)
    inner, above = curve[np.abs(x - 5) < 4], np.array([0, 0.5])
    assert (sign * fit.distance(inner + above) > 0).all()
    assert (sign * fit.distance(inner - above) < 0).all()


def test_a_dome_and_a_bowl_are_told_by_their_volume() -> None:
    points, normals = sphere(3000, 0.02)
    for half in (points[:, 2] > 0.2, points[:, 2] < -0.2):
        with pytest.warns(UserWarning, match="the surface is open"):
            found = estimate_normals(points[half])
        assert rightly(found, normals[half]) > 0.99
        looking_up = estimate_normals(points[half], orient="up")
        assert (looking_up[:, 2] > 0).mean() > 0.99


@pytest.mark.parametrize(
    "points",
    [
        *(sphere(n, sigma)[0] for n in (300, 3000) for sigma in (0.0, 0.02, 0.06)),
        *(circle(n, sigma)[0] for n in (100, 300, 2000) for sigma in (0.0, 0.02, 0.05)),
        cube(2000, 0.03)[0],
    ],
)
def test_nothing_is_said_of_closed_shapes(points: np.ndarray) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        estimate_normals(points)
        estimate_sigma_points(points)


# Thin walls ----------------------------------------------------------------------------------


def test_a_thin_wall_that_nothing_is_known_of_is_told() -> None:
    """Both sheets are in one patch: sigma is 1.7 times too large, half of the sides are wrong."""
    points, normals, _ = mug(4000)
    with pytest.warns(UserWarning, match=r"which is too much: two sheets"):
        assert estimate_sigma_points(points) > 1.5 * SIGMA
    with pytest.warns(UserWarning, match=r"unsure: two sheets .*--viewpoint"):
        assert rightly(estimate_normals(points), normals) < 0.7


@pytest.mark.parametrize("told", ["viewpoints", "normals"])
def test_a_thin_wall_with_its_sides_told(told: str) -> None:
    points, normals, seen = mug(4000)
    given = None if told == "viewpoints" else normals + 0.3 * np.roll(normals, 1, axis=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit = fit_sdf(
            points,
            "auto" if given is None else given,
            orient=seen if given is None else "normals",
            **TINY,
        )
    assert fit.cloud.normals is not None
    assert rightly(fit.cloud.normals, normals) > 0.98
    assert fit.sigma == pytest.approx(SIGMA, rel=0.1)
    assert fit.weights == OF_THIN_WALLS
    cosine = np.abs(np.einsum("ij,ij->i", fit.cloud.normals, normals))
    assert np.degrees(np.arccos(cosine.clip(0, 1))).mean() < 16


def test_viewpoints_around_a_plain_shape_change_no_weights() -> None:
    points, normals = sphere(1500, 0.03)
    fit = fit_sdf(points, orient=3 * normals, **TINY)
    assert fit.weights == Weights() and rightly(fit.cloud.normals, normals) == 1
    assert fit.sigma == estimate_sigma_points(points)  # the same patches
    inside = fit_sdf(points, orient=[0.0, 0, 0], **TINY)
    assert rightly(inside.cloud.normals, -normals) == 1


def test_sides_of_normals_that_are_given() -> None:
    points, normals = sphere(300, 0.02)
    mixed = normals * np.where(np.arange(300) % 2, -1, 1)[:, None]
    assert rightly(fit_sdf(points, mixed, orient=3 * normals, **TINY).cloud.normals, normals) == 1
    up = fit_sdf(points, mixed, orient="up", **TINY).cloud.normals
    assert up is not None and (up[:, 2] >= 0).all()
    with pytest.raises(ValueError, match="orient = 'normals', and there are no normals"):
        fit_sdf(points, orient="normals", **TINY)


def test_viewpoints_stay_with_their_points() -> None:
    """When points are left out, and merged."""
    points, normals = sphere(60)
    seen = 3 * normals
    doubled = np.vstack([points, points[:5]])
    doubled[7] = np.nan
    cloud = read_cloud(doubled, viewpoints=np.vstack([seen, seen[:5]]), drop_bad=True)
    assert (cloud.dropped, cloud.merged, len(cloud.points)) == (1, 5, 59)
    assert cloud.viewpoints is not None
    np.testing.assert_allclose(cloud.viewpoints, 3 * cloud.points)


def test_viewpoints_of_a_file(tmp_path: Path) -> None:
    points, normals = sphere(200, 0.02)
    np.savez(tmp_path / "a.npz", points=points, viewpoints=np.zeros((200, 3)))
    inward = fit_sdf(tmp_path / "a.npz", **TINY, out=tmp_path / "run").cloud.normals
    assert rightly(inward, -normals) == 1
    assert (
        rightly(fit_sdf(tmp_path / "a.npz", orient=3 * normals, **TINY).cloud.normals, normals) == 1
    )
    assert rightly(fit_sdf(tmp_path / "a.npz", orient="up", **TINY).cloud.normals, normals) == 1
    np.savez(tmp_path / "a.npz", points=points, viewpoints=3 * normals)
    with pytest.raises(ValueError, match="of other points"):
        fit_sdf(tmp_path / "a.npz", **TINY, out=tmp_path / "run", resume=True)


def test_a_run_is_resumed_with_its_sides(tmp_path: Path) -> None:
    points, normals = sphere(100, 0.02)
    run = {**TINY, "out": tmp_path / "one"}
    first = fit_sdf(points, orient=[0.0, 0, 0], **run)
    again = fit_sdf(points, resume=True, **run | {"steps": 2})
    np.testing.assert_array_equal(again.cloud.normals, first.cloud.normals)
    assert json.loads((tmp_path / "one/config.json").read_text())["orient"] == [0.0, 0.0, 0.0]
    with pytest.raises(ValueError, match="has orient = "):
        fit_sdf(points, orient="up", resume=True, **run | {"steps": 3})
    run["out"] = tmp_path / "many"
    fit_sdf(points, orient=3 * normals, **run)
    with pytest.raises(ValueError, match="give orient= again"):
        fit_sdf(points, resume=True, **run | {"steps": 2})
    fit_sdf(points, orient=3 * normals, resume=True, **run | {"steps": 2})


@pytest.mark.parametrize(
    ("orient", "message"),
    [
        ("down", "orient must be 'up', 'normals'"),
        ([1.0, 2.0], r"viewpoints have the shape \(2,\)"),
        (np.ones((7, 3)), r"viewpoints have the shape \(7, 3\)"),
        ([np.nan, 0, 0], "1 of 1 viewpoints are NaN"),
    ],
)
def test_what_says_nothing_of_sides(tmp_path: Path, orient, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit_sdf(sphere(50)[0], orient=orient, out=tmp_path / "run", **TINY)
    assert not (tmp_path / "run").exists()


def test_the_command_is_told_sides(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("a.npy", terrain(300, 0.5, 0))
    options = ["--steps", "1", "--network-option", "hidden_features=8", "--resolution", "12"]
    call = ["fit-sdf", "a.npy", "-o", "a.ply", *options]
    seen = ["--viewpoint", "50", "--viewpoint", "50"]
    for extra, message in (
        (seen, "--viewpoint needs 3 numbers"),
        ([*seen, "--viewpoint", "900", "--orient", "up"], "not both"),
        (["--orient", "sideways"], "orient must be"),
        (["--viewpoint", "50,50"], "--viewpoint needs 3 numbers"),
        (["--viewpoint", "50,50,up"], "--viewpoint must be numbers, such as 0.5 or 1,2,3; got 50"),
    ):
        done = CliRunner().invoke(app, [*call, *extra])
        assert done.exit_code == 1 and message in " ".join(done.output.split())
        assert not Path("runs").exists()
    for extra, config in (
        ([*seen, "--viewpoint", "900"], [50, 50, 900]),
        (["--viewpoint", "-50,50,900"], [-50, 50, 900]),
        (["--orient", "up"], "up"),
    ):
        name = "-".join(extra).strip("-")
        done = CliRunner().invoke(app, [*call, *extra, "--out-run", name])
        assert "unsure" not in done.output
        assert json.loads(Path(f"{name}/config.json").read_text())["orient"] == config
