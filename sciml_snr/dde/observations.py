"""Measurements that know their error, and the label floor they give a DeepXDE model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from deepxde.icbc import PointSetBC

from ..noise import LabelNoise, NoisyTerm, check_sigma
from ..snr_adam import Floor, SNRAdam


class NoisyPointSetBC(PointSetBC):  # type: ignore[misc]
    """A ``dde.icbc.PointSetBC`` whose values carry a measurement error.

    With one of these among a model's conditions, ``compile("snr_adam")`` gates every parameter
    against the gradient that this error alone would give it; see :class:`sciml_snr.LabelNoise`.
    Under any other optimizer it is a ``PointSetBC``.

    Args:
        points: (n, d) array of points.
        values: scalar or (n, m) array of measured values.
        sigma: standard deviation of their error, in their units: a scalar, (n,) or (n, 1) for one
            per point, or (n, m).
        component, batch_size, shuffle: as for ``PointSetBC``.

    Raises:
        ValueError: sigma is negative, not finite or of another length than the points.
    """

    def __init__(
        self,
        points: Any,
        values: Any,
        sigma: Any,
        component: int | list[int] = 0,
        batch_size: int | None = None,
        shuffle: bool = True,
    ) -> None:
        super().__init__(points, values, component, batch_size, shuffle)
        sigma = torch.as_tensor(np.asarray(sigma), dtype=torch.get_default_dtype())
        check_sigma(sigma)
        sigma = sigma.reshape(-1, 1) if sigma.ndim < 2 else sigma
        components = len(component) if isinstance(component, list) else 1
        if sigma.ndim > 2 or sigma.shape[1] not in (1, components):
            raise ValueError(
                f"sigma has the shape {tuple(sigma.shape)} for {len(self)} points and {components} "
                "component(s): give one number, one per point, or one per value."
            )
        if len(sigma) not in (1, len(self)):
            raise ValueError(
                f"sigma has {len(sigma)} entries for {len(self)} points: give one number, or one "
                "per point."
            )
        self.sigma = sigma
        self.residual: torch.Tensor | None = None

    def __getstate__(self) -> dict[str, Any]:
        """A copy has no last forward pass: tensors inside a graph cannot be copied."""
        return {**self.__dict__, "residual": None}

    def error(
        self, X: Any, inputs: Any, outputs: Any, beg: int, end: int, aux_var: Any = None
    ) -> torch.Tensor:
        """DeepXDE's residual, remembered for the floor's random-sign pass."""
        self.residual = super().error(X, inputs, outputs, beg, end, aux_var)
        return self.residual

    def term(self, weight: float) -> NoisyTerm | None:
        """The summand of the loss that the last forward pass gave; None without one."""
        residual, self.residual = self.residual, None
        if residual is None or not residual.requires_grad:
            return None
        sigma = self.sigma.to(residual.device)
        if len(sigma) > 1 and self.batch_size is not None:
            sigma = sigma[torch.as_tensor(self.batch_indices, device=sigma.device)]
        return NoisyTerm(residual, sigma, weight)


class LabelGatedSNRAdam(SNRAdam):
    """SNRAdam as ``compile("snr_adam")`` builds it for a model with noisy measurements.

    DeepXDE's closure calls ``zero_grad`` between the loss and its backward pass: the one moment
    when the residuals are there and their graph is alive.

    Args:
        params, options: as for :class:`SNRAdam`.
        terms: gives the noisy terms of the last forward pass.
        every: refresh the floor every so many steps.
    """

    _terms: Callable[[], list[NoisyTerm]] = list  # a copy's: none

    def __init__(
        self,
        params: Any,
        *,
        terms: Callable[[], list[NoisyTerm]],
        every: int,
        **options: Any,
    ) -> None:
        super().__init__(params, **options)
        gated = [group for group in self.param_groups if group["gate"] != "none"]
        self._terms = terms
        self.floor = LabelNoise(
            [p for group in gated for p in group["params"]], rho=options["rho"], every=every
        )

    def __getstate__(self) -> dict[str, Any]:
        """For deepcopy and pickle: a copy keeps the floor, but is no longer the model's."""
        return {**super().__getstate__(), "floor": self.floor}

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Refresh the floor, then forget the gradients."""
        self.floor.update(self._terms())
        super().zero_grad(set_to_none)

    def step(self, closure: Callable[[], Any] | None = None, floor: Floor | None = None) -> Any:
        """One step, gated by the label floor unless another is given."""
        return super().step(closure, self.floor if floor is None else floor)

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's state with the floor's."""
        return {**super().state_dict(), "label_noise": self.floor.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state with or without a floor."""
        super().load_state_dict({k: v for k, v in state_dict.items() if k != "label_noise"})
        if "label_noise" in state_dict:
            self.floor.load_state_dict(state_dict["label_noise"])


def noisy_terms(model: Any) -> Callable[[], list[NoisyTerm]] | None:
    """What gives the noisy terms of a DeepXDE model's loss, or None if it has none.

    DeepXDE orders losses and their weights [residuals, conditions]; a single weight is for all.
    """
    conditions = list(getattr(model.data, "bcs", ()))
    inner = getattr(getattr(model.data, "pde", None), "bcs", ())
    if any(isinstance(condition, NoisyPointSetBC) for condition in inner):
        raise ValueError(
            "A NoisyPointSetBC inside operator data (PDEOperator) cannot give a floor: its "
            'residual is formed once per function. Use set_SNR_options(floor="stream").'
        )
    if not any(isinstance(condition, NoisyPointSetBC) for condition in conditions):
        return None

    def terms() -> list[NoisyTerm]:
        weights = [1.0] * len(conditions)
        if model.loss_weights is not None:
            weights = list(model.loss_weights)
            weights *= len(conditions) if len(weights) == 1 else 1
        found = [
            condition.term(weight)
            for condition, weight in zip(conditions, weights[-len(conditions) :], strict=True)
            if isinstance(condition, NoisyPointSetBC)
        ]
        return [term for term in found if term is not None]

    return terms
