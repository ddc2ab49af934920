"""Denoise an image.

One noisy photograph, one call, no clean image, no validation set, no stopping rule. Then what
only a continuous image can do: fill in missing pixels, zoom, and give slopes.

It prints the quality of the fit, of Adam's and of non-local means, and the memorized share.
Its figures go to runs/examples/.

    python examples/denoise_an_image.py

With more iterations, and explained step by step:
notebooks/03_denoise_an_image.ipynb
This script is made from it, by python -m benchmarks.notebooks.
"""

import os
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import skimage.data
import torch
from skimage.restoration import denoise_nl_means

from sciml_snr.fields import fit_image

STEPS = int(os.environ["ITERATIONS"]) if "ITERATIONS" in os.environ else None
torch.set_num_threads(1)
FIGURES = Path("runs/examples")
FIGURES.mkdir(parents=True, exist_ok=True)


# A noisy image
clean = skimage.data.camera()[96:160, 224:288].astype(float)
noisy = clean + 25 * np.random.default_rng(0).normal(size=clean.shape)


def psnr(image):
    return 20 * np.log10(255 / np.sqrt(np.mean((np.clip(image, 0, 255) - clean) ** 2)))


print(f"noisy: {psnr(noisy):.2f} dB")

# The fit
fit = fit_image(noisy, reference=clean, steps=STEPS, progress=False)
adam = fit_image(noisy, reference=clean, steps=fit.options.steps, optimizer="adam", progress=False)
print(fit.sigma[0])
print(fit.options)
for name, found in (("fit_image", fit), ("Adam", adam)):
    course = [20 * np.log10(255 / row["rmse"]) for row in found.history]
    plt.plot([row["step"] for row in found.history], course, label=name)
    print(f"{name:10s} best {max(course):.2f} dB, final {psnr(found.image):.2f} dB")
plt.axhline(psnr(noisy), color="0.6", ls=":", label="the noisy image")
plt.xlabel("step")
plt.ylabel("PSNR in dB")
plt.legend()
plt.savefig(FIGURES / "denoise_an_image_1.png")
fig, axes = plt.subplots(1, 4, figsize=(12, 3.3), layout="constrained")
shown = {"clean": clean, "noisy": noisy, "fit_image": fit.image, "Adam, in the end": adam.image}
for ax, (title, image) in zip(axes, shown.items(), strict=True):
    ax.imshow(image, cmap="gray", vmin=0, vmax=255)
    ax.set_title(f"{title}: {psnr(image):.1f} dB" if title != "clean" else title)
    ax.axis("off")
plt.savefig(FIGURES / "denoise_an_image_2.png")
fit.figure().savefig(FIGURES / "denoise_an_image_3.png")

# How much of the noise is in the fit?
print(fit.memorization(progress=False))
noise = noisy - clean
share = np.sum((fit.image - clean) * noise) / np.sum(noise**2)
print(f"measured with the truth: {100 * share:.1f} %")

# Missing pixels
gaps = np.where(np.random.default_rng(1).random(clean.shape) < 0.7, np.nan, noisy)
filled = fit_image(gaps, steps=STEPS, progress=False)
fig, axes = plt.subplots(1, 3, figsize=(9, 3.3), layout="constrained")
shown = {"clean": clean, "known": gaps, f"fit: {psnr(filled.image):.1f} dB": filled.image}
grey = plt.get_cmap("gray").with_extremes(bad="lightsteelblue")
for ax, (title, image) in zip(axes, shown.items(), strict=True):
    ax.imshow(image, cmap=grey, vmin=0, vmax=255)
    ax.set_title(title)
    ax.axis("off")
plt.savefig(FIGURES / "denoise_an_image_4.png")

# Between the pixels
box = [(30, 60), (26, 56)]
slopes = fit.gradient(scale=8, box=box)
fig, axes = plt.subplots(1, 3, figsize=(9, 3.3), layout="constrained")
axes[0].imshow(noisy[30:60, 26:56], cmap="gray", vmin=0, vmax=255)
axes[1].imshow(fit.render(scale=8, box=box), cmap="gray", vmin=0, vmax=255)
axes[2].imshow(np.hypot(slopes[..., 0], slopes[..., 1]), cmap="magma")
for ax, title in zip(axes, ("pixels", "render(scale=8)", "slope"), strict=True):
    ax.set_title(title)
    ax.axis("off")
plt.savefig(FIGURES / "denoise_an_image_5.png")

# When to use something else
found = denoise_nl_means(
    noisy, patch_size=5, patch_distance=6, h=0.6 * 25, sigma=25, fast_mode=True
)
print(f"fit_image {psnr(fit.image):.2f} dB, non-local means {psnr(found):.2f} dB")
print(f"figures: {FIGURES}/denoise_an_image_*.png")
