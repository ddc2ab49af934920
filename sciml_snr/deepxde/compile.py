"""``compile("snr_adam")`` and ``compile("snr_soap")`` in DeepXDE, and their options.

Importing this package patches DeepXDE in two places, both in :func:`register`: ``Model.compile``
learns of the noise in the model's data, and ``optimizers.get`` of our names.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import warnings
import weakref
from collections.abc import Callable
from types import ModuleType
from typing import Any

from torch import nn
from torch.optim import Optimizer

from ..gate import Gate, overrides
from ..handover import KEY
from ..noise import NoisyLoss
from ..options import plain_options, validate_options
from ..pointwise import NAMES, LossLike
from ..snr_adam import SNRAdam
from ..snr_soap import SNRSOAP, validate_basis_options
from ..source import NoiseSource
from .conditions import (
    NoisyCondition,
    conditions_of,
    equations_of,
    is_supervised,
    mark_of,
    measurements_of,
)
from .rows import NoisyRows, NoisyTargets

OPTIMIZERS: dict[str, type[SNRAdam]] = {"snr_adam": SNRAdam, "snr_soap": SNRSOAP}
"""The names this package adds to DeepXDE."""

EXTERNAL_BETA2 = 0.99
"""Largest decay rate of the second moment of unknown coefficients beside noisy data."""

SNR_options: dict[str, Any] = {}
"""The options the next ``compile`` will use; change them by :func:`set_SNR_options`."""

BASIS_OPTIONS = ("basis", "shampoo_beta", "precondition_frequency", "max_precondition_dim")
"""The options that only ``"snr_soap"`` has."""

_GATE_FIELDS = ("alpha", "lambd", "z", "warmup_steps", "rise_steps", "discrepancy")

_DEFAULTS = {
    name: parameter.default
    for name, parameter in inspect.signature(SNRAdam.__init__).parameters.items()
    if parameter.default is not inspect.Parameter.empty and name != "noise"
}


def set_SNR_options(
    gate: str | Gate | None = None,
    alpha: float | str | None = None,
    lambd: float | None = None,
    z: float | None = None,
    floor: str = "auto",
    floor_every: int = 1,
    rho: float = 0.99,
    warmup_steps: int | None = None,
    rise_steps: int | None = None,
    discrepancy: bool | None = None,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    batch_size: int | None = None,
    data_size: int | None = None,
    nonfinite: str = "raise",
    gate_external: bool = False,
    basis: str = "both",
    shampoo_beta: float = 0.95,
    precondition_frequency: int = 10,
    max_precondition_dim: int = 2048,
) -> None:
    """Sets the hyperparameters of ``"snr_adam"`` and ``"snr_soap"``, for every ``compile`` to come.

    Also to be found as ``dde.optimizers.set_SNR_options``. As with ``set_LBFGS_options``, an
    option that is not given is set (back) to its default. The learning rate and its decay are
    ``compile``'s; an l2 regularizer of the network acts as it does for ``"adam"``. The error of the
    data belongs to the data: :class:`NoisyPointSetBC`, :func:`noisy`,
    ``compile(loss=NoisyLoss(...))``.

    Args:
        gate (str or Gate): "soft", "hard", "snr", "stein", or "none" for plain Adam. Where it is
            not given, it and the five thresholds below go with the loss: see
            :data:`sciml_snr.gate.STREAM` (published rule), :data:`sciml_snr.gate.DATA_ALONE` where
            all of the loss is noisy, :data:`sciml_snr.gate.BESIDE_EXACT` where not.
        alpha (float or str): Threshold of the gate; "fresh" = 1, or "finite" = b / (n - b).
        lambd (float): Weight of the noise floor in the soft and snr gates.
        z (float): Threshold in standard errors of the mean gradient, in place of alpha.
        floor (str): What the gradient has to stand out of: "label", the error of the data;
            "stream", the published estimate from step to step; "auto", the first where data know
            their error, else the second.
        floor_every (int): Refresh the label floor every so many steps.
        rho (float): Decay rate of the floor's average.
        warmup_steps (int): Steps before the gate acts.
        rise_steps (int): Steps in which the threshold rises by a third, and on from there like
            their logarithm; 0 for a constant one.
        discrepancy (bool): Keep the gate open by a part as long as the residuals are larger than
            the measurements' error explains. It takes sigma at its word.
        betas (tuple): Adam's decay rates (of unknown coefficients: see gate_external).
        eps (float): Adam's epsilon.
        batch_size (int): b, for ``alpha="finite"``.
        data_size (int): n, for ``alpha="finite"``.
        nonfinite (str): At a NaN or infinite gradient "raise" an error, or "skip" the step.
        gate_external (bool): Gate the ``external_trainable_variables`` too. They are few, carry
            all the data's information on an unknown coefficient, and are not gated by default.
            The label floor of a coefficient that only the equation holds is 0: its gate is open.
            Not gated, and beside noisy data, their second moment has a decay rate of 0.99 at most:
            the equation comes to hold so well under a closed gate that what it says of them fades,
            and the memory of its first gradients would stop them.
        basis (str): For ``"snr_soap"``: the eigenbasis of the covariances of the "gradient", of the
            "floor", or of "both".
        shampoo_beta (float): For ``"snr_soap"``: decay rate of these covariances.
        precondition_frequency (int): For ``"snr_soap"``: renew the basis every so many steps.
        max_precondition_dim (int): For ``"snr_soap"``: sides longer than this keep their
            coordinates.

    Raises:
        ValueError: A value is out of range; nothing is changed then.
    """
    options = {k: v if k == "gate" else plain_options({k: v})[k] for k, v in locals().items()}
    if floor not in ("auto", "label", "stream"):
        raise ValueError(f"Invalid floor: {floor!r}; it must be 'auto', 'label' or 'stream'.")
    if not isinstance(options["gate_external"], bool):
        raise ValueError(f"Invalid gate_external: {gate_external!r}; it must be True or False.")
    validate_options({**_DEFAULTS, **_published(options), **_common(options)})
    _gate_changes(options)
    validate_basis_options({name: options[name] for name in BASIS_OPTIONS})
    SNR_options.update(options)


def _common(options: dict[str, Any]) -> dict[str, Any]:
    """The options that are an optimizer's, whatever the gate."""
    apart = ("gate", "floor", "gate_external", *_GATE_FIELDS, *BASIS_OPTIONS)
    return {name: value for name, value in options.items() if name not in apart}


def _published(options: dict[str, Any]) -> dict[str, Any]:
    """Threshold and weight of the published rule, where they are given."""
    return {k: options[k] for k in ("alpha", "lambd") if options[k] is not None}


def _gate_changes(options: dict[str, Any]) -> dict[str, Any] | None:
    """What is given of the gate, as changes to the one that goes with the loss."""
    changes = dict(overrides(options["gate"]) or {})
    for name in _GATE_FIELDS:
        value = options[name]
        if value is not None and not (name == "alpha" and isinstance(value, str)):
            changes[name] = value
    return overrides(changes) if changes else None


def _has_gate() -> bool:
    """Whether the options ask for more than plain Adam."""
    return (_gate_changes(SNR_options) or {}).get("form") != "none"


class ModelNoise:
    """What is known of the errors in a DeepXDE model's data.

    Args:
        model: the model that is being compiled.
        loss: as for ``Model.compile``.
        hands_over: whether its optimizer has a floor to make from them.

    Raises:
        ValueError: an error is declared twice, or a loss has no label floor.
    """

    def __init__(self, model: Any, loss: Any = "MSE", hands_over: bool = True) -> None:
        self.sources: list[NoiseSource] = []
        """What can be declared to an optimizer."""
        self.loss_functions: Any = loss
        """The losses for DeepXDE: they know the errors."""
        self._rows: dict[int, NoisyRows] = {}
        self._targets: dict[int, NoisyTargets] = {}
        data = model.data
        conditions = conditions_of(data)
        has_equation = equations_of(data) is not None
        several = isinstance(loss, (list, tuple))
        losses = list(loss) if several else [loss]
        first = max(len(losses) - len(conditions), 0)  # place of the first condition's loss
        # DeepXDE refuses lists of another length.
        own_losses = losses[first:] if several else losses * len(conditions)
        terms = [
            (f"condition {i} ({type(condition).__name__})", condition, own)
            for i, (condition, own) in enumerate(zip(conditions, own_losses, strict=False))
        ]
        self.targets = losses[0] if isinstance(losses[0], NoisyLoss) else None
        """The noisy loss of supervised data, if there is one."""
        for name, condition, own in terms:
            if isinstance(condition, NoisyCondition) and isinstance(own, NoisyLoss):
                raise ValueError(
                    f"The error of {name} is declared twice: by the condition and by its loss. "
                    "Leave one of them out."
                )
        if not several and self.targets is not None and has_equation and conditions:
            raise ValueError(
                "One NoisyLoss cannot be for an equation and its conditions alike: give a list, "
                'such as loss=[NoisyLoss(0.3), "MSE", ...], equations first, or declare the error '
                "of a condition by sciml_snr.noisy(condition, sigma)."
            )
        if not hands_over:
            return
        noisy = [term for term in terms if isinstance(term[1], NoisyCondition)]
        if any(condition.sigma.any() for _, condition, _ in noisy):  # beside an error, 0 is exact
            noisy = [term for term in noisy if term[1].sigma.any()]
        exact = [t[0] for t in terms if t not in noisy and not isinstance(t[2], NoisyLoss)]
        of_equations = losses[:first] if several else losses
        if has_equation and not any(isinstance(own, NoisyLoss) for own in of_equations):
            exact.insert(0, "the equation")
        shared: list[tuple[str, Any, NoisyLoss]] = []
        for name, condition, own in noisy:
            entry = name, condition, NoisyLoss(condition.sigma, _pointwise(own))
            if condition.compares_values and getattr(condition, "batch_size", None) is None:
                shared.append(entry)
            else:
                self._add_rows(model, [entry], exact)
        if shared:
            self._add_rows(model, shared, exact)
        for i, own in enumerate(losses):
            if isinstance(own, NoisyLoss) and id(own) not in self._targets:
                is_equation = has_equation and (i < first or not several)
                source = NoisyTargets(model, own, is_equation, exact)
                self._targets[id(own)] = source
                self.sources.append(source)
        wrapped = [_TermLoss(self, own) for own in losses]
        self.loss_functions = wrapped if several else wrapped[0]

    def _add_rows(
        self, model: Any, entries: list[tuple[str, Any, NoisyLoss]], exact: list[str]
    ) -> None:
        names, conditions, losses = zip(*entries, strict=True)
        source = NoisyRows(model, conditions, losses, names, exact)
        self.sources.append(source)
        for condition in conditions:
            self._rows[id(condition)] = source

    def loss_of(self, own: Any, y_true: Any, y_pred: Any) -> Any:
        """The loss of one term: of a noisy condition, of noisy targets, or an exact one.

        Args:
            own: the loss function that the user gave for the term.
            y_true, y_pred: as DeepXDE gives them.

        Raises:
            ValueError: a noisy condition is not among those of ``compile``.
        """
        mark = mark_of(y_pred, y_true)
        rows = None if mark is None else self._rows.get(id(mark.condition))
        if mark is not None and (rows is not None or mark.condition.sigma.any()):
            if rows is None:
                raise ValueError(
                    f"A {type(mark.condition).__name__} has come to the conditions since compile, "
                    "which looks at their errors: compile again."
                )
            return rows.loss(y_pred - y_true, mark)
        if isinstance(own, NoisyLoss):
            if y_pred.shape != y_true.shape:
                raise ValueError(
                    f"outputs {tuple(y_pred.shape)} and targets {tuple(y_true.shape)} differ in "
                    "shape: one-dimensional arrays become columns by y[:, None]."
                )
            return self._targets[id(own)].loss(y_pred - y_true)
        return own(y_true, y_pred)


class _TermLoss:
    """A loss function for DeepXDE that knows the errors of the model's data."""

    def __init__(self, noise: ModelNoise, own: Any) -> None:
        self._noise = noise
        self._own = own if isinstance(own, NoisyLoss) else _dde_loss(own)
        self.__name__ = getattr(self._own, "__name__", str(own))

    def __call__(self, y_true: Any, y_pred: Any) -> Any:
        return self._noise.loss_of(self._own, y_true, y_pred)


def _dde_loss(identifier: Any) -> Any:
    from deepxde import losses

    return losses.get(identifier)


def _pointwise(identifier: Any) -> LossLike:
    """A loss of DeepXDE's in the order of torch's arguments.

    Raises:
        ValueError: it has no label floor.
    """
    if isinstance(identifier, str) and identifier.lower() in NAMES:
        return identifier
    chosen = _dde_loss(identifier)

    def loss(prediction: Any, target: Any) -> Any:
        return chosen(target, prediction)

    loss.__name__ = getattr(chosen, "__name__", str(identifier))
    return chosen if isinstance(chosen, nn.HuberLoss) else loss


_noise_of: weakref.WeakKeyDictionary[Any, ModelNoise] = weakref.WeakKeyDictionary()


def noise_of(model: Any) -> ModelNoise | None:
    """What is known of the errors in a compiled model's data, whatever its optimizer; None where
    nothing is."""
    return _noise_of.get(model)


set_SNR_options()


def register(deepxde: ModuleType) -> None:
    """Teach DeepXDE the names in :data:`OPTIMIZERS`; doing it twice does nothing."""
    optimizers = deepxde.optimizers
    if not hasattr(optimizers.get, "_sciml_snr"):
        optimizers.get = _extended(optimizers.get)
        deepxde.Model.compile = _announced(deepxde.Model.compile)
        optimizers.set_SNR_options = set_SNR_options
        optimizers.SNR_options = SNR_options


def _extended(original: Callable[..., Any]) -> Callable[..., Any]:
    """DeepXDE's ``optimizers.get`` with our names added; all other calls pass through."""

    @functools.wraps(original)
    def get(*args: Any, **kwargs: Any) -> Any:
        call = inspect.signature(original).bind(*args, **kwargs)
        call.apply_defaults()
        wanted = call.arguments["optimizer"]
        if isinstance(wanted, SNRAdam):
            _adopt(wanted, list(call.arguments["params"]))
        elif isinstance(wanted, str):
            _check_name(wanted)
            if wanted in OPTIMIZERS:
                _require_pytorch(wanted)
                if call.arguments["learning_rate"] is None:
                    raise ValueError(f"No learning rate for {wanted}.")
                # With an instance the original adds what remains: the learning rate's decay.
                call.arguments["optimizer"] = _build(wanted, **call.arguments)
                return original(*call.args, **call.kwargs)
        return original(*args, **kwargs)

    get._sciml_snr = True  # type: ignore[attr-defined]
    return get


def _check_name(wanted: str) -> None:
    """Refuse a name that is nearly one of ours.

    Raises:
        ValueError: asks whether that was meant.
    """
    if wanted in OPTIMIZERS:
        return
    near = difflib.get_close_matches(
        wanted.lower().replace("-", "_").replace(" ", "_"), OPTIMIZERS, n=1, cutoff=0.8
    )
    if near:
        raise ValueError(f'There is no optimizer {wanted!r}: did you mean "{near[0]}"?')


_compiling: list[tuple[Any, ModelNoise]] = []
"""The model that is being compiled, and its noise: ``optimizers.get`` is not told of them."""


def _announced(original: Callable[..., Any]) -> Callable[..., Any]:
    """``Model.compile`` that looks at the errors of the model's data."""

    @functools.wraps(original)
    def compile(self: Any, *args: Any, **kwargs: Any) -> Any:
        call = inspect.signature(original).bind(self, *args, **kwargs)
        optimizer = call.arguments.get("optimizer")
        is_ours = isinstance(optimizer, SNRAdam) or optimizer in OPTIMIZERS
        is_noisy = _has_noise(self, call.arguments.get("loss"))
        if not is_noisy:
            _noise_of.pop(self, None)
        if not is_noisy and not is_ours:
            return original(self, *args, **kwargs)
        if isinstance(optimizer, str) and is_ours:
            _require_pytorch(optimizer)
        hands_over = is_ours and (
            not isinstance(optimizer, str) or (_has_gate() and SNR_options["floor"] != "stream")
        )
        noise = ModelNoise(self, call.arguments.get("loss", "MSE"), hands_over)
        if is_noisy:
            _noise_of[self] = noise
        call.arguments["loss"] = noise.loss_functions
        _compiling.append((self, noise))
        try:
            return original(*call.args, **call.kwargs)
        finally:
            _compiling.pop()

    return compile


def _has_noise(model: Any, loss: Any) -> bool:
    losses = loss if isinstance(loss, (list, tuple)) else [loss]
    noisy = any(isinstance(own, NoisyLoss) for own in losses)
    return noisy or any(isinstance(c, NoisyCondition) for c in conditions_of(model.data))


def _build(
    name: str, params: Any, learning_rate: float, weight_decay: float, **_: Any
) -> Optimizer:
    """The optimizer for DeepXDE's parameters: the network's, or [network's, external] groups."""
    model, noise = _compiling[-1] if _compiling else (None, None)
    floor = SNR_options["floor"]
    sources = [] if noise is None else noise.sources
    if floor == "label" and _has_gate() and not sources:
        raise ValueError(
            'floor="label" needs the data\'s error: a sciml_snr.NoisyPointSetBC or '
            "sciml_snr.noisy(condition, sigma) among the conditions, or "
            "compile(loss=NoisyLoss(sigma)). The gradient is compared with it."
        )
    gate = _gate_changes(SNR_options)
    options = _common(SNR_options) | {"gate": gate}
    if not sources:
        options |= _published(SNR_options)
    elif isinstance(SNR_options["alpha"], str):
        raise ValueError(
            f"alpha={SNR_options['alpha']!r} belongs to the published rule, and the data's error "
            'is known: give a number, or z, or floor="stream".'
        )
    if name == "snr_soap":
        options |= {key: SNR_options[key] for key in BASIS_OPTIONS}
    groups = _named(list(params))
    if len(groups) == 2 and isinstance(groups[1], dict) and not SNR_options["gate_external"]:
        groups[1] = {**groups[1], **_external_options(options["betas"], bool(sources))}
    options |= {
        "lr": learning_rate,
        "weight_decay": weight_decay,
        "decoupled_weight_decay": False,  # DeepXDE's l2 regularizer is Adam's L2 term
        "foreach": True,  # the networks are small: calls cost more than arithmetic, on CPU too
    }
    optimizer = OPTIMIZERS[name](groups, noise=sources, **options)
    if floor == "auto" and not sources and _has_gate() and model is not None:
        _hint_later(optimizer, model)
    return optimizer


def _external_options(betas: tuple[float, float], beside_noise: bool) -> dict[str, Any]:
    """Of the group of unknown coefficients."""
    beta1, beta2 = betas
    second = min(beta2, EXTERNAL_BETA2) if beside_noise else beta2
    return {"gate": "none", "betas": (beta1, second)}


def _adopt(optimizer: SNRAdam, groups: list[Any]) -> None:
    """Give an optimizer instance the noise of the model's data, and the external variables that it
    does not have."""
    noise = _compiling[-1][1] if _compiling else None
    if noise is not None:
        users = [s for s in optimizer.noise if not isinstance(s, (NoisyRows, NoisyTargets))]
        inside = {id(source.own) for source in noise.sources if isinstance(source, NoisyTargets)}
        users = [source for source in users if id(source) not in inside]
        optimizer.declare([*users, *noise.sources] or None)
        if KEY in optimizer.state:  # it was stepped on another loss
            optimizer.state[KEY]["look"] = True  # type: ignore[index]
    if len(groups) == 2 and isinstance(groups[1], dict):
        own = {p for group in optimizer.param_groups for p in group["params"]}
        missing = [p for p in groups[1]["params"] if p not in own]
        if missing:
            defaults = optimizer.defaults
            group = {
                "params": missing,
                "weight_decay": 0.0,
                **_external_options(defaults["betas"], bool(optimizer.noise)),
            }
            if "param_names" in optimizer.param_groups[0]:
                group["params"] = [
                    (f"external_trainable_variables[{i}]", p) for i, p in enumerate(missing)
                ]
            optimizer.add_param_group(group)


HINT_AFTER = 100
"""Steps on one and the same batch before the hint."""

hint_given = False
"""Whether it has been given in this process."""


def _hint_later(optimizer: Optimizer, model: Any) -> None:
    """Warn, once in a process, when the streaming floor sees the same data in every step."""
    seen: list[Any] = [None, 0]
    fixed = any(condition.batch_size is None for condition in measurements_of(model.data))

    def look(*_: Any) -> None:
        global hint_given
        batch = model.train_state.X_train
        same = batch is seen[0] or (fixed and seen[0] is not None)
        seen[:] = [batch, seen[1] + 1 if same else 0]
        if seen[1] < HINT_AFTER:
            return
        handle.remove()
        if not hint_given and (measurements_of(model.data) or is_supervised(model.data)):
            hint_given = True
            warnings.warn(
                f"The data have not changed in {HINT_AFTER} steps, and nothing is known of their "
                "error: the streaming floor sees no sampling noise of theirs, and will not keep "
                "noise in them from being memorized. Give the error: "
                "sciml_snr.NoisyPointSetBC(points, values, sigma=...), sciml_snr.noisy(condition, "
                "sigma=...), or for supervised data compile(loss=sciml_snr.NoisyLoss(sigma)); "
                'sigma="estimate" estimates it. set_SNR_options(floor="stream") says that this is '
                "meant.",
                stacklevel=2,
            )

    handle = optimizer.register_step_post_hook(look)


def _named(groups: list[Any]) -> list[Any]:
    """The same parameters with their names in the model being compiled, for error messages."""
    if not _compiling:
        return groups
    names = {p: name for name, p in _compiling[-1][0].net.named_parameters()}

    def named(params: Any) -> list[tuple[str, Any]]:
        return [
            (names.get(p, f"external_trainable_variables[{i}]"), p) for i, p in enumerate(params)
        ]

    if groups and isinstance(groups[0], dict):
        return [{**group, "params": named(group["params"])} for group in groups]
    return named(groups)


def _require_pytorch(name: str) -> None:
    from deepxde.backend import backend_name

    if backend_name != "pytorch":
        raise RuntimeError(
            f'The optimizer "{name}" needs DeepXDE\'s backend "pytorch", but the backend in use is '
            f'"{backend_name}". Switch with DDE_BACKEND=pytorch in the environment before deepxde '
            'is imported, or for good with "python -m deepxde.backend.set_default_backend pytorch".'
        )
