"""Benchmarks: ``bench``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from ._app import app, console, to_stderr


@app.command()
def bench(
    file: Annotated[
        Path, typer.Argument(help="TOML file: problems, methods, learning rates, seeds.")
    ],
    out: Annotated[
        Path, typer.Option(help="CSV file; rows are appended, those it has are not made again.")
    ],
    jobs: Annotated[
        int | None,
        typer.Option(min=1, help="Runs at a time [default: the cores; of a cluster, all]."),
    ] = None,
    backend: Annotated[
        str, typer.Option(help="loky (processes on this machine), ray or dask.")
    ] = "loky",
) -> None:
    """Compare methods on problems, at several learning rates and seeds; can be repeated to go on.

    The file's format: docs/how-to/compare.md.
    """
    from ..bench import KEYS, Job, append_missing, missing, read, read_plan, run_job, tables
    from ..bench.rows import check_file
    from ..bench.training import COLUMNS

    plan = read_plan(file)
    check_file(out, COLUMNS, tables.COLUMNS)
    for (problem, method), reason in plan.skipped.items():
        to_stderr(f"Skipped: {method} on {problem}, because {reason}.")
    every: list[Job] = []
    while len(found := list(plan.jobs(read(out)))) > len(every):
        every = found  # and more, once the learning rates have been tried
        left = len(missing(out, every, KEYS))
        what = " to try the learning rates" if set(plan.seeds) - {j.seed for j in every} else ""
        console.print(
            f"{len(every)} runs{what}, of which {len(every) - left} are in {out} already."
        )
        append_missing(out, every, KEYS, run_job, jobs, backend)
    rows = tables.comparable(read(out), every)
    if tables.reference(rows) is not None:
        table = Table(*tables.OVERALL, caption=tables.OVERALL_CAPTION, caption_justify="left")
        for cells in tables.overall_cells(rows):
            table.add_row(*cells)
        console.print(table)
