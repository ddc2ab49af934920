"""Population risk of a DeepXDE model: fresh measurements, exact equation, same bits."""

import deepxde as dde
import numpy as np
import pytest

from sciml_snr import NoisyPointSetBC, PopulationRiskMonitor

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


def train(model, monitors, iterations):
    resampler = dde.callbacks.PDEPointResampler(period=1, bc_points=True)
    minibatch = model.data.bcs[0].batch_size is not None
    callbacks = [*monitors, *([resampler] if minibatch else [])]
    model.train(iterations=iterations, display_every=10**6, callbacks=callbacks, verbose=0)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "snr_adam"])
def test_model_trains_as_if_alone(optimizer: str) -> None:
    x = np.random.default_rng(0).uniform(0, 1, (24, 1))
    watched, alone = (model_on(x, optimizer, batch_size=8) for _ in range(2))
    train(watched, [PopulationRiskMonitor()], 12)
    alone = model_on(x, optimizer, batch_size=8)
    train(alone, [], 12)
    assert np.array_equal(watched.predict(x), alone.predict(x))


def test_one_loss_weight_is_for_all_terms() -> None:
    x, found = np.random.default_rng(0).uniform(0, 1, (24, 1)), []
    for weights in ([2.0, 2.0], [2.0], 2.0):
        model, monitor = model_on(x, weights=weights), PopulationRiskMonitor()
        train(model, [monitor], 3)
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
        train(model, [monitor], 40)
        true = risk() - start
        errors.append(monitor.risk.rows[-1].change - true)
        optimism.append(monitor.risk.rows[-1].training - true)
    error = np.std(errors) / np.sqrt(12)
    assert abs(np.mean(errors)) < 3 * error
    assert np.mean(optimism) < -3 * error


def test_patience_stops_and_restores() -> None:
    x = np.random.default_rng(0).uniform(0, 1, (40, 1))
    model = model_on(x, sigma=1.0)
    monitor = PopulationRiskMonitor(patience=50)
    with pytest.warns(UserWarning, match="stops far too early where an equation"):
        train(model, [monitor], 3000)
    assert model.train_state.step == monitor.risk.best_step + 50 < 3000
    stopped = model.predict(x)
    again = model_on(x, sigma=1.0)
    train(again, [], monitor.risk.best_step)
    assert np.array_equal(stopped, again.predict(x))


def test_refusals() -> None:
    x = np.random.default_rng(0).uniform(0, 1, (8, 1))
    with pytest.raises(ValueError, match="LabelGatedSNRSOAP"):
        train(model_on(x, "snr_soap"), [PopulationRiskMonitor()], 2)
    model = model_on(x)
    model.compile("adam", lr=1e-3, loss="MAE", verbose=0)
    with pytest.raises(ValueError, match="MSE"):
        train(model, [PopulationRiskMonitor()], 2)
    data = dde.data.PDE(dde.geometry.Interval(0, 1), lambda x, u: u, [], num_domain=5)
    model = dde.Model(data, dde.nn.FNN([1, 4, 1], "tanh", "Glorot normal"))
    model.compile("adam", lr=1e-3, verbose=0)
    with pytest.raises(ValueError, match="no measurements"):
        model.train(iterations=1, callbacks=[PopulationRiskMonitor()], verbose=0)
