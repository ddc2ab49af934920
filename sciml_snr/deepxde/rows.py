"""The residuals of a DeepXDE model, row by row, and the noise in them."""

from __future__ import annotations

import dataclasses
import weakref
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from ..noise import NoisyLoss
from ..source import Group, NoiseSource
from ..terms import Term, sigma_text
from .conditions import Mark, is_supervised, mark_of


class _ModelSource(NoiseSource):
    """Noisy terms of a DeepXDE model.

    Args:
        model: the model that is being compiled.
        exact: names of the exact terms beside them.
    """

    def __init__(self, model: Any, exact: Sequence[str]) -> None:
        super().__init__()
        self._model = weakref.ref(model)
        self._exact = list(exact)
        self.note: Callable[[Any], str] | None = None
        """What is to be said of the model behind the last line."""

    def describe(self) -> list[str]:
        """One line per noisy term."""
        lines, model = self._lines(), self._model()
        if self.note is not None and model is not None and (note := self.note(model)):
            lines[-1] += f"; {note}"
        return lines

    def exact(self) -> list[str]:
        """The model's exact terms."""
        return self._exact

    def _lines(self) -> list[str]:
        raise NotImplementedError

    def term(self, residual: torch.Tensor) -> Term:
        """The term that a residual makes, for passes of the caller's own."""
        raise NotImplementedError

    def loss_of(self, condition: Any) -> NoisyLoss:
        """The loss of one of the conditions; None: of the equation."""
        raise NotImplementedError


class _SharedGroup(Group):
    """Terms that compare common outputs with values."""

    def hand_over(self) -> None:
        """Make the passes from the common outputs: autograd has freed the way from these to all but
        the last term that its gradient arrived at."""
        terms = self.terms
        self.source.hand_over(terms if len(terms) == 1 else [_anew(term) for term in terms])


class NoisyRows(_ModelSource):
    """The noisy terms of a model that share the two extra passes of a step: conditions of one kind.

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
        super().__init__(model, exact)
        self.conditions = list(conditions)
        self.losses = list(losses)
        self._names = list(names)
        self.terms = len(self.conditions)
        self.is_equation = not conditions[0].compares_values

    def _lines(self) -> list[str]:
        return [
            f"{name}, {loss.loss.name}, sigma {sigma_text(loss.sigma)}"
            for name, loss in zip(self._names, self.losses, strict=True)
        ]

    def loss(self, residual: torch.Tensor, mark: Mark) -> torch.Tensor:
        """The loss of one of the conditions."""
        own = self.loss_of(mark.condition)
        sigma, population = self._of_batch(own, residual, mark.condition)
        # Others than outputs minus values have graphs of their own, which may be gone when the
        # gradient arrives at the next one.
        group = Group(self) if self.is_equation else self._group(mark.inputs)
        return own.of_residual(residual, sigma, population=population, group=group, place=mark)

    def term(self, residual: torch.Tensor) -> Term:
        """The term that a condition's residual makes, for passes of the caller's own."""
        mark = mark_of(residual)
        assert mark is not None
        own = self.loss_of(mark.condition)
        sigma, population = self._of_batch(own, residual, mark.condition)
        return own.term(residual, sigma, population=population, reduced=True)

    def loss_of(self, condition: Any) -> NoisyLoss:
        """The loss of one of the conditions."""
        return next(
            loss for own, loss in zip(self.conditions, self.losses, strict=True) if own is condition
        )

    def _of_batch(
        self, own: NoisyLoss, residual: torch.Tensor, condition: Any
    ) -> tuple[torch.Tensor | None, float | None]:
        """Sigma, if it is not the loss's own, which was checked when it was made, and the number of
        data that the rows are drawn from."""
        sigma, population = own.sigma, None
        if getattr(condition, "batch_size", None) is not None:
            population = float(len(condition))
            if len(sigma) > 1:
                sigma = sigma[torch.as_tensor(condition.batch_indices, device=sigma.device)]
        if residual.ndim == 1 and sigma.ndim == 2:  # of an operator without columns
            sigma = sigma[:, 0]
        return None if sigma is own.sigma else sigma, population

    def _group(self, inputs: Any) -> Group:
        """The terms of one forward pass: those that were made from the same inputs."""
        # Weak, since the graph holds on to the inputs, and the group to the graph.
        groups: Any = vars(inputs).setdefault("sciml_snr_groups", weakref.WeakValueDictionary())
        group = groups.get(id(self))
        if group is None:
            group = groups[id(self)] = _SharedGroup(self)
        return group  # type: ignore[no-any-return]

    def hand_over(
        self, terms: Sequence[Term], known: dict[torch.Tensor, torch.Tensor] | None = None
    ) -> None:
        """Find out whether batches stay, and make the passes that the optimizers ask for."""
        notice_weights(self, self._model())
        if getattr(self.conditions[0], "batch_size", None) is not None:
            new = are_new(self, self.conditions[0].batch_indices, at_first=True)
            terms = [_drawn(term, term.population, new) for term in terms]
        super().hand_over(terms, known)


class NoisyTargets(_ModelSource):
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
        super().__init__(model, exact)
        self.own = loss
        self.is_equation = is_equation

    def _lines(self) -> list[str]:
        what = "equation" if self.is_equation else "targets"
        return [f"{what}: {line}" for line in self.own.describe()]

    def loss(self, residual: torch.Tensor) -> torch.Tensor:
        """The term's loss."""
        population = self._population(residual)
        return self.own.of_residual(residual, population=population, group=Group(self))

    def term(self, residual: torch.Tensor) -> Term:
        """The term that a residual makes, for passes of the caller's own."""
        population = self._population(residual)
        return self.own.term(residual, population=population, reduced=True)

    def loss_of(self, condition: Any) -> NoisyLoss:
        """The user's loss."""
        return self.own

    def _population(self, residual: torch.Tensor) -> float | None:
        data: Any = getattr(self._model(), "data", None)
        population = self.own.population
        if population is None and getattr(data, "online", False):  # dde.data.Function
            population = float("inf")
        elif population is None and is_supervised(data):
            everything = len(data.train_y)
            population = float(everything) if len(residual) < everything else None
        return population

    def hand_over(
        self, terms: Sequence[Term], known: dict[torch.Tensor, torch.Tensor] | None = None
    ) -> None:
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
                terms = [_drawn(term, float("inf"), new) for term in terms]
        super().hand_over(terms, known)


def _drawn(term: Term, population: float | None, new: bool) -> Term:
    """The term with what is known of how its rows were drawn."""
    return dataclasses.replace(term, population=population, drawn_anew=new)


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


def _anew(term: Term) -> Term:
    """A term that compares outputs with values, made anew from the outputs."""
    mark = term.place
    columns = mark.condition.components()
    with torch.enable_grad():
        now = mark.outputs[mark.beg : mark.end, columns]
        residual = now - (now.detach() - term.residual.detach())
        return dataclasses.replace(term, residual=residual, values=term.loss.values(residual))


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
