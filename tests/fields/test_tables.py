"""Samples and fields in files, and the command that reads and writes them."""

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from sciml_snr.cli import app
from sciml_snr.fields import FieldFit
from sciml_snr.fields.tables import check_field_file, read_points, read_samples, write_field

TINY = ("--steps", "3", "--network-option", "hidden_features=8")


@pytest.fixture(autouse=True)
def fresh_directory(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


@pytest.fixture
def samples(fresh_directory) -> str:
    rng = np.random.default_rng(0)
    x = rng.random((40, 2))
    write_field("samples.csv", x, np.sin(3 * x) + 0.1 * rng.normal(size=(40, 2)), "st", "uv")
    return "samples.csv"


def test_columns(fresh_directory) -> None:
    Path("a.csv").write_text("s,u,t,sigma_u,v,sigma\n1,2,3,0.1,5,0.2\n6,7,8,0.3,9,0.4\n")
    table = read_samples("a.csv", ["u", "v"])
    assert table.coordinates == ("s", "t") and table.outputs == ("u", "v")
    assert table.points.tolist() == [[1, 3], [6, 8]] and table.values.tolist() == [[2, 5], [7, 9]]
    assert table.sigma is not None and table.sigma.tolist() == [[0.1, 0.2], [0.3, 0.4]]
    Path("b.csv").write_text("t,u\n1,2\n3,4\n")
    last = read_samples("b.csv")
    assert (last.coordinates, last.outputs, last.sigma) == (("t",), ("u",), None)
    assert read_points("b.csv", ["u", "t"]).tolist() == [[2, 1], [4, 3]]


@pytest.mark.parametrize("sigma", [{}, {"sigma": np.array(0.1)}, {"sigma": np.full(5, 0.1)}])
def test_archives(fresh_directory, sigma) -> None:
    x, y = np.random.default_rng(0).random((2, 5))
    np.savez("a.npz", x=x, y=y, **sigma)
    table = read_samples("a.npz")
    assert table.points.shape == table.values.shape == (5, 1)
    assert (table.sigma is None) == (not sigma)
    write_field("b.npz", table.points, table.values, (), ())
    np.testing.assert_array_equal(read_samples("b.npz").values, table.values)


def test_what_is_written_is_read_again(samples) -> None:
    table = read_samples(samples, ["u", "v"])
    write_field("again.csv", table.points, table.values, table.coordinates, table.outputs)
    np.testing.assert_array_equal(read_samples("again.csv", ["u", "v"]).values, table.values)


@pytest.mark.parametrize(
    ("text", "outputs", "message"),
    [
        ("t,u\n", (), "has no samples"),
        ("u\n1\n", (), "needs columns of coordinates and of values"),
        ("t,u\n1,x\n", (), "line 2, column 'u'"),
        ("t,u\n1,2\n", ("w",), "has no column 'w'"),
        ("t,u,v,sigma_u\n1,2,3,4\n", ("u", "v"), "no 'sigma'"),
        ("t,u,sigma_w\n1,2,3\n", (), "no values of that name"),
    ],
)
def test_bad_tables_are_refused(fresh_directory, text, outputs, message) -> None:
    Path("a.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_samples("a.csv", outputs)


def test_bad_files_are_refused(fresh_directory) -> None:
    with pytest.raises(FileNotFoundError):
        read_samples("no.npz")
    np.savez("a.npz", x=np.ones(3))
    with pytest.raises(ValueError, match="no array 'y'"):
        read_samples("a.npz")
    np.savez("a.npz", x=np.ones(3), y=np.ones(3), sigma=np.ones(4))
    with pytest.raises(ValueError, match=r"sigma .* is not of y's shape"):
        read_samples("a.npz")
    Path("torn.npz").write_bytes(b"PK")
    with pytest.raises(ValueError, match="is damaged"):
        read_samples("torn.npz")
    with pytest.raises(ValueError, match="has no ending"):
        check_field_file("a.png")
    with pytest.raises(FileNotFoundError):
        check_field_file("no/a.csv")


def test_the_command_writes_the_fit_at_the_samples(samples) -> None:
    output = call("fit-field", samples, "-o", "field.csv", "--value", "u", "--value", "v", *TINY)
    assert "noise: sigma" in output and "local-linear residuals" in output
    folder = Path("runs/samples-snr_soap-seed0")
    fit = FieldFit.load(folder / "fit.npz")
    table = read_samples("field.csv", ["u", "v"])
    assert table.coordinates == ("s", "t")
    np.testing.assert_allclose(table.values, fit(table.points))
    assert "already holds a run" in call("fit-field", samples, "-o", "field.csv", code=1)
    output = call(
        "fit-field", samples, "-o", "field.csv", "--value", "u", "--value", "v", "--steps", "5",
        "--resume",
    )  # fmt: skip
    assert '"steps": 5' in (folder / "summary.json").read_text()
    assert "% of the noise" in call("memorization", str(folder))


def test_the_command_at_other_positions(samples) -> None:
    Path("at.csv").write_text("t,s,anything\n0.5,0.25,1\n")
    options = ("--value", "u", "--value", "v", "--sigma", "0.1", *TINY)
    call("fit-field", samples, "-o", "there.csv", *options, "--at", "at.csv", "--out-run", "a")
    assert read_samples("there.csv", ["u", "v"]).points.tolist() == [[0.25, 0.5]]
    call("fit-field", samples, "-o", "grid.npz", *options, "--grid", "4", "--out-run", "b")
    with np.load("grid.npz") as found:
        assert found["x"].shape == found["y"].shape == (16, 2)


def test_the_command_beside_adam(samples) -> None:
    options = ("--sigma", "0.1", "--compare", "adam", "--scale", "1,2", "--scale", "1")
    output = call("fit-field", samples, "-o", "f.csv", *options, *TINY)
    assert Path("f-adam.csv").exists() and "adam" in output


def test_the_command_takes_errors_of_the_file(fresh_directory) -> None:
    rng = np.random.default_rng(0)
    x = rng.random((30, 1))
    rows = np.hstack([x, np.sin(x), 0.1 + rng.random((30, 1))])
    np.savetxt("a.csv", rows, delimiter=",", header="t,u,sigma", comments="")
    assert "given per sample" in call("fit-field", "a.csv", "-o", "b.csv", *TINY)
    options = ("-o", "c.csv", "--sigma", "1", "--out-run", "x")
    assert "has errors of its own" in call("fit-field", "a.csv", *options, code=1)
    options = ("-o", "c.csv", "--at", "a.csv", "--grid", "3", "--out-run", "x")
    assert "--at or --grid, not both" in call("fit-field", "a.csv", *options, code=1)
