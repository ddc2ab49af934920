"""Measurements whose error is known: DeepXDE's conditions and data, and the floors they give."""

import copy
import math
import pickle

import deepxde as dde
import numpy as np
import pytest
import torch

from sciml_snr import (
    SNRSOAP,
    GateStats,
    NoisyPointSetBC,
    SNRAdam,
    exact_label_noise,
    set_SNR_options,
)
from sciml_snr.dde.observations import (
    LabelGatedSNRAdam,
    LabelGatedSNRSOAP,
    ModelNoise,
    RecordingLosses,
)
from sciml_snr.dde.registration import EXACT_GATES, LABEL_GATE, OPTIMIZERS, STREAM_GATE
from tests.cases import assert_same_bits

BY_NAME = pytest.mark.parametrize("name", OPTIMIZERS)
LINE = dde.geometry.Interval(-1, 1)
X = np.linspace(-0.9, 0.7, 6)[:, None]
Y = np.cos(3 * X)
SIGMA = np.linspace(0.1, 0.6, 6)


def choose(**options):
    """Options for the next compile: the defaults, but gated from the first step on."""
    set_SNR_options(**{"warmup_steps": 0, **options})


@pytest.fixture(autouse=True)
def gated_from_the_first_step(seeded_and_back_to_defaults):
    choose()


def noisy(sigma=SIGMA, points=X, values=Y, **options):
    return NoisyPointSetBC(points, values, sigma, **options)


def exact():
    return dde.icbc.PointSetBC(X + 0.1, Y)


def ends():
    return dde.icbc.DirichletBC(LINE, lambda x: 0, lambda _, on_boundary: on_boundary)


def model(*conditions, coefficient=1.0, regularization=None, **options):
    """u_xx + c pi^2 u = 0 on [-1, 1], with these conditions; the same start every time."""
    torch.manual_seed(0)
    np.random.seed(0)

    def residual(x, u):
        curvature = dde.grad.hessian(u, x)
        if isinstance(u, tuple):  # in forward mode each is (values, function)
            u, curvature = u[0], curvature[0]
        return curvature + coefficient * math.pi**2 * u

    data = dde.data.PDE(LINE, residual, list(conditions), num_domain=8, num_boundary=2, **options)
    return dde.Model(data, dde.nn.FNN([1, 8, 8, 1], "tanh", "Glorot uniform", regularization))


def trained(m, optimizer="snr_adam", iterations=20, lr=1e-2, callbacks=None, **options):
    """Compile and train it; as for everything here, from the same random numbers every time."""
    display_every = options.pop("display_every", 1000)
    m.compile(optimizer, lr=lr, verbose=0, **options)
    torch.manual_seed(1)
    m.train(iterations=iterations, display_every=display_every, callbacks=callbacks, verbose=0)
    return m


def weights(m):
    return [p.detach() for p in m.net.parameters()]


def floor(m):
    return [m.opt.floor[p] for p in m.net.parameters()]


def flat(tensors):
    return torch.cat([t.flatten() for t in tensors])


def exact_variance(m, measurements):
    """The variance under the error of (points, values, sigma, weight), sample by sample."""
    dtype = next(m.net.parameters()).dtype
    return variance_of(
        m,
        [
            (m.net(torch.as_tensor(x, dtype=dtype)) - torch.as_tensor(y, dtype=dtype), sigma, w)
            for x, y, sigma, w in measurements
        ],
    )


def variance_of(m, terms):
    """sum (2 w / n sigma_i dr_i/dparam)^2 over terms (residuals r, sigma, w), sample by sample.

    Each divided by its misfit R = mean(r^2 / sigma^2) if that is above 1.
    """
    params = list(m.net.parameters())
    total = [torch.zeros_like(p) for p in params]
    for r, sigma, weight in terms:
        sigma = torch.as_tensor(sigma, dtype=r.dtype)
        sigma = (sigma.reshape(-1, 1) if sigma.ndim < 2 else sigma).expand_as(r)
        weight = weight / max((r.detach() / sigma).square().mean().item(), 1) ** 0.5
        for r_i, sigma_i in zip(r.flatten(), sigma.flatten(), strict=True):
            gradients = torch.autograd.grad(r_i, params, retain_graph=True, allow_unused=True)
            for sum_, g in zip(total, gradients, strict=True):
                if g is not None:
                    sum_ += (2 * weight / r.numel() * sigma_i * g) ** 2
    return total


def expected_floors(m, optimizer="snr_adam", iterations=1, callbacks=None, **options):
    """What random signs would average to in every step, the network staying as it is."""
    batch_size = options.pop("batch_size", None)
    m.compile(optimizer, lr=0.0, verbose=0, **options)
    given, found = m.opt.noise.terms, []

    def terms():
        new = given()
        if new:
            variance = exact_label_noise(m.net.parameters(), new, m.opt.defaults["betas"][0])
            found.append(list(variance.values()))
        return new

    m.opt.noise.terms = terms
    m.train(iterations=iterations, batch_size=batch_size, callbacks=callbacks, verbose=0)
    assert len(found) == iterations
    return found


def fresh_share(rows, population):
    """What the first moment's averaging over batches leaves of a batch's variance."""
    share = rows / population
    return share + (1 - share) * (1 - 0.9) / (1 + 0.9)


def assert_close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-9)


def scaled(variances, factor):
    return [factor * variance for variance in variances]


# The condition ---------------------------------------------------------------------------------


@pytest.mark.parametrize("values", [Y, 0.5], ids=["array", "scalar"])
@pytest.mark.parametrize("sigma", [0.1, SIGMA, SIGMA[:, None]], ids=["scalar", "(n,)", "(n, 1)"])
def test_residuals_are_those_of_a_point_set(sigma, values):
    outputs = torch.randn(9, 1)
    errors = [
        bc.error(None, None, outputs, 2, 8)
        for bc in (noisy(sigma, values=values), dde.icbc.PointSetBC(X, values))
    ]
    assert_same_bits(*errors)
    np.testing.assert_array_equal(noisy(sigma).collocation_points(None), X.astype("float32"))


@pytest.mark.parametrize("sigma", [0.1, SIGMA, SIGMA[:, None], np.outer(SIGMA, [1, 2])])
def test_several_components(sigma):
    values = np.hstack([Y, 2 * Y])
    bc = noisy(sigma, values=values, component=[0, 2])
    outputs = torch.randn(6, 3, requires_grad=True)
    error = bc.error(None, None, outputs, 0, 6)
    assert_same_bits(error, dde.icbc.PointSetBC(X, values, [0, 2]).error(None, None, outputs, 0, 6))
    m = measured_only(bc, outputs=3)
    (found,) = expected_floors(m, loss_weights=[2])
    residual = m.net(torch.as_tensor(X, dtype=torch.float32))[:, [0, 2]] - bc.values
    assert_close(found, variance_of(m, [(residual, sigma, 2)]))


@pytest.mark.parametrize("batch_size", [None, 2])
def test_under_adam_it_is_a_point_set(batch_size):
    found = []
    for kind in ((NoisyPointSetBC, 0.1), (dde.icbc.PointSetBC,)):
        np.random.seed(0)  # for the batches
        bc = kind[0](X, Y, *kind[1:], batch_size=batch_size)
        resampler = dde.callbacks.PDEPointResampler(period=1, bc_points=True)
        m = trained(model(bc, ends()), "adam", callbacks=[resampler] if batch_size else None)
        found.append((weights(m), m.losshistory.loss_train))
    assert_same_bits(found[0][0], found[1][0])
    np.testing.assert_array_equal(found[0][1], found[1][1])


@pytest.mark.parametrize(
    "sigma", [SIGMA[:5], SIGMA[:5, None], np.ones((6, 2)), np.ones((1, 6)), np.ones((6, 1, 1)), []]
)
def test_an_error_of_the_wrong_shape_is_refused(sigma):
    with pytest.raises(ValueError, match="6 points"):
        noisy(sigma)


@pytest.mark.parametrize("entry", [-0.1, math.nan, math.inf])
@pytest.mark.parametrize("place", [None, 3], ids=["scalar", "entry"])
def test_a_wrong_error_is_refused(entry, place):
    sigma = entry
    if place is not None:
        sigma = SIGMA.copy()
        sigma[place] = entry
    with pytest.raises(ValueError, match=f"sigma must be finite and >= 0, got {entry}"):
        noisy(sigma)


def test_terms_are_those_of_a_forward_pass_and_given_once():
    m = model(noisy())
    m.compile("snr_adam", lr=1e-3, verbose=0)
    assert m.opt.noise.terms() == []
    for _ in range(2):
        m.outputs_losses_train(*m.data.train_next_batch())
        assert len(m.opt.noise.terms()) == 1
        assert m.opt.noise.terms() == []


@BY_NAME
@pytest.mark.parametrize("trains", [False, True], ids=["compiled", "trained"])
def test_data_can_be_copied(name, trains):
    m, twin = model(noisy()), model(noisy())
    m.compile(name, lr=1e-3, verbose=0)
    if trains:
        m.train(iterations=2, verbose=0)
    twin.data = copy.deepcopy(m.data)
    (bc,) = twin.data.bcs
    assert_same_bits((bc.values, bc.sigma), (m.data.bcs[0].values, m.data.bcs[0].sigma))
    assert bc is not m.data.bcs[0]
    assert_same_bits(weights(trained(twin, name)), weights(trained(model(noisy()), name)))


class Recorder(dde.callbacks.Callback):
    """The points of every batch, and the floor they gave."""

    def on_train_begin(self):
        self.seen = []

    def on_batch_end(self):
        (bc,) = self.model.data.bcs
        self.seen.append((list(bc.batch_indices), floor(self.model)))


def test_a_batch_takes_its_own_errors_along():
    """Batches of one point: no randomness. At lr = 0 the network stays as it is."""
    choose(rho=0.0)
    recorder = Recorder()
    resampler = dde.callbacks.PDEPointResampler(period=1, bc_points=True)
    bc = noisy(batch_size=1)
    m = trained(model(bc), lr=0.0, iterations=12, callbacks=[recorder, resampler])
    assert {i for indices, _ in recorder.seen for i in indices} == set(range(6))
    for (i,), found in recorder.seen:
        expected = exact_variance(m, [(X[[i]], Y[[i]], SIGMA[i], 1.0)])
        assert_close(found, scaled(expected, fresh_share(1, 6)))


@pytest.mark.parametrize("sigma", [None, "0.1", "0,1", [[0.1], [0.1, 0.2]]])
def test_an_error_that_is_no_number_is_refused(sigma):
    with pytest.raises(ValueError, match="must be a number or an array of numbers"):
        noisy(sigma)


@pytest.mark.parametrize("given", [{"values": Y[:, 0]}, {"points": X[:, 0]}])
def test_measurements_without_columns_are_refused(given):
    """DeepXDE would compare each value with each."""
    with pytest.raises(ValueError, match=r"become columns by x\[:, None\]"):
        noisy(0.1, **given)


@pytest.mark.parametrize(
    ("shape", "component"),
    [((6, 2), 0), ((1, 6), 0), ((6, 1), [0, 1]), ((5, 1), 0), ((6, 1, 1), 0)],
)
def test_values_of_another_shape_are_refused(shape, component):
    with pytest.raises(ValueError, match=r"values .* a number, \(6, \d\) or \(1, \d\)"):
        noisy(0.1, values=np.ones(shape), component=component)


@pytest.mark.parametrize("entry", [math.nan, math.inf])
@pytest.mark.parametrize("given", ["points", "values"])
def test_measurements_that_are_no_numbers_are_refused(given, entry):
    wrong = Y.copy()
    wrong[2] = entry
    with pytest.raises(ValueError, match=f"{given} must be finite, but 1 of their 6 numbers"):
        noisy(0.1, **{given: wrong})


@pytest.mark.parametrize("batch_size", [None, 2])
@pytest.mark.parametrize("values", [0.5, np.full((1, 1), 0.5)])
def test_one_value_for_all_points(values, batch_size):
    m = trained(model(noisy(values=values, batch_size=batch_size)), iterations=2)
    given = noisy(values=np.full((6, 1), 0.5), batch_size=batch_size)
    assert_same_bits(weights(m), weights(trained(model(given), iterations=2)))


def test_one_value_for_all_points_is_no_column():
    assert noisy(0.1, values=np.array([0.4])).values.shape == (1,)
    assert noisy(torch.tensor(0.1, dtype=torch.bfloat16)).sigma.shape == (1, 1)


def test_a_batch_that_stays_is_a_batch():
    """Its misfit is a matter of chance: no excess."""
    choose(sigma=0.3, discrepancy=True)
    m = measured_only(dde.icbc.PointSetBC(X, Y + 9, batch_size=2))
    trained(m, iterations=3)
    assert m.opt.floor.excess == 0.0


def test_an_error_per_component_of_a_point_set():
    values, sigma = np.hstack([Y, 2 * Y]), np.outer(SIGMA, [1, 2])
    choose(sigma=sigma)
    m = measured_only(dde.icbc.PointSetBC(X, values, [0, 2]), outputs=3)
    (found,) = expected_floors(m)
    residual = m.net(torch.as_tensor(X, dtype=torch.float32))[:, [0, 2]]
    residual = residual - torch.as_tensor(values, dtype=torch.float32)
    assert_close(found, variance_of(m, [(residual, sigma, 1)]))


# Which floor -----------------------------------------------------------------------------------


def time_pde(*conditions):
    geomtime = dde.geometry.GeometryXTime(LINE, dde.geometry.TimeDomain(0, 1))
    start = dde.icbc.IC(geomtime, lambda x: 0, lambda _, on_initial: on_initial)

    def residual(x, u):
        return dde.grad.jacobian(u, x, j=1)

    data = dde.data.TimePDE(
        geomtime, residual, [start, *conditions], num_domain=8, num_boundary=2, num_initial=2
    )
    return dde.Model(data, dde.nn.FNN([2, 6, 1], "tanh", "Glorot uniform"))


def ode(*conditions):
    time = dde.geometry.TimeDomain(0, 1)
    start = dde.icbc.IC(time, lambda x: 1, lambda _, on_initial: on_initial)
    data = dde.data.PDE(
        time, lambda t, u: dde.grad.jacobian(u, t) + u, [start, *conditions], 8, 2, num_test=5
    )
    return dde.Model(data, dde.nn.FNN([1, 6, 1], "tanh", "Glorot uniform"))


def measured_only(*conditions, outputs=1):
    """No differential equation: the measurements alone."""
    data = dde.data.PDE(LINE, None, list(conditions), num_domain=0, num_boundary=0)
    return dde.Model(data, dde.nn.FNN([1, 6, outputs], "tanh", "Glorot uniform"))


XT = np.hstack([X, np.abs(X)])
MEASURED = {
    "PDE": lambda: model(noisy(), ends()),
    "ODE": lambda: ode(noisy(points=np.abs(X))),
    "TimePDE": lambda: time_pde(noisy(points=XT)),
    "only measurements": lambda: measured_only(noisy()),
}


def function():
    data = dde.data.Function(LINE, lambda x: np.sin(3 * x), 8, 8)
    return dde.Model(data, dde.nn.FNN([1, 6, 1], "tanh", "Glorot uniform"))


def triple():
    rng = np.random.default_rng(0)
    branch, trunk, y = (rng.random((8, n)).astype(np.float32) for n in (3, 1, 1))
    data = dde.data.Triple((branch, trunk), y, (branch, trunk), y)
    return dde.Model(data, dde.nn.DeepONet([3, 6], [1, 6], "tanh", "Glorot uniform"))


UNMEASURED = {
    "PDE": lambda: model(exact(), ends()),
    "ODE": ode,
    "TimePDE": time_pde,
    "Function": function,
    "Triple": triple,
}


def gate(m):
    return {name: m.opt.param_groups[0][name] for name in STREAM_GATE}


@BY_NAME
@pytest.mark.parametrize("condition", [noisy, exact])
def test_every_floor_has_a_gate_of_its_own(condition, name):
    expected = EXACT_GATES[name] if condition is noisy else STREAM_GATE
    set_SNR_options()
    assert gate(trained(model(condition()), name)) == expected
    set_SNR_options(gate="soft", lambd=2.0)
    assert gate(trained(model(condition()), name)) == {**expected, "gate": "soft", "lambd": 2.0}


@BY_NAME
@pytest.mark.parametrize("floor_option", ["auto", "label"])
@pytest.mark.parametrize("kind", MEASURED)
def test_noisy_measurements_bring_the_label_floor(kind, floor_option, name):
    choose(floor=floor_option)
    m = trained(MEASURED[kind](), name)
    assert type(m.opt) is {"snr_adam": LabelGatedSNRAdam, "snr_soap": LabelGatedSNRSOAP}[name]
    expected = LABEL_GATE if kind == "only measurements" else EXACT_GATES[name]
    assert gate(m) == {**expected, "warmup_steps": 0}
    assert all((variance > 0).any() for variance in floor(m))
    assert bool(m.opt.floor.noisy_grads) == (kind != "only measurements")


@BY_NAME
def test_the_noisy_terms_gradient_is_known_beside_exact_terms(name):
    choose()
    m = model(noisy(), ends())
    m.compile(name, lr=0.0, loss_weights=[1.0, 3.0, 1.0], verbose=0)
    m.train(iterations=1, verbose=0)
    x, y = torch.as_tensor(X, dtype=torch.float32), torch.as_tensor(Y, dtype=torch.float32)
    params = list(m.net.parameters())
    expected = torch.autograd.grad(3 * ((m.net(x) - y) ** 2).mean(), params)
    assert_close([m.opt.floor.noisy_grads[p] for p in params], list(expected))


@BY_NAME
@pytest.mark.parametrize("equation", [0.3, None], ids=["measured source", "exact equation"])
def test_an_equation_with_an_error_carries_on_while_it_is_off_by_more(name, equation):
    choose(sigma=[equation, 0.1])
    m = model(exact())
    m.compile(name, lr=0.0, verbose=0)
    m.train(iterations=1, verbose=0)
    assert gate(m)["z"] == EXACT_GATES[name]["z"]
    m.outputs_losses_train(*m.data.train_next_batch())
    terms = m.opt.noise.terms()
    m.opt.floor.update(terms, exact_terms=True)
    loss = terms[-1].residual.square().mean()
    if equation:
        misfits = [(loss / 0.1**2).item(), (terms[0].residual.square().mean() / equation**2).item()]
        assert misfits[0] > 1  # else this would not see a part of the data
        loss = loss / misfits[0]
        loss = loss + terms[0].residual.square().mean() / max(1.0, misfits[1])
    params = list(m.net.parameters())
    expected = torch.autograd.grad(loss, params, allow_unused=True)
    assert_close(
        [
            m.opt.floor.noisy_grads[p]
            for p, g in zip(params, expected, strict=True)
            if g is not None
        ],
        [g for g in expected if g is not None],
    )


@BY_NAME
def test_equations_alone_have_nothing_to_stand_beside(name):
    choose(sigma=[0.3])
    m = trained(model(), name)
    assert not m.opt.floor.noisy_grads and gate(m)["z"] == LABEL_GATE["z"]


@BY_NAME
def test_a_term_of_weight_0_is_none(name):
    set_SNR_options()
    m = trained(model(noisy()), name, loss_weights=[0, 1])
    assert gate(m) == LABEL_GATE and not m.opt.floor.noisy_grads
    m = trained(model(noisy(), ends()), name, loss_weights=[0, 1, 2])
    assert gate(m) == EXACT_GATES[name] and m.opt.floor.noisy_grads
    set_SNR_options(sigma=[0.3, None])
    m = trained(model(noisy()), name, loss_weights=[0, 1])
    assert gate(m) == LABEL_GATE


@BY_NAME
@pytest.mark.parametrize("floor_option", ["auto", "stream"])
@pytest.mark.parametrize("kind", UNMEASURED)
def test_without_them_it_is_the_published_rule(kind, floor_option, name):
    choose(floor=floor_option)
    m = trained(UNMEASURED[kind](), name)
    assert type(m.opt) is {"snr_adam": SNRAdam, "snr_soap": SNRSOAP}[name]
    assert gate(m) == {**STREAM_GATE, "warmup_steps": 0}


@pytest.mark.parametrize("kind", MEASURED)
def test_the_published_rule_can_be_asked_for(kind):
    choose(floor="stream")
    m = trained(MEASURED[kind]())
    assert type(m.opt) is SNRAdam
    assert gate(m) == {**STREAM_GATE, "warmup_steps": 0}


@pytest.mark.parametrize("kind", UNMEASURED)
def test_label_floor_without_measurements_is_refused(kind):
    choose(floor="label")
    with pytest.raises(ValueError, match=r"needs the measurements' error: .*NoisyPointSetBC"):
        UNMEASURED[kind]().compile("snr_adam", lr=1e-3)


RELATIVE = "mean l2 relative error"


@pytest.mark.parametrize("loss", [RELATIVE, ["MSE", RELATIVE]])
def test_losses_that_are_no_mean_over_errors_are_refused(loss):
    with pytest.raises(ValueError, match="no label floor for the loss mean_l2_relative_error"):
        model(noisy()).compile("snr_adam", lr=1e-3, loss=loss)
    choose(floor="stream")
    m = model(noisy())
    m.compile("snr_adam", lr=1e-3, loss=loss, verbose=0)
    assert type(m.opt) is SNRAdam


def test_a_loss_of_exact_terms_does_not_matter():
    m = model(noisy())
    m.compile("snr_adam", lr=1e-3, loss=[RELATIVE, "MSE"], verbose=0)
    assert type(m.opt) is LabelGatedSNRAdam


@pytest.mark.parametrize("loss", ["MAE", ["MSE", "MAE"]])
def test_absolute_errors_have_the_variance_of_a_sign(loss):
    """Half of the squared error's at sigma = 1; the misfit is still told by sigma."""
    m = model(noisy(5.0))
    (found,) = expected_floors(m, loss=loss, loss_weights=[3, 7])
    assert_close(found, scaled(exact_variance(m, [(X, Y, 5.0, 7 / 5 / 2)]), 1))


def test_a_refused_model_is_forgotten():
    """The next compile is told of its own model."""
    with pytest.raises(ValueError, match="no label floor"):
        model(noisy()).compile("snr_adam", lr=1e-3, loss=RELATIVE)
    net = dde.nn.FNN([1, 4, 1], "tanh", "Glorot uniform")
    optimizer, _ = dde.optimizers.get(net.parameters(), "snr_adam", learning_rate=1e-3)
    assert type(optimizer) is SNRAdam


@pytest.mark.parametrize(
    "loss",
    [
        "mse",
        "mean squared error",
        ["MSE", "MSE"],
        torch.nn.MSELoss(),
        lambda y, f: (f - y).square().mean(),
    ],
)
def test_other_names_of_the_squared_error_will_do(loss):
    own, named = trained(model(noisy()), loss=loss), trained(model(noisy()))
    torch.testing.assert_close(weights(own), weights(named))
    assert set(own.opt.noise._loss_by_term.values()) == {torch.nn.functional.mse_loss}


# Its value -------------------------------------------------------------------------------------


ONE_POINT = {"points": X[:1], "values": Y[:1], "sigma": 0.3}
"""No randomness."""


@pytest.mark.parametrize("loss_weights", [None, [7, 5, 3, 2], np.array([7.0, 5, 3, 2])])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_loss_weight_goes_with_its_condition(place, loss_weights):
    conditions = [ends(), exact()]
    conditions.insert(place, noisy(**ONE_POINT))
    m = trained(model(*conditions), lr=0.0, iterations=2, loss_weights=loss_weights)
    weight = 1.0 if loss_weights is None else loss_weights[1 + place]
    expected = exact_variance(m, [(X[:1], Y[:1], 0.3, weight)])
    torch.testing.assert_close(floor(m), expected, rtol=1e-4, atol=1e-9)


def test_one_weight_for_all_terms():
    """DeepXDE takes a number, too."""
    m = trained(model(noisy(**ONE_POINT)), lr=0.0, iterations=2, loss_weights=0.5)
    assert_close(floor(m), exact_variance(m, [(X[:1], Y[:1], 0.3, 0.5)]))


@BY_NAME
@pytest.mark.parametrize("layers", [1, 3], ids=["a layer", "all"])
def test_what_is_frozen_at_compile_has_a_floor_once_deepxde_trains_it(name, layers):
    """DeepXDE's test before the first step makes all of the network require gradients."""
    found = []
    for freeze in (True, False):
        m = model(noisy(), coefficient=(c := dde.Variable(2.0)))
        for layer in list(m.net.linears)[:layers]:
            layer.requires_grad_(not freeze)
        trained(m, name, external_trainable_variables=[c])
        found.append([*weights(m), *floor(m), c.detach()])
    assert_same_bits(found[0], found[1])


@BY_NAME
def test_a_network_frozen_by_a_callback_stays_as_it_is(name):
    """What is left to train, a coefficient, is not gated."""

    class Freeze(dde.callbacks.Callback):
        def on_train_begin(self):
            self.model.net.requires_grad_(False)

    m = model(noisy(), coefficient=(c := dde.Variable(2.0)))
    before = [p.clone() for p in weights(m)]
    trained(m, name, external_trainable_variables=[c], callbacks=[Freeze()])
    assert_same_bits(weights(m), before)
    assert float(c.detach()) != 2.0


def test_floor_is_the_variance_of_all_measurements(float64):
    """Noisy conditions between others. At lr = 0 the average is one over 1500 random signs.

    Tolerance: 5 sqrt(2 / 1500), the relative standard error of h^2's mean: 18 %.
    """
    choose(rho=0.99999)
    others = X[:3] + 0.15
    conditions = noisy(), ends(), noisy(0.5, others, Y[:3]), exact(), noisy(**ONE_POINT)
    m = trained(model(*conditions), lr=0.0, iterations=1500, loss_weights=[9, 2, 8, 3, 7, 0.5])
    expected = flat(
        exact_variance(m, [(X, Y, SIGMA, 2), (others, Y[:3], 0.5, 3), (X[:1], Y[:1], 0.3, 0.5)])
    )
    error = (flat(floor(m)) - expected).abs()
    assert (error <= 5 * math.sqrt(2 / 1500) * expected).all()


class Centered(dde.nn.FNN):
    """Outputs that depend on the other points'."""

    def forward(self, inputs):
        found = super().forward(inputs)
        return found - found.mean()


class Dropped(dde.nn.FNN):
    def __init__(self, *args):
        super().__init__(*args)
        self.dropped = torch.nn.Dropout(0.5)

    def forward(self, inputs):
        return self.dropped(super().forward(inputs))


def passes_through(kind, conditions, points=40):
    """The numbers of points that two steps send through a network, the floor and the gradients."""
    np.random.seed(0)
    conditions = conditions()
    m = model()
    m.data = dde.data.PDE(
        LINE, m.data.pde, conditions, num_domain=points, train_distribution="uniform"
    )
    torch.manual_seed(0)
    m.net = kind([1, 8, 8, 1], "tanh", "Glorot uniform")
    m.compile("snr_adam", lr=1e-2, verbose=0)
    seen = []
    m.net.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    torch.manual_seed(1)
    for _ in range(2):
        m.train_step(m.data.train_x, None, None)
    noisy_grads = m.opt.floor.noisy_grads
    return seen, [m.opt.floor[p] for p in noisy_grads], list(noisy_grads.values())


@pytest.mark.parametrize(
    "conditions",
    [
        lambda: [noisy()],
        lambda: [ends(), noisy(), exact(), noisy(0.3, X[:2], Y[:2])],
        lambda: [noisy(batch_size=3)],
    ],
    ids=["one", "among others", "a batch"],
)
def test_few_measured_points_have_a_pass_of_their_own(monkeypatch, conditions):
    count, own_floor, own_grads = passes_through(dde.nn.FNN, conditions)
    measured = sum(c.batch_size or len(c) for c in conditions() if isinstance(c, NoisyPointSetBC))
    assert count[1::2] == [measured] * 2
    monkeypatch.setattr(ModelNoise, "_on_their_own", lambda self, residuals, inputs: residuals)
    count, common_floor, common_grads = passes_through(dde.nn.FNN, conditions)
    assert len(count) == 2
    for own, common in ((own_floor, common_floor), (own_grads, common_grads)):
        torch.testing.assert_close(own, common, rtol=1e-4, atol=1e-6)


def test_the_first_pass_of_their_own_is_looked_at():
    """Also if at first most of the points are measured."""
    m = model(noisy())
    m.data.num_domain = 2
    m.data.resample_train_points()
    m.net = Centered([1, 8, 8, 1], "tanh", "Glorot uniform")
    m.compile("snr_adam", lr=1e-2, verbose=0)
    seen = []
    m.net.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    m.train_step(m.data.train_x, None, None)
    m.data.add_anchors(np.linspace(-1, 1, 40)[:, None])
    for _ in range(2):
        m.train_step(m.data.train_x, None, None)
    assert seen == [10, 50, 6, 50]


def test_an_error_function_of_a_conditions_own_is_called():
    condition = noisy()
    condition.error = lambda x, inputs, outputs, beg, end, aux=None: (
        inputs[beg:end] * outputs[beg:end] - condition.values
    )
    m = model(condition)
    m.data.num_domain = 40
    m.data.resample_train_points()
    trained(m, iterations=2)
    assert len(m.opt.floor) == len(list(m.net.parameters()))


@BY_NAME
def test_an_equation_may_be_switched_on_later(name):
    class On(dde.callbacks.Callback):
        def on_batch_end(self):
            found.append(len(self.model.opt.floor.noisy_grads))
            self.model.loss_weights[0] = 1.0

    found = []
    trained(model(noisy()), name, iterations=3, loss_weights=[0, 1], callbacks=[On()])
    assert found == [0, 6, 6]


@pytest.mark.parametrize(
    ("kind", "points", "passes"),
    [(Centered, 40, [46, 6, 46]), (Dropped, 40, [46, 46]), (dde.nn.FNN, 5, [11, 11])],
    ids=["points depend on each other", "dropout", "most are measured"],
)
def test_others_go_through_the_common_pass(kind, points, passes):
    assert passes_through(kind, lambda: [noisy()], points=points)[0] == passes


def test_adding_exact_conditions_does_not_change_the_floor():
    """Nor does the differential equation's residual, however weighted."""
    found = [
        floor(trained(m, lr=0.0, iterations=3, loss_weights=loss_weights))
        for m, loss_weights in [
            (model(noisy()), None),
            (model(ends(), noisy(), exact()), [100, 10, 1, 10]),
        ]
    ]
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-9)


def test_floor_every():
    """Passes at steps 1, 11, 21: in between the floor stays as it is."""

    class Floors(dde.callbacks.Callback):
        def on_train_begin(self):
            self.found = []

        def on_epoch_end(self):
            self.found.append(flat(floor(self.model)))

    choose(floor_every=10)
    floors = Floors()
    trained(model(noisy()), iterations=25, callbacks=[floors])
    changes = [
        step
        for step, (before, after) in enumerate(
            zip(floors.found, floors.found[1:], strict=False), start=2
        )
        if not torch.equal(before, after)
    ]
    assert changes == [11, 21]


# As with DeepXDE's own optimizers --------------------------------------------------------------


@pytest.mark.parametrize("external", [False, True], ids=["", "external"])
@pytest.mark.parametrize("regularization", [None, ["l2", 1e-3]], ids=["", "l2"])
@pytest.mark.parametrize("floor_option", ["auto", "label"])
def test_without_gate_it_is_adam_bit_for_bit(external, regularization, floor_option):
    choose(gate="none", floor=floor_option)
    found = []
    for optimizer in ("adam", "snr_adam"):
        c = dde.Variable(2.0)
        m = model(noisy(), ends(), coefficient=c, regularization=regularization)
        options = {"external_trainable_variables": c} if external else {}
        trained(m, optimizer, loss_weights=[1, 10, 5], **options)
        found.append([*weights(m), c.detach()])
    assert_same_bits(found[1], found[0])


def test_no_error_is_adam_up_to_rounding():
    """sigma = 0: q = mean_sq / (mean_sq + gate_eps)."""
    found = [weights(trained(model(noisy(0.0), ends()), o)) for o in ("adam", "snr_adam")]
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-6)


def test_a_larger_error_holds_back_more():
    q = [trained(model(noisy(s))).opt.gate_stats().mean_q for s in (0.0, 0.1, 1.0, 1e4)]
    assert q == sorted(q, reverse=True)
    assert q[0] > 0.999 and q[-1] < 0.01


def inverse(gate_external, name="snr_adam"):
    """A model with an unknown coefficient, and the coefficient."""
    choose(gate_external=gate_external)
    c = dde.Variable(2.0)
    slope = dde.icbc.PointSetOperatorBC(X, 0 * X, lambda x, u, _: c * u)
    return trained(model(noisy(), slope, coefficient=c), name, external_trainable_variables=c), c


def test_external_variables_are_not_gated_and_have_no_floor():
    m, c = inverse(gate_external=False)
    assert set(m.opt.floor) == set(m.net.parameters())
    assert m.opt.gate_stats(1) == GateStats(mean_q=1.0, open_fraction=1.0, numel=1)
    assert m.opt.gate_stats(0).mean_q < 1
    assert c.item() != 2.0


@BY_NAME
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, (0.9, 0.99)),
        ({"betas": (0.8, 0.95)}, (0.8, 0.95)),
        ({"gate_external": True}, (0.9, 0.999)),
        ({"floor": "stream"}, (0.9, 0.999)),
        ({"gate": "none"}, (0.9, 0.999)),
    ],
    ids=["default", "given", "gated", "no label floor", "Adam"],
)
def test_external_variables_forget_their_first_gradients_sooner(name, options, expected):
    choose(**options)
    c = dde.Variable(2.0)
    m = trained(model(noisy(), coefficient=c), name, external_trainable_variables=c)
    assert m.opt.param_groups[0]["betas"] == options.get("betas", (0.9, 0.999))
    assert m.opt.param_groups[1]["betas"] == expected


@BY_NAME
def test_external_variables_are_gated_on_demand(name):
    """With floor 0: the measurements do not tell of the coefficient but through the network."""
    m, c = inverse(gate_external=True, name=name)
    assert set(m.opt.floor) == {*m.net.parameters(), c}
    assert m.opt.param_groups[1]["gate"] == EXACT_GATES[name]["gate"]
    assert m.opt.floor[c].item() == 0
    assert m.opt.gate_stats(1).mean_q == pytest.approx(1)


def test_l2_regularizer_acts():
    plain, regularized = (trained(model(noisy(), regularization=r)) for r in (None, ["l2", 1e-1]))
    assert regularized.opt.param_groups[0]["weight_decay"] == 1e-1
    assert not regularized.opt.param_groups[0]["decoupled_weight_decay"]
    assert flat(weights(regularized)).norm() < flat(weights(plain)).norm()


def test_l1_regularizer_is_no_condition():
    """DeepXDE appends it to the losses, unweighted."""
    m = model(noisy(**ONE_POINT), ends(), regularization=["l1", 1e-3])
    trained(m, lr=0.0, iterations=1, loss_weights=[7, 5, 3])
    expected = exact_variance(m, [(X[:1], Y[:1], 0.3, 5)])
    torch.testing.assert_close(floor(m), expected, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize(
    ("decay", "rate"), [(("step", 5, 0.5), 1e-2 / 16), (("exponential", 0.9), 1e-2 * 0.9**20)]
)
def test_learning_rate_decays(decay, rate):
    m = trained(model(noisy()), decay=decay)
    assert m.opt.param_groups[0]["lr"] == pytest.approx(rate)


def test_float64(float64):
    m = trained(model(noisy()))
    assert {t.dtype for t in (*floor(m), *weights(m), m.data.bcs[0].sigma)} == {torch.float64}


def test_mixed_precision(mixed_precision):
    m = trained(measured_only(noisy()), iterations=100)
    assert {variance.dtype for variance in floor(m)} == {torch.float32}
    assert all((variance > 0).any() for variance in floor(m))
    assert np.sum(m.losshistory.loss_train[-1]) < np.sum(m.losshistory.loss_train[0])


@BY_NAME
@pytest.mark.parametrize("floor_every", [1, 3])
def test_save_and_restore(tmp_path, floor_every, name):
    choose(floor_every=floor_every)
    m = trained(model(noisy(), ends()), name)
    path = m.save(str(tmp_path / "model"))
    restored = model(noisy(), ends())
    restored.net.apply(lambda layer: [p.data.zero_() for p in layer.parameters()])
    restored.compile(name, lr=1e-2, verbose=0)
    restored.restore(path)
    assert_same_bits(floor(restored), floor(m))
    for continued in (m, restored):
        torch.manual_seed(2)
        continued.train(iterations=20, verbose=0)
    assert_same_bits(weights(restored), weights(m))
    assert_same_bits(floor(restored), floor(m))


RESUMED = {
    "batch that stays": lambda: model(noisy(batch_size=2), ends()),
    "batches": lambda: model(noisy(batch_size=2), ends()),
    "points of a source": lambda: model(noisy(), ends(), train_distribution="pseudo"),
}


@pytest.mark.parametrize("kind", RESUMED)
def test_a_restored_run_knows_what_was_drawn_anew(tmp_path, kind):
    choose(sigma=[0.2, None, None])

    def resampler():
        points = dde.callbacks.PDEPointResampler(period=1, bc_points=kind == "batches")
        return [] if kind == "batch that stays" else [points]

    def terms_of_steps(m, steps):
        given, found = m.opt.noise.terms, []

        def terms():
            new = given()
            found.append([(t.population, t.drawn_anew) for t in new])
            return new

        m.opt.noise.terms = terms
        m.train(iterations=steps, callbacks=resampler(), verbose=0)
        return found

    def compiled():
        m = RESUMED[kind]()
        m.compile("snr_adam", lr=1e-3, verbose=0)
        return m

    m = compiled()
    terms_of_steps(m, 3)
    path = m.save(str(tmp_path / "model"))
    restored = compiled()
    restored.restore(path)
    expected = terms_of_steps(m, 2)
    assert terms_of_steps(restored, 2) == expected
    part = {anew for population, anew in expected[0] if population is not None}
    assert part == {kind != "batch that stays"}


def test_a_state_from_before_points_were_remembered():
    m = trained(model(noisy()))
    state = m.opt.state_dict()
    del state["points"]
    restored = model(noisy())
    restored.compile("snr_adam", lr=1e-2, verbose=0)
    restored.opt.load_state_dict(state)
    assert_same_bits(list(restored.opt.floor.values()), floor(m))


@pytest.mark.parametrize("saved", ["label", "stream"])
def test_a_state_of_the_other_floor_can_be_restored(tmp_path, saved):
    """What is missing starts anew, what is not needed is left out."""
    choose(floor=saved)
    m = trained(model(noisy()))
    path = m.save(str(tmp_path / "model"))
    choose(floor="stream" if saved == "label" else "label")
    restored = model(noisy())
    restored.compile("snr_adam", lr=1e-2, verbose=0)
    restored.restore(path)
    assert_same_bits(weights(restored), weights(m))
    assert gate(restored) == gate(m)  # part of an optimizer's state
    restored.train(iterations=5, verbose=0)


def test_lbfgs_in_between(short_lbfgs):
    m = trained(model(noisy(), ends()))
    m.compile("L-BFGS", verbose=0)
    m.train(verbose=0)
    assert type(m.opt) is torch.optim.LBFGS
    m.compile("snr_adam", lr=1e-3, verbose=0)
    assert not m.opt.floor
    m.train(iterations=5, verbose=0)
    assert set(m.opt.floor.state_dict()["passes"]) == {5}
    before_lbfgs, after_lbfgs = (np.sum(m.losshistory.loss_train[i]) for i in (1, -2))
    assert after_lbfgs < before_lbfgs


def test_compiled_before_data_that_know_no_error():
    """Two models, one after the other: each is asked for its own conditions."""
    measured, unmeasured = model(noisy()), model(exact())
    for m in (measured, unmeasured, measured):
        trained(m, iterations=2)
    assert type(measured.opt) is LabelGatedSNRAdam
    assert type(unmeasured.opt) is SNRAdam


def test_tests_in_between_do_not_disturb():
    """DeepXDE evaluates the same conditions, with the network's gradients switched off."""
    found = []
    for display_every in (1, 1000):
        torch.manual_seed(0)
        found.append(trained(ode(noisy(points=np.abs(X))), display_every=display_every))
    assert len(found[0].losshistory.steps) > len(found[1].losshistory.steps)
    assert_same_bits(weights(found[0]), weights(found[1]))
    assert_same_bits(floor(found[0]), floor(found[1]))
    assert set(found[0].opt.floor.state_dict()["passes"]) == {20}


def test_a_floor_handed_to_step_goes_first():
    m = trained(model(noisy()), iterations=2)
    for p in m.net.parameters():
        p.grad = torch.ones_like(p)
    m.opt.step(floor={p: torch.full_like(p, 1e12) for p in m.net.parameters()})
    assert m.opt.gate_stats().mean_q < 1e-6


@BY_NAME
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_of_the_optimizer_keeps_its_floor(copied, name):
    m = trained(model(noisy()), name, iterations=3)
    twin = copied(m.opt)
    assert_same_bits(list(twin.floor.values()), list(m.opt.floor.values()))
    params = [p for group in twin.param_groups for p in group["params"]]
    assert all(p in twin.floor for p in params)
    twin.zero_grad()
    for p in params:
        p.grad = torch.ones_like(p)
    twin.step()


def test_errors_name_the_parameter_of_the_network():
    m = model(noisy())
    m.compile("snr_adam", lr=1e-3, verbose=0)
    with torch.no_grad():
        m.net.linears[1].weight[0, 0] = torch.nan
    with pytest.raises(FloatingPointError, match=r"'linears\.\d\.weight'"):
        m.train(iterations=1, verbose=0)


# Errors of conditions, equations and data that do not carry one -------------------------------


def equation(m):
    """The residuals of ``model``'s equation at its points."""
    x = torch.as_tensor(m.data.train_x[sum(m.data.num_bcs) :]).requires_grad_()
    u = m.net(x)
    (slope,) = torch.autograd.grad(u.sum(), x, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), x, create_graph=True)
    return curvature + math.pi**2 * u


def slopes(m):
    x = torch.as_tensor(X, dtype=torch.float32).requires_grad_()
    return torch.autograd.grad(m.net(x).sum(), x, create_graph=True)[0]


def measured_slope(**options):
    return dde.icbc.PointSetOperatorBC(X, 0 * X, lambda x, u, _: dde.grad.jacobian(u, x), **options)


@BY_NAME
def test_one_number_is_for_all_measured_values(name):
    choose(sigma=0.3)
    m = model(exact(), ends(), measured_slope())
    (found,) = expected_floors(m, name, loss_weights=[7, 5, 3, 2])
    at_points = m.net(torch.as_tensor(X + 0.1, dtype=torch.float32)) - torch.as_tensor(Y).float()
    assert_close(found, variance_of(m, [(at_points, 0.3, 5), (slopes(m), 0.3, 2)]))


def test_an_error_of_its_own_goes_before_the_number():
    choose(sigma=0.3)
    m = model(exact(), noisy())
    (found,) = expected_floors(m)
    assert_close(found, exact_variance(m, [(X + 0.1, Y, 0.3, 1), (X, Y, SIGMA, 1)]))


@pytest.mark.parametrize("sigma", [SIGMA, SIGMA[:, None]], ids=["(n,)", "(n, 1)"])
def test_an_array_is_for_points_of_its_length(sigma):
    choose(sigma=sigma)
    m = model(exact())
    (found,) = expected_floors(m)
    assert_close(found, exact_variance(m, [(X + 0.1, Y, SIGMA, 1)]))
    choose(sigma=sigma[:5])
    with pytest.raises(ValueError, match="5 entries for 6 points"):
        model(exact()).compile("snr_adam", lr=1e-3)


@BY_NAME
def test_a_list_goes_with_the_loss_weights(name):
    """A measured source term, a condition with an error per point, one that has none."""
    choose(sigma=[0.2, None, SIGMA, 0.0])
    m = model(ends(), exact(), measured_slope())
    (found,) = expected_floors(m, name, loss_weights=[0.5, 3, 2, 7])
    at_points = m.net(torch.as_tensor(X + 0.1, dtype=torch.float32)) - torch.as_tensor(Y).float()
    assert_close(found, variance_of(m, [(equation(m), 0.2, 0.5), (at_points, SIGMA, 2)]))


@pytest.mark.parametrize("as_list", [False, True])
def test_an_error_that_is_a_tensor_of_a_graph(as_list):
    sigma = torch.full((6, 1), 0.3, requires_grad=True) * 1
    choose(sigma=[None, sigma] if as_list else sigma)
    told = trained(model(dde.icbc.PointSetBC(X, Y)), iterations=3)
    choose(sigma=[None, np.full((6, 1), 0.3)])
    assert_same_bits(
        weights(told), weights(trained(model(dde.icbc.PointSetBC(X, Y)), iterations=3))
    )


def test_none_in_a_list_leaves_a_condition_its_own_error():
    choose(sigma=[0.2, None, None])
    m = model(noisy(), exact())
    (found,) = expected_floors(m)
    own = m.net(torch.as_tensor(X, dtype=torch.float32)) - torch.as_tensor(Y).float()
    assert_close(found, variance_of(m, [(equation(m), 0.2, 1), (own, SIGMA, 1)]))


def test_a_list_of_zeros_is_the_published_rule():
    choose(sigma=[0.0, 0])
    assert type(trained(model(exact())).opt) is SNRAdam


def test_a_list_needs_no_conditions():
    choose(sigma=[0.2])
    m = model()
    (found,) = expected_floors(m)
    assert_close(found, variance_of(m, [(equation(m), 0.2, 1)]))


@pytest.mark.parametrize("sigma", [[0.1], [0.1, None], [None, 0.1, None, None]])
def test_a_list_of_another_length_is_refused(sigma):
    choose(sigma=sigma)
    m = model(exact(), ends())
    m.compile("snr_adam", lr=1e-3, verbose=0)
    with pytest.raises(ValueError, match=f"sigma has {len(sigma)} entries for 3 loss terms"):
        m.train(iterations=1, verbose=0)
    with pytest.raises(ValueError, match=f"sigma has {len(sigma)} entries for 3 loss terms"):
        m.compile("snr_adam", lr=1e-3, loss=["MSE"] * 3)


@pytest.mark.parametrize("conditions", [[], [ends]], ids=["none", "exact"])
def test_a_number_without_measured_values_is_refused(conditions):
    choose(sigma=0.1)
    with pytest.raises(ValueError, match="no condition has measured values"):
        model(*[condition() for condition in conditions]).compile("snr_adam", lr=1e-3)


def test_the_published_rule_asks_for_no_sigma():
    choose(sigma=0.1, floor="stream")
    assert type(trained(model(exact())).opt) is SNRAdam


def dataset():
    """Supervised: the six points of the tests above."""
    data = dde.data.DataSet(X_train=X, y_train=Y, X_test=X, y_test=Y)
    return dde.Model(data, dde.nn.FNN([1, 6, 1], "tanh", "Glorot uniform"))


@BY_NAME
@pytest.mark.parametrize(
    "sigma", [0.3, SIGMA, SIGMA[:, None], [SIGMA]], ids=["number", "(n,)", "(n, 1)", "list"]
)
def test_error_of_supervised_data(sigma, name):
    choose(sigma=sigma)
    m = dataset()
    (found,) = expected_floors(m, name)
    own = sigma[0] if isinstance(sigma, list) else sigma
    assert_close(found, exact_variance(m, [(X, Y, own, 1)]))
    assert gate(m) == LABEL_GATE and not m.opt.floor.noisy_grads  # nothing stands beside it


def test_error_of_a_function():
    choose(sigma=0.3)
    m = function()
    (found,) = expected_floors(m)
    x, y = m.data.train_x, m.data.train_y
    assert_close(found, exact_variance(m, [(x, y, 0.3, 1)]))


@pytest.mark.parametrize("batch_size", [None, 2])
def test_batches_of_an_operators_data_are_averaged_over(batch_size):
    choose(sigma=0.3)
    m = triple()
    found = expected_floors(m, iterations=3, batch_size=batch_size)
    (branch, trunk), y = m.train_state.X_train, m.train_state.y_train
    residual = m.net((torch.as_tensor(branch), torch.as_tensor(trunk))) - torch.as_tensor(y)
    expected = variance_of(m, [(residual, 0.3, 1)])
    assert_close(found[-1], scaled(expected, fresh_share(len(y), 8)))
    assert len(y) == (batch_size or 8)


@pytest.mark.parametrize("sigma", [0.3, SIGMA], ids=["number", "array"])
def test_batches_of_a_condition_are_averaged_over(sigma):
    choose(sigma=sigma)
    condition = dde.icbc.PointSetBC(X, Y, batch_size=2)
    m = model(condition, ends())
    rows = []

    class Batches(dde.callbacks.Callback):
        def on_batch_end(self):
            rows.append(list(condition.batch_indices))

    resampler = dde.callbacks.PDEPointResampler(period=1, pde_points=False, bc_points=True)
    found = expected_floors(m, iterations=4, callbacks=[Batches(), resampler])
    for i, variance in zip(rows, found, strict=True):
        own = np.broadcast_to(sigma, (6,))[i]
        expected = exact_variance(m, [(X[i], Y[i], own, 1)])
        assert_close(variance, scaled(expected, fresh_share(2, 6)))
    assert len({tuple(sorted(i)) for i in rows}) > 1


def test_points_drawn_anew_bring_fresh_errors():
    """Those of the first two steps may stay: they count in full."""
    choose(sigma=[0.2, None])
    m = model(ends(), train_distribution="pseudo")
    expected = []

    class Points(dde.callbacks.Callback):
        def on_batch_end(self):
            expected.append(variance_of(m, [(equation(m), 0.2, 1)]))

    resampler = dde.callbacks.PDEPointResampler(period=1)
    found = expected_floors(m, iterations=4, callbacks=[Points(), resampler])
    for variance, one in zip(found[:2], expected[:2], strict=True):
        assert_close(variance, one)
    for variance, one in zip(found[2:], expected[2:], strict=True):
        assert_close(variance, scaled(one, fresh_share(0, 1)))
    assert not torch.equal(flat(expected[0]), flat(expected[1]))


@pytest.mark.parametrize("kind", ["operator", "function"])
def test_points_of_other_data_that_are_drawn_anew(kind):
    choose(sigma=[0.2, None] if kind == "operator" else 0.2)
    if kind == "operator":
        m = operator(dde.data.PDEOperator, zero_at_points())
        callbacks = [dde.callbacks.PDEPointResampler(period=1)]
    else:
        data = dde.data.Function(LINE, np.sin, 8, 8, "pseudo", online=True)
        m, callbacks = dde.Model(data, dde.nn.FNN([1, 6, 1], "tanh", "Glorot uniform")), []
    m.compile("snr_adam", lr=1e-3, verbose=0)
    found, update = [], m.opt.floor.update

    def record(terms, **options):
        found.append(terms[0])
        update(terms, **options)

    m.opt.floor.update = record
    m.train(iterations=4, callbacks=callbacks, verbose=0)
    assert [term.population for term in found[1:]] == [math.inf] * 3
    assert all(term.drawn_anew for term in found[2:])


@pytest.mark.parametrize("measured", ["source", "values"])
def test_points_that_stay_keep_their_errors(measured):
    """Only what is new in every step averages away."""
    choose(sigma=[0.2, None] if measured == "source" else 0.2)
    condition = dde.icbc.PointSetBC(X, Y, batch_size=2)
    m = model(ends(), train_distribution="pseudo") if measured == "source" else model(condition)
    expected = []

    class Points(dde.callbacks.Callback):
        def on_batch_end(self):
            if measured == "source":
                expected.append(variance_of(m, [(equation(m), 0.2, 1)]))
            else:
                i = list(condition.batch_indices)
                expected.append(exact_variance(m, [(X[i], Y[i], 0.2, 1)]))

    resampler = dde.callbacks.PDEPointResampler(period=2, bc_points=measured == "values")
    found = expected_floors(m, iterations=5, callbacks=[Points(), resampler])
    if measured == "values":  # of a batch, new ones are expected
        expected[0] = scaled(expected[0], fresh_share(2, 6))
    for variance, one in zip(found, expected, strict=True):
        assert_close(variance, one)


def test_an_error_per_point_of_points_drawn_anew_is_refused():
    choose(sigma=[np.full(10, 0.2), None])
    m = model(ends(), train_distribution="pseudo")
    m.compile("snr_adam", lr=1e-3, verbose=0)
    resampler = dde.callbacks.PDEPointResampler(period=3)
    with pytest.raises(ValueError, match=r"loss term 0.*drawn anew.*one number"):
        m.train(iterations=5, callbacks=[resampler], verbose=0)


class TwoLosses(dde.data.DataSet):
    def losses(self, targets, outputs, loss_fn, inputs, model, aux=None):
        return [loss_fn(targets[:3], outputs[:3]), loss_fn(targets[3:], outputs[3:])]


def test_one_number_is_not_for_several_losses():
    """It would be for the first of them."""
    data = TwoLosses(X_train=X, y_train=Y, X_test=X, y_test=Y)
    choose(sigma=0.3)
    m = dde.Model(data, dde.nn.FNN([1, 6, 1], "tanh", "Glorot uniform"))
    m.compile("snr_adam", lr=1e-3, verbose=0)
    with pytest.raises(ValueError, match="TwoLosses has 2 loss terms: give a list with one sigma"):
        m.train(iterations=1, verbose=0)
    choose(sigma=[0.3, 0.1])
    trained(m, iterations=2)


def test_conditions_that_have_changed_want_another_compile():
    """A condition that comes last would have the error of the one before it."""
    m = model(noisy())
    m.compile("snr_adam", lr=1e-3, verbose=0)
    m.data.bcs.append(ends())
    m.data.train_x_bc = None
    m.data.resample_train_points()
    with pytest.raises(ValueError, match=r"conditions have changed since compile.* compile again"):
        m.train(iterations=1, verbose=0)
    trained(m, iterations=2)


@pytest.mark.parametrize("batch_size", [None, 2])
@pytest.mark.parametrize("entries", [5, 60])
def test_a_list_entry_of_another_length_is_refused(entries, batch_size):
    choose(sigma=[None, np.full(entries, 0.3)])
    m = model(dde.icbc.PointSetBC(X, Y, batch_size=batch_size))
    m.compile("snr_adam", lr=1e-3, verbose=0)
    with pytest.raises(ValueError, match=rf"term 1 has the shape \({entries}, 1\) .*\(6, 1\)"):
        m.train(iterations=1, verbose=0)


def test_losses_train_of_ones_own_are_called_still():
    found = []
    for shared in (False, True):
        m = model(noisy(), ends())
        original, calls = m.data.losses_train, []

        def tripled(*args, original=original, calls=calls, **kwargs):
            calls.append(args)
            return [3 * loss for loss in original(*args, **kwargs)]

        m.data.losses_train = tripled
        if shared:  # with another model that was compiled before
            other = model()
            other.data = m.data
            trained(other, iterations=1)
            calls.clear()
        trained(m, iterations=5)
        assert len(calls) >= 5
        found.append(m.losshistory.loss_train[0])
    plain = trained(model(noisy(), ends()), iterations=5).losshistory.loss_train[0]
    np.testing.assert_allclose(found, [3 * plain] * 2, rtol=1e-6)
    recorder = m.data.losses_train
    assert RecordingLosses.of(m.data) is recorder and recorder.original is not recorder
    assert not passes_on_their_own(m)


def passes_on_their_own(m):
    """Whether few measured points have a forward pass of their own."""
    seen = []
    hook = m.net.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    m.train_step(m.data.train_x, None, None)
    hook.remove()
    return len(seen) > 1


@pytest.mark.parametrize("own", ["losses", "losses_train"])
def test_losses_of_ones_own_have_no_pass_of_their_own(own):
    conditions = noisy(0.3, X[:2], Y[:2]), ends()
    m = model(*conditions)
    assert passes_on_their_own(trained(m, iterations=1))
    m = model(*conditions)
    original = getattr(m.data, own)
    setattr(m.data, own, lambda *args, **kwargs: original(*args, **kwargs))
    assert not passes_on_their_own(trained(m, iterations=1))


def test_losses_train_that_form_no_residuals_are_refused():
    m = model(noisy())
    m.data.losses_train = lambda targets, outputs, *_, **__: [outputs.square().mean()] * 2
    m.compile("snr_adam", lr=1e-3, verbose=0)
    with pytest.raises(ValueError, match=r"PDE forms 0 residuals for 2 loss terms"):
        m.train(iterations=1, verbose=0)


class Flat(dde.nn.FNN):
    """Outputs (n,)."""

    def forward(self, inputs):
        return super().forward(inputs)[:, 0]


@pytest.mark.parametrize("sigma", [0.3, SIGMA, SIGMA[:, None], [SIGMA]])
def test_targets_without_columns(sigma):
    choose(sigma=sigma)
    data = dde.data.DataSet(X_train=X, y_train=Y[:, 0], X_test=X, y_test=Y[:, 0])
    m = dde.Model(data, Flat([1, 6, 1], "tanh", "Glorot uniform"))
    (found,) = expected_floors(m)
    residual = m.net(torch.as_tensor(X, dtype=torch.float32)) - torch.as_tensor(Y[:, 0]).float()
    own = sigma[0] if isinstance(sigma, list) else sigma
    own = torch.as_tensor(np.broadcast_to(np.ravel(own), 6).copy())[:, None]
    assert_close(found, variance_of(m, [(residual[:, None], own, 1)]))


@pytest.mark.parametrize("sigma", [0.3, SIGMA, [None, SIGMA[:, None]]])
def test_an_operator_without_columns(sigma):
    choose(sigma=sigma)
    slope = dde.icbc.PointSetOperatorBC(X, 0.0, lambda x, u, _: dde.grad.jacobian(u, x)[:, 0])
    m = model(slope)
    (found,) = expected_floors(m)
    own = sigma[1] if isinstance(sigma, list) else sigma
    assert_close(found, variance_of(m, [(slopes(m), own, 1)]))


class TwoOutputs(torch.nn.Module):
    """Of 4 functions at 4 points: (4, 4, 2)."""

    regularizer = None

    def __init__(self):
        super().__init__()
        self.branch, self.trunk = torch.nn.Linear(3, 2), torch.nn.Linear(1, 2)

    def forward(self, inputs):
        return self.branch(inputs[0])[:, None] * self.trunk(inputs[1])


def cartesian():
    rng = np.random.default_rng(0)
    x = tuple(rng.random((4, n)).astype(np.float32) for n in (3, 1))
    y = rng.random((4, 4, 2)).astype(np.float32)
    return dde.Model(dde.data.TripleCartesianProd(x, y, x, y), TwoOutputs())


@pytest.mark.parametrize("as_list", [False, True])
def test_outputs_at_points_of_functions_have_an_error_per_value(as_list):
    sigma = np.random.default_rng(1).random((4, 4, 2))
    choose(sigma=[sigma] if as_list else sigma)
    m = cartesian()
    (found,) = expected_floors(m)
    residual = m.net(tuple(map(torch.as_tensor, m.data.train_x)))
    residual = residual - torch.as_tensor(m.data.train_y)
    flat = residual.reshape(-1, 1), sigma.reshape(-1, 1), 1
    assert_close(found, variance_of(m, [flat]))
    for ambiguous in (np.full((4, 1), 0.1), np.full(4, 0.1), np.full((4, 2), 0.1)):
        choose(sigma=[ambiguous] if as_list else ambiguous)
        with pytest.raises(ValueError, match="give one number"):
            trained(cartesian(), iterations=1)


def operator(kind, *conditions):
    """u_x = v for five functions v."""

    def residual(x, u, v):
        return dde.grad.jacobian(u, x) - v

    pde = dde.data.PDE(LINE, residual, list(conditions), num_domain=8, num_boundary=2)
    data = kind(pde, dde.data.PowerSeries(N=3), np.linspace(-1, 1, 4)[:, None], 5)
    net = dde.nn.DeepONetCartesianProd if "Cartesian" in kind.__name__ else dde.nn.DeepONet
    return dde.Model(data, net([4, 6], [1, 6], "tanh", "Glorot uniform"))


def zero_at_points():
    return dde.icbc.PointSetBC(X, 0.0)


@BY_NAME
def test_operators_have_the_error_of_their_conditions(name):
    choose(sigma=0.3)
    m = operator(dde.data.PDEOperator, zero_at_points())
    (found,) = expected_floors(m, name, loss_weights=[2, 3])
    branch, trunk = (torch.as_tensor(x[: 6 * 5]) for x in m.data.train_x)
    assert_close(found, variance_of(m, [(m.net((branch, trunk)), 0.3, 3)]))


def test_cartesian_operators_are_refused_with_the_reason():
    """And train with the published rule after that, as the message says."""
    choose(sigma=0.3)
    m = operator(dde.data.PDEOperatorCartesianProd, zero_at_points())
    m.compile("snr_adam", lr=1e-3, verbose=0)
    with pytest.raises(ValueError, match=r"PDEOperatorCartesianProd forms .*floor=.stream"):
        m.train(iterations=1, verbose=0)
    choose(floor="stream")
    trained(m, iterations=3)
    assert m.opt.gate_stats().numel > 0


def test_forward_mode_has_the_same_floor():
    choose(sigma=[0.2, None])
    before = dde.config.autodiff
    dde.config.set_default_autodiff("forward")
    try:
        m = model(ends())
        (found,) = expected_floors(m)
    finally:
        dde.config.set_default_autodiff(before)
    assert_close(found, variance_of(m, [(equation(m), 0.2, 1)]))


@BY_NAME
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_supervised_data_can_be_copied_after_training(copied, name):
    choose(sigma=0.3)
    m = dataset()
    m.compile(name, lr=1e-2, verbose=0)
    m.train(iterations=2, verbose=0)
    m.outputs_losses_train(m.data.train_x, m.data.train_y, None)
    twin = copied(m.data)
    assert isinstance(twin.losses_train, RecordingLosses)
    assert twin.losses_train.data is twin
    assert twin.losses_train.residuals == []
    assert len(m.data.losses_train.residuals) == 1


@BY_NAME
def test_error_of_existing_conditions_is_that_of_noisy_ones(name):
    choose()
    carried = trained(model(noisy(0.3), ends()), name)
    choose(sigma=0.3)
    told = trained(model(dde.icbc.PointSetBC(X, Y), ends()), name)
    assert_same_bits(weights(told), weights(carried))
    assert_same_bits(floor(told), floor(carried))
