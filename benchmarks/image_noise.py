"""Images with noise that is not white, which `fit_image` looks at before the fit.

    python -m benchmarks.image_noise [JOBS]

appends to benchmarks/results/image_noise.csv. Crops of 128 x 128, nobody is told sigma. *auto*:
``fit_image`` as it comes; *white*: the noise is taken for independent errors; *adam*: the same
network by Adam, whose best moment only the clean image can tell.
"""

from __future__ import annotations

import sys
import time
import warnings
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import numpy as np
import scipy.ndimage
import skimage.data
import torch

from benchmarks import text
from benchmarks.harness import RESULTS, append_missing, read
from sciml_snr.fields import fit_image
from sciml_snr.measure.twins import memorized_share

PATH = RESULTS / "image_noise.csv"
KEYS = ("image", "noise", "method", "seed")
SIDE = 128
CORNERS = {"camera": (64, 160), "coins": (0, 0), "moon": (200, 200)}
METHODS: dict[str, dict[str, Any]] = {
    "auto": {},
    "white": {"noise": "white"},
    "adam": {"optimizer": "adam", "noise": "white"},
}
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Run:
    """One fit."""

    image: str
    noise: str
    method: str
    seed: int


def blurred(rng: np.random.Generator, by: float) -> Array:
    found = scipy.ndimage.gaussian_filter(rng.normal(size=(SIDE + 40, SIDE + 40)), by)[
        20:-20, 20:-20
    ]
    return found / found.std()


def enlarged(rng: np.random.Generator) -> Array:
    found = scipy.ndimage.zoom(rng.normal(size=(SIDE // 2, SIDE // 2)), 2, order=1)
    return found / found.std()


NOISES = {
    "25, white": lambda clean, rng: clean + 25 * rng.normal(size=clean.shape),
    "25, blurred by 1 pixel": lambda clean, rng: clean + 25 * blurred(rng, 1.0),
    "27, enlarged twice": lambda clean, rng: clean + 27 * enlarged(rng),
    "10, and stripes of 23": lambda clean, rng: (
        clean + 10 * rng.normal(size=clean.shape) + 23 * rng.normal(size=(SIDE, 1))
    ),
    "10, and 1 % hot pixels": lambda clean, rng: np.where(
        rng.random(clean.shape) < 0.01, 255.0, clean + 10 * rng.normal(size=clean.shape)
    ),
    "10, and 5 % salt and pepper": lambda clean, rng: np.where(
        rng.random(clean.shape) < 0.05,
        255.0 * rng.integers(0, 2, clean.shape),
        clean + 10 * rng.normal(size=clean.shape),
    ),
}


def psnr(found: Array, clean: Array) -> float:
    return float(20 * np.log10(255 / np.sqrt(np.mean((np.clip(found, 0, 255) - clean) ** 2))))


def fit(run: Run) -> dict[str, Any]:
    """One row."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    row, column = CORNERS[run.image]
    clean = getattr(skimage.data, run.image)()[row : row + SIDE, column : column + SIDE].astype(
        float
    )
    noisy = NOISES[run.noise](clean, np.random.default_rng(run.seed))
    started = time.process_time()
    found = fit_image(
        noisy, reference=clean, seed=run.seed, device="cpu", progress=False, **METHODS[run.method]
    )
    best = min(found.history, key=lambda line: line["rmse"])
    last = found.history[-1]
    final = psnr(found.render(), clean)
    return {
        **{name: str(value) for name, value in asdict(run).items()},
        "sigma": float(found.sigma[0]),
        "noisy_psnr": psnr(noisy, clean),
        "psnr": final,
        "best_psnr": final + 20 * np.log10(last["rmse"] / best["rmse"]),
        "best_step": int(best["step"]),
        "memorized": memorized_share(found.render(), clean, noisy),
        "missing": int(found.picture.missing.sum()),
        "cpu_seconds": round(time.process_time() - started, 1),
    }


def runs() -> list[Run]:
    """Image by image."""
    return [
        Run(image, noise, method, 0) for image in CORNERS for noise in NOISES for method in METHODS
    ]


def table() -> str:
    """Image by image and noise by noise."""
    lines = []
    for (image, noise), own in text.groups(list(read(PATH)), "image", "noise").items():
        by = {row["method"]: row for row in own}
        if set(by) != set(METHODS):
            continue

        def spoken(method: str, key: str = "psnr", by: Any = by) -> str:
            return f"{float(by[method][key]):.2f}"

        lines.append(
            [
                image,
                noise,
                f"{float(by['auto']['noisy_psnr']):.2f}",
                f"{float(by['auto']['sigma']):.1f} ({float(by['white']['sigma']):.1f})",
                spoken("auto"),
                spoken("white"),
                f"{spoken('adam', 'best_psnr')}, {spoken('adam')}",
                *(f"{100 * float(by[method]['memorized']):.0f} %" for method in METHODS),
            ]
        )
    if lines:
        done = [row for row in read(PATH)]
        share = median(float(row["memorized"]) for row in done if row["method"] == "auto")
        lines.append(["*median*", "", "", "", "", "", "", f"{100 * share:.0f} %", "", ""])
    titles = "image|noise|noisy, dB|sigma found (as white)|auto|as white|Adam: best, final|"
    return text.table(titles + "memorized: auto|as white|Adam", lines)


if __name__ == "__main__":
    append_missing(PATH, runs(), KEYS, fit, int(sys.argv[1]) if sys.argv[1:] else 1)
    print(table())
