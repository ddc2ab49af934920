"""Every problem: reference, measurements, metrics, seeds; and reading the user's own data."""

import deepxde as dde
import numpy as np
import pytest
import torch
from sciml_snr.problems import PROBLEMS, Convection, Heat, LynxHare, Observations, Problem, get
from scipy.optimize import least_squares

ALL = pytest.mark.parametrize("cls", PROBLEMS.values(), ids=PROBLEMS)
SYNTHETIC = pytest.mark.parametrize("cls", [c for c in PROBLEMS.values() if c.synthetic])


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
        print(cls.name, float(residual.detach().abs().max()), scale)
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
    observed = cls(points=20_000, noise=0.3, seed=5).observations
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
def test_a_noisier_fit_has_a_larger_error(cls: type[Problem]) -> None:
    problem = cls()
    off = problem.metrics(lambda points: 1.1 * problem.reference(points))
    assert off["relative_l2"] == pytest.approx(0.1)


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
        ("x,t,u\n1,0\n", "line 2, column 'u': None is not a number"),
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
