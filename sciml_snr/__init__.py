"""Noise-robust training for PINNs and neural fields: Adam gated by the gradient's signal-to-noise.

``import sciml_snr`` and ``model.compile("snr_adam", lr=1e-3)`` works in DeepXDE, whichever of the
two is imported first; DeepXDE itself is imported only by those who use it.
"""

import importlib
from types import ModuleType
from typing import Any

import wrapt

from ._version import __version__
from .gate import EXACT_GATES, GATES, LABEL_GATE
from .memorization import (
    Memorization,
    ResidualSplit,
    Twins,
    measure_memorization,
    memorized_map,
    memorized_share,
    share_from_misfit,
    split_by,
    split_residual,
)
from .noise import (
    LabelNoise,
    NoiseFloor,
    NoisyTerm,
    SamplingNoise,
    StreamNoise,
    exact_label_noise,
    exact_sampling_noise,
)
from .population_risk import PopulationRisk
from .sigma import (
    SigmaEstimate,
    estimate_sigma_image,
    estimate_sigma_repeats,
    estimate_sigma_residuals,
    estimate_sigma_scattered,
)
from .snr_adam import Floor, GateStats, SNRAdam
from .snr_soap import SNRSOAP

__all__ = [
    "EXACT_GATES",
    "GATES",
    "LABEL_GATE",
    "SNRSOAP",
    "Floor",
    "GateStats",
    "LabelNoise",
    "Memorization",
    "MemorizationMonitor",
    "NoiseFloor",
    "NoisyPointSetBC",
    "NoisyTerm",
    "PopulationRisk",
    "PopulationRiskMonitor",
    "ProgressBar",
    "ResidualSplit",
    "SNRAdam",
    "SamplingNoise",
    "SigmaEstimate",
    "StreamNoise",
    "Trajectory",
    "Twins",
    "__version__",
    "estimate_sigma_image",
    "estimate_sigma_repeats",
    "estimate_sigma_residuals",
    "estimate_sigma_scattered",
    "exact_label_noise",
    "exact_sampling_noise",
    "measure_memorization",
    "memorized_map",
    "memorized_share",
    "set_SNR_options",
    "share_from_misfit",
    "split_by",
    "split_residual",
]

_IN_DDE = (
    "MemorizationMonitor",
    "NoisyPointSetBC",
    "PopulationRiskMonitor",
    "ProgressBar",
    "set_SNR_options",
)


def _register(deepxde: ModuleType) -> None:
    importlib.import_module("sciml_snr.dde.registration").register(deepxde)


wrapt.register_post_import_hook(_register, "deepxde")


def __getattr__(name: str) -> Any:
    """Parts on first use (PEP 562): importing DeepXDE's sets its backend and device."""
    if name in _IN_DDE:
        return getattr(importlib.import_module("sciml_snr.dde"), name)
    if name == "Trajectory":  # scipy's sparse solvers and torch.func, for those who use them
        return importlib.import_module("sciml_snr.tangent_kernel").Trajectory
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
