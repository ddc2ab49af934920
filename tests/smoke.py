"""Does an installed sciml-snr work? A script, for an environment that holds the package alone.

    cd EMPTY_FOLDER && python -I PATH/TO/tests/smoke.py

It is run by ``make dist`` (tests/check_dist.py). It needs no test runner, and must not find the
repository: what it imports has to be in the environment.
"""

import os
import subprocess
import sys
import sysconfig
from importlib import metadata, resources
from pathlib import Path

os.environ["DDE_BACKEND"] = "pytorch"
os.environ["OMP_NUM_THREADS"] = "1"
os.environ.pop("PYTHONPATH", None)

COMMAND = str(Path(sysconfig.get_path("scripts")) / "sciml-snr")


def command(*arguments: str) -> str:
    """What the command prints."""
    done = subprocess.run([COMMAND, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, f"sciml-snr {' '.join(arguments)}:\n{done.stdout}{done.stderr}"
    return done.stdout


def what_is_installed() -> None:
    """The package is the environment's, with all that is no code."""
    import sciml_snr

    place = Path(sciml_snr.__file__).resolve()
    assert place.is_relative_to(Path(sys.prefix).resolve()), f"{place} is not the installed one"
    assert sciml_snr.__version__ == metadata.version("sciml-snr") == command("--version").strip()
    missing = [name for name in sciml_snr.__all__ if getattr(sciml_snr, name, None) is None]
    assert not missing, missing
    assert (resources.files("sciml_snr") / "py.typed").is_file()
    assert (resources.files("sciml_snr.problems") / "lynx_hare.csv").is_file()
    files = [str(path) for path in metadata.files("sciml-snr")]
    assert any(name.endswith("licenses/LICENSE") for name in files)
    strangers = {name.split("/")[0] for name in files if not name.startswith(("sciml_snr", ".."))}
    assert not strangers, f"installed beside the package: {strangers}"


def problems() -> None:
    """Every problem can be built, the file of an own problem is written, and one is solved."""
    from sciml_snr.problems import PROBLEMS

    listed = command("problems")
    for name, cls in PROBLEMS.items():
        assert name in listed
        cls()
    command("new-problem", "cooling")
    for problem in ("convection", "cooling.py"):
        folder = Path("runs") / problem
        command("solve", problem, "--iterations", "20", "--out", str(folder))
        for file in ("config.json", "metrics.csv", "checkpoint.pt", "summary.json", "figure.png"):
            assert (folder / file).stat().st_size > 0, file


def fits() -> None:
    """A function and an image."""
    import numpy as np

    from sciml_snr.fields import fit_field, fit_image

    rng = np.random.default_rng(0)
    x = rng.random((40, 1))
    y = np.sin(6 * x[:, 0]) + 0.1 * rng.normal(size=40)
    field = fit_field(x, y, sigma=0.1, steps=5, progress=False)
    assert np.isfinite(field(x)).all()
    image = rng.integers(60, 200, (16, 16), dtype=np.uint8)
    fit = fit_image(image, steps=5, progress=False)
    assert fit.image.shape == image.shape and fit.image.dtype == image.dtype


if __name__ == "__main__":
    for part in (what_is_installed, problems, fits):
        part()
        print(f"smoke: {part.__name__} passed", flush=True)
