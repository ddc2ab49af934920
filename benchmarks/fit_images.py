"""fit_image on noisy photographs and on ones with most pixels missing, beside Adam and classics.

    python -m benchmarks.fit_images [JOBS]

appends to benchmarks/results/fit_images.csv and fit_images_cost.csv; `python -m benchmarks.report`
makes the tables from them. Images are 128 x 128, grey, of 255 levels, the noise is Gaussian and not
clipped. `fit_image` is told nothing, every other method the sigma that is estimated from the noisy
image; a weight for which there is no rule is an oracle's, the best of a grid by the clean image.
"""

from __future__ import annotations

import json
import math
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import numpy as np
import scipy.interpolate
import skimage.color
import skimage.data
import torch
from skimage.metrics import structural_similarity
from skimage.restoration import (
    calibrate_denoiser,
    denoise_nl_means,
    denoise_tv_chambolle,
    denoise_wavelet,
    inpaint_biharmonic,
)
from torch import nn

from benchmarks import text
from benchmarks.harness import RESULTS, append_missing, read
from sciml_snr.fields import FitOptions, fit_image, train
from sciml_snr.fields import fit as loop
from sciml_snr.fields import image as images
from sciml_snr.fields.networks import Siren
from sciml_snr.fields.pixels import PixelObjective, coordinates, predict
from sciml_snr.measure.twins import memorized_share
from sciml_snr.runs.folder import append_row

PATH = RESULTS / "fit_images.csv"
COST = RESULTS / "fit_images_cost.csv"
SIZE = 128
CORNERS = {
    "camera": (64, 160),
    "coins": (100, 150),
    "moon": (384, 192),
    "astronaut": (0, 160),
    "chelsea": (60, 150),
}
NOISES = (15, 25, 50)
GAPS = 0.7
"""Share of the pixels that is missing in the runs with gaps."""
KEYS = ("image", "noise", "gaps", "seed", "method", "lr")
ADAM = {1e-4: None, 3e-4: 250, 3e-5: None}
"""Learning rates, and steps that are enough to see the peak; None for as many as ours."""
FINAL_LR = 1e-4
"""Whose final value is shown."""


@dataclass(frozen=True)
class Run:
    """One method on one noisy image; ``noise`` in grey levels of 255."""

    image: str
    noise: int
    gaps: float
    seed: int
    method: str
    lr: float = 0.0


def crop(name: str) -> np.ndarray[Any, Any]:
    """(128, 128) grey values of 255."""
    image = getattr(skimage.data, name)()
    image = skimage.color.rgb2gray(image) * 255.0 if image.ndim == 3 else image.astype(float)
    row, col = CORNERS[name]
    return image[row : row + SIZE, col : col + SIZE]


def scores(found: np.ndarray[Any, Any], clean: np.ndarray[Any, Any]) -> dict[str, float]:
    """PSNR and SSIM for a range of 255."""
    found = np.clip(found, 0, 255)
    return {
        "psnr": 10 * math.log10(255**2 / float(((found - clean) ** 2).mean())),
        "ssim": float(structural_similarity(found, clean, data_range=255.0)),
    }


class Watched(PixelObjective):
    """Scores against the clean image in every row of the log."""

    clean: np.ndarray[Any, Any]

    def metrics(self, network: nn.Module) -> dict[str, float]:
        fit = predict(network, self.picture, self.picture.shape)
        return scores(fit.reshape(self.clean.shape), self.clean)


def by_contrast(noisy: np.ndarray[Any, Any], sigma: float) -> float:
    """A frequency for the network from noise and contrast alone, as ``fit_image`` has it where many
    pixels are missing; else it looks at the spectrum (benchmarks/smooth_images.py)."""
    return round(min(30.0, max(8.0, 10 / math.sqrt(sigma / float(np.nanstd(noisy))))), 1)


def as_it_comes(run: Run, clean: Any, noisy: Any) -> dict[str, Any]:
    """The fit that users get, told nothing."""
    fit = fit_image(noisy, device="cpu", seed=run.seed, progress=False)
    found, seen = fit.image, np.isfinite(noisy)
    return {
        **scores(found, clean),
        **dict.fromkeys(("best_psnr", "best_ssim", "best_step"), ""),
        "steps": fit.training.step,
        "memorized": memorized_share(found[seen], clean[seen], noisy[seen]),
    }


def network_fit(run: Run, clean: Any, noisy: Any, sigma: float) -> dict[str, Any]:
    """The network as it was: ours of then, or Adam with it: final, and best on the way."""
    picture = images.take_apart(noisy)
    # As the rows were made; what has changed since then is in benchmarks/smooth_images.py.
    before = {"first_omega_0": by_contrast(noisy, sigma), "output_gain": 1.0}
    choice = images.choose_network(None, before, picture, (sigma,))
    optimizer = "adam" if run.method == "Adam" else "snr_soap"
    default = images.default_training(choice, picture, optimizer) | {"optimizer": optimizer}
    default["steps"] = 6 * SIZE
    if run.method == "Adam":
        default |= {"lr": run.lr, "steps": ADAM[run.lr] or default["steps"]}
    options = FitOptions(**default, seed=run.seed, device="cpu")
    loop.ROWS = 40
    known = ~picture.missing.reshape(-1)
    objective = Watched(
        picture, picture.values[known], (sigma,), options.batch_size, torch.device("cpu")
    )
    objective.clean = clean
    network = choice.build(2, 1, options.seed)
    training = train(network, objective, options, progress=False)
    best = max(training.history, key=lambda row: row["psnr"])
    fit = predict(network, picture, picture.shape).reshape(clean.shape)
    seen = ~picture.missing
    last = training.history[-1]
    return {
        "psnr": last["psnr"],
        "ssim": last["ssim"],
        "best_psnr": best["psnr"],
        "best_ssim": best["ssim"],
        "best_step": int(best["step"]),
        "steps": training.step,
        "memorized": memorized_share(fit[seen], clean[seen], noisy[seen]),
    }


def nlm(noisy: Any, sigma: float) -> Any:
    """Non-local means as skimage's example recommends it."""
    return denoise_nl_means(
        noisy, patch_size=5, patch_distance=6, h=0.6 * sigma, sigma=sigma, fast_mode=True
    )


def best_of(candidates: Any, clean: Any) -> Any:
    return max(candidates, key=lambda found: scores(found, clean)["psnr"])


WEIGHTS = np.geomspace(0.02, 0.6, 15)
"""Of total variation, for an image in [0, 1]."""


def tv(noisy: Any, weight: float) -> Any:
    return 255 * denoise_tv_chambolle(noisy / 255, weight=weight)


def tv_j_invariant(noisy: Any) -> Any:
    """Weight by self-supervision: Batson and Royer, ICML 2019, in skimage."""
    found = calibrate_denoiser(
        noisy / 255, denoise_tv_chambolle, denoise_parameters={"weight": WEIGHTS}
    )
    return 255 * found(noisy / 255)


def wavelet(noisy: Any, sigma: float) -> Any:
    return 255 * denoise_wavelet(noisy / 255, sigma=sigma / 255, rescale_sigma=True)


def griddata(noisy: Any) -> Any:
    """Cubic interpolation, and nearest outside the known pixels' hull."""
    at = np.argwhere(np.isfinite(noisy))
    grid = np.argwhere(np.ones(noisy.shape))
    values = noisy[tuple(at.T)]
    cubic, nearest = (
        scipy.interpolate.griddata(at, values, grid, method=m) for m in ("cubic", "nearest")
    )
    return np.where(np.isnan(cubic), nearest, cubic).reshape(noisy.shape)


def griddata_nlm(noisy: Any, clean: Any) -> Any:
    """Non-local means on the interpolation, whose noise is no longer white: its sigma an oracle."""
    filled = griddata(noisy)
    return best_of([nlm(filled, s) for s in np.geomspace(5, 60, 8)], clean)


def biharmonic_nlm(noisy: Any, clean: Any) -> Any:
    filled = biharmonic(noisy)
    return best_of([nlm(filled, s) for s in np.geomspace(5, 60, 8)], clean)


def biharmonic(noisy: Any) -> Any:
    missing = np.isnan(noisy)
    return 255 * inpaint_biharmonic(np.where(missing, 0, noisy) / 255, missing)


Classic = Callable[[Any, Any, float], Any]
"""Noisy, clean (for oracles only), estimated sigma -> found."""

DENOISERS: dict[str, Classic] = {
    "NLM": lambda noisy, clean, sigma: nlm(noisy, sigma),
    "TV, J-invariant": lambda noisy, clean, sigma: tv_j_invariant(noisy),
    "TV, oracle": lambda noisy, clean, sigma: best_of([tv(noisy, w) for w in WEIGHTS], clean),
    "wavelet": lambda noisy, clean, sigma: wavelet(noisy, sigma),
    "noisy": lambda noisy, clean, sigma: noisy,
}
INPAINTERS: dict[str, Classic] = {
    "griddata + NLM, oracle": lambda noisy, clean, sigma: griddata_nlm(noisy, clean),
    "biharmonic": lambda noisy, clean, sigma: biharmonic(noisy),
    "biharmonic + NLM, oracle": lambda noisy, clean, sigma: biharmonic_nlm(noisy, clean),
}


def fit(run: Run) -> dict[str, Any]:
    """One row, in this process, on one thread."""
    torch.set_num_threads(1)
    clean = crop(run.image)
    rng = np.random.default_rng(run.seed)
    noisy = clean + run.noise * rng.normal(size=clean.shape)
    noisy[rng.random(clean.shape) < run.gaps] = np.nan
    sigma = float(images.estimate_sigma(images.take_apart(noisy))[0])
    started = time.process_time()
    if run.method == "fit_image":
        found = as_it_comes(run, clean, noisy)
    elif run.method in ("ours", "Adam"):
        found = network_fit(run, clean, noisy, sigma)
    else:
        classic = (INPAINTERS if run.gaps else DENOISERS)[run.method]
        found = dict.fromkeys(("best_psnr", "best_ssim", "best_step", "steps", "memorized"), "")
        found = {**scores(classic(noisy, clean, sigma), clean), **found}
    return {
        **{key: str(value) for key, value in asdict(run).items()},
        "sigma": sigma,
        **found,
        "cpu_seconds": time.process_time() - started,
    }


def runs(seeds: int = 5) -> list[Run]:
    """Cell by cell, the first draw of all cells first, so that a stop leaves whole comparisons.

    Adam's other rates, hardly ever its best, come last.
    """
    found, others = [], []
    for seed in range(seeds):
        cells = [(image, 25, gaps, seed) for gaps in (0.0, GAPS) for image in CORNERS]
        cells += [(image, noise, 0.0, seed) for noise in (15, 50) for image in CORNERS]
        for cell in cells:
            found += [Run(*cell, method) for method in (INPAINTERS if cell[2] else DENOISERS)]
            found += [Run(*cell, "fit_image"), Run(*cell, "ours"), Run(*cell, "Adam", FINAL_LR)]
        others += [Run(*cell, "Adam", lr) for lr in ADAM if lr != FINAL_LR for cell in cells]
    return found + others


COST_STEPS = 60


def cost(method: str) -> dict[str, Any]:
    """Time per step and peak memory on a 512 x 512 RGB image, in a process of its own."""
    torch.set_num_threads(1)
    loop.ROWS = 2  # as far apart as in a run of the default length
    picture = images.take_apart(skimage.data.astronaut())
    choice = images.choose_network(None, None, picture, (20.0,) * 3)
    default = images.default_training(choice, picture, "snr_soap")
    batch = default["batch_size"]
    network = choice.build(2, 3, 0)
    assert isinstance(network, Siren)
    standard = (picture.values - picture.center) / picture.scale
    started = 0.0
    if method == "plain":
        x = coordinates(torch.arange(len(standard)), picture.shape)
        y = torch.as_tensor(standard, dtype=torch.float32)
        optimizer = torch.optim.Adam(network.parameters(), lr=default["lr"])
        for step in range(COST_STEPS + 10):
            if step == 10:
                started = time.process_time()
            rows = torch.randint(len(x), (batch,))
            optimizer.zero_grad()
            nn.functional.mse_loss(network(x[rows]), y[rows]).backward()
            optimizer.step()
        seconds = time.process_time() - started
    else:
        objective = PixelObjective(picture, picture.values, (20.0,) * 3, batch, torch.device("cpu"))
        times = []
        for steps in (10, COST_STEPS + 10):
            options = FitOptions(method, **{**default, "steps": steps})
            started = time.process_time()
            train(network, objective, options, progress=False)
            times.append(time.process_time() - started)
        seconds = times[1] - times[0]
    return {
        "method": method,
        "batch": batch,
        "width": choice.options["hidden_features"],
        "milliseconds": 1000 * seconds / COST_STEPS,
        "megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def costs(repeats: int = 3) -> None:
    """Each method in a fresh process, in turn, so that a busy machine is busy for all."""
    COST.unlink(missing_ok=True)
    for repeat in range(repeats):
        for method in ("plain", "snr_soap", "snr_adam"):
            command = [sys.executable, "-m", "benchmarks.fit_images", "--cost", method]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            append_row(COST, {"repeat": repeat, **json.loads(done.stdout.splitlines()[-1])})


def cells() -> str:
    """PSNR and SSIM by image and noise, medians over draws: ours, Adam, and what users take."""
    return _table([(i, n, 0.0) for n in NOISES for i in CORNERS], list(DENOISERS))


def gaps() -> str:
    """The same with most pixels missing."""
    return _table([(image, 25, GAPS) for image in CORNERS], list(INPAINTERS))


def _table(which: list[tuple[str, int, float]], classics: list[str]) -> str:
    adam = ("Adam, oracle", "Adam, final")
    lines = []
    for image, noise, missing in which:
        if found := _medians(image, noise, missing, classics):
            line = [image, str(noise), f"{found['draws'][0]:.0f}", f"{found['rates'][0]:.0f}"]
            line += [text.percent(found["memorized"][0])]
            scored = [found[name] for name in (*adam, "fit_image", *classics)]
            lines.append([*line, *(f"{psnr:.2f} / {ssim:.2f}" for psnr, ssim in scored)])
    titles = ("image", "noise", "draws", "Adam's rates", "memorized", *adam, "fit_image, final")
    return text.table((*titles, *classics), lines)


def differences() -> str:
    """fit_image's final PSNR less that of others, over all cells."""
    lines = []
    for missing, classics in ((0.0, DENOISERS), (GAPS, INPAINTERS)):
        which = [(image, noise) for image in CORNERS for noise in NOISES]
        for name in ("Adam, oracle", "Adam, final", "ours", *classics):
            found = [s for cell in which if (s := _medians(*cell, missing, list(classics)))]
            ours = [s["fit_image"][0] - s[name][0] for s in found]
            if ours and name != "noisy":
                kind = "70 % missing: " if missing else ""
                numbers = (sum(ours) / len(ours), min(ours), max(ours))
                label = "fit_image as it was" if name == "ours" else name
                lines.append([kind + label, str(len(ours)), *(f"{x:+.2f}" for x in numbers)])
    return text.table("fit_image, final PSNR, less|cells|mean|least|most", lines)


def _medians(
    image: str, noise: int, gaps: float, classics: list[str]
) -> dict[str, tuple[float, ...]]:
    """Name -> medians over the draws that all methods have; empty where there is none."""
    rows = [
        row
        for row in read(PATH)
        if (row["image"], row["noise"], row["gaps"]) == (image, str(noise), str(gaps))
    ]
    draws: list[dict[str, tuple[float, ...]]] = []
    for seed in sorted({row["seed"] for row in rows}):
        own = [row for row in rows if row["seed"] == seed]
        by_method = {row["method"]: row for row in own}
        adam = {float(row["lr"]): row for row in own if row["method"] == "Adam"}
        if FINAL_LR not in adam or not {"fit_image", "ours", *classics} <= by_method.keys():
            continue
        best = max(adam.values(), key=lambda row: float(row["best_psnr"]))
        final = adam[FINAL_LR]
        ours = by_method["fit_image"]
        draw = {
            "Adam, oracle": (float(best["best_psnr"]), float(best["best_ssim"])),
            "Adam, final": (float(final["psnr"]), float(final["ssim"])),
            "memorized": (float(ours["memorized"]),),
            "rates": (float(len(adam)),),
        }
        for name in by_method.keys() & {"fit_image", "ours", *classics}:
            draw[name] = (float(by_method[name]["psnr"]), float(by_method[name]["ssim"]))
        draws.append(draw)
    if not draws:
        return {}
    found = {
        name: tuple(median(draw[name][i] for draw in draws) for i in range(len(values)))
        for name, values in draws[0].items()
        if all(name in draw for draw in draws)
    }
    return {**found, "draws": (float(len(draws)),)}


def cost_table() -> str:
    """Time per step and peak memory on a 512 x 512 RGB image, medians over repeats."""
    by_method = text.groups(read(COST), "method")
    found = {
        method: [median(text.column(own, name)) for name in ("milliseconds", "megabytes")]
        for (method,), own in by_method.items()
    }
    lines = []
    for method, (ms, mb) in found.items() if "plain" in found else ():
        name = "plain loop, Adam" if method == "plain" else f"fit_image, {method}"
        plain = found["plain"]
        cells = [f"{ms:.0f}", f"{ms / plain[0]:.2f}", f"{mb:.0f}", f"{mb / plain[1]:.2f}"]
        lines.append([name, *cells])
    return text.table("method|ms per step|times plain|MB at most|times plain", lines)


if __name__ == "__main__":
    if "--cost" in sys.argv:
        print(json.dumps(cost(sys.argv[-1])))
    else:
        append_missing(PATH, runs(), KEYS, fit, *map(int, sys.argv[1:]))
        costs()
