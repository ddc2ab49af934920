"""Surfaces (and plane curves) fitted to noisy points: :func:`fit_sdf`.

The terms of the loss, and why they are as they are: :mod:`sciml_snr.fields.surface_objective`.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import math
import warnings
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from torch import nn

from ..gate import BESIDE_EXACT
from ..runs.config import check_keys, takes
from ..runs.folder import CHECKPOINT, CONFIG, SUMMARY
from ..runs.options import FitOptions, PointsOptions
from .archive import NetworkChoice, check_asked, open_folder
from .files.meshes import single_step
from .fit import check_steps, completed_gate, fitted, read_checkpoint
from .normals import estimate_normals
from .patches import estimate_sigma_points
from .points import Cloud, read_cloud
from .surface_fit import KIND, SDFFit, config_of, from_config, summary
from .surface_objective import Array, Weights, objective_of

SIZE = {"hidden_features": 64, "hidden_layers": 4}
"""Of a built-in network."""

LEARNING_RATES = {"softplus": 3e-3}
"""By network; 1e-4 for another."""

BATCH_GATES: dict[str, dict[str, Any]] = {
    "snr_soap": {"form": "snr", "z": 2.0, "warmup_steps": 500, "follow": False},
    "snr_adam": {"form": "snr", "z": 3.0, "warmup_steps": 500, "follow": False},
}
"""In batches, by optimizer: the form that never quite closes, since the exact terms are to be met
in the end. With all points in every step the gate is :data:`sciml_snr.gate.BESIDE_EXACT`, and in
space the exact terms carry on along the noisy terms' level set, as an equation does. (The gradient
of one small batch is not that of the data: there the same was no better.)"""

STEPS = 2000
FULL_BATCH = 2_048
"""Up to so many points are all in every step."""

BATCH_SIZE = 512
"""Points in a step of a larger cloud."""

FLOOR_EVERY = 5
COOLDOWN = 0.3
"""By default."""


def default_training(
    shape: tuple[int, int], optimizer: str, batch_size: int | None = None
) -> dict[str, Any]:
    """What follows from the shape (n, d) of the points, and from those in a step where given.

    Returns:
        Points in a step (None: all of them), and options of the gate. Exact terms move what is
        closed (``follow``) in space, where they are far from met when the gate closes, and not in
        the plane, where they only disturb it.
    """
    n, dim = shape
    if batch_size is None and n > FULL_BATCH:
        batch_size = BATCH_SIZE
    whole = not (isinstance(batch_size, int) and batch_size < n)
    gate: dict[str, Any] = {}
    if optimizer in BATCH_GATES:
        gate = BATCH_GATES[optimizer]
        if whole:
            coordinates = "eigen" if optimizer == "snr_soap" else "own"
            gate = {"z": BESIDE_EXACT[coordinates].z, "follow": dim == 3}
    return {"batch_size": batch_size, "gate": gate}


@takes(
    PointsOptions,
    without=("patience",),
    lr=None,
    steps=STEPS,
    floor_every=FLOOR_EVERY,
    cooldown=COOLDOWN,
    network="softplus",
)
def fit_sdf(
    points: ArrayLike | str | Path,
    normals: ArrayLike | str | None = "auto",
    *,
    weights: Weights | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
    **options: Any,
) -> SDFFit:
    """Fit a signed distance to noisy points on a surface, without memorizing their errors.

    Needs no clean surface and no stopping rule: what does not stand out of the points' error does
    not move the network. The first Ctrl-C ends the fit with a whole result; with ``out``,
    ``resume=True`` continues it, with the bits of an uninterrupted one.

    sigma that is not given is estimated (:func:`estimate_sigma_points`). A step takes all of up to
    2,048 points, and 512 of more. What a gate does not say is as in
    :data:`sciml_snr.gate.BESIDE_EXACT` where all points are in every step, and else as in
    :data:`BATCH_GATES`: among others open in the first 500 steps (``warmup_steps``), so that in a
    shorter fit nothing is gated.

    Args:
        points: (n, 3), or (n, 2) for a curve in the plane, or a file: :func:`read_cloud`.
        normals: (n, d), pointing outward, or ``"auto"``: the file's, or else estimated
            (:func:`estimate_normals`; faces tell which side is outside). ``"estimate"``: estimated
            also where the file has some. ``None``: no normal term, which does for shapes like a
            sphere and mostly not for others.
        {options}
        weights: of the terms of the loss.
        out: folder for ``config.json``, ``metrics.csv``, ``checkpoint.pt``, ``summary.json``,
            ``figure.png`` and ``fit.npz`` (:meth:`SDFFit.load`).
        resume: continue the fit in ``out`` with its own settings. Only ``steps`` may be others.
        progress: draw a progress bar.

    Raises:
        ValueError: points or an option cannot be used; the message says why.
        FileNotFoundError: there is no such file, or nothing to resume.
        FileExistsError: ``out`` holds a run, and ``resume`` is False.
        OSError: ``out`` cannot be written to, or another process runs there.

    Example:
        >>> fit = fit_sdf("scan.ply")
        >>> fit.mesh(resolution=256).export("clean.ply")
    """
    if not resume:
        PointsOptions(**options)  # refuses what is out of range
    folder = open_folder(out, KIND, resume)
    given_network = options.pop("network", None)
    network_options, sigma = options.pop("network_options", None), options.pop("sigma", None)
    seed = options.get("seed", 0)
    cloud = read_cloud(
        points,
        _given(normals),
        sample=options.pop("sample", None),
        seed=seed,
        drop_bad=options.pop("drop_bad", False),
    )
    state = None
    with contextlib.ExitStack() as stack:
        if resume:
            assert folder is not None
            stack.enter_context(folder.locked())
            config, state = read_checkpoint(folder)
            where = folder.path / CHECKPOINT
            check_keys(config, _CONFIG, where)
            if config["points"] != _fingerprint(cloud):
                raise ValueError(
                    f"The run in {out} is of other points, or normals, or of another sample or "
                    "seed."
                )
            steps = options.pop("steps", None)
            asked = {
                **options,
                "sigma": sigma,
                "weights": None if weights is None else asdict(weights),
                "normals": False if normals is None else None,
            }
            choice, told, weights, training_options = from_config(config, given_network, where)
            own = {**config, "sigma": float(told)}
            check_asked(folder.path, own, given_network, network_options, asked)
            check_steps(folder, state, steps)
            if steps is not None:
                training_options = replace(training_options, steps=steps)
            with_normals = config["normals"]
        else:
            choice = _choose(given_network or "softplus", network_options)
            told = estimate_sigma_points(cloud.points) if sigma is None else _checked_sigma(sigma)
            _tell_rounded(cloud, float(told))
            weights = weights or Weights()
            if not isinstance(weights, Weights):
                raise ValueError(f"weights must be a sciml_snr.fields.Weights, got {weights!r}.")
            with_normals = normals is not None and weights.normal > 0
            default: dict[str, Any] = {
                "lr": LEARNING_RATES.get(choice.name, 1e-4),
                "steps": STEPS,
                "floor_every": FLOOR_EVERY,
                "cooldown": COOLDOWN,
            }
            name, batch = options.get("optimizer", "snr_soap"), options.get("batch_size")
            by_points = default_training(cloud.points.shape, name, batch)
            by_points["gate"] = completed_gate(by_points["gate"], options.pop("gate", None))
            training_options = FitOptions(**default | options | by_points)
        model = choice.build(cloud.points.shape[1], 1, training_options.seed)
        used = replace(cloud, normals=_normals(cloud) if with_normals else None)
        config = {
            **config_of(choice, told, weights, training_options),
            "points": _fingerprint(cloud),
            "normals": with_normals,
        }
        objective = objective_of(used, told, weights, training_options)
        if folder is not None and not resume:
            stack.enter_context(folder.locked())
            folder.begin(config)
        training = fitted(
            model,
            objective,
            training_options,
            folder=folder,
            config=config,
            state=state,
            progress=progress,
        )
        fit = SDFFit(used, choice, model, told, weights, training_options, training)
        if folder is not None:
            folder.write_json(CONFIG, folder.described(config))
            fit.save(folder.path / "fit.npz")
            folder.write_json(SUMMARY, summary(fit))
            try:
                figure = fit.figure()
            except ValueError:  # no surface (yet): nothing to draw, and nothing lost
                return fit
            folder.write_figure("figure.png", figure)
    return fit


def _given(normals: ArrayLike | str | None) -> ArrayLike | str | None:
    if isinstance(normals, str) and normals not in ("auto", "estimate"):
        raise ValueError(f"normals must be an array, 'auto', 'estimate' or None, got {normals!r}.")
    return None if isinstance(normals, str) and normals == "auto" else normals


def _normals(cloud: Cloud) -> Array:
    """The cloud's, or estimated where it has none or only those of faces between the points."""
    if cloud.normals is not None and not cloud.only_orientation:
        return cloud.normals
    return estimate_normals(cloud.points, like=cloud.normals)


def _tell_rounded(cloud: Cloud, sigma: float) -> None:
    """Say so where the points have lost their last digits in single precision."""
    step = single_step(cloud.points)
    if step > sigma / 10 > 0 and (cloud.points == cloud.points.astype(np.float32)).all():
        warnings.warn(
            f"The points are in steps of {step:g}, more than a tenth of sigma ({sigma:.3g}): "
            "single precision is too coarse for such coordinates. Take something off them before "
            "they are written, or write them in double precision.",
            stacklevel=4,
        )


def _checked_sigma(sigma: float) -> float:
    if np.ndim(sigma) or isinstance(sigma, str):
        raise ValueError(f"sigma must be one number for all points, got {sigma!r}.")
    if not 0 <= sigma < math.inf:
        raise ValueError(f"sigma must be finite and >= 0, got {sigma}.")
    return float(sigma)


def _choose(network: nn.Module | str, options: dict[str, Any] | None) -> NetworkChoice:
    if isinstance(network, nn.Module):
        if options:
            raise ValueError("network_options are for the built-in networks.")
        return NetworkChoice("own", {}, copy.deepcopy(network))
    return NetworkChoice(network, {**SIZE, **(options or {})})


def _fingerprint(cloud: Cloud) -> str:
    """Equal for equal points with equal normals of their own."""
    found = hashlib.sha256(np.ascontiguousarray(cloud.points).tobytes())
    if cloud.normals is not None:
        found.update(np.ascontiguousarray(cloud.normals).tobytes())
    return found.hexdigest()[:16]


_CONFIG = ("network", "network_options", "sigma", "weights", "options", "points", "normals")
