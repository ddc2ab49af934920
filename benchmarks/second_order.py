"""Rivals of second order, written from their papers, as train steps of a compiled DeepXDE model.

They see the rows that ``snr_gn`` sees, or DeepXDE's own loss, and nothing of sigma beyond the
weights of the rows. `benchmarks.gauss_newton` runs them in ``snr_gn``'s place.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg.blas import dsymv, dsyr
from scipy.optimize import line_search
from torch import Tensor

from sciml_snr._tensors import add_vector
from sciml_snr.deepxde.jacobian import ModelRows

Array = NDArray[Any]


class Rival(ABC):
    """An optimizer of a compiled DeepXDE model.

    Args:
        model: compiled with any optimizer of first order, which is not used.
    """

    def __init__(self, model: Any) -> None:
        self.model, self.steps, self.done = model, 0, False
        self.params = [p for group in model.opt.param_groups for p in group["params"]]
        model.train_step = self._train_step

    def _train_step(self, inputs: Any, targets: Any, aux: Any) -> None:
        self.steps += 1
        self.take(inputs, targets, aux)
        if self.done:
            self.model.stop_training = True

    @abstractmethod
    def take(self, inputs: Any, targets: Any, aux: Any) -> None:
        """One step on a batch, as DeepXDE gives it."""


class OnRows(Rival):
    """A rival that needs the Jacobian of the residual rows."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.rows = ModelRows(model, "MSE")

    def _load(self, inputs: Any, targets: Any, aux: Any) -> tuple[Tensor, Tensor]:
        """Rows (N,) and Jacobian (N, P), float64, of the batch."""
        self.rows.take(inputs, targets, aux)
        self.rows.draw(self.steps)
        system = self.rows.system()
        return system.rows, system.jacobian.double()


class EnergyNaturalGradient(OnRows):
    r"""ENGD-W with SPRING's momentum: A. Guzman-Cordero, F. Dangel, G. Goldshlager, M. Zeinhofer,
    arXiv:2505.12149; G. Goldshlager, N. Abrahamsen and L. Lin, J. Comput. Phys. 516 (2024) 113351.

    With rows r, their Jacobian J and the last direction p,

    .. math:: p \leftarrow \mu p + J^T (J J^T + \lambda)^{-1} (r - \mu J p)

    and a step along -p by the best of 31 lengths 1, 1/2, 1/4, ..., as in ENGD's own line search.

    Args:
        model: a compiled model.
        damping: lambda, in units of the kernel's mean eigenvalue.
        momentum: mu; 0: ENGD-W.
    """

    def __init__(self, model: Any, damping: float = 1e-6, momentum: float = 0.0) -> None:
        super().__init__(model)
        self.damping, self.momentum = damping, momentum
        self.direction: Tensor | None = None

    def take(self, inputs: Any, targets: Any, aux: Any) -> None:
        r, jacobian = self._load(inputs, targets, aux)
        before = jacobian.new_zeros(jacobian.shape[1])
        if self.direction is not None:
            before = self.momentum * self.direction
        kernel = jacobian @ jacobian.T
        kernel.diagonal().add_(self.damping * float(kernel.diagonal().mean()))
        factor = torch.linalg.cholesky(kernel)
        right = (r - jacobian @ before)[:, None]
        self.direction = before + jacobian.T @ torch.cholesky_solve(right, factor)[:, 0]
        start = [p.detach().clone() for p in self.params]
        best, length = float(r.square().sum()), 0.0
        for k in range(31):
            self._move(start, -(0.5**k))
            now = float(self.rows.rows().square().sum())
            if now < best:
                best, length = now, 0.5**k
            elif length:
                break
        self._move(start, -length)
        self.done = not length and not self.momentum

    @torch.no_grad()
    def _move(self, start: list[Tensor], length: float) -> None:
        assert self.direction is not None
        for p, own in zip(self.params, start, strict=True):
            p.copy_(own)
        add_vector(self.params, length * self.direction)


class PDEAware(OnRows):
    r"""Adam's step over the spread of the rows' gradients: H. Shukla, M. Khullar and V. Churiwala,
    arXiv:2507.08118.

    With :math:`g_i` the gradient of one row's square, means over all rows, and averages as Adam's,
    :math:`w \leftarrow w - \eta\, \hat m / (\sqrt{\hat v} + \epsilon)`, where m averages the
    mean of the :math:`g_i` and v their variance.

    Args:
        model: a compiled model.
        lr: eta.
    """

    def __init__(self, model: Any, lr: float = 1e-3) -> None:
        super().__init__(model)
        self.lr = lr
        self.mean: Tensor | float = 0.0
        self.variance: Tensor | float = 0.0

    def take(self, inputs: Any, targets: Any, aux: Any) -> None:
        r, jacobian = self._load(inputs, targets, aux)
        gradients = jacobian.mul_(2 * r[:, None])
        self.mean = 0.9 * self.mean + 0.1 * gradients.mean(0)
        self.variance = 0.999 * self.variance + 0.001 * gradients.var(0, correction=0)
        mean = self.mean / (1 - 0.9**self.steps)
        variance = self.variance / (1 - 0.999**self.steps)
        add_vector(self.params, -self.lr * mean / (variance.sqrt() + 1e-8))


class SelfScaledBroyden(Rival):
    r"""SSBroyden: J. F. Urban, P. Stefanou and J. A. Pons, J. Comput. Phys. 523 (2025) 113656; M.
    Al-Baali, E. Spedicato and F. Maggioni, Optim. Methods Softw. 29 (2014) 937.

    A step along :math:`-H g` by a line search for Wolfe's conditions. With the step s, the change y
    of the gradient, :math:`b = s^T H^{-1} s / y^T s`, :math:`h = y^T H y / y^T s` and a = h b - 1,

    .. math::
        H \leftarrow \frac1\tau \Big(H - \frac{H y y^T H}{y^T H y} + \phi\, y^T H y\, v v^T\Big)
            + \frac{s s^T}{y^T s}, \qquad v = \frac{s}{y^T s} - \frac{H y}{y^T H y}

    where theta, phi = (1 - theta) / (1 + a theta) and tau are the first form of the paper.

    Args:
        model: a compiled model.
    """

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.size = sum(p.numel() for p in self.params)
        self._begin()
        self._before: float | None = None

    def _begin(self) -> None:
        """H = 1. It is kept as a lower triangle times a number."""
        self.inverse = np.asfortranarray(np.eye(self.size))
        self.scale, self.is_new = 1.0, True

    def _product(self, vector: Array) -> Array:
        found: Array = dsymv(self.scale, self.inverse, vector, lower=1)
        return found

    def take(self, inputs: Any, targets: Any, aux: Any) -> None:
        known: dict[bytes, tuple[float, Array]] = {}

        def evaluate(x: Array) -> tuple[float, Array]:
            key = x.tobytes()
            if key not in known:
                self._set(x)
                losses = self.model.outputs_losses_train(inputs, targets, aux)[1]
                total = losses.sum()
                grads = torch.autograd.grad(total, self.params, allow_unused=True)
                pairs = zip(grads, self.params, strict=True)
                flat = [(torch.zeros_like(p) if g is None else g).flatten() for g, p in pairs]
                known[key] = float(total.detach()), torch.cat(flat).double().numpy()
            return known[key]

        x = torch.cat([p.detach().flatten() for p in self.params]).double().numpy()
        value, gradient = evaluate(x)
        direction = -self._product(gradient)
        before = value + np.linalg.norm(gradient) / 2 if self._before is None else self._before
        length = line_search(
            lambda at: evaluate(at)[0],
            lambda at: evaluate(at)[1],
            x,
            direction,
            gradient,
            value,
            before,
            maxiter=20,
        )[0]
        if length is None:
            self._set(x)
            self.done = self.is_new  # even along the gradient
            self._begin()
            self._before = None
            return
        s = length * direction
        after, new = evaluate(x + s)
        self._set(x + s)
        self._before = value
        if not math.isfinite(after):
            raise FloatingPointError("the loss is not finite")
        self._update(s, new - gradient, gradient, length)

    def _update(self, s: Array, y: Array, gradient: Array, length: float) -> None:
        ys = float(y @ s)
        if ys <= 0:
            return
        hy = self._product(y)
        yhy = float(y @ hy)
        b, h = -length * float(s @ gradient) / ys, yhy / ys
        a = h * b - 1
        root = math.sqrt(abs(a) / (1 + a))
        low = min(1.0, h * (1 - root))
        lowest = (low - 1) / a if a else 0.0
        highest = 1 / low if self.is_new else max(1.0, b * (1 + root))
        rank_one = 1 / (1 - b) if b != 1 else math.inf
        theta = max(lowest, rank_one) if b > 1 else min(highest, rank_one)
        if b == 1:
            theta = lowest
        sigma = 1 + a * theta
        if self.is_new:
            tau = h / sigma
        else:
            share, power = min(1.0, 1 / b), abs(sigma) ** (1 / (1 - self.size))
            tau = min(share * power, sigma) if theta <= 0 else share * min(power, 1 / theta)
        phi = (1 - theta) / sigma
        v = s / ys - hy / yhy
        for factor, vector in ((-1 / yhy, hy), (phi * yhy, v), (tau / ys, s)):
            dsyr(factor / self.scale, vector, lower=1, a=self.inverse, overwrite_a=1)
        self.scale, self.is_new = self.scale / tau, False

    @torch.no_grad()
    def _set(self, x: Array) -> None:
        sizes = [p.numel() for p in self.params]
        for p, own in zip(self.params, torch.split(torch.from_numpy(x), sizes), strict=True):
            p.copy_(own.view(p.shape))


RIVALS: dict[str, type[Rival]] = {
    "ENGD-W": EnergyNaturalGradient,
    "PDE-aware": PDEAware,
    "SSBroyden": SelfScaledBroyden,
}
