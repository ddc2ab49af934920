"""``sciml-snr bench`` on joblib's processes, Dask and Ray, with two workers each."""

from __future__ import annotations

import csv
import os
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from sciml_snr.bench import BACKENDS, KEYS, append_missing, read
from tests.extras.running import python

PLAN = """
seeds = [0, 1]
lrs = [1e-3]
iterations = 6
width = 4
[problems.poisson]
[methods.adam]
[methods.snr_adam]
"""

TIMES = {"seconds", "cpu_seconds"}


@dataclass
class Nap:
    """A run that takes long enough for another worker to take the next one."""

    number: int


def nap(config: Nap) -> dict[str, int]:
    time.sleep(1)
    return {"number": config.number, "process": os.getpid()}


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_workers_share_the_runs(backend: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    append_missing(path, map(Nap, range(6)), ["number"], nap, jobs=2, backend=backend)
    rows = read(path)
    assert sorted(row["number"] for row in rows) == [str(i) for i in range(6)]
    workers = {row["process"] for row in rows}
    assert len(workers) == 2 and str(os.getpid()) not in workers


@pytest.fixture(scope="module")
def expected(tmp_path_factory) -> list[dict[str, str]]:
    """The rows of this process, one after the other."""
    return rows_by("loky", tmp_path_factory.mktemp("loky"), jobs=1)


def rows_by(backend: str, folder: Path, jobs: int = 2) -> list[dict[str, str]]:
    """What the command has made, but for the times."""
    (folder / "plan.toml").write_text(PLAN)
    out = folder / "rows.csv"
    options = ["--out", out, "--jobs", jobs, "--backend", backend]
    command = "from sciml_snr.cli import app; app()"
    process = python("-c", command, "bench", folder / "plan.toml", *options)
    text, _ = process.communicate(timeout=300)
    assert process.returncode == 0, text
    rows = list(csv.DictReader(out.read_text().splitlines()))
    return sorted(({k: v for k, v in r.items() if k not in TIMES} for r in rows), key=str)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_command_makes_the_same_rows(backend: str, tmp_path: Path, expected) -> None:
    """To the rounding: in the eigenbasis it decides on directions that no gradient has shown, and
    another process may round otherwise (seen: 2e-5 of the final error)."""
    found = rows_by(backend, tmp_path)
    assert [[row[key] for key in KEYS] for row in found] == [
        [row[key] for key in KEYS] for row in expected
    ]
    assert len(found) == 4 and not any(row["error"] for row in found)
    for name in ("final_error", "best_error", "evaluations"):
        values = ([float(row[name]) for row in rows] for rows in (found, expected))
        assert next(values) == pytest.approx(next(values), rel=1e-2)
