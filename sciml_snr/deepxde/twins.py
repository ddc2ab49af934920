"""What trains twins of a DeepXDE model in step with it: its measurements, and states to swap."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from deepxde.icbc import PointSetOperatorBC

from ..measure.twins import as_array
from .conditions import (
    MEASURED,
    NoisyCondition,
    as_sigma,
    components_of,
    conditions_of,
    is_supervised,
)
from .model_noise import noise_of


def point_sets(data: Any, wanted: Callable[[Any], bool]) -> dict[int, Any]:
    """The conditions with measured values, by their place in the loss, from -1 backwards."""
    bcs = conditions_of(data)
    return {
        place: bc
        for place, bc in enumerate(bcs, start=-len(bcs))
        if isinstance(bc, MEASURED) and wanted(bc)
    }


def fit_of(model: Any, condition: Any) -> Any:
    """What a measured condition compares with its values: (n, k), at its points."""
    if isinstance(condition, PointSetOperatorBC):  # of what an operator makes of the outputs

        def operator(x: Any, y: Any) -> Any:
            return condition.func(x, y, condition.points)

        return as_array(model.predict(condition.points, operator=operator))
    component = condition.component
    fit = as_array(model.predict(condition.points))
    return fit[:, list(component) if isinstance(component, (list, tuple)) else [component]]


class Measurements:
    """The measurements of a model, as one vector: conditions with values, or supervised targets."""

    def __init__(self, model: Any, sigma: Any) -> None:
        self.model = model
        found = point_sets(
            model.data, lambda bc: sigma is not None or isinstance(bc, NoisyCondition)
        )
        self.conditions = list(found.values())
        noise = noise_of(model)
        if sigma is None and noise is not None and noise.targets is not None:
            sigma = noise.targets.sigma
        self._sigma = sigma
        self.supervised = not self.conditions and sigma is not None and is_supervised(model.data)
        if not self.conditions and not self.supervised:
            raise ValueError(
                "MemorizationMonitor: there are no measurements whose error is known. Give the "
                "model a sciml_snr.NoisyPointSetBC(points, values, sigma), a sciml_snr.noisy("
                "condition, sigma) or compile(loss=NoisyLoss(sigma)), or the monitor a sigma."
            )

    def _shape(self, condition: Any) -> tuple[int, int]:
        return len(condition), components_of(condition)

    def values(self) -> Any:
        """(n,) measured values."""
        if self.supervised:
            return as_array(self.model.data.train_y).ravel()
        return np.concatenate(
            [
                np.broadcast_to(as_array(bc.values), self._shape(bc)).ravel()
                for bc in self.conditions
            ]
        )

    def sigma(self) -> Any:
        """(n,) standard deviations of their errors."""
        if self.supervised:
            return _of_shape(self._sigma, np.shape(self.model.data.train_y)).ravel()
        parts = []
        for bc in self.conditions:
            shape = self._shape(bc)
            own = bc.sigma if isinstance(bc, NoisyCondition) else as_sigma(self._sigma, *shape)
            parts.append(np.broadcast_to(as_array(own), shape).ravel())
        return np.concatenate(parts)

    def fit(self) -> Any:
        """(n,) the model's values there."""
        if self.supervised:
            return as_array(self.model.predict(self.model.data.train_x)).ravel()
        parts = []
        for bc in self.conditions:
            parts.append(fit_of(self.model, bc).ravel())
        return np.concatenate(parts)

    def check_batch(self, targets: Any) -> None:
        """Refuse batches of supervised data: which of them they are is not known.

        Raises:
            ValueError: says so.
        """
        everything = self.model.data.train_y if self.supervised else targets
        if targets is not everything and not np.array_equal(targets, everything):
            raise ValueError(
                "MemorizationMonitor: batches of supervised data do not tell which of the targets "
                "they hold. Train with batch_size=None."
            )

    @contextlib.contextmanager
    def moved(self, shift: Any, targets: Any) -> Iterator[Any]:
        """Values with the (n,) shift added; gives the targets that belong to them."""
        self.check_batch(targets)
        if self.supervised:
            yield targets + shift.reshape(targets.shape).astype(targets.dtype)
            return
        before = [bc.values for bc in self.conditions]
        ends = np.cumsum([np.prod(self._shape(bc)) for bc in self.conditions])
        try:
            for bc, part in zip(self.conditions, np.split(shift, ends[:-1]), strict=True):
                bc.values = bc.values + torch.as_tensor(part.reshape(self._shape(bc))).to(bc.values)
            yield targets
        finally:
            for bc, values in zip(self.conditions, before, strict=True):
                bc.values = values


def _of_shape(sigma: Any, shape: tuple[int, ...]) -> Any:
    """A standard deviation of supervised targets; a vector of their length is one per sample.

    Raises:
        ValueError: it does not fit.
    """
    found = as_array(sigma)
    if found.ndim == 1 and len(shape) == 2 and len(found) == shape[0]:
        found = found[:, None]
    try:
        return np.broadcast_to(found, shape)
    except ValueError:
        raise ValueError(
            f"sigma has the shape {found.shape} for targets of the shape {shape}: give one number, "
            "or an array that broadcasts to them."
        ) from None


class ModelState:
    """Another state for a model to be in: weights, buffers, unknowns, optimizer.

    Inside ``with state:`` the model is in that state, and its own one is kept. Equations and
    transforms are functions that hold on to the model's own tensors: so it is the contents that
    change places, not the tensors.
    """

    def __init__(self, model: Any) -> None:
        self._data: dict[torch.Tensor, torch.Tensor] = {}
        self._take_up(model)
        self._grads: dict[torch.Tensor, torch.Tensor | None] = {}
        self._opt: Any = None
        self._stats: Any = None

    def _take_up(self, model: Any) -> None:
        """Begin with the model's own values of what it did not have before."""
        for tensor in trained_tensors(model):
            if tensor not in self._data:
                self._data[tensor] = tensor.detach().clone()

    def follow(self, model: Any) -> None:
        """Step with a copy of its optimizer's state from now on, unknowns that are new included."""
        self._take_up(model)
        opt = model.opt
        if opt is not self._opt:
            self._opt = opt
            tensors = [p for group in opt.param_groups for p in group["params"]]
            self._state = copy.deepcopy(opt.state, {id(p): p for p in tensors})

    def __enter__(self) -> None:
        self._exchange()

    def __exit__(self, *_: object) -> None:
        self._exchange()

    def _exchange(self) -> None:
        for tensor, other in self._data.items():
            self._data[tensor], tensor.data = tensor.data, other
            self._grads[tensor], tensor.grad = tensor.grad, self._grads.get(tensor)
        if self._opt is not None:  # all that changes in a step, but for the options
            self._opt.state, self._state = self._state, self._opt.state
            if hasattr(self._opt, "last_stats"):  # SNRGaussNewton's, of the last step
                self._opt.last_stats, self._stats = self._stats, self._opt.last_stats


class StepStart:
    """Random numbers and learning rates at one moment; inside ``with`` it is that moment.

    Afterwards the model goes on training if it did before: what ends in there ends for itself.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self._cpu = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        self._lrs = [group["lr"] for group in model.opt.param_groups]

    def _lr(self) -> None:
        groups = self.model.opt.param_groups
        now = [group["lr"] for group in groups]
        for group, lr in zip(groups, self._lrs, strict=True):
            group["lr"] = lr
        self._lrs = now

    def __enter__(self) -> None:
        self._scheduler, self.model.lr_scheduler = self.model.lr_scheduler, None
        self._stopped = self.model.stop_training
        self._fork = torch.random.fork_rng(range(len(self._cuda)))
        self._fork.__enter__()
        torch.set_rng_state(self._cpu)
        if self._cuda:
            torch.cuda.set_rng_state_all(self._cuda)
        self._lr()

    def __exit__(self, *error: Any) -> None:
        self._lr()
        self._fork.__exit__(*error)
        self.model.lr_scheduler = self._scheduler
        self.model.stop_training = self._stopped


def trained_tensors(model: Any) -> list[torch.Tensor]:
    """All that training changes in a model: parameters, buffers, external variables."""
    external = getattr(model, "external_trainable_variables", None) or []
    return [*model.net.parameters(), *model.net.buffers(), *external]
