"""Which gate, in which coordinates? A plain prototype with knobs that the package does not have.

    python -m benchmarks.prototype [JOBS]

appends to benchmarks/results/prototype.csv: short runs, one row each, on convection (network and
derivatives written out by hand, for speed) and on SIREN crops. What won is in the package; what is
to be learned from the rest is in benchmarks/NOTEBOOK.md.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.harness import RESULTS, append_missing
from benchmarks.images import SIZE, Siren, crop
from sciml_snr.measure.twins import memorized_share

PATH = RESULTS / "prototype.csv"


@dataclass(frozen=True)
class Variant:
    """One run of one rule."""

    problem: str
    """"convection", or image and noise as in "camera 25"."""
    seed: int
    gate: str
    c: float
    """Threshold on m^2 / s: z squared; the rate of false discoveries, where the gate has one."""
    basis: str = "none"
    warmup: int = 0
    until_fitted: bool = False
    """End the warm-up as soon as the data are fitted to within their error."""
    kappa: float = 0.0
    """Adam's denominator is sqrt(v + kappa s)."""
    shampoo_beta: float = 0.95
    rho: float = 0.99
    floor_every: int = 2
    lr: float = 3e-3
    iterations: int = 4000


KEYS = tuple(field.name for field in fields(Variant))
Params = list[Tensor]


class Convection:
    """The convection problem of the package, as a function of its parameters."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        position = rng.uniform(0, 2 * np.pi, (256, 1))
        points = np.hstack([position, np.zeros_like(position)])
        self.x = torch.tensor(points, dtype=torch.float32)
        self.clean = torch.sin(self.x[:, :1])
        self.y = self.clean + torch.tensor(rng.normal(size=(256, 1)), dtype=torch.float32)
        self.sigma = 1.0
        own = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)
        self.inside = torch.rand(512, 2, generator=own) * torch.tensor([2 * math.pi, 1.0])
        times = torch.rand(50, 1, generator=own)
        self.left = torch.cat([0 * times, times], 1)
        self.right = torch.cat([0 * times + 2 * math.pi, times], 1)
        self.params: Params = []
        for m, n in ((2, 64), (64, 64), (64, 64), (64, 1)):
            weight = torch.nn.init.xavier_normal_(torch.empty(n, m))
            self.params += [weight.requires_grad_(), torch.zeros(n).requires_grad_()]
        axes = torch.arange(128) * (2 * math.pi / 128), torch.linspace(0, 1, 51)
        self.grid = torch.cartesian_prod(*axes)
        self.truth = torch.sin(self.grid[:, :1] - 5 * self.grid[:, 1:])

    def field(self, x: Tensor) -> Tensor:
        """The network."""
        for weight, bias in zip(self.params[:-2:2], self.params[1:-2:2], strict=True):
            x = torch.tanh(torch.addmm(bias, x, weight.T))
        return torch.addmm(self.params[-1], x, self.params[-2].T)

    def residual(self) -> Tensor:
        """u_t + 5 u_x: the derivative along (5, 1), carried through the layers."""
        x, move = self.inside, torch.tensor([[5.0, 1.0]])
        for weight, bias in zip(self.params[:-2:2], self.params[1:-2:2], strict=True):
            x = torch.tanh(torch.addmm(bias, x, weight.T))
            move = (1 - x * x) * (move @ weight.T)
        return move @ self.params[-2].T

    def forward(self) -> tuple[Tensor, Tensor]:
        """Values at the measured points, and the loss of the exact terms."""
        u = self.field(torch.cat([self.x, self.left, self.right]))
        periodic = u[256:306] - u[306:]
        return u[:256], (self.residual() ** 2).mean() + (periodic**2).mean()

    def score(self) -> float:
        """Relative L2 error."""
        return float((self.field(self.grid) - self.truth).norm() / self.truth.norm())


class Image:
    """A SIREN on a noisy crop."""

    def __init__(self, name: str, noise: int, seed: int) -> None:
        clean = crop(name).reshape(-1, 1)
        self.sigma = noise / 127.5
        error = self.sigma * np.random.default_rng(seed).normal(size=clean.shape)
        self.clean = torch.tensor(clean, dtype=torch.float32)
        self.y = self.clean + torch.tensor(error, dtype=torch.float32)
        axis = torch.linspace(-1, 1, SIZE)
        self.x = torch.cartesian_prod(axis, axis)
        torch.manual_seed(seed)
        self.net = Siren()
        self.params: Params = list(self.net.parameters())

    def forward(self) -> tuple[Tensor, Tensor]:
        """Values at all pixels; there are no exact terms."""
        return self.net(self.x), torch.zeros(())

    def score(self) -> float:
        """PSNR in dB."""
        error = self.net(self.x).clamp(-1, 1) - self.clean
        return 10 * math.log10(4 / float((error**2).mean()))


Q = Callable[[Tensor, Tensor, Tensor, float], Tensor]


def pooled(m2: Tensor, s: Tensor, highest: Tensor, c: float) -> Tensor:
    """Stein on the mean of m^2 / s over 3 x 3 neighbours in the sorted eigenbasis.

    Block shrinkage: T. Cai, Ann. Statist. 27 (1999) 898.
    """
    ratio = m2 / (s + 1e-30)
    if ratio.ndim == 2:
        window = [3 if n >= 3 else 1 for n in ratio.shape]
        ratio = torch.nn.functional.avg_pool2d(
            ratio.clamp_max(1e4)[None, None],
            window,
            1,
            [w // 2 for w in window],
            count_include_pad=False,
        )[0, 0]
    return (1 - c / (ratio + 1e-30)).clamp_min(0)


def discoveries(m2: Tensor, s: Tensor, highest: Tensor, rate: float) -> Tensor:
    """Stein, above the threshold at which a share ``rate`` of the open entries is there by chance.

    Where all is noise, m^2 / s is chi-squared: Y. Benjamini and Y. Hochberg, J. R. Stat. Soc. B 57
    (1995) 289. The threshold falls where much stands out of the noise, and rises as it is fitted.
    """
    ratio = (m2 / (s + 1e-30)).flatten().sort(descending=True).values
    chance = torch.erfc((ratio / 2).sqrt())
    found = (chance <= rate * torch.arange(1, len(ratio) + 1) / len(ratio)).nonzero()
    if len(found) == 0:
        return torch.zeros_like(m2)
    threshold = max(1.0, float(ratio[int(found[-1])]))
    return (1 - threshold * s / (m2 + 1e-30)).clamp_min(0)


GATES: dict[str, Q] = {
    "snr": lambda m2, s, highest, c: m2 / (m2 + c * s + 1e-30),
    "snr squared": lambda m2, s, highest, c: m2**2 / (m2**2 + (c * s) ** 2 + 1e-30),
    "stein": lambda m2, s, highest, c: (1 - c * s / (m2 + 1e-30)).clamp_min(0),
    "stein, remembering": lambda m2, s, highest, c: (
        1 - c * s / ((m2 * highest).sqrt() + 1e-30)
    ).clamp_min(0),
    "stein, pooled": pooled,
    "stein, discoveries": discoveries,
}


class Matrix:
    """State of one parameter."""

    def __init__(self, p: Tensor, variant: Variant) -> None:
        self.m, self.v, self.s, self.highest = (torch.zeros_like(p) for _ in range(4))
        turned = variant.basis != "none" and p.ndim == 2
        self.q = [torch.eye(n) if turned and n > 1 else None for n in p.shape]
        self.covs = [[torch.zeros(n, n) for n in p.shape] for _ in range(2)]

    def turn(self, x: Tensor, back: bool = False) -> Tensor:
        """Into the eigenbasis, or back."""
        if x.ndim == 2:
            rows, cols = self.q
            if rows is not None:
                x = (rows if back else rows.T) @ x
            if cols is not None:
                x = x @ (cols.T if back else cols)
        return x

    def renew(self, variant: Variant, first: bool) -> None:
        """New eigenvectors, by one power iteration and QR."""
        mean = self.turn(self.m, back=True)
        for side in (0, 1):
            basis = self.q[side]
            if basis is None:
                continue
            own = [c[side] / (c[side].trace() + 1e-30) for c in self.covs]
            cov = {"gradient": own[0], "floor": own[1], "both": own[0] + own[1]}[variant.basis]
            if first:
                self.q[side] = torch.linalg.eigh(cov)[1].flip(1)
                continue
            ahead = cov @ basis
            order = (basis * ahead).sum(0).argsort(descending=True)
            for name in ("v", "s", "highest"):
                setattr(self, name, getattr(self, name).index_select(side, order))
            self.q[side] = torch.linalg.qr(ahead[:, order])[0]
        self.m = self.turn(mean)


def problem_of(name: str, seed: int) -> Convection | Image:
    """ "convection", or an image and its noise as in "camera 25"."""
    image, *noise = name.split()
    return Image(image, int(noise[0]), seed) if noise else Convection(seed)


def run(variant: Variant) -> dict[str, Any]:
    """Train it in this process, on one thread."""
    torch.set_num_threads(1)
    problem = problem_of(variant.problem, variant.seed)
    states = [Matrix(p, variant) for p in problem.params]
    free, draws = True, 0
    scores, started = [], time.perf_counter()
    for t in range(1, variant.iterations + 1):
        fit, exact = problem.forward()
        residual = fit - problem.y
        loss = (residual**2).mean() + exact
        misfit = float((residual.detach() ** 2).mean()) / problem.sigma**2
        h: tuple[Tensor, ...] | None = None
        if variant.gate != "none" and (t - 1) % variant.floor_every == 0:
            scale = 2 / len(fit) * problem.sigma / max(1.0, misfit) ** 0.5
            signs = torch.randint(0, 2, fit.shape) * 2.0 - 1
            h = torch.autograd.grad((scale * signs * fit).sum(), problem.params, retain_graph=True)
            draws += 1
        gradients = torch.autograd.grad(loss, problem.params)
        fitted = variant.until_fitted and misfit <= 1
        free = free and t <= variant.warmup and not fitted
        with torch.no_grad():
            for i, (p, state) in enumerate(zip(problem.params, states, strict=True)):
                _step(p, gradients[i], None if h is None else h[i], state, variant, t, draws, free)
            if t % max(1, variant.iterations // 80) == 0:
                scores.append((t, problem.score()))
    best = (max if isinstance(problem, Image) else min)(scores, key=lambda entry: entry[1])
    return {
        **{key: str(value) for key, value in asdict(variant).items()},
        "final": scores[-1][1],
        "best": best[1],
        "best_iteration": best[0],
        "memorized": memorized_share(problem.forward()[0].detach(), problem.clean, problem.y),
        "seconds": time.perf_counter() - started,
    }


def _step(
    p: Tensor,
    g: Tensor,
    h: Tensor | None,
    state: Matrix,
    variant: Variant,
    t: int,
    draws: int,
    free: bool,
) -> None:
    if p.ndim == 2 and variant.basis != "none":
        for cov, x in zip(state.covs, (g, h), strict=True):
            if x is not None:
                cov[0].lerp_(x @ x.T, 1 - variant.shampoo_beta)
                cov[1].lerp_(x.T @ x, 1 - variant.shampoo_beta)
        if (t - 1) % 10 == 0:
            state.renew(variant, first=t == 1)
        g, h = state.turn(g), None if h is None else state.turn(h)
    state.m.lerp_(g, 0.1)
    state.v.mul_(0.999).addcmul_(g, g, value=0.001)
    if h is not None:
        state.s.mul_(variant.rho).addcmul_(h, h, value=1 - variant.rho)
    mean, v = state.m / (1 - 0.9**t), state.v / (1 - 0.999**t)
    m2 = mean**2
    state.highest = torch.maximum(state.highest * 0.999, m2)
    if variant.gate != "none":
        s = state.s / (1 - variant.rho**draws)
        if not free:
            mean = mean * GATES[variant.gate](m2, s, state.highest, variant.c)
        v = v + variant.kappa * s
    p.sub_(state.turn(mean / (v.sqrt() + 1e-8), back=True), alpha=variant.lr)


def variants() -> Iterator[Variant]:
    """What was tried, roughly in that order."""
    for seed in range(3):
        own = Variant("convection", seed, "stein", 4.0)
        soap = replace(own, basis="both")
        yield replace(own, gate="snr", c=9.0, warmup=500)
        yield replace(own, gate="none", c=0.0)
        for warmup in (0, 200, 500):
            yield replace(own, warmup=warmup)
        yield replace(own, warmup=500, until_fitted=True)
        yield replace(own, warmup=500, c=2.0)
        yield replace(own, warmup=500, c=2.0, gate="stein, remembering")
        yield replace(soap, gate="snr", basis="gradient")
        yield replace(soap, gate="stein", basis="gradient")
        yield replace(soap, gate="stein", basis="floor")
        for c in (2.0, 3.0, 4.0):
            yield replace(soap, c=c)
        yield replace(soap, gate="snr")
        yield replace(soap, gate="snr", kappa=1.0)
        yield replace(soap, gate="snr squared", c=2.0)
        yield replace(soap, gate="stein, remembering")
        yield replace(soap, gate="stein, pooled", c=2.0)
        yield replace(soap, shampoo_beta=0.99)
        yield replace(soap, lr=1e-2)
        yield replace(soap, lr=1e-3)
    for problem in ("camera 15", "camera 25", "coins 50"):
        own = Variant(problem, 0, "stein", 4.0, floor_every=10, lr=1e-4, iterations=1000)
        soap = replace(own, basis="both")
        yield own
        yield replace(own, gate="snr", c=9.0)
        yield soap
        yield replace(soap, c=2.0)
        yield replace(soap, c=9.0)
        yield replace(soap, gate="snr", c=9.0)
        yield replace(soap, basis="gradient")
        yield replace(soap, basis="floor")
        yield replace(soap, gate="stein, pooled", c=2.0)
        yield replace(soap, gate="stein, remembering")
        for variant in (own, soap):
            yield replace(variant, gate="stein, discoveries", c=0.5, iterations=1200)
        yield replace(soap, rho=0.9)
        yield replace(soap, lr=3e-4)


if __name__ == "__main__":
    append_missing(PATH, variants(), KEYS, run, *map(int, sys.argv[1:]))
