r"""SNRAdam: Adam whose every parameter moves only as far as its gradient stands out of its noise.

Source: E. Litman and G. Guo, *A Theory of Generalization in Deep Learning*, arXiv:2605.01172
(2026), Algorithm 1. The formulas are in :mod:`sciml_snr.rule`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.optimizer import Optimizer, ParamsT

from . import gate as gates
from . import rule
from ._tensors import flattened, is_16_bit, joined, parts_of, state_dtype, state_like
from .bunch import Bunch
from .checks import Floor, check_floor, inputs_are_finite
from .gate import Gate, resolve_alpha
from .handover import KEY, Handover, is_gated
from .options import check_unpublished, plain_options, validate_options
from .rule import Moments
from .source import NoiseSource

LARGE = 2**16
"""Parameters with so many entries are stepped one by one, smaller ones as one vector."""


class GateStats(NamedTuple):
    """What the gate let through in the last step."""

    mean_q: float
    """Mean of q over all parameter elements, in [0, 1]."""
    open_fraction: float
    """Share of the elements with q >= 1/2."""
    numel: int
    """Number of elements the two figures were taken over."""


class SNRAdam(Optimizer):
    r"""Adam with the signal-to-noise gate of Litman and Guo (arXiv:2605.01172, Algorithm 1).

    The same name is used elsewhere for m / std(g) scalings of Adam; this one multiplies Adam's
    step by a gate q in [0, 1] made from the squared mean gradient and a *floor*, the variance that
    the mean gradient would have if it were noise. With ``gate="none"`` it takes AdamW's steps, bit
    for bit.

    Args:
        params: parameters, named parameters or parameter groups, as for any ``torch.optim``
            optimizer. Options can be set per group, but for ``noise``, ``floor_every`` and
            ``nonfinite``.
        lr: learning rate.
        betas: decay rates of the first and second moment.
        eps: added to the square root of the second moment.
        weight_decay: weight decay, AdamW's (``decoupled_weight_decay=True``) or Adam's L2 term.
        noise: a :class:`sciml_snr.NoisyLoss`, or several: the noisy terms of the loss. The floor is
            then what the error of their data does to the gradient; everything else in the loss
            counts as exact. Without it the floor is the published, streaming one.
        gate: None: the gate that goes with the loss. A name changes its form: ``"soft"``,
            ``"hard"``, ``"snr"``, ``"stein"``, or ``"none"`` for plain Adam. A
            :class:`sciml_snr.Gate` takes its place; a dictionary changes some of its fields.
        rho: decay rate of the floor's average.
        alpha: of the published rule: threshold on ``mean_sq / floor``; a number, ``"fresh"`` (1:
            each batch is drawn anew) or ``"finite"`` (b / (n - b): batches of b out of a fixed set
            of n).
        lambd: of the published rule: weight of the floor in the soft and snr gates.
        batch_size, data_size: b and n for ``alpha="finite"``.
        floor_every: draw the gradient's noise anew in every so many steps; cost follows.
        decoupled_weight_decay: as in :class:`torch.optim.Adam`; here True by default.
        nonfinite: what to do at a NaN or infinite gradient: ``"raise"`` a FloatingPointError that
            names the parameter, or ``"skip"`` the step. Parameters and state stay as they were.
        maximize: ascend instead of descend.
        foreach: for parameters without a gate, as in torch's Adam.

    Parameters in float16 or bfloat16 keep their state in float32, where second moments do not
    underflow. Complex parameters are treated as pairs of reals, like in AdamW. A copy of the
    optimizer has its state, but no noise: :meth:`declare` it anew, or None.

    Raises:
        ValueError, TypeError: an option is out of range; the message names it.

    Example:
        >>> data = NoisyLoss(sigma=0.1)
        >>> optimizer = SNRAdam(net.parameters(), lr=1e-3, noise=data)
        >>> for _ in range(10_000):
        ...     optimizer.zero_grad()
        ...     (data(net(x), y) + physics(net)).backward()
        ...     optimizer.step()
    """

    name = "snr_adam"
    _state_keys: tuple[str, ...] = (
        "exp_avg",
        "exp_avg_sq",
        "exp_grad_var",
        "exp_floor",
        "exp_avg_noisy",
    )
    """Floating-point tensors in a parameter's state, of its dtype or float32."""

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        noise: NoiseSource | Iterable[NoiseSource] | None = None,
        gate: str | Gate | Mapping[str, Any] | None = None,
        rho: float = 0.99,
        alpha: float | str = "fresh",
        lambd: float = 1.0,
        batch_size: int | None = None,
        data_size: int | None = None,
        floor_every: int = 1,
        decoupled_weight_decay: bool = True,
        nonfinite: str = "raise",
        maximize: bool = False,
        foreach: bool | None = None,
    ) -> None:
        defaults = dict(
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            gate=gate,
            rho=rho,
            alpha=alpha,
            lambd=lambd,
            batch_size=batch_size,
            data_size=data_size,
            floor_every=floor_every,
            decoupled_weight_decay=decoupled_weight_decay,
            nonfinite=nonfinite,
            maximize=maximize,
            foreach=foreach,
        )
        defaults = plain_options(defaults)
        validate_options(defaults)
        self._handover: Handover | None = None
        self._given: Floor | None = None
        self._has_stepped = False
        super().__init__(params, defaults)
        self.declare(noise)

    def declare(self, noise: NoiseSource | Iterable[NoiseSource] | None) -> None:
        """Declare the noisy terms of the loss, in place of those declared before.

        Args:
            noise: as for the constructor.

        Raises:
            TypeError: it is no :class:`sciml_snr.NoisyLoss`.
            ValueError: options of the published rule were given, or a source is there twice.
        """
        sources = [] if noise is None else noise
        sources = [sources] if isinstance(sources, NoiseSource) else list(sources)
        for source in sources:
            if not isinstance(source, NoiseSource):
                raise TypeError(
                    "noise must be a sciml_snr.NoisyLoss, or several, which is called in place of "
                    f"nn.MSELoss; got {source!r}."
                )
        if len(set(sources)) < len(sources):
            raise ValueError("noise names the same loss twice: declare each one once.")
        if sources:
            for group in self.param_groups:
                check_unpublished(group)
        if self._handover is not None:
            self._handover.detach()
        every = self.defaults["floor_every"]
        self._handover = Handover(self, sources, every) if sources else None
        self._is_undeclared = False

    @property
    def noise(self) -> list[NoiseSource]:
        """The noisy losses that were declared."""
        return [] if self._handover is None else list(self._handover.sources)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group; its own options are checked like the constructor's."""
        param_group.update(plain_options(param_group))
        options = {**self.defaults, **param_group}
        validate_options(options)
        if self._handover is not None:
            check_unpublished(options)
        super().add_param_group(param_group)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """For copies and loaded states."""
        is_copy = "_handover" not in self.__dict__
        super().__setstate__(state)
        if is_copy:
            self._handover, self._is_undeclared = None, KEY in self.state
        self._given, self._has_stepped = None, False

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients, and what noisy losses have handed over with them."""
        if self._handover is not None:
            self._handover.clear()
        super().zero_grad(set_to_none)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state; keeps float32 moments of 16-bit parameters (torch would round them).

        Raises:
            ValueError: it is another optimizer's.
        """
        turned = "basis" in self.defaults
        for group in state_dict["param_groups"]:
            if "floor_every" not in group or ("basis" in group) != turned:
                raise ValueError(
                    f"This is not a state of {type(self).__name__}, but of another optimizer: its "
                    "moments mean something else. Begin with a new one."
                )
        super().load_state_dict(state_dict)
        if KEY in self.state:
            self.state[KEY] = copy.deepcopy(self.state[KEY])  # type: ignore[index]
        saved_ids = [i for group in state_dict["param_groups"] for i in group["params"]]
        params = [p for group in self.param_groups for p in group["params"]]
        for saved_id, p in zip(saved_ids, params, strict=True):
            if is_16_bit(p) and saved_id in state_dict["state"]:
                saved = state_dict["state"][saved_id]
                for key in saved.keys() & set(self._state_keys):
                    self.state[p][key] = saved[key].to(p.device, torch.float32, copy=True)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None, floor: Floor | None = None) -> Any:
        """Take one step.

        Args:
            closure: recomputes the loss and its gradients; called with gradients enabled.
            floor: a floor made by hand, where no noise was declared: the variance of the mean
                gradient per parameter, each a tensor of the parameter's shape in squared gradient
                units (for a complex parameter: a complex tensor holding the variances of the real
                and the imaginary part). Parameters that are not in it use the streaming estimate.

        Returns:
            What the closure returned, or None.

        Raises:
            TypeError: a floor is given in the closure's place, or it is no mapping.
            RuntimeError: a gradient is sparse; a declared noisy loss had no backward pass, or one
                that reaches none of the parameters; gradients were changed by something other than
                one factor; or this is a copy of an optimizer with declared noise, and none has been
                declared to it.
            ValueError: a floor has another shape than its parameter or is negative, it is one for
                other parameters, or noise was declared, too.
            FloatingPointError: a gradient or floor is not finite (unless ``nonfinite="skip"``).
        """
        if isinstance(closure, Mapping):
            raise TypeError("The floor is given by name: optimizer.step(floor=floor).")
        if floor is not None:
            self._check_given(floor)
        if self._is_undeclared:
            raise RuntimeError(
                "This is a copy of an optimizer with declared noise, and none is declared to it. "
                "Call optimizer.declare(noise), or, to go on by the published rule, "
                "optimizer.declare(None)."
            )
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        handover = self._handover
        try:
            if handover is not None and handover.params():
                handover.check()
            if inputs_are_finite(self.param_groups, floor, handover):
                self._given, self._has_stepped = floor, True
                self._take(floor, handover)
                if handover is not None:
                    handover.finish()
                    handover.follows = any(
                        self._gate(group, False).follow
                        for group in self.param_groups
                        if is_gated(group)
                    )
        finally:
            if handover is not None:
                handover.clear()
        return loss

    def _take(self, floor: Floor | None, handover: Handover | None) -> None:
        """The step itself, on inputs that have been checked."""
        scale, beside = 1.0, False
        noisy: dict[Tensor, Tensor] = {}
        if handover is not None and handover.params():
            scale = handover.scale_since_backward()
            noisy = handover.noisy_gradients(scale)
            own = {p: p.grad for p in handover.params() if p.grad is not None}
            beside = handover.decide(own, noisy)
            handover.state["excess"] = handover.excess()
        stepped: list[tuple[Bunch, Tensor]] = []
        followed: list[tuple[Moments, Tensor, Tensor]] = []
        followed_moves: list[Tensor] = []
        for group in self.param_groups:
            if not is_gated(group):
                self._take_ungated(group)
                continue
            draws = None if handover is None else handover.draws(group["betas"][0], scale)
            for bunch in self._bunches(group, draws, floor):
                moments, q, move = self._advance(bunch, draws, floor, beside)
                stepped.append((bunch, move))
                if beside and moments.gate.follow:
                    noisy_mean = self._average_noisy(bunch, noisy)
                    if q is not None:
                        followed.append((moments, q, noisy_mean))
                        followed_moves.append(move)
                else:
                    for state in bunch.states:  # begin anew when there are exact terms again
                        state.pop("exp_avg_noisy", None)
        for move, more in zip(followed_moves, rule.follow(followed), strict=True):
            move.add_(more)
        for bunch, move in stepped:
            bunch.add(self._turned_back(bunch, move))

    def _take_ungated(self, group: dict[str, Any]) -> None:
        """Torch's own Adam or AdamW, for parameters without a gate."""
        params = [p for p in group["params"] if p.grad is not None]
        if not params:
            return
        for p in params:
            self._init_state(p, group, floor=None)
        states = [self.state[p] for p in params]
        # 16-bit parameters are stepped in float32, as copies.
        stepped = [p.float() if is_16_bit(p) else p for p in params]
        adam(
            stepped,
            [p.grad.to(state_dtype(p)) for p in params if p.grad is not None],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            foreach=group["foreach"],
            has_complex=any(p.is_complex() for p in params),
            decoupled_weight_decay=group["decoupled_weight_decay"],
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=float(group["lr"]),
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=group["maximize"],
        )
        for p, own in zip(params, stepped, strict=True):
            if own is not p:
                p.copy_(own)

    def _advance(
        self,
        bunch: Bunch,
        draws: dict[Tensor, Tensor] | None,
        floor: Floor | None,
        beside: bool = False,
    ) -> tuple[Moments, Tensor | None, Tensor]:
        """The moments and the floor take up gradients and draws; with them come the move and,
        beside exact terms, q."""
        group, states, params = bunch.group, bunch.states, bunch.params
        grads = [p.grad.to(state_dtype(p)) for p in params if p.grad is not None]
        found = None
        if bunch.draws:
            assert draws is not None
            found = [draws[p].to(state_dtype(p)) for p in params]
        self._turn(bunch, grads, found)
        grad = self._turned(bunch, grads)
        if group["maximize"]:
            grad = -grad
        if group["weight_decay"] and not group["decoupled_weight_decay"]:
            own = self._turned(bunch, [p.detach().to(state_dtype(p)) for p in params])
            grad = torch.add(grad, own, alpha=group["weight_decay"])
        draw = None
        if bunch.is_given:  # the streaming floor goes on, for when none is given
            stream, mean = joined(states, "exp_grad_var"), joined(states, "exp_avg")
            rule.update_floor(stream, grad - mean, group["rho"])
        if found is not None:
            draw = self._turned(bunch, found)
            for state in states:
                state["floor_step"] += 1
        step = 0.0
        for state in states:
            step = state["step"].add_(1).item()
        moments = self._moments(bunch, step, floor)
        return moments, *rule.advance(moments, grad, draw, group["rho"], beside)

    def _moments(self, bunch: Bunch, step: float, floor: Floor | None) -> Moments:
        """What the bunch's move is made from."""
        group, states = bunch.group, bunch.states
        variance: Tensor | None = None
        weight, gate = 1.0, Gate("none")
        excess: Tensor | float = 0.0
        if is_gated(group):
            gate = self._gate(group, bunch.is_stream or bunch.is_given)
            if bunch.is_given:
                assert floor is not None
                variance = flattened([floor[p].to(state_dtype(p)) for p in bunch.params])
            elif bunch.is_stream:
                variance = joined(states, "exp_grad_var")
                weight = 1 - group["rho"] ** step
            else:
                variance = joined(states, "exp_floor")
                weight = 1 - group["rho"] ** max(states[0]["floor_step"], 1)
                if gate.discrepancy:
                    excess = self.state[KEY].get("excess", 0.0)  # type: ignore[index]
        return Moments(
            joined(states, "exp_avg"),
            joined(states, "exp_avg_sq"),
            variance,
            step,
            weight,
            bunch.is_stream,
            gate,
            group["betas"],
            float(group["lr"]),
            group["eps"],
            excess,
        )

    def _gate(self, group: Mapping[str, Any], is_published: bool) -> Gate:
        """The gate that goes with the loss, with what the group changes of it."""
        if is_published:
            alpha = resolve_alpha(group["alpha"], group["batch_size"], group["data_size"])
            gate = gates.STREAM.replace({"alpha": alpha, "lambd": float(group["lambd"])})
        elif self.beside_exact:
            gate = gates.BESIDE_EXACT[self.name]
        else:
            gate = gates.DATA_ALONE
        return gate if group["gate"] is None else gate.replace(group["gate"])

    @property
    def beside_exact(self) -> bool | None:
        """Whether exact terms stand beside the declared noisy ones; None before the first step, and
        where no noise was declared."""
        found: bool | None = self.state.get(KEY, {}).get("beside_exact")  # type: ignore[call-overload]
        return found

    def _average_noisy(self, bunch: Bunch, noisy: Mapping[Tensor, Tensor]) -> Tensor:
        """The noisy terms' share of the first moment, kept in the parameters' own coordinates."""
        beta1 = bunch.group["betas"][0]
        grads = []
        for p, state in zip(bunch.params, bunch.states, strict=True):
            grad = torch.zeros_like(state["exp_avg"])
            if p in noisy:
                grad = noisy[p].to(grad.dtype)
                grad = -grad if bunch.group["maximize"] else grad
            if "exp_avg_noisy" not in state:  # as if the gradient had always been this one
                started = 1 - beta1 ** (state["step"].item() - 1)
                state["exp_avg_noisy"] = (grad * started).contiguous()
            grads.append(grad)
        joined(bunch.states, "exp_avg_noisy").lerp_(flattened(grads), 1 - beta1)
        return self._turned(bunch, [state["exp_avg_noisy"] for state in bunch.states])

    def _turn(self, bunch: Bunch, grads: Sequence[Tensor], draws: Sequence[Tensor] | None) -> None:
        """Renew the coordinates of the moments: here they are the parameters' own."""

    def _turned(self, bunch: Bunch, tensors: Sequence[Tensor]) -> Tensor:
        """Into the coordinates of the moments, as one vector: here the parameters' own."""
        return flattened(tensors)

    def _turned_back(self, bunch: Bunch, flat: Tensor) -> list[Tensor]:
        """A vector in the coordinates of the moments as one tensor per parameter."""
        return parts_of(flat, bunch.params)

    def _bunches(
        self, group: dict[str, Any], draws: dict[Tensor, Tensor] | None, floor: Floor | None
    ) -> list[Bunch]:
        """The group's parameters with a gradient, in bunches that can be stepped as one vector."""
        found: dict[Any, list[Tensor]] = {}
        for p in group["params"]:
            if p.grad is None or p.numel() == 0:
                continue
            state = self._init_state(p, group, floor)
            draws_now = draws is not None and p in draws
            kind = (
                p.device,
                p.dtype,
                state["step"].item(),
                state.get("floor_step"),
                draws_now,
                self._handover is None and floor is not None and p in floor,
                "exp_avg_noisy" in state,
                id(p) if p.numel() >= LARGE else None,
            )
            found.setdefault(kind, []).append(p)
        is_published = self._handover is None
        return [
            Bunch(
                group,
                params,
                [self.state[p] for p in params],
                draws=kind[4],
                is_given=kind[5],
                is_stream=is_published and not kind[5],
            )
            for kind, params in found.items()
        ]

    def _init_state(
        self, p: Tensor, group: Mapping[str, Any], floor: Floor | None
    ) -> dict[str, Any]:
        """The parameter's state, with all that a step needs."""
        state: dict[str, Any] = self.state[p]
        if "step" not in state:
            state["step"] = torch.tensor(0.0, device="cpu")
        wanted = ["exp_avg", "exp_avg_sq"]
        if is_gated(group):
            if self._handover is not None:
                wanted.append("exp_floor")
                state.setdefault("floor_step", 0)
            else:
                wanted.append("exp_grad_var")
        for key in wanted:
            if key not in state:
                state[key] = state_like(p)
        return state

    def moments(self, p: Tensor) -> Moments | None:
        """What the last step of a parameter was made from, flat and as reals; None before that,
        and of a copy or after :meth:`load_state_dict`, whose last floor is not known.

        For a look at the rule (:func:`sciml_snr.rule.openness`, ``displacement``). In SNRSOAP the
        entries are those of the turned coordinates.
        """
        state = self.state.get(p)
        if not state or "exp_avg" not in state or state["step"].item() == 0:
            return None
        group = next(g for g in self.param_groups if any(p is q for q in g["params"]))
        if self._handover is None and not self._has_stepped:
            return None
        is_given = self._given is not None and p in self._given
        has_label = "exp_floor" in state and self._handover is not None
        is_stream = not is_given and "exp_grad_var" in state and not has_label
        bunch = Bunch(group, [p], [state], False, is_given, is_stream)
        return self._moments(bunch, state["step"].item(), self._given)

    @torch.no_grad()
    def gate_stats(self, group: int | None = None) -> GateStats:
        """Mean q and open fraction of the last step, overall or of one parameter group.

        Computed from the state when asked for; a training loop that does not ask pays nothing.
        Parameters that have not been stepped do not count; NaN if none has (see :meth:`moments`).
        """
        groups = self.param_groups if group is None else [self.param_groups[group]]
        total, opened, numel = 0.0, 0.0, 0
        for options in groups:
            for p in options["params"]:
                moments = self.moments(p)
                if moments is None:
                    continue
                q = rule.openness(moments)
                entries = moments.mean.numel()
                total += entries if q is None else q.sum(dtype=torch.float64).item()
                opened += entries if q is None else (q >= 0.5).sum().item()
                numel += entries
        if numel == 0:
            return GateStats(math.nan, math.nan, 0)
        return GateStats(total / numel, opened / numel, numel)

    def describe(self) -> str:
        """What this optimizer does, in words: floor, gate, coordinates, noisy and exact terms."""
        lines = [f"{type(self).__name__}: Adam in {self._coordinates()}, with a gate"]
        group = next((g for g in self.param_groups if is_gated(g)), None)
        if group is None:
            return f"{type(self).__name__}: plain Adam, no gate"
        gate = self._gate(group, self._handover is None)
        if self._handover is None:
            given = ", or as given to step(floor=...)" if self._given is not None else ""
            lines.append(f"floor: stream, the published estimate from step to step{given}")
        else:
            lines.append("floor: label, what the error of the data does to the gradient")
            for source in self._handover.sources:
                lines += [f"  noisy: {line}" for line in source.describe()]
            lines.append(f"  exact: {self._exact_in_words()}")
        threshold = f"alpha = {gate.alpha:g}" if gate.z is None else f"z = {gate.z:g}"
        if gate.rise_steps:
            threshold += ", rising with the steps"
        if gate.discrepancy:
            threshold += ", open by what the residuals exceed their error"
        if gate.warmup_steps:
            threshold += f", from step {gate.warmup_steps} on"
        lines.append(f"gate: {gate.form}, {threshold}")
        if ungated := sum(len(g["params"]) for g in self.param_groups if not is_gated(g)):
            lines.append(f"without a gate: {ungated} parameter(s)")
        return "\n".join(lines)

    def _exact_in_words(self) -> str:
        assert self._handover is not None
        if self.beside_exact is None:
            return "whatever else is in the loss; seen in the first step"
        if not self.beside_exact:
            return "none: all of the loss is noisy"
        named = [line for source in self._handover.sources for line in source.exact()]
        return "; ".join(named) or "what else is in the loss"

    def _coordinates(self) -> str:
        return "the parameters' own coordinates"

    def _check_given(self, floor: Any) -> None:
        check_floor(floor, self.param_groups, self._handover is not None)
