"""Noisy data in a training loop of plain torch: accumulation over batches, and clipping."""

import torch
from oscillator import SIGMA, WEIGHT, Network, error, measurements, physics
from torch import nn

import sciml_snr


def fit(data: nn.Module, name: str, steps: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Train with a loss for the data; gives network and optimizer."""
    x, y = measurements()
    net = Network()
    if name == "Adam":
        optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    else:
        optimizer = sciml_snr.SNRAdam(net.parameters(), lr=5e-3, noise=data)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = data(net(x), y) + WEIGHT * physics(net)
        loss.backward()
        optimizer.step()
    return net, optimizer


def fit_in_batches(steps: int, batches: int = 4) -> tuple[nn.Module, torch.optim.Optimizer]:
    """The same; the gradient is summed over batches, and clipped."""
    x, y = measurements()
    net = Network()
    data = sciml_snr.NoisyLoss(SIGMA, population=len(x))
    optimizer = sciml_snr.SNRAdam(net.parameters(), lr=5e-3, noise=data)
    for _ in range(steps):
        for part, target in zip(x.chunk(batches), y.chunk(batches), strict=True):
            loss = data(net(part), target) + WEIGHT * physics(net)
            (loss / batches).backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return net, optimizer


def main() -> None:
    """Compare with Adam."""
    data = sciml_snr.NoisyLoss(SIGMA)
    adam, _ = fit(data, "Adam", 400)
    net, optimizer = fit(data, "SNRAdam", 400)
    batched, _ = fit_in_batches(100)
    print(optimizer.describe())
    print(f"error against the truth: Adam {error(adam):.3f}, SNRAdam {error(net):.3f}")
    print(f"in batches, clipped, 100 steps: {error(batched):.3f}")


if __name__ == "__main__":
    main()
