r"""How much of the noise did the fit memorize?

With clean truth u, noise e, measurements y = u + e and fit f, the fit's error splits into a part
along the noise and the rest: :math:`f - u = \mu e + r`, :math:`r \perp e`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike


def memorized_share(fit: ArrayLike, clean: ArrayLike, noisy: ArrayLike) -> float:
    r"""Share of the noise in the fit, :math:`\mu = \langle f-u, e\rangle / \langle e, e\rangle`.

    0 for a fit that knows nothing of the noise, 1 for one that passes through every measurement.
    A least-squares fit of k parameters to n measurements has k/n on average (its degrees of freedom
    over n: Ye 1998; Efron 2004), so a good fit is above 0.

    Args:
        fit: f, the fit at the measured points, any shape.
        clean: u, the truth there, same shape.
        noisy: y, the measurements, same shape.

    Raises:
        ValueError: shapes differ, or there is no noise (noisy equals clean).
    """
    f, u, y = (np.asarray(a, dtype=float) for a in (fit, clean, noisy))
    if not f.shape == u.shape == y.shape:
        raise ValueError(f"fit, clean and noisy differ in shape: {f.shape}, {u.shape}, {y.shape}.")
    e = y - u
    energy = float(np.vdot(e, e))
    if energy == 0:
        raise ValueError("noisy equals clean: there is no noise to memorize.")
    return float(np.vdot(f - u, e)) / energy
