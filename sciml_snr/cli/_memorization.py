"""Finished runs: ``memorization``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ._app import app, console, plain_errors


@app.command()
def memorization(
    run_dir: Annotated[Path, typer.Argument(help="Folder of a finished `solve` run.")],
    probes: Annotated[
        int, typer.Option(min=1, help="Number of twins; more make the error smaller.")
    ] = 1,
) -> None:
    """Measure how much of the noise a run has memorized, without knowing the truth.

    Repeats the run with a twin on measurements moved by random signs (Ye 1998; Ramani et al. 2008).
    """
    from .. import run

    with plain_errors():
        twins = run.memorization(run_dir, probes=probes)
    last, best = twins.rows[-1], twins.best()
    console.print(f"After {last.iteration} iterations: {last}.", soft_wrap=True)
    if best is not last:
        console.print(f"Lowest estimated risk, after {best.iteration}: {best}.", soft_wrap=True)
    if last.true_share == last.true_share:  # known: not NaN
        console.print(
            f"The truth is known here: memorized {100 * last.true_share:.1f} %, "
            f"risk {last.true_risk:.3g}.",
            soft_wrap=True,
        )
    console.print(f"Figure: {run_dir / 'memorization.png'}", soft_wrap=True)
