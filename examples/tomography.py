"""Tomography: a field from its projections.

A scanner measures integrals along lines. `fit_field` fits the field itself, a function, to what
the lines show of it, and leaves the noise where it is. The same call takes any operator: blurs,
averages, Fourier coefficients, or a function of torch of your own.

It prints the quality of the fit and of Adam's, and the misfit, which needs no truth.
Its figures go to runs/examples/.

    python examples/tomography.py

With more iterations, and explained step by step:
notebooks/08_tomography.ipynb
This script is made from it, by python -m benchmarks.notebooks.
"""

import os
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import skimage.data
import torch
from skimage.transform import iradon, iradon_sart, radon, resize

from sciml_snr.fields import LineIntegrals, fit_field

STEPS = int(os.environ.get("ITERATIONS", 400))
torch.set_num_threads(1)
FIGURES = Path("runs/examples")
FIGURES.mkdir(parents=True, exist_ok=True)


# The measurements
SIDE = 64
phantom = resize(skimage.data.shepp_logan_phantom(), (SIDE, SIDE), anti_aliasing=True)
angles = np.arange(0, 180, 9.0)
clean = radon(phantom, theta=angles)
sigma = 0.02 * clean.max()
sinogram = clean + sigma * np.random.default_rng(0).normal(size=clean.shape)
print(f"{sinogram.size} measurements, {phantom.size} pixels")

# The operator
detectors = np.arange(SIDE) - SIDE / 2
operator = LineIntegrals(angles, detectors, size=SIDE)
row, col = np.mgrid[:SIDE, :SIDE]
pixels = np.stack([col - SIDE / 2, SIDE / 2 - row], axis=-1).reshape(-1, 2)

# The fit
options = dict(sigma=sigma, operator=operator, steps=STEPS, progress=False)
options |= dict(reference=(pixels, phantom.ravel()))
fit = fit_field(None, sinogram.T, **options)
adam = fit_field(None, sinogram.T, optimizer="adam", lr=3e-3, **options)
print(fit.options)
for name, found in (("fit_field", fit), ("Adam", adam)):
    course = [-20 * np.log10(row["rmse"]) for row in found.history]
    plt.plot([row["step"] for row in found.history], course, label=name)
    print(f"{name:10s} best {max(course):.2f} dB, final {course[-1]:.2f} dB")
plt.xlabel("step")
plt.ylabel("PSNR in dB")
plt.legend()
plt.savefig(FIGURES / "tomography_1.png")


# Beside what scanners do
def psnr(image):
    return -10 * np.log10(np.mean((image - phantom) ** 2))


filtered = iradon(sinogram, theta=angles, filter_name="hann")
image, iterations = None, []
for _ in range(8):
    image = iradon_sart(sinogram, theta=angles, image=image)
    iterations.append(image)
shown = {
    "truth": phantom,
    "back-projection": filtered,
    "SART, oracle": max(iterations, key=psnr),
    "fit_field": fit(pixels).reshape(SIDE, SIDE),
}
fig, axes = plt.subplots(1, 4, figsize=(12, 3.3), layout="constrained")
for ax, (title, image) in zip(axes, shown.items(), strict=True):
    ax.imshow(image, cmap="gray", vmin=0, vmax=0.6)
    ax.set_title(title if title == "truth" else f"{title}: {psnr(image):.1f} dB")
    ax.axis("off")
plt.savefig(FIGURES / "tomography_2.png")

# Without the truth
print(f"misfit {fit.history[-1]['misfit']:.2f}")
fit.figure().savefig(FIGURES / "tomography_3.png")

# It is a function
grid = np.linspace(-15, 15, 200)
part = fit.render([grid, grid])
slopes = fit.gradient(np.stack(np.meshgrid(grid, grid, indexing="ij"), -1).reshape(-1, 2))
fig, axes = plt.subplots(1, 2, figsize=(7, 3.3), layout="constrained")
axes[0].imshow(part.T, origin="lower", cmap="gray")
axes[0].set_title("a part, finer")
axes[1].imshow(np.hypot(*slopes.T).reshape(200, 200).T, origin="lower", cmap="magma")
axes[1].set_title("slope")
plt.savefig(FIGURES / "tomography_4.png")
print(fit.module(torch.tensor([[0.0, 10.0]])))


# An operator of your own
def pairs(field):
    lines = operator(field)
    return lines[:, ::2] + lines[:, 1::2]


paired = sinogram.T[:, ::2] + sinogram.T[:, 1::2]
coarse = fit_field(
    [[-32, -32], [32, 32]],
    paired,
    sigma=sigma * 2**0.5,
    operator=pairs,
    steps=STEPS // 4,
    progress=False,
)
found = coarse(pixels).reshape(SIDE, SIDE)
print(f"{psnr(found):.1f} dB from half as many numbers, in a quarter of the steps")
print(f"figures: {FIGURES}/tomography_*.png")
