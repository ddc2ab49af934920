"""The rows, parameters and unknowns of a DeepXDE model, for :func:`sciml_snr.error_bars`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ..jacobian import Residuals, System
from ..measure.error_bars import check_rows
from .gauss_newton import why_no_rows
from .jacobian import EQUATION_ROWS, ModelRows


def parts_of(
    model: Any, unknowns: Mapping[str, Any] | None
) -> tuple[nn.Module, Residuals, System, list[Tensor], dict[str, Any], Sequence[Tensor]]:
    """What error bars of a model are made of.

    Args:
        model: compiled and trained.
        unknowns: name -> variable or function; None: its external variables.

    Returns:
        Network, rows, their Jacobian, trained tensors, unknowns, and the variables outside the
        network.

    Raises:
        ValueError: the model is not compiled, or has no rows.
    """
    if getattr(model, "opt", None) is None:
        raise ValueError("The model is not compiled: error bars are made of a trained model.")
    losses = model.sciml_snr_losses
    losses = [_own(loss) for loss in losses] if isinstance(losses, (list, tuple)) else _own(losses)
    if reason := why_no_rows(model, losses):
        raise ValueError(f"There are no error bars for this model: {reason}.")
    rows = ModelRows(model, losses, model.sciml_snr_equation_points)
    if not rows.data_stay:
        raise ValueError(
            "There are no error bars for batches of measurements: train with batch_size=None."
        )
    rows.take(*(*model.data.train_next_batch(None), None)[:3])
    rows.draw(0, EQUATION_ROWS)
    params = rows.trained
    check_rows(rows, params)
    system, reason = rows.checked_system()
    if system is None or reason:
        raise ValueError(f"There are no error bars for this model: {reason}.")
    inside = {id(p) for p in model.net.parameters()}
    free = [p for p in params if id(p) not in inside]
    if unknowns is None:
        unknowns = {f"unknown_{i}" if len(free) > 1 else "unknown": p for i, p in enumerate(free)}
    return model.net, rows, system, params, dict(unknowns), free


def _own(loss: Any) -> Any:
    """The loss that the user gave."""
    return getattr(loss, "own", loss)
