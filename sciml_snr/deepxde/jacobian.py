"""The residual rows of a DeepXDE model, and their Jacobian by one backward pass a term.

Every point has its own copy of the parameters, DeepXDE makes its residuals from the outputs as
always, and the gradient of a term's sum by the copies is its Jacobian, row by row. That takes a
network and residuals that treat points one by one, or in pairs: :meth:`ModelRows.why_not` looks.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from deepxde.data import PDE
from torch import Tensor

from ..jacobian import Residuals, System, joined
from ..measure.point_jacobian import PointCopies
from ..noise import NoisyLoss
from .conditions import NoisyCondition, conditions_of
from .points import more_points
from .rows import clear_cache, loss_weights_of
from .split_step import never_seen

EQUATION_ROWS = 1200
"""Rows of equations in a step; where there are more, so many are drawn anew in every step."""

TOLERANCE = 1e-2
"""Relative difference that counts as rounding; a wrong row makes one of the order of 1."""


class _Part:
    """Points that go through the network together: the conditions', or the equation's."""

    def __init__(self, data: Any, inputs: Any, aux: Any, targets: Any = None) -> None:
        self.data, self.targets = data, None if targets is None else torch.as_tensor(targets)
        self.inputs = torch.as_tensor(inputs)
        self.aux = None if aux is None else torch.as_tensor(aux)

    def residuals(self, model: Any, outputs: Any, x: Tensor) -> list[Tensor]:
        """One a term, equations first."""
        found: list[Tensor] = []

        def record(target: Any, prediction: Any) -> Any:
            found.append(prediction - target)
            return found[-1].sum()

        kind = PDE if isinstance(self.data, SimpleNamespace) else type(self.data)
        kind.losses(self.data, self.targets, outputs, record, x, model)
        clear_cache()
        return found


class ModelRows(Residuals):
    """The residual rows of a compiled DeepXDE model.

    Noisy rows are in units of their sigma, whatever the weights of their terms. Exact ones have the
    weights that they have in the loss beside all noisy terms.

    Args:
        model: a compiled model.
        losses: as given to ``compile``.
        equation_points: points of an exact equation that there are at least: see
            :func:`~sciml_snr.deepxde.points.more_points`. 0: the model's own alone.
    """

    def __init__(self, model: Any, losses: Any, equation_points: int = 0) -> None:
        self._model, self._losses, self._least = model, losses, equation_points
        named = {p: name for name, p in model.net.named_parameters()}
        trained = [p for group in model.opt.param_groups for p in group["params"]]
        trained = [p for p in trained if p.requires_grad]
        self._own = {named[p]: p for p in trained if p in named}
        self._others = [p for p in trained if p not in named]
        self._order = [named.get(p) for p in trained]
        self.trained = trained
        """The trained tensors, in the order of the Jacobian's columns."""
        self.parameters = sum(p.numel() for p in trained)
        """Their number."""
        self._seen: Any = None
        self._changed = False
        """Whether there was another batch before."""
        self._parts: list[_Part] = []
        self._all: _Part | None = None
        """The equation at all points."""
        self._whole: tuple[Any, Any] = (None, None)
        """The points of conditions and equation, and their auxiliary variables, as one batch."""
        self._chosen: Tensor | None = None
        """Which of them are in this step; None: all."""
        self._equations: int | None = None
        conditions = conditions_of(model.data)
        self._conditions_stay = all(getattr(c, "batch_size", None) is None for c in conditions)
        self.data_stay = self._conditions_stay

    def take(self, inputs: Any, targets: Any, aux: Any) -> None:
        """Take over a batch, as DeepXDE gives it to a train step."""
        if inputs is self._seen:
            return
        self._changed, data = self._seen is not None, self._model.data
        self._seen = inputs
        self._chosen = self._all = None
        if not isinstance(data, PDE):
            self._parts = [_Part(data, inputs, aux, targets)]
            return
        self._parts, ends = [], np.cumsum([0, *data.num_bcs]).tolist()
        # A part for each condition: its Jacobian takes a backward pass through its own points.
        for condition, (beg, end) in zip(data.bcs, itertools.pairwise(ends), strict=True):
            points = never_seen(inputs[beg:end], [condition])
            own = None if aux is None else aux[beg:end]
            self._parts.append(
                _Part(_pde(data, None, [condition], [end - beg], points), points, own)
            )
        if data.pde is not None and len(inputs) > ends[-1]:
            self._whole = inputs, aux = self._with_more(inputs, aux, ends[-1])
            points, own = inputs[ends[-1] :], None if aux is None else aux[ends[-1] :]
            self._all = _Part(_pde(data, data.pde, [], [], points), points, own)
            self._parts.insert(0, self._all)

    def _with_more(self, inputs: Any, aux: Any, first: int) -> tuple[Any, Any]:
        """A batch, and more points of the equation behind its own, the first of which is given."""
        data, losses = self._model.data, self._losses
        several = isinstance(losses, (list, tuple))
        equations = losses[: len(losses) - len(data.bcs)] if several else [losses]
        is_noisy = any(isinstance(loss, NoisyLoss) for loss in equations)
        drawn = more_points(data, inputs[first:], 0 if is_noisy else self._least)
        if not len(drawn):
            return inputs, aux
        if aux is not None:
            aux = np.concatenate([aux, data.auxiliary_var_fn(drawn).astype(aux.dtype)])
        return never_seen(np.concatenate([inputs, drawn]), data.bcs), aux

    def draw(self, step: int, most: int | None = None) -> None:
        """Draw the equation's points of this step, where there are too many for all of them.

        Args:
            step: seeds the draw.
            most: rows of the equations; :data:`EQUATION_ROWS` unless given.
        """
        if self._all is None:
            return
        if self._equations is None:
            self._equations = len(self._terms(self._all))
        points, aux = self._all.inputs, self._all.aux
        wanted = max((most or EQUATION_ROWS) // max(self._equations, 1), 1)
        if len(points) <= wanted:
            return
        generator = torch.Generator("cpu").manual_seed(step)
        chosen = torch.randperm(len(points), generator=generator, device="cpu")[:wanted]
        self._chosen = chosen.to(points.device)
        some = None if aux is None else aux[self._chosen]
        self._parts[0] = _Part(self._all.data, points[self._chosen], some)

    def _terms(self, part: _Part) -> list[Tensor]:
        """The residuals of a part, in the graph."""
        net = self._model.net
        net.train(mode=True)
        net.auxiliary_vars = part.aux
        with torch.enable_grad():
            x = part.inputs.detach().clone().requires_grad_()
            clear_cache()
            return part.residuals(self._model, net(x), x)

    def _scales(self, shapes: Sequence[Sequence[int]]) -> tuple[list[Tensor], list[Tensor]]:
        """What every row is multiplied by, and whether it is noisy, (n, m) each, term by term."""
        data, model = self._model.data, self._model
        conditions = conditions_of(data) if isinstance(data, PDE) else []
        first = len(shapes) - len(conditions)
        several = isinstance(self._losses, (list, tuple))
        losses = list(self._losses) if several else [self._losses] * len(shapes)
        weights = loss_weights_of(model, len(shapes))
        sigmas, total, noise = [], 0.0, 0.0
        for i, (shape, loss, weight) in enumerate(zip(shapes, losses, weights, strict=True)):
            sigma = _sigma(conditions[i - first] if i >= first else None, loss)
            sigma = sigma.double().reshape(-1, 1) if sigma.ndim < 2 else sigma.double()
            sigma = (
                sigma.expand(shape[0], math.prod(shape[1:])) if weight else sigma.new_zeros(1, 1)
            )
            sigmas.append(sigma)
            total += float((sigma > 0).sum())
            noise += weight * float(sigma.square().mean()) if sigma.any() else 0.0
        beside = total / noise if noise else 1.0
        scales, noisy = [], []
        for shape, sigma, weight in zip(shapes, sigmas, weights, strict=True):
            size = math.prod(shape)
            exact = torch.full((), math.sqrt(beside * weight / max(size, 1)), dtype=torch.float64)
            found = torch.where(sigma > 0, 1 / sigma, exact)
            scales.append(found.expand(shape[0], math.prod(shape[1:])).to(sigma.device))
            noisy.append((sigma > 0).double().expand_as(scales[-1]))
        return scales, noisy

    def rows(self) -> Tensor:
        """The rows alone."""
        found = [term.detach() for part in self._parts for term in self._terms(part)]
        scales, _ = self._scales([term.shape for term in found])
        pairs = zip(found, scales, strict=True)
        return torch.cat([(term.double().flatten() * s.flatten()) for term, s in pairs])

    @torch.enable_grad()
    def system(self) -> System:
        """The rows and their Jacobian."""
        made = [self._with_copies(part) for part in self._parts]
        terms = [term for found, _ in made for term in found]
        scales, noisy = self._scales([term.shape for term in terms])
        whole = terms[0].new_zeros(sum(term.numel() for term in terms), self.parameters)
        rows, place, first = [], 0, 0
        for found, copies in made:
            for term in found:
                scaled = term.flatten(1) if term.ndim > 1 else term[:, None]
                scaled = scaled * scales[place].to(scaled)
                own = whole[first : first + scaled.numel()].view(*scaled.shape, -1)
                self._jacobian(scaled, copies, own)
                rows.append(scaled.detach().double().flatten())
                place, first = place + 1, first + scaled.numel()
        flags = torch.cat([flag.flatten() for flag in noisy]).to(rows[0].device)
        is_drawn = self._changed or self._chosen is not None
        equations = (self._equations or 0) if isinstance(self._model.data, PDE) else len(noisy)
        drawn = noisy[:equations] if is_drawn else []
        self.rows_stay = not is_drawn
        self.data_stay = self._conditions_stay and not any(bool(flag.any()) for flag in drawn)
        return System(torch.cat(rows), flags, whole)

    def _with_copies(self, part: _Part) -> tuple[list[Tensor], list[Tensor]]:
        """The residuals of a part, and the parameters' copies that they depend on."""
        net = self._model.net
        net.train(mode=True)
        x = part.inputs.detach().clone().requires_grad_()

        def prepare(aux: Tensor | None = None) -> None:
            net.auxiliary_vars = None if aux is None else aux[None]

        made = PointCopies(net, self._own, len(x), prepare)
        outputs = made(x, *(() if part.aux is None else (part.aux,)))
        net.auxiliary_vars = part.aux
        clear_cache()
        return part.residuals(self._model, outputs, x), list(made.copies.values())

    def _jacobian(self, term: Tensor, copies: list[Tensor], into: Tensor) -> None:
        """Of a scaled term (n, m), into zeros (n, m, P)."""
        n = len(term)
        for j in range(term.shape[1]):
            own = term[:, j]
            found: tuple[Tensor | None, ...] = (None,) * len(copies)
            if own.requires_grad and copies:
                found = torch.autograd.grad(own.sum(), copies, retain_graph=True, allow_unused=True)
            parts = dict(zip(self._own, found, strict=True))
            others = iter(self._others)
            sizes = [p.numel() for p in self.trained]
            for name, column in zip(self._order, torch.split(into[:, j], sizes, 1), strict=True):
                if name is None:
                    column.copy_(_by_variable(own, next(others)))
                elif (block := parts[name]) is not None:
                    if len(block) not in (n, 2 * n):
                        raise ValueError(f"a term has {n} residuals on {len(block)} points")
                    column.copy_(block[:n].flatten(1))
                    if len(block) == 2 * n:  # of pairs of points, such as those of a period
                        column.add_(block[n:].flatten(1))

    def why_not(self) -> str:
        """Why rows or Jacobian are not those of DeepXDE's own pass; empty where they are."""
        return self.checked_system()[1]

    def checked_system(self) -> tuple[System | None, str]:
        """The rows and their Jacobian, None where there is none; and :meth:`why_not`."""
        try:
            system = self.system()
        except (RuntimeError, ValueError, NotImplementedError, IndexError) as error:
            reason = f"its network or residuals do not work point by point ({_first_line(error)})"
            return None, reason
        return system, self._difference(system)

    def _difference(self, system: System) -> str:
        """In what a system is not that of DeepXDE's own pass."""
        if not system.jacobian.isfinite().all():
            return ""  # the step says so
        values = self._common()
        if values.shape != system.rows.shape or not _close(system.rows, values.detach().double()):
            return "its residuals at a point depend on the other points"
        generator = torch.Generator("cpu").manual_seed(0)
        factors = torch.randn(len(values), generator=generator, device="cpu").to(values)
        found = torch.autograd.grad(values @ factors, self.trained, allow_unused=True)
        expected = joined([None if g is None else g[None] for g in found], self.trained, 1)[0]
        if not _close(factors.double() @ system.jacobian.double(), expected.double()):
            return "its residuals at a point depend on the other points"
        return ""

    @torch.enable_grad()
    def _common(self) -> Tensor:
        """The rows from one pass over all points, as DeepXDE makes it, in the graph."""
        data = self._model.data
        if self._all is None:
            terms = [term for part in self._parts for term in self._terms(part)]
        else:
            inputs, aux = self._whole
            stand_in = _pde(data, data.pde, data.bcs, data.num_bcs, inputs)
            terms = self._terms(_Part(stand_in, inputs, aux))
        if self._chosen is not None and self._equations:
            first = self._equations
            terms = [*(term[self._chosen] for term in terms[:first]), *terms[first:]]
        scales, _ = self._scales([term.shape for term in terms])
        pairs = zip(terms, scales, strict=True)
        return torch.cat([term.flatten() * s.flatten().to(term) for term, s in pairs])


def _pde(
    data: Any, equation: Any, conditions: Sequence[Any], sizes: Sequence[int], points: Any
) -> SimpleNamespace:
    """What ``PDE.losses`` sees in place of the data: conditions on so many points each."""
    return SimpleNamespace(
        pde=equation,
        bcs=list(conditions),
        num_bcs=list(sizes),
        train_x=points,
        auxiliary_var_fn=data.auxiliary_var_fn,
    )


def _sigma(condition: Any, loss: Any) -> Tensor:
    """Standard deviation of the error in a term's data, broadcastable to its residuals."""
    if isinstance(condition, NoisyCondition):
        sigma, rows = condition.sigma, getattr(condition, "batch_indices", None)
        return sigma if rows is None or len(sigma) == 1 else sigma[torch.as_tensor(rows)]
    return loss.sigma if isinstance(loss, NoisyLoss) else torch.zeros(())


def _by_variable(rows: Tensor, variable: Tensor) -> Tensor:
    """Derivatives of rows (n,) by a variable outside the network, (n, its size).

    Two backward passes an entry: the derivative of the rows' weighted sum is linear in the weights.
    """
    if not rows.requires_grad:
        return variable.new_zeros(len(rows), variable.numel())
    factors = torch.ones_like(rows, requires_grad=True)
    (summed,) = torch.autograd.grad(
        (rows * factors).sum(), variable, create_graph=True, allow_unused=True
    )
    if summed is None:
        return variable.new_zeros(len(rows), variable.numel())
    entries = summed.flatten()
    columns = [torch.autograd.grad(one, factors, retain_graph=True)[0] for one in entries]
    return torch.stack(columns, 1).to(variable)


def _close(found: Tensor, expected: Tensor) -> bool:
    return bool((found - expected).norm() <= TOLERANCE * expected.norm() + 1e-30)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
