"""Equations: ``problems``, ``new-problem``, ``solve``, ``compare``."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from ..runs.folder import check_can_write, write_atomically
from ..runs.options import ProblemConfig
from ._app import app, console, to_stderr
from ._options import with_options
from ._summaries import print_summaries, print_unknowns

if TYPE_CHECKING:
    from ..problems import Problem

Name = Annotated[
    str,
    typer.Argument(
        help="A problem's name (see `sciml-snr problems`), or your own file (`my_problem.py`)."
    ),
]
FORMATS = ("pdf", "svg", "png")
Format = Annotated[
    str | None,
    typer.Option(help="Write the figure in this format beside the PNG: pdf or svg."),
]


@app.command("problems")
def list_problems(
    name: Annotated[
        str | None, typer.Argument(help="One of them, or your own file: what can be set.")
    ] = None,
) -> None:
    """List the problems that `solve` and `compare` know; with a name, what of it can be set."""
    from ..runs import run  # noqa: F401 (imports DeepXDE without its announcement)

    if name is not None:
        _describe(name)
        return
    from ..problems import PROBLEMS

    table = Table(show_lines=True)
    table.add_column("name", no_wrap=True)
    table.add_column("equation; columns of a CSV with your own data; unknown", overflow="fold")
    for key, cls in PROBLEMS.items():
        noise = "real data" if not cls.synthetic else f"noise {cls.noise:g} on {cls.points} points"
        parts = [f"columns {', '.join((*cls.coordinates, *cls.measured))}"]
        parts += [f"unknown {', '.join(cls.unknown_names)}"] * bool(cls.unknown_names)
        table.add_row(key, f"{cls.equation}\n{'; '.join((*parts, noise))}")
    console.print(table)
    console.print("`sciml-snr problems NAME`: what can be set. `sciml-snr new-problem`: your own.")


def _describe(name: str) -> None:
    """A problem's equation, columns, and what can be set, with its defaults."""
    from .. import problems
    from ..problems.settings import settable, shown

    cls = problems.get(name)
    console.print(f"{cls.name}: {cls.equation}", soft_wrap=True)
    console.print(f"unknown: {', '.join(cls.unknown_names) or 'nothing but the field'}")
    console.print(
        f"columns of --data: {', '.join((*cls.coordinates, *cls.measured))}, sigma if known"
    )
    console.print(f"default: {cls.iterations} iterations, learning rate {cls.lr:g}")
    found = settable(cls)
    console.print("--set, with its default:" if found else "There is nothing to --set.")
    for key, value in found.items():
        about = ""
        if key.startswith("domain."):
            about = "  (with --data)"
        elif key in cls.example_constants:
            about = "  (of the synthetic measurements)"
        console.print(f"  {key}={shown(value)}{about}")


@app.command("new-problem")
def new_problem(
    name: Annotated[str, typer.Argument(help="A name, or a file: pendulum, or pendulum.py.")],
) -> None:
    """Write a file with a problem of your own, which runs as it is and says what to change."""
    from ..runs import run  # noqa: F401 (first: it imports DeepXDE without its announcement)

    from ..problems import PROBLEMS, files  # isort: skip

    path = Path(name if files.is_file(name) else f"{name}{files.SUFFIX}")
    if path.stem in PROBLEMS:
        raise ValueError(f"There is a problem {path.stem} already: choose another name.")
    if path.exists():
        raise FileExistsError(f"{path} is there already: it is not overwritten.")
    check_can_write(path)
    write_atomically(path, files.template(path.stem, str(path)).encode())
    console.print(
        f"Wrote {path}. It runs as it is: sciml-snr solve {shlex.quote(str(path))}", soft_wrap=True
    )


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
    format: Format = None,
) -> None:
    """Train one problem; Ctrl-C ends it early and leaves a usable run."""
    from ..runs import run

    config = ProblemConfig(name, **given)
    _check_format(format)
    folder = out or Path("runs") / run.run_name(config)
    if not resume:
        _say_of_data(config.resolved())
    summary = run.solve(config, folder, resume=resume, format=format)
    print_summaries(f"{config.name}: {folder}", [summary])
    print_unknowns(summary)
    if summary.ended_by is not None:
        reason = summary.ended_by.removeprefix("done: ")
        console.print(f"Ended after {summary.iterations} iterations: {reason}.")
    if summary.interrupted:
        console.print(f"Interrupted after {summary.iterations} iterations. To go on, repeat with:")
        console.print(f"  --out {folder} --resume", soft_wrap=True)
    _print_figure(folder / "figure.png", format)


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
    format: Format = None,
) -> None:
    """Run optimizers side by side; finished runs in the folder are kept, so it can be repeated."""
    from ..runs import comparison

    _check_format(format)
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
    title = configs[0].name
    folder = out or Path("runs") / f"compare-{title}"
    _say_of_data(configs[0].resolved())
    summaries = comparison.compare(configs, folder, jobs=jobs or os.cpu_count() or 1, format=format)
    print_summaries(f"{title}, {seeds} seed(s), medians: {folder}", summaries)
    _print_figure(folder / "comparison.png", format)


def _check_format(format: str | None) -> None:
    if format is not None and format not in FORMATS:
        raise ValueError(f"There is no format {format!r}. Choose one of: {', '.join(FORMATS)}.")


def _print_figure(path: Path, format: str | None) -> None:
    for name in dict.fromkeys((path, path.with_suffix(f".{format or 'png'}"))):
        console.print(f"Figure: {name}", soft_wrap=True)


def _say_of_data(config: ProblemConfig) -> None:
    """What is taken for granted of the user's own measurements; nothing of the built-in ones."""
    if config.data is None:
        return
    problem = config.build()
    if told := _taken_for_granted(config, problem):
        to_stderr(f"Note: {told}")
    if problem.observations.sigma is not None:
        return
    found = problem.sigma_estimate
    if isinstance(found, str):
        to_stderr(
            "Note: the measurements' error is unknown, so that snr_adam falls back to the "
            "published rule, which memorizes in full-batch training. It cannot be estimated: "
            f"{found} Give --noise, or a column sigma."
        )
        return
    names = problem.measured if len(found) > 1 or len(problem.measured) == 1 else ("all",)
    told = "; ".join(f"{name}: {one}" for name, one in zip(names, found, strict=True))
    to_stderr(
        f"Note: the measurements' error is not given, and was estimated. {told}. Curvature between "
        "neighbours makes such an estimate too large. If you know better: --noise, or a column "
        "sigma."
    )


def _taken_for_granted(config: ProblemConfig, problem: Problem) -> str:
    """Known constants, domain and guesses that were not set."""
    from ..problems.settings import known_constants, shown

    named = config.settings or {}
    parts = [
        f"{name}={shown(value)}"
        for name, value in known_constants(type(problem)).items()
        if name not in named
    ]
    parts += [
        f"domain.{name}={shown(ends)}"
        for name, ends in problem.domain.items()
        if problem.ranges and f"domain.{name}" not in named
    ]
    parts += [
        f"guess.{name}={shown(value)}"
        for name, value in problem.starts.items()
        if f"guess.{name}" not in named
    ]
    return f"taken as by default, as --set says nothing else: {' '.join(parts)}." if parts else ""
