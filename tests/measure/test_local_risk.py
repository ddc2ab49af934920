"""Error bars by twins: on smoothers, whose errors are known."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from sciml_snr import Twins
from sciml_snr.measure.local_risk import LocalBars

SIDE = 64
AXIS = np.linspace(0, 1, SIDE)
POINTS = np.stack(np.meshgrid(AXIS, AXIS, indexing="ij"), -1).reshape(-1, 2)
SMOOTH = np.sin(4 * POINTS[:, 0])
ROUGH = SMOOTH + np.where(POINTS[:, 1] > 0.5, 0.5 * np.sin(60 * POINTS[:, 0]), 0)


def smoothed(values, width=1.5):
    return gaussian_filter(values.reshape(SIDE, SIDE), width).reshape(-1, 1)


def bars_of(truth, seed=0, sigma=0.3, **options):
    rng = np.random.default_rng(seed)
    values = truth[:, None] + sigma * rng.normal(size=(SIDE**2, 1))
    twins = Twins(values, sigma, seed=seed, **options)
    fit, fits = smoothed(values), [smoothed(labels) for labels in twins.labels]
    bars = LocalBars(POINTS, values, fit, np.array(sigma), twins, fits, lambda _: fit)
    return bars, fit[:, 0] - truth


@pytest.mark.parametrize("truth", [SMOOTH, ROUGH], ids=["smooth", "rough"])
def test_bands_hold_the_truth_as_often_as_they_say(truth):
    held = []
    for seed in range(10):
        bars, error = bars_of(truth, seed)
        held.append((np.abs(error) <= bars.quantile(0.9) * bars(POINTS)[:, 0]).mean())
    assert np.mean(held) == pytest.approx(0.9, abs=0.05)


def test_risk_is_the_mean_square_error():
    found = [bars_of(ROUGH, seed) for seed in range(10)]
    true = np.mean([(error**2).mean() for _, error in found]) / 0.3**2
    assert np.mean([bars.risk for bars, _ in found]) == pytest.approx(true, rel=0.1)


def test_bars_are_wide_where_the_fit_is_wrong():
    bars, error = bars_of(ROUGH)
    inside = (POINTS[:, 1] > 0.6) & (POINTS[:, 1] < 0.9)
    outside = (POINTS[:, 1] > 0.1) & (POINTS[:, 1] < 0.4)
    stated = bars(POINTS)[:, 0]
    for part in (inside, outside):
        true = np.sqrt((error[part] ** 2).mean())
        assert np.sqrt((stated[part] ** 2).mean()) == pytest.approx(true, rel=0.25)
    assert stated[inside].mean() > 1.5 * stated[outside].mean()


def test_bars_of_a_fit_that_is_wrong_nowhere_in_particular_are_flat():
    stated = np.stack([bars_of(SMOOTH, seed)[0](POINTS) for seed in range(5)])
    assert (stated > 1.5 * np.median(stated)).mean() < 0.07  # beyond two standard errors, by chance


def test_bars_between_samples_and_text():
    bars, _ = bars_of(SMOOTH, probes=2)
    low, high = bars.band(POINTS)
    assert (low < high).all()
    assert bars(np.array([[0.123, 0.456]])).shape == (1, 1)
    assert "memorized" in str(bars)
    with pytest.raises(ValueError, match=r"points must be \(k, 2\)"):
        bars(np.zeros((3, 3)))
    with pytest.raises(ValueError, match="between 0 and 1"):
        bars.band(POINTS, 95)
