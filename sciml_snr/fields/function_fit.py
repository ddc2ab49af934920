"""What fits of images, fields and surfaces have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..measure.twins import TAU, Memorization, Twins
from ..runs.options import FitOptions
from .archive import NetworkChoice, restore_network
from .fit import Training
from .function import Array


class FunctionFit:
    """A network that was fitted to noisy data.

    Args:
        choice: how the network was made.
        network: as it is after the fit.
        options: of the fit.
        training: steps taken, time, log; whether it was interrupted.
    """

    def __init__(
        self, choice: NetworkChoice, network: nn.Module, options: FitOptions, training: Training
    ) -> None:
        self.choice = choice
        self.network = network
        self.options = options
        self.training = training

    @property
    def history(self) -> list[dict[str, float]]:
        """The rows of the log, see :class:`sciml_snr.fields.Training`."""
        return self.training.history

    def memorization(self, *, probes: int = 1, progress: bool = True) -> Memorization:
        """How much of the data's errors the fit has memorized, without knowing them.

        Fits twins: the same network, seed and steps on data that are moved by small known random
        signs (:class:`sciml_snr.Twins`). It takes as long as the fit, once per probe. Of a surface
        the signs are distances at the points, instead of 0; what estimated normals carry of the
        error is not seen.

        Args:
            probes: number of twins.
            progress: draw a progress bar.

        Returns:
            The memorized share (generalized degrees of freedom over the number of values) with its
            standard error, and SURE's estimate of the mean square error, in units of the data
            squared: of the image at its pixels, of what is measured of a field, or of the distance
            between fit and surface at the points, to first order.

        Raises:
            ValueError: sigma is 0: there is nothing to memorize; no step was taken; or a field was
                loaded without its operator.
        """
        twins, own, fits = self._twins(probes, progress)
        return twins.record(self.training.kept_step, own, fits)

    def _twins(
        self, probes: int, progress: bool, tau: float = TAU
    ) -> tuple[Twins, Array, list[Array]]:
        """Twins, the fit at the data, and that of each twin."""
        raise NotImplementedError

    @property
    def _device(self) -> torch.device:
        return next(self.network.parameters()).device


def saved_network(
    choice: NetworkChoice,
    inputs: int,
    outputs: int,
    options: FitOptions,
    fields: Mapping[str, Any],
) -> nn.Module:
    """The network of a saved fit.

    Raises:
        ValueError: the weights in the file's arrays are another network's.
    """
    network = choice.build(inputs, outputs, options.seed)
    restore_network(network, fields)
    return network.to(options.torch_device).eval()
