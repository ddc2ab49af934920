"""What an optimizer refuses before anything changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._tensors import as_real, is_16_bit, local, state_dtype, sums_of_squares_are_finite
from .handover import Handover, is_gated

Floor = Mapping[Tensor, Tensor]
"""Variance of the mean gradient, per parameter: ``{parameter: tensor of its shape}``."""


def check_floor(floor: Any, groups: Sequence[dict[str, Any]], noise_is_declared: bool) -> None:
    """Refuse a floor made by hand that cannot be one.

    Raises:
        TypeError: it is no mapping.
        ValueError: it is one for other parameters, or noise was declared, too.
    """
    if not isinstance(floor, Mapping):
        raise TypeError(f"A floor maps parameters to variances, as a dict does; got {floor!r}.")
    if noise_is_declared:
        raise ValueError(
            "Noise was declared to this optimizer: step() makes the floor from it. Leave out "
            "step(floor=...), or declare no noise."
        )
    params = [p for group in groups if is_gated(group) for p in group["params"]]
    if floor and params and not any(p in floor for p in params):
        raise ValueError(
            "The floor is one for other parameters: it has none of this optimizer's (a copy of "
            "a network has its own)."
        )


def refuse(groups: Sequence[dict[str, Any]], floor: Floor | None) -> None:
    """Refuse gradients and floors of a kind that cannot be stepped on.

    Raises:
        RuntimeError: a gradient is sparse, or a CUDA graph is being captured.
        ValueError: a floor has another shape than its parameter, or is negative.
    """
    for g, group in enumerate(groups):
        for i, p in enumerate(group["params"]):
            if p.grad is None:
                continue
            if p.is_cuda and torch.cuda.is_current_stream_capturing():
                raise RuntimeError(
                    "A step cannot be captured into a CUDA graph: it looks at its numbers, whether "
                    "they are finite and what stands beside the noise. Call step() outside of it."
                )
            if p.grad.is_sparse:
                raise RuntimeError(
                    f"Sparse gradients are not supported ({_name(group, g, i)}); "
                    "torch.optim.SparseAdam takes them."
                )
            if floor is not None and (variance := floor.get(p)) is not None:
                _check_variance(variance, p, group, g, i)


def squares_are_finite(
    groups: Sequence[dict[str, Any]], floor: Floor | None, handover: Handover | None
) -> bool:
    """Whether all that a step is made from is finite, and its squares are. If not, look closer:
    :func:`inputs_are_finite`."""
    params = [p for group in groups for p in group["params"] if p.grad is not None]
    if handover is not None:
        params = [p for p in params if not handover.is_known_finite(p)]
    tensors = [local(p.grad) for p in params]
    if floor is not None:
        tensors += floor.values()
    if handover is not None:
        tensors += [tensor for _, _, tensor in handover.tensors()]
    return sums_of_squares_are_finite(tensors)


def inputs_are_finite(
    groups: Sequence[dict[str, Any]], floor: Floor | None, handover: Handover | None
) -> bool:
    """Refuse what cannot be stepped on; False: skip this step.

    Raises:
        FloatingPointError: something is not finite (unless ``nonfinite="skip"``), or the squares of
            the noise are 0.
    """
    entries: list[_Checked] = []
    places: dict[Tensor, tuple[dict[str, Any], int, int]] = {}
    for g, group in enumerate(groups):
        for i, p in enumerate(group["params"]):
            if p.grad is None:
                continue
            places[p] = (group, g, i)
            entries.append(_Checked(local(p.grad), "gradient", group, g, i))
            if floor is not None and (variance := floor.get(p)) is not None:
                entries.append(_Checked(variance, "floor", group, g, i))
    if handover is not None:
        for what, p, tensor in handover.tensors():
            if p in places:
                entries.append(_Checked(tensor, what, *places[p]))
        if handover.looks:
            _check_underflow(handover)
    bad = _first_nonfinite(entries)
    if bad is None:
        return True
    if bad.group["nonfinite"] == "skip":
        return False
    hint = 'Lower the learning rate or look at the loss; nonfinite="skip" skips such steps.'
    if bad.what == "noise draw":
        hint = (
            "The data's error (sigma) is too large or too small beside the residuals for its "
            "squares: check its unit, or rescale the data."
        )
    raise FloatingPointError(
        f"The {bad.what} of {_name(bad.group, bad.at, bad.place)} has NaN or infinite entries, "
        "or entries whose squares are. Parameters and optimizer state are as they were before "
        f"this step. {hint}"
    )


def _check_underflow(handover: Handover) -> None:
    """Refuse draws of the noise whose squares are 0: the floor would be none, in silence."""
    draws = [(p, x) for what, p, x in handover.tensors() if what == "noise draw"]
    peaks = [(float(x.abs().max()), state_dtype(p)) for p, x in draws if x.numel()]
    if not peaks or max(peak for peak, _ in peaks) == 0:
        return
    peak, dtype = max(peaks, key=lambda pair: pair[0])
    if peak**2 < torch.finfo(dtype).tiny:
        raise FloatingPointError(
            f"The gradient's noise is at most {peak:.1g}: its square is 0 in {dtype}, and "
            "nothing could be compared with it. sigma, or the weight of its loss, is too "
            "small: check its unit, or rescale the data or the loss."
        )


class _Checked(NamedTuple):
    """What has to be finite: ``what`` of the parameter at this place of a group."""

    tensor: Tensor
    what: str
    group: dict[str, Any]
    at: int
    """The group's index."""
    place: int


def _name(group: dict[str, Any], group_index: int, index: int) -> str:
    shape = tuple(group["params"][index].shape)
    if "param_names" in group:
        return f"parameter {group['param_names'][index]!r} of shape {shape}"
    return f"parameter {index} of group {group_index}, of shape {shape}"


def _check_variance(variance: Tensor, p: Tensor, *which: Any) -> None:
    name = _name(*which)
    if variance.shape != p.shape:
        raise ValueError(
            f"The floor of {name} has shape {tuple(variance.shape)}; it must have the parameter's."
        )
    if variance.is_complex() != p.is_complex():
        raise ValueError(
            f"The floor of {name} must be {'complex' if p.is_complex() else 'real'}, like it "
            "(real and imaginary part: the variances of the gradient's real and imaginary part)."
        )
    entries = as_real(variance)
    if ((entries < 0) & entries.isfinite()).any():
        raise ValueError(f"The floor of {name} is negative; it is a variance.")


def _first_nonfinite(entries: list[_Checked]) -> _Checked | None:
    """The first entry whose tensor is not finite; entries to be raised on come first."""
    if sums_of_squares_are_finite([entry.tensor for entry in entries]):
        return None
    # A sum can overflow where no entry does; look at the entries themselves.
    for entry in sorted(entries, key=lambda entry: str(entry.group["nonfinite"])):
        found = entry.tensor
        if entry.what == "noise draw":  # it is to be squared
            found = found.float().square() if is_16_bit(found) else as_real(found).square()
        if not torch.isfinite(found).all():
            return entry
    return None
