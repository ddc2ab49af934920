"""Variants of the published rule that are ours, made to find out why it does not speed up grokking.

The rule's gate does two things at once: it turns the step, and it makes it shorter, while the
weight decay stays what it was. :class:`GatedDecay` makes the decay as short as the step.
:class:`EvenSteps` makes the step as long as AdamW's, so that only the turn is left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from sciml_snr import SNRAdam, rule


class Variant(SNRAdam):
    """SNRAdam without its weight decay; a subclass decays the weights by what the gate did."""

    def __init__(self, params: Any, weight_decay: float, **options: Any) -> None:
        super().__init__(params, weight_decay=0.0, **options)
        self.decay = weight_decay

    def gates(self) -> Iterator[tuple[Tensor, float, Tensor | None]]:
        """Every parameter, its learning rate, and its q in the last step, of its shape; None where
        no gate acted."""
        for group in self.param_groups:
            for p in group["params"]:
                moments = self.moments(p)
                q = None if moments is None else rule.openness(moments)
                yield p, group["lr"], None if q is None else q.view_as(p)


class GatedDecay(Variant):
    """The decay is gated, too.

    Args:
        mean: every entry decays by its parameter tensor's mean gate, not by its own.
    """

    def __init__(
        self, params: Any, weight_decay: float, *, mean: bool = False, **options: Any
    ) -> None:
        super().__init__(params, weight_decay, **options)
        self.mean = mean

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None, floor: Any = None) -> Any:
        """The rule's step; then the decay, by the gate of that step."""
        loss = super().step(closure, floor)
        for p, lr, q in self.gates():
            if q is not None:
                p.mul_(1 - lr * self.decay * (q.mean() if self.mean else q))
        return loss


class EvenSteps(Variant):
    """Every tensor's step is divided by its mean gate; AdamW's decay.

    The steps are on average as long as Adam's, and go where the gate is open.
    """

    LONGEST = 100.0
    """The most that a step is multiplied by."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None, floor: Any = None) -> Any:
        """The rule's step, made longer; the decay is that of the weights before it."""
        before = {p: p.clone() for group in self.param_groups for p in group["params"]}
        loss = super().step(closure, floor)
        for p, lr, q in self.gates():
            length = 1.0 if q is None else 1 / max(float(q.mean()), 1 / self.LONGEST)
            step = p - before[p]
            p.copy_(before[p].mul_(1 - lr * self.decay).add_(step, alpha=length))
        return loss
