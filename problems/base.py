"""What a problem with noisy measurements consists of, and what every such problem shares."""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import deepxde as dde
import numpy as np
import torch
from numpy.typing import NDArray

from sciml_snr.deepxde import NoisyPointSetBC
from sciml_snr.deepxde.conditions import check_points
from sciml_snr.measure.twins import memorized_share
from sciml_snr.sigma import SigmaEstimate

from .measurements import Observations as Observations
from .measurements import read_measurements, scatter_sigma
from .shapes import box, grid
from .units import (
    check_resolution,
    checked_domain,
    scale_network,
    scaled_weights,
    starting_guesses,
)

Array = NDArray[np.floating[Any]]
Predict = Callable[[Array], Array]
"""A field: points (n, d) -> outputs (n, m), both in the problem's own units."""

OUTLIER_SCALE = 10.0
"""Standard deviation of an outlier's error, in sigmas."""


class Problem(ABC):
    """A differential equation with noisy measurements: what to train, and what to compare with.

    A subclass states the equation in DeepXDE's terms: ``ranges``, ``outputs`` and :meth:`residual`,
    and what its case needs of the rest; see ``problems/template.py``. Networks are trained on
    *encoded* outputs (:meth:`encode`; the identity unless a problem says otherwise); everything
    else here, from observations to metrics, is in the problem's own units.

    Args:
        points: number of synthetic measurements.
        noise: standard deviation of their error, in encoded units.
        seed: seed of the measurements' positions and errors.
        outliers: share of the synthetic measurements that are outliers: their errors are
            ``OUTLIER_SCALE`` times as large, while sigma is stated as for all others.
        observations: the user's own measurements instead of the problem's, or a CSV file with them
            (see :meth:`read`). Network and loss weights are then scaled to their units, where
            ``ranges`` says what the problem's own are (:mod:`sciml_snr.problems.units`).
        domain: with own measurements, (lowest, highest) of coordinates, in place of ``ranges``.
        guesses: where the training of unknowns starts, in place of the class's ``guesses``.
        num_domain: points at which the equation is imposed. Where the solution is steep or fine,
            more of them help, and cost time.

    Raises:
        ValueError: an argument is out of range, or the measurements cannot be used.
        FileNotFoundError: there is no such CSV file.
    """

    name: ClassVar[str]
    equation: ClassVar[str] = ""
    """One line, for tables."""
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {}
    """Lowest and highest value of each coordinate, where own measurements may have others. Empty
    where the problem is bound to its domain."""
    coordinates: ClassVar[tuple[str, ...]]
    """Unless stated, those of ``ranges``; the time, if there is one, last."""
    outputs: ClassVar[tuple[str, ...]]
    lr: ClassVar[float] = 3e-3
    """Default learning rate."""
    iterations: ClassVar[int] = 8000
    """Default budget."""
    synthetic: ClassVar[bool] = True
    """Whether measurements are drawn (``points``, ``noise``, ``seed``), or real data ship along."""
    points: ClassVar[int] = 100
    """Default number of measurements."""
    noise: ClassVar[float | None] = None
    """Default standard deviation of their error; None: estimated."""
    unknown_names: ClassVar[tuple[str, ...]] = ()
    """Unknown physical parameters."""
    guesses: ClassVar[Mapping[str, float]] = {}
    """Where the training of positive unknowns starts: see :meth:`unknown`."""
    guess_units: ClassVar[Mapping[str, Mapping[str, float]]] = {}
    """Units of the guesses, as powers of those of coordinates and outputs: a diffusivity has
    ``{"x": 2, "t": -1}``. Guesses that are listed here are scaled to own measurements' units."""
    example_constants: ClassVar[tuple[str, ...]] = ()
    """Arguments that are of the synthetic measurements and the reference alone."""
    network_scale: ClassVar[float] = 1.0
    """Size of what the default network gives."""
    measured: ClassVar[tuple[str, ...]]
    """Outputs that are measured, the first of ``outputs``; unless stated, all."""
    scored: ClassVar[tuple[str, ...]]
    """Outputs whose error is ``relative_l2``; unless stated, all."""
    outliers: float = 0.0
    width: ClassVar[int] = 32
    """Neurons in each of the default network's three hidden layers."""
    num_domain: int = 0
    """Points inside the domain at which the equation is imposed."""
    num_boundary: ClassVar[int] = 0
    """Points of the boundary, for conditions and equation."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if cls.ranges and not hasattr(cls, "coordinates"):
            cls.coordinates = tuple(cls.ranges)
        if hasattr(cls, "outputs"):
            cls.measured = getattr(cls, "measured", cls.outputs)
            cls.scored = getattr(cls, "scored", cls.outputs)

    def __init__(
        self,
        *,
        points: int | None = None,
        noise: float | None = None,
        seed: int = 0,
        observations: Observations | str | Path | None = None,
        outliers: float | None = None,
        domain: Mapping[str, tuple[float, float]] | None = None,
        guesses: Mapping[str, float] | None = None,
        num_domain: int | None = None,
    ) -> None:
        if num_domain is not None:
            if not self.num_domain:
                raise ValueError(f"{self.name} has no num_domain: it says itself where it holds.")
            if not isinstance(num_domain, int) or num_domain < 1:
                raise ValueError(f"num_domain must be a whole number, 1 or more; got {num_domain}.")
            self.num_domain = num_domain
        if points is not None and points < 1:
            raise ValueError(f"points must be at least 1, got {points}.")
        if noise is not None and not (noise >= 0 and math.isfinite(noise)):
            raise ValueError(f"noise must be a finite number >= 0, got {noise}.")
        if points is not None and not self.synthetic:
            raise ValueError(f"{self.name} has real data: the number of points cannot be chosen.")
        if points is not None and observations is not None:
            raise ValueError("points is the number of synthetic measurements; own data were given.")
        if outliers is not None:
            if not 0 <= outliers < 1:
                raise ValueError(f"outliers must be a share in [0, 1), got {outliers}.")
            if observations is not None or not self.synthetic:
                raise ValueError("outliers is a share of synthetic measurements: leave it out.")
            self.outliers = outliers
        self.seed = seed
        self.is_own = observations is not None
        """Whether the measurements are the user's own; then nothing is known of a truth."""
        self._own_domain = checked_domain(self, domain or {})
        self.unknowns = {name: dde.Variable(0.0) for name in self.unknown_names}
        if isinstance(observations, (str, Path)):
            observations = self.read(observations)
        if observations is None:
            rng = np.random.default_rng(seed)
            observations = self.observe(
                rng,
                self.points if points is None else points,
                self.noise if noise is None else noise,
            )
        if observations.sigma is not None and noise is not None and observations.clean is None:
            raise ValueError("The measurements have a sigma of their own: leave out noise.")
        self.observations = observations.with_sigma(noise)
        self.is_own = self.is_own and observations.clean is None
        if self.is_own:
            check_resolution(self.domain)
        self.starts = starting_guesses(self, guesses or {})
        """Where the training of positive unknowns starts."""

    # What a problem states.

    @property
    def domain(self) -> Mapping[str, tuple[float, float]]:
        """Lowest and highest value of each coordinate."""
        return {**self.ranges, **self._own_domain}

    def geometry(self) -> Any:
        """The domain as a DeepXDE geometry: a box, with time where the last coordinate is t."""
        return box(self.domain)

    @abstractmethod
    def residual(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        """Residual of the equation(s): x (n, d), network outputs y (n, m) -> (n, 1) each."""

    def observe(self, rng: np.random.Generator, points: int, noise: float | None) -> Observations:
        """Draw synthetic measurements, or load the real ones.

        Raises:
            ValueError: there are none.
        """
        raise ValueError(f"{self.name} has no measurements: give your own (--data FILE.csv).")

    def reference(self, points: Array) -> Array:
        """Reference solution (n, m) at points (n, d), or the best fit known where no truth is.

        Raises:
            ValueError: there is none.
        """
        raise ValueError(f"{self.name} has no reference solution.")

    @property
    def knows_truth(self) -> bool:
        """Whether there is a reference to compare the fit with."""
        return not self.is_own and type(self).reference is not Problem.reference

    def evaluation_points(self) -> Array:
        """(n, d) points at which errors are measured and figures drawn: a full :func:`grid`."""
        counts = {1: (201,), 2: (101, 51), 3: (26, 26, 6)}.get(len(self.coordinates), ())
        if not counts:
            raise ValueError(f"{self.name} has more than three coordinates: say evaluation_points.")
        sides = zip(self.domain.values(), counts, strict=True)
        return grid(*(np.linspace(low, high, count) for (low, high), count in sides))

    def network(self) -> Any:
        """A fresh network of the default size, on coordinates scaled to [-1, 1]."""
        layers = [len(self.coordinates)] + [self.width] * 3 + [len(self.outputs)]
        net = dde.nn.FNN(layers, "tanh", "Glorot normal")
        ranges = self.ranges or self.domain  # own domains are scaled to these by model()
        lows, highs = torch.tensor(list(ranges.values()), dtype=torch.get_default_dtype()).T
        net.apply_feature_transform(lambda x: 2 * (x - lows) / (highs - lows) - 1)
        return net

    def data(self) -> Any:
        """Points, residual, conditions and measurements as DeepXDE data."""
        return dde.data.PDE(
            self.geometry(),
            self.residual,
            [*self.conditions(), *self.measurement_conditions()],
            num_domain=self.num_domain,
            num_boundary=self.num_boundary,
        )

    def conditions(self) -> list[Any]:
        """Exact boundary and initial conditions (none by default)."""
        return []

    def loss_weights(self) -> list[float] | None:
        """One weight per term, in DeepXDE's order: residuals, conditions, measurements.

        In the problem's own units; see :meth:`weights`.
        """
        return None

    def weights(self) -> list[float] | None:
        """:meth:`loss_weights` in the units of the measurements: what to compile a model with."""
        return scaled_weights(self)

    def unmeasured_sizes(self, sizes: Mapping[str, float]) -> dict[str, float]:
        """How large the outputs are that are not measured.

        Args:
            sizes: standard deviations of those that are, encoded.
        """
        return dict.fromkeys(self.outputs[len(self.measured) :], 1.0)

    def unknown_values(self, predict: Predict | None = None) -> dict[str, float]:
        """Current values of the unknown parameters, in physical units.

        Args:
            predict: the fit, for unknowns that are read off it, such as an initial state.

        ``self.unknowns`` maps their names to trainable ``dde.Variable`` that start at 0; a problem
        that trains something else than :meth:`unknown` makes of them says so here.
        """
        return {name: float(self.unknown(name).detach()) for name in self.unknown_names}

    def unknown(self, name: str) -> torch.Tensor:
        """An unknown that is positive: its logarithm is trained, from ``starts[name]``.

        Raises:
            KeyError: the problem has no such unknown; says which it has.
        """
        if name not in self.unknowns:
            has = ", ".join(map(repr, self.unknowns)) or "none"
            raise KeyError(
                f"{type(self).__name__} has no unknown {name!r}, it has {has}: unknown_names and "
                "guesses say which there are."
            )
        return self.starts[name] * torch.exp(self.unknowns[name])

    def unknown_functions(self, model: dde.Model) -> dict[str, Callable[[], torch.Tensor]]:
        """The same as :meth:`unknown_values`, each as a function that gives a tensor in the graph:
        for :func:`sciml_snr.error_bars`.

        Args:
            model: the fit, for unknowns that are read off it.
        """
        return {name: functools.partial(self.unknown, name) for name in self.unknown_names}

    def truth(self) -> dict[str, float]:
        """True values of the unknown parameters, or the reference fit's."""
        return {}

    def encode(self, values: Array) -> Array:
        """Outputs in the problem's units -> what the network is trained to give."""
        return values

    def decode(self, encoded: Array) -> Array:
        """The inverse of :meth:`encode`."""
        return encoded

    def estimate_sigma(self) -> tuple[SigmaEstimate, ...]:
        """Standard deviation of the measurements' error where it was not given, encoded: one for
        each measured output, or one for all.

        Raises:
            ValueError: it cannot be estimated; says why.
        """
        return scatter_sigma(self.observations.points, self.encode(self.observations.values))

    # What all problems share.

    def scattered(self, rng: np.random.Generator, points: int) -> Array:
        """(points, d) uniform on the domain."""
        lows, highs = np.array(list(self.domain.values())).T
        return rng.uniform(lows, highs, (points, len(lows)))

    def measure(
        self,
        rng: np.random.Generator,
        x: Array,
        noise: float | None,
        truth: Array | None = None,
    ) -> Observations:
        """Measure at x (n, d), with independent normal errors and the outliers.

        Args:
            rng, x, noise: see :meth:`observe`.
            truth: (n, k) what is measured; the reference unless given.
        """
        assert noise is not None
        clean = self.reference(x)[:, : len(self.measured)] if truth is None else truth
        error = rng.normal(size=clean.shape)
        if self.outliers:
            wild = rng.choice(len(x), round(self.outliers * len(x)), replace=False)
            error[wild] *= OUTLIER_SCALE
        values = self.decode(self.encode(clean) + noise * error)
        return Observations(x, values, np.full((len(x), 1), noise), clean)

    @cached_property
    def sigma_estimate(self) -> tuple[SigmaEstimate, ...] | str:
        """:meth:`estimate_sigma`, or why there is none."""
        try:
            return self.estimate_sigma()
        except ValueError as error:
            return str(error)

    def sigma(self) -> Array | None:
        """(n, 1) or (n, k) standard deviation of the measurements' error: as given, or as
        estimated; None where it is neither."""
        if self.observations.sigma is not None:
            return self.observations.sigma
        found = self.sigma_estimate
        if isinstance(found, str):
            return None
        return np.tile([float(estimate) for estimate in found], (len(self.observations), 1))

    def measurement_conditions(self) -> list[Any]:
        """The measurements as DeepXDE conditions, one per measured output."""
        points, encoded = self.observations.points, self.encode(self.observations.values)
        sigma = self.sigma()
        columns = [(i, encoded[:, i : i + 1]) for i in range(len(self.measured))]
        if sigma is None:
            return [dde.icbc.PointSetBC(points, column, component=i) for i, column in columns]
        errors = np.array(np.broadcast_to(sigma, encoded.shape))  # a copy that can be written to
        return [
            NoisyPointSetBC(points, column, errors[:, i : i + 1], component=i)
            for i, column in columns
        ]

    def clean_of_conditions(self) -> Array | None:
        """(N,) the noisy conditions' values without error, one after the other, where known."""
        clean = self.observations.clean
        return None if clean is None else self.encode(clean).T.ravel()

    def model(self, network: Any | None = None) -> dde.Model:
        """An uncompiled model on a fresh network (or the given one).

        With own measurements the network's inputs and outputs are scaled to their units.

        Raises:
            ValueError: a condition has no points.
        """
        network = self.network() if network is None else network
        scale_network(network, self)
        data = self.data()
        check_points(data)
        return dde.Model(data, network)

    def predict(self, model: dde.Model, points: Array) -> Array:
        """The model's outputs (n, m) at points (n, d), in the problem's units."""
        return self.decode(np.asarray(model.predict(points)))

    def fit_of_measured(self, predict: Predict) -> Array:
        """(n, k) a field where and in what the measurements were taken, encoded."""
        return self.encode(predict(self.observations.points)[:, : len(self.measured)])

    @cached_property
    def _evaluation(self) -> tuple[Array, Array]:
        """The evaluation points and the reference there."""
        points = self.evaluation_points()
        return points, self.reference(points)

    def relative_l2(self, predict: Predict, outputs: tuple[str, ...]) -> float:
        """Relative L2 error of some outputs of a field over the evaluation points."""
        columns = [self.outputs.index(name) for name in outputs]
        points, reference = self._evaluation
        truth = np.take(reference, columns, axis=1)
        error = np.take(predict(points), columns, axis=1) - truth
        return float(np.linalg.norm(error) / np.linalg.norm(truth))

    def metrics(self, predict: Predict) -> dict[str, float]:
        """Errors of a field: ``relative_l2`` of what is scored, and one of each unknown.

        With a clean truth at the measurements, also ``memorized``: see
        :func:`sciml_snr.memorized_share`.
        """
        result = {"relative_l2": self.relative_l2(predict, self.scored)}
        observed = self.observations
        if observed.clean is not None and not np.array_equal(observed.values, observed.clean):
            result["memorized"] = memorized_share(
                self.fit_of_measured(predict),
                self.encode(observed.clean),
                self.encode(observed.values),
            )
        values = self.unknown_values(predict)
        for name, true in self.truth().items():
            result[f"{name}_relative_error"] = abs(values[name] - true) / abs(true)
        return result

    def read(self, path: str | Path, measured: tuple[str, ...] | None = None) -> Observations:
        """Measurements from a CSV file: see :func:`~sciml_snr.problems.measurements`.

        Args:
            path: the file.
            measured: columns other than the problem's own.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: see :func:`read_measurements`; or a value is outside the domain, or no
                possible value.
        """
        measured = self.measured if measured is None else measured
        return read_measurements(path, self.name, self.coordinates, measured, self._check_value)

    def _check_value(self, where: str, column: str, value: float) -> None:
        if column in self.domain:
            low, high = self.domain[column]
            slack = 1e-9 * (high - low)
            if not low - slack <= value <= high + slack:
                hint = f" Set another: --set domain.{column}=LOW,HIGH." if self.ranges else ""
                raise ValueError(
                    f"{where}: {value:g} is outside the domain [{low:g}, {high:g}].{hint}"
                )
        if column in self.measured and not np.isfinite(self._encoded(value)):
            raise ValueError(f"{where}: {value:g} is not a possible value of {column}.")

    def _encoded(self, value: float) -> float:
        with np.errstate(all="ignore"):
            return float(self.encode(np.full((1, len(self.measured)), value))[0, 0])


class SpaceTime(Problem):
    """A problem on an interval of x and one of t."""

    coordinates = ("x", "t")
    num_initial: ClassVar[int] = 0
    """Points of the first moment, for conditions and equation."""

    def initial(self, rng: np.random.Generator, points: int) -> Array:
        """(points, 2) uniform in x, at t = 0."""
        first = np.full((points, 1), self.domain["t"][0])
        return np.hstack([rng.uniform(*self.domain["x"], (points, 1)), first])

    def data(self) -> Any:
        return dde.data.TimePDE(
            self.geometry(),
            self.residual,
            [*self.conditions(), *self.measurement_conditions()],
            num_domain=self.num_domain,
            num_boundary=self.num_boundary,
            num_initial=self.num_initial,
        )
