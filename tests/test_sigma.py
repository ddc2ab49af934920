"""Estimates of sigma: mean and spread over many draws, against loops, symmetries, refusals."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from skimage import data

from sciml_snr import (
    NoisyLoss,
    SigmaEstimate,
    estimate_sigma_image,
    estimate_sigma_repeats,
    estimate_sigma_residuals,
    estimate_sigma_scattered,
)

Array = NDArray[np.float64]
DRAWS = 200


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def scattered(points: Array, values: Array, neighbors: int | None = None) -> SigmaEstimate:
    estimate = estimate_sigma_scattered(points, values, neighbors)
    assert isinstance(estimate, SigmaEstimate)
    return estimate


def check_draws(
    estimates: list[SigmaEstimate], sigma: float, bias: tuple[float, float] = (0, 0)
) -> None:
    """Mean of sigma^2 within the stated relative bias and 3 standard errors; honest errors.

    200 draws know their standard deviation to 5 %.
    """
    squares = np.square(estimates) / sigma**2
    error = squares.std() / np.sqrt(len(squares))
    assert bias[0] - 3 * error < squares.mean() - 1 < bias[1] + 3 * error
    reported = np.mean([e.standard_error for e in estimates])
    assert reported == pytest.approx(np.std(estimates), rel=0.2)


# Scattered points ----------------------------------------------------------------------------


def initial(r: np.random.Generator, n: int) -> Array:
    return np.hstack([r.uniform(0, 2 * np.pi, (n, 1)), np.zeros((n, 1))])


def sine(p: Array) -> Array:
    return np.sin(p[:, 0])


def waves(p: Array) -> Array:
    return np.sin(2 * np.pi * p[:, 0]) * np.sin(np.pi * p[:, 1])


def decay(p: Array) -> Array:
    return np.sin(np.pi * p[:, 0]) * np.cos(np.pi * p[:, 1]) * np.exp(-p[:, 2])


@pytest.mark.parametrize(
    ("points", "field", "sigma", "bias"),
    [
        (lambda r: initial(r, 256), sine, 1.0, 0.0),
        (lambda r: initial(r, 64), sine, 0.1, 0.01),
        (lambda r: r.uniform(size=(256, 2)), waves, 0.1, 0.03),
        (lambda r: r.uniform(size=(300, 3)), decay, 0.1, 0.05),
        (lambda r: np.repeat(r.uniform(0, 6, (40, 1)), 3, axis=0), sine, 0.1, 0.0),
        (lambda r: np.vstack([*[initial(r, 30)] * 2, initial(r, 60)]), sine, 0.2, 0.01),
        (lambda r: r.uniform(0, 3, (100, 1)) * [1, 3] + [0, 2], sine, 0.1, 0.01),
    ],
    ids=["convection", "few", "2d", "3d", "repeats", "some-repeats", "collinear"],
)
def test_scattered_over_draws(
    points: Callable[[np.random.Generator], Array],
    field: Callable[[Array], Array],
    sigma: float,
    bias: float,
) -> None:
    r = rng(1)
    estimates = []
    for _ in range(DRAWS):
        p = points(r)
        estimates.append(scattered(p, field(p) + sigma * r.normal(size=len(p))))
    check_draws(estimates, sigma, (0, bias))


def naive_scattered(points: Array, values: Array, k: int) -> tuple[float, float]:
    """sigma^2 as a quadratic form y' A y, point by point; its variance is 2 sigma^4 tr A^2."""
    n = len(points)
    z = (points - points.mean(0)) / points.std(0)
    total = np.zeros((n, n))
    for i in range(n):
        same = np.flatnonzero((points == points[i]).all(axis=1))
        row = np.zeros(n)
        row[i] = 1
        if len(same) > 1:
            row[same] -= 1 / len(same)
            total += np.outer(row, row)
            continue
        distance = np.linalg.norm(z - z[i], axis=1)
        distance[i] = np.inf
        near = np.argsort(distance)[:k]
        design = np.hstack([np.ones((k, 1)), z[near] - z[i]])
        # The prediction at z_i is the intercept of a least-squares fit to the neighbours.
        row[near] = -np.linalg.lstsq(design, np.eye(k), rcond=None)[0][0]
        total += np.outer(row, row) / (row @ row)
    total /= np.trace(total)
    square = float(values @ total @ values)
    return np.sqrt(square), np.sqrt(square * np.trace(total @ total) / 2)


@pytest.mark.parametrize("d", [1, 2, 3])
def test_scattered_against_a_loop(d: int) -> None:
    r = rng(d)
    p, y = r.uniform(size=(40, d)) * [1.0, 50.0, 0.1][:d], r.normal(size=40) + 5
    for k in (d + 2, 12):
        estimate = scattered(p, y, k)
        assert (estimate.sigma, estimate.standard_error) == pytest.approx(naive_scattered(p, y, k))
        assert estimate.n == 40
    assert scattered(p, y) == scattered(p, y, d + 2)


def test_repeated_positions_against_a_loop() -> None:
    """Three far pairs, so that neighbourhoods hold single positions only."""
    r = rng(3)
    single = np.linspace(0, 1, 25)[:, None] ** 1.3
    p = np.vstack([single, np.repeat([[5.0], [7.0], [9.0]], 2, axis=0)])
    y = r.normal(size=31)
    estimate = scattered(p, y, 4)
    assert (estimate.sigma, estimate.standard_error) == pytest.approx(naive_scattered(p, y, 4))


def test_weights_of_repeated_neighbors() -> None:
    """A mean of four repeats predicts as four measurements beside each other do."""
    r = rng(4)
    single = np.arange(12.0)
    means, scatter = r.normal(size=11), r.normal(size=(11, 4))
    p = np.concatenate([[5.5], np.repeat(np.delete(single, 5), 4)])
    y = np.concatenate([[3.0], (means[:, None] + scatter).reshape(-1)])
    estimate = scattered(p, y, 3)
    # 5.5 has the neighbours 6, 4 and 7, each a mean of four.
    design = np.hstack([np.ones((12, 1)), np.repeat([6.0, 4.0, 7.0], 4)[:, None] - 5.5])
    w = np.linalg.pinv(design)[0]
    group = y[1:].reshape(11, 4)
    residual = 3.0 - w @ group[[5, 4, 6]].reshape(-1)
    within = ((group - group.mean(axis=1, keepdims=True)) ** 2).sum()
    assert estimate == pytest.approx(np.sqrt((within + residual**2 / (1 + w @ w)) / 34))


def test_repeats_alone_give_the_pooled_estimate() -> None:
    r = rng(5)
    p, y = np.repeat(r.uniform(size=(10, 2)), 4, axis=0), r.normal(size=40)
    estimate, pooled = scattered(p, y), estimate_sigma_repeats(y, np.repeat(np.arange(10), 4))
    assert estimate == pytest.approx(pooled)
    assert estimate.standard_error == pytest.approx(pooled.standard_error)
    one_place = scattered(np.zeros((40, 3)), y)
    assert one_place == pytest.approx(np.std(y, ddof=1))


@pytest.mark.parametrize("d", [1, 2, 3])
def test_symmetries(d: int) -> None:
    r = rng(d)
    p, y = r.uniform(size=(60, d)), r.normal(size=60)
    estimate = scattered(p, y)
    plane = 1e3 + p @ r.normal(size=d) * 10
    same = [scattered(p * 10.0 ** np.arange(-3, 3 * d - 3, 3), y), scattered(7 - p, y)]
    same += [scattered(p, y + plane), scattered(p[::-1], y[::-1]), scattered(p, -y)]
    same += [scattered(np.hstack([p, np.full((60, 1), 0.1)])[:, -3:], y)] if d < 3 else []
    for other in same:
        assert other == pytest.approx(estimate.sigma, rel=1e-7)
        assert other.standard_error == pytest.approx(estimate.standard_error, rel=1e-7)
    scaled = scattered(p, 1e-6 * y)
    assert scaled == pytest.approx(1e-6 * estimate, rel=1e-12)
    assert scaled.standard_error == pytest.approx(1e-6 * estimate.standard_error, rel=1e-12)


def test_exact_linear_values_have_no_error() -> None:
    p = rng().uniform(size=(50, 3))
    assert scattered(p, 1 + p @ [1, 2, 3]) < 1e-12


def test_components() -> None:
    r = rng(6)
    p, y = r.uniform(size=(50, 2)), r.normal(size=(50, 3)) * [1, 10, 100]
    estimates = estimate_sigma_scattered(p, y)
    assert isinstance(estimates, tuple)
    assert list(estimates) == pytest.approx([scattered(p, column) for column in y.T])
    (only,) = estimate_sigma_scattered(p, y[:, :1])
    assert only == pytest.approx(estimates[0])


def test_round_off_is_no_direction() -> None:
    r = rng(7)
    x, y = r.uniform(size=(50, 1)), r.normal(size=50)
    noisy_zero = np.hstack([x, 0.1 + 1e-17 * r.integers(0, 3, (50, 1))])
    negative_zero = np.hstack([x, np.where(x > 0.5, -0.0, 0.0)])
    for p in (noisy_zero, negative_zero):
        assert scattered(p, y) == pytest.approx(scattered(x, y))


def test_repeats_apart_by_round_off() -> None:
    """More of them in one place than neighbours, in a line or across it."""
    r = rng(9)
    place, y = np.repeat(np.linspace(0, 1, 3), 100)[:, None], r.normal(size=300)
    for across in ([1, 1], [1, -1]):
        p = place * [1, 1] + 1e-10 * r.integers(0, 1000, (300, 1)) * across
        assert scattered(p, y) == pytest.approx(1, abs=0.3)


def test_points_off_the_line_of_their_neighbors_are_left_out() -> None:
    """Two rows far apart: with three neighbours in line, no prediction across is possible."""
    r = rng(8)
    line = np.hstack([np.linspace(0, 1, 30)[:, None], np.zeros((30, 1))])
    p = np.vstack([line, [[0.5, 10.0]]])
    y = r.normal(size=31)
    y[-1] = 1e6
    estimate = scattered(p, y, 3)
    assert estimate < 3 and estimate.n == 30


def test_refusals_of_scattered() -> None:
    p, y = rng().uniform(size=(20, 2)), np.arange(20.0)
    with pytest.raises(ValueError, match=r"points \(20, 2\) and values \(19,\) do not fit"):
        estimate_sigma_scattered(p, y[:-1])
    with pytest.raises(ValueError, match="do not fit"):
        estimate_sigma_scattered(p[None], y[None])
    with pytest.raises(ValueError, match=r"4 coordinates.*estimate_sigma_repeats"):
        estimate_sigma_scattered(np.hstack([p, p]), y)
    for d, least in ((1, 10), (2, 12), (3, 15)):
        q = rng().uniform(size=(least, d))
        estimate_sigma_scattered(q, q[:, 0])
        with pytest.raises(ValueError, match=rf"{least - 1} points: .* at least {least}"):
            estimate_sigma_scattered(q[1:], q[1:, 0])
    with pytest.raises(ValueError, match="0 points"):
        estimate_sigma_scattered([], [])
    for bad in (np.nan, np.inf):
        with pytest.raises(ValueError, match=r"values has 1 of 20 .* leave those"):
            estimate_sigma_scattered(p, np.where(y == 3, bad, y))
        with pytest.raises(ValueError, match="points has 2 of 40"):
            estimate_sigma_scattered(np.where((y == 3)[:, None], bad, p), y)
    for k in (2, 20, 0, -1):
        with pytest.raises(ValueError, match=rf"neighbors must be from 3 to 19 .* got {k}"):
            estimate_sigma_scattered(p, y, k)
    # Twelve corners of an icosahedron, each nearer to four points in a line than to another.
    golden = (1 + np.sqrt(5)) / 2
    corners = np.array([[0, a, b * golden] for a in (-1, 1) for b in (-1, 1)])
    icosahedron = np.vstack([np.roll(corners, shift, axis=1) for shift in range(3)])
    line = np.linspace(-0.01, 0.01, 4)[:, None] * [1, 2, 4]
    with pytest.raises(ValueError, match="Only 4 of 16 points have neighbours that predict them"):
        estimate_sigma_scattered(np.vstack([icosahedron, line]), np.arange(16.0), 4)


# Images --------------------------------------------------------------------------------------


def smooth_image(n: int = 64) -> Array:
    x = np.linspace(0, 1, n)
    return 127 + 102 * np.outer(np.sin(6 * x), np.cos(5 * x))


@pytest.mark.parametrize("sigma", [15, 25, 50])
@pytest.mark.parametrize(
    ("image", "low", "high"),
    [
        (smooth_image(), -0.04, -0.03),  # measured: -3.8 % of sigma^2 at all three
        (data.camera()[80:144, 200:264], -0.03, 0.08),  # head: +7.5 %, 0 %, -2 %
        (data.camera()[20:84, 20:84], -0.04, -0.03),  # sky
    ],
    ids=["smooth", "head", "sky"],
)
def test_image_over_draws(image: Array, low: float, high: float, sigma: float) -> None:
    r = rng(int(sigma))
    draws = [estimate_sigma_image(image + sigma * r.normal(size=image.shape)) for _ in range(DRAWS)]
    check_draws(draws, sigma, (low, high))


@pytest.mark.parametrize("shape", [(8, 8), (17, 33), (65, 64)])
def test_image_sizes(shape: tuple[int, int]) -> None:
    """The estimate of white noise is at most 9 % low, odd sizes included, and says its spread."""
    r = rng(2)
    draws = [estimate_sigma_image(r.normal(size=shape)) for _ in range(2 * DRAWS)]
    assert 0.91 - 3 * np.std(draws) / np.sqrt(len(draws)) < np.mean(draws) < 1
    assert np.mean([e.standard_error for e in draws]) == pytest.approx(np.std(draws), rel=0.15)
    assert draws[0].n == shape[0] // 2 * 2 * (shape[1] // 2 * 2)


def test_image_against_the_definition() -> None:
    """Median of |details| of the diagonal of the Daubechies wavelet of order 2, over 0.6745."""
    image = rng().normal(size=(16, 20))
    root = np.sqrt(3)
    high = np.array([-(1 + root), 3 + root, -(3 - root), 1 - root]) / (4 * np.sqrt(2))
    mirrored = np.pad(image, 3, mode="symmetric")
    rows = np.apply_along_axis(np.convolve, 1, mirrored, high, "valid")[:, 1::2]
    details = np.apply_along_axis(np.convolve, 0, rows, high, "valid")[1::2]
    median = np.median(np.abs(details))
    assert estimate_sigma_image(image) == pytest.approx(median / 0.674490, rel=1e-5)


def test_image_channels_and_types() -> None:
    image = data.astronaut()[80:144, 190:254]
    estimates = estimate_sigma_image(image, channel_axis=-1)
    each = [estimate_sigma_image(image[..., c].astype(float)) for c in range(3)]
    assert estimates == tuple(each)
    assert estimate_sigma_image(np.moveaxis(image, -1, 0), channel_axis=0) == estimates
    assert estimate_sigma_image(image[..., 0] / 255) == pytest.approx(each[0] / 255)
    assert estimate_sigma_image(image[..., 0].tolist()) == each[0]


def test_refusals_of_images() -> None:
    image = rng().normal(size=(16, 16, 3))
    with pytest.raises(ValueError, match="channel_axis=-1"):
        estimate_sigma_image(image)
    with pytest.raises(ValueError, match="channel_axis=-1"):
        estimate_sigma_image(image[..., 0], channel_axis=-1)
    with pytest.raises(ValueError, match=r"16 x 3 pixels: .* 8 x 8"):
        estimate_sigma_image(image, channel_axis=0)
    with pytest.raises(ValueError, match="7 x 16 pixels"):
        estimate_sigma_image(image[:7, :, 0])
    with pytest.raises(ValueError, match=r"constant.*alpha"):
        estimate_sigma_image(np.where([1, 1, 0], image, 255), channel_axis=-1)
    for bad in (np.nan, np.inf):
        with pytest.raises(ValueError, match=r"image has 16 of 256 .*crop"):
            estimate_sigma_image(np.where(np.eye(16), bad, image[..., 0]))
    with pytest.raises(ValueError, match="out of bounds"):
        estimate_sigma_image(image, channel_axis=3)


# Repeats and residuals -----------------------------------------------------------------------


def test_repeats_over_draws() -> None:
    """Groups of one to five with means far apart."""
    r = rng()
    groups = np.repeat(np.arange(12), [1, 2, 3, 4, 5, 2, 2, 2, 2, 3, 3, 1])
    means = 1e4 * r.normal(size=12)
    draws = [
        estimate_sigma_repeats(means[groups] + 0.3 * r.normal(size=len(groups)), groups)
        for _ in range(DRAWS)
    ]
    check_draws(draws, 0.3)


def test_repeats_against_a_loop() -> None:
    r = rng(1)
    table = r.normal(size=(6, 4))
    pooled = np.sqrt(np.mean([row.var(ddof=1) for row in table]))
    names = np.repeat(list("fabecd"), 4)
    order = r.permutation(24)
    for estimate in (
        estimate_sigma_repeats(table),
        estimate_sigma_repeats(table.reshape(-1)[order], names[order]),
    ):
        assert estimate == pytest.approx(pooled)
        assert estimate.standard_error == pytest.approx(pooled / np.sqrt(2 * 18))
        assert estimate.n == 24


def test_refusals_of_repeats() -> None:
    y = np.arange(12.0)
    with pytest.raises(ValueError, match=r"values \(12,\) and groups \(11,\) do not fit"):
        estimate_sigma_repeats(y, y[1:])
    with pytest.raises(ValueError, match="do not fit"):
        estimate_sigma_repeats(y)
    with pytest.raises(ValueError, match="do not fit"):
        estimate_sigma_repeats(y.reshape(6, 2), np.arange(6))
    with pytest.raises(ValueError, match="12 measurements in 8 groups leave 4 degrees"):
        estimate_sigma_repeats(y, y % 8)
    estimate_sigma_repeats(y, y % 7)
    for empty in (np.zeros((0, 4)), np.zeros((12, 0))):
        with pytest.raises(ValueError, match="0 degrees"):
            estimate_sigma_repeats(empty)
    with pytest.raises(ValueError, match="values has 1 of 12"):
        estimate_sigma_repeats(np.where(y == 3, np.nan, y).reshape(3, 4))
    with pytest.raises(ValueError, match="groups has 1 of 12"):
        estimate_sigma_repeats(y, np.where(y == 3, np.nan, 0))


def test_residuals_over_draws() -> None:
    """Of a polynomial with five coefficients."""
    r = rng()
    basis = np.linalg.qr(np.vander(np.linspace(-1, 1, 40), 5))[0]
    fit = basis @ basis.T
    draws = [
        estimate_sigma_residuals((fit @ e - e)[:, None], 5) for e in 2 * r.normal(size=(DRAWS, 40))
    ]
    check_draws(draws, 2)
    residual = r.normal(size=(4, 3))
    estimate = estimate_sigma_residuals(residual, 2.5)
    assert estimate**2 == pytest.approx((residual**2).sum() / 9.5)
    assert estimate.standard_error == pytest.approx(estimate / np.sqrt(19))
    assert estimate.n == 12


def test_refusals_of_residuals() -> None:
    for dof in (-1, np.nan):
        with pytest.raises(ValueError, match="dof must be >= 0"):
            estimate_sigma_residuals(np.ones(12), dof)
    for dof in (7.1, 12, 13.0):
        with pytest.raises(ValueError, match=r"12 residuals .* leave .* at least 5"):
            estimate_sigma_residuals(np.ones(12), dof)
    estimate_sigma_residuals(np.ones(12), 7)
    with pytest.raises(ValueError, match="empty"):
        estimate_sigma_residuals([], 0)
    with pytest.raises(ValueError, match="residual has 1 of 2"):
        estimate_sigma_residuals([1, np.nan], 0)


# The estimate --------------------------------------------------------------------------------


def test_an_estimate_is_a_number() -> None:
    estimate = estimate_sigma_residuals(np.ones(50), 18)
    assert estimate.sigma == 1.25 == estimate
    assert str(estimate) == "sigma 1.25 +- 0.2 (50 residuals less 18 degrees of freedom)"
    assert f"{estimate:.1f}" == "1.2" and type(2 * estimate) is float
    assert torch.as_tensor(estimate).item() == 1.25
    assert np.asarray([estimate]).dtype == float
    assert NoisyLoss(sigma=estimate).sigma.item() == 1.25
    for same in (copy.deepcopy(estimate), pickle.loads(pickle.dumps(estimate))):
        assert repr(same) == repr(estimate) and same.sigma == 1.25


def test_groups_of_several_kinds_are_refused() -> None:
    with pytest.raises(ValueError, match="all numbers or all strings"):
        estimate_sigma_repeats(np.ones(12), ["a", "b", None] * 4)


def test_masked_values_are_refused() -> None:
    x = np.linspace(0, 1, 50)[:, None]
    values = np.ma.masked_greater(np.r_[np.sin(x[:-1, 0]), 1e6], 10)
    with pytest.raises(ValueError, match="values has 1 of 50 entries that are NaN"):
        estimate_sigma_scattered(x, values)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_tensors_of_any_kind(dtype: torch.dtype) -> None:
    x = torch.linspace(0, 1, 50)[:, None]
    y = (0.1 * torch.randn(50, generator=torch.Generator().manual_seed(0))).to(dtype)
    found = estimate_sigma_scattered(x, y.requires_grad_())
    assert found == estimate_sigma_scattered(x.numpy(), y.detach().double().numpy())


def test_torch_tensors_and_no_warnings() -> None:
    x = torch.rand(50, 2, generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (estimate,) = estimate_sigma_scattered(x, x[:, :1] ** 2)
        assert scattered(x.double().numpy(), np.ones(50)) == 0
    assert 0 < estimate < 0.05
