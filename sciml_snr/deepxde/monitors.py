"""Callbacks that measure memorization and population risk in training, and stop by them."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from deepxde.callbacks import Callback
from deepxde.losses import mean_squared_error

from ..measure.risk import PopulationRisk
from ..measure.twins import TAU, Twins, as_array
from ..terms import NoisyTerm
from .caller import users_stacklevel
from .conditions import (
    as_sigma,
    components_of,
    conditions_of,
    equations_of,
)
from .model_noise import noise_of
from .rows import loss_weights_of, residuals_of
from .twins import Measurements, ModelState, StepStart, point_sets, trained_tensors


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
            self._kept = step, {t: t.detach().clone() for t in trained_tensors(self.model)}
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
    monitor. Each twin costs one more training step per iteration, and one more copy of weights and
    optimizer state. Give the monitor to the first ``train`` and to all later ones: what a model has
    seen before, its twins have seen unmoved.

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
        self._twin_states: list[ModelState] = []

    def on_train_begin(self) -> None:
        """Make the twins, copies of the model as it is; later trainings go on with them."""
        if self._kept is not None:
            raise ValueError(
                "MemorizationMonitor: the model has gone back to its best moment, the twins have "
                "not. Training that goes on from there needs another monitor, or none."
            )
        if not self._twin_states:
            self._measured = Measurements(self.model, self.sigma)
            clean = None if self._clean is None else as_array(self._clean).ravel()
            values, deviation = self._measured.values(), self._measured.sigma()
            self.twins = Twins(values, deviation, clean=clean, **self._options)
            self._twin_states = [ModelState(self.model) for _ in self.twins.shifts]
            self._record()
        self._measured.check_batch(self.model.train_state.y_train)
        for twin in self._twin_states:
            twin.follow(self.model)

    def on_batch_begin(self) -> None:
        """Remember what the model's step will start from, besides weights."""
        self._before = StepStart(self.model)

    def on_batch_end(self) -> None:
        """The twins' steps, on the batch that the model has just stepped on."""
        state = self.model.train_state
        for twin, shift in zip(self._twin_states, self.twins.shifts, strict=True):
            with twin, self._before, self._measured.moved(shift, state.y_train) as targets:
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
        for twin in self._twin_states:
            with twin:
                fits.append(self._measured.fit())
        self.twins.record(self.model.train_state.step, self._measured.fit(), fits)
        self._watch(self.twins.best().iteration)


class PopulationRiskMonitor(_UntilBest):
    """Estimates how the population risk changes, from the training batches alone.

    See :mod:`sciml_snr.measure.risk`: with ``fresh=True``, where no measurement is used twice,
    an unbiased estimate. On fixed data whose error is known (:class:`NoisyPointSetBC`), as in
    DeepXDE's default full batch, it is none, but its minimum says when to stop a fit to data alone.
    With an equation among the terms that is far too early (``docs/results/memorization.md``):
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
        self._conditions = point_sets(data, lambda _: True)
        if not self._conditions and getattr(data, "train_y", None) is None:
            raise ValueError("PopulationRiskMonitor: the model has no measurements.")
        is_alone = len(self._conditions) == len(conditions_of(data)) and equations_of(data) is None
        if self.patience is not None and not self.fresh and not is_alone:
            warnings.warn(
                "PopulationRiskMonitor stops far too early where an equation holds fixed data "
                "back. Use MemorizationMonitor(patience=...); or fresh=True, if no measurement is "
                "used twice.",
                stacklevel=users_stacklevel(),
            )
        self._watch(self._first_step)

    def on_batch_begin(self) -> None:
        """Remember where the model's step starts from."""
        self._start, self._before = ModelState(self.model), StepStart(self.model)

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
