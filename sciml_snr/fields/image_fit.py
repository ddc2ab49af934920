"""An image as a function: what a fit to its pixels is good for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ..image_noise import Correlation
from ..measure.local_risk import WHOLE, LocalBars
from ..measure.twins import TAU, Twins
from ..runs.folder import readable
from ..runs.options import FitOptions
from .archive import (
    NetworkChoice,
    load_fit,
    save_fit,
    saved_choice,
    sigma_from_json,
    sigma_to_json,
)
from .files.source import Array
from .fit import Training, check_kept, fits_of_twins, summary_of
from .function import Field, Units
from .function_fit import FunctionFit, saved_network
from .picture import Picture, check_spacing
from .pixel_noise import correlations_from_json, correlations_to_json, pixel_noise
from .pixel_sigma import PixelSigma, lines_from_json
from .pixels import Box, objective_of, predict, tiles

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class ImageFit(FunctionFit):
    """An image as a function: what :func:`fit_image` returns.

    Attributes:
        network: from coordinates in [-1, 1] to standardized values.
        correlations: how the errors of neighbouring pixels go together, per channel; None: not
            at all.
        sigma: standard deviation of the noise per channel, in units of the image: as given, or
            as estimated (:class:`sciml_snr.SigmaEstimate`). Where every pixel has its own, their
            root mean square.
        errors: where every pixel has its own standard deviation: ``errors.values`` (pixels,
            channels), and for ``noise="poisson"`` ``errors.lines``, the gain and the offset of each
            channel (:class:`sciml_snr.PhotonNoise`); else None.
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
        correlations: tuple[Correlation, ...] | None = None,
        errors: PixelSigma | None = None,
    ) -> None:
        super().__init__(choice, network, options, training)
        self.picture = picture
        self.sigma = sigma
        self.correlations = correlations
        self.errors = errors

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
        for x in tiles(picture, shape, box, self._device):
            x.requires_grad_()
            with torch.enable_grad():
                channels = self.network(x).unbind(-1)
            slopes = [torch.autograd.grad(c.sum(), x, retain_graph=True)[0] for c in channels]
            found.append(torch.stack(slopes, dim=1).detach().cpu())
        per_pixel = 2 / picture.longest * picture.scale[:, None]
        slopes_all: NDArray[np.float64] = torch.cat(found).double().numpy() * per_pixel
        slopes_all = slopes_all.reshape(*shape, len(picture.scale), len(picture.shape))
        return slopes_all if picture.has_channels else slopes_all[..., 0, :]

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
            self._known_sigma(),
            twins,
            fits,
            self.field.evaluate,
        )

    def pixel_centers(self) -> Array:
        """The pixels' centers (pixels, axes), last axis fastest, as points of :attr:`field`."""
        picture = self.picture
        places = np.indices(picture.shape).reshape(len(picture.shape), -1).T
        return (places + 0.5) * picture.sides

    def _known_sigma(self) -> Array:
        """(channels,), or (known pixels, channels)."""
        if self.errors is None:
            return np.asarray(self.sigma, dtype=float)
        return self.errors.values[~self.picture.missing.reshape(-1)]

    def _twins(
        self, probes: int, progress: bool, tau: float = TAU
    ) -> tuple[Twins, Array, list[Array]]:
        """Twins, the fit at the known pixels, and that of each twin."""
        picture = self.picture
        known = ~picture.missing.reshape(-1)
        check_kept(self.training)
        if not any(self.sigma):
            raise ValueError("sigma is 0: there is no noise to memorize.")
        seed, told = self.options.seed, self._known_sigma()
        noise = pixel_noise(self.correlations, picture)
        draw = None if noise is None else noise.draw
        twins = Twins(picture.values[known], told, probes=probes, tau=tau, seed=seed, draw=draw)

        def fit_of(network: nn.Module) -> Array:
            return predict(network, picture, picture.shape)[known]

        fits = fits_of_twins(
            twins,
            lambda: self.choice.build(len(picture.shape), len(self.sigma), seed),
            lambda labels: objective_of(
                picture, labels, told, self.options, correlations=self.correlations
            ),
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
        sigma, title = None, "sigma of each pixel"
        if self.errors is not None:
            sigma = self._middle(self.errors.values)[..., 0]
            if self.errors.lines is not None:
                title = f"sigma: {self.errors.lines[0]}"
        return image_figure(
            self._visible(picture.values),
            self._visible(fit),
            residual,
            self.history,
            sigma,
            title,
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
            "noise": correlations_to_json(self.correlations),
            "photons": None if self.errors is None else self.errors.lines_to_json(),
            "training": asdict(self.training),
        }
        arrays = {"pixels": picture.pixels, "missing": picture.missing}
        if self.errors is not None:
            arrays["pixel_sigma"] = self.errors.values
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
            correlations = correlations_from_json(about.get("noise"))
            errors = None
            if "pixel_sigma" in fields:
                lines = lines_from_json(about.get("photons"))
                errors = PixelSigma(fields["pixel_sigma"], lines)
                if errors.values.shape != picture.values.shape:
                    raise ValueError(f"sigma has the shape {errors.values.shape}")
            options = FitOptions(**{**about["options"], "device": None})
            training = Training.from_json(about["training"], path)
            choice = saved_choice(about, network, path)
            if picture.values.shape[1] != len(sigma):
                raise ValueError(f"sigma has {len(sigma)} entries")
        fresh = saved_network(choice, len(picture.shape), len(sigma), options, fields)
        return cls(picture, choice, fresh, sigma, options, training, correlations, errors)

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


def summary(fit: ImageFit) -> dict[str, Any]:
    """How a fit ended."""
    return summary_of(
        fit.options,
        fit.training,
        fit.network,
        kept_step=fit.training.kept_step,
        sigma=[float(s) for s in fit.sigma],
        sigma_method=[getattr(s, "method", "given") for s in fit.sigma],
        noise=correlations_to_json(fit.correlations),
        photons=None if fit.errors is None else fit.errors.lines_to_json(),
        missing_pixels=int(fit.picture.missing.sum()),
    )
