"""The gates as pure functions: hand-computed values, a naive reference, and what holds for all."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from sciml_snr import Gate
from sciml_snr.gate import (
    BESIDE_EXACT,
    DATA_ALONE,
    FORMS,
    STREAM,
    overrides,
    resolve_alpha,
    rise,
)
from tests.cases import GATED, through_a_file

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
    "hard": lambda m2, s, a, lam: 1.0 if m2 > a * s else 0.0,
    "soft": lambda m2, s, a, lam: max(m2 - a * s, 0) / (max(m2 - a * s, 0) + lam * s),
    "snr": lambda m2, s, a, lam: m2 / (m2 + a * lam * s),
    "stein": lambda m2, s, a, lam: max(m2 - a * s, 0) / (max(m2 - a * s, 0) + a * s),
}


def gate(name, mean_sq, floor, alpha, lambd):
    return Gate(name, alpha=alpha, lambd=lambd)(mean_sq, floor)


def pairs(dtype=torch.float64, scale: float = 1.0):
    """mean_sq and floor, (7, 11) each, over eight decades."""
    rng = torch.Generator().manual_seed(0)
    exponents = torch.rand(2, 7, 11, generator=rng, dtype=torch.float64) * 8 - 4
    return (scale * 10**exponents).to(dtype)


@pytest.mark.parametrize(("pair", "alpha", "lambd", "q"), BY_HAND)
def test_values_by_hand(pair, alpha, lambd, q):
    mean_sq, floor = torch.tensor(pair, dtype=torch.float64)
    actual = [gate(name, mean_sq, floor, alpha, lambd).item() for name in GATED]
    assert actual == pytest.approx(q, rel=1e-14)


@pytest.mark.parametrize("name", GATED)
@pytest.mark.parametrize(("alpha", "lambd"), [(1.0, 1.0), (0.3, 2.0)])
def test_matches_naive(name, alpha, lambd):
    mean_sq, floor = pairs()
    q = gate(name, mean_sq, floor, alpha, lambd)
    for actual, m2, s in zip(q.flatten(), mean_sq.flatten(), floor.flatten(), strict=True):
        expected = NAIVE[name](m2.item(), s.item(), alpha, lambd)
        assert actual.item() == pytest.approx(expected, rel=1e-13)


def test_stein_shrinks_as_james_and_stein():
    mean_sq, floor = pairs()
    q = gate("stein", mean_sq, floor, 2.0, 7.0)
    torch.testing.assert_close(q, (1 - 2 * floor / mean_sq).clamp_min(0))


def test_none_is_open_everywhere():
    mean_sq, floor = pairs()
    assert (gate("none", mean_sq, floor, 1.0, 1.0) == 1).all()


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_is_pure_and_within_bounds(name, dtype):
    mean_sq, floor = pairs(dtype)
    before = mean_sq.clone(), floor.clone()
    q = gate(name, mean_sq, floor, 1.0, 1.0)
    assert q.shape == mean_sq.shape
    assert q.dtype == dtype
    assert ((q >= 0) & (q <= 1)).all()
    assert torch.equal(mean_sq, before[0])
    assert torch.equal(floor, before[1])


@pytest.mark.parametrize("name", GATED)
def test_opens_with_the_signal_and_closes_with_the_floor(name):
    mean_sq, floor = pairs()
    q = gate(name, mean_sq, floor, 1.0, 1.0)
    louder, noisier = (gate(name, a * mean_sq, b * floor, 1.0, 1.0) for a, b in [(3, 1), (1, 3)])
    assert (louder >= q).all()
    assert (louder > q).any()
    assert (noisier <= q).all()
    assert (noisier < q).any()


@pytest.mark.parametrize("name", GATED)
def test_stricter_with_alpha(name):
    mean_sq, floor = pairs()
    q = [gate(name, mean_sq, floor, alpha, 1.0).mean() for alpha in (0.1, 1.0, 10.0)]
    assert q[0] > q[1] > q[2]


@pytest.mark.parametrize("name", GATED)
@pytest.mark.parametrize("scale", [2.0**-40, 2.0**40])
def test_scale_of_the_loss_does_not_matter(name, scale):
    q, scaled = gate(name, *pairs(), 1.0, 1.0), gate(name, *pairs(scale=scale), 1.0, 1.0)
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


# The threshold that rises ----------------------------------------------------------------------


@pytest.mark.parametrize("step", [0, 1, 300, 10_000])
def test_what_passes_by_chance_falls_with_the_steps(step):
    """exp(-z^2 / 2), the leading part of a normal deviate's tail, times 1 + step / 300."""
    z_squared = DATA_ALONE.z**2 * rise(step, DATA_ALONE.rise_steps)
    assert math.exp(-z_squared / 2) * (1 + step / 300) == pytest.approx(math.exp(-2))


def test_rise_by_hand():
    assert rise(0, 7) == 1
    assert rise(7, 7) == pytest.approx(1.3466, abs=1e-4)  # by a third


# A gate with its threshold ----------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMS)
def test_a_gate_applies_its_form_at_its_threshold(name):
    mean_sq, floor = pairs()
    q = Gate(name, alpha=0.3, lambd=2.0)(mean_sq, floor)
    torch.testing.assert_close(q, gate(name, mean_sq, floor, 0.3, 2.0), rtol=0, atol=0)
    in_errors = Gate(name, z=1.5, alpha=7.0, lambd=2.0)(mean_sq, floor)
    expected = gate(name, mean_sq, floor, 2.25, 2.0)
    torch.testing.assert_close(in_errors, expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", GATED)
@pytest.mark.parametrize("pair", [(math.inf, 1.0), (math.inf, math.inf), (math.nan, 1.0)])
def test_where_squares_leave_the_dtype_a_gate_is_no_nan(name, pair):
    mean_sq, floor = (torch.tensor([value]) for value in pair)
    q = Gate(name)(mean_sq, floor).item()
    assert q == (1.0 if pair == (math.inf, 1.0) else 0.0)


def test_the_gates_that_go_with_the_loss():
    """The published one, and those for data alone and beside exact terms."""
    assert Gate("soft", alpha=1.0, lambd=1.0) == STREAM
    assert Gate("stein", z=2.0, rise_steps=300, discrepancy=True) == DATA_ALONE
    assert {
        "own": Gate("stein", z=1.0, follow=True),
        "eigen": Gate("stein", z=1.5, follow=True),
    } == BESIDE_EXACT
    assert not any(gate.warmup_steps for gate in (STREAM, DATA_ALONE, *BESIDE_EXACT.values()))


NONSENSE = [
    ("form", "sotf"),
    ("form", None),
    ("z", -1.0),
    ("z", math.nan),
    ("z", math.inf),
    ("z", "3"),
    ("z", True),
    ("alpha", -1.0),
    ("alpha", math.nan),
    ("alpha", None),
    ("alpha", "fresh"),
    ("lambd", -1.0),
    ("lambd", math.inf),
    ("warmup_steps", -1),
    ("warmup_steps", 1.5),
    ("warmup_steps", True),
    ("rise_steps", -1),
    ("rise_steps", 2.5),
    ("discrepancy", 1),
    ("discrepancy", "yes"),
    ("follow", None),
]


@pytest.mark.parametrize(("name", "value"), NONSENSE)
def test_nonsense_is_refused_by_name(name, value):
    called = "gate" if name == "form" else name
    with pytest.raises(ValueError, match=f"Invalid {called}"):
        Gate(**{name: value})
    with pytest.raises(ValueError, match=f"Invalid {called}"):
        Gate().replace({name: value})
    with pytest.raises(ValueError, match=f"Invalid {called}"):
        overrides({name: value})


def test_a_gate_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Gate().z = 3.0


def test_some_fields_are_replaced():
    gate = Gate("stein", z=2.0, rise_steps=300, discrepancy=True)
    assert gate.replace({}) == gate
    changed = gate.replace({"form": "hard", "rise_steps": 0})
    assert changed == Gate("hard", z=2.0, discrepancy=True)
    assert gate.replace({"alpha": 9.0}) == dataclasses.replace(gate, alpha=9.0, z=None)
    assert gate.replace({"alpha": 9.0, "z": 1.0}) == dataclasses.replace(gate, alpha=9.0, z=1.0)


def test_a_field_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match=r"no gate option 'rho'.*form, z, alpha"):
        Gate().replace({"rho": 0.9})
    with pytest.raises(ValueError, match="no gate option 'gate_eps'"):
        overrides({"gate_eps": 1e-30})


def test_what_users_give_becomes_plain_changes():
    gate = Gate("hard", z=1.0, warmup_steps=3)
    assert overrides(None) is None
    assert overrides("hard") == {"form": "hard"}
    assert overrides({"z": 3.0}) == {"z": 3.0}
    assert DATA_ALONE.replace(overrides(gate)) == gate
    for given in (gate, {"z": 3.0}, "none"):
        assert through_a_file(overrides(given)) == overrides(given)


@pytest.mark.parametrize("given", [3.0, ["soft"], Gate])
def test_what_is_no_gate_is_refused(given):
    with pytest.raises(TypeError, match=r"gate must be a name, a sciml_snr\.Gate"):
        overrides(given)


@pytest.mark.parametrize("number", [np.float32(2.0), np.float64(2.0), np.int64(2)])
def test_numbers_of_numpy_are_numbers(number):
    assert overrides({"z": number}) == {"z": 2.0}
    mean_sq, floor = pairs()
    assert torch.equal(Gate(z=number)(mean_sq, floor), Gate(z=2.0)(mean_sq, floor))
