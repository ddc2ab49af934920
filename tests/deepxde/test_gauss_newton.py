"""compile("snr_gn"): the Jacobian through DeepXDE's residuals, what runs, and what is refused."""

import math

import deepxde as dde
import numpy as np
import pytest
import torch

from sciml_snr import (
    MemorizationMonitor,
    NoisyLoss,
    NoisyPointSetBC,
    ProgressBar,
    SNRGaussNewton,
    noisy,
    set_SNR_options,
)
from sciml_snr.deepxde import jacobian as room
from sciml_snr.deepxde.jacobian import ModelRows
from sciml_snr.gauss_newton import AT_REST
from tests.cases import assert_same_bits, through_a_file
from tests.deepxde.models import LINE, X, Y, ends, exact, measured, model, supervised

SQUARE = dde.geometry.Rectangle([0, 0], [1, 1])
STRIP = dde.geometry.GeometryXTime(dde.geometry.Interval(0, 1), dde.geometry.TimeDomain(0, 1))
RNG = np.random.default_rng(0)
POINTS, VALUES = RNG.random((7, 2)), RNG.random((7, 1))


def net_of(inputs=2, outputs=1):
    torch.manual_seed(0)
    return dde.nn.FNN([inputs, 7, 7, outputs], "tanh", "Glorot normal")


def on(_, on_boundary):
    return on_boundary


def laplace(x, u):
    return dde.grad.hessian(u, x, i=0, j=0) + dde.grad.hessian(u, x, i=1, j=1)


def heat(x, u):
    return dde.grad.jacobian(u, x, j=1) - 0.3 * dde.grad.hessian(u, x, i=0, j=0)


def in_square(conditions, equation=laplace, outputs=1, **options):
    sizes = {"num_domain": 9, "num_boundary": 12} | options
    return dde.Model(dde.data.PDE(SQUARE, equation, conditions, **sizes), net_of(2, outputs))


def data_in_square(**options):
    return NoisyPointSetBC(POINTS, VALUES, 0.1, **options)


def neumann():
    return in_square(
        [dde.icbc.NeumannBC(SQUARE, lambda x: x[:, :1], on), data_in_square()], outputs=1
    )


def robin():
    return in_square([dde.icbc.RobinBC(SQUARE, lambda x, u: 2 * u, on), data_in_square()])


def periodic(order=0):
    left = dde.icbc.PeriodicBC(
        SQUARE, 0, lambda x, on: on and np.isclose(x[0], 0), derivative_order=order
    )
    return in_square([left, data_in_square()], train_distribution="uniform")


def operator():
    def flux(x, u, _):
        return dde.grad.jacobian(u, x, i=0, j=0) * u

    return in_square(
        [
            dde.icbc.OperatorBC(SQUARE, flux, on),
            noisy(dde.icbc.PointSetOperatorBC(POINTS, VALUES, flux), 0.2),
        ]
    )


def time_dependent():
    first = dde.icbc.IC(STRIP, lambda x: np.sin(math.pi * x[:, :1]), lambda _, on: on)
    sides = dde.icbc.DirichletBC(STRIP, lambda x: 0.0, on)
    conditions = [sides, first, data_in_square()]
    data = dde.data.TimePDE(STRIP, heat, conditions, num_domain=9, num_boundary=6, num_initial=5)
    return dde.Model(data, net_of())


def system():
    def equations(x, y):
        u, v = y[:, :1], y[:, 1:]
        return [
            dde.grad.jacobian(y, x, i=0, j=0) - v,
            dde.grad.jacobian(y, x, i=1, j=1) + u * v,
        ]

    both = NoisyPointSetBC(POINTS, np.hstack([VALUES, VALUES]), 0.1, component=[0, 1])
    return in_square([both, dde.icbc.DirichletBC(SQUARE, lambda x: 0.0, on, 1)], equations, 2)


def hard_constraint():
    found = in_square([data_in_square()])
    found.net.apply_output_transform(lambda x, y: x[:, :1] * (1 - x[:, :1]) * y)
    return found


def features():
    found = in_square([data_in_square()])
    found.net = dde.nn.FNN([4, 7, 1], "tanh", "Glorot normal")
    found.net.apply_feature_transform(
        lambda x: torch.cat([torch.sin(3 * x), torch.cos(3 * x)], dim=1)
    )
    return found


def own_activations():
    found = in_square([data_in_square()])
    found.net = dde.nn.FNN([2, 8, 8, 1], ["sin", "tanh", "tanh"], "He uniform")
    return found


def parallel_networks():
    found = system()
    found.net = dde.nn.PFNN([2, [6, 6], [6, 6], 2], "tanh", "Glorot normal")
    return found


def anchored():
    return in_square([data_in_square()], anchors=POINTS)


def auxiliary():
    def equation(x, u, aux):
        return laplace(x, u) - aux

    return in_square(
        [data_in_square()], equation, auxiliary_var_function=lambda x: x[:, :1] * x[:, 1:]
    )


def batches():
    return in_square([data_in_square(batch_size=3)])


def per_point_error():
    return in_square([NoisyPointSetBC(POINTS, VALUES, np.linspace(0, 0.6, 7))])


def dataset():
    return supervised()


def function():
    data = dde.data.Function(LINE, lambda x: np.sin(3 * x), 12, 5)
    return dde.Model(data, net_of(1))


def ode():
    time = dde.geometry.TimeDomain(0, 1)

    def equations(t, y):
        return [dde.grad.jacobian(y, t, i=0) - y[:, 1:], dde.grad.jacobian(y, t, i=1) + y[:, :1]]

    start = dde.icbc.IC(time, lambda _: 1.0, lambda _, on: on, component=0)
    points = RNG.random((5, 1))
    conditions = [start, NoisyPointSetBC(points, np.cos(points), 0.05, component=0)]
    data = dde.data.PDE(time, equations, conditions, num_domain=10, num_boundary=2)
    return dde.Model(data, net_of(1, 2))


def one_dimensional():
    return model(measured(), ends(), exact())


SCRIPTS = [
    one_dimensional,
    neumann,
    robin,
    periodic,
    lambda: periodic(1),
    operator,
    time_dependent,
    system,
    hard_constraint,
    features,
    own_activations,
    parallel_networks,
    anchored,
    auxiliary,
    batches,
    per_point_error,
    dataset,
    function,
    ode,
]
NAMES = [script.__name__ for script in SCRIPTS]


def compiled(m, **options):
    m.compile("snr_gn", verbose=0, **options)
    return m


def naive(m):
    """Rows and Jacobian row by row, through DeepXDE's own pass over all points."""
    found = []

    def record(target, prediction):
        found.append(prediction - target)
        return found[-1].sum()

    data = m.data
    inputs, targets, aux = (*data.train_next_batch(None), None)[:3]
    m.net.auxiliary_vars = None if aux is None else torch.as_tensor(aux)
    x = torch.as_tensor(inputs).requires_grad_()
    y = None if targets is None else torch.as_tensor(targets)
    dde.grad.clear()
    data.losses(y, m.net(x), record, x, m)
    dde.grad.clear()
    params = [p for group in m.opt.param_groups for p in group["params"]]
    rows = []
    for value in torch.cat([r.flatten() for r in found]):
        gradients = torch.autograd.grad(value, params, retain_graph=True, allow_unused=True)
        pairs = zip(gradients, params, strict=True)
        rows.append(torch.cat([(0 * p if g is None else g).flatten() for g, p in pairs]))
    return torch.cat([r.detach().flatten() for r in found]), torch.stack(rows).detach()


def rows_of(m, losses="MSE"):
    found = ModelRows(m, losses)
    inputs, targets, aux = (*m.data.train_next_batch(None), None)[:3]
    found.take(inputs, targets, aux)
    return found


@pytest.mark.parametrize("script", SCRIPTS, ids=NAMES)
def test_models_of_every_kind_run_and_improve(script):
    m = compiled(script())
    rows = rows_of(m)
    before = float(rows.rows().square().sum())
    m.train(3, display_every=100, verbose=0)
    if rows.data_stay:
        assert float(rows.rows().square().sum()) < before
    assert all(p.isfinite().all() for p in m.net.parameters())


@pytest.mark.parametrize("script", SCRIPTS, ids=NAMES)
def test_jacobian_is_that_of_a_loop_over_rows(script, float64):
    m = compiled(script())
    values, jacobian = naive(m)
    rows = rows_of(m)
    system = rows.system()
    # Whatever the weights: they are those of the rows.
    ours, expected = system.jacobian * values[:, None], system.rows[:, None] * jacobian
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(rows.rows(), system.rows)


def test_unknown_coefficients_are_columns_too(float64):
    factor = dde.Variable(0.7)

    def equation(x, u):
        return laplace(x, u) + torch.exp(factor) * u

    m = in_square([data_in_square()], equation)
    compiled(m, external_trainable_variables=[factor])
    values, jacobian = naive(m)
    system = rows_of(m).system()
    assert jacobian[:, -1].abs().max() > 0
    ours, expected = system.jacobian * values[:, None], system.rows[:, None] * jacobian
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-8)
    before = float(factor.detach())
    m.train(2, display_every=100, verbose=0)
    assert float(factor.detach()) != before


def test_noisy_rows_are_in_units_of_sigma_and_exact_ones_as_in_the_loss(float64):
    """Every term's sum of squares over its loss is n / (w sigma^2) of the noisy one."""
    weights = [0.3, 2.0, 5.0]
    m = compiled(model(measured(0.2), ends()), loss_weights=weights)
    values, _ = naive(m)
    rows = rows_of(m).rows()
    torch.testing.assert_close(rows[10:16], values[10:16] / 0.2)
    system = rows_of(m).system()
    sums, place = [], 0
    for count in (10, 6, 2):
        sums.append(float(system.rows[place : place + count].square().sum()))
        place += count
    losses = m.outputs_losses_train(m.data.train_x, None, None)[1].detach()
    ratios = [own / float(loss) for own, loss in zip(sums, losses, strict=True)]
    assert ratios == pytest.approx([6 / (2.0 * 0.2**2)] * 3)
    assert system.noisy.sum() == 6


@pytest.mark.parametrize("kind", ["source", "loss"])
def test_errors_of_an_equations_source_are_noisy_rows(kind):
    def operator(x, u, _=None):
        return dde.grad.hessian(u, x)

    if kind == "source":
        condition = noisy(dde.icbc.PointSetOperatorBC(X, Y, operator), 0.3)
        data = dde.data.PDE(LINE, None, [condition, measured()], num_domain=0, num_boundary=0)
        m, loss = dde.Model(data, net_of(1)), "MSE"
    else:
        m, loss = model(measured()), [NoisyLoss(0.3), "MSE"]
    compiled(m, loss=loss)
    system = rows_of(m, loss).system()
    assert system.noisy.sum() == len(system.rows)
    m.train(3, display_every=100, verbose=0)
    assert 0 < m.opt.memorized < 1


def test_supervised_data_with_a_noisy_loss():
    m = compiled(supervised(), loss=NoisyLoss(0.1))
    m.train(2, display_every=100, verbose=0)
    assert m.opt.stats().misfit > 0 and 0 <= m.opt.memorized <= 1


def test_second_stage_goes_on_where_first_order_ends():
    m = model(measured(0.1))
    m.compile("snr_adam", lr=1e-2, verbose=0)
    m.train(50, display_every=100, verbose=0)
    kept = [p.detach().clone() for p in m.net.parameters()]
    compiled(m)
    assert_same_bits([p.detach() for p in m.net.parameters()], kept)
    before = float(rows_of(m).rows().square().sum())
    m.train(5, display_every=100, verbose=0)
    assert float(rows_of(m).rows().square().sum()) < before
    m.compile("adam", lr=1e-3, verbose=0)
    m.train(2, display_every=100, verbose=0)
    assert isinstance(m.opt, torch.optim.Adam)


def test_it_stops_the_training_when_nothing_stands_out():
    m = compiled(model(measured(0.5), domain=4))
    m.train(300, display_every=1000, verbose=0)
    assert m.opt.done and m.stop_training
    assert m.train_state.step < 300
    kept = [p.detach().clone() for p in m.net.parameters()]
    m.train(3, display_every=1000, verbose=0)
    assert_same_bits([p.detach() for p in m.net.parameters()], kept)


def test_resumes_to_the_bit():
    def trained(steps, then=0):
        m = compiled(model(measured(0.05), domain=30))
        m.train(steps, display_every=100, verbose=0)
        if then:
            other = compiled(model(measured(0.05), domain=30))
            other.net.load_state_dict(through_a_file(m.net.state_dict()))
            other.opt.load_state_dict(through_a_file(m.opt.state_dict()))
            other.train(then, display_every=100, verbose=0)
            m = other
        return [p.detach() for p in m.net.parameters()]

    assert_same_bits(trained(2, 3), trained(5))


def test_where_an_equation_has_many_points_some_are_drawn_in_every_step(monkeypatch):
    monkeypatch.setattr(room, "EQUATION_ROWS", 20)
    m = compiled(model(measured(0.05), domain=50, boundary=2))
    m.train(3, display_every=100, verbose=0)
    assert m.opt.stats().rows == 20 + 6
    rows = rows_of(m)
    seen = []
    for step in (0, 1, 0):
        rows.draw(step)
        seen.append(rows.rows())
    assert_same_bits(seen[0], seen[2])
    assert not torch.equal(seen[0], seen[1])


def test_a_model_whose_points_are_drawn_ends_by_itself(monkeypatch):
    """It never did: each step moves the fit towards its own points."""
    monkeypatch.setattr(room, "EQUATION_ROWS", 100)
    x = np.linspace(-1, 1, 200)[:, None]
    noise = 0.3 * np.random.default_rng(0).normal(size=x.shape)
    m = compiled(model(measured(0.3, x, np.sin(np.pi * x) + noise), domain=200))
    m.train(300, display_every=1000, verbose=0)
    assert m.opt.reason == AT_REST and m.opt.steps < 150
    assert m.stop_training


def test_errors_of_an_equation_whose_points_are_drawn_are_other_data_in_every_step(monkeypatch):
    monkeypatch.setattr(room, "EQUATION_ROWS", 20)
    m = compiled(model(measured(0.05), domain=50), loss=[NoisyLoss(0.3), "MSE"])
    m.train(9, display_every=100, verbose=0)
    assert math.isnan(m.opt.memorized) and not m.opt.done  # evidence of other data is no other


def test_resampled_points():
    m = compiled(model(measured(0.05)))
    sampler = dde.callbacks.PDEPointResampler(period=1)
    m.train(4, display_every=100, callbacks=[sampler], verbose=0)
    assert m.opt.steps == 4


def test_options_and_learning_rate():
    set_SNR_options(z=2.0)
    assert compiled(model(measured()), lr=0.5).opt.param_groups[0]["z"] == 2.0
    set_SNR_options(gate="none")
    m = compiled(model(measured()), lr=0.5)
    assert (m.opt.param_groups[0]["z"], m.opt.param_groups[0]["lr"]) == (0.0, 0.5)


def test_an_instance_gets_the_unknowns_that_it_lacks():
    factor = dde.Variable(0.0)
    m = in_square([data_in_square()], lambda x, u: laplace(x, u) + factor * u)
    optimizer = SNRGaussNewton(m.net, z=1.0)
    m.compile(optimizer, external_trainable_variables=[factor], verbose=0)
    m.train(2, display_every=100, verbose=0)
    assert float(factor.detach()) != 0


def test_progress_bar_shows_what_is_memorized_and_why_it_ends(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    m = compiled(model(measured(0.5), domain=4))
    m.train(3, display_every=1, callbacks=[ProgressBar(3)], verbose=0)
    assert "memorized" in capsys.readouterr().out
    m.train(300, display_every=1000, callbacks=[ProgressBar(300)], verbose=0)
    assert "no direction stands" in " ".join(capsys.readouterr().out.split())


def test_twins_in_step_leave_the_model_alone_and_agree_on_what_is_memorized():
    def trained(*callbacks):
        m = compiled(model(measured(0.3), domain=12))
        m.train(12, display_every=100, callbacks=list(callbacks), verbose=0)
        return m

    monitor = MemorizationMonitor(probes=8, period=12)
    alone, beside = trained(), trained(monitor)
    assert_same_bits(
        [p.detach() for p in beside.net.parameters()], [p.detach() for p in alone.net.parameters()]
    )
    low, high = monitor.twins.rows[-1].interval()
    assert low <= alone.opt.memorized <= high


def test_a_twin_that_is_done_neither_ends_the_model_nor_takes_its_stats():
    m = compiled(model(measured(0.3), domain=12))
    monitor = MemorizationMonitor(probes=1, period=100)
    monitor.set_model(m)
    steps = []

    class Watch(dde.callbacks.Callback):
        def on_epoch_end(self):
            steps.append(m.opt.stats())
            for twin in monitor._twin_states:  # the twin is done from now on, the model is not
                with twin:
                    m.opt._memory["still"] = 100

    m.train(4, display_every=100, callbacks=[Watch(), monitor], verbose=0)
    alone = compiled(model(measured(0.3), domain=12))
    alone.train(4, display_every=100, verbose=0)
    assert len(steps) == 4 and not m.stop_training
    assert m.opt.stats() == alone.opt.stats() == steps[-1]


def refused(m, **options):
    with pytest.raises(ValueError, match='"snr_gn" is not for this model') as error:
        compiled(m, **options)
    return str(error.value)


def test_what_does_not_go_point_by_point_is_refused_with_the_reason():
    def mean(x, u):
        return laplace(x, u) - u.mean()

    assert "depend on the other points" in refused(in_square([data_in_square()], mean))
    normed = in_square([data_in_square()])
    normed.net = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.BatchNorm1d(4))
    normed.net.regularizer = normed.net.auxiliary_vars = None
    assert "batch norm" in refused(normed)
    assert "regularization" in refused(model(measured(), regularization=("l2", 1e-3)))
    assert "sums of squares" in refused(model(measured()), loss="MAE")
    kernel = dde.data.IDE(
        dde.geometry.TimeDomain(0, 5),
        lambda x, y, m: y,
        [],
        5,
        kernel=lambda x, s: np.exp(s - x),
        num_domain=5,
        num_boundary=2,
    )
    assert "IDE" in refused(dde.Model(kernel, net_of(1)))


def test_operators_are_refused():
    branch, trunk = RNG.random((5, 3)).astype("float32"), RNG.random((5, 1)).astype("float32")
    data = dde.data.Triple((branch, trunk), trunk, (branch, trunk), trunk)
    net = dde.nn.DeepONet([3, 4], [1, 4], "tanh", "Glorot normal")
    assert "Triple" in refused(dde.Model(data, net))


def test_forward_mode_is_refused():
    dde.config.set_default_autodiff("forward")
    try:
        assert "reverse" in refused(model(measured()))
    finally:
        dde.config.set_default_autodiff("reverse")


def test_a_rate_that_is_not_there_does_not_decay():
    with pytest.raises(ValueError, match="no learning rate that could decay"):
        compiled(model(measured()), decay=("step", 10, 0.5))
    m = compiled(model(measured()), lr=0.5, decay=("step", 1, 0.5))
    m.train(2, display_every=100, verbose=0)
    assert m.opt.param_groups[0]["lr"] == 0.125


def test_what_does_not_fit_in_memory_is_refused_at_compile():
    m = model(measured())
    small = SNRGaussNewton(m.net, max_gigabytes=1e-6)
    with pytest.raises(ValueError, match="16 residual rows"):
        m.compile(small, verbose=0)


def test_other_points_are_noticed_where_some_are_drawn(monkeypatch):
    monkeypatch.setattr(room, "EQUATION_ROWS", 5)
    mean = in_square([data_in_square()], lambda x, u: laplace(x, u) - 30 * u.mean())
    assert "depend on the other points" in refused(mean)
    compiled(in_square([data_in_square()]))


def test_a_near_name_is_asked_about():
    with pytest.raises(ValueError, match='did you mean "snr_gn"'):
        model(measured()).compile("SNR-GN", verbose=0)
