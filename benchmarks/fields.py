"""fit_field on scattered and on indirect measurements, beside what people use for them.

    python -m benchmarks.fields [JOBS]

appends to benchmarks/results/fields.csv; `python -m benchmarks.report` makes the tables from it.

- scattered: functions of two and three coordinates, smooth and rough, at random points, with errors
  of a tenth of their standard deviation; root mean square error of the fit and of its slopes at
  5,000 other points, relative to the standard deviation of the truth.
- tomography: the phantom of Shepp and Logan, 128 x 128, 30 angles; PSNR for a range of 1.
- deconvolution: camera, 128 x 128, blurred; PSNR for a range of 1 without the outer pixels.

Every method is told the true sigma. What has no rule for its weight is at its best by the truth.
"""

from __future__ import annotations

import math
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import numpy as np
import scipy.interpolate
import scipy.ndimage
import skimage.data
import skimage.restoration
import skimage.transform
import torch

from benchmarks import text
from benchmarks.harness import RESULTS, append_missing, read
from sciml_snr import NoisyRows, SNRGaussNewton
from sciml_snr.fields import Blur, LineIntegrals, fit_field
from sciml_snr.fields.networks import NETWORKS

PATH = RESULTS / "fields.csv"
KEYS = ("task", "case", "size", "noise", "seed", "method", "lr")
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Run:
    """One method on one draw. ``size``: samples; ``lr``: 0 for the default."""

    task: str
    case: str
    size: int
    noise: float
    seed: int
    method: str
    lr: float = 0.0


# Scattered samples


def franke(x: Array) -> Array:
    """R. Franke's function, Math. Comp. 38 (1982) 181."""
    a, b = 9 * x[:, 0], 9 * x[:, 1]
    return (
        0.75 * np.exp(-((a - 2) ** 2 + (b - 2) ** 2) / 4)
        + 0.75 * np.exp(-((a + 1) ** 2) / 49 - (b + 1) / 10)
        + 0.5 * np.exp(-((a - 7) ** 2 + (b - 3) ** 2) / 4)
        - 0.2 * np.exp(-((a - 4) ** 2) - (b - 7) ** 2)
    )


def rough_2(x: Array) -> Array:
    """Kinks, and a jump on a circle."""
    away = np.hypot(x[:, 0] - 0.6, x[:, 1] - 0.55)
    return np.abs(np.sin(5 * x[:, 0] + 3 * x[:, 1])) + 0.7 * (away < 0.25)


def smooth_3(x: Array) -> Array:
    waves = np.sin(2 * np.pi * x[:, 0]) * np.cos(np.pi * x[:, 1])
    away = ((x - [0.5, 0.6, 0.4]) ** 2).sum(axis=1)
    return waves + 1.5 * np.exp(-away / 0.06) + x[:, 2]


def rough_3(x: Array) -> Array:
    """Kinks, and a jump on a sphere."""
    away = np.linalg.norm(x - [0.6, 0.55, 0.5], axis=1)
    return np.abs(np.sin(x @ [4.0, 3.0, -2.0])) + 0.7 * (away < 0.35)


FUNCTIONS: dict[str, tuple[int, Callable[[Array], Array]]] = {
    "smooth, 2-D": (2, franke),
    "rough, 2-D": (2, rough_2),
    "smooth, 3-D": (3, smooth_3),
    "rough, 3-D": (3, rough_3),
}
TEST = 5_000
NOISES = (0.1, 0.3, 1.0)
"""At which thresholds are compared."""
STEP = 1e-4
"""Of the differences that make the true slopes, and those of a Gaussian process."""
FITTED_ON = 1_000
"""Samples to which the hyper-parameters of a Gaussian process are fitted, of more a part."""


class Scattered:
    """Samples of a function, and the truth at other points."""

    def __init__(self, case: str, size: int, noise: float, seed: int) -> None:
        self.dim, function = FUNCTIONS[case]
        rng = np.random.default_rng(seed)
        self.test = np.random.default_rng(10_000).random((TEST, self.dim))
        self.truth = function(self.test)
        spread = self.truth.std()
        self.truth = self.truth / spread
        self.x = rng.random((size, self.dim))
        self.sigma = noise
        self.y = function(self.x) / spread + noise * rng.normal(size=size)
        self.slopes = slopes(lambda x: function(x) / spread, self.test)
        # Where there is a kink or a jump there are no slopes.
        self.regular = np.abs(self.slopes).max(axis=1) < 100

    def scores(self, values: Array, gradient: Array | None) -> dict[str, Any]:
        found: dict[str, Any] = {"error": float(np.sqrt(np.mean((values - self.truth) ** 2)))}
        if gradient is not None:
            off, true = (a[self.regular] for a in (gradient - self.slopes, self.slopes))
            found["slope_error"] = float(np.sqrt((off**2).mean() / (true**2).mean()))
        return found


def slopes(function: Callable[[Array], Array], x: Array) -> Array:
    """Central differences (n, d)."""
    steps = STEP * np.eye(x.shape[1])
    return np.stack([(function(x + h) - function(x - h)) / (2 * STEP) for h in steps], axis=-1)


def frequencies(first: float, hidden: float) -> dict[str, Any]:
    """Options of a fit whose network starts with these."""
    return {"network_options": {"first_omega_0": first, "hidden_omega_0": hidden}}


FREQUENCIES = {
    "frequencies 1, 2": frequencies(1.0, 2.0),
    "frequencies 2, 3": frequencies(2.0, 3.0),
    "frequencies 4, 5": frequencies(4.0, 5.0),
    "frequencies 8, 5": frequencies(8.0, 5.0),
}
"""By default they go with the length scale of the samples."""


def thresholds_at(*values: float) -> dict[str, dict[str, Any]]:
    """Name -> options of a fit whose gate has this threshold."""
    return {f"z {z:g}": {"gate": {"z": z}} for z in values}


THRESHOLDS = thresholds_at(0.5, 1.0, 1.5, 2.0)
OPTIONS = FREQUENCIES | THRESHOLDS


def options_of(run: Run, others: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What a method gives to ``fit_field``; others: method -> options of what else was tried."""
    options = dict(others.get(run.method, {}))
    options |= {"optimizer": "adam"} if run.method == "Adam" else {}
    return options | ({"lr": run.lr} if run.lr else {})


def ours_scattered(data: Scattered, run: Run) -> dict[str, Any]:
    fit = fit_field(
        data.x, data.y, sigma=data.sigma, seed=run.seed, device="cpu", progress=False,
        reference=(data.test[:1000], data.truth[:1000]), **options_of(run, OPTIONS),
    )  # fmt: skip
    best = min(fit.history, key=lambda row: row["rmse"])
    last = fit.history[-1]
    return {
        **data.scores(fit(data.test), fit.gradient(data.test)),
        "best_over_final": best["rmse"] / last["rmse"],
        "best_step": int(best["step"]),
        "steps": fit.training.step,
        "misfit": last["misfit"],
    }


def gaussian_process(data: Scattered, run: Run) -> dict[str, Any]:
    """The kernel and its hyper-parameters of the highest likelihood."""
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, ConstantKernel, Matern, WhiteKernel

    n, lengths, bounds = len(data.x), [0.3] * data.dim, (1e-2, 1e2)
    some = np.random.default_rng(0).permutation(n)[:FITTED_ON]
    kernels = {
        "RBF": RBF(lengths, bounds),
        "Matern 5/2": Matern(lengths, bounds, nu=2.5),
        "Matern 3/2": Matern(lengths, bounds, nu=1.5),
    }
    fits = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of lengths at their bounds
        for name, kernel in kernels.items():
            whole = ConstantKernel(1.0) * kernel + WhiteKernel(data.sigma**2)
            fits[name] = GaussianProcessRegressor(whole, normalize_y=True)
            fits[name].fit(data.x[some], data.y[some])
        name = max(fits, key=lambda name: fits[name].log_marginal_likelihood_value_)
        fit = fits[name]
        if n > FITTED_ON:
            fit = GaussianProcessRegressor(fit.kernel_, optimizer=None, normalize_y=True)
            fit.fit(data.x, data.y)
    return {**data.scores(fit.predict(data.test), slopes(fit.predict, data.test)), "note": name}


def radial_basis(data: Scattered, run: Run) -> dict[str, Any]:
    """Thin plates, smoothing by five-fold cross-validation."""
    folds = np.random.default_rng(0).integers(0, 5, len(data.x))
    near = None if len(data.x) <= 3000 else 200

    def fit(rows: Array, smoothing: float) -> Any:
        return scipy.interpolate.RBFInterpolator(
            data.x[rows], data.y[rows], neighbors=near, smoothing=smoothing
        )

    def validated(smoothing: float) -> float:
        errors = [
            fit(folds != k, smoothing)(data.x[folds == k]) - data.y[folds == k] for k in range(5)
        ]
        return float(np.concatenate(errors).var())

    chosen = min(np.geomspace(1e-5, 1e1, 7), key=validated)
    whole = fit(np.ones(len(data.x), dtype=bool), chosen)
    gradient = slopes(whole, data.test) if near is None else None
    return {**data.scores(whole(data.test), gradient), "note": f"smoothing {chosen:g}"}


def clough_tocher(data: Scattered, run: Run) -> dict[str, Any]:
    """In three dimensions linear; outside of the hull the nearest sample."""
    kind = (
        scipy.interpolate.CloughTocher2DInterpolator
        if data.dim == 2
        else scipy.interpolate.LinearNDInterpolator
    )
    found = kind(data.x, data.y)(data.test)
    nearest = scipy.interpolate.NearestNDInterpolator(data.x, data.y)(data.test)
    return data.scores(np.where(np.isnan(found), nearest, found), None)


SCATTERED = {
    "ours": ours_scattered,
    "Adam": ours_scattered,
    "Gaussian process": gaussian_process,
    "RBF, cross-validated": radial_basis,
    "Clough-Tocher": clough_tocher,
}


def gauss_newton(data: Scattered, run: Run) -> dict[str, Any]:
    """Steps of SNRGaussNewton until it ends, with a prior as wide as the evidence says: all rows
    are noisy. A network of half the width, for the memory of its Jacobian."""
    first, hidden = (4.0, 5.0) if run.method == "Gauss-Newton" else (1.0, 2.0)
    torch.manual_seed(run.seed)
    net = NETWORKS["siren"](
        data.dim, 1, hidden_features=64, hidden_layers=3,
        first_omega_0=first, hidden_omega_0=hidden,
    )  # fmt: skip

    def scaled(x: Array) -> torch.Tensor:
        return torch.as_tensor(2 * x - 1, dtype=torch.float32)

    x, mean = scaled(data.x), float(data.y.mean())
    y = torch.as_tensor(data.y - mean, dtype=torch.float32)[:, None]
    optimizer = SNRGaussNewton(net)
    while not optimizer.done and optimizer.steps < 60:
        optimizer.step(lambda net: [NoisyRows(net(x) - y, data.sigma)])

    def fit(points: Array) -> Array:
        with torch.no_grad():
            return mean + net(scaled(points))[:, 0].double().numpy()

    return {**data.scores(fit(data.test), None), "steps": optimizer.steps}


TRIED = {
    **dict.fromkeys(OPTIONS, ours_scattered),
    "Gauss-Newton": gauss_newton,
    "Gauss-Newton, frequencies 1, 2": gauss_newton,
}
"""What else was tried for scattered samples, on the first draw."""

# Images that were measured indirectly

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


def fit(run: Run) -> dict[str, Any]:
    """One row, in this process, on one thread."""
    torch.set_num_threads(1)
    started = time.process_time()
    empty = ("error", "slope_error", "psnr", "best_psnr", "best_over_final")
    found: dict[str, Any] = dict.fromkeys((*empty, "best_step", "steps", "misfit", "note"), "")
    if run.task == "scattered":
        data = Scattered(run.case, run.size, run.noise, run.seed)
        started = time.process_time()
        found |= (SCATTERED | TRIED)[run.method](data, run)
    else:
        task = TASKS[run.task](run.noise, run.seed)
        started = time.process_time()
        if run.method in ("ours", "Adam", *INDIRECT):
            found |= ours_indirect(task, run)
        elif run.method == "TV":
            image, weight = total_variation(task)
            found |= {"psnr": task.score(image), "note": f"weight {weight:g}"}
        else:
            found["psnr"] = task.score(task.classics[run.method]())
    keys = {key: str(value) for key, value in asdict(run).items()}
    return {**keys, **found, "cpu_seconds": time.process_time() - started}


def runs(seeds: int = 5) -> list[Run]:
    """Draw by draw, so that a stop leaves whole comparisons."""
    found = []
    for seed in range(seeds):
        for size in (1000, 3000):
            for case in FUNCTIONS:
                found += [Run("scattered", case, size, 0.1, seed, name) for name in SCATTERED]
        for task, noises in (("tomography", (0.02, 0.05)), ("deconvolution", (0.01,))):
            for noise in noises:
                cell = (task, "phantom" if task == "tomography" else "camera", SIDE**2, noise, seed)
                names = TASKS[task](noise, seed).classics
                found += [Run(*cell, name) for name in ("ours", *names)]
                found += [Run(*cell, "Adam", lr) for lr in ADAM_RATES]
                found += [Run(*cell, "TV")]
                found += [Run(*cell, name) for name in INDIRECT if seed == 0]
        if seed == 0:
            found += [
                Run("scattered", case, 1000, 0.1, seed, name)
                for case in FUNCTIONS
                for name in TRIED
            ]
            found += [
                Run("scattered", case, 10_000, noise, seed, name)
                for noise in NOISES
                for case in FUNCTIONS
                for name in (*THRESHOLDS, "Gaussian process")
            ]
    return found + [
        Run("scattered", case, 10_000, 0.1, seed, name)
        for seed in range(seeds)
        for case in FUNCTIONS
        for name in ("ours", "Gaussian process", "Clough-Tocher")
    ]


def _by_cell(task: str) -> dict[tuple[str, ...], dict[str, text.Rows]]:
    rows = [row for row in read(PATH) if row["task"] == task]
    cells = text.groups(rows, "case", "size", "noise")
    return {
        cell: {name: found for (name,), found in text.groups(own, "method").items()}
        for cell, own in cells.items()
    }


def scattered() -> str:
    """Errors of fits and of slopes to scattered samples, medians over draws."""
    lines = []
    cells = sorted(_by_cell("scattered").items(), key=lambda item: int(item[0][1]))
    for (case, size, _), methods in cells:
        if "ours" not in methods:
            continue
        for column, what in (("error", "values"), ("slope_error", "slopes")):
            line = [case, size, what, str(len(methods["ours"]))]
            for name in SCATTERED:
                found = [float(r[column]) for r in methods.get(name, []) if r[column]]
                line.append(f"{median(found):.3f}" if found else "-")
            lines.append([*line, _ratio(methods, column)])
    titles = ("function", "samples", "error of", "draws", *SCATTERED, "ours / Gaussian process")
    return text.table(titles, lines)


def tried() -> str:
    """Errors of values on the first draw, beside ours and the Gaussian process's; CPU seconds."""
    every = [row for row in read(PATH) if row["task"] == "scattered" and row["seed"] == "0"]
    rows = {(row["case"], row["method"]): row for row in every if row["size"] == "1000"}
    lines = []
    for name in ("ours", "Gaussian process", *TRIED):
        own = [rows[case, name] for case in FUNCTIONS if (case, name) in rows]
        if len(own) == len(FUNCTIONS):
            spent = median(text.column(own, "cpu_seconds"))
            lines.append([name, *(f"{float(row['error']):.4f}" for row in own), f"{spent:.0f}"])
    return text.table(("method", *FUNCTIONS, "CPU seconds"), lines)


def thresholds() -> str:
    """Errors of values by the gate's threshold, 10,000 samples, first draw; best over final."""
    every = [row for row in read(PATH) if row["task"] == "scattered" and row["seed"] == "0"]
    cells = text.groups([row for row in every if row["size"] == "10000"], "noise", "case")
    lines = []
    for (noise, case), own in cells.items():
        rows = {row["method"]: row for row in own}
        if all(name in rows for name in THRESHOLDS):
            found = [
                f"{float(rows[name]['error']):.3f} ({float(rows[name]['best_over_final']):.2f})"
                for name in THRESHOLDS
            ]
            process = f"{float(rows['Gaussian process']['error']):.3f}"
            lines.append([f"{100 * float(noise):g} %", case, *found, process])
    return text.table(("noise", "function", *THRESHOLDS, "Gaussian process"), lines)


def tried_indirect() -> str:
    """PSNR on the first draw at the end, with the misfit, beside ours; CPU seconds."""
    every = [row for row in read(PATH) if row["task"] in TASKS and row["seed"] == "0"]
    rows = {(row["task"], row["noise"], row["method"]): row for row in every}
    cells = list(dict.fromkeys((row["task"], row["noise"]) for row in every))
    lines = []
    for name in ("ours", *INDIRECT):
        own = [rows[(*cell, name)] for cell in cells if (*cell, name) in rows]
        if len(own) == len(cells):
            found = [
                f"{float(r['psnr']):.2f}, {float(r['best_psnr']):.2f} ({float(r['misfit']):.2f})"
                for r in own
            ]
            lines.append([name, *found, f"{median(text.column(own, 'cpu_seconds')):.0f}"])
    titles = (f"{task}, {float(noise):g}: final, best (misfit)" for task, noise in cells)
    return text.table(("variant", *titles, "CPU seconds"), lines)


def _ratio(methods: dict[str, text.Rows], column: str) -> str:
    """Ours over the Gaussian process's, median over the draws that both have."""
    ours, theirs = (
        {row["seed"]: float(row[column]) for row in methods.get(name, []) if row[column]}
        for name in ("ours", "Gaussian process")
    )
    found = [ours[seed] / theirs[seed] for seed in ours.keys() & theirs.keys()]
    return f"{median(found):.2f}" if found else "-"


def seconds() -> str:
    """Processor time of fits to scattered samples, medians over functions and draws."""
    lines = []
    rows = [row for row in read(PATH) if row["task"] == "scattered"]
    for (size,), own in sorted(text.groups(rows, "size").items(), key=lambda item: int(item[0][0])):
        methods = {name: found for (name,), found in text.groups(own, "method").items()}
        cells = [
            f"{median(text.column(methods[name], 'cpu_seconds')):.3g}" if name in methods else "-"
            for name in SCATTERED
        ]
        lines.append([size, *cells])
    return text.table(("samples", *SCATTERED), lines)


def indirect() -> str:
    """PSNR of tomography and deconvolution, medians over the draws that all methods have."""
    lines = []
    for task in TASKS:
        for (case, _, noise), every in _by_cell(task).items():
            methods = {name: own for name, own in every.items() if name not in INDIRECT}
            seeds = set.intersection(*({r["seed"] for r in own} for own in methods.values()))
            whole = {
                name: [row for row in own if row["seed"] in seeds] for name, own in methods.items()
            }
            for name, rows in sorted(
                whole.items(), key=lambda item: -median(text.column(item[1], "psnr"))
            ):
                lines.append([f"{task}, {case}", noise, *_line(name, rows)])
    return text.table("task|noise|method|draws|final PSNR|best on the way|steps|CPU seconds", lines)


def _line(name: str, rows: text.Rows) -> list[str]:
    """Of Adam, whose rates are several: final and best at the rate that is best for each."""
    seeds = text.groups(rows, "seed")
    final = [max(text.column(own, "psnr")) for own in seeds.values()]
    best = [max(text.column(own, "best_psnr")) for own in seeds.values() if own[0]["best_psnr"]]
    time_taken = median(text.column(rows, "cpu_seconds"))
    return [
        name,
        str(len(seeds)),
        f"{median(final):.2f}",
        f"{median(best):.2f}" if best else "",
        rows[0]["steps"],
        f"{time_taken:.0f}",
    ]


if __name__ == "__main__":
    append_missing(PATH, runs(), KEYS, fit, *map(int, sys.argv[1:]))
