"""What an optimizer does, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .gate import Gate
from .handover import is_gated

if TYPE_CHECKING:
    from .snr_adam import SNRAdam

_COORDINATES = {
    True: "the eigenbasis of the gradients' covariances",
    False: "the parameters' own coordinates",
}


def describe(optimizer: SNRAdam) -> str:
    """Floor, gate, coordinates, noisy and exact terms of an optimizer, a line each."""
    name = type(optimizer).__name__
    group = next((g for g in optimizer.param_groups if is_gated(g)), None)
    if group is None:
        return f"{name}: plain Adam, no gate"
    coordinates = _COORDINATES[optimizer.is_turned(group)]
    if group["coordinates"] == "auto" and optimizer.noise and optimizer.beside_exact is None:
        coordinates = "coordinates that the first step chooses: beside exact terms the eigenbasis"
    lines = [f"{name}: Adam in {coordinates}, with a gate"]
    if optimizer.noise:
        lines.append("floor: label, what the error of the data does to the gradient")
        for source in optimizer.noise:
            lines += [f"  noisy: {line}" for line in source.describe()]
        lines.append(f"  exact: {_exact(optimizer)}")
    else:
        given = ", or as given to step(floor=...)" if optimizer.has_given_floor else ""
        lines.append(f"floor: stream, the published estimate from step to step{given}")
    lines.append(_gate(optimizer.gate_of(group)))
    ungated = sum(len(g["params"]) for g in optimizer.param_groups if not is_gated(g))
    if ungated:
        lines.append(f"without a gate: {ungated} parameter(s)")
    return "\n".join(lines)


def _exact(optimizer: SNRAdam) -> str:
    if optimizer.beside_exact is None:
        return "whatever else is in the loss; seen in the first step"
    if not optimizer.beside_exact:
        return "none: all of the loss is noisy"
    named = [line for source in optimizer.noise for line in source.exact()]
    return "; ".join(named) or "what else is in the loss"


def _gate(gate: Gate) -> str:
    threshold = f"alpha = {gate.alpha:g}" if gate.z is None else f"z = {gate.z:g}"
    if gate.rise_steps:
        threshold += ", rising with the steps"
    if gate.discrepancy:
        threshold += ", open by what the residuals exceed their error"
    if gate.warmup_steps:
        threshold += f", from step {gate.warmup_steps} on"
    return f"gate: {gate.form}, {threshold}"
