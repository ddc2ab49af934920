r"""The empirical tangent kernel in its own eigenbasis, and the gate there.

With the Jacobian J of the residual rows r (N; noisy rows in units of their sigma), the kernel is
:math:`K = J J^T = U \,\mathrm{diag}(\lambda)\, U^T`. A Levenberg-Marquardt step with the damping
:math:`\mu` is, in this basis,

.. math::
    \Delta w = -J^T U \, \frac{c}{\lambda + \mu}, \qquad c = U^T r

Under the noise alone :math:`c_k` has the variance :math:`v_k = \sum_{i\,\mathrm{noisy}} U_{ik}^2`.
The gate ``"stein"`` is the positive-part shrinkage factor of James and Stein (1961), with a
threshold z:

.. math::
    q_k = \max\left(0,\, 1 - \frac{z^2 v_k}{R\, c_k^2}\right), \qquad
    R = \max\left(1,\, \mathrm{mean}_{i\,\mathrm{noisy}}\, r_i^2\right)

Directions that only exact rows span have :math:`v_k = 0` and stay open. Residuals beyond their
noise (the misfit R > 1) lower the bar.

The gate ``"monotone"`` pools neighbours. What a network learns easily has large eigenvalues, noise
is everywhere alike; so the gate is to fall with the eigenvalue. Among falling sequences it is the
one next to :math:`1 - z^2 v_k / (R (c^d_k)^2)` in the squares weighted by :math:`(c^d_k)^2`, where
:math:`c^d` are the noisy rows' coefficients: in every block of pooled directions it is James and
Stein's factor of the block, and with z = 1 and R = 1 it has the lowest unbiased estimate of the
risk (R. Beran and L. Duembgen, Ann. Statist. 26 (1998) 1826). A direction's gate is
:math:`\sqrt{v_k}` times this and :math:`1 - \sqrt{v_k}` times its own factor; or, where it is
larger, its own factor at z = 2.5: what stands out by itself, such as an unknown coefficient, needs
no neighbours.

What is closed follows the exact rows along the level set of
the noisy ones: with :math:`c = c^x + c^d` (exact and noisy rows), it moves by
:math:`(1 - q)(c^x - a\, c^d)`, where *a* keeps the noisy rows' sum of squares, to first order.

The split of output space by the tangent kernel: E. Litman and G. Guo, *A Theory of Generalization
in Deep Learning*, arXiv:2605.01172 (2026). Damping: K. Levenberg, Q. Appl. Math. 2 (1944) 164;
D. Marquardt, SIAM J. Appl. Math. 11 (1963) 431.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .jacobian import System
from .spectrum import NOT_FINITE, Spectrum, spectrum_of

ALONE = 2.5
"""Standard deviations from which a direction stands out by itself."""


class Tangent:
    """The kernel of a system of rows, decomposed in float64: r directions.

    Args:
        system: N rows and their Jacobian; products with the Jacobian are made in its dtype.
        z: threshold of the gate, in standard deviations; 0: all is open.
        gate: ``"monotone"`` or ``"stein"``.
        follow: whether what is closed follows the exact rows.
        left_out: trace of the kernel that may be left out, see :func:`sciml_snr.spectrum.truncated`
            (r as it comes); None: none, all eigenvectors (r = N).
        spectrum: the Jacobian's, where it is known already.

    Raises:
        FloatingPointError: a row or a derivative is not finite.
    """

    def __init__(
        self,
        system: System,
        z: float,
        gate: str,
        follow: bool,
        left_out: float | None = None,
        spectrum: Spectrum | None = None,
    ) -> None:
        rows, self.noisy, jacobian = system
        self.spectrum = spectrum or spectrum_of(jacobian, left_out)
        if not rows.isfinite().all():
            raise FloatingPointError(NOT_FINITE)
        self.values, self._basis = self.spectrum.values, self.spectrum.basis
        self.rows = rows
        self.noise = self._basis.square().T @ self.noisy
        """(r,) v: the variance of each direction's coefficient under the noise alone."""
        self._exact = self._basis.T @ (rows * (1 - self.noisy))
        self._data = self._basis.T @ (rows * self.noisy)
        self.coefficients = self._exact + self._data
        count = self.noisy.sum()
        self.misfit = float((rows.square() * self.noisy).sum() / count) if count else 1.0
        self.gate = self._own(z)
        """(r,) q, in the eigenvalues' order."""
        if gate == "monotone":
            share = self.noise.sqrt()
            pooled = share * self._pooled(z) + (1 - share) * self.gate
            self.gate = torch.maximum(pooled, self._own(max(ALONE, z))) if z else self.gate
        self._follow = follow and z > 0

    def _own(self, z: float) -> Tensor:
        """The factor of each direction alone, (r,)."""
        floor = z**2 * self.noise / max(self.misfit, 1.0)
        ratio = floor / self.coefficients.square().clamp_min(1e-300)
        return (1 - ratio).clamp_min(0)

    def _pooled(self, z: float) -> Tensor:
        """Factors that fall with the eigenvalue, (r,)."""
        floor = z**2 * self.noise / max(self.misfit, 1.0)
        return _falling(self._data.square().flip(0), floor.flip(0)).flip(0)

    def step(self, damping: float) -> tuple[Tensor, float]:
        """The step of all parameters, (P,), and the factor a (0 where nothing follows)."""
        if not self._follow:
            return self.apply(self._exact, self._data, damping, 0.0), 0.0
        closed = (1 - self.gate) / (self.values + damping)
        # What moves the noisy rows, and by which part: J J^T is diagonal in this basis.
        across, back = (
            float((self._data * self.values * closed * part).sum())
            for part in (self._exact, self._data)
        )
        back_by = across / back if back > 0 else 0.0
        return self.apply(self._exact, self._data, damping, back_by), back_by

    def apply(self, exact: Tensor, data: Tensor, damping: float, back: float) -> Tensor:
        """The step as a linear map of coefficients, those of the exact and of the noisy rows.

        Args:
            exact, data: (r,) or (r, m).
            damping: mu.
            back: a.

        Returns:
            (P,) or (P, m), float64.
        """
        columns = (...,) if exact.ndim == 1 else (..., None)
        gate, values = self.gate[columns], self.values[columns]
        moved = gate * (exact + data)
        if self._follow:
            moved = moved + (1 - gate) * (exact - back * data)
        return -self.spectrum.pulled(moved / (values + damping))

    def response(self, sensitivity: Tensor, signs: Tensor, damping: float, back: float) -> Tensor:
        """What a step adds to derivatives of the parameters by the noisy rows' errors.

        The gate counts as given.

        Args:
            sensitivity: (P, m), derivatives so far, along m changes of the data.
            signs: (N, m), these changes in units of sigma, 0 for exact rows.
            damping, back: of the step.

        Returns:
            (P, m).
        """
        moved = self.spectrum.pushed(sensitivity) - signs
        noisy = self.noisy[:, None]
        exact, data = self._basis.T @ (moved * (1 - noisy)), self._basis.T @ (moved * noisy)
        return self.apply(exact, data, damping, back)

    def fitted(self, step: Tensor) -> Tensor:
        """How a change of the parameters, (P,) or (P, m), changes the rows, (N,) or (N, m)."""
        return self.spectrum.pushed(step)


def _falling(data: Tensor, floor: Tensor) -> Tensor:
    """The falling sequence nearest to 1 - floor / data, weighted by data; cut at 0.

    By pooling adjacent violators: M. Ayer et al., Ann. Math. Statist. 26 (1955) 641.
    """
    blocks: list[tuple[float, float, int]] = []
    for d, f in zip(data.tolist(), floor.tolist(), strict=True):
        count = 1
        # Blocks' values must fall: a later one that is larger joins the one before.
        while blocks and f * blocks[-1][0] <= blocks[-1][1] * d:
            before = blocks.pop()
            d, f, count = d + before[0], f + before[1], count + before[2]
        blocks.append((d, f, count))
    values = [max(0.0, 1 - f / d) if d > 0 else 0.0 for d, f, _ in blocks]
    counts = torch.tensor([count for _, _, count in blocks], dtype=torch.int64)
    return torch.tensor(values, dtype=torch.float64).repeat_interleave(counts)
