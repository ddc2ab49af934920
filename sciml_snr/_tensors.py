"""What several rooms ask of tensors."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

LARGE = 2**16
"""Tensors with so many entries are gone through one by one, smaller ones joined to one vector."""


_PLAIN = (Tensor, Parameter)


def as_real(x: Tensor) -> Tensor:
    """A complex tensor as pairs of reals, as in torch's Adam; others as they are."""
    return torch.view_as_real(x) if x.is_complex() else x


def is_16_bit(p: Tensor) -> bool:
    """Whether a parameter's state is to be kept in float32: squares would underflow."""
    return p.dtype in (torch.float16, torch.bfloat16)


def as_wide(x: Tensor) -> Tensor:
    """A 16-bit tensor as float32, where sums of squares do not overflow; others as they are."""
    return x.float() if is_16_bit(x) else x


def state_dtype(p: Tensor) -> torch.dtype:
    """The dtype of a parameter's state."""
    return torch.float32 if is_16_bit(p) else p.dtype


def is_sharded(x: Tensor) -> bool:
    """Whether a tensor is spread over processes: a DTensor, as ``fully_shard`` makes them."""
    return type(x) not in _PLAIN and hasattr(x, "placements")


def local(x: Tensor) -> Tensor:
    """This process's part of a sharded tensor, in its memory; others as they are."""
    return x.detach().to_local() if is_sharded(x) else x  # type: ignore[attr-defined]


def locals_of(tensors: list[Tensor]) -> list[Tensor]:
    """:func:`local` of each; of tensors that are sharded all, or none."""
    return list(map(local, tensors)) if tensors and is_sharded(tensors[0]) else tensors


def spread_like(part: Tensor, p: Tensor) -> Tensor:
    """A process's part as a tensor that is sharded as p is; as it is where p is not."""
    if not is_sharded(p):
        return part
    made: Tensor = type(p.data).from_local(  # type: ignore[attr-defined]
        part,
        p.device_mesh,  # type: ignore[attr-defined]
        p.placements,  # type: ignore[attr-defined]
        run_check=False,
        shape=p.shape,
        stride=p.stride(),
    )
    return made


def state_like(p: Tensor) -> Tensor:
    """Contiguous zeros for a running average that belongs to the parameter p."""
    part = local(p)
    zeros = torch.zeros(part.shape, dtype=state_dtype(p), device=p.device)
    return spread_like(zeros, p)


def sums_of_squares_are_finite(tensors: Sequence[Tensor]) -> bool:
    """False where an entry is NaN or infinite, or a sum of squares overflows."""
    alike: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for tensor in tensors:
        kind = (tensor.device, tensor.dtype)
        # Large ones are not worth a copy.
        if tensor.numel() < LARGE:
            alike.setdefault(kind, []).append(tensor)
        elif not math.isfinite(sum_of_squares([tensor])):
            return False
    return all(math.isfinite(sum_of_squares(found)) for found in alike.values())


def sum_of_squares(alike: Sequence[Tensor]) -> Tensor:
    """Of all entries of tensors of one device and dtype; of 16-bit ones in float32."""
    flat = as_wide(flattened(alike))
    return flat.dot(flat)


def joined(states: Sequence[dict[str, Any]], name: str) -> Tensor:
    """The tensors of this name in several dictionaries, as one vector that shares their memory.

    Where they do not yet lie side by side, they are moved so, and the dictionaries get views.
    Complex tensors come as pairs of reals.
    """
    tensors = locals_of([state[name] for state in states])
    if not _lie_side_by_side(tensors):
        flat = torch.cat([x.reshape(-1) for x in tensors])
        parts = torch.split(flat, [x.numel() for x in tensors])
        for state, x, part in zip(states, tensors, parts, strict=True):
            state[name] = spread_like(part.view(x.shape), state[name])
        return as_real(flat).flatten()
    numel = sum(x.numel() for x in tensors)
    first = tensors[0]
    flat = first.as_strided((numel,), (1,), first.storage_offset())
    return as_real(flat).flatten()


def _lie_side_by_side(tensors: Sequence[Tensor]) -> bool:
    """Whether contiguous tensors follow one another in one storage."""
    place = tensors[0].data_ptr()
    total = sum(x.numel() for x in tensors)
    first = tensors[0]
    room = first.untyped_storage().nbytes() // first.element_size() - first.storage_offset()
    if total > room:
        return False
    for x in tensors:
        if x.data_ptr() != place or not x.is_contiguous():
            return False
        place += x.numel() * x.element_size()
    return True


def flattened(tensors: Sequence[Tensor]) -> Tensor:
    """One real vector of all entries; a view where there is one contiguous tensor."""
    parts = [as_real(x) for x in tensors] if tensors[0].is_complex() else tensors
    if len(parts) == 1:
        return parts[0].reshape(-1)
    flat: Tensor = torch._C._nn.flatten_dense_tensors(list(parts))
    return flat


def parts_of(flat: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """A real vector cut into pieces of the shapes of these tensors, complex where they are."""
    if not like[0].is_complex():
        return list(torch._C._nn.unflatten_dense_tensors(flat, list(like)))
    pieces = torch.split(flat, [2 * x.numel() for x in like])
    return [
        torch.view_as_complex(piece.view(*x.shape, 2))
        for piece, x in zip(pieces, like, strict=True)
    ]


@torch.no_grad()
def add_vector(params: Sequence[Tensor], step: Tensor) -> None:
    """Add a vector (P,) of any dtype to parameters, in place."""
    parts = torch.split(step, [p.numel() for p in params])
    for p, part in zip(params, parts, strict=True):
        p.add_(part.view(p.shape).to(p))
