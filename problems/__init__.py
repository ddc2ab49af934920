"""Differential equations with noisy measurements, one per file.

``PROBLEMS`` maps each name to its class; ``get(name)`` explains what there is to choose from, and
takes a file with a problem of the user's own (:mod:`sciml_snr.problems.files`).
"""

from . import files
from .allen_cahn import AllenCahn
from .base import Array, Observations, Problem
from .burgers import Burgers, BurgersBajaj
from .burgers_inverse import BurgersInverse
from .convection import Convection
from .elliptic import Elliptic, Elliptic2D
from .fisher import Fisher
from .heat import Heat
from .heat_forward import HeatForward
from .kovasznay import Kovasznay
from .lorenz import Lorenz
from .lynx_hare import LynxHare
from .navier_stokes import NavierStokes
from .outliers import ConvectionOutliers, HeatOutliers
from .poisson import Poisson, Poisson2D
from .schroedinger import Schroedinger
from .wave import Wave

PROBLEMS: dict[str, type[Problem]] = {
    cls.name: cls
    for cls in (
        Convection,
        ConvectionOutliers,
        HeatForward,
        Wave,
        Burgers,
        BurgersBajaj,
        AllenCahn,
        Schroedinger,
        Kovasznay,
        Heat,
        HeatOutliers,
        Fisher,
        BurgersInverse,
        Poisson,
        Poisson2D,
        Elliptic,
        Elliptic2D,
        NavierStokes,
        Lorenz,
        LynxHare,
    )
}
"""Forward problems first, then inverse ones."""


def get(name: str) -> type[Problem]:
    """The problem class of this name, or in this file (``my_problem.py``).

    Raises:
        ValueError: there is none; the message lists those there are, or says what is wrong with
            the file.
        FileNotFoundError: there is no such file.
    """
    if files.is_file(name):
        return files.load(name)
    if name not in PROBLEMS:
        raise ValueError(
            f"There is no problem {name!r}. Choose one of: {', '.join(PROBLEMS)}, or "
            "give a file of your own (my_problem.py; `sciml-snr new-problem` writes one)."
        )
    return PROBLEMS[name]


__all__ = [
    "PROBLEMS",
    "AllenCahn",
    "Array",
    "Burgers",
    "BurgersBajaj",
    "BurgersInverse",
    "Convection",
    "ConvectionOutliers",
    "Elliptic",
    "Elliptic2D",
    "Fisher",
    "Heat",
    "HeatForward",
    "HeatOutliers",
    "Kovasznay",
    "Lorenz",
    "LynxHare",
    "NavierStokes",
    "Observations",
    "Poisson",
    "Poisson2D",
    "Problem",
    "Schroedinger",
    "Wave",
    "get",
]
