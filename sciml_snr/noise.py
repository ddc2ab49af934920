r"""Losses that know the error of their data, and hand it over to the optimizer.

:class:`NoisyLoss` is for the measurement error of the data, fixed data or minibatches;
:class:`SampledLoss` for which samples happened to be drawn, of minibatches.

A noisy loss is a loss like ``nn.MSELoss``. In ``backward()`` the gradient arrives at its
elementwise values :math:`l_i`: :math:`g_i = \partial\,\mathrm{total} / \partial l_i`, in which the
reduction, loss weights, the scale of mixed precision and accumulation are contained. There it makes
one random-sign pass through the graph, and, where the optimizer asks for it, the gradient of the
noisy terms alone. The optimizer squares and averages the first: the *floor*.

- label, for an error :math:`\sigma_i` in :math:`y_i`, :math:`\epsilon_i = \pm 1` at random:
  :math:`h = \nabla_w \sum_i \epsilon_i\, g_i\, s_i\, f(x_i)`, where :math:`s_i` is the root mean
  square of the loss's derivative at an error of N(0, sigma_i^2): :math:`2 \sigma_i` for the squared
  error. So :math:`\mathbb E h_k^2` is the variance of the gradient under the data's error. It does
  not vanish while the noise is being memorized, as every variance built from residuals does;
- sampling, for the parts :math:`L_i` of b samples in the loss:
  :math:`h = \sqrt{b/(b-1)}\, \nabla_w \sum_i (\epsilon_i - \bar\epsilon) L_i`, so that
  :math:`\mathbb E h_k^2 = \tfrac{b}{b-1} \sum_i (L_{ik} - \bar L_k)^2`, without per-sample
  gradients.

Random signs for per-sample gradients: M. Hutchinson, Commun. Stat. Simul. Comput. 19 (1990) 433.
The variance of a mean gradient as the yardstick: E. Litman and G. Guo, arXiv:2605.01172 (2026).

Residuals enter the label floor in one place only. Where a term's misfit
R = mean((residual / sigma)^2) is above 1, its residuals are more than noise, and its floor is
divided by R: a run on a plateau, where gradients are small everywhere, is let go. R is 1 at the
truth and falls from there to 0 as noise is memorized: then the floor is whole.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ._tensors import is_16_bit
from .handover import Facts, Handover
from .pointwise import LossLike, pointwise
from .source import Group, NoiseSource
from .terms import Pattern, Term, as_sigma_tensor, check_population, check_squares, sigma_text

_REDUCTIONS = ("mean", "sum", "none")


class _Loss(NoiseSource, nn.Module):
    """A loss module that watches its elementwise values."""

    def __init__(
        self, loss: LossLike, reduction: str, population: float | None, delta: float
    ) -> None:
        nn.Module.__init__(self)
        NoiseSource.__init__(self)
        if reduction not in _REDUCTIONS:
            known = ", ".join(map(repr, _REDUCTIONS))
            raise ValueError(f"reduction must be one of {known}, got {reduction!r}.")
        check_population(population)
        self.loss = pointwise(loss, delta)
        if reduction != "mean" and not self.loss.is_elementwise:
            raise ValueError(
                f"The loss {self.loss.name} is a mean: its reduction cannot be {reduction!r}."
            )
        self.reduction = reduction
        self.population = population

    def _residual(self, input: Tensor, target: Tensor) -> Tensor:
        if input.shape != target.shape:
            raise ValueError(
                f"input {tuple(input.shape)} and target {tuple(target.shape)} differ in shape: "
                "one-dimensional arrays become columns by y[:, None]."
            )
        return input - target

    def reduced(self, values: Tensor) -> Tensor:
        """The loss, of its elementwise values."""
        if self.reduction == "none" or not self.loss.is_elementwise:
            return values
        return values.mean() if self.reduction == "mean" else values.sum()


class NoisyLoss(_Loss):
    """A loss in place of ``nn.MSELoss``, whose targets carry an error of known size.

    Give it to the optimizer, too: ``SNRAdam(net.parameters(), noise=loss)``. Whatever else the
    training loss contains counts as exact. Under any other optimizer, and where no gradients are
    computed, it is the plain loss.

    Args:
        sigma: standard deviation of the targets' error, in their units: a number (or a
            :class:`sciml_snr.SigmaEstimate`), or an array or tensor that broadcasts to the targets:
            one per sample as (n, 1), one per component as (m,) or (1, m).
        loss: ``"mse"``, ``"huber"``, ``"l1"``, or a function of prediction and target that is a
            mean over entries of a function of their difference. Where it is not the squared error,
            what counts is the variance of its score (its derivative) under N(0, sigma^2).
        reduction: ``"mean"``, ``"sum"`` or ``"none"``, as for ``nn.MSELoss``.
        population: number of data that batches are drawn from, along the first dimension; None
            where all are used in every step. Infinity where every step draws fresh ones.
        delta: of the huber loss, as for ``nn.HuberLoss``.
        is_equation: the residuals are those of an equation with a measured source. Beside data of
            the outputs it then holds their noise back, as an exact equation does.

    Shapes:
        input, target: the same, any.

    Raises:
        ValueError: an argument is out of range, or shapes do not fit; says what to do.

    Example:
        >>> data = NoisyLoss(sigma=0.1)
        >>> optimizer = SNRAdam(net.parameters(), lr=1e-3, noise=data)
        >>> for _ in range(10_000):
        ...     optimizer.zero_grad()
        ...     data(net(x), y).backward()
        ...     optimizer.step()
    """

    def __init__(
        self,
        sigma: Any,
        loss: LossLike = "mse",
        *,
        reduction: str = "mean",
        population: float | None = None,
        delta: float = 1.0,
        is_equation: bool = False,
    ) -> None:
        super().__init__(loss, reduction, population, delta)
        if isinstance(sigma, str):
            raise ValueError(
                f"sigma must be a number or an array, got {sigma!r}. It can be estimated: "
                "sciml_snr.estimate_sigma_scattered(points, values), estimate_sigma_image(image)."
            )
        self.sigma = as_sigma_tensor(sigma)
        has_error = self.sigma > 0
        self._is_noisy = None if has_error.any() and not has_error.all() else bool(has_error.any())
        self.is_equation = is_equation
        self._fits: set[torch.dtype] = set()

    def forward(self, input: Tensor, target: Tensor, sigma: Any = None) -> Tensor:
        """The loss.

        Args:
            input: predictions.
            target: measurements, of the same shape. (The order does not matter.)
            sigma: this batch's, if not the constructor's.
        """
        is_coarse = is_16_bit(input) or is_16_bit(target)
        return self.of_residual(self._residual(input, target), sigma, is_coarse=is_coarse)

    def of_residual(
        self,
        residual: Tensor,
        sigma: Any = None,
        *,
        population: float | None = None,
        group: Group | None = None,
        place: Any = None,
        is_coarse: bool = False,
        pattern: Pattern | None = None,
    ) -> Tensor:
        """The loss of prediction minus target.

        Args:
            residual: in the graph.
            sigma: this batch's, if not the constructor's.
            population: the same.
            group: shares its passes with other terms of the same forward pass.
            place: where the residual comes from, for the group's source.
            is_coarse: what it was made from is rounded to 16 bits.
            pattern: what the data's errors look like, where they are correlated:
                :data:`sciml_snr.terms.Pattern`.
        """
        source = self if group is None else group.source
        if not source.is_watched(residual):
            return self.reduced(self.loss.values(residual))
        term = self.term(residual, sigma, population=population, place=place, is_coarse=is_coarse)
        term.pattern = pattern
        return self.reduced((Group(self) if group is None else group).watch(term))

    def term(
        self,
        residual: Tensor,
        sigma: Any = None,
        *,
        population: float | None = None,
        place: Any = None,
        is_coarse: bool = False,
        reduced: bool = False,
    ) -> Term:
        """The term that prediction minus target makes, for passes of the caller's own.

        Args:
            residual, sigma, population, place, is_coarse: as for :meth:`of_residual`.
            reduced: its values may be a mean already.
        """
        own = self._broadcast(self.sigma if sigma is None else as_sigma_tensor(sigma), residual)
        is_coarse |= torch.is_autocast_enabled(residual.device.type)
        values = self.loss.values(residual)
        return Term(
            residual,
            values.mean() if reduced and self.reduction == "mean" else values,
            self.loss,
            own,
            self.population if population is None else population,
            place=place,
            is_coarse=is_coarse,
            is_noisy=self._is_noisy if sigma is None else None,
        )

    def _broadcast(self, sigma: Tensor, residual: Tensor) -> Tensor:
        found = sigma.to(residual.device, residual.dtype)
        try:
            found.expand_as(residual)
        except RuntimeError:
            raise ValueError(
                f"sigma {tuple(sigma.shape)} does not broadcast to the data's "
                f"{tuple(residual.shape)}: give a number, (n, 1) for one per sample, or (m,) for "
                "one per component."
            ) from None
        if sigma is not self.sigma or residual.dtype not in self._fits:
            check_squares(sigma, residual.dtype)
        if sigma is self.sigma:
            self._fits.add(residual.dtype)
        return found

    def setup(self) -> str:
        """What has to be the same in all processes that train together: an error per datum may be
        another in each."""
        sigma = repr(self.sigma.item()) if self.sigma.numel() == 1 else "per datum"
        more = f"population {self.population}, is_equation {self.is_equation}"
        return f"NoisyLoss, {self.loss.name}, sigma {sigma}, {self.reduction}, {more}"

    def describe(self) -> list[str]:
        """One line."""
        return [f"NoisyLoss, {self.loss.name}, sigma {sigma_text(self.sigma)}"]

    def extra_repr(self) -> str:
        return f"sigma={sigma_text(self.sigma)}, loss={self.loss.name!r}"


class SampledLoss(_Loss):
    """A loss whose noise is which samples happened to be drawn into the batch.

    What the streaming estimate of the published rule stands for, from a single batch: usable at
    the first step, and blind to the optimizer's own motion. It vanishes with the residuals: on a
    fixed data set it cannot keep noise from being memorized (:class:`NoisyLoss` can).

    Args:
        loss, reduction, delta: as for :class:`NoisyLoss`; no function.
        population: number of samples that batches are drawn from without replacement (their mean's
            variance is (1 - b/n) times that of fresh ones); infinity: every batch is fresh.

    Shapes:
        input, target: (b, ...), b >= 2 samples.

    Raises:
        ValueError: an argument is out of range, or there are fewer than two samples.
    """

    def __init__(
        self,
        loss: LossLike = "mse",
        *,
        reduction: str = "mean",
        population: float = math.inf,
        delta: float = 1.0,
    ) -> None:
        super().__init__(loss, reduction, population, delta)
        if not self.loss.is_elementwise:
            raise ValueError(
                f"The loss {self.loss.name} is a mean: it does not tell samples apart."
            )

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss."""
        residual = self._residual(input, target)
        values = self.loss.values(residual)
        if self.is_watched(values):
            if residual.ndim == 0 or len(residual) < 2:
                raise ValueError(
                    f"SampledLoss needs two or more samples, not {tuple(residual.shape)}."
                )
            is_coarse = is_16_bit(input) or is_16_bit(target)
            is_coarse |= torch.is_autocast_enabled(residual.device.type)
            none = torch.zeros(())
            term = Term(residual, values, self.loss, none, self.population, is_coarse=is_coarse)
            values = Group(self).watch(term)
        return self.reduced(values)

    def _random_signs(
        self, terms: Sequence[Term], handover: Handover
    ) -> tuple[list[Tensor], list[Tensor]]:
        (term,) = terms
        assert term.gradient is not None and term.population is not None
        b = len(term.residual)
        signs = self._signs((b,), term.values, handover.next_seed(self))
        weights = signs - signs.mean()
        drawn = b * handover.processes.size  # as many in each
        variance = max(0.0, 1 - drawn / term.population) * b / (b - 1)
        rows = (math.sqrt(variance) * weights).reshape(b, *[1] * (term.values.ndim - 1))
        return [term.values], [rows * term.gradient]

    def _noisy_part(self, term: Term, by_misfit: bool) -> Tensor:
        assert term.gradient is not None
        return term.gradient

    def _facts(self, terms: Sequence[Term]) -> Facts:
        return super()._facts(terms)._replace(rows=0, population=math.inf, opens=False)

    def setup(self) -> str:
        """What has to be the same in all processes that train together."""
        return f"{self.describe()[0]}, {self.reduction}, population {self.population}"

    def describe(self) -> list[str]:
        """One line."""
        return [f"SampledLoss, {self.loss.name}, which samples were drawn"]
