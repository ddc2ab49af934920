"""Images with noise that is not white, which `fit_image` looks at before the fit.

    python -m benchmarks.image_noise [JOBS]

appends to benchmarks/results/image_noise.csv. Crops of 128 x 128, nobody is told sigma. *auto*:
``fit_image`` as it comes. *before*: as it was, with its frequency from noise and contrast alone, an
output without gain, twice as many steps and z = 2; *white* the same, where the noise is taken for
independent errors; *adam* that network by Adam, whose best moment only the clean image can tell. Of
correlated noise other thresholds are tried, and a linear filter that is told the spectra of image
and noise (*wiener*). Of counted photons, *poisson* is ``noise="poisson"``, *one size*
``noise="white"``, and *poisson, twice* a second fit, whose sigma is made from the values of the
first.
"""

from __future__ import annotations

import sys
import time
import warnings
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import scipy.fft
import scipy.ndimage
import skimage.data
import torch

from benchmarks import text
from benchmarks.fit_images import by_contrast
from benchmarks.harness import RESULTS, append_missing, read
from sciml_snr import estimate_sigma_image, inspect_noise
from sciml_snr.fields import fit_image
from sciml_snr.measure.twins import memorized_share

PATH = RESULTS / "image_noise.csv"
KEYS = ("image", "noise", "method", "seed")
SIDE = 128
CORNERS = {"camera": (64, 160), "coins": (0, 0), "moon": (200, 200)}
METHODS: dict[str, dict[str, Any]] = {
    "auto": {},
    "before": {"gate": {"z": 2.0}},
    "white": {"noise": "white"},
    "adam": {"optimizer": "adam", "noise": "white"},
}
CORRELATED: dict[str, dict[str, Any]] = {
    "z = 2": {"gate": {"z": 2.0}},
    "z = 3": {"gate": {"z": 3.0}},
    "z = 4": {"gate": {"z": 4.0}},
    "wiener": {},
}
"""What is tried on correlated noise beside :data:`METHODS`."""
PHOTONS: dict[str, dict[str, Any]] = {
    "poisson": {"noise": "poisson"},
    "one size": {"noise": "white"},
    "poisson, twice": {"noise": "poisson"},
    "adam, one size": {"optimizer": "adam", "noise": "white"},
}
OPTIONS = {**METHODS, **CORRELATED, **PHOTONS}
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


def counted(clean: Array, rng: np.random.Generator, peak: float) -> Array:
    """Photons, ``peak`` of them where the image is 255."""
    return rng.poisson(clean * peak / 255) * 255 / peak


NOISES = {
    "25, white": lambda clean, rng: clean + 25 * rng.normal(size=clean.shape),
    "25, blurred by 1 pixel": lambda clean, rng: clean + 25 * blurred(rng, 1.0),
    "25, blurred by 2 pixels": lambda clean, rng: clean + 25 * blurred(rng, 2.0),
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
WIDTHS = ("25, blurred by 1 pixel", "25, blurred by 2 pixels")
PEAKS = {f"{peak} photons": peak for peak in (10, 30)}


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
    rng = np.random.default_rng(run.seed)
    if run.noise in PEAKS:
        noisy = counted(clean, rng, PEAKS[run.noise])
    else:
        noisy = NOISES[run.noise](clean, rng)
    started = time.process_time()
    if run.method == "wiener":
        filtered = wiener(clean, noisy, NOISES[run.noise])
        return row_of(run, clean, noisy, filtered, started)
    common = {"reference": clean, "seed": run.seed, "device": "cpu", "progress": False}
    options = OPTIONS[run.method]
    if run.method in ("before", "white", "adam"):
        sigma = (
            inspect_noise(noisy).sigma if run.method == "before" else estimate_sigma_image(noisy)
        )
        network = {"first_omega_0": by_contrast(noisy, float(sigma)), "output_gain": 1.0}
        options = {**options, "network_options": network, "steps": 6 * SIDE}
    found = fit_image(noisy, **common, **options)
    gain = found.errors.lines[0].gain if found.errors and found.errors.lines else ""
    if run.method == "poisson, twice":
        found = fit_image(noisy, sigma=found.errors.lines[0].sigma(found.render()), **common)
    best = min(found.history, key=lambda line: line["rmse"])
    final = found.render()
    return row_of(
        run,
        clean,
        noisy,
        final,
        started,
        sigma=float(found.sigma[0]),
        best_psnr=psnr(final, clean) + 20 * np.log10(found.history[-1]["rmse"] / best["rmse"]),
        best_step=int(best["step"]),
        missing=int(found.picture.missing.sum()),
        gain=gain,
        frequency=found.choice.options["first_omega_0"],
    )


def row_of(
    run: Run, clean: Array, noisy: Array, found: Array, started: float, **own: Any
) -> dict[str, Any]:
    """What is kept of a method's image."""
    columns = ("sigma", "noisy_psnr", "psnr", "best_psnr", "best_step", "memorized", "missing")
    values = {
        **dict.fromkeys((*columns, "cpu_seconds", "gain", "frequency"), ""),
        "noisy_psnr": psnr(noisy, clean),
        "psnr": psnr(found, clean),
        "memorized": memorized_share(found, clean, noisy),
        "cpu_seconds": round(time.process_time() - started, 1),
        **own,
    }
    return {**{name: str(value) for name, value in asdict(run).items()}, **values}


def wiener(clean: Array, noisy: Array, add: Any) -> Array:
    """The best linear filter that treats all directions alike, told the mean power of image and
    noise at every frequency: no fit can be told as much."""

    def power(x: Array) -> Array:
        return scipy.fft.dctn(x, norm="ortho") ** 2

    axis = np.arange(SIDE) / (2 * SIDE)
    ring = np.minimum((2 * SIDE * np.hypot(axis[:, None], axis)).astype(int), SIDE)

    def around(x: Array) -> Array:
        return (np.bincount(ring.ravel(), x.ravel()) / np.bincount(ring.ravel()))[ring]

    draws = (np.random.default_rng(seed) for seed in range(100, 140))
    noise = around(np.mean([power(add(clean, rng) - clean) for rng in draws], axis=0))
    signal = around(power(clean - clean.mean()))
    kept = signal / (signal + noise)
    kept[0, 0] = 1.0
    found: Array = scipy.fft.idctn(kept * scipy.fft.dctn(noisy, norm="ortho"), norm="ortho")
    return found


def runs() -> list[Run]:
    """Image by image."""
    cells = [(noise, PHOTONS) for noise in PEAKS] + [(noise, CORRELATED) for noise in WIDTHS]
    cells += [(noise, METHODS) for noise in NOISES]
    return [Run(i, noise, method, 0) for i in CORNERS for noise, own in cells for method in own]


def table() -> str:
    """Image by image and noise by noise."""
    lines = []
    for (image, noise), by in cells(("before", "white", "adam")):
        lines.append(
            [
                image,
                noise,
                f"{float(by['before']['noisy_psnr']):.2f}",
                f"{float(by['before']['sigma']):.1f} ({float(by['white']['sigma']):.1f})",
                *(spoken(by, method) for method in ("auto", "before", "white")),
                f"{spoken(by, 'adam', 'best_psnr')}, {spoken(by, 'adam')}",
                *(percent(by, method) for method in ("auto", "before", "white", "adam")),
            ]
        )
    titles = "image|noise|noisy, dB|sigma found (as white)|fit_image|before|before, as white|"
    return text.table(titles + "Adam: best, final|memorized: fit_image|before|as white|Adam", lines)


def thresholds() -> str:
    """Correlated noise: what a threshold keeps out."""
    lines = []
    for (image, noise), by in cells(("z = 3",)):
        best = spoken(by, "adam", "best_psnr")
        tried = [
            f"{spoken(by, m)}, {percent(by, m)}" if m in by else ""
            for m in ("before", "z = 2", "z = 3", "z = 4", "wiener")
        ]
        lines.append([image, noise, *tried, best])
    titles = "image|noise|before|z = 2|z = 3|z = 4|Wiener, told the spectra|Adam: best"
    return text.table(titles, lines)


def photons() -> str:
    """Counted photons: sigma from the brightness, or one for all."""
    lines = []
    for (image, noise), by in cells(("poisson", "one size")):
        own = by["poisson"]
        lines.append(
            [
                image,
                noise,
                f"{float(own['noisy_psnr']):.2f}",
                f"{float(own['gain']):.1f} ({255 / PEAKS[noise]:.1f})",
                *(spoken(by, m) for m in ("poisson", "poisson, twice", "one size")),
                spoken(by, "adam, one size", "best_psnr"),
                spoken(by, "adam, one size"),
                *(percent(by, m) for m in ("poisson", "one size", "adam, one size")),
            ]
        )
    titles = 'image|at 255|noisy, dB|gain found (true)|"poisson"|a second time|"white"|'
    return text.table(titles + 'Adam: best|Adam: final|memorized: "poisson"|"white"|Adam', lines)


def cells(needed: tuple[str, ...]) -> list[tuple[Any, dict[str, Any]]]:
    """(image, noise) and its rows by method, where those that are needed are there."""
    found = []
    for key, own in text.groups(list(read(PATH)), "image", "noise").items():
        by = {row["method"]: row for row in own}
        if set(needed) <= set(by):
            found.append((key, by))
    return found


def spoken(by: dict[str, Any], method: str, key: str = "psnr") -> str:
    """A method's PSNR; empty where it has no row."""
    return f"{float(by[method][key]):.2f}" if method in by else ""


def percent(by: dict[str, Any], method: str) -> str:
    """The share that a method has memorized; empty where it has no row."""
    return text.percent(float(by[method]["memorized"])) if method in by else ""


if __name__ == "__main__":
    append_missing(PATH, runs(), KEYS, fit, int(sys.argv[1]) if sys.argv[1:] else 1)
    print(table())
