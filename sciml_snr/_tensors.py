"""What the optimizer and the floors both ask of tensors."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor


def as_real(x: Tensor) -> Tensor:
    """A complex tensor as pairs of reals, as in torch's Adam; others as they are."""
    return torch.view_as_real(x) if x.is_complex() else x


def is_16_bit(p: Tensor) -> bool:
    """Whether a parameter's state is to be kept in float32: squares would underflow."""
    return p.dtype in (torch.float16, torch.bfloat16)


def state_like(p: Tensor) -> Tensor:
    """Zeros for a running average that belongs to the parameter p."""
    return torch.zeros_like(p, dtype=torch.float32 if is_16_bit(p) else p.dtype)


def norms_are_finite(tensors: Iterable[Tensor]) -> bool:
    """False where an entry is NaN or infinite, or a norm overflows; one sync per kind."""
    alike: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for tensor in tensors:
        alike.setdefault((tensor.device, tensor.dtype), []).append(tensor)
    norms = [torch.stack(torch._foreach_norm(own)) for own in alike.values()]
    return all(math.isfinite(own.float().sum()) for own in norms)
