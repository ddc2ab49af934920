"""The residual split, and what twins tell without the truth."""

import math

import numpy as np
import pytest
import torch

from sciml_snr.measure.twins import (
    Memorization,
    Twins,
    measure_memorization,
    memorized_map,
    memorized_share,
    share_from_misfit,
    split_by,
    split_residual,
)

RNG = np.random.default_rng(0)
CLEAN, NOISE = RNG.normal(size=(2, 200, 1))


@pytest.fixture(autouse=True)
def same_draws_whichever_tests_run() -> None:
    RNG.bit_generator.state = np.random.default_rng(1).bit_generator.state


# With the truth known


def test_truth_and_interpolation() -> None:
    assert memorized_share(CLEAN, CLEAN, CLEAN + NOISE) == 0
    assert memorized_share(CLEAN + NOISE, CLEAN, CLEAN + NOISE) == pytest.approx(1)
    assert memorized_share(CLEAN + 0.3 * NOISE, CLEAN, CLEAN + NOISE) == pytest.approx(0.3)


def orthogonal_error(size: float = 1.0) -> np.ndarray:
    error = RNG.normal(size=NOISE.shape)
    error -= NOISE * (error * NOISE).sum() / (NOISE**2).sum()
    return size * error


def test_error_orthogonal_to_the_noise_does_not_count() -> None:
    share = memorized_share(CLEAN + 0.3 * NOISE + orthogonal_error(), CLEAN, CLEAN + NOISE)
    assert share == pytest.approx(0.3)


def test_least_squares_memorizes_its_degrees_of_freedom() -> None:
    """k / n on average over noise; 400 draws, 4 standard errors of their mean."""
    n, k, draws = 50, 5, 400
    basis = np.linalg.qr(RNG.normal(size=(n, k)))[0]
    shares = []
    for _ in range(draws):
        e = RNG.normal(size=n)
        shares.append(memorized_share(basis @ (basis.T @ e), np.zeros(n), e))
    assert abs(np.mean(shares) - k / n) < 4 * np.std(shares) / np.sqrt(draws)


def test_split_adds_up() -> None:
    error = orthogonal_error(0.5)
    fit = CLEAN + 0.3 * NOISE + error
    split = split_residual(fit, CLEAN, CLEAN + NOISE)
    assert split.signal_error == pytest.approx((error**2).mean())
    assert split.noise_error == pytest.approx((0.09 * NOISE**2).mean())
    assert split.signal_error + split.noise_error == pytest.approx(((fit - CLEAN) ** 2).mean())
    norms = np.linalg.norm(fit - CLEAN) * np.linalg.norm(NOISE)
    assert split.cosine == pytest.approx(((fit - CLEAN) * NOISE).sum() / norms)
    assert split_residual(CLEAN, CLEAN, CLEAN + NOISE).cosine == 0


def test_split_by_parts() -> None:
    parts = np.where(np.arange(200) < 50, "data", "walls")
    fit = CLEAN + np.where(parts == "data", 0.1, 0.7)[:, None] * NOISE
    found = split_by(parts, fit, CLEAN, CLEAN + NOISE)
    assert {k: (round(s.memorized, 9), s.size) for k, s in found.items()} == {
        "data": (0.1, 50),
        "walls": (0.7, 150),
    }
    with pytest.raises(ValueError, match="do not lead"):
        split_by(parts[:9], fit, CLEAN, CLEAN + NOISE)


@pytest.mark.parametrize("channels", [(), (3,)])
def test_map_shows_where(channels: tuple[int, ...]) -> None:
    noise = RNG.normal(size=(40, 60, *channels))
    share = np.zeros(noise.shape)
    share[:, 30:] = 0.8
    found = memorized_map(share * noise, np.zeros_like(noise), noise, width=2)
    assert found.shape == (40, 60)
    assert np.allclose(found[:, :20], 0, atol=1e-6)
    assert np.allclose(found[:, 40:], 0.8, atol=1e-3)
    assert np.all(np.diff(found[:, 28:32].mean(0)) > 0)


def test_share_from_misfit() -> None:
    """k / n for a least-squares fit whose model holds the truth; 400 draws, 4 standard errors."""
    n, k, draws = 50, 5, 400
    basis = np.linalg.qr(RNG.normal(size=(n, k)))[0]
    shares = [
        share_from_misfit(basis @ (basis.T @ y), y, 0.3)
        for y in basis[:, 0] + 0.3 * RNG.normal(size=(draws, n))
    ]
    unclipped = [s for s in shares if s > 0]
    assert len(unclipped) < draws  # bounded below: the mean is over all of them and a bit above
    assert abs(np.median(shares) - k / n) < 4 * 1.25 * np.std(shares) / np.sqrt(draws)
    assert share_from_misfit(NOISE, NOISE, 1.0) == 1
    assert share_from_misfit(NOISE + 5, NOISE, 1.0) == 0


# With the truth unknown


def smoother(n: int = 60, ridge: float = 0.5) -> np.ndarray:
    x = np.linspace(0, 1, n)
    kernel = np.exp(-((x[:, None] - x) ** 2) / 0.02)
    return kernel @ np.linalg.inv(kernel + ridge * np.eye(n))


SIGMAS = {"one": np.full(60, 0.3), "each": np.linspace(0.1, 0.6, 60)}


@pytest.mark.parametrize("sigma", SIGMAS.values(), ids=SIGMAS)
def test_all_signs_give_the_degrees_of_freedom(sigma: np.ndarray) -> None:
    """The mean over probes is sum(sigma^2 J_ii) / sum(sigma^2): 3 standard errors of 4,000."""
    matrix, y = smoother(), RNG.normal(size=60)
    exact = (sigma**2 * np.diag(matrix)).sum() / (sigma**2).sum()
    row = measure_memorization(lambda labels: matrix @ labels, y, sigma, probes=4000).rows[0]
    assert abs(row.share - exact) < 3 * row.share_se < 0.004


@pytest.mark.parametrize("probes", [1, 4])
@pytest.mark.parametrize("sigma", SIGMAS.values(), ids=SIGMAS)
def test_estimates_and_their_errors_over_noise_draws(sigma: np.ndarray, probes: int) -> None:
    """Of 400 draws: unbiased within 3 standard errors, and 95 % intervals that hold 90 % or more.

    One twin's standard error is itself an estimate, so that its interval may hold less.
    """
    matrix, clean = smoother(), np.sin(7 * np.linspace(0, 1, 60))
    rows = []
    for seed in range(400):
        y = clean + sigma * RNG.normal(size=60)
        twins = measure_memorization(
            lambda labels: matrix @ labels, y, sigma, seed=seed, probes=probes, clean=clean
        )
        rows.append(twins.rows[0])
    table = np.array([row for row in rows])
    columns = dict(zip(rows[0]._fields, table.T, strict=True))
    for name in ("share", "risk"):
        error = columns[name] - columns[f"true_{name}"]
        assert abs(error.mean()) < 3 * error.std() / 20, name
    inside = [low <= row.true_share <= high for row in rows for low, high in [row.interval()]]
    assert np.mean(inside) > 0.9
    within = np.abs(columns["risk"] - columns["true_risk"]) < 1.96 * columns["risk_se"]
    assert np.mean(within) > 0.9
    exact = (sigma**2 * np.diag(matrix)).sum() / (sigma**2).sum()
    assert np.mean(np.abs(columns["share"] - exact) < 1.96 * columns["share_se"]) > 0.88


def test_interpolation_has_no_error_bar() -> None:
    y = RNG.normal(size=(30, 2))
    row = measure_memorization(lambda labels: labels, y, 0.5).rows[0]
    assert row.share == pytest.approx(1)
    assert row.share_se == pytest.approx(0, abs=1e-6)
    assert row.misfit == 0 and row.risk == pytest.approx(0.25)
    assert math.isnan(row.true_share) and math.isnan(row.true_risk)


def descent(labels, steps: int = 300) -> np.ndarray:
    """Gradient descent on a ridge-free linear model: the fit at every step."""
    features = np.vander(np.linspace(-1, 1, 60), 30)
    w, history = np.zeros(30), []
    for _ in range(steps):
        history.append(features @ w)
        w -= 0.05 / 30 * features.T @ (history[-1] - labels)
    return np.array(history)


def test_curve_over_a_run_and_its_best_moment() -> None:
    """The curve of the degrees of freedom in closed form: tr(I - (I - s K)^t) / n."""
    clean = np.sin(3 * np.linspace(-1, 1, 60))
    y = clean + 0.5 * RNG.normal(size=60)
    twins = measure_memorization(descent, y, 0.5, probes=400, clean=clean)
    features = np.vander(np.linspace(-1, 1, 60), 30)
    kept = np.linalg.eigvalsh(np.eye(60) - 0.05 / 30 * features @ features.T)
    exact = [np.mean(1 - kept**t) for t in range(300)]
    shares = np.array([row.share for row in twins.rows])
    errors = np.array([row.share_se for row in twins.rows])
    assert np.all(np.abs(shares - exact) <= 4 * errors + 1e-12)
    true = [row.true_risk for row in twins.rows]
    assert true[twins.best().iteration] <= 1.05 * min(true)


def test_twins_in_a_loop_are_twins_trained_afterwards() -> None:
    y = np.sin(3 * np.linspace(-1, 1, 60)) + 0.5 * RNG.normal(size=60)
    afterwards = measure_memorization(descent, y, 0.5, probes=2, seed=3)
    beside = Twins(torch.as_tensor(y), torch.tensor(0.5), probes=2, seed=3)
    histories = [torch.as_tensor(descent(labels)) for labels in (y, *beside.labels)]
    for t, (fit, *twins) in enumerate(zip(*histories, strict=True)):
        beside.record(t, fit.requires_grad_(), twins)
    assert np.allclose(beside.rows, afterwards.rows, equal_nan=True, rtol=1e-12, atol=0)


def test_chosen_iterations_and_words() -> None:
    y = RNG.normal(size=60)
    twins = measure_memorization(
        lambda labels: descent(labels)[::100], y, 0.5, iterations=[0, 100, 200]
    )
    assert [row.iteration for row in twins.rows] == [0, 100, 200]
    assert "memorized 0.0 % of the noise (95 % interval" in str(twins.rows[0])


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="differ in shape"):
        memorized_share(CLEAN[:3], CLEAN, CLEAN)
    with pytest.raises(ValueError, match="no noise"):
        memorized_share(CLEAN, CLEAN, CLEAN)
    with pytest.raises(ValueError, match="width must be positive"):
        memorized_map(CLEAN, CLEAN, CLEAN + NOISE, width=0)
    with pytest.raises(ValueError, match="fit and noisy differ"):
        share_from_misfit(CLEAN[:3], CLEAN, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sigma": 0.0}, "sigma must be"),
        ({"sigma": -1.0}, "sigma must be"),
        ({"sigma": [1.0, 2.0]}, "does not broadcast"),
        ({"probes": 0}, "probes must be at least 1"),
        ({"tau": 0.0}, "tau must be a positive"),
        ({"clean": [1.0]}, r"clean \(1,\)"),
    ],
)
def test_bad_options_of_twins(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Twins(NOISE, **{"sigma": 1.0, **options})


def test_labels_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="labels has entries that are NaN"):
        Twins([1.0, math.nan, 2.0], sigma=0.1)


def test_maps_have_two_dimensions_at_most() -> None:
    with pytest.raises(ValueError, match=r"shape \(4, 4, 4, 1\)"):
        memorized_map(np.ones((4, 4, 4, 1)), np.zeros((4, 4, 4, 1)), np.ones((4, 4, 4, 1)))


def test_twins_of_16_bit_fits() -> None:
    twins = Twins(torch.ones(4, dtype=torch.bfloat16), sigma=0.5)
    fits = [torch.ones(4, dtype=torch.bfloat16, requires_grad=True)] * 2
    assert twins.record(1, fits[0], fits[1:]).share == 0


def test_bad_fits_are_refused() -> None:
    twins = Twins(NOISE, 1.0)
    with pytest.raises(ValueError, match="2 fits for 1 twins"):
        twins.record(0, NOISE, [NOISE, NOISE])
    with pytest.raises(ValueError, match="shape"):
        twins.record(0, NOISE, [NOISE[:3]])
    with pytest.raises(FloatingPointError, match="at 7"):
        twins.record(7, NOISE, [np.nan * NOISE])
    with pytest.raises(ValueError, match="Nothing has been recorded"):
        twins.best()
    with pytest.raises(ValueError, match="return the fit"):
        measure_memorization(lambda labels: labels[:3], NOISE, 1.0)
    with pytest.raises(ValueError, match="for 2 moments"):
        measure_memorization(lambda labels: labels, NOISE, 1.0, iterations=[0, 5])


@pytest.mark.parametrize(
    ("share", "error", "is_measurable"), [(0.2, 0.4, True), (0.2, 0.7, False), (-10.81, 0.1, False)]
)
def test_a_share_whose_interval_goes_far_beyond_0_to_1_is_no_result(
    share: float, error: float, is_measurable: bool
) -> None:
    row = Memorization(1, share, 0.1, error, 1.0, 0.5, 0.1, math.nan, math.nan)
    assert row.is_measurable == is_measurable
    assert ("memorized 20.0 % of the noise" in str(row)) == is_measurable
    assert ("not measurable with so few data" in str(row)) != is_measurable
