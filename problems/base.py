"""What a problem with noisy measurements consists of, and what every such problem shares."""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import deepxde as dde
import numpy as np
import torch
from numpy.typing import NDArray

from sciml_snr.deepxde import NoisyPointSetBC
from sciml_snr.measure.twins import memorized_share
from sciml_snr.text_files import read_number, read_table

Array = NDArray[np.floating[Any]]
Predict = Callable[[Array], Array]
"""A field: points (n, d) -> outputs (n, m), both in the problem's own units."""

OUTLIER_SCALE = 10.0
"""Standard deviation of an outlier's error, in sigmas."""


@dataclass(frozen=True)
class Observations:
    """Noisy measurements of a problem's outputs.

    Args:
        points: (n, d) coordinates, columns in the order of ``Problem.coordinates``.
        values: (n, k) measured outputs, columns in the order of ``Problem.measured``.
        sigma: (n, 1) standard deviation of the error of each row (in the units of
            :meth:`Problem.encode`), or None if unknown.
        clean: (n, k) the outputs without error, where known (synthetic data).
    """

    points: Array
    values: Array
    sigma: Array | None = None
    clean: Array | None = None

    def __len__(self) -> int:
        return len(self.points)

    def with_sigma(self, noise: float | None) -> Observations:
        """The same, with this sigma where none is known."""
        if self.sigma is not None or noise is None:
            return self
        return replace(self, sigma=np.full((len(self), 1), noise))


class Problem(ABC):
    """A differential equation with noisy measurements: what to train, and what to compare with.

    A subclass states the equation in DeepXDE's terms and fills in the abstract methods; see
    ``problems/convection.py`` for the smallest one. Networks are trained on *encoded* outputs
    (:meth:`encode`; the identity unless a problem says otherwise); everything else here, from
    observations to metrics, is in the problem's own units.

    Args:
        points: number of synthetic measurements.
        noise: standard deviation of their error, in encoded units.
        seed: seed of the measurements' positions and errors.
        outliers: share of the synthetic measurements that are outliers: their errors are
            ``OUTLIER_SCALE`` times as large, while sigma is stated as for all others.
        observations: the user's own measurements instead of the problem's, or a CSV file with them
            (see :meth:`read`).

    Raises:
        ValueError: an argument is out of range, or the measurements cannot be used.
        FileNotFoundError: there is no such CSV file.
    """

    name: ClassVar[str]
    equation: ClassVar[str]
    """One line, for tables."""
    coordinates: ClassVar[tuple[str, ...]]
    outputs: ClassVar[tuple[str, ...]]
    lr: ClassVar[float]
    """Default learning rate."""
    iterations: ClassVar[int]
    """Default budget."""
    synthetic: ClassVar[bool] = True
    """Whether measurements are drawn (``points``, ``noise``, ``seed``), or real data ship along."""
    points: ClassVar[int]
    """Default number of measurements."""
    noise: ClassVar[float | None]
    """Default standard deviation of their error; None: estimated."""
    unknown_names: ClassVar[tuple[str, ...]] = ()
    """Unknown physical parameters."""
    guesses: ClassVar[Mapping[str, float]] = {}
    """Where the training of positive unknowns starts: see :meth:`unknown`."""
    measured: ClassVar[tuple[str, ...]]
    """Outputs that are measured, the first of ``outputs``; unless stated, all."""
    scored: ClassVar[tuple[str, ...]]
    """Outputs whose error is ``relative_l2``; unless stated, all."""
    outliers: float = 0.0
    width: ClassVar[int] = 32
    """Neurons in each of the default network's three hidden layers."""
    num_domain: ClassVar[int] = 0
    """Points inside the domain at which the equation is imposed."""
    num_boundary: ClassVar[int] = 0
    """Points of the boundary, for conditions and equation."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
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
    ) -> None:
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

    # What a problem states.

    @property
    @abstractmethod
    def domain(self) -> Mapping[str, tuple[float, float]]:
        """Lowest and highest value of each coordinate."""

    @abstractmethod
    def geometry(self) -> Any:
        """The domain as a DeepXDE geometry."""

    @abstractmethod
    def residual(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        """Residual of the equation(s): x (n, d), network outputs y (n, m) -> (n, 1) each."""

    @abstractmethod
    def observe(self, rng: np.random.Generator, points: int, noise: float | None) -> Observations:
        """Draw synthetic measurements, or load the real ones."""

    @abstractmethod
    def reference(self, points: Array) -> Array:
        """Reference solution (n, m) at points (n, d), or the best fit known where no truth is."""

    @abstractmethod
    def evaluation_points(self) -> Array:
        """(n, d) points at which errors are measured: a full :func:`grid`."""

    def network(self) -> Any:
        """A fresh network of the default size, on coordinates scaled to [-1, 1]."""
        layers = [len(self.coordinates)] + [self.width] * 3 + [len(self.outputs)]
        net = dde.nn.FNN(layers, "tanh", "Glorot normal")
        lows, highs = torch.tensor(list(self.domain.values()), dtype=torch.get_default_dtype()).T
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
        """One weight per term, in DeepXDE's order: residuals, conditions, measurements."""
        return None

    def unknown_values(self, predict: Predict | None = None) -> dict[str, float]:
        """Current values of the unknown parameters, in physical units.

        Args:
            predict: the fit, for unknowns that are read off it, such as an initial state.

        ``self.unknowns`` maps their names to trainable ``dde.Variable`` that start at 0; a problem
        that trains something else than :meth:`unknown` makes of them says so here.
        """
        return {name: float(self.unknown(name).detach()) for name in self.unknown_names}

    def unknown(self, name: str) -> torch.Tensor:
        """An unknown that is positive: its logarithm is trained, from ``guesses[name]``."""
        return self.guesses[name] * torch.exp(self.unknowns[name])

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

    def estimate_sigma(self) -> float | None:
        """Standard deviation of the measurements' error where it was not given (unknown: None)."""
        return None

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

    def sigma(self) -> Array | None:
        """(n, 1) standard deviation of the error per measurement: as given, or as estimated."""
        if self.observations.sigma is not None:
            return self.observations.sigma
        estimate = self.estimate_sigma()
        return None if estimate is None else np.full((len(self.observations), 1), estimate)

    def measurement_conditions(self) -> list[Any]:
        """The measurements as DeepXDE conditions, one per measured output."""
        points, encoded = self.observations.points, self.encode(self.observations.values)
        sigma = self.sigma()
        columns = [(i, encoded[:, i : i + 1]) for i in range(len(self.measured))]
        if sigma is None:
            return [dde.icbc.PointSetBC(points, column, component=i) for i, column in columns]
        return [NoisyPointSetBC(points, column, sigma, component=i) for i, column in columns]

    def clean_of_conditions(self) -> Array | None:
        """(N,) the noisy conditions' values without error, one after the other, where known."""
        clean = self.observations.clean
        return None if clean is None else self.encode(clean).T.ravel()

    def model(self, network: Any | None = None) -> dde.Model:
        """An uncompiled model on a fresh network (or the given one)."""
        return dde.Model(self.data(), self.network() if network is None else network)

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
        """Measurements from a CSV file with columns named after coordinates and what is measured.

        A column ``sigma`` with the standard deviation of each row's error is optional; other
        columns are ignored, and so are lines that start with ``#``. ``measured`` names columns
        other than the problem's own.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: a column is missing, there are no rows, or a value is not a number, not
                finite, or outside the domain; the message names row (line of the file) and column.
        """
        measured = self.measured if measured is None else measured
        needed = (*self.coordinates, *measured)
        header, parsed = read_table(path)
        missing = [name for name in needed if name not in header]
        if missing:
            raise ValueError(
                f"{path}: column {', '.join(map(repr, missing))} is missing. {self.name} needs the "
                f"columns {', '.join(needed)} (and optionally sigma); found: "
                f"{', '.join(header) or 'none'}."
            )
        columns = (*needed, "sigma") if "sigma" in header else needed
        places = [header.index(name) for name in columns]
        rows = [
            [
                self._number(path, line, name, fields[i])
                for name, i in zip(columns, places, strict=True)
            ]
            for line, fields in parsed
        ]
        if not rows:
            raise ValueError(f"{path}: there are no rows of measurements below the header.")
        table = np.array(rows)
        d, k = len(self.coordinates), len(measured)
        sigma = table[:, d + k :] if "sigma" in header else None
        return Observations(table[:, :d], table[:, d : d + k], sigma)

    def _number(self, path: str | Path, line: int, name: str, text: str) -> float:
        where = f"{path}, line {line}, column {name!r}"
        value = read_number(text, where)
        if not math.isfinite(value):
            raise ValueError(f"{where}: {text!r} is not finite; remove the row or fill it in.")
        if name in self.domain:
            low, high = self.domain[name]
            slack = 1e-9 * (high - low)
            if not low - slack <= value <= high + slack:
                raise ValueError(f"{where}: {value:g} is outside the domain [{low:g}, {high:g}].")
        if name == "sigma" and value <= 0:
            raise ValueError(f"{where}: a standard deviation must be positive, got {value:g}.")
        if name in self.measured and not np.isfinite(self._encoded(value)):
            raise ValueError(f"{where}: {value:g} is not a possible value of {name}.")
        return value

    def _encoded(self, value: float) -> float:
        with np.errstate(all="ignore"):
            return float(self.encode(np.full((1, len(self.measured)), value))[0, 0])


class SpaceTime(Problem):
    """A problem on an interval of x and one of t."""

    coordinates = ("x", "t")
    num_initial: ClassVar[int] = 0
    """Points of the first moment, for conditions and equation."""

    def geometry(self) -> Any:
        return dde.geometry.GeometryXTime(
            dde.geometry.Interval(*self.domain["x"]), dde.geometry.TimeDomain(*self.domain["t"])
        )

    def initial(self, rng: np.random.Generator, points: int) -> Array:
        """(points, 2) uniform in x, at t = 0."""
        return np.hstack([rng.uniform(*self.domain["x"], (points, 1)), np.zeros((points, 1))])

    def evaluation_points(self) -> Array:
        """A grid of 101 x 51."""
        return grid(np.linspace(*self.domain["x"], 101), np.linspace(*self.domain["t"], 51))

    def data(self) -> Any:
        return dde.data.TimePDE(
            self.geometry(),
            self.residual,
            [*self.conditions(), *self.measurement_conditions()],
            num_domain=self.num_domain,
            num_boundary=self.num_boundary,
            num_initial=self.num_initial,
        )


def zero_on_boundary(geometry: Any) -> Any:
    """The condition that the first output is 0 on the boundary in space."""
    return dde.icbc.DirichletBC(geometry, lambda _: 0.0, lambda _, on_boundary: on_boundary)


def check_positive(**values: float) -> None:
    """Refuse a constant that has to be positive.

    Raises:
        ValueError: a value is not; the message names it.
    """
    for name, value in values.items():
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{name} must be a finite number > 0, got {value}.")


def grid(*axes: Array) -> Array:
    """All combinations of the axes' values as (n, d) points, last axis fastest."""
    return np.stack([a.ravel() for a in np.meshgrid(*axes, indexing="ij")], axis=1)
