"""Measurements that know their error, and the label floor they give a DeepXDE model."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MethodType
from typing import Any

import numpy as np
import torch
from deepxde import losses as dde_losses
from deepxde.data import PDE
from deepxde.icbc import IC, DirichletBC, PointSetBC, PointSetOperatorBC

from ..memorization import as_array
from ..noise import LabelNoise, Loss, NoisyTerm, check_loss, check_sigma
from ..snr_adam import Floor, SNRAdam
from ..snr_soap import SNRSOAP


class NoisyPointSetBC(PointSetBC):  # type: ignore[misc]
    """A ``dde.icbc.PointSetBC`` whose values carry a measurement error.

    With one of these among a model's conditions, ``compile("snr_adam")`` and
    ``compile("snr_soap")`` gate every parameter against the gradient that this error alone would
    give it; see :class:`sciml_snr.LabelNoise`. Under any other optimizer it is a ``PointSetBC``.

    Args:
        points: (n, d) array of points.
        values: scalar, or (n, m) or (1, m) array, of measured values of m components.
        sigma: standard deviation of their error, in their units: a scalar, (n,) or (n, 1) for one
            per point, (1, m) for one per component, or (n, m).
        component, batch_size, shuffle: as for ``PointSetBC``.

    Raises:
        ValueError: sigma is negative, not finite or of another length than the points, or points
            or values are not finite or have no column per coordinate or component.
    """

    def __init__(
        self,
        points: Any,
        values: Any,
        sigma: Any,
        component: int | list[int] = 0,
        batch_size: int | None = None,
        shuffle: bool = True,
    ) -> None:
        super().__init__(points, values, component, batch_size, shuffle)
        self.values: torch.Tensor
        components = components_of(self)
        shape = tuple(self.values.shape)
        if len(shape) < 2 and self.values.numel() in (1, components):
            shape = (1, components)
        if self.points.ndim != 2 or shape not in ((1, components), (len(self), components)):
            raise ValueError(
                f"points {self.points.shape} must be (n, d), and values {tuple(self.values.shape)} "
                f"a number, ({len(self)}, {components}) or (1, {components}), a column per "
                "component: one-dimensional arrays become columns by x[:, None]."
            )
        if batch_size is not None:  # DeepXDE takes a batch's rows of them
            self.values = self.values.expand(len(self), components)
        for name, given in (("points", self.points), ("values", as_array(self.values))):
            wrong = ~np.isfinite(given)
            if wrong.any():
                raise ValueError(
                    f"{name} must be finite, but {wrong.sum()} of their {wrong.size} numbers are "
                    "not: leave such measurements out."
                )
        self.sigma = as_sigma(sigma, len(self), components)


def conditions_of(data: Any) -> list[Any]:
    """Initial and boundary conditions, and measurements, of a DeepXDE data object."""
    return list(getattr(getattr(data, "pde", None), "bcs", getattr(data, "bcs", ())))


def _as_list(loss_weights: Any) -> list[Any]:
    """What was given for ``compile``'s loss_weights, a number or None included."""
    if loss_weights is None:
        return []
    several = isinstance(loss_weights, (list, tuple)) or np.ndim(loss_weights)
    return list(loss_weights) if several else [loss_weights]


def loss_weights_of(model: Any, terms: int) -> list[float]:
    """A compiled model's weight of every loss term."""
    weights = [float(weight) for weight in _as_list(model.loss_weights) or [1.0]]
    return weights * terms if len(weights) == 1 else weights


_MEASURED = (PointSetBC, PointSetOperatorBC)


def measurements_of(data: Any) -> list[Any]:
    """The conditions that compare with values at points of the user's."""
    return [condition for condition in conditions_of(data) if isinstance(condition, _MEASURED)]


def is_supervised(data: Any) -> bool:
    """Whether the loss compares with targets, and nothing else."""
    physics = hasattr(data, "bcs") or hasattr(data, "pde")
    return not physics and getattr(data, "train_y", None) is not None


def components_of(condition: Any) -> int:
    """Number of output components that a condition on a set of points compares."""
    component = getattr(condition, "component", 0)
    return len(component) if isinstance(component, list) else 1


def as_sigma(sigma: Any, points: int, components: int) -> torch.Tensor:
    """A standard deviation as a tensor (1 or points, 1 or components).

    Raises:
        ValueError: it is no number, negative, not finite or of another length than the points.
    """
    found = _checked(sigma)
    found = found.reshape(-1, 1) if found.ndim < 2 else found
    if found.ndim > 2 or found.shape[1] not in (1, components):
        raise ValueError(
            f"sigma has the shape {tuple(found.shape)} for {points} points and {components} "
            "component(s): give one number, one per point, or one per value."
        )
    if len(found) not in (1, points):
        raise ValueError(
            f"sigma has {len(found)} entries for {points} points: give one number, or one "
            "per point."
        )
    return found


def sigma_of_targets(sigma: Any, shape: tuple[int, ...]) -> torch.Tensor:
    """A standard deviation as a tensor that broadcasts to supervised targets of this shape.

    Raises:
        ValueError: as :func:`as_sigma`; or it might belong to several of the targets' axes.
    """
    if len(shape) == 2:
        return as_sigma(sigma, shape[0], shape[1])
    if len(shape) < 2:
        return as_sigma(sigma, shape[0] if shape else 1, 1)[:, 0]
    found = _checked(sigma)
    if found.numel() > 1 and not _broadcasts(found, shape):
        raise ValueError(
            f"sigma has the shape {tuple(found.shape)} for targets of the shape {shape}: give one "
            "number, or an array with as many axes, each of the targets' length or 1."
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


def _broadcasts(sigma: torch.Tensor, shape: tuple[int, ...]) -> bool:
    """Whether it has the same axes, each of the same length or 1."""
    return sigma.ndim == len(shape) and all(
        own in (1, n) for own, n in zip(sigma.shape, shape, strict=True)
    )


def as_tensor(
    sigma: Any, dtype: torch.dtype = torch.float64, device: torch.device | None = None
) -> torch.Tensor:
    """A sigma of any kind."""
    given = sigma.detach() if isinstance(sigma, torch.Tensor) else np.asarray(sigma)
    return torch.as_tensor(given, dtype=dtype, device=device)


_RANDOM_OR_MIXING = (torch.nn.modules.batchnorm._NormBase, torch.nn.modules.dropout._DropoutNd)
"""Layers that draw anew in every pass, or whose outputs depend on the other points'."""


class RecordingLosses:
    """A DeepXDE data object's ``losses_train`` that remembers the residual of every term.

    The user's own one goes on being called, be it of the class or of the object.

    DeepXDE gives each term's loss function the residual (or targets and outputs), in the order of
    ``loss_weights``: residuals of the equations, then conditions. Models that share their data
    share the recorder, and one that is compiled without us afterwards is not to notice it.
    """

    def __init__(self, data: Any) -> None:
        self.data = data
        self._own = vars(data).get("losses_train")
        self.inputs: Any = None
        self.residuals: list[torch.Tensor] = []
        self.terms = 0
        """Number of loss terms that the residuals belong to."""

    @classmethod
    def of(cls, data: Any) -> RecordingLosses:
        """The data's recorder."""
        if not isinstance(vars(data).get("losses_train"), cls):
            data.losses_train = cls(data)
        return data.losses_train  # type: ignore[no-any-return]

    def __call__(
        self, targets: Any, outputs: Any, loss_fn: Any, inputs: Any, model: Any, aux: Any = None
    ) -> Any:
        """As ``Data.losses_train``."""
        self.inputs, self.residuals = inputs, []
        several = isinstance(loss_fn, (list, tuple))
        recording = [*map(self._recording, loss_fn)] if several else self._recording(loss_fn)
        losses = self.original(targets, outputs, recording, inputs, model, aux=aux)
        self.terms = len(losses) if isinstance(losses, (list, tuple)) else 1
        return losses

    @property
    def original(self) -> Any:
        """The data's ``losses_train`` as it would be without us."""
        own = self._own
        return MethodType(type(self.data).losses_train, self.data) if own is None else own

    def take(self) -> tuple[Any, list[torch.Tensor]]:
        """Inputs and residuals of the last forward pass, once: then None, []."""
        found = self.inputs, self.residuals
        self.inputs, self.residuals = None, []
        return found

    def _recording(self, loss: Any) -> Callable[[Any, Any], Any]:
        def record(y_true: Any, y_pred: Any) -> Any:
            self.residuals.append(y_pred - y_true)
            return loss(y_true, y_pred)

        return record

    def __getstate__(self) -> dict[str, Any]:
        """A copy has no last forward pass: tensors inside a graph cannot be copied."""
        return {**self.__dict__, "inputs": None, "residuals": []}


_UNKNOWN = object()
"""In the place of points that are not known."""


class ModelNoise:
    """What is known of the measurement errors in a DeepXDE model's loss.

    Args:
        model: the model that is being compiled.
        sigma: as for ``set_SNR_options``.
        loss: as for ``Model.compile``.

    Raises:
        ValueError: a sigma is impossible, or a loss has no label floor.
    """

    def __init__(self, model: Any, sigma: Any = None, loss: Any = "MSE") -> None:
        self.model = model
        data = model.data
        self._conditions = conditions_of(data)
        self._by_term: dict[int, Any] = {}
        """Sigmas by the place of their term, from 0 or, for conditions, from -1 backwards."""
        if isinstance(sigma, (list, tuple)):
            self._by_term = {
                i: s for i, s in enumerate(sigma) if s is not None and as_tensor(s).any()
            }
            self._count: int | None = len(sigma)
            first = len(sigma) - len(self._conditions)
            for i, condition in enumerate(self._conditions, start=first):
                if isinstance(condition, NoisyPointSetBC) and i >= 0 and sigma[i] is None:
                    self._by_term[i] = condition.sigma
        else:
            self._count = None
            for i, condition in enumerate(self._conditions, start=-len(self._conditions)):
                if isinstance(condition, NoisyPointSetBC):
                    self._by_term[i] = condition.sigma
                elif sigma is not None and isinstance(condition, _MEASURED):
                    self._by_term[i] = as_sigma(sigma, len(condition), components_of(condition))
            if sigma is not None and not self._by_term:
                if self._conditions or hasattr(data, "bcs"):
                    raise ValueError(
                        "sigma is one number, but no condition has measured values (PointSetBC, "
                        "PointSetOperatorBC). Give a list with one entry per loss term, in the "
                        "order of loss_weights."
                    )
                targets = getattr(data, "train_y", None)  # supervised data
                self._by_term[0] = sigma_of_targets(
                    sigma, () if targets is None else np.shape(targets)
                )
        for s in self._by_term.values():
            check_sigma(as_tensor(s))
        self._noisy = {i if i < 0 else i - (self._count or 1) for i in self._by_term}
        """The same places, all from -1 backwards."""
        given = _as_list(model.loss_weights)
        if len(given) > 1:  # a term of weight 0 is none
            terms = {i for i in range(-len(given), 0) if given[i] != 0}
        elif self._count is not None:
            terms = set(range(-self._count, 0))
        else:
            terms = set(range(-max(len(self._conditions), 1), 0))
            equations = getattr(getattr(data, "pde", None), "pde", getattr(data, "pde", None))
            if equations is not None:
                terms.add(-len(self._conditions) - 1)
        self.has_exact_terms = self._has_exact(terms)
        """Whether measured values stand beside terms without an error, such as an equation's
        residual, or beside equations with one (a measured source); by the last step's weights."""
        self._losses = loss if isinstance(loss, (list, tuple)) else [loss]
        if self._count is not None and len(self._losses) > 1:
            self._check_count(len(self._losses))
        self._loss_by_term = {place: check_loss(self._loss(place)) for place in self._by_term}
        self.seen: dict[int, tuple[Any, bool, bool]] = {}
        """By term from the end: points of the last step, whether they were new in it, and whether
        they were taken to be new in every step."""
        self._first_points: Any = None
        self._may_be_apart: bool | None = None
        """Whether a forward pass over the measured points alone should make the same of them."""
        self._is_compared = False
        """Whether it does has been looked at, in the first such pass."""
        self._recorder: RecordingLosses | None = None
        if self._by_term:
            self._recorder = RecordingLosses.of(data)

    def __bool__(self) -> bool:
        return bool(self._by_term)

    def terms(self) -> list[NoisyTerm]:
        """The noisy terms of the last forward pass; none twice."""
        assert self._recorder is not None
        inputs, residuals = self._recorder.take()
        if conditions_of(self.model.data) != self._conditions:
            raise ValueError(
                "The conditions have changed since compile, which looks at their errors: compile "
                "again."
            )
        if inputs is None:
            return []
        if len(residuals) != self._recorder.terms:
            raise ValueError(
                f"{type(self.model.data).__name__} forms {len(residuals)} residuals for "
                f"{self._recorder.terms} loss terms: there is no label floor for it. Use "
                'set_SNR_options(floor="stream").'
            )
        self._check_count(len(residuals))
        if self._count is None and not self._conditions and len(residuals) > 1:
            raise ValueError(
                f"sigma is given for the loss as a whole, but {type(self.model.data).__name__} has "
                f"{len(residuals)} loss terms: give a list with one sigma per loss term."
            )
        count = len(residuals)
        weights = loss_weights_of(self.model, count)
        self.has_exact_terms = self._has_exact({i - count for i in range(count) if weights[i]})
        residuals = self._on_their_own(residuals, inputs)
        found = [
            self._term(residuals, place, sigma, weights) for place, sigma in self._by_term.items()
        ]
        return [t for t in found if t.residual.requires_grad and t.residual.numel()]

    def _on_their_own(self, residuals: list[torch.Tensor], inputs: Any) -> list[torch.Tensor]:
        """The residuals, those of measured outputs from a forward pass over their points alone.

        The floor's and the noisy terms' backward passes then go through these points, and not
        through the equation's, too. Where that is no gain, or may be something else (an ``error``
        of one's own, outputs that depend on other points', too), they are left as they are.
        """
        data, net = self.model.data, self.model.net
        places = sorted(self._noisy)
        if self._may_be_apart is None:
            self._may_be_apart = (
                isinstance(data, PDE)
                and getattr(data.losses, "__func__", None) is PDE.losses
                and self._recorder is not None
                and getattr(self._recorder.original, "__func__", None) is PDE.losses_train
                and data.auxiliary_var_fn is None
                and places[0] >= -len(data.bcs)
                and all(
                    getattr(data.bcs[i].error, "__func__", None) is PointSetBC.error for i in places
                )
                and not any(isinstance(module, _RANDOM_OR_MIXING) for module in net.modules())
            )
        if not self._may_be_apart:
            return residuals
        ends = np.cumsum(data.num_bcs)
        spans = [(ends[i] - data.num_bcs[i], ends[i]) for i in places]
        if 2 * sum(end - start for start, end in spans) > len(inputs):
            return residuals
        found, end = list(residuals), 0
        with torch.enable_grad():
            measured = torch.cat([inputs[start:end] for start, end in spans])
            outputs = net(measured.detach().requires_grad_())
            for i in places:
                start, end = end, end + data.num_bcs[i]
                found[i] = data.bcs[i].error(None, None, outputs, start, end)
        if not self._is_compared:
            self._is_compared = True
            self._may_be_apart = all(
                (found[i] - residuals[i]).norm() <= 1e-3 * residuals[i].norm() for i in places
            )
        return found if self._may_be_apart else residuals

    def _check_count(self, terms: int) -> None:
        if self._count is not None and self._count != terms:
            raise ValueError(
                f"sigma has {self._count} entries for {terms} loss terms: give one per term, in "
                "the order of loss_weights (equations, then conditions)."
            )

    def _term(
        self, residuals: Sequence[torch.Tensor], place: int, sigma: Any, weights: Sequence[float]
    ) -> NoisyTerm:
        i = place % len(residuals)
        residual = residuals[i]
        sigma = as_tensor(sigma, residual.dtype, residual.device)
        if sigma.numel() == 1:
            sigma = sigma.reshape(())
        elif residual.ndim == 2 and sigma.ndim == 1:
            sigma = sigma[:, None]
        elif residual.ndim == 1 and sigma.ndim == 2 and sigma.shape[1] == 1:
            sigma = sigma[:, 0]
        shape = tuple(residual.shape)
        from_end = i - len(residuals)
        population: float | None = None
        drawn_anew = True
        rows: Any = slice(None)
        data = self.model.data
        if from_end >= -len(self._conditions):
            condition = self._conditions[from_end]
            if getattr(condition, "batch_size", None) is not None:
                population = len(condition)
                drawn_anew = self._is_drawn_anew(from_end, condition.batch_indices, at_first=True)
                shape = (len(condition), *shape[1:])
                rows = torch.as_tensor(condition.batch_indices, device=sigma.device)
        else:
            are_new = self._is_drawn_anew(from_end, self._equation_points(), at_first=False)
            if getattr(data, "online", False):  # dde.data.Function
                population = math.inf
            elif self._is_resampled():
                population, drawn_anew = math.inf, are_new
                if sigma.ndim and len(sigma) > 1:
                    raise ValueError(
                        f"sigma of loss term {i} has {len(sigma)} entries, but its points have "
                        "been drawn anew: give one number."
                    )
            elif getattr(data, "train_y", None) is not None and not self._conditions:
                population = len(data.train_y)
        if sigma.ndim and not _broadcasts(sigma, shape):
            raise ValueError(
                f"sigma of loss term {i} has the shape {tuple(sigma.shape)} for data of the shape "
                f"{shape}: give one number, one per point, or one per value (in batches of "
                "supervised data one number)."
            )
        if sigma.ndim and len(sigma) > 1:
            sigma = sigma[rows]
        loss = self._loss_by_term[place]
        return NoisyTerm(residual, sigma, float(weights[i]), population, loss, drawn_anew)

    def _has_exact(self, terms: set[int]) -> bool:
        """Of the terms of these places, counted from the last one; those of weight 0 are none."""
        kinds = {self._is_equation(i) for i in self._noisy & terms}
        return bool(terms - self._noisy) or len(kinds) == 2

    def _is_equation(self, from_end: int) -> bool:
        """Whether a term, counted from the last one, is no comparison of outputs with data."""
        if not self._conditions:
            return False  # supervised data, or nothing but equations
        if from_end < -len(self._conditions):
            return True
        values = (PointSetBC.error, DirichletBC.error, IC.error)
        return type(self._conditions[from_end]).error not in values

    def _equation_points(self) -> Any:
        """The equation's points, of an operator's equation as well."""
        data = self.model.data
        holder = data if hasattr(data, "train_x_all") else getattr(data, "pde", None)
        return getattr(holder, "train_x_all", None)

    def _is_resampled(self) -> bool:
        """Whether the equation's points have been drawn anew since the training began."""
        points = self._equation_points()
        if self._first_points is None:
            self._first_points = points
        return points is not self._first_points

    def _is_drawn_anew(self, from_end: int, points: Any, at_first: bool) -> bool:
        """Whether a term has other points in every step, as far as this one and the last can tell:
        points that stay for more than one keep their errors, which do not average away.
        ``at_first``: what to take for granted."""
        last, was_new, _ = self.seen.get(from_end, (_UNKNOWN, at_first, at_first))
        is_new = was_new if last is _UNKNOWN else points is not last
        self.seen[from_end] = points, is_new, is_new and was_new
        return is_new and was_new

    def state_dict(self) -> dict[str, Any]:
        """What has been seen of the points, without the points."""
        return {
            "resampled": self._first_points is not None and self._is_resampled(),
            "drawn_anew": {place: anew for place, (*_, anew) in self.seen.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there: the next step's points are taken for what the last one's were."""
        self._first_points = _UNKNOWN if state["resampled"] else None
        self.seen = {place: (_UNKNOWN, anew, anew) for place, anew in state["drawn_anew"].items()}

    def _loss(self, place: int) -> Loss:
        """The loss of a term, in torch's order of arguments."""
        chosen = dde_losses.get(self._losses[place if len(self._losses) > 1 else 0])

        def loss(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            return chosen(target, prediction)  # type: ignore[no-any-return]

        loss.__name__ = getattr(chosen, "__name__", str(chosen))
        return loss


class _LabelGated(SNRAdam):
    """An optimizer as ``compile`` builds it for a model with noisy measurements.

    DeepXDE's closure calls ``zero_grad`` between the loss and its backward pass: the one moment
    when the residuals are there and their graph is alive.

    Args:
        params, options: as for the optimizer.
        noise: gives the noisy terms of the last forward pass.
        every: refresh the floor every so many steps.
    """

    noise: ModelNoise | None = None  # a copy's

    def __init__(
        self,
        params: Any,
        *,
        noise: ModelNoise,
        every: int,
        **options: Any,
    ) -> None:
        super().__init__(params, **options)
        gated = [group for group in self.param_groups if group["gate"] != "none"]
        self.noise = noise
        self.floor = LabelNoise(
            [p for group in gated for p in group["params"]],
            rho=self.defaults["rho"],
            every=every,
            beta1=self.defaults["betas"][0],
        )

    def __getstate__(self) -> dict[str, Any]:
        """For deepcopy and pickle: a copy keeps the floor, but is no longer the model's."""
        return {**super().__getstate__(), "floor": self.floor}

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Refresh the floor, then forget the gradients."""
        if self.noise is None:
            self.floor.update([])
        else:
            terms = self.noise.terms()
            self.floor.update(terms, exact_terms=self.noise.has_exact_terms)
        super().zero_grad(set_to_none)

    def step(self, closure: Callable[[], Any] | None = None, floor: Floor | None = None) -> Any:
        """One step, gated by the label floor unless another is given."""
        return super().step(closure, self.floor if floor is None else floor)

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's state with the floor's, and with what has been seen of the points."""
        state = {**super().state_dict(), "label_noise": self.floor.state_dict()}
        return state if self.noise is None else {**state, "points": self.noise.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state with or without a floor."""
        own = ("label_noise", "points")
        super().load_state_dict({k: v for k, v in state_dict.items() if k not in own})
        if "label_noise" in state_dict:
            self.floor.load_state_dict(state_dict["label_noise"])
        if self.noise is not None and "points" in state_dict:
            self.noise.load_state_dict(state_dict["points"])


class LabelGatedSNRAdam(_LabelGated):
    """SNRAdam with the label floor of a DeepXDE model."""


class LabelGatedSNRSOAP(_LabelGated, SNRSOAP):
    """SNRSOAP with the label floor of a DeepXDE model."""
