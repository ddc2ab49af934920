"""Error bars of DeepXDE models."""

import math

import deepxde as dde
import numpy as np
import pytest
import torch

import sciml_snr
from sciml_snr import NoisyLoss, error_bars
from tests.deepxde.models import LINE, X, ends, exact, measured, measured_only, model


def decay(seed=0, optimizer="snr_gn", guess=0.0, steps=25):
    """u' = -k u with noisy values of exp(-t): a model, and the logarithm of k."""
    dde.config.set_random_seed(seed)
    t = np.linspace(0, 2, 30)[:, None]
    y = np.exp(-t) + 0.05 * np.random.default_rng(seed).normal(size=t.shape)
    log_k = dde.Variable(guess)

    def residual(t, u):
        return dde.grad.jacobian(u, t) + torch.exp(log_k) * u

    data = dde.data.PDE(
        dde.geometry.TimeDomain(0, 2), residual, [sciml_snr.NoisyPointSetBC(t, y, 0.05)], 40
    )
    found = dde.Model(data, dde.nn.FNN([1, 16, 16, 1], "tanh", "Glorot normal"))
    if optimizer == "snr_gn":
        found.compile("snr_adam", lr=3e-3, external_trainable_variables=log_k, verbose=0)
        found.train(200, display_every=10**9, verbose=0)
        found.compile("snr_gn", external_trainable_variables=log_k, verbose=0)
        found.train(steps, display_every=10**9, verbose=0)
    else:
        found.compile(optimizer, lr=3e-3, external_trainable_variables=log_k, verbose=0)
        found.train(steps, display_every=10**9, verbose=0)
    return found, log_k


@pytest.fixture(scope="module")
def fitted():
    return decay()


def test_unknown_of_an_equation(fitted):
    net, log_k = fitted
    bars = error_bars(net, unknowns={"k": lambda: torch.exp(log_k)})
    k = bars.unknowns["k"]
    # Least squares to a exp(-k t): a parameter for the start, one for the rate.
    t = np.linspace(0, 2, 30)
    form = np.stack([np.exp(-t), -t * np.exp(-t)], 1) / 0.05
    bound = math.sqrt(np.linalg.inv(form.T @ form)[1, 1])
    assert bound < 1.05 * k.standard_error < 1.6 * bound
    assert abs(k.value - 1) < 3 * k.standard_error
    low, high = bars.interval()["k"]
    assert low * high == pytest.approx(k.value**2, rel=1e-4)
    assert "k = " in str(bars)


def test_field_and_derivative(fitted):
    net, _ = fitted
    bars = error_bars(net)
    t = np.linspace(0, 2, 21)[:, None]
    error = np.abs(net.predict(t) - np.exp(-t))
    assert (error < 3 * bars(t)).all()
    assert bars.derivative(t).shape == (21, 1, 1)
    low, high = bars.band(t)
    assert ((low < net.predict(t)) & (net.predict(t) < high)).all()


def test_names_of_external_variables(fitted):
    net, log_k = fitted
    bars = error_bars(net)
    assert list(bars.unknowns) == ["unknown"]
    assert bars.unknowns["unknown"].value == pytest.approx(float(log_k.detach()))


def test_replicas(fitted):
    net, log_k = fitted
    named = {"k": lambda: torch.exp(log_k)}
    before = [p.detach().clone() for p in net.net.parameters()]
    replicas = error_bars(net, unknowns=named, method="replicas", replicas=16)
    assert all(map(torch.equal, before, net.net.parameters()))
    linear = error_bars(net, unknowns=named)
    assert replicas.unknowns["k"].noise == pytest.approx(linear.unknowns["k"].noise, rel=0.6)


@pytest.mark.parametrize("optimizer", ["adam", "snr_adam", "snr_soap"])
def test_a_fit_of_first_order_that_is_not_there_yet(optimizer):
    """It says how far it has to go, whatever the optimizer."""
    net, log_k = decay(optimizer=optimizer, guess=0.5, steps=300)
    k = error_bars(net, unknowns={"k": lambda: torch.exp(log_k)}).unknowns["k"]
    assert abs(k.value - 1) < 3 * k.standard_error
    assert k.standard_error >= abs(k.left_out) > 0


def test_weight_decay_does_not_matter():
    made = model(measured(), regularization=["l2", 0.01])
    made.compile("adamw", lr=1e-3, verbose=0)
    assert np.isfinite(error_bars(made)(X)).all()


def test_training_goes_on_to_the_same_bits(fitted):
    def run(look):
        made = model(measured(), ends())
        made.compile("snr_adam", lr=1e-3, verbose=0)
        made.train(5, display_every=10**9, verbose=0)
        if look:
            error_bars(made)(X)
        made.train(5, display_every=10**9, verbose=0)
        return made.predict(X)

    assert np.array_equal(run(False), run(True))


def test_supervised_data_and_noisy_losses():
    made = measured_only(exact())
    made.compile("snr_adam", lr=1e-3, loss=NoisyLoss(0.1), verbose=0)
    expected = measured_only(measured(0.1, points=X + 0.1))
    expected.compile("snr_adam", lr=1e-3, verbose=0)
    assert np.allclose(error_bars(made)(X), error_bars(expected)(X), rtol=1e-4)


def test_own_float_type():
    dde.config.set_default_float("float64")
    try:
        made = model(measured(), ends())
        made.compile("snr_adam", lr=1e-3, verbose=0)
        found = error_bars(made)(X)
    finally:
        dde.config.set_default_float("float32")
    assert np.isfinite(found).all()


def test_a_variable_of_another_float_type():
    """``dde.Variable(np.log(2))`` is of 64 bits: numpy's numbers are."""
    made, _ = decay(guess=np.log(1.5), steps=3)
    assert made.external_trainable_variables[0].dtype == torch.float64
    assert np.isfinite(error_bars(made).unknowns["unknown"].standard_error)


def test_what_cannot_be():
    made = model(measured())
    with pytest.raises(ValueError, match="not compiled"):
        error_bars(made)
    made.compile("snr_adam", lr=1e-3, verbose=0)
    with pytest.raises(ValueError, match="rows and variables of its own"):
        error_bars(made, lambda net: [])
    without = model(exact())
    without.compile("adam", lr=1e-3, verbose=0)
    with pytest.raises(ValueError, match="no measurements whose error is known"):
        error_bars(without)
    other = model(measured())
    other.compile("adam", lr=1e-3, loss="MAE", verbose=0)
    with pytest.raises(ValueError, match="no error bars for this model: it minimizes sums"):
        error_bars(other)
    batches = model(measured(batch_size=3))
    batches.compile("snr_adam", lr=1e-3, verbose=0)
    with pytest.raises(ValueError, match="batch_size=None"):
        error_bars(batches)


def test_dropout_is_refused():
    class Dropping(dde.nn.FNN):
        def __init__(self):
            super().__init__([1, 8, 1], "tanh", "Glorot normal")
            self.drop = torch.nn.Dropout(0.1)

    data = dde.data.PDE(LINE, None, [measured()], 0, 0)
    made = dde.Model(data, Dropping())
    made.compile("adam", lr=1e-3, verbose=0)
    with pytest.raises(ValueError, match="dropout"):
        error_bars(made)
