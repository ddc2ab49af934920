"""Everything that knows DeepXDE. Importing this imports ``deepxde``."""

import deepxde as _deepxde  # noqa: F401  (before our own: what waits for it imports them)

from .compile import register
from .conditions import NoisyPointSetBC, noisy
from .loss_weights import balanced_weights
from .model_noise import noise_of
from .monitors import MemorizationMonitor, PopulationRiskMonitor
from .options import SNR_options, set_SNR_options
from .progress import ProgressBar

__all__ = [
    "MemorizationMonitor",
    "NoisyPointSetBC",
    "PopulationRiskMonitor",
    "ProgressBar",
    "SNR_options",
    "balanced_weights",
    "noise_of",
    "noisy",
    "register",
    "set_SNR_options",
]
