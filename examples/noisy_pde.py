"""A noisy PDE in DeepXDE.

An ordinary DeepXDE script, the one-word change, and what it does to the error. Then a fit to real
data: the lynx and the hare.

It prints the memorized share of both fits, and the rates of lynx and hare beside least squares.
Its figures go to runs/examples/.

    python examples/noisy_pde.py

With more iterations, and explained step by step:
notebooks/01_noisy_pde_in_deepxde.ipynb
This script is made from it, by python -m benchmarks.notebooks.
"""

import os
from pathlib import Path

os.environ.setdefault("DDE_BACKEND", "pytorch")

import deepxde as dde
import matplotlib.pyplot as plt
import numpy as np

import sciml_snr  # makes "snr_adam" known to DeepXDE

ITERATIONS = int(os.environ.get("ITERATIONS", 4000))
FIGURES = Path("runs/examples")
FIGURES.mkdir(parents=True, exist_ok=True)


# The problem
rng = np.random.default_rng(0)
points = np.stack([rng.uniform(0, 2 * np.pi, 256), np.zeros(256)], axis=1)
noise = rng.normal(size=(256, 1))
measured = np.sin(points[:, :1]) + noise

circle = dde.geometry.Interval(0, 2 * np.pi)
domain = dde.geometry.GeometryXTime(circle, dde.geometry.TimeDomain(0, 1))


def pde(x, u):
    return dde.grad.jacobian(u, x, j=1) + 5 * dde.grad.jacobian(u, x, j=0)


x, t = np.meshgrid(np.linspace(0, 2 * np.pi, 128), np.linspace(0, 1, 51))
grid = np.stack([x.ravel(), t.ravel()], axis=1)
truth = np.sin(grid[:, :1] - 5 * grid[:, 1:])


class Error(dde.callbacks.Callback):
    """Relative L2 error against the true solution, along the training."""

    def __init__(self):
        super().__init__()
        self.iterations, self.errors = [], []

    def on_epoch_end(self):
        step = self.model.train_state.step
        if step % 40 == 0:
            self.iterations.append(step)
            difference = self.model.predict(grid) - truth
            self.errors.append(np.linalg.norm(difference) / np.linalg.norm(truth))


# The script
def train(optimizer):
    dde.config.set_random_seed(0)
    periodic = dde.icbc.PeriodicBC(domain, 0, lambda _, on_boundary: on_boundary)
    measurements = sciml_snr.NoisyPointSetBC(points, measured, sigma=1.0)
    data = dde.data.TimePDE(domain, pde, [periodic, measurements], num_domain=512, num_boundary=100)
    model = dde.Model(data, dde.nn.FNN([2] + [64] * 3 + [1], "tanh", "Glorot normal"))

    model.compile(optimizer, lr=LR, verbose=0)
    error = Error()
    model.train(iterations=ITERATIONS, display_every=ITERATIONS, callbacks=[error], verbose=0)
    return model, error


LR = 1e-3
adam, adam_error = train("adam")

# The one-word change
snr, snr_error = train("snr_adam")
fig, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
order = np.argsort(points[:, 0])
left.plot(points[:, 0], measured, ".", color="0.7", label="measured")
left.plot(points[order, 0], np.sin(points[order, 0]), "k--", label="truth")
for model, error, name in ((adam, adam_error, "adam"), (snr, snr_error, "snr_adam")):
    left.plot(points[order, 0], model.predict(points[order]), label=name)
    right.semilogy(error.iterations, error.errors, label=f"{name}: final {error.errors[-1]:.2f}")
left.set(xlabel="x", ylabel="u(x, 0)")
right.set(xlabel="iteration", ylabel="relative L2 error")
left.legend()
right.legend()
plt.savefig(FIGURES / "noisy_pde_1.png")
from sciml_snr import memorized_share

clean = np.sin(points[:, :1])
for name, model in (("adam", adam), ("snr_adam", snr)):
    print(f"{name:9s} {100 * memorized_share(model.predict(points), clean, measured):5.1f} %")
print(snr.opt.describe())
print("gate open in the last step:", f"{100 * snr.opt.gate_stats().open_fraction:.1f} %")

# Real data: the lynx and the hare
from sciml_snr.problems import LynxHare

problem = LynxHare()
print("estimated error of the logarithms:", round(problem.least_squares_fit.sigma, 3))

dde.config.set_random_seed(0)
model = problem.model()
model.compile(
    "snr_adam",
    lr=problem.lr,
    loss_weights=problem.loss_weights(),
    external_trainable_variables=list(problem.unknowns.values()),
    verbose=0,
)
model.train(iterations=ITERATIONS, display_every=ITERATIONS, verbose=0)

for name, value in problem.unknown_values().items():
    print(f"{name:6s} {value:.4f}   least squares: {problem.truth()[name]:.4f}")
years = problem.evaluation_points()
fig, axes = plt.subplots(1, 2, figsize=(11, 3.5), layout="constrained")
for i, (ax, name) in enumerate(zip(axes, problem.outputs, strict=True)):
    observed = problem.observations
    ax.plot(observed.points[:, 0], observed.values[:, i], ".", color="0.5", label="counted")
    ax.plot(years[:, 0], problem.reference(years)[:, i], "k--", label="least squares")
    ax.plot(years[:, 0], problem.predict(model, years)[:, i], label="snr_adam")
    ax.set(title=name, xlabel="year", ylabel="thousand pelts")
    ax.legend()
plt.savefig(FIGURES / "noisy_pde_2.png")
print(f"figures: {FIGURES}/noisy_pde_*.png")
