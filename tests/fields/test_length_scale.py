"""How smooth a function is, by its samples, and the network that fit_field starts with."""

import warnings

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from sciml_snr.fields import fit_field
from sciml_snr.fields.length_scale import AMPLITUDES, LENGTHS, length_scale


def draw(length, dim=2, n=150, sigma=0.1, seed=0):
    """Samples of a Gaussian process."""
    rng = np.random.default_rng(seed)
    points = rng.uniform(-1, 1, (n, dim))
    squares = ((points[:, None] - points[None]) ** 2).sum(-1)
    covariance = np.exp(-squares / 2 / length**2) + 1e-9 * np.eye(n)
    values = np.linalg.cholesky(covariance) @ rng.normal(size=n)
    return points, (values + sigma * rng.normal(size=n))[:, None]


def frequency(x, y, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit = fit_field(x, y, steps=1, progress=False, device="cpu", **options)
    return fit.choice.options["first_omega_0"], fit.choice.options["hidden_omega_0"]


@pytest.mark.parametrize("length", [0.2, 0.5, 1.2])
@pytest.mark.parametrize("dim", [1, 3])
def test_the_length_of_a_gaussian_process_is_found(length, dim):
    """In the median over draws; the grid is of steps of 16 %."""
    found = [length_scale(*draw(length, dim, seed=seed), np.array([[0.1]])) for seed in range(15)]
    assert np.median(found) == pytest.approx(length, rel=0.3)


def test_it_has_the_largest_likelihood_of_the_grid():
    points, values = draw(0.4, n=60)
    sigma = np.linspace(0.05, 0.3, 60)[:, None]
    centered = values[:, 0] - np.average(values[:, 0], weights=sigma[:, 0] ** -2)
    best = (-np.inf, 0.0)
    for length in LENGTHS:
        for amplitude in AMPLITUDES:
            covariance = np.diag(sigma[:, 0] ** 2)
            for i in range(60):
                for j in range(60):
                    square = ((points[i] - points[j]) ** 2).sum()
                    covariance[i, j] += amplitude * np.exp(-square / 2 / length**2)
            found = multivariate_normal(cov=covariance).logpdf(centered)
            best = max(best, (float(found), float(length)))
    assert length_scale(points, values, sigma) == pytest.approx(best[1])


def test_what_is_fine_in_many_samples_is_seen():
    rng = np.random.default_rng(0)
    points = rng.uniform(-1, 1, (20_000, 2))
    values = np.sin(40 * points[:, :1]) + 0.1 * rng.normal(size=(20_000, 1))
    assert length_scale(points, values, np.array([[0.1]])) < 0.15


def test_of_several_outputs_the_finest_counts():
    points, smooth = draw(1.0)
    _, fine = draw(0.15)
    both = length_scale(points, np.hstack([smooth, fine]), np.array([[0.1, 0.1]]))
    assert both == length_scale(points, fine, np.array([[0.1]]))


def test_the_smoother_the_lower_the_network_starts():
    rng = np.random.default_rng(1)
    x = rng.random((200, 2)) * [1e3, 1e-3]  # units do not matter
    noise = 0.1 * rng.normal(size=200)
    flat = frequency(x, x[:, 0] / 1e3 + noise, sigma=0.1)
    wave = frequency(x, np.sin(x[:, 0] / 200) + noise, sigma=0.1)
    fine = frequency(x, np.sin(x[:, 0] / 20) + noise, sigma=0.1)
    assert flat[0] < 1.2 < wave[0] < fine[0] == 4
    assert all(hidden == pytest.approx(first + 1) for first, hidden in (flat, wave, fine))


@pytest.mark.parametrize("sigma", [None, 0.0, [0.1, 0.3], "each"])
def test_errors_may_be_unknown_absent_or_differ(sigma):
    rng = np.random.default_rng(2)
    x = rng.random((60, 2))
    y = np.stack([np.sin(3 * x[:, 0]), x[:, 1]], axis=1) + 0.1 * rng.normal(size=(60, 2))
    told = rng.uniform(0.05, 0.2, (60, 2)) if sigma == "each" else sigma
    first, _ = frequency(x, y, sigma=told)
    assert 0.4 <= first <= 4


def test_what_is_given_is_kept():
    x, y = draw(1.0, n=50)
    assert frequency(x, y, sigma=0.1, network_options={"first_omega_0": 7.0})[0] == 7
    fit = fit_field(x, y, sigma=0.1, steps=1, progress=False, device="cpu", network="fourier")
    assert "first_omega_0" not in fit.choice.options


def test_a_smooth_function_is_fitted_better_than_at_the_highest_frequency():
    rng = np.random.default_rng(3)
    x, test = rng.random((150, 3)), rng.random((500, 3))
    errors = []
    for options in ({}, {"first_omega_0": 4.0, "hidden_omega_0": 5.0}):
        y = x[:, 0] + 0.5 * x[:, 1] * x[:, 2] + 0.1 * np.random.default_rng(4).normal(size=150)
        fit = fit_field(
            x, y, sigma=0.1, steps=300, progress=False, device="cpu", network_options=options
        )
        errors.append(
            np.sqrt(np.mean((fit(test) - test[:, 0] - 0.5 * test[:, 1] * test[:, 2]) ** 2))
        )
    assert errors[0] < 0.7 * errors[1]
