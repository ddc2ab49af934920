"""Predator and prey: rates of a Lotka-Volterra system from real counts."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from functools import cached_property
from importlib import resources
from typing import Any, NamedTuple

import deepxde as dde
import numpy as np
import torch
from scipy.integrate import solve_ivp
from scipy.optimize import least_squares

from sciml_snr.sigma import SigmaEstimate

from .base import Array, Observations, Predict, Problem

RATES = ("alpha", "beta", "gamma", "delta")
INITIAL = ("hare_0", "lynx_0")
"""Populations at the first year."""


class LeastSquaresFit(NamedTuple):
    """The reference: least squares in logs through an ODE solver."""

    rates: Array
    """(4,) alpha, beta, gamma, delta, per year (beta and delta: and per thousand pelts)."""
    initial: Array
    """(2,) populations at the first time, thousand pelts."""
    sigma: float
    """Standard deviation of the log residuals, with n - 6 degrees of freedom."""


class LynxHare(Problem):
    r"""Lotka-Volterra rates and initial state from the Hudson Bay Company's pelts, 1900-1920.

    .. math::
        \dot u = \alpha u - \beta u v, \qquad \dot v = -\gamma v + \delta u v

    u: hare, v: lynx, in thousand pelts; time in years. Unknown: the four rates (kept positive by
    training their logarithms) and the initial state (the network's value at the first year). Counts
    err by a factor, so that the network gives :math:`\log u, \log v` and sigma is the standard
    deviation of the log error: given, or estimated from the reference fit (about 0.24). The noise
    is real and there is no clean truth; the reference is least squares through an ODE solver.

    Source: P. Howard 2009, after Elton and Nicholson, *J. Animal Ecology* 11 (1942); the model with
    multiplicative error: B. Carpenter, *Predator-Prey Population Dynamics*, Stan case studies 2018.

    Cost of a fit by ``snr_adam``: 8,000 iterations of about 4 ms on one core.

    Args:
        noise, seed, observations: see :class:`Problem`; ``noise`` is sigma of the logs.
    """

    name = "lynx_hare"
    equation = "u' = alpha u - beta u v, v' = -gamma v + delta u v; real data"
    coordinates = ("year",)
    outputs = ("hare", "lynx")
    lr = 3e-3
    iterations = 8000
    synthetic = False
    points = 42
    noise = None
    unknown_names = RATES
    num_domain = 200

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        _ = self.least_squares_fit  # refuses data that cannot be fitted, before any training

    @property
    def domain(self) -> Mapping[str, tuple[float, float]]:
        """The years of the data; own measurements may be of any time."""
        if not hasattr(self, "observations"):
            return {"year": (-np.inf, np.inf)}
        years = self.observations.points
        return {"year": (float(years.min()), float(years.max()))}

    def encode(self, values: Array) -> Array:
        return np.log(values)

    def decode(self, encoded: Array) -> Array:
        return np.exp(encoded)

    def geometry(self) -> Any:
        return dde.geometry.TimeDomain(*self.domain["year"])

    @cached_property
    def rate_scales(self) -> Array:
        """(4,) where training starts: 1 / year, for beta and delta over the other animal's mean."""
        hare, lynx = self.observations.values.mean(axis=0)
        return np.array([1.0, 1.0 / lynx, 1.0, 1.0 / hare])

    def rates(self) -> list[torch.Tensor]:
        return [
            float(scale) * torch.exp(self.unknowns[name])
            for name, scale in zip(RATES, self.rate_scales, strict=True)
        ]

    def unknown_values(self, predict: Predict | None = None) -> dict[str, float]:
        values = {name: float(r.detach()) for name, r in zip(RATES, self.rates(), strict=True)}
        if predict is None:
            return values
        first = predict(np.array([[self.domain["year"][0]]]))[0]
        return values | dict(zip(INITIAL, map(float, first), strict=True))

    def unknown_functions(self, model: dde.Model) -> dict[str, Callable[[], torch.Tensor]]:
        def first(i: int) -> torch.Tensor:
            net = model.net
            start = next(net.parameters()).new_tensor([[self.domain["year"][0]]])
            return torch.exp(net(start)[0, i])

        def rate(i: int) -> torch.Tensor:
            return self.rates()[i]

        found: dict[str, Callable[[], torch.Tensor]] = {}
        for names, function in ((RATES, rate), (INITIAL, first)):
            found |= {name: functools.partial(function, i) for i, name in enumerate(names)}
        return found

    def residual(self, x: torch.Tensor, y: torch.Tensor) -> list[torch.Tensor]:
        alpha, beta, gamma, delta = self.rates()
        hare, lynx = torch.exp(y[:, :1]), torch.exp(y[:, 1:])
        return [
            dde.grad.jacobian(y, x, i=0) - alpha + beta * lynx,
            dde.grad.jacobian(y, x, i=1) + gamma - delta * hare,
        ]

    def observe(self, rng: np.random.Generator, points: int, noise: float | None) -> Observations:
        with resources.as_file(resources.files(__package__) / "lynx_hare.csv") as path:
            return self.read(path)

    @cached_property
    def least_squares_fit(self) -> LeastSquaresFit:
        """The reference fit, from rates matched to finite differences of the data.

        Raises:
            ValueError: fewer than 4 different times: six numbers cannot be fitted.
        """
        order = np.argsort(self.observations.points[:, 0], kind="stable")
        t, logs = self.observations.points[order, 0], np.log(self.observations.values[order])
        times, first = np.unique(t, return_index=True)
        if len(times) < 4:
            raise ValueError(f"lynx_hare needs at least 4 different years, got {len(times)}.")
        slopes = np.gradient(logs[first], times, axis=0)
        hare, lynx = np.exp(logs[first]).T
        one = np.ones_like(hare)
        ab = np.linalg.lstsq(np.stack([one, -lynx], axis=1), slopes[:, 0], rcond=None)[0]
        cd = np.linalg.lstsq(np.stack([-one, hare], axis=1), slopes[:, 1], rcond=None)[0]
        start = np.where(np.r_[ab, cd] > 0, np.r_[ab, cd], self.rate_scales)

        def misfit(theta: Array) -> Array:
            fit = _trajectory(np.exp(theta[:4]), np.exp(theta[4:]), t)
            return np.nan_to_num(np.log(fit) - logs, nan=1e3, posinf=1e3, neginf=-1e3).ravel()

        found = least_squares(misfit, np.r_[np.log(start), logs[0]], x_scale="jac")
        sigma = np.sqrt(2 * found.cost / max(logs.size - 6, 1))
        return LeastSquaresFit(np.exp(found.x[:4]), np.exp(found.x[4:]), float(sigma))

    def estimate_sigma(self) -> tuple[SigmaEstimate, ...]:
        sigma, n = self.least_squares_fit.sigma, self.observations.values.size
        error = sigma / np.sqrt(2 * max(n - 6, 1))
        method = f"of logarithms: {n} residuals of the least-squares fit"
        return (SigmaEstimate(sigma, float(error), n, method),)

    def reference(self, points: Array) -> Array:
        fit = self.least_squares_fit
        start = self.domain["year"][0]
        times, back = np.unique(np.r_[start, points[:, 0]], return_inverse=True)
        return _trajectory(fit.rates, fit.initial, times)[back[1:]]

    def truth(self) -> dict[str, float]:
        """The reference fit's rates and initial state: nobody knows the true ones."""
        fit = self.least_squares_fit
        values = map(float, (*fit.rates, *fit.initial))
        return dict(zip((*RATES, *INITIAL), values, strict=True))

    def evaluation_points(self) -> Array:
        return np.linspace(*self.domain["year"], 201)[:, None]

    def loss_weights(self) -> list[float]:
        """The equations weigh 10 times the data: they are to hold, not to be averaged with."""
        return [10.0, 10.0, 1.0, 1.0]

    def network(self) -> Any:
        net = dde.nn.FNN([1] + [64] * 3 + [2], "tanh", "Glorot normal")
        first, last = self.domain["year"]
        level = torch.as_tensor(
            self.encode(self.observations.values).mean(axis=0), dtype=torch.get_default_dtype()
        )
        net.apply_feature_transform(lambda x: 2 * (x - first) / (last - first) - 1)
        net.apply_output_transform(lambda _, y: y + level)
        return net


def _trajectory(rates: Array, initial: Array, times: Array) -> Array:
    """(n, 2) populations at increasing times, by an ODE solver in logs (they stay positive)."""
    alpha, beta, gamma, delta = rates
    unique, back = np.unique(times, return_inverse=True)
    if len(unique) == 1:
        return np.tile(initial, (len(times), 1))
    with np.errstate(all="ignore"):
        solution = solve_ivp(
            lambda _, z: [alpha - beta * np.exp(z[1]), -gamma + delta * np.exp(z[0])],
            (unique[0], unique[-1]),
            np.log(initial),
            t_eval=unique,
            method="LSODA",
            rtol=1e-8,
            atol=1e-8,
        )
    if solution.y.shape[1] < len(unique):
        return np.full((len(times), 2), np.nan)
    return np.exp(solution.y.T[back])
