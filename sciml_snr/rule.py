r"""The rule: moments, gate, move. Pure functions, for the optimizers and for what looks at them.

For a gradient g at step t, with the floor :math:`\sigma^2` (the variance that the mean gradient
would have were it noise):

.. math::
    m &\leftarrow \beta_1 m + (1-\beta_1) g, \quad v \leftarrow \beta_2 v + (1-\beta_2) g^2 \\
    \hat m &= m / (1-\beta_1^t), \quad \hat v = v / (1-\beta_2^t) \\
    q &= \mathrm{gate}(\hat m^2, \sigma^2), \quad
    w \leftarrow w - \eta\, q\, \hat m / (\sqrt{\hat v} + \epsilon)

The floor is one of two running averages:

- *stream*, the published one: :math:`s \leftarrow \rho s + (1-\rho)(g - m)^2` with the previous
  first moment m, :math:`\sigma^2 = s / (1-\rho^t)`;
- *label*, of squared draws h of the gradient's noise (:mod:`sciml_snr.noise`):
  :math:`s \leftarrow \rho s + (1-\rho) h^2`, :math:`\sigma^2 = s / (1-\rho^k)` after k draws.

Where the loss has *exact* terms (an equation, say) beside the noisy ones, m splits into
:math:`m_x + m_d`. What the gate closes then follows the exact terms, along the surface on which the
noisy terms' loss stays what it is (:func:`follow`):

.. math::
    w &\leftarrow w - \eta (1 - q) D (\hat m_x - c\, \hat m_d), \qquad
    D = 1 / (\sqrt{\hat v} + \epsilon) \\
    c &= \langle \hat m_d, \eta (1-q) D \hat m_x \rangle /
         \langle \hat m_d, \eta (1-q) D \hat m_d \rangle

Without this a closed gate stops the equation, too, which near its balance with the data pulls less
than the data's noise does; the exact terms alone (c = 0) would pull the fit off the data. They may
not lower the noisy loss either: that is for the open entries. If only what raises it were taken
away, what lowers it by chance would stay, and the noise would be memorized after all. (Only that is
taken away in T. Yu et al., *Gradient Surgery for Multi-Task Learning*, arXiv:2001.06782, whose
projection this is, in the optimizer's metric and over all parameters at once.) As a whole this move
is made so short that no entry goes farther in it than in Adam's longest step. Adam's L2 term counts
among the exact terms.

Source: E. Litman and G. Guo, *A Theory of Generalization in Deep Learning*, arXiv:2605.01172
(2026), Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim.adam import adam

from .gate import Gate, rise

CHUNK = 2**18
"""Entries of a long vector that are gone through at a time: a few pieces of so many fit into a
processor's cache."""


Work = tuple[Tensor | None, Tensor | None]
"""Tensors to compute in, where those of the operations would be made anew for every piece."""


class Moments(NamedTuple):
    """What the move of some entries is made from, after the moments have taken up the gradient."""

    mean: Tensor
    """First moment m, uncorrected; any shape."""
    square: Tensor
    """Second moment v, uncorrected; of the same shape."""
    floor: Tensor | None
    """Running average of the floor, uncorrected; or a variance made by hand; None: no gate."""
    step: float
    """t, the number of steps."""
    floor_weight: float
    """1 - rho^k: what corrects the floor's average."""
    is_stream: bool
    """Whether the floor is the streaming one."""
    gate: Gate
    betas: tuple[float, float]
    lr: float
    eps: float
    excess: float = 0.0
    """Share of the step that is taken whatever the gate says; see :attr:`Gate.discrepancy`."""
    is_pooled: bool = False
    """Whether all entries have one q, from the means of their squares and of their floors."""

    @property
    def is_gated(self) -> bool:
        """Whether the gate acts in this step."""
        acts = self.gate.form != "none" and self.step > self.gate.warmup_steps
        return acts and self.floor is not None

    @property
    def step_size(self) -> float:
        """The learning rate over the first moment's correction."""
        return float(self.lr / (1 - self.betas[0] ** self.step))


class Closed(NamedTuple):
    """What of some entries the gate has closed, and the noisy terms' part of their mean."""

    rates: Tensor
    """lr (1 - q) D over the first moment's correction."""
    mean: Tensor
    """First moment m, uncorrected."""
    noisy: Tensor
    """The noisy terms' share of it."""
    moments: Moments


def update_moments(mean: Tensor, square: Tensor, grad: Tensor, betas: tuple[float, float]) -> None:
    """Adam's moments take up a gradient, in place."""
    mean.lerp_(grad, 1 - betas[0])
    square.mul_(betas[1]).addcmul_(grad, grad, value=1 - betas[1])


def update_floor(average: Tensor, draw: Tensor, rho: float) -> None:
    """A floor's average takes up a draw of the gradient's noise, in place."""
    average.mul_(rho).addcmul_(draw, draw, value=1 - rho)


def averaged_share(share: float, beta1: float) -> float:
    """What the first moment leaves of the variance of noise of which ``share`` stays in every step.

    The rest is drawn anew, and averages down to (1 - beta1) / (1 + beta1) of its variance.
    """
    return share + (1 - share) * (1 - beta1) / (1 + beta1)


def openness(moments: Moments, work: Work = (None, None)) -> Tensor | None:
    """q of every entry; None where no gate acts (q = 1).

    Args:
        moments: of the entries.
        work: two tensors of their shape to compute in.
    """
    if not moments.is_gated:
        return None
    assert moments.floor is not None
    gate = moments.gate
    # The gate knows ratios only: it is the floor that is put beside the uncorrected mean.
    scale = (1 - moments.betas[0] ** moments.step) ** 2 / moments.floor_weight
    if moments.is_stream and gate.z is not None:
        scale *= (1 - moments.betas[0]) / 2
    if gate.rise_steps:
        scale *= rise(moments.step, gate.rise_steps)
    unit = (1 - moments.betas[0] ** moments.step) ** 2
    if moments.is_pooled:
        mean_sq, floor = moments.mean.square().mean(), moments.floor.mean()
        q = gate(mean_sq, floor, scale, unit=unit).expand_as(moments.mean).clone()
    else:
        mean_sq = torch.square(moments.mean, out=work[0])
        q = gate(mean_sq, moments.floor, scale, out=work[1], unit=unit)
    return q.mul_(1 - moments.excess).add_(moments.excess) if moments.excess else q


def denominator(moments: Moments) -> Tensor:
    """Adam's: the root of the corrected second moment, plus eps."""
    root = moments.square.sqrt().div_((1 - moments.betas[1] ** moments.step) ** 0.5)
    return root.add_(moments.eps)


def displacement(moments: Moments, q: Tensor | None) -> Tensor:
    """Where the entries move: minus the learning rate, times q, times Adam's direction."""
    mean = moments.mean if q is None else moments.mean * q
    return (mean / denominator(moments)).mul_(-moments.step_size)


def advance(
    moments: Moments,
    grad: Tensor,
    draw: Tensor | None,
    rho: float,
    move: Tensor,
    rates: Tensor | None = None,
) -> bool:
    """Floor and moments take up a draw and a gradient, and the entries move; all in place.

    Long vectors are gone through piece by piece, so that what is read and written by several
    operations in a row stays in the processor's cache.

    Args:
        moments: flat, before the gradient, but with the step's number and weights after it.
        grad: of their length.
        draw: of the gradient's noise; None if the floor takes up none.
        rho: decay rate of the floor's average.
        move: what :func:`displacement` is added to: the parameters themselves, or zeros.
        rates: filled with those of :class:`Closed`, if wanted.

    Returns:
        Whether the gate acts: if not, ``rates`` were left as they are.
    """
    if len(grad) <= CHUNK or moments.is_pooled:
        _advance(moments, grad, draw, rho, move, rates, (None, None))
        return moments.is_gated
    work = grad.new_empty(3, CHUNK)
    for part in _pieces(len(grad)):
        own = moments._replace(
            mean=moments.mean[part],
            square=moments.square[part],
            floor=None if moments.floor is None else moments.floor[part],
        )
        first, second, third = work[:, : len(own.mean)]
        own_draw = None if draw is None else draw[part]
        if rates is None and not own.is_stream and grad.device.type == "cpu":
            _advance_fused(own, grad[part], own_draw, rho, move[part], (first, second), third)
        else:
            own_rates = None if rates is None else rates[part]
            _advance(own, grad[part], own_draw, rho, move[part], own_rates, (first, second))
    return moments.is_gated


def _advance(
    own: Moments,
    grad: Tensor,
    draw: Tensor | None,
    rho: float,
    move: Tensor,
    rates: Tensor | None,
    work: Work,
) -> None:
    """:func:`advance` of one piece."""
    if own.floor is not None and draw is not None:
        update_floor(own.floor, draw, rho)
    elif own.floor is not None and own.is_stream:
        update_floor(own.floor, grad - own.mean, rho)
    update_moments(own.mean, own.square, grad, own.betas)
    q = openness(own, work)
    # sqrt(v_hat) + eps, but for a factor that goes into the step.
    factor = (1 - own.betas[1] ** own.step) ** 0.5
    step = own.step_size * factor
    root = torch.sqrt(own.square, out=work[0]).add_(own.eps * factor)
    if q is None:
        move.addcdiv_(own.mean, root, value=-step)
        return
    if rates is not None:
        torch.neg(q, out=rates).add_(1).div_(root).mul_(step)
    move.addcdiv_(q.mul_(own.mean), root, value=-step)


def _advance_fused(
    own: Moments,
    grad: Tensor,
    draw: Tensor | None,
    rho: float,
    move: Tensor,
    work: Work,
    adams: Tensor,
) -> None:
    """The same by torch's fused Adam, which goes through memory once. ``adams`` is to compute its
    step in."""
    if own.floor is not None and draw is not None:
        update_floor(own.floor, draw, rho)
    adam(
        [adams.zero_()],
        [grad],
        [own.mean],
        [own.square],
        [],
        [torch.tensor(own.step - 1)],
        fused=True,
        amsgrad=False,
        beta1=own.betas[0],
        beta2=own.betas[1],
        lr=own.lr,
        weight_decay=0.0,
        eps=own.eps,
        maximize=False,
    )
    q = openness(own, work)
    if q is None:
        move.add_(adams)
    else:
        move.addcmul_(q, adams)


def follow(
    parts: Sequence[Closed],
    sums: Callable[[Sequence[float]], Sequence[float]] = list,
    least: Callable[[float], float] = float,
) -> tuple[list[Tensor], float]:
    """How the closed entries follow the exact terms; see the module's docstring.

    Args:
        parts: of all entries that belong together. Their rates are used up.
        sums: where other processes hold further entries, sums over them all.
        least: likewise the least of a number.

    Returns:
        For each part a vector, and one factor for all: what is to be added to the parameters is
        their product.
    """
    # With m_x = m - m_d, it is m_x - c m_d = m - (1 + c) m_d.
    across = along = 0.0
    for closed in parts:
        correction = 1 - closed.moments.betas[0] ** closed.moments.step
        for rates, mean, noisy in _in_pieces(closed):
            weighted = rates * noisy
            across += float(torch.dot(weighted, mean)) / correction
            along += float(torch.dot(weighted, noisy)) / correction
    across, along = sums([across, along])
    factor = across / along if along > 0 else 1.0
    # Where exact and noisy terms cancel, v is small against both: keep to Adam's longest step
    # (D. Kingma and J. Ba, arXiv:1412.6980, section 2.1).
    shorter = 1.0
    for closed in parts:
        beta1, beta2 = closed.moments.betas
        longest = closed.moments.lr * max(1.0, (1 - beta1) / (1 - beta2) ** 0.5)
        for rates, mean, noisy in _in_pieces(closed):
            low, high = torch.aminmax(rates.mul_(torch.sub(mean, noisy, alpha=factor)))
            farthest = max(-float(low), float(high))
            if farthest > longest:
                shorter = min(shorter, longest / farthest)
    return [closed.rates for closed in parts], -least(shorter)


def _in_pieces(closed: Closed) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Rates, mean and its noisy share, piece by piece."""
    vectors = closed.rates, closed.mean, closed.noisy
    if len(closed.mean) <= CHUNK:
        if len(closed.mean):  # of a sharded parameter a process may hold nothing
            yield vectors
        return
    for part in _pieces(len(closed.mean)):
        yield closed.rates[part], closed.mean[part], closed.noisy[part]


def _pieces(n: int) -> Iterator[slice]:
    """What a vector of n entries is gone through in."""
    return (slice(at, at + CHUNK) for at in range(0, n, CHUNK))
