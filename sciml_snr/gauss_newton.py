r"""SNRGaussNewton: Gauss-Newton steps that leave alone what does not stand out of the noise.

The formulas are in :mod:`sciml_snr.tangent`. Twenty to ninety steps without a learning rate take
the place of thousands of first order; each needs the Jacobian of all residual rows, and those
eigenvectors of its kernel that count beside the damping (:mod:`sciml_snr.spectrum`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from .jacobian import ClosureRows, Residuals
from .step_size import MAX_GIGABYTES, check_size, estimate
from .tangent import Tangent

DONE = "done: no direction stands out of the noise"
"""Why an optimizer has stopped."""

GATES = ("monotone", "stein")

LOWEST, HIGHEST = 1e-9, 1e12
"""Of the damping."""

EXACT_ROWS = 200
"""Up to so many rows, all eigenvectors are found; beyond, those that count."""

LEFT_OUT = 0.1
"""Trace of the kernel that may be left out, in units of the damping."""


class GaussNewtonStats(NamedTuple):
    """What the last step found."""

    rows: int
    """Number of residual rows."""
    open_fraction: float
    """Mean of the gate over the noisy rows' directions, each by its share of noise, in [0, 1]."""
    misfit: float
    """Mean square of the noisy rows in units of their sigma, before the step; 1 without any."""
    damping: float
    """mu, after the step."""
    moved: float
    """Root mean square by which the step moves the noisy fit, in units of sigma (without noisy
    rows: relative change of the rows)."""
    rank: int
    """Number of the kernel's eigenvectors in it."""
    left_out: float
    """Trace of the kernel without them, in units of the damping that the step began with: bounds
    the error of the kernel beside it."""


class SNRGaussNewton(Optimizer):
    r"""Levenberg-Marquardt with a signal-to-noise gate in the tangent kernel's eigenbasis.

    There is no learning rate. Each step makes the Jacobian of all residual rows and goes, in the
    eigenbasis of its kernel, as far as a direction stands out of the noise in the data. What is
    closed follows the exact rows along the level set of the noisy ones. Once nothing stands out
    of the noise any more, :attr:`done` is True, and steps change nothing.

    Args:
        net: a network, which is then given to the function in :meth:`step`; or parameters, or
            groups of them, as for any optimizer.
        lr: None; or a ceiling on a step's length, in the Euclidean norm of all parameters.
        z: threshold of the gate, in standard deviations of the noise; 0: no gate.
        gate: ``"monotone"``: it pools neighbouring directions, and falls with their eigenvalue; or
            ``"stein"``: each direction by itself.
        follow: whether what is closed follows the exact rows.
        exact_weight: beside noisy rows, exact ones count so many times as much in the end: what is
            known exactly need not give way to noise.
        ramp_steps: steps in which this weight rises from 1, by equal factors; 0: it is there from
            the start. A step counts where the noisy rows' misfit is at most 1 + sqrt(2/n), its
            standard error; where it is more, the weight goes a step back: data that are not
            explained are not to be overruled.
        damping: Levenberg-Marquardt's mu at the start; it falls to a third with every success, and
            rises to fourfold with every failure.
        max_trials: tries of a step, each with more damping, before it is given up.
        patience: so many steps in a row that move nothing of significance end it.
        tolerance: what counts as none, in units of sigma per noisy row.
        probes: changes of the data that are followed to find the memorized share; 0: none.
        max_gigabytes: memory beyond which the first step is refused, see
            :func:`sciml_snr.step_size.estimate`.

    Raises:
        ValueError: an option is out of range; the message names it.

    Example:
        >>> optimizer = SNRGaussNewton(net)
        >>> while not optimizer.done:
        ...     optimizer.step(lambda net: [NoisyRows(net(x) - y, sigma=0.1), physics_rows(net)])
    """

    def __init__(
        self,
        net: nn.Module | Iterable[Any],
        lr: float | None = None,
        *,
        z: float = 1.25,
        gate: str = "monotone",
        follow: bool = True,
        exact_weight: float = 100.0,
        ramp_steps: int = 30,
        damping: float = 1.0,
        max_trials: int = 12,
        patience: int = 5,
        tolerance: float = 1e-3,
        probes: int = 8,
        max_gigabytes: float = MAX_GIGABYTES,
    ) -> None:
        defaults: dict[str, Any] = dict(
            lr=lr,
            z=z,
            gate=gate,
            follow=follow,
            exact_weight=exact_weight,
            ramp_steps=ramp_steps,
            damping=damping,
            max_trials=max_trials,
            patience=patience,
            tolerance=tolerance,
            probes=probes,
            max_gigabytes=max_gigabytes,
        )
        _check(defaults)
        self._net = net if isinstance(net, nn.Module) else None
        self.last_stats: GaussNewtonStats | None = None
        params = net.named_parameters() if isinstance(net, nn.Module) else net
        super().__init__(params, defaults)
        for p in self._params():
            if p.is_complex():
                raise ValueError(
                    "SNRGaussNewton takes real parameters; view complex ones as pairs of reals."
                )

    def _params(self) -> list[Tensor]:
        every = [p for group in self.param_groups for p in group["params"]]
        return [p for p in every if p.requires_grad]

    @property
    def _memory(self) -> dict[str, Any]:
        """What is kept from step to step, beside the sensitivities."""
        memory: dict[str, Any] = self.state[self.param_groups[0]["params"][0]]
        if "steps" not in memory:
            group = self.param_groups[0]
            memory |= {"steps": 0, "damping": group["damping"], "still": 0, "memorized": math.nan}
            memory["ramp"] = 0
        return memory

    @property
    def steps(self) -> int:
        """Steps taken."""
        return int(self._memory["steps"])

    @property
    def done(self) -> bool:
        """Whether nothing significant is left; steps then change nothing."""
        return bool(self._memory["still"] >= self.param_groups[0]["patience"])

    @property
    def reason(self) -> str:
        """Why it is done; empty while it is not."""
        return DONE if self.done else ""

    @property
    def memorized(self) -> float:
        """Share of the noise that the steps so far have put into the fit, in [0, 1].

        The derivative of the fit by the data, (1/n) tr(df/dy), along the steps as they were taken,
        with gates and kernels of each; its trace by ``probes`` random changes of the data. NaN
        before the first step, without noisy rows, and where batches of data change.
        """
        return float(self._memory["memorized"])

    def stats(self) -> GaussNewtonStats:
        """What the last step found.

        Raises:
            RuntimeError: there was none, in this process.
        """
        if self.last_stats is None:
            raise RuntimeError("No step has been taken yet: stats() is what the last one found.")
        return self.last_stats

    @property
    def has_stats(self) -> bool:
        """Whether a step has been taken in this process, so that :meth:`stats` knows one."""
        return self.last_stats is not None

    def degrees_of_freedom(self, rows: int) -> float:
        """Of a fit to so many noisy rows: their number times the memorized share."""
        return rows * self.memorized

    @torch.no_grad()
    def step(  # type: ignore[override]
        self, closure: Callable[..., Any] | Residuals
    ) -> float:
        """Take one step.

        Args:
            closure: gives a list of residual rows, :class:`sciml_snr.NoisyRows` or tensors; exact
                rows count by their squares beside squares of noisy ones in units of sigma. It is
                given the network, where the optimizer was; called several times.

        Returns:
            The sum of squares of all rows after the step, with the exact rows' weight in it.

        Raises:
            TypeError: it is no function, or does not give rows.
            ValueError: it would take more memory than there may be.
            FloatingPointError: a row or derivative is not finite.
        """
        residuals = self._residuals(closure)
        if self.done:
            return float(residuals.rows().square().sum())
        memory, group = self._memory, self.param_groups[0]
        if not self.steps:
            self.check_size(len(residuals.rows()))
        system = residuals.system()
        weights = self._weights(system.noisy)
        system = system.weighted(weights, self._units())
        mu = memory["damping"]
        left_out = LEFT_OUT * mu if len(system.rows) > EXACT_ROWS else None
        tangent = Tangent(system, group["z"], group["gate"], group["follow"], left_out)
        missing = tangent.spectrum.left_out / mu
        before = after = float(system.rows.square().sum())
        kept = [p.clone() for p in self._params()]
        moved = 0.0
        for _ in range(group["max_trials"]):
            step, back = tangent.step(mu)
            scale = self._shortened(step, group["lr"])
            self._move(scale * step)
            after = float((weights * residuals.rows()).square().sum())
            if after < before:
                moved = _moved(tangent, scale * step)
                self._remember(residuals, tangent, mu, back, scale)
                mu = max(mu / 3, LOWEST)
                break
            for p, own in zip(self._params(), kept, strict=True):
                p.copy_(own)
            mu, after = min(4 * mu, HIGHEST), before
        memory["damping"] = mu
        memory["steps"] += 1
        rises = self._ramp(tangent)
        memory["still"] = memory["still"] + 1 if moved < group["tolerance"] and not rises else 0
        noise = float(tangent.noisy.sum())
        opened = float((tangent.gate * tangent.noise).sum() / noise) if noise else 1.0
        rank = len(tangent.values)
        self.last_stats = GaussNewtonStats(
            len(system.rows), opened, tangent.misfit, mu, moved, rank, missing
        )
        return after

    def check_size(self, rows: int) -> None:
        """Refuse steps on so many rows if they take more memory than there may be.

        Raises:
            ValueError: says what they would take.
        """
        size, params = sum(p.numel() for p in self._params()), self._params()
        check_size(rows, size, params[0].itemsize, self.param_groups[0]["max_gigabytes"])

    def _units(self) -> Tensor | None:
        """What a step of 1 moves each parameter by, (P,); None: 1."""
        sizes = [
            (float(group.get("unit", 1.0)), p)
            for group in self.param_groups
            for p in group["params"]
            if p.requires_grad
        ]
        if all(unit == 1 for unit, _ in sizes):
            return None
        return torch.cat([torch.full((p.numel(),), u, dtype=p.dtype, device=p.device) for u, p in sizes])

    def _weights(self, noisy: Tensor) -> Tensor:
        """What every row is multiplied by in this step, (N,)."""
        group, ones = self.param_groups[0], torch.ones_like(noisy)
        if not noisy.any():
            return ones
        share = self._memory["ramp"] / group["ramp_steps"] if group["ramp_steps"] else 1.0
        return torch.where(noisy > 0, ones, math.sqrt(group["exact_weight"] ** share))

    def _ramp(self, tangent: Tangent) -> bool:
        """Find the exact rows' weight in the next step; says whether it rises."""
        memory, group, count = self._memory, self.param_groups[0], float(tangent.noisy.sum())
        if not 0 < count < len(tangent.noisy):
            return False
        explained = tangent.misfit <= 1 + math.sqrt(2 / count)
        before = memory["ramp"]
        after = before + 1 if explained else before - 1
        memory["ramp"] = min(max(after, 0), group["ramp_steps"])
        return bool(memory["ramp"] > before)

    def _residuals(self, closure: Callable[..., Any] | Residuals) -> Residuals:
        if isinstance(closure, Residuals):
            return closure
        if not callable(closure):
            raise TypeError(
                "step() takes a function that gives residual rows: optimizer.step(lambda net: "
                f"[sciml_snr.NoisyRows(net(x) - y, sigma=0.1), ...]); got {closure!r}."
            )
        net = self._net
        return ClosureRows(closure if net is None else lambda: closure(net), self._params())

    @staticmethod
    def _shortened(step: Tensor, ceiling: float | None) -> float:
        length = float(step.norm())
        return 1.0 if ceiling is None or length <= ceiling else float(ceiling) / length

    def _move(self, step: Tensor) -> None:
        """Add a vector, in the parameters' own units, to all of them."""
        params, units = self._params(), self._units()
        step = step if units is None else step * units.to(step)
        for p, part in zip(params, torch.split(step, [p.numel() for p in params]), strict=True):
            p.add_(part.view(p.shape).to(p))

    def _remember(
        self, residuals: Residuals, tangent: Tangent, mu: float, back: float, scale: float
    ) -> None:
        """Follow what changes of the data do to the parameters, and to the fit."""
        memory, probes = self._memory, self.param_groups[0]["probes"]
        count = int(tangent.noisy.sum())
        if not (probes and count and residuals.data_stay):
            memory["memorized"] = math.nan
            return
        params = self._params()
        signs = _signs(count, probes).to(tangent.rows)
        whole = tangent.rows.new_zeros(len(tangent.rows), probes)
        whole[tangent.noisy > 0] = signs
        own = [self.state[p].get("sensitivity") for p in params]
        pairs = zip(own, params, strict=True)
        parts = [p.new_zeros(p.numel(), probes) if x is None else x for x, p in pairs]
        sensitivity = torch.cat(parts).double()
        units = self._units()
        if units is not None:
            sensitivity /= units.double()[:, None]
        sensitivity += scale * tangent.response(sensitivity, whole, mu, back)
        fit = tangent.fitted(sensitivity)[tangent.noisy > 0]
        if units is not None:
            sensitivity *= units.double()[:, None]
        memory["memorized"] = float((fit * signs).sum() / (count * probes))
        sizes = [p.numel() for p in params]
        for p, part in zip(params, torch.split(sensitivity, sizes), strict=True):
            self.state[p]["sensitivity"] = part.to(p)

    def describe(self) -> str:
        """What the optimizer does, in words, a line each."""
        group = self.param_groups[0]
        ceiling = (
            "no learning rate" if group["lr"] is None else f"no step longer than {group['lr']:g}"
        )
        lines = [f"SNRGaussNewton: Levenberg-Marquardt in the tangent kernel's basis, {ceiling}"]
        if group["z"] == 0:
            lines.append("gate: none")
        else:
            follows = ", what is closed follows the exact rows" if group["follow"] else ""
            lines.append(f"gate: {group['gate']}, z = {group['z']:g}{follows}")
        lines.append(
            f"exact rows beside noisy ones: {group['exact_weight']:g} times their weight, after "
            f"{group['ramp_steps']} steps"
        )
        if self.steps:
            lines.append(f"steps: {self.steps}, damping {self._memory['damping']:.2g}")
        if self.last_stats is not None:
            lines.append(self._size(self.last_stats))
        if not math.isnan(self.memorized):
            lines.append(f"memorized: {100 * self.memorized:.1f} % of the noise")
        return "\n".join([*lines, *([self.reason] if self.done else [])])


    def _size(self, stats: GaussNewtonStats) -> str:
        params = self._params()
        size = sum(p.numel() for p in params)
        memory, _ = estimate(stats.rows, size, params[0].itemsize)
        return (
            f"a step: {stats.rows} rows by {size} parameters, {stats.rank} eigenvectors, about "
            f"{memory:.2g} GB"
        )


def _moved(tangent: Tangent, step: Tensor) -> float:
    """How far a step moves the fit; see :class:`GaussNewtonStats`."""
    change = tangent.fitted(step)
    count = float(tangent.noisy.sum())
    if not count:
        return float(change.norm() / tangent.rows.norm().clamp_min(1e-300))
    return math.sqrt(float((change.square() * tangent.noisy).sum()) / count)


def _signs(rows: int, probes: int) -> Tensor:
    """Random signs, (rows, probes), the same ones every time."""
    generator = torch.Generator("cpu").manual_seed(0)
    signs = torch.randint(0, 2, (rows, probes), generator=generator, device="cpu")
    return signs.double().mul_(2).sub_(1)


def _check(options: dict[str, Any]) -> None:
    """Refuse options out of range, by name."""
    lr = options["lr"]
    if lr is not None and not (isinstance(lr, (int, float)) and lr > 0):
        raise ValueError(
            f"lr must be None or a positive number, the longest step there may be; got {lr!r}."
        )
    if options["gate"] not in GATES:
        raise ValueError(f"gate must be one of {', '.join(GATES)}; got {options['gate']!r}.")
    for name in ("damping", "tolerance", "exact_weight", "max_gigabytes"):
        if not 0 < options[name] < math.inf:
            raise ValueError(f"{name} must be a positive number, got {options[name]!r}.")
    if not 0 <= options["z"] < math.inf:
        raise ValueError(f"z must be a number >= 0, got {options['z']!r}.")
    for name, least in {"max_trials": 1, "patience": 1, "probes": 0, "ramp_steps": 0}.items():
        if not (isinstance(options[name], int) and options[name] >= least):
            raise ValueError(f"{name} must be a whole number >= {least}, got {options[name]!r}.")

