"""Other optimizers, at their own defaults but for the learning rate."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..problems import Problem
from ..runs.options import PROBLEM_OPTIMIZERS, ProblemConfig
from ..runs.run import compile_model


class CautiousAdamW(torch.optim.AdamW):
    """AdamW that moves an entry only where step and gradient agree: Liang et al., arXiv:2411.16085.

    (pytorch-optimizer has the mask for other optimizers, not for AdamW.)
    """

    def step(self, closure: Any = None) -> Any:
        """Adam's step, masked; the mask scaled to a mean of 1."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        params = [p for g in self.param_groups for p in g["params"] if p.grad is not None]
        before = [p.detach().clone() for p in params]
        super().step()
        with torch.no_grad():
            for p, old in zip(params, before, strict=True):
                move = p - old
                agree = (move * p.grad < 0).to(p.dtype)
                p.copy_(old + move * agree / agree.mean().clamp_min(1e-3))
        return loss


class MSVAG(Optimizer):
    r"""M-SVAG, momentum with variance adaptation: Balles and Hennig, ICML 2018, arXiv:1705.07774.

    With moving averages :math:`m, v` of g and g^2, both of rate beta and bias-corrected by
    :math:`1 - \beta^t`,

    .. math::
        \rho = \frac{(1 - \beta)(1 + \beta^t)}{(1 + \beta)(1 - \beta^t)}, \quad
        s = \frac{v - m^2}{1 - \rho}, \quad
        \gamma = \frac{m^2}{m^2 + \rho s}, \quad
        w \leftarrow w - \eta \gamma m

    s estimates the gradient's variance, rho s that of m. In the first step rho = 1, v = m^2, and
    gamma = 1. Where m = v = 0, gamma = 0.

    Args:
        params: the parameters, or groups of them.
        lr: eta; there is no division by sqrt(v), so that it is a rate for gradient descent.
        beta: the rate of the averages.

    Raises:
        ValueError: lr or beta is out of range.
    """

    def __init__(self, params: Iterable[Any], lr: float = 0.1, beta: float = 0.9) -> None:
        if not 0 < lr < float("inf"):
            raise ValueError(f"lr must be a positive number, got {lr}.")
        if not 0 <= beta < 1:
            raise ValueError(f"beta must be in [0, 1), got {beta}.")
        super().__init__(params, {"lr": lr, "beta": beta})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            beta = group["beta"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state |= {"step": 0, "m": torch.zeros_like(p), "v": torch.zeros_like(p)}
                state["step"] += 1
                state["m"].lerp_(p.grad, 1 - beta)
                state["v"].lerp_(p.grad.square(), 1 - beta)
                left = beta ** state["step"]
                m, v = state["m"] / (1 - left), state["v"] / (1 - left)
                rho = (1 - beta) * (1 + left) / ((1 + beta) * (1 - left))
                variance = (v - m.square()).clamp_min(0) / (1 - rho) if rho < 1 else 0.0
                gamma = (m.square() / (m.square() + rho * variance)).nan_to_num(nan=0.0)
                p.sub_(group["lr"] * gamma * m)
        return loss


Build = Callable[[list[Tensor], float], Optimizer]
RIVALS: dict[str, Build] = {
    "AdaBelief": lambda params, lr: _packaged().AdaBelief(params, lr=lr),
    "M-SVAG": lambda params, lr: MSVAG(params, lr=lr),
    "Grokfast AdamW": lambda params, lr: _packaged().GrokFastAdamW(params, lr=lr),
    "Cautious AdamW": lambda params, lr: CautiousAdamW(params, lr=lr),
    "SOAP": lambda params, lr: _packaged().SOAP(params, lr=lr, weight_decay=0.0),
}
PACKAGED = ("AdaBelief", "Grokfast AdamW", "SOAP")
"""Those that need pytorch-optimizer."""


def check_packaged(name: str) -> None:
    """Refuse a rival whose package is not there.

    Raises:
        ValueError: says what to install.
    """
    if name in PACKAGED:
        _packaged()


def compile_any(config: ProblemConfig, problem: Problem) -> Any:
    """A seeded model compiled with one of PROBLEM_OPTIMIZERS or of the rivals."""
    if config.optimizer in PROBLEM_OPTIMIZERS:
        return compile_model(config, problem)
    model = compile_model(replace(config, optimizer="adam"), problem)
    unknowns = list(problem.unknowns.values())
    assert config.lr is not None
    assert config.optimizer is not None
    model.compile(
        RIVALS[config.optimizer]([*model.net.parameters(), *unknowns], config.lr),
        loss_weights=problem.loss_weights(),
        external_trainable_variables=unknowns,
        verbose=0,
    )
    return model


def _packaged() -> Any:
    try:
        import pytorch_optimizer
    except ImportError as error:
        raise ValueError(
            f'{", ".join(PACKAGED)} need the extra "bench": pip install '
            f'"sciml-snr[bench]" ({error}).'
        ) from None
    return pytorch_optimizer
