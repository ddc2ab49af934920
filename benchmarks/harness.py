"""Runs of problems as rows of results files: what the benchmarks share with ``sciml-snr bench``."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sciml_snr.bench import append_missing, read
from sciml_snr.bench.rivals import compile_any
from sciml_snr.bench.rows import key_of
from sciml_snr.runs.options import PROBLEM_OPTIMIZERS, ProblemConfig
from sciml_snr.runs.run import Recorder

__all__ = ["FIGURES", "RESULTS", "append_missing", "read", "resolved", "run_all", "run_one"]

RESULTS = Path(__file__).parent / "results"
FIGURES = Path(__file__).parents[1] / "docs/figures"
THRESHOLDS = (0.4, 0.3, 0.2)
KEPT = (
    *("final_error", "best_error", "best_iteration", "memorized", "mean_q", "open_fraction"),
    *("seconds", "unknowns"),
)
"""Of a run's summary, the columns of the results files."""
KEYS = ("problem", "optimizer", "lr", "iterations", "seed", "snr_options")


def run_all(configs: Iterable[ProblemConfig], path: Path, jobs: int | None = None) -> None:
    """One row per run of a problem."""
    append_missing(path, map(resolved, configs), KEYS, run_one, jobs)


def resolved(config: ProblemConfig) -> ProblemConfig:
    """With the problem's defaults filled in; a rival's name stays."""
    known = config.optimizer if config.optimizer in PROBLEM_OPTIMIZERS else "adam"
    return replace(replace(config, optimizer=known).resolved(), optimizer=config.optimizer)


def run_one(config: ProblemConfig) -> dict[str, Any]:
    """Train one config in this process, on one thread."""
    torch.set_num_threads(1)
    problem = config.build()
    recorder = Recorder(config, problem)
    recorder.train(compile_any(config, problem), progress=False)
    summary = recorder.summary()
    reached = {
        f"iterations_to_{level}": next(
            (int(row["iteration"]) for row in recorder.rows if row["relative_l2"] <= level), ""
        )
        for level in THRESHOLDS
    }
    kept = {name: getattr(summary, name) for name in KEPT}
    kept["unknowns"] = json.dumps(kept["unknowns"])
    return dict(zip(KEYS, key_of(config, KEYS), strict=True)) | kept | reached
