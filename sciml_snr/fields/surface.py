r"""Surfaces (and plane curves) as the zero level of a signed distance, fitted to noisy points.

A network f(x) goes down

.. math::
    \frac{w_s}{b}\sum_i \Bigl(\frac{f(x_i)}{|\nabla f(x_i)|}\Bigr)^2
    + w_e\, \mathbb E\,(|\nabla f(y)| - 1)^2
    + \frac{w_n}{b}\sum_i |\nabla f(x_i) - n_i|^2 + w_o\, \mathbb E\, e^{-\alpha |f(z)|}

with the measured points :math:`x_i` (all, or in batches of b), points y at them, near them and in
the whole box, z in the box, drawn anew in every step. At a measured point the true distance is not
0: it is the point's own error along the normal. So 0 is a label with error sigma, for which there
is a noisy loss (:class:`sciml_snr.NoisyLoss`); the other terms count as exact.

The first term is in distances from the zero level, to first order, and not in values of f: those it
could lower by making f flat, in particular where the error is large. It then does, at the cost of
the eikonal term, and what is left of the residuals looks as if the noise had been memorized.

Estimated normals are not exact. They are averages over the neighbours' errors, the very ones of the
first term: what they carry of them passes the floor (little, with many neighbours, and smooth: see
:func:`estimate_normals`), and they are rounded off at edges. So their weight is a small one: they
tell inside from outside, and are a help at the start.

Sources: G. Taubin, IEEE Trans. Pattern Anal. Mach. Intell. 13 (1991) 1115 (the distance to first
order); A. Gropp et al., ICML 2020, arXiv:2002.10099 (eikonal and normal term); V. Sitzmann et al.,
NeurIPS 2020, arXiv:2006.09661 (off-surface term).
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import coo_array, csgraph
from scipy.spatial import cKDTree
from torch import Tensor, nn

from ..gate import BESIDE_EXACT
from ..measure.local_risk import WHOLE, LocalBars
from ..measure.twins import TAU, Memorization, Twins
from ..noise import NoisyLoss
from ..runs.config import check_keys, takes
from ..runs.folder import CHECKPOINT, CONFIG, SUMMARY, check_can_write, readable
from ..runs.options import FitOptions, PointsOptions
from ..terms import NoisyTerm, as_sigma_tensor, check_squares
from .archive import (
    NetworkChoice,
    check_asked,
    load_fit,
    open_folder,
    restore_network,
    save_fit,
    saved_choice,
    sigma_from_json,
    sigma_to_json,
)
from .fit import (
    Training,
    check_steps,
    completed_gate,
    fits_of_twins,
    fitted,
    read_checkpoint,
    summary_of,
)
from .isosurface import SurfaceMetrics, grid_axes, surface_metrics, zero_contours, zero_mesh
from .points import Cloud, Frame, estimate_normals, estimate_sigma_points, read_cloud

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = NDArray[np.float64]

TILE = 65_536
"""Points that are evaluated at a time."""

MARGIN = 0.15
"""Width of the empty border around the points, in units of half their longest side."""

NEAR = 0.1
"""Standard deviation of the points drawn near the measured ones, in the same units."""

MIN_SLOPE = 0.2
"""Slopes that are less count as so much: a network may be flat in places at the start."""

ALPHA = 100.0
"""Decay of the off-surface term, in their inverse."""

SIZE = {"hidden_features": 64, "hidden_layers": 4}
"""Of a built-in network."""

LEARNING_RATES = {"softplus": 3e-3}
"""By network; 1e-4 for another."""

BATCH_GATES: dict[str, dict[str, Any]] = {
    "snr_soap": {"form": "snr", "z": 2.0, "warmup_steps": 500, "follow": False},
    "snr_adam": {"form": "snr", "z": 3.0, "warmup_steps": 500, "follow": False},
}
"""In batches, by optimizer: the form that never quite closes, since the exact terms are to be met
in the end. With all points in every step the gate is :data:`sciml_snr.gate.BESIDE_EXACT`, and in
space the exact terms carry on along the noisy terms' level set, as an equation does. (The gradient
of one small batch is not that of the data: there the same was no better.)"""

STEPS = 2000
FULL_BATCH = 2_048
"""Up to so many points are all in every step."""

BATCH_SIZE = 512
"""Points in a step of a larger cloud."""

FLOOR_EVERY = 5
COOLDOWN = 0.3
"""By default."""

KIND = "sdf"
"""What tells saved fits of shapes from others."""


@dataclass(frozen=True)
class Weights:
    """Of the loss, where the longest side of the points' box is 2."""

    surface: float = 30.0
    eikonal: float = 0.1
    normal: float = 0.1
    off_surface: float = 0.1

    def __post_init__(self) -> None:
        """Refuse what cannot be.

        Raises:
            ValueError: names the weight.
        """
        for name, weight in asdict(self).items():
            if not 0 <= weight < math.inf:
                raise ValueError(f"The weight {name} must be finite and >= 0, got {weight}.")
        if self.surface == 0:
            raise ValueError("The weight surface is 0: the points would have no say.")


class SurfaceObjective:
    """The terms of the module docstring, in the coordinates of the fit.

    Args:
        points: (n, d).
        normals: (n, d), or None: no normal term.
        labels: (n,) values of the distance at the points: 0, but for a twin.
        sigma: their error.
        weights: of the terms.
        batch_size: points in a step, drawn with replacement; None for all of them.
        device: of the fit.
    """

    def __init__(
        self,
        points: Array,
        normals: Array | None,
        labels: Array,
        sigma: float,
        weights: Weights,
        batch_size: int | None,
        device: torch.device,
    ) -> None:
        def tensor(values: Array) -> Tensor:
            return torch.as_tensor(values, dtype=torch.float32, device=device)

        self.points = tensor(points)
        self.normals = None if normals is None or weights.normal == 0 else tensor(normals)
        self.labels = tensor(labels)[:, None]
        self.sigma = sigma
        check_squares(as_sigma_tensor(sigma), torch.float32)
        self.noise = NoisyLoss(sigma)
        self.weights = weights
        self.batch_size = batch_size
        low, high = fit_box(points, sigma)
        self.low, self.size = tensor(low), tensor(high - low)

    def terms(
        self, network: nn.Module, rng: torch.Generator
    ) -> tuple[list[NoisyTerm], Tensor | None]:
        """The surface term of this step's batch, and all others."""
        weights, n = self.weights, len(self.points)
        if self.batch_size is None or self.batch_size >= n:
            x, labels, normals = self.points, self.labels, self.normals
        else:
            rows = torch.randint(n, (self.batch_size,), generator=rng, device=self.points.device)
            x, labels = self.points[rows], self.labels[rows]
            normals = None if self.normals is None else self.normals[rows]
        b = len(x)
        near, far = self._near(b // 2, rng), self._far(b - b // 2, rng)
        everywhere = torch.cat([near, far, x]).requires_grad_()
        values = network(everywhere)
        (gradient,) = torch.autograd.grad(values.sum(), everywhere, create_graph=True)
        lengths = gradient.norm(dim=1, keepdim=True)
        extra = weights.eikonal * (lengths - 1).square().mean()
        away = values[len(near) : b].abs()
        extra = extra + weights.off_surface * torch.exp(-ALPHA * away).mean()
        if normals is not None:
            turned = gradient[b:] - normals
            extra = extra + weights.normal * turned.square().sum(dim=1).mean()
        distance = values[b:] / lengths[b:].clamp_min(MIN_SLOPE)
        return [NoisyTerm(distance - labels, self.sigma, weights.surface, n)], extra

    def metrics(self, network: nn.Module) -> dict[str, float]:
        """None."""
        return {}

    def _near(self, count: int, rng: torch.Generator) -> Tensor:
        device, dim = self.points.device, self.points.shape[1]
        rows = torch.randint(len(self.points), (count,), generator=rng, device=device)
        noise = torch.randn(count, dim, generator=rng, device=device)
        return self.points[rows] + NEAR * noise

    def _far(self, count: int, rng: torch.Generator) -> Tensor:
        dim = self.points.shape[1]
        uniform = torch.rand(count, dim, generator=rng, device=self.points.device)
        return self.low + self.size * uniform


def fit_box(points: Array, sigma: float) -> tuple[Array, Array]:
    """Lowest and highest corner of the box that is fitted and meshed, in the fit's coordinates."""
    margin = MARGIN + 3 * sigma
    return points.min(axis=0) - margin, points.max(axis=0) + margin


def default_training(
    shape: tuple[int, int], optimizer: str, batch_size: int | None = None
) -> dict[str, Any]:
    """What follows from the shape (n, d) of the points, and from those in a step where given.

    Returns:
        Points in a step (None: all of them), and options of the gate. Exact terms move what is
        closed (``follow``) in space, where they are far from met when the gate closes, and not in
        the plane, where they only disturb it.
    """
    n, dim = shape
    if batch_size is None and n > FULL_BATCH:
        batch_size = BATCH_SIZE
    whole = not (isinstance(batch_size, int) and batch_size < n)
    gate: dict[str, Any] = {}
    if optimizer in BATCH_GATES:
        gate = BATCH_GATES[optimizer]
        if whole:
            coordinates = "eigen" if optimizer == "snr_soap" else "own"
            gate = {"z": BESIDE_EXACT[coordinates].z, "follow": dim == 3}
    return {"batch_size": batch_size, "gate": gate}


class SDFFit:
    """A shape as a function: what :func:`fit_sdf` returns.

    Attributes:
        cloud: the points, with normals if they were used.
        frame: from their coordinates to those of the network, and back.
        network: from coordinates in about [-1, 1] to the signed distance there.
        sigma: standard deviation of the points' error along the normal, in their units: as given,
            or as estimated (:class:`sciml_snr.SigmaEstimate`).
        weights: of the loss.
        options: of the fit.
        training: steps taken, time, log; whether it was interrupted.
    """

    def __init__(
        self,
        cloud: Cloud,
        choice: NetworkChoice,
        network: nn.Module,
        sigma: float,
        weights: Weights,
        options: FitOptions,
        training: Training,
    ) -> None:
        self.cloud = cloud
        self.frame = Frame.around(cloud.points)
        self.choice = choice
        self.network = network
        self.sigma = sigma
        self.weights = weights
        self.options = options
        self.training = training

    @property
    def history(self) -> list[dict[str, float]]:
        """The rows of the log, see :class:`sciml_snr.fields.Training`."""
        return self.training.history

    def distance(self, points: ArrayLike) -> Array:
        """Signed distance from the surface, negative inside, in the units of the points.

        Args:
            points: (n, d), in the coordinates of the cloud. Far outside of its box the fit knows
                nothing.

        Returns:
            (n,).

        Raises:
            ValueError: the points' shape is another.
        """
        found = evaluate(self.network, self._inward(points))
        distances: Array = found * self.frame.scale
        return distances

    def gradient(self, points: ArrayLike) -> Array:
        """Gradient of :meth:`distance`, (n, d): on the surface its normal, of length about 1.

        Args, Raises: as for :meth:`distance`.
        """
        return slopes(self.network, self._inward(points))

    def mesh(self, resolution: int = 128) -> Any:
        """The surface as a ``trimesh.Trimesh``, in the coordinates and units of the points.

        Closed where the fit is closed within the box of the points and a border around it; parts
        that no point is near to, artefacts of empty space, are left out. Memory grows with the
        mesh, not with the volume.

        Args:
            resolution: cells along the longest side of the box.

        Raises:
            ValueError: the points are in the plane; the resolution is out of range; there is no
                surface (a fit that has failed).
        """
        import trimesh

        self._require(3, "mesh", "contours")
        vertices, faces = zero_mesh(self._field, self._axes(resolution))
        edges = np.concatenate([faces[:, :2], faces[:, 1:], faces[:, ::2]])
        graph = coo_array(
            (np.ones(len(edges)), (edges[:, 0], edges[:, 1])), shape=2 * (len(vertices),)
        )
        part = csgraph.connected_components(graph, directed=False)[1]
        near = np.isin(part, part[self._near_points(vertices)])
        faces = faces[near[faces[:, 0]]]
        if len(faces) == 0:
            raise ValueError(_NO_SURFACE)
        mesh = trimesh.Trimesh(self.frame.outward(vertices), faces, process=False)
        mesh.remove_unreferenced_vertices()
        return mesh

    def contours(self, resolution: int = 256) -> list[Array]:
        """The curve as polylines (m, 2), closed ones with the first point again at the end.

        Args, Raises: as for :meth:`mesh`; here the points must be in the plane.
        """
        self._require(2, "contours", "mesh")
        found = zero_contours(self._field, self._axes(resolution))
        near = [contour for contour in found if self._near_points(contour).any()]
        if not near:
            raise ValueError(_NO_SURFACE)
        return [self.frame.outward(contour) for contour in near]

    def export(self, path: str | Path, resolution: int | None = None) -> None:
        """Write :meth:`mesh` to a file (.ply, .obj, .stl, .off, .glb), or :meth:`contours` to a
        .npz file of arrays ``contour_0``, ...

        Args:
            path: the file; its ending says how.
            resolution: of the mesh or contours, by default theirs.

        Raises:
            ValueError: the ending is of no such file, or there is no surface.
        """
        dim = self.cloud.points.shape[1]
        check_exportable(path, dim)
        cells = {} if resolution is None else {"resolution": resolution}
        if dim == 3:
            self.mesh(**cells).export(path)
        else:
            named = {f"contour_{i}": c for i, c in enumerate(self.contours(**cells))}
            np.savez(path, **named)  # type: ignore[arg-type]

    def metrics(
        self, reference: Any, *, resolution: int = 128, threshold: float | None = None
    ) -> SurfaceMetrics:
        """Distance from a reference: see :func:`sciml_snr.fields.surface_metrics`.

        Args:
            reference: a ``trimesh.Trimesh``, a file, or points (n, d).
            resolution: of the mesh or contours that are compared.
            threshold: of the F-score.

        Raises:
            FileNotFoundError, ValueError: there is no surface, or no reference.
        """
        if self.cloud.points.shape[1] == 3:
            own = self.mesh(resolution)
        else:
            own = np.concatenate(self.contours(resolution))
        return surface_metrics(own, reference, threshold=threshold)

    def memorization(self, *, probes: int = 1, progress: bool = True) -> Memorization:
        """How much of the points' error the fit has memorized, without knowing it.

        Fits twins: the same network, seed and steps with small known random signs for distances at
        the points, instead of 0 (:class:`sciml_snr.Twins`). It takes as long as the fit, once per
        probe. What estimated normals carry of the error is not seen.

        Args:
            probes: number of twins.
            progress: draw a progress bar.

        Returns:
            The memorized share (generalized degrees of freedom over the number of points) with its
            standard error, and SURE's estimate of the mean square distance, to first order, between
            fit and surface at the points, in their units squared.

        Raises:
            ValueError: sigma is 0: there is no noise to memorize.
        """
        twins, own, fits = self._twins(probes, progress)
        return twins.record(self.training.kept_step, own, fits)

    def error_bars(self, *, probes: int = 1, progress: bool = True) -> LocalBars:
        """How far is the surface from where the fit has it? Standard errors along the normal.

        By twins, which takes as long as the fit, once per probe: see
        :mod:`sciml_snr.measure.local_risk`.

        Args:
            probes: number of twins.
            progress: draw a progress bar.

        Returns:
            ``bars(points)``: (k, 1) at points (k, d) on or near the surface, such as a mesh's
            vertices, in the points' units.

        Raises:
            ValueError: sigma is 0: there is no noise.
        """
        twins, own, fits = self._twins(probes, progress, WHOLE)
        points, columns = self.cloud.points, [fit[:, None] for fit in fits]
        return LocalBars(
            points,
            np.zeros((len(points), 1)),
            own[:, None],
            np.array(float(self.sigma)),
            twins,
            columns,
            lambda places: np.asarray(self.distance(places))[:, None],
        )

    def _twins(
        self, probes: int, progress: bool, tau: float = TAU
    ) -> tuple[Twins, Array, list[Array]]:
        """Twins, the fit's distances at the points, and those of each twin."""
        if not self.sigma:
            raise ValueError("sigma is 0: there is no noise to memorize.")
        points, sigma, seed = self.cloud.points, self.sigma, self.options.seed
        twins = Twins(np.zeros(len(points)), float(sigma), probes=probes, tau=tau, seed=seed)
        fits = fits_of_twins(
            twins,
            lambda: self.choice.build(points.shape[1], 1, seed),
            lambda labels: _objective(self.cloud, sigma, self.weights, self.options, labels),
            self._to_surface,
            self.options,
            self.training,
            progress,
        )
        return twins, self._to_surface(self.network), fits

    def figure(self, resolution: int = 40) -> Figure:
        """Points, fit, a section through both, and the course of the fit.

        Args:
            resolution: of the mesh; the section has four times as many cells.

        Raises:
            ValueError: there is no surface.
        """
        from ..figures import curve_figure, surface_figure

        section = self._section(4 * resolution)
        if self.cloud.points.shape[1] == 2:
            return curve_figure(section, self.history)
        mesh = self.mesh(resolution)
        vertices, faces = np.asarray(mesh.vertices), np.asarray(mesh.faces)
        return surface_figure(self.cloud.points, vertices, faces, section, self.history)

    def _section(self, resolution: int) -> tuple[Array, Array, Array, Array]:
        """Axes and distances of the plane through the middle, across the shortest side, and the
        points within 2 % of the diagonal of it; for a plane curve, all there is."""
        points, frame = self.cloud.points, self.frame
        axes = self._axes(resolution)
        near = np.ones(len(points), dtype=bool)
        kept = [0, 1]
        if points.shape[1] == 3:
            short = int(np.ptp(points, axis=0).argmin())
            kept = [i for i in range(3) if i != short]
            axes[short] = np.zeros(1)
            near = np.abs(points[:, short] - frame.center[short]) < 0.02 * self.cloud.diagonal
        grid = np.stack([a.ravel() for a in np.meshgrid(*axes, indexing="ij")], axis=1)
        first, second = (frame.scale * axes[i] + frame.center[i] for i in kept)
        distance = frame.scale * evaluate(self.network, grid)
        return first, second, distance.reshape(len(first), len(second)), points[near][:, kept]

    def save(self, path: str | Path) -> None:
        """Write points, network and log into one ``.npz`` file, for :meth:`load`."""
        arrays = {"points": self.cloud.points}
        if self.cloud.normals is not None:
            arrays["normals"] = self.cloud.normals
        about = {
            "kind": KIND,
            **_config(self.choice, self.sigma, self.weights, self.options),
            "training": asdict(self.training),
        }
        save_fit(path, about, self.network, arrays)

    @classmethod
    def load(cls, path: str | Path, network: nn.Module | None = None) -> SDFFit:
        """Read what :meth:`save` wrote.

        Args:
            path: the file.
            network: where the fit's network was the user's own: the same one, as it was before the
                fit (weights do not matter unless :meth:`memorization` is asked for).

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is no saved fit, or its network is missing or another one.
        """
        about, fields = load_fit(path, KIND)
        with readable(Path(path)):
            about["options"]["device"] = None  # this machine may not have the one of the fit
            cloud = Cloud(fields["points"], fields.get("normals"))
            Frame.around(cloud.points)
            if cloud.points.ndim != 2:
                raise ValueError(f"points has the shape {cloud.points.shape}")
            training = Training.from_json(about["training"], path)
            choice, sigma, weights, options = _from_config(about, network, path)
        fresh = choice.build(cloud.points.shape[1], 1, options.seed)
        restore_network(fresh, fields)
        fresh.to(options.torch_device).eval()
        return cls(cloud, choice, fresh, sigma, weights, options, training)

    def _to_surface(self, network: nn.Module) -> Array:
        """First-order distances (n,) of the measured points from a network's zero level."""
        x = self.frame.inward(self.cloud.points)
        lengths = np.linalg.norm(slopes(network, x), axis=1).clip(MIN_SLOPE)
        found: Array = self.frame.scale * evaluate(network, x) / lengths
        return found

    def _inward(self, points: ArrayLike) -> Array:
        found = np.asarray(points, dtype=float)
        dim = self.cloud.points.shape[1]
        if found.ndim != 2 or found.shape[1] != dim:
            raise ValueError(f"points has the shape {found.shape}: it must be (n, {dim}).")
        return self.frame.inward(found)

    def _field(self, points: Array) -> Array:
        return evaluate(self.network, points)

    def _axes(self, resolution: int) -> list[Array]:
        box = fit_box(self.frame.inward(self.cloud.points), self.sigma / self.frame.scale)
        return grid_axes(*box, resolution)

    def _near_points(self, places: Array) -> NDArray[np.bool_]:
        """Which of these places (n, d) of the fit's coordinates are near a measured point."""
        tree = cKDTree(self.frame.inward(self.cloud.points))
        reach = MARGIN / 3 + 3 * self.sigma / self.frame.scale
        near: NDArray[np.bool_] = np.isfinite(tree.query(places, distance_upper_bound=reach)[0])
        return near

    def _require(self, dim: int, asked: str, instead: str) -> None:
        if self.cloud.points.shape[1] != dim:
            raise ValueError(
                f"{asked} is for points with {dim} coordinates: these have "
                f"{self.cloud.points.shape[1]}; ask for {instead}."
            )


_NO_SURFACE = (
    "The fit does not change its sign near the points: there is no surface. Give it more steps, "
    "or another learning rate."
)


def check_exportable(path: str | Path, dim: int) -> None:
    """Refuse a file that a mesh (or a curve, where dim is 2) cannot be written to.

    Raises:
        ValueError: the ending is not one of those.
        OSError: it cannot be written there.
    """
    endings = (".ply", ".obj", ".stl", ".off", ".glb") if dim == 3 else (".npz",)
    path = Path(path)
    if path.suffix.lower() not in endings:
        raise ValueError(f"{path} has no ending of a {_KIND_OF[dim]}: {', '.join(endings)}.")
    check_can_write(path)


_KIND_OF = {2: "curve's file", 3: "mesh's file"}


def evaluate(network: nn.Module, points: Array) -> Array:
    """Values (n,) of the network at points (n, d), tile by tile."""
    with torch.no_grad():
        parts = [network(x)[:, 0].cpu() for x in _tiles(points, network)]
    values: Array = torch.cat(parts).double().numpy()
    return values


def slopes(network: nn.Module, points: Array) -> Array:
    """Gradients (n, d) of the network at points (n, d), tile by tile."""
    parts = []
    for x in _tiles(points, network):
        x.requires_grad_()
        with torch.enable_grad():
            parts.append(torch.autograd.grad(network(x).sum(), x)[0].cpu())
    found: Array = torch.cat(parts).double().numpy()
    return found


def _tiles(points: Array, network: nn.Module) -> Iterator[Tensor]:
    device = next(network.parameters()).device
    for start in range(0, max(1, len(points)), TILE):  # one tile of none
        yield torch.as_tensor(points[start : start + TILE], dtype=torch.float32, device=device)


@takes(
    PointsOptions,
    without=("patience",),
    lr=None,
    steps=STEPS,
    floor_every=FLOOR_EVERY,
    cooldown=COOLDOWN,
    network="softplus",
)
def fit_sdf(
    points: ArrayLike | str | Path,
    normals: ArrayLike | str | None = "auto",
    *,
    weights: Weights | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
    **options: Any,
) -> SDFFit:
    """Fit a signed distance to noisy points on a surface, without memorizing their errors.

    Needs no clean surface and no stopping rule: what does not stand out of the points' error does
    not move the network. The first Ctrl-C ends the fit with a whole result; with ``out``,
    ``resume=True`` continues it, with the bits of an uninterrupted one.

    sigma that is not given is estimated (:func:`estimate_sigma_points`). A step takes all of up to
    2,048 points, and 512 of more. What a gate does not say is as in
    :data:`sciml_snr.gate.BESIDE_EXACT` where all points are in every step, and else as in
    :data:`BATCH_GATES`: among others open in the first 500 steps (``warmup_steps``), so that in a
    shorter fit nothing is gated.

    Args:
        points: (n, 3), or (n, 2) for a curve in the plane, or a file: :func:`read_cloud`.
        normals: (n, d), pointing outward, or ``"auto"``: the file's, or else estimated
            (:func:`estimate_normals`; faces tell which side is outside). ``None``: no normal term,
            which does for shapes like a sphere and mostly not for others.
        {options}
        weights: of the terms of the loss.
        out: folder for ``config.json``, ``metrics.csv``, ``checkpoint.pt``, ``summary.json``,
            ``figure.png`` and ``fit.npz`` (:meth:`SDFFit.load`).
        resume: continue the fit in ``out`` with its own settings. Only ``steps`` may be others.
        progress: draw a progress bar.

    Raises:
        ValueError: points or an option cannot be used; the message says why.
        FileNotFoundError: there is no such file, or nothing to resume.
        FileExistsError: ``out`` holds a run, and ``resume`` is False.
        OSError: ``out`` cannot be written to, or another process runs there.

    Example:
        >>> fit = fit_sdf("scan.ply")
        >>> fit.mesh(resolution=256).export("clean.ply")
    """
    if not resume:
        PointsOptions(**options)  # refuses what is out of range
    folder = open_folder(out, KIND, resume)
    given_network = options.pop("network", None)
    network_options, sigma = options.pop("network_options", None), options.pop("sigma", None)
    seed = options.get("seed", 0)
    cloud = read_cloud(points, _given(normals), sample=options.pop("sample", None), seed=seed)
    state = None
    with contextlib.ExitStack() as stack:
        if resume:
            assert folder is not None
            stack.enter_context(folder.locked())
            config, state = read_checkpoint(folder)
            where = folder.path / CHECKPOINT
            check_keys(config, _CONFIG, where)
            if config["points"] != _fingerprint(cloud):
                raise ValueError(
                    f"The run in {out} is of other points, or normals, or of another sample or "
                    "seed."
                )
            steps = options.pop("steps", None)
            asked = {
                **options,
                "sigma": sigma,
                "weights": None if weights is None else asdict(weights),
                "normals": False if normals is None else None,
            }
            choice, told, weights, training_options = _from_config(config, given_network, where)
            own = {**config, "sigma": float(told)}
            check_asked(folder.path, own, given_network, network_options, asked)
            check_steps(folder, state, steps)
            if steps is not None:
                training_options = replace(training_options, steps=steps)
            with_normals = config["normals"]
        else:
            choice = _choose(given_network or "softplus", network_options)
            told = estimate_sigma_points(cloud.points) if sigma is None else _checked_sigma(sigma)
            weights = weights or Weights()
            if not isinstance(weights, Weights):
                raise ValueError(f"weights must be a sciml_snr.fields.Weights, got {weights!r}.")
            with_normals = normals is not None and weights.normal > 0
            default: dict[str, Any] = {
                "lr": LEARNING_RATES.get(choice.name, 1e-4),
                "steps": STEPS,
                "floor_every": FLOOR_EVERY,
                "cooldown": COOLDOWN,
            }
            name, batch = options.get("optimizer", "snr_soap"), options.get("batch_size")
            by_points = default_training(cloud.points.shape, name, batch)
            by_points["gate"] = completed_gate(by_points["gate"], options.pop("gate", None))
            training_options = FitOptions(**default | options | by_points)
        model = choice.build(cloud.points.shape[1], 1, training_options.seed)
        used = replace(cloud, normals=_normals(cloud) if with_normals else None)
        config = {
            **_config(choice, told, weights, training_options),
            "points": _fingerprint(cloud),
            "normals": with_normals,
        }
        objective = _objective(used, told, weights, training_options)
        if folder is not None and not resume:
            stack.enter_context(folder.locked())
            folder.begin(config)
        training = fitted(
            model,
            objective,
            training_options,
            folder=folder,
            config=config,
            state=state,
            progress=progress,
        )
        fit = SDFFit(used, choice, model, told, weights, training_options, training)
        if folder is not None:
            folder.write_json(CONFIG, folder.described(config))
            folder.write_by(fit.save, "fit.npz")
            folder.write_json(SUMMARY, summary(fit))
            try:
                figure = fit.figure()
            except ValueError:  # no surface (yet): nothing to draw, and nothing lost
                return fit
            folder.write_figure("figure.png", figure)
    return fit


def summary(fit: SDFFit) -> dict[str, Any]:
    """How a fit ended."""
    return summary_of(
        fit.options,
        fit.training,
        fit.network,
        points=len(fit.cloud.points),
        merged_points=fit.cloud.merged,
        normals=fit.cloud.normals is not None,
        sigma=float(fit.sigma),
        sigma_method=getattr(fit.sigma, "method", "given"),
    )


def _given(normals: ArrayLike | str | None) -> ArrayLike | None:
    if isinstance(normals, str):
        if normals != "auto":
            raise ValueError(f"normals must be an array, 'auto' or None, got {normals!r}.")
        return None
    return normals


def _normals(cloud: Cloud) -> Array:
    """The cloud's, or estimated where it has none or only those of faces between the points."""
    if cloud.normals is not None and not cloud.only_orientation:
        return cloud.normals
    return estimate_normals(cloud.points, like=cloud.normals)


def _checked_sigma(sigma: float) -> float:
    if np.ndim(sigma) or isinstance(sigma, str):
        raise ValueError(f"sigma must be one number for all points, got {sigma!r}.")
    if not 0 <= sigma < math.inf:
        raise ValueError(f"sigma must be finite and >= 0, got {sigma}.")
    return float(sigma)


def _choose(network: nn.Module | str, options: dict[str, Any] | None) -> NetworkChoice:
    if isinstance(network, nn.Module):
        if options:
            raise ValueError("network_options are for the built-in networks.")
        return NetworkChoice("own", {}, copy.deepcopy(network))
    return NetworkChoice(network, {**SIZE, **(options or {})})


def _objective(
    cloud: Cloud,
    sigma: float,
    weights: Weights,
    options: FitOptions,
    labels: Array | None = None,
) -> SurfaceObjective:
    """In the fit's coordinates; ``labels`` in the cloud's units, by default 0."""
    frame = Frame.around(cloud.points)
    return SurfaceObjective(
        frame.inward(cloud.points),
        cloud.normals,
        np.zeros(len(cloud.points)) if labels is None else labels / frame.scale,
        float(sigma) / frame.scale,
        weights,
        options.batch_size,
        options.torch_device,
    )


def _fingerprint(cloud: Cloud) -> str:
    """Equal for equal points with equal normals of their own."""
    found = hashlib.sha256(np.ascontiguousarray(cloud.points).tobytes())
    if cloud.normals is not None:
        found.update(np.ascontiguousarray(cloud.normals).tobytes())
    return found.hexdigest()[:16]


_CONFIG = ("network", "network_options", "sigma", "weights", "options", "points", "normals")


def _config(
    choice: NetworkChoice, sigma: float, weights: Weights, options: FitOptions
) -> dict[str, Any]:
    return {
        "network": choice.name,
        "network_options": choice.options,
        "sigma": sigma_to_json(sigma),
        "weights": asdict(weights),
        "options": asdict(options),
    }


def _from_config(
    config: dict[str, Any], network: nn.Module | str | None, where: str | Path
) -> tuple[NetworkChoice, float, Weights, FitOptions]:
    with readable(Path(where)):
        sigma, weights = sigma_from_json(config["sigma"]), Weights(**config["weights"])
    return (
        saved_choice(config, network, where),
        sigma,
        weights,
        FitOptions.from_json(config["options"], where),
    )
