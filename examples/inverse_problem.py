"""Inverse problems with real noise.

Unknown coefficients of an equation, from measurements with errors: the rates of a predator-prey
system from pelts that were counted a century ago, and the speed of a wave from scattered values.
Adam and `snr_adam` on both; and, without the truth, how to see which of two cases you have:

- *The equation holds the noise back.* Adam overfits little; a gate has little to win.
- *The equation lets the noise through.* Adam goes on memorizing after it has found the unknown.

Both are one seed each; an inverse heat problem with more of them is in docs/results/zoo.md.

It prints the unknowns by three optimizers beside least squares, and errors on years left out.
Its figures go to runs/examples/.

    python examples/inverse_problem.py

With more iterations, and explained step by step:
notebooks/06_inverse_problem_with_real_noise.ipynb
This script is made from it, by python -m benchmarks.notebooks.
"""

import os
import tempfile
from importlib import resources
from pathlib import Path

os.environ.setdefault("DDE_BACKEND", "pytorch")

import deepxde as dde
import matplotlib.pyplot as plt
import numpy as np
import torch
from sciml_snr.problems import LynxHare, Observations
from scipy.optimize import curve_fit

import sciml_snr  # makes "snr_adam" known to DeepXDE

ITERATIONS = int(os.environ.get("ITERATIONS", 1200))
torch.set_num_threads(1)
OPTIMIZERS = ("adam", "snr_adam", "snr_adam, own")
FIGURES = Path("runs/examples")
FIGURES.mkdir(parents=True, exist_ok=True)


# Lynx and hare: real counts
path = resources.files("sciml_snr.problems") / "lynx_hare.csv"  # or: "my_counts.csv"
table = np.genfromtxt(path, delimiter=",", skip_header=2)  # a comment, and: year,hare,lynx
years, logs = table[:, :1], np.log(table[:, 1:])
period = dde.geometry.TimeDomain(years.min(), years.max())


def lynx_and_hare(years, logs, sigma):
    """A DeepXDE model and its unknowns: the logarithms of the four rates."""
    dde.config.set_random_seed(0)
    hare, lynx = np.exp(logs).mean(axis=0)
    unknowns = [dde.Variable(np.log(guess)) for guess in (1, 1 / lynx, 1, 1 / hare)]

    def equations(t, y):
        alpha, beta, gamma, delta = (torch.exp(v) for v in unknowns)
        return [
            dde.grad.jacobian(y, t, i=0) - alpha + beta * torch.exp(y[:, 1:]),
            dde.grad.jacobian(y, t, i=1) + gamma - delta * torch.exp(y[:, :1]),
        ]

    measured = [
        sciml_snr.NoisyPointSetBC(years, logs[:, i : i + 1], sigma, component=i) for i in (0, 1)
    ]
    net = dde.nn.FNN([1, 64, 64, 64, 2], "tanh", "Glorot normal")
    first, last = float(period.t0), float(period.t1)
    level = torch.as_tensor(logs.mean(axis=0), dtype=torch.float32)
    net.apply_feature_transform(lambda t: 2 * (t - first) / (last - first) - 1)
    net.apply_output_transform(lambda _, y: y + level)
    return dde.Model(dde.data.PDE(period, equations, measured, num_domain=200), net), unknowns


# How large is the error?
estimates = sciml_snr.estimate_sigma_scattered(years, logs)
sigma = np.sqrt(np.mean(np.square(estimates)))
problem = LynxHare()
reference = problem.truth()
for animal, estimate in zip(("hare", "lynx"), estimates, strict=True):
    print(f"{animal}: {estimate}")
left = problem.least_squares_fit.sigma
print(f"taken: {sigma:.3f} of the logarithms; least squares leaves {left:.3f}")


# Three optimizers
def compile_by(name, model, **settings):
    """Compile by one of OPTIMIZERS; the options are for the next compile only."""
    if name == "snr_adam, own":
        sciml_snr.set_SNR_options(coordinates="own")
    model.compile("adam" if name == "adam" else "snr_adam", verbose=0, **settings)
    sciml_snr.set_SNR_options()  # back to the defaults


class Follow(dde.callbacks.Callback):
    """Unknowns and discrepancy, along the training."""

    def __init__(self, unknowns, points, values, sigma):
        super().__init__()
        self.points, self.values, self.sigma, self.unknowns = points, values, sigma, unknowns
        self.iterations, self.numbers, self.discrepancies = [], [], []

    def on_epoch_end(self):
        step = self.model.train_state.step
        if step % 40 == 0:
            misfit = (self.model.predict(self.points) - self.values) / self.sigma
            self.iterations.append(step)
            self.numbers.append([v.item() for v in self.unknowns])
            self.discrepancies.append(np.mean(misfit**2))


def fit_lynx(optimizer, years, logs, callbacks=()):
    model, unknowns = lynx_and_hare(years, logs, sigma)
    compile_by(
        optimizer,
        model,
        lr=3e-3,
        loss_weights=[10, 10, 1, 1],  # the equations are to hold, not to be averaged with the data
        external_trainable_variables=unknowns,
    )
    follow = Follow(unknowns, years, logs, sigma)
    model.train(
        iterations=ITERATIONS,
        display_every=ITERATIONS,
        callbacks=[follow, *callbacks],
        verbose=0,
    )
    return model, follow


lynx_twin = sciml_snr.MemorizationMonitor(period=max(1, ITERATIONS // 25))
lynx = {
    name: fit_lynx(name, years, logs, [lynx_twin] if name == "adam" else []) for name in OPTIMIZERS
}
names = ["alpha", "beta", "gamma", "delta"]
print(f"{'':14s}" + "".join(f"{n:>9s}" for n in names) + f"{'R':>9s}   largest deviation")
print(f"{'least squares':14s}" + "".join(f"{reference[n]:9.4f}" for n in names))
target = np.array([reference[n] for n in names])
for name, (_, follow) in lynx.items():
    rates = np.exp(follow.numbers[-1])
    away = np.abs(rates / target - 1).max()
    shown = "".join(f"{r:9.4f}" for r in rates)
    print(f"{name:14s}{shown}{follow.discrepancies[-1]:9.2f}   {100 * away:.0f} %")
print("Adam's twin:", lynx_twin.twins.rows[-1])
t = np.linspace(years.min(), years.max(), 201)[:, None]
fig, axes = plt.subplots(1, 3, figsize=(14, 3.8), layout="constrained")
for i, (ax, animal) in enumerate(zip(axes, ("hare", "lynx"), strict=False)):
    ax.errorbar(
        years[:, 0],
        np.exp(logs[:, i]),
        yerr=np.exp(logs[:, i]) * np.array([[1 - np.exp(-sigma)], [np.exp(sigma) - 1]]),
        fmt=".",
        color="0.6",
        label="counted, factor of exp(sigma)",
    )
    ax.plot(t[:, 0], problem.reference(t)[:, i], "k--", label="least squares")
    for name, (model, _) in lynx.items():
        ax.plot(t[:, 0], np.exp(model.predict(t)[:, i]), label=name)
    ax.set(title=animal, xlabel="year", ylabel="thousand pelts", xticks=range(1900, 1921, 5))
axes[0].set_ylim(top=150)  # room for the legend
axes[0].legend(fontsize=8)
for color, (name, (_, follow)) in zip(("C0", "C1", "C2"), lynx.items(), strict=True):
    away = np.abs(np.exp(follow.numbers) / target - 1).max(axis=1)
    axes[2].semilogy(follow.iterations, away, color=color, label=name)
axes[2].set(title="rate furthest from least squares", xlabel="iteration", ylabel="relative")
axes[2].legend(fontsize=8)
plt.savefig(FIGURES / "inverse_problem_1.png")

# Held out: every fourth year
kept = np.arange(len(years)) % 4 != 3


def off(prediction):
    """Root mean square over the years left out, in sigmas."""
    return np.sqrt(np.mean(((prediction - logs[~kept]) / sigma) ** 2))


without = LynxHare(observations=Observations(years[kept], np.exp(logs[kept])))
print(f"least squares  {off(np.log(without.reference(years[~kept]))):.2f}")
for name in OPTIMIZERS:
    model, _ = fit_lynx(name, years[kept], logs[kept])
    print(f"{name:14s} {off(model.predict(years[~kept])):.2f}")

# The speed of a wave
rng = np.random.default_rng(0)
points = np.stack([rng.uniform(0, 2 * np.pi, 256), rng.uniform(0, 1, 256)], axis=1)
clean = np.sin(points[:, :1] - 5 * points[:, 1:])
values = clean + rng.normal(size=(256, 1))
(error,) = sciml_snr.estimate_sigma_scattered(points, values)
print(error)  # a number, which goes wherever a sigma is asked for

circle = dde.geometry.Interval(0, 2 * np.pi)
domain = dde.geometry.GeometryXTime(circle, dde.geometry.TimeDomain(0, 1))


def fit_wave(optimizer, callbacks=()):
    dde.config.set_random_seed(0)
    c = dde.Variable(3.0)

    def wave(x, u):
        return dde.grad.jacobian(u, x, j=1) + c * dde.grad.jacobian(u, x, j=0)

    conditions = [
        dde.icbc.PeriodicBC(domain, 0, lambda _, on_boundary: on_boundary),
        sciml_snr.NoisyPointSetBC(points, values, error),
    ]
    data = dde.data.TimePDE(domain, wave, conditions, num_domain=512, num_boundary=100)
    model = dde.Model(data, dde.nn.FNN([2, 48, 48, 48, 1], "tanh", "Glorot normal"))
    compile_by(optimizer, model, lr=3e-3, external_trainable_variables=[c])
    follow = Follow([c], points, values, error)
    steps = 3 * ITERATIONS // 5
    model.train(iterations=steps, display_every=steps, callbacks=[follow, *callbacks], verbose=0)
    return model, follow


wave_twin = sciml_snr.MemorizationMonitor(period=max(1, ITERATIONS // 40))
wave = {"adam": fit_wave("adam", [wave_twin])}

# Adam first
follow = wave["adam"][1]
rows = wave_twin.twins.rows
speeds = np.array(follow.numbers)[:, 0]
fig, (left, right) = plt.subplots(1, 2, figsize=(11, 3.4), layout="constrained")
left.plot(follow.iterations, speeds)
left.set(xlabel="iteration", ylabel="c under Adam")
right.plot([r.iteration for r in rows], [100 * r.share for r in rows])
right.set(xlabel="iteration", ylabel="memorized by the twin's measure, %")
plt.savefig(FIGURES / "inverse_problem_2.png")
away = np.abs(speeds / speeds[-1] - 1) > 0.03
settled = follow.iterations[np.flatnonzero(away)[-1] + 1] if away.any() else follow.iterations[0]
print(f"within 3 % of where it ends, and staying there: from iteration {settled}")
print(f"R = {follow.discrepancies[-1]:.2f};", rows[-1])
print("lowest estimated risk:", wave_twin.twins.best().iteration, wave_twin.twins.best())

# The gates
wave |= {name: fit_wave(name) for name in OPTIMIZERS[1:]}


def known_form(x, amplitude, c, phase, mean):
    return amplitude * np.sin(x[:, 0] - c * x[:, 1] + phase) + mean


x, t = np.meshgrid(np.linspace(0, 2 * np.pi, 64), np.linspace(0, 1, 26))
grid = np.stack([x.ravel(), t.ravel()], axis=1)
truth = np.sin(grid[:, :1] - 5 * grid[:, 1:])


def relative(field):
    return np.linalg.norm(field - truth) / np.linalg.norm(truth)


best, _ = curve_fit(known_form, points, values[:, 0], p0=[1, 5, 0, 0])
limit = relative(known_form(grid, *best)[:, None])
print(f"{'':27s}{'c':>6s}{'c moved':>9s}{'field':>8s}{'R':>7s}{'memorized':>11s}")
print(f"{'least squares, form known':27s}{best[1]:6.2f}{'':9s}{limit:8.3f}")
for name, (model, follow) in wave.items():
    c = np.array(follow.numbers)[:, 0]
    moved = c[-1] - c[3 * len(c) // 4]  # over the last quarter
    share = sciml_snr.memorized_share(model.predict(points), clean, values)
    print(
        f"{name:27s}{c[-1]:6.2f}{moved:+9.3f}{relative(model.predict(grid)):8.3f}"
        f"{follow.discrepancies[-1]:7.2f}{100 * share:9.1f} %"
    )
place = np.linspace(0, 2 * np.pi, 200)[:, None]
start = np.hstack([place, np.zeros_like(place)])
fig, (left, middle, right) = plt.subplots(1, 3, figsize=(14, 3.8), layout="constrained")
early = points[:, 1] < 0.1
left.plot(points[early, 0], values[early], ".", color="0.7", label="measured, t < 0.1")
left.plot(place, np.sin(place), "k--", label="truth")
middle.axhline(5, color="k", ls="--")
for name, (model, follow) in wave.items():
    left.plot(place, model.predict(start), label=name)
    middle.plot(follow.iterations, follow.numbers, label=name)
    right.plot(follow.iterations, follow.discrepancies, label=name)
left.set(title="u(x, 0)", xlabel="x")
middle.set(title="speed c", xlabel="iteration")
right.set(title="discrepancy R", xlabel="iteration")
left.legend(fontsize=8)
plt.savefig(FIGURES / "inverse_problem_3.png")

# Your own data
path = Path(tempfile.mkdtemp()) / "my_counts.csv"
rows = [f"{year:.0f},{hare},{lynx},0.2" for year, hare, lynx in table[:12]]
path.write_text("\n".join(["year,hare,lynx,sigma", *rows]))
print({name: round(value, 3) for name, value in LynxHare(observations=path).truth().items()})
path.write_text("year,hares,lynx\n1900,30,4\n")
try:
    LynxHare(observations=path)
except ValueError as refusal:
    print(refusal)
print(f"figures: {FIGURES}/inverse_problem_*.png")
