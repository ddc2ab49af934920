"""Losses as functions of prediction minus target, and how much noise in the target moves them."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LossLike = str | Callable[[Tensor, Tensor], Tensor]
"""``"mse"``, ``"huber"``, ``"l1"``; or prediction and target of one shape -> a number."""

NAMES = {
    "mse": "mse",
    "mean squared error": "mse",
    "l1": "l1",
    "mae": "l1",
    "mean absolute error": "l1",
    "huber": "huber",
}
"""What users call them, in lower case; DeepXDE's names are among them."""


class Pointwise:
    """A loss that is a function of prediction minus target, entry by entry.

    Args:
        name: ``"mse"``, ``"l1"`` or ``"huber"``; or what to call ``mean``.
        delta: of the huber loss.
        mean: a mean over entries in place of a named loss.
    """

    def __init__(
        self,
        name: str,
        delta: float = 1.0,
        mean: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        self.name = name
        self.delta = delta
        self.mean = mean

    @property
    def is_elementwise(self) -> bool:
        """Whether the values of single entries are to be had."""
        return self.mean is None

    @property
    def is_square(self) -> bool:
        """Whether it is the squared error."""
        return self.name == "mse" and self.mean is None

    def values(self, residual: Tensor) -> Tensor:
        """The loss of every entry; where there is only a mean, that."""
        if self.mean is not None:
            return self.mean(residual, torch.zeros_like(residual))
        if self.name == "mse":
            return residual.square()
        if self.name == "l1":
            return residual.abs()
        zero = torch.zeros_like(residual)
        return F.huber_loss(residual, zero, reduction="none", delta=self.delta)

    def score_deviation(self, sigma: Tensor) -> Tensor:
        r"""Root mean square of the derivative at an error of N(0, sigma^2); sigma's shape.

        2 sigma for the squared error, 1 for the absolute one, and for the huber loss with
        :math:`a = \delta/\sigma` the root of
        :math:`\sigma^2 (2\Phi(a) - 1 - 2 a \varphi(a)) + 2 \delta^2 (1 - \Phi(a))`. By the
        trapezoidal rule for others, which does not mind a kink in the loss.
        """
        if self.mean is not None:
            return self._score_by_quadrature(sigma, self.mean)
        if self.name == "mse":
            return 2 * sigma
        if self.name == "l1":
            return (sigma > 0).to(sigma.dtype)
        a = self.delta / sigma.double()
        outside = torch.erfc(a / math.sqrt(2))  # 2 (1 - Phi(a))
        density = torch.exp(-(a**2) / 2) / math.sqrt(2 * math.pi)
        inside = 1 - outside - (2 * a * density).nan_to_num(nan=0.0)  # inf * 0 at sigma = 0
        found = (sigma.double() ** 2 * inside + self.delta**2 * outside).sqrt()
        return found.to(sigma.dtype)

    @staticmethod
    def _score_by_quadrature(sigma: Tensor, mean: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        z = torch.linspace(-8, 8, 400, dtype=sigma.dtype, device=sigma.device)  # without 0
        w = torch.softmax(-(z**2) / 2, 0)
        errors = (z * sigma[..., None]).requires_grad_()
        with torch.enable_grad():
            (score,) = torch.autograd.grad(mean(errors, torch.zeros_like(errors)), errors)
        deviation = (w * (score * errors.numel()) ** 2).sum(-1).sqrt()
        return deviation.where(sigma > 0, 0)  # no error, no noise, also where the score jumps at 0


def pointwise(loss: LossLike | nn.Module | Pointwise, delta: float = 1.0) -> Pointwise:
    """The loss that a user means.

    Raises:
        ValueError: it is unknown, or not a mean over entries of a function of the difference.
    """
    if isinstance(loss, Pointwise):
        return loss
    if not (isinstance(delta, (int, float)) and 0 < delta < math.inf):
        raise ValueError(f"delta must be a positive number, got {delta!r}.")
    if isinstance(loss, str):
        if loss.lower() not in NAMES:
            raise ValueError(
                f'Unknown loss {loss!r}: choose "mse", "huber" or "l1", or give a function of '
                "prediction and target."
            )
        return Pointwise(NAMES[loss.lower()], float(delta))
    if not callable(loss):
        raise ValueError(f"loss must be a name or a function, not {loss!r}.")
    if isinstance(loss, nn.HuberLoss) and loss.reduction == "mean":
        return Pointwise("huber", loss.delta)
    return _known(loss)


def _known(loss: Callable[[Tensor, Tensor], Tensor]) -> Pointwise:
    """A named loss for a function that is one, or the function as a mean.

    Raises:
        ValueError: it is not a mean over entries of a function of the difference.
    """
    name = getattr(loss, "__name__", None) or repr(loss)
    target = torch.tensor([[0.3], [-1.2], [0.7], [2.0]])
    error = torch.tensor([[0.5], [-0.1], [1.7], [-2.3]])
    cause = None
    try:
        apart = torch.stack([loss(e[None], 0 * e[None]) for e in error])
        together = loss(target + error, target)
        square = error.reshape(2, 2)
        of_two = loss(square, 0 * square)  # neither a sum nor one weight per output
        fits = not together.ndim and torch.allclose(together, apart.mean(), rtol=1e-4)
        fits = fits and torch.allclose(of_two, together, rtol=1e-4)
        fits = fits and bool(apart.any())  # a cross-entropy of one class is 0
    except Exception as found:  # one for targets of another kind, such as classes
        fits, cause = False, found
    if not fits:
        raise ValueError(
            f"There is no label floor for the loss {name}: it is derived for a mean over entries "
            "of a function of prediction minus target, as mse_loss, l1_loss, huber_loss are."
        ) from cause
    errors = torch.tensor([1e-3, 0.5, -2.3, 1e3])
    values = torch.stack([loss(e[None, None], 0 * e[None, None]) for e in errors])
    for known in (Pointwise("mse"), Pointwise("l1"), Pointwise("huber")):
        if torch.allclose(values, known.values(errors), rtol=1e-4):
            return known
    return Pointwise(name, mean=loss)
