"""Run many configs, a worker per core; rows are appended to a CSV file as they come.

Called again, it does what is not in the file yet.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ.setdefault("DDE_BACKEND", "pytorch")

import torch
from joblib import Parallel, delayed
from rich.progress import track

from sciml_snr.run import Recorder, RunConfig, append_row, compile_model

RESULTS = Path(__file__).parent / "results"
THRESHOLDS = (0.4, 0.3, 0.2)
KEYS = ("problem", "optimizer", "lr", "iterations", "seed", "snr_options")


def run_all(configs: Iterable[RunConfig], path: Path, jobs: int | None = None) -> None:
    """Append one row per config to the CSV file ``path``, skipping those it already has."""
    done = {tuple(row[key] for key in KEYS) for row in read(path)}
    todo = [c for c in (c.resolved() for c in configs) if _key(c) not in done]
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = Parallel(n_jobs=jobs or os.cpu_count(), return_as="generator_unordered")(
        delayed(run_one)(config) for config in todo
    )
    for row in track(rows, path.stem, total=len(todo)):
        append_row(path, row)


def run_one(config: RunConfig) -> dict[str, Any]:
    """Train one config in this process, on one thread."""
    torch.set_num_threads(1)
    problem = config.build()
    model = compile_model(config, problem)
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
    for name in ("optimizer", "seed", "lr", "iterations", "interrupted", "unknowns_reference"):
        kept.pop(name)
    kept["unknowns"] = json.dumps(kept["unknowns"])
    return dict(zip(KEYS, _key(config), strict=True)) | kept | reached


def read(path: Path) -> list[dict[str, str]]:
    """The rows of a results file, or none where there is no file yet."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _key(config: RunConfig) -> tuple[str, ...]:
    values = asdict(config) | {"snr_options": json.dumps(config.snr_options, sort_keys=True)}
    return tuple(str(values[key]) for key in KEYS)
