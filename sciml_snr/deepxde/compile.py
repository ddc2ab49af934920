"""``compile("snr_adam")``, ``"snr_soap"`` and ``"snr_gn"`` in DeepXDE, and their options.

Importing this package patches DeepXDE in two places, both in :func:`register`: ``Model.compile``
learns of the noise in the model's data, and ``optimizers.get`` of our names.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any

from torch.optim import Optimizer

from ..gauss_newton import SNRGaussNewton
from ..handover import KEY
from ..noise import NoisyLoss
from ..snr_adam import SNRAdam
from ..snr_soap import SNRSOAP
from . import gauss_newton, split_step
from .caller import users_stacklevel
from .conditions import (
    NoisyCondition,
    check_points,
    conditions_of,
    is_supervised,
    measurements_of,
)
from .model_noise import ModelNoise, remember
from .options import (
    SNR_options,
    common_options,
    gate_changes,
    has_gate,
    published_options,
    set_SNR_options,
)
from .rows import NoisyRows, NoisyTargets

OPTIMIZERS: dict[str, type[SNRAdam]] = {"snr_adam": SNRAdam, "snr_soap": SNRSOAP}
"""The names of first order that this package adds to DeepXDE."""

NAMES = (*OPTIMIZERS, gauss_newton.NAME)
"""All names that it adds."""

EXTERNAL_BETA2 = 0.99
"""Largest decay rate of the second moment of unknown coefficients beside noisy data."""


def register(deepxde: ModuleType) -> None:
    """Teach DeepXDE the names in :data:`NAMES`; doing it twice does nothing."""
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
        elif isinstance(wanted, SNRGaussNewton):
            gauss_newton.adopt(wanted, list(call.arguments["params"]))
        elif isinstance(wanted, str):
            _check_name(wanted)
            if wanted == gauss_newton.NAME:
                _require_pytorch(wanted)
                call.arguments["optimizer"] = gauss_newton.build(
                    _named(list(call.arguments["params"])),
                    call.arguments["learning_rate"],
                    call.arguments["decay"],
                )
                return original(*call.args, **call.kwargs)
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
    if wanted in NAMES:
        return
    near = difflib.get_close_matches(
        wanted.lower().replace("-", "_").replace(" ", "_"), NAMES, n=1, cutoff=0.8
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
        if isinstance(optimizer, SNRGaussNewton) or optimizer == gauss_newton.NAME:
            check_points(self.data)
            return _compile_gauss_newton(original, self, call)
        is_ours = isinstance(optimizer, SNRAdam) or optimizer in OPTIMIZERS
        is_noisy = _has_noise(self, call.arguments.get("loss"))
        if not is_noisy and not is_ours:
            remember(self, None)
            found = original(self, *args, **kwargs)
            split_step.remember_losses(self, call.arguments.get("loss", "MSE"))
            return found
        if isinstance(optimizer, str) and is_ours:
            _require_pytorch(optimizer)
        check_points(self.data)
        hands_over = is_ours and (
            not isinstance(optimizer, str) or (has_gate() and SNR_options["floor"] != "stream")
        )
        noise = ModelNoise(self, call.arguments.get("loss", "MSE"), hands_over)
        remember(self, noise if is_noisy else None)
        call.arguments["loss"] = noise.loss_functions
        _compiling.append((self, noise))
        try:
            found = original(*call.args, **call.kwargs)
        finally:
            _compiling.pop()
        split_step.remember_losses(self, noise.loss_functions)
        if is_ours:
            _choose_step(self, noise)
        return found

    return compile


def _compile_gauss_newton(original: Callable[..., Any], model: Any, call: Any) -> Any:
    """``Model.compile`` for rows instead of losses."""
    _require_pytorch(gauss_newton.NAME)
    losses = call.arguments.get("loss", "MSE")
    noise = ModelNoise(model, losses, hands_over=False)
    gauss_newton.check(model, losses)
    remember(model, noise if _has_noise(model, losses) else None)
    _compiling.append((model, noise))
    try:
        found = original(*call.args, **call.kwargs)
    finally:
        _compiling.pop()
    split_step.remember_losses(model, losses)
    split_step.keep_own(model, "the optimizer has a step of its own")
    gauss_newton.install(model, losses)
    return found


def _choose_step(model: Any, noise: ModelNoise) -> None:
    """Give a model with an optimizer of ours the split step, where it is of use."""
    if not noise.sources:
        split_step.keep_own(model, "the optimizer knows of no noise")
    elif not SNR_options["split_step"]:
        split_step.keep_own(model, "set_SNR_options(split_step=False)")
    else:
        split_step.install(model, noise)
    if noise.sources:
        noise.sources[-1].note = split_step.step_of


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
    if floor == "label" and has_gate() and not sources:
        raise ValueError(
            'floor="label" needs the data\'s error: a sciml_snr.NoisyPointSetBC or '
            "sciml_snr.noisy(condition, sigma) among the conditions, or "
            "compile(loss=NoisyLoss(sigma)). The gradient is compared with it."
        )
    gate = gate_changes(SNR_options)
    options = common_options(SNR_options) | {"gate": gate}
    if not sources:
        options |= published_options(SNR_options)
    elif isinstance(SNR_options["alpha"], str):
        raise ValueError(
            f"alpha={SNR_options['alpha']!r} belongs to the published rule, and the data's error "
            'is known: give a number, or z, or floor="stream".'
        )
    if name == "snr_soap":
        options["coordinates"] = "eigen"
    groups = _named(list(params))
    if len(groups) == 2 and isinstance(groups[1], dict) and not SNR_options["gate_external"]:
        groups[1] = {**groups[1], **_external_options(options["betas"], bool(sources))}
    options |= {
        "lr": learning_rate,
        "weight_decay": weight_decay,
        "decoupled_weight_decay": False,  # DeepXDE's l2 regularizer is Adam's L2 term
        "foreach": True,  # the networks are small: calls cost more than arithmetic, on CPU too
        "process_group": False,  # DeepXDE trains in one process; others train models of their own
    }
    optimizer = OPTIMIZERS[name](groups, noise=sources, **options)
    if floor == "auto" and not sources and has_gate() and model is not None:
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
        optimizer.declare([*users, *noise.sources] or None, process_group=False)
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
    last_batch: Any = None
    steps = 0
    sizes = [getattr(condition, "batch_size", None) for condition in measurements_of(model.data)]
    fixed = None in sizes

    def look(*_: Any) -> None:
        global hint_given
        nonlocal last_batch, steps
        batch = model.train_state.X_train
        same = batch is last_batch or (fixed and last_batch is not None)
        last_batch, steps = batch, steps + 1 if same else 0
        if steps < HINT_AFTER:
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
                stacklevel=users_stacklevel(),
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
