"""One run of a benchmark: train, count gradient evaluations, measure, make a row."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import deepxde as dde
import numpy as np
import torch

from ..problems import Problem
from ..runs.options import ProblemConfig
from ..runs.run import Recorder
from ..snr_adam import SNRAdam
from .plan import Job
from .rivals import compile_any
from .smoothing import DropoutFNN, remade, smooth
from .stopping import Discrepancy, HeldOut, LowestRisk

LBFGS_SHARE = 5
"""L-BFGS has one in so many of the gradient evaluations, at the end."""

MOMENTS = 40
"""Errors are measured this many times in L-BFGS, and in runs whose prediction is a mean."""

RESAMPLED_EVERY = 10
"""Iterations between two draws of the equation's points."""

DIVERGED = (
    FloatingPointError,
    np.linalg.LinAlgError,
    torch.linalg.LinAlgError,  # type: ignore[attr-defined]
)

Rows = Sequence[dict[str, float]]


class Measured(NamedTuple):
    """What is measured of a run: the columns of a row behind those of its job."""

    final_error: float
    final_iteration: int
    best_error: float
    best_iteration: int
    error_at_equal_evaluations: float
    evaluations: int
    seconds: float
    cpu_seconds: float
    memorized: float | str
    open_fraction: float | str
    unknown_errors: str
    gate: str
    error: str


COLUMNS = (*Job.__dataclass_fields__, *Measured._fields)
"""Of a results file."""


def run_job(job: Job) -> dict[str, Any]:
    """Train in this process, on one thread, and make the row; a run that diverges has one too."""
    torch.set_num_threads(1)
    row: dict[str, Any] = {name: getattr(job, name) for name in job.__dataclass_fields__}
    course = Course(job)
    error = ""
    try:
        course.run()
    except DIVERGED as reason:
        error = f"{type(reason).__name__}: {reason}".splitlines()[0][:200]
    return row | course.results(error)._asdict()


class Course(Recorder):
    """A recorder that counts gradient evaluations and knows which moment a method would choose.

    A gradient evaluation is one backward pass through the network: from the loss, from the noisy
    terms alone, or from a noise floor's random signs. ``seconds`` (of the clock, and of the
    processor, which a busy machine does not change) are of training and of fits before it, not of
    measuring.
    """

    def __init__(self, job: Job) -> None:
        started, self.cpu_before = time.perf_counter(), time.process_time()
        config = ProblemConfig(
            json.loads(job.setting)["problem"],
            job.optimizer,
            job.lr,
            iterations=job.iterations,
            seed=job.seed,
            snr_options=json.loads(job.options or "{}"),
        )
        problem = job.build()
        super().__init__(config, problem)
        self.job = job
        self.evaluations = 0
        self.rule: Any = None
        self.gate = ""
        if job.variant == "dropout":
            self.every = max(self.every, job.iterations // MOMENTS)
        if job.variant == "lbfgs":
            self.budget -= job.iterations // LBFGS_SHARE
        self.prepare(problem)
        self.seconds = time.perf_counter() - started

    def prepare(self, problem: Problem) -> None:
        """What has to happen before the model is made."""
        job = self.job
        kind = DropoutFNN if job.variant == "dropout" else dde.nn.FNN
        if job.width or job.variant == "dropout":
            network = problem.network
            problem.network = lambda: remade(network(), job.width, kind)
        if job.variant == "smoothed":
            smooth(problem, job.seed)
        elif job.variant == "held_out":
            self.rule = HeldOut(problem, 1000 + job.seed, self.every)
        elif job.variant == "discrepancy":
            self.rule = Discrepancy(self.every)
        elif job.variant == "sure":
            self.rule = LowestRisk(period=self.every, seed=1000 + job.seed)

    def run(self) -> None:
        """Train."""
        model = compile_any(self.config, self.problem)
        next(iter(model.net.parameters())).register_hook(self._count)
        around = [] if self.rule is None else [self.rule]
        if self.job.variant == "resampled":
            model.data.train_distribution = "pseudo"  # DeepXDE's own default is the same every time
            around.append(dde.callbacks.PDEPointResampler(period=RESAMPLED_EVERY))
        try:
            self.train(model, False, *around)
        finally:
            self.gate = gate_of(model.opt)
        if self.job.variant == "lbfgs" and math.isfinite(self.rows[-1]["relative_l2"]):
            self.finish_by_lbfgs(model)
        if self.interrupted:
            raise KeyboardInterrupt

    def finish_by_lbfgs(self, model: Any) -> None:
        """What is left of the gradient evaluations; L-BFGS may end earlier, where it converges."""
        left = self.job.iterations - self.evaluations
        dde.optimizers.set_LBFGS_options(maxiter=left, maxfun=left)
        # Torch ends a step of L-BFGS, and DeepXDE calls back, after so many iterations.
        at_once = max(10, left // MOMENTS)
        dde.optimizers.LBFGS_options.update(iter_per_step=at_once, fun_per_step=2 * at_once)
        model.compile(
            "L-BFGS",
            loss_weights=self.problem.loss_weights(),
            external_trainable_variables=list(self.problem.unknowns.values()),
            verbose=0,
        )
        model.train(callbacks=[self], verbose=0)
        self._measure()

    def _count(self, _: torch.Tensor) -> None:
        self.evaluations += 1

    def on_epoch_end(self) -> None:
        """Measure from time to time; stop where nothing is left, or nothing is finite."""
        if self.model.opt_name == "L-BFGS":
            self.iteration = self.model.train_state.step
            self.seconds = self._before + time.perf_counter() - self._started
            self._measure()
            if self.evaluations >= self.job.iterations:
                self.model.stop_training = True
        else:
            super().on_epoch_end()
        if not math.isfinite(self.rows[-1]["relative_l2"]):
            self.model.stop_training = True

    def _measure(self) -> None:
        evaluations = self.evaluations
        started, cpu_started = time.perf_counter(), time.process_time()
        super()._measure()
        self.evaluations = evaluations  # measuring trains nothing
        self.rows[-1]["evaluations"] = float(evaluations)
        self._started += time.perf_counter() - started
        self.cpu_before += time.process_time() - cpu_started

    def chosen(self, rows: Rows) -> dict[str, float]:
        """Of these moments the one whose fit a user of the method would take."""
        if self.rule is None:
            return rows[-1]
        scored = [row for row in rows if int(row["iteration"]) in self.rule.scores]
        return min(scored, key=lambda row: self.rule.scores[int(row["iteration"])])

    def results(self, error: str) -> Measured:
        """Not a number where a run has diverged."""
        finite = [row for row in self.rows if math.isfinite(row["relative_l2"])]
        if not error and len(finite) < len(self.rows):
            error = f"not finite after {self.iteration} iterations"
        final = self.chosen(self.rows) if not error else {}
        in_time = [row for row in finite if row["evaluations"] <= self.job.iterations]
        equal = self.chosen(in_time) if not error else {}
        best = min(finite, key=lambda row: row["relative_l2"], default={})
        unknowns = {
            key.removesuffix("_relative_error"): value
            for key, value in final.items()
            if key.endswith("_relative_error")
        }
        return Measured(
            final_error=final.get("relative_l2", math.nan),
            final_iteration=int(final.get("iteration", self.iteration)),
            best_error=best.get("relative_l2", math.nan),
            best_iteration=int(best.get("iteration", 0)),
            error_at_equal_evaluations=equal.get("relative_l2", math.nan),
            evaluations=self.evaluations,
            seconds=round(self.seconds, 3),
            cpu_seconds=round(time.process_time() - self.cpu_before, 3),
            memorized=final.get("memorized", ""),
            open_fraction=final.get("open_fraction", ""),
            unknown_errors=json.dumps(unknowns),
            gate=self.gate,
            error=error,
        )


def gate_of(optimizer: Any) -> str:
    """JSON: the gate that an SNR optimizer has come to, with the package's defaults of the day;
    empty for others, and before the first step."""
    if not isinstance(optimizer, SNRAdam):
        return ""
    params = (p for group in optimizer.param_groups for p in group["params"])
    moments = next((m for p in params if (m := optimizer.moments(p)) is not None), None)
    if moments is None:
        return ""
    is_turned = any(map(optimizer.is_turned, optimizer.param_groups))
    basis = {"basis": optimizer.defaults["basis"]} if is_turned else {}
    return json.dumps(asdict(moments.gate) | basis)
