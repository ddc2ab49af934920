r"""Eigenvalues and eigenvectors of a tangent kernel :math:`K = J J^T`: all, or those that count.

Tangent kernels of networks have few large eigenvalues: of 956 rows on 8,577 weights, 115 are above
1e-10 of the largest. A step with the damping :math:`\mu` moves a direction by
:math:`\lambda / (\lambda + \mu)`, so that what is far below :math:`\mu` may be left out.
:func:`truncated` finds rows that span the rest, block by block, each row drawn with a probability
proportional to what is left of it, and never forms the kernel. With :math:`J \approx F Q`, Q
orthonormal, :math:`E = K - F F^T` is positive semi-definite, and so its norm is at most its trace:
the error relative to :math:`\mu` is bounded by a number that is known. Products are in the
network's dtype and the algebra in float64. It is more precise than eigenvectors of a kernel
multiplied in float32, whose rounding is 1e-7 of the largest eigenvalue: here singular values have
this precision, so that eigenvalues have its square.

Y. Chen, E. N. Epperly, J. A. Tropp and R. J. Webber, *Randomly pivoted Cholesky*, Comm. Pure Appl.
Math. 78 (2025) 995, arXiv:2207.06503 (section on pivoted QR); what is left of the rows is
estimated by a random sketch, as by M. F. Hutchinson, Comm. Statist. Simulation 19 (1990) 433.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

BLOCK = 64
"""Rows that are drawn at a time."""

SKETCH = 16
"""Random directions by which what is left of the rows is estimated: 9 % for the least of ranks."""

ALIKE = 1e-5
"""Of a block, directions with less than this share of its largest square are left to later ones."""

ROUNDING = 1e-12
"""Share of the trace that is rounding."""

MAX_RANK = 1000
"""Eigenvectors beyond which no more are looked for."""

NOT_FINITE = (
    "A residual row, or its derivative by a parameter, is not finite. Parameters and state are as "
    "they were before this step: look at the equation at its points."
)


class Spectrum(ABC):
    """Eigenvectors of the kernel of a Jacobian (N, P), as far as they are known: r of them.

    Attributes:
        values: (r,) eigenvalues, rising, float64.
        basis: (N, r) eigenvectors, float64.
        left_out: trace of what is not there, at least the norm of the kernel's error.
    """

    values: Tensor
    basis: Tensor
    left_out: float

    @abstractmethod
    def pulled(self, coefficients: Tensor) -> Tensor:
        """J^T U c, the change of the parameters, for c (r,) or (r, m): (P,) or (P, m), float64."""

    @abstractmethod
    def pushed(self, step: Tensor) -> Tensor:
        """J s, the change of the rows, for s (P,) or (P, m): (N,) or (N, m), float64."""


class Exact(Spectrum):
    """All eigenvectors, of the kernel multiplied in the Jacobian's dtype: the slow exact one."""

    def __init__(self, jacobian: Tensor) -> None:
        self._jacobian = jacobian
        kernel = (jacobian @ jacobian.T).double()
        if not kernel.isfinite().all():
            raise FloatingPointError(NOT_FINITE)
        values, self.basis = torch.linalg.eigh(kernel)
        self.values, self.left_out = values.clamp_min(0), 0.0

    def pulled(self, coefficients: Tensor) -> Tensor:
        """J^T U c."""
        rows = (self.basis @ coefficients).to(self._jacobian)
        return (self._jacobian.T @ rows).double()

    def pushed(self, step: Tensor) -> Tensor:
        """J s."""
        return (self._jacobian @ step.to(self._jacobian)).double()


class Truncated(Spectrum):
    """The eigenvectors of F F^T, with J ~ F Q and orthonormal Q.

    Args:
        factor: F, (N, r), float64.
        directions: Q, (r, P), orthonormal rows, in the network's dtype.
        left_out: estimate of the trace of what J has beside.
    """

    def __init__(self, factor: Tensor, directions: Tensor, left_out: float) -> None:
        self.left_out, self._directions = left_out, directions
        values, turned = torch.linalg.eigh(factor.T @ factor)
        self.values = values.clamp_min(0)
        self._roots = self.values.sqrt()
        self._turned = turned
        self.basis = factor @ (turned / self._roots.clamp_min(1e-150))

    def pulled(self, coefficients: Tensor) -> Tensor:
        """J^T U c."""
        roots = self._roots.view(-1, *[1] * (coefficients.ndim - 1))
        found: Tensor = (self._turned @ (roots * coefficients)).to(self._directions)
        return (self._directions.T @ found).double()

    def pushed(self, step: Tensor) -> Tensor:
        """J s."""
        found: Tensor = (self._directions @ step.to(self._directions)).double()
        roots = self._roots.view(-1, *[1] * (found.ndim - 1))
        rows: Tensor = self.basis @ (roots * (self._turned.T @ found))
        return rows


def truncated(jacobian: Tensor, left_out: float, max_rank: int = MAX_RANK) -> Truncated:
    """The eigenvectors that count.

    Always the same ones for the same Jacobian.

    Args:
        jacobian: (N, P).
        left_out: trace of the kernel that may be missing. Rounding, 1e-12 of the whole, is not
            gone below.
        max_rank: so many directions, and at most a block's more, are looked for.

    Raises:
        FloatingPointError: a derivative is not finite.
    """
    rows, weights = jacobian.shape
    generator = torch.Generator("cpu").manual_seed(0)
    probes = torch.randn(SKETCH, weights, generator=generator, device="cpu").to(jacobian)
    sketch = (probes @ jacobian.T).T
    directions, factor = jacobian.new_empty(0, weights), jacobian.new_empty(rows, 0)
    left = sketch.double().square().mean(1)
    if not left.isfinite().all():
        raise FloatingPointError(NOT_FINITE)
    enough = max(left_out, ROUNDING * float(left.sum()))
    most = min(rows, weights, max_rank)
    while float(left.sum()) > enough and len(directions) < most:
        wanted = min(BLOCK, int((left > 0).sum()))
        drawn = torch.multinomial(left.cpu(), wanted, generator=generator).to(left.device)
        block = jacobian[drawn].addmm_(factor[drawn], directions, alpha=-1)
        found = _orthonormal(block, ALIKE)
        found.addmm_(found @ directions.T, directions, alpha=-1)  # once more: rounding
        found = _orthonormal(found, 0.0)
        factor = torch.cat([factor, (found @ jacobian.T).T], 1)
        directions = torch.cat([directions, found])
        rest = sketch - factor @ (directions @ probes.T)
        left = rest.double().square().mean(1)
    return Truncated(factor.double(), directions, float(left.sum()))


def spectrum_of(jacobian: Tensor, left_out: float | None) -> Spectrum:
    """All eigenvectors where left_out is None, or those that count; errors: see there."""
    return Exact(jacobian) if left_out is None else truncated(jacobian, left_out)


def _orthonormal(rows: Tensor, least: float) -> Tensor:
    """Orthonormal rows that span these, but for those of less than a share of the largest."""
    squares, turned = torch.linalg.eigh((rows @ rows.T).double())
    kept = squares > least * squares[-1]
    found: Tensor = (turned[:, kept] / squares[kept].sqrt()).T.to(rows) @ rows
    return found
