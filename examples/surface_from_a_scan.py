"""A surface from a noisy scan.

A cloud of points with errors goes in, a signed distance comes out, and from it a closed, clean
mesh: one call, no clean surface, no validation set, no stopping rule. Then what a distance is
good for, and the same for a curve in the plane.

It prints distances of both meshes from the true surface, and the memorized share of a curve.
Its figures go to runs/examples/.

    python examples/surface_from_a_scan.py

With more iterations, and explained step by step:
notebooks/04_surface_from_a_noisy_scan.ipynb
This script is made from it, by python -m benchmarks.notebooks.
"""

import os
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
import trimesh
from skimage.measure import marching_cubes

from sciml_snr.fields import SDFFit, fit_sdf

STEPS = int(os.environ.get("ITERATIONS", 600))
folder = Path(tempfile.mkdtemp())
torch.set_num_threads(1)
FIGURES = Path("runs/examples")
FIGURES.mkdir(parents=True, exist_ok=True)


# A scan
def solid(x, y, z):
    holes = [0.4 - np.hypot(a, b) for a, b in ((x, y), (y, z), (z, x))]
    cube = np.max(np.abs([x, y, z]), axis=0) - 0.8
    ball = np.sqrt(x**2 + y**2 + z**2) - 1.02
    return np.max([cube, ball, *holes], axis=0)


axis = np.linspace(-1.1, 1.1, 120)
grid = np.meshgrid(axis, axis, axis, indexing="ij")
vertices, faces, _, _ = marching_cubes(solid(*grid), 0.0, gradient_direction="descent")
truth = trimesh.Trimesh(50 * (vertices * (axis[1] - axis[0]) - 1.1), faces)  # in millimetres, say

error = 0.015 * np.linalg.norm(truth.extents)
points, _ = trimesh.sample.sample_surface(truth, 8000, seed=0)
points = points + error * np.random.default_rng(0).normal(size=points.shape)
trimesh.PointCloud(points).export(folder / "scan.ply")
print(f"{len(points)} points, error {error:.2f}")

# The fit
fit = fit_sdf(folder / "scan.ply", steps=STEPS, progress=False)
adam = fit_sdf(folder / "scan.ply", steps=STEPS, optimizer="adam", progress=False)
print(fit.sigma)
print(f"true: {error:.2f}")
meshes = {"fit_sdf": fit.mesh(64), "Adam": adam.mesh(64)}
print(f"{'':9s} Chamfer distance   F-score   normals   closed   volume (true: {truth.volume:.0f})")
for name, found in (("fit_sdf", fit), ("Adam", adam)):
    m = found.metrics(truth, resolution=64)
    print(
        f"{name:9s} {m.chamfer:16.3f} {m.f_score:9.3f} {m.normal_consistency:9.3f}"
        f"   {meshes[name].is_watertight!s:6s} {meshes[name].volume:8.0f}"
    )
fig = plt.figure(figsize=(13, 4.4), layout="constrained")
for i, (title, mesh) in enumerate({"scan": None, "truth": truth, **meshes}.items()):
    ax = fig.add_subplot(1, 4, i + 1, projection="3d")
    if mesh is None:
        ax.scatter(*points[::2].T, s=0.6, c=points[::2, 2], linewidths=0)
    else:
        ax.plot_trisurf(
            *mesh.vertices.T, triangles=mesh.faces, color="0.85", linewidth=0, antialiased=False
        )
    ax.set(xlim=(-48, 48), ylim=(-48, 48), zlim=(-48, 48), title=title)
    ax.set_box_aspect((1, 1, 1), zoom=1.4)
    ax.set_axis_off()
plt.savefig(FIGURES / "surface_from_a_scan_1.png")
fit.figure().savefig(FIGURES / "surface_from_a_scan_2.png")

# What a distance is good for
print("distance of (45, 20, 0):", fit.distance([[45.0, 20.0, 0.0]]).round(2))
print("normal there:           ", fit.gradient([[45.0, 20.0, 0.0]]).round(2))
fit.export(folder / "clean.ply", resolution=64)
fit.save(folder / "fit.npz")
again = SDFFit.load(folder / "fit.npz")
line = np.linspace(-60, 60, 160)
plane = np.stack(np.meshgrid(line, line, [0.0], indexing="ij"), axis=-1).reshape(-1, 3)
distance = again.distance(plane).reshape(160, 160)
fig, ax = plt.subplots(figsize=(4.6, 4.2), layout="constrained")
shown = ax.contourf(line, line, distance.T, 24, cmap="RdBu_r", vmin=-30, vmax=30)
ax.contour(line, line, distance.T, [0, 4], colors="black", linewidths=[1.6, 0.8])
near = np.abs(points[:, 2]) < 1
ax.plot(*points[near, :2].T, ".", color="black", markersize=2)
ax.set(aspect="equal", title="distance at z = 0: surface and coat")
fig.colorbar(shown)
plt.savefig(FIGURES / "surface_from_a_scan_3.png")

# A curve in the plane, and how much of the error is in it
rng = np.random.default_rng(0)
angle = rng.uniform(0, 2 * np.pi, 400)
radius = 1 + 0.3 * np.cos(3 * angle)
clean = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
outline = clean + 0.04 * rng.normal(size=clean.shape)
curve = fit_sdf(outline, steps=STEPS, progress=False)
print(curve.sigma)
print(curve.memorization(progress=False))
curve.figure().savefig(FIGURES / "surface_from_a_scan_4.png")
print(f"figures: {FIGURES}/surface_from_a_scan_*.png")
