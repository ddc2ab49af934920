r"""Floors: how large a parameter's gradient would be if a term of the loss were only noise.

The unit of every floor is the variance of the (mean) gradient, per parameter:

============================  =====================================================  =============
:class:`LabelNoise`           measurement error of the data                          fixed data
:class:`SamplingNoise`        which samples happened to be drawn                     minibatches
:class:`StreamNoise`          change of the gradient from step to step (published)   minibatches
============================  =====================================================  =============

Each is a running average of squared *draws* h of the gradient's noise, E h = 0, E h^2 = variance:

- label, for a data term :math:`\frac{c}{n}\sum_i (f(x_i) - y_i)^2` with error :math:`\sigma_i` in
  :math:`y_i`: :math:`h = \nabla_w \tfrac{2c}{n} \sum_i \epsilon_i \sigma_i f(x_i)`, with
  :math:`\epsilon_i = \pm 1`, so that
  :math:`\mathbb E h_k^2 = (2c/n)^2 \sum_i \sigma_i^2 (\partial f(x_i) / \partial w_k)^2`. It does
  not vanish while the noise is being memorized, as every variance built from residuals does;
- sampling, for losses :math:`\ell_i` of b samples:
  :math:`h = \nabla_w \sum_i (\epsilon_i - \bar\epsilon) \ell_i / \sqrt{b(b-1)}`, so that
  :math:`\mathbb E h_k^2 = \sum_i (g_{ik} - \bar g_k)^2 / (b(b-1))`, without per-sample gradients;
- stream: :math:`h = (g - m)\sqrt{(1+\beta_1)/2}` with the previous first moment m, which has a
  variance of its own: the root makes up for it.

The first two are lowered by what the first moment averages away of noise that is drawn anew in
every step. :func:`exact_label_noise` and :func:`exact_sampling_noise` (of one batch, ``beta1=0``)
compute them from per-sample gradients, for reference and small problems.

Random signs for per-sample gradients: M. Hutchinson, Commun. Stat. Simul. Comput. 19 (1990) 433.
The variance of a mean gradient as the yardstick: E. Litman and G. Guo, arXiv:2605.01172 (2026).

Residuals enter the label floor in one place only. Where a term's misfit
R = mean((residual / sigma)^2) is above 1, its residuals are more than noise, and its floor is
divided by R: a run on a plateau, where gradients are small everywhere, is let go. R is 1 at the
truth and falls from there to 0 as noise is memorized: then the floor is whole.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from ._tensors import as_real, is_16_bit, norms_are_finite, state_like

Loss = Callable[[Tensor, Tensor], Tensor]
"""Prediction and target of one shape -> a number, as torch.nn.functional.mse_loss."""


class NoisyTerm(NamedTuple):
    """One summand ``weight * loss`` of the training loss, whose data carry an error."""

    residual: Tensor
    """Model minus data (n, m), attached to the graph."""
    sigma: Tensor | float
    """Standard deviation of the data's error, broadcastable to (n, m); 0 for exact data."""
    weight: float = 1.0
    population: float | None = None
    """Number of data that each step's n rows are drawn from: None for n, the same rows in every
    step; infinity where every step draws fresh ones."""
    loss: Loss = mse_loss
    """A mean over entries of a function of prediction minus target."""
    drawn_anew: bool = True
    """Whether a part of the population is another one in every step; if it stays for several, its
    noise does not average away."""

    def weighted_loss(self) -> Tensor:
        """What the term adds to the training loss."""
        return self.weight * self.loss(self.residual, torch.zeros_like(self.residual))


Params = Iterable[Tensor] | Iterable[tuple[str, Tensor]]
"""As for a torch optimizer, without groups."""


def _listed(params: Params) -> list[Tensor]:
    """The parameters, without their names."""
    if not isinstance(params, Tensor):
        found = [p[1] if isinstance(p, tuple) else p for p in params]
        if all(isinstance(p, Tensor) for p in found):
            return list(dict.fromkeys(found))
    raise TypeError(
        "params must be an iterable of parameters, such as net.parameters() (of param_groups: "
        "[p for group in optimizer.param_groups for p in group['params']])."
    )


class NoiseFloor(Mapping[Tensor, Tensor]):
    """A running average of squared draws of the gradient's noise: parameter -> variance.

    To be handed to the optimizers' ``step`` as ``floor``. Kept in float32 for 16-bit parameters,
    and as pairs of reals (variances of real and imaginary part) for complex ones.

    Args:
        params: the parameters (or named ones) to keep a floor for. One that is frozen has none
            before its first draw.
        rho: decay rate of the average over draws. A parameter that a draw does not reach keeps its
            average, as Adam keeps the moments of one without gradient.
        every: draw at every so many calls only; cost follows.
        beta1: decay rate of the optimizer's first moment.

    Raises:
        TypeError: params are no parameters.
        ValueError: an argument is out of range.
    """

    def __init__(
        self, params: Params, rho: float = 0.99, every: int = 1, beta1: float = 0.9
    ) -> None:
        for name, rate in (("rho", rho), ("beta1", beta1)):
            if not 0 <= rate < 1:
                raise ValueError(f"{name} must be >= 0 and < 1, got {rate}.")
        if every < 1 or every != int(every):
            raise ValueError(f"every must be an integer >= 1, got {every}.")
        self.rho = rho
        self.every = every
        self.beta1 = beta1
        self.params = _listed(params)
        if not self.params:
            raise ValueError("There are no parameters to keep a floor for.")
        self.draws: dict[Tensor, Tensor] = {}
        """The draw of the last call; empty if that call made none."""
        self.noisy_grads: dict[Tensor, Tensor] = {}
        """Gradient of the noisy terms in the last call, where the loss has exact terms beside them:
        the optimizers let those act where the gate is closed. Empty: all of the loss is noisy."""
        self._weighed: list[NoisyTerm] = []
        """The last call's terms, for :attr:`excess`."""
        self._mean_sq: dict[Tensor, Tensor] = {}
        self._variance: dict[Tensor, Tensor] = {}
        self._calls = 0
        self._passes: dict[Tensor, int] = {}
        self._reached = True
        """Whether the last draw had a gradient by any parameter."""

    @functools.cached_property
    def excess(self) -> Tensor | float:
        """Share of the last call's residuals that cannot be noise (:func:`excess`), for gates that
        open by it; 0 of floors that do not know the data's error. Computed when asked for."""
        return excess(self._weighed)

    def __getitem__(self, param: Tensor) -> Tensor:
        return self._variance[param]

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self._variance)

    def __len__(self) -> int:
        return len(self._variance)

    def _is_due(self) -> bool:
        """Count a call of the user's; whether it is one that draws."""
        self.draws, self._reached = {}, True
        self._calls += 1
        return (self._calls - 1) % self.every == 0

    def _draw(self, noise: Tensor) -> None:
        """Average in one draw: the gradient of the scalar ``noise``, whose graph stays alive."""
        draws = self._gradients(noise)
        self._reached = any(draw is not None for draw in draws.values())
        self._average(draws)

    def _gradients(self, total: Tensor) -> dict[Tensor, Tensor | None]:
        """Gradient of a scalar by those that are not frozen; None: it does not depend on one."""
        trained = [p for p in self.params if p.requires_grad]
        if not trained:
            return {}
        found = torch.autograd.grad(total, trained, retain_graph=True, allow_unused=True)
        return dict(zip(trained, found, strict=True))

    def _average(self, draws: Mapping[Tensor, Tensor | None]) -> None:
        present = {p: draw for p, draw in draws.items() if draw is not None}
        # Nothing of a step with NaN, which the optimizer refuses, is to stay in the average.
        if not present or not norms_are_finite(present.values()):
            return
        for p in draws:
            if p not in self._mean_sq:
                self._mean_sq[p], self._passes[p] = state_like(p), 0
        averages = [as_real(self._mean_sq[p]) for p in present]
        found = [as_real(draw.to(self._mean_sq[p].dtype)) for p, draw in present.items()]
        torch._foreach_mul_(averages, self.rho)
        torch._foreach_addcmul_(averages, found, found, 1 - self.rho)
        for p in present:
            self._passes[p] += 1
        self.draws = present
        self._correct_bias(draws)

    def _correct_bias(self, params: Iterable[Tensor]) -> None:
        """The averages started from zero, as Adam's moments do."""
        params = list(params)
        corrections = [1 - self.rho ** max(self._passes[p], 1) for p in params]
        corrected = torch._foreach_div([self._mean_sq[p] for p in params], corrections)
        self._variance.update(zip(params, corrected, strict=True))

    def state_dict(self) -> dict[str, Any]:
        """The running averages: tensors and numbers only; None of a parameter that has none."""
        return {
            "mean_sq": [self._mean_sq.get(p) for p in self.params],
            "passes": [self._passes.get(p) for p in self.params],
            "calls": self._calls,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict` of a floor for the same parameters.

        Raises:
            ValueError: it is one for others.
        """
        averages, passes = state["mean_sq"], state["passes"]
        params = self.params
        if isinstance(passes, int):  # an earlier version: one number, and without what was frozen
            passes = [passes] * len(averages)
            if len(averages) < len(params):
                params = [p for p in params if p.requires_grad]
        shapes = [None if x is None else tuple(x.shape) for x in averages]
        own = [tuple(p.shape) for p in params]
        fits = len(shapes) == len(own)
        if not fits or any(a not in (None, b) for a, b in zip(shapes, own, strict=True)):
            raise ValueError(
                f"This is a state of a floor for parameters of the shapes {shapes}, not {own}."
            )
        self._calls = state["calls"]
        self._mean_sq, self._passes, self._variance, self.draws = {}, {}, {}, {}
        for p, saved, count in zip(params, averages, passes, strict=True):
            if saved is not None:
                self._mean_sq[p] = state_like(p).copy_(saved)
                self._passes[p] = count
        if any(self._passes.values()):
            self._correct_bias(self._mean_sq)


class LabelNoise(NoiseFloor):
    """Variance of the gradient under the error of the measurements, by random-sign passes.

    Args:
        params: the parameters to keep a floor for.
        sigma: standard deviation of the measurements' error, in units of the data: a number, or a
            tensor that broadcasts to the predictions.
        rho: decay rate of the average over random-sign passes.
        every: make a pass at every so many calls; cost follows.
        loss: :meth:`backward`'s loss, a mean over entries of a function of prediction minus
            target, such as ``mse_loss``, ``huber_loss``, ``l1_loss``. Where it is not the squared
            error, what counts is the variance of its score (its derivative) under N(0, sigma^2).
        beta1: decay rate of the optimizer's first moment. It averages noise away that is drawn
            anew in every step, down to (1 - beta1) / (1 + beta1) of its variance.

    Raises:
        ValueError: an argument is out of range, or the loss is not of that form.

    Example:
        >>> optimizer = SNRAdam(net.parameters(), lr=1e-3, **LABEL_GATE)
        >>> floor = LabelNoise(net.parameters(), sigma=0.1)
        >>> for _ in range(10_000):
        ...     optimizer.zero_grad()
        ...     floor.backward(net(x), y)
        ...     optimizer.step(floor=floor)
    """

    def __init__(
        self,
        params: Params,
        sigma: float | Tensor | None = None,
        *,
        rho: float = 0.99,
        every: int = 1,
        loss: Loss = mse_loss,
        beta1: float = 0.9,
    ) -> None:
        super().__init__(params, rho, every, beta1)
        if sigma is not None:
            check_sigma(torch.as_tensor(sigma))
        self.sigma = sigma
        self.loss = check_loss(loss)

    def update(self, terms: Iterable[NoisyTerm], exact_terms: bool = False) -> None:
        """Account for one step's data terms; the graph stays alive for the loss's own backward.

        Args:
            terms: the summands of the loss with noisy data. Their errors are independent, so that
                their variances add up.
            exact_terms: whether the loss has exact terms beside them, or an equation is among them
                beside data. Then it costs one more backward pass through the noisy ones, for
                :attr:`noisy_grads`. Of several, one whose misfit R is above 1 then counts as noisy
                by a part of 1/R only: what else it is off by is no noise. (With a sigma that is too
                small by a factor f, noise is so fitted until R is 1, down to f^2 of what there is.)
        """
        terms = [term for term in terms if term.residual.numel()]
        self.draws, self.noisy_grads = {}, {}
        if terms and self._is_due():
            for term in terms:
                check_sigma(torch.as_tensor(term.sigma))
            with torch.enable_grad():
                noise = sum(self._random_sign_sum(term) for term in terms)
            assert isinstance(noise, Tensor)
            self._draw(noise)
        noisy = [term for term in terms if torch.as_tensor(term.sigma).any()]
        self._weighed = _weighable(noisy)
        self.__dict__.pop("excess", None)
        if noisy and (exact_terms or len(noisy) < len(terms)):
            self.noisy_grads = self._gradient(noisy)

    def backward(
        self,
        prediction: Tensor,
        target: Tensor,
        extra: Tensor | None = None,
        *,
        sigma: float | Tensor | None = None,
        population: float | None = None,
    ) -> Tensor:
        """Update the floor, and backpropagate ``loss(prediction, target) + extra``.

        Once a step: the gradients that the step sees must be this call's own, not accumulated over
        calls (:meth:`update` takes several terms at once), nor rescaled or clipped.

        Args:
            prediction: (n, m), attached to the graph.
            target: (n, m), with error ``sigma``.
            extra: the loss's other terms, taken to be free of measurement error: the optimizers let
                them act where the gate is closed. Costs one more backward pass.
            sigma: this batch's, if not the constructor's.
            population: number of data that batches of n are drawn from; None where all are used
                in every step.

        Returns:
            The loss, a detached scalar.

        Raises:
            ValueError: ``sigma`` was not given, the shapes differ, or the prediction depends on
                none of the floor's parameters.
        """
        sigma = self.sigma if sigma is None else sigma
        if sigma is None:
            raise ValueError("LabelNoise(params, sigma=...): backward needs the data's error.")
        if prediction.shape != target.shape:
            raise ValueError(
                f"prediction {tuple(prediction.shape)} and target {tuple(target.shape)} differ."
            )
        check_sigma(torch.as_tensor(sigma))
        terms = [NoisyTerm(prediction - target, sigma, 1.0, population, self.loss)]
        self.update(terms, exact_terms=extra is not None)
        if not self._reached:
            raise ValueError(
                "The prediction depends on none of this floor's parameters: they are frozen, or "
                "those of another network (a copy has its own)."
            )
        loss = self.loss(prediction, target)
        if extra is not None:
            loss = loss + extra
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def _gradient(self, terms: list[NoisyTerm]) -> dict[Tensor, Tensor]:
        """Of the noisy part of the loss."""
        with torch.enable_grad():
            alone = len(terms) == 1
            loss = sum(
                term.weighted_loss() * (1.0 if alone else noisy_part(term)) for term in terms
            )
        assert isinstance(loss, Tensor)
        return {p: g for p, g in self._gradients(loss).items() if g is not None}

    def _random_sign_sum(self, term: NoisyTerm) -> Tensor:
        """What the random-sign pass differentiates: its gradient is one draw of h."""
        residual = term.residual
        signs = torch.randint(0, 2, residual.shape, device=residual.device, dtype=torch.int8)
        return ((signs * 2 - 1) * noise_scale(term, self.beta1) * residual).sum()


class SamplingNoise(NoiseFloor):
    """Variance of the mean gradient over samples, by random signs on their losses.

    What the streaming estimate of the published rule stands for, from a single batch: usable at
    the first step, and blind to the optimizer's own motion. It vanishes with the residuals: on a
    fixed data set it cannot keep noise from being memorized (use :class:`LabelNoise`).

    Args:
        params, rho, every: as for :class:`NoiseFloor`.
        population: number of samples that batches are drawn from without replacement (their mean's
            variance is (1 - b/n) times that of fresh ones); infinity: every batch is fresh.
        beta1: decay rate of the optimizer's first moment, which averages over batches.

    Example:
        >>> floor = SamplingNoise(net.parameters())
        >>> floor.backward(torch.nn.functional.mse_loss(net(x), y, reduction="none").mean(1))
        >>> optimizer.step(floor=floor)
    """

    def __init__(
        self,
        params: Params,
        *,
        rho: float = 0.99,
        every: int = 1,
        population: float = math.inf,
        beta1: float = 0.9,
    ) -> None:
        super().__init__(params, rho, every, beta1)
        if not population > 0:
            raise ValueError(f"population must be a positive number, got {population}.")
        self.population = population

    def update(self, losses: Tensor) -> None:
        """Account for one batch; the graph stays alive for the loss's own backward.

        Args:
            losses: (b,), one per sample.

        Raises:
            ValueError: there are fewer than two losses, or they are not a vector.
        """
        _check_losses(losses)
        if self._is_due():
            b = len(losses)
            signs = torch.randint(0, 2, (b,), device=losses.device).to(losses.dtype) * 2 - 1
            finite = max(0.0, 1 - b / self.population)
            variance = finite * (1 - self.beta1) / (1 + self.beta1) / (b * (b - 1))
            with torch.enable_grad():
                noise = math.sqrt(variance) * ((signs - signs.mean()) * losses).sum()
            self._draw(noise)

    def backward(self, losses: Tensor) -> Tensor:
        """Update the floor, and backpropagate the mean of the losses.

        Args:
            losses: (b,), one per sample.

        Returns:
            The mean, a detached scalar.

        Raises:
            ValueError: there are fewer than two losses, or they are not a vector.
        """
        self.update(losses)
        loss = losses.mean()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()


class StreamNoise(NoiseFloor):
    r"""The published estimate: the variance of the gradient from one step to the next.

    SNRAdam keeps it by itself (``exp_grad_var``) and uses it where no floor is given. This is the
    same as a floor of its own, with the first moment's share taken out, so that it is unbiased for
    the variance of a fresh batch's gradient. Like the published rule's, it is *not* reduced by the
    first moment's averaging.

    Args:
        params, rho: as for :class:`NoiseFloor`.
        beta1: decay rate of the first moment that gradients are compared with.

    Source: E. Litman and G. Guo, arXiv:2605.01172, Algorithm 1.
    """

    def __init__(self, params: Params, *, rho: float = 0.99, beta1: float = 0.9) -> None:
        super().__init__(params, rho, beta1=beta1)
        self._mean = {p: state_like(p) for p in self.params}

    @torch.no_grad()
    def update(self) -> None:
        """Account for the gradients that are in ``.grad`` now; call it once a step."""
        self._is_due()
        root = math.sqrt((1 + self.beta1) / 2)
        draws: dict[Tensor, Tensor | None] = {}
        for p, mean in self._mean.items():
            draws[p] = None if p.grad is None else root * (p.grad.to(mean.dtype) - mean)
        self._average(draws)
        for p in self.draws:
            assert p.grad is not None
            self._mean[p].lerp_(p.grad.to(self._mean[p].dtype), 1 - self.beta1)

    def state_dict(self) -> dict[str, Any]:
        """The running averages: tensors and numbers only."""
        return {**super().state_dict(), "mean": list(self._mean.values())}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict` of a floor for the same parameters."""
        super().load_state_dict(state)
        for own, saved in zip(self._mean.values(), state["mean"], strict=True):
            own.copy_(saved)


def exact_label_noise(
    params: Iterable[Tensor], terms: Iterable[NoisyTerm], beta1: float = 0.9
) -> dict[Tensor, Tensor]:
    """The variance that :class:`LabelNoise` estimates, from the gradient of every residual.

    Args:
        params: real parameters.
        terms: as for :meth:`LabelNoise.update`; their graph stays alive.
        beta1: as for :class:`LabelNoise`.

    Memory grows with entries times parameters: for reference and small problems.
    """
    params = list(params)
    total = {p: torch.zeros_like(p) for p in params}
    for term in terms:
        scale = noise_scale(term, beta1).expand_as(term.residual)
        for p, rows in _per_sample_gradients(term.residual.flatten(), params).items():
            total[p] += torch.einsum("i,i...->...", scale.flatten() ** 2, rows**2)
    return total


def exact_sampling_noise(params: Iterable[Tensor], losses: Tensor) -> dict[Tensor, Tensor]:
    """Variance of the mean gradient of a fresh batch, sum (g_i - mean g)^2 / (b (b - 1)).

    What :class:`SamplingNoise` estimates with ``beta1=0``.

    Args:
        params: real parameters.
        losses: (b,), one per sample; their graph stays alive.

    Raises:
        ValueError: there are fewer than two losses, or they are not a vector.
    """
    _check_losses(losses)
    b = len(losses)
    gradients = _per_sample_gradients(losses, list(params))
    return {p: rows.var(0, correction=1) / b for p, rows in gradients.items()}


def _check_losses(losses: Tensor) -> None:
    if losses.ndim != 1 or len(losses) < 2:
        raise ValueError(
            f"Give one loss per sample, a vector of two or more, not {tuple(losses.shape)}."
        )


def _per_sample_gradients(outputs: Tensor, params: list[Tensor]) -> dict[Tensor, Tensor]:
    """(n,) outputs -> the gradient of each, (n, *shape), per parameter; torch.func's vmap."""
    eye = torch.eye(len(outputs), dtype=outputs.dtype, device=outputs.device)
    rows = torch.autograd.grad(
        outputs, params, eye, retain_graph=True, allow_unused=True, is_grads_batched=True
    )
    return {
        p: torch.zeros((len(outputs), *p.shape), dtype=p.dtype, device=p.device) if g is None else g
        for p, g in zip(params, rows, strict=True)
    }


def noisy_part(term: NoisyTerm) -> Tensor:
    """1, or 1/R for a misfit R above 1: what else the term is off by is no noise."""
    part = 1 / _misfit(*_residual_and_sigma(term)).clamp_min(1)
    return part.nan_to_num(nan=0.0)  # an R that overflows


def excess(terms: Iterable[NoisyTerm]) -> Tensor | float:
    r"""Share of the residuals that is more than noise, by the misfit of all terms together.

    .. math::
        \max(0, 1 - (1 - \sqrt{2/N}) / R), \qquad R = \frac1N \sum_i (r_i / \sigma_i)^2

    Errors alone have R = 1 with a standard deviation of sqrt(2/N), and a fit that is as good as it
    can be takes some of them up: it ends below 1. Fitting no further than to R = 1 is the
    discrepancy principle (V. A. Morozov, *Soviet Math. Dokl.* 7 (1966) 414); 1 - 1/R is the
    shrinkage factor of James and Stein. Terms of weight 0 do not count. 0 where a term is a batch
    of more data, whose misfit is a matter of chance, or its loss is not ``mse_loss``: who takes
    another does not expect normal errors.
    """
    terms = _weighable(terms)
    if not terms:
        return 0.0
    found = [_residual_and_sigma(term) for term in terms]
    total = torch.stack([_misfit(r, sigma) * _count(r, sigma) for r, sigma in found]).sum()
    count = torch.stack([_count(r, sigma) for r, sigma in found]).sum()
    allowed = count - (2 * count).sqrt()
    return (1 - allowed.clamp_min(0) / total).clamp(0, 1).nan_to_num(nan=0.0)


def _weighable(terms: Iterable[NoisyTerm]) -> list[NoisyTerm]:
    """Those whose residuals :func:`excess` weighs, out of the graph."""
    terms = [term for term in terms if term.weight]
    if any(t.loss is not mse_loss or _is_batch(t) for t in terms):
        return []
    return [
        t._replace(
            residual=t.residual.detach(),
            sigma=t.sigma.detach() if isinstance(t.sigma, Tensor) else t.sigma,
        )
        for t in terms
    ]


def _is_batch(term: NoisyTerm) -> bool:
    return term.population is not None and len(term.residual) < term.population


def noise_scale(term: NoisyTerm, beta1: float) -> Tensor:
    """Standard deviation of the loss's derivative by each residual, broadcastable to them.

    Raises:
        ValueError: sigma does not broadcast to the residual, or the population is not positive.
    """
    if term.population is not None and not term.population > 0:
        raise ValueError(f"population must be a positive number, got {term.population}.")
    residual, sigma = _residual_and_sigma(term)
    share = 1.0  # of the noise that is the same in every step
    if term.population is not None and term.drawn_anew:
        share = min(share, len(residual) / term.population)
    averaged = share + (1 - share) * (1 - beta1) / (1 + beta1)
    lowered = (averaged / _misfit(residual, sigma).clamp_min(1)).sqrt()
    return term.weight / residual.numel() * lowered * score_deviation(term.loss, sigma)


def _residual_and_sigma(term: NoisyTerm) -> tuple[Tensor, Tensor]:
    """Both detached, the second broadcastable to the first."""
    residual = term.residual.detach()
    sigma = torch.as_tensor(term.sigma, dtype=residual.dtype, device=residual.device).detach()
    try:
        sigma.expand_as(residual)
    except RuntimeError:
        raise ValueError(
            f"sigma {tuple(sigma.shape)} does not broadcast to the residual's "
            f"{tuple(residual.shape)}."
        ) from None
    return residual, sigma


def score_deviation(loss: Loss, sigma: Tensor) -> Tensor:
    r"""Root mean square of a loss's derivative at an error of N(0, sigma^2); sigma's shape.

    2 sigma for the squared error; by the trapezoidal rule for others (1 for the absolute error,
    whatever sigma), which does not mind a kink in the loss.
    """
    if loss is mse_loss:
        return 2 * sigma
    z = torch.linspace(-8, 8, 400, dtype=sigma.dtype, device=sigma.device)  # without 0
    w = torch.softmax(-(z**2) / 2, 0)
    errors = (z * sigma[..., None]).requires_grad_()
    with torch.enable_grad():
        (score,) = torch.autograd.grad(loss(errors, torch.zeros_like(errors)), errors)
    deviation = (w * (score * errors.numel()) ** 2).sum(-1).sqrt()
    return deviation.where(sigma > 0, 0)  # no error, no noise, also where the score jumps at 0


def check_loss(loss: Loss) -> Loss:
    """``mse_loss`` for the squared error in any form, another loss as it is.

    Raises:
        ValueError: it has no floor: it is not a mean over entries of a function of the difference.
    """
    if loss is mse_loss:
        return loss
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
        name = getattr(loss, "__name__", repr(loss))
        raise ValueError(
            f"There is no label floor for the loss {name}: it is derived for a mean over entries "
            "of a function of prediction minus target, as mse_loss, l1_loss, huber_loss are."
        ) from cause
    error = torch.tensor([1e-3, 0.5, -2.3, 1e3])
    squares = torch.stack([loss(e[None, None], 0 * e[None, None]) for e in error])
    return mse_loss if torch.allclose(squares, error**2, rtol=1e-4) else loss


def check_sigma(sigma: Tensor) -> None:
    """Refuse a standard deviation that is negative or not finite.

    Raises:
        ValueError: says which entry is wrong.
    """
    bad = ~(torch.isfinite(sigma) & (sigma >= 0))
    if bad.any():
        entry = sigma[bad].flatten()[0].item()
        raise ValueError(f"sigma must be finite and >= 0, got {entry:g}.")


def _misfit(residual: Tensor, sigma: Tensor) -> Tensor:
    """R = mean((residual / sigma)**2) over the data that carry an error; 0 where none does.

    NaN where it is infinite: such a step is no draw.
    """
    noisy = sigma.expand_as(residual) > 0
    if residual.dtype == torch.float16:  # whose sums of squares overflow
        residual, sigma = residual.float(), sigma.float()
    misfit = ((residual / sigma) ** 2).where(noisy, 0).sum() / noisy.sum().clamp_min(1)
    return misfit.where(misfit.isfinite(), torch.nan)


def _count(residual: Tensor, sigma: Tensor) -> Tensor:
    """Number of data that carry an error."""
    kind = torch.float32 if is_16_bit(residual) else residual.dtype  # others cannot count so far
    return (sigma.expand_as(residual) > 0).sum().to(kind)
