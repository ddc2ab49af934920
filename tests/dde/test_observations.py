"""Measurements that know their error: conditions of DeepXDE's, and the floor of ``"snr_adam"``."""

import copy
import math
import pickle

import deepxde as dde
import numpy as np
import pytest
import torch

from sciml_snr import GateStats, NoisyPointSetBC, SNRAdam, set_SNR_options
from sciml_snr.dde.observations import LabelGatedSNRAdam
from sciml_snr.dde.registration import LABEL_GATE, STREAM_GATE
from tests.cases import assert_same_bits

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


def model(*conditions, coefficient=1.0, regularization=None):
    """u_xx + c pi^2 u = 0 on [-1, 1], with these conditions; the same start every time."""
    torch.manual_seed(0)
    np.random.seed(0)

    def residual(x, u):
        return dde.grad.hessian(u, x) + coefficient * math.pi**2 * u

    data = dde.data.PDE(LINE, residual, list(conditions), num_domain=8, num_boundary=2)
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


def exact_variance(m, measurements, params=None):
    """sum (2 w / n sigma_i du(x_i)/dparam)^2 over (points, values, sigma, w), sample by sample.

    Each divided by its misfit R = mean((u - value)^2 / sigma^2) if that is above 1.
    """
    params = list(m.net.parameters()) if params is None else params
    total = [torch.zeros_like(p) for p in params]
    for points, values, sigma, weight in measurements:
        u = m.net(torch.as_tensor(points, dtype=params[0].dtype))
        sigma = torch.as_tensor(sigma, dtype=u.dtype).reshape(-1, 1).expand_as(u)
        residuals = (u.detach() - torch.as_tensor(values, dtype=u.dtype)) / sigma
        weight = weight / max(residuals.square().mean().item(), 1) ** 0.5
        for u_i, sigma_i in zip(u.flatten(), sigma.flatten(), strict=True):
            gradients = torch.autograd.grad(u_i, params, retain_graph=True)
            for sum_, g in zip(total, gradients, strict=True):
                sum_ += (2 * weight / u.numel() * sigma_i * g) ** 2
    return total


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
    term = bc.term(2.0)
    assert term.residual is error and term.weight == 2.0
    expected = np.broadcast_to(np.reshape(sigma, (-1, 1)) if np.ndim(sigma) < 2 else sigma, (6, 2))
    np.testing.assert_allclose(term.sigma.expand(6, 2), expected, rtol=1e-6)


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


def test_a_term_is_given_once_and_only_with_a_graph():
    bc = noisy()
    assert bc.term(1.0) is None
    bc.error(None, None, torch.randn(6, 1), 0, 6)
    assert bc.term(1.0) is None
    bc.error(None, None, torch.randn(6, 1, requires_grad=True), 0, 6)
    assert bc.term(1.0) is not None
    assert bc.term(1.0) is None


def test_data_can_be_copied_after_training():
    data = trained(model(noisy()), iterations=2).data
    (bc,) = copy.deepcopy(data).bcs
    assert_same_bits((bc.values, bc.sigma), (data.bcs[0].values, data.bcs[0].sigma))


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
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-9)


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


def measured_only(*conditions):
    """No differential equation: the measurements alone."""
    data = dde.data.PDE(LINE, None, list(conditions), num_domain=0, num_boundary=0)
    return dde.Model(data, dde.nn.FNN([1, 6, 1], "tanh", "Glorot uniform"))


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
    return {name: m.opt.param_groups[0][name] for name in LABEL_GATE}


@pytest.mark.parametrize("condition", [noisy, exact])
def test_every_floor_has_a_gate_of_its_own(condition):
    expected = LABEL_GATE if condition is noisy else STREAM_GATE
    set_SNR_options()
    assert gate(trained(model(condition()))) == expected
    set_SNR_options(gate="soft", lambd=2.0)
    assert gate(trained(model(condition()))) == {**expected, "gate": "soft", "lambd": 2.0}


@pytest.mark.parametrize("floor_option", ["auto", "label"])
@pytest.mark.parametrize("kind", MEASURED)
def test_noisy_measurements_bring_the_label_floor(kind, floor_option):
    choose(floor=floor_option)
    m = trained(MEASURED[kind]())
    assert type(m.opt) is LabelGatedSNRAdam
    assert gate(m) == {**LABEL_GATE, "warmup_steps": 0}
    assert all((variance > 0).any() for variance in floor(m))
    assert 0 < m.opt.gate_stats().mean_q < 1


@pytest.mark.parametrize("floor_option", ["auto", "stream"])
@pytest.mark.parametrize("kind", UNMEASURED)
def test_without_them_it_is_the_published_rule(kind, floor_option):
    choose(floor=floor_option)
    m = trained(UNMEASURED[kind]())
    assert type(m.opt) is SNRAdam
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
    with pytest.raises(ValueError, match=r"needs a sciml_snr\.NoisyPointSetBC"):
        UNMEASURED[kind]().compile("snr_adam", lr=1e-3)


@pytest.mark.parametrize("loss", ["MAE", "mean l2 relative error", ["MSE", "MAE"]])
def test_other_losses_are_refused(loss):
    with pytest.raises(ValueError, match="derived for the squared error"):
        model(noisy()).compile("snr_adam", lr=1e-3, loss=loss)
    choose(floor="stream")
    m = model(noisy())
    m.compile("snr_adam", lr=1e-3, loss=loss, verbose=0)
    assert type(m.opt) is SNRAdam


def test_a_refused_model_is_forgotten():
    """The next compile is told of its own model."""
    with pytest.raises(ValueError):
        model(noisy()).compile("snr_adam", lr=1e-3, loss="MAE")
    net = dde.nn.FNN([1, 4, 1], "tanh", "Glorot uniform")
    optimizer, _ = dde.optimizers.get(net.parameters(), "snr_adam", learning_rate=1e-3)
    assert type(optimizer) is SNRAdam


@pytest.mark.parametrize("loss", ["mse", "mean squared error", ["MSE", "MSE"]])
def test_other_names_of_the_squared_error_will_do(loss):
    assert_same_bits(weights(trained(model(noisy()), loss=loss)), weights(trained(model(noisy()))))


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


def inverse(gate_external):
    """A model with an unknown coefficient, and the coefficient."""
    choose(gate_external=gate_external)
    c = dde.Variable(2.0)
    slope = dde.icbc.PointSetOperatorBC(X, 0 * X, lambda x, u, _: c * u)
    return trained(model(noisy(), slope, coefficient=c), external_trainable_variables=c), c


def test_external_variables_are_not_gated_and_have_no_floor():
    m, c = inverse(gate_external=False)
    assert set(m.opt.floor) == set(m.net.parameters())
    assert m.opt.gate_stats(1) == GateStats(mean_q=1.0, open_fraction=1.0, numel=1)
    assert m.opt.gate_stats(0).mean_q < 1
    assert c.item() != 2.0


def test_external_variables_are_gated_on_demand():
    """With floor 0: the measurements do not tell of the coefficient but through the network."""
    m, c = inverse(gate_external=True)
    assert set(m.opt.floor) == {*m.net.parameters(), c}
    assert m.opt.param_groups[1]["gate"] == LABEL_GATE["gate"]
    assert m.opt.floor[c].item() == 0


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


@pytest.mark.parametrize("floor_every", [1, 3])
def test_save_and_restore(tmp_path, floor_every):
    choose(floor_every=floor_every)
    m = trained(model(noisy(), ends()))
    path = m.save(str(tmp_path / "model"))
    restored = model(noisy(), ends())
    restored.net.apply(lambda layer: [p.data.zero_() for p in layer.parameters()])
    restored.compile("snr_adam", lr=1e-2, verbose=0)
    restored.restore(path)
    assert_same_bits(floor(restored), floor(m))
    for continued in (m, restored):
        torch.manual_seed(2)
        continued.train(iterations=20, verbose=0)
    assert_same_bits(weights(restored), weights(m))
    assert_same_bits(floor(restored), floor(m))


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
    assert m.opt.floor.state_dict()["passes"] == 5
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
    assert found[0].opt.floor.state_dict()["passes"] == 20


def test_a_floor_handed_to_step_goes_first():
    m = trained(model(noisy()), iterations=2)
    for p in m.net.parameters():
        p.grad = torch.ones_like(p)
    m.opt.step(floor={p: torch.full_like(p, 1e12) for p in m.net.parameters()})
    assert m.opt.gate_stats().mean_q < 1e-6


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_of_the_optimizer_keeps_its_floor(copied):
    m = trained(model(noisy()), iterations=3)
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
