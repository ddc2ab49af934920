"""The application, and what all commands need: plain errors, options by name."""

from __future__ import annotations

import io
import logging
import math
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from typer.core import TyperGroup

from .._version import __version__

# DeepXDE is imported by the commands, not here, so that --help is quick. Its backend is ours.
os.environ.setdefault("DDE_BACKEND", "pytorch")
# Small networks: two threads are no faster than one, and many times slower on a busy machine.
if "OMP_NUM_THREADS" not in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # of worker processes; torch has read its own by now
    torch.set_num_threads(1)

TRACEBACK = "SCIML_SNR_TRACEBACK"
"""Environment variable: where it is set, an error is shown with its traceback."""


class PlainErrors(TyperGroup):
    """Every command of the group ends in a result or in one line, never in a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        with plain_errors():
            return super().invoke(ctx)


@contextmanager
def plain_errors() -> Iterator[None]:
    """Errors in one line, with exit code 1; SIGTERM (a scheduler's) acts as Ctrl-C.

    Warnings are a line, too, and what libraries log is not shown.
    """
    in_main = threading.current_thread() is threading.main_thread()
    if in_main:
        before = signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name may be no text, a terminal's code small
            stream.reconfigure(errors="backslashreplace")
    if not logging.getLogger().handlers:
        logging.getLogger().addHandler(logging.NullHandler())
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _warned
            yield
    except KeyboardInterrupt:
        to_stderr("Interrupted. `compare` and `bench` go on when repeated, others with --resume.")
        raise typer.Exit(130) from None
    except Exception as error:
        if type(error).__module__.split(".")[0] in ("click", "typer"):  # of the arguments
            raise
        if os.environ.get(TRACEBACK):
            raise
        to_stderr(f"Error: {in_one_line(error)}")
        raise typer.Exit(1) from None
    finally:
        if in_main:
            signal.signal(signal.SIGTERM, before)


def _warned(message: Warning | str, *_: Any, **__: Any) -> None:
    to_stderr(f"Note: {' '.join(str(message).split())}")


def in_one_line(error: Exception) -> str:
    """What went wrong; of an error that no message was written for, also how to learn more."""
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError):
        return f"There is not enough memory. {text}".rstrip()
    if isinstance(error, (ValueError, OSError, FloatingPointError)) and text:
        return text
    return (
        f"{type(error).__name__}: {text or 'no more is known'} (unexpected: please report it; "
        f"{TRACEBACK}=1 shows where)."
    )


app = typer.Typer(
    cls=PlainErrors,
    help="Solve noisy PDE problems, and fit noisy images and scans, without memorizing the noise.",
    no_args_is_help=True,
    rich_markup_mode="markdown",  # in rich's own markup, [default: ...] would be a style
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


def to_stderr(text: str) -> None:
    """A message that is no result."""
    Console(stderr=True, markup=False, highlight=False).print(text, soft_wrap=True)


def run_folders(
    stem: str,
    kind: str,
    given: Mapping[str, Any],
    compare: str | None,
    out_run: Path | None,
    resume: bool,
) -> dict[str, Path]:
    """The run folder of each optimizer of a fit: the chosen one, and the one to compare it with.

    Raises:
        ValueError: an optimizer is unknown, or both are the same.
        FileExistsError: one holds a run that is not to be resumed.
    """
    from ..runs.folder import RunFolder
    from ..runs.options import FitOptions

    optimizer = given.get("optimizer", "snr_soap")
    if compare == optimizer:
        raise ValueError(f"compare with another optimizer than {optimizer}.")
    first = out_run or Path("runs") / f"{stem}-{optimizer}-seed{given.get('seed', 0)}"
    folders = {optimizer: first}
    if compare is not None:
        folders[compare] = first.with_name(f"{first.name}-{compare}")
    for name, folder in folders.items():
        # A name is refused before any work.
        FitOptions(optimizer=name, patience=given.get("patience"))
        if not resume:
            RunFolder(folder, kind, "--out-run").check_free()
    return folders


def result_paths(output: Path, folders: Mapping[str, Path], *inputs: Any) -> dict[str, Path]:
    """Where each optimizer's result goes: the first one's to ``output``, others beside it.

    Args:
        output: as asked for.
        folders: of :func:`run_folders`.
        inputs: files that are read; what is no path is left aside.

    Raises:
        ValueError: a result would replace one of them.
    """
    first = next(iter(folders))
    paths = {
        name: output if name == first else output.with_stem(f"{output.stem}-{name}")
        for name in folders
    }
    for path in paths.values():
        for source in inputs:
            if isinstance(source, (str, Path)) and _is_same_file(path, source):
                raise ValueError(f"The result would replace {source}: give another --output.")
    return paths


def _is_same_file(path: Path, other: str | Path) -> bool:
    try:
        return os.path.samefile(path, other)
    except (OSError, ValueError):  # one is not there
        return False


def options_of(name: str, optimizer: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """What is given, for one of the optimizers of a comparison: adam has no gate.

    Args:
        name: whose options.
        optimizer: the first of the comparison.
        given: the command line's options.
    """
    options = dict(given)
    if name != optimizer:
        options["optimizer"] = name
        if name == "adam":
            options.pop("gate", None)
    return options


def noise_text(sigma: Any) -> str:
    """The noise, as told or as estimated."""
    return f"noise: {sigma}" if hasattr(sigma, "method") else f"noise: sigma {sigma:g} (given)"


def print_fits(fits: dict[str, Any]) -> None:
    """One line per optimizer: how its fit of an image or a shape ended."""
    table = Table()
    for column in ("optimizer", "lr", "steps", "misfit", "memorized", "open", "time"):
        table.add_column(column, no_wrap=True)
    table.caption = (
        "misfit: mean square of (fit - data) / sigma, about 1 for the truth; memorized: a running "
        "guess, too low while the signal is not learned, ?: there is none where errors are "
        "correlated; open: share of parameters that the gate lets move"
    )
    table.caption_justify = "left"
    for fit in fits.values():
        last = fit.training.kept_row
        opened = f"{100 * last['open_fraction']:.1f} %" if "open_fraction" in last else "-"
        table.add_row(
            fit.options.optimizer,  # of a resumed run: its own
            f"{fit.options.lr:g}",
            str(fit.training.kept_step),
            f"{last['misfit']:.3f}",
            f"{100 * last['memorized']:.1f} %" if math.isfinite(last["memorized"]) else "?",
            opened,
            f"{fit.training.seconds:.0f} s",
        )
    console.print(table)
    for fit in fits.values():
        if fit.training.kept_step < fit.training.step:
            console.print(
                f"Stopped after {fit.training.step} steps; the fit is that after "
                f"{fit.training.kept_step}, of the lowest estimated risk."
            )
