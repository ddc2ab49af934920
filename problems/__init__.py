"""Differential equations with noisy measurements, one per file.

``PROBLEMS`` maps each name to its class; ``get(name)`` explains what there is to choose from.
"""

from .base import Array, Observations, Problem
from .convection import Convection
from .heat import Heat
from .lynx_hare import LynxHare

PROBLEMS: dict[str, type[Problem]] = {cls.name: cls for cls in (Convection, Heat, LynxHare)}


def get(name: str) -> type[Problem]:
    """The problem class of this name.

    Raises:
        ValueError: there is none; the message lists those there are.
    """
    if name not in PROBLEMS:
        raise ValueError(f"There is no problem {name!r}. Choose one of: {', '.join(PROBLEMS)}.")
    return PROBLEMS[name]


__all__ = ["PROBLEMS", "Array", "Convection", "Heat", "LynxHare", "Observations", "Problem", "get"]
