"""The residuals of DeepXDE's models, row by row: the floors they give, and what is beside them."""

import gc
import math

import deepxde as dde
import numpy as np
import pytest
import torch

from sciml_snr import Gate, GateStats, NoisyLoss, NoisyPointSetBC, noisy, set_SNR_options
from sciml_snr.gate import BESIDE_EXACT, DATA_ALONE, STREAM
from tests.cases import assert_same_bits
from tests.deepxde.models import (
    LINE,
    ONE_POINT,
    SIGMA,
    X,
    Y,
    assert_close,
    ends,
    equation_at,
    exact,
    exact_variance,
    flat,
    floor,
    floor_of,
    fresh_share,
    gate,
    measured,
    measured_only,
    model,
    only,
    scaled,
    slopes_at,
    supervised,
    tensor,
    trained,
    variance_of,
    weights,
)

BY_NAME = pytest.mark.parametrize("name", ["snr_adam", "snr_soap"])
STEPS = 400


def mean_floor(m, steps=STEPS, **options):
    """At lr = 0 and rho = 1 - 1e-6, the average over so many draws."""
    set_SNR_options(rho=1 - 1e-6, max_precondition_dim=1)
    return flat(floor(trained(m, options.pop("name", "snr_adam"), steps, lr=0.0, **options)))


def assert_within_chance(found, expected, steps=STEPS):
    """Five relative standard errors of the mean of h^2 over so many draws."""
    expected = flat(expected)
    assert ((found - expected).abs() <= 5 * math.sqrt(2 / steps) * expected).all()


COORDINATES = {"snr_adam": "own", "snr_soap": "eigen"}
"""In this file."""


@pytest.fixture(autouse=True)
def own_coordinates(seeded_and_back_to_defaults):
    """Floors can be computed by hand in the parameters' own coordinates, of draws in every step."""
    set_SNR_options(coordinates="own", floor_every=1)


class Floors(dde.callbacks.Callback):
    """The floor after every step, and what else is asked for."""

    def __init__(self, *asked):
        super().__init__()
        self.asked = asked

    def on_train_begin(self):
        self.found, self.answers = [], []

    def on_batch_end(self):
        self.found.append(floor(self.model))
        self.answers.append([ask() for ask in self.asked])


def steps(m, iterations, *asked, callbacks=(), lr=0.0, **options):
    """The floor of every step by itself, at a network that stays, and what is asked for."""
    set_SNR_options(floor_every=1, coordinates="own", rho=0.0)
    recorder = Floors(*asked)
    trained(m, lr=lr, iterations=iterations, callbacks=[recorder, *callbacks], **options)
    return recorder.found, recorder.answers


# The floor's value


def test_floor_is_the_variance_of_all_measurements(float64):
    """Noisy conditions between others."""
    others = X[:3] + 0.15
    conditions = measured(), ends(), measured(0.5, others, Y[:3]), exact(), measured(**ONE_POINT)
    m = model(*conditions)
    found = mean_floor(m, 1500, loss_weights=[9, 2, 8, 3, 7, 0.5])
    expected = exact_variance(
        m, [(X, Y, SIGMA, 2), (others, Y[:3], 0.5, 3), (X[:1], Y[:1], 0.3, 0.5)]
    )
    assert_within_chance(found, expected, 1500)


@BY_NAME
@pytest.mark.parametrize("row", range(6))
def test_every_row_has_its_own_error(name, row):
    set_SNR_options(max_precondition_dim=1)  # SOAP in the parameters' own coordinates
    m = trained(model(ends(), measured(only(row))), name, lr=0.0, loss_weights=[1, 2, 3])
    assert_close(floor(m), exact_variance(m, [(X, Y, only(row), 3)]))


@pytest.mark.parametrize("loss_weights", [None, [7, 5, 3, 2], np.array([7.0, 5, 3, 2])])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_loss_weight_goes_with_its_condition(place, loss_weights):
    conditions = [ends(), exact()]
    conditions.insert(place, measured(**ONE_POINT))
    m = trained(model(*conditions), lr=0.0, iterations=2, loss_weights=loss_weights)
    weight = 1.0 if loss_weights is None else loss_weights[1 + place]
    assert_close(floor(m), exact_variance(m, [(X[:1], Y[:1], 0.3, weight)]))


def test_one_weight_for_all_terms():
    """DeepXDE takes a number, too."""
    m = trained(model(measured(**ONE_POINT)), lr=0.0, iterations=2, loss_weights=0.5)
    assert_close(floor(m), exact_variance(m, [(X[:1], Y[:1], 0.3, 0.5)]))


def test_l1_regularizer_is_no_condition():
    """DeepXDE appends it to the losses, unweighted."""
    m = model(measured(**ONE_POINT), ends(), regularization=["l1", 1e-3])
    trained(m, lr=0.0, iterations=1, loss_weights=[7, 5, 3])
    assert_close(floor(m), exact_variance(m, [(X[:1], Y[:1], 0.3, 5)]))


@pytest.mark.parametrize("loss", ["MAE", ["MSE", "MAE"]])
def test_absolute_errors_have_the_variance_of_a_sign(loss):
    """Half of the squared error's at sigma = 1; the misfit is still told by sigma."""
    m = model(measured(5.0, X[:1], Y[:1]))
    trained(m, lr=0.0, iterations=2, loss=loss, loss_weights=[3, 7])
    assert_close(floor(m), exact_variance(m, [(X[:1], Y[:1], 5.0, 7 / 5 / 2)]))


def test_exact_conditions_do_not_change_the_floor():
    """Nor does the differential equation's residual, however weighted."""
    found = [
        floor(trained(m, lr=0.0, iterations=3, loss_weights=loss_weights))
        for m, loss_weights in [
            (model(measured()), None),
            (model(ends(), measured(), exact()), [100, 10, 1, 10]),
        ]
    ]
    assert_close(found[1], found[0])


def test_floor_every():
    """Passes at steps 1, 11, 21: in between the floor stays as it is."""
    set_SNR_options(coordinates="own", floor_every=10)
    floors = Floors()
    trained(model(measured()), iterations=25, callbacks=[floors])
    found = [flat(f) for f in floors.found]
    changes = [i + 2 for i in range(24) if not torch.equal(found[i], found[i + 1])]
    assert changes == [11, 21]


def test_a_larger_error_holds_back_more():
    set_SNR_options(floor_every=1, coordinates="own", discrepancy=False)
    found = [trained(model(measured(s))).opt.gate_stats().mean_q for s in (0.0, 0.1, 1.0, 1e4)]
    assert found == sorted(found, reverse=True)
    assert found[0] > 0.999 and found[-1] < 0.01


def test_no_error_is_adam_up_to_rounding():
    """sigma = 0: q = mean_sq / mean_sq."""
    found = [weights(trained(model(measured(0.0), ends()), o)) for o in ("adam", "snr_adam")]
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-6)


def test_no_error_beside_an_error_is_exact():
    m = trained(measured_only(measured(0.0), measured(0.3, X + 0.1)))
    assert m.opt.beside_exact
    assert "exact: condition 0 (NoisyPointSetBC)" in m.opt.describe()


# What is noisy, and what stands beside it


def ode(*conditions):
    time = dde.geometry.TimeDomain(0, 1)
    start = dde.icbc.IC(time, lambda x: 1, lambda _, on_initial: on_initial)
    data = dde.data.PDE(
        time, lambda t, u: dde.grad.jacobian(u, t) + u, [start, *conditions], 8, 2, num_test=5
    )
    return dde.Model(data, dde.nn.FNN([1, 6, 1], "tanh", "Glorot uniform"))


def time_pde(*conditions):
    geomtime = dde.geometry.GeometryXTime(LINE, dde.geometry.TimeDomain(0, 1))
    start = dde.icbc.IC(geomtime, lambda x: 0, lambda _, on_initial: on_initial)

    def residual(x, u):
        return dde.grad.jacobian(u, x, j=1)

    data = dde.data.TimePDE(geomtime, residual, [start, *conditions], 8, 2, num_initial=2)
    return dde.Model(data, dde.nn.FNN([2, 6, 1], "tanh", "Glorot uniform"))


def integral(*conditions):
    """u' + int_0^x u = 1, which forms its losses itself."""

    def residual(x, u, matrix):
        integrals = torch.as_tensor(matrix) @ u
        return integrals + (dde.grad.jacobian(u, x) - 1)[: len(integrals)]

    time = dde.geometry.TimeDomain(0, 1)
    data = dde.data.IDE(time, residual, list(conditions), 4, num_domain=8, num_boundary=2)
    return dde.Model(data, dde.nn.FNN([1, 6, 1], "tanh", "Glorot uniform"))


XT = np.hstack([X, np.abs(X)])
MEASURED = {
    "PDE": lambda: model(measured(), ends()),
    "ODE": lambda: ode(measured(points=np.abs(X))),
    "TimePDE": lambda: time_pde(measured(points=XT)),
    "IDE": lambda: integral(measured(points=np.abs(X))),
    "only measurements": lambda: measured_only(measured()),
}


def expected_gate(name, beside_exact):
    return BESIDE_EXACT[COORDINATES[name]] if beside_exact else DATA_ALONE


@BY_NAME
@pytest.mark.parametrize("kind", MEASURED)
def test_the_gate_goes_with_what_stands_beside(kind, name):
    m = trained(MEASURED[kind](), name)
    beside = kind != "only measurements"
    assert m.opt.beside_exact is beside
    assert gate(m) == expected_gate(name, beside)
    assert all((variance > 0).any() for variance in floor(m))
    assert all(("exp_avg_noisy" in m.opt.state[p]) is beside for p in m.net.parameters())
    assert ("exact: none" in m.opt.describe()) is not beside


@BY_NAME
def test_the_noisy_terms_gradient_is_known_beside_exact_terms(name):
    set_SNR_options(floor_every=1, coordinates="own", betas=(0.0, 0.999))
    m = model(measured(), ends())
    trained(m, name, lr=0.0, iterations=2, loss_weights=[1.0, 3.0, 1.0])
    params = list(m.net.parameters())
    loss = 3 * ((m.net(tensor(X, m)) - tensor(Y, m)) ** 2).mean()
    expected = torch.autograd.grad(loss, params)
    assert_close([m.opt.state[p]["exp_avg_noisy"] for p in params], list(expected))


@BY_NAME
def test_a_term_of_weight_0_is_none(name):
    m = trained(model(measured()), name, loss_weights=[0, 1])
    assert not m.opt.beside_exact and gate(m) == DATA_ALONE
    m = trained(model(measured(), ends()), name, loss_weights=[0, 1, 2])
    assert m.opt.beside_exact and gate(m) == BESIDE_EXACT[COORDINATES[name]]
    m = trained(model(measured()), name, loss=[NoisyLoss(0.3), "MSE"], loss_weights=[0, 1])
    assert not m.opt.beside_exact and gate(m) == DATA_ALONE


@BY_NAME
@pytest.mark.parametrize("which", ["equation", "condition beside a noisy equation"])
def test_loss_weights_that_change_are_noticed_in_the_next_steps(name, which):
    """The first step decides with the old weights, the one after the next with the new ones."""

    class Switch(dde.callbacks.Callback):
        def on_batch_end(self):
            found.append(self.model.opt.beside_exact)
            at = {3: 1.0, 8: 0.0}.get(len(found))
            if at is not None:
                self.model.loss_weights[place] = at

    found = []
    if which == "equation":
        place, m, loss = 0, model(measured()), "MSE"
    else:
        place, m, loss = 1, model(ends()), [NoisyLoss(0.3), "MSE"]
    on_off = [0.0, 1.0] if place == 0 else [1.0, 0.0]
    trained(m, name, iterations=12, loss=loss, loss_weights=on_off, callbacks=[Switch()])
    assert found[:3] == [False] * 3 and found[4:8] == [True] * 4 and found[9:] == [False] * 3


@BY_NAME
def test_equations_alone_have_nothing_to_stand_beside(name):
    m = trained(model(), name, loss=NoisyLoss(0.3))
    assert not m.opt.beside_exact and gate(m) == DATA_ALONE
    assert "noisy: equation: NoisyLoss" in m.opt.describe()


@pytest.mark.parametrize("loss", [NoisyLoss(0.3), [NoisyLoss(0.3)]], ids=["alone", "list"])
def test_a_measured_source_without_conditions(loss):
    m = trained(model(domain=1, boundary=0), lr=0.0, iterations=2, loss=loss, loss_weights=[2])
    (points,) = m.data.train_x
    assert_close(floor(m), variance_of(m, [(equation_at(m, [points]), 0.3, 2)]))


@pytest.mark.parametrize("row", range(3))
def test_a_measured_source_beside_conditions(row):
    """Its sigma per point; no error in the boundary values."""
    m = model(ends(), exact(), domain=3, boundary=2)
    points = m.data.train_x_all
    sigma = only(row, 0.2, (len(points), 1))
    trained(m, lr=0.0, loss=[NoisyLoss(sigma), "MSE", "MSE"], loss_weights=[0.5, 3, 2])
    assert_close(floor(m), variance_of(m, [(equation_at(m, points), sigma, 0.5)]))
    assert "exact: condition 0 (DirichletBC); condition 1 (PointSetBC)" in m.opt.describe()


@BY_NAME
def test_a_measured_source_and_measured_values(name):
    """Noisy equations hold the noise of data back as exact ones do."""
    m = model(measured(0.1), domain=1, boundary=0)
    trained(m, name, loss=[NoisyLoss(0.2), "MSE"])
    assert m.opt.beside_exact and gate(m) == BESIDE_EXACT[COORDINATES[name]]
    m = model(measured(**ONE_POINT), domain=1, boundary=0)
    found = mean_floor(m, name=name, loss=[NoisyLoss(0.2), "MSE"], loss_weights=[0.5, 2])
    at_point = m.net(tensor(X[:1], m)) - tensor(Y[:1], m)
    source = equation_at(m, m.data.train_x_all)
    assert_within_chance(found, variance_of(m, [(source, 0.2, 0.5), (at_point, 0.3, 2)]))


@BY_NAME
@pytest.mark.parametrize("sigma", [0.01, 0.3, 1e3])
def test_what_a_misfit_exceeds_carries_on_as_an_exact_term(name, sigma):
    """Of a noisy equation beside data: its gradient over its misfit counts as noisy."""
    set_SNR_options(floor_every=1, coordinates="own", betas=(0.0, 0.999))
    m = model(measured(0.1))
    trained(m, name, lr=0.0, iterations=2, loss=[NoisyLoss(sigma), "MSE"])
    params = list(m.net.parameters())
    of_data = (m.net(tensor(X, m)) - tensor(Y, m)).square().mean()
    of_equation = equation_at(m, m.data.train_x[6:]).square().mean()
    misfits = of_data.item() / 0.1**2, of_equation.item() / sigma**2
    assert misfits[0] > 1  # else this would not see a part of the data
    loss = of_data / misfits[0] + of_equation / max(misfits[1], 1)
    expected = torch.autograd.grad(loss, params, allow_unused=True)
    pairs = [(m.opt.state[p]["exp_avg_noisy"], g) for p, g in zip(params, expected, strict=True)]
    assert_close(*(list(x) for x in zip(*((a, g) for a, g in pairs if g is not None), strict=True)))


class OneMore(dde.data.PDE):
    """A loss term that has no residual."""

    def losses(self, targets, outputs, loss_fn, inputs, model, aux=None):
        found = super().losses(targets, outputs, loss_fn, inputs, model, aux)
        return [*found, 3 * outputs.mean().square()]


class OtherOrder(dde.data.PDE):
    """Calls its loss with prediction and target in torch's order."""

    def losses(self, targets, outputs, loss_fn, inputs, model, aux=None):
        def turned(zeros, error):
            return loss_fn(error, zeros)

        return super().losses(targets, outputs, turned, inputs, model, aux)


@pytest.mark.parametrize("kind", [OneMore, OtherOrder])
@pytest.mark.parametrize("optimizer", ["snr_adam", "snr_soap", "adam"])
def test_data_with_losses_of_ones_own(kind, optimizer):
    """What has no residual is exact; the order of the arguments does not matter."""
    torch.manual_seed(0)
    data = kind(LINE, None, [measured(only(2))], num_domain=0)
    m = dde.Model(data, dde.nn.FNN([1, 6, 1], "tanh", "Glorot uniform"))
    set_SNR_options(max_precondition_dim=1)
    trained(m, optimizer, lr=0.0, iterations=2)
    residual = m.net(tensor(X, m)) - tensor(Y, m)
    assert m.losshistory.loss_train[0][0] == pytest.approx(residual.square().mean().item())
    if optimizer != "adam":
        assert_close(floor(m), variance_of(m, [(residual, only(2), 1)]))
        assert m.opt.beside_exact is (kind is OneMore)


def test_losses_train_of_ones_own_count_with_what_they_do():
    """The gradient that arrives has the factor in it."""
    m = model(measured(**ONE_POINT), ends())
    original = m.data.losses_train
    m.data.losses_train = lambda *args, **kwargs: [3 * x for x in original(*args, **kwargs)]
    trained(m, lr=0.0, iterations=2, loss_weights=[1, 2, 1])
    assert_close(floor(m), exact_variance(m, [(X[:1], Y[:1], 0.3, 6)]))


@pytest.mark.parametrize("optimizer", ["snr_adam", "snr_soap"])
def test_losses_train_without_the_residuals_are_refused(optimizer):
    m = model(measured())
    m.data.losses_train = lambda targets, outputs, *_, **__: [outputs.square().mean()] * 2
    with pytest.raises(
        RuntimeError, match=r"declared noisy loss .*condition 0 \(NoisyPointSetBC\)"
    ):
        trained(m, optimizer, iterations=1)


def test_a_noisy_condition_that_came_after_compile_is_refused():
    m = model(measured())
    m.compile("snr_adam", lr=1e-3, verbose=0)
    m.data.bcs.append(noisy(ends(), 0.1))
    m.data.resample_train_points()
    with pytest.raises(ValueError, match=r"NoisyDirichletBC has come .* compile again"):
        m.train(iterations=1, verbose=0)
    trained(m, iterations=2)


def test_an_exact_condition_may_come_after_compile():
    """Nothing is counted by its place: the floor is still that of the measurements."""
    m = model(measured(**ONE_POINT))
    m.compile("snr_adam", lr=0.0, verbose=0)
    m.data.bcs.insert(0, ends())
    m.data.resample_train_points()
    m.train(iterations=2, verbose=0)
    assert_close(floor(m), exact_variance(m, [(X[:1], Y[:1], 0.3, 1)]))


# Passes through the network


def test_tests_in_between_do_not_disturb():
    """DeepXDE evaluates the same conditions, with the network's gradients switched off."""
    found = []
    for display_every in (1, 1000):
        torch.manual_seed(0)
        m = ode(measured(points=np.abs(X)))
        found.append(trained(m, display_every=display_every))
    assert len(found[0].losshistory.steps) > len(found[1].losshistory.steps)
    assert_same_bits(weights(found[0]), weights(found[1]))
    assert_same_bits(floor(found[0]), floor(found[1]))
    assert {found[0].opt.state[p]["floor_step"] for p in found[0].net.parameters()} == {20}


def test_losses_that_are_looked_at_do_not_disturb():
    """Without a backward pass, nothing is handed over; nor without gradients."""
    found = []
    for looks in (True, False):
        m = model(measured(), ends())
        m.compile("snr_adam", lr=1e-2, verbose=0)
        torch.manual_seed(1)
        for _ in range(5):
            if looks:
                m.outputs_losses_train(m.data.train_x, None, None)
                with torch.no_grad():
                    m.predict(X)
            m.train_step(m.data.train_x, None, None)
        found.append([*weights(m), *floor(m)])
    assert_same_bits(found[0], found[1])


def test_draws_change_no_other_random_number():
    after = []
    for optimizer in ("adam", "snr_adam"):
        m = model(measured(), ends())
        m.compile(optimizer, lr=1e-2, verbose=0)
        torch.manual_seed(5)
        m.train(iterations=3, verbose=0)
        after.append((torch.rand(3), np.random.rand(3).tolist()))
        np.random.seed(0)
    assert_same_bits(after[0][0], after[1][0])


def test_training_leaves_no_tensors_behind():
    """Residuals carry where they come from: the graph of a step has to go with the step."""
    slope = dde.icbc.PointSetOperatorBC(X, Y, lambda x, u, _: dde.grad.jacobian(u, x))
    m = model(measured(batch_size=3), noisy(slope, 0.2), measured(0.1, X[:2], Y[:2]))
    resampler = dde.callbacks.PDEPointResampler(period=1, bc_points=True)
    loss = [NoisyLoss(0.3), "MSE", "MSE", "MSE"]
    trained(m, iterations=20, loss=loss, callbacks=[resampler])

    def alive():
        return sum(isinstance(x, torch.Tensor) for x in gc.get_objects())

    gc.collect()
    gc.disable()  # what goes only with a collection would pile up in between
    try:
        before = alive()
        m.train(iterations=300, display_every=50, callbacks=[resampler], verbose=0)
        assert alive() - before < 30
    finally:
        gc.enable()


def test_a_model_that_is_dropped_goes_away():
    import weakref

    m = trained(model(measured(), ends()), iterations=2)
    gone = [weakref.ref(m), weakref.ref(m.opt), weakref.ref(m.net)]
    del m
    gc.collect()
    assert [ref() for ref in gone] == [None] * 3


# Batches, and points that are drawn anew


def test_a_batch_takes_its_own_errors_along():
    """Batches of one point: no randomness."""
    m = model(bc := measured(batch_size=1, shuffle=False))
    resampler = dde.callbacks.PDEPointResampler(period=1, bc_points=True)
    found, rows = steps(m, 12, lambda: list(bc.batch_indices), callbacks=[resampler])
    assert {i for ((i,),) in rows} == set(range(6))
    for variance, ((i,),) in zip(found, rows, strict=True):
        expected = exact_variance(m, [(X[[i]], Y[[i]], SIGMA[i], 1.0)])
        assert_close(variance, scaled(expected, fresh_share(1, 6)))


@pytest.mark.parametrize("sigma", [0.3, SIGMA], ids=["number", "array"])
def test_batches_of_any_condition(sigma):
    """noisy() alike, of two points."""
    bc = noisy(dde.icbc.PointSetBC(X, Y, batch_size=2), sigma)
    m = model(bc, ends())
    set_SNR_options(floor_every=1, coordinates="own", rho=1 - 1e-6)
    m.compile("snr_adam", lr=0.0, verbose=0)
    rows = []

    class Batches(dde.callbacks.Callback):
        def on_batch_end(self):
            rows.append(tuple(sorted(bc.batch_indices)))

    resampler = dde.callbacks.PDEPointResampler(period=1, pde_points=False, bc_points=True)
    m.train(iterations=STEPS, callbacks=[Batches(), resampler], verbose=0)
    assert len(set(rows)) > 10
    expected = torch.zeros_like(flat(weights(m)))
    for pair in set(rows):
        i = list(pair)
        own = exact_variance(m, [(X[i], Y[i], np.broadcast_to(sigma, (6,))[i], 1)])
        expected += rows.count(pair) / STEPS * fresh_share(2, 6) * flat(own)
    assert_within_chance(flat(floor(m)), [expected])


def test_points_that_stay_keep_their_errors():
    """Only what is new in every step averages away; of a first batch, new ones are expected."""
    m = model(bc := measured(batch_size=1, shuffle=False))
    resampler = dde.callbacks.PDEPointResampler(period=2, bc_points=True)
    found, rows = steps(m, 5, lambda: list(bc.batch_indices), callbacks=[resampler])
    for step, (variance, ((i,),)) in enumerate(zip(found, rows, strict=True)):
        expected = exact_variance(m, [(X[[i]], Y[[i]], SIGMA[i], 1.0)])
        assert_close(variance, scaled(expected, fresh_share(1, 6) if step == 0 else 1))


def test_a_batch_that_stays_is_a_batch():
    """Its misfit is a matter of chance: it does not open the gate."""
    set_SNR_options(floor_every=1, coordinates="own", discrepancy=True)
    for batch_size, opens in ((2, False), (None, True)):
        m = measured_only(noisy(dde.icbc.PointSetBC(X, Y + 9, batch_size=batch_size), 0.3))
        trained(m, iterations=3)
        assert (float(m.opt.moments(next(m.net.parameters())).excess) > 0.9) is opens


def one_source_point(kind):
    """One point of a noisy equation, drawn anew; its loss, and what it gives a floor."""
    if kind == "PDEOperator":
        m = operator(dde.data.PDEOperator, functions=1, domain=1, distribution="pseudo")

        def residual():
            branch, trunk = (torch.as_tensor(x) for x in m.data.train_x)
            trunk = trunk.requires_grad_()
            u = m.net((branch, trunk))
            (slope,) = torch.autograd.grad(u.sum(), trunk, create_graph=True)
            return slope - torch.as_tensor(m.data.train_aux_vars)

        return m, NoisyLoss(0.2), lambda: variance_of(m, [(residual(), 0.2, 1)])
    conditions = [exact()] if kind == "PDE with a condition" else []
    m = model(*conditions, domain=1, boundary=0, train_distribution="pseudo")
    loss = [NoisyLoss(0.2), *["MSE"] * len(conditions)]
    return m, loss, lambda: variance_of(m, [(equation_at(m, m.data.train_x_all), 0.2, 1)])


SOURCES = ["PDE", "PDE with a condition", "PDEOperator"]


@pytest.mark.parametrize("kind", SOURCES)
def test_points_drawn_anew_bring_fresh_errors(kind):
    """Those of the first two steps may stay: they count in full."""
    m, loss, variance = one_source_point(kind)
    resampler = dde.callbacks.PDEPointResampler(period=1)
    found, expected = steps(m, 5, variance, callbacks=[resampler], loss=loss)
    for step, (own, (one,)) in enumerate(zip(found, expected, strict=True)):
        assert_close(own, scaled(one, 1 if step < 2 else fresh_share(0, 1)))
    assert not torch.equal(flat(expected[0][0]), flat(expected[1][0]))


@pytest.mark.parametrize("kind", SOURCES)
def test_points_of_a_source_that_stay_keep_their_errors(kind):
    m, loss, variance = one_source_point(kind)
    resampler = dde.callbacks.PDEPointResampler(period=2)
    found, expected = steps(m, 5, variance, callbacks=[resampler], loss=loss)
    for own, (one,) in zip(found, expected, strict=True):
        assert_close(own, one)


def test_a_function_that_is_sampled_online_is_fresh_from_the_start():
    data = dde.data.Function(LINE, np.sin, 1, 8, "pseudo", online=True)
    m = dde.Model(data, dde.nn.FNN([1, 6, 1], "tanh", "Glorot uniform"))

    def variance():
        state = m.train_state
        return exact_variance(m, [(state.X_train, state.y_train, 0.2, 1)])

    found, expected = steps(m, 4, variance, loss=NoisyLoss(0.2), batch_size=1)
    for own, (one,) in zip(found, expected, strict=True):
        assert_close(own, scaled(one, fresh_share(0, 1)))
    assert not torch.equal(flat(expected[0][0]), flat(expected[1][0]))


def test_an_error_per_point_of_points_drawn_anew_is_refused():
    m = model(ends(), domain=8, boundary=2, train_distribution="pseudo")
    size = len(m.data.train_x_all)
    m.compile("snr_adam", lr=1e-3, loss=[NoisyLoss(np.full((size, 1), 0.2)), "MSE"], verbose=0)
    resampler = dde.callbacks.PDEPointResampler(period=3)
    with pytest.raises(ValueError, match=r"sigma of an equation .*drawn anew.*one number"):
        m.train(iterations=5, callbacks=[resampler], verbose=0)


# Supervised data


@BY_NAME
@pytest.mark.parametrize("row", range(6))
def test_error_of_supervised_data(row, name):
    set_SNR_options(max_precondition_dim=1)
    m = trained(supervised(), name, lr=0.0, iterations=2, loss=NoisyLoss(only(row)))
    assert_close(floor(m), exact_variance(m, [(X, Y, only(row), 1)]))
    assert gate(m) == DATA_ALONE and not m.opt.beside_exact  # nothing stands beside it
    assert "noisy: targets: NoisyLoss, mse, sigma 0 to 0.3" in m.opt.describe()


@pytest.mark.parametrize("sigma", [0.3, SIGMA[:, None]], ids=["number", "(n, 1)"])
def test_floor_of_supervised_data(sigma, float64):
    m = supervised()
    found = mean_floor(m, loss=NoisyLoss(sigma))
    assert_within_chance(found, exact_variance(m, [(X, Y, sigma, 1)]))


@pytest.mark.parametrize("loss", ["mse", "l1", "huber", torch.nn.functional.smooth_l1_loss])
@pytest.mark.parametrize("optimizer", ["adam", "snr_adam"])
def test_the_loss_is_the_named_one(loss, optimizer):
    named = {
        "mse": torch.nn.functional.mse_loss,
        "l1": torch.nn.functional.l1_loss,
        "huber": torch.nn.functional.huber_loss,
    }
    m = trained(supervised(), optimizer, lr=0.0, iterations=1, loss=NoisyLoss(0.3, loss))
    wanted = named.get(loss, loss)(m.net(tensor(X, m)), tensor(Y, m)).item()
    assert m.losshistory.loss_train[0] == pytest.approx([wanted])


def triple():
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    branch, trunk, y = (rng.random((8, n)).astype(np.float32) for n in (3, 1, 1))
    data = dde.data.Triple((branch, trunk), y, (branch, trunk), y)
    return dde.Model(data, dde.nn.DeepONet([3, 6], [1, 6], "tanh", "Glorot uniform"))


@pytest.mark.parametrize("batch_size", [None, 1])
def test_batches_of_supervised_data_are_averaged_over(batch_size):
    m = triple()

    def residual():
        (branch, trunk), y = m.train_state.X_train, m.train_state.y_train
        return m.net((torch.as_tensor(branch), torch.as_tensor(trunk))) - torch.as_tensor(y)

    sigma = 0.3 if batch_size else only(3, shape=(8, 1))

    def variance():
        assert len(residual()) == (batch_size or 8)
        return variance_of(m, [(residual(), sigma, 1)])

    found, expected = steps(m, 3, variance, loss=NoisyLoss(sigma), batch_size=batch_size)
    for own, (one,) in zip(found, expected, strict=True):
        assert_close(own, scaled(one, fresh_share(batch_size or 8, 8)))


def test_batches_have_no_error_per_sample():
    """Which of the samples they hold is not known."""
    m = triple()
    with pytest.raises(ValueError, match=r"sigma \(8, 1\) does not broadcast"):
        trained(m, iterations=1, loss=NoisyLoss(np.full((8, 1), 0.1)), batch_size=2)


class TwoOutputs(torch.nn.Module):
    """Of 4 functions at 4 points: (4, 4, 2)."""

    regularizer = None

    def __init__(self):
        super().__init__()
        self.branch, self.trunk = torch.nn.Linear(3, 2), torch.nn.Linear(1, 2)

    def forward(self, inputs):
        return self.branch(inputs[0])[:, None] * self.trunk(inputs[1])


@pytest.mark.parametrize("entry", [0, 13, 31])
def test_outputs_at_points_of_functions_have_an_error_per_value(entry):
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    x = tuple(rng.random((4, n)).astype(np.float32) for n in (3, 1))
    y = rng.random((4, 4, 2)).astype(np.float32)
    m = dde.Model(dde.data.TripleCartesianProd(x, y, x, y), TwoOutputs())
    sigma = only(entry, shape=(4, 4, 2))
    trained(m, lr=0.0, iterations=2, loss=NoisyLoss(sigma))
    residual = m.net(tuple(map(torch.as_tensor, x))) - torch.as_tensor(y)
    assert_close(floor(m), variance_of(m, [(residual, sigma, 1)]))


class Flat(dde.nn.FNN):
    """Outputs (n,)."""

    def forward(self, inputs):
        return super().forward(inputs)[:, 0]


def test_targets_without_columns():
    m = supervised(X, Y[:, 0], Flat)
    trained(m, lr=0.0, iterations=2, loss=NoisyLoss(only(4)[:, 0]))
    residual = (m.net(tensor(X, m)) - tensor(Y[:, 0], m))[:, None]
    assert_close(floor(m), variance_of(m, [(residual, only(4), 1)]))


@pytest.mark.parametrize(("y", "net"), [(Y[:, 0], dde.nn.FNN), (Y, Flat)])
@pytest.mark.parametrize("optimizer", ["snr_adam", "adam"])
def test_targets_of_another_shape_are_refused(y, net, optimizer):
    """DeepXDE would compare each output with each target, and train on their mean."""
    with pytest.raises(ValueError, match=r"differ in shape: .*columns by y\[:, None\]"):
        trained(supervised(X, y, net), optimizer, iterations=1, loss=NoisyLoss(0.1))


class TwoLosses(dde.data.DataSet):
    def losses(self, targets, outputs, loss_fn, inputs, model, aux=None):
        return [loss_fn(targets[:3], outputs[:3]), loss_fn(targets[3:], outputs[3:])]


def test_one_noisy_loss_called_twice():
    """All targets are used in every step: their noise counts in full."""
    data = TwoLosses(X_train=X, y_train=Y, X_test=X, y_test=Y)
    m = dde.Model(data, dde.nn.FNN([1, 6, 1], "tanh", "Glorot uniform"))
    found = mean_floor(m, loss=NoisyLoss(0.3), loss_weights=[1, 2])
    expected = exact_variance(m, [(X[:3], Y[:3], 0.3, 1), (X[3:], Y[3:], 0.3, 2)])
    assert_within_chance(found, expected)


# Operators, forward mode


def operator(kind, *conditions, functions=5, domain=8, distribution="Hammersley"):
    """u_x = v for so many functions v."""

    def residual(x, u, v):
        return dde.grad.jacobian(u, x) - v

    torch.manual_seed(0)
    np.random.seed(0)
    pde = dde.data.PDE(
        LINE, residual, list(conditions), domain, 2 if domain > 1 else 0, distribution
    )
    data = kind(pde, dde.data.PowerSeries(N=3), np.linspace(-1, 1, 4)[:, None], functions)
    net = dde.nn.DeepONetCartesianProd if "Cartesian" in kind.__name__ else dde.nn.DeepONet
    return dde.Model(data, net([4, 6], [1, 6], "tanh", "Glorot uniform"))


OPERATORS = [dde.data.PDEOperator, dde.data.PDEOperatorCartesianProd]


@pytest.mark.parametrize("kind", OPERATORS)
@pytest.mark.parametrize("functions", [1, 4])
def test_operators_have_the_error_of_their_conditions(kind, functions):
    """At one point, for every function: of one, the floor is exact."""
    m = operator(kind, noisy(dde.icbc.PointSetBC(X[:1], 0.0), 0.3), functions=functions)
    options = dict(loss_weights=[2, 3])
    branch, point = torch.as_tensor(m.data.train_x[0]), tensor(X[:1], m)
    if kind is dde.data.PDEOperator:
        residuals = [m.net((branch[:functions], point.expand(functions, 1)))]
    else:  # the mean over functions of each one's loss
        residuals = list(m.net((branch, point))[:, :, None])
    expected = variance_of(m, [(r, 0.3, 3 / len(residuals)) for r in residuals])
    if functions == 1:
        trained(m, lr=0.0, iterations=2, **options)
        assert_close(floor(m), expected)
    else:
        assert_within_chance(mean_floor(m, **options), expected)
    assert m.opt.beside_exact
    assert "exact: the equation" in m.opt.describe()


@pytest.mark.parametrize("kind", OPERATORS)
@BY_NAME
def test_operators_train(kind, name):
    """With values, and with slopes, that have an error."""
    slope = dde.icbc.OperatorBC(LINE, lambda x, u, _: dde.grad.jacobian(u, x), lambda _, on: on)
    conditions = noisy(dde.icbc.PointSetBC(X, 0.0), 0.3), noisy(slope, 0.3), zero_in_the_middle()
    m = operator(kind, *conditions)
    trained(m, name, iterations=200, display_every=50)
    assert gate(m) == BESIDE_EXACT[COORDINATES[name]]
    first, *_, last = (np.sum(loss) for loss in m.losshistory.loss_train)
    assert last < first / 2


def zero_in_the_middle():
    return noisy(dde.icbc.PointSetBC(X[2:4], 0.1), 0.2)


def test_an_error_per_point_of_an_operator():
    """In a Cartesian product each function has the points' errors; else rows are more."""
    bc = noisy(dde.icbc.PointSetBC(X, 0.0), only(2))
    m = trained(operator(OPERATORS[1], bc, functions=1), lr=0.0, iterations=2)
    residual = m.net((torch.as_tensor(m.data.train_x[0]), tensor(X, m)))[0][:, None]
    assert_close(floor(m), variance_of(m, [(residual, only(2), 1)]))
    with pytest.raises(ValueError, match=r"sigma \(6, 1\) does not broadcast"):
        trained(operator(OPERATORS[0], bc), iterations=1)


def test_forward_mode_has_the_same_floor():
    before = dde.config.autodiff
    dde.config.set_default_autodiff("forward")
    try:
        m = model(dde.icbc.PointSetBC(X, Y), domain=1, boundary=0)
        trained(m, lr=0.0, iterations=2, loss=[NoisyLoss(0.2), "MSE"])
        both = trained(model(measured(only(3)), ends()), lr=0.0, iterations=2)
    finally:
        dde.config.set_default_autodiff(before)
    source = m.data.train_x[sum(m.data.num_bcs) :]
    assert_close(floor(m), variance_of(m, [(equation_at(m, source), 0.2, 1)]))
    assert_close(floor(both), exact_variance(both, [(X, Y, only(3), 1)]))


# Types, unknowns, frozen layers


def test_float64(float64):
    m = trained(model(measured()))
    assert {t.dtype for t in (*floor(m), *weights(m), m.data.bcs[0].sigma)} == {torch.float64}


def test_mixed_precision(mixed_precision):
    m = trained(measured_only(measured()), iterations=100)
    assert {variance.dtype for variance in floor(m)} == {torch.float32}
    assert all((variance > 0).any() for variance in floor(m))
    assert np.sum(m.losshistory.loss_train[-1]) < np.sum(m.losshistory.loss_train[0])


@BY_NAME
@pytest.mark.parametrize("layers", [1, 3], ids=["a layer", "all"])
def test_what_is_frozen_at_compile_has_a_floor_once_deepxde_trains_it(name, layers):
    """DeepXDE's test before the first step makes all of the network require gradients."""
    found = []
    for freeze in (True, False):
        m = model(measured(), coefficient=(c := dde.Variable(2.0)))
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

    m = model(measured(), coefficient=(c := dde.Variable(2.0)))
    before = [p.clone() for p in weights(m)]
    trained(m, name, external_trainable_variables=[c], callbacks=[Freeze()])
    assert_same_bits(weights(m), before)
    assert float(c.detach()) != 2.0


def inverse(name="snr_adam", **options):
    """A model with an unknown coefficient, and the coefficient."""
    set_SNR_options(**{"coordinates": "own", **options})
    c = dde.Variable(2.0)
    slope = dde.icbc.PointSetOperatorBC(X, 0 * X, lambda x, u, _: c * u)
    m = model(measured(), slope, coefficient=c)
    return trained(m, name, external_trainable_variables=c), c


def test_unknown_coefficients_are_not_gated_and_have_no_floor():
    m, c = inverse()
    assert "exp_floor" not in m.opt.state[c] and m.opt.moments(c).floor is None
    assert m.opt.gate_stats(1) == GateStats(mean_q=1.0, open_fraction=1.0, numel=1)
    assert m.opt.gate_stats(0).mean_q < 1
    assert c.item() != 2.0


@BY_NAME
def test_unknown_coefficients_are_gated_on_demand(name):
    """With floor 0: the measurements do not tell of the coefficient but through the network."""
    m, c = inverse(name, gate_external=True)
    assert m.opt.moments(c).gate == BESIDE_EXACT[COORDINATES[name]]
    assert floor_of(m, c).item() == 0
    assert m.opt.gate_stats(1).mean_q == pytest.approx(1)


# Going on from a file


@BY_NAME
@pytest.mark.parametrize("floor_every", [1, 3])
def test_save_and_restore(tmp_path, floor_every, name):
    set_SNR_options(coordinates="own", floor_every=floor_every)
    m = trained(model(measured(), ends()), name)
    path = m.save(str(tmp_path / "model"))
    restored = model(measured(), ends())
    restored.net.apply(lambda layer: [p.data.zero_() for p in layer.parameters()])
    restored.compile(name, lr=1e-2, verbose=0)
    torch.manual_seed(77)  # the draws go on with the saved seed
    restored.restore(path)
    assert_same_bits(floor(restored), floor(m))
    for continued in (m, restored):
        continued.train(iterations=20, verbose=0)
    assert_same_bits(weights(restored), weights(m))
    assert_same_bits(floor(restored), floor(m))
    assert restored.opt.describe() == m.opt.describe()


RESUMED = {
    "batch that stays": lambda: model(measured(batch_size=2), ends()),
    "batches": lambda: model(measured(batch_size=2), ends()),
    "points of a source": lambda: model(measured(), ends(), train_distribution="pseudo"),
}


@pytest.mark.parametrize("kind", RESUMED)
def test_a_restored_run_knows_what_was_drawn_anew(tmp_path, kind):
    def resampler():
        points = dde.callbacks.PDEPointResampler(period=1, bc_points=kind == "batches")
        return [] if kind == "batch that stays" else [points]

    def compiled():
        m = RESUMED[kind]()
        loss = [NoisyLoss(0.2), "MSE", "MSE"]
        m.compile("snr_adam", lr=1e-3, loss=loss, verbose=0)
        return m

    m = compiled()
    m.train(iterations=3, callbacks=resampler(), verbose=0)
    path = m.save(str(tmp_path / "model"))
    restored = compiled()
    restored.restore(path)
    # the points, of which a file knows nothing
    for name in ("train_x", "train_x_all", "train_x_bc"):
        setattr(restored.data, name, getattr(m.data, name))
    (bc, _), (same, _) = restored.data.bcs, m.data.bcs
    if bc.batch_size:
        bc.batch_indices, bc.batch_sampler = same.batch_indices, same.batch_sampler
    for continued in (m, restored):
        continued.train(iterations=1, verbose=0)
    assert_same_bits(weights(restored), weights(m))
    assert_same_bits(floor(restored), floor(m))


@pytest.mark.parametrize("saved", ["label", "stream"])
def test_a_state_of_the_other_floor_can_be_restored(tmp_path, saved):
    """What is missing starts anew."""
    set_SNR_options(floor_every=1, coordinates="own", floor=saved)
    m = trained(model(measured()))
    path = m.save(str(tmp_path / "model"))
    set_SNR_options(
        floor_every=1, coordinates="own", floor="stream" if saved == "label" else "label"
    )
    restored = model(measured())
    restored.compile("snr_adam", lr=1e-2, verbose=0)
    restored.restore(path)
    assert_same_bits(weights(restored), weights(m))
    restored.train(iterations=5, verbose=0)
    assert gate(restored) == (STREAM if saved == "label" else BESIDE_EXACT["own"])


def test_lbfgs_in_between(short_lbfgs):
    m = trained(model(measured(), ends()))
    m.compile("L-BFGS", verbose=0)
    m.train(verbose=0)
    assert type(m.opt) is torch.optim.LBFGS
    m.compile("snr_adam", lr=1e-3, verbose=0)
    m.train(iterations=5, verbose=0)
    assert {m.opt.state[p]["floor_step"] for p in m.net.parameters()} == {5}
    before_lbfgs, after_lbfgs = (np.sum(m.losshistory.loss_train[i]) for i in (1, -2))
    assert after_lbfgs < before_lbfgs


def test_models_that_share_their_data_have_floors_of_their_own():
    models = model(measured()), model(measured())
    models[1].data = models[0].data
    with torch.no_grad():
        models[1].net.linears[0].weight.mul_(2)
    for m in models:
        m.compile("snr_adam", lr=1e-2, verbose=0)
    for passes in (2, 4):
        for m in models:
            m.train(iterations=2, verbose=0)
            assert {m.opt.state[p]["floor_step"] for p in m.net.parameters()} == {passes}
    assert not torch.equal(*(flat(floor(m)) for m in models))


def test_errors_name_the_parameter_of_the_network():
    m = model(measured())
    m.compile("snr_adam", lr=1e-3, verbose=0)
    with torch.no_grad():
        m.net.linears[1].weight[0, 0] = torch.nan
    with pytest.raises(FloatingPointError, match=r"'linears\.\d\.weight'"):
        m.train(iterations=1, verbose=0)


@pytest.mark.parametrize("sigma", [1e-30, 1e30])
def test_an_error_whose_square_leaves_the_dtype_is_refused(sigma):
    with pytest.raises(ValueError, match=r"sigma = 1e[+-]30 cannot be used in torch.float32"):
        trained(model(NoisyPointSetBC(X, Y, sigma)), iterations=1)


def test_an_operator_without_columns():
    bc = dde.icbc.PointSetOperatorBC(X, 0.0, lambda x, u, _: dde.grad.jacobian(u, x)[:, 0])
    m = trained(model(noisy(bc, only(1))), lr=0.0, iterations=2)
    assert_close(floor(m), variance_of(m, [(slopes_at(m, X), only(1), 1)]))


def test_gate_options_change_the_gate_that_goes_with_the_loss():
    set_SNR_options(floor_every=1, coordinates="own", z=3.0, rise_steps=7)
    m = trained(model(measured()), iterations=1)
    assert gate(m) == Gate("stein", z=3.0, rise_steps=7)
    m = trained(measured_only(measured()), iterations=1)
    assert gate(m) == Gate("stein", z=3.0, rise_steps=7, discrepancy=True)
