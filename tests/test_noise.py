"""LabelNoise: the variance it estimates, against a loop over the samples and its definition."""

from __future__ import annotations

import io
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from sciml_snr import LabelNoise, NoisyTerm, SNRAdam
from sciml_snr.memorization import memorized_share
from tests.cases import assert_same_bits, batch, network

DRAWS = 2000


class Sine(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(5 * x)


def net(outputs: int = 1, activation: type[nn.Module] = nn.Tanh) -> nn.Sequential:
    """A tiny network from R^2, in float64."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(2, 5), activation(), nn.Linear(5, 4), activation(), nn.Linear(4, outputs)
    ).double()


def points(n: int = 7, seed: int = 0) -> Tensor:
    return torch.rand(n, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sigmas(*shape: int) -> Tensor:
    """Unequal errors, one of them 0."""
    return torch.linspace(0, 2, math.prod(shape), dtype=torch.float64).reshape(shape)


def second_derivative(f: nn.Module, x: Tensor) -> Tensor:
    """u_xx, attached to the graph."""
    x = x.clone().requires_grad_()
    (first,) = torch.autograd.grad(f(x).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first[:, 0].sum(), x, create_graph=True)
    return second[:, :1]


def naive_variance(terms: list[NoisyTerm], params: list[Tensor]) -> list[Tensor]:
    """(2 c / n)^2 sum_i sigma_i^2 (df_i/dw)^2 of every term, sample by sample, added up."""
    total = [torch.zeros_like(p) for p in params]
    for term in terms:
        for r_i, sigma_i in samples(term):
            grads = torch.autograd.grad(r_i, params, retain_graph=True, allow_unused=True)
            for sum_, g in zip(total, grads, strict=True):
                if g is not None:
                    sum_ += (2 * term.weight / term.residual.numel() * sigma_i * g) ** 2
    return total


def samples(term: NoisyTerm) -> list[tuple[Tensor, float]]:
    """Residual and error of every value."""
    sigma = torch.as_tensor(term.sigma, dtype=torch.float64).expand_as(term.residual)
    return list(zip(term.residual.flatten(), sigma.flatten().tolist(), strict=True))


def misfit(term: NoisyTerm) -> float:
    """R, the mean of (residual / sigma)^2 over the values that carry an error."""
    squares = [(r_i.item() / sigma_i) ** 2 for r_i, sigma_i in samples(term) if sigma_i > 0]
    return sum(squares) / len(squares)


def flat(tensors) -> Tensor:
    return torch.cat([t.detach().flatten() for t in tensors])


def exact(prediction: Tensor) -> Tensor:
    """Residual of a model that is right."""
    return prediction - prediction.detach()


def residual(prediction: Tensor, size: float = 0.1) -> Tensor:
    """Prediction minus measurements that it misses by about so much."""
    miss = torch.randn(prediction.shape, generator=torch.Generator().manual_seed(3))
    return prediction - (prediction.detach() + size * miss.double())


def mlp():
    f = net()
    return f, [NoisyTerm(residual(f(points())), 0.3)]


def error_per_value():
    f = net(outputs=2)
    return f, [NoisyTerm(residual(f(points())), sigmas(7, 2))]


def error_per_sample_of_two_outputs():
    f = net(outputs=2)
    return f, [NoisyTerm(residual(f(points())), sigmas(7, 1))]


def siren():
    f = net(activation=Sine)
    return f, [NoisyTerm(residual(f(points())), sigmas(7, 1))]


def source_term():
    """Residual u_xx - y of a PINN, y measured."""
    f = net()
    return f, [NoisyTerm(residual(second_derivative(f, points())), sigmas(7, 1))]


def two_terms():
    f = net()
    source = NoisyTerm(residual(second_derivative(f, points(4)), 0.01), 0.02, weight=0.5)
    return f, [NoisyTerm(residual(f(points(6, seed=1))), sigmas(6, 1), weight=3.0), source]


CASES = [mlp, error_per_value, error_per_sample_of_two_outputs, siren, source_term, two_terms]


# The variance ----------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_squared_draws_have_the_variance_as_mean(case):
    """Tolerance: 4.5 standard errors of the mean of h^2 for every parameter element.

    Var h^2 <= 2 (E h^2)^2 for any sum h of random signs: relative standard errors are
    <= sqrt(2 / 2000) = 3.2 %, and one of some 50 elements is off by 4.5 of them in less than one
    of 1000 seeds. A floor off by 15 % fails everywhere.
    """
    f, terms = case()
    assert all(misfit(term) < 1 for term in terms)
    params = list(f.parameters())
    floor = LabelNoise(params, rho=0.0)  # no memory: h^2 of the last draw
    total = torch.zeros_like(flat(params))
    for _ in range(DRAWS):
        floor.update(terms)
        total += flat(floor.values())
    exact = flat(naive_variance(terms, params))
    assert (exact > 0).sum() > 0.9 * (len(exact) - 1)
    error = (total / DRAWS - exact).abs()
    assert (error <= 4.5 * math.sqrt(2 / DRAWS) * exact).all()


def test_it_is_the_variance_of_the_gradient_under_other_measurements():
    """The definition: new errors in the measurements, a new gradient; its variance over draws.

    Tolerance: 4.5 sqrt(2 / 2000), the relative standard error of a normal sample's variance.
    """
    f, (term,) = siren()
    params = list(f.parameters())
    prediction, truth = f(points()), torch.rand(7, 1, dtype=torch.float64)
    gradients = []
    for _ in range(DRAWS):
        measured = truth + term.sigma * torch.randn(7, 1, dtype=torch.float64)
        loss = nn.functional.mse_loss(prediction, measured)
        gradients.append(flat(torch.autograd.grad(loss, params, retain_graph=True)))
    exact = flat(naive_variance([term], params))
    error = (torch.stack(gradients).var(dim=0) - exact).abs()
    assert (error <= 4.5 * math.sqrt(2 / DRAWS) * exact).all()


def test_one_sample_has_no_randomness():
    f = net()
    terms = [NoisyTerm(residual(f(points(1))), 0.3, weight=2.0)]
    floor = LabelNoise(f.parameters())
    floor.update(terms)
    exact = naive_variance(terms, list(f.parameters()))
    torch.testing.assert_close(list(floor.values()), exact, rtol=1e-6, atol=0)


@pytest.mark.parametrize("factor", [0.0, 0.5, 10.0])
@pytest.mark.parametrize("scaled", ["sigma", "weight"])
def test_scales_with_the_squares_of_error_and_weight(scaled, factor):
    f = net()
    options = {"sigma": 0.3, "weight": 1.5}
    found = []
    for change in (1.0, factor):
        torch.manual_seed(1)
        floor = LabelNoise(f.parameters())
        terms = [NoisyTerm(exact(f(points())), **{**options, scaled: options[scaled] * change})]
        floor.update(terms)
        found.append(flat(floor.values()))
    torch.testing.assert_close(found[1], factor**2 * found[0], rtol=1e-6, atol=0)


@pytest.mark.parametrize("size", [0.0, 0.01, 0.099])
def test_residuals_as_small_as_the_error_play_no_part(size):
    """Nor does the floor vanish where the noise has been learned by heart."""
    f = net()
    found = []
    for offset in (0.1, size):
        torch.manual_seed(1)
        floor = LabelNoise(f.parameters(), sigma=0.1)
        floor.backward(f(points()), f(points()).detach() - offset)
        found.append(flat(floor.values()))
    torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=0)


@pytest.mark.parametrize("size", [1.5, 10.0, 1e4])
def test_residuals_larger_than_the_error_lower_the_floor(size):
    """R = size^2: the R-th part of it."""
    f = net()
    found = []
    for offset in (0.0, 0.1 * size):
        torch.manual_seed(1)
        floor = LabelNoise(f.parameters(), sigma=0.1)
        floor.backward(f(points()), f(points()).detach() - offset)
        found.append(flat(floor.values()))
    torch.testing.assert_close(found[1], found[0] / size**2, rtol=1e-6, atol=0)


def test_every_term_has_a_misfit_of_its_own():
    """R = 9 in the first, below 1 in the second; one sample each, so no randomness."""
    p = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    floor = LabelNoise([p])
    floor.update([NoisyTerm(p[:1] - 0.3, 0.1), NoisyTerm(p[1:] - 0.3, 1.0)])
    torch.testing.assert_close(floor[p], torch.tensor([4 * 0.01 / 9, 4.0], dtype=p.dtype))


def test_exact_data_do_not_count_in_the_misfit():
    """sigma = 0 says nothing of how large a residual may be."""
    f = net()
    sigma = sigmas(7, 1)
    missed = torch.where(sigma == 0, 100.0, 0.0)
    found = []
    for target in (f(points()).detach(), f(points()).detach() - missed):
        torch.manual_seed(1)
        floor = LabelNoise(f.parameters(), sigma=sigma)
        floor.backward(f(points()), target)
        found.append(list(floor.values()))
    assert_same_bits(*found)


def test_complex_parameters_get_the_variances_of_both_parts():
    p = nn.Parameter(torch.tensor([1 + 2j, 3 - 1j], dtype=torch.complex128))
    a = torch.tensor([2 + 3j, 1j], dtype=torch.complex128)
    floor = LabelNoise([p])
    floor.update([NoisyTerm(exact((a * p).real.sum().reshape(1, 1)), 1.0)])
    real, imag = torch.view_as_real(floor[p]).unbind(-1)
    torch.testing.assert_close((real, imag), (4 * a.real**2, 4 * a.imag**2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit_parameters_have_a_float32_floor(dtype):
    """h^2 = 4e-10 underflows float16, and a hundredth of it is lost in bfloat16."""
    p = nn.Parameter(torch.ones(1, dtype=dtype))
    floor = LabelNoise([p])
    for sigma in (0.0, *[1e-5] * 99):
        floor.update([NoisyTerm(exact(p.reshape(1, 1)), sigma)])
    share = (1 - 0.99**99) / (1 - 0.99**100)
    assert floor[p].item() == pytest.approx(share * 4e-10, rel=0.02)


# The running average ---------------------------------------------------------------------------


def constant_draws(p: Tensor, scale: float = 1.0) -> list[NoisyTerm]:
    """A term whose h^2 is (2 scale)^2, whatever the signs."""
    return [NoisyTerm(exact(p.reshape(1, 1)), scale)]


@pytest.mark.parametrize("rho", [0.0, 0.9, 0.99])
def test_constant_draws_are_their_own_average_at_once(rho):
    p = nn.Parameter(torch.ones(1, dtype=torch.float64))
    floor = LabelNoise([p], rho=rho)
    for _ in range(5):
        floor.update(constant_draws(p))
        torch.testing.assert_close(floor[p], torch.full_like(p, 4.0))


def test_rho_is_the_weight_of_the_past():
    p = nn.Parameter(torch.ones(1, dtype=torch.float64))
    floor = LabelNoise([p], rho=0.75)
    mean = 0.0
    for t, scale in enumerate([1.0, 3.0, 0.0, 2.0], start=1):
        floor.update(constant_draws(p, scale))
        mean = 0.75 * mean + 0.25 * (2 * scale) ** 2
        assert floor[p].item() == pytest.approx(mean / (1 - 0.75**t), rel=1e-6)


@pytest.mark.parametrize("every", [1, 3])
def test_a_pass_every_so_many_calls(every):
    p = nn.Parameter(torch.ones(1))
    floor = LabelNoise([p], rho=0.0, every=every)
    found = []
    for call in range(1, 8):
        floor.update(constant_draws(p, float(call)))
        found.append((floor[p].item() ** 0.5) / 2)
    expected = [1, 2, 3, 4, 5, 6, 7] if every == 1 else [1, 1, 1, 4, 4, 4, 7]
    assert found == pytest.approx(expected)


def test_no_draw_where_there_is_no_pass():
    p = nn.Parameter(torch.ones(1))
    floor = LabelNoise([p], every=3)
    floor.update(constant_draws(p))
    before = torch.get_rng_state()
    floor.update(constant_draws(p))
    assert torch.equal(torch.get_rng_state(), before)


def test_no_terms_no_pass():
    p = nn.Parameter(torch.ones(1))
    floor = LabelNoise([p])
    floor.update([])
    assert not floor
    floor.update(constant_draws(p))
    before = floor[p]
    floor.update([])
    assert_same_bits(floor[p], before)


def test_a_mapping_empty_until_the_first_pass():
    f = net()
    frozen = nn.Parameter(torch.ones(2), requires_grad=False)
    floor = LabelNoise([*f.parameters(), frozen])
    first = next(f.parameters())
    assert len(floor) == 0 and list(floor) == [] and floor.get(first) is None
    floor.update([NoisyTerm(f(points()), 0.1)])
    assert list(floor) == list(floor.keys()) == list(f.parameters())
    assert len(floor) == len(floor.params) - 1 and first in floor
    assert frozen not in floor and floor.get(frozen) is None
    assert all(floor[p].shape == p.shape and not floor[p].requires_grad for p in floor)
    with pytest.raises(KeyError):
        floor[frozen]


def test_parameters_may_be_frozen_and_thawed():
    f = net()
    first, last = next(f.parameters()), list(f.parameters())[-1]
    first.requires_grad_(False)
    floor = LabelNoise(f.named_parameters(), rho=0.5)
    for _ in range(3):
        floor.update([NoisyTerm(f(points()), 0.1)], exact_terms=True)
        assert first not in floor.draws and first not in floor.noisy_grads
    assert first not in floor
    copied = LabelNoise(f.parameters(), rho=0.5)
    copied.load_state_dict(floor.state_dict())
    assert_same_bits([copied.get(p) for p in f.parameters()][1:], list(floor.values()))
    assert first not in copied
    first.requires_grad_(True)
    last.requires_grad_(False)
    before = floor[last]
    floor.update([NoisyTerm(f(points()), 0.1)], exact_terms=True)
    assert_same_bits(floor[last], before)
    torch.testing.assert_close(floor[first], floor.draws[first] ** 2)


def test_parameters_outside_of_the_graph_have_floor_zero():
    f, other = net(), nn.Parameter(torch.ones(3))
    floor = LabelNoise([*f.parameters(), other])
    floor.update([NoisyTerm(f(points()), 0.1)])
    assert torch.equal(floor[other], torch.zeros(3))
    assert all((floor[p] > 0).any() for p in f.parameters())


# backward --------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_extra", [False, True], ids=["", "extra"])
def test_backward_is_that_of_the_mean_squared_error(with_extra):
    x, y = batch(0)
    found = []
    for floored in (False, True):
        f = network()
        prediction = f(x)
        extra = 0.1 * sum(p.square().sum() for p in f.parameters()) if with_extra else None
        if floored:
            loss = LabelNoise(f.parameters(), sigma=0.1).backward(prediction, y, extra)
        else:
            loss = nn.functional.mse_loss(prediction, y)
            loss = loss if extra is None else loss + extra
            loss.backward()
        found.append([loss.detach(), *(p.grad for p in f.parameters())])
    assert_same_bits(found[1], found[0])
    assert not loss.requires_grad and loss.shape == ()


def test_update_leaves_gradients_and_grad_mode_alone():
    f = network()
    prediction = f(batch(0)[0])
    with torch.no_grad():
        LabelNoise(f.parameters()).update([NoisyTerm(prediction, 0.1)])
        assert not torch.is_grad_enabled()
    assert all(p.grad is None for p in f.parameters())


# Errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [-0.1, math.nan, math.inf, torch.tensor([0.1, -0.2])])
def test_wrong_error_is_refused(sigma):
    with pytest.raises(ValueError, match=r"sigma must be .*, got (-0\.1|nan|inf|-0\.2)"):
        LabelNoise(network().parameters(), sigma=sigma)


@pytest.mark.parametrize("rho", [-0.1, 1, 1.5, math.nan])
def test_wrong_rho_is_refused(rho):
    with pytest.raises(ValueError, match="rho"):
        LabelNoise(network().parameters(), rho=rho)


@pytest.mark.parametrize("every", [0, -1])
def test_wrong_every_is_refused(every):
    with pytest.raises(ValueError, match="every"):
        LabelNoise(network().parameters(), every=every)


def test_no_parameters_are_refused():
    with pytest.raises(ValueError, match="no parameters"):
        LabelNoise([])


@pytest.mark.parametrize("params", [torch.ones(2), [{"params": [torch.ones(2)]}], [1.0]])
def test_what_is_no_parameter_is_refused(params):
    with pytest.raises(TypeError, match="iterable of parameters"):
        LabelNoise(params)


@pytest.mark.parametrize("kind", ["frozen", "another network's"])
def test_a_prediction_that_depends_on_none_is_refused(kind):
    f, other = network(), network()
    floor = LabelNoise(f.parameters(), sigma=0.1)
    x, y = batch(0)
    if kind == "frozen":
        f.requires_grad_(False)
    with pytest.raises(ValueError, match="depends on none of this floor's parameters"):
        floor.backward((other if kind != "frozen" else f)(x), y)


def test_a_state_for_other_parameters_is_refused():
    floor = LabelNoise(nn.Linear(2, 8).parameters(), sigma=0.1)
    with pytest.raises(ValueError, match=r"\(1, 2\), \(1,\)\], not \[\(8, 2\), \(8,\)\]"):
        other = nn.Linear(2, 1)
        drawn = LabelNoise(other.parameters(), sigma=0.1)
        drawn.backward(other(torch.ones(3, 2)), torch.ones(3, 1))
        floor.load_state_dict(drawn.state_dict())


def test_a_state_with_one_number_of_passes():
    f = network()
    floor, old = LabelNoise(f.parameters(), sigma=0.1), LabelNoise(f.parameters(), sigma=0.1)
    for t in range(3):
        x, y = batch(t)
        floor.backward(f(x), y)
    old.load_state_dict({**floor.state_dict(), "passes": 3})
    assert_same_bits(list(old.values()), list(floor.values()))


def test_a_state_from_before_without_what_was_frozen():
    f = network()
    first = next(f.parameters())
    first.requires_grad_(False)
    floor = LabelNoise(f.parameters(), sigma=0.1)
    x, y = batch(0)
    floor.backward(f(x), y)
    state = floor.state_dict()
    old = {"mean_sq": state["mean_sq"][1:], "passes": 1, "calls": 1}
    loaded = LabelNoise(f.parameters(), sigma=0.1)
    loaded.load_state_dict(old)
    assert_same_bits(list(loaded.values()), list(floor.values()))


def test_residuals_out_of_the_graph_are_no_draw():
    f, other = network(), network()
    x, _ = batch(0)
    floor = LabelNoise(f.parameters())
    with pytest.raises(RuntimeError, match="does not require grad"):
        floor.update([NoisyTerm(f(x).detach(), 0.1)])
    floor.update([NoisyTerm(other(x), 0.1)])
    assert not floor


def test_a_draw_that_reaches_none_is_forgotten_by_the_next_call():
    f = network()
    x, y = batch(0)
    floor = LabelNoise(f.parameters(), sigma=0.1, every=2)
    f.requires_grad_(False)
    with pytest.raises(ValueError, match="depends on none"):
        floor.backward(f(x), y)
    f.requires_grad_(True)
    floor.backward(f(x), y)
    assert not floor.draws


def test_parameters_that_take_turns_have_floors_of_their_own():
    p, q = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    floor = LabelNoise([p, q], rho=0.9)
    for t in range(40):
        floor.update(constant_draws(p if t % 2 else q))
    both = LabelNoise([p], rho=0.9)
    both.update(constant_draws(p))
    torch.testing.assert_close([floor[p], floor[q]], [both[p], both[p]])


def test_no_terms_no_draws():
    p = nn.Parameter(torch.ones(1))
    floor = LabelNoise([p])
    floor.update(constant_draws(p))
    assert floor.draws
    floor.update([])
    assert not floor.draws


@pytest.mark.parametrize(
    "loss",
    [
        nn.MSELoss(),
        lambda a, b: (a - b).square().mean(),
        lambda a, b: (a - b).square().mean(dim=1).mean(),
    ],
)
def test_the_squared_error_goes_by_any_name(loss):
    assert LabelNoise([torch.ones(1)], loss=loss).loss is mse_loss


@pytest.mark.parametrize(
    "loss",
    [
        lambda a, b: (a - b).square().sum(1).mean(),
        lambda a, b: (a - b)[:, 0].square().mean(),
        lambda a, b: ((a - b).square() * torch.tensor([1.0, 2.0])).mean(),
    ],
)
def test_losses_that_are_no_mean_over_several_outputs_are_refused(loss):
    with pytest.raises(ValueError, match="mean over entries"):
        LabelNoise([torch.ones(1)], loss=loss)


@pytest.mark.parametrize("loss", [nn.HuberLoss(delta=5.0), lambda a, b: 2 * mse_loss(a, b)])
def test_others_are_no_squared_error(loss):
    assert LabelNoise([torch.ones(1)], loss=loss).loss is loss


def test_backward_needs_sigma_and_like_shapes():
    f = network()
    x, y = batch(0)
    with pytest.raises(ValueError, match=r"sigma=\.\.\."):
        LabelNoise(f.parameters()).backward(f(x), y)
    with pytest.raises(ValueError, match=r"\(16, 1\) and target \(16,\) differ"):
        LabelNoise(f.parameters(), sigma=0.1).backward(f(x), y[:, 0])


@pytest.mark.parametrize("shape", [(16,), (16, 2), (1, 16, 1)])
def test_an_error_that_would_blow_up_the_residual_is_refused(shape):
    """(16,) against (16, 1) makes (16, 16): a floor many times too high."""
    f = network()
    floor = LabelNoise(f.parameters(), sigma=torch.ones(shape))
    with pytest.raises(ValueError, match="does not broadcast"):
        floor.backward(f(batch(0)[0]), batch(0)[1])


# State -----------------------------------------------------------------------------------------


def fit_on(f, floor, steps: int) -> None:
    for t in range(steps):
        floor.update([NoisyTerm(f(batch(t)[0]), 0.1)])


def test_state_is_tensors_and_numbers_and_continues_with_the_same_bits():
    f = network()
    floor = LabelNoise(f.parameters(), rho=0.9, every=2)
    fit_on(f, floor, 3)
    file = io.BytesIO()
    torch.save(floor.state_dict(), file)
    file.seek(0)
    other = LabelNoise(f.parameters(), rho=0.9, every=2)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert_same_bits(list(other.values()), list(floor.values()))
    for continued in (floor, other):
        torch.manual_seed(3)
        fit_on(f, continued, 5)
    assert_same_bits(list(other.values()), list(floor.values()))
    assert_same_bits(other.state_dict(), floor.state_dict())


def test_a_state_from_before_the_first_pass_empties_the_floor():
    f = network()
    floor = LabelNoise(f.parameters())
    fit_on(f, floor, 2)
    floor.load_state_dict(LabelNoise(f.parameters()).state_dict())
    assert not floor


# With SNRAdam ----------------------------------------------------------------------------------


@pytest.mark.parametrize("gate", ["hard", "soft", "snr"])
@pytest.mark.parametrize(("sigma", "mean_q"), [(0.0, 1.0), (1e6, 0.0)])
def test_the_gate_sees_the_floor(gate, sigma, mean_q):
    """No error: nothing to hold back. An error that drowns the data: nothing to learn from."""
    f = network()
    before = flat(f.parameters())
    optimizer = SNRAdam(f.parameters(), gate=gate, gate_eps=0.0 if sigma else 1e-30)
    floor = LabelNoise(f.parameters(), sigma=sigma)
    for t in range(3):
        optimizer.zero_grad()
        floor.backward(f(batch(t)[0]), batch(t)[1])
        optimizer.step(floor=floor)
    assert optimizer.gate_stats().mean_q == pytest.approx(mean_q, abs=1e-3)
    moved = (flat(f.parameters()) - before).abs().max().item()
    assert moved > 1e-3 if mean_q else moved < 1e-5


def fitted(x: Tensor, measured: Tensor, steps: int, gate: str) -> Tensor:
    """The fit of an overparametrized model, linear in 60 random features."""
    rng = torch.Generator().manual_seed(1)
    frequencies = 30 * torch.randn(1, 60, generator=rng)
    features = torch.cos(x @ frequencies + 6 * torch.rand(60, generator=rng))
    w = nn.Parameter(torch.zeros(60, 1))
    optimizer = SNRAdam([w], lr=1e-2, gate=gate, alpha=9.0)
    floor = LabelNoise([w], sigma=0.5)
    torch.manual_seed(0)
    for _ in range(steps):
        optimizer.zero_grad()
        floor.backward(features @ w, measured)
        optimizer.step(floor=floor)
    return (features @ w).detach()


@pytest.fixture(scope="module")
def line():
    """20 points on a line and the error of their measurements, sigma = 0.5."""
    x = torch.linspace(-1, 1, 20)[:, None]
    return x, 0.5 * torch.randn(20, 1, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize(
    ("gate", "low", "high"),
    [("none", 0.99, 1.01), ("snr", 0.0, 0.85), ("soft", 0.0, 0.15), ("hard", 0.0, 0.15)],
)
def test_share_of_pure_noise_that_is_memorized(line, gate, low, high):
    """All of it by Adam; next to none behind a gate that closes (snr's only narrows)."""
    x, noise = line
    fit = fitted(x, noise, 300, gate)
    assert low < memorized_share(fit, torch.zeros_like(noise), noise) < high


@pytest.mark.parametrize("gate", ["snr", "soft", "hard"])
def test_a_strong_signal_is_fitted(line, gate):
    x, noise = line
    clean = 20 * torch.sin(3 * x)
    fit = fitted(x, clean + noise, 1000, gate)
    assert (fit - clean).norm() < 0.05 * clean.norm()


def test_a_step_that_the_optimizer_refuses_leaves_no_trace_in_the_floor():
    """NaN in one step's residuals, not in the next one's."""
    p = nn.Parameter(torch.ones(1))
    floor = LabelNoise([p])
    floor.update(constant_draws(p))
    before = floor[p].clone()
    floor.update([NoisyTerm((p * math.nan).reshape(1, 1), 1.0)])
    assert_same_bits(floor[p], before)
