"""The same runs before and after a redesign: equal in distribution?

    python -m benchmarks.redesign BEFORE AFTER

Two folders with results files (convection, heat, images, fit_sdf); the runs that are in both are
added to benchmarks/results/redesign.csv. Those there compare commit 00cecb5, where floors were
handed to ``step``, with the losses that know their noise. Random signs come from another generator
since, so that runs cannot agree to the bit.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from statistics import median
from typing import Any

from scipy.stats import wilcoxon

from benchmarks import text
from benchmarks.harness import KEYS, RESULTS, read

PATH = RESULTS / "redesign.csv"
CASES: dict[str, tuple[tuple[str, ...], str, str, str, str]] = {
    # file: key, method, what a setting is called by, result, its best moment
    "convection": (KEYS, "optimizer", "iterations", "final_error", "best_error"),
    "heat": (KEYS, "optimizer", "lr", "final_error", "best_error"),
    "images": (
        ("image", "noise", "seed", "method", "lr", "iterations", "sigma"),
        "method",
        "image",
        "final_psnr",
        "best_psnr",
    ),
    "fit_sdf": (
        ("shape", "points", "noise", "draw", "method", "lr", "steps", "cooldown"),
        "method",
        "shape",
        "final_chamfer",
        "best_chamfer",
    ),
}


def collect(before: Path, after: Path) -> list[dict[str, Any]]:
    """The runs that are in both folders, one row each. Options are called as they are today."""
    rows = []
    for case, (keys, method, setting, final, best) in CASES.items():
        if not (after / f"{case}.csv").exists():
            continue
        old = {tuple(row[k] for k in keys): row for row in read(before / f"{case}.csv")}
        for row in read(after / f"{case}.csv"):
            own = old.get(tuple(row[k] for k in keys))
            if own is not None and row[method].lower() != "adam":
                rows.append(
                    {
                        "case": case,
                        "setting": f"{setting} {row[setting]}",
                        "method": row[method],
                        "seed": row.get("seed", row.get("draw")),
                        "measure": final.removeprefix("final_"),
                        "final_before": own[final],
                        "final_after": row[final],
                        "best_before": own[best],
                        "best_after": row[best],
                    }
                )
    return rows


def table() -> str:
    """Final figures before and after, and how likely their differences are by chance."""
    lines = []
    groups = text.groups(read(PATH), "case", "setting", "method", "measure")
    for (case, setting, method, measure), rows in groups.items():
        before, after = (text.column(rows, f"final_{when}") for when in ("before", "after"))
        ratios = [b / a for a, b in zip(before, after, strict=True)]
        p = f"{wilcoxon(before, after).pvalue:.2f}" if len(rows) >= 5 else ""
        lines.append(
            [
                f"{case}, {setting}",
                method,
                measure.replace("_", " "),
                str(len(rows)),
                text.spread_of(rows, "final_before"),
                text.spread_of(rows, "final_after"),
                f"{median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})",
                p,
            ]
        )
    titles = "case|method|measure|runs|before, median (range)|after|after / before|p, Wilcoxon"
    return text.table(titles, lines)


if __name__ == "__main__":
    keys = ("case", "setting", "method", "seed", "measure")
    known = {tuple(row[key] for key in keys): row for row in read(PATH)}
    for row in collect(*map(Path, sys.argv[1:3])):
        known[tuple(row[key] for key in keys)] = row
    found = sorted(known.values(), key=lambda row: list(CASES).index(row["case"]))
    with PATH.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(found[0]))
        writer.writeheader()
        writer.writerows(found)
    print(table())
