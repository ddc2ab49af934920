"""Everything that knows DeepXDE. Importing this imports ``deepxde``."""

from .callbacks import ProgressBar
from .monitors import MemorizationMonitor, PopulationRiskMonitor
from .observations import NoisyPointSetBC
from .registration import SNR_options, register, set_SNR_options

__all__ = [
    "MemorizationMonitor",
    "NoisyPointSetBC",
    "PopulationRiskMonitor",
    "ProgressBar",
    "SNR_options",
    "register",
    "set_SNR_options",
]
