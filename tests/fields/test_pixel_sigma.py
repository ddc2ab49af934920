"""Images whose pixels have errors of different sizes: given, or by counted photons."""

import json
import warnings

import numpy as np
import pytest
import skimage.data
import tifffile
from typer.testing import CliRunner

from sciml_snr.cli import app
from sciml_snr.fields import fit_image
from sciml_snr.fields.image_fit import ImageFit
from sciml_snr.measure.twins import memorized_share

CAMERA = skimage.data.camera()[128:192, 192:256].astype(float)
SMALL = {"hidden_features": 48, "hidden_layers": 3}
RUN = CliRunner()


def counted(peak, seed=0):
    return np.random.default_rng(seed).poisson(CAMERA * peak / 255) * 255 / peak


def uneven(seed=0):
    """CAMERA with noise of 5 on the left and 60 on the right, and sigma."""
    sigma = np.full(CAMERA.shape, 5.0)
    sigma[:, 32:] = 60.0
    return CAMERA + sigma * np.random.default_rng(seed).normal(size=CAMERA.shape), sigma


def quick(image, **options):
    options = {"network_options": SMALL, "steps": 3, "progress": False} | options
    return fit_image(image, **options)


def rmse(found):
    return float(np.sqrt(np.mean((found - CAMERA) ** 2)))


def test_photons_are_fitted_with_a_sigma_from_the_brightness():
    fit = quick(counted(10), noise="poisson")
    assert fit.errors.lines[0].gain == pytest.approx(25.5, rel=0.25)
    sigma = fit.errors.values.reshape(CAMERA.shape)
    bright = CAMERA > 150
    truth = np.sqrt(25.5 * CAMERA[bright].mean())
    assert np.median(sigma[bright]) == pytest.approx(truth, rel=0.15)
    assert sigma[CAMERA < 30].mean() < 0.5 * sigma[bright].mean()
    assert float(fit.sigma[0]) == pytest.approx(np.sqrt(25.5 * CAMERA.mean()), rel=0.15)
    assert "variance" in str(fit.sigma[0])


def test_gain_and_offset_may_be_given():
    fit = quick(counted(10), noise="poisson", gain=20, offset=100.0)
    (line,) = fit.errors.lines
    assert (line.gain, line.offset) == (20.0, 100.0)
    colors = np.stack([counted(10), counted(10, 1)], axis=0)
    fit = quick(colors, noise="poisson", gain=[20, 30], channel_axis=0)
    assert [line.gain for line in fit.errors.lines] == [20.0, 30.0]


def test_a_sigma_per_pixel_makes_the_better_fit():
    noisy, sigma = uneven()
    options = {"steps": 250, "lr": 1e-3}
    each = quick(noisy, sigma=sigma, **options)
    one = quick(noisy, sigma=float(np.sqrt(np.mean(sigma**2))), **options)
    assert rmse(each.render()) < 0.9 * rmse(one.render())
    assert float(each.sigma[0]) == pytest.approx(np.sqrt(np.mean(sigma**2)))
    found = each.memorization(progress=False)
    assert found.share == pytest.approx(memorized_share(each.render(), CAMERA, noisy), abs=0.15)


def test_a_constant_sigma_per_pixel_is_one_sigma():
    noisy = CAMERA + 25 * np.random.default_rng(0).normal(size=CAMERA.shape)
    each = quick(noisy, sigma=np.full(CAMERA.shape, 25.0))
    one = quick(noisy, sigma=25.0, noise="white")
    np.testing.assert_allclose(each.render(), one.render(), atol=0.05)


def test_channels_missing_pixels_and_volumes():
    noisy, sigma = uneven()
    sigma[5, 5] = np.nan
    noisy[5, 5] = np.nan
    colors = np.stack([noisy, noisy + 1], axis=-1)
    fit = quick(colors, sigma=sigma, channel_axis=-1)
    assert fit.errors.values.shape == (CAMERA.size, 2)
    both = quick(colors, sigma=np.stack([sigma, 2 * sigma], axis=-1), channel_axis=-1)
    assert float(both.sigma[1]) == pytest.approx(2 * float(both.sigma[0]))
    volume = np.stack([counted(30, seed) for seed in range(2)])
    assert quick(volume, noise="poisson").errors.lines[0].gain == pytest.approx(8.5, rel=0.3)
    assert quick(volume, sigma=np.full(volume.shape, 9.0)).errors.lines is None


def test_a_run_goes_on_with_the_same_bits_and_is_read_again(tmp_path):
    noisy = counted(10)
    whole = quick(noisy, noise="poisson", steps=12, out=tmp_path / "whole")
    quick(noisy, noise="poisson", steps=7, out=tmp_path / "parts")
    parts = quick(noisy, steps=12, out=tmp_path / "parts", resume=True)
    np.testing.assert_array_equal(whole.render(), parts.render())
    read = ImageFit.load(tmp_path / "parts/fit.npz")
    assert read.errors.lines == whole.errors.lines
    np.testing.assert_array_equal(read.errors.values, whole.errors.values)
    told = json.loads((tmp_path / "whole/summary.json").read_text())
    assert told["photons"][0]["gain"] == whole.errors.lines[0].gain
    assert "brightness" in told["sigma_method"][0]
    with pytest.raises(ValueError, match="photons"):
        quick(noisy, noise="poisson", gain=3.0, steps=13, out=tmp_path / "parts", resume=True)


def test_a_given_sigma_per_pixel_is_given_again_to_go_on(tmp_path):
    noisy, sigma = uneven()
    whole = quick(noisy, sigma=sigma, steps=12, out=tmp_path / "whole")
    quick(noisy, sigma=sigma, steps=7, out=tmp_path / "parts")
    again = {"steps": 12, "out": tmp_path / "parts", "resume": True}
    with pytest.raises(ValueError, match="give it again"):
        quick(noisy, **again)
    with pytest.raises(ValueError, match="another sigma"):
        quick(noisy, sigma=2 * sigma, **again)
    parts = quick(noisy, sigma=sigma, **again)
    np.testing.assert_array_equal(whole.render(), parts.render())
    plain = tmp_path / "plain"
    quick(noisy, sigma=20.0, noise="white", out=plain)
    with pytest.raises(ValueError, match="another sigma"):
        quick(noisy, sigma=sigma, steps=5, out=plain, resume=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise": "poisson", "sigma": 3.0}, "makes sigma from the brightness"),
        ({"gain": 3.0}, "are for noise="),
        ({"noise": "white", "offset": 3.0}, "are for noise="),
        ({"noise": "poisson", "gain": [1.0, 2.0]}, "gain must be a number, or one for each"),
        ({"noise": "poisson", "gain": np.nan}, "gain must be finite"),
        ({"noise": "poisson", "gain": -2.0}, "gain must be >= 0"),
        ({"noise": "poisson", "gain": 1.0, "offset": -1e6}, "no positive variance"),
        ({"sigma": np.ones((3, 4))}, r"sigma has the shape \(3, 4\)"),
        ({"sigma": np.zeros(CAMERA.shape)}, "not a positive number at 4096 of 4096"),
        ({"sigma": "no such file.npy"}, "There is no file"),
    ],
)
def test_what_cannot_be(options, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        quick(counted(10), **options)


def test_noise_that_grows_is_said_and_how_to_allow_for_it():
    wide = skimage.data.camera()[64:192, 160:288].astype(float)
    noisy = np.random.default_rng(0).poisson(wide * 30 / 255) * 255 / 30
    with pytest.warns(UserWarning, match="--noise poisson"):
        quick(noisy)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quick(noisy, noise="poisson")


@pytest.mark.parametrize("kind", ["npy", "tif"])
def test_from_the_command_line(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    noisy, sigma = uneven()
    np.save("noisy.npy", noisy)
    if kind == "npy":
        np.save("sigma.npy", sigma)
    else:
        tifffile.imwrite("sigma.tif", sigma.astype(np.float32))
    small = ["--network-option", "hidden_features=8", "--steps", "3"]
    command = ["fit-image", "noisy.npy", "-o", "clean.npy", *small]
    found = RUN.invoke(app, [*command, "--sigma", f"sigma.{kind}", "--out-run", "run"])
    assert found.exit_code == 0, found.output
    assert "given per pixel" in " ".join(found.output.split())
    assert json.loads((tmp_path / "run/summary.json").read_text())["sigma"][0] > 5
    found = RUN.invoke(app, [*command, "--sigma", "a.npy", "--sigma", "3", "--out-run", "other"])
    assert found.exit_code == 1
    assert "numbers, or one file" in found.output


def test_photons_from_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("noisy.npy", counted(10))
    small = ["--network-option", "hidden_features=8", "--steps", "3"]
    command = ["fit-image", "noisy.npy", "-o", "clean.npy", "--noise", "poisson", *small]
    found = RUN.invoke(app, [*command, "--gain", "25", "--offset", "-20", "--out-run", "run"])
    assert found.exit_code == 0, found.output
    assert "variance 25 x brightness -20" in " ".join(found.output.split())
    told = json.loads((tmp_path / "run/summary.json").read_text())
    assert told["photons"][0]["offset"] == -20
    found = RUN.invoke(app, [*command, "--sigma", "3", "--out-run", "other"])
    assert found.exit_code == 1
    assert "makes sigma from the brightness" in found.output
