"""What kind of noise is in an image: inspect_noise."""

import numpy as np
import pytest
import scipy.ndimage
import skimage.data

from sciml_snr import inspect_noise

CAMERA = skimage.data.camera()[:256, :256].astype(float)
COINS = skimage.data.coins()[:256, :256].astype(float)
CELL = skimage.data.cell()[:256, :256].astype(float)
IMAGES = pytest.mark.parametrize("clean", [CAMERA, COINS, CELL], ids=["camera", "coins", "cell"])


def white(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def blurred(shape, by, seed=0):
    found = scipy.ndimage.gaussian_filter(white(shape, seed), by)
    return found / found.std()


@IMAGES
@pytest.mark.parametrize("sigma", [8.0, 25.0])
def test_white_noise(clean, sigma):
    found = inspect_noise(clean + sigma * white(clean.shape))
    assert found.is_white
    assert not found.doubt
    assert found.gain == 0
    assert found.sigma == pytest.approx(sigma, rel=0.08 if clean is not COINS else 0.25)
    assert found.outliers.mean() < 1e-3


@IMAGES
@pytest.mark.parametrize("by", [0.7, 1.0])
def test_blurred_noise(clean, by):
    found = inspect_noise(clean + 25 * blurred(clean.shape, by))
    assert found.sigma == pytest.approx(25, rel=0.1)
    assert found.blur == pytest.approx(by, abs=0.15)


@IMAGES
def test_noise_of_an_enlarged_image(clean):
    half = white([n // 2 for n in clean.shape])
    linear = scipy.ndimage.zoom(half, 2, order=1)
    for noise in (linear / linear.std(), np.kron(half, np.ones((2, 2)))):
        found = inspect_noise(clean + 27 * noise)
        assert found.sigma == pytest.approx(27, rel=0.12)
        assert not found.is_white


@IMAGES
def test_stripes(clean):
    stripes = 23 * white((len(clean), 1))
    found = inspect_noise(clean + stripes)
    assert found.rows == pytest.approx(stripes.std(), rel=0.15)
    assert found.columns == 0
    both = inspect_noise((clean + stripes).T + 10 * white(clean.shape, 1))
    assert both.columns == pytest.approx(stripes.std(), rel=0.15)
    assert both.rows == 0
    assert both.sigma == pytest.approx(np.hypot(stripes.std(), 10), rel=0.15)


@IMAGES
def test_outliers(clean):
    noisy = clean + 10 * white(clean.shape)
    hot = np.random.default_rng(1).random(clean.shape) < 0.01
    found = inspect_noise(np.where(hot & (clean < 180), 255.0, noisy))
    hot &= clean < 180
    assert (found.outliers & hot).sum() > 0.7 * hot.sum()
    assert (found.outliers & ~hot).mean() < 5e-4
    assert found.sigma == pytest.approx(10, rel=0.2)


def test_salt_and_pepper():
    rng = np.random.default_rng(0)
    hit = rng.random(CAMERA.shape) < 0.05
    found = inspect_noise(np.where(hit, 255.0 * rng.integers(0, 2, CAMERA.shape), CAMERA))
    assert (found.outliers & hit).sum() > 0.6 * hit.sum()
    assert found.sigma < 2  # 24 before they are taken out


@IMAGES
@pytest.mark.parametrize("is_8_bit", [False, True])
def test_pairs_of_salt_and_pepper(clean, is_8_bit):
    """A third of them has another one beside it."""
    rng = np.random.default_rng(0)
    hit = rng.random(clean.shape) < 0.05
    noisy = clean + 10 * white(clean.shape)
    noisy = np.where(hit, 255.0 * rng.integers(0, 2, clean.shape), noisy)
    if is_8_bit:
        noisy = np.clip(np.round(noisy), 0, 255)
    far = hit & (np.abs(noisy - clean) > 80)
    found = inspect_noise(noisy)
    assert (found.outliers & far).sum() > 0.85 * far.sum()
    assert (found.outliers & ~hit).mean() < 5e-4
    assert found.sigma == pytest.approx(10, rel=0.2)


def test_lines_and_patches_of_the_value_of_hot_pixels_are_no_outliers():
    clean = np.full((128, 128), 40.0)
    clean[::8] = 255.0
    clean[20:28, 40:60] = 255.0
    hot = np.random.default_rng(1).random(clean.shape) < 0.01
    noisy = np.clip(np.round(clean + 10 * white(clean.shape)), 0, 255)
    found = inspect_noise(np.where(hot, 255.0, noisy))
    new = hot & (clean < 255)
    assert (found.outliers & new).sum() > 0.7 * new.sum()
    assert not (found.outliers & ~new).any()


@pytest.mark.parametrize("peak", [30, 100])
def test_variance_that_grows_with_the_brightness(peak):
    counts = np.random.default_rng(0).poisson(CAMERA * peak / 255)
    found = inspect_noise(counts * 255 / peak + 3 * white(CAMERA.shape))
    assert found.gain == pytest.approx(255 / peak, rel=0.15)
    assert found.offset == pytest.approx(9, abs=0.15 * 255 / peak * CAMERA.mean())


def test_fine_texture_everywhere_is_in_doubt():
    gravel = skimage.data.gravel()[:256, :256].astype(float)
    found = inspect_noise(gravel)
    assert "fine texture everywhere" in found.doubt
    assert "in doubt" in str(found)
    assert "sigma=4.9" in found.doubt


def test_a_sigma_that_is_known_tells_texture_from_correlated_noise():
    gravel = skimage.data.gravel()[:256, :256].astype(float)
    found = inspect_noise(gravel)
    assert found.told(5.0).is_white
    assert found.told(5.0).sigma == found.finest
    assert not found.told(20.0).is_white
    assert not found.told(5.0).doubt
    assert not found.told(20.0).doubt
    noisy = inspect_noise(CAMERA + 25 * blurred(CAMERA.shape, 1.0))
    assert noisy.told(25.0).blur == noisy.blur


def test_draws_are_of_the_kind_that_was_found():
    noisy = CELL + 25 * blurred(CELL.shape, 1.0) + 8 * white((256, 1), 1)
    kind = inspect_noise(noisy)
    rng = np.random.default_rng(0)
    draws = [kind.correlation.draw((192, 256), rng) for _ in range(20)]
    assert np.mean([draw.var() for draw in draws]) == pytest.approx(1, abs=0.03)
    neighbours = np.mean([(draw[:, 1:] * draw[:, :-1]).mean() for draw in draws])
    share = kind.rows**2 / float(kind.sigma) ** 2
    expected = np.exp(-0.25)  # of white noise blurred by 1 pixel, at a distance of 1
    assert neighbours == pytest.approx(share + (1 - share) * expected, abs=0.06)


def test_correlated_noise_in_a_small_image():
    found = inspect_noise(CAMERA[100:152, 100:152] + 25 * blurred((52, 52), 1.0))
    assert found.blur == pytest.approx(1, abs=0.3)
    assert found.sigma == pytest.approx(25, rel=0.3)


def test_small_images_and_nonsense():
    found = inspect_noise(CAMERA[:32, :32] + 25 * white((32, 32)))
    assert found.is_white
    assert found.sigma == pytest.approx(25, rel=0.25)
    with pytest.raises(ValueError, match="finite"):
        inspect_noise(np.where(CAMERA > 200, np.nan, CAMERA))
    with pytest.raises(ValueError, match="shape"):
        inspect_noise(np.zeros((4, 4, 4)))


@pytest.mark.parametrize("size", range(12, 140, 4))
def test_images_of_every_size_are_looked_at_or_refused_in_words(size: int) -> None:
    """Square ones and narrow ones; none ends in numpy's own error."""
    rng = np.random.default_rng(size)
    for shape in ((size, size), (size, size + 7), (size // 3, 3 * size)):
        y, x = np.mgrid[: shape[0], : shape[1]] / size
        image = np.sin(5 * x) * np.cos(4 * y) + 0.1 * rng.normal(size=shape)
        try:
            found = inspect_noise(image)
        except ValueError as error:
            assert "pixels" in str(error)
        else:
            assert np.isfinite(found.sigma)
