"""The train step that is split by points: DeepXDE's own, in other passes."""

import copy
import math
import re
import warnings

import deepxde as dde
import numpy as np
import pytest
import torch

from sciml_snr import (
    NoisyLoss,
    NoisyPointSetBC,
    NoisyTerm,
    SNRAdam,
    exact_label_noise,
    noisy,
    set_SNR_options,
)
from sciml_snr.deepxde import noise_of, split_step
from tests.cases import assert_same_bits
from tests.deepxde.models import (
    LINE,
    X,
    Y,
    ends,
    exact,
    flat,
    floor,
    measured,
    measured_only,
    model,
    only,
    tensor,
    trained,
    weights,
)

EXACT = 1e-10
SPLIT = "train step: split by points"


@pytest.fixture(autouse=True)
def every_group_has_a_pass(monkeypatch):
    """However few its points are."""
    monkeypatch.setattr(split_step, "FEW", 0)


def compiled(m, optimizer="snr_adam", split=True, lr=1e-2, **options):
    """With the split step or DeepXDE's; Adam is given the former by hand."""
    if optimizer == "adam":
        m.compile("adam", lr=lr, verbose=0, **options)
        if split:
            assert split_step.install(m) == SPLIT
        return m
    set_SNR_options(coordinates="own", floor_every=1, split_step=split)
    m.compile(optimizer, lr=lr, verbose=0, **options)
    return m


def one_step(m):
    """A step: its total, the gradients that backward leaves, and the noisy terms' own."""
    found = {}
    original = m.opt.step

    def step(closure):
        def evaluate():
            found["total"] = closure().detach()
            params = [p for group in m.opt.param_groups for p in group["params"]]
            grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in params]
            found["gradients"] = [grad.clone() for grad in grads]
            found["noisy"] = list(m.opt._handover.noisy_gradients(1.0).values())
            return found["total"]

        return original(evaluate)

    m.opt.step = step
    try:
        torch.manual_seed(1)
        m.train_step(m.data.train_x, m.data.train_y, m.data.train_aux_vars)
    finally:
        del m.opt.step
    return found


def assert_agree(found, expected, tolerance=EXACT):
    scale = flat(expected).norm()
    assert (flat(found) - flat(expected)).norm() <= tolerance * scale


# The same losses and gradients


SQUARE = dde.geometry.Rectangle([-1, -1], [1, 1])
XY = np.stack([X[:, 0], X[::-1, 0]], axis=1)
XT = np.hstack([X, np.abs(X)])


def plane(*conditions, outputs=1, **options):
    """u_xx + u_yy = u, and for more outputs each the other's, on a square."""
    torch.manual_seed(0)
    np.random.seed(0)

    def residual(x, u):
        found = []
        for i in range(outputs):
            second = [dde.grad.hessian(u, x, component=i, i=j, j=j) for j in (0, 1)]
            found.append(sum(second) - u[:, outputs - 1 - i : outputs - i])
        return found if outputs > 1 else found[0]

    data = dde.data.PDE(SQUARE, residual, list(conditions), 9, 8, **options)
    return dde.Model(data, dde.nn.FNN([2, 8, 8, outputs], "tanh", "Glorot uniform"))


def in_time(*conditions):
    torch.manual_seed(0)
    geomtime = dde.geometry.GeometryXTime(LINE, dde.geometry.TimeDomain(0, 1))
    start = dde.icbc.IC(geomtime, lambda x: np.sin(x[:, :1]), lambda _, on_initial: on_initial)
    side = dde.icbc.DirichletBC(geomtime, lambda x: x[:, 1:], lambda _, on: on)

    def residual(x, u):
        return dde.grad.jacobian(u, x, j=1) - dde.grad.hessian(u, x)

    data = dde.data.TimePDE(
        geomtime, residual, [start, *conditions, side], 8, 4, num_initial=3, num_test=5
    )
    return dde.Model(data, dde.nn.FNN([2, 8, 1], "tanh", "Glorot uniform"))


def everywhere(_, on_boundary):
    return on_boundary


def left(x, on_boundary):
    return on_boundary and x[0] < -0.999


def slope(x, u, _):
    return dde.grad.jacobian(u, x, i=0, j=0)


def with_aux(*conditions):
    def residual(x, u, c):
        return dde.grad.hessian(u, x) + c * u

    torch.manual_seed(0)
    data = dde.data.PDE(
        LINE, residual, list(conditions), 8, 2, auxiliary_var_function=lambda x: np.exp(x)
    )
    return dde.Model(data, dde.nn.FNN([1, 8, 1], "tanh", "Glorot uniform"))


def with_unknown(*conditions):
    c = dde.Variable(2.0)
    scaled = dde.icbc.PointSetOperatorBC(X, Y, lambda x, u, _: c * u)
    return model(*conditions, noisy(scaled, 0.2), coefficient=c), c


POINTS = {"points": XY, "values": Y}
CASES = {
    "measurements and ends": lambda: model(measured(), ends()),
    "ends only, noisy": lambda: model(noisy(ends(), 0.1), exact()),
    "several of each": lambda: model(ends(), measured(), exact(), measured(0.3, X[:2], Y[:2])),
    "no equation": lambda: measured_only(measured(), exact()),
    "in time": lambda: in_time(measured(points=XT)),
    "flux": lambda: model(noisy(dde.icbc.PointSetOperatorBC(X, Y, slope), 0.2), ends()),
    "noisy Neumann": lambda: plane(
        noisy(dde.icbc.NeumannBC(SQUARE, lambda x: x[:, :1], everywhere), 0.3),
        measured(**POINTS),
        dde.icbc.DirichletBC(SQUARE, lambda x: x[:, 1:], left),
    ),
    "Neumann, Robin, periodic, operator": lambda: plane(
        dde.icbc.NeumannBC(SQUARE, lambda x: x[:, :1], left),
        measured(**POINTS),
        dde.icbc.RobinBC(SQUARE, lambda x, u: u**2, everywhere),
        dde.icbc.PeriodicBC(SQUARE, 0, left),
        dde.icbc.PeriodicBC(SQUARE, 0, left, derivative_order=1),
        dde.icbc.OperatorBC(SQUARE, slope, everywhere),
        noisy(dde.icbc.RobinBC(SQUARE, lambda x, u: u, everywhere), 0.2),
    ),
    "two components": lambda: plane(
        NoisyPointSetBC(XY, np.hstack([Y, -Y]), [0.1, 0.4], component=[0, 1]),
        dde.icbc.DirichletBC(SQUARE, lambda x: 0, left, component=1),
        measured(0.2, XY[:3], Y[:3], component=1),
        outputs=2,
    ),
    "a batch": lambda: model(ends(), measured(batch_size=3), noisy(exact(), 0.2)),
    "anchors": lambda: model(measured(), anchors=np.linspace(-0.5, 0.5, 4)[:, None]),
    "auxiliary variables": lambda: with_aux(measured(), ends()),
    "l1": lambda: model(measured(), ends(), regularization=["l1", 1e-3]),
    "l2": lambda: model(measured(), ends(), regularization=["l2", 1e-3]),
}


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", CASES)
def test_losses_and_gradients_are_those_of_deepxde(kind, weighted, float64):
    found = []
    for split in (True, False):
        m = CASES[kind]()
        terms = len(m.data.bcs) + (kind != "no equation") + (kind == "two components")
        loss_weights = np.linspace(0.5, 3, terms).tolist() if weighted else None
        compiled(m, split=split, lr=0.0, loss_weights=loss_weights)
        assert (SPLIT in m.opt.describe()) is split
        found.append(one_step(m))
    assert float(found[0]["total"]) == pytest.approx(float(found[1]["total"]), rel=EXACT)
    assert_agree(found[0]["gradients"], found[1]["gradients"])
    assert_agree(found[0]["noisy"], found[1]["noisy"])


@pytest.mark.parametrize(
    "loss",
    [
        "MAE",
        ["MSE", "MAE", "MSE"],
        [NoisyLoss(0.3), "MSE", "MSE"],
        [NoisyLoss(0.3, reduction="sum"), "MSE", "MSE"],
        ["MSE", "MSE", NoisyLoss(0.2)],
        [dde.losses.mean_squared_error, torch.nn.HuberLoss(), "MSE"],
    ],
)
def test_losses_of_every_kind(loss, float64):
    """Noisy equations, noisy losses of exact conditions, one or a list."""
    found = []
    for split in (True, False):
        m = compiled(model(measured(), ends()), split=split, lr=0.0, loss=copy.deepcopy(loss))
        assert (SPLIT in m.opt.describe()) is split
        found.append(one_step(m))
    assert_agree(found[0]["gradients"], found[1]["gradients"])
    assert_agree(found[0]["noisy"], found[1]["noisy"])


def test_equations_of_which_one_is_noisy(float64):
    """They share a pass, whose gradient is told apart in the backward pass."""
    found = []
    for split in (True, False):
        m = plane(measured(**POINTS), outputs=2)
        compiled(m, split=split, lr=0.0, loss=[NoisyLoss(0.3), "MSE", "MSE"])
        found.append(one_step(m))
    assert_agree(found[0]["gradients"], found[1]["gradients"])
    assert_agree(found[0]["noisy"], found[1]["noisy"])


def test_one_noisy_loss_for_an_equation_and_a_condition(float64):
    found = []
    for split in (True, False):
        loss = NoisyLoss(0.3)
        m = compiled(model(exact(), ends()), split=split, lr=0.0, loss=[loss, loss, "MSE"])
        found.append(one_step(m))
    assert_agree(found[0]["gradients"], found[1]["gradients"])
    assert_agree(found[0]["noisy"], found[1]["noisy"])


def test_unknown_coefficients_get_the_noisy_terms_gradient(float64):
    found = []
    for split in (True, False):
        m, c = with_unknown(measured())
        compiled(m, split=split, lr=0.0, external_trainable_variables=c)
        found.append(one_step(m))
        assert found[-1]["gradients"][-1] != 0
    assert_agree(found[0]["gradients"], found[1]["gradients"])


class Weights(dde.callbacks.Callback):
    """Change in training."""

    def on_batch_end(self):
        self.model.loss_weights[1] *= 1.1


@pytest.mark.parametrize("kind", ["measurements and ends", "Neumann, Robin, periodic, operator"])
def test_adam_trains_as_by_deepxdes_step(kind, float64):
    """With a learning rate that decays, changing weights, points that are drawn anew."""
    found = []
    for split in (True, False):
        m = CASES[kind]()
        m.data.train_distribution = "pseudo"
        terms = len(m.data.bcs) + 1
        options = {"decay": ("step", 5, 0.5), "loss_weights": [1.0] * terms}
        compiled(m, "adam", split, **options)
        np.random.seed(3)
        callbacks = [Weights(), dde.callbacks.PDEPointResampler(period=7)]
        m.train(iterations=20, callbacks=callbacks, verbose=0)
        found.append(m)
    assert_agree(weights(found[0]), weights(found[1]))
    np.testing.assert_allclose(*[m.losshistory.loss_train[-1] for m in found], rtol=1e-9)


def test_our_optimizer_trains_as_by_deepxdes_step(float64):
    """The same draws: the number of a pass decides them."""
    found = []
    for split in (True, False):
        m = compiled(CASES["several of each"](), split=split)
        torch.manual_seed(1)
        m.train(iterations=10, verbose=0)
        found.append(m)
    assert_agree(weights(found[0]), weights(found[1]), 1e-8)
    assert_agree(floor(found[0]), floor(found[1]), 1e-8)


def test_mixed_precision(mixed_precision):
    m = trained(model(measured(), ends()), iterations=50)
    assert SPLIT in m.opt.describe()
    assert np.sum(m.losshistory.loss_train[-1]) < np.sum(m.losshistory.loss_train[0])


def test_hooks_on_gradients_act_once(float64):
    """On the whole gradient, and on what is handed over."""
    found, called = [], []
    for hooked in (True, False):
        m = model(measured(), ends())
        if hooked:
            for p in m.net.parameters():
                p.register_hook(lambda gradient: (called.append(gradient), 2 * gradient)[1])
        compiled(m, lr=0.0)
        assert SPLIT in m.opt.describe() and not (hooked and called)
        found.append(one_step(m))
    assert len(called) == 3 * len(weights(m))  # the sum, the draw, the noisy terms
    for name in ("gradients", "noisy"):
        assert_agree(found[0][name], [2 * gradient for gradient in found[1][name]])


# Draws


@pytest.mark.parametrize("kind", ["several of each", "flux", "a batch"])
def test_draws_are_those_of_deepxdes_step(kind, float64):
    """To rounding, in the same order."""
    found = []
    for split in (True, False):
        set_SNR_options(coordinates="own", rho=0.0)
        m = CASES[kind]()
        set_SNR_options(coordinates="own", rho=0.0, split_step=split)
        trained(m, lr=0.0, iterations=3)
        found.append(floor(m))
    assert_agree(*found)


def test_draws_mean_square_is_the_variance_of_the_gradient(float64):
    """Five relative standard errors of the mean over so many draws, against the exact variance."""
    m = model(measured(), ends())
    set_SNR_options(coordinates="own", rho=1 - 1e-6)
    trained(m, lr=0.0, iterations=400, loss_weights=[1, 2, 1])
    assert SPLIT in m.opt.describe()
    term = NoisyTerm(m.net(tensor(X, m)) - tensor(Y, m), np.linspace(0.1, 0.6, 6)[:, None], 2.0)
    expected = exact_label_noise(m.net.parameters(), [term])
    expected = flat([expected[p] for p in m.net.parameters()])
    assert ((flat(floor(m)) - expected).abs() <= 5 * math.sqrt(2 / 400) * expected).all()


# Passes


def passes(m):
    """The numbers of points that a step sends through the network."""
    seen = []
    handle = m.net.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    m.train_step(m.data.train_x, None, m.data.train_aux_vars)
    handle.remove()
    return seen


def backward_passes(m, monkeypatch):
    """How often a step goes back through a graph over measured points."""
    counted = []
    original = torch.autograd.grad

    def counting(outputs, inputs, *args, **kwargs):
        if isinstance(inputs, (list, tuple)) and len(inputs) > 1:  # parameters, not points
            counted.append(len(inputs))
        return original(outputs, inputs, *args, **kwargs)

    monkeypatch.setattr(torch.autograd, "grad", counting)
    m.train_step(m.data.train_x, None, None)
    return len(counted)


def test_every_group_has_one_pass(monkeypatch):
    m = compiled(model(ends(), measured(), exact(), domain=40))
    points = len(m.data.train_x) - sum(m.data.num_bcs)
    assert passes(m) == [6, 8, points]
    assert backward_passes(m, monkeypatch) == 2


@pytest.mark.parametrize("kind", ["flux", "a batch"])
def test_two_passes_go_back_through_every_noisy_part(kind, monkeypatch):
    m = compiled(CASES[kind]())
    parts = len(noise_of(m).sources)
    assert len(passes(m)) == parts + 2
    assert backward_passes(m, monkeypatch) == 2 * parts


def test_a_noisy_equation_has_two_passes(monkeypatch):
    m = compiled(model(ends()), loss=[NoisyLoss(0.3), "MSE"])
    passes(m)
    assert backward_passes(m, monkeypatch) == 2


def test_a_few_conditions_go_with_the_equation(monkeypatch):
    monkeypatch.setattr(split_step, "FEW", 2**21)
    m = compiled(model(ends(), measured(), exact(), domain=40))
    assert passes(m) == [6, len(m.data.train_x) - 6]


def test_second_derivatives_of_the_losses(float64):
    """With create_graph the terms are made anew, for the engine to go through."""
    found = []
    for split in (True, False):
        m = compiled(model(measured(), ends()), split=split)
        passes(m)
        if split:
            losses = m.train_step.__self__.losses()
        else:
            losses = m.outputs_losses_train(m.data.train_x, None, None)[1]
        params = list(m.net.parameters())
        first = torch.autograd.grad(losses.sum() ** 2, params, create_graph=True)
        norm = torch.stack([g.square().sum() for g in first]).sum()
        found.append([*first, *torch.autograd.grad(norm, params, allow_unused=True)])
    assert_agree(*[[g.detach() for g in own if g is not None] for own in found])


def test_a_graph_that_is_gone_is_refused():
    m = compiled(model(measured(), ends()))
    passes(m)
    total = m.train_step.__self__.losses().sum()
    params = list(m.net.parameters())
    total.backward(inputs=params, retain_graph=True)
    total.backward(inputs=params)
    with pytest.raises(
        RuntimeError, match=r"retain_graph|backward through the graph a second time"
    ):
        total.backward(inputs=params)


# Points that change


def test_points_changed_in_place_are_noticed(float64):
    """DeepXDE itself would keep the values of the old ones."""
    m = compiled(model(measured(), in_the_middle()), lr=0.0)
    m.train(iterations=1, verbose=0)
    m.data.train_x[6:8] += 0.05
    m.data.train_x[-1] = 0.3
    found = one_step(m)
    assert float(found["total"]) == pytest.approx(by_hand(m), rel=1e-9)


def in_the_middle():
    return dde.icbc.DirichletBC(LINE, lambda x: np.sin(5 * x), lambda _, on: on)


def by_hand(m):
    """The sum of the losses of measurements, boundary values and equation."""
    ends_at = m.data.train_x[6:8]
    of_ends = (m.net(tensor(ends_at, m)) - tensor(np.sin(5 * ends_at), m)).square().mean()
    of_data = (m.net(tensor(X, m)) - tensor(Y, m)).square().mean()
    x = tensor(m.data.train_x[8:], m).requires_grad_()
    u = m.net(x)
    (first,) = torch.autograd.grad(u.sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    return float(of_ends + of_data + (second + math.pi**2 * u).square().mean())


def moving_boundary():
    """Boundary values sin(5 x) on a square, at points that are drawn anew in every step."""
    rim = dde.icbc.DirichletBC(SQUARE, lambda x: np.sin(5 * x[:, :1]), everywhere)
    torch.manual_seed(0)
    np.random.seed(0)
    where = np.array([[0.1, 0.2], [-0.3, 0.4]])
    conditions = [rim, NoisyPointSetBC(where, np.ones((2, 1)), 0.1)]

    def residual(x, u):
        return dde.grad.hessian(u, x)

    data = dde.data.PDE(SQUARE, residual, conditions, 4, 8, "pseudo")
    return dde.Model(data, dde.nn.FNN([2, 4, 1], "tanh", "Glorot uniform"))


@pytest.mark.parametrize("others", [False, True], ids=["at once", "after another training"])
def test_boundary_values_are_those_of_the_points(others, monkeypatch):
    """Where DeepXDE has stale ones, because arrays that are gone have left their ids behind."""
    m = moving_boundary()
    resampler = dde.callbacks.PDEPointResampler(period=1, bc_points=True)
    if others:
        m.compile("adam", lr=0.0, verbose=0)
        m.train(iterations=50, callbacks=[resampler], verbose=0)
    compiled(m, lr=0.0)
    assert SPLIT in m.opt.describe()
    step = m.train_step.__self__
    original, wrong = step._losses, []

    def judged():
        losses = original()
        rim = tensor(m.data.train_x[: m.data.num_bcs[0]], m)
        expected = (m.net(rim) - torch.sin(5 * rim[:, :1])).square().mean()
        if not torch.allclose(losses[1], expected, rtol=1e-4):
            wrong.append(m.train_state.step)
        return losses

    monkeypatch.setattr(step, "_losses", judged)
    m.train(iterations=100, callbacks=[resampler], verbose=0)
    assert not wrong


def test_deepxdes_own_step_warns_of_old_values(monkeypatch):
    monkeypatch.setattr(split_step, "warned", False)
    m = compiled(moving_boundary(), split=False)
    resampler = dde.callbacks.PDEPointResampler(period=1, bc_points=True)
    with pytest.warns(UserWarning, match="values of other points"):
        m.train(iterations=3, callbacks=[resampler], verbose=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        m.train(iterations=3, callbacks=[resampler], verbose=0)


@pytest.mark.parametrize("change", ["add_anchors", "replace_with_anchors"])
def test_anchors_that_come_are_taken_up(change, float64):
    found = []
    for split in (True, False):
        m = compiled(model(measured(), ends()), split=split, lr=0.0)
        m.train(iterations=1, verbose=0)
        getattr(m.data, change)(np.linspace(-0.7, 0.7, 5)[:, None])
        found.append(one_step(m))
    assert_agree(found[0]["gradients"], found[1]["gradients"])


def test_conditions_that_come_are_left_to_deepxde():
    m = compiled(model(measured(), ends()))
    m.data.bcs.append(exact())
    m.data.resample_train_points()
    m.train(iterations=2, verbose=0)
    assert "DeepXDE's own, since conditions, equation or network are others" in m.opt.describe()


# Where DeepXDE's own step stays


class Centered(dde.nn.FNN):
    """Outputs that depend on the other points'."""

    def forward(self, inputs):
        found = super().forward(inputs)
        return found - found.mean()


class Largest(dde.nn.FNN):
    """So do these, but for the equation's points the same as long as it has the largest."""

    def forward(self, inputs):
        found = super().forward(inputs)
        return found / found.abs().max()


class Dropped(dde.nn.FNN):
    def __init__(self, *args):
        super().__init__(*args)
        self.dropped = torch.nn.Dropout(0.5)

    def forward(self, inputs):
        return self.dropped(super().forward(inputs))


class Jittered(dde.nn.FNN):
    def forward(self, inputs):
        return super().forward(inputs) * (1 + 0 * torch.rand(1))


class Counted(dde.nn.FNN):
    def __init__(self, *args):
        super().__init__(*args)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, inputs):
        self.calls += 1
        return super().forward(inputs)


class Normed(dde.nn.FNN):
    def __init__(self, *args):
        super().__init__(*args)
        self.norm = torch.nn.BatchNorm1d(1)

    def forward(self, inputs):
        return self.norm(super().forward(inputs))


def with_net(kind):
    m = model(measured(), ends())
    torch.manual_seed(0)
    m.net = kind([1, 8, 8, 1], "tanh", "Glorot uniform")
    return m


def with_equation(residual):
    torch.manual_seed(0)
    data = dde.data.PDE(LINE, residual, [measured(), ends()], 8, 2)
    return dde.Model(data, dde.nn.FNN([1, 8, 8, 1], "tanh", "Glorot uniform"))


class OwnLosses(dde.data.PDE):
    def losses(self, *args, **kwargs):
        return super().losses(*args, **kwargs)


def with_losses():
    data = OwnLosses(LINE, None, [measured()])
    return dde.Model(data, dde.nn.FNN([1, 6, 1], "tanh", "Glorot uniform"))


def integral():
    def residual(x, u, matrix):
        integrals = torch.as_tensor(matrix) @ u
        return integrals + (dde.grad.jacobian(u, x) - 1)[: len(integrals)]

    time = dde.geometry.TimeDomain(0, 1)
    data = dde.data.IDE(time, residual, [measured(points=np.abs(X))], 4, num_domain=8)
    return dde.Model(data, dde.nn.FNN([1, 6, 1], "tanh", "Glorot uniform"))


def source_of_all_rows():
    rows = torch.linspace(0, 1, 18)[:, None]
    return with_equation(lambda x, u: u - rows)


OFF = {
    "losses .* are others|depends on": lambda: with_net(Centered),
    "depends on|others": lambda: with_net(Largest),
    "dropout": lambda: with_net(Dropped),
    "random numbers are drawn": lambda: with_net(Jittered),
    "buffers of the network": lambda: with_net(Counted),
    "normalizes over batches": lambda: with_net(Normed),
    "are others": lambda: with_equation(lambda x, u: dde.grad.jacobian(u, x) + u.mean()),
    "at a point depends on": lambda: with_equation(lambda x, u: u - u.detach().abs().max()),
    "an error without the other points": source_of_all_rows,
    "form their losses themselves": with_losses,
    "themselves": integral,
}


@pytest.mark.parametrize("reason", OFF)
def test_deepxdes_step_stays_where_the_split_one_is_another(reason):
    m = compiled(OFF[reason]())
    assert re.search(f"train step: DeepXDE's own, since .*({reason})", m.opt.describe())
    m.train(iterations=2, verbose=0)


def test_forward_mode_keeps_deepxdes_step():
    before = dde.config.autodiff
    dde.config.set_default_autodiff("forward")
    try:
        m = trained(model(measured(), ends()), iterations=2)
    finally:
        dde.config.set_default_autodiff(before)
    assert "since derivatives are in forward mode" in split_step.step_of(m) or SPLIT in (
        split_step.step_of(m)
    )


def test_parameters_that_only_the_optimizer_knows_are_trained(float64):
    found = []
    for split in (True, False):
        factor = torch.nn.Parameter(torch.tensor(1.5))
        scaled = noisy(dde.icbc.PointSetOperatorBC(X, Y, lambda x, u, _, f=factor: f * u), 0.2)
        m = model(scaled, ends())
        groups = [{"params": list(m.net.parameters())}, {"params": [factor]}]
        own = SNRAdam(groups, lr=1e-2, coordinates="own")
        compiled(m, own, split)
        m.train(iterations=3, verbose=0)
        found.append([*weights(m), factor.detach()])
        assert factor != 1.5
    assert_agree(*found)


def test_lbfgs_keeps_its_step(short_lbfgs):
    m = model(measured(), ends())
    m.compile("L-BFGS", verbose=0)
    assert split_step.step_of(m) == ""
    assert split_step.install(m) == "train step: DeepXDE's own, since the optimizer is L-BFGS"


def test_it_can_be_switched_off():
    m = compiled(model(measured(), ends()), split=False)
    assert "DeepXDE's own, since set_SNR_options(split_step=False)" in m.opt.describe()
    assert len(passes(m)) == 1


def test_without_noise_it_is_not_used():
    m = compiled(model(exact(), ends()))
    assert split_step.step_of(m).endswith("the optimizer knows of no noise")


def test_a_fit_with_no_residual_left_can_be_split():
    """Compared at weights in the neighbourhood."""
    m = model(NoisyPointSetBC(X, 0.0, 0.1), ends())
    with torch.no_grad():
        for p in m.net.parameters():
            p.zero_()
    before = weights(m)
    assert SPLIT in compiled(m).opt.describe()
    assert_same_bits(weights(m), [0 * w for w in before])
    m.train(iterations=2, verbose=0)


# What compile leaves behind


def test_compile_leaves_nothing_behind():
    m = model(measured(batch_size=2), ends(), exact_sine())
    batch = list(m.data.bcs[0].batch_indices)
    before = [w.clone() for w in weights(m)]
    torch.manual_seed(4)
    np.random.seed(4)
    compiled(m)
    assert SPLIT in m.opt.describe()
    numbers = torch.rand(3), np.random.rand(3)
    torch.manual_seed(4)
    np.random.seed(4)
    assert torch.equal(numbers[0], torch.rand(3)) and (numbers[1] == np.random.rand(3)).all()
    assert_same_bits(weights(m), before)
    assert all(p.grad is None for p in m.net.parameters())
    assert list(m.data.bcs[0].batch_indices) == batch
    assert not m.opt.state


def exact_sine():
    return dde.icbc.DirichletBC(LINE, lambda x: np.sin(x), lambda _, on: on)


def test_caches_of_conditions_do_not_grow():
    m = compiled(moving_boundary(), lr=0.0)
    resampler = dde.callbacks.PDEPointResampler(period=1, bc_points=True)
    m.train(iterations=60, callbacks=[resampler], verbose=0)
    function = m.data.bcs[0].func
    cache = function.__closure__[function.__code__.co_freevars.index("cache")].cell_contents
    assert len(cache) <= 4  # the step's own, and those of DeepXDE's tests


# Going on


def test_save_and_restore(tmp_path):
    m = compiled(model(measured(), ends()))
    m.train(iterations=10, verbose=0)
    path = m.save(str(tmp_path / "model"))
    restored = compiled(model(measured(), ends()))
    restored.restore(path)
    for own in (m, restored):
        own.train(iterations=10, verbose=0)
    assert_same_bits(weights(m), weights(restored))
    assert_same_bits(floor(m), floor(restored))


def test_the_noisy_gradient_is_no_view_of_the_total():
    """Clipping changes gradients in place."""
    m = compiled(measured_only(measured(only(2))), lr=0.0)
    passes(m)
    step = m.train_step.__self__
    m.opt.zero_grad()
    step.losses().sum().backward(inputs=list(m.net.parameters()))
    found = m.opt._handover.noisy_gradients(1.0)
    kept = [g.clone() for g in found.values()]
    torch.nn.utils.clip_grad_norm_(m.net.parameters(), 1e-3)
    assert_same_bits(list(found.values()), kept)
