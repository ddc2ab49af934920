"""``compile("snr_gn")``: :class:`sciml_snr.SNRGaussNewton` on the residuals of a DeepXDE model.

The Jacobian of all rows takes one backward pass a term, through any residual: every point has its
own copy of the parameters, DeepXDE makes its residuals from the outputs as always, and the gradient
of a term's sum by the copies is its Jacobian, row by row. That takes a network and residuals that
treat points one by one; whether they do is looked at when the model is compiled.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from deepxde import config
from deepxde.data import PDE, DataSet, Function
from deepxde.data.data import Data
from torch import Tensor
from torch.func import functional_call, vmap

from ..gauss_newton import SNRGaussNewton
from ..jacobian import Residuals, System, joined
from ..noise import NoisyLoss
from .conditions import NoisyCondition, conditions_of
from .options import SNR_options, has_gate
from .rows import clear_cache, loss_weights_of
from .split_step import never_seen

NAME = "snr_gn"

STEPS = 60
"""A budget that is enough on the problems of this package, after a start of first order."""

WARM_UP_STEPS = 400
"""Steps of ``"snr_adam"`` before, from a random network."""

EQUATION_ROWS = 600
"""Rows of equations in a step; where there are more, so many are drawn anew in every step."""

_SQUARES = ("mean_squared_error", "MSELoss")
_RANDOM_OR_MIXING = (torch.nn.modules.batchnorm._NormBase, torch.nn.modules.dropout._DropoutNd)


def build(params: Iterable[Any], lr: float | None) -> SNRGaussNewton:
    """The optimizer, for DeepXDE's parameters or groups of them, with the options in force."""
    options: dict[str, Any] = {} if SNR_options["z"] is None else {"z": float(SNR_options["z"])}
    return SNRGaussNewton(params, lr, **(options if has_gate() else {"z": 0.0}))


def adopt(optimizer: SNRGaussNewton, groups: Sequence[Any]) -> None:
    """Give an instance the external variables that it does not have."""
    if len(groups) == 2 and isinstance(groups[1], dict):
        own = {p for group in optimizer.param_groups for p in group["params"]}
        missing = [p for p in groups[1]["params"] if p not in own]
        if missing:
            names = [f"external_trainable_variables[{i}]" for i in range(len(missing))]
            named = "param_names" in optimizer.param_groups[0]
            params: Any = list(zip(names, missing, strict=True)) if named else missing
            optimizer.add_param_group({"params": params})


def check(model: Any, losses: Any) -> None:
    """Refuse a model whose rows have no Jacobian here.

    Args:
        model: the model that is being compiled.
        losses: as given to ``compile``.

    Raises:
        ValueError: says why, and what to use instead.
    """
    data, net = model.data, model.net
    reason = ""
    kind = type(data)
    is_known = getattr(kind, "losses", None) in (PDE.losses, DataSet.losses, Function.losses)
    if not is_known or kind.losses_train is not Data.losses_train:
        reason = f"the residuals of a {type(data).__name__} do not belong to single points"
    elif any(isinstance(module, _RANDOM_OR_MIXING) for module in net.modules()):
        reason = (
            "the network has batch norm or dropout layers: its outputs mix points, or are random"
        )
    elif net.regularizer is not None:
        reason = "it takes no regularization of the weights"
    elif config.autodiff == "forward":
        reason = "it differentiates in reverse mode: dde.config.set_default_autodiff('reverse')"
    elif config.mixed:
        reason = "it takes float32 and float64, no mixed precision"
    else:
        for loss in losses if isinstance(losses, (list, tuple)) else [losses]:
            if not _is_square(loss):
                name = getattr(loss, "__name__", repr(loss))
                reason = f"it minimizes sums of squares, and {name} is none: loss='MSE'"
    if reason:
        raise _refused(reason)


def _refused(reason: str) -> ValueError:
    return ValueError(f'"{NAME}" is not for this model: {reason}. "snr_adam" takes it.')


def _is_square(loss: Any) -> bool:
    if isinstance(loss, NoisyLoss):
        return loss.loss.name == "mse"
    if isinstance(loss, str):
        return loss.lower() in ("mse", "mean squared error")
    return getattr(loss, "__name__", type(loss).__name__) in _SQUARES


def install(model: Any, losses: Any) -> None:
    """Give a compiled model the train step of its optimizer, an :class:`SNRGaussNewton`.

    Args:
        model: compiled, with DeepXDE's own train step.
        losses: as given to ``compile``.

    Raises:
        ValueError: the model's residuals do not belong to single points.
    """
    rows = ModelRows(model, losses)
    inputs, targets, aux = (*model.data.train_next_batch(None), None)[:3]
    rows.take(inputs, targets, aux)
    if reason := rows.why_not():
        raise _refused(reason)

    def train_step(inputs: Any, targets: Any, auxiliary_vars: Any) -> None:
        rows.take(inputs, targets, auxiliary_vars)
        rows.draw(model.opt.steps)
        model.opt.step(rows)
        if model.lr_scheduler is not None:
            model.lr_scheduler.step()
        if model.opt.done:
            model.stop_training = True

    model.train_step = train_step


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
    """

    def __init__(self, model: Any, losses: Any) -> None:
        self._model, self._losses = model, losses
        named = {p: name for name, p in model.net.named_parameters()}
        trained = [p for group in model.opt.param_groups for p in group["params"]]
        trained = [p for p in trained if p.requires_grad]
        self._own = {named[p]: p for p in trained if p in named}
        self._others = [p for p in trained if p not in named]
        self._order = [named.get(p) for p in trained]
        self._trained = trained
        self._seen: Any = None
        self._parts: list[_Part] = []
        conditions = conditions_of(model.data)
        self.data_stay = all(getattr(c, "batch_size", None) is None for c in conditions)

    def take(self, inputs: Any, targets: Any, aux: Any) -> None:
        """Take over a batch, as DeepXDE gives it to a train step."""
        if inputs is self._seen:
            return
        self._seen, data = inputs, self._model.data
        if not isinstance(data, PDE):
            self._parts, self._all = [_Part(data, inputs, aux, targets)], None
            return
        ends = sum(data.num_bcs)
        cut = [None, None] if aux is None else [aux[:ends], aux[ends:]]
        self._parts = []
        if ends:
            points = never_seen(inputs[:ends], data.bcs)
            self._parts.append(_Part(_pde(data, None, data.bcs, points), points, cut[0]))
        self._all = None
        if data.pde is not None and len(inputs) > ends:
            points = inputs[ends:]
            self._all = _Part(_pde(data, data.pde, [], points), points, cut[1])
            self._parts.insert(0, self._all)

    def draw(self, step: int) -> None:
        """Draw the equation's points of this step, where there are too many for all of them."""
        if self._all is None:
            return
        points, aux = self._all.inputs, self._all.aux
        with torch.no_grad():
            equations = len(self._terms(self._all))
        wanted = max(EQUATION_ROWS // max(equations, 1), 1)
        if len(points) <= wanted:
            return
        generator = torch.Generator("cpu").manual_seed(step)
        chosen = torch.randperm(len(points), generator=generator, device="cpu")[:wanted]
        chosen = chosen.to(points.device)
        some = None if aux is None else aux[chosen]
        self._parts[0] = _Part(self._all.data, points[chosen], some)

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

    @torch.no_grad()
    def rows(self) -> Tensor:
        """The rows alone, (N,), float64."""
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
        rows, blocks, place = [], [], 0
        for part, (found, copies) in zip(self._parts, made, strict=True):
            for term, (beg, end) in zip(found, _spans(part, len(found)), strict=True):
                scaled = term.flatten(1) if term.ndim > 1 else term[:, None]
                scaled = scaled * scales[place].to(scaled)
                blocks.append(self._jacobian(scaled, copies, beg, end))
                rows.append(scaled.detach().double().flatten())
                place += 1
        flags = torch.cat([flag.flatten() for flag in noisy]).to(rows[0].device)
        return System(torch.cat(rows), flags, torch.cat(blocks))

    def _with_copies(self, part: _Part) -> tuple[list[Tensor], list[Tensor]]:
        """The residuals of a part, and the parameters' copies that they depend on."""
        net = self._model.net
        net.train(mode=True)
        x = part.inputs.detach().clone().requires_grad_()
        copies = [
            p.detach().expand(len(x), *p.shape).clone().requires_grad_() for p in self._own.values()
        ]
        fixed = {n: p for n, p in net.named_parameters() if n not in self._own}
        buffers = dict(net.named_buffers())

        def one(own: Sequence[Tensor], point: Tensor, aux: Tensor | None = None) -> Tensor:
            net.auxiliary_vars = None if aux is None else aux[None]
            state = {**buffers, **fixed, **dict(zip(self._own, own, strict=True))}
            return functional_call(net, state, (point[None],))[0]  # type: ignore[no-any-return]

        extra = () if part.aux is None else (part.aux,)
        outputs = vmap(one)(tuple(copies), x, *extra)
        net.auxiliary_vars = part.aux
        clear_cache()
        return part.residuals(self._model, outputs, x), copies

    def _jacobian(self, term: Tensor, copies: list[Tensor], beg: int, end: int) -> Tensor:
        """Of a scaled term (n, m) on the points from beg to end: (n m, P)."""
        n = len(term)
        columns = []
        for j in range(term.shape[1]):
            own = term[:, j]
            found: tuple[Tensor | None, ...] = (None,) * len(copies)
            if own.requires_grad and copies:
                found = torch.autograd.grad(own.sum(), copies, retain_graph=True, allow_unused=True)
            parts: dict[str | int, Tensor] = {}
            for name, p, g in zip(self._own, copies, found, strict=True):
                block = p.new_zeros(n, p[0].numel()) if g is None else g[beg:end].flatten(1)
                if len(block) == 2 * n:  # of pairs of points, such as those of a period
                    block = block[:n] + block[n:]
                if len(block) != n:
                    raise _refused(
                        f"a term has {n} residuals on {len(block)} points, which cannot be told "
                        "apart"
                    )
                parts[name] = block
            others = iter(self._others)
            blocks = [
                _by_variable(own, next(others)) if k is None else parts[k] for k in self._order
            ]
            columns.append(torch.cat(blocks, 1))
        return torch.stack(columns, 1).flatten(0, 1)

    def why_not(self) -> str:
        """Why the Jacobian is not that of DeepXDE's own rows; empty where it is."""
        generator = torch.Generator("cpu").manual_seed(0)
        model = self._model
        try:
            system = self.system()
        except (RuntimeError, ValueError, NotImplementedError, IndexError) as error:
            return f"its network or residuals do not work point by point ({_first_line(error)})"
        if not system.jacobian.isfinite().all():
            return ""  # the step says so
        factors = torch.randn(len(system.rows), generator=generator, device="cpu").to(
            system.jacobian
        )
        with torch.enable_grad():
            if isinstance(model.data, PDE) and self._all is not None:
                data = model.data
                whole = _Part(
                    _pde(data, data.pde, data.bcs, self._seen), self._seen, data.train_aux_vars
                )
                terms = self._terms(whole)
            else:
                terms = [term for part in self._parts for term in self._terms(part)]
            scales, _ = self._scales([term.shape for term in terms])
            pairs = zip(terms, scales, strict=True)
            rows = torch.cat([t.flatten() * s.flatten().to(t) for t, s in pairs])
            if len(rows) != len(system.rows):
                return "it has other residuals where points are taken apart"
            found = torch.autograd.grad(rows @ factors, self._trained, allow_unused=True)
        expected = joined([None if g is None else g[None] for g in found], self._trained, 1)[0]
        tolerance = 1e-2 if rows.dtype == torch.float32 else 1e-6
        same_rows = _close(system.rows, rows.detach().double(), tolerance)
        if not (same_rows and _close(factors @ system.jacobian, expected, tolerance)):
            return "its residuals at a point depend on the other points"
        return ""


def _pde(data: Any, equation: Any, conditions: Sequence[Any], points: Any) -> SimpleNamespace:
    """What ``PDE.losses`` sees in place of the data."""
    return SimpleNamespace(
        pde=equation,
        bcs=list(conditions),
        num_bcs=list(data.num_bcs) if conditions else [],
        train_x=points,
        auxiliary_var_fn=data.auxiliary_var_fn,
    )


def _spans(part: _Part, terms: int) -> list[tuple[int, int]]:
    """Which points each term of a part is on."""
    sizes = getattr(part.data, "num_bcs", None)
    if not sizes:
        return [(0, len(part.inputs))] * terms
    ends = [0, *np.cumsum(sizes).tolist()]
    return list(itertools.pairwise(ends))


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


def _close(found: Tensor, expected: Tensor, tolerance: float) -> bool:
    if found.shape != expected.shape:
        return False
    return bool((found - expected).norm() <= tolerance * expected.norm() + 1e-30)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
