r"""SNRAdam: Adam whose every parameter moves only as far as its gradient stands out of its noise.

Source: E. Litman and G. Guo, *A Theory of Generalization in Deep Learning*, arXiv:2605.01172
(2026), Algorithm 1. The formulas are in :mod:`sciml_snr.rule`.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo
from torch.optim.adam import adam
from torch.optim.optimizer import Optimizer, ParamsT

from . import checks, eigenbasis, rule
from . import gate as gates
from ._tensors import (
    LARGE,
    flattened,
    is_16_bit,
    is_sharded,
    local,
    spread_like,
    state_dtype,
    state_like,
)
from .bunch import Bunch
from .checks import Floor
from .describe import describe
from .gate import Gate, resolve_alpha
from .handover import KEY, Handover, is_gated
from .options import check_unpublished, plain_options, validate_options
from .processes import Processes, check_shards
from .rule import Closed, Moments
from .source import NoiseSource


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
        lr: learning rate. Of four that are the same for all twelve problems of the package's
            benchmark, 3e-3 is the best (docs/results/zoo.md).
        betas: decay rates of the first and second moment.
        eps: added to the square root of the second moment.
        weight_decay: weight decay, AdamW's (``decoupled_weight_decay=True``) or Adam's L2 term.
        noise: a :class:`sciml_snr.NoisyLoss`, or several: the noisy terms of the loss. The floor is
            then what the error of their data does to the gradient; everything else in the loss
            counts as exact. Without it the floor is the published, streaming one.
        gate: None: the gate that goes with the loss. A name changes its form: ``"soft"``,
            ``"hard"``, ``"snr"``, ``"stein"``, or ``"none"`` for plain Adam. A
            :class:`sciml_snr.Gate` takes its place; a dictionary changes some of its fields.
        coordinates: in which moments, floor and gate live: ``"own"``, the parameters' own;
            ``"eigen"``, the eigenbasis of the gradients' covariances (SOAP's), for matrices;
            ``"auto"``, the eigenbasis where exact terms stand beside declared noise, as is seen in
            the first step, and the parameters' own elsewhere.
        rho: decay rate of the floor's average.
        alpha: of the published rule: threshold on ``mean_sq / floor``; a number, ``"fresh"`` (1:
            each batch is drawn anew) or ``"finite"`` (b / (n - b): batches of b out of a fixed set
            of n).
        lambd: of the published rule: weight of the floor in the soft and snr gates. 1 by default:
            the soft gate of Algorithm 1 opens by degrees. (The paper calls 0 typical at scale; the
            soft gate is then the hard one.)
        softness: another name of ``lambd``, as in the authors' package.
        reduction: ``"none"``: a gate for every entry. ``"per_tensor"``: one for every parameter
            tensor, from the mean over its entries of the squared mean gradient, and the mean of the
            floor. The authors' package has the name; its formula is not published, this one is
            ours.
        batch_size, data_size: b and n for ``alpha="finite"``.
        floor_every: draw the gradient's noise anew in every so many steps; cost follows.
        decoupled_weight_decay: as in :class:`torch.optim.Adam`; here True by default.
        nonfinite: what to do at a NaN or infinite gradient: ``"raise"`` a FloatingPointError that
            names the parameter, or ``"skip"`` the step. Parameters and state stay as they were.
        maximize: ascend instead of descend.
        foreach: for parameters without a gate, as in torch's Adam.
        basis: in the eigenbasis, whose eigenvectors: of the covariances of the ``"gradient"``, of
            the noise's draws (``"floor"``: the directions in which the data can move the
            parameters, whatever the residuals), or of ``"both"``, each scaled to trace 1. Without
            declared noise: of the gradient.
        shampoo_beta: decay rate of these covariances.
        precondition_frequency: renew the basis every so many steps.
        max_precondition_dim: sides longer than this keep their coordinates.
        network: where ``fully_shard`` has spread the parameters over processes and noise is
            declared: the network.
        process_group: of ``torch.distributed``, the processes that train the network together, each
            on data of its own; None: all there are. False: this process trains alone. See
            docs/how-to/processes.md.

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

    _state_keys: tuple[str, ...] = (
        "exp_avg",
        "exp_avg_sq",
        "exp_grad_var",
        "exp_floor",
        "exp_avg_noisy",
        *eigenbasis.STATE_KEYS,
    )
    """Floating-point tensors in a parameter's state, of its dtype or float32."""

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 3e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        noise: NoiseSource | Iterable[NoiseSource] | None = None,
        gate: str | Gate | Mapping[str, Any] | None = None,
        rho: float = 0.99,
        alpha: float | str = "fresh",
        lambd: float = 1.0,
        softness: float | None = None,
        reduction: str = "none",
        batch_size: int | None = None,
        data_size: int | None = None,
        floor_every: int = 1,
        decoupled_weight_decay: bool = True,
        nonfinite: str = "raise",
        maximize: bool = False,
        foreach: bool | None = None,
        coordinates: str = "auto",
        basis: str = "both",
        shampoo_beta: float = 0.95,
        precondition_frequency: int = 10,
        max_precondition_dim: int = 2048,
        network: nn.Module | None = None,
        process_group: Any = None,
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
            softness=softness,
            reduction=reduction,
            batch_size=batch_size,
            data_size=data_size,
            floor_every=floor_every,
            decoupled_weight_decay=decoupled_weight_decay,
            nonfinite=nonfinite,
            maximize=maximize,
            foreach=foreach,
            coordinates=coordinates,
            basis=basis,
            shampoo_beta=shampoo_beta,
            precondition_frequency=precondition_frequency,
            max_precondition_dim=max_precondition_dim,
        )
        defaults = plain_options(defaults)
        validate_options(defaults)
        self._handover: Handover | None = None
        self._given: Floor | None = None
        self._has_stepped = False
        self._cache: dict[int, _Cached] = {}
        super().__init__(params, defaults)
        self.declare(noise, network=network, process_group=process_group)

    def declare(
        self,
        noise: NoiseSource | Iterable[NoiseSource] | None,
        *,
        network: nn.Module | None = None,
        process_group: Any = None,
    ) -> None:
        """Declare the noisy terms of the loss, in place of those declared before.

        Args:
            noise, network, process_group: as for the constructor.

        Raises:
            TypeError: it is no :class:`sciml_snr.NoisyLoss`.
            ValueError: options of the published rule were given, a source is there twice, or the
                parameters are sharded and their network is not given.
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
        self._processes = Processes(process_group, network)
        self._handover = Handover(self, sources, every, self._processes) if sources else None
        self._is_undeclared = False
        if self._handover is not None:
            self._handover.leaves()  # refuses shards without their network

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
        check_shards(
            self.param_groups[-1]["params"], options["coordinates"], reduction=options["reduction"]
        )

    def __setstate__(self, state: dict[str, Any]) -> None:
        """For copies and loaded states."""
        is_copy = "_handover" not in self.__dict__
        super().__setstate__(state)
        if is_copy:
            self._handover, self._is_undeclared = None, KEY in self.state
            self._processes = Processes()
        self._given, self._has_stepped = None, False
        self._cache = {}

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients, and what noisy losses have handed over with them."""
        if self._handover is not None:
            self._handover.clear()
        super().zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """As of any optimizer. Of sharded parameters, the state of this process's parts, as copies:
        torch cannot save them where they lie, side by side."""
        found = super().state_dict()
        for key, own in found["state"].items():
            if any(isinstance(x, Tensor) and is_sharded(x) for x in own.values()):
                copies = {k: x.clone() if isinstance(x, Tensor) else x for k, x in own.items()}
                found["state"][key] = copies
        return found

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state; keeps float32 moments of 16-bit parameters (torch would round them).

        Raises:
            ValueError: it is another optimizer's.
        """
        for group, own in zip(state_dict["param_groups"], self.param_groups, strict=False):
            if group.get("coordinates") != own["coordinates"]:
                raise ValueError(
                    f"This is not a state of {type(self).__name__}, but of another optimizer: its "
                    "moments mean something else (coordinates: "
                    f"{group.get('coordinates', 'none')!r}, here {own['coordinates']!r}). Begin "
                    "with a new one."
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

    @_disable_dynamo  # compiled anew in every step, it would take seconds
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
            checks.check_floor(floor, self.param_groups, self._handover is not None)
            if any(map(self.is_turned, self.param_groups)):
                raise TypeError(
                    f"{type(self).__name__} takes no floor made by hand in the eigenbasis: it "
                    "needs draws of the noise that it can rotate. Declare the noise: "
                    "noise=sciml_snr.NoisyLoss(sigma), or set coordinates='own'."
                )
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
                handover.join()
            scale, is_ready, squares_are_finite = self._checked(floor)
            if is_ready:
                self._given, self._has_stepped = floor, True
                self._take(floor, handover, scale, squares_are_finite)
                if handover is not None:
                    handover.finish()
                    gated = filter(is_gated, self.param_groups)
                    handover.follows = any(self.gate_of(group).follow for group in gated)
        finally:
            if handover is not None:
                handover.clear()
        return loss

    def _checked(self, floor: Floor | None) -> tuple[float, bool, bool]:
        """What gradients have been multiplied by since backward; whether there is a step to be
        taken; and whether the squares of all that it is made from are finite.

        Of sharded parameters every process sees a part, and all take a step or none.

        Raises:
            Exception: see :meth:`step`.
        """
        shards = [p for group in self.param_groups for p in group["params"] if is_sharded(p)]
        if not shards or self._processes.group is None:
            return self._check(floor)
        found, error = (1.0, False, False), None
        try:
            found = self._check(floor)
        except Exception as own:
            error = own
        scale, is_ready, squares_are_finite = found
        is_ready = self._processes.agree(error, is_ready, shards[0].device)
        return scale, is_ready, squares_are_finite

    def _check(self, floor: Floor | None) -> tuple[float, bool, bool]:
        """:meth:`_checked` of this process's part."""
        handover = self._handover
        if handover is not None and handover.params():
            handover.check()
        checks.refuse(self.param_groups, floor)
        scale = 1.0 if handover is None else handover.scale_since_backward()
        inputs = self.param_groups, floor, handover
        squares_are_finite = checks.squares_are_finite(*inputs)
        looks = handover is not None and handover.looks
        is_ready = (squares_are_finite and not looks) or checks.inputs_are_finite(*inputs)
        return scale, is_ready, squares_are_finite

    def _take(
        self,
        floor: Floor | None,
        handover: Handover | None,
        scale: float,
        squares_are_finite: bool,
    ) -> None:
        """The step itself, on inputs that have been checked."""
        beside = False
        noisy: dict[Tensor, Tensor] = {}
        if handover is not None and handover.params():
            noisy = handover.noisy_gradients(scale)
            beside = handover.decide(noisy)
            if beside:
                for group in self.param_groups:
                    check_shards(group["params"], group["coordinates"], beside_exact=True)
            handover.state.setdefault("is_turned", beside)
            handover.state["excess"] = handover.excess()
        moved: list[tuple[Bunch, Tensor]] = []
        followed: list[tuple[Closed, Tensor]] = []
        for group in self.param_groups:
            if not is_gated(group):
                self._take_ungated(group, squares_are_finite)
                continue
            draws = None if handover is None else handover.draws(group["betas"][0], scale)
            for bunch in self._bunches(group, group["params"], draws, floor):
                moments, grad, draw = self._prepare(bunch, draws, floor, squares_are_finite)
                bunch.decay()
                move = bunch.in_place()
                if move is None:
                    move = torch.zeros_like(grad)
                    moved.append((bunch, move))
                follows = beside and moments.gate.follow
                rates = torch.empty_like(grad) if follows else None
                acts = rule.advance(moments, grad, draw, group["rho"], move, rates)
                if rates is not None:
                    mean = self._average_noisy(bunch, noisy, moments.step)
                    if acts:
                        followed.append((Closed(rates, moments.mean, mean, moments), move))
                else:
                    for state in bunch.states:  # begin anew when there are exact terms again
                        state.pop("exp_avg_noisy", None)
        closed = [own for own, _ in followed]
        if beside and any(is_sharded(p) for p in noisy):
            sums = functools.partial(self._processes.sums, device=next(iter(noisy)).device)
            least = functools.partial(self._processes.least, device=next(iter(noisy)).device)
            more, factor = rule.follow(closed, sums, least)
        else:
            more, factor = rule.follow(closed)
        for own, (_, move) in zip(more, followed, strict=True):
            move.add_(own, alpha=factor)
        for bunch, move in moved:
            bunch.add(move)

    def _take_ungated(self, group: dict[str, Any], squares_are_finite: bool) -> None:
        """Torch's own Adam or AdamW, for parameters without a gate; SOAP's step for those with a
        basis."""
        params = [p for p in group["params"] if p.grad is not None]
        if self.is_turned(group):
            turned = [p for p in params if eigenbasis.sides_of(p, group)]
            self._take_turned(group, turned, squares_are_finite)
            params = [p for p in params if not eigenbasis.sides_of(p, group)]
        if not params:
            return
        for p in params:
            self._init_state(p, group)
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

    def _take_turned(
        self, group: dict[str, Any], params: list[Tensor], squares_are_finite: bool
    ) -> None:
        """SOAP's step without a gate, of the group's parameters with a basis."""
        for bunch in self._bunches(group, params):
            moments, grad, _ = self._prepare(bunch, None, None, squares_are_finite)
            bunch.decay()
            move = torch.zeros_like(grad)
            rule.advance(moments, grad, None, group["rho"], move)
            bunch.add(move)

    def _prepare(
        self,
        bunch: Bunch,
        draws: dict[Tensor, Tensor] | None,
        floor: Floor | None,
        squares_are_finite: bool,
    ) -> tuple[Moments, Tensor, Tensor | None]:
        """The moments, and the gradient and the draw that they are to take up, in the coordinates
        of this step."""
        group, states = bunch.group, bunch.states
        grads = bunch.gradients()
        found = bunch.of(draws) if draws is not None and bunch.has_draws else None
        step = bunch.count_step()
        if bunch.is_turned:
            if squares_are_finite:  # what overflows would stay in the covariances for good
                eigenbasis.take_up(states, grads, found, group["shampoo_beta"])
            if (step - 1) % group["precondition_frequency"] == 0:
                eigenbasis.renew(states, group["basis"])
        grad = bunch.to_basis(grads)
        if group["weight_decay"] and not group["decoupled_weight_decay"]:
            grad = torch.add(grad, bunch.to_basis(bunch.values()), alpha=group["weight_decay"])
        draw = None
        if bunch.is_given:  # the streaming floor goes on, for when none is given
            mean = bunch.vector("exp_avg")
            rule.update_floor(bunch.vector("exp_grad_var"), grad - mean, group["rho"])
        if found is not None:
            draw = bunch.to_basis(found)
            for state in states:
                state["floor_step"] += 1
        return self._moments(bunch, step, floor), grad, draw

    def _moments(self, bunch: Bunch, step: float, floor: Floor | None) -> Moments:
        """What the bunch's move is made from."""
        group, states = bunch.group, bunch.states
        variance: Tensor | None = None
        weight, gate = 1.0, Gate("none")
        excess = 0.0
        if is_gated(group):
            gate = self.gate_of(group)
            if bunch.is_given:
                assert floor is not None
                variance = flattened(bunch.of(floor))
            elif bunch.is_stream:
                variance = bunch.vector("exp_grad_var")
                weight = 1 - group["rho"] ** step
            else:
                variance = bunch.vector("exp_floor")
                weight = 1 - group["rho"] ** max(states[0]["floor_step"], 1)
                if gate.discrepancy:
                    excess = self._noise_state().get("excess", 0.0)
        return Moments(
            bunch.vector("exp_avg"),
            bunch.vector("exp_avg_sq"),
            variance,
            step,
            weight,
            bunch.is_stream,
            gate,
            group["betas"],
            float(group["lr"]),
            group["eps"],
            excess,
            group["reduction"] == "per_tensor",
        )

    @property
    def has_given_floor(self) -> bool:
        """Whether the last step had a floor made by hand."""
        return self._given is not None

    def gate_of(self, group: Mapping[str, Any]) -> Gate:
        """The gate that goes with the loss, with what the group changes of it."""
        if self._handover is None:
            alpha = resolve_alpha(group["alpha"], group["batch_size"], group["data_size"])
            gate = _changed(gates.STREAM, (("alpha", alpha), ("lambd", float(group["lambd"]))))
        elif self.beside_exact:
            gate = gates.BESIDE_EXACT["eigen" if self.is_turned(group) else "own"]
        else:
            gate = gates.DATA_ALONE
        return gate if group["gate"] is None else _changed(gate, tuple(group["gate"].items()))

    def is_turned(self, group: Mapping[str, Any]) -> bool:
        """Whether a group's moments are in the eigenbasis."""
        if group["coordinates"] != "auto":
            return bool(group["coordinates"] == "eigen")
        return self._handover is not None and bool(self._noise_state().get("is_turned"))

    def _noise_state(self) -> dict[str, Any]:
        """What the state holds that is not of one parameter."""
        found: dict[str, Any] = self.state.get(KEY, {})  # type: ignore[call-overload]
        return found

    @property
    def beside_exact(self) -> bool | None:
        """Whether exact terms stand beside the declared noisy ones; None before the first step, and
        where no noise was declared."""
        found: bool | None = self._noise_state().get("beside_exact")
        return found

    def _average_noisy(self, bunch: Bunch, noisy: Mapping[Tensor, Tensor], step: float) -> Tensor:
        """The noisy terms' share of the first moment, kept in the parameters' own coordinates."""
        beta1 = bunch.group["betas"][0]
        grads = bunch.of(noisy)
        if bunch.group["maximize"]:
            grads = [-grad for grad in grads]
        for p, grad, state in zip(bunch.params, grads, bunch.states, strict=True):
            if "exp_avg_noisy" not in state:  # as if the gradient had always been this one
                begun = (grad * (1 - beta1 ** (step - 1))).contiguous()
                state["exp_avg_noisy"] = spread_like(begun, p)
        average = bunch.vector("exp_avg_noisy").lerp_(flattened(grads), 1 - beta1)
        if not bunch.is_turned:
            return average
        return bunch.to_basis([state["exp_avg_noisy"] for state in bunch.states])

    def _bunches(
        self,
        group: dict[str, Any],
        params: list[Tensor],
        draws: Mapping[Tensor, Tensor] | None = None,
        floor: Floor | None = None,
    ) -> list[Bunch]:
        """Parameters of a group, those with a gradient, in bunches that can be stepped as one
        vector."""
        params = [p for p in params if p.grad is not None and p.numel()]
        states = [self._init_state(p, group) for p in params]
        given = [self._handover is None and floor is not None and p in floor for p in params]
        drawn = [draws is not None and p in draws for p in params]
        has_label = self._handover is not None and is_gated(group)
        is_turned = self.is_turned(group)
        key = [has_label, is_turned, given, drawn, *map(id, params), *map(id, states)]
        known = self._cache.get(id(group))
        if known is not None and known.key == key:
            return known.bunches
        found: dict[Any, list[int]] = {}
        for i, (p, state) in enumerate(zip(params, states, strict=True)):
            steps = state["step"].item(), state.get("floor_step")
            is_alone = local(p).numel() >= LARGE or group["reduction"] == "per_tensor"
            alone = id(p) if is_alone else None
            kind = (p.device, p.dtype, *steps, given[i], drawn[i], alone)
            found.setdefault(kind, []).append(i)
        bunches = [
            Bunch(
                group,
                [params[i] for i in places],
                [states[i] for i in places],
                is_given=given[places[0]],
                has_label=has_label,
                has_draws=drawn[places[0]],
                is_turned=is_turned,
            )
            for places in found.values()
        ]
        self._cache[id(group)] = _Cached(key, bunches, params, states)
        return bunches

    def _init_state(self, p: Tensor, group: Mapping[str, Any]) -> dict[str, Any]:
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
        if self.is_turned(group):
            eigenbasis.begin(p, state, group)
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
        is_turned = self.is_turned(group)
        bunch = Bunch(group, [p], [state], is_given, has_label, is_turned=is_turned)
        return self._moments(bunch, state["step"].item(), self._given)

    @torch.no_grad()
    def gate_stats(self, group: int | None = None) -> GateStats:
        """Mean q and open fraction of the last step, overall or of one parameter group.

        Computed from the state when asked for; a training loop that does not ask pays nothing.
        Parameters that have not been stepped do not count; NaN if none has (see :meth:`moments`).
        Of sharded parameters all processes have to ask: the figures are of all parts.
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
        if any(is_sharded(p) for options in groups for p in options["params"]):
            device = groups[0]["params"][0].device
            total, opened, of_all = self._processes.sums([total, opened, numel], device)
            numel = int(of_all)
        if numel == 0:
            return GateStats(math.nan, math.nan, 0)
        return GateStats(total / numel, opened / numel, numel)

    def describe(self) -> str:
        """What this optimizer does, in words: floor, gate, coordinates, noisy and exact terms."""
        return describe(self)


class _Cached(NamedTuple):
    """The bunches of a group, and what they were made from."""

    key: list[Any]
    bunches: list[Bunch]
    params: list[Tensor]
    states: list[dict[str, Any]]
    """These and the parameters are kept alive: the key holds their addresses."""


@functools.lru_cache(maxsize=256)
def _changed(gate: Gate, changes: tuple[tuple[str, Any], ...]) -> Gate:
    return gate.replace(dict(changes))
