"""Fits say when they have left far more, or far less, than sigma says."""

import warnings

import numpy as np
import pytest

from sciml_snr.fields import fit_field, fit_sdf

OPTIONS = {"network_options": {"hidden_features": 32, "hidden_layers": 2}, "progress": False}


def samples(n=300, noise=0.1):
    rng = np.random.default_rng(0)
    x = rng.uniform(size=(n, 1))
    return x, np.sin(6 * x[:, 0]) + noise * rng.normal(size=n)


@pytest.mark.parametrize(
    "sigma, said",
    [(0.01, "Either sigma is too small, or the fit needs more steps"), (0.5, "too large")],
)
def test_residuals_that_sigma_does_not_explain_are_said(sigma, said):
    x, y = samples()
    with pytest.warns(UserWarning, match=rf"mean square is [\d.]+ times sigma squared.*{said}"):
        fit_field(x, y, sigma=sigma, steps=300, **OPTIONS)


@pytest.mark.parametrize("options", [{"sigma": 0.1}, {"sigma": 0.5, "optimizer": "adam"}])
def test_nothing_is_said_where_sigma_is_right_or_nothing_is_gated(options):
    x, y = samples()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit_field(x, y, steps=300, **options, **OPTIONS)


def test_trials_are_not_judged():
    x, y = samples()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit_field(x, y, sigma=0.01, steps=20, **OPTIONS)


def test_surfaces_say_it_too():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(400, 3))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    noisy = points + 0.03 * rng.normal(size=points.shape)
    with pytest.warns(UserWarning, match="Either sigma is too small"):
        fit_sdf(noisy, points, sigma=0.003, steps=100, **OPTIONS)
