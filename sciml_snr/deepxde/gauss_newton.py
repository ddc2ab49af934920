"""``compile("snr_gn")``: :class:`sciml_snr.SNRGaussNewton` on the residuals of a DeepXDE model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from deepxde import config
from deepxde.data import PDE, DataSet, Function
from deepxde.data.data import Data

from ..gauss_newton import SNRGaussNewton
from ..noise import NoisyLoss
from .jacobian import ModelRows
from .options import SNR_options, has_gate

NAME = "snr_gn"

STEPS = 60
"""A budget that is enough on the problems of this package, after a start of first order."""

WARM_UP_STEPS = 400
"""Steps of ``"snr_adam"`` before, from a random network."""

WARM_UP_RATE = 3e-3
"""Their learning rate, on every problem."""

UNKNOWNS_UNIT = 30.0
"""Of unknown coefficients, beside weights: see ``unit`` of :class:`sciml_snr.SNRGaussNewton`."""

_SQUARES = ("mean_squared_error", "MSELoss")
_RANDOM_OR_MIXING = (torch.nn.modules.batchnorm._NormBase, torch.nn.modules.dropout._DropoutNd)


def build(params: Iterable[Any], lr: float | None, decay: Any = None) -> SNRGaussNewton:
    """The optimizer, for DeepXDE's parameters or groups of them, with the options in force.

    Raises:
        ValueError: a learning rate that is not there is to decay.
    """
    if decay is not None and lr is None:
        raise ValueError(
            f'"{NAME}" has no learning rate that could decay: leave out decay, or give lr, the '
            "longest step there may be."
        )
    options: dict[str, Any] = {} if SNR_options["z"] is None else {"z": float(SNR_options["z"])}
    groups = list(params)
    if len(groups) == 2 and isinstance(groups[1], dict):  # weights, unknown coefficients
        groups[1] = {**groups[1], "unit": UNKNOWNS_UNIT}
    return SNRGaussNewton(groups, lr, **(options if has_gate() else {"z": 0.0}))


def adopt(optimizer: SNRGaussNewton, groups: Sequence[Any]) -> None:
    """Give an instance the external variables that it does not have."""
    if len(groups) == 2 and isinstance(groups[1], dict):
        own = {p for group in optimizer.param_groups for p in group["params"]}
        missing = [p for p in groups[1]["params"] if p not in own]
        if missing:
            names = [f"external_trainable_variables[{i}]" for i in range(len(missing))]
            named = "param_names" in optimizer.param_groups[0]
            params: Any = list(zip(names, missing, strict=True)) if named else missing
            optimizer.add_param_group({"params": params, "unit": UNKNOWNS_UNIT})


def check(model: Any, losses: Any) -> None:
    """Refuse a model whose rows have no Jacobian here.

    Args:
        model: the model that is being compiled.
        losses: as given to ``compile``.

    Raises:
        ValueError: says why, and what to use instead.
    """
    if reason := why_no_rows(model, losses):
        raise _refused(reason)
    if model.net.regularizer is not None:
        raise _refused("it takes no regularization of the weights")


def why_no_rows(model: Any, losses: Any) -> str:
    """Why a model's residual rows have no Jacobian here; empty where they have."""
    data, net = model.data, model.net
    kind = type(data)
    is_known = getattr(kind, "losses", None) in (PDE.losses, DataSet.losses, Function.losses)
    if not is_known or kind.losses_train is not Data.losses_train:
        return f"the residuals of a {type(data).__name__} do not belong to single points"
    if any(isinstance(module, _RANDOM_OR_MIXING) for module in net.modules()):
        return "the network has batch norm or dropout layers: its outputs mix points, or are random"
    if config.autodiff == "forward":
        return "it differentiates in reverse mode: dde.config.set_default_autodiff('reverse')"
    if config.mixed:
        return "it takes float32 and float64, no mixed precision"
    for loss in losses if isinstance(losses, (list, tuple)) else [losses]:
        if not _is_square(loss):
            name = getattr(loss, "__name__", repr(loss))
            return f"it minimizes sums of squares, and {name} is none: loss='MSE'"
    return ""


def _refused(reason: str) -> ValueError:
    return ValueError(f'"{NAME}" is not for this model: {reason}. "snr_adam" takes it.')


def _is_square(loss: Any) -> bool:
    if isinstance(loss, NoisyLoss):
        return loss.loss.name == "mse"
    if isinstance(loss, str):
        return loss.lower() in ("mse", "mean squared error")
    return getattr(loss, "__name__", type(loss).__name__) in _SQUARES


def install(model: Any, losses: Any) -> None:
    """Give a compiled model the train step of its optimizer, an :class:`SNRGaussNewton`.

    Args:
        model: compiled, with DeepXDE's own train step.
        losses: as given to ``compile``.

    Raises:
        ValueError: the model's residuals do not belong to single points.
    """
    batch = (*model.data.train_next_batch(None), None)[:3]
    for points in (SNR_options["equation_points"], 0):
        rows = ModelRows(model, losses, points)
        rows.take(*batch)
        rows.draw(0)
        try:
            model.opt.check_size(len(rows.rows()))
            break
        except ValueError:  # more points than fit in memory: the model's own, or none
            if not points:
                raise
    model.sciml_snr_equation_points = points
    if reason := rows.why_not():
        raise _refused(reason)

    def train_step(inputs: Any, targets: Any, auxiliary_vars: Any) -> None:
        rows.take(inputs, targets, auxiliary_vars)
        rows.draw(model.opt.steps)
        model.opt.step(rows)
        if model.lr_scheduler is not None:
            model.lr_scheduler.step()
        if model.opt.done:
            model.stop_training = True

    model.train_step = train_step
