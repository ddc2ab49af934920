"""What is known of the errors in a DeepXDE model's data, and the losses that know it."""

from __future__ import annotations

import weakref
from typing import Any

from torch import nn

from ..noise import NoisyLoss
from ..pointwise import NAMES, LossLike
from .conditions import NoisyCondition, conditions_of, equations_of, mark_of
from .rows import NoisyRows, NoisyTargets


class ModelNoise:
    """What is known of the errors in a DeepXDE model's data.

    Args:
        model: the model that is being compiled.
        loss: as for ``Model.compile``.
        hands_over: whether its optimizer has a floor to make from them.

    Raises:
        ValueError: an error is declared twice, or a loss has no label floor.
    """

    def __init__(self, model: Any, loss: Any = "MSE", hands_over: bool = True) -> None:
        self.sources: list[NoisyRows | NoisyTargets] = []
        """What can be declared to an optimizer."""
        self.loss_functions: Any = loss
        """The losses for DeepXDE: they know the errors."""
        self._rows: dict[int, NoisyRows] = {}
        self._targets: dict[int, NoisyTargets] = {}
        data = model.data
        conditions = conditions_of(data)
        has_equation = equations_of(data) is not None
        several = isinstance(loss, (list, tuple))
        losses = list(loss) if several else [loss]
        first = max(len(losses) - len(conditions), 0)  # place of the first condition's loss
        # DeepXDE refuses lists of another length.
        own_losses = losses[first:] if several else losses * len(conditions)
        terms = [
            (f"condition {i} ({type(condition).__name__})", condition, own)
            for i, (condition, own) in enumerate(zip(conditions, own_losses, strict=False))
        ]
        self.targets = losses[0] if isinstance(losses[0], NoisyLoss) else None
        """The noisy loss of supervised data, if there is one."""
        for name, condition, own in terms:
            if isinstance(condition, NoisyCondition) and isinstance(own, NoisyLoss):
                raise ValueError(
                    f"The error of {name} is declared twice: by the condition and by its loss. "
                    "Leave one of them out."
                )
        if not several and self.targets is not None and has_equation and conditions:
            raise ValueError(
                "One NoisyLoss cannot be for an equation and its conditions alike: give a list, "
                'such as loss=[NoisyLoss(0.3), "MSE", ...], equations first, or declare the error '
                "of a condition by sciml_snr.noisy(condition, sigma)."
            )
        if not hands_over:
            return
        noisy = [term for term in terms if isinstance(term[1], NoisyCondition)]
        if any(condition.sigma.any() for _, condition, _ in noisy):  # beside an error, 0 is exact
            noisy = [term for term in noisy if term[1].sigma.any()]
        exact = [t[0] for t in terms if t not in noisy and not isinstance(t[2], NoisyLoss)]
        of_equations = losses[:first] if several else losses
        if has_equation and not any(isinstance(own, NoisyLoss) for own in of_equations):
            exact.insert(0, "the equation")
        shared: list[tuple[str, Any, NoisyLoss]] = []
        for name, condition, own in noisy:
            entry = name, condition, NoisyLoss(condition.sigma, _pointwise(own))
            if condition.compares_values and getattr(condition, "batch_size", None) is None:
                shared.append(entry)
            else:
                self._add_rows(model, [entry], exact)
        if shared:
            self._add_rows(model, shared, exact)
        for i, own in enumerate(losses):
            if isinstance(own, NoisyLoss) and id(own) not in self._targets:
                is_equation = has_equation and (i < first or not several)
                source = NoisyTargets(model, own, is_equation, exact)
                self._targets[id(own)] = source
                self.sources.append(source)
        wrapped = [_TermLoss(self, own) for own in losses]
        self.loss_functions = wrapped if several else wrapped[0]

    def _add_rows(
        self, model: Any, entries: list[tuple[str, Any, NoisyLoss]], exact: list[str]
    ) -> None:
        names, conditions, losses = zip(*entries, strict=True)
        source = NoisyRows(model, conditions, losses, names, exact)
        self.sources.append(source)
        for condition in conditions:
            self._rows[id(condition)] = source

    def source_of(self, loss: Any, condition: Any = None) -> NoisyRows | NoisyTargets | None:
        """Whose a term is: None of an exact one.

        Args:
            loss: its loss function, one of :attr:`loss_functions`.
            condition: whose loss it is; None for an equation's.
        """
        if isinstance(condition, NoisyCondition) and id(condition) in self._rows:
            return self._rows[id(condition)]
        return self._targets.get(id(getattr(loss, "own", None)))

    def loss_of(self, own: Any, y_true: Any, y_pred: Any) -> Any:
        """The loss of one term: of a noisy condition, of noisy targets, or an exact one.

        Args:
            own: the loss function that the user gave for the term.
            y_true, y_pred: as DeepXDE gives them.

        Raises:
            ValueError: a noisy condition is not among those of ``compile``.
        """
        mark = mark_of(y_pred, y_true)
        rows = None if mark is None else self._rows.get(id(mark.condition))
        if mark is not None and (rows is not None or mark.condition.sigma.any()):
            if rows is None:
                raise ValueError(
                    f"A {type(mark.condition).__name__} has come to the conditions since compile, "
                    "which looks at their errors: compile again."
                )
            return rows.loss(y_pred - y_true, mark)
        if isinstance(own, NoisyLoss):
            if y_pred.shape != y_true.shape:
                raise ValueError(
                    f"outputs {tuple(y_pred.shape)} and targets {tuple(y_true.shape)} differ in "
                    "shape: one-dimensional arrays become columns by y[:, None]."
                )
            return self._targets[id(own)].loss(y_pred - y_true)
        return own(y_true, y_pred)


class _TermLoss:
    """A loss function for DeepXDE that knows the errors of the model's data."""

    def __init__(self, noise: ModelNoise, own: Any) -> None:
        self._noise = noise
        self.own = own if isinstance(own, NoisyLoss) else _dde_loss(own)
        self.__name__ = getattr(self.own, "__name__", str(own))

    def __call__(self, y_true: Any, y_pred: Any) -> Any:
        return self._noise.loss_of(self.own, y_true, y_pred)


def _dde_loss(identifier: Any) -> Any:
    from deepxde import losses

    return losses.get(identifier)


def _pointwise(identifier: Any) -> LossLike:
    """A loss of DeepXDE's in the order of torch's arguments.

    Raises:
        ValueError: it has no label floor.
    """
    if isinstance(identifier, str) and identifier.lower() in NAMES:
        return identifier
    chosen = _dde_loss(identifier)

    def loss(prediction: Any, target: Any) -> Any:
        return chosen(target, prediction)

    loss.__name__ = getattr(chosen, "__name__", str(identifier))
    return chosen if isinstance(chosen, nn.HuberLoss) else loss


_known: weakref.WeakKeyDictionary[Any, ModelNoise] = weakref.WeakKeyDictionary()


def noise_of(model: Any) -> ModelNoise | None:
    """What is known of the errors in a compiled model's data, whatever its optimizer; None where
    nothing is."""
    return _known.get(model)


def remember(model: Any, noise: ModelNoise | None) -> None:
    """Keep what :func:`noise_of` is to say of a model; None: nothing is known any more."""
    _known.pop(model, None)
    if noise is not None:
        _known[model] = noise
