r"""Does the population risk still fall? Told from the training batches alone.

One step moves the weights by :math:`\Delta(\bar g)`, a function of the mean gradient of a batch of
b samples. On that batch the loss falls by more than on the population, because :math:`\Delta`
knows its samples. Leave-one-out undoes it: each sample judges the step made without it,

.. math::
    \frac1b \sum_i \bigl[\ell_i(w + \Delta(\bar g_{-i})) - \ell_i(w)\bigr]
    \approx \frac1b \sum_i \bigl[\ell_i(w + \Delta(\bar g)) - \ell_i(w)\bigr]
    - \sum_k D_k \frac{\mathrm{Cov}_i(g_{ik}, g'_{ik})}{b-1},
    \qquad D_k = \frac{\partial \Delta_k}{\partial \bar g_k},

with :math:`g_i, g'_i` a sample's gradients before and after the step. For
:math:`\Delta = -\eta P \bar g` and to first order in the step this is the rule of Litman and Guo,
arXiv:2605.01172: :math:`-\eta \sum_k P_k (\bar g_k^2 - \Sigma_k/(b-1))`. Momentum from earlier
batches is no matter of this one: only the factor :math:`(1-\beta_1)/(1-\beta_1^t)` of today's
gradient is in D, and the preconditioner's and the gate's own dependence on that gradient too. Not
in D is how SNRAdam lets exact terms move what its gate has closed: to first order that leaves the
batch's noisy loss as it is, for whatever samples.

*Fresh batches* (every sample seen once): each step's estimate is unbiased, up to a relative error
of 1/b of what is subtracted; the errors of different steps are uncorrelated, so that their
variances add up.

*Re-used data*: the same noise comes back in every step. Its trace in the samples' gradients fades
while it is being memorized, and the curve is no risk any more: on the way to interpolation it falls
for good. With the labels' error known, the covariance is instead that of the label floor
(``terms``): :math:`(2/n)^2 \sum_i \sigma_i^2 (\partial f_i/\partial w_k)^2`, which does not
fade. What earlier steps have done with the same labels is still left out, so that this curve is no
unbiased risk either; but its minimum is where the pull of the data sinks into their noise, and
``docs/results/memorization.md`` shows how near that is to the best moment. For the risk itself use
the twin of :mod:`sciml_snr.measure.twins`. (A minimum under the sampling covariance is the stopping
criterion of M. Mahsereci, L. Balles, C. Lassner and P. Hennig, arXiv:1703.09580.)

Per step it costs two more backward passes and a forward pass, and no per-sample gradients:
random signs on the samples' losses give the covariance (see :mod:`sciml_snr.noise`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from .. import rule
from .._tensors import is_16_bit
from ..gate import Gate
from ..snr_adam import SNRAdam
from ..terms import NoisyTerm

Losses = Tensor | Sequence[Tensor]
"""(b,) losses, one per sample, whose mean is trained; or several such vectors, of independent
samples each, whose means are added."""


_Draw = Mapping[Tensor, Tensor | None]

SCALE = 0.3
"""Differences of the step are taken over this part of the gradient's standard deviation: a hard
gate, or Adam's first steps (signs of gradients), have jumps that a derivative does not see."""


class RiskChange(NamedTuple):
    """The population risk after a number of steps, less that at the beginning."""

    step: int
    change: float
    """Estimated change from the beginning."""
    se: float
    """Its standard error."""
    training: float
    """The change that the same batches saw themselves: what is too good about it is the noise."""


class PopulationRisk:
    """A running estimate of the population risk, while an optimizer trains.

    Args:
        optimizer: ``torch.optim.SGD``, ``Adam``, ``AdamW`` or :class:`sciml_snr.SNRAdam`.
        probes: random-sign passes per step; more lower the standard error a little.
        seed: of the random signs, which come from a generator of their own.

    Raises:
        ValueError: the step of this optimizer is no function of each parameter's own gradient, or
            an option is out of range.

    Example:
        Fresh batches:

        >>> risk = PopulationRisk(optimizer)
        >>> for x, y in batches:
        ...     risk.step(lambda: ((net(x) - y) ** 2).mean(1))
        ...     if risk.should_stop(patience=500):
        ...         break
        >>> risk.best_step

        Fixed data with a known error:

        >>> for _ in range(2000):
        ...     risk.step(
        ...         lambda: ((net(x) - y) ** 2).mean(1),
        ...         terms=lambda: [NoisyTerm(net(x) - y, sigma=0.1)],
        ...     )
    """

    def __init__(self, optimizer: Optimizer, *, probes: int = 1, seed: int = 0) -> None:
        if probes < 1:
            raise ValueError(f"probes must be at least 1, got {probes}.")
        _check(optimizer)
        self.optimizer = optimizer
        self.probes = probes
        self.rows: list[RiskChange] = [RiskChange(0, 0.0, 0.0, 0.0)]
        self._best = self.rows[0]
        self._rng = torch.Generator().manual_seed(seed)
        self._variance = 0.0
        self._known_before: float | None = None
        self._pending: tuple[Any, ...] | None = None

    def step(
        self,
        losses: Callable[[], Losses],
        extra: Callable[[], Tensor] | None = None,
        terms: Callable[[], Sequence[NoisyTerm]] | None = None,
        **step_options: Any,
    ) -> float:
        """One training step on ``mean(losses()) + extra()``, watched.

        Args:
            losses: computes the (b,) losses of the batch's samples, attached to the graph; called
                before and after the step.
            extra: computes a part of the loss that does not depend on samples.
            terms: computes the data terms, for fixed data with a known error; see :meth:`begin`.
            step_options: go to the optimizer's ``step``.

        Returns:
            The loss before the step.

        Raises:
            ValueError: as for :meth:`begin`.
        """

        def parts() -> tuple[Losses, Tensor | None, Sequence[NoisyTerm] | None]:
            return losses(), extra and extra(), terms and terms()

        found, fixed, noisy = parts()
        self.begin(found, fixed, noisy)
        vectors = _vectors(found)
        loss = sum((v.mean() for v in vectors[1:]), vectors[0].mean())
        loss = loss if fixed is None else loss + fixed
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step(**step_options)
        self.end(*parts())
        return float(loss.detach())

    def begin(
        self,
        losses: Losses,
        extra: Tensor | None = None,
        terms: Sequence[NoisyTerm] | None = None,
    ) -> None:
        """Look at a batch before its step; the graph stays alive for the loss's own backward.

        Args:
            losses: (b,) per sample, attached to the graph.
            extra: the loss's other part, which does not depend on samples.
            terms: the data terms of the loss: then the error of their labels counts, as in
                :class:`sciml_snr.NoisyLoss`, in place of the scatter of the samples' gradients.

        Raises:
            ValueError: there are fewer than two losses, they are no vector, or not attached.
        """
        vectors = _vectors(losses)
        pieces = _of_samples(vectors) if terms is None else _of_labels(terms)
        signs = [self._signs(piece, centred=terms is None) for piece in pieces]
        self._pending = (signs, self._draws(pieces, signs), _values(vectors, extra))

    def end(
        self,
        losses: Losses,
        extra: Tensor | None = None,
        terms: Sequence[NoisyTerm] | None = None,
    ) -> RiskChange:
        """Look at the same batch after its step, with the step's gradients still in ``.grad``.

        Args:
            losses, extra, terms: as for :meth:`begin`, at the new weights.

        Raises:
            ValueError: as for :meth:`begin`.
            RuntimeError: there was no :meth:`begin`.
        """
        if self._pending is None:
            raise RuntimeError("end() without begin(): the batch was not looked at before.")
        (signs, before, (old, old_extra)), self._pending = self._pending, None
        vectors = _vectors(losses)
        after = self._draws(_of_samples(vectors) if terms is None else _of_labels(terms), signs)
        new, new_extra = _values(vectors, extra)
        known = sum(map(self._known, before, after)) / self.probes
        moved = [b - a for a, b in zip(old, new, strict=True)]
        training = sum(float(m.mean()) for m in moved) + new_extra - old_extra
        self._variance += sum(float(m.var()) / len(m) for m in moved)
        # The random signs': from step to step; of the first one no more is known than this bound.
        last_known = self._known_before
        self._variance += 2 * known**2 if last_known is None else (known - last_known) ** 2 / 2
        self._known_before = known
        last = self.rows[-1]
        row = RiskChange(
            last.step + 1,
            last.change + training - known,
            math.sqrt(self._variance),
            last.training + training,
        )
        self.rows.append(row)
        if row.change < self._best.change:
            self._best = row
        return row

    @property
    def best_step(self) -> int:
        """Steps to the lowest estimated population risk so far."""
        return self._best.step

    def state_dict(self) -> dict[str, Any]:
        """What the next steps depend on: numbers and a tensor only. Of the rows, the last."""
        return {
            "last": list(self.rows[-1]),
            "best": list(self._best),
            "variance": self._variance,
            "known_before": self._known_before,
            "rng": self._rng.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict` of an estimate for the same optimizer."""
        self.rows, self._best = [RiskChange(*state["last"])], RiskChange(*state["best"])
        self._variance, self._known_before = state["variance"], state["known_before"]
        self._rng.set_state(state["rng"])

    def should_stop(self, patience: int) -> bool:
        """Whether the estimated risk has not fallen below its lowest for ``patience`` steps."""
        return self.rows[-1].step - self.best_step >= patience

    @torch.no_grad()
    def _known(self, before: _Draw, after: _Draw) -> float:
        r"""One probe's :math:`\sum_k h'_k D_k h_k`: what the step owes to knowing its samples."""
        total = 0.0
        for group in self.optimizer.param_groups:
            for p in group["params"]:
                h, k = before.get(p), after.get(p)
                if p.grad is not None and h is not None and k is not None:
                    up = displacement(self.optimizer, p, group, SCALE * h)
                    down = displacement(self.optimizer, p, group, -SCALE * h)
                    total += float((k * (up - down)).sum(dtype=torch.float64)) / (2 * SCALE)
        return total

    def _signs(self, piece: Tensor, centred: bool) -> Tensor:
        """(probes, b) random signs s; centred: less their mean, E s_i s_j = delta_ij - 1/b."""
        shape = (self.probes, len(piece))
        signs = torch.randint(0, 2, shape, generator=self._rng).to(piece) * 2 - 1
        return signs - signs.mean(1, keepdim=True) if centred else signs

    def _draws(self, pieces: list[Tensor], signs: list[Tensor]) -> list[_Draw]:
        """Per probe a draw of the mean gradient's noise: the gradient of the signed sums."""
        params = _params(self.optimizer)
        draws: list[_Draw] = []
        for i in range(self.probes):
            parts = [(s[i] * piece).sum() for piece, s in zip(pieces, signs, strict=True)]
            found = torch.autograd.grad(
                torch.stack(parts).sum(), params, retain_graph=True, allow_unused=True
            )
            draws.append(dict(zip(params, found, strict=True)))
        return draws


def displacement(optimizer: Optimizer, p: Tensor, group: dict[str, Any], shift: Tensor) -> Tensor:
    r"""Where the last step would have taken a parameter, had its gradient been :math:`g + h`.

    Up to what does not depend on g (weight decay, SGD's earlier momentum).

    Args:
        optimizer: just stepped, with the step's gradient g in ``.grad``.
        p: one of its parameters.
        group: the parameter's group.
        shift: h, of its shape.
    """
    assert p.grad is not None
    lr = float(group["lr"])
    if isinstance(optimizer, SGD):
        lr *= 1 + float(group["momentum"]) if group["nesterov"] else 1.0
        return -lr * (p.grad + shift)
    grad = p.grad
    if not isinstance(optimizer, AdamW) and not group.get("decoupled_weight_decay"):
        grad = grad + group["weight_decay"] * p
    moments = _moments(optimizer, p, group)
    grad, shift = grad.flatten(), shift.flatten()
    (beta1, beta2), floor = moments.betas, moments.floor
    square = moments.square + (1 - beta2) * (2 * grad + shift) * shift
    if moments.is_stream and floor is not None:
        # The streaming floor knows the gradient, too: through g - m_prev.
        deviation = (grad - moments.mean) / beta1 if beta1 > 0 else -shift / 2
        floor = floor + (1 - group["rho"]) * (2 * deviation + shift) * shift
        floor = floor.clamp_min(0)
    moved = moments._replace(
        mean=moments.mean + (1 - beta1) * shift, square=square.clamp_min(0), floor=floor
    )
    return rule.displacement(moved, rule.openness(moved)).view(p.shape)


def _moments(optimizer: Optimizer, p: Tensor, group: dict[str, Any]) -> rule.Moments:
    """What an Adam's last step was made from, of ours or of torch's."""
    if isinstance(optimizer, SNRAdam):
        found = optimizer.moments(p)
        assert found is not None
        return found
    state = optimizer.state[p]
    return rule.Moments(
        state["exp_avg"].flatten(),
        state["exp_avg_sq"].flatten(),
        floor=None,
        step=float(state["step"]),
        floor_weight=1.0,
        is_stream=False,
        gate=Gate("none"),
        betas=group["betas"],
        lr=float(group["lr"]),
        eps=float(group["eps"]),
    )


def accumulated(gradients: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    r"""Drift and diffusion: the coherent part of minibatch gradients adds up, the rest walks.

    .. math::
        \Bigl\| \sum_{t \le T} \bar g_t \Bigr\| \sim T, \qquad
        \Bigl\| \sum_{t \le T} (g_t - \bar g_t) \Bigr\| \sim \sqrt T

    Args:
        gradients: (T, d), one of a minibatch per step.
        mean: (T, d), of all data at the same weights.

    Returns:
        The two norms, (T,) each.
    """
    return mean.cumsum(0).norm(dim=1), (gradients - mean).cumsum(0).norm(dim=1)


def growth_exponent(curve: Tensor) -> float:
    """The power p of a curve that grows as T^p, T = 1, 2, ...: its slope in logarithms."""
    log_t = torch.arange(1, len(curve) + 1, dtype=torch.float64).log()
    log_c = curve.double().log()
    log_t = log_t - log_t.mean()
    return float((log_t * (log_c - log_c.mean())).sum() / (log_t**2).sum())


def _check(optimizer: Optimizer) -> None:
    """Refuse an optimizer whose step is no elementwise function of the gradient.

    Raises:
        ValueError: says which are possible.
    """
    is_turned = isinstance(optimizer, SNRAdam) and any(
        optimizer.is_turned(group) for group in optimizer.param_groups
    )
    if is_turned or not isinstance(optimizer, (SGD, Adam, SNRAdam)):
        raise ValueError(
            f"There is no leave-one-out estimate for {type(optimizer).__name__}"
            f"{' in the eigenbasis' if is_turned else ''}: it is for SGD, Adam, AdamW and SNRAdam "
            'with coordinates="own", which move each parameter by its own gradient.'
        )
    for group in optimizer.param_groups:
        if group.get("amsgrad") or group.get("dampening") or group.get("maximize"):
            raise ValueError(
                "The leave-one-out estimate knows no amsgrad, dampening and maximize: turn it off."
            )
        if any(p.is_complex() or is_16_bit(p) for p in group["params"]):
            raise ValueError("The leave-one-out estimate is for real parameters of 32 or 64 bits.")


def _params(optimizer: Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]


def _vectors(losses: Losses) -> list[Tensor]:
    vectors = [losses] if isinstance(losses, Tensor) else list(losses)
    for v in vectors:
        if v.ndim != 1 or len(v) < 2:
            raise ValueError(
                f"Give one loss per sample, a vector of two or more, not {tuple(v.shape)}."
            )
        if not v.requires_grad:
            raise ValueError("The losses are not attached to the graph: compute them with grad.")
    if not vectors:
        raise ValueError("There are no losses.")
    return vectors


def _of_samples(vectors: list[Tensor]) -> list[Tensor]:
    """Whose gradients' (centred) random sums have the covariance of the batch's mean gradient."""
    return [v / math.sqrt(len(v) * (len(v) - 1)) for v in vectors]


def _of_labels(terms: Sequence[NoisyTerm]) -> list[Tensor]:
    """The same under the labels' error alone."""
    if not terms:
        raise ValueError("There are no terms: give None for the scatter of the samples.")
    return [(term.deviation() * term.residual).flatten() for term in terms]


def _values(vectors: list[Tensor], extra: Tensor | None) -> tuple[list[Tensor], float]:
    return [v.detach().double() for v in vectors], 0.0 if extra is None else float(extra.detach())
