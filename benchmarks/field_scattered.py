"""Functions sampled at scattered points, and the methods that fit them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.interpolate
import torch

from benchmarks.field_runs import Array, Run, frequencies, options_of, thresholds_at
from sciml_snr import NoisyRows, SNRGaussNewton
from sciml_snr.fields import fit_field
from sciml_snr.fields.networks import NETWORKS


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


FREQUENCIES = {
    "frequencies 1, 2": frequencies(1.0, 2.0),
    "frequencies 2, 3": frequencies(2.0, 3.0),
    "frequencies 4, 5": frequencies(4.0, 5.0),
    "frequencies 8, 5": frequencies(8.0, 5.0),
}
"""By default they go with the length scale of the samples."""

THRESHOLDS = thresholds_at(0.5, 1.0, 1.5, 2.0)
OPTIONS = FREQUENCIES | THRESHOLDS


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
