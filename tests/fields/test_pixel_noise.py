"""Images whose noise is not white: what the floor is made from, and what fit_image makes of it."""

import json
import warnings

import numpy as np
import pytest
import scipy.ndimage
import skimage.data
import torch
from typer.testing import CliRunner

from sciml_snr import NoisyLoss, SNRAdam
from sciml_snr.cli import app
from sciml_snr.fields import fit_image
from sciml_snr.fields.image import ImageFit
from sciml_snr.image_noise import Correlation
from sciml_snr.measure.twins import memorized_share

CAMERA = skimage.data.camera()[160:224, 160:224].astype(float)
SMALL = {"hidden_features": 48, "hidden_layers": 3}


def blurred(shape, by=1.0, seed=0):
    wide = np.random.default_rng(seed).normal(size=[n + 20 for n in shape])
    found = scipy.ndimage.gaussian_filter(wide, by)[10:-10, 10:-10]
    return found / found.std()


def quiet_fit(image, **options):
    options = {"network_options": SMALL, "steps": 250, "lr": 1e-3, "progress": False} | options
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return fit_image(image, **options)


def test_draws_of_the_floor_have_the_covariance_of_correlated_errors():
    """A linear model of all pixels: the floor is 4/n^2 diag(J^T C J), C the errors' covariance."""
    kind, shape, sigma = Correlation(blur=1.0, white=0.1, rows=0.2), (12, 10), 0.3
    rng = np.random.default_rng(0)
    rows = torch.as_tensor(rng.normal(size=(120, 4)))
    rows[:, 0] = 1.0
    weights = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    target = torch.as_tensor(rng.normal(size=120))
    draws = np.stack([kind.draw(shape, rng).reshape(-1) for _ in range(20_000)])
    covariance = torch.as_tensor(sigma**2 * np.cov(draws.T))
    expected = 4 / 120**2 * torch.diag(rows.T @ covariance @ rows)

    noise = NoisyLoss(sigma)
    optimizer = SNRAdam([weights], lr=0.0, noise=noise, rho=0.0, gate={"rise_steps": 0})
    found = []
    for _ in range(3000):
        optimizer.zero_grad()
        noise.of_residual(
            rows @ weights - target,
            pattern=lambda seed: torch.as_tensor(
                kind.draw(shape, np.random.default_rng(seed)).reshape(-1)
            ),
        ).backward()
        optimizer.step()
        found.append(optimizer.state[weights]["exp_floor"].clone())
    misfit = float(((rows @ weights - target).detach() / sigma).square().mean())
    ratio = torch.stack(found).mean(0) * max(misfit, 1.0) / expected
    torch.testing.assert_close(ratio, torch.ones_like(ratio), rtol=0.15, atol=0)


def test_correlated_noise_is_memorized_less_and_the_fit_is_better():
    noisy = CAMERA + 25 * blurred(CAMERA.shape)
    own, white = (quiet_fit(noisy, noise=kind) for kind in ("auto", "white"))
    assert float(own.sigma[0]) == pytest.approx(25, rel=0.25)
    assert float(white.sigma[0]) < 10
    shares = [memorized_share(fit.render(), CAMERA, noisy) for fit in (own, white)]
    errors = [np.sqrt(np.mean((fit.render() - CAMERA) ** 2)) for fit in (own, white)]
    assert shares[0] < shares[1] - 0.15
    assert errors[0] < errors[1]


def test_memorized_share_of_correlated_noise_by_twins():
    noisy = CAMERA + 25 * blurred(CAMERA.shape)
    fit = quiet_fit(noisy)
    share = memorized_share(fit.render(), CAMERA, noisy)
    found = fit.memorization(probes=2, progress=False)
    assert found.share == pytest.approx(share, abs=0.15)


def test_what_is_found_is_said():
    noisy = CAMERA + 25 * blurred(CAMERA.shape)
    few = {"network_options": SMALL, "steps": 2, "progress": False}
    with pytest.warns(UserWarning, match=r"blurred by 0\.\d pixels|in doubt"):
        fit_image(noisy, **few)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit_image(noisy, noise="white", **few)
        fit_image(CAMERA + 20 * np.random.default_rng(0).normal(size=CAMERA.shape), **few)
    with pytest.raises(ValueError, match="noise"):
        fit_image(noisy, noise="pink", **few)


def test_residuals_far_larger_than_sigma_are_said():
    noisy = CAMERA + 25 * blurred(CAMERA.shape)
    with pytest.warns(UserWarning, match=r"mean square is [\d.]+ times sigma squared"):
        fit_image(noisy, sigma=3.0, noise="white", network_options=SMALL, steps=100, progress=False)


def test_outliers_are_left_out_and_said():
    rng = np.random.default_rng(0)
    noisy = CAMERA + 10 * rng.normal(size=CAMERA.shape)
    hot = (rng.random(CAMERA.shape) < 0.02) & (CAMERA < 150)
    noisy[hot] = 255
    with pytest.warns(UserWarning, match="stand out of all their neighbours: they are left out"):
        fit = fit_image(noisy, network_options=SMALL, steps=200, lr=1e-3, progress=False)
    missing = fit.picture.missing
    assert (missing & hot).sum() > 0.6 * hot.sum()
    assert float(fit.sigma[0]) == pytest.approx(10, rel=0.4)
    kept = quiet_fit(noisy, steps=200, noise="white")
    assert not kept.picture.missing.any()
    errors = [np.sqrt(np.mean((one.render() - CAMERA)[hot] ** 2)) for one in (fit, kept)]
    assert errors[0] < errors[1]


def test_a_run_of_correlated_noise_goes_on_with_the_same_bits_and_is_read_again(tmp_path):
    noisy = CAMERA + 25 * blurred(CAMERA.shape) + 3 * np.random.default_rng(1).normal(size=(64, 64))
    noisy[::9, ::7] = 400.0  # outliers
    whole = quiet_fit(noisy, steps=12, out=tmp_path / "whole")
    quiet_fit(noisy, steps=7, out=tmp_path / "parts")
    parts = quiet_fit(noisy, steps=12, out=tmp_path / "parts", resume=True)
    assert whole.correlations is not None
    assert whole.picture.missing.any()
    np.testing.assert_array_equal(whole.render(), parts.render())
    read = ImageFit.load(tmp_path / "parts/fit.npz")
    assert read.correlations == whole.correlations
    np.testing.assert_array_equal(read.render(), whole.render())
    told = json.loads((tmp_path / "whole/summary.json").read_text())
    assert told["noise"][0]["blur"] == whole.correlations[0].blur
    assert told["missing_pixels"] == int(whole.picture.missing.sum())


def test_no_share_is_guessed_where_noise_is_correlated_and_why_is_said_once(tmp_path, capsys):
    noisy = CAMERA + 25 * blurred(CAMERA.shape)
    fit = quiet_fit(noisy, steps=5, progress=True, out=tmp_path / "run")
    told = " ".join(capsys.readouterr().out.split())
    assert told.count("memorized ?: the errors of neighbouring pixels are correlated") == 1
    assert np.isnan([row["memorized"] for row in fit.history]).all()
    assert json.loads((tmp_path / "run/summary.json").read_text())["memorized"] is None
    again = quiet_fit(noisy, steps=8, progress=True, out=tmp_path / "run", resume=True)
    assert again.training.step == 8
    fit.memorization()
    told = " ".join(capsys.readouterr().out.split())
    assert told.count("memorized ?:") == 1  # of the resumed fit; twins do not repeat it
    white = quiet_fit(noisy, steps=5, progress=True, noise="white")
    assert "memorized ?" not in capsys.readouterr().out
    assert np.isfinite([row["memorized"] for row in white.history]).all()


def test_the_command_line_shows_no_guess_either(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("noisy.npy", CAMERA + 25 * blurred(CAMERA.shape))
    small = ["--network-option", "hidden_features=8", "--steps", "3"]
    found = CliRunner().invoke(app, ["fit-image", "noisy.npy", "-o", "clean.npy", *small])
    assert found.exit_code == 0, found.output
    assert " ? " in found.output
    assert "where errors are correlated" in " ".join(found.output.split())


def test_the_threshold_is_higher_where_noise_is_correlated():
    noisy = CAMERA + 25 * blurred(CAMERA.shape)
    assert quiet_fit(noisy, steps=1).options.gate["z"] == 4
    assert quiet_fit(noisy, steps=1, gate={"z": 2.5}).options.gate["z"] == 2.5
    assert quiet_fit(noisy, steps=1, gate={"alpha": 2.0}).options.gate["z"] is None
    assert "z" not in quiet_fit(noisy, steps=1, noise="white").options.gate
    assert quiet_fit(noisy, steps=1, optimizer="adam").options.gate == {}
