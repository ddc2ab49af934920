"""Ten of DeepXDE's own examples, smaller, with "adam" replaced by "snr_adam": the loss falls."""

import deepxde as dde
import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

import sciml_snr

PI = np.pi


@pytest.fixture(autouse=True)
def seeded_defaults():
    torch.manual_seed(0)
    np.random.seed(0)
    sciml_snr.set_SNR_options()


def tanh_net(*widths, regularization=None):
    return dde.nn.FNN(list(widths), "tanh", "Glorot uniform", regularization)


def on_boundary(_, is_on_boundary):
    return is_on_boundary


def fall(model, iterations, callbacks=(), lr=3e-3, **options):
    """Train; how many times smaller the (summed, weighted) training loss is in the end."""
    model.compile("snr_adam", lr=lr, verbose=0, **options)
    history, _ = model.train(
        iterations=iterations, display_every=50, callbacks=list(callbacks), verbose=0
    )
    first, *_, last = (float(np.sum(loss)) for loss in history.loss_train)
    return first / last


def test_poisson_with_checkpoints(tmp_path):
    """pinn_forward/Poisson_Dirichlet_1d.py: forward PDE, ModelCheckpoint of the best model."""

    def residual(x, u):
        return -dde.grad.hessian(u, x) - PI**2 * torch.sin(PI * x)

    def exact(x):
        return np.sin(PI * x)

    line = dde.geometry.Interval(-1, 1)
    boundary = dde.icbc.DirichletBC(line, exact, on_boundary)
    data = dde.data.PDE(line, residual, boundary, 16, 2, solution=exact, num_test=50)
    model = dde.Model(data, tanh_net(1, 30, 30, 1))
    keeper = dde.callbacks.ModelCheckpoint(str(tmp_path / "model"), save_better_only=True)
    assert fall(model, 500, [keeper], metrics=["l2 relative error"]) > 100
    model.restore(str(tmp_path / f"model-{model.train_state.best_step}.pt"))
    x = line.uniform_points(50)
    assert dde.metrics.l2_relative_error(exact(x), model.predict(x)) < 0.2


def diffusion(x, u):
    """u_t - u_xx = f, where f is such that u = sin(pi x) exp(-t)."""
    du_t = dde.grad.jacobian(u, x, j=1)
    du_xx = dde.grad.hessian(u, x, i=0, j=0)
    return du_t - du_xx + torch.exp(-x[:, 1:]) * (1 - PI**2) * torch.sin(PI * x[:, :1])


def diffusing(x):
    return np.sin(PI * x[:, :1]) * np.exp(-x[:, 1:])


def line_and_time():
    return dde.geometry.GeometryXTime(dde.geometry.Interval(-1, 1), dde.geometry.TimeDomain(0, 1))


def test_diffusion_with_exact_boundary_conditions():
    """pinn_forward/diffusion_1d_exactBC.py: an output transform makes the conditions hold."""
    data = dde.data.TimePDE(line_and_time(), diffusion, [], num_domain=40)
    net = tanh_net(2, 24, 24, 1)
    net.apply_output_transform(
        lambda x, u: x[:, 1:] * (1 - x[:, :1] ** 2) * u + torch.sin(PI * x[:, :1])
    )
    assert fall(dde.Model(data, net), 300) > 5


def test_diffusion_with_resampled_points():
    """pinn_forward/diffusion_1d_resample.py: other random points every 20 iterations."""
    domain = line_and_time()
    conditions = [
        dde.icbc.DirichletBC(domain, diffusing, on_boundary),
        dde.icbc.IC(domain, diffusing, on_boundary),
    ]
    data = dde.data.TimePDE(
        domain, diffusion, conditions, 40, 20, num_initial=10, train_distribution="pseudo"
    )
    model = dde.Model(data, tanh_net(2, 24, 24, 1))
    resampler = dde.callbacks.PDEPointResampler(period=20)
    data.train_next_batch()
    before = data.train_x_all.copy()
    assert fall(model, 400, [resampler]) > 5
    assert not np.array_equal(data.train_x_all, before)


def test_lotka_volterra():
    """pinn_forward/Lotka_Volterra.py: a system of ODEs, initial values and features built in."""
    scale, span = 200, 20

    def residuals(t, y):
        prey, predators = y[:, :1], y[:, 1:]
        dprey = dde.grad.jacobian(y, t, i=0)
        dpredators = dde.grad.jacobian(y, t, i=1)
        return [
            dprey - span * (2.0 * prey - 0.04 * scale * prey * predators),
            dpredators - span * (0.02 * scale * prey * predators - 1.06 * predators),
        ]

    start = torch.tensor([100 / scale, 15 / scale])
    data = dde.data.PDE(dde.geometry.TimeDomain(0, 1), residuals, [], 100, 2)
    net = tanh_net(6, 32, 32, 2)
    net.apply_feature_transform(lambda t: torch.cat([torch.sin(k * t) for k in range(1, 7)], 1))
    net.apply_output_transform(lambda t, y: y * torch.tanh(t) + start)
    assert fall(dde.Model(data, net), 400, lr=5e-3) > 3


def test_integro_differential_equation():
    """pinn_forward/ide.py: u' + int_0^x u = f by Gauss-Legendre quadrature."""

    def residual(x, u, integral):
        integrals = torch.as_tensor(integral) @ u
        f = 2 * PI * torch.cos(2 * PI * x) + torch.sin(PI * x) ** 2 / PI
        return integrals + (dde.grad.jacobian(u, x) - f)[: len(integrals)]

    domain = dde.geometry.TimeDomain(0, 1)
    start = dde.icbc.IC(domain, lambda x: np.sin(2 * PI * x), on_boundary)
    data = dde.data.IDE(domain, residual, start, 16, num_domain=16, num_boundary=2)
    assert fall(dde.Model(data, tanh_net(1, 24, 24, 1)), 500) > 100


def test_lorenz_inverse(tmp_path):
    """pinn_inverse/Lorenz_inverse.py: three unknown coefficients, watched by VariableValue."""
    truth = (10.0, 15.0, 8 / 3)

    def lorenz(y, c):
        return [c[0] * (y[1] - y[0]), y[0] * (c[1] - y[2]) - y[1], y[0] * y[1] - c[2] * y[2]]

    def residuals(t, y):
        right = lorenz([y[:, i : i + 1] for i in range(3)], unknowns)
        return [dde.grad.jacobian(y, t, i=i) - f for i, f in enumerate(right)]

    times = np.linspace(0, 3, 25)
    path = solve_ivp(lambda t, y: lorenz(y, truth), (0, 3), [-8, 7, 27], t_eval=times).y
    times = times[:, None]
    measured = [dde.icbc.PointSetBC(times, path[i][:, None], component=i) for i in range(3)]
    unknowns = [dde.Variable(1.0) for _ in truth]
    domain = dde.geometry.TimeDomain(0, 3)
    data = dde.data.PDE(domain, residuals, measured, 100, 2, anchors=times)
    watch = dde.callbacks.VariableValue(unknowns, period=100, filename=tmp_path / "variables.dat")
    model = dde.Model(data, tanh_net(1, 40, 40, 3))
    assert fall(model, 500, [watch], external_trainable_variables=unknowns) > 3
    watch.file.close()
    assert len((tmp_path / "variables.dat").read_text().splitlines()) == 6
    assert all(abs(value - 1) > 1e-3 for value in watch.get_value())


def test_elliptic_inverse_field_in_batches():
    """pinn_inverse/elliptic_inverse_field_batch.py: measurements in batches, weighted losses."""

    def residual(x, y):
        return -dde.grad.hessian(y, x, component=0) + y[:, 1:]

    def exact(x):
        return np.sin(PI * x)

    line = dde.geometry.Interval(-1, 1)
    x = np.linspace(-1, 1, 500)[:, None]
    conditions = [
        dde.icbc.DirichletBC(line, exact, on_boundary, component=0),
        dde.icbc.PointSetBC(x, exact(x), component=0, batch_size=50),
    ]
    data = dde.data.PDE(line, residual, conditions, num_domain=50, num_boundary=2)
    net = dde.nn.PFNN([1, [16, 16], [16, 16], 2], "tanh", "Glorot uniform")
    resampler = dde.callbacks.PDEPointResampler(period=1, bc_points=True)
    weights = [1, 100, 1000]
    assert fall(dde.Model(data, net), 300, [resampler], lr=1e-2, loss_weights=weights) > 3


def oscillating():
    """The data of DeepXDE's function/func*.py."""
    line = dde.geometry.Interval(-1, 1)
    return dde.data.Function(line, lambda x: x * np.sin(5 * x), 16, 50)


def test_function():
    """function/func.py: approximation of a function, metrics, stopped early on a plateau."""
    model = dde.Model(oscillating(), tanh_net(1, 20, 20, 1))
    stop = dde.callbacks.EarlyStopping(min_delta=1e-4, patience=150)
    assert fall(model, 3000, [stop], lr=1e-2, metrics=["l2 relative error"]) > 50
    assert model.losshistory.metrics_test[-1][0] < 0.2
    assert model.train_state.step < 3000


def test_function_with_l2_regularizer():
    """function/func_uncertainty.py without its dropout, which PyTorch networks there lack."""

    def norm_after_training(strength):
        torch.manual_seed(0)
        net = tanh_net(1, 20, 20, 1, regularization=["l2", strength])
        assert fall(dde.Model(oscillating(), net), 400) > 5
        return sum(float(p.detach().square().sum()) for p in net.parameters())

    assert norm_after_training(1e-3) < norm_after_training(1e-5)


def test_deeponet_antiderivative():
    """operator/antiderivative_aligned.py: DeepONet, with data made of sums of cosines."""
    sensors, frequencies = np.linspace(0, 1, 20), np.arange(1, 5) * PI

    def operator_data(functions):
        coefficients = np.random.standard_normal((functions, 4))
        values = coefficients @ np.cos(np.outer(frequencies, sensors))
        integrals = coefficients @ (np.sin(np.outer(frequencies, sensors)) / frequencies[:, None])
        values, integrals, x = (a.astype("float32") for a in (values, integrals, sensors))
        return (values, x[:, None]), integrals

    data = dde.data.TripleCartesianProd(*operator_data(100), *operator_data(20))
    net = dde.nn.DeepONetCartesianProd([20, 30, 30], [1, 30, 30], "relu", "Glorot normal")
    assert fall(dde.Model(data, net), 400, metrics=["mean l2 relative error"]) > 10
