"""Shapes from noisy points: terms, what a fit can do, units, interruption, files, bad input."""

import csv
import json
import math
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from torch import nn

from sciml_snr import Gate, SigmaEstimate
from sciml_snr.fields import surface, surface_objective
from sciml_snr.fields.archive import NetworkChoice
from sciml_snr.fields.fit import FitOptions, Training, fitted
from sciml_snr.fields.points import Cloud
from sciml_snr.fields.surface import fit_sdf
from sciml_snr.fields.surface_fit import SDFFit
from sciml_snr.fields.surface_objective import MIN_SLOPE, SurfaceObjective, Weights
from sciml_snr.measure.twins import Twins
from sciml_snr.runs.folder import write_arrays
from tests.cases import assert_same_bits
from tests.fields.test_points import circle, sphere

SMALL = {"hidden_features": 16, "hidden_layers": 2}
QUICK = dict(network_options=SMALL, steps=4, progress=False)
CPU = torch.device("cpu")


class Balls(nn.Module):
    """Distance from balls of radius r: the true one, times a number that can be trained."""

    def __init__(self, *centers: list[float], radius: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("centers", torch.tensor(centers))
        self.radius = radius
        self.factor = nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        apart = (x[:, None] - self.centers).norm(dim=-1) - self.radius
        return self.factor * apart.amin(dim=1, keepdim=True)


def fit_of(network: nn.Module, points: np.ndarray, sigma: float = 0.02) -> SDFFit:
    """A fit that has not been trained."""
    choice = NetworkChoice("own", {}, network)
    options = FitOptions(device="cpu")
    return SDFFit(Cloud(points), choice, network, sigma, Weights(), options, Training())


# Terms ---------------------------------------------------------------------------------------


def objective(weights: Weights, batch_size: int | None = None, **changes) -> SurfaceObjective:
    points, normals = sphere(400, 0.05)
    chosen = dict(normals=normals, labels=np.zeros(400), sigma=0.05) | changes
    return SurfaceObjective(points, weights=weights, batch_size=batch_size, device=CPU, **chosen)


def test_terms_of_the_true_distance() -> None:
    """At the measured points it is not 0; its slope is 1, and along the normals."""
    weights = Weights(surface=7.0, eikonal=1.0, normal=0.0, off_surface=0.0)
    problem = objective(weights)
    (term,), extra = problem.terms(Balls([0.0, 0, 0]), torch.Generator().manual_seed(0))
    assert term.residual.shape == (400, 1)
    assert term.weight == 7 and term.sigma == 0.05 and term.population == 400
    assert (term.residual / 0.05).square().mean().item() == pytest.approx(1, abs=0.2)
    assert extra is not None and extra.item() == pytest.approx(0, abs=1e-10)


def test_every_term_against_its_formula() -> None:
    network = Balls([0.0, 0, 0])
    with torch.no_grad():
        network.factor.fill_(0.5)
    points, normals = sphere(400, 0.05)
    unit = torch.tensor(points / np.linalg.norm(points, axis=1, keepdims=True))
    expected = {
        "eikonal": 0.25,
        "normal": (unit / 2 - torch.tensor(normals)).square().sum(1).mean().item(),
    }
    for name, value in expected.items():
        weights = Weights(**{"eikonal": 0.0, "normal": 0.0, "off_surface": 0.0, name: 3.0})
        _, extra = objective(weights).terms(network, torch.Generator().manual_seed(0))
        assert extra is not None and extra.item() == pytest.approx(3 * value, rel=1e-4)
    (term,), _ = objective(Weights()).terms(network, torch.Generator().manual_seed(0))
    distance = np.linalg.norm(points, axis=1, keepdims=True) - 1
    assert term.residual.detach().numpy() == pytest.approx(distance, abs=1e-5)
    weights = Weights(eikonal=0, normal=0, off_surface=1)
    found = [
        objective(weights).terms(network, torch.Generator().manual_seed(seed))[1]
        for seed in range(50)
    ]
    low, high = surface_objective.fit_box(points, 0.05)
    box = torch.as_tensor(np.random.default_rng(0).uniform(low, high, (200_000, 3)))
    mean = torch.exp(-surface_objective.ALPHA * network(box.float()).abs()).mean().item()
    assert torch.stack(found).mean().item() == pytest.approx(mean, rel=0.15)


def test_batches_and_labels() -> None:
    labels = np.arange(400) / 400
    problem = objective(Weights(), 32, labels=labels)
    flat = nn.Linear(3, 1)
    for parameter in flat.parameters():
        nn.init.zeros_(parameter)
    seen = set()
    rng = torch.Generator().manual_seed(0)
    for _ in range(80):
        (term,), _ = problem.terms(flat, rng)
        assert term.residual.shape == (32, 1) and term.population == 400
        seen |= {round(-400 * value) for value in term.residual.flatten().tolist()}
    assert len(seen) > 390


@pytest.mark.parametrize("name", ["surface", "eikonal", "normal", "off_surface"])
def test_weights_out_of_range(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        Weights(**{name: -1.0})
    with pytest.raises(ValueError, match="points would have no say"):
        Weights(surface=0)


# Fits ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def curve() -> SDFFit:
    points, _ = circle(400, 0.05)
    return fit_sdf(30 * points + [500.0, -20.0], steps=250, progress=False)


def test_a_curve_in_its_units(curve: SDFFit) -> None:
    assert isinstance(curve.sigma, SigmaEstimate) and curve.sigma == pytest.approx(1.5, rel=0.2)
    (found,) = curve.contours(128)
    assert (found[0] == found[-1]).all()
    error = np.linalg.norm(found - [500, -20], axis=1) - 30
    assert np.sqrt(np.mean(error**2)) < 0.4 * 1.5  # of the points' own
    away = np.array([[500.0, -20.0], [500.0, 12.0], [530.5, -20.0]])
    distance = curve.distance(away)
    assert distance[0] < -15 and distance[1] == pytest.approx(2, abs=1) and abs(distance[2]) < 1
    (gradient,) = curve.gradient([[500.0, 10.0]])
    length = np.linalg.norm(gradient)
    assert 0.5 < length < 1.3 and gradient / length == pytest.approx([0, 1], abs=0.15)


def test_no_points_have_no_distances(curve: SDFFit) -> None:
    assert curve.distance(np.empty((0, 2))).shape == (0,)
    assert curve.gradient(np.empty((0, 2))).shape == (0, 2)


def test_gradient_is_that_of_the_distance(curve: SDFFit) -> None:
    x = np.array([[512.0, -3.0], [480.0, -45.0]])
    for axis in range(2):
        step = 0.05 * np.eye(2)[axis]
        slope = (curve.distance(x + step) - curve.distance(x - step)) / 0.1
        assert curve.gradient(x)[:, axis] == pytest.approx(slope, abs=5e-3)


def test_units_do_not_matter() -> None:
    """Twice as large and far away: the same weights, to the bit."""
    points, _ = sphere(200, 0.03)
    points = np.round(points * 2**20) / 2**20  # so that shifting is exact
    fits = [fit_sdf(p, sigma=s, **QUICK) for p, s in ((points, 0.03), (2 * points + 64, 0.06))]
    assert_same_bits(*(fit.network.state_dict() for fit in fits))
    assert fits[1].distance(2 * points + 64) == pytest.approx(2 * fits[0].distance(points))


def test_a_mesh_is_closed_and_round() -> None:
    points, normals = sphere(1000, 0.05)
    fit = fit_sdf(
        points,
        normals,
        network_options={"hidden_features": 32, "hidden_layers": 2},
        steps=150,
        batch_size=256,
        progress=False,
    )
    mesh = fit.mesh(32)
    assert mesh.is_watertight and mesh.euler_number == 2
    assert mesh.volume == pytest.approx(4 / 3 * math.pi, rel=0.1)
    found = fit.metrics(trimesh.creation.icosphere(4), resolution=32)
    assert found.chamfer < 0.03 and found.normal_consistency > 0.98
    assert {"misfit", "memorized", "open_fraction"} <= fit.history[-1].keys()


@pytest.mark.parametrize(
    ("batch_size", "gate"), [(None, surface.BATCH_GATES["snr_soap"]), (None, {}), (50, {})]
)
def test_the_gate_closes_by_sigma(batch_size: int | None, gate: dict) -> None:
    """The same points, told to be bad, to be good: the floor is that of the told sigma."""
    points, normals = circle(100, 0.05)
    run = dict(QUICK, steps=40, batch_size=batch_size, gate=gate | {"warmup_steps": 0})
    opened = [
        fit_sdf(points, normals, sigma=s, **run).history[-1]["mean_q"] for s in (1e-4, 0.1, 1.0)
    ]
    assert opened[0] > 0.9 and opened[0] > 1.2 * opened[1] and opened[1] > 3 * opened[2]


def test_small_clouds_are_in_every_step_as_a_whole() -> None:
    for optimizer, z in (("snr_adam", 1.0), ("snr_soap", 1.5)):
        for options in (dict(shape=(2048, 3)), dict(shape=(9000, 3), batch_size=9000)):
            small = surface.default_training(optimizer=optimizer, **options)
            assert small["batch_size"] == options.get("batch_size")
            assert small["gate"] == {"z": z, "follow": True}
        assert surface.default_training((2048, 2), optimizer)["gate"] == {"z": z, "follow": False}
        for options in (dict(shape=(2049, 3)), dict(shape=(100, 3), batch_size=99)):
            large = surface.default_training(optimizer=optimizer, **options)
            assert large["batch_size"] == options.get("batch_size", 512)
            assert large["gate"]["form"] == "snr" and large["gate"]["warmup_steps"] == 500
            assert large["gate"]["follow"] is False
    assert surface.default_training((9000, 3), "adam")["gate"] == {}
    options = fit_sdf(sphere(50)[0], **QUICK).options
    assert options.batch_size is None and options.gate == {"z": 1.5, "follow": True}
    assert fit_sdf(circle(50)[0], gate={"alpha": 2.0}, **QUICK).options.gate["z"] is None


def states_of(folder: Path) -> list[dict]:
    """What the optimizer keeps per parameter in a run's checkpoint."""
    saved = torch.load(folder / "checkpoint.pt", weights_only=True)["state"]["optimizer"]["state"]
    return [state for key, state in saved.items() if isinstance(key, int)]


@pytest.mark.parametrize(
    ("shape", "options", "follows"),
    [
        (sphere, {}, True),
        (sphere, {"batch_size": 50}, True),
        (sphere, {"batch_size": 49}, False),
        (sphere, {"gate": {"follow": False}}, False),
        (sphere, {"gate": "none"}, False),
        (circle, {}, False),
        (circle, {"gate": {"follow": True}}, True),
    ],
)
def test_exact_terms_follow_in_space_where_all_points_are_in_every_step(
    tmp_path: Path, shape, options: dict, follows: bool
) -> None:
    """For that the noisy terms' part of the first moment is kept."""
    fit_sdf(shape(50, 0.03)[0], out=tmp_path, **options, **QUICK)
    states = states_of(tmp_path)
    assert states
    assert all(("exp_avg_noisy" in state) is follows for state in states)
    assert all(("exp_floor" in state) is (options.get("gate") != "none") for state in states)


def test_memorization_is_that_of_twins_by_hand() -> None:
    points, normals = circle(60, 0.1)
    fit = fit_sdf(points, normals, sigma=0.1, **QUICK)
    found = fit.memorization(progress=False)
    shifts = Twins(np.zeros(60), 0.1).shifts[0]
    moved = SurfaceObjective.__init__

    def shifted(self, *args, **kwargs):  # labels in the fit's units
        args = list(args)
        args[2] = shifts / fit.frame.scale
        moved(self, *args, **kwargs)

    SurfaceObjective.__init__ = shifted
    try:
        twin = fit_sdf(points, normals, sigma=0.1, **QUICK)
    finally:
        SurfaceObjective.__init__ = moved
    fits = [
        f.distance(points) / np.linalg.norm(f.gradient(points), axis=1).clip(MIN_SLOPE)
        for f in (fit, twin)
    ]
    share = shifts @ (fits[1] - fits[0]) / (shifts @ shifts)
    assert found.share == pytest.approx(share, rel=1e-6) and share != 0


def test_no_memorization_without_noise() -> None:
    fit = fit_sdf(circle(50)[0], sigma=0, **QUICK)
    with pytest.raises(ValueError, match="sigma is 0"):
        fit.memorization()


def test_normals_given_estimated_or_none(tmp_path: Path) -> None:
    points, normals = sphere(300, 0.02)
    given = fit_sdf(points, 5 * normals, **QUICK).cloud.normals
    assert given is not None and given == pytest.approx(normals)
    estimated = fit_sdf(points, **QUICK).cloud.normals
    assert estimated is not None and (np.einsum("ij,ij->i", estimated, normals) > 0.8).all()
    assert fit_sdf(points, None, **QUICK).cloud.normals is None
    assert fit_sdf(points, weights=Weights(normal=0), **QUICK).cloud.normals is None
    mesh = trimesh.creation.icosphere(3)
    mesh.invert()
    mesh.export(tmp_path / "mesh.ply")
    inside_out = fit_sdf(tmp_path / "mesh.ply", **QUICK)
    assert inside_out.cloud.normals is not None
    assert (np.einsum("ij,ij->i", inside_out.cloud.normals, inside_out.cloud.points) < 0).all()


# Meshes --------------------------------------------------------------------------------------


def test_parts_without_points_are_left_out() -> None:
    points, _ = circle(200)
    balls = Balls([0.0, 0.0], [0.0, 0.0], radius=1.0)
    balls.centers[1] = torch.tensor([0.0, 0.0])
    ghost = Balls([-1.0, -1.0], [1.0, 1.0], radius=0.1)

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleList([balls, ghost])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.stack([part(x) for part in self.parts]).amin(dim=0)

    (kept,) = fit_of(Both(), points).contours(64)
    assert np.linalg.norm(kept, axis=1) == pytest.approx(1, abs=0.02)
    solid = Balls([0.0, 0, 0], [1.05, 1.05, 1.05], radius=0.9)
    solid.radius = torch.tensor([1.0, 0.1])
    mesh = fit_of(solid, sphere(500)[0]).mesh(40)
    assert mesh.body_count == 1 and mesh.volume == pytest.approx(4 / 3 * math.pi, rel=0.02)


def test_wrong_dimension_and_no_surface() -> None:
    flat, solid = (
        fit_of(Balls([0.0] * d), points(50)[0]) for d, points in ((2, circle), (3, sphere))
    )
    with pytest.raises(ValueError, match="ask for contours"):
        flat.mesh()
    with pytest.raises(ValueError, match="ask for mesh"):
        solid.contours()
    with pytest.raises(ValueError, match=r"must be \(n, 3\)"):
        solid.distance(np.zeros((5, 2)))
    for network in (Balls([9.0, 9, 9]), Balls([0.0, 0, 0], radius=9.0)):
        with pytest.raises(ValueError, match="there is no surface"):
            fit_of(network, sphere(50)[0]).mesh(16)
    with pytest.raises(ValueError, match="there is no surface"):
        fit_of(Balls([9.0, 9]), circle(50)[0]).contours(16)


@pytest.mark.parametrize("name", ["a.ply", "a.obj", "a.STL", "a.off", "a.glb"])
def test_export_of_meshes(tmp_path: Path, name: str) -> None:
    fit_of(Balls([0.0, 0, 0]), sphere(100)[0]).export(tmp_path / name, 24)
    found = trimesh.load_mesh(tmp_path / name)
    assert found.is_watertight and found.volume == pytest.approx(4 / 3 * math.pi, rel=0.1)


def test_export_of_curves_and_endings(tmp_path: Path) -> None:
    flat = fit_of(Balls([0.0, 0]), circle(100)[0])
    flat.export(tmp_path / "a.npz", 32)
    with np.load(tmp_path / "a.npz") as archive:
        assert list(archive) == ["contour_0"] and archive["contour_0"].shape[1] == 2
    for path, message in (
        (tmp_path / "a.ply", "curve's file"),
        (tmp_path / "b/a.npz", "no folder"),
    ):
        with pytest.raises((ValueError, OSError), match=message):
            flat.export(path)
    with pytest.raises(ValueError, match="mesh's file"):
        fit_of(Balls([0.0, 0, 0]), sphere(100)[0]).export(tmp_path / "a.png")


# Runs and files ------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["snr_soap", "snr_adam", "adam"])
def test_all_points_in_every_step_resumed(tmp_path: Path, optimizer: str) -> None:
    """With what the exact terms' rule keeps: the bits of an uninterrupted run."""
    points, normals = sphere(60, 0.03)
    run = dict(optimizer=optimizer, network_options=SMALL, progress=False)
    whole = fit_sdf(points, normals, steps=20, cooldown=0.0, **run)
    fit_sdf(points, normals, steps=9, cooldown=0.0, out=tmp_path / "run", **run)
    states = states_of(tmp_path / "run")
    assert all(("exp_avg_noisy" in state) == (optimizer != "adam") for state in states)
    resumed = fit_sdf(points, normals, steps=20, out=tmp_path / "run", resume=True, progress=False)
    assert_same_bits(resumed.network.state_dict(), whole.network.state_dict())


def test_run_folder_and_resumption(tmp_path: Path, monkeypatch) -> None:
    """Interrupted and resumed: the bits of an uninterrupted run."""
    points, normals = circle(300, 0.03)
    run = dict(network_options=SMALL, batch_size=64, progress=False)
    whole = fit_sdf(points, normals, steps=24, out=tmp_path / "whole", **run)
    assert {p.name for p in (tmp_path / "whole").iterdir()} == {
        *(".lock", "config.json", "metrics.csv", "checkpoint.pt"),
        *("fit.npz", "summary.json", "figure.png"),
    }
    calls = []
    terms = SurfaceObjective.terms

    def interrupted(self, network, rng):
        calls.append(1)
        if len(calls) == 9:
            os.kill(os.getpid(), signal.SIGINT)
        return terms(self, network, rng)

    monkeypatch.setattr(SurfaceObjective, "terms", interrupted)
    part = fit_sdf(points, normals, steps=24, out=tmp_path / "part", **run)
    assert part.training.interrupted and part.training.step == 9
    assert json.loads((tmp_path / "part/summary.json").read_text())["interrupted"]
    resumed = fit_sdf(points, normals, out=tmp_path / "part", resume=True, progress=False)
    assert_same_bits(resumed.network.state_dict(), whole.network.state_dict())
    with (tmp_path / "part/metrics.csv").open(newline="") as file:
        assert [float(row["step"]) for row in csv.DictReader(file)] == [
            row["step"] for row in whole.history
        ]
    longer = fit_sdf(points, normals, steps=30, out=tmp_path / "part", resume=True, progress=False)
    assert longer.training.step == 30
    before = (tmp_path / "part/config.json").read_text()
    with pytest.raises(ValueError, match="has taken 30 steps already: 29 is too few"):
        fit_sdf(points, normals, steps=29, out=tmp_path / "part", resume=True, progress=False)
    assert (tmp_path / "part/config.json").read_text() == before  # it can be resumed as it was
    for other in (
        dict(optimizer="adam"),
        dict(lr=1e-2),
        dict(gate={"z": 1.0}),
        dict(batch_size=32),
        dict(cooldown=0.1),
        dict(sigma=0.5),
        dict(network="siren"),
        dict(network=torch.nn.Linear(2, 1)),
        dict(weights=Weights(eikonal=0.3)),
    ):
        with pytest.raises(ValueError, match=f"has {next(iter(other))} = "):
            fit_sdf(points, normals, out=tmp_path / "part", resume=True, **run | other)
    for other_normals in (None, -normals):
        with pytest.raises(ValueError, match=r"has normals = True|of other points, or normals"):
            fit_sdf(points, other_normals, out=tmp_path / "part", resume=True, **run)
    with pytest.raises(FileExistsError, match="already holds a run"):
        fit_sdf(points, normals, out=tmp_path / "part", **run)
    with pytest.raises(ValueError, match="of other points"):
        fit_sdf(points[1:], normals[1:], out=tmp_path / "part", resume=True)
    with pytest.raises(FileNotFoundError, match="no run to resume"):
        fit_sdf(points, out=tmp_path / "none", resume=True)


def test_same_seed_same_bits() -> None:
    points, _ = sphere(200, 0.03)
    a, b, c = (fit_sdf(points, seed=seed, **QUICK).network.state_dict() for seed in (0, 0, 1))
    assert_same_bits(a, b)
    assert not torch.equal(a["layers.0.weight"], c["layers.0.weight"])


@pytest.mark.parametrize("sigma", [None, 0.03])
def test_save_and_load(tmp_path: Path, sigma: float | None) -> None:
    points, _ = sphere(200, 0.03)
    fit = fit_sdf(points, sigma=sigma, weights=Weights(normal=0.3), **QUICK)
    fit.save(tmp_path / "fit.npz")
    back = SDFFit.load(tmp_path / "fit.npz")
    assert (back.distance(points) == fit.distance(points)).all()
    assert back.sigma == fit.sigma and type(back.sigma) is type(fit.sigma)
    assert back.weights == fit.weights and back.options == fit.options
    assert back.history == fit.history and back.training == fit.training
    assert back.cloud.normals == pytest.approx(fit.cloud.normals)
    assert back.memorization(progress=False) == fit.memorization(progress=False)


def test_a_fit_made_on_another_machine(tmp_path: Path) -> None:
    """It had a device that there is not here."""
    fit = fit_sdf(circle(60)[0], sigma=0.01, **QUICK)
    fit.save(tmp_path / "fit.npz")
    with np.load(tmp_path / "fit.npz") as archive:
        fields = dict(archive)
    about = json.loads(str(fields["about"]))
    about["options"]["device"] = "nowhere:7"
    write_arrays(tmp_path / "fit.npz", {**fields, "about": np.array(json.dumps(about))})
    assert SDFFit.load(tmp_path / "fit.npz").options == fit.options


def test_memorization_repeats_a_fit_that_was_resumed_with_more_steps(tmp_path: Path) -> None:
    """A twin whose points are not moved ends where the fit did."""
    points, normals = circle(60, 0.1)
    run = {**QUICK, "out": tmp_path, "sigma": 0.1, "cooldown": 0.9}
    fit_sdf(points, normals, **run | {"steps": 10})
    fit = fit_sdf(points, normals, resume=True, **run | {"steps": 16})
    twin = fit.choice.build(2, 1, fit.options.seed)
    unmoved = surface_objective.objective_of(fit.cloud, fit.sigma, fit.weights, fit.options)
    fitted(twin, unmoved, fit.options, progress=False, like=fit.training)
    assert_same_bits(twin.state_dict(), fit.network.state_dict())
    fit.save(tmp_path / "fit.npz")
    again = SDFFit.load(tmp_path / "fit.npz")
    assert again.memorization(progress=False) == fit.memorization(progress=False)


def test_a_network_of_the_users_own(tmp_path: Path) -> None:
    torch.manual_seed(0)
    own = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
    before = own[0].weight.clone()
    fit = fit_sdf(sphere(100)[0], sigma=0.01, network=own, steps=3, progress=False)
    assert torch.equal(own[0].weight, before) and not torch.equal(fit.network[0].weight, before)
    fit.save(tmp_path / "fit.npz")
    with pytest.raises(ValueError, match="network of its user's own"):
        SDFFit.load(tmp_path / "fit.npz")
    back = SDFFit.load(tmp_path / "fit.npz", own)
    assert (back.distance(np.eye(3)) == fit.distance(np.eye(3))).all()
    with pytest.raises(ValueError, match="not the one of the fit"):
        SDFFit.load(tmp_path / "fit.npz", nn.Linear(3, 1))


def test_files_that_are_no_fit(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", x=1)
    with pytest.raises(ValueError, match="not a saved fit"):
        SDFFit.load(tmp_path / "other.npz")
    with pytest.raises(FileNotFoundError):
        SDFFit.load(tmp_path / "none.npz")


def test_figures(curve: SDFFit) -> None:
    assert len(curve.figure(16).axes) == 2
    flat = circle(200, 0.03)[0] @ np.eye(2, 3)  # a plane in space is a surface too
    for points in (sphere(200, 0.03)[0], flat):
        fit = fit_of(Balls([0.0, 0, 0]), points)
        fit.history.append({"step": 1.0, "misfit": 1.0})
        assert len(fit.figure(16).axes) == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(sigma=-1.0), "sigma must be a finite number"),
        (dict(sigma=math.nan), "sigma must be a finite number"),
        (dict(sigma=np.ones(50)), "sigma must be a finite number"),
        (dict(sigma="auto"), "sigma must be a finite number"),
        (dict(weights={"surface": 3}), "weights must be a sciml_snr.fields.Weights"),
        (dict(normals="there"), "normals must be"),
        (dict(normals=np.zeros((50, 3))), "length 0"),
        (dict(network="resnet"), "no network 'resnet'"),
        (dict(network=nn.Linear(2, 1), network_options=None), "does not take points"),
        (dict(network=nn.Linear(3, 1)), "for the built-in networks"),
        (dict(network_options={"depth": 3}), "network option is unknown"),
        (dict(optimizer="sgd"), "no optimizer 'sgd'"),
        (dict(gate="wide"), "Invalid gate"),
        (dict(gate={"gate": "hard"}), "no gate option 'gate'"),
        (dict(lr=0.0), "lr must be"),
        (dict(steps=0), "steps must be"),
        (dict(batch_size=0), "batch_size must be"),
        (dict(sample=100), "no faces"),
        (dict(points="absent.ply"), "no file absent.ply"),
    ],
)
def test_refusals(tmp_path: Path, changes: dict, message: str) -> None:
    """Before anything is written."""
    options = dict(points=sphere(50)[0], out=tmp_path / "run") | QUICK | changes
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        fit_sdf(**options)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("gate", [{"z": 2.5}, {"alpha": 2.0}, "hard", Gate("soft", alpha=3.0)])
def test_a_gate_given_again_is_completed_as_the_run_s_was(tmp_path: Path, gate) -> None:
    points, normals = circle(300, 0.03)
    run = dict(network_options=SMALL, gate=gate, out=tmp_path / "run", progress=False)
    fit_sdf(points, normals, optimizer="snr_soap", steps=2, **run)
    resumed = fit_sdf(points, normals, steps=3, resume=True, **run)
    assert (resumed.options.optimizer, resumed.training.step) == ("snr_soap", 3)


def test_error_bars_along_the_normal() -> None:
    points, normals = circle(200, 0.03)
    fit = fit_sdf(points, normals, sigma=0.03, steps=150, progress=False)
    bars = fit.error_bars(progress=False)
    found = bars(points)
    assert found.shape == (200, 1)
    assert ((found > 0) & (found < 0.06)).all()
