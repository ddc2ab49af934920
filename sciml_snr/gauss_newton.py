r"""SNRGaussNewton: Gauss-Newton steps that leave alone what does not stand out of the noise.

The formulas are in :mod:`sciml_snr.tangent`. Twenty to two hundred steps without a learning rate
take the place of thousands of first order; each needs the Jacobian of all residual rows, and those
eigenvectors of its kernel that count beside the damping (:mod:`sciml_snr.spectrum`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from ._tensors import add_vector, is_sharded
from .evidence import LEFT_OUT as LEFT_OUT_OF_NOISE
from .evidence import Posterior
from .jacobian import ClosureRows, Residuals, System
from .spectrum import spectrum_of
from .step_size import MAX_GIGABYTES, check_size
from .step_stats import (
    AUTO,
    EVIDENCE,
    MONOTONE,
    GaussNewtonStats,
    at_rest,
    check_options,
    described,
    found,
    moved_by,
    random_signs,
)
from .tangent import Tangent

DONE = "done: no direction stands out of the noise"
"""Why an optimizer has stopped."""

AT_REST = "done: the sum of squares of rows that are drawn anew is at rest"
"""The other reason why."""

LOWEST, HIGHEST = 1e-9, 1e12
"""Of the damping."""

EXACT_ROWS = 200
"""Up to so many rows, all eigenvectors are found; beyond, those that count."""

LEFT_OUT = 0.1
"""Trace of the kernel that may be left out, in units of the damping."""


class SNRGaussNewton(Optimizer):
    r"""Levenberg-Marquardt with a signal-to-noise gate in the tangent kernel's eigenbasis.

    There is no learning rate. Each step makes the Jacobian of all residual rows and goes, in the
    eigenbasis of its kernel, as far as a direction stands out of the noise in the data. What is
    closed follows the exact rows along the level set of the noisy ones. Once nothing stands out
    of the noise any more, :attr:`done` is True, and steps change nothing. Where rows are drawn anew
    in every step, something always seems to: there it is True once the sum of their squares, before
    each step, is at rest.

    Args:
        net: a network, which is then given to the function in :meth:`step`; or parameters, or
            groups of them, as for any optimizer.
        lr: None; or a ceiling on a step's length, in the Euclidean norm of all parameters.
        z: threshold of the gate, in standard deviations of the noise; 0: no gate.
        gate: ``"monotone"``: it pools neighbouring directions, and falls with their eigenvalue;
            ``"stein"``: each direction by itself; ``"evidence"``: of a prior of the weights, its
            width the one of the largest evidence, see :mod:`sciml_snr.evidence`; ``"auto"``: this
            where all rows are noisy, monotone elsewhere.
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
        tolerance: what counts as none, in units of sigma per noisy row; where rows are drawn anew,
            of the sum of squares per noisy row and step.
        probes: changes of the data that are followed to find the memorized share; 0: none.
        max_gigabytes: memory beyond which the first step is refused, see
            :func:`sciml_snr.step_size.estimate`.
        unit: the prior's width beside that of other groups of parameters. In a group of unknown
            coefficients something large, such as 30, leaves them to the data.

    Raises:
        ValueError: an option is out of range; the message names it. Parameters are sharded.
        TypeError: the network is wrapped in DistributedDataParallel.

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
        gate: str = AUTO,
        follow: bool = True,
        exact_weight: float = 100.0,
        ramp_steps: int = 30,
        damping: float = 1.0,
        max_trials: int = 12,
        patience: int = 5,
        tolerance: float = 1e-3,
        probes: int = 8,
        max_gigabytes: float = MAX_GIGABYTES,
        unit: float = 1.0,
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
            unit=unit,
        )
        check_options(defaults)
        if isinstance(net, nn.parallel.DistributedDataParallel):
            raise TypeError(
                "SNRGaussNewton needs all residual rows in one process, and averages nothing over "
                "processes: give it the network itself, and every process all rows."
            )
        self._net = net if isinstance(net, nn.Module) else None
        self.last_stats: GaussNewtonStats | None = None
        params = net.named_parameters() if isinstance(net, nn.Module) else net
        super().__init__(params, defaults)
        for p in self._params():
            if is_sharded(p):
                raise ValueError(
                    "SNRGaussNewton needs the whole of each parameter and all residual rows in one "
                    "process: it takes no sharded ones (fully_shard). Use SNRAdam."
                )
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
            memory |= {"ramp": 0, "before_memorized": 0.0, "unseen": []}
        return memory

    @property
    def steps(self) -> int:
        """Steps taken."""
        return int(self._memory["steps"])

    @property
    def damping(self) -> float:
        """mu of the next step."""
        return float(self._memory["damping"])

    @property
    def done(self) -> bool:
        """Whether nothing significant is left; steps then change nothing."""
        still = self._memory["still"] >= self.param_groups[0]["patience"]
        return bool(still or self._is_at_rest)

    @property
    def _is_at_rest(self) -> bool:
        """Whether rows that are drawn anew are at rest, over four times ``patience`` steps."""
        unseen, group = self._memory["unseen"], self.param_groups[0]
        return len(unseen) == 4 * group["patience"] and at_rest(unseen, group["tolerance"])

    @property
    def reason(self) -> str:
        """Why it is done; empty while it is not."""
        if not self.done:
            return ""
        return AT_REST if self._is_at_rest else DONE

    @property
    def memorized(self) -> float:
        """Share of the noise that these steps so far have put into the fit, in [0, 1].

        What another optimizer has put there before is not in it.

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
        tangent, before = self._tangent(system, weights)
        missing = tangent.spectrum.left_out
        mu = memory["damping"]
        missing = missing if isinstance(tangent, Posterior) else missing / mu
        kept = [p.clone() for p in self._params()]
        moved, after = 0.0, before
        for _ in range(group["max_trials"]):
            step, back = tangent.step(mu)
            scale = self._shortened(step, group["lr"])
            add_vector(self._params(), scale * step * self._units(tangent))
            after = float((weights * residuals.rows()).square().sum())
            if after + self._penalty(tangent) < before + self._penalty(tangent, kept):
                moved = moved_by(tangent, scale * step)
                self._remember(residuals, tangent, mu, back, scale)
                mu = max(mu / 3, LOWEST)
                break
            for p, own in zip(self._params(), kept, strict=True):
                p.copy_(own)
            mu, after = min(4 * mu, HIGHEST), before
        memory["damping"] = mu
        memory["steps"] += 1
        goes_on = self._ramp(tangent)
        memory["still"] = memory["still"] + 1 if moved < group["tolerance"] and not goes_on else 0
        # The squares before a step on rows drawn anew, per noisy row: no step has seen these rows.
        if (count := float(tangent.noisy.sum())) and not residuals.rows_stay and not goes_on:
            memory["unseen"] = [*memory["unseen"], before / count][-4 * group["patience"] :]
        else:
            memory["unseen"] = []
        if isinstance(tangent, Posterior) and residuals.data_stay:
            self._keep_best(tangent, kept)
        self.last_stats = found(tangent, mu, moved, missing)
        return after

    def _tangent(self, system: System, weights: Tensor) -> tuple[Tangent | Posterior, float]:
        """The linearized problem, and its rows' sum of squares."""
        group = self.param_groups[0]
        exact = len(system.rows) <= EXACT_ROWS
        if self._has_prior(system.noisy):
            system = system.weighted(weights, self._all_units())
            spectrum = spectrum_of(system.jacobian, None if exact else LEFT_OUT_OF_NOISE)
            made: Tangent | Posterior = Posterior(system, spectrum, self._flat(self._params()))
        else:
            system, memory = system.weighted(weights), self._memory
            spectrum = spectrum_of(system.jacobian, None if exact else LEFT_OUT * memory["damping"])
            if not len(spectrum.values) and spectrum.left_out:
                # So much damping that nothing counts beside it: as much as the kernel's trace will
                # do.
                memory["damping"] = spectrum.left_out
                spectrum = spectrum_of(system.jacobian, LEFT_OUT * memory["damping"])
            gate = MONOTONE if group["gate"] == AUTO else group["gate"]
            made = Tangent(system, group["z"], gate, group["follow"], spectrum=spectrum)
        return made, float(system.rows.square().sum())

    def _keep_best(self, posterior: Posterior, kept: list[Tensor]) -> None:
        """Keep the parameters of the most evidence so far; end there once it has had its time."""
        memory, group = self._memory, self.param_groups[0]
        if posterior.evidence < memory.get("evidence", math.inf):
            memory |= {"evidence": posterior.evidence, "worse": 0}
            memory["best_memorized"] = memory["before_memorized"]
            for p, own in zip(self._params(), kept, strict=True):
                self.state[p]["best"] = own
        else:
            memory["worse"] += 1
        memory["before_memorized"] = memory["memorized"]
        if memory["worse"] >= group["patience"]:
            memory["still"] = group["patience"]
        if self.done:
            memory["memorized"] = memory["best_memorized"]
            for p in self._params():
                p.copy_(self.state[p]["best"])

    def _penalty(self, tangent: Tangent | Posterior, at: list[Tensor] | None = None) -> float:
        """What counts beside the rows' squares: the prior's part."""
        if isinstance(tangent, Tangent):
            return 0.0
        return tangent.penalty(self._flat(self._params() if at is None else at))

    def check_size(self, rows: int) -> None:
        """Refuse steps on so many rows if they take more memory than there may be.

        Raises:
            ValueError: says what they would take.
        """
        size, params = sum(p.numel() for p in self._params()), self._params()
        check_size(rows, size, params[0].itemsize, self.param_groups[0]["max_gigabytes"])

    def _all_units(self) -> Tensor:
        """The unit of each parameter, (P,), float64."""
        pairs = [(g["unit"], p) for g in self.param_groups for p in g["params"] if p.requires_grad]
        return torch.cat([torch.full_like(p, u, dtype=torch.float64).flatten() for u, p in pairs])

    def _units(self, tangent: Tangent | Posterior) -> Tensor | float:
        """What a step of 1 moves each parameter by."""
        return 1.0 if isinstance(tangent, Tangent) else self._all_units()

    def _flat(self, values: list[Tensor]) -> Tensor:
        """Values of all parameters as one vector in their units, (P,)."""
        return torch.cat([p.detach().double().flatten() for p in values]) / self._all_units()

    def _has_prior(self, noisy: Tensor) -> bool:
        """Whether steps are those of :mod:`sciml_snr.evidence`."""
        gate, z = self.param_groups[0]["gate"], self.param_groups[0]["z"]
        return bool(z and noisy.any() and (gate == EVIDENCE or (gate == AUTO and noisy.all())))

    def _weights(self, noisy: Tensor) -> Tensor:
        """What every row is multiplied by in this step, (N,)."""
        group, ones = self.param_groups[0], torch.ones_like(noisy)
        if not noisy.any() or self._has_prior(noisy):
            return ones
        share = self._memory["ramp"] / group["ramp_steps"] if group["ramp_steps"] else 1.0
        return torch.where(noisy > 0, ones, math.sqrt(group["exact_weight"] ** share))

    def _ramp(self, tangent: Tangent | Posterior) -> bool:
        """Find the exact rows' weight in the next step; says whether it rises."""
        memory, group, count = self._memory, self.param_groups[0], float(tangent.noisy.sum())
        if not 0 < count < len(tangent.noisy) or isinstance(tangent, Posterior):
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

    def _remember(
        self,
        residuals: Residuals,
        tangent: Tangent | Posterior,
        mu: float,
        back: float,
        scale: float,
    ) -> None:
        """Follow what changes of the data do to the parameters, and to the fit."""
        memory, probes = self._memory, self.param_groups[0]["probes"]
        count = int(tangent.noisy.sum())
        if not (probes and count and residuals.data_stay):
            memory["memorized"] = math.nan
            return
        params = self._params()
        signs = random_signs(count, probes).to(tangent.rows)
        whole = tangent.rows.new_zeros(len(tangent.rows), probes)
        whole[tangent.noisy > 0] = signs
        own = [self.state[p].get("sensitivity") for p in params]
        pairs = zip(own, params, strict=True)
        parts = [p.new_zeros(p.numel(), probes) if x is None else x for x, p in pairs]
        units = self._units(tangent)
        columns = units[:, None] if isinstance(units, Tensor) else units
        sensitivity = torch.cat(parts).double() / columns
        sensitivity += scale * tangent.response(sensitivity, whole, mu, back)
        fit = tangent.fitted(sensitivity)[tangent.noisy > 0]
        sensitivity *= columns
        memory["memorized"] = float((fit * signs).sum() / (count * probes))
        sizes = [p.numel() for p in params]
        for p, part in zip(params, torch.split(sensitivity, sizes), strict=True):
            self.state[p]["sensitivity"] = part.to(p)

    def describe(self) -> str:
        """What the optimizer does, in words, a line each."""
        return described(self)
