"""A train step with a forward pass of its own for each kind of points.

DeepXDE sends all points through the network at once, and evaluates the equation at all of them;
what it finds at the points of the conditions it throws away, and passes for the noise go through
all that, too. Here these have passes of their own, each over its points alone:

- the measured points of noisy conditions, or a noisy equation. In the backward pass they make their
  own gradient and a draw of the noise from one graph (:class:`_Measured`): two passes, not three;
- the other conditions, unless they are :data:`FEW`: then they go with the equation;
- the equation.

DeepXDE's own ``PDE.losses`` makes the numbers, called for a stand-in that has these rows only. At
compile the losses and their gradient are compared with those of one common pass: where they differ,
DeepXDE's step stays.
"""

from __future__ import annotations

import contextlib
import random
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from deepxde import config, optimizers
from deepxde import losses as dde_losses
from deepxde.backend import backend_name
from deepxde.callbacks import PDEPointResampler
from deepxde.data import PDE
from deepxde.icbc import IC, DirichletBC, Interface2DBC, NeumannBC, RobinBC
from torch import Tensor

from ..terms import Term
from .caller import users_stacklevel
from .model_noise import ModelNoise
from .rows import NoisyRows, NoisyTargets, clear_cache

TOLERANCES = {torch.float32: 3e-4, torch.float64: 1e-6}
"""Relative differences that count as rounding."""

FEW = 2**21
"""Conditions with fewer points times parameters of the network than this have no pass of their own:
it would cost more calls than it saves arithmetic."""

_RANDOM_OR_MIXING = (torch.nn.modules.batchnorm._NormBase, torch.nn.modules.dropout._DropoutNd)
"""Layers that draw anew in every pass, or whose outputs depend on the other points'."""

_CACHING = (DirichletBC, NeumannBC, RobinBC, IC, Interface2DBC)
"""Conditions whose values DeepXDE keeps by the ``id`` of the array of points."""

_Source = NoisyRows | NoisyTargets


class _Part:
    """Rows that go through the network together.

    Args:
        places: of the conditions that they belong to.
        is_equation: whether they are the equation's.
        losses: loss functions, as ``PDE.losses`` takes them.
        owners: the source of every loss, if all of them are noisy.
    """

    def __init__(
        self,
        places: Sequence[int],
        is_equation: bool,
        losses: Any,
        owners: Sequence[_Source] | _Source = (),
    ) -> None:
        self.places = list(places)
        self.is_equation = is_equation
        self.losses = losses
        self.owners = owners
        self.stand_in: Any = None
        """What ``PDE.losses`` sees in place of the data."""
        self.points: Tensor
        self.aux: Tensor | None = None

    def fill(self, data: Any, inputs: Any, aux: Any, rows: Any) -> None:
        """Take over rows.

        Args:
            data: the model's.
            inputs, aux: of all rows.
            rows: which of them are the part's, in their order.
        """
        own = inputs[rows]
        sizes = [data.num_bcs[i] for i in self.places]
        before = self.stand_in
        is_same = before is not None and sizes == before.num_bcs
        if not (is_same and np.array_equal(own, before.train_x)):
            conditions = [data.bcs[i] for i in self.places]
            self.stand_in = SimpleNamespace(
                pde=data.pde if self.is_equation else None,
                bcs=conditions,
                num_bcs=sizes,
                train_x=never_seen(own, conditions),
                auxiliary_var_fn=data.auxiliary_var_fn,
            )
            self.points = torch.as_tensor(self.stand_in.train_x)
        self.aux = None if aux is None else torch.as_tensor(aux[rows])

    def evaluate(self, model: Any, losses: Any) -> list[Tensor]:
        """What DeepXDE makes of the rows by these loss functions: equations first."""
        model.net.auxiliary_vars = self.aux
        x = self.points.detach().requires_grad_()
        found: list[Tensor] = PDE.losses(self.stand_in, None, model.net(x), losses, x, model)
        clear_cache()
        return found

    def residuals(self, model: Any) -> list[Tensor]:
        """The residuals, equations first."""
        return self.evaluate(model, _residual)

    def owners_of(self, terms: int) -> list[_Source]:
        """The source of each of so many terms."""
        owners = self.owners
        return list(owners) if isinstance(owners, Sequence) else [owners] * terms

    def terms(self, model: Any) -> tuple[list[Term], list[_Source]]:
        """The noisy terms, in a graph of their own, and their sources.

        Raises:
            ValueError: there are more or fewer than losses.
        """
        with torch.enable_grad():
            residuals = self.residuals(model)
            owners = self.owners_of(len(residuals))
            if len(owners) != len(residuals):
                raise ValueError(
                    f"There are {len(residuals)} errors, but only {len(owners)} losses."
                )
            pairs = zip(residuals, owners, strict=True)
            return [owner.term(residual) for residual, owner in pairs], owners


def _residual(_: Any, error: Any) -> Any:
    """In a loss function's place."""
    return error


class _Measured(torch.autograd.Function):
    """Losses of a part's noisy terms: means, or elementwise ones where the loss is another sum.

    Its backward pass makes the terms' gradient, from a graph over the part's rows alone, and hands
    it over together with a draw from the same graph.
    """

    @staticmethod
    def forward(ctx: Any, step: SplitStep, part: _Part, *params: Tensor) -> tuple[Tensor, ...]:
        ctx.step, ctx.part, ctx.params = step, part, params
        ctx.terms, ctx.owners = part.terms(step.model)
        step.owners = ctx.owners
        return tuple(term.values.detach() for term in ctx.terms)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        terms, again = ctx.terms, torch.is_grad_enabled()
        if terms is None:
            raise RuntimeError(
                "The graph of the noisy terms is gone: for a second backward pass, say "
                "retain_graph=True in the first."
            )
        if again:  # create_graph: the engine goes on through a graph that nobody else uses
            terms, _ = ctx.part.terms(ctx.step.model)
        total: list[Tensor | None] = [None] * len(ctx.params)
        for term, gradient in zip(terms, gradients, strict=True):
            term.gradient = gradient.detach()
        hooked = [p for p in ctx.params if p._backward_hooks]
        for source in dict.fromkeys(ctx.owners):
            own = [i for i, owner in enumerate(ctx.owners) if owner is source]
            own = [i for i in own if terms[i].values.requires_grad]
            if not own:
                continue
            with _without_hooks(hooked):  # the engine calls them, for the sum
                found = torch.autograd.grad(
                    [terms[i].values for i in own],
                    ctx.params,
                    [gradients[i] for i in own],
                    retain_graph=True,
                    create_graph=again,
                    allow_unused=True,
                )
            pairs = zip(ctx.params, found, strict=True)
            known = {p: g.detach() for p, g in pairs if g is not None}
            source.hand_over([terms[i] for i in own], None if hooked else known)
            total = [_added(a, b) for a, b in zip(total, found, strict=True)]
        if not torch._C._autograd._get_current_graph_task_keep_graph():
            ctx.terms = None
        return (None, None, *total)


@contextlib.contextmanager
def _without_hooks(params: Sequence[Tensor]) -> Iterator[None]:
    """Inside, gradients of these parameters call no hooks of theirs."""
    kept = [(p._backward_hooks, dict(p._backward_hooks)) for p in params if p._backward_hooks]
    try:
        for hooks, _ in kept:
            hooks.clear()
        yield
    finally:
        for hooks, own in kept:
            hooks.update(own)


def _added(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b


class SplitStep:
    """The train step of a model.

    Args:
        model: a compiled model, with DeepXDE's own train step.
        losses: its loss functions, one or a list.
        noise: what its optimizer was told of the noise in its data; None: nothing.
    """

    def __init__(self, model: Any, losses: Any, noise: ModelNoise | None = None) -> None:
        self.model = model
        self.owners: list[_Source] = []
        self._deepxde: Callable[..., None] = model.train_step
        self._built_for = self._structure()
        regularizer = model.net.regularizer
        self._l1 = regularizer[1] if regularizer is not None and regularizer[0] == "l1" else 0
        trained = [p for group in model.opt.param_groups for p in group["params"]]
        own = [*model.net.parameters(), *model.external_trainable_variables, *trained]
        self._params = list(dict.fromkeys(own))
        self._seen: tuple[bytes, bytes | None, list[int]] | None = None
        """The points, the auxiliary variables and the numbers of points that the parts have been
        filled from."""
        self._aux: Any = None
        self._all_losses = losses
        self._parts = _parts(model, losses, noise)
        self._sources = {owner for part in self._parts for owner in part.owners_of(1)}

    def _structure(self) -> list[Any]:
        """What has to stay as it is."""
        model, data = self.model, self.model.data
        return [model.net, data, data.pde, data.auxiliary_var_fn, *data.bcs]

    def why_not(self) -> str:
        """Why DeepXDE's own step is used in spite of all, at the moment; empty where it is not."""
        now, then = self._structure(), self._built_for
        if len(now) != len(then) or any(a is not b for a, b in zip(now, then, strict=True)):
            return "conditions, equation or network are others than at compile"
        return _why_not_today(self.model.data)

    def train_step(self, inputs: Any, targets: Any, auxiliary_vars: Any) -> None:
        """As DeepXDE's."""
        model = self.model
        if inputs is not model.data.train_x or self.why_not():
            _look_for_old_values(model)
            self._deepxde(inputs, targets, auxiliary_vars)
            return
        self._fill(inputs, auxiliary_vars)

        def closure() -> Tensor:
            total = torch.sum(self.losses())
            model.opt.zero_grad()
            params = [p for p in self._params if p.requires_grad]
            total.backward(inputs=params or None)  # type: ignore[no-untyped-call]
            return total

        def closure_mixed() -> Tensor:
            device = torch.get_default_device().type
            with torch.autocast(device_type=device, dtype=torch.float16):
                return closure()

        with self._unchanged_gradients():
            model.opt.step(closure_mixed if config.mixed else closure)
        if model.lr_scheduler is not None:
            model.lr_scheduler.step()

    @contextlib.contextmanager
    def _unchanged_gradients(self) -> Iterator[None]:
        """Inside, optimizers need not look whether gradients are as backward has left them."""
        for source in self._sources:
            source.leaves_gradients = True
        try:
            yield
        finally:
            for source in self._sources:
                source.leaves_gradients = False

    def losses(self) -> Tensor:
        """The weighted losses in DeepXDE's order, in the graph, at the rows of the last step."""
        model = self.model
        model.net.train(mode=True)
        losses = torch.stack(self._losses())
        if model.loss_weights is not None:
            losses *= torch.as_tensor(model.loss_weights)
        if self._l1 > 0:
            sizes = [torch.sum(p.abs()) for p in model.net.parameters()]
            l1_loss = self._l1 * torch.sum(torch.stack(sizes))
            losses = torch.cat([losses, l1_loss.unsqueeze(0)])
        aux = self._aux
        model.net.auxiliary_vars = None if aux is None else torch.as_tensor(aux)
        return losses

    def _losses(self) -> list[Tensor]:
        """The losses of all terms."""
        of_equation: list[Tensor] = []
        of_conditions: list[Any] = [None] * len(self.model.data.bcs)
        for part in self._parts:
            found = self._noisy(part) if part.owners else part.evaluate(self.model, part.losses)
            if equations := len(found) - len(part.places):
                of_equation = found[:equations]
            for place, loss in zip(part.places, found[equations:], strict=True):
                of_conditions[place] = loss
        return of_equation + of_conditions

    def _noisy(self, part: _Part) -> list[Tensor]:
        """The losses of a part's noisy terms."""
        params = [p for p in self._params if p.requires_grad]
        values = _Measured.apply(self, part, *params)  # type: ignore[no-untyped-call]
        conditions = part.stand_in.bcs or [None] * len(values)
        return [
            own if own.ndim == 0 else owner.loss_of(condition).reduced(own)
            for own, owner, condition in zip(values, self.owners, conditions, strict=True)
        ]

    def _fill(self, inputs: Any, aux: Any) -> None:
        """Give every part its rows, where they are others than in the last step."""
        data = self.model.data
        now = inputs.tobytes(), None if aux is None else aux.tobytes(), list(data.num_bcs)
        if now == self._seen:
            return
        ends = np.cumsum([0, *data.num_bcs])
        for part in self._parts:
            rows = [np.arange(ends[i], ends[i + 1]) for i in part.places]
            if part.is_equation:
                rows.append(np.arange(ends[-1], len(inputs)))
            part.fill(data, inputs, aux, np.concatenate(rows))
        self._seen, self._aux = now, aux

    def compare(self) -> str:
        """Why the losses or their gradient are not those of DeepXDE's own step; empty where they
        are."""
        model = self.model
        trained = [p for p in self._params if p.requires_grad]
        with contextlib.ExitStack() as stack:
            for owner in self._sources:
                stack.enter_context(owner.at_rest())
            left_behind = stack.enter_context(as_it_was(model))
            model.net.train(mode=True)
            for by in (0.1, 0.0):  # a fit as it is may be so good that all is rounding
                with _moved(trained, by):
                    try:
                        reason = self._compare(trained)
                    except Exception as error:
                        return f"there is an error without the other points: {error}"
                if reason is not None:
                    return reason or left_behind()
        return "the losses at the start are not finite"

    def _compare(self, trained: list[Tensor]) -> str | None:
        """As :meth:`compare`, at the weights as they are; None where they tell nothing."""
        model, data = self.model, self.model.data
        inputs, aux = data.train_x, data.train_aux_vars
        self._fill(inputs, aux)
        whole = _Part(range(len(data.bcs)), data.pde is not None, self._all_losses)
        whole.fill(data, inputs, aux, slice(None))
        common, of_common = _judged(whole.evaluate(model, whole.losses), trained)
        if not (common.isfinite().all() and of_common.isfinite().all()):
            return None
        split, of_split = _judged(self._losses(), trained)
        if split.shape != common.shape or not all(map(_are_close, split, common, _floor(common))):
            return "the losses of a part of the points are others"
        if not _are_close(of_split, of_common):
            return "the gradients of a part of the points are others"
        return self._compare_rows(whole.residuals(model))

    def _compare_rows(self, common: list[Tensor]) -> str:
        """The same for residuals: of each half of the equation's points, of each condition alone.

        Args:
            common: residuals of a common pass, equations at all rows first.
        """
        model, data = self.model, self.model.data
        inputs, aux = data.train_x, data.train_aux_vars
        ends = np.cumsum([0, *data.num_bcs])
        equations = len(common) - len(data.bcs)
        for half in (0, 1) if equations else ():
            rows = np.arange(ends[-1], len(inputs))[half::2]
            if len(rows):
                alone = _Part([], True, None)
                alone.fill(data, inputs, aux, rows)
                for found, expected in zip(alone.residuals(model), common, strict=False):
                    if not _are_close(found, expected[half::2]):
                        return "the equation at a point depends on the other points"
        for place, expected in enumerate(common[equations:]):
            alone = _Part([place], False, None)
            alone.fill(data, inputs, aux, np.arange(ends[place], ends[place + 1]))
            size = max(float(residual.detach().norm()) for residual in common)
            if not _are_close(
                alone.residuals(model)[0], expected, TOLERANCES[expected.dtype] * size
            ):
                return f"condition {place} depends on points that are not its own"
        return ""


def _parts(model: Any, losses: Any, noise: ModelNoise | None) -> list[_Part]:
    """The parts of a model's rows: measured ones, other conditions, equation.

    Args:
        model: a compiled model.
        losses: its loss functions, one or a list.
        noise: what its optimizer was told of the noise.
    """
    data, several = model.data, isinstance(losses, (list, tuple))
    first = len(losses) - len(data.bcs) if several else 0
    of_conditions = losses[first:] if several else [losses] * len(data.bcs)
    of_equation = losses[:first] if several else losses

    def owner(loss: Any, condition: Any = None) -> Any:
        return None if noise is None else noise.source_of(loss, condition)

    owners = [owner(*pair) for pair in zip(of_conditions, data.bcs, strict=True)]
    if data.pde is None:
        of_its: list[Any] = []
    else:
        of_its = [owner(loss) for loss in of_equation] if several else [owner(of_equation)]
    shared = {own for own in of_its if own in owners}
    owners = [None if own in shared else own for own in owners]
    parts = []
    for source in dict.fromkeys(own for own in owners if own is not None):
        places = [i for i, own in enumerate(owners) if own is source]
        parts.append(_Part(places, False, None, [source] * len(places)))
    exact = [i for i, own in enumerate(owners) if own is None]
    is_measured = bool(of_its) and not shared and None not in of_its
    size = sum(data.num_bcs[i] for i in exact) * sum(p.numel() for p in model.net.parameters())
    joins = size < FEW and data.pde is not None and not is_measured
    own_losses = [of_conditions[i] for i in exact] if several else losses
    if exact and not joins:
        parts.append(_Part(exact, False, own_losses))
    if is_measured:
        parts.append(_Part([], True, None, of_its if several else of_its[0]))
    elif data.pde is not None:
        both = [*of_equation, *own_losses] if several and joins else of_equation
        parts.append(_Part(exact if joins else [], True, both))
    return parts


# Comparisons


def _are_close(found: Tensor, expected: Tensor, floor: Tensor | float = 0.0) -> bool:
    """Whether two tensors are equal but for rounding, or differ by less than the floor."""
    if found.shape != expected.shape:
        return False
    found, expected = found.detach(), expected.detach()
    allowed = TOLERANCES[expected.dtype] * expected.norm() + floor
    return bool((found - expected).norm() <= allowed)


def _floor(losses: Tensor) -> Tensor:
    """Squares of residuals that are rounding beside the largest ones, per loss."""
    return (TOLERANCES[losses.dtype] ** 2 * losses.abs().max()).expand_as(losses)


def _judged(losses: list[Tensor], params: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Losses, and the gradient of their sum as one vector, each loss in units of itself."""
    stacked = torch.stack(losses)
    values = stacked.detach()
    total = (stacked / (values.abs() + _floor(values))).sum()
    if not params:
        return values, values.new_zeros(0)
    with _without_hooks(params):
        found = torch.autograd.grad(total, params, allow_unused=True)
    pairs = zip(found, params, strict=True)
    return values, torch.cat(
        [(torch.zeros_like(p) if g is None else g).flatten() for g, p in pairs]
    )


@contextlib.contextmanager
def _moved(params: list[Tensor], by: float) -> Iterator[None]:
    """Parameters at a place in the neighbourhood, always the same."""
    generator = torch.Generator("cpu").manual_seed(0)
    before = [p.data for p in params]
    try:
        for p in params:
            z = torch.randn(p.shape, generator=generator, dtype=p.dtype, device="cpu")
            size = p.data.abs() + (0.2 if p.ndim else 0)  # an unknown coefficient keeps its sign
            p.data = p.data + by * z.to(p.device) * size
        yield
    finally:
        for p, own in zip(params, before, strict=True):
            p.data = own


@contextlib.contextmanager
def as_it_was(model: Any) -> Iterator[Callable[[], str]]:
    """Leaves a model and the random numbers as they are.

    Gives a function that says what has changed meanwhile; empty where nothing has.
    """
    net = model.net
    modes = [(module, module.training) for module in net.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in net.buffers()]
    aux, devices = net.auxiliary_vars, range(torch.cuda.device_count())
    states = random.getstate(), np.random.get_state()

    def drawn() -> list[Any]:
        cuda = [torch.cuda.get_rng_state(device) for device in devices]
        of_numpy = np.random.get_state(legacy=False)
        return [
            random.getstate(),
            str(of_numpy),
            *(str(s.tolist()) for s in [torch.get_rng_state(), *cuda]),
        ]

    before = drawn()

    def changed() -> str:
        if drawn() != before:
            return "random numbers are drawn in it"
        if not all(torch.equal(own, kept) for own, kept in buffers):
            return "buffers of the network change in it"
        return ""

    try:
        with torch.random.fork_rng(devices):
            yield changed
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        with torch.no_grad():
            for buffer, kept in buffers:
                buffer.copy_(kept)
        for module, mode in modes:
            module.training = mode
        net.auxiliary_vars = aux
        clear_cache()


# Values that DeepXDE keeps by the id of the points


def never_seen(rows: Any, conditions: Iterable[Any]) -> Any:
    """A copy of an array whose ``id`` says nothing to conditions, neither now nor once it is gone.

    DeepXDE's conditions keep their values by the ``id`` of the points, and Python gives the ``id``
    of an array that is gone to new ones.
    """
    found = np.array(rows)
    own = [weakref.ref(condition) for condition in conditions]
    _forget(own, id(found))
    weakref.finalize(found, _forget, own, id(found)).atexit = False
    return found


def _forget(conditions: Iterable[weakref.ref[Any]], identity: int) -> None:
    """Let conditions forget the values that they keep for the array of this ``id``."""
    for ref in conditions:
        for function in vars(ref()).values() if ref() is not None else ():
            code = getattr(function, "__code__", None)
            if code is not None and code.co_name == "wrapper_cache":
                cache = function.__closure__[code.co_freevars.index("cache")].cell_contents
                for key in [key for key in cache if key[0] == identity]:
                    del cache[key]


warned = False
"""Whether it has been said in this process that values at the boundary may be old ones."""


def _look_for_old_values(model: Any) -> bool:
    """Warn, once in a process, where DeepXDE trains on values of points that are gone."""
    global warned
    callbacks = getattr(model.callbacks, "callbacks", ())
    resampled = any(isinstance(c, PDEPointResampler) and c.bc_points for c in callbacks)
    if not (resampled and any(isinstance(condition, _CACHING) for condition in model.data.bcs)):
        return False
    if not warned:
        warned = True
        warnings.warn(
            "DeepXDE keeps the values of its conditions by the id of the array of points, which "
            "new arrays get again: with PDEPointResampler(bc_points=True) many steps train on the "
            "values of other points. The split step does not, but is not in use "
            f"({step_of(model)}). See docs/concepts/deepxde.md.",
            stacklevel=users_stacklevel(),
        )
    return True


def _watched(model: Any) -> Callable[..., None]:
    """DeepXDE's train step, which looks for old values first."""
    original: Callable[..., None] = model.train_step

    def train_step(inputs: Any, targets: Any, auxiliary_vars: Any) -> None:
        if _look_for_old_values(model):
            model.train_step = original
        original(inputs, targets, auxiliary_vars)

    return train_step


# Which step a model has


def remember_losses(model: Any, loss: Any) -> None:
    """Keep what a model was compiled with.

    Args:
        model: compiled, with DeepXDE's own step.
        loss: as DeepXDE has got it.
    """
    model.sciml_snr_losses = dde_losses.get(loss)
    model.sciml_snr_equation_points = 0
    model.sciml_snr_reason = None


def install(model: Any, noise: ModelNoise | None = None) -> str:
    """Give a compiled model the split step, where it makes the same of its points.

    Works for any optimizer of first order; a model whose optimizer knows of no noise has one pass
    for all conditions and one for the equation.

    Args:
        model: a model that was compiled since :mod:`sciml_snr` was imported.
        noise: what its optimizer was told of the noise in its data; None: nothing.

    Returns:
        What :func:`step_of` says.
    """
    reason = _why_not(model)
    if not reason:
        step = SplitStep(model, model.sciml_snr_losses, noise)
        reason = step.why_not() or step.compare()
        if not reason:
            model.train_step = step.train_step
    if reason:
        keep_own(model, reason)
    return step_of(model)


def keep_own(model: Any, reason: str) -> None:
    """Leave a model DeepXDE's step, and say why."""
    model.sciml_snr_reason = reason
    if isinstance(model.data, PDE):
        model.train_step = _watched(model)


def step_of(model: Any) -> str:
    """In words, which train step a compiled model has, and why it is DeepXDE's own; empty where
    that was not looked at."""
    step = getattr(model.train_step, "__self__", None)
    reason = (
        step.why_not() if isinstance(step, SplitStep) else getattr(model, "sciml_snr_reason", None)
    )
    if reason is None:
        return ""
    return f"train step: DeepXDE's own, since {reason}" if reason else "train step: split by points"


OWN_LOSSES = "the data form their losses themselves"


def _why_not_today(data: Any) -> str:
    """What may come to speak against the split step after compile; empty if nothing does."""
    if not vars(data).keys().isdisjoint(("losses", "losses_train")):
        return OWN_LOSSES
    return "derivatives are in forward mode" if config.autodiff != "reverse" else ""


def _why_not(model: Any) -> str:
    """What speaks against the split step before it is tried; empty if nothing does."""
    data = model.data
    if backend_name != "pytorch":
        return f"the backend is {backend_name}"
    if not isinstance(data, PDE):
        return "the data are no PDE"
    of_class = type(data)
    if of_class.losses is not PDE.losses or of_class.losses_train is not PDE.losses_train:
        return OWN_LOSSES
    if reason := _why_not_today(data):
        return reason
    if config.hvd is not None:
        return "training is distributed"
    if optimizers.is_external_optimizer(model.opt_name):
        return f"the optimizer is {model.opt_name}"
    if not isinstance(data.train_x, np.ndarray):
        return "inputs are no array"
    if any(isinstance(module, _RANDOM_OR_MIXING) for module in model.net.modules()):
        return "the network has dropout or normalizes over batches"
    return ""
