"""Other optimizers, at their own defaults but for the learning rate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytorch_optimizer as rivals
import torch
from torch import Tensor
from torch.optim import Optimizer

Build = Callable[[list[Tensor], float], Optimizer]


class CautiousAdamW(torch.optim.AdamW):
    """AdamW that moves an entry only where step and gradient agree: Liang et al., arXiv:2411.16085.

    (pytorch-optimizer has the mask for other optimizers, not for AdamW.)
    """

    def step(self, closure: Any = None) -> Any:
        """Adam's step, masked; the mask scaled to a mean of 1."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        params = [p for g in self.param_groups for p in g["params"] if p.grad is not None]
        before = [p.detach().clone() for p in params]
        super().step()
        with torch.no_grad():
            for p, old in zip(params, before, strict=True):
                move = p - old
                agree = (move * p.grad < 0).to(p.dtype)
                p.copy_(old + move * agree / agree.mean().clamp_min(1e-3))
        return loss


RIVALS: dict[str, Build] = {
    "AdaBelief": lambda params, lr: rivals.AdaBelief(params, lr=lr),
    "M-SVAG": lambda params, lr: rivals.MSVAG(params, lr=lr),
    "Grokfast AdamW": lambda params, lr: rivals.GrokFastAdamW(params, lr=lr),
    "Cautious AdamW": lambda params, lr: CautiousAdamW(params, lr=lr),
    "SOAP": lambda params, lr: rivals.SOAP(params, lr=lr, weight_decay=0.0),
}
