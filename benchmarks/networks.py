"""Which network for an image: kind, depth, width, first frequency, learning rate.

    python -m benchmarks.networks [JOBS]

appends to benchmarks/results/networks.csv; `python -m benchmarks.report` makes the table from it.
fit_image on one 64 x 64 crop, one draw of the noise, sigma given: what the defaults were chosen by.
"""

from __future__ import annotations

import math
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import skimage.data
import torch

from benchmarks import text
from benchmarks.harness import RESULTS, append_missing, read
from benchmarks.images import CORNERS, SIZE
from sciml_snr.fields import fit_image
from sciml_snr.measure.twins import memorized_share

PATH = RESULTS / "networks.csv"
KEYS = ("network", "layers", "width", "frequency", "noise", "lr", "steps")


@dataclass(frozen=True)
class Run:
    """One fit; ``noise`` in grey levels of 255."""

    network: str
    layers: int
    frequency: float
    """first_omega_0 of siren, scale of fourier, omega_0 and scale_0 of wire."""
    width: int = 128
    noise: int = 25
    lr: float = 3e-4
    steps: int = 384

    def options(self) -> dict[str, Any]:
        """Of the network."""
        names = {"siren": ["first_omega_0"], "fourier": ["scale"], "wire": ["omega_0", "scale_0"]}
        sizes = {"hidden_layers": self.layers, "hidden_features": self.width}
        gain = {"output_gain": 1.0} if self.network == "siren" else {}
        return {**sizes, **gain, **dict.fromkeys(names[self.network], float(self.frequency))}


def fit(run: Run) -> dict[str, Any]:
    """One row, in this process, on one thread."""
    torch.set_num_threads(1)
    row, col = CORNERS["camera"]
    clean = skimage.data.camera()[row : row + SIZE, col : col + SIZE].astype(float)
    noisy = clean + run.noise * np.random.default_rng(0).normal(size=clean.shape)
    started = time.process_time()
    found = fit_image(
        noisy,
        sigma=run.noise,
        network=run.network,
        network_options=run.options(),
        lr=run.lr,
        steps=run.steps,
        reference=clean,
        device="cpu",
        progress=False,
    )
    psnr = [20 * math.log10(255 / row["rmse"]) for row in found.history]
    best = int(np.argmax(psnr))
    return {
        **{key: str(value) for key, value in asdict(run).items()},
        "parameters": sum(p.numel() for p in found.network.parameters()),
        "final_psnr": psnr[-1],
        "half_psnr": psnr[len(psnr) // 2],
        "best_psnr": psnr[best],
        "best_step": int(found.history[best]["step"]),
        "memorized": memorized_share(found.image, clean, noisy),
        "cpu_milliseconds": 1000 * (time.process_time() - started) / run.steps,
    }


RUNS = [
    *(Run("siren", 5, omega) for omega in (10, 14, 20, 30)),
    *(Run("siren", 3, omega) for omega in (20, 30, 45)),
    *(Run("siren", 5, omega, noise=noise) for noise in (15, 50) for omega in (10, 14, 20)),
    *(Run("siren", 7, omega) for omega in (10, 14)),
    *(Run("siren", 5, 14, lr=lr) for lr in (1e-4, 1e-3)),
    *(Run("siren", layers, omega, width=256) for layers, omega in ((3, 30), (5, 14))),
    *(Run("fourier", 3, scale, lr=1e-3) for scale in (1, 2, 4)),
    *(Run("wire", 2, omega, lr=1e-3) for omega in (5, 10)),
]


def table() -> str:
    """What networks of several sizes and frequencies reach on one crop."""
    lines = []
    for one in RUNS:
        key = {name: str(getattr(one, name)) for name in KEYS}
        for row in read(PATH):
            if key.items() <= row.items():
                cells = [key[n] for n in ("noise", "network", "layers", "width", "frequency", "lr")]
                cells += [f"{float(row[name]):.2f}" for name in ("final_psnr", "half_psnr")]
                cells += [f"{float(row['best_psnr']):.2f} ({row['best_step']})"]
                cells += [text.percent(float(row["memorized"]))]
                lines.append([*cells, f"{float(row['cpu_milliseconds']):.0f}"])
    titles = "noise|network|layers|width|frequency|lr|final|half way|best (at)|memorized|"
    return text.table(titles + "ms per step", lines)


if __name__ == "__main__":
    append_missing(PATH, RUNS, KEYS, fit, *map(int, sys.argv[1:]))
