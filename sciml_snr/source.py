"""How a noisy term hears of its gradient, and makes the two extra passes through the graph."""

from __future__ import annotations

import contextlib
import math
import sys
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._compile import _disable_dynamo

from ._tensors import sums_of_squares_are_finite
from .handover import Facts, Handover, current_pass
from .terms import Term, beyond_noise, draw_scale, misfit

SCALED = 1e3
"""A loss of more weight than this is taken for a scaled one."""


class _Arrival(torch.autograd.Function):
    """The identity, which tells a group of terms that a gradient has arrived."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, term: Term, group: Group) -> Tensor:
        ctx.term, ctx.group = term, group
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        ctx.group.arrive(ctx.term, gradient.detach())
        return gradient, None, None


class Group:
    """Terms of one forward pass that share the two extra passes through the graph.

    The passes are made when the gradient has arrived at every term.

    Args:
        source: whose terms they are.
    """

    def __init__(self, source: NoiseSource) -> None:
        self.source = source
        self.terms: list[Term] = []
        self._missing: set[int] = set()
        self._pass: int | None = None
        """The backward pass that the others have arrived in."""

    @_disable_dynamo
    def watch(self, term: Term) -> Tensor:
        """Add a term; gives its values, as the loss is to be made from them."""
        self.terms.append(term)
        watched: Tensor = _Arrival.apply(term.values, term, self)  # type: ignore[no-untyped-call]
        return watched

    def arrive(self, term: Term, gradient: Tensor) -> None:
        """Take a term's gradient. Those of an earlier pass that left terms out are void."""
        if self._pass != (now := current_pass()):
            self._pass, self._missing = now, {id(term) for term in self.terms}
        term.gradient = gradient
        self._missing.discard(id(term))
        if not self._missing:
            self.hand_over()

    def hand_over(self) -> None:
        """All gradients are there: make the passes."""
        self.source.hand_over(self.terms)


class NoiseSource:
    """What can be declared to an optimizer: it hands over draws of its noise in every backward."""

    is_equation = False
    """Whether its residuals are those of an equation, and not a comparison of outputs with data."""

    terms = 1
    """Number of its noisy terms."""

    leaves_gradients = False
    """Whether nothing comes between its backward passes and the step that takes them up."""

    def __init__(self) -> None:
        self._handovers: list[weakref.ref[Handover]] = []
        self._generators: dict[torch.device, torch.Generator] = {}

    def connect(self, handover: Handover) -> None:
        """Hand over to one more optimizer, as long as that one lives."""
        self._handovers.append(weakref.ref(handover))

    def disconnect(self, handover: Handover) -> None:
        """Hand over no more."""
        self._handovers = [own for own in self._handovers if own() is not handover]

    @property
    def handovers(self) -> list[Handover]:
        """Those of the optimizers that it was declared to."""
        found = (own() for own in self._handovers)
        return [own for own in found if own is not None and own.is_alive]

    def describe(self) -> list[str]:
        """One line per noisy term."""
        raise NotImplementedError

    def setup(self) -> str:
        """What has to be the same in all processes that train together."""
        return "; ".join(self.describe())

    def exact(self) -> list[str]:
        """One line per exact term beside them, as far as they are known by name."""
        return []

    def is_watched(self, values: Tensor) -> bool:
        """Whether a backward pass from here is to hand anything over."""
        return bool(self._handovers) and torch.is_grad_enabled() and values.requires_grad

    @contextlib.contextmanager
    def at_rest(self) -> Iterator[None]:
        """Inside, nothing is handed over."""
        own, self._handovers = self._handovers, []
        try:
            yield
        finally:
            self._handovers = own

    def hand_over(self, terms: Sequence[Term], known: dict[Tensor, Tensor] | None = None) -> None:
        """Make the passes that the optimizers ask for.

        Args:
            terms: whose gradients have arrived.
            known: the gradient of what they add to the total, where it is known already; of
                parameters that they do not depend on there is none.
        """
        terms = [term for term in terms if term.residual.requires_grad and term.residual.numel()]
        facts = self._facts(terms)
        for own in self.handovers:
            leaves = own.leaves()
            draws = noisy = None
            if leaves and own.looks:
                _check_compiled([term.values for term in terms])
            if leaves and terms and own.wants_draw:
                outputs, factors = self._random_signs(terms, own)
                unit = _unit(factors) if _is_scaled(facts) else 1.0
                draws = self._gradients(outputs, factors, leaves, unit)
            if leaves and terms and own.wants_gradient:
                noisy = self._noisy_gradient(
                    terms, own.weighs_by_misfit, leaves, known, _is_scaled(facts)
                )
            own.hold(self, draws, noisy, facts)

    def _noisy_gradient(
        self,
        terms: Sequence[Term],
        by_misfit: bool,
        leaves: Mapping[Tensor, Tensor],
        known: dict[Tensor, Tensor] | None,
        is_scaled: bool,
    ) -> dict[Tensor, Tensor]:
        """The gradient that counts as noisy: from the known one, or by a pass."""
        if known is not None and all(map(_has_error, terms)):
            own = {p: known[p] for p in leaves if p in known}
            beyond = [beyond_noise(term) for term in terms] if by_misfit else []
            if all(float(factor) == 1 for factor in beyond):
                return own
            if len(terms) == 1:
                return {p: (g / beyond[0].to(g)).nan_to_num(nan=0.0) for p, g in own.items()}
        gradients = [self._noisy_part(term, by_misfit) for term in terms]
        outputs = [term.values for term in terms]
        found = self._gradients(outputs, gradients, leaves)
        if is_scaled and not sums_of_squares_are_finite(list(found.values())):
            found = self._gradients(outputs, gradients, leaves, _unit(gradients))
        return found

    def _random_signs(
        self, terms: Sequence[Term], handover: Handover
    ) -> tuple[list[Tensor], list[Tensor]]:
        """What to differentiate for a draw, and by which factors."""
        seed = handover.next_seed(self)
        factors = []
        for k, term in enumerate(terms):
            if term.pattern is None:
                signs = self._signs(tuple(term.residual.shape), term.residual, seed + k)
            else:
                signs = term.pattern(seed + k).to(term.residual)
            factors.append(signs.mul_(draw_scale(term, beyond_noise(term))))
        return [term.residual for term in terms], factors

    def _noisy_part(self, term: Term, by_misfit: bool) -> Tensor:
        """The gradient at a term's values; none where no datum has an error, and, if wanted, less
        what its misfit says is no noise."""
        assert term.gradient is not None
        noisy = term.gradient * term.sigma.any()
        return (noisy / beyond_noise(term).to(noisy)).nan_to_num(nan=0.0) if by_misfit else noisy

    def _signs(self, shape: tuple[int, ...], like: Tensor, seed: int) -> Tensor:
        """Random signs, from a generator of this source's own."""
        device = like.device
        if device not in self._generators:
            self._generators[device] = torch.Generator(device)
        generator = self._generators[device].manual_seed(seed)
        signs = torch.randint(0, 2, shape, generator=generator, device=device, dtype=like.dtype)
        return signs.mul_(2).sub_(1)

    @staticmethod
    def _gradients(
        outputs: list[Tensor],
        factors: list[Tensor],
        leaves: Mapping[Tensor, Tensor],
        unit: float = 1.0,
    ) -> dict[Tensor, Tensor]:
        """By parameter; the values of ``leaves`` stand for them in the graph. The pass is made in
        this unit."""
        inputs = list(leaves.values())
        if unit != 1:
            factors = [factor / unit for factor in factors]
        found = torch.autograd.grad(outputs, inputs, factors, retain_graph=True, allow_unused=True)
        pairs = zip(leaves, found, strict=True)
        return {p: g if unit == 1 else g * unit for p, g in pairs if g is not None}

    def _facts(self, terms: Sequence[Term]) -> Facts:
        """What an optimizer wants to know besides."""
        if not terms:
            return Facts()
        first = terms[0]
        whole = all(
            term.population is None or len(term.residual) >= term.population for term in terms
        )
        parts = [misfit(term) for term in terms]
        return Facts(
            rows=len(first.residual) if first.residual.ndim else 1,
            population=first.population if first.drawn_anew else None,
            misfit=_sum([total for total, _ in parts]),
            summands=_sum([count for _, count in parts]),
            opens=whole and all(term.loss.is_square for term in terms),
            scale=_sum([term.weight() for term in terms]),
            is_coarse=any(term.is_coarse for term in terms),
        )

    def __getstate__(self) -> dict[str, Any]:
        """A copy hands over to no optimizer yet."""
        return {**self.__dict__, "_handovers": [], "_generators": {}}


def _is_scaled(facts: Facts) -> bool:
    """Whether a pass is rounded to 16 bits, or the loss is scaled as for such a one."""
    return facts.is_coarse or float(facts.scale) > SCALED


def _unit(factors: Sequence[Tensor]) -> float:
    """A power of 2 of the size of the largest factor. The scale of a loss (GradScaler's) is right
    for the loss, and draws would leave the range of 16 bits in it."""
    largest = max((float(x.abs().max()) for x in factors if x.numel()), default=0.0)
    is_usable = 0 < largest < math.inf
    return 2.0 ** math.floor(math.log2(largest)) if is_usable else 1.0


def _check_compiled(outputs: Sequence[Tensor]) -> None:
    """Refuse a network whose compiled backward pass may use up what the forward pass has saved:
    every further pass through it would be wrong, in silence where it comes from torch's cache."""
    if "torch._dynamo" not in sys.modules or not _has_compiled(outputs):
        return
    functorch = sys.modules["torch._functorch.config"]
    inductor = sys.modules.get("torch._inductor.config")
    if functorch.donated_buffer or not getattr(inductor, "force_disable_caches", True):
        raise RuntimeError(
            "torch.compile makes backward passes that can be made once only, and noise takes "
            "further ones. Before compiling, set torch._functorch.config.donated_buffer = False "
            "and torch._inductor.config.force_disable_caches = True: torch's cache takes no "
            "account of the first (docs/how-to/processes.md)."
        )


def _has_compiled(outputs: Sequence[Tensor]) -> bool:
    """Whether torch.compile has made a part of these outputs' graph."""
    todo: list[Any] = [x.grad_fn for x in outputs]
    seen = set()
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            todo += [upstream for upstream, _ in node.next_functions]
            made = getattr(node, "_forward_cls", None)
            if made is not None and made.__name__ == "CompiledFunction":
                return True
    return False


def _sum(numbers: list[Tensor]) -> Tensor:
    return numbers[0] if len(numbers) == 1 else torch.stack(numbers).sum()


def _has_error(term: Term) -> bool:
    """Whether a term's data have an error, or some of them."""
    return bool(term.sigma.any()) if term.is_noisy is None else term.is_noisy
