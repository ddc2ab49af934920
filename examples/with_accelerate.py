"""Noisy data in Hugging Face accelerate: accumulated batches, clipping, saved states.

``python examples/with_accelerate.py bf16`` trains in mixed precision.
"""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from oscillator import SIGMA, WEIGHT, Network, error, measurements, physics
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import sciml_snr


class Run:
    """A training run that can be saved and continued.

    Args:
        name: of the optimizer, SNRAdam or Adam.
        batch_size: of the measurements.
        every: so many batches make a step.
        clip: largest norm of the gradient.
        precision: ``"no"`` or ``"bf16"``; accelerate takes one in a process.
    """

    def __init__(
        self,
        name: str = "SNRAdam",
        batch_size: int = 128,
        every: int = 1,
        clip: float | None = None,
        precision: str = "no",
    ) -> None:
        self.accelerator = Accelerator(
            cpu=True, gradient_accumulation_steps=every, mixed_precision=precision
        )
        self.clip = clip
        x, y = measurements()
        net = Network()
        self.data = sciml_snr.NoisyLoss(SIGMA, population=len(x))
        if name == "Adam":
            optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
        else:
            optimizer = sciml_snr.SNRAdam(net.parameters(), lr=5e-3, noise=self.data)
        loader = DataLoader(TensorDataset(x, y), batch_size=batch_size)
        self.net, self.optimizer, self.loader = self.accelerator.prepare(net, optimizer, loader)

    def train(self, epochs: int) -> Run:
        """Train on."""
        for _ in range(epochs):
            for x, y in self.loader:
                with self.accelerator.accumulate(self.net):
                    loss = self.data(self.net(x), y) + WEIGHT * physics(self.net)
                    self.accelerator.backward(loss)
                    if self.clip is not None and self.accelerator.sync_gradients:
                        self.accelerator.clip_grad_norm_(self.net.parameters(), self.clip)
                    self.optimizer.step()
                    self.optimizer.zero_grad()
        return self

    def plain_net(self) -> nn.Module:
        """The network without accelerate's wrapping."""
        net: nn.Module = self.accelerator.unwrap_model(self.net)
        return net


def with_a_break(epochs: int, folder: Path, precision: str = "no") -> Run:
    """A run that is saved after half of it; a new one goes on from there."""
    set_seed(0)
    Run(precision=precision).train(epochs // 2).accelerator.save_state(str(folder))
    run = Run(precision=precision)
    run.accelerator.load_state(str(folder))
    return run.train(epochs - epochs // 2)


def main(precision: str = "no") -> None:
    """Compare with Adam."""
    adam = Run("Adam", precision=precision).train(400)
    run = Run(precision=precision).train(400)
    print(run.optimizer.optimizer.describe())
    print(
        f"error against the truth: Adam {error(adam.plain_net()):.3f}, "
        f"SNRAdam {error(run.plain_net()):.3f}"
    )
    batched = Run(batch_size=32, every=4, clip=1.0, precision=precision).train(100)
    print(f"in batches, clipped, 100 steps: {error(batched.plain_net()):.3f}")
    with TemporaryDirectory() as folder:
        broken = with_a_break(40, Path(folder), precision)
    whole = Run(precision=precision).train(40)
    pairs = zip(broken.plain_net().parameters(), whole.plain_net().parameters(), strict=True)
    same = all(torch.equal(one, other) for one, other in pairs)
    print(f"40 steps with a break after 20: the same bits as without, {same}")


if __name__ == "__main__":
    main(*sys.argv[1:])
