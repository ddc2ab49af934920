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
from .misfit import report_misfit
from .normals import VOTES, estimate_normals, one_sided_normals, ways_to
from .patches import estimate_sigma_points, thinner_by_sides
from .points import Cloud, read_cloud
from .surface_fit import KIND, SDFFit, config_of, from_config, summary
from .surface_objective import OF_THIN_WALLS, THIN, Array, Weights, objective_of

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
    seed, orient = options.get("seed", 0), options.pop("orient", None)
    check_orient(orient)
    state = None
    if resume and orient is None:
        assert folder is not None
        orient = _orient_of(read_checkpoint(folder)[0], folder.path / CHECKPOINT)
    cloud = read_cloud(
        points,
        _given(normals),
        sample=options.pop("sample", None),
        seed=seed,
        drop_bad=options.pop("drop_bad", False),
        viewpoints=None if orient is None or isinstance(orient, str) else orient,
    )
    if isinstance(orient, str):
        if orient == "normals" and cloud.normals is None:
            raise ValueError("orient = 'normals', and there are no normals.")
        cloud = replace(cloud, viewpoints=None)  # the file's, which are not asked for
    fingerprint = _fingerprint(cloud, orient is None)
    with contextlib.ExitStack() as stack:
        if resume:
            assert folder is not None
            stack.enter_context(folder.locked())
            config, state = read_checkpoint(folder)
            where = folder.path / CHECKPOINT
            config = {"orient": None, **config}  # which runs did not always have
            check_keys(config, _CONFIG, where)
            if config["points"] != fingerprint:
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
                "orient": _orient_to_json(orient),
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
            told = _told_sigma(sigma, cloud, orient)
            _tell_rounded(cloud, float(told))
            weights = weights or _default_weights(cloud, orient)
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
        used = replace(cloud, normals=_normals(cloud, orient) if with_normals else None)
        config = {
            **config_of(choice, told, weights, training_options),
            "points": fingerprint,
            "normals": with_normals,
            "orient": _orient_to_json(orient),
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
        report_misfit(training, training_options)
        fit = SDFFit(used, choice, model, told, weights, training_options, training)
        if folder is not None:
            folder.write_json(CONFIG, folder.described(config))
            folder.write_by(fit.save, "fit.npz")
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


def check_orient(orient: ArrayLike | str | None) -> None:
    """Refuse what says nothing about sides.

    Raises:
        ValueError: it is another text.
    """
    if isinstance(orient, str) and orient not in ("up", "normals"):
        raise ValueError(
            f"orient must be 'up', 'normals', or where the points were seen from, got {orient!r}."
        )


def _orient_to_json(orient: Any) -> Any:
    """What a run says of it: of many viewpoints only which they are."""
    if orient is None or isinstance(orient, str):
        return orient
    found = np.asarray(orient, dtype=float)
    if found.ndim == 1:
        return found.tolist()
    return f"viewpoints {hashlib.sha256(found.tobytes()).hexdigest()[:16]}"


def _orient_of(config: dict[str, Any], where: Path) -> Any:
    """What a run that is resumed was told of sides.

    Raises:
        ValueError: it had a viewpoint for each point, which are to be given again.
    """
    found = config.get("orient")
    if isinstance(found, str) and found.startswith("viewpoints"):
        raise ValueError(f"The run of {where} had a viewpoint for each point: give orient= again.")
    return found


def _ways(cloud: Cloud, orient: ArrayLike | str | None) -> Array | None:
    """Ways out of the surface (n, d), if they are known without a guess."""
    if cloud.viewpoints is not None:
        return ways_to(cloud.viewpoints, cloud.points)
    return None if isinstance(orient, str) and orient == "up" else cloud.normals


def _normals(cloud: Cloud, orient: ArrayLike | str | None) -> Array:
    """The cloud's, or estimated where it has none or only those of faces between the points."""
    points, own = cloud.points, cloud.normals
    ways, has_own = _ways(cloud, orient), own is not None and not cloud.only_orientation
    if has_own and not (isinstance(orient, str) and orient == "normals"):
        assert own is not None
        if orient is None:
            return own
        facing = own[:, -1] if ways is None else np.einsum("ij,ij->i", own, ways)
        return np.asarray(own * np.where(facing < 0, -1.0, 1.0)[:, None])
    if ways is None:
        return estimate_normals(points, orient=orient)
    return one_sided_normals(points, ways, votes=0 if cloud.viewpoints is None else VOTES)


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


def _default_weights(cloud: Cloud, orient: ArrayLike | str | None) -> Weights:
    """Those of thin walls where the sides that were told show that there are such."""
    is_told = orient is not None or cloud.viewpoints is not None
    ways = _ways(cloud, orient) if is_told else None
    if ways is None or thinner_by_sides(cloud.points, ways) > THIN:
        return Weights()
    return OF_THIN_WALLS


def _told_sigma(sigma: float | None, cloud: Cloud, orient: ArrayLike | str | None) -> float:
    """As given, or estimated."""
    if sigma is None:
        return estimate_sigma_points(cloud.points, sides=_ways(cloud, orient))
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


def _fingerprint(cloud: Cloud, has_viewpoints: bool) -> str:
    """Equal for equal points with equal normals of their own, and, if the viewpoints are the
    file's, equal ones of those."""
    found = hashlib.sha256(np.ascontiguousarray(cloud.points).tobytes())
    for told in (cloud.normals, cloud.viewpoints if has_viewpoints else None):
        if told is not None:
            found.update(np.ascontiguousarray(told).tobytes())
    return found.hexdigest()[:16]


_CONFIG = (
    *("network", "network_options", "sigma", "weights", "options", "points", "normals"),
    "orient",
)
