"""The residuals of a DeepXDE model, row by row, and the noise in them."""

from __future__ import annotations

import dataclasses
import weakref
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from deepxde.data import PDE

from ..noise import NoisyLoss
from ..source import Group, NoiseSource
from ..terms import Term, sigma_text
from .conditions import Mark, is_supervised

_RANDOM_OR_MIXING = (torch.nn.modules.batchnorm._NormBase, torch.nn.modules.dropout._DropoutNd)
"""Layers that draw anew in every pass, or whose outputs depend on the other points'."""


class NoisyRows(NoiseSource):
    """The noisy terms of a model that share the two extra passes of a step: conditions of one kind.

    Where their residuals are outputs minus values at a part of the points, these passes go through
    a forward pass over those points alone, and not through the equation's points, too.

    Args:
        model: the model that is being compiled.
        conditions: noisy conditions; several only if their data are the same in every step.
        losses: of each condition, by which it adds to the loss.
        names: what to call them.
        exact: names of the exact terms beside them.
    """

    def __init__(
        self,
        model: Any,
        conditions: Sequence[Any],
        losses: Sequence[NoisyLoss],
        names: Sequence[str],
        exact: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self._model = weakref.ref(model)
        self.conditions = list(conditions)
        self.losses = list(losses)
        self._names, self._exact = list(names), list(exact)
        self.terms = len(self.conditions)
        self.is_equation = not conditions[0].compares_values
        self._is_apart: bool | None = None
        """Whether a forward pass over the measured points alone makes the same of them."""
        self._is_compared = False
        """Whether that was looked at, in the first such pass."""

    def describe(self) -> list[str]:
        """One line per condition."""
        return [
            f"{name}, {loss.loss.name}, sigma {sigma_text(loss.sigma)}"
            for name, loss in zip(self._names, self.losses, strict=True)
        ]

    def exact(self) -> list[str]:
        """The model's exact terms."""
        return self._exact

    def loss(self, residual: torch.Tensor, mark: Mark) -> torch.Tensor:
        """The loss of one of the conditions.

        Raises:
            ValueError: the condition is none of them.
        """
        place = next(i for i, own in enumerate(self.conditions) if own is mark.condition)
        own = self.losses[place]
        sigma, population = own.sigma, None
        if getattr(mark.condition, "batch_size", None) is not None:
            population = float(len(mark.condition))
            if len(sigma) > 1:
                sigma = sigma[torch.as_tensor(mark.condition.batch_indices, device=sigma.device)]
        if residual.ndim == 1 and sigma.ndim == 2:  # of an operator without columns
            sigma = sigma[:, 0]
        # Others than outputs minus values have graphs of their own, which may be gone when the
        # gradient arrives at the next one.
        group = Group(self) if self.is_equation else self._group(mark.inputs)
        batch = None if sigma is own.sigma else sigma  # the loss's own was checked when it was made
        return own.of_residual(residual, batch, population=population, group=group, place=mark)

    def _group(self, inputs: Any) -> Group:
        """The terms of one forward pass: those that were made from the same inputs."""
        # Weak, since the graph holds on to the inputs, and the group to the graph.
        groups: Any = vars(inputs).setdefault("sciml_snr_groups", weakref.WeakValueDictionary())
        group = groups.get(id(self))
        if group is None:
            group = groups[id(self)] = Group(self)
        return group  # type: ignore[no-any-return]

    def hand_over(self, terms: Sequence[Term]) -> None:
        """Make the passes that the optimizers ask for, by the shortest way."""
        model = self._model()
        notice_weights(self, model)
        if getattr(self.conditions[0], "batch_size", None) is not None:
            new = are_new(self, self.conditions[0].batch_indices, at_first=True)
            terms = [dataclasses.replace(term, drawn_anew=new) for term in terms]
        super().hand_over(self._apart(model, terms) or self._anew(terms))

    def _apart(self, model: Any, terms: Sequence[Term]) -> list[Term] | None:
        """The same terms from a forward pass over their points alone; None where that is no gain,
        or may be something else."""
        if self._is_apart is None:
            self._is_apart = not self.is_equation and _treats_points_apart(model)
        marks = [term.place for term in terms]
        if not self._is_apart or not all(isinstance(mark.inputs, torch.Tensor) for mark in marks):
            return None
        inputs = marks[0].inputs
        if 2 * sum(mark.end - mark.beg for mark in marks) > len(inputs):
            return None
        measured = torch.cat([inputs[mark.beg : mark.end] for mark in marks])
        with torch.enable_grad():
            outputs = model.net(measured.detach().requires_grad_())
        found, at = [], 0
        for term, mark in zip(terms, marks, strict=True):
            found.append(_of_outputs(term, outputs, at))
            at += mark.end - mark.beg
        if not self._is_compared:
            self._is_apart = all(map(_are_close, found, terms))
            self._is_compared = self._is_apart
        return found if self._is_apart else None

    def _anew(self, terms: Sequence[Term]) -> Sequence[Term]:
        """The same terms from the common outputs: autograd has freed the way from these to all but
        the last term that its gradient arrived at."""
        if self.is_equation or len(terms) == 1:
            return terms
        return [_of_outputs(term, term.place.outputs, term.place.beg) for term in terms]


class NoisyTargets(NoiseSource):
    """A noisy loss of the user's, of an equation or of supervised targets, in a model.

    Args:
        model: the model that is being compiled.
        loss: the user's.
        is_equation: whether it is an equation's, beside conditions.
        exact: names of the exact terms beside it.
    """

    def __init__(
        self, model: Any, loss: NoisyLoss, is_equation: bool, exact: Sequence[str] = ()
    ) -> None:
        super().__init__()
        self._model = weakref.ref(model)
        self.own = loss
        self.is_equation = is_equation
        self._exact = list(exact)

    def describe(self) -> list[str]:
        """One line."""
        what = "equation" if self.is_equation else "targets"
        return [f"{what}: {line}" for line in self.own.describe()]

    def exact(self) -> list[str]:
        """The model's exact terms."""
        return self._exact

    def loss(self, residual: torch.Tensor) -> torch.Tensor:
        """The term's loss."""
        data: Any = getattr(self._model(), "data", None)
        population = self.own.population
        if population is None and getattr(data, "online", False):  # dde.data.Function
            population = float("inf")
        elif population is None and is_supervised(data):
            everything = len(data.train_y)
            population = float(everything) if len(residual) < everything else None
        return self.own.of_residual(residual, population=population, group=Group(self))

    def hand_over(self, terms: Sequence[Term]) -> None:
        """Find out whether an equation's points are drawn anew, and make the passes."""
        model = self._model()
        notice_weights(self, model)
        points = _equation_points(getattr(model, "data", None))
        if points is not None and self.is_equation:
            new = are_new(self, points, at_first=False)
            if is_resampled(self):
                if terms and terms[0].sigma.numel() > 1:
                    raise ValueError(
                        f"sigma of an equation has {terms[0].sigma.numel()} entries, but its "
                        "points have been drawn anew: give one number."
                    )
                terms = [
                    dataclasses.replace(term, population=float("inf"), drawn_anew=new)
                    for term in terms
                ]
        super().hand_over(terms)


def notice_weights(source: NoiseSource, model: Any) -> None:
    """Let optimizers look again for exact terms where the model's loss weights have changed."""
    weights = _weights_of(model)
    for handover in source.handovers:
        if handover.state.get("weights", weights) != weights:
            handover.look_again()
        handover.state["weights"] = weights


def are_new(source: NoiseSource, points: Any, at_first: bool) -> bool:
    """Whether a term has other points in every step, as far as this step and the last can tell.

    Points that stay for more than one step keep their errors, which do not average away. What was
    seen is part of the optimizer's state.

    Args:
        source: whose points they are.
        points: of this step, an array.
        at_first: what to take for granted.
    """
    for handover in source.handovers:
        seen = handover.state.setdefault("points", {})
        place = handover.sources.index(source)
        now = zlib.crc32(np.ascontiguousarray(points).tobytes())
        last, was_new, ever = seen.get(place, (None, at_first, False))
        is_new = at_first if last is None else now != last
        seen[place] = (now, is_new, ever or (last is not None and is_new))
        return bool(is_new and was_new)
    return at_first


def is_resampled(source: NoiseSource) -> bool:
    """Whether a source's points have been drawn anew since the training began."""
    for handover in source.handovers:
        seen = handover.state.get("points", {})
        return bool(seen.get(handover.sources.index(source), (None, False, False))[2])
    return False


def _equation_points(data: Any) -> Any:
    """The equation's points, of an operator's equation as well."""
    holder = data if hasattr(data, "train_x_all") else getattr(data, "pde", None)
    return getattr(holder, "train_x_all", None)


def _treats_points_apart(model: Any) -> bool:
    """Whether a model's residuals at a point do not depend on the others, as far as can be told."""
    data = getattr(model, "data", None)
    return (
        isinstance(data, PDE)
        and getattr(data.losses, "__func__", None) is PDE.losses
        and getattr(data.losses_train, "__func__", None) is PDE.losses_train
        and data.auxiliary_var_fn is None
        and not any(isinstance(module, _RANDOM_OR_MIXING) for module in model.net.modules())
    )


def _of_outputs(term: Term, outputs: torch.Tensor, at: int) -> Term:
    """A term that compares outputs with values, made anew from outputs, of which its own begin at
    this place."""
    mark = term.place
    columns = mark.condition.components()
    before = mark.outputs.detach()[mark.beg : mark.end, columns]
    with torch.enable_grad():
        now = outputs[at : at + len(before), columns]
        residual = now - (before - term.residual.detach())
        return dataclasses.replace(term, residual=residual, values=term.loss.values(residual))


def _are_close(a: Term, b: Term) -> bool:
    """Whether two terms that compare the same outputs with the same values have them from passes
    that are equal."""
    mark = b.place
    scale = b.residual.detach().norm() + mark.outputs.detach()[mark.beg : mark.end].norm()
    return bool((a.residual - b.residual).detach().norm() <= 1e-3 * scale)


def _weights_of(model: Any) -> list[float]:
    """What was given for ``compile``'s loss_weights, a number or None included."""
    weights = getattr(model, "loss_weights", None)
    if weights is None:
        return []
    several = isinstance(weights, (list, tuple)) or np.ndim(weights)
    return [float(weight) for weight in (weights if several else [weights])]


def loss_weights_of(model: Any, terms: int) -> list[float]:
    """A compiled model's weight of every loss term."""
    weights = _weights_of(model) or [1.0]
    return weights * terms if len(weights) == 1 else weights


def residuals_of(
    model: Any, losses: Any, inputs: Any, targets: Any, aux: Any
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Residuals (outputs minus targets) and losses, one each per loss term, in DeepXDE's order.

    Args:
        model: a compiled model.
        losses: its loss functions, one or a list.
        inputs, targets, aux: a batch, as for ``model.train_step``.
    """
    residuals: list[torch.Tensor] = []

    def recording(loss: Any) -> Callable[[Any, Any], Any]:
        def record(y_true: Any, y_pred: Any) -> Any:
            residuals.append(y_pred - y_true)
            return loss(y_true, y_pred)

        return record

    several = isinstance(losses, (list, tuple))
    wrapped = [*map(recording, losses)] if several else recording(losses)
    net = model.net
    net.auxiliary_vars = None if aux is None else torch.as_tensor(aux)
    net.train(mode=True)
    parts = inputs if isinstance(inputs, tuple) else (inputs,)
    tensors = tuple(torch.as_tensor(x).requires_grad_() for x in parts)
    x = tensors if isinstance(inputs, tuple) else tensors[0]
    outputs = net(x)
    y = None if targets is None else torch.as_tensor(targets)
    found = model.data.losses_train(y, outputs, wrapped, x, model, aux=None)
    clear_cache()
    return residuals, list(found) if isinstance(found, (list, tuple)) else [found]


def clear_cache() -> None:
    """Forget DeepXDE's cached derivatives, as it does itself after every pass."""
    from deepxde import gradients

    gradients.clear()
