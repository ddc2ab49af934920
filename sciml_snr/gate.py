r"""Gates: how far a parameter may move, given its squared mean gradient and the noise in it.

A gate compares two tensors of one shape: ``mean_sq``, the squared (bias-corrected) mean gradient
:math:`\hat m^2`, and the *floor*, the variance :math:`\sigma^2` that this mean gradient would have
if it were nothing but noise. It returns :math:`q \in [0, 1]`, the share of the step that is taken.
A gate knows nothing of optimizers, or of where the floor comes from.

Source: E. Litman and G. Guo, *A Theory of Generalization in Deep Learning*, arXiv:2605.01172
(2026). A diagonal step on parameter k lowers the population risk only where
:math:`\bar g_k^2 > \Sigma_k/(b-1)`. ``soft`` is the gate of their Algorithm 1, ``snr`` the form in
the authors' package.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

Form = Callable[[Tensor, float, float], Tensor]


def none(ratio: Tensor, alpha: float, lambd: float) -> Tensor:
    """No gate: q = 1 (the optimizer is then Adam)."""
    return torch.ones_like(ratio)


def hard(ratio: Tensor, alpha: float, lambd: float) -> Tensor:
    """q = [mean_sq > alpha floor]: the best 0/1 gate (``lambd`` plays no part)."""
    return (ratio * alpha < 1).to(ratio.dtype)


def soft(ratio: Tensor, alpha: float, lambd: float) -> Tensor:
    """q = d / (d + lambd floor), d = max(mean_sq - alpha floor, 0): the published gate."""
    excess = (ratio * -alpha).add_(1).clamp_min_(0)
    return excess.div_(ratio.mul_(lambd).add_(excess))


def snr(ratio: Tensor, alpha: float, lambd: float) -> Tensor:
    """q = mean_sq / (mean_sq + lambd floor): never quite closed, never quite open (``alpha`` plays
    no part beside that in ``lambd``)."""
    return ratio.mul_(lambd).add_(1).reciprocal_()


def stein(ratio: Tensor, alpha: float, lambd: float) -> Tensor:
    """q = max(0, 1 - alpha floor / mean_sq): closed up to the threshold, then open by degrees.

    The positive-part shrinkage of W. James and C. Stein, Proc. 4th Berkeley Symp. 1 (1961) 361;
    the soft gate with lambd = alpha (``lambd`` plays no part).
    """
    return ratio.mul_(-alpha).add_(1).clamp_min_(0)


FORMS: dict[str, Form] = {"none": none, "hard": hard, "soft": soft, "snr": snr, "stein": stein}
"""The gates as functions of floor / mean_sq, which they may overwrite."""


@dataclass(frozen=True)
class Gate:
    """A gate with its threshold.

    Args:
        form: ``"none"``, ``"hard"``, ``"soft"``, ``"snr"`` or ``"stein"``; see this module.
        z: the threshold in standard errors of the mean gradient, in place of ``alpha``: z squared
            times the variance of the mean gradient. That is the floor of the data's noise, or what
            the first moment's averaging leaves of the streaming one, (1 - beta1) / 2 of it.
        alpha: the threshold on ``mean_sq / floor``, where z is None.
        lambd: weight of the floor in the soft and snr forms (lambda in the paper; ``softness`` in
            the authors' package). 0 makes the soft form the hard one.
        eps: added to the denominator of the soft and snr forms, in squared gradient units: entries
            whose mean gradient is far below its root do not move. The authors' package has 1e-8.
        warmup_steps: leave the gate open for a parameter's first so many steps.
        rise_steps: steps in which the threshold rises by a third, and on from there like their
            logarithm (:func:`rise`); 0: it stays.
        discrepancy: open all entries by the share of the residuals that cannot be noise, whatever
            a single entry shows of it. This takes sigma at its word. It needs the squared error,
            and the same data in every step.
        follow: beside exact terms, let these move what the gate has closed, along the level set of
            the noisy terms (:func:`sciml_snr.rule.follow`).

    Raises:
        ValueError: an argument is out of range; the message names it.
    """

    form: str = "stein"
    z: float | None = None
    alpha: float = 1.0
    lambd: float = 1.0
    eps: float = 0.0
    warmup_steps: int = 0
    rise_steps: int = 0
    discrepancy: bool = False
    follow: bool = True

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, np.generic):
                object.__setattr__(self, name, value.item())
        if not isinstance(self.form, str) or self.form not in FORMS:
            known = ", ".join(map(repr, FORMS))
            raise ValueError(f"Invalid gate: {self.form!r}; it must be one of {known}.")
        for name in ("z", "alpha", "lambd", "eps"):
            value = getattr(self, name)
            if value is None and name == "z":
                continue
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not is_number or not 0 <= value < math.inf:
                raise ValueError(f"Invalid {name}: {value!r}; it must be a finite number >= 0.")
        for name in ("warmup_steps", "rise_steps"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise ValueError(f"Invalid {name}: {value!r}; it must be an integer >= 0.")
        for name in ("discrepancy", "follow"):
            value = getattr(self, name)
            if not isinstance(value, bool):
                raise ValueError(f"Invalid {name}: {value!r}; it must be True or False.")

    def replace(self, changes: Mapping[str, Any]) -> Gate:
        """The same gate with some fields changed; a new ``alpha`` goes before an old z.

        Raises:
            ValueError: there is no such field, or a value is out of range.
        """
        fields = [field.name for field in dataclasses.fields(self)]
        if unknown := [name for name in changes if name not in fields]:
            raise ValueError(
                f"There is no gate option {unknown[0]!r}. Choose from: {', '.join(fields)}."
            )
        if "alpha" in changes and "z" not in changes:
            changes = {**changes, "z": None}
        return dataclasses.replace(self, **changes)

    def __call__(
        self,
        mean_sq: Tensor,
        floor: Tensor,
        scale: float = 1.0,
        out: Tensor | None = None,
        unit: float = 1.0,
    ) -> Tensor:
        """q, elementwise; 0 where there is no gradient, and where both squares leave the dtype.

        Args:
            mean_sq: squares of the mean gradient.
            floor: its variance, but for ``scale``.
            scale: of the floor.
            out: to compute in.
            unit: of ``mean_sq``, for ``eps``.
        """
        threshold = scale * (self.alpha if self.z is None else float(self.z) ** 2)
        # The snr form has alpha lambda in lambda's place.
        weight = self.lambd * (threshold if self.form == "snr" else scale)
        if self.eps and self.form in ("soft", "snr"):
            beyond = threshold if self.form == "soft" else 0.0
            signal = torch.add(mean_sq, floor, alpha=-beyond, out=out).clamp_min_(0)
            noise = floor * weight + self.eps * unit
            return signal.div_(noise.add_(signal)).nan_to_num_(nan=0.0)
        ratio = torch.div(floor, mean_sq, out=out)
        return FORMS[self.form](ratio, threshold, weight).nan_to_num_(nan=0.0)


STREAM = Gate("soft")
"""The published gate, for the streaming floor."""

DATA_ALONE = Gate("stein", z=2.0, rise_steps=300, discrepancy=True)
"""The gate where all of the loss is noisy."""

BESIDE_EXACT = {"own": Gate("stein", z=1.0), "eigen": Gate("stein", z=1.5)}
"""The same by coordinates, where exact terms (equations, exact conditions) stand beside the noisy
ones. They carry on where the gate is closed and hold the noise back, so that it may open sooner;
sooner still in the parameters' own coordinates, each of which mixes many directions and sees any
one of them through the noise of the others."""


def overrides(gate: str | Gate | Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What a user gave as ``gate``, as changes to the gate that goes with the loss.

    None stays None; a name changes the form; a :class:`Gate` changes everything. The result holds
    plain values only, so that any state can be saved.

    Raises:
        ValueError: there is no such gate, or a value is out of range.
        TypeError: it is none of these.
    """
    if gate is None:
        return None
    if isinstance(gate, str):
        gate = {"form": gate}
    if isinstance(gate, Gate):
        return dataclasses.asdict(gate)
    if isinstance(gate, Mapping):
        changed = DATA_ALONE.replace(gate)  # refuses what is wrong
        return {name: getattr(changed, name) for name in gate}
    raise TypeError(f"gate must be a name, a sciml_snr.Gate or None, not {gate!r}.")


def rise(step: float, rise_steps: float) -> float:
    """By how much the threshold alpha = z^2 has risen at a step: 1 + log(1 + step / rise_steps)/2.

    Noise that is the same in every step is tested in every step, by a network that has moved, and
    in time passes by chance. A normal deviate exceeds z with a probability of about exp(-z^2 / 2):
    from z = 2 on, this lets it fall like 1 / (1 + step / rise_steps).
    """
    return 1 + math.log1p(step / rise_steps) / 2


def resolve_alpha(
    alpha: float | str, batch_size: int | None = None, data_size: int | None = None
) -> float:
    """The threshold alpha of the published rule as a number.

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
    if isinstance(alpha, bool) or not isinstance(alpha, Real) or not 0 <= alpha < math.inf:
        raise ValueError(f'alpha must be a number >= 0, "fresh" or "finite", got {alpha!r}.')
    return float(alpha)
