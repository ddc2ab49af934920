r"""A fit as a linear regression: standard errors by its Jacobian.

The fit has residual rows r, those of measurements in units of their sigma, and their Jacobian J by
all parameters (:mod:`sciml_snr.jacobian`). Linearized there, the fit is a regression on n noisy and
m exact rows. Exact rows count ``exact_weight`` times. Weights of the network have a normal prior
of the precision mu; unknown coefficients have a flat one. With :math:`K = J_w J_w^T / \mu + I` (w:
weights, u: unknowns), :math:`F = J_u^T K^{-1} J_u`, and a quantity that has the gradient
:math:`h = (h_w, h_u)`,

.. math::
    b &= K^{-1}\,\bigl(J_w h_w / \mu + J_u F^{-1} c\bigr), \qquad
    c = h_u - J_u^T K^{-1} J_w h_w / \mu \\
    v &= |h_w|^2 / \mu - (J_w h_w / \mu)^T K^{-1} (J_w h_w / \mu) + c^T F^{-1} c

This is universal kriging with the tangent kernel (G. Matheron, Cahiers du CMM 1 (1969); C. E.
Rasmussen and C. K. I. Williams, *Gaussian Processes for Machine Learning* (2006), eq. 2.41, 2.42),
or Laplace's method for a network's weights (D. J. C. MacKay, Neural Comput. 4 (1992) 448). mu is
where the restricted likelihood of :math:`J_w w - r` is largest (H. D. Patterson and R. Thompson,
Biometrika 58 (1971) 545). The standard error s of the quantity has three parts:

.. math::
    s^2 = R \sum_{i\,\mathrm{noisy}} b_i^2
        + \bigl(v - \sum_{i\,\mathrm{noisy}} b_i^2\bigr) + (b^T r)^2

- *noise*: how the measurements' errors move it;
- *unresolved*: what neither data nor equations determine, between their points. Averaged over a
  field, v is the variance plus the squared bias of the fit: so bands of this width hold the truth
  as often as they say, on average over the points (G. Wahba, J. R. Statist. Soc. B 45 (1983) 133;
  D. Nychka, J. Amer. Statist. Assoc. 83 (1988) 1134);
- *left out*: how far the quantity would move if the fit were led to the end. A gate leaves signal
  behind; an optimizer stops early. The squared distance counts in full (compare the mean square
  error of N. L. Hjort and G. Claeskens, J. Amer. Statist. Assoc. 98 (2003) 879).

R is 1 where the errors' sigma is known. The residuals led to the end have the mean square
:math:`|r^*|^2 / (n - d)` over noisy rows, d the degrees of freedom. Where that is more than chance
(p < 0.01), model or sigma are wrong, and R is this number (R. T. Birge, Phys. Rev. 40 (1932) 207).
Where sigma is an estimate, R is always this number, and quantiles are Student's with n - d degrees
of freedom.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import optimize, stats
from torch import Tensor

from ..jacobian import System

Array = NDArray[np.float64]

EXACT_WEIGHT = 100.0
"""How many times exact rows count: as in the end of :class:`sciml_snr.SNRGaussNewton`."""

PRECISIONS = (1e-6, 1e6)
"""Where mu is looked for."""

DOUBTFUL = 0.01
"""Chance of so large a misfit, below which it is none."""

GENEROUS = 0.001
"""Chance of so small a misfit, below which it is none."""


class Parts(NamedTuple):
    """The parts of q standard errors, (q,) each."""

    noise: Array
    unresolved: Array
    left_out: Array

    @property
    def total(self) -> Array:
        """All parts together."""
        found: Array = np.sqrt(self.noise**2 + self.unresolved**2 + self.left_out**2)
        return found


def quantile(level: float, degrees: float = math.inf) -> float:
    """Standard errors to either side of an interval of this level.

    Args:
        level: between 0 and 1.
        degrees: of freedom, of Student's distribution; infinite: the normal one.

    Raises:
        ValueError: the level is not between 0 and 1.
    """
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, such as 0.95; got {level!r}.")
    distribution = stats.norm if math.isinf(degrees) else stats.t(degrees)
    return float(distribution.ppf((1 + level) / 2))


class Split:
    """A Jacobian by parameters of both kinds.

    Args:
        jacobian: (N, P), float64.
        free: (P,) which parameters have the flat prior.
    """

    def __init__(self, jacobian: Tensor, free: Tensor) -> None:
        self.free = free
        self.own, self.others = jacobian[:, ~free], jacobian[:, free]
        self.kernel = self.own @ self.own.T
        """J_w J_w^T, (N, N)."""


class Ridge:
    """A regression on rows, with a normal prior of some parameters and a flat one of others.

    Args:
        split: the Jacobian.
        precision: mu of the parameters with the normal prior.

    Raises:
        RuntimeError: mu is so small that rounding is more than 1 in K.
    """

    def __init__(self, split: Split, precision: float) -> None:
        self.precision = precision
        self._free, self._own, self._others = split.free, split.own, split.others
        whole = split.kernel / precision
        whole.diagonal().add_(1)
        self.factor = torch.linalg.cholesky(whole)
        """Cholesky's factor of K."""
        self._whitened = self.whitened(self._others)
        self.information = self._whitened.T @ self._whitened
        """F."""
        self.inverse = torch.linalg.pinv(self.information, hermitian=True)

    def whitened(self, columns: Tensor) -> Tensor:
        """Columns, (N, q), solved by the factor."""
        found: Tensor = torch.linalg.solve_triangular(self.factor, columns, upper=False)
        return found

    def projected(self, rows: Tensor) -> Tensor:
        """Square of rows, (N,), in the metric of K, less what the unknowns explain of it."""
        white = self.whitened(rows[:, None])
        explained = self._whitened.T @ white
        found: Tensor = white.square().sum() - (explained * (self.inverse @ explained)).sum()
        return found

    def maker(self) -> Tensor:
        """(N, N): what makes of the rows those that are left at the end."""
        across = torch.cholesky_solve(self._others, self.factor)
        found: Tensor = torch.cholesky_inverse(self.factor) - across @ self.inverse @ across.T
        return found

    def solution(self, rows: Tensor) -> Tensor:
        """The change of the parameters, (P,), by which rows, (N,), become smallest."""
        solved = torch.cholesky_solve(rows[:, None], self.factor)[:, 0]
        unknowns = self.inverse @ (self._others.T @ solved)
        across = torch.cholesky_solve((self._others @ unknowns)[:, None], self.factor)[:, 0]
        change = rows.new_zeros(len(self._free))
        change[~self._free] = -(self._own.T @ (solved - across)) / self.precision
        change[self._free] = -unknowns
        return change

    def moved(self, change: Tensor) -> Tensor:
        """How a change of the parameters, (P,), changes the rows, (N,)."""
        return self._own @ change[~self._free] + self._others @ change[self._free]

    def spread(self, gradients: Tensor) -> Spread:
        """Of quantities with these gradients, (q, P)."""
        own, others = gradients[:, ~self._free], gradients[:, self._free]
        white = self.whitened(self._own @ own.T / self.precision)
        left = others.T - self._whitened.T @ white
        solved = self.inverse @ left
        answers = torch.linalg.solve_triangular(
            self.factor.T, white + self._whitened @ solved, upper=True
        )
        lost = left - self.information @ solved
        return Spread(answers, lost, own / math.sqrt(self.precision), white, left, solved)


class Spread:
    """How sure q quantities are, made by :meth:`Ridge.spread`.

    Attributes:
        answers: (N, q): b, how they answer to the rows.
        lost: (k, q): what of their gradients by the unknowns no row determines.
    """

    def __init__(
        self,
        answers: Tensor,
        lost: Tensor,
        prior: Tensor,
        white: Tensor,
        left: Tensor,
        solved: Tensor,
    ) -> None:
        self.answers, self.lost = answers, lost
        self._prior, self._white, self._left, self._solved = prior, white, left, solved

    def variances(self) -> Tensor:
        """(q,): v."""
        found = self._prior.square().sum(1) - self._white.square().sum(0)
        return found + (self._left * self._solved).sum(0)

    def covariance(self) -> Tensor:
        """(q, q): the same with v on its diagonal."""
        found = self._prior @ self._prior.T - self._white.T @ self._white
        return found + self._left.T @ self._solved


class Regression:
    """A fit's rows, linearized: the formulas of this room.

    Args:
        system: rows and Jacobian, (N,) and (N, P).
        weights: (P,) the parameters as they are.
        free: (P,) which of them are unknown coefficients, with a flat prior.
        sigma_known: whether rows are in units of a sigma that is known.
        exact_weight: how many times exact rows count.

    Raises:
        ValueError: there are no noisy rows, or too few for an estimate of sigma.
        FloatingPointError: a row or derivative is not finite.
    """

    def __init__(
        self,
        system: System,
        weights: Tensor,
        free: Tensor,
        sigma_known: bool = True,
        exact_weight: float = EXACT_WEIGHT,
    ) -> None:
        if not system.noisy.any():
            raise ValueError(
                "There are no measurements whose error is known, so there is nothing that an "
                "error bar could be made of. Declare sigma: NoisyRows(residual, sigma), in DeepXDE "
                "NoisyPointSetBC(points, values, sigma)."
            )
        self.free, self.noisy = free, system.noisy > 0
        self.factors = torch.where(self.noisy, 1.0, math.sqrt(exact_weight)).double()
        """What rows are multiplied by."""
        self.rows, _, jacobian = in_float64(system).weighted(self.factors)
        if not (jacobian.isfinite().all() and self.rows.isfinite().all()):
            raise FloatingPointError(
                "A residual row, or its derivative by a parameter, is not finite."
            )
        self.ridge = _likeliest(jacobian, free, self.rows, weights.double())
        self.is_determined = _is_regular(self.ridge.information)
        """Whether the data determine all unknowns."""
        maker = self.ridge.maker()
        self.count = int(self.noisy.sum())
        """n, the number of noisy rows."""
        leverage = 1 - maker.diagonal()
        self.degrees_of_freedom = float(leverage[self.noisy].sum())
        """d, of the fit led to the end."""
        self.misfit = float(self.rows[self.noisy].square().mean())
        """Mean square of the noisy rows, at the fit."""
        left = self.count - self.degrees_of_freedom
        self.scale, self.is_doubtful = 1.0, False
        self.too_small = 0.0
        """Mean square of the noisy rows led to the end, if it is smaller than by chance; else 0."""
        if left >= 1:
            ended = float((maker @ self.rows)[self.noisy].square().sum())
            self.is_doubtful = bool(stats.chi2.sf(ended, left) < DOUBTFUL) and sigma_known
            if self.is_doubtful or not sigma_known:
                self.scale = ended / left
            elif stats.chi2.cdf(ended, left) < GENEROUS:
                self.too_small = ended / left
        elif not sigma_known:
            raise ValueError(
                f"sigma cannot be estimated: {self.count} measurements, and "
                f"{self.degrees_of_freedom:.1f} degrees of freedom fitted to them."
            )
        self.student = math.inf if sigma_known else left
        """Degrees of freedom of quantiles."""

    def parts(self, gradients: Tensor) -> Parts:
        """Of quantities with these gradients, (q, P)."""
        spread = self.ridge.spread(gradients.double())
        noise = spread.answers[self.noisy].square().sum(0)
        unresolved = (spread.variances() - noise).clamp_min(0)
        if not self.is_determined:
            by_unknowns = gradients[:, self.free].double().abs().amax(1)
            noise[spread.lost.abs().amax(0) > 1e-6 * by_unknowns] = math.inf
        found = noise.mul(self.scale).sqrt(), unresolved.sqrt(), -(spread.answers.T @ self.rows)
        return Parts(*(part.cpu().numpy() for part in found))

    def covariance(self, gradients: Tensor) -> Array:
        """(q, q) of quantities with these gradients: all three parts."""
        spread = self.ridge.spread(gradients.double())
        noise = spread.answers[self.noisy]
        shift = spread.answers.T @ self.rows
        found = spread.covariance() + (self.scale - 1) * noise.T @ noise + shift.outer(shift)
        return found.cpu().numpy()


def in_float64(system: System) -> System:
    """The same with derivatives in float64."""
    return system._replace(jacobian=system.jacobian.double())


def _likeliest(jacobian: Tensor, free: Tensor, rows: Tensor, weights: Tensor) -> Ridge:
    """With the precision of the largest restricted likelihood."""
    split = Split(jacobian, free)
    target = split.own @ weights[~free] - rows

    def loss(log: float) -> float:
        try:
            ridge = Ridge(split, math.exp(log))
        except RuntimeError:  # beyond rounding
            return math.inf
        size = ridge.factor.diagonal().log().sum()
        known = torch.linalg.eigvalsh(ridge.information)
        size = size + known.clamp_min(1e-300).log().sum() / 2
        return float(ridge.projected(target) / 2 + size)

    low, high = map(math.log, PRECISIONS)
    found = optimize.minimize_scalar(
        loss, bounds=(low, high), method="bounded", options={"xatol": 0.2}
    )
    return Ridge(split, math.exp(found.x))


def _is_regular(information: Tensor) -> bool:
    """Whether a matrix, scaled to a unit diagonal, is far from singular."""
    if not len(information):
        return True
    size = information.diagonal().sqrt()
    if not (size > 0).all():
        return False
    return bool(torch.linalg.eigvalsh(information / size.outer(size))[0] > 1e-10)
