"""What noisy losses leave for an optimizer between two of its steps."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from ._tensors import as_wide, is_16_bit, is_sharded, local
from .gradient_watch import GradientWatch
from .processes import Processes, are_same, fingerprint, size_of
from .rule import averaged_share

if TYPE_CHECKING:
    from .source import NoiseSource

KEY = "noise"
"""Under this key an optimizer's state holds what is not of one parameter."""

LOOK_EVERY = 100
"""Whether there are exact terms is looked at every so many steps, and when loss weights change."""

TOLERANCE = 1e-3
"""Relative difference of two gradients that count as one; of 16-bit passes more. Exact terms
that were there are gone at a hundredth of it: what has all but converged still holds noise back."""


ALONE = "Does each train a network of its own? Say so: SNRAdam(..., process_group=False)."


class Facts(NamedTuple):
    """What a noisy loss tells of a backward pass, beside the gradients."""

    rows: int = 0
    population: float | None = None
    """What the rows are drawn from; None: the same in every step."""
    misfit: Tensor | float = 0.0
    """Sum of (residual / sigma)^2."""
    summands: Tensor | float = 0.0
    """Their number."""
    opens: bool = False
    """Whether the misfit may open a gate: squared error, the same data in every step."""
    scale: Tensor | float = 0.0
    """Sum of the total's derivatives by the losses of the entries: the term's weight."""
    is_coarse: bool = False
    """Whether the pass is rounded to 16 bits."""
    passes: int = 1
    """Number of backward passes that it tells of."""


class _Received:
    """What one source has handed over since the last step."""

    def __init__(self) -> None:
        self.draws: dict[Tensor, Tensor] = {}
        self.noisy: dict[Tensor, Tensor] = {}
        self.has_draws = False
        self.facts: list[Facts] = []

    def share(self) -> float:
        """Share of the rows' noise that is the same in every step."""
        rows = sum(facts.rows for facts in self.facts)
        return share_that_stays(rows, self.facts[0].population)

    def beyond_noise(self) -> float:
        """max(R, 1) for the misfit R, as one term of one pass has it; 1 if it overflows."""
        (facts,) = self.facts
        ratio = float(facts.misfit) / max(float(facts.summands), 1.0)
        return max(ratio, 1.0) if math.isfinite(ratio) else 1.0


class _Joined(NamedTuple):
    """What all processes together have received of one noisy loss, but for the tensors."""

    facts: Facts
    has_draws: bool
    present: dict[str, Tensor]
    """Of which parameters there are ``"draws"``, ``"noisy"`` gradients."""


class Handover:
    """Collects draws of the noise and noisy gradients for one optimizer, until its next step.

    What changes results is in the optimizer's ``state``, under :data:`KEY`: plain numbers.

    Args:
        owner: the optimizer.
        sources: the noisy losses that were declared to it.
        floor_every: draw in every so many steps.
        processes: that train the network together.
    """

    def __init__(
        self,
        owner: Optimizer,
        sources: Sequence[NoiseSource],
        floor_every: int,
        processes: Processes,
    ) -> None:
        self._owner = weakref.ref(owner)
        self.sources = list(sources)
        self.floor_every = floor_every
        self.processes = processes
        self.follows = True
        """Whether the noisy terms' own gradient is of use beside exact terms."""
        self._received: dict[NoiseSource, _Received] = {}
        self._held: list[Any] = []
        """What the running backward pass has handed over so far."""
        self._pass: int | None = None
        """Which one that is."""
        self._reaches = False
        """Whether the running backward pass has reached a parameter."""
        self._gradients = GradientWatch()
        self._hooks: dict[Tensor, Any] = {}
        weakref.finalize(self, _remove, self._hooks)
        for source in self.sources:
            source.connect(self)
        self._watch()

    def detach(self) -> None:
        """Take nothing any more."""
        for source in self.sources:
            source.disconnect(self)
        _remove(self._hooks)

    # What sources ask

    @property
    def is_alive(self) -> bool:
        """Whether the optimizer still exists."""
        return self._owner() is not None

    @property
    def state(self) -> dict[str, Any]:
        """The part of the optimizer's state that is not of one parameter."""
        owner = self._owner()
        assert owner is not None
        state: dict[str, Any] = owner.state[KEY]  # type: ignore[index]
        if not state:
            state.update(seed=torch.initial_seed(), passes=0, steps=0, beside_exact=None, look=True)
        return state

    def params(self) -> list[Tensor]:
        """The gated parameters that are being trained."""
        owner = self._owner()
        groups = [] if owner is None else owner.param_groups
        return [
            p for group in groups if is_gated(group) for p in group["params"] if p.requires_grad
        ]

    def leaves(self) -> dict[Tensor, Tensor]:
        """The same, with what stands for each in the graph."""
        return self.processes.leaves(self.params())

    @property
    def wants_draw(self) -> bool:
        """Whether the floor is to be renewed in the coming step."""
        return bool(self.state["steps"] % self.floor_every == 0)

    @property
    def looks(self) -> bool:
        """Whether the coming step is to compare the total gradient with the noisy terms'."""
        return not self.is_mixed and bool(self.state["look"])

    @property
    def wants_gradient(self) -> bool:
        """Whether the noisy terms' own gradient is needed for the coming step."""
        return self.looks or (self.follows and bool(self.is_mixed or self.state["beside_exact"]))

    @property
    def is_mixed(self) -> bool:
        """Whether noisy equations stand beside noisy data; of the last step's weight, 0 is none."""
        scales = self.state.get("scales") or [1.0] * len(self.sources)
        pairs = zip(self.sources, scales, strict=False)
        return len({source.is_equation for source, scale in pairs if scale != 0}) > 1

    @property
    def weighs_by_misfit(self) -> bool:
        """Whether a term with a misfit R > 1 counts as noisy by a part of 1/R only: where there are
        several, and the sum need not be compared with the total."""
        terms = sum(source.terms for source in self.sources)
        return terms > 1 and not self.looks

    def look_again(self) -> None:
        """Compare the total gradient with the noisy terms' in the step after the coming one."""
        self.state["look_again"] = True

    def next_seed(self, source: NoiseSource) -> int:
        """A seed for one draw, another one every time, in every process and for every source."""
        state = self.state
        state["passes"] += 1
        place = self.sources.index(source)
        return _mixed(int(state["seed"]), self.processes.rank, place, state["passes"])

    def receive(
        self,
        source: NoiseSource,
        draws: dict[Tensor, Tensor] | None,
        noisy: dict[Tensor, Tensor] | None,
        facts: Facts,
    ) -> None:
        """Add what a backward pass has found."""
        received = self._received.setdefault(source, _Received())
        received.facts.append(facts)
        received.has_draws |= draws is not None
        for found, kept in ((draws, received.draws), (noisy, received.noisy)):
            for p, value in (found or {}).items():
                kept[p] = kept[p] + value if p in kept else value

    def hold(self, *found: Any) -> None:
        """The same within a backward pass: it is added at the end, if the pass has left gradients.

        ``torch.autograd.grad``, which balances loss weights, say, leaves none; nor does a pass
        through another optimizer's network.
        """
        self._begin_pass()
        self._review()
        self._watch()
        self._held.append(found)
        _at_end(self._end)

    # What the optimizer asks

    def clear(self) -> None:
        """Forget what has been handed over."""
        self._received.clear()
        self._held.clear()
        self._gradients.clear()
        self._reaches = False

    def check(self) -> None:
        """Refuse a step without what it needs.

        Raises:
            RuntimeError: a declared loss had no backward pass, or reached none of the parameters.
        """
        missing = [source for source in self.sources if source not in self._received]
        if missing:
            what = "; ".join(line for source in missing for line in source.describe())
            raise RuntimeError(
                "There was no backward pass of a declared noisy loss to this optimizer's "
                f"parameters before this step: {what}. Call loss.backward() on a loss that "
                "contains it, after zero_grad(). (A copy of a network has parameters of its own.)"
            )
        if self.wants_draw and self.params():
            for source, received in self._received.items():
                if received.has_draws and not received.draws:
                    what = "; ".join(source.describe())
                    raise RuntimeError(
                        f"A declared noisy loss depends on none of this optimizer's parameters: "
                        f"{what}. They are frozen, or those of another network (a copy has its "
                        "own): declare each network's loss to its own optimizer."
                    )

    def join(self) -> None:
        """Put together what the processes that train together have received: means of draws and
        gradients, as of the loss's gradients; sums of rows and misfits.

        Raises:
            RuntimeError: they have declared other noise, taken another number of steps, or hold
                other parameters or gradients.
        """
        params = self.params()
        if self.processes.group is None or not params:
            return
        self._check_alike(params)
        joined = {source: self._joined_facts(source, params) for source in self.sources}
        tensors: list[Tensor] = []
        for source, facts in joined.items():
            for name in ("draws", "noisy"):
                if facts.present[name].any():
                    tensors += self._scaled(source, name, facts, params)
        means = iter(self.processes.means(tensors))
        received = {}
        for source, facts in joined.items():
            own = _Received()
            for name in ("draws", "noisy"):
                if facts.present[name].any():
                    parts = {p: self.processes.own_part(next(means), p) for p in params}
                    is_there = dict(zip(params, facts.present[name].tolist(), strict=True))
                    setattr(own, name, {p: x for p, x in parts.items() if is_there[p]})
            own.has_draws = facts.has_draws
            own.facts = [facts.facts]
            if facts.facts.passes:
                received[source] = own
        self._received = received

    def _check_alike(self, params: list[Tensor]) -> None:
        """Refuse processes that cannot be training one network together."""
        state, device = self.state, params[0].device
        setup = [*(source.setup() for source in self.sources), f"floor_every {self.floor_every}"]
        setup += [str(tuple(p.shape)) for p in params]
        looks = state["steps"] % LOOK_EVERY == 0 and not any(map(is_sharded, params))
        sums = [0.0] * 4
        if looks:
            sums = size_of(params) + size_of([p.grad for p in params if p.grad is not None])
        own = [fingerprint(setup), float(state["steps"]), *sums]
        rows = self.processes.numbers_of_all(own, device)
        if (rows[:, 0] != rows[0, 0]).any():
            raise RuntimeError(
                "The processes that train together have declared other noise, or other "
                f"parameters. In this one, {self.processes.rank}: {'; '.join(setup)}. Declare the "
                f"same in all of them (a sigma per datum may differ). {ALONE}"
            )
        if (rows[:, 1] != rows[0, 1]).any():
            steps = ", ".join(str(int(n)) for n in rows[:, 1])
            raise RuntimeError(
                f"The processes that train together have taken other numbers of steps: {steps}. "
                f"Load the same checkpoint in all of them. {ALONE}"
            )
        if not are_same(rows[:, 2:4]):
            raise RuntimeError(
                "The processes that train together hold other parameters: wrap the network in "
                f"DistributedDataParallel, or fully_shard it. {ALONE}"
            )
        if not are_same(rows[:, 4:6]):
            raise RuntimeError(
                "The processes that train together hold other gradients: they have not been "
                "averaged. Call the network wrapped in DistributedDataParallel (without "
                "static_graph=True), and leave no_sync for the last backward pass before the "
                f"step. {ALONE}"
            )

    def _joined_facts(self, source: NoiseSource, params: list[Tensor]) -> _Joined:
        """What all processes tell of one noisy loss."""
        received = self._received.get(source, _Received())
        facts = received.facts
        first = facts[0].population if facts else None
        flags = [p in found for found in (received.draws, received.noisy) for p in params]
        own = [
            sum(one.passes for one in facts),
            sum(one.passes for one in facts) > 1,
            sum(one.rows for one in facts),
            first is not None,
            first or 0.0,
            sum(float(one.misfit) for one in facts),
            sum(float(one.summands) for one in facts),
            not all(one.opens for one in facts),
            sum(float(one.scale) for one in facts),
            any(one.is_coarse for one in facts),
            received.has_draws,
            *flags,
        ]
        rows_of_all = self.processes.numbers_of_all([float(x) for x in own], params[0].device)
        if not self.state["steps"] and _are_one(rows_of_all[:, 2:7]):
            raise RuntimeError(
                "The processes that train together all have the same data: their draws of its "
                "noise would be averaged as if there were more. Give each its own part of the "
                f"data (torch.utils.data.DistributedSampler). {ALONE}"
            )
        found = rows_of_all.sum(0).tolist()
        passes, several, rows, drawn, population, misfit, summands, closed, scale = found[:9]
        is_coarse, has_draws, *there = found[9:]
        n = len(params)
        return _Joined(
            Facts(
                rows=int(rows),
                population=population / drawn if drawn else None,
                misfit=misfit,
                summands=summands,
                opens=not closed,
                scale=scale / self.processes.size,
                is_coarse=bool(is_coarse),
                passes=2 if several else int(passes > 0),
            ),
            bool(has_draws),
            {"draws": torch.tensor(there[:n]) > 0, "noisy": torch.tensor(there[n:]) > 0},
        )

    def _scaled(
        self, source: NoiseSource, name: str, joined: _Joined, params: list[Tensor]
    ) -> list[Tensor]:
        """This process's draws or noisy gradients of a loss, a tensor per parameter.

        Each process has divided by the misfit of its own data; the misfit of all takes its place.
        """
        received = self._received.get(source, _Received())
        found: dict[Tensor, Tensor] = getattr(received, name)
        factor = 1.0
        if joined.facts.passes == 1 and source.terms == 1 and received.facts:
            whole = _Received()
            whole.facts = [joined.facts]
            factor = received.beyond_noise() / whole.beyond_noise()
            factor = factor**0.5 if name == "draws" else factor if self.weighs_by_misfit else 1.0
        none = {p: torch.zeros(p.shape, dtype=p.dtype, device=p.device) for p in params}
        return [found.get(p, none[p]).to(p.dtype) * factor for p in params]

    def draws(self, beta1: float, scale: float) -> dict[Tensor, Tensor] | None:
        """The draw of the mean gradient's noise, per parameter; None if none was due.

        Args:
            beta1: decay rate of the first moment, which averages away what is drawn anew.
            scale: what gradients were multiplied by after backward.
        """
        found = [own for own in self._received.values() if own.has_draws]
        factors = [scale * averaged_share(own.share(), beta1) ** 0.5 for own in found]
        return _sum([own.draws for own in found], factors) if found else None

    def noisy_gradients(self, scale: float) -> dict[Tensor, Tensor]:
        """Gradient of the noisy terms."""
        found = [own.noisy for own in self._received.values()]
        return _sum(found, [scale] * len(found))

    def tensors(self) -> Iterable[tuple[str, Tensor, Tensor]]:
        """(what it is, parameter, tensor) of everything that was handed over."""
        for received in self._received.values():
            for p, draw in received.draws.items():
                yield "noise draw", p, draw
            for p, gradient in received.noisy.items():
                yield "noisy terms' gradient", p, gradient

    def excess(self) -> float:
        r"""Share of the residuals that is more than noise, by the misfit of all terms together.

        .. math::
            \max(0, 1 - (1 - \sqrt{2/N}) / R), \qquad R = \frac1N \sum_i (r_i / \sigma_i)^2

        Errors alone have R = 1 with a standard deviation of sqrt(2/N), and a fit that is as good as
        it can be takes some of them up: it ends below 1. Fitting no further than to R = 1 is the
        discrepancy principle (V. A. Morozov, *Soviet Math. Dokl.* 7 (1966) 414); 1 - 1/R is the
        shrinkage factor of James and Stein. Terms of weight 0 do not count. 0 where a term is a
        batch of more data, whose misfit is a matter of chance, or its loss is not the squared
        error: who takes another does not expect normal errors.
        """
        facts = [found for received in self._received.values() for found in received.facts]
        if not facts or not all(found.opens for found in facts):
            return 0.0
        total = sum(float(found.misfit) for found in facts)
        count = sum(float(found.summands) for found in facts)
        allowed = max(0.0, count - (2 * count) ** 0.5)
        excess = 1 - allowed / total if total else 0.0
        return min(1.0, max(0.0, excess)) if math.isfinite(excess) else 0.0

    def decide(self, noisy: dict[Tensor, Tensor]) -> bool:
        """Whether exact terms stand beside the noisy ones; looked at where it is due.

        Args:
            noisy: gradient of the noisy terms, to be compared with that of the whole loss.
        """
        state = self.state
        if self.is_mixed:
            state["beside_exact"] = True
        elif self.looks:
            difference = total = 0.0
            gradients = {p: p.grad for p in self.params() if p.grad is not None}
            for p, gradient in gradients.items():
                own = noisy.get(p)
                gradient = local(gradient)
                apart = gradient if own is None else gradient - own
                difference += float(as_wide(apart).norm()) ** 2
                total += float(as_wide(gradient).norm()) ** 2
                total += 0.0 if own is None else float(as_wide(own).norm()) ** 2
            if any(map(is_sharded, gradients)):
                device = next(iter(gradients)).device
                difference, total = self.processes.sums([difference, total], device)
            facts = [facts for received in self._received.values() for facts in received.facts]
            # One loss alone makes the same bits twice; a sum of several is rounded otherwise.
            passes = sum(one.passes for one in facts)
            coarse = passes > 1 and any(one.is_coarse for one in facts)
            coarse = coarse or any(map(is_16_bit, gradients))
            # Those that are known by name, or were there, may be weak for a while.
            expected = state["beside_exact"] or any(source.exact() for source in self.sources)
            tolerance = TOLERANCE * (50 if coarse else 0.01 if expected else 1)
            if total > 0:
                state["beside_exact"] = difference > tolerance**2 * total
        return bool(state["beside_exact"])

    def finish(self) -> None:
        """Count a step that was taken, and see whether the next one has to look."""
        state = self.state
        scales = [
            sum(float(facts.scale) for facts in self._received[source].facts)
            for source in self.sources
            if source in self._received
        ]
        before, was_mixed = state.get("scales"), self.is_mixed
        changed = before is not None and (
            len(before) != len(scales)
            or any(abs(a - b) > 1e-3 * abs(b) for a, b in zip(scales, before, strict=True))
        )
        state["scales"] = scales
        state["steps"] += 1
        undecided = bool(state["beside_exact"] is None or state.pop("look_again", False))
        undecided |= was_mixed and not self.is_mixed
        state["look"] = bool(changed or undecided or state["steps"] % LOOK_EVERY == 0)

    # What happened to the gradients between backward and step

    def _watch(self) -> None:
        """Hear of every gradient that a backward pass leaves."""
        own = weakref.ref(self)

        def reached(p: Tensor) -> None:
            handover = own()
            if handover is not None:
                handover._begin_pass()
                if not handover._reaches:  # once a pass, not once a parameter
                    handover._reaches = True
                    _at_end(handover._end)

        for p in self.params():
            if p not in self._hooks:
                self._hooks[p] = p.register_post_accumulate_grad_hook(reached)  # type: ignore[no-untyped-call]

    def _begin_pass(self) -> None:
        """Forget what an earlier backward pass has left that failed before its end."""
        if self._pass != (now := current_pass()):
            self._pass, self._reaches = now, False
            self._held.clear()

    def _end(self) -> None:
        """At the end of a backward pass: wait for what else is called then. There
        DistributedDataParallel averages the gradients, and ``fully_shard`` leaves them."""
        if self.processes.group is None:
            self._take_in()
        else:
            _at_end(self._take_in)

    def _take_in(self) -> None:
        """What is to be done after a backward pass, once."""
        if self._reaches:
            for found in self._held:
                self.receive(*found)
            if not all(source.leaves_gradients for source in self.sources):
                self._gradients.note(self.params())
        else:  # the next pass draws the same numbers
            self.state["passes"] -= sum(draws is not None for _, draws, *_ in self._held)
        self._held.clear()
        self._reaches = False

    def _review(self) -> None:
        """Before a further backward pass of one step: forget an earlier one whose gradients were
        dropped, by ``net.zero_grad()``; scale what it has handed over as they were scaled."""
        if not self._received or self._held or self._reaches:
            return
        if self._gradients.were_dropped():
            self.clear()
            return
        factor = self._gradients.factor()  # clipped between two passes of one step
        if factor != 1:
            for received in self._received.values():
                received.draws = {p: x * factor for p, x in received.draws.items()}
                received.noisy = {p: x * factor for p, x in received.noisy.items()}

    def scale_since_backward(self) -> float:
        """What gradients have been multiplied by since backward; see :class:`GradientWatch`."""
        return self._gradients.factor()

    def is_known_finite(self, p: Tensor) -> bool:
        """Whether a gradient has turned out to be finite meanwhile."""
        return id(p) in self._gradients.found_finite


def _sum(parts: Sequence[dict[Tensor, Tensor]], factors: Sequence[float]) -> dict[Tensor, Tensor]:
    """Their weighted sum, parameter by parameter."""
    if len(parts) == 1 and factors[0] == 1:
        return parts[0]
    total: dict[Tensor, Tensor] = {}
    for part, factor in zip(parts, factors, strict=True):
        for p, tensor in part.items():
            own = tensor if factor == 1 else tensor * factor
            total[p] = total[p] + own if p in total else own
    return total


def _at_end(call: Callable[[], None]) -> None:
    """Call this at the end of the running backward pass."""
    torch.autograd.Variable._execution_engine.queue_callback(call)


def current_pass() -> int:
    """The number of the running backward pass; every pass has another one."""
    return int(torch._C._current_graph_task_id())


def share_that_stays(rows: int, population: float | None) -> float:
    """Share of the noise of so many rows that is the same in every step."""
    return 1.0 if population is None else min(1.0, rows / population)


def is_gated(group: Mapping[str, Any]) -> bool:
    """Whether a parameter group has a gate."""
    gate = group.get("gate")
    return gate is None or gate.get("form") != "none"


def _remove(hooks: dict[Tensor, Any]) -> None:
    while hooks:
        hooks.popitem()[1].remove()


def _are_one(rows: Tensor) -> bool:
    """Whether the same is there in all processes: numbers of data, and the bits of their misfit."""
    return bool(rows[0, 3] > 0 and (rows == rows[0]).all())


def _mixed(*numbers: int) -> int:
    """A well-mixed 63-bit number (the finalizer of splitmix64; G. Steele et al., OOPSLA 2014)."""
    mask = (1 << 64) - 1
    found = 0
    for number in numbers:
        found = (found ^ (number & mask)) + 0x9E3779B97F4A7C15 & mask
        found = (found ^ (found >> 30)) * 0xBF58476D1CE4E5B9 & mask
        found = (found ^ (found >> 27)) * 0x94D049BB133111EB & mask
        found ^= found >> 31
    return found >> 1
