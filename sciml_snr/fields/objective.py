"""What a network is fitted to: samples in batches, or all that an operator predicts."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ..noise import NoisyLoss
from ..terms import NoisyTerm, Pattern, check_squares
from .fit import Objective
from .function import Array, Field, Units
from .samples import Operator, Samples, as_rows, on_device


class Points(Protocol):
    """Coordinates of samples, which need not all be in memory."""

    def __getitem__(self, rows: Tensor, /) -> Tensor:
        """The coordinates (k, d) of these rows."""


class SampleObjective:
    """Values at points, whole or in batches that are drawn anew in every step, with replacement.

    Args:
        points: (n, d), in the network's coordinates.
        values: (n, m), standardized.
        sigma: (m,) or (n, m), of these.
        batch_size: samples in a step; None for all of them.
        pattern: what the errors of all values look like, (n, m), where they are correlated.
        alike: how many values have errors that go together. A batch of b then has, of the noise
            that is the same in every step, as much as one of b values out of fewer.
    """

    def __init__(
        self,
        points: Points,
        values: Tensor,
        sigma: Tensor,
        batch_size: int | None,
        pattern: Pattern | None = None,
        alike: float = 1.0,
    ) -> None:
        self.pattern, self.alike = pattern, alike
        self.points = points
        self.values = values
        self.batch_size = batch_size
        self.sigma, self._weights = weighted(sigma)
        check_squares(self.sigma, values.dtype)
        self.noise = NoisyLoss(self.sigma)
        self._all: Tensor | None = None

    def terms(
        self, network: nn.Module, rng: torch.Generator
    ) -> tuple[list[NoisyTerm], Tensor | None]:
        """One term: this step's samples."""
        n, weights, pattern = len(self.values), self._weights, self.pattern
        population: float = n
        if self.batch_size is None or self.batch_size >= n:
            if self._all is None:
                self._all = self.points[torch.arange(n, device=self.values.device)]
            residual = network(self._all) - self.values
        else:
            rows = torch.randint(n, (self.batch_size,), generator=rng, device=self.values.device)
            residual = network(self.points[rows]) - self.values[rows]
            weights = None if weights is None else weights[rows]
            pattern = None if pattern is None else _of_rows(pattern, rows)
            population = (n + (self.alike - 1) * len(rows)) / self.alike
        residual = residual if weights is None else weights * residual
        return [NoisyTerm(residual, self.sigma, population=population, pattern=pattern)], None

    def metrics(self, network: nn.Module) -> dict[str, float]:
        """None."""
        return {}


def _of_rows(pattern: Pattern, rows: Tensor) -> Pattern:
    """What the errors of these rows look like."""
    return lambda seed: pattern(seed)[rows]


def weighted(sigma: Tensor) -> tuple[Tensor, Tensor | None]:
    """One sigma per output, (m,), and by what residuals are to be multiplied to have it, (n, m).

    A sample counts by 1 / sigma^2, as in weighted least squares; the mean weight is 1.
    """
    if sigma.ndim < 2:
        return sigma, None
    typical = sigma.double().pow(-2).mean(dim=0).rsqrt().to(sigma)
    return typical, typical / sigma


def of_samples(
    samples: Samples, units: Units, batch_size: int | None, device: torch.device
) -> SampleObjective:
    """Samples in the user's units, as a fit needs them."""
    points = (samples.points - units.center) / units.length
    values = (samples.values - units.mean) / units.deviation
    sigma = np.asarray(samples.sigma, dtype=float) / units.deviation
    x, y, told = (
        torch.as_tensor(a, dtype=torch.float32, device=device) for a in (points, values, sigma)
    )
    return SampleObjective(x, y, told, batch_size)


class OperatorObjective:
    """Measurements that an operator predicts from a field, all of them or a part in every step.

    Args:
        samples: the measurements.
        units: of the field.
        operator: see :mod:`sciml_snr.fields.operators`.
        batch_size: measurements in a step; None for all of them.
        device: of the fit.
    """

    def __init__(
        self,
        samples: Samples,
        units: Units,
        operator: Operator,
        batch_size: int | None,
        device: torch.device,
    ) -> None:
        self.units = units
        self.operator = on_device(operator, device)
        self.batch_size = batch_size
        # In units of the values: the loss is then about 1 at the start.
        spread = float(samples.values.std()) or 1.0
        values = torch.as_tensor(samples.values / spread, dtype=torch.float32, device=device)
        sigma = np.asarray(samples.sigma, dtype=float) / spread
        told = torch.as_tensor(sigma, dtype=torch.float32, device=device)
        self.spread, self.values = spread, values
        self.sigma, self._weights = weighted(told)
        check_squares(self.sigma, torch.float32)
        self.noise = NoisyLoss(self.sigma)
        self._field: Field | None = None

    def terms(
        self, network: nn.Module, rng: torch.Generator
    ) -> tuple[list[NoisyTerm], Tensor | None]:
        """One term: this step's measurements."""
        if self._field is None or self._field.network is not network:
            self._field = Field(network, self.units)
        field, values, weights = self._field, self.values, self._weights
        n, population = len(values), None
        if self.batch_size is None or self.batch_size >= n:
            predicted = self.operator(field)
        else:
            rows = torch.randint(n, (self.batch_size,), generator=rng, device=values.device)
            predicted = self.operator.at(field, rows)  # type: ignore[attr-defined]
            values = values[rows]
            weights = None if weights is None else weights[rows]
            population = n
        residual = as_rows(predicted, tuple(values.shape)).to(values.dtype) / self.spread - values
        residual = residual if weights is None else weights * residual
        return [NoisyTerm(residual, self.sigma, population=population)], None

    def metrics(self, network: nn.Module) -> dict[str, float]:
        """None."""
        return {}


class Watched:
    """An objective that is measured against the truth, where that is known.

    Args:
        objective: what is fitted.
        units: of the field.
        points, values: of the truth, (k, d) and (k, m), in the user's units.
    """

    def __init__(self, objective: Objective, units: Units, points: Array, values: Array) -> None:
        self.objective = objective
        self.noise = objective.noise
        self._units, self._points, self._values = units, points, values

    def terms(
        self, network: nn.Module, rng: torch.Generator
    ) -> tuple[list[NoisyTerm], Tensor | None]:
        """Those of the objective."""
        return self.objective.terms(network, rng)

    def metrics(self, network: nn.Module) -> dict[str, float]:
        """Root mean square error against the truth, in units of the values."""
        error = Field(network, self._units).evaluate(self._points) - self._values
        return {"rmse": float(np.sqrt(np.mean(error**2)))}
