r"""Floors: how large a parameter's gradient would be if a term of the loss were only noise.

The unit of every floor is the variance of the (mean) gradient, per parameter. The streaming floor
of the published rule lives in the optimizer (``exp_grad_var``); it sees the noise of *sampling*,
and nothing when the same data are used in every step. :class:`LabelNoise` is the floor from the
*measurement error*: for a data term :math:`\frac{c}{n}\sum_i (f(x_i) - y_i)^2` with error
:math:`\sigma_i` in :math:`y_i`,

.. math::
    \mathrm{Var}\, g_k = (2c/n)^2 \sum_i \sigma_i^2 (\partial f(x_i) / \partial w_k)^2
                       = \mathbb E\, h_k^2, \qquad
    h = \nabla_w \tfrac{2c}{n} \sum_i \epsilon_i \sigma_i f(x_i), \quad \epsilon_i = \pm 1.

It does not vanish while the noise is being memorized, as a variance built from residuals does.
Random signs for per-sample gradients: M. Hutchinson, Commun. Stat. Simul. Comput. 19 (1990) 433.

Residuals enter in one place only. Where a term's misfit R = mean((residual / sigma)^2) is above 1,
its residuals are more than noise, and its floor is divided by R: a run on a plateau, where
gradients are small everywhere, is let go. R is 1 at the truth and falls from there to 0 as noise
is memorized: then the floor is whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._tensors import as_real, norms_are_finite, state_like


class NoisyTerm(NamedTuple):
    """One summand ``weight * mean(residual**2)`` of the loss, whose data carry an error."""

    residual: Tensor
    """Model minus data (n, m), attached to the graph."""
    sigma: Tensor | float
    """Standard deviation of the data's error, broadcastable to (n, m); 0 for exact data."""
    weight: float = 1.0


class LabelNoise(Mapping[Tensor, Tensor]):
    """Variance of the gradient under the error of the measurements, as a running average.

    A mapping from parameter to variance, to be handed to :meth:`SNRAdam.step` as its ``floor``.

    Args:
        params: the parameters to keep a floor for.
        sigma: default standard deviation of the measurements' error, in units of the data.
        rho: decay rate of the average over random-sign passes.
        every: make a pass at every so many calls of :meth:`update`; cost follows.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> optimizer = SNRAdam(net.parameters(), lr=1e-3, gate="snr", alpha=9.0, warmup_steps=500)
        >>> floor = LabelNoise(net.parameters(), sigma=0.1)
        >>> for _ in range(10_000):
        ...     optimizer.zero_grad()
        ...     floor.backward(net(x), y)
        ...     optimizer.step(floor=floor)
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        sigma: float | Tensor | None = None,
        *,
        rho: float = 0.99,
        every: int = 1,
    ) -> None:
        if not 0 <= rho < 1:
            raise ValueError(f"rho must be >= 0 and < 1, got {rho}.")
        if every < 1:
            raise ValueError(f"every must be at least 1, got {every}.")
        if sigma is not None:
            check_sigma(torch.as_tensor(sigma))
        self.sigma = sigma
        self.rho = rho
        self.every = every
        self.params = [p for p in params if p.requires_grad]
        if not self.params:
            raise ValueError("There are no parameters to keep a floor for.")
        # As SNRAdam's moments: float32 for 16-bit parameters, pairs of reals for complex ones.
        self._mean_sq = {p: state_like(p) for p in self.params}
        self._variance: dict[Tensor, Tensor] = {}
        self._calls = 0
        self._passes = 0

    def __getitem__(self, param: Tensor) -> Tensor:
        return self._variance[param]

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self._variance)

    def __len__(self) -> int:
        return len(self._variance)

    def update(self, terms: Iterable[NoisyTerm]) -> None:
        """Account for one step's data terms; the graph stays alive for the loss's own backward.

        Args:
            terms: the summands of the loss with noisy data. Their errors are independent, so that
                their variances add up.
        """
        terms = list(terms)
        if not terms:
            return
        self._calls += 1
        if (self._calls - 1) % self.every:
            return
        with torch.enable_grad():
            probe = sum(_random_sign_sum(term) for term in terms)
        assert isinstance(probe, Tensor)
        draws = torch.autograd.grad(probe, self.params, retain_graph=True, allow_unused=True)
        present = [draw for draw in draws if draw is not None]
        # Nothing of a step with NaN, which the optimizer refuses, is to stay in the average.
        if not present or not norms_are_finite(present):
            return
        self._passes += 1
        for mean_sq, draw in zip(self._mean_sq.values(), draws, strict=True):
            mean_sq.mul_(self.rho)
            if draw is not None:
                draw = as_real(draw.to(mean_sq.dtype))
                as_real(mean_sq).addcmul_(draw, draw, value=1 - self.rho)
        self._correct_bias()

    def _correct_bias(self) -> None:
        """The average started from zero, as Adam's moments do."""
        correction = 1 - self.rho**self._passes
        self._variance = {p: mean_sq / correction for p, mean_sq in self._mean_sq.items()}

    def backward(self, prediction: Tensor, target: Tensor, extra: Tensor | None = None) -> Tensor:
        """Update the floor, and backpropagate ``mse_loss(prediction, target) + extra``.

        Args:
            prediction: (n, m), attached to the graph.
            target: (n, m), with error ``sigma``.
            extra: the loss's other terms, taken to be free of measurement error.

        Returns:
            The loss, a detached scalar.

        Raises:
            ValueError: ``sigma`` was not given, or the shapes differ.
        """
        if self.sigma is None:
            raise ValueError("LabelNoise(params, sigma=...): backward needs the data's error.")
        if prediction.shape != target.shape:
            raise ValueError(
                f"prediction {tuple(prediction.shape)} and target {tuple(target.shape)} differ."
            )
        self.update([NoisyTerm(prediction - target, self.sigma)])
        loss = torch.nn.functional.mse_loss(prediction, target)
        if extra is not None:
            loss = loss + extra
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def state_dict(self) -> dict[str, Any]:
        """The running averages: tensors and numbers only."""
        return {
            "mean_sq": list(self._mean_sq.values()),
            "calls": self._calls,
            "passes": self._passes,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict` of a floor for the same parameters."""
        for own, saved in zip(self._mean_sq.values(), state["mean_sq"], strict=True):
            own.copy_(saved)
        self._calls, self._passes = state["calls"], state["passes"]
        self._variance = {}
        if self._passes:
            self._correct_bias()


def check_sigma(sigma: Tensor) -> None:
    """Refuse a standard deviation that is negative or not finite.

    Raises:
        ValueError: says which entry is wrong.
    """
    bad = ~(torch.isfinite(sigma) & (sigma >= 0))
    if bad.any():
        entry = sigma[bad].flatten()[0].item()
        raise ValueError(f"sigma must be finite and >= 0, got {entry:g}.")


def _random_sign_sum(term: NoisyTerm) -> Tensor:
    """What the random-sign pass differentiates: its gradient is one draw of h."""
    residual = term.residual
    sigma = torch.as_tensor(term.sigma, dtype=residual.dtype, device=residual.device)
    try:
        sigma = sigma.expand_as(residual)
    except RuntimeError:
        raise ValueError(
            f"sigma {tuple(sigma.shape)} does not broadcast to the residual's "
            f"{tuple(residual.shape)}."
        ) from None
    signs = torch.randint(0, 2, residual.shape, device=residual.device, dtype=torch.int8) * 2 - 1
    lowered = _misfit(residual.detach(), sigma).clamp_min(1).rsqrt()  # of h; R of the floor
    scale = 2 * term.weight / residual.numel() * lowered
    return scale * (signs * sigma * residual).sum()


def _misfit(residual: Tensor, sigma: Tensor) -> Tensor:
    """R = mean((residual / sigma)**2) over the data that carry an error; 0 where none does."""
    noisy = sigma > 0
    return ((residual / sigma) ** 2).where(noisy, 0).sum() / noisy.sum().clamp_min(1)
