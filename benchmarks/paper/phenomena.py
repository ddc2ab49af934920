r"""Benign overfitting, double descent and spectral bias, as signal and noise in two channels.

    python -m benchmarks.paper.phenomena [JOBS]

writes benchmarks/results/phenomena.csv and three figures in docs/figures/, in some minutes on one
core. Called again, it does what is not in the file yet.

In all three, labels y = u + e are truth and noise, and training is full-batch gradient descent on
the mean square of f - y. The residual that it starts from has two parts v: the signal f_0 - u and
the noise -e. :mod:`sciml_snr.measure.channel` follows the run and says in which directions of the
training outputs loss was dissipated, the signal channel; the rest is the reservoir (E. Litman and
G. Guo, *A Theory of Generalization in Deep Learning*, arXiv:2605.01172, 2026). That makes four
cells, and two numbers for each: the share of the part's energy that it holds at the training
points, and how far it has moved the test predictions, :math:`|G_Q (2/n) v|^2 / n_Q`.

With linear models (benign overfitting, double descent) this is exact; with spectral bias, where
both layers learn, it is exact to first order in the step.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from benchmarks.harness import FIGURES, RESULTS, append_missing, read
from sciml_snr.figures import COLORS
from sciml_snr.measure.channel import Trajectory, spectrum, tangent_kernel

PATH = RESULTS / "phenomena.csv"
KEYS = ("phenomenon", "width", "seed")
SEEDS = range(5)
WIDTHS = {
    "benign overfitting": (3000, 120),
    "double descent": (5, 10, 20, 30, 40, 50, 80, 160, 400, 1000),
    "spectral bias": (200,),
}
"""Features or neurons."""
FREQUENCIES = (1, 2, 4, 6)
THRESHOLD = 0.1
"""A direction belongs to the channel from this part of the largest dissipation on. Once the
strongest direction is learned, that is: about this part of the direction's own loss is gone."""
TESTS = 500
CELLS = ("signal_channel", "signal_reservoir", "noise_channel", "noise_reservoir")


@dataclass(frozen=True)
class Run:
    """One training run; the seed draws the data, the noise and the initial weights."""

    phenomenon: str
    width: int
    seed: int


@dataclass
class Problem:
    """Data, a network for them, and how to train it."""

    net: nn.Module
    x: Tensor
    """(n, d) training points."""
    u: Tensor
    """(n, 1) the truth there."""
    e: Tensor
    """(n, 1) noise."""
    test_x: Tensor
    test_u: Tensor
    lr: float
    moments: Sequence[int]
    """Steps after which to measure."""
    refresh: int | None = None
    """Steps between evaluations of the tangent kernel; None: it never changes."""
    waves: dict[int, Tensor] = field(default_factory=dict)
    """Frequency -> (n_q, 1) its part of the truth at the test points."""


def benign_overfitting(width: int, seed: int) -> Problem:
    """A linear model: 5 strong inputs carry the signal, the others are weak.

    The setting of P. Bartlett, P. Long, G. Lugosi and A. Tsigler, *Benign overfitting in linear
    regression*, PNAS 117 (2020) 30063. The weak inputs, of variance 1 / their number, suffice to
    fit the noise; where there are many of them, a test point hardly shares any with the data.
    """
    n, strong = 60, 5
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(n + TESTS, width, generator=rng)
    u = x[:, :strong].sum(1, keepdim=True) / math.sqrt(strong)
    x[:, strong:] /= math.sqrt(width - strong)
    e = torch.randn(n, 1, generator=rng)
    net = _zero(nn.Linear(width, 1, bias=False))
    return Problem(net, x[:n], u[:n], e, x[n:], u[n:], 0.1, _spaced(1, 10_000))


def double_descent(width: int, seed: int) -> Problem:
    """Random features: a two-layer tanh network whose first layer stays as drawn, 40 labels.

    M. Belkin, D. Hsu, S. Ma and S. Mandal, PNAS 116 (2019) 15849.
    """
    n, d = 40, 10
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(n + TESTS, d, generator=rng)
    u = x.sum(1, keepdim=True) / math.sqrt(d)
    e = 0.5 * torch.randn(n, 1, generator=rng)
    first = nn.Linear(d, width, bias=False).requires_grad_(False)
    first.weight.copy_(torch.randn(width, d, generator=rng) / math.sqrt(d))
    net = nn.Sequential(first, nn.Tanh(), _zero(nn.Linear(width, 1, bias=False)))
    largest = float(spectrum(tangent_kernel(net, x[:n]))[0])
    return Problem(net, x[:n], u[:n], e, x[n:], u[n:], 0.45 * n / largest, (100, 5000))


def spectral_bias(width: int, seed: int) -> Problem:
    """A two-layer ReLU network, both layers trained, on sines of equal size around a circle."""
    n = 64
    rng = torch.Generator().manual_seed(seed)
    angle = 2 * math.pi * torch.cat([torch.arange(n) / n, torch.rand(TESTS, generator=rng)])
    x = torch.stack([angle.cos(), angle.sin()], 1)
    waves = {k: torch.sin(k * angle)[:, None] for k in FREQUENCIES}
    u = torch.stack(list(waves.values())).sum(0)
    e = 0.5 * torch.randn(n, 1, generator=rng)
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(2, width), nn.ReLU(), _zero(nn.Linear(width, 1, bias=False)))
    moments = _spaced(10, 12_000)
    tests = {k: wave[n:] for k, wave in waves.items()}
    return Problem(net, x[:n], u[:n], e, x[n:], u[n:], 1.5 / width, moments, 20, tests)


PROBLEMS: dict[str, Callable[[int, int], Problem]] = {
    "benign overfitting": benign_overfitting,
    "double descent": double_descent,
    "spectral bias": spectral_bias,
}


def train(run: Run) -> dict[str, Any]:
    """One run in this process, on one thread: a row of the results file."""
    torch.set_num_threads(1)
    measured = follow(PROBLEMS[run.phenomenon](run.width, run.seed))
    lists = {name: json.dumps([row[name] for row in measured]) for name in measured[0]}
    return {key: str(value) for key, value in asdict(run).items()} | lists


def follow(problem: Problem) -> list[dict[str, Any]]:
    """Train, and measure at the problem's moments."""
    path = Trajectory(problem.net, problem.x, problem.test_x)
    with torch.no_grad():
        start = [problem.net(points).double() for points in (problem.x, problem.test_x)]
    step, rows = 0, []
    for moment in problem.moments:
        while step < moment:
            steps = min(problem.refresh or moment, moment - step)
            path.record(problem.lr, steps=steps)
            _descend(problem, steps)
            step += steps
        rows.append({"moments": step} | measure(problem, path, *start))
    return rows


@torch.no_grad()
def measure(
    problem: Problem, path: Trajectory, start: Tensor, test_start: Tensor
) -> dict[str, Any]:
    """Errors, the four cells, and what each part of the residual has done to the tests.

    Args:
        problem: with its network as it is now.
        path: what has led there.
        start: (n, 1) outputs before training.
        test_start: (n_q, 1) the same at the test points.
    """
    fit, test_fit = (problem.net(x).double() for x in (problem.x, problem.test_x))
    n, u, e = len(fit), problem.u.double(), problem.e.double()
    test_u = problem.test_u.double()
    assert path.G_Q is not None
    reach = 2 / n * path.G_Q
    channel = path.channel(THRESHOLD)
    row = {
        "training_error": _mean_square(fit - u - e),
        "risk": _mean_square(test_fit - test_u),
        "risk_from_signal": _mean_square(test_start - test_u - reach @ (start - u)),
        "risk_from_noise": _mean_square(reach @ e),
        "memorized": float((2 / n * path.G_S @ e * e).sum() / e.square().sum()),
        "channel": channel.dimension,
    }
    for name, part in (("signal", start - u), ("noise", -e)):
        inside = channel.projector @ part
        for cell, vector in (("channel", inside), ("reservoir", part - inside)):
            row[f"{name}_{cell}"] = float(vector.square().sum() / part.square().sum())
            row[f"{name}_{cell}_moved"] = _mean_square(reach @ vector)
    waves = [float((test_fit * w).mean() / w.square().mean()) for w in problem.waves.values()]
    rounded = {name: float(f"{value:.4g}") for name, value in row.items()}
    return rounded | {
        "kernel_drift": float(f"{path.drift[-1]:.4g}") if path.drift else 0.0,
        "coefficients": [round(c, 4) for c in waves],
    }


def _descend(problem: Problem, steps: int) -> None:
    """Full-batch gradient descent on the mean square."""
    optimizer = torch.optim.SGD(
        [p for p in problem.net.parameters() if p.requires_grad], lr=problem.lr
    )
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.mse_loss(problem.net(problem.x), problem.u + problem.e).backward()
        optimizer.step()


def _zero(layer: nn.Linear) -> nn.Linear:
    """With weights 0, so that the outputs start from 0."""
    nn.init.zeros_(layer.weight)
    return layer


def _spaced(first: int, last: int, count: int = 16) -> list[int]:
    """Steps at equal ratios."""
    return sorted({round(first * (last / first) ** (i / (count - 1))) for i in range(count)})


def _mean_square(x: Tensor) -> float:
    return float(x.square().mean())


def runs() -> list[Run]:
    """Seed by seed, so that a stop leaves whole comparisons."""
    return [Run(name, w, seed) for seed in SEEDS for name, widths in WIDTHS.items() for w in widths]


def medians(phenomenon: str, width: int) -> dict[str, Any]:
    """Column -> its medians over the seeds, one per moment; with "seeds", their number.

    Raises:
        ValueError: there is no such run yet.
    """
    found = [
        row for row in read(PATH) if (row["phenomenon"], row["width"]) == (phenomenon, str(width))
    ]
    if not found:
        raise ValueError(
            f"No row of {phenomenon!r} at width {width} in {PATH}: run "
            "python -m benchmarks.paper.phenomena."
        )
    columns = {name: [json.loads(row[name]) for row in found] for name in found[0].keys() - KEYS}
    coefficients = columns.pop("coefficients")
    result: dict[str, Any] = {
        name: [median(values) for values in zip(*lists, strict=True)]
        for name, lists in columns.items()
    }
    result["coefficients"] = [
        [median(values) for values in zip(*moment, strict=True)]
        for moment in zip(*coefficients, strict=True)
    ]
    return result | {"seeds": len(found)}


def figures(folder: Path = FIGURES) -> None:
    """One for each phenomenon, medians over the seeds."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, draw in (
        ("benign_overfitting", _draw_benign),
        ("double_descent", _draw_descent),
        ("spectral_bias", _draw_spectral),
    ):
        figure = Figure(figsize=(13, 3.8), layout="constrained")
        draw(figure.subplots(1, 3))
        figure.savefig(folder / f"{name}.png", dpi=130)


def _draw_benign(axes: Any) -> None:
    many, few = (medians("benign overfitting", w) for w in WIDTHS["benign overfitting"])
    steps = many["moments"]
    for found, style, label in ((many, "-", "2,995 weak inputs"), (few, "--", "115")):
        for color, name in zip(
            COLORS, ("training_error", "risk", "risk_from_signal"), strict=False
        ):
            text = f"{name.replace('_', ' ')}, {label}"
            axes[0].plot(steps, found[name], style, color=color, label=text)
    axes[0].set(xscale="log", xlabel="step", ylabel="mean square", ylim=(0, 1.6))
    _draw_cells(axes[1], steps, many)
    _draw_moved(axes[2], steps, many, "-", "2,995: ")
    _draw_moved(axes[2], steps, few, "--", "115: ")
    _finish(axes)


def _draw_descent(axes: Any) -> None:
    widths = WIDTHS["double descent"]
    found = [medians("double descent", w) for w in widths]
    early, late = ({k: [f[k][i] for f in found] for k in (*CELLS, *ERRORS, *MOVED)} for i in (0, 1))
    for color, name in zip(COLORS, ("training_error", "risk", "risk_from_signal"), strict=False):
        axes[0].plot(widths, late[name], color=color, label=name.replace("_", " "))
    axes[0].plot(widths, early["risk"], "--", color=COLORS[1], label="risk after 100 steps")
    axes[0].set(xscale="log", xlabel="width", ylabel="mean square", ylim=(0, None))
    _draw_cells(axes[1], widths, late, "width")
    _draw_moved(axes[2], widths, late, "-", "", "width")
    for ax in axes:
        ax.axvline(40, color="0.8", zorder=0)
    _finish(axes)


def _draw_spectral(axes: Any) -> None:
    found = medians("spectral bias", WIDTHS["spectral bias"][0])
    steps = found["moments"]
    for color, k, line in zip(
        COLORS, FREQUENCIES, zip(*found["coefficients"], strict=True), strict=False
    ):
        axes[0].plot(steps, line, color=color, label=f"sin {k}x" if k > 1 else "sin x")
    axes[0].plot(steps, found["memorized"], ":", color="black", label="noise")
    axes[0].set(xscale="log", xlabel="step", ylabel="share that the fit has")
    _draw_cells(axes[1], steps, found)
    _draw_moved(axes[2], steps, found, "-", "")
    _finish(axes)


ERRORS = ("training_error", "risk", "risk_from_signal", "risk_from_noise")
MOVED = tuple(f"{cell}_moved" for cell in CELLS)
_STYLES = {"signal": COLORS[0], "noise": COLORS[1]}


def _draw_cells(ax: Axes, at: Sequence[int], found: dict[str, Any], along: str = "step") -> None:
    for cell in CELLS:
        part, where = cell.split("_")
        style = "-" if where == "channel" else ":"
        ax.plot(at, found[cell], style, color=_STYLES[part], label=f"{part} in {where}")
    ax.set(xscale="log", xlabel=along, ylabel="share of its energy, training points")


def _draw_moved(
    ax: Axes, at: Sequence[int], found: dict[str, Any], line: str, label: str, along: str = "step"
) -> None:
    for part, color in _STYLES.items():
        moved = found[f"{part}_channel_moved"]
        ax.plot(at, moved, line, color=color, label=f"{label}{part} in channel")
    total = [a + b for a, b in zip(found[MOVED[1]], found[MOVED[3]], strict=True)]
    ax.plot(at, total, line, color="0.5", label=f"{label}all in reservoir")
    ax.set(xscale="log", xlabel=along, ylabel="mean square of its part of the test fit")


def _finish(axes: Any) -> None:
    for ax in axes:
        ax.legend(frameon=False, fontsize=7)
        ax.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    append_missing(PATH, runs(), KEYS, train, *map(int, sys.argv[1:]))
    figures()
