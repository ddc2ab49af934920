"""Functions, images and shapes as networks of the coordinates, without memorizing the noise."""

from ..runs.options import FitOptions
from .field import fit_field
from .field_fit import FieldFit
from .fit import Objective, Training, train
from .function import Field
from .image import ImageFit, fit_image
from .isosurface import SurfaceMetrics, surface_metrics
from .networks import NETWORKS, FourierFeatures, Siren, Softplus, Wire
from .operators import Blur, BoxMeans, Fourier, LineIntegrals, time_integrals
from .points import Cloud, estimate_normals, estimate_sigma_points, read_cloud
from .surface import SDFFit, Weights, fit_sdf

__all__ = [
    "NETWORKS",
    "Blur",
    "BoxMeans",
    "Cloud",
    "Field",
    "FieldFit",
    "FitOptions",
    "Fourier",
    "FourierFeatures",
    "ImageFit",
    "LineIntegrals",
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
    "fit_field",
    "fit_image",
    "fit_sdf",
    "read_cloud",
    "surface_metrics",
    "time_integrals",
    "train",
]
