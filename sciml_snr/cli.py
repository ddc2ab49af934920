"""Command line: ``sciml-snr problems``, ``solve``, ``compare``."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from ._version import __version__

if TYPE_CHECKING:
    from .problems import Problem
    from .run import Summary

# DeepXDE is imported by the commands, not here, so that --help is quick. Its backend is ours.
os.environ.setdefault("DDE_BACKEND", "pytorch")
# Small networks: two threads are no faster than one, and many times slower on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")

app = typer.Typer(
    help="Solve noisy PDE problems without memorizing the noise.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console(markup=False)


def _version(wanted: bool) -> None:
    if wanted:
        console.print(__version__)
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command("problems")
def list_problems() -> None:
    """List the problems that `solve` and `compare` know."""
    from . import run  # noqa: F401 (imports DeepXDE without its announcement)
    from .problems import PROBLEMS

    table = Table()
    for column in ("name", "equation", "CSV columns", "unknown", "default noise", "iterations"):
        table.add_column(column, overflow="fold")
    for name, cls in PROBLEMS.items():
        noise = "real data" if not cls.synthetic else f"{cls.noise:g} on {cls.points} points"
        table.add_row(
            name,
            cls.equation,
            ", ".join((*cls.coordinates, *cls.outputs)),
            ", ".join(cls.unknown_names) or "-",
            noise,
            str(cls.iterations),
        )
    console.print(table)


Name = Annotated[str, typer.Argument(help="A problem's name: see `sciml-snr problems`.")]
Lr = Annotated[float | None, typer.Option(help="Learning rate [default: the problem's].")]
Noise = Annotated[
    float | None,
    typer.Option(
        help="Standard deviation of the measurements' error, in logs for lynx_hare [default: the "
        "problem's; of own data the sigma column]."
    ),
]
Points = Annotated[
    int | None, typer.Option(help="Number of synthetic measurements [default: the problem's].")
]
Iterations = Annotated[int | None, typer.Option(help="Budget [default: the problem's].")]
Data = Annotated[
    Path | None,
    typer.Option(help="CSV of your own measurements: coordinates, outputs, optionally sigma."),
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, ... [default: DeepXDE's choice].")]
SnrOption = Annotated[
    list[str] | None,
    typer.Option(help="Option of set_SNR_options, e.g. gate=hard or lambd=4; repeatable."),
]


@app.command()
def solve(
    name: Name,
    optimizer: Annotated[
        str, typer.Option(help="snr_adam, adam, adamw, sgd or rmsprop.")
    ] = "snr_adam",
    lr: Lr = None,
    noise: Noise = None,
    points: Points = None,
    iterations: Iterations = None,
    seed: Annotated[int, typer.Option(help="Seed of data, network and training.")] = 0,
    data: Data = None,
    out: Annotated[
        Path | None, typer.Option(help="Run folder [default: runs/NAME-OPTIMIZER-seedSEED].")
    ] = None,
    device: Device = None,
    snr_option: SnrOption = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the interrupted run in the run folder.")
    ] = False,
) -> None:
    """Train one problem; Ctrl-C ends it early and leaves a usable run."""
    from . import run

    config = run.RunConfig(
        name,
        optimizer,
        lr,
        iterations,
        noise,
        points,
        seed,
        None if data is None else str(data),
        device,
        _parse_options(snr_option),
    )
    folder = out or Path("runs") / run.run_name(config)
    with _plain_errors():
        if data is not None and not resume:
            _warn_of_own_data(config.resolved().build())
        summary = run.solve(config, folder, resume=resume)
    _print_summaries(f"{name}: {folder}", [summary])
    _print_unknowns(summary)
    if summary.interrupted:
        console.print(f"Interrupted after {summary.iterations} iterations. To go on, repeat with:")
        console.print(f"  --out {folder} --resume", soft_wrap=True)
    console.print(f"Figure: {folder / 'figure.png'}", soft_wrap=True)


@app.command()
def compare(
    name: Name,
    optimizers: Annotated[str, typer.Option(help="Names, separated by commas.")] = "adamw,snr_adam",
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds: 0, 1, ...")] = 1,
    lr: Lr = None,
    noise: Noise = None,
    points: Points = None,
    iterations: Iterations = None,
    data: Data = None,
    out: Annotated[Path | None, typer.Option(help="Folder [default: runs/compare-NAME].")] = None,
    device: Device = None,
    snr_option: SnrOption = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Runs at a time [default: the number of cores].")
    ] = None,
) -> None:
    """Run optimizers side by side; finished runs in the folder are kept, so it can be repeated."""
    from . import run

    folder = out or Path("runs") / f"compare-{name}"
    configs = [
        run.RunConfig(
            name,
            optimizer.strip(),
            lr,
            iterations,
            noise,
            points,
            seed,
            None if data is None else str(data),
            device,
            _parse_options(snr_option),
        )
        for optimizer in optimizers.split(",")
        for seed in range(seeds)
    ]
    with _plain_errors():
        summaries = run.compare(configs, folder, jobs=jobs or os.cpu_count() or 1)
    _print_summaries(f"{name}, {seeds} seed(s), medians: {folder}", summaries)
    console.print(f"Figure: {folder / 'comparison.png'}", soft_wrap=True)


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Errors that the user can mend, without a traceback."""
    try:
        yield
    except (ValueError, OSError, FloatingPointError) as error:
        _to_stderr(f"Error: {error}")
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        _to_stderr("Interrupted. `compare` goes on when repeated, `solve` with --resume.")
        raise typer.Exit(130) from None


def _to_stderr(text: str) -> None:
    Console(stderr=True, markup=False, highlight=False).print(text, soft_wrap=True)


def _warn_of_own_data(problem: Problem) -> None:
    """What the numbers to come do and do not say about the user's own measurements."""
    if problem.synthetic:
        _to_stderr(
            f"Note: errors are differences from {problem.name}'s built-in reference, whatever the "
            "measurements are of."
        )
    if problem.sigma() is None:
        _to_stderr(
            "Note: the measurements' error is unknown, so that snr_adam falls back to the "
            "published rule, which memorizes in full-batch training. Give --noise, or a column "
            "sigma."
        )


def _parse_options(pairs: Sequence[str] | None) -> dict[str, Any]:
    options = {}
    for pair in pairs or ():
        name, equals, text = pair.partition("=")
        if not equals:
            raise typer.BadParameter(f"{pair!r} is not of the form name=value.")
        try:
            options[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            options[name] = text
    return options


def _print_summaries(title: str, summaries: list[Summary]) -> None:
    """One line per optimizer, medians over its runs."""
    table = Table(title=title, title_justify="left")
    for column in ("optimizer", "lr", "final", "best", "at", "memorized", "open", "time"):
        table.add_column(column, no_wrap=True)
    table.caption = (
        "final, best: relative L2 error; at: iteration of the best; memorized: share of the noise; "
        "open: share of parameters that the gate lets move"
    )
    table.caption_justify = "left"
    groups: dict[str, list[Summary]] = {}
    for summary in summaries:
        groups.setdefault(summary.optimizer, []).append(summary)
    for optimizer, runs in groups.items():
        table.add_row(
            optimizer,
            f"{runs[0].lr:g}",
            f"{median(s.final_error for s in runs):.4f}",
            f"{median(s.best_error for s in runs):.4f}",
            f"{median(s.best_iteration for s in runs):.0f}",
            _percent([s.memorized for s in runs]),
            _percent([s.open_fraction for s in runs]),
            f"{median(s.seconds for s in runs):.0f} s",
        )
    console.print(table)


def _percent(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{100 * median(known):.1f} %" if known else "-"


def _print_unknowns(summary: Summary) -> None:
    if not summary.unknowns:
        return
    table = Table()
    for column in ("unknown", "fit", "reference", "difference"):
        table.add_column(column)
    for name, value in summary.unknowns.items():
        reference = summary.unknowns_reference[name]
        difference = f"{100 * (value - reference) / reference:+.1f} %"
        table.add_row(name, f"{value:.4g}", f"{reference:.4g}", difference)
    console.print(table)
