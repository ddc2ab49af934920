"""Surfaces and curves from noisy points: ours and Adam along the same run, against the truth.

    python -m benchmarks.fit_sdf [JOBS]

appends to benchmarks/results/fit_sdf.csv; `python -m benchmarks.report` makes the tables from it.
Screened Poisson reconstruction (M. Kazhdan and H. Hoppe, ACM Trans. Graph. 32 (2013) 29) is run
where pymeshlab is installed; its licence is the GPL, so that it is in no extra.
"""

from __future__ import annotations

import functools
import gzip
import importlib.resources
import importlib.util
import math
import sys
import time
from dataclasses import asdict, dataclass
from statistics import geometric_mean, median
from typing import Any

import numpy as np
import torch
import trimesh
from torch import nn

from benchmarks import text
from benchmarks.harness import RESULTS, append_missing, read
from sciml_snr import SigmaEstimate
from sciml_snr.fields import (
    Cloud,
    FitOptions,
    SDFFit,
    Training,
    Weights,
    estimate_normals,
    estimate_sigma_points,
    surface_metrics,
    train,
)
from sciml_snr.fields.archive import NetworkChoice
from sciml_snr.fields.files.columns import Array
from sciml_snr.fields.fit import ROWS
from sciml_snr.fields.isosurface import grid_axes, zero_mesh
from sciml_snr.fields.points import Frame
from sciml_snr.fields.surface import (
    COOLDOWN,
    FLOOR_EVERY,
    FULL_BATCH,
    SIZE,
    default_training,
)
from sciml_snr.fields.surface_objective import SurfaceObjective

PATH = RESULTS / "fit_sdf.csv"
POINTS = 20_000
SHAPES = ("csg", "torus", "pial", "sphere")
SMALL = {"circle": 200, "star": 200, "sphere": 1000, "torus": 1000, "csg": 1000}
"""Clouds that are in every step as a whole, the first two in the plane: their points."""
NOISES = (0.5, 1.0, 2.0)
"""Standard deviation of the points' errors along each axis, in percent of the box's diagonal."""
STEPS, BATCH_SIZE = 1000, 256
"""Half of fit_sdf's own, for time; small clouds as a whole, as there."""
RESOLUTION, SAMPLES = 48, 3000
MOMENTS = 10
"""The surface is compared with the true one so many times in a run."""
KEYS = ("shape", "points", "noise", "draw", "method", "lr", "steps", "cooldown")


@dataclass(frozen=True)
class Run:
    """One reconstruction; ``noise`` in percent of the diagonal, ``lr`` a depth for Poisson."""

    shape: str
    points: int
    noise: float
    draw: int
    method: str
    lr: float
    steps: int = STEPS
    cooldown: float = COOLDOWN


@functools.cache
def true_surface(name: str) -> trimesh.Trimesh | Array:
    """A closed mesh, or a closed polygon (m, 2), counterclockwise; longest side [-1, 1]."""
    if name in ("circle", "star"):
        angle = np.linspace(0, 2 * np.pi, 4000, endpoint=False)
        radius = 1 + 0.3 * np.cos(5 * angle) * (name == "star")
        curve = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
        return Frame.around(curve).inward(curve)
    if name == "sphere":
        mesh = trimesh.creation.icosphere(5)
    elif name == "torus":
        mesh = trimesh.creation.torus(1.0, 0.4, major_sections=128, minor_sections=64)
    elif name == "csg":
        vertices, faces = zero_mesh(_csg, grid_axes([-1.1] * 3, [1.1] * 3, 120))
        mesh = trimesh.Trimesh(vertices, faces, process=False)
    elif name == "pial":
        mesh = _pial()
    else:
        known = ", ".join({**dict.fromkeys(SHAPES), **SMALL})
        raise ValueError(f"There is no shape {name!r}. Choose one of: {known}.")
    frame = Frame.around(np.asarray(mesh.vertices))
    return trimesh.Trimesh(frame.inward(mesh.vertices), mesh.faces, process=False)


def _csg(x: Array) -> Array:
    """A cube cut to a ball, with three round holes: negative inside."""
    cube = np.abs(x).max(axis=1) - 0.8
    ball = np.linalg.norm(x, axis=1) - 1.02
    holes = [0.4 - np.linalg.norm(np.delete(x, i, axis=1), axis=1) for i in range(3)]
    found: Array = np.max([cube, ball, *holes], axis=0)
    return found


def _pial() -> trimesh.Trimesh:
    """Left cortex of fsaverage5 (B. Fischl et al., Hum. Brain Mapp. 8 (1999) 272), in nilearn."""
    import nibabel

    path = importlib.resources.files("nilearn") / "datasets/data/fsaverage5/pial_left.gii.gz"
    image = nibabel.gifti.GiftiImage.from_bytes(gzip.decompress(path.read_bytes()))
    vertices, faces = (array.data for array in image.darrays)
    return trimesh.Trimesh(vertices, faces, process=False)


@functools.lru_cache(maxsize=1)
def scan(shape: str, count: int, noise: float, draw: int) -> tuple[Array, Array, SigmaEstimate]:
    """Points with errors, estimated normals, estimated sigma: the same for every method.

    Which side is outside is taken from the truth, as a scanner knows where it stood.
    """
    truth = true_surface(shape)
    if isinstance(truth, trimesh.Trimesh):
        points, faces = trimesh.sample.sample_surface(truth, count, seed=draw)
        outward = truth.face_normals[faces]
    else:
        sides = np.roll(truth, -1, axis=0) - truth
        lengths = np.linalg.norm(sides, axis=1)
        rng = np.random.default_rng([draw, 1])
        rows = rng.choice(len(sides), size=count, p=lengths / lengths.sum())
        points = truth[rows] + rng.random((count, 1)) * sides[rows]
        outward = sides[rows][:, ::-1] * [1, -1]
    sigma = noise / 100 * diagonal(truth)
    errors = np.random.default_rng(draw).normal(scale=sigma, size=points.shape)
    points = np.asarray(points) + errors
    return points, estimate_normals(points, like=outward), estimate_sigma_points(points)


def diagonal(truth: trimesh.Trimesh | Array) -> float:
    """Of the box around it."""
    corners = truth.bounds if isinstance(truth, trimesh.Trimesh) else truth
    return float(np.linalg.norm(np.ptp(corners, axis=0)))


METHODS = {"Adam": "adam", "SNRSOAP": "snr_soap", "SNRAdam": "snr_adam"}
LRS = {"SNRSOAP": (3e-3,), "SNRAdam": (3e-3,), "Adam": (3e-3, 1e-3, 1e-2)}
CONSTANT = ("SNRAdam", "Adam")
"""Also at a constant learning rate."""
COMPARED = (
    (("Adam", COOLDOWN), ("Adam", 0.0)),
    (("SNRAdam", COOLDOWN), ("SNRAdam", 0.0)),
    (("SNRSOAP", COOLDOWN), ("Adam", COOLDOWN)),
    (("SNRSOAP", COOLDOWN), ("Adam", 0.0)),
)
COMPLETE = ("Adam", "SNRSOAP")
"""Without these a draw of a cell does not count."""
OURS = ("SNRSOAP", "SNRAdam")
POISSON = "screened Poisson"
DEPTHS = (5, 6, 7, 8)


def reconstruct(run: Run) -> dict[str, Any]:
    """One run in this process, on one thread."""
    torch.set_num_threads(1)
    points, normals, sigma = scan(run.shape, run.points, run.noise, run.draw)
    if run.method == POISSON:
        started = time.perf_counter()
        mesh = _poisson(points, normals, int(run.lr))
        found = {"misfit": "", "sigma": "", "seconds": time.perf_counter() - started}
        rows = [{"step": 0.0, **compared(mesh, run)}]
    else:
        watched, training = fit(run, points, normals, sigma)
        rows = [row for row in training.history if "chamfer" in row]
        found = {
            "misfit": training.history[-1]["misfit"],
            "sigma": 100 * sigma / diagonal(true_surface(run.shape)),
            "seconds": training.seconds - watched.seconds,
        }
    best = min(rows, key=lambda row: row["chamfer"])
    names = ("chamfer", "normal_consistency")
    return {
        **{key: str(value) for key, value in asdict(run).items()},
        **{f"final_{name}": rows[-1][name] for name in names},
        **{f"best_{name}": best[name] for name in names},
        "best_step": int(best["step"]),
        **found,
    }


class Watched(SurfaceObjective):
    """Compares the surface with the true one now and then."""

    def __init__(self, run: Run, fit: SDFFit, **options: Any) -> None:
        super().__init__(**options)
        self.run = run
        self.fit = fit
        self.calls = 0
        self.seconds = 0.0

    def metrics(self, network: nn.Module) -> dict[str, float]:
        """Chamfer distance in percent of the diagonal and normal consistency, now and then."""
        self.calls += 1  # at step 1, and then ROWS times: at the last step the last time
        if self.calls == 1 or (self.calls - 1) % (ROWS // MOMENTS):
            return {}
        started = time.perf_counter()
        try:
            flat = self.points.shape[1] == 2
            own = np.concatenate(self.fit.contours()) if flat else self.fit.mesh(RESOLUTION)
            found = compared(own, self.run)
        except ValueError:  # no surface
            found = {"chamfer": math.inf, "normal_consistency": 0.0}
        self.seconds += time.perf_counter() - started
        return found


def fit(run: Run, points: Array, normals: Array, sigma: SigmaEstimate) -> tuple[Watched, Training]:
    """What fit_sdf does, watched."""
    weights = Weights()
    optimizer = METHODS[run.method]
    batch_size = BATCH_SIZE if run.points > FULL_BATCH else None
    options = FitOptions(
        optimizer=optimizer,
        lr=run.lr,
        steps=run.steps,
        **default_training(points.shape, optimizer, batch_size),
        floor_every=FLOOR_EVERY,
        cooldown=run.cooldown,
        seed=run.draw,
        device="cpu",
    )
    choice = NetworkChoice("softplus", SIZE)
    model = choice.build(points.shape[1], 1, run.draw)
    cloud = Cloud(points, normals)
    result = SDFFit(cloud, choice, model, sigma, weights, options, Training())
    objective = Watched(
        run,
        result,
        points=result.frame.inward(points),
        normals=normals,
        labels=np.zeros(len(points)),
        sigma=sigma / result.frame.scale,
        weights=weights,
        batch_size=options.batch_size,
        device=options.torch_device,
    )
    return objective, train(model, objective, options, progress=False)


def compared(own: trimesh.Trimesh | Array, run: Run) -> dict[str, float]:
    """Against the true surface: Chamfer distance in percent of its diagonal."""
    truth = true_surface(run.shape)
    found = surface_metrics(own, truth, samples=SAMPLES)
    return {
        "chamfer": 100 * found.chamfer / diagonal(truth),
        "normal_consistency": found.normal_consistency,
    }


def _poisson(points: Array, normals: Array, depth: int) -> trimesh.Trimesh:
    import pymeshlab

    meshes = pymeshlab.MeshSet()
    meshes.add_mesh(pymeshlab.Mesh(vertex_matrix=points, v_normals_matrix=normals))
    meshes.generate_surface_reconstruction_screened_poisson(depth=depth, threads=1)
    mesh = meshes.current_mesh()
    return trimesh.Trimesh(mesh.vertex_matrix(), mesh.face_matrix(), process=False)


def runs() -> list[Run]:
    """Draw by draw and cell by cell, so that a stop leaves whole comparisons.

    At a constant learning rate the first draw only. Small clouds, the least noise and SNRAdam come
    last.
    """
    poisson = importlib.util.find_spec("pymeshlab") is not None
    tuned = [(method, lr) for method, lrs in LRS.items() for lr in lrs]
    found = []
    for draw in range(5):
        cells = [(shape, POINTS, noise, draw) for noise in reversed(NOISES) for shape in SHAPES]
        small = [(*which, noise, draw) for noise in reversed(NOISES) for which in SMALL.items()]
        for cell in cells + small:
            found += [Run(*cell, *which) for which in tuned]
            if poisson and cell in cells:
                found += [Run(*cell, POISSON, depth, 0, 0.0) for depth in DEPTHS]
        if draw == 0:
            for method in CONSTANT:
                found += [
                    Run(*cell, method, lr, STEPS, 0.0) for cell in cells for lr in LRS[method]
                ]
    return sorted(
        found, key=lambda run: run.points < POINTS or run.noise < 1 or run.method == "SNRAdam"
    )


def table() -> str:
    """Chamfer distance and normal consistency by shape and noise, medians over draws."""
    lines = []
    for noise in reversed(NOISES):
        for shape in SHAPES:
            if draws := _draws(shape, POINTS, noise):
                cells = [shape, f"{noise:g} %", str(len(draws))]
                cells += [_pair(draws, name) for name in ("oracle", "Adam", "SNRSOAP")]
                cells += [f"{_ratio(draws, 'SNRSOAP', other):.2f}" for other in ("oracle", "Adam")]
                cells += [_pair(draws, method) for method in ("SNRAdam", POISSON)]
                lines.append(cells)
    titles = "shape|noise|draws|Adam, oracle|Adam, final|SNRSOAP, final|/ Adam's oracle|"
    return text.table(titles + "/ Adam's final|SNRAdam, final|screened Poisson, best depth", lines)


def small() -> str:
    """Chamfer distance of small clouds, and ratios to Adam's final one; medians over draws."""
    lines = []
    for noise in reversed(NOISES):
        for shape, points in SMALL.items():
            if draws := _draws(shape, points, noise):
                cells = [shape, str(points), f"{noise:g} %", str(len(draws))]
                for name in ("oracle", "Adam", *OURS):
                    cells.append(f"{median(d[name][0] for d in draws if name in d):.3f}")
                cells += [f"{_ratio(draws, name, 'Adam'):.2f}" for name in OURS]
                lines.append(cells)
    titles = "shape|points|noise|draws|Adam, oracle|Adam, final|SNRSOAP, final|SNRAdam, final|"
    return text.table(titles + "SNRSOAP / Adam|SNRAdam / Adam", lines)


def cooldowns() -> str:
    """What a falling learning rate does: ratios of final distances, each at its best rate."""
    lines = []
    for pair in COMPARED:
        ratios = []
        for shape in SHAPES:
            for noise in NOISES:
                ends = [_scores(shape, POINTS, noise, 0, *which) for which in pair]
                if [len(end) for end in ends] == [len(LRS[method]) for method, _ in pair]:
                    ratios.append(min(ends[0])[0] / min(ends[1])[0])
        if ratios:
            names = (f"{method}, {'cooldown' if c else 'constant'}" for method, c in pair)
            numbers = (geometric_mean(ratios), min(ratios), max(ratios))
            cells = (f"{x:.2f}" for x in numbers)
            lines.append([" / ".join(names), str(len(ratios)), *cells])
    return text.table("final distance|cells|geometric mean|least|most", lines)


Ends = dict[str, tuple[float, float]]
"""Name -> Chamfer distance and normal consistency of one draw."""


def _pair(draws: list[Ends], name: str) -> str:
    known = [d[name] for d in draws if name in d]
    if not known:
        return ""
    chamfer, normals = map(median, zip(*known, strict=True))
    rest = "" if len(known) == len(draws) else f" ({len(known)})"
    return f"{chamfer:.3f} / {normals:.3f}{rest}"


def _ratio(draws: list[Ends], name: str, other: str) -> float:
    return median(d[name][0] / d[other][0] for d in draws if name in d)


def _draws(shape: str, points: int, noise: float) -> list[Ends]:
    """Those that have been run."""
    return [ends for draw in range(5) if (ends := _found(shape, points, noise, draw))]


def _scores(
    shape: str,
    points: int,
    noise: float,
    draw: int,
    method: str,
    cooldown: float,
    when: str = "final",
) -> list[tuple[float, float]]:
    """Chamfer distance and normal consistency of a method in a cell, at each of its rates."""
    cell = {"shape": shape, "points": str(points), "noise": str(noise), "draw": str(draw)}
    cell |= {"method": method, "cooldown": str(cooldown)}
    return [
        (float(row[f"{when}_chamfer"]), float(row[f"{when}_normal_consistency"]))
        for row in read(PATH)
        if cell.items() <= row.items()
    ]


def _found(shape: str, points: int, noise: float, draw: int) -> Ends:
    """Every method at its best rate by the truth; empty where Adam or ours is missing."""
    cell = (shape, points, noise, draw)
    found = {}
    for method, rates in {**LRS, POISSON: DEPTHS}.items():
        ends = _scores(*cell, method, 0.0 if method == POISSON else COOLDOWN)
        if len(ends) == len(rates):
            found[method] = min(ends)
        elif method in COMPLETE:
            return {}
    return {**found, "oracle": min(_scores(*cell, "Adam", COOLDOWN, "best"))}


if __name__ == "__main__":
    append_missing(PATH, runs(), KEYS, reconstruct, *map(int, sys.argv[1:]))
