"""How sure is a fit? Standard errors of unknowns, fields and derivatives.

*Linear*: the fit is taken as a regression, linearized where it is; formulas and sources are in
:mod:`sciml_snr.measure.regression`. *Replicas*: the measurements' errors are followed by fits to
data with fresh errors, :mod:`sciml_snr.measure.replicas`.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..jacobian import ClosureRows, Residuals, System
from ..jacobian import joined as joined_gradients
from ..step_size import check_size
from .intervals import statement
from .point_jacobian import Derivatives, point_jacobian
from .regression import Array, Parts, Regression, quantile
from .replicas import Replicas, moved

METHODS = ("linear", "replicas")

MAX_ROWS = 6000
"""Beyond which error bars are refused."""

POINTS = 512
"""Points whose gradients are held at a time."""


class Unknown(NamedTuple):
    """An unknown coefficient, or another number that a fit gives."""

    value: float
    standard_error: float
    """All parts together; infinite where the data do not determine it."""
    noise: float
    """The part that the measurements' errors make."""
    unresolved: float
    """The part that neither data nor equations determine."""
    left_out: float
    """How far it would move if the fit were led to the end, with its sign."""


class ErrorBars:
    """Standard errors of everything that a fit gives: see :func:`error_bars`.

    Attributes:
        method: ``"linear"`` or ``"replicas"``.
        unknowns: name -> :class:`Unknown`.
        covariance: (k, k) of the unknowns, in their order, by the linear way.
        precision: of the normal prior of the network's weights, where it is most likely.
        degrees_of_freedom: of the fit to the noisy measurements, led to the end.
        misfit: mean square of residual / sigma over them, at the fit.
        risk: estimate of the mean square error at the measurements, in units of sigma squared
            (Stein's unbiased estimate of the fit led to the end, plus what it leaves out).
        doubt: why the intervals may not hold; empty where nothing speaks against them.
    """

    def __init__(
        self,
        net: nn.Module,
        residuals: Residuals,
        system: System,
        params: Sequence[Tensor],
        unknowns: Mapping[str, Tensor | Callable[[], Any]],
        free: Sequence[Tensor],
        *,
        method: str = "linear",
        replicas: int = 32,
        sigma_known: bool = True,
        seed: int = 0,
    ) -> None:
        self.method, self._net, self._params = method, net, list(params)
        own = {id(p) for p in free}
        mask = torch.cat(
            [torch.full((p.numel(),), id(p) in own, device=p.device) for p in self._params]
        )
        self._kept = [p.detach().clone() for p in self._params]
        weights = torch.cat([p.detach().double().flatten() for p in self._params])
        self._regression = Regression(system, weights, mask, sigma_known)
        regression = self._regression
        self._replicas: Replicas | None = None
        if method == "replicas":
            self._replicas = Replicas(regression, residuals, self._params, replicas, seed)
        self.precision = regression.ridge.precision
        self.degrees_of_freedom = regression.degrees_of_freedom
        self.misfit = regression.misfit
        self.doubt = self._doubt()
        if self.doubt:
            warnings.warn(f"error_bars: {self.doubt}", stacklevel=3)
        self._functions = {name: _function(what) for name, what in unknowns.items()}
        gradients = [self._gradient(f) for f in self._functions.values()]
        self._gradients = torch.cat(gradients) if gradients else weights.new_zeros(0, len(mask))
        self.covariance = regression.covariance(self._gradients)
        self.unknowns = self._of_unknowns()
        ridge = regression.ridge
        shift = ridge.moved(ridge.solution(regression.rows))[regression.noisy]
        self.risk = float(
            regression.scale * self.degrees_of_freedom / regression.count + shift.square().mean()
        )

    def _doubt(self) -> str:
        regression = self._regression
        if regression.is_doubtful and regression.misfit > 1.5 * regression.scale:
            return (
                f"the fit is far from its end: the mean square of residual / sigma is "
                f"{regression.misfit:.2f}, and {regression.scale:.2f} if it were led there, not 1. "
                "Train on, before anything is said of sigma or the model."
            )
        if regression.is_doubtful:
            return (
                f"the measurements do not fit the model within their errors: led to the end, the "
                f"mean square of residual / sigma is {regression.scale:.2f}, not 1. Either sigma "
                "is too small or the model is wrong; standard errors are "
                f"{math.sqrt(regression.scale):.2f} times wider for it, which does not help "
                "against a wrong model."
            )
        if regression.too_small:
            times = 1 / math.sqrt(regression.too_small)
            return (
                "the measurements fit the model better than their errors allow: led to the end, "
                f"the mean square of residual / sigma is {regression.too_small:.2g}, not 1. Either "
                f"sigma is about {times:.1f} times too large, and standard errors are too wide: "
                "declare a smaller one, or sigma_known=False; or neighbours have the same error."
            )
        if not regression.is_determined:
            return "the data do not determine all unknowns: standard errors are infinite."
        return ""

    def _of_unknowns(self) -> dict[str, Unknown]:
        linear = self._regression.parts(self._gradients)
        found = {}
        for i, (name, function) in enumerate(self._functions.items()):
            parts = Parts(*(part[i : i + 1] for part in linear))
            if self._replicas is not None:
                parts = self._replicas.parts(function, parts.unresolved)
            value = float(function().detach())
            numbers = (float(part[0]) for part in parts)
            found[name] = Unknown(value, float(parts.total[0]), *numbers)
        return found

    def _gradient(self, function: Callable[[], Tensor]) -> Tensor:
        """Of a function of the parameters, each entry: (q, P)."""
        with torch.enable_grad():
            rows = []
            for value in function().flatten():
                found: Sequence[Tensor | None] = [None] * len(self._params)
                if value.requires_grad:
                    found = torch.autograd.grad(
                        value, self._params, retain_graph=True, allow_unused=True
                    )
                ones = [None if g is None else g[None] for g in found]
                rows.append(joined_gradients(ones, self._params, 1))
        return torch.cat(rows).double()

    def _check_unmoved(self) -> None:
        pairs = zip(self._params, self._kept, strict=True)
        if not all(torch.equal(p.detach(), own) for p, own in pairs):
            raise RuntimeError(
                "The network has been trained since its error bars were made: call error_bars "
                "again."
            )

    def quantile(self, level: float = 0.95) -> float:
        """Standard errors to either side of an interval of this level.

        Student's with as many degrees of freedom as there are replicas, or, where sigma is an
        estimate, as the residuals leave.

        Raises:
            ValueError: the level is not between 0 and 1.
        """
        degrees = self._regression.student
        if self._replicas is not None:
            degrees = min(degrees, self._replicas.count)
        return quantile(level, degrees)

    def interval(self, level: float = 0.95) -> dict[str, tuple[float, float]]:
        """Low and high end of each unknown's interval.

        An unknown that is made of a single trained number, such as exp(v), has the interval of v,
        carried over: it stays positive.
        """
        self._check_unmoved()
        factor, found = self.quantile(level), {}
        for i, (name, unknown) in enumerate(self.unknowns.items()):
            width = factor * unknown.standard_error
            ends = unknown.value - width, unknown.value + width
            alone = self._gradients[i].nonzero().flatten()
            if len(alone) == 1 and math.isfinite(width):
                change = torch.zeros_like(self._gradients[i])
                change[alone] = width / self._gradients[i][alone].abs()
                both = []
                for sign in (-1, 1):
                    with moved(self._params, sign * change):
                        both.append(float(self._functions[name]().detach()))
                ends = min(both), max(both)
            found[name] = ends
        return found

    def __call__(self, points: Any) -> Array:
        """Standard errors of the network's outputs (n, m) at points (n, d).

        Raises:
            ValueError: the network cannot be evaluated there.
            RuntimeError: the network has been trained since.
        """
        return self.parts(points).total

    def parts(self, points: Any) -> Parts:
        """The three parts of the standard errors of the outputs at points, (n, m) each."""
        return self._of_points(points, None)

    def derivative(self, points: Any) -> Array:
        """Standard errors (n, m, d) of the outputs' derivatives by the coordinates, at points."""
        return self._of_points(points, Derivatives()).total

    def band(self, points: Any, level: float = 0.95) -> tuple[Array, Array]:
        """Low and high end, (n, m) each, of pointwise intervals of the outputs at points."""
        width, fit = self.quantile(level) * self(points), self._fit(points)
        return fit - width, fit + width

    def of(self, function: Callable[[], Any]) -> Array:
        """Standard errors of any differentiable function of the network and the unknowns.

        Args:
            function: takes nothing, evaluates the network as it is, and returns a tensor of q
                entries, in the graph.

        Returns:
            (q,) standard errors.
        """
        self._check_unmoved()
        made = _function(function)
        parts = self._regression.parts(self._gradient(made))
        if self._replicas is not None:
            parts = self._replicas.parts(made, parts.unresolved)
        return parts.total

    def _fit(self, points: Any) -> Array:
        found: Array = self._outputs(self._as_points(points)).double().cpu().numpy()
        return found

    def _as_points(self, points: Any) -> Tensor:
        own = next(p for p in self._net.parameters())
        found = torch.as_tensor(np.asarray(points) if not isinstance(points, Tensor) else points)
        if found.ndim != 2:
            raise ValueError(
                f"points must have the shape (n, d), one point a row; got {tuple(found.shape)}."
            )
        return found.detach().to(own)

    def _outputs(self, points: Tensor, by: Derivatives | None = None) -> Tensor:
        if by is None:
            with torch.no_grad():
                return self._net(points)  # type: ignore[no-any-return]
        return by.values(self._net, points)

    def _of_points(self, points: Any, by: Derivatives | None) -> Parts:
        self._check_unmoved()
        everything = self._as_points(points)
        found = []
        for chunk in torch.split(everything, POINTS):
            gradients = point_jacobian(self._net, self._params, chunk, by)
            shape = gradients.shape[:-1]
            linear = self._regression.parts(gradients.flatten(0, -2))
            if self._replicas is not None:

                def values(chunk: Tensor = chunk) -> Tensor:
                    return self._outputs(chunk, by)

                linear = self._replicas.parts(values, linear.unresolved)
            found.append([part.reshape(shape) for part in linear])
        return Parts(*map(np.concatenate, zip(*found, strict=True)))

    def as_dict(self, level: float = 0.95) -> dict[str, Any]:
        """All that is known of the unknowns, as plain numbers; what is not finite is None."""
        intervals = self.interval(level)
        return {
            "method": self.method,
            "level": level,
            "degrees_of_freedom": self.degrees_of_freedom,
            "misfit": self.misfit,
            "risk": self.risk,
            "doubt": self.doubt or None,
            "unknowns": {
                name: {
                    **{key: _finite(number) for key, number in unknown._asdict().items()},
                    "interval": [_finite(end) for end in intervals[name]],
                }
                for name, unknown in self.unknowns.items()
            },
            "covariance": [[_finite(x) for x in row] for row in self.covariance.tolist()],
        }

    def save(self, path: str | Path, points: Any = None, level: float = 0.95) -> None:
        """Write the unknowns to a ``.json``, or unknowns and field to a ``.npz``.

        Args:
            path: ends in .json or .npz.
            points: (n, d), where standard errors of the outputs are wanted (npz only).
            level: of the intervals.

        Raises:
            ValueError: the path ends in something else, or points are given for a .json.
        """
        path = Path(path)
        if path.suffix not in (".json", ".npz"):
            raise ValueError(f"{path}: error bars are written as .json or .npz.")
        if path.suffix == ".json":
            if points is not None:
                raise ValueError(f"{path}: a field at points is written as .npz.")
            path.write_text(json.dumps(self.as_dict(level), indent=2) + "\n")
            return
        intervals = self.interval(level)
        arrays: dict[str, Any] = {
            "method": np.array(self.method),
            "level": np.array(level),
            "names": np.array(list(self.unknowns), dtype=str),
            "values": np.array([u.value for u in self.unknowns.values()]),
            "standard_errors": np.array([u.standard_error for u in self.unknowns.values()]),
            "intervals": np.array(list(intervals.values())).reshape(-1, 2),
            "covariance": self.covariance,
        }
        if points is not None:
            errors, fit = self(points), self._fit(points)
            width = self.quantile(level) * errors
            arrays |= {"points": np.asarray(points), "standard_error": errors}
            arrays |= {"low": fit - width, "high": fit + width}
        np.savez(path, **arrays)

    def __str__(self) -> str:
        intervals = self.interval()
        lines = [
            statement(name, u.value, u.standard_error, intervals[name])
            for name, u in self.unknowns.items()
        ]
        count = "" if self._replicas is None else f" ({self._replicas.count})"
        lines.append(
            f"{self.method}{count}: {self.degrees_of_freedom:.1f} degrees of freedom fitted to "
            f"{self._regression.count} measurements, misfit {self.misfit:.2f}"
        )
        return "\n".join([*lines, *([f"in doubt: {self.doubt}"] if self.doubt else [])])


def _finite(number: float) -> float | None:
    return float(number) if math.isfinite(number) else None


def _function(what: Any) -> Callable[[], Tensor]:
    """An unknown as a function that gives it as a tensor."""

    def value() -> Tensor:
        found = what() if callable(what) and not isinstance(what, Tensor) else what
        return torch.as_tensor(found)

    return value


def error_bars(
    model: Any,
    rows: Callable[[Any], Any] | None = None,
    *,
    unknowns: Mapping[str, Any] | None = None,
    variables: Sequence[Tensor] = (),
    method: str = "linear",
    replicas: int = 32,
    sigma_known: bool = True,
    seed: int = 0,
) -> ErrorBars:
    """How sure is a fit? Standard errors of its unknowns, its field, and its derivatives.

    The formulas, with their sources, are in :mod:`sciml_snr.measure.error_bars`. It takes one
    Jacobian and some Cholesky decompositions: seconds for some thousand rows.

    Args:
        model: a trained ``deepxde.Model``; or a network, with ``rows``.
        rows: of a network: a function that is given the network and returns its residual rows, as
            for :meth:`sciml_snr.SNRGaussNewton.step`: a list of :class:`sciml_snr.NoisyRows` and
            of tensors, exact ones.
        unknowns: name -> a trained variable outside the network, or a function without arguments
            that returns a tensor made of such variables, or of the network. Of a DeepXDE model by
            default its external trainable variables.
        variables: of a network: the trained variables outside it that ``rows`` uses, where
            unknowns are functions of them.
        method: ``"linear"``, or ``"replicas"``: the measurements' errors are followed by fits to
            data with fresh errors, instead of derivatives.
        replicas: number of these.
        sigma_known: False: sigma is an estimate, and its own uncertainty counts.
        seed: of the replicas' errors.

    Raises:
        ValueError: there are no measurements whose error is known; the model's residuals do not
            belong to single points; there are too many rows; an argument is out of range.
        FloatingPointError: a residual or derivative is not finite.

    Example:
        >>> bars = sciml_snr.error_bars(model, unknowns={"k": k})
        >>> print(bars)
        k = 0.713 +- 0.031 (95 %: 0.65 to 0.77)
        >>> bars(points), bars.derivative(points), bars.interval(0.9)["k"]
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}; got {method!r}.")
    if not (isinstance(replicas, int) and replicas >= 2):
        raise ValueError(f"replicas must be a whole number, 2 or more; got {replicas!r}.")
    options: dict[str, Any] = dict(
        method=method, replicas=replicas, sigma_known=sigma_known, seed=seed
    )
    if not isinstance(model, nn.Module):
        if not (hasattr(model, "net") and hasattr(model, "data")):
            raise TypeError(
                "error_bars takes a deepxde.Model, or a torch network with its rows; got "
                f"{model!r}."
            )
        if rows is not None or variables:
            raise ValueError("A deepxde.Model has rows and variables of its own: leave them out.")
        from ..deepxde.error_bars import parts_of

        return ErrorBars(*parts_of(model, unknowns), **options)
    if rows is None:
        raise ValueError(
            "Give a network together with its rows: error_bars(net, lambda net: "
            "[sciml_snr.NoisyRows(net(x) - y, sigma)])."
        )
    named = dict(unknowns or {})
    every = [*(value for value in named.values() if isinstance(value, Tensor)), *variables]
    free = list({id(p): p for p in every}.values())
    inside = [p for p in model.parameters() if p.requires_grad]
    params: list[Tensor] = list({id(p): p for p in [*inside, *free]}.values())
    closure = rows
    residuals = ClosureRows(lambda: closure(model), params)
    check_rows(residuals, params)
    return ErrorBars(model, residuals, residuals.system(), params, named, free, **options)


def check_rows(residuals: Residuals, params: Sequence[Tensor]) -> None:
    """Refuse more rows than there is memory and time for.

    Raises:
        ValueError: says how many there are, or what it would take.
    """
    rows = len(residuals.rows())
    if rows > MAX_ROWS:
        raise ValueError(
            f"There are no error bars of {rows} residual rows: a matrix of {rows} x {rows} would "
            f"have to be decomposed several times. Up to {MAX_ROWS} are taken."
        )
    check_size(rows, sum(p.numel() for p in params))
