"""Image files as other programs write them: what they say of axes, gaps and colors is heard."""

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from typer.testing import CliRunner

from sciml_snr.cli import app
from sciml_snr.fields import ImageFit, fit_image
from sciml_snr.fields.files.pictures import read_image, write_image

TINY = {"hidden_features": 8, "hidden_layers": 1}


def fit(image, **options) -> ImageFit:
    return fit_image(image, network_options=TINY, steps=1, progress=False, **options)


def scene(*shape: int, seed: int = 0) -> np.ndarray:
    """Bytes: a slope and noise of 5, so that sigma can be estimated."""
    rng = np.random.default_rng(seed)
    found = 128 + np.linspace(-60, 60, shape[-1]) + 5 * rng.normal(size=shape)
    return np.clip(np.rint(found), 0, 255).astype(np.uint8)


GREY, COLORS = scene(40, 30), np.stack([scene(40, 30, seed=s) for s in range(3)], axis=-1)


# TIFF ----------------------------------------------------------------------------------------

LZW = {
    "bytes": GREY,
    "colors": COLORS,
    "16 bits": GREY.astype(np.uint16) * 250,
    "floats": GREY.astype(np.float32) / 7,
    "integers": GREY.astype(np.int32) - 100,
    "black and white": GREY > 128,
}


@pytest.mark.parametrize("name", LZW)
@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits"])
def test_compressed_tiff(tmp_path: Path, name: str, compression: str) -> None:
    """tifffile alone decodes the second and the third."""
    Image.fromarray(LZW[name]).save(tmp_path / "a.tif", compression=compression)
    found = fit(tmp_path / "a.tif", sigma=0.1).picture.pixels
    assert found.dtype == LZW[name].dtype
    np.testing.assert_array_equal(found, LZW[name])


@pytest.mark.parametrize("image", [GREY, COLORS])
def test_jpeg_in_tiff(tmp_path: Path, image: np.ndarray) -> None:
    Image.fromarray(image).save(tmp_path / "a.tif", compression="jpeg", quality=95)
    found = fit(tmp_path / "a.tif").picture.pixels
    assert found.shape == image.shape
    assert np.abs(found.astype(int) - image).mean() < 6


@pytest.mark.parametrize("compression", ["group3", "group4"])
def test_fax_in_tiff(tmp_path: Path, compression: str) -> None:
    Image.fromarray(GREY > 128).save(tmp_path / "a.tif", compression=compression)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif").pixels, GREY > 128)


def test_compressed_pages_of_a_tiff(tmp_path: Path) -> None:
    pages = scene(3, 40, 30).astype(np.uint16)
    first, *others = map(Image.fromarray, pages)
    first.save(tmp_path / "a.tif", compression="tiff_lzw", save_all=True, append_images=others)
    picture = fit(tmp_path / "a.tif", sigma=5).picture
    assert picture.shape == (3, 40, 30)
    np.testing.assert_array_equal(picture.pixels, pages)


def packed(path: Path, image: np.ndarray) -> None:
    """A TIFF file by LZW of pixels that Pillow has no image of: its rows as bytes, packed by
    Pillow, and then said to be what they are."""
    samples = image.shape[2] if image.ndim == 3 else 1
    rows = np.ascontiguousarray(image).view(np.uint8).reshape(len(image), -1)
    kind = {"u": 1, "i": 2, "f": 3}[image.dtype.kind]
    Image.fromarray(rows).save(path, compression="tiff_lzw", tiffinfo={277: 1, 338: 0, 339: kind})
    tags = {256: image.shape[1], 277: samples, 258: samples * (8 * image.dtype.itemsize,)}
    tags |= {339: samples * (kind,), 338: max(1, samples - 1) * (0,)}
    for code, value in tags.items():
        with tifffile.TiffFile(path, mode="r+") as file:
            file.pages[0].tags[code].overwrite(value)


@pytest.mark.parametrize("kind", ["<i2", "<u4", "<f8", "i1"])
@pytest.mark.parametrize("bands", [1, 3, 7])
def test_lzw_of_pixels_that_pillow_has_no_image_of(tmp_path: Path, kind: str, bands: int) -> None:
    """Heights of 16 bits with a sign, colors of more than 8 bits, seven bands: as bytes."""
    image = (np.stack([scene(40, 30, seed=s) for s in range(bands)], axis=-1) // 2).astype(kind)
    image = image[..., 0] if bands == 1 else image
    packed(tmp_path / "a.tif", image)
    picture = fit(tmp_path / "a.tif", sigma=3).picture
    assert picture.pixels.dtype == image.dtype and picture.values.shape[1] == bands
    np.testing.assert_array_equal(picture.pixels, image)


def test_what_cannot_be_decoded_names_the_cure(tmp_path: Path) -> None:
    packed(tmp_path / "a.tif", GREY.astype("<i2"))
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+") as file:
        file.pages[0].tags[259].overwrite(34887)  # LERC
    with pytest.raises(ValueError, match=r"by LERC.*sciml-snr\[files\].*without compression"):
        fit(tmp_path / "a.tif")


NAMED = {"CYX": (2, 40, 30), "ZCYX": (3, 2, 40, 30), "TCYX": (3, 4, 40, 30), "CZYX": (2, 3, 40, 30)}


@pytest.mark.parametrize(
    ("axes", "kind"),
    [*((axes, "ome") for axes in NAMED), ("CYX", "imagej"), ("ZCYX", "imagej"), ("TCYX", "imagej")],
)
def test_channels_that_a_tiff_names(tmp_path: Path, axes: str, kind: str) -> None:
    """One sigma for each; none of two or four is alpha; slices are slices."""
    data, at = scene(*NAMED[axes]), axes.index("C")
    about = dict(photometric="minisblack", metadata={"axes": axes}, **{kind: True})
    tifffile.imwrite(tmp_path / "a.tif", data, **about)
    found = fit(tmp_path / "a.tif")
    channels = data.shape[at]
    assert len(found.sigma) == channels and not found.picture.alpha
    assert all(2.5 < s < 10 for s in found.sigma)
    assert found.picture.shape == tuple(np.delete(data.shape, at))
    np.testing.assert_array_equal(np.moveaxis(found.picture.pixels, -1, at), data)
    assert found.image.shape == data.shape


@pytest.mark.parametrize("planes", ["contig", "separate"])
@pytest.mark.parametrize("bands", [2, 4, 7])
def test_bands_are_channels(tmp_path: Path, planes: str, bands: int) -> None:
    """Samples of a pixel, beside each other or plane by plane; none is said to be alpha."""
    data = np.stack([scene(40, 30, seed=s) for s in range(bands)], axis=-1)
    stored = data if planes == "contig" else np.moveaxis(data, -1, 0)
    tifffile.imwrite(
        tmp_path / "a.tif",
        stored,
        planarconfig=planes,
        photometric="minisblack",
        extrasamples=["unspecified"] * (bands - 1),
        metadata=None,
    )
    picture = fit(tmp_path / "a.tif").picture
    assert picture.shape == (40, 30) and picture.values.shape[1] == bands and not picture.alpha
    np.testing.assert_array_equal(picture.pixels, data)


def test_axes_that_are_too_many(tmp_path: Path) -> None:
    for axes, shape in (("TZYX", (2, 3, 9, 8)), ("TZCYX", (2, 3, 2, 9, 8))):
        tifffile.imwrite(tmp_path / "a.tif", scene(*shape), ome=True, metadata={"axes": axes})
        with pytest.raises(ValueError, match=f"axes {axes}.*a part of it as an array"):
            fit(tmp_path / "a.tif")


def test_three_planes_that_tifffile_took_for_colors_are_told(tmp_path: Path) -> None:
    planes = np.moveaxis(COLORS, -1, 0)
    tifffile.imwrite(tmp_path / "a.tif", planes, planarconfig="separate", photometric="rgb")
    with pytest.warns(UserWarning, match=r"3 planes are colors: if they are pages.*axis=None"):
        picture = fit(tmp_path / "a.tif").picture
    np.testing.assert_array_equal(picture.pixels, COLORS)
    with pytest.warns(UserWarning):
        assert fit(tmp_path / "a.tif", channel_axis=None).picture.shape == (3, 40, 30)


@pytest.mark.parametrize("text", ["-9999", "-9999\0", "-9999.0"])
def test_pixels_without_data_are_missing(tmp_path: Path, text: str) -> None:
    """GDAL's tag. As data they made sigma hundreds of times as large."""
    heights = 500 + scene(40, 30).astype(np.float32)
    whole = float(fit(heights).sigma[0])
    heights[5:12, 3:9] = -9999
    tag = (42113, "s", 0, text, True)
    tifffile.imwrite(tmp_path / "a.tif", heights, extratags=[tag])
    with pytest.warns(UserWarning, match="42 of 1200 values are -9999, which stands for no data"):
        found = fit(tmp_path / "a.tif")
    assert np.array_equal(found.picture.missing, heights == -9999)
    assert found.sigma[0] == pytest.approx(whole, rel=0.3)
    assert found.image.min() > 500


def test_no_data_of_other_kinds(tmp_path: Path) -> None:
    """Not a number; a value that such pixels cannot have; the least float, as GDAL writes it."""
    tags = [(42113, "s", 0, text, True) for text in ("nan", "-9999", "-3.4028234663852886e+38")]
    tifffile.imwrite(tmp_path / "a.tif", GREY.astype(np.float32), extratags=tags[:1])
    assert not fit(tmp_path / "a.tif").picture.missing.any()
    tifffile.imwrite(tmp_path / "a.tif", GREY, extratags=tags[1:2])
    assert not fit(tmp_path / "a.tif").picture.missing.any()
    lowest = np.where(GREY > 150, np.finfo(np.float32).min, GREY.astype(np.float32))
    tifffile.imwrite(tmp_path / "a.tif", lowest, extratags=tags[2:])
    with pytest.warns(UserWarning, match="no data"):
        assert np.array_equal(fit(tmp_path / "a.tif", sigma=5).picture.missing, GREY > 150)


def test_palettes_inks_and_white_as_zero(tmp_path: Path) -> None:
    few = Image.fromarray(COLORS).quantize(200)
    few.save(tmp_path / "a.tif")
    found = fit(tmp_path / "a.tif", sigma=5).picture
    np.testing.assert_array_equal(found.pixels, np.asarray(few.convert("RGB")))
    inks = Image.fromarray(COLORS).convert("CMYK")
    inks.save(tmp_path / "a.tif")
    assert np.abs(fit(tmp_path / "a.tif").picture.pixels.astype(int) - COLORS).max() <= 2
    tifffile.imwrite(tmp_path / "a.tif", 255 - GREY, photometric="miniswhite")
    np.testing.assert_array_equal(fit(tmp_path / "a.tif").picture.pixels, GREY)


# Orientation, frames, transparency, masks ----------------------------------------------------


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "tif", "lzw.tif"])
def test_images_are_turned_upright(tmp_path: Path, turn: int, kind: str) -> None:
    """A bright corner comes to where the camera saw it."""
    upright = np.zeros((40, 24), dtype=np.uint8)
    upright[:16, :8] = 200
    turned = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1], 5: upright.T,
        6: upright.T[::-1], 7: upright.T[::-1, ::-1], 8: upright.T[:, ::-1],
    }[turn]  # fmt: skip
    path = tmp_path / f"a.{kind}"
    if kind == "tif":
        tifffile.imwrite(path, turned, extratags=[(274, "H", 1, turn, True)])
    else:
        image = Image.fromarray(np.ascontiguousarray(turned))
        if kind == "lzw.tif":
            image.save(path, compression="tiff_lzw", tiffinfo={274: turn})
        else:
            exif = Image.Exif()
            exif[0x0112] = turn
            image.save(path, exif=exif, **({"lossless": True} if kind == "webp" else {}))
    found = read_image(path).pixels
    found = found[..., 0] if found.ndim == 3 else found
    assert found.shape == (40, 24)
    assert np.abs(found.astype(int) - upright).max() < 30


def test_frames_of_a_gif(tmp_path: Path) -> None:
    frames = [Image.fromarray(COLORS).quantize(64), Image.fromarray(255 - COLORS).quantize(64)]
    frames[0].save(tmp_path / "one.gif")
    one = fit(tmp_path / "one.gif", sigma=5)
    assert one.picture.shape == (40, 30) and one.image.shape == (40, 30, 3)
    frames[0].save(tmp_path / "two.gif", save_all=True, append_images=frames[1:])
    two = fit(tmp_path / "two.gif", sigma=5)
    assert two.picture.shape == (2, 40, 30)
    np.testing.assert_array_equal(two.picture.pixels[0], one.picture.pixels)
    assert np.abs(two.picture.pixels[1].astype(int) - (255 - COLORS)).mean() < 12


def test_transparent_pixels_are_missing(tmp_path: Path) -> None:
    """What color is under them says nothing; it is said aloud, and the fit fills them in."""
    clear = np.zeros((40, 30), dtype=bool)
    clear[4:9, 10:20] = True
    alpha = np.where(clear, 0, 255).astype(np.uint8)
    files = {
        "rgba.png": Image.fromarray(np.dstack([np.where(clear[..., None], 0, COLORS), alpha])),
        "la.png": Image.fromarray(np.dstack([np.where(clear, 0, GREY), alpha]), "LA"),
        "rgba.webp": Image.fromarray(np.dstack([COLORS, alpha])),
    }
    for name, image in files.items():
        image.save(tmp_path / name, **({"lossless": True} if name.endswith("webp") else {}))
    keyed = Image.fromarray(np.where(clear[..., None], [[[1, 2, 3]]], COLORS).astype(np.uint8))
    keyed.save(tmp_path / "key.png", transparency=(1, 2, 3))
    extra = dict(photometric="rgb", extrasamples=["unassalpha"], metadata=None)
    rgba = np.dstack([COLORS, alpha])
    tifffile.imwrite(tmp_path / "rgba.tif", rgba, **extra)
    planes = np.moveaxis(rgba, -1, 0)
    tifffile.imwrite(tmp_path / "planes.tif", planes, planarconfig="separate", **extra)
    for path in sorted(tmp_path.iterdir()):
        with pytest.warns(UserWarning, match=r"50 of 1200 pixels are transparent"):
            found = fit(path)
        assert np.array_equal(found.picture.missing, clear), path
        assert found.picture.alpha and all(2.5 < s < 10 for s in found.sigma)
        image = found.image if path.stem != "planes" else np.moveaxis(found.image, 0, -1)
        np.testing.assert_array_equal(image[..., -1], alpha)
        assert image[..., 0].min() > 30  # none is black
    with pytest.warns(UserWarning), pytest.raises(ValueError, match=r"missing: .*transparent"):
        fit(np.dstack([COLORS, 0 * alpha]))


def test_masks_of_masked_arrays_are_honoured() -> None:
    hidden = np.zeros((40, 30), dtype=bool)
    hidden[3:8, 4:7] = True
    spoilt = np.where(hidden, 255, GREY)
    found = fit(np.ma.masked_array(spoilt, hidden))
    assert np.array_equal(found.picture.missing, hidden)
    assert found.sigma == fit(spoilt, mask=hidden).sigma
    of_one = np.zeros((3, 40, 30), dtype=bool)
    of_one[1, 5, 6] = True
    planes = np.ma.masked_array(np.moveaxis(COLORS, -1, 0), of_one)
    missing = fit(planes, channel_axis=0).picture.missing
    assert np.argwhere(missing).tolist() == [[5, 6]]
    assert not fit(np.ma.masked_array(GREY)).picture.missing.any()
    reference = np.ma.masked_array(GREY, hidden)
    assert np.isfinite(fit(GREY, reference=reference).history[-1]["rmse"])


@pytest.mark.parametrize("axis", [0, -1])
def test_channels_are_written_as_they_were_read(tmp_path: Path, axis: int) -> None:
    data = np.moveaxis(np.stack([scene(40, 30, seed=s) for s in range(7)]), 0, axis)
    write_image(tmp_path / "a.tif", data, axis)
    source = read_image(tmp_path / "a.tif")
    assert source.channel_axis == axis
    np.testing.assert_array_equal(source.pixels, data)


def test_the_command_takes_channels_and_gaps_from_the_file(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    tag = (42113, "s", 0, "0", True)
    data = scene(5, 40, 30).astype(np.int16)
    data[:, :4, :4] = 0
    tifffile.imwrite("a.tif", data, metadata={"axes": "CYX"}, extratags=[tag])
    options = ("--steps", "1", "--network-option", "hidden_features=8")
    result = CliRunner().invoke(app, ["fit-image", "a.tif", "-o", "b.tif", *options])
    assert result.exit_code == 0, result.output
    assert result.output.count("noise:") == 5 and "80 of 6000 values are 0" in result.output
    found = read_image("b.tif")
    assert found.pixels.shape == data.shape and found.channel_axis == 0
    assert found.pixels.min() > 0
