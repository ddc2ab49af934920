"""Losses that know the error of their data: what they hand over, against loops over the samples."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import huber_loss, l1_loss, mse_loss

from sciml_snr import (
    NoisyLoss,
    NoisyTerm,
    SampledLoss,
    SigmaEstimate,
    SNRAdam,
    exact_label_noise,
)
from sciml_snr.measure.twins import memorized_share
from tests.cases import assert_same_bits, batch, flat, network
from tests.loops import (
    EXACT,
    MODELS,
    SAMPLES,
    assert_same_mean,
    assert_unbiased,
    derivatives,
    floors,
    gradient,
    gradients,
    label_loop,
    mlp,
    points,
    sampling_loop,
    squared_draws,
    still,
    tanh_net,
)

DRAWS = 500


def ids(case) -> str | None:
    return getattr(case, "__name__", None)


def one_draw(params, noise, loss: Callable[[], Tensor], **options) -> Tensor:
    """The floor after one step from the same seed."""
    torch.manual_seed(1)
    optimizer = still(params, noise, **options)
    optimizer.zero_grad()
    loss().backward()
    optimizer.step()
    return floors(optimizer, params)


# The label floor --------------------------------------------------------------------------------


@pytest.mark.parametrize("model", EXACT, ids=ids)
def test_label_draws_are_unbiased(model):
    """Several terms with weights; second and third derivatives; errors per sample and per value;
    minibatches and fresh data; a residual that is more than noise."""
    problem = model()
    trained = [p for p in problem.params if gradient(problem.total(), [p]).any()]
    optimizer = still(problem.params, problem.noisy)
    squares = squared_draws(optimizer, trained, lambda: problem.total().backward(), DRAWS)
    reference = label_loop(problem)
    assert_unbiased(squares, reference[-squares.shape[1] :])


def test_over_several_backward_passes():
    """Microbatches, each with its share of the mean: the floor of all data together."""
    problem = mlp()
    (loss,) = problem.noisy
    y = problem.data[0]

    def call() -> None:
        for part in torch.arange(SAMPLES).split(4):
            prediction = problem.predict()[0][part]
            (loss(prediction, y[part]) / 3).backward()

    optimizer = still(problem.params, loss)
    squares = squared_draws(optimizer, problem.params, call, DRAWS)
    assert_unbiased(squares, label_loop(problem))


def test_one_sample_has_no_randomness():
    problem = mlp(1)
    found = one_draw(problem.params, problem.noisy, problem.total)
    torch.testing.assert_close(found, label_loop(problem), rtol=1e-9, atol=0)


def test_exact_terms_beside_are_no_noise():
    """An equation with second derivatives, and one that is as random as can be."""
    problem = mlp()
    alone = one_draw(problem.params, problem.noisy, problem.total)
    f, inside = tanh_net(1), points(5, 1)

    def loss() -> Tensor:
        u, _, u_xx = derivatives(f, inside, 2)
        own = sum((p**2).sum() for p in problem.params)
        return 3 * problem.total() + own + 7 * (u_xx - u).square().mean()

    together = one_draw(problem.params, problem.noisy, loss)
    torch.testing.assert_close(together, 9 * alone)


@pytest.mark.parametrize("factor", [1e-3, 0.5, 10.0])
@pytest.mark.parametrize("scaled", ["sigma", "weight"])
def test_scales_with_the_squares_of_error_and_weight(scaled, factor):
    f, x = tanh_net(2), points(7, 2)
    params = list(f.parameters())
    found = []
    for change in (1.0, factor):
        sigma, weight = (change, 1.5) if scaled == "sigma" else (0.3, change)
        noisy = NoisyLoss(sigma)
        found.append(one_draw(params, noisy, lambda n=noisy, w=weight: w * n(f(x), f(x).detach())))
    torch.testing.assert_close(found[1], factor**2 * found[0], rtol=1e-6, atol=0)


@pytest.mark.parametrize("loss", ["mse", "huber", "l1"])
def test_reductions_make_the_same_floor_of_the_same_total(loss):
    f, x, y = tanh_net(2, 2), points(7, 2), points(7, 2)
    params = list(f.parameters())
    mean, total, none = (NoisyLoss(0.3, loss, reduction=r) for r in ("mean", "sum", "none"))
    expected = one_draw(params, mean, lambda: mean(f(x), y))
    for noisy, whole in (
        (total, lambda: total(f(x), y) / 14),
        (none, lambda: none(f(x), y).mean()),
        (none, lambda: none(f(x), y).sum() / 14),
    ):
        torch.testing.assert_close(one_draw(params, noisy, whole), expected)


def test_weights_of_single_data_count():
    """One sample each, so no randomness: (2 w_i sigma)^2 of entry i."""
    p = nn.Parameter(torch.zeros(4, 1, dtype=torch.float64))
    weights = torch.tensor([[0.0], [0.5], [1.0], [-3.0]], dtype=torch.float64)
    noisy = NoisyLoss(0.5, reduction="none")
    found = one_draw([p], noisy, lambda: (weights * noisy(p * 1.0, torch.zeros_like(p))).sum())
    torch.testing.assert_close(found, weights.flatten() ** 2)


def test_sigma_of_a_call_goes_before_the_losses_own():
    f, x, y = tanh_net(2), points(7, 2), points(7, 1)
    params, sigma = list(f.parameters()), torch.linspace(1, 2, 7)[:, None]
    noisy, own = NoisyLoss(0.3), NoisyLoss(sigma)
    expected = one_draw(params, own, lambda: own(f(x), y))
    found = one_draw(params, noisy, lambda: noisy(f(x), y, sigma=sigma))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    "sigma",
    [
        SigmaEstimate(0.3, 0.01, 100, "by hand"),
        np.float32(0.3),
        np.full((1, 1), 0.3),
        [[0.3]],
        torch.tensor(0.3, dtype=torch.float64),
        nn.Parameter(torch.full((7, 1), 0.3, dtype=torch.float64)),
        np.full(2, 0.3),
    ],
)
def test_sigma_goes_by_what_broadcasts(sigma):
    f, x, y = tanh_net(2, 2), points(7, 2), points(7, 2)
    params = list(f.parameters())
    noisy, number = NoisyLoss(sigma), NoisyLoss(0.3)
    found = one_draw(params, noisy, lambda: noisy(f(x), y))
    expected = one_draw(params, number, lambda: number(f(x), y))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


def test_one_sigma_per_component():
    f, x = tanh_net(2, 2), points(7, 2)
    params = list(f.parameters())
    noisy, first = NoisyLoss(torch.tensor([0.3, 0.0])), NoisyLoss(0.3, reduction="sum")
    y = f(x).detach()
    found = squared_draws(still(params, noisy), params, lambda: noisy(f(x), y).backward(), DRAWS)
    rows = gradients(f(x)[:, 0], params)
    expected = ((2 * 0.3 / 14) ** 2 * rows.square()).sum(0)
    used = expected > 0
    assert_unbiased(found[:, used], expected[used])
    assert not found[:, ~used].any()
    assert first.reduction == "sum"


def test_order_of_prediction_and_target_does_not_matter():
    """DeepXDE calls loss(zeros, error)."""
    f, x, y = tanh_net(2), points(7, 2), points(7, 1)
    params, noisy = list(f.parameters()), NoisyLoss(0.3)
    expected = one_draw(params, noisy, lambda: noisy(f(x), y))
    for call in (lambda: noisy(y, f(x)), lambda: noisy(torch.zeros_like(y), f(x) - y)):
        torch.testing.assert_close(one_draw(params, noisy, call), expected)


# Residuals --------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0.0, 0.01, 0.099])
def test_residuals_as_small_as_the_error_play_no_part(size):
    """Nor does the floor vanish where the noise has been learned by heart."""
    f, x = tanh_net(2), points(7, 2)
    params, noisy = list(f.parameters()), NoisyLoss(0.1)
    found = [
        one_draw(params, noisy, lambda o=offset: noisy(f(x), f(x).detach() - o))
        for offset in (0.1, size)
    ]
    torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=0)


@pytest.mark.parametrize("size", [1.5, 10.0, 1e4])
def test_residuals_larger_than_the_error_lower_the_floor(size):
    """R = size^2: the R-th part of it."""
    f, x = tanh_net(2), points(7, 2)
    params, noisy = list(f.parameters()), NoisyLoss(0.1)
    found = [
        one_draw(params, noisy, lambda o=offset: noisy(f(x), f(x).detach() - o))
        for offset in (0.0, 0.1 * size)
    ]
    torch.testing.assert_close(found[1], found[0] / size**2, rtol=1e-6, atol=0)


def test_every_term_has_a_misfit_of_its_own():
    """R = 9 in the first, below 1 in the second; one sample each, so no randomness."""
    p = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    first, second = NoisyLoss(0.1), NoisyLoss(1.0)
    y = torch.full((1,), 0.3, dtype=torch.float64)
    found = one_draw([p], [first, second], lambda: first(p[:1], y) + second(p[1:], y))
    torch.testing.assert_close(found, torch.tensor([4 * 0.01 / 9, 4.0], dtype=p.dtype))


@pytest.mark.parametrize("exact", ["of sigma 0", "of weight 0"])
def test_data_that_do_not_count_are_no_part_of_the_misfit(exact):
    """They say nothing of how large a residual may be."""
    f, x = tanh_net(2), points(7, 2)
    params = list(f.parameters())
    counts = torch.tensor([1.0, 1, 0, 1, 1, 0, 1], dtype=torch.float64)[:, None]
    noisy = NoisyLoss(0.1 * counts if exact == "of sigma 0" else 0.1, reduction="none")

    def loss(missed: float) -> Tensor:
        target = f(x).detach() - missed * (1 - counts)
        values = noisy(f(x), target)
        return values.sum() if exact == "of sigma 0" else (counts * values).sum()

    found = [one_draw(params, noisy, lambda m=missed: loss(m)) for missed in (0.0, 100.0)]
    assert_same_bits(*found)


# Other losses -----------------------------------------------------------------------------------


def log_cosh(prediction: Tensor, target: Tensor) -> Tensor:
    return (prediction - target).cosh().log().mean()


@pytest.mark.parametrize(
    "loss", ["huber", "l1", log_cosh], ids=lambda loss: getattr(loss, "__name__", loss)
)
def test_label_floor_of_other_losses(loss):
    """At the truth: the gradient's mean square (its mean is 0) over draws of the data's error."""
    problem, sigma = mlp(), torch.linspace(0.3, 2, SAMPLES, dtype=torch.float64)[:, None]
    truth = problem.predict()[0].detach()
    noisy = NoisyLoss(sigma, loss)
    optimizer = still(problem.params, noisy)
    squares = squared_draws(
        optimizer,
        problem.params,
        lambda: noisy(problem.predict()[0], truth).backward(),
        DRAWS,
    )
    prediction, found = problem.predict()[0], []
    for _ in range(DRAWS):
        measured = truth + sigma * torch.randn_like(truth)
        found.append(gradient(noisy(prediction, measured), problem.params))
    assert_same_mean(squares, torch.stack(found).square())
    exact = exact_label_noise(problem.params, [NoisyTerm(prediction - truth, sigma, loss=loss)])
    assert_unbiased(squares, flat(exact.values()))


def test_delta_of_the_huber_loss():
    p = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    noisy = NoisyLoss(100.0, "huber", delta=0.25)
    found = one_draw([p], noisy, lambda: noisy(p * 1.0, torch.zeros_like(p)))
    assert found.item() == pytest.approx(0.25**2, rel=1e-2)  # nearly all errors are outside


# It is the plain loss ---------------------------------------------------------------------------

THEIRS = {"mse": mse_loss, "huber": huber_loss, "l1": l1_loss}
PLAIN = [
    *((name, reduction) for name in THEIRS for reduction in ("mean", "sum", "none")),
    (log_cosh, "mean"),
]


@pytest.mark.parametrize("declared", [False, True])
@pytest.mark.parametrize(
    ("loss", "reduction"), PLAIN, ids=lambda part: getattr(part, "__name__", part)
)
def test_values_and_gradients_are_the_plain_losses(loss, reduction, declared):
    x, y = batch(0)
    found = []
    for ours in (False, True):
        f = network()
        if ours:
            noisy = NoisyLoss(0.1, loss, reduction=reduction)
            optimizer = SNRAdam(f.parameters(), noise=noisy) if declared else None
            value = noisy(f(x), y)
        elif loss is log_cosh:
            value = log_cosh(f(x) - y, torch.zeros_like(y))
        else:
            value = THEIRS[loss](f(x), y, reduction=reduction)
        (value if reduction != "none" else value.square().sum()).backward()
        found.append([value.detach(), *(p.grad for p in f.parameters())])
    assert_same_bits(found[1], found[0])
    assert optimizer is None or optimizer.noise == [noisy]


@pytest.mark.parametrize("kind", [NoisyLoss(0.1), SampledLoss()], ids=["label", "sampling"])
def test_under_another_optimizer_it_is_a_loss_like_any(kind):
    f, g = network(), network()
    theirs, ours = (torch.optim.Adam(net.parameters(), lr=1e-2) for net in (f, g))
    for t in range(5):
        x, y = batch(t)
        for net, optimizer, loss in ((f, theirs, nn.MSELoss()), (g, ours, kind)):
            optimizer.zero_grad()
            loss(net(x), y).backward()
            optimizer.step()
    assert_same_bits([p.detach() for p in g.parameters()], [p.detach() for p in f.parameters()])


def test_higher_derivatives_go_through_it():
    f, x, y = tanh_net(2), points(7, 2), points(7, 1)
    params, noisy = list(f.parameters()), NoisyLoss(0.1)
    optimizer = SNRAdam(params, noise=noisy)
    found = []
    for loss in (nn.MSELoss(), noisy):
        first = torch.autograd.grad(loss(f(x), y), params, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), params)
        found.append([g.detach() for g in (*first, *second)])
    torch.testing.assert_close(found[1], found[0])
    assert optimizer.noise == [noisy]


# Sampling ---------------------------------------------------------------------------------------


def sampled(problem, noisy: SampledLoss) -> Tensor:
    """The terms side by side, each scaled by the root of its weight: a sample is a row."""
    parts = [
        spec.get("weight", 1.0) ** 0.5 * torch.stack([prediction, y])
        for prediction, y, spec in zip(problem.predict(), problem.data, problem.specs, strict=True)
    ]
    return noisy(*torch.cat(parts, dim=2)).mean(0).sum()


@pytest.mark.parametrize("model", MODELS, ids=ids)
def test_sampling_draws_are_unbiased(model):
    """Of the variance of a batch's gradient, of which the first moment leaves 1 / 19."""
    problem = model()
    noisy = SampledLoss(reduction="none")
    optimizer = still(problem.params, noisy)
    squares = squared_draws(
        optimizer, problem.params, lambda: sampled(problem, noisy).backward(), DRAWS
    )
    assert_unbiased(squares, sampling_loop(problem) / 19)


def test_centered_signs_do_what_plain_signs_need_a_mean_gradient_for():
    """(E h^2 - gbar^2 / b) b / (b - 1) with h the gradient of sum eps_i l_i / b."""
    problem = mlp()
    losses, b = problem.losses(), SAMPLES
    mean = gradient(losses.mean(), problem.params)
    signs = torch.randint(0, 2, (DRAWS, b)) * 2.0 - 1
    plain = torch.stack([gradient((eps * losses).sum() / b, problem.params) for eps in signs])
    published = (plain**2 - mean**2 / b) * b / (b - 1)
    assert_unbiased(published, sampling_loop(problem))
    noisy = SampledLoss()
    optimizer = still(problem.params, noisy, betas=(0.0, 0.999))
    centered = squared_draws(
        optimizer,
        problem.params,
        lambda: noisy(problem.predict()[0], problem.data[0]).backward(),
        DRAWS,
    )
    assert_same_mean(centered, published)


@pytest.mark.parametrize(
    ("population", "beta1", "factor"),
    [
        (math.inf, 0.0, 1.0),
        (4 * SAMPLES, 0.0, 0.75),
        (SAMPLES, 0.0, 0.0),
        (SAMPLES - 1, 0.0, 0.0),
        (math.inf, 0.5, 1 / 3),
        (2 * SAMPLES, 0.9, 0.5 / 19),
    ],
)
def test_factors_of_the_sampling_floor(population, beta1, factor):
    """A full batch, or more, is always the same one."""
    problem = mlp()

    def floor(population, beta1):
        noisy = SampledLoss(population=population)
        return one_draw(
            problem.params,
            noisy,
            lambda: noisy(problem.predict()[0], problem.data[0]),
            betas=(beta1, 0.999),
        )

    torch.testing.assert_close(floor(population, beta1), factor * floor(math.inf, 0.0))


@pytest.mark.parametrize("shape", [(), (1,), (1, 4)])
def test_one_sample_is_no_sample_of_samples(shape):
    p = nn.Parameter(torch.ones(shape))
    noisy = SampledLoss()
    optimizer = SNRAdam([p], noise=noisy)
    with pytest.raises(ValueError, match="two or more samples"):
        noisy(p * 1.0, torch.zeros(shape))
    assert optimizer.noise == [noisy]


# Batches out of a population, and the first moment ----------------------------------------------

SIZE, BATCH, BETA1, SIGMA = 24, 6, 0.9, 0.4


def linear() -> tuple[nn.Parameter, Tensor]:
    """Weights of a linear model and its 24 inputs."""
    torch.manual_seed(6)
    return nn.Parameter(torch.randn(5, 1, dtype=torch.float64)), points(SIZE, 5)


def batches(runs: int) -> Tensor:
    """(runs, 24): 1 for the 6 that a run draws without replacement, 0 for others."""
    chosen = torch.rand(runs, SIZE).argsort(1)[:, :BATCH]
    return torch.zeros(runs, SIZE, dtype=torch.float64).scatter_(1, chosen, 1.0)


def first_moment(gradient_at_a_step: Callable[[], Tensor], steps: int = 90) -> Tensor:
    """Bias-corrected, (runs, parameters). 0.9^90 = 8e-5: stationary."""
    m = torch.zeros(())
    for _ in range(steps):
        m = BETA1 * m + (1 - BETA1) * gradient_at_a_step()
    return m / (1 - BETA1**steps)


@pytest.mark.parametrize("parts", [1, 2], ids=["whole", "accumulated"])
@pytest.mark.parametrize(
    ("population", "factor"),
    [(None, 1.0), (SIZE, 1 / 4 + 3 / 4 / 19), (math.inf, 1 / 19)],
    ids=["all", "minibatches", "fresh"],
)
def test_label_floor_is_the_variance_of_the_first_moment(population, factor, parts):
    """Simulated over errors of the data and orders of the batches.

    Tolerance: 3 standard errors of the sum over parameters, of some 3 % each; the three factors
    are 1, 0.29 and 0.05.
    """
    w, x = linear()
    runs = 2000
    errors = SIGMA * torch.randn(runs, SIZE, dtype=torch.float64)

    def step() -> Tensor:
        if population is None:
            return -2 / SIZE * errors @ x
        if population == math.inf:
            errors.normal_(std=SIGMA)
        return -2 / BATCH * (batches(runs) * errors) @ x

    simulated = first_moment(step).square()  # of mean 0
    rows = torch.arange(SIZE)[None].expand(DRAWS, -1)
    if population is not None:
        rows = batches(DRAWS).nonzero()[:, 1].reshape(DRAWS, BATCH)
    documented = factor * 4 * SIGMA**2 / len(rows[0]) * x.square().mean(0)
    assert_unbiased(simulated, documented)
    noisy, queue = NoisyLoss(SIGMA, population=population), iter(rows)

    def call() -> None:
        own = next(queue)
        for part in own.split(len(own) // parts):
            (noisy(x[part] @ w, (x[part] @ w).detach()) / parts).backward()

    squares = squared_draws(still([w], noisy, betas=(BETA1, 0.999)), [w], call, DRAWS)
    assert_same_mean(squares, simulated)


@pytest.mark.parametrize("beta1", [0.0, 0.9])
def test_sampling_floor_is_the_variance_of_the_first_moment(beta1):
    """Batches of 6 out of 24 rows drawn anew in every step; beta1 = 0: of the gradient."""
    w, x = linear()
    y = torch.randn(SIZE, 1, dtype=torch.float64)
    rows = gradients((x @ w - y).square(), [w])
    mean = rows.mean(0)

    def step() -> Tensor:
        return batches(2000) @ rows / BATCH - mean

    simulated = (first_moment(step) if beta1 else step()).square()
    noisy = SampledLoss(population=SIZE)

    def call() -> None:
        i = batches(1)[0].bool()
        noisy(x[i] @ w, y[i]).backward()

    squares = squared_draws(still([w], noisy, betas=(beta1, 0.999)), [w], call, DRAWS)
    assert_same_mean(squares, simulated)
    left = (1 - BATCH / SIZE) * (1 - beta1) / (1 + beta1)
    assert_unbiased(simulated, left * rows.var(0) / BATCH)


# Parameters of all kinds ------------------------------------------------------------------------

KINDS = pytest.mark.parametrize(
    "kind", [lambda: NoisyLoss(0.1), SampledLoss], ids=["label", "sampling"]
)


@KINDS
def test_complex_parameters_get_the_variances_of_both_parts(kind):
    """As if the parts were parameters of their own."""
    a = torch.randn(3, dtype=torch.complex128, generator=torch.Generator().manual_seed(5))

    class Parts(nn.Module):
        def __init__(self, *values: Tensor) -> None:
            super().__init__()
            self.values = nn.ParameterList(values)

        def forward(self, x: Tensor) -> Tensor:
            z = self.values[0] if len(self.values) == 1 else torch.complex(*self.values)
            return x[:, :1] * (a * z).real.sum() + x[:, 1:] * (z * z).imag.sum()

    found = []
    for f in (Parts(a.clone()), Parts(a.real.clone(), a.imag.clone())):
        torch.manual_seed(5)
        noisy = kind()
        optimizer = SNRAdam(f.parameters(), noise=noisy)
        for t in range(3):
            x, y = batch(t, dtype=torch.float64)
            optimizer.zero_grad()
            noisy(f(x), y).backward()
            optimizer.step()
        found.append(([p.detach() for p in f.parameters()], list(f.parameters()), optimizer))
    (values, both, optimizer), (parts, real_imag, other) = found
    torch.testing.assert_close(torch.view_as_real(values[0]), torch.stack(parts, -1))
    floor = optimizer.moments(both[0]).floor.reshape(3, 2).unbind(-1)
    torch.testing.assert_close(list(floor), [other.moments(p).floor for p in real_imag])


def test_the_variances_of_both_parts_by_hand():
    p = nn.Parameter(torch.tensor([1 + 2j, 3 - 1j], dtype=torch.complex128))
    a = torch.tensor([2 + 3j, 1j], dtype=torch.complex128)
    noisy = NoisyLoss(1.0)

    def loss() -> Tensor:
        prediction = (a * p).real.sum().reshape(1, 1)
        return noisy(prediction, prediction.detach())

    found = one_draw([p], noisy, loss).reshape(2, 2)
    torch.testing.assert_close(found, 4 * torch.stack([a.real**2, a.imag**2], -1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit_parameters_have_a_float32_floor(dtype):
    """h^2 = 4e-10 underflows float16, and a hundredth of it is lost in bfloat16."""
    p = nn.Parameter(torch.ones(1, dtype=dtype))
    noisy = NoisyLoss(0.0)
    optimizer = SNRAdam([p], lr=0.0, noise=noisy)
    for sigma in (0.0, *[1e-5] * 99):
        optimizer.zero_grad()
        noisy(p.reshape(1, 1), p.detach().reshape(1, 1), sigma=sigma).backward()
        optimizer.step()
    assert optimizer.state[p]["exp_floor"].dtype == torch.float32
    share = (1 - 0.99**99) / (1 - 0.99**100)
    moments = optimizer.moments(p)
    found = moments.floor.item() / moments.floor_weight
    assert found == pytest.approx(share * 4e-10, rel=0.02)


@KINDS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_networks_have_about_the_floor_of_float32(kind, dtype):
    """Signs are the same."""
    found = []
    x, y = batch(0)
    for precision in (dtype, torch.float32):
        f, noisy = network(dtype).to(precision), kind()
        found.append(
            one_draw(
                list(f.parameters()),
                noisy,
                lambda f=f, n=noisy: n(f(x.to(f[0].weight)), y.to(f[0].weight)),
            )
        )
    assert (found[0] - found[1]).norm() < 0.1 * found[1].norm()


def test_many_data_in_float16_have_a_floor():
    """Their sum of squares is beyond its range."""
    x, found = torch.linspace(0.5, 1, 70_000)[:, None], []
    for dtype in (torch.float16, torch.float32):
        w, noisy = nn.Parameter(torch.ones(1, 1, dtype=dtype)), NoisyLoss(0.5, reduction="none")
        rows = x.to(dtype)
        found.append(
            one_draw([w], noisy, lambda w=w, n=noisy, r=rows: n(r @ w, r - 1.0).mul(1e-3).sum())
        )  # R = 4
    torch.testing.assert_close(found[0], found[1], rtol=0.05, atol=0)


def convolutional() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 2, 3, padding=1))


def test_channels_last():
    """The same floor as in the usual memory format."""
    x = torch.randn(3, 2, 5, 5, generator=torch.Generator().manual_seed(1))
    found = []
    for layout in (torch.contiguous_format, torch.channels_last):
        f = convolutional().to(memory_format=layout)
        noisy, optimizer = NoisyLoss(0.3), None
        torch.manual_seed(1)
        optimizer = SNRAdam(f.parameters(), noise=noisy)
        for _ in range(3):
            optimizer.zero_grad()
            noisy(f(x.to(memory_format=layout)), x).backward()
            optimizer.step()
        found.append(
            [(p.detach().contiguous(), optimizer.moments(p).floor) for p in f.parameters()]
        )
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("outside", [False, True], ids=["inside", "loss outside"])
@KINDS
def test_autocast(kind, outside):
    """Close to the floor without it, in float32, and the training goes on."""
    x, y = batch(0)
    found = []
    for enabled in (False, True):
        f, noisy = network(), kind()
        torch.manual_seed(1)
        optimizer = SNRAdam(f.parameters(), lr=1e-2, noise=noisy)
        for _ in range(3):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                prediction = f(x)
                loss = None if outside else noisy(prediction, y)
            loss = noisy(prediction.float(), y) if outside else loss
            loss.backward()
            optimizer.step()
        assert not optimizer.beside_exact
        found.append(floors(optimizer, f.parameters()))
        assert found[-1].dtype == torch.float32
    assert (found[1] - found[0]).norm() < 0.1 * found[0].norm()


@pytest.mark.parametrize("exact", [False, True], ids=["data alone", "beside exact"])
@pytest.mark.parametrize("outside", [False, True], ids=["inside", "loss outside"])
def test_a_scale_that_is_right_for_the_gradient_is_right_for_the_draws(outside, exact):
    """GradScaler raises its scale until a gradient overflows in float16. At the end of a fit, where
    the gradient has cancelled out, draws of the noise and the noisy terms' part would overflow long
    before that."""
    x, _ = batch(0)
    wave, found = 0.02 * torch.sin(9 * x[:, 1:]), []
    middle = network()(x).detach()

    def total(prediction: Tensor) -> Tensor:
        loss = noisy(prediction, middle + wave)
        return loss + mse_loss(prediction, middle - wave) if exact else loss

    for scale in (1.0, 2.0 ** (24 if exact else 22)):
        f, noisy = network(), NoisyLoss(1.0)
        torch.manual_seed(1)
        optimizer = still(f.parameters(), noisy)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale, enabled=scale > 1)
        with torch.autocast("cpu", torch.float16, enabled=scale > 1):
            prediction = f(x)
            loss = None if outside else total(prediction)
        loss = total(prediction.float()) if outside else loss
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        assert optimizer.state["noise"]["steps"] == 1
        found.append(floors(optimizer, f.parameters()))
    assert (found[1] - found[0]).norm() < 0.02 * found[0].norm()


def test_the_rounding_of_autocast_is_no_exact_term():
    """Gradients of several losses are added up in 16 bits, and apart in 32."""
    x, y = batch(0)
    f, losses = network(), [NoisyLoss(0.1) for _ in range(5)]
    optimizer = SNRAdam(f.parameters(), lr=1e-2, noise=losses)
    with torch.autocast("cpu", torch.bfloat16):
        sum(noisy(f(x[i::5]), y[i::5]) for i, noisy in enumerate(losses)).backward()
    optimizer.step()
    assert optimizer.beside_exact is False


@pytest.mark.parametrize("sigma", [1e-9, 1e5])
def test_a_sigma_that_is_no_half_precision_number_is_refused(sigma):
    x, y = (t.half() for t in batch(0))
    f, data = network().half(), NoisyLoss(sigma)
    optimizer = SNRAdam(f.parameters(), noise=data)
    with pytest.raises(ValueError, match=r"cannot be used in torch\.float16"):
        data(f(x), y)
    assert not optimizer.beside_exact


def test_a_term_without_data_is_none():
    """A condition that has no points on this boundary."""
    w = nn.Parameter(torch.ones(3, 1))
    found = []
    for extra in (False, True):
        data, empty = NoisyLoss(0.1), NoisyLoss(0.3, reduction="sum")
        noise = [data, empty] if extra else data

        def loss(data=data, empty=empty, extra=extra) -> Tensor:
            whole = data(w * 1.0, torch.ones(3, 1))
            return whole + empty(w[:0], torch.ones(0, 1)) if extra else whole

        found.append(one_draw([w], noise, loss) > 0)
    assert_same_bits(*found)


# What is refused --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sigma",
    [-0.1, math.nan, math.inf, torch.tensor([0.1, -0.2]), torch.tensor([[0.1], [math.inf]])],
)
def test_an_impossible_error_is_refused(sigma):
    w = nn.Parameter(torch.ones(2, 1))
    with pytest.raises(
        ValueError, match=r"sigma must be finite and >= 0, got (-0\.1|nan|inf|-0\.2)"
    ):
        NoisyLoss(sigma)
    noisy = NoisyLoss(0.1)
    optimizer = SNRAdam([w], noise=noisy)
    with pytest.raises(ValueError, match=r"sigma must be finite and >= 0"):
        noisy(w * 1.0, torch.zeros(2, 1), sigma=sigma)
    assert optimizer.noise == [noisy]


@pytest.mark.parametrize("sigma", [None, "0.1x", object(), [None]])
def test_an_error_that_is_no_number_is_refused(sigma):
    with pytest.raises(ValueError, match="sigma must be a number or an array"):
        NoisyLoss(sigma)


def test_an_error_to_be_estimated_names_the_estimators():
    with pytest.raises(ValueError, match="estimate_sigma_scattered"):
        NoisyLoss("estimate")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("size", ["small", "large"])
def test_an_error_whose_square_leaves_the_dtype_is_refused(dtype, size):
    """Without a floor the published rule would take over in silence."""
    sigma = {"small": 1e-20, "large": 1e20}[size] ** (10 if dtype == torch.float64 else 1)
    f = network(dtype)
    noisy = NoisyLoss(sigma)
    optimizer = SNRAdam(f.parameters(), noise=noisy)
    x, y = batch(0, dtype=dtype)
    with pytest.raises(ValueError, match=r"square is (0|infinite) there"):
        noisy(f(x), y)
    assert optimizer.noise == [noisy]
    by_sample = NoisyLoss(torch.tensor([[0.1]] * 15 + [[sigma]], dtype=torch.float64))
    optimizer.declare(by_sample)
    with pytest.raises(ValueError, match=r"square is (0|infinite) there"):
        by_sample(f(x), y)


@pytest.mark.parametrize("sigma", [1e-20, 1e20])
def test_so_is_that_of_a_single_call(sigma):
    f, noisy = network(), NoisyLoss(0.1)
    optimizer = SNRAdam(f.parameters(), noise=noisy)
    x, y = batch(0)
    noisy(f(x), y)
    with pytest.raises(ValueError, match=r"square is (0|infinite) there"):
        noisy(f(x), y, sigma=sigma)
    assert optimizer.noise == [noisy]


@pytest.mark.parametrize(("weight", "sigma"), [(1e-20, 0.1), (1e-3, 1e-18)])
def test_noise_whose_square_is_0_is_refused_at_the_step(weight, sigma):
    f, noisy = network(), NoisyLoss(sigma)
    optimizer = SNRAdam(f.parameters(), noise=noisy)
    x, y = batch(0)
    (weight * noisy(f(x), y)).backward()
    with pytest.raises(FloatingPointError, match=r"its square is 0 in torch\.float32.*too small"):
        optimizer.step()


@pytest.mark.parametrize("shape", [(16,), (16, 2), (1, 16, 1)])
def test_values_of_another_shape_are_refused(shape):
    """(16,) against (16, 1) makes (16, 16), and trains on the mean."""
    f = network()
    for noisy in (NoisyLoss(0.1), SampledLoss()):
        with pytest.raises(ValueError, match=r"\(16, 1\) and target .* differ.*y\[:, None\]"):
            noisy(f(batch(0)[0]), torch.zeros(shape))


@pytest.mark.parametrize("shape", [(16,), (16, 2), (1, 16, 1)])
def test_an_error_that_would_blow_up_the_residual_is_refused(shape):
    """(16,) against (16, 1) makes (16, 16): a floor many times too high."""
    f, noisy = network(), NoisyLoss(torch.ones(shape))
    optimizer = SNRAdam(f.parameters(), noise=noisy)
    with pytest.raises(ValueError, match=r"does not broadcast.*\(n, 1\) for one per sample"):
        noisy(*[f(batch(0)[0]), batch(0)[1]])
    assert optimizer.noise == [noisy]


@pytest.mark.parametrize("population", [0, -1, math.nan])
def test_an_empty_population_is_refused(population):
    for kind in (lambda **options: NoisyLoss(0.1, **options), SampledLoss):
        with pytest.raises(ValueError, match="population must be a positive number"):
            kind(population=population)


@pytest.mark.parametrize("reduction", ["Mean", None, "batchmean"])
def test_an_unknown_reduction_is_refused(reduction):
    with pytest.raises(ValueError, match="reduction must be one of 'mean', 'sum', 'none'"):
        NoisyLoss(0.1, reduction=reduction)


def test_a_mean_has_no_other_reduction_and_no_samples():
    with pytest.raises(ValueError, match="log_cosh is a mean"):
        NoisyLoss(0.1, log_cosh, reduction="sum")
    with pytest.raises(ValueError, match="log_cosh is a mean"):
        SampledLoss(log_cosh)


@pytest.mark.parametrize("loss", ["mse_loss", nn.CrossEntropyLoss()])
def test_losses_without_a_floor_are_refused(loss):
    with pytest.raises(ValueError, match=r"Unknown loss|no label floor"):
        NoisyLoss(0.1, loss)


# A module like any ------------------------------------------------------------------------------


def test_it_says_what_it_is():
    assert repr(NoisyLoss(0.25, "huber")) == "NoisyLoss(sigma=0.25, loss='huber')"
    by_sample = NoisyLoss(np.linspace(0.1, 0.5, 3)[:, None])
    assert by_sample.describe() == ["NoisyLoss, mse, sigma 0.1 to 0.5"]
    assert SampledLoss("l1").describe() == ["SampledLoss, l1, which samples were drawn"]


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"]
)
@KINDS
def test_a_copy_is_a_loss_that_hands_nothing_over(kind, copied):
    f, noisy = network(), kind()
    optimizer = SNRAdam(f.parameters(), noise=noisy)
    x, y = batch(0)
    noisy(f(x), y).backward()
    optimizer.step()
    optimizer.zero_grad()
    twin = copied(noisy)
    assert torch.equal(twin(f(x), y), noisy(f(x), y))
    twin(f(x), y).backward()
    with pytest.raises(RuntimeError, match="no backward pass of a declared noisy loss"):
        optimizer.step()


def test_a_loss_is_no_part_of_a_network():
    """Neither parameters nor buffers: a checkpoint of a module that holds it loads anywhere."""
    assert not list(NoisyLoss(torch.ones(3, 1)).parameters())
    assert not NoisyLoss(torch.ones(3, 1)).state_dict()


# In training ------------------------------------------------------------------------------------


@pytest.mark.parametrize("gate", ["hard", "soft", "snr", "stein"])
@pytest.mark.parametrize(("sigma", "mean_q"), [(0.0, 1.0), (1e6, 0.0)])
def test_the_gate_sees_the_floor(gate, sigma, mean_q):
    """No error: nothing to hold back. An error that drowns the data: nothing to learn from."""
    f = network()
    before = flat(f.parameters())
    noisy = NoisyLoss(sigma)
    optimizer = SNRAdam(f.parameters(), gate={"form": gate, "z": 1.0}, noise=noisy)
    for t in range(3):
        optimizer.zero_grad()
        noisy(f(batch(t)[0]), batch(t)[1]).backward()
        optimizer.step()
    assert optimizer.gate_stats().mean_q == pytest.approx(mean_q, abs=1e-3)
    moved = (flat(f.parameters()) - before).abs().max().item()
    assert moved > 1e-3 if mean_q else moved < 1e-5


def fitted(x: Tensor, measured: Tensor, steps: int, gate: str, seed: int = 0) -> Tensor:
    """The fit of an overparametrized model, linear in 60 random features."""
    rng = torch.Generator().manual_seed(1)
    frequencies = 30 * torch.randn(1, 60, generator=rng)
    features = torch.cos(x @ frequencies + 6 * torch.rand(60, generator=rng))
    w, noisy = nn.Parameter(torch.zeros(60, 1)), NoisyLoss(0.5)
    torch.manual_seed(seed)
    options = {"form": gate, "z": 3.0, "rise_steps": 0, "discrepancy": False}
    optimizer = SNRAdam([w], lr=1e-2, gate=options, noise=noisy)
    for _ in range(steps):
        optimizer.zero_grad()
        noisy(features @ w, measured).backward()
        optimizer.step()
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
    """All of it by Adam; next to none behind a gate that closes (snr's only narrows).

    The mean over four seeds of the draws, of which single ones have up to 0.17.
    """
    x, noise = line
    fits = [fitted(x, noise, 300, gate, seed) for seed in range(1 if gate == "none" else 4)]
    shares = [float(memorized_share(fit, torch.zeros_like(noise), noise)) for fit in fits]
    assert low < sum(shares) / len(shares) < high


@pytest.mark.parametrize("gate", ["snr", "soft", "hard"])
def test_a_strong_signal_is_fitted(line, gate):
    x, noise = line
    clean = 20 * torch.sin(3 * x)
    fit = fitted(x, clean + noise, 1000, gate)
    assert (fit - clean).norm() < 0.05 * clean.norm()


def test_a_curve_is_fitted_to_within_its_error_and_no_further():
    """64 values of a curve whose quick part shows in no single entry of the gradient."""

    def fit(gate) -> tuple[float, float]:
        torch.manual_seed(0)
        x = torch.linspace(-1, 1, 64)[:, None]
        clean = torch.sin(3 * x) + 0.5 * torch.sin(9 * x)
        y = clean + 0.3 * torch.randn(x.shape)
        net = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh())
        net.append(nn.Linear(32, 1))
        noisy = NoisyLoss(0.3)
        optimizer = SNRAdam(net.parameters(), lr=1e-2, gate=gate, noise=noisy)
        for _ in range(1500):
            optimizer.zero_grad()
            noisy(net(x), y).backward()
            optimizer.step()
        with torch.no_grad():
            error = (net(x) - clean).norm() / clean.norm()
            return float(error), float(((net(x) - y) ** 2).mean() / 0.09)

    error, misfit = fit(None)
    constant, _ = fit({"discrepancy": False})
    _, without_gate = fit("none")
    assert error < 0.7 * constant
    assert 0.7 < misfit < 1.1
    assert without_gate < 0.7
