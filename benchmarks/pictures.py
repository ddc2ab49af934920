"""The figures of docs/concepts/pictures.md: the floors, the gates, and where fits end.

    python -m benchmarks.pictures

draws docs/figures/idea_*.png in about a minute on one core. The example is that of
benchmarks/curves.py: a network is fitted to two waves through 64 noisy points, all of them in every
step.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

import sciml_snr
from benchmarks.harness import FIGURES
from sciml_snr.figures import COLORS
from sciml_snr.gate import Gate

POINTS, SIGMA, STEPS, LR, EVERY = 64, 0.3, 8000, 1e-3, 20
METHODS = ("Adam", "published rule", "label floor")
STYLE = {
    "font.size": 8,
    "axes.titlesize": 8,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
Course = dict[str, Any]


def truth(x: Tensor) -> Tensor:
    """A slow wave and a quick one of half its height."""
    return torch.sin(3 * x) + 0.5 * torch.sin(9 * x)


def trained(method: str, x: Tensor, y: Tensor) -> Course:
    """A run: errors, sums of squared mean gradients and of floors, mean gates, and the last fit."""
    torch.manual_seed(1)
    layers = [nn.Linear(1, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1)]
    net, dense = nn.Sequential(*layers), torch.linspace(-1, 1, 400)[:, None]
    loss = sciml_snr.NoisyLoss(SIGMA)
    optimizer = sciml_snr.SNRAdam(
        net.parameters(),
        lr=LR,
        noise=loss if method == "label floor" else None,
        gate="none" if method == "Adam" else None,
    )
    course: Course = {"step": [], "error": [], "square": [], "floor": [], "gate": []}
    for step in range(1, STEPS + 1):
        optimizer.zero_grad()
        loss(net(x), y).backward()
        optimizer.step()
        if step % EVERY:
            continue
        with torch.no_grad():
            error = (net(dense) - truth(dense)).norm() / truth(dense).norm()
        every = [optimizer.moments(p) for p in net.parameters()]
        unbiased = 1 - 0.9**step
        course["step"].append(step)
        course["error"].append(float(error))
        course["gate"].append(optimizer.gate_stats().mean_q)
        course["square"].append(sum(float((m.mean / unbiased).square().sum()) for m in every if m))
        floors = [m.floor.sum() / m.floor_weight for m in every if m and m.floor is not None]
        course["floor"].append(float(sum(floors)))
    course["x"], course["fit"] = dense, net(dense).detach()
    return course


def floors(runs: dict[str, Course]) -> Figure:
    """What the gate compares, along two runs, and how far it is open."""
    figure = Figure(figsize=(6.6, 2.4), layout="constrained")
    first, second, third = figure.subplots(1, 3)
    for axis, method in ((first, "published rule"), (second, "label floor")):
        run = runs[method]
        axis.plot(run["step"], run["square"], color=COLORS[0], lw=1, label="squared gradient")
        axis.plot(run["step"], run["floor"], "k--", lw=1, label="floor")
        axis.set(xscale="log", yscale="log", xlabel="step", title=method, ylim=(1e-7, 3))
    first.set_ylabel("sum over all parameters")
    first.legend(loc="lower left")
    for method, color in zip(METHODS, COLORS, strict=False):
        third.plot(runs[method]["step"], runs[method]["gate"], color=color, lw=1, label=method)
    third.set(xscale="log", xlabel="step", title="mean gate", ylim=(0, 1.6))
    third.set_yticks([0, 0.5, 1])
    third.legend(loc="upper left")
    return figure


def gates() -> Figure:
    """How far each form of the gate opens."""
    figure = Figure(figsize=(3.4, 2.4), layout="constrained")
    axis: Axes = figure.subplots()
    ratio = torch.logspace(-1, 2, 400, dtype=torch.float64)
    names = {"hard": "hard", "soft": "soft (published), stein", "snr": "snr"}
    for (form, name), color in zip(names.items(), COLORS, strict=False):
        axis.plot(ratio, Gate(form)(ratio, torch.ones_like(ratio)), color=color, lw=1.3, label=name)
    axis.set(xscale="log", xlabel="squared mean gradient / floor", ylabel="gate")
    axis.legend()
    return figure


def fits(runs: dict[str, Course], x: Tensor, y: Tensor) -> Figure:
    """Where the runs end, and how they came there."""
    figure = Figure(figsize=(6.6, 2.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(x, y, ".", color="0.6", ms=4, label="measured")
    for (method, run), color in zip(runs.items(), COLORS, strict=False):
        if method != "published rule":
            left.plot(run["x"], run["fit"], color=color, lw=1, label=method)
        right.plot(run["step"], run["error"], color=color, lw=1, label=method)
    left.plot(runs["Adam"]["x"], truth(runs["Adam"]["x"]), "k--", lw=1, label="truth")
    left.set(xlabel="x", ylabel="u", title="fits at the end", ylim=(-2.2, 3.2))
    left.legend(ncols=2, loc="upper left")
    right.set(xscale="log", yscale="log", xlabel="step", ylabel="relative error", title="error")
    right.set_yticks([0.2, 0.4, 1.0], ["0.2", "0.4", "1"])
    right.minorticks_off()
    right.legend()
    return figure


def draw(folder: Path = FIGURES) -> None:
    """All three."""
    rng = np.random.default_rng(0)
    points = rng.uniform(-1, 1, (POINTS, 1))
    x = torch.tensor(points, dtype=torch.float32)
    y = truth(x) + SIGMA * torch.tensor(rng.normal(size=points.shape), dtype=torch.float32)
    runs = {method: trained(method, x, y) for method in METHODS}
    with matplotlib.rc_context(STYLE):
        drawn = {"floors": floors(runs), "gates": gates(), "fits": fits(runs, x, y)}
        for name, figure in drawn.items():
            figure.savefig(folder / f"idea_{name}.png", dpi=100 if name == "gates" else 170)


if __name__ == "__main__":
    draw()
