"""How parameters of unusual dtypes are treated, in the optimizer and in the floors."""

import torch
from torch import Tensor


def as_real(x: Tensor) -> Tensor:
    """A complex tensor as pairs of reals, as in torch's Adam; others as they are."""
    return torch.view_as_real(x) if x.is_complex() else x


def is_16_bit(p: Tensor) -> bool:
    """Whether a parameter's state is to be kept in float32: squares would underflow."""
    return p.dtype in (torch.float16, torch.bfloat16)
