"""The variances that the floors estimate, computed from per-sample gradients.

For reference and small problems: memory grows with entries times parameters.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from .rule import averaged_share
from .terms import NoisyTerm


def exact_label_noise(
    params: Iterable[Tensor], terms: Iterable[NoisyTerm], beta1: float = 0.9
) -> dict[Tensor, Tensor]:
    """Variance of the gradient under the error of the data, from the gradient of every residual.

    What the optimizers estimate for :class:`sciml_snr.NoisyLoss`.

    Args:
        params: real parameters.
        terms: the noisy summands of the loss; their graph stays alive.
        beta1: decay rate of the optimizer's first moment. It averages noise away that is drawn
            anew in every step, down to (1 - beta1) / (1 + beta1) of its variance.

    Returns:
        A tensor of each parameter's shape.
    """
    params = list(params)
    total = {p: torch.zeros_like(p) for p in params}
    for term in terms:
        variance = term.deviation().flatten() ** 2 * averaged_share(term.share(), beta1)
        for p, rows in _per_sample_gradients(term.residual.flatten(), params).items():
            total[p] += torch.einsum("i,i...->...", variance, rows**2)
    return total


def exact_sampling_noise(params: Iterable[Tensor], losses: Tensor) -> dict[Tensor, Tensor]:
    """Variance of the mean gradient of a fresh batch, sum (g_i - mean g)^2 / (b (b - 1)).

    What the optimizers estimate for :class:`sciml_snr.SampledLoss`, before the first moment's
    averaging.

    Args:
        params: real parameters.
        losses: (b,), one per sample, whose mean is trained; their graph stays alive.

    Raises:
        ValueError: there are fewer than two losses, or they are not a vector.
    """
    if losses.ndim != 1 or len(losses) < 2:
        raise ValueError(
            f"Give one loss per sample, a vector of two or more, not {tuple(losses.shape)}."
        )
    b = len(losses)
    gradients = _per_sample_gradients(losses, list(params))
    return {p: rows.var(0, correction=1) / b for p, rows in gradients.items()}


def _per_sample_gradients(outputs: Tensor, params: list[Tensor]) -> dict[Tensor, Tensor]:
    """(n,) outputs -> the gradient of each, (n, *shape), per parameter; torch.func's vmap."""
    eye = torch.eye(len(outputs), dtype=outputs.dtype, device=outputs.device)
    rows = torch.autograd.grad(
        outputs, params, eye, retain_graph=True, allow_unused=True, is_grads_batched=True
    )
    return {
        p: torch.zeros((len(outputs), *p.shape), dtype=p.dtype, device=p.device) if g is None else g
        for p, g in zip(params, rows, strict=True)
    }
