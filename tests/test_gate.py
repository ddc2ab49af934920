"""The gates as pure functions: hand-computed values, a naive reference, and what holds for all."""

from __future__ import annotations

import math

import pytest
import torch

from sciml_snr.gate import GATES, LABEL_GATE, resolve_alpha, rise
from tests.cases import GATED

# (mean_sq, floor), alpha, lambda -> q of hard, soft, snr, stein, worked out by hand
BY_HAND = [
    # 4 > 1;  d = 4 - 1 = 3, q = 3 / (3 + 1);  q = 4 / (4 + 1);  q = 1 - 1 / 4
    ((4.0, 1.0), 1.0, 1.0, (1.0, 3 / 4, 4 / 5, 3 / 4)),
    # 4 > 2;  d = 4 - 2 = 2, q = 2 / (2 + 3);  q = 4 / (4 + 2 * 3);  q = 1 - 2 / 4
    ((4.0, 1.0), 2.0, 3.0, (1.0, 2 / 5, 2 / 5, 1 / 2)),
    # 4 < 1/2 * 10; d = 0;  q = 4 / (4 + 1/2 * 10 * 2);  0
    ((4.0, 10.0), 0.5, 2.0, (0.0, 0.0, 4 / 14, 0.0)),
    # on the threshold the gates are closed; snr is half open
    ((4.0, 4.0), 1.0, 1.0, (0.0, 0.0, 1 / 2, 0.0)),
    # no floor: open
    ((4.0, 0.0), 1.0, 1.0, (1.0, 1.0, 1.0, 1.0)),
    # no gradient: closed, with or without floor
    ((0.0, 1.0), 1.0, 1.0, (0.0, 0.0, 0.0, 0.0)),
    ((0.0, 0.0), 1.0, 1.0, (0.0, 0.0, 0.0, 0.0)),
    # all noise
    ((4.0, math.inf), 1.0, 1.0, (0.0, 0.0, 0.0, 0.0)),
    # alpha = 0 switches hard, snr and stein open, soft then is m^2 / (m^2 + lambda s)
    ((4.0, 1.0), 0.0, 4.0, (1.0, 1 / 2, 1.0, 1.0)),
]

NAIVE = {
    "hard": lambda m2, s, a, lam, eps: 1.0 if m2 > a * s else 0.0,
    "soft": lambda m2, s, a, lam, eps: max(m2 - a * s, 0) / (max(m2 - a * s, 0) + lam * s + eps),
    "snr": lambda m2, s, a, lam, eps: m2 / (m2 + a * lam * s + eps),
    "stein": lambda m2, s, a, lam, eps: max(m2 - a * s, 0) / (max(m2 - a * s, 0) + a * s + eps),
}


def pairs(dtype=torch.float64, scale: float = 1.0):
    """mean_sq and floor, (7, 11) each, over eight decades."""
    rng = torch.Generator().manual_seed(0)
    exponents = torch.rand(2, 7, 11, generator=rng, dtype=torch.float64) * 8 - 4
    return (scale * 10**exponents).to(dtype)


@pytest.mark.parametrize(("pair", "alpha", "lambd", "q"), BY_HAND)
def test_values_by_hand(pair, alpha, lambd, q):
    mean_sq, floor = torch.tensor(pair, dtype=torch.float64)
    actual = [GATES[name](mean_sq, floor, alpha, lambd, 1e-30).item() for name in GATED]
    assert actual == pytest.approx(q, rel=1e-14)


@pytest.mark.parametrize("name", GATED)
@pytest.mark.parametrize(("alpha", "lambd", "eps"), [(1.0, 1.0, 1e-30), (0.3, 2.0, 1e-2)])
def test_matches_naive(name, alpha, lambd, eps):
    mean_sq, floor = pairs()
    q = GATES[name](mean_sq, floor, alpha, lambd, eps)
    for actual, m2, s in zip(q.flatten(), mean_sq.flatten(), floor.flatten(), strict=True):
        expected = NAIVE[name](m2.item(), s.item(), alpha, lambd, eps)
        assert actual.item() == pytest.approx(expected, rel=1e-13)


def test_stein_shrinks_as_james_and_stein():
    mean_sq, floor = pairs()
    q = GATES["stein"](mean_sq, floor, 2.0, 7.0, 1e-30)
    torch.testing.assert_close(q, (1 - 2 * floor / mean_sq).clamp_min(0))


def test_none_is_open_everywhere():
    mean_sq, floor = pairs()
    assert (GATES["none"](mean_sq, floor, 1.0, 1.0, 1e-30) == 1).all()


@pytest.mark.parametrize("name", GATES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_is_pure_and_within_bounds(name, dtype):
    mean_sq, floor = pairs(dtype)
    before = mean_sq.clone(), floor.clone()
    q = GATES[name](mean_sq, floor, 1.0, 1.0, 1e-30)
    assert q.shape == mean_sq.shape
    assert q.dtype == dtype
    assert ((q >= 0) & (q <= 1)).all()
    assert torch.equal(mean_sq, before[0])
    assert torch.equal(floor, before[1])


@pytest.mark.parametrize("name", GATED)
def test_opens_with_the_signal_and_closes_with_the_floor(name):
    gate, (mean_sq, floor) = GATES[name], pairs()
    q = gate(mean_sq, floor, 1.0, 1.0, 1e-30)
    louder, noisier = (gate(a * mean_sq, b * floor, 1.0, 1.0, 1e-30) for a, b in [(3, 1), (1, 3)])
    assert (louder >= q).all()
    assert (louder > q).any()
    assert (noisier <= q).all()
    assert (noisier < q).any()


@pytest.mark.parametrize("name", GATED)
def test_stricter_with_alpha(name):
    gate, (mean_sq, floor) = GATES[name], pairs()
    q = [gate(mean_sq, floor, alpha, 1.0, 1e-30).mean() for alpha in (0.1, 1.0, 10.0)]
    assert q[0] > q[1] > q[2]


@pytest.mark.parametrize("name", GATED)
@pytest.mark.parametrize("scale", [2.0**-40, 2.0**40])
def test_scale_of_the_loss_does_not_matter(name, scale):
    gate = GATES[name]
    q, scaled = gate(*pairs(), 1.0, 1.0, 1e-30), gate(*pairs(scale=scale), 1.0, 1.0, 1e-30)
    torch.testing.assert_close(scaled, q, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("alpha", "b", "n", "expected"),
    [
        ("fresh", None, None, 1.0),
        ("fresh", 10, 100, 1.0),
        ("finite", 10, 100, 1 / 9),
        ("finite", 1, 2, 1.0),
        ("finite", 99, 100, 99.0),
        (0, None, None, 0.0),
        (2.5, 10, 100, 2.5),
    ],
)
def test_alpha_as_a_number(alpha, b, n, expected):
    resolved = resolve_alpha(alpha, b, n)
    assert isinstance(resolved, float)
    assert resolved == expected


@pytest.mark.parametrize("alpha", ["fesh", "1", "", -1, -1e-9, math.nan, math.inf, None])
def test_alpha_must_make_sense(alpha):
    with pytest.raises(ValueError, match="alpha must be"):
        resolve_alpha(alpha)


@pytest.mark.parametrize("sizes", [(None, None), (10, None), (None, 100)])
def test_finite_alpha_asks_for_both_sizes(sizes):
    with pytest.raises(ValueError, match=r"give batch_size .* and data_size"):
        resolve_alpha("finite", *sizes)


@pytest.mark.parametrize("sizes", [(100, 100), (101, 100), (0, 100), (-1, 100)])
def test_finite_alpha_needs_a_batch_smaller_than_the_data(sizes):
    with pytest.raises(ValueError, match="1 <= batch_size < data_size"):
        resolve_alpha("finite", *sizes)


# The threshold that rises


@pytest.mark.parametrize("step", [0, 1, 300, 10_000])
def test_what_passes_by_chance_falls_with_the_steps(step):
    """exp(-z^2 / 2), the leading part of a normal deviate's tail, times 1 + step / 300."""
    z_squared = LABEL_GATE["z"] ** 2 * rise(step, 300)
    assert math.exp(-z_squared / 2) * (1 + step / 300) == pytest.approx(math.exp(-2))


def test_rise_by_hand():
    assert rise(0, 7) == 1
    assert rise(7, 7) == pytest.approx(1.3466, abs=1e-4)  # by a third
