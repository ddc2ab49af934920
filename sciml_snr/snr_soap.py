"""SNRSOAP: SNRAdam in the eigenbasis of the gradients' covariances."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.optim.optimizer import ParamsT

from .snr_adam import SNRAdam


class SNRSOAP(SNRAdam):
    r"""SOAP with the signal-to-noise gate of Litman and Guo (arXiv:2605.01172) in its eigenbasis.

    The name for ``SNRAdam(params, coordinates="eigen")``; see :mod:`sciml_snr.eigenbasis`.
    Parameters of two or more dimensions are treated as matrices (shape[0], rest); vectors, numbers
    and complex parameters keep their own coordinates. Beside SNRAdam's state it keeps, for an
    (m, n) parameter, up to three m x m and three n x n matrices. With ``gate="none"`` and
    ``basis="gradient"`` it is SOAP (without SOAP's idle first step).

    Args:
        params, lr, betas, eps, weight_decay, options: as for :class:`SNRAdam`, which see.

    Raises:
        ValueError: an option is out of range; the message names it.

    Example:
        >>> data = NoisyLoss(sigma=0.1)
        >>> optimizer = SNRSOAP(net.parameters(), lr=3e-3, noise=data)
        >>> for _ in range(10_000):
        ...     optimizer.zero_grad()
        ...     data(net(x), y).backward()
        ...     optimizer.step()
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 3e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        **options: Any,
    ) -> None:
        options = {"coordinates": "eigen", **options}
        super().__init__(params, lr, betas, eps, weight_decay, **options)
