r"""The gate after the exact rows have had their say: a Schur complement's eigenvectors.

Tried in place of :class:`sciml_snr.tangent.Tangent`. There the gate decides in the eigenbasis of
the whole kernel, where directions mix noisy and exact rows. Here the exact rows x come first, with
the damping :math:`\mu`; what is left for the noisy rows d is the Schur complement

.. math::
    S = K_{dd} - K_{dx} (K_{xx} + \mu)^{-1} K_{xd} = V \,\mathrm{diag}(s)\, V^T, \qquad
    c = V^T \left(r_d - K_{dx} (K_{xx} + \mu)^{-1} r_x\right)

in whose basis the noise has the variance 1 everywhere. Directions that are closed make the step of
the exact rows alone. By Woodbury's formula these are the generalized eigenvectors of
:math:`J_d^T J_d` beside :math:`J_x^T J_x + \mu`, with the eigenvalues :math:`s / \mu`: that is how
they are computed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sciml_snr.jacobian import System
from sciml_snr.tangent import ALONE, Tangent

LEAST = 1e-12
"""Eigenvalues below this say nothing about the data."""


class Conditioned(Tangent):
    """As :class:`sciml_snr.tangent.Tangent`, with the exact rows first."""

    def __init__(self, system: System, z: float, gate: str, *others: Any, **options: Any) -> None:
        super().__init__(system, 0.0, "stein", *others, **options)
        self._z, self._kind = z, gate
        self._roots = self.values.sqrt()
        factor = self._basis * self._roots
        noisy = self.noisy[:, None]
        self._of_exact = factor.T @ (factor * (1 - noisy))
        self._of_data = factor.T @ (factor * noisy)
        self._parts = self._exact, self._data

    def step(self, damping: float) -> tuple[Tensor, float]:
        """The step of all parameters, (P,); nothing else follows."""
        identity = torch.eye(len(self._roots)).to(self._of_exact)
        root = torch.linalg.cholesky(self._of_exact + damping * identity)
        half = torch.linalg.solve_triangular(root, self._of_data, upper=False)
        values, turned = torch.linalg.eigh(torch.linalg.solve_triangular(root, half.T, upper=False))
        self._ratios = values.clamp_min(LEAST)
        self._turn = torch.linalg.solve_triangular(root.T, turned, upper=True)
        exact, data = (self._turned(part) for part in self._parts)
        # Under the noise alone these coefficients have the variance 1.
        self._data = (data - self._ratios * exact) / self._ratios.sqrt()
        self.coefficients, self.noise = self._data, (values > LEAST).double()
        self.gate = self._own(self._z)
        if self._kind == "monotone" and self._z:
            self.gate = torch.maximum(self._pooled(self._z), self._own(max(ALONE, self._z)))
        return self.apply(*self._parts, damping, 0.0), 0.0

    def _turned(self, coefficients: Tensor) -> Tensor:
        roots = self._roots.view(-1, *[1] * (coefficients.ndim - 1))
        found: Tensor = self._turn.T @ (roots * coefficients)
        return found

    def apply(self, exact: Tensor, data: Tensor, damping: float, back: float) -> Tensor:
        """The step as a linear map of coefficients, those of the exact and of the noisy rows."""
        columns = (...,) if exact.ndim == 1 else (..., None)
        ratios, gate, roots = (x[columns] for x in (self._ratios, self.gate, self._roots))
        exact, data = self._turned(exact), self._turned(data)
        moved = exact + gate * (data - ratios * exact) / (1 + ratios)
        return -self.spectrum.pulled((self._turn @ moved) / roots)
