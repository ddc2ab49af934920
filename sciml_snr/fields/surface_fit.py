"""A shape as a function: what a fit to its points is good for."""

from __future__ import annotations

import warnings
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import coo_array, csgraph
from scipy.spatial import cKDTree
from torch import nn

from ..measure.local_risk import WHOLE, LocalBars
from ..measure.twins import TAU, Twins
from ..runs.folder import readable
from ..runs.options import FitOptions
from .archive import (
    NetworkChoice,
    load_fit,
    save_fit,
    saved_choice,
    sigma_from_json,
    sigma_to_json,
)
from .files.meshes import SINGLE, check_exportable, check_shift, tell_coarse, write_mesh
from .fit import Training, fits_of_twins, summary_of
from .function_fit import FunctionFit, saved_network
from .isosurface import SurfaceMetrics, grid_axes, surface_metrics, zero_contours, zero_mesh
from .points import Cloud, Frame
from .surface_objective import (
    MARGIN,
    MIN_SLOPE,
    Array,
    Weights,
    evaluate,
    fit_box,
    objective_of,
    slopes,
)
from .trim import check_trim, covered, runs

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INVENTED = 0.02
"""Of more than this share of a surface without points it is said that it is invented."""

KIND = "sdf"
"""What tells saved fits of shapes from others."""


class SDFFit(FunctionFit):
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
        super().__init__(choice, network, options, training)
        self.cloud = cloud
        self.frame = Frame.around(cloud.points)
        self.sigma = sigma
        self.weights = weights

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

    def mesh(self, resolution: int = 128, *, trim: float | str | None = None) -> Any:
        """The surface as a ``trimesh.Trimesh``, in the coordinates and units of the points.

        Closed where the fit is closed within the box of the points and a border around it; parts
        that no point is near to, artefacts of empty space, are left out. Where the surface goes on
        without points it is invented: that is said, and ``trim`` leaves it out. Memory grows with
        the mesh, not with the volume.

        Args:
            resolution: cells along the longest side of the box.
            trim: leave out what is farther than this from every point, in their units; "auto": by
                their own spacing, and what is beyond their edge
                (:func:`sciml_snr.fields.trim.covered`).

        Raises:
            ValueError: the points are in the plane; resolution or trim are out of range; there is
                no surface (a fit that has failed), or none is left.
        """
        mesh = self._mesh(resolution)
        by = check_trim(trim)
        kept = self._covered(np.asarray(mesh.vertices), by or "auto")[mesh.faces].all(axis=1)
        if by is None:
            areas = mesh.area_faces
            self._tell_invented(float(areas[~kept].sum() / areas.sum()))
            return mesh
        if not kept.any():
            raise ValueError(f"trim = {trim} leaves nothing of the mesh.")
        mesh.update_faces(kept)
        mesh.remove_unreferenced_vertices()
        return mesh

    def _mesh(self, resolution: int) -> Any:
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

    def contours(self, resolution: int = 256, *, trim: float | str | None = None) -> list[Array]:
        """The curve as polylines (m, 2), closed ones with the first point again at the end.

        Args, Raises: as for :meth:`mesh`; here the points must be in the plane.
        """
        self._require(2, "contours", "mesh")
        by = check_trim(trim)
        found = zero_contours(self._field, self._axes(resolution))
        near = [contour for contour in found if self._near_points(contour).any()]
        if not near:
            raise ValueError(_NO_SURFACE)
        curves = [self.frame.outward(contour) for contour in near]
        kept = [self._covered(curve, by or "auto") for curve in curves]
        if by is None:
            self._tell_invented(1 - float(np.concatenate(kept).mean()))
            return curves
        both = zip(curves, kept, strict=True)
        pieces = [piece for curve, good in both for piece in runs(curve, good)]
        if not pieces:
            raise ValueError(f"trim = {trim} leaves nothing of the curve.")
        return pieces

    def _covered(self, places: Array, trim: float | str) -> NDArray[np.bool_]:
        """Which places of the surface, in the points' units, are where the points are."""
        normals = self.gradient(places)
        normals /= np.linalg.norm(normals, axis=1, keepdims=True).clip(1e-12)
        return covered(places, normals, self.cloud.points, float(self.sigma), trim)

    def _tell_invented(self, share: float) -> None:
        if share > INVENTED:
            warnings.warn(
                f"{100 * share:.0f} % of the surface is where there are no points: it is invented. "
                "trim='auto' (--trim auto) leaves it out.",
                stacklevel=3,
            )

    def export(
        self,
        path: str | Path,
        resolution: int | None = None,
        *,
        trim: float | str | None = None,
        shift: ArrayLike | None = None,
    ) -> None:
        """Write :meth:`mesh` to a file (.ply in double precision, .obj, .off; .stl and .glb in
        single precision), or :meth:`contours` to a .npz file of arrays ``contour_0``, ...

        Args:
            path: the file; its ending says how.
            resolution: of the mesh or contours, by default theirs.
            trim: as for :meth:`mesh`.
            shift: (d,) numbers that are taken from the coordinates. Where they are large, as on a
                map, single precision is too coarse without: that is said.

        Raises:
            ValueError: the ending is of no such file, there is no surface, or trim or shift cannot
                be used.
        """
        dim = self.cloud.points.shape[1]
        check_exportable(path, dim)
        less = check_shift(shift, dim)
        cells: dict[str, Any] = {"trim": trim}
        if resolution is not None:
            cells["resolution"] = resolution
        if dim == 2:
            named = {f"contour_{i}": c - less for i, c in enumerate(self.contours(**cells))}
            np.savez(path, **named)  # type: ignore[arg-type]
            return
        mesh = self.mesh(**cells)
        mesh.vertices = np.asarray(mesh.vertices) - less
        if Path(path).suffix.lower() in SINGLE:
            fine = float(self.sigma) / 10 or 1e-6 * self.cloud.diagonal
            tell_coarse(Path(path), np.asarray(mesh.vertices), less, fine)
        write_mesh(path, mesh)

    def metrics(
        self,
        reference: Any,
        *,
        resolution: int = 128,
        threshold: float | None = None,
        trim: float | str | None = None,
    ) -> SurfaceMetrics:
        """Distance from a reference: see :func:`sciml_snr.fields.surface_metrics`.

        Args:
            reference: a ``trimesh.Trimesh``, a file, or points (n, d).
            resolution: of the mesh or contours that are compared.
            threshold: of the F-score.
            trim: as for :meth:`mesh`.

        Raises:
            FileNotFoundError, ValueError: there is no surface, or no reference.
        """
        if self.cloud.points.shape[1] == 3:
            own = self.mesh(resolution, trim=trim)
        else:
            own = np.concatenate(self.contours(resolution, trim=trim))
        return surface_metrics(own, reference, threshold=threshold)

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
            lambda labels: objective_of(self.cloud, sigma, self.weights, self.options, labels),
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
        mesh = self._mesh(resolution)
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
            **config_of(self.choice, self.sigma, self.weights, self.options),
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
            choice, sigma, weights, options = from_config(about, network, path)
        fresh = saved_network(choice, cloud.points.shape[1], 1, options, fields)
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


def config_of(
    choice: NetworkChoice, sigma: float, weights: Weights, options: FitOptions
) -> dict[str, Any]:
    """What a run and a saved fit say of themselves, for JSON."""
    return {
        "network": choice.name,
        "network_options": choice.options,
        "sigma": sigma_to_json(sigma),
        "weights": asdict(weights),
        "options": asdict(options),
    }


def from_config(
    config: dict[str, Any], network: nn.Module | str | None, where: str | Path
) -> tuple[NetworkChoice, float, Weights, FitOptions]:
    """Read what :func:`config_of` has written.

    Raises:
        ValueError: it says something else; names ``where``.
    """
    with readable(Path(where)):
        sigma, weights = sigma_from_json(config["sigma"]), Weights(**config["weights"])
    return (
        saved_choice(config, network, where),
        sigma,
        weights,
        FitOptions.from_json(config["options"], where),
    )


def summary(fit: SDFFit) -> dict[str, Any]:
    """How a fit ended."""
    return summary_of(
        fit.options,
        fit.training,
        fit.network,
        points=len(fit.cloud.points),
        merged_points=fit.cloud.merged,
        dropped_points=fit.cloud.dropped,
        normals=fit.cloud.normals is not None,
        sigma=float(fit.sigma),
        sigma_method=getattr(fit.sigma, "method", "given"),
    )
