r"""Tangent kernel, signal channel and reservoir of a network in training.

With outputs :math:`u = U_S(w)` at the training points, test outputs :math:`U_Q`, their Jacobians
:math:`J_S, J_Q` in the weights, output gradient g and output Hessian B of the loss, and a diagonal
preconditioner M (:math:`\Delta w = -\eta M J_S^T g`):

.. math::
    K_{SS} = J_S M J_S^T, \quad K_{QS} = J_Q M J_S^T, \qquad
    P \leftarrow (I - \eta B K_{SS}) P, \quad W_S \mathrel{+}= \eta P^T K_{SS} P, \quad
    G_S \mathrel{+}= \eta K_{SS} P, \quad G_Q \mathrel{+}= \eta K_{QS} P

so that, to first order in the step and along the path really taken (no frozen kernel),
:math:`g(T) = P g(s)`, :math:`U(T) - U(s) = -G g(s)` and
:math:`\Phi(s) - \Phi(T) = g(s)^T W_S g(s)`. The *signal channel* is the range of :math:`W_S`, the
*reservoir* its kernel: what lies there cannot move a test prediction, :math:`G_Q v = 0`. With
squared loss, test displacements follow from training ones:
:math:`U_Q(T) - U_Q(s) = A\,(U_S(T) - U_S(s))`, :math:`A = G_Q G_S^+`.

Source: E. Litman and G. Guo, *A Theory of Generalization in Deep Learning*, arXiv:2605.01172
(2026).

Costs, for n outputs at n_q test outputs and p weights: a kernel takes n^2 + n p numbers while it is
made; a :class:`Trajectory` 6 n^2 + 2 n_q n + (2 n + n_q) p in float64, and per recorded step
n^2 (p + 3 n) multiplications or so; :func:`kernel_operator` a few p and n, and two passes through
the network per product.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor, nn
from torch.func import functional_call, jacrev, jvp, vjp, vmap
from torch.optim import Optimizer

from .. import rule
from ..snr_adam import SNRAdam
from .twins import as_array

MAX_BYTES = 2**31
"""Larger kernels and trajectories are refused."""

ROWS = 256
"""Rows of points that go through the network's Jacobian at a time."""


def tangent_kernel(
    net: nn.Module,
    x: Tensor,
    other: Tensor | None = None,
    *,
    preconditioner: Tensor | None = None,
    max_bytes: int = MAX_BYTES,
) -> Tensor:
    r"""The empirical tangent kernel :math:`J(x) M J(x')^T`.

    Args:
        net: a network that treats rows one by one (no batch normalization in training mode).
        x: (n, d) points.
        other: (n', d) points x'; by default x.
        preconditioner: (p,) the diagonal of M, over the trainable weights in the order of
            ``net.named_parameters()``; see :func:`preconditioner_of`. By default 1.
        max_bytes: refuse what takes more.

    Returns:
        (n m, n' m) for m outputs, a point's outputs next to each other; in the weights' dtype.

    Raises:
        ValueError: the preconditioner has another length than the weights.
        MemoryError: it is too large; says how large.
    """
    m = _outputs(net, x)
    rows, columns = len(x) * m, (len(x) if other is None else len(other)) * m
    params = _weights(net)
    scale = _checked(preconditioner, params)
    numbers = rows * columns + (rows + (0 if other is None else columns)) * _size(params)
    _refuse_above(
        max_bytes,
        numbers * next(iter(params.values())).dtype.itemsize,
        f"The tangent kernel of {rows} x {columns} outputs and {_size(params)} weights",
        "Take fewer points, or kernel_operator, which never forms it.",
    )
    left = jacobian(net, x)
    right = left if other is None else jacobian(net, other)
    return left @ right.T if scale is None else (left * scale) @ right.T


def jacobian(net: nn.Module, x: Tensor) -> Tensor:
    """(n m, p) derivatives of all outputs at (n, d) points by all trainable weights.

    The weights in the order of ``net.named_parameters()``, a point's outputs next to each other.
    """
    params = _weights(net)

    def outputs(weights: dict[str, Tensor], row: Tensor) -> Tensor:
        found: Tensor = functional_call(net, weights, (row[None],))
        return found[0]

    by_row: Callable[..., dict[str, Tensor]] = vmap(
        jacrev(outputs), in_dims=(None, 0), chunk_size=ROWS
    )
    n = len(x) * _outputs(net, x)
    return torch.cat([d.reshape(n, -1) for d in by_row(params, x).values()], dim=1).detach()


def kernel_operator(
    net: nn.Module, x: Tensor, *, preconditioner: Tensor | None = None
) -> LinearOperator:
    """The same kernel as a ``scipy.sparse.linalg.LinearOperator`` that never forms the matrix.

    For thousands of outputs and more: eigenvalues by :func:`spectrum`, solves by scipy's ``cg``.

    Args, Raises: as for :func:`tangent_kernel`.
    """
    params = _weights(net)
    names, sizes = list(params), [p.numel() for p in params.values()]
    scale = _checked(preconditioner, params)
    scales = [None] * len(names) if scale is None else list(torch.split(scale, sizes))

    def outputs(*weights: Tensor) -> Tensor:
        found: Tensor = functional_call(net, dict(zip(names, weights, strict=True)), (x,))
        return found.flatten()

    weights = tuple(params.values())

    def product(v: NDArray[np.float64]) -> NDArray[np.float64]:
        u, pull = vjp(outputs, *weights)  # type: ignore[misc]
        back = pull(torch.as_tensor(v.ravel()).to(u))
        moved = tuple(
            b if s is None else b * s.view_as(b) for b, s in zip(back, scales, strict=True)
        )
        return as_array(jvp(outputs, weights, moved)[1])

    n = len(x) * _outputs(net, x)
    return LinearOperator((n, n), matvec=product, rmatvec=product, dtype=np.float64)


def spectrum(kernel: Tensor | LinearOperator, k: int | None = None) -> Tensor:
    """The eigenvalues of a kernel in falling order: all of a matrix, or the k largest.

    Args:
        kernel: symmetric, of :func:`tangent_kernel` or :func:`kernel_operator`.
        k: how many; needed for an operator, whose k < n largest come by Lanczos iteration.

    Raises:
        ValueError: k is missing or out of range for an operator.
    """
    if isinstance(kernel, Tensor):
        values: Tensor = torch.linalg.eigvalsh(kernel.double())
        return values.flip(0)[:k]
    n = kernel.shape[0]
    if k is None or not 1 <= k < n:
        raise ValueError(f"k must be given, from 1 to {n - 1}, for a kernel that is no matrix.")
    values = eigsh(kernel, k=k, which="LM", return_eigenvectors=False)
    return torch.as_tensor(np.sort(values)[::-1].copy())


def preconditioner_of(net: nn.Module, optimizer: Optimizer) -> Tensor:
    r"""The diagonal by which the optimizer's last step scaled each weight's gradient.

    Adam: :math:`1/(\sqrt{\hat v} + \epsilon)`; SNRAdam: q times that; weights without such a
    state (SGD's, those not yet stepped): 1. Momentum is no part of it, nor how SNRAdam lets exact
    terms move what its gate has closed, which is no multiple of the noisy terms' gradient.

    Returns:
        (p,), in the order of ``net.named_parameters()``.

    Raises:
        ValueError: the optimizer is diagonal in the eigenbasis only.
    """
    if isinstance(optimizer, SNRAdam) and any(map(optimizer.is_turned, optimizer.param_groups)):
        raise ValueError(
            "A preconditioner in the eigenbasis (SNRSOAP, or beside exact terms SNRAdam) is no "
            'diagonal in the parameters themselves: train with SNRAdam(coordinates="own").'
        )
    groups = {p: group for group in optimizer.param_groups for p in group["params"]}
    parts = []
    for p in _trainable(net).values():
        state = optimizer.state.get(p, {})
        if "exp_avg_sq" not in state:
            parts.append(torch.ones(p.numel(), dtype=p.dtype, device=p.device))
        elif isinstance(optimizer, SNRAdam) and (moments := optimizer.moments(p)) is not None:
            scale = 1 / rule.denominator(moments)
            q = rule.openness(moments)
            parts.append(scale if q is None else scale * q)
        else:
            group = groups[p]
            v = state["exp_avg_sq"] / (1 - group["betas"][1] ** float(state["step"]))
            parts.append((1 / (v.sqrt() + group["eps"])).flatten())
    return torch.cat(parts).detach()


class Channel(NamedTuple):
    """The signal channel: where in output space training has dissipated loss."""

    eigenvalues: Tensor
    """(n,) of W_S, in falling order."""
    vectors: Tensor
    """(n, n) its eigenvectors, in columns; the first ``dimension`` span the channel."""
    dimension: int

    @property
    def basis(self) -> Tensor:
        """(n, dimension) an orthonormal basis of the channel."""
        return self.vectors[:, : self.dimension]

    @property
    def reservoir(self) -> Tensor:
        """(n, n - dimension) an orthonormal basis of the reservoir."""
        return self.vectors[:, self.dimension :]

    @property
    def projector(self) -> Tensor:
        """(n, n) the orthogonal projection onto the channel."""
        return self.basis @ self.basis.T

    def split(self, residual: Tensor) -> tuple[float, float]:
        """Energies (sums of squares) of a residual (n,) in the channel and in the reservoir."""
        flat = residual.detach().flatten().double()
        return tuple(float((b.T @ flat).square().sum()) for b in (self.basis, self.reservoir))  # type: ignore[return-value]


class Trajectory:
    """What a run of (preconditioned) gradient descent does in output space, step by step.

    Call :meth:`record` before every step; or, to save time, before every k-th with ``steps=k``: the
    kernel is then taken as constant in between.

    Args:
        net: as for :func:`tangent_kernel`.
        x: (n, d) training points.
        test_x: (n_q, d) test points, for ``G_Q`` and :meth:`predictor`.
        hessian: B, the loss's Hessian in the outputs: a number, (n m,) for a diagonal, or
            (n m, n m). By default that of ``mse_loss``, 2 / (n m).
        max_bytes: refuse what takes more.

    Attributes:
        P, W_S, G_S, G_Q: as in the module's formulas, in float64; ``G_Q`` is None without test
            points.
        drift: per recorded step :math:`|K - K_0| / |K_0|`, Frobenius norms.

    Raises:
        MemoryError: it is too large; says how large.

    Example:
        >>> path = Trajectory(net, x, test_x)
        >>> for _ in range(1000):
        ...     path.record(lr=0.1)
        ...     sgd_step()
        >>> path.channel().dimension
    """

    def __init__(
        self,
        net: nn.Module,
        x: Tensor,
        test_x: Tensor | None = None,
        *,
        hessian: float | Tensor | None = None,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        m = _outputs(net, x)
        n = len(x) * m
        tests = 0 if test_x is None else len(test_x) * m
        _refuse_above(
            max_bytes,
            8 * (6 * n * n + 2 * tests * n + (2 * n + tests) * _size(_weights(net))),
            f"The trajectory of {n} training and {tests} test outputs",
            "Take fewer points: a random part of them shows the same spectrum.",
        )
        self.net, self.x, self.test_x = net, x, test_x
        self._hessian = torch.as_tensor(
            2 / n if hessian is None else hessian, dtype=torch.float64, device=x.device
        )
        options = dict(dtype=torch.float64, device=x.device)
        self.P = torch.eye(n, **options)  # type: ignore[call-overload]
        self.W_S = torch.zeros(n, n, **options)  # type: ignore[call-overload]
        self.G_S = torch.zeros(n, n, **options)  # type: ignore[call-overload]
        self.G_Q = None if test_x is None else torch.zeros(tests, n, **options)  # type: ignore[call-overload]
        self.drift: list[float] = []
        self._first: Tensor | None = None

    def record(self, lr: float, preconditioner: Tensor | None = None, steps: int = 1) -> None:
        """Account for the steps that are about to be taken from the network's present weights.

        Args:
            lr: their learning rate.
            preconditioner: as for :func:`tangent_kernel`.
            steps: how many.
        """

        scale = _checked(preconditioner, _weights(self.net))
        j_s = jacobian(self.net, self.x).double()
        scaled = j_s if scale is None else j_s * scale
        k = scaled @ j_s.T
        self._first = k if self._first is None else self._first
        self.drift.append(float((k - self._first).norm() / self._first.norm()))
        cross = None
        if self.test_x is not None:
            cross = jacobian(self.net, self.test_x).double() @ scaled.T
        for _ in range(steps):
            if self.G_Q is not None and cross is not None:
                self.G_Q.addmm_(cross, self.P, alpha=lr)
            moved = k @ self.P
            self.W_S.addmm_(self.P.T, moved, alpha=lr)
            self.G_S.add_(moved, alpha=lr)
            self.P.sub_(self._times_hessian(moved), alpha=lr)

    def _times_hessian(self, matrix: Tensor) -> Tensor:
        b = self._hessian
        product: Tensor = b @ matrix if b.ndim == 2 else b.reshape(-1, 1) * matrix
        return product

    def channel(self, tol: float = 1e-6) -> Channel:
        r"""The signal channel.

        Args:
            tol: directions with less than this part of the largest dissipation are reservoir. A
                test prediction sees of them at most a part of the order of :math:`\sqrt{tol}`
                (Cauchy and Schwarz).
        """
        values, vectors = torch.linalg.eigh((self.W_S + self.W_S.T) / 2)
        values, vectors = values.flip(0), vectors.flip(1)
        return Channel(values, vectors, int((values > tol * values[0]).sum()))

    def predictor(self, tol: float = 1e-10) -> Tensor:
        """A = G_Q G_S^+ (n_q, n): from displacements of training outputs to those of test outputs.

        Args:
            tol: singular values of G_S below this part of the largest count as 0.

        Raises:
            ValueError: there are no test points.
        """
        if self.G_Q is None:
            raise ValueError("Trajectory(net, x, test_x): the predictor needs test points.")
        inverse: Tensor = torch.linalg.pinv(self.G_S, rtol=tol)
        found: Tensor = self.G_Q @ inverse
        return found

    def degrees_of_freedom(self) -> float:
        r"""tr(G_S B): of the map from labels to fit along this path, of which n is the most.

        Exact for a linear model and squared loss, :math:`\partial f/\partial y = G_S B`; it leaves
        out how labels change the path itself. Over n it is the memorized share.
        """
        return float(self._times_hessian(self.G_S).trace())


def _refuse_above(most: int, needed: int, what: str, instead: str) -> None:
    if needed > most:
        raise MemoryError(
            f"{what} would take {needed / 2**30:.2g} GiB, more than max_bytes = "
            f"{most / 2**30:.2g} GiB. {instead}"
        )


def _trainable(net: nn.Module) -> dict[str, nn.Parameter]:
    found = {name: p for name, p in net.named_parameters() if p.requires_grad}
    if not found:
        raise ValueError("The network has no trainable weights.")
    return found


def _weights(net: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in _trainable(net).items()}


def _size(params: dict[str, Tensor]) -> int:
    return sum(p.numel() for p in params.values())


def _checked(preconditioner: Tensor | None, params: dict[str, Tensor]) -> Tensor | None:
    if preconditioner is not None and preconditioner.shape != (_size(params),):
        raise ValueError(
            f"The preconditioner has the shape {tuple(preconditioner.shape)}: give one number for "
            f"each of the {_size(params)} trainable weights."
        )
    return preconditioner


def _outputs(net: nn.Module, x: Tensor) -> int:
    """Number of outputs per point."""
    with torch.no_grad():
        return int(net(x[:1]).numel())
