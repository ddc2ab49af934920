"""Images as networks: reading, layouts, missing pixels, what a fit can do, bad input."""

import csv
import json
import math
import os
import signal
import zlib
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
import skimage.data
import tifffile
import torch
from PIL import Image
from torch import nn

from sciml_snr.fields import image as images
from sciml_snr.fields import pixels
from sciml_snr.fields.archive import kind_of_fit
from sciml_snr.fields.files.pictures import check_writable, read_image, write_image
from sciml_snr.fields.image import fit_image
from sciml_snr.fields.image_fit import ImageFit
from sciml_snr.fields.networks import Siren
from sciml_snr.fields.picture import estimate_sigma, take_apart
from sciml_snr.fields.pixels import PixelObjective, coordinates, predict, tiles
from sciml_snr.runs.folder import read_arrays, write_arrays, write_state
from tests.cases import assert_same_bits

SMALL = {"hidden_features": 16, "hidden_layers": 2}
QUICK = dict(network_options=SMALL, steps=5, progress=False)


def wave(*shape: int) -> np.ndarray:
    """A smooth image in [50, 200]."""
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    return 125 + 75 * np.sin(sum((i + 1) * 2 * x for i, x in enumerate(axes)))


def noisy(*shape: int, sigma: float = 20, seed: int = 0) -> np.ndarray:
    return wave(*shape) + sigma * np.random.default_rng(seed).normal(size=shape)


def as_bytes(image: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


LAYOUTS = {
    "grey bytes": as_bytes(noisy(20, 12)),
    "grey 16 bit": (200 * noisy(20, 12)).astype(np.uint16),
    "signed": (noisy(20, 12) - 120).astype(np.int16),
    "float32": noisy(20, 12).astype(np.float32),
    "float64": noisy(20, 12) / 255,
    "bool": noisy(20, 12) > 125,
    "one channel": as_bytes(noisy(20, 12))[..., None],
    "RGB": as_bytes(np.stack([noisy(20, 12, seed=s) for s in range(3)], -1)),
    "RGBA": as_bytes(np.stack([noisy(20, 12, seed=s) for s in range(4)], -1)),
    "grey and alpha": as_bytes(np.stack([noisy(20, 12, seed=s) for s in range(2)], -1)),
    "volume": as_bytes(noisy(9, 12, 10)),
    "volume of colors": as_bytes(np.stack([noisy(9, 12, 10, seed=s) for s in range(3)], -1)),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_comes_back_as_it_was(name: str, tmp_path) -> None:
    image = LAYOUTS[name]
    fit = fit_image(image, sigma=0.2 if name == "bool" else 20, out=tmp_path / "run", **QUICK)
    assert (fit.image.shape, fit.image.dtype) == (image.shape, image.dtype)
    if name in ("RGBA", "grey and alpha"):
        np.testing.assert_array_equal(fit.image[..., -1], image[..., -1])
        assert fit.network(torch.zeros(1, 2)).shape[-1] == image.shape[-1] - 1
    if image.dtype.kind == "f":
        assert image.min() <= fit.image.min() and fit.image.max() <= image.max()
    spatial = fit.picture.shape
    assert fit.render(scale=2).shape[: len(spatial)] == tuple(2 * n for n in spatial)
    channels = (len(fit.sigma),) if fit.picture.has_channels else ()
    assert fit.gradient().shape == (*spatial, *channels, len(spatial))
    assert (tmp_path / "run" / "figure.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("shape", "axis", "spatial", "channels"),
    [
        ((5, 16, 12), 0, (16, 12), 5),
        ((16, 12, 4), -1, (16, 12), 4),
        ((16, 12, 4), None, (16, 12, 4), 1),
        ((6, 8, 7), "auto", (6, 8, 7), 1),
        ((6, 8, 7, 3), "auto", (6, 8, 7), 3),
    ],
)
def test_channel_axis(shape, axis, spatial, channels) -> None:
    picture = take_apart(noisy(*shape), channel_axis=axis)
    assert picture.shape == spatial
    assert picture.values.shape == (math.prod(spatial), channels)
    assert not picture.alpha


def test_channels_go_back_where_they_were() -> None:
    image = as_bytes(noisy(3, 16, 12))
    fit = fit_image(image, channel_axis=0, sigma=20, **QUICK)
    assert fit.image.shape == (3, 16, 12)
    assert fit.render(scale=2).shape == (3, 32, 24)
    same = fit_image(np.moveaxis(image, 0, -1), sigma=20, **QUICK)
    np.testing.assert_array_equal(np.moveaxis(fit.image, 0, -1), same.image)


def test_pixels_are_square_and_the_longest_axis_spans_two() -> None:
    x = coordinates(torch.arange(8 * 4), (8, 4))
    assert x[0].tolist() == [-7 / 8, -3 / 8] and x[-1].tolist() == [7 / 8, 3 / 8]
    assert (x[1] - x[0]).tolist() == [0, 2 / 8]


FILES = {
    "bytes.png": LAYOUTS["grey bytes"],
    "bits16.png": LAYOUTS["grey 16 bit"],
    "rgb.png": LAYOUTS["RGB"],
    "rgba.png": LAYOUTS["RGBA"],
    "bytes.tif": LAYOUTS["grey bytes"],
    "bits16.tif": LAYOUTS["grey 16 bit"],
    "float.tif": LAYOUTS["float32"],
    "pages.tif": LAYOUTS["volume"],
}


@pytest.mark.parametrize("name", FILES)
def test_files(name: str, tmp_path) -> None:
    iio.imwrite(tmp_path / name, FILES[name])
    picture = take_apart(str(tmp_path / name))
    np.testing.assert_array_equal(picture.pixels, FILES[name])
    assert picture.pixels.dtype == FILES[name].dtype
    assert picture.alpha == (name == "rgba.png")


def test_jpeg(tmp_path) -> None:
    iio.imwrite(tmp_path / "a.jpg", LAYOUTS["RGB"])
    assert take_apart(tmp_path / "a.jpg").shape == (20, 12)


def test_inks_are_colors_without_alpha(tmp_path) -> None:
    Image.fromarray(LAYOUTS["RGBA"], "CMYK").save(tmp_path / "a.jpg")
    picture = take_apart(tmp_path / "a.jpg")
    assert picture.pixels.shape == (20, 12, 3) and not picture.alpha


def test_pages_written_one_by_one(tmp_path) -> None:
    """A TIFF file has them as so many images; all are read."""
    path = tmp_path / "pages.tif"
    for pages in (LAYOUTS["volume"], LAYOUTS["volume of colors"], LAYOUTS["volume"][:1]):
        with tifffile.TiffWriter(path) as file:
            for page in pages:
                file.write(page)
        np.testing.assert_array_equal(take_apart(path).pixels, pages.squeeze())
    with tifffile.TiffWriter(path) as file:
        for page in (LAYOUTS["grey bytes"], LAYOUTS["grey bytes"][:9]):
            file.write(page)
    with pytest.warns(UserWarning, match=r"2 images that are no pages .* \(20, 12\)"):
        assert take_apart(path).shape == (20, 12)


@pytest.mark.parametrize("name", ["a.tif", "a.npy"])
@pytest.mark.parametrize(
    "shape", [(2, 9, 8), (3, 9, 8), (4, 9, 8), (5, 9, 8), (3, 9, 8, 3), (9, 8, 4)]
)
def test_what_is_written_is_read(tmp_path, name: str, shape: tuple[int, ...]) -> None:
    """Also volumes of as few pages as a color image has planes."""
    image = np.arange(math.prod(shape), dtype=np.uint16).reshape(shape)
    check_writable(tmp_path / name, image)
    write_image(tmp_path / name, image)
    np.testing.assert_array_equal(read_image(tmp_path / name).pixels, image)


def test_a_file_of_another_format_by_a_tiffs_name(tmp_path) -> None:
    iio.imwrite(tmp_path / "a.png", LAYOUTS["grey bytes"])
    (tmp_path / "a.png").rename(tmp_path / "a.tif")
    assert take_apart(tmp_path / "a.tif").shape == (20, 12)


def test_bits_that_are_lost_are_told(tmp_path) -> None:
    """A PNG file of one pixel, colors of 16 bits: header, one chunk of data, end."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = zlib.crc32(kind + data).to_bytes(4, "big")
        return len(data).to_bytes(4, "big") + kind + data + check

    header = (3).to_bytes(4, "big") + (1).to_bytes(4, "big") + bytes([16, 2, 0, 0, 0])
    row = b"\x00" + np.arange(9, dtype=">u2").tobytes()
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + parts)
    with pytest.warns(UserWarning, match=r"a\.png has colors of 16 bits, of which 8 are read"):
        assert read_image(tmp_path / "a.png").pixels.dtype == np.uint8


def test_black_and_white_as_an_array(tmp_path) -> None:
    check_writable(tmp_path / "a.npy", LAYOUTS["bool"])
    check_writable(tmp_path / "a.png", LAYOUTS["bool"])


@pytest.mark.parametrize(
    "name",
    ["astronaut", "logo", "horse", "checkerboard", "shepp_logan_phantom", "lfw_subset", "text",
     "colorwheel", "moon", "microaneurysms"],
)  # fmt: skip
def test_images_of_skimage_are_taken(name: str) -> None:
    """Layout and noise of each; what has no noise to be seen is no error."""
    image = getattr(skimage.data, name)()
    picture = take_apart(image)
    assert picture.pixels.shape == image.shape
    for sigma in estimate_sigma(picture):
        assert 0 <= sigma < np.ptp(image.astype(float)) / 20


@pytest.mark.parametrize("gaps", [0.0, 0.3, 0.7])
@pytest.mark.parametrize("shape", [(60, 50), (12, 40, 30)])
def test_sigma_is_estimated_with_and_without_gaps(gaps: float, shape: tuple[int, ...]) -> None:
    """On a smooth image, two channels: within 20 %, two standard errors where most is missing."""
    image = np.stack([noisy(*shape, sigma=s, seed=i) for i, s in enumerate((5, 20))], -1)
    mask = np.random.default_rng(1).random(shape) < gaps
    found = estimate_sigma(take_apart(image, mask, channel_axis=-1))
    assert found[0] == pytest.approx(5, rel=0.2)
    assert found[1] == pytest.approx(20, rel=0.2)
    assert all(0 < s.standard_error < 0.2 * s for s in found)


def test_missing_pixels_have_no_say() -> None:
    """Masked, NaN and infinite ones, whatever else is in them."""
    image = noisy(16, 12)
    mask = np.zeros((16, 12), dtype=bool)
    mask[3:6, 2:9] = True
    fits = []
    for filler in (0.0, 1e9):
        changed = np.where(mask, filler, image)
        fits.append(fit_image(changed, mask=mask, sigma=20, **QUICK))
    with_nan = np.where(mask, np.nan, image)
    with_nan[3, 2] = np.inf
    fits.append(fit_image(with_nan, sigma=20, **QUICK))
    for fit in fits[1:]:
        assert_same_bits(fits[0].network.state_dict(), fit.network.state_dict())
        np.testing.assert_array_equal(fits[0].image, fit.image)
    assert np.isfinite(fits[0].image).all()
    assert len(fits[0].picture.values) - 21 == np.isfinite(fits[0].picture.values).sum()


def test_a_mask_from_a_file(tmp_path) -> None:
    mask = np.zeros((16, 12), dtype=np.uint8)
    mask[2, 3] = 255
    iio.imwrite(tmp_path / "grey.png", mask)
    iio.imwrite(tmp_path / "colors.png", np.stack([mask] * 3, -1))
    for name in ("grey.png", "colors.png"):
        missing = take_apart(noisy(16, 12), tmp_path / name).missing
        assert np.argwhere(missing).tolist() == [[2, 3]]


def test_noise_and_gaps_are_removed() -> None:
    """Three in ten pixels missing, full batch: near the truth everywhere, and little memorized."""
    truth = wave(24, 24)
    mask = np.random.default_rng(3).random(truth.shape) < 0.3
    options = dict(hidden_features=32, hidden_layers=2, first_omega_0=10.0)
    fit = fit_image(
        noisy(24, 24), mask=mask, reference=truth, network_options=options, lr=1e-3, steps=400,
        progress=False,
    )  # fmt: skip
    error = np.sqrt(np.mean((fit.image - truth) ** 2))
    assert error < 10  # the noise is 20
    assert fit.history[-1]["rmse"] == pytest.approx(error, rel=0.02)  # not clipped
    assert np.sqrt(np.mean((fit.image - truth)[mask] ** 2)) < 12
    found = fit.memorization(progress=False)
    noise = (noisy(24, 24) - truth)[~mask]
    true_share = float(noise @ (fit.image - truth)[~mask] / (noise @ noise))
    low, high = found.interval()
    assert low <= true_share <= high


def test_batches_are_of_known_pixels_in_the_right_places() -> None:
    image = noisy(10, 14)
    mask = np.zeros(image.shape, dtype=bool)
    mask[:, :7] = True
    picture = take_apart(image, mask)
    known = picture.values[~mask.reshape(-1)]
    objective = PixelObjective(picture, known, (20.0,), 32, torch.device("cpu"))
    seen = []

    def network(x):
        seen.append(x)
        return torch.zeros(len(x), 1)

    (term,), extra = objective.terms(network, torch.Generator().manual_seed(0))
    assert extra is None and term.population == 70 and len(term.residual) == 32
    rows, columns = ((seen[0] * 14 + torch.tensor([10, 14]) - 1) / 2).round().int().T
    assert columns.min() >= 7
    values = -term.residual[:, 0].numpy() * picture.scale + picture.center
    np.testing.assert_allclose(values, image[rows, columns], rtol=1e-4)


def test_tiles_do_not_change_what_is_seen(monkeypatch) -> None:
    fit = fit_image(LAYOUTS["RGBA"], sigma=20, **QUICK)
    whole, slopes = fit.render((7, 9)), fit.gradient((7, 9))
    monkeypatch.setattr(pixels, "TILE", 8)
    np.testing.assert_array_equal(fit.render((7, 9)), whole)
    np.testing.assert_allclose(fit.gradient((7, 9)), slopes, rtol=1e-5, atol=1e-6)


def test_render_parts_and_scales() -> None:
    fit = fit_image(noisy(20, 12), sigma=20, **QUICK)
    part = fit.render(box=[(5, 9), (2, 12)])
    np.testing.assert_allclose(part, fit.image[5:9, 2:12], rtol=1e-5)
    # The centers of three times as many cells: every third one is a pixel's.
    np.testing.assert_allclose(fit.render(scale=3)[1::3, 1::3], fit.image, rtol=1e-5)
    assert fit.render(scale=0.5).shape == (10, 6)
    assert fit.render((3, 4)).shape == (3, 4)
    for bad, message in (
        (dict(shape=(3,)), "2 positive integers"),
        (dict(shape=(0, 3)), "2 positive integers"),
        (dict(shape=(3, 3), scale=2), "not both"),
        (dict(scale=0), "scale must be"),
        (dict(box=[(0, 3)]), "box must be"),
        (dict(box=[(3, 3), (0, 4)]), "box must be"),
        (dict(box=(0, 10)), "box must be"),
        (dict(scale=(2, 3)), "scale is one number.*give shape"),
        (dict(shape=48), "2 positive integers"),
    ):
        with pytest.raises(ValueError, match=message):
            fit.render(**bad)


def test_alpha_is_interpolated() -> None:
    image = LAYOUTS["RGBA"].copy()
    image[..., 3] = np.arange(20)[:, None] * 10
    alpha = fit_image(image, sigma=20, **QUICK).render(scale=2)[..., 3]
    expected = np.clip((np.arange(40) + 0.5) / 2 - 0.5, 0, 19) * 10
    assert np.abs(alpha - expected[:, None]).max() <= 0.5


def test_gradient_is_the_slope_of_the_fit() -> None:
    fit = fit_image(LAYOUTS["RGB"], sigma=20, **QUICK)
    step, slopes = 0.01, fit.gradient()
    for axis in range(2):
        ends = []
        for sign in (1, -1):
            shift = [sign * step * (a == axis) for a in range(2)]
            box = [(s, n + s) for n, s in zip((20, 12), shift, strict=True)]
            ends.append(predict(fit.network, fit.picture, (20, 12), box))
        found = ((ends[0] - ends[1]) / (2 * step)).reshape(20, 12, 3)
        np.testing.assert_allclose(slopes[..., axis], found, atol=0.02 * np.abs(slopes).max())


@pytest.mark.parametrize("own", [False, True])
def test_save_and_load(tmp_path, own: bool) -> None:
    torch.manual_seed(1)
    network = Siren(2, 1, 8, 1)
    given = dict(network=network) if own else dict(network_options=SMALL)
    fit = fit_image(LAYOUTS["grey 16 bit"], steps=5, progress=False, **given)
    fit.save(tmp_path / "fit.npz")
    found = ImageFit.load(tmp_path / "fit.npz", network if own else None)
    np.testing.assert_array_equal(found.image, fit.image)
    assert found.image.dtype == np.uint16
    assert found.history == fit.history and found.options == fit.options
    assert found.sigma == fit.sigma and str(found.sigma[0]) == str(fit.sigma[0])
    assert found.memorization(progress=False) == fit.memorization(progress=False)
    if own:
        with pytest.raises(ValueError, match="give network="):
            ImageFit.load(tmp_path / "fit.npz")
        with pytest.raises(ValueError, match="not the one of the fit"):
            ImageFit.load(tmp_path / "fit.npz", Siren(2, 1, 9, 1))


def test_own_network_is_copied() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))

        def forward(self, x):
            return self.layers(x)

    network = Plain()
    before = network.layers[0].weight.clone()
    fit = fit_image(noisy(16, 12), network=network, lr=1e-2, steps=5, progress=False)
    assert type(fit.network) is Plain
    assert torch.equal(network.layers[0].weight, before)
    assert not torch.equal(fit.network.layers[0].weight, before)


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_a_gate_of_ones_own_goes_before_what_is_chosen_from_the_image(tmp_path) -> None:
    """Of a large image, whose gate rises; also when its run is resumed."""
    image = noisy(100, 100)
    run = dict(steps=1, network_options=SMALL, progress=False, out=tmp_path)
    fit = fit_image(image, gate={"z": 1.5}, **run)
    assert fit.options.gate == {"rise_steps": images.RISE_STEPS, "z": 1.5}
    for gate in ({}, {"z": 1.5}, {"rise_steps": images.RISE_STEPS}):
        fit_image(image, gate=gate, resume=True, **run | {"steps": 2})
    for gate in ({"z": 1.0}, {"rise_steps": 0}):
        with pytest.raises(ValueError, match="has gate = "):
            fit_image(image, gate=gate, resume=True, **run)


def test_run_folder_interrupted_and_resumed(tmp_path, monkeypatch) -> None:
    image = LAYOUTS["RGB"]
    settings = dict(network_options=SMALL, progress=False, batch_size=50, seed=4)
    whole = fit_image(image, steps=30, out=tmp_path / "whole", **settings)
    assert {p.name for p in (tmp_path / "whole").iterdir()} == {
        *(".lock", "config.json", "metrics.csv", "checkpoint.pt"),
        *("fit.npz", "summary.json", "figure.png"),
    }
    summary = json.loads((tmp_path / "whole" / "summary.json").read_text())
    assert (summary["steps"], summary["interrupted"]) == (30, False)
    assert summary["misfit"] == float(rows(tmp_path / "whole")[-1]["misfit"])
    terms = PixelObjective.terms

    def interrupted(self, network, rng, left=[11]):  # noqa: B006 (counts calls)
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGINT)
        return terms(self, network, rng)

    folder = tmp_path / "parts"
    with monkeypatch.context() as patch:
        patch.setattr(PixelObjective, "terms", interrupted)
        part = fit_image(image, steps=30, out=folder, **settings)
    assert part.training.interrupted and part.training.step == 11
    assert (folder / "figure.png").exists()
    fit = fit_image(image, out=folder, resume=True, progress=False)
    assert not fit.training.interrupted and fit.training.step == 30
    assert_same_bits(fit.network.state_dict(), whole.network.state_dict())
    np.testing.assert_array_equal(fit.image, whole.image)
    longer = fit_image(image, out=folder, resume=True, steps=40, progress=False)
    assert longer.training.step == 40
    before = (folder / "config.json").read_text()
    with pytest.raises(ValueError, match="has taken 40 steps already: 39 is too few"):
        fit_image(image, out=folder, resume=True, steps=39, progress=False)
    assert (folder / "config.json").read_text() == before  # it can be resumed as it was
    with pytest.raises(ValueError, match="another image"):
        fit_image(255 - image, out=folder, resume=True, progress=False)
    settings |= dict(steps=40, network="siren", lr=fit.options.lr)
    fit_image(image, out=folder, resume=True, **settings, sigma=[float(s) for s in fit.sigma])
    for other in (
        dict(optimizer="adam"),
        dict(lr=1e-2),
        dict(gate={"z": 1.0}),
        dict(seed=5),
        dict(sigma=3.0),
        dict(network="wire"),
        dict(network=nn.Linear(2, 3)),
        dict(network_options={"hidden_layers": 3}),
        dict(network_options={"hidden_omega_0": 29.0}),
        dict(network_options={"seed": 4}),
    ):
        name = next(iter(other.get("network_options", other)))
        with pytest.raises(ValueError, match=f"has {name} = "):
            fit_image(image, out=folder, resume=True, **settings | other)
    with pytest.raises(FileExistsError, match="already holds a run"):
        fit_image(image, out=folder, **QUICK)
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is damaged"):
        fit_image(image, out=folder, resume=True, progress=False)


def test_defaults_go_with_the_image() -> None:
    """Larger: wider, more steps, batches. Noisier: smoother. Adam: slower."""
    small, large = take_apart(noisy(20, 12)), take_apart(noisy(300, 300))
    found = [images.choose_network(None, None, p, (s,)) for p in (small, large) for s in (5, 50)]
    widths = [choice.options["hidden_features"] for choice in found]
    omegas = [choice.options["first_omega_0"] for choice in found]
    assert widths[0] == widths[1] < widths[2] == widths[3]
    assert omegas[0] > omegas[1] and omegas[2] >= omegas[3]
    assert min(omegas) >= 3 and max(omegas) <= 30
    training = [images.default_training(found[0], p, "snr_soap") for p in (small, large)]
    assert training[0]["batch_size"] is None and training[1]["batch_size"] == images.BATCH
    assert training[0]["steps"] < training[1]["steps"]
    assert training[0]["gate"] == {} and training[1]["gate"] == {"rise_steps": images.RISE_STEPS}
    assert training[1]["lr"] == 2 * training[0]["lr"]
    for name in ("adam", "snr_adam"):
        own = [images.default_training(found[0], p, name) for p in (small, large)]
        assert own[0]["lr"] == own[1]["lr"] and own[1]["gate"] == {}
    assert images.default_training(found[0], small, "adam")["lr"] < training[0]["lr"]
    chosen = images.choose_network(None, {"first_omega_0": 50.0}, small, (5.0,))
    assert chosen.options["first_omega_0"] == 50
    assert images.choose_network(Siren(2, 1), None, small, (5.0,)).name == "own"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": np.zeros((0, 5))}, "nothing to fit"),
        ({"image": np.zeros((1, 1))}, "nothing to fit"),
        ({"image": np.full((9, 9), 7.0)}, r"constant \(\[7.0\]\)"),
        ({"image": np.zeros(9)}, r"\(H, W\) or \(D, H, W\)"),
        ({"image": np.zeros((9, 9, 9, 9, 2))}, r"\(H, W\) or \(D, H, W\)"),
        ({"image": np.full((9, 9), "a")}, "real numbers"),
        ({"image": noisy(9, 9) + 1j}, "real numbers"),
        ({"image": np.ma.masked_less(noisy(9, 9), 999)}, "All pixels of the image are missing"),
        ({"network": nn.Identity()}, "this fit needs"),
        ({"image": np.full((9, 9), np.nan)}, "All pixels of the image are missing"),
        ({"mask": np.ones((16, 12))}, "All pixels of the image are missing"),
        ({"mask": np.ones((12, 16))}, r"mask has the shape \(12, 16\)"),
        ({"sigma": [1.0, 2.0]}, "sigma has 2 entries.*1 channel"),
        ({"sigma": -1.0}, "finite and >= 0"),
        ({"sigma": math.nan}, "finite and >= 0"),
        ({"image": noisy(5, 5)}, "noise cannot be estimated; give sigma"),
        ({"channel_axis": 2}, "no axis 2"),
        ({"channel_axis": "last"}, "channel_axis must be"),
        ({"reference": noisy(12, 16)}, r"reference \(12, 16\)"),
        ({"network": "resnet"}, "no network 'resnet'.*siren"),
        ({"network_options": {"width": 3}}, "network option is unknown.*width"),
        ({"network": Siren(2, 1), "network_options": SMALL}, "built-in networks"),
        ({"network": Siren(2, 3)}, "this fit needs"),
        ({"network": Siren(3, 1)}, "does not take points"),
        ({"steps": 0}, "steps must be"),
        ({"optimizer": "sgd"}, "no optimizer 'sgd'"),
    ],
)
def test_bad_input_leaves_nothing_behind(tmp_path, changes: dict, message: str) -> None:
    given = {"image": noisy(16, 12), "progress": False, **changes}
    with pytest.raises(ValueError, match=message):
        fit_image(given.pop("image"), out=tmp_path / "run", **given)
    assert not (tmp_path / "run").exists()


def test_bad_files(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no file .*absent\.png"):
        fit_image(tmp_path / "absent.png")
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(ValueError, match=r"text\.png cannot be read as an image"):
        fit_image(tmp_path / "text.png")
    with pytest.raises(FileNotFoundError, match="no run to resume"):
        fit_image(noisy(16, 12), out=tmp_path / "none", resume=True)


@pytest.mark.parametrize(
    "changed",
    [
        *([], 3, {}, {"format": 1}),
        *({"training": 3}, {"training": {"step": 1}}, {"sigma": []}, {"network_options": 3}),
        *({"options": []}, {"channel_axis": "x"}),
    ],
    ids=repr,
)
def test_a_saved_fit_that_says_something_else_is_named(tmp_path, changed) -> None:
    fit = fit_image(as_bytes(noisy(10, 8)), **QUICK)
    fit.save(tmp_path / "fit.npz")
    fields = read_arrays(tmp_path / "fit.npz")
    about = json.loads(str(fields["about"]))
    is_part = isinstance(changed, dict) and changed.keys() - {"format"}
    about = about | changed if is_part else changed
    write_arrays(tmp_path / "fit.npz", {**fields, "about": np.array(json.dumps(about))})
    with pytest.raises(ValueError, match=r"fit\.npz is (damaged|not a saved fit)"):
        ImageFit.load(tmp_path / "fit.npz")
    write_arrays(tmp_path / "fit.npz", {k: v for k, v in fields.items() if k != "about"})
    with pytest.raises(ValueError, match="is not a saved fit"):
        kind_of_fit(tmp_path / "fit.npz")


def test_a_resumed_fit_touches_nothing_before_its_first_step(tmp_path) -> None:
    """A checkpoint with a right checksum and an optimizer's state that is none."""
    image = as_bytes(noisy(10, 8))
    fit_image(image, out=tmp_path, **QUICK)
    whole = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    states = whole["state"]["optimizer"]["state"]
    states[next(iter(states))] = dict.fromkeys(states[next(iter(states))], "x")
    write_state(tmp_path / "checkpoint.pt", whole)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=r"checkpoint\.pt is damaged"):
        fit_image(image, out=tmp_path, resume=True, steps=8, progress=False)
    after = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    assert after | {".lock": b""} == before | {".lock": b""}


@pytest.mark.parametrize("spacing", [None, (2.0, 0.5)])
def test_the_field_of_an_image_is_its_function(spacing, tmp_path) -> None:
    """At the pixels' centres the fit, with the fit's slopes; lengths are those of the spacing."""
    fit = fit_image(noisy(20, 12), sigma=20, spacing=spacing, **QUICK)
    sides = np.ones(2) if spacing is None else np.array(spacing)
    centers = (np.argwhere(np.ones((20, 12))) + 0.5) * sides
    values = fit.field.evaluate(centers).reshape(20, 12)
    clipped = np.clip(values, fit.picture.values.min(), fit.picture.values.max())
    np.testing.assert_allclose(clipped, fit.image, rtol=1e-4)
    slopes = fit.field.gradient(centers).reshape(20, 12, 2)
    np.testing.assert_allclose(slopes, fit.gradient(), rtol=1e-3, atol=1e-2)
    fit.save(tmp_path / "fit.npz")
    again = ImageFit.load(tmp_path / "fit.npz")
    np.testing.assert_array_equal(again.field.evaluate(centers), fit.field.evaluate(centers))


def test_spacing_makes_up_for_long_voxels() -> None:
    """Coordinates are in proportion to lengths; one number for all axes changes nothing."""
    picture = take_apart(noisy(20, 12), spacing=(1.0, 3.0))
    (found,) = tiles(picture, (20, 12), None, torch.device("cpu"))
    assert found[:, 1].max() == pytest.approx(33 / 36) and found[:, 0].max() < 20 / 36
    plain, same = (fit_image(noisy(20, 12), sigma=20, spacing=s, **QUICK) for s in (None, 7.0))
    np.testing.assert_allclose(same.image, plain.image, rtol=1e-5)
    np.testing.assert_allclose(7 * same.gradient(), plain.gradient(), rtol=1e-3, atol=1e-3)
    for bad in (0.0, (1.0, 2.0, 3.0), (1.0, np.nan)):
        with pytest.raises(ValueError, match="spacing must be"):
            fit_image(noisy(20, 12), sigma=20, spacing=bad, **QUICK)


def test_a_run_is_resumed_with_its_spacing(tmp_path) -> None:
    options = {**QUICK, "steps": 3}
    fit = fit_image(noisy(20, 12), sigma=20, spacing=(1.0, 3.0), out=tmp_path, **options)
    longer = {"steps": 5, "progress": False, "out": tmp_path, "resume": True}
    again = fit_image(noisy(20, 12), **longer)
    assert again.picture.spacing == fit.picture.spacing == (1.0, 3.0)
    with pytest.raises(ValueError, match="has spacing = "):
        fit_image(noisy(20, 12), spacing=2.0, **longer)


def test_error_bars_of_pixels() -> None:
    rng = np.random.default_rng(0)
    rows, columns = np.indices((24, 24)) / 24
    clean = 0.5 + 0.3 * np.sin(5 * rows) * np.cos(4 * columns)
    noisy = clean + 0.1 * rng.normal(size=clean.shape)
    fit = fit_image(noisy, sigma=0.1, steps=100, progress=False)
    bars = fit.error_bars(progress=False)
    stated = bars(fit.pixel_centers()).reshape(clean.shape)
    error = fit.image - clean
    assert np.sqrt(np.mean(stated**2)) == pytest.approx(np.sqrt(np.mean(error**2)), rel=0.5)
    assert fit.field.evaluate(fit.pixel_centers()).reshape(clean.shape) == pytest.approx(fit.image)
