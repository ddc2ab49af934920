"""Images: ``fit-image``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..runs.folder import RunFolder
from ..runs.options import ImageOptions
from ._app import app, console, noise_text, options_of, print_fits, result_paths, run_folders
from ._options import with_options


@app.command("fit-image")
@with_options(ImageOptions)
def fit_image(
    image: Annotated[
        Path, typer.Argument(help="A noisy image or volume: PNG, JPEG, TIFF, ... or .npy.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Where to put the clean one: .png, .tif, .npy.")
    ],
    given: dict[str, Any],
    scale: Annotated[
        float, typer.Option(help="Pixels of the result per pixel, along an axis.")
    ] = 1,
    compare: Annotated[
        str | None,
        typer.Option(help="A second optimizer for comparison: adam. Result beside the first."),
    ] = None,
    out_run: Annotated[
        Path | None, typer.Option(help="Run folder [default: runs/IMAGE-OPTIMIZER-seedSEED].")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in the run folder, as it was set.")
    ] = False,
) -> None:
    """Remove the noise from an image; Ctrl-C ends it early and leaves a usable result."""
    from ..fields import image as images
    from ..fields.files.pictures import check_writable, read_image, write_image
    from ..fields.picture import check_scale, layout

    folders = run_folders(image.stem, "image", given, compare, out_run, resume)
    optimizer = next(iter(folders))
    source = read_image(image)
    axis, alpha = layout(source, given.get("channel_axis", "auto"))
    paths = result_paths(output, folders, image, given.get("mask"), given.get("sigma"))
    for path in paths.values():
        check_writable(path, source.pixels, axis, alpha)
    check_scale(scale, source.pixels.shape)
    fits = {}
    for name, folder in folders.items():
        goes_on = resume and (name == optimizer or RunFolder(folder, "image").holds_run)
        options = options_of(name, optimizer, given)
        fits[name] = images.fit_image(source, **options, out=folder, resume=goes_on)
        if name == optimizer:
            console.print("\n".join(map(noise_text, fits[name].sigma)))
        write_image(paths[name], fits[name].render(scale=scale), axis, alpha)
        console.print(f"{name}: {paths[name]}, figure {folder / 'figure.png'}", soft_wrap=True)
        if fits[name].training.interrupted:
            console.print("Interrupted. To go on, repeat with --resume.")
            break
    print_fits(fits)
