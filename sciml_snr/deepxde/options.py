"""The hyper-parameters of ``"snr_adam"`` and ``"snr_soap"`` in DeepXDE; ``"snr_gn"`` takes z,
gate="none", and equation_points."""

from __future__ import annotations

import inspect
from typing import Any

from ..gate import Gate, overrides
from ..options import plain_options, validate_options
from ..snr_adam import SNRAdam
from .points import EQUATION_POINTS

SNR_options: dict[str, Any] = {}
"""The options the next ``compile`` will use; change them by :func:`set_SNR_options`."""

_SWITCHES = ("gate_external", "split_step")

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
    split_step: bool = True,
    coordinates: str = "auto",
    basis: str = "both",
    shampoo_beta: float = 0.95,
    precondition_frequency: int = 10,
    max_precondition_dim: int = 2048,
    reduction: str = "none",
    equation_points: int = EQUATION_POINTS,
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
        floor_every (int): Draw for the label floor in every so many steps. 10 is cheaper, and
            better in short trainings; in long ones more noise leaks in (docs/results/zoo.md).
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
        split_step (bool): Train by a step with a forward pass of its own for the measured points,
            for the other conditions and for the equation, where that gives the same losses and
            gradients as DeepXDE's step. False: always by DeepXDE's.
        coordinates (str): Of ``"snr_adam"``: in which moments, floor and gate live. "own", the
            parameters' own; "eigen", the eigenbasis of the gradients' covariances; "auto", the
            eigenbasis where an equation or other exact terms stand beside noisy data, and the
            parameters' own elsewhere. ``"snr_soap"`` is the name for "eigen".
        basis (str): In the eigenbasis: of the covariances of the "gradient", of the "floor", or of
            "both".
        shampoo_beta (float): In the eigenbasis: decay rate of these covariances.
        precondition_frequency (int): In the eigenbasis: renew it every so many steps.
        max_precondition_dim (int): In the eigenbasis: sides longer than this keep their
            coordinates.
        reduction (str): "none": a gate for every entry; "per_tensor": one for every parameter
            tensor.
        equation_points (int): Of ``"snr_gn"``: at how many points an exact equation is imposed at
            least. Beside the model's own, points are drawn from its geometry. 0: the model's own
            alone, as where more do not fit in memory.

    Raises:
        ValueError: A value is out of range; nothing is changed then.
    """
    options = {k: v if k == "gate" else plain_options({k: v})[k] for k, v in locals().items()}
    if floor not in ("auto", "label", "stream"):
        raise ValueError(f"Invalid floor: {floor!r}; it must be 'auto', 'label' or 'stream'.")
    for name in _SWITCHES:
        if not isinstance(options[name], bool):
            raise ValueError(f"Invalid {name}: {options[name]!r}; it must be True or False.")
    points = options["equation_points"]
    if not isinstance(points, int) or isinstance(points, bool) or points < 0:
        raise ValueError(f"Invalid equation_points: {points!r}; it must be a whole number >= 0.")
    validate_options({**_DEFAULTS, **published_options(options), **common_options(options)})
    gate_changes(options)

    SNR_options.update(options)


def common_options(options: dict[str, Any]) -> dict[str, Any]:
    """The options that are an optimizer's, whatever the gate."""
    apart = ("gate", "floor", "equation_points", *_SWITCHES, *_GATE_FIELDS)
    return {name: value for name, value in options.items() if name not in apart}


def published_options(options: dict[str, Any]) -> dict[str, Any]:
    """Threshold and weight of the published rule, where they are given."""
    return {k: options[k] for k in ("alpha", "lambd") if options[k] is not None}


def gate_changes(options: dict[str, Any]) -> dict[str, Any] | None:
    """What is given of the gate, as changes to the one that goes with the loss."""
    changes = dict(overrides(options["gate"]) or {})
    for name in _GATE_FIELDS:
        value = options[name]
        if value is not None and not (name == "alpha" and isinstance(value, str)):
            changes[name] = value
    return overrides(changes) if changes else None


def has_gate() -> bool:
    """Whether the options ask for more than plain Adam."""
    return (gate_changes(SNR_options) or {}).get("form") != "none"


set_SNR_options()
