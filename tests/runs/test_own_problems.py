"""Problems and measurements of the user's own, from an empty directory, as a user would call."""

import json
import os
import signal
from pathlib import Path

import deepxde as dde
import numpy as np
import pytest
from sciml_snr.problems import Heat, NavierStokes, Observations, get
from scipy.integrate import solve_ivp
from typer.testing import CliRunner

from sciml_snr.cli import app
from sciml_snr.runs.run import ProblemConfig, solve
from sciml_snr.runs.summary import drifts, read_summary

runner = CliRunner()


@pytest.fixture(autouse=True)
def empty_directory(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    return tmp_path


def call(*arguments: str, code: int = 0) -> str:
    result = runner.invoke(app, list(arguments))
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


def write(path: str, names: str, *columns) -> None:
    np.savetxt(path, np.column_stack(columns), "%.9g", ",", header=names, comments="")


def rod(path: str, scales=(1.0, 1.0, 1.0), sigma: bool = True) -> None:
    """Temperatures of the built-in rod, in other units of x, t and u."""
    found = Heat(points=80).observations
    columns = np.hstack([found.points, found.values, found.sigma]) * [*scales, scales[2]]
    write(path, "x,t,u,sigma" if sigma else "x,t,u", columns[:, : 3 + sigma])


DOMAIN = ("--set", "domain.x=0,120", "--set", "domain.t=0,600")


# Three problems of users' kind


def test_a_rod_in_other_units_is_trained_as_in_the_problems_own() -> None:
    rod("plain.csv")
    rod("rod.csv", (120, 600, 50))
    short = ("--iterations", "40", "--optimizer", "adam", "--out")
    call("solve", "heat", "--data", "plain.csv", "--held-out", "0", *short, "plain")
    output = call("solve", "heat", "--data", "rod.csv", *DOMAIN, *short, "rod")
    plain, own = (read_summary(Path(name)) for name in ("plain", "rod"))
    unit = 120**2 / 600
    assert own.unknowns["diffusivity"] == pytest.approx(unit * plain.unknowns["diffusivity"], 1e-3)
    assert own.misfit == pytest.approx(plain.misfit, rel=1e-2)
    # Nothing is compared with what nobody knows.
    for word in ("reference", "truth", "relative L2", "best", "%)"):
        assert word not in output
    found = json.loads(Path("rod/summary.json").read_text())
    for key in ("final_error", "best_error", "best_iteration", "unknowns_reference", "memorized"):
        assert found[key] is None
    assert "misfit R" in output and "u: held-out error" in output and "diffusivity = " in output
    assert (found["held_out_count"], found["held_out_note"]) == (8, None)
    assert found["sigma_estimate"] is None
    with np.load("rod/prediction.npz") as fields:
        assert "reference" not in fields
        low, high = fields["observed_low"], fields["observed_high"]
        np.testing.assert_allclose((high - low) / 2, 50 * 0.048, rtol=1e-4)
        misfit = (fields["observed_residual"] ** 2).mean()
    assert misfit == pytest.approx(own.misfit, rel=1e-3)
    assert "relative_l2" not in Path("rod/metrics.csv").read_text()


PENDULUM = """
import deepxde as dde
import torch
from sciml_snr.problems import Problem


class Pendulum(Problem):
    ranges = {"t": (0.0, 3.0)}
    outputs = ("theta",)
    unknown_names = ("length",)
    guesses = {"length": 1.0}
    num_domain = 80

    def __init__(self, *, g=9.81, **others):
        self.g = g
        super().__init__(**others)

    def residual(self, x, y):
        bend = dde.grad.hessian(y, x, component=0, i=0, j=0)
        return bend + self.g / self.unknown("length") * torch.sin(y)
"""


def pendulum() -> None:
    """Angles of a pendulum of 0.8 m, and the file of its problem."""
    rng = np.random.default_rng(5)
    t = np.sort(rng.uniform(0, 3, 60))
    swing = solve_ivp(lambda _, y: [y[1], -9.81 / 0.8 * np.sin(y[0])], (0, 3), [1, 0], "LSODA", t)
    write("pendulum.csv", "t,theta", t, swing.y[0] + 0.05 * rng.normal(size=60))
    Path("pendulum.py").write_text(PENDULUM)


def test_a_pendulum_from_a_file_and_a_csv() -> None:
    pendulum()
    options = ("--data", "pendulum.csv", "--iterations", "500", "--held-out", "0")
    output = call("solve", "pendulum.py", *options, "--format", "pdf")
    found = read_summary(Path("runs/pendulum-snr_adam-seed0"))
    assert found.unknowns["length"] == pytest.approx(0.8, abs=0.06)
    low, high = found.unknowns_interval["length"]
    assert low < 0.8 < high
    assert "the measurements' error is not given, and was estimated. theta: sigma 0.0" in output
    assert "taken as by default" in output and "g=9.81" in output
    sigma, error = found.sigma_of_fit["theta"]
    assert abs(sigma - 0.05) < 4 * error
    assert "by the residuals of the fit (before it, estimated" in output
    assert Path("runs/pendulum-snr_adam-seed0/figure.pdf").read_bytes().startswith(b"%PDF")


def test_a_flow_with_two_measured_components() -> None:
    found = NavierStokes(points=60).observations
    sigma = np.tile([0.0005, 0.001], (60, 1))
    columns = found.points / [10, 10, 1], found.values / 50, sigma
    write("piv.csv", "x,y,t,u,v,sigma_u,sigma_v", *columns)
    box = ("--set", "domain.x=0,0.32", "--set", "domain.y=0,0.32", "--data", "piv.csv")
    call("solve", "navier_stokes", *box, "--iterations", "4", "--held-out", "0", "--out", "r")
    with np.load("r/prediction.npz") as fields:
        np.testing.assert_allclose(fields["observed_sigma"], sigma)
        assert list(fields["outputs"]) == ["u", "v", "p"]
        assert fields["fit"].shape[1] == 3
    problem = NavierStokes(observations="piv.csv", domain={"x": (0, 0.32), "y": (0, 0.32)})
    np.testing.assert_allclose(problem.starts["viscosity"], 0.6 * (0.32 / np.pi) ** 2)


def test_a_new_problem_runs_as_it_is_written() -> None:
    assert "sciml-snr solve cooling.py" in call("new-problem", "cooling")
    assert "there already" in call("new-problem", "cooling.py", code=1)
    output = call("solve", "cooling.py", "--iterations", "400")
    assert "reference 0.4" in output
    assert read_summary(Path("runs/cooling-snr_adam-seed0")).final_error < 0.1
    output = call("problems", "cooling.py")
    for what in ("domain.t=0,10", "guess.rate=1", "ambient=20", "t, u"):
        assert what in output
    write("mine.csv", "t,u,sigma", np.arange(10.0), 80 - np.arange(10.0), np.ones(10))
    options = ("--data", "mine.csv", "--set", "ambient=22", "--optimizers", "adam,sgd")
    call("compare", "cooling.py", *options, "--iterations", "3", "--jobs", "1", "--format", "svg")
    found = json.loads(Path("runs/compare-cooling/cooling-adam-seed0/config.json").read_text())
    assert found["settings"] == {"ambient": 22}
    assert Path("runs/compare-cooling/comparison.svg").exists()


# What a user may get wrong


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("heat", "--set", "beta=3"), "heat has no 'beta' that could be set. Possible"),
        (("heat", "--set", "domain.x=0,2"), "domain can be set with measurements of your own only"),
        (("heat", "--held-out", "0.2"), "held_out is a share of own measurements"),
        (("heat", "--data", "rod.csv"), "Set another: --set domain.x=LOW,HIGH"),
        (("heat", "--data", "rod.csv", "--set", "domain.x=5"), "domain.x must be like 0,1"),
        (("heat", "--data", "rod.csv", "--set", "domain.x=5,1"), "must be low < high"),
        (("heat", "--data", "rod.csv", "--set", "diffusivity=3"), "says nothing about yours"),
        (("heat", "--data", "rod.csv", *DOMAIN, "--set", "guess.diffusivity=-1"), "number > 0"),
        (("convection", "--set", "beta=fast"), "beta must be a finite number"),
        (("convection", "--set", "num_domain=0"), "num_domain must be a whole number, 1 or more"),
        (("convection", "--set", "num_domain=2.5"), "num_domain must be a whole number"),
        (("poisson", "--set", "num_domain=9"), "poisson has no 'num_domain' that could be set"),
        (("poisson", "--data", "u.csv"), "--set source=FILE.csv"),
        (("poisson", "--data", "u.csv", "--set", "source=f.csv"), "the error of f is unknown"),
        (("absent.py",), "There is no file"),
        (("syntax.py",), "syntax.py, line 2"),
        (("nothing.py",), "must define one subclass"),
        (("wrong.py", "--data", "pendulum.csv"), "wrong.py, line 20: AttributeError"),
        (("shape.py", "--data", "pendulum.csv"), "residual() gives the shape"),
        (("none.py", "--data", "pendulum.csv"), "none.py: residual() returns None"),
        (("minus.py", "--data", "pendulum.csv"), "the guess of length must be"),
        (("nowhere.py", "--data", "pendulum.csv"), "num_domain is 0"),
        (("pendulum.py",), "pendulum has no measurements: give your own"),
        (("pendulum.py", "--data", "rod.csv"), "rod.csv: column 'theta' is missing"),
        (("pendulum.py", "--data", "half.csv"), "there are columns sigma and sigma_theta"),
        (("heat", "--format", "gif"), "There is no format 'gif'"),
        (
            ("pendulum.py", "--data", "clock.csv", "--set", "domain.t=1600000000,1600000600"),
            "subtract 1600000000 from all t",
        ),
    ],
)
def test_errors_before_any_work(arguments, message: str) -> None:
    pendulum()
    rod("rod.csv", (120, 600, 50))
    write("half.csv", "t,theta,sigma,sigma_theta", *np.ones((4, 3)))
    write("clock.csv", "t,theta", [1600000100, 1600000200], [0.1, 0.2])
    write("u.csv", "x,u", [0.1, 0.2], [1.0, 2.0])
    write("f.csv", "x,f", [0.1, 0.2], [1.0, 2.0])
    Path("syntax.py").write_text("class A:\n  def")
    Path("nothing.py").write_text("x = 1\n")
    Path("wrong.py").write_text(PENDULUM.replace("torch.sin", "torch.sinus"))
    Path("shape.py").write_text(PENDULUM.replace("torch.sin(y)", "torch.sin(y)[:, 0]"))
    Path("none.py").write_text(PENDULUM.replace("return ", "x = ", 1))
    Path("minus.py").write_text(PENDULUM.replace('"length": 1.0', '"length": -1.0'))
    Path("nowhere.py").write_text(PENDULUM.replace("num_domain = 80", "num_domain = 0"))
    output = call("solve", *arguments, code=1)
    assert output.startswith("Error: ") and message in output
    assert not Path("runs").exists()


def test_a_file_that_has_changed_is_not_taken_for_the_runs() -> None:
    pendulum()
    options = ("--data", "pendulum.csv", "--out", "r", "--held-out", "0")
    call("solve", "pendulum.py", *options, "--iterations", "4")
    call("solve", "pendulum.py", *options, "--iterations", "5", "--resume")
    Path("pendulum.py").write_text(PENDULUM + "\n# changed\n")
    longer = (*options, "--iterations", "6", "--resume")
    for arguments in (("solve", "pendulum.py", *longer), ("memorization", "r")):
        assert "is of another pendulum.py: the file has changed" in call(*arguments, code=1)


# Sigma, held-out measurements, unknowns that move


def test_sigma_of_each_output_is_estimated_from_its_scatter() -> None:
    found = NavierStokes(points=400, noise=0.05).observations
    own = NavierStokes(observations=Observations(found.points, found.values * [1, 10]))
    estimates = own.sigma_estimate
    assert float(estimates[0]) == pytest.approx(0.05, rel=0.25)
    assert float(estimates[1]) == pytest.approx(0.5, rel=0.25)
    assert own.sigma().shape == (400, 2)
    sigmas = [float(c.sigma[0, 0]) for c in own.measurement_conditions()]
    assert sigmas == pytest.approx([float(e) for e in estimates])


def test_held_out_measurements_are_predicted_by_a_fit_that_does_not_see_them() -> None:
    """A measurement that is far off spoils the held-out error, where it is held out, as the fit
    did not see it; the refit on all is the run's."""
    rod("rod.csv")
    config = ProblemConfig("heat", data="rod.csv", iterations=3, held_out=0.25, optimizer="adam")
    summary = solve(config, "r", progress=False)
    assert (summary.held_out_count, summary.held_out_note) == (20, None)
    with np.load("r/prediction.npz") as fields:
        assert len(fields["observed_values"]) == 80
    chosen = np.random.default_rng((0, 7)).permutation(80)[:20]
    lines = Path("rod.csv").read_text().splitlines()
    for which, factor in ((chosen[0], 1), (np.setdiff1d(range(80), chosen)[0], 0)):
        cells = lines[1 + which].split(",")
        changed = [*lines]
        changed[1 + which] = ",".join([*cells[:2], "1000", cells[3]])
        Path("off.csv").write_text("\n".join(changed))
        config = ProblemConfig(
            "heat", data="off.csv", iterations=3, held_out=0.25, optimizer="adam"
        )
        off = solve(config, None, progress=False).held_out_error["u"]
        assert (off > 1000 / 20**0.5 * 0.9) == bool(factor)


def test_two_measured_fields_with_one_error() -> None:
    x = np.linspace(-0.6, 0.6, 20)
    write("u.csv", "x,u", x, np.sin(6 * x) ** 3)
    write("f.csv", "x,f", x, np.cos(6 * x))
    options = ("--data", "u.csv", "--set", "source=f.csv", "--noise", "0.1", "--iterations", "2")
    call("solve", "poisson", *options, "--held-out", "0.25", "--out", "r")
    assert read_summary(Path("r")).held_out_count == 5


def test_too_few_measurements_are_not_held_out() -> None:
    write("few.csv", "x,t,u,sigma", *np.linspace(0, 1, 48).reshape(4, 12) + 0.01)
    output = call("solve", "heat", "--data", "few.csv", "--iterations", "2")
    assert "held-out error: not measurable with so few data (1 of 12" in output


def test_an_interrupted_second_training_is_made_by_resuming(monkeypatch) -> None:
    rod("rod.csv")
    train, trainings = dde.Model.train, []

    def interrupted(self, *args, **kwargs):
        trainings.append(self)
        if len(trainings) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return train(self, *args, **kwargs)

    options = ("solve", "heat", "--data", "rod.csv", "--iterations", "4", "--out", "r")
    with monkeypatch.context() as patch:
        patch.setattr(dde.Model, "train", interrupted)
        assert "held-out error: the second training has not ended" in call(*options)
    summary = read_summary(Path("r"))
    assert (summary.iterations, summary.interrupted, summary.held_out_misfit) == (4, False, None)
    call(*options, "--resume")
    assert read_summary(Path("r")).held_out_misfit > 0


def test_an_unknown_that_moves_is_told_from_one_at_rest() -> None:
    rows = [{"iteration": float(i), "a": 1 + 0.01 * i, "b": 2.0} for i in range(101)]
    assert drifts(rows, ("a", "b")) == pytest.approx({"a": 0.25, "b": 0.0})
    assert drifts(rows[:3], ("a",)) == {"a": None}
    rod("rod.csv")
    config = ProblemConfig("heat", data="rod.csv", iterations=12, held_out=0.0)
    summary = solve(config, None, progress=False)
    summary.unknowns = {"a": 2.0, "b": 2.0, "c": 2.0}
    summary.unknowns_standard_error = {"a": 1.0, "b": 0.1, "c": None}
    summary.unknowns_drift = {"a": 0.03, "b": 0.03, "c": 0.05}
    assert [summary.is_moving(name) for name in "abc"] == [False, True, True]


def test_own_measurements_of_a_bound_problem_keep_its_weights() -> None:
    """Where ranges are not stated, nothing is scaled."""
    cls = get("kovasznay")
    observed = cls(points=12).observations
    own = cls(observations=Observations(observed.points, 100 * observed.values, observed.sigma))
    assert own.weights() == cls().weights()


def test_lists_and_help_fit_into_80_columns() -> None:
    for arguments in (("problems",), ("problems", "heat"), ("solve", "--help")):
        lines = runner.invoke(app, list(arguments)).output.splitlines()
        assert max(map(len, lines)) <= 80


@pytest.mark.parametrize(("points", "is_told"), [(80, False), (240, True)])
def test_of_few_measurements_no_memorized_share_is_guessed(points: int, is_told: bool) -> None:
    """The misfit is off 1 by a standard deviation of sqrt(2 / n) by chance alone."""
    found = Heat(points=points).observations
    write("rod.csv", "x,t,u,sigma", np.hstack([found.points, found.values, found.sigma]))
    short = ("--iterations", "20", "--held-out", "0", "--optimizer", "adam", "--out", "run")
    output = call("solve", "heat", "--data", "rod.csv", *short)
    assert ("│ ~ " in output, "│ ? │" in output) == (is_told, not is_told)
    assert ("memorized ~" in output) is is_told  # in the progress bar
    assert read_summary(Path("run")).measurements == points


DECAY = """
import deepxde as dde
import torch
from sciml_snr.problems import Problem

class Decay(Problem):
    equation = "u' = -k u"
    ranges = {"t": (0.0, 1.0)}
    outputs = ("u",)
    unknown_names = ("k",)
    guesses = {"k": 1.0}
    num_domain = 20

    def residual(self, x, y):
        return dde.grad.jacobian(y, x, i=0, j=0) + self.unknown("k") * y

    def conditions(self):
        return [dde.icbc.IC(self.geometry(), lambda t: 1.0, lambda t, on_initial: on_initial)]
"""


def test_a_condition_without_points_is_an_error_before_the_work() -> None:
    """A loss of NaN from the first iteration on ended as a success."""
    Path("decay.py").write_text(DECAY)
    t = np.linspace(0, 1, 20)
    write("decay.csv", "t,u,sigma", t, np.exp(-t), 0.1 + 0 * t)
    solve = ("solve", "decay.py", "--data", "decay.csv", "--iterations", "9")
    output = call(*solve, code=1)
    assert "Condition 1 of 2 (IC) has no points, and its loss would be NaN" in output
    Path("decay.py").write_text(
        DECAY.replace("num_domain = 20", "num_domain = 20; num_boundary = 2")
    )
    call(*solve, "--held-out", "0")


def test_a_loss_that_is_not_finite_is_an_error() -> None:
    """With Adam, too, which does not look at its gradients."""
    rod("rod.csv")
    overflowing = ("--optimizer", "adam", "--lr", "1e30", "--iterations", "60", "--out", "run")
    output = call("solve", "heat", "--data", "rod.csv", *overflowing, code=1)
    assert "Error: The loss is not finite at iteration" in output
    assert "Take a smaller --lr" in output and "Traceback" not in output
