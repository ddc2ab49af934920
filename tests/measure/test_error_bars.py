"""Standard errors: against closed forms, loops, and the scatter over many draws."""

import json
import math
import warnings

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.optimize import curve_fit
from torch import nn

import sciml_snr
from sciml_snr import NoisyRows, error_bars
from sciml_snr.measure.regression import EXACT_WEIGHT, Ridge, Split


def features(n=40, k=3, seed=0):
    """(n, k) regressors, and a standard deviation per row."""
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(n, k, generator=rng, dtype=torch.float64)
    return x, 0.2 + 0.3 * torch.rand(n, 1, generator=rng, dtype=torch.float64)


def linear_fit(seed=0, noise=1.0, n=40):
    """A linear model of three coefficients, fitted by weighted least squares."""
    x, sigma = features(n)
    rng = torch.Generator().manual_seed(100 + seed)
    truth = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    y = (x @ truth)[:, None] + noise * sigma * torch.randn(n, 1, generator=rng, dtype=torch.float64)
    net = nn.Linear(3, 1, bias=False, dtype=torch.float64)
    solved = torch.linalg.lstsq(x / sigma, y / sigma).solution
    with torch.no_grad():
        net.weight.copy_(solved.T)
    return net, x, y, sigma, truth


def bars_of(net, x, y, sigma, flat=True, **options):
    variables = list(net.parameters()) if flat else []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return error_bars(
            net, lambda net: [NoisyRows(net(x) - y, sigma)], variables=variables, **options
        )


class Decay(nn.Module):
    """u = a exp(-k t), with both unknown."""

    def __init__(self, a=1.0, log_k=0.0):
        super().__init__()
        self.a = nn.Parameter(torch.tensor([a], dtype=torch.float64))
        self.log_k = nn.Parameter(torch.tensor([log_k], dtype=torch.float64))

    def forward(self, t):
        return self.a * torch.exp(-self.log_k.exp() * t)


def decay_fit(seed, sigma=0.05, n=50):
    """Least squares to noisy values of 2 exp(-t / 2), and the data."""
    t = torch.linspace(0, 4, n, dtype=torch.float64)[:, None]
    rng = torch.Generator().manual_seed(seed)
    y = 2 * torch.exp(-t / 2) + sigma * torch.randn(n, 1, generator=rng, dtype=torch.float64)
    (a, log_k), _ = curve_fit(
        lambda t, a, log_k: a * np.exp(-np.exp(log_k) * t), t.numpy()[:, 0], y.numpy()[:, 0], [1, 0]
    )
    return Decay(a, log_k), t, y


def decay_bars(net, t, y, sigma=0.05, **options):
    return error_bars(
        net,
        lambda net: [NoisyRows(net(t) - y, sigma)],
        unknowns={"a": net.a, "k": lambda: net.log_k.exp()},
        variables=[net.log_k],
        **options,
    )


def test_linear_model_has_the_covariance_of_least_squares():
    net, x, y, sigma, _ = linear_fit()
    bars = bars_of(net, x, y, sigma)
    covariance = torch.linalg.inv((x / sigma).T @ (x / sigma))
    places = torch.randn(7, 3, dtype=torch.float64)
    expected = (places @ covariance * places).sum(1).sqrt()
    assert np.allclose(bars(places)[:, 0], expected, rtol=1e-8)
    assert bars.degrees_of_freedom == pytest.approx(3, rel=1e-8)


def test_prior_of_weights_has_the_covariance_of_ridge_regression():
    net, x, y, sigma, _ = linear_fit()
    bars = bars_of(net, x, y, sigma, flat=False)
    precision = bars.precision
    scaled = x / sigma
    posterior = torch.linalg.inv(scaled.T @ scaled + precision * torch.eye(3))
    places = torch.randn(7, 3, dtype=torch.float64)
    parts = bars.parts(places)
    noise = posterior @ scaled.T @ scaled @ posterior
    assert np.allclose(parts.noise[:, 0] ** 2, (places @ noise * places).sum(1), rtol=1e-6)
    whole = parts.noise**2 + parts.unresolved**2
    assert np.allclose(whole[:, 0], (places @ posterior * places).sum(1), rtol=1e-6)


def test_precision_is_where_the_likelihood_is_largest():
    """Against the density of what is observed, on a grid."""
    net, x, y, sigma, _ = linear_fit()
    bars = bars_of(net, x, y, sigma, flat=False)
    scaled, target = (x / sigma).numpy(), (y / sigma).numpy()[:, 0]
    grid = np.exp(np.linspace(-6, 6, 400))
    density = [
        stats.multivariate_normal.logpdf(target, cov=scaled @ scaled.T / mu + np.eye(len(target)))
        for mu in grid
    ]
    found = bars.precision
    assert abs(math.log(found / grid[int(np.argmax(density))])) < 0.3


def test_unknowns_and_prior_together_against_dense_algebra():
    """Parameters with a prior beside flat ones: (J^T J + mu D)^-1, solved as it stands."""
    rng = torch.Generator().manual_seed(3)
    jacobian = torch.randn(12, 6, generator=rng, dtype=torch.float64)
    free = torch.tensor([False, True, False, False, True, False])
    ridge = Ridge(Split(jacobian, free), 0.7)
    dense = torch.linalg.inv(jacobian.T @ jacobian + 0.7 * torch.diag((~free).double()))
    gradients = torch.randn(4, 6, generator=rng, dtype=torch.float64)
    spread, expected = ridge.spread(gradients), gradients @ dense @ gradients.T
    assert torch.allclose(spread.covariance(), expected, rtol=1e-10)
    assert torch.allclose(spread.variances(), expected.diagonal(), rtol=1e-10)
    assert torch.allclose(spread.answers, jacobian @ dense @ gradients.T, rtol=1e-10)
    assert spread.lost.abs().max() < 1e-10
    rows = torch.randn(12, generator=rng, dtype=torch.float64)
    assert torch.allclose(ridge.solution(rows), -dense @ jacobian.T @ rows, rtol=1e-9)
    assert torch.allclose(ridge.maker() @ rows, rows + jacobian @ ridge.solution(rows))


@pytest.mark.parametrize("method", ["linear", "replicas"])
def test_intervals_hold_the_truth_as_often_as_they_say(method):
    held, count = {"a": 0, "k": 0}, 120 if method == "linear" else 40
    truth = {"a": 2.0, "k": 0.5}
    for seed in range(count):
        bars = decay_bars(*decay_fit(seed), method=method, replicas=8, seed=seed)
        for name, (low, high) in bars.interval(0.9).items():
            held[name] += low <= truth[name] <= high
    for name in truth:  # 3 standard deviations of a binomial share
        assert abs(held[name] / count - 0.9) < 3 * math.sqrt(0.09 / count)


def test_standard_errors_are_the_scatter_over_draws():
    fits = [decay_fit(seed) for seed in range(120)]
    scatter = np.std([float(net.log_k.detach().exp()) for net, _, _ in fits])
    stated = np.median([decay_bars(*fit).unknowns["k"].standard_error for fit in fits[:10]])
    assert stated == pytest.approx(scatter, rel=0.2)
    places = np.linspace(0, 4, 5)[:, None]
    fields = [net(torch.as_tensor(places)).detach().numpy() for net, _, _ in fits]
    assert np.allclose(decay_bars(*fits[0])(places), np.std(fields, axis=0), rtol=0.25)


def test_replicas_agree_with_the_linear_way():
    net, t, y = decay_fit(0)
    linear, replicas = decay_bars(net, t, y), decay_bars(net, t, y, method="replicas", replicas=200)
    for name in ("a", "k"):
        assert replicas.unknowns[name].noise == pytest.approx(linear.unknowns[name].noise, rel=0.2)
    assert np.allclose(replicas(t[::10]), linear(t[::10]), rtol=0.25)
    assert replicas.quantile(0.95) > linear.quantile(0.95)  # Student's
    assert "replicas (200)" in str(replicas)


def test_a_fit_far_from_its_end_is_told_to_train_on():
    net, x, y, sigma, _ = linear_fit(noise=2.0)
    with torch.no_grad():
        net.weight.add_(1)
    with pytest.warns(UserWarning, match="far from its end"):
        error_bars(
            net, lambda net: [NoisyRows(net(x) - y, sigma)], variables=list(net.parameters())
        )


@pytest.mark.parametrize("method", ["linear", "replicas"])
def test_a_fit_that_was_stopped_early_says_how_far_it_has_to_go(method):
    net, t, y = decay_fit(0)
    ended = net.log_k.detach().exp().item()
    with torch.no_grad():
        net.log_k.add_(0.1)
    k = decay_bars(net, t, y, method=method, replicas=2).unknowns["k"]
    assert k.left_out == pytest.approx(ended - k.value, rel=0.15)
    assert k.standard_error >= abs(k.left_out)


@pytest.mark.filterwarnings("ignore:error_bars. the measurements fit the model better")
def test_what_no_data_determine_is_unresolved():
    """A wide network: between its few data the prior is all there is."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(1, 64), nn.Tanh(), nn.Linear(64, 1)).double()
    x = torch.cat([torch.linspace(-1, -0.6, 8), torch.linspace(0.6, 1, 8)]).double()[:, None]
    y = torch.sin(3 * x)
    optimizer = sciml_snr.SNRGaussNewton(net, z=0)

    def rows(net):
        return [NoisyRows(net(x) - y, 0.01)]

    for _ in range(30):
        optimizer.step(rows)
    parts = error_bars(net, rows).parts([[0.0], [0.8]])
    assert parts.unresolved[0, 0] > 5 * parts.unresolved[1, 0]


def test_exact_rows_narrow_the_bars_and_count_as_in_the_optimizer():
    net, x, y, sigma, _ = linear_fit()
    constraint = torch.tensor([[1.0, 1.0, 0.0]], dtype=torch.float64)
    value = net(constraint).detach()

    def rows(net):
        return [NoisyRows(net(x) - y, sigma), net(constraint) - value]

    bars = error_bars(net, rows, variables=list(net.parameters()))
    alone = bars_of(net, x, y, sigma)
    assert bars(constraint)[0, 0] < 0.15 < 10 * alone(constraint)[0, 0]
    assert sciml_snr.SNRGaussNewton(net).param_groups[0]["exact_weight"] == EXACT_WEIGHT


def test_an_unknown_that_nothing_determines_is_infinite():
    net, x, y, sigma, _ = linear_fit()
    lost = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    with pytest.warns(UserWarning, match="do not determine all unknowns"):
        bars = error_bars(
            net,
            lambda net: [NoisyRows(net(x) - y + 0 * lost, sigma)],
            unknowns={"lost": lost, "kept": lambda: net.weight[0, 0]},
        )
    assert bars.unknowns["lost"].standard_error == math.inf
    assert math.isfinite(bars.unknowns["kept"].standard_error)
    assert "lost = 0 +- ?" in str(bars)
    assert bars.as_dict()["unknowns"]["lost"]["standard_error"] is None
    json.dumps(bars.as_dict(), allow_nan=False)


def test_sigma_that_is_too_small_is_in_doubt_and_widens():
    net, t, y = decay_fit(0)
    with pytest.warns(UserWarning, match="do not fit the model within their errors"):
        bars = decay_bars(net, t, y, sigma=0.01)
    assert bars.doubt
    true = decay_bars(net, t, y)
    ratio = bars.unknowns["k"].noise / true.unknowns["k"].noise
    assert ratio == pytest.approx(1, rel=0.2)


def test_sigma_that_is_too_large_is_in_doubt():
    net, t, y = decay_fit(0)
    with pytest.warns(UserWarning, match=r"sigma is about [56]\.\d times too large"):
        bars = decay_bars(net, t, y, sigma=0.3)
    assert "better than their errors allow" in bars.doubt
    assert bars.as_dict()["doubt"] == bars.doubt


def test_sigma_that_is_right_is_seldom_in_doubt():
    """Of fifty draws of a linear model one may be."""
    doubts = 0
    for seed in range(50):
        net, x, y, sigma, _ = linear_fit(seed, noise=1.0, n=30)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            bars = error_bars(net, lambda net, x=x, y=y, s=sigma: [NoisyRows(net(x) - y, s)])
        doubts += bool(bars.doubt)
    assert doubts <= 3


def test_unknown_sigma_is_estimated_and_its_own_uncertainty_counts():
    """Student's intervals of a linear model: exact for any number of data."""
    held, count = 0, 200
    for seed in range(count):
        net, x, y, sigma, truth = linear_fit(seed, noise=3.0, n=7)
        bars = error_bars(
            net,
            lambda net, x=x, y=y, sigma=sigma: [NoisyRows(net(x) - y, sigma)],
            unknowns={"w": lambda net=net: net.weight[0, 0] + 2 * net.weight[0, 1]},
            variables=[net.weight],
            sigma_known=False,
        )
        low, high = bars.interval(0.9)["w"]
        held += low <= float(truth[0] + 2 * truth[1]) <= high
    assert bars.quantile(0.9) == pytest.approx(stats.t(4).ppf(0.95))
    assert abs(held / count - 0.9) < 3 * math.sqrt(0.09 / count)
    net, x, y, sigma, _ = linear_fit(n=3)
    with pytest.raises(ValueError, match="sigma cannot be estimated: 3 measurements"):
        bars_of(net, x, y, sigma, sigma_known=False)


def test_derivative_and_functions_against_finite_differences():
    net, t, y = decay_fit(0)
    bars, step = decay_bars(net, t, y), 1e-4
    points = t[3:8]
    expected = bars.of(lambda: (net(points + step) - net(points - step)) / (2 * step))
    assert np.allclose(bars.derivative(points)[:, 0, 0], expected, rtol=1e-5)
    assert np.allclose(bars.of(lambda: net(points)), bars(points)[:, 0], rtol=1e-9)
    total = bars.of(lambda: net(points).sum())
    assert total.shape == (1,)
    low, high = bars.band(points, 0.9)
    assert np.allclose((high - low) / 2, 1.645 * bars(points), rtol=1e-3)


def test_interval_of_a_positive_unknown_is_made_in_its_logarithm():
    net, t, y = decay_fit(0, n=6)
    bars = decay_bars(net, t, y)
    low, high = bars.interval()["k"]
    value = bars.unknowns["k"].value
    assert low > 0
    assert low * high == pytest.approx(value**2, rel=1e-6)
    low, high = bars.interval()["a"]
    assert low + high == pytest.approx(2 * bars.unknowns["a"].value)


def test_covariance_of_unknowns_holds_their_standard_errors():
    net, t, y = decay_fit(0)
    bars = decay_bars(net, t, y)
    errors = [u.standard_error for u in bars.unknowns.values()]
    assert np.allclose(np.sqrt(np.diag(bars.covariance)), errors, rtol=1e-6)
    assert bars.covariance[0, 1] > 0  # a larger start decays faster


def test_risk_is_the_mean_square_error_on_average():
    stated, true = [], []
    for seed in range(40):
        net, t, y = decay_fit(seed)
        stated.append(decay_bars(net, t, y).risk)
        error = (net(t).detach() - 2 * torch.exp(-t / 2)) / 0.05
        true.append(float(error.square().mean()))
    assert np.mean(stated) == pytest.approx(np.mean(true), rel=0.35)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtypes(dtype):
    net, t, y = decay_fit(0)
    expected = decay_bars(net, t, y).unknowns["k"].standard_error
    net, t, y = net.to(dtype), t.to(dtype), y.to(dtype)
    assert decay_bars(net, t, y).unknowns["k"].standard_error == pytest.approx(expected, rel=1e-3)


def test_files(tmp_path):
    net, t, y = decay_fit(0)
    bars = decay_bars(net, t, y)
    bars.save(tmp_path / "bars.json")
    found = json.loads((tmp_path / "bars.json").read_text())
    assert found["unknowns"]["k"]["interval"] == list(bars.interval()["k"])
    bars.save(tmp_path / "bars.npz", points=t)
    with np.load(tmp_path / "bars.npz") as arrays:
        assert np.allclose(arrays["standard_error"], bars(t))
        assert list(arrays["names"]) == ["a", "k"]
        assert (arrays["low"] < arrays["high"]).all()
    with pytest.raises(ValueError, match=r"\.json or \.npz"):
        bars.save(tmp_path / "bars.txt")
    with pytest.raises(ValueError, match=r"written as \.npz"):
        bars.save(tmp_path / "bars.json", points=t)


def test_text():
    net, t, y = decay_fit(0)
    first = str(decay_bars(net, t, y)).splitlines()[0]
    value, rest = first.removeprefix("a = ").split(" +- ")
    error, ends = rest.removesuffix(")").split(" (95 %: ")
    low, high = map(float, ends.split(" to "))
    assert low < float(value) < high
    assert len(error.split(".")[1]) == len(value.split(".")[1])


def test_what_cannot_be():
    net, t, y = decay_fit(0)
    with pytest.raises(ValueError, match="linear, replicas"):
        decay_bars(net, t, y, method="hmc")
    with pytest.raises(ValueError, match="replicas must be a whole number"):
        decay_bars(net, t, y, method="replicas", replicas=1)
    with pytest.raises(ValueError, match="no measurements whose error is known"):
        error_bars(net, lambda net: [net(t) - y])
    with pytest.raises(ValueError, match="together with its rows"):
        error_bars(net)
    with pytest.raises(TypeError, match=r"deepxde\.Model, or a torch network"):
        error_bars("model")
    bars = decay_bars(net, t, y)
    with pytest.raises(ValueError, match="between 0 and 1"):
        bars.interval(95)
    with pytest.raises(ValueError, match=r"shape \(n, d\)"):
        bars(np.zeros(3))
    with torch.no_grad():
        net.a.add_(1)
    with pytest.raises(RuntimeError, match="trained since"):
        bars(t)


def test_too_many_rows_are_refused_before_the_work():
    net = nn.Linear(1, 1)
    x = torch.zeros(6001, 1)
    with pytest.raises(ValueError, match="no error bars of 6001 residual rows"):
        error_bars(net, lambda net: [NoisyRows(net(x), 0.1)])


def test_rows_that_are_not_finite():
    net, t, y = decay_fit(0)
    y[3] = math.nan
    with pytest.raises(FloatingPointError, match="not finite"):
        decay_bars(net, t, y)
