"""Parameters that are stepped as one vector."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._tensors import is_16_bit


class Bunch(NamedTuple):
    """Parameters that are stepped as one vector: one device and dtype, one number of steps."""

    group: dict[str, Any]
    params: list[Tensor]
    states: list[dict[str, Any]]
    draws: bool
    """Whether the floor takes up a draw."""
    is_given: bool
    """Whether the floor was made by hand."""
    is_stream: bool
    """Whether the floor is the streaming one."""

    def add(self, moves: list[Tensor]) -> None:
        """Move the parameters, after decoupled weight decay; rounded once where they are 16-bit."""
        group = self.group
        decay = group["weight_decay"] if group["decoupled_weight_decay"] else 0.0
        kept = 1 - float(group["lr"]) * decay
        if is_16_bit(self.params[0]):
            for p, move in zip(self.params, moves, strict=True):
                p.copy_(p.float() * kept + move)
            return
        if decay:
            torch._foreach_mul_(self.params, kept)
        torch._foreach_add_(self.params, moves)
