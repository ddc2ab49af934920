"""Images and shapes as networks of the coordinates, fitted without memorizing the noise."""

from .fit import FitOptions, Objective, Training, train
from .networks import NETWORKS, FourierFeatures, Siren, Wire

__all__ = [
    "NETWORKS",
    "FitOptions",
    "FourierFeatures",
    "Objective",
    "Siren",
    "Training",
    "Wire",
    "train",
]
