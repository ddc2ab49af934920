r"""The eigenbasis of a parameter's gradients: the coordinates of SOAP.

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

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

BASES = ("both", "gradient", "floor")

STATE_KEYS = tuple(
    f"{side}_{name}" for side in ("row", "col") for name in ("basis", "cov", "floor_cov")
)
"""What a parameter's state holds of its basis."""

_SIDES = ("row", "col")


def is_matrix(p: Tensor) -> bool:
    """Whether a parameter can have a basis: it has two or more dimensions, and is real."""
    return p.ndim >= 2 and p.numel() > 0 and not p.is_complex()


def sides_of(p: Tensor, group: Mapping[str, Any]) -> dict[str, int]:
    """The sides of a parameter that get a basis, with their lengths."""
    sides = zip(_SIDES, p.flatten(1).shape if is_matrix(p) else (), strict=False)
    return {side: n for side, n in sides if 1 < n <= group["max_precondition_dim"]}


def begin(p: Tensor, state: dict[str, Any], group: Mapping[str, Any]) -> None:
    """Add to a parameter's state what its basis needs, if it is not there."""
    if "row_cov" in state or "col_cov" in state:
        return
    for side, size in sides_of(p, group).items():
        state[f"{side}_cov"] = state["exp_avg"].new_zeros(size, size)
        state[f"{side}_floor_cov"] = state["exp_avg"].new_zeros(size, size)


def rotate(x: Tensor, state: Mapping[str, Any], back: bool = False) -> Tensor:
    """Q_L^T x Q_R, or back; x as it is where the parameter has no basis."""
    rows, cols = state.get("row_basis"), state.get("col_basis")
    if rows is None and cols is None:
        return x
    matrix = x if x.ndim == 2 else x.flatten(1)
    if rows is not None:
        matrix = (rows if back else rows.T) @ matrix
    if cols is not None:
        matrix = matrix @ (cols.T if back else cols)
    return matrix if x.ndim == 2 else matrix.view(x.shape)


def take_up(
    states: Sequence[dict[str, Any]],
    grads: Sequence[Tensor],
    draws: Sequence[Tensor] | None,
    shampoo_beta: float,
) -> None:
    """Average in today's covariances, in place.

    Args:
        states, grads, draws: per parameter. Their squares have to be finite.
        shampoo_beta: decay rate of the averages.
    """
    weight = 1 - shampoo_beta
    for name, tensors in (("cov", grads), ("floor_cov", draws)):
        if tensors is None:
            continue
        for x, state in zip(tensors, states, strict=True):
            rows, cols = state.get(f"row_{name}"), state.get(f"col_{name}")
            if rows is None and cols is None:
                continue
            x = x if x.ndim == 2 else x.flatten(1)
            if rows is not None:
                rows.addmm_(x, x.T, beta=shampoo_beta, alpha=weight)
            if cols is not None:
                cols.addmm_(x.T, x, beta=shampoo_beta, alpha=weight)


def renew(states: Sequence[dict[str, Any]], basis: str) -> bool:
    """Renew the bases, and turn the states with them, in place.

    The first basis are the eigenvectors; later ones follow by one step of power iteration.

    Args:
        states: per parameter.
        basis: one of :data:`BASES`.

    Returns:
        Whether there is any.
    """
    found = False
    for state in states:
        sides = [side for side in _SIDES if f"{side}_cov" in state]
        if not sides:
            continue
        found = True
        mean = rotate(state["exp_avg"], state, back=True)
        for side in sides:
            cov = _mixed(state[f"{side}_cov"], state[f"{side}_floor_cov"], basis)
            name = f"{side}_basis"
            if name not in state:
                state[name] = torch.linalg.eigh(cov)[1].flip(1).contiguous()
                continue
            # The eigenvectors in falling order, the state along.
            ahead = cov @ state[name]
            order = (state[name] * ahead).sum(0).argsort(descending=True, stable=True)
            dim = _SIDES.index(side)
            for key in {"exp_avg_sq", "exp_floor", "exp_grad_var"} & state.keys():
                matrix = state[key].flatten(1)
                state[key].copy_(matrix.index_select(dim, order).view_as(state[key]))
            state[name] = torch.linalg.qr(ahead[:, order])[0]
        state["exp_avg"].copy_(rotate(mean, state))
    return found


def _mixed(cov: Tensor, floor_cov: Tensor, basis: str) -> Tensor:
    """The covariance whose eigenvectors are taken, each part scaled to trace 1 (or 0)."""
    parts = [c / c.trace().clamp_min(torch.finfo(c.dtype).tiny) for c in (cov, floor_cov)]
    if basis == "both":
        return parts[0] + parts[1]
    return parts[1] if basis == "floor" and floor_cov.trace() > 0 else parts[0]
