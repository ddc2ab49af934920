"""When to stop, by what a user has: measurements, and for two of the rules their error.

A rule looks at the model every so many iterations and gives that moment a score; it stops where the
score is lowest. Measured conditions of every kind count: several outputs, a measured source term.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from deepxde.callbacks import Callback

from ..deepxde import MemorizationMonitor
from ..deepxde.conditions import MEASURED, NoisyCondition
from ..deepxde.twins import fit_of
from ..measure.twins import as_array
from ..problems import Problem

SHARE = 10
"""One measurement in so many is held out."""


def measured_conditions(conditions: Sequence[Any]) -> list[Any]:
    """Those with measured values: that know their error; where none does, all with values at
    points."""
    noisy = [bc for bc in conditions if isinstance(bc, NoisyCondition)]
    return noisy or [bc for bc in conditions if isinstance(bc, MEASURED)]


def conditions_of(problem: Problem) -> list[Any]:
    """A problem's measured conditions."""
    return measured_conditions([*problem.conditions(), *problem.measurement_conditions()])


def change_measured(problem: Problem, change: Any) -> None:
    """Let measured conditions pass through ``change`` whenever the problem makes its conditions."""
    kinds = {type(bc) for bc in conditions_of(problem)}

    def changed(make: Any) -> Any:
        return lambda: [change(bc) if type(bc) in kinds else bc for bc in make()]

    for name in ("conditions", "measurement_conditions"):
        setattr(problem, name, changed(getattr(problem, name)))


def part(condition: Any, rows: Any) -> Any:
    """The condition at some of its points."""
    found = copy.copy(condition)
    found.points, found.values = condition.points[rows], condition.values[torch.as_tensor(rows)]
    sigma = getattr(condition, "sigma", None)
    if sigma is not None and len(sigma) > 1:
        found.sigma = sigma[torch.as_tensor(rows)]
    return found


def misfit(model: Any, conditions: Sequence[Any]) -> float:
    r"""Mean of :math:`((f - y) / \sigma)^2` over the conditions; sigma = 1 where none is known."""
    squares = []
    for bc in conditions:
        sigma = as_array(getattr(bc, "sigma", 1.0))
        squares.append(((fit_of(model, bc) - as_array(bc.values)) / sigma) ** 2)
    return float(np.concatenate([s.ravel() for s in squares]).mean())


class _Rule(Callback):  # type: ignore[misc]
    """Looks at the model before training and then every ``period`` iterations."""

    def __init__(self, period: int) -> None:
        super().__init__()
        self.period = period
        self.scores: dict[int, float] = {}

    def on_train_begin(self) -> None:
        self._look()

    def on_epoch_end(self) -> None:
        if self.model.train_state.step % self.period == 0:
            self._look()

    def on_train_end(self) -> None:
        self._look()

    def _look(self) -> None:
        self.scores[self.model.train_state.step] = self.score()

    def score(self) -> float:
        raise NotImplementedError


class HeldOut(_Rule):
    """Stop at the lowest error on measurements that are held out of training, one in ten.

    Takes them out of the problem's conditions: make this first, then the model. All outputs of a
    measurement are held out together.

    Args:
        problem: what will be trained; it is changed.
        seed: of the choice.
        period: look every so many iterations.
    """

    def __init__(self, problem: Problem, seed: int, period: int) -> None:
        super().__init__(period)
        rng = np.random.default_rng(seed)
        everything = conditions_of(problem)
        sizes = dict.fromkeys(len(bc) for bc in everything)
        self.masks = {n: rng.permutation(n) < n // SHARE for n in sizes}
        self.held = [part(bc, self.masks[len(bc)]) for bc in everything]
        change_measured(problem, lambda bc: part(bc, ~self.masks[len(bc)]))

    def score(self) -> float:
        return misfit(self.model, [bc for bc in self.held if len(bc)])


class Discrepancy(_Rule):
    """Stop as soon as the misfit is the noise's: Morozov 1966. If it never is, where it is nearest.

    Args:
        period: look every so many iterations.
        end: whether to end the training there.

    Raises:
        ValueError: when training begins, there is no measurement whose error is known.
    """

    def __init__(self, period: int, end: bool = True) -> None:
        super().__init__(period)
        self.end = end

    def on_train_begin(self) -> None:
        self.measured = measured_conditions(self.model.data.bcs)
        check_sigma_known(self.measured)
        super().on_train_begin()

    def score(self) -> float:
        """The misfit in units of the noise's, 1 at least."""
        found = misfit(self.model, self.measured)
        if found <= 1 and self.end:
            self.model.stop_training = True
        return max(found, 1.0)


class LowestRisk(MemorizationMonitor):
    """Stop at the lowest SURE, estimated with a twin: see :class:`MemorizationMonitor`."""

    @property
    def scores(self) -> dict[int, float]:
        return {row.iteration: row.risk for row in self.twins.rows}


def check_sigma_known(conditions: Sequence[Any]) -> None:
    """Refuse measurements whose error is unknown, or 0.

    Raises:
        ValueError: says so.
    """
    sigmas = [as_array(bc.sigma) for bc in conditions if isinstance(bc, NoisyCondition)]
    if not sigmas or not all((sigma > 0).all() for sigma in sigmas):
        raise ValueError("the measurements' error is unknown or 0, and the rule needs it")
