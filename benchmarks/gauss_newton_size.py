"""Memory, time and error of a Gauss-Newton step over the number of rows.

    python -m benchmarks.gauss_newton_size

appends to benchmarks/results/gauss_newton_size.csv. A DeepXDE model fits noisy values of a plane
wave at so many points, float32, after 200 steps of Adam. The steps are the optimizer's; the error
is that of the gated step, in the rows it moves, against the one with all eigenvectors in float64
(from the smaller of J J^T and J^T J).
"""

from __future__ import annotations

import resource
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from statistics import median
from typing import Any

import deepxde as dde
import numpy as np
import torch

import sciml_snr
from benchmarks import text
from benchmarks.harness import RESULTS, append_missing, read
from sciml_snr.deepxde.jacobian import ModelRows
from sciml_snr.gauss_newton import EXACT_ROWS, LEFT_OUT
from sciml_snr.spectrum import Exact
from sciml_snr.step_size import estimate
from sciml_snr.tangent import Tangent

PATH = RESULTS / "gauss_newton_size.csv"
KEYS = ("rows", "width")
SIZES = ((1000, 32), (4000, 32), (20_000, 32), (1000, 64), (4000, 64), (20_000, 64))
EXACT_SIDE = 5000
"""The smaller side of a Jacobian up to which all eigenvectors are found."""
STEPS = 4


@dataclass(frozen=True)
class Run:
    """One run."""

    rows: int
    width: int


def model_of(rows: int, width: int) -> Any:
    """Noisy values at so many points, rows of an equation at some."""
    rng = np.random.default_rng(0)
    points = rng.uniform(-1, 1, (rows, 2)).astype(np.float32)
    clean = np.sin(4 * points[:, :1] - 2 * points[:, 1:])
    values = (clean + rng.standard_normal((rows, 1))).astype(np.float32)
    measured = sciml_snr.NoisyPointSetBC(points, values, sigma=1.0)

    def equation(x: Any, u: Any) -> Any:
        return dde.grad.jacobian(u, x, j=0) + 2 * dde.grad.jacobian(u, x, j=1)

    square = dde.geometry.Rectangle([-1, -1], [1, 1])
    data = dde.data.PDE(square, equation, [measured], num_domain=200)
    net = dde.nn.FNN([2, width, width, width, 1], "tanh", "Glorot uniform")
    return dde.Model(data, net)


def fit(run: Run) -> dict[str, Any]:
    """Measured in a process of its own: peak memory is a process's."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(_fit, run).result()


def _fit(run: Run) -> dict[str, Any]:
    """Four steps, and the error of the one that would be next."""
    torch.set_num_threads(1)
    dde.config.set_default_float("float32")
    dde.config.set_random_seed(0)
    small = model_of(800, run.width)
    small.compile("adam", lr=3e-3, verbose=0)
    small.train(200, display_every=10**9, verbose=0)
    model = model_of(run.rows - 200, run.width)
    model.net = small.net
    before = _peak()
    model.compile("snr_gn", verbose=0)
    seconds = []
    for _ in range(STEPS):
        started = time.process_time()
        model.train(1, display_every=10**9, verbose=0)
        seconds.append(time.process_time() - started)
    peak, stats = _peak() - before, model.opt.stats()
    weights = sum(p.numel() for p in model.net.parameters())
    return {
        "rows": run.rows,
        "width": run.width,
        "parameters": weights,
        "rank": stats.rank,
        "left_out": f"{stats.left_out:.2g}",
        "seconds": round(median(seconds), 3),
        "gigabytes": round(peak, 3),
        **_errors(model, min(run.rows, weights)),
    }


def _peak() -> float:
    """Peak memory of this process so far, in GB."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e9


def _errors(model: Any, side: int) -> dict[str, Any]:
    """Of the step in the rows that it moves: of this one, and with all vectors in float32."""
    if side > EXACT_SIDE:
        return {"error": "", "error_float32": ""}
    rows, mu = ModelRows(model, "MSE"), model.opt._memory["damping"]
    batch = model.data.train_next_batch(None)
    rows.take(batch[0], batch[1], None)
    rows.draw(0)
    system = rows.system()
    wide = system.jacobian.double()
    exact = Tangent(system._replace(jacobian=wide), 1.25, "monotone", True, spectrum=_all(wide))
    expected = wide @ exact.step(mu)[0]

    def error(tangent: Tangent) -> str:
        change = wide @ tangent.step(mu)[0] - expected
        return f"{float(change.norm() / expected.norm()):.2g}"

    options = (1.25, "monotone", True)
    left_out = LEFT_OUT * mu if len(system.rows) > EXACT_ROWS else None
    found = {"error": error(Tangent(system, *options, left_out))}
    small = len(wide) <= EXACT_SIDE
    return {**found, "error_float32": error(Tangent(system, *options)) if small else ""}


def _all(wide: torch.Tensor) -> Exact:
    """All eigenvectors, from the smaller side."""
    if len(wide) <= wide.shape[1]:
        return Exact(wide)
    values, vectors = torch.linalg.eigh(wide.T @ wide)
    kept = values > 1e-14 * values[-1]
    found = object.__new__(Exact)
    found._jacobian, found.left_out = wide, 0.0
    found.values = values[kept]
    found.basis = wide @ (vectors[:, kept] / found.values.sqrt())
    return found


def table() -> str:
    """Every size."""
    lines = []
    for row in map(dict, read(PATH)):
        memory, seconds = estimate(int(row["rows"]), int(row["parameters"]))
        lines.append(
            [
                f"{int(row['rows']):,}",
                f"{int(row['parameters']):,}",
                row["rank"],
                f"{float(row['gigabytes']):.2f} ({memory:.2f})",
                f"{float(row['seconds']):.2f} ({seconds:.1f})",
                row["left_out"],
                row["error"],
                row["error_float32"],
            ]
        )
    titles = "rows|parameters|eigenvectors|peak memory in GB (estimate)|CPU seconds a step "
    titles += "(estimate)|trace left out over damping|error|error of all, in float32"
    return text.table(titles, lines)


if __name__ == "__main__":
    append_missing(PATH, [Run(*size) for size in SIZES], KEYS, fit, 1)
    print(table())
