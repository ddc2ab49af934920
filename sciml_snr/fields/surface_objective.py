r"""Surfaces (and plane curves) as the zero level of a signed distance, fitted to noisy points.

A network f(x) goes down

.. math::
    \frac{w_s}{b}\sum_i \Bigl(\frac{f(x_i)}{|\nabla f(x_i)|}\Bigr)^2
    + w_e\, \mathbb E\,(|\nabla f(y)| - 1)^2
    + \frac{w_n}{b}\sum_i |\nabla f(x_i) - n_i|^2 + w_o\, \mathbb E\, e^{-\alpha |f(z)|}

with the measured points :math:`x_i` (all, or in batches of b), points y at them, near them and in
the whole box, z in the box, drawn anew in every step. At a measured point the true distance is not
0: it is the point's own error along the normal. So 0 is a label with error sigma, for which there
is a noisy loss (:class:`sciml_snr.NoisyLoss`); the other terms count as exact.

The first term is in distances from the zero level, to first order, and not in values of f: those it
could lower by making f flat, in particular where the error is large. It then does, at the cost of
the eikonal term, and what is left of the residuals looks as if the noise had been memorized.

Estimated normals are not exact. They are averages over the neighbours' errors, the very ones of the
first term: what they carry of them passes the floor (little, with many neighbours, and smooth: see
:func:`estimate_normals`), and they are rounded off at edges. So their weight is a small one: they
tell inside from outside, and are a help at the start.

Sources: G. Taubin, IEEE Trans. Pattern Anal. Mach. Intell. 13 (1991) 1115 (the distance to first
order); A. Gropp et al., ICML 2020, arXiv:2002.10099 (eikonal and normal term); V. Sitzmann et al.,
NeurIPS 2020, arXiv:2006.09661 (off-surface term).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..noise import NoisyLoss
from ..runs.options import FitOptions
from ..terms import NoisyTerm, as_sigma_tensor, check_squares
from .points import Cloud, Frame

Array = NDArray[np.float64]

TILE = 65_536
"""Points that are evaluated at a time."""

MARGIN = 0.15
"""Width of the empty border around the points, in units of half their longest side."""

NEAR = 0.1
"""Standard deviation of the points drawn near the measured ones, in the same units."""

MIN_SLOPE = 0.2
"""Slopes that are less count as so much: a network may be flat in places at the start."""

ALPHA = 100.0
"""Decay of the off-surface term, in their inverse."""


@dataclass(frozen=True)
class Weights:
    """Of the loss, where the longest side of the points' box is 2.

    Where ``orient`` of :func:`fit_sdf` tells the sides of a wall that is thinner than patches are
    wide, they are :data:`OF_THIN_WALLS` by default.
    """

    surface: float = 30.0
    eikonal: float = 0.1
    normal: float = 0.1
    off_surface: float = 0.1

    def __post_init__(self) -> None:
        """Refuse what cannot be.

        Raises:
            ValueError: names the weight.
        """
        for name, weight in asdict(self).items():
            if not 0 <= weight < math.inf:
                raise ValueError(f"The weight {name} must be finite and >= 0, got {weight}.")
        if self.surface == 0:
            raise ValueError("The weight surface is 0: the points would have no say.")


OF_THIN_WALLS = Weights(eikonal=1.0, normal=0.5)
"""A distance that has to rise and fall again within a wall needs to be held more firmly."""

THIN = 0.7
"""A wall is thin where patches of one side make the layer of points thinner than so many times."""


class SurfaceObjective:
    """The terms of the module docstring, in the coordinates of the fit.

    Args:
        points: (n, d).
        normals: (n, d), or None: no normal term.
        labels: (n,) values of the distance at the points: 0, but for a twin.
        sigma: their error.
        weights: of the terms.
        batch_size: points in a step, drawn with replacement; None for all of them.
        device: of the fit.
    """

    def __init__(
        self,
        points: Array,
        normals: Array | None,
        labels: Array,
        sigma: float,
        weights: Weights,
        batch_size: int | None,
        device: torch.device,
    ) -> None:
        def tensor(values: Array) -> Tensor:
            return torch.as_tensor(values, dtype=torch.float32, device=device)

        self.points = tensor(points)
        self.normals = None if normals is None or weights.normal == 0 else tensor(normals)
        self.labels = tensor(labels)[:, None]
        self.sigma = sigma
        check_squares(as_sigma_tensor(sigma), torch.float32)
        self.noise = NoisyLoss(sigma)
        self.weights = weights
        self.batch_size = batch_size
        low, high = fit_box(points, sigma)
        self.low, self.size = tensor(low), tensor(high - low)

    def terms(
        self, network: nn.Module, rng: torch.Generator
    ) -> tuple[list[NoisyTerm], Tensor | None]:
        """The surface term of this step's batch, and all others."""
        weights, n = self.weights, len(self.points)
        if self.batch_size is None or self.batch_size >= n:
            x, labels, normals = self.points, self.labels, self.normals
        else:
            rows = torch.randint(n, (self.batch_size,), generator=rng, device=self.points.device)
            x, labels = self.points[rows], self.labels[rows]
            normals = None if self.normals is None else self.normals[rows]
        b = len(x)
        near, far = self._near(b // 2, rng), self._far(b - b // 2, rng)
        everywhere = torch.cat([near, far, x]).requires_grad_()
        values = network(everywhere)
        (gradient,) = torch.autograd.grad(values.sum(), everywhere, create_graph=True)
        lengths = gradient.norm(dim=1, keepdim=True)
        extra = weights.eikonal * (lengths - 1).square().mean()
        away = values[len(near) : b].abs()
        extra = extra + weights.off_surface * torch.exp(-ALPHA * away).mean()
        if normals is not None:
            turned = gradient[b:] - normals
            extra = extra + weights.normal * turned.square().sum(dim=1).mean()
        distance = values[b:] / lengths[b:].clamp_min(MIN_SLOPE)
        return [NoisyTerm(distance - labels, self.sigma, weights.surface, n)], extra

    def metrics(self, network: nn.Module) -> dict[str, float]:
        """None."""
        return {}

    def _near(self, count: int, rng: torch.Generator) -> Tensor:
        device, dim = self.points.device, self.points.shape[1]
        rows = torch.randint(len(self.points), (count,), generator=rng, device=device)
        noise = torch.randn(count, dim, generator=rng, device=device)
        return self.points[rows] + NEAR * noise

    def _far(self, count: int, rng: torch.Generator) -> Tensor:
        dim = self.points.shape[1]
        uniform = torch.rand(count, dim, generator=rng, device=self.points.device)
        return self.low + self.size * uniform


def fit_box(points: Array, sigma: float) -> tuple[Array, Array]:
    """Lowest and highest corner of the box that is fitted and meshed, in the fit's coordinates."""
    margin = MARGIN + 3 * sigma
    return points.min(axis=0) - margin, points.max(axis=0) + margin


def objective_of(
    cloud: Cloud,
    sigma: float,
    weights: Weights,
    options: FitOptions,
    labels: Array | None = None,
) -> SurfaceObjective:
    """In the fit's coordinates; ``labels`` in the cloud's units, by default 0."""
    frame = Frame.around(cloud.points)
    return SurfaceObjective(
        frame.inward(cloud.points),
        cloud.normals,
        np.zeros(len(cloud.points)) if labels is None else labels / frame.scale,
        float(sigma) / frame.scale,
        weights,
        options.batch_size,
        options.torch_device,
    )


def evaluate(network: nn.Module, points: Array) -> Array:
    """Values (n,) of the network at points (n, d), tile by tile."""
    with torch.no_grad():
        parts = [network(x)[:, 0].cpu() for x in _tiles(points, network)]
    values: Array = torch.cat(parts).double().numpy()
    return values


def slopes(network: nn.Module, points: Array) -> Array:
    """Gradients (n, d) of the network at points (n, d), tile by tile."""
    parts = []
    for x in _tiles(points, network):
        x.requires_grad_()
        with torch.enable_grad():
            parts.append(torch.autograd.grad(network(x).sum(), x)[0].cpu())
    found: Array = torch.cat(parts).double().numpy()
    return found


def _tiles(points: Array, network: nn.Module) -> Iterator[Tensor]:
    device = next(network.parameters()).device
    for start in range(0, max(1, len(points)), TILE):  # one tile of none
        yield torch.as_tensor(points[start : start + TILE], dtype=torch.float32, device=device)
