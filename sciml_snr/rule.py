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

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .gate import Gate, rise

CHUNK = 2**15
"""Entries of a long vector that are gone through at a time."""


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
    excess: Tensor | float = 0.0
    """Share of the step that is taken whatever the gate says; see :attr:`Gate.discrepancy`."""

    @property
    def is_gated(self) -> bool:
        """Whether the gate acts in this step."""
        acts = self.gate.form != "none" and self.step > self.gate.warmup_steps
        return acts and self.floor is not None


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


def openness(moments: Moments) -> Tensor | None:
    """q of every entry; None where no gate acts (q = 1)."""
    if not moments.is_gated:
        return None
    assert moments.floor is not None
    gate = moments.gate
    scale = 1 / moments.floor_weight
    if moments.is_stream and gate.z is not None:
        scale *= (1 - moments.betas[0]) / 2
    if gate.rise_steps:
        scale *= rise(moments.step, gate.rise_steps)
    mean_sq = (moments.mean / (1 - moments.betas[0] ** moments.step)).square_()
    q = gate(mean_sq, moments.floor * scale)
    excess = moments.excess
    return q + (1 - q) * excess.to(q) if isinstance(excess, Tensor) else q


def denominator(moments: Moments) -> Tensor:
    """Adam's: the root of the corrected second moment, plus eps."""
    root = moments.square.sqrt().div_((1 - moments.betas[1] ** moments.step) ** 0.5)
    return root.add_(moments.eps)


def displacement(moments: Moments, q: Tensor | None) -> Tensor:
    """Where the entries move: minus the learning rate, times q, times Adam's direction."""
    mean = moments.mean if q is None else moments.mean * q
    scale = -moments.lr / (1 - moments.betas[0] ** moments.step)
    return (mean / denominator(moments)).mul_(scale)


def advance(
    moments: Moments, grad: Tensor, draw: Tensor | None, rho: float, wants_gate: bool = True
) -> tuple[Tensor | None, Tensor]:
    """Floor and moments take up a draw and a gradient, in place; then q and the move.

    Long vectors are gone through piece by piece, so that what is read and written by several
    operations in a row stays in the processor's cache.

    Args:
        moments: flat, before the gradient, but with the step's number and weights after it.
        grad: of their length.
        draw: of the gradient's noise; None if the floor takes up none.
        rho: decay rate of the floor's average.
        wants_gate: whether q is of use.
    """
    move = torch.empty_like(grad) if len(grad) > CHUNK else None
    gates = []
    for at in range(0, max(len(grad), 1), CHUNK):
        part = slice(at, at + CHUNK)
        floor = None if moments.floor is None else moments.floor[part]
        own = moments._replace(mean=moments.mean[part], square=moments.square[part], floor=floor)
        if floor is not None and draw is not None:
            update_floor(floor, draw[part], rho)
        elif floor is not None and moments.is_stream:
            update_floor(floor, grad[part] - own.mean, rho)
        update_moments(own.mean, own.square, grad[part], own.betas)
        q = openness(own)
        if move is None:
            return q, displacement(own, q)
        move[part] = displacement(own, q)
        if wants_gate and q is not None:
            gates.append(q)
    assert move is not None
    return torch.cat(gates) if gates else None, move


def follow(
    parts: Sequence[tuple[Moments, Tensor, Tensor]],
) -> list[Tensor]:
    """How the closed entries follow the exact terms; see the module's docstring.

    Args:
        parts: of entries that belong together, their moments, q, and the noisy terms' share of the
            first moment (uncorrected, in the same coordinates).

    Returns:
        For each part what is to be added to the parameters.
    """
    closed: list[tuple[Tensor, Tensor, Tensor, float]] = []
    for moments, q, noisy in parts:
        correction = 1 - moments.betas[0] ** moments.step
        scale = (1 - q).div_(denominator(moments)).mul_(moments.lr / correction)
        closed.append((scale, moments.mean - noisy, noisy, correction))
    across = sum(float(_dot(scale * exact, noisy)) / by for scale, exact, noisy, by in closed)
    along = sum(float(_dot(scale * noisy, noisy)) / by for scale, _, noisy, by in closed)
    c = across / along if along > 0 else 0.0
    moves = [torch.sub(exact, noisy, alpha=c).mul_(scale) for scale, exact, noisy, _ in closed]
    # Where exact and noisy terms cancel, v is small against both: keep to Adam's longest step
    # (D. Kingma and J. Ba, arXiv:1412.6980, section 2.1).
    shorter = 1.0
    for move, (moments, *_) in zip(moves, parts, strict=True):
        beta1, beta2 = moments.betas
        longest = moments.lr * max(1.0, (1 - beta1) / (1 - beta2) ** 0.5)
        farthest = float(move.abs().max()) if move.numel() else 0.0
        if farthest > longest:
            shorter = min(shorter, longest / farthest)
    return [move.mul_(-shorter) for move in moves]


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return torch.dot(a.flatten(), b.flatten())
