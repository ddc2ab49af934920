"""Functions from scattered or indirect measurements, fitted without memorizing their errors."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from torch import nn

from ..runs.config import check_keys, takes
from ..runs.folder import CHECKPOINT, CONFIG, SUMMARY, RunFolder, readable
from ..runs.options import FieldOptions, FitOptions
from .archive import (
    NetworkChoice,
    check_asked,
    open_folder,
    saved_choice,
    sigma_from_json,
    sigma_to_json,
)
from .field_fit import FieldFit, objective_of
from .fit import FIT_GATE, check_steps, completed_gate, fitted, read_checkpoint, summary_of
from .function import Units
from .length_scale import length_scale
from .misfit import report_misfit
from .objective import Watched
from .samples import (
    Array,
    Operator,
    Samples,
    check_dimensions,
    check_errors,
    check_finite,
    check_samples,
    estimated_errors,
    numbers,
    units_by_operator,
    units_of,
)

FULL_BATCH = 8_192
"""Samples up to which all are in every step."""
BATCH = 4_096
"""Samples in a step where there are more."""
COOLDOWN = 0.3
RISE_STEPS, BATCH_Z = 300, 1.5
"""Of the gate of ``snr_soap`` in batches: in many steps noise passes by chance, so the threshold
rises. At 2 it would leave out signal that all samples together show (benchmarks/NOTEBOOK.md)."""

SMOOTH: dict[str, Any] = {
    "hidden_features": 128,
    "hidden_layers": 3,
}
"""Of ``siren``, for scattered samples; its frequencies are chosen by :func:`_frequencies`."""
OMEGA_0, HIGHEST = 1.6, 4.0
"""``first_omega_0`` of scattered samples: by the length scale of what they are samples of, in units
of half the box; and the highest. ``hidden_omega_0`` is 1 more. A higher one memorizes more, a lower
one takes longer. Tried on four functions (docs/results/fields.md)."""
DETAILED: dict[str, Any] = {
    "hidden_features": 64,
    "hidden_layers": 3,
    "first_omega_0": 14.0,
    "hidden_omega_0": 10.0,
}
"""Of ``siren``, for an operator's measurements: mostly of something like an image, and the field
is evaluated at many points for each step."""
INDIRECT = "snr_adam"
"""The optimizer for an operator's measurements: in the eigenbasis the gate closes more of them."""
INDIRECT_Z = 0.25
"""Their gate's threshold. Each of many directions shows little of the signal there, and the
discrepancy closes the gate when the residuals are no larger than sigma says. With 0.1 noise of 5 %
is memorized."""


def default_network(
    name: str, samples: Samples, units: Units, operator: Operator | None
) -> dict[str, Any]:
    """Options of a built-in network that are not given."""
    if name != "siren":
        return {"hidden_features": 128}
    return dict(DETAILED) if operator is not None else SMOOTH | _frequencies(samples, units)


def _frequencies(samples: Samples, units: Units) -> dict[str, float]:
    """The smoother the function, the lower."""
    center, length = np.array(units.center), np.array(units.length)
    mean, deviation = np.array(units.mean), np.array(units.deviation)
    found = length_scale(
        (samples.points - center) / length,
        (samples.values - mean) / deviation,
        samples.sigma_array / deviation,
    )
    first = round(min(HIGHEST, OMEGA_0 / found), 2)
    return {"first_omega_0": first, "hidden_omega_0": first + 1}


def default_training(
    name: str,
    samples: int,
    optimizer: str,
    batch_size: int | None = None,
    *,
    has_operator: bool = False,
    sigma_is_known: bool = True,
) -> dict[str, Any]:
    """Learning rate, steps, samples in a step (unless given), and options of the gate.

    In full batches, and with a known sigma, residuals larger than that open the gate
    (``Gate.discrepancy``).
    """
    batched = batch_size is not None and batch_size < samples
    if not has_operator and batch_size is None and samples > FULL_BATCH:
        batched, batch_size = True, BATCH
    gate: dict[str, Any] = {"discrepancy": sigma_is_known and not batched}
    if has_operator:
        gate["z"] = INDIRECT_Z
    elif batched and optimizer == "snr_soap":
        gate |= {"rise_steps": RISE_STEPS, "z": BATCH_Z}
    lr = {"siren": 3e-3}.get(name, 1e-3)
    return {
        "lr": lr / 3 if optimizer == "adam" else lr,
        "steps": 1000,
        "batch_size": batch_size,
        "cooldown": COOLDOWN,
        "gate": {} if optimizer == "adam" else gate,
    }


@takes(FieldOptions, lr=None, steps=None, cooldown=None)
def fit_field(
    x: ArrayLike | None,
    y: ArrayLike,
    *,
    operator: Operator | None = None,
    outputs: int = 1,
    reference: tuple[ArrayLike, ArrayLike] | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
    **options: Any,
) -> FieldFit:
    """Fit a function to scattered samples of it, or to what an instrument measures of it.

    Needs no stopping rule and no held-out samples: what does not stand out of the errors does not
    move the network. Units do not matter: coordinates and values are scaled inside. A sample counts
    by 1 / sigma^2. The first Ctrl-C ends the fit with a whole result; with ``out``, ``resume=True``
    continues it, with the bits of an uninterrupted one.

    What a gate does not say is as in :data:`sciml_snr.fields.fit.FIT_GATE`; but where all samples
    are in every step, and sigma is given, residuals that are larger than that open it
    (``discrepancy``); in batches of ``"snr_soap"`` z is 1.5, and rises with the steps; for an
    operator's measurements z is 0.25, and the optimizer ``snr_adam``.

    Args:
        x: (n, d) positions of the samples, d = 1 to 4; (n,) for d = 1. With an operator the corners
            of the box in which the field is to be found, (2, d), or None where the operator has
            ``bounds``.
        y: (n,) values, or (n, m) of m outputs. With an operator its measurements, of any shape;
            they may be complex.
        {options}
        operator: what is measured of the field, where that is not its values: a function of torch
            that takes the field, itself a function of points (k, d) with values (k, outputs), in
            the user's units, and returns what it predicts for y. Common ones are in
            :mod:`sciml_snr.fields.operators`. It needs sigma.
        outputs: of the field, with an operator.
        reference: (points, values) of the truth, if known: the root mean square distance of the fit
            from it is logged as ``rmse``. It plays no part in the fit.
        out: folder for ``config.json``, ``metrics.csv``, ``checkpoint.pt``, ``summary.json``,
            ``figure.png`` and ``fit.npz`` (:meth:`FieldFit.load`).
        resume: continue the fit in ``out`` with its own settings. Only ``steps`` may be others.
        progress: draw a progress bar.

    Raises:
        ValueError: samples or an option cannot be used; the message says why.
        FileNotFoundError: there is nothing to resume.
        FileExistsError: ``out`` holds a run, and ``resume`` is False.
        OSError: ``out`` cannot be written to, or another process runs there.

    Example:
        >>> fit = fit_field(positions, temperatures, sigma=0.2)
        >>> fit(new_positions), fit.gradient(new_positions)
        >>> fit = fit_field(None, sinogram, sigma=1.0, operator=LineIntegrals(angles, detectors))
    """
    given = FieldOptions(**options)  # refuses what is out of range
    folder = open_folder(out, "field", resume)
    samples = _samples(x, y, operator, given.sigma)
    if operator is not None:
        _check_operator(operator, outputs, given)
        units = units_by_operator(samples, given.scale, operator, outputs)
    else:
        units, outputs = units_of(samples, given.scale), samples.values.shape[1]
    truth = None if reference is None else _truth(reference, len(units.center), outputs)
    state = None
    own_network, network_options = given.network, options.pop("network_options", None)
    for name in ("sigma", "scale", "network"):
        options.pop(name, None)
    with contextlib.ExitStack() as stack:
        if resume:
            assert folder is not None
            stack.enter_context(folder.locked())
            config, state = read_checkpoint(folder)
            where = folder.path / CHECKPOINT
            check_keys(config, _CONFIG, where)
            choice, units, samples, settings = _resumed(
                folder, config, samples, operator, given, network_options, options
            )
            check_steps(folder, state, options.get("steps"))
            settings = replace(settings, steps=options.get("steps") or settings.steps)
            config = {**config, "options": asdict(settings)}
        else:
            choice = _choose(own_network, network_options, samples, units, operator)
            if choice.options.get("positive"):
                units = replace(units, mean=outputs * (0.0,))
            optimizer = options.setdefault(
                "optimizer", "snr_soap" if operator is None else INDIRECT
            )
            default = default_training(
                choice.name,
                len(samples.values),
                optimizer,
                given.batch_size,
                has_operator=operator is not None,
                sigma_is_known=given.sigma is not None,
            )
            if optimizer != "adam":
                options["gate"] = completed_gate(FIT_GATE | default["gate"], options.get("gate"))
            settings = FitOptions(**default | options)
            config = _config(samples, choice, units, operator is not None, given.scale, settings)
        network = choice.build(len(units.center), outputs, settings.seed)
        objective = objective_of(samples, units, operator, settings)
        if truth is not None:
            objective = Watched(objective, units, *truth)
        if folder is not None and not resume:
            stack.enter_context(folder.locked())
            folder.begin(config)
        training = fitted(
            network,
            objective,
            settings,
            folder=folder,
            config=config,
            state=state,
            progress=progress,
        )
        report_misfit(training, settings)
        fit = FieldFit(samples, units, choice, network, operator, settings, training)
        if folder is not None:
            folder.write_json(CONFIG, folder.described(config))
            folder.write_by(fit.save, "fit.npz")
            folder.write_json(SUMMARY, summary(fit))
            folder.write_figure("figure.png", fit.figure())
    return fit


def _samples(x: Any, y: Any, operator: Operator | None, sigma: Any) -> Samples:
    if operator is None:
        if x is None:
            raise ValueError("x is None: give the positions of the samples, or an operator.")
        points, values, flat = check_samples(x, y)
    else:
        if not callable(operator):
            raise ValueError(f"operator must be a function of the field, got {operator!r}.")
        points, values, flat = _domain(x, operator), _measurements(y), False
        if sigma is None:
            raise ValueError(
                "sigma cannot be estimated from an operator's measurements: give it (repeated "
                "measurements tell it: sciml_snr.estimate_sigma_repeats)."
            )
        shape = np.shape(y)
        told = numbers("sigma", sigma)
        if told.ndim and told.size > 1:
            if told.shape != shape:
                raise ValueError(f"sigma {told.shape} is not of y's shape {shape}.")
            sigma = np.repeat(told.reshape(-1, 1), values.shape[1], axis=1)
    errors = estimated_errors(points, values) if sigma is None else check_errors(sigma, values)
    return Samples(points, values, errors, flat)


def _truth(reference: Any, dimensions: int, outputs: int) -> tuple[Array, Array]:
    """Points (k, d) and values (k, m) of a reference."""
    if not isinstance(reference, (tuple, list)) or len(reference) != 2:
        raise ValueError("reference must be a pair: (points, values).")
    points, values, _ = check_samples(*reference)
    if points.shape[1] != dimensions or values.shape[1] != outputs:
        raise ValueError(
            f"reference has {points.shape[1]} coordinates and {values.shape[1]} outputs, the field "
            f"{dimensions} and {outputs}."
        )
    return points, values


def _domain(x: Any, operator: Any) -> Array:
    """Corners (2, d) of the box in which a field is to be found."""
    if x is None:
        bounds = getattr(operator, "bounds", None)
        if bounds is None:
            raise ValueError(
                "x is None, and the operator has no bounds: give the corners of the field's box, "
                "(2, d)."
            )
        x = np.stack([np.asarray(side, dtype=float) for side in bounds])
    points = numbers("x", x)
    if points.ndim != 2 or len(points) < 2:
        raise ValueError(f"x {points.shape}: with an operator give corners of a box, (2, d).")
    check_finite("x", points)
    check_dimensions(points)
    return np.stack([points.min(axis=0), points.max(axis=0)])


def _measurements(y: Any) -> Array:
    """As a column (n, 1); complex ones as (n, 2)."""
    values = np.asarray(y.detach().cpu().numpy() if hasattr(y, "detach") else y)
    if values.dtype.kind == "c":
        found = np.stack([values.real, values.imag], axis=-1).reshape(-1, 2).astype(float)
    else:
        found = numbers("y", values).reshape(-1, 1)
    if found.size == 0:
        raise ValueError("y is empty: there is nothing to fit.")
    check_finite("y", found)
    if np.ptp(found) == 0:
        raise ValueError(f"y is constant ({found[0, 0]:g}): there is nothing to fit.")
    return found


def _check_operator(operator: Any, outputs: int, given: FieldOptions) -> None:
    if not isinstance(outputs, int) or isinstance(outputs, bool) or outputs < 1:
        raise ValueError(f"outputs must be a positive integer, got {outputs!r}.")
    if given.batch_size is not None and not hasattr(operator, "at"):
        raise ValueError(
            "batch_size needs an operator that can predict a part of its measurements: one with a "
            "method at(field, rows)."
        )
    if given.patience is not None:
        raise ValueError("patience is for samples of the field itself, not for an operator's.")


def _choose(
    network: nn.Module | str | None,
    options: dict[str, Any] | None,
    samples: Samples,
    units: Units,
    operator: Operator | None,
) -> NetworkChoice:
    if isinstance(network, nn.Module):
        if options:
            raise ValueError("network_options are for the built-in networks.")
        return NetworkChoice("own", {}, copy.deepcopy(network))
    name = network or "siren"
    default = default_network(name, samples, units, operator)
    return NetworkChoice(name, {**default, **(options or {})})


def _resumed(
    folder: RunFolder,
    config: Mapping[str, Any],
    samples: Samples,
    operator: Operator | None,
    given: FieldOptions,
    network_options: dict[str, Any] | None,
    options: Mapping[str, Any],
) -> tuple[NetworkChoice, Units, Samples, FitOptions]:
    """Network, units, samples and options of a run that is to go on.

    Raises:
        ValueError: it is of other samples or settings, or is damaged.
    """
    where = folder.path / CHECKPOINT
    if config["samples"] != samples.fingerprint() or config["operator"] != (operator is not None):
        raise ValueError(f"The run in {folder.path} is of other samples, or of another operator.")
    with readable(where):
        errors = errors_from_json(config["sigma"])
    asked = {k: v for k, v in options.items() if k != "steps"}
    if given.sigma is not None:
        asked["sigma"] = errors_to_plain(samples.sigma)
    if given.scale is not None:
        asked["scale"] = _scale_to_json(given.scale)
    own = {**config, "sigma": errors_to_plain(errors)}
    check_asked(folder.path, own, given.network, network_options, asked)
    if isinstance(errors, tuple):
        samples = replace(samples, sigma=errors)
    choice = saved_choice(config, given.network, where)
    units = Units.from_json(config["units"], where)
    return choice, units, samples, FitOptions.from_json(config["options"], where)


def _scale_to_json(scale: Any) -> list[float] | None:
    return None if scale is None else numbers("scale", scale).reshape(-1).tolist()


_CONFIG = (
    *("samples", "operator", "scale", "units"),
    *("network", "network_options", "sigma", "options"),
)


def _config(
    samples: Samples,
    choice: NetworkChoice,
    units: Units,
    has_operator: bool,
    scale: Any,
    options: FitOptions,
) -> dict[str, Any]:
    """``config.json``."""
    values = (
        samples.fingerprint(),
        has_operator,
        _scale_to_json(scale),
        {name: list(value) for name, value in asdict(units).items()},
        choice.name,
        choice.options,
        errors_to_json(samples.sigma),
        asdict(options),
    )
    return dict(zip(_CONFIG, values, strict=True))


def errors_to_json(sigma: tuple[float, ...] | Array) -> Any:
    """Numbers per output; of one per sample a fingerprint."""
    if isinstance(sigma, tuple):
        return [sigma_to_json(s) for s in sigma]
    return errors_to_plain(sigma)


def errors_from_json(saved: Any) -> tuple[float, ...] | str:
    """The inverse, but for a fingerprint."""
    return saved if isinstance(saved, str) else tuple(map(sigma_from_json, saved))


def errors_to_plain(sigma: Sequence[float] | Array | str) -> Any:
    """Something that is equal for equal errors."""
    if isinstance(sigma, np.ndarray):
        return Samples(sigma, sigma, sigma).fingerprint()
    return sigma if isinstance(sigma, str) else list(map(float, sigma))


def summary(fit: FieldFit) -> dict[str, Any]:
    """How a fit ended."""
    sigma = fit.samples.sigma
    typical = [float(s) for s in fit.samples.typical_sigma]
    methods = [getattr(s, "method", "given") for s in sigma] if isinstance(sigma, tuple) else []
    return summary_of(
        fit.options,
        fit.training,
        fit.network,
        kept_step=fit.training.kept_step,
        samples=len(fit.samples.values),
        sigma=[s if math.isfinite(s) else None for s in typical],
        sigma_method=methods or ["given per sample"],
    )
