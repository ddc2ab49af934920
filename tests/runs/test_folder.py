"""Run folders: written whole or not at all, locked, checked against damage, never another's."""

import errno
import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from sciml_snr.runs import folder as folders
from sciml_snr.runs.folder import (
    FORMAT,
    RunFolder,
    append_row,
    check_can_write,
    cut_torn_row,
    lock,
    read_arrays,
    read_json,
    rewrite_rows,
    sealed,
    unsealed,
    write_arrays,
    write_atomically,
    write_state,
)

CONFIG = {"lr": 0.1, "iterations": 5}
STATE = {"step": 3, "weights": torch.arange(4.0)}


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A folder with a run."""
    found = RunFolder(tmp_path / "run", "problem")
    with found.locked():
        found.begin(CONFIG)
        found.save(CONFIG, STATE)
    return found


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}


# What is written -----------------------------------------------------------------------------


def test_a_run_is_read_as_it_was_written(run: RunFolder) -> None:
    config, state = run.load()
    assert config == CONFIG == run.settings()
    assert state["step"] == 3 and torch.equal(state["weights"], STATE["weights"])
    assert run.config() == {**CONFIG, "format": FORMAT, "kind": "problem"}


def test_sealed_files_are_still_those_of_torch_and_numpy(tmp_path: Path) -> None:
    write_state(tmp_path / "a.pt", STATE)
    assert torch.equal(
        torch.load(tmp_path / "a.pt", weights_only=True)["weights"], torch.arange(4.0)
    )
    write_arrays(tmp_path / "a.npz", {"x": np.arange(3)})
    with np.load(tmp_path / "a.npz") as archive:
        np.testing.assert_array_equal(archive["x"], np.arange(3))
    np.testing.assert_array_equal(read_arrays(tmp_path / "a.npz")["x"], np.arange(3))
    assert zipfile.ZipFile(tmp_path / "a.npz").testzip() is None


def test_every_flipped_bit_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    write_arrays(path, {"x": np.arange(3)})
    good = path.read_bytes()
    for place in range(len(good)):
        bad = bytearray(good)
        bad[place] ^= 1 << (place % 8)
        path.write_bytes(bad)
        with pytest.raises(ValueError, match=r"a\.npz is"):
            unsealed(path)
    path.write_bytes(good)
    assert unsealed(path) == good


def test_only_archives_are_sealed() -> None:
    with pytest.raises(ValueError, match="no zip archive"):
        sealed(b"text")


def test_what_is_not_finite_is_null_in_json(run: RunFolder) -> None:
    run.write_json("summary.json", {"a": float("nan"), "b": [1.0, float("inf")], "c": {"d": 2}})
    assert json.loads((run.path / "summary.json").read_text()) == {
        "a": None,
        "b": [1.0, None],
        "c": {"d": 2},
    }


def test_figures_and_rows(run: RunFolder) -> None:
    run.write_figure("figure.png", Figure())
    assert (run.path / "figure.png").read_bytes().startswith(b"\x89PNG")
    run.append_row({"a": 1, "b": "x,y"})
    run.append_row({"a": 2, "b": ""})
    assert (run.path / "metrics.csv").read_text().splitlines() == ["a,b", '1,"x,y"', "2,"]
    run.rewrite_rows([{"a": 3}])
    assert (run.path / "metrics.csv").read_text().splitlines() == ["a", "3"]
    run.rewrite_rows([])
    assert not (run.path / "metrics.csv").exists()


def test_rows_keep_to_the_header(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    append_row(path, {"a": 1, "b": 2})
    append_row(path, {"b": 3})
    assert path.read_text().splitlines() == ["a,b", "1,2", ",3"]
    with pytest.raises(ValueError, match=r"a\.csv has no column 'c'"):
        append_row(path, {"a": 1, "c": 2})
    assert path.read_text().splitlines() == ["a,b", "1,2", ",3"]


def test_a_torn_row_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    append_row(path, {"a": 1, "b": 2})
    whole = path.read_bytes()
    path.write_bytes(whole + b"3,")
    cut_torn_row(path)
    assert path.read_bytes() == whole
    cut_torn_row(path)
    assert path.read_bytes() == whole
    cut_torn_row(tmp_path / "absent.csv")
    path.write_bytes(b"a,b")  # a header without its end
    cut_torn_row(path)
    append_row(path, {"a": 1, "b": 2})
    assert path.read_bytes() == whole


# What cannot be written ----------------------------------------------------------------------


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_leaves_the_checkpoint_before(run: RunFolder, monkeypatch) -> None:
    before = contents(run.path)
    monkeypatch.setattr(folders.os, "fsync", full)
    with pytest.raises(
        OSError, match=r"Cannot write .*checkpoint\.pt: No space.* is kept"
    ) as caught:
        run.save(CONFIG, {**STATE, "step": 4})
    assert caught.value.__cause__ is None
    assert contents(run.path) == before
    monkeypatch.undo()
    assert run.load()[1]["step"] == 3


@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_a_write_that_is_cut_short_changes_nothing(tmp_path: Path, monkeypatch, call: str) -> None:
    path = tmp_path / "a.txt"
    write_atomically(path, b"before")
    monkeypatch.setattr(folders.os, call, full)
    with pytest.raises(OSError, match="Cannot write"):
        write_atomically(path, b"after")
    assert contents(tmp_path) == {"a.txt": b"before"}


def test_what_a_killed_process_left_half_written_goes(run: RunFolder) -> None:
    (run.path / ".checkpoint.pt.1-abc.partial").write_bytes(b"half")
    with run.locked():
        assert not list(run.path.glob(".*.partial"))


def test_check_can_write(tmp_path: Path) -> None:
    check_can_write(tmp_path / "new.png")
    assert not list(tmp_path.iterdir())
    with pytest.raises(FileNotFoundError, match="no folder"):
        check_can_write(tmp_path / "absent" / "new.png")
    with pytest.raises(ValueError, match="not a file"):
        check_can_write(tmp_path)
    with pytest.raises(OSError, match="Cannot write"):
        check_can_write(Path("/proc/new.png"))


# Whose folder it is --------------------------------------------------------------------------


def test_a_run_is_not_begun_over_another(run: RunFolder) -> None:
    before = contents(run.path)
    for refused in (run.check_free, lambda: run.begin(CONFIG)):
        with pytest.raises(FileExistsError, match="already holds a run"):
            refused()
    assert contents(run.path) == before


def test_no_checkpoint_is_no_run(run: RunFolder) -> None:
    """A kill or a full disk in the first moments: the run can be begun again."""
    (run.path / "checkpoint.pt").unlink()
    run.append_row({"a": 1})
    assert not run.holds_run
    with pytest.raises(FileNotFoundError, match="no run to resume"):
        run.load()
    run.begin({**CONFIG, "lr": 0.2})
    assert run.settings()["lr"] == 0.2 and not (run.path / "metrics.csv").exists()


@pytest.mark.parametrize("text", ["{}", "[]", '{"lr": 1}', "mine", "", '{"format": 1}'])
def test_a_foreign_config_is_never_overwritten(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(FileExistsError, match=r"config\.json is not of a run of sciml-snr"):
        RunFolder(tmp_path, "problem").begin(CONFIG)
    assert (tmp_path / "config.json").read_text() == text


@pytest.mark.parametrize("name", ["metrics.csv", "figure.png", "fit.npz", "memorization.json"])
def test_nor_is_any_file_that_has_a_name_of_ours(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    (tmp_path / "notes.txt").write_text("these do not matter")
    with pytest.raises(FileExistsError, match=name):
        RunFolder(tmp_path, "problem").check_free()


@pytest.mark.parametrize("name", folders.FILES)
def test_links_and_folders_are_not_written_through(tmp_path: Path, name: str) -> None:
    target = tmp_path / "elsewhere"
    target.write_text("theirs")
    run = tmp_path / "run"
    run.mkdir()
    (run / name).symlink_to(target)
    with pytest.raises(ValueError, match=f"{name} is a link to .*elsewhere"):
        RunFolder(run, "problem")
    (run / name).unlink()
    (run / name).mkdir()
    with pytest.raises(ValueError, match=f"{name} is not a file"):
        RunFolder(run, "problem")
    assert target.read_text() == "theirs"


def test_a_link_that_comes_later_is_not_followed_either(run: RunFolder, tmp_path: Path) -> None:
    target = tmp_path / "elsewhere"
    target.write_text("theirs")
    (run.path / "summary.json").symlink_to(target)
    (run.path / "metrics.csv").symlink_to(target)
    for write in (lambda: run.write_json("summary.json", {}), lambda: run.append_row({"a": 1})):
        with pytest.raises(ValueError, match="is a link"):
            write()
    assert target.read_text() == "theirs"


def test_a_file_in_the_folders_place(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("mine")
    with pytest.raises(NotADirectoryError, match="no folder"):
        RunFolder(tmp_path / "run", "problem")


# Who is in it --------------------------------------------------------------------------------

HOLD = """
import sys
from sciml_snr.runs.folder import RunFolder
with RunFolder(sys.argv[1], "problem").locked():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_is_refused_and_told_who_the_first_is(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as first:
        assert first.stdout is not None and first.stdout.readline() == "held\n"
        run = RunFolder(tmp_path, "problem")
        with (
            pytest.raises(BlockingIOError, match=f"in use by process {first.pid} on"),
            run.locked(),
        ):
            pass
        first.kill()  # kill -9 frees the folder
        first.wait()
    with run.locked():
        pass


def test_nor_is_it_taken_twice_in_one_process(tmp_path: Path) -> None:
    first, second = (lock(tmp_path / ".lock", "it") for _ in range(2))
    with first, pytest.raises(BlockingIOError, match=f"process {os.getpid()}"), second:
        pass
    with lock(tmp_path / ".lock", "it"):
        pass
    assert [p.name for p in tmp_path.iterdir()] == [".lock"]


# What is damaged -----------------------------------------------------------------------------


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flipped(data: bytes) -> bytes:
    bad = bytearray(data)
    bad[len(bad) // 2] ^= 4
    return bytes(bad)


def other_archive(_: bytes) -> bytes:
    buffer = io.BytesIO()
    torch.save({"config": "{}"}, buffer)
    return sealed(buffer.getvalue())


def of_another_version(_: bytes) -> bytes:
    buffer = io.BytesIO()
    config = {**CONFIG, "format": FORMAT + 1, "kind": "problem"}
    torch.save({"config": json.dumps(config), "state": STATE}, buffer)
    return sealed(buffer.getvalue())


def without_a_checksum(_: bytes) -> bytes:
    buffer = io.BytesIO()
    torch.save(STATE, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "damage",
    [cut, flipped, other_archive, of_another_version, without_a_checksum, lambda _: b""],
    ids=lambda damage: damage.__name__,
)
def test_a_damaged_checkpoint_is_refused_and_left(run: RunFolder, damage) -> None:
    path = run.path / "checkpoint.pt"
    path.write_bytes(damage(path.read_bytes()))
    before = contents(run.path)
    with pytest.raises(ValueError, match=r"checkpoint\.pt is"):
        run.load()
    assert contents(run.path) == before


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{}",
        "",
        "{",
        '{"lr": 0.1}',
        '{"lr": 0.1, "iterations": 5, "format": 1, "kind": "sdf"}',
        '{"lr": 0.2, "iterations": 5, "format": 1, "kind": "problem"}',
        '{"iterations": 5, "format": 1, "kind": "problem"}',
    ],
)
def test_a_config_that_is_not_the_checkpoints_is_refused(run: RunFolder, text: str) -> None:
    (run.path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json"):
        run.load()
    (run.path / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        run.load()


def test_a_kill_between_checkpoint_and_config_is_no_damage(run: RunFolder) -> None:
    """A resumed run with a larger budget writes the checkpoint first."""
    run.save({**CONFIG, "iterations": 9}, STATE)
    assert run.load()[0]["iterations"] == 9


def test_read_json_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with pytest.raises(FileNotFoundError, match=r"a\.json"):
        read_json(path)
    for data in (b"\xff\xfe", b"[1]", b"nope"):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"a\.json is damaged"):
            read_json(path)


def test_rows_of_different_columns_share_a_header(tmp_path: Path) -> None:
    rewrite_rows(tmp_path / "a.csv", [{"a": 1}, {"a": 2, "b": 3}])
    assert (tmp_path / "a.csv").read_text().splitlines() == ["a,b", "1,", "2,3"]
