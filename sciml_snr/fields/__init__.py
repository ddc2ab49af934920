"""Functions, images and shapes as networks of the coordinates, without memorizing the noise."""

from ..runs.options import FitOptions
from .field import fit_field
from .field_fit import FieldFit
from .fit import Objective, Training, train
from .function import Field
from .image import fit_image
from .image_fit import ImageFit
from .isosurface import SurfaceMetrics, surface_metrics
from .networks import NETWORKS, FourierFeatures, Siren, Softplus, Wire
from .normals import estimate_normals
from .operators import Blur, BoxMeans, Fourier, LineIntegrals, time_integrals
from .patches import estimate_sigma_points
from .points import Cloud, read_cloud
from .surface import fit_sdf
from .surface_fit import SDFFit
from .surface_objective import Weights

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
