"""Measuring memorization.

How much of the measurements' noise is in a fit, and where? First with the truth known, then
without it: from a twin on perturbed data, for an image and for a noisy equation. Then why: which
directions of the data training reaches, and what a test point sees of them. Background and
benchmarks: docs/how-to/memorization.md.

It prints memorized shares with the truth and by twins, and the moment of the lowest risk.
Its figures go to runs/examples/.

    python examples/measuring_memorization.py

With more iterations, and explained step by step:
notebooks/05_measuring_memorization.ipynb
This script is made from it, by python -m benchmarks.notebooks.
"""

import os
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import skimage.data
import torch
from torch import nn

os.environ.setdefault("DDE_BACKEND", "pytorch")
import deepxde as dde
from sciml_snr.problems import Convection

import sciml_snr
from sciml_snr import Trajectory, figures
from sciml_snr.fields import Siren

ITERATIONS = int(os.environ.get("ITERATIONS", 600))
torch.set_num_threads(1)
FIGURES = Path("runs/examples")
FIGURES.mkdir(parents=True, exist_ok=True)


# An image, the truth known
size, sigma = 32, 25 / 127.5
clean = skimage.data.camera()[112 : 112 + size, 240 : 240 + size] / 127.5 - 1.0
noisy = clean + sigma * np.random.default_rng(0).normal(size=clean.shape)
axis = torch.linspace(-1, 1, size)
x = torch.cartesian_prod(axis, axis)
steps = ITERATIONS // 4
moments = sorted({round(s) for s in np.geomspace(1, steps, 40)})


def train(labels):
    """The fit at every one of the moments: same network, same seed, whatever the labels."""
    torch.manual_seed(0)
    net = Siren(2, 1, 64, 2)
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-4)
    y = torch.tensor(labels.reshape(-1, 1), dtype=torch.float32)
    fits = []
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        nn.functional.mse_loss(net(x), y).backward()
        optimizer.step()
        if step in moments:
            fits.append(net(x).detach().numpy().reshape(size, size))
    return np.array(fits)


fits = train(noisy)
splits = [sciml_snr.split_residual(fit, clean, noisy) for fit in fits]
best = int(np.argmin([s.signal_error + s.noise_error for s in splits]))
print(f"best after {moments[best]} steps: {splits[best]}")
print(f"after {moments[-1]}: {splits[-1]}")
fig, axes = plt.subplots(1, 4, figsize=(15, 3.4), layout="constrained")
axes[0].stackplot(
    moments,
    [s.noise_error for s in splits],
    [s.signal_error for s in splits],
    labels=["noise in the fit", "signal missing"],
    colors=["#d1495b", "#1b6ca8"],
)
axes[0].axvline(moments[best], color="k", ls="--", lw=0.8)
axes[0].set(xscale="log", xlabel="step", title="mean square error", ylim=(0, sigma**2))
axes[0].legend(loc="upper left")
axes[1].imshow(noisy, cmap="gray", vmin=-1, vmax=1)
axes[1].set_title("noisy")
axes[2].imshow(fits[best], cmap="gray", vmin=-1, vmax=1)
axes[2].set_title(f"after {moments[best]} steps")
places = sciml_snr.memorized_map(fits[best], clean, noisy, width=2)
shown = axes[3].imshow(places, vmin=0, vmax=1)
axes[3].set_title("share of the noise, by place")
fig.colorbar(shown, ax=axes[3], shrink=0.8)
for ax in axes[1:]:
    ax.axis("off")
plt.savefig(FIGURES / "measuring_memorization_1.png")

# The truth unknown: a twin
twins = sciml_snr.measure_memorization(train, noisy, sigma, clean=clean, iterations=moments)
print("at the end: ", twins.rows[-1])
print("lowest risk:", twins.best().iteration, twins.best())
print("the truth:  ", moments[best])
figure = figures.memorization_figure(twins.rows, places)
for ax in figure.axes[:2]:
    ax.set_xscale("log")
figure.savefig(FIGURES / "measuring_memorization_2.png")

# A noisy equation, in DeepXDE
dde.config.set_random_seed(0)
problem = Convection(points=128, noise=1.0, seed=0)
model = problem.model(dde.nn.FNN([2, 32, 32, 1], "tanh", "Glorot normal"))
model.compile("adam", lr=1e-2, verbose=0)
monitor = sciml_snr.MemorizationMonitor(
    period=max(1, ITERATIONS // 50), probes=2, clean=problem.observations.clean
)
model.train(iterations=ITERATIONS, display_every=ITERATIONS + 1, callbacks=[monitor], verbose=0)
print("at the end: ", monitor.twins.rows[-1])
print("lowest risk:", monitor.twins.best().iteration, monitor.twins.best())
figures.memorization_figure(monitor.twins.rows).savefig(FIGURES / "measuring_memorization_3.png")

# Signal channel and reservoir
torch.manual_seed(0)
points = torch.linspace(-1, 1, 30).double()[:, None]
grid = torch.linspace(-1, 1, 61).double()[:, None]
values = torch.sin(4 * points) + 0.3 * torch.randn(30, 1).double()
net = nn.Sequential(nn.Linear(1, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 1))
net = net.double()
path = Trajectory(net, points, grid)
with torch.no_grad():
    start, grid_start = net(points).flatten(), net(grid).flatten()
for _ in range(ITERATIONS // 5):
    path.record(lr=0.02, steps=10)
    for _ in range(10):
        net.zero_grad()
        nn.functional.mse_loss(net(points), values).backward()
        with torch.no_grad():
            for p in net.parameters():
                p -= 0.02 * p.grad
channel = path.channel(tol=1e-3)
with torch.no_grad():
    residual = (net(points) - values).flatten()
    moved, grid_moved = net(points).flatten() - start, net(grid).flatten() - grid_start
inside, outside = channel.split(residual)
print(f"channel: {channel.dimension} of 30 directions; the kernel drifted by {path.drift[-1]:.1f}")
print(f"energy of today's residual: {inside:.3f} in the channel, {outside:.3f} in the reservoir")
seen = (path.G_Q @ channel.reservoir).norm() / path.G_Q.norm()
print(f"what the test points see of the reservoir: {seen:.1e}")
predicted = path.predictor() @ moved
error = (predicted - grid_moved).norm() / grid_moved.norm()
print(f"test displacements predicted from those of the data: relative error {error:.1e}")
figures.spectrum_figure(channel, residual).savefig(FIGURES / "measuring_memorization_4.png")


# Early stopping
class Linear(nn.Module):
    """Weights on fixed features of x: the kernel never changes."""

    def __init__(self, features, count):
        super().__init__()
        self.features = features
        self.w = nn.Parameter(torch.zeros(count).double())

    def forward(self, x):
        return (self.features(x) @ self.w)[:, None]


def fourier(x):
    k = torch.arange(1, 41)
    waves = torch.cat([torch.cos(torch.pi * k * x), torch.sin(torch.pi * k * x)], 1)
    return waves / k.repeat(2)


rng = torch.Generator().manual_seed(1)
n, noise = 60, 0.5
data = 2 * torch.rand(n, 1, generator=rng).double() - 1
held = torch.linspace(-1, 1, 200).double()[:, None]


def truth(x):
    return torch.sin(torch.pi * x) + 0.5 * torch.cos(3 * torch.pi * x)


labels = truth(data) + noise * torch.randn(n, 1, generator=rng).double()

path = Trajectory(Linear(fourier, 80), data, held)
times, shares, test_errors, counted = [], [], [], 0
for count in np.unique(np.geomspace(1, 50 * ITERATIONS, 50).astype(int)):
    path.record(lr=0.3, steps=int(count) - counted)
    counted = int(count)
    g = -2 / n * labels.flatten()  # the start is 0
    error = -path.G_Q @ g - truth(held).flatten()
    times.append(counted)
    shares.append(path.degrees_of_freedom() / n)
    test_errors.append(float(error.square().mean()))
fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
left.semilogx(times, shares)
left.set(xlabel="step", title="degrees of freedom / n")
right.loglog(times, test_errors)
right.axvline(times[int(np.argmin(test_errors))], color="k", ls="--", lw=0.8)
right.set(xlabel="step", title="test error, mean square")
plt.savefig(FIGURES / "measuring_memorization_5.png")


# Benign overfitting
def spiked(weak, seed=0, n=50, strong=5, noise=1.0):
    """Share memorized at the data, and test error over the noise's variance, along the way."""
    rng = torch.Generator().manual_seed(seed)
    scale = torch.cat([torch.ones(strong), torch.full((weak,), (20 / max(weak, 1)) ** 0.5)])
    w = torch.cat([torch.ones(strong), torch.zeros(weak)]).double()
    both = torch.randn(n + 400, strong + weak, generator=rng).double() * scale
    x, test = both[:n], both[n:]
    y = x @ w + noise * torch.randn(n, generator=rng).double()
    path = Trajectory(Linear(nn.Identity(), strong + weak), x, test)
    curve, done = [], 0
    for count in np.unique(np.geomspace(1, 20 * ITERATIONS, 30).astype(int)):
        path.record(lr=0.1, steps=int(count) - done)
        done = int(count)
        error = path.G_Q @ (2 / n * y) - test @ w
        curve.append((done, path.degrees_of_freedom() / n, float(error.square().mean())))
    return np.array(curve)


fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
for weak in (0, 45, 2000):
    step, share, test_error = spiked(weak).T
    left.semilogx(step, share, label=f"5 strong, {weak} weak features")
    right.loglog(step, test_error)
left.set(xlabel="step", title="memorized share at the data")
right.set(xlabel="step", title="test error / noise variance")
left.legend(frameon=False)
plt.savefig(FIGURES / "measuring_memorization_6.png")


# Double descent
def random_features(p, draws=20, n=40, d=8, noise=0.3):
    errors, gains = [], []
    for seed in range(draws):
        rng = np.random.default_rng(seed)
        w, target = rng.normal(size=(d, p)), rng.normal(size=d) / d**0.5
        x, test = rng.normal(size=(n, d)), rng.normal(size=(500, d))
        features, test_features = (np.maximum(z @ w, 0) / p**0.5 for z in (x, test))
        a = test_features @ np.linalg.pinv(features, rcond=1e-10)
        y = x @ target + noise * rng.normal(size=n)
        errors.append(((a @ y - test @ target) ** 2).mean())
        gains.append(noise**2 * (a**2).sum(1).mean())
    return np.median(errors), np.median(gains)


counts = [5, 10, 20, 30, 36, 40, 44, 50, 70, 100, 200, 400]
errors, gains = np.array([random_features(p) for p in counts]).T
fig, ax = plt.subplots(figsize=(5.5, 3.4), layout="constrained")
ax.loglog(counts, errors, "o-", label="test error")
ax.loglog(counts, gains, "k--", label="of which noise, through A")
ax.axvline(40, color="0.7", lw=0.8)
ax.set(xlabel="number of features (n = 40)", title="double descent, medians of 20 draws")
ax.legend(frameon=False)
plt.savefig(FIGURES / "measuring_memorization_7.png")
print(f"figures: {FIGURES}/measuring_memorization_*.png")
