"""Functions of scattered samples: ``fit-field``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from ..runs.folder import RunFolder
from ..runs.options import FieldOptions
from ._app import app, console, noise_text, options_of, print_fits, result_paths, run_folders
from ._options import with_options


@app.command("fit-field")
@with_options(FieldOptions)
def fit_field(
    samples: Annotated[
        Path,
        typer.Argument(
            help="Samples: a CSV file with columns of coordinates, values and, if known, sigma; or "
            "an .npz file of x, y and sigma."
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Where to put the fitted values: .csv or .npz.")
    ],
    given: dict[str, Any],
    value: Annotated[
        list[str] | None,
        typer.Option(help="A column of values; repeatable [default: the last one]."),
    ] = None,
    at: Annotated[
        Path | None,
        typer.Option(help="Positions of the result: a file like that of the samples."),
    ] = None,
    grid: Annotated[
        int | None,
        typer.Option(min=1, help="So many positions along every coordinate, evenly, instead."),
    ] = None,
    drop_bad: Annotated[
        bool,
        typer.Option("--drop-bad", help="Leave out samples of which a number is NaN or missing."),
    ] = False,
    compare: Annotated[
        str | None,
        typer.Option(help="A second optimizer for comparison: adam. Result beside the first."),
    ] = None,
    out_run: Annotated[
        Path | None, typer.Option(help="Run folder [default: runs/SAMPLES-OPTIMIZER-seedSEED].")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in the run folder, as it was set.")
    ] = False,
) -> None:
    """Fit a function to scattered samples; Ctrl-C ends it early and leaves a usable result."""
    from ..fields import field, tables

    folders = run_folders(samples.stem, "field", given, compare, out_run, resume)
    optimizer = next(iter(folders))
    if at is not None and grid is not None:
        raise ValueError("Give --at or --grid, not both.")
    table = tables.read_samples(samples, value or (), drop_bad=drop_bad)
    if table.dropped:
        console.print(f"{table.dropped} samples are not complete: left out.")
    if table.sigma is not None:
        if given.get("sigma") is not None:
            raise ValueError(f"{samples} has errors of its own: leave out --sigma, or remove them.")
        given = {**given, "sigma": table.sigma}
    points = table.points if at is None else tables.read_points(at, table.coordinates)
    if points.shape[1] != table.points.shape[1]:
        raise ValueError(f"{at} has {points.shape[1]} coordinates, {samples} another number.")
    paths = result_paths(output, folders, samples, at)
    for path in paths.values():
        tables.check_field_file(path)
    fits = {}
    for name, folder in folders.items():
        goes_on = resume and (name == optimizer or RunFolder(folder, "field").holds_run)
        options = options_of(name, optimizer, given)
        fit = field.fit_field(table.points, table.values, **options, out=folder, resume=goes_on)
        fits[name] = fit
        if name == optimizer:
            told = fit.sigma if isinstance(fit.sigma, tuple) else ()
            console.print("\n".join(map(noise_text, told)) or "noise: sigma given per sample")
        if grid is not None:
            axes = fit.grid_axes(grid)
            points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(axes))
        tables.write_field(paths[name], points, fit(points), table.coordinates, table.outputs)
        console.print(f"{name}: {paths[name]}, figure {folder / 'figure.png'}", soft_wrap=True)
        if fit.training.interrupted:
            console.print("Interrupted. To go on, repeat with --resume.")
            break
    print_fits(fits)
