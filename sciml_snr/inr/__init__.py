"""Images and shapes as networks of the coordinates, fitted without memorizing the noise."""

from .fit import FitOptions, Objective, Training, train
from .images import ImageFit, fit_image
from .networks import NETWORKS, FourierFeatures, Siren, Wire

__all__ = [
    "NETWORKS",
    "FitOptions",
    "FourierFeatures",
    "ImageFit",
    "Objective",
    "Siren",
    "Training",
    "Wire",
    "fit_image",
    "train",
]
