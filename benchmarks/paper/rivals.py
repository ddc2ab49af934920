"""A rival that is compared on the paper's experiments alone."""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer


def casmo(params: Any, **options: Any) -> Optimizer:
    """CASMO, of the package ``casmo-optimizer``: in the extra "bench".

    Raises:
        ModuleNotFoundError: the package is missing.
    """
    from casmo import CASMO

    found: Optimizer = CASMO(params, **options)
    return found
