"""How runs of problems ended, in words and tables."""

from __future__ import annotations

import math
from statistics import median
from typing import TYPE_CHECKING

from rich.table import Table

from ..measure.intervals import statement, text
from ._app import console, to_stderr

if TYPE_CHECKING:
    from ..runs.summary import Summary


NEAR_END = 1.5
"""Of a larger misfit R: the fit has not found the signal, or cannot."""


def print_summaries(title: str, summaries: list[Summary]) -> None:
    """One line per optimizer, medians over its runs."""
    is_own = any(summary.final_error is None for summary in summaries)
    table = Table(title=title, title_justify="left", caption_justify="left")
    columns = ("misfit R", "held out") if is_own else ("final", "best", "at")
    for column in ("optimizer", "lr", *columns, "memorized", "open", "time"):
        table.add_column(column, no_wrap=True)
    about = (
        "misfit R: mean square of (fit - measurement) / sigma; held out: the same over "
        "measurements that a second training did not see, about 1 for a fit that predicts as well "
        "as their errors allow"
        if is_own
        else "final, best: relative L2 error; at: iteration of the best"
    )
    table.caption = (
        f"{about}; memorized: share of the noise (~: guessed from the misfit; ?: not to be told "
        "from it; `sciml-snr memorization` measures it); open: share of parameters that the gate "
        "lets move"
    )
    groups: dict[str, list[Summary]] = {}
    for summary in summaries:
        groups.setdefault(summary.optimizer, []).append(summary)
    for optimizer, runs in groups.items():
        if is_own:
            cells = [
                _middle([s.misfit for s in runs], 3),
                _middle([s.held_out_misfit for s in runs], 3),
            ]
        else:
            cells = [
                _middle([s.final_error for s in runs], 4),
                _middle([s.best_error for s in runs], 4),
                _middle([s.best_iteration for s in runs], 0),
            ]
        table.add_row(
            optimizer,
            "-" if runs[0].lr is None else f"{runs[0].lr:g}",
            *cells,
            _memorized(runs),
            _percent([s.open_fraction for s in runs]),
            f"{median(s.seconds for s in runs):.0f} s",
        )
    console.print(table)


def print_unknowns(summary: Summary) -> None:
    """A line each: value, standard error, interval, and the reference or whether it has come to
    rest; then what a second training predicted of the measurements it did not see."""
    errors = summary.unknowns_standard_error or {}
    intervals = summary.unknowns_interval or {}
    for name, value in summary.unknowns.items():
        found = f"{name} = {value:.4g}"
        error, both = errors.get(name), intervals.get(name)
        if error is not None and both is not None and None not in both:
            low, high = (float(end or 0) for end in both)
            found = statement(name, value, error, (low, high))
        reference = (summary.unknowns_reference or {}).get(name)
        if reference is not None:
            difference = f"{100 * (value - reference) / reference:+.1f} %"
            found += f", reference {reference:.4g} ({difference})"
        console.print(found + _movement(summary, name), soft_wrap=True)
    is_own, is_near = summary.final_error is None, _is_near(summary)
    for name, (sigma, error) in (summary.sigma_of_fit or {}).items() if is_own and is_near else ():
        estimate, its_error = (summary.sigma_estimate or {})[name]
        console.print(
            f"{name}: sigma {text(sigma, error)} by the residuals of the fit (before it, estimated "
            f"{text(estimate, its_error)}; to use it, repeat with --noise {sigma:.2g})",
            soft_wrap=True,
        )
    for name, rms in (summary.held_out_error or {}).items():
        count = summary.held_out_count or 1
        said = text(rms, rms / math.sqrt(2 * count)) if rms is not None else "not finite"
        console.print(
            f"{name}: held-out error {said} (root mean square of prediction - measurement at "
            f"{count} measurements that a second training did not see)",
            soft_wrap=True,
        )
    if is_own and not is_near:
        to_stderr(
            f"Note: the misfit R is {summary.misfit:.3g}, and about 1 for a fit within the "
            "measurements' errors: train on (--resume with more --iterations); if it stays, the "
            "equation, a constant, the domain or sigma does not fit the measurements."
        )
    if summary.held_out_note:
        to_stderr(f"Note: held-out error: {summary.held_out_note}")
    if summary.error_bars_note:
        to_stderr(f"Note: {summary.error_bars_note}")


def _movement(summary: Summary, name: str) -> str:
    """Whether an unknown has come to rest. Of a known truth only said where it has not."""
    is_moving = summary.is_moving(name)
    drift = (summary.unknowns_drift or {}).get(name)
    if is_moving is None or drift is None:
        return ""
    over = f"{drift:+.2g} over the last quarter of the iterations"
    if is_moving:
        return f"; still moving ({over}): train on, --resume with more --iterations"
    is_known = summary.unknowns_reference is not None
    return "" if is_known or not _is_near(summary) else f"; at rest ({over})"


def _is_near(summary: Summary) -> bool:
    """Whether the fit has found the signal, as far as the misfit says."""
    return summary.misfit is None or summary.misfit < NEAR_END


def _middle(values: list[float | None] | list[int | None], digits: int) -> str:
    known = [value for value in values if value is not None]
    return f"{median(known):.{digits}f}" if known else "-"


def _memorized(runs: list[Summary]) -> str:
    """As the truth says, or as guessed from the misfit; no number where it is none."""
    if any(run.final_error is None and run.sigma_estimate is not None for run in runs):
        return "?"  # the guess is 1 - R, and R is as wrong as the estimate of sigma
    if any(run.memorized is not None and abs(run.memorized) > 1 for run in runs):
        return "?"  # error in the signal, along the noise by chance
    if any(run.memorized is None and not run.is_telling for run in runs):
        return "?"  # so few measurements have a misfit other than 1 by chance
    if all(run.memorized is None and run.memorized_estimate is not None for run in runs):
        return "~ " + _percent([run.memorized_estimate for run in runs])
    return _percent([run.memorized for run in runs])


def _percent(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{100 * median(known):.1f} %" if known else "-"
