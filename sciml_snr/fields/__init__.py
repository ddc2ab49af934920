"""Images and shapes as networks of the coordinates, fitted without memorizing the noise."""

from ..runs.options import FitOptions
from .fit import Objective, Training, train
from .image import ImageFit, fit_image
from .isosurface import SurfaceMetrics, surface_metrics
from .networks import NETWORKS, FourierFeatures, Siren, Softplus, Wire
from .points import Cloud, estimate_normals, estimate_sigma_points, read_cloud
from .surface import SDFFit, Weights, fit_sdf

__all__ = [
    "NETWORKS",
    "Cloud",
    "FitOptions",
    "FourierFeatures",
    "ImageFit",
    "Objective",
    "SDFFit",
    "Siren",
    "Softplus",
    "SurfaceMetrics",
    "Training",
    "Weights",
    "Wire",
    "estimate_normals",
    "estimate_sigma_points",
    "fit_image",
    "fit_sdf",
    "read_cloud",
    "surface_metrics",
    "train",
]
