"""Point clouds as scanners and other programs write them, and points that are none."""

import json
from pathlib import Path

import numpy as np
import pytest
import trimesh
from typer.testing import CliRunner

from sciml_snr.cli import app
from sciml_snr.fields import fit_sdf, read_cloud
from sciml_snr.fields.tables import read_samples
from tests.fields.test_points import sphere

POINTS, NORMALS = sphere(40, 0.05)
RNG = np.random.default_rng(0)
COLORS, INTENSITY = RNG.integers(0, 256, (40, 3)), RNG.random((40, 1))
BOM = b"\xef\xbb\xbf"


def rows(*columns: np.ndarray, between: str = " ") -> str:
    table = np.hstack(columns).tolist()
    return "".join(between.join(f"{x:.17g}" for x in row) + "\n" for row in table)


TEXTS = {  # name, text, whether there are normals, what is said to be left out
    "intensity.xyz": (rows(POINTS, INTENSITY), False, "column 4 is left out"),
    "colors.xyz": (rows(POINTS, COLORS), False, "columns 4, 5, 6 are left out"),
    "all.asc": (rows(POINTS, INTENSITY, COLORS), False, "columns 4, 5, 6, 7 are"),
    "scan.pts": ("40\n" + rows(POINTS, INTENSITY, COLORS), False, "columns 4, 5, 6, 7 are"),
    "two.pts": (
        "20\n" + rows(POINTS[:20], INTENSITY[:20]) + "20\n" + rows(POINTS[20:], INTENSITY[20:]),
        False,
        "column 4 is",
    ),
    "normals.asc": (rows(POINTS, NORMALS), True, None),
    "late.txt": (rows(POINTS, COLORS, NORMALS), True, "columns 4, 5, 6 are left out"),
    "header.csv": (
        "x,y,z,intensity\n" + rows(POINTS, INTENSITY, between=","),
        False,
        "column intensity is left out",
    ),
    "names.csv": (
        "normal_x,normal_y,normal_z,X,Y,Z\n" + rows(NORMALS, POINTS, between=","),
        True,
        None,
    ),
    "long.txt": (
        "x [m];y [m];z [m];label;nx;ny;nz\n" + rows(POINTS, INTENSITY, 3 * NORMALS, between=";"),
        True,
        "column label is",
    ),
    "cloudcompare.asc": (
        "//X Y Z R G B Nx Ny Nz\n" + rows(POINTS, COLORS, NORMALS),
        True,
        "columns R, G, B are",
    ),
    "hash.xyz": ("# made in May\n# x y z i\n" + rows(POINTS, INTENSITY), False, "column i is"),
    "quoted.csv": ('"x","y","z"\n' + rows(POINTS, between=","), False, None),
    "order.csv": ("z,y,x\n" + rows(POINTS[:, ::-1], between=","), False, None),
    "commas.csv": (rows(POINTS, between=",").replace("\n", ",\n"), False, None),
    "ends.csv": ("x,y,z,\n" + rows(POINTS, between=",").replace("\n", ",\n"), False, None),
    "gaps.csv": (
        "x,y,z,label\n" + rows(POINTS, between=",").replace("\n", ",\n"),
        False,
        "column label is",
    ),
    "other.csv": ("a,b,c\n" + rows(POINTS, between=","), False, "a, b, c are taken for x, y, z"),
    "title.xyz": ("scan 3 of May\n" + rows(POINTS), False, "'scan 3 of May', is taken for a title"),
    "map.csv": ("id,easting,northing,height\n" + rows(INTENSITY, POINTS, between=","), False, "id"),
}


@pytest.mark.parametrize("mark", [b"", BOM])
@pytest.mark.parametrize("name", TEXTS)
def test_texts(tmp_path: Path, name: str, mark: bytes, recwarn) -> None:
    """With a byte order mark, too: it is no part of the first point."""
    text, has_normals, said = TEXTS[name]
    (tmp_path / name).write_bytes(mark + text.encode())
    cloud = read_cloud(tmp_path / name)
    np.testing.assert_array_equal(cloud.points, POINTS)
    assert (cloud.normals is not None) == has_normals
    if has_normals:
        np.testing.assert_allclose(cloud.normals, NORMALS)
    messages = [str(warning.message) for warning in recwarn]
    assert len(messages) == (said is not None)
    assert said is None or said in messages[0]


@pytest.mark.parametrize("data", ["ascii", "binary"])
@pytest.mark.filterwarnings("ignore:.*left out")
def test_pcd(tmp_path: Path, data: str) -> None:
    names = "x y z rgb normal_x normal_y normal_z histogram"
    header = (
        f"# .PCD v0.7\nVERSION 0.7\nFIELDS {names}\nSIZE 8 8 8 4 4 4 4 4\nTYPE F F F U F F F F\n"
        "COUNT 1 1 1 1 1 1 1 2\nWIDTH 40\nHEIGHT 1\nVIEWPOINT 0 0 0 1 0 0 0\nPOINTS 40\n"
        f"DATA {data}\n"
    ).encode()
    table = (POINTS, COLORS[:, :1], NORMALS, INTENSITY, INTENSITY)
    if data == "ascii":
        content = rows(*table).encode()
    else:
        kind = [("p", "<f8", 3), ("c", "<u4"), ("n", "<f4", 3), ("h", "<f4", 2)]
        packed = np.zeros(40, kind)
        packed["p"], packed["c"], packed["n"] = POINTS, COLORS[:, 0], NORMALS
        content = packed.tobytes()
    (tmp_path / "a.pcd").write_bytes(header + content)
    cloud = read_cloud(tmp_path / "a.pcd")
    np.testing.assert_array_equal(cloud.points, POINTS)
    assert cloud.normals == pytest.approx(NORMALS, abs=1e-6)
    (tmp_path / "a.pcd").write_bytes(header.replace(data.encode(), b"binary_compressed"))
    with pytest.raises(ValueError, match="is compressed: save it as ASCII"):
        read_cloud(tmp_path / "a.pcd")


def test_las(tmp_path: Path) -> None:
    laspy = pytest.importorskip("laspy")
    header = laspy.LasHeader(point_format=3, version="1.2")
    header.offsets, header.scales = [5e5, 4.6e6, 0.0], [1e-4] * 3
    las = laspy.LasData(header)
    points = np.round(POINTS, 4) + np.array([5e5, 4.6e6, 100])
    las.x, las.y, las.z = points.T
    las.write(tmp_path / "a.las")
    cloud = read_cloud(tmp_path / "a.las")
    np.testing.assert_allclose(cloud.points, points, atol=1e-6)
    assert cloud.normals is None


def test_las_without_laspy_names_the_cure(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "laspy", None)
    (tmp_path / "a.las").write_bytes(b"LASF")
    with pytest.raises(ValueError, match=r'needs laspy: pip install "sciml-snr\[files\]"'):
        read_cloud(tmp_path / "a.las")


def test_marks_before_meshes(tmp_path: Path) -> None:
    """trimesh takes one for a part of the first word, and leaves its line out."""
    lines = ["v {!r} {!r} {!r}".format(*p) for p in POINTS.tolist()]
    (tmp_path / "a.obj").write_bytes(BOM + "\n".join(lines).encode())
    np.testing.assert_array_equal(read_cloud(tmp_path / "a.obj").points, POINTS)
    mesh = trimesh.creation.icosphere(1)
    for name in ("m.obj", "m.off"):
        text = mesh.export(file_type=name[2:])
        (tmp_path / name).write_bytes(BOM + text.encode())
        assert len(read_cloud(tmp_path / name).points) == len(mesh.vertices)


def test_normals_of_ply_by_other_names(tmp_path: Path) -> None:
    names = ["x", "y", "z", "normal_x", "normal_y", "normal_z"]
    header = ["ply", "format ascii 1.0", "element vertex 40"]
    header += [f"property double {name}" for name in names] + ["end_header\n"]
    (tmp_path / "a.ply").write_text("\n".join(header) + rows(POINTS, NORMALS))
    cloud = read_cloud(tmp_path / "a.ply")
    assert cloud.points == pytest.approx(POINTS) and cloud.normals == pytest.approx(NORMALS)


# Points that are none ------------------------------------------------------------------------


def spoilt() -> tuple[np.ndarray, np.ndarray]:
    points, normals = POINTS.copy(), NORMALS.copy()
    points[3, 1], points[7] = np.nan, np.inf
    normals[11], normals[12, 0] = 0, np.nan
    return points, normals


def test_bad_points_are_left_out_when_asked() -> None:
    points, normals = spoilt()
    with pytest.raises(ValueError, match=r"2 of 40 points are NaN.*drop_bad=True, --drop-bad"):
        read_cloud(points, normals)
    cloud = read_cloud(points, normals, drop_bad=True)
    assert cloud.dropped == 4 and len(cloud.points) == 36
    np.testing.assert_array_equal(cloud.points, np.delete(POINTS, [3, 7, 11, 12], axis=0))
    masked = np.ma.masked_array(POINTS, np.isnan(points))
    with pytest.raises(ValueError, match="1 of 40 points are NaN"):
        read_cloud(masked)
    assert read_cloud(masked, drop_bad=True).dropped == 1
    with pytest.raises(ValueError, match="0 points"):
        read_cloud(points * np.nan, drop_bad=True)


def test_normals_that_are_of_no_use_are_estimated_anew(tmp_path: Path) -> None:
    points, normals = sphere(200)
    normals[5] = 0
    np.savez(tmp_path / "a.npz", points=points, normals=normals)
    with pytest.raises(ValueError, match=r"1 of 200 normals have length 0.*--estimate-normals"):
        read_cloud(tmp_path / "a.npz")
    options = dict(network_options={"hidden_features": 8}, steps=1, progress=False)
    found = fit_sdf(tmp_path / "a.npz", "estimate", **options).cloud
    assert len(found.points) == 200 and found.normals is not None
    assert (np.einsum("ij,ij->i", found.normals, points) > 0.9).all()


def test_the_command_leaves_bad_points_out(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    points, normals = sphere(300, 0.02)
    points[4], normals[9] = np.nan, 0
    Path("a.xyz").write_text(rows(points, normals))
    options = ["--steps", "1", "--network-option", "hidden_features=8", "--resolution", "16"]
    call = ["fit-sdf", "a.xyz", "-o", "a.ply", *options]
    refused = CliRunner().invoke(app, call)
    assert refused.exit_code == 1 and "--drop-bad" in refused.output
    assert not Path("runs").exists()
    done = CliRunner().invoke(app, [*call, "--drop-bad"])
    assert done.exit_code == 0 and "2 points are no numbers: left out" in done.output
    summary = json.loads(next(Path("runs").glob("*/summary.json")).read_text())
    assert (summary["points"], summary["dropped_points"]) == (298, 2)
    again = [*call, "--estimate-normals", "--drop-bad", "--out-run", "other"]
    assert "1 points are no numbers" in CliRunner().invoke(app, again).output


def test_a_table_of_samples_without_a_header_loses_none(tmp_path: Path) -> None:
    """Its first sample was taken for the columns' names."""
    (tmp_path / "a.csv").write_text("0.1,2\n0.2,3\n0.3,4\n")
    with pytest.raises(ValueError, match=r"a\.csv has no header: its first line is 0\.1,2"):
        read_samples(tmp_path / "a.csv")


def test_a_table_of_samples_with_a_mark_and_gaps(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    t = np.linspace(0, 1, 30)
    body = rows(t[:, None], np.sin(t)[:, None], between=",")
    Path("a.csv").write_bytes(BOM + b"t,u\n" + body.encode() + b"0.5,\n0.6,nan\n")
    options = ["--steps", "1", "--sigma", "0.1", "--network-option", "hidden_features=8"]
    call = ["fit-field", "a.csv", "-o", "b.csv", *options]
    refused = CliRunner().invoke(app, call)
    assert refused.exit_code == 1 and "line 32" in refused.output
    done = CliRunner().invoke(app, [*call, "--drop-bad"])
    assert done.exit_code == 0 and "2 samples are not complete: left out" in done.output
    assert len(Path("b.csv").read_text().splitlines()) == 31
