"""Loss weights that need no tuning: :func:`balanced_weights`."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from deepxde import losses as dde_losses
from torch import Tensor

from ..noise import NoisyLoss
from .conditions import NoisyCondition, conditions_of
from .rows import residuals_of
from .split_step import as_it_was


def balanced_weights(model: Any, loss: Any = "MSE", networks: int = 16) -> list[float]:
    r"""Loss weights that let an equation pull as hard at the start as the noisy data do.

    A noisy term keeps the weight 1. Every exact one, an equation or a condition, gets

    .. math:: w_i^2 = \frac{\mathbb E \sum_{j\ \text{noisy}} \|\nabla L_j\|^2}
                            {\mathbb E \|\nabla L_i\|^2},

    with gradients by the network's parameters, and means over random networks: this one with the
    entries of each parameter in random order. The weights then hardly depend on the seed. With one
    network this is the first step of the annealing of S. Wang, Y. Teng and P. Perdikaris, *SIAM J.
    Sci. Comput.* 43 (2021) A3055.

    Args:
        model: a ``dde.Model``; it need not be compiled, and is left as it is.
        loss: as for ``model.compile``.
        networks: how many random networks.

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
    params = list(model.net.parameters())
    generator = torch.Generator("cpu").manual_seed(0)
    squares: list[float] = []
    with as_it_was(model):
        for _ in range(networks):
            with _shuffled(params, generator), torch.enable_grad():
                _, terms = residuals_of(model, losses, *batch)
                found = [_square_of_gradient(term.mean(), params) for term in terms]
            squares = [a + b for a, b in zip(squares or [0.0] * len(found), found, strict=True)]
    norms = [math.sqrt(square / networks) for square in squares]
    conditions = conditions_of(model.data)
    owners = [None] * (len(norms) - len(conditions)) + list(conditions)
    own_losses = list(loss) if several else [loss] * len(norms)
    noisy = [
        isinstance(condition, NoisyCondition) or isinstance(own, NoisyLoss)
        for condition, own in zip(owners, own_losses, strict=True)
    ]
    if not any(noisy):
        raise ValueError(
            "balanced_weights weighs exact terms against noisy ones, and this model has none: "
            "declare the noise, by sciml_snr.NoisyPointSetBC or sciml_snr.noisy(condition, sigma)."
        )
    size = math.hypot(*(norm for norm, is_noisy in zip(norms, noisy, strict=True) if is_noisy))
    if not (size > 0 and all(norm < float("inf") for norm in norms)):
        listed = ", ".join(f"{norm:.3g}" for norm in norms)
        raise ValueError(
            "balanced_weights needs finite gradients, and some of the noisy terms: the norms are "
            f"{listed}, in the order of DeepXDE's losses."
        )
    return [
        1.0 if is_noisy or norm == 0 else size / norm
        for norm, is_noisy in zip(norms, noisy, strict=True)
    ]


@contextlib.contextmanager
def _shuffled(params: Sequence[Tensor], generator: torch.Generator) -> Iterator[None]:
    """Parameters with their entries in random order."""
    before = [p.data for p in params]
    try:
        for p in params:
            order = torch.randperm(p.numel(), generator=generator, device="cpu").to(p.device)
            p.data = p.data.flatten()[order].view_as(p)
        yield
    finally:
        for p, own in zip(params, before, strict=True):
            p.data = own


def _square_of_gradient(loss: Tensor, params: Sequence[Tensor]) -> float:
    """Squared norm of a loss term's gradient by the trained ones of these parameters."""
    trained = [p for p in params if p.requires_grad]
    if not (loss.requires_grad and trained):
        return 0.0
    found = torch.autograd.grad(loss, trained, retain_graph=True, allow_unused=True)
    return sum(float(g.double().square().sum()) for g in found if g is not None)
