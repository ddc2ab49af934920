"""Error bars of images: do they hold, and do they know where the fit is wrong? Against ensembles.

    python -m benchmarks.image_bars [SEEDS]

appends to benchmarks/results/image_bars.csv. The middles, 64 x 64, of the images of
benchmarks/smooth_images.py, white noise of 25, whose size nobody is told. *ours*: ``fit_image`` and
``fit.error_bars()``, from one twin or from four, which take as long as an ensemble. *ensemble*:
five networks from different starts by Adam, their mean, and Student's t with 4 degrees of freedom
(B. Lakshminarayanan, A. Pritzel and C. Blundell, NeurIPS 2017). Their number of steps is of the
three that are tried the one of the highest PSNR of the mean, which only the clean image can tell.
"""

from __future__ import annotations

import sys
import time
import warnings
from dataclasses import asdict, dataclass
from statistics import mean, median
from typing import Any

import numpy as np
import torch
from scipy import stats

from benchmarks import smooth_images, text
from benchmarks.fit_images import scores
from benchmarks.harness import RESULTS, append_missing, read
from sciml_snr.fields import fit_image

PATH = RESULTS / "image_bars.csv"
KEYS = ("image", "method", "seed")
IMAGES = (*smooth_images.CORNERS, *smooth_images.DRAWN)
SIDE, NOISE, LEVEL = 64, smooth_images.NOISE, 0.9
BLOCK = 8
"""Pixels to a side of the blocks whose mean errors are compared, too."""
NETWORKS = 5
STEPS = (75, 150, 300)
"""Of Adam; ``fit_image`` takes 300 for so small an image."""
ENSEMBLES = {f"ensemble, {steps} steps": steps for steps in STEPS}
TWINS = {"ours": 1, "ours, 4 twins": 4}
METHODS = (*TWINS, *ENSEMBLES)
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Run:
    """One method on one draw of an image."""

    image: str
    method: str
    seed: int


def fit(run: Run) -> dict[str, Any]:
    """One row."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    margin = (smooth_images.SIDE - SIDE) // 2
    clean = smooth_images.crop(run.image)[margin:-margin, margin:-margin]
    noisy = clean + NOISE * np.random.default_rng(run.seed).normal(size=clean.shape)
    started = time.process_time()
    common: dict[str, Any] = {"device": "cpu", "progress": False}
    if run.method in TWINS:
        fitted = fit_image(noisy, seed=run.seed, **common)
        bars = fitted.error_bars(probes=TWINS[run.method], progress=False)
        found, errors = fitted.render(), bars(fitted.pixel_centers())[:, 0].reshape(clean.shape)
        factor = bars.quantile(LEVEL)
    else:
        every = [
            fit_image(
                noisy, seed=100 * run.seed + i, optimizer="adam", steps=ENSEMBLES[run.method],
                **common,
            ).render()
            for i in range(NETWORKS)
        ]  # fmt: skip
        found, errors = np.mean(every, axis=0), np.std(every, axis=0, ddof=1)
        factor = float(stats.t(NETWORKS - 1).ppf((1 + LEVEL) / 2))
    off = np.abs(found - clean)
    return {
        **{name: str(value) for name, value in asdict(run).items()},
        "psnr": scores(found, clean)["psnr"],
        "held": float((off <= factor * errors).mean()),
        "half_width": float(factor * np.sqrt((errors**2).mean())),
        "stated_over_true": float(np.sqrt((errors**2).mean() / (off**2).mean())),
        "correlation": float(stats.spearmanr(off.ravel(), errors.ravel()).statistic),
        "block_correlation": float(stats.spearmanr(*map(blocks, (off, errors))).statistic),
        "cpu_seconds": round(time.process_time() - started, 1),
    }


def blocks(errors: Array) -> Array:
    """Root mean squares over blocks, one after the other."""
    n = SIDE // BLOCK
    found: Array = np.sqrt((errors**2).reshape(n, BLOCK, n, BLOCK).mean(axis=(1, 3))).ravel()
    return found


def table() -> str:
    """Medians over images and draws; for an ensemble, of each draw the steps of its best PSNR."""
    every = [dict(row) for row in read(PATH)]
    cells = sorted({(row["image"], row["seed"]) for row in every})
    chosen: dict[str, list[dict[str, str]]] = {
        name: [] for name in (*TWINS, "ensemble", *ENSEMBLES)
    }
    for image, seed in cells:
        here = {r["method"]: r for r in every if (r["image"], r["seed"]) == (image, seed)}
        if not set(here) >= {"ours", *ENSEMBLES}:
            continue
        for name, row in here.items():
            chosen[name].append(row)
        chosen["ensemble"].append(max((here[n] for n in ENSEMBLES), key=lambda r: float(r["psnr"])))
    lines = []
    for name, rows in chosen.items():
        if not rows:
            continue

        def of(column: str, rows: list[dict[str, str]] = rows) -> list[float]:
            return [float(row[column]) for row in rows]

        held = [100 * share for share in of("held")]
        lines.append(
            [
                "ensemble, its best steps" if name == "ensemble" else name,
                str(len(rows)),
                f"{median(of('psnr')):.2f}",
                f"{mean(held):.0f} % ({min(held):.0f} to {max(held):.0f})",
                f"{median(of('half_width')):.1f}",
                f"{median(of('stated_over_true')):.2f}",
                f"{median(of('correlation')):.2f}",
                f"{median(of('block_correlation')):.2f}",
                f"{median(of('cpu_seconds')):.0f}",
            ]
        )
    titles = (
        "method|images|PSNR|pixels inside the 90 % band, mean (range)|its half width|stated over "
        "true error|rank correlation of both, pixels|blocks of 8 x 8|CPU seconds"
    )
    return text.table(titles, lines)


if __name__ == "__main__":
    seeds = int(sys.argv[1]) if sys.argv[1:] else 2
    runs = [Run(image, method, k) for k in range(seeds) for image in IMAGES for method in METHODS]
    append_missing(PATH, runs, KEYS, fit, 1)
    print(table())
