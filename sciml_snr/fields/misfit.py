"""Has a fit left far more, or far less, than sigma says? Then it says so."""

from __future__ import annotations

import warnings

from ..runs.options import FitOptions
from .fit import Training

LARGE, SMALL = 2.0, 0.25
"""Mean squares of residual / sigma beyond which a fit is doubted. Errors that are in the fit lower
it: a fit that has memorized half of them is at 0.5."""
TRIAL = 100
"""A fit of fewer steps is a trial."""


SHARED = (
    ", as for noise that neighbouring pixels share (sciml_snr.inspect_noise looks at the noise)"
)
"""What may make the residuals of an image large."""


def report_misfit(training: Training, options: FitOptions, cause: str = "") -> None:
    """Warn where a whole fit has left far more, or far less, than sigma says.

    Args:
        training: of the fit; one of few steps is not judged, nor an interrupted one.
        options: of the fit.
        cause: why sigma might be too small.
    """
    if training.step < max(options.steps, TRIAL) or not training.history:
        return
    misfit = training.history[-1]["misfit"]
    found = f"The residuals' mean square is {misfit:.3g} times sigma squared."
    if misfit > LARGE:
        warnings.warn(
            f"{found} Either sigma is too small{cause}, or the fit needs more steps.", stacklevel=4
        )
    elif misfit < SMALL and options.optimizer != "adam":
        warnings.warn(
            f"{found} sigma seems to be too large: what is smaller than sigma is left out of the "
            "fit.",
            stacklevel=4,
        )
