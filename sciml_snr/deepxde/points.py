"""More points at which an equation holds: they carry no error, and cost nothing to draw.

Gauss-Newton steps meet the equation so closely at its points that what is between them goes wrong
where there are few. Points that are drawn anew in every step do not cure it: with more parameters
than rows each step meets its own points at the cost of others, and nothing comes to rest
(benchmarks/NOTEBOOK.md).
"""

from __future__ import annotations

import zlib
from typing import Any

import deepxde as dde
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

EQUATION_POINTS = 1200
"""Points of the equation that there are at least: all of them are in every step of one equation."""


def more_points(data: Any, own: Array, wanted: int) -> Array:
    """Points of the equation beside a model's own, drawn from its geometry.

    The same ones for the same data, whatever else is random: a run that is resumed has them again.

    Args:
        data: a ``dde.data.PDE``.
        own: (n, d), the points at which it imposes its equation.
        wanted: how many there are to be in all.

    Returns:
        (m, d), m = wanted - n; none where the model has chosen its points itself (``num_domain`` is
        0, or ``replace_with_anchors``), and where the geometry draws none.
    """
    missing, none = wanted - len(own), own[:0]
    anchors = 0 if data.anchors is None else len(data.anchors)
    if missing <= 0 or not data.num_domain or len(own) <= anchors or dde.config.hvd is not None:
        return none
    kept = np.random.get_state()
    np.random.seed(zlib.crc32(np.ascontiguousarray(own).tobytes()))
    try:
        found = data.geom.random_points(missing, random="pseudo")
    except (NotImplementedError, AttributeError, ValueError):
        return none
    finally:
        np.random.set_state(kept)
    for place in () if data.exclusions is None else data.exclusions:
        found = found[~np.isclose(found, place).all(axis=1)]
    return np.asarray(found, dtype=own.dtype)
