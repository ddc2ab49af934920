"""The heart of the tests on the oldest and newest versions that are allowed: ``make matrix``.

    python tests/matrix.py [oldest-3.10] [newest-3.13] [newest-3.11] ...

Each row is a choice of versions and of a Python. "oldest" has the lower bound of every dependency,
"newest" whatever pip finds. A row makes an environment of its own in .venv/matrix, and is "not run"
where there is no such Python, or where pip cannot install the versions.

On Linux, PyPI's torch comes with CUDA, about 3 GB a row. pip's own variable PIP_EXTRA_INDEX_URL may
name an index with smaller builds.
"""

from __future__ import annotations

import glob
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

try:
    import tomllib
except ImportError:  # Python 3.10
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
ROWS = ("oldest-3.10", "newest-3.13")
TOOLS = ("pytest>=8", "sympy", "pyyaml", "laspy", "setuptools>=77")
SHOWN = ("torch", "deepxde", "numpy", "scipy")

TESTS = (
    *("test_import.py", "test_gate.py", "test_rule.py", "test_pointwise.py", "test_exact.py"),
    *("test_cli.py", "deepxde/test_compile.py", "deepxde/test_conditions.py"),
    *("deepxde/test_error_bars.py", "fields/test_image_files.py", "fields/test_cloud_files.py"),
    *("fields/test_tables.py", "fields/test_operators.py", "runs/test_config.py"),
    *("runs/test_figure.py", "measure/test_twins.py"),
)
"""One file or more of every room, those that touch torch, DeepXDE and file formats first of all."""


def interpreter(version: str) -> str | None:
    """A Python of this version that runs: on the PATH, or pyenv's."""
    pyenv = os.environ.get("PYENV_ROOT", str(Path.home() / ".pyenv"))
    found = glob.glob(f"{pyenv}/versions/{version}.*/bin/python")
    for one in (shutil.which(f"python{version}"), *sorted(found), sys.executable):
        asks = [one, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
        if one and run(asks)[1].strip() == version:
            return one
    return None


def run(command: list[str]) -> tuple[int, str]:
    """Exit code, and all that was printed."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**environment, "DDE_BACKEND": "pytorch", "OMP_NUM_THREADS": "1"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    return done.returncode, done.stdout


def oldest() -> list[str]:
    """The lower bound of every dependency, as ``name==version``."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [re.sub(r">=([\d.]+)", r"==\1", one) for one in project["dependencies"]]


def installed(row: str) -> tuple[str, str]:
    """The Python of an environment with these versions; or "", and why there is none."""
    kind, version = row.split("-")
    own = interpreter(version)
    if own is None:
        return "", f"there is no Python {version} here"
    place = ROOT / ".venv/matrix" / row
    python = str(place / "bin/python")
    shutil.rmtree(place, ignore_errors=True)
    run([own, "-m", "venv", str(place)])
    pip = [python, "-m", "pip", "install", "-q"]
    wanted = oldest() if kind == "oldest" else []
    code, text = run([*pip, *wanted, *TOOLS, "-e", "."])
    if code:
        errors = [line for line in text.splitlines() if line.startswith("ERROR")]
        return "", (errors or text.splitlines())[-1]
    return python, ""


def tested(row: str) -> list[str]:
    """A line of the table: versions, and how the tests ended."""
    print(f"matrix: {row}: installing", flush=True)
    python, why = installed(row)
    if not python:
        return [row, *["-"] * len(SHOWN), f"not run: {why}"]
    code = f"from importlib.metadata import version as v; print(*map(v, {SHOWN}))"
    versions = run([python, "-c", code])[1].split()
    print(f"matrix: {row}: testing", flush=True)
    start = time.monotonic()
    files = [f"tests/{name}" for name in TESTS]
    code, text = run([python, "-m", "pytest", "-p", "no:cacheprovider", *files])
    if code:
        print(text)
    end = text.strip().splitlines()[-1].strip("= ")
    return [row, *versions, f"{'FAILED: ' if code else ''}{end} ({time.monotonic() - start:.0f} s)"]


def main(rows: list[str]) -> None:
    lines = [["versions-Python", *SHOWN, "tests"], *(tested(row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    print()
    for line in lines:
        print("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip())
    sys.exit(any("FAILED" in line[-1] for line in lines))


if __name__ == "__main__":
    main(sys.argv[1:] or list(ROWS))
