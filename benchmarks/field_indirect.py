"""Images that were measured indirectly, and the methods that reconstruct them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.ndimage
import skimage.data
import skimage.restoration
import skimage.transform
import torch

from benchmarks.field_runs import Array, Run, frequencies, options_of, thresholds_at
from sciml_snr.fields import Blur, LineIntegrals, fit_field

SIDE = 128


def psnr(found: Array, clean: Array) -> float:
    return 10 * math.log10(1 / float(np.mean((found - clean) ** 2)))


class Indirect:
    """Measurements of an image, and the operator that ours and total variation are told."""

    clean: Array
    y: Array
    """As the operator makes it."""
    sigma: float
    operator: Any
    points: Array
    """(pixels, 2), positions of the clean image's pixels."""
    classics: dict[str, Callable[[], Array]]

    def score(self, found: Array) -> float:
        return psnr(found, self.clean)


class Tomography(Indirect):
    angles = np.arange(30) * 6.0

    def __init__(self, noise: float, seed: int) -> None:
        phantom = skimage.data.shepp_logan_phantom()
        self.clean = skimage.transform.resize(phantom, (SIDE, SIDE), anti_aliasing=True)
        clean = skimage.transform.radon(self.clean, theta=self.angles)
        self.sigma = noise * clean.max()
        self.sinogram = clean + self.sigma * np.random.default_rng(seed).normal(size=clean.shape)
        self.y = self.sinogram.T
        # One cell more than pixels: cells are then at the pixels that radon turns about the middle.
        self.operator = LineIntegrals(
            self.angles, np.arange(SIDE) - SIDE / 2, size=SIDE + 1, cells=SIDE + 1
        )
        row, col = np.mgrid[:SIDE, :SIDE]
        self.points = np.stack([col - SIDE / 2, SIDE / 2 - row], axis=-1).reshape(-1, 2)
        self.classics = {"filtered back-projection": self.fbp, "SART": self.sart}

    def fbp(self) -> Array:
        """The best of the filters."""
        names = ("ramp", "shepp-logan", "cosine", "hamming", "hann")
        found = [
            skimage.transform.iradon(self.sinogram, theta=self.angles, filter_name=name)
            for name in names
        ]
        return max(found, key=self.score)

    def sart(self, most: int = 20) -> Array:
        """The best number of iterations, with and without negative values cut off."""
        found = []
        for clip in (None, (0.0, math.inf)):
            image = None
            for _ in range(most):
                image = skimage.transform.iradon_sart(
                    self.sinogram, theta=self.angles, image=image, clip=clip
                )
                found.append(image)
        return max(found, key=self.score)


class Deconvolution(Indirect):
    margin = 6
    """Of the kernel; as many of the outer pixels are not scored."""

    def __init__(self, noise: float, seed: int) -> None:
        m = self.margin
        whole = skimage.data.camera()[64 - m : 64 + SIDE + m, 160 - m : 160 + SIDE + m] / 255
        at = np.arange(-m, m + 1)
        kernel = np.exp(-(at[:, None] ** 2 + at**2) / (2 * 2.0**2))
        self.kernel = kernel / kernel.sum()
        blurred = scipy.ndimage.convolve(whole, self.kernel)[m:-m, m:-m]
        self.clean, self.sigma = whole[m:-m, m:-m], noise
        self.y = blurred + noise * np.random.default_rng(seed).normal(size=blurred.shape)
        self.operator = Blur(self.kernel, self.y.shape)
        self.points = np.argwhere(np.ones(self.y.shape)) + 0.5
        self.classics = {"Wiener, unsupervised": self.wiener, "Richardson-Lucy": self.lucy}

    def score(self, found: Array) -> float:
        m = self.margin
        return psnr(found[m:-m, m:-m], self.clean[m:-m, m:-m])

    def padded(self) -> Array:
        return np.pad(self.y, 4 * self.margin, mode="symmetric")

    def cut(self, found: Array) -> Array:
        m = 4 * self.margin
        return found[m:-m, m:-m]

    def wiener(self) -> Array:
        rng = np.random.default_rng(0)
        found, _ = skimage.restoration.unsupervised_wiener(
            self.padded(), self.kernel, clip=False, rng=rng
        )
        return self.cut(found)

    def lucy(self) -> Array:
        """The best number of iterations."""
        found = [
            skimage.restoration.richardson_lucy(self.padded().clip(1e-6), self.kernel, num_iter=n)
            for n in (1, 2, 3, 5, 7, 10, 15, 20, 30, 50)
        ]
        return max(map(self.cut, found), key=self.score)


TASKS: dict[str, type[Indirect]] = {"tomography": Tomography, "deconvolution": Deconvolution}
ADAM_RATES = (1e-3, 3e-3)


INDIRECT: dict[str, dict[str, Any]] = {
    **thresholds_at(0.1, 0.5),
    "snr_soap": {"optimizer": "snr_soap"},
    "frequencies 25, 15": frequencies(25.0, 15.0),
    "2000 steps": {"steps": 2000},
    "3000 steps": {"steps": 3000},
}
"""What else was tried for indirect measurements, on the first draw."""


def ours_indirect(task: Any, run: Run) -> dict[str, Any]:
    fit = fit_field(
        None, task.y, sigma=task.sigma, operator=task.operator, seed=run.seed, device="cpu",
        progress=False, reference=(task.points, task.clean.reshape(-1)),
        **options_of(run, INDIRECT),
    )  # fmt: skip
    last, best = fit.history[-1], min(fit.history, key=lambda row: row["rmse"])
    found = fit(task.points).reshape(task.clean.shape)
    own, most = (-20 * math.log10(row["rmse"]) for row in (last, best))
    return {
        "psnr": task.score(found),
        "best_psnr": task.score(found) + most - own,
        "best_step": int(best["step"]),
        "steps": fit.training.step,
        "misfit": last["misfit"],
    }


def total_variation(task: Any) -> tuple[Array, float]:
    """The best of a grid of weights, by A. Chambolle and T. Pock, J. Math. Imaging Vis. 40 (2011)
    120, of values >= 0 on the operator's own grid."""
    shape = (SIDE + 1, SIDE + 1) if isinstance(task, Tomography) else task.operator.larger
    y = torch.as_tensor(task.y, dtype=torch.float32)
    found = {}
    for weight in np.geomspace(0.005, 0.5, 6):
        image = _tv(task, y, shape, weight * task.sigma**2 * _TV_UNIT)
        found[weight] = _on_pixels(task, image.numpy())
    weight = max(found, key=lambda w: task.score(found[w]))
    return found[weight], float(weight)


_TV_UNIT = 10.0


def _tv(task: Any, y: Any, shape: tuple[int, int], weight: float, iterations: int = 200) -> Any:
    """argmin |A u - y|^2 / 2 + weight TV(u), u >= 0."""
    cells = math.prod(shape)

    def forward(u: Any) -> Any:
        return task.operator(lambda _: u.reshape(cells, 1))

    zero = torch.zeros(cells, requires_grad=True)

    def backward(q: Any) -> Any:
        return torch.autograd.grad(forward(zero), zero, q)[0]

    def gradient(u: Any) -> Any:
        image = u.reshape(shape)
        down, right = torch.zeros(shape), torch.zeros(shape)
        down[:-1], right[:, :-1] = image[1:] - image[:-1], image[:, 1:] - image[:, :-1]
        return torch.stack([down, right])

    def divergence(p: Any) -> Any:
        down, right = p
        found = torch.zeros(shape)
        found[:-1] -= down[:-1]
        found[1:] += down[:-1]
        found[:, :-1] -= right[:, :-1]
        found[:, 1:] += right[:, :-1]
        return found.reshape(-1)

    u = torch.rand(cells)
    for _ in range(10):  # the norm of the operator
        u = backward(forward(u).detach())
        norm = float(u.norm())
        u = u / norm
    scale = math.sqrt(8 / norm)  # A has the size of the differences
    step = 0.99 / math.sqrt(16)
    u, mean = torch.zeros(cells), torch.zeros(cells)
    q, p = torch.zeros_like(y), torch.zeros(2, *shape)
    for _ in range(iterations):
        q = (q + step * scale * (forward(mean).detach() - y)) / (1 + step * scale**2)
        p = p + step * gradient(mean)
        size = p.square().sum(dim=0).sqrt()
        p = p / (size / weight).clamp_min(1)
        before = u
        u = (u - step * (scale * backward(q) + divergence(p))).clamp_min(0)
        mean = 2 * u - before
    return u


def _on_pixels(task: Any, image: Array) -> Array:
    """From the operator's grid to the clean image's pixels."""
    if isinstance(task, Deconvolution):
        m = task.margin
        return image.reshape(task.operator.larger)[m:-m, m:-m]
    grid = image.reshape(SIDE + 1, SIDE + 1)  # to the right, upwards
    return grid.T[::-1][:SIDE, :SIDE]
