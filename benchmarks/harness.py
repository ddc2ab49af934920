"""Run many configs, a worker per core; rows are appended to a CSV file as they come.

Called again, it does what is not in the file yet.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("DDE_BACKEND", "pytorch")

import torch
from joblib import Parallel, delayed
from rich.progress import track

from sciml_snr._runs import append_row
from sciml_snr.run import OPTIMIZERS, Recorder, RunConfig, compile_model

RESULTS = Path(__file__).parent / "results"
THRESHOLDS = (0.4, 0.3, 0.2)
KEYS = ("problem", "optimizer", "lr", "iterations", "seed", "snr_options")


def append_missing(
    path: Path,
    configs: Iterable[Any],
    keys: Sequence[str],
    run: Callable[[Any], dict[str, Any]],
    jobs: int | None = None,
) -> None:
    """Append one row per config (a dataclass) to the CSV file, skipping those it already has."""
    done = {tuple(row[key] for key in keys) for row in read(path)}
    todo = [c for c in configs if _key(c, keys) not in done]
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = Parallel(n_jobs=jobs or os.cpu_count(), return_as="generator_unordered")(
        delayed(run)(config) for config in todo
    )
    for row in track(rows, path.stem, total=len(todo)):
        append_row(path, row)


def run_all(configs: Iterable[RunConfig], path: Path, jobs: int | None = None) -> None:
    """One row per run of a problem."""
    append_missing(path, map(resolved, configs), KEYS, run_one, jobs)


def resolved(config: RunConfig) -> RunConfig:
    """With the problem's defaults filled in; a rival's name stays."""
    known = config.optimizer if config.optimizer in OPTIMIZERS else "adam"
    return replace(replace(config, optimizer=known).resolved(), optimizer=config.optimizer)


def run_one(config: RunConfig) -> dict[str, Any]:
    """Train one config in this process, on one thread."""
    torch.set_num_threads(1)
    problem = config.build()
    if config.optimizer in OPTIMIZERS:
        model = compile_model(config, problem)
    else:
        from benchmarks.rivals import RIVALS  # needs the extra "bench"

        model = compile_model(replace(config, optimizer="adam"), problem)
        unknowns = list(problem.unknowns.values())
        assert config.lr is not None
        rival = RIVALS[config.optimizer]([*model.net.parameters(), *unknowns], config.lr)
        model.compile(
            rival,
            loss_weights=problem.loss_weights(),
            external_trainable_variables=unknowns,
            verbose=0,
        )
    recorder = Recorder(config, problem)
    recorder.train(model, progress=False)
    summary = recorder.summary()
    reached = {
        f"iterations_to_{level}": next(
            (int(row["iteration"]) for row in recorder.rows if row["relative_l2"] <= level), ""
        )
        for level in THRESHOLDS
    }
    kept = asdict(summary)
    dropped = ("optimizer", "seed", "lr", "iterations", "interrupted", "unknowns_reference")
    for name in (*dropped, "memorized_estimate"):
        kept.pop(name)
    kept["unknowns"] = json.dumps(kept["unknowns"])
    return dict(zip(KEYS, _key(config, KEYS), strict=True)) | kept | reached


def read(path: Path) -> list[dict[str, str]]:
    """The rows of a results file, or none where there is no file yet."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _key(config: Any, keys: Sequence[str]) -> tuple[str, ...]:
    values = asdict(config)
    if "snr_options" in values:
        values["snr_options"] = json.dumps(values["snr_options"], sort_keys=True)
    return tuple(str(values[key]) for key in keys)
