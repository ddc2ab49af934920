"""By what factor gradients have been changed between ``backward()`` and ``step()``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from ._tensors import (
    LARGE,
    as_real,
    as_wide,
    flattened,
    is_16_bit,
    local,
    locals_of,
    sum_of_squares,
)

TOLERANCE = 1e-2
"""Relative difference of a gradient from a multiple of what backward left; of 16-bit gradients
more."""


class GradientWatch:
    """Remembers the gradients that a backward pass has left.

    A noise floor is in the units of these gradients. ``clip_grad_norm_`` and
    ``GradScaler.unscale_`` multiply them all by one factor, which the floor can take up; nothing
    else can be followed.
    """

    def __init__(self) -> None:
        self._small: list[tuple[list[Tensor], Tensor]] = []
        """Parameters of one kind, and their gradients as one vector."""
        self._large: list[tuple[Tensor, Tensor, Tensor]] = []
        """Parameter, squared norm of its gradient, first row of it."""
        self.found_finite: set[int] = set()
        """``id`` of parameters whose gradients have turned out to be finite, and their squares."""

    def note(self, params: Iterable[Tensor]) -> None:
        """Remember the gradients of today: small ones whole, of large ones norm and first row."""
        self.clear()
        kinds: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
        for p in params:
            if p.grad is None or p.grad.is_sparse or local(p.grad).numel() == 0:
                continue
            if p.numel() < LARGE:
                kinds.setdefault((p.grad.device, p.grad.dtype), []).append(p)
            else:
                square = sum_of_squares([local(p.grad)])
                self._large.append((p, square, _first_row(p.grad).clone()))
        self._small = [(own, _joined(own)) for own in kinds.values()]

    def clear(self) -> None:
        """Forget them."""
        self.found_finite.clear()
        self._small.clear()
        self._large.clear()

    def were_dropped(self) -> bool:
        """Whether all of them are gone, as by ``net.zero_grad()``, and had not been zero."""
        params = [p for own, _ in self._small for p in own] + [p for p, *_ in self._large]
        if any(p.grad is not None and bool(local(p.grad).any()) for p in params):
            return False
        before = [flat for _, flat in self._small] + [square for _, square, _ in self._large]
        return any(bool(x.any()) for x in before)

    def factor(self) -> float:
        """What they have been multiplied by since; 1 where nothing can be said.

        Raises:
            RuntimeError: they have been changed in another way.
        """
        if self._is_as_before():
            return 1.0
        pairs = [pair for own, flat in self._small for pair in _each(own, flat)]
        rows = [(p, _first_row(p.grad), row) for p, _, row in self._large if p.grad is not None]
        norms = [(p, _norm(now), _norm(then)) for p, now, then in pairs]
        norms += [
            (p, float(sum_of_squares([local(p.grad)])) ** 0.5, float(square) ** 0.5)
            for p, square, _ in self._large
            if p.grad is not None
        ]
        total = sum(then**2 for *_, then in norms)
        if not total or not all(now < torch.inf for _, now, _ in norms):
            return 1.0  # the optimizer refuses what is not finite by name
        factor = sum(now * then for _, now, then in norms) / total
        for p, now_norm, then_norm in norms:
            if not abs(now_norm - factor * then_norm) <= _tolerance(p) * now_norm:
                raise _changed(p)
        for p, now, then in pairs + rows:
            if not _norm(as_wide(now) - factor * as_wide(then)) <= _tolerance(p) * _norm(now):
                raise _changed(p)
        return factor

    def _is_as_before(self) -> bool:
        """Whether nothing has been done to them."""
        for params, flat in self._small:
            if any(p.grad is None for p in params) or not torch.equal(_joined(params), flat):
                return False
        for p, square, row in self._large:
            if p.grad is None or not torch.equal(_first_row(p.grad), row):
                return False
            now = float(sum_of_squares([local(p.grad)]))
            if now != float(square):
                return False
            self.found_finite.add(id(p))
        return True


def _joined(params: Sequence[Tensor]) -> Tensor:
    grads = locals_of([p.grad for p in params if p.grad is not None])
    flat = flattened(grads)
    return flat.clone() if len(grads) == 1 else flat


def _each(params: Sequence[Tensor], flat: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Parameter, gradient now, gradient then; of those that have one now."""
    then = torch.split(flat, [as_real(local(p.detach())).numel() for p in params])
    return [
        (p, as_real(local(p.grad)).reshape(-1), own)
        for p, own in zip(params, then, strict=True)
        if p.grad is not None
    ]


def _first_row(grad: Tensor) -> Tensor:
    grad = as_real(local(grad))
    return grad[:1] if grad.ndim else grad


def _norm(x: Tensor) -> float:
    return float(as_wide(x).double().norm())


def _tolerance(p: Tensor) -> float:
    return TOLERANCE * (5 if is_16_bit(p) else 1)


def _changed(p: Tensor) -> RuntimeError:
    return RuntimeError(
        f"The gradient of a parameter of shape {tuple(p.shape)} was changed between backward() and "
        "step() by something other than one factor for all parameters (clip_grad_value_, gradient "
        "noise, a reduction over processes by hand): the noise floor cannot follow. "
        "clip_grad_norm_, GradScaler.unscale_ and DistributedDataParallel are fine."
    )
