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
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from ..measure.local_risk import WHOLE, LocalBars
from ..measure.twins import TAU, Memorization, Twins
from ..runs.config import check_keys, takes
from ..runs.folder import CHECKPOINT, CONFIG, SUMMARY, readable
from ..runs.options import FitOptions, ImageOptions
from .archive import (
    NetworkChoice,
    check_asked,
    load_fit,
    open_folder,
    restore_network,
    save_fit,
    saved_choice,
    sigma_from_json,
    sigma_to_json,
)
from .fit import (
    Training,
    check_kept,
    check_steps,
    completed_gate,
    fits_of_twins,
    fitted,
    read_checkpoint,
    summary_of,
)
from .function import TILE, Field, Units
from .objective import SampleObjective
from .picture import (
    Array,
    Picture,
    check_sigma,
    check_spacing,
    estimate_sigma,
    take_apart,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Box = Sequence[tuple[float, float]]

FULL_BATCH = 8_192
"""Known pixels up to which all are in every step."""
BATCH = 4_096
"""Pixels in a step of larger images. With as many steps, more of them are no better."""

DEFAULT_NETWORK = "siren"

LEARNING_RATES = {"siren": 3e-4, "fourier": 1e-3, "wire": 1e-3}
"""By network, for the gated optimizers; 3e-4 for a network of the user's own. Larger ones are
faster and leak. For batches of larger images ``snr_soap`` takes twice as much, under a gate that
rises. Adam takes a third: it has no gate to end its course."""

RISE_STEPS = 300
"""Of the gate of ``snr_soap`` for batches of larger images: they take more steps, and in many steps
noise passes by chance."""


class Pixels:
    """The coordinates of a picture's known pixels, made when they are asked for."""

    def __init__(self, picture: Picture, device: torch.device) -> None:
        self._picture = picture
        self._known = torch.as_tensor(np.flatnonzero(~picture.missing), device=device)

    def __getitem__(self, rows: Tensor) -> Tensor:
        """(k, axes) of these rows."""
        picture = self._picture
        return coordinates(self._known[rows], picture.shape, picture.spacing)


class PixelObjective(SampleObjective):
    """The known pixels of a picture, in batches that are drawn anew in every step.

    Args:
        picture: the image.
        values: (known pixels, channels) to fit, in units of the image.
        sigma: (channels,) in units of the image.
        batch_size: pixels in a step, drawn with replacement; None for all of them.
        device: of the fit.
        reference: clean values (pixels, channels), to measure the fit against; NaN where unknown.
    """

    def __init__(
        self,
        picture: Picture,
        values: NDArray[np.float64],
        sigma: Sequence[float],
        batch_size: int | None,
        device: torch.device,
        reference: NDArray[np.float64] | None = None,
    ) -> None:
        self.picture = picture
        self.reference = reference
        standard = (values - picture.center) / picture.scale
        deviation = np.asarray(sigma) / picture.scale
        super().__init__(
            Pixels(picture, device),
            torch.as_tensor(standard, dtype=torch.float32, device=device),
            torch.as_tensor(deviation, dtype=torch.float32, device=device),
            batch_size,
        )

    def metrics(self, network: nn.Module) -> dict[str, float]:
        """Root mean square error against the reference, in units of the image, if there is one."""
        if self.reference is None:
            return {}
        fit = predict(network, self.picture, self.picture.shape)
        return {"rmse": float(np.sqrt(np.nanmean((fit - self.reference) ** 2)))}


def coordinates(
    flat: Tensor, shape: tuple[int, ...], spacing: Sequence[float] | None = None
) -> Tensor:
    """Flat indices (n,) of pixels -> their coordinates (n, len(shape))."""
    axes = torch.unravel_index(flat, shape)
    sides = [1.0] * len(shape) if spacing is None else spacing
    longest = max(n * side for n, side in zip(shape, sides, strict=True))
    columns = [
        (2 * k + 1 - n) * side / longest for k, n, side in zip(axes, shape, sides, strict=True)
    ]
    return torch.stack(columns, dim=-1)


def tiles(
    picture: Picture, shape: tuple[int, ...], box: Box | None, device: torch.device
) -> Iterator[Tensor]:
    """Coordinates of the centers of ``shape`` cells that divide the box, some rows at a time."""
    sides = [(0.0, float(n)) for n in picture.shape] if box is None else box
    axes = [
        (2 * (low + (torch.arange(m, dtype=torch.float64) + 0.5) * (high - low) / m) - n)
        * (side / picture.longest)
        for m, (low, high), n, side in zip(shape, sides, picture.shape, picture.sides, strict=True)
    ]
    for flat in torch.split(torch.arange(math.prod(shape)), TILE):
        index = torch.unravel_index(flat, shape)
        columns = [axis[i] for axis, i in zip(axes, index, strict=True)]
        yield torch.stack(columns, dim=-1).to(device, torch.float32)


def predict(
    network: nn.Module, picture: Picture, shape: tuple[int, ...], box: Box | None = None
) -> NDArray[np.float64]:
    """Values (points, channels) in units of the image, tile by tile."""
    device = next(network.parameters()).device
    with torch.no_grad():
        found = [network(x).cpu() for x in tiles(picture, shape, box, device)]
    values: NDArray[np.float64] = torch.cat(found).double().numpy() * picture.scale + picture.center
    return values


def choose_network(
    network: nn.Module | str | None,
    options: dict[str, Any] | None,
    picture: Picture,
    sigma: Sequence[float],
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
    size: dict[str, Any] = {"hidden_features": 128 if picture.missing.size <= 40_000 else 256}
    if name == "siren":
        size |= {"hidden_layers": 5, "first_omega_0": _first_omega_0(picture, sigma)}
    return NetworkChoice(name, {**size, **(options or {})})


def _first_omega_0(picture: Picture, sigma: Sequence[float]) -> float:
    """10 / sqrt(noise / contrast) in [8, 30]: the noisier the image, the smoother the start.

    A rule of thumb for five layers, from crops of 64 and 128 pixels (docs/images.md): a high
    frequency memorizes more, a low one takes longer and loses detail, and the best one falls with
    the noise. It does not depend much on the size of the image.
    """
    ratio = float(np.mean(np.asarray(sigma) / picture.scale))
    return round(min(30.0, max(8.0, 10 / math.sqrt(max(ratio, 1e-3)))), 1)


def default_training(
    choice: NetworkChoice, picture: Picture, optimizer: str, batch_size: int | None = None
) -> dict[str, Any]:
    """Learning rate, steps, pixels in a step (unless given), and options of the gate."""
    known = int((~picture.missing).sum())
    batched = known > max(FULL_BATCH, batch_size or 0)
    lr = LEARNING_RATES.get(choice.name, 3e-4)
    found: dict[str, Any] = {
        "lr": lr / 3 if optimizer == "adam" else lr,
        "steps": max(300, round(6 * math.sqrt(picture.missing.size))),
        "batch_size": BATCH if batched else None,
        "gate": {},
    }
    if batched and optimizer == "snr_soap":
        found |= {"lr": 2 * lr, "gate": {"rise_steps": RISE_STEPS}}
    return found


class ImageFit:
    """An image as a function: what :func:`fit_image` returns.

    Attributes:
        network: from coordinates in [-1, 1] to standardized values.
        sigma: standard deviation of the noise per channel, in units of the image: as given, or
            as estimated (:class:`sciml_snr.SigmaEstimate`).
        options: of the fit.
        training: steps taken, time, log; whether it was interrupted.
    """

    def __init__(
        self,
        picture: Picture,
        choice: NetworkChoice,
        network: nn.Module,
        sigma: tuple[float, ...],
        options: FitOptions,
        training: Training,
    ) -> None:
        self.picture = picture
        self.choice = choice
        self.network = network
        self.sigma = sigma
        self.options = options
        self.training = training

    @property
    def history(self) -> list[dict[str, float]]:
        """The rows of the log, see :class:`sciml_snr.fields.Training`."""
        return self.training.history

    @cached_property
    def field(self) -> Field:
        """The fit as a function: a ``torch.nn.Module`` from points (..., axes) to (..., channels).

        Points are in pixels, pixel k of an axis from k to k + 1, or times ``spacing``; values in
        units of the image, not rounded or clipped. Arrays: ``fit.field.evaluate(points)``,
        ``fit.field.gradient(points)``.
        """
        picture = self.picture
        middle = np.array(picture.shape) * picture.sides / 2
        length = np.full(len(middle), picture.longest / 2)
        found = (middle, length, picture.center, picture.scale)
        return Field(self.network, Units(*(tuple(a.tolist()) for a in found)))

    @cached_property
    def image(self) -> Array:
        """The fit at the pixels, in the shape, dtype and range of the image that was given."""
        return self.render()

    def render(
        self,
        shape: Sequence[int] | None = None,
        *,
        scale: float | None = None,
        box: Box | None = None,
    ) -> Array:
        """The fit on another grid: finer, coarser, or a part of the image.

        Args:
            shape: of the result, without channels; by default one cell per pixel of the box.
            scale: cells per pixel and axis, instead of ``shape``.
            box: (low, high) per axis, in pixels: pixel k extends from k to k + 1. By default the
                whole image. ``[(0, 10), (5, 20)]`` is ``image[0:10, 5:20]``.

        Returns:
            An image of the dtype of the one given, an alpha channel interpolated linearly.

        Raises:
            ValueError: shape, scale or box cannot be.
        """
        shape = self._shape(shape, scale, box)
        values = self.picture.finished(predict(self.network, self.picture, shape, box))
        alpha = self._alpha(shape, box) if self.picture.alpha else None
        return self.picture.assembled(values, shape, alpha)

    def gradient(
        self,
        shape: Sequence[int] | None = None,
        *,
        scale: float | None = None,
        box: Box | None = None,
    ) -> NDArray[np.float64]:
        """Derivatives of the fit along the axes, by automatic differentiation.

        Args:
            shape, scale, box: as for :meth:`render`.

        Returns:
            (*shape, axes), or (*shape, channels, axes) for an image with channels (without alpha),
            in units of the image per pixel, or where ``spacing`` was given per its unit.

        Raises:
            ValueError: shape, scale or box cannot be.
        """
        shape = self._shape(shape, scale, box)
        picture = self.picture
        found = []
        device = next(self.network.parameters()).device
        for x in tiles(picture, shape, box, device):
            x.requires_grad_()
            with torch.enable_grad():
                channels = self.network(x).unbind(-1)
            slopes = [torch.autograd.grad(c.sum(), x, retain_graph=True)[0] for c in channels]
            found.append(torch.stack(slopes, dim=1).detach().cpu())
        per_pixel = 2 / picture.longest * picture.scale[:, None]
        slopes_all: NDArray[np.float64] = torch.cat(found).double().numpy() * per_pixel
        slopes_all = slopes_all.reshape(*shape, len(picture.scale), len(picture.shape))
        return slopes_all if picture.has_channels else slopes_all[..., 0, :]

    def memorization(self, *, probes: int = 1, progress: bool = True) -> Memorization:
        """How much of the noise the fit has memorized, without knowing the noise.

        Fits twins: the same network, seed and steps on pixels that are shifted by small known
        random signs (:class:`sciml_snr.Twins`). It takes as long as the fit, once per probe.

        Args:
            probes: number of twins.
            progress: draw a progress bar.

        Returns:
            The memorized share (generalized degrees of freedom over the number of known values)
            with its standard error, and SURE's estimate of the mean square error, in units of the
            image squared.

        Raises:
            ValueError: sigma is 0: there is no noise to memorize; or no step was taken.
        """
        twins, own, fits = self._twins(probes, progress)
        return twins.record(self.training.kept_step, own, fits)

    def error_bars(self, *, probes: int = 1, progress: bool = True) -> LocalBars:
        """How sure is the fit? Standard errors at any points.

        By twins, which takes as long as the fit, once per probe: see
        :mod:`sciml_snr.measure.local_risk`.

        Args:
            probes: number of twins.
            progress: draw a progress bar.

        Returns:
            ``bars(points)``, (k, channels) in units of the image, at points (k, axes) as
            :attr:`field` has them; the pixels' are :meth:`pixel_centers`.

        Raises:
            ValueError: as for :meth:`memorization`.
        """
        twins, own, fits = self._twins(probes, progress, WHOLE)
        picture = self.picture
        known = ~picture.missing.reshape(-1)
        return LocalBars(
            self.pixel_centers()[known],
            picture.values[known],
            own,
            np.asarray(self.sigma),
            twins,
            fits,
            self.field.evaluate,
        )

    def pixel_centers(self) -> Array:
        """The pixels' centers (pixels, axes), last axis fastest, as points of :attr:`field`."""
        picture = self.picture
        places = np.indices(picture.shape).reshape(len(picture.shape), -1).T
        return (places + 0.5) * picture.sides

    def _twins(
        self, probes: int, progress: bool, tau: float = TAU
    ) -> tuple[Twins, Array, list[Array]]:
        """Twins, the fit at the known pixels, and that of each twin."""
        picture = self.picture
        known = ~picture.missing.reshape(-1)
        check_kept(self.training)
        if not any(self.sigma):
            raise ValueError("sigma is 0: there is no noise to memorize.")
        seed, told = self.options.seed, np.asarray(self.sigma)
        twins = Twins(picture.values[known], told, probes=probes, tau=tau, seed=seed)

        def fit_of(network: nn.Module) -> Array:
            return predict(network, picture, picture.shape)[known]

        fits = fits_of_twins(
            twins,
            lambda: self.choice.build(len(picture.shape), len(self.sigma), seed),
            lambda labels: _objective(picture, labels, self.sigma, self.options),
            fit_of,
            self.options,
            self.training,
            progress,
        )
        return twins, fit_of(self.network), fits

    def figure(self) -> Figure:
        """Noisy image, fit, what was taken away, and the course of the fit."""
        from ..figures import image_figure

        picture = self.picture
        fit = predict(self.network, picture, picture.shape)
        residual = self._middle(picture.values - fit)[..., 0]
        return image_figure(
            self._visible(picture.values), self._visible(fit), residual, self.history
        )

    def save(self, path: str | Path) -> None:
        """Write image, network and log into one ``.npz`` file, for :meth:`load`."""
        picture = self.picture
        about = {
            "kind": "image",
            "channel_axis": picture.channel_axis,
            "alpha": picture.alpha,
            "spacing": picture.spacing,
            "network": self.choice.name,
            "network_options": self.choice.options,
            "options": asdict(self.options),
            "sigma": [sigma_to_json(s) for s in self.sigma],
            "training": asdict(self.training),
        }
        arrays = {"pixels": picture.pixels, "missing": picture.missing}
        save_fit(path, about, self.network, arrays)

    @classmethod
    def load(cls, path: str | Path, network: nn.Module | None = None) -> ImageFit:
        """Read what :meth:`save` wrote.

        Args:
            path: the file.
            network: where the fit's network was the user's own: the same one, as it was before the
                fit (weights do not matter unless :meth:`memorization` is asked for).

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is no saved image fit, or its network is missing or another one.
        """
        about, fields = load_fit(path, "image")
        with readable(Path(path)):
            picture = Picture(
                fields["pixels"],
                about["channel_axis"],
                about["alpha"],
                fields["missing"],
                check_spacing(about.get("spacing"), fields["missing"].ndim),
            )
            sigma = tuple(map(sigma_from_json, about["sigma"]))
            options = FitOptions(**{**about["options"], "device": None})
            training = Training.from_json(about["training"], path)
            choice = saved_choice(about, network, path)
            if picture.values.shape[1] != len(sigma):
                raise ValueError(f"sigma has {len(sigma)} entries")
        fresh = choice.build(len(picture.shape), len(sigma), options.seed)
        restore_network(fresh, fields)
        fresh.to(options.torch_device).eval()
        return cls(picture, choice, fresh, sigma, options, training)

    def _shape(
        self, shape: Sequence[int] | None, scale: float | None, box: Box | None
    ) -> tuple[int, ...]:
        own = self.picture.shape
        if box is not None and (
            np.shape(box) != (len(own), 2)
            or not all(math.isfinite(b - a) and a < b for a, b in box)
        ):
            raise ValueError(f"box must be (low, high) for each of {len(own)} axes, got {box}.")
        if scale is not None and np.ndim(scale):
            raise ValueError(f"scale is one number for all axes, got {scale}: give shape.")
        if shape is not None and np.ndim(shape) != 1:
            raise ValueError(f"shape must be {len(own)} positive integers, got {shape}.")
        if shape is not None and scale is not None:
            raise ValueError("Give shape or scale, not both.")
        sides = [float(n) for n in own] if box is None else [b - a for a, b in box]
        if shape is not None:
            found = tuple(int(n) for n in shape)
        else:
            factor = 1.0 if scale is None else scale
            if not 0 < factor < math.inf:
                raise ValueError(f"scale must be a positive number, got {scale}.")
            found = tuple(max(1, round(factor * side)) for side in sides)
        if len(found) != len(own) or min(found) < 1:
            raise ValueError(f"shape must be {len(own)} positive integers, got {shape}.")
        return found

    def _alpha(self, shape: tuple[int, ...], box: Box | None) -> Array:
        from scipy.ndimage import map_coordinates

        alpha = self.picture.pixels[..., -1]
        if shape == alpha.shape and box is None:
            return alpha
        sides = [(0.0, float(n)) for n in alpha.shape] if box is None else box
        axes = [
            low + (np.arange(m) + 0.5) * (high - low) / m - 0.5
            for m, (low, high) in zip(shape, sides, strict=True)
        ]
        at = np.meshgrid(*axes, indexing="ij")
        found = map_coordinates(alpha.astype(float), at, order=1, mode="nearest")
        found = np.rint(found) if alpha.dtype.kind in "iu" else found
        return np.asarray(found, dtype=alpha.dtype)

    def _middle(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """(pixels, channels) -> (H, W, channels), of a volume the middle slice."""
        image = values.reshape(*self.picture.shape, -1)
        return image[len(image) // 2] if image.ndim == 4 else image

    def _visible(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """(pixels, channels) -> (H, W) or (H, W, 3) in [0, 1]: at most three channels."""
        known = self.picture.values
        image = (self._middle(values) - np.nanmin(known)) / (np.nanmax(known) - np.nanmin(known))
        image = np.clip(image, 0, 1)
        if image.shape[-1] < 3:
            return image[..., 0]
        return np.nan_to_num(image[..., :3], nan=1.0)  # matplotlib draws no gaps in colors


@takes(ImageOptions, lr=None, steps=None)
def fit_image(
    image: ArrayLike | str | Path,
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

    NaN and infinite pixels are missing, as those of the mask are. Missing in one channel is missing
    in all. Of a last axis of 2 or 4 the last entry is an alpha channel, which is kept aside. The
    sizes that are not given go with the image. What a gate does not say is as in
    :data:`sciml_snr.fields.fit.FIT_GATE`, but for ``rise_steps``: 300 for ``"snr_soap"`` where more
    than 8,192 pixels are known, and a step takes a part of them.

    Args:
        image: (H, W) or a volume (D, H, W), with channels last if any; or a file that imageio
            reads (pages of a TIFF become a volume). Integers, floats or booleans.
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
    clean = None if reference is None else _clean_values(reference, picture, axis)
    inputs, outputs = len(picture.shape), picture.values.shape[1]
    sigma = options.pop("sigma", None)
    given = None if sigma is None else check_sigma(sigma, outputs)
    state = None
    with contextlib.ExitStack() as stack:
        if resume:
            assert folder is not None
            stack.enter_context(folder.locked())
            config, state = read_checkpoint(folder)
            where = folder.path / CHECKPOINT
            config = {"spacing": None, **config}  # which runs did not always have
            check_keys(config, _CONFIG, where)
            if config["image"] != picture.fingerprint():
                raise ValueError(f"The run in {out} is of another image, or with another mask.")
            with readable(where):
                told = tuple(map(sigma_from_json, config["sigma"]))
            choice = saved_choice(config, given_network, where)
            training_options = FitOptions.from_json(config["options"], where)
            own = {**config, "sigma": list(map(float, told))}
            steps = options.pop("steps", None)
            asked = {**options, "sigma": given}
            asked["spacing"] = None if spacing is None else picture.spacing
            picture = replace(picture, spacing=check_spacing(config["spacing"], inputs))
            check_asked(folder.path, own, given_network, network_options, asked)
            check_steps(folder, state, steps)
            if steps is not None:
                training_options = replace(training_options, steps=steps)
        else:
            told = given or estimate_sigma(picture)
            choice = choose_network(given_network, network_options, picture, told)
            name, batch = options.get("optimizer", "snr_soap"), options.get("batch_size")
            default = default_training(choice, picture, name, batch)
            options["gate"] = completed_gate(default["gate"], options.get("gate"))
            training_options = FitOptions(**default | options)
        model = choice.build(inputs, outputs, training_options.seed)
        config = _config(picture, choice, told, training_options)
        known = picture.values[~picture.missing.reshape(-1)]
        objective = _objective(picture, known, told, training_options, clean)
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
        fit = ImageFit(picture, choice, model, told, training_options, training)
        if folder is not None:
            folder.write_json(CONFIG, folder.described(config))
            folder.write_by(fit.save, "fit.npz")
            folder.write_json(SUMMARY, summary(fit))
            folder.write_figure("figure.png", fit.figure())
    return fit


def summary(fit: ImageFit) -> dict[str, Any]:
    """How a fit ended."""
    return summary_of(
        fit.options,
        fit.training,
        fit.network,
        kept_step=fit.training.kept_step,
        sigma=[float(s) for s in fit.sigma],
        sigma_method=[getattr(s, "method", "given") for s in fit.sigma],
        missing_pixels=int(fit.picture.missing.sum()),
    )


def _objective(
    picture: Picture,
    labels: NDArray[np.float64],
    sigma: Sequence[float],
    options: FitOptions,
    reference: NDArray[np.float64] | None = None,
) -> PixelObjective:
    return PixelObjective(
        picture, labels, sigma, options.batch_size, options.torch_device, reference
    )


def _clean_values(
    reference: ArrayLike, picture: Picture, channel_axis: int | str | None
) -> NDArray[np.float64]:
    clean = np.asarray(reference, dtype=float)
    if isinstance(channel_axis, int):
        clean = np.moveaxis(clean, channel_axis, -1)
    if clean.shape != picture.pixels.shape:
        raise ValueError(f"reference {clean.shape} is not of the image's {picture.pixels.shape}.")
    return replace(picture, pixels=clean, missing=np.zeros(picture.shape, dtype=bool)).values


_CONFIG = ("image", "network", "network_options", "sigma", "options", "spacing")


def _config(
    picture: Picture, choice: NetworkChoice, sigma: tuple[float, ...], options: FitOptions
) -> dict[str, Any]:
    """``config.json``."""
    values = (
        picture.fingerprint(),
        choice.name,
        choice.options,
        [sigma_to_json(s) for s in sigma],
        asdict(options),
        picture.spacing,
    )
    return dict(zip(_CONFIG, values, strict=True))
