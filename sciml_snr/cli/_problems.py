"""Equations: ``problems``, ``solve``, ``compare``."""

from __future__ import annotations

import os
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from ..measure.intervals import statement
from ..runs.options import ProblemConfig
from ._app import app, console, to_stderr
from ._options import with_options

if TYPE_CHECKING:
    from ..problems import Problem
    from ..runs.run import Summary


@app.command("problems")
def list_problems() -> None:
    """List the problems that `solve` and `compare` know."""
    from ..problems import PROBLEMS
    from ..runs import run  # noqa: F401 (imports DeepXDE without its announcement)

    table = Table()
    table.add_column("name", no_wrap=True)
    for column in ("equation", "CSV columns", "unknown", "default noise", "iterations"):
        table.add_column(column, overflow="fold")
    for name, cls in PROBLEMS.items():
        noise = "real data" if not cls.synthetic else f"{cls.noise:g} on {cls.points} points"
        table.add_row(
            name,
            cls.equation,
            ", ".join((*cls.coordinates, *cls.measured)),
            ", ".join(cls.unknown_names) or "-",
            noise,
            str(cls.iterations),
        )
    console.print(table)


Name = Annotated[str, typer.Argument(help="A problem's name: see `sciml-snr problems`.")]


@app.command()
@with_options(ProblemConfig)
def solve(
    name: Name,
    given: dict[str, Any],
    out: Annotated[
        Path | None, typer.Option(help="Run folder [default: runs/NAME-OPTIMIZER-seedSEED].")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in the run folder, as it was set.")
    ] = False,
) -> None:
    """Train one problem; Ctrl-C ends it early and leaves a usable run."""
    from ..runs import run

    config = ProblemConfig(name, **given)
    folder = out or Path("runs") / run.run_name(config)
    if config.data is not None and not resume:
        _warn_of_own_data(config.resolved().build())
    summary = run.solve(config, folder, resume=resume)
    _print_summaries(f"{name}: {folder}", [summary])
    _print_unknowns(summary)
    if summary.ended_by is not None:
        reason = summary.ended_by.removeprefix("done: ")
        console.print(f"Ended after {summary.iterations} iterations: {reason}.")
    if summary.interrupted:
        console.print(f"Interrupted after {summary.iterations} iterations. To go on, repeat with:")
        console.print(f"  --out {folder} --resume", soft_wrap=True)
    console.print(f"Figure: {folder / 'figure.png'}", soft_wrap=True)


@app.command()
@with_options(ProblemConfig, without=("optimizer", "seed"))
def compare(
    name: Name,
    given: dict[str, Any],
    optimizers: Annotated[str, typer.Option(help="Names, separated by commas.")] = "adamw,snr_adam",
    seeds: Annotated[int, typer.Option(min=1, max=10_000, help="Number of seeds: 0, 1, ...")] = 1,
    out: Annotated[Path | None, typer.Option(help="Folder [default: runs/compare-NAME].")] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Runs at a time [default: the number of cores].")
    ] = None,
) -> None:
    """Run optimizers side by side; finished runs in the folder are kept, so it can be repeated."""
    from ..runs import run

    folder = out or Path("runs") / f"compare-{name}"
    names = [text.strip() for text in optimizers.split(",")]
    options = given.pop("snr_options", None)
    if options and not any(optimizer.startswith("snr_") for optimizer in names):
        raise ValueError(
            f"--snr-option is for snr_adam, snr_soap and snr_gn, not for {optimizers}."
        )
    configs = [
        ProblemConfig(
            name,
            optimizer=optimizer,
            seed=seed,
            snr_options=options if optimizer.startswith("snr_") else None,
            **given,
        )
        for optimizer in names
        for seed in range(seeds)
    ]
    summaries = run.compare(configs, folder, jobs=jobs or os.cpu_count() or 1)
    _print_summaries(f"{name}, {seeds} seed(s), medians: {folder}", summaries)
    console.print(f"Figure: {folder / 'comparison.png'}", soft_wrap=True)


def _warn_of_own_data(problem: Problem) -> None:
    """What the numbers to come do and do not say about the user's own measurements."""
    if problem.synthetic:
        to_stderr(
            f"Note: errors are differences from {problem.name}'s built-in reference, whatever the "
            "measurements are of."
        )
    if problem.sigma() is None:
        to_stderr(
            "Note: the measurements' error is unknown, so that snr_adam falls back to the "
            "published rule, which memorizes in full-batch training. Give --noise, or a column "
            "sigma."
        )


def _print_summaries(title: str, summaries: list[Summary]) -> None:
    """One line per optimizer, medians over its runs."""
    table = Table(title=title, title_justify="left")
    for column in ("optimizer", "lr", "final", "best", "at", "memorized", "open", "time"):
        table.add_column(column, no_wrap=True)
    table.caption = (
        "final, best: relative L2 error; at: iteration of the best; memorized: share of the noise "
        "(~: guessed, see `sciml-snr memorization`); open: share of parameters that the gate lets "
        "move"
    )
    table.caption_justify = "left"
    groups: dict[str, list[Summary]] = {}
    for summary in summaries:
        groups.setdefault(summary.optimizer, []).append(summary)
    for optimizer, runs in groups.items():
        table.add_row(
            optimizer,
            "-" if runs[0].lr is None else f"{runs[0].lr:g}",
            f"{median(s.final_error for s in runs):.4f}",
            f"{median(s.best_error for s in runs):.4f}",
            f"{median(s.best_iteration for s in runs):.0f}",
            _memorized(runs),
            _percent([s.open_fraction for s in runs]),
            f"{median(s.seconds for s in runs):.0f} s",
        )
    console.print(table)


def _memorized(runs: list[Summary]) -> str:
    """As the truth says, or as guessed from the misfit."""
    if all(run.memorized is None and run.memorized_estimate is not None for run in runs):
        return "~ " + _percent([run.memorized_estimate for run in runs])
    return _percent([run.memorized for run in runs])


def _percent(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{100 * median(known):.1f} %" if known else "-"


def _print_unknowns(summary: Summary) -> None:
    """A line each: value, standard error, interval, and the reference."""
    errors = summary.unknowns_standard_error or {}
    intervals = summary.unknowns_interval or {}
    for name, value in summary.unknowns.items():
        reference = summary.unknowns_reference[name]
        difference = f"{100 * (value - reference) / reference:+.1f} %"
        found = f"{name} = {value:.4g}"
        error, both = errors.get(name), intervals.get(name)
        if error is not None and both is not None and None not in both:
            low, high = (float(end or 0) for end in both)
            found = statement(name, value, error, (low, high))
        console.print(f"{found}, reference {reference:.4g} ({difference})", soft_wrap=True)
    if summary.error_bars_note:
        to_stderr(f"Note: {summary.error_bars_note}")
