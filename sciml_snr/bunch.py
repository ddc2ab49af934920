"""Parameters that are stepped as one vector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from . import eigenbasis
from ._tensors import as_real, flattened, is_16_bit, joined, locals_of, parts_of, state_dtype


class Bunch:
    """Parameters of a group that are stepped as one vector: one device and dtype, one number of
    steps. Their states lie side by side. Of sharded parameters, this process's part.

    Args:
        group: their options.
        params: parameters with a gradient.
        states: theirs.
        is_given: whether their floor was made by hand.
        has_label: whether it is made from declared noise.
        has_draws: whether this step has draws of it.
        is_turned: whether their moments are in the eigenbasis.
    """

    def __init__(
        self,
        group: dict[str, Any],
        params: list[Tensor],
        states: list[dict[str, Any]],
        is_given: bool = False,
        has_label: bool = False,
        has_draws: bool = False,
        is_turned: bool = False,
    ) -> None:
        self.group, self.params, self.states = group, params, states
        self.is_given, self.has_label, self.is_turned = is_given, has_label, is_turned
        self.has_draws = has_draws
        self._is_16_bit = is_16_bit(params[0])
        self._dtype = state_dtype(params[0])
        self._vectors: dict[str, tuple[list[int], Tensor]] = {}

    @property
    def own(self) -> list[Tensor]:
        """The parameters, or this process's parts of them."""
        return locals_of(self.params)

    @property
    def is_stream(self) -> bool:
        """Whether the floor is the streaming one."""
        return not (self.is_given or self.has_label)

    def vector(self, name: str) -> Tensor:
        """What the states hold under this name, as one vector that shares their memory."""
        places = self._places(name)
        known = self._vectors.get(name)
        if known is None or known[0] != places:
            flat = joined(self.states, name)
            known = (self._places(name), flat)
            self._vectors[name] = known
        return known[1]

    def _places(self, name: str) -> list[int]:
        """Where in memory the states are."""
        return [x.data_ptr() for x in locals_of([state[name] for state in self.states])]

    def count_step(self) -> float:
        """One step more; gives their number."""
        steps = self.vector("step").add_(1)
        return float(steps[0])

    def gradients(self) -> list[Tensor]:
        """In the state's dtype, uphill if the group maximizes."""
        grads = self._as_state(locals_of([p.grad for p in self.params if p.grad is not None]))
        return [-grad for grad in grads] if self.group["maximize"] else grads

    def of(self, found: Mapping[Tensor, Tensor]) -> list[Tensor]:
        """What is found of the parameters, in the state's dtype; zeros of those without."""
        tensors = [found.get(p) for p in self.params]
        if any(x is None for x in tensors):
            tensors = [
                torch.zeros_like(p) if x is None else x
                for p, x in zip(self.own, tensors, strict=True)
            ]
        return self._as_state(tensors)  # type: ignore[arg-type]

    def values(self) -> list[Tensor]:
        """The parameters, in the state's dtype."""
        return self._as_state([p.detach() for p in self.own])

    def _as_state(self, tensors: list[Tensor]) -> list[Tensor]:
        return [x.to(self._dtype) for x in tensors] if self._is_16_bit else tensors

    def to_basis(self, tensors: Sequence[Tensor]) -> Tensor:
        """Into the coordinates of the moments, as one vector."""
        if self.is_turned:
            pairs = zip(tensors, self.states, strict=True)
            tensors = [eigenbasis.rotate(x, state) for x, state in pairs]
        return flattened(tensors)

    def in_place(self) -> Tensor | None:
        """The parameters themselves as a vector, if they are one in the moments' coordinates."""
        (p, *others) = self.own
        if others or self.is_turned or self._is_16_bit or not p.is_contiguous():
            return None
        return as_real(p.detach()).view(-1)

    def decay(self) -> None:
        """Decoupled weight decay."""
        kept = self._kept()
        if kept != 1 and not self._is_16_bit:
            torch._foreach_mul_(self.own, kept)

    def _kept(self) -> float:
        group = self.group
        decay = group["weight_decay"] if group["decoupled_weight_decay"] else 0.0
        return 1 - float(group["lr"]) * decay if decay else 1.0

    def add(self, move: Tensor) -> None:
        """Move the parameters, after :meth:`decay`, by a vector in the moments' coordinates;
        rounded once where they are 16-bit."""
        moves = parts_of(move, self.own)
        if self.is_turned:
            pairs = zip(moves, self.states, strict=True)
            moves = [eigenbasis.rotate(x, state, back=True) for x, state in pairs]
        if self._is_16_bit:
            for p, own in zip(self.own, moves, strict=True):
                p.copy_(p.float() * self._kept() + own)
        else:
            torch._foreach_add_(self.own, moves)
