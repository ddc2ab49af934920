import numpy as np
import pytest

from sciml_snr.memorization import memorized_share

RNG = np.random.default_rng(0)
CLEAN, NOISE = RNG.normal(size=(2, 200, 1))


def test_truth_and_interpolation() -> None:
    assert memorized_share(CLEAN, CLEAN, CLEAN + NOISE) == 0
    assert memorized_share(CLEAN + NOISE, CLEAN, CLEAN + NOISE) == pytest.approx(1)
    assert memorized_share(CLEAN + 0.3 * NOISE, CLEAN, CLEAN + NOISE) == pytest.approx(0.3)


def test_error_orthogonal_to_the_noise_does_not_count() -> None:
    error = RNG.normal(size=NOISE.shape)
    error -= NOISE * (error * NOISE).sum() / (NOISE**2).sum()
    share = memorized_share(CLEAN + 0.3 * NOISE + error, CLEAN, CLEAN + NOISE)
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


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="differ in shape"):
        memorized_share(CLEAN[:3], CLEAN, CLEAN)
    with pytest.raises(ValueError, match="no noise"):
        memorized_share(CLEAN, CLEAN, CLEAN)
