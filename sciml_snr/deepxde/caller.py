"""Where a warning of a training belongs: at the user's line that trains."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import deepxde
import torch

_LIBRARIES = tuple(
    str(Path(file).parent) + os.sep
    for file in (str(Path(__file__).parent), deepxde.__file__, torch.__file__)
)
"""Folders of this package, DeepXDE and torch."""


def users_stacklevel() -> int:
    """The ``stacklevel`` with which ``warnings.warn``, in the function that calls this, names the
    innermost line outside of this package, DeepXDE and torch."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_LIBRARIES):
        frame, level = frame.f_back, level + 1
    return level
