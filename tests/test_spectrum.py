"""Eigenvectors that count, beside all of them."""

import math

import pytest
import torch

from sciml_snr.jacobian import System
from sciml_snr.spectrum import BLOCK, MAX_RANK, Exact, truncated
from sciml_snr.step_size import check_size, estimate
from sciml_snr.tangent import Tangent


def jacobian(seed=0, rows=300, weights=500, decay=0.08, dtype=torch.float64):
    """Singular values that fall as a network's do, by exp(-decay k)."""
    rng = torch.Generator().manual_seed(seed)
    left, right = (
        torch.linalg.qr(torch.randn(n, rows, generator=rng, dtype=torch.float64))[0]
        for n in (rows, weights)
    )
    singular = torch.exp(-decay * torch.arange(rows, dtype=torch.float64))
    return ((left * singular) @ right.T).to(dtype)


def kernel_of(spectrum):
    return (spectrum.basis * spectrum.values) @ spectrum.basis.T


@pytest.mark.parametrize("left_out", [1e-2, 1e-4, 1e-8])
def test_the_kernels_error_is_within_the_trace_that_is_left_out(left_out):
    j = jacobian()
    found = truncated(j, left_out)
    missing = j @ j.T - kernel_of(found)
    assert torch.linalg.eigvalsh(missing)[0] > -1e-12  # nothing is there that should not be
    assert torch.linalg.matrix_norm(missing, 2) <= missing.trace() <= 1.5 * left_out
    assert found.left_out <= left_out and len(found.values) < 300


def test_what_is_left_out_is_estimated_without_bias():
    """The sketch has 16 directions: the ratio's mean over 40 matrices within four errors of 1."""
    ratios = []
    for seed in range(40):
        j = jacobian(seed, rows=200, weights=220, decay=0.03)
        found = truncated(j, 1e-3)
        ratios.append(found.left_out / float((j @ j.T).trace() - found.values.sum()))
    mean = sum(ratios) / len(ratios)
    spread = math.sqrt(sum((r - mean) ** 2 for r in ratios) / (len(ratios) - 1))
    assert abs(mean - 1) < 4 * spread / math.sqrt(len(ratios)) + 0.05


def test_maps_are_those_of_all_eigenvectors():
    j = jacobian(rows=60, decay=0.02)
    rng = torch.Generator().manual_seed(1)
    step = torch.randn(500, 3, generator=rng, dtype=torch.float64)
    rows = torch.randn(60, generator=rng, dtype=torch.float64)
    some, every = truncated(j, 0.0), Exact(j)
    torch.testing.assert_close(some.values, every.values, rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(some.pushed(step), j @ step)
    torch.testing.assert_close(some.pushed(step[:, 0]), j @ step[:, 0])
    for one in (some, every):
        torch.testing.assert_close(one.pulled(one.basis.T @ rows), j.T @ rows)


@pytest.mark.parametrize("gate", ["monotone", "stein"])
def test_gated_steps_agree_with_the_exact_ones(gate):
    j = jacobian(seed=3, decay=0.05)
    rng = torch.Generator().manual_seed(2)
    rows = torch.randn(300, generator=rng, dtype=torch.float64)
    rows += j @ torch.randn(500, generator=rng, dtype=torch.float64)
    noisy = (torch.arange(300) < 200).double()
    mu = 1e-3
    system = System(rows, noisy, j)
    exact = Tangent(system, 1.25, gate, True)
    expected = exact.step(mu)[0]
    errors = []
    for left_out in (0.1, 1e-4):
        some = Tangent(system, 1.25, gate, True, left_out * mu)
        change = exact.fitted(some.step(mu)[0] - expected)
        errors.append(float(change.norm() / exact.fitted(expected).norm()))
    assert errors[0] < 0.05 and errors[1] < 1e-3


def test_in_float32_it_is_more_precise_than_a_kernel_that_is_multiplied():
    j = jacobian(rows=400, decay=0.06)
    rows = torch.randn(400, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mu = 1e-7
    expected = torch.linalg.solve(j @ j.T + mu * torch.eye(400, dtype=torch.float64), rows)
    errors = []
    for one in (truncated(j.float(), 0.1 * mu), Exact(j.float())):
        step = one.pulled(one.basis.T @ rows / (one.values + mu))
        errors.append(float((j @ (step - j.T @ expected)).norm() / rows.norm()))
    assert errors[0] < 0.1 * errors[1]


def test_the_same_rows_give_the_same_bits():
    j = jacobian(dtype=torch.float32)
    first, again = truncated(j, 1e-3), truncated(j.clone(), 1e-3)
    assert torch.equal(first.basis, again.basis) and torch.equal(first.values, again.values)


def test_limits():
    j = jacobian(decay=0.0)
    assert len(truncated(j, 0.0, max_rank=10).values) <= 10 + BLOCK
    nothing = truncated(torch.zeros(4, 3), 0.0)
    assert len(nothing.values) == 0 and nothing.left_out == 0
    assert nothing.pulled(torch.zeros(0, dtype=torch.float64)).tolist() == [0.0] * 3
    for wrong in (math.nan, math.inf):
        with pytest.raises(FloatingPointError):
            truncated(torch.full((4, 3), wrong), 0.0)
        with pytest.raises(FloatingPointError):
            Exact(torch.full((4, 3), wrong))


def test_twenty_thousand_rows_are_taken_and_more_refused_with_their_size():
    memory, seconds = estimate(20_000, 8577)
    assert 1.5 < memory < 4 and 1 < seconds < 60
    check_size(20_000, 8577)
    with pytest.raises(ValueError, match=r"50000 residual rows .* 8577 .* about 6.3 GB and 13 sec"):
        check_size(50_000, 8577)
    check_size(50_000, 8577, gigabytes=7.0)
    assert estimate(20_000, 8577, itemsize=8)[0] > memory and MAX_RANK >= 1000
