"""Noisy data in Lightning: automatic optimization, accumulated batches, clipping, checkpoints."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightning
import torch
from oscillator import SIGMA, WEIGHT, Network, error, measurements, physics
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import sciml_snr


class Oscillator(lightning.LightningModule):
    """Network, loss and optimizer.

    Args:
        name: of the optimizer, SNRAdam or Adam.
        population: number of data that the batches are drawn from.
    """

    def __init__(self, name: str = "SNRAdam", population: int | None = None) -> None:
        super().__init__()
        self.net = Network()
        self.data = sciml_snr.NoisyLoss(SIGMA, population=population)
        self.name = name

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Noisy data and the exact equation."""
        x, y = batch
        return self.data(self.net(x), y) + WEIGHT * physics(self.net)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The optimizer is told of the loss that knows its error."""
        if self.name == "Adam":
            return torch.optim.Adam(self.parameters(), lr=5e-3)
        return sciml_snr.SNRAdam(self.parameters(), lr=5e-3, noise=self.data)


def batches(size: int) -> DataLoader[Any]:
    """The measurements in batches."""
    return DataLoader(TensorDataset(*measurements()), batch_size=size)


def trainer(epochs: int, **options: Any) -> lightning.Trainer:
    """A quiet trainer on the CPU."""
    quiet = dict(logger=False, enable_progress_bar=False, enable_model_summary=False)
    options = {"enable_checkpointing": False, **options}
    return lightning.Trainer(max_epochs=epochs, accelerator="cpu", **quiet, **options)


def fit(name: str, epochs: int, **options: Any) -> Oscillator:
    """All measurements in every step; options are those of the trainer."""
    model = Oscillator(name)
    trainer(epochs, **options).fit(model, batches(128))
    return model


def fit_in_batches(epochs: int, **options: Any) -> Oscillator:
    """A step of four batches, whose gradient is clipped."""
    model = Oscillator(population=128)
    every = {"accumulate_grad_batches": 4, "gradient_clip_val": 1.0, **options}
    trainer(epochs, **every).fit(model, batches(32))
    return model


def fit_with_a_break(epochs: int, folder: Path) -> Oscillator:
    """As ``fit``, with a checkpoint after half of it, from which a new model goes on."""
    first = trainer(epochs // 2)
    first.fit(Oscillator(), batches(128))
    first.save_checkpoint(folder / "half.ckpt")
    model = Oscillator()
    trainer(epochs).fit(model, batches(128), ckpt_path=folder / "half.ckpt")
    return model


def main() -> None:
    """Compare with Adam."""
    adam, model = fit("Adam", 400), fit("SNRAdam", 400)
    optimizer = model.optimizers(use_pl_optimizer=False)
    assert isinstance(optimizer, sciml_snr.SNRAdam)
    print(optimizer.describe())
    print(f"error against the truth: Adam {error(adam.net):.3f}, SNRAdam {error(model.net):.3f}")
    print(f"in batches, clipped, 100 steps: {error(fit_in_batches(100).net):.3f}")
    with TemporaryDirectory() as folder:
        broken, whole = fit_with_a_break(40, Path(folder)), fit("SNRAdam", 40)
    same = all(map(torch.equal, broken.state_dict().values(), whole.state_dict().values()))
    print(f"40 steps with a break after 20: the same bits as without, {same}")


if __name__ == "__main__":
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    main()
