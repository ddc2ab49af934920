"""The frequency and the gain that fit_image's network starts with."""

import warnings

import numpy as np
import pytest
import scipy.ndimage
import skimage.data

from sciml_snr.fields import fit_image

CAMERA = skimage.data.camera()[64:192, 160:288].astype(float)
Y, X = np.mgrid[:128, :128]


def white(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def spots(*centers, width=10.0):
    return 20 + sum(150 * np.exp(-((Y - a) ** 2 + (X - b) ** 2) / 2 / width**2) for a, b in centers)


BLOBS = spots((30, 40), (80, 90), (100, 30))


def frequency(image, **options):
    options = {"steps": 1, "progress": False} | options
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return fit_image(image, **options).choice.options["first_omega_0"]


def test_a_smooth_image_starts_lower_than_a_fine_one():
    smooth, fine = (frequency(u + 25 * white(u.shape), sigma=25) for u in (BLOBS, CAMERA))
    assert 3 <= smooth < 7
    assert 14 < fine < 22


def test_the_noisier_the_lower():
    found = [frequency(CAMERA + s * white(CAMERA.shape), sigma=s) for s in (1, 15, 50)]
    assert found[0] == 30
    assert found[0] > found[1] > found[2] > 3


def test_correlated_noise_hides_more():
    wide = scipy.ndimage.gaussian_filter(white((168, 168)), 1.0)[20:-20, 20:-20]
    noise = 25 * wide / wide.std()
    correlated, independent = frequency(CAMERA + noise), frequency(CAMERA + 25 * white((128, 128)))
    assert correlated < 0.8 * independent


def test_noise_alone_starts_lowest():
    assert frequency(white((64, 64)), sigma=1) == 3


def test_channels_take_the_finest_and_volumes_are_like_their_slices():
    noisy = [u + 25 * white(u.shape) for u in (BLOBS, CAMERA)]
    own = [frequency(image, sigma=25) for image in noisy]
    assert frequency(np.stack(noisy, axis=-1), sigma=25, channel_axis=-1) == max(own)
    volume = np.stack([BLOBS[::2, ::2]] * 32) + 25 * white((32, 64, 64))
    assert frequency(volume, sigma=25) < 12


@pytest.mark.parametrize("share", [0.02, 0.5])
def test_gaps_are_no_details(share):
    noisy = BLOBS + 25 * white(BLOBS.shape)
    noisy[np.random.default_rng(1).random(noisy.shape) < share] = np.nan
    assert frequency(noisy, sigma=25) < (7 if share < 0.1 else 15)


def test_one_that_is_given_is_kept():
    noisy = BLOBS + 25 * white(BLOBS.shape)
    assert frequency(noisy, sigma=25, network_options={"first_omega_0": 25.0}) == 25


def test_bright_spots_are_reached():
    """Without a gain of the output the fit's spots are cut off."""
    clean = BLOBS[::2, ::2]
    noisy = clean + 15 * white(clean.shape)
    options = {"sigma": 15, "noise": "white", "steps": 120, "progress": False}
    small = {"hidden_features": 64}
    found = [
        fit_image(noisy, network_options=small | more, **options).render()
        for more in ({}, {"output_gain": 1.0})
    ]
    errors = [float(np.sqrt(np.mean((fit - clean) ** 2))) for fit in found]
    assert errors[0] < 0.6 * errors[1]
    assert found[0].max() > 0.65 * clean.max() > found[1].max()
