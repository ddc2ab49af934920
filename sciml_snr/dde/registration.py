"""Make ``compile("snr_adam")`` and ``compile("snr_soap")`` work in DeepXDE, and their options."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any

from torch.optim import Optimizer

from ..gate import EXACT_GATES, LABEL_GATE, STREAM_GATE, with_options
from ..noise import check_sigma
from ..snr_adam import SNRAdam, plain_numbers, validate_options
from ..snr_soap import SNRSOAP, validate_basis_options
from .observations import (
    LabelGatedSNRAdam,
    LabelGatedSNRSOAP,
    ModelNoise,
    as_tensor,
    is_supervised,
    measurements_of,
)

OPTIMIZERS: dict[str, tuple[type[SNRAdam], Any]] = {
    "snr_adam": (SNRAdam, LabelGatedSNRAdam),
    "snr_soap": (SNRSOAP, LabelGatedSNRSOAP),
}
"""The names this package adds to DeepXDE: the optimizer without and with a label floor."""

SNR_options: dict[str, Any] = {}
"""The options the next ``compile`` will use; change them by :func:`set_SNR_options`."""

_DEFAULTS = {
    name: parameter.default
    for name, parameter in inspect.signature(SNRAdam.__init__).parameters.items()
    if parameter.default is not inspect.Parameter.empty
}


BASIS_OPTIONS = ("basis", "shampoo_beta", "precondition_frequency", "max_precondition_dim")
"""The options that only ``"snr_soap"`` has."""


def set_SNR_options(
    gate: str | None = None,
    alpha: float | str | None = None,
    lambd: float | None = None,
    z: float | None = None,
    sigma: Any = None,
    floor: str = "auto",
    floor_every: int = 1,
    rho: float = 0.99,
    warmup_steps: int | None = None,
    rise_steps: int | None = None,
    discrepancy: bool | None = None,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    gate_eps: float = 1e-30,
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
    ``compile``'s; an l2 regularizer of the network acts as it does for ``"adam"``.

    Args:
        gate (str): "soft", "hard", "snr", "stein", or "none" for plain Adam. The defaults of gate,
            alpha, lambd, z, warmup_steps, rise_steps and discrepancy go with the floor:
            :data:`sciml_snr.gate.STREAM_GATE` (published rule), :data:`sciml_snr.gate.LABEL_GATE`
            where all of the loss is noisy, :data:`sciml_snr.gate.EXACT_GATES` where not (thresholds
            chosen for "stein": another gate wants another z).
        alpha (float or str): Threshold of the gate; "fresh" = 1, or "finite" = b / (n - b).
        lambd (float): Weight of the noise floor in the soft and snr gates.
        z (float): Threshold in standard errors of the mean gradient, in place of alpha.
        sigma (float, array or list): Standard deviation of the measurements' error, for conditions
            that do not carry one (:class:`NoisyPointSetBC` does). One number or (n, 1) array: for
            every PointSetBC and PointSetOperatorBC, or for the targets of supervised data. A list:
            one entry per loss term in the order of loss_weights (equations, then conditions), 0 for
            exact ones, None for what the condition itself says (nothing: exact). A measured source
            term is given in its equation's place.
        floor (str): What the gradient has to stand out of: "label", the error of the measurements
            (``sigma``, :class:`NoisyPointSetBC`); "stream", the published estimate from step to
            step; "auto", the first where there is a measurement that knows its error, else the
            second.
        floor_every (int): Refresh the label floor every so many steps.
        rho (float): Decay rate of the streaming gradient variance.
        warmup_steps (int): Steps before the gate acts.
        rise_steps (int): Steps in which the threshold rises by a third, and on from there like
            their logarithm; 0 for a constant one.
        discrepancy (bool): Keep the gate open by a part as long as the residuals are larger than
            the measurements' error explains. It takes sigma at its word.
        betas (tuple): Adam's decay rates (of unknown coefficients: see gate_external).
        eps (float): Adam's epsilon.
        gate_eps (float): Epsilon of the gate.
        batch_size (int): b, for ``alpha="finite"``.
        data_size (int): n, for ``alpha="finite"``.
        nonfinite (str): At a NaN or infinite gradient "raise" an error, or "skip" the step.
        gate_external (bool): Gate the ``external_trainable_variables`` too. They are few, carry
            all the data's information on an unknown coefficient, and are not gated by default.
            The label floor of a coefficient that only the equation holds is 0: its gate is open.
            Not gated, and with an equation beside a label floor, their second moment has a decay
            rate of 0.99 at most: the equation comes to hold so well under a closed gate that what
            it says of them fades, and the memory of its first gradients would stop them.
        basis (str): For ``"snr_soap"``: the eigenbasis of the covariances of the "gradient", of the
            "floor", or of "both".
        shampoo_beta (float): For ``"snr_soap"``: decay rate of these covariances.
        precondition_frequency (int): For ``"snr_soap"``: renew the basis every so many steps.
        max_precondition_dim (int): For ``"snr_soap"``: sides longer than this keep their
            coordinates.

    Raises:
        ValueError: A value is out of range; nothing is changed then.
    """
    options = plain_numbers(locals())
    floor_every, gate_external = options["floor_every"], options["gate_external"]
    if floor not in ("auto", "label", "stream"):
        raise ValueError(f"Invalid floor: {floor!r}; it must be 'auto', 'label' or 'stream'.")
    if not isinstance(floor_every, int) or floor_every < 1:
        raise ValueError(f"Invalid floor_every: {floor_every!r}; it must be an integer >= 1.")
    if not isinstance(gate_external, bool):
        raise ValueError(f"Invalid gate_external: {gate_external!r}; it must be True or False.")
    for entry in sigma if isinstance(sigma, (list, tuple)) else [sigma]:
        if isinstance(entry, str):
            raise ValueError(f"Invalid sigma: {entry!r}; it must be a number or an array.")
        if entry is not None:
            check_sigma(as_tensor(entry))
    given = {k: v for k, v in options.items() if v is not None or k not in STREAM_GATE}
    validate_options({**_DEFAULTS, **given})
    validate_basis_options(given)
    SNR_options.update(options)


set_SNR_options()


def register(deepxde: ModuleType) -> None:
    """Teach ``deepxde.optimizers`` the names in :data:`OPTIMIZERS`; doing it twice does nothing."""
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
        arguments = (*args, *kwargs.values())
        name = next((a for a in arguments if isinstance(a, str) and a in OPTIMIZERS), None)
        if name is None:
            return original(*args, **kwargs)
        _require_pytorch(name)
        call = inspect.signature(original).bind(*args, **kwargs)
        call.apply_defaults()
        if call.arguments["learning_rate"] is None:
            raise ValueError(f"No learning rate for {name}.")
        # With an optimizer instance the original adds what remains: the learning rate's decay.
        call.arguments["optimizer"] = _build(name, **call.arguments)
        return original(*call.args, **call.kwargs)

    get._sciml_snr = True  # type: ignore[attr-defined]
    return get


_compiling: list[tuple[Any, Any]] = []
"""The model that is being compiled, and its loss: ``optimizers.get`` is not told of them."""


def _announced(original: Callable[..., Any]) -> Callable[..., Any]:
    """``Model.compile`` that lets :func:`_build` know of the model."""

    @functools.wraps(original)
    def compile(self: Any, *args: Any, **kwargs: Any) -> Any:
        call = inspect.signature(original).bind(self, *args, **kwargs)
        _compiling.append((self, call.arguments.get("loss", "MSE")))
        try:
            return original(self, *args, **kwargs)
        finally:
            _compiling.pop()

    return compile


def _build(
    name: str, params: Any, learning_rate: float, weight_decay: float, **_: Any
) -> Optimizer:
    """The optimizer for DeepXDE's parameters: the network's, or [network's, external] groups."""
    options = dict(SNR_options)
    if name != "snr_soap":
        options = {k: v for k, v in options.items() if k not in BASIS_OPTIONS}
    gate_external, sigma = options.pop("gate_external"), options.pop("sigma")
    floor, every = options.pop("floor"), options.pop("floor_every")
    plain, label_gated = OPTIMIZERS[name]
    noise = None if floor == "stream" else _model_noise(sigma, required=floor == "label")
    if noise is None:
        defaults = STREAM_GATE
    else:
        defaults = EXACT_GATES[name] if noise.has_exact_terms else LABEL_GATE
    options |= with_options(defaults, {key: options[key] for key in defaults})
    groups = _named(list(params))
    if len(groups) == 2 and isinstance(groups[1], dict) and not gate_external:
        groups[1] = {**groups[1], "gate": "none"}
        if noise is not None and noise.has_exact_terms and options["gate"] != "none":
            beta1, beta2 = options["betas"]
            groups[1]["betas"] = (beta1, min(beta2, EXTERNAL_BETA2))
    options |= {
        "lr": learning_rate,
        "weight_decay": weight_decay,
        "decoupled_weight_decay": False,  # DeepXDE's l2 regularizer is Adam's L2 term
        "foreach": True,  # the networks are small: calls cost more than arithmetic, on CPU too
    }
    if noise is not None and options["gate"] != "none":
        return label_gated(  # type: ignore[no-any-return]
            groups,
            noise=noise,
            every=every,
            **options,
        )
    optimizer = plain(groups, **options)
    if floor == "auto" and noise is None and options["gate"] != "none" and _compiling:
        _hint_later(optimizer, _compiling[-1][0])
    return optimizer


EXTERNAL_BETA2 = 0.99
"""Largest decay rate of the second moment of unknown coefficients that an equation beside a label
floor holds."""

HINT_AFTER = 100
"""Steps on one and the same batch before the hint."""

_hinted = False


def _hint_later(optimizer: Optimizer, model: Any) -> None:
    """Warn, once in a process, when the streaming floor sees the same data in every step."""
    seen: list[Any] = [None, 0]
    fixed = any(condition.batch_size is None for condition in measurements_of(model.data))

    def look(*_: Any) -> None:
        global _hinted
        batch = model.train_state.X_train
        same = batch is seen[0] or (fixed and seen[0] is not None)
        seen[:] = [batch, seen[1] + 1 if same else 0]
        if seen[1] < HINT_AFTER:
            return
        handle.remove()
        if not _hinted and (measurements_of(model.data) or is_supervised(model.data)):
            _hinted = True
            warnings.warn(
                f"The data have not changed in {HINT_AFTER} steps, and nothing is known of their "
                "error: the streaming floor sees no sampling noise of theirs, and will not keep "
                "noise in them from being memorized. Give the error: "
                "sciml_snr.NoisyPointSetBC(points, values, sigma=...) or "
                "set_SNR_options(sigma=...); sciml_snr.estimate_sigma_scattered(points, values) "
                'estimates it. set_SNR_options(floor="stream") says that this is meant.',
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


def _model_noise(sigma: Any, required: bool) -> ModelNoise | None:
    """What is known of the errors in the data of the model that is being compiled."""
    noise = ModelNoise(_compiling[-1][0], sigma, _compiling[-1][1]) if _compiling else None
    if noise:
        return noise
    if required:
        raise ValueError(
            'floor="label" needs the measurements\' error: a sciml_snr.NoisyPointSetBC among the '
            "conditions, or set_SNR_options(sigma=...). The gradient is compared with it."
        )
    return None


def _require_pytorch(name: str) -> None:
    from deepxde.backend import backend_name

    if backend_name != "pytorch":
        raise RuntimeError(
            f'The optimizer "{name}" needs DeepXDE\'s backend "pytorch", but the backend in use is '
            f'"{backend_name}". Switch with DDE_BACKEND=pytorch in the environment before deepxde '
            'is imported, or for good with "python -m deepxde.backend.set_default_backend pytorch".'
        )
