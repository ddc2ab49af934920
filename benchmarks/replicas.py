r"""A floor from replicas of the run: what would the gradient be, had the noise been another?

    python -m benchmarks.replicas [JOBS]

appends to benchmarks/results/replicas.csv. K replicas w + tau delta_k of the network see the labels
y + tau sigma b_k (b_k: random signs) and take the steps of the run itself, with its gate and its
second moment, so that d_k = (g_k - g) / tau is how the gradient answers to the noise *at this
point of the run*. The floor is the mean over replicas of the squared first moment of d_k: the
variance of the run's own mean gradient. Unlike the label floor it falls where the noise has been
fitted (or where an equation does not let it move the fit), and m^2 / floor stays what it is while a
direction is fitted. It costs K more gradients a step; what came of it is in benchmarks/NOTEBOOK.md.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from benchmarks import text
from benchmarks.harness import RESULTS, append_missing, read
from benchmarks.prototype import GATES, Matrix, Params, Variant, problem_of
from sciml_snr.measure.twins import memorized_share

PATH = RESULTS / "replicas.csv"
TAU = 0.1


@dataclass(frozen=True)
class Replicas:
    """One run: stein gate in the eigenbasis of the gradients and of their answers d_k."""

    problem: str
    seed: int
    replicas: int
    c: float
    """Threshold on m^2 / floor: z squared."""
    pooling: str = "none"
    """Average the floor over "box" (3 x 3 neighbours) or as "rank 1" (rows times columns)."""
    rho: float = 0.95
    lr: float = 3e-3
    iterations: int = 2500


KEYS = tuple(field.name for field in fields(Replicas))


class Replicated(Matrix):
    """State of one parameter, with those of its replicas."""

    def __init__(self, p: Tensor, job: Replicas) -> None:
        self.variant = Variant(job.problem, job.seed, "stein", job.c, basis="both")
        super().__init__(p, self.variant)
        self.answer = torch.zeros(job.replicas, *p.shape)
        """First moments of d_k, in turned coordinates."""
        self.delta = torch.zeros(job.replicas, *p.shape)

    def observe(self, g: Tensor, d: Tensor, t: int) -> tuple[Tensor, Tensor]:
        """Average in the covariances, turn the basis when due; g and d in its coordinates."""
        if g.ndim == 2:
            for cov, rows in zip(self.covs, (g[None], d), strict=True):
                cov[0].lerp_((rows @ rows.mT).mean(0), 0.05)
                cov[1].lerp_((rows.mT @ rows).mean(0), 0.05)
            if (t - 1) % 10 == 0:
                answers = [self.turn(a, back=True) for a in self.answer]
                self.renew(self.variant, first=t == 1)
                self.answer = torch.stack([self.turn(a) for a in answers])
        return self.turn(g), torch.stack([self.turn(row) for row in d])

    def step(self, p: Tensor, g: Tensor, d: Tensor, t: int, job: Replicas) -> None:
        """Adam's gated step, for the parameter and its replicas alike."""
        g, d = self.observe(g, d, t)
        self.m.lerp_(g, 0.1)
        self.answer.lerp_(d, 0.1)
        self.v.mul_(0.999).addcmul_(g, g, value=0.001)
        first = 1 - 0.9**t
        self.s.mul_(job.rho).add_(((self.answer / first) ** 2).mean(0), alpha=1 - job.rho)
        floor = pooled(self.s / (1 - job.rho**t), job.pooling)
        q = GATES["stein"]((self.m / first) ** 2, floor, self.highest, job.c)
        scale = q / first / ((self.v / (1 - 0.999**t)).sqrt() + 1e-8)
        p.sub_(self.turn(scale * self.m, back=True), alpha=job.lr)
        moves = [self.turn(scale * a, back=True) for a in self.answer]
        self.delta.sub_(torch.stack(moves), alpha=job.lr)


def pooled(floor: Tensor, how: str) -> Tensor:
    """One replica is one draw: borrow from neighbours."""
    if how == "none":
        return floor
    if floor.ndim < 2 or min(floor.shape) < 3:
        return floor.mean().expand_as(floor)
    if how == "rank 1":
        return floor.mean(1, keepdim=True) * floor.mean(0) / (floor.mean() + 1e-38)
    return avg_pool2d(floor[None], 3, 1, 1, count_include_pad=False)[0]


def run(job: Replicas) -> dict[str, Any]:
    """Train it in this process, on one thread."""
    torch.set_num_threads(1)
    problem = problem_of(job.problem, job.seed)
    params: Params = problem.params
    states = [Replicated(p, job) for p in params]
    generator = torch.Generator().manual_seed(job.seed + 77)
    signs = torch.randint(0, 2, (job.replicas, *problem.y.shape), generator=generator) * 2.0 - 1

    def gradient(target: Tensor) -> tuple[Tensor, ...]:
        fit, exact = problem.forward()
        return torch.autograd.grad(((fit - target) ** 2).mean() + exact, params)

    def move(k: int, by: float) -> None:
        with torch.no_grad():
            for p, state in zip(params, states, strict=True):
                p.add_(state.delta[k], alpha=by)

    scores, started = [], time.perf_counter()
    for t in range(1, job.iterations + 1):
        g = gradient(problem.y)
        before = [p.detach().clone() for p in params]
        answers = []
        for k in range(job.replicas):
            move(k, TAU)
            shifted = gradient(problem.y + TAU * problem.sigma * signs[k])
            answers.append([(other - own) / TAU for other, own in zip(shifted, g, strict=True)])
            with torch.no_grad():
                for p, old in zip(params, before, strict=True):
                    p.copy_(old)
        with torch.no_grad():
            for i, (p, state) in enumerate(zip(params, states, strict=True)):
                state.step(p, g[i], torch.stack([d[i] for d in answers]), t, job)
            if t % max(1, job.iterations // 50) == 0:
                scores.append((t, problem.score()))
    with torch.no_grad():
        fit = problem.forward()[0]
        dofs = []
        for k in range(job.replicas):
            move(k, TAU)
            dofs.append(float((signs[k] * (problem.forward()[0] - fit)).mean()))
            move(k, -TAU)
    best = (max if " " in job.problem else min)(scores, key=lambda entry: entry[1])
    return {
        **{key: str(value) for key, value in asdict(job).items()},
        "final": scores[-1][1],
        "best": best[1],
        "best_iteration": best[0],
        "memorized": memorized_share(fit, problem.clean, problem.y),
        "degrees_of_freedom_share": sum(dofs) / len(dofs) / TAU / problem.sigma,
        "seconds": time.perf_counter() - started,
    }


def jobs() -> Iterator[Replicas]:
    """Seed by seed."""
    for seed in range(3):
        own = Replicas("convection", seed, 4, 1.5)
        yield own
        yield replace(own, c=4.0)
        yield replace(own, replicas=1, c=2.0, pooling="box")
        yield replace(own, replicas=1, pooling="rank 1", iterations=4000)
    image = Replicas("camera 25", 0, 1, 2.0, "box", lr=1e-4, iterations=1000)
    yield image
    yield replace(image, pooling="rank 1")


def table() -> str:
    """The floor from replicas of the run, by setting."""
    lines = []
    settings = ("problem", "replicas", "c", "pooling", "iterations")
    for cells, rows in text.groups(read(PATH), *settings).items():
        spreads = [text.spread_of(rows, name) for name in ("final", "best")]
        lines.append([*cells, str(len(rows)), *spreads, text.memorized(rows)])
    titles = "problem|replicas|z^2|pooled|iterations|seeds|final|best|memorized"
    return text.table(titles, lines)


if __name__ == "__main__":
    append_missing(PATH, jobs(), KEYS, run, *map(int, sys.argv[1:]))
