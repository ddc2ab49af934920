"""An image as its file has it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class Unreadable(ValueError):
    """A file that is known, and cannot be used; the message says why, and what helps."""


@dataclass(frozen=True, eq=False)
class ImageSource:
    """Pixels, and what their source says of them."""

    pixels: Array
    channel_axis: int | str | None = "auto"
    """Which axis counts channels; None where none does; "auto": it is not said."""
    alpha: bool = False
    """Whether the last channel is alpha, where ``channel_axis`` is said."""
    missing: NDArray[np.bool_] | None = None
    """Values that are not known, of the pixels' shape."""
