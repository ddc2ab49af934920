"""`run.memorization` and its command: the run again, with twins."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from sciml_snr import Twins, figures
from sciml_snr.cli import app
from sciml_snr.fields import fit_image, fit_sdf
from sciml_snr.measure.channel import Channel
from sciml_snr.runs.folder import read_arrays, write_arrays
from sciml_snr.runs.run import ProblemConfig, memorization, solve

CONVECTION = ProblemConfig("convection", iterations=20, points=32)


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    solve(CONVECTION, folder, progress=False)
    memorization(folder, progress=False)
    return folder


def test_the_run_is_repeated_to_the_bit(measured: Path) -> None:
    found = json.loads((measured / "memorization.json").read_text())
    with np.load(measured / "prediction.npz") as fields:
        misfit = ((fields["observed_fit"] - fields["observed_values"]) ** 2).mean()
        clean = fields["observed_clean"]
        risk = ((fields["observed_fit"] - clean) ** 2).mean()
    summary = json.loads((measured / "summary.json").read_text())
    assert found["final"]["iteration"] == 20
    assert found["final"]["misfit"] == pytest.approx(misfit, rel=1e-6)
    assert found["final"]["true_risk"] == pytest.approx(risk, rel=1e-5)
    assert found["final"]["true_share"] == pytest.approx(summary["memorized"], rel=1e-4)
    low, high = found["final"]["interval"]
    assert low < found["final"]["share"] < high
    assert 0 <= summary["memorized_estimate"] <= 1


def test_files(measured: Path) -> None:
    with open(measured / "memorization.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["iteration"]) for row in rows] == list(range(21))
    assert (measured / "memorization.png").stat().st_size > 10_000


def test_several_outputs_and_real_data(tmp_path) -> None:
    """Logarithms of two species, the truth unknown: JSON without NaN."""
    solve(ProblemConfig("lynx_hare", iterations=5), tmp_path / "run", progress=False)
    twins = memorization(tmp_path / "run", probes=2, progress=False)
    text = (tmp_path / "run" / "memorization.json").read_text()
    assert json.loads(text)["final"]["true_share"] is None
    bars = json.loads(text)["error_bars"]["unknowns"]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert {name: bar["value"] for name, bar in bars.items()} == pytest.approx(summary["unknowns"])
    assert len(twins.shifts) == 2
    with np.load(tmp_path / "run" / "prediction.npz") as fields:
        assert twins.shifts.shape[1] == fields["observed_values"].size


def test_the_command_says_how_much(measured: Path) -> None:
    result = CliRunner().invoke(app, ["memorization", str(measured)])
    assert result.exit_code == 0, result.output
    words = " ".join(result.output.split())
    assert "% of the noise (95 % interval" in words
    assert "The truth is known here" in words
    assert "memorization.png" in words


def test_fits_of_images_and_shapes(tmp_path) -> None:
    rng = np.random.default_rng(0)
    options = dict(steps=3, progress=False, network_options={"hidden_features": 8})
    fit_image(rng.normal(size=(8, 8)), sigma=0.1, out=tmp_path / "image", **options)
    angles = np.linspace(0, 6.2, 40)
    circle = np.stack([np.cos(angles), np.sin(angles)], 1)
    fit_sdf(circle + 0.02 * rng.normal(size=(40, 2)), sigma=0.02, out=tmp_path / "shape", **options)
    for name in ("image", "shape"):
        result = CliRunner().invoke(app, ["memorization", str(tmp_path / name)])
        assert result.exit_code == 0, result.output
        assert "(95 % interval" in " ".join(result.output.split())


def test_plain_errors(tmp_path, measured: Path) -> None:
    result = CliRunner().invoke(app, ["memorization", str(tmp_path)])
    assert result.exit_code == 1 and "no finished run" in result.output
    folder = tmp_path / "exact"
    solve(replace(CONVECTION, iterations=2, noise=0.0), folder, progress=False)
    with pytest.raises(ValueError, match="error is unknown or 0"):
        memorization(folder, progress=False)


def test_figure_shows_estimate_band_truth_and_best() -> None:
    rng = np.random.default_rng(0)
    clean = np.zeros(50)
    noise = rng.normal(size=50)
    twins = Twins(noise, 1.0, clean=clean)
    for step, share in enumerate((0.0, 0.1, 0.4)):
        twins.record(step, share * noise, [share * labels for labels in twins.labels])
    figure = figures.memorization_figure(twins.rows, np.full((4, 5), 0.3))
    left, right, where, _ = figure.axes
    np.testing.assert_allclose(left.lines[0].get_ydata(), [0, 0.1, 0.4], atol=1e-12)
    np.testing.assert_allclose(left.lines[1].get_ydata(), [0, 0.1, 0.4], atol=1e-12)
    risks = [row.risk for row in twins.rows]
    np.testing.assert_allclose(right.lines[0].get_ydata(), risks)
    np.testing.assert_allclose(right.lines[2].get_ydata(), [0, 0.01, 0.16], atol=1e-12)
    assert right.lines[3].get_xydata().tolist() == [[int(np.argmin(risks)), min(risks)]]
    assert where.images[0].get_array().max() == pytest.approx(0.3)


def test_spectrum_marks_the_channel() -> None:
    channel = Channel(torch.tensor([4.0, 1.0, 1e-9]).double(), torch.eye(3).double(), 2)
    figure = figures.spectrum_figure(channel, np.array([1.0, 2.0, 3.0]))
    spectrum, energy = figure.axes
    assert [line.get_label() for line in spectrum.lines[:2]] == [
        "signal channel, 2",
        "reservoir, 1",
    ]
    np.testing.assert_allclose(energy.lines[0].get_ydata(), [1, 4])
    np.testing.assert_allclose(energy.lines[1].get_ydata(), [9])
    assert len(figures.spectrum_figure(channel).axes) == 1


@pytest.mark.parametrize("change", [{"seed": 1}, {"snr_options": [["z"]]}, {"lr": 1}], ids=str)
def test_a_config_that_is_not_the_runs_is_refused_before_the_work(
    tmp_path, measured: Path, change: dict
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(measured, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ValueError, match=r"config\.json is not that of checkpoint\.pt"):
        memorization(folder, progress=False)


def test_a_prediction_that_is_none_is_refused_before_the_work(tmp_path, measured: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(measured, folder)
    arrays = read_arrays(folder / "prediction.npz")
    text = arrays["observed_values"].astype(str)
    write_arrays(folder / "prediction.npz", arrays | {"observed_values": text})
    before = (folder / "memorization.csv").read_bytes()
    with pytest.raises(ValueError, match=r"prediction\.npz is damaged \(observed_values is <U"):
        memorization(folder, progress=False)
    assert (folder / "memorization.csv").read_bytes() == before
