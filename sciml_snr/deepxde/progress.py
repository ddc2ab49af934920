"""Callbacks for ``deepxde.Model.train``."""

from __future__ import annotations

import math
import weakref
from typing import Any

from deepxde.callbacks import Callback
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

_LOOPS = ("_train_sgd", "_train_pytorch_lbfgs")
"""The methods of ``deepxde.Model`` that train, between ``on_train_begin`` and ``on_train_end``."""


def _whole() -> Column:
    """A column that is never cut: on a narrow terminal the bar and the status give way."""
    return Column(no_wrap=True, overflow="ignore")


class _Rate(ProgressColumn):
    """Iterations per second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("-- it/s" if speed is None else f"{speed:.0f} it/s")


class ProgressBar(Callback):  # type: ignore[misc]
    """A progress bar with loss, rate and time remaining.

    DeepXDE's own lines, and whatever else is printed, appear above the bar. Where the output is
    not a terminal (a file, a pipe) only the last state is printed.

    Args:
        iterations: as given to ``Model.train``; without it the bar shows rate and count only.
        description: text in front of the bar.
        console: a ``rich.console.Console``, if not standard output.
        start: iterations done before (a resumed run); the bar begins there.

    Example:
        >>> model.train(iterations=8000, callbacks=[sciml_snr.ProgressBar(8000)])
    """

    def __init__(
        self,
        iterations: int | None = None,
        description: str = "training",
        console: Console | None = None,
        start: int = 0,
    ) -> None:
        super().__init__()
        if iterations is not None and iterations < 1:
            raise ValueError(f"iterations must be at least 1, got {iterations}.")
        self.iterations = iterations
        self.description = description
        self.console = console
        self.start = start
        self._progress: Progress | None = None
        self._finalizer: Any = None
        self._losses: Any = None
        self._first_step = 0

    def on_train_begin(self) -> None:
        """Start the bar (anew, if an interrupted training left one standing)."""
        self.stop()
        self._first_step = self.model.train_state.step
        self._progress = Progress(
            TextColumn("{task.description}", table_column=_whole()),
            BarColumn(bar_width=None, table_column=Column(min_width=4, ratio=1)),
            MofNCompleteColumn(table_column=_whole()),
            _Rate(table_column=_whole()),
            TimeRemainingColumn(table_column=_whole()),
            TextColumn("left", table_column=_whole()),
            TextColumn("{task.fields[status]}", table_column=Column(no_wrap=True)),
            expand=True,
            console=self.console,
        )
        self._task = self._progress.add_task(
            self.description, total=self.iterations, completed=self.start, status=""
        )
        self._progress.start()
        self._finalizer = weakref.finalize(self, self._progress.stop)
        for loop in _LOOPS:
            self._stop_after(loop)

    def on_epoch_end(self) -> None:
        """Advance (L-BFGS: by many iterations); show the loss when there is a new one."""
        if self._progress is not None:
            done = self.start + self.model.train_state.step - self._first_step
            self._progress.update(self._task, completed=done)
            losses = self.model.train_state.loss_train
            if losses is not self._losses:
                self._losses = losses
                share = getattr(self.model.opt, "memorized", math.nan)
                known = "" if math.isnan(share) else f", memorized {100 * share:.1f} %"
                self.status(f"loss {sum(losses):.3g}{known}")
            if reason := getattr(self.model.opt, "reason", ""):
                self.status(reason)

    def on_train_end(self) -> None:
        """Leave the finished bar standing."""
        self.stop()

    def _stop_after(self, loop: str) -> None:
        """Give the terminal back however the model's loop ends: no callback hears of exceptions."""
        model, run = self.model, getattr(self.model, loop, None)
        if run is None:  # another DeepXDE: then the bar stands until the process or the next one
            return

        def run_and_stop(*args: Any, **kwargs: Any) -> None:
            try:
                run(*args, **kwargs)
            finally:
                self.stop()
                for name in _LOOPS:
                    model.__dict__.pop(name, None)  # the class's own again

        setattr(model, loop, run_and_stop)

    def status(self, text: str) -> None:
        """Show a short text behind the bar, such as the current error."""
        if self._progress is not None:
            self._progress.update(self._task, status=f"| {text}")

    def stop(self) -> None:
        """Stop drawing; safe to call at any time."""
        if self._finalizer is not None:
            self._finalizer()
            self._finalizer = None
        self._progress = None
