"""Why the gate holds.

One SIREN, one noisy crop of a photograph, all pixels in every step, four optimizers: Adam, the
published gate with its streaming noise floor, and the same gate with a floor made from the
measurement error, in the parameters' own coordinates (what `SNRAdam` takes for data alone) and in
the eigenbasis of the gradients' covariances (`SNRSOAP`, short for
`SNRAdam(coordinates="eigen")`).

It prints final and best quality of the four fits, and the estimated sigma.
Its figures go to runs/examples/.

    python examples/why_the_gate_holds.py

With more iterations, and explained step by step:
notebooks/02_why_the_gate_holds.ipynb
This script is made from it, by python -m benchmarks.notebooks.
"""

import itertools
import math
import os
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import skimage.data
import torch
from torch import nn

import sciml_snr
from sciml_snr import memorized_share

ITERATIONS = int(os.environ.get("ITERATIONS", 700))
torch.set_num_threads(1)
FIGURES = Path("runs/examples")
FIGURES.mkdir(parents=True, exist_ok=True)


# The data and the network
size, sigma = 64, 25 / 127.5
clean = skimage.data.camera()[96 : 96 + size, 224 : 224 + size] / 127.5 - 1.0
noisy = clean + sigma * np.random.default_rng(0).normal(size=clean.shape)
axis = torch.linspace(-1, 1, size)
x = torch.cartesian_prod(axis, axis)
y = torch.tensor(noisy.reshape(-1, 1), dtype=torch.float32)


class Siren(nn.Module):
    def __init__(self, width=128, omega=30.0):
        super().__init__()
        self.omega = omega
        sizes = [2, width, width, width, 1]
        self.layers = nn.ModuleList(nn.Linear(m, n) for m, n in itertools.pairwise(sizes))
        for i, layer in enumerate(self.layers):
            bound = 1 / 2 if i == 0 else math.sqrt(6 / width) / omega
            nn.init.uniform_(layer.weight, -bound, bound)

    def forward(self, x):
        for layer in self.layers[:-1]:
            x = torch.sin(self.omega * layer(x))
        return self.layers[-1](x)


def psnr(fit):
    return 10 * math.log10(4 / np.mean((np.clip(fit, -1, 1) - clean) ** 2))


print(f"the noisy pixels themselves: {psnr(noisy):.1f} dB")


# Four optimizers
def train(build, lr=1e-4):
    """PSNR, memorized share and open fraction over iterations, and the image at some of them."""
    torch.manual_seed(0)
    net = Siren()
    loss = sciml_snr.NoisyLoss(sigma)  # for an optimizer that is not told of it: nn.MSELoss
    optimizer = build(net.parameters(), lr, loss)
    history, images = [], {}
    for iteration in range(ITERATIONS + 1):
        if iteration in SHOWN or iteration % max(1, ITERATIONS // 100) == 0:
            with torch.no_grad():
                fit = net(x).numpy().reshape(size, size)
            stats = getattr(optimizer, "gate_stats", lambda: None)()
            opened = math.nan if stats is None else stats.open_fraction
            history.append((iteration, psnr(fit), memorized_share(fit, clean, noisy), opened))
            if iteration in SHOWN:
                images[iteration] = fit
        optimizer.zero_grad()
        loss(net(x), y).backward()
        optimizer.step()
    return np.array(history).T, images


SHOWN = [ITERATIONS // 20, ITERATIONS // 5, ITERATIONS]
METHODS = {
    "Adam": lambda p, lr, loss: torch.optim.Adam(p, lr),
    "published rule (SNRAdam, soft)": lambda p, lr, loss: sciml_snr.SNRAdam(p, lr),
    "SNRAdam, label floor": lambda p, lr, loss: sciml_snr.SNRAdam(
        p, lr, noise=loss, floor_every=10
    ),
    "SNRSOAP, label floor": lambda p, lr, loss: sciml_snr.SNRSOAP(
        p, lr, noise=loss, floor_every=10
    ),
}
runs = {name: train(build) for name, build in METHODS.items()}

# What became of it
fig, axes = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
for name, (history, _) in runs.items():
    iteration, quality, share, opened = history
    axes[0].plot(iteration, quality, label=name)
    axes[1].plot(iteration, share)
    axes[2].plot(iteration, opened)
axes[0].axhline(psnr(noisy), color="0.6", ls=":")
axes[0].set(ylabel="PSNR in dB", xlabel="iteration", ylim=(psnr(noisy) - 1, None))
axes[1].set(ylabel="share of the noise memorized", xlabel="iteration")
axes[2].set(ylabel="share of the gates open", xlabel="iteration", yscale="log")
axes[0].legend(fontsize=7)
plt.savefig(FIGURES / "why_the_gate_holds_1.png")
fig, axes = plt.subplots(len(runs), len(SHOWN) + 2, figsize=(10, 8), layout="constrained")
for row, (name, (_, images)) in zip(axes, runs.items(), strict=True):
    shown = [("clean", clean), ("measured", noisy)]
    shown += [(f"{i}: {psnr(image):.1f} dB", image) for i, image in images.items()]
    for ax, (title, image) in zip(row, shown, strict=True):
        ax.imshow(image, cmap="gray", vmin=-1, vmax=1)
        ax.set_title(title, fontsize=8)
        ax.set_xticks([])
        ax.set_yticks([])
    row[0].set_ylabel(name, fontsize=7)
plt.savefig(FIGURES / "why_the_gate_holds_2.png")
print(f"{'':32s} final  best  at iteration  memorized")
for name, (history, _) in runs.items():
    best = history[1].argmax()
    print(
        f"{name:32s} {history[1, -1]:5.2f} {history[1, best]:5.2f} {history[0, best]:8.0f}"
        f"        {100 * history[2, -1]:5.1f} %"
    )

# Why
estimate = sciml_snr.estimate_sigma_image(noisy)
print(estimate)
print(f"true: {sigma:.3f}")
print(f"figures: {FIGURES}/why_the_gate_holds_*.png")
