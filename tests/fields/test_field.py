"""Functions from scattered samples: units, errors, files, resumption, and what they are worth."""

import math
import os
import signal

import numpy as np
import pytest
import torch
from torch import nn

from sciml_snr import SigmaEstimate
from sciml_snr.fields import Field, FieldFit, fit_field
from sciml_snr.fields.field import default_training
from sciml_snr.fields.samples import Samples, estimated_errors
from sciml_snr.measure.twins import memorized_share

TINY = {"network_options": {"hidden_features": 16, "hidden_layers": 2}, "progress": False}

SMALL = {"network_options": {"hidden_features": 32}, "progress": False}


def smooth(x):
    """A function of the first two coordinates, or of one."""
    return np.sin(3 * x[:, 0]) + (np.cos(4 * x[:, 1]) if x.shape[1] > 1 else 0)


def data(n=300, d=2, sigma=0.1, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.random((n, d))
    return x, smooth(x) + sigma * rng.normal(size=n)


def rmse(fit, n=1000, d=2):
    x = np.random.default_rng(99).random((n, d))
    return float(np.sqrt(np.mean((fit(x) - smooth(x)) ** 2)))


@pytest.fixture(scope="module")
def fit():
    return fit_field(*data(), sigma=0.1, steps=300, **SMALL)


def test_a_fit_is_nearer_to_the_truth_than_its_samples(fit) -> None:
    x, y = data()
    assert rmse(fit) < 0.05
    assert memorized_share(fit(x), smooth(x), y) < 0.25
    assert fit.history[-1]["misfit"] == pytest.approx(1, abs=0.3)


def test_gradient_is_that_of_the_function(fit) -> None:
    x = 0.1 + 0.8 * np.random.default_rng(1).random((200, 2))
    true = np.stack([3 * np.cos(3 * x[:, 0]), -4 * np.sin(4 * x[:, 1])], axis=-1)
    found = fit.gradient(x)
    assert found.shape == (200, 2)
    assert np.sqrt(np.mean((found - true) ** 2)) < 0.15 * np.sqrt(np.mean(true**2))
    h = 1e-4
    for axis in (0, 1):
        step = h * np.eye(2)[axis]
        slopes = (fit(x + step) - fit(x - step)) / (2 * h)
        np.testing.assert_allclose(found[:, axis], slopes, rtol=1e-2, atol=2e-2)


@pytest.mark.parametrize("d", [1, 2, 3, 4])
@pytest.mark.parametrize("outputs", [0, 1, 3])
def test_shapes(d, outputs) -> None:
    x, y = data(60, d)
    values = y if outputs == 0 else np.stack(outputs * [y], axis=-1)
    fit = fit_field(x, values, sigma=0.1, steps=2, **TINY)
    end = () if outputs == 0 else (outputs,)
    assert fit(x[:7]).shape == (7, *end)
    assert fit.gradient(x[:7]).shape == (7, *end, d)
    assert fit.render(3).shape == (*[3] * d, *end)
    assert fit.render([[0.1, 0.2]] + [4] * (d - 1)).shape == (2, *[4] * (d - 1), *end)
    assert fit(x[:0]).shape == (0, *end) and fit(x).dtype == np.float64
    assert fit.module(torch.rand(2, 5, d)).shape == (2, 5, max(outputs, 1))
    fit.figure()


def test_one_coordinate_may_be_flat() -> None:
    x, y = data(50, 1)
    fit = fit_field(x[:, 0], y, sigma=0.1, steps=2, **TINY)
    np.testing.assert_array_equal(fit(x[:, 0]), fit(x))


def test_units_do_not_matter() -> None:
    """Other units of coordinates and values, offsets as large as a date's: the same fit."""
    x, y = data(200)
    plain = fit_field(x, y, sigma=0.1, steps=20, **TINY)
    factor, offset = np.array([1e-3, 86_400.0]), np.array([5.0, 1.7e9])
    other = fit_field(factor * x + offset, 1e5 * y - 3e6, sigma=1e4, steps=20, **TINY)
    found = (other(factor * x + offset) + 3e6) / 1e5
    np.testing.assert_allclose(found, plain(x), atol=2e-3)
    slopes = other.gradient(factor * x + offset) * factor / 1e5
    np.testing.assert_allclose(slopes, plain.gradient(x), atol=2e-2)


def test_scale_is_anisotropy() -> None:
    """Only ratios count; the longest axis is [-1, 1]."""
    x, y = data(100)
    fit = fit_field(x, y, sigma=0.1, scale=(1.0, 4.0), steps=1, **TINY)
    length = np.array(fit.units.length)
    assert length[1] / length[0] == pytest.approx(4)
    inward = (x - fit.units.center) / length
    assert np.abs(inward[:, 0]).max() == pytest.approx(1) and np.abs(inward[:, 1]).max() < 0.3
    again = fit_field(x, y, sigma=0.1, scale=(10.0, 40.0), steps=1, **TINY)
    np.testing.assert_allclose(again.units.length, length)


def test_precise_samples_count_more() -> None:
    """Half of the samples are nearly exact, half are wild."""
    rng = np.random.default_rng(0)
    x = rng.random((200, 1))
    sigma = np.where(np.arange(200) % 2, 0.05, 2.0)
    y = smooth(x) + sigma * rng.normal(size=200)
    pooled = float(np.sqrt(np.mean(sigma**2)))
    told, one = (rmse(fit_field(x, y, sigma=s, steps=200, **SMALL), d=1) for s in (sigma, pooled))
    assert told < 0.4 * one and told < 0.06


def test_weights_and_told_sigma_agree() -> None:
    """Residual times weight has the sigma that the loss is told, whatever the samples' are."""
    from sciml_snr.fields.objective import weighted

    sigma = torch.tensor([[0.1, 1.0], [0.2, 2.0], [0.7, 1.5]])
    told, weights = weighted(sigma)
    torch.testing.assert_close(weights * sigma, told.expand(3, 2))
    torch.testing.assert_close(weights.square().mean(0), torch.ones(2))


def test_estimated_sigma() -> None:
    rng = np.random.default_rng(3)
    x, _ = data(2000)
    y = np.stack([smooth(x), 5 * smooth(x)], axis=-1) + [0.1, 0.8] * rng.normal(size=(2000, 2))
    fit = fit_field(x, y, steps=1, **TINY)
    assert all(isinstance(s, SigmaEstimate) for s in fit.sigma)
    np.testing.assert_allclose(fit.sigma, [0.1, 0.8], rtol=0.1)


def test_sigma_of_very_many_samples_is_estimated_from_patches() -> None:
    x, y = data(110_000, sigma=0.2)
    (found,) = estimated_errors(x, y[:, None])
    assert float(found) == pytest.approx(0.2, rel=0.03) and found.n < 110_000


def test_samples_without_errors_are_interpolated() -> None:
    x, y = data(100, sigma=0.0)
    fit = fit_field(x, y, sigma=0, steps=300, **SMALL)
    assert np.sqrt(np.mean((fit(x) - y) ** 2)) < 0.02
    with pytest.raises(ValueError, match="sigma is 0"):
        fit.memorization(progress=False)


@pytest.mark.parametrize("sigma", [0.1, "per sample"])
def test_memorization_is_that_of_the_known_errors(sigma) -> None:
    x, y = data(400, sigma=0.3, seed=4)
    told = np.full(400, 0.3) if sigma == "per sample" else 0.3
    fit = fit_field(x, y, sigma=told, steps=100, **SMALL)
    found = fit.memorization(probes=2, progress=False)
    truth = memorized_share(fit(x), smooth(x), y)
    low, high = found.interval()
    assert low - 0.03 < truth < high + 0.03
    assert found.risk == pytest.approx(np.mean((fit(x) - smooth(x)) ** 2), abs=4 * found.risk_se)


@pytest.mark.parametrize("told", ["number", "per sample"])
def test_save_and_load(fit, tmp_path, told) -> None:
    if told == "per sample":
        x, y = data(50)
        fit = fit_field(x, y, sigma=np.full(50, 0.1), steps=2, **TINY)
    x, _ = data(20, seed=5)
    fit.save(tmp_path / "fit.npz")
    again = FieldFit.load(tmp_path / "fit.npz")
    np.testing.assert_array_equal(again(x), fit(x))
    np.testing.assert_array_equal(again.samples.sigma_array, fit.samples.sigma_array)
    assert again.training == fit.training and again.options == fit.options


def test_a_network_of_ones_own(tmp_path) -> None:
    x, y = data(50)
    own = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))
    fit = fit_field(x, y, sigma=0.1, network=own, steps=3, progress=False)
    fit.save(tmp_path / "fit.npz")
    with pytest.raises(ValueError, match="give network="):
        FieldFit.load(tmp_path / "fit.npz")
    np.testing.assert_array_equal(FieldFit.load(tmp_path / "fit.npz", own)(x), fit(x))
    with pytest.raises(ValueError, match="for the built-in networks"):
        fit_field(x, y, sigma=0.1, network=own, network_options={"hidden_features": 3})


def test_the_module_is_part_of_a_larger_model(fit) -> None:
    """In the user's units, differentiable by its input and by the network's parameters."""
    x, _ = data(10)
    points = torch.tensor(x, requires_grad=True)
    found = fit.module(points)
    np.testing.assert_allclose(found.detach().numpy()[:, 0], fit(x))
    (slopes,) = torch.autograd.grad(found.sum(), points, retain_graph=True)
    np.testing.assert_allclose(slopes.numpy(), fit.gradient(x))
    found.sum().backward()
    assert all(p.grad is not None for p in fit.network.parameters())
    fit.network.zero_grad()
    assert isinstance(fit.module, Field)


def test_residual_rows_are_those_of_the_measurements(fit) -> None:
    rows = fit.residual_rows([3, 5])
    x, y = data()
    np.testing.assert_allclose(rows.residual.detach().numpy()[:, 0], fit(x[[3, 5]]) - y[[3, 5]])
    assert rows.sigma.flatten().tolist() == [0.1, 0.1] and rows.residual.requires_grad
    assert fit.residual_rows().residual.shape == (300, 1)
    np.testing.assert_allclose(fit.predicted()[:, 0], fit(x))


def test_batches_of_many_samples_need_little_memory() -> None:
    """The network sees a batch at a time, so that memory does not grow with the samples."""
    seen = []

    class Watching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 1)

        def forward(self, x):
            seen.append(len(x))
            return self.layer(x)

    x, y = data(200_000)
    fit = fit_field(x, y, sigma=0.1, network=Watching(), steps=3, progress=False)
    assert max(seen) == 4096
    fit(x)
    assert max(seen) == 65_536
    gate = fit.options.gate
    assert (gate["rise_steps"], gate["z"], gate["discrepancy"]) == (300, 1.5, False)
    assert default_training("siren", 8192, "snr_soap")["batch_size"] is None


def test_what_a_gate_takes_at_its_word_is_a_sigma_that_is_known() -> None:
    """Given, and all samples in every step; an estimate may be off."""
    gates = [
        default_training("siren", 100, "snr_soap", batch, sigma_is_known=known)["gate"]
        for batch, known in ((None, True), (200, True), (None, False), (50, True))
    ]
    assert [gate["discrepancy"] for gate in gates] == [True, True, False, False]
    x, y = data(50)
    found = [fit_field(x, y, sigma=s, steps=1, **TINY).options.gate for s in (0.1, None)]
    assert [gate["discrepancy"] for gate in found] == [True, False]
    assert fit_field(x, y, sigma=0.1, steps=1, gate={"z": 3.0}, **TINY).options.gate["z"] == 3.0


def test_interrupted_and_resumed_fit_has_the_same_bits(tmp_path, monkeypatch) -> None:
    x, y = data(80)
    options = {"sigma": 0.1, "steps": 30, **TINY}
    whole = fit_field(x, y, **options, out=tmp_path / "whole")

    class Stopping(nn.Module):
        calls = 0

    from sciml_snr.fields.objective import SampleObjective

    terms = SampleObjective.terms

    def stopping(self, network, rng):
        Stopping.calls += 1
        if Stopping.calls == 12:
            os.kill(os.getpid(), signal.SIGINT)
        return terms(self, network, rng)

    monkeypatch.setattr(SampleObjective, "terms", stopping)
    part = fit_field(x, y, **options, out=tmp_path / "part")
    assert part.training.interrupted and part.training.step == 12
    again = fit_field(x, y, sigma=0.1, progress=False, out=tmp_path / "part", resume=True)
    assert not again.training.interrupted and again.training.step == 30
    np.testing.assert_array_equal(again(x), whole(x))
    for name in ("config.json", "summary.json", "metrics.csv", "figure.png", "fit.npz"):
        assert (tmp_path / "part" / name).exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(sigma=0.2), "has sigma = "),
        (dict(scale=[1.0, 2.0]), "has scale = "),
        (dict(lr=0.5), "has lr = "),
        (dict(network="wire"), "has network = "),
        (dict(steps=2), "has taken 3 steps already"),
        (dict(y=1), "of other samples"),
    ],
)
def test_a_run_is_resumed_as_it_was_set(tmp_path, change, message) -> None:
    x, y = data(40)
    fit_field(x, y, sigma=0.1, steps=3, **TINY, out=tmp_path)
    y = y + change.pop("y", 0)
    with pytest.raises(ValueError, match=message):
        fit_field(x, y, **{"sigma": 0.1, **change}, progress=False, out=tmp_path, resume=True)
    longer = fit_field(x, data(40)[1], steps=5, progress=False, out=tmp_path, resume=True)
    assert longer.training.step == 5
    with pytest.raises(FileExistsError):
        fit_field(x, y, sigma=0.1, steps=3, out=tmp_path)


def test_the_course_is_measured_against_a_reference() -> None:
    x, y = data(60)
    at = np.random.default_rng(0).random((50, 2))
    fit = fit_field(x, y, sigma=0.1, steps=5, reference=(at, smooth(at)), **TINY)
    expected = math.sqrt(np.mean((fit(at) - smooth(at)) ** 2))
    assert fit.history[-1]["rmse"] == pytest.approx(expected)


X, Y = data(40)
BAD = [
    (dict(x=X[:30]), "do not fit: give x as"),
    (dict(x=np.where(X > 0.9, np.nan, X)), "x has .* NaN or infinite"),
    (dict(y=np.where(Y > 1, np.inf, Y)), "y has .* NaN or infinite"),
    (dict(x=np.c_[X, np.ones(40)]), "Coordinate 2 of x is the same in all samples"),
    (dict(x=np.random.default_rng(0).random((40, 5))), "5 coordinates: 1 to 4"),
    (dict(y=np.full(40, 3.0)), "y is constant"),
    (dict(y=Y.astype(str)), "y must be an array of real numbers"),
    (dict(y=Y + 1j), "y must be an array of real numbers"),
    (dict(x=np.ma.masked_array(X)), "x is a masked array"),
    (dict(x=X[:1], y=Y[:1]), "there is nothing to fit"),
    (dict(x=None), "give the positions of the samples, or an operator"),
    (dict(sigma=-1.0), "sigma must be finite and >= 0"),
    (dict(sigma=np.ones(7)), r"sigma \(7,\) does not fit"),
    (dict(sigma=np.r_[0.0, np.ones(39)]), "sigma is 0 for 1 of 40"),
    (dict(sigma=1e-30), "cannot be used in torch.float32"),
    (dict(scale=[1.0, -1.0]), "scale must be a positive number, or one for each of 2"),
    (dict(scale=[1.0, 1.0, 1.0]), "scale must be a positive number, or one for each of 2"),
    (dict(steps=0), "steps must be"),
    (dict(network="unet"), "There is no network 'unet'"),
    (dict(network_options={"width": 3}), "A network option is unknown: 'width'"),
    (dict(reference=X), "reference must be a pair"),
    (dict(reference=(X[:, :1], Y)), "reference has 1 coordinates"),
]


@pytest.mark.parametrize(("change", "message"), BAD, ids=[m[:30] for _, m in BAD])
def test_bad_input_is_refused_before_the_work(tmp_path, change, message) -> None:
    arguments = {"x": X, "y": Y, "sigma": 0.1, "steps": 1, "progress": False, **change}
    with pytest.raises(ValueError, match=message):
        fit_field(**arguments, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_sigma_that_can_be_read_in_two_ways_is_refused() -> None:
    with pytest.raises(ValueError, match="may be one per sample or one per output"):
        fit_field(X[:3], np.random.default_rng(0).random((3, 3)), sigma=[0.1, 0.2, 0.3])
    with pytest.raises(ValueError, match="give sigma"):
        fit_field(np.random.default_rng(0).random((40, 4)), Y)


@pytest.mark.parametrize("points", [np.ones(3), np.ones((3, 3)), np.full((2, 2), np.nan)])
def test_bad_points_are_refused(fit, points) -> None:
    with pytest.raises(ValueError, match="points"):
        fit(points)


@pytest.mark.parametrize("grid", [[3], [0, 3], [2.5, 3], [np.ones((2, 2)), 3]])
def test_bad_grids_are_refused(fit, grid) -> None:
    with pytest.raises(ValueError, match="grid must have"):
        fit.render(grid)


def test_fingerprint_is_of_points_and_values() -> None:
    one, same = Samples(X, Y[:, None], (0.1,)), Samples(X.copy(), Y[:, None], (0.3,))
    assert one.fingerprint() == same.fingerprint()
    assert one.fingerprint() != Samples(X + 1, Y[:, None], (0.1,)).fingerprint()


def test_error_bars_hold_the_truth_and_are_in_the_users_units() -> None:
    held = []
    for seed in range(3):
        x, y = data(600, sigma=0.3, seed=seed)
        fit = fit_field(1000 * x, 50 * y, sigma=15.0, steps=150, **SMALL)
        bars = fit.error_bars(progress=False)
        places = np.random.default_rng(9).random((500, 2))
        low, high = bars.band(1000 * places, 0.9)
        truth = 50 * smooth(places)
        assert fit(1000 * places).shape == bars(1000 * places).shape == low.shape == (500,)
        held.append(((low <= truth) & (truth <= high)).mean())
    assert 0.75 < np.mean(held) < 0.99
    assert "memorized" in str(bars)


def test_error_bars_have_the_shape_of_the_values() -> None:
    """Added to the fit they would otherwise broadcast to (n, n)."""
    x, y = np.linspace(0, 1, 40), np.random.default_rng(0).normal(size=(40, 2))
    flat = fit_field(x, y[:, 0], sigma=1.0, steps=3, **SMALL)
    both = fit_field(x, y, sigma=1.0, steps=3, **SMALL)
    for fit, shape in ((flat, (5,)), (both, (5, 2))):
        bars = fit.error_bars(progress=False)
        assert fit(x[:5]).shape == bars(x[:5]).shape == bars.band(x[:5])[0].shape == shape


def test_error_bars_of_an_operators_measurements_are_linear() -> None:
    truth = np.sin(3 * np.linspace(0, 1, 20))
    y = np.cumsum(truth) / 20 + 0.02 * np.random.default_rng(0).normal(size=20)

    def integrals(field):
        return torch.cumsum(field(torch.linspace(0, 1, 20)[:, None])[:, 0], 0) / 20

    options = {"network_options": {"hidden_features": 16}, "progress": False}
    fit = fit_field([[0.0], [1.0]], y, operator=integrals, sigma=0.02, steps=200, **options)
    bars = fit.error_bars()
    assert bars.method == "linear"
    found = bars(np.linspace(0, 1, 5)[:, None])
    assert found.shape == (5, 1)
    assert (found > 0).all()
