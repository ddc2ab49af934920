"""Noise-robust training for PINNs and neural fields: Adam gated by the gradient's signal-to-noise.

``import sciml_snr`` and ``model.compile("snr_adam", lr=1e-3)`` works in DeepXDE, whichever of the
two is imported first; DeepXDE itself is imported only by those who use it.
"""

import importlib
from types import ModuleType
from typing import Any

import wrapt

from ._version import __version__
from .checks import Floor
from .exact import exact_label_noise, exact_sampling_noise
from .gate import Gate
from .gauss_newton import SNRGaussNewton
from .jacobian import NoisyRows
from .noise import NoisyLoss, SampledLoss
from .snr_adam import GateStats, SNRAdam
from .snr_soap import SNRSOAP
from .terms import NoisyTerm

_LATER = {
    "deepxde": (
        "MemorizationMonitor",
        "NoisyPointSetBC",
        "PopulationRiskMonitor",
        "ProgressBar",
        "balanced_weights",
        "noisy",
        "set_SNR_options",
    ),
    "image_noise": ("ImageNoise", "inspect_noise"),
    "measure.channel": ("Trajectory",),
    "measure.error_bars": ("ErrorBars", "error_bars"),
    "measure.risk": ("PopulationRisk",),
    "measure.twins": (
        "Memorization",
        "ResidualSplit",
        "Twins",
        "measure_memorization",
        "memorized_map",
        "memorized_share",
        "share_from_misfit",
        "split_by",
        "split_residual",
    ),
    "photon_noise": ("PhotonNoise", "estimate_photon_noise"),
    "sigma": (
        "SigmaEstimate",
        "estimate_sigma_image",
        "estimate_sigma_repeats",
        "estimate_sigma_residuals",
        "estimate_sigma_scattered",
    ),
}
"""What is imported on first use, by module: it needs scipy, or DeepXDE and its settings."""

__all__ = [
    "SNRSOAP",
    "Floor",
    "Gate",
    "GateStats",
    "NoisyLoss",
    "NoisyRows",
    "NoisyTerm",
    "SNRAdam",
    "SNRGaussNewton",
    "SampledLoss",
    "__version__",
    "exact_label_noise",
    "exact_sampling_noise",
    *(name for names in _LATER.values() for name in names),
]


def _register(deepxde: ModuleType) -> None:
    importlib.import_module("sciml_snr.deepxde.compile").register(deepxde)


wrapt.register_post_import_hook(_register, "deepxde")


def __getattr__(name: str) -> Any:
    """Parts on first use (PEP 562)."""
    for module, names in _LATER.items():
        if name in names:
            return getattr(importlib.import_module(f"sciml_snr.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
