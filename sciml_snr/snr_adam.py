r"""SNRAdam: Adam whose every parameter moves only as far as its gradient stands out of its noise.

Source: E. Litman and G. Guo, *A Theory of Generalization in Deep Learning*, arXiv:2605.01172
(2026), Algorithm 1. The step, for a gradient g at step t:

.. math::
    s &\leftarrow \rho s + (1-\rho)(g - m)^2 \qquad \text{(m: the previous first moment)} \\
    m &\leftarrow \beta_1 m + (1-\beta_1) g, \quad v \leftarrow \beta_2 v + (1-\beta_2) g^2 \\
    \hat m &= m / (1-\beta_1^t), \quad \hat v = v / (1-\beta_2^t), \quad \hat s = s / (1-\rho^t) \\
    q &= \mathrm{gate}(\hat m^2, \hat s) \\
    w &\leftarrow w - \eta \bigl( q \hat m / (\sqrt{\hat v} + \epsilon) + \lambda_w w \bigr)

Where the loss has *exact* terms (an equation, say) beside the noisy ones, the floor knows the noisy
terms' gradient, and m splits into :math:`m_x + m_d`. What the gate closes then follows the exact
terms, along the surface on which the noisy terms' loss stays what it is:

.. math::
    w &\leftarrow w - \eta (1 - q) D (\hat m_x - c\, \hat m_d), \qquad
    D = 1 / (\sqrt{\hat v} + \epsilon) \\
    c &= \langle \hat m_d, \eta (1-q) D \hat m_x \rangle /
         \langle \hat m_d, \eta (1-q) D \hat m_d \rangle

Without this a closed gate stops the equation, too, which near its balance with the data pulls less
than the data's noise does; the exact terms alone (c = 0) would pull the fit off the data. They may
not lower the noisy loss either: that is for the open entries. If only what raises it were taken
away, what lowers it by chance would stay, and the noise would be memorized after all. (Only that is
taken away in T. Yu et al., *Gradient Surgery for Multi-Task Learning*, arXiv:2001.06782, whose
projection this is, in the optimizer's metric and over all parameters at once.) As a whole this move
is made so short that no entry goes farther in it than in Adam's longest step. Adam's L2 term counts
among the exact terms.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

from ._tensors import as_real, is_16_bit, norms_are_finite, state_like
from .gate import GATES, resolve_alpha, rise
from .noise import NoiseFloor

Floor = Mapping[Tensor, Tensor]
"""Variance of the mean gradient, per parameter: ``{parameter: tensor of its shape}``."""


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
    the mean gradient would have if it were noise. It keeps one state tensor more than
    :class:`torch.optim.AdamW` (``exp_grad_var``), another one where a floor tells exact terms from
    noisy ones (``exp_avg_noisy``), and with ``gate="none"`` it takes AdamW's steps, bit for bit.

    Args:
        params: parameters, named parameters or parameter groups, as for any ``torch.optim``
            optimizer. Every option below can be set per group.
        lr: learning rate.
        betas: decay rates of the first and second moment.
        eps: added to the square root of the second moment.
        weight_decay: weight decay, AdamW's (``decoupled_weight_decay=True``) or Adam's L2 term.
        rho: decay rate of the streaming variance ``exp_grad_var``.
        gate: ``"soft"`` (the published one), ``"hard"``, ``"snr"``, ``"stein"``, or ``"none"`` for
            plain Adam; see :mod:`sciml_snr.gate`.
        alpha: threshold on ``mean_sq / floor``: a number, ``"fresh"`` (1: each batch is drawn
            anew) or ``"finite"`` (b / (n - b): batches of b out of a fixed set of n).
        lambd: weight of the floor in the soft and snr gates (lambda in the paper).
        z: the threshold in standard errors of the mean gradient, in place of ``alpha``: z squared
            times the variance of the mean gradient. That is the given floor, or what the first
            moment's averaging leaves of the streaming one, (1 - beta1) / 2 of it.
        gate_eps: keeps 0 / 0 out of the gates. Far below any squared gradient, so that the gate
            does not depend on the scale of the loss.
        warmup_steps: leave the gate open for a parameter's first so many steps. The streaming
            variance needs about 1 / (1 - rho) of them to mean something; at the very first it
            equals the squared mean gradient, and round-off decides for a hard gate with alpha 1.
        rise_steps: steps in which the floor rises by a third of what it is, and on from there like
            their logarithm (:func:`sciml_snr.gate.rise`); 0: it does not.
        discrepancy: open all entries by what the floor's ``excess`` says, the share of the
            residuals that cannot be noise, whatever a single entry shows of it (needs a
            :class:`sciml_snr.LabelNoise`, with ``mse_loss`` and the same data in every step).
        batch_size, data_size: b and n for ``alpha="finite"``.
        decoupled_weight_decay: as in :class:`torch.optim.Adam`; here True by default.
        nonfinite: what to do at a NaN or infinite gradient: ``"raise"`` a FloatingPointError that
            names the parameter, or ``"skip"`` the step. Parameters and state stay as they were.
        maximize: ascend instead of descend.
        foreach: use the multi-tensor path; by default where all parameters are on CUDA, as torch.
        differentiable: accepted for the signature's sake; must be False.

    Parameters in float16 or bfloat16 keep their state in float32, where second moments do not
    underflow. Complex parameters are treated as pairs of reals, like in AdamW.

    Raises:
        ValueError: an option is out of range; the message names it.
        NotImplementedError: ``differentiable=True``.

    Example:
        >>> optimizer = SNRAdam(net.parameters(), lr=1e-3)
        >>> for x, y in batches:
        ...     optimizer.zero_grad()
        ...     torch.nn.functional.mse_loss(net(x), y).backward()
        ...     optimizer.step()
    """

    _has_stepped = False  # since it was made or loaded
    _floor: Floor | None = None  # of the last step, for gate_stats(); not part of the state
    _excess: Tensor | float = 0.0  # likewise
    _initial_keys = ("exp_avg", "exp_avg_sq", "exp_grad_var")
    _state_keys: tuple[str, ...] = (*_initial_keys, "exp_avg_noisy")
    """Floating-point tensors in a parameter's state, of its dtype or float32; the last one where
    the loss has exact terms."""

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        rho: float = 0.99,
        gate: str = "soft",
        alpha: float | str = "fresh",
        lambd: float = 1.0,
        z: float | None = None,
        gate_eps: float = 1e-30,
        warmup_steps: int = 0,
        rise_steps: int = 0,
        discrepancy: bool = False,
        batch_size: int | None = None,
        data_size: int | None = None,
        decoupled_weight_decay: bool = True,
        nonfinite: str = "raise",
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
    ) -> None:
        if differentiable:
            raise NotImplementedError("SNRAdam cannot be differentiated through.")
        defaults = dict(
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            rho=rho,
            gate=gate,
            alpha=alpha,
            lambd=lambd,
            z=z,
            gate_eps=gate_eps,
            warmup_steps=warmup_steps,
            rise_steps=rise_steps,
            discrepancy=discrepancy,
            batch_size=batch_size,
            data_size=data_size,
            decoupled_weight_decay=decoupled_weight_decay,
            nonfinite=nonfinite,
            maximize=maximize,
            foreach=foreach,
            differentiable=differentiable,
        )
        defaults = plain_numbers(defaults)
        validate_options(defaults)
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group; its own options are checked like the constructor's."""
        param_group.update(plain_numbers(param_group))
        validate_options({**self.defaults, **param_group})
        super().add_param_group(param_group)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """For copies and loaded states; of those without today's options, what they were."""
        super().__setstate__(state)
        self._has_stepped = False
        for group in self.param_groups:
            group.setdefault("rise_steps", 0)
            group.setdefault("discrepancy", False)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state; keeps float32 moments of 16-bit parameters (torch would round them).

        Raises:
            ValueError: it is another optimizer's.
        """
        turned = "basis" in self.defaults
        for group in state_dict["param_groups"]:
            if "gate" not in group or ("basis" in group) != turned:
                raise ValueError(
                    f"This is not a state of {type(self).__name__}, but of another optimizer: its "
                    "moments mean something else. Begin with a new one."
                )
        super().load_state_dict(state_dict)
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
            floor: the variance of the mean gradient per parameter, each a tensor of the
                parameter's shape in squared gradient units (for a complex parameter: a complex
                tensor holding the variances of the real and the imaginary part). Read after the
                closure has run, so that the closure may update it. Parameters that are not in it
                use the streaming estimate.

        Returns:
            What the closure returned, or None.

        Raises:
            TypeError: a floor is given in the closure's place, or it is no mapping.
            RuntimeError: a gradient is sparse.
            ValueError: a floor has another shape than its parameter or is negative, or it is one
                for other parameters.
            FloatingPointError: a gradient or floor is not finite (unless ``nonfinite="skip"``).
        """
        loss = None
        if isinstance(closure, Mapping):
            raise TypeError("The floor is given by name: optimizer.step(floor=floor).")
        if floor is not None and not isinstance(floor, Mapping):
            raise TypeError(
                "A floor maps parameters to variances: a sciml_snr.NoiseFloor such as LabelNoise, "
                f"or a dict, not {floor!r}."
            )
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if not self._check_inputs(floor):
            return loss
        given = floor
        noisy_grads = floor.noisy_grads if isinstance(floor, NoiseFloor) else {}
        opens = any(group["discrepancy"] for group in self.param_groups)
        self._excess = floor.excess if opens and isinstance(floor, NoiseFloor) else 0.0
        self._floor = floor = self._in_own_coordinates(floor)
        stepped: list[_Stepped] = []
        for group in self.param_groups:
            for slots in self._slots(group, floor):
                stepped.append((slots, self._update(_decayed(slots, group), group), group))
        self._average_noisy(noisy_grads, given)
        if noisy_grads:
            self._follow_exact_terms(stepped)
        for slots, *_ in stepped:
            for slot in slots:
                if slot.rounded is not None:
                    slot.rounded.copy_(slot.param)
        self._has_stepped = True
        return loss

    def _average_noisy(self, noisy_grads: Mapping[Tensor, Tensor], floor: Floor | None) -> None:
        """The noisy terms' share of the first moment, in the parameters' own coordinates."""
        if not noisy_grads:  # all of the loss is noisy now: begin anew when it is not
            for state in self.state.values():
                state.pop("exp_avg_noisy", None)
            return
        for group in self.param_groups:
            if group["gate"] == "none":
                continue
            beta1 = group["betas"][0]
            averages, grads = [], []
            for p in group["params"]:
                state = self.state.get(p)
                if p.grad is None or not state or floor is None or p not in floor:
                    continue  # a floor does not tell what it does not keep
                if p in noisy_grads:
                    grad = noisy_grads[p].to(state["exp_avg"].dtype)
                    grad = -grad if group["maximize"] else grad
                else:
                    grad = torch.zeros_like(state["exp_avg"])
                if "exp_avg_noisy" not in state:  # as if the gradient had always been this one
                    started = 1 - beta1 ** (state["step"].item() - 1)
                    state["exp_avg_noisy"] = grad * started
                averages.append(state["exp_avg_noisy"])
                grads.append(grad)
            if averages:
                torch._foreach_lerp_(averages, grads, 1 - beta1)

    def _follow_exact_terms(self, stepped: list[_Stepped]) -> None:
        """Move what the gate has closed; see the module's docstring."""
        closed: list[tuple[list[_Slot], Tensor, Tensor, Tensor, float]] = []
        for slots, gates, group in stepped:
            (beta1, beta2), lr = group["betas"], float(group["lr"])
            # Adam's longest step: Kingma and Ba (2015), section 2.1.
            longest = lr * max(1.0, (1 - beta1) / (1 - beta2) ** 0.5)
            for step, (same, q) in _by_step(slots, gates).items():
                mean = _flat(slot.exp_avg for slot in same)
                noisy = _flat(
                    as_real(self._turned(slot.state["exp_avg_noisy"], slot)) for slot in same
                )
                denom = _flat(slot.exp_avg_sq for slot in same).sqrt_()
                denom.div_((1 - beta2**step) ** 0.5).add_(group["eps"])
                shut = 1 - _flat(q)
                scale = shut.div_(denom).mul_(lr / (1 - beta1**step))
                closed.append((same, scale, mean - noisy, noisy, longest))
        across = sum(float((scale * exact).dot(noisy)) for _, scale, exact, noisy, _ in closed)
        along = sum(float((scale * noisy).dot(noisy)) for _, scale, _, noisy, _ in closed)
        c = across / along if along > 0 else 0.0
        moves = [(same, scale * (exact - c * noisy)) for same, scale, exact, noisy, _ in closed]
        # Where exact and noisy terms cancel, v is small against both.
        shorter = 1.0
        for (_, move), (*_, longest) in zip(moves, closed, strict=True):
            farthest = float(move.abs().max()) if len(move) else 0.0
            if farthest > longest:
                shorter = min(shorter, longest / farthest)
        for same, move in moves:
            parts = torch.split(move, [slot.param.numel() for slot in same])
            for slot, part in zip(same, parts, strict=True):
                own = part.view(slot.param.shape)
                slot.param.sub_(self._turned(own, slot, back=True), alpha=shorter)

    def _turned(self, x: Tensor, slot: _Slot, back: bool = False) -> Tensor:
        """Into the coordinates of the moments, or back: here the parameters' own."""
        return x

    def _in_own_coordinates(self, floor: Floor | None) -> Floor | None:
        """The floor in the coordinates of the moments: here the parameters' own."""
        return floor

    def _update(self, slots: list[_Slot], group: dict[str, Any]) -> list[Tensor | None]:
        """Move the slots' parameters; q of each, None where there is no gate."""
        update = _multi_tensor_snr_adam if _use_foreach(group) else _single_tensor_snr_adam
        return update(slots, group)

    def gate_stats(self, group: int | None = None) -> GateStats:
        """Mean q and open fraction of the last step, overall or of one parameter group.

        Computed from the state when asked for; a training loop that does not ask pays nothing.
        Parameters that have not been stepped do not count; NaN if none has, and of a copy or after
        :meth:`load_state_dict` until the next step: the last one's floor is not part of the state.
        """
        if not self._has_stepped:
            return GateStats(math.nan, math.nan, 0)
        groups = self.param_groups if group is None else [self.param_groups[group]]
        total, opened, numel = 0.0, 0.0, 0
        with torch.no_grad():
            for options in groups:
                for slots in self._slots(options, self._floor, only_stepped=True):
                    for slot in slots:
                        q = _gate_of(slot, options)
                        total += q.cpu().sum(dtype=torch.float64).item()
                        opened += (q >= 0.5).sum().item()
                        numel += q.numel()
        if numel == 0:
            return GateStats(math.nan, math.nan, 0)
        return GateStats(total / numel, opened / numel, numel)

    def _slots(
        self, group: dict[str, Any], floor: Floor | None, only_stepped: bool = False
    ) -> Iterable[list[_Slot]]:
        """The group's parameters that take part, in lists of one device and dtype each."""
        slots: dict[tuple[torch.device, torch.dtype], list[_Slot]] = {}
        for p in group["params"]:
            if (not self.state.get(p)) if only_stepped else (p.grad is None):
                continue
            state = self.state[p]
            if not state:
                self._init_state(p, state)
            rounded = p if is_16_bit(p) else None
            param = p if rounded is None else p.float()
            variance = None if floor is None else floor.get(p)
            slot = _Slot(
                as_real(param),
                None if p.grad is None else as_real(p.grad.to(param.dtype)),
                as_real(state["exp_avg"]),
                as_real(state["exp_avg_sq"]),
                as_real(state["exp_grad_var"]),
                state["step"],
                None if variance is None else as_real(variance.to(param)),
                self._excess_of(variance, group),
                rounded,
                state,
            )
            slots.setdefault((p.device, slot.param.dtype), []).append(slot)
        return slots.values()

    def _excess_of(self, variance: Tensor | None, group: dict[str, Any]) -> Tensor | float:
        """Share of the step that the gate leaves alone, of a parameter with this floor."""
        return self._excess if group["discrepancy"] and variance is not None else 0.0

    def _init_state(self, p: Tensor, state: dict[str, Any]) -> None:
        state["step"] = torch.tensor(0.0, device="cpu")
        for key in SNRAdam._initial_keys:
            state[key] = state_like(p)

    def _check_inputs(self, floor: Floor | None) -> bool:
        """Refuse what cannot be stepped on before anything changes; False: skip this step."""
        gated = [group["params"] for group in self.param_groups if group["gate"] != "none"]
        if floor and gated and not any(p in floor for params in gated for p in params):
            raise ValueError(
                "The floor is one for other parameters: it has none of this optimizer's (a copy of "
                "a network has its own)."
            )
        finite: list[_Checked] = []
        for g, group in enumerate(self.param_groups):
            for i, p in enumerate(group["params"]):
                if p.grad is None:
                    continue
                if p.grad.is_sparse:
                    raise RuntimeError(
                        f"SNRAdam does not support sparse gradients ({_name(group, g, i)}); "
                        "torch.optim.SparseAdam does."
                    )
                finite.append(_Checked(p.grad, "gradient", group, g, i))
                variance = None if floor is None else floor.get(p)
                if variance is not None:
                    _check_floor(variance, p, group, g, i)
                    if not isinstance(floor, NoiseFloor) and _is_negative(variance):
                        raise ValueError(
                            f"The floor of {_name(group, g, i)} is negative; it is a variance."
                        )
                    finite.append(_Checked(variance, "floor", group, g, i))
                noisy = floor.noisy_grads.get(p) if isinstance(floor, NoiseFloor) else None
                if noisy is not None:
                    finite.append(_Checked(noisy, "noisy terms' gradient", group, g, i))
        bad = _first_nonfinite(finite)
        if bad is None:
            return True
        if bad.group["nonfinite"] == "skip":
            return False
        raise FloatingPointError(
            f"The {bad.what} of {_name(bad.group, bad.at, bad.place)} has NaN or infinite entries. "
            "Parameters and optimizer state are as they were before this step. Lower the learning "
            'rate or look at the loss; nonfinite="skip" skips such steps.'
        )


class _Slot(NamedTuple):
    """One parameter with all that a step on it reads and writes, as real tensors of one dtype."""

    param: Tensor
    grad: Tensor | None
    exp_avg: Tensor
    exp_avg_sq: Tensor
    exp_grad_var: Tensor
    step: Tensor
    floor: Tensor | None
    excess: Tensor | float
    """Share of the step that the gate leaves alone."""
    rounded: Tensor | None
    """The 16-bit parameter which ``param`` is a float32 copy of."""
    state: dict[str, Any]
    """All of the parameter's state."""


_Stepped = tuple[list[_Slot], list[Tensor | None], dict[str, Any]]
"""Slots that have been moved, their gates, their group."""


def _flat(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([x.flatten() for x in tensors])


def _by_step(
    slots: list[_Slot], gates: list[Tensor | None]
) -> dict[float, tuple[list[_Slot], list[Tensor]]]:
    """The gated slots whose noisy terms are known, and their gates, by their number of steps."""
    found: dict[float, tuple[list[_Slot], list[Tensor]]] = {}
    for slot, q in zip(slots, gates, strict=True):
        if "exp_avg_noisy" in slot.state and q is not None:
            same, own = found.setdefault(slot.step.item(), ([], []))
            same.append(slot)
            own.append(q)
    return found


def _decayed(slots: list[_Slot], group: dict[str, Any]) -> list[_Slot]:
    """The slots with the gradients to go down, after decoupled weight decay or with Adam's."""
    params = [slot.param for slot in slots]
    grads = [slot.grad for slot in slots if slot.grad is not None]
    decay = group["weight_decay"]
    if group["maximize"]:
        grads = list(torch._foreach_neg(grads))
    if decay != 0 and group["decoupled_weight_decay"]:
        torch._foreach_mul_(params, 1 - float(group["lr"]) * decay)
    elif decay != 0:
        grads = list(torch._foreach_add(grads, params, alpha=decay))
    return [slot._replace(grad=grad) for slot, grad in zip(slots, grads, strict=True)]


def _single_tensor_snr_adam(slots: list[_Slot], group: dict[str, Any]) -> list[Tensor | None]:
    """The reference: the formulas of the module docstring, one parameter after another."""
    lr, (beta1, beta2), rho = float(group["lr"]), group["betas"], group["rho"]
    gates: list[Tensor | None] = []
    for slot in slots:
        param, grad, m, v, s = (
            slot.param,
            slot.grad,
            slot.exp_avg,
            slot.exp_avg_sq,
            slot.exp_grad_var,
        )
        assert grad is not None
        step = slot.step.add_(1).item()
        deviation = grad - m
        s.mul_(rho).addcmul_(deviation, deviation, value=1 - rho)
        m.lerp_(grad, 1 - beta1)
        v.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)

        denom = (v.sqrt() / (1 - beta2**step) ** 0.5).add_(group["eps"])
        gates.append(_gate_of(slot, group) if _is_gated(slot, group) else None)
        gated = m if gates[-1] is None else m * gates[-1]
        param.addcdiv_(gated, denom, value=-(lr / (1 - beta1**step)))
    return gates


def _multi_tensor_snr_adam(slots: list[_Slot], group: dict[str, Any]) -> list[Tensor | None]:
    """The same on lists of tensors (one device, one dtype), for few kernel launches."""
    lr, (beta1, beta2), rho = float(group["lr"]), group["betas"], group["rho"]
    params = [slot.param for slot in slots]
    grads = [slot.grad for slot in slots if slot.grad is not None]
    ms = [slot.exp_avg for slot in slots]
    vs = [slot.exp_avg_sq for slot in slots]
    ss = [slot.exp_grad_var for slot in slots]
    steps = [slot.step.add_(1).item() for slot in slots]

    deviations = torch._foreach_sub(grads, ms)
    torch._foreach_mul_(ss, rho)
    torch._foreach_addcmul_(ss, deviations, deviations, 1 - rho)
    torch._foreach_lerp_(ms, grads, 1 - beta1)
    torch._foreach_mul_(vs, beta2)
    torch._foreach_addcmul_(vs, grads, grads, 1 - beta2)

    denoms = torch._foreach_sqrt(vs)
    torch._foreach_div_(denoms, [(1 - beta2**step) ** 0.5 for step in steps])
    torch._foreach_add_(denoms, group["eps"])
    gates = _foreach_gates(slots, group)
    gated, opened = list(ms), [i for i, q in enumerate(gates) if q is not None]
    if opened:
        products = torch._foreach_mul([ms[i] for i in opened], [q for q in gates if q is not None])
        for i, product in zip(opened, products, strict=True):
            gated[i] = product
    torch._foreach_addcdiv_(params, gated, denoms, [-(lr / (1 - beta1**step)) for step in steps])
    return gates


def _foreach_gates(slots: list[_Slot], group: dict[str, Any]) -> list[Tensor | None]:
    """q of every slot, None where there is no gate; it sees all elements as one flat tensor."""
    gates: list[Tensor | None] = [None] * len(slots)
    gated = [i for i, slot in enumerate(slots) if _is_gated(slot, group)]
    if gated:
        mean_sq, floor = zip(*(_mean_sq_and_floor(slots[i], group) for i in gated), strict=True)
        q = _gate(_flat(mean_sq), _flat(floor), group)
        for i, part in zip(gated, torch.split(q, [x.numel() for x in mean_sq]), strict=True):
            gates[i] = _opened(part.view_as(slots[i].exp_avg), slots[i])
    return gates


def _is_gated(slot: _Slot, group: dict[str, Any]) -> bool:
    return bool(group["gate"] != "none" and slot.step.item() > group["warmup_steps"])


def _gate_of(slot: _Slot, group: dict[str, Any]) -> Tensor:
    """q of a slot whose moments are those of its current step."""
    if not _is_gated(slot, group):
        return torch.ones_like(slot.exp_avg)
    return _opened(_gate(*_mean_sq_and_floor(slot, group), group), slot)


def _opened(q: Tensor, slot: _Slot) -> Tensor:
    """Open by the excess, whatever the entries show."""
    return q + (1 - q) * slot.excess.to(q) if isinstance(slot.excess, Tensor) else q


def _mean_sq_and_floor(slot: _Slot, group: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """What the gate compares; the floor as high as its threshold has risen."""
    step = slot.step.item()
    mean_sq = (slot.exp_avg / (1 - group["betas"][0] ** step)).square_()
    variance = slot.floor
    if variance is None:
        variance = slot.exp_grad_var / (1 - group["rho"] ** step)
        if group["z"] is not None:
            variance = variance * ((1 - group["betas"][0]) / 2)
    if group["rise_steps"]:
        variance = variance * rise(step, group["rise_steps"])
    return mean_sq, variance


def _gate(mean_sq: Tensor, floor: Tensor, group: dict[str, Any]) -> Tensor:
    if group["z"] is not None:
        alpha = float(group["z"] ** 2)
    else:
        alpha = resolve_alpha(group["alpha"], group["batch_size"], group["data_size"])
    q = GATES[group["gate"]](mean_sq, floor, alpha, group["lambd"], group["gate_eps"])
    # A finite gradient may have a square that is not: signal cannot be told from noise there.
    return q.nan_to_num_(nan=0.0)


def _use_foreach(group: dict[str, Any]) -> bool:
    if group["foreach"] is None:
        return all(p.is_cuda for p in group["params"])
    return bool(group["foreach"])


def _name(group: dict[str, Any], group_index: int, index: int) -> str:
    shape = tuple(group["params"][index].shape)
    if "param_names" in group:
        return f"parameter {group['param_names'][index]!r} of shape {shape}"
    return f"parameter {index} of group {group_index}, of shape {shape}"


class _Checked(NamedTuple):
    """What has to be finite: ``what`` of the parameter at this place of a group."""

    tensor: Tensor
    what: str
    group: dict[str, Any]
    at: int
    """The group's index."""
    place: int


def _check_floor(variance: Tensor, p: Tensor, *which: Any) -> None:
    if variance.shape == p.shape and variance.is_complex() == p.is_complex():
        return
    name = _name(*which)
    if variance.shape != p.shape:
        raise ValueError(
            f"The floor of {name} has shape {tuple(variance.shape)}; it must have the parameter's."
        )
    raise ValueError(
        f"The floor of {name} must be {'complex' if p.is_complex() else 'real'}, like it "
        "(real and imaginary part: the variances of the gradient's real and imaginary part)."
    )


def _is_negative(variance: Tensor) -> bool:
    entries = as_real(variance)
    return bool(((entries < 0) & entries.isfinite()).any())


def _first_nonfinite(entries: list[_Checked]) -> _Checked | None:
    """The first entry whose tensor is not finite; entries to be raised on come first."""
    if norms_are_finite(entry.tensor for entry in entries):
        return None
    # A norm can overflow where no entry does; look at the entries themselves.
    for entry in sorted(entries, key=lambda entry: str(entry.group["nonfinite"])):
        if not torch.isfinite(entry.tensor).all():
            return entry
    return None


def plain_numbers(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options with numpy's scalars, and tensors but for the learning rate, as Python's numbers:
    every state can be loaded then."""

    def plain(value: Any, name: str) -> Any:
        if isinstance(value, tuple):
            return tuple(plain(part, name) for part in value)
        is_number = (
            isinstance(value, Tensor) and value.numel() == 1 and name not in ("lr", "params")
        )
        return value.item() if is_number or isinstance(value, np.generic) else value

    return {name: plain(value, name) for name, value in options.items()}


def require_option(options: Mapping[str, Any], name: str, ok: bool, what: str) -> None:
    """Refuse the option of this name, unless ``ok``, with what it must be."""
    if not ok:
        raise ValueError(f"Invalid {name}: {options[name]!r}; it must be {what}.")


def validate_options(options: Mapping[str, Any]) -> None:
    """Check a full set of SNRAdam's group options.

    Raises:
        ValueError: names the option that is out of range and the range.
    """

    require = functools.partial(require_option, options)

    def number(name: str, low: float, high: float = math.inf) -> None:
        value = options[name]
        if isinstance(value, Tensor) and name == "lr":
            require(name, value.numel() == 1, "a number or a 1-element tensor")
            value = value.item()
        span = f"a finite number >= {low:g}" + (f" and < {high:g}" if high < math.inf else "")
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        require(name, is_number and low <= value < high, span)

    for name in ("lr", "eps", "weight_decay", "lambd", "gate_eps"):
        number(name, 0)
    number("rho", 0, 1)
    if options["z"] is not None:
        number("z", 0)
    betas = options["betas"]
    require(
        "betas",
        isinstance(betas, (tuple, list))
        and len(betas) == 2
        and all(isinstance(b, (int, float)) and 0 <= b < 1 for b in betas),
        "two numbers >= 0 and < 1",
    )
    gate = options["gate"]
    known = isinstance(gate, str) and gate in GATES
    require("gate", known, "one of " + ", ".join(map(repr, GATES)))
    require("nonfinite", options["nonfinite"] in ("raise", "skip"), "'raise' or 'skip'")
    for name in ("warmup_steps", "rise_steps"):
        steps = options[name]
        require(name, isinstance(steps, int) and steps >= 0, "an integer >= 0")
    require("discrepancy", isinstance(options["discrepancy"], bool), "True or False")
    for name in ("batch_size", "data_size"):
        size = options[name]
        ok = size is None or (isinstance(size, int) and size >= 1)
        require(name, ok, "None or an integer >= 1")
    resolve_alpha(options["alpha"], options["batch_size"], options["data_size"])
