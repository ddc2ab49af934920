r"""Losses that know the error of their data, and hand it over to the optimizer.

===================  ============================================  ==========================
:class:`NoisyLoss`   measurement error of the data                 fixed data, or minibatches
:class:`SampledLoss` which samples happened to be drawn            minibatches
===================  ============================================  ==========================

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
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .handover import Facts, Handover, share_that_stays
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
    gradient: Tensor | None = None
    """Of the total, by ``values``, once it has arrived."""
    place: Any = None
    """Where the residual comes from, as far as the source wants to know."""

    def per_entry(self) -> Tensor:
        """Derivative of the total by the loss of every entry, broadcastable to the residual."""
        assert self.gradient is not None
        if self.values.ndim == 0 and self.residual.ndim:  # a mean
            return self.gradient / self.residual.numel()
        return self.gradient

    def squares(self) -> Tensor:
        """(residual / sigma)^2 of data that carry an error and count in the total; 0 elsewhere."""
        residual, sigma = self.residual.detach(), self.sigma
        if residual.dtype in (torch.float16, torch.bfloat16):  # whose sums of squares overflow
            residual, sigma = residual.float(), sigma.float()
        return ((residual / sigma) ** 2).where(self.counts(), 0)

    def counts(self) -> Tensor:
        """Which data carry an error and count in the total."""
        return ((self.sigma > 0) & (self.per_entry() != 0)).expand_as(self.residual)


def misfit(term: Term) -> tuple[Tensor, Tensor]:
    """Sum of the squares of residual / sigma, and their number."""
    squares = term.squares()
    return squares.sum(), term.counts().sum().to(squares.dtype)


def beyond_noise(term: Term) -> Tensor:
    """max(R, 1) for the misfit R: above 1, residuals are more than noise. NaN if it overflows."""
    total, count = misfit(term)
    ratio = total / count.clamp_min(1)
    return ratio.where(ratio.isfinite(), torch.nan).clamp_min(1)


def draw_scale(term: Term, beyond: Tensor) -> Tensor:
    """Standard deviation of the total's derivative by each residual under the data's error."""
    deviation = term.loss.score_deviation(term.sigma)
    return (term.per_entry() * deviation / beyond.sqrt()).expand_as(term.residual)


class _Arrival(torch.autograd.Function):
    """The identity, which tells a group of terms that a gradient has arrived."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, term: Term, group: Group) -> Tensor:
        ctx.term, ctx.group = term, group
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        ctx.group.arrive(ctx.term, gradient.detach())
        return gradient, None, None


class Group:
    """Terms of one forward pass that share the two extra passes through the graph.

    The passes are made when the gradient has arrived at every term.

    Args:
        source: whose terms they are.
    """

    def __init__(self, source: NoiseSource) -> None:
        self.source = source
        self.terms: list[Term] = []
        self._missing: set[int] = set()

    def watch(self, term: Term) -> Tensor:
        """Add a term; gives its values, as the loss is to be made from them."""
        self.terms.append(term)
        self._missing.add(id(term))
        watched: Tensor = _Arrival.apply(term.values, term, self)  # type: ignore[no-untyped-call]
        return watched

    def arrive(self, term: Term, gradient: Tensor) -> None:
        """Take a term's gradient."""
        term.gradient = gradient
        self._missing.discard(id(term))
        if not self._missing:
            self.source.hand_over(self.terms)
            self._missing = {id(term) for term in self.terms}


class NoiseSource:
    """What can be declared to an optimizer: it hands over draws of its noise in every backward."""

    is_equation = False
    """Whether its residuals are those of an equation, and not a comparison of outputs with data."""

    terms = 1
    """Number of its noisy terms."""

    def __init__(self) -> None:
        self._handovers: list[weakref.ref[Handover]] = []
        self._generators: dict[torch.device, torch.Generator] = {}

    def connect(self, handover: Handover) -> None:
        """Hand over to one more optimizer, as long as that one lives."""
        self._handovers.append(weakref.ref(handover))

    def disconnect(self, handover: Handover) -> None:
        """Hand over no more."""
        self._handovers = [own for own in self._handovers if own() is not handover]

    @property
    def handovers(self) -> list[Handover]:
        """Those of the optimizers that it was declared to."""
        found = (own() for own in self._handovers)
        return [own for own in found if own is not None and own.is_alive]

    def describe(self) -> list[str]:
        """One line per noisy term."""
        raise NotImplementedError

    def exact(self) -> list[str]:
        """One line per exact term beside them, as far as they are known by name."""
        return []

    def is_watched(self, values: Tensor) -> bool:
        """Whether a backward pass from here is to hand anything over."""
        return bool(self._handovers) and torch.is_grad_enabled() and values.requires_grad

    def hand_over(self, terms: Sequence[Term]) -> None:
        """Make the passes that the optimizers ask for."""
        terms = [term for term in terms if term.residual.requires_grad and term.residual.numel()]
        facts = self._facts(terms)
        for own in self.handovers:
            params = own.params()
            draws = noisy = None
            if params and terms and own.wants_draw:
                draws = self._gradients(*self._random_signs(terms, own), params)
            if params and terms and own.wants_gradient:
                gradients = [self._noisy_part(term, own.weighs_by_misfit) for term in terms]
                noisy = self._gradients([term.values for term in terms], gradients, params)
            own.hold(self, draws, noisy, facts)

    def _random_signs(
        self, terms: Sequence[Term], handover: Handover
    ) -> tuple[list[Tensor], list[Tensor]]:
        """What to differentiate for a draw, and by which factors."""
        seed = handover.next_seed(self)
        factors = []
        for k, term in enumerate(terms):
            signs = self._signs(tuple(term.residual.shape), term.residual.device, seed + k)
            factors.append(signs * draw_scale(term, beyond_noise(term)).to(term.residual.dtype))
        return [term.residual for term in terms], factors

    def _noisy_part(self, term: Term, by_misfit: bool) -> Tensor:
        """The gradient at a term's values; none where no datum has an error, and, if wanted, less
        what its misfit says is no noise."""
        assert term.gradient is not None
        noisy = term.gradient * term.sigma.any()
        return (noisy / beyond_noise(term).to(noisy)).nan_to_num(nan=0.0) if by_misfit else noisy

    def _signs(self, shape: tuple[int, ...], device: torch.device, seed: int) -> Tensor:
        """Random signs, from a generator of this source's own."""
        if device not in self._generators:
            self._generators[device] = torch.Generator(device)
        generator = self._generators[device].manual_seed(seed)
        signs = torch.randint(0, 2, shape, generator=generator, device=device, dtype=torch.int8)
        return signs * 2 - 1

    @staticmethod
    def _gradients(
        outputs: list[Tensor], factors: list[Tensor], params: list[Tensor]
    ) -> dict[Tensor, Tensor]:
        found = torch.autograd.grad(outputs, params, factors, retain_graph=True, allow_unused=True)
        return {p: g for p, g in zip(params, found, strict=True) if g is not None}

    def _facts(self, terms: Sequence[Term]) -> Facts:
        """What an optimizer wants to know besides."""
        if not terms:
            return Facts()
        first = terms[0]
        whole = all(
            term.population is None or len(term.residual) >= term.population for term in terms
        )
        parts = [misfit(term) for term in terms]
        return Facts(
            rows=len(first.residual) if first.residual.ndim else 1,
            population=first.population if first.drawn_anew else None,
            misfit=torch.stack([total for total, _ in parts]).sum(),
            summands=torch.stack([count for _, count in parts]).sum(),
            opens=whole and all(term.loss.is_square for term in terms),
            scale=torch.stack([term.per_entry().detach().float().sum() for term in terms]).sum(),
        )

    def __getstate__(self) -> dict[str, Any]:
        """A copy hands over to no optimizer yet."""
        return {**self.__dict__, "_handovers": [], "_generators": {}}


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

    def _reduced(self, values: Tensor) -> Tensor:
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
        population: number of data that batches are drawn from; None where all are used in every
            step. Infinity where every step draws fresh ones.
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
        self.is_equation = is_equation
        self._fits: set[torch.dtype] = set()

    def forward(self, input: Tensor, target: Tensor, sigma: Any = None) -> Tensor:
        """The loss.

        Args:
            input: predictions.
            target: measurements, of the same shape. (The order does not matter.)
            sigma: this batch's, if not the constructor's.
        """
        return self.of_residual(self._residual(input, target), sigma)

    def of_residual(
        self,
        residual: Tensor,
        sigma: Any = None,
        *,
        population: float | None = None,
        group: Group | None = None,
        place: Any = None,
    ) -> Tensor:
        """The loss of prediction minus target.

        Args:
            residual: in the graph.
            sigma: this batch's, if not the constructor's.
            population: the same.
            group: shares its passes with other terms of the same forward pass.
            place: where the residual comes from, for the group's source.
        """
        values = self.loss.values(residual)
        source = self if group is None else group.source
        if source.is_watched(values):
            own = self.sigma if sigma is None else as_sigma_tensor(sigma)
            own = self._broadcast(own, residual)
            population = self.population if population is None else population
            term = Term(residual, values, self.loss, own, population, place=place)
            values = (Group(self) if group is None else group).watch(term)
        return self._reduced(values)

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
            term = Term(residual, values, self.loss, torch.zeros(()), self.population)
            values = Group(self).watch(term)
        return self._reduced(values)

    def _random_signs(
        self, terms: Sequence[Term], handover: Handover
    ) -> tuple[list[Tensor], list[Tensor]]:
        (term,) = terms
        assert term.gradient is not None and term.population is not None
        b = len(term.residual)
        signs = self._signs((b,), term.residual.device, handover.next_seed(self))
        weights = signs - signs.to(term.values.dtype).mean()
        variance = max(0.0, 1 - b / term.population) * b / (b - 1)
        rows = (math.sqrt(variance) * weights).reshape(b, *[1] * (term.values.ndim - 1))
        return [term.values], [rows * term.gradient]

    def _noisy_part(self, term: Term, by_misfit: bool) -> Tensor:
        assert term.gradient is not None
        return term.gradient

    def _facts(self, terms: Sequence[Term]) -> Facts:
        return super()._facts(terms)._replace(rows=0, population=math.inf, opens=False)

    def describe(self) -> list[str]:
        """One line."""
        return [f"SampledLoss, {self.loss.name}, which samples were drawn"]


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
    if dtype in (torch.float16, torch.bfloat16):
        dtype = torch.float32  # of the optimizer's state
    limits = torch.finfo(dtype)
    positive = sigma[sigma > 0].double()
    if not positive.numel():
        return
    for value in (float(positive.min()), float(positive.max())):
        if not limits.tiny < value * value < limits.max:
            raise ValueError(
                f"sigma = {value:g} cannot be used in {dtype}: its square is "
                f"{'0' if value < 1 else 'infinite'} there. Rescale the data (and sigma), or "
                "compute in float64."
            )


def sigma_text(sigma: Tensor) -> str:
    """A sigma in words."""
    if sigma.numel() == 0:
        return "none"
    low, high = float(sigma.min()), float(sigma.max())
    return f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"


@dataclass
class NoisyTerm:
    """A noisy summand ``weight * loss``, stated by hand: for reference, and for risk estimates.

    Args:
        residual: prediction minus target, in the graph.
        sigma: standard deviation of the data's error, broadcastable to it; 0 for exact data.
        weight: of the term in the loss, which is a mean over entries.
        population: as for :class:`NoisyLoss`.
        loss: as for :class:`NoisyLoss`.
    """

    residual: Tensor
    sigma: Any
    weight: float = 1.0
    population: float | None = None
    loss: LossLike = "mse"
    drawn_anew: bool = True
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
