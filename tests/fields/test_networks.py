"""Networks of coordinates: initialization, shapes, what they can represent."""

import math

import pytest
import torch

from sciml_snr.fields.networks import NETWORKS, FourierFeatures, Siren, Wire


@pytest.mark.parametrize("name", NETWORKS)
def test_shapes_and_derivatives(name: str) -> None:
    torch.manual_seed(0)
    net = NETWORKS[name](3, 2, hidden_features=16, hidden_layers=2)
    x = (2 * torch.rand(50, 3) - 1).requires_grad_()
    y = net(x)
    assert y.shape == (50, 2)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert gradient.isfinite().all() and gradient.abs().max() > 0


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("sizes", [(0, 1, 8, 2), (2, 0, 8, 2), (2, 1, 0, 2), (2, 1, 8, 0)])
def test_sizes_that_cannot_be(name: str, sizes: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="at least one hidden layer"):
        NETWORKS[name](*sizes)


def test_siren_initialization() -> None:
    """Theorem 1.8 of the paper: every sine's input is N(0, 1), whatever the depth."""
    torch.manual_seed(0)
    net = Siren(2, 1, hidden_features=512, hidden_layers=5)
    x = 2 * torch.rand(2000, 2) - 1
    for i, (omega, layer) in enumerate(zip(net.omegas, net.layers[:-1], strict=True)):
        if i:  # the first layer's input is set by omega_0 alone
            inner = omega * (x @ layer.weight.T)
            assert inner.std().item() == pytest.approx(1, abs=0.05)
            assert inner.mean().item() == pytest.approx(0, abs=0.1)
        x = torch.sin(omega * layer(x))
    assert [layer.weight.abs().max().item() for layer in net.layers] == pytest.approx(
        [1 / 2] + [math.sqrt(6 / 512) / 30] * 5, rel=1e-2
    )


def test_siren_frequencies_grow_with_first_omega() -> None:
    x = torch.linspace(-1, 1, 500)[:, None].requires_grad_()
    slopes = []
    for omega in (5.0, 50.0):
        torch.manual_seed(0)
        net = Siren(1, 1, 64, 2, first_omega_0=omega)
        slopes.append(torch.autograd.grad(net(x).sum(), x)[0].std().item())
    assert slopes[1] > 5 * slopes[0]


def test_fourier_frequencies_are_fixed_and_saved() -> None:
    torch.manual_seed(0)
    net = FourierFeatures(2, 1, 8, 1, scale=3.0, frequencies=4000)
    assert net.frequency.std().item() == pytest.approx(3, rel=0.05)
    assert "frequency" in net.state_dict()
    assert all(p.shape != net.frequency.shape for p in net.parameters())


def test_wire_is_a_product_of_wave_and_window() -> None:
    net = Wire(1, 1, 1, 1, omega_0=7.0, scale_0=3.0)
    with torch.no_grad():
        for layer in (net.layers[0], net.windows[0]):
            layer.weight.fill_(1), layer.bias.fill_(0)
        net.layers[1].weight.fill_(2), net.layers[1].bias.fill_(0.5)
    x = torch.linspace(-1, 1, 20)[:, None]
    expected = 2 * torch.cos(7 * x) * torch.exp(-9 * x**2) + 0.5
    torch.testing.assert_close(net(x), expected)


def test_siren_output_gain_scales_the_output_and_halves_the_start() -> None:
    networks = []
    for gain in (1.0, 5.0):
        torch.manual_seed(0)
        networks.append(Siren(2, 1, output_gain=gain))
    x = 2 * torch.rand(50, 2) - 1
    plain, gained = (network(x) for network in networks)
    torch.testing.assert_close(gained, plain / 2)
    with torch.no_grad():
        networks[1].layers[-1].bias += 1
    torch.testing.assert_close(networks[1](x), plain / 2 + 5)
