"""Finished runs of every kind: ``memorization``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..measure.intervals import statement
from ..runs.folder import blamed, read_json
from ._app import app, console

if TYPE_CHECKING:
    from ..measure.twins import Memorization


@app.command()
def memorization(
    run_dir: Annotated[
        Path,
        typer.Argument(
            help="Folder of a finished `solve`, `fit-field`, `fit-image` or `fit-sdf` run."
        ),
    ],
    probes: Annotated[
        int, typer.Option(min=1, max=1000, help="Number of twins; more make the error smaller.")
    ] = 1,
) -> None:
    """Measure how much of the noise a run has memorized, without knowing the truth.

    Repeats the run on data moved by random signs (Ye 1998; Ramani et al. 2008).
    """
    if (run_dir / "fit.npz").exists():
        console.print(f"{_of_fit(run_dir / 'fit.npz', probes)}.", soft_wrap=True)
    else:
        _of_problem(run_dir, probes)


def _of_problem(folder: Path, probes: int) -> None:
    from ..runs import run

    twins = run.memorization(folder, probes=probes)
    last, best = twins.rows[-1], twins.best()
    console.print(f"After {last.iteration} iterations: {last}.", soft_wrap=True)
    if best is not last:
        console.print(f"Lowest estimated risk, after {best.iteration}: {best}.", soft_wrap=True)
    if not math.isnan(last.true_share):
        share = f"memorized {100 * last.true_share:.1f} %"
        if abs(last.true_share) > 1:
            share = "the fit's error is of the signal, and no share of the noise can be told"
        console.print(
            f"The truth is known here: {share}, risk {last.true_risk:.3g}.",
            soft_wrap=True,
        )
    _print_bars(read_json(folder / "memorization.json")["error_bars"])
    console.print(f"Figure: {folder / 'memorization.png'}", soft_wrap=True)


def _print_bars(found: dict[str, Any] | None) -> None:
    """The unknowns, a line each."""
    for name, one in (found or {}).get("unknowns", {}).items():
        error, (low, high) = one["standard_error"], one["interval"]
        if None not in (error, low, high):
            console.print(statement(name, one["value"], error, (low, high)), soft_wrap=True)


def _of_fit(path: Path, probes: int) -> Memorization:
    from ..fields import FieldFit, ImageFit, SDFFit
    from ..fields.archive import kind_of_fit

    kind = kind_of_fit(path)
    fit: FieldFit | ImageFit | SDFFit
    if kind == "field":
        fit = FieldFit.load(path)
    else:
        fit = ImageFit.load(path) if kind == "image" else SDFFit.load(path)
    with blamed(path):
        return fit.memorization(probes=probes)
