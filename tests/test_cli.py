"""The command line, called as a user would."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import deepxde as dde
import imageio.v3 as iio
import numpy as np
import pytest
import tifffile
import trimesh
from typer.testing import CliRunner

from sciml_snr.cli import app
from sciml_snr.cli._options import parse_pairs

runner = CliRunner()


@pytest.fixture(autouse=True)
def fresh_directory(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(*arguments: str, code: int = 0) -> str:
    result = runner.invoke(app, list(arguments))
    assert result.exit_code == code, result.output
    return result.output


def test_help_and_version() -> None:
    for command in ("problems", "solve", "compare", "fit-field", "fit-image", "fit-sdf"):
        assert command in call("--help")
        call(command, "--help")
    assert call("--version").strip()
    assert "[default: estimated]" in " ".join(call("fit-image", "--help").replace("│", "").split())


def test_a_terminated_run_ends_like_one_by_ctrl_c(monkeypatch) -> None:
    """A scheduler's SIGTERM leaves a complete folder."""
    before = signal.getsignal(signal.SIGTERM)
    train = dde.Model.train

    class Terminated(dde.callbacks.Callback):
        left = 6

        def on_epoch_end(self) -> None:
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGTERM)

    def terminated(self, *arguments, callbacks=(), **options):
        return train(self, *arguments, callbacks=[*callbacks, Terminated()], **options)

    monkeypatch.setattr(dde.Model, "train", terminated)
    output = call("solve", "convection", "--iterations", "50", "--out", "here")
    assert "Interrupted after 7 iterations" in output
    assert json.loads(Path("here/summary.json").read_text())["interrupted"]
    assert signal.getsignal(signal.SIGTERM) is before


def test_problems() -> None:
    output = call("problems")
    assert "convection" in output and "lynx_hare" in output


def test_solve_prints_a_summary_and_says_where_the_figure_is() -> None:
    output = call("solve", "lynx_hare", "--iterations", "20")
    assert "alpha" in output and "final" in output
    assert "runs/lynx_hare-snr_adam-seed0/figure.png" in output
    assert Path("runs/lynx_hare-snr_adam-seed0/summary.json").exists()


def test_solve_options(fresh_directory) -> None:
    call(
        "solve", "convection", "--optimizer", "adamw", "--lr", "0.01", "--noise", "0.5", "--points",
        "40", "--iterations", "10", "--seed", "3", "--device", "cpu", "--out", "here",
    )  # fmt: skip
    config = Path("here/config.json").read_text()
    for fragment in ('"lr": 0.01', '"noise": 0.5', '"points": 40', '"seed": 3', '"adamw"'):
        assert fragment in config


def test_snr_options_are_parsed() -> None:
    call(
        "solve", "convection", "--iterations", "5", "--out", "here",
        "--snr-option", "gate=hard", "--snr-option", "lambd=4",
    )  # fmt: skip
    assert '"gate": "hard"' in Path("here/config.json").read_text()
    assert '"lambd": 4' in Path("here/config.json").read_text()


def test_own_data() -> None:
    Path("mine.csv").write_text("x,t,u,sigma\n1,0,0.8,0.1\n3,0,0.2,0.1\n")
    output = call("solve", "convection", "--data", "mine.csv", "--iterations", "5")
    assert "error" not in output.split("convection snr_adam")[0]
    Path("mine.csv").write_text("x,t,u\n1,0,0.8\n3,0.5,0.2\n")
    output = call("solve", "convection", "--data", "mine.csv", "--iterations", "5", "--out", "b")
    assert "error is unknown" in output


def test_unknowns_come_with_an_interval() -> None:
    output = call("solve", "poisson", "--iterations", "5")
    assert re.search(r"k = \S+ \+- \S+ \(95 %: \S+ to \S+\), reference 0\.7 \(", output)


def test_resume() -> None:
    call("solve", "convection", "--iterations", "10", "--out", "here")
    call("solve", "convection", "--iterations", "20", "--out", "here", "--resume")
    assert '"iterations": 20' in Path("here/summary.json").read_text()


def test_compare() -> None:
    output = call("compare", "convection", "--iterations", "10", "--seeds", "2", "--jobs", "1")
    assert "adamw" in output and "snr_adam" in output
    assert Path("runs/compare-convection/comparison.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["solve", "nothing"], "There is no problem 'nothing'"),
        (["solve", "convection", "--optimizer", "foo"], "There is no optimizer 'foo'"),
        (["solve", "convection", "--data", "absent.csv"], "absent.csv"),
        (["solve", "convection", "--data", "bad.csv"], "line 3, column 'u'"),
        (["solve", "convection", "--data", "q[b].csv"], "q[b].csv"),
        (["solve", "convection", "--resume"], "no run to resume"),
        (["solve", "convection", "--snr-option", "gate"], "name=value"),
        (["compare", "convection", "--optimizers", "adam,foo"], "There is no optimizer 'foo'"),
        (["compare", "convection", "--data", "bad.csv"], "line 3, column 'u'"),
        (["compare", "convection", "--optimizers", "adam,sgd", "--snr-option", "z=1"], "not for"),
        (["solve", "convection", "--optimizer", "adam", "--snr-option", "z=1"], "adam has no z"),
        (["solve", "convection", "--snr-option", "differentiable=True"], "no SNR option"),
        (["solve", "convection", "--snr-option", "gate={[]:1}"], "Invalid gate"),
        (["solve", "convection", "--snr-option", "gate=1e9"], "snr_options: gate must be a name"),
        (["solve", "convection", "--points", "100000000000"], "GB of memory"),
        (["solve", "convection", "--device", "meta"], "device 'meta' cannot be used"),
        (["solve", "convection", "--lr", "nan"], "lr must be"),
        (["solve", "convection", "--iterations", "0"], "iterations must be"),
        (["solve", "convection", "--seed", "-1"], "seed must be"),
        (["solve", "convection", "--data", "latin.csv"], "latin.csv is no text in UTF-8"),
        (["solve", "convection", "--data", "semicolons.csv"], "semicolons"),
        (["bench", "dates.toml", "--out", "rows.csv"], "options.noise must be a number"),
        (["bench", "latin.csv", "--out", "rows.csv"], "latin.csv is no text in UTF-8"),
        (["memorization", "absent"], "no finished run"),
    ],
)
def test_errors_are_plain(arguments: list[str], message: str) -> None:
    Path("bad.csv").write_text("x,t,u\n1,0,1\n1,0,nan\n")
    Path("latin.csv").write_text("x,t,u\n# größe\n", encoding="latin-1")
    Path("semicolons.csv").write_text("x;t;u\n1;0;0,5\n")
    text = "seeds=[0]\nlrs=[1]\n[methods.adam]\n[problems.heat]\noptions={noise=1979-05-27}\n"
    Path("dates.toml").write_text(text)
    output = call(*arguments, code=1)
    assert message in " ".join(output.split())
    assert output.startswith("Error: ") and len(output.splitlines()) == 1
    assert "Traceback" not in output and "unexpected" not in output
    assert not Path("runs").exists()


def test_an_unforeseen_error_is_one_line_and_its_traceback_can_be_had(monkeypatch) -> None:
    def broken(*_, **__):
        raise KeyError("deep inside\nand long")

    monkeypatch.setattr("sciml_snr.runs.run.solve", broken)
    output = call("solve", "convection", code=1)
    assert output.startswith("Error: KeyError: 'deep inside") and len(output.splitlines()) == 1
    assert "SCIML_SNR_TRACEBACK=1 shows where" in output
    monkeypatch.setenv("SCIML_SNR_TRACEBACK", "1")
    result = CliRunner().invoke(app, ["solve", "convection"])
    assert isinstance(result.exception, KeyError)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--optimizer", "adam"], "has optimizer = 'snr_adam' and not 'adam'"),
        (["--seed", "0", "--lr", "0.5"], "has lr = "),
        (["--snr-option", "z=1"], "has snr_options = "),
    ],
)
def test_what_is_given_is_compared_with_the_run_that_is_resumed(arguments, message) -> None:
    """Also where it equals the default."""
    call("solve", "convection", "--iterations", "2", "--out", "run")
    before = {p.name: p.read_bytes() for p in Path("run").iterdir()}
    output = call("solve", "convection", "--out", "run", "--resume", *arguments, code=1)
    assert message in " ".join(output.split())
    assert before == {p.name: p.read_bytes() for p in Path("run").iterdir()}
    soap = ["--out", "soap", "--optimizer", "snr_soap", "--iterations", "2"]
    call("solve", "convection", *soap)
    asked = ["solve", "convection", "--out", "soap", "--resume", "--optimizer", "snr_adam"]
    assert "has optimizer = 'snr_soap'" in " ".join(call(*asked, code=1).split())
    call("solve", "convection", "--out", "soap", "--resume", "--seed", "0")


def test_a_diverging_run_is_no_traceback() -> None:
    output = call("solve", "lynx_hare", "--lr", "1e6", "--iterations", "50", code=1)
    assert "Error: The loss is not finite at iteration" in output and "Traceback" not in output
    assert re.search(r"\(term \d(, \d)* of \d\)", output)


def test_installed_command_in_a_fresh_directory() -> None:
    """As a process of its own: nothing on stderr but what is meant for the user."""
    command = Path(sys.executable).with_name("sciml-snr")
    done = subprocess.run(
        [command, "solve", "convection", "--iterations", "5"], capture_output=True, text=True
    )
    assert done.returncode == 0
    assert all(line.startswith("Note: ") for line in done.stderr.splitlines())
    assert "convection" in done.stdout


TINY = ("--network-option", "hidden_features=8", "--network-option", "hidden_layers=1")


@pytest.fixture
def noisy_png(fresh_directory) -> Path:
    x, y = np.meshgrid(np.linspace(0, 3, 20), np.linspace(0, 3, 16))
    image = 120 + 60 * np.sin(x + y) + 15 * np.random.default_rng(0).normal(size=x.shape)
    iio.imwrite("noisy.png", image.astype(np.uint8))
    return Path("noisy.png")


def test_fit_image(noisy_png) -> None:
    output = call(
        "fit-image", "noisy.png", "-o", "clean.png", "--steps", "3", "--scale", "2", *TINY
    )
    assert "noise: sigma" in output and "wavelet details" in output
    clean = iio.imread("clean.png")
    assert clean.shape == (32, 40) and clean.dtype == np.uint8
    folder = Path("runs/noisy-snr_soap-seed0")
    assert {p.name for p in folder.iterdir()} == {
        *(".lock", "config.json", "metrics.csv", "checkpoint.pt"),
        *("fit.npz", "summary.json", "figure.png"),
    }
    assert str(folder / "figure.png") in output
    output = call("fit-image", "noisy.png", "-o", "clean.png", "--steps", "5", "--resume")
    assert '"steps": 5' in (folder / "summary.json").read_text()


def test_fit_image_of_many_channels(fresh_directory) -> None:
    image = np.random.default_rng(0).normal(size=(16, 20, 5))
    np.save("channels.npy", image)
    options = ("--channel-axis", "-1", "--steps", "2", "--sigma", "1", *TINY)
    call("fit-image", "channels.npy", "-o", "clean.npy", *options)
    assert np.load("clean.npy").shape == image.shape


def test_folders_are_looked_at_before_the_first_fit(noisy_png) -> None:
    Path("here-adam").mkdir()
    Path("here-adam/config.json").write_text("{}")
    options = ("--compare", "adam", "--out-run", "here", "--steps", "1", *TINY)
    output = call("fit-image", "noisy.png", "-o", "clean.png", *options, code=1)
    assert "here-adam/config.json is not of a run of sciml-snr" in " ".join(output.split())
    assert not Path("clean.png").exists() and not Path("here").exists()


def test_fit_image_with_patience_says_where_it_went_back(noisy_png) -> None:
    """A learning rate that is far too large: the start is the best."""
    output = call(
        "fit-image", "noisy.png", "-o", "clean.png", "--steps", "30", "--lr", "3",
        "--optimizer", "adam", "--patience", "4", "--out-run", "here", *TINY,
    )  # fmt: skip
    steps = json.loads(Path("here/summary.json").read_text())
    assert steps["kept_step"] == steps["steps"] - 4 < 26
    told = f"Stopped after {steps['steps']} steps; the fit is that after {steps['kept_step']},"
    assert told in " ".join(output.split())


def test_fit_image_options(noisy_png) -> None:
    mask = np.zeros((16, 20), dtype=np.uint8)
    mask[3, 4] = 255
    iio.imwrite("mask.png", mask)
    output = call(
        "fit-image", "noisy.png", "-o", "clean.tif", "--sigma", "12.5", "--mask", "mask.png",
        "--steps", "2", "--lr", "0.002", "--batch-size", "50", "--seed", "3", "--device", "cpu",
        "--optimizer", "snr_adam", "--gate-option", "z=2.5", "--gate-option", "form=hard",
        "--network", "fourier",
        "--cooldown", "0.25",
        "--network-option", "frequencies=4", "--out-run", "here", "--compare", "adam", *TINY,
    )  # fmt: skip
    assert "sigma 12.5 (given)" in output and "adam" in output
    config = Path("here/config.json").read_text()
    for fragment in (
        *('"fourier"', '"frequencies": 4', '"hidden_features": 8', "12.5", '"lr": 0.002'),
        *('"batch_size": 50', '"seed": 3', '"snr_adam"', '"z": 2.5', '"form": "hard"'),
        '"cooldown": 0.25',
    ):
        assert fragment in config
    assert '"missing_pixels": 1' in Path("here/summary.json").read_text()
    assert '"optimizer": "adam"' in Path("here-adam/config.json").read_text()
    assert iio.imread("clean.tif").shape == iio.imread("clean-adam.tif").shape == (16, 20)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent.png", "-o", "clean.png"], "There is no file absent.png"),
        (["text.png", "-o", "clean.png"], "text.png cannot be read as an image"),
        (["black.png", "-o", "clean.png"], "image is constant"),
        (["noisy.png", "-o", "clean.png", "--mask", "white.png"], "All pixels of the image"),
        (["noisy.png", "-o", "clean.png", "--mask", "black.png"], "mask has the shape (3, 3)"),
        (["noisy.png", "-o", "clean.xyz"], "clean.xyz has no ending of an image's"),
        (["noisy.png", "-o", "absent/clean.png"], "no folder absent"),
        (["floats.npy", "-o", "clean.png"], "clean.png cannot hold"),
        (["noisy.png", "-o", "clean.png", "--sigma", "1", "--sigma", "2"], "sigma has 2 entries"),
        (["noisy.png", "-o", "clean.png", "--network", "resnet"], "no network 'resnet'"),
        (["noisy.png", "-o", "clean.png", "--compare", "sgd"], "no optimizer 'sgd'"),
        (["noisy.png", "-o", "clean.png", "--compare", "snr_soap"], "another optimizer"),
        (["noisy.png", "-o", "clean.png", "--patience", "5"], "choose snr_adam or adam"),
        (["noisy.png", "-o", "clean.png", "--resume"], "no run to resume"),
        (["noisy.png", "-o", "clean.png", "--scale", "0"], "scale must be"),
        (["noisy.png", "-o", "clean.png", "--gate-option", "gate=hard"], "no gate option 'gate'"),
        (["noisy.png", "-o", "clean.png", "--gate-option", "z=x"], "Invalid z: 'x'"),
        (["noisy.png", "-o", "clean.png", "--gate-option", "form=[]"], "Invalid gate: []"),
    ],
)
def test_bad_images_are_plain_errors(noisy_png, arguments: list[str], message: str) -> None:
    Path("text.png").write_text("no image")
    iio.imwrite("black.png", np.zeros((3, 3), dtype=np.uint8))
    iio.imwrite("white.png", np.full((16, 20), 255, dtype=np.uint8))
    np.save("floats.npy", np.random.default_rng(0).normal(size=(16, 20)))
    output = " ".join(call("fit-image", *arguments, "--steps", "1", code=1).split())
    assert message in output
    assert "Traceback" not in output
    assert not Path("runs").exists()


@pytest.fixture
def scan_ply(fresh_directory) -> Path:
    """A noisy sphere, and the true one."""
    rng = np.random.default_rng(0)
    points = rng.normal(size=(200, 3))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    trimesh.PointCloud(points + 0.03 * rng.normal(size=points.shape)).export("scan.ply")
    trimesh.creation.icosphere(3).export("true.stl")
    return Path("scan.ply")


def test_fit_sdf(scan_ply) -> None:
    output = call(
        "fit-sdf", "scan.ply", "-o", "mesh.stl", "--steps", "3", "--resolution", "12",
        "--reference", "true.stl", *TINY,
    )  # fmt: skip
    assert "noise: sigma" in output and "quadratic patches" in output
    assert "Chamfer distance" in output and "misfit" in output
    assert len(trimesh.load_mesh("mesh.stl").faces) > 0
    folder = Path("runs/scan-snr_soap-seed0")
    assert {p.name for p in folder.iterdir()} == {
        *(".lock", "config.json", "metrics.csv", "checkpoint.pt"),
        *("fit.npz", "summary.json", "figure.png"),
    }
    assert str(folder / "figure.png") in output
    call("fit-sdf", "scan.ply", "-o", "mesh.stl", "--steps", "5", "--resume")
    assert '"steps": 5' in (folder / "summary.json").read_text()


def test_fit_sdf_options(scan_ply) -> None:
    output = call(
        "fit-sdf", "true.stl", "-o", "mesh.ply", "--sample", "150", "--sigma", "0.02", "--steps",
        "2", "--lr", "0.002", "--batch-size", "50", "--seed", "3", "--device", "cpu",
        "--optimizer", "snr_adam", "--gate-option", "z=2.5", "--network", "softplus",
        "--cooldown", "0.25",
        "--no-normals", "--network-option", "radius=0.5", "--out-run", "here", "--compare", "adam",
        "--resolution", "8", *TINY,
    )  # fmt: skip
    assert "sigma 0.02 (given)" in output and "adam" in output
    config = Path("here/config.json").read_text()
    for fragment in (
        *('"softplus"', '"radius": 0.5', '"hidden_features": 8', "0.02", '"lr": 0.002'),
        *('"batch_size": 50', '"seed": 3', '"snr_adam"', '"z": 2.5', '"normals": false'),
        '"cooldown": 0.25',
    ):
        assert fragment in config
    assert '"points": 150' in Path("here/summary.json").read_text()
    assert '"optimizer": "adam"' in Path("here-adam/config.json").read_text()
    assert Path("mesh.ply").exists() and Path("mesh-adam.ply").exists()


def test_fit_sdf_of_a_curve(fresh_directory) -> None:
    angle = np.linspace(0, 6, 60)
    np.savetxt("curve.csv", np.stack([np.cos(angle), np.sin(angle)], 1), delimiter=",")
    call("fit-sdf", "curve.csv", "-o", "curve.npz", "--steps", "2", "--resolution", "16", *TINY)
    with np.load("curve.npz") as contours:
        assert contours["contour_0"].shape[1] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent.ply", "-o", "mesh.ply"], "There is no file absent.ply"),
        (["text.ply", "-o", "mesh.ply"], "text.ply cannot be read as points"),
        (["few.xyz", "-o", "mesh.ply"], "3 points: a surface needs at least 10"),
        (["holes.xyz", "-o", "mesh.ply"], "1 of 20 points are NaN or infinite"),
        (["scan.ply", "-o", "mesh.png"], "mesh.png has no ending of a mesh's file"),
        (["scan.ply", "-o", "absent/mesh.ply"], "There is no folder absent"),
        (["scan.ply", "-o", "mesh.ply", "--sample", "50"], "no faces"),
        (["scan.ply", "-o", "mesh.ply", "--sigma", "-1"], "sigma must be"),
        (["scan.ply", "-o", "mesh.ply", "--network", "resnet"], "no network 'resnet'"),
        (["scan.ply", "-o", "mesh.ply", "--compare", "sgd"], "no optimizer 'sgd'"),
        (["scan.ply", "-o", "mesh.ply", "--reference", "absent.ply"], "no file absent.ply"),
        (["scan.ply", "-o", "mesh.ply", "--reference", "curve.csv"], "scan.ply has 3 dimensions"),
        (["scan.ply", "-o", "mesh.ply", "--resolution", "2"], "resolution must be"),
        (["scan.ply", "-o", "mesh.ply", "--resume"], "no run to resume"),
        (["scan.ply", "-o", "mesh.ply", "--gate-option", "form=wide"], "Invalid gate: 'wide'"),
    ],
)
def test_bad_scans_are_plain_errors(scan_ply, arguments: list[str], message: str) -> None:
    Path("text.ply").write_text("no cloud")
    np.savetxt("curve.csv", np.random.default_rng(0).normal(size=(20, 2)), delimiter=",")
    Path("few.xyz").write_text("0 0 0\n1 0 0\n0 1 0\n")
    Path("holes.xyz").write_text("nan 0 0\n" + "".join(f"{i} {i * i} 1\n" for i in range(19)))
    output = " ".join(call("fit-sdf", *arguments, "--steps", "1", code=1).split())
    assert message in output
    assert "Traceback" not in output
    assert not Path("runs").exists()


def test_options_are_numbers_and_words() -> None:
    given = ["z=2", "gate=hard", "discrepancy=false", "rise_steps=300", "sigma=None"]
    expected = {"z": 2, "gate": "hard", "discrepancy": False, "rise_steps": 300, "sigma": None}
    assert parse_pairs(given) == expected


def test_what_is_no_file_is_named_and_not_read() -> None:
    """A pipe would never end, a link to itself has no path."""
    os.mkfifo("pipe")
    Path("loop").symlink_to("loop")
    for name, message in (("pipe", "pipe is no file"), ("loop", "loop")):
        output = call("solve", "convection", "--data", name, "--out", "here", code=1)
        assert message in output and "unexpected" not in output
    assert "pipe is no file" in call("bench", "pipe", "--out", "rows.csv", code=1)
    assert not Path("here").exists()


def test_whatever_a_backend_says_of_a_device_is_one_line() -> None:
    output = call("solve", "convection", "--device", "hpu", code=1)
    assert "Error: The device 'hpu' cannot be used" in output


def test_too_many_twins_are_refused(fresh_directory) -> None:
    assert "1000" in call("memorization", "here", "--probes", "9" * 30, code=2)


def test_a_sigma_that_cannot_be_used_is_refused_before_there_is_a_folder(noisy_png) -> None:
    options = ("-o", "clean.png", "--steps", "1", "--sigma", "1e38", "--out-run", "here", *TINY)
    assert "cannot be used in torch.float32" in call("fit-image", "noisy.png", *options, code=1)
    rng = np.random.default_rng(0)
    np.savetxt("scan.xyz", rng.normal(size=(30, 3)))
    options = ("-o", "mesh.ply", *options[2:])
    assert "cannot be used in torch.float32" in call("fit-sdf", "scan.xyz", *options, code=1)
    assert not Path("here").exists()


def test_what_libraries_log_is_not_shown_and_a_warning_is_a_line(noisy_png) -> None:
    iio.imwrite("whole.tif", iio.imread("noisy.png"))
    Path("torn.tif").write_bytes(Path("whole.tif").read_bytes()[:150])
    result = runner.invoke(app, ["fit-image", "torn.tif", "-o", "clean.png"])
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 1 and result.stderr.startswith("Error: ")
    colors = np.random.default_rng(0).integers(0, 2**16, (3, 8, 8), dtype=np.uint16)
    tifffile.imwrite("planes.tif", colors, photometric="rgb", planarconfig="separate")
    result = runner.invoke(app, ["fit-image", "planes.tif", "-o", "clean.png"])
    assert result.stderr.splitlines()[0].startswith("Note: planes.tif says that its 3 planes")


def test_complex_points_are_refused() -> None:
    np.save("scan.npy", np.ones((20, 3)) * 1j)
    assert "not an array of numbers" in call("fit-sdf", "scan.npy", "-o", "mesh.ply", code=1)


def test_a_folder_whose_name_is_no_text() -> None:
    output = call("solve", "convection", "--iterations", "1", "--points", "8", "--out", "a\udcff")
    assert "a\\udcff/figure.png" in output


def test_what_cannot_be_used_is_refused_before_there_is_a_folder(scan_ply) -> None:
    output = call("solve", "convection", "--noise", "1e23", "--out", "here", code=1)
    assert "cannot be used in torch.float32" in output
    Path("mesh.ply").symlink_to("nowhere/mesh.ply")
    options = ("--steps", "1", "--out-run", "here", *TINY)
    assert "leads nowhere" in call("fit-sdf", "scan.ply", "-o", "mesh.ply", *options, code=1)
    np.save("huge.npy", np.random.default_rng(0).normal(size=(30, 3)) * 1e160)
    assert "rescale" in call("fit-sdf", "huge.npy", "-o", "mesh.stl", *options, code=1)
    options = (*options, "--network-option", "first_omega_0=(1,)")
    Path("image.npy").write_bytes(Path("huge.npy").read_bytes())
    assert "unexpected" not in call("fit-image", "image.npy", "-o", "c.npy", *options, code=1)
    assert not Path("here").exists()


@pytest.mark.parametrize("command", ["fit-image", "fit-field", "fit-sdf"])
@pytest.mark.parametrize("how", ["itself", "a link to it", "the compared one", "another input"])
def test_a_result_does_not_replace_what_it_is_made_of(fresh_directory, command, how) -> None:
    rng = np.random.default_rng(0)
    if command == "fit-image":
        data, other = Path("data-adam.png"), ["--mask", "mask.png"]
        iio.imwrite(data, rng.integers(0, 255, (16, 16)).astype(np.uint8))
        iio.imwrite("mask.png", np.zeros((16, 16), dtype=np.uint8))
    elif command == "fit-field":
        data, other = Path("data-adam.csv"), ["--at", "mask.csv"]
        table = "\n".join(f"{x},{x * x}" for x in rng.random(30))
        data.write_text(f"x,u\n{table}\n")
        Path("mask.csv").write_text("x\n0.5\n")
    else:
        data, other = Path("data-adam.ply"), ["--reference", "mask.ply"]
        ball = trimesh.creation.icosphere(2)
        trimesh.PointCloud(ball.vertices).export(data)
        ball.export("mask.ply")
    output, extra = str(data), []
    if how == "a link to it":
        output = f"link{data.suffix}"
        Path(output).symlink_to(data)
    elif how == "the compared one":
        output, extra = f"data{data.suffix}", ["--compare", "adam"]
    elif how == "another input":
        output, extra = other[1], other
    before = {path.name: path.read_bytes() for path in Path().iterdir()}
    said = call(command, str(data), "-o", output, *extra, "--steps", "1", code=1)
    assert "The result would replace" in said and "give another --output" in said
    assert {path.name: path.read_bytes() for path in Path().iterdir()} == before
