"""Twelve images from smooth to fine, white noise of 25: `fit_image` against denoisers.

    python -m benchmarks.smooth_images [JOBS]

appends to benchmarks/results/smooth_images.csv. Crops of 128 x 128 of the images that come with
skimage, and two drawn ones like those of a microscope; one draw of the noise. All methods are told
the sigma that is estimated from the noisy image. *auto*: ``fit_image`` as it comes, its frequency
from the image's spectrum; *before*: its frequency from noise and contrast alone, an output without
gain, twice as many steps; *adam*: the network of *auto* by Adam in 150 steps, whose best moment
only the clean image can tell. Of the five images of benchmarks/fit_images.py *before* is "ours"
there. BM3D is run where the package ``bm3d`` is installed; its license keeps it out of ours.
"""

from __future__ import annotations

import importlib.util
import math
import sys
import time
import warnings
from dataclasses import asdict, dataclass
from statistics import mean
from typing import Any

import numpy as np
import skimage.color
import skimage.data
import torch

from benchmarks import fit_images, text
from benchmarks.fit_images import by_contrast, nlm, scores, wavelet
from benchmarks.harness import RESULTS, append_missing, read
from sciml_snr import estimate_sigma_image
from sciml_snr.fields import fit_image
from sciml_snr.measure.twins import memorized_share

PATH = RESULTS / "smooth_images.csv"
KEYS = ("image", "method", "seed")
SIDE = 128
NOISE = 25.0
CORNERS = {
    "camera": (64, 160),
    "coins": (100, 150),
    "moon": (384, 192),
    "astronaut": (0, 160),
    "chelsea": (60, 150),
    "coffee": (100, 250),
    "clock": (80, 150),
    "cell": (300, 330),
    "retina": (600, 170),
    "immunohistochemistry": (200, 200),
}
LARGE = "camera, 256 x 256"
"""An image beyond 40,000 pixels, whose network is wider: with and without the gain."""
DRAWN = {"blobs": (12, 6.0, 14.0), "beads": (60, 1.5, 2.5)}
"""Number of Gaussian spots, and their least and largest standard deviation in pixels."""
CLASSIC = ("wavelet", "NLM", "BM3D")
NETWORK = ("auto", "before", "adam")
METHODS = (*CLASSIC, *NETWORK)
GAINS = {"gain 1": 1.0, "gain 5": 5.0}
ELSEWHERE, OTHERS = ("before",), tuple(fit_images.CORNERS)
"""Methods whose rows for these images are those of benchmarks/fit_images.py."""
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Run:
    """One method on one image."""

    image: str
    method: str
    seed: int = 0


def crop(name: str) -> Array:
    """(128, 128) grey values of 255."""
    if name in DRAWN:
        return spots(*DRAWN[name])
    if name == LARGE:
        return skimage.data.camera()[64:320, 100:356].astype(float)
    image = getattr(skimage.data, name)()
    image = skimage.color.rgb2gray(image) * 255.0 if image.ndim == 3 else image.astype(float)
    row, column = CORNERS[name]
    found: Array = image[row : row + SIDE, column : column + SIDE]
    return found


def spots(n: int, least: float, largest: float) -> Array:
    """Bright Gaussian spots on a dark ground."""
    rng = np.random.default_rng(1)
    y, x = np.mgrid[:SIDE, :SIDE] + 0.5
    found = np.full((SIDE, SIDE), 20.0)
    for _ in range(n):
        a, b = rng.uniform(0, SIDE, 2)
        width, height = rng.uniform(least, largest), rng.uniform(60, 160)
        found += height * np.exp(-((y - a) ** 2 + (x - b) ** 2) / 2 / width**2)
    return np.clip(found, 0, 255)


def classic(method: str, noisy: Array, sigma: float) -> Array:
    """What users take."""
    if method == "BM3D":
        import bm3d

        return 255 * np.asarray(bm3d.bm3d(noisy / 255, sigma / 255))
    found: Array = (wavelet if method == "wavelet" else nlm)(noisy, sigma)
    return found


def fit(run: Run) -> dict[str, Any]:
    """One row."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    clean = crop(run.image)
    noisy = clean + NOISE * np.random.default_rng(run.seed).normal(size=clean.shape)
    sigma = float(estimate_sigma_image(noisy))
    started = time.process_time()
    own: dict[str, Any] = dict.fromkeys(("best_psnr", "best_step", "frequency"), "")
    if run.method in CLASSIC:
        found = classic(run.method, noisy, sigma)
    else:
        options: dict[str, Any] = {}
        if run.method == "adam":
            options = {"optimizer": "adam", "steps": 150}
        if run.method == "before":
            network = {"first_omega_0": by_contrast(noisy, sigma), "output_gain": 1.0}
            options = {"network_options": network, "steps": 6 * SIDE}
        if run.method in GAINS:
            options = {"network_options": {"output_gain": GAINS[run.method]}, "steps": 768}
        fitted = fit_image(
            noisy, reference=clean, seed=run.seed, device="cpu", progress=False, **options
        )
        found = fitted.render()
        best = min(fitted.history, key=lambda line: line["rmse"])
        rise = 20 * math.log10(fitted.history[-1]["rmse"] / best["rmse"])
        own = {
            "best_psnr": scores(found, clean)["psnr"] + rise,
            "best_step": int(best["step"]),
            "frequency": fitted.choice.options["first_omega_0"],
        }
    return {
        **{name: str(value) for name, value in asdict(run).items()},
        "sigma": sigma,
        **scores(found, clean),
        **own,
        "memorized": memorized_share(found, clean, noisy),
        "cpu_seconds": round(time.process_time() - started, 1),
    }


def runs() -> list[Run]:
    """Method by method, so that a stop leaves whole columns."""
    images = (*CORNERS, *DRAWN)
    known = [m for m in METHODS if m != "BM3D" or importlib.util.find_spec("bm3d")]
    found = [Run(i, m) for m in known for i in images if m not in ELSEWHERE or i not in OTHERS]
    return found + [Run(LARGE, method) for method in GAINS]


def rows() -> list[dict[str, str]]:
    """This file's, and those of benchmarks/fit_images.py on the same draws."""
    found = [dict(row) for row in read(PATH)]
    for row in read(fit_images.PATH):
        same = (row["noise"], row["gaps"], row["seed"]) == ("25", "0.0", "0")
        if same and row["method"] == "ours":
            found.append({**row, "method": "before", "frequency": ""})
    return found


def table() -> str:
    """PSNR image by image, and means of the columns that are full."""
    shown = ("auto", "before", "adam", *CLASSIC)
    lines, columns = [], []
    for (image,), own in text.groups(rows(), "image").items():
        by = {row["method"]: row for row in own}
        if not {"auto", *CLASSIC} <= set(by):
            continue
        key = {"adam": "best_psnr"}
        numbers = [float(by[m][key.get(m, "psnr")]) if m in by else None for m in shown]
        columns.append(numbers)
        shares = (f"{100 * float(by[m]['memorized']):.0f} %" if m in by else "" for m in shown[:2])
        frequency = f"{float(by['auto']['frequency']):.1f}"
        lines.append([image, frequency, *shares, *map(in_db, numbers)])
    if lines:
        means = [None if None in c else mean(c) for c in zip(*columns, strict=True)]
        lines.append(["*mean*", "", "", "", *map(in_db, means)])
    titles = "image|frequency|memorized: fit_image|before|fit_image|before|"
    return text.table(titles + "Adam: best|wavelet|NLM|BM3D", lines)


def gains() -> str:
    """Of a larger image: with and without the gain."""
    lines = [
        [LARGE, row["method"], f"{float(row['psnr']):.2f}", f"{float(row['best_psnr']):.2f}"]
        for row in read(PATH)
        if row["image"] == LARGE
    ]
    return text.table("image|768 steps|final|best", lines)


def in_db(psnr: float | None) -> str:
    """A cell; empty where there is no row."""
    return "" if psnr is None else f"{psnr:.2f}"


if __name__ == "__main__":
    append_missing(PATH, runs(), KEYS, fit, int(sys.argv[1]) if sys.argv[1:] else 1)
    print(table())
