r"""Gauss-Newton steps with a prior of the weights, its width found by the evidence.

A gate that opens directions one by one, or in blocks, does not see signal that is spread over many
directions below the noise in each of them, such as a coefficient and the field moved together. So
the weights w have the prior N(0, s I), and the rows, in units of their sigma, the likelihood of
their noise (exact rows count as they do beside the noisy ones in the sum of squares). With the rows
r and the Jacobian J at w, and the rows :math:`r_0 = r - J w` that the linearized model has at
w = 0, the width s has the largest evidence,

.. math::
    -2 \log p(r_0 \mid s) = \sum_k \frac{c_k^2}{1 + s \lambda_k} + \log(1 + s \lambda_k) + \dots,
    \qquad c = U^T r_0

and a step goes to the maximum a posteriori, with Levenberg-Marquardt's damping. The kernel moves
along, and evidence that counts it as given goes on growing: so it ends once the evidence at the
parameters as they are, :math:`|r|^2 + |w|^2 / s + \sum_k \log(1 + s \lambda_k)`, has had its
minimum.

D. J. C. MacKay, Neural Comput. 4 (1992) 415 and 448; the Gauss-Newton step: F. D. Foresee and
M. T. Hagan, Proc. Int. Conf. Neural Networks (1997) 1930.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .jacobian import System
from .spectrum import NOT_FINITE, Spectrum

WIDTHS = torch.logspace(-2, 10, 121, dtype=torch.float64)
"""Variances s that are tried, over the inverse of the largest eigenvalue."""

LEFT_OUT = 0.01
"""Trace of the kernel that may be left out; the noise is 1."""


class Posterior:
    """The posterior of the linearized model: what :class:`sciml_snr.tangent.Tangent` is for gates.

    Args:
        system: rows, some of them noisy, and their Jacobian.
        spectrum: the Jacobian's.
        weights: (P,) parameters, float64, where the prior is centred at 0.

    Raises:
        FloatingPointError: a row is not finite.
    """

    def __init__(self, system: System, spectrum: Spectrum, weights: Tensor) -> None:
        self.rows, self.noisy, _ = system
        if not self.rows.isfinite().all():
            raise FloatingPointError(NOT_FINITE)
        self.spectrum, self._weights = spectrum, weights
        self.values, self._basis = spectrum.values, spectrum.basis
        self.noise = self._basis.square().T @ self.noisy
        """(r,): the variance of each direction's coefficient under the noise alone."""
        self.misfit = float((self.rows.square() * self.noisy).sum() / self.noisy.sum())
        self._linear = spectrum.pushed(weights)
        coefficients = self._basis.T @ (self.rows - self._linear)
        self.variance = self._widest(coefficients)
        """s."""
        self.gate = self.variance * self.values / (1 + self.variance * self.values)
        """(r,): share of each direction that the fit takes from the data."""
        logs = torch.log1p(self.variance * self.values).sum()
        self.evidence = float(self.rows.square().sum() + self.penalty(weights) + logs)
        """-2 log of the evidence at the parameters as they are, but for a constant."""

    def _widest(self, coefficients: Tensor) -> float:
        """The variance of the largest evidence."""
        if not len(self.values) or self.values[-1] <= 0:
            return 1.0
        tried = WIDTHS.to(self.values) / self.values[-1]
        total = 1 + tried[:, None] * self.values
        minus = (coefficients.square() / total + total.log()).sum(1)
        return float(tried[minus.argmin()])

    def penalty(self, weights: Tensor) -> float:
        """|w|^2 / s."""
        return float(weights.square().sum()) / self.variance

    def step(self, damping: float) -> tuple[Tensor, float]:
        """The step of all parameters, (P,); and 0: nothing follows."""
        return self._solved(self.rows, self._linear, self._weights, damping), 0.0

    def response(self, sensitivity: Tensor, signs: Tensor, damping: float, _: float) -> Tensor:
        """What a step adds to derivatives (P, m) of the parameters by changes of the data.

        The width of the prior counts as given; see :meth:`sciml_snr.tangent.Tangent.response`.
        """
        linear = self.spectrum.pushed(sensitivity)
        return self._solved(linear - signs, linear, sensitivity, damping)

    def _solved(self, rows: Tensor, linear: Tensor, weights: Tensor, damping: float) -> Tensor:
        """-(J^T J + k)^-1 (J^T r + w / s) with k = 1/s + mu; linear is J w."""
        k = 1 / self.variance + damping
        over = (self.values + k).view(-1, *[1] * (rows.ndim - 1))
        to_data = self.spectrum.pulled((self._basis.T @ rows) / over)
        inside = self.spectrum.pulled((self._basis.T @ linear) / over)
        return -to_data - (weights - inside) / (k * self.variance)

    def fitted(self, step: Tensor) -> Tensor:
        """How a change of the parameters, (P,) or (P, m), changes the rows, (N,) or (N, m)."""
        return self.spectrum.pushed(step)
