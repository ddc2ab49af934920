"""Everything that knows DeepXDE. Importing this imports ``deepxde``."""

import deepxde as _deepxde  # noqa: F401  (before our own: what waits for it imports them)

from .compile import SNR_options, noise_of, register, set_SNR_options
from .conditions import NoisyPointSetBC, noisy
from .monitors import MemorizationMonitor, PopulationRiskMonitor
from .progress import ProgressBar

__all__ = [
    "MemorizationMonitor",
    "NoisyPointSetBC",
    "PopulationRiskMonitor",
    "ProgressBar",
    "SNR_options",
    "noise_of",
    "noisy",
    "register",
    "set_SNR_options",
]
