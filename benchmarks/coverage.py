"""Do the error bars hold the truth as often as they say? Over draws of the noise.

    python -m benchmarks.coverage METHOD [SEEDS] [PROBLEM ...]

appends to benchmarks/results/coverage.csv. A draw has noise, positions, network and collocation
points of its own. Methods:

- *snr_gn*, *snr_adam*, *adam*: ``sciml-snr solve`` as it comes, and linear error bars; the fits are
  kept in runs/coverage, so that bars can be made anew;
- *replicas*, *8 replicas*: 32 or 8 replicas of the same fit by ``snr_gn``;
- *ensemble*: 5 networks, each from another start, by Adam at its tuned rate, 2,500 iterations:
  mean and standard deviation over networks (B. Lakshminarayanan, A. Pritzel and C. Blundell,
  NeurIPS 2017), intervals by Student's t with 4 degrees of freedom;
- *dropout*: 5 % of the hidden units, in training and in 100 passes afterwards (D. Zhang, L. Lu,
  L. Guo and G. E. Karniadakis, J. Comput. Phys. 397 (2019) 108850); for the field only;
- *conformal*: Adam on half of the measurements, the quantile of the other half's residuals (J. Lei
  and others, J. Amer. Statist. Assoc. 113 (2018) 1094): a band for new measurements, which is
  judged here as one for the field.

The Cramer-Rao bound is that of least squares on the solution's form: what is unknown in it, besides
the coefficients, is in :data:`FORMS`.
"""

from __future__ import annotations

import json
import math
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import deepxde as dde
import numpy as np
import torch
from numpy.typing import NDArray
from sciml_snr.problems import Problem
from sciml_snr.problems.base import Observations
from sciml_snr.problems.burgers import cole_hopf
from sciml_snr.problems.lorenz import trajectory
from scipy import stats

from benchmarks import text, zoo
from benchmarks.equal_time import rivals
from benchmarks.harness import RESULTS, append_missing, read
from sciml_snr import error_bars
from sciml_snr.bench.smoothing import remade
from sciml_snr.runs.options import ProblemConfig
from sciml_snr.runs.run import Recorder, compile_model, compile_with

Array = NDArray[Any]
PATH = RESULTS / "coverage.csv"
FITS = Path(__file__).parents[1] / "runs" / "coverage"
KEYS = ("problem", "method", "seed")
METHODS = (
    "snr_gn",
    "replicas",
    "8 replicas",
    "snr_adam",
    "adam",
    "ensemble",
    "dropout",
    "conformal",
)
INVERSE = (
    "heat",
    "fisher",
    "poisson",
    "poisson_2d",
    "lorenz",
    "burgers_inverse",
    "navier_stokes",
)
REPLICAS = {"replicas": 32, "8 replicas": 8}
NETWORKS = 5
RATE = 0.05
PASSES = 100
POINTS = 1000
"""Points at which a field is judged, at most."""


@dataclass(frozen=True)
class Run:
    """One draw."""

    problem: str
    method: str
    seed: int


def _heat(problem: Any, theta: Array) -> Array:
    """Both modes' amplitudes."""
    x, t = problem.observations.points.T
    modes = [
        a * np.sin(k * np.pi * x) * np.exp(-theta[0] * (k * np.pi) ** 2 * t)
        for (k, _), a in zip(problem.modes, theta[1:], strict=True)
    ]
    return np.sum(modes, axis=0)  # type: ignore[no-any-return]


def _fisher(problem: Any, theta: Array) -> Array:
    """The front's place."""
    x, t = problem.observations.points.T
    z = np.sqrt(theta[0] / (6 * problem.diffusivity)) * (x - theta[1]) - 5 / 6 * theta[0] * t
    return (1 + np.exp(z)) ** -2.0  # type: ignore[no-any-return]


def _burgers(problem: Any, theta: Array) -> Array:
    """Nothing: the initial values are taken as known."""
    x, t = problem.observations.points.T
    scaled = cole_hopf(x[:, None], theta[0] * t[:, None], theta[1] / theta[0])
    return scaled[:, 0]


def _lorenz(problem: Any, theta: Array) -> Array:
    """The initial state."""
    path = trajectory.__wrapped__(tuple(theta[:3]), tuple(theta[3:]))
    return np.ravel(path(problem.observations.points[:, 0]).T)


def _source(problem: Any, theta: Array) -> Array:
    """The amplitude of u."""
    k, amplitude = theta
    found = [amplitude * problem.reference(problem.observations.points).ravel()]
    x = problem.source_observations.points
    u, step = problem.reference(x).ravel(), 1e-4
    curvature = sum(
        (problem.reference(x + e) + problem.reference(x - e)).ravel() - 2 * u
        for e in step * np.eye(x.shape[1])
    )
    reaction = np.tanh(amplitude * u) if x.shape[1] == 1 else (amplitude * u) ** 2
    found.append(problem.diffusivity * amplitude * curvature / step**2 + k * reaction)
    return np.concatenate(found)


def _vortices(problem: Any, theta: Array) -> Array:
    """The amplitude."""
    x, y, t = problem.observations.points.T
    decay = theta[1] * np.exp(-2 * theta[0] * t)
    return np.stack([-np.cos(x) * np.sin(y) * decay, np.sin(x) * np.cos(y) * decay], 1).ravel()


FORMS: dict[str, tuple[Callable[[Any, Array], Array], Callable[[Any], list[float]]]] = {
    "heat": (_heat, lambda p: [p.diffusivity, *(a for _, a in p.modes)]),
    "fisher": (_fisher, lambda p: [p.rate, p.front]),
    "burgers_inverse": (_burgers, lambda p: [1.0, p.viscosity]),
    "lorenz": (_lorenz, lambda p: [*p.coefficients, *p.start]),
    "poisson": (_source, lambda p: [p.rate, 1.0]),
    "poisson_2d": (_source, lambda p: [p.rate, 1.0]),
    "navier_stokes": (_vortices, lambda p: [p.viscosity, 1.0]),
}
"""The measurements by coefficients and what else is unknown, and the truth of these."""


def bounds(problem: Any) -> dict[str, float]:
    """Cramer-Rao standard errors of a problem's coefficients."""
    form, start = FORMS[problem.name]
    theta = np.array(start(problem))
    columns = []
    for i, value in enumerate(theta):
        step = 1e-5 * max(abs(value), 1e-3) * np.eye(len(theta))[i]
        columns.append((form(problem, theta + step) - form(problem, theta - step)) / step[i] / 2)
    jacobian = np.stack(columns, 1) / problem.noise
    spread = np.sqrt(np.diag(np.linalg.inv(jacobian.T @ jacobian)))
    return dict(zip(problem.unknown_names, map(float, spread), strict=False))


def fitted(problem_name: str, optimizer: str, seed: int) -> tuple[Problem, Any, float]:
    """A fit as ``sciml-snr solve`` makes it: problem, model, CPU seconds; kept once it is made."""
    path = FITS / f"{problem_name}-{optimizer}-{seed}.pt"
    config = ProblemConfig(problem=problem_name, optimizer=optimizer, seed=seed).resolved()
    problem = config.build()
    if path.exists():
        kept = torch.load(path, weights_only=False)
        dde.config.set_random_seed(seed)
        model = problem.model(problem.network())
        compile_with(model, problem, config.optimizer, config.lr, {})
        model.net.load_state_dict(kept["net"])
        with torch.no_grad():
            for name, value in kept["unknowns"].items():
                problem.unknowns[name].copy_(value)
        return problem, model, kept.get("seconds", math.nan)
    started = time.process_time()
    model = compile_model(config, problem)
    Recorder(config, problem).train(model, progress=False)
    seconds = time.process_time() - started
    FITS.mkdir(parents=True, exist_ok=True)
    unknowns = {name: v.detach() for name, v in problem.unknowns.items()}
    torch.save({"net": model.net.state_dict(), "unknowns": unknowns, "seconds": seconds}, path)
    return problem, model, seconds


def fit(run: Run) -> dict[str, Any]:
    """Train in this process, on one thread, and judge."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    nothing = dict.fromkeys(("fit_seconds", "bars_seconds", "parts", "noise_of_unknowns"), "")
    found = nothing | RULES.get(run.method, _ours)(run)
    return dict(zip(KEYS, (run.problem, run.method, str(run.seed)), strict=True)) | found


def _places(problem: Any) -> Array:
    points = problem.evaluation_points()
    chosen = np.random.default_rng(0).permutation(len(points))[:POINTS]
    return points[np.sort(chosen)]  # type: ignore[no-any-return]


def _judged(
    problem: Any, values: Array, widths: Array, intervals: dict[str, list[float]]
) -> dict[str, Any]:
    """A row: of values and half widths (n, m) of a 90 % band, and 95 % intervals of unknowns.

    Args:
        values, widths: encoded, at :func:`_places`.
        intervals: name -> [value, standard error, low, high].
    """
    columns = [problem.outputs.index(name) for name in problem.scored]
    truth = problem.encode(problem.reference(_places(problem)))[:, columns]
    error = np.abs(values[:, columns] - truth)
    size = float(np.sqrt((truth**2).mean()))
    reference = problem.truth()
    bound = bounds(problem) if problem.name in FORMS else {}
    return {
        "field_held": float((error <= widths[:, columns]).mean()),
        "field_error": float(np.sqrt((error**2).mean())) / size,
        "field_width": float(np.sqrt((widths[:, columns] ** 2).mean())) / size,
        "unknowns": json.dumps(
            {
                name: [float(f"{x:.6g}") for x in [*four, reference[name], bound[name]]]
                for name, four in intervals.items()
            }
        ),
    }


def _ours(run: Run) -> dict[str, Any]:
    replicas = REPLICAS.get(run.method)
    problem, model, seconds = fitted(run.problem, "snr_gn" if replicas else run.method, run.seed)
    started = time.process_time()
    ways: dict[str, Any] = {"method": "replicas", "replicas": replicas} if replicas else {}
    bars = error_bars(model, unknowns=problem.unknown_functions(model), **ways)
    intervals = bars.interval(0.95)
    four = {n: [u.value, u.standard_error, *intervals[n]] for n, u in bars.unknowns.items()}
    spent = time.process_time() - started
    places = _places(problem)
    parts = bars.parts(places)
    row = _judged(problem, model.predict(places), bars.quantile(0.9) * parts.total, four)
    size = {name: float(np.sqrt((part**2).mean())) for name, part in parts._asdict().items()}
    return row | {
        "fit_seconds": round(seconds, 2),
        "bars_seconds": round(spent, 2),
        "parts": json.dumps({name: float(f"{value:.4g}") for name, value in size.items()}),
        "noise_of_unknowns": json.dumps(
            {n: float(f"{u.noise:.6g}") for n, u in bars.unknowns.items()}
        ),
    }


def _adam(problem: Any, name: str, seed: int, net: Any = None) -> Any:
    """Adam at its tuned rate, on a network as wide as the zoo's."""
    case = zoo.plan().cases.get(name)
    rates = {float(row["lr"]) for row in rivals("adam").get(name, [])} or {3e-3}
    dde.config.set_random_seed(seed)
    if net is None:
        net = problem.network()
        net = remade(net, case.width, dde.nn.FNN) if case else net
    model = problem.model(net)
    compile_with(model, problem, "adam", min(rates), {})
    model.train(2500, display_every=10**9, verbose=0)
    return model


def _problem(run: Run) -> Problem:
    return ProblemConfig(problem=run.problem, seed=run.seed).resolved().build()


def _ensemble(run: Run) -> dict[str, Any]:
    started = time.process_time()
    fields, unknowns = [], []
    for i in range(NETWORKS):
        problem = _problem(run)
        model = _adam(problem, run.problem, 1000 * run.seed + i)
        places = _places(problem)
        fields.append(model.predict(places))
        unknowns.append(problem.unknown_values())
    factor = stats.t(NETWORKS - 1).ppf([0.95, 0.975])
    four = {}
    for name in problem.unknown_names:
        every = [one[name] for one in unknowns]
        middle, spread = float(np.mean(every)), float(np.std(every, ddof=1))
        ends = middle - factor[1] * spread, middle + factor[1] * spread
        four[name] = [middle, spread, *ends]
    row = _judged(problem, np.mean(fields, 0), factor[0] * np.std(fields, 0, ddof=1), four)
    return row | {"fit_seconds": round(time.process_time() - started, 2)}


class Dropping(dde.nn.FNN):  # type: ignore[misc]
    """A network that drops a share of its hidden units, in every pass."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """As the network without, but for the drops."""
        x = inputs if self._input_transform is None else self._input_transform(inputs)
        for linear in self.linears[:-1]:
            x = torch.nn.functional.dropout(self.activation(linear(x)), RATE, training=True)
        x = self.linears[-1](x)
        return x if self._output_transform is None else self._output_transform(inputs, x)


def _dropout(run: Run) -> dict[str, Any]:
    started = time.process_time()
    problem = _problem(run)
    case = zoo.plan().cases.get(run.problem)
    dde.config.set_random_seed(run.seed)
    like = problem.network()
    net = remade(like, case.width if case else problem.width, Dropping)
    model = _adam(problem, run.problem, run.seed, net)
    places = _places(problem)
    fields = [model.predict(places) for _ in range(PASSES)]
    widths = stats.norm.ppf(0.95) * np.std(fields, 0, ddof=1)
    row = _judged(problem, np.mean(fields, 0), widths, {})
    return row | {"fit_seconds": round(time.process_time() - started, 2)}


def _conformal(run: Run) -> dict[str, Any]:
    started = time.process_time()
    whole = _problem(run)
    order = np.random.default_rng(run.seed).permutation(len(whole.observations))
    first, second = np.array_split(order, 2)
    problem = _problem(run)
    observed = whole.observations
    parts = {name: None if part is None else part[first] for name, part in vars(observed).items()}
    problem.observations = Observations(**parts)
    model = _adam(problem, run.problem, run.seed)
    fit = whole.fit_of_measured(lambda points: whole.predict(model, points))
    held = np.abs(fit - whole.encode(observed.values))[second]
    level = min(1.0, 0.9 * (1 + 1 / len(held)))
    places = _places(whole)
    values = model.predict(places)
    widths = np.full(values.shape[1], math.inf)  # of what is not measured it says nothing
    widths[: len(whole.measured)] = np.quantile(held, level, axis=0)
    row = _judged(whole, values, np.broadcast_to(widths, values.shape), {})
    return row | {"fit_seconds": round(time.process_time() - started, 2)}


RULES = {"ensemble": _ensemble, "dropout": _dropout, "conformal": _conformal}


def rows_of(method: str) -> list[dict[str, str]]:
    """A method's rows."""
    return [dict(row) for row in read(PATH) if row["method"] == method]


def _intervals(rows: list[dict[str, str]]) -> dict[str, list[list[float]]]:
    """Name of a coefficient -> [value, standard error, low, high, truth, bound] of each draw."""
    found: dict[str, list[list[float]]] = {}
    for row in rows:
        for name, six in json.loads(row["unknowns"]).items():
            found.setdefault(f"{row['problem']}: {name}", []).append(six)
    return found


def _held(sixes: list[list[float]]) -> list[bool]:
    return [low <= truth <= high for _, _, low, high, truth, _ in sixes]


def coefficients(method: str = "snr_gn") -> str:
    """Coefficient by coefficient: how many intervals hold, how long they are, how large the error
    is, over the bound."""
    lines, every = [], []
    for name, sixes in _intervals(rows_of(method)).items():
        held = _held(sixes)
        every += sixes
        lengths = [(high - low) / (2 * 1.96 * bound) for _, _, low, high, _, bound in sixes]
        errors = [((value - truth) / bound) ** 2 for value, _, _, _, truth, bound in sixes]
        truth = sixes[0][4]
        lines.append(
            [
                name,
                f"{sum(held)} of {len(held)}",
                f"{100 * median(six[5] for six in sixes) / truth:.2g} %",
                f"{median(lengths):.2f}",
                f"{math.sqrt(np.mean(errors)):.2f}",
                f"{math.sqrt(median(errors)) / 0.6745:.2f}",
            ]
        )
    if every:
        held = _held(every)
        lengths = [(high - low) / (2 * 1.96 * bound) for _, _, low, high, _, bound in every]
        share = f"{sum(held)} of {len(held)} ({100 * sum(held) / len(held):.0f} %)"
        lines.append(["*all*", share, "", f"{median(lengths):.2f}", "", ""])
    titles = "coefficient|95 % intervals that hold|Cramer-Rao bound|length / bound's, median|"
    titles += "root mean square error / bound|the same by the median"
    return text.table(titles, lines)


def fields() -> str:
    """Problem by problem: share of points inside the 90 % band, and its width, method by method."""
    lines = []
    for method in METHODS:
        for problem, own in text.groups(rows_of(method), "problem").items():
            held = [float(row["field_held"]) for row in own]
            error = median(float(row["field_error"]) for row in own)
            width = median(float(row["field_width"]) for row in own)
            lines.append(
                [
                    problem[0],
                    method,
                    str(len(own)),
                    f"{100 * np.mean(held):.0f} % ({100 * min(held):.0f} to {100 * max(held):.0f})",
                    f"{error:.3f}",
                    f"{width:.3f}",
                    _seconds(own, "fit_seconds"),
                    _seconds(own, "bars_seconds"),
                ]
            )
    lines.sort(key=lambda line: line[0])
    titles = "problem|method|draws|points inside the 90 % band (range over draws)|field error|"
    titles += "half width of the band|CPU seconds, fit|CPU seconds, bars"
    return text.table(titles, lines)


def methods() -> str:
    """All coefficients together, method by method; and linear over replicas."""
    lines = []
    for method in METHODS:
        own = rows_of(method)
        every = [six for sixes in _intervals(own).values() for six in sixes]
        held = [float(row["field_held"]) for row in own]
        if not own:
            continue
        share, length = "says nothing", ""
        if every:
            share = f"{100 * np.mean(_held(every)):.0f} % of {len(every)}"
            length = f"{median((s[3] - s[2]) / (2 * 1.96 * s[5]) for s in every):.2f}"
        by_problem = text.groups(own, "problem")
        means = [np.mean([float(row["field_held"]) for row in r]) for r in by_problem.values()]
        low, high = (f"{100 * x:.0f}" for x in (min(means), max(means)))
        lines.append(
            [
                method,
                str(len(own)),
                share,
                length,
                f"{100 * np.mean(held):.0f} % ({low} to {high} by problem)",
                _seconds(own, "fit_seconds"),
                _seconds(own, "bars_seconds"),
            ]
        )
    titles = "method|fits|95 % intervals of coefficients that hold|length / bound's, median|"
    titles += "points inside 90 % bands|CPU seconds, fit|CPU seconds, bars"
    return text.table(titles, lines)


def agreement() -> str:
    """Standard errors from the noise alone, of 32 replicas over linear; and what both cost."""
    linear = {(row["problem"], row["seed"]): row for row in rows_of("snr_gn")}
    eight = {(row["problem"], row["seed"]): row for row in rows_of("8 replicas")}
    lines, ratios = [], []
    for row in rows_of("replicas"):
        key = row["problem"], row["seed"]
        if key not in linear:
            continue
        own, other = (json.loads(one["noise_of_unknowns"]) for one in (row, linear[key]))
        parts = [json.loads(one["parts"])["noise"] for one in (row, linear[key])]
        found = {name: own[name] / other[name] for name in own}
        ratios += found.values()
        few = f"{float(eight[key]['bars_seconds']):.2g}" if key in eight else "-"
        lines.append(
            [
                row["problem"],
                ", ".join(f"{name} {ratio:.2f}" for name, ratio in found.items()),
                f"{parts[0] / parts[1]:.2f}",
                f"{float(row['fit_seconds']):.2g}",
                f"{float(linear[key]['bars_seconds']):.2g}",
                few,
                f"{float(row['bars_seconds']):.2g}",
            ]
        )
    if ratios:
        apart = math.exp(median(abs(math.log(ratio)) for ratio in ratios)) - 1
        lines.append(["*median difference*", f"{100 * apart:.0f} %", "", "", "", "", ""])
    titles = "problem|coefficients: replicas over linear|field: the same|CPU seconds, fit|linear|"
    return text.table(titles + "8 replicas|32 replicas", lines)


def _seconds(rows: list[dict[str, str]], name: str) -> str:
    known = [float(row[name]) for row in rows if row.get(name) not in (None, "", "nan")]
    return f"{median(known):.2g}" if known else "-"


if __name__ == "__main__":
    method, seeds, *chosen = [*sys.argv[1:], "20"] if len(sys.argv) < 3 else sys.argv[1:]
    wanted = [
        Run(problem, method, seed) for seed in range(int(seeds)) for problem in chosen or INVERSE
    ]
    append_missing(PATH, wanted, KEYS, fit, 1)
