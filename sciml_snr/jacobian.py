"""Residual rows, noisy and exact, and their Jacobian: what :class:`SNRGaussNewton` steps on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .terms import as_sigma_tensor

CHUNK = 256
"""Rows of a Jacobian that are made in one pass."""


@dataclass
class NoisyRows:
    """Residuals whose data carry an error: rows for :class:`sciml_snr.SNRGaussNewton`.

    Args:
        residual: prediction minus datum, of any shape, in the graph.
        sigma: standard deviation of the data's error, in their units, broadcastable to the
            residual; 0 for exact data.

    Raises:
        ValueError: sigma is negative, not finite, or does not broadcast to the residual.
        TypeError: the residual is no tensor.
    """

    residual: Tensor
    sigma: Any

    def __post_init__(self) -> None:
        if not isinstance(self.residual, Tensor):
            raise TypeError(f"A residual must be a tensor, got {self.residual!r}.")
        sigma = as_sigma_tensor(self.sigma).to(self.residual.device, torch.float64)
        try:
            self.sigma = sigma.expand_as(self.residual)
        except RuntimeError:
            raise ValueError(
                f"sigma {tuple(sigma.shape)} does not broadcast to the residual's "
                f"{tuple(self.residual.shape)}."
            ) from None


Rows = Tensor | NoisyRows
"""Exact residuals, as they count in a sum of squares, or noisy ones."""


class System(NamedTuple):
    """Residual rows at the parameters as they are."""

    rows: Tensor
    """(N,), float64: noisy rows in units of their sigma, exact ones as they count beside them."""
    noisy: Tensor
    """(N,), float64: 1 where a row is noisy, 0 where it is exact."""
    jacobian: Tensor
    """(N, P), the network's dtype: derivatives of the rows by all parameters."""

    def weighted(self, weights: Tensor, units: Tensor | None = None) -> System:
        """With each row, and its derivatives, times a number; and by parameters in these units."""
        jacobian = self.jacobian * weights.to(self.jacobian)[:, None]
        if units is not None:
            jacobian *= units.to(jacobian)
        return System(self.rows * weights, self.noisy, jacobian)


class Residuals(ABC):
    """Rows that can be evaluated at the parameters as they are."""

    data_stay = True
    """Whether the noisy rows are the same data in every step."""

    rows_stay = True
    """Whether all rows are the same ones in every step; what a function makes counts as that."""

    @abstractmethod
    def rows(self) -> Tensor:
        """The rows alone, (N,), float64."""

    @abstractmethod
    def system(self) -> System:
        """The rows and their Jacobian."""


class ClosureRows(Residuals):
    """Rows that a function makes, whatever it does: one backward pass a row, many at once.

    Args:
        closure: gives a list of rows, each a tensor (exact) or :class:`NoisyRows`.
        params: the parameters.
    """

    def __init__(self, closure: Callable[[], Any], params: Sequence[Tensor]) -> None:
        self._closure, self._params = closure, list(params)

    def _made(self) -> tuple[Tensor, Tensor]:
        """Rows in the graph, and which are noisy."""
        found = self._closure()
        found = [found] if isinstance(found, (Tensor, NoisyRows)) else found
        if not isinstance(found, (list, tuple)) or not found:
            raise TypeError(
                "The function given to step() must return a list of residual rows: tensors (exact) "
                f"and sciml_snr.NoisyRows(residual, sigma); got {found!r}."
            )
        values, noisy = zip(*map(_scaled, found), strict=True)
        return torch.cat(values), torch.cat(noisy)

    @torch.no_grad()
    def rows(self) -> Tensor:
        """The rows alone: equations may differentiate by their inputs."""
        with torch.enable_grad():
            values, _ = self._made()
        return values.detach().double()

    @torch.enable_grad()
    def system(self) -> System:
        """The rows and their Jacobian.

        Raises:
            RuntimeError: no row depends on the parameters.
        """
        values, noisy = self._made()
        if not values.requires_grad:
            raise RuntimeError(
                "No row depends on the parameters: make the rows from the network in the function "
                "given to step(), without torch.no_grad() or detach()."
            )
        parts = []
        for start in range(0, len(values), CHUNK):
            chunk = values[start : start + CHUNK]
            found = torch.autograd.grad(
                chunk,
                self._params,
                torch.eye(len(chunk), dtype=chunk.dtype, device=chunk.device),
                is_grads_batched=True,
                retain_graph=True,
                allow_unused=True,
            )
            parts.append(joined(found, self._params, len(chunk)))
        return System(values.detach().double(), noisy, torch.cat(parts))


def joined(found: Sequence[Tensor | None], params: Sequence[Tensor], rows: int) -> Tensor:
    """Gradients of so many rows by each parameter as one matrix; None is 0."""
    pairs = zip(found, params, strict=True)
    return torch.cat(
        [
            p.new_zeros(rows, p.numel()) if g is None else g.detach().reshape(rows, -1)
            for g, p in pairs
        ],
        1,
    )


def _scaled(rows: Any) -> tuple[Tensor, Tensor]:
    """Rows as a vector in units of sigma, and which are noisy.

    Raises:
        TypeError: they are no rows.
    """
    if isinstance(rows, NoisyRows):
        residual, sigma = rows.residual.flatten(), rows.sigma.flatten()
        noisy = (sigma > 0).to(sigma)
        factor = torch.where(sigma > 0, 1 / sigma, 1.0)
        return residual * factor.to(residual), noisy
    if not isinstance(rows, Tensor):
        raise TypeError(
            "Residual rows are tensors (exact) or sciml_snr.NoisyRows(residual, sigma); got "
            f"{rows!r}."
        )
    flat = rows.flatten()
    return flat, torch.zeros_like(flat, dtype=torch.float64)
