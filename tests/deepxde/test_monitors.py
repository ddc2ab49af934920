"""The monitors: a model beside them trains as ever; what they say of memorization and risk."""

import deepxde as dde
import numpy as np
import pytest
import torch
from sciml_snr.problems import Convection

import sciml_snr
from sciml_snr import (
    MemorizationMonitor,
    NoisyLoss,
    NoisyPointSetBC,
    PopulationRiskMonitor,
    Twins,
    noisy,
)

X = np.random.default_rng(0).uniform(0, 1, (24, 1))
CLEAN = np.sin(6 * X)
Y = CLEAN + 0.3 * np.random.default_rng(1).normal(size=X.shape)


def oscillator(kind: str, shift=0.0, sigma=0.3):
    """A compiled model of u'' + k u = 0, noisy u, k unknown, seeded; and its callbacks."""
    dde.config.set_random_seed(3)
    k = dde.Variable(30.0)
    kind, minibatch = kind.removesuffix(" in batches"), kind.endswith("in batches")
    kind, reweighted = kind.removesuffix(", reweighted"), kind.endswith(", reweighted")
    bc = NoisyPointSetBC(X, Y, sigma, batch_size=8 if minibatch else None)
    bc.values = bc.values + torch.as_tensor(shift).to(bc.values)
    equation = lambda x, u: 1e-2 * (dde.grad.hessian(u, x) + k * u)  # noqa: E731
    data = dde.data.PDE(dde.geometry.Interval(0, 1), equation, [bc], num_domain=20)
    model = dde.Model(data, dde.nn.FNN([1, 12, 12, 1], "tanh", "Glorot normal"))
    name, decay = kind, None
    if kind == "decay":
        name, decay = "adam", ("step", 5, 0.5)
    weights = [0.0, 1.0] if reweighted else None
    model.compile(
        name,
        lr=1e-2,
        decay=decay,
        loss_weights=weights,
        external_trainable_variables=k,
        verbose=0,
    )
    callbacks = [dde.callbacks.PDEPointResampler(period=1, bc_points=True)] if minibatch else []
    return model, [*callbacks, *([Reweigh()] if reweighted else [])], k


def train(model, callbacks, iterations=20):
    model.train(iterations=iterations, display_every=7, callbacks=callbacks, verbose=0)


class Reweigh(dde.callbacks.Callback):
    """Other loss weights from the 5th iteration on."""

    def on_epoch_end(self):
        if self.model.train_state.step == 5:
            self.model.loss_weights = [3.0, 1.0]


KINDS = ["adam", "sgd", "decay", "snr_adam", "snr_soap", "L-BFGS"]
KINDS += ["decay in batches", "snr_adam in batches", "snr_soap in batches"]
KINDS += ["snr_adam, reweighted", "snr_soap, reweighted"]


@pytest.fixture
def short_lbfgs(monkeypatch):
    for option, value in {"maxiter": 20, "iter_per_step": 4, "fun_per_step": 8}.items():
        monkeypatch.setitem(dde.optimizers.LBFGS_options, option, value)


@pytest.mark.parametrize("kind", KINDS)
def test_model_and_twins_train_as_if_alone(kind: str, short_lbfgs) -> None:
    watched, callbacks, k = oscillator(kind)
    monitor = MemorizationMonitor(period=10, probes=2, seed=5)
    train(watched, [*callbacks, monitor])
    alone, callbacks, k_alone = oscillator(kind)
    train(alone, callbacks)
    assert np.array_equal(watched.predict(X), alone.predict(X))
    assert torch.equal(k, k_alone)
    assert watched.losshistory.steps == alone.losshistory.steps
    assert np.array_equal(watched.losshistory.loss_train, alone.losshistory.loss_train)
    if kind.startswith("snr"):
        assert watched.opt.gate_stats() == alone.opt.gate_stats()
    for p, q in zip(watched.net.parameters(), alone.net.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None) and (p.grad is None or p.grad.equal(q.grad))

    twins = []
    for shift in monitor.twins.shifts:
        model, callbacks, _ = oscillator(kind, shift.reshape(-1, 1))
        train(model, callbacks)
        twins.append(model.predict(X).ravel())
    sigma = watched.data.bcs[0].sigma.item()
    expected = Twins(Y.astype(np.float32).ravel(), sigma, probes=2, seed=5)
    expected.record(watched.train_state.step, alone.predict(X).ravel(), twins)
    assert np.array_equal(monitor.twins.rows[-1], expected.rows[0], equal_nan=True)


def supervised(optimizer: str, shift=0.0, loss="MSE"):
    dde.config.set_random_seed(3)
    y = Y.astype(np.float32) + np.reshape(shift, (-1, 1)).astype(np.float32)
    data = dde.data.DataSet(X_train=X, y_train=y, X_test=X, y_test=y)
    model = dde.Model(data, dde.nn.FNN([1, 12, 12, 1], "tanh", "Glorot normal"))
    model.compile(optimizer, lr=1e-2, loss=loss, verbose=0)
    return model


@pytest.mark.parametrize("optimizer", ["adam", "snr_adam", "snr_soap"])
def test_supervised_data_tell_their_error_by_their_loss(optimizer: str) -> None:
    """Nothing is told again; model and twin train as if alone."""
    watched = supervised(optimizer, loss=NoisyLoss(0.3))
    monitor = MemorizationMonitor(period=10)
    train(watched, [monitor])
    np.testing.assert_allclose(np.abs(monitor.twins.shifts) / monitor.twins.tau, 0.3)
    alone = supervised(optimizer, loss=NoisyLoss(0.3))
    train(alone, [])
    assert np.array_equal(watched.predict(X), alone.predict(X))
    (shift,) = monitor.twins.shifts
    twin = supervised(optimizer, shift, NoisyLoss(0.3))
    train(twin, [])
    expected = Twins(Y.astype(np.float32).ravel(), 0.3)
    expected.record(20, alone.predict(X).ravel(), [twin.predict(X).ravel()])
    assert np.array_equal(monitor.twins.rows[-1], expected.rows[0], equal_nan=True)
    if optimizer == "adam":  # whose losses and steps do not ask for it
        told = supervised(optimizer)
        by_hand = MemorizationMonitor(sigma=0.3, period=10)
        train(told, [by_hand])
        assert np.array_equal(monitor.twins.rows, by_hand.twins.rows, equal_nan=True)


def slopes(x, u, _):
    return dde.grad.jacobian(u, x)


@pytest.mark.parametrize("optimizer", ["adam", "snr_adam"])
def test_any_measured_condition_tells_its_error(optimizer: str) -> None:
    """What an operator is compared with, too; a function of the points is no measurement."""
    line = dde.geometry.Interval(0, 1)
    ends = dde.icbc.DirichletBC(line, lambda x: 0, lambda _, on_boundary: on_boundary)
    conditions = [
        noisy(ends, 0.5),
        noisy(dde.icbc.PointSetBC(X, Y), 0.3),
        noisy(dde.icbc.PointSetOperatorBC(X[:9], 0 * X[:9], slopes), 2.0),
    ]
    dde.config.set_random_seed(3)
    data = dde.data.PDE(line, lambda x, u: u, conditions, num_domain=5, num_boundary=2)
    model = dde.Model(data, dde.nn.FNN([1, 8, 1], "tanh", "Glorot normal"))
    model.compile(optimizer, lr=1e-2, verbose=0)
    monitor = MemorizationMonitor(period=1)
    train(model, [monitor], 2)
    sizes = np.abs(monitor.twins.shifts[0]) / monitor.twins.tau
    np.testing.assert_allclose(sizes, [0.3] * 24 + [2.0] * 9, rtol=1e-6)
    slope = model.predict(X[:9], operator=lambda x, u: dde.grad.jacobian(u, x))
    residual = np.concatenate([(model.predict(X) - Y).ravel(), slope.ravel()])
    assert monitor.twins.rows[-1].misfit == pytest.approx((residual**2).mean(), rel=1e-4)


def test_measures_from_beginning_to_end() -> None:
    model, _, _ = oscillator("adam")
    monitor = MemorizationMonitor(period=8, clean=CLEAN)
    train(model, [monitor])
    assert [row.iteration for row in monitor.twins.rows] == [0, 8, 16, 20]
    first, last = monitor.twins.rows[0], monitor.twins.rows[-1]
    assert first.share == 0 and first.true_risk > last.true_risk
    assert last.true_risk == pytest.approx(((model.predict(X) - CLEAN) ** 2).mean(), rel=1e-5)
    assert last.true_share == pytest.approx(sciml_snr.memorized_share(model.predict(X), CLEAN, Y))


def test_a_second_training_goes_on_with_the_same_twins(short_lbfgs) -> None:
    once, _, _ = oscillator("adam")
    monitor = MemorizationMonitor(period=10)
    train(once, [monitor], 20)
    twice, _, _ = oscillator("adam")
    again = MemorizationMonitor(period=10)
    train(twice, [again], 10)
    train(twice, [again], 10)
    assert np.array_equal(monitor.twins.rows, again.twins.rows, equal_nan=True)
    twice.compile("L-BFGS", verbose=0)
    train(twice, [again], None)
    assert len(again.twins.rows) > len(monitor.twins.rows)
    assert again.twins.rows[-1].share > 0


@pytest.mark.parametrize("name", ["adam", "snr_adam"])
def test_unknowns_that_come_later_are_trained_once(name: str) -> None:
    found = []
    for monitored in (True, False):
        model, _, k = oscillator("adam")
        callbacks = [MemorizationMonitor(period=10)] if monitored else []
        model.compile("adam", lr=1e-2, verbose=0)  # without k
        train(model, callbacks, 5)
        model.compile(name, lr=1e-2, external_trainable_variables=k, verbose=0)
        train(model, callbacks, 5)
        found.append((k.item(), model.predict(X).tolist()))
    assert found[0] == found[1] and found[0][0] != 30


def test_memorizing_network_is_seen_to_memorize() -> None:
    """A wide network on data alone, full batch: nearly all of the noise, by truth and by twin."""
    dde.config.set_random_seed(0)
    x = np.linspace(-1, 1, 12)[:, None]
    y = np.random.default_rng(2).normal(size=(12, 1))
    data = dde.data.DataSet(X_train=x, y_train=y, X_test=x, y_test=y)
    model = dde.Model(data, dde.nn.FNN([1, 64, 64, 1], "sin", "Glorot normal"))
    model.net.apply_feature_transform(lambda x: 8 * x)
    model.compile("adam", lr=5e-3, verbose=0)
    monitor = MemorizationMonitor(sigma=1.0, period=100, clean=0 * y)
    train(model, [monitor], 1000)
    last = monitor.twins.rows[-1]
    assert last.true_share > 0.99
    assert last.share == pytest.approx(last.true_share, abs=0.02)
    assert monitor.twins.best().true_risk < 0.5 * last.true_risk


def test_patience_stops_and_goes_back_to_the_best() -> None:
    dde.config.set_random_seed(1)
    problem = Convection(points=30, noise=1.0)
    model = problem.model(dde.nn.FNN([2, 32, 32, 1], "tanh", "Glorot normal"))
    model.compile("adam", lr=1e-2, verbose=0)
    monitor = MemorizationMonitor(period=10, patience=60)
    train(model, [monitor], 2000)
    best = monitor.twins.best()
    assert model.train_state.step == best.iteration + 60 < 2000
    fit = model.predict(problem.observations.points)
    assert ((fit - problem.observations.values) ** 2).mean() == pytest.approx(best.misfit, rel=1e-5)
    with pytest.raises(ValueError, match="gone back to its best moment"):
        train(model, [monitor], 10)


def test_several_conditions_are_one_vector_of_measurements() -> None:
    values = np.hstack([Y, 2 * Y, -Y])
    bcs = [
        dde.icbc.PointSetBC(X[:9], 0.5, component=1),
        NoisyPointSetBC(X, values[:, 1:], [[0.1, 0.2]], component=[1, 2]),
    ]
    data = dde.data.PDE(dde.geometry.Interval(0, 1), lambda x, u: u[:, :1], bcs, num_domain=5)
    model = dde.Model(data, dde.nn.FNN([1, 8, 3], "tanh", "Glorot normal"))
    model.compile("adam", lr=1e-2, verbose=0)
    monitor = MemorizationMonitor(sigma=0.4, period=1)
    train(model, [monitor], 2)
    assert monitor.twins.shifts.shape == (1, 9 + 48)
    sizes = np.abs(monitor.twins.shifts[0]) / monitor.twins.tau
    assert np.allclose(sizes, [0.4] * 9 + [0.1, 0.2] * 24)
    fit = model.predict(X)
    residual = np.concatenate([fit[:9, 1] - 0.5, (fit[:, 1:] - values[:, 1:]).ravel()])
    assert monitor.twins.rows[-1].misfit == pytest.approx((residual**2).mean(), rel=1e-5)


def test_an_exception_in_a_twins_step_leaves_the_model_as_it_was(monkeypatch) -> None:
    model, _, _ = oscillator("snr_adam")
    monitor = MemorizationMonitor()
    step, calls = model.train_step, []

    def interrupted(*args):
        calls.append(model.net.state_dict()["linears.0.weight"].clone())
        if len(calls) == 4:  # the twin's second
            raise KeyboardInterrupt
        step(*args)

    model.train_step = interrupted
    with pytest.raises(KeyboardInterrupt):
        train(model, [monitor])
    alone, _, _ = oscillator("snr_adam")
    train(alone, [], 2)
    assert np.array_equal(model.predict(X), alone.predict(X))
    assert model.opt.state[model.net.linears[0].weight]["step"] == 2
    assert torch.equal(model.data.bcs[0].values, alone.data.bcs[0].values)


class Flat(dde.nn.FNN):
    def forward(self, inputs):
        return super().forward(inputs)[:, 0]


def test_targets_without_columns() -> None:
    found = []
    for y, net in ((Y, dde.nn.FNN), (Y[:, 0], Flat)):
        dde.config.set_random_seed(0)
        data = dde.data.DataSet(X_train=X, y_train=y, X_test=X, y_test=y)
        model = dde.Model(data, net([1, 8, 1], "tanh", "Glorot normal"))
        model.compile("adam", lr=1e-2, verbose=0)
        monitor = MemorizationMonitor(sigma=np.full(24, 0.3), period=5)
        train(model, [monitor], 10)
        found.append(monitor.twins.rows)
    assert np.array_equal(found[0], found[1], equal_nan=True)


@pytest.mark.parametrize("batch_size", [10, 24])
def test_batches_of_supervised_data_are_refused_before_the_first_step(batch_size: int) -> None:
    x = (X.astype(np.float32), X.astype(np.float32))
    data = dde.data.Triple(x, Y.astype(np.float32), x, Y.astype(np.float32))
    model = dde.Model(data, dde.nn.DeepONet([1, 6], [1, 6], "tanh", "Glorot normal"))
    model.compile("adam", lr=1e-2, verbose=0)
    monitor = MemorizationMonitor(sigma=0.3)
    with pytest.raises(ValueError, match="Train with batch_size=None"):
        model.train(iterations=2, batch_size=batch_size, callbacks=[monitor], verbose=0)
    assert model.train_state.step == 0
    train(model, [monitor], 2)
    assert monitor.twins.rows[-1].iteration == 2


def test_bad_input() -> None:
    for options, message in [
        ({"period": 0}, "period must be at least 1"),
        ({"probes": 0}, "probes must be at least 1"),
        ({"patience": 0}, "patience must be at least 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            MemorizationMonitor(**options)
    bc = dde.icbc.PointSetBC(X, Y)
    data = dde.data.PDE(dde.geometry.Interval(0, 1), lambda x, u: u, [bc], num_domain=5)
    model = dde.Model(data, dde.nn.FNN([1, 8, 1], "tanh", "Glorot normal"))
    model.compile("adam", lr=1e-2, verbose=0)
    with pytest.raises(ValueError, match="no measurements whose error is known"):
        train(model, [MemorizationMonitor()], 2)


# PopulationRiskMonitor


SIGMA = 0.5


def truth(x):
    return np.sin(6 * x)


def model_on(
    x, optimizer="adam", seed=0, sigma=SIGMA, batch_size=None, equation=True, weights=None
):
    """u'' + 36 u = 0 and noisy u at x."""
    dde.config.set_random_seed(seed)
    y = truth(x) + sigma * np.random.default_rng(seed).normal(size=x.shape)
    bc = NoisyPointSetBC(x, y, sigma, batch_size=batch_size)
    residual = (lambda x, u: dde.grad.hessian(u, x) + 36 * u) if equation else None
    data = dde.data.PDE(dde.geometry.Interval(0, 1), residual, [bc], num_domain=16)
    model = dde.Model(data, dde.nn.FNN([1, 16, 16, 1], "tanh", "Glorot normal"))
    if weights is None:
        weights = [1e-3, 1] if equation else [1]
    model.compile(optimizer, lr=5e-3, loss_weights=weights, verbose=0)
    return model


def train_in_batches(model, monitors, iterations):
    resampler = dde.callbacks.PDEPointResampler(period=1, bc_points=True)
    minibatch = model.data.bcs[0].batch_size is not None
    callbacks = [*monitors, *([resampler] if minibatch else [])]
    model.train(iterations=iterations, display_every=10**6, callbacks=callbacks, verbose=0)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "snr_adam"])
def test_beside_the_risk_a_model_trains_as_if_alone(optimizer: str) -> None:
    x = np.random.default_rng(0).uniform(0, 1, (24, 1))
    watched, alone = (model_on(x, optimizer, batch_size=8) for _ in range(2))
    train_in_batches(watched, [PopulationRiskMonitor()], 12)
    alone = model_on(x, optimizer, batch_size=8)
    train_in_batches(alone, [], 12)
    assert np.array_equal(watched.predict(x), alone.predict(x))


@pytest.mark.parametrize("optimizer", ["adam", "snr_adam"])
@pytest.mark.parametrize("kind", ["targets", "condition"])
def test_the_risk_needs_not_be_told_sigma(kind: str, optimizer: str) -> None:
    """The data's error counts once: as if it had been told, and not as if there were none."""
    found = []
    for told, sigma in ((None, 0.3), (0.3, None), (None, None)):
        if kind == "targets":
            loss = "MSE" if sigma is None else NoisyLoss(sigma)
            model = supervised(optimizer if sigma else "adam", loss=loss)
        else:
            dde.config.set_random_seed(3)
            bc = dde.icbc.PointSetBC(X, Y)
            bcs = [bc if sigma is None else noisy(bc, sigma)]
            data = dde.data.PDE(dde.geometry.Interval(0, 1), None, bcs)
            model = dde.Model(data, dde.nn.FNN([1, 12, 12, 1], "tanh", "Glorot normal"))
            model.compile(optimizer if sigma else "adam", lr=1e-2, verbose=0)
        monitor = PopulationRiskMonitor(sigma=told)
        train(model, [monitor], 5)
        found.append(np.array(monitor.risk.rows))
    assert np.isfinite(found[0]).all()
    if optimizer == "adam":
        np.testing.assert_allclose(found[0], found[1], rtol=1e-5, atol=1e-9)
        assert not np.allclose(found[1][:, 1], found[2][:, 1])


def test_one_loss_weight_is_for_all_terms() -> None:
    x, found = np.random.default_rng(0).uniform(0, 1, (24, 1)), []
    for weights in ([2.0, 2.0], [2.0], 2.0):
        model, monitor = model_on(x, weights=weights), PopulationRiskMonitor()
        train_in_batches(model, [monitor], 3)
        found.append(monitor.risk.rows)
    assert found[0] == found[1] == found[2] and len(found[0]) == 4


@pytest.mark.parametrize("optimizer", ["adam", "snr_adam"])
def test_unbiased_on_fresh_measurements(optimizer: str) -> None:
    """One pass over the data, 12 models: mean error within 3 standard errors, and the training
    batches' own view of it is far off."""
    grid = np.linspace(0, 1, 200)[:, None]
    errors, optimism = [], []
    for seed in range(12):
        x = np.random.default_rng(100 + seed).uniform(0, 1, (32 * 40, 1))
        model = model_on(x, optimizer, seed, batch_size=32, equation=False)

        def risk(model=model):
            return float(((model.predict(grid) - truth(grid)) ** 2).mean())

        start, monitor = risk(), PopulationRiskMonitor(fresh=True)
        train_in_batches(model, [monitor], 40)
        true = risk() - start
        errors.append(monitor.risk.rows[-1].change - true)
        optimism.append(monitor.risk.rows[-1].training - true)
    error = np.std(errors) / np.sqrt(12)
    assert abs(np.mean(errors)) < 3 * error
    assert np.mean(optimism) < -3 * error


def test_patience_with_the_risk_stops_and_restores() -> None:
    x = np.random.default_rng(0).uniform(0, 1, (40, 1))
    model = model_on(x, sigma=1.0)
    monitor = PopulationRiskMonitor(patience=50)
    with pytest.warns(UserWarning, match="stops far too early where an equation"):
        train_in_batches(model, [monitor], 3000)
    assert model.train_state.step == monitor.risk.best_step + 50 < 3000
    stopped = model.predict(x)
    again = model_on(x, sigma=1.0)
    train_in_batches(again, [], monitor.risk.best_step)
    assert np.array_equal(stopped, again.predict(x))


def test_what_has_no_risk_is_refused() -> None:
    x = np.random.default_rng(0).uniform(0, 1, (8, 1))
    with pytest.raises(ValueError, match="no leave-one-out estimate for SNRSOAP"):
        train_in_batches(model_on(x, "snr_soap"), [PopulationRiskMonitor()], 2)
    model = model_on(x)
    model.compile("adam", lr=1e-3, loss="MAE", verbose=0)
    with pytest.raises(ValueError, match="MSE"):
        train_in_batches(model, [PopulationRiskMonitor()], 2)
    data = dde.data.PDE(dde.geometry.Interval(0, 1), lambda x, u: u, [], num_domain=5)
    model = dde.Model(data, dde.nn.FNN([1, 4, 1], "tanh", "Glorot normal"))
    model.compile("adam", lr=1e-3, verbose=0)
    with pytest.raises(ValueError, match="no measurements"):
        model.train(iterations=1, callbacks=[PopulationRiskMonitor()], verbose=0)
