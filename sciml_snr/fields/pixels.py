"""The pixels of an image as samples of a function: coordinates, batches, predictions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..image_noise import Correlation
from ..runs.options import FitOptions
from .function import TILE
from .objective import SampleObjective
from .picture import Picture
from .pixel_noise import PixelNoise, pixel_noise

Box = Sequence[tuple[float, float]]


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
        sigma: (channels,) in units of the image, or (known pixels, channels).
        batch_size: pixels in a step, drawn with replacement; None for all of them.
        device: of the fit.
        reference: clean values (pixels, channels), to measure the fit against; NaN where unknown.
        noise: what the errors look like, where they are correlated.
    """

    def __init__(
        self,
        picture: Picture,
        values: NDArray[np.float64],
        sigma: Sequence[float] | NDArray[np.float64],
        batch_size: int | None,
        device: torch.device,
        reference: NDArray[np.float64] | None = None,
        noise: PixelNoise | None = None,
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
            noise,
            1.0 if noise is None else noise.alike,
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


def objective_of(
    picture: Picture,
    labels: NDArray[np.float64],
    sigma: Sequence[float] | NDArray[np.float64],
    options: FitOptions,
    reference: NDArray[np.float64] | None = None,
    correlations: Sequence[Correlation] | None = None,
) -> PixelObjective:
    """The objective of a fit to these labels (known pixels, channels), in units of the image."""
    return PixelObjective(
        picture,
        labels,
        sigma,
        options.batch_size,
        options.torch_device,
        reference,
        pixel_noise(correlations, picture),
    )
