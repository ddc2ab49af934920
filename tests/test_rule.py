"""The rule as pure functions: by hand, against loops over numbers, and what holds for all."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sciml_snr import Gate
from sciml_snr.gate import rise
from sciml_snr.rule import (
    Closed,
    Moments,
    averaged_share,
    denominator,
    displacement,
    openness,
    update_floor,
    update_moments,
)
from sciml_snr.rule import (
    follow as follow_closed,
)


def vector(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def moments(mean, square, floor, **options) -> Moments:
    """With steps = 2, betas = 1/2, rho = 1/2 after 2 draws: all corrections are 4/3."""
    given = {
        "step": 2.0,
        "floor_weight": 0.75,
        "is_stream": False,
        "gate": Gate("stein", z=1.0),
        "betas": (0.5, 0.5),
        "lr": 0.1,
        "eps": 0.0,
        **options,
    }
    return Moments(mean, square, floor, **given)


# Averages ---------------------------------------------------------------------------------------


def test_moments_take_up_a_gradient():
    mean, square = vector(1.0, -2.0), vector(4.0, 1.0)
    update_moments(mean, square, vector(3.0, 0.0), (0.75, 0.5))
    torch.testing.assert_close(mean, vector(1.5, -1.5))
    torch.testing.assert_close(square, vector(6.5, 0.5))


def test_a_floor_takes_up_a_draw():
    average = vector(1.0, 0.0)
    update_floor(average, vector(-3.0, 2.0), 0.75)
    torch.testing.assert_close(average, vector(0.75 + 9 / 4, 1.0))


def test_what_the_first_moment_leaves():
    """Of noise that is the same in every step all; of fresh noise (1 - b) / (1 + b)."""
    assert averaged_share(1.0, 0.9) == 1
    assert averaged_share(0.0, 0.9) == pytest.approx(1 / 19)
    assert averaged_share(0.25, 0.5) == pytest.approx(1 / 4 + 3 / 4 / 3)
    assert averaged_share(0.0, 0.0) == 1


# Openness and move ------------------------------------------------------------------------------


def test_one_move_by_hand():
    # m_hat = 3/4 * 4/3 = 1, v_hat = 3 * 4/3 = 4, floor = 3/16 * 4/3 = 1/4: q = 1 - 1/4
    found = moments(vector(0.75, -0.75), vector(3.0, 3.0), vector(3 / 16, 3.0))
    q = openness(found)
    torch.testing.assert_close(q, vector(0.75, 0.0))
    torch.testing.assert_close(denominator(found), vector(2.0, 2.0))
    torch.testing.assert_close(displacement(found, q), vector(-0.1 * 0.75 / 2, 0.0))
    torch.testing.assert_close(displacement(found, None), vector(-0.05, 0.05))


def test_eps_is_added_to_the_root():
    found = moments(vector(0.75), vector(3.0), None, eps=0.5)
    torch.testing.assert_close(denominator(found), vector(2.5))


def test_standard_errors_of_a_stream_are_what_the_first_moment_leaves():
    """(1 - beta1) / 2 of it; of a label floor all."""
    parts = vector(0.75), vector(1.0), vector(0.375)  # m_hat^2 = 1, floor 1/2
    of_label = moments(*parts, gate=Gate("stein", z=1.0))
    of_stream = moments(*parts, gate=Gate("stein", z=1.0), is_stream=True)
    published = moments(*parts, gate=Gate("stein", alpha=1.0), is_stream=True)
    found = [openness(m).item() for m in (of_label, of_stream, published)]
    assert found == pytest.approx([1 / 2, 1 - 1 / 8, 1 / 2])


def test_the_threshold_rises():
    parts = vector(0.75), vector(1.0), vector(0.375)
    found = openness(moments(*parts, gate=Gate("stein", z=1.0, rise_steps=2))).item()
    assert found == pytest.approx(1 - rise(2, 2) / 2)


def test_what_the_residuals_open_is_open():
    """q + (1 - q) e."""
    parts = vector(0.75, -0.75), vector(3.0, 3.0), vector(3 / 16, 3.0)
    excess = 0.25
    torch.testing.assert_close(
        openness(moments(*parts, excess=excess)), vector(0.75 + 0.25 / 4, 0.25)
    )
    torch.testing.assert_close(openness(moments(*parts, excess=0.0)), vector(0.75, 0.0))


@pytest.mark.parametrize(
    "options", [{"gate": Gate("none")}, {"gate": Gate(warmup_steps=2)}, {"floor": None}]
)
def test_where_no_gate_acts_it_is_open(options):
    floor = options.pop("floor", vector(1.0))
    found = moments(vector(0.75), vector(1.0), floor, **options)
    assert not found.is_gated
    assert openness(found) is None


def test_warm_up_ends():
    assert moments(vector(1.0), vector(1.0), vector(1.0), gate=Gate(warmup_steps=1)).is_gated


# What the gate closes follows the exact terms ------------------------------------------------


def follow_by_hand(parts):
    """The module's formulas, number by number."""
    closed = []
    for own, q, noisy in parts:
        correction = 1 - own.betas[0] ** own.step
        for m, v, share, d in zip(
            own.mean.tolist(), own.square.tolist(), q.tolist(), noisy.tolist(), strict=True
        ):
            v_hat = v / (1 - own.betas[1] ** own.step)
            scale = own.lr * (1 - share) / (math.sqrt(v_hat) + own.eps)
            longest = own.lr * max(1.0, (1 - own.betas[0]) / math.sqrt(1 - own.betas[1]))
            closed.append((scale, (m - d) / correction, d / correction, longest))
    across = sum(s * x * d for s, x, d, _ in closed)
    along = sum(s * d * d for s, _, d, _ in closed)
    moves = [s * (x - across / along * d) for s, x, d, _ in closed]
    limits = [longest for *_, longest in closed]
    shorter = min(limit / max(limit, abs(move)) for move, limit in zip(moves, limits, strict=True))
    return [-shorter * move for move in moves]


def follow(parts):
    """``rule.follow`` of moments, q and the noisy terms' share, each."""
    closed = [
        Closed(own.step_size * (1 - q) / denominator(own), own.mean, noisy, own)
        for own, q, noisy in parts
    ]
    vectors, factor = follow_closed(closed)
    return [factor * vector for vector in vectors]


def several(seed: int, size: float = 1.0, agree: float = 1.0):
    """Two parts with learning rates and decay rates of their own; exact terms and noisy ones."""
    rng = torch.Generator().manual_seed(seed)
    parts = []
    for lr, betas in ((0.01, (0.8, 0.95)), (3e-3, (0.9, 0.999))):
        exact = torch.randn(4, generator=rng, dtype=torch.float64) + 1
        noisy = agree * exact * torch.rand(4, generator=rng, dtype=torch.float64)
        square = size * torch.rand(4, generator=rng, dtype=torch.float64)
        q = torch.rand(4, generator=rng, dtype=torch.float64).mul(2).clamp_max(1)
        own = moments(exact + noisy, square, None, lr=lr, betas=betas, step=7.0, eps=1e-3)
        parts.append((own, q, noisy))
    return parts


@pytest.mark.parametrize("size", [1e-4, 1.0, 1e3], ids=["cut", "mixed", "whole"])
@pytest.mark.parametrize("agree", [1.0, -1.0, -0.3])
def test_follow_by_hand(size, agree):
    for seed in range(5):
        parts = several(seed, size, agree)
        found = torch.cat(follow(parts)).tolist()
        assert found == pytest.approx(follow_by_hand(parts), rel=1e-10, abs=1e-14)


def test_following_leaves_the_noisy_loss():
    """To first order: the whole move is orthogonal to the noisy gradient, no part of it alone."""
    for seed in range(5):
        parts = several(seed, agree=-1.0)
        changes = [
            float(move.dot(noisy)) / (1 - own.betas[0] ** own.step)
            for move, (own, _, noisy) in zip(follow(parts), parts, strict=True)
        ]
        assert abs(sum(changes)) < 1e-10 * abs(changes[0])


def test_following_goes_down_the_exact_loss():
    for seed in range(5):
        for agree in (-1.0, 0.5):
            parts = several(seed, agree=agree)
            slope = sum(
                float(move.dot(own.mean - noisy)) / (1 - own.betas[0] ** own.step)
                for move, (own, _, noisy) in zip(follow(parts), parts, strict=True)
            )
            assert slope < 0


def test_no_entry_goes_farther_than_in_adams_longest_step():
    moves, parts = follow(several(0, 1e-6)), several(0, 1e-6)
    limits = [
        own.lr * max(1.0, (1 - own.betas[0]) / math.sqrt(1 - own.betas[1])) for own, *_ in parts
    ]
    reached = [float(move.abs().max()) / limit for move, limit in zip(moves, limits, strict=True)]
    assert max(reached) == pytest.approx(1)


def test_what_is_open_has_nothing_to_follow():
    parts = [(own, torch.ones_like(q), noisy) for own, q, noisy in several(0)]
    assert not torch.cat(follow(parts)).any()
    assert follow([]) == []


def test_without_noisy_terms_the_closed_entries_take_adams_step():
    parts = [(own, torch.zeros_like(q), 0 * noisy) for own, q, noisy in several(0, 1e3)]
    for move, (own, *_) in zip(follow(parts), parts, strict=True):
        torch.testing.assert_close(move, displacement(own, None))
