"""Values, standard errors and intervals in words. Imports nothing: the command line needs it."""

from __future__ import annotations

import math


def statement(name: str, value: float, standard_error: float, interval: tuple[float, float]) -> str:
    """``k = 0.713 +- 0.031 (95 %: 0.65 to 0.77)``.

    Where the interval of a quantity with a known sign spans a factor of more than 100, or has no
    end, it says so: ``not determined by these data``.
    """
    found = f"{name} = {text(value, standard_error)} (95 %: {ends(*interval)})"
    return found if is_determined(*interval) else f"{found}: not determined by these data"


FACTOR = 100
"""Of the ends of an interval: beyond it not even the order of magnitude is known."""


def is_determined(low: float, high: float) -> bool:
    """Whether an interval tells the order of magnitude, or the size of what may be zero."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return False
    if low * high <= 0:
        return True
    return max(low / high, high / low) <= FACTOR


def text(value: float, standard_error: float) -> str:
    """A value and its standard error with two digits of it: 0.713 +- 0.031."""
    if not math.isfinite(standard_error):
        return f"{value:.4g} +- ?"
    if standard_error == 0:
        return f"{value:.4g} +- 0"
    place = math.floor(math.log10(standard_error)) - 1
    if place >= 0 or place < -8:
        return f"{value:.4g} +- {standard_error:.2g}"
    return f"{value:.{-place}f} +- {standard_error:.{-place}f}"


def ends(low: float, high: float) -> str:
    """Both ends of an interval, with digits that its width bears."""
    width = high - low
    if not (math.isfinite(width) and width > 0) or max(abs(low), abs(high)) >= 1e6:
        return f"{low:.4g} to {high:.4g}"
    digits = max(0, 1 - math.floor(math.log10(width)))
    return f"{low:.4g} to {high:.4g}" if digits > 8 else f"{low:.{digits}f} to {high:.{digits}f}"
