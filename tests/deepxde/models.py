"""Small models that the tests of the DeepXDE part share, and what their floors should be."""

import math

import deepxde as dde
import numpy as np
import torch

from sciml_snr import NoisyPointSetBC

LINE = dde.geometry.Interval(-1, 1)
X = np.linspace(-0.9, 0.7, 6)[:, None]
Y = np.cos(3 * X)
SIGMA = np.linspace(0.1, 0.6, 6)
ONE_POINT = {"points": X[:1], "values": Y[:1], "sigma": 0.3}
"""The square of a draw is then the variance: its sign does not matter."""


def only(i, sigma=0.3, shape=(6, 1)):
    """An error in one entry alone: no randomness."""
    found = np.zeros(shape)
    found.flat[i] = sigma
    return found


def measured(sigma=SIGMA, points=X, values=Y, **options):
    return NoisyPointSetBC(points, values, sigma, **options)


def exact():
    return dde.icbc.PointSetBC(X + 0.1, Y)


def ends():
    return dde.icbc.DirichletBC(LINE, lambda x: 0, lambda _, on_boundary: on_boundary)


def model(*conditions, coefficient=1.0, regularization=None, domain=8, boundary=2, **options):
    """u_xx + c pi^2 u = 0 on [-1, 1], with these conditions; the same start every time."""
    torch.manual_seed(0)
    np.random.seed(0)

    def residual(x, u):
        curvature = dde.grad.hessian(u, x)
        if isinstance(u, tuple):  # in forward mode each is (values, function)
            u, curvature = u[0], curvature[0]
        return curvature + coefficient * math.pi**2 * u

    data = dde.data.PDE(LINE, residual, list(conditions), domain, boundary, **options)
    return dde.Model(data, dde.nn.FNN([1, 8, 8, 1], "tanh", "Glorot uniform", regularization))


def measured_only(*conditions, outputs=1):
    """No differential equation: the measurements alone."""
    torch.manual_seed(0)
    data = dde.data.PDE(LINE, None, list(conditions), num_domain=0, num_boundary=0)
    return dde.Model(data, dde.nn.FNN([1, 6, outputs], "tanh", "Glorot uniform"))


def supervised(x=X, y=Y, net=dde.nn.FNN):
    torch.manual_seed(0)
    data = dde.data.DataSet(X_train=x, y_train=y, X_test=x, y_test=y)
    return dde.Model(data, net([1, 6, 1], "tanh", "Glorot uniform"))


def trained(m, optimizer="snr_adam", iterations=20, lr=1e-2, callbacks=None, **options):
    """Compile and train it; as for everything here, from the same random numbers every time."""
    train = {name: options.pop(name, None) for name in ("batch_size",)}
    display_every = options.pop("display_every", 1000)
    m.compile(optimizer, lr=lr, verbose=0, **options)
    torch.manual_seed(1)
    m.train(iterations, display_every=display_every, callbacks=callbacks, verbose=0, **train)
    return m


def weights(m):
    return [p.detach() for p in m.net.parameters()]


def floor_of(m, p):
    """The variance that the optimizer has found for a parameter; 0 where no gradient comes."""
    moments = m.opt.moments(p)
    if moments is None:
        return torch.zeros_like(p)
    return (moments.floor / moments.floor_weight).view(p.shape)


def floor(m):
    return [floor_of(m, p) for p in m.net.parameters()]


def gate(m):
    """The gate of the network's parameters in the last step."""
    return m.opt.moments(next(m.net.parameters())).gate


def flat(tensors):
    return torch.cat([t.flatten() for t in tensors])


def scaled(variances, factor):
    return [factor * variance for variance in variances]


def fresh_share(rows, population):
    """What the first moment's averaging over batches leaves of a batch's variance."""
    share = rows / population
    return share + (1 - share) * (1 - 0.9) / (1 + 0.9)


def tensor(x, like):
    return torch.as_tensor(x, dtype=next(like.net.parameters()).dtype)


def exact_variance(m, measurements):
    """The variance under the error of (points, values, sigma, weight), sample by sample."""
    return variance_of(
        m, [(m.net(tensor(x, m)) - tensor(y, m), sigma, w) for x, y, sigma, w in measurements]
    )


def variance_of(m, terms):
    """sum (2 w / n sigma_i dr_i/dparam)^2 over terms (residuals r, sigma, w), sample by sample.

    Each divided by its misfit R = mean(r^2 / sigma^2), over what has an error, if that is above 1.
    """
    params = list(m.net.parameters())
    total = [torch.zeros_like(p) for p in params]
    for r, sigma, weight in terms:
        sigma = torch.as_tensor(sigma, dtype=r.dtype)
        sigma = (sigma.reshape(-1, 1) if sigma.ndim == 1 else sigma).expand_as(r)
        noisy = sigma > 0
        misfit = (r.detach() / sigma)[noisy].square().mean().item()
        for r_i, sigma_i in zip(r[noisy], sigma[noisy], strict=True):
            gradients = torch.autograd.grad(r_i, params, retain_graph=True, allow_unused=True)
            for sum_, g in zip(total, gradients, strict=True):
                if g is not None:
                    sum_ += (2 * weight / r.numel() * sigma_i * g) ** 2 / max(misfit, 1)
    return total


def assert_close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-9)


def equation_at(m, points):
    """The residuals of ``model``'s equation."""
    x = tensor(points, m).requires_grad_()
    u = m.net(x)
    (slope,) = torch.autograd.grad(u.sum(), x, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), x, create_graph=True)
    return curvature + math.pi**2 * u


def slopes_at(m, points):
    x = tensor(points, m).requires_grad_()
    return torch.autograd.grad(m.net(x).sum(), x, create_graph=True)[0]
