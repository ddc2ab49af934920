r"""The fit loop of images and shapes: a network, noisy terms, a gated optimizer.

What is fitted is an :class:`Objective`. In every step it states its noisy terms, with the error of
their data (:class:`sciml_snr.NoisyLoss`); the loop steps, logs, writes a checkpoint, and stops
cleanly.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.optim import Optimizer

from ..gate import Gate, overrides
from ..measure.risk import PopulationRisk
from ..measure.twins import Twins, share_from_misfit
from ..noise import NoisyLoss
from ..processes import is_first
from ..runs.config import (
    anything,
    check_kinds,
    check_same,
    is_number,
    is_whole,
    rows_with,
)
from ..runs.folder import CHECKPOINT, CONFIG, RunFolder, blamed, readable, run_folder
from ..runs.loop import first_interrupt, rng_state, seeded, set_rng_state
from ..runs.options import FitOptions
from ..snr_adam import SNRAdam
from ..terms import NoisyTerm

ROWS = 100
"""About so many rows are logged in a run."""

CHECKPOINT_SECONDS = 30.0

TIMED_STEPS = 20
"""Steps after which the time of a fit is told."""

TOLD_BEYOND = 60.0
"""Seconds: of a shorter fit the bar tells enough."""

WHY_UNKNOWN = (
    "memorized ?: the errors of neighbouring pixels are correlated, and then the size of the "
    "residuals does not tell how much of the noise was memorized. To measure it: "
    "fit.memorization(), or `sciml-snr memorization` on the run folder."
)
"""Under the progress bar of a fit whose errors are correlated."""


class Objective(Protocol):
    """What a network is fitted to. Its tensors are on the device of the fit."""

    noise: NoisyLoss
    """The loss of every noisy term."""

    def terms(
        self, network: nn.Module, rng: torch.Generator
    ) -> tuple[list[NoisyTerm], Tensor | None]:
        """One step's noisy terms, and what the loss has beside them, free of noise.

        Args:
            network: the network to fit.
            rng: draws the step's samples; a generator on the device of the fit.
        """

    def metrics(self, network: nn.Module) -> dict[str, float]:
        """Further columns of the log, always the same ones; may be empty. Draws nothing."""


FIT_GATE: dict[str, Any] = {"z": 2.0, "rise_steps": 0, "discrepancy": False}
"""Of constant threshold: a fit takes few steps, mostly in batches, and its sigma is mostly an
estimate, which the discrepancy would take at its word."""


def completed_gate(
    default: Mapping[str, Any], given: str | Gate | Mapping[str, Any] | None
) -> dict[str, Any]:
    """Fields of a gate: those that are given, and else by default; a given ``alpha`` goes before a
    default z.

    Raises:
        ValueError, TypeError: what is given is no gate.
    """
    own = overrides(given) or {}
    if "alpha" in own and "z" not in own:
        own = {**own, "z": None}
    return {**default, **own}


@dataclass
class Training:
    """What a fit leaves behind, beside the network."""

    step: int = 0
    """Steps taken."""
    kept_step: int = 0
    """Steps to the network's weights: those taken, or with ``patience`` fewer."""
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)
    """Rows of the log. ``loss``, ``misfit`` (mean square of residual / sigma) and ``memorized``,
    the running guess of :func:`sciml_snr.share_from_misfit`, which error in the signal
    lowers, are those of the step's own batch, before the step. Where errors are correlated there
    is no such guess (NaN)."""
    interrupted: bool = False
    budgets: list[list[int]] = field(default_factory=list)
    """[first step, budget] of every part of the fit: more than one where it was resumed with other
    ``steps``. Empty: the options' own throughout."""

    @classmethod
    def from_json(cls, found: Any, where: str | Path) -> Training:
        """Read what ``dataclasses.asdict`` made.

        Raises:
            ValueError: it is something else; names ``where``.
        """
        if not isinstance(found, dict):
            raise ValueError(f"{where} is damaged: {found!r} is no training.")
        check_kinds(found, _TRAINING, where)
        return cls(**found)

    @property
    def kept_row(self) -> dict[str, float]:
        """The row of the log that is nearest to the network's weights."""
        return min(self.history, key=lambda row: abs(row["step"] - self.kept_step))


def _are_budgets(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(pair, list) and len(pair) == 2 and all(map(is_whole, pair)) and pair[1] > 0
        for pair in value
    )


_TRAINING: dict[str, Callable[[Any], bool]] = {
    "step": is_whole,
    "kept_step": is_whole,
    "seconds": is_number,
    "history": rows_with("step", "seconds", "loss", "misfit", "memorized"),
    "interrupted": lambda value: isinstance(value, bool),
    "budgets": _are_budgets,
}


def check_kept(training: Training) -> None:
    """Refuse to measure a fit that is as it was at the start.

    Raises:
        ValueError: says so.
    """
    if training.kept_step == 0:
        raise ValueError(
            "The network is as it was before the first step, and has memorized nothing. If "
            "patience sent it back there, lower the learning rate."
        )


def build_optimizer(network: nn.Module, noise: NoisyLoss, options: FitOptions) -> Optimizer:
    """The optimizer for the network's trainable parameters.

    Raises:
        ValueError: an option is out of range, or nothing can be trained.
    """
    params = [p for p in network.parameters() if p.requires_grad]
    if not params:
        raise ValueError("The network has no trainable parameters.")
    if options.optimizer == "adam":
        return torch.optim.Adam(params, lr=options.lr)
    return SNRAdam(
        params,
        lr=options.lr,
        coordinates="eigen" if options.optimizer == "snr_soap" else "own",
        noise=noise,
        gate=completed_gate(FIT_GATE, options.gate),
        floor_every=options.floor_every,
        process_group=False,  # under torchrun every process makes the same fit
    )


def train(
    network: nn.Module,
    objective: Objective,
    options: FitOptions,
    *,
    folder: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
    label: str = "fit",
) -> Training:
    """Fit the network, in place.

    The first Ctrl-C ends the fit after the step under way; ``resume=True`` continues it with the
    bits of an uninterrupted one.

    Args:
        network: moved to the device of the fit.
        objective: what to fit it to.
        options: how.
        folder: keeps ``metrics.csv`` and ``checkpoint.pt`` there, renewed every 30 seconds.
        resume: continue from the checkpoint in ``folder``; only ``steps`` may be others.
        progress: draw a progress bar.
        label: text in front of the bar.

    Raises:
        FileNotFoundError: there is nothing to resume.
        FileExistsError: the folder holds a run, and it is not to be resumed.
        ValueError: what is to be resumed has taken more steps already, or is another fit.
        OSError: the folder cannot be written to, or another process runs there.
        FloatingPointError: the loss or a gradient is no longer finite.
    """
    run = None if folder is None else run_folder(folder, "fit")
    if run is None:
        if resume:
            raise FileNotFoundError("There is no run to resume: no folder is given.")
        return fitted(network, objective, options, progress=progress, label=label)
    config, state = {"options": asdict(options)}, None
    if not resume:
        run.check_free()
    elif not run.holds_run:
        raise FileNotFoundError(f"There is no run to resume in {folder}: no {CHECKPOINT} there.")
    with run.locked():
        if resume:
            own, state = read_checkpoint(run)
            asked = {k: v for k, v in asdict(options).items() if k not in ("steps", "device")}
            check_same(run.path, asked, own["options"])
            check_steps(run, state, options.steps)
        else:
            run.begin(config)
        found = fitted(
            network,
            objective,
            options,
            folder=run,
            config=config,
            state=state,
            progress=progress,
            label=label,
        )
        run.write_json(CONFIG, run.described(config))
    return found


def fitted(
    network: nn.Module,
    objective: Objective,
    options: FitOptions,
    *,
    folder: RunFolder | None = None,
    config: Mapping[str, Any] | None = None,
    state: Mapping[str, Any] | None = None,
    progress: bool = True,
    label: str = "fit",
    like: Training | None = None,
) -> Training:
    """:func:`train` in a folder that the caller has begun and locked.

    Args:
        network, objective, options, progress, label: as there.
        folder: keeps the log and the checkpoint.
        config: what the checkpoint is to say of the run.
        state: continue from here: what the folder's checkpoint holds.
        like: repeat this fit: as many steps as it kept, at its learning rates.

    Raises:
        ValueError: the state is of another fit.
        OSError: the folder cannot be written to.
        FloatingPointError: the loss or a gradient is no longer finite.
    """
    with seeded(options.seed):
        loop = _Loop(network.to(options.torch_device), objective, options, folder, config or {})
        if like is not None and like.budgets:
            loop.training.budgets = like.budgets
        if state is not None:
            loop.load(state)
        if folder is not None and state is None:
            loop.save()  # whatever happens, the fit can be resumed
        steps = options.steps if like is None else like.kept_step
        loop.run(progress, label, steps, says_why=like is None)
    return loop.training


def fits_of_twins(
    twins: Twins,
    build: Callable[[], nn.Module],
    objective_of: Callable[[Any], Objective],
    fit_of: Callable[[nn.Module], Any],
    options: FitOptions,
    training: Training,
    progress: bool,
) -> list[Any]:
    """The same fit to the labels of every twin.

    Args:
        twins: whose labels.
        build: makes the network as it was before the first step.
        objective_of: what a network is fitted to, for labels.
        fit_of: what a fitted network makes of the data.
        options: of the fit; its steps and learning rates are those of ``training``.
        training: of the fit.
        progress: draw a progress bar.
    """
    options, fits = replace(options, patience=None), []
    for i, labels in enumerate(twins.labels):
        network = build()
        name = "twin" if twins.probes == 1 else f"twin {i + 1} of {twins.probes}"
        fitted(network, objective_of(labels), options, progress=progress, label=name, like=training)
        fits.append(fit_of(network))
    return fits


def summary_of(
    options: FitOptions, training: Training, network: nn.Module, **own: Any
) -> dict[str, Any]:
    """How a fit ended: what every fit says, what it says beside, and the last row of its log."""
    last = {k: v for k, v in training.kept_row.items() if k not in ("step", "seconds")}
    return {
        "optimizer": options.optimizer,
        "lr": options.lr,
        "steps": training.step,
        "interrupted": training.interrupted,
        "seconds": training.seconds,
        "parameters": sum(p.numel() for p in network.parameters()),
        **own,
        **last,
    }


def total_loss(noise: NoisyLoss, terms: Iterable[NoisyTerm], extra: Tensor | None) -> Tensor:
    """The loss that a step goes down: weighted noisy terms, and the extra."""
    parts = [
        term.weight
        * noise.of_residual(
            term.residual, term.sigma, population=term.population, pattern=term.pattern
        )
        for term in terms
    ]
    return torch.stack(parts if extra is None else [*parts, extra]).sum()


def _is_correlated(terms: Iterable[NoisyTerm]) -> bool:
    """Whether the data's errors go together. The residuals of a fit that has learned such noise
    where it is smooth, and left the rest, are as large as those of one that has not."""
    return any(term.pattern is not None for term in terms)


def sample_losses(terms: Iterable[NoisyTerm]) -> list[Tensor]:
    """Per noisy term of squared error its weighted losses, one per sample."""
    return [t.weight * t.residual.square().flatten(1).mean(1) for t in terms]


def standardized(terms: Iterable[NoisyTerm]) -> Tensor:
    """Residuals / sigma of all data that carry an error, as one vector."""
    found = []
    for term in terms:
        residual = term.residual.detach()
        sigma = torch.as_tensor(term.sigma, dtype=residual.dtype, device=residual.device)
        found.append((residual / sigma)[(sigma > 0).expand_as(residual)])
    return torch.cat(found) if found else torch.empty(0)


class _Loop:
    """A fit under way: all that its next step depends on."""

    def __init__(
        self,
        network: nn.Module,
        objective: Objective,
        options: FitOptions,
        folder: RunFolder | None,
        config: Mapping[str, Any],
    ) -> None:
        self.network = network
        self.objective = objective
        self.options = options
        self.folder = folder
        self.config = config
        self.optimizer = build_optimizer(network, objective.noise, options)
        self.rng = torch.Generator(options.torch_device).manual_seed(options.seed)
        self.training = Training(budgets=[[0, options.steps]])
        self.risk: PopulationRisk | None = None
        self.kept: dict[str, Tensor] = {}
        """Weights of the lowest estimated risk."""
        self.loaded: Path | None = None
        """The checkpoint that the next step is the first to depend on."""
        if options.patience is not None:
            self.risk = PopulationRisk(self.optimizer, seed=options.seed)
            self._keep()

    def run(self, progress: bool, label: str, steps: int, *, says_why: bool = True) -> None:
        """Take what is left of the first so many steps.

        Args:
            progress: draw a progress bar.
            label: text in front of it.
            steps: so many.
            says_why: say what the bar cannot tell, and how long it will take.
        """
        training = self.training
        training.interrupted = False
        every = max(1, steps // ROWS)
        before, started = training.seconds, time.perf_counter()
        saved, timed = started, training.step + TIMED_STEPS
        self.network.train()
        with first_interrupt(self._interrupt), _bar(progress) as bar:
            task = bar.add_task(label, total=steps, completed=training.step, status="")
            while training.step < steps and not training.interrupted and not self._is_past():
                due = training.step == 0 or (training.step + 1) % every == 0
                log = due or training.step + 1 == steps
                with blamed(self.loaded) if self.loaded else contextlib.nullcontext():
                    row = self._step(log)
                self._begin_log()
                training.seconds = before + time.perf_counter() - started
                if row:
                    self._log(row)
                    bar.update(task, status=_status(training.history[-1]))
                bar.update(task, completed=training.step)
                if training.step == timed and progress and says_why:
                    seconds = (time.perf_counter() - started) / TIMED_STEPS
                    if told := self._time(seconds, steps - timed):
                        bar.console.print(told, highlight=False, soft_wrap=True)
                if self.folder and time.perf_counter() - saved > CHECKPOINT_SECONDS:
                    self.save()
                    saved = time.perf_counter()
            if progress and says_why and training.history and _is_unknown(training.history[-1]):
                bar.console.print(WHY_UNKNOWN, highlight=False, soft_wrap=True)
        self._begin_log()
        if self.folder:
            self.save()
        if self.risk is not None:
            self.network.load_state_dict(self.kept)
        self.network.eval()

    def _time(self, seconds: float, left: int) -> str:
        """How long the rest of the fit will take; empty where that is short."""
        if seconds * left < TOLD_BEYOND:
            return ""
        kept = "it can be resumed" if self.folder else "what has been fitted is kept"
        return (
            f"{left:,} steps to go at {_duration(seconds)} each: about {_duration(seconds * left)} "
            f"on this machine. Ctrl-C ends the fit; {kept}."
        )

    def _begin_log(self) -> None:
        """After the first step of a resumed fit, nothing of it can be wrong any more: cut off the
        rows that were logged after its checkpoint."""
        if self.loaded is not None and self.folder is not None:
            self.folder.rewrite_rows(self.training.history)
        self.loaded = None

    def _is_past(self) -> bool:
        """Whether the estimated risk has not fallen for long enough."""
        patience = self.options.patience
        return self.risk is not None and patience is not None and self.risk.should_stop(patience)

    def _keep(self) -> None:
        self.kept = {k: v.detach().clone() for k, v in self.network.state_dict().items()}
        self.training.kept_step = self.training.step

    def _interrupt(self) -> None:
        self.training.interrupted = True

    def _step(self, log: bool) -> dict[str, float]:
        drawn = self.rng.get_state() if self.risk is not None else None
        terms, extra = self.objective.terms(self.network, self.rng)
        row: dict[str, float] = {}
        loss = total_loss(self.objective.noise, terms, extra)
        if log:
            z = standardized(terms).double().cpu().numpy()
            guessed = z.size > 0 and not _is_correlated(terms)
            row = {
                "loss": float(loss.detach()),
                "misfit": float((z**2).mean()) if z.size else math.nan,
                "memorized": share_from_misfit(z, 0 * z, 1.0) if guessed else math.nan,
            }
            if not math.isfinite(row["loss"]):
                raise FloatingPointError(
                    f"The loss is {row['loss']} after {self.training.step} steps: lower the "
                    "learning rate."
                )
        if self.risk is not None:
            self.risk.begin(sample_losses(terms), extra, terms)
        step = self.training.step
        budget = next(n for first, n in reversed(self.training.budgets) if first <= step)
        for group in self.optimizer.param_groups:
            group["lr"] = self.options.lr_at(step, budget)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.training.step += 1
        if self.risk is None:
            self.training.kept_step = self.training.step
        else:
            assert drawn is not None
            self.rng.set_state(drawn)  # the same batch again
            terms, extra = self.objective.terms(self.network, self.rng)
            self.risk.end(sample_losses(terms), extra, terms)
            if self.risk.best_step == self.training.step:
                self._keep()
        return row

    def _log(self, row: dict[str, float]) -> None:
        row = {
            "step": float(self.training.step),
            "seconds": self.training.seconds,
            **row,
            **self.objective.metrics(self.network),
        }
        if isinstance(self.optimizer, SNRAdam):
            stats = self.optimizer.gate_stats()
            row |= {"mean_q": stats.mean_q, "open_fraction": stats.open_fraction}
        self.training.history.append(row)
        if self.folder:
            self.folder.append_row(row)

    def save(self) -> None:
        """Write the checkpoint."""
        assert self.folder is not None
        state = {
            "step": self.training.step,
            "seconds": self.training.seconds,
            "history": self.training.history,
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rng": self.rng.get_state(),
            "risk": None if self.risk is None else self.risk.state_dict(),
            "kept": self.kept,
            "kept_step": self.training.kept_step,
            "budgets": self.training.budgets,
            **rng_state(),
        }
        self.folder.save(self.config, state)

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint's state."""
        steps, step, budgets = self.options.steps, state["step"], state["budgets"]
        if budgets[-1][1] != steps:
            budgets = [*budgets, [step, steps]]
        self.training = Training(
            step, state["kept_step"], state["seconds"], list(state["history"]), budgets=budgets
        )
        self.loaded = Path(CHECKPOINT) if self.folder is None else self.folder.path / CHECKPOINT
        with readable(self.loaded):
            self.network.load_state_dict(state["network"])
            self.optimizer.load_state_dict(state["optimizer"])
            if self.risk is not None:
                self.risk.load_state_dict(state["risk"])
                self.kept = {k: v.to(self.options.torch_device) for k, v in state["kept"].items()}
            self.rng.set_state(state["rng"])
            set_rng_state(state)


_STATE: dict[str, Callable[[Any], bool]] = {
    **{name: test for name, test in _TRAINING.items() if name != "interrupted"},
    "budgets": lambda value: _are_budgets(value) and len(value) > 0,
    **dict.fromkeys(("network", "optimizer", "rng", "risk", "kept"), anything),
    **dict.fromkeys(("torch_rng", "cuda_rng", "numpy_rng"), anything),
}
"""Of a checkpoint's state: what tests a value."""


def read_checkpoint(folder: RunFolder) -> tuple[dict[str, Any], dict[str, Any]]:
    """The config of a fit's run, and the state that the fit is to go on from.

    Raises:
        FileNotFoundError: there is nothing to resume.
        ValueError: its checkpoint is damaged.
    """
    config, state = folder.load()
    check_kinds(state, _STATE, folder.path / CHECKPOINT)
    return config, state


def check_steps(folder: RunFolder, state: Mapping[str, Any], steps: int | None) -> None:
    """Refuse a budget that a run is beyond already.

    Raises:
        ValueError: says so.
    """
    if steps is not None and steps < state["step"]:
        raise ValueError(
            f"The run in {folder.path} has taken {state['step']} steps already: {steps} is too few."
        )


def _bar(progress: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("left | {task.fields[status]}"),
        disable=not (progress and is_first()),
    )


def _duration(seconds: float) -> str:
    """In two digits or so."""
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 90:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


def _is_unknown(row: Mapping[str, float]) -> bool:
    """Whether there is noise, and the residuals do not tell how much of it was memorized."""
    return math.isfinite(row["misfit"]) and not math.isfinite(row["memorized"])


def _status(row: dict[str, float]) -> str:
    status = f"loss {row['loss']:.3g}"
    if math.isfinite(row["memorized"]):
        status += f", memorized ~ {100 * row['memorized']:.0f} %"
    elif _is_unknown(row):
        status += ", memorized ?"
    if "open_fraction" in row:
        status += f", open {100 * row['open_fraction']:.0f} %"
    return status
