"""How well memorization is measured without the truth: by twins, and from the training batches.

    python -m benchmarks.memorization [JOBS]

appends to benchmarks/results/memorization.csv; `python -m benchmarks.report` makes the tables from
it. Small networks and images, so that many noise draws are cheap: a PINN (convection) and SIRENs
(32 x 32 crops), full batch. Every run is measured by one twin, and the first draws by
leave-one-out too, with the labels' error and without it; the truth is known, and tells how right
they are. The runs "fresh ..." see every sample once: there leave-one-out is to be unbiased.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import deepxde as dde
import numpy as np
import torch
from sciml_snr.problems import Convection
from torch import Tensor

from benchmarks import text
from benchmarks.harness import RESULTS, append_missing, read
from benchmarks.images import METHODS as IMAGE_METHODS
from benchmarks.images import crop
from sciml_snr import (
    MemorizationMonitor,
    NoisyTerm,
    PopulationRisk,
    PopulationRiskMonitor,
    SNRAdam,
    Twins,
)
from sciml_snr.fields import Siren

PATH = RESULTS / "memorization.csv"
KEYS = ("case", "method", "lr", "seed")
DRAWS = {"convection": 20, "camera": 20, "coins": 10, "astronaut": 10}
"""Noise draws per case."""
LEAVE_ONE_OUT = {"convection": 3, "image": 10}
"""So many of them are measured by leave-one-out too; an iteration of a PINN then costs double."""
LRS = {
    ("convection", "Adam"): 1e-2,
    ("convection", "SNRAdam"): 1e-2,
    ("image", "Adam"): 3e-4,
    ("image", "SNRAdam"): 3e-4,
}
STEPS = {"convection": 1500, "image": 400}
MOMENTS = 50
"""Measurements along a run."""
SIZE, NOISE = 32, 25 / 127.5
FRESH = {
    "SGD": (lambda params: torch.optim.SGD(params, lr=2e-3, momentum=0.9), 2e-3),
    "Adam": (lambda params: torch.optim.Adam(params, lr=1e-3), 1e-3),
    "SNRAdam": (lambda params: SNRAdam(params, lr=1e-3, gate="snr"), 1e-3),
}
"""On fresh batches: the optimizer and its learning rate."""
FRESH_STEPS = 300


@dataclass(frozen=True)
class Draw:
    """One run on one noise draw."""

    case: str
    method: str
    lr: float
    seed: int


def run(draw: Draw) -> dict[str, Any]:
    """Train it in this process, on one thread."""
    torch.set_num_threads(1)
    kind = draw.case.split()[0]
    measure = {"convection": convection, "fresh": fresh}.get(kind, image)
    return {key: str(value) for key, value in asdict(draw).items()} | measure(draw)


def convection(draw: Draw) -> dict[str, Any]:
    """Periodic transport of noisy initial values."""
    dde.config.set_random_seed(draw.seed)
    problem = Convection(seed=draw.seed)
    model = problem.model(dde.nn.FNN([2, 32, 32, 1], "tanh", "Glorot normal"))
    name = {"Adam": "adam", "SNRAdam": "snr_adam"}[draw.method]
    model.compile(name, lr=draw.lr, loss_weights=problem.loss_weights(), verbose=0)
    clean, steps = problem.observations.clean, STEPS["convection"]
    twin = MemorizationMonitor(period=steps // MOMENTS, clean=clean, seed=draw.seed)
    left_out = [PopulationRiskMonitor(), PopulationRiskMonitor(fresh=True)]
    left_out = left_out if draw.seed < LEAVE_ONE_OUT["convection"] else []
    model.train(iterations=steps, display_every=steps + 1, callbacks=[twin, *left_out], verbose=0)
    return row_of(twin.twins, *(monitor.risk for monitor in left_out))


def image(draw: Draw) -> dict[str, Any]:
    """A SIREN on a crop with noise of 25 grey levels."""
    clean = crop(draw.case)[16:48, 16:48].reshape(-1, 1)
    y = clean + NOISE * np.random.default_rng(draw.seed).normal(size=clean.shape)
    twins = Twins(y, NOISE, seed=draw.seed, clean=clean)
    axis = torch.linspace(-1, 1, SIZE)
    x = torch.cartesian_prod(axis, axis)
    targets = [torch.as_tensor(t, dtype=torch.float32) for t in (y, *twins.labels)]
    build = IMAGE_METHODS[{"Adam": "Adam", "SNRAdam": "SNRAdam, label floor"}[draw.method]]
    nets, optimizers = [], []
    for _ in targets:
        torch.manual_seed(draw.seed)  # the draws' signs are the twin's too
        nets.append(Siren(2, 1, 64, 2))
        optimizers.append(build(list(nets[-1].parameters()), draw.lr, NOISE))
    left_out = [PopulationRisk(optimizers[0][0]) for _ in range(2)]
    left_out = left_out if draw.seed < LEAVE_ONE_OUT["image"] else []

    def parts() -> list[tuple[Tensor, None, list[NoisyTerm] | None]]:
        residual = nets[0](x) - targets[0]
        losses = residual.square().mean(1)
        return [(losses, None, [NoisyTerm(residual, NOISE)]), (losses, None, None)]

    for step in range(STEPS["image"] + 1):
        if step % (STEPS["image"] // MOMENTS) == 0:
            twins.record(step, nets[0](x), [net(x) for net in nets[1:]])
        if step == STEPS["image"]:
            break
        for estimate, part in zip(left_out, parts(), strict=False):
            estimate.begin(*part)
        for net, target, (optimizer, loss) in zip(nets, targets, optimizers, strict=True):
            optimizer.zero_grad()
            loss(net(x), target).backward()
            optimizer.step()
        for estimate, part in zip(left_out, parts(), strict=False):
            estimate.end(*part)
    return row_of(twins, *left_out)


def row_of(twins: Twins, *left_out: PopulationRisk) -> dict[str, Any]:
    """What was estimated, what was true, and where each estimate would have stopped.

    Args:
        twins: of the run.
        left_out: its leave-one-out with the labels' error, and without; or none.
    """
    last, best = twins.rows[-1], twins.best()
    oracle = min(twins.rows, key=lambda row: row.true_risk)

    def curve(name: str) -> str:
        return json.dumps([float(f"{getattr(row, name):.4g}") for row in twins.rows])

    low, high = last.interval()
    stops = {"oracle": oracle, "sure": best}
    for name, estimate in zip(("labels", "samples"), left_out, strict=False):
        step = estimate.best_step
        stops[name] = min(twins.rows, key=lambda row: abs(row.iteration - step))
    row = empty()
    for name, moment in stops.items():
        row |= {f"{name}_step": moment.iteration, f"{name}_risk": moment.true_risk}
    return row | {
        "share": last.share,
        "share_se": last.share_se,
        "true_share": last.true_share,
        "in_interval": int(low <= last.true_share <= high),
        "risk": last.risk,
        "risk_se": last.risk_se,
        "true_risk": last.true_risk,
        "shares": curve("share"),
        "true_shares": curve("true_share"),
    }


def empty() -> dict[str, Any]:
    """All columns of measurements."""
    names = "share share_se true_share in_interval risk risk_se true_risk shares true_shares"
    rules = ("oracle", "sure", "labels", "samples")
    stops = [f"{rule}_{column}" for rule in rules for column in ("step", "risk")]
    changes = ["change", "change_se", "training_change", "true_change"]
    return dict.fromkeys([*names.split(), *stops, *changes], "")


def fresh(draw: Draw) -> dict[str, Any]:
    """A SIREN on sin(5 x) cos(3 y), 64 new points with new noise in every step."""
    rng = torch.Generator().manual_seed(draw.seed)

    def sample(n: int) -> tuple[Tensor, Tensor]:
        x = 2 * torch.rand(n, 2, generator=rng) - 1
        return x, torch.sin(5 * x[:, :1]) * torch.cos(3 * x[:, 1:])

    torch.manual_seed(draw.seed)
    net = Siren(2, 1, 32, 2, first_omega_0=5.0, hidden_omega_0=5.0)
    make: Callable[..., Any] = FRESH[draw.method][0]
    estimate = PopulationRisk(make(list(net.parameters())), seed=draw.seed)
    held_x, held_u = sample(4000)

    def held_out() -> float:
        with torch.no_grad():
            return float((net(held_x) - held_u).square().mean())

    start = held_out()
    for _ in range(FRESH_STEPS):
        x, u = sample(64)
        y = u + torch.randn(u.shape, generator=rng)
        estimate.step(lambda x=x, y=y: (net(x) - y).square().mean(1))
    last = estimate.rows[-1]
    return empty() | {
        "change": last.change,
        "change_se": last.se,
        "training_change": last.training,
        "true_change": held_out() - start,
    }


def draws() -> list[Draw]:
    """Seed by seed, so that a stop leaves whole comparisons."""
    found = []
    for seed in range(max(DRAWS.values())):
        for case, count in DRAWS.items():
            for method in ("Adam", "SNRAdam"):
                lr = LRS["convection" if case == "convection" else "image", method]
                found += [Draw(case, method, lr, seed)] if seed < count else []
        found += [Draw("fresh SIREN", name, lr, seed) for name, (_, lr) in FRESH.items()]
    return found


def shares() -> str:
    """The twin's share against the true one over noise draws."""
    lines = []
    for (case, method), rows in _groups(fresh=False).items():
        found, true = _column(rows, "share"), _column(rows, "true_share")
        curves = [
            np.mean([json.loads(row[name]) for row in rows], axis=0)
            for name in ("shares", "true_shares")
        ]
        inside = int(sum(_column(rows, "in_interval")))
        cells = [text.percent(x.mean(), 1) for x in (found, true)]
        cells += [f"{_in_errors(found - true):+.1f}", f"{inside} of {len(rows)}"]
        cells += [f"{np.corrcoef(*curves)[0, 1]:.3f}"]
        lines.append([case, method, str(len(rows)), *cells])
    titles = "case|method|draws|twin: df / n|true share|difference / its standard error|"
    titles += "true one in the 95 % interval|correlation over the run"
    return text.table(titles, lines)


def stops() -> str:
    """True risk where each rule stops, over the lowest of the run."""
    rules = {
        "sure": "SURE, twin",
        "labels": "leave-one-out, labels' error",
        "samples": "leave-one-out, samples",
        "true": "no stop",
    }
    lines = []
    for (case, method), rows in _groups(fresh=False).items():
        rows = [row for row in rows if int(row["seed"]) < 10]
        cells = []
        for rule in rules:
            own = [row for row in rows if row[f"{rule}_risk"]]
            ratio = _column(own, f"{rule}_risk") / _column(own, "oracle_risk")
            seeds = "" if len(own) == len(rows) else f", {len(own)} seeds"
            cells.append(
                f"{np.median(ratio):.2f} ({ratio.min():.2f} to {ratio.max():.2f}{seeds})"
                if own
                else ""
            )
        lines.append([case, method, str(len(rows)), *cells])
    return text.table(("case", "method", "seeds", *rules.values()), lines)


def fresh_batches() -> str:
    """Leave-one-out against the held-out risk where every sample is seen once."""
    lines = []
    for (_, method), rows in _groups(fresh=True).items():
        names = ("true_change", "change", "training_change")
        true, found, own = (_column(rows, name) for name in names)
        cells = [f"{x.mean():+.3f}" for x in (true, found, own)]
        scatter = (found - true).std(ddof=1) / _column(rows, "change_se").mean()
        cells += [f"{_in_errors(found - true):+.1f}", f"{scatter:.2f}"]
        lines.append([method, str(len(rows)), *cells])
    titles = "optimizer|runs|held-out risk, change|leave-one-out|the batches' own view|"
    titles += "difference / its standard error|scatter / stated standard error"
    return text.table(titles, lines)


def _groups(fresh: bool) -> dict[tuple[str, ...], text.Rows]:
    """(case, method) -> its rows."""
    rows = [row for row in read(PATH) if row["case"].startswith("fresh") == fresh]
    return text.groups(rows, "case", "method")


def _column(rows: text.Rows, name: str) -> Any:
    return np.array(text.column(rows, name))


def _in_errors(differences: Any) -> float:
    """Their mean in units of its standard error."""
    return float(differences.mean() / differences.std(ddof=1) * len(differences) ** 0.5)


if __name__ == "__main__":
    append_missing(PATH, draws(), KEYS, run, *map(int, sys.argv[1:]))
