"""Every problem: reference, measurements, metrics, seeds; and reading the user's own data."""

import csv

import deepxde as dde
import numpy as np
import pytest
import sympy
import torch
from sciml_snr.problems import (
    PROBLEMS,
    AllenCahn,
    Burgers,
    BurgersBajaj,
    BurgersInverse,
    Convection,
    ConvectionOutliers,
    Elliptic,
    Elliptic2D,
    Heat,
    HeatForward,
    HeatOutliers,
    Kovasznay,
    Lorenz,
    LynxHare,
    NavierStokes,
    Observations,
    Poisson,
    Poisson2D,
    Problem,
    Schroedinger,
    Wave,
    allen_cahn,
    burgers,
    get,
)
from sciml_snr.problems.base import OUTLIER_SCALE
from scipy.optimize import least_squares

from sciml_snr import MemorizationMonitor, NoisyTerm, exact_label_noise, set_SNR_options
from sciml_snr.deepxde.conditions import NoisyCondition
from sciml_snr.runs.run import ProblemConfig, memorization, solve

ALL = pytest.mark.parametrize("cls", PROBLEMS.values(), ids=PROBLEMS)
SYNTHETIC = pytest.mark.parametrize(
    "cls", [pytest.param(cls, id=name) for name, cls in PROBLEMS.items() if cls.synthetic]
)
SOURCES = pytest.mark.parametrize("cls", [Poisson, Poisson2D], ids=["poisson", "poisson_2d"])


@ALL
def test_metric_is_zero_on_the_reference_itself(cls: type[Problem]) -> None:
    problem = cls()
    assert problem.metrics(problem.reference)["relative_l2"] < 1e-12


FIRST = {-3: -1 / 60, -2: 9 / 60, -1: -45 / 60, 1: 45 / 60, 2: -9 / 60, 3: 1 / 60}
SECOND = {i: w / 180 for i, w in zip(range(-3, 4), (2, -27, 270, -490, 270, -27, 2), strict=True)}
"""Central differences of sixth order."""


@ALL
def test_reference_solves_the_equation(cls: type[Problem]) -> None:
    """Differences of the reference in place of the network's derivatives."""
    problem = cls()
    start = problem.unknown_values()
    for name in problem.unknown_names:
        with torch.no_grad():
            problem.unknowns[name].fill_(float(np.log(problem.truth()[name] / start[name])))
    lows, highs = np.array(list(problem.domain.values())).T
    rng = np.random.default_rng(1)
    x = lows + (0.1 + 0.8 * rng.random((50, len(lows)))) * (highs - lows)
    h = 2e-4 * (highs - lows)

    def difference(weights, j, component, order):
        around = [
            w * problem.encode(problem.reference(x + i * h * (np.arange(len(h)) == j)))
            for i, w in weights.items()
        ]
        found = sum(around)[:, component : component + 1] / h[j] ** order
        return torch.tensor(found)

    slopes = []

    def jacobian(ys, xs, i=0, j=0):
        slopes.append(difference(FIRST, j, i, 1))
        return slopes[-1]

    def hessian(ys, xs, component=0, i=0, j=0):
        assert i == j
        return difference(SECOND, j, component, 2)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dde.grad, "jacobian", jacobian)
        patch.setattr(dde.grad, "hessian", hessian)
        encoded = torch.tensor(problem.encode(problem.reference(x)))
        residuals = problem.residual(torch.tensor(x), encoded)
    residuals = residuals if isinstance(residuals, list) else [residuals]
    scale = max([1.0, *(float(s.abs().max()) for s in slopes)])
    for residual in residuals:
        assert float(residual.detach().abs().max()) < 1e-4 * scale


@ALL
def test_seeds_repeat(cls: type[Problem]) -> None:
    one, same = cls(seed=3), cls(seed=3)
    np.testing.assert_array_equal(one.observations.values, same.observations.values)
    if cls.synthetic:
        assert not np.array_equal(one.observations.values, cls(seed=4).observations.values)


@SYNTHETIC
def test_noise_has_the_stated_sigma(cls: type[Problem]) -> None:
    """Standard deviation of 20,000 errors: its standard error is sigma / 200; allow 4."""
    observed = cls(points=20_000, noise=0.3, seed=5, outliers=0.0).observations
    assert observed.values.shape == (20_000, len(cls.measured))
    error = observed.values - observed.clean
    assert abs(error.std() - 0.3) < 4 * 0.3 / 200
    assert abs(error.mean()) < 4 * 0.3 / np.sqrt(20_000)
    np.testing.assert_array_equal(observed.sigma, np.full((20_000, 1), 0.3))


@ALL
def test_gradients_flow_to_network_and_unknowns(cls: type[Problem]) -> None:
    problem = cls()
    model = problem.model()
    model.compile("adam", lr=1e-3, external_trainable_variables=list(problem.unknowns.values()))
    before = [p.detach().clone() for p in model.net.parameters()]
    unknowns = problem.unknown_values()
    model.train(iterations=2, display_every=10, verbose=0)
    changed = [not torch.equal(a, b) for a, b in zip(before, model.net.parameters(), strict=True)]
    assert all(changed)
    assert all(problem.unknown_values()[name] != value for name, value in unknowns.items())


@ALL
def test_reference_meets_the_exact_conditions(cls: type[Problem]) -> None:
    """At the points that DeepXDE trains on; conditions on derivatives have tests of their own."""
    problem = cls()
    data = problem.data()
    starts = np.cumsum([0, *data.num_bcs])
    found = torch.tensor(problem.encode(problem.reference(data.train_x)))
    for i, condition in enumerate(data.bcs):
        if isinstance(condition, (dde.icbc.DirichletBC, dde.icbc.PeriodicBC)):
            points = torch.tensor(data.train_x)
            error = condition.error(data.train_x, points, found, starts[i], starts[i + 1])
            assert len(error) > 0
            assert float(error.abs().max()) < 1e-5


@ALL
def test_solve_trains_and_draws(cls: type[Problem], tmp_path) -> None:
    summary = solve(ProblemConfig(cls.name, iterations=30), tmp_path / "run", progress=False)
    assert summary.iterations == 30
    assert np.isfinite(summary.final_error)
    assert (tmp_path / "run" / "figure.png").exists()
    assert set(summary.unknowns) >= set(cls.unknown_names)
    with open(tmp_path / "run" / "metrics.csv", newline="") as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    assert losses[-1] < losses[0]


@SYNTHETIC
def test_own_measurements_in_place_of_the_synthetic(cls: type[Problem], tmp_path) -> None:
    observed = cls(points=12).observations
    columns = (*cls.coordinates, *cls.measured, "sigma")
    table = np.hstack([observed.points, observed.values, observed.sigma])
    np.savetxt(tmp_path / "own.csv", table, "%.17g", ",", header=",".join(columns), comments="")
    own = cls(observations=tmp_path / "own.csv")
    np.testing.assert_array_equal(own.observations.points, observed.points)
    np.testing.assert_array_equal(own.observations.values, observed.values)
    np.testing.assert_array_equal(own.sigma(), observed.sigma)
    assert "memorized" not in own.metrics(own.reference)


@ALL
def test_the_number_of_the_equation_s_points_can_be_set(cls: type[Problem]) -> None:
    if not cls.num_domain:
        with pytest.raises(ValueError, match="has no num_domain"):
            cls(num_domain=50)
        return
    assert cls(num_domain=57).data().num_domain == 57
    assert cls().data().num_domain == cls.num_domain


@ALL
def test_documented(cls: type[Problem]) -> None:
    assert cls.__doc__ and cls.equation
    assert cls.iterations <= 8000
    assert cls.measured == cls.outputs[: len(cls.measured)]
    assert set(cls.scored) <= set(cls.outputs)


@ALL
def test_a_noisier_fit_has_a_larger_error(cls: type[Problem]) -> None:
    problem = cls()
    off = problem.metrics(lambda points: 1.1 * problem.reference(points))
    assert off["relative_l2"] == pytest.approx(0.1)


@pytest.mark.parametrize("cls", [ConvectionOutliers, HeatOutliers])
def test_outliers_are_the_stated_share_and_size(cls: type[Problem]) -> None:
    """Beside them, the measurements are those without outliers."""
    with_them, without = cls(points=2000), cls(points=2000, outliers=0.0)
    np.testing.assert_array_equal(with_them.observations.clean, without.observations.clean)
    error, usual = (p.observations.values - p.observations.clean for p in (with_them, without))
    wild = ~np.isclose(error, usual, rtol=1e-6)
    assert wild.sum() == 300
    np.testing.assert_allclose(error[wild], OUTLIER_SCALE * usual[wild], rtol=1e-6)
    np.testing.assert_array_equal(with_them.sigma(), without.sigma())


def test_an_outlier_is_wild_in_all_its_outputs() -> None:
    wild, usual = (NavierStokes(points=40, outliers=share).observations for share in (0.25, 0.0))
    ratio = (wild.values - wild.clean) / (usual.values - usual.clean)
    rows = np.isclose(ratio, OUTLIER_SCALE).all(axis=1)
    assert rows.sum() == 10
    np.testing.assert_allclose(ratio[~rows], 1)


def test_outputs_that_are_not_measured() -> None:
    problem = Elliptic()
    assert len(problem.measurement_conditions()) == 1
    assert problem.observations.values.shape == (100, 1)
    assert problem.fit_of_measured(problem.reference).shape == (100, 1)

    def off(points):
        return problem.reference(points) * [1.2, 1.1]

    metrics = problem.metrics(off)
    assert metrics["relative_l2"] == pytest.approx(0.1)
    assert metrics["u_relative_l2"] == pytest.approx(0.2)


def test_memorized_share_of_truth_and_interpolation() -> None:
    problem = Convection()
    observed = problem.observations

    def interpolant(points):
        """The measurements at the measured points."""
        return observed.values if points is observed.points else problem.reference(points)

    assert problem.metrics(problem.reference)["memorized"] == 0
    assert problem.metrics(interpolant)["memorized"] == pytest.approx(1)


def test_convection_statistical_limit() -> None:
    """Least squares on 1, sin, cos has about the error the docstring states."""
    errors = []
    for seed in range(40):
        problem = Convection(seed=seed)
        x, y = problem.observations.points[:, 0], problem.observations.values[:, 0]
        c = np.linalg.lstsq(np.stack([np.ones_like(x), np.sin(x), np.cos(x)], 1), y, rcond=None)[0]

        def fit(points, c=c, beta=problem.beta):
            phase = points[:, :1] - beta * points[:, 1:]
            return c[0] + c[1] * np.sin(phase) + c[2] * np.cos(phase)

        errors.append(problem.metrics(fit)["relative_l2"])
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(np.sqrt(6 / 256), rel=0.15)


@pytest.mark.parametrize("diffusivity", [0.1, 0.02])
def test_heat_ends_are_cold_and_heat_flows_at_the_stated_rate(diffusivity: float) -> None:
    """The even and the odd part about x = 1/2 are the first and the second mode."""
    problem = Heat(diffusivity=diffusivity, points=1)
    ends = np.array([[x, t] for x in (0.0, 1.0) for t in (0.0, 0.3, 1.0)])
    np.testing.assert_allclose(problem.reference(ends), 0, atol=1e-15)
    first, second = (
        problem.reference(np.array([[0.25, t], [0.75, t]])).T[0] @ [[0.5, 0.5], [0.5, -0.5]]
        for t in (0.0, 1.0)
    )
    rates = diffusivity * np.pi**2 * np.array([1, 4])
    np.testing.assert_allclose(first, [np.sqrt(0.5), 0.5])
    np.testing.assert_allclose(second, first * np.exp(-rates))


def test_heat_noise_is_a_tenth_of_the_root_mean_square() -> None:
    """At 20,000 uniform points, whose mean square has a standard error of about 1 %."""
    clean = Heat(points=20_000).observations.clean
    assert Heat.noise == pytest.approx(0.1 * np.sqrt(np.mean(clean**2)), rel=0.02)


def test_heat_statistical_limit() -> None:
    """Least squares on kappa and both amplitudes has about the errors the docstring states."""
    field, kappa = [], []
    for seed in range(40):
        problem = Heat(seed=seed)
        x, y = problem.observations.points, problem.observations.values[:, 0]

        def modes(k, x):
            """(n, 2): each mode with an amplitude of 1."""
            waves = np.array([1, 2]) * np.pi
            return np.exp(-k * waves**2 * x[:, 1:]) * np.sin(waves * x[:, :1])

        def misfit(theta, x=x, y=y):
            return modes(theta[0], x) @ theta[1:] - y

        found = least_squares(misfit, [0.3, 1.0, 1.0]).x
        errors = problem.metrics(lambda p, f=found: modes(f[0], p) @ f[1:, None])
        field.append(errors["relative_l2"])
        kappa.append(found[0] / problem.diffusivity - 1)
    assert np.sqrt(np.mean(np.square(field))) == pytest.approx(0.1 * np.sqrt(3 / 200), rel=0.25)
    assert np.sqrt(np.mean(np.square(kappa))) == pytest.approx(0.025, rel=0.35)


def test_heat_diffusivity_starts_at_the_guess_and_is_trained_as_a_logarithm() -> None:
    problem = Heat(diffusivity=0.05)
    assert problem.unknown_values() == {"diffusivity": pytest.approx(0.3)}
    assert problem.truth() == {"diffusivity": 0.05}
    with torch.no_grad():
        problem.unknowns["diffusivity"].fill_(float(np.log(0.1 / 0.3)))
    assert problem.unknown_values() == {"diffusivity": pytest.approx(0.1)}
    assert problem.metrics(problem.reference)["diffusivity_relative_error"] == pytest.approx(1)


def test_heat_training_finds_field_and_diffusivity() -> None:
    problem = Heat()
    dde.config.set_random_seed(0)
    model = problem.model()
    unknowns = list(problem.unknowns.values())
    weights = problem.loss_weights()
    model.compile("adam", Heat.lr, loss_weights=weights, external_trainable_variables=unknowns)
    before = problem.metrics(lambda points: problem.predict(model, points))
    model.train(iterations=300, display_every=1000, verbose=0)
    after = problem.metrics(lambda points: problem.predict(model, points))
    assert after["relative_l2"] < 0.25 * before["relative_l2"]
    assert after["diffusivity_relative_error"] < 0.3 * before["diffusivity_relative_error"]


def test_initial_states() -> None:
    """As the docstrings give them."""
    x = np.linspace(-1, 1, 41)[:, None]
    start = np.hstack([x, np.zeros_like(x)])
    np.testing.assert_allclose(Burgers().reference(start), -np.sin(np.pi * x), atol=1e-12)
    mixture = 0.6 * np.cos(np.pi * x) + 0.4 * np.sin(2 * np.pi * x)
    np.testing.assert_allclose(AllenCahn().reference(start), mixture, atol=1e-9)
    soliton = np.hstack([2 / np.cosh(5 * x), np.zeros_like(x)])
    np.testing.assert_allclose(Schroedinger().reference(start * [5, 1]), soliton, atol=1e-12)
    shape = np.sin(np.pi * x) + 0.5 * np.sin(3 * np.pi * x)
    np.testing.assert_allclose(Wave().reference(start), shape, atol=1e-12)


def test_the_string_is_at_rest_at_first() -> None:
    x = np.linspace(0, 1, 11)[:, None]
    before, after = (Wave().reference(np.hstack([x, np.full_like(x, t)])) for t in (-1e-3, 1e-3))
    np.testing.assert_allclose(before, after, atol=1e-12)


def test_forward_heat_knows_what_inverse_heat_looks_for() -> None:
    x = Heat().evaluation_points()
    np.testing.assert_array_equal(HeatForward().reference(x), Heat().reference(x))
    assert HeatForward().kappa() == Heat().truth()["diffusivity"]
    assert HeatForward().observations.points[:, 1].max() == 0


def test_periodic_features_make_a_periodic_network() -> None:
    net = AllenCahn(points=5).network()
    ends = torch.tensor([[[-1.0, 0.3]], [[1.0, 0.3]]], requires_grad=True)
    left, right = net(ends[0]), net(ends[1])
    torch.testing.assert_close(left, right)
    slopes = torch.autograd.grad(left.sum() - right.sum(), ends)[0]
    torch.testing.assert_close(slopes[0, 0, 0], -slopes[1, 0, 0])


def test_spectral_reference_is_resolved(monkeypatch) -> None:
    """Twice as many modes, and more points in time, change nothing."""
    problem, x = AllenCahn(), AllenCahn().evaluation_points()
    coarse = problem.reference(x)
    monkeypatch.setattr(allen_cahn, "MODES", 256)
    monkeypatch.setattr(allen_cahn, "TIMES", 48)
    allen_cahn.spectral_solution.cache_clear()
    fine = problem.reference(x)
    allen_cahn.spectral_solution.cache_clear()
    assert np.abs(fine - coarse).max() < 1e-8


@pytest.mark.parametrize("viscosity", [0.002, 0.01 / np.pi, 0.1])
def test_quadrature_is_resolved(viscosity: float, monkeypatch) -> None:
    problem, x = Burgers(viscosity=viscosity), Burgers().evaluation_points()
    coarse = problem.reference(x)
    monkeypatch.setattr(burgers, "NODES", 250)
    burgers.hermite.cache_clear()
    fine = problem.reference(x)
    burgers.hermite.cache_clear()
    assert np.abs(fine - coarse).max() < 1e-9


def test_published_errors_of_burgers_in_our_metric() -> None:
    """A mean squared error over the mean square of u is the relative L2 error squared."""
    square = np.mean(Burgers().reference(Burgers().evaluation_points()) ** 2)
    assert square == pytest.approx(0.37, abs=0.005)
    np.testing.assert_allclose(np.sqrt([0.198, 0.0080] / square), [0.73, 0.147], rtol=0.01)
    assert (BurgersBajaj.points, BurgersBajaj.noise) == (50, 0.5)


def test_burgers_noise_is_a_twentieth_of_the_standard_deviation() -> None:
    spread = Burgers().reference(Burgers().evaluation_points()).std()
    assert BurgersInverse.noise == pytest.approx(0.05 * spread, rel=0.02)


def test_scales_that_the_docstrings_state() -> None:
    def rms(problem):
        values = problem.reference(problem.evaluation_points())
        return np.sqrt(np.mean(values**2, axis=0))

    np.testing.assert_allclose(rms(Lorenz()), [6, 6, 15], rtol=0.05)
    np.testing.assert_allclose(rms(NavierStokes())[:2], 0.36, rtol=0.01)


def symbolic(expression, *symbols):
    """A function of points (n, d), giving (n, 1)."""
    function = sympy.lambdify(symbols, expression, "numpy")
    return lambda points: function(*points.T)[:, None]


def test_sources_by_symbolic_differentiation() -> None:
    x, y = sympy.symbols("x y")
    sin, pi, half = sympy.sin, sympy.pi, sympy.Rational(1, 2)
    points = np.random.default_rng(0).uniform(0, 0.7, (50, 2))

    def check(found, expression, *symbols):
        expected = symbolic(expression, *symbols)(points[:, : len(symbols)])
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)

    u, a = sin(pi * x), 1 + half * sin(2 * pi * x)
    check(Elliptic().reference(points[:, :1])[:, 1:], a, x)
    check(Elliptic().source(points[:, :1], np), -(a * u.diff(x)).diff(x), x)

    u, a = sin(pi * x) * sin(pi * y), 1 + half * sin(2 * pi * x) * sin(pi * y)
    f = -(a * u.diff(x)).diff(x) - (a * u.diff(y)).diff(y)
    check(Elliptic2D().reference(points)[:, 1:], a, x, y)
    check(Elliptic2D().source(points, np), f, x, y)
    f = (u.diff(x, 2) + u.diff(y, 2)) / 100 + u**2
    check(Poisson2D().source(points), f, x, y)

    u = sin(6 * x) ** 3
    f = u.diff(x, 2) / 100 + sympy.Rational(7, 10) * sympy.tanh(u)
    check(Poisson().source(points[:, :1]), f, x)


def test_poisson_has_the_sensors_of_the_paper() -> None:
    problem = Poisson()
    u, f = problem.observations, problem.source_observations
    assert (len(u), len(f)) == (8, 32)
    for x in (u.points, f.points):
        assert (x[0, 0], x[-1, 0]) == (-0.7, 0.7)
        np.testing.assert_allclose(np.diff(x[:, 0]), np.diff(x[:, 0]).mean())


def test_half_of_the_sensors_in_the_plane_are_on_the_boundary() -> None:
    points = Poisson2D().observations.points
    assert (np.abs(points).max(axis=1) == 1).sum() == 100
    sides = [(points[:, i] == side).sum() for i in (0, 1) for side in (-1.0, 1.0)]
    assert min(sides) > 10


@SOURCES
def test_measured_source_has_the_stated_noise(cls: type[Problem], monkeypatch) -> None:
    monkeypatch.setattr(cls, "source_points", 20_000)
    problem = cls(noise=0.3)
    f = problem.source_observations
    np.testing.assert_array_equal(f.clean, problem.source(f.points))
    error = f.values - f.clean
    assert abs(error.std() - 0.3) < 4 * 0.3 / 200
    assert abs(error.mean()) < 4 * 0.3 / np.sqrt(20_000)
    assert np.all(f.sigma == 0.3)


@SOURCES
def test_measured_source_repeats_and_keeps_to_its_seed(cls: type[Problem]) -> None:
    """Also when other measurements of u are given, as for a held-out set."""
    problem, u = cls(seed=3), cls(seed=4).observations
    same = cls(seed=3, observations=u)
    np.testing.assert_array_equal(
        same.source_observations.values, problem.source_observations.values
    )
    other = cls(seed=4).source_observations
    assert not np.array_equal(other.values, problem.source_observations.values)


@SOURCES
def test_both_kinds_of_measurement_are_in_the_label_floor(cls: type[Problem]) -> None:
    """Its mean over steps that do not move the network, against sensor by sensor."""
    problem = cls(noise=0.2)
    dde.config.set_random_seed(0)
    set_SNR_options(rho=0.999)
    try:
        model = problem.model()
        unknowns = list(problem.unknowns.values())
        model.compile("snr_adam", lr=1e-20, external_trainable_variables=unknowns, verbose=0)
    finally:
        set_SNR_options()
    told = [line for source in model.opt.noise for line in source.describe()]
    assert sorted("Operator" in line for line in told) == [False, True]
    assert all("sigma 0.2" in line for line in told)
    model.train(iterations=300, display_every=1000, verbose=0)
    assert model.opt.beside_exact  # the source holds the noise in u back, as an exact one does
    params = list(model.net.parameters())
    found = [m.floor.sum() / m.floor_weight for m in map(model.opt.moments, params)]
    f, u = problem.source_observations, problem.observations
    x, at = (torch.tensor(o.points, dtype=torch.float32, requires_grad=True) for o in (f, u))
    left = problem.operator(x, model.net(x)) - torch.tensor(f.values, dtype=torch.float32)
    right = model.net(at) - torch.tensor(u.values, dtype=torch.float32)
    exact = [
        sum(variance.sum() for variance in exact_label_noise(params, [term]).values())
        for term in (NoisyTerm(left, 0.2), NoisyTerm(right, 0.2))
    ]
    assert float(sum(found)) == pytest.approx(float(sum(exact)), rel=0.2)
    assert min(exact) > 0.25 * sum(exact)  # so that neither could be missing


@SOURCES
def test_the_source_condition_is_the_equation_at_the_sensors(cls: type[Problem]) -> None:
    """Its residual, by automatic differentiation of the network, against the operator's."""
    problem = cls()
    model = problem.model()
    model.compile("adam", lr=1e-3)
    f = problem.source_observations
    left = model.predict(f.points, operator=lambda x, y: problem.operator(x, y))
    expected = np.mean((left - f.values) ** 2)
    model.train(iterations=0, verbose=0)
    state = model.train_state
    found = model.outputs_losses_train(state.X_train, state.y_train, state.train_aux_vars)[1]
    assert float(found[0].detach()) == pytest.approx(expected, rel=1e-4)


@SOURCES
def test_memorization_is_of_both_kinds_of_measurement(cls: type[Problem]) -> None:
    """A twin's monitor compares f with the operator's values, not with the network's."""
    problem = cls()
    model = problem.model()
    model.compile("adam", lr=1e-3, verbose=0)
    f, u = problem.source_observations, problem.observations
    fits = model.predict(f.points, operator=problem.operator), model.predict(u.points)
    fit = np.vstack(fits).ravel()
    clean = np.vstack([f.clean, u.clean]).ravel()
    np.testing.assert_array_equal(problem.clean_of_conditions(), clean)
    monitor = MemorizationMonitor(period=1, clean=clean)
    model.train(iterations=1, display_every=10, callbacks=[monitor], verbose=0)
    first = monitor.twins.rows[0]
    values = np.vstack([f.values, u.values]).ravel()
    np.testing.assert_allclose(monitor.twins.labels[0] - monitor.twins.shifts[0], values, rtol=1e-5)
    assert first.misfit == pytest.approx(np.mean((fit - values) ** 2), rel=1e-4)
    assert first.true_risk == pytest.approx(np.mean((fit - clean) ** 2), rel=1e-4)


def test_memorization_of_a_run_with_a_measured_source(tmp_path) -> None:
    solve(ProblemConfig("poisson", iterations=20), tmp_path / "run", progress=False)
    last = memorization(tmp_path / "run", progress=False).rows[-1]
    assert np.isfinite([last.share, last.true_share]).all()
    assert (tmp_path / "run" / "memorization.png").exists()


def test_own_measurements_of_the_source(tmp_path) -> None:
    path = tmp_path / "f.csv"
    path.write_text("x,f\n0.1,0.5\n-0.2,-0.5\n")
    problem = Poisson(source=path)
    np.testing.assert_array_equal(problem.source_observations.points, [[0.1], [-0.2]])
    np.testing.assert_array_equal(problem.source_observations.values, [[0.5], [-0.5]])
    condition = problem.conditions()[0]
    assert not isinstance(condition, NoisyCondition)
    problem.data()
    assert (Poisson(source=path, noise=0.3).source_observations.sigma == 0.3).all()
    path.write_text("x,f,sigma\n0.1,0.5,0.2\n")
    condition = Poisson(source=path).conditions()[0]
    assert isinstance(condition, NoisyCondition)
    assert isinstance(condition, dde.icbc.PointSetOperatorBC)
    np.testing.assert_allclose(np.asarray(condition.sigma), 0.2, rtol=1e-6)
    path.write_text("x,u\n0.1,0.5\n")
    with pytest.raises(ValueError, match="column 'f' is missing"):
        Poisson(source=path)
    path.write_text("x,f\n0.1,nan\n")
    with pytest.raises(ValueError, match=r"line 2, column 'f'.*not finite"):
        Poisson(source=path)


def test_lynx_hare_reference_fit() -> None:
    """The rates that the literature gives for these data, and a sigma of about 0.25."""
    fit = LynxHare().least_squares_fit
    np.testing.assert_allclose(fit.rates, [0.55, 0.028, 0.80, 0.024], rtol=0.05)
    assert 0.2 < fit.sigma < 0.3
    assert LynxHare().sigma()[0, 0] == fit.sigma
    assert LynxHare(noise=0.1).sigma()[0, 0] == 0.1


def test_lynx_hare_reference_recovers_known_rates() -> None:
    """Exact trajectories at other rates and times, out of order."""
    truth = LynxHare().least_squares_fit
    problem = LynxHare()
    years = np.linspace(1900, 1915, 31)[::-1, None]
    values = problem.reference(years)
    own = LynxHare(observations=Observations(years, values))
    np.testing.assert_allclose(own.least_squares_fit.rates, truth.rates, rtol=1e-4)
    assert own.least_squares_fit.sigma < 1e-4


def test_lynx_hare_needs_enough_years() -> None:
    few = Observations(np.array([[1900.0], [1901.0]]), np.ones((2, 2)), np.ones((2, 1)))
    with pytest.raises(ValueError, match="at least 4 different years"):
        LynxHare(observations=few)


def test_lynx_hare_initial_state_is_read_off_the_fit() -> None:
    problem = LynxHare()
    found = problem.unknown_values(problem.reference)
    assert [found["hare_0"], found["lynx_0"]] == pytest.approx(problem.least_squares_fit.initial)
    assert problem.metrics(problem.reference)["hare_0_relative_error"] < 1e-12


@pytest.mark.parametrize(
    ("cls", "arguments", "message"),
    [
        (Convection, {"points": 0}, "points must be at least 1"),
        (Convection, {"noise": -1.0}, "noise must be a finite number"),
        (Convection, {"noise": float("nan")}, "noise must be a finite number"),
        (Heat, {"diffusivity": 0.0}, "diffusivity must be a finite number > 0"),
        (Heat, {"diffusivity": float("inf")}, "diffusivity must be a finite number > 0"),
        (LynxHare, {"points": 5}, "real data"),
        (LynxHare, {"outliers": 0.1}, "outliers is a share of synthetic"),
        (Convection, {"outliers": 1.0}, "outliers must be a share"),
        (Wave, {"speed": -1.0}, "speed must be a finite number > 0"),
        (Burgers, {"viscosity": 0.001}, "viscosity must be at least 0.002"),
        (AllenCahn, {"rate": float("nan")}, "rate must be a finite number > 0"),
        (Kovasznay, {"reynolds": 0.0}, "reynolds must be"),
        (Lorenz, {"coefficients": (10.0, -1.0, 1.0)}, "b must be"),
        (Elliptic2D, {"contrast": 1.0}, "contrast must be between -1 and 1"),
        (NavierStokes, {"viscosity": 0.0}, "viscosity must be"),
        (Poisson, {"rate": -0.7}, "rate must be"),
    ],
)
def test_bad_arguments(cls: type[Problem], arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cls(**arguments)


def test_unknown_name_lists_the_known() -> None:
    with pytest.raises(ValueError, match=r"'burger'.*convection,.* burgers,.* lynx_hare"):
        get("burger")


def test_read_own_measurements(tmp_path) -> None:
    path = tmp_path / "own.csv"
    path.write_text("# a comment\nsigma, t ,u,x,remark\n0.5,0.25,1.5,3.0,fine\n0.1,1,-2,6.2,\n")
    observed = Convection(observations=path).observations
    np.testing.assert_array_equal(observed.points, [[3.0, 0.25], [6.2, 1.0]])
    np.testing.assert_array_equal(observed.values, [[1.5], [-2.0]])
    np.testing.assert_array_equal(observed.sigma, [[0.5], [0.1]])
    assert observed.clean is None
    assert "memorized" not in Convection(observations=path).metrics(Convection().reference)


def test_read_without_sigma_takes_the_given_noise(tmp_path) -> None:
    path = tmp_path / "own.csv"
    path.write_text("x,t,u\n1,0,1\n")
    assert Convection(observations=path).sigma() is None
    assert Convection(observations=path, noise=0.2).sigma() == np.array([[0.2]])
    path.write_text("x,t,u,sigma\n1,0,1,0.3\n")
    with pytest.raises(ValueError, match="leave out noise"):
        Convection(observations=path, noise=0.2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "column 'x', 't', 'u' is missing.*found: none"),
        ("x,u\n1,2\n", "column 't' is missing.*found: x, u"),
        ("x,t,u\n", "no rows"),
        ("x,t,u\n1,0,1\n\n1,0,nan\n", "line 4, column 'u'.*not finite"),
        ("x,t,u\n1,0,inf\n", "line 2, column 'u'.*not finite"),
        ("x,t,u\n1,zero,1\n", "line 2, column 't': 'zero' is not a number"),
        ("x,t,u\n1,0\n", "line 2: there are 2 fields, and the header has 3"),
        ("#c\nx,t,u\n7,0,1\n", r"line 3, column 'x': 7 is outside the domain \[0, 6.28"),
        ("x,t,u\n1,1.5,1\n", "line 2, column 't': 1.5 is outside"),
        ("x,t,u,sigma\n1,0,1,0\n", "line 2, column 'sigma'.*positive"),
    ],
)
def test_bad_measurements_name_row_and_column(tmp_path, text: str, message: str) -> None:
    path = tmp_path / "bad.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        Convection(observations=path)


def test_counts_must_be_positive(tmp_path) -> None:
    path = tmp_path / "bad.csv"
    path.write_text("year,hare,lynx\n1900,3,4\n1901,0,4\n")
    with pytest.raises(ValueError, match="line 3, column 'hare': 0 is not a possible value"):
        LynxHare(observations=path)


def test_missing_file() -> None:
    with pytest.raises(FileNotFoundError):
        Convection(observations="/does/not/exist.csv")


def test_an_unknown_that_is_not_there_is_named() -> None:
    problem = PROBLEMS["heat"]()
    with pytest.raises(KeyError, match=r"Heat has no unknown 'd', it has 'diffusivity'"):
        problem.unknown("d")
