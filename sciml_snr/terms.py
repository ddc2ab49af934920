"""Noisy terms of a loss: residuals, the error of their data, and what it does to the gradient."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .handover import share_that_stays
from .pointwise import LossLike, Pointwise, pointwise


def check_sigma(sigma: Any) -> None:
    """Refuse a standard deviation that is negative or not finite.

    Raises:
        ValueError: says which entry is wrong.
    """
    found = torch.as_tensor(sigma)
    bad = ~(torch.isfinite(found) & (found >= 0))
    if bad.any():
        entry = found[bad].flatten()[0].item()
        raise ValueError(f"sigma must be finite and >= 0, got {entry:g}.")


def check_population(population: float | None) -> None:
    """Refuse a number of data that is none.

    Raises:
        ValueError: says so.
    """
    if population is not None and not population > 0:
        raise ValueError(f"population must be a positive number, got {population}.")


def as_sigma_tensor(sigma: Any) -> Tensor:
    """A standard deviation as a detached tensor.

    Raises:
        ValueError: it is no number or array, negative, or not finite.
    """
    if isinstance(sigma, Tensor):
        found = sigma.detach()
    else:
        array = np.asarray(sigma)
        if array.dtype.kind not in "biuf":
            raise ValueError(f"sigma must be a number or an array of numbers, got {sigma!r}.")
        found = torch.as_tensor(array.astype(np.float64))
    check_sigma(found)
    return found


def check_squares(sigma: Tensor, dtype: torch.dtype) -> None:
    """Refuse a sigma whose square leaves the dtype: no gradient could be compared with it.

    Raises:
        ValueError: says which and what to do.
    """
    # The optimizer's state of 16-bit parameters is in float32.
    state = torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
    limits = torch.finfo(state)
    positive = sigma[sigma > 0].double()
    if not positive.numel():
        return
    for value in (float(positive.min()), float(positive.max())):
        rounded = float(torch.tensor(value, dtype=dtype))
        if rounded in (0.0, math.inf):
            raise ValueError(
                f"sigma = {value:g} cannot be used in {dtype}: it is {rounded:g} there. Rescale "
                "the data (and sigma), or compute in float32."
            )
        if not limits.tiny < value * value < limits.max:
            raise ValueError(
                f"sigma = {value:g} cannot be used in {state}: its square is "
                f"{'0' if value < 1 else 'infinite'} there. Rescale the data (and sigma), or "
                "compute in float64."
            )


def sigma_text(sigma: Tensor) -> str:
    """A sigma in words."""
    if sigma.numel() == 0:
        return "none"
    low, high = float(sigma.min()), float(sigma.max())
    return f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"


Pattern = Callable[[int], Tensor]
"""A seed -> random numbers of mean 0 and variance 1, of a residual's shape, correlated as the
errors of its data are."""


@dataclass(eq=False)
class Term:
    """One noisy summand of the loss in one forward pass."""

    residual: Tensor
    """Prediction minus target, in the graph."""
    values: Tensor
    """The loss's elementwise values, or its mean; in the graph."""
    loss: Pointwise
    sigma: Tensor
    """Standard deviation of the data's error, broadcastable to the residual."""
    population: float | None = None
    """Number of data that each step's rows are drawn from: None for the same rows in every step."""
    drawn_anew: bool = True
    """Whether batches are others in every step; if one stays, its noise does not average away."""
    pattern: Pattern | None = None
    """Where the data's errors are correlated, what they look like."""
    is_coarse: bool = False
    """Whether the forward pass was rounded to 16 bits (autocast)."""
    is_noisy: bool | None = None
    """Whether every datum has an error, or none; None: that was not looked at."""
    gradient: Tensor | None = None
    """Of the total, by ``values``, once it has arrived."""
    place: Any = None
    """Where the residual comes from, as far as the source wants to know."""
    _misfit: tuple[Tensor, Tensor, Tensor] | None = field(default=None, init=False, repr=False)
    """The gradient that it was looked at with, and what :func:`misfit` has found."""

    def per_entry(self) -> Tensor:
        """Derivative of the total by the loss of every entry, broadcastable to the residual."""
        assert self.gradient is not None
        if self.values.ndim == 0 and self.residual.ndim:  # a mean
            return self.gradient / self.residual.numel()
        return self.gradient

    def squares(self) -> Tensor:
        """(residual / sigma)^2 of data that carry an error and count in the total; 0 elsewhere."""
        residual = self.wide_residual()
        return ((residual / self.sigma.to(residual)) ** 2).where(self.counts(), 0)

    def wide_residual(self) -> Tensor:
        """The residual, in float32 where sums of its squares would overflow."""
        residual = self.residual.detach()
        return residual.float() if residual.dtype in (torch.float16, torch.bfloat16) else residual

    def weight(self) -> Tensor:
        """Sum of the derivatives of the total by the losses of all entries."""
        each = self.per_entry().detach()
        return each.float() * self.residual.numel() if not each.ndim else each.float().sum()

    def counts(self) -> Tensor:
        """Which data carry an error and count in the total."""
        return ((self.sigma > 0) & (self.per_entry() != 0)).expand_as(self.residual)


def misfit(term: Term) -> tuple[Tensor, Tensor]:
    """Sum of the squares of residual / sigma, and their number."""
    assert term.gradient is not None
    if term._misfit is None or term._misfit[0] is not term.gradient:
        each = term.per_entry()
        if term.is_noisy and not each.ndim:
            residual = term.wide_residual()
            ratio = (residual / term.sigma.to(residual)).flatten()
            counts = each.ne(0).to(ratio)
            term._misfit = term.gradient, ratio.dot(ratio) * counts, ratio.numel() * counts
        else:
            squares = term.squares()
            term._misfit = term.gradient, squares.sum(), term.counts().sum().to(squares.dtype)
    return term._misfit[1:]


def beyond_noise(term: Term) -> Tensor:
    """max(R, 1) for the misfit R: above 1, residuals are more than noise. NaN if it overflows."""
    total, count = misfit(term)
    ratio = (total / count.clamp_min(1)).clamp_min(1)
    return torch.where(ratio < torch.inf, ratio, torch.nan)


def draw_scale(term: Term, beyond: Tensor) -> Tensor:
    """Standard deviation of the total's derivative by each residual under the data's error."""
    deviation = term.loss.score_deviation(term.sigma)
    return (term.per_entry() * deviation / beyond.sqrt()).expand_as(term.residual)


@dataclass
class NoisyTerm:
    """A noisy summand ``weight * loss``, stated by hand: for reference, and for risk estimates.

    Args:
        residual: prediction minus target, in the graph.
        sigma: standard deviation of the data's error, broadcastable to it; 0 for exact data.
        weight: of the term in the loss, which is a mean over entries.
        population: as for :class:`NoisyLoss`.
        loss: as for :class:`NoisyLoss`.
        pattern: what the data's errors look like, where they are correlated.
    """

    residual: Tensor
    sigma: Any
    weight: float = 1.0
    population: float | None = None
    loss: LossLike = "mse"
    drawn_anew: bool = True
    pattern: Pattern | None = None
    _pointwise: Pointwise = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_population(self.population)
        self._pointwise = pointwise(self.loss)

    def weighted_loss(self) -> Tensor:
        """What the term adds to the training loss."""
        values = self._pointwise.values(self.residual)
        return self.weight * values.mean()

    def share(self) -> float:
        """Share of its noise that is the same in every step."""
        population = self.population if self.drawn_anew else None
        return share_that_stays(len(self.residual), population)

    def deviation(self) -> Tensor:
        """Standard deviation of the loss's derivative by each residual, of the residual's shape.

        Raises:
            ValueError: sigma does not broadcast to the residual.
        """
        residual = self.residual.detach()
        sigma = as_sigma_tensor(self.sigma).to(residual.device, residual.dtype)
        try:
            sigma.expand_as(residual)
        except RuntimeError:
            raise ValueError(
                f"sigma {tuple(sigma.shape)} does not broadcast to the residual's "
                f"{tuple(residual.shape)}."
            ) from None
        each = torch.full_like(residual, self.weight / residual.numel())
        term = Term(residual, residual, self._pointwise, sigma, gradient=each)
        return draw_scale(term, beyond_noise(term))
