"""Images: ``fit-image``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from ._app import app, console, noise_text, parse_options, plain_errors, print_fits, run_folders


@app.command("fit-image")
def fit_image(
    image: Annotated[
        Path, typer.Argument(help="A noisy image or volume: PNG, JPEG, TIFF, ... or .npy.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Where to put the clean one: .png, .tif, .npy.")
    ],
    sigma: Annotated[
        list[float] | None,
        typer.Option(
            help="Standard deviation of the noise in units of the file (8 bit: of 255), repeated "
            "for each channel if they differ [default: estimated]."
        ),
    ] = None,
    mask: Annotated[
        Path | None, typer.Option(help="An image that is not black where pixels are missing.")
    ] = None,
    channel_axis: Annotated[
        int | None,
        typer.Option(
            help="Which axis of the file counts channels, e.g. -1 or 0 [default: the last one, if "
            "it is of four at most]."
        ),
    ] = None,
    scale: Annotated[
        float, typer.Option(help="Pixels of the result per pixel, along an axis.")
    ] = 1,
    optimizer: Annotated[str, typer.Option(help="snr_soap, snr_adam or adam.")] = "snr_soap",
    compare: Annotated[
        str | None,
        typer.Option(help="A second optimizer for comparison: adam. Result beside the first."),
    ] = None,
    network: Annotated[
        str | None, typer.Option(help="siren (the default), fourier, wire or softplus.")
    ] = None,
    network_option: Annotated[
        list[str] | None,
        typer.Option(help="E.g. hidden_features=256 or first_omega_0=40; repeatable."),
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option(
            help="Learning rate [default: 1e-3 for fourier and wire, 3e-4 for others; snr_soap on "
            "more than 8192 pixels: twice that; adam: a third]."
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(help="Budget [default: 6 times the root of the pixels, 300 at least]."),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Pixels in a step [default: all, of larger images 4096].")
    ] = None,
    cooldown: Annotated[
        float,
        typer.Option(help="Share of the steps, the last, in which the learning rate falls to 0."),
    ] = 0,
    gate_option: Annotated[
        list[str] | None,
        typer.Option(help="Field of sciml_snr.Gate, e.g. form=hard or z=2.5; repeatable."),
    ] = None,
    patience: Annotated[
        int | None,
        typer.Option(
            help="Stop when the estimated risk has not fallen for so many steps, and go back to "
            "its lowest; for snr_adam and adam."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of network and training.")] = 0,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ... [default: a GPU].")] = None,
    out_run: Annotated[
        Path | None, typer.Option(help="Run folder [default: runs/IMAGE-OPTIMIZER-seedSEED].")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in the run folder, as it was set.")
    ] = False,
) -> None:
    """Remove the noise from an image; Ctrl-C ends it early and leaves a usable result."""
    from ..inr import images, picture

    with plain_errors():
        pixels = picture.read_image(image)
        picture.check_writable(output, pixels)
        if not 0 < scale < math.inf:
            raise ValueError(f"scale must be a positive number, got {scale}.")
        folders = run_folders(image.stem, optimizer, compare, seed, out_run, resume, patience)
        fits = {}
        for name, folder in folders.items():
            fits[name] = images.fit_image(
                pixels,
                sigma=sigma or None,
                mask=mask,
                channel_axis="auto" if channel_axis is None else channel_axis,
                network=network,
                network_options=parse_options(network_option),
                optimizer=name,
                lr=lr,
                steps=steps,
                batch_size=batch_size,
                cooldown=cooldown,
                gate=parse_options(gate_option) if name != "adam" else None,
                seed=seed,
                device=device,
                patience=patience,
                out=folder,
                resume=resume and (name == optimizer or (folder / "checkpoint.pt").exists()),
            )
            if name == optimizer:
                console.print("\n".join(map(noise_text, fits[name].sigma)))
            path = output if name == optimizer else output.with_stem(f"{output.stem}-{name}")
            picture.write_image(path, fits[name].render(scale=scale))
            console.print(f"{name}: {path}, figure {folder / 'figure.png'}", soft_wrap=True)
            if fits[name].training.interrupted:
                console.print("Interrupted. To go on, repeat with --resume.")
                break
    print_fits(fits)
