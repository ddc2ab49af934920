r"""Images and volumes as a network of the coordinates, fitted without memorizing their noise.

The case of :mod:`sciml_snr.fields.field` in which the samples are a grid. Pixel k of an axis with n
pixels is at :math:`(2k + 1 - n)/\max n`, so that the longest axis spans [-1, 1] and pixels are
square (with ``spacing`` as long as that says). Values are standardized per channel. Missing pixels
have no term in the loss; the network fills them in.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import nn

from ..image_noise import Correlation
from ..photon_noise import PhotonNoise
from ..runs.config import check_keys, takes
from ..runs.folder import CHECKPOINT, CONFIG, SUMMARY, readable
from ..runs.options import FitOptions, ImageOptions
from .archive import (
    NetworkChoice,
    check_asked,
    open_folder,
    saved_choice,
    sigma_from_json,
    sigma_to_json,
)
from .files.source import ImageSource
from .fit import check_steps, completed_gate, fitted, read_checkpoint
from .image_fit import ImageFit, summary
from .image_frequency import detail_frequency
from .misfit import SHARED, report_misfit
from .picture import Picture, check_sigma, check_spacing, estimate_sigma, take_apart
from .pixel_noise import (
    correlations_from_json,
    correlations_of,
    correlations_to_json,
    inspected,
    report,
    sigma_of,
    without_outliers,
)
from .pixel_sigma import PixelSigma, from_brightness, given_per_pixel, lines_from_json, lines_of
from .pixels import objective_of

FULL_BATCH = 8_192
"""Known pixels up to which all are in every step."""
BATCH = 4_096
"""Pixels in a step of larger images. With as many steps, more of them are no better."""

DEFAULT_NETWORK = "siren"

LEARNING_RATES = {"siren": 3e-4, "fourier": 1e-3, "wire": 1e-3}
"""By network, for the gated optimizers; 3e-4 for a network of the user's own. Larger ones are
faster and leak. For batches of larger images ``snr_soap`` takes twice as much, under a gate that
rises. Adam takes a third: it has no gate to end its course."""

SMALL = 40_000
"""Pixels up to which a network is 128 wide. It has a gain then, and takes half the steps."""

OUTPUT_GAIN = 5.0
"""Of siren for small images: with 1 a bright spot is not reached in so few steps. With 10 fits are
faster still, and memorize more; so do larger images, whose network is wider, with 5."""

OMEGA_0 = 68.0
"""``first_omega_0`` per cycle and pixel of the finest details that stand out of the noise."""

RISE_STEPS = 300
"""Of the gate of ``snr_soap`` for batches of larger images: they take more steps, and in many steps
noise passes by chance."""


CORRELATED_Z = 4.0
"""The gate's threshold, in standard errors, where errors are correlated: fewer of them are
independent, and each of them moves many parameters."""


def choose_network(
    network: nn.Module | str | None,
    options: dict[str, Any] | None,
    picture: Picture,
    sigma: Sequence[float],
    correlations: Sequence[Correlation] | None = None,
) -> NetworkChoice:
    """The network asked for; what is left open of its size and frequencies, from the image.

    Raises:
        ValueError: options for a network of the user's own.
    """
    if isinstance(network, nn.Module):
        if options:
            raise ValueError("network_options are for the built-in networks.")
        return NetworkChoice("own", {}, copy.deepcopy(network))
    name = network or DEFAULT_NETWORK
    is_small = picture.missing.size <= SMALL
    size: dict[str, Any] = {"hidden_features": 128 if is_small else 256}
    if name == "siren":
        size |= {"hidden_layers": 5, "output_gain": OUTPUT_GAIN if is_small else 1.0}
        size |= {"first_omega_0": _first_omega_0(picture, sigma, correlations)}
    return NetworkChoice(name, {**size, **(options or {})})


def _first_omega_0(
    picture: Picture, sigma: Sequence[float], correlations: Sequence[Correlation] | None
) -> float:
    """The finer the details that stand out of the noise, the higher: 3 to 30, or 8 to 30 if large.

    A rule of thumb for five layers, from crops of 128 pixels (docs/results/images.md): a high
    frequency memorizes more, and leaves ripples where the image is flat; a low one takes longer and
    loses detail. Where pixels are missing, whose gaps a spectrum takes for details, it is at most
    10 / sqrt(noise / contrast) in [8, 30].
    """
    found = detail_frequency(picture, sigma, correlations)
    lowest, highest = 3.0 if picture.missing.size <= SMALL else 8.0, 30.0
    if picture.missing.any():
        ratio = float(np.mean(np.asarray(sigma) / picture.scale))
        highest = min(30.0, max(8.0, 10 / math.sqrt(max(ratio, 1e-3))))
    return round(highest if found is None else min(highest, max(lowest, OMEGA_0 * found)), 1)


def default_training(
    choice: NetworkChoice,
    picture: Picture,
    optimizer: str,
    batch_size: int | None = None,
    is_correlated: bool = False,
) -> dict[str, Any]:
    """Learning rate, steps, pixels in a step (unless given), and options of the gate.

    Args:
        choice, picture, optimizer, batch_size: of the fit.
        is_correlated: whether the errors of neighbouring pixels go together.
    """
    known = int((~picture.missing).sum())
    batched = known > max(FULL_BATCH, batch_size or 0)
    lr = LEARNING_RATES.get(choice.name, 3e-4)
    per_side = 3 if picture.missing.size <= SMALL else 6
    found: dict[str, Any] = {
        "lr": lr / 3 if optimizer == "adam" else lr,
        "steps": max(300, round(per_side * math.sqrt(picture.missing.size))),
        "batch_size": BATCH if batched else None,
        "gate": {},
    }
    if batched and optimizer == "snr_soap":
        found |= {"lr": 2 * lr, "gate": {"rise_steps": RISE_STEPS}}
    if is_correlated and optimizer != "adam":
        found["gate"] = {**found["gate"], "z": CORRELATED_Z}
    return found


@takes(ImageOptions, lr=None, steps=None)
def fit_image(
    image: ArrayLike | ImageSource | str | Path,
    *,
    reference: ArrayLike | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
    **options: Any,
) -> ImageFit:
    """Fit a network to a noisy image, without memorizing the noise.

    Needs no clean image, no validation set, no stopping rule: what does not stand out of the noise
    does not move the network. The first Ctrl-C ends the fit with a whole result; with ``out``,
    ``resume=True`` continues it, with the bits of an uninterrupted one.

    NaN and infinite pixels are missing, as are those of the mask, of a masked array's mask, those
    without data (GeoTIFF) and transparent ones (alpha 0). Missing in one channel is missing in all.
    Alpha is kept aside: a file says what is alpha, of an array it is the last entry of a last axis
    of 2 or 4. The sizes that are not given go with the image. What a gate does not say is as in
    :data:`sciml_snr.fields.fit.FIT_GATE`, but for ``rise_steps``: 300 for ``"snr_soap"`` where more
    than 8,192 pixels are known, and a step takes a part of them; and for ``z``: 4 where the errors
    of neighbouring pixels are found to be correlated.

    Args:
        image: (H, W) or a volume (D, H, W), with channels last if any; a masked array; or a file
            (:func:`sciml_snr.fields.files.pictures.read_image`): pages of a TIFF become a volume,
            channels are those that it names. Integers, floats or booleans.
        {options}
        reference: the clean image, if known: its root mean square distance from the fit is logged
            as ``rmse``. It plays no part in the fit.
        out: folder for ``config.json``, ``metrics.csv``, ``checkpoint.pt``, ``summary.json``,
            ``figure.png`` and ``fit.npz`` (:meth:`ImageFit.load`).
        resume: continue the fit in ``out`` with its own settings. Only ``steps`` may be others.
        progress: draw a progress bar.

    Raises:
        ValueError: image or an option cannot be used; the message says why.
        FileNotFoundError: there is no such file, or nothing to resume.
        FileExistsError: ``out`` holds a run, and ``resume`` is False.
        OSError: ``out`` cannot be written to, or another process runs there.

    Example:
        >>> fit = fit_image("noisy.png")
        >>> iio.imwrite("clean.png", fit.image)
        >>> iio.imwrite("twice_as_large.png", fit.render(scale=2))
    """
    if not resume:
        ImageOptions(**options)  # refuses what is out of range
    folder = open_folder(out, "image", resume)
    axis, given_network = options.pop("channel_axis", "auto"), options.pop("network", None)
    network_options = options.pop("network_options", None)
    spacing = options.pop("spacing", None)
    picture = take_apart(image, options.pop("mask", None), axis, spacing)
    clean = None if reference is None else _clean_values(reference, picture)
    inputs, outputs = len(picture.shape), picture.values.shape[1]
    sigma, kind = options.pop("sigma", None), options.pop("noise", None)
    gain, offset = options.pop("gain", None), options.pop("offset", None)
    _check_kind(kind, sigma, gain, offset)
    own_errors = given_per_pixel(sigma, picture)
    has_sizes = sigma is not None and own_errors is None
    given = check_sigma(sigma, outputs) if has_sizes else None
    state = None
    with contextlib.ExitStack() as stack:
        if resume:
            assert folder is not None
            stack.enter_context(folder.locked())
            config, state = read_checkpoint(folder)
            where = folder.path / CHECKPOINT
            config = {**_NOT_IN_ALL_RUNS, **config}
            check_keys(config, _CONFIG, where)
            if config["image"] != picture.fingerprint():
                raise ValueError(f"The run in {out} is of another image, or with another mask.")
            with readable(where):
                told = tuple(map(sigma_from_json, config["sigma"]))
                correlations = correlations_from_json(config["noise"])
                lines = lines_from_json(config["photons"])
            fingerprint = picture.fingerprint()
            if outliers := config["outliers"]:
                picture = without_outliers(picture, inspected(picture) or ())
            choice = saved_choice(config, given_network, where)
            training_options = FitOptions.from_json(config["options"], where)
            own = {**config, "sigma": list(map(float, told))}
            steps = options.pop("steps", None)
            asked = {**options, "sigma": given}
            errors = _errors_again(out, picture, config["pixel_sigma"], lines, own_errors)
            if kind == "poisson" or gain is not None or offset is not None:
                asked["photons"] = _errors_of(picture, gain, offset).lines_to_json()
            asked["spacing"] = None if spacing is None else picture.spacing
            picture = replace(picture, spacing=check_spacing(config["spacing"], inputs))
            check_asked(folder.path, own, given_network, network_options, asked)
            check_steps(folder, state, steps)
            if steps is not None:
                training_options = replace(training_options, steps=steps)
        else:
            fingerprint, missing = picture.fingerprint(), int(picture.missing.sum())
            errors = _errors_of(picture, gain, offset) if kind == "poisson" else own_errors
            is_looked_at = kind in (None, "auto") and errors is None
            kinds = inspected(picture, given) if is_looked_at else None
            correlations = correlations_of(kinds)
            if errors is not None:
                told = errors.typical()
            elif kinds is not None and given is None:
                told = sigma_of(picture, kinds)
            else:
                told = given or estimate_sigma(picture)
            picture = without_outliers(picture, kinds or ())
            outliers = int(picture.missing.sum()) - missing
            report(kinds or ())
            choice = choose_network(given_network, network_options, picture, told, correlations)
            name, batch = options.get("optimizer", "snr_soap"), options.get("batch_size")
            default = default_training(choice, picture, name, batch, correlations is not None)
            options["gate"] = completed_gate(default["gate"], options.get("gate"))
            training_options = FitOptions(**default | options)
        model = choice.build(inputs, outputs, training_options.seed)
        config = _config(
            fingerprint,
            choice,
            told,
            training_options,
            picture.spacing,
            correlations,
            outliers,
            errors,
        )
        known = ~picture.missing.reshape(-1)
        each = told if errors is None else errors.values[known]
        objective = objective_of(
            picture, picture.values[known], each, training_options, clean, correlations
        )
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
        report_misfit(training, training_options, SHARED)
        fit = ImageFit(
            picture, choice, model, told, training_options, training, correlations, errors
        )
        if folder is not None:
            folder.write_json(CONFIG, folder.described(config))
            folder.write_by(fit.save, "fit.npz")
            folder.write_json(SUMMARY, summary(fit))
            folder.write_figure("figure.png", fit.figure())
    return fit


def _check_kind(kind: str | None, sigma: Any, gain: Any, offset: Any) -> None:
    """Refuse what cannot be asked for together.

    Raises:
        ValueError: says which.
    """
    if kind == "poisson" and sigma is not None:
        raise ValueError(
            'noise="poisson" makes sigma from the brightness: give gain and offset, or sigma '
            "without it."
        )
    if kind != "poisson" and (gain is not None or offset is not None):
        raise ValueError('gain and offset are for noise="poisson" (--noise poisson).')


def _errors_of(picture: Picture, gain: Any, offset: Any) -> PixelSigma:
    return from_brightness(picture, lines_of(picture, gain, offset))


def _errors_again(
    out: str | Path | None,
    picture: Picture,
    fingerprint: str | None,
    lines: tuple[PhotonNoise, ...] | None,
    given: PixelSigma | None,
) -> PixelSigma | None:
    """The pixels' errors of a run that is to go on; None where it has none.

    Args:
        out: its folder.
        picture: the image.
        fingerprint: of the run's errors.
        lines: what they were made from; None where they were given.
        given: what is given now.

    Raises:
        ValueError: they are not given again, or others are.
    """
    if fingerprint is None and given is None:
        return None
    found = given if lines is None else from_brightness(picture, lines)
    if found is None:
        raise ValueError(f"The run in {out} has a sigma for every pixel: give it again (sigma).")
    if found.fingerprint() != fingerprint or (lines is not None and given is not None):
        raise ValueError(f"The run in {out} has another sigma than the one that is given.")
    return found


def _clean_values(reference: ArrayLike, picture: Picture) -> NDArray[np.float64]:
    clean = np.ma.filled(np.ma.asarray(reference).astype(float), np.nan)
    if picture.channel_axis is not None and clean.ndim == picture.pixels.ndim:
        clean = np.moveaxis(clean, picture.channel_axis, -1)
    if clean.shape != picture.pixels.shape:
        raise ValueError(f"reference {clean.shape} is not of the image's {picture.pixels.shape}.")
    return replace(picture, pixels=clean, missing=np.zeros(picture.shape, dtype=bool)).values


_CONFIG = (
    "image",
    "network",
    "network_options",
    "sigma",
    "options",
    "spacing",
    "noise",
    "outliers",
    "photons",
    "pixel_sigma",
)
_NOT_IN_ALL_RUNS: dict[str, Any] = {
    "spacing": None,
    "noise": None,
    "outliers": 0,
    "photons": None,
    "pixel_sigma": None,
}


def _config(
    fingerprint: str,
    choice: NetworkChoice,
    sigma: tuple[float, ...],
    options: FitOptions,
    spacing: tuple[float, ...] | None,
    correlations: tuple[Correlation, ...] | None,
    outliers: int,
    errors: PixelSigma | None,
) -> dict[str, Any]:
    """``config.json``."""
    values = (
        fingerprint,
        choice.name,
        choice.options,
        [sigma_to_json(s) for s in sigma],
        asdict(options),
        spacing,
        correlations_to_json(correlations),
        outliers,
        None if errors is None else errors.lines_to_json(),
        None if errors is None else errors.fingerprint(),
    )
    return dict(zip(_CONFIG, values, strict=True))
