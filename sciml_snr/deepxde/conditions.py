"""DeepXDE conditions that know the error of their values."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np
import torch
from deepxde.icbc import BC, IC, DirichletBC, NeumannBC, PointSetBC, PointSetOperatorBC, RobinBC

from ..measure.twins import as_array
from ..terms import check_sigma

MEASURED = (PointSetBC, PointSetOperatorBC)
"""Conditions that compare with values at points of the user's."""

_VALUES = (PointSetBC.error, DirichletBC.error, IC.error)
"""The residuals that are outputs minus values."""


class Mark(NamedTuple):
    """What a residual of a noisy condition carries with it: where it comes from."""

    condition: Any
    inputs: Any
    outputs: Any
    beg: int
    end: int


def mark_of(*tensors: Any) -> Mark | None:
    """The mark of the first of these tensors that has one."""
    found = (getattr(tensor, "sciml_snr_mark", None) for tensor in tensors)
    return next((mark for mark in found if mark is not None), None)


class NoisyCondition:
    """Mixed into a condition class: its values carry an error, and its residuals say whose they
    are, so that the loss function knows the error."""

    sigma: torch.Tensor
    """Standard deviation of the error: (1 or n, 1 or m)."""

    def error(
        self, X: Any, inputs: Any, outputs: Any, beg: int, end: int, aux_var: Any = None
    ) -> Any:
        """As in DeepXDE."""
        check_components(self, outputs)
        own: Any = super()
        # A user's condition may not know of aux_var.
        more = () if aux_var is None else (aux_var,)
        residual = own.error(X, inputs, outputs, beg, end, *more)
        check_columns(self, residual)
        residual.sciml_snr_mark = Mark(self, inputs, outputs, int(beg), int(end))
        return residual

    @property
    def compares_values(self) -> bool:
        """Whether the residuals are outputs of the network minus values, and nothing else."""
        kind = next(c for c in type(self).__mro__ if "error" in vars(c) and c is not NoisyCondition)
        return vars(kind)["error"] in _VALUES

    def components(self) -> list[int]:
        """The output components that are compared."""
        component = getattr(self, "component", 0)
        return list(component) if isinstance(component, (list, tuple)) else [component]


class NoisyPointSetBC(NoisyCondition, PointSetBC):  # type: ignore[misc]
    """A ``dde.icbc.PointSetBC`` whose values carry a measurement error.

    With one of these among a model's conditions, ``compile("snr_adam")`` and
    ``compile("snr_soap")`` gate every parameter against the gradient that this error alone would
    give it; see :class:`sciml_snr.NoisyLoss`. Under any other optimizer it is a ``PointSetBC``.

    Args:
        points: (n, d) array of points.
        values: scalar, or (n, m) or (1, m) array, of measured values of m components.
        sigma: standard deviation of their error, in their units: a number (or a
            :class:`sciml_snr.SigmaEstimate`), one per component (m,) or (1, m), one per point (n,)
            or (n, 1), or (n, m). Or ``"estimate"``: by
            :func:`sciml_snr.estimate_sigma_scattered`.
        component, batch_size, shuffle: as for ``PointSetBC``.

    Raises:
        ValueError: sigma is negative, not finite or of a shape that does not fit, or points or
            values are not finite or have no column per coordinate or component.
    """

    def __init__(
        self,
        points: Any,
        values: Any,
        sigma: Any,
        component: int | list[int] | tuple[int, ...] = 0,
        batch_size: int | None = None,
        shuffle: bool = True,
    ) -> None:
        component = list(component) if isinstance(component, (list, tuple)) else component
        super().__init__(points, values, component, batch_size, shuffle)
        self.values: torch.Tensor
        self.sigma = sigma_of_points(self, sigma)


def noisy(condition: Any, sigma: Any) -> Any:
    """A condition whose values carry an error; the given one stays as it is.

    Args:
        condition: any of DeepXDE's, or one of your own: with measured values (``PointSetBC``,
            ``PointSetOperatorBC``), or with a function of the points (``DirichletBC``,
            ``NeumannBC``, ``RobinBC``, ``OperatorBC``, ``IC``, ...).
        sigma: standard deviation of the values' error, in their units: as for
            :class:`NoisyPointSetBC`; one number for conditions with a function.

    Returns:
        A condition of the same kind.

    Raises:
        ValueError: sigma does not fit, or the condition knows its error already, or its
            ``error`` is not that of its class.
        TypeError: it is no condition.

    Example:
        >>> flux = sciml_snr.noisy(dde.icbc.PointSetOperatorBC(x, q, heat_flux), sigma=2.0)
    """
    if not callable(getattr(condition, "error", None)):
        raise TypeError(f"noisy() takes a DeepXDE condition, not {condition!r}.")
    if isinstance(condition, NoisyCondition):
        raise ValueError(f"This {type(condition).__name__} knows its error already.")
    if "error" in vars(condition):
        raise ValueError(
            f"This {type(condition).__name__} had its error() replaced, whose residuals could "
            "not be told: define a subclass with the other error() instead."
        )
    found = _remade(type(condition), vars(condition))
    if isinstance(getattr(found, "component", None), tuple):
        found.component = list(found.component)
    if isinstance(condition, MEASURED):
        found.sigma = sigma_of_points(found, sigma)
        return found
    if isinstance(sigma, str):
        raise ValueError(
            f"sigma={sigma!r}: an error can be estimated from measured values only "
            "(PointSetBC, PointSetOperatorBC). Give a number."
        )
    found.sigma = as_sigma(sigma, 1, 1)
    return found


@functools.cache
def _noisy_class(kind: type) -> type:
    """The class of a condition with :class:`NoisyCondition` mixed in."""
    made = type(
        f"Noisy{kind.__name__}",
        (NoisyCondition, kind),
        {"__doc__": kind.__doc__, "__module__": __name__, "__reduce_ex__": _reduce_noisy},
    )
    return made


def _reduce_noisy(self: Any, _: Any) -> Any:
    return _remade, (type(self).__mro__[2], self.__dict__)


def _remade(kind: type, attributes: dict[str, Any]) -> Any:
    """What :func:`noisy` returns, and its copies and pickles."""
    made: Any = object.__new__(_noisy_class(kind))
    made.__dict__.update(attributes)
    return made


def conditions_of(data: Any) -> list[Any]:
    """Initial and boundary conditions, and measurements, of a DeepXDE data object."""
    return list(getattr(getattr(data, "pde", None), "bcs", getattr(data, "bcs", ())))


def measurements_of(data: Any) -> list[Any]:
    """The conditions that compare with values at points of the user's."""
    return [condition for condition in conditions_of(data) if isinstance(condition, MEASURED)]


def equations_of(data: Any) -> Any:
    """The function of the equations of a DeepXDE data object, or None."""
    pde = getattr(data, "pde", None)
    return getattr(pde, "pde", pde)


def is_supervised(data: Any) -> bool:
    """Whether the loss compares with targets, and nothing else."""
    physics = hasattr(data, "bcs") or hasattr(data, "pde")
    return not physics and getattr(data, "train_y", None) is not None


def components_of(condition: Any) -> int:
    """Number of output components that a condition on a set of points compares."""
    component = getattr(condition, "component", 0)
    return len(component) if isinstance(component, (list, tuple)) else 1


def check_components(condition: Any, outputs: Any) -> None:
    """Refuse a component that the network does not have.

    Raises:
        ValueError: names it. (DeepXDE would train on an empty mean, NaN.)
    """
    if outputs is None or outputs.ndim < 2 or not isinstance(condition, (PointSetBC, BC, IC)):
        return
    for component in condition.components():
        if not 0 <= component < outputs.shape[1]:
            raise ValueError(
                f"component={component} of a {type(condition).__name__}, but the network has "
                f"{outputs.shape[1]} output(s), counted from 0."
            )


def check_columns(condition: Any, residual: Any) -> None:
    """Refuse residuals of each output with each value.

    Raises:
        ValueError: says where a column is missing. (DeepXDE would train on their mean.)
    """
    kinds = (*MEASURED, DirichletBC, NeumannBC, RobinBC, IC)
    if isinstance(condition, kinds) and residual.ndim == 2:
        columns = components_of(condition)
        if residual.shape[1] > columns:
            raise ValueError(
                f"The residuals of a {type(condition).__name__} have the shape "
                f"{tuple(residual.shape)}, but it compares {columns} component(s): its function "
                "has to give columns, (n, 1), by y[:, None]."
            )


def check_measurements(condition: Any) -> None:
    """Refuse points and values that do not belong together; a batch gets its rows of one value.

    Raises:
        ValueError: names what is wrong. (DeepXDE would compare each value with each.)
    """
    points, values, components = condition.points, condition.values, components_of(condition)
    shape = tuple(values.shape)
    if len(shape) < 2 and values.numel() in (1, components):
        shape = (1, components)
    if points.ndim != 2 or shape not in ((1, components), (len(points), components)):
        raise ValueError(
            f"points {points.shape} must be (n, d), and values {tuple(values.shape)} "
            f"a number, ({len(points)}, {components}) or (1, {components}), a column per "
            "component: one-dimensional arrays become columns by x[:, None]."
        )
    if getattr(condition, "batch_size", None) is not None:  # DeepXDE takes a batch's rows of them
        condition.values = values.expand(len(points), components)
    for name, given in (("points", points), ("values", as_array(values))):
        wrong = ~np.isfinite(given)
        if wrong.any():
            raise ValueError(
                f"{name} must be finite, but {wrong.sum()} of their {wrong.size} numbers are "
                "not: leave such measurements out."
            )


def sigma_of_points(condition: Any, sigma: Any) -> torch.Tensor:
    """The error of a condition on a set of points, given or to be estimated.

    Raises:
        ValueError: as for :func:`as_sigma`; it cannot be estimated; or points and values do not
            belong together.
    """
    check_measurements(condition)
    components = components_of(condition)
    if isinstance(sigma, str):
        if sigma != "estimate":
            raise ValueError(f'sigma must be a number, an array or "estimate", got {sigma!r}.')
        from ..sigma import estimate_sigma_scattered

        values = np.broadcast_to(as_array(condition.values), (len(condition.points), components))
        sigma = estimate_sigma_scattered(as_array(condition.points), values)
    return as_sigma(sigma, len(condition.points), components)


def as_sigma(sigma: Any, points: int, components: int) -> torch.Tensor:
    """A standard deviation as a tensor (1 or points, 1 or components).

    Raises:
        ValueError: it is no number, negative, not finite or of a shape that does not fit.
    """
    found = _checked(sigma)
    if found.ndim == 1 and len(found) == components > 1:
        if points == components:
            raise ValueError(
                f"sigma has {len(found)} entries for {points} points of {components} components: "
                "give (1, m) for one per component, or (n, 1) for one per point."
            )
        found = found[None, :]
    found = found.reshape(-1, 1) if found.ndim < 2 else found
    if found.ndim > 2 or found.shape[1] not in (1, components) or len(found) not in (1, points):
        raise ValueError(
            f"sigma has the shape {tuple(np.shape(as_array(sigma)))} for {points} points and "
            f"{components} component(s): give one number, one per point, or one per value."
        )
    return found


def _checked(sigma: Any) -> torch.Tensor:
    """A number or an array of any shape as a tensor."""
    if isinstance(sigma, torch.Tensor):
        sigma = sigma.detach().cpu().double().numpy()
    try:
        given = np.asarray(sigma)
        if given.dtype.kind not in "biuf":
            raise TypeError
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"sigma must be a number or an array of numbers, got {sigma!r}."
        ) from error
    found = torch.as_tensor(given, dtype=torch.get_default_dtype())
    check_sigma(found)
    return found


def check_points(data: Any) -> None:
    """Refuse data with a condition that has no points: the mean of its losses is NaN.

    Args:
        data: of a DeepXDE model; without conditions, nothing is checked.

    Raises:
        ValueError: names the condition, and what gives it points.
    """
    conditions = list(getattr(data, "bcs", None) or ())
    sizes = list(getattr(data, "num_bcs", None) or ())
    for i, (condition, size) in enumerate(zip(conditions, sizes, strict=False)):
        if size == 0:
            raise ValueError(
                f"Condition {i + 1} of {len(conditions)} ({type(condition).__name__}) has no "
                "points, and its loss would be NaN. Conditions take the points that num_boundary "
                "(with GeometryXTime, initial conditions: num_initial) and anchors lay where they "
                "hold: set it where the data are made, as num_boundary = 2 in a problem's file."
            )
