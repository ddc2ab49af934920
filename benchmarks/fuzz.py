"""Nasty arguments and damaged files for every command, in this process.

    python -m benchmarks.fuzz [CASES] [FIRST]      10,000 from 0 on, unless given
    python -m benchmarks.fuzz --only SEED          one, with all that it says

A case follows from its seed alone. It fails if there is a traceback, another exit code than 0, 1, 2
or 130, an error of more than one line, an error that no message was written for, a hang, a lack of
memory, or if a command that is refused has changed a file.
"""

from __future__ import annotations

import copy
import io
import json
import os
import random
import resource
import shutil
import signal
import stat
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import deepxde as dde
import imageio.v3 as iio
import numpy as np
import torch
import trimesh
import typer
from matplotlib.figure import Figure
from typer.testing import CliRunner

from sciml_snr.cli import app
from sciml_snr.gate import Gate
from sciml_snr.runs import run as _run  # noqa: F401 (all is imported before the clock starts)
from sciml_snr.runs.folder import FILES, sealed

SECONDS = 20
"""A case that takes longer hangs."""

MEMORY = 6 << 30
"""Bytes beyond those of the start; more is a failure."""

LONGEST = 3
"""Iterations in a run."""

CODES = (0, 1, 2, 130)
TINY = (("--network-option", "hidden_features=4"), ("--network-option", "hidden_layers=1"))

LATER = (
    *("learning rate", "Give it more steps", "is no longer finite", "is not finite at iteration"),
    "There is not enough memory",
)
"""Errors of a training that was begun: these may leave files behind."""

# --- A folder with one of everything -----------------------------------------------------------


class World:
    """A folder with data and runs; what a case changes in it is put back.

    Args:
        root: an empty folder. Commands run in ``root/here``, so that ``..`` is ours, too.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.here = root / "here"
        self.here.mkdir()
        self.runner = CliRunner()
        with inside(self.here), small_figures():
            self._make_files()
            self._make_runs()
        self.found = {path: self._entry(path) for path in self._paths()}
        self.marks = self.current_marks()

    def data(self, name: str) -> bytes:
        """What a file held at the start."""
        found = self.found[f"here/{name}"]
        assert isinstance(found, bytes)
        return found

    def call(self, *arguments: str) -> Any:
        """Run a command."""
        return self.runner.invoke(app, list(arguments))

    def put(self, files: Mapping[str, bytes | str]) -> None:
        """Replace files: by bytes, a link ("-> target"), a "folder", a "pipe"; or "remove" them."""
        for name, value in files.items():
            self._write(self.here / name, value)

    def changes(self, before: Mapping[str, Any], held: Mapping[str, bytes | str]) -> list[str]:
        """Paths that are not as before; locks may come and go.

        Args:
            before: the marks of then.
            held: what the case had put there.
        """
        after, found = self.current_marks(), []
        expected = {**self.found, **{f"here/{name}": value for name, value in held.items()}}
        for path in sorted({*before, *after}):
            if before.get(path) == after.get(path) or "/.lock" in path or ".csv.lock" in path:
                continue
            if path in after and path in before and self._entry(path) == expected.get(path):
                continue
            found.append(path)
        return found

    def restore(self) -> None:
        """All as at the start."""
        after = self.current_marks()
        touched = [p for p in {*self.marks, *after} if self.marks.get(p) != after.get(p)]
        for path in sorted(touched, key=len):
            self._write(self.root / path, self.found.get(path, "remove"))
        if touched:
            self.marks = self.current_marks()

    def _write(self, path: Path, value: bytes | str) -> None:
        if path.is_symlink() or (path.exists() and not path.is_dir()):
            path.unlink()
        elif path.is_dir() and value != "folder":
            shutil.rmtree(path)
        if value == "remove":
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(value, bytes):
            path.write_bytes(value)
        elif value == "folder":
            path.mkdir(exist_ok=True)
        elif value == "pipe":
            os.mkfifo(path)
        else:
            path.symlink_to(value.removeprefix("-> "))

    def _paths(self) -> Iterator[str]:
        for folder, folders, files in os.walk(self.root):
            for name in (*folders, *files):
                yield os.path.relpath(os.path.join(folder, name), self.root)

    def current_marks(self) -> dict[str, tuple[int, ...]]:
        found = {}
        for path in self._paths():
            s = os.lstat(self.root / path)
            is_folder = stat.S_ISDIR(s.st_mode)
            found[path] = (s.st_mode,) if is_folder else (s.st_mtime_ns, s.st_size, s.st_ino)
        return found

    def _entry(self, name: str) -> bytes | str:
        path = self.root / name
        if path.is_symlink():
            return f"-> {os.readlink(path)}"
        if path.is_dir():
            return "folder"
        return path.read_bytes() if path.is_file() else "pipe"

    def _make_files(self) -> None:
        rng = np.random.default_rng(0)
        x, y = np.meshgrid(np.linspace(0, 3, 12), np.linspace(0, 3, 10))
        pixels = 120 + 60 * np.sin(x + y) + 15 * rng.normal(size=x.shape)
        for name in ("im.png", "im.tif"):
            iio.imwrite(name, pixels.astype(np.uint8))
        iio.imwrite("im.jpg", np.stack([pixels] * 3, -1).astype(np.uint8))
        np.save("im.npy", pixels)
        iio.imwrite("mask.png", (pixels > 190).astype(np.uint8) * 255)
        points = rng.normal(size=(40, 3))
        points /= np.linalg.norm(points, axis=1, keepdims=True)
        noisy = points + 0.03 * rng.normal(size=points.shape)
        np.savetxt("scan.xyz", noisy, fmt="%.5f")
        np.savetxt("scan.csv", noisy, delimiter=",", fmt="%.5f", header="x,y,z", comments="")
        np.savetxt("curve.csv", noisy[:, :2], delimiter=",", fmt="%.5f")
        np.savez("scan.npz", points=noisy, normals=points)
        np.save("scan.npy", noisy)
        trimesh.PointCloud(noisy).export("scan.ply")
        for kind in ("stl", "off", "obj"):
            trimesh.creation.icosphere(1).export(f"ball.{kind}")
        rows = "".join(f"{0.5 * i},{0.01 * i},{0.1 * i},0.1\n" for i in range(6))
        Path("own.csv").write_text(f"x,t,u,sigma\n{rows}")
        places = rng.uniform(0, 2, (20, 2))
        values = np.sin(places.sum(axis=1)) + 0.1 * rng.normal(size=20)
        table = np.column_stack([places, values, np.full(20, 0.1)])
        np.savetxt(
            "samples.csv", table, delimiter=",", fmt="%.4f", header="x,y,u,sigma", comments=""
        )
        np.savez("samples.npz", x=places, y=values)
        Path("plan.toml").write_text(
            "seeds = [0, 1]\ntuning_seeds = [0]\nlrs = [1e-3, 1e-2]\niterations = 1\nwidth = 4\n\n"
            "[problems.convection]\noptions = { noise = 0.5, points = 8 }\n\n"
            '[methods.adam]\n[methods."hard gate"]\noptimizer = "snr_adam"\n'
            'options = { gate = "hard" }\nlrs = [1e-2]\n'
        )
        Path("folder").mkdir()
        for name, target in (("loop", "loop"), ("dangling", "nowhere"), ("link.csv", "own.csv")):
            Path(name).symlink_to(target)
        os.mkfifo("pipe")
        Path("folder/foreign").mkdir()
        Path("folder/foreign/config.json").write_text('{"mine": 1}')

    def _make_runs(self) -> None:
        tiny = [part for pair in TINY for part in pair]
        for arguments in (
            ("solve", "convection", "--iterations", "1", "--points", "8", "--out", "runs/problem"),
            ("compare", "convection", *_tail("compare"), "--out", "runs/comparison"),
            (
                "fit-image",
                "im.png",
                "-o",
                "c.png",
                "--steps",
                "2",
                *tiny,
                "--out-run",
                "runs/image",
            ),
            (
                *(
                    "fit-image",
                    "im.png",
                    "-o",
                    "c.png",
                    "--steps",
                    "2",
                    "--out-run",
                    "runs/patient",
                ),
                *("--optimizer", "adam", "--patience", "5", "--lr", "1e-4", *tiny),
            ),
            (
                *("fit-sdf", "scan.xyz", "-o", "c.ply", "--steps", "2", "--out-run", "runs/shape"),
                *("--resolution", "8", *tiny),
            ),
            (
                *("fit-field", "samples.csv", "-o", "c.csv", "--steps", "2", *tiny),
                *("--out-run", "runs/field"),
            ),
            ("bench", "plan.toml", "--out", "results.csv", "--jobs", "1"),
        ):
            done = self.call(*arguments)
            assert done.exit_code == 0, done.output
        # As a kill leaves them.
        for source, name in (("problem", "stopped"), ("image", "half")):
            shutil.copytree(f"runs/{source}", f"runs/{name}")
            for file in ("summary.json", "prediction.npz", "fit.npz", "figure.png"):
                Path(f"runs/{name}/{file}").unlink(missing_ok=True)


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    """The working directory, for a while."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@contextmanager
def short_training() -> Iterator[None]:
    """A valid command that was given no budget trains for a moment: its training is not tried."""

    def train(self: Any, iterations: int | None = None, **options: Any) -> Any:
        if iterations is not None:
            options["iterations"] = min(iterations, LONGEST)
        return before(self, **options)

    before, dde.Model.train = dde.Model.train, train
    try:
        yield
    finally:
        dde.Model.train = before


@contextmanager
def small_figures() -> Iterator[None]:
    """Figures are made and not drawn, which would take most of the time."""

    def savefig(_: Figure, file: Any, **__: Any) -> None:
        if isinstance(file, (str, Path)):
            Path(file).write_bytes(b"figure")
        else:
            file.write(b"figure")

    before, Figure.savefig = Figure.savefig, savefig  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        Figure.savefig = before  # type: ignore[method-assign]


# --- Arguments ---------------------------------------------------------------------------------

WORDS = (
    *("", " ", "x", "None", "true", "[]", "[bold]x[/]", "{x}", "%s", "\\", "a=b", "-", "--", "-x"),
    *("☃", "é", "\u202e", "\x1b[31m", "a\nb", "\udcff", "0", "1", "-1", "nan", "1e400", "x" * 5000),
)
"""For options of every kind."""

NUMBERS = (
    *("0", "-0", "-1", "1", "2", "1.5", "nan", "inf", "-inf", "1e-300", "1e300", "1e400", "0x10"),
    *("1_0", "1,5", "٢", " 1 ", "+1", "1e3", "99999999999999999999999", "-99999999999999999999"),
    *("true", "None", "", "x", "1" * 5000),
)
WHOLE = tuple(n for n in NUMBERS if n != "1e3")

PATHS = (
    *("", ".", "..", "./", "absent", "absent/x.png", "folder", "folder/", "folder/foreign", "loop"),
    *("loop/x.png", "dangling", "link.csv", "pipe", "/dev/null", "/dev/zero", "/proc/self/x.png"),
    *(
        "/proc/self/mem",
        "x" * 300 + ".png",
        "☃.png",
        "\udcff.csv",
        "a\nb.png",
        "-",
        "own.csv/x.png",
    ),
    *("im.png", "im.npy", "im.tif", "scan.xyz", "own.csv", "plan.toml", "results.csv", "runs"),
    *("samples.csv", "samples.npz", "runs/field"),
    *("runs/problem", "runs/image", "runs/shape", "runs/stopped", "runs/half", "runs/comparison"),
    *("runs/image/fit.npz", "runs/problem/config.json", "new.png", "new.ply", "new.npy", "new.npz"),
    *("new.stl", "new.glb", "new.gif", "new.csv", "new", "new/run", "~", "~nobody/x.png", "a//b"),
    *("[x].png", "file:///etc/passwd", "http://localhost:1/x.png", ".png", "c.png", "c.ply"),
)

OPTIMIZERS = ("adam", "adamw", "rmsprop", "sgd", "snr_adam", "snr_soap", "L-BFGS", "SNR_ADAM", "")

PAIR_NAMES = {
    "--snr-option": ("gate", "z", "floor", "lambd", "sigma", "alpha", "warmup_steps", "betas", "x"),
    "--gate-option": (*(name for name in Gate.__dataclass_fields__), "x", ""),
    "--network-option": (
        *("hidden_features", "hidden_layers", "first_omega_0", "hidden_omega_0", "frequencies"),
        *("radius", "scale", "beta", "omega", "seed", "self", "inputs", "outputs", "", "1", "x y"),
    ),
}
PAIR_VALUES = (
    *(
        "0",
        "1",
        "2",
        "-1",
        "2.5",
        "nan",
        "inf",
        "1e400",
        "1e9",
        "100000000",
        "10**8",
        "1000000000000",
    ),
    *(
        "True",
        "None",
        "'a'",
        "hard",
        "soft",
        "snr",
        "label",
        "stream",
        "[]",
        "[1, 2]",
        "(1,)",
        "{}",
    ),
    *(
        "{[]:1}",
        "",
        "x",
        "=",
        "((",
        "-0.0",
        "1j",
        "b'a'",
        "☃",
        "[" * 300,
        "1" * 5000,
        "(0.9, 0.99)",
    ),
    *("1e-300", "1e300", "__import__('os')", "[[]]", "(None,)"),
)

VALUES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("--iterations", "--steps", "--points", "--sample", "--patience"), WHOLE),
    **dict.fromkeys(("--batch-size", "--floor-every", "--channel-axis"), (*WHOLE, "-9", "7")),
    **dict.fromkeys(
        ("--lr", "--noise", "--sigma", "--cooldown"), (*NUMBERS, "0.1", "1e38", "1e-9")
    ),
    "--grid": (*WHOLE, "3", "100000"),
    "--value": ("u", "x", "sigma", "v", "", "☃", "u,x", "0"),
    "--scale": (*NUMBERS, "1,2", "1,,2", "1e6", "1e-9", "0.3"),
    "--seed": (*WHOLE, "4294967295", "4294967296", "18446744073709551616"),
    "--seeds": (*(n for n in WHOLE if n != "1_0"), "10001"),
    "--probes": tuple(WHOLE),
    "--resolution": (*WHOLE, "8", "100000"),
    "--jobs": ("0", "-1", "1", "1.5", "x", "", "nan"),
    "--backend": ("loky", "ray", "dask", "threading", "", "x"),
    "--device": (
        *("cpu", "cuda", "meta", "mps", "xla", "cuda:99", "cuda:x", "cpu:0", "cpu:5", "cpu:-1"),
        *("", "x", "hpu", "ipu", "privateuseone", "cpu:99999999999"),
    ),
    "--optimizer": OPTIMIZERS,
    "--compare": OPTIMIZERS,
    "--optimizers": (
        *OPTIMIZERS,
        *("adam,adam", ",", "adamw,", "adamw,foo", "snr_adam, adamw", "adamw;snr_adam", "adam,sgd"),
    ),
    "--network": ("siren", "fourier", "wire", "softplus", "own", "resnet", "", "SIREN", "None"),
    **dict.fromkeys(
        ("--out", "--out-run", "--output", "--data", "--mask", "--reference", "--at"), PATHS
    ),
}

KEPT = ("--iterations", "--steps", "--jobs", "--resolution", "--seeds")
"""Never left out: their defaults take long."""


def _tail(command: str) -> tuple[str, ...]:
    """Options of a command that keep it tiny."""
    of = {"compare": ("--iterations", "1", "--points", "8", "--jobs", "1")}
    return of[command]


Pairs = tuple[tuple[str, str | None], ...]
NEW = (("--iterations", "1"), ("--points", "8"), ("--out", "new/run"))
COMPARED = (("--iterations", "1"), ("--points", "8"), ("--jobs", "1"), ("--out", "runs/comparison"))
ON: Pairs = (("--resume", None),)
BASES: tuple[tuple[str, tuple[str, ...], Pairs], ...] = (
    ("solve", ("convection",), NEW),
    ("solve", ("convection",), (("--out", "runs/problem"), *ON)),
    ("solve", ("convection",), (("--out", "runs/stopped"), *ON)),
    ("compare", ("convection",), COMPARED),
    ("bench", ("plan.toml",), (("--out", "results.csv"), ("--jobs", "1"))),
    (
        "fit-image",
        ("im.png",),
        (("--output", "new.png"), ("--steps", "1"), ("--out-run", "new/run"), *TINY),
    ),
    ("fit-image", ("im.png",), (("--output", "new.png"), ("--out-run", "runs/image"), *ON)),
    ("fit-image", ("im.png",), (("--output", "new.png"), ("--out-run", "runs/patient"), *ON)),
    ("fit-image", ("im.png",), (("--output", "new.png"), ("--out-run", "runs/half"), *ON)),
    (
        "fit-sdf",
        ("scan.xyz",),
        (
            *(("--output", "new.ply"), ("--steps", "1"), ("--out-run", "new/run")),
            *(("--resolution", "8"), *TINY),
        ),
    ),
    (
        "fit-sdf",
        ("scan.xyz",),
        (("--output", "new.ply"), ("--out-run", "runs/shape"), ("--resolution", "8"), *ON),
    ),
    ("memorization", ("runs/problem",), ()),
    ("memorization", ("runs/image",), ()),
    ("memorization", ("runs/shape",), ()),
    (
        "fit-field",
        ("samples.csv",),
        (("--output", "new.csv"), ("--steps", "1"), ("--out-run", "new/run"), *TINY),
    ),
    ("fit-field", ("samples.csv",), (("--output", "new.csv"), ("--out-run", "runs/field"), *ON)),
    ("memorization", ("runs/field",), ()),
)

NAMES = ("convection", "heat", "nothing", "", "CONVECTION", "../x", "a/b", "☃", "\udcff", "x" * 300)


def options_of(command: str) -> list[Any]:
    """The command's options, as click has them."""
    every: Any = typer.main.get_command(app)
    return [p for p in every.commands[command].params if p.param_type_name == "option"]


def line(command: str, positional: Iterable[str], options: Pairs) -> tuple[str, ...]:
    """A command line."""
    parts = [command, *positional]
    for flag, value in options:
        parts += [flag] if value is None else [flag, value]
    return tuple(parts)


def value_of(rng: random.Random, flag: str) -> str:
    """A nasty value of an option."""
    if flag in PAIR_NAMES and rng.random() < 0.85:
        return f"{rng.choice(PAIR_NAMES[flag])}={rng.choice(PAIR_VALUES)}"
    return rng.choice(VALUES.get(flag, WORDS) if rng.random() < 0.85 else WORDS)


def arguments(rng: random.Random) -> tuple[str, ...]:
    """A command line with something wrong, odd or out of place in it."""
    command, positional, options = rng.choice(BASES)
    found = list(options)
    places = list(positional)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        what = rng.random()
        if what < 0.7:
            option = rng.choice(options_of(command))
            flag = option.opts[0]
            if option.is_flag:
                found.append((rng.choice((*option.opts, *option.secondary_opts)), None))
                continue
            if not option.multiple:
                found = [pair for pair in found if pair[0] != flag]
            found.append((flag, value_of(rng, flag)))
            if flag == "--compare" and "--steps" not in dict(found):
                found.append(("--steps", "2"))  # of the second fit; the first has taken as many
        elif what < 0.8:
            at = rng.randrange(len(places)) if places else 0
            pool = NAMES if command in ("solve", "compare") else PATHS
            places[at : at + 1] = [rng.choice(pool)]
        elif what < 0.85 and found:
            at = rng.randrange(len(found))
            if found[at][0] not in KEPT:
                del found[at]
        elif what < 0.9:
            places.append(rng.choice((*WORDS, *PATHS)))
        elif what < 0.95:
            other = rng.choice(
                options_of(rng.choice(("solve", "fit-image", "fit-sdf", "fit-field", "bench")))
            )
            if other.opts[0] not in KEPT and not other.is_flag:
                found.append((other.opts[0], value_of(rng, other.opts[0])))
        else:
            found.append((rng.choice(("--help", "--versio", "-O", "--resum", "--", "-h")), None))
    return line(command, places, tuple(found))


# --- Damage ------------------------------------------------------------------------------------

TOKENS = (
    *(b"", b"nan", b"inf", b"-1", b"0", b"1e400", b"1_0", b"x", b"\xff", b"\xef\xbb\xbf", b"\0"),
    *(b";", b",", b"\t", b'"', b"'", b"[", b"]", b"{", b"=", b"#", b"\n", b"\r", b"\r\n", b" "),
    *("é".encode(), "☃".encode("utf-16"), b"true", b"1979-05-27", b"0.5,0.5", b"-", b"[[x]]"),
    *(b"convection", b"adam", b"snr_soap", b"lbfgs", b"[methods.a]\n", b"[problems.heat]\n"),
)


def bytes_changed(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """Flipped bits, a part that is missing or repeated, another file, an end that is too long."""
    found = bytearray(data)
    what = rng.randrange(8)
    at = rng.randrange(len(found)) if found else 0
    if what == 0 and found:
        found[at] ^= 1 << rng.randrange(8)
    elif what == 1 and found:
        for _ in range(rng.choice((2, 10, 100))):
            found[rng.randrange(len(found))] = rng.randrange(256)
    elif what == 2:
        del found[at:]
    elif what == 3:
        del found[at : at + rng.choice((1, 10, 100))]
    elif what == 4:
        found += rng.choice((b"\0", b"x" * 100, other, bytes(found)))
    elif what == 5:
        found = bytearray(rng.choice((b"", other, b"\0" * len(found), b"\xff\xfe" + bytes(found))))
    elif what == 6:
        found[at : at + 64] = b"\0" * 64
    else:
        found[at:at] = found[at // 2 : at]
    return bytes(found)


def text_changed(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """Fields and lines that are wrong, missing or too many; other separators and encodings."""
    what = rng.random()
    if what < 0.2:
        return bytes_changed(rng, data, other)
    if what < 0.3:
        text = data.decode() + "# é\n"
        code = rng.choice(("utf-16", "utf-16-le", "latin-1", "utf-8-sig", "utf-32", "utf-7"))
        return text.encode(code)
    if what < 0.4:
        old, new = rng.choice(
            ((b",", b";"), (b",", b"\t"), (b".", b","), (b"\n", b"\r"), (b"=", b":"))
        )
        return data.replace(old, new)
    lines = data.split(b"\n")
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(lines))
        row = lines[at]
        kind = rng.randrange(5)
        if kind == 0:
            del lines[at]
            lines = lines or [b""]
        elif kind == 1:
            lines.insert(at, rng.choice((row, rng.choice(TOKENS), b"# note", row + row)))
        elif kind == 2:
            fields = row.split(b",")
            fields[rng.randrange(len(fields))] = rng.choice(TOKENS)
            lines[at] = b",".join(fields)
        else:
            place = rng.randrange(len(row) + 1)
            lines[at] = row[:place] + rng.choice(TOKENS) + row[place + rng.choice((0, 1, 3)) :]
    return b"\n".join(lines)


PLAIN = (
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        2.5,
        math_nan := float("nan"),
        float("inf"),
        "",
        "x",
        "☃",
        [],
        {},
    ),
    *([1, 2], {"a": 1}, [None], 10**30, -(10**30), "cpu", "adam", "1", [[0, 1]], 1e308, [[]]),
)


def tree_changed(rng: random.Random, value: Any, leaves: tuple[Any, ...] = PLAIN) -> Any:
    """One entry, at any depth, that is missing, unknown or of another type."""
    if isinstance(value, dict) and value and rng.random() < 0.95:
        key = rng.choice(list(value))
        what = rng.random()
        if what < 0.2:
            del value[key]
        elif what < 0.3:
            value[rng.choice(("x", "", "☃", "step", "self", "kind"))] = rng.choice(leaves)
        elif what < 0.6:
            value[key] = rng.choice(leaves)
        else:
            value[key] = tree_changed(rng, value[key], leaves)
        return value
    if isinstance(value, list) and value and rng.random() < 0.9:
        at = rng.randrange(len(value))
        if rng.random() < 0.2:
            del value[at]
        else:
            value[at] = tree_changed(rng, value[at], leaves)
        return value
    return rng.choice(leaves)


def json_changed(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """A JSON file that is damaged, or well formed and wrong."""
    what = rng.random()
    if what < 0.2:
        return text_changed(rng, data, other)
    if what < 0.3:
        return rng.choice(
            (
                *(b"[]", b"{}", b"null", b"1", b'"x"', b"[" * 100_000, b"1" * 5000, b"", b"{" * 9),
                *(b'{"format": 1, "kind": "problem"}', b'{"a": 1, "a": 2}', b'{"x": NaN}'),
                b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
            )
        )
    return json.dumps(tree_changed(rng, json.loads(data))).encode()


TENSORS = (
    *(torch.zeros(0), torch.zeros(3), torch.tensor(1.0), torch.full((2, 2), math_nan)),
    *(torch.zeros(2, dtype=torch.int64), torch.zeros(5056, dtype=torch.uint8), torch.ones(1)),
)


def state_changed(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """A checkpoint that is damaged, or has a right checksum and wrong contents."""
    if rng.random() < 0.4:
        return bytes_changed(rng, data, other)
    whole = torch.load(io.BytesIO(data), weights_only=True)
    if rng.random() < 0.3:
        whole["config"] = json_changed(rng, whole["config"].encode(), b"x").decode(errors="replace")
    else:
        whole = tree_changed(rng, whole, (*PLAIN, *map(torch.clone, TENSORS)))
    buffer = io.BytesIO()
    torch.save(whole, buffer)
    return sealed(buffer.getvalue())


def arrays_changed(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """A sealed .npz file that is damaged, or has a right checksum and wrong contents."""
    if rng.random() < 0.4:
        return bytes_changed(rng, data, other)
    with np.load(io.BytesIO(data)) as archive:
        arrays = dict(archive)
    key = rng.choice(list(arrays))
    if "about" in arrays and rng.random() < 0.5:
        about = json_changed(rng, str(arrays["about"]).encode(), b"x")
        arrays["about"] = np.array(about.decode(errors="replace"))
    elif rng.random() < 0.3:
        del arrays[key]
    else:
        arrays[key] = rng.choice(array_values(arrays[key]))
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return sealed(buffer.getvalue())


def array_values(array: np.ndarray) -> list[Any]:
    """Wrong ones in place of an array."""
    values = [np.zeros(0), np.array("x"), np.zeros((2, 3, 4)), np.array(1.0), np.array([1j, 2])]
    if array.dtype.kind in "fiu":
        values += [array[:1] if array.ndim else array, array.astype(complex), array.astype(str)]
        values += [np.full(array.shape, math_nan), array.astype(np.float16), array[..., None]]
    return values


def image_changed(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """An image or an array of another shape or type, or damaged."""
    if rng.random() < 0.7:
        return bytes_changed(rng, data, other)
    return npy_changed(rng)


def npy_changed(rng: random.Random) -> bytes:
    """A .npy file that holds no image or cloud that can be used."""
    values = (
        *(
            np.zeros(0),
            np.zeros((0, 3)),
            np.zeros((3, 0)),
            np.array(1.0),
            np.zeros((2, 2, 2, 2, 2)),
        ),
        *(np.array([["a", "b"]]), np.array([[1j, 2]]), np.full((9, 9), math_nan), np.eye(1)),
        *(np.zeros((9, 9), bool), np.full((12, 3), 1e308), np.full((12, 3), 1e-320), np.eye(12, 3)),
        *(np.zeros((4, 4), "datetime64[s]"), np.zeros(5, dtype=[("a", float)]), np.eye(12) * 1e300),
        *(np.arange(30.0).reshape(10, 3), np.array([[1, None]], dtype=object), np.eye(12) + np.inf),
        *(np.random.default_rng(0).normal(size=(12, 2)), np.eye(12, dtype=np.uint64) * 2**63),
        *(np.eye(12, dtype=np.longdouble), np.eye(12, dtype=np.float16), np.zeros((12, 3)) * -0.0),
    )
    buffer = io.BytesIO()
    np.save(buffer, rng.choice(values), allow_pickle=True)
    data = buffer.getvalue()
    if rng.random() < 0.2:  # claims more than memory holds, and has less
        header = {"descr": "<f8", "fortran_order": False, "shape": (10**6, 10**6)}
        buffer = io.BytesIO()
        np.lib.format.write_array_header_1_0(buffer, header)
        data = buffer.getvalue() + b"\0" * 64
    return data


Damage = Callable[[random.Random, bytes, bytes], bytes]
RUNS: dict[str, tuple[tuple[str, ...], ...]] = {
    run: (
        tuple(line(*base)),
        ("memorization", f"runs/{run}"),
        tuple(line(base[0], base[1], (*base[2][:-1], (budget, "3"), *ON))),
        tuple(line(base[0], base[1], base[2][:-1])),
    )
    for base, run, budget in (
        (BASES[1], "problem", "--iterations"),
        (BASES[2], "stopped", "--iterations"),
        (BASES[6], "image", "--steps"),
        (BASES[7], "patient", "--steps"),
        (BASES[8], "half", "--steps"),
        (BASES[10], "shape", "--steps"),
        (BASES[15], "field", "--steps"),
    )
}
AGAIN = line(*BASES[3])
COMPARISON = "comparison/convection-snr_adam-seed0"
RUNS[COMPARISON] = (AGAIN, ("memorization", f"runs/{COMPARISON}"))


@dataclass(frozen=True)
class Case:
    """A command, and what is in the place of files before it runs."""

    seed: int
    kind: str
    arguments: tuple[str, ...]
    files: dict[str, bytes | str] = field(default_factory=dict)


def case(seed: int, world: World) -> Case:
    """The case of a seed: the same one in whatever order they are run."""
    rng = random.Random(seed)
    kind = rng.choices(list(KINDS), weights=[weight for weight, _ in KINDS.values()])[0]
    command, files = KINDS[kind][1](rng, world)
    return Case(seed, kind, command, files)


Made = tuple[tuple[str, ...], dict[str, bytes | str]]


def _of_arguments(rng: random.Random, world: World) -> Made:
    return arguments(rng), {}


def _of_run(damage: Damage, *names: str) -> Callable[[random.Random, World], Made]:
    """Damage one of these files of a run, and use the run."""

    def made(rng: random.Random, world: World) -> Made:
        while True:
            run, name = rng.choice(list(RUNS)), rng.choice(names)
            if f"here/runs/{run}/{name}" in world.found:
                break
        path, other = f"runs/{run}/{name}", f"runs/{rng.choice(list(RUNS))}/checkpoint.pt"
        data = damage(rng, copy.deepcopy(world.data(path)), world.data(other))
        return rng.choice(RUNS[run]), {path: data}

    return made


def _of_data(
    damage: Damage, *commands: tuple[str, tuple[str, ...]]
) -> Callable[[random.Random, World], Made]:
    """Damage a file of data, and use it."""

    def made(rng: random.Random, world: World) -> Made:
        name, command = rng.choice(commands)
        data = damage(rng, world.data(name), world.data("im.png"))
        return command, {name: data}

    return made


def _of_places(rng: random.Random, world: World) -> Made:
    """A link, a folder, a pipe or nothing in the place of a file."""
    if rng.random() < 0.3:
        name, command = rng.choice(
            (
                *(("own.csv", SOLVE_OWN), ("plan.toml", BENCH), ("results.csv", BENCH)),
                *(("im.png", IMAGE), ("scan.xyz", SHAPE), ("new.png", IMAGE), ("new.ply", SHAPE)),
                *(("samples.csv", FIELD), ("new.csv", FIELD)),
                *((".results.csv.lock", BENCH), ("new", IMAGE), ("new/run", SHAPE), ("new", SOLVE)),
            )
        )
    else:
        run = rng.choice(list(RUNS))
        name = f"runs/{run}/{rng.choice((*FILES, '.lock', '.lock.owner', '.x.partial'))}"
        command = rng.choice(RUNS[run])
    places = ("-> im.png", "-> absent", "-> loop", "-> /dev/null", "folder", "pipe", "remove")
    return command, {name: rng.choice(places)}


SOLVE = line(*BASES[0])
SOLVE_OWN = line("solve", ("convection",), (*NEW[::2], ("--data", "own.csv")))
BENCH = line(*BASES[4])
IMAGE = line(*BASES[5])
SHAPE = line(*BASES[9])
FIELD = line(*BASES[14])


def _image(name: str) -> tuple[str, tuple[str, ...]]:
    return name, ("fit-image", name, *IMAGE[2:])


def _shape(name: str) -> tuple[str, tuple[str, ...]]:
    return name, ("fit-sdf", name, *SHAPE[2:])


def _array(rng: random.Random, data: bytes, other: bytes) -> bytes:
    return npy_changed(rng) if rng.random() < 0.6 else bytes_changed(rng, data, other)


KINDS: dict[str, tuple[float, Callable[[random.Random, World], Made]]] = {
    "arguments": (40, _of_arguments),
    "checkpoint": (12, _of_run(state_changed, "checkpoint.pt")),
    "config.json, summary.json": (9, _of_run(json_changed, "config.json", "summary.json")),
    "metrics.csv": (2, _of_run(text_changed, "metrics.csv")),
    "fit.npz, prediction.npz": (8, _of_run(arrays_changed, "fit.npz", "prediction.npz")),
    "measurements": (8, _of_data(text_changed, ("own.csv", SOLVE_OWN))),
    "samples": (4, _of_data(text_changed, ("samples.csv", FIELD))),
    "samples, binary": (
        2,
        _of_data(arrays_changed, ("samples.npz", ("fit-field", "samples.npz", *FIELD[2:]))),
    ),
    "plan": (6, _of_data(text_changed, ("plan.toml", BENCH))),
    "results": (4, _of_data(text_changed, ("results.csv", BENCH))),
    "image": (4, _of_data(image_changed, *map(_image, ("im.png", "im.jpg", "im.tif", "im.npy")))),
    "points": (
        4,
        _of_data(
            text_changed,
            *map(_shape, ("scan.xyz", "scan.csv", "curve.csv", "ball.off", "ball.obj")),
        ),
    ),
    "points, binary": (
        2,
        _of_data(bytes_changed, *map(_shape, ("scan.ply", "scan.npz", "ball.stl"))),
    ),
    "arrays": (2, _of_data(_array, _image("im.npy"), _shape("scan.npy"))),
    "links, folders": (7, _of_places),
}
"""Kind of case -> how many of them, and how one is made."""


# --- Running them --------------------------------------------------------------------------------


class Hang(BaseException):
    """A case took too long."""


@dataclass(frozen=True)
class Outcome:
    """What came of a case; ``fault`` is empty where it was as it should be."""

    fault: str
    code: int
    seconds: float
    output: str


def tried(case: Case, world: World) -> Outcome:
    """Run a case; the world is as before afterwards."""
    world.put(case.files)
    before = world.current_marks()
    started = time.perf_counter()
    signal.signal(signal.SIGALRM, _hang)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    fault = ""
    try:
        result = world.call(*case.arguments)
    except Hang:
        result, fault = None, "hang"
    except Exception as error:
        result, fault = None, f"{type(error).__name__}: {error}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    seconds = time.perf_counter() - started
    code, output = (0, "") if result is None else (result.exit_code, result.output)
    if result is not None:
        fault = fault_of(result) or _touched(world, before, case, code, output)
    if handlers != [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]:
        fault = fault or "signals are handled otherwise afterwards"
    if torch.get_default_device() != torch.device("cpu"):
        fault = fault or "the device is another one afterwards"
        torch.set_default_device("cpu")
    world.restore()
    return Outcome(fault, code, seconds, output)


def fault_of(result: Any) -> str:
    """What is wrong with how a command ended, in a word or two; empty where nothing is."""
    output, error = result.output, result.exception
    if error is not None and not isinstance(error, SystemExit):
        return f"traceback: {type(error).__name__}: {str(error)[:100]}"
    if "Traceback (most recent" in output:
        return "traceback"
    if result.exit_code not in CODES:
        return f"exit code {result.exit_code}"
    if "unexpected: please report" in output:
        return "unexpected"
    if "not enough memory" in output:
        return "memory"
    if result.exit_code == 1:
        said = [
            row for row in result.stderr.splitlines() if not row.startswith(("Note: ", "Skipped: "))
        ]
        if len(said) != 1 or not said[0].startswith("Error: ") or len(said[0]) < 12:
            return "not one line"
    return ""


def _touched(world: World, before: Mapping[str, Any], case: Case, code: int, output: str) -> str:
    if code not in (1, 2) or any(words in output for words in LATER):
        return ""
    changed = world.changes(before, case.files)
    return f"touched: {', '.join(changed)}" if changed else ""


def _hang(*_: Any) -> None:
    raise Hang


def run_all(world: World, seeds: Iterable[int]) -> Iterator[tuple[Case, Outcome]]:
    """The cases of these seeds, with what came of them; figures are drawn in one of 50."""
    with inside(world.here), warnings.catch_warnings(), short_training():
        for seed in seeds:
            chosen = case(seed, world)
            if seed % 50:
                with small_figures():
                    yield chosen, tried(chosen, world)
            else:
                yield chosen, tried(chosen, world)


def limit_memory() -> None:
    """From now on, this process gets no more than :data:`MEMORY`."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.getrlimit(resource.RLIMIT_AS)[1]))


def main(seeds: Iterable[int], out: bool = False) -> int:
    """Run cases and say what is wrong with which."""
    counts: Counter[str] = Counter()
    faults: Counter[str] = Counter()
    seconds: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder))
        limit_memory()
        for chosen, outcome in run_all(world, seeds):
            counts[chosen.kind] += 1
            seconds[chosen.kind] += outcome.seconds
            if outcome.fault or out:
                faults[chosen.kind] += bool(outcome.fault)
                files = {k: v if isinstance(v, str) else v[:60] for k, v in chosen.files.items()}
                print(chosen.seed, chosen.kind, "|", ascii(outcome.fault), flush=True)
                print("   ", ascii(chosen.arguments)[:600], ascii(files), flush=True)
                print("   ", ascii(outcome.output[-300:] if not out else outcome.output))
            if outcome.seconds > 5:
                print("slow:", chosen.seed, round(outcome.seconds, 1), ascii(chosen.arguments))
    for kind in KINDS:
        print(f"{kind}: {counts[kind]} cases, {faults[kind]} faults, {seconds[kind]:.0f} s")
    return sum(faults.values())


if __name__ == "__main__":
    if sys.argv[1:2] == ["--only"]:
        sys.exit(bool(main(map(int, sys.argv[2:]), out=True)))
    cases, first = (*map(int, sys.argv[1:]), *(10_000, 0)[len(sys.argv) - 1 :])
    sys.exit(bool(main(range(first, first + cases))))
