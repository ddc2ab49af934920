"""What to take, and what it costs: the tables of the pages that say so, from the results files."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from statistics import median

from benchmarks import equal_time, text, zoo
from benchmarks.harness import RESULTS, read
from sciml_snr.bench import tables

ITERATIONS = 2500
"""Of the zoo, and of the times in the first table."""
MOMENTS = (1000, 1500, 2000, 2500, 3000)
GAUSS_NEWTON = '`"snr_adam"`, then `"snr_gn"`'
WEIGHTS = "yours, else `balanced_weights`"


def which_one() -> str:
    """One line a case: optimizer, learning rate, loss weights, budget, time on one core."""
    lines = [
        [
            "noisy measurements and an exact equation",
            "about 1,000 residuals (up to 20,000 within 4 GB)",
            GAUSS_NEWTON,
            "3e-3, then none",
            WEIGHTS,
            "400 iterations, then 500 steps at most",
            _seconds(_of_problems("coverage", "fit_seconds", method="snr_gn")),
        ],
        [
            "the same",
            'more residuals, or a model that `"snr_gn"` refuses',
            '`"snr_adam"`',
            "3e-3",
            WEIGHTS,
            f"{ITERATIONS:,} iterations; 8,000 for a sharp front",
            f"{_seconds(_of_iterations('snr_adam'))} for {ITERATIONS:,}",
        ],
        [
            "the same, for a quick look",
            "any",
            '`"snr_adam"` with `floor_every=10`',
            "3e-3",
            WEIGHTS,
            f"{ITERATIONS:,} iterations, not more",
            _seconds(_of_iterations("snr_adam, floor every 10")),
        ],
        [
            "a whole field is unknown, or the equation's source is measured, too",
            "any",
            '`"adam"` or `"snr_adam"` with `betas=(0.95, 0.95), z=1.0`; compare on held-out data',
            "3e-3",
            WEIGHTS,
            f"{ITERATIONS:,} iterations",
            f"{_seconds(_of_iterations('snr_adam'))}",
        ],
        [
            "data alone, your own network, all data in every step",
            "up to 8,192 samples",
            '`"snr_adam"`',
            "1e-3",
            "none",
            "8,000 iterations",
            "not measured",
        ],
        [
            "scattered samples of a function",
            "1,000 to 10,000",
            "`fit_field`",
            "its own",
            "none",
            "its own",
            _seconds(_fields("scattered")),
        ],
        [
            "projections, blurs, averages of a function",
            "128 x 128 cells",
            "`fit_field(operator=...)`",
            "its own",
            "none",
            "its own",
            f"{_seconds(_fields('tomography'))} for {_steps('tomography')} steps",
        ],
        [
            "an image, as a function",
            "128 x 128",
            "`fit_image`",
            "its own",
            "none",
            "its own",
            _seconds([median(_column("fit_images", "cpu_seconds", method="fit_image"))]),
        ],
        [
            "the same",
            "512 x 512, color",
            "`fit_image`",
            "its own",
            "none",
            "its own: 3,072 steps",
            _seconds(
                [3.072 * median(_column("fit_images_cost", "milliseconds", method="snr_soap"))]
            ),
        ],
        [
            "a scan of a surface, as a distance",
            "20,000 points",
            "`fit_sdf`",
            "its own",
            "none",
            "its own",
            f"{_seconds(_surfaces())} for 1,000 steps of 256 points",
        ],
        [
            "a photograph, for its own sake",
            "any",
            "non-local means, not this package",
            "",
            "",
            "",
            _seconds([median(_column("fit_images", "cpu_seconds", method="NLM"))]),
        ],
        [
            "a closed mesh, for its own sake",
            "20,000 points",
            "screened Poisson, not this package",
            "",
            "",
            "",
            _seconds([median(_column("fit_sdf", "seconds", method="screened Poisson"))]),
        ],
        [
            "a smooth function of few coordinates",
            "1,000 samples",
            "a Gaussian process, not this package",
            "",
            "",
            "",
            _seconds(_fields("scattered", "Gaussian process", "1000")),
        ],
    ]
    titles = "you have|size|take|learning rate|loss weights|budget|CPU time, one core"
    return text.table(titles, lines)


def learning_rates() -> str:
    """The zoo at one rate for all problems: Adam and ours only."""
    return zoo.one_rate(("adam", "snr_adam, own coordinates", "snr_soap", "snr_soap, quick"))


def budgets() -> str:
    """Errors along the zoo's runs, over those after 2,500 iterations."""
    lines = []
    for method in ("snr_adam", "snr_adam, floor every 10"):
        own = [json.loads(r["moments"]) for r in read(equal_time.PATH) if r["method"] == method]
        runs = [run for run in own if all(str(moment) in run for moment in MOMENTS)]
        ratios = {
            moment: [
                run[str(moment)]["relative_l2"] / run[str(ITERATIONS)]["relative_l2"]
                for run in runs
            ]
            for moment in MOMENTS
        }
        means = [f"{tables.geometric_mean(found):.2f}" for found in ratios.values()]
        last = ratios[MOMENTS[-1]]
        lower = sum(ratio < 0.9 for ratio in last)
        higher = sum(ratio > 1.1 for ratio in last)
        lines.append([method, str(len(runs)), *means, str(lower), str(higher)])
    moments = [f"{moment:,}" for moment in MOMENTS]
    ends = [f"runs that gain 10 % from {ITERATIONS:,} to {MOMENTS[-1]:,}", "that lose 10 %"]
    return text.table(["method", "runs", *moments, *ends], lines)


def _column(name: str, column: str, **where: str) -> list[float]:
    rows = read(RESULTS / f"{name}.csv")
    return [
        float(row[column])
        for row in rows
        if row[column] and all(row[key] == value for key, value in where.items())
    ]


def _of_problems(name: str, column: str, **where: str) -> list[float]:
    """The median of each problem."""
    problems = {row["problem"] for row in read(RESULTS / f"{name}.csv")}
    found = [_column(name, column, problem=problem, **where) for problem in sorted(problems)]
    return [median(own) for own in found if own]


def _of_iterations(method: str) -> list[float]:
    """CPU seconds of the zoo's iterations, a problem each."""
    return [
        ITERATIONS / 1000 * float(row["milliseconds"]) * float(row[method])
        for row in read(equal_time.COSTS)
    ]


def _steps(task: str) -> str:
    """Of ours, in most rows."""
    return f"{median(_column('fields', 'steps', task=task, method='ours')):,.0f}"


def _fields(task: str, method: str = "ours", size: str | None = None) -> list[float]:
    where = {"task": task, "method": method} | ({"size": size} if size else {})
    return _column("fields", "cpu_seconds", **where)


def _surfaces() -> list[float]:
    where = {"method": "SNRSOAP", "points": "20000", "cooldown": "0.3"}
    return [median(_column("fit_sdf", "seconds", **where))]


def _seconds(found: Iterable[float]) -> str:
    """A range, in seconds or minutes."""
    low, high = min(ends := list(found)), max(ends)
    unit, scale = ("s", 1.0) if high < 120 else ("minutes", 60.0)
    least, most = (_rounded(end / scale) for end in (low, high))
    return f"{least} {unit}" if least == most else f"{least} to {most} {unit}"


def _rounded(value: float) -> str:
    return f"{value:.0f}" if value >= 1.5 else f"{value:.{max(0, -math.floor(math.log10(value)))}f}"
