"""A network as a function in the user's units: points and values as they were measured."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

Array = NDArray[np.float64]

TILE = 65_536
"""Points that are evaluated at a time."""


@dataclass(frozen=True)
class Units:
    """What is between the user's units and a network's: points about in [-1, 1], values about 1."""

    center: tuple[float, ...]
    """(d,) the point that becomes 0."""
    length: tuple[float, ...]
    """(d,) what becomes 1, of each coordinate."""
    mean: tuple[float, ...]
    """(m,) the value that is the network's 0."""
    deviation: tuple[float, ...]
    """(m,) what is the network's 1, of each output."""

    @classmethod
    def from_json(cls, found: Any, where: str | Path) -> Units:
        """Read what ``dataclasses.asdict`` made.

        Raises:
            ValueError: it is something else; names ``where``.
        """
        try:
            units = cls(**{name: tuple(map(float, found[name])) for name in asdict(_ONE)})
            fits = len(units.center) == len(units.length) and len(units.mean) == len(
                units.deviation
            )
        except (TypeError, KeyError, ValueError):
            fits = False
        if not fits:
            raise ValueError(f"{where} is damaged: {found!r} are no units.")
        return units


_ONE = Units((0.0,), (1.0,), (0.0,), (1.0,))


class Field(nn.Module):
    """A function of points, in the user's units: a part of any larger model of torch.

    Args:
        network: from points in about [-1, 1] to values of about 1; shared, not copied.
        units: what is between the two.

    Shapes:
        input: (..., d).
        output: (..., m), of the input's dtype.
    """

    center: Tensor
    length: Tensor
    mean: Tensor
    deviation: Tensor

    def __init__(self, network: nn.Module, units: Units) -> None:
        super().__init__()
        self.network = network
        self.units = units
        device = next((p.device for p in network.parameters()), torch.device("cpu"))
        for name, values in asdict(units).items():
            # In double precision: a coordinate may be a time in seconds since 1970.
            values = torch.tensor(values, dtype=torch.float64, device=device)
            self.register_buffer(name, values, persistent=False)

    def forward(self, points: Tensor) -> Tensor:
        """Values at points."""
        d = len(self.center)
        if points.shape[-1:] != (d,):
            raise ValueError(f"points must be of the shape (..., {d}), got {tuple(points.shape)}.")
        inward = (points.to(self.center) - self.center) / self.length
        dtype = next((p.dtype for p in self.network.parameters()), points.dtype)
        found: Tensor = self.network(inward.reshape(-1, d).to(dtype))
        outward = found.to(self.mean) * self.deviation + self.mean
        return outward.reshape(*points.shape[:-1], len(self.mean)).to(points.dtype)

    def evaluate(self, points: ArrayLike) -> Array:
        """Values (n, m) at points (n, d), numpy in and out, some at a time."""
        with torch.no_grad():
            parts = [self(x).cpu() for x in self._tiles(points)]
        found: Array = torch.cat(parts).numpy()
        return found

    def gradient(self, points: ArrayLike) -> Array:
        """Derivatives (n, m, d) at points (n, d) by automatic differentiation, numpy in and out."""
        parts = []
        for x in self._tiles(points):
            x.requires_grad_()
            with torch.enable_grad():
                outputs = self(x).unbind(-1)
            slopes = [torch.autograd.grad(y.sum(), x, retain_graph=True)[0] for y in outputs]
            parts.append(torch.stack(slopes, dim=1).cpu())
        found: Array = torch.cat(parts).numpy()
        return found

    def _tiles(self, points: ArrayLike) -> Iterator[Tensor]:
        rows = np.asarray(points, dtype=np.float64)
        for start in range(0, max(1, len(rows)), TILE):  # one tile of none
            yield torch.as_tensor(rows[start : start + TILE], device=self.center.device)
