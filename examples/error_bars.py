"""How sure is this number?

A fit gives a coefficient, a field, a flux. This script puts error bars on all three, with one
call: `sciml_snr.error_bars(model)`. It shows

1. a diffusivity from 200 noisy temperatures, with its interval, and bands around the field;
2. whether such intervals hold the truth as often as they say, over several draws of the noise;
3. what the bars say of a fit that was stopped too early, of a wrong sigma, and of a wrong equation;
4. the same in plain torch.

It prints coefficients and a flux with their error bars, and what these say of a wrong equation.
Its figures go to runs/examples/.

    python examples/error_bars.py

With more iterations, and explained step by step:
notebooks/07_error_bars.ipynb
This script is made from it, by python -m benchmarks.notebooks.
"""

import os
import warnings
from pathlib import Path

os.environ.setdefault("DDE_BACKEND", "pytorch")

import deepxde as dde
import matplotlib.pyplot as plt
import numpy as np
import torch

import sciml_snr  # makes "snr_adam" and "snr_gn" known to DeepXDE

ITERATIONS = int(os.environ.get("ITERATIONS", 400))
STEPS = max(4, 3 * ITERATIONS // 20)
DRAWS = max(3, ITERATIONS // 20)
torch.set_num_threads(1)
FIGURES = Path("runs/examples")
FIGURES.mkdir(parents=True, exist_ok=True)


# 1. A diffusivity
def truth(x):
    modes = [(1, 1.0), (2, 0.5)]
    place, time = x[:, :1], x[:, 1:]
    waves = [(a * np.sin(n * np.pi * place), 0.1 * (n * np.pi) ** 2) for n, a in modes]
    return sum(wave * np.exp(-rate * time) for wave, rate in waves)


rng = np.random.default_rng(0)
points = rng.uniform(size=(200, 2))
values = truth(points) + 0.05 * rng.normal(size=(200, 1))
rod = dde.geometry.GeometryXTime(dde.geometry.Interval(0, 1), dde.geometry.TimeDomain(0, 1))


def fit_heat(sigma=0.05, wrong=0.0, second_stage=True):
    """A model of the rod, and the logarithm of its diffusivity."""
    dde.config.set_random_seed(0)
    log_k = dde.Variable(np.log(0.3))

    def heat(x, u):
        u_t, u_xx = dde.grad.jacobian(u, x, j=1), dde.grad.hessian(u, x, i=0, j=0)
        return u_t - torch.exp(log_k) * u_xx + wrong * u

    ends = dde.icbc.DirichletBC(rod, lambda x: 0, lambda _, on_boundary: on_boundary)
    measured = sciml_snr.NoisyPointSetBC(points, values, sigma)
    data = dde.data.TimePDE(rod, heat, [ends, measured], num_domain=400, num_boundary=60)
    model = dde.Model(data, dde.nn.FNN([2, 32, 32, 32, 1], "tanh", "Glorot normal"))
    options = {"external_trainable_variables": [log_k], "verbose": 0}
    quiet = {"display_every": 10**9, "verbose": 0}
    model.compile("snr_adam", lr=3e-3, **options)
    model.train(iterations=ITERATIONS, **quiet)
    if second_stage:
        model.compile("snr_gn", **options)
        model.train(iterations=STEPS, **quiet)
    return model, log_k


model, log_k = fit_heat()
unknowns = {"k": lambda: torch.exp(log_k)}
bars = sciml_snr.error_bars(model, unknowns=unknowns)
print(bars)
k = bars.unknowns["k"]
print(f"noise {k.noise:.4f}, unresolved {k.unresolved:.4f}, left out {k.left_out:+.4f}")
low, high = bars.interval(0.5)["k"]
print(f"50 % interval: {low:.4f} to {high:.4f}")

# The field, its slope, and a flux
place = np.linspace(0, 1, 101)
start = np.stack([place, np.zeros(101)], axis=1)
low, high = bars.band(start)
x, t = np.meshgrid(place, np.linspace(0, 1, 51), indexing="ij")
grid = np.stack([x.ravel(), t.ravel()], axis=1)
error = bars(grid).reshape(x.shape)

fig, (left, middle, right) = plt.subplots(1, 3, figsize=(14, 3.8), layout="constrained")
early = points[:, 1] < 0.05
left.plot(points[early, 0], values[early], ".", color="0.6", label="measured, t < 0.05")
left.plot(place, truth(start), "k--", label="truth")
left.plot(place, model.predict(start), label="fit")
left.fill_between(place, low[:, 0], high[:, 0], alpha=0.25, label="95 % band")
left.set(title="u at t = 0", xlabel="x")
left.legend()
image = middle.pcolormesh(t, x, error, rasterized=True)
middle.plot(points[:, 1], points[:, 0], "w.", markersize=2)
middle.set(title="standard error of u; dots: measured", xlabel="t", ylabel="x")
fig.colorbar(image, ax=middle)
slope = model.predict(start, operator=lambda x, u: dde.grad.jacobian(u, x, j=0))[:, 0]
width = 1.96 * bars.derivative(start)[:, 0, 0]
exact = np.pi * np.cos(np.pi * place) + np.pi * np.cos(2 * np.pi * place)
right.plot(place, exact, "k--", label="truth")
right.plot(place, slope, label="fit")
right.fill_between(place, slope - width, slope + width, alpha=0.25, label="95 % band")
right.set(title="du/dx at t = 0", xlabel="x")
right.legend()
plt.savefig(FIGURES / "error_bars_1.png")
wall = torch.stack([torch.zeros(51), torch.linspace(0, 1, 51)], dim=1)


def heat_lost():
    x = wall.clone().requires_grad_()
    slope = torch.autograd.grad(model.net(x).sum(), x, create_graph=True)[0][:, 0]
    return torch.exp(log_k) * torch.trapezoid(slope, wall[:, 1])


exact = 0.1 * sum(
    n * np.pi * a * (1 - np.exp(-0.1 * (n * np.pi) ** 2)) / (0.1 * (n * np.pi) ** 2)
    for n, a in [(1, 1.0), (2, 0.5)]
)
lost, error = heat_lost().item(), bars.of(heat_lost)[0]
print(f"heat lost at x = 0: {lost:.4f} +- {error:.4f}; truth {exact:.4f}")

# 2. Do the intervals hold the truth?
times = np.linspace(0, 2, 30)[:, None]


def fit_decay(seed):
    dde.config.set_random_seed(seed)
    noisy = np.exp(-times) + 0.05 * np.random.default_rng(seed).normal(size=times.shape)
    log_rate = dde.Variable(0.5)

    def decay(t, u):
        return dde.grad.jacobian(u, t) + torch.exp(log_rate) * u

    measured = [sciml_snr.NoisyPointSetBC(times, noisy, 0.05)]
    data = dde.data.PDE(dde.geometry.TimeDomain(0, 2), decay, measured, num_domain=40)
    model = dde.Model(data, dde.nn.FNN([1, 16, 16, 1], "tanh", "Glorot normal"))
    for optimizer, lr, steps in (("snr_adam", 3e-3, ITERATIONS // 2), ("snr_gn", None, STEPS)):
        model.compile(optimizer, lr=lr, external_trainable_variables=[log_rate], verbose=0)
        model.train(iterations=steps, display_every=10**9, verbose=0)
    return sciml_snr.error_bars(model, unknowns={"k": lambda: torch.exp(log_rate)})


draws = [fit_decay(seed) for seed in range(DRAWS)]
ends = np.array([one.interval(0.95)["k"] for one in draws])
held = (ends[:, 0] <= 1) & (ends[:, 1] >= 1)
fig, ax = plt.subplots(figsize=(8, 3), layout="constrained")
for i, (low, high) in enumerate(ends):
    ax.plot([i, i], [low, high], color="C0" if held[i] else "C3", lw=3, alpha=0.6)
    ax.plot(i, draws[i].unknowns["k"].value, "ko", ms=3)
ax.axhline(1, color="k", ls="--", lw=1)
ax.set(xlabel="draw of the noise", ylabel="k", title=f"{held.sum()} of {DRAWS} hold the truth")
plt.savefig(FIGURES / "error_bars_2.png")

# 3. What noise alone cannot tell
early, log_k_early = fit_heat(second_stage=False)
stopped = sciml_snr.error_bars(early, unknowns={"k": lambda: torch.exp(log_k_early)})
print(stopped)
print("parts:", stopped.unknowns["k"])
for name, changes in (("sigma 0.02", {"sigma": 0.02}), ("u_t = k u_xx - 3 u", {"wrong": 3.0})):
    other, log_k_other = fit_heat(**changes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        named = {"k": lambda log=log_k_other: torch.exp(log)}
        found = sciml_snr.error_bars(other, unknowns=named)
    print(f"{name}:\n{found}\n")
replicas = sciml_snr.error_bars(model, unknowns=unknowns, method="replicas", replicas=8)
print(replicas)
print(f"noise: linear {bars.unknowns['k'].noise:.4f}, replicas {replicas.unknowns['k'].noise:.4f}")

# 4. In plain torch
torch.manual_seed(0)
net = torch.nn.Sequential(torch.nn.Linear(1, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1)).double()
x = torch.cat([torch.rand(20), 2 + torch.rand(20)]).double()[:, None]
y = torch.sin(2 * x) + 0.1 * torch.randn(40, 1).double()


def rows(net):
    return [sciml_snr.NoisyRows(net(x) - y, sigma=0.1)]


optimizer = sciml_snr.SNRGaussNewton(net)
while not optimizer.done and optimizer.steps < STEPS:
    optimizer.step(rows)
own = sciml_snr.error_bars(net, rows)
everywhere = torch.linspace(-0.5, 3.5, 200).double()[:, None]
low, high = own.band(everywhere)
fig, ax = plt.subplots(figsize=(8, 3), layout="constrained")
ax.plot(x, y, ".", color="0.6")
ax.plot(everywhere, torch.sin(2 * everywhere), "k--")
ax.plot(everywhere, net(everywhere).detach())
ax.fill_between(everywhere[:, 0], low[:, 0], high[:, 0], alpha=0.25)
ax.set(title="no data between 1 and 2: the band is wide there", xlabel="x", ylim=(-2.5, 2.5))
plt.savefig(FIGURES / "error_bars_3.png")
print(f"figures: {FIGURES}/error_bars_*.png")
