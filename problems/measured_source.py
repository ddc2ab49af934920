"""Equations whose right-hand side is known only by measurements, with errors of their own."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import deepxde as dde
import numpy as np
import torch

from sciml_snr.deepxde import noisy

from .base import Array, Observations, Problem


class MeasuredSource(Problem):
    """An equation operator(u) = f with noisy measurements of u and of f, and nothing else.

    f is measured at ``source_points``; its errors have the same sigma as u's, and come from a
    stream of random numbers of their own, so that they are the same whatever is measured of u.

    Args:
        points, noise, seed, observations, outliers: see :class:`Problem`; the noise is that of u
            and of f, outliers are among both.
        source: the user's own measurements of f instead of the problem's, or a CSV file with them:
            the coordinates, f, optionally sigma.

    Raises:
        ValueError, FileNotFoundError: see :class:`Problem`.
    """

    source_points: ClassVar[int]
    """Number of sensors of f."""

    def __init__(self, *, source: Observations | str | Path | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        noise = kwargs.get("noise")
        if isinstance(source, (str, Path)):
            source = self.read(source, ("f",))
        if source is None:
            rng = np.random.default_rng((self.seed, 1))
            x = self.sensors(rng, self.source_points)
            source = self.measure(rng, x, self.noise if noise is None else noise, self.source(x))
        self.source_observations = source.with_sigma(noise)

    @abstractmethod
    def operator(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Left-hand side of the equation: x (n, d), network outputs y (n, 1) -> (n, 1)."""

    @abstractmethod
    def source(self, points: Array) -> Array:
        """f (n, 1), by the equation and the reference."""

    @abstractmethod
    def sensors(self, rng: np.random.Generator, points: int) -> Array:
        """Where f is measured, (points, d)."""

    def residual(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """With the exact f, which training does not know."""
        f = torch.as_tensor(self.source(x.detach().cpu().numpy()))
        return self.operator(x, y) - f.to(y)

    def conditions(self) -> list[Any]:
        """The measured source, which stands in for the equation."""
        measured = self.source_observations
        condition = dde.icbc.PointSetOperatorBC(
            measured.points, measured.values, lambda x, y, _: self.operator(x, y)
        )
        return [condition if measured.sigma is None else noisy(condition, measured.sigma)]

    def clean_of_conditions(self) -> Array | None:
        u, f = super().clean_of_conditions(), self.source_observations.clean
        return None if u is None or f is None else np.concatenate([f.ravel(), u])

    def data(self) -> Any:
        return dde.data.PDE(
            self.geometry(), None, [*self.conditions(), *self.measurement_conditions()]
        )
