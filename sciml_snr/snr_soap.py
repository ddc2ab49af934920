r"""SNRSOAP: the signal-to-noise gate in the eigenbasis of the gradients' covariances.

In the parameters' own coordinates each gradient entry mixes signal and noise. SOAP (N. Vyas et al.,
*SOAP: Improving and Stabilizing Shampoo using Adam*, arXiv:2409.11321) runs Adam in the eigenbasis
of Shampoo's preconditioner: for a matrix parameter with gradient G (m, n),

.. math::
    L \leftarrow \beta L + (1-\beta) G G^T, \quad R \leftarrow \beta R + (1-\beta) G^T G, \qquad
    G' = Q_L^T G Q_R

with the eigenvectors Q of L and R, followed by one step of power iteration and a QR decomposition
every few steps. Here both moments, the floor and the gate live in these coordinates too. Draws H of
the gradient's noise (:mod:`sciml_snr.noise`) are rotated the same way; they have covariances of
their own, and ``basis`` says whose eigenvectors are taken.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from ._tensors import flattened, parts_of
from .bunch import Bunch
from .checks import Floor
from .options import plain_options, require_option
from .snr_adam import SNRAdam

BASES = ("both", "gradient", "floor")

_SIDES = ("row", "col")


class SNRSOAP(SNRAdam):
    r"""SOAP with the signal-to-noise gate of Litman and Guo (arXiv:2605.01172) in its eigenbasis.

    Parameters of two or more dimensions are treated as matrices (shape[0], rest); vectors, numbers
    and complex parameters keep their own coordinates. Beside SNRAdam's state it keeps, for an
    (m, n) parameter, up to three m x m and three n x n matrices. With ``gate="none"`` and
    ``basis="gradient"`` it is SOAP (without SOAP's idle first step).

    Args:
        params, betas, eps, weight_decay, options: as for :class:`SNRAdam`, which see.
        lr: learning rate.
        basis: eigenvectors of the covariances of the ``"gradient"``, of the noise's draws
            (``"floor"``: the directions in which the data can move the parameters, whatever the
            residuals), or of ``"both"``, each scaled to trace 1. Without declared noise: of the
            gradient.
        shampoo_beta: decay rate of these covariances.
        precondition_frequency: renew the basis every so many steps.
        max_precondition_dim: sides longer than this keep their coordinates.

    Raises:
        ValueError: an option is out of range; the message names it.

    Example:
        >>> data = NoisyLoss(sigma=0.1)
        >>> optimizer = SNRSOAP(net.parameters(), lr=1e-3, noise=data)
        >>> for _ in range(10_000):
        ...     optimizer.zero_grad()
        ...     data(net(x), y).backward()
        ...     optimizer.step()
    """

    name = "snr_soap"
    _state_keys = (
        *SNRAdam._state_keys,
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
        own = plain_options(
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
        validate_basis_options(plain_options(param_group))
        super().add_param_group(param_group)

    def _check_given(self, floor: Any) -> None:
        raise TypeError(
            "SNRSOAP takes no floor made by hand: it needs draws of the noise that it can rotate. "
            "Declare the noise: SNRSOAP(params, noise=sciml_snr.NoisyLoss(sigma))."
        )

    def _coordinates(self) -> str:
        return "the eigenbasis of the gradients' covariances"

    def _init_state(
        self, p: Tensor, group: Mapping[str, Any], floor: Floor | None
    ) -> dict[str, Any]:
        state = super()._init_state(p, group, floor)
        for side, size in _turned_sides(p, group).items():
            if f"{side}_cov" not in state:
                state[f"{side}_cov"] = state["exp_avg"].new_zeros(size, size)
                state[f"{side}_floor_cov"] = state["exp_avg"].new_zeros(size, size)
        return state

    def _turn(self, bunch: Bunch, grads: Sequence[Tensor], draws: Sequence[Tensor] | None) -> None:
        """Average in today's covariances; renew each basis that is due."""
        for i, (p, state) in enumerate(zip(bunch.params, bunch.states, strict=True)):
            if _is_matrix(p):
                draw = None if draws is None else draws[i].flatten(1)
                _turn(state, grads[i].flatten(1), draw, bunch.group)

    def _turned(self, bunch: Bunch, tensors: Sequence[Tensor]) -> Tensor:
        """Into the eigenbases, as one vector."""
        return flattened([_rotate(x, s) for x, s in zip(tensors, bunch.states, strict=True)])

    def _turned_back(self, bunch: Bunch, flat: Tensor) -> list[Tensor]:
        """A vector in the eigenbases as one tensor per parameter."""
        parts = parts_of(flat, bunch.params)
        return [_rotate(x, s, back=True) for x, s in zip(parts, bunch.states, strict=True)]

    def _take_ungated(self, group: dict[str, Any]) -> None:
        """SOAP's step without a gate; parameters without a basis take torch's Adam's."""
        turned = [p for p in group["params"] if _turned_sides(p, group)]
        others = [p for p in group["params"] if not _turned_sides(p, group)]
        super()._take_ungated({**group, "params": others})
        for bunch in self._bunches({**group, "params": turned}, None, None):
            own = bunch._replace(is_stream=False)
            *_, move = self._advance(own, None, None)
            own.add(self._turned_back(own, move))


def _is_matrix(p: Tensor) -> bool:
    return p.ndim >= 2 and p.numel() > 0 and not p.is_complex()


def _turned_sides(p: Tensor, group: Mapping[str, Any]) -> dict[str, int]:
    """The sides of a parameter that get a basis, with their lengths."""
    sides = zip(_SIDES, p.flatten(1).shape if _is_matrix(p) else (), strict=False)
    return {side: n for side, n in sides if 1 < n <= group["max_precondition_dim"]}


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
        for key in {"exp_avg_sq", "exp_grad_var", "exp_floor"} & state.keys():
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
