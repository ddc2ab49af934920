"""Tables from the results files, written into the documents that show them.

    python -m benchmarks.report            rewrite the tables
    python -m benchmarks.report --check    fail if one is stale

A document says where a table goes by a line ``<!-- table: NAME -->``; the table ends at
``<!-- end -->``.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median

from benchmarks.convection import METHODS, PATH, SEEDS
from benchmarks.harness import THRESHOLDS, read

ROOT = Path(__file__).parents[1]
DOCUMENTS = (ROOT / "README.md", ROOT / "docs" / "convection.md")
Rows = list[dict[str, str]]


def convection_grid() -> str:
    """Every method at every learning rate."""
    lines = [
        "| method | lr | seeds | final | best | best at | "
        + " | ".join(f"to {level}" for level in THRESHOLDS)
        + " | memorized | seconds |",
        "| --- " * 11 + "|",
    ]
    for (method, lr), rows in _groups().items():
        cells = [
            method,
            lr,
            str(len(rows)),
            _spread(rows, "final_error"),
            _spread(rows, "best_error"),
        ]
        cells += [f"{median(_column(rows, 'best_iteration')):.0f}"]
        cells += [_reached(rows, f"iterations_to_{level}") for level in THRESHOLDS]
        cells += [f"{100 * median(_column(rows, 'memorized')):.1f} %"]
        cells += [f"{median(_column(rows, 'seconds')):.0f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def convection_tuned() -> str:
    """Every method that ran on all seeds, at the learning rate with the lowest median final."""
    lines = [
        "| method | lr | final error, median (range) | best on the way | noise memorized |",
        "| --- " * 5 + "|",
    ]
    groups = _groups()
    for method in METHODS:
        own = {lr: rows for (name, lr), rows in groups.items() if name == method}
        if not own or any(len(rows) < len(SEEDS) for rows in own.values()):
            continue
        lr, rows = min(own.items(), key=lambda item: median(_column(item[1], "final_error")))
        share = f"{100 * median(_column(rows, 'memorized')):.1f} %"
        cells = [method, lr, _spread(rows, "final_error"), _spread(rows, "best_error"), share]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


TABLES: dict[str, Callable[[], str]] = {
    "convection_grid": convection_grid,
    "convection_tuned": convection_tuned,
}


def render(text: str) -> str:
    """The document with its tables made anew."""

    def table(match: re.Match[str]) -> str:
        return f"{match[1]}\n{TABLES[match[2]]()}\n{match[3]}"

    return re.sub(r"(<!-- table: (\w+) -->)\n.*?(<!-- end -->)", table, text, flags=re.DOTALL)


def stale() -> list[Path]:
    """Documents whose tables are not those of the results files."""
    return [path for path in DOCUMENTS if render(path.read_text()) != path.read_text()]


def _groups() -> dict[tuple[str, str], Rows]:
    """(method, learning rate) -> its rows, in the order of METHODS and of the learning rates."""
    rows = read(PATH)
    groups: dict[tuple[str, str], Rows] = {}
    for method, (optimizer, options) in METHODS.items():
        own = [
            row
            for row in rows
            if row["optimizer"] == optimizer and json.loads(row["snr_options"]) == options
        ]
        for row in sorted(own, key=lambda row: float(row["lr"])):
            groups.setdefault((method, row["lr"]), []).append(row)
    return groups


def _column(rows: Rows, name: str) -> list[float]:
    return [float(row[name]) for row in rows]


def _spread(rows: Rows, name: str) -> str:
    values = _column(rows, name)
    return f"{median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def _reached(rows: Rows, name: str) -> str:
    """Median number of iterations; runs that never got there count as infinite."""
    value = median(float(row[name] or "inf") for row in rows)
    return "never" if value == float("inf") else f"{value:.0f}"


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit("\n".join(f"{path} is stale: run this without --check" for path in stale()) or 0)
    for path in stale():
        path.write_text(render(path.read_text()))
