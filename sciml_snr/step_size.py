"""What a Gauss-Newton step takes, before it is taken."""

from __future__ import annotations

from .spectrum import MAX_RANK

MAX_GIGABYTES = 4.0
"""Memory beyond which a step is refused, unless the optimizer was told otherwise."""

SECONDS_PER_ENTRY = 3e-8
"""CPU time of a step on one core, over entries of the Jacobian."""


def estimate(rows: int, parameters: int, itemsize: int = 4) -> tuple[float, float]:
    """Peak memory of a step in GB (1e9 bytes), and its seconds on one core.

    Three to four times the Jacobian while it is made, of the points' copies of the parameters, the
    gradients by them, and their collection; then once, and the directions that count.
    """
    rank = min(rows, parameters, MAX_RANK)
    entries = rows * parameters
    making = 3.7 * itemsize * entries
    solving = itemsize * (entries + 2 * rank * parameters) + 8 * 3 * rank * rows
    return max(making, solving) / 1e9, SECONDS_PER_ENTRY * entries


def check_size(
    rows: int, parameters: int, itemsize: int = 4, gigabytes: float = MAX_GIGABYTES
) -> None:
    """Refuse a step that would take too much memory.

    Raises:
        ValueError: says what it would take.
    """
    memory, seconds = estimate(rows, parameters, itemsize)
    if memory > gigabytes:
        raise ValueError(
            f"A Gauss-Newton step on {rows} residual rows and {parameters} parameters would take "
            f"about {memory:.1f} GB and {seconds:.0f} seconds on a core; up to {gigabytes:g} GB "
            "are taken (SNRGaussNewton(net, max_gigabytes=...)). Give fewer points, or use "
            '"snr_adam".'
        )
