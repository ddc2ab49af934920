"""Problems whose measurements have heavy tails."""

from __future__ import annotations

from .convection import Convection
from .heat import Heat


class ConvectionOutliers(Convection):
    """:class:`Convection` with 15 % outliers among the initial values.

    Each outlier's error has ten times the standard deviation that is stated for all measurements
    (Tukey's contaminated normal; ``OUTLIER_SCALE``), here 0.3, so that the whole noise has a
    standard deviation of about 1.2. The squared error is not robust, and neither floor nor gate
    knows of the tails: the noise is larger than it is told to be.
    """

    name = "convection_outliers"
    equation = "as convection, 15 % outliers"
    noise = 0.3
    outliers = 0.15


class HeatOutliers(Heat):
    """:class:`Heat` with 15 % outliers; see :class:`ConvectionOutliers`."""

    name = "heat_outliers"
    equation = "as heat, 15 % outliers"
    outliers = 0.15
