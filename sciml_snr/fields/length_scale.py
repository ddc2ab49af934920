r"""How smooth is a function, by noisy samples of it? The length scale of a Gaussian process.

The samples are taken as :math:`y_i = f(x_i) + \sigma_i e_i`, and f as a Gaussian process of
covariance :math:`a \exp(-|x - x'|^2 / 2 \ell^2)`. The length scale is the one of the largest
marginal likelihood,

.. math:: -2 \log p = y^T K^{-1} y + \log \det K, \qquad K = a C(\ell) + \mathrm{diag}(\sigma^2)

over a grid of amplitudes and lengths (C. E. Rasmussen and C. K. I. Williams, Gaussian Processes for
Machine Learning, MIT Press 2006, section 5.4.1). Of many samples some are looked at: most of
them from everywhere, and some in one place, where what is fine can be seen.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, cho_factor, cho_solve
from scipy.spatial import cKDTree
from scipy.spatial.distance import pdist, squareform

Array = NDArray[np.float64]

WIDE, NEAR = 300, 100
"""Samples that are looked at: from everywhere, and next to one of them."""
LENGTHS = np.geomspace(0.05, 4.0, 30)
AMPLITUDES = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
"""Of standardized values: a is their variance, and of a slope over the whole box much more."""
LEAST = 1e-3
"""Of sigma, so that exact samples can be looked at, too."""


def length_scale(points: Array, values: Array, sigma: Array) -> float:
    """The shortest of all outputs' length scales.

    Args:
        points: (n, d), in about [-1, 1].
        values: (n, m), standardized.
        sigma: (n, m) or (1, m), standard deviations of the values' errors.

    Returns:
        A length from 0.05 to 4, in units of the points.
    """
    rows = _chosen(points)
    squares = squareform(pdist(points[rows], "sqeuclidean"))
    spread = np.broadcast_to(sigma, values.shape)[rows].clip(LEAST)
    shapes = [np.exp(-squares / (2 * length**2)) for length in LENGTHS]
    found = []
    for y, own in zip(values[rows].T, spread.T, strict=True):
        centered = y - np.average(y, weights=own**-2.0)
        misfits = [min(_misfit(a * shape, centered, own) for a in AMPLITUDES) for shape in shapes]
        found.append(float(LENGTHS[int(np.argmin(misfits))]))
    return min(found)


def _chosen(points: Array) -> NDArray[np.intp]:
    """Which samples are looked at."""
    if len(points) <= WIDE + NEAR:
        return np.arange(len(points))
    wide = np.random.default_rng(0).choice(len(points), WIDE, replace=False)
    _, near = cKDTree(points).query(points[wide[0]], k=NEAR)
    return np.union1d(wide, near)


def _misfit(covariance: Array, y: Array, sigma: Array) -> float:
    """-2 log of the marginal likelihood, but for a constant."""
    try:
        factor = cho_factor(covariance + np.diag(sigma**2), lower=True, overwrite_a=True)
    except LinAlgError:
        return math.inf
    return float(y @ cho_solve(factor, y) + 2 * np.log(np.diag(factor[0])).sum())
