"""A fitted field: its values, slopes and errors, in the user's units."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from ..jacobian import NoisyRows
from ..measure.error_bars import ErrorBars, error_bars
from ..measure.local_risk import WHOLE, LocalBars
from ..measure.twins import TAU, Twins
from ..runs.folder import readable
from ..runs.options import FitOptions
from .archive import (
    NetworkChoice,
    load_fit,
    save_fit,
    saved_choice,
    sigma_from_json,
    sigma_to_json,
)
from .fit import Objective, Training, check_kept, fits_of_twins
from .function import Array, Field, Units
from .function_fit import FunctionFit, saved_network
from .objective import OperatorObjective, of_samples
from .samples import Operator, Samples, as_rows, check_finite, numbers, on_device

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def objective_of(
    samples: Samples, units: Units, operator: Operator | None, options: FitOptions
) -> Objective:
    """What a network is fitted to."""
    device = options.torch_device
    if operator is None:
        return of_samples(samples, units, options.batch_size, device)
    return OperatorObjective(samples, units, operator, options.batch_size, device)


class FieldFit(FunctionFit):
    """A function: what :func:`fit_field` returns.

    Attributes:
        samples: the measurements: ``points``, ``values`` and ``sigma`` in the user's units, sigma
            as given or as estimated (:class:`sciml_snr.SigmaEstimate`).
        units: what is between the user's units and the network's.
        network: from points in about [-1, 1] to values of about 1.
        operator: what was measured of the field; None: its values.
        options: of the fit.
        training: steps taken, time, log; whether it was interrupted.
    """

    def __init__(
        self,
        samples: Samples,
        units: Units,
        choice: NetworkChoice,
        network: nn.Module,
        operator: Operator | None,
        options: FitOptions,
        training: Training,
    ) -> None:
        super().__init__(choice, network, options, training)
        self.samples = samples
        self.units = units
        self.operator = operator

    @property
    def sigma(self) -> tuple[float, ...] | Array:
        """Standard deviation of the measurements' errors, per output, or (n, m) per sample."""
        return self.samples.sigma

    @cached_property
    def module(self) -> Field:
        """The fit as a ``torch.nn.Module`` in the user's units: points (..., d) -> (..., m)."""
        return Field(self.network, self.units)

    def __call__(self, points: ArrayLike) -> Array:
        """Values of the fit.

        Args:
            points: (n, d); (n,) for one coordinate.

        Returns:
            (n, m), or (n,) where the samples' values were (n,), or an operator's field has one
            output.

        Raises:
            ValueError: the points are not of that shape, or not finite.
        """
        return self._outward(self.module.evaluate(self._points(points)))

    def gradient(self, points: ArrayLike) -> Array:
        """Derivatives of the fit by the coordinates, by automatic differentiation.

        Args:
            points: as for a call.

        Returns:
            (n, m, d), or (n, d) where values are (n,), in units of the values per coordinate.

        Raises:
            ValueError: as for a call.
        """
        found = self.module.gradient(self._points(points))
        return found[:, 0] if self._is_flat else found

    def render(self, grid: int | Sequence[Any]) -> Array:
        """The fit on a grid.

        Args:
            grid: per coordinate an array of positions, or how many, evenly from the lowest to the
                highest of the samples (or of the operator's box); one number for all coordinates.

        Returns:
            (n_1, ..., n_d), or (n_1, ..., n_d, m) where values are (n, m).

        Raises:
            ValueError: it is no such grid.
        """
        axes = self.grid_axes(grid)
        points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
        found = self(points.reshape(-1, len(axes)))
        return found.reshape(*points.shape[:-1], *found.shape[1:])

    def grid_axes(self, grid: int | Sequence[Any]) -> list[Array]:
        """The positions along each coordinate of :meth:`render`; raises as it."""
        low, high = self.samples.points.min(axis=0), self.samples.points.max(axis=0)
        entries = len(low) * [grid] if isinstance(grid, (int, np.integer)) else list(grid)
        if len(entries) != len(low):
            raise ValueError(f"grid must have an entry for each of {len(low)} coordinates.")
        axes = []
        for i, entry in enumerate(entries):
            if np.ndim(entry) == 0:
                if int(entry) != entry or entry < 1:
                    raise ValueError(f"grid must have positive whole numbers, got {entry}.")
                axis = np.linspace(low[i], high[i], int(entry))
            else:
                axis = numbers("grid", entry)
                check_finite("grid", axis)
                if axis.ndim != 1:
                    raise ValueError("grid must have one-dimensional arrays of positions.")
            axes.append(axis)
        return axes

    def predicted(self) -> Array:
        """What the fit makes of the measurements: (n, m), as ``samples.values`` has them."""
        if self.operator is None:
            return self.module.evaluate(self.samples.points)
        with torch.no_grad():
            return self._by_operator(self.network).double().cpu().numpy()

    def residual_rows(self, rows: ArrayLike | None = None) -> NoisyRows:
        """Prediction minus measurement, with the measurements' sigma, in the graph of the network.

        What error bars and degrees of freedom are made of: derivatives by
        ``fit.network.parameters()`` are those of the measurements.

        Args:
            rows: which of the measurements, by index; all by default. With an operator all are
                computed.

        Returns:
            Residual (k, m) and sigma, in units of the measurements.
        """
        values, sigma = self.samples.values, self.samples.sigma_array
        sigma = np.broadcast_to(sigma, values.shape)
        chosen = np.arange(len(values)) if rows is None else np.asarray(rows)
        if self.operator is None:
            at = torch.as_tensor(self.samples.points[chosen], device=self._device)
            found = self.module(at)
        else:
            found = self._by_operator(self.network)[torch.as_tensor(chosen, device=self._device)]
        residual = found - torch.as_tensor(values[chosen]).to(found)
        return NoisyRows(residual, sigma[chosen])

    def error_bars(self, *, probes: int = 1, progress: bool = True) -> LocalBars | ErrorBars:
        """How sure is the fit? Standard errors at any points, in the user's units.

        Of samples of the field by twins, which takes as long as the fit, once per probe: see
        :mod:`sciml_snr.measure.local_risk`. Of an operator's measurements by the fit's Jacobian:
        see :func:`sciml_snr.error_bars`; their outputs are (n, m) also where values are (n,).

        Args:
            probes: number of twins.
            progress: draw a progress bar.

        Returns:
            ``bars(points)``, ``bars.band(points, level)``, shaped as the fit's values;
            ``print(bars)``.

        Raises:
            ValueError: as for :meth:`memorization`; or an operator has too many measurements for
                the size of the network.
        """
        if self.operator is not None:
            return error_bars(self.module, lambda _: [self.residual_rows()])
        twins, own, fits = self._twins(probes, progress, WHOLE)
        samples = self.samples
        return LocalBars(
            samples.points,
            samples.values,
            own,
            samples.sigma_array,
            twins,
            fits,
            lambda points: self.module.evaluate(self._points(points)),
            self.units.length,
            outward=self._outward,
        )

    def _twins(
        self, probes: int, progress: bool, tau: float = TAU
    ) -> tuple[Twins, Array, list[Array]]:
        """Twins, the fit at the measurements, and that of each twin."""
        check_kept(self.training)
        sigma = self.samples.sigma_array
        if not sigma.any():
            raise ValueError("sigma is 0: there is no noise to memorize.")
        seed, units = self.options.seed, self.units
        twins = Twins(self.samples.values, sigma, probes=probes, tau=tau, seed=seed)

        def objective(labels: Array) -> Objective:
            samples = replace(self.samples, values=np.asarray(labels))
            return objective_of(samples, units, self.operator, self.options)

        own = self.predicted()  # refuses, before the work, what was loaded without its operator
        fits = fits_of_twins(
            twins,
            lambda: self.choice.build(len(units.center), len(units.mean), seed),
            objective,
            lambda network: replace_network(self, network).predicted(),
            self.options,
            self.training,
            progress,
        )
        return twins, own, fits

    def figure(self) -> Figure:
        """Fit and samples (of more than two coordinates a section), residuals, and the course."""
        from .figure import field_figure

        return field_figure(self)

    def save(self, path: str | Path) -> None:
        """Write samples, network and log into one ``.npz`` file, for :meth:`load`."""
        samples = self.samples
        is_plain = isinstance(samples.sigma, tuple)
        about = {
            "kind": "field",
            "units": asdict(self.units),
            "flat": samples.flat,
            "operator": self.operator is not None,
            "network": self.choice.name,
            "network_options": self.choice.options,
            "options": asdict(self.options),
            "sigma": [sigma_to_json(s) for s in samples.sigma] if is_plain else None,
            "training": asdict(self.training),
        }
        arrays = {"points": samples.points, "values": samples.values}
        if not is_plain:
            arrays["sigma"] = samples.sigma_array
        save_fit(path, json.loads(json.dumps(about)), self.network, arrays)

    @classmethod
    def load(
        cls,
        path: str | Path,
        network: nn.Module | None = None,
        operator: Operator | None = None,
    ) -> FieldFit:
        """Read what :meth:`save` wrote.

        Args:
            path: the file.
            network: where the fit's network was the user's own: the same one, as it was before the
                fit (weights do not matter unless :meth:`memorization` is asked for).
            operator: the fit's; needed for :meth:`memorization`, :meth:`figure` and what else asks
                for the measurements, not for the field itself.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is no saved field, or its network is missing or another one.
        """
        about, fields = load_fit(path, "field")
        with readable(Path(path)):
            told = about["sigma"]
            sigma = fields["sigma"] if told is None else tuple(map(sigma_from_json, told))
            samples = Samples(fields["points"], fields["values"], sigma, bool(about["flat"]))
            options = FitOptions(**{**about["options"], "device": None})
            training = Training.from_json(about["training"], path)
            units = Units.from_json(about["units"], path)
            choice = saved_choice(about, network, path)
            if about["operator"] and operator is None:
                operator = _Missing()
            if np.broadcast_shapes(samples.sigma_array.shape, samples.values.shape) != (
                samples.values.shape
            ):
                raise ValueError("sigma and values do not fit")
        fresh = saved_network(choice, len(units.center), len(units.mean), options, fields)
        return cls(samples, units, choice, fresh, operator, options, training)

    @property
    def _is_flat(self) -> bool:
        return self.samples.flat or (self.operator is not None and len(self.units.mean) == 1)

    def _outward(self, values: Array) -> Array:
        return values[:, 0] if self._is_flat else values

    def _points(self, points: ArrayLike) -> Array:
        found, d = numbers("points", points), len(self.units.center)
        found = found[:, None] if found.ndim == 1 and d == 1 else found
        if found.ndim != 2 or found.shape[1] != d:
            raise ValueError(f"points must be (n, {d}), got {np.shape(points)}.")
        check_finite("points", found)
        return found

    def _by_operator(self, network: nn.Module) -> Tensor:
        assert self.operator is not None
        operator = on_device(self.operator, self._device)
        return as_rows(operator(Field(network, self.units)), self.samples.values.shape)


def replace_network(fit: FieldFit, network: nn.Module) -> FieldFit:
    """The same fit with another network."""
    return FieldFit(
        fit.samples, fit.units, fit.choice, network, fit.operator, fit.options, fit.training
    )


class _Missing:
    """Stands for the operator of a fit that was loaded without it."""

    def __call__(self, field: Any) -> Tensor:
        raise ValueError("The fit was loaded without its operator: FieldFit.load(path, operator=).")
