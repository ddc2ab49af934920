"""Operators beside slow exact ones, and fields found from what they measure."""

import math

import numpy as np
import pytest
import scipy.ndimage
import torch

from sciml_snr.fields import Blur, BoxMeans, FieldFit, Fourier, LineIntegrals, fit_field
from sciml_snr.fields.operators import SparseMatrix, time_integrals

TINY = {"network_options": {"hidden_features": 32, "hidden_layers": 2}, "progress": False}


def gauss(points):
    """A round Gaussian about (0.2, -0.1), of width 0.15; (n, 1)."""
    middle = torch.tensor([0.2, -0.1], dtype=points.dtype)
    return torch.exp(-(points - middle).square().sum(-1, keepdim=True) / (2 * 0.15**2))


def test_line_integrals_of_a_gaussian_are_known() -> None:
    angles, detectors = [0.0, 30.0, 90.0, 135.0], np.linspace(-1, 1, 41)
    found = LineIntegrals(angles, detectors, cells=160)(gauss)
    theta = np.deg2rad(angles)[:, None]
    offset = detectors - (0.2 * np.cos(theta) - 0.1 * np.sin(theta))
    expected = 0.15 * math.sqrt(2 * math.pi) * np.exp(-(offset**2) / (2 * 0.15**2))
    assert found.shape == (4, 41)
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_line_integrals_are_those_of_skimage() -> None:
    from skimage.transform import radon

    rng = np.random.default_rng(0)
    image = scipy.ndimage.gaussian_filter(rng.random((32, 32)), 2) - 0.45
    row, col = np.mgrid[:32, :32]
    image[np.hypot(row - 16, col - 16) > 13] = 0
    angles = np.arange(0, 180, 20.0)

    def field(points):  # x to the right, y upwards, from the pixel that radon turns about
        at = np.stack([16 - points[:, 1].numpy(), points[:, 0].numpy() + 16])
        return torch.as_tensor(scipy.ndimage.map_coordinates(image, at, order=1))[:, None]

    found = LineIntegrals(angles, np.arange(32) - 16.0, cells=64)(field)
    expected = radon(image, theta=angles).T
    assert np.abs(found.numpy() - expected).max() < 0.05 * np.abs(expected).max()


def test_blur_is_a_convolution() -> None:
    rng = np.random.default_rng(0)
    kernel, image = rng.random((3, 5)), torch.as_tensor(rng.random((2, 12, 14)))

    def field(points):  # pixel k is at (k + 0.5) * 2; the grid starts a margin earlier
        at = (points / 2 - 0.5 + torch.tensor([1, 2])).round().long()
        return image[:, at[:, 0], at[:, 1]].T

    found = Blur(kernel, (10, 10), spacing=2.0)(field)
    expected = [scipy.ndimage.convolve(im, kernel)[1:-1, 2:-2] for im in image.numpy()]
    assert found.shape == (10, 10, 2)
    np.testing.assert_allclose(found, np.stack(expected, axis=-1), rtol=1e-5)


@pytest.mark.parametrize("d", [1, 3])
def test_blur_in_other_dimensions(d) -> None:
    operator = Blur(np.full(d * [3], 1 / 3**d), d * [6])
    found = operator(lambda x: x.sum(-1, keepdim=True))
    expected = sum(np.meshgrid(*d * [np.arange(6) + 0.5], indexing="ij"))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_averages_of_polynomials_are_exact() -> None:
    rng = np.random.default_rng(0)
    low = rng.random((7, 2))
    high = low + rng.random((7, 2))
    found = BoxMeans(low, high, nodes=2)(lambda x: x[:, :1] ** 3 * x[:, 1:] ** 2)

    def mean(power, a, b):
        return (b ** (power + 1) - a ** (power + 1)) / ((power + 1) * (b - a))

    expected = mean(3, low[:, 0], high[:, 0]) * mean(2, low[:, 1], high[:, 1])
    np.testing.assert_allclose(found[:, 0], expected)
    part = BoxMeans(low, high).at(lambda x: x, torch.tensor([4, 1]))
    np.testing.assert_allclose(part, ((low + high) / 2)[[4, 1]])


def test_averages_over_the_pixels_of_a_grid() -> None:
    found = BoxMeans.of_grid((2, 3), spacing=(1.0, 2.0))(lambda x: x)
    np.testing.assert_allclose(found[:4], [[0.5, 1], [0.5, 3], [0.5, 5], [1.5, 1]])


def test_integrals_over_time() -> None:
    places, start = np.array([[1.0], [2.0]]), np.array([0.0, 1.0])
    operator = time_integrals(places, start, start + np.array([2.0, 0.5]), axis=0)
    found = operator(lambda x: x[:, 1:] * torch.cos(x[:, :1]))  # time is the first coordinate
    expected = [math.sin(2.0), 2 * (math.sin(1.5) - math.sin(1.0))]
    np.testing.assert_allclose(found[:, 0], expected)
    alone = time_integrals(np.empty((2, 0)), start, start + 1.0)
    np.testing.assert_allclose(alone(lambda x: x)[:, 0], [0.5, 1.5])


def test_fourier_coefficients_are_numpys() -> None:
    rng = np.random.default_rng(0)
    image, mask = rng.random((6, 5)), rng.random((6, 5)) < 0.5
    found = Fourier(mask)(lambda x: torch.as_tensor(image)[x[:, 0].long(), x[:, 1].long()][:, None])
    np.testing.assert_allclose(found, np.fft.fftn(image, norm="ortho")[mask], rtol=1e-4, atol=1e-6)


def test_products_with_a_sparse_matrix_have_the_right_derivatives() -> None:
    rng = np.random.default_rng(0)
    dense = rng.random((5, 7)) * (rng.random((5, 7)) < 0.5)
    values = torch.rand(7, 2, requires_grad=True)
    product = SparseMatrix(scipy.sparse.csr_array(dense))(values)
    plain = torch.as_tensor(dense, dtype=torch.float32) @ values
    torch.testing.assert_close(product, plain)
    one, other = (torch.autograd.grad(p.square().sum(), values)[0] for p in (product, plain))
    torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    "build",
    [
        lambda: LineIntegrals([], [1.0]),
        lambda: LineIntegrals([0.0], [np.nan]),
        lambda: LineIntegrals([0.0], [1.0], size=-1),
        lambda: LineIntegrals([0.0], [1.0], cells=10**9),
        lambda: Blur(np.ones((2, 3)), (5, 5)),
        lambda: Blur(np.ones(3), (5, 5)),
        lambda: Blur(np.ones(3), (5,), spacing=0),
        lambda: BoxMeans([[1.0]], [[0.0]]),
        lambda: BoxMeans([[0.0]], [[1.0]], nodes=0),
        lambda: time_integrals([[0.0]], [1.0], [2.0, 3.0]),
        lambda: Fourier(np.zeros((3, 3))),
    ],
)
def test_bad_operators_are_refused(build) -> None:
    with pytest.raises(ValueError):
        build()


ANGLES, DETECTORS = np.arange(0, 180, 15.0), np.linspace(-1, 1, 32)
LINES = LineIntegrals(ANGLES, DETECTORS)


def bumps(points):
    return gauss(points) + 0.7 * gauss(-points)


@pytest.fixture(scope="module")
def scan():
    rng = np.random.default_rng(0)
    clean = LineIntegrals(ANGLES, DETECTORS, cells=128)(bumps).numpy()
    sigma = 0.03 * clean.max()
    return clean + sigma * rng.normal(size=clean.shape), sigma


@pytest.fixture(scope="module")
def fit(scan):
    y, sigma = scan
    options = {"hidden_features": 64, "hidden_layers": 3, "first_omega_0": 6.0}
    return fit_field(
        None, y, sigma=sigma, operator=LINES, steps=300, lr=3e-3, progress=False,
        network_options={**options, "hidden_omega_0": 5.0},
    )  # fmt: skip


def test_a_field_is_found_from_its_projections(fit) -> None:
    grid = np.linspace(-0.6, 0.6, 25)
    found = fit.render([grid, grid])
    points = np.stack(np.meshgrid(grid, grid, indexing="ij"), -1).reshape(-1, 2)
    truth = bumps(torch.as_tensor(points)).numpy().reshape(25, 25)
    assert np.sqrt(np.mean((found - truth) ** 2)) < 0.35 * truth.std()
    assert fit.history[-1]["misfit"] == pytest.approx(1, abs=0.5)
    assert fit.predicted().shape == (12 * 32, 1)
    fit.figure()


def test_what_needs_the_operator_says_so(fit, tmp_path) -> None:
    fit.save(tmp_path / "fit.npz")
    bare = FieldFit.load(tmp_path / "fit.npz")
    at = np.random.default_rng(0).random((5, 2)) - 0.5
    np.testing.assert_array_equal(bare(at), fit(at))
    with pytest.raises(ValueError, match="loaded without its operator"):
        bare.memorization(progress=False)
    whole = FieldFit.load(tmp_path / "fit.npz", operator=LINES)
    np.testing.assert_array_equal(whole.predicted(), fit.predicted())


def test_memorization_of_indirect_measurements(scan) -> None:
    y, sigma = scan
    fit = fit_field(None, y, sigma=sigma, operator=LINES, steps=20, **TINY)
    assert 0 <= fit.memorization(progress=False).share + 0.1 < 0.5
    rows = fit.residual_rows([5, 7])
    np.testing.assert_allclose(
        rows.residual.detach()[:, 0], fit.predicted()[[5, 7], 0] - y.ravel()[[5, 7]], rtol=1e-4
    )


def test_units_of_indirect_measurements_do_not_matter(scan) -> None:
    y, sigma = scan
    plain = fit_field(None, y, sigma=sigma, operator=LINES, steps=10, **TINY)
    larger = LineIntegrals(ANGLES, 1e3 * DETECTORS)
    other = fit_field(None, 50 * y, sigma=50 * sigma, operator=larger, steps=10, **TINY)
    at = np.random.default_rng(0).random((50, 2)) - 0.5
    np.testing.assert_allclose(20 * other(1e3 * at), plain(at), atol=2e-3)


def test_a_function_of_ones_own_and_sigma_per_measurement() -> None:
    """Differences of a curve's values over an interval, which a constant does not show in."""
    rng = np.random.default_rng(0)
    start = torch.as_tensor(rng.random((200, 1)))

    def differences(field):
        return (field(start + 0.2) - field(start))[:, 0]

    clean = differences(lambda x: torch.sin(6 * x)).numpy()
    sigma = rng.uniform(0.02, 0.2, 200)
    y = clean + sigma * rng.normal(size=200)
    fit = fit_field([[0.0], [1.2]], y, sigma=sigma, operator=differences, steps=300, lr=3e-3,
                    network_options={"hidden_features": 64, "hidden_layers": 2,
                                     "first_omega_0": 4.0, "hidden_omega_0": 5.0},
                    progress=False)  # fmt: skip
    at = np.linspace(0.1, 1.1, 50)
    slopes = fit.gradient(at)[:, 0]
    assert np.sqrt(np.mean((slopes - 6 * np.cos(6 * at)) ** 2)) < 0.25 * 6


def test_measurements_in_batches() -> None:
    low = np.linspace(0, 1, 300)[:-1, None]
    operator = BoxMeans(low, low + 0.05)
    y = operator(lambda x: torch.sin(5 * x)).numpy()[:, 0]
    y = y + 0.05 * np.random.default_rng(0).normal(size=y.shape)
    fit = fit_field(None, y, sigma=0.05, operator=operator, batch_size=64, steps=200, lr=3e-3,
                    network_options={"hidden_features": 32, "hidden_layers": 2,
                                     "first_omega_0": 4.0, "hidden_omega_0": 5.0},
                    progress=False)  # fmt: skip
    at = np.linspace(0.05, 1, 50)
    assert np.sqrt(np.mean((fit(at) - np.sin(5 * at)) ** 2)) < 0.05


def test_complex_measurements() -> None:
    rng = np.random.default_rng(0)
    mask = rng.random((16, 16)) < 0.6
    mask[0, 0] = True
    operator = Fourier(mask, spacing=1 / 16)
    clean = operator(lambda x: torch.sin(4 * x[:, :1]) * x[:, 1:]).numpy()
    noise = rng.normal(size=(2, len(clean)))
    y = clean + 0.02 * (noise[0] + 1j * noise[1])
    fit = fit_field(None, y, sigma=0.02, operator=operator, steps=5, **TINY)
    assert fit.predicted().shape == (len(clean), 2) and math.isfinite(fit([[0.5, 0.5]])[0])


def test_a_field_of_several_outputs(scan) -> None:
    y, sigma = scan

    def both(field):
        found = LINES(field)
        return found[..., 0] + found[..., 1]

    box = [[-1, -1], [1, 1]]
    fit = fit_field(box, y, sigma=sigma, operator=both, outputs=2, steps=2, **TINY)
    assert fit(np.zeros((3, 2))).shape == (3, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(sigma=None), "sigma cannot be estimated from an operator's measurements"),
        (dict(operator=3), "operator must be a function of the field"),
        (dict(operator=lambda field: 1.0, x=[[0, 0], [1, 1]]), "must return a tensor"),
        (dict(operator=lambda field: field(torch.zeros(3, 2)), x=[[0, 0], [1, 1]]), "predicts"),
        (dict(operator=lambda field: field(torch.zeros(3, 2))), "the operator has no bounds"),
        (dict(sigma=[0.1, 0.2]), "sigma .* is not of y's shape"),
        (dict(batch_size=5), "a part of its measurements"),
        (dict(patience=5, optimizer="snr_adam"), "patience is for samples"),
        (dict(outputs=0), "outputs must be"),
        (dict(x=[[0.0, 0.0], [1.0, 0.0]]), "Coordinate 1 of x is the same"),
    ],
)
def test_bad_input_is_refused_before_the_work(scan, tmp_path, change, message) -> None:
    y, sigma = scan
    arguments = {"x": None, "y": y, "sigma": sigma, "operator": LINES, "steps": 1, **change}
    with pytest.raises(ValueError, match=message):
        fit_field(**arguments, progress=False, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
