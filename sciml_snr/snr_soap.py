r"""SNRSOAP: the signal-to-noise gate in the eigenbasis of the gradients' covariances.

In the parameters' own coordinates each gradient entry mixes signal and noise. SOAP (N. Vyas et al.,
*SOAP: Improving and Stabilizing Shampoo using Adam*, arXiv:2409.11321) runs Adam in the eigenbasis
of Shampoo's preconditioner: for a matrix parameter with gradient G (m, n),

.. math::
    L \leftarrow \beta L + (1-\beta) G G^T, \quad R \leftarrow \beta R + (1-\beta) G^T G, \qquad
    G' = Q_L^T G Q_R

with the eigenvectors Q of L and R, followed by one step of power iteration and a QR decomposition
every few steps. Here both moments, the floor and the gate live in these coordinates too. The floor
is made of random-sign gradients H (:class:`sciml_snr.LabelNoise`), rotated the same way; they have
covariances of their own, and ``basis`` says whose eigenvectors are taken.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from ._tensors import as_real, state_like
from .noise import NoiseFloor
from .snr_adam import Floor, SNRAdam, _Slot, plain_numbers, require_option

BASES = ("both", "gradient", "floor")

_SIDES = ("row", "col")


class SNRSOAP(SNRAdam):
    r"""SOAP with the signal-to-noise gate of Litman and Guo (arXiv:2605.01172) in its eigenbasis.

    With ``gate="none"`` and ``basis="gradient"`` it is SOAP (without SOAP's idle first step).
    Parameters of two or more dimensions are treated as matrices (shape[0], rest); vectors, numbers
    and complex parameters keep their own coordinates. Beside SNRAdam's state it keeps, for an
    (m, n) parameter, up to three m x m and three n x n matrices.

    Args:
        params, betas, eps, weight_decay, options: as for :class:`SNRAdam`, which see.
        lr: learning rate.
        basis: eigenvectors of the covariances of the ``"gradient"``, of the ``"floor"``'s draws
            (the directions in which the data can move the parameters, whatever the residuals), or
            of ``"both"``, each scaled to trace 1. Without a floor: of the gradient.
        shampoo_beta: decay rate of these covariances.
        precondition_frequency: renew the basis every so many steps.
        max_precondition_dim: sides longer than this keep their coordinates.

    Raises:
        ValueError: an option is out of range; the message names it.

    Example:
        >>> optimizer = SNRSOAP(net.parameters(), lr=3e-3, **LABEL_GATE)
        >>> floor = LabelNoise(net.parameters(), sigma=0.1)
        >>> for _ in range(10_000):
        ...     optimizer.zero_grad()
        ...     floor.backward(net(x), y)
        ...     optimizer.step(floor=floor)
    """

    _state_keys = (
        *SNRAdam._state_keys,
        "exp_floor",
        *(f"{side}_{name}" for side in _SIDES for name in ("basis", "cov", "floor_cov")),
    )

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 3e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        basis: str = "both",
        shampoo_beta: float = 0.95,
        precondition_frequency: int = 10,
        max_precondition_dim: int = 2048,
        **options: Any,
    ) -> None:
        own = plain_numbers(
            dict(
                basis=basis,
                shampoo_beta=shampoo_beta,
                precondition_frequency=precondition_frequency,
                max_precondition_dim=max_precondition_dim,
            )
        )
        validate_basis_options(own)
        super().__init__(params, lr, betas, eps, weight_decay, **options)
        self.defaults.update(own)
        for group in self.param_groups:
            group.update({**own, **group})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group; its own options are checked like the constructor's."""
        validate_basis_options(plain_numbers(param_group))
        super().add_param_group(param_group)

    def _in_own_coordinates(self, floor: Floor | None) -> Floor | None:
        """Turn each basis that is due, and average the floor's draws in the turned coordinates."""
        if floor is not None and not isinstance(floor, NoiseFloor):
            raise TypeError(
                "SNRSOAP needs a floor that it can rotate: a sciml_snr.NoiseFloor such as "
                f"LabelNoise, not a {type(floor).__name__} of variances."
            )
        rotated: dict[Tensor, Tensor] = {}
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None and not self.state.get(p):
                    continue
                state = self.state[p]
                if not state:
                    self._init_state(p, state)
                draw = None if floor is None or p.grad is None else _draw(floor, p, state)
                if _is_matrix(p) and p.grad is not None:
                    grad = p.grad.to(state["exp_avg"].dtype)
                    _turn(state, grad.flatten(1), None if draw is None else draw.flatten(1), group)
                if draw is not None and floor is not None:
                    state["floor_step"] += 1
                    h = as_real(_rotate(draw, state))
                    average = as_real(state["exp_floor"])
                    average.mul_(floor.rho).addcmul_(h, h, value=1 - floor.rho)
                if floor is not None and state["floor_step"] > 0:
                    correction = 1 - floor.rho ** state["floor_step"]
                    rotated[p] = state["exp_floor"] / correction
        return rotated

    def _init_state(self, p: Tensor, state: dict[str, Any]) -> None:
        super()._init_state(p, state)
        state["exp_floor"] = state_like(p)
        state["floor_step"] = 0
        if _is_matrix(p):
            group = next(g for g in self.param_groups if any(p is q for q in g["params"]))
            for side, size in zip(_SIDES, p.flatten(1).shape, strict=True):
                if 1 < size <= group["max_precondition_dim"]:
                    state[f"{side}_cov"] = state["exp_avg"].new_zeros(size, size)
                    state[f"{side}_floor_cov"] = state["exp_avg"].new_zeros(size, size)

    def _turned(self, x: Tensor, slot: _Slot, back: bool = False) -> Tensor:
        """Into the eigenbasis, or back."""
        return _rotate(x, slot.state, back)

    def _update(self, slots: list[_Slot], group: dict[str, Any]) -> list[Tensor | None]:
        """Adam's step in the turned coordinates, turned back."""
        moves = [torch.zeros_like(slot.param) for slot in slots]
        turned = []
        for slot, move in zip(slots, moves, strict=True):
            assert slot.grad is not None
            grad = _rotate(slot.grad, slot.state)
            turned.append(slot._replace(param=move, grad=grad))
        gates = super()._update(turned, group)
        for slot, move in zip(slots, moves, strict=True):
            slot.param.add_(_rotate(move, slot.state, back=True))
        return gates


def _draw(floor: NoiseFloor, p: Tensor, state: Mapping[str, Any]) -> Tensor | None:
    """The floor's draw for p; zeros where no noise has reached p yet, None if there was none."""
    if not floor.draws or p not in floor:
        return None
    draw = floor.draws.get(p)
    if draw is not None:
        return draw.to(state["exp_floor"].dtype)
    return None if state["exp_floor"].any() else torch.zeros_like(state["exp_floor"])


def _is_matrix(p: Tensor) -> bool:
    return p.ndim >= 2 and p.numel() > 0 and not p.is_complex()


def _rotate(x: Tensor, state: Mapping[str, Any], back: bool = False) -> Tensor:
    """Q_L^T x Q_R, or back; x as it is where the parameter has no basis."""
    rows, cols = state.get("row_basis"), state.get("col_basis")
    if rows is None and cols is None:
        return x
    matrix = x.flatten(1)
    if rows is not None:
        matrix = (rows if back else rows.T) @ matrix
    if cols is not None:
        matrix = matrix @ (cols.T if back else cols)
    return matrix.view(x.shape)


def _turn(state: dict[str, Any], grad: Tensor, draw: Tensor | None, group: dict[str, Any]) -> None:
    """Average in today's covariances; renew the basis if it is due, and turn the state with it."""
    weight = 1 - group["shampoo_beta"]
    for x, name in ((grad, "cov"), (draw, "floor_cov")):
        if x is not None:
            for side, along in zip(_SIDES, (x, x.T), strict=True):
                if f"{side}_{name}" in state:
                    outer = along @ along.T
                    # Squares that overflow have no say: they would stay for good.
                    outer = outer.where(outer.trace().isfinite(), 0)
                    state[f"{side}_{name}"].lerp_(outer, weight)
    if state["step"].item() % group["precondition_frequency"]:
        return
    mean = _rotate(state["exp_avg"], state, back=True)
    for dim, side in enumerate(_SIDES):
        if f"{side}_cov" not in state:
            continue
        cov = _mixed(state[f"{side}_cov"], state[f"{side}_floor_cov"], group["basis"])
        if f"{side}_basis" not in state:
            state[f"{side}_basis"] = torch.linalg.eigh(cov)[1].flip(1).contiguous()
            continue
        # One step of power iteration; the eigenvectors in falling order, the state along.
        basis = state[f"{side}_basis"]
        ahead = cov @ basis
        order = (basis * ahead).sum(0).argsort(descending=True, stable=True)
        for key in ("exp_avg_sq", "exp_grad_var", "exp_floor"):
            matrix = state[key].flatten(1)
            state[key] = matrix.index_select(dim, order).view_as(state[key])
        state[f"{side}_basis"] = torch.linalg.qr(ahead[:, order])[0]
    state["exp_avg"] = _rotate(mean, state)


def _mixed(cov: Tensor, floor_cov: Tensor, basis: str) -> Tensor:
    """The covariance whose eigenvectors are taken, each part scaled to trace 1 (or 0)."""
    parts = [c / c.trace().clamp_min(torch.finfo(c.dtype).tiny) for c in (cov, floor_cov)]
    if basis == "both":
        return parts[0] + parts[1]
    return parts[1] if basis == "floor" and floor_cov.trace() > 0 else parts[0]


def validate_basis_options(options: Mapping[str, Any]) -> None:
    """Check SNRSOAP's own options, those that are there.

    Raises:
        ValueError: names the option that is out of range and the range.
    """

    require = functools.partial(require_option, options)

    if "basis" in options:
        require("basis", options["basis"] in BASES, "one of " + ", ".join(map(repr, BASES)))
    if "shampoo_beta" in options:
        beta = options["shampoo_beta"]
        ok = isinstance(beta, (int, float)) and 0 <= beta < 1
        require("shampoo_beta", ok, "a number >= 0 and < 1")
    for name in ("precondition_frequency", "max_precondition_dim"):
        if name in options:
            ok = isinstance(options[name], int) and options[name] >= 1
            require(name, ok, "an integer >= 1")
