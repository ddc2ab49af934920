"""SIREN on noisy 64 x 64 crops: the oracle-stopped Adam, stopping rules, the gates.

    python -m benchmarks.images [JOBS]

appends to benchmarks/results/images.csv; `python -m benchmarks.report` makes the tables from it.
One row per run: PSNR against the clean crop at the end, at the best moment and at the moments that
stopping rules choose (from what they may know: misfit, a twin run, held-out pixels).
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import mean, median
from typing import Any

import numpy as np
import skimage.color
import skimage.data
import torch
from torch import Tensor, nn

from benchmarks import text
from benchmarks.harness import RESULTS, append_missing, read
from sciml_snr import SNRSOAP, NoisyLoss, SNRAdam, estimate_sigma_image
from sciml_snr.measure.twins import memorized_share

PATH = RESULTS / "images.csv"
SIZE = 64
CORNERS = {"camera": (96, 224), "coins": (100, 150), "astronaut": (60, 190)}
NOISES = (15, 25, 50)
TWIN_LR = 1e-4
"""Adam's learning rate with a twin run."""
ADAM_LRS = {3e-5: 1000, 1e-4: 500, 3e-4: 500}
"""Learning rates, and how many of Adam's iterations take each past its best moment."""
OURS = {"SNRAdam": 3e-5, "SNRSOAP": 1e-4}
"""Ours, and the learning rates of all draws; the other rates on the first one only."""
KEYS = ("image", "noise", "seed", "method", "lr", "iterations", "sigma")
KEPT = ("final_psnr", "best_psnr", "memorized")


@dataclass(frozen=True)
class Run:
    """One fit: ``noise`` in grey levels of 255; ``sigma`` scales what the method is told of it."""

    image: str
    noise: int
    seed: int
    method: str
    lr: float
    iterations: int
    sigma: str = "1"
    """A factor, or "estimated"."""


class Siren(nn.Module):
    """Sine network of Sitzmann et al., NeurIPS 2020, arXiv:2006.09661: 3 hidden layers of 128."""

    def __init__(self, width: int = 128, omega: float = 30.0) -> None:
        super().__init__()
        self.omega = omega
        self.layers = nn.ModuleList(
            nn.Linear(m, n) for m, n in ((2, width), (width, width), (width, width), (width, 1))
        )
        for i, layer in enumerate(self.layers):
            bound = 1 / 2 if i == 0 else math.sqrt(6 / width) / omega
            nn.init.uniform_(layer.weight, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """(n, 2) positions in [-1, 1] -> (n, 1)."""
        for layer in self.layers[:-1]:
            x = torch.sin(self.omega * layer(x))
        return self.layers[-1](x)  # type: ignore[no-any-return]


def crop(name: str) -> np.ndarray[Any, Any]:
    """(64, 64) grey values in [-1, 1]."""
    image = getattr(skimage.data, name)()
    image = skimage.color.rgb2gray(image) * 255.0 if image.ndim == 3 else image.astype(float)
    row, col = CORNERS[name]
    return image[row : row + SIZE, col : col + SIZE] / 127.5 - 1


def label_gated(cls: Any, **gate: Any) -> Callable[..., Any]:
    """An optimizer of ours, and the loss whose noise it knows."""

    def build(params: list[Tensor], lr: float, sigma: float) -> tuple[Any, nn.Module]:
        loss = NoisyLoss(sigma)
        return cls(params, lr=lr, noise=loss, gate=gate or None, floor_every=10), loss

    return build


def plain(cls: Any, **options: Any) -> Callable[..., Any]:
    """An optimizer that knows nothing of the noise."""
    return lambda params, lr, sigma: (cls(params, lr=lr, **options), nn.MSELoss())


CONSTANT = {"rise_steps": 0, "discrepancy": False}


METHODS: dict[str, Callable[..., Any]] = {
    "Adam": plain(torch.optim.Adam),
    "Adam, 10 % held out": plain(torch.optim.Adam),
    "SNRAdam, label floor": label_gated(SNRAdam),
    "SNRSOAP, label floor": label_gated(SNRSOAP),
    "SNRAdam, constant gate": label_gated(SNRAdam, **CONSTANT),
    "SNRSOAP, constant gate": label_gated(SNRSOAP, **CONSTANT),
    "SNRAdam, published rule, soft": plain(SNRAdam, gate="soft"),
    "SNRAdam, published rule, hard": plain(SNRAdam, gate="hard"),
    "SNRAdam, published rule, snr": plain(SNRAdam, gate="snr"),
}


def fit(run: Run) -> dict[str, Any]:
    """Train it in this process, on one thread."""
    torch.set_num_threads(1)
    clean = crop(run.image).reshape(-1, 1)
    scale = run.noise / 127.5
    noisy = clean + scale * np.random.default_rng(run.seed).normal(size=clean.shape)
    told = (
        scale * float(run.sigma)
        if run.sigma != "estimated"
        else float(estimate_sigma_image(noisy.reshape(SIZE, SIZE)))
    )
    axis = torch.linspace(-1, 1, SIZE)
    x = torch.cartesian_prod(axis, axis)
    y = torch.as_tensor(noisy, dtype=torch.float32)
    kept = torch.ones(len(x), dtype=torch.bool)
    if "held out" in run.method:
        kept = torch.rand(len(x), generator=torch.Generator().manual_seed(run.seed)) > 0.1
    # The twin sees its labels moved by random signs: SURE's degrees of freedom (Ramani 2008).
    signs = (
        torch.randint(0, 2, y.shape, generator=torch.Generator().manual_seed(run.seed)) * 2.0 - 1
    )
    tau = 0.1 * scale
    targets = [y, y + tau * signs] if run.method == "Adam" and run.lr == TWIN_LR else [y]
    nets, optimizers = [], []
    for _ in targets:
        torch.manual_seed(run.seed)
        nets.append(Siren())
        optimizers.append(METHODS[run.method](list(nets[-1].parameters()), run.lr, told))
    rows: list[dict[str, float]] = []
    started = time.perf_counter()
    for iteration in range(run.iterations + 1):
        if iteration == run.iterations or iteration % (5 if iteration < 400 else 50) == 0:
            with torch.no_grad():
                fits = [net(x) for net in nets]
            error = np.clip(fits[0].numpy(), -1, 1) - clean
            residual = fits[0] - y
            row = {
                "iteration": iteration,
                "psnr": 10 * math.log10(4 / float((error**2).mean())),
                "memorized": memorized_share(fits[0].numpy(), clean, noisy),
                "misfit": float((residual[kept] ** 2).mean()) / told**2,
                "held_out": float((residual[~kept] ** 2).mean()) if not kept.all() else math.nan,
            }
            if len(nets) > 1:
                df = float((signs * (fits[1] - fits[0])).mean()) / tau
                row["sure"] = float((residual**2).mean()) + 2 * told**2 * df
            rows.append(row)
        if iteration == run.iterations:
            break
        for net, target, (optimizer, loss) in zip(nets, targets, optimizers, strict=True):
            optimizer.zero_grad()
            loss(net(x[kept]), target[kept]).backward()
            optimizer.step()
    best = max(rows, key=lambda row: row["psnr"])
    within = next((row for row in rows if row["misfit"] <= 1), rows[-1])
    stops = {
        "discrepancy": within["psnr"],
        "held_out": "" if kept.all() else min(rows, key=lambda row: row["held_out"])["psnr"],
        "sure": min(rows, key=lambda row: row["sure"])["psnr"] if len(nets) > 1 else "",
    }
    return {
        **{key: str(value) for key, value in asdict(run).items()},
        "final_psnr": rows[-1]["psnr"],
        "best_psnr": best["psnr"],
        "best_iteration": best["iteration"],
        "memorized": rows[-1]["memorized"],
        "told_sigma": told / 2 * 255,
        **{f"{name}_psnr": value for name, value in stops.items()},
        "seconds": time.perf_counter() - started,
    }


def runs() -> list[Run]:
    """Cell by cell, so that a stop leaves whole comparisons; SNRSOAP's further draws come last."""
    found, later = [], []
    for seed in range(5):
        for noise in NOISES:
            for image in CORNERS:
                cell = (image, noise, seed)
                found += [Run(*cell, "Adam", lr, count) for lr, count in ADAM_LRS.items()]
                found += [Run(*cell, "Adam, 10 % held out", 1e-4, 300)]
                found += [Run(*cell, "SNRAdam, label floor", OURS["SNRAdam"], 5000)]
                later += [Run(*cell, "SNRSOAP, label floor", OURS["SNRSOAP"], 5000)]
                if seed == 0:
                    found += [
                        Run(*cell, f"{cls}, label floor", lr, 5000)
                        for cls, own in OURS.items()
                        for lr in ADAM_LRS
                        if lr != own
                    ]
                    found += [Run(*cell, f"{cls}, constant gate", 1e-4, 5000) for cls in OURS]
                if (image, noise, seed) == ("camera", 25, 0):
                    found += [
                        Run(*cell, f"SNRAdam, published rule, {gate}", 1e-4, 1500)
                        for gate in ("soft", "hard", "snr")
                    ]
                    found += [
                        Run(*cell, method, 1e-4, 2000, sigma)
                        for method in ("SNRAdam, label floor", "SNRSOAP, label floor")
                        for sigma in ("estimated", "0.7", "1.4")
                    ]
    return found + later


def cells() -> str:
    """PSNR by image and noise: Adam's oracle, its stopping rules, and what ours ends with."""
    lines = []
    for image, noise, draws in _cells():
        whole = [own for draw in draws.values() if "oracle" in (own := _scores(draw))]
        if whole:
            names = ("oracle", *text.STOPS)
            stopped = [f"{median(own[name] for own in whole):.2f}" for name in names]
            found = [image, noise, str(len(whole)), *stopped]
            for cls, lr in OURS.items():
                known = [_kept(row) for d in draws.values() if (row := _ours(d, cls, lr))]
                middle = _cell(*map(median, zip(*known, strict=True))) if known else ""
                found += [middle, str(len(known))]
            lines.append(found)
    titles = ["image", "noise", "draws", "Adam's oracle", *text.STOPS.values()]
    for cls in OURS:
        titles += [f"{cls}, label floor: final (best), memorized", "draws"]
    return text.table(titles, lines)


def rates() -> str:
    """What ours ends with less Adam's oracle of the same draw, by learning rate."""
    lines = []
    for cls in OURS:
        for lr in ADAM_LRS:
            differences = [
                float(row["final_psnr"]) - _scores(draw)["oracle"]
                for *_, draws in _cells()
                for draw in draws.values()
                if (row := _ours(draw, cls, lr)) and "oracle" in _scores(draw)
            ]
            if differences:
                near, above = (sum(d > least for d in differences) for least in (-0.3, 0))
                numbers = (f"{x:+.2f}" for x in (mean(differences), min(differences)))
                counts = (str(x) for x in (len(differences), near, above))
                lines.append([cls, f"{lr:g}", *counts, *numbers])
    titles = "optimizer|lr|fits|within 0.3 dB of the oracle|above it|mean difference, dB|least"
    return text.table(titles, lines)


Draw = list[dict[str, str]]
"""The rows of one noise draw of a cell."""


def _cells() -> list[tuple[str, str, dict[str, Draw]]]:
    """Image, noise, and the draws by seed; sigma given."""
    found = []
    for noise in map(str, NOISES):
        for image in CORNERS:
            draws: dict[str, Draw] = {}
            for row in read(PATH):
                if (row["image"], row["noise"], row["sigma"]) == (image, noise, "1"):
                    draws.setdefault(row["seed"], []).append(row)
            found.append((image, noise, draws))
    return found


def _ours(draw: Draw, cls: str, lr: float) -> dict[str, str]:
    """Its long fit at this rate; empty where it has not been run."""
    which = (f"{cls}, label floor", lr, "5000")
    return next((r for r in draw if (r["method"], float(r["lr"]), r["iterations"]) == which), {})


def gates() -> str:
    """The gate of constant threshold against the package's, at the same rate."""
    rows = [row for row in read(PATH) if row["sigma"] == "1" and row["iterations"] == "5000"]
    lines = []
    for (image, noise), own in text.groups(rows, "image", "noise").items():
        found = {r["method"]: r for r in own if (float(r["lr"]), r["seed"]) == (1e-4, "0")}
        names = [f"{cls}, {gate}" for cls in OURS for gate in ("constant gate", "label floor")]
        if found.keys() >= set(names):
            lines.append([image, noise, *(_cell(*_kept(found[name])) for name in names)])
    titles = [f"{cls}, {what}" for cls in OURS for what in ("z = 2 throughout", "default")]
    return text.table(["image", "noise", *titles], lines)


def _kept(row: dict[str, str]) -> list[float]:
    return [float(row[name]) for name in KEPT]


def _scores(draw: Draw) -> dict[str, float]:
    """Adam's oracle and every stopping rule, each at its best rate (by the truth); empty where one
    has not been run."""
    adam = [row for row in draw if row["method"] == "Adam"]
    if {(float(row["lr"]), int(row["iterations"])) for row in adam} != set(ADAM_LRS.items()):
        return {}
    found = {"oracle": max(float(row["best_psnr"]) for row in adam)}
    for rule in text.STOPS:
        rows = draw if rule == "held_out" else adam
        known = [float(row[f"{rule}_psnr"]) for row in rows if row[f"{rule}_psnr"]]
        if not known:
            return {}
        found[rule] = max(known)
    return found


def sigmas() -> str:
    """What a wrong or estimated sigma, or the published rule, does to one cell."""
    lines = []
    for row in read(PATH):
        cell = (row["image"], row["noise"], row["seed"])
        if cell == ("camera", "25", "0") and "Adam," not in row["method"].replace("SNRAdam", ""):
            told = {"1": "true"}.get(row["sigma"], row["sigma"])
            told += "" if row["sigma"] == "1" else f": {float(row['told_sigma']):.1f}"
            lines.append([f"{row['method']}, lr {row['lr']}", told, _cell(*_kept(row))])
    return text.table("method|sigma told|final (best) PSNR, memorized", lines)


def _cell(final: float, best: float, memorized: float) -> str:
    return f"{final:.2f} ({best:.2f}), {text.percent(memorized)}"


if __name__ == "__main__":
    append_missing(PATH, runs(), KEYS, fit, *map(int, sys.argv[1:]))
