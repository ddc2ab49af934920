"""Callbacks that measure memorization and population risk in training, and stop by them."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from deepxde.callbacks import Callback
from deepxde.icbc import PointSetOperatorBC
from deepxde.losses import mean_squared_error

from ..measure.risk import PopulationRisk
from ..measure.twins import TAU, Twins, as_array
from ..terms import NoisyTerm
from .compile import noise_of
from .conditions import (
    MEASURED,
    NoisyCondition,
    as_sigma,
    components_of,
    conditions_of,
    equations_of,
    is_supervised,
)
from .rows import loss_weights_of, residuals_of


class _UntilBest(Callback):  # type: ignore[misc]
    """Stops a model once its estimated risk has not fallen for ``patience`` iterations.

    It then leaves the model with the weights (and unknowns) of the best moment.
    """

    def __init__(self, patience: int | None) -> None:
        super().__init__()
        if patience is not None and patience < 1:
            raise ValueError(f"patience must be at least 1 iteration, or None, got {patience}.")
        self.patience = patience
        self._kept: tuple[int, dict[torch.Tensor, torch.Tensor]] | None = None

    def _watch(self, best_iteration: int) -> None:
        """Keep the weights of a new best moment; stop long after the last one."""
        if self.patience is None:
            return
        step = self.model.train_state.step
        if best_iteration == step:
            self._kept = step, {t: t.detach().clone() for t in _weights(self.model)}
        elif step - best_iteration >= self.patience:
            self.model.stop_training = True

    def _restore(self) -> None:
        if self._kept is not None:
            with torch.no_grad():
                for tensor, value in self._kept[1].items():
                    tensor.copy_(value)


class MemorizationMonitor(_UntilBest):
    """Measures how much of the measurements' error the model memorizes, while it does.

    Trains twins in step with the model: the same weights to start from, points, batches, learning
    rates and random numbers, but measurements moved by random signs (see
    :mod:`sciml_snr.measure.twins`). The model itself trains to the same bits as without the
    monitor. Each twin costs one more training step per iteration and one more copy of weights and optimizer
    state. Give the monitor to the first ``train`` and to all later ones: what a model has seen
    before, its twins have seen unmoved.

    Args:
        sigma: standard deviation of the error of conditions that do not carry one
            (:class:`NoisyPointSetBC` does), or of the targets of supervised data (without
            ``compile(loss=NoisyLoss(sigma))``): a number or an array of their length.
        period: measure every so many iterations.
        probes: number of twins.
        tau, seed: as for :class:`sciml_snr.Twins`.
        clean: the true values at the measurements (those of all conditions, one below the other),
            where they are known: then the rows hold the true share and risk too.
        patience: stop when the estimated risk has not fallen for so many iterations, and go back
            to the weights of the best moment. None: only measure.

    Attributes:
        twins: :class:`sciml_snr.Twins`, from the beginning of training; ``twins.rows`` holds what
            has been measured, ``twins.best()`` the moment of the lowest estimated risk.

    Raises:
        ValueError: an argument is out of range; or, when training begins, there are no measurements
            whose error is known, or batches of supervised data; or an earlier training has gone
            back to its best moment.

    Example:
        >>> monitor = sciml_snr.MemorizationMonitor()
        >>> model.train(iterations=8000, callbacks=[monitor])
        >>> print(monitor.twins.rows[-1])
        memorized 2.3 % of the noise (95 % interval 0.9 to 3.7 %), estimated risk 0.012 +- 0.004
    """

    def __init__(
        self,
        sigma: Any = None,
        *,
        period: int = 100,
        probes: int = 1,
        tau: float = TAU,
        seed: int = 0,
        clean: Any = None,
        patience: int | None = None,
    ) -> None:
        super().__init__(patience)
        if period < 1:
            raise ValueError(f"period must be at least 1 iteration, got {period}.")
        Twins([0.0], 1.0, probes=probes, tau=tau)  # refuses values out of range
        self.sigma = sigma
        self.period = period
        self._options: dict[str, Any] = dict(probes=probes, tau=tau, seed=seed)
        self._clean = clean
        self._lanes: list[_Lane] = []

    def on_train_begin(self) -> None:
        """Make the twins, copies of the model as it is; later trainings go on with them."""
        if self._kept is not None:
            raise ValueError(
                "MemorizationMonitor: the model has gone back to its best moment, the twins have "
                "not. Training that goes on from there needs another monitor, or none."
            )
        if not self._lanes:
            self._measured = _Measured(self.model, self.sigma)
            clean = None if self._clean is None else as_array(self._clean).ravel()
            values, deviation = self._measured.values(), self._measured.sigma()
            self.twins = Twins(values, deviation, clean=clean, **self._options)
            self._lanes = [_Lane(self.model) for _ in self.twins.shifts]
            self._record()
        self._measured.check_batch(self.model.train_state.y_train)
        for lane in self._lanes:
            lane.follow(self.model)

    def on_batch_begin(self) -> None:
        """Remember what the model's step will start from, besides weights."""
        self._before = _Moment(self.model)

    def on_batch_end(self) -> None:
        """The twins' steps, on the batch that the model has just stepped on."""
        state = self.model.train_state
        for lane, shift in zip(self._lanes, self.twins.shifts, strict=True):
            with lane, self._before, self._measured.moved(shift, state.y_train) as targets:
                self.model.train_step(state.X_train, targets, state.train_aux_vars)

    def on_epoch_end(self) -> None:
        """Measure."""
        if self.model.train_state.step % self.period == 0:
            self._record()

    def on_train_end(self) -> None:
        """Measure how it ended; with ``patience`` go back to the best moment."""
        if self.twins.rows[-1].iteration != self.model.train_state.step:
            self._record()
        self._restore()

    def _record(self) -> None:
        fits = []
        for lane in self._lanes:
            with lane:
                fits.append(self._measured.fit())
        self.twins.record(self.model.train_state.step, self._measured.fit(), fits)
        self._watch(self.twins.best().iteration)


class PopulationRiskMonitor(_UntilBest):
    """Estimates how the population risk changes, from the training batches alone.

    See :mod:`sciml_snr.measure.risk`: with ``fresh=True``, where no measurement is used twice,
    an unbiased estimate. On fixed data whose error is known (:class:`NoisyPointSetBC`), as in
    DeepXDE's default full batch, it is none, but its minimum says when to stop a fit to data alone.
    With an equation among the terms that is far too early (``docs/memorization.md``):
    :class:`MemorizationMonitor` knows better.

    The samples are the measurements: the rows of every PointSetBC, or of supervised data. Equations
    and other conditions are taken as exact. The loss is "MSE"; the optimizer "sgd", "adam",
    "adamw" or "snr_adam". An iteration costs about three.

    Args:
        patience: stop when the estimated risk has not fallen for so many iterations, and go back
            to the weights of the best moment. None: only measure.
        sigma: the measurements' error, where they do not carry it: a number.
        fresh: every step draws new measurements: the scatter of the samples counts, not sigma.
        seed: of the estimate's random signs.

    Attributes:
        risk: :class:`sciml_snr.PopulationRisk`: ``risk.rows``, ``risk.best_step``.

    Raises:
        ValueError: patience is out of range; or, when training begins, there are no measurements,
            or the loss or the optimizer is another one.
    """

    def __init__(
        self, patience: int | None = None, *, sigma: Any = None, fresh: bool = False, seed: int = 0
    ) -> None:
        super().__init__(patience)
        self.sigma = sigma
        self.fresh = fresh
        self.seed = seed
        self._first_step = 0

    def on_train_begin(self) -> None:
        """Begin at today's risk."""
        self.risk = PopulationRisk(self.model.opt, seed=self.seed)
        self._first_step = self.model.train_state.step
        data = self.model.data
        self._conditions = _point_sets(data, lambda _: True)
        if not self._conditions and getattr(data, "train_y", None) is None:
            raise ValueError("PopulationRiskMonitor: the model has no measurements.")
        is_alone = len(self._conditions) == len(conditions_of(data)) and equations_of(data) is None
        if self.patience is not None and not self.fresh and not is_alone:
            warnings.warn(
                "PopulationRiskMonitor stops far too early where an equation holds fixed data "
                "back. Use MemorizationMonitor(patience=...); or fresh=True, if no measurement is "
                "used twice.",
                stacklevel=2,
            )
        self._watch(self._first_step)

    def on_batch_begin(self) -> None:
        """Remember where the model's step starts from."""
        self._start, self._before = _Lane(self.model), _Moment(self.model)

    def on_batch_end(self) -> None:
        """Look at the batch from both ends of the step."""
        with self._start, self._before:
            self.risk.begin(*self._losses())
        with self._before:
            self.risk.end(*self._losses())
        self._watch(self._first_step + self.risk.best_step)

    def on_train_end(self) -> None:
        """With ``patience`` go back to the best moment."""
        self._restore()

    def _losses(
        self,
    ) -> tuple[list[torch.Tensor], torch.Tensor, list[NoisyTerm] | None]:
        """Per term of measurements one loss a row; all the rest of the loss; the noisy terms."""
        state, model = self.model.train_state, self.model
        batch = (state.X_train, state.y_train, state.train_aux_vars)
        total = model.outputs_losses_train(*batch)[1]
        residuals, _ = residuals_of(model, mean_squared_error, *batch)
        places = [place % len(residuals) for place in self._conditions or [0]]
        weights = loss_weights_of(model, len(residuals))
        losses = [weights[i] * _square(residuals[i]) for i in places]
        for i, rows in zip(places, losses, strict=True):
            if not torch.allclose(rows.mean(), total[i], rtol=1e-4):
                raise ValueError('PopulationRiskMonitor: the loss of measurements has to be "MSE".')
        terms = []
        for i, condition in zip(places, self._conditions.values() or [None], strict=True):
            sigma, population = self._error_of(condition, residuals[i])
            if sigma is not None and not self.fresh:
                terms.append(NoisyTerm(residuals[i], sigma, weights[i], population))
        extra = total.detach().sum() - sum(rows.detach().mean() for rows in losses)
        return losses, extra, terms or None

    def _error_of(self, condition: Any, residual: torch.Tensor) -> tuple[Any, float | None]:
        """Sigma of a batch's rows, None where it is unknown; what the batch is drawn from."""
        if condition is None:
            noise = noise_of(self.model)
            told = None if noise is None or noise.targets is None else noise.targets.sigma
            everything = len(self.model.data.train_y)
            population = float(everything) if len(residual) < everything else None
            return told if self.sigma is None else self.sigma, population
        sigma = getattr(condition, "sigma", None)
        if sigma is None and self.sigma is not None:
            sigma = as_sigma(self.sigma, len(condition), components_of(condition))
        if getattr(condition, "batch_size", None) is None:
            return sigma, None
        if sigma is not None and len(sigma) > 1:
            sigma = sigma[torch.as_tensor(condition.batch_indices)]
        return sigma, float(len(condition))


def _square(residual: torch.Tensor) -> torch.Tensor:
    """(n,) mean squared residual of each of n rows."""
    return residual.square().reshape(len(residual), -1).mean(1)


def _point_sets(data: Any, wanted: Callable[[Any], bool]) -> dict[int, Any]:
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


class _Measured:
    """The measurements of a model, as one vector: conditions with values, or supervised targets."""

    def __init__(self, model: Any, sigma: Any) -> None:
        self.model = model
        found = _point_sets(
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


class _Lane:
    """Another state for a model to be in: weights, buffers, unknowns, optimizer.

    Inside ``with lane:`` the model is in that state, and its own one is kept. Equations and
    transforms are functions that hold on to the model's own tensors: so it is the contents that
    change places, not the tensors.
    """

    def __init__(self, model: Any) -> None:
        self._data: dict[torch.Tensor, torch.Tensor] = {}
        self._take_up(model)
        self._grads: dict[torch.Tensor, torch.Tensor | None] = {}
        self._opt: Any = None

    def _take_up(self, model: Any) -> None:
        """Begin with the model's own values of what it did not have before."""
        for tensor in _weights(model):
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


class _Moment:
    """Random numbers and learning rates at one moment; inside ``with`` it is that moment."""

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


def _weights(model: Any) -> list[torch.Tensor]:
    """All that training changes in a model: parameters, buffers, external variables."""
    external = getattr(model, "external_trainable_variables", None) or []
    return [*model.net.parameters(), *model.net.buffers(), *external]
