"""Shapes: ``fit-sdf``."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from ..runs.folder import RunFolder
from ..runs.options import PointsOptions
from ._app import app, console, noise_text, options_of, print_fits, result_paths, run_folders
from ._options import parse_numbers, with_options


@app.command("fit-sdf")
@with_options(PointsOptions, without=("patience",))
def fit_sdf(
    points: Annotated[
        Path,
        typer.Argument(
            help="Noisy points on a surface: PLY, OBJ, STL, OFF, XYZ, TXT, CSV, ASC, PTS, PCD, "
            "LAS, NPZ, NPY."
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Where to put the mesh: .ply, .obj, .stl, ...")
    ],
    given: dict[str, Any],
    normals: Annotated[
        bool,
        typer.Option(help="Use the file's normals, or else estimate them; or do without."),
    ] = True,
    estimate_normals: Annotated[
        bool,
        typer.Option("--estimate-normals", help="Estimate normals also where the file has some."),
    ] = False,
    resolution: Annotated[
        int, typer.Option(help="Cells of the result along the longest side.")
    ] = 128,
    viewpoint: Annotated[
        list[str] | None,
        typer.Option(help="Where the points were seen from: x,y,z."),
    ] = None,
    trim: Annotated[
        str | None,
        typer.Option(
            help="Leave out what is farther than this from every point; auto: by their spacing."
        ),
    ] = None,
    shift: Annotated[
        list[str] | None,
        typer.Option(help="Take this off the mesh's coordinates: x,y,z [default: 0]."),
    ] = None,
    reference: Annotated[
        Path | None, typer.Option(help="The true surface, if known: distances from it are shown.")
    ] = None,
    compare: Annotated[
        str | None,
        typer.Option(help="A second optimizer for comparison: adam. Result beside the first."),
    ] = None,
    out_run: Annotated[
        Path | None, typer.Option(help="Run folder [default: runs/POINTS-OPTIMIZER-seedSEED].")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in the run folder, as it was set.")
    ] = False,
) -> None:
    """Make a clean surface of a noisy scan; Ctrl-C ends it early and leaves a usable result."""
    from ..fields import read_cloud, surface
    from ..fields.files.meshes import check_exportable, check_shift
    from ..fields.isosurface import check_resolution, read_surface
    from ..fields.trim import check_trim

    folders = run_folders(points.stem, "sdf", given, compare, out_run, resume)
    optimizer = next(iter(folders))
    if estimate_normals and not normals:
        raise ValueError("Give --estimate-normals or --no-normals, not both.")
    seen_from = parse_numbers("--viewpoint", viewpoint or ())
    if seen_from:
        if "orient" in given:
            raise ValueError("Give --orient or --viewpoint, not both.")
        given = {**given, "orient": seen_from}
    kind = "estimate" if estimate_normals else "auto" if normals else None
    reading = {name: given[name] for name in ("sample", "seed", "drop_bad") if name in given}
    with warnings.catch_warnings():  # the fit reads it again, and says it again
        warnings.simplefilter("ignore")
        cloud = read_cloud(points, kind if kind == "estimate" else None, **reading)
    dim = cloud.points.shape[1]
    if seen_from and len(seen_from) != dim:
        raise ValueError(f"--viewpoint needs {dim} numbers, got {len(seen_from)}.")
    paths = result_paths(output, folders, points, reference)
    for path in paths.values():
        check_exportable(path, dim=dim)
    check_resolution(resolution)
    by, less = check_trim(trim), check_shift(parse_numbers("--shift", shift or ()) or None, dim)
    truth = None if reference is None else read_surface(reference)
    if truth is not None and dim != getattr(truth, "shape", (0, 3))[1]:  # a mesh has none
        raise ValueError(f"{points} has {dim} dimensions, {reference} another number.")
    fits = {}
    for name, folder in folders.items():
        goes_on = resume and (name == optimizer or RunFolder(folder, "sdf").holds_run)
        fit = surface.fit_sdf(
            points,
            kind,
            **options_of(name, optimizer, given),
            out=folder,
            resume=goes_on,
        )
        fits[name] = fit
        if name == optimizer:
            if fit.cloud.dropped:
                console.print(f"{fit.cloud.dropped} points are no numbers: left out.")
            if fit.cloud.merged:
                console.print(f"{fit.cloud.merged} points repeat another one: merged.")
            console.print(noise_text(fit.sigma))
        fit.export(paths[name], resolution, trim=by, shift=less)
        console.print(f"{name}: {paths[name]}, figure {folder / 'figure.png'}", soft_wrap=True)
        if truth is not None:
            found = fit.metrics(truth, resolution=resolution, trim=by)
            console.print(
                f"{name}: Chamfer distance {found.chamfer:.3g}, F-score {found.f_score:.3f} "
                f"at {found.threshold:.3g}, normal consistency {found.normal_consistency:.3f}",
                soft_wrap=True,
            )
        if fit.training.interrupted:
            console.print("Interrupted. To go on, repeat with --resume.")
            break
    print_fits(fits)
