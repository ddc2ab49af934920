"""Run a problem: train, measure, keep everything in a folder, stop cleanly, resume.

A run folder (:mod:`sciml_snr.runs.folder`) holds ``config.json``, ``metrics.csv`` (one row per
evaluation), ``checkpoint.pt``, ``prediction.npz``, ``summary.json`` and ``figure.png``; after
:func:`memorization` also ``memorization.csv``, ``.json`` and ``.png``.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

# DeepXDE announces its backend on stderr, in every worker process again.
with contextlib.redirect_stderr(io.StringIO()):
    import deepxde as dde

from sciml_snr import problems

from ..deepxde import MemorizationMonitor, ProgressBar, SNR_options, set_SNR_options
from ..gauss_newton import SNRGaussNewton
from ..measure.twins import Twins, share_from_misfit
from ..snr_adam import SNRAdam
from ..terms import as_sigma_tensor, check_squares
from .bars import RunBars
from .config import anything, check_kinds, check_same, is_number, is_whole, rows_with
from .folder import CHECKPOINT, SUMMARY, RunFolder, blamed, readable
from .held_out import PENDING, HeldOut, held_out
from .loop import first_interrupt, rng_state, set_rng_state
from .options import (
    DEFAULT_OPTIMIZER,
    FIRST_LR,
    GAUSS_NEWTON,
    STAGES,
    ProblemConfig,
    first_stage,
)
from .summary import Summary, drifts, is_telling, read_summary

ADAMW_WEIGHT_DECAY = 0.01
"""torch.optim.AdamW's default; DeepXDE wants it stated."""

EVALUATIONS = 200
"""Errors are measured this many times in a run."""

PREDICTION = "prediction.npz"


def check_snr_options(options: Mapping[str, Any]) -> None:
    """Refuse options that :func:`sciml_snr.set_SNR_options` would.

    Raises:
        ValueError: says which and what is possible.
    """
    if unknown := [name for name in options if name not in SNR_options]:
        raise ValueError(
            f"There is no SNR option {', '.join(map(repr, unknown))}. Choose from: "
            f"{', '.join(SNR_options)}."
        )
    try:
        with _snr_options(options):
            pass
    except TypeError as error:  # a number in a name's place, say
        raise ValueError(f"snr_options: {error}") from None


def solve(
    config: ProblemConfig,
    out: str | Path | None = None,
    *,
    resume: bool = False,
    progress: bool = True,
    format: str | None = None,
) -> Summary:
    """Train one problem with one optimizer.

    The first Ctrl-C ends the training after the iteration under way and leaves a complete run
    folder, which ``resume=True`` continues: with the bits of an uninterrupted run.

    Args:
        config: what to run.
        out: folder for the results; None keeps nothing.
        resume: continue the run in ``out`` instead of starting one: with its own config. Only
            ``iterations`` may be given anew; what is as by default does not count as given.
        progress: draw a progress bar.
        format: write the figure in this format, too: "pdf", "svg".

    Raises:
        ValueError, FileNotFoundError: the config or the measurements cannot be used, or are not
            those of the run to be resumed.
        FileExistsError: ``out`` already holds a run and ``resume`` is False.
    """
    folder = None if out is None else RunFolder(out, "problem")
    state = None
    if resume:
        if folder is None:
            raise FileNotFoundError("There is no run to resume: no folder is given.")
        config, state = _resumed(folder, config)
    elif folder is not None:
        folder.check_free()
    config = config.resolved()
    with _device(config.device):
        problem = config.build()
    sigma = problem.sigma()
    if sigma is not None and str(config.optimizer).startswith("snr_"):
        check_squares(as_sigma_tensor(sigma), torch.float32)  # before there is a folder
    if folder is None:
        return _trained(config, problem, None, None, progress, None)
    with folder.locked():
        if resume:  # what was read before the lock may be old
            config, state = _resumed(folder, config)
        else:
            folder.begin(asdict(config))
        return _trained(config, problem, folder, state, progress, format)


def _resumed(folder: RunFolder, asked: ProblemConfig) -> tuple[ProblemConfig, dict[str, Any]]:
    """The run's own config with the iterations that are asked for, and its state."""
    found, state = folder.load()
    own = ProblemConfig.from_json(found, folder.path / "checkpoint.pt")
    check_kinds(state, _STATE, folder.path / "checkpoint.pt")
    wishes = asdict(asked)
    iterations = wishes.pop("iterations")
    if asked.data is not None:
        wishes["data"] = os.path.realpath(asked.data)
    if problems.files.is_file(asked.problem):
        wishes["problem"] = os.path.realpath(asked.problem)
    wishes["snr_options"] = asked.snr_options or None
    wishes["settings"] = asked.settings or None
    check_same(folder.path, wishes, found)
    return own if iterations is None else replace(own, iterations=iterations), state


def _trained(
    config: ProblemConfig,
    problem: problems.Problem,
    folder: RunFolder | None,
    state: dict[str, Any] | None,
    progress: bool,
    format: str | None,
) -> Summary:
    """Train from the state, or from the start, and write what the folder is to hold."""
    from .figure import run_figure  # matplotlib only where pictures are drawn

    with _device(config.device):
        model = compile_model(config, problem)
        recorder = Recorder(config, problem, folder)
        if state is not None:
            assert folder is not None
            _check_unchanged(folder, config, problem, state)
            with readable(folder.path / "checkpoint.pt"):
                recorder.load(model, state)
        if folder is not None and state is None:
            recorder.save(model)  # whatever happens, the run can be resumed
        recorder.train(model, progress)
        if folder is not None:
            recorder.save(model)  # before the error bars, which may take a while
        bars = RunBars(problem, model)
        summary = _with_bars(recorder.summary(), bars)
        if config.held_out:
            summary = replace(summary, held_out_note=PENDING)
        if folder is not None:
            folder.write_json("config.json", folder.described(asdict(config)))
            folder.write_arrays(PREDICTION, prediction(problem, model, bars))
            folder.write_json(SUMMARY, asdict(summary))
            run_figure(folder.path, format)
        if config.held_out and not summary.interrupted:
            summary = _with_held_out(summary, held_out(config, problem, progress))
            if folder is not None:
                folder.write_json(SUMMARY, asdict(summary))
    return summary


def _check_unchanged(
    folder: RunFolder, config: ProblemConfig, problem: problems.Problem, state: Mapping[str, Any]
) -> None:
    """Refuse to go on with other measurements, or another problem.

    Raises:
        ValueError: says which.
    """
    if state["problem_file"] != source_of(config):
        raise ValueError(
            f"The run in {folder.path} is of another {Path(config.problem).name}: the file has "
            "changed since. Put it back, or start another run elsewhere."
        )
    if state["measurements"] != fingerprint(problem):
        raise ValueError(
            f"The run in {folder.path} is of other measurements than "
            f"{config.data or 'the problem makes today'}: they have changed since."
        )


def compile_model(config: ProblemConfig, problem: problems.Problem) -> dde.Model:
    """A seeded model of the problem, compiled as the (resolved) config says for the start."""
    dde.config.set_random_seed(config.seed or 0)
    network = problem.network()
    if config.optimizer == "adamw":
        network.regularizer = ["l2", ADAMW_WEIGHT_DECAY]
    model = problem.model(network)
    if config.optimizer == GAUSS_NEWTON and first_stage(config.iterations or sum(STAGES)):
        compile_with(model, problem, "snr_adam", FIRST_LR, {})
    else:
        compile_with(model, problem, config.optimizer, config.lr, config.snr_options or {})
    return model


def compile_with(
    model: dde.Model,
    problem: problems.Problem,
    optimizer: str | None,
    lr: float | None,
    options: Mapping[str, Any],
) -> None:
    """Compile the model of a problem."""
    with _snr_options(options):
        model.compile(
            optimizer,
            lr=lr,
            loss_weights=problem.weights(),
            external_trainable_variables=list(problem.unknowns.values()),
            verbose=0,
        )


class Recorder(dde.callbacks.Callback):  # type: ignore[misc]
    """Measures errors along a run, writes them as they come, and keeps a checkpoint."""

    checkpoint_seconds = 30.0

    def __init__(
        self,
        config: ProblemConfig,
        problem: problems.Problem,
        folder: RunFolder | None = None,
        label: str | None = None,
    ) -> None:
        super().__init__()
        assert config.iterations is not None
        self.config = config
        self.problem = problem
        self.folder = folder
        self.tells_share = problem.observations.sigma is not None and (
            is_telling(config.optimizer, len(problem.observations))
        )
        """Whether the progress bar has the memorized share: a guess that needs a sigma."""
        self.label = label or f"{config.name} {config.optimizer}"
        self.budget = config.iterations
        self.every = period(self.budget)
        self.iteration = 0
        self.seconds = 0.0
        self.rows: list[dict[str, float]] = []
        self.interrupted = False
        self.loaded: Path | None = None
        """The checkpoint that the next iteration is the first to depend on."""
        self.first = 0
        """Iterations of the first stage, where there are two."""
        if config.optimizer == GAUSS_NEWTON:
            self.first = first_stage(config.iterations)
        self.ended_by: str | None = None
        self.is_second = False
        """Whether the model is compiled for the second stage."""
        self._bar: ProgressBar | None = None

    def train(self, model: dde.Model, progress: bool, *others: dde.callbacks.Callback) -> None:
        """Train what is left of the budget, with further callbacks if there are."""
        left = self.budget - self.iteration
        if left < 1:
            self._begin_log()
            return
        callbacks: list[Any] = [self, *others]
        if progress:
            self._bar = ProgressBar(self.budget, self.label, start=self.iteration)
            callbacks.insert(0, self._bar)
        try:
            with first_interrupt(self._interrupt), self._blaming():
                if self.iteration < self.first:
                    self._train(model, self.first - self.iteration, callbacks)
                if self.first and not self.is_second and not self.interrupted:
                    self.begin_second(model)
                if not self.interrupted and not getattr(model.opt, "done", False):
                    self._train(model, self.budget - self.iteration, callbacks)
            self._begin_log()  # also where there was no step left
        finally:
            if self._bar is not None:
                self._bar.stop()

    def _train(self, model: dde.Model, iterations: int, callbacks: list[Any]) -> None:
        if iterations > 0:
            if self._bar is not None:
                self._bar.start = self.iteration
            model.train(
                iterations=iterations,
                display_every=self.budget + 1,
                callbacks=callbacks,
                verbose=0,
            )

    def begin_second(self, model: dde.Model) -> None:
        """Compile the model for the Gauss-Newton steps that follow the first stage."""
        config = self.config
        compile_with(model, self.problem, config.optimizer, config.lr, config.snr_options or {})
        self.is_second = True

    def _interrupt(self) -> None:
        self.interrupted = True

    @contextlib.contextmanager
    def _blaming(self) -> Iterator[None]:
        """Of an error before the first iteration of a resumed run has ended, blame its file."""
        loaded = self.loaded
        try:
            yield
        except Exception as error:
            if loaded is not None and self.loaded is not None:
                with blamed(loaded):
                    raise error
            raise

    def _begin_log(self) -> None:
        """After the first iteration of a resumed run, nothing of it can be wrong any more: cut off
        the rows that were written after its checkpoint."""
        if self.loaded is not None and self.folder is not None:
            self.folder.rewrite_rows(self.rows)
        self.loaded = None

    def on_train_begin(self) -> None:
        self._started = self._saved = time.perf_counter()
        self._before = self.seconds
        if not self.rows:
            self._measure()

    def on_epoch_end(self) -> None:
        self._begin_log()
        self.iteration += 1
        self.seconds = self._before + time.perf_counter() - self._started
        is_last = self.iteration == self.budget or self.model.stop_training
        if self.iteration % self.every == 0 or is_last or self.interrupted:
            self._measure()
        if self.folder and time.perf_counter() - self._saved > self.checkpoint_seconds:
            self.save(self.model)
            self._saved = time.perf_counter()
        if self.interrupted:
            self.model.stop_training = True
        self.ended_by = getattr(self.model.opt, "reason", None) or None

    def _measure(self) -> None:
        model = self.model
        predict = functools.partial(self.problem.predict, model)
        metrics = self.problem.metrics(predict) if self.problem.knows_truth else {}
        state = model.train_state
        losses = model.outputs_losses_train(state.X_train, state.y_train, state.train_aux_vars)[1]
        if not torch.isfinite(losses).all():
            at = ", ".join(str(i) for i, loss in enumerate(losses, 1) if not torch.isfinite(loss))
            raise FloatingPointError(
                f"The loss is not finite at iteration {self.iteration} (term {at} of "
                f"{losses.numel()}): the training has diverged. Take a smaller --lr, or look for a "
                "division by 0 or a root of a negative number in the equation."
            )
        row = {
            "iteration": float(self.iteration),
            "seconds": self.seconds,
            "loss": float(losses.detach().sum()),
            **metrics,
            **self.problem.unknown_values(predict),
        }
        sigma = self.problem.sigma()
        if sigma is not None and np.all(sigma > 0):
            measured = self.problem.encode(self.problem.observations.values)
            fit = self.problem.fit_of_measured(predict)
            row["memorized_estimate"] = share_from_misfit(fit, measured, sigma)
            row["misfit"] = float((((fit - measured) / sigma) ** 2).mean())
        if isinstance(model.opt, SNRAdam):
            stats = model.opt.gate_stats()
            row |= {"mean_q": stats.mean_q, "open_fraction": stats.open_fraction}
        elif isinstance(model.opt, SNRGaussNewton):
            opened = model.opt.stats().open_fraction if model.opt.has_stats else math.nan
            row |= {"mean_q": opened, "open_fraction": opened}
            if math.isfinite(model.opt.memorized):
                row["memorized_estimate"] = model.opt.memorized
        self.rows.append(row)
        if self.folder and self.loaded is None:
            self.folder.append_row(row)
        if self._bar is not None:
            self._bar.status(_in_short(row, self.tells_share))

    def summary(self) -> Summary:
        """Final and best figures of what has been recorded."""
        last = self.rows[-1]
        is_known = self.problem.knows_truth
        best = min(self.rows, key=lambda row: row["relative_l2"]) if is_known else {}
        reference = self.problem.truth() if is_known else None
        width = len(self.problem.outputs)
        start = self.first if self.is_second else 0  # a second stage moves in another way
        courses = [row for row in self.rows if row["iteration"] >= start]
        names = list(self.problem.unknown_values(lambda points: np.ones((len(points), width))))
        return Summary(
            optimizer=self.config.optimizer or DEFAULT_OPTIMIZER,
            seed=self.config.seed or 0,
            lr=self.config.lr,
            iterations=self.iteration,
            final_error=last["relative_l2"] if is_known else None,
            best_error=best.get("relative_l2"),
            best_iteration=int(best["iteration"]) if is_known else None,
            memorized=last.get("memorized"),
            mean_q=last.get("mean_q"),
            open_fraction=last.get("open_fraction"),
            seconds=self.seconds,
            interrupted=self.interrupted,
            unknowns={name: last[name] for name in names},
            unknowns_reference=reference,
            memorized_estimate=last.get("memorized_estimate"),
            ended_by=self.ended_by,
            misfit=last.get("misfit"),
            unknowns_drift=drifts(courses, names),
            sigma_estimate=_estimates(self.problem),
            measurements=len(self.problem.observations),
        )

    def save(self, model: dde.Model) -> None:
        """Write the checkpoint: all that the next iteration depends on."""
        assert self.folder is not None
        state = {
            "iteration": self.iteration,
            "seconds": self.seconds,
            "rows": self.rows,
            "network": model.net.state_dict(),
            "optimizer": model.opt.state_dict(),
            "first": self.first,
            "is_second": self.is_second,
            "unknowns": {name: v.detach() for name, v in self.problem.unknowns.items()},
            "measurements": fingerprint(self.problem),
            "problem_file": source_of(self.config),
            # An evaluation that only the interruption caused is not part of the run.
            "extra_row": self.interrupted and bool(self.iteration % self.every),
            **rng_state(),
        }
        self.folder.save(asdict(self.config), state)

    def load(self, model: dde.Model, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint's state."""
        assert self.folder is not None
        self.iteration, self.seconds = state["iteration"], state["seconds"]
        self.rows = list(state["rows"])
        self.first = state["first"]
        if state["is_second"]:
            self.begin_second(model)
        model.net.load_state_dict(state["network"])
        model.opt.load_state_dict(state["optimizer"])
        with torch.no_grad():
            for name, value in state["unknowns"].items():
                self.problem.unknowns[name].copy_(value)
        set_rng_state(state)
        if state["extra_row"]:
            self.rows.pop()
        if self.rows:
            self.summary()  # has all that it needs
        self.loaded = self.folder.path / CHECKPOINT


_STATE: dict[str, Callable[[Any], bool]] = {
    "iteration": is_whole,
    "first": is_whole,
    "is_second": lambda value: isinstance(value, bool),
    "seconds": is_number,
    "rows": rows_with("iteration", "seconds", "loss"),
    "extra_row": lambda value: isinstance(value, bool),
    **dict.fromkeys(("network", "optimizer", "unknowns", "measurements"), anything),
    "problem_file": lambda value: isinstance(value, str),
    **dict.fromkeys(("torch_rng", "cuda_rng", "numpy_rng"), anything),
}
"""Of a checkpoint's state: what tests a value."""


def _in_short(row: Mapping[str, float], tells_share: bool) -> str:
    """A row of the log, for the progress bar."""
    parts = []
    if "relative_l2" in row:
        parts.append(f"error {row['relative_l2']:.3f}")
    elif "misfit" in row:
        parts.append(f"misfit R {row['misfit']:.3g}")
    else:
        parts.append(f"loss {row['loss']:.3g}")
    if "memorized_estimate" in row and tells_share:
        parts.append(f"memorized ~{100 * row['memorized_estimate']:.0f} %")
    return ", ".join(parts)


def _estimates(problem: problems.Problem) -> dict[str, list[float]] | None:
    """What was estimated of sigma, by output; None where it was given, or cannot be estimated."""
    found = problem.sigma_estimate if problem.observations.sigma is None else ""
    if isinstance(found, str):
        return None
    each = found * len(problem.measured) if len(found) == 1 else found
    pairs = zip(problem.measured, each, strict=True)
    return {name: [float(one), one.standard_error] for name, one in pairs}


def source_of(config: ProblemConfig) -> str:
    """Equal for equal files of the user's own; empty for a built-in problem."""
    is_file = problems.files.is_file(config.problem)
    return problems.files.digest(config.problem) if is_file else ""


def fingerprint(problem: problems.Problem) -> str:
    """Equal for equal measurements."""
    observed = problem.observations
    found = hashlib.sha256()
    for array in (observed.points, observed.values, observed.sigma):
        if array is not None:
            found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()[:16]


def memorization(folder: str | Path, *, probes: int = 1, progress: bool = True) -> Twins:
    """How much of its measurements' noise a finished run has memorized, without the truth.

    Repeats the run with twins in step (:class:`sciml_snr.MemorizationMonitor`): it takes 1 + probes
    times as long. Writes ``memorization.csv`` (the course), ``memorization.json`` (the end, and the
    moment of the lowest estimated risk) and ``memorization.png`` into the run's folder. The first
    Ctrl-C ends it early, with what has been measured so far.

    Args:
        folder: a run folder.
        probes: number of twins.
        progress: draw a progress bar.

    Returns:
        The twins, with the course in ``rows``.

    Raises:
        FileNotFoundError: there is no finished run.
        ValueError: the measurements' error is unknown.
    """
    from .figure import memorization_of_run, read_run

    run = RunFolder(folder, "problem")
    if not (run.path / SUMMARY).exists():
        raise FileNotFoundError(f"There is no finished run in {run.path}: no {SUMMARY} there.")
    found, state = run.load()
    config = ProblemConfig.from_json(found, run.path / CHECKPOINT)
    check_kinds(state, _STATE, run.path / CHECKPOINT)
    iterations = read_summary(run.path).iterations
    read_run(run.path)  # the figure needs it: refused before the work
    config = replace(config, iterations=iterations).resolved()
    with run.locked(), _device(config.device):
        problem = config.build()
        _check_unchanged(run, config, problem, state)
        sigma = problem.sigma()
        if sigma is None or not np.any(sigma > 0):
            raise ValueError(
                "The measurements' error is unknown or 0: give solve --noise, or a column sigma."
            )
        clean = problem.clean_of_conditions()
        model = compile_model(config, problem)
        monitor = MemorizationMonitor(period=period(iterations), probes=probes, clean=clean)
        Recorder(config, problem).train(model, progress, monitor)
        bars = RunBars(problem, model)
        run.rewrite_rows([row._asdict() for row in monitor.twins.rows], "memorization.csv")
        last, best = monitor.twins.rows[-1], monitor.twins.best()
        low, high = last.interval()
        found = {
            "probes": probes,
            "final": last._asdict() | {"interval": [low, high]},
            "lowest_risk": best._asdict(),
            "error_bars": None if bars.bars is None else bars.bars.as_dict(),
        }
        run.write_json("memorization.json", found)
        with blamed(run.path / PREDICTION):
            memorization_of_run(run.path, monitor.twins.rows)
    return monitor.twins


def _with_held_out(summary: Summary, found: HeldOut) -> Summary:
    return replace(
        summary,
        held_out_count=found.count,
        held_out_misfit=found.misfit,
        held_out_error=found.errors,
        held_out_note=found.note,
    )


def _with_bars(summary: Summary, bars: RunBars) -> Summary:
    errors, intervals = bars.unknowns()
    return replace(
        summary,
        unknowns_standard_error=errors,
        unknowns_interval=intervals,
        error_bars_note=bars.reason or None,
        sigma_of_fit=bars.sigma_of_fit(),
    )


def prediction(problem: problems.Problem, model: dde.Model, bars: RunBars) -> dict[str, Any]:
    """The fit on the evaluation grid, and the measurements: ``prediction.npz``.

    Arrays: ``points`` (n, d), ``fit`` (n, m), ``observed_points`` (k, d), ``observed_values``
    (k, measured) and ``observed_fit`` (k, m). Where known: ``reference`` (n, m);
    ``observed_sigma`` (k, 1 or measured), encoded; ``observed_residual``, (fit - value) / sigma,
    ``observed_low`` and ``observed_high``, value -+ sigma, and ``observed_clean``, (k, measured)
    each. Ends of the fit's 95 % band, ``fit_low``, ``fit_high`` (n, m) and ``observed_fit_low``,
    ``observed_fit_high`` (k, m), where there are error bars. ``coordinates`` and ``outputs`` name
    the columns.
    """
    points, observed = problem.evaluation_points(), problem.observations
    arrays: dict[str, Any] = {
        "coordinates": np.array(problem.coordinates),
        "outputs": np.array(problem.outputs),
        "points": points,
        "fit": problem.predict(model, points),
        "observed_points": observed.points,
        "observed_values": observed.values,
        "observed_fit": problem.predict(model, observed.points),
    }
    sigma = problem.sigma()
    if problem.knows_truth:
        arrays["reference"] = problem.reference(points)
    if sigma is not None:
        arrays["observed_sigma"] = sigma
        if np.all(sigma > 0):
            arrays |= _with_errors(problem, arrays["observed_fit"], sigma)
    if observed.clean is not None:
        arrays["observed_clean"] = observed.clean
    return arrays | bars.arrays(points, observed.points)


def _with_errors(problem: problems.Problem, fit: Any, sigma: Any) -> dict[str, Any]:
    """Residuals in units of sigma, and the measurements less and plus their standard errors."""
    encoded = problem.encode(problem.observations.values)
    fitted = problem.encode(fit[:, : len(problem.measured)])
    ends = [problem.decode(encoded + sign * sigma) for sign in (-1, 1)]
    return {
        "observed_residual": (fitted - encoded) / sigma,
        "observed_low": np.minimum(*ends),
        "observed_high": np.maximum(*ends),
    }


def run_name(config: ProblemConfig) -> str:
    """Folder name of a run."""
    return f"{config.name}-{config.optimizer or DEFAULT_OPTIMIZER}-seed{config.seed or 0}"


def period(iterations: int) -> int:
    """Iterations between two evaluations."""
    return max(1, iterations // EVALUATIONS)


@contextlib.contextmanager
def _snr_options(options: Mapping[str, Any]) -> Iterator[None]:
    """The user's own DeepXDE-wide options are back in place afterwards."""
    previous = dict(SNR_options)
    try:
        set_SNR_options(**options)
        yield
    finally:
        set_SNR_options(**previous)


@contextlib.contextmanager
def _device(device: str | None) -> Iterator[None]:
    previous = torch.get_default_device()
    if device is not None:
        torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(previous)
