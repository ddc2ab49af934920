"""What noisy losses leave for an optimizer between two of its steps."""

from __future__ import annotations

import copy
import gc
import math
import pickle
import random
import weakref
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from sciml_snr import SNRSOAP, NoisyLoss, NoisyTerm, SampledLoss, SNRAdam
from sciml_snr.handover import KEY, LOOK_EVERY, Facts
from tests.cases import (
    Told,
    assert_plain,
    assert_same_bits,
    batch,
    feed_noise,
    flat,
    gradients,
    network,
    noise_state,
    own_adam,
    parameters,
    snapshot,
    through_a_file,
)
from tests.loops import floors

OPTIMIZERS = pytest.mark.parametrize("cls", [own_adam, SNRSOAP], ids=["SNRAdam", "SNRSOAP"])


def physics(net: nn.Module, n: int = 8) -> Tensor:
    """The mean square of u_xx + u_yy inside."""
    x = batch(77, n, next(net.parameters()).dtype)[0].requires_grad_()
    (first,) = torch.autograd.grad(net(x).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x, create_graph=True)
    return second.square().mean()


def fit(net, optimizer, loss: Callable[[Tensor, Tensor], Tensor], steps: int, start: int = 0):
    """Steps start, ... of ``loss(net(x), y)`` on ``batch``."""
    dtype = next(net.parameters()).dtype
    for t in range(start, start + steps):
        x, y = batch(t, dtype=dtype)
        optimizer.zero_grad()
        loss(net(x), y).backward()
        optimizer.step()


def case(cls=own_adam, sigma: float = 0.1, seed: int = 0, **options):
    """A network, its noisy loss and its optimizer, with draws from the same seed."""
    net, data = network(seed=seed), NoisyLoss(sigma)
    torch.manual_seed(1)
    return net, data, cls(net.parameters(), lr=1e-2, noise=data, **options)


def values(net: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in net.parameters()]


# What other random numbers see ------------------------------------------------------------------


@pytest.mark.parametrize("kind", [lambda: NoisyLoss(0.1), SampledLoss], ids=["label", "sampling"])
@OPTIMIZERS
def test_declaring_noise_changes_no_other_random_number(cls, kind):
    np.random.seed(3)
    random.seed(3)
    torch.manual_seed(3)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    net, data = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1)), kind()
    after_net = torch.get_rng_state()
    optimizer = cls(net.parameters(), noise=data)
    fit(net, optimizer, lambda u, y: data(u, y) + physics(net), 5)
    assert not torch.equal(before[0], after_net)
    assert torch.equal(torch.get_rng_state(), after_net)
    assert np.random.get_state()[1].tolist() == before[1]
    assert random.getstate() == before[2]


def signs(seed: int = 1, steps: int = 40, losses: int = 1, which: int = 0) -> list[float]:
    """The sign of one draw per step: two data of equal size, which meet in the one parameter."""
    p = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    found = [NoisyLoss(1.0, reduction="sum") for _ in range(losses)]
    torch.manual_seed(seed)
    optimizer = SNRAdam([p], lr=0.0, rho=0.0, noise=found)
    drawn = []
    zero = torch.zeros(2, dtype=torch.float64)
    for _ in range(steps):
        optimizer.zero_grad()
        for k, loss in enumerate(found):
            (loss(p.expand(2), zero) * (1.0 if k == which else 0.0)).backward()
        optimizer.step()
        drawn.append(float(optimizer.moments(p).floor) > 0)  # the two signs agree
    return drawn


def test_the_seed_makes_the_draws_and_every_step_others():
    assert signs(seed=1) == signs(seed=1)
    assert signs(seed=1) != signs(seed=2)
    assert 0.25 < sum(signs(steps=100)) / 100 < 0.75


def test_losses_of_one_optimizer_have_draws_of_their_own():
    assert signs(losses=2, which=0) != signs(losses=2, which=1)


@OPTIMIZERS
def test_evaluation_is_no_backward_pass(cls):
    """Neither floor nor draws know of it."""
    found = []
    for evaluates in (False, True):
        net, data, optimizer = case(cls)
        for t in range(4):
            x, y = batch(t)
            optimizer.zero_grad()
            loss = data(net(x), y) + physics(net)
            if evaluates:
                with torch.no_grad():
                    data(net(batch(50)[0]), batch(50)[1])
            loss.backward()
            if evaluates:
                with torch.no_grad():
                    data(net(batch(51)[0]), batch(51)[1])
                data(net(batch(52)[0]), batch(52)[1])  # with gradients, and no backward
                with torch.inference_mode():
                    data(net(batch(53)[0]), batch(53)[1])
            optimizer.step()
        found.append((snapshot(optimizer), noise_state(optimizer)))
    assert_same_bits(*found)


@OPTIMIZERS
def test_a_look_at_gradients_is_no_backward_pass(cls):
    """``torch.autograd.grad`` of single terms, by which some choose loss weights."""
    found = []
    for looks in (False, True):
        net, data, optimizer = case(cls)
        params = list(net.parameters())
        for t in range(4):
            x, y = batch(t)
            optimizer.zero_grad()
            loss = data(net(x), y)
            if looks:
                torch.autograd.grad(loss, params, retain_graph=True)
            (loss + physics(net)).backward()
            optimizer.step()
        assert optimizer.beside_exact
        found.append((snapshot(optimizer), noise_state(optimizer)))
    assert_same_bits(*found)


def test_gradients_of_gradients_count_once():
    net, data, optimizer = case()
    x, y = batch(0)
    loss = data(net(x), y)
    first = torch.autograd.grad(loss, list(net.parameters()), create_graph=True)
    (loss + 0 * sum(g.square().sum() for g in first)).backward()
    optimizer.step()
    assert optimizer.beside_exact is False
    twin, other, plain = case()
    fit(twin, plain, other, 1)
    expected, found = floors(plain, twin.parameters()), floors(optimizer, net.parameters())
    torch.testing.assert_close(found.sum(), expected.sum(), rtol=0.5, atol=0)


# Several backward passes, several losses ------------------------------------------------------


@pytest.mark.parametrize("retain", [False, True], ids=["two graphs", "one graph twice"])
def test_backward_passes_add_up(retain):
    """Equal signs, as it were: a sum of 1 in the one case, of 2 draws in the other; one sample."""
    p, data = nn.Parameter(torch.zeros(1, dtype=torch.float64)), NoisyLoss(1.0)
    optimizer = SNRAdam([p], lr=0.0, rho=0.0, noise=data)
    zero, found = torch.zeros(1, dtype=torch.float64), []
    for _ in range(200):
        optimizer.zero_grad()
        loss = data(p * 1.0, zero)
        loss.backward(retain_graph=True)
        (loss if retain else data(p * 1.0, zero)).backward()
        optimizer.step()
        found.append(float(optimizer.moments(p).floor))
    assert set(found) == {0.0, 16.0}  # (2 +- 2)^2
    assert 0.35 < sum(x > 0 for x in found) / 200 < 0.65


@OPTIMIZERS
def test_the_rest_of_the_loss_may_have_a_backward_pass_of_its_own(cls):
    found = []
    for order in ("together", "data first", "data last"):
        net, data, optimizer = case(cls)
        for t in range(3):
            x, y = batch(t)
            optimizer.zero_grad()
            if order == "together":
                (data(net(x), y) + physics(net)).backward()
            elif order == "data first":
                data(net(x), y).backward()
                physics(net).backward()
            else:
                physics(net).backward()
                data(net(x), y).backward()
            optimizer.step()
        assert optimizer.beside_exact
        found.append(values(net))
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found[2], found[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("apart", [False, True])
def test_two_losses_in_one_step(apart):
    """In one total or one after the other: (2 w sigma)^2 where each has one sample, and 4 times it
    or none where both have."""
    p = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    first, second = NoisyLoss(0.5, reduction="sum"), NoisyLoss(0.25, reduction="sum")
    optimizer = SNRAdam([p], lr=0.0, rho=0.0, noise=[first, second])
    y, found = torch.full((2,), 0.1, dtype=torch.float64), []
    for _ in range(100):
        optimizer.zero_grad()
        losses = [first(p[:2], y), 2 * second(p[1:], y)]
        for loss in losses if apart else [sum(losses)]:
            loss.backward()
        optimizer.step()
        found.append(tuple(optimizer.moments(p).floor.tolist()))
    assert optimizer.beside_exact is False
    assert set(found) == {(1.0, 0.0, 1.0), (1.0, 4.0, 1.0)}
    assert 0.3 < found.count((1.0, 0.0, 1.0)) / 100 < 0.7


def test_one_loss_used_twice_in_a_step_is_two_terms():
    net, data, optimizer = case()
    (x, y), (x2, y2) = batch(0), batch(1)
    (data(net(x), y) + data(net(x2), y2, sigma=0.3)).backward()
    optimizer.step()
    assert optimizer.beside_exact is False
    assert optimizer.gate_stats().numel == sum(p.numel() for p in net.parameters())


@OPTIMIZERS
def test_two_models_share_a_loss(cls):
    """Each as if it had one of its own, whichever way their steps interlock."""
    alone = []
    for seed in (0, 1):
        net, data, optimizer = case(cls, seed=seed)
        fit(net, optimizer, data, 4)
        alone.append((snapshot(optimizer), noise_state(optimizer)))
    data = NoisyLoss(0.1)
    nets = [network(seed=seed) for seed in (0, 1)]
    torch.manual_seed(1)
    optimizers = [cls(net.parameters(), lr=1e-2, noise=data) for net in nets]
    for t in range(4):
        x, y = batch(t)
        for optimizer in optimizers:
            optimizer.zero_grad()
        for net in nets:
            data(net(x), y).backward()
        for optimizer in optimizers:
            optimizer.step()
    assert_same_bits([(snapshot(o), noise_state(o)) for o in optimizers], alone)


def test_two_optimizers_of_one_model_share_a_loss():
    """One for the network's body, one for its head."""
    net, data = network(), NoisyLoss(0.1)
    torch.manual_seed(1)
    body = SNRAdam(net[:-1].parameters(), lr=1e-2, noise=data)
    head = SNRAdam(net[-1].parameters(), lr=1e-3, noise=data)
    for t in range(4):
        x, y = batch(t)
        net.zero_grad()
        (data(net(x), y) + physics(net)).backward()
        body.step()
        head.step()
    assert body.beside_exact and head.beside_exact
    assert floors(body, net[:-1].parameters()).any() and floors(head, net[-1].parameters()).any()


def test_an_optimizer_that_is_gone_takes_nothing():
    net, data, optimizer = case()
    gone = weakref.ref(optimizer)
    fit(net, optimizer, data, 2)
    del optimizer
    gc.collect()
    assert gone() is None
    x, y = batch(0)
    data(net(x), y).backward()
    later = SNRAdam(net.parameters(), noise=data)
    fit(net, later, data, 2)
    assert later.gate_stats().numel


def test_declaring_anew_takes_the_place_of_what_was_declared():
    net, data, optimizer = case()
    fit(net, optimizer, data, 2)
    other = NoisyLoss(0.3)
    optimizer.declare([other])
    assert optimizer.noise == [other]
    fit(net, optimizer, other, 2)
    with pytest.raises(RuntimeError, match=r"no backward pass.*sigma 0\.3"):
        fit(net, optimizer, data, 1)
    optimizer.declare(None)
    assert optimizer.noise == []
    fit(net, optimizer, nn.MSELoss(), 2)


@OPTIMIZERS
def test_closures(cls):
    net, data, optimizer = case(cls)
    twin, other, by_closure = case(cls)
    fit(net, optimizer, lambda u, y: data(u, y) + physics(net), 4)
    for t in range(4):
        x, y = batch(t)

        def closure(x=x, y=y):
            by_closure.zero_grad()
            loss = other(twin(x), y) + physics(twin)
            loss.backward()
            return loss

        with torch.no_grad():
            assert by_closure.step(closure).item() > 0
    assert_same_bits(snapshot(by_closure), snapshot(optimizer))


# What is cleared --------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["step", "zero_grad", "net.zero_grad", "skipped step"])
def test_draws_of_before_are_gone(how):
    """The next step is as if nothing had been."""
    net, data, optimizer = case(nonfinite="skip")
    twin, other, expected = case(nonfinite="skip")
    x, y = batch(9)
    if how == "step":
        for f, loss, own in ((net, data, optimizer), (twin, other, expected)):
            fit(f, own, loss, 1, start=9)
        optimizer_state = noise_state(optimizer)
        assert optimizer_state == noise_state(expected)
    elif how == "skipped step":
        before = snapshot(optimizer)
        (data(net(x), y) * math.nan).backward()
        optimizer.step()
        assert_same_bits(snapshot(optimizer), before)
        assert noise_state(optimizer)["steps"] == 0
    else:
        data(net(x), y).backward()
        (optimizer if how == "zero_grad" else net).zero_grad()
    if how != "step":  # the draws after it have other signs
        (other(twin(x), y)).backward()
        expected.zero_grad()
    net.zero_grad()
    twin.zero_grad()
    for t in range(3):
        x, y = batch(t)
        for f, loss in ((net, data), (twin, other)):
            f.zero_grad()
            loss(f(x), y).backward()
        optimizer.step()
        expected.step()
    assert_same_bits(snapshot(optimizer), snapshot(expected))


def test_gradients_set_to_zero_are_dropped_too():
    net, data, optimizer = case(rho=0.0)
    twin, other, expected = case(rho=0.0)
    x, y = batch(9)
    data(net(x), y).backward()
    net.zero_grad(set_to_none=False)
    other(twin(x), y).backward()
    expected.zero_grad()
    for f, loss, own in ((net, data, optimizer), (twin, other, expected)):
        loss(f(x), y).backward()
        own.step()
    assert_same_bits(snapshot(optimizer), snapshot(expected))


def test_a_step_that_raises_forgets_its_draws():
    net, data, optimizer = case()
    x, y = batch(0)
    (data(net(x), y) * math.inf).backward()
    with pytest.raises(FloatingPointError):
        optimizer.step()
    with pytest.raises(RuntimeError, match="no backward pass"):
        optimizer.step()
    fit(net, optimizer, data, 1)


def test_a_backward_pass_that_fails_leaves_nothing():
    class Fails(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            raise OSError("in backward")

    net, data, optimizer = case()
    x, y = batch(0)
    with pytest.raises(OSError, match="in backward"):
        data(Fails.apply(net(x)), y).backward()
    fit(net, optimizer, data, 1, start=1)
    twin, other, expected = case()
    with pytest.raises(OSError, match="in backward"):
        other(Fails.apply(twin(x)), y).backward()
    fit(twin, expected, other, 1, start=1)
    assert_same_bits(snapshot(optimizer), snapshot(expected))
    assert floors(optimizer, net.parameters()).any()


# Gradients that change between backward and step ----------------------------------------------


def moved(scaling: Callable[[nn.Module, SNRAdam], None], loss_factor: float, exact: bool, steps=4):
    """Parameters and floors after some steps."""
    net, data, optimizer = case(sigma=0.3, eps=0.0)
    for t in range(steps):
        x, y = batch(t)
        optimizer.zero_grad()
        loss = data(net(x), y) + (physics(net) if exact else 0)
        (loss_factor * loss).backward()
        scaling(net, optimizer)
        optimizer.step()
    assert optimizer.beside_exact is exact
    return flat(values(net)), floors(optimizer, net.parameters())


def halve(net, optimizer) -> None:
    for p in net.parameters():
        p.grad.mul_(0.5)


@pytest.mark.parametrize("exact", [False, True], ids=["data alone", "beside exact terms"])
def test_one_factor_scales_the_floor_along(exact):
    """Of all gradients: in place or anew."""
    expected = moved(lambda *_: None, 0.5, exact)

    def anew(net, optimizer) -> None:
        for p in net.parameters():
            p.grad = p.grad / 2

    for scaling in (halve, anew):
        found = moved(scaling, 1.0, exact)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("exact", [False, True], ids=["data alone", "beside exact terms"])
def test_clip_grad_norm(exact):
    """The floor is that of the clipped gradient, as if the loss had been so small."""
    found = []
    for how in ("clipped", "by hand"):
        net, data, optimizer = case(sigma=0.3, eps=0.0)
        for t in range(4):
            x, y = batch(t)
            optimizer.zero_grad()
            loss = data(net(x), y) + (physics(net) if exact else 0)
            if how == "clipped":
                loss.backward()
                norm = nn.utils.clip_grad_norm_(net.parameters(), 1e-2)
                assert norm > 0.02
            else:
                parts = torch.autograd.grad(loss, list(net.parameters()), retain_graph=True)
                (loss * 1e-2 / (flat(parts).norm() + 1e-6)).backward()
            optimizer.step()
        assert optimizer.beside_exact is exact
        found.append((flat(values(net)), floors(optimizer, net.parameters())))
    torch.testing.assert_close(found[0], found[1], rtol=2e-3, atol=1e-9)


def test_a_norm_that_is_not_reached_changes_nothing():
    found = []
    for clips in (False, True):
        net, data, optimizer = case()
        for t in range(3):
            x, y = batch(t)
            optimizer.zero_grad()
            data(net(x), y).backward()
            if clips:
                nn.utils.clip_grad_norm_(net.parameters(), 1e6)
            optimizer.step()
        found.append(snapshot(optimizer))
    assert_same_bits(*found)


@pytest.mark.parametrize("exact", [False, True], ids=["data alone", "beside exact terms"])
@pytest.mark.parametrize("unscale", [False, True])
def test_grad_scaler(exact, unscale):
    """Of mixed precision: unscaled in its step, or before."""
    expected = moved(lambda *_: None, 1.0, exact)
    net, data, optimizer = case(sigma=0.3, eps=0.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)
    for t in range(4):
        x, y = batch(t)
        optimizer.zero_grad()
        scaler.scale(data(net(x), y) + (physics(net) if exact else 0)).backward()
        if unscale:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
    assert scaler.get_scale() > 1024
    assert optimizer.beside_exact is exact
    found = flat(values(net)), floors(optimizer, net.parameters())
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-9)


def test_a_step_that_a_scaler_skips_leaves_nothing():
    net, data, optimizer = case()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    x, y = batch(0)
    before = snapshot(optimizer)
    scaler.scale(data(net(x), y) * math.inf).backward()
    scaler.step(optimizer)
    scaler.update()
    assert_same_bits(snapshot(optimizer), before)
    optimizer.zero_grad()
    scaler.scale(data(net(x), y)).backward()
    scaler.step(optimizer)
    assert floors(optimizer, net.parameters()).isfinite().all()


def largest_entry(net: nn.Module) -> float:
    return max(float(p.grad.abs().max()) for p in net.parameters())


CHANGES = {
    "values clipped": lambda net: nn.utils.clip_grad_value_(
        net.parameters(), 0.5 * largest_entry(net)
    ),
    "clipped layer by layer": lambda net: [
        nn.utils.clip_grad_norm_(p, 1e-4 * (1 + p.numel())) for p in net.parameters()
    ],
    "noise": lambda net: [p.grad.add_(0.1 * torch.randn_like(p)) for p in net.parameters()],
    "one layer scaled": lambda net: net[2].weight.grad.mul_(0.5),
    "one layer dropped": lambda net: net[2].weight.grad.zero_(),
    "turned around": lambda net: [p.grad.copy_(p.grad.flip(0)) for p in net.parameters()],
}


@pytest.mark.parametrize("change", CHANGES)
def test_other_changes_are_refused_by_name(change):
    net, data, optimizer = case()
    fit(net, optimizer, data, 2)
    before = values(net)
    x, y = batch(2)
    optimizer.zero_grad()
    data(net(x), y).backward()
    CHANGES[change](net)
    with pytest.raises(RuntimeError, match=r"something other than one factor.*clip_grad_value_"):
        optimizer.step()
    assert_same_bits(values(net), before)


def test_only_some_entries_clipped_by_value_are_seen():
    """Those of a large matrix, none of the smallest parameters."""
    net, data, optimizer = case()
    x, y = batch(0)
    data(net(x), y).backward()
    w = max(net.parameters(), key=lambda p: p.numel())
    w.grad[0, 0] = 10.0 * largest_entry(net)
    with pytest.raises(RuntimeError, match="was changed between"):
        optimizer.step()


# Is there anything else in the loss? -----------------------------------------------------------


@OPTIMIZERS
def test_data_alone_and_data_beside_physics(cls):
    for exact in (False, True):
        net, data, optimizer = case(cls)
        assert optimizer.beside_exact is None
        fit(net, optimizer, lambda u, y, d=data, f=net, e=exact: d(u, y) + e * physics(f), 3)
        assert optimizer.beside_exact is exact
        averaged = ["exp_avg_noisy" in optimizer.state[p] for p in net.parameters()]
        assert averaged == [exact] * len(averaged)


@pytest.mark.parametrize(
    "reduction", [lambda v: v.mean(), lambda v: (3.0 * v).sum()], ids=["mean", "weighted sum"]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_data_alone_whatever_weight_and_dtype(dtype, reduction):
    net, data = network(dtype), NoisyLoss(0.1, reduction="none")
    optimizer = SNRAdam(net.parameters(), noise=data)
    fit(net, optimizer, lambda u, y: reduction(data(u, y)), 3)
    assert optimizer.beside_exact is False


@pytest.mark.parametrize(
    "extra",
    [
        lambda net: 1e-2 * sum(p.square().sum() for p in net.parameters()),
        lambda net: mse_loss(net(batch(5)[0]), batch(5)[1]),
        lambda net: net[-1].bias.square().sum(),
    ],
    ids=["penalty", "exact data", "on one parameter"],
)
def test_any_other_term_is_exact(extra):
    net, data, optimizer = case()
    fit(net, optimizer, lambda u, y: data(u, y) + extra(net), 2)
    assert optimizer.beside_exact is True


@pytest.mark.parametrize("back", [False, True])
def test_a_term_that_is_switched_later_is_noticed(back):
    net, data, optimizer = case()
    before, after = (1.0, 0.0) if back else (0.0, 1.0)
    fit(net, optimizer, lambda u, y: data(u, y) + before * physics(net), 7)
    assert optimizer.beside_exact is back
    for step in range(LOOK_EVERY + 1):
        fit(net, optimizer, lambda u, y: data(u, y) + after * physics(net), 1, start=step)
        if optimizer.beside_exact is not back:
            break
    assert optimizer.beside_exact is not back
    assert LOOK_EVERY <= 100


def test_a_weight_that_changes_makes_it_look_at_once():
    net, data, optimizer = case()
    fit(net, optimizer, lambda u, y: 2 * data(u, y), 7)
    assert optimizer.beside_exact is False
    fit(net, optimizer, lambda u, y: data(u, y) + physics(net), 2)
    assert optimizer.beside_exact is True


def test_a_noisy_equation_beside_noisy_data_holds_them_back():
    """With nothing exact in the loss."""
    net, data = network(), NoisyLoss(0.1)
    source = NoisyLoss(0.3, is_equation=True)
    for noise, beside in (([data, source], True), ([data, NoisyLoss(0.3)], False)):
        own = noise[1]
        optimizer = SNRAdam(net.parameters(), noise=noise)

        def loss(u, y, own=own):
            return data(u, y) + own(net(batch(3)[0]), batch(4)[1])

        fit(net, optimizer, loss, 2)
        assert optimizer.beside_exact is beside


@OPTIMIZERS
def test_what_was_seen_is_kept_in_the_state(cls):
    net, data, optimizer = case(cls)
    fit(net, optimizer, lambda u, y: data(u, y) + physics(net), 5)
    twin, other, loaded = case(cls)
    twin.load_state_dict(net.state_dict())
    loaded.load_state_dict(through_a_file(optimizer.state_dict()))
    assert loaded.beside_exact is True
    assert noise_state(loaded) == noise_state(optimizer)
    fit(twin, loaded, lambda u, y: other(u, y) + physics(twin), 1, start=5)
    assert noise_state(loaded)["steps"] == 6


def test_the_gate_follows_what_the_loss_is():
    net, data, optimizer = case()
    fit(net, optimizer, data, 2)
    p = net[0].weight
    assert optimizer.moments(p).gate.z == 2.0
    assert optimizer.moments(p).gate.discrepancy
    fit(net, optimizer, lambda u, y: 0.5 * data(u, y) + physics(net), 2)
    assert optimizer.moments(p).gate.z == 1.0
    assert not optimizer.moments(p).gate.discrepancy


# The noisy terms' own gradient ------------------------------------------------------------------


def linear_problem() -> tuple[nn.Linear, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    net = nn.Linear(3, 1).double()
    x = torch.randn(20, 3, dtype=torch.float64)
    return net, x, x[:, :1] + torch.randn(20, 1, dtype=torch.float64), x**2


def noisy_mean(optimizer, net) -> list[Tensor]:
    """The noisy terms' share of the first moment; with beta1 = 0 their gradient."""
    return [optimizer.state[p]["exp_avg_noisy"] for p in net.parameters()]


@pytest.mark.parametrize("every", [1, 3])
def test_noisy_gradients_are_those_of_the_noisy_terms(every):
    net, x, y, z = linear_problem()
    data, params = NoisyLoss(1.0), list(net.parameters())
    optimizer = SNRAdam(params, betas=(0.0, 0.9), noise=data, floor_every=every)
    for _ in range(4):
        expected = torch.autograd.grad(3 * mse_loss(net(x), y), params)
        total = torch.autograd.grad(3 * mse_loss(net(x), y) + (net(z) ** 2).mean(), params)
        optimizer.zero_grad()
        (3 * data(net(x), y) + (net(z) ** 2).mean()).backward()
        torch.testing.assert_close([p.grad for p in params], list(total))
        optimizer.step()
        torch.testing.assert_close(noisy_mean(optimizer, net), list(expected))


def test_of_several_terms_one_is_exact_by_what_its_error_does_not_explain():
    """Once it is known that something exact stands beside them."""
    for sigma in (1e-3, 0.5, 1e6):
        net, x, y, z = linear_problem()
        params = list(net.parameters())
        noise = NoisyLoss(0.2), NoisyLoss(sigma)
        optimizer = SNRAdam(params, lr=0.0, betas=(0.0, 0.9), noise=noise)
        nothing = torch.zeros(20, 1, dtype=torch.float64)
        for _ in range(2):
            optimizer.zero_grad()
            exact = sum(p.square().sum() for p in params)
            (noise[0](net(x), y) + 2 * noise[1](net(z), nothing) + exact).backward()
            optimizer.step()
        off = [mse_loss(net(x), y), mse_loss(net(z), nothing)]
        parts = [min(1.0, s**2 / r.item()) for s, r in zip((0.2, sigma), off, strict=True)]
        assert parts[0] < 1
        expected = torch.autograd.grad(parts[0] * off[0] + 2 * parts[1] * off[1], params)
        torch.testing.assert_close(noisy_mean(optimizer, net), list(expected))


def test_of_one_term_all_is_noisy():
    """The parts would cancel."""
    net, x, y, _ = linear_problem()
    params, data = list(net.parameters()), NoisyLoss(0.2)
    optimizer = SNRAdam(params, lr=0.0, betas=(0.0, 0.9), noise=data)
    for _ in range(2):
        optimizer.zero_grad()
        (data(net(x), y) + sum(p.square().sum() for p in params)).backward()
        optimizer.step()
    expected = torch.autograd.grad(mse_loss(net(x), y), params)
    torch.testing.assert_close(noisy_mean(optimizer, net), list(expected))


def test_data_without_an_error_are_exact():
    net, x, y, z = linear_problem()
    params = list(net.parameters())
    noise = NoisyLoss(5.0), NoisyLoss(0.0)
    optimizer = SNRAdam(params, lr=0.0, betas=(0.0, 0.9), noise=noise)
    for _ in range(2):
        optimizer.zero_grad()
        (noise[0](net(x), y) + noise[1](net(z), y)).backward()
        optimizer.step()
        assert optimizer.beside_exact
        expected = torch.autograd.grad(mse_loss(net(x), y), params)
        torch.testing.assert_close(noisy_mean(optimizer, net), list(expected))


# How often --------------------------------------------------------------------------------------


@pytest.mark.parametrize("exact", [False, True])
@OPTIMIZERS
def test_draws_in_every_third_step_from_a_continued_state_on(cls, exact):
    net, data, optimizer = case(cls, floor_every=3)
    drawn = []
    for t in range(8):
        if t == 5:
            saved = through_a_file(optimizer.state_dict())
            optimizer = cls(net.parameters(), noise=data, floor_every=3)
            optimizer.load_state_dict(saved)
        before = noise_state(optimizer).get("passes", 0)
        floor = [optimizer.state.get(p, {}).get("floor_step", 0) for p in net.parameters()]
        fit(net, optimizer, lambda u, y: data(u, y) + exact * physics(net), 1, start=t)
        drawn.append(noise_state(optimizer)["passes"] > before)
        after = [optimizer.state[p]["floor_step"] for p in net.parameters()]
        assert [b - a for a, b in zip(floor, after, strict=True)] == [drawn[-1]] * len(after)
    assert drawn == [True, False, False, True, False, False, True, False]


@pytest.mark.parametrize("every", [0, -1, 1.5, True])
def test_a_period_that_is_none_is_refused(every):
    with pytest.raises(ValueError, match="floor_every"):
        SNRAdam(parameters(), floor_every=every, noise=NoisyLoss(0.1))


def test_the_average_by_hand():
    """Squares of draws, each with the weight (1 - rho) rho^k; corrected for the start."""
    p, told = nn.Parameter(torch.ones(2, dtype=torch.float64)), Told()
    optimizer = SNRAdam([p], rho=0.75, noise=told)
    mean = torch.zeros(2, dtype=torch.float64)
    for t in range(5):
        p.grad = torch.ones_like(p)
        draw = torch.tensor([1.0 + t, -2.0], dtype=torch.float64)
        told.tell({p: draw}, {p: p.grad})
        optimizer.step()
        mean = 0.75 * mean + 0.25 * draw**2
        found = optimizer.moments(p)
        torch.testing.assert_close(found.floor, mean)
        assert found.floor_weight == pytest.approx(1 - 0.75 ** (t + 1))


# Frozen and thawed ------------------------------------------------------------------------------


@OPTIMIZERS
def test_parameters_may_be_frozen_and_thawed(cls):
    net, data, optimizer = case(cls)
    first, last = net[0].weight, net[-1].bias
    first.requires_grad_(False)
    before = first.detach().clone()
    fit(net, optimizer, lambda u, y: data(u, y) + physics(net), 3)
    assert_same_bits(first.detach(), before)
    assert first not in optimizer.state
    first.requires_grad_(True)
    last.requires_grad_(False)
    kept = {k: torch.as_tensor(x).clone() for k, x in optimizer.state[last].items()}
    fit(net, optimizer, lambda u, y: data(u, y) + physics(net), 1, start=3)
    assert optimizer.state[first]["floor_step"] == 1
    assert optimizer.moments(first).floor.any()
    now = {k: torch.as_tensor(x) for k, x in optimizer.state[last].items()}
    assert_same_bits(now, kept)
    twin, other, loaded = case(cls)
    loaded.load_state_dict(through_a_file(optimizer.state_dict()))
    assert other.sigma == data.sigma
    assert_same_bits(floors(loaded, twin.parameters()), floors(optimizer, net.parameters()))


def test_clipping_is_seen_by_parameters_that_came_later():
    net, data, optimizer = case(sigma=0.3, rho=0.0)
    net.requires_grad_(False)
    optimizer.zero_grad()
    net[2].weight.requires_grad_(True)
    added = nn.Parameter(torch.zeros(16))
    optimizer.add_param_group({"params": [added], "lr": 1e-2})
    x, y = batch(0)
    found = []
    for clips in (False, True):
        torch.manual_seed(1)
        own = SNRAdam([net[2].weight], lr=0.0, rho=0.0, noise=data)
        own.add_param_group({"params": [added], "lr": 0.0})
        own.zero_grad()
        data(net(x) + added.mean(), y).backward()
        factor = 1.0
        if clips:
            norm = nn.utils.clip_grad_norm_([net[2].weight, added], 1e-3)
            factor = float(norm) / 1e-3
        own.step()
        found.append(floors(own, [net[2].weight, added]) * factor**2)
    torch.testing.assert_close(found[1], found[0], rtol=1e-2, atol=0)


def test_with_all_frozen_there_is_nothing_to_refuse():
    net, data, optimizer = case()
    net.requires_grad_(False)
    optimizer.step()
    assert not any(p in optimizer.state for p in net.parameters())
    assert optimizer.noise == [data]


def test_idle_parameters_have_floor_zero():
    net, data = network(), NoisyLoss(0.1)
    idle = nn.Parameter(torch.ones(3))
    optimizer = SNRAdam([*net.parameters(), idle], noise=data)
    fit(net, optimizer, lambda u, y: data(u, y) + idle.square().sum(), 3)
    assert not optimizer.moments(idle).floor.any()
    assert all(optimizer.moments(p).floor.any() for p in net.parameters())
    assert (idle < 1).all()  # exact: nothing holds it


def test_parameters_that_take_turns_have_floors_of_their_own():
    p, q = (nn.Parameter(torch.ones(1, dtype=torch.float64)) for _ in range(2))
    told, zeros = Told(), torch.zeros(1, dtype=torch.float64)
    optimizer = SNRAdam([p, q], rho=0.9, noise=told)
    for t in range(40):
        now = p if t % 2 else q
        for w in (p, q):
            w.grad = torch.ones_like(w)
        told.tell({now: zeros + 2.0}, {})
        optimizer.step()
    for w in (p, q):
        found = optimizer.moments(w)
        assert found.floor.item() / found.floor_weight == pytest.approx(4.0)


# What all residuals together say -----------------------------------------------------------


def excess(*terms, **options) -> float:
    """Of a step on terms: (residual, sigma, options of the loss)."""
    p = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    noise = [NoisyLoss(sigma, **own) for _, sigma, own in terms]
    optimizer = SNRAdam([p], noise=noise, **options)
    total = 0 * p.sum()
    for loss, (residual, *_) in zip(noise, terms, strict=True):
        residual = torch.as_tensor(residual, dtype=torch.float64)
        total = total + loss(residual + p.sum(), torch.zeros_like(residual))
    total.backward()
    optimizer.step()
    found = optimizer.state[KEY]["excess"]
    assert not torch.as_tensor(found).requires_grad
    return float(found)


def test_excess_by_hand():
    # R = 4, N = 8: 1 - (1 - sqrt(2 / 8)) / 4
    twice = 0.2 * torch.ones(8, 1), 0.1, {}
    assert excess(twice) == pytest.approx(1 - 0.5 / 4)
    # with N = 24 of R = 1: (8 * 4 + 24) / 32 = 7 / 4, sqrt(2 / 32) = 1 / 4
    once = 3 * torch.ones(12, 2), torch.full((12, 1), 3.0), {}
    assert excess(twice, once) == pytest.approx(1 - (3 / 4) / (7 / 4))
    # data without an error do not count
    sigma = torch.cat([torch.full((8, 1), 0.1), torch.zeros(5, 1)])
    with_exact = torch.cat([0.2 * torch.ones(8, 1), 100 * torch.ones(5, 1)])
    assert excess((with_exact, sigma, {})) == pytest.approx(1 - 0.5 / 4)


def test_excess_is_a_share():
    assert excess((torch.zeros(8, 1), 0.1, {})) == 0  # fitted exactly
    assert excess((0.05 * torch.ones(8, 1), 0.1, {})) == 0  # below half of what noise is
    assert excess((torch.full((8, 1), 1e3), 1e-3, {})) == pytest.approx(1)
    assert excess((torch.full((2, 1), 0.1), 0.1, {})) == 1  # two data allow for nothing


def test_errors_alone_have_an_excess_of_about_a_standard_error():
    """Mean over 1,000 draws of max(0, 1 - (1 - sqrt(2/N)) / R), R chi-squared / N, by quadrature.

    The tolerance is four standard errors.
    """
    from scipy.stats import chi2

    n, draws = 200, 1000
    rng = torch.Generator().manual_seed(0)
    noise = 0.3 * torch.randn(draws, n, 1, generator=rng, dtype=torch.float64)
    found = torch.tensor([excess((e, 0.3, {})) for e in noise])
    allowed = 1 - math.sqrt(2 / n)
    expected = chi2(n).expect(lambda x: max(0.0, 1 - allowed * n / x))
    assert abs(float(found.mean()) - expected) < 4 * float(found.std()) / math.sqrt(draws)
    assert 0.8 * math.sqrt(2 / n) < expected < 1.2 * math.sqrt(2 / n)


def test_batches_have_no_excess():
    far = torch.full((8, 1), 10.0)
    assert excess((far, 0.1, {"population": 9})) == 0
    assert excess((far, 0.1, {"population": math.inf})) == 0
    assert excess((far, 0.1, {"population": 8})) > 0.99  # all there is


def test_other_losses_have_no_excess():
    far = torch.full((8, 1), 10.0)
    assert excess((far, 0.1, {"loss": "huber"})) == 0
    assert excess((far, 0.1, {}), (far, 0.1, {"loss": "l1"})) == 0


def test_excess_is_that_of_every_step():
    """Also where there is no draw."""
    net, data, optimizer = case(floor_every=10)
    x, _ = batch(0)
    for size in (2.0, 1.0):
        prediction = net(x)
        target = (prediction + 0.1 * size).detach()
        optimizer.zero_grad()
        data(prediction, target).backward()
        optimizer.step()
        allowed = 1 - math.sqrt(2 / target.numel())
        found = float(optimizer.state[KEY]["excess"])
        assert found == pytest.approx(max(0, 1 - allowed / size**2), rel=1e-4)


def test_a_trained_sigma_stays_out_of_the_excess():
    net, data, optimizer = case()
    sigma = nn.Parameter(torch.tensor(0.1))
    x, y = batch(0)
    data(net(x), y, sigma=sigma).backward()
    optimizer.step()
    assert sigma.grad is None
    assert_plain(optimizer.state_dict()["state"][KEY])
    copy.deepcopy(optimizer)


# What is refused --------------------------------------------------------------------------------


@OPTIMIZERS
def test_a_step_without_a_backward_pass_is_refused(cls):
    net, data, optimizer = case(cls)
    before = values(net)
    match = r"no backward pass of a declared noisy loss.*NoisyLoss, mse, sigma 0\.1"
    with pytest.raises(RuntimeError, match=match):
        optimizer.step()
    x, y = batch(0)
    mse_loss(net(x), y).backward()
    with pytest.raises(RuntimeError, match=match):
        optimizer.step()
    optimizer.zero_grad()
    loss = data(net(x), y)
    loss.backward()
    optimizer.zero_grad()
    with pytest.raises(RuntimeError, match=match):
        optimizer.step()
    assert_same_bits(values(net), before)


def test_of_two_declared_losses_both_are_needed():
    net, first, second = network(), NoisyLoss(0.1), NoisyLoss(0.25)
    optimizer = SNRAdam(net.parameters(), noise=[first, second])
    with pytest.raises(RuntimeError, match=r"sigma 0\.25") as refused:
        fit(net, optimizer, first, 1)
    assert "sigma 0.1" not in str(refused.value)


@pytest.mark.parametrize("exact", [False, True], ids=["alone", "beside exact terms"])
def test_a_loss_of_another_network_is_refused(exact):
    net, data, optimizer = case()
    other = copy.deepcopy(net)
    x, y = batch(0)
    (data(other(x), y) + (physics(net) if exact else 0)).backward()
    with pytest.raises(RuntimeError, match=r"A copy of a network|a copy has its own"):
        optimizer.step()


def test_a_network_frozen_below_the_loss_is_refused():
    """The noisy loss reaches the coefficient's optimizer by the equation alone."""
    net, data = network(), NoisyLoss(0.1)
    k = nn.Parameter(torch.ones(()))
    optimizer = SNRAdam([k], noise=data)
    x, y = batch(0)
    (data(net(x), y) + k**2).backward()
    with pytest.raises(RuntimeError, match="depends on none of this optimizer's parameters"):
        optimizer.step()


def test_what_is_not_finite_is_refused_and_changes_nothing():
    """By the name of what it is."""
    params, told = parameters(), Told()
    optimizer = SNRAdam(params, noise=told)
    feed_noise(optimizer, told, 3, beside_exact=True)
    before, state = snapshot(optimizer), noise_state(optimizer)
    for what in ("noise draw", "noisy terms' gradient"):
        for p, g in zip(params, gradients(params, 5), strict=True):
            p.grad = g
        bad = dict(zip(params, gradients(params, 6), strict=True))
        good = dict(bad)
        bad[params[1]] = torch.full((5,), math.nan)
        told.tell(*((bad, good) if what == "noise draw" else (good, bad)))
        with pytest.raises(FloatingPointError, match=f"{what} of parameter 1"):
            optimizer.step()
        assert_same_bits(snapshot(optimizer), before)
        assert noise_state(optimizer) == state


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_draws_whose_squares_are_infinite_are_refused(dtype):
    p, told = nn.Parameter(torch.ones(2, dtype=dtype)), Told()
    optimizer = SNRAdam([p], noise=told)
    p.grad = torch.ones_like(p)
    huge = torch.full((2,), 1e25 if dtype == torch.float32 else 6e4, dtype=dtype)
    told.tell({p: huge}, {p: p.grad})
    if dtype == torch.float16:  # whose state is float32
        optimizer.step()
        assert optimizer.moments(p).floor.isfinite().all()
    else:
        with pytest.raises(FloatingPointError, match="or entries whose squares are"):
            optimizer.step()


@pytest.mark.parametrize("noise", [0.1, nn.MSELoss(), [nn.MSELoss()], NoisyTerm(torch.ones(1), 1)])
def test_what_is_no_noisy_loss_is_refused(noise):
    with pytest.raises(TypeError, match=r"NoisyLoss|iterable"):
        SNRAdam(parameters(), noise=noise)


def test_a_loss_declared_twice_is_refused():
    data = NoisyLoss(0.1)
    with pytest.raises(ValueError, match="the same loss twice"):
        SNRAdam(parameters(), noise=[data, data])


@pytest.mark.parametrize("option", [{"alpha": 2.0}, {"lambd": 3.0}])
def test_options_of_the_published_rule_go_without_noise(option):
    data = NoisyLoss(0.1)
    with pytest.raises(ValueError, match=r"alpha and lambd belong to the published rule.*Gate"):
        SNRAdam(parameters(), noise=data, **option)
    with pytest.raises(ValueError, match="alpha and lambd belong"):
        SNRAdam([{"params": parameters(), **option}], noise=data)
    with pytest.raises(ValueError, match="alpha and lambd belong"):
        SNRAdam(parameters(), **option).declare(data)
    later = SNRAdam(parameters(), noise=data)
    with pytest.raises(ValueError, match="alpha and lambd belong"):
        later.add_param_group({"params": parameters(), **option})
    assert len(later.param_groups) == 1


def test_a_floor_by_hand_goes_without_noise():
    net, data, optimizer = case()
    x, y = batch(0)
    data(net(x), y).backward()
    before = values(net)
    with pytest.raises(ValueError, match="Noise was declared to this optimizer"):
        optimizer.step(floor={p: torch.ones_like(p) for p in net.parameters()})
    assert_same_bits(values(net), before)


# Saving and copying -----------------------------------------------------------------------------


def resumable(cls, exact: bool, dtype, seed: int):
    net, data = network(dtype, seed), NoisyLoss(0.1)
    groups = [
        {"params": net[0].parameters()},
        {"params": net[2:].parameters(), "lr": 3e-2, "rho": 0.9},
    ]
    torch.manual_seed(seed)
    optimizer = cls(groups, lr=1e-2, noise=data)
    return net, optimizer, lambda u, y: data(u, y) + (10 * physics(net) if exact else 0)


@pytest.mark.parametrize("exact", [False, True], ids=["data alone", "beside exact terms"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@OPTIMIZERS
def test_continues_from_a_file_with_the_same_bits(cls, dtype, exact):
    net, optimizer, loss = resumable(cls, exact, dtype, 0)
    fit(net, optimizer, loss, 12)
    saved = through_a_file({"net": net.state_dict(), "optimizer": optimizer.state_dict()})
    fit(net, optimizer, loss, 12, start=12)

    other, resumed, other_loss = resumable(cls, exact, dtype, 1)
    other.load_state_dict(saved["net"])
    resumed.load_state_dict(saved["optimizer"])
    fit(other, resumed, other_loss, 12, start=12)
    assert_same_bits(snapshot(resumed), snapshot(optimizer))
    assert_same_bits(noise_state(resumed), noise_state(optimizer))
    assert resumed.gate_stats() == optimizer.gate_stats()
    assert resumed.beside_exact is exact


@OPTIMIZERS
def test_state_is_plain(cls):
    net, data, optimizer = case(cls)
    fit(net, optimizer, lambda u, y: data(u, y) + physics(net), 2)
    assert_plain(optimizer.state_dict())
    assert set(optimizer.state) == {KEY, *net.parameters()}


def test_a_loaded_state_is_no_part_of_the_dictionary_that_it_came_from():
    net, data, optimizer = case()
    fit(net, optimizer, data, 2)
    saved = optimizer.state_dict()
    before = copy.deepcopy(saved)
    twin, other, loaded = case()
    loaded.load_state_dict(saved)
    fit(twin, loaded, other, 2)
    assert_same_bits(saved["state"][KEY], before["state"][KEY])


@OPTIMIZERS
def test_a_copy_is_declared_anew(cls):
    net, data, optimizer = case(cls)
    fit(net, optimizer, lambda u, y: data(u, y) + physics(net), 4)
    twin, own = copy.deepcopy((net, optimizer))
    assert own.noise == []
    own.declare(NoisyLoss(0.1))
    (other,) = own.noise
    fit(net, optimizer, lambda u, y: data(u, y) + physics(net), 4, start=4)
    fit(twin, own, lambda u, y: other(u, y) + physics(twin), 4, start=4)
    assert_same_bits(snapshot(own), snapshot(optimizer))


@OPTIMIZERS
def test_a_copy_does_not_step_without_its_noise(cls):
    """The published rule would take over unannounced."""
    net, data, optimizer = case(cls)
    fit(net, optimizer, data, 2)
    twin, own = copy.deepcopy((net, optimizer))
    with pytest.raises(RuntimeError, match=r"none is declared.*declare\(None\)"):
        fit(twin, own, mse_loss, 1)
    assert_same_bits(values(twin), values(net))
    own.declare(None)
    fit(twin, own, mse_loss, 1)
    assert "floor: stream" in own.describe()


def test_a_backward_pass_that_failed_leaves_nothing():
    """Its draws would be added to those of the next one."""
    net, data, optimizer = case()
    x, y = batch(0)

    def fail(*_):
        raise ValueError("out of memory, say")

    prediction = net(x)
    prediction.register_hook(fail)  # after the draws have been made
    with pytest.raises(ValueError, match="out of memory"):
        data(prediction, y).backward()
    net.zero_grad()
    data(net(x), y).backward()
    optimizer.step()
    assert noise_state(optimizer)["scales"] == pytest.approx([1.0])


def test_a_network_whose_noise_is_declared_can_be_saved_and_copied():
    net, data, optimizer = case()
    fit(net, optimizer, data, 2)
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert_same_bits(values(twin), values(net))
        own = SNRAdam(twin.parameters(), lr=1e-2, noise=NoisyLoss(0.1))
        fit(twin, own, own.noise[0], 2)
    fit(net, optimizer, data, 1)


# Memory -----------------------------------------------------------------------------------------


class Token:
    """Lives as long as the graph that it is in."""


class Marked(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, token):
        ctx.token = token
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None


@pytest.mark.parametrize("exact", [False, True], ids=["data alone", "beside exact terms"])
def test_no_graph_outlives_its_step(exact):
    """Without the garbage collector: nothing hangs in a cycle."""
    net, data, optimizer = case()
    tokens: list[weakref.ref] = []

    def loss(u, y):
        token = Token()
        tokens.append(weakref.ref(token))
        return data(Marked.apply(u, token), y) + (physics(net) if exact else 0)

    gc.collect()
    gc.disable()
    try:
        fit(net, optimizer, loss, 20)
        alive = sum(own() is not None for own in tokens)
    finally:
        gc.enable()
    assert len(tokens) == 20
    assert alive == 0


def test_two_hundred_steps_leave_no_tensors_behind():
    net, data, optimizer = case()

    def tensors() -> int:
        gc.collect()
        return sum(issubclass(type(x), Tensor) for x in gc.get_objects())

    fit(net, optimizer, lambda u, y: data(u, y) + physics(net), 20)
    before = tensors()
    fit(net, optimizer, lambda u, y: data(u, y) + physics(net), 200)
    assert tensors() <= before


def test_optimizers_that_are_gone_leave_no_hooks():
    net, data = network(), NoisyLoss(0.1)
    for _ in range(3):
        optimizer = SNRAdam(net.parameters(), noise=data)
        fit(net, optimizer, data, 1)
    del optimizer
    gc.collect()
    hooks = [p._post_accumulate_grad_hooks for p in net.parameters()]
    assert not any(hooks)


def test_facts_of_nothing():
    told = Told()
    p = nn.Parameter(torch.ones(1))
    optimizer = SNRAdam([p], noise=told)
    p.grad = torch.ones(1)
    told.tell(None, {p: p.grad}, Facts())
    optimizer.step()
    assert float(optimizer.state[KEY]["excess"]) == 0
    assert optimizer.gate_stats().mean_q == 1  # no draw yet: nothing to hold back
