"""The README's table, of rows that other benchmarks have made: nothing is run here.

Twelve noisy problems, medians over five seeds. Rivals at the best of four learning rates for each
problem, chosen on seed 0 by the truth (benchmarks/zoo.toml); ours untuned, at Adam's CPU time
(benchmarks/equal_time.py, benchmarks/gauss_newton.py).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from benchmarks import gauss_newton, text, zoo
from benchmarks.equal_time import ENDING, At, rivals
from sciml_snr.bench import tables
from sciml_snr.bench.rows import number

OURS = ("snr_adam", "snr_soap", "published rule")
VARIANTS = ("adam",)
"""How names of our methods and of Adam's variants begin; the rest are rivals."""

_NAMES = {
    "Adam": "adam",
    "Adam, then L-BFGS": "adam, then L-BFGS",
    "Grokfast AdamW": "Grokfast AdamW",
    "`snr_adam`": "",
    "`snr_gn`": "",
}
"""Methods whose errors of coefficients are known, and their names in the zoo's rows."""


def columns() -> dict[str, dict[str, float]]:
    """Method -> problem -> median final error."""
    adam = rivals("adam")
    return {
        "Adam": _finals(adam),
        "its best moment": {p: _median(rows, "best_error") for p, rows in adam.items()},
        "Adam, then L-BFGS": _finals(rivals("adam, then L-BFGS")),
        best_rival(): _finals(rivals(best_rival())),
        "`snr_adam`": {
            p: median(row["relative_l2"] for row in rows)
            for p, rows in At("snr_adam").times.items()
        },
        "`snr_gn`": {p: median(o["relative_l2"] for o in rows) for p, rows in _newton().items()},
    }


def methods() -> str:
    """One line a method: means, worst case and unknown coefficients, over tuned Adam's."""
    found = columns()
    base = found["Adam"]
    lines = []
    for name, own in found.items():
        ratios = {problem: own[problem] / base[problem] for problem in base}
        worst = max(ratios, key=lambda problem: ratios[problem])
        behind = sum(ratio > 1.1 for ratio in ratios.values())
        means = [tables.geometric_mean(r) for r in (ratios.values(), sorted(ratios.values())[1:])]
        cells = [name, f"{means[0]:.2f} ({means[1]:.2f})"]
        cells.append(f"{ratios[worst]:.2f} ({worst})")
        if name == "Adam":
            cells[1:] = ["1", "1"]
        lines.append([*cells, f"{behind} of {len(ratios)}", _of_coefficients(name)])
    titles = (
        "method|error over tuned Adam's, geometric mean (without its best problem)|worst problem|"
    )
    titles += "over 10 % worse than Adam on|errors of 15 coefficients over Adam's, median"
    return text.table(titles, lines)


def problems() -> str:
    """Final errors of every problem, and its worst coefficient."""
    found = columns()
    lines = []
    for problem in found["Adam"]:
        errors = [own[problem] for own in found.values()]
        lines.append([problem, *(f"{error:.3f}" for error in errors), *_worst(problem)])
    titles = ["problem", *found, "worst coefficient off by: Adam", "`snr_gn`"]
    return text.table(titles, lines)


def best_rival() -> str:
    """The method of others, no variant of Adam's use, with the lowest geometric mean."""
    base = _finals(rivals("adam"))

    def mean(name: str) -> float:
        finals = _finals(rivals(name))
        return tables.geometric_mean([finals[p] / base[p] for p in base])

    names = [n for n in zoo.plan().methods if not n.startswith((*OURS, *VARIANTS))]
    return min(names, key=mean)


def _finals(rows: Mapping[str, Sequence[Mapping[str, str]]]) -> dict[str, float]:
    return {problem: _median(own, "final_error") for problem, own in rows.items()}


def _median(rows: Sequence[Mapping[str, str]], name: str) -> float:
    return median(number(row[name]) for row in rows)


def _newton() -> dict[str, list[dict[str, Any]]]:
    """problem -> snr_gn's figures at Adam's CPU seconds, one each seed."""
    found = gauss_newton.rows_of("default")
    return {problem: [gauss_newton.at(row, 1.0) for row in own] for problem, own in found.items()}


def _coefficients(method: str, problem: str) -> dict[str, float]:
    """Median relative error of every coefficient."""
    if method in ("`snr_adam`", "`snr_gn`"):
        rows = At("snr_adam").times[problem] if method == "`snr_adam`" else _newton()[problem]
        names = [key for key in rows[0] if key.endswith(ENDING)]
        return {
            name.removesuffix(ENDING): median(row.get(name, math.inf) for row in rows)
            for name in names
        }
    errors = [json.loads(row["unknown_errors"] or "{}") for row in rivals(_NAMES[method])[problem]]
    return {name: median(error[name] for error in errors) for name in errors[0]}


def _of_coefficients(method: str) -> str:
    """Median over all coefficients of errors over Adam's."""
    if method not in _NAMES:
        return ""
    ratios = [
        error / base
        for problem in zoo.plan().cases
        for error, base in zip(
            _coefficients(method, problem).values(),
            _coefficients("Adam", problem).values(),
            strict=True,
        )
    ]
    return f"{median(ratios):.2f}" if method != "Adam" else "1"


def _worst(problem: str) -> list[str]:
    """The largest error of a coefficient, Adam's and snr_gn's."""
    found = [_coefficients(method, problem) for method in ("Adam", "`snr_gn`")]
    return [text.percent(max(own.values()), 1) if own else "" for own in found]
