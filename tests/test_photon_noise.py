"""Noise that grows with the brightness: estimate_photon_noise."""

import numpy as np
import pytest
import skimage.data

from sciml_snr import PhotonNoise, estimate_photon_noise

CAMERA = skimage.data.camera()[64:192, 160:288].astype(float)
COINS = skimage.data.coins()[:128, :128].astype(float)


def counted(clean, peak, black=0.0, electronics=0.0, seed=0):
    """An image by counted photons, ``peak`` of them at 255."""
    rng = np.random.default_rng(seed)
    noisy = rng.poisson(clean * peak / 255) * 255 / peak
    return noisy + black + electronics * rng.normal(size=clean.shape)


@pytest.mark.parametrize("clean", [CAMERA, COINS], ids=["camera", "coins"])
@pytest.mark.parametrize("peak", [10, 30, 100])
def test_gain_of_counted_photons(clean, peak):
    found = estimate_photon_noise(counted(clean, peak))
    assert found.gain == pytest.approx(255 / peak, rel=0.2)
    assert found.offset == 0
    assert 0 < found.gain_error < 0.2 * found.gain


def test_offset_of_a_black_that_is_not_at_0():
    found = estimate_photon_noise(counted(CAMERA, 30, black=40))
    assert found.gain == pytest.approx(8.5, rel=0.2)
    assert found.offset == pytest.approx(-8.5 * 40, abs=4 * found.offset_error)
    assert found.offset < 0


def test_what_is_known_is_kept():
    noisy = counted(CAMERA, 30, electronics=20.0)
    assert estimate_photon_noise(noisy, gain=8.5, offset=3.0) == PhotonNoise(8.5, 3.0)
    assert estimate_photon_noise(noisy, gain=8.5).gain == 8.5
    assert estimate_photon_noise(noisy, gain=8.5).offset == pytest.approx(400, rel=0.4)
    assert estimate_photon_noise(noisy, offset=400.0).gain == pytest.approx(8.5, rel=0.25)


def test_slices_and_missing_pixels():
    volume = np.stack([counted(CAMERA, 30, seed=s) for s in range(2)])
    assert estimate_photon_noise(volume).gain == pytest.approx(8.5, rel=0.2)
    volume[:, :40] = np.nan
    assert estimate_photon_noise(volume).gain == pytest.approx(8.5, rel=0.25)


def test_sigma_follows_the_brightness_and_is_never_near_0():
    mean = np.array([0.0, 50.0, 200.0])
    sigma = PhotonNoise(2.0, 0.0).sigma(mean)
    np.testing.assert_allclose(sigma[1:], np.sqrt(2 * mean[1:]))
    assert 0 < sigma[0] < sigma[1]


def test_what_cannot_be_told_is_said():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="no Poisson noise"):
        # Darker, the noisier: on a negative film.
        estimate_photon_noise(-counted(CAMERA, 30))
    with pytest.raises(ValueError, match="Give gain and offset"):
        estimate_photon_noise(rng.normal(size=(20, 20)))
    with pytest.raises(ValueError, match="Give gain and offset"):
        estimate_photon_noise(np.where(rng.random(CAMERA.shape) < 0.5, np.nan, CAMERA))
    with pytest.raises(ValueError, match="shape"):
        estimate_photon_noise(np.zeros(100))
    with pytest.raises(ValueError, match="no noise"):
        estimate_photon_noise(np.zeros((64, 64)))
