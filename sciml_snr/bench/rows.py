"""Run many configs, a worker per core or a cluster; rows are appended to a CSV file as they come.

Called again, it does what is not in the file yet.
"""

from __future__ import annotations

import contextlib
import csv
import importlib
import io
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from joblib import Parallel, delayed, effective_n_jobs, parallel_config
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from ..runs.folder import append_row, cut_torn_row, lock
from ..text_files import read_text

BACKENDS = ("loky", "ray", "dask")
"""joblib's: processes on this machine, or a cluster (they need the extra ``cluster``)."""

Row = Mapping[str, str]
"""A row of a results file."""

HOURS = 10 * 3600.0
"""The time left is that of the mean run so far, not of the last ones."""


def append_missing(
    path: Path,
    configs: Iterable[Any],
    keys: Sequence[str],
    run: Callable[[Any], dict[str, Any]],
    jobs: int | None = None,
    backend: str = "loky",
) -> None:
    """Append one row per config (a dataclass) to the CSV file, skipping those it already has.

    Args:
        path: the file; made, with its folder, where it is missing.
        configs: what to run, in this order.
        keys: the config's fields that tell it from others: the file's first columns.
        run: makes a row; called in other processes.
        jobs: runs at a time; the number of cores unless given, on a cluster all of it.
        backend: one of :data:`BACKENDS`.

    Raises:
        ValueError: there is no such backend, or it is not installed; the file is of other columns.
        OSError: another process appends to the file, or it cannot be written.
    """
    check_file(path, keys)
    configs = list(configs)
    if not missing(path, configs, keys):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with lock(path.with_name(f".{path.name}.lock"), str(path)):
        cut_torn_row(path)
        todo = missing(path, configs, keys)
        at_once = None if jobs is None else min(jobs, max(1, len(todo)))
        with _parallel(backend, at_once), _progress() as bar:
            task = bar.add_task(path.stem, total=len(todo))
            for row in _run(run, todo, backend):
                append_row(path, row)
                bar.advance(task)


def missing(path: Path, configs: Iterable[Any], keys: Sequence[str]) -> list[Any]:
    """The configs that have no row in the file yet, each once."""
    done = by_key(read(path), keys)
    wanted: dict[Any, Any] = {}
    for config in configs:
        wanted.setdefault(key_of(config, keys), config)
    return [config for key, config in wanted.items() if key not in done]


def check_file(path: Path, keys: Sequence[str], numbers: Sequence[str] = ()) -> None:
    """Refuse a file that is not one of these results.

    Args:
        path: the file, which need not exist.
        keys: columns that it must have.
        numbers: further ones, of numbers or nothing.

    Raises:
        ValueError: a column is missing, or holds something else.
    """
    if not path.exists():
        return
    header = next(csv.reader(read_text(path).splitlines()), [])
    if not header:
        return
    if absent := [key for key in (*keys, *numbers) if key not in header]:
        raise ValueError(
            f"{path} exists and has no column {', '.join(map(repr, absent))}: it holds other "
            "results. Choose another file."
        )
    _check_numbers(path, numbers)


def _check_numbers(path: Path, columns: Sequence[str]) -> None:
    for i, row in enumerate(read(path) if columns else [], 1):
        for name in columns:
            try:
                number(row[name])
            except ValueError:
                raise ValueError(
                    f"{path}: row {i} below the header has {row[name]!r} for {name}: remove it, "
                    "and it is made anew."
                ) from None


def read(path: Path) -> list[dict[str, str]]:
    """The rows of a results file, or none where there is no file yet; a last one without its end,
    which a killed process leaves, is none.

    Raises:
        ValueError: a row has another number of fields than the header; names its line.
    """
    if not path.exists():
        return []
    text = read_text(path)
    whole = text[: text.rfind("\n") + 1]
    rows = list(csv.DictReader(io.StringIO(whole, newline="")))
    for i, row in enumerate(rows, 1):
        if None in row or None in row.values():
            raise ValueError(
                f"{path}: row {i} below the header has another number of fields: remove it, and it "
                "is made anew."
            )
    return rows


def by_key(rows: Iterable[Row], keys: Sequence[str]) -> dict[tuple[str, ...], Row]:
    """The rows by what tells one from another."""
    return {tuple(row[key] for key in keys): row for row in rows}


def number(text: str) -> float:
    """A number of a results file; infinite where there is none or it is not finite."""
    value = float(text or "nan")
    return value if math.isfinite(value) else math.inf


def key_of(config: Any, keys: Sequence[str]) -> tuple[str, ...]:
    """A config's values of these fields as the file has them."""
    values = asdict(config)
    if "snr_options" in values:
        values["snr_options"] = json.dumps(values["snr_options"], sort_keys=True)
    return tuple(str(values[key]) for key in keys)


def _run(
    run: Callable[[Any], dict[str, Any]], todo: Sequence[Any], backend: str
) -> Iterator[dict[str, Any]]:
    if backend != "ray":
        work = (delayed(run)(config) for config in todo)
        yield from Parallel(return_as="generator_unordered", batch_size=1)(work)
        return
    at_once = 4 * effective_n_jobs()  # Ray's backend gives nothing before all of a call is done
    for start in range(0, len(todo), at_once):
        yield from Parallel()(delayed(run)(config) for config in todo[start : start + at_once])


@contextlib.contextmanager
def _parallel(backend: str, jobs: int | None) -> Iterator[None]:
    """joblib set to the backend."""
    if backend not in BACKENDS:
        raise ValueError(f"There is no backend {backend!r}. Choose one of: {', '.join(BACKENDS)}.")
    with contextlib.ExitStack() as stack:
        if backend == "ray":  # the cluster of RAY_ADDRESS, or one of its own
            ray, there = _needed("ray", backend), "RAY_ADDRESS" in os.environ
            ray.init(**({} if there else {"num_cpus": jobs}), ignore_reinit_error=True)
            _needed("ray.util.joblib", backend).register_ray()
        elif backend == "dask":  # the cluster of DASK_SCHEDULER_ADDRESS, or one of its own
            address = os.environ.get("DASK_SCHEDULER_ADDRESS")
            local = {} if address else {"n_workers": jobs, "threads_per_worker": 1}
            distributed = _needed("dask.distributed", backend)
            stack.enter_context(distributed.Client(address, **local))
        everything = os.cpu_count() if backend == "loky" else -1
        stack.enter_context(parallel_config(backend, n_jobs=jobs or everything))
        yield


def _needed(module: str, backend: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(
            f'The backend {backend!r} needs the extra "cluster": pip install '
            f'"sciml-snr[cluster]" ({error}).'
        ) from None


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        speed_estimate_period=HOURS,
        expand=True,
    )
