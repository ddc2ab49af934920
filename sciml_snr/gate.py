r"""Gates: how far a parameter may move, given its squared mean gradient and the noise in it.

Every gate is a pure, elementwise function

.. math:: q = q(\hat m^2, \sigma^2; \alpha, \lambda, \varepsilon_q) \in [0, 1]

of two tensors of one shape: ``mean_sq``, the squared (bias-corrected) mean gradient
:math:`\hat m^2`, and ``floor``, the variance :math:`\sigma^2` which that mean gradient would have
if it were noise only. A gate knows nothing of optimizers or of where the floor comes from.

Source: E. Litman and G. Guo, *A Theory of Generalization in Deep Learning*, arXiv:2605.01172
(2026): a diagonal step on parameter k lowers the population risk only where
:math:`\bar g_k^2 > \Sigma_k/(b-1)`; ``soft`` is the gate of their Algorithm 1, ``snr`` the form in
the authors' package.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any

import torch
from torch import Tensor

Gate = Callable[[Tensor, Tensor, float, float, float], Tensor]


def none(mean_sq: Tensor, floor: Tensor, alpha: float, lambd: float, eps: float) -> Tensor:
    """No gate: q = 1 (the optimizer is then Adam)."""
    return torch.ones_like(mean_sq)


def hard(mean_sq: Tensor, floor: Tensor, alpha: float, lambd: float, eps: float) -> Tensor:
    """q = [mean_sq > alpha floor]: the best 0/1 gate (``lambd`` and ``eps`` play no part)."""
    return (mean_sq > alpha * floor).to(mean_sq.dtype)


def soft(mean_sq: Tensor, floor: Tensor, alpha: float, lambd: float, eps: float) -> Tensor:
    """q = d / (d + lambd floor + eps), d = max(mean_sq - alpha floor, 0): the published gate."""
    excess = (mean_sq - alpha * floor).clamp_min(0)
    return excess / (excess + lambd * floor + eps)


def snr(mean_sq: Tensor, floor: Tensor, alpha: float, lambd: float, eps: float) -> Tensor:
    """q = mean_sq / (mean_sq + alpha lambd floor + eps): never quite closed, never quite open."""
    return mean_sq / (mean_sq + alpha * lambd * floor + eps)


def stein(mean_sq: Tensor, floor: Tensor, alpha: float, lambd: float, eps: float) -> Tensor:
    """q = max(0, 1 - alpha floor / mean_sq): closed up to the threshold, then open by degrees.

    The positive-part shrinkage of W. James and C. Stein, Proc. 4th Berkeley Symp. 1 (1961) 361;
    the soft gate with lambd = alpha (``lambd`` plays no part).
    """
    return soft(mean_sq, floor, alpha, alpha, eps)


GATES: dict[str, Gate] = {"none": none, "hard": hard, "soft": soft, "snr": snr, "stein": stein}

CONSTANT: dict[str, Any] = {"rise_steps": 0, "discrepancy": False}
"""A threshold that stays, and nothing that opens the gate but what stands out of its floor."""

STREAM_GATE: dict[str, Any] = {
    "gate": "soft",
    "alpha": "fresh",
    "lambd": 1.0,
    "z": None,
    "warmup_steps": 0,
    **CONSTANT,
}
"""The published gate, for the streaming floor."""

LABEL_GATE: dict[str, Any] = {
    "gate": "stein",
    "alpha": 1.0,
    "lambd": 1.0,
    "z": 2.0,
    "warmup_steps": 0,
    "rise_steps": 300,
    "discrepancy": True,
}
"""The gate for the label floor, where all terms of the loss are noisy."""

EXACT_GATES: dict[str, dict[str, Any]] = {
    "snr_adam": {**LABEL_GATE, **CONSTANT, "z": 1.0},
    "snr_soap": {**LABEL_GATE, **CONSTANT, "z": 1.5},
}
"""The same by optimizer, where there are exact terms (equations, exact conditions) beside the noisy
ones. They carry on where the gate is closed and hold the noise back, so that it may open sooner;
sooner still in the parameters' own coordinates, each of which mixes many directions and sees any
one of them through the noise of the others."""


def rise(step: float, rise_steps: float) -> float:
    """By how much the threshold alpha = z^2 has risen at a step: 1 + log(1 + step / rise_steps)/2.

    Noise that is the same in every step is tested in every step, by a network that has moved, and
    in time passes by chance. A normal deviate exceeds z with a probability of about exp(-z^2 / 2):
    from z = 2 on, this lets it fall like 1 / (1 + step / rise_steps).
    """
    return 1 + math.log1p(step / rise_steps) / 2


def with_options(defaults: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults under the options that are given (not None); alpha goes before a default z."""
    given = {name: value for name, value in options.items() if value is not None}
    return {**defaults, **({"z": None} if "alpha" in given else {}), **given}


def resolve_alpha(
    alpha: float | str, batch_size: int | None = None, data_size: int | None = None
) -> float:
    """The threshold alpha as a number.

    Args:
        alpha: a number >= 0; ``"fresh"`` (every batch is drawn anew: alpha = 1); or ``"finite"``
            (batches of ``batch_size`` drawn from a fixed set of ``data_size`` samples:
            alpha = b / (n - b), arXiv:2605.01172, section on finite data).
        batch_size: b, samples per step; needed for ``"finite"``.
        data_size: n, samples in the fixed set; needed for ``"finite"``.

    Raises:
        ValueError: alpha is neither of these, or b and n do not satisfy 1 <= b < n. A full batch
            (b = n) has no sampling noise for the streaming floor to see.
    """
    if alpha == "fresh":
        return 1.0
    if alpha == "finite":
        if batch_size is None or data_size is None:
            raise ValueError(
                'alpha="finite" is b / (n - b): give batch_size (b) and data_size (n) too.'
            )
        if not 1 <= batch_size < data_size:
            raise ValueError(
                f'alpha="finite" needs 1 <= batch_size < data_size, got batch_size={batch_size}, '
                f"data_size={data_size}. With the full batch in every step there is no sampling "
                "noise; give alpha as a number instead."
            )
        return batch_size / (data_size - batch_size)
    if not isinstance(alpha, Real) or not (alpha >= 0 and math.isfinite(alpha)):
        raise ValueError(f'alpha must be a number >= 0, "fresh" or "finite", got {alpha!r}.')
    return float(alpha)
