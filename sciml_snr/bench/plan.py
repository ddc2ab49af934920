"""A benchmark as one TOML file: problems, methods, learning rates, seeds.

.. code-block:: toml

    seeds = [0, 1, 2]
    tuning_seeds = [0]            # left out: all of them
    lrs = [1e-3, 3e-3]            # of methods that do not name their own
    iterations = 2000             # of problems that do not name their own
    width = 32                    # neurons of hidden layers, likewise; left out: the problem's

    [problems.convection]
    [problems.loud]
    problem = "convection"        # left out: the table's name
    options = { noise = 2.0, points = 100 }

    [methods.adam]
    [methods."Adam, 10 % held out"]
    optimizer = "adam"            # left out: the table's name
    variant = "held_out"
    [methods."hard gate"]
    optimizer = "snr_adam"
    options = { floor = "stream", gate = "hard" }
    lrs = [1e-2]

All learning rates are tried on the tuning seeds, and only the best of them on the others (of plain
Adam also the one of its best moment). Everything is checked before anything runs.
"""

from __future__ import annotations

import inspect
import json
import math
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from ..problems import PROBLEMS, Problem
from ..runs.options import PROBLEM_OPTIMIZERS, ProblemConfig
from ..text_files import read_text
from .rivals import RIVALS, check_packaged
from .rows import Row, by_key, key_of, number
from .smoothing import check_one_output, remade
from .stopping import SHARE, check_sigma_known, conditions_of

VARIANTS = {
    "held_out": "stopped at the lowest error on 10 % of the measurements, held out of training",
    "discrepancy": "stopped when the misfit is the noise's",
    "sure": "stopped at the lowest risk, estimated with a twin",
    "smoothed": "on measurements smoothed by a Gaussian process",
    "dropout": "with dropout, the mean of 50 passes",
    "lbfgs": "then L-BFGS, for the last fifth of the gradient evaluations",
    "resampled": "with points of the equation drawn anew every ten iterations",
}
"""What can be done around an optimizer, one at a time."""

KEYS = (
    *("problem", "method", "lr", "seed", "iterations", "width", "setting"),
    *("optimizer", "options", "variant"),
)
"""What tells a row from another, and its first columns."""


@dataclass(frozen=True)
class Job:
    """One run. ``problem`` and ``method`` are the file's names for them."""

    problem: str
    method: str
    lr: float
    seed: int
    iterations: int
    width: int
    """0 is the problem's own network."""
    setting: str
    """JSON: the problem's registered name, and arguments that are not its defaults."""
    optimizer: str
    options: str
    """JSON: options of set_SNR_options that the file names; empty for the package's defaults."""
    variant: str

    def build(self) -> Problem:
        """The problem with its measurements, on a network of the width."""
        options = json.loads(self.setting)
        return _build(options.pop("problem"), options, self.seed)


@dataclass(frozen=True)
class Case:
    """A problem as the file states it."""

    problem: str
    options: dict[str, Any]
    iterations: int
    width: int


@dataclass(frozen=True)
class Method:
    """A method as the file states it."""

    optimizer: str
    options: dict[str, Any]
    lrs: tuple[float, ...]
    variant: str


@dataclass(frozen=True)
class Plan:
    """A checked file."""

    seeds: tuple[int, ...]
    tuning_seeds: tuple[int, ...]
    """Those at which every learning rate is tried."""
    cases: dict[str, Case]
    methods: dict[str, Method]
    skipped: dict[tuple[str, str], str]
    """(problem, method) -> why there is no such run."""

    def jobs(self, rows: Iterable[Row] = ()) -> Iterator[Job]:
        """Seed by seed, then method by method, so that a stop leaves whole comparisons.

        Args:
            rows: those made so far. Seeds that are not for tuning follow where, of a problem and a
                method, all rows of the tuning seeds are among them.
        """
        made = by_key(rows, KEYS)
        for seed in sorted(self.seeds, key=lambda seed: seed not in self.tuning_seeds):
            for name, method in self.methods.items():
                for label, case in self.cases.items():
                    if (label, name) not in self.skipped:
                        lrs = method.lrs
                        if seed not in self.tuning_seeds:
                            lrs = self._best_rates(label, name, made)
                        for lr in lrs:
                            yield self._job(label, case, name, method, lr, seed)

    def _best_rates(
        self, label: str, name: str, made: Mapping[tuple[str, ...], Row]
    ) -> tuple[float, ...]:
        """Of the lowest median final error on the tuning seeds and, as the oracle needs of plain
        Adam, of the lowest median error at the best moment; none where a row is missing."""
        case, method = self.cases[label], self.methods[name]
        columns = ["final_error"]
        if method.optimizer == "adam" and not method.variant:
            columns.append("best_error")
        grid: dict[float, list[Row]] = {}
        for lr in method.lrs:
            jobs = [self._job(label, case, name, method, lr, seed) for seed in self.tuning_seeds]
            keys = [key_of(job, KEYS) for job in jobs]
            if not made.keys() >= set(keys):
                return ()
            grid[lr] = [made[key] for key in keys]

        def lowest(column: str) -> float:
            return min(grid, key=lambda lr: median(number(row[column]) for row in grid[lr]))

        return tuple(sorted(set(map(lowest, columns))))

    @staticmethod
    def _job(label: str, case: Case, name: str, method: Method, lr: float, seed: int) -> Job:
        options = json.dumps(method.options, sort_keys=True) if method.options else ""
        setting = json.dumps({"problem": case.problem, **case.options}, sort_keys=True)
        return Job(
            problem=label,
            method=name,
            lr=lr,
            seed=seed,
            iterations=case.iterations,
            width=case.width,
            setting=setting,
            optimizer=method.optimizer,
            options=options,
            variant=method.variant,
        )


def read_plan(path: str | Path) -> Plan:
    """Read and check a file; every problem is built once.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: something in it is wrong; the message names file, table and key.
    """
    path = Path(path)
    try:
        table = tomllib.loads(read_text(path))
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not TOML: {error}") from None
    top = _Table(path, "", table)
    top.allow("seeds", "tuning_seeds", "lrs", "iterations", "width", "problems", "methods")
    seeds = top.seeds("seeds")
    tuning = top.seeds("tuning_seeds") if "tuning_seeds" in top.values else seeds
    if other := [seed for seed in tuning if seed not in seeds]:
        raise top.wrong("tuning_seeds", f"has {other[0]}, which is not among the seeds.")
    cases = {name: _case(t, top, name) for name, t in top.tables("problems")}
    methods = {name: _method(t, top, name) for name, t in top.tables("methods")}
    built = {name: _tried(path, name, case, seeds[0]) for name, case in cases.items()}
    skipped = {
        (label, name): reason
        for name, method in methods.items()
        for label, problem in built.items()
        if (reason := impossible(method, problem))
    }
    return Plan(seeds, tuning, cases, methods, skipped)


def impossible(method: Method, problem: Problem) -> str | None:
    """Why the method cannot be used on the problem; None where it can."""
    conditions = conditions_of(problem)
    try:
        if method.variant in ("discrepancy", "sure") or method.options.get("floor") == "label":
            check_sigma_known(conditions)
        if method.variant == "smoothed":
            check_one_output(problem)
    except ValueError as error:
        return str(error)
    if method.variant == "held_out" and all(len(bc) < SHARE for bc in conditions):
        return f"there are fewer than {SHARE} measurements, and one in {SHARE} is held out"
    return None


class _Table:
    """A table of the file, with the words for what is wrong in it."""

    def __init__(self, path: Path, name: str, values: Any) -> None:
        self.path, self.name, self.values = path, name, values
        if not isinstance(values, dict):
            raise ValueError(f"{path}: {name} must be a table, got {values!r}.")

    def wrong(self, key: str, what: str) -> ValueError:
        place = f"[{self.name}], " if self.name else ""
        return ValueError(f"{self.path}: {place}{key} {what}")

    def allow(self, *keys: str) -> None:
        for key in self.values:
            if key not in keys:
                raise self.wrong(key, f"is not known here. Possible: {', '.join(keys)}.")

    def tables(self, key: str) -> list[tuple[str, _Table]]:
        found = _Table(self.path, key, self.values.get(key, {})).values
        if not found:
            raise self.wrong(key, f"has no table: there must be at least one [{key}.NAME].")
        return [(name, _Table(self.path, f"{key}.{name}", value)) for name, value in found.items()]

    def text(self, key: str, default: str, among: Any) -> str:
        found = self.values.get(key, default)
        if found not in among:
            raise self.wrong(
                key, f"is {found!r}, which there is not. Choose one of: {', '.join(among)}."
            )
        return str(found)

    def options(self) -> dict[str, Any]:
        found = self.values.get("options", {})
        if not isinstance(found, dict):
            raise self.wrong("options", f"must be a table, got {found!r}.")
        for key, value in found.items():
            if not _is_plain(value):
                what = "must be a number, a text, true, false, or a list or table of those"
                raise self.wrong(f"options.{key}", f"{what}, got {value}.")
        return found

    def whole(self, key: str, top: _Table, default: int) -> int:
        """A number >= 1, of this table or else of the file's top; or the default."""
        owner = self if key in self.values else top
        found = owner.values.get(key, default)
        if key in owner.values and not (_is_whole(found) and found >= 1):
            raise owner.wrong(key, f"must be a whole number >= 1, got {found!r}.")
        return int(found)

    def seeds(self, key: str) -> tuple[int, ...]:
        return tuple(map(int, self.numbers(key, None, whole=True, least=0)))

    def numbers(
        self, key: str, top: _Table | None, *, whole: bool = False, least: float = -math.inf
    ) -> list[float]:
        """A list of different numbers, of this table or else of the file's top."""
        owner = top if top is not None and key not in self.values else self
        found = owner.values.get(key)
        if not isinstance(found, list) or not found:
            raise owner.wrong(key, f"must be a list of at least one number, got {found!r}.")
        for value in found:
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not number or not math.isfinite(value) or value < least:
                raise owner.wrong(key, f"has {value!r}: not a number in range.")
            if whole and not _is_whole(value):
                raise owner.wrong(key, f"has {value!r}: not a whole number.")
        if len(set(found)) < len(found):
            raise owner.wrong(key, f"has a number twice: {found}.")
        return found


def _is_plain(value: Any) -> bool:
    """Whether JSON can hold it: TOML's dates and times it cannot."""
    if isinstance(value, list):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(map(_is_plain, value.values()))
    return isinstance(value, (bool, int, float, str))


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _case(table: _Table, top: _Table, name: str) -> Case:
    table.allow("problem", "options", "iterations", "width")
    problem = table.text("problem", name, PROBLEMS)
    options = table.options()
    possible = _arguments(PROBLEMS[problem])
    for key in options:
        if key not in possible:
            what = f"is no option of {problem}. Possible: {', '.join(possible)}."
            raise table.wrong(f"options.{key}", what)
    iterations = table.whole("iterations", top, PROBLEMS[problem].iterations)
    return Case(problem, options, iterations, table.whole("width", top, 0))


def _method(table: _Table, top: _Table, name: str) -> Method:
    table.allow("optimizer", "options", "lrs", "variant")
    optimizer = table.text("optimizer", name, (*PROBLEM_OPTIMIZERS, *RIVALS))
    variant = table.text("variant", "", ("", *VARIANTS))
    lrs = table.numbers("lrs", top)
    if bad := [lr for lr in lrs if lr <= 0]:
        owner = table if "lrs" in table.values else top
        raise owner.wrong("lrs", f"has {bad[0]}: a learning rate is positive.")
    options = table.options()
    if options and not optimizer.startswith("snr_"):
        raise table.wrong("options", f"are those of snr_adam and snr_soap; {optimizer} has none.")
    if variant and optimizer not in PROBLEM_OPTIMIZERS:
        raise table.wrong("variant", f"goes with one of {', '.join(PROBLEM_OPTIMIZERS)}.")
    if variant == "lbfgs" and optimizer != "adam":
        raise table.wrong("variant", 'is "lbfgs", which goes with the optimizer adam.')
    try:
        check_packaged(optimizer)
        if options:
            ProblemConfig("convection", optimizer, snr_options=options).resolved()
    except ValueError as error:
        key = "options" if options else "optimizer"
        raise table.wrong(key, f"cannot be used: {error}") from None
    return Method(optimizer, options, tuple(map(float, lrs)), variant)


def _tried(path: Path, name: str, case: Case, seed: int) -> Problem:
    """The problem, built once to see that it can be."""
    try:
        problem = _build(case.problem, case.options, seed)
        remade(problem.network(), case.width)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: [problems.{name}], options cannot be used: {error}") from None
    return problem


def _build(name: str, options: Mapping[str, Any], seed: int) -> Problem:
    return PROBLEMS[name](seed=seed, **options)


def _arguments(cls: type[Problem]) -> list[str]:
    """What a problem's constructor takes, but for data and seed."""
    found: dict[str, None] = {}
    for base in cls.__mro__:
        if "__init__" in vars(base) and issubclass(base, Problem):
            for name, parameter in inspect.signature(vars(base)["__init__"]).parameters.items():
                if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
                    found[name] = None
    return [name for name in found if name not in ("seed", "observations", "source")]
