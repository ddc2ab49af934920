"""Large data on one core: an image of 1024 x 1024, a million scanned points, a million samples.

    python -m benchmarks.large [CASE ...]

appends to benchmarks/results/large.csv; every row is a process of its own, so that its peak memory
is its own. Images: a corner of skimage's retina and its astronaut, grey, noise of 25. Beside the
defaults, ways to need less time: half of the steps, at twice the learning rate, with an output gain
of 2, or after a fit to means of 2 x 2 pixels; a narrower network. The score is PSNR; of the cloud
(a ball with waves, errors of 0.5 % of its radius) the root mean square error of the fit's distance
at the clean points, in units of sigma; of the samples (a function of two coordinates, errors of a
tenth of its standard deviation) the root mean square error at other points, in units of sigma.
"""

from __future__ import annotations

import os
import resource
import sys
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from typing import Any

import numpy as np
import skimage.color
import skimage.data
import torch

from benchmarks import text
from benchmarks.field_scattered import FUNCTIONS
from benchmarks.fit_images import scores
from benchmarks.harness import RESULTS, append_missing, read
from sciml_snr.fields import fit_field, fit_image, fit_sdf
from sciml_snr.fields.image import BATCH

PATH = RESULTS / "large.csv"
KEYS = ("case", "method")
NOISE = 25.0
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Run:
    """One fit."""

    case: str
    method: str


def grey(image: Array) -> Array:
    """Of 255."""
    return 255.0 * np.asarray(skimage.color.rgb2gray(image))


IMAGES: dict[str, Callable[[], Array]] = {
    "retina, 1024 x 1024": lambda: grey(skimage.data.retina())[200:1224, 200:1224],
    "astronaut, 512 x 512": lambda: grey(skimage.data.astronaut()),
}
WAYS = ("default", "half", "half, twice the rate", "half, gain 2", "192 wide", "half, coarse first")
CLOUD, SAMPLES = "1,000,000 points", "1,000,000 samples"
CELLS = {
    "retina, 1024 x 1024": ("default", "half", "192 wide"),
    "astronaut, 512 x 512": WAYS,
    CLOUD: ("1,000 steps",),
    SAMPLES: ("default",),
}


def image(run: Run) -> dict[str, Any]:
    """PSNR, and how many steps were taken."""
    clean = IMAGES[run.case]()
    noisy = clean + NOISE * np.random.default_rng(0).normal(size=clean.shape)
    default = 6 * len(clean)
    common: dict[str, Any] = {"device": "cpu", "progress": False}
    steps = default // (2 if "half" in run.method else 1)
    options: dict[str, Any] = {"steps": steps}
    if run.method == "192 wide":
        options["network_options"] = {"hidden_features": 192}
    if "gain" in run.method:
        options["network_options"] = {"output_gain": 2.0}
    if "twice" in run.method:
        options["lr"] = 1.2e-3
    if "coarse" in run.method:
        options |= coarse_first(noisy, steps // 2, common) | {"steps": steps - steps // 2}
    fit = fit_image(noisy, **options, **common)
    return {"score": scores(fit.render(), clean)["psnr"], "steps": steps}


def coarse_first(noisy: Array, steps: int, common: dict[str, Any]) -> dict[str, Any]:
    """Options of a fit that goes on from one to means of 2 x 2 pixels."""
    n = len(noisy) // 2
    begun = fit_image(noisy, steps=1, **common)
    sigma, options = begun.sigma[0], begun.choice.options
    gate: dict[str, Any] = {"lr": 6e-4, "gate": {"rise_steps": 300}}
    coarse = fit_image(
        noisy.reshape(n, 2, n, 2).mean(axis=(1, 3)), sigma=sigma / 2, steps=steps,
        network_options=options, batch_size=BATCH, **gate, **common,
    )  # fmt: skip
    return {"network": coarse.network, "sigma": sigma, **gate}


def cloud(run: Run) -> dict[str, Any]:
    """Of a million points on a ball with waves."""
    rng = np.random.default_rng(0)
    away = rng.normal(size=(1_000_000, 3))
    away /= np.linalg.norm(away, axis=1, keepdims=True)
    clean = away * (1 + 0.2 * np.sin(6 * away[:, :1]) * away[:, 1:2])
    sigma = 0.005
    fit = fit_sdf(
        clean + sigma * rng.normal(size=clean.shape), steps=1000, device="cpu", progress=False
    )
    off = fit.distance(clean[:20_000])
    return {"score": float(np.sqrt(np.mean(off**2))) / sigma, "steps": 1000}


def samples(run: Run) -> dict[str, Any]:
    """Of a million samples of Franke's function."""
    rng, function = np.random.default_rng(0), FUNCTIONS["smooth, 2-D"][1]
    x, test = rng.random((1_000_000, 2)), rng.random((20_000, 2))
    values = function(x)
    sigma = 0.1 * values.std()
    fit = fit_field(
        x, values + sigma * rng.normal(size=len(x)), sigma=sigma, device="cpu", progress=False
    )
    error = float(np.sqrt(np.mean((fit(test) - function(test)) ** 2)))
    return {"score": error / sigma, "steps": fit.training.step}


KINDS: dict[str, Callable[[Run], dict[str, Any]]] = {CLOUD: cloud, SAMPLES: samples}


def measured(run: Run) -> dict[str, Any]:
    """In this process: one row."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    started, spent = time.perf_counter(), time.process_time()
    found = KINDS.get(run.case, image)(run)
    return {
        **asdict(run),
        **found,
        "seconds": round(time.perf_counter() - started, 1),
        "cpu_seconds": round(time.process_time() - spent, 1),
        "gigabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "load": round(os.getloadavg()[0], 1),
    }


def fit(run: Run) -> dict[str, Any]:
    """One row, in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measured, run).result()


def table() -> str:
    """Case by case."""
    every = {(row["case"], row["method"]): row for row in read(PATH)}
    lines = []
    for case, methods in CELLS.items():
        for method in methods:
            if (case, method) in every:
                row = every[case, method]
                score = float(row["score"])
                lines.append(
                    [
                        case,
                        method,
                        row["steps"],
                        f"{score:.2f} dB" if case in IMAGES else f"{score:.2f} sigma",
                        f"{float(row['cpu_seconds']) / 60:.1f}",
                        f"{float(row['gigabytes']):.1f}",
                    ]
                )
    return text.table("data|method|steps|PSNR, or error|CPU minutes|peak memory in GB", lines)


if __name__ == "__main__":
    names = sys.argv[1:] or list(CELLS)
    append_missing(PATH, [Run(c, m) for c in names for m in CELLS[c]], KEYS, fit, 1)
    print(table())
