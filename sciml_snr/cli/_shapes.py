"""Shapes: ``fit-sdf``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ._app import app, console, noise_text, parse_options, plain_errors, print_fits, run_folders


@app.command("fit-sdf")
def fit_sdf(
    points: Annotated[
        Path,
        typer.Argument(help="Noisy points on a surface: PLY, OBJ, STL, OFF, XYZ, CSV, NPZ, NPY."),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Where to put the mesh: .ply, .obj, .stl, ...")
    ],
    sigma: Annotated[
        float | None,
        typer.Option(
            help="Standard deviation of the points' error along the normal, in their units "
            "[default: estimated]."
        ),
    ] = None,
    sample: Annotated[
        int | None,
        typer.Option(help="Points to take from the faces of a mesh, instead of its vertices."),
    ] = None,
    normals: Annotated[
        bool,
        typer.Option(help="Use the file's normals, or else estimate them; or do without."),
    ] = True,
    resolution: Annotated[
        int, typer.Option(help="Cells of the result along the longest side.")
    ] = 128,
    reference: Annotated[
        Path | None, typer.Option(help="The true surface, if known: distances from it are shown.")
    ] = None,
    optimizer: Annotated[str, typer.Option(help="snr_soap, snr_adam or adam.")] = "snr_soap",
    compare: Annotated[
        str | None,
        typer.Option(help="A second optimizer for comparison: adam. Result beside the first."),
    ] = None,
    network: Annotated[str, typer.Option(help="softplus, siren, fourier or wire.")] = "softplus",
    network_option: Annotated[
        list[str] | None, typer.Option(help="E.g. hidden_features=128; repeatable.")
    ] = None,
    lr: Annotated[
        float | None, typer.Option(help="Learning rate [default: the network's].")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Budget [default: 2000].")] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Points in a step [default: all of up to 2048, 512 of more].")
    ] = None,
    cooldown: Annotated[
        float | None,
        typer.Option(
            help="Share of the steps, the last, in which the learning rate falls to 0 "
            "[default: 0.3]."
        ),
    ] = None,
    gate_option: Annotated[
        list[str] | None,
        typer.Option(help="Field of sciml_snr.Gate, e.g. form=hard or z=2.5; repeatable."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of network and training.")] = 0,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ... [default: a GPU].")] = None,
    out_run: Annotated[
        Path | None, typer.Option(help="Run folder [default: runs/POINTS-OPTIMIZER-seedSEED].")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in the run folder, as it was set.")
    ] = False,
) -> None:
    """Make a clean surface of a noisy scan; Ctrl-C ends it early and leaves a usable result."""
    from ..inr import read_cloud, sdf
    from ..inr.surfaces import check_resolution, read_surface

    with plain_errors():
        dim = read_cloud(points, sample=sample, seed=seed).points.shape[1]
        sdf.check_exportable(output, dim=dim)
        check_resolution(resolution)
        truth = None if reference is None else read_surface(reference)
        if truth is not None and dim != getattr(truth, "shape", (0, 3))[1]:  # a mesh has none
            raise ValueError(f"{points} has {dim} dimensions, {reference} another number.")
        folders = run_folders(points.stem, optimizer, compare, seed, out_run, resume)
        fits = {}
        for name, folder in folders.items():
            fit = sdf.fit_sdf(
                points,
                "auto" if normals else None,
                sigma=sigma,
                sample=sample,
                network=network,
                network_options=parse_options(network_option),
                optimizer=name,
                lr=lr,
                steps=steps,
                batch_size=batch_size,
                cooldown=sdf.COOLDOWN if cooldown is None else cooldown,
                gate=parse_options(gate_option) if name != "adam" else None,
                seed=seed,
                device=device,
                out=folder,
                resume=resume and (name == optimizer or (folder / "checkpoint.pt").exists()),
            )
            fits[name] = fit
            if name == optimizer:
                if fit.cloud.merged:
                    console.print(f"{fit.cloud.merged} points repeat another one: merged.")
                console.print(noise_text(fit.sigma))
            path = output if name == optimizer else output.with_stem(f"{output.stem}-{name}")
            fit.export(path, resolution)
            console.print(f"{name}: {path}, figure {folder / 'figure.png'}", soft_wrap=True)
            if truth is not None:
                found = fit.metrics(truth, resolution=resolution)
                console.print(
                    f"{name}: Chamfer distance {found.chamfer:.3g}, F-score {found.f_score:.3f} "
                    f"at {found.threshold:.3g}, normal consistency {found.normal_consistency:.3f}",
                    soft_wrap=True,
                )
            if fit.training.interrupted:
                console.print("Interrupted. To go on, repeat with --resume.")
                break
    print_fits(fits)
