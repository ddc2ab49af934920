"""Networks from coordinates (n, in_features) in about [-1, 1] to values (n, out_features)."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn


class Siren(nn.Module):
    r"""Sine network: layers :math:`\sin(\omega_0 (W x + b))`, and a linear one.

    Source: V. Sitzmann et al., *Implicit Neural Representations with Periodic Activation
    Functions*, NeurIPS 2020, arXiv:2006.09661, with its initialization: weights of the first layer
    uniform in :math:`\pm 1/n`, of the others in :math:`\pm \sqrt{6/n} / \omega_0`, n their inputs.

    Args:
        in_features, out_features: number of coordinates and of values.
        hidden_features: width.
        hidden_layers: sine layers, the first one included.
        first_omega_0: of the first layer: the highest spatial frequency, in radians per unit of
            coordinates, that the network starts with.
        hidden_omega_0: of the other sine layers.
        output_gain: factor of the output, g. With one that is not 1 the last layer starts at
            1 / (2 g) times its weights, so that the start is half as large, and a step of it
            changes the output g times as much: sums of sines reach large values, such as a bright
            spot's, only by many steps that agree.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        hidden_features: int = 128,
        hidden_layers: int = 3,
        *,
        first_omega_0: float = 30.0,
        hidden_omega_0: float = 30.0,
        output_gain: float = 1.0,
    ) -> None:
        super().__init__()
        self.layers = _linear_layers(in_features, out_features, hidden_features, hidden_layers)
        self.output_gain = float(output_gain)
        self.omegas = [first_omega_0] + [hidden_omega_0] * (hidden_layers - 1)
        with torch.no_grad():
            for i, layer in enumerate(self.layers):
                n = hidden_features if i else in_features
                bound = math.sqrt(6 / n) / hidden_omega_0 if i else 1 / n
                layer.weight.uniform_(-bound, bound)  # type: ignore[operator]
            if self.output_gain != 1:
                for parameter in self.layers[-1].parameters():
                    parameter.div_(2 * self.output_gain)

    def forward(self, x: Tensor) -> Tensor:
        """(n, in_features) -> (n, out_features)."""
        for omega, layer in zip(self.omegas, self.layers[:-1], strict=True):
            x = torch.sin(omega * layer(x))
        found: Tensor = self.layers[-1](x)
        return found if self.output_gain == 1 else self.output_gain * found


class FourierFeatures(nn.Module):
    r"""ReLU network on fixed random features :math:`[\cos 2\pi B x, \sin 2\pi B x]`.

    Source: M. Tancik et al., *Fourier Features Let Networks Learn High Frequency Functions in Low
    Dimensional Domains*, NeurIPS 2020, arXiv:2006.10739.

    Args:
        in_features, out_features, hidden_features: as for :class:`Siren`.
        hidden_layers: ReLU layers.
        scale: standard deviation of the entries of B, :math:`N(0, \text{scale}^2)`: periods per
            unit of coordinates.
        frequencies: rows of B.
    """

    frequency: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        hidden_features: int = 128,
        hidden_layers: int = 3,
        *,
        scale: float = 5.0,
        frequencies: int = 128,
    ) -> None:
        super().__init__()
        _check_sizes(in_features, 2 * frequencies, hidden_features, out_features, hidden_layers)
        self.register_buffer("frequency", scale * torch.randn(frequencies, in_features))
        self.layers = _linear_layers(2 * frequencies, out_features, hidden_features, hidden_layers)

    def forward(self, x: Tensor) -> Tensor:
        """(n, in_features) -> (n, out_features)."""
        angle = 2 * math.pi * x @ self.frequency.T
        x = torch.cat([angle.cos(), angle.sin()], dim=-1)
        for layer in self.layers[:-1]:
            x = torch.relu(layer(x))
        return self.layers[-1](x)  # type: ignore[no-any-return]


class Wire(nn.Module):
    r"""Layers of wavelets :math:`\cos(\omega_0 (W x + b)) \exp(-(s_0 (V x + c))^2)`, a linear one.

    The real-valued form of WIRE. The complex one would do without V, but complex weights have no
    eigenbasis in :class:`sciml_snr.SNRSOAP`.

    Source: V. Saragadam et al., *WIRE: Wavelet Implicit Neural Representations*, CVPR 2023,
    arXiv:2301.05187, with torch's default initialization, as in the authors' code.

    Args:
        in_features, out_features, hidden_features, hidden_layers: as for :class:`Siren`.
        omega_0: frequency of the wavelets.
        scale_0: their inverse width.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        hidden_features: int = 128,
        hidden_layers: int = 3,
        *,
        omega_0: float = 10.0,
        scale_0: float = 10.0,
    ) -> None:
        super().__init__()
        self.layers = _linear_layers(in_features, out_features, hidden_features, hidden_layers)
        # The same sizes again, without the last: the output is linear.
        self.windows = _linear_layers(in_features, 1, hidden_features, hidden_layers)[:-1]
        self.omega_0, self.scale_0 = omega_0, scale_0

    def forward(self, x: Tensor) -> Tensor:
        """(n, in_features) -> (n, out_features)."""
        for layer, window in zip(self.layers[:-1], self.windows, strict=True):
            x = torch.cos(self.omega_0 * layer(x)) * torch.exp(-((self.scale_0 * window(x)) ** 2))
        return self.layers[-1](x)  # type: ignore[no-any-return]


class Softplus(nn.Module):
    r"""Layers of :math:`\operatorname{softplus}(W x + b)`, starting as the distance from a sphere.

    The geometric initialization: the output is about :math:`|x| - r`, so that inside and outside
    are told apart from the start. Smoother than sines: for distances rather than for images.

    Sources: M. Atzmon and Y. Lipman, *SAL: Sign Agnostic Learning of Shapes from Raw Data*, CVPR
    2020, arXiv:1911.10414 (initialization); A. Gropp et al., *Implicit Geometric Regularization for
    Learning Shapes*, ICML 2020, arXiv:2002.10099 (softplus with beta 100).

    Args:
        in_features, out_features, hidden_features: as for :class:`Siren`.
        hidden_layers: softplus layers.
        beta: sharpness of the softplus.
        radius: r.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        hidden_features: int = 128,
        hidden_layers: int = 3,
        *,
        beta: float = 100.0,
        radius: float = 0.6,
    ) -> None:
        super().__init__()
        self.layers = _linear_layers(in_features, out_features, hidden_features, hidden_layers)
        self.beta = beta
        for layer in self.layers:
            assert isinstance(layer, nn.Linear)
            nn.init.normal_(layer.weight, 0.0, math.sqrt(2 / hidden_features))
            nn.init.zeros_(layer.bias)
        assert isinstance(layer, nn.Linear)  # the last
        nn.init.normal_(layer.weight, math.sqrt(math.pi / hidden_features), 1e-5)
        nn.init.constant_(layer.bias, -radius)

    def forward(self, x: Tensor) -> Tensor:
        """(n, in_features) -> (n, out_features)."""
        for layer in self.layers[:-1]:
            # Below, softplus is 2e-9 / beta and less. Its derivatives, products of such numbers,
            # would be subnormal: correct, and several times slower on a CPU.
            x = nn.functional.softplus(layer(x).clamp_min(-20 / self.beta), self.beta)
        return self.layers[-1](x)  # type: ignore[no-any-return]


NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "siren": Siren,
    "fourier": FourierFeatures,
    "wire": Wire,
    "softplus": Softplus,
}
"""The built-in networks by name; any other ``nn.Module`` serves as well."""


def _linear_layers(inputs: int, outputs: int, width: int, layers: int) -> nn.ModuleList:
    """``layers`` hidden ones and the output's."""
    sizes = [inputs, *[width] * layers, outputs]
    _check_sizes(*sizes, layers)
    return nn.ModuleList(nn.Linear(m, n) for m, n in pairwise(sizes))


def _check_sizes(*sizes: int) -> None:
    """Refuse an empty layer, or no hidden layer.

    Raises:
        ValueError: says so.
    """
    if min(sizes) < 1:
        raise ValueError(
            "A network needs at least one hidden layer, and in every layer one feature."
        )
