"""A neural field on minibatches of an image's pixels: does the published rule hold noise back?

    python -m benchmarks.paper.pixels [JOBS]

appends to benchmarks/results/pixels.csv. SIREN and 64 x 64 crops of :mod:`benchmarks.images`, noise
of 25 grey levels, 512 of the 4,096 pixels in every step, without replacement: eight passes of the
image are 64 steps. Every method at three learning rates on every image.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import mean
from typing import Any

import numpy as np
import torch

from benchmarks import text
from benchmarks.harness import RESULTS, append_missing, read
from benchmarks.images import CORNERS, SIZE, Siren, crop
from sciml_snr import NoisyLoss, SNRAdam
from sciml_snr.measure.twins import memorized_share

PATH = RESULTS / "pixels.csv"
KEYS = ("image", "method", "lr", "seed", "steps")
NOISE, BATCH, STEPS, EVERY = 25, 512, 4000, 20
RATES = (1e-4, 3e-4, 1e-3)
LONG = 20_000
LONG_RUNS = {
    "Adam": 1e-3,
    "published rule, soft": 3e-4,
    "published rule, soft, lambda 0": 1e-4,
    "label floor": 3e-4,
}
"""What is trained five times as long, at the rate of the best end after 4,000 steps."""


@dataclass(frozen=True)
class Run:
    """One fit."""

    image: str
    method: str
    lr: float
    seed: int = 0
    steps: int = STEPS


def _snr(**options: Any) -> Callable[..., Any]:
    return lambda params, loss, lr: SNRAdam(params, lr=lr, **options)


METHODS: dict[str, Callable[..., Any]] = {
    "Adam": lambda params, loss, lr: torch.optim.Adam(params, lr=lr),
    "published rule, snr": _snr(gate="snr"),
    "published rule, soft": _snr(gate="soft"),
    "published rule, soft, lambda 0": _snr(gate="soft", lambd=0.0),
    "published rule, hard, alpha = b / (n - b)": _snr(
        gate="hard", alpha="finite", batch_size=BATCH, data_size=SIZE**2
    ),
    "label floor": lambda params, loss, lr: SNRAdam(params, lr=lr, noise=loss),
}


def fit(run: Run) -> dict[str, Any]:
    """One fit on one thread."""
    torch.set_num_threads(1)
    clean = crop(run.image).reshape(-1, 1)
    scale = NOISE / 127.5
    noisy = clean + scale * np.random.default_rng(run.seed).normal(size=clean.shape)
    axis = torch.linspace(-1, 1, SIZE)
    x, y = torch.cartesian_prod(axis, axis), torch.as_tensor(noisy, dtype=torch.float32)
    torch.manual_seed(run.seed)
    net = Siren()
    loss = NoisyLoss(scale, population=len(x))
    optimizer = METHODS[run.method](net.parameters(), loss, run.lr)
    best = (-math.inf, 0)
    psnr = memorized = math.nan
    started = time.process_time()
    for step in range(1, run.steps + 1):
        rows = torch.randperm(len(x))[:BATCH]
        optimizer.zero_grad()
        loss(net(x[rows]), y[rows]).backward()
        optimizer.step()
        if step % EVERY == 0:
            with torch.no_grad():
                found = net(x).numpy()
            error = np.clip(found, -1, 1) - clean
            psnr = 10 * math.log10(4 / float((error**2).mean()))
            memorized = memorized_share(found, clean, noisy)
            best = max(best, (psnr, step))
    return {
        **{key: str(value) for key, value in asdict(run).items()},
        "final_psnr": psnr,
        "best_psnr": best[0],
        "best_step": best[1],
        "memorized": memorized,
        "cpu_seconds": time.process_time() - started,
    }


def _means(steps: int) -> dict[tuple[str, str], tuple[float, float, float]]:
    """(method, lr) -> final PSNR, best PSNR and memorized share after so many steps: means over
    the images, of those that were fitted to all of them."""
    rows = [row for row in read(PATH) if row["steps"] == str(steps)]
    columns = ("final_psnr", "best_psnr", "memorized")
    found = {}
    for (method, lr), own in text.groups(rows, "method", "lr").items():
        if len(own) == len(CORNERS):
            final, best, share = (mean(text.column(own, name)) for name in columns)
            found[method, lr] = (final, best, share)
    return found


def table() -> str:
    """Every method and rate: final and best PSNR and memorized share."""
    lines = []
    means = _means(STEPS)
    for method in METHODS:
        for lr in RATES:
            if (method, str(lr)) in means:
                final, best, share = means[method, str(lr)]
                cells = [f"{final:.2f}", f"{best:.2f}", text.percent(share)]
                lines.append([method, f"{lr:g}", *cells])
    titles = f"method|lr|PSNR after {STEPS:,} steps|best on the way|noise memorized"
    return text.table(titles, lines)


def long_table() -> str:
    """The longer runs beside those of 4,000 steps."""
    lines = []
    short, long = _means(STEPS), _means(LONG)
    for method, lr in LONG_RUNS.items():
        key = (method, str(lr))
        if key in short and key in long:
            psnrs = [f"{means[key][0]:.2f}" for means in (short, long)]
            shares = [text.percent(means[key][2]) for means in (short, long)]
            lines.append([method, f"{lr:g}", *psnrs, *shares])
    titles = f"method|lr|PSNR after {STEPS:,} steps|after {LONG:,}|noise memorized, {STEPS:,}|"
    return text.table(titles + f"{LONG:,}", lines)


def claim() -> str:
    """Adam, the rule and the label floor, each at the rate of the best end."""
    found: dict[str, tuple[float, float]] = {}
    for (method, _), (psnr, _, share) in _means(STEPS).items():
        found[method] = max(found.get(method, (-math.inf, 0.0)), (psnr, share))
    if len(found) < len(METHODS):
        return "not yet run"
    rule = max((m for m in found if m.startswith("published")), key=lambda m: found[m])

    def one(method: str) -> str:
        return f"{found[method][0]:.2f} dB, {text.percent(found[method][1])} memorized"

    return (
        f"after {STEPS:,} steps, best rates: Adam {one('Adam')}; {rule} {one(rule)}; "
        f"label floor {one('label floor')}"
    )


def main(jobs: int | None = None) -> None:
    """Measure what is missing."""
    runs = [Run(image, method, lr) for lr in RATES for method in METHODS for image in CORNERS]
    runs += [
        Run(image, method, lr, steps=LONG) for method, lr in LONG_RUNS.items() for image in CORNERS
    ]
    append_missing(PATH, runs, KEYS, fit, jobs)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
