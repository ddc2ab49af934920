"""Rows of results files as text: what the tables of the documents have in common."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any

Rows = list[dict[str, str]]

STOPS = {"discrepancy": "discrepancy", "sure": "SURE, twin", "held_out": "10 % held out"}
"""Rules that stop Adam: in names of columns, and in tables."""


def table(titles: str | Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table in Markdown; the titles may be one string with | between them."""
    titles = titles.split("|") if isinstance(titles, str) else titles
    every = [titles, ["---"] * len(titles), *lines]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in every)


def groups(rows: Rows, *names: str) -> dict[tuple[str, ...], Rows]:
    """Values of these columns -> the rows that have them, in their order."""
    found: dict[tuple[str, ...], Rows] = {}
    for row in rows:
        found.setdefault(tuple(row[name] for name in names), []).append(row)
    return found


def by_method(
    rows: Rows, methods: Mapping[str, tuple[str, dict[str, Any]]]
) -> dict[tuple[str, str], Rows]:
    """(method, learning rate) -> its rows, in the order of the methods and of the rates."""
    return {
        (method, lr): own
        for method, config in methods.items()
        for (lr,), own in sorted(
            groups(rows_of(config, rows), "lr").items(), key=lambda item: float(item[0][0])
        )
    }


def rows_of(config: tuple[str, dict[str, Any]], rows: Rows) -> Rows:
    """The rows of a method: its optimizer with its options."""
    optimizer, options = config
    return [
        row
        for row in rows
        if row["optimizer"] == optimizer and json.loads(row["snr_options"]) == options
    ]


def whole(cells: Iterable[Rows]) -> list[Rows]:
    """Those with the most rows, which are of the most seeds."""
    cells = list(cells)
    most = max(map(len, cells))
    return [rows for rows in cells if len(rows) == most]


def column(rows: Rows, name: str) -> list[float]:
    return [float(row[name]) for row in rows]


def steps(rows: Rows, name: str) -> list[float]:
    """A column where what was never reached is empty: it counts as infinite."""
    return [float(row[name] or "inf") for row in rows]


def count(value: float) -> str:
    """One of these, or a median of them."""
    return "never" if value == float("inf") else f"{value:.0f}"


def spread(values: Sequence[float]) -> str:
    """Median and, of several, lowest and highest."""
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def spread_of(rows: Rows, name: str) -> str:
    return spread(column(rows, name))


def percent(share: Any, digits: int = 0) -> str:
    return f"{100 * share:.{digits}f} %"


def memorized(rows: Rows) -> str:
    """The median share of the noise."""
    return percent(median(column(rows, "memorized")), 1)
