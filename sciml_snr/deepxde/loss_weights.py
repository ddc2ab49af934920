"""Loss weights that need no tuning: :func:`balanced_weights`."""

from __future__ import annotations

import math
from typing import Any

import torch
from deepxde import losses as dde_losses
from torch import Tensor

from ..noise import NoisyLoss
from .conditions import NoisyCondition, conditions_of
from .rows import residuals_of


def balanced_weights(model: Any, loss: Any = "MSE") -> list[float]:
    r"""Loss weights that let an equation pull as hard at the start as the noisy data do.

    A noisy term keeps the weight 1. Every exact one, an equation or a condition, gets

    .. math:: w_i = \frac{\sqrt{\sum_{j\ \text{noisy}} \|\nabla L_j\|^2}}{\|\nabla L_i\|},

    with gradients by the network's parameters as they are: before training, the random ones. This
    is the first step of the annealing of S. Wang, Y. Teng and P. Perdikaris, *SIAM J. Sci. Comput.*
    43 (2021) A3055.

    Args:
        model: a ``dde.Model``; it need not be compiled, and is left as it is.
        loss: as for ``model.compile``.

    Returns:
        One weight a term, for ``model.compile(..., loss_weights=)``. An exact term without a
        gradient, such as a condition that the network meets by its form, has the weight 1.

    Raises:
        ValueError: no term is noisy, the noisy ones have no gradient, or a gradient is not finite.

    Example:
        >>> model.compile("snr_adam", lr=3e-3, loss_weights=sciml_snr.balanced_weights(model))
    """
    several = isinstance(loss, (list, tuple))
    losses = [dde_losses.get(own) for own in loss] if several else dde_losses.get(loss)
    batch = (*model.data.train_next_batch(None), None)[:3]
    aux = model.net.auxiliary_vars
    mode = model.net.training
    with torch.enable_grad():
        _, terms = residuals_of(model, losses, *batch)
        norms = [_norm_of_gradient(term.mean(), model.net) for term in terms]
    model.net.auxiliary_vars = aux
    model.net.train(mode)
    conditions = conditions_of(model.data)
    owners = [None] * (len(terms) - len(conditions)) + list(conditions)
    own_losses = list(loss) if several else [loss] * len(terms)
    noisy = [
        isinstance(condition, NoisyCondition) or isinstance(own, NoisyLoss)
        for condition, own in zip(owners, own_losses, strict=True)
    ]
    if not any(noisy):
        raise ValueError(
            "balanced_weights weighs exact terms against noisy ones, and this model has none: "
            "declare the noise, by sciml_snr.NoisyPointSetBC or sciml_snr.noisy(condition, sigma)."
        )
    size = sum(norm**2 for norm, is_noisy in zip(norms, noisy, strict=True) if is_noisy) ** 0.5
    if not (size > 0 and all(norm < float("inf") for norm in norms)):
        found = ", ".join(f"{norm:.3g}" for norm in norms)
        raise ValueError(
            "balanced_weights needs finite gradients, and some of the noisy terms: the norms are "
            f"{found}, in the order of DeepXDE's losses."
        )
    return [
        1.0 if is_noisy or norm == 0 else size / norm
        for norm, is_noisy in zip(norms, noisy, strict=True)
    ]


def _norm_of_gradient(loss: Tensor, net: torch.nn.Module) -> float:
    """Of a loss term by the network's trained parameters."""
    params = [p for p in net.parameters() if p.requires_grad]
    if not (loss.requires_grad and params):
        return 0.0
    found = torch.autograd.grad(loss, params, retain_graph=True, allow_unused=True)
    squares = [float(g.double().square().sum()) for g in found if g is not None]
    return math.sqrt(sum(squares))
